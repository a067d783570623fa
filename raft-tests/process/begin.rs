//! Beginning: what is refused, before anything is touched.

use std::fs;
use std::net::TcpListener;

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, contents};

#[test]
fn a_folder_that_holds_anything_is_refused_and_not_touched() {
    let node = Node::new(42);
    fs::create_dir(node.data_dir()).unwrap();
    fs::write(node.data_dir().join("thesis.txt"), "years").unwrap();
    let before = contents(node.folder.path());
    node.refused(&["start"]).fails(3, &["is not empty", "thesis.txt", "Nothing was changed", "--data-dir"]);
    node.refused(&["join", "127.0.0.1", "--token", "x"]).fails(3, &["is not empty", "thesis.txt"]);
    assert_eq!(contents(node.folder.path()), before);
}

#[test]
fn without_systemd_and_foreground_nothing_begins() {
    if std::path::Path::new("/run/systemd/system").exists() {
        return skip("without_systemd_and_foreground_nothing_begins", "systemd runs this machine");
    }
    let node = Node::new(42);
    node.hasup(&["start", "--node-name", "n42", "--host-ip", "127.0.0.42"])
        .fails(2, &["--foreground", "Nothing was started"]);
    assert!(!node.data_dir().exists());
}

#[test]
fn a_join_without_a_usable_token_asks_nobody() {
    let node = Node::new(42);
    node.refused(&["join", "127.0.0.1:9"]).fails(2, &["no join token", "hasup token create"]);
    node.refused(&["join", "127.0.0.1:9", "--token-file", "/nonexistent"])
        .fails(2, &["/nonexistent", "Nothing was joined"]);
    let ended = node.refused(&["join", "127.0.0.1:9", "--token", "nonsense"]);
    assert!(matches!(ended.code, Some(1..=3)) && ended.err.contains("token"), "{ended:?}");
}

/// Takes the node's port number `index` and starts it.
fn start_on_a_taken_port(test: &str, index: usize) {
    if let Some(why) = lacks_postgres() {
        return skip(test, &why);
    }
    let _alone = alone();
    let node = Node::new(43);
    let taken = TcpListener::bind((node.host.as_str(), node.ports[index])).unwrap();
    let ended = node.refused(&["start"]);
    let port = node.ports[index].to_string();
    assert!(matches!(ended.code, Some(1..=3)) && ended.err.contains(&port), "port {port}: {ended:?}");
    assert!(!ended.err.contains("panicked"), "{ended:?}");
    drop(taken);
}

#[test]
fn nothing_begins_where_a_port_of_hasup_is_taken() {
    for index in [0, 1] {
        start_on_a_taken_port("nothing_begins_where_a_port_of_hasup_is_taken", index);
    }
}

#[test]
fn nothing_begins_where_the_port_of_postgresql_is_taken() {
    start_on_a_taken_port("nothing_begins_where_the_port_of_postgresql_is_taken", 2);
}

#[test]
fn a_member_that_is_not_there_is_told() {
    let node = Node::new(42);
    let file = node.folder.path().join("token");
    // Right in form: the prefix, an id, a secret and a fingerprint.
    fs::write(&file, "hasup1-00000000-00000000000000000000000000000000-0000\n").unwrap();
    let ended = node.refused(&["join", "127.0.0.42:9", "--token-file", &file.display().to_string()]);
    assert!(matches!(ended.code, Some(1..=3)), "{ended:?}");
    assert!(!ended.err.contains("panicked"), "{ended:?}");
}
