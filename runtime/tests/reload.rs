//! The plugin directory: what is taken when, what is kept, what survives a restart.

mod support;

use std::{fs, time::Duration};

use proptest::prelude::*;
use support::{Answer, Bed, Counter, Text, add, await_event, builtin, drain, names, put};
use tenon_runtime::{By, Change, Condition, Event, Limits, PluginConfig, Stage};

const SUM_ONE: fn(u32) -> Answer = |build| Answer::Total { sum: 1, build };

fn is_live(event: &Event) -> bool {
    matches!(event.change, Change::Live { .. })
}

fn rejection(event: &Event) -> Option<(Stage, &str)> {
    match &event.change {
        Change::Rejected { stage, reason, .. } => Some((*stage, reason)),
        _ => None,
    }
}

#[test]
fn a_file_renamed_into_place_goes_live_by_the_watch_alone() {
    // Nothing but the watch can find it: no scan within the test, no quiet that ends.
    let bed = Bed::with(|config| {
        config.scan_interval = Duration::from_secs(86_400);
        config.quiet = Duration::from_secs(86_400);
    });
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    for build in 2..6 {
        bed.put("adder.wasm", &Text::new("adder", build).counter());
        let event = await_event(&mut events, is_live);
        assert_eq!(event.generation, u64::from(build));
        assert_eq!(slot.decide(&u64::from(build), &add(0, 1)), SUM_ONE(build));
    }
}

#[test]
fn a_file_renamed_into_a_new_sub_folder_is_found() {
    let bed = Bed::with(|config| config.scan_interval = Duration::from_millis(100));
    let slot = bed.counter(PluginConfig::plugin("adder"));
    bed.host.open();
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    bed.put("team/limits/adder.wasm", &Text::new("adder", 1).counter());
    await_event(&mut events, is_live);
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
}

#[test]
fn a_file_written_in_place_is_taken_once_it_is_complete() {
    let bed = Bed::with(|config| config.scan_interval = Duration::from_millis(100));
    let slot = bed.counter(PluginConfig::plugin("adder"));
    bed.host.open();
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    let bytes = Text::new("adder", 1).counter();
    fs::write(bed.plugins().join("adder.wasm"), &bytes).expect("writing");
    await_event(&mut events, is_live);
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
}

#[test]
fn a_scan_finds_what_the_watch_did_not_tell() {
    // Never watched: the reload's own scan, by hash, with the same size and time stamp as before.
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let path = bed.plugins().join("adder.wasm");
    let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time");
    let file = fs::File::options().write(true).open(&path).expect("the file");
    std::io::Write::write_all(&mut &file, &Text::new("adder", 2).counter()).expect("the same size");
    file.set_modified(modified).expect("the same time");
    bed.host.reload("counter").expect("sound");
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(2));
}

#[test]
fn the_watch_survives_the_directory_being_replaced() {
    let bed = Bed::with(|config| config.scan_interval = Duration::from_millis(50));
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    let next = bed.dirs.path().join("next");
    put(&next, "adder.wasm", &Text::new("adder", 2).counter());
    fs::rename(bed.plugins(), bed.dirs.path().join("former")).expect("away with the old");
    fs::rename(&next, bed.plugins()).expect("in with the new");
    await_event(&mut events, |event| is_live(event) && event.generation == 2);
    bed.put("adder.wasm", &Text::new("adder", 3).counter());
    await_event(&mut events, |event| is_live(event) && event.generation == 3);
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(3));
}

#[test]
fn every_truncation_of_a_component_is_rejected_and_the_live_one_serves_on() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let bytes = Text::new("adder", 2).counter();
    for end in (0..bytes.len()).step_by(97) {
        bed.put("adder.wasm", &bytes[..end]);
        bed.host.reload("counter").expect("what was good there is offered again");
        let file = &bed.host.plugins()[0];
        assert_eq!(file.rejection.as_ref().map(|rejection| rejection.stage), Some(Stage::Inspect));
        assert_eq!(slot.decide(&(end as u64), &add(0, 1)), SUM_ONE(1));
    }
    bed.put("adder.wasm", &bytes);
    bed.host.reload("counter").expect("whole at last");
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(2));
}

