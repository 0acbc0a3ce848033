//! Calls whose memory the caller keeps.

use std::{
    hash::BuildHasher as _,
    sync::{Arc, atomic::Ordering},
};

use super::{By, Inner, Serving, Slot};
use crate::{
    generation::{Admission, Generation},
    health::Turn,
    journal::{Outcome, Recorder},
    kind::Kind,
    limits::Failure,
    load::MemoryId,
    memory::Remembered,
    shadow::Waiting,
};

/// A step whose memory the caller keeps.
pub struct Step<K: Kind> {
    /// The answer.
    pub answer: K::Answer,
    /// The memory to hand in next time; as it was, unless a plugin gave the answer.
    pub memory: K::Memory,
    /// Whose memory that is: keep it beside the memory, and hand both to [`Slot::step_from`].
    pub memory_id: MemoryId,
    /// Who gave the answer.
    pub by: By,
    /// Why it was not the plugin, if the plugin was asked and failed.
    pub failure: Option<Failure>,
    /// Whether there was no plugin to ask, whatever the request: none serves, or those that do are left alone for a while.
    pub unattended: bool,
}

/// What is kept of calls whose memory is the caller's.
pub(super) struct Steps<K: Kind> {
    pub(super) waiting: Waiting<K>,
    pub(super) recorder: Option<Recorder<K>>,
    /// The last memory that was recorded, and the segment that holds it.
    pub(super) recorded: Option<(K::Memory, u32)>,
}

impl<K: Kind> Slot<K> {
    /// One step with a memory that the caller keeps: [`step_from`](Self::step_from) for a caller that knows the memory
    /// to be of the plugin that serves.
    pub fn step(&self, request: &K::Request, memory: &K::Memory) -> Step<K> {
        self.step_in(request, memory, None)
    }

    /// One step with a memory that the caller keeps, and whose it is. A memory of another version is turned into one of
    /// the plugin that serves where it knows how; else the step begins with an empty one, and an event says so, or it fails
    /// and the memory stays, as [`Kind::FORGETS`] says. One of another plugin is never handed in.
    pub fn step_from(&self, request: &K::Request, memory: &K::Memory, id: &MemoryId) -> Step<K> {
        self.step_in(request, memory, Some(id))
    }

    fn step_in(&self, request: &K::Request, memory: &K::Memory, id: Option<&MemoryId>) -> Step<K> {
        let inner = &*self.0;
        let serving = inner.live.load();
        let serving = serving.now();
        let turn = inner.turn.fetch_add(1, Ordering::Relaxed);
        // Without keys a canary gets a share of the calls.
        let Some(generation) = serving.chosen(inner.hasher.hash_one(turn)) else {
            let id = id.cloned().unwrap_or(MemoryId::BUILTIN);
            // The caller's memory may be a plugin's, to be handed on when it is back: the built-in must not write it.
            let is_own = id == MemoryId::BUILTIN;
            let (answer, new) = match is_own {
                true => inner.builtin.step(request, memory),
                false => (inner.builtin.step(request, &K::Memory::default()).0, memory.clone()),
            };
            inner.tap_step(serving, request, memory, None, Ok((&answer, &new)), true);
            return Step { answer, memory: new, memory_id: id, by: By::Builtin, failure: None, unattended: true };
        };
        let (mut failure, mut unattended) = (None, true);
        for generation in [Some(generation), serving.other(generation)].into_iter().flatten() {
            let admission = generation.admission(request);
            unattended &= admission == Admission::Resting;
            if admission != Admission::Granted {
                continue;
            }
            let adopted = match id {
                Some(id) if *id != generation.memory_id => Some(inner.adopt(turn, serving, generation, id, memory)),
                _ => None,
            };
            let (adopted, mut lost) = adopted.map_or((None, None), |adopted| (Some(adopted.memory), adopted.lost));
            if let Some(lost) = lost.take_if(|lost| Inner::<K>::must_read(generation, lost)) {
                failure.get_or_insert(inner.cannot_read(generation, lost));
                continue;
            }
            let memory = adopted.as_ref().unwrap_or(memory);
            inner.counts.steps.fetch_add(1, Ordering::Relaxed);
            let (result, turned) = generation.call_anywhere(turn, request, memory);
            if turned != Turn::None {
                inner.turned(generation, turned);
            }
            match result {
                Ok((answer, new)) => {
                    let passes = K::passes(&answer);
                    inner.tap_step(serving, request, memory, Some(generation), Ok((&answer, &new)), passes);
                    let (answer, by) = match passes {
                        true => (inner.builtin.step(request, &K::Memory::default()).0, By::Builtin),
                        false => (answer, By::Generation(generation.number)),
                    };
                    if failure.is_some() {
                        inner.counts.rescues.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(lost) = lost {
                        inner.memory_lost(generation, lost);
                    }
                    let memory_id = generation.memory_id.clone();
                    return Step { answer, memory: new, memory_id, by, failure, unattended };
                }
                Err(failed) => {
                    inner.tap_step(serving, request, memory, Some(generation), Err(&failed), false);
                    inner.report(generation, &failed);
                    failure.get_or_insert(failed);
                }
            }
        }
        inner.counts.fallbacks.fetch_add(1, Ordering::Relaxed);
        let (answer, by) = match inner.policy_answer(request) {
            Some(answer) => (answer, By::Policy),
            None => (inner.builtin.step(request, &K::Memory::default()).0, By::Builtin),
        };
        let memory_id = id.unwrap_or(&generation.memory_id).clone();
        Step { answer, memory: memory.clone(), memory_id, by, failure, unattended }
    }
}

impl<K: Kind> Inner<K> {
    /// Records a call whose memory is the caller's, and keeps it for the shadow. `generation` none: the built-in's.
    fn tap_step(
        &self,
        serving: &Serving<K>,
        request: &K::Request,
        before: &K::Memory,
        generation: Option<&Arc<Generation<K>>>,
        result: Result<(&K::Answer, &K::Memory), &Failure>,
        by_builtin: bool,
    ) {
        if serving.shadow.is_none() && self.sample() == 0.0 {
            return;
        }
        let mut steps = self.steps();
        let Steps { waiting, recorder, recorded } = &mut *steps;
        if let (Some(recorder), Some(key)) = (recorder, K::step_key()) {
            // The caller may hand in any memory: only the last one recorded need not be written again.
            let mut known = recorded.as_ref().filter(|(memory, _)| memory == before).map_or(0, |(_, known)| *known);
            let outcome = match result {
                Ok((answer, memory)) => Outcome::Answered { answer, memory },
                Err(failure) => Outcome::Failed(failure),
            };
            let number = generation.map_or(0, |generation| generation.number);
            recorder.record(number, &key, &mut known, request, before, outcome);
            let after = result.map_or(before, |(_, memory)| memory);
            *recorded = Some((after.clone(), known));
        }
        let (Some(shadow), Ok((answer, _))) = (&serving.shadow, result) else {
            return;
        };
        let form = generation.map_or(0, |generation| generation.form);
        let before = Remembered { memory: before.clone(), form, epoch: 0 };
        waiting.add(shadow, None, request, before, answer, by_builtin);
    }
}
