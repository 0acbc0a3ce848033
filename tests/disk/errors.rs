//! Calls that fail, each in its turn: a disk that is full, one that fails once, one that is dead for a while. What was
//! asked for is refused in words, nothing that was answered is lost, and the same process goes on when the disk is well
//! again: in the end all is as if nothing had happened, to the row.

use std::path::Path;

use super::chance::{Dice, knob};
use super::disk::{Disk, Fault};
use super::files::{Command, Files};
use super::folders::{copy_tree, folder, integrity};
use super::loss::{Platter, Survives};
use super::work::{Node, Step, Work, rows};

const FAULTS: [Fault; 3] = [Fault::Once, Fault::Dead, Fault::Full];

/// A fault's place and nature: `points` in all, spread evenly over so many calls, the first one anywhere.
fn spread(calls: u64, points: usize, dice: &mut Dice) -> Vec<(u64, Fault)> {
    let all: Vec<_> = (0..calls).flat_map(|at| FAULTS.map(|fault| (at, fault))).collect();
    let step = all.len() as f64 / points as f64;
    let first = dice.pick(1_000) as f64 / 1_000.0 * step;
    let chosen = |number: usize| all[((first + number as f64 * step) as usize).min(all.len() - 1)];
    (0..points).map(chosen).collect()
}

/// Whether an error says what the matter is.
fn is_clear(error: &str) -> bool {
    let words = ["disk", "I/O", "Input/output", "No space", "space left", "unable to open database file", "readonly"];
    words.iter().any(|word| error.contains(word))
}

/// Whether a step is blocks that are committed: readiness follows what becomes of those.
fn commits(step: &Step) -> bool {
    matches!(step, Step::Import(_) | Step::Switch(_) | Step::Produce(_))
}

/// Does the work, with a fault if there is one. Answers how many calls there were, how many of them failed, and how
/// many steps were refused.
async fn work(work: &Work, root: &Path, fault: Option<(u64, Fault)>, dice: &mut Dice) -> (u64, u64, usize) {
    let disk = Disk::watch(root);
    let data = root.join("data");
    if let Some((at, fault)) = fault {
        disk.fail(at, fault);
    }
    let (mut node, mut refused, mut failed) = (None, 0, 0);
    for (number, step) in work.steps.iter().enumerate() {
        loop {
            let before = node.as_ref().map(|node: &Node| node.ledger.head());
            let Err(error) = work.take(step, &mut node, &data).await else { break };
            let how = format!("{fault:?}: step {number}, {step:?}");
            assert!(is_clear(&error), "{how}: {error}");
            if let (Some(before), Some(node)) = (before, &node) {
                assert_eq!(node.ledger.head(), before, "{how} was refused: {error}");
            }
            if let (true, Some(node)) = (commits(step), &node) {
                assert!(node.ledger.import_stats().is_failing, "{how} was refused, and readiness does not know");
            }
            refused += 1;
            // As long as the disk is as it is, it says so again; then it is well.
            if dice.pick(2) == 0 || refused > 3 {
                failed = disk.heal();
            }
            assert!(refused < 10, "{how}: {error}");
        }
        let is_failing = node.as_ref().is_some_and(|node| node.ledger.import_stats().is_failing);
        assert!(
            !(commits(step) && is_failing),
            "{fault:?}: step {number}, {step:?} is done, and readiness does not know"
        );
    }
    node.take().expect("the last step leaves one").ledger.stop();
    failed = failed.max(disk.heal());
    let calls = disk.calls();
    // Where the disk dropped what it could not write, and the power is lost in the end: what was answered is there.
    if fault.is_some_and(|(_, fault)| fault != Fault::Full) && dice.pick(4) == 0 {
        let (log, mut platter, after) = (disk.log(), Platter::new(), folder());
        log.iter().for_each(|op| platter.apply(op, dice));
        platter.survivors(Survives::EACH[dice.pick(Survives::EACH.len())], dice, after.path());
        let survived = work.open(&after.path().join("data")).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        survived.ledger.stop();
        assert_eq!(rows(&after.path().join("data/chain.db")), rows(&data.join("chain.db")), "{fault:?}, and no power");
    }
    (calls, failed, refused)
}

