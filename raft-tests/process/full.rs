//! Full disks: what every node says of them, what becomes of the role, and that room alone mends all.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, is_whole, pause, until_check};

/// What may pass until a full disk is seen and the role has moved, on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A node's data directory on a file system of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(node: &Node) -> Option<Self> {
        let folder = node.data_dir();
        fs::create_dir(&folder).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=800m,mode=0700", "tmpfs"]).arg(&folder).status();
        mounted.is_ok_and(|ended| ended.success()).then_some(Self(folder))
    }

    fn fill(&self) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Adds a key to the store: what takes no room on a full disk is not noticed.
fn put(node: &Node) {
    let _ = node.hasup(&["kv", "put", "filler", &"x".repeat(60_000)]);
}

/// Returns how many warnings and errors `node` has logged.
fn complaints(node: &Node) -> usize {
    node.log().lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

#[test]
fn the_log_of_a_running_postgresql_is_rotated_and_goes_on() {
    let name = "the_log_of_a_running_postgresql_is_rotated_and_goes_on";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(74);
    node.start(&[]);
    let log = node.data_dir().join("postgres/postgres.log");
    let length = || fs::metadata(&log).unwrap().len();
    let mut more = File::options().append(true).open(&log).unwrap();
    more.write_all(&vec![b'\n'; 65 << 20]).unwrap();
    let deadline = Instant::now() + LIMIT;
    while length() > 1 << 20 {
        assert!(Instant::now() < deadline, "it is not rotated");
        pause();
    }
    assert!(fs::metadata(log.with_extension("log.1")).unwrap().len() > 65 << 20);
    node.sql("do $$ begin raise log 'told after the rotation'; end $$");
    let told = fs::read(&log).unwrap();
    assert!(String::from_utf8_lossy(&told).contains("told after the rotation") && !told.contains(&0), "a hole is left");
}

#[test]
fn a_full_disk_is_told_everywhere_moves_the_role_and_is_mended_by_room() {
    let name = "a_full_disk_is_told_everywhere_moves_the_role_and_is_mended_by_room";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [mut one, mut two, mut three] = [Node::new(71), Node::new(72), Node::new(73)];
    let (Some(first), Some(second)) = (Disk::mount(&one), Disk::mount(&two)) else {
        return skip(name, "no tmpfs can be mounted here");
    };
    let started = one.start(&[]);
    let token = started["join_token"].as_str().unwrap();
    two.join(&one, token);
    three.join(&one, token);
    one.until("three voters", is_whole);

    // a standby
    second.fill();
    let told = "n72's Raft has stopped: disk full";
    for node in [&one, &three, &two] {
        let ended = until_check(node, told, |ended| {
            put(&one);
            ended.out.contains(told)
        });
        assert_eq!((ended.code, ended.out.starts_with("HASUP CRITICAL")), (Some(2), true), "{ended:?}");
    }
    let (before, began) = (complaints(&two), Instant::now());
    while began.elapsed() < Duration::from_secs(10) {
        pause();
    }
    assert!(complaints(&two) < before + 10, "{}", two.log());
    assert_eq!(one.json(&["status"])["active_ready"], true);
    second.empty();
    two.ends();
    two.run();
    one.until("the standby whole again", is_whole);

    // the active node
    first.fill();
    let moved = three.until("another active node", |status| {
        let active = status["active"].as_str().unwrap_or("n71");
        let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        active != "n71" && nodes.iter().any(|node| node["name"] == active && node["state"] == "active")
    });
    let told = "n71's Raft has stopped: disk full";
    until_check(&three, told, |ended| {
        put(&three);
        ended.code == Some(2) && ended.out.contains(told)
    });
    println!("active: {}", moved["active"]);
    first.empty();
    one.ends();
    one.run();
    three.until("the former active node whole again", is_whole);
    for node in [&one, &two, &three] {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
