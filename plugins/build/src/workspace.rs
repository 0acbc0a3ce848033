//! The plugins of this repository: which there are, whether they have to be built again, and who builds them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, CoreModule};
use crate::component::{encode, label};
use crate::sysroot;
use crate::toolchain::Toolchain;

/// Builds every plugin of this repository to `target/plugins/NAME.wasm`, and gives the paths, sorted.
///
/// Does nothing when no source has changed since the last time. Any number of processes may call this at once: one
/// builds, the others wait. A file appears complete or not at all, and stays untouched when its bytes would be the same.
///
/// Errors: no toolchain (the text says what to install), or a guest does not compile or fit its world.
pub fn build_all() -> Result<Vec<PathBuf>> {
    let workspace = Workspace::here()?;
    let guests = workspace.guests()?;
    let sources = workspace.sources()?;
    if workspace.is_built(&guests, &sources) {
        return Ok(workspace.outputs(&guests));
    }
    let _lock = Lock::take(&workspace.build_home())?;
    // Another process may have built them while this one waited.
    if !workspace.is_built(&guests, &sources) {
        workspace.build(&guests)?;
        write_if_changed(&workspace.stamp(), sources.as_bytes())?;
    }
    Ok(workspace.outputs(&guests))
}

/// The component of the plugin `name`, built if it has to be: for tests. The work is done once in a process.
///
/// # Panics
/// When the plugins cannot be built or there is none of that name; the message says why and what to do.
pub fn path(name: &str) -> PathBuf {
    static BUILT: OnceLock<Result<Vec<PathBuf>, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_all().map_err(|error| format!("{error:#}")));
    let paths = built.as_ref().unwrap_or_else(|error| panic!("cannot build the plugins: {error}"));
    let found = paths.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    found.cloned().unwrap_or_else(|| panic!("no plugin {name} among {paths:?}"))
}

/// Builds an author's own crate in `dir` to the file `out`, or to `out/NAME.wasm` where `out` is a folder.
///
/// The crate is a `cdylib` that uses `tenon-sdk`; its own workspace and lock file hold.
pub fn build_dir(dir: &Path, out: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?;
    ensure!(dir.join("Cargo.toml").is_file(), "no Cargo.toml in {}", dir.display());
    let toolchain = Toolchain::find()?;
    // With the repository at hand, its standard library and its libraries as compiled for guests are shared.
    let home = match Workspace::here() {
        Ok(workspace) => workspace.build_home(),
        Err(_) => dir.join("target/wasm"),
    };
    // Held to the end: two crates of one name would write the same file.
    let _lock = Lock::take(&home)?;
    let home = home.join(toolchain.key());
    let sysroot = sysroot::prepare(&toolchain, &home)?;
    let arguments: Vec<String> = std::iter::once("--profile=guest".to_owned()).chain(guest_profile()).collect();
    let module = cargo::build(&toolchain, sysroot.as_deref(), &dir, &home.join("guests"), None, &arguments)?;
    let out = if out.is_dir() { out.join(format!("{}.wasm", module.name)) } else { out.to_owned() };
    finish(&module, &out)?;
    Ok(out)
}

/// The profile `guest` of the repository's manifest, for crates elsewhere. The same to the letter: cargo shares what it
/// has compiled only between equal profiles.
fn guest_profile() -> impl Iterator<Item = String> {
    const PROFILE: [&str; 11] = [
        r#"inherits="release""#,
        "opt-level=3",
        "lto=true",
        "codegen-units=1",
        r#"panic="abort""#,
        r#"strip="symbols""#,
        r#"package.serde_json.opt-level="z""#,
        r#"package.serde_core.opt-level="z""#,
        r#"package.zmij.opt-level="z""#,
        r#"package.itoa.opt-level="z""#,
        r#"package.memchr.opt-level="z""#,
    ];
    PROFILE.into_iter().map(|setting| format!("--config=profile.guest.{setting}"))
}

/// A number that differs when `bytes` do, for file names and stamps; FNV-1a.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The folder of the repository that this crate was compiled in.
///
/// Errors: it is not there (any more); this program was installed from elsewhere.
pub(crate) fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().context("the repository that this program was built in is gone")?;
    ensure!(root.join("wit/host/host.wit").is_file(), "{} is not Tenon's repository", root.display());
    Ok(root)
}

/// This repository.
struct Workspace {
    root: PathBuf,
}

impl Workspace {
    fn here() -> Result<Self> {
        Ok(Self { root: root()? })
    }

