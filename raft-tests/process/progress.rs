//! Work that takes long: shown while it goes on, and taken for nothing else.

use std::fs;
use std::time::{Duration, Instant};

use hasup::chaos::process;
use hasup::ha::timing::Timing;
use nix::sys::signal::Signal;
use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, pause, until_check};

/// Returns the startup process of the node's PostgreSQL, once it replays log.
fn replaying(node: &Node) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for pid in node.processes() {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&title).contains("startup recovering 0") {
                return pid;
            }
        }
        assert!(Instant::now() < deadline, "nothing is replayed: {}", node.log());
    }
}

#[test]
fn a_recovery_that_outlasts_every_limit_is_shown_and_taken_for_no_death() {
    let name = "a_recovery_that_outlasts_every_limit_is_shown_and_taken_for_no_death";
    if std::env::var_os("HASUP_TEST_FULL").is_none() {
        return skip(name, "it takes most of a minute: it is run with HASUP_TEST_FULL=1");
    }
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(112);
    let settings = "[postgres]\nsettings = { max_wal_size = \"8GB\", checkpoint_timeout = \"1h\" }\n";
    fs::write(node.folder.path().join("node.toml"), settings).unwrap();
    node.start(&[]);
    node.sql("create table kept as select generate_series(1, 4000000) as row");
    node.sql("insert into kept select row from kept");
    node.kill();
    node.run();
    let startup = replaying(&node);
    process::send([startup], Signal::SIGSTOP);

    let status = node.until("a recovery", |status| status["progress"]["work"] == "replaying");
    let (progress, generation) = (&status["progress"], &status["cluster"]["generation"]);
    let bytes = |name: &str| progress[name].as_u64().unwrap();
    assert!(bytes("done_bytes") < bytes("total_bytes") && bytes("total_bytes") > 100 << 20, "{status}");
    let waits = "PostgreSQL to replay all log it has";
    let limit = Timing::default().write_stall_limit + Duration::from_secs(4);
    let still = node.until("a recovery that outlasts every limit", |status| {
        assert!(status["waiting_on"].to_string().contains(waits), "{status}");
        assert_eq!(&status["cluster"]["generation"], generation, "{status}");
        status["progress"]["still_seconds"].as_u64() >= Some(limit.as_secs())
    });
    let page = node.hasup(&["status"]).out;
    assert!(page.contains("  so far: replayed up to 0/") && page.contains("nothing has moved for"), "{page}");
    let told = node.hasup(&["check"]);
    assert!(told.out.contains("it lives, and lets nobody in before it has recovered: replayed"), "{told:?}");
    assert!(node.processes().contains(&startup), "{still}");

    process::send([startup], Signal::SIGCONT);
    until_check(&node, "a node without trouble", |ended| ended.code == Some(0));
    assert_eq!(node.sql("select count(*) from kept"), "8000000");
    assert_eq!(node.json(&["status"])["progress"], serde_json::Value::Null);
}

#[test]
fn a_copy_tells_its_share_and_when_it_will_be_done() {
    let name = "a_copy_tells_its_share_and_when_it_will_be_done";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let (mut first, second) = (Node::new(113), Node::new(114));
    let started = first.start(&[]);
    first.sql("create table filled as select generate_series(1, 1000000) as row");
    fs::write(second.folder.path().join("node.toml"), "[postgres]\ncopy_rate = \"8MB\"\n").unwrap();
    let mut joining = second.spawn(&["join", &first.peer(), "--token", started["join_token"].as_str().unwrap()]);

    let status = second.until("a share and a rest", |status| {
        let progress = &status["progress"];
        progress["work"] == "copying" && progress["seconds_left"].is_u64() && progress["percent"].as_u64() < Some(100)
    });
    assert!(status["progress"]["total_bytes"].as_u64() > Some(30 << 20), "{status}");
    assert!(status["waiting_on"].to_string().contains("the database to be copied from n113"), "{status}");
    let page = second.hasup(&["status"]).out;
    assert!(page.contains("  so far: copied "), "{page}");
    second.until("a standby", |status| status["state"] == "standby" && status["progress"].is_null());
    let told = second.log();
    let shares: Vec<_> = told.lines().filter(|line| line.starts_with("  copied ")).collect();
    assert!(shares.len() > 1 && shares.iter().any(|line| line.contains(" left")), "{told}");
    process::send(i32::try_from(joining.id()), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(60);
    while joining.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not stop: {}", second.log());
        pause();
    }
}
