//! A node as its operator has it: a process in a directory, which can be killed at any instant.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use serde_json::Value;
use tenon::chain::{Address, Genesis, SecretKey};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::Sample;
use tenon::wallet::Wallet;

/// How long anything that must happen may take, on a machine that does a lot else.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The `tenon` command.
pub fn tenon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    // What is said to the tests is not said to the node, which takes every `TENON_…` for one of its knobs.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
        command.env_remove(name);
    }
    command.env("TENON_LOG", "warn").stdin(Stdio::null());
    command
}

/// Runs `tenon` with `arguments`; answers what it prints. Panics, with all it said, when it fails.
pub fn run(arguments: &[&str]) -> String {
    let output = tenon().args(arguments).output().expect("the binary is built");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "tenon {}: {}\n{out}\n{err}", arguments.join(" "), output.status);
    out.into_owned()
}

/// Writes an authority's directory on free ports, with the shipped plugins, and with `blocks` blocks of `transactions`
/// really signed transactions each in its database.
pub fn authority(dir: &Path, blocks: usize, transactions: usize) -> Genesis {
    let listen = ["--rpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let shown = dir.to_str().expect("a path of text");
    run(&[&["init", "--dir", shown, "--authority"], &listen[..]].concat());
    let genesis = Genesis::parse(&std::fs::read_to_string(dir.join("genesis.json")).unwrap()).unwrap();
    if blocks > 0 {
        let keys = ["authority", "alice", "bob"].map(|name| key(dir, name));
        let [authority, alice, bob] = keys;
        // Close together: the chain began just now, and its blocks must not lie in the future.
        let mut sample = Sample::on(genesis.clone().into(), authority, vec![alice, bob]).step_us(20);
        fill(&dir.join("data/chain.db"), &genesis, &mut sample, blocks, transactions);
    }
    genesis
}

/// Puts sample blocks into a database that no node has open.
pub fn fill(path: &Path, genesis: &Genesis, sample: &mut Sample, blocks: usize, transactions: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ledger = Ledger::open(LedgerOptions::new(path.to_owned(), genesis.clone()), Vec::new()).unwrap();
    let mut left = blocks;
    while left > 0 {
        let some = sample.blocks(left.min(1_000), transactions);
        left -= some.len();
        let verified = tenon::chain::verify::verify_all(some, genesis).into_iter().map(Result::unwrap).collect();
        let answers = runtime.block_on(ledger.import(verified));
        assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
    }
    ledger.stop();
}

/// The key of a wallet in a node's keystore.
pub fn key(dir: &Path, name: &str) -> SecretKey {
    let keystore = dir.join("keystore");
    let password = std::fs::read_to_string(keystore.join("password")).unwrap();
    Wallet::open(&keystore.join(format!("{name}.json")), password.trim_end()).unwrap().key
}

/// The address of a wallet in a node's keystore.
pub fn address(dir: &Path, name: &str) -> Address {
    Address::of(&key(dir, name).public_key())
}

/// Writes a follower's directory on free ports.
pub fn follower(dir: &Path, source: &str) {
    let shown = dir.to_str().expect("a path of text");
    run(&["init", "--dir", shown, "--follow", source, "--rpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
}

/// A running node. Killed when dropped.
pub struct Process {
    pub dir: PathBuf,
    pub rpc: String,
    pub admin: String,
    child: Child,
    client: reqwest::Client,
}

impl Process {
    /// Starts the node of `dir`; returns when it serves.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// [`Process::start`], with variables in its environment.
    pub fn start_with(dir: &Path, environment: &[(&str, &str)]) -> Self {
        // Whoever was first has installed the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        let mut command = tenon();
        command.args(["run", "--dir"]).arg(dir).envs(environment.iter().copied());
        let changes = Changes::under(dir);
        let mut child = command.spawn().expect("the binary is built");
        let started = Instant::now();
        let addresses = loop {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the node in {} ended with {status}", dir.display());
            }
            let file = std::fs::read_to_string(dir.join("data/addresses.json")).unwrap_or_default();
            let addresses = serde_json::from_str::<Value>(&file).unwrap_or_default();
            // The file of a node that was killed names another process.
            if addresses["pid"] == child.id() {
                break addresses;
            }
            assert!(started.elapsed() < PATIENCE, "the node in {} does not serve", dir.display());
            changes.wait();
        };
        let url = |name: &str| format!("http://{}", addresses[name].as_str().unwrap());
        let (rpc, admin) = (url("rpc"), url("admin"));
        Self { dir: dir.to_owned(), rpc, admin, child, client }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "stopped with {status}");
    }

    /// The JSON at a path, whatever its status; none while it cannot be reached.
    pub async fn try_get(&self, path: &str) -> Option<Value> {
        self.client.get(format!("{}{path}", self.rpc)).send().await.ok()?.json().await.ok()
    }

    /// The JSON at a path.
    pub async fn get(&self, path: &str) -> Value {
        self.try_get(path).await.unwrap_or_else(|| panic!("{}{path} does not answer with JSON", self.rpc))
    }

    /// Posts JSON; answers status and JSON.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.client.post(format!("{}{path}", self.rpc)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Asks the admin listener; answers status and JSON.
    pub async fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let token = std::fs::read_to_string(self.dir.join("admin.token")).unwrap();
        let mut request =
            self.client.request(method.parse().unwrap(), format!("{}{path}", self.admin)).bearer_auth(token.trim());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// What the admin listener says of a slot.
    pub async fn slot(&self, name: &str) -> Value {
        let (_, slots) = self.admin("GET", "/admin/plugins", None).await;
        let found = slots.as_array().and_then(|slots| slots.iter().find(|slot| slot["slot"] == name)).cloned();
        found.unwrap_or_else(|| panic!("no slot {name} in {slots}"))
    }

    /// Its height.
    pub async fn height(&self) -> u64 {
        self.get("/rpc/head").await["height"].as_u64().unwrap()
    }

    /// Asks until `done` is satisfied with the answer, which it returns.
    pub async fn until(&self, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let answer = self.get(path).await;
            if done(&answer) {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{}{path} stays at {answer}", self.rpc);
        }
    }
}

/// Tells when something changes in a folder, so that who waits for a node leaves it the processor.
struct Changes {
    changed: mpsc::Receiver<()>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn under(dir: &Path) -> Self {
        let (send, changed) = mpsc::sync_channel(1);
        let mut watcher = notify::recommended_watcher(move |_| {
            // Full: whoever waits is told once for all that came in between.
            let _ = send.try_send(());
        })
        .expect("a watcher");
        watcher.watch(dir, RecursiveMode::Recursive).expect("the folder can be watched");
        Self { changed, _watcher: watcher }
    }

    /// Returns at the next change, or after a while: a process that ends changes nothing.
    fn wait(&self) {
        // Either is a reason to look again.
        let _ = self.changed.recv_timeout(Duration::from_millis(250));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
