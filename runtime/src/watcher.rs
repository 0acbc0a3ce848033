//! Turns what the file system tells into "look again"; nothing else.
//!
//! The folder is watched, not the file: a rename over a file loses a watch on it. And a watch may lose events, so the
//! folder is looked at now and then in any case.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecursiveMode, Watcher as _,
    event::{ModifyKind, RenameMode},
};

use crate::catalog;

/// Files under observation at most; beyond, everything is looked at.
const RESTLESS_MAX: usize = 10_000;

/// What reaches the control thread.
pub(crate) enum Wake {
    /// Renamed into place, so complete.
    Complete(PathBuf),
    /// Being written.
    Written(PathBuf),
    /// Something else changed: a file or folder is gone, or events were lost.
    Changed,
    /// End.
    Stop,
}

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Files known to be complete, by their full path.
    pub(crate) complete: Vec<PathBuf>,
    /// Files that were just written to and must be left alone.
    pub(crate) restless: Vec<PathBuf>,
    /// Read every file, even where it looks the same from outside.
    pub(crate) thorough: bool,
}

/// The file system watch of the plugin directory.
pub(crate) struct Watch {
    watcher: notify::RecommendedWatcher,
    dir: PathBuf,
    identity: Option<u64>,
}

impl Watch {
    pub(crate) fn start(dir: &Path, wakes: Sender<Wake>) -> notify::Result<Watch> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else {
                let _ = wakes.send(Wake::Changed);
                return;
            };
            for wake in wakes_of(event) {
                // Nobody listens any more: the host is stopping.
                let _ = wakes.send(wake);
            }
        })?;
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(Watch { watcher, dir: dir.to_owned(), identity: identity(dir) })
    }

    /// Watches anew when the directory itself was replaced by another.
    pub(crate) fn renew(&mut self) {
        let identity = identity(&self.dir);
        if identity != self.identity {
            self.identity = identity;
            // Either may fail while the directory is missing; the periodic look goes on, and the next one tries again.
            let _ = self.watcher.unwatch(&self.dir);
            if self.watcher.watch(&self.dir, RecursiveMode::Recursive).is_err() {
                self.identity = None;
            }
        }
    }
}

fn identity(dir: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(dir).ok().map(|metadata| metadata.ino())
    }
    #[cfg(not(unix))]
    {
        dir.exists().then_some(0)
    }
}

fn wakes_of(event: notify::Event) -> Vec<Wake> {
    if event.need_rescan() {
        return vec![Wake::Changed];
    }
    match event.kind {
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_)) => Vec::new(),
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => match event.paths.last() {
            Some(path) if catalog::is_watched_path(path) => {
                vec![Wake::Complete(path.clone())]
            }
            _ => vec![Wake::Changed],
        },
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => vec![Wake::Changed],
        _ => event
            .paths
            .into_iter()
            .map(|path| match catalog::is_watched_path(&path) {
                true => Wake::Written(path),
                false => Wake::Changed,
            })
            .collect(),
    }
}

/// Collects wakes into looks. Time is an argument.
pub(crate) struct Debounce {
    quiet: Duration,
    scan_interval: Duration,
    restless: HashMap<PathBuf, Instant>,
    complete: Vec<PathBuf>,
    due: bool,
    next_thorough: Instant,
    again: Option<Instant>,
}

impl Debounce {
    pub(crate) fn new(quiet: Duration, scan_interval: Duration, now: Instant) -> Debounce {
        Debounce {
            quiet,
            scan_interval,
            restless: HashMap::new(),
            complete: Vec::new(),
            due: false,
            next_thorough: now + scan_interval,
            again: None,
        }
    }

    /// Takes a wake in; false: the end.
    pub(crate) fn take(&mut self, wake: Wake, now: Instant) -> bool {
        match wake {
            Wake::Complete(path) => {
                self.restless.remove(&path);
                self.complete.push(path);
                self.due = true;
            }
            Wake::Written(path) => {
                self.complete.retain(|complete| *complete != path);
                self.restless.insert(path, now);
                if self.restless.len() > RESTLESS_MAX {
                    // The files' own time stamps still keep those that are being written out of it.
                    self.restless.clear();
                    self.due = true;
                }
            }
            Wake::Changed => self.due = true,
            Wake::Stop => return false,
        }
        true
    }

    /// Asks for another look in a while: the last one met a file that was too young.
    pub(crate) fn look_again(&mut self, now: Instant) {
        self.again = Some(now + self.quiet);
    }

    /// When there is something to look at, unless a wake comes first.
    pub(crate) fn next(&self) -> Instant {
        let quiet = self.restless.values().map(|written| *written + self.quiet);
        let next = quiet.chain(self.again).min();
        next.map_or(self.next_thorough, |next| next.min(self.next_thorough))
    }

    /// What to look at now, if anything.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Look> {
        let calm: Vec<PathBuf> = self
            .restless
            .iter()
            .filter(|(_, written)| **written + self.quiet <= now)
            .map(|(path, _)| path.clone())
            .collect();
        let thorough = self.next_thorough <= now;
        let again = self.again.is_some_and(|again| again <= now);
        if !(self.due || thorough || again || !calm.is_empty()) {
            return None;
        }
        for path in &calm {
            self.restless.remove(path);
        }
        if thorough {
            self.next_thorough = now + self.scan_interval;
        }
        if again {
            self.again = None;
        }
        self.due = false;
        let mut complete = std::mem::take(&mut self.complete);
        complete.extend(calm);
        Some(Look { complete, restless: self.restless.keys().cloned().collect(), thorough })
    }
}

/// Waits for wakes and calls `look` for each look that they come to, until `look` or a wake says stop. `look` returns
/// whether to go on, and whether a file was too young.
pub(crate) fn run(wakes: &Receiver<Wake>, mut debounce: Debounce, mut look: impl FnMut(Look) -> Option<bool>) {
    loop {
        let wait = debounce.next().saturating_duration_since(Instant::now());
        match wakes.recv_timeout(wait) {
            Ok(wake) => {
                // Whatever came together is one look.
                for wake in std::iter::once(wake).chain(wakes.try_iter()) {
                    if !debounce.take(wake, Instant::now()) {
                        return;
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Some(next) = debounce.look(Instant::now()) {
            match look(next) {
                Some(true) => debounce.look_again(Instant::now()),
                Some(false) => {}
                None => return,
            }
        }
    }
}
