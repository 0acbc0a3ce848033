//! Journals: what is recorded comes back, call by call, whatever happens to the files.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use bolero::{TypeGenerator, check};
use proptest::prelude::*;
use serde_json::json;
use support::{Answer, Bed, Counter, Echo, Request, Text, add};
use tenon_runtime::{
    Digest, Failure, Kind, MemoryId, PluginConfig,
    journal::{
        Fault, GenerationInfo, Journal, JournalConfig, NoJournal, Outcome, Reader, RecordId, Recorded, Recorder,
        Source, Summary,
    },
};

/// Cases of each fuzz target in `cargo test`; `BOLERO_RANDOM_ITERATIONS` asks for more.
const CASES: usize = 300;

type Cell = (u64, u64, u64, u64);

/// By key, and by whose memory it is (two generations share theirs, the third has its own): the memory, and the segment
/// that holds it.
type Memories = BTreeMap<(u64, bool), (Cell, u32)>;

/// A call in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    id: RecordId,
    generation: u64,
    plugin: String,
    key: u64,
    request: Request,
    before: Cell,
    /// The answer and the memory after, or the cause of the failure.
    outcome: Result<(Answer, Cell), String>,
}

/// A slot's worth of journal: shards with memories, as a slot keeps them.
struct Bench {
    root: PathBuf,
    config: JournalConfig,
    journal: Journal,
    shards: Vec<(Recorder<Counter>, Memories)>,
    run: u64,
    /// What the files hold, as far as taken.
    written: Vec<Seen>,
    /// What the recorders still hold.
    waiting: BTreeMap<usize, Vec<Seen>>,
}

impl Bench {
    fn new(root: &Path, config: JournalConfig, shards: usize) -> Bench {
        let mut bench = Bench {
            root: root.to_owned(),
            journal: Journal::open::<Counter>(root, "counter", config.clone()).expect("a journal"),
            config,
            shards: Vec::new(),
            run: 0,
            written: Vec::new(),
            waiting: BTreeMap::new(),
        };
        bench.start(shards);
        bench
    }

    fn start(&mut self, shards: usize) {
        self.run += 1;
        for number in 1..=3 {
            self.journal.generation(info(number, &self.plugin(number)));
        }
        let shard = |shard| (self.journal.recorder::<Counter>(shard), BTreeMap::new());
        self.shards = (0..u32::try_from(shards).expect("few")).map(shard).collect();
    }

    fn plugin(&self, generation: u64) -> String {
        format!("p-{}-{generation}", self.run)
    }

    fn restart(&mut self) {
        let shards = self.shards.len();
        self.waiting.clear();
        self.journal = Journal::open::<Counter>(&self.root, "counter", self.config.clone()).expect("a journal");
        self.start(shards);
    }

    fn call(&mut self, shard: usize, key: u64, generation: u64, sum: u64, fails: bool) -> Option<RecordId> {
        let plugin = self.plugin(generation);
        let (recorder, memories) = &mut self.shards[shard];
        let (memory, known) = memories.entry((key, generation == 3)).or_default();
        let request = add(key, sum);
        let before = *memory;
        let after = (before.0.wrapping_add(sum), before.1 + 1, before.2, before.3);
        let answer = Answer::Total { sum: after.0, build: 1 };
        let failure = Failure::Trap { message: "unreachable".into() };
        let outcome = if fails {
            Outcome::Failed(&failure)
        } else {
            *memory = after;
            Outcome::Answered { answer: &answer, memory: &after }
        };
        let id = recorder.record(generation, &key, known, &request, &before, outcome)?;
        let outcome = if fails { Err("trap".to_owned()) } else { Ok((answer, after)) };
        let seen = Seen { id, generation, plugin, key, request, before, outcome };
        self.waiting.entry(shard).or_default().push(seen);
        Some(id)
    }

