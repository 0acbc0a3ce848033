//! Writing the ring of segment files. One thread of the slot's does it; what it writes, recorders have encoded.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    GenerationInfo, JournalConfig, SlotInfo,
    format::{self, CHUNK, GENERATION, MAGIC, SLOT, put_frame, put_varint},
    recorder::{Chunk, Recorder, Shared},
};
use crate::{kind::Kind, limits::Limits, store::private_dir};

/// Generations that are remembered, to be described in later segments; chunks are written soon after their calls.
const GENERATIONS_MAX: usize = 256;

/// Segment files at most, as a multiple of [`JournalConfig::segments`]: a node that is restarted again and again leaves
/// many short ones, which must not push out the long ones.
const SHORT_SEGMENTS: usize = 8;

/// Writes the journal of one slot: a ring of segment files in a directory of its own.
pub struct Journal {
    dir: PathBuf,
    config: JournalConfig,
    about: SlotInfo,
    shared: Arc<Shared>,
    generations: BTreeMap<u64, GenerationInfo>,
    current: Segment,
    /// Where chunks go that were begun before the current segment was.
    previous: Option<Segment>,
    scratch: Vec<u8>,
    records: u64,
    lost: u64,
}

/// A segment, and its file once something stands in it.
struct Segment {
    number: u32,
    file: Option<File>,
    bytes: u64,
    /// Generations that it describes.
    described: BTreeSet<u64>,
    /// [`SlotInfo::continues`].
    continues: bool,
}

impl Journal {
    /// The directory of `slot`'s journal below `dir`.
    pub fn dir_of(dir: &Path, slot: &str) -> PathBuf {
        // Slots' names are letters, digits, `-` and `/`: no two names come to the same folder.
        dir.join(slot.replace('/', "+"))
    }

    /// A journal of `slot` below `dir` (`state_dir/journal`), which goes on after the segments that are there. A file is
    /// only made when there is something to write. What a memory table calls `known` refers to the segments of one
    /// `Journal`: with another one it begins again as 0.
    ///
    /// Errors: the configuration is out of range; the directory cannot be made or read.
    pub fn open<K: Kind>(dir: &Path, slot: &str, config: JournalConfig) -> anyhow::Result<Journal> {
        config.check().map_err(|reason| anyhow::anyhow!("journal of slot {slot}: {reason}"))?;
        let dir = Journal::dir_of(dir, slot);
        private_dir(&dir)?;
        let found = segments(&dir).with_context(|| format!("reading {}", dir.display()))?;
        let last = found.last().map_or(0, |(number, _)| *number);
        let number = last.checked_add(1).context("the segments' numbers are used up")?;
        let shared = Arc::new(Shared::default());
        shared.segment.store(number, Ordering::Relaxed);
        Ok(Journal {
            about: SlotInfo {
                slot: slot.to_owned(),
                kind: K::NAME.to_owned(),
                world: K::WORLD.to_owned(),
                segment: number,
                started_us: 0,
                sample: config.sample,
                limits: None,
                continues: false,
            },
            dir,
            config,
            shared,
            generations: BTreeMap::new(),
            current: Segment::new(number, false),
            previous: None,
            scratch: Vec::new(),
            records: 0,
            lost: 0,
        })
    }

    /// The same, whose segments say what a plugin may use in the slot: a replay goes by that.
    pub fn under(mut self, limits: &Limits) -> Journal {
        self.about.limits = Some(limits.clone());
        self
    }

    /// The recorder of one shard; to be made once for each.
    pub fn recorder<K: Kind>(&self, shard: u32) -> Recorder<K> {
        Recorder::new(shard, Arc::clone(&self.shared), self.config.buffer_bytes)
    }

    /// Makes a generation known; to be called before its first call is written.
    pub fn generation(&mut self, info: GenerationInfo) {
        self.generations.insert(info.number, info);
        if self.generations.len() > GENERATIONS_MAX {
            self.generations.pop_first();
        }
    }

    /// Writes what [`Recorder::take`] gave, to the segment that it names.
    ///
    /// Errors: the file cannot be written. The calls are then lost and counted, and a new segment begins, so that no
    /// later call refers to them.
    pub fn write(&mut self, chunk: Chunk) -> io::Result<()> {
        let written = self.append(chunk);
        self.turn_over();
        written
    }

    /// Writes all that was taken from the recorders of a slot, one after the other. Whatever is large: a new segment begins
    /// after it, once, so that what was recorded for the old one meanwhile still finds it.
    ///
    /// Errors: as of [`write`](Self::write), the first of them. What comes after it was for a segment that is closed then;
    /// it is counted as lost, too.
    pub fn write_all(&mut self, mut chunks: Vec<Chunk>) -> io::Result<()> {
        // A shard that was quiet may have begun its chunk a segment earlier than others.
        chunks.sort_by_key(|chunk| chunk.segment);
        let mut result = Ok(());
        for chunk in chunks {
            let written = self.append(chunk);
            result = result.and(written);
        }
        self.turn_over();
        result
    }

    fn append(&mut self, chunk: Chunk) -> io::Result<()> {
        let count = u64::from(chunk.count);
        let written = self.put(&chunk);
        self.shared.give_back(chunk);
        match written {
            Ok(true) => self.records += count,
            Ok(false) => self.lost += count,
            Err(_) => {
                self.lost += count;
                self.begin_segment();
                // Half a frame may stand at its end: nothing goes there any more.
                self.previous = None;
                self.current.continues = false;
            }
        }
        written.map(drop)
    }

