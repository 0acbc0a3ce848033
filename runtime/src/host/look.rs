//! Looks at the plugin directory: brings the catalogue up to what it holds, and the slots up to the catalogue.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::{Control, Inner, Offer};
use crate::{
    catalog::{self, File},
    digest::Digest,
    event::{Change, Event},
    load::{self, Plugin, Rejection, Stage},
    signature::Beside,
    slot::{How, Receiver},
    store::Good,
    watcher::Look,
};

/// Why the plugin directory is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The host opens: what is there is taken, and what was there before its restart may stand in.
    First,
    /// An operator asked for it: what is there is meant to be taken.
    Asked,
    /// The watch, or time: files that may still be written to are left alone.
    Watch,
}

/// What a look came to.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) rejected: Vec<Rejection>,
    /// A file was too young to be taken; look again.
    pub(super) too_young: bool,
}

/// A slot and what it is to be offered.
struct Due {
    receiver: Arc<dyn Receiver>,
    plugin: Arc<Plugin>,
    offer: Offer,
}

impl Inner {
    /// Brings the catalogue up to what the directory holds, and the slots up to the catalogue.
    pub(super) fn look(&self, look: &Look, why: Why) -> Looked {
        let mut control = self.control();
        let mut looked = Looked::default();
        if self.stopped.load(Ordering::Acquire) {
            return looked;
        }
        match catalog::scan(&self.config.plugin_dir) {
            Ok(found) => self.take_files(&mut control, found, look, why, &mut looked),
            // A directory that is gone for a moment (a remount, a deployment) is no reason to stop serving.
            Err(error) => {
                let dir = self.config.plugin_dir.display();
                tracing::warn!(%dir, %error, "cannot read the plugin directory");
            }
        }
        control.opened |= why == Why::First;
        self.settle(&mut control, why, &mut looked);
        let duplicates = control.catalog.duplicates();
        for duplicate in duplicates.difference(&control.duplicates) {
            self.events.send(Event {
                slot: None,
                plugin: Some(duplicate.name.to_string()),
                generation: 0,
                digest: None,
                change: Change::Duplicate { serves: duplicate.serves.clone(), ignored: duplicate.ignored.clone() },
            });
        }
        control.duplicates = duplicates;
        if why == Why::First {
            control.store.forget_others();
            self.engine.forget_compiled(|digest| control.store.names(digest));
        }
        self.plugins.store(Arc::new(control.catalog.list()));
        looked
    }

    fn take_files(
        &self,
        control: &mut Control,
        found: BTreeMap<PathBuf, catalog::Stamps>,
        look: &Look,
        why: Why,
        looked: &mut Looked,
    ) {
        let now = SystemTime::now();
        let seen: BTreeSet<PathBuf> = found.keys().cloned().collect();
        for (path, stamps) in found {
            let full = self.config.plugin_dir.join(&path);
            let signature = catalog::signature_path(&full);
            let known = control.catalog.file(&path).map(|file| file.stamps);
            let either = |paths: &[PathBuf]| paths.contains(&full) || paths.contains(&signature);
            if either(&look.restless) || (known == Some(stamps) && !look.thorough && !either(&look.complete)) {
                continue;
            }
            let is_young = |path: &PathBuf, stamp: Option<catalog::Stamp>, known: Option<catalog::Stamp>| {
                let age = stamp.and_then(|stamp| stamp.age(now));
                stamp != known && !look.complete.contains(path) && age.is_some_and(|age| age < self.config.quiet)
            };
            let component_is_young = is_young(&full, Some(stamps.component), known.map(|known| known.component));
            let signature_is_young = is_young(&signature, stamps.signature, known.and_then(|known| known.signature));
            if why == Why::Watch && (component_is_young || signature_is_young) {
                looked.too_young = true;
                continue;
            }
            self.take_file(control, path, stamps, why, looked);
        }
        for (path, file) in control.catalog.retain(&seen) {
            control.store.file_gone(&path.to_string_lossy());
            self.events.send(Event {
                slot: None,
                plugin: file.good.map(|plugin| plugin.name.to_string()),
                generation: 0,
                digest: file.digest,
                change: Change::Removed { path },
            });
        }
    }

