//! The plugins of this repository: which there are, whether they have to be built again, and who builds them; and the
//! libraries that they have in common.

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

/// The folder, beside those of other compilers' and of authors' crates, where cargo compiles the repository's guests.
const GUESTS: &str = "guests";

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
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn here() -> Result<Self> {
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

    /// Where guests are compiled; a folder for each compiler is in it.
    pub(crate) fn build_home(&self) -> PathBuf {
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
        for (name, output) in guests.iter().zip(self.outputs(guests)) {
            finish(&self.compile(&toolchain, sysroot.as_deref(), &home, name)?, &output)?;
        }
        self.remove_strangers(guests)
    }

    /// Compiles the plugin `name` and, where that was not done yet, the libraries that it uses.
    fn compile(&self, toolchain: &Toolchain, sysroot: Option<&Path>, home: &Path, name: &str) -> Result<CoreModule> {
        let arguments = ["--profile=guest".to_owned()];
        cargo::build(toolchain, sysroot, &self.root, &home.join(GUESTS), Some(name), &arguments)
    }

    /// The folder in `home` where the libraries are that every guest uses, compiled if they have to be.
    pub(crate) fn libraries(&self, toolchain: &Toolchain, sysroot: Option<&Path>, home: &Path) -> Result<PathBuf> {
        // Each guest uses the SDK, and with it all the rest.
        let guests = self.guests()?;
        self.compile(toolchain, sysroot, home, guests.first().context("plugins/ holds no guest")?)?;
        Ok(home.join(GUESTS))
    }

    /// Names of the packages that the repository's guests may use and that are no part of it: the same bytes wherever
    /// they are compiled.
    pub(crate) fn foreign_packages(&self) -> Result<BTreeSet<String>> {
        let path = self.root.join("Cargo.lock");
        let lock = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(foreign_packages(&lock))
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

/// The packages of a lock file that have a source: those by path have none.
fn foreign_packages(lock: &str) -> BTreeSet<String> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    packages.filter(|package| value(package, "source").is_some()).filter_map(|package| value(package, "name")).collect()
}

/// Encodes, labels and writes what cargo has linked.
pub(crate) fn finish(module: &CoreModule, out: &Path) -> Result<()> {
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
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read: closing the file gives the lock back")] File);

impl Lock {
    pub(crate) fn take(home: &Path) -> Result<Self> {
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
    fn every_guest_of_the_repository_is_found() {
        let guests = Workspace::here().unwrap().guests().unwrap();
        assert!(guests.contains("token-bucket") && guests.contains("faults-sync"), "{guests:?}");
        assert!(!guests.contains("sdk") && !guests.contains("build"), "{guests:?}");
    }

    #[test]
    fn packages_of_the_repository_are_not_foreign() {
        let foreign = Workspace::here().unwrap().foreign_packages().unwrap();
        assert!(foreign.contains("serde") && foreign.contains("wit-bindgen"), "{foreign:?}");
        for own in ["tenon", "tenon-sdk", "token-bucket"] {
            assert!(!foreign.contains(own), "{own}");
        }
    }
}
