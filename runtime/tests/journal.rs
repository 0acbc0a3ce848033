//! Journals: what is recorded comes back, call by call, whatever happens to the files.

mod support;

use std::path::Path;

use support::{Answer, Counter, Request, add};
use tenon_runtime::journal::{Fault, Journal, JournalConfig, Outcome, Reader, RecordId, Recorded, Source};

#[test]
fn a_call_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open::<Counter>(dir.path(), "a/b", JournalConfig::default()).expect("a journal");
    let mut recorder = journal.recorder::<Counter>(3);
    let mut known = 0;
    let (before, after) = ((1, 2, 3, 4), (6, 3, 3, 4));
    let answer = Answer::Total { sum: 6, build: 1 };
    let outcome = Outcome::Answered { answer: &answer, memory: &after };
    let id = recorder.record(7, &17, &mut known, &add(17, 5), &before, outcome).expect("there is room");
    assert_eq!((id.to_string().as_str(), known), ("1.3.0", 1));
    let chunk = recorder.take().expect("a call");
    journal.write(chunk).expect("written");
    let source = Source::open(journal.dir()).expect("a journal");
    let mut reader = Reader::<Counter>::new(&source).expect("of this kind");
    let call = reader.next().expect("a call").expect("whole");
    assert_eq!((call.id, call.generation, call.key, call.before), (id, 7, 17, before));
    assert!(reader.next().is_none());
}
