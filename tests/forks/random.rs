//! Random trees of blocks, told to a node in random order: whatever it hears first, it stands where fork choice says,
//! and its database is, row for row, that of a node that never knew another branch.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use tenon::chain::{Hash, Height, fork_choice};
use tenon::ledger::{Imported, Ledger, LedgerOptions, Reach, Reorg, SwitchError};

use super::heard::Heard;
use super::rows;
use super::tree::Tree;

/// A block of a random tree: where it grows, how many slots later, what it holds, whether it is bad.
#[derive(Clone, Debug)]
struct Growth {
    /// Among the newest nodes: two of them, or many.
    parent: (Index, bool),
    slots: u64,
    /// From, to, how much, whether as a message.
    transactions: Vec<(usize, usize, u64, bool)>,
    /// Which of the older transactions, by the bits of a mask.
    again: u16,
    bad: bool,
    /// Blocks without transactions on top of it.
    more: usize,
}

/// What a node is told.
#[derive(Clone, Debug)]
enum Step {
    /// Blocks of the chain up to a node, from where it leaves ours or from further down.
    Import { to: Index, earlier: u64 },
    /// One block.
    Offer { at: Index },
    /// The branch up to a node, from where it leaves ours, from further down or, wrongly, from further up.
    Switch { to: Index, better: bool, offset: i64, any: bool },
    /// It is stopped and started.
    Restart,
}

fn any_growth() -> impl Strategy<Value = Growth> {
    let amount = prop_oneof![1_u64..100, Just(400_000_000_000)];
    let transactions = prop::collection::vec((0_usize..7, 0_usize..7, amount, any::<bool>()), 0..4);
    let parent = (any::<Index>(), prop::bool::weighted(0.6));
    let more = prop_oneof![3 => Just(0_usize), 1 => 1_usize..6];
    (parent, 1_u64..4, transactions, any::<u16>(), prop::bool::weighted(0.04), more).prop_map(
        |(parent, slots, transactions, again, bad, more)| Growth { parent, slots, transactions, again, bad, more },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let offset = prop_oneof![6 => Just(0), 1 => -2_i64..=2];
    prop_oneof![
        3 => (index(), 0_u64..3).prop_map(|(to, earlier)| Step::Import { to, earlier }),
        3 => index().prop_map(|at| Step::Offer { at }),
        9 => (index(), prop::bool::weighted(0.8), offset, prop::bool::weighted(0.3))
            .prop_map(|(to, better, offset, any)| Step::Switch { to, better, offset, any }),
        1 => Just(Step::Restart),
    ]
}

/// Grows a tree: a few long branches, and short ones beside them, with transactions that several of them have.
fn grow(growths: &[Growth], authorities: usize) -> Tree {
    let mut tree = Tree::new(authorities, 4, 2);
    let mut old = Vec::new();
    for Growth { parent: (parent, newest), slots, transactions, again, bad, more } in growths {
        let count = tree.nodes.len();
        let parent = count - 1 - parent.index(count.min(if *newest { 2 } else { 12 }));
        let make = |&(from, to, amount, message): &(usize, usize, u64, bool)| {
            tree.transaction(parent, from, to, amount, message.then(|| amount.to_string()).as_deref())
        };
        let mut candidates: Vec<_> = transactions.iter().map(make).collect();
        let first = candidates.first().cloned();
        let again = (0..).zip(&old).filter(|(at, _)| again >> (at % 16) & 1 == 1).map(|(_, old)| old);
        candidates.extend(again.cloned());
        old.extend(first);
        let at = tree.grow_with(parent, *slots, &candidates, |header| header.state_root.0[31] ^= u8::from(*bad));
        tree.grow_empty(at, *more, 1);
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
        self.tree.nodes[at].head.place()
    }

    fn wins(&self, at: usize) -> bool {
        fork_choice::prefers(self.place(self.head), self.place(at))
    }

    /// One block, as `import` takes it. The error's kind is a matter for other tests.
    fn extend(&mut self, at: usize) -> Result<Imported, ()> {
        if self.tree.path(self.head).contains(&at) {
            return Ok(Imported::Known);
        }
        let node = &self.tree.nodes[at];
        if node.parent != self.head || node.bad {
            return Err(());
        }
        self.head = at;
        Ok(Imported::Extended)
    }

    fn offer(&mut self, at: usize) -> Result<Imported, ()> {
        let (node, head) = (&self.tree.nodes[at], &self.tree.nodes[self.head]);
        let rival = self.head != 0 && self.head != at && node.parent == head.parent;
        if rival && self.wins(at) && self.max_reorg_depth > 0 && !node.bad {
            self.head = at;
            return Ok(Imported::Reorged);
        }
        self.extend(at)
    }

    /// A branch from height `first` up to `to`.
    fn switch(&mut self, first: Height, to: usize, reach: Reach) -> &'static str {
        let (tree, common) = (self.tree, self.tree.common(self.head, to));
        let depth = tree.height(self.head) - common;
        if tree.height(to) < first {
            "empty"
        } else if !self.wins(to) {
            "worse"
        } else if first > common + 1 {
            "unknown parent"
        } else if reach == Reach::Limited && depth > self.max_reorg_depth {
            "too deep"
        } else if tree.path(to).iter().any(|&at| tree.height(at) > common && tree.nodes[at].bad) {
            "invalid"
        } else {
            self.head = to;
            "switched"
        }
    }
}