    /// Names of the plugins: the folders of `plugins/` whose crate is a `cdylib`. A crate is called like its folder.
    fn guests(&self) -> Result<BTreeSet<String>> {
        let mut guests = BTreeSet::new();
        for entry in fs::read_dir(self.root.join("plugins")).context("listing plugins/")? {
            let dir = entry?.path();
            let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
            if manifest.contains("cdylib") {
                guests.insert(dir.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        Ok(guests)
    }

    fn build_home(&self) -> PathBuf {
        self.root.join("target/wasm")
    }

    fn stamp(&self) -> PathBuf {
        self.build_home().join("stamp")
    }

    fn outputs(&self, guests: &BTreeSet<String>) -> Vec<PathBuf> {
        guests.iter().map(|name| self.root.join("target/plugins").join(format!("{name}.wasm"))).collect()
    }

    fn is_built(&self, guests: &BTreeSet<String>, sources: &str) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == sources)
            && self.outputs(guests).iter().all(|path| path.is_file())
    }

    /// Every file that the components are made of, with its size and time of change: equal text, nothing to do.
    fn sources(&self) -> Result<String> {
        let mut lines = Vec::new();
        for name in ["plugins", "wit", "Cargo.toml", "Cargo.lock"] {
            self.list(&self.root.join(name), &mut lines)?;
        }
        lines.sort();
        Ok(lines.concat())
    }

    fn list(&self, path: &Path, lines: &mut Vec<String>) -> Result<()> {
        let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        if metadata.is_dir() {
            // Tests are no part of a component, and change most often.
            if path.ends_with("tests") {
                return Ok(());
            }
            for entry in fs::read_dir(path)? {
                self.list(&entry?.path(), lines)?;
            }
            return Ok(());
        }
        let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = path.strip_prefix(&self.root).unwrap_or(path);
        lines.push(format!("{} {} {changed}\n", name.display(), metadata.len()));
        Ok(())
    }

    fn build(&self, guests: &BTreeSet<String>) -> Result<()> {
        let toolchain = Toolchain::find()?;
        let home = self.build_home().join(toolchain.key());
        let sysroot = sysroot::prepare(&toolchain, &home)?;
        let target_dir = home.join("guests");
        let arguments = ["--profile=guest".to_owned()];
        for (name, output) in guests.iter().zip(self.outputs(guests)) {
            let module = cargo::build(&toolchain, sysroot.as_deref(), &self.root, &target_dir, Some(name), &arguments)?;
            finish(&module, &output)?;
        }
        self.remove_strangers(guests)
    }

    /// Components of plugins that are no more would else be installed and tested for ever.
    fn remove_strangers(&self, guests: &BTreeSet<String>) -> Result<()> {
        let keep = self.outputs(guests);
        for entry in fs::read_dir(self.root.join("target/plugins"))? {
            let path = entry?.path();
            if !keep.contains(&path) {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Encodes, labels and writes what cargo has linked.
fn finish(module: &CoreModule, out: &Path) -> Result<()> {
    let core = fs::read(&module.path).with_context(|| format!("reading {}", module.path.display()))?;
    let component = encode(&core).with_context(|| format!("making a component of {}", module.name))?;
    write_if_changed(out, &label(&component, &module.name, &module.version)?)
}

/// Replaces the file at `path` in one step, unless it holds these bytes already.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let write = || -> Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let unfinished = path.with_extension(format!("unfinished-{}", std::process::id()));
        File::create(&unfinished)?.write_all(bytes)?;
        Ok(fs::rename(&unfinished, path)?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Keeps other processes out while it lives; the system lets go of it when its process ends, however that ends.
struct Lock(#[expect(dead_code, reason = "held, not read: closing the file gives the lock back")] File);

impl Lock {
    fn take(home: &Path) -> Result<Self> {
        fs::create_dir_all(home).with_context(|| format!("creating {}", home.display()))?;
        let path = home.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_elsewhere_get_the_profile_of_the_manifest() {
        let manifest = fs::read_to_string(root().unwrap().join("Cargo.toml")).unwrap();
        let (_, guest) = manifest.split_once("[profile.guest]\n").unwrap();
        let said = guest.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with('['));
        let said: Vec<String> = said.map(|line| line.replace(' ', "")).collect();
        let own: Vec<String> = guest_profile()
            .map(|setting| setting.replace("--config=profile.guest.", "").replace("package.", ""))
            .collect();
        assert_eq!(own, said);
    }

    #[test]
    fn every_guest_of_the_repository_is_found() {
        let guests = Workspace::here().unwrap().guests().unwrap();
        assert!(guests.contains("token-bucket") && guests.contains("faults-sync"), "{guests:?}");
        assert!(!guests.contains("sdk") && !guests.contains("build"), "{guests:?}");
    }
}
