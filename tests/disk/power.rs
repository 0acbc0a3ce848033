//! The power is lost, at any point of what a node does with its database, and any part of what was not synced with it.
//!
//! The database promises (`synchronous = FULL`): what was answered is there, whole, whatever else is lost; what was not
//! answered is there whole or not at all. So what is found must be the rows after the last step that was answered, or
//! after the one that was under way, to the row, and a node opens it without help.

use std::path::{Path, PathBuf};

use tenon::chain::Hash;
use tenon::ledger::ProduceError;

use super::chance::{Dice, knob};
use super::disk::{Disk, Op};
use super::files::{Command, Files};
use super::folders::{folder, integrity};
use super::loss::{Platter, Survives};
use super::work::{Step, Work, rows};

/// Where the node has its database: in folders that it makes itself.
fn home(root: &Path) -> PathBuf {
    root.join("node/data")
}

/// What was there after a step, and when that was answered.
struct Moment {
    answered: usize,
    rows: Vec<String>,
    /// The slot of the newest block that was given out.
    produced: Option<(u64, Hash)>,
}

/// Runs the work on a disk of its own; answers all that was done to that, and what was there after each step.
async fn record(work: &Work) -> (Vec<Op>, Vec<Moment>) {
    let root = folder();
    let disk = Disk::watch(root.path());
    let data = home(root.path());
    let mut node = Some(work.open(&data).await.unwrap());
    let (mut moments, mut produced) = (Vec::new(), None);
    let mut note = |produced| {
        let answered = disk.now();
        moments.push(Moment { answered, rows: rows(&data.join("chain.db")), produced });
    };
    note(None);
    for step in &work.steps {
        work.take(step, &mut node, &data).await.unwrap();
        if let Step::Produce(slots) = step {
            produced = Some((*slots, node.as_ref().unwrap().ledger.head().hash));
        }
        note(produced);
    }
    node.take().unwrap().ledger.stop();
    note(produced);
    let log = disk.log();
    drop(disk);
    // What was recorded makes what is there: nothing has escaped.
    let (mut platter, mut dice, again) = (Platter::new(), Dice::new("recorded"), folder());
    log.iter().for_each(|op| platter.apply(op, &mut dice));
    platter.survivors(Survives::All, &mut dice, again.path());
    let left = |root: &Path| std::fs::read(home(root).join("chain.db")).unwrap();
    assert_eq!(left(root.path()), left(again.path()));
    (log, moments)
}

/// What a node finds after a power loss at place `at` of the record.
async fn assert_right(work: &Work, moments: &[Moment], root: &Path, at: usize, how: &str) {
    let data = home(root);
    let node = work.open(&data).await.unwrap_or_else(|error| panic!("{how}: {error}"));
    let answered = moments.iter().rposition(|moment| moment.answered <= at);
    if let Some((slots, hash)) = answered.and_then(|answered| moments[answered].produced) {
        // Whatever of it is on the chain: nothing else is signed for that slot, nor for an older one.
        for slots in [slots - 2, slots] {
            let again = work.produce(&node, slots).await;
            assert!(
                matches!(again, Err(ProduceError::SlotUsed(_))),
                "{how}: block {hash} was given out, now {again:?}"
            );
        }
    }
    node.ledger.stop();
    let (path, possible) = (data.join("chain.db"), answered.map_or(0..1, |answered| answered..answered + 2));
    assert_eq!(integrity(&path), "ok", "{how}");
    let found = rows(&path);
    let is_right = moments.iter().enumerate().any(|(at, moment)| possible.contains(&at) && moment.rows == found);
    let like = moments.iter().position(|moment| moment.rows == found);
    assert!(is_right, "{how}: expected what was there after step {possible:?}, found {like:?}: {:#?}", found.last());
}

