//! The trie looked at from outside, a node at a time: which accounts of two states differ is found by going down where
//! hashes differ, with a look or two for each fork on the way to a difference, however many accounts there are.

use std::fmt;
use std::str::FromStr;

use super::{Form, NONE, PATH_LEN, State, nibble};
use crate::chain::{Account, Address, Hash};

/// The beginning of a key in the trie, a nibble a step: of the address's text, `ait1` and all. Written in hexadecimal
/// digits, one a nibble.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Path(Vec<u8>);

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path is at most {PATH_LEN} lower-case hexadecimal digits, got `{got}`")]
pub struct PathError {
    /// The text, cut to 100 characters.
    pub got: String,
}

/// What lies below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateNode {
    /// One account.
    Account(Address, Account),
    /// Several, which share a path up to a fork.
    Fork {
        /// All that they share.
        path: Path,
        /// For each nibble that follows, the hash that stands for everything below. Two states that fork at the same path
        /// have the same accounts below a nibble when these are equal.
        below: Vec<(u8, Hash)>,
    },
}

/// An account that two states do not have alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose.
    pub address: Address,
    /// In the first state; none where it is not there.
    pub ours: Option<Account>,
    /// In the second.
    pub theirs: Option<Account>,
}

/// What a search for differences found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Differences {
    /// The accounts that differ, by address.
    pub accounts: Vec<Difference>,
    /// Whether there may be more than were asked for.
    pub more: bool,
    /// Nodes that were looked at, in both states.
    pub looks: u64,
}

impl Path {
    /// The whole path to an account.
    pub fn of(address: &Address) -> Self {
        Self((0..PATH_LEN).map(|at| nibble(address, at)).collect())
    }

    /// The same, one step on.
    fn then(&self, nibble: u8) -> Self {
        Self(self.0.iter().copied().chain([nibble]).collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|nibble| write!(f, "{nibble:x}"))
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let nibble = |c: char| c.to_digit(16).filter(|_| !c.is_ascii_uppercase()).and_then(|n| u8::try_from(n).ok());
        let nibbles: Option<Vec<u8>> = text.chars().map(nibble).collect();
        nibbles
            .filter(|nibbles| nibbles.len() <= usize::from(PATH_LEN))
            .map(Self)
            .ok_or_else(|| PathError { got: text.chars().take(100).collect() })
    }
}

impl State {
    /// What lies below `path`; none where no account does. The empty path is the root.
    pub fn node(&mut self, path: &Path) -> Option<StateNode> {
        self.root();
        let (mut id, mut depth) = (self.root, 0_u8);
        loop {
            // The nibbles of `path` that lie within this node's own stretch.
            let wanted =
                |from: u8, to: u8| path.0.get(usize::from(from)..).unwrap_or(&[]).iter().take(usize::from(to - from));
            match &self.nodes.get(id as usize)?.form {
                Form::Leaf { address, account, .. } => {
                    let fits = (depth..).zip(wanted(depth, PATH_LEN)).all(|(at, n)| nibble(address, at) == *n);
                    return fits.then_some(StateNode::Account(*address, *account));
                }
                Form::Extension { first, last, key, child } => {
                    if (*first..).zip(wanted(*first, *last)).any(|(at, n)| nibble(key, at) != *n) {
                        return None;
                    }
                    (id, depth) = (*child, *last);
                }
                Form::Branch { children } => match path.0.get(usize::from(depth)) {
                    Some(&step) => (id, depth) = (children[usize::from(step)], depth + 1),
                    None => {
                        let key = self.some_key(id);
                        let path = Path((0..depth).map(|at| nibble(&key, at)).collect());
                        let below = (0..).zip(&**children).filter(|(_, child)| **child != NONE);
                        let below = below.map(|(step, child)| (step, self.known_hash(*child))).collect();
                        return Some(StateNode::Fork { path, below });
                    }
                },
            }
        }
    }
}

/// Looks for each account that may be found: as many as lead to the two most distant of all. A state that shows forks
/// without end, and never an account, is not followed for ever.
const LOOKS_PER_ACCOUNT: u64 = 4 * PATH_LEN as u64;

/// Finds the accounts that two states do not have alike; `ours` and `theirs` answer as [`State::node`] does. Stops once
/// it has found `max`. Errors: those of the two.
pub async fn differences<E>(
    mut ours: impl AsyncFnMut(&Path) -> Result<Option<StateNode>, E>,
    mut theirs: impl AsyncFnMut(&Path) -> Result<Option<StateNode>, E>,
    max: usize,
) -> Result<Differences, E> {
    let mut found = Differences::default();
    // Lowest path last, so that it is looked at first.
    let mut left = vec![(Path::default(), Side::Both)];
    let looks_max = LOOKS_PER_ACCOUNT.saturating_mul((max as u64).saturating_add(1));
    while let Some((path, side)) = left.pop() {
        if found.accounts.len() >= max || found.looks >= looks_max {
            found.more = true;
            break;
        }
        let mut nodes = [None, None];
        if side != Side::Theirs {
            nodes[0] = ours(&path).await?;
        }
        if side != Side::Ours {
            nodes[1] = theirs(&path).await?;
        }
        found.looks += if side == Side::Both { 2 } else { 1 };
        let [mine, other] = nodes;
        let mut next = Vec::new();
        compare(&path, mine, other, &mut next, &mut found.accounts);
        left.extend(next.into_iter().rev());
    }
    found.accounts.sort_by_key(|difference| difference.address);
    Ok(found)
}