    fn take_file(&self, control: &mut Control, path: PathBuf, stamps: catalog::Stamps, why: Why, looked: &mut Looked) {
        let name = path.to_string_lossy().into_owned();
        let full = self.config.plugin_dir.join(&path);
        let (mut digest, mut beside) = (None, Beside::Nothing);
        let now = match load::read(&full, self.config.file_max_bytes) {
            Ok(bytes) => {
                let digest = *digest.insert(Digest::of(&bytes));
                // Only a file that the scan found to be one: opening a pipe would wait for its other end.
                if stamps.signature.is_some() {
                    beside = self.beside(&catalog::signature_path(&full));
                }
                let known = control.catalog.file(&path);
                if known.is_some_and(|file| file.digest == Some(digest) && file.beside == beside) {
                    control.catalog.touch(&path, stamps);
                    return;
                }
                let loaded = known.and_then(|file| file.good.clone()).filter(|plugin| plugin.digest == digest);
                let now = self.take_bytes(control, &bytes, digest, &beside, loaded);
                if now.is_ok() {
                    control.store.keep(&bytes, digest, beside.signature());
                    control.store.file_worked(&name, digest);
                }
                now
            }
            Err(rejection) => Err(rejection),
        };
        let (now, signed_by) = match now {
            Ok((plugin, signed_by)) => (Ok(plugin), signed_by),
            Err(rejection) => (Err(rejection.at(&path)), None),
        };
        if let Some(key) = &signed_by {
            tracing::info!(path = %path.display(), key, "signature accepted");
        }
        let known = control.catalog.file(&path);
        // Those that want what the file holds, or held last.
        let receivers = self.receivers();
        let concerned = |plugin: &Plugin| {
            let wants = |receiver: &&Arc<dyn Receiver>| {
                let wanted = &control.wanted[&**receiver.name()].plugin;
                receiver.kind() == plugin.kind && wanted.as_deref() == Some(&*plugin.name)
            };
            receivers.iter().filter(wants).collect::<Vec<_>>()
        };
        if let Ok(plugin) = &now
            && known.is_some_and(|file| file.now.is_err())
        {
            let serves = |receiver: &&&Arc<dyn Receiver>| receiver.live().is_some_and(|live| live.0 == plugin.digest);
            concerned(plugin).iter().filter(serves).for_each(|receiver| receiver.settled());
        }
        let good = match &now {
            Ok(plugin) => Some(Arc::clone(plugin)),
            Err(_) => known
                .and_then(|file| file.good.clone())
                .or_else(|| self.kept(control, control.store.last_good_of_file(&name)?))
                .filter(|_| known.is_some() || why == Why::First),
        };
        if let Err(rejection) = &now {
            // An unreadable file is the same news at every scan.
            let is_news = known.is_none_or(|file| file.now.as_ref().err() != Some(rejection));
            if is_news {
                let plugin = good.as_ref().map(|plugin| &plugin.name);
                let concerned = good.as_deref().map(concerned).unwrap_or_default();
                for receiver in &concerned {
                    // At first, what is good is taken after this, and then this is noted.
                    if why != Why::First {
                        receiver.reject(rejection.clone(), false);
                    }
                    self.rejected(Some(&***receiver), plugin, rejection);
                }
                if concerned.is_empty() {
                    self.rejected(None, plugin, rejection);
                }
                looked.rejected.push(rejection.clone());
            }
        }
        let file = File { digest, beside, stamps, signed_by, now, good };
        control.catalog.set(path, file);
    }

