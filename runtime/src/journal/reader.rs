//! Reading a journal back: calls in the order in which each shard made them, with the memory that each had.
//!
//! Whatever the bytes are, it goes on: what is broken is a [`Fault`] at its place, and what depends on it is left out and
//! counted. Nothing is believed before its checksum holds, and no length before the bytes are there.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, fs, io,
    path::PathBuf,
    sync::Arc,
};

use serde::Serialize;

use super::{
    GenerationInfo, RecordId, SlotInfo, Source,
    format::{CHUNK, FRAME_BYTES, GENERATION, MAGIC, MARKER, SLOT, find, frame, json, sum_holds, varint},
    record::{Before, Broken, Parts, PartsOutcome, parts},
    source::beginning,
};
use crate::{kind::Kind, load::MemoryId};

fn fits<K: Kind>(about: &SlotInfo) -> Result<(), String> {
    if about.kind == K::NAME && about.world == K::WORLD {
        return Ok(());
    }
    Err(format!(
        "a journal of kind {}, world {}; expected kind {}, world {}",
        about.kind,
        about.world,
        K::NAME,
        K::WORLD
    ))
}

/// A recorded call with everything that it takes to make it again.
pub struct Call<K: Kind> {
    /// Which call.
    pub id: RecordId,
    /// The generation that was asked.
    pub generation: u64,
    /// What the journal says of that generation; nothing where that is broken.
    pub about: Option<Arc<GenerationInfo>>,
    /// Whose memory.
    pub key: K::Key,
    /// What was asked.
    pub request: K::Request,
    /// The memory that it was asked with.
    pub before: K::Memory,
    /// What came of it.
    pub outcome: Recorded<K>,
}

/// What came of a recorded call.
pub enum Recorded<K: Kind> {
    /// The plugin answered.
    Answered {
        /// Its answer.
        answer: K::Answer,
        /// The memory after.
        memory: K::Memory,
    },
    /// The plugin failed.
    Failed {
        /// [`Failure::cause`](crate::Failure::cause).
        cause: String,
        /// What was said of it.
        message: String,
    },
}

