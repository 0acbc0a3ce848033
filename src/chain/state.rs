//! All accounts, and the root that commits to them: a SHA-256 hexary trie, kept in memory. The same accounts give the
//! same root, whatever way led to them. Source of the encodings: `aitbc-wire.md` 2.4.
//!
//! Keys are the addresses' text, a nibble a step (88 of them, from `ait1`), so a branch has two children (digits or
//! letters) or up to ten. Changed paths lose their hashes, and [`State::root`] computes just those again.

use super::{Account, Address, Change, Hash, format};

mod sorted;
mod walk;

pub use sorted::{OutOfOrder, SortedRoot};
pub use walk::{Difference, Differences, Path, PathError, StateNode, differences};

/// Nibbles of a key.
const PATH_LEN: u8 = 2 * Address::TEXT_LEN as u8;

/// A node's place in the arena; [`NONE`] is no node.
type Id = u32;
const NONE: Id = Id::MAX;

/// The accounts of a chain after one block.
#[derive(Clone)]
pub struct State {
    nodes: Vec<Node>,
    free: Vec<Id>,
    root: Id,
    accounts: usize,
}

#[derive(Clone)]
struct Node {
    form: Form,
    /// The hash of the encoding; none since something below changed.
    hash: Option<Hash>,
}

#[derive(Clone)]
enum Form {
    /// One account; its path is the rest of its key from `depth` on.
    Leaf { depth: u8, address: Address, account: Account },
    /// A stretch of path, `first..last` of `key`'s, that all below share.
    Extension { first: u8, last: u8, key: Address, child: Id },
    /// A fork at one nibble. Keys have equal lengths, so none ends here.
    Branch { children: Box<[Id; 16]> },
}

impl Default for State {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, accounts: 0 }
    }
}

/// Nibble `at` of the address's text.
fn nibble(address: &Address, at: u8) -> u8 {
    let index = usize::from(at / 2);
    let character = if index < 4 {
        b"ait1"[index]
    } else {
        let byte = address.0[(index - 4) / 2];
        let digit = if index.is_multiple_of(2) { byte >> 4 } else { byte & 0x0f };
        b"0123456789abcdef"[usize::from(digit)]
    };
    if at.is_multiple_of(2) { character >> 4 } else { character & 0x0f }
}

/// The first place from `from` on where the two keys differ.
fn fork(a: &Address, b: &Address, from: u8) -> u8 {
    (from..PATH_LEN).find(|&at| nibble(a, at) != nibble(b, at)).unwrap_or(PATH_LEN)
}

impl State {
    /// What `address` has; none if nothing was ever sent to it.
    pub fn account(&self, address: &Address) -> Option<Account> {
        let (mut id, mut depth) = (self.root, 0);
        loop {
            match &self.nodes.get(id as usize)?.form {
                Form::Leaf { address: found, account, .. } => return (found == address).then_some(*account),
                Form::Extension { first, last, key, child } => {
                    if fork(key, address, *first) < *last {
                        return None;
                    }
                    (id, depth) = (*child, *last);
                }
                Form::Branch { children } => {
                    id = children[usize::from(nibble(address, depth))];
                    depth += 1;
                }
            }
        }
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.accounts
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.accounts == 0
    }

