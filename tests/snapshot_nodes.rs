//! Snapshots between nodes as operators have them: real processes and real downloads, killed on the way.

#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use process::{PATIENCE, Process, run, tenon};
use serde_json::{Value, json};

fn shown(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Runs a command that prints JSON.
fn json(arguments: &[&str]) -> Value {
    let text = run(&[&["--output", "json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a command that must fail; answers its exit code and what it says.
fn refused(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = tenon().args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(!status.success(), "{arguments:?}: {text}");
    (status.code().unwrap(), text)
}

/// An authority that makes no blocks, with some in its database; running.
fn authority(dir: &Path, blocks: usize, environment: &[(&str, &str)]) -> Process {
    process::authority(dir, blocks, 2);
    Process::start_with(dir, &[&[("TENON_PRODUCER_EMPTY_BLOCKS", "never")], environment].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_begins_with_a_snapshot_file_and_follows_on_from_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let [source, copy, file] = ["authority", "copy", "chain.snapshot"].map(|name| dir.path().join(name));
    // One slot after the last block that is there, so that new ones may follow.
    let node = tokio::task::block_in_place(|| authority(&source, 600, &[]));
    let (home, out) = (shown(&source), shown(&file));
    let exported = tokio::task::block_in_place(|| json(&["snapshot", "export", "--dir", home, "--out", out]));
    assert_eq!((&exported["height"], &exported["blocks_from"]), (&600.into(), &600.into()));
    let (code, text) = refused(&["snapshot", "export", "--dir", home, "--out", out]);
    assert!(code == 1 && text.contains("exists"), "{text}");

    tokio::task::block_in_place(|| process::follower(&copy, &node.rpc));
    let hash = exported["hash"].as_str().unwrap();
    let wrong = format!("0x{}", "1".repeat(64));
    let (_, text) = refused(&["snapshot", "import", out, "--dir", shown(&copy), "--block-hash", &wrong]);
    assert!(text.contains("expected 0x1111"), "{text}");
    let imported = json(&["snapshot", "import", out, "--dir", shown(&copy), "--block-hash", hash]);
    assert_eq!(imported["hash"], exported["hash"]);
    let (_, text) = refused(&["snapshot", "import", out, "--dir", shown(&copy)]);
    assert!(text.contains("at block 600; a snapshot goes into a new node alone"), "{text}");

    let follower = Process::start_with(&copy, &[]);
    let (_, text) = refused(&["snapshot", "import", out, "--dir", shown(&copy)]);
    assert!(text.contains("in use by another process"), "{text}");
    let info = follower.get("/rpc/info").await;
    assert_eq!((&info["height"], &info["base"]), (&600.into(), &600.into()));
    for path in ["/rpc/blocks/5", "/rpc/blocks-range?start=5&end=9", "/rpc/blocks-range?start=599&end=600"] {
        let answer = follower.get(path).await;
        assert!(answer["detail"].as_str().unwrap().contains("its blocks begin at height 600"), "{path}: {answer}");
        assert_eq!(answer["code"], "below-base");
    }
    let first = follower.get("/rpc/blocks-range?start=0&end=5").await;
    assert_eq!((&first["count"], &first["blocks"][0]["height"]), (&1.into(), &0.into()));
    let old = node.get("/rpc/blocks/5").await["hash"].as_str().unwrap().to_owned();
    let by_hash = follower.get(&format!("/rpc/blocks/{old}")).await;
    assert_eq!(by_hash["code"], "below-base", "known by its header: {by_hash}");
    let root = follower.get("/rpc/state/root?height=5").await;
    assert_eq!(root["hash"], old.as_str());
    assert_eq!(root["state_root"], node.get("/rpc/state/root?height=5").await["state_root"]);

    // What it cannot have heard of, it does not pass over in silence.
    for list in ["transactions", "messages"] {
        let of = |node: &Process, list: &str| format!("/rpc/{list}?address={}", process::address(&node.dir, "alice"));
        let path = of(&node, list);
        assert_eq!((&follower.get(&path).await["base"], &node.get(&path).await["base"]), (&600.into(), &0.into()));
    }
    for command in [["wallet", "transactions", "alice"], ["agent", "messages", "--wallet=alice"]] {
        let told = |node: &Process| {
            let output = tenon().args(command).args(["--dir", home, "--node", &node.rpc]).output().unwrap();
            String::from_utf8(output.stderr).unwrap()
        };
        let text = tokio::task::block_in_place(|| told(&follower));
        assert!(text.contains("what was before block 600 is not here"), "{text}");
        assert_eq!(tokio::task::block_in_place(|| told(&node)), "");
    }

    // It follows on: a transfer handed to it is in the next block on both.
    let sent = tokio::task::block_in_place(|| {
        json(&["wallet", "send", "alice", "bob", "7", "--dir", home, "--node", &follower.rpc, "--wait"])
    });
    assert_eq!(sent["status"], "confirmed");
    let height = node.height().await;
    assert!(height > 600);
    follower.until("/rpc/head", |head| head["height"] == height).await;
    let heads = [node.get("/rpc/head").await, follower.get("/rpc/head").await];
    assert_eq!(heads[0]["state_root"], heads[1]["state_root"]);
    follower.until("/rpc/sync/status", |status| status["state"] == "live").await;
    follower.stop();
    let checked = json(&["db", "check", "--dir", shown(&copy)]);
    assert_eq!((&checked["ok"], &checked["base"]), (&true.into(), &600.into()), "{checked}");
    node.stop();
}

/// Something that answers as a node does, but with another byte in every chunk.
fn liar(of: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, of) = (format!("http://{}", listener.local_addr().unwrap()), of.trim_start_matches("http://").to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, of) = (stream.unwrap(), of.clone());
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                    request.push(byte[0]);
                }
                let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
                let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
                let mut upstream = TcpStream::connect(&of).unwrap();
                write!(upstream, "GET {path} HTTP/1.1\r\nhost: {of}\r\nconnection: close\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                upstream.read_to_end(&mut answer).unwrap();
                if path.starts_with("/rpc/snapshot/") && !path.ends_with("manifest") {
                    *answer.last_mut().unwrap() ^= 0x10;
                }
                // It may have been left already.
                let _ = stream.write_all(&answer);
            });
        }
    });
    url
}

