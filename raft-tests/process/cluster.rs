//! A cluster that grows to three and shrinks again, by command.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};
use serde_json::Value;

use crate::node::{Node, contents, pause, run};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn token(member: &Node, ttl: &str) -> (String, String) {
    let told = member.json(&["token", "create", "--ttl", ttl]);
    (text(&told["id"]).to_owned(), text(&told["join_token"]).to_owned())
}

/// Tries to join as a witness with `token`, which must be refused, and checks that nothing of it stays in force.
#[track_caller]
fn refused(node: &Node, member: &Node, token: &str, words: &[&str]) {
    let file = node.folder.path().join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let ended = node.refused(&["join", &member.peer(), "--token-file", &file.display().to_string(), "--witness"]);
    ended.fails(3, words);
    assert!(!node.data_dir().join("pgdata").exists(), "a database was begun");
    let settings = node.hasup(&["config", "check"]).out;
    let witness = settings.lines().find(|line| line.starts_with("witness")).unwrap();
    assert!(witness.contains("false"), "the flags of a refused try are in force: {settings}");
}

#[test]
fn one_node_serves_its_operator() {
    let name = "one_node_serves_its_operator";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut first = Node::new(51);
    let started = first.start(&["--options", "check_ttl_multiplier=0.5"]);
    assert!(text(&started["join_token"]).starts_with("hasup1-"), "{started}");
    assert!(text(&started["dsn"]["uri"]).contains(&first.ports[2].to_string()), "{started}");

    // status and list
    let status = first.json(&["status"]);
    assert_eq!((text(&status["active"]), text(&status["raft_leader"])), ("n51", "n51"), "{status}");
    assert_eq!(status["cluster"]["majority"], true);
    assert_eq!(status["cluster"]["lease_ms"], 1000);
    for key in ["id", "name", "generation", "durability", "warnings"] {
        assert!(!status["cluster"][key].is_null(), "{key}: {status}");
    }
    let nodes = first.json(&["nodes", "list"]);
    for (key, expected) in [("name", "n51"), ("state", "active"), ("raft", "leader")] {
        assert_eq!(nodes[0][key], expected, "{nodes}");
    }
    let list = first.hasup(&["nodes", "list"]);
    let header: Vec<&str> = list.out.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "ADDRESS", "STATE", "RAFT", "PRIORITY", "LAG", "VERSION"]);
    assert!(first.hasup(&["status"]).out.contains("n51 is active"));

    keys(&first);
    hostile_bytes(&first);
    options_and_goals(&first);
    second_begin(&first);
    joins_refused(&first, text(&started["join_token"]));

    // a clean end, which is told as that, and the same node again, as if an earlier release had made its database
    first.sql("drop role hasup_fetch");
    let said = first.stop_watched();
    assert!(said.iter().all(|told| !told.contains("Raft has stopped")), "{said:?}");
    assert!(said.last().is_none_or(|told| told.contains("hasup is stopping on n51")), "{said:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !first.processes().is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", first.processes());
        pause();
    }
    first.run();
    first.until("the same node active again", |status| {
        status["active"] == "n51" && status["nodes"][0]["state"] == "active"
    });
    assert_eq!(first.hasup(&["kv", "get", "kept"]).code, Some(0), "its keys are kept");
    let roles = "select string_agg(rolname, ',' order by rolname) from pg_roles where rolname like 'hasup%'";
    first.until("its roles are all there", |_| first.sql(roles) == "hasup_fetch,hasup_replication,hasup_rewind");
    let log = first.log();
    assert!(!log.contains("panicked"), "{log}");
}