    fn take(&mut self, shard: usize) {
        while let Some(chunk) = self.shards[shard].0.take() {
            let taken = self.waiting.get_mut(&shard).expect("calls wait").drain(..chunk.len());
            self.written.extend(taken);
            self.journal.write(chunk).expect("a directory that can be written");
        }
    }

    fn take_all(&mut self) {
        (0..self.shards.len()).for_each(|shard| self.take(shard));
    }

    fn read(&self) -> (Vec<Seen>, Vec<Fault>, Summary) {
        read(self.journal.dir()).expect("a journal")
    }
}

fn info(number: u64, plugin: &str) -> GenerationInfo {
    GenerationInfo {
        number,
        plugin: plugin.into(),
        version: "1.0.0".into(),
        digest: Digest::of(plugin.as_bytes()),
        settings: json!({}),
        memory: MemoryId { plugin: Some("p".into()), version: if number == 3 { 2 } else { 1 } },
    }
}

fn read(path: &Path) -> anyhow::Result<(Vec<Seen>, Vec<Fault>, Summary)> {
    let mut reader = Reader::<Counter>::new(&Source::open(path)?)?;
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for item in &mut reader {
        match item {
            Ok(call) => seen.push(Seen {
                id: call.id,
                generation: call.generation,
                plugin: call.about.map_or(String::new(), |about| about.plugin.clone()),
                key: call.key,
                request: call.request,
                before: call.before,
                outcome: match call.outcome {
                    Recorded::Answered { answer, memory } => Ok((answer, memory)),
                    Recorded::Failed { cause, .. } => Err(cause),
                },
            }),
            Err(fault) => faults.push(fault),
        }
    }
    Ok((seen, faults, reader.summary().clone()))
}

fn small() -> JournalConfig {
    JournalConfig { segments: 10_000, segment_bytes: 4 << 10, buffer_bytes: 4 << 10, ..JournalConfig::default() }
}

/// A journal of one segment with several shards, generations, chunks, a failure: its bytes, and what it holds.
fn sample() -> (Vec<u8>, Vec<Seen>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::new(dir.path(), small(), 2);
    for (call, (shard, key, generation)) in
        [(0, 1, 3), (0, 1, 1), (0, 2, 1), (1, 3, 1), (0, 1, 2), (0, 1, 1), (1, 3, 2), (0, 2, 2), (0, 1, 2)]
            .into_iter()
            .enumerate()
    {
        bench.call(shard, key, generation, 1_000, call == 6).expect("there is room");
        if call % 3 == 2 {
            bench.take_all();
        }
    }
    bench.take_all();
    let file = files(bench.journal.dir()).remove(0);
    (fs::read(file).expect("a segment"), bench.written)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir).expect("the journal").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

#[derive(Clone, Debug)]
enum Op {
    Call { shard: usize, key: u64, generation: u64, sum: u64, fails: bool },
    Take { shard: usize },
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let call = (0..3_usize, 0..5_u64, 1..=3_u64, any::<u64>(), prop::bool::weighted(0.1));
    let call =
        call.prop_map(|(shard, key, generation, sum, fails)| Op::Call { shard, key, generation, sum: sum >> 8, fails });
    let op = prop_oneof![20 => call, 2 => (0..3_usize).prop_map(|shard| Op::Take { shard }), 1 => Just(Op::Restart)];
    prop::collection::vec(op, 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_recorded_comes_back(ops in ops()) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut bench = Bench::new(dir.path(), small(), 3);
        let mut dropped = 0;
        for op in ops {
            match op {
                Op::Call { shard, key, generation, sum, fails } => {
                    dropped += u64::from(bench.call(shard, key, generation, sum, fails).is_none());
                }
                Op::Take { shard } => bench.take(shard),
                Op::Restart => {
                    // What was not taken is lost, as it is with a process that is killed.
                    prop_assert_eq!(bench.journal.dropped(), dropped);
                    dropped = 0;
                    bench.restart();
                }
            }
        }
        bench.take_all();
        if bench.written.is_empty() {
            return Ok(());
        }
        let (seen, faults, summary) = bench.read();
        prop_assert_eq!(faults, []);
        prop_assert_eq!((summary.skipped, summary.missing, summary.cut.len()), (0, 0, 0));
        let by_shard = |calls: Vec<Seen>| {
            let mut shards: BTreeMap<(u32, u32), Vec<Seen>> = BTreeMap::new();
            calls.into_iter().for_each(|seen| shards.entry((seen.id.segment, seen.id.shard)).or_default().push(seen));
            shards
        };
        let ids: BTreeSet<RecordId> = seen.iter().map(|seen| seen.id).collect();
        prop_assert_eq!(ids.len(), seen.len(), "ids are unique");
        prop_assert_eq!(by_shard(seen), by_shard(bench.written));
    }
}

