//! The command line as its users see it: the real program, its output and exit codes, without a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Runs `tenon` in `dir`, with nothing of ours in its environment.
fn tenon(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("TENON_") || text == "NODE_URL" {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir).args(arguments).output().unwrap()
}

/// What it printed, after making sure that it ended with `code`.
#[track_caller]
fn printed(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = tenon(dir, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    if code == 0 { out } else { out + &err }
}

#[track_caller]
fn json(dir: &Path, arguments: &[&str]) -> Value {
    let arguments = [&["--output", "json"], arguments].concat();
    serde_json::from_str(&printed(dir, &arguments, 0)).unwrap()
}

/// A folder with an authority's directory `node` in it.
fn authority() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    printed(dir.path(), &["init", "--dir", "node", "--authority", "--chain-id", "test"], 0);
    dir
}

#[test]
fn init_writes_an_authority_that_nothing_is_wrong_with() {
    let dir = tempfile::tempdir().unwrap();
    let written = json(dir.path(), &["init", "--dir", "deep/node", "--authority", "--chain-id", "test"]);
    assert_eq!(written["chain_id"], "test");
    let node = dir.path().join("deep/node");
    let genesis = tenon::chain::Genesis::parse(&fs::read_to_string(node.join("genesis.json")).unwrap()).unwrap();
    assert_eq!(written["genesis_hash"], genesis.block().hash().to_string());
    assert_eq!(written["wallets"]["authority"], genesis.authorities[0].address.to_string());
    let funded: Vec<String> = genesis.allocations.iter().map(|allocation| allocation.address.to_string()).collect();
    assert_eq!(funded, [written["wallets"]["alice"].as_str().unwrap(), written["wallets"]["bob"].as_str().unwrap()]);
    for name in
        ["admin.token", "keystore/authority.json", "keystore/alice.json", "keystore/bob.json", "keystore/password"]
    {
        let mode = fs::metadata(node.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    let checked = json(dir.path(), &["config", "check", "--dir", "deep/node"]);
    assert_eq!(checked["ok"], true, "{checked}");
    let left: Vec<_> = fs::read_dir(dir.path().join("deep")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["node"], "nothing is left beside it");
}

#[test]
fn init_says_what_it_wrote_and_which_genesis_it_trusts() {
    let dir = tempfile::tempdir().unwrap();
    let text = printed(dir.path(), &["init", "--dir", "node", "--authority"], 0);
    for part in ["tenon.toml", "genesis.json  chain `tenon-", "alice ait1", "its genesis is 0x", "tenon run --dir node"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn init_takes_the_addresses_and_refuses_ones_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let listen = ["init", "--dir", "node", "--authority", "--rpc-listen", "127.0.0.1:9001", "--admin-listen"];
    let text = printed(dir.path(), &[&listen[..], &["127.0.0.1:9001"]].concat(), 1);
    assert!(text.contains("admin.listen: 127.0.0.1:9001 is taken by rpc.listen"), "{text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a refusal writes nothing");
    printed(dir.path(), &[&listen[..], &["127.0.0.1:9002"]].concat(), 0);
    let config = tenon::config::Config::load(&dir.path().join("node")).unwrap();
    assert_eq!((config.rpc.listen.port(), config.admin.listen.port()), (9001, 9002));
}

#[test]
fn init_leaves_a_folder_with_something_in_it_alone() {
    let dir = authority();
    let before = fs::read(dir.path().join("node/genesis.json")).unwrap();
    let text = printed(dir.path(), &["init", "--dir", "node", "--authority"], 1);
    assert!(text.contains("node is not empty; nothing was written"), "{text}");
    assert_eq!(fs::read(dir.path().join("node/genesis.json")).unwrap(), before);
}

#[test]
fn a_follower_of_nobody_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    // Port 9 of loopback: nobody listens there.
    let text = printed(dir.path(), &["init", "--dir", "node", "--follow", "http://127.0.0.1:9"], 3);
    assert!(text.contains("no node answers at http://127.0.0.1:9"), "{text}");
    assert!(text.contains("`--follow URL` names another"), "{text}");
    assert!(!dir.path().join("node").exists());
}

#[test]
fn init_wants_to_know_which_chain() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["init", "--dir", "node"][..],
        &["init", "--dir", "node", "--authority", "--follow", "http://a"],
        &["init", "--dir", "node", "--follow", "http://a", "--chain-id", "x"],
        &["init", "--dir", "node", "--authority", "--genesis-hash", "0x00"],
        &["init", "--dir", "node", "--authority", "--chain-id", ""],
        &["init", "--dir", "node", "--authority", "--chain-id", " x"],
    ] {
        printed(dir.path(), arguments, 2);
    }
    assert!(!dir.path().join("node").exists());
}

