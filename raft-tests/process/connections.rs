//! Connections that are used up: told, and no reason to move the role.

use std::process::{Child, Command, Stdio};

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, until_check};

/// Sessions of this machine's superuser, who gets what is reserved, too. Dropping them ends them.
struct Sessions(Vec<Child>);

impl Sessions {
    fn open(node: &Node, count: u32) -> Self {
        let mut psql = Command::new("psql");
        psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-h"]).arg(node.data_dir().join("sock"));
        psql.args(["-p", &node.ports[2].to_string(), "-c", "select pg_sleep(3600)"]);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self((0..count).map(|_| psql.spawn().unwrap()).collect())
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in &mut self.0 {
            let _ = session.kill();
            let _ = session.wait();
        }
    }
}

/// Returns what PostgreSQL tells a client of the application's role that connects now.
fn connect(node: &Node) -> String {
    let dsn = node.json(&["dsn"]);
    let password = std::fs::read_to_string(dsn["password_file"].as_str().unwrap()).unwrap();
    let address = format!("host={} port={} user={} dbname={}", node.host, node.ports[2], dsn["user"], dsn["database"]);
    let address = address.replace('"', "'");
    let mut psql = Command::new("psql");
    psql.args(["-XAtq", "-d", &format!("{address} sslmode=require"), "-c", "select 'served'"]);
    let ended = psql.env("PGPASSWORD", password.trim()).output().unwrap();
    [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

#[test]
fn used_up_connections_are_told_and_move_nothing() {
    let name = "used_up_connections_are_told_and_move_nothing";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(111);
    // fewer than PostgreSQL's default, which counts from the first start on
    let settings = "[postgres]\nsettings = { max_connections = 40, superuser_reserved_connections = 32 }\n";
    std::fs::write(node.folder.path().join("node.toml"), settings).unwrap();
    node.start(&[]);
    let before = until_check(&node, "a node without trouble", |ended| ended.code == Some(0));
    assert!(connect(&node).starts_with("served"), "{before:?}: {}", connect(&node));
    let generation = node.json(&["status"])["cluster"]["generation"].clone();

    let sessions = Sessions::open(&node, 9);
    let told = until_check(&node, "used up connections", |ended| {
        ended.out.contains("n111: PostgreSQL has no connection left for clients")
    });
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.out.contains(" of 8 are in use"), "{told:?}");
    let refused = connect(&node);
    assert!(refused.contains("remaining connection slots are reserved"), "{refused}");
    let status = node.json(&["status"]);
    assert_eq!((&status["cluster"]["generation"], &status["active_ready"]), (&generation, &true.into()), "{status}");
    assert_eq!(status["postgres"]["connections"]["for_clients"], 8, "{status}");

    // their clients' death alone is seen only when they have something to say
    node.sql("select count(pg_terminate_backend(pid)) from pg_stat_activity where query like 'select pg_sleep%'");
    drop(sessions);
    until_check(&node, "a node without trouble", |ended| ended.code == Some(0));
    assert!(connect(&node).starts_with("served"), "{}", connect(&node));
    let status = node.json(&["status"]);
    assert_eq!((&status["cluster"]["generation"], &status["role_changes"]), (&generation, &0.into()), "{status}");
}
