//! The command line against nodes that run: real processes, driven and stopped as an operator does it.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("TENON_") || text == "NODE_URL" {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir).env("TENON_PLUGINS", tenon_build::path("token-bucket").parent().unwrap());
    command
}

/// What a command printed, after making sure that it ended with `code`.
#[track_caller]
fn printed(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = command(dir).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    if code == 0 { out } else { out + &err }
}

#[track_caller]
fn json(dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&printed(dir, &[&["--output", "json"], arguments].concat(), 0)).unwrap()
}

/// A node that runs in `dir/name`, and its log.
struct Node {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    url: String,
    path: PathBuf,
}

impl Node {
    fn start(dir: &Path, name: &str) -> Self {
        let arguments = ["run", "--dir", name, "--stop-with-stdin"];
        let mut child = command(dir).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let path = dir.join(name);
        let mut node = Self { child, log, url: String::new(), path };
        node.logged("serving rpc=");
        // The addresses are written right after.
        let addresses = loop {
            if let Ok(text) = fs::read_to_string(node.path.join("data/addresses.json")) {
                break text;
            }
            std::thread::yield_now();
        };
        let addresses: Value = serde_json::from_str(&addresses).unwrap();
        node.url = format!("http://{}", addresses["rpc"].as_str().unwrap());
        node
    }

    /// The next line of the log with `part` in it.
    fn logged(&mut self, part: &str) -> String {
        let mut read = Vec::new();
        for line in self.log.by_ref() {
            let line = line.unwrap();
            if line.contains(part) {
                return line;
            }
            read.push(line);
        }
        panic!("`{part}` was not logged:\n{}", read.join("\n"));
    }

    fn signal(&self, name: &str) {
        let ended = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(ended.success());
    }

