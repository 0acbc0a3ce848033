//! Forks: whichever branch a node hears of first, it ends at the one that fork choice names, and its database is, row for
//! row, that of a node that never knew another.

#[path = "support/rows.rs"]
mod rows;
#[path = "support/tree.rs"]
mod tree;

use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tenon::chain::{BlockError, Genesis, Hash, Height, State, VerifiedBlock, fork_choice};
use tenon::ledger::{BlockHook, ImportError, Imported, Ledger, LedgerOptions, Reach, SwitchError, Switched};
use tenon::storage::{StorageError, TakenBlock, UNDO_DEPTH, Writer};
use tree::Tree;

fn options(dir: &Path, genesis: &Genesis) -> LedgerOptions {
    LedgerOptions::new(dir.join("chain.db"), genesis.clone())
}

fn open(dir: &Path, tree: &Tree) -> Ledger {
    Ledger::open(options(dir, &tree.genesis), Vec::new()).unwrap()
}

/// The rows of a node that imported the chain up to `at` and nothing else.
async fn fresh_rows(tree: &Tree, at: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), tree);
    let answers = ledger.import(tree.branch(at, 0)).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
    ledger.stop();
    rows::chain(&dir.path().join("chain.db"))
}

async fn assert_rows(dir: &Path, tree: &Tree, at: usize) {
    let (ours, theirs) = (rows::chain(&dir.join("chain.db")), fresh_rows(tree, at).await);
    assert_eq!(rows::difference(&ours, &theirs), None);
}

async fn import(ledger: &Ledger, blocks: Vec<VerifiedBlock>) {
    let answers = ledger.import(blocks).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
}

/// Genesis, then a trunk of two blocks and two branches on it: the first two blocks long, the second three.
fn fork() -> (Tree, usize, usize) {
    let mut tree = Tree::new(2, 3, 2);
    let trunk = tree.grow_empty(0, 2, 1);
    // The fourth account is new on the first branch, and a key is seen there first.
    let transfers = [tree.transaction(trunk, 0, 3, 50, None), tree.transaction(trunk, 1, 2, 0, Some("hello"))];
    let one = tree.grow(trunk, 1, &transfers);
    let answer = tree.transaction(one, 3, 0, 10, None);
    let one = tree.grow(one, 1, &[answer]);
    let two = tree.grow(trunk, 2, &transfers[1..]);
    let two = tree.grow_empty(two, 2, 1);
    (tree, one, two)
}

#[tokio::test]
async fn a_longer_branch_takes_the_place_of_ours_to_the_row() {
    let (tree, one, two) = fork();
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    let mut reorgs = ledger.reorgs();
    import(&ledger, tree.branch(one, 0)).await;
    let from = ledger.head();
    let reorg = ledger.switch_branch(tree.branch(two, 2), Reach::Limited).await.unwrap();
    assert_eq!((reorg.common, reorg.undone, reorg.applied), (2, 2, 3));
    assert_eq!((&reorg.from, &reorg.to), (&from, &ledger.head()));
    assert_eq!(ledger.head(), tree.nodes[two].head);
    assert_eq!(reorgs.try_recv().unwrap(), reorg);
    assert_eq!(ledger.last_reorg(), Some(reorg));
    let stats = ledger.import_stats();
    assert_eq!((stats.reorgs, stats.blocks_undone), (1, 2));
    assert_rows(dir.path(), &tree, two).await;
    ledger.stop();
    // And so it stays.
    assert_eq!(open(dir.path(), &tree).head(), tree.nodes[two].head);
}

#[tokio::test]
async fn blocks_of_the_branch_that_are_ours_already_are_passed_over() {
    let (mut tree, one, two) = fork();
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(one, 0)).await;
    let reorg = ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert_eq!((reorg.common, reorg.undone, reorg.applied), (2, 2, 3));
    // One that only extends the head takes nothing back and is no reorg.
    let longer = tree.grow(two, 1, &[]);
    let reorg = ledger.switch_branch(tree.branch(longer, 3), Reach::Limited).await.unwrap();
    assert_eq!((reorg.common, reorg.undone, reorg.applied), (5, 0, 1));
    assert_eq!(ledger.import_stats().reorgs, 1);
    assert_rows(dir.path(), &tree, longer).await;
    ledger.stop();
}