/// Something that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The call, where it is known which one.
    pub call: Option<RecordId>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}: ", self.file.display(), self.offset)?;
        if let Some(call) = self.call {
            write!(f, "call {call}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// What was met beside calls and faults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Segments.
    pub segments: u64,
    /// Calls given.
    pub calls: u64,
    /// Calls left out because their memory depends on something that is broken or missing.
    pub skipped: u64,
    /// Calls that were never recorded: a buffer was full.
    pub dropped: u64,
    /// Calls that were recorded and are missing here: their part of the file is broken or was never written.
    pub missing: u64,
    /// Files that end in the middle of a frame, as one does whose writer was killed, and how many bytes are left over.
    /// One whose writer went on after it is a fault.
    pub cut: Vec<(PathBuf, u64)>,
}

/// Reads a journal of kind `K`.
pub struct Reader<K: Kind> {
    files: VecDeque<PathBuf>,
    file: PathBuf,
    bytes: Vec<u8>,
    at: usize,
    segment: Segment<K>,
    chunk: Option<Open>,
    summary: Summary,
    after: Vec<u8>,
}

/// What is known of the segment that is read.
struct Segment<K: Kind> {
    /// None: its beginning is broken, or it is of another kind; its chunks are passed over.
    number: Option<u32>,
    generations: BTreeMap<u64, Arc<GenerationInfo>>,
    /// The place is the [`Owner`]. Generations that are not described count as one.
    owners: Vec<Option<MemoryId>>,
    shards: BTreeMap<u32, Shard<K>>,
}

struct Shard<K: Kind> {
    next: u32,
    memories: Memories<K>,
}

/// By key: the memories that were last left for it, the newest first, each with whose it is. A slot keeps the built-in's
/// apart from the plugin's, and both may be asked in turns.
type Memories<K> = HashMap<<K as Kind>::Key, Vec<(Owner, Vec<u8>)>, foldhash::fast::RandomState>;

/// Whose a memory is: one number for all generations that share it.
type Owner = usize;

/// A generation of a chunk.
#[derive(Clone)]
struct Asked {
    number: u64,
    about: Option<Arc<GenerationInfo>>,
    owner: Owner,
}

/// The chunk that is read.
struct Open {
    shard: u32,
    /// The number of the next record.
    n: u32,
    /// Records left.
    left: u64,
    generations: Vec<Asked>,
    /// Where the length of the next record stands.
    lengths_at: usize,
    /// Where the next record stands.
    at: usize,
    /// Where the chunk ends; beyond the file where that is cut.
    end: usize,
}

impl<K: Kind> Reader<K> {
    /// Reads `source`. Errors: it is of another kind, or of another version of the kind's world.
    pub fn new(source: &Source) -> anyhow::Result<Reader<K>> {
        fits::<K>(source.about()).map_err(|reason| anyhow::anyhow!(reason))?;
        Ok(Reader {
            files: source.files().iter().cloned().collect(),
            file: PathBuf::new(),
            bytes: Vec::new(),
            at: 0,
            segment: Segment::default(),
            chunk: None,
            summary: Summary::default(),
            after: Vec::new(),
        })
    }

    /// What was met so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    fn fault(&self, offset: usize, call: Option<RecordId>, what: impl Into<String>) -> Fault {
        Fault { file: self.file.clone(), offset: offset as u64, call, what: what.into() }
    }

    /// The next file. None: that was the last.
    fn next_file(&mut self) -> Option<Result<(), Fault>> {
        self.file = self.files.pop_front()?;
        self.at = 0;
        self.segment = Segment::default();
        match fs::read(&self.file) {
            Ok(bytes) => {
                self.bytes = bytes;
                Some(Ok(()))
            }
            Err(error) => {
                self.bytes = Vec::new();
                if error.kind() == io::ErrorKind::NotFound {
                    // The ring has gone on meanwhile: a journal may be read while it is written.
                    return Some(Ok(()));
                }
                Some(Err(self.fault(0, None, error.to_string())))
            }
        }
    }

    /// The next frame of the file, which is not at its end.
    fn next_frame(&mut self) -> Result<(), Fault> {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(MAGIC) {
            self.at += MAGIC.len();
            self.segment = Segment::default();
            return Ok(());
        }
        let Some((kind, length)) = frame(rest) else {
            return self.no_frame();
        };
        let (start, payload) = (self.at, self.at + FRAME_BYTES);
        let end = payload.saturating_add(length);
        if kind == CHUNK {
            return self.open_chunk(start, payload, end);
        }
        let content = self.bytes.get(payload..end);
        let understood = match kind {
            SLOT => content.and_then(json).map(|about: SlotInfo| self.take_slot(start, about)),
            GENERATION => content.and_then(json).map(|info: GenerationInfo| {
                self.segment.generations.insert(info.number, Arc::new(info));
                Ok(())
            }),
            // A later version's: frames were made to be passed over.
            _ => content.map(|_| Ok(())),
        };
        match understood {
            Some(understood) => {
                self.at = end;
                understood
            }
            None => {
                let what = if kind == SLOT { "the slot" } else { "a generation" };
                self.broken(start, start, end, format!("the description of {what} is broken"))
            }
        }
    }

    /// What begins at `start` is broken from `from` on, and would end at `end`: goes on behind it.
    ///
    /// No fault where it is rather cut off: by the end of the file, or by another segment that begins in it because files
    /// were joined.
    fn broken(&mut self, start: usize, from: usize, end: usize, what: impl Into<String>) -> Result<(), Fault> {
        if let Some(joined) = self.joined_at(from, end) {
            self.cut(start, joined)
        } else if end > self.bytes.len() {
            self.cut(start, self.bytes.len())
        } else {
            self.at = end;
            Err(self.fault(start, None, what))
        }
    }

    fn take_slot(&mut self, start: usize, about: SlotInfo) -> Result<(), Fault> {
        match fits::<K>(&about) {
            Ok(()) => {
                self.summary.segments += 1;
                self.segment = Segment { number: Some(about.segment), ..Segment::default() };
                Ok(())
            }
            Err(reason) => Err(self.fault(start, None, reason)),
        }
    }

    /// What stands here begins no frame: finds the next one that does.
    fn no_frame(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let rest = &self.bytes[start..];
        let magic = find(&rest[1..], MAGIC).map(|at| 1 + at);
        let mut next = 1;
        let found = loop {
            match find(&rest[next..magic.unwrap_or(rest.len())], &MARKER) {
                Some(marker) if frame(&rest[next + marker..]).is_some() => break Some(next + marker),
                Some(marker) => next += marker + 1,
                None => break magic,
            }
        };
        let next = found.unwrap_or(rest.len());
        let passed = &rest[..next];
        // A beginning of a frame, with the end of the file behind it or another one, is one that was not written whole.
        let is_beginning = passed.len() < FRAME_BYTES && (passed.starts_with(&MARKER) || MARKER.starts_with(passed));
        if (found.is_none() || found == magic) && (is_beginning || MAGIC.starts_with(passed)) {
            return self.cut(start, start + next);
        }
        self.at = start + next;
        Err(self.fault(start, None, format!("{next} bytes that begin no frame")))
    }

    /// Where another segment begins within `from..end`.
    fn joined_at(&self, from: usize, end: usize) -> Option<usize> {
        // The first line may begin in here and end outside.
        let end = end.saturating_add(MAGIC.len() - 1).min(self.bytes.len());
        find(self.bytes.get(from..end)?, MAGIC).map(|at| from + at)
    }

    /// Something is cut off at `end`. Errors: not by the end of its writer.
    fn cut(&mut self, start: usize, end: usize) -> Result<(), Fault> {
        self.at = end;
        if end == self.bytes.len() && self.went_on() {
            let what = "the segment is cut off here, and its writer went on with later ones";
            return Err(self.fault(start, None, what));
        }
        self.summary.cut.push((self.file.clone(), (end - start) as u64));
        Ok(())
    }

    /// Whether the writer of this file had ended it: it writes to two segments at most, so it has where it went on with
    /// the second one after it.
    fn went_on(&self) -> bool {
        let goes_on = |path: &PathBuf| beginning(path).is_some_and(|about| about.continues);
        self.files.len() >= 2 && self.files.iter().take(2).all(goes_on)
    }

    fn open_chunk(&mut self, start: usize, payload: usize, end: usize) -> Result<(), Fault> {
        let there = &self.bytes[payload..end.min(self.bytes.len())];
        let Some(head) = head(there) else {
            return self.broken(start, payload, end, "the head of some calls is broken");
        };
        self.at = end.min(self.bytes.len());
        let Some(segment) = self.segment.number else {
            self.summary.missing += head.count;
            return Err(self.fault(start, None, "calls of a slot that is not described"));
        };
        self.summary.dropped += head.dropped;
        let shard = self.segment.shards.entry(head.shard).or_default();
        if head.first < shard.next {
            let expected = RecordId { segment, shard: head.shard, n: shard.next };
            return Err(self.fault(start, Some(expected), format!("calls from {} on come again", head.first)));
        }
        if head.first > shard.next {
            // Between them the memories went on, unseen.
            self.summary.missing += u64::from(head.first - shard.next);
            shard.memories.clear();
        }
        shard.next = head.first.saturating_add(u32::try_from(head.count).unwrap_or(u32::MAX));
        let Segment { generations: known, owners, .. } = &mut self.segment;
        let asked = |number: u64| {
            let about = known.get(&number).cloned();
            let id = about.as_ref().map(|about| about.memory.clone());
            let owner = owners.iter().position(|owner| *owner == id).unwrap_or_else(|| {
                owners.push(id);
                owners.len() - 1
            });
            Asked { number, about, owner }
        };
        self.chunk = Some(Open {
            shard: head.shard,
            n: head.first,
            left: head.count,
            generations: head.generations.into_iter().map(asked).collect(),
            lengths_at: payload + head.lengths_at,
            at: payload + head.records_at,
            end,
        });
        Ok(())
    }

    /// The next record of the chunk. None: there is none left, or it is left out.
    fn next_record(&mut self) -> Option<Result<Call<K>, Fault>> {
        let chunk = self.chunk.as_mut()?;
        let mut lengths = &self.bytes[chunk.lengths_at..];
        let lengths_left = lengths.len();
        // The head is whole, so there is a length for each record.
        let length = if chunk.left == 0 { None } else { varint(&mut lengths) };
        let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
            self.at = chunk.end.min(self.bytes.len());
            self.chunk = None;
            return None;
        };
        let (start, end, chunk_end, shard) = (chunk.at, chunk.at.saturating_add(length), chunk.end, chunk.shard);
        let id = RecordId { segment: self.segment.number.unwrap_or_default(), shard, n: chunk.n };
        chunk.lengths_at += lengths_left - lengths.len();
        chunk.at = end;
        chunk.left -= 1;
        chunk.n = chunk.n.saturating_add(1);
        let record = self.bytes.get(start..end);
        let parts = match record.map_or(Err(Broken::Sum), |record| parts::<K>(id, record)) {
            Ok(parts) => parts,
            Err(broken) => {
                let what = match broken {
                    Broken::Sum => "the checksum does not hold",
                    Broken::Content => "not a call of this kind",
                };
                let fault = self.fault(start, Some(id), what);
                if record.is_some() && self.joined_at(start, chunk_end).is_none() {
                    return Some(Err(fault));
                }
                // Cut here. What was read before stands.
                self.chunk = None;
                let cut = self.broken(start, start, chunk_end.max(end), "").err()?;
                return Some(Err(if cut.what.is_empty() { fault } else { Fault { call: fault.call, ..cut } }));
            }
        };
        let generation = chunk.generations.get(usize::from(parts.generation)).cloned();
        let memories = &mut self.segment.shards.entry(shard).or_default().memories;
        let key = parts.key.clone();
        match resolve(parts, id, generation, memories, &mut self.after) {
            Resolved::Call(call) => {
                self.summary.calls += 1;
                Some(Ok(call))
            }
            Resolved::Skipped => {
                self.summary.skipped += 1;
                None
            }
            Resolved::Broken(what) => {
                memories.remove(&key);
                Some(Err(self.fault(start, Some(id), what)))
            }
        }
    }
}