/// Where something is still to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Both,
    Ours,
    Theirs,
}

/// Notes what of two nodes below `path` differs: accounts in `found`, paths to look at in `next`.
fn compare(
    path: &Path,
    mine: Option<StateNode>,
    other: Option<StateNode>,
    next: &mut Vec<(Path, Side)>,
    found: &mut Vec<Difference>,
) {
    // A state that answers with what does not lie below the path would lead in circles.
    let below = |node: &StateNode| {
        let found = node.path().0;
        found.starts_with(&path.0) && (found.len() < usize::from(PATH_LEN) || matches!(node, StateNode::Account(..)))
    };
    let (mine, other) = (mine.filter(below), other.filter(below));
    let (Some(mine), Some(other)) = (&mine, &other) else {
        for (node, side) in [(mine, Side::Ours), (other, Side::Theirs)] {
            if let Some(node) = node {
                alone(&node, side, next, found);
            }
        }
        return;
    };
    let (my_path, other_path) = (mine.path(), other.path());
    match (mine, other) {
        (StateNode::Account(address, a), StateNode::Account(same, b)) if address == same => {
            if a != b {
                found.push(Difference { address: *address, ours: Some(*a), theirs: Some(*b) });
            }
        }
        (StateNode::Fork { path: at, below: a }, StateNode::Fork { path: same, below: b }) if at == same => {
            let hash = |below: &[(u8, Hash)], step| below.iter().find(|(s, _)| *s == step).map(|(_, hash)| *hash);
            for step in 0..16 {
                match (hash(a, step), hash(b, step)) {
                    (Some(x), Some(y)) if x != y => next.push((at.then(step), Side::Both)),
                    (Some(_), None) => next.push((at.then(step), Side::Ours)),
                    (None, Some(_)) => next.push((at.then(step), Side::Theirs)),
                    _ => {}
                }
            }
        }
        // One forks where the other has a single way: what lies beside that way is there alone.
        (StateNode::Fork { path: at, below }, _) if other_path.0.starts_with(&at.0) => {
            beside(at, below, other, other_path.0[at.0.len()], Side::Ours, next, found);
        }
        (_, StateNode::Fork { path: at, below }) if my_path.0.starts_with(&at.0) => {
            beside(at, below, mine, my_path.0[at.0.len()], Side::Theirs, next, found);
        }
        _ => {
            alone(mine, Side::Ours, next, found);
            alone(other, Side::Theirs, next, found);
        }
    }
}

/// A fork of one side against a node of the other that lies below its `way`.
fn beside(
    at: &Path,
    below: &[(u8, Hash)],
    other: &StateNode,
    way: u8,
    side: Side,
    next: &mut Vec<(Path, Side)>,
    found: &mut Vec<Difference>,
) {
    for (step, _) in below {
        next.push((at.then(*step), if *step == way { Side::Both } else { side }));
    }
    if !below.iter().any(|(step, _)| *step == way) {
        alone(other, if side == Side::Ours { Side::Theirs } else { Side::Ours }, next, found);
    }
}

/// Everything below a node that one side has and the other has not.
fn alone(node: &StateNode, side: Side, next: &mut Vec<(Path, Side)>, found: &mut Vec<Difference>) {
    match node {
        StateNode::Account(address, account) => {
            let (ours, theirs) = if side == Side::Ours { (Some(*account), None) } else { (None, Some(*account)) };
            found.push(Difference { address: *address, ours, theirs });
        }
        StateNode::Fork { path, below } => next.extend(below.iter().map(|(step, _)| (path.then(*step), side))),
    }
}

