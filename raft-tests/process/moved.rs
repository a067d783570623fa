//! Machines whose address changes while they are members.

use raft_tests::program::{alone, lacks_postgres, over_ipv6, skip};

use crate::node::{Node, is_whole, until_check};

/// Stops `node`, and runs it at 127.0.0.`number`.
fn moves(node: &mut Node, number: u8) {
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    node.host = format!("127.0.0.{number}");
    node.run_with(&["--host-ip", &node.host.clone()]);
}

#[test]
fn a_member_that_comes_up_at_another_address_is_found_there_by_all() {
    let name = "a_member_that_comes_up_at_another_address_is_found_there_by_all";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    if over_ipv6() {
        return skip(name, "all nodes are at ::1");
    }
    let _alone = alone();
    let mut nodes = [61, 62, 63].map(Node::new);
    let started = nodes[0].start(&[]);
    let token = started["join_token"].as_str().unwrap();
    let [first, second, third] = &mut nodes;
    second.join(first, token);
    third.join(first, token);
    first.until("three nodes", is_whole);

    // a standby, then the active node, then the first one back to where it was
    moves(third, 66);
    second.until("the standby is whole at its new address", |status| {
        is_whole(status) && status["nodes"][2]["address"] == third.peer().as_str()
    });
    moves(first, 67);
    let status = second.until("the node that was active is whole at its new address", |status| {
        is_whole(status) && status["nodes"][0]["address"] == first.peer().as_str()
    });
    assert_ne!(status["active"], "n61", "{status}");
    moves(third, 63);
    for node in [&*first, second, third] {
        node.until("all know where each is", |status| {
            let address = |index: usize| status["nodes"][index]["address"].as_str().unwrap_or_default().to_owned();
            is_whole(status) && (address(0), address(2)) == (first.peer(), third.peer())
        });
    }
    let moves = first.json(&["history"]).to_string().matches("member_moved").count();
    assert_eq!(moves, 3, "each is told once");

    // who checks addresses is shown a certificate with the new one
    let pem = std::fs::read_to_string(first.data_dir().join("tls/node.crt")).unwrap();
    assert!(
        hasup::tls::facts::certificate_names(&pem, &[first.peer()]).unwrap(),
        "the certificate names {}",
        first.host
    );
    let dsn = second.json(&["dsn"]);
    assert!(dsn["uri"].as_str().is_some_and(|uri| uri.contains(&format!("{}:", first.host))), "{dsn}");

    // a machine that was copied with its data directory says that it has moved, while the original goes on where it was
    assert_eq!(third.stop(), Some(0), "{}", third.log());
    let mut copy = third.copied(68);
    // who leads from here on is known
    first.until("the other standby leads", |status| {
        (0..2).any(|node| {
            (&status["nodes"][node]["raft"], &status["nodes"][node]["state"]) == (&"leader".into(), &"standby".into())
        })
    });
    third.run();
    // asked itself: the others count what it said before it stopped for as long as its silence may mean nothing
    third.until("the original is back", is_whole);

    // its disk is put back to what the copy holds, while who leads has heard it confirm more: its log is filled up again
    assert_eq!(first.hasup(&["kv", "put", "later", "1"]).code, Some(0));
    // two of three confirm a change: what this one never confirmed it cannot lack
    until_check(third, "it has the change", |_| third.hasup(&["kv", "get", "later", "--stale"]).code == Some(0));
    assert_eq!(third.stop(), Some(0), "{}", third.log());
    third.put_back(&copy);
    third.run();
    third.until("it is back", is_whole);
    until_check(third, "it has what it lacked", |_| third.hasup(&["kv", "get", "later", "--stale"]).code == Some(0));
    let put_back = "the disk of n63 was put back to an earlier state";
    until_check(first, "the history has it", |_| first.hasup(&["history"]).out.contains(put_back));
    copy.run_with(&["--host-ip", &copy.host.clone()]);
    let told = "Two machines run as n63";
    let status = copy.until("the copy knows that it is one", |status| status["state"] == "failed");
    assert!(status["not_a_member"].as_str().is_some_and(|said| said.contains(told)), "{status}");
    // it may be told before it has started PostgreSQL, which stays stopped then
    if copy.data_dir().join(format!("sock/.s.PGSQL.{}", copy.ports[2])).exists() {
        let receivers = copy.sql("select count(*) from pg_stat_wal_receiver");
        assert_eq!(receivers, "0", "it would confirm commits as the original");
    }
    copy.hasup(&["leave"]).fails(3, &[told, "nothing was done"]);
    for node in [&*first, second] {
        let status = node.until("the cluster is told, and the original stays in its place", |status| {
            is_whole(status) && status["cluster"]["warnings"].to_string().contains(told)
        });
        assert_eq!(status["nodes"][2]["address"], third.peer().as_str(), "{status}");
    }
    assert_eq!(first.json(&["history"]).to_string().matches("node_copied").count(), 1, "once, whoever is asked");
    let destroyed = copy.hasup(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, Some(0), "{destroyed:?}");
    copy.ends();
    first.until("the original goes on", is_whole);

    // a node that has heard nobody since its start says so, and has no business removing the others
    for node in [first, second] {
        assert_eq!(node.stop(), Some(0), "{}", node.log());
    }
    third.until("who is heard no more is unknown, whatever its last word was", |status| {
        let nodes = [&status["nodes"][0], &status["nodes"][1]];
        nodes.iter().all(|node| node["state"] == "unknown" && node["heard_ms_ago"].is_u64())
    });
    third.kill_daemon();
    third.run();
    let alone = third.until("a minority of one", |status| {
        status["state"] == "minority" && status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3)
    });
    assert_eq!(
        (&alone["nodes"][0]["state"], &alone["nodes"][1]["state"]),
        (&"unknown".into(), &"unknown".into()),
        "{alone}"
    );
    let warnings = alone["cluster"]["warnings"].to_string();
    assert!(warnings.contains("MINORITY") && warnings.contains("n61 is not heard"), "{warnings}");
    assert!(!warnings.contains("nodes remove"), "{warnings}");
}