#[tokio::test]
async fn what_is_no_better_or_does_not_fit_is_refused_and_leaves_nothing() {
    let (mut tree, one, two) = fork();
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(two, 0)).await;
    let before = rows::chain(&dir.path().join("chain.db"));
    let refused = async |branch: Vec<VerifiedBlock>| ledger.switch_branch(branch, Reach::Any).await.unwrap_err();
    assert_eq!(refused(Vec::new()).await, SwitchError::Empty);
    let worse = refused(tree.branch(one, 2)).await;
    assert!(matches!(worse, SwitchError::Worse { ours_height: 5, theirs_height: 4, .. }), "{worse}");
    let same = refused(tree.branch(two, 0)).await;
    assert!(matches!(same, SwitchError::Worse { .. }), "{same}");
    let long = tree.grow_empty(one, 3, 1);
    let (height, parent) = (4, tree.hash(tree.nodes[one].parent));
    assert_eq!(refused(tree.branch(long, 3)).await, SwitchError::UnknownParent { height, parent });
    let mut gap = tree.branch(long, 2);
    let missing = gap.remove(2);
    let error = BlockError::Height { expected: missing.height(), got: missing.height() + 1 };
    let (height, hash) = (gap[2].height(), gap[2].hash());
    assert_eq!(refused(gap).await, SwitchError::Invalid { height, hash, error });
    assert_eq!(ledger.head(), tree.nodes[two].head);
    assert_eq!(rows::chain(&dir.path().join("chain.db")), before);
    assert_eq!(ledger.import_stats().reorgs, 0);
    ledger.stop();
}

#[tokio::test]
async fn a_branch_with_a_block_that_is_not_valid_leaves_everything_as_it_was_and_the_block_is_named() {
    let (mut tree, one, two) = fork();
    let wrong_root = tree.grow_with(two, 1, &[], |header| header.state_root.0[0] ^= 1);
    let after = tree.grow_empty(wrong_root, 2, 1);
    let far = tree.grow_with(two, 1, &[], |_| {});
    let dir = tempfile::tempdir().unwrap();
    let heard = Heard::default();
    let ledger = Ledger::open(options(dir.path(), &tree.genesis), vec![Box::new(heard.clone())]).unwrap();
    import(&ledger, tree.branch(one, 0)).await;
    let before = rows::chain(&dir.path().join("chain.db"));
    let error = ledger.switch_branch(tree.branch(after, 2), Reach::Limited).await.unwrap_err();
    let SwitchError::Invalid { height, hash, error: BlockError::StateRoot { .. } } = error else { panic!("{error}") };
    assert_eq!((height, hash), (tree.height(wrong_root), tree.hash(wrong_root)));
    assert_eq!(ledger.head(), tree.nodes[one].head);
    assert_eq!(rows::chain(&dir.path().join("chain.db")), before);
    assert_eq!(heard.chain(), chain_of(&tree, one));
    // The state is what it was, too: the chain goes on from here, and another branch is taken.
    let next = tree.grow(one, 1, &[tree.transaction(one, 0, 1, 5, None)]);
    import(&ledger, tree.branch(next, 4)).await;
    ledger.switch_branch(tree.branch(far, 2), Reach::Limited).await.unwrap();
    assert_rows(dir.path(), &tree, far).await;
    assert_eq!(heard.chain(), chain_of(&tree, far));
    ledger.stop();
}