#[test]
fn a_bad_file_keeps_the_live_generation_and_is_reported_once() {
    let bed = Bed::with(|config| config.scan_interval = Duration::from_millis(20));
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let mut events = bed.host.events();
    bed.host.watch().expect("watching");
    bed.put("adder.wasm", b"not wasm at all");
    let event = await_event(&mut events, |event| rejection(event).is_some());
    assert_eq!(rejection(&event), Some((Stage::Inspect, "not a WebAssembly component")));
    assert_eq!((event.slot.as_deref(), event.plugin.as_deref(), event.generation), (Some("counter"), Some("adder"), 1));
    // A good file elsewhere comes through several scans later: the bad one is no news any more.
    bed.put("other.wasm", &Text::new("other", 9).counter());
    while bed.host.plugins().len() < 2 {
        std::thread::yield_now();
    }
    assert_eq!(drain(&mut events), []);
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
    assert!(bed.status().candidate.is_some());
}

#[test]
fn a_candidate_that_was_not_taken_is_forgotten_when_what_serves_is_what_is_wanted() {
    let bed = Bed::with(|config| {
        config.scan_interval = Duration::from_millis(10);
        config.quiet = Duration::from_millis(1);
    });
    let good = Text::new("adder", 1).counter();
    let refuses = |build| Text { configure: 1, ..Text::new("adder", build) }.counter();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.put("other.wasm", &Text { configure: 1, ..Text::new("other", 1) }.counter());
    bed.host.watch().expect("watching");
    let stage = || bed.status().candidate.map(|rejection| rejection.stage);
    let becomes = |expected: Option<Stage>| {
        while stage() != expected {
            std::thread::yield_now();
        }
    };
    // Both ways of not being taken, and twice the same bytes: each time it is news.
    for bytes in [&b"no component"[..], &refuses(2), b"no component", &refuses(2), &refuses(3)] {
        bed.put("adder.wasm", bytes);
        becomes(Some(if bytes.len() < 20 { Stage::Inspect } else { Stage::Configure }));
        assert!(bed.status().last_error.is_some());
        bed.put("adder.wasm", &good);
        becomes(None);
        assert_eq!((slot.generation(), bed.status().last_error), (1, None), "what serves did not change");
    }
    // One after the other, none of them good: the last one counts.
    bed.put("adder.wasm", b"no component");
    becomes(Some(Stage::Inspect));
    bed.put("adder.wasm", &refuses(2));
    becomes(Some(Stage::Configure));
    // Another file with it, which goes again.
    bed.put("adder.wasm", &good);
    becomes(None);
    bed.put("newer.wasm", &refuses(2));
    becomes(Some(Stage::Configure));
    fs::remove_file(bed.plugins().join("newer.wasm")).expect("removing");
    becomes(None);
    // Good bytes that are newer.
    bed.put("adder.wasm", &refuses(2));
    becomes(Some(Stage::Configure));
    bed.put("adder.wasm", &Text::new("adder", 4).counter());
    becomes(None);
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(4));

    // What an operator tried in vain stays to be seen, whatever else is looked at meanwhile.
    bed.host.use_plugin("counter", Some("other")).expect_err("it refuses");
    let mut events = bed.host.events();
    bed.put("third.wasm", b"no component");
    await_event(&mut events, |event| rejection(event).is_some());
    assert_eq!(stage(), Some(Stage::Configure));
    bed.host.use_plugin("counter", None).expect("the built-in");
    assert_eq!(stage(), None);
}