    fn turn_over(&mut self) {
        if self.current.bytes >= self.config.segment_bytes {
            self.begin_segment();
        }
    }

    /// Ends a recording: closes its files. The recorders are to be gone, and what they had written; later ones may come, and
    /// what memory tables call `known` goes on to hold.
    pub fn close(&mut self) {
        // Always another number: a memory that advanced without a record is then not taken for one that stands there.
        self.begin_segment();
        self.previous = None;
    }

    /// Goes on after [`close`](Self::close), as `config` says.
    ///
    /// Errors: it is out of range, and what held before holds on.
    pub fn reopen(&mut self, config: JournalConfig) -> anyhow::Result<()> {
        config.check().map_err(|reason| anyhow::anyhow!("journal of slot {}: {reason}", self.about.slot))?;
        self.about.sample = config.sample;
        self.config = config;
        Ok(())
    }

    /// Calls written since it was opened.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Calls left out since it was opened: a shard's buffer was full, or the file could not be written.
    pub fn dropped(&self) -> u64 {
        self.lost + self.shared.dropped.load(Ordering::Relaxed)
    }

    /// The segment that is written now.
    pub fn segment(&self) -> u32 {
        self.current.number
    }

    /// Where its segment files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// False: the segment that it names takes nothing any more.
    fn put(&mut self, chunk: &Chunk) -> io::Result<bool> {
        let segment = if chunk.segment == self.current.number {
            &mut self.current
        } else {
            match &mut self.previous {
                Some(previous) if chunk.segment == previous.number => previous,
                _ => return Ok(false),
            }
        };
        let out = &mut self.scratch;
        out.clear();
        let file = match &mut segment.file {
            Some(file) => file,
            None => {
                make_room(&self.dir, &self.config)?;
                self.about.segment = segment.number;
                self.about.started_us = now_us();
                self.about.continues = segment.continues;
                out.extend_from_slice(MAGIC);
                put_json(out, SLOT, &self.about)?;
                segment.file.insert(create(&self.dir, segment.number)?)
            }
        };
        for number in &chunk.generations {
            if let Some(info) = self.generations.get(number)
                && segment.described.insert(*number)
            {
                put_json(out, GENERATION, info)?;
            }
        }
        put_chunk(out, chunk)?;
        // One write: a process that is killed leaves whole frames, or one that is cut.
        file.write_all(out)?;
        segment.bytes += out.len() as u64;
        Ok(true)
    }

    fn begin_segment(&mut self) {
        let is_begun = self.current.file.is_some();
        let next = Segment::new(self.current.number.saturating_add(1), is_begun);
        self.shared.segment.store(next.number, Ordering::Relaxed);
        self.previous = Some(std::mem::replace(&mut self.current, next));
    }
}

impl Segment {
    fn new(number: u32, continues: bool) -> Segment {
        Segment { number, file: None, bytes: 0, described: BTreeSet::new(), continues }
    }
}

fn create(dir: &Path, number: u32) -> io::Result<File> {
    File::options().append(true).create_new(true).open(dir.join(format!("{number:08}.journal")))
}

/// The segment files of a directory, by number.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".journal")?.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes the oldest segments until one more fits into the ring.
fn make_room(dir: &Path, config: &JournalConfig) -> io::Result<()> {
    let files = segments(dir)?;
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut files: VecDeque<(u64, PathBuf)> = files.into_iter().map(|(_, path)| (bytes(&path), path)).collect();
    let files_max = config.segments as usize * SHORT_SEGMENTS;
    // Half a segment more: each is larger than it should be by what filled it.
    let bytes_max = u64::from(config.segments - 1) * config.segment_bytes + config.segment_bytes / 2;
    let mut total: u64 = files.iter().map(|(bytes, _)| bytes).sum();
    while (files.len() >= files_max || total > bytes_max)
        && let Some((bytes, path)) = files.pop_front()
    {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= bytes,
        }
    }
    Ok(())
}

fn put_json(out: &mut Vec<u8>, kind: u8, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(value).map_err(io::Error::other)?;
    put_frame(out, kind, length(json.len() + format::SUM_BYTES)?);
    out.extend_from_slice(&json);
    out.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    Ok(())
}

fn put_chunk(out: &mut Vec<u8>, chunk: &Chunk) -> io::Result<()> {
    let mut head = Vec::with_capacity(chunk.lengths.len() + 32);
    put_varint(&mut head, chunk.shard.into());
    put_varint(&mut head, chunk.first.into());
    put_varint(&mut head, chunk.dropped);
    put_varint(&mut head, chunk.generations.len() as u64);
    for generation in &chunk.generations {
        put_varint(&mut head, *generation);
    }
    put_varint(&mut head, chunk.count.into());
    head.extend_from_slice(&chunk.lengths);
    put_frame(out, CHUNK, length(head.len() + format::SUM_BYTES + chunk.records.len())?);
    out.extend_from_slice(&head);
    out.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
    out.extend_from_slice(&chunk.records);
    Ok(())
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(io::Error::other)
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