    /// Waits until it has ended by itself.
    fn ended(mut self) {
        // Nobody else reads the log, and a full pipe would hold the node up.
        self.log.by_ref().for_each(drop);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(!self.path.join("data/addresses.json").exists(), "a node that has stopped has no addresses");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PORTS: [&str; 4] = ["--rpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

/// An authority that makes blocks quickly, running.
fn authority() -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    printed(
        dir.path(),
        &[&["init", "--dir", "authority", "--authority", "--chain-id", "test"], &PORTS[..]].concat(),
        0,
    );
    let file = dir.path().join("authority/tenon.toml");
    let text = fs::read_to_string(&file).unwrap().replace("interval_ms = 2000", "interval_ms = 50");
    fs::write(&file, text).unwrap();
    let node = Node::start(dir.path(), "authority");
    (dir, node)
}

#[test]
fn an_operator_works_with_two_nodes() {
    let (dir, authority) = authority();
    let dir = dir.path();
    let keys = ["--dir", "authority"];

    // A transfer on the authority: the node is found through the directory.
    let carol = json(dir, &[&["wallet", "create", "carol"], &keys[..]].concat());
    let sent = json(dir, &[&["wallet", "send", "alice", "carol", "500", "--wait"], &keys[..]].concat());
    assert_eq!(sent["status"], "confirmed");
    assert_eq!(json(dir, &[&["wallet", "balance", "carol"], &keys[..]].concat())["balance"], 500);
    let text = printed(dir, &[&["wallet", "send", "carol", "alice", "500"], &keys[..]].concat(), 1);
    assert!(text.contains("has 500, and needs 501: 500 and a fee of 1"), "{text}");
    let listed = json(dir, &[&["wallet", "transactions", "carol"], &keys[..]].concat());
    assert_eq!((&listed[0]["to"], &listed[0]["amount"]), (&carol["address"], &500.into()));

    // A follower of that chain and no other.
    let follow = ["init", "--dir", "follower", "--follow", &authority.url];
    let other = format!("0x{}", "1".repeat(64));
    let text = printed(dir, &[&follow[..], &["--genesis-hash", &other], &PORTS[..]].concat(), 1);
    assert!(text.contains("is on another chain") && !dir.join("follower").exists(), "{text}");
    let genesis = json(dir, &["chain", "block", "0", "--node", &authority.url]);
    let hash = genesis["hash"].as_str().unwrap();
    printed(dir, &[&follow[..], &["--genesis-hash", hash], &PORTS[..]].concat(), 0);
    let follower = Node::start(dir, "follower");
    let at = ["--node", follower.url.as_str()];
    printed(dir, &[&["sync", "once"], &at[..]].concat(), 0);
    assert_eq!(json(dir, &[&["sync", "status"], &at[..]].concat())["state"], "live");
    let verified = json(dir, &[&["chain", "verify"], &at[..]].concat());
    assert_eq!(verified["valid"], true, "{verified}");
    let text = printed(dir, &[&["chain", "verify", "--full"], &at[..]].concat(), 0);
    assert!(text.contains("are what its blocks make: 0x"), "{text}");

    // By its directory, without a word on where it listens; for people without JSON, and with times that have a zone.
    let own = ["--dir", "follower"];
    let text = printed(dir, &[&["sync", "status"], &own[..]].concat(), 0);
    assert!(text.contains("standing") && text.contains(&authority.url) && !text.contains('{'), "{text}");
    let head = printed(dir, &[&["chain", "head"], &own[..]].concat(), 0);
    let time = head.lines().find_map(|line| line.strip_prefix("timestamp")).expect("when it was made");
    assert!(time.ends_with('Z'), "{head}");
    let text = printed(dir, &[&["p2p", "peers"], &own[..]].concat(), 0);
    assert!(text.contains("no [p2p] in its configuration"), "{text}");
    // The state was verified when the node started, and it says so.
    let info: Value = serde_json::from_str(body(&ask(&follower.url, "/rpc/info"))).unwrap();
    assert_eq!((&info["state_check"]["ok"], &info["state_check"]["height"]), (&true.into(), &0.into()), "{info}");
    assert!(info["state_check"]["accounts"].as_u64() >= Some(2), "{info}");

    // A ping handed to the follower, answered on the authority, read on the follower.
    let ping = ["agent", "send", "--wallet", "alice", "--to", "bob", "ping", "--wait"];
    printed(dir, &[&ping[..], &keys, &at].concat(), 0);
    let follow = ["--output", "json", "agent", "messages", "--wallet", "alice", "--follow"];
    let arguments = [&follow[..], &keys, &at].concat();
    let mut reader = command(dir).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(reader.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let texts: Vec<Value> =
        lines.take(2).map(|line| serde_json::from_str::<Value>(&line).unwrap()["payload"].take()).collect();
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_eq!(texts, ["ping", "pong"]);

    // Stopped as a service manager does it, and as a program that started it does.
    follower.signal("TERM");
    follower.ended();
    let mut authority = authority;
    drop(authority.child.stdin.take());
    authority.ended();
    let text = printed(dir, &[&["chain", "head", "--node", "http://127.0.0.1:9"], &[][..]].concat(), 3);
    assert!(text.contains("no node answers"), "{text}");
}

#[test]
fn plugins_are_swapped_by_command_by_file_and_by_configuration() {
    let (dir, mut node) = authority();
    let dir = dir.path();
    let admin = ["--dir", "authority"];
    let slot = |arguments: &[&str]| json(dir, &[&["plugin"], arguments, &admin[..]].concat());

    let listed = slot(&["list"]);
    let serving: Vec<_> = listed.as_array().unwrap().iter().map(|slot| slot["plugin"].as_str().unwrap()).collect();
    assert_eq!(serving, ["ping-pong", "token-bucket", "parallel-range"]);
    assert_eq!(slot(&["use", "rate-limit", "sliding-window"])["generation"], 2);
    assert_eq!(slot(&["use", "rate-limit", "--builtin"])["status"], "builtin");
    assert_eq!(slot(&["use", "rate-limit", "token-bucket"])["generation"], 3);
    assert_eq!(slot(&["reload", "agent/bob"])["generation"], 2);
    let text = printed(dir, &[&["plugin", "use", "rate-limit", "ping-pong"], &admin[..]].concat(), 1);
    assert!(text.contains("ping-pong"), "{text}");
    let text = printed(dir, &[&["plugin", "reload", "nosuch"], &admin[..]].concat(), 1);
    assert!(text.contains("known: agent/bob, rate-limit, sync"), "{text}");
    let text = printed(dir, &[&["plugin", "list", "--token", "wrong"], &admin[..]].concat(), 1);
    assert!(text.contains("token"), "{text}");
    let text = printed(dir, &[&["plugin", "list", "--admin", node.url.as_str()], &admin[..]].concat(), 1);
    assert!(text.contains("is no admin API, but the listener for everyone"), "{text}");

    // Nonsense under the plugin's own name changes nothing, and is listed with its reason.
    let file = node.path.join("plugins/token-bucket.wasm");
    fs::write(node.path.join("plugins/new"), "nonsense").unwrap();
    fs::rename(node.path.join("plugins/new"), &file).unwrap();
    node.logged("not a WebAssembly component");
    let listed = slot(&["list"]);
    assert_eq!((&listed[1]["plugin"], &listed[1]["generation"]), (&"token-bucket".into(), &3.into()));
    assert!(listed[1]["last_error"].as_str().unwrap().contains("not a WebAssembly component"));

    // What can change while it runs does so at SIGHUP; a mistake changes nothing.
    let file = node.path.join("tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("use = \"token-bucket\"", "usse = \"token-bucket\"")).unwrap();
    node.signal("HUP");
    node.logged("did you mean `plugins.rate-limit.use`?");
    let text =
        text.replace("use = \"token-bucket\"", "use = \"allow-all\"").replace("reply = \"pong\"", "reply = \"Pong!\"");
    fs::write(&file, text).unwrap();
    node.signal("HUP");
    node.logged("configuration taken over slot=\"rate-limit\"");
    node.logged("configuration taken over slot=\"agent/bob\"");
    let listed = slot(&["list"]);
    assert_eq!(listed[1]["plugin"], "allow-all");
    assert_eq!(listed[0]["settings"]["reply"], "Pong!");
    // What holds only from the next start on is named.
    let text = fs::read_to_string(&file).unwrap().replace("interval_ms = 50", "interval_ms = 60");
    fs::write(&file, format!("{text}\n[monitor]\nlag_blocks = 11\n")).unwrap();
    node.signal("HUP");
    let line = node.logged("hold from the next start on");
    assert!(line.contains("knobs=\"monitor.lag_blocks, producer.interval_ms\""), "{line}");
    node.signal("INT");
    // No alarm in what a clean stop says.
    let line = node.logged("slot=\"rate-limit\"");
    assert!(line.contains("plugin stops with the node") && line.contains("INFO"), "{line}");
    node.ended();
}

#[test]
fn a_node_that_requires_signatures_is_served_by_what_is_signed_as_soon_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    printed(dir.path(), &[&["init", "--dir", "node", "--authority"], &PORTS[..]].concat(), 0);
    let key = json(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"]);
    let file = dir.path().join("node/tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    let trusted = format!("[plugins]\ntrusted_keys = [{}]\nrequire_signature = true\n", key["public_key"]);
    // More than the plugin host reserves by itself for an instance.
    let limits = "[plugins.sync.limits]\nmemory_max_bytes = 134_217_728\n";
    fs::write(&file, format!("{text}\n{trusted}{limits}")).unwrap();
    let sign = |name: &str| {
        json(dir.path(), &["plugin", "sign", &format!("node/plugins/{name}.wasm"), "--key", "key"]);
    };
    sign("token-bucket");
    let mut node = Node::start(dir.path(), "node");
    let slots = json(dir.path(), &["plugin", "list", "--dir", "node"]);
    let serves = |slot: &str| slots.as_array().unwrap().iter().find(|found| found["slot"] == slot).unwrap();
    assert_eq!(serves("rate-limit")["plugin"], "token-bucket", "{slots}");
    assert_eq!(serves("sync")["plugin"], Value::Null, "{slots}");
    sign("parallel-range");
    assert!(node.logged("plugin live").contains("slot=\"sync\""));
}

/// One request, as any caller makes it: the answer's head and body as text.
fn ask(url: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The body of such an answer, which is not sent in chunks.
fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head and a body").1
}

/// Puts another version of a shipped plugin into the node's directory: other bytes, the same behaviour.
fn another_version(node: &Path, plugin: &str, note: &str) {
    let bytes = fs::read(tenon_build::path(plugin)).unwrap();
    fs::write(node.join("plugins/staged"), tenon_build::restamp(&bytes, note)).unwrap();
    fs::rename(node.join("plugins/staged"), node.join(format!("plugins/{plugin}.wasm"))).unwrap();
}

#[test]
fn a_new_version_proves_itself_on_live_requests_and_every_refusal_can_be_explained() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    printed(dir, &[&["init", "--dir", "authority", "--authority"], &PORTS[..]].concat(), 0);
    let file = dir.join("authority/tenon.toml");
    let text = fs::read_to_string(&file).unwrap().replace(
        "use = \"token-bucket\"\n",
        "use = \"token-bucket\"\nrollout = { mode = \"shadow\", calls = 20, max_slowdown = 1000.0 }\n\
         probation = { seconds = 600, max_slowdown = 1000.0 }\njournal = { segments = 12 }\n\
         config = { read = { capacity = 1, refill_per_second = 1 }, trusted = [] }\n",
    );
    fs::write(&file, text).unwrap();
    let mut node = Node::start(dir, "authority");
    let admin = ["--dir", "authority"];
    let plugin = |arguments: &[&str]| json(dir, &[&["plugin"], arguments, &admin[..]].concat());

    // It costs more than the caller can ever have, so it is refused whatever the time is.
    let refused = ask(&node.url, "/rpc/transactions?limit=100");
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    let id = refused.lines().find_map(|line| line.strip_prefix("x-tenon-decision: ")).expect("its name").to_owned();
    let explained = plugin(&["explain", &id]);
    let text = explained.to_string();
    assert!(text.contains("too-expensive") && text.contains("token-bucket"), "{text}");
    assert_eq!(explained["again"]["is_same"], true, "{text}");
    // What there is to explain is listed, the newest first.
    let calls = plugin(&["explain"]);
    let listed = calls.as_array().unwrap().iter().find(|call| call["call"] == id.as_str()).expect("the refusal");
    assert_eq!(
        (&listed["answer"], &listed["plugin"], &listed["class"]),
        (&"deny".into(), &"token-bucket".into(), &"read".into())
    );
    assert!(listed["at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')), "{listed}");
    assert_eq!(plugin(&["explain", "--limit", "1"]).as_array().map(Vec::len), Some(1));
    // With other limits it would have passed.
    let roomy = r#"{"read":{"capacity":1000,"refill_per_second":1},"trusted":[]}"#;
    let text = plugin(&["explain", &id, "--config", roomy]).to_string();
    assert!(text.contains("allow"), "{text}");

    // New bytes: first in the shadow, live after enough requests that were answered alike.
    another_version(&node.path, "token-bucket", "second");
    node.logged("plugin in shadow");
    assert_eq!(plugin(&["list"])[1]["generation"], 1);
    let text = printed(dir, &[&["plugin", "list"], &admin[..]].concat(), 0);
    let row = text.lines().find(|line| line.starts_with("rate-limit")).expect("the slot");
    assert!(row.contains("live    shadow 2  "), "{text}");
    let metrics = ask(&node.url, "/metrics");
    for name in ["compared", "divergent", "dropped"] {
        let metric = format!("tenon_plugin_shadow_{name}{{slot=\"rate-limit\"}} ");
        assert!(metrics.contains(&metric), "{metric}");
    }
    for _ in 0..20 {
        ask(&node.url, "/rpc/transactions?limit=100");
    }
    node.logged("plugin live");
    assert_eq!(plugin(&["list"])[1]["generation"], 2);
    let shadow = plugin(&["shadow", "rate-limit"]);
    assert!(shadow["compared"].as_u64().unwrap() >= 20 && shadow["divergent"] == 0, "{shadow}");
    let metrics = ask(&node.url, "/metrics");
    for of_a_generation in ["calls_total", "generation_failures_total", "call_nanoseconds"] {
        let begins = format!("tenon_plugin_{of_a_generation}{{");
        let mut lines = metrics.lines().filter(|line| line.starts_with(&begins));
        assert!(
            lines.any(|line| ["slot=\"rate-limit\"", "plugin=\"token-bucket\"", "generation=\"2\""]
                .iter()
                .all(|label| line.contains(label))),
            "{begins}"
        );
    }
    for of_a_slot in ["generation", "fallbacks_total", "rescues_total", "memory_keys", "memories_lost_total"] {
        let metric = format!("tenon_plugin_{of_a_slot}{{slot=\"rate-limit\"}} ");
        assert!(metrics.contains(&metric), "{metric}");
    }

    // Another configuration, which lets through what was refused: called off, with what it would have answered.
    let narrow = fs::read_to_string(&file).unwrap();
    fs::write(&file, narrow.replace("capacity = 1, refill", "capacity = 1000, refill")).unwrap();
    node.signal("HUP");
    node.logged("plugin in shadow");
    ask(&node.url, "/rpc/transactions?limit=100");
    node.logged("candidate called off");
    let text = printed(dir, &[&["plugin", "shadow", "rate-limit"], &admin[..]].concat(), 0);
    for part in [
        "fields that differ",
        "read   deny  allow      1        1     all (1)",
        "live       {\"deny\":\"too-expensive\"}",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(text.contains("candidate  {\"allow\":{\"limit\":1000,"), "{text}");
    assert_eq!(plugin(&["list"])[1]["generation"], 2);
    fs::write(&file, &narrow).unwrap();

    // What was recorded, replayed through the same component and through one that refuses nothing.
    let journal = plugin(&["journal", "rate-limit"]);
    assert!(journal["records"].as_u64().unwrap() >= 21, "{journal}");
    let same = tenon_build::path("token-bucket");
    let same = plugin(&["replay", same.to_str().unwrap(), "--budget", "changed+0%"]);
    assert_eq!(same["changed"], 0, "{same}");
    let other = tenon_build::path("allow-all");
    let text = printed(
        dir,
        &[&["plugin", "replay", other.to_str().unwrap(), "--budget", "deny+0%,changed+10%"], &admin[..]].concat(),
        1,
    );
    assert!(text.contains("changed"), "{text}");

    // Recording ends and begins while the node runs, by hand and by the file.
    let ended = plugin(&["journal", "rate-limit", "--off"]);
    assert_eq!(ended["recording"], false, "{ended}");
    node.logged("recording ended");
    assert!(!ask(&node.url, "/rpc/transactions?limit=100").contains("x-tenon-decision"));
    let begun = plugin(&["journal", "rate-limit", "--on", "--sample", "1"]);
    assert_eq!((&begun["recording"], &begun["records"]), (&true.into(), &ended["records"]), "{begun}");
    assert_eq!((&begun["segments"], &begun["sample"]), (&12.into(), &1.0.into()), "what is not said stays: {begun}");
    assert!(ask(&node.url, "/rpc/transactions?limit=100").contains("x-tenon-decision"));
    let refused =
        printed(dir, &[&["plugin", "journal", "rate-limit", "--on", "--sample", "7"], &admin[..]].concat(), 1);
    assert!(refused.contains("sample is 7, expected 0 to 1"), "{refused}");
    // As the node read it last, so that nothing else is new.
    let wide = narrow.replace("capacity = 1, refill", "capacity = 1000, refill");
    fs::write(&file, wide.replace("journal = { segments = 12 }\n", "")).unwrap();
    node.signal("HUP");
    node.logged("recording ended");
    assert!(!ask(&node.url, "/rpc/transactions?limit=100").contains("x-tenon-decision"));
    fs::write(&file, wide).unwrap();
    node.signal("HUP");
    node.logged("recording calls");
    assert!(ask(&node.url, "/rpc/transactions?limit=100").contains("x-tenon-decision"));
    fs::write(&file, narrow).unwrap();

    // Taken back by hand; the bytes are not taken again, not even by a node that was killed and starts anew.
    assert_eq!(plugin(&["rollback", "rate-limit"])["generation"], 1);
    let line = node.logged("plugin rolled back");
    assert!(line.contains("INFO") && line.contains("by hand"), "{line}");
    let history = printed(dir, &[&["plugin", "history", "rate-limit"], &admin[..]].concat(), 0);
    assert!(history.contains("an operator took it back by hand"), "{history}");
    assert_eq!(plugin(&["list"])[1]["by_hand"], true);
    printed(dir, &[&["plugin", "rollback", "rate-limit"], &admin[..]].concat(), 1);
    drop(node);
    let mut node = Node::start(dir, "authority");
    let listed = plugin(&["list"]);
    let candidate = listed[1]["candidate"].to_string();
    assert!(candidate.contains("quarantine"), "{listed}");
    let phases: Vec<String> = plugin(&["history", "rate-limit"])
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["phase"].as_str().unwrap().to_owned())
        .collect();
    assert!(phases.contains(&"quarantined".to_owned()), "{phases:?}");
    assert!(phases.contains(&"started".to_owned()), "{phases:?}");
    let text = printed(dir, &[&["plugin", "history", "rate-limit"], &admin[..]].concat(), 0);
    let started = text.lines().find(|line| line.contains("started")).expect("the restart");
    // By words: a moment without a fraction of a second is written shorter.
    let [at, generation] = [0, 1].map(|at| started.split_whitespace().nth(at).expect("a column"));
    assert!(at.starts_with("20") && at.contains('T') && at.ends_with('Z') && generation == "0", "{text}");
    let titles = text.lines().next().expect("titles");
    assert!(titles.contains("digest") && titles.contains("configuration"), "{text}");
    // What is wanted does not serve: the alert says so, and the list.
    assert!(listed[1]["refused"].to_string().contains("quarantine"), "{listed}");
    fs::write(node.path.join("plugins/broken.wasm"), "nonsense").unwrap();
    node.logged("plugin rejected");
    let listed = plugin(&["list"]);
    let files: Vec<&Value> = listed.as_array().unwrap().iter().filter(|row| row["path"].is_string()).collect();
    let broken = files.iter().find(|file| file["path"] == "broken.wasm").expect("a row of its own");
    assert!(broken["refused"].as_str().is_some_and(|reason| !reason.is_empty()), "{listed}");
    let text = printed(dir, &[&["plugin", "list"], &admin[..]].concat(), 0);
    assert!(text.lines().any(|line| line.starts_with("broken.wasm")), "{text}");
    // Unless the operator says so.
    assert_eq!(plugin(&["promote", "rate-limit", "--force"])["status"], "live");
    node.logged("plugin live");
    node.signal("TERM");
    node.ended();
}

#[test]
fn a_node_reads_its_file_anew_and_tells_of_what_it_cannot_have() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    printed(dir, &[&["init", "--dir", "authority", "--authority"], &PORTS[..]].concat(), 0);
    let file = dir.join("authority/tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    let becomes = |lines: &str| fs::write(&file, text.replace("use = \"token-bucket\"\n", lines)).unwrap();
    becomes("");
    let mut node = Node::start(dir, "authority");
    let slot = || {
        let listed = json(dir, &["plugin", "list", "--dir", "authority"]);
        listed.as_array().unwrap().iter().find(|slot| slot["slot"] == "rate-limit").unwrap().clone()
    };
    assert_eq!(slot()["generation"], 0, "the built-in");
    assert!(ask(&node.url, "/rpc/transactions?limit=100").starts_with("HTTP/1.1 200"));

    // The limits of the built-in, too.
    becomes("config = { read = { capacity = 1, refill_per_second = 1 }, trusted = [] }\n");
    node.signal("HUP");
    node.logged("configuration taken over slot=\"rate-limit\"");
    assert!(ask(&node.url, "/rpc/transactions?limit=100").starts_with("HTTP/1.1 413"));

    // A plugin that is not there: what is wanted does not serve, and each time that the file is read it is tried again.
    becomes("use = \"no-such\"\nconfig = { read = { capacity = 2, refill_per_second = 1 }, trusted = [] }\n");
    for _ in 0..2 {
        node.signal("HUP");
        let line = node.logged("configuration not taken over");
        assert!(line.contains("rate-limit") && line.contains("no-such"), "{line}");
        let slot = slot();
        assert!(slot["refused"].as_str().unwrap().contains("no-such"), "{slot}");
        assert_eq!((&slot["by_hand"], &slot["settings"]["read"]["capacity"]), (&false.into(), &1.into()), "{slot}");
    }
    // It is wanted no more.
    becomes("config = { read = { capacity = 3, refill_per_second = 1 }, trusted = [] }\n");
    node.signal("HUP");
    node.logged("configuration taken over slot=\"rate-limit\"");
    assert_eq!((&slot()["refused"], &slot()["settings"]["read"]["capacity"]), (&Value::Null, &3.into()));

    // Of a change that is refused in part, the part that was taken holds: the rest alone is tried again.
    becomes("use = \"token-bucket\"\nconfig = { reed = 1 }\n");
    node.signal("HUP");
    node.logged("configuration not taken over");
    let generation = slot()["generation"].clone();
    assert_eq!((&slot()["plugin"], generation.as_u64() > Some(0)), (&"token-bucket".into(), true));
    becomes("use = \"token-bucket\"\nconfig = { read = { capacity = 4, refill_per_second = 1 }, trusted = [] }\n");
    node.signal("HUP");
    node.logged("configuration taken over slot=\"rate-limit\"");
    let slot = slot();
    assert_eq!((&slot["refused"], &slot["settings"]["read"]["capacity"]), (&Value::Null, &4.into()));
    assert_eq!(slot["generation"].as_u64(), generation.as_u64().map(|number| number + 1), "one swap, not two");
}
