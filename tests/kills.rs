//! `kill -9` in the commands that work on a node's files, as real processes, anywhere: what is there afterwards is what
//! was there before or what the command makes, whole; and the same command again is done.

#[path = "support/chance.rs"]
mod chance;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod process;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use chance::{Dice, knob};
use folders::{copy_tree, folder, integrity, list};
use process::{Process, run, tenon};
use tenon::chain::{Genesis, Height, Time};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::maintenance::database::{self, checksum_path};
use tenon::sample::Sample;
use tenon::snapshot::Snapshot;
use tenon::snapshot::load::load;

/// Blocks of the chain, and of the one that is restored over.
const BLOCKS: Height = 400;
const OLD_BLOCKS: Height = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    ExportFolder,
    ExportFile,
    Import,
    Fetch,
    Backup,
    Restore,
}

use Command::{Backup, ExportFile, ExportFolder, Fetch, Import, Restore};

const COMMANDS: [Command; 6] = [ExportFolder, ExportFile, Import, Fetch, Backup, Restore];

/// Directories of nodes, and what commands make of them.
struct World {
    root: PathBuf,
    genesis: Genesis,
    /// Where the node of `source` serves.
    rpc: String,
}

impl World {
    fn shown(&self, name: &str) -> String {
        self.root.join(name).to_str().expect("a path of text").to_owned()
    }

    fn arguments(&self, command: Command) -> Vec<String> {
        let [source, new, other] = ["source", "new", "other"].map(|name| self.shown(name));
        let [folder, file, backup] =
            ["made/folder", "made/one.snapshot", "made/backup.db"].map(|name| self.shown(name));
        let arguments: &[&str] = match command {
            ExportFolder => &["snapshot", "export", "--dir", &source, "--blocks", "--out", &folder],
            ExportFile => &["snapshot", "export", "--dir", &source, "--blocks", "--out", &file],
            Import => &["snapshot", "import", &self.shown("whole.snapshot"), "--dir", &new],
            Fetch => &["snapshot", "fetch", "--from", &self.rpc, "--dir", &new],
            Backup => &["db", "backup", "--dir", &source, "--out", &backup],
            Restore => &["db", "restore", &self.shown("whole.db"), "--dir", &other],
        };
        arguments.iter().map(|&argument| argument.to_owned()).collect()
    }

    /// The folder that a command works in.
    fn place(&self, command: Command) -> PathBuf {
        self.root.join(match command {
            Import | Fetch => "new",
            Restore => "other",
            _ => "made",
        })
    }

    /// Puts back what the command begins with.
    fn reset(&self, command: Command, dice: &mut Dice) {
        let place = self.place(command);
        // The first time nothing is there.
        let _ = std::fs::remove_dir_all(&place);
        match command {
            // Nothing, or the node of somebody who has started it before.
            Import | Fetch => copy_tree(&self.root.join(["empty", "begun"][dice.pick(2)]), &place),
            Restore => copy_tree(&self.root.join("short"), &place),
            _ => std::fs::create_dir(place).unwrap(),
        }
    }

    /// The head of a node's database, by opening it, which checks the state root; none where there is no database.
    fn head(&self, path: &Path) -> Option<Height> {
        if !path.exists() {
            return None;
        }
        let ledger = Ledger::open(LedgerOptions::new(path.to_owned(), self.genesis.clone()), Vec::new()).unwrap();
        let height = ledger.head().height;
        ledger.stop();
        assert_eq!(integrity(path), "ok");
        Some(height)
    }

    /// Whether something is a snapshot that a node would take.
    fn is_taken(&self, path: &Path) -> bool {
        let read =
            Snapshot::open(path).and_then(|snapshot| load(&snapshot, &self.genesis, Time::now(), |_| {}, |_| Ok(())));
        read.is_ok_and(|head| {
            assert_eq!(head.height, BLOCKS, "{}", path.display());
            true
        })
    }

    /// Whether the command's result is there; panics where something is neither that nor what was there before.
    fn is_done(&self, command: Command, how: &str) -> bool {
        let made = |name: &str| self.root.join("made").join(name);
        match command {
            ExportFolder | ExportFile => {
                let out = made(if command == ExportFolder { "folder" } else { "one.snapshot" });
                // Nothing that is left is taken for a snapshot and is another one.
                list(&self.root.join("made")).iter().for_each(|name| _ = self.is_taken(&made(name)));
                assert!(!out.exists() || self.is_taken(&out), "{how}: half a snapshot has the name of a whole one");
                out.exists()
            }
            Backup => {
                let out = made("backup.db");
                for name in list(&self.root.join("made")).iter().filter(|name| !name.ends_with(".sha256")) {
                    let again = folder();
                    let path = again.path().join("chain.db");
                    let restored = database::restore(&made(name), &path, &self.genesis, false);
                    assert_eq!(restored.is_ok(), *name == "backup.db", "{how}: {name}: {restored:?}");
                    assert_eq!(self.head(&path), restored.ok().map(|restored| restored.height), "{how}");
                }
                out.exists()
            }
            Import | Fetch => match self.head(&self.root.join("new/data/chain.db")) {
                None | Some(0) => false,
                Some(height) => {
                    assert_eq!(height, BLOCKS, "{how}");
                    true
                }
            },
            Restore => {
                let data = self.root.join("other/data");
                let height = self.head(&data.join("chain.db")).unwrap_or_else(|| panic!("{how}: nothing is there"));
                assert!([OLD_BLOCKS, BLOCKS].contains(&height), "{how}: {height}");
                let kept = list(&data).into_iter().find(|name| name.starts_with("chain.db.old-"));
                if height == BLOCKS {
                    let kept = kept.unwrap_or_else(|| panic!("{how}: what was there is lost"));
                    assert_eq!(self.head(&data.join(kept)), Some(OLD_BLOCKS), "{how}");
                }
                height == BLOCKS
            }
        }
    }