#[tokio::test]
async fn a_branch_that_leaves_ours_too_deep_is_refused_and_counted_and_one_at_the_limit_is_not() {
    let mut tree = Tree::new(1, 2, 0);
    let trunk = tree.grow_empty(0, 3, 1);
    let ours = tree.grow_empty(trunk, 4, 1);
    let theirs = tree.grow_empty(trunk, 5, 2);
    let dir = tempfile::tempdir().unwrap();
    for (max_reorg_depth, refused) in [(3, true), (4, false)] {
        let ledger = Ledger::open(
            LedgerOptions { max_reorg_depth, ..options(&dir.path().join(max_reorg_depth.to_string()), &tree.genesis) },
            Vec::new(),
        )
        .unwrap();
        import(&ledger, tree.branch(ours, 0)).await;
        for again in 1..3 {
            let answer = ledger.switch_branch(tree.branch(theirs, 3), Reach::Limited).await;
            if refused {
                let (common, depth, max) = (3, 4, 3);
                assert_eq!(answer, Err(SwitchError::TooDeep { common, depth, max }));
                assert_eq!(ledger.import_stats().reorgs_refused, again);
                assert_eq!(ledger.head(), tree.nodes[ours].head);
            }
        }
        assert_eq!(ledger.head().hash == tree.hash(theirs), !refused);
        // Who insists gets it.
        let insisted = ledger.switch_branch(tree.branch(theirs, 3), Reach::Any).await;
        assert_eq!(insisted.is_ok(), refused);
        assert_eq!(ledger.head().hash, tree.hash(theirs));
        ledger.stop();
    }
}

#[tokio::test]
async fn deeper_than_the_undo_records_the_accounts_are_made_anew_from_the_blocks() {
    let mut tree = Tree::new(2, 4, 3);
    let mut trunk = 0;
    for round in 0..6 {
        let transactions: Vec<_> = (0..4).map(|from| tree.transaction(trunk, from, from + round, 7, None)).collect();
        trunk = tree.grow(trunk, 1, &transactions);
    }
    let length = usize::try_from(UNDO_DEPTH).unwrap() + 20;
    let transfer = tree.transaction(trunk, 1, 5, 9, None);
    let ours = tree.grow(trunk, 1, &[transfer]);
    let ours = tree.grow_empty(ours, length, 1);
    let theirs = tree.grow_empty(trunk, length + 3, 2);
    let transfer = tree.transaction(theirs, 2, 6, 11, None);
    let theirs = tree.grow(theirs, 1, &[transfer]);
    let bad = tree.grow_with(theirs, 1, &[], |header| header.state_root.0[9] ^= 1);
    let dir = tempfile::tempdir().unwrap();
    let heard = Heard::default();
    let open = || {
        let options = LedgerOptions { max_reorg_depth: u64::MAX, ..options(dir.path(), &tree.genesis) };
        Ledger::open(options, vec![Box::new(heard.clone())]).unwrap()
    };
    let ledger = open();
    import(&ledger, tree.branch(ours, 0)).await;
    let before = rows::chain(&dir.path().join("chain.db"));
    // However much the configuration would allow, only so many records are there.
    let error = ledger.switch_branch(tree.branch(theirs, 6), Reach::Limited).await.unwrap_err();
    assert_eq!(error, SwitchError::TooDeep { common: 6, depth: length as u64 + 1, max: UNDO_DEPTH });
    let error = ledger.switch_branch(tree.branch(bad, 6), Reach::Any).await.unwrap_err();
    assert!(matches!(error, SwitchError::Invalid { height, .. } if height == tree.height(bad)), "{error}");
    assert_eq!(rows::difference(&rows::chain(&dir.path().join("chain.db")), &before), None);
    let reorg = ledger.switch_branch(tree.branch(theirs, 6), Reach::Any).await.unwrap();
    assert_eq!((reorg.common, reorg.undone), (6, length as u64 + 1));
    assert_rows(dir.path(), &tree, theirs).await;
    assert_eq!(heard.chain(), chain_of(&tree, theirs));
    ledger.stop();
    assert_eq!(open().head(), tree.nodes[theirs].head);
}