#[test]
fn every_slot_of_a_plugin_is_told_that_its_file_is_bad_and_that_it_is_good_again() {
    let bed = Bed::with(|config| config.quiet = Duration::from_millis(1));
    let _slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let second = bed.host.slot::<Counter>("second", PluginConfig::plugin("adder"), builtin).expect("a slot");
    assert_eq!(second.generation(), 1);
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    bed.put("adder.wasm", b"no component");
    for slot in ["counter", "second"] {
        let event = await_event(&mut events, |event| rejection(event).is_some());
        assert_eq!(event.slot.as_deref(), Some(slot));
    }
    assert!(bed.host.status().iter().all(|status| status.candidate.is_some()));
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    while bed.host.status().iter().any(|status| status.candidate.is_some()) {
        std::thread::yield_now();
    }
}

#[test]
fn after_a_restart_a_rejection_goes_as_well_when_the_good_bytes_are_back() {
    let good = Text::new("adder", 1).counter();
    for bad in [b"half a fi".to_vec(), Text { configure: 1, ..Text::new("adder", 2) }.counter()] {
        let bed = Bed::new();
        bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
        let dirs = bed.shut_down();
        put(&dirs.path().join("plugins"), "adder.wasm", &bad);
        let bed = Bed::again(dirs, |config| config.quiet = Duration::from_millis(1));
        let slot = bed.counter(PluginConfig::plugin("adder"));
        assert_eq!(bed.host.open().rejected.len(), 1);
        assert!(bed.status().candidate.is_some());
        bed.host.watch().expect("watching");
        bed.put("adder.wasm", &good);
        while bed.status().candidate.is_some() {
            std::thread::yield_now();
        }
        assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
    }
}

#[test]
fn removing_the_file_retires_the_plugin_and_overwriting_it_does_not() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    fs::remove_file(bed.plugins().join("adder.wasm")).expect("removing");
    await_event(&mut events, |event| {
        matches!(event.change, Change::Removed { .. }) || matches!(event.change, Change::Retired { .. })
    });
    let lacks = Some("no file that is taken holds the plugin adder".to_owned());
    while bed.status().last_error != lacks {
        std::thread::yield_now();
    }
    assert_eq!((slot.generation(), slot.ask(&1, &add(0, 1)).by), (0, By::Builtin));
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    await_event(&mut events, is_live);
    assert_eq!((slot.generation(), bed.status().last_error), (2, None));
}

#[test]
fn of_two_files_with_one_name_the_newer_serves_and_the_other_is_reported() {
    let bed = Bed::new();
    let old = bed.put("a.wasm", &Text::new("adder", 1).counter());
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    fs::File::options().write(true).open(&old).and_then(|file| file.set_modified(past)).expect("an older time");
    bed.put("b.wasm", &Text::new("adder", 2).counter());
    let slot = bed.counter(PluginConfig::plugin("adder"));
    let mut events = bed.host.events();
    bed.host.open();
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(2));
    let duplicate = Change::Duplicate { serves: "b.wasm".into(), ignored: "a.wasm".into() };
    assert!(drain(&mut events).iter().any(|event| event.change == duplicate));
    assert_eq!(bed.host.plugins()[0].shadowed_by, Some("b.wasm".into()));
    // The newer one goes: the older takes over.
    fs::remove_file(bed.plugins().join("b.wasm")).expect("removing");
    bed.host.reload("counter").expect("the older one");
    assert_eq!(slot.decide(&2, &add(0, 1)), SUM_ONE(1));
}

#[test]
fn a_bad_plugin_at_boot_never_stops_the_host() {
    let bed = Bed::new();
    bed.put("adder.wasm", b"\0asm\x0d\0\x01\0 and then nothing");
    bed.put("spin.wasm", &Text { configure: 3, ..Text::new("spin", 1) }.counter());
    let limits = Limits { start_deadline_ms: 50, ..Limits::default() };
    let slot = bed.counter(PluginConfig::plugin("adder"));
    let config = PluginConfig { limits, ..PluginConfig::plugin("spin") };
    let spin = bed.host.slot::<Counter>("spin", config, builtin).expect("a slot");
    let report = bed.host.open();
    assert_eq!(report.rejected.len(), 2);
    assert_eq!((report.rejected[0].stage, report.rejected[1].stage), (Stage::Inspect, Stage::Configure));
    assert_eq!(report.rejected[0].path, Some("adder.wasm".into()));
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(0));
    assert_eq!(spin.decide(&1, &add(0, 1)), SUM_ONE(0));
    assert!(report.slots.iter().all(|status| status.status == Condition::Builtin));
}