/// What happens to a file; places are taken modulo its length.
#[derive(Clone, Debug, TypeGenerator)]
struct Edit {
    at: u32,
    #[generator(1_usize..60)]
    length: usize,
    byte: u8,
    what: What,
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
enum What {
    Set,
    Cut,
    Double,
    Fill,
}

fn edit(bytes: &mut Vec<u8>, edits: &[Edit]) {
    for edit in edits {
        if bytes.is_empty() {
            return;
        }
        let at = edit.at as usize % bytes.len();
        let end = (at + edit.length).min(bytes.len());
        match edit.what {
            What::Set => bytes[at] = edit.byte,
            What::Cut => drop(bytes.drain(at..end)),
            What::Double => {
                let part = bytes[at..end].to_vec();
                bytes.splice(end..end, part);
            }
            What::Fill => bytes[at..end].fill(edit.byte),
        }
    }
}

#[test]
fn no_bytes_make_the_reader_panic_or_tell_what_was_not_recorded() {
    let (sound, written) = sample();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    let edits = bolero::produce::<Vec<Edit>>().with().len(1_usize..6);
    check!().with_iterations(CASES).with_generator(edits).for_each(|edits| {
        let mut bytes = sound.clone();
        edit(&mut bytes, edits);
        fs::write(&path, &bytes).expect("writing");
        for mut call in read(&path).map_or(Vec::new(), |(seen, ..)| seen) {
            let original = written.iter().find(|other| other.id == call.id).expect("a call that was made");
            if call.plugin.is_empty() {
                call.plugin.clone_from(&original.plugin);
            }
            assert_eq!(call, *original);
        }
    });
}

/// Checksums that hold over nonsense: what a faulty writer would leave.
#[test]
fn well_formed_nonsense_is_survived() {
    let sound = sample().0;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    let bytes = |most: usize| bolero::produce::<Vec<u8>>().with().len(0..most);
    let records = bolero::produce::<Vec<Vec<u8>>>().with().len(0_usize..4).values(bytes(40));
    let frame = (bolero::one_value_of([b'S', b'G', b'C', b'X']), bytes(80), records);
    let frames = bolero::produce::<Vec<(u8, Vec<u8>, Vec<Vec<u8>>)>>().with().len(0_usize..8).values(frame);
    check!().with_iterations(CASES).with_generator(frames).for_each(|frames| {
        let mut bytes = sound.clone();
        for (kind, head, records) in frames {
            let mut payload = Vec::new();
            if *kind == b'C' {
                let count = u8::try_from(records.len()).expect("few");
                let mut head = [&[0, 100, 0, 1, 1, count], &head[..head.len() / 8]].concat();
                head.extend(records.iter().map(|record| u8::try_from(record.len() + 4).expect("short")));
                payload.extend(summed(&head));
                for (n, record) in (100..).zip(records) {
                    payload.extend(crc_from(RecordId { segment: 1, shard: 0, n }, record));
                    payload.extend(record);
                }
            } else {
                payload.extend(summed(head));
            }
            let length = u32::try_from(payload.len()).expect("short").to_le_bytes();
            let mut header = [&[0xf7, b'T', b'J', 0xc1, *kind], &length[..]].concat();
            header.extend(crc(&header));
            bytes.extend(header);
            bytes.extend(payload);
        }
        fs::write(&path, &bytes).expect("writing");
        read(&path).expect("its beginning is whole");
    });
}

#[test]
fn bytes_that_name_no_slot_are_no_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    check!().with_iterations(CASES).for_each(|bytes: &[u8]| {
        for start in [&b""[..], b"tenon journal 1\n"] {
            fs::write(&path, [start, bytes].concat()).expect("writing");
            // Who looks for long enough may hit upon a slot.
            let names_one = || bytes.windows(7).any(|window| window == b"\"slot\":");
            assert!(read(&path).is_err() || names_one());
        }
    });
}