#[tokio::test]
async fn damaged_accounts_are_made_anew_from_the_blocks_and_a_damaged_block_is_named() {
    let (tree, _, two) = fork();
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(two, 0)).await;
    ledger.stop();
    drop(ledger);
    let damage = |sql: &str| {
        let connection = rusqlite::Connection::open(dir.path().join("chain.db")).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    damage("UPDATE account SET balance = balance + 1, public_key = NULL; DELETE FROM undo WHERE height = 4;");
    let options = options(dir.path(), &tree.genesis);
    let error = Ledger::open(options, Vec::new()).err().expect("the accounts do not make the root");
    assert!(error.to_string().contains("state root"), "{error}");
    let head = tenon::ledger::rebuild_accounts(&self::options(dir.path(), &tree.genesis)).unwrap();
    assert_eq!(head, tree.nodes[two].head);
    assert_rows(dir.path(), &tree, two).await;
    open(dir.path(), &tree).stop();
    damage("UPDATE block SET body = (SELECT body FROM block WHERE height = 4) WHERE height = 3;");
    let error = tenon::ledger::rebuild_accounts(&self::options(dir.path(), &tree.genesis)).unwrap_err();
    assert!(error.to_string().contains("block 3"), "{error}");
}

#[tokio::test]
async fn an_offered_rival_of_the_head_takes_its_place_if_its_hash_is_lower() {
    let (mut tree, one, _) = fork();
    let parent = tree.nodes[one].parent;
    // Some of these have a lower hash than the head, some a higher one.
    let rivals: Vec<_> = (2..12).map(|slots| tree.grow(parent, slots, &[])).collect();
    let below = tree.grow(tree.nodes[parent].parent, 7, &[]);
    let same_height = tree.grow(below, 1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(one, 0)).await;
    let mut head = one;
    for rival in rivals.into_iter().chain([one]) {
        let answer = ledger.offer(tree.block(rival)).await;
        let (height, ours, theirs) = (4, tree.hash(head), tree.hash(rival));
        if theirs < ours {
            assert_eq!(answer, Ok(Imported::Reorged));
            head = rival;
        } else if theirs == ours {
            assert_eq!(answer, Ok(Imported::Known));
        } else {
            assert_eq!(answer, Err(ImportError::Conflict { height, ours, theirs }));
        }
        assert_eq!(ledger.head(), tree.nodes[head].head);
    }
    assert!(ledger.import_stats().reorgs > 0 && head != one, "no rival had a lower hash");
    // Another block below, and one beside the head on another parent: one block does not show that it is better.
    for other in [below, same_height] {
        let answer = ledger.offer(tree.block(other)).await;
        assert!(matches!(answer, Err(ImportError::Conflict { .. })), "{answer:?}");
    }
    let next = tree.grow(head, 1, &[]);
    assert_eq!(ledger.offer(tree.block(next)).await, Ok(Imported::Extended));
    assert_rows(dir.path(), &tree, next).await;
    ledger.stop();
}

#[tokio::test]
async fn an_authority_that_signs_two_blocks_for_one_height_is_raised_once() {
    let mut tree = Tree::new(2, 2, 0);
    let trunk = tree.grow(0, 1, &[]);
    // Two authorities: two slots later the same one has its turn again.
    let [ours, honest, twice, thrice] = [1, 2, 3, 5].map(|slots| tree.grow(trunk, slots, &[]));
    let longer = tree.grow(twice, 1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(ours, 0)).await;
    ledger.import(vec![tree.block(honest), tree.block(ours)]).await;
    assert_eq!(ledger.equivocations(), [], "another one's rival, and the same block again");
    for at in [twice, thrice, twice] {
        ledger.import(vec![tree.block(at)]).await;
    }
    let found = ledger.equivocations();
    assert_eq!(found.len(), 1, "{found:?}");
    let header = tree.block(ours).block().header.clone();
    assert_eq!((found[0].height, found[0].proposer), (2, header.proposer));
    assert_eq!((found[0].ours, found[0].theirs), (tree.hash(ours), tree.hash(twice)));
    assert_eq!(ledger.import_stats().equivocations, 3);
    ledger.stop();
    // The same is seen in a branch that wins.
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &tree);
    import(&ledger, tree.branch(ours, 0)).await;
    ledger.switch_branch(tree.branch(longer, 1), Reach::Limited).await.unwrap();
    let found = ledger.equivocations();
    assert_eq!((found.len(), found[0].theirs), (1, tree.hash(twice)));
    ledger.stop();
}

