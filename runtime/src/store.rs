//! What the host keeps on disk, in its own directory: components by digest, and what last worked.
//!
//! The plugin directory belongs to the operator and is only read.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{digest::Digest, rollout::Kept};

/// Components by digest and the record of what last worked.
pub(crate) struct Store {
    components: PathBuf,
    record_path: PathBuf,
    record: Record,
}

/// What last worked; survives restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    /// By path within the plugin directory: the component that was last taken from there.
    files: BTreeMap<String, Digest>,
    /// By slot: what served well, and what happened to its generations.
    slots: BTreeMap<String, SlotRecord>,
}

/// What is known of one slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotRecord {
    /// What stood its probation last, or was the first that served.
    pub(crate) good: Option<Good>,
    /// What was that before.
    pub(crate) before: Option<Good>,
    /// Its generations and quarantine.
    pub(crate) machine: Kept,
}

/// A component that served in a slot, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Good {
    pub(crate) plugin: String,
    pub(crate) digest: Digest,
    /// What it was configured with; none in records of older versions, which did not keep it.
    #[serde(default)]
    pub(crate) settings: Option<Value>,
}

impl Good {
    /// Whether `other` is the same but for a configuration that is not known.
    fn is_less_of(&self, other: &Good) -> bool {
        self.settings.is_none() && (&self.plugin, self.digest) == (&other.plugin, other.digest)
    }
}

impl Store {
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Store> {
        let components = state_dir.join("components");
        private_dir(&components)?;
        let record_path = state_dir.join("record.json");
        let record = match fs::read(&record_path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                // Losing it means that nothing is known to have worked, or to have done harm; it is put aside for a look.
                let aside = record_path.with_extension("json.damaged");
                let _ = fs::rename(&record_path, &aside);
                let (path, aside) = (record_path.display(), aside.display());
                tracing::error!(%path, %aside, %error, "damaged: starting without last-known-good and quarantine");
                Record::default()
            }),
            Err(_) => Record::default(),
        };
        Ok(Store { components, record_path, record })
    }

    /// Keeps `bytes` under their digest, and beside them the signature, where there is one.
    pub(crate) fn keep(&self, bytes: &[u8], digest: Digest, signature: Option<&[u8]>) {
        let (path, signature_path) = (self.path(digest), self.signature_path(digest));
        // A former signature stays where there is none now: it is one of the same bytes, and verified before each use.
        let signature = signature.filter(|signature| fs::read(&signature_path).ok().as_deref() != Some(*signature));
        let component = Some(bytes).filter(|_| !path.exists());
        for (path, content) in [(&path, component), (&signature_path, signature)] {
            if let Some(content) = content
                && let Err(error) = write_atomically(path, &[content])
            {
                tracing::warn!(path = %path.display(), %error, "cannot keep a component");
            }
        }
    }

    /// The kept bytes of `digest`, if they are there and whole.
    pub(crate) fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(digest)).ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
    }

    pub(crate) fn last_good_of_file(&self, path: &str) -> Option<Digest> {
        self.record.files.get(path).copied()
    }

    pub(crate) fn slot(&self, slot: &str) -> SlotRecord {
        self.record.slots.get(slot).cloned().unwrap_or_default()
    }

    pub(crate) fn file_worked(&mut self, path: &str, digest: Digest) {
        if self.record.files.insert(path.to_owned(), digest) != Some(digest) {
            self.save();
        }
    }

    pub(crate) fn file_gone(&mut self, path: &str) {
        if self.record.files.remove(path).is_some() {
            self.save();
        }
    }

    /// Keeps what became of a slot's generations, and of what serves it, if that is proven or the first.
    pub(crate) fn slot_changed(&mut self, slot: &str, machine: Kept, live: Option<(Good, bool)>) {
        let record = self.record.slots.entry(slot.to_owned()).or_default();
        let former = record.clone();
        record.machine = machine;
        if let Some((live, proven)) = live
            && (proven || record.good.is_none())
            && record.good.as_ref() != Some(&live)
        {
            let former = record.good.replace(live);
            let is_news =
                record.good.as_ref().zip(former.as_ref()).is_none_or(|(live, former)| !former.is_less_of(live));
            if is_news {
                record.before = former;
            }
        }
        if *record != former {
            self.save();
        }
    }

    /// Whether the record names `digest` (as text).
    pub(crate) fn names(&self, digest: &str) -> bool {
        let record = &self.record;
        let goods = record.slots.values().flat_map(|slot| [&slot.good, &slot.before]).flatten();
        let mut digests = record.files.values().chain(goods.map(|good| &good.digest));
        digests.any(|known| known.to_string() == digest)
    }

    /// Drops components that the record does not name.
    pub(crate) fn forget_others(&self) {
        let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
        remove_files(&self.components, |name| !self.names(&stem(name)));
    }

    fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.record).expect("maps with text keys are JSON");
        if let Err(error) = write_atomically(&self.record_path, &[&text]) {
            tracing::warn!(path = %self.record_path.display(), %error, "cannot save what worked and what did harm");
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.components.join(format!("{digest}.wasm"))
    }

    /// Where the signature of the kept component `digest` is, if it has one.
    pub(crate) fn signature_path(&self, digest: Digest) -> PathBuf {
        self.components.join(format!("{digest}.sig"))
    }
}

/// Makes a directory that only this user can read and write: compiled code is loaded from it.
pub(crate) fn private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).with_context(|| format!("creating {}", path.display()))
}

/// Writes `parts` one after the other to a file that is either there completely or not at all.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = (|| {
        let mut file = fs::File::create(&part)?;
        for bytes in parts {
            file.write_all(bytes)?;
        }
        file.sync_all()?;
        fs::rename(&part, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Removes the files of `dir` whose name is unwanted. What cannot be removed stays.
pub(crate) fn remove_files(dir: &Path, unwanted: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_none_or(&unwanted) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
