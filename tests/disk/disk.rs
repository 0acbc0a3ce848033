//! A folder whose disk a test holds in its hands: everything that is done to it is recorded, in order, for a power loss
//! to be played at any point; and any call can be made to fail, once or from then on.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::calls;

/// A file or a folder, whatever its name is; 0 is the disk's own folder.
pub type NodeId = usize;

/// The disk's own folder.
pub const ROOT: NodeId = 0;

/// One thing that was done. Names are those within a folder.
#[derive(Clone, Debug)]
pub enum Op {
    /// A new file or folder.
    Create { folder: NodeId, name: OsString, node: NodeId, is_folder: bool },
    /// Another name for a file.
    Link { folder: NodeId, name: OsString, node: NodeId },
    /// A name is gone.
    Remove { folder: NodeId, name: OsString },
    /// A name changes, within one folder; what had the new one is gone.
    Rename { folder: NodeId, from: OsString, to: OsString },
    /// Bytes in a file.
    Write { node: NodeId, place: u64, bytes: Vec<u8> },
    /// A file's length.
    Resize { node: NodeId, length: u64 },
    /// What was done to a file, or to the names in a folder, is durable.
    Sync { node: NodeId },
    /// It should have been, and the disk said no.
    SyncFailed { node: NodeId },
}

/// What kind of call it is, for faults that concern only some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write,
    Resize,
    Sync,
    /// Something gets a name: it is made, linked or renamed.
    Name,
    Remove,
}

/// What becomes of a call.
pub enum Verdict {
    Pass,
    /// A write that writes half of its bytes, as where a disk fills up within it.
    Half,
    /// With this error number.
    Fail(i32),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One call fails with `EIO`, the next one passes.
    Once,
    /// Every call fails with `EIO`.
    Dead,
    /// There is no room: writes and new names fail with `ENOSPC`, half a write may pass before. What needs none passes.
    Full,
}

/// The folder, and what happens to it. Watched until dropped.
pub struct Disk {
    watched: Arc<Watched>,
    began: usize,
}

/// What [`calls`] knows of a disk.
pub struct Watched {
    root: PathBuf,
    state: Mutex<State>,
}

/// Where the disk stands.
pub struct State {
    root: PathBuf,
    log: Vec<Op>,
    /// What is in each folder now.
    folders: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    nodes: usize,
    /// Calls so far that could have been made to fail.
    calls: u64,
    fault: Option<(u64, Fault)>,
    /// How many calls were made to fail.
    failed: u64,
}

impl Disk {
    /// Watches an existing folder; what is in it counts as durable.
    pub fn watch(root: &Path) -> Self {
        let folders = BTreeMap::from([(ROOT, BTreeMap::new())]);
        let (log, calls, fault, failed) = Default::default();
        let mut state = State { root: root.to_owned(), log, folders, nodes: 1, calls, fault, failed };
        state.take_in(root);
        let watched = Arc::new(Watched { root: root.to_owned(), state: Mutex::new(state) });
        calls::watch(Arc::clone(&watched));
        let began = watched.state().log.len();
        Self { watched, began }
    }

    /// The place in [`Disk::log`] after what was there at first.
    pub fn began(&self) -> usize {
        self.began
    }

    /// How many things were done so far: the place of now in [`Disk::log`].
    pub fn now(&self) -> usize {
        self.watched.state().log.len()
    }

    /// All that was done.
    pub fn log(&self) -> Vec<Op> {
        self.watched.state().log.clone()
    }

    /// How many calls there were so far that can be made to fail.
    pub fn calls(&self) -> u64 {
        self.watched.state().calls
    }

    /// Lets call number `at`, counted from 0, go wrong; and what follows, if the fault is one that lasts.
    pub fn fail(&self, at: u64, fault: Fault) {
        self.watched.state().fault = Some((at, fault));
    }

