//! Adoption: a server that somebody else made, in Debian's layout, becomes the first node's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, as_postgres, contents, pause, programs};

/// A server in Debian's layout below a node's folder: data here, settings there, a socket elsewhere.
struct Server {
    bin: PathBuf,
    root: PathBuf,
    port: u16,
    host: String,
}

impl Server {
    /// Makes a stopped server with a role, a database and 1000 rows.
    fn new(node: &Node) -> Self {
        let bin = programs();
        let root = node.folder.path().join("debian");
        for folder in ["", "lib", "lib/main", "etc", "etc/main", "etc/main/conf.d", "run", "archive"] {
            fs::create_dir(root.join(folder)).unwrap();
            as_root(&["chown", "postgres:", &root.join(folder).display().to_string()]);
        }
        let server = Self { bin, root, port: node.ports[2], host: node.host.clone() };
        let pgdata = server.pgdata();
        as_postgres(&server.bin.join("initdb"), &["-D", &pgdata, "-A", "scram-sha-256", "--auth-local=trust", "-N"]);
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::rename(Path::new(&pgdata).join(name), server.etc().join(name)).unwrap();
        }
        let (etc, root) = (server.etc().display().to_string(), server.root.display().to_string());
        let conf = fs::read_to_string(server.etc().join("postgresql.conf")).unwrap();
        let conf = format!(
            "{conf}\ndata_directory = '{pgdata}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\n\
             external_pid_file = '{root}/run/main.pid'\nport = {}\nlisten_addresses = '*'\nmax_connections = 150\n\
             unix_socket_directories = '{root}/run'\ncluster_name = '15/main'\nsynchronous_commit = off\n\
             archive_mode = on\narchive_command = 'cp %p {root}/archive/%f'\ninclude_dir = 'conf.d'\n",
            server.port
        );
        fs::write(server.etc().join("postgresql.conf"), conf).unwrap();
        fs::write(server.etc().join("conf.d/shop.conf"), "work_mem = '5MB'\n").unwrap();
        let hba = fs::read_to_string(server.etc().join("pg_hba.conf")).unwrap();
        fs::write(server.etc().join("pg_hba.conf"), format!("{hba}\nhost shop shopper all scram-sha-256\n")).unwrap();
        server.start();
        server.sql("postgres", "create role shopper login password 'secret'");
        server.sql("postgres", "create role app login password 'mine'");
        server.sql("postgres", "create database shop owner shopper");
        server.sql("shop", "create table orders as select n from generate_series(1, 1000) n");
        server.sql("shop", "alter table orders owner to shopper");
        // as if it had been made on a machine with another ICU
        server.sql(
            "postgres",
            "create database tales template template0 encoding utf8 locale_provider icu icu_locale 'en-US'",
        );
        server.sql("postgres", "update pg_database set datcollversion = '1.5' where datname = 'tales'");
        server.sql("shop", "alter system set autovacuum_naptime = '77s'");
        server.stop();
        server
    }

    fn pgdata(&self) -> String {
        self.root.join("lib/main").display().to_string()
    }

    fn etc(&self) -> PathBuf {
        self.root.join("etc/main")
    }

    /// As `pg_ctlcluster` does.
    fn start(&self) {
        let conf = format!("-c config_file=\"{}\"", self.etc().join("postgresql.conf").display());
        let log = self.root.join("run/log").display().to_string();
        as_postgres(&self.bin.join("pg_ctl"), &["-D", &self.pgdata(), "-l", &log, "-w", "-s", "-o", &conf, "start"]);
    }

    fn stop(&self) {
        as_postgres(&self.bin.join("pg_ctl"), &["-D", &self.pgdata(), "-w", "-s", "-m", "fast", "stop"]);
    }

    /// Asks over the socket where local clients have always found it.
    fn sql(&self, database: &str, sql: &str) -> String {
        let socket = self.root.join("run").display().to_string();
        self.psql(&format!("host={socket} user=postgres dbname={database}"), sql)
    }

    /// Asks as a client with a password does.
    fn client(&self, sql: &str) -> String {
        self.psql(&format!("host={} user=shopper password=secret dbname=shop", self.host), sql)
    }

    fn psql(&self, conninfo: &str, sql: &str) -> String {
        let conninfo = format!("{conninfo} port={}", self.port);
        as_postgres(&self.bin.join("psql"), &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", sql])
            .trim()
            .to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = fs::read_to_string(Path::new(&self.pgdata()).join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        }
    }
}