/// Losses: 120 and one at each answer, or what `TENON_TEST_LOSSES` says.
#[tokio::test]
async fn after_a_power_loss_at_any_point_what_was_answered_is_there_and_nothing_by_half() {
    let (work, mut dice) = (Work::new(), Dice::new("power losses"));
    let (log, moments) = record(&work).await;
    let is_sync = |at: &usize| matches!(log[*at], Op::Sync { .. });
    let syncs: Vec<usize> = (0..log.len()).filter(is_sync).collect();
    // Just before a sync most is at stake, just after it most is promised.
    let mut points: Vec<(usize, Survives)> = (0..knob("TENON_TEST_LOSSES", 120))
        .map(|loss| {
            let at = match loss % 4 {
                0 => dice.pick(log.len() + 1),
                1 => syncs[dice.pick(syncs.len())] + 1,
                _ => syncs[dice.pick(syncs.len())],
            };
            (at, Survives::EACH[dice.pick(Survives::EACH.len())])
        })
        .collect();
    // What each answer promises, with nothing but what was synced.
    points.extend(moments.iter().map(|moment| (moment.answered, Survives::Nothing)));
    points.sort_by_key(|(at, _)| *at);
    let (mut platter, mut done, mut twice) = (Platter::new(), 0, 0);
    for (number, (at, survives)) in points.iter().enumerate() {
        log[done..*at].iter().for_each(|op| platter.apply(op, &mut dice));
        done = *at;
        let how = format!("loss {number} at {at} of {}, {survives:?} survives", log.len());
        let root = folder();
        platter.survivors(*survives, &mut dice, root.path());
        if number % 4 > 0 {
            assert_right(&work, &moments, root.path(), *at, &how).await;
            continue;
        }
        // It is lost again while the node finds its way back.
        let disk = Disk::watch(root.path());
        work.open(&home(root.path())).await.unwrap_or_else(|error| panic!("{how}: {error}")).ledger.stop();
        // What was there when the power came back is durable.
        let (log, began) = (disk.log(), disk.began());
        drop(disk);
        let (mut again, second) = (Platter::new(), folder());
        let at_second = began + dice.pick(log.len() - began + 1);
        log[..at_second].iter().for_each(|op| again.apply(op, &mut dice));
        let survives = Survives::EACH[dice.pick(Survives::EACH.len())];
        again.survivors(survives, &mut dice, second.path());
        let how = format!("{how}, and again at {at_second} of {}, {survives:?} survives", log.len());
        assert_right(&work, &moments, second.path(), *at, &how).await;
        twice += 1;
    }
    println!(
        "{} losses within {} changes of the disk, {} of them syncs; {twice} lost again",
        points.len(),
        log.len(),
        syncs.len()
    );
}

/// Losses: 60 and some at each answer and each change of a name, or what `TENON_TEST_LOSSES` says.
#[tokio::test]
async fn after_a_power_loss_in_a_command_its_result_is_whole_or_not_there_and_what_it_replaces_is_kept() {
    let (root, mut dice) = (folder(), Dice::new("power losses in commands"));
    let files = Files::new(root.path()).await;
    let disk = Disk::watch(root.path());
    let mut answered = Vec::new();
    for command in Command::EACH {
        files.run(command, root.path()).unwrap();
        answered.push((disk.now(), command));
    }
    let (log, began) = (disk.log(), disk.began());
    drop(disk);
    let changes: Vec<usize> = (began..log.len()).filter(|at| !matches!(log[*at], Op::Write { .. })).collect();
    // Names are what commands are about: most losses fall beside one that is given or synced.
    let mut points: Vec<(usize, Survives)> = (0..knob("TENON_TEST_LOSSES", 60))
        .map(|loss| {
            let any = began + dice.pick(log.len() - began + 1);
            let beside = changes[dice.pick(changes.len())] + dice.pick(2);
            (if loss % 4 == 0 { any } else { beside }, Survives::EACH[dice.pick(Survives::EACH.len())])
        })
        .collect();
    points.extend(answered.iter().map(|(when, _)| (*when, Survives::Nothing)));
    // What takes a place takes it when what was there before is safe, and gone.
    let renames = (began..log.len()).filter(|at| matches!(log[*at], Op::Rename { .. } | Op::Link { .. }));
    points.extend(renames.map(|at| (at + 1, Survives::Last)));
    points.sort_by_key(|(at, _)| *at);
    let (mut platter, mut done) = (Platter::new(), 0);
    for (number, (at, survives)) in points.iter().enumerate() {
        log[done..*at].iter().for_each(|op| platter.apply(op, &mut dice));
        done = *at;
        let how = format!("loss {number} at {at} of {began} to {}, {survives:?} survives", log.len());
        let root = folder();
        platter.survivors(*survives, &mut dice, root.path());
        for (when, command) in &answered {
            let is_done = files.is_done(*command, root.path(), &how);
            assert!(is_done || when > at, "{how}: {command:?} was answered and is lost");
        }
        files.finish(root.path(), &how);
    }
    println!("{} losses within {} changes of the disk", points.len(), log.len() - began);
}