/// The chunks that a download has so far.
fn chunks(fetch: &Path) -> usize {
    let folders = fs::read_dir(fetch).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == "chunk")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_from_several_nodes_survives_kills_and_names_the_liar() {
    let dir = tempfile::tempdir().unwrap();
    let [source, second, copy] = ["authority", "second", "copy"].map(|name| dir.path().join(name));
    // Every block whole: several MiB, so that there are chunks to be killed between.
    let all = [("TENON_SNAPSHOT_BLOCKS", "1000000000"), ("TENON_SNAPSHOT_DEPTH", "0")];
    let node = tokio::task::block_in_place(|| authority(&source, 16_000, &all));
    tokio::task::block_in_place(|| process::follower(&second, &node.rpc));
    let other = Process::start_with(&second, &all);
    other.until("/rpc/head", |head| head["height"] == 16_000).await;
    let mut ids = Vec::new();
    for node in [&node, &other] {
        let (status, made) = node.admin("POST", "/admin/snapshot", Some(&json!({ "height": 15_999 }))).await;
        assert_eq!((status, &made["height"]), (200, &15_999.into()), "{made}");
        let list = node.get("/rpc/snapshots").await;
        assert_eq!(list["snapshots"][0], made);
        assert_eq!(node.get("/rpc/info").await["snapshot"], made);
        ids.push(made);
    }
    assert_eq!(ids[0], ids[1], "two nodes make the same snapshot");
    let of = usize::try_from(ids[0]["chunks"].as_u64().unwrap()).unwrap();
    assert!(of >= 6, "{}", ids[0]);

    let liar = liar(&node.rpc);
    tokio::task::block_in_place(|| process::follower(&copy, &node.rpc));
    let home = shown(&copy).to_owned();
    let fetch: PathBuf = copy.join("data/fetch");
    let arguments = ["snapshot", "fetch", "--dir", &home, "--from", &liar, "--from", &node.rpc, "--from", &other.rpc];
    // Killed as soon as another chunk is there, until all are; and then in the middle of the import.
    let (mut before, mut kills, started) = (0, 0, Instant::now());
    loop {
        let mut child = tenon().args(arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
        let ended = loop {
            let importing = copy.join("data/chain.db.part").exists();
            if (importing && before == of) || (before < of && chunks(&fetch) > before) {
                break None;
            }
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            assert!(started.elapsed() < PATIENCE, "{} of {of} chunks", chunks(&fetch));
        };
        let _ = child.kill();
        child.wait().unwrap();
        if ended.is_some() {
            break;
        }
        let now = chunks(&fetch);
        assert!(now >= before, "what was there is kept: {now} after {before}");
        kills += 1;
        if before == of {
            break;
        }
        before = now;
    }
    assert!(kills >= 2, "{kills}");
    let done = if copy.join("data/chain.db").exists() {
        json!({ "left": [] })
    } else {
        tokio::task::block_in_place(|| json(&[&["--output", "json"][..0], &arguments[..]].concat()))
    };
    assert!(!fetch.exists() && !copy.join("data/chain.db.part").exists(), "{done}");
    let checked = tokio::task::block_in_place(|| json(&["db", "check", "--dir", &home]));
    assert_eq!((&checked["ok"], &checked["height"], &checked["base"]), (&true.into(), &15_999.into(), &0.into()));
    let begun = Process::start(&copy);
    begun.until("/rpc/head", |head| head["height"] == 16_000).await;
    begun.stop();

    // From nothing, in one go: the liar is named.
    fs::remove_dir_all(copy.join("data")).unwrap();
    let done = tokio::task::block_in_place(|| json(&arguments));
    assert_eq!(done["id"], ids[0]["id"]);
    let left = done["left"].as_array().unwrap();
    assert_eq!((left.len(), left[0]["source"].as_str()), (1, Some(liar.as_str())), "{done}");
    assert!(left[0]["reason"].as_str().unwrap().contains("sends another chunk"), "{done}");
    // An import that is killed has changed nothing, or everything.
    let file = dir.path().join("all.snapshot");
    tokio::task::block_in_place(|| {
        json(&["snapshot", "export", "--dir", shown(&source), "--out", shown(&file), "--blocks"])
    });
    let (database, part) = (copy.join("data/chain.db"), copy.join("data/chain.db.part-wal"));
    let mut half_way = 0;
    for kill in 0..6 {
        fs::remove_dir_all(copy.join("data")).unwrap();
        let mut child = tenon().args(["snapshot", "import", shown(&file), "--dir", &home]).spawn().unwrap();
        let written = || fs::metadata(&part).map_or(0, |part| part.len());
        while written() < 1 + kill * 500_000 && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        let _ = child.kill();
        let ended = child.wait().unwrap();
        assert_eq!(database.exists(), ended.success(), "killed after {kill}");
        half_way += u64::from(!ended.success());
    }
    assert!(half_way >= 3, "{half_way}");
    if !database.exists() {
        tokio::task::block_in_place(|| json(&["snapshot", "import", shown(&file), "--dir", &home]));
    }
    let checked = tokio::task::block_in_place(|| json(&["db", "check", "--dir", &home]));
    assert_eq!((&checked["ok"], &checked["height"]), (&true.into(), &16_000.into()), "{checked}");
    // Liars alone: no node, and what it says names them.
    fs::remove_dir_all(copy.join("data")).unwrap();
    let (code, text) = refused(&["snapshot", "fetch", "--dir", &home, "--from", &liar]);
    assert!(code == 1 && text.contains(&liar) && text.contains("sends another chunk"), "{text}");
    assert!(!copy.join("data/chain.db").exists());
    other.stop();
    node.stop();
}

/// Passes on what a node answers, and counts the chunks that were asked for; of these, after the first few, only as many
/// as it is told to.
struct Gate {
    url: String,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    passes: Arc<AtomicUsize>,
}

impl Gate {
    fn new(of: &str, passes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, passes) = (Arc::new(Mutex::default()), Arc::new(AtomicUsize::new(passes)));
        let gate = Self { url, asked: Arc::clone(&asked), passes: Arc::clone(&passes) };
        let of = of.trim_start_matches("http://").to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, of) = (stream.unwrap(), of.clone());
                let (asked, passes) = (Arc::clone(&asked), Arc::clone(&passes));
                std::thread::spawn(move || {
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                        request.push(byte[0]);
                    }
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let path = text.split(' ').nth(1).unwrap_or("/").to_owned();
                    if path.starts_with("/rpc/snapshot/") && !path.ends_with("manifest") {
                        let pass = |left: usize| left.checked_sub(1);
                        if passes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, pass).is_err() {
                            // Until whoever asked is gone.
                            while stream.read(&mut byte).is_ok_and(|read| read > 0) {}
                            return;
                        }
                        let index = path.rsplit('/').next().unwrap_or_default().to_owned();
                        *asked.lock().unwrap().entry(index).or_default() += 1;
                    }
                    // As it came, but that the connection ends with the answer.
                    let head = text.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
                    let head = head.collect::<Vec<_>>().join("\r\n");
                    let mut upstream = TcpStream::connect(&of).unwrap();
                    write!(upstream, "{head}\r\nconnection: close\r\n\r\n").unwrap();
                    // It may have been left already.
                    let _ = std::io::copy(&mut upstream, &mut stream);
                });
            }
        });
        gate
    }
}