/// The CRC-32 of zlib, bit by bit: what the format says, without the library that writes it.
fn crc(bytes: &[u8]) -> [u8; 4] {
    continued(0, bytes)
}

/// The same, begun from which call it is.
fn crc_from(id: RecordId, bytes: &[u8]) -> [u8; 4] {
    let numbers = [(id.segment, 0x9e37_79b1_u32), (id.shard, 0x85eb_ca6b), (id.n, 0xc2b2_ae35)];
    continued(numbers.iter().fold(0, |seed, (number, factor)| seed ^ number.wrapping_mul(*factor)), bytes)
}

fn continued(start: u32, bytes: &[u8]) -> [u8; 4] {
    let sum = bytes.iter().fold(!start, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    });
    (!sum).to_le_bytes()
}

fn summed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc(bytes)].concat()
}

#[test]
fn every_flipped_byte_is_reported_at_its_place_and_the_rest_is_read() {
    let (bytes, written) = sample();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    let mut places: BTreeMap<RecordId, Vec<usize>> = BTreeMap::new();
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 0x40;
        fs::write(&path, &broken).expect("writing");
        let Ok((seen, faults, summary)) = read(&path) else {
            // The only description of the slot.
            assert!(at < 300, "byte {at}");
            continue;
        };
        let [fault, ..] = &faults[..] else { panic!("byte {at}: nothing is reported, {summary:?}") };
        assert!(fault.offset <= at as u64, "byte {at}: {fault}");
        for mut call in seen.clone() {
            let original = written.iter().find(|other| other.id == call.id).expect("a call that was made");
            if call.plugin.is_empty() {
                call.plugin.clone_from(&original.plugin);
            }
            assert_eq!(call, *original, "byte {at}");
        }
        if let Some(id) = fault.call {
            assert_eq!(faults.len(), 1, "byte {at}: {faults:?}");
            places.entry(id).or_default().push(at);
            // One call is lost, and of the rest only what depends on it.
            assert_eq!(seen.len() as u64 + summary.skipped + 1, written.len() as u64, "byte {at}");
            let lost = written.iter().find(|call| call.id == id).expect("a call that was made");
            for call in written.iter().filter(|call| call.key != lost.key || call.generation / 3 != lost.generation / 3)
            {
                assert!(seen.contains(call), "byte {at}: {} does not depend on {id}", call.id);
            }
        }
    }
    // Every call has its bytes, in a row.
    assert_eq!(places.len(), written.len());
    for (id, places) in &places {
        assert!(places.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{id}: {places:?}");
    }
}

