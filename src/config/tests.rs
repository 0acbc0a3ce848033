//! Every kind of mistake, and what is said of it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::p2p::P2pConfig;
use crate::producer::EmptyBlocks;
use tenon_runtime::{Limit, Limits};

/// A public key: the one in minisign's own documentation.
const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_with(text, &[])
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, variables, Path::new("/node"))
}

fn lines(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    parse_with(text, variables).unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_is_the_default_below_its_folder() {
    let config = parse("").unwrap();
    assert_eq!(config.rpc.listen.to_string(), "127.0.0.1:8006");
    assert_eq!(config.store.path, PathBuf::from("/node/data/chain.db"));
    assert_eq!((config.producer, config.agents.len()), (None, 0));
}

#[test]
fn everything_that_the_design_names_is_read() {
    let config = parse(
        r#"
        [chain]
        genesis = "/elsewhere/genesis.json"
        [store]
        path = "data/chain.db"
        [rpc]
        listen = "[::1]:1"
        peers = ["10.0.0.0/8"]
        costs = { "/rpc/head" = 3 }
        [admin]
        listen = "127.0.0.1:8007"
        token_file = "admin.token"
        [producer]
        key = "keystore/authority.json"
        interval_ms = 500
        empty_blocks = "never"
        [sync]
        sources = ["http://10.0.0.1:8006"]
        watchdog_ms = 200
        verify_state_every = 9
        [snapshot]
        dir = "elsewhere"
        every_blocks = 5000
        keep = 3
        depth = 0
        blocks = 10
        [monitor]
        lag_blocks = 3
        lag_seconds = 4
        webhook = ""
        [p2p]
        listen = ["/ip4/0.0.0.0/tcp/7070", "/ip4/0.0.0.0/udp/7070/quic-v1"]
        peers = ["/dns4/seed.example/tcp/7070/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"]
        [plugins]
        dir = "plugins"
        trusted_keys = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
        require_signature = true
        [plugins.rate-limit]
        use = "token-bucket"
        on_failure = "closed"
        limits = { deadline_ms = 60 }
        rollout = { mode = "immediate" }
        [plugins.rate-limit.config]
        read = { capacity = 5, refill_per_second = 1 }
        [plugins.sync]
        use = "parallel-range"
        [[agents]]
        name = "bob"
        wallet = "keystore/bob.json"
        handler = "ping-pong"
        max_fee_per_hour = 7
        config = { trigger = "ping", reply = "pong" }
        "#,
    )
    .unwrap();
    assert_eq!(config.chain.genesis, PathBuf::from("/elsewhere/genesis.json"));
    assert_eq!(config.rpc.costs["/rpc/head"], 3);
    let producer = config.producer.unwrap();
    assert_eq!((producer.interval_ms, producer.empty_blocks), (500, EmptyBlocks::Never));
    assert_eq!(config.plugins.rate_limit.plugin.as_deref(), Some("token-bucket"));
    assert_eq!(config.plugins.rate_limit.limits.deadline_ms, 60);
    assert_eq!(config.plugins.directory.trusted_keys[0].id(), "E7620F1842B4E81F");
    assert_eq!(config.plugins.rate_limit.config["read"]["capacity"], 5);
    assert_eq!(config.agents[0].wallet, PathBuf::from("/node/keystore/bob.json"));
    assert_eq!(config.agents[0].config["trigger"], "ping");
    let p2p = config.p2p.unwrap();
    assert_eq!((p2p.listen.0.len(), p2p.peers.len()), (2, 1));
    assert_eq!(p2p.key, PathBuf::from("/node/keystore/p2p.key"));
}

#[test]
fn every_mistake_is_named_with_its_line() {
    let text = "[rpc]\nlistn = \"x\"\nlisten = \"nowhere\"\n[producer]\ninterval_ms = 0\nempty_blocks = \"often\"\n\
                [sinc]\n[monitor]\nlag_blocks = \"many\"\n[plugins.rate-limt]\nuse = \"a\"\n[rcp]\n";
    assert_eq!(
        lines(text, &[]),
        [
            "error: tenon.toml:2: rpc.listn: unknown key; did you mean `rpc.listen`?",
            "error: tenon.toml:3: rpc.listen: expected an IP address and a port, like \"127.0.0.1:8006\", got \"nowhere\"",
            "error: tenon.toml:5: producer.interval_ms: expected a whole number, 1 to 3600000, got 0",
            "error: tenon.toml:6: producer.empty_blocks: expected \"heartbeat\", \"always\" or \"never\", got \"often\"",
            "error: tenon.toml:7: sinc: unknown key; did you mean `sync`?",
            "error: tenon.toml:9: monitor.lag_blocks: expected a whole number, 0 to 1000000, got \"many\"",
            "error: tenon.toml:10: plugins.rate-limt: unknown key; did you mean `plugins.rate-limit`?",
            "error: tenon.toml:12: rcp: unknown key; did you mean `rpc`?",
        ]
    );
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    let lines = lines("[rpc]\nlisten = \n", &[]);
    assert!(lines[0].starts_with("error: tenon.toml:2: "), "{lines:?}");
}

#[test]
fn what_is_out_of_range_or_not_available_yet_says_so() {
    for (text, expected) in [
        ("[plugins.sync]\nrollout = { mode = \"slowly\" }", "{ mode = \"immediate\" }"),
        ("[plugins.sync]\nrollout = { mode = \"shadow\", call = 9 }", "call"),
        (
            "[plugins.sync]\nrollout = { mode = \"shadow\", max_divergence = 2.0 }",
            "max_divergence is 2, expected 0 to 1",
        ),
        ("[plugins.sync]\nrollout = { mode = \"canary\", steps = [10, 1] }", "ascending percentages"),
        ("[plugins.sync]\nprobation = { failures = 0 }", "failures is 0, expected 1 or more"),
        ("[plugins.sync]\njournal = { sample = 1.5 }", "sample is 1.5, expected 0 to 1"),
        ("[p2p]\nlisten = \"0.0.0.0:7070\"", "p2p.listen: expected a multiaddress like \"/ip4/0.0.0.0/tcp/7070\""),
        ("[p2p]\npeers = [\"/ip4/10.0.0.1/tcp/7070\"]", "`tenon p2p id` on that node prints its id"),
        ("[p2p]\nconnections_max = 0", "p2p.connections_max: expected a whole number, 1 to 1000, got 0"),
        ("[sync]\nverify_state_every = -1", "sync.verify_state_every"),
        ("[snapshot]\nkeep = 0", "1 to 100"),
        ("[snapshot]\ndepth = 1001", "0 to 1000"),
    ] {
        let lines = lines(text, &[]);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{lines:?}");
    }
}

/// Another value than the default, within the range.
fn other(limit: &Limit) -> u64 {
    let default = serde_json::to_value(Limits::default()).unwrap()[limit.name].as_u64().unwrap();
    if default == limit.high { default - 1 } else { default + 1 }
}

#[test]
fn every_limit_can_be_set_for_every_slot() {
    let all: String = Limits::ALL.iter().map(|limit| format!("{} = {}\n", limit.name, other(limit))).collect();
    let inline = all.trim().replace('\n', ", ");
    let config = parse(&format!(
        "[plugins.rate-limit.limits]\n{all}[plugins.sync]\nlimits = {{ {inline} }}\n\
         [[agents]]\nname = \"bob\"\nwallet = \"bob.json\"\nlimits = {{ {inline} }}\n\
         [[agents]]\nname = \"eve\"\nwallet = \"eve.json\"\n[agents.limits]\n{all}"
    ))
    .unwrap();
    let slots = [config.plugins.rate_limit.plugin_config(), config.plugins.sync.plugin_config()];
    for slot in slots.into_iter().chain(config.agents.iter().map(Agent::plugin_config)) {
        let limits = serde_json::to_value(&slot.limits).unwrap();
        for limit in Limits::ALL {
            assert_eq!(limits[limit.name], other(limit), "{}", limit.name);
        }
    }
}

#[test]
fn every_limit_out_of_its_range_is_named_with_its_path_and_line() {
    for limit in Limits::ALL {
        let Limit { name, low, high, .. } = limit;
        let below = i128::from(*low) - 1;
        for (value, sound) in [
            (low.to_string(), true),
            (high.to_string(), true),
            (below.to_string(), false),
            ((high + 1).to_string(), false),
        ] {
            // The longest quarantine cannot be shorter than the first one.
            let first = if *name == "backoff_max_ms" { "backoff_min_ms = 1" } else { "backoff_max_ms = 86400000" };
            let expected = format!(
                "error: tenon.toml:3: plugins.sync.limits.{name}: expected a whole number, {low} to {high}, got {value}"
            );
            match parse(&format!("[plugins.sync.limits]\n{first}\n{name} = {value}\n")) {
                Ok(_) => assert!(sound, "{name} = {value}"),
                Err(error) => assert!(!sound && error.to_string() == expected, "{name} = {value}: {error}"),
            }
        }
    }
}

#[test]
fn a_mistake_in_limits_is_named_with_its_path_and_line() {
    let text = "[plugins.rate-limit.limits]\ndeadline = 60\nfuel_max = \"much\"\n[plugins.sync]\nlimits = 5\n\
                [[agents]]\nname = \"bob\"\nwallet = \"w\"\nlimits = { backoff_min_ms = 400000 }\n";
    assert_eq!(
        lines(text, &[]),
        [
            "error: tenon.toml:2: plugins.rate-limit.limits.deadline: unknown key; did you mean `plugins.rate-limit.limits.deadline_ms`?",
            "error: tenon.toml:3: plugins.rate-limit.limits.fuel_max: expected a whole number, 1000 to 1000000000000, got \"much\"",
            "error: tenon.toml:5: plugins.sync.limits: expected a section, got 5",
            "error: tenon.toml:9: agents[0].limits.backoff_max_ms: backoff_max_ms is 300000, expected 400000 (backoff_min_ms) or more",
        ]
    );
    let variable = "TENON_PLUGINS_SYNC_LIMITS_STRIKES_MAX";
    let text = "plugins.sync.limits.strikes_max: expected a whole number, 1 to 1000000, got 0";
    assert_eq!(lines("", &[(variable, "0")]), [format!("error: {variable}: {text}")]);
}

#[test]
fn a_trusted_key_that_does_not_read_is_named_with_its_line() {
    let lines = lines("[plugins]\ntrusted_keys = [\"nonsense\"]\n", &[]);
    let start = "error: tenon.toml:2: plugins.trusted_keys: expected a list of public keys, like [\"RW…\"], got [\"nonsense\"]: \
                 `nonsense` is no minisign public key: ";
    assert!(lines.len() == 1 && lines[0].starts_with(start), "{lines:?}");
}

#[test]
fn an_agent_needs_a_name_and_a_wallet() {
    let lines = lines("[[agents]]\nhandlr = \"x\"\n", &[]);
    assert_eq!(
        lines,
        [
            "error: tenon.toml:1: agents[0].name: is missing",
            "error: tenon.toml:1: agents[0].wallet: is missing",
            "error: tenon.toml:2: agents[0].handlr: unknown key; did you mean `agents[0].handler`?",
        ]
    );
    assert!(parse("[agents]\nname = \"x\"").unwrap_err().to_string().contains("two brackets"));
}

#[test]
fn variables_lie_over_the_file() {
    let variables = [
        ("TENON_RPC_LISTEN", "127.0.0.1:9"),
        ("TENON_SYNC_SOURCES", "http://a:1, http://b:2"),
        ("TENON_MONITOR_LAG_BLOCKS", "7"),
        ("TENON_PLUGINS_RATE_LIMIT_USE", "allow-all"),
        ("TENON_PLUGINS_REQUIRE_SIGNATURE", "true"),
        ("TENON_PLUGINS_SYNC_CONFIG", "{ ranges = 3 }"),
        ("TENON_PLUGINS_SYNC_LIMITS_DEADLINE_MS", "70"),
        ("TENON_PLUGINS_TRUSTED_KEYS", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"),
        ("TENON_KEY_PASSWORD", "is no knob"),
        ("TENON_PLUGINS", "/shipped"),
        ("TENON_LOG", "debug"),
    ];
    let config = parse_with("[rpc]\nlisten = \"127.0.0.1:1\"\n", &variables).unwrap();
    assert_eq!(config.rpc.listen.port(), 9);
    assert_eq!(config.sync.sources, ["http://a:1", "http://b:2"]);
    assert_eq!(config.monitor.lag_blocks, 7);
    assert_eq!(config.plugins.rate_limit.plugin.as_deref(), Some("allow-all"));
    assert!(config.plugins.directory.require_signature);
    assert_eq!(config.plugins.sync.config["ranges"], 3);
    assert_eq!(config.plugins.sync.limits.deadline_ms, 70);
    assert_eq!(config.plugins.directory.trusted_keys.len(), 1);
}

#[test]
fn a_variable_that_means_nothing_is_named() {
    let lines = lines("", &[("TENON_RPC_LISTN", "x"), ("TENON_MONITOR_LAG_BLOCKS", "x")]);
    assert_eq!(
        lines,
        [
            "error: TENON_RPC_LISTN: no knob has this variable; did you mean `TENON_RPC_LISTEN`?",
            "error: TENON_MONITOR_LAG_BLOCKS: monitor.lag_blocks: expected a whole number, 0 to 1000000, got \"x\"",
        ]
    );
}

#[test]
fn the_default_configuration_writes_and_reads_back() {
    let peer = "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().unwrap();
    let p2p = P2pConfig { peers: vec![peer], ..P2pConfig::default() };
    let both = Config { producer: Some(Producer::default()), p2p: Some(p2p), ..Config::default() };
    for config in [Config::default(), both] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text, [], Path::new("")).unwrap(), config, "{text}");
    }
}