/// Lets the strategy of a node be `snapshot-first`, for short chains.
fn wants_snapshots(dir: &Path) {
    let path = dir.join("tenon.toml");
    let text = fs::read_to_string(&path).unwrap();
    let chosen = "use = \"snapshot-first\"\nconfig = { min_blocks = 2000, max_age_blocks = 100000 }";
    let text = text.replace("use = \"parallel-range\"", chosen);
    assert!(text.contains(chosen), "{text}");
    fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_strategy_wants_a_snapshot_is_killed_on_the_way_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let [source, copy] = ["authority", "copy"].map(|name| dir.path().join(name));
    // Every block whole: several chunks, and enough of them to be killed between.
    let all = [("TENON_SNAPSHOT_BLOCKS", "1000000000"), ("TENON_SNAPSHOT_DEPTH", "0")];
    let node = tokio::task::block_in_place(|| authority(&source, 6_000, &all));
    let (status, made) = node.admin("POST", "/admin/snapshot", Some(&json!({ "height": 5_900 }))).await;
    assert_eq!(status, 200, "{made}");
    let of = usize::try_from(made["chunks"].as_u64().unwrap()).unwrap();
    assert!(of >= 4, "{made}");
    let gate = Gate::new(&node.rpc, 2);
    tokio::task::block_in_place(|| process::follower(&copy, &gate.url));
    wants_snapshots(&copy);

    // Two chunks come, and then no more: the node waits for them, and says so.
    let first = Process::start(&copy);
    let status = first.until("/rpc/sync/status", |status| status["snapshot"]["chunks"] == 2).await;
    let snapshot = &status["snapshot"];
    assert_eq!((&snapshot["stage"], &snapshot["height"]), (&"downloading".into(), &5_900.into()), "{status}");
    assert_eq!((&snapshot["id"], snapshot["of"].as_u64()), (&made["id"], Some(of as u64)));
    assert_eq!((&status["head_height"], &status["peers"][0]["snapshot_height"]), (&0.into(), &5_900.into()));
    let line = tokio::task::block_in_place(|| refused(&["sync", "status", "--node", &first.rpc])).1;
    assert!(line.contains("downloading"), "{line}");
    first.kill();
    assert_eq!(chunks(&copy.join("data/fetch")), 2);
    let kept: Vec<String> = gate.asked.lock().unwrap().keys().cloned().collect();
    assert_eq!(kept.len(), 2, "{kept:?}");

    // Killed once more, while it is put into the database: nothing of it is there, or all.
    gate.passes.store(1_000, Ordering::SeqCst);
    let second = Process::start(&copy);
    let here = |status: &Value| status["snapshot"]["stage"] == "installing" || status["head_height"] != 0;
    second.until("/rpc/sync/status", here).await;
    second.kill();
    let checked = tokio::task::block_in_place(|| json(&["db", "check", "--dir", shown(&copy)]));
    assert_eq!(checked["ok"], true, "{checked}");
    let height = checked["height"].as_u64().unwrap();
    assert!(height == 0 || height >= 5_900, "{checked}");

    let third = Process::start(&copy);
    third.until("/rpc/head", |head| head["height"] == 6_000).await;
    let asked = gate.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), of, "{asked:?}");
    assert!(asked.values().all(|times| *times == 1), "no chunk is downloaded twice: {asked:?}");
    assert!(!copy.join("data/fetch").exists(), "what was downloaded is used up");
    let heads = [node.get("/rpc/head").await, third.get("/rpc/head").await];
    assert_eq!(heads[0], heads[1], "the state root is part of it");
    let status = third.until("/rpc/sync/status", |status| status["state"] == "live").await;
    assert_eq!((&status["snapshot"], &status["refused_actions"]), (&Value::Null, &0.into()), "{status}");
    third.stop();

    // A node with agents takes none: they would not hear of the messages below it.
    fs::remove_dir_all(copy.join("data")).unwrap();
    let mut text = fs::read_to_string(copy.join("tenon.toml")).unwrap();
    text += "\n[[agents]]\nname = \"bob\"\nwallet = \"keystore/bob.json\"\nhandler = \"ping-pong\"\n";
    fs::write(copy.join("tenon.toml"), text).unwrap();
    fs::create_dir_all(copy.join("keystore")).unwrap();
    for name in ["bob.json", "password"] {
        fs::copy(source.join("keystore").join(name), copy.join("keystore").join(name)).unwrap();
    }
    let with_agent = Process::start(&copy);
    with_agent.until("/rpc/head", |head| head["height"] == 6_000).await;
    let info = with_agent.get("/rpc/info").await;
    assert_eq!(info["base"], 0, "all blocks are there: {info}");
    with_agent.stop();
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_backs_up_verifies_and_repairs_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let [source, copy, file] = ["authority", "copy", "backup.db"].map(|name| dir.path().join(name));
    // What is due is made by itself: the newest multiple, since nobody makes blocks.
    let by_itself = [("TENON_SNAPSHOT_EVERY_BLOCKS", "110"), ("TENON_SNAPSHOT_DEPTH", "7")];
    let node = tokio::task::block_in_place(|| authority(&source, 300, &by_itself));
    node.until("/rpc/snapshots", |list| list["snapshots"][0]["height"] == 220).await;
    let (home, out) = (shown(&source), shown(&file));
    let backup = tokio::task::block_in_place(|| json(&["db", "backup", "--dir", home, "--out", out]));
    assert_eq!(backup["height"], 300);
    let checked = tokio::task::block_in_place(|| json(&["db", "check", "--dir", home]));
    assert_eq!((&checked["ok"], &checked["blocks"]), (&true.into(), &301.into()));
    let (_, text) = refused(&["db", "restore", out, "--dir", home]);
    assert!(text.contains("in use by another process"), "{text}");
    let (status, verified) = node.admin("POST", "/admin/sync/verify", None).await;
    assert_eq!((status, &verified["ok"], &verified["height"]), (200, &true.into(), &300.into()), "{verified}");
    assert_eq!(node.get("/rpc/info").await["state_check"], verified);

    // Blocks and accounts as the node serves them, and against a second node.
    tokio::task::block_in_place(|| process::follower(&copy, &node.rpc));
    let second = Process::start(&copy);
    second.until("/rpc/head", |head| head["height"] == 300).await;
    let full = json(&["chain", "verify", "--full", "--node", &node.rpc]);
    assert_eq!((&full["valid"], &full["accounts"]["same"]), (&true.into(), &true.into()), "{full}");
    let same = json(&["chain", "verify", "--node", &node.rpc, "--against", &second.rpc]);
    assert_eq!((&same["same"], &same["height"], &same["looks"]), (&true.into(), &300.into(), &0.into()), "{same}");

    // A row that changes under a running node: found, named, and no longer ready.
    let account = process::address(&source, "alice");
    let change = |dir: &Path| {
        let database = rusqlite::Connection::open(dir.join("data/chain.db")).unwrap();
        let sql = "UPDATE account SET balance = balance + 1 WHERE address = ?";
        assert_eq!(database.execute(sql, [&account.0[..]]).unwrap(), 1);
    };
    change(&copy);
    let (_, found) = second.admin("POST", "/admin/sync/verify", None).await;
    assert_eq!((&found["ok"], &found["wrong_accounts"]), (&false.into(), &json!([account])), "{found}");
    let ready = second.get("/ready").await;
    let reasons = ready["reasons"].as_array().unwrap();
    assert!(reasons.iter().any(|reason| reason["code"] == "state-wrong"), "{ready}");
    assert_eq!(ready["ready"], false, "{ready}");
    second.stop();
    let (code, text) = refused(&["db", "check", "--dir", shown(&copy)]);
    assert!(code == 1 && text.contains("accounts: the accounts make the state root"), "{text}");
    let (code, text) = refused(&["run", "--dir", shown(&copy)]);
    assert!(code == 1 && text.contains("tenon db repair"), "{text}");
    let repaired = json(&["db", "repair", "--dir", shown(&copy)]);
    assert_eq!((&repaired["wrong"], &repaired["wrong_accounts"]), (&1.into(), &json!([account])), "{repaired}");
    let second = Process::start(&copy);
    let (_, found) = second.admin("POST", "/admin/sync/verify", None).await;
    assert_eq!(found["ok"], true, "{found}");
    second.stop();
    node.stop();

    // Restored: at the height of the backup, with what was there kept.
    change(&source);
    let restored = json(&["db", "restore", out, "--dir", home]);
    assert_eq!(restored["height"], 300);
    assert!(Path::new(restored["old"].as_str().unwrap()).exists());
    let node = Process::start(&source);
    assert_eq!(node.height().await, 300);
    node.stop();
}