/// What a hook has heard: it follows the chain, and forgets what was not committed.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Vec<Hash>, Vec<Hash>)>>);

impl Heard {
    fn chain(&self) -> Vec<Hash> {
        self.0.lock().unwrap().0.clone()
    }
}

impl BlockHook for Heard {
    fn on_block(&mut self, _: &Writer<'_>, block: &VerifiedBlock, _: &State) -> Result<(), StorageError> {
        let pending = &mut self.0.lock().unwrap().1;
        assert_eq!(pending.len() as u64 + 1, block.height(), "in order");
        pending.push(block.hash());
        Ok(())
    }

    fn on_undone(&mut self, writer: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError> {
        let pending = &mut self.0.lock().unwrap().1;
        assert_eq!((pending.len() as Height, pending.pop()), (block.height(), Some(block.hash)), "the newest first");
        assert_eq!(writer.reader().block(block.height())?, None);
        assert_eq!(block.transaction_hashes.len(), block.block.transactions.len());
        Ok(())
    }

    fn on_switched(&mut self, switched: &Switched<'_>) -> Result<(), StorageError> {
        let pending = &self.0.lock().unwrap().1;
        assert_eq!(pending.last(), Some(&switched.reorg.to.hash));
        assert_eq!(pending.len() as Height, switched.reorg.to.height);
        Ok(())
    }

    fn committed(&mut self) {
        let heard = &mut *self.0.lock().unwrap();
        heard.0 = heard.1.clone();
    }

    fn rolled_back(&mut self) {
        let heard = &mut *self.0.lock().unwrap();
        heard.1 = heard.0.clone();
    }
}

fn chain_of(tree: &Tree, at: usize) -> Vec<Hash> {
    tree.path(at).into_iter().map(|at| tree.hash(at)).collect()
}

/// A block of a random tree: which node it grows on, how many slots later, what it holds, whether it is bad.
#[derive(Clone, Debug)]
struct Growth {
    parent: prop::sample::Index,
    slots: u64,
    transactions: Vec<(u8, u8, u64, bool)>,
    old: u16,
    bad: bool,
}

/// What a node is told.
#[derive(Clone, Debug)]
enum Step {
    /// Blocks of the chain up to a node, above what we have of it or from further down.
    Import {
        to: prop::sample::Index,
        earlier: u64,
    },
    /// One block.
    Offer {
        at: prop::sample::Index,
    },
    /// The branch up to a node, from where it leaves ours, from further down or, wrongly, from further up.
    Switch {
        to: prop::sample::Index,
        offset: i64,
        any: bool,
    },
    /// The best branch of all.
    Best,
    Restart,
}

fn any_growth() -> impl Strategy<Value = Growth> {
    let transaction = (0_u8..7, 0_u8..7, prop_oneof![1_u64..100, Just(400_000_000_000)], any::<bool>());
    let parent = any::<prop::sample::Index>();
    let transactions = prop::collection::vec(transaction, 0..4);
    (parent, 1_u64..4, transactions, any::<u16>(), prop::bool::weighted(0.06))
        .prop_map(|(parent, slots, transactions, old, bad)| Growth { parent, slots, transactions, old, bad })
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => (index(), 0_u64..3).prop_map(|(to, earlier)| Step::Import { to, earlier }),
        3 => index().prop_map(|at| Step::Offer { at }),
        6 => (index(), prop_oneof![4 => Just(0), 1 => -2_i64..=2], prop::bool::weighted(0.2))
            .prop_map(|(to, offset, any)| Step::Switch { to, offset, any }),
        2 => Just(Step::Best),
        1 => Just(Step::Restart),
    ]
}

