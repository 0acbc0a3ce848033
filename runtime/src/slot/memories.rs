//! Memories that change hands: from one version of a plugin to another, and back.

use std::{
    cmp::Ordering as Cmp,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use super::{Inner, Serving};
use crate::{
    event::Change,
    generation::{Generation, Unmigrated, Way},
    health::Turn,
    kind::Kind,
    limits::Failure,
    load::MemoryId,
};

/// A memory of another version, as its reader gets it.
pub(super) struct Adopted<K: Kind> {
    pub(super) memory: K::Memory,
    /// If it could not be turned, and this is the default.
    pub(super) lost: Option<Lost>,
}

/// A memory that nobody could hand over.
pub(super) struct Lost {
    pub(super) from: MemoryId,
    pub(super) reason: String,
    /// Whether a call failed over it, which is counted already.
    is_counted: bool,
}

impl Lost {
    /// None: there was nothing to lose.
    pub(super) fn of<K: Kind>(from: MemoryId, memory: &K::Memory, problem: &Unmigrated) -> Option<Lost> {
        let is_one = from != MemoryId::BUILTIN && *memory != K::Memory::default();
        is_one.then(|| Lost { from, reason: problem.to_string(), is_counted: matches!(problem, Unmigrated::Failed(_)) })
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        Failure::Unreadable { of: lost.from.to_string(), reason: lost.reason }
    }
}

impl<K: Kind> Serving<K> {
    /// Those whose memories are kept: all but the shadow.
    pub(super) fn writers(&self) -> impl Iterator<Item = &Arc<Generation<K>>> {
        let canary = self.canary.as_ref().map(|(canary, _)| canary);
        [self.live.as_ref(), self.previous.as_ref(), canary, self.gone_back.as_ref()].into_iter().flatten()
    }

    /// Who can turn a memory of `id` into one of an older version: the one that wrote it, or one that is newer still.
    pub(super) fn downgrader(&self, id: &MemoryId) -> Option<&Arc<Generation<K>>> {
        let knows = |writer: &&Arc<Generation<K>>| {
            let own = &writer.memory_id;
            writer.can_migrate() && own.plugin == id.plugin && own.version >= id.version
        };
        self.writers().filter(knows).min_by_key(|writer| writer.memory_id.version)
    }

    /// Whether [`migrate`](Self::migrate) has a way at all, whatever the memory is.
    pub(super) fn can_hand(&self, id: &MemoryId, generation: &Generation<K>) -> bool {
        let own = &generation.memory_id;
        id.plugin == own.plugin
            && match id.version.cmp(&own.version) {
                Cmp::Less => generation.can_migrate(),
                Cmp::Equal => true,
                Cmp::Greater => self.downgrader(id).is_some(),
            }
    }

    /// The memory of `id` as one that `generation` can read. Errors: why not, and who was asked.
    pub(super) fn migrate<'a>(
        &'a self,
        at: usize,
        generation: &'a Arc<Generation<K>>,
        id: &MemoryId,
        memory: &K::Memory,
    ) -> Result<K::Memory, (&'a Arc<Generation<K>>, Unmigrated)> {
        let own = &generation.memory_id;
        let refused = |reason: String| Err((generation, Unmigrated::Refused(reason)));
        if id == own {
            return Ok(memory.clone());
        }
        if id.plugin != own.plugin {
            return refused(format!("it is of {id}"));
        }
        if id.version < own.version {
            return generation.migrate(at, Way::Up, id.version, memory).map_err(|problem| (generation, problem));
        }
        let Some(newer) = self.downgrader(id) else {
            return refused("no version that knows it and exports the migration interface is left".to_owned());
        };
        // On the first bench: of one that went back, no other has an instance.
        let ask = |way, version, memory: &K::Memory| {
            newer.migrate(0, way, version, memory).map_err(|problem| (newer, problem))
        };
        if newer.memory_id == *id {
            ask(Way::Down, own.version, memory)
        } else {
            ask(Way::Down, own.version, &ask(Way::Up, id.version, memory)?)
        }
    }
}

impl<K: Kind> Inner<K> {
    /// The memory of `id` as one that `generation` can read; the default where that fails, or nobody knows how.
    #[cold]
    pub(super) fn adopt(
        &self,
        at: usize,
        serving: &Serving<K>,
        generation: &Arc<Generation<K>>,
        id: &MemoryId,
        memory: &K::Memory,
    ) -> Adopted<K> {
        let (asked, problem) = match serving.migrate(at, generation, id, memory) {
            Ok(memory) => return Adopted { memory, lost: None },
            Err(unmigrated) => unmigrated,
        };
        let lost = Lost::of::<K>(id.clone(), memory, &problem);
        if let Unmigrated::Failed(failure) = problem {
            let (failure, turn) = asked.blame(failure, None);
            if turn != Turn::None {
                self.turned(asked, turn);
            }
            self.report(asked, &failure);
        }
        Adopted { memory: K::Memory::default(), lost }
    }

    /// Whether `generation` must not begin anew in the place of what is lost. That of another plugin it may: an operator
    /// asked for this one.
    pub(super) fn must_read(generation: &Generation<K>, lost: &Lost) -> bool {
        !generation.forgets() && lost.from.plugin == generation.memory_id.plugin
    }

    /// Counts a step that `generation` was not asked for.
    #[cold]
    pub(super) fn cannot_read(&self, generation: &Generation<K>, lost: Lost) -> Failure {
        let is_counted = lost.is_counted;
        let failure = lost.into();
        if !is_counted {
            generation.was_not_asked();
            self.report(generation, &failure);
        }
        failure
    }

    pub(super) fn form(&self, form: u32) -> MemoryId {
        let forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        forms.get(form as usize).cloned().unwrap_or(MemoryId::BUILTIN)
    }

    /// Whether there was ever a memory in a form that is `such`.
    pub(super) fn has_form(&self, such: impl Fn(&MemoryId) -> bool) -> bool {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner).iter().any(such)
    }

    /// The number of the form of `id`.
    pub(super) fn form_of(&self, id: &MemoryId) -> u32 {
        let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        let at = forms.iter().position(|known| known == id).unwrap_or_else(|| {
            forms.push(id.clone());
            forms.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    #[cold]
    pub(super) fn memory_lost(&self, generation: &Generation<K>, lost: Lost) {
        self.counts.memories_lost.fetch_add(1, Ordering::Relaxed);
        // One event for each change of hands is news; each key's is not.
        if self.control().lost.insert((lost.from.clone(), generation.number)) {
            let (from, to) = (lost.from.to_string(), generation.memory_id.to_string());
            let change = Change::MemoryReset { from, to, reason: lost.reason };
            self.events.send(self.event(Some(generation), change));
        }
    }
}