fn as_root(words: &[&str]) {
    assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{words:?}");
}

#[test]
fn a_stopped_server_is_adopted_with_all_that_it_has_and_a_standby_of_it_too() {
    let name = "a_stopped_server_is_adopted_with_all_that_it_has_and_a_standby_of_it_too";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(71);
    let server = Server::new(&node);
    let etc = contents(&server.etc());
    let pgdata = server.pgdata();
    let before = contents(Path::new(&pgdata));
    // nobody asked for it
    node.refused(&["start", "--postgres-data-dir", &pgdata]).fails(3, &["--adopt", "nothing in it was touched"]);
    assert!(contents(Path::new(&pgdata)) == before, "a refusal touched the data");

    let started = node.start(&["--adopt", &pgdata]);
    let log = node.log();
    for told in
        ["adopting PostgreSQL", "hasup overrules", "synchronous_commit = on (was off)", "pg_hba.conf", "checksums"]
    {
        assert!(log.contains(told), "`{told}` is not told: {log}");
    }
    assert!(!log.contains("archive_command = /bin/true"), "{log}");
    assert_eq!(started["dsn"]["user"], "", "{started}");
    assert_eq!(contents(&server.etc()), etc, "the originals stay");
    // clients find what they had: over the network by password, and over the socket
    assert_eq!(server.client("select count(*) from orders"), "1000");
    server.client("insert into orders values (1001)");
    for (setting, value) in [("work_mem", "5MB"), ("max_connections", "150"), ("autovacuum_naptime", "77s")] {
        assert_eq!(server.sql("shop", &format!("show {setting}")), value, "{setting}");
    }
    assert!(server.sql("shop", "show archive_command").starts_with("cp %p"));
    assert_eq!(server.psql(&format!("host={} user=shopper password=secret dbname=shop", server.host), "select 1"), "1");
    let app = "select rolpassword is not null and rolcanlogin from pg_authid where rolname = 'app'";
    let verifier = server.sql("shop", "select rolpassword from pg_authid where rolname = 'app'");
    assert_eq!(server.sql("shop", app), "t", "a role called app is left alone");
    assert_eq!(server.sql("shop", "select count(*) from pg_database where datname = 'app'"), "0");

    // a copy takes settings and access rules along, and serves the same clients when it is active
    let mut second = Node::new(72);
    let joined = second.join(&node, started["join_token"].as_str().unwrap());
    // indexes that were built with other collations are told, on each machine, with the cure
    let cure = "ALTER DATABASE \"tales\" REFRESH COLLATION VERSION";
    let warned = |text: &str| text.contains("ICU 1.5") && text.contains("REINDEX DATABASE") && text.contains(cure);
    assert!(warned(joined["warnings"][0].as_str().unwrap()), "{joined}");
    for member in [&node, &second] {
        let checked = member.hasup(&["check"]);
        assert!(checked.code == Some(1) && warned(&checked.out), "{checked:?}");
        assert!(warned(&member.hasup(&["status"]).out), "{:?}", member.hasup(&["status"]));
    }
    server.sql("tales", "alter database tales refresh collation version");
    for member in [&node, &second] {
        member.until("the cure to be seen", |status| {
            status["postgres"]["warnings"].as_array().is_some_and(Vec::is_empty)
        });
    }
    let copy = Server {
        host: second.host.clone(),
        port: second.ports[2],
        bin: server.bin.clone(),
        root: "/nonexistent".into(),
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while copy.client("select count(*) from orders") != "1001" {
        assert!(Instant::now() < deadline, "the standby has not the rows");
        pause();
    }
    assert_eq!(copy.client("show max_connections"), "150");
    assert_eq!(server.sql("shop", "select rolpassword from pg_authid where rolname = 'app'"), verifier);

    // an orderly end and another beginning
    second.stop();
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    node.run();
    second.run();
    node.until("an active node again", |status| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        status["postgres"]["is_accepting"] == true && nodes.iter().any(|node| node["state"] == "active")
    });
    assert_eq!(server.client("select count(*) from orders"), "1001");
}

