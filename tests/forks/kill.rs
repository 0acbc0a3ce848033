//! `kill -9` and a full disk in the middle of a switch: what is there afterwards is one branch or the other, whole.
//!
//! The node that is killed is this test binary itself, started again for one ignored test, which climbs a ladder: a list
//! of branches, each better than the one before and leaving it some blocks down.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tenon::chain::{Block, Genesis, Height, verify};
use tenon::ledger::{Ledger, LedgerOptions, Reach, SwitchError};

use super::chance::{Dice, knob};
use super::ladder::Ladder;
use super::rows;

/// Where the child finds its ladder and keeps its database.
const DIR: &str = "FORKS_CHILD_DIR";
/// What the child's environment says when it takes orders instead of climbing on by itself.
const ORDERS: &str = "FORKS_CHILD_ORDERS";

impl Ladder {
    /// Writes it where the child reads it: the blocks of each branch that the one before has not, in hexadecimal, a line a
    /// branch.
    fn write(&self, dir: &Path) {
        std::fs::write(dir.join("genesis.json"), self.tree.genesis.to_json()).unwrap();
        let (mut text, mut before) = (String::new(), 0);
        for &rung in &self.rungs {
            for block in self.tree.branch(rung, self.tree.common(before, rung)) {
                let mut bytes = Vec::new();
                block.block().encode(&mut bytes);
                write!(text, "{} ", const_hex::encode(bytes)).unwrap();
            }
            text.push('\n');
            before = rung;
        }
        std::fs::write(dir.join("ladder"), text).unwrap();
    }

    /// Which rung a stopped node's database stands on, by opening it, which checks the state root.
    fn rung(&self, dir: &Path) -> Option<usize> {
        let options = || LedgerOptions::new(dir.join("chain.db"), (*self.tree.genesis).clone());
        let ledger = rows::patiently(|| Ledger::open(options(), Vec::new())).unwrap();
        let head = ledger.head();
        ledger.stop();
        if head.height == 0 {
            return None;
        }
        Some(self.rungs.iter().position(|&at| self.tree.hash(at) == head.hash).expect("one branch or the other"))
    }
}

fn integrity(dir: &Path) {
    let database = rusqlite::Connection::open(dir.join("chain.db")).unwrap();
    let answer: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(answer, "ok");
}