    /// The plugin that `bytes` are, and the id of the key that signed them; `loaded` when it is known already: the same
    /// bytes under another signature.
    fn take_bytes(
        &self,
        control: &Control,
        bytes: &[u8],
        digest: Digest,
        beside: &Beside,
        loaded: Option<Arc<Plugin>>,
    ) -> Result<(Arc<Plugin>, Option<String>), Rejection> {
        let signed_by = self.trust.check(bytes, beside);
        let signed_by = signed_by.map_err(|reason| Rejection::new(Stage::Signature, reason).of(digest))?;
        let load = || load::load(&self.engine, &control.kinds, bytes, &mut |_, _| {}).map(Arc::new);
        Ok((loaded.map_or_else(load, Ok)?, signed_by))
    }

    /// The signature in the file `path`, where signatures count.
    fn beside(&self, path: &Path) -> Beside {
        if self.trust.any() { load::read_signature(path) } else { Beside::Nothing }
    }

    /// A component from the host's own copy, verified again: which keys are trusted may have changed since.
    pub(super) fn kept(&self, control: &Control, digest: Digest) -> Option<Arc<Plugin>> {
        let bytes = control.store.bytes(digest)?;
        let beside = self.beside(&control.store.signature_path(digest));
        if let Err(reason) = self.trust.check(&bytes, &beside) {
            tracing::warn!(%digest, "what last worked does not serve: {reason}");
            return None;
        }
        let plugin = load::load(&self.engine, &control.kinds, &bytes, &mut |_, _| {}).ok()?;
        Some(Arc::new(plugin))
    }

    /// Offers each slot the plugin that it wants, unless that was done already.
    pub(super) fn settle(&self, control: &mut Control, why: Why, looked: &mut Looked) {
        let mut due = Vec::new();
        for receiver in self.receivers() {
            let name = &**receiver.name();
            let wanted = &control.wanted[name];
            let Some(plugin_name) = wanted.plugin.clone() else {
                continue;
            };
            let Some(plugin) = control.catalog.plugin(receiver.kind(), &plugin_name) else {
                receiver.retire("no file holds the plugin any more");
                receiver.lacks(&plugin_name, &control.catalog.refused_for(&plugin_name));
                control.of(name).offered = None;
                self.keep(control, &*receiver);
                continue;
            };
            let plugin = Arc::clone(plugin);
            let offer = (plugin.digest, wanted.settings_of(&plugin_name));
            if wanted.offered.as_ref() == Some(&offer) {
                continue;
            }
            if receiver.live().as_ref() == Some(&offer) {
                // Something else was offered, and is gone.
                receiver.settled();
                control.of(name).offered = Some(offer);
            } else {
                due.push(Due { receiver, plugin, offer });
            }
        }
        // Those that switch together.
        for set in &self.config.sets {
            let is_member = |due: &Due| set.iter().any(|name| **name == *due.plugin.name);
            if !due.iter().any(is_member) {
                continue;
            }
            // Others of the set may be on their way.
            let now = SystemTime::now();
            let young = |name: &String| control.catalog.age(name, now).is_some_and(|age| age < self.config.quiet);
            let (members, others): (Vec<_>, Vec<_>) = due.into_iter().partition(is_member);
            due = others;
            if why == Why::Watch && set.iter().any(young) {
                looked.too_young = true;
            } else {
                self.take_set(control, members, looked);
            }
        }
        for due in due {
            let is_first = why == Why::First;
            let resumed = is_first && due.receiver.is_gradual() && self.resume(control, &due);
            let how = How { at_once: is_first && !resumed, ..How::default() };
            control.of(due.receiver.name()).offered = Some(due.offer.clone());
            match Arc::clone(&due.receiver).prepare(&due.plugin, &due.offer.1, how).and_then(|taken| taken(None)) {
                Ok(()) => {
                    if is_first && let Some(rejection) = control.catalog.rejection(due.plugin.kind, &due.plugin.name) {
                        due.receiver.reject(rejection.clone(), false);
                    }
                    control.takes(&*due.receiver, &due.plugin, due.offer.1);
                    self.keep(control, &*due.receiver);
                }
                Err(rejection) => self.stand_by(control, &due, rejection, looked),
            }
        }
    }