    /// Ends a fault. Answers how many calls have failed so far.
    pub fn heal(&self) -> u64 {
        let mut state = self.watched.state();
        state.fault = None;
        state.failed
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        calls::leave(&self.watched);
    }
}

impl Watched {
    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it stands. Held while the call itself is made, so that the record has the order of the disk.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// Takes in what is in a folder that is watched from now on.
    fn take_in(&mut self, folder: &Path) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let is_folder = path.is_dir();
            let node = self.created(&path, is_folder);
            if is_folder {
                self.take_in(&path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                self.written(node, 0, &bytes);
            }
            self.synced(node);
        }
        let node = self.node(folder);
        self.synced(node);
    }

    /// What becomes of the next call.
    pub fn judge(&mut self, call: Call) -> Verdict {
        let at = self.calls;
        self.calls += 1;
        let Some((from, fault)) = self.fault.filter(|(from, _)| at >= *from) else { return Verdict::Pass };
        let takes_room = matches!(call, Call::Write | Call::Name);
        let verdict = match fault {
            Fault::Once if at > from => return Verdict::Pass,
            Fault::Once | Fault::Dead => Verdict::Fail(libc::EIO),
            Fault::Full if !takes_room => return Verdict::Pass,
            // Some room is left for half of the first write.
            Fault::Full if at == from && call == Call::Write => Verdict::Half,
            Fault::Full => Verdict::Fail(libc::ENOSPC),
        };
        self.failed += 1;
        verdict
    }

    /// The file or folder that has a name now.
    pub fn node(&self, path: &Path) -> NodeId {
        let within = path.strip_prefix(&self.root).expect("a path on this disk");
        within.iter().fold(ROOT, |folder, name| self.folders[&folder][name])
    }

    fn place(&self, path: &Path) -> (NodeId, OsString) {
        let folder = path.parent().expect("the disk's own folder stays as it is");
        (self.node(folder), path.file_name().map(OsStr::to_owned).expect("a name"))
    }

    pub fn created(&mut self, path: &Path, is_folder: bool) -> NodeId {
        let ((folder, name), node) = (self.place(path), self.nodes);
        self.nodes += 1;
        self.entries(folder).insert(name.clone(), node);
        if is_folder {
            self.folders.insert(node, BTreeMap::new());
        }
        self.log.push(Op::Create { folder, name, node, is_folder });
        node
    }

    pub fn linked(&mut self, old: &Path, new: &Path) {
        let (node, (folder, name)) = (self.node(old), self.place(new));
        self.entries(folder).insert(name.clone(), node);
        self.log.push(Op::Link { folder, name, node });
    }

    pub fn removed(&mut self, path: &Path) {
        let (folder, name) = self.place(path);
        self.entries(folder).remove(&name);
        self.log.push(Op::Remove { folder, name });
    }

    pub fn renamed(&mut self, old: &Path, new: &Path) {
        let ((folder, from), (other, to)) = (self.place(old), self.place(new));
        assert_eq!(folder, other, "nothing of the node moves a file to another folder");
        let node = self.entries(folder).remove(&from).expect("what was renamed is there");
        self.entries(folder).insert(to.clone(), node);
        self.log.push(Op::Rename { folder, from, to });
    }

    pub fn written(&mut self, node: NodeId, place: u64, bytes: &[u8]) {
        self.log.push(Op::Write { node, place, bytes: bytes.to_vec() });
    }

    pub fn resized(&mut self, node: NodeId, length: u64) {
        self.log.push(Op::Resize { node, length });
    }

    pub fn synced(&mut self, node: NodeId) {
        self.log.push(Op::Sync { node });
    }

    pub fn sync_failed(&mut self, node: NodeId) {
        self.log.push(Op::SyncFailed { node });
    }

    fn entries(&mut self, folder: NodeId) -> &mut BTreeMap<OsString, NodeId> {
        self.folders.get_mut(&folder).expect("a folder")
    }
}
