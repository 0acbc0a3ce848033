//! What commands do with a node's files: snapshots written and taken over, backups made and restored. Each is done or
//! not, whatever happens, and can be asked for again.

use std::path::{Path, PathBuf};

use tenon::chain::{Genesis, Time, verify};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::maintenance::database::{self, checksum_path};
use tenon::sample::Sample;
use tenon::snapshot::export::ExportOptions;
use tenon::snapshot::install::install;
use tenon::snapshot::load::load;
use tenon::snapshot::{Snapshot, SnapshotError};

use super::folders::{copy_tree, folder, integrity, list};
use super::work::rows;

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A snapshot as a folder.
    Folder,
    /// A snapshot in one file.
    File,
    Backup,
    /// The snapshot taken over where nothing is.
    InstallNew,
    /// The same where a node was killed that had no blocks yet.
    InstallOver,
    /// The backup restored where nothing is.
    RestoreNew,
    /// The same over the database of a node that was killed.
    RestoreOver,
}

use Command::{Backup, File, Folder, InstallNew, InstallOver, RestoreNew, RestoreOver};

impl Command {
    pub const EACH: [Self; 7] = [Folder, File, Backup, InstallNew, InstallOver, RestoreNew, RestoreOver];
}

/// A chain, and databases to begin with.
pub struct Files {
    pub genesis: Genesis,
    /// The rows of the chain's database, and of one that began with a snapshot of it.
    whole: Vec<String>,
    begun: Vec<String>,
    /// The rows of what is replaced.
    empty: Vec<String>,
    short: Vec<String>,
}

fn source(root: &Path) -> PathBuf {
    root.join("source/chain.db")
}

/// Where a command's result is.
fn place(root: &Path, command: Command) -> PathBuf {
    root.join(match command {
        Folder => "out/folder",
        File => "out/one.snapshot",
        Backup => "out/backup.db",
        InstallNew => "made/by/install/chain.db",
        InstallOver => "over/chain.db",
        RestoreNew => "made/by/restore/chain.db",
        RestoreOver => "old/chain.db",
    })
}

/// Writes a database of so many blocks as a process leaves it that is killed: its log is beside it.
async fn fill(path: &Path, genesis: &Genesis, sample: &mut Sample, blocks: usize) {
    let scratch = folder();
    let open =
        || Ledger::open(LedgerOptions::new(scratch.path().join("chain.db"), genesis.clone()), Vec::new()).unwrap();
    let mut ledger = open();
    // The last block alone is in the log: played into another database, it would make neither.
    for some in [blocks.saturating_sub(1), blocks.min(1)] {
        let some = verify::verify_all(sample.blocks(some, 3), genesis).into_iter().map(Result::unwrap).collect();
        ledger.stop();
        drop(ledger);
        ledger = open();
        assert!(ledger.import(some).await.iter().all(Result::is_ok));
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("chain.db{suffix}");
        // Where nothing was written since it was opened there is no log.
        let copied = std::fs::copy(scratch.path().join(&name), path.with_file_name(name));
        assert!(copied.is_ok() || blocks == 0, "{copied:?}");
    }
    ledger.stop();
}

impl Files {
    /// Puts what the commands begin with into a folder.
    pub async fn new(root: &Path) -> Self {
        let mut sample = Sample::new(5, 12);
        let genesis = (**sample.genesis()).clone();
        fill(&place(root, InstallOver), &genesis, &mut sample, 0).await;
        fill(&source(root), &genesis, &mut sample, 30).await;
        fill(&place(root, RestoreOver), &genesis, &mut Sample::new(5, 12), 4).await;
        std::fs::create_dir(root.join("out")).unwrap();
        // What comes of it, on a copy.
        let mut this = Self { genesis, whole: vec![], begun: vec![], empty: vec![], short: vec![] };
        let copy = folder();
        copy_tree(root, copy.path());
        let at = |command| rows(&place(copy.path(), command));
        (this.empty, this.short, this.whole) = (at(InstallOver), at(RestoreOver), rows(&source(copy.path())));
        for command in Command::EACH {
            this.run(command, copy.path()).unwrap();
        }
        this.begun = at(InstallNew);
        for command in Command::EACH {
            this.assert_whole(command, copy.path(), "at first");
        }
        this
    }