    /// Takes all of a set at one instant, or nothing of it.
    fn take_set(&self, control: &mut Control, members: Vec<Due>, looked: &mut Looked) {
        let how = How { at_once: true, ..How::default() };
        let prepared: Vec<_> = members
            .iter()
            .map(|due| {
                control.of(due.receiver.name()).offered = Some(due.offer.clone());
                Arc::clone(&due.receiver).prepare(&due.plugin, &due.offer.1, how)
            })
            .collect();
        let failed = members.iter().zip(&prepared).find_map(|(due, taken)| taken.is_err().then_some(&due.plugin.name));
        if let Some(failed) = failed.map(ToString::to_string) {
            for (due, taken) in members.iter().zip(prepared) {
                let rejection = taken.err().unwrap_or_else(|| {
                    let reason = format!("it switches together with {failed}, which was not taken");
                    let rejection = Rejection::new(Stage::Set, reason).of(due.plugin.digest);
                    due.receiver.reject(rejection.clone(), false);
                    rejection
                });
                self.stand_by(control, due, rejection, looked);
            }
            return;
        }
        let flag = Arc::new(AtomicBool::new(false));
        for taken in prepared.into_iter().flatten() {
            // Every reason not to take it was looked for.
            let _ = taken(Some(&flag));
        }
        // The one instant: whoever asks any of the slots from now on asks the new ones.
        flag.store(true, Ordering::Release);
        for due in members {
            due.receiver.release();
            control.takes(&*due.receiver, &due.plugin, due.offer.1);
            self.keep(control, &*due.receiver);
        }
    }

    /// A candidate was not taken; where nothing serves yet, what did before the restart may still do.
    fn stand_by(&self, control: &mut Control, due: &Due, rejection: Rejection, looked: &mut Looked) {
        let Due { receiver, plugin, offer } = due;
        let by_hand = rejection.stage == Stage::Quarantine && receiver.is_taken_back(offer.0, &offer.1);
        self.rejected(Some(&**receiver), Some(&plugin.name), &rejection);
        looked.rejected.push(rejection.clone());
        let record = control.store.slot(receiver.name());
        for good in [record.good, record.before].into_iter().flatten() {
            if receiver.live().is_none() && self.offer_kept(control, due, &good) {
                // Whatever became of that, this is what has to be told.
                receiver.reject(rejection.clone(), by_hand);
            }
        }
        self.keep(control, &**receiver);
    }

    /// Lets what worked last before the restart serve, where something else is wanted now and has to prove itself first.
    fn resume(&self, control: &Control, due: &Due) -> bool {
        let record = control.store.slot(due.receiver.name());
        record.good.is_some_and(|good| self.offer_kept(control, due, &good)) && due.receiver.live().is_some()
    }

    /// Lets `good` serve at once, with the configuration that it had, if it is another than what is due and is taken; answers
    /// whether that was tried. A plugin whose file is gone is not: it was taken out.
    fn offer_kept(&self, control: &Control, due: &Due, good: &Good) -> bool {
        let Due { receiver, plugin, offer } = due;
        let settings = control.wanted[&**receiver.name()].settings_with(good);
        let is_there = good.plugin == *plugin.name || control.catalog.plugin(receiver.kind(), &good.plugin).is_some();
        if !is_there || (good.digest, &settings) == (offer.0, &offer.1) {
            return false;
        }
        let Some(plugin) = self.kept(control, good.digest) else {
            return false;
        };
        // Refused as well, it says nothing about what is wanted.
        let how = How { at_once: true, aside: true, ..How::default() };
        let _ = Arc::clone(receiver).prepare(&plugin, &settings, how).and_then(|taken| taken(None));
        true
    }
}
