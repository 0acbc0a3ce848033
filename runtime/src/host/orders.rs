//! What an operator may ask of a slot: another plugin, another configuration, a step forward or back.

use std::sync::Arc;

use serde_json::Value;

use super::look::Why;
use super::{Control, ControlError, Host, Inner};
use crate::{
    journal::JournalConfig,
    rollout::{BY_HAND, Refused, Transition},
    shadow::Divergence,
    slot::{How, JournalStatus, Receiver, Status},
    store::Good,
    watcher::Look,
};

impl Host {
    /// Reads the plugin directory anew and makes a new generation of the slot's plugin, even from the same bytes.
    pub fn reload(&self, slot: &str) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let offered = inner.change(slot)?.0.wanted[slot].offered.clone();
        let looked = inner.look(&Look { thorough: true, ..Look::default() }, Why::Asked);
        let (mut control, receiver) = inner.change(slot)?;
        if control.wanted[slot].offered != offered {
            // What there is now has just been offered.
            let digest = control.wanted[slot].offered.as_ref().map(|offer| offer.0);
            let rejection = looked.rejected.into_iter().find(|rejection| rejection.digest == digest);
            return rejection.map_or_else(|| Ok(receiver.status()), |rejection| Err(ControlError::Rejected(rejection)));
        }
        let wanted = &control.wanted[slot];
        let Some(name) = wanted.plugin.clone() else {
            return Err(ControlError::Builtin { slot: slot.into() });
        };
        let settings = wanted.settings_of(&name);
        // The same component with the same settings has nothing to prove.
        let same = control.catalog.plugin(receiver.kind(), &name).map(|plugin| (plugin.digest, settings.clone()));
        let how = How { at_once: receiver.live() == same, ..How::default() };
        inner.put(&mut control, &receiver, &name, settings, how)?;
        Ok(receiver.status())
    }

    /// Lets the candidate on trial serve now. With `force`, a component that is quarantined is taken all the same, at
    /// once, and one that cannot read the memory there is begins anew.
    ///
    /// Errors: nothing is on trial, and nothing is forced.
    pub fn promote(&self, slot: &str, force: bool) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        match receiver.promote(force) {
            Err(Refused::NoTrial) if force => {
                let Some(name) = control.wanted[slot].plugin.clone() else {
                    return Err(ControlError::Builtin { slot: slot.into() });
                };
                let settings = control.wanted[slot].settings_of(&name);
                let how = How { at_once: true, forced: true, forgets: true, aside: false };
                inner.put(&mut control, &receiver, &name, settings, how)?;
            }
            done => done.map_err(|refused| not_now(slot, &refused))?,
        }
        inner.keep(&mut control, &*receiver);
        Ok(receiver.status())
    }

    /// Takes the last step back: a candidate on trial is called off, else the generation before the live one serves
    /// again. Its bytes are then quarantined, or its configuration with them where the same bytes serve on. After a restart,
    /// what served well before it is loaded from the host's own copy.
    ///
    /// Errors: there is nothing to go back to.
    pub fn roll_back(&self, slot: &str) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        let reason = BY_HAND;
        if let Err(refused) = receiver.roll_back(reason) {
            let record = control.store.slot(slot);
            let live = receiver.live();
            let with_settings = |good: Good| {
                let settings = control.wanted[slot].settings_with(&good);
                (good.digest, settings)
            };
            let mut kept = [record.good, record.before].into_iter().flatten().map(with_settings);
            let earlier = kept.find(|pair| live.as_ref() != Some(pair) && !receiver.is_quarantined(pair.0, &pair.1));
            let (digest, settings) = earlier.ok_or_else(|| not_now(slot, &refused))?;
            let plugin = inner.kept(&control, digest).ok_or_else(|| not_now(slot, &refused))?;
            let how = How { at_once: true, forced: true, forgets: false, aside: true };
            let taken = Arc::clone(&receiver).prepare(&plugin, &settings, how).and_then(|taken| taken(None));
            taken.map_err(ControlError::Rejected)?;
            receiver.condemn_previous(reason);
        }
        inner.keep(&mut control, &*receiver);
        Ok(receiver.status())
    }

    /// What became of the slot's generations, oldest first; at most 256 steps, also those before the last restart.
    pub fn history(&self, slot: &str) -> Result<Vec<Transition>, ControlError> {
        Ok(self.0.change(slot)?.1.history())
    }

    /// What the candidate in the slot's shadow answered otherwise so far, or what the last one came to.
    pub fn shadow(&self, slot: &str) -> Result<Option<Divergence>, ControlError> {
        Ok(self.0.change(slot)?.1.divergence())
    }

    /// How the recording of the slot's calls goes; all that was recorded until now is written when this returns. None:
    /// nothing has been since the host started.
    pub fn journal(&self, slot: &str) -> Result<Option<JournalStatus>, ControlError> {
        let receiver = self.0.change(slot)?.1;
        Ok(receiver.journal())
    }

    /// Records the slot's calls from now on, as `config` says; none: as they were last, or by default. Calls go on meanwhile.
    /// A restart goes by [`PluginConfig::journal`](crate::PluginConfig::journal) again.
    ///
    /// Errors: the configuration is out of range, or the journal's folder cannot be written.
    pub fn record(&self, slot: &str, config: Option<JournalConfig>) -> Result<Option<JournalStatus>, ControlError> {
        let (_control, receiver) = self.0.change(slot)?;
        let refused =
            |error: anyhow::Error| ControlError::Journal { slot: slot.to_owned(), reason: format!("{error:#}") };
        receiver.record(&self.0.journal_dir(), config).map_err(refused)?;
        Ok(receiver.journal())
    }

    /// Records the slot's calls no more; all that were are written when this returns, and their segment is closed.
    pub fn stop_recording(&self, slot: &str) -> Result<Option<JournalStatus>, ControlError> {
        let (_control, receiver) = self.0.change(slot)?;
        receiver.stop_recording();
        Ok(receiver.journal())
    }

    /// Lets another plugin serve, with the settings that it last had in this slot (`{}` at first); none: the built-in.
    pub fn use_plugin(&self, slot: &str, plugin: Option<&str>) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        match plugin {
            Some(name) => {
                let settings = control.wanted[slot].settings_of(name);
                inner.put(&mut control, &receiver, name, settings, How::default())?;
            }
            None => {
                receiver.retire("asked to");
                receiver.settled();
                control.of(slot).plugin = None;
                inner.keep(&mut control, &*receiver);
            }
        }
        Ok(receiver.status())
    }

    /// Notes that the operator wants something else of the slot from now on than what this host tries to have, and why it
    /// was not taken: [`Status::refused`] until something is taken. None: there is no such wish any more.
    pub fn wanted_in_vain(&self, slot: &str, reason: Option<String>) -> Result<(), ControlError> {
        self.0.change(slot)?.1.in_vain(reason);
        Ok(())
    }

    /// Gives the slot's plugin new settings: a new generation of the same component. Where the built-in serves, they are
    /// the built-in's.
    pub fn configure(&self, slot: &str, settings: Value) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        let Some(name) = control.wanted[slot].plugin.clone() else {
            let failed = |reason| ControlError::BuiltinConfig { slot: slot.into(), reason };
            receiver.configure_builtin(&settings).map_err(failed)?;
            return Ok(receiver.status());
        };
        inner.put(&mut control, &receiver, &name, settings, How::default())?;
        Ok(receiver.status())
    }
}

