//! A snapshot on disk: a folder with `manifest.json` and a file for each chunk, as nodes serve it and downloads grow; or
//! all of it in one file, to be carried about. The one file begins with [`MAGIC`], the snapshot's id and the manifest's
//! length; manifest and chunks follow.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::chunk;
use super::manifest::{CHUNKS_MAX, ChunkInfo, ChunkKind, MANIFEST_BYTES_MAX, Manifest};
use super::{Progress, Result, SnapshotError, io};
use crate::chain::Hash;
use crate::storage::sync_folder;

/// The manifest's name in a folder.
pub const MANIFEST: &str = "manifest.json";
/// What the name of a snapshot in one file ends with.
pub const EXTENSION: &str = "snapshot";

const MAGIC: &[u8; 8] = b"TENONSNP";
/// Magic, id, length of the manifest.
const HEAD_BYTES: usize = 48;

/// The name of a chunk in a folder.
pub fn chunk_name(index: usize) -> String {
    format!("{index:06}.chunk")
}

/// A snapshot on disk whose manifest has been read. Its chunks are looked at when they are used.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    id: Hash,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    /// With the places where the chunks begin.
    File(PathBuf, Vec<u64>),
}

impl Snapshot {
    /// Opens a snapshot: a folder, or one file. Errors: its manifest does not hold, or the file is not as long as it says.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::open_folder(path) } else { Self::open_file(path) }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let file = path.join(MANIFEST);
        let bytes = read_bounded(&file, MANIFEST_BYTES_MAX as u64)?;
        Ok(Self { manifest: Manifest::parse(&bytes)?, id: Manifest::id(&bytes), place: Place::Folder(path.to_owned()) })
    }

    fn open_file(path: &Path) -> Result<Self> {
        let wrong = |reason: &str| SnapshotError::Manifest(format!("{}: {reason}", path.display()));
        let mut file = File::open(path).map_err(io(path))?;
        let length = file.metadata().map_err(io(path))?.len();
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).map_err(|_| wrong("no snapshot: too short"))?;
        if !head.starts_with(MAGIC) {
            return Err(wrong("no snapshot"));
        }
        let id = Hash(*head[8..].first_chunk().expect("48 bytes"));
        let size = u64::from_be_bytes(*head[40..].first_chunk().expect("48 bytes"));
        if size > MANIFEST_BYTES_MAX as u64 {
            return Err(wrong("its manifest would be larger than any"));
        }
        let mut bytes = Vec::new();
        (&mut file).take(size).read_to_end(&mut bytes).map_err(io(path))?;
        if bytes.len() as u64 != size {
            return Err(wrong("ends within its manifest"));
        }
        if Manifest::id(&bytes) != id {
            return Err(wrong("its manifest is damaged: another hash than the file begins with"));
        }
        let manifest = Manifest::parse(&bytes)?;
        let start = HEAD_BYTES as u64 + size;
        let end = start + manifest.bytes();
        if length > end {
            return Err(wrong("bytes left over after the last chunk"));
        }
        let starts = manifest.chunks.iter().scan(start, |at, info| {
            *at += info.bytes;
            Some(*at - info.bytes)
        });
        let starts = starts.collect();
        let this = Self { manifest, id, place: Place::File(path.to_owned(), starts) };
        let mut at = start;
        for (index, info) in this.manifest.chunks.iter().enumerate() {
            at += info.bytes;
            if at > length {
                return Err(this.wrong(index, format!("the file ends {} bytes before its end", at - length)));
            }
        }
        Ok(this)
    }

    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The hash of its manifest.
    pub fn id(&self) -> Hash {
        self.id
    }

    /// Chunk `index` as it is stored; not checked yet. Errors: it is missing, or has another length.
    pub fn stored(&self, index: usize) -> Result<Vec<u8>> {
        let info = &self.manifest.chunks[index];
        match &self.place {
            Place::Folder(folder) => {
                self.measured(index)?;
                read_bounded(&folder.join(chunk_name(index)), info.bytes)
            }
            Place::File(path, starts) => {
                let read = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(starts[index]))?;
                    let mut bytes = Vec::new();
                    file.take(info.bytes).read_to_end(&mut bytes)?;
                    Ok(bytes)
                };
                read().map_err(io(path))
            }
        }
    }

    /// Whether chunk `index` is there with its length. Errors: it is missing, or has another one.
    pub fn measured(&self, index: usize) -> Result<()> {
        // One file is measured as a whole when it is opened.
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        let (path, expected) = (folder.join(chunk_name(index)), self.manifest.chunks[index].bytes);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == expected => Ok(()),
            Ok(metadata) => Err(self.wrong(index, format!("{} bytes, expected {expected}", metadata.len()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.wrong(index, "is missing".into())),
            Err(error) => Err(io(&path)(error)),
        }
    }

    /// The content of chunk `index`. Errors: the chunk is not the manifest's.
    pub fn content(&self, index: usize) -> Result<Vec<u8>> {
        let stored = self.stored(index)?;
        chunk::unpack(&self.manifest.chunks[index], &stored).map_err(|reason| self.wrong(index, reason))
    }

    /// Writes all of it into one file at `path`, which must not be there; each chunk is checked on the way.
    pub fn write_file(&self, path: &Path) -> Result<()> {
        let part = suffixed(path, ".part");
        let written = self.write_part(&part).and_then(|()| put_in_place(&part, path));
        if written.is_err() {
            // What went wrong is said already.
            let _ = fs::remove_file(&part);
        }
        written
    }

    fn write_part(&self, part: &Path) -> Result<()> {
        let mut file = File::create(part).map_err(io(part))?;
        let manifest = self.manifest.to_bytes();
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(io(part));
        write(MAGIC)?;
        write(&self.id.0)?;
        write(&(manifest.len() as u64).to_be_bytes())?;
        write(&manifest)?;
        for (index, info) in self.manifest.chunks.iter().enumerate() {
            let stored = self.stored(index)?;
            chunk::check_stored(info, &stored).map_err(|reason| self.wrong(index, reason))?;
            write(&stored)?;
        }
        file.sync_all().map_err(io(part))
    }

    pub(super) fn wrong(&self, index: usize, reason: String) -> SnapshotError {
        SnapshotError::Chunk { index, kind: self.manifest.chunks[index].kind, reason }
    }
}