fn keys(node: &Node) {
    assert_eq!(node.hasup(&["kv", "get", "a"]).code, Some(1), "there is none");
    node.json(&["kv", "put", "a", "one"]);
    let entry = |key: &str| node.json(&["kv", "get", key]);
    let index = entry("a")["modify_index"].to_string();
    assert_eq!(node.hasup(&["kv", "get", "a"]).out.trim_end(), "one");
    node.hasup(&["kv", "put", "a", "two", "--cas", "1"]).fails(3, &[&index]);
    node.hasup(&["kv", "put", "a", "two", "--cas", "0"]).fails(3, &[]);
    node.json(&["kv", "put", "a", "two", "--cas", &index]);
    assert_eq!(node.hasup(&["kv", "get", "a"]).out.trim_end(), "two");
    node.hasup(&["kv", "delete", "a", "--cas", &index]).fails(3, &[]);
    node.json(&["kv", "put", "b/1", "x"]);
    node.json(&["kv", "put", "b/2", "y"]);
    node.json(&["kv", "put", "kept", "z"]);
    let listed = node.json(&["kv", "list", "b/"]);
    assert_eq!(listed["entries"].as_array().unwrap().len(), 2, "{listed}");
    let file = fs::File::open("/proc/version").unwrap();
    let place: Vec<String> =
        ["--config", "node.toml", "--data-dir", "d", "--run-dir", "r"]
            .map(|word| {
                if word.starts_with('-') {
                    word.to_owned()
                } else {
                    node.folder.path().join(word).display().to_string()
                }
            })
            .to_vec();
    let put = run(["kv", "put", "piped", "-"].map(str::to_owned).into_iter().chain(place), file.into());
    assert_eq!(put.code, Some(0), "{put:?}");
    assert!(node.hasup(&["kv", "get", "piped"]).out.starts_with("Linux"), "a value is read from standard input");
    node.json(&["kv", "delete", "b/", "--recurse"]);
    assert_eq!(node.json(&["kv", "list", "b/"])["entries"].as_array().unwrap().len(), 0);
    node.json(&["kv", "delete", "a"]);
    assert_eq!(node.hasup(&["kv", "get", "a"]).code, Some(1));
    let refused = node.hasup(&["kv", "put", "hasup/next_master", "n9"]);
    assert_ne!(refused.code, Some(0), "hasup's own keys are not for others: {refused:?}");
}