#[test]
fn what_last_worked_serves_after_a_restart_with_a_broken_file() {
    let bed = Bed::new();
    bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let dirs = bed.shut_down();
    put(&dirs.path().join("plugins"), "adder.wasm", b"half a fi");

    let bed = Bed::again(dirs, |_| {});
    let slot = bed.counter(PluginConfig::plugin("adder"));
    let report = bed.host.open();
    assert_eq!(report.rejected.len(), 1);
    assert_eq!(slot.ask(&1, &add(0, 1)).answer, SUM_ONE(1));
    let dirs = bed.shut_down();

    // Without the file there is nothing to stand in for.
    fs::remove_file(dirs.path().join("plugins/adder.wasm")).expect("removing");
    let bed = Bed::again(dirs, |_| {});
    let slot = bed.counter(PluginConfig::plugin("adder"));
    bed.host.open();
    assert_eq!(slot.ask(&1, &add(0, 1)).by, By::Builtin);
}

#[test]
fn what_last_worked_serves_after_a_restart_with_a_version_that_refuses_its_settings() {
    let bed = Bed::new();
    bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let dirs = bed.shut_down();
    let refuses = Text { configure: 1, ..Text::new("adder", 2) };
    put(&dirs.path().join("plugins"), "adder.wasm", &refuses.counter());

    let bed = Bed::again(dirs, |_| {});
    let slot = bed.counter(PluginConfig::plugin("adder"));
    let report = bed.host.open();
    assert_eq!(report.rejected[0].reason, "no, thank you");
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
    assert!(bed.status().candidate.is_some());
}

#[test]
fn where_what_last_worked_does_not_serve_either_it_is_what_is_wanted_that_is_told() {
    let bed = Bed::new();
    bed.serving(&Text { pages: 64, ..Text::new("adder", 1) }, PluginConfig::plugin("adder"));
    let dirs = bed.shut_down();
    let refuses = Text { configure: 1, ..Text::new("adder", 2) };
    put(&dirs.path().join("plugins"), "adder.wasm", &refuses.counter());

    let bed = Bed::again(dirs, |_| {});
    // Less than the version has that worked before.
    let limits = Limits { memory_max_bytes: 1 << 20, ..Limits::default() };
    let slot = bed.counter(PluginConfig { limits, ..PluginConfig::plugin("adder") });
    let report = bed.host.open();
    assert_eq!(report.rejected[0].reason, "no, thank you");
    assert_eq!(slot.ask(&1, &add(0, 1)).by, By::Builtin);
    let status = bed.status();
    assert!(status.refused.as_ref().is_some_and(|refused| refused.contains("no, thank you")), "{status:?}");
    assert_eq!(status.candidate.map(|candidate| candidate.reason), Some("no, thank you".to_owned()));
}

#[test]
fn a_watch_never_takes_the_same_bytes_twice() {
    let bed = Bed::with(|config| {
        config.scan_interval = Duration::from_millis(10);
        config.quiet = Duration::from_millis(1);
    });
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.watch().expect("watching");
    let mut events = bed.host.events();
    for _ in 0..5 {
        bed.put("adder.wasm", &Text::new("adder", 1).counter());
    }
    bed.put("other.wasm", &Text::new("other", 1).counter());
    while bed.host.plugins().len() < 2 {
        std::thread::yield_now();
    }
    assert_eq!(names(&drain(&mut events)), Vec::<&str>::new());
    assert_eq!(slot.generation(), 1);
}

#[test]
fn hidden_and_foreign_files_are_left_alone() {
    let bed = Bed::new();
    for name in [".hidden.wasm", "adder.wasm.part", "notes.txt", ".git/adder.wasm"] {
        let path = bed.plugins().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        fs::write(path, Text::new("adder", 1).counter()).expect("writing");
    }
    bed.counter(PluginConfig::plugin("adder"));
    let report = bed.host.open();
    assert_eq!((report.plugins, report.rejected), (Vec::new(), Vec::new()));
}

