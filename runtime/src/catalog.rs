//! Which plugins the plugin directory holds: path -> file, and from that name -> plugin. No I/O but the scan itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    digest::Digest,
    load::{Plugin, Rejection},
    signature::Beside,
};

/// Folders below the plugin directory that are looked into, so that a link to a parent folder ends.
const DEPTH_MAX: usize = 8;
/// Refused files that are named where a plugin is missing.
const REFUSED_MAX: usize = 3;

/// What a file looks like from outside; when it is the same, the bytes very likely are too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    bytes: u64,
    pub(crate) modified: SystemTime,
    /// When anything about it last changed; the platform's own, which copying tools cannot set.
    changed: SystemTime,
    inode: u64,
}

impl Stamp {
    pub(crate) fn of(metadata: &fs::Metadata) -> Stamp {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt as _;
            let seconds = Duration::from_secs(metadata.ctime().try_into().unwrap_or(0));
            let rest = Duration::from_nanos(metadata.ctime_nsec().try_into().unwrap_or(0));
            (SystemTime::UNIX_EPOCH + seconds + rest, metadata.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = (modified, 0);
        Stamp { bytes: metadata.len(), modified, changed, inode }
    }

    /// How long ago the file last changed; none when it claims to be from the future.
    pub(crate) fn age(&self, now: SystemTime) -> Option<Duration> {
        now.duration_since(self.changed.max(self.modified)).ok()
    }
}

/// A component and the signature beside it, from outside: when either changed, both are looked at anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamps {
    pub(crate) component: Stamp,
    /// None: there is no such file.
    pub(crate) signature: Option<Stamp>,
}

/// One file of the plugin directory.
pub(crate) struct File {
    pub(crate) digest: Option<Digest>,
    /// The signature beside the bytes, as it was read with them.
    pub(crate) beside: Beside,
    pub(crate) stamps: Stamps,
    /// Id of the key that signed the bytes there now; none where they are not taken, or need no signature.
    pub(crate) signed_by: Option<String>,
    /// What the bytes there now are.
    pub(crate) now: Result<Arc<Plugin>, Rejection>,
    /// What last was good there; serves on while the bytes there now are not.
    pub(crate) good: Option<Arc<Plugin>>,
}

/// A file of the plugin directory as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginFile {
    /// The path within the plugin directory.
    pub path: PathBuf,
    /// SHA-256 of the bytes; none when they could not be read.
    pub digest: Option<Digest>,
    /// The kind.
    pub kind: Option<&'static str>,
    /// The plugin's name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its summary.
    pub summary: Option<String>,
    /// Id of the trusted key that signed the bytes, 16 hex digits as minisign prints them; none where no key is trusted,
    /// nobody signed, or the signature is not accepted.
    pub signed_by: Option<String>,
    /// Why it is not taken; none when it is.
    pub rejection: Option<Rejection>,
    /// The newer file with a plugin of the same kind and name, which serves instead.
    pub shadowed_by: Option<PathBuf>,
}

/// Two files with plugins of one kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Duplicate {
    pub(crate) name: Arc<str>,
    pub(crate) serves: PathBuf,
    pub(crate) ignored: PathBuf,
}

/// What the plugin directory holds.
#[derive(Default)]
pub(crate) struct Catalog {
    files: BTreeMap<PathBuf, File>,
}

impl Catalog {
    pub(crate) fn file(&self, path: &Path) -> Option<&File> {
        self.files.get(path)
    }

    pub(crate) fn set(&mut self, path: PathBuf, file: File) {
        self.files.insert(path, file);
    }

    /// How long ago the youngest file of plugin `name` changed.
    pub(crate) fn age(&self, name: &str, now: SystemTime) -> Option<Duration> {
        let of_name = |file: &&File| file.good.as_ref().is_some_and(|plugin| *plugin.name == *name);
        self.files.values().filter(of_name).filter_map(|file| file.stamps.component.age(now)).min()
    }

    pub(crate) fn touch(&mut self, path: &Path, stamps: Stamps) {
        if let Some(file) = self.files.get_mut(path) {
            file.stamps = stamps;
        }
    }

    /// Forgets every file that is not in `seen` and returns them.
    pub(crate) fn retain(&mut self, seen: &BTreeSet<PathBuf>) -> Vec<(PathBuf, File)> {
        let gone = |path: &PathBuf| !seen.contains(path);
        let paths: Vec<PathBuf> = self.files.keys().filter(|path| gone(path)).cloned().collect();
        paths.into_iter().filter_map(|path| self.files.remove_entry(&path)).collect()
    }

    /// The plugin of this kind and name: the newest file's.
    pub(crate) fn plugin(&self, kind: &str, name: &str) -> Option<&Arc<Plugin>> {
        let (_, file) = newest(self.holders(kind, name))?;
        file.good.as_ref()
    }