#[test]
fn every_knob_is_documented() {
    let keys = Config::keys();
    assert!(keys.len() > 30);
    for key in keys {
        assert!(key.meaning.len() > 15 && key.meaning.ends_with('.'), "{key:?}");
        assert!(!key.expected.is_empty() && !key.default.is_empty(), "{key:?}");
    }
}

/// A node's directory in which nothing is wrong.
fn node() -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let keystore = dir.path().join("keystore");
    std::fs::create_dir_all(dir.path().join("plugins")).unwrap();
    std::fs::create_dir_all(&keystore).unwrap();
    let key = crate::chain::SecretKey::from_seed([1; 32]).public_key();
    let address = crate::chain::Address::of(&key);
    let genesis = serde_json::json!({
        "format": crate::chain::format::NAME, "chain_id": "c", "timestamp": "2025-01-01T00:00:00", "slot_ms": 2000, "min_fee": 1,
        "authorities": [{"address": address, "public_key": key}], "allocations": [],
    });
    std::fs::write(dir.path().join("genesis.json"), genesis.to_string()).unwrap();
    let files = [
        ("keystore/authority.json", serde_json::json!({ "address": address }).to_string()),
        ("keystore/bob.json", serde_json::json!({ "address": crate::chain::Address([7; 20]) }).to_string()),
        ("keystore/password", "secret".into()),
        ("admin.token", "token".into()),
        ("plugins/ping-pong.wasm", String::new()),
    ];
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = "[producer]\n[[agents]]\nname = \"bob\"\nwallet = \"keystore/bob.json\"\nhandler = \"ping-pong\"\n";
    let config = Config::parse(text, [], dir.path()).unwrap();
    (dir, config)
}