/// Grows a tree. A block's parent is more often a late one, so that branches become long.
fn grow(growths: &[Growth], authorities: usize) -> Tree {
    let mut tree = Tree::new(authorities, 4, 2);
    let mut old = Vec::new();
    for growth in growths {
        let count = tree.nodes.len();
        // Nothing can be told apart above a bad block but that it is above one; a few of those are enough.
        let parent = count - 1 - growth.parent.index(count.min(6));
        let make = |(from, to, amount, message): &(u8, u8, u64, bool)| {
            let text = message.then(|| amount.to_string());
            tree.transaction(parent, (*from).into(), (*to).into(), *amount, text.as_deref())
        };
        let mut candidates: Vec<_> = growth.transactions.iter().map(make).collect();
        // Some of what other branches have.
        candidates.extend(old.iter().enumerate().filter(|(at, _)| growth.old >> (at % 16) & 1 == 1).map(|(_, tx)| {
            let tx: &tenon::chain::Transaction = tx;
            tx.clone()
        }));
        old.extend(candidates.first().cloned());
        tree.grow_with(parent, growth.slots, &candidates, |header| header.state_root.0[31] ^= u8::from(growth.bad));
    }
    tree
}

/// What a ledger should answer and where it should stand, decided from the tree alone.
struct Model<'a> {
    tree: &'a Tree,
    head: usize,
    max_reorg_depth: u64,
}

impl Model<'_> {
    fn place(&self, at: usize) -> (Height, Hash) {
        (self.tree.height(at), self.tree.hash(at))
    }

    fn is_ours(&self, at: usize) -> bool {
        at == 0 || self.tree.path(self.head).contains(&at)
    }

    /// One block, as `import` takes it.
    fn extend(&mut self, at: usize) -> Result<Imported, ()> {
        if self.is_ours(at) {
            return Ok(Imported::Known);
        }
        if self.tree.nodes[at].parent == self.head && !self.tree.nodes[at].bad {
            self.head = at;
            return Ok(Imported::Extended);
        }
        Err(())
    }

    fn offer(&mut self, at: usize) -> Result<Imported, ()> {
        let rival = self.tree.nodes[at].parent == self.tree.nodes[self.head].parent && at != 0 && self.head != 0;
        let better = fork_choice::prefers(self.place(self.head), self.place(at));
        if rival && better && self.max_reorg_depth > 0 && !self.tree.nodes[at].bad {
            self.head = at;
            return Ok(Imported::Reorged);
        }
        self.extend(at)
    }

    /// A branch from height `first` up to `to`.
    fn switch(&mut self, first: Height, to: usize, reach: Reach) -> &'static str {
        let tree = self.tree;
        if tree.height(to) < first {
            return "empty";
        }
        if !fork_choice::prefers(self.place(self.head), self.place(to)) {
            return "worse";
        }
        let common = tree.common(self.head, to);
        if first > common + 1 {
            return "unknown parent";
        }
        let depth = tree.height(self.head) - common;
        if reach == Reach::Limited && depth > self.max_reorg_depth {
            return "too deep";
        }
        if tree.path(to).iter().any(|&at| tree.height(at) > common && tree.nodes[at].bad) {
            return "invalid";
        }
        self.head = to;
        "switched"
    }
}

fn kind(answer: &Result<tenon::ledger::Reorg, SwitchError>) -> &'static str {
    match answer {
        Ok(_) => "switched",
        Err(SwitchError::Empty) => "empty",
        Err(SwitchError::Worse { .. }) => "worse",
        Err(SwitchError::UnknownParent { .. }) => "unknown parent",
        Err(SwitchError::TooDeep { .. }) => "too deep",
        Err(SwitchError::Invalid { .. }) => "invalid",
        Err(error) => panic!("{error}"),
    }
}

