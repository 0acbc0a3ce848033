//! A candidate: what it has to show before it may serve, and what is noted where it does not.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Inner,
    control::{Made, now_ms},
    receiver::{How, Taken},
};
use crate::{
    digest::ConfigDigest,
    generation::{Generation, Place, Way},
    kind::Kind,
    load::{MemoryId, Plugin, Rejection, Stage},
    rollout::{Input, Phase, Rollout},
};

/// Memories on which a candidate must show that it can take over.
const MIGRATION_SAMPLE: usize = 64;

impl<K: Kind> Inner<K> {
    /// Checks `plugin` with `settings` in every way and makes its first instances.
    pub(super) fn offer(self: Arc<Self>, plugin: &Arc<Plugin>, settings: &Value, how: How) -> Result<Taken, Rejection> {
        let configuration = ConfigDigest::of(settings);
        let (number, quarantine, by_hand) = {
            let control = self.control();
            let bytes = control.machine.quarantine(plugin.digest).map(|reason| (reason, "bytes"));
            let config = control.machine.config_quarantine(plugin.digest, configuration);
            let quarantine = bytes.or(config.map(|reason| (reason, "configuration"))).filter(|_| !how.forced);
            let text = |(reason, what)| format!("{reason}; change its {what}, or promote it by force");
            let by_hand = quarantine.is_some() && control.machine.is_taken_back(plugin.digest, configuration);
            (control.machine.next_number(), quarantine.map(text), by_hand)
        };
        let warmth = self.live.load().now().live.as_ref().map_or(1, |live| live.warmth());
        let prepared = match quarantine {
            Some(reason) => Err(Rejection::new(Stage::Quarantine, reason).of(plugin.digest)),
            None => {
                let form = self.form_of(&plugin.memory_id());
                let place = Place { slot: &self.name, number, form, benches: self.shards.len() };
                Generation::prepare(&place, Arc::clone(plugin), Arc::clone(&self.engine), settings, &self.limits)
            }
        };
        let prepared = prepared.and_then(|generation: Generation<K>| {
            generation.warm(warmth)?;
            self.check_migration(&generation)?;
            Ok(generation)
        });
        let generation = match prepared {
            Ok(generation) => {
                if how.forgets {
                    generation.may_forget();
                }
                Arc::new(generation)
            }
            Err(rejection) => {
                self.note_rejection(&rejection, by_hand, how.aside);
                return Err(rejection);
            }
        };
        let settings = settings.clone();
        Ok(Box::new(move |flag| {
            let mut control = self.control();
            let (plugin, digest) = (generation.plugin.name.to_string(), generation.plugin.digest);
            // There is nothing to compare it with, and nothing to lose.
            let at_once = how.at_once || control.machine.picture().live.is_none();
            let mode = if at_once { Rollout::Immediate } else { self.rollout.clone() };
            let forced = how.forced || flag.is_some();
            control
                .made
                .insert(generation.number, Made { generation: Arc::clone(&generation), settings: settings.clone() });
            let input = Input::Probed { plugin, digest, settings: configuration, mode, forced };
            let steps = match control.machine.apply(input, now_ms()) {
                Ok(steps) => steps,
                Err(refused) => {
                    control.made.remove(&generation.number);
                    return Err(Rejection::new(Stage::Quarantine, refused).of(digest));
                }
            };
            control.rejected = None;
            control.refused = None;
            control.in_vain = None;
            control.last_error = None;
            self.show(&mut control, &steps, flag);
            drop(control);
            // Where it understands them, the limits that an operator set hold also while the plugin does not answer.
            if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
                let _ = self.builtin.configure(&settings);
            }
            Ok(())
        }))
    }

    /// Notes a candidate that is not taken; with `aside`, one that says nothing about whether what is wanted serves.
    pub(super) fn note_rejection(&self, rejection: &Rejection, by_hand: bool, aside: bool) {
        let mut control = self.control();
        if let Some(digest) = rejection.digest
            && rejection.stage != Stage::Quarantine
        {
            let after = match rejection.stage {
                Stage::Compile => Phase::Checked,
                Stage::Settings | Stage::Configure | Stage::Probe | Stage::Migrate => Phase::Compiled,
                _ => Phase::Candidate,
            };
            control.machine.rejected("", digest, after, rejection.to_string(), now_ms());
            control.changed = true;
        }
        control.last_error = Some(rejection.to_string());
        if !aside {
            control.refused = Some(rejection.to_string());
            control.by_hand = by_hand;
        }
        control.rejected = Some(rejection.clone());
    }

    /// Whether the candidate can take over what there is, shown on a sample.
    fn check_migration(&self, candidate: &Generation<K>) -> Result<(), Rejection> {
        if !candidate.can_migrate() {
            return Ok(());
        }
        let own = &candidate.memory_id;
        let is_older = |id: &MemoryId| id.plugin == own.plugin && id.version < own.version;
        // Where no memory can be of an older version there is nothing to show, and no call has to wait for the look.
        if !self.has_form(is_older) {
            return Ok(());
        }
        let mut sample = Vec::new();
        for shard in &self.shards {
            // Waits for a call under way, a deadline at most: what is skipped under load is missed when it matters.
            sample.extend(shard.lock().plugin.some(MIGRATION_SAMPLE - sample.len()).cloned());
        }
        for kept in sample {
            let id = self.form(kept.form);
            if is_older(&id) {
                candidate.migrate(0, Way::Up, id.version, &kept.memory).map_err(|problem| {
                    Rejection::new(Stage::Migrate, format!("a live memory of {id}: {problem}"))
                        .of(candidate.plugin.digest)
                })?;
            }
        }
        Ok(())
    }
}