impl Inner {
    /// Takes `name` with `settings`, and only then remembers both: they switch together or not at all. Refused, what was
    /// wanted before is still what is wanted, and whether that serves is no other than it was.
    pub(super) fn put(
        &self,
        control: &mut Control,
        receiver: &Arc<dyn Receiver>,
        name: &str,
        settings: Value,
        how: How,
    ) -> Result<(), ControlError> {
        let Some(plugin) = control.catalog.plugin(receiver.kind(), name) else {
            let known = control.catalog.names(receiver.kind());
            return Err(ControlError::UnknownPlugin {
                plugin: name.to_owned(),
                kind: receiver.kind(),
                known: known.into_iter().collect(),
            });
        };
        let plugin = Arc::clone(plugin);
        let wanted = &control.wanted[&**receiver.name()];
        let asked = Some((plugin.digest, settings.clone()));
        let is_wanted = wanted.plugin.as_deref() == Some(name) && wanted.offered == asked;
        let how = How { aside: !is_wanted || receiver.live() == asked, ..how };
        let taken = Arc::clone(receiver).prepare(&plugin, &settings, how).and_then(|taken| taken(None));
        if let Err(rejection) = taken {
            self.rejected(Some(&**receiver), Some(&plugin.name), &rejection);
            return Err(ControlError::Rejected(rejection));
        }
        control.takes(&**receiver, &plugin, settings);
        Ok(())
    }
}

fn not_now(slot: &str, refused: &Refused) -> ControlError {
    ControlError::NotNow { slot: slot.to_owned(), reason: refused.to_string() }
}