/// How often each thing happened, over all cases.
#[derive(Default)]
struct Counts(std::collections::BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

async fn play(tree: &Tree, steps: &[Step], max_reorg_depth: u64, counts: &mut Counts) {
    let dir = tempfile::tempdir().unwrap();
    let heard = Heard::default();
    let open = || {
        let options = LedgerOptions { max_reorg_depth, ..options(dir.path(), &tree.genesis) };
        Ledger::open(options, vec![Box::new(heard.clone())]).unwrap()
    };
    let mut ledger = open();
    let mut model = Model { tree, head: 0, max_reorg_depth };
    let best =
        (1..tree.nodes.len()).filter(|&at| tree.path(at).iter().all(|&at| !tree.nodes[at].bad)).max_by(|&a, &b| {
            let (a, b) = (model.place(a), model.place(b));
            if fork_choice::prefers(a, b) { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater }
        });
    for step in steps {
        let before = model.head;
        let node = |index: &prop::sample::Index| 1 + index.index(tree.nodes.len() - 1);
        match step {
            Step::Import { to, earlier } => {
                let to = node(to);
                let above = tree.common(model.head, to).saturating_sub(*earlier);
                let path: Vec<_> = tree.path(to).into_iter().filter(|&at| tree.height(at) > above).collect();
                let answers = ledger.import(tree.branch(to, above)).await;
                for (at, answer) in path.into_iter().zip(answers) {
                    assert_eq!(answer.map_err(drop), model.extend(at), "{step:?}");
                }
            }
            Step::Offer { at } => {
                let at = node(at);
                assert_eq!(ledger.offer(tree.block(at)).await.map_err(drop), model.offer(at), "{step:?}");
            }
            Step::Switch { .. } | Step::Best => {
                let (to, offset, any) = match step {
                    Step::Switch { to, offset, any } => (node(to), *offset, *any),
                    _ => (best.unwrap_or(1), 0, true),
                };
                let reach = if any { Reach::Any } else { Reach::Limited };
                let first = (tree.common(model.head, to) + 1).saturating_add_signed(offset).max(1);
                let answer = ledger.switch_branch(tree.branch(to, first - 1), reach).await;
                assert_eq!(kind(&answer), model.switch(first, to, reach), "{step:?}: {answer:?}");
                counts.add(kind(&answer), 1);
                if let Ok(reorg) = answer {
                    let common = tree.common(before, to);
                    assert_eq!((reorg.common, reorg.undone), (common, tree.height(before) - common));
                    assert_eq!(reorg.applied, tree.height(to) - common);
                    counts.add("blocks undone", reorg.undone);
                }
            }
            Step::Restart => {
                ledger.stop();
                ledger = open();
            }
        }
        assert_eq!(ledger.head(), tree.nodes[model.head].head, "{step:?}");
        assert_eq!(heard.chain(), chain_of(tree, model.head), "{step:?}");
        counts.add("steps", 1);
        // What a switch leaves is what a node has that never knew the other branch.
        if tree.common(before, model.head) < tree.height(before) {
            counts.add("reorgs compared row by row", 1);
            assert_rows(dir.path(), tree, model.head).await;
        }
    }
    assert_rows(dir.path(), tree, model.head).await;
    ledger.stop();
}

/// Cases: 200, or what `TENON_TEST_REORGS` says.
fn cases() -> u32 {
    std::env::var("TENON_TEST_REORGS").map_or(200, |cases| cases.parse().expect("TENON_TEST_REORGS is a number"))
}

#[test]
fn whatever_a_node_hears_in_whatever_order_it_ends_at_the_models_head_and_rows() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let counts = Mutex::new(Counts::default());
    let strategy = (
        prop::collection::vec(any_growth(), 1..24),
        prop::collection::vec(any_step(), 1..20),
        2_usize..=4,
        prop_oneof![Just(0_u64), 1_u64..5, Just(256)],
    );
    let result = runner.run(&strategy, |(growths, steps, authorities, max_reorg_depth)| {
        let (tree, mut counted) = (grow(&growths, authorities), Counts::default());
        runtime.block_on(play(&tree, &steps, max_reorg_depth, &mut counted));
        counted.0.into_iter().for_each(|(what, count)| counts.lock().unwrap().add(what, count));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{} cases: {:?}", cases(), counts.lock().unwrap().0);
}
