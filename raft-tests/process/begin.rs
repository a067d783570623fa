//! Beginning: what is refused, before anything is touched.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, TOKEN, contents};

/// What a start may take until the node has its identity, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

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
    node.refused(&["join", "127.0.0.1:9", "--token", "nonsense"]).fails(2, &["no join token", "Nothing was sent"]);
    assert!(!node.data_dir().exists(), "nothing was touched");
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
    ended.fails(3, &[&port, "ss -ltnp"]);
    drop(taken);
}

#[test]
fn nothing_begins_where_a_port_of_hasup_is_taken() {
    for index in [0, 1] {
        start_on_a_taken_port("nothing_begins_where_a_port_of_hasup_is_taken", index);
    }
}

#[test]
fn nothing_begins_where_the_port_of_the_pulses_is_taken() {
    let name = "nothing_begins_where_the_port_of_the_pulses_is_taken";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let node = Node::new(43);
    let taken = UdpSocket::bind((node.host.as_str(), node.ports[0])).unwrap();
    let words = [&node.ports[0].to_string(), "UDP", "ss -lunp", "--peer-port"];
    node.refused(&["start"]).fails(3, &words);
    node.refused(&["join", "127.0.0.42:9", "--token", TOKEN]).fails(3, &words);
    assert!(!node.data_dir().join("pgdata").exists(), "a database was made for nothing");
    drop(taken);
}

/// `start` and `join` on a node that is to be at `host`, which this machine is not.
fn begins_nowhere(test: &str, host: &str, told: &[&str]) {
    if let Some(why) = lacks_postgres() {
        return skip(test, &why);
    }
    let _alone = alone();
    let mut node = Node::new(43);
    node.host = host.to_owned();
    for words in [&["start"][..], &["join", "127.0.0.1:1", "--token", TOKEN][..]] {
        let ended = node.refused(words);
        ended.fails(3, told);
        assert!(!ended.err.contains("is taken"), "{ended:?}");
        assert!(!node.data_dir().join("identity.json").exists(), "nothing was begun");
    }
}

#[test]
fn a_name_that_nobody_has_is_told_as_that() {
    let told = ["does not know the name nohost.invalid", "getent hosts", "--host-ip"];
    begins_nowhere("a_name_that_nobody_has_is_told_as_that", "nohost.invalid", &told);
}

#[test]
fn an_address_that_no_interface_has_is_told_as_that() {
    // set apart for documentation
    let told = ["no interface of this machine has the address 192.0.2.77", "`ip address`", "--host-ip"];
    begins_nowhere("an_address_that_no_interface_has_is_told_as_that", "192.0.2.77", &told);
}

#[test]
fn a_node_without_a_file_of_its_trust_says_which_and_what_to_do() {
    let name = "a_node_without_a_file_of_its_trust_says_which_and_what_to_do";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(48);
    node.start(&[]);
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    let aside = node.folder.path().join("aside");
    for (missing, cure) in [
        ("node.key", "hasup nodes remove"),
        ("node.crt", "hasup nodes remove"),
        ("pulse.key", "hasup nodes remove"),
        ("cluster.secret", "the same on every member"),
        ("ca.crt", "the same on every member"),
    ] {
        let path = node.data_dir().join("tls").join(missing);
        fs::rename(&path, &aside).unwrap();
        node.hasup(&["run", "--foreground"]).fails(3, &[&path.display().to_string(), "is missing", cure]);
        assert!(!path.exists(), "{missing} was made anew");
        fs::rename(&aside, &path).unwrap();
    }
    node.run();
    node.until("the node active with its own files", |status| status["active_ready"] == true);
}

#[test]
fn nothing_begins_where_the_port_of_postgresql_is_taken() {
    start_on_a_taken_port("nothing_begins_where_the_port_of_postgresql_is_taken", 2);
}

/// Waits until the node that `child` begins has its identity, and kills everything of it there.
fn killed_midway(node: &mut Node, mut child: Child) {
    let deadline = Instant::now() + LIMIT;
    while !node.data_dir().join("identity.json").exists() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "{}", node.log());
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    node.kill();
    assert!(node.data_dir().join("begin.json").exists(), "it was killed too late: {}", node.log());
}

#[test]
fn a_start_that_was_killed_and_meets_a_taken_port_at_its_second_try_goes_on_at_the_third() {
    let name = "a_start_that_was_killed_and_meets_a_taken_port_at_its_second_try_goes_on_at_the_third";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(49);
    let child = node.spawn(&["start"]);
    killed_midway(&mut node, child);
    let taken = TcpListener::bind((node.host.as_str(), node.ports[1])).unwrap();
    node.refused(&["start"]).fails(3, &[&node.ports[1].to_string(), "ss -ltnp"]);
    drop(taken);
    // what was asked for is not forgotten: the cluster is founded, by the same command or by the daemon alone
    node.run();
    node.until("the node active", |status| status["active_ready"] == true);
}

