//! The trie built in one pass from accounts that come by address: from below, each node once, with its hash. A tenth of
//! the work of setting one account after the other, and with [`SortedRoot`] in constant memory.

use super::{Form, Id, NONE, Node, PATH_LEN, State, encode_branch, encode_extension, encode_leaf, nibble};
use crate::chain::{Account, Address, Hash};

/// Why accounts do not make a state: they must come by address, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("account {got} comes after {after}")]
pub struct OutOfOrder {
    /// The account that came.
    pub got: Address,
    /// The one before it.
    pub after: Address,
}

/// The root of accounts that are shown one after the other; nothing of them is kept but the path to the last.
#[derive(Default)]
pub struct SortedRoot {
    builder: Builder<Hash>,
    hashes: Hashes,
}

impl SortedRoot {
    /// Takes the next account. Errors: its address is not above the last one's; then the root means nothing.
    pub fn push(&mut self, address: Address, account: Account) -> Result<(), OutOfOrder> {
        self.builder.push(address, account, &mut self.hashes)
    }

    /// How many accounts there were.
    pub fn len(&self) -> u64 {
        self.builder.accounts
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.builder.accounts == 0
    }

    /// What [`State::root`] says of the same accounts.
    pub fn finish(mut self) -> Hash {
        self.builder.finish(&mut self.hashes).unwrap_or(Hash::ZERO)
    }
}

impl State {
    /// The state of accounts that come by address, with its root computed. Errors: they do not.
    pub fn from_sorted(accounts: impl IntoIterator<Item = (Address, Account)>) -> Result<Self, OutOfOrder> {
        let (mut builder, mut arena) = (Builder::default(), Arena::default());
        for (address, account) in accounts {
            builder.push(address, account, &mut arena)?;
        }
        let root = builder.finish(&mut arena).unwrap_or(NONE);
        let accounts = usize::try_from(builder.accounts).expect("as many as are in memory");
        Ok(Self { nodes: arena.nodes, free: Vec::new(), root, accounts })
    }
}

/// Where finished nodes go. Each is given with its bytes' hash.
trait Nodes {
    /// What a parent knows of its child.
    type Handle: Copy;

    fn leaf(&mut self, depth: u8, address: Address, account: Account) -> Self::Handle;
    fn extension(&mut self, first: u8, last: u8, key: Address, child: Self::Handle) -> Self::Handle;
    fn branch(&mut self, children: &[Option<Self::Handle>; 16]) -> Self::Handle;
}

/// An account whose place is known once the next one is: its leaf begins below where it leaves its neighbours.
#[derive(Clone, Copy)]
struct Last {
    address: Address,
    account: Account,
}

/// A branch at `depth` of the last account's path, which may still get children.
struct Open<H> {
    depth: u8,
    children: [Option<H>; 16],
}

struct Builder<H> {
    last: Option<Last>,
    /// The branches on the last account's path, from the root down.
    open: Vec<Open<H>>,
    accounts: u64,
}

impl<H> Default for Builder<H> {
    fn default() -> Self {
        Self { last: None, open: Vec::new(), accounts: 0 }
    }
}

/// What stands below a branch and waits for the place that it begins at.
enum Below<H> {
    Leaf(Account),
    Branch(u8, H),
}

impl<H: Copy> Builder<H> {
    fn push(
        &mut self,
        address: Address,
        account: Account,
        nodes: &mut impl Nodes<Handle = H>,
    ) -> Result<(), OutOfOrder> {
        if let Some(last) = self.last {
            if address <= last.address {
                return Err(OutOfOrder { got: address, after: last.address });
            }
            let at = super::fork(&last.address, &address, 0);
            let below = self.close(last, Some(at), nodes);
            if self.open.last().is_none_or(|top| top.depth < at) {
                self.open.push(Open { depth: at, children: [None; 16] });
            }
            let node = place(below, at + 1, last.address, nodes);
            let top = self.open.last_mut().expect("there was one, or it was just opened");
            top.children[usize::from(nibble(&last.address, at))] = Some(node);
        }
        self.last = Some(Last { address, account });
        self.accounts += 1;
        Ok(())
    }

    /// Finishes the branches that are deeper than `until`, each as a child of the one above; answers the uppermost.
    fn close(&mut self, last: Last, until: Option<u8>, nodes: &mut impl Nodes<Handle = H>) -> Below<H> {
        let mut below = Below::Leaf(last.account);
        while let Some(top) = self.open.pop_if(|top| until.is_none_or(|until| top.depth > until)) {
            let Open { depth, mut children } = top;
            children[usize::from(nibble(&last.address, depth))] = Some(place(below, depth + 1, last.address, nodes));
            below = Below::Branch(depth, nodes.branch(&children));
        }
        below
    }

    /// The root; none where there were no accounts.
    fn finish(&mut self, nodes: &mut impl Nodes<Handle = H>) -> Option<H> {
        let last = self.last.take()?;
        let below = self.close(last, None, nodes);
        Some(place(below, 0, last.address, nodes))
    }
}

/// Puts a node at `start` of its path, with the stretch before it where it is a branch that lies deeper.
fn place<H: Copy>(below: Below<H>, start: u8, key: Address, nodes: &mut impl Nodes<Handle = H>) -> H {
    match below {
        Below::Leaf(account) => nodes.leaf(start, key, account),
        Below::Branch(depth, branch) if depth == start => branch,
        Below::Branch(depth, branch) => nodes.extension(start, depth, key, branch),
    }
}