/// Writes the chunks of a snapshot into a folder, one after the other, each when it is full.
pub struct ChunkWriter {
    folder: PathBuf,
    chunk_bytes: usize,
    chunks: Vec<ChunkInfo>,
    content: Vec<u8>,
    kind: ChunkKind,
    first: u64,
    count: u64,
}

impl ChunkWriter {
    /// Begins a snapshot in a new folder; a chunk is full with `chunk_bytes` of content. Errors: it cannot be made.
    pub fn new(folder: &Path, chunk_bytes: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let (chunks, content) = Default::default();
        let folder = folder.to_owned();
        Ok(Self { folder, chunk_bytes, chunks, content, kind: ChunkKind::Headers, first: 1, count: 0 })
    }

    /// Begins with items of another kind, whose first has the number `first`.
    pub fn turn_to(&mut self, kind: ChunkKind, first: u64) -> Result<()> {
        self.flush()?;
        (self.kind, self.first) = (kind, first);
        Ok(())
    }

    /// Adds an item, which `write` appends to the content.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        write(&mut self.content);
        self.count += 1;
        if self.content.len() >= self.chunk_bytes { self.flush() } else { Ok(()) }
    }

    /// How much there is so far.
    pub fn progress(&self) -> Progress {
        Progress { chunks: self.chunks.len(), of: 0, bytes: self.chunks.iter().map(|chunk| chunk.bytes).sum() }
    }

    /// Writes what is left; answers all chunks.
    pub fn finish(mut self) -> Result<Vec<ChunkInfo>> {
        self.flush()?;
        Ok(self.chunks)
    }

    fn flush(&mut self) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let index = self.chunks.len();
        if index >= CHUNKS_MAX {
            return Err(SnapshotError::NotHere(format!(
                "the chain is too large: a snapshot has {CHUNKS_MAX} chunks at most"
            )));
        }
        let path = self.folder.join(chunk_name(index));
        let stored = chunk::pack(&self.content).map_err(io(&path))?;
        write_synced(&path, &stored)?;
        self.chunks.push(ChunkInfo {
            kind: self.kind,
            first: self.first,
            count: self.count,
            content_bytes: self.content.len() as u64,
            bytes: stored.len() as u64,
            sha256: chunk::digest(&stored),
        });
        self.first += self.count;
        self.count = 0;
        self.content.clear();
        Ok(())
    }
}

/// Writes a file whose bytes are on the disk when this returns.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io(path))
}

/// Why something is not written over what is there.
pub(super) fn taken() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it exists already; nothing was written")
}

/// Gives a finished file, or a folder of finished files, its name, durably. Errors: there is something with that name.
pub(crate) fn put_in_place(part: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        return Err(io(path)(taken()));
    }
    let rename = || {
        // The files in it are on the disk, their names may not be yet.
        if cfg!(unix) && part.is_dir() {
            File::open(part)?.sync_all()?;
        }
        fs::rename(part, path)?;
        sync_folder(path)
    };
    rename().map_err(io(path))
}

/// `path` with `suffix` after its last name.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// All of a file, but no more than `max` bytes. Errors: it has more.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(std::io::Error::other(format!("has more than {max} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(io(path))
}