    /// Every account, by address.
    pub fn accounts(&self) -> impl Iterator<Item = (Address, Account)> + '_ {
        let mut stack = vec![self.root];
        std::iter::from_fn(move || {
            loop {
                match &self.nodes.get(stack.pop()? as usize)?.form {
                    Form::Leaf { address, account, .. } => return Some((*address, *account)),
                    Form::Extension { child, .. } => stack.push(*child),
                    Form::Branch { children } => stack.extend(children.iter().rev().filter(|&&child| child != NONE)),
                }
            }
        })
    }

    /// Sets an account.
    pub fn set(&mut self, address: Address, account: Account) {
        self.root = self.insert(self.root, 0, address, account);
    }

    /// Forgets an account.
    pub fn remove(&mut self, address: &Address) {
        if self.account(address).is_some() {
            self.root = self.take(self.root, 0, address);
            self.accounts -= 1;
        }
    }

    /// Lets a block's changes happen.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            self.set(change.address, change.after);
        }
    }

    /// Takes a block's changes back.
    pub fn revert(&mut self, changes: &[Change]) {
        for change in changes {
            match change.before {
                Some(account) => self.set(change.address, account),
                None => self.remove(&change.address),
            }
        }
    }

    /// The hash that commits to all accounts; zeros when there is none. Costs what changed since the last call.
    pub fn root(&mut self) -> Hash {
        let mut buffer = Vec::with_capacity(16 * 33 + 2);
        self.hash(self.root, &mut buffer)
    }

    fn add(&mut self, form: Form) -> Id {
        let node = Node { form, hash: None };
        if let Some(id) = self.free.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        let id = Id::try_from(self.nodes.len()).ok().filter(|&id| id != NONE).expect("below 2^32 nodes fit memory");
        self.nodes.push(node);
        id
    }

    /// Puts an account below node `id`, which stands at `depth`; answers the node that stands there now.
    fn insert(&mut self, id: Id, depth: u8, address: Address, account: Account) -> Id {
        if id == NONE {
            self.accounts += 1;
            return self.add(Form::Leaf { depth, address, account });
        }
        let node = &mut self.nodes[id as usize];
        node.hash = None;
        match &mut node.form {
            Form::Leaf { address: old, account: held, .. } => {
                if *old == address {
                    *held = account;
                    return id;
                }
                let old = *old;
                let at = fork(&old, &address, depth);
                let Form::Leaf { depth: start, .. } = &mut node.form else { unreachable!("just seen") };
                *start = at + 1;
                self.split(id, old, at, depth, address, account)
            }
            Form::Extension { first, last, key, child } => {
                let at = fork(key, &address, *first);
                if at >= *last {
                    let (last, child) = (*last, *child);
                    let new = self.insert(child, last, address, account);
                    if let Form::Extension { child, .. } = &mut self.nodes[id as usize].form {
                        *child = new;
                    }
                    return id;
                }
                let (old, child, last) = (*key, *child, *last);
                // What is left of the stretch after the fork: nothing, then the child stands there itself.
                let rest = if at + 1 == last {
                    self.free.push(id);
                    child
                } else {
                    *first = at + 1;
                    id
                };
                self.split(rest, old, at, depth, address, account)
            }
            Form::Branch { children } => {
                let slot = usize::from(nibble(&address, depth));
                let child = children[slot];
                let new = self.insert(child, depth + 1, address, account);
                if let Form::Branch { children } = &mut self.nodes[id as usize].form {
                    children[slot] = new;
                }
                id
            }
        }
    }

    /// A branch at `at` over `below` (whose keys go `old`'s way) and a new leaf, with a stretch from `depth` before it.
    fn split(&mut self, below: Id, old: Address, at: u8, depth: u8, address: Address, account: Account) -> Id {
        self.accounts += 1;
        let leaf = self.add(Form::Leaf { depth: at + 1, address, account });
        let mut children = Box::new([NONE; 16]);
        children[usize::from(nibble(&old, at))] = below;
        children[usize::from(nibble(&address, at))] = leaf;
        let branch = self.add(Form::Branch { children });
        if at == depth { branch } else { self.add(Form::Extension { first: depth, last: at, key: old, child: branch }) }
    }

    /// Takes `address`, which is there, from below node `id` at `depth`; answers the node that stands there now.
    fn take(&mut self, id: Id, depth: u8, address: &Address) -> Id {
        self.nodes[id as usize].hash = None;
        match &self.nodes[id as usize].form {
            Form::Leaf { .. } => {
                self.free.push(id);
                NONE
            }
            Form::Extension { last, child, .. } => {
                let (last, child) = (*last, *child);
                let new = self.take(child, last, address);
                self.free.push(id);
                self.prefixed(depth, last, new)
            }
            Form::Branch { children } => {
                let slot = usize::from(nibble(address, depth));
                let child = children[slot];
                let new = self.take(child, depth + 1, address);
                let Form::Branch { children } = &mut self.nodes[id as usize].form else { unreachable!("just seen") };
                children[slot] = new;
                let mut left = children.iter().copied().filter(|&child| child != NONE);
                let (only, more) = (left.next().expect("a branch has two children or more"), left.next().is_some());
                if more {
                    return id;
                }
                self.free.push(id);
                self.prefixed(depth, depth + 1, only)
            }
        }
    }

    /// Node `id`, which stood at `last`, with the stretch from `first` before it: no extension leads to a leaf or to
    /// another extension.
    fn prefixed(&mut self, first: u8, last: u8, id: Id) -> Id {
        let key = self.some_key(id);
        let node = &mut self.nodes[id as usize];
        match &mut node.form {
            Form::Leaf { depth, .. } => *depth = first,
            Form::Extension { first: start, .. } => *start = first,
            Form::Branch { .. } => return self.add(Form::Extension { first, last, key, child: id }),
        }
        node.hash = None;
        id
    }

    /// The key of any account below `id`.
    fn some_key(&self, mut id: Id) -> Address {
        loop {
            match &self.nodes[id as usize].form {
                Form::Leaf { address, .. } => return *address,
                Form::Extension { key, .. } => return *key,
                Form::Branch { children } => {
                    id = *children.iter().find(|&&child| child != NONE).expect("a branch has children");
                }
            }
        }
    }

    fn hash(&mut self, id: Id, buffer: &mut Vec<u8>) -> Hash {
        let Some(node) = self.nodes.get(id as usize) else { return Hash::ZERO };
        if let Some(hash) = node.hash {
            return hash;
        }
        // The children first: they use the same buffer.
        match &node.form {
            Form::Leaf { .. } => {}
            Form::Extension { child, .. } => _ = self.hash(*child, buffer),
            Form::Branch { children } => {
                for child in **children {
                    if child != NONE {
                        self.hash(child, buffer);
                    }
                }
            }
        }
        buffer.clear();
        self.encode(id, buffer);
        let hash = Hash::of(&[buffer]);
        self.nodes[id as usize].hash = Some(hash);
        hash
    }

    /// The node's bytes; its children have their hashes.
    fn encode(&self, id: Id, buffer: &mut Vec<u8>) {
        match &self.nodes[id as usize].form {
            Form::Leaf { depth, address, account } => {
                encode_leaf(buffer, (*depth..PATH_LEN).map(|at| nibble(address, at)), account);
            }
            Form::Extension { first, last, key, child } => {
                encode_extension(buffer, (*first..*last).map(|at| nibble(key, at)), &self.known_hash(*child));
            }
            Form::Branch { children } => {
                encode_branch(buffer, |slot| {
                    Some(children[slot]).filter(|&id| id != NONE).map(|id| self.known_hash(id))
                });
            }
        }
    }

    fn known_hash(&self, id: Id) -> Hash {
        self.nodes[id as usize].hash.expect("children are hashed before their parent")
    }
}