#[test]
fn a_directory_that_is_gone_for_a_moment_stops_nothing() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let away = bed.dirs.path().join("away");
    fs::rename(bed.plugins(), &away).expect("away");
    bed.host.reload("counter").expect("from what is known");
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(1));
    fs::rename(&away, bed.plugins()).expect("back");
}

#[test]
fn nothing_is_ever_written_to_the_plugin_directory() {
    let bed = Bed::new();
    bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.reload("counter").expect("a second generation");
    let names: Vec<_> =
        fs::read_dir(bed.plugins()).expect("the directory").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["adder.wasm"]);
}

#[test]
fn a_file_above_its_size_limit_is_not_read_to_its_end() {
    let bed = Bed::with(|config| config.file_max_bytes = 1_000);
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let report = {
        bed.counter(PluginConfig::plugin("adder"));
        bed.host.open()
    };
    assert_eq!((report.rejected[0].stage, &*report.rejected[0].reason), (Stage::Read, "larger than 1000 bytes"));
}

#[test]
fn stopping_twice_is_stopping_once_and_calls_go_on() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    bed.host.watch().expect("watching");
    bed.host.watch().expect("watching already");
    bed.host.stop();
    bed.host.stop();
    assert_eq!(slot.decide(&1, &add(0, 1)), SUM_ONE(0));
    assert_eq!(bed.host.instances(), 0);
}

/// Something that happens to the plugin directory.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Good { file: usize, build: u32 },
    Bad { file: usize },
    Gone { file: usize },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..3_usize, 1..4_u32).prop_map(|(file, build)| Happens::Good { file, build }),
        2 => (0..3_usize).prop_map(|file| Happens::Bad { file }),
        1 => (0..3_usize).prop_map(|file| Happens::Gone { file }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_happens_to_the_files_the_newest_good_one_serves(
        story in proptest::collection::vec(happens(), 1..12),
    ) {
        const FILES: [&str; 3] = ["a.wasm", "b/b.wasm", "c.wasm"];
        let bed = Bed::new();
        let slot = bed.counter(PluginConfig::plugin("adder"));
        bed.host.open();
        // By file: when it last changed, and what was last good there.
        let mut model: [Option<(usize, Option<u32>)>; 3] = [None; 3];
        for (at, happens) in story.into_iter().enumerate() {
            match happens {
                Happens::Good { file, build } => {
                    bed.put(FILES[file], &Text::new("adder", build).counter());
                    model[file] = Some((at, Some(build)));
                }
                Happens::Bad { file } => {
                    bed.put(FILES[file], b"\0asm and nonsense");
                    model[file] = Some((at, model[file].and_then(|(_, good)| good)));
                }
                Happens::Gone { file } => {
                    let _ = fs::remove_file(bed.plugins().join(FILES[file]));
                    model[file] = None;
                }
            }
            for (file, state) in FILES.iter().zip(model) {
                if let Some((at, _)) = state {
                    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + at as u64);
                    let file = fs::File::options().write(true).open(bed.plugins().join(file));
                    file.and_then(|file| file.set_modified(time)).expect("the time of the change");
                }
            }
            let _ = bed.host.reload("counter");
            let serves = model.iter().flatten().filter_map(|(at, good)| Some((*at, (*good)?))).max();
            let build = serves.map_or(0, |(_, build)| build);
            prop_assert_eq!(slot.decide(&(at as u64), &add(0, 1)), SUM_ONE(build));
            let files: Vec<_> = bed.host.plugins().into_iter().map(|file| file.path).collect();
            let expected: Vec<_> = FILES.iter().zip(model).filter(|(_, state)| state.is_some()).map(|(file, _)| std::path::PathBuf::from(file)).collect();
            prop_assert_eq!(files, expected);
        }
    }
}