#[test]
fn a_running_server_is_stopped_only_where_that_is_allowed_and_kills_on_the_way_lose_nothing() {
    let name = "a_running_server_is_stopped_only_where_that_is_allowed_and_kills_on_the_way_lose_nothing";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(73);
    let server = Server::new(&node);
    let pgdata = server.pgdata();
    server.start();
    server.sql("shop", "insert into orders values (1001)");
    node.refused(&["start", "--adopt", &pgdata]).fails(3, &["a server runs", "--stop-running", "Nothing was touched"]);
    assert_eq!(server.client("select count(*) from orders"), "1001", "it serves on");

    // killed at each of its marks, and sooner and later on the way: each time the server is its owner's, or the node's to take over
    let [asked, marked, member] = [
        node.data_dir().join("begin.json"),
        Path::new(&pgdata).join("standby.signal"),
        node.data_dir().join("identity.json"),
    ];
    let after =
        [10, 20, 30, 50, 80, 120, 160, 200, 250, 300, 400, 600, 900].map(|ms| (Duration::from_millis(ms), None));
    let at = [&asked, &marked, &member].map(|mark| (Duration::from_secs(20), Some(mark)));
    let (mut early, mut inside, mut late) = (0, 0, 0);
    for (within, mark) in at.into_iter().chain(after) {
        let mut begun = node.spawn(&["start", "--adopt", &pgdata, "--stop-running"]);
        let until = Instant::now() + within;
        while Instant::now() < until && begun.try_wait().unwrap().is_none() && !mark.is_some_and(|mark| mark.exists()) {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        match (begun.try_wait().unwrap(), asked.exists()) {
            // it was the first thing kept, and goes once the node has begun
            (None, true) => inside += 1,
            (None, false) if !member.exists() => early += 1,
            _ => late += 1,
        }
        begun.kill().unwrap();
        begun.wait().unwrap();
        if !marked.exists() && !Path::new(&pgdata).join("postmaster.pid").exists() {
            server.start();
            assert_eq!(server.client("select count(*) from orders"), "1001", "after {within:?}, {mark:?}");
        }
    }
    println!("kills: {early} before the adoption, {inside} within, {late} after it");
    assert!(inside > 0, "no kill hit the adoption: {early} came before it, {late} after");
    let has_begun = node.data_dir().join("identity.json").exists() && !node.data_dir().join("begin.json").exists();
    if has_begun {
        node.run();
    } else {
        node.start(&["--adopt", &pgdata, "--stop-running"]);
    }
    node.until("the adopted server to take writes", |status| status["active_ready"] == true);
    assert_eq!(server.client("select count(*) from orders"), "1001");
    server.client("insert into orders values (1002)");
}

#[test]
fn what_cannot_be_adopted_is_refused_and_not_touched() {
    let name = "what_cannot_be_adopted_is_refused_and_not_touched";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let node = Node::new(74);
    let server = Server::new(&node);
    let pgdata = server.pgdata();
    let refused = |words: &[&str]| {
        let before = contents(&server.root);
        node.refused(&["start", "--adopt", &pgdata]).fails(3, words);
        assert!(contents(&server.root) == before, "a refusal touched something: {words:?}");
        assert!(!node.data_dir().join("begin.json").exists(), "it would be tried again");
    };
    let path = |name: &str| Path::new(&pgdata).join(name);

    let etc = server.etc().display().to_string();
    node.refused(&["start", "--adopt", &etc]).fails(3, &["settings alone", &pgdata]);
    node.refused(&["start", "--adopt", "/tmp"]).fails(3, &["no data directory"]);

    let version = fs::read_to_string(path("PG_VERSION")).unwrap();
    fs::write(path("PG_VERSION"), "42\n").unwrap();
    refused(&["PostgreSQL 42", "postgresql-42"]);
    fs::write(path("PG_VERSION"), version).unwrap();

    for (mark, words) in [
        ("standby.signal", "is a standby"),
        ("recovery.signal", "backup is being restored"),
        ("backup_label", "backup is being restored"),
        ("patroni.dynamic.json", "Patroni"),
        // in a container, or on another host
        ("postmaster.pid", "none is seen on this machine"),
    ] {
        fs::write(path(mark), "").unwrap();
        refused(&[words]);
        fs::remove_file(path(mark)).unwrap();
    }

    let hba = fs::read_to_string(server.etc().join("pg_hba.conf")).unwrap();
    fs::write(server.etc().join("pg_hba.conf"), format!("{hba}\nhost @shops all all scram-sha-256\n")).unwrap();
    refused(&["reads another file", "host @shops"]);
    fs::write(server.etc().join("pg_hba.conf"), hba).unwrap();

    let theirs = server.root.join("lib/.main.hasup-old");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("precious"), "").unwrap();
    refused(&["is not hasup's", "move it away"]);
    fs::remove_dir_all(&theirs).unwrap();

    let elsewhere = node.folder.path().join("space");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, path("pg_tblspc/16500")).unwrap();
    // several reasons are told at once
    fs::write(path("backup_label"), "").unwrap();
    refused(&["tablespaces", "space", "set tablespace pg_default", "backup is being restored"]);
    fs::remove_file(path("backup_label")).unwrap();
    fs::remove_file(path("pg_tblspc/16500")).unwrap();

    as_root(&["chown", "root:", &server.root.join("lib").display().to_string()]);
    refused(&["may not write", "chown"]);
    as_root(&["chown", "root:", &pgdata]);
    refused(&["belongs to user 0"]);
    as_root(&["chown", "postgres:", &pgdata]);
    as_root(&["chown", "postgres:", &server.root.join("lib").display().to_string()]);

    fs::rename(server.etc().join("pg_hba.conf"), server.etc().join("hidden")).unwrap();
    refused(&["pg_hba.conf", "who may connect"]);
    fs::rename(server.etc().join("hidden"), server.etc().join("pg_hba.conf")).unwrap();
    // and it starts as it always did
    server.start();
    assert_eq!(server.client("select count(*) from orders"), "1000");
    server.stop();
}