    /// Runs it to its end.
    fn complete(&self, command: Command, how: &str) {
        let checksum = checksum_path(&self.root.join("made/backup.db"));
        if command == Backup && checksum.exists() {
            // Killed between two names. It is not written over somebody's checksum: the operator is told.
            let output = tenon().args(self.arguments(command)).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && told.contains("backup.db.sha256 is there already"), "{how}: {told}");
            std::fs::remove_file(checksum).unwrap();
        }
        run(&self.arguments(command).iter().map(String::as_str).collect::<Vec<_>>());
        assert!(self.is_done(command, how), "{how}: done, and not there");
        let place = self.place(command);
        let unfinished = |name: &String| name.contains(".part") || name.ends_with(".stage") || name == "fetch";
        for folder in [place.join("data"), place].into_iter().filter(|folder| folder.exists()) {
            assert!(!list(&folder).iter().any(unfinished), "{how}: {:?}", list(&folder));
        }
    }
}

/// How often a process has written something so far: a clock that goes with its work. None once it has ended.
fn writes(child: &mut Child) -> Option<usize> {
    if child.try_wait().unwrap().is_some() {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{}/io", child.id())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("syscw: "))?.parse().ok()
}

/// Kills: 30, or what `TENON_TEST_KILLS` says.
#[test]
fn a_command_that_is_killed_leaves_what_was_there_or_what_it_makes_and_is_done_when_it_is_run_again() {
    let (dir, mut dice) = (folder(), Dice::new("killed commands"));
    let root = dir.path().to_owned();
    let source = root.join("source");
    let genesis = process::authority(&source, 0, 0);
    copy_tree(&source, &root.join("empty"));
    let keys = ["authority", "alice", "bob"].map(|name| process::key(&source, name));
    let [authority, alice, bob] = keys;
    let sample = || Sample::on(genesis.clone().into(), authority.clone(), vec![alice.clone(), bob.clone()]).step_us(20);
    for (name, blocks) in [("source", BLOCKS), ("short", OLD_BLOCKS), ("begun", 0)] {
        if name != "source" {
            copy_tree(&root.join("empty"), &root.join(name));
        }
        let blocks = usize::try_from(blocks).unwrap();
        process::fill(&root.join(name).join("data/chain.db"), &genesis, &mut sample(), blocks, 2);
    }
    // It goes on while it is copied; nothing is added, so that it is known what comes of that.
    let all = [("TENON_PRODUCER_EMPTY_BLOCKS", "never"), ("TENON_SNAPSHOT_BLOCKS", "1000000")];
    let node = Process::start_with(&source, &all);
    let made = tokio::runtime::Runtime::new().unwrap().block_on(node.admin("POST", "/admin/snapshot", None));
    assert_eq!((made.0, &made.1["height"]), (200, &BLOCKS.into()), "{made:?}");
    let world = World { root, genesis, rpc: node.rpc.clone() };
    let whole = world.shown("whole");
    run(&["snapshot", "export", "--dir", &world.shown("source"), "--blocks", "--out", &format!("{whole}.snapshot")]);
    run(&["db", "backup", "--dir", &world.shown("source"), "--out", &format!("{whole}.db")]);
    // How much each of them writes.
    let start = |command: Command| {
        tenon().args(world.arguments(command)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let lengths = COMMANDS.map(|command| {
        world.reset(command, &mut dice);
        let (mut child, mut most) = (start(command), 0);
        while let Some(now) = writes(&mut child) {
            most = most.max(now);
        }
        assert!(child.wait().unwrap().success() && world.is_done(command, "at first"), "{command:?}");
        most
    });
    let (kills, mut midway, mut done) = (knob("TENON_TEST_KILLS", 30), [0; COMMANDS.len()], 0);
    for kill in 0..kills {
        let which = kill % COMMANDS.len();
        let command = COMMANDS[which];
        world.reset(command, &mut dice);
        let (mut child, moment) = (start(command), dice.pick(lengths[which] + 2));
        while writes(&mut child).is_some_and(|now| now < moment) {
            std::thread::yield_now();
        }
        // It may have ended.
        let _ = child.kill();
        let ended = child.wait().unwrap().success();
        let how = format!("kill {kill}, {command:?} after {moment} of {} writes", lengths[which]);
        let is_done = world.is_done(command, &how);
        assert!(is_done || !ended, "{how}: it said that it is done");
        midway[which] += usize::from(!ended);
        done += usize::from(is_done);
        if !is_done {
            world.complete(command, &how);
        }
    }
    node.stop();
    println!("{kills} kills, on the way {midway:?} of {COMMANDS:?}, {done} had done it");
    assert!(midway.iter().sum::<usize>() >= kills / 2, "{midway:?}");
}