/// Keeps hashes alone.
#[derive(Default)]
struct Hashes {
    buffer: Vec<u8>,
}

impl Hashes {
    fn of(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Hash {
        self.buffer.clear();
        encode(&mut self.buffer);
        Hash::of(&[&self.buffer])
    }
}

fn stretch(key: &Address, first: u8, last: u8) -> impl ExactSizeIterator<Item = u8> + '_ {
    (first..last).map(move |at| nibble(key, at))
}

impl Nodes for Hashes {
    type Handle = Hash;

    fn leaf(&mut self, depth: u8, address: Address, account: Account) -> Hash {
        self.of(|buffer| encode_leaf(buffer, stretch(&address, depth, PATH_LEN), &account))
    }

    fn extension(&mut self, first: u8, last: u8, key: Address, child: Hash) -> Hash {
        self.of(|buffer| encode_extension(buffer, stretch(&key, first, last), &child))
    }

    fn branch(&mut self, children: &[Option<Hash>; 16]) -> Hash {
        self.of(|buffer| encode_branch(buffer, |slot| children[slot]))
    }
}

/// Keeps the nodes, as [`State`] has them.
#[derive(Default)]
struct Arena {
    nodes: Vec<Node>,
    hashes: Hashes,
}

impl Arena {
    fn add(&mut self, form: Form, hash: Hash) -> Id {
        let id = Id::try_from(self.nodes.len()).ok().filter(|&id| id != NONE).expect("below 2^32 nodes fit memory");
        self.nodes.push(Node { form, hash: Some(hash) });
        id
    }

    fn hash(&self, id: Id) -> Hash {
        self.nodes[id as usize].hash.expect("every node of an arena has its hash")
    }
}

impl Nodes for Arena {
    type Handle = Id;

    fn leaf(&mut self, depth: u8, address: Address, account: Account) -> Id {
        let hash = self.hashes.of(|buffer| encode_leaf(buffer, stretch(&address, depth, PATH_LEN), &account));
        self.add(Form::Leaf { depth, address, account }, hash)
    }

    fn extension(&mut self, first: u8, last: u8, key: Address, child: Id) -> Id {
        let child_hash = self.hash(child);
        let hash = self.hashes.of(|buffer| encode_extension(buffer, stretch(&key, first, last), &child_hash));
        self.add(Form::Extension { first, last, key, child }, hash)
    }

    fn branch(&mut self, children: &[Option<Id>; 16]) -> Id {
        let mut buffer = std::mem::take(&mut self.hashes);
        let hash = buffer.of(|buffer| encode_branch(buffer, |slot| children[slot].map(|id| self.hash(id))));
        self.hashes = buffer;
        self.add(Form::Branch { children: Box::new(children.map(|child| child.unwrap_or(NONE))) }, hash)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::tests::any_address;
    use super::*;

    /// Both ways of building, from accounts that are in order.
    fn roots(accounts: &[(Address, Account)]) -> (Hash, Hash) {
        let mut stream = SortedRoot::default();
        for (address, account) in accounts {
            stream.push(*address, *account).unwrap();
        }
        assert_eq!(stream.len(), accounts.len() as u64);
        (stream.finish(), State::from_sorted(accounts.iter().copied()).unwrap().root())
    }

    #[test]
    fn accounts_out_of_order_or_twice_are_refused_by_name() {
        let (low, high) = (Address([1; 20]), Address([2; 20]));
        for got in [low, high] {
            let mut stream = SortedRoot::default();
            stream.push(high, Account::default()).unwrap();
            assert_eq!(stream.push(got, Account::default()), Err(OutOfOrder { got, after: high }));
        }
        assert!(State::from_sorted([(high, Account::default()), (low, Account::default())]).is_err());
        assert_eq!(roots(&[]), (Hash::ZERO, Hash::ZERO));
    }

    proptest! {
        #[test]
        fn one_pass_makes_the_state_that_single_steps_make(
            accounts in prop::collection::btree_map(any_address(), (0_u64..4, 0_u64..4), 0..60),
            then in prop::collection::vec((any_address(), prop::option::weighted(0.6, 0_u64..4)), 0..20),
        ) {
            let accounts: BTreeMap<Address, Account> =
                accounts.into_iter().map(|(address, (balance, nonce))| (address, Account { balance, nonce })).collect();
            let mut state = State::default();
            for (address, account) in &accounts {
                state.set(*address, *account);
            }
            let sorted: Vec<_> = accounts.into_iter().collect();
            prop_assert_eq!(roots(&sorted), (state.root(), state.root()));
            // What was built in one pass is changed like any other.
            let mut built = State::from_sorted(sorted).unwrap();
            for (address, balance) in then {
                for state in [&mut built, &mut state] {
                    match balance {
                        Some(balance) => state.set(address, Account { balance, nonce: 9 }),
                        None => state.remove(&address),
                    }
                }
                prop_assert_eq!(built.root(), state.root());
                prop_assert_eq!(built.len(), state.len());
            }
            prop_assert!(built.accounts().eq(state.accounts()));
        }
    }
}
