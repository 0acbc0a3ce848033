//! Forks: what a branch must be like to take the place of ours, and what is left where it does.

use std::path::Path;

use tenon::chain::{BlockError, Genesis, VerifiedBlock};
use tenon::ledger::{ImportError, Imported, Ledger, LedgerOptions, Reach, SwitchError};
use tenon::maintenance::database::{self, MaintenanceError};
use tenon::storage::UNDO_DEPTH;

use super::heard::Heard;
use super::rows;
use super::tree::Tree;

fn options(dir: &Path, genesis: &Genesis) -> LedgerOptions {
    LedgerOptions::new(dir.join("chain.db"), genesis.clone())
}

fn open(dir: &Path, tree: &Tree) -> Ledger {
    rows::patiently(|| Ledger::open(options(dir, &tree.genesis), Vec::new())).unwrap()
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
    rows::assert_equal(&dir.path().join("chain.db"), &tree, two).await;
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
    rows::assert_equal(&dir.path().join("chain.db"), &tree, longer).await;
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
    assert_eq!(heard.chain(), tree.hashes(one));
    // The state is what it was, too: the chain goes on from here, and another branch is taken.
    let next = tree.grow(one, 1, &[tree.transaction(one, 0, 1, 5, None)]);
    import(&ledger, tree.branch(next, 4)).await;
    ledger.switch_branch(tree.branch(far, 2), Reach::Limited).await.unwrap();
    rows::assert_equal(&dir.path().join("chain.db"), &tree, far).await;
    assert_eq!(heard.chain(), tree.hashes(far));
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
        Ledger::open(options, vec![Box::new(heard.clone())])
    };
    let ledger = rows::patiently(open).unwrap();
    import(&ledger, tree.branch(ours, 0)).await;
    let before = rows::chain(&dir.path().join("chain.db"));
    // However much the configuration would allow, only so many records are there.
    let error = ledger.switch_branch(tree.branch(theirs, 6), Reach::Limited).await.unwrap_err();
    assert_eq!(error, SwitchError::TooDeep { common: 6, depth: length as u64 + 1, max: UNDO_DEPTH });
    let error = ledger.switch_branch(tree.branch(bad, 6), Reach::Any).await.unwrap_err();
    assert!(matches!(error, SwitchError::Invalid { height, .. } if height == tree.height(bad)), "{error}");
    rows::assert_same(&rows::chain(&dir.path().join("chain.db")), &before);
    let reorg = ledger.switch_branch(tree.branch(theirs, 6), Reach::Any).await.unwrap();
    assert_eq!((reorg.common, reorg.undone), (6, length as u64 + 1));
    rows::assert_equal(&dir.path().join("chain.db"), &tree, theirs).await;
    assert_eq!(heard.chain(), tree.hashes(theirs));
    ledger.stop();
    assert_eq!(rows::patiently(open).unwrap().head(), tree.nodes[theirs].head);
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
    let open_damaged = || Ledger::open(options(dir.path(), &tree.genesis), Vec::new());
    let error = rows::patiently(open_damaged).err().expect("the accounts do not make the root");
    assert!(error.to_string().contains("state root"), "{error}");
    let repair = || match database::repair(&dir.path().join("chain.db"), &tree.genesis, |_, _| {}) {
        Err(MaintenanceError::Storage(error)) => Err(error),
        repaired => Ok(repaired.unwrap()),
    };
    let repaired = rows::patiently(repair).unwrap();
    assert_eq!(repaired.height, tree.nodes[two].head.height);
    rows::assert_equal(&dir.path().join("chain.db"), &tree, two).await;
    open(dir.path(), &tree).stop();
    damage("UPDATE block SET body = (SELECT body FROM block WHERE height = 4) WHERE height = 3;");
    let error = rows::patiently(repair).unwrap_err();
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
    rows::assert_equal(&dir.path().join("chain.db"), &tree, next).await;
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
