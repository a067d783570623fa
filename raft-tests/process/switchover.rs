//! A switchover: what is done while clients are still served, so that what follows takes a fraction of a second.

use std::fs;

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::Node;

/// Returns what PostgreSQL on `node` has logged.
fn log_of_postgres(node: &Node) -> String {
    fs::read_to_string(node.data_dir().join("postgres/postgres.log")).unwrap_or_default()
}

#[test]
fn active_node_and_standby_make_their_checkpoints_before_a_switchover_stops_anything() {
    let name = "active_node_and_standby_make_their_checkpoints_before_a_switchover_stops_anything";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let [mut one, mut two] = [Node::new(91), Node::new(92)];
    let started = one.start(&[]);
    two.join(&one, started["join_token"].as_str().unwrap());
    one.until("the standby to count for commits", |status| {
        status["postgres"]["synchronous_standby_names"].as_str().is_some_and(|names| names.contains("n2_"))
    });
    let before = [&one, &two].map(|node| log_of_postgres(node).len());
    one.json(&["switchover", "--to", "n92"]);
    two.until("the other node active", |status| status["active"] == "n92" && status["active_ready"] == true);

    let [first, second] =
        [(&one, before[0]), (&two, before[1])].map(|(node, from)| log_of_postgres(node)[from..].to_owned());
    let (served, _) = first.split_once("received fast shutdown request").unwrap_or_else(|| panic!("{first}"));
    // what is in memory, and what has come since, with the segment that was filled up
    assert!(served.matches("checkpoint starting: immediate force wait").count() >= 2, "{first}");
    let (served, _) = second.split_once("received promote request").unwrap_or_else(|| panic!("{second}"));
    assert!(served.contains("restartpoint starting: immediate"), "{second}");

    // the active one leaves: its role is handed over in order, and the other node goes on alone
    two.sql("create table kept as select 1 as row");
    one.until("the former active node as a standby", |status| status["postgres"]["is_streaming"] == true);
    two.kill_daemon();
    two.hasup(&["leave"]).fails(3, &["does not run on this machine", "nothing was done"]);
    two.run();
    two.until("the active node's own word", |status| status["me"] == "n92" && status["active_ready"] == true);
    let ended = two.hasup(&["leave"]);
    assert!(ended.code == Some(0) && ended.out.contains("n92 is no member any more, and has stopped"), "{ended:?}");
    two.ends();
    let status = one.until("one node", |status| status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1));
    assert_eq!(status["active"], "n91", "{status}");
    one.sql("insert into kept values (2)");
    let history = one.json(&["history"]);
    let kinds: Vec<&str> = history.as_array().unwrap().iter().filter_map(|event| event["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "switched_over").count(), 2, "{kinds:?}");
    assert!(!kinds.contains(&"reassigned"), "{kinds:?}");
}