#[test]
fn a_record_in_another_ones_place_is_not_taken_for_it() {
    let segment = |calls: u64| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut bench = Bench::new(dir.path(), small(), 1);
        for key in 0..calls {
            bench.call(0, key, 1, 1_000, false).expect("there is room");
        }
        bench.take_all();
        (fs::read(files(bench.journal.dir()).remove(0)).expect("a segment"), bench.written)
    };
    let ((two, _), (bytes, written)) = (segment(2), segment(3));
    // All records are of one length, which takes a byte in the head.
    let record = bytes.len() - two.len() - 1;
    let at = |number: usize| bytes.len() - (3 - number) * record..bytes.len() - (2 - number) * record;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    for (from, to) in [(0, 1), (1, 0), (2, 1), (0, 2)] {
        let mut broken = bytes.clone();
        broken.copy_within(at(from), at(to).start);
        assert_ne!(broken, bytes);
        fs::write(&path, &broken).expect("writing");
        let (seen, faults, _) = read(&path).expect("a journal");
        let whole: Vec<_> = written.iter().filter(|call| call.id.n as usize != to).cloned().collect();
        assert_eq!(seen, whole, "{from} in the place of {to}");
        let [fault] = &faults[..] else { panic!("{from} in the place of {to}: {faults:?}") };
        assert_eq!((fault.call, &*fault.what), (Some(written[to].id), "the checksum does not hold"));
    }
}

#[test]
fn a_file_that_is_cut_gives_all_that_is_whole() {
    let (bytes, written) = sample();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    let mut most = 0;
    for end in 0..=bytes.len() {
        fs::write(&path, &bytes[..end]).expect("writing");
        let Ok((seen, faults, summary)) = read(&path) else {
            assert!(most == 0 && end < 300, "cut at {end}");
            continue;
        };
        assert_eq!(faults, [], "cut at {end}: a cut is no fault");
        assert!(summary.cut.len() <= 1);
        assert_eq!(seen, written[..seen.len()], "cut at {end}");
        assert!(seen.len() == most || seen.len() == most + 1, "cut at {end}: one call after the other");
        most = seen.len();
    }
    assert_eq!(most, written.len());
}

#[test]
fn a_segment_whose_writer_went_on_after_it_is_not_cut_by_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::new(dir.path(), small(), 1);
    let fill = |bench: &mut Bench, segments: usize| {
        let wanted = files(bench.journal.dir()).len() + segments;
        let mut call = 0;
        while files(bench.journal.dir()).len() < wanted {
            bench.call(0, call % 3, 1, call << 20, false).expect("it is taken often enough");
            call += 1;
            if call % 20 == 0 {
                bench.take_all();
            }
        }
    };
    // One process, that was killed, and another one after it.
    bench.call(0, 1, 1, 1, false).expect("there is room");
    bench.take_all();
    fill(&mut bench, 3);
    let of_first = files(bench.journal.dir());
    bench.restart();
    fill(&mut bench, 4);
    let all = files(bench.journal.dir());
    for (at, file) in all.iter().enumerate() {
        let bytes = fs::read(file).expect("a segment");
        fs::write(file, &bytes[..bytes.len() - 5]).expect("writing");
        let (_, faults, summary) = bench.read();
        // What a process was writing when it ended: the last segment, or what was late for the one before.
        let is_last = |count: usize| at + 2 >= count && at < count;
        if is_last(all.len()) || is_last(of_first.len()) {
            assert_eq!((faults.len(), summary.cut.len()), (0, 1), "segment {at}: {faults:?}");
        } else {
            let [fault] = &faults[..] else { panic!("segment {at}: {faults:?}") };
            assert!(fault.file == *file && fault.what.contains("cut off"), "segment {at}: {fault}");
            assert_eq!(summary.cut, [], "segment {at}");
        }
        fs::write(file, bytes).expect("writing");
    }
}

#[test]
fn segments_that_were_cut_and_joined_are_read_through() {
    let (bytes, written) = sample();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    for end in 300..bytes.len() {
        fs::write(&path, [&bytes[..end], &bytes].concat()).expect("writing");
        let (seen, faults, summary) = read(&path).expect("a journal");
        assert_eq!(faults, [], "cut at {end}");
        assert!(seen.ends_with(&written), "cut at {end}");
        assert_eq!(summary.segments, 2);
        assert_eq!(seen[..seen.len() - written.len()], written[..seen.len() - written.len()], "cut at {end}");
    }
}