    /// What is wrong with the bytes that the file of this plugin holds now.
    pub(crate) fn rejection(&self, kind: &str, name: &str) -> Option<&Rejection> {
        let (_, file) = newest(self.holders(kind, name))?;
        file.now.as_ref().err()
    }

    /// What there is to say of refused files where none holds the plugin `name`: those of that file name, else all. Begins
    /// with a semicolon; empty where nothing was refused.
    pub(crate) fn refused_for(&self, name: &str) -> String {
        let refused = || self.files.iter().filter(|(_, file)| file.good.is_none());
        let is_named = |path: &Path| path.file_stem().is_some_and(|stem| stem == name);
        let named = refused().any(|(path, _)| is_named(path));
        let told =
            refused().filter(|(path, _)| !named || is_named(path)).take(REFUSED_MAX).filter_map(|(path, file)| {
                let Rejection { stage, reason, .. } = file.now.as_ref().err()?;
                Some(format!("; {} is refused: {stage}: {reason}", path.display()))
            });
        told.collect()
    }

    /// The names of all plugins of `kind`.
    pub(crate) fn names(&self, kind: &str) -> BTreeSet<String> {
        self.files
            .values()
            .filter_map(|file| file.good.as_ref())
            .filter(|plugin| plugin.kind == kind)
            .map(|plugin| plugin.name.to_string())
            .collect()
    }

    /// All pairs of a file that serves and one that it hides.
    pub(crate) fn duplicates(&self) -> BTreeSet<Duplicate> {
        let ignored = |(path, file): (&PathBuf, &File)| {
            let plugin = file.good.as_ref()?;
            let (serves, _) = newest(self.holders(plugin.kind, &plugin.name))?;
            (serves != path).then(|| Duplicate {
                name: Arc::clone(&plugin.name),
                serves: serves.clone(),
                ignored: path.clone(),
            })
        };
        self.files.iter().filter_map(ignored).collect()
    }

    pub(crate) fn list(&self) -> Vec<PluginFile> {
        let duplicates = self.duplicates();
        let shadowed_by = |path: &PathBuf| {
            let mut duplicates = duplicates.iter();
            let duplicate = duplicates.find(|duplicate| duplicate.ignored == *path)?;
            Some(duplicate.serves.clone())
        };
        self.files
            .iter()
            .map(|(path, file)| {
                let plugin = file.good.as_deref();
                let description = plugin.map(|plugin| &plugin.description);
                PluginFile {
                    path: path.clone(),
                    digest: file.digest,
                    kind: plugin.map(|plugin| plugin.kind),
                    name: description.map(|description| description.name.clone()),
                    version: description.map(|description| description.version.clone()),
                    summary: description.map(|description| description.summary.clone()),
                    signed_by: file.signed_by.clone(),
                    rejection: file.now.as_ref().err().cloned(),
                    shadowed_by: shadowed_by(path),
                }
            })
            .collect()
    }

    fn holders(&self, kind: &str, name: &str) -> impl Iterator<Item = (&PathBuf, &File)> {
        self.files.iter().filter(move |(_, file)| {
            let mut plugin = file.good.iter();
            plugin.any(|plugin| plugin.kind == kind && *plugin.name == *name)
        })
    }
}

/// The newest by modification time; of equals the last by path, so that the choice is the same on every scan.
fn newest<'a>(files: impl Iterator<Item = (&'a PathBuf, &'a File)>) -> Option<(&'a PathBuf, &'a File)> {
    files.max_by_key(|(path, file)| (file.stamps.component.modified, *path))
}

/// The `*.wasm` files below `dir`, by path within it, with their stamps. Hidden files and folders are left out: tools
/// write there before they rename. Errors: the directory itself cannot be read.
pub(crate) fn scan(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, Stamps>> {
    let mut found = BTreeMap::new();
    walk(dir, Path::new(""), 0, &mut found)?;
    Ok(found)
}

fn walk(dir: &Path, within: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamps>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // What vanishes, or cannot be read, between listing and asking is not there.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        let path = within.join(&name);
        if metadata.is_dir() && depth < DEPTH_MAX {
            let _ = walk(&entry.path(), &path, depth + 1, found);
        } else if metadata.is_file() && is_component_path(&path) {
            let signature = fs::metadata(signature_path(&entry.path())).ok();
            let signature = signature.filter(fs::Metadata::is_file).map(|metadata| Stamp::of(&metadata));
            found.insert(path, Stamps { component: Stamp::of(&metadata), signature });
        }
    }
    Ok(())
}

/// Whether a path names a component.
pub(crate) fn is_component_path(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wasm")
}

/// The signature file of a component: `NAME.wasm.sig` beside `NAME.wasm`.
pub(crate) fn signature_path(component: &Path) -> PathBuf {
    component.with_added_extension("sig")
}

/// Whether a path names a component or the signature of one.
pub(crate) fn is_watched_path(path: &Path) -> bool {
    let component = if path.extension().is_some_and(|extension| extension == "sig") { path.file_stem() } else { None };
    is_component_path(component.map_or(path, Path::new))
}
