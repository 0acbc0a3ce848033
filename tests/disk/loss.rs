//! Power losses, played on what was recorded of a [`super::disk::Disk`]: what of it can be there afterwards.
//!
//! A disk promises this much, and here no more: what was done to a file before its last sync is there; of what was done
//! since, any part, down to sectors. The names in a folder are durable with a sync of the folder, and of those that
//! were given, changed or taken since, any part that hangs together. A file that has no name after that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use super::chance::Dice;
use super::disk::{NodeId, Op, ROOT};

/// The smallest part of a write that is there or not.
const SECTOR: usize = 512;

/// How much of what was not synced survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    Nothing,
    /// The newest change of a name with what it builds on, and nothing else of what came before it.
    Last,
    All,
    /// What came first, the last of it in part.
    First,
    /// Each with an even chance.
    Some,
    /// Each sector of each with an even chance.
    Torn,
}

impl Survives {
    pub const EACH: [Self; 6] = [Self::Nothing, Self::Last, Self::All, Self::First, Self::Some, Self::Torn];
}

/// The disk at one point of its record: what is durable, and what may be.
pub struct Platter {
    nodes: BTreeMap<NodeId, Node>,
    /// Names that were changed and may not be durable, with the folder, in order.
    pending: Vec<(NodeId, Op)>,
}

enum Node {
    File { durable: Vec<u8>, pending: Vec<Op> },
    Folder(BTreeMap<OsString, NodeId>),
}

impl Platter {
    /// An empty disk.
    pub fn new() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Folder(BTreeMap::new()))]), pending: Vec::new() }
    }

    /// Lets the next thing happen.
    pub fn apply(&mut self, op: &Op, dice: &mut Dice) {
        match op {
            Op::Create { folder, node, is_folder, .. } => {
                let new = match is_folder {
                    true => Node::Folder(BTreeMap::new()),
                    false => Node::File { durable: Vec::new(), pending: Vec::new() },
                };
                self.nodes.insert(*node, new);
                self.pending.push((*folder, op.clone()));
            }
            Op::Link { folder, .. } | Op::Remove { folder, .. } | Op::Rename { folder, .. } => {
                self.pending.push((*folder, op.clone()));
            }
            Op::Write { node, .. } | Op::Resize { node, .. } => match self.node(*node) {
                Node::File { pending, .. } => pending.push(op.clone()),
                Node::Folder(_) => unreachable!("a folder has no bytes"),
            },
            Op::Sync { node } => self.sync(*node),
            // The kernel takes what it could not write for written: no later sync brings it to the disk.
            Op::SyncFailed { node } => {
                if let Node::File { durable, pending } = self.node(*node) {
                    let pending = std::mem::take(pending);
                    *durable = survivors(durable, &pending, Survives::Torn, dice);
                }
            }
        }
    }

    fn node(&mut self, node: NodeId) -> &mut Node {
        self.nodes.get_mut(&node).expect("made before it is used")
    }

    fn sync(&mut self, node: NodeId) {
        match self.nodes.get_mut(&node).expect("made before it is synced") {
            Node::File { durable, pending } => pending.drain(..).for_each(|op| write(durable, &op)),
            Node::Folder(durable) => {
                self.pending.retain(|(folder, op)| {
                    if *folder == node {
                        rename(durable, op);
                    }
                    *folder != node
                });
            }
        }
    }

    /// Writes into an empty folder what is there when the power comes back. With everything that was done, for
    /// [`Survives::All`].
    pub fn survivors(&self, survives: Survives, dice: &mut Dice, into: &Path) {
        // A file system may keep names better than bytes, and the other way round.
        let names = match survives {
            Survives::Nothing | Survives::Last | Survives::All => survives,
            _ => Survives::EACH[dice.pick(Survives::EACH.len())],
        };
        let mut folders: BTreeMap<NodeId, BTreeMap<OsString, NodeId>> = BTreeMap::new();
        for (id, node) in &self.nodes {
            if let Node::Folder(durable) = node {
                folders.insert(*id, durable.clone());
            }
        }
        let first = dice.pick(self.pending.len() + 1);
        let mut needed: BTreeSet<_> =
            self.pending.last().into_iter().flat_map(|(folder, op)| touched(*folder, op)).collect();
        let mut last = BTreeSet::new();
        for (at, (folder, op)) in self.pending.iter().enumerate().rev() {
            let touched = touched(*folder, op);
            if touched.iter().any(|name| needed.contains(name)) {
                needed.extend(touched);
                last.insert(at);
            }
        }
        let mut lost: BTreeSet<(NodeId, OsString)> = BTreeSet::new();
        for (at, (folder, op)) in self.pending.iter().enumerate() {
            let stays = match names {
                Survives::Nothing => false,
                Survives::Last => last.contains(&at),
                Survives::All => true,
                Survives::First => at < first,
                Survives::Some | Survives::Torn => dice.pick(2) == 0,
            };
            // What builds on something that is lost is lost with it.
            let touched = touched(*folder, op);
            if stays && !touched.iter().any(|name| lost.contains(name)) {
                rename(folders.get_mut(folder).expect("a folder"), op);
            } else {
                lost.extend(touched);
            }
        }
        self.put(ROOT, &folders, survives, dice, into);
    }

    fn put(
        &self,
        folder: NodeId,
        folders: &BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
        survives: Survives,
        dice: &mut Dice,
        into: &Path,
    ) {
        for (name, node) in &folders[&folder] {
            let path = into.join(name);
            match &self.nodes[node] {
                Node::Folder(_) => {
                    std::fs::create_dir(&path).unwrap();
                    self.put(*node, folders, survives, dice, &path);
                }
                // Written through memory that nobody syncs: it can hold anything.
                Node::File { .. } if name.to_string_lossy().ends_with("-shm") => {
                    let bytes: Vec<u8> =
                        (0..32_768 / 4).flat_map(|_| (dice.roll(1 << 31) as u32).to_be_bytes()).collect();
                    std::fs::write(path, bytes).unwrap();
                }
                Node::File { durable, pending } => {
                    std::fs::write(path, survivors(durable, pending, survives, dice)).unwrap();
                }
            }
        }
    }
}