fn kind(answer: &Result<Reorg, SwitchError>) -> &'static str {
    match answer {
        Ok(_) => "switched",
        Err(SwitchError::Empty) => "empty",
        Err(SwitchError::Worse { .. }) => "worse",
        Err(SwitchError::UnknownParent { .. }) => "unknown parent",
        Err(SwitchError::TooDeep { .. }) => "too deep",
        Err(SwitchError::Invalid { .. }) => "invalid",
        Err(error @ (SwitchError::Storage(_) | SwitchError::Stopped)) => panic!("{error}"),
    }
}

/// How often each thing happened.
type Counts = BTreeMap<&'static str, u64>;

fn count(counts: &mut Counts, what: &'static str, more: u64) {
    *counts.entry(what).or_default() += more;
}

async fn play(tree: &Tree, steps: &[Step], max_reorg_depth: u64) -> Counts {
    let (dir, heard, mut counts) = (rows::dir(), Heard::default(), Counts::new());
    let path = dir.path().join("chain.db");
    let open = || {
        let options = LedgerOptions::new(path.clone(), (*tree.genesis).clone());
        Ledger::open(LedgerOptions { max_reorg_depth, index_recent_max: 40, ..options }, vec![Box::new(heard.clone())])
    };
    let mut ledger = rows::patiently(open).unwrap();
    let mut model = Model { tree, head: 0, max_reorg_depth };
    for step in steps {
        let before = model.head;
        let node = |index: &Index| 1 + index.index(tree.nodes.len() - 1);
        match step {
            Step::Import { to, earlier } => {
                let to = node(to);
                let above = tree.common(model.head, to).saturating_sub(*earlier);
                let path: Vec<_> = tree.path(to).into_iter().filter(|&at| tree.height(at) > above).collect();
                let answers = ledger.import(tree.branch(to, above)).await;
                assert_eq!(answers.len(), path.len());
                for (at, answer) in path.into_iter().zip(answers) {
                    assert_eq!(answer.map_err(drop), model.extend(at), "{step:?}");
                }
            }
            Step::Offer { at } => {
                let answer = ledger.offer(tree.block(node(at))).await;
                assert_eq!(answer.map_err(drop), model.offer(node(at)), "{step:?}");
            }
            Step::Switch { to, better, offset, any } => {
                let parts = |at| tree.common(model.head, at) < tree.height(model.head);
                let among: Vec<_> = (1..tree.nodes.len())
                    .filter(|&at| !better || model.wins(at) && (model.head == 0 || parts(at)))
                    .collect();
                let to = if among.is_empty() { node(to) } else { among[to.index(among.len())] };
                let reach = if *any { Reach::Any } else { Reach::Limited };
                let first = (tree.common(model.head, to) + 1).saturating_add_signed(*offset).max(1);
                let answer = ledger.switch_branch(tree.branch(to, first - 1), reach).await;
                assert_eq!(kind(&answer), model.switch(first, to, reach), "{step:?}: {answer:?}");
                count(&mut counts, kind(&answer), 1);
                if let Ok(reorg) = answer {
                    let common = tree.common(before, to);
                    assert_eq!((reorg.common, reorg.undone), (common, tree.height(before) - common));
                    assert_eq!(reorg.applied, tree.height(to) - common);
                }
            }
            Step::Restart => {
                ledger.stop();
                ledger = rows::patiently(open).unwrap();
            }
        }
        assert_eq!(ledger.head(), tree.nodes[model.head].head, "{step:?}");
        assert_eq!(heard.chain(), tree.hashes(model.head), "{step:?}");
        let undone = tree.height(before) - tree.common(before, model.head);
        if undone > 0 {
            count(&mut counts, "reorgs", 1);
            count(&mut counts, "blocks undone", undone);
            rows::assert_equal(&path, tree, model.head).await;
        }
    }
    ledger.stop();
    rows::assert_equal(&path, tree, model.head).await;
    count(&mut counts, "steps", steps.len() as u64);
    counts
}

/// Cases: 200, or what `TENON_TEST_REORGS` says.
fn cases() -> u32 {
    std::env::var("TENON_TEST_REORGS").map_or(200, |cases| cases.parse().expect("TENON_TEST_REORGS is a number"))
}

#[test]
fn whatever_a_node_hears_in_whatever_order_it_has_the_models_head_and_rows() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let total = Mutex::new(Counts::new());
    let blocks = prop::collection::vec(any_growth(), 1..30);
    let steps = prop::collection::vec(any_step(), 1..24);
    let max_reorg_depth = prop_oneof![1 => Just(0_u64), 2 => 1_u64..5, 4 => Just(256)];
    let outcome = runner.run(&(blocks, steps, 2_usize..=4, max_reorg_depth), |(blocks, steps, authorities, max)| {
        let counts = runtime.block_on(play(&grow(&blocks, authorities), &steps, max));
        counts.into_iter().for_each(|(what, more)| count(&mut total.lock().unwrap(), what, more));
        Ok(())
    });
    println!("{} cases: {:?}", cases(), total.lock().unwrap());
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
