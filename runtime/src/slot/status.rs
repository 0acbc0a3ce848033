//! A slot as an operator sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, atomic::Ordering};

use serde::Serialize;
use serde_json::Value;

use super::Inner;
use crate::{
    digest::Digest, generation::Generation, health::State, kind::Kind, latency::Times, limits::Failure,
    load::Rejection, shadow::Divergence,
};

/// A slot as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The slot's name.
    pub slot: String,
    /// Its kind.
    pub kind: &'static str,
    /// The plugin that serves; none: the built-in.
    pub plugin: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The generation that serves; 0: the built-in.
    pub generation: u64,
    /// The component that serves.
    pub digest: Option<Digest>,
    /// How it is.
    pub status: Condition,
    /// The last candidate that was not taken; none as soon as one is, or what serves is what is wanted again.
    pub candidate: Option<Rejection>,
    /// Why what is wanted of the slot does not serve, where it is not on trial either; none where it does.
    pub refused: Option<String>,
    /// Whether that is because an operator took it back, and so what an operator wants all the same.
    pub by_hand: bool,
    /// Its configuration.
    pub settings: Value,
    /// Calls of plugins in this slot, all generations.
    pub calls: u64,
    /// Calls that plugins failed, all generations.
    pub failures: u64,
    /// Calls of the generation that serves.
    pub generation_calls: u64,
    /// Calls that the generation that serves failed.
    pub generation_failures: u64,
    /// Failures by cause.
    pub failures_by_cause: BTreeMap<&'static str, u64>,
    /// Calls answered by the built-in, or openly or closed, in place of a plugin.
    pub fallbacks: u64,
    /// Calls answered by another generation in place of the one that failed.
    pub rescues: u64,
    /// Memories that a generation could not read, and that began anew.
    pub memories_lost: u64,
    /// Keys whose memory is kept.
    pub memory_keys: usize,
    /// Idle instances of the generation that serves.
    pub instances: usize,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Every generation that is there, the one that serves first.
    pub generations: Vec<GenerationStatus>,
    /// What the candidate in the shadow has shown, without the differences.
    pub shadow: Option<Divergence>,
}

/// One generation as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationStatus {
    /// Its number.
    pub generation: u64,
    /// What it does.
    pub role: Role,
    /// The share of the keys that it answers, in percent.
    pub percent: u8,
    /// Its plugin.
    pub plugin: String,
    /// The plugin's version.
    pub version: String,
    /// Its bytes.
    pub digest: Digest,
    /// Its calls.
    pub calls: u64,
    /// Those it failed.
    pub failures: u64,
    /// How long its calls take.
    pub times: Times,
    /// Subjects that are not put to it for a while.
    pub subjects_aside: usize,
}

/// What a generation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It answers.
    Live,
    /// It answers a share of the keys.
    Canary,
    /// It answers beside the live one, unseen.
    Shadow,
    /// It answers what the live one fails, and serves again after a rollback.
    Previous,
}

/// How a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The built-in serves: no plugin is to, or none could be taken.
    Builtin,
    /// A plugin serves.
    Live,
    /// A plugin failed too often and is not asked for a while.
    Quarantined,
    /// A plugin's trial call after a quarantine is under way.
    Probing,
}

impl<K: Kind> Inner<K> {
    pub(super) fn status_now(&self) -> Status {
        let control = self.control();
        let held = self.live.load();
        let serving = held.now();
        let generation = serving.live.as_ref();
        let failures = self.counts.failures.each_ref().map(|count| count.load(Ordering::Relaxed));
        let by_cause = Failure::CAUSES.into_iter().zip(failures);
        let calls = self.shards.iter().map(|shard| shard.calls.load(Ordering::Relaxed));
        let canary = serving.canary.as_ref().map(|(canary, percent)| (canary, Role::Canary, *percent));
        let left = canary.map_or(100, |(_, _, percent)| 100 - percent);
        let everyone = [
            generation.map(|live| (live, Role::Live, left)),
            canary,
            serving.shadow.as_ref().map(|shadow| (&shadow.generation, Role::Shadow, 0)),
            serving.previous.as_ref().map(|previous| (previous, Role::Previous, 0)),
        ];
        Status {
            slot: self.name.to_string(),
            kind: K::NAME,
            plugin: generation.map(|generation| generation.plugin.name.to_string()),
            version: generation.map(|generation| generation.plugin.description.version.clone()),
            generation: serving.number(),
            digest: generation.map(|generation| generation.plugin.digest),
            status: match generation.map(|generation| generation.state()) {
                None => Condition::Builtin,
                Some(State::Healthy) => Condition::Live,
                Some(State::Quarantined { .. }) => Condition::Quarantined,
                Some(State::Probing { .. }) => Condition::Probing,
            },
            candidate: control.rejected.clone(),
            refused: control.in_vain.as_ref().or(control.refused.as_ref()).cloned(),
            by_hand: control.in_vain.is_none() && control.refused.is_some() && control.by_hand,
            settings: control.settings.clone(),
            calls: calls.sum::<u64>() + self.counts.steps.load(Ordering::Relaxed),
            failures: failures.iter().sum(),
            generation_calls: generation.map_or(0, |generation| generation.calls()),
            generation_failures: generation.map_or(0, |generation| generation.failures()),
            failures_by_cause: by_cause.filter(|(_, count)| *count > 0).collect(),
            fallbacks: self.counts.fallbacks.load(Ordering::Relaxed),
            rescues: self.counts.rescues.load(Ordering::Relaxed),
            memories_lost: self.counts.memories_lost.load(Ordering::Relaxed),
            memory_keys: self
                .shards
                .iter()
                // A shard in the middle of a call is left out rather than waited for.
                .filter_map(|shard| shard.kept.try_lock().ok())
                .map(|kept| kept.plugin.len() + kept.builtin.len())
                .sum(),
            instances: generation.map_or(0, |generation| generation.warmth()),
            last_error: control.last_error.clone(),
            generations: everyone.into_iter().flatten().map(one).collect(),
            shadow: serving.shadow.as_ref().map(|shadow| shadow.counts()),
        }
    }
}

fn one<K: Kind>((generation, role, percent): (&Arc<Generation<K>>, Role, u8)) -> GenerationStatus {
    GenerationStatus {
        generation: generation.number,
        role,
        percent,
        plugin: generation.plugin.name.to_string(),
        version: generation.plugin.description.version.clone(),
        digest: generation.plugin.digest,
        calls: generation.calls(),
        failures: generation.failures(),
        times: generation.times(),
        subjects_aside: generation.aside(),
    }
}
