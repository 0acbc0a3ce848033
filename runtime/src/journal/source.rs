//! Where a journal is: the files of one slot, found by a path that an operator has typed.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    SlotInfo,
    format::{FRAME_BYTES, MAGIC, MARKER, SLOT, find, frame, json},
    writer::segments,
};
use crate::limits::Limits;

/// A journal on disk: a directory of segments, or one file of one segment or several, one after the other.
#[derive(Clone, Debug)]
pub struct Source {
    files: Vec<PathBuf>,
    about: SlotInfo,
}

/// Why there is no journal at a path.
#[derive(Debug, thiserror::Error)]
pub enum NoJournal {
    /// It cannot be read; most often it is not there.
    #[error("reading {}: {error}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A journal's place, but no call has come to it: a directory that is empty, or segments that were only begun.
    #[error("nothing has been recorded in {} yet", .0.display())]
    Nothing(PathBuf),
    /// The folder above the slots'.
    #[error("{} has the journals of several slots, name one: {}", path.display(), slots.join(", "))]
    Several {
        /// The folder.
        path: PathBuf,
        /// The folders in it.
        slots: Vec<String>,
    },
    /// Something else.
    #[error("{} is not a journal, and holds none", .0.display())]
    Other(PathBuf),
}

impl Source {
    /// Finds the files and the slot that they are of.
    ///
    /// Errors: nothing there can be read as a journal.
    pub fn open(path: &Path) -> Result<Source, NoJournal> {
        let unreadable = |path: &Path, error| NoJournal::Unreadable { path: path.to_owned(), error };
        let is_dir = fs::metadata(path).map_err(|error| unreadable(path, error))?.is_dir();
        let files: Vec<PathBuf> = match is_dir {
            true => {
                segments(path).map_err(|error| unreadable(path, error))?.into_iter().map(|(_, path)| path).collect()
            }
            false => vec![path.to_owned()],
        };
        let mut is_begun = true;
        for file in &files {
            let bytes = match fs::read(file) {
                // The ring has gone on meanwhile.
                Err(error) if is_dir && error.kind() == io::ErrorKind::NotFound => continue,
                read => read.map_err(|error| unreadable(file, error))?,
            };
            if let Some(about) = first_slot(&bytes) {
                return Ok(Source { files, about });
            }
            is_begun &= is_cut_beginning(&bytes);
        }
        let path = path.to_owned();
        if !files.is_empty() {
            return Err(if is_begun { NoJournal::Nothing(path) } else { NoJournal::Other(path) });
        }
        let entries: Vec<PathBuf> =
            fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let folders = entries.iter().filter(|entry| entry.is_dir());
        let names = folders.filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()));
        let mut slots: Vec<String> = names.collect();
        slots.sort();
        Err(match (entries.is_empty(), slots.is_empty()) {
            (true, _) => NoJournal::Nothing(path),
            (false, false) => NoJournal::Several { path, slots },
            (false, true) => NoJournal::Other(path),
        })
    }

    /// The slot that the first readable segment is of.
    pub fn about(&self) -> &SlotInfo {
        &self.about
    }

    /// What a plugin might use in the slot, as the newest file says at its beginning; none where that is of an older version.
    pub fn limits(&self) -> Option<Limits> {
        // A segment that the ring has dropped meanwhile is one less.
        let newest = self.files.iter().rev().find_map(|file| beginning(file));
        newest.and_then(|slot| slot.limits)
    }

    /// Its segments, the oldest first.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Bytes in which the description of a segment's slot is looked for: several times what it takes.
const BEGINNING_BYTES: u64 = 4_096;

/// What the segment at `path` says of itself at its beginning, where that can be read.
pub(super) fn beginning(path: &Path) -> Option<SlotInfo> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(BEGINNING_BYTES).read_to_end(&mut bytes).ok()?;
    first_slot(&bytes)
}

fn first_slot(bytes: &[u8]) -> Option<SlotInfo> {
    let mut at = 0;
    loop {
        at += find(&bytes[at..], &MARKER)?;
        if let Some((SLOT, length)) = frame(&bytes[at..])
            && let Some(about) = json(bytes[at + FRAME_BYTES..].get(..length)?)
        {
            return Some(about);
        }
        at += 1;
    }
}

/// Whether `bytes` are the beginning of a segment up to somewhere within its first frame: its writer was killed there.
fn is_cut_beginning(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return MAGIC.starts_with(bytes);
    };
    match frame(rest) {
        Some((kind, length)) => kind == SLOT && rest.len() < FRAME_BYTES.saturating_add(length),
        None => rest.len() < FRAME_BYTES && (rest.starts_with(&MARKER) || MARKER.starts_with(rest)),
    }
}
