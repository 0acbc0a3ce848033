//! `tenon sync watch` where nobody sees a terminal: lines for several nodes, and exit codes that say how they stood
//! last.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

#[expect(dead_code, reason = "shared: each test file uses its part")]
#[path = "support/process.rs"]
mod process;
use process::{Process, authority, follower, tenon};

/// The command as it runs.
struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(arguments: &[&str], nodes: &[&str]) -> Self {
        let nodes = nodes.iter().flat_map(|node| ["--node", node]);
        let mut command = tenon();
        command.args(arguments).args(nodes).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that `is_it` accepts.
    fn until(&mut self, is_it: impl Fn(&str) -> bool) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| is_it(line)).expect("such a line comes")
    }

    /// Tells it to stop; answers its exit code and what it said of errors.
    fn end(self, signal: &str) -> (i32, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.ended()
    }

    fn ended(mut self) -> (i32, String) {
        // Nobody else reads, and a full pipe would hold it up.
        self.lines.by_ref().for_each(drop);
        let output = self.child.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_nodes_are_watched_line_by_line_and_the_exit_code_says_how_they_stood() {
    let dir = tempfile::tempdir().unwrap();
    let (leader_dir, follower_dir) = (dir.path().join("authority"), dir.path().join("follower"));
    tokio::task::block_in_place(|| authority(&leader_dir, 5, 1));
    let leader = Process::start(&leader_dir);
    follower(&follower_dir, &leader.rpc);
    let follower = Process::start(&follower_dir);
    follower.until("/ready", |answer| answer["ready"] == true).await;
    let (leader_url, follower_url) = (leader.rpc.clone(), follower.rpc.clone());
    let (leader_name, follower_name) = (&leader_url["http://".len()..], &follower_url["http://".len()..]);

    // Both are well.
    let mut watch = Watch::start(&["sync", "watch"], &[&leader_url, &follower_url, &leader_url]);
    let lines = [watch.until(|_| true), watch.until(|_| true)];
    for (name, state) in [(leader_name, "  authority  "), (follower_name, "  live  ")] {
        let line = lines.iter().find(|line| line.starts_with(name)).expect("each node has a line");
        assert!(line.contains(state) && line.contains(" of ") && line.ends_with(" blocks/s"), "{line}");
    }
    let (code, error) = watch.end("-INT");
    assert_eq!((code, error.as_str()), (0, ""));

    // One node, as it always was: no name, one line a change.
    let mut one = Watch::start(&["sync", "watch"], &[&follower_url]);
    assert!(one.until(|_| true).starts_with("live  "));
    assert_eq!(one.end("-TERM").0, 0);

    // As objects: one a look.
    let mut watch = Watch::start(&["--output", "json", "sync", "watch"], &[&leader_url, &follower_url]);
    let line = watch.until(|line| line.contains(&follower_url));
    let look: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&look["node"], &look["status"]["state"]), (&follower_url.as_str().into(), &"live".into()));
    assert_eq!(look["alerts"]["firing"], 0);

    // The leader goes: its row says so, the follower's changes, and the exit code is that of a node that is behind.
    drop(watch);
    let mut watch = Watch::start(&["sync", "watch"], &[&leader_url, &follower_url]);
    watch.until(|line| line.starts_with(follower_name) && line.contains("  live  "));
    leader.kill();
    watch.until(|line| line.starts_with(leader_name) && line.contains("  unreachable  "));
    watch.until(|line| line.starts_with(follower_name) && line.contains("  no-source  "));
    assert_eq!(watch.end("-INT").0, 4);

    // Nobody is left: it ends by itself.
    let mut watch = Watch::start(&["sync", "watch"], &[&leader_url, &follower_url]);
    watch.until(|line| line.starts_with(follower_name) && line.contains("  no-source  "));
    follower.kill();
    watch.until(|line| line.starts_with(follower_name) && line.contains("  unreachable  "));
    let (code, error) = watch.ended();
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("no node answers at"), "{error}");
    let (code, error) = Watch::start(&["sync", "watch"], &[&follower_url]).ended();
    assert!(code == 3 && error.contains(&follower_url), "{error}");
}

#[test]
fn other_commands_take_one_node() {
    let (code, error) = Watch::start(&["chain", "head"], &["http://127.0.0.1:1", "http://127.0.0.1:2"]).ended();
    assert_eq!(
        (code, error.trim()),
        (2, "error: this command talks to one node, and 2 are named; only `sync watch` takes several")
    );
    let (code, error) = Watch::start(&["sync", "watch"], &["nonsense"]).ended();
    assert!(code == 2 && error.contains("`nonsense` is no address of a node"), "{error}");
}