#[test]
fn the_ring_keeps_the_newest_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = JournalConfig { segments: 3, ..small() };
    let mut bench = Bench::new(dir.path(), config, 1);
    for call in 0..2_000 {
        bench.call(0, call % 3, 1, call, false).expect("it is taken often enough");
        if call % 20 == 0 {
            bench.take_all();
        }
    }
    bench.take_all();
    let size = |files: &[PathBuf]| files.iter().map(|file| fs::metadata(file).expect("a file").len()).sum::<u64>();
    let kept = files(bench.journal.dir());
    assert!(kept.len() <= 4 && size(&kept) <= 3 * (4 << 10) + (4 << 10), "{kept:?}");
    let last = bench.journal.segment();
    assert!(last > 10, "{last}");
    let (seen, faults, summary) = bench.read();
    assert_eq!((faults, summary.skipped), (vec![], 0));
    assert!(bench.written.ends_with(&seen) && seen.len() > 100, "{}", seen.len());

    bench.restart();
    assert!(bench.journal.segment() >= last);
    let numbers = files(bench.journal.dir());
    bench.call(0, 1, 1, 1, false).expect("there is room");
    bench.take_all();
    let now = files(bench.journal.dir());
    assert!(now.last() > numbers.last(), "a segment of its own: {now:?}");
}

#[test]
fn a_full_buffer_leaves_calls_out_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bench = Bench::new(dir.path(), small(), 1);
    let recorded = (0..1_000).filter(|call| bench.call(0, call % 2, 1, 1, false).is_some()).count();
    assert!(recorded < 1_000, "4 KiB hold fewer");
    bench.take_all();
    bench.call(0, 0, 1, 1, false).expect("there is room again");
    bench.call(0, 1, 1, 1, false).expect("there is room again");
    bench.take_all();
    let (seen, faults, summary) = bench.read();
    assert_eq!((seen.as_slice(), faults), (bench.written.as_slice(), vec![]));
    assert_eq!(summary.dropped, 1_000 - recorded as u64);
    assert_eq!(bench.journal.dropped(), 1_000 - recorded as u64);
    assert_eq!(bench.journal.records(), seen.len() as u64);
}

#[test]
fn a_journal_of_another_kind_is_refused_by_both_names() {
    let (bytes, _) = sample();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    fs::write(&path, bytes).expect("writing");
    let error = Reader::<Echo>::new(&Source::open(&path).expect("a journal")).err().expect("of another kind");
    let expected =
        format!("a journal of kind counter, world {}; expected kind echo, world {}", Counter::WORLD, Echo::WORLD);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn where_nothing_was_recorded_yet_that_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = Journal::open::<Counter>(dir.path(), "counter", small()).expect("a journal");
    let said = |path: &Path| Source::open(path).expect_err("no journal").to_string();
    let nothing = |path: &Path| format!("nothing has been recorded in {} yet", path.display());
    assert_eq!(said(journal.dir()), nothing(journal.dir()));

    // A writer that is killed while it writes its first call, at any byte of what stands before that.
    let (bytes, _) = sample();
    let whole = (0..bytes.len()).find(|length| open_bytes(&bytes[..*length]).is_ok()).expect("a whole segment is one");
    let segment = journal.dir().join("00000001.journal");
    for length in 0..whole {
        fs::write(&segment, &bytes[..length]).expect("writing");
        assert_eq!(said(journal.dir()), nothing(journal.dir()), "{length} bytes");
        assert_eq!(said(&segment), nothing(&segment), "{length} bytes");
    }
    fs::write(&segment, &bytes[..whole]).expect("writing");
    assert_eq!(read(journal.dir()).expect("a slot without calls").0, []);

    // What is no journal is called so, also among segments that were only begun.
    let other = journal.dir().join("00000002.journal");
    for text in ["tenon journal 2\n", "PK", "tenon journal 1\nand a text that is long enough"] {
        fs::write(&segment, &bytes[..whole - 1]).expect("writing");
        fs::write(&other, text).expect("writing");
        assert_eq!(said(&other), format!("{} is not a journal, and holds none", other.display()));
        assert_eq!(said(journal.dir()), format!("{} is not a journal, and holds none", journal.dir().display()));
    }
    let file = dir.path().join("counter.txt");
    fs::write(&file, "hello").expect("writing");
    assert_eq!(said(&file), format!("{} is not a journal, and holds none", file.display()));
    fs::remove_dir_all(journal.dir()).expect("removing");
    assert_eq!(said(dir.path()), format!("{} is not a journal, and holds none", dir.path().display()));
    assert!(said(journal.dir()).starts_with(&format!("reading {}: ", journal.dir().display())));
}

