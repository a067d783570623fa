//! What goes wrong on a machine that is there, and what every node says of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use hasup::chaos::process;
use hasup::chaos::schedule::Part;
use nix::sys::signal::Signal;
use raft_tests::program::{alone, lacks_postgres, skip};
use serde_json::Value;

use crate::node::{Node, is_whole, pause, until_check};

/// Returns three nodes at 127.0.0.`number` and the next ones, the first of them active.
fn three(number: u8) -> [Node; 3] {
    let [mut one, mut two, mut three] = [0, 1, 2].map(|index| Node::new(number + index));
    let started = one.start(&[]);
    let token = started["join_token"].as_str().unwrap();
    two.join(&one, token);
    three.join(&one, token);
    one.until("a whole cluster", is_whole);
    [one, two, three]
}

/// Sends `signal` to all processes that are these parts of `node`, at once.
fn send(node: &Node, parts: &[Part], signal: Signal) {
    let (all, own) = (process::scan(), node.processes());
    let meant: Vec<i32> = parts.iter().flat_map(|part| process::parts(&all, &own, *part)).collect();
    assert!(meant.len() >= parts.len(), "{meant:?}");
    process::send(meant, signal);
}

/// Whether a node is active, in its own word too.
fn is_served(status: &Value) -> bool {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    nodes.into_iter().any(|node| node["name"] == status["active"] && node["state"] == "active")
}

#[test]
fn a_database_that_does_not_run_is_told_by_every_node_and_a_role_that_is_handed_round_waits_for_a_person() {
    let name = "a_database_that_does_not_run_is_told_by_every_node_and_a_role_that_is_handed_round_waits_for_a_person";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [one, two, three] = three(101);

    // a standby whose PostgreSQL cannot start
    let pgdata = three.data_dir().join("pgdata");
    fs::set_permissions(&pgdata, Permissions::from_mode(0o777)).unwrap();
    send(&three, &[Part::Postgres], Signal::SIGKILL);
    for node in [&one, &two] {
        let told = until_check(node, "the standby that does not stream", |ended| {
            ended.out.contains("n103 (standby) does not stream from the active node")
        });
        assert_eq!(told.code, Some(1), "{told:?}");
        let cost = node.json(&["status"])["cluster"]["failure_cost"].to_string();
        assert!(cost.contains("HA is degraded") && cost.contains("n103"), "{cost}");
    }
    until_check(&three, "its own word", |ended| ended.code == Some(2) && ended.out.contains("postgres_running"));
    three.until("what PostgreSQL ended with", |_| three.log().contains("has invalid permissions"));
    fs::set_permissions(&pgdata, Permissions::from_mode(0o700)).unwrap();
    for node in [&one, &two, &three] {
        until_check(node, "a cluster that misses nothing", |ended| ended.code == Some(0));
    }

    // the role is given up once more than is allowed
    one.json(&["options", "set", "role_changes_per_hour=0"]);
    one.sql("create table kept as select 1 as row");
    send(&one, &[Part::Postgres], Signal::SIGKILL);
    for node in [&one, &two, &three] {
        let told = until_check(node, "a question", |ended| ended.out.contains("hasup promote NODE"));
        assert_eq!(told.code, Some(2), "{told:?}");
    }
    two.until("the question in the history", |_| two.hasup(&["history"]).out.contains("waits for a person"));
    let ended = three.hasup(&["promote", "n102"]);
    assert!(ended.code == Some(0) && ended.out.contains("n102 is active"), "{ended:?}");
    for node in [&one, &two, &three] {
        until_check(node, "a whole cluster, which asks nobody", |ended| ended.code == Some(0));
    }
    assert_eq!(two.sql("select count(*) from kept"), "1");
}

#[test]
fn guard_and_daemon_that_die_at_once_or_while_the_daemon_stands_still_leave_no_second_writer() {
    let name = "guard_and_daemon_that_die_at_once_or_while_the_daemon_stands_still_leave_no_second_writer";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [mut one, mut two, mut three] = three(104);
    one.sql("create table kept (row int)");
    one.sql("insert into kept values (1)");

    send(&one, &[Part::Daemon, Part::Guard], Signal::SIGKILL);
    let status = two.until("another node active", |status| is_served(status) && status["active"] != "n104");
    one.ends();
    one.run();
    let (active, former) = if status["active"] == "n105" { (&mut two, &mut three) } else { (&mut three, &mut two) };
    until_check(&one, "the former active node as a standby", |ended| ended.code == Some(0));
    active.sql("insert into kept values (2)");

    // a daemon that stands still cannot see that its guard has died, and PostgreSQL with that
    send(active, &[Part::Daemon], Signal::SIGSTOP);
    send(active, &[Part::Guard], Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !process::parts(&process::scan(), &active.processes(), Part::Postgres).is_empty() {
        assert!(Instant::now() < deadline, "PostgreSQL outlives its guard");
        pause();
    }
    let before = active.name.clone();
    former.until("another node active", |status| is_served(status) && status["active"] != before.as_str());
    send(active, &[Part::Daemon], Signal::SIGCONT);
    for node in [&one, &*active, &*former] {
        until_check(node, "a whole cluster", |ended| ended.code == Some(0));
        assert_eq!(node.sql("select count(*) from kept"), "2");
    }
}
