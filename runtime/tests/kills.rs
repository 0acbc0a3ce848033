//! A host that is killed at any instant, as a real process: what it had said is known to the next one, and what last
//! worked serves.
//!
//! The process that is killed is this test binary itself, started again for one ignored test.

mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use support::{Counter, Mode, Text, add, await_event, builtin, mode, patient, put};
use tenon_runtime::{By, Change, Digest, Host, HostConfig, Phase, PluginConfig, Probation, Slot, Stage};

/// Where the child finds its directories, and the number of its first version.
const DIR: &str = "HOST_CHILD_DIR";
const FIRST: &str = "HOST_CHILD_FIRST";

/// Versions in one pair of directories: each leaves some lines, and a history has 256.
const VERSIONS_MAX: u32 = 30;

/// Kills: 25, or what `TENON_TEST_KILLS` says.
fn kills() -> u32 {
    std::env::var("TENON_TEST_KILLS").map_or(25, |kills| kills.parse().expect("TENON_TEST_KILLS is a number"))
}

fn version(number: u32) -> Vec<u8> {
    Text::new("adder", number).counter()
}

/// A host on `dir`, and its slot.
fn host(dir: &Path) -> (Host, Slot<Counter>) {
    let mut config = HostConfig::new(dir.join("plugins"), dir.join("state"));
    (config.instances_max, config.shards) = (64, 2);
    let host = Host::new(config).expect("a host");
    // Nothing is proven within the test: a step back is always open.
    let probation = Probation { seconds: 3_600, failures: 2, max_slowdown: 1e6 };
    let slot = host.slot("counter", PluginConfig { probation, ..patient("adder") }, builtin).expect("the slot");
    (host, slot)
}

fn offer(dir: &Path, bytes: &[u8]) {
    put(&dir.join("plugins"), "adder.wasm", bytes);
}

#[test]
#[ignore = "the process that the other test of this file starts and kills"]
fn goes_on_until_it_is_killed() {
    let dir = std::env::var_os(DIR).expect("started by another test");
    let first: u32 = std::env::var(FIRST).expect("as that").parse().expect("a number");
    let dir = Path::new(&dir);
    let (host, slot) = host(dir);
    host.open();
    let mut events = host.events();
    for number in first.. {
        offer(dir, &version(number));
        host.reload("counter").expect("a good version");
        println!("\nsaid: live {number}");
        match number % 3 {
            0 => {
                host.roll_back("counter").expect("there was one before");
                println!("\nsaid: back {number}");
            }
            1 if number > first => {
                for client in 0..2 {
                    slot.ask(&client, &mode(Mode::Trap));
                }
                await_event(&mut events, |event| matches!(event.change, Change::RolledBack { .. }));
                println!("\nsaid: trapped {number}");
            }
            _ => {
                slot.ask(&7, &add(7, 1));
            }
        }
    }
}

/// A host in a process of its own. Killed when dropped.
struct Killed {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Killed {
    fn start(dir: &Path, first: u32) -> Killed {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "goes_on_until_it_is_killed", "--nocapture"])
            .env(DIR, dir)
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Killed { child, lines }
    }

    /// The next thing that it says: what became of which version; none at its end.
    fn says(&mut self) -> Option<(String, u32)> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("text") == 0 {
                return None;
            }
            if let Some((what, number)) =
                line.trim_end().split_once("said: ").and_then(|(_, said)| said.split_once(' '))
            {
                return Some((what.to_owned(), number.parse().expect("a number")));
            }
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_a_host_said_is_known_after_it_was_killed_and_what_last_worked_serves() {
    let (mut dirs, mut said, mut next) = (tempfile::tempdir().expect("a directory"), Vec::new(), 1);
    let (mut versions, mut taken_back, mut unsaved, mut seed) = (0, 0, 0, u64::from(std::process::id()));
    for kill in 0..kills() {
        if next > VERSIONS_MAX {
            (dirs, said, next) = (tempfile::tempdir().expect("a directory"), Vec::new(), 1);
        }
        // Knuth's multiplier; the upper bits are the random ones.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut host = Killed::start(dirs.path(), next);
        let first = said.len();
        while said.len() < first + 1 + (seed >> 33) as usize % 6 {
            said.push(host.says().unwrap_or_else(|| panic!("kill {kill}: it ended by itself after {said:?}")));
        }
        // Up to some milliseconds into what it does next.
        for _ in 0..(seed >> 40) % 20_000 {
            std::hint::spin_loop();
        }
        host.child.kill().expect("our own process");
        while let Some(more) = host.says() {
            said.push(more);
        }
        drop(host);
        next = said.last().map_or(next, |(_, number)| number + 1);
        let how = format!("kill {kill}, after {said:?}");
        let is_known = check(dirs.path(), &said, &how);
        if !is_known {
            said.pop();
            unsaved += 1;
        }
        // The version that it may have been about to offer counts as well: it is not offered twice.
        next += 1;
        (versions, taken_back) =
            said[first..].iter().fold((versions, taken_back), |(live, back), (what, _)| match &**what {
                "live" => (live + 1, back),
                _ => (live, back + 1),
            });
    }
    println!(
        "{} kills, {versions} versions, {taken_back} taken back, {unsaved} of those just before a kill forgotten",
        kills()
    );
    assert!(taken_back > kills() / 4, "{taken_back}");
}

/// Asserts that a host in `dir` knows what was said. Answers whether it knows the last of it, too: a step back that the host
/// took by itself is told before it is on disk, since calls do not wait for that.
fn check(dir: &Path, said: &[(String, u32)], how: &str) -> bool {
    // Nothing in the directory can serve: what last worked has to.
    offer(dir, b"no component");
    let (host, slot) = host(dir);
    host.open();
    assert!(matches!(slot.ask(&7, &add(7, 1)).by, By::Generation(_)), "{how}: {:?}", host.status());
    let history = host.history("counter").expect("the slot");
    let mut steps = history.iter();
    let mut is_known = true;
    for (nth, (what, number)) in said.iter().enumerate() {
        let digest = Some(Digest::of(&version(*number)));
        let phase = if what == "live" { Phase::Live } else { Phase::Quarantined };
        match steps.clone().position(|step| (step.digest, step.phase) == (digest, phase)) {
            Some(at) => drop(steps.nth(at)),
            None if what == "trapped" && nth + 1 == said.len() => is_known = false,
            None => panic!("{how}: {what} {number} is not in the history\n{history:#?}"),
        }
    }
    // What was taken back is not taken again.
    let backs = said[..said.len() - usize::from(!is_known)].iter().filter(|(what, _)| what != "live");
    for (_, number) in backs.rev().take(2) {
        offer(dir, &version(*number));
        let refused = host.reload("counter").expect_err("quarantined").to_string();
        assert!(refused.contains(&Stage::Quarantine.to_string()), "{how}: {refused}");
    }
    offer(dir, b"no component");
    host.stop();
    is_known
}