fn open_bytes(bytes: &[u8]) -> Result<Source, NoJournal> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.journal");
    fs::write(&path, bytes).expect("writing");
    Source::open(&path)
}

#[test]
fn memories_of_any_size_come_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open::<Echo>(dir.path(), "agent/echo", small()).expect("a journal");
    assert!(journal.dir().ends_with("agent+echo"));
    let mut recorder = journal.recorder::<Echo>(0);
    let mut known = 0;
    let sizes = [0_usize, 1, 300, 300, 70_000, 69_999, 3, 0];
    let memory = |size: usize| (0..size).map(|at| (at * 7) as u8).collect::<Vec<u8>>();
    let mut before = Vec::new();
    for size in sizes {
        let after = memory(size);
        let outcome = Outcome::Answered { answer: &b"yes".to_vec(), memory: &after };
        recorder.record(1, &(), &mut known, &"hm".to_owned(), &before, outcome).expect("one call always fits");
        while let Some(chunk) = recorder.take() {
            journal.write(chunk).expect("written");
        }
        before = after;
    }
    let reader = Reader::<Echo>::new(&Source::open(journal.dir()).expect("a journal")).expect("of this kind");
    let mut expected = Vec::new();
    let mut calls = 0;
    for (call, size) in reader.map(|item| item.expect("whole")).zip(sizes) {
        assert_eq!(call.before, expected);
        let Recorded::Answered { memory: after, .. } = call.outcome else { panic!("it answered") };
        assert_eq!(after, memory(size));
        expected = after;
        calls += 1;
    }
    assert_eq!(calls, sizes.len());
}

#[test]
fn a_slot_records_its_plugin_and_its_built_in_in_turns() {
    let bed = Bed::new();
    bed.put("tally.wasm", &Text::new("tally", 1).counter());
    let config = PluginConfig { journal: Some(JournalConfig::default()), ..PluginConfig::plugin("tally") };
    let slot = bed.counter(config);
    let mut sums: BTreeMap<(u64, bool), u64> = BTreeMap::new();
    let mut expected = 0;
    let mut decide = |is_plugin: bool| {
        for call in 0..30_u64 {
            let sum = sums.entry((call % 3, is_plugin)).or_default();
            *sum += call;
            let answer = slot.decide(&(call % 3), &add(call % 3, call));
            assert_eq!(answer, Answer::Total { sum: *sum, build: u32::from(is_plugin) });
            expected += 1;
        }
    };
    decide(false);
    bed.host.open();
    decide(true);
    bed.host.use_plugin("counter", None).expect("the built-in");
    decide(false);
    bed.host.use_plugin("counter", Some("tally")).expect("the plugin");
    decide(true);
    let dirs = bed.shut_down();
    let dir = Journal::dir_of(&dirs.path().join("state/journal"), "counter");
    let (seen, faults, summary) = read(&dir).expect("a journal");
    assert_eq!((seen.len(), faults, summary.skipped, summary.dropped), (expected, vec![], 0, 0));
    for call in &seen {
        let Ok((Answer::Total { sum, build }, memory)) = call.outcome else { panic!("{call:?}") };
        assert_eq!((sum, memory.0, build), (call.before.0 + call.request.add, sum, u32::from(call.generation > 0)));
    }
}