impl<K: Kind> Iterator for Reader<K> {
    type Item = Result<Call<K>, Fault>;

    fn next(&mut self) -> Option<Result<Call<K>, Fault>> {
        loop {
            if self.chunk.is_some() {
                match self.next_record() {
                    Some(item) => return Some(item),
                    None => continue,
                }
            }
            let met = if self.at < self.bytes.len() { self.next_frame() } else { self.next_file()? };
            if let Err(fault) = met {
                return Some(Err(fault));
            }
        }
    }
}

impl<K: Kind> Default for Segment<K> {
    fn default() -> Segment<K> {
        Segment { number: None, generations: BTreeMap::new(), owners: Vec::new(), shards: BTreeMap::new() }
    }
}

impl<K: Kind> Default for Shard<K> {
    fn default() -> Shard<K> {
        Shard { next: 0, memories: HashMap::default() }
    }
}

enum Resolved<K: Kind> {
    Call(Call<K>),
    /// Its memory is not known.
    Skipped,
    Broken(&'static str),
}

/// Finds the memory of a record, and keeps the one after it.
fn resolve<K: Kind>(
    parts: Parts<'_, K>,
    id: RecordId,
    asked: Option<Asked>,
    memories: &mut Memories<K>,
    after: &mut Vec<u8>,
) -> Resolved<K> {
    const NO_MEMORY: &str = "its memory is not one of this kind";
    let Parts { key, request, before, outcome, delta, .. } = parts;
    let Some(Asked { number: generation, about, owner }) = asked else {
        return Resolved::Broken("its generation is not one of the chunk's");
    };
    let kept = memories.entry(key.clone()).or_default();
    let own = kept.iter().position(|(kept, _)| *kept == owner);
    let from = match &before {
        Before::Here(_) => None,
        // Its owner's, else the newest that it can be: callers who keep the memory hand any one's to any one.
        Before::Known { .. } => {
            let fits = |at: &usize| before.admits(&kept[*at].1);
            match own.filter(fits).or_else(|| (0..kept.len()).find(fits)) {
                Some(from) => Some(from),
                None => return Resolved::Skipped,
            }
        }
    };
    // The newest comes first; nearly always there is one alone.
    let (own, from) = match own {
        Some(own) => (own, from),
        None => {
            kept.push((owner, Vec::new()));
            (kept.len() - 1, from)
        }
    };
    match (&before, from) {
        (Before::Here(bytes), _) => kept[own].1.splice(.., bytes.iter().copied()).for_each(drop),
        (_, Some(from)) if from != own => kept[own].1 = kept[from].1.clone(),
        _ => {}
    }
    kept[..=own].rotate_right(1);
    let kept = &mut kept[0].1;
    let Ok(memory_before) = postcard::from_bytes::<K::Memory>(kept) else {
        return Resolved::Broken(NO_MEMORY);
    };
    if let Some(delta) = delta {
        if delta.apply(kept, after).is_none() {
            return Resolved::Broken(NO_MEMORY);
        }
        std::mem::swap(kept, after);
    }
    let outcome = match outcome {
        PartsOutcome::Failed { cause, message } => Recorded::Failed { cause, message },
        PartsOutcome::Answered(answer) => match postcard::from_bytes::<K::Memory>(kept) {
            Ok(memory) => Recorded::Answered { answer, memory },
            Err(_) => return Resolved::Broken(NO_MEMORY),
        },
    };
    Resolved::Call(Call { id, generation, about, key, request, before: memory_before, outcome })
}

/// The head of a chunk.
struct Head {
    shard: u32,
    first: u32,
    dropped: u64,
    generations: Vec<u64>,
    count: u64,
    /// Where the lengths begin, and where the records do.
    lengths_at: usize,
    records_at: usize,
}

/// Takes the head of a chunk apart, if it is whole.
fn head(bytes: &[u8]) -> Option<Head> {
    let mut rest = bytes;
    let shard = u32::try_from(varint(&mut rest)?).ok()?;
    let first = u32::try_from(varint(&mut rest)?).ok()?;
    let dropped = varint(&mut rest)?;
    let mut generations = Vec::new();
    // Each takes at least a byte, so no more are taken than bytes are there.
    for _ in 0..varint(&mut rest)? {
        generations.push(varint(&mut rest)?);
    }
    let count = varint(&mut rest)?;
    let lengths_at = bytes.len() - rest.len();
    for _ in 0..count {
        varint(&mut rest)?;
    }
    let covered = &bytes[..bytes.len() - rest.len()];
    let (holds, records) = sum_holds(covered, rest)?;
    let records_at = bytes.len() - records.len();
    holds.then_some(Head { shard, first, dropped, generations, count, lengths_at, records_at })
}