/// A process that climbs. Killed when dropped.
struct Climber {
    child: Child,
    orders: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Climber {
    fn start(dir: &Path, orders: bool) -> Self {
        // Beyond a limit on its files a write shall fail, and not end the process.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" --ignored --exact kill::climbs --nocapture"]);
        command.arg(std::env::current_exe().unwrap()).env(DIR, dir);
        if orders {
            command.env(ORDERS, "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { orders: child.stdin.take(), child, lines }
    }

    /// The next line that it says of itself; none at its end.
    fn says(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The test harness says things, too, and does not always end its line.
            if let Some((_, said)) = line.trim_end().split_once("rung: ") {
                return Some(said.to_owned());
            }
        }
    }

    /// Lets it try one more branch.
    fn order(&mut self) -> String {
        self.orders.as_mut().unwrap().write_all(b"climb\n").unwrap();
        self.says().expect("an answer to every order")
    }

    /// The bytes that any of its files may have, from now on.
    fn limit(&self, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let status = Command::new("prlimit")
            .args([format!("--pid={}", self.child.id()), format!("--fsize={limit}:unlimited")])
            .status()
            .expect("prlimit is part of util-linux");
        assert!(status.success());
    }
}

impl Drop for Climber {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the process that the other tests of this file start, limit and kill"]
fn climbs() {
    let dir = PathBuf::from(std::env::var_os(DIR).expect("started by another test"));
    let genesis = Genesis::parse(&std::fs::read_to_string(dir.join("genesis.json")).unwrap()).unwrap();
    let ladder = std::fs::read_to_string(dir.join("ladder")).unwrap();
    let decode = |word: &str| Block::decode(&const_hex::decode(word).unwrap()).unwrap();
    let options = LedgerOptions::new(dir.join("chain.db"), genesis.clone());
    let ledger = Ledger::open(options, Vec::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let last = |line: &str| line.split_whitespace().last().map(|word| decode(word).hash());
    let stands = ladder.lines().position(|line| last(line) == Some(ledger.head().hash));
    let orders = std::env::var_os(ORDERS).is_some();
    println!("\nrung: starts at {stands:?}");
    for (rung, line) in ladder.lines().enumerate().skip(stands.map_or(0, |rung| rung + 1)) {
        let blocks = line.split_whitespace().map(decode).collect();
        let blocks: Vec<_> = verify::verify_all(blocks, &genesis).into_iter().map(Result::unwrap).collect();
        loop {
            if orders && std::io::stdin().read_line(&mut String::new()).unwrap() == 0 {
                return ledger.stop();
            }
            let before = ledger.head();
            match runtime.block_on(ledger.switch_branch(blocks.clone(), Reach::Limited)) {
                Ok(_) => break println!("\nrung: {rung}"),
                Err(SwitchError::Storage(error)) if orders => {
                    assert_eq!(ledger.head(), before);
                    println!("\nrung: refused: {error}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    ledger.stop();
    println!("\nrung: the top");
}

/// Kills: 60, or what `TENON_TEST_KILLS` says.
fn kills() -> usize {
    knob("TENON_TEST_KILLS", 60)
}

#[tokio::test]
async fn a_node_that_is_killed_in_a_switch_stands_on_one_branch_or_the_other_whole() {
    let mut dice = Dice::new("killed switches");
    let ladder = Ladder::new(&mut dice, 400, 8, 2);
    let dir = tempfile::tempdir().unwrap();
    ladder.write(dir.path());
    let database = dir.path().join("chain.db");
    let (mut done, mut midway, mut climbed) = (None, 0, 0);
    for kill in 0..kills() {
        let mut climber = Climber::start(dir.path(), false);
        assert_eq!(climber.says().unwrap(), format!("starts at {done:?}"));
        let mut said = done;
        for _ in 0..dice.roll(12) {
            match climber.says().unwrap().parse() {
                Ok(rung) => said = Some(rung),
                // Through: the next one begins anew.
                Err(_) => break,
            }
        }
        // Anywhere within the next switch.
        (0..dice.roll(400)).for_each(|_| std::thread::yield_now());
        drop(climber);
        integrity(dir.path());
        let now = ladder.rung(dir.path());
        assert!(now >= said, "kill {kill}: {said:?} was durable, {now:?} is there");
        midway += usize::from(now.is_some() && now < Some(ladder.rungs.len() - 1));
        climbed += now.map_or(0, |now| now + 1) - done.map_or(0, |done| done + 1);
        done = now;
        if let Some(rung) = now.filter(|_| dice.roll(4) == 0) {
            rows::assert_equal(&database, &ladder.tree, ladder.rungs[rung]).await;
        }
        if done == Some(ladder.rungs.len() - 1) {
            for file in ["chain.db", "chain.db-wal", "chain.db-shm"] {
                // The log may be gone already.
                let _ = std::fs::remove_file(dir.path().join(file));
            }
            done = None;
        }
    }
    assert!(midway >= kills() / 2, "only {midway} kills fell between the first switch and the last");
    println!("{} kills, {climbed} switches in between", kills());
}

#[tokio::test]
async fn a_disk_that_is_full_at_any_write_of_a_switch_loses_nothing_and_the_node_goes_on() {
    let mut dice = Dice::new("full disks");
    // Few and large: every write of one switch gets its turn.
    let ladder = Ladder::new(&mut dice, 5, 6, 5);
    let dir = rows::dir();
    ladder.write(dir.path());
    let (database, log) = (dir.path().join("chain.db"), dir.path().join("chain.db-wal"));
    let mut climber = Climber::start(dir.path(), true);
    assert_eq!(climber.says().unwrap(), "starts at None");
    assert_eq!(climber.order(), "0");
    let mut refused = 0;
    for rung in 1..ladder.rungs.len() {
        let before = rows::chain(&database);
        let mut room = 0;
        loop {
            let size = std::fs::metadata(&log).unwrap().len().max(std::fs::metadata(&database).unwrap().len());
            climber.limit(Some(room));
            let answer = climber.order();
            climber.limit(None);
            if answer == rung.to_string() {
                break;
            }
            assert!(answer.contains("refused"), "{answer}");
            assert_eq!(rows::chain(&database), before, "rung {rung}, {room} bytes of room");
            refused += 1;
            // One page of the log more each time, in odd places, from somewhat below what it has.
            room = if room == 0 { size.saturating_sub(40_000) } else { room + 1 + dice.roll(4_000) };
            let height: Height = ladder.tree.height(ladder.rungs[rung - 1]);
            assert!(room < 100 << 20, "a switch from height {height} never has enough room");
        }
        rows::assert_equal(&database, &ladder.tree, ladder.rungs[rung]).await;
    }
    assert_eq!(climber.says().unwrap(), "the top");
    integrity(dir.path());
    assert!(refused > 20, "only {refused} switches met a full disk");
    println!("{refused} switches met a full disk");
}
