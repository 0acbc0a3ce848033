//! Recording in a shard, under its lock: encodes calls into a bounded buffer that a thread takes to the writer.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{
    RecordId,
    format::put_varint,
    record::{self, Given, Outcome, Scratch},
};
use crate::kind::Kind;

/// What the recorders of a slot share with its journal.
#[derive(Default)]
pub(super) struct Shared {
    /// The segment that is written now; what a memory table's `known` refers to.
    pub(super) segment: AtomicU32,
    /// Calls left out because a buffer was full.
    pub(super) dropped: AtomicU64,
    /// Written chunks, to be filled again.
    pub(super) spare: Mutex<Vec<Chunk>>,
}

/// Spare chunks that are kept; more than two shards are rarely taken at a time.
const SPARE_MAX: usize = 4;

/// Generations that one chunk can hold; a record has four bits for it.
const GENERATIONS_MAX: usize = 16;

/// Records the calls of one shard. Lives under the shard's lock.
pub struct Recorder<K: Kind> {
    shard: u32,
    shared: Arc<Shared>,
    buffer_bytes: usize,
    /// The number of the next call in the open chunk's segment.
    next: u32,
    open: Chunk,
    /// Chunks that had to be closed before anyone took them, the oldest first. Nearly always empty.
    closed: Vec<Chunk>,
    scratch: Scratch,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// Some calls of one shard in a row, encoded, on their way to [`Journal::write`](super::Journal::write).
#[derive(Default)]
pub struct Chunk {
    pub(super) segment: u32,
    pub(super) shard: u32,
    /// The number of its first call.
    pub(super) first: u32,
    pub(super) count: u32,
    /// Calls left out since the chunk before it.
    pub(super) dropped: u64,
    pub(super) generations: Vec<u64>,
    /// The length of each record, as varints.
    pub(super) lengths: Vec<u8>,
    pub(super) records: Vec<u8>,
}

impl<K: Kind> Recorder<K> {
    pub(super) fn new(shard: u32, shared: Arc<Shared>, buffer_bytes: usize) -> Recorder<K> {
        let segment = shared.segment.load(Ordering::Relaxed);
        Recorder {
            shard,
            shared,
            buffer_bytes,
            next: 0,
            open: Chunk { segment, shard, ..Chunk::default() },
            closed: Vec::new(),
            scratch: Scratch::default(),
            kind: std::marker::PhantomData,
        }
    }

    /// Records one call that `generation` was asked for `key`.
    ///
    /// `known` belongs to the key's entry in the memory table and begins as 0. It is the number of the segment in which
    /// the memory that the entry holds *after* this call stands, so that it need not be written again; set it to 0
    /// whenever the entry's memory changes without a call being recorded. Answers nothing where the buffer is full: the
    /// call is left out and counted.
    pub fn record(
        &mut self,
        generation: u64,
        key: &K::Key,
        known: &mut u32,
        request: &K::Request,
        before: &K::Memory,
        outcome: Outcome<'_, K>,
    ) -> Option<RecordId> {
        let segment = self.shared.segment.load(Ordering::Relaxed);
        if segment != self.open.segment {
            self.close();
            self.open.segment = segment;
            self.open.first = 0;
            self.next = 0;
        }
        let place = self.place_of(generation);
        let start = self.open.records.len();
        let is_known = *known == segment;
        let call = Given { key, request, before, outcome };
        let id = RecordId { segment, shard: self.shard, n: self.next };
        let encoded = record::put::<K>(&mut self.open.records, &mut self.scratch, id, place, is_known, &call);
        // One call may always be kept, however large its memory is.
        let is_full = start + self.closed_bytes() > 0 && self.bytes() > self.buffer_bytes;
        if encoded.is_err() || is_full {
            self.open.records.truncate(start);
            self.open.dropped += 1;
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            // The memory goes on without this call: the next one must bring it.
            *known = 0;
            return None;
        }
        *known = segment;
        put_varint(&mut self.open.lengths, (self.open.records.len() - start) as u64);
        self.open.count += 1;
        self.next += 1;
        Some(id)
    }

    /// What has come together, for [`Journal::write`](super::Journal::write); nothing: no call since. To be asked until
    /// nothing comes, every 50 ms or so, and before the journal is closed.
    pub fn take(&mut self) -> Option<Chunk> {
        if !self.closed.is_empty() {
            return Some(self.closed.remove(0));
        }
        if self.open.count == 0 {
            return None;
        }
        let next = self.fresh();
        Some(std::mem::replace(&mut self.open, next))
    }

    /// Puts the open chunk aside and begins another one of the same segment.
    fn close(&mut self) {
        if self.open.count > 0 {
            let next = self.fresh();
            self.closed.push(std::mem::replace(&mut self.open, next));
        }
        self.open.generations.clear();
    }

    fn fresh(&self) -> Chunk {
        let spare = self.shared.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut chunk = spare.unwrap_or_default();
        chunk.clear();
        Chunk { segment: self.open.segment, shard: self.shard, first: self.next, ..chunk }
    }

    fn place_of(&mut self, generation: u64) -> u8 {
        let place = self.open.generations.iter().position(|known| *known == generation);
        let place = place.unwrap_or_else(|| {
            if self.open.generations.len() == GENERATIONS_MAX {
                self.close();
            }
            self.open.generations.push(generation);
            self.open.generations.len() - 1
        });
        u8::try_from(place).expect("at most 16 generations in a chunk")
    }

    fn bytes(&self) -> usize {
        self.open.bytes() + self.closed_bytes()
    }

    fn closed_bytes(&self) -> usize {
        self.closed.iter().map(Chunk::bytes).sum()
    }
}

impl Shared {
    /// Keeps a written chunk's memory for the next one.
    pub(super) fn give_back(&self, chunk: Chunk) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(chunk);
        }
    }
}

impl Chunk {
    /// Calls in it.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds no call; one that was taken does.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn bytes(&self) -> usize {
        self.lengths.len() + self.records.len()
    }

    fn clear(&mut self) {
        self.count = 0;
        self.dropped = 0;
        self.generations.clear();
        self.lengths.clear();
        self.records.clear();
    }
}
