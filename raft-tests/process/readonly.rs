//! Disks that take no writes any more, as ext4 does after an error: what is told where, what becomes of the role, and that nothing
//! is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};
use serde_json::Value;

use crate::node::{Node, TOKEN, is_whole, pause, until_check};

/// What may pass until it is seen and the role has moved, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What a node's file system may hold; a file with holes.
const SIZE: u64 = 1200 << 20;

/// A node's data directory on a file system of its own; unmounted when dropped.
struct Disk {
    image: PathBuf,
    folder: PathBuf,
}

impl Disk {
    fn mount(node: &Node) -> Option<Self> {
        let disk = Self { image: node.folder.path().join("disk"), folder: node.data_dir() };
        fs::create_dir(&disk.folder).unwrap();
        fs::File::create(&disk.image).unwrap().set_len(SIZE).unwrap();
        let made = run("mkfs.ext4", &[Path::new("-qF"), &disk.image]);
        (made && disk.mount_again()).then_some(disk)
    }

    fn mount_again(&self) -> bool {
        run("mount", &[Path::new("-o"), Path::new("loop,errors=remount-ro"), &self.image, &self.folder])
    }

    /// As the kernel does by itself when the disk fails.
    fn fail(&self) {
        assert!(run("mount", &[Path::new("-o"), Path::new("remount,abort"), &self.folder]));
    }

    /// As an operator does by `mount -o remount,ro` or `rw`, while nothing runs.
    fn remount(&self, option: &str) {
        assert!(run("mount", &[Path::new("-o"), &PathBuf::from(format!("remount,{option}")), &self.folder]));
    }

    /// As an operator does once nothing runs on it.
    fn mend(&self) {
        assert!(run("umount", &[&self.folder]) && self.mount_again());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

fn run(program: &str, words: &[&Path]) -> bool {
    Command::new(program).args(words).status().is_ok_and(|ended| ended.success())
}

#[test]
fn nothing_begins_on_a_read_only_disk_and_a_node_on_one_says_so() {
    let name = "nothing_begins_on_a_read_only_disk_and_a_node_on_one_says_so";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(86);
    let Some(disk) = Disk::mount(&node) else {
        return skip(name, "no ext4 can be made and loop-mounted here");
    };
    let words = ["read-only", "Nothing was begun", "remount,rw"];
    disk.remount("ro");
    node.refused(&["start"]).fails(3, &words);
    node.refused(&["join", "127.0.0.86:9", "--token", TOKEN]).fails(3, &words);
    disk.remount("rw");
    node.start(&[]);
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    disk.remount("ro");
    node.hasup(&["run", "--foreground"]).fails(3, &words);
    disk.remount("rw");
    node.run();
    node.until("the node active again", |status| status["active_ready"] == true);
}

#[test]
fn a_read_only_disk_is_told_everywhere_moves_the_role_and_loses_nothing() {
    let name = "a_read_only_disk_is_told_everywhere_moves_the_role_and_loses_nothing";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [mut one, mut two, mut three] = [Node::new(87), Node::new(88), Node::new(89)];
    let (Some(first), Some(second)) = (Disk::mount(&one), Disk::mount(&two)) else {
        return skip(name, "no ext4 can be made and loop-mounted here");
    };
    let started = one.start(&[]);
    let token = started["join_token"].as_str().unwrap();
    two.join(&one, token);
    three.join(&one, token);
    one.until("three voters", is_whole);
    one.sql("create table kept as select n from generate_series(1, 1000) n");

    // a standby: told by all, while the others go on
    second.fail();
    let told = "n88's disk takes no writes";
    for node in [&one, &three, &two] {
        let ended = until_check(node, told, |ended| ended.out.contains(told));
        assert_eq!((ended.code, ended.out.starts_with("HASUP CRITICAL")), (Some(2), true), "{ended:?}");
    }
    one.sql("insert into kept values (1001)");
    assert_eq!(one.json(&["status"])["active"], "n87");
    two.kill();
    // what is kept for a dead member is told as soon as it is anything
    one.sql("insert into kept select n from generate_series(2001, 3000) n");
    for node in [&one, &three] {
        let status = node.until("the log that is kept for it", |status| {
            status["nodes"][1]["is_reachable"] == false && status["nodes"][1]["kept_log_bytes"].as_u64() > Some(0)
        });
        assert!(status["cluster"]["warnings"].to_string().contains("B of log for it"), "{status}");
    }
    one.sql("delete from kept where n > 2000");
    second.mend();
    two.run();
    one.until("the standby whole again", is_whole);

    // the active node: another one takes over with every row
    first.fail();
    let began = Instant::now();
    let moved = three.until("another active node", |status| {
        let active = status["active"].as_str().unwrap_or("n87");
        active != "n87"
            && status["nodes"].as_array().unwrap().iter().any(|it| it["name"] == active && it["state"] == "active")
    });
    println!("active: {} after {:?}", moved["active"], began.elapsed());
    let told = "n87's disk takes no writes";
    for node in [&two, &three, &one] {
        until_check(node, told, |ended| ended.code == Some(2) && ended.out.contains(told));
    }
    let active = if moved["active"] == "n88" { &two } else { &three };
    let deadline = Instant::now() + LIMIT;
    while active.json(&["status"])["active_ready"] != true {
        assert!(Instant::now() < deadline, "it takes no writes");
        pause();
    }
    active.sql("insert into kept values (1002)");
    assert_eq!(active.sql("select count(*) from kept"), "1002");
    // the history calls members by their names
    let history = active.json(&["history"]);
    let is_move = |event: &&Value| event["kind"] == "assigned" || event["kind"] == "reassigned";
    let moves: Vec<&Value> = history.as_array().unwrap().iter().filter(is_move).collect();
    let (step, facts) =
        (moves.last().unwrap()["why"]["step"].to_string(), moves.last().unwrap()["why"]["facts"].to_string());
    assert!(step.contains(&format!("assigns {} under", active.name)), "{step}");
    assert!(facts.contains("n87"), "{facts}");
    assert!(["node 1", "node 2", "node 3"].iter().all(|number| !facts.contains(number)), "{facts}");
    one.kill();
    first.mend();
    one.run();
    three.until("the former active node whole again", is_whole);
    one.until("the former active node to stream", |status| status["postgres"]["is_streaming"] == true);
    let deadline = Instant::now() + LIMIT;
    while one.sql("select count(*) from kept") != "1002" {
        assert!(Instant::now() < deadline, "the former active node has not every row");
        pause();
    }
    let retold = one.log().lines().filter(|line| line.contains("step not done")).count();
    assert!(retold < 50, "{retold} times told: {}", one.log());
    for node in [&one, &two, &three] {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