impl StateNode {
    /// What everything below shares.
    fn path(&self) -> Path {
        match self {
            Self::Account(address, _) => Path::of(address),
            Self::Fork { path, .. } => path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::super::tests::any_address;
    use super::*;

    fn compared(ours: &mut State, theirs: &mut State, max: usize) -> Differences {
        let find = differences(
            async |path: &Path| Ok::<_, Infallible>(ours.node(path)),
            async |path: &Path| Ok(theirs.node(path)),
            max,
        );
        find.now_or_never().expect("nothing waits").unwrap()
    }

    #[test]
    fn a_path_is_read_as_it_is_written() {
        let whole = Path::of(&Address([0xab; 20])).to_string();
        assert!(whole.starts_with("6169743161626162") && whole.len() == 88, "{whole}");
        for good in ["", "6", &whole] {
            assert_eq!(good.parse::<Path>().unwrap().to_string(), good);
        }
        for bad in ["g", "A", " ", "é", &format!("{whole}0")] {
            assert!(bad.parse::<Path>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_difference_among_many_accounts_takes_few_looks() {
        let account = |n: u64| (Address(*Hash::of(&[&n.to_be_bytes()]).0.first_chunk().unwrap()), n);
        let mut ours = State::default();
        for (address, balance) in (0..20_000).map(account) {
            ours.set(address, Account { balance, nonce: 0 });
        }
        let mut theirs = ours.clone();
        assert_eq!(compared(&mut ours, &mut theirs, 10), Differences { looks: 2, ..Differences::default() });
        let (address, _) = account(7);
        theirs.set(address, Account { balance: 8, nonce: 0 });
        let found = compared(&mut ours, &mut theirs, 10);
        assert_eq!(found.accounts.iter().map(|difference| difference.address).collect::<Vec<_>>(), [address]);
        // The root, and two forks for each of the four or five digits that tell 20,000 addresses apart, in both.
        assert!(found.looks <= 2 * 14 && !found.more, "{found:?}");
    }

    #[test]
    fn a_state_that_answers_beside_the_question_leads_nowhere() {
        let mut ours = State::default();
        ours.set(Address([1; 20]), Account::default());
        let liar = StateNode::Fork { path: "61".parse().unwrap(), below: vec![(9, Hash::ZERO), (1, Hash::ZERO)] };
        let find = differences(
            async |path: &Path| Ok::<_, Infallible>(ours.node(path)),
            async |_: &Path| Ok(Some(liar.clone())),
            1_000,
        );
        assert!(find.now_or_never().unwrap().unwrap().looks < 100);
        // Forks everywhere and no account.
        let endless = async |path: &Path| {
            Ok::<_, Infallible>(Some(StateNode::Fork {
                path: path.clone(),
                below: (0..16).map(|n| (n, Hash::ZERO)).collect(),
            }))
        };
        let found = differences(async |_: &Path| Ok(None), endless, 2).now_or_never().unwrap().unwrap();
        assert!(found.more && found.accounts.is_empty());
    }

    proptest! {
        #[test]
        fn the_differences_are_those_of_the_lists(
            both in prop::collection::btree_map(any_address(), 0_u64..3, 0..40),
            changed in prop::collection::vec((any_address(), prop::option::of(0_u64..3), any::<bool>()), 0..12),
            max in 1_usize..40,
        ) {
            let mut lists = [both.clone(), both];
            for (address, balance, first) in changed {
                let list = &mut lists[usize::from(first)];
                match balance {
                    Some(balance) => list.insert(address, balance),
                    None => list.remove(&address),
                };
            }
            let account = |balance: &u64| Account { balance: *balance, nonce: 0 };
            let [mut ours, mut theirs] = lists.each_ref().map(|list| {
                State::from_sorted(list.iter().map(|(address, balance)| (*address, account(balance)))).unwrap()
            });
            let all: BTreeMap<Address, ()> = lists.iter().flatten().map(|(address, _)| (*address, ())).collect();
            let expected: Vec<Difference> = all
                .into_keys()
                .map(|address| {
                    let [ours, theirs] = lists.each_ref().map(|list| list.get(&address).map(account));
                    Difference { address, ours, theirs }
                })
                .filter(|difference| difference.ours != difference.theirs)
                .collect();
            let found = compared(&mut ours, &mut theirs, usize::MAX);
            prop_assert_eq!(&found.accounts, &expected);
            // Every fork on the way to a difference is looked at twice at most, in each state.
            prop_assert!(found.looks <= 2 + 4 * 88 * expected.len() as u64);
            let some = compared(&mut ours, &mut theirs, max);
            prop_assert!(some.accounts.len() >= max.min(expected.len()));
            prop_assert!(some.more || some.accounts == expected);
        }

        #[test]
        fn below_every_path_lies_what_begins_with_it(
            accounts in prop::collection::btree_map(any_address(), 0_u64..3, 0..20),
            of in any_address(), cut in 0_usize..=88,
        ) {
            let account = |balance: u64| Account { balance, nonce: 0 };
            let mut state =
                State::from_sorted(accounts.iter().map(|(address, balance)| (*address, account(*balance)))).unwrap();
            let path = Path(Path::of(&of).0[..cut].to_vec());
            let below: Vec<_> = accounts.iter().filter(|(a, _)| Path::of(a).0.starts_with(&path.0)).collect();
            match (state.node(&path), below.as_slice()) {
                (None, []) => {}
                (Some(StateNode::Account(address, found)), [(only, balance)]) => {
                    prop_assert_eq!((address, found), (**only, account(**balance)));
                }
                (Some(StateNode::Fork { path: shared, below: children }), [(first, _), .., (last, _)]) => {
                    let (first, last) = (Path::of(first), Path::of(last));
                    let length = first.0.iter().zip(&last.0).take_while(|(a, b)| a == b).count();
                    prop_assert_eq!(&shared.0, &first.0[..length]);
                    let steps: Vec<u8> = children.iter().map(|(step, _)| *step).collect();
                    let mut expected: Vec<u8> = below.iter().map(|(a, _)| Path::of(a).0[length]).collect();
                    expected.dedup();
                    prop_assert_eq!(steps, expected);
                }
                (found, below) => prop_assert!(false, "{found:?} for {below:?}"),
            }
        }
    }
}