#[test]
fn a_server_without_the_superuser_postgres_is_refused_while_it_runs_and_says_what_is_missing_after_that() {
    let name = "a_server_without_the_superuser_postgres_is_refused_while_it_runs_and_says_what_is_missing_after_that";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(75);
    let server = Server::new(&node);
    let pgdata = server.pgdata();
    let boss = |sql: &str| server.psql(&format!("host={}/run user=boss dbname=shop", server.root.display()), sql);
    server.start();
    server.sql("postgres", "create role boss superuser login");
    boss("alter role postgres rename to former");
    let running = ["start", "--adopt", &pgdata, "--stop-running"];
    node.refused(&running).fails(3, &["no superuser `postgres`", "create role postgres"]);
    boss("alter role former rename to postgres");
    boss("alter database postgres rename to former");
    node.refused(&running).fails(3, &["no database `postgres`"]);
    boss("alter database former rename to postgres");
    boss("alter role postgres rename to former");
    assert_eq!(server.client("select count(*) from orders"), "1000", "it serves on");
    server.stop();

    // nobody can ask a stopped one: it says so once it runs, and hasup's own signal in it does not forbid another try
    for _ in 0..2 {
        let mut begun = node.spawn(&["start", "--adopt", &pgdata]);
        let is_told = |status: &serde_json::Value| {
            let waits = status["waiting_on"].as_array().cloned().unwrap_or_default();
            waits.iter().any(|wait| wait.as_str().unwrap().contains("does not let hasup in as superuser `postgres`"))
        };
        node.until("the reason", is_told);
        let log = node.log();
        let is_error = |line: &&str| line.contains("ERROR") && line.contains("does not let hasup in");
        assert_eq!(log.lines().filter(is_error).count(), 1, "once: {log}");
        let destroyed = node.hasup(&["destroy", "--yes"]);
        assert!(destroyed.code == Some(0) && destroyed.out.contains("main.before-hasup"), "{destroyed:?}");
        begun.wait().unwrap();
        let kept = server.root.join("lib/main.before-hasup/postgresql.auto.conf");
        assert!(fs::read_to_string(&kept).unwrap().contains("autovacuum_naptime"), "the originals are kept");
    }
    fs::remove_file(Path::new(&pgdata).join("standby.signal")).unwrap();
    server.start();
    boss("alter role former rename to postgres");
    server.stop();
    node.start(&["--adopt", &pgdata]);
    assert_eq!(server.client("select count(*) from orders"), "1000");
}