#[test]
fn config_check_names_every_mistake_with_its_line() {
    let dir = authority();
    let file = dir.path().join("node/tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text_with_two = text.replace("interval_ms = 2000", "intervall_ms = 2000").replace("\"heartbeat\"", "7");
    fs::write(&file, &text_with_two).unwrap();
    let text = printed(dir.path(), &["config", "check", "--dir", "node"], 1);
    assert!(
        text.contains("error: tenon.toml:12: producer.intervall_ms: unknown key; did you mean `producer.interval_ms`?"),
        "{text}"
    );
    assert!(text.contains("tenon.toml:13: producer.empty_blocks: expected"), "{text}");
    assert!(text.ends_with("2 errors, 0 warnings\n"), "{text}");
    fs::write(&file, format!("{}\n[rcp]\n", fs::read_to_string(&file).unwrap().replace("intervall", "interval")))
        .unwrap();
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("empty_blocks = 7", "")).unwrap();
    assert!(printed(dir.path(), &["config", "check", "--dir", "node"], 1).ends_with("1 error, 0 warnings\n"));
    fs::write(&file, text_with_two).unwrap();
    let text = printed(dir.path(), &["run", "--dir", "node"], 1);
    assert!(text.contains("did you mean `producer.interval_ms`?"), "{text}");
}

#[test]
fn config_check_looks_at_the_files_too() {
    let dir = authority();
    let key = dir.path().join("node/keystore/bob.json");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(dir.path().join("node/genesis.json")).unwrap();
    let text = printed(dir.path(), &["config", "check", "--dir", "node"], 1);
    assert!(text.contains("chain.genesis: cannot read node/genesis.json"), "{text}");
    assert!(text.contains("agents[0].wallet: others can read node/keystore/bob.json (mode 0644)"), "{text}");
    let text = printed(dir.path(), &["config", "check", "--dir", "nowhere"], 1);
    assert!(text.contains("`tenon init` writes one"), "{text}");
}