    /// Runs a command, as its user does. Errors: what that reads.
    pub fn run(&self, command: Command, root: &Path) -> Result<(), String> {
        let out = place(root, command);
        let open = |from| Snapshot::open(&place(root, from));
        let put = |snapshot: Result<Snapshot, SnapshotError>| {
            install(&snapshot?, &out, &self.genesis, Time::now(), |_| {}).map(drop)
        };
        let options = ExportOptions { blocks: 5, chunk_bytes: 1_500, height: None };
        let export = || database::export(&source(root), &self.genesis, options, &out, |_| true).map(drop);
        let restore = || database::restore(&place(root, Backup), &out, &self.genesis, false).map(drop);
        match command {
            Folder | File => export().map_err(|error| error.to_string()),
            Backup => database::backup(&source(root), &out).map(drop).map_err(|error| error.to_string()),
            InstallNew => put(open(Folder)).map_err(|error| error.to_string()),
            InstallOver => put(open(File)).map_err(|error| error.to_string()),
            RestoreNew | RestoreOver => restore().map_err(|error| error.to_string()),
        }
    }

    /// Whether a command's result is there. Whatever has its name is whole; where it replaces something, that is there
    /// whole, or kept beside what took its place.
    pub fn is_done(&self, command: Command, root: &Path, how: &str) -> bool {
        let out = place(root, command);
        let how = format!("{how}: {command:?}");
        if command == RestoreOver || command == InstallOver {
            let (old, new) = match command {
                RestoreOver => (&self.short, &self.whole),
                _ => (&self.empty, &self.begun),
            };
            assert!(out.exists(), "{how}: nothing is there");
            let found = rows(&out);
            assert_eq!(integrity(&out), "ok", "{how}");
            assert!(found == *old || found == *new, "{how}: neither the old one nor the new one: {:?}", found.last());
            if found == *new && command == RestoreOver {
                let kept: Vec<_> = list(out.parent().unwrap()).into_iter().filter(|name| is_kept(name)).collect();
                let is_old = |name: &String| rows(&out.with_file_name(name)) == *old;
                assert!(kept.iter().any(is_old), "{how}: the database that was there is lost, {kept:?} is left");
            }
            return found == *new;
        }
        if out.exists() {
            self.assert_whole(command, root, &how);
        }
        out.exists()
    }

    fn assert_whole(&self, command: Command, root: &Path, how: &str) {
        let out = place(root, command);
        match command {
            Folder | File => {
                let read = Snapshot::open(&out)
                    .and_then(|snapshot| load(&snapshot, &self.genesis, Time::now(), |_| {}, |_| Ok(())));
                assert!(read.is_ok_and(|head| head.height == 30), "{how}");
            }
            Backup => {
                let (dir, again) = (folder(), "again.db");
                database::restore(&out, &dir.path().join(again), &self.genesis, false)
                    .unwrap_or_else(|error| panic!("{how}: {error}"));
                assert_eq!(rows(&dir.path().join(again)), self.whole, "{how}");
            }
            InstallNew | InstallOver => assert_eq!(rows(&out), self.begun, "{how}"),
            RestoreNew | RestoreOver => assert_eq!(rows(&out), self.whole, "{how}"),
        }
    }

    /// Runs a command that is not done, once more; then it is.
    pub fn again(&self, command: Command, root: &Path, how: &str) {
        let checksum = checksum_path(&place(root, command));
        if command == Backup && checksum.exists() {
            // A backup is not written over somebody's checksum: the operator is told which file is in the way.
            let told = self.run(command, root).unwrap_err();
            assert!(told.contains(&format!("{} is there already", checksum.display())), "{how}: {told}");
            std::fs::remove_file(&checksum).unwrap();
        }
        self.run(command, root).unwrap_or_else(|error| panic!("{how}: {command:?}, once more: {error}"));
        assert!(self.is_done(command, root, how), "{how}: {command:?}, once more: it is not there");
    }

    /// Runs what is not done; then all is there, and nothing else.
    pub fn finish(&self, root: &Path, how: &str) {
        for command in Command::EACH {
            if !self.is_done(command, root, how) {
                self.again(command, root, how);
            }
        }
        let is_finished = |name: &String| !name.ends_with(".stage") && !name.contains(".part");
        let left: Vec<_> = list(&root.join("out")).into_iter().filter(is_finished).collect();
        assert_eq!(left, ["backup.db", "backup.db.sha256", "folder", "one.snapshot"], "{how}");
    }
}

/// The name of a database that was replaced.
fn is_kept(name: &str) -> bool {
    name.starts_with("chain.db.old-") && !name.ends_with("-wal") && !name.ends_with("-shm")
}
