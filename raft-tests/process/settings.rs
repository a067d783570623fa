//! Settings: what is wrong is told at once, and nothing is started.

use std::fs;

use crate::node::{Node, contents};

const BAD: &str = "node_name = \"no spaces please\"\nhost_ip = \"127.0.0.1\"\npeer.prot = 7400\napi.port = 99999\nwitness = \"perhaps\"\n";

#[test]
fn all_that_is_wrong_with_the_settings_is_told_at_once() {
    let mut node = Node::new(41);
    node.environment.push(("HASUP_HOST_PI", "127.0.0.41".into()));
    fs::write(node.folder.path().join("node.toml"), BAD).unwrap();
    let before = contents(node.folder.path());
    for words in [
        &["config", "check"][..],
        &["start", "--foreground"],
        &["run"],
        &["join", "127.0.0.1", "--token", "x", "--foreground"],
    ] {
        let ended = node.hasup(words);
        ended.fails(
            2,
            &[
                "5 problems",
                "node.toml:1",
                "node_name",
                "node.toml:3",
                "peer.port",
                "node.toml:4",
                "65535",
                "node.toml:5",
                "did you mean `HASUP_HOST_IP`?",
            ],
        );
        assert!(ended.err.contains("Nothing was started"), "{ended:?}");
    }
    assert_eq!(contents(node.folder.path()), before, "nothing was made");
}

#[test]
fn the_settings_in_effect_are_printed_with_their_origin() {
    let node = Node::new(41);
    fs::write(node.folder.path().join("node.toml"), "host_ip = \"127.0.0.41\"\nlog.level = \"debug\"\n").unwrap();
    let settings = node.json(&["config", "check", "--peer-port", "7777"]);
    let of = |key: &str| settings.as_array().unwrap().iter().find(|row| row["key"] == key).cloned().unwrap();
    assert!(of("log.level")["origin"].as_str().unwrap().ends_with("node.toml:2"), "{settings}");
    assert_eq!(
        (of("peer.port")["origin"].as_str(), of("peer.port")["value"].as_str()),
        (Some("--peer-port"), Some("7777"))
    );
    assert_eq!(of("postgres.port")["origin"], "default");
}

#[test]
fn a_command_without_a_node_says_so_and_ends() {
    let node = Node::new(41);
    fs::write(node.folder.path().join("node.toml"), "node_name = \"n41\"\nhost_ip = \"127.0.0.41\"\n").unwrap();
    for words in
        [&["status"][..], &["nodes", "list"], &["switchover"], &["kv", "get", "a"], &["dsn"], &["token", "create"]]
    {
        let ended = node.hasup(words);
        ended.fails(1, &["hasup"]);
        assert!(ended.out.is_empty(), "{ended:?}");
    }
    let ended = node.hasup(&["check"]);
    assert_eq!(ended.code, Some(3), "monitoring's unknown: {ended:?}");
    assert!(ended.out.starts_with("HASUP UNKNOWN"), "{ended:?}");
    node.hasup(&["run"]).fails(3, &["holds no node", "hasup start", "hasup join"]);
    node.hasup(&["nonsense"]).fails(2, &["nonsense"]);
    node.hasup(&["nodes", "set", "n1", "colour=red"]).fails(2, &["colour=red", "Nothing was changed"]);
    node.hasup(&["options", "set", "nonsense=1"]).fails(2, &["nonsense", "check_ttl_multiplier"]);
    assert_eq!(node.hasup(&["--version"]).code, Some(0));
    let error: serde_json::Value = serde_json::from_str(&node.hasup(&["status", "--json"]).err).unwrap();
    assert_eq!(error["error"]["code"], "unreachable");
}