/// Calls that fail: 50, or what `TENON_TEST_FAULTS` says.
#[tokio::test]
async fn a_node_whose_disk_fails_at_any_call_goes_on_when_it_is_well_and_has_every_row() {
    let (plan, mut dice) = (Work::new(), Dice::new("faults of the disk"));
    let whole = folder();
    let (calls, ..) = work(&plan, whole.path(), None, &mut dice).await;
    let expected = rows(&whole.path().join("data/chain.db"));
    let points = spread(calls, knob("TENON_TEST_FAULTS", 50), &mut dice);
    let (mut failed, mut refused) = (0, 0);
    for (at, fault) in &points {
        let root = folder();
        let (_, more, no) = work(&plan, root.path(), Some((*at, *fault)), &mut dice).await;
        let path = root.path().join("data/chain.db");
        assert_eq!(integrity(&path), "ok", "{fault:?} at {at}");
        let found = rows(&path);
        let only = |these: &[String], those: &[String]| these.iter().find(|row| !those.contains(row)).cloned();
        let differ = (only(&found, &expected), only(&expected, &found));
        assert!(found == expected, "{fault:?} at {at}: only here {:?}, missing {:?}", differ.0, differ.1);
        // It opens, and its accounts make its root.
        plan.open(&root.path().join("data")).await.unwrap().ledger.stop();
        (failed, refused) = (failed + more, refused + no);
    }
    println!("{} faults among {calls} calls: {failed} calls failed, {refused} steps were refused", points.len());
    assert!(refused > points.len() / 4, "only {refused} steps were refused");
}

/// Calls that fail: 50, or what `TENON_TEST_FAULTS` says.
#[tokio::test]
async fn a_command_whose_disk_fails_at_any_call_says_so_and_is_done_when_it_is_asked_again() {
    let mut dice = Dice::new("faults of the disk under commands");
    let start = folder();
    let files = Files::new(start.path()).await;
    let run = |root: &Path, fault: Option<(u64, Fault)>| {
        let disk = Disk::watch(root);
        if let Some((at, fault)) = fault {
            disk.fail(at, fault);
        }
        let how = format!("{fault:?}");
        let mut refused = 0;
        for command in Command::EACH {
            if let Err(error) = files.run(command, root) {
                assert!(is_clear(&error), "{how}: {command:?}: {error}");
                disk.heal();
                refused += 1;
                // What it could not do it has not left half done, nor what it does it with.
                files.is_done(command, root, &how);
                let left: Vec<_> = leftovers(root);
                assert!(
                    left.is_empty() || fault.is_some_and(|(_, fault)| fault == Fault::Dead),
                    "{how}: {command:?} left {left:?}"
                );
                if !files.is_done(command, root, &how) {
                    files.again(command, root, &how);
                }
            }
        }
        let failed = disk.heal();
        let calls = disk.calls();
        drop(disk);
        files.finish(root, &how);
        (calls, failed, refused)
    };
    let whole = folder();
    copy_tree(start.path(), whole.path());
    let (calls, ..) = run(whole.path(), None);
    let points = spread(calls, knob("TENON_TEST_FAULTS", 50), &mut dice);
    let (mut failed, mut refused) = (0, 0);
    for fault in &points {
        let root = folder();
        copy_tree(start.path(), root.path());
        let (_, more, no) = run(root.path(), Some(*fault));
        (failed, refused) = (failed + more, refused + no);
    }
    println!("{} faults among {calls} calls: {failed} calls failed, {refused} commands were refused", points.len());
    assert!(refused > points.len() / 4, "only {refused} commands were refused");
}

/// What is named as something unfinished.
fn leftovers(root: &Path) -> Vec<std::path::PathBuf> {
    let mut left = Vec::new();
    for path in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.contains(".part") || name.ends_with(".stage") {
            left.push(path);
        } else if path.is_dir() {
            left.extend(leftovers(&path));
        }
    }
    left
}