#[test]
fn a_second_daemon_on_a_running_node_is_refused_and_disturbs_nothing() {
    let name = "a_second_daemon_on_a_running_node_is_refused_and_disturbs_nothing";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut first = Node::new(44);
    first.start(&[]);
    let owner = fs::read_to_string(first.data_dir().join("daemon.lock")).unwrap();
    let told =
        format!("another hasup runs with the data directory {} (pid {})", first.data_dir().display(), owner.trim());
    let second = first.hasup(&["run", "--foreground"]);
    second.fails(3, &[&told, "nothing was touched"]);
    assert!(!second.err.contains("damaged") && !second.err.contains("destroy"), "{second:?}");
    assert_eq!(first.json(&["status"])["active_ready"], true);
    // once it has ended, the next one begins
    assert_eq!(first.stop(), Some(0), "{}", first.log());
    first.run();
    first.until("the same node active again", |status| status["active_ready"] == true);
}

#[test]
fn a_node_that_has_forgotten_its_votes_or_promises_does_not_start() {
    let name = "a_node_that_has_forgotten_its_votes_or_promises_does_not_start";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(48);
    node.start(&[]);
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    let (data_dir, aside) = (node.data_dir(), node.folder.path().join("aside"));
    let words = ["does not start", "hasup nodes remove n48", "hasup destroy", "join again"];
    for missing in ["promises", "raft", "raft/log/db"] {
        let path = data_dir.join(missing);
        fs::rename(&path, &aside).unwrap();
        let refused = node.hasup(&["run", "--foreground"]);
        refused.fails(3, &words);
        assert!(refused.err.contains(&path.display().to_string()), "{refused:?}");
        assert!(!path.exists(), "made anew, {missing} would be believed the next time");
        fs::rename(&aside, &path).unwrap();
    }

    // an older copy of the log
    let copied = Command::new("cp").arg("-a").args([&data_dir.join("raft"), &aside]).status();
    assert!(copied.is_ok_and(|ended| ended.success()));
    node.run();
    node.until("the node active again", |status| status["active_ready"] == true);
    for number in 0..20 {
        node.json(&["kv", "put", &format!("key/{number}"), "x"]);
    }
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    let newer = node.folder.path().join("newer");
    fs::rename(data_dir.join("raft"), &newer).unwrap();
    fs::rename(&aside, data_dir.join("raft")).unwrap();
    let refused = node.hasup(&["run", "--foreground"]);
    refused.fails(3, &words);
    assert!(refused.err.contains("less than it once had"), "{refused:?}");
    fs::remove_dir_all(data_dir.join("raft")).unwrap();
    fs::rename(&newer, data_dir.join("raft")).unwrap();
    node.run();
    node.until("the node active with its own log", |status| status["active_ready"] == true);
}

#[test]
fn a_member_that_is_not_there_is_told() {
    let node = Node::new(42);
    let file = node.folder.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let ended = node.refused(&["join", "127.0.0.42:9", "--token-file", &file.display().to_string()]);
    ended.fails(1, &["no member could be asked", "127.0.0.42:9"]);
}

/// A small file system of its own; unmounted when dropped.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(folder: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let options = format!("size={size},mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|ended| ended.success()).then_some(Self(folder))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Returns a folder with PostgreSQL's programs of another major version, as far as anybody asks them.
fn programs_of(version: &str, folder: &Path) -> String {
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_resetwal"] {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin.display().to_string()
}

#[test]
fn a_join_with_too_little_disk_or_another_postgresql_is_refused_before_anything_is_touched() {
    let name = "a_join_with_too_little_disk_or_another_postgresql_is_refused_before_anything_is_touched";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut first = Node::new(45);
    let started = first.start(&[]);
    let token = started["join_token"].as_str().unwrap();
    let database =
        |node: &Node| node.data_dir().join("pgdata").exists() || node.data_dir().join("identity.json").exists();

    let other = Node::new(46);
    let bin = programs_of("14.11", other.folder.path());
    let ended = other.refused(&["join", &first.peer(), "--token", token, "--postgres-bin-dir", &bin]);
    ended.fails(3, &["this node has PostgreSQL 14", "Install postgresql-", "--witness"]);
    assert!(!database(&other), "something was begun");

    // the whole node on a small disk, and the database alone
    let small = Node::new(47);
    let (data_dir, elsewhere) = (small.data_dir(), small.folder.path().join("elsewhere"));
    for (folder, more) in [(&data_dir, None), (&elsewhere, Some(elsewhere.join("main").display().to_string()))] {
        let Some(disk) = Disk::mount(folder, "64m") else {
            return skip(name, "no tmpfs can be mounted here");
        };
        let mut words = vec!["join".to_owned(), first.peer(), "--token".to_owned(), token.to_owned()];
        words.extend(more.into_iter().flat_map(|path| ["--postgres-data-dir".to_owned(), path]));
        let ended = small.refused(&words.iter().map(String::as_str).collect::<Vec<_>>());
        ended.fails(3, &["bytes are free", "are needed", "--data-dir"]);
        assert!(!database(&small) && !elsewhere.join("main").exists(), "something was begun");
        drop(disk);
        let _ = fs::remove_dir_all(&data_dir);
    }

    let status = first.json(&["status"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "nobody was admitted: {status}");
    assert_eq!(status["active_ready"], true, "{status}");
}