/// The names that an operation gives or takes.
fn touched(folder: NodeId, op: &Op) -> Vec<(NodeId, OsString)> {
    let names = match op {
        Op::Create { name, .. } | Op::Link { name, .. } | Op::Remove { name, .. } => vec![name],
        Op::Rename { from, to, .. } => vec![from, to],
        _ => unreachable!("not a name"),
    };
    names.into_iter().map(|name| (folder, name.clone())).collect()
}

/// What is in a file of which not all was synced.
fn survivors(durable: &[u8], pending: &[Op], survives: Survives, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    let first = dice.pick(pending.len() + 1);
    for (at, op) in pending.iter().enumerate() {
        match survives {
            Survives::Nothing | Survives::Last => {}
            Survives::All => write(&mut bytes, op),
            Survives::First if at < first => write(&mut bytes, op),
            Survives::First if at == first => tear(&mut bytes, op, dice),
            Survives::First => {}
            Survives::Some if dice.pick(2) == 0 => write(&mut bytes, op),
            Survives::Some => {}
            Survives::Torn => tear(&mut bytes, op, dice),
        }
    }
    bytes
}

/// Writes some of the sectors.
fn tear(bytes: &mut Vec<u8>, op: &Op, dice: &mut Dice) {
    let Op::Write { node, place, bytes: all } = op else {
        if dice.pick(2) == 0 {
            write(bytes, op);
        }
        return;
    };
    let mut from = 0;
    while from < all.len() {
        // Sectors lie where they lie on the disk, wherever the write begins.
        let here = usize::try_from(*place).unwrap() + from;
        let to = (from + SECTOR - here % SECTOR).min(all.len());
        if dice.pick(2) == 0 {
            write(bytes, &Op::Write { node: *node, place: here as u64, bytes: all[from..to].to_vec() });
        }
        from = to;
    }
}

fn write(file: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { place, bytes, .. } => {
            let start = usize::try_from(*place).unwrap();
            let end = start + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(bytes);
        }
        Op::Resize { length, .. } => file.resize(usize::try_from(*length).unwrap(), 0),
        _ => unreachable!("not done to bytes"),
    }
}

fn rename(folder: &mut BTreeMap<OsString, NodeId>, op: &Op) {
    match op {
        Op::Create { name, node, .. } | Op::Link { name, node, .. } => _ = folder.insert(name.clone(), *node),
        Op::Remove { name, .. } => _ = folder.remove(name),
        Op::Rename { from, to, .. } => {
            if let Some(node) = folder.remove(from) {
                folder.insert(to.clone(), node);
            }
        }
        _ => unreachable!("not a name"),
    }
}