#[test]
fn config_check_asks_the_plugins_what_they_say_to_their_settings() {
    let dir = authority();
    let node = dir.path().join("node");
    let plugins = node.join("plugins");
    for name in ["token-bucket", "parallel-range", "ping-pong"] {
        // Its name is what it says of itself, whatever its file is called.
        fs::copy(tenon_build::path(name), plugins.join(format!("x-{name}.wasm"))).unwrap();
        let _ = fs::remove_file(plugins.join(format!("{name}.wasm")));
    }
    let file = node.join("tenon.toml");
    let sound = fs::read_to_string(&file).unwrap();
    let check = |changes: &[(&str, &str)], code: i32| {
        let changed = changes.iter().fold(sound.clone(), |text, (from, to)| {
            assert!(text.contains(from), "{from}: {text}");
            text.replace(from, to)
        });
        fs::write(&file, changed).unwrap();
        printed(dir.path(), &["config", "check", "--dir", "node"], code)
    };
    assert_eq!(check(&[], 0), "nothing is wrong\n");

    // The schema's reason, the plugin's own, and all of them at once.
    let of_limit = (
        "use = \"token-bucket\"",
        "use = \"token-bucket\"\nconfig = { read = { capacity = 0, refill_per_second = 1 } }",
    );
    let of_agent = ("reply = \"pong\"", "reply = \"ping\"");
    let of_sync = ("use = \"parallel-range\"", "use = \"parallel-range\"\nconfig = { target = 7 }");
    let text = check(&[of_limit, of_agent, of_sync], 1);
    for part in [
        "plugins.rate-limit.config: slot rate-limit: plugin token-bucket of node/plugins/x-token-bucket.wasm is refused: settings: /read/capacity: ",
        "agents[0].config: slot agent/bob: plugin ping-pong of node/plugins/x-ping-pong.wasm is refused: configure: trigger and reply are both \"ping\"",
        "plugins.sync.config: slot sync: plugin parallel-range of node/plugins/x-parallel-range.wasm is refused: settings: /: ",
        "3 errors, 0 warnings",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }

    // One that is not there may come later.
    let text = check(&[("use = \"parallel-range\"", "use = \"my-strategy\"\nconfig = { any = 1 }")], 0);
    let missing = "plugins.sync.use: slot sync: in node/plugins, no file that is taken holds the plugin my-strategy";
    assert!(text.contains(missing) && text.ends_with("0 errors, 1 warning\n"), "{text}");
    // Nor is one that is of another kind.
    assert!(check(&[("use = \"token-bucket\"", "use = \"ping-pong\"")], 0).contains("holds the plugin ping-pong"));

    // The built-ins' settings.
    let text = check(&[("use = \"token-bucket\"", "config = { read = { capacity = 0, refill_per_second = 1 } }")], 1);
    assert!(text.contains("the built-in token bucket refuses it: read.capacity is 0: it must be 1 to"), "{text}");
    let text = check(&[("use = \"parallel-range\"", "config = { target_ms = 7 }")], 0);
    assert!(
        text.contains("plugins.sync.config: slot sync has no plugin, and its built-in takes no settings"),
        "{text}"
    );

    // A component that may not be taken is not asked.
    let made = json(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"]);
    let keys =
        format!("[plugins]\ntrusted_keys = [{}]\nrequire_signature = true\n\n[plugins.rate-limit]", made["public_key"]);
    let text = check(&[("[plugins.rate-limit]", &keys), of_limit], 0);
    for part in
        ["no file that is taken holds the plugin token-bucket", "allow-all.wasm is refused: signature: not signed"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(!text.contains("capacity"), "{text}");
    let signed = plugins.join("x-token-bucket.wasm");
    printed(dir.path(), &["plugin", "sign", signed.to_str().unwrap(), "--key", "key"], 0);
    assert!(check(&[("[plugins.rate-limit]", &keys), of_limit], 1).contains("/read/capacity"));

    // Who checks changes nothing.
    fs::remove_dir_all(&plugins).unwrap();
    let before: Vec<_> = fs::read_dir(&node).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(check(&[], 0).contains("holds the plugin token-bucket"));
    let after: Vec<_> = fs::read_dir(&node).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(before, after);
}

#[test]
fn config_keys_lists_every_knob_with_its_default() {
    let keys = json(Path::new("."), &["config", "keys"]);
    let keys = keys.as_array().unwrap();
    assert_eq!(keys.len(), tenon::config::Config::keys().len());
    let listen = keys.iter().find(|key| key["name"] == "rpc.listen").unwrap();
    assert_eq!(listen["default"], "\"127.0.0.1:8006\"");
}

#[test]
fn the_readme_names_every_knob() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for key in tenon::config::Config::keys() {
        let (section, name) = key.name.rsplit_once('.').unwrap();
        let row = readme.lines().find(|line| line.starts_with('|') && line.contains(&format!("[{section}]")));
        assert!(row.is_some_and(|row| row.contains(&format!("`{name}`"))), "{}", key.name);
    }
}

#[test]
fn wallets_are_made_once_and_listed() {
    let dir = authority();
    let made = json(dir.path(), &["wallet", "create", "carol", "--dir", "node"]);
    let listed = json(dir.path(), &["wallet", "list", "--dir", "node"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|wallet| wallet["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["alice", "authority", "bob", "carol"]);
    assert_eq!(listed[3]["address"], made["address"]);
    let text = printed(dir.path(), &["wallet", "create", "carol", "--dir", "node"], 1);
    assert!(text.contains("not overwritten"), "{text}");
    let text = printed(dir.path(), &["wallet", "create", "../carol", "--dir", "node"], 1);
    assert!(text.contains("a wallet's name is"), "{text}");
}

#[test]
fn a_keystore_may_be_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    printed(dir.path(), &["wallet", "create", "dora", "--keystore", "keys"], 0);
    assert!(dir.path().join("keys/dora.json").is_file() && dir.path().join("keys/password").is_file());
    assert_eq!(json(dir.path(), &["wallet", "list", "--keystore", "keys"])[0]["name"], "dora");
}

#[test]
fn a_node_that_is_not_there_has_an_exit_code_of_its_own() {
    let dir = authority();
    for arguments in [
        &["chain", "head", "--node", "http://127.0.0.1:9"][..],
        &["sync", "status", "--node", "http://127.0.0.1:9"],
        &["wallet", "balance", "alice", "--dir", "node", "--node", "http://127.0.0.1:9"],
        &["agent", "messages", "--wallet", "alice", "--dir", "node", "--node", "http://127.0.0.1:9"],
        &["plugin", "list", "--dir", "node", "--admin", "http://127.0.0.1:9"],
    ] {
        let text = printed(dir.path(), arguments, 3);
        assert!(text.contains("no node answers at http://127.0.0.1:9"), "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_said_before_anything_happens() {
    let dir = authority();
    for (arguments, code, expected) in [
        (&["wallet", "send", "alice", "bob", "1.5"][..], 2, "expected a whole number that is not negative"),
        (&["wallet", "send", "alice", "bob", "-1"], 2, "unexpected argument"),
        (&["wallet", "send", "alice", "bob", "18446744073709551616"], 2, "above the largest value"),
        (&["wallet", "send", "alice", "nobody", "1"], 1, "`nobody` is no address"),
        (&["wallet", "send", "nobody", "bob", "1"], 1, "no wallet `nobody`"),
        (&["wallet", "balance", "ait1xyz"], 1, "an address is `ait1` and 40"),
        (&["agent", "messages"], 2, "--wallet <WALLET>|--address <ADDRESS>"),
        (&["init", "--dir", "x"], 2, "--authority|--follow <URL>"),
        (&["plugin", "use", "rate-limit"], 2, "PLUGIN|--builtin"),
        (&["init", "--dir", "x", "--authority", "--chain-id", "a\nb"], 2, "'\\n' is a control character"),
        (&["chain", "head", "--dir", "nowhere"], 1, "nowhere is no node's directory: it has no tenon.toml"),
        (&["chain", "head", "--node", "ftp://a"], 2, "expected something like http://127.0.0.1:8006"),
        (&["frob"], 2, "unrecognized subcommand"),
    ] {
        let text = printed(&dir.path().join("node"), arguments, code);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn a_node_is_found_by_its_directory_also_where_it_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let listen = ["--rpc-listen", "127.0.0.1:9", "--admin-listen", "127.0.0.1:10"];
    printed(dir.path(), &[&["init", "--dir", "node", "--authority"], &listen[..]].concat(), 0);
    for command in [["chain", "head"], ["sync", "status"], ["p2p", "peers"], ["wallet", "balance"]] {
        let account = if command[0] == "wallet" { &["alice"][..] } else { &[] };
        let text = printed(dir.path(), &[&command[..], account, &["--dir", "node"]].concat(), 3);
        assert!(text.contains("no node answers at http://127.0.0.1:9:"), "{text}");
    }
    // In the directory itself it need not be named.
    let text = printed(&dir.path().join("node"), &["chain", "height"], 3);
    assert!(text.contains("no node answers at http://127.0.0.1:9:"), "{text}");
}

#[test]
fn help_shows_the_options_that_a_command_has_a_use_for() {
    let help = |command: &[&str]| printed(Path::new("."), &[command, &["--help"]].concat(), 0);
    for (command, shown, hidden) in [
        (&["chain", "head"][..], &["--dir", "--node", "--output"][..], &[][..]),
        (&["plugin", "list"], &["--dir", "--admin", "--token"], &["--node"]),
        (&["plugin", "check"], &["--output"], &["--dir", "--admin", "--token", "--node"]),
        (&["p2p", "id"], &["--dir"], &["--node"]),
        (&["run"], &["--dir"], &["--node", "--output"]),
        (&["db", "check"], &["--dir", "--output"], &["--node"]),
    ] {
        let text = help(command);
        for option in shown {
            assert!(text.contains(option), "{command:?} {option}: {text}");
        }
        for option in hidden {
            assert!(!text.contains(option), "{command:?} {option}: {text}");
        }
    }
}

#[test]
fn a_database_that_is_none_is_named_once_with_what_to_do() {
    let dir = authority();
    fs::write(dir.path().join("node/data/chain.db"), "no database at all. ".repeat(100)).unwrap();
    for arguments in [&["db", "check", "--dir", "node"][..], &["run", "--dir", "node"]] {
        let text = printed(dir.path(), arguments, 1);
        assert!(text.contains("node/data/chain.db: file is not a database; `tenon db check`"), "{text}");
        assert!(text.contains("`tenon db restore` puts a backup in its place"), "{text}");
        assert_eq!(text.matches("is not a database").count(), 1, "{text}");
    }
    let text = printed(dir.path(), &["db", "restore", "none.db", "--dir", "node"], 1);
    assert!(text.contains("none.db: there is no such file"), "{text}");
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let (dir, _) = signer();
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    for arguments in [
        &["plugin", "check", "pipe"][..],
        &["plugin", "sign", "pipe", "--key", "key"],
        &["plugin", "verify", "pipe", "--key", "key.pub"],
        &["plugin", "check", "."],
    ] {
        let text = printed(dir.path(), arguments, 1);
        assert!(text.contains("is no regular file"), "{arguments:?}: {text}");
    }
    fs::write(dir.path().join("good.toml"), "a = 1").unwrap();
    let text = printed(dir.path(), &["plugin", "sign", "good.toml", "--key", "key"], 1);
    assert!(text.contains("good.toml is no WebAssembly component"), "{text}");
    assert!(!dir.path().join("good.toml.sig").exists());
}

#[test]
fn plugin_check_says_where_a_file_stops() {
    let dir = tempfile::tempdir().unwrap();
    let idle = tenon_build::fixture::idle("rate-limit-policy").unwrap();
    let good = fs::read(tenon_build::path("token-bucket")).unwrap();
    for (name, bytes, code, expected) in [
        ("text.wasm", &b"text"[..], 1, "not a WebAssembly component"),
        ("core.wasm", b"\0asm\x01\0\0\0", 1, "a core module, not a component"),
        ("idle.wasm", &idle, 1, "refused: describe: trapped"),
        ("good.wasm", &good, 0, "token-bucket 0.1.0 of kind rate-limit: it would be served"),
    ] {
        fs::write(dir.path().join(name), bytes).unwrap();
        let text = printed(dir.path(), &["plugin", "check", name], code);
        assert!(text.contains(expected), "{name}: {text}");
    }
    printed(dir.path(), &["plugin", "check", "nowhere.wasm"], 1);
}

/// As [`tenon`], with a variable.
fn tenon_with(dir: &Path, variable: (&str, &str), arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tenon"))
        .current_dir(dir)
        .env(variable.0, variable.1)
        .args(arguments)
        .output()
        .unwrap()
}

/// A small component.
fn some_component() -> Vec<u8> {
    tenon_build::fixture::idle("rate-limit-policy").unwrap()
}

/// A folder with a key, `key` and `key.pub`, and a file to sign, `some.wasm`.
fn signer() -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let made = json(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"]);
    fs::write(dir.path().join("some.wasm"), some_component()).unwrap();
    (dir, made)
}

#[test]
fn keygen_writes_a_private_key_and_a_public_one_and_overwrites_neither() {
    let (dir, made) = signer();
    let (secret, public) = (dir.path().join("key"), dir.path().join("key.pub"));
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&public).unwrap();
    let key: tenon_runtime::TrustedKey = text.parse().unwrap();
    assert_eq!((made["key_id"].as_str(), made["public_key"].as_str()), (Some(&*key.id()), Some(&*key.to_string())));
    let before = (fs::read(&secret).unwrap(), fs::read(&public).unwrap());
    let refused = printed(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"], 1);
    assert!(refused.contains("key exists already"), "{refused}");
    fs::remove_file(&secret).unwrap();
    let refused = printed(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"], 1);
    assert!(refused.contains("key.pub exists already") && !secret.exists(), "{refused}");
    assert_eq!(fs::read(&public).unwrap(), before.1);
    // What it is for, in the words of the configuration.
    let told = printed(dir.path(), &["plugin", "keygen", "--out", "other", "--no-password"], 0);
    assert!(told.contains("trusted_keys = [\"RW"), "{told}");
}

#[test]
fn what_is_signed_verifies_with_the_key_or_its_file_and_nothing_else_does() {
    let (dir, made) = signer();
    let signed = json(dir.path(), &["plugin", "sign", "some.wasm", "--key", "key", "--comment", "release 1"]);
    assert_eq!((&signed["signature"], &signed["key_id"]), (&"some.wasm.sig".into(), &made["key_id"]));
    let base64 = made["public_key"].as_str().unwrap();
    for key in ["key.pub", base64] {
        let verified = json(dir.path(), &["plugin", "verify", "some.wasm", "--key", key]);
        let expected = serde_json::json!({ "verified": true, "key_id": made["key_id"], "comment": "release 1" });
        assert_eq!(verified, expected);
    }
    json(dir.path(), &["plugin", "keygen", "--out", "stranger", "--no-password"]);
    let verify = |arguments: &[&str]| printed(dir.path(), &[&["plugin", "verify"], arguments].concat(), 1);
    assert!(verify(&["some.wasm", "--key", "stranger.pub"]).contains("which is not trusted"));
    let changed = verify(&["key.pub", "--key", "key.pub", "--sig", "some.wasm.sig"]);
    assert!(
        changed.contains("is not one of these bytes; the key is the right one: the bytes have changed"),
        "{changed}"
    );
    assert!(!changed.contains("wanted"), "{changed}");
    assert!(verify(&["key.pub", "--key", "key.pub"]).contains("reading the signature key.pub.sig"));
    assert!(verify(&["some.wasm", "--key", "key"]).contains("is no minisign public key"));
    assert!(verify(&["some.wasm", "--key", "nowhere.pub"]).contains("`nowhere.pub` is no minisign public key"));
    let told = verify(&["--output", "json", "some.wasm", "--key", "stranger.pub"]);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["verified"], false);
    // Signing anew replaces the signature, here with the usual comment.
    json(dir.path(), &["plugin", "sign", "some.wasm", "--key", "key"]);
    let verified = json(dir.path(), &["plugin", "verify", "some.wasm", "--key", "key.pub"]);
    assert!(verified["comment"].as_str().unwrap().contains("\tfile:some.wasm\t"), "{verified}");
    let left = fs::read_dir(dir.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.')
    });
    assert_eq!(left.count(), 0, "nothing is left beside it");
}

#[test]
fn a_key_with_a_password_opens_with_that_alone() {
    let (dir, _) = signer();
    let right = ("TENON_KEY_PASSWORD", "correct horse");
    let made = tenon_with(dir.path(), right, &["plugin", "keygen", "--out", "sealed"]);
    assert!(made.status.success(), "{made:?}");
    let sign = ["plugin", "sign", "some.wasm", "--key", "sealed"];
    let told = |output: Output| (output.status.code(), String::from_utf8(output.stderr).unwrap());
    let (code, text) = told(tenon_with(dir.path(), ("TENON_KEY_PASSWORD", "wrong"), &sign));
    assert!(code == Some(1) && text.contains("Wrong password"), "{text}");
    let (code, text) = told(tenon(dir.path(), &sign));
    assert!(code == Some(1) && text.contains("set TENON_KEY_PASSWORD"), "{text}");
    assert!(!dir.path().join("some.wasm.sig").exists());
    assert_eq!(told(tenon_with(dir.path(), right, &sign)).0, Some(0));
    printed(dir.path(), &["plugin", "verify", "some.wasm", "--key", "sealed.pub"], 0);
    let (code, text) = told(tenon_with(dir.path(), ("TENON_KEY_PASSWORD", ""), &["plugin", "keygen", "--out", "none"]));
    assert!(code == Some(1) && text.contains("--no-password"), "{text}");
    assert!(!dir.path().join("none").exists());
}

#[test]
fn keys_and_signatures_of_the_minisign_tool_are_read() {
    // Written by minisign 0.11, `-G -W` and `-S`, for this test alone.
    let (dir, _) = signer();
    let write = |name: &str, lines: &[&str]| fs::write(dir.path().join(name), lines.join("\n") + "\n").unwrap();
    write(
        "tool",
        &[
            "untrusted comment: minisign encrypted secret key",
            "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAang6rhT0pXvMUCZPwpd80JKMUT3wHgvMb8zdo/X97U6sIsOD1MdhjXHcccsjOe6EeZRgPngqbIr4FmMmPbU+J32Gs4BV/A8IAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ],
    );
    write(
        "tool.pub",
        &[
            "untrusted comment: minisign public key 7BA5F414AE3A786A",
            "RWRqeDquFPSle3HcccsjOe6EeZRgPngqbIr4FmMmPbU+J32Gs4BV/A8I",
        ],
    );
    write(
        "some.wasm.sig",
        &[
            "untrusted comment: signature from minisign secret key",
            "RURqeDquFPSle1bGm2/mORqqzyu4zJUGO6IL4/09J1zLByPXsPzxTNcguXglWeUH41GkxyFCCFNT+k7jw4vYgQXDiPW5gAtUxgc=",
            "trusted comment: by minisign 0.11",
            "aBZ4RbWeYvRZp+fNlmBcjD8uJAMargHbLOZOsayjeEGIKmq1PqbhLroit6J1HToNTm3RAV8yISBWetH0LVMWBA==",
        ],
    );
    fs::write(dir.path().join("some.wasm"), b"any bytes can be signed").unwrap();
    let verify = ["plugin", "verify", "some.wasm", "--key", "tool.pub"];
    assert_eq!(json(dir.path(), &verify)["comment"], "by minisign 0.11");
    fs::write(dir.path().join("some.wasm"), some_component()).unwrap();
    json(dir.path(), &["plugin", "sign", "some.wasm", "--key", "tool"]);
    assert_eq!(json(dir.path(), &verify)["key_id"], "7BA5F414AE3A786A");
    // A damaged key signs nothing.
    let text = fs::read_to_string(dir.path().join("tool")).unwrap();
    let at = text.len() - 80;
    let damaged = format!("{}{}{}", &text[..at], if &text[at..=at] == "A" { "B" } else { "A" }, &text[at + 1..]);
    fs::write(dir.path().join("tool"), damaged).unwrap();
    let told = printed(dir.path(), &["plugin", "sign", "some.wasm", "--key", "tool"], 1);
    assert!(told.contains("may be damaged"), "{told}");
}

#[test]
fn sign_names_what_it_cannot_use() {
    let (dir, _) = signer();
    let sign = |arguments: &[&str]| printed(dir.path(), &[&["plugin", "sign"], arguments].concat(), 1);
    assert!(sign(&["none.wasm", "--key", "key"]).contains("reading none.wasm"));
    assert!(sign(&["some.wasm", "--key", "key.pub"]).contains("key.pub is no minisign secret key"));
    assert!(sign(&["some.wasm", "--key", "key", "--comment", "two\nlines"]).contains("not one line"));
    assert!(sign(&["some.wasm", "--key", "key", "--comment", &"x".repeat(2_000)]).contains("at most 1024"));
    assert!(!dir.path().join("some.wasm.sig").exists());
}

#[test]
fn config_check_looks_at_keys_and_signatures() {
    let dir = authority();
    let file = dir.path().join("node/tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    let write = |plugins: &str| fs::write(&file, format!("{text}\n[plugins]\n{plugins}\n")).unwrap();
    let line = text.lines().count() + 3;
    write("trusted_keys = [\"RWnonsense\"]");
    let told = printed(dir.path(), &["config", "check", "--dir", "node"], 1);
    assert!(told.contains(&format!("error: tenon.toml:{line}: plugins.trusted_keys: ")), "{told}");
    assert!(told.contains("`RWnonsense` is no minisign public key"), "{told}");
    write("require_signature = true");
    let told = printed(dir.path(), &["config", "check", "--dir", "node"], 1);
    assert!(told.contains("plugins.require_signature: no component could be taken"), "{told}");

    let made = json(dir.path(), &["plugin", "keygen", "--out", "key", "--no-password"]);
    write(&format!("trusted_keys = [{}]\nrequire_signature = true", made["public_key"]));
    let component = dir.path().join("node/plugins/extra.wasm");
    fs::write(&component, some_component()).unwrap();
    let refused = "extra.wasm would be refused";
    assert!(printed(dir.path(), &["config", "check", "--dir", "node"], 0).contains(refused));
    printed(dir.path(), &["plugin", "sign", component.to_str().unwrap(), "--key", "key"], 0);
    assert!(!printed(dir.path(), &["config", "check", "--dir", "node"], 0).contains(refused));
}

#[test]
fn simulate_compares_strategies_and_says_what_is_wrong_with_a_scenario() {
    let dir = tempfile::tempdir().unwrap();
    let component = tenon_build::path("sequential");
    let component = component.to_str().unwrap();
    let scenario = "[scenario]\ndescription = \"two peers\"\npeers = 2\n[chain]\nblocks = 3_000\n";
    fs::write(dir.path().join("two.toml"), scenario).unwrap();
    let run = ["plugin", "simulate", "builtin", component, "--scenario", "two.toml", "--seed", "4", "--svg", "two.svg"];
    let text = printed(dir.path(), &run, 0);
    for word in ["two peers", "builtin", "sequential", "time to sync", "fairness", "fuel a call"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let svg = fs::read_to_string(dir.path().join("two.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("two, seed 4"), "{svg}");
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert_eq!(printed(dir.path(), &run, 0), text);
    assert_eq!(fs::read_to_string(dir.path().join("two.svg")).unwrap(), svg);

    let told = json(dir.path(), &[&run[..], &["--blocks", "2000"]].concat());
    assert_eq!((&told["scenario"], &told["seed"]), (&"two".into(), &4.into()));
    let outcomes = told["outcomes"].as_array().unwrap();
    let heads: Vec<_> = outcomes.iter().map(|outcome| (&outcome["strategy"], &outcome["head"])).collect();
    assert_eq!(heads, [(&"builtin".into(), &2_000.into()), (&"sequential".into(), &2_000.into())]);
    assert!(outcomes[0]["fuel"] == 0 && outcomes[1]["fuel"].as_u64().unwrap() > 1_000, "{outcomes:?}");

    // A configuration changes what a component does, and is checked against its schema.
    let small = format!("{component}={{\"blocks\": 100}}");
    let told = json(dir.path(), &["plugin", "simulate", component, "--scenario", "two.toml", "--config", &small]);
    assert_eq!(told["outcomes"][0]["requests"], 30);
    // Two configurations of one strategy, side by side: one each, in order.
    let large = format!("{component}={{\"blocks\": 1000}}");
    let both =
        ["plugin", "simulate", component, component, "--scenario", "two.toml", "--config", &small, "--config", &large];
    let told = json(dir.path(), &both);
    let of = |at: usize| (told["outcomes"][at]["strategy"].as_str(), told["outcomes"][at]["requests"].as_u64());
    let ((first, small_ones), (second, large_ones)) = (of(0), of(1));
    assert_eq!((first, second), (Some("sequential"), Some("sequential #2")));
    assert!(small_ones == Some(30) && large_ones.is_some_and(|requests| requests < 6), "{told}");
    let one = vec![component, "--scenario", "two.toml", "--config", &small, "--config", &large];
    let refused = [
        (one, "2 configurations for"),
        (
            vec!["builtin", "--scenario", "two.toml", "--svg", "nowhere/x.svg"],
            "writing nowhere/x.svg: no folder nowhere",
        ),
        (vec!["builtin", "--scenario", "two.toml", "--config", "sequential={}"], "a configuration for sequential"),
        (vec!["builtin", "--config", "builtin={}"], "the built-in strategy has no configuration"),
        (vec!["no-such-strategy"], "neither a file nor a shipped plugin"),
        (vec!["none.wasm"], "reading none.wasm"),
        (vec!["builtin", "--scenario", "none.toml"], "reading none.toml"),
        (vec!["builtin", "--peers", "5000"], "one too many"),
    ];
    for (arguments, expected) in refused {
        let text = printed(dir.path(), &[&["plugin", "simulate"], &arguments[..]].concat(), 1);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let wrong = format!("{component}={{\"blocks\": 0}}");
    let text = printed(dir.path(), &["plugin", "simulate", component, "--config", &wrong], 1);
    assert!(text.contains("blocks"), "{text}");
    fs::write(dir.path().join("wrong.toml"), "[chain]\nblock = 5\n").unwrap();
    let text = printed(dir.path(), &["plugin", "simulate", "builtin", "--scenario", "wrong.toml"], 1);
    assert!(text.contains("wrong.toml:2: chain.block: unknown key; did you mean `chain.blocks`?"), "{text}");
    printed(dir.path(), &["plugin", "simulate"], 2);
}

#[test]
fn a_simulation_that_ends_otherwise_than_expected_is_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let mute = "[scenario]\nend_ms = 20_000\n[chain]\nblocks = 10\n[[peers]]\nmute_at_ms = 0\n";
    fs::write(dir.path().join("mute.toml"), mute).unwrap();
    let text = printed(dir.path(), &["plugin", "simulate", "builtin", "--scenario", "mute.toml"], 1);
    assert!(text.contains("no-source (not as expected)"), "{text}");
}

#[test]
fn the_readme_of_the_scenarios_has_every_scenario_and_every_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/scenarios");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    for key in tenon::simulate::Scenario::keys() {
        let row = format!("| `{}` | `{}` | {} | {} |", key.name, key.default, key.expected, key.meaning);
        assert!(readme.lines().any(|line| line == row), "not in the README:\n{row}");
    }
    for file in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "toml") {
            let name = file.file_name().unwrap().to_str().unwrap();
            let scenario = fs::read_to_string(&file).unwrap();
            let scenario = tenon::simulate::Scenario::parse(&scenario, name).unwrap();
            let row = format!("| `{name}` | {} |", scenario.about.description);
            assert!(readme.lines().any(|line| line == row), "not in the README:\n{row}");
        }
    }
}