/// The bytes of a leaf whose path, from its place to the end of the key, is `path`.
fn encode_leaf(buffer: &mut Vec<u8>, path: impl ExactSizeIterator<Item = u8>, account: &Account) {
    buffer.push(b'L');
    push_path(buffer, path);
    let value = format::account_value(account);
    buffer.extend_from_slice(&(value.len() as u64).to_be_bytes());
    buffer.extend_from_slice(value.as_bytes());
}

fn encode_extension(buffer: &mut Vec<u8>, path: impl ExactSizeIterator<Item = u8>, child: &Hash) {
    buffer.push(b'E');
    push_path(buffer, path);
    buffer.extend_from_slice(&child.0);
}

fn encode_branch(buffer: &mut Vec<u8>, child: impl Fn(usize) -> Option<Hash>) {
    buffer.push(b'B');
    for slot in 0..16 {
        match child(slot) {
            None => buffer.push(0),
            Some(hash) => {
                buffer.push(1);
                buffer.extend_from_slice(&hash.0);
            }
        }
    }
    buffer.push(0);
}

fn push_path(buffer: &mut Vec<u8>, path: impl ExactSizeIterator<Item = u8>) {
    buffer.extend_from_slice(&u32::try_from(path.len()).expect("88 nibbles at most").to_be_bytes());
    buffer.extend(path);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn root(accounts: &[(Address, Account)]) -> String {
        let mut state = State::default();
        for (address, account) in accounts {
            state.set(*address, *account);
        }
        state.root().to_string()
    }

    #[test]
    fn roots_are_those_of_the_old_system() {
        let (a, b, c) = (Address([0x11; 20]), Address([0x12; 20]), Address([0xff; 20]));
        let account = |balance, nonce| Account { balance, nonce };
        assert_eq!(root(&[]), format!("0x{}", "0".repeat(64)));
        assert_eq!(
            root(&[(a, account(3_600_000_000_000, 0))]),
            "0x63ba493c3bb40fda1174e7cba6fba2092067b2998651fe817231d8dfae80a949"
        );
        let two = [(a, account(1000, 1)), (b, account(5, 0))];
        assert_eq!(root(&two), "0x42bced0a88e494803b1bcc43b5f133092df1c5d17a5fb24af09b0cb5a658bd94");
        let three = [(c, account(0, 7)), two[1], two[0]];
        assert_eq!(root(&three), "0xaf65d2791991b92fd0089d2e097e48c81eb216ab44311e9404533e69d9062621");
    }

    /// Few distinct bytes, so that keys share long stretches.
    pub(super) fn any_address() -> impl Strategy<Value = Address> {
        (prop::collection::vec(prop_oneof![Just(0_u8), Just(0x0a), Just(0xa0), Just(0x11)], 3), any::<bool>()).prop_map(
            |(bytes, late)| {
                let mut address = [0x77; 20];
                let at = if late { 17 } else { 0 };
                address[at..at + 3].copy_from_slice(&bytes);
                Address(address)
            },
        )
    }

    proptest! {
        #[test]
        fn the_root_depends_on_the_accounts_alone(
            steps in prop::collection::vec((any_address(), prop::option::weighted(0.6, (0_u64..4, 0_u64..4))), 0..60),
        ) {
            let mut state = State::default();
            let mut model = BTreeMap::new();
            for (address, account) in steps {
                match account.map(|(balance, nonce)| Account { balance, nonce }) {
                    Some(account) => {
                        state.set(address, account);
                        model.insert(address, account);
                    }
                    None => {
                        state.remove(&address);
                        model.remove(&address);
                    }
                }
                let mut fresh = State::default();
                for (address, account) in model.iter().rev() {
                    fresh.set(*address, *account);
                }
                prop_assert_eq!(state.root(), fresh.root());
                prop_assert_eq!(state.len(), model.len());
                prop_assert_eq!(state.account(&address), model.get(&address).copied());
                prop_assert!(state.accounts().eq(model.iter().map(|(address, account)| (*address, *account))));
            }
        }

        #[test]
        fn changes_taken_back_leave_nothing(
            first in prop::collection::btree_map(any_address(), 0_u64..9, 0..20),
            then in prop::collection::btree_map(any_address(), 10_u64..99, 0..20),
        ) {
            let mut state = State::default();
            for (address, balance) in first {
                state.set(address, Account { balance, nonce: 0 });
            }
            let root = state.root();
            let changes: Vec<Change> = then
                .into_iter()
                .map(|(address, balance)| {
                    Change { address, before: state.account(&address), after: Account { balance, nonce: 1 } }
                })
                .collect();
            state.apply(&changes);
            prop_assert_eq!(state.root() == root, changes.is_empty());
            state.revert(&changes);
            prop_assert_eq!(state.root(), root);
        }
    }
}