/// Throws what no peer would say at all three ports; the node goes on as if nothing were.
fn hostile_bytes(node: &Node) {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    // what the first bytes promise is not kept: a record of TLS, a request, a length, nothing
    let beginnings: [&[u8]; 6] = [
        &[],
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC, 0x03, 0x03],
        b"GET /v1/status HTTP/1.1\r\nHost: ",
        b"POST /v1/kv HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
        &[0xFF; 16],
        &[1, 1, 0, 0, 0, 0, 0, 0, 0],
    ];
    let [peer, api, _] = node.ports;
    let udp = UdpSocket::bind((node.host.as_str(), 0)).unwrap();
    for round in 0..60 {
        let length = usize::try_from(random() % 3000).unwrap();
        let mut bytes = beginnings[round % beginnings.len()].to_vec();
        bytes.extend((0..length).map(|_| random().to_le_bytes()[0]));
        for port in [peer, api] {
            let mut stream = TcpStream::connect((node.host.as_str(), port)).unwrap();
            // it may have hung up by then, which is right
            let _ = stream.write_all(&bytes);
            if round % 2 == 0 {
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        let _ = udp.send_to(&bytes[..bytes.len().min(1400)], (node.host.as_str(), peer));
    }
    assert_eq!(node.json(&["status"])["active"], node.name.as_str());
    node.json(&["kv", "put", "after", "it"]);
    node.json(&["kv", "delete", "after"]);
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

fn options_and_goals(node: &Node) {
    let options = node.json(&["options", "list"]);
    assert_eq!((text(&options["check_ttl_multiplier"]), text(&options["durability"])), ("0.5", "two_nodes"));
    node.json(&["options", "set", "raft_multiplier=2", "check_fail_fast=false"]);
    let options = node.json(&["options", "list"]);
    assert_eq!((text(&options["consul_raft_multiplier"]), text(&options["check_fail_fast"])), ("2", "false"));
    node.hasup(&["options", "set", "raft_multiplier=3", "durability=maybe"]).fails(2, &["durability", "two_nodes"]);
    assert_eq!(node.json(&["options", "list"]), options, "all or none");
    node.json(&["options", "set", "raft_multiplier=1", "check_ttl_multiplier=1"]);
    // orders that are given at the same moment are all carried out
    std::thread::scope(|scope| {
        for number in 1..=6 {
            let priority = format!("priority={number}");
            scope.spawn(move || node.json(&["nodes", "set", "n51", &priority]));
            let option = if number % 2 == 0 { "role_changes_per_hour=9" } else { "raft_multiplier=1" };
            scope.spawn(move || node.json(&["options", "set", option]));
        }
    });
    assert_eq!(text(&node.json(&["options", "list"])["role_changes_per_hour"]), "9", "none was lost");
    node.json(&["options", "set", "role_changes_per_hour=6"]);

    node.json(&["nodes", "set", "n51", "priority=7", "nofailover=true"]);
    node.until("the node's new priority", |status| {
        let own = &status["nodes"][0];
        (own["priority"].as_u64(), own["nofailover"].as_bool()) == (Some(7), Some(true))
    });
    node.json(&["nodes", "set", "n51", "nofailover=false"]);
    node.hasup(&["nodes", "set", "n9", "priority=1"]).fails(1, &["There is no node n9", "n51"]);
    node.hasup(&["nodes", "remove", "n51"]).fails(3, &["is active and was not removed", "hasup switchover"]);
    node.hasup(&["nodes", "remove", "n9"]).fails(1, &["There is no node n9"]);
    node.hasup(&["switchover"]).fails(3, &["No standby", "Nothing was done"]);
    node.hasup(&["switchover", "--to", "n9"]).fails(1, &["There is no node n9"]);
    assert_eq!(node.hasup(&["switchover", "--to", "n51"]).code, Some(0), "it is active already");
    let history = node.json(&["history"]);
    assert!(!history.as_array().unwrap().is_empty(), "the cluster's beginning is told");
    let history = history.to_string();
    for told in
        ["consul_raft_multiplier=2, before it was 1", "n51 has priority 7 and nofailover true, before it had priority"]
    {
        assert!(history.contains(told), "no `{told}` in {history}");
    }
}

fn second_begin(first: &Node) {
    let before = contents(&first.data_dir().join("tls"));
    let told = ["n51 runs here already, as active in a cluster of its own", "`hasup status`", "hasup destroy"];
    first.refused(&["start"]).fails(3, &told);
    first.refused(&["join", &first.peer(), "--token", "x"]).fails(3, &told);
    assert_eq!(contents(&first.data_dir().join("tls")), before);
}

fn joins_refused(first: &Node, good: &str) {
    let mut other = Node::new(52);
    // the last character of the secret changed; the fingerprint stays
    let parts: Vec<&str> = good.split('-').collect();
    let mut secret = parts[2].to_owned();
    let last = if secret.ends_with('a') { 'b' } else { 'a' };
    secret.pop();
    secret.push(last);
    let wrong = [parts[0], parts[1], &secret, parts[3]].join("-");
    refused(&other, first, &wrong, &["not one of this cluster's", "hasup token create"]);

    let (id, revoked) = token(first, "1h");
    assert!(first.hasup(&["token", "list"]).out.contains(&id));
    first.hasup(&["token", "revoke", "0badc0de"]).fails(1, &["no join token 0badc0de", "Nothing was revoked", &id]);
    first.json(&["token", "revoke", &id]);
    assert!(!first.hasup(&["token", "list"]).out.contains(&id));
    refused(&other, first, &revoked, &["not one of this cluster's", "revoked"]);

    let (id, expired) = token(first, "1s");
    let listed = first.json(&["token", "list"]);
    let row = listed.as_array().unwrap().iter().find(|row| row["id"] == id.as_str()).cloned().unwrap();
    let ends = row["expires_at"].as_u64().unwrap();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    while now() < ends {
        pause();
    }
    refused(&other, first, &expired, &["expired", "hasup token create"]);

    let ended = other.refused(&["join", &first.peer(), "--token", good, "--options", "durability=one_node"]);
    ended.fails(3, &["durability is two_nodes in the cluster", "hasup options set durability=one_node"]);

    other.name = "n51".to_owned();
    refused(&other, first, good, &["already called `n51`", "--node-name"]);
    other.name = "n52".to_owned();
    // an address of nobody here: members cannot dial back
    let host = std::mem::replace(&mut other.host, first.host.clone());
    let ports = std::mem::replace(&mut other.ports, first.ports);
    let ended = other.refused(&["join", &first.peer(), "--token", good]);
    ended.fails(3, &[&first.ports[1].to_string(), "ss -ltnp"]);
    assert!(!other.data_dir().join("pgdata").exists());
    (other.host, other.ports) = (host, ports);

    let status = first.json(&["status"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "nobody was admitted: {status}");
}

/// A superuser makes commits wait for nobody, past hasup: it is undone, and said.
fn names_changed_by_hand(active: &Node) {
    let shown = |status: &Value| status["postgres"]["synchronous_standby_names"].as_str().map(str::to_owned);
    let names = shown(&active.json(&["status"])).unwrap();
    assert!(names.starts_with("ANY 1 ("), "{names}");
    for sql in ["alter system set synchronous_standby_names = ''", "select pg_reload_conf()"] {
        active.sql(sql);
    }
    active.until("the change was seen", |_| active.log().contains("were changed past hasup"));
    // the server itself is asked: what the node has published may be older
    active.until("the names are back", |_| active.sql("show synchronous_standby_names") == names);
    // all were cut off for it
    let streaming = |status: &Value| status["postgres"]["standbys"].as_array().map_or(0, Vec::len);
    active.until("both standbys stream again", |status| streaming(status) == 2);
}

/// A superuser makes a standby follow somebody else, past hasup: it is undone, and said.
fn source_changed_by_hand(standby: &Node) {
    let was = standby.sql("show primary_conninfo");
    for sql in ["alter system set primary_conninfo = 'host=192.0.2.1'", "select pg_reload_conf()"] {
        standby.sql(sql);
    }
    standby.until("the change was seen", |_| standby.log().contains("primary_conninfo was changed past hasup"));
    standby.until("the source is back", |_| standby.sql("show primary_conninfo") == was);
    standby.until("it streams again", |_| standby.sql("select status from pg_stat_wal_receiver") == "streaming");
    standby.until("it is well", |_| standby.hasup(&["check"]).code == Some(0));
    // as after a kill between the note of whom it follows and the writing of it
    let file = standby.data_dir().join("postgres/dynamic.conf");
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("primary_conninfo"));
    fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    standby.sql("select pg_reload_conf()");
    standby.until("it is told again", |_| standby.log().contains("it is told again"));
    standby.until("it streams again", |_| standby.sql("select status from pg_stat_wal_receiver") == "streaming");
    // under the newest generation, which a change of the voters has made meanwhile; and by the file that renewals replace
    let is = standby.sql("show primary_conninfo");
    assert_eq!(is.split_once(" sslkey").map(|it| it.0), was.split_once(" sslkey").map(|it| it.0), "{is}");
    let own = standby.data_dir().join("tls/node.crt");
    assert!(is.contains(own.to_str().unwrap()), "a renewed certificate must be the one in use: {is}");
}

/// Tells whether the log says that this node's database was copied from node `name`.
fn copied_from(node: &Node, name: &str) -> bool {
    let from = format!("copying the database from=\"{name}\"");
    node.log().lines().any(|line| line.ends_with(&from))
}

/// Waits until the node's PostgreSQL has exactly these replication slots.
#[track_caller]
fn keeps_log(node: &Node, slots: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let found = || node.sql("select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots");
    while found() != slots {
        assert!(Instant::now() < deadline, "{} has the slots `{}`, not `{slots}`", node.name, found());
        pause();
    }
}

#[test]
fn a_cluster_grows_to_three_and_shrinks_by_command() {
    let name = "a_cluster_grows_to_three_and_shrinks_by_command";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let (mut first, mut second, mut third) = (Node::new(61), Node::new(62), Node::new(63));
    let started = first.start(&[]);
    let ca = first.data_dir().join("tls/ca.crt");
    let shown = Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(ca).output();
    let shown = String::from_utf8_lossy(&shown.unwrap().stdout).into_owned();
    assert!(shown.trim_end().ends_with(text(&started["ca_fingerprint"])), "{shown}: {started}");
    // beside it, another node is started as first of a cluster of its own: it never becomes a member of this one
    let mut stranger = Node::new(64);
    let strange = stranger.start(&[]);
    assert_ne!(stranger.json(&["status"])["cluster"]["id"], first.json(&["status"])["cluster"]["id"]);
    let ended = stranger.refused(&["join", &first.peer(), "--token", text(&started["join_token"])]);
    ended.fails(3, &["n64 runs here already"]);
    let ended = second.refused(&["join", &first.peer(), "--token", text(&strange["join_token"])]);
    assert!(matches!(ended.code, Some(1 | 3)), "another cluster's token: {ended:?}");
    let _ = fs::remove_dir_all(second.data_dir());
    stranger.stop();

    let joined = second.join(&first, text(&started["join_token"]));
    assert_eq!(joined["state"], "standby", "{joined}");
    let joined = third.join(&second, text(&started["join_token"]));
    assert_eq!(joined["state"], "standby", "{joined}");
    assert!(copied_from(&third, "n62"), "a standby is copied, to spare the active node: {}", third.log());
    assert!(third.log().contains("this node held no database yet"), "history says why it was copied: {}", third.log());
    let whole = |status: &Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let standbys = nodes.iter().filter(|node| node["state"] == "standby").count();
        let votes = nodes.iter().filter(|node| matches!(node["raft"].as_str(), Some("leader" | "follower"))).count();
        nodes.len() == 3 && standbys == 2 && votes == 3
    };
    for node in [&first, &second, &third] {
        node.until("a whole cluster", whole);
    }
    assert_eq!(first.hasup(&["check"]).code, Some(0), "{:?}", first.hasup(&["check"]));
    names_changed_by_hand(&first);
    source_changed_by_hand(&second);
    // what one node was told, every node knows
    second.json(&["kv", "put", "x", "1"]);
    assert_eq!(third.hasup(&["kv", "get", "x"]).out.trim_end(), "1");
    let next = third.hasup(&["kv", "get", "hasup/next_master"]);
    assert_eq!(next.out.trim_end(), "n61", "{next:?}");

    second.json(&["switchover", "--to", "n62"]);
    // at once the other way and back: a standby that is only coming back from the last one is waited for
    for to in ["n61", "n62"] {
        third.json(&["switchover", "--to", to]);
    }
    first.until("n62 active and the former active node a standby", |status| status["active"] == "n62" && whole(status));
    first.hasup(&["promote", "n63", "--force"]).fails(3, &["Nothing was"]);
    first.hasup(&["nodes", "remove", "n62"]).fails(3, &["is active"]);

    // each keeps log for the two others, whatever its role, and for nobody who has gone
    keeps_log(&second, "hasup_n1,hasup_n3");
    keeps_log(&first, "hasup_n2,hasup_n3");
    // the standby that leads Raft is taken out: another one leads before it goes
    let leads = second.json(&["status"])["raft_leader"] == "n61";
    let (stays, mut gone) = if leads { (third, first) } else { (first, third) };
    gone.hasup(&["destroy", "--yes"])
        .fails(3, &["is a member of a cluster of 3", "Nothing was deleted", "hasup leave"]);
    assert!(gone.data_dir().join("pgdata/PG_VERSION").is_file(), "it is refused before anything is touched");
    stays.json(&["nodes", "remove", gone.name.as_str()]);
    gone.until("a word that it was removed", |status| {
        status["cluster"]["warnings"].to_string().contains("is no member of this cluster any more")
    });
    let told = gone.hasup(&["status"]);
    let headline = format!("{} is no member of this cluster any more", gone.name);
    assert!(told.code == Some(0) && told.out.starts_with(&headline), "{told:?}");
    let status = stays.until("two members", |status| status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2));
    assert!(status["nodes"].as_array().unwrap().iter().all(|node| node["name"] != gone.name.as_str()), "{status}");
    let destroyed = gone.hasup(&["destroy", "--yes"]);
    assert!(destroyed.code == Some(0) && !gone.data_dir().exists(), "{destroyed:?}");
    keeps_log(&stays, "hasup_n2");
    keeps_log(&second, if leads { "hasup_n3" } else { "hasup_n1" });
    second.until("writes with two", |status| status["active"] == "n62" && status["cluster"]["majority"] == true);
    for node in [&stays, &second, &gone] {
        let log = node.log();
        assert!(!log.contains("panicked") && !log.contains("is still in Raft"), "{log}");
    }

    // it comes again, and of the standby no copy can be made
    let unreadable = stays.data_dir().join("pgdata/unreadable");
    fs::write(&unreadable, "").unwrap();
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
    let joined = gone.join(&stays, text(&started["join_token"]));
    assert_eq!(joined["state"], "standby", "{joined}");
    assert!(gone.log().contains("no copy from the standby") && copied_from(&gone, "n62"), "{}", gone.log());

    // the active one ends once another is active
    stays.until("both standbys stream", |status| whole(status));
    let cache = second.folder.path().join("cache");
    second.environment.push(("XDG_CACHE_HOME", cache));
    assert!(second.hasup(&["status"]).out.starts_with("cluster "), "it speaks for itself");
    assert_eq!(second.stop(), Some(0), "{}", second.log());
    let told = second.hasup(&["status"]);
    let says = |what: &str| told.out.contains(what);
    assert!(told.code == Some(0) && told.out.starts_with("hasup does not run on this machine: "), "{told:?}");
    assert!(says("What follows is the word of n6") && says("\ncluster "), "{told:?}");
    let told = second.json(&["status"]);
    assert!(told["cluster"]["warnings"][0].as_str().unwrap().starts_with("hasup does not run on"), "{told}");
    assert!(second.log().contains("the active role was handed over"), "{}", second.log());
    stays.until("another one active", |status| status["active"] == "n61" || status["active"] == "n63");
}