#[test]
fn nothing_is_wrong_with_a_good_node() {
    assert_eq!(node().1.check(), []);
}

#[test]
fn each_thing_that_does_not_fit_is_found() {
    type Change = fn(&Path, &mut Config);
    let cases: [(Severity, &str, &str, Change); 26] = [
        (Severity::Error, "chain.genesis", "cannot read", |_, c| c.chain.genesis = "nowhere".into()),
        (Severity::Error, "chain.genesis", "genesis", |dir, _| std::fs::write(dir.join("genesis.json"), "{}").unwrap()),
        (Severity::Error, "rpc.costs", "`/nowhere` is no route", |_, c| _ = c.rpc.costs.insert("/nowhere".into(), 2)),
        (Severity::Error, "admin.listen", "taken", |_, c| c.admin.listen = c.rpc.listen),
        (Severity::Warning, "admin.listen", "other machines", |_, c| c.admin.listen = "0.0.0.0:1".parse().unwrap()),
        (Severity::Error, "sync.sources", "itself", |_, c| c.sync.sources = vec!["http://127.0.0.1:8006".into()]),
        (Severity::Error, "sync.sources", "itself", |_, c| {
            c.rpc.listen = "0.0.0.0:8006".parse().unwrap();
            c.sync.sources = vec!["http://localhost:8006".into()];
        }),
        (Severity::Error, "sync.sources", "admin.listen", |_, c| c.sync.sources = vec!["http://localhost:8007".into()]),
        (Severity::Error, "sync.sources", "no http", |_, c| c.sync.sources = vec!["ftp://a".into()]),
        (Severity::Warning, "sync.sources", "only grow", |_, c| c.producer = None),
        (Severity::Error, "monitor.webhook", "no http", |_, c| c.monitor.webhook = "hooks.example/x".into()),
        (Severity::Error, "p2p.key", "64 hexadecimal", |dir, c| {
            let key = dir.join("p2p.key");
            std::fs::write(&key, "x").unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
            c.p2p = Some(P2pConfig { key, ..P2pConfig::default() });
        }),
        (Severity::Error, "p2p.peers", "own id", |dir, c| {
            let key = dir.join("p2p.key");
            let own = crate::p2p::Identity::open_or_create(&key).unwrap().peer_id();
            let peers = vec![format!("/ip4/10.0.0.1/tcp/1/p2p/{own}").parse().unwrap()];
            c.p2p = Some(P2pConfig { key, peers, ..P2pConfig::default() });
        }),
        (Severity::Error, "p2p.listen", "port of rpc.listen", |_, c| {
            let listen = serde_json::from_str(r#""/ip4/0.0.0.0/tcp/8006""#).unwrap();
            c.p2p = Some(P2pConfig { listen, ..P2pConfig::default() });
        }),
        (Severity::Warning, "p2p.listen", "nobody to connect to", |_, c| {
            c.p2p = Some(P2pConfig { listen: serde_json::from_str("[]").unwrap(), ..P2pConfig::default() });
        }),
        #[cfg(not(feature = "mdns"))]
        (Severity::Error, "p2p.mdns", "--features mdns", |_, c| {
            c.p2p = Some(P2pConfig { mdns: true, ..P2pConfig::default() });
        }),
        (Severity::Error, "producer.key", "no authority", |_, c| {
            c.producer.as_mut().unwrap().key = c.agents.remove(0).wallet;
        }),
        (Severity::Error, "producer.key", "chmod 600", |dir, _| {
            let mode = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(dir.join("keystore/authority.json"), mode).unwrap();
        }),
        (Severity::Error, "producer.heartbeat_ms", "shorter", |_, c| c.producer.as_mut().unwrap().heartbeat_ms = 1),
        (Severity::Error, "agents[1].name", "another agent", |_, c| c.agents.push(c.agents[0].clone())),
        (Severity::Error, "agents[0].wallet", "cannot read", |_, c| c.agents[0].wallet = "nowhere".into()),
        (Severity::Warning, "agents[0].handler", "no echo.wasm", |_, c| c.agents[0].handler = Some("echo".into())),
        (Severity::Error, "plugins.require_signature", "no plugins.trusted_keys", |_, c| {
            c.plugins.directory.require_signature = true
        }),
        (Severity::Warning, "plugins.trusted_keys", "ping-pong.wasm would be refused: no signature file", |_, c| {
            c.plugins.directory.trusted_keys = vec![KEY.parse().unwrap()];
            c.plugins.directory.require_signature = true;
        }),
        (Severity::Warning, "plugins.trusted_keys", "refused: no minisign signature: expected 4 lines", |dir, c| {
            std::fs::write(dir.join("plugins/ping-pong.wasm.sig"), "garbage").unwrap();
            c.plugins.directory.trusted_keys = vec![KEY.parse().unwrap()];
        }),
        (Severity::Error, "admin.token_file", "cannot read", |dir, _| {
            std::fs::remove_file(dir.join("admin.token")).unwrap()
        }),
    ];
    for (severity, key, text, change) in cases {
        let (dir, mut config) = node();
        change(dir.path(), &mut config);
        let problems = config.check();
        let found = problems.iter().any(|p| p.severity == severity && p.key == key && p.text.contains(text));
        assert!(found, "{key}, {text}: {problems:?}");
    }
}

#[test]
fn a_node_with_three_mistakes_hears_of_all_three() {
    let (_dir, mut config) = node();
    config.chain.genesis = "nowhere".into();
    config.admin.listen = config.rpc.listen;
    config.agents[0].handler = Some("echo".into());
    let severities: Vec<Severity> = config.check().iter().map(|problem| problem.severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Error, Severity::Warning]);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z\\[\\]=\". 0-9\n-]{0,200}", value in ".{0,40}") {
        let _ = parse_with(&text, &[("TENON_RPC_LISTEN", &value), ("TENON_STORE_PATH", &value)]);
    }

    #[test]
    fn numbers_within_their_range_are_taken_and_others_named(number in any::<i64>()) {
        let read = parse(&format!("[producer]\ninterval_ms = {number}\nheartbeat_ms = 86400000"));
        prop_assert_eq!(read.is_ok(), (1..=3_600_000).contains(&number));
    }
}
