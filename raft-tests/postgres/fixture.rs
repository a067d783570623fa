//! Real nodes of one machine: a data directory, a guard and a PostgreSQL each, with certificates of one CA.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hasup::guard::{GuardClient, Lease, StopMode, spawn_detached};
use hasup::ha::record::{CommitSet, DataMember};
use hasup::postgres::basebackup::BaseBackup;
use hasup::postgres::initdb::initdb;
use hasup::postgres::observe::LiveFacts;
use hasup::postgres::{
    Follow, Layout, Postgres, PostgresFacts, PostgresSetup, Programs, Reader, Source, SslMode, SslPaths,
    StaticSettings, SyncNames,
};
use hasup::sys::clock::boot_now;
use hasup::types::{DataIncarnation, Generation, Lsn, NodeId, NodeName, Timeline, WalPosition};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub const LIMIT: Duration = Duration::from_secs(30);
pub const HARNESS: &str = env!("CARGO_BIN_EXE_guard-harness");

/// Runs the test named `name` as PostgreSQL's user when we are root, which PostgreSQL refuses. Returns whether the caller is the
/// process that should go on. Says loudly what is missing.
pub fn goes_on(name: &str) -> bool {
    if let Err(error) = Programs::find(None, None) {
        eprintln!("SKIPPED {name}: {error}");
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let Some(line) = passwd.lines().find(|line| line.starts_with("postgres:")) else {
        eprintln!("SKIPPED {name}: no user `postgres` on this machine, and PostgreSQL does not run as root");
        return false;
    };
    let field = |at: usize| line.split(':').nth(at).unwrap().parse().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("HOME", "/tmp")
        .current_dir("/")
        .uid(field(2))
        .gid(field(3))
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed as user postgres");
    false
}

/// Waits until `condition` holds.
pub async fn eventually<F: Future<Output = Result<(), String>>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + LIMIT;
    loop {
        match condition().await {
            Ok(()) => return,
            Err(last) => assert!(Instant::now() < deadline, "{what}: last seen {last}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

pub struct Cluster {
    pub folder: tempfile::TempDir,
    ca: rcgen::Issuer<'static, rcgen::KeyPair>,
    ca_pem: String,
}

pub struct Node {
    pub id: u64,
    pub postgres: Arc<Postgres>,
    pub guard: GuardClient,
    _connection: JoinSet<()>,
    guard_pid: u32,
}

impl Drop for Node {
    fn drop(&mut self) {
        // The guard's death is PostgreSQL's.
        hasup::guard::procs::send(self.guard_pid, rustix::process::Signal::KILL);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn members() -> BTreeSet<NodeName> {
    ["n1", "n2", "n3"].iter().map(|name| name.parse().unwrap()).collect()
}

pub fn member(id: u64) -> DataMember {
    DataMember { node: NodeId(id), incarnation: DataIncarnation(1) }
}

pub fn one_of(ids: &[u64]) -> SyncNames {
    SyncNames::of(&CommitSet { members: ids.iter().map(|id| member(*id)).collect(), k: 1 })
}

impl Cluster {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let folder = tempfile::Builder::new().prefix("hs").tempdir_in("/tmp").unwrap();
        Self { folder, ca: rcgen::Issuer::new(params, key), ca_pem }
    }

    fn write_certificate(&self, folder: &Path, id: u64) -> SslPaths {
        use std::os::unix::fs::PermissionsExt;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("hasup-node-n{id}"));
        let certificate = params.signed_by(&key, &self.ca).unwrap().pem();
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        SslPaths {
            certificate: put("node.crt", &certificate),
            key: put("node.key", &key.serialize_pem()),
            ca: put("ca.crt", &self.ca_pem),
        }
    }

    /// A node with a guard and without a PostgreSQL.
    pub async fn node(&self, id: u64) -> Node {
        let layout = Layout::new(self.folder.path().join(format!("n{id}")));
        layout.prepare().unwrap();
        let settings = StaticSettings {
            port: free_port(),
            listen_addresses: vec!["127.0.0.1".to_owned()],
            logical: false,
            ssl: self.write_certificate(&layout.data_dir, id),
            wal_keep_mib: 32,
            slot_keep_mib: 320,
            local_user: "postgres".to_owned(),
            extra: [("shared_buffers".to_owned(), "16MB".to_owned())].into(),
        };
        let programs = Programs::find(None, None).unwrap();
        let (guard, connection) = start_guard(&layout).await;
        let guard_pid = guard.last_status().guard_pid;
        let postgres = Arc::new(Postgres::new(PostgresSetup { layout, programs, settings }));
        Node { id, postgres, guard, _connection: connection, guard_pid }
    }

    /// A node that is primary of a fresh cluster, on timeline 2, with roles, under generation 1 with a long lease.
    pub async fn primary(&self, id: u64) -> Node {
        self.make_primary(self.node(id).await).await
    }

    /// The same of a node that is there.
    pub async fn make_primary(&self, node: Node) -> Node {
        let settings = &node.postgres.settings().extra;
        initdb(node.postgres.programs(), node.postgres.layout(), settings, LIMIT).await.unwrap();
        // a start never leaves the names empty: they are said before each promotion
        node.start(None).await;
        node.postgres.set_sync_names(&SyncNames::Empty, true, LIMIT).await.unwrap();
        node.arm(1, Duration::from_secs(600)).await;
        node.promote(1, Timeline(2)).await;
        node.postgres.provision(LIMIT).await.unwrap();
        node
    }

    /// A node that streams from `primary`, by a base backup.
    pub async fn standby(&self, id: u64, primary: &Node) -> Node {
        let node = self.node(id).await;
        node.copy_from(primary).await;
        node.start(Some(&node.follow(primary, 1))).await;
        node.streams(1).await;
        node
    }

    /// A primary whose commits wait for one of two standbys, and these.
    pub async fn three(&self) -> [Node; 3] {
        let first = self.primary(1).await;
        let second = self.standby(2, &first).await;
        let third = self.standby(3, &first).await;
        first.postgres.set_sync_names(&one_of(&[2, 3]), false, LIMIT).await.unwrap();
        [first, second, third]
    }
}

pub async fn connect(layout: &Layout) -> (GuardClient, JoinSet<()>) {
    let deadline = Instant::now() + LIMIT;
    loop {
        match GuardClient::connect(&layout.data_dir).await {
            Ok((client, connection)) => {
                let mut tasks = JoinSet::new();
                tasks.spawn(connection.run());
                return (client, tasks);
            }
            Err(error) => assert!(Instant::now() < deadline, "no guard: {error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

pub async fn start_guard(layout: &Layout) -> (GuardClient, JoinSet<()>) {
    spawn_detached(Path::new(HARNESS), &layout.data_dir, &layout.pgdata).unwrap();
    connect(layout).await
}

impl Node {
    pub fn port(&self) -> u16 {
        self.postgres.settings().port
    }

    /// Has `name` set to `value` from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        let mut settings = self.postgres.settings().clone();
        settings.extra.insert(name.to_owned(), value.to_owned());
        let (layout, programs) = (self.postgres.layout().clone(), self.postgres.programs().clone());
        self.postgres = Arc::new(Postgres::new(PostgresSetup { layout, programs, settings }));
    }

    pub fn data_dir(&self) -> PathBuf {
        self.postgres.layout().data_dir.clone()
    }

    pub fn source(&self) -> Source {
        Source { host: "127.0.0.1".to_owned(), addresses: Vec::new(), port: self.port(), ssl_mode: SslMode::VerifyCa }
    }

    pub fn follow(&self, primary: &Node, generation: u64) -> Follow {
        Follow {
            generation: Generation(generation),
            source: primary.source(),
            reader: Reader::Standby(member(self.id)),
        }
    }

    pub async fn copy_from(&self, primary: &Node) {
        let backup = BaseBackup {
            source: primary.source(),
            ssl: self.postgres.settings().ssl.clone(),
            application: format!("hasup_copy_n{}", self.id),
            max_rate_kib: None,
            expected_bytes: 0,
            limit: LIMIT,
            silence_limit: None,
        };
        let mut last = None;
        backup.run(self.postgres.programs(), self.postgres.layout(), |progress| last = Some(progress)).await.unwrap();
        assert!(last.is_some_and(|last| last.done_kib > 1000), "{last:?}");
    }

    pub async fn start(&self, follow: Option<&Follow>) {
        let spec = self.postgres.prepare_start(follow, &members()).await.unwrap();
        self.guard.start_postgres(spec).await.unwrap();
        self.answers().await;
    }

    pub async fn answers(&self) {
        eventually("PostgreSQL answers", async || match self.postgres.observe(LIMIT).await {
            PostgresFacts::Live(_) => Ok(()),
            other => Err(format!("{other:?}; {:?}\n{}", self.guard.last_status(), self.log())),
        })
        .await;
    }

    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.postgres.layout().log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    pub async fn live(&self) -> LiveFacts {
        match self.postgres.observe(LIMIT).await {
            PostgresFacts::Live(live) => *live,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    pub async fn streams(&self, generation: u64) {
        eventually("standby streams", async || match self.postgres.observe(LIMIT).await {
            PostgresFacts::Live(live)
                if live.receiver.as_ref().is_some_and(|receiver| {
                    receiver.status == "streaming" && receiver.generation == Some(Generation(generation))
                }) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}\n{}", self.log())),
        })
        .await;
    }

    /// Waits until the end of this barred node's log is certain, and returns it.
    pub async fn stated(&self) -> WalPosition {
        eventually("the position is certain", async || {
            self.postgres.stated_position(LIMIT).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
        self.postgres.stated_position(LIMIT).await.unwrap()
    }

    /// Promotes through the guard, armed for `generation` before.
    pub async fn promote(&self, generation: u64, timeline: Timeline) {
        let trigger = async { Ok(self.guard.promote(Generation(generation)).await?) };
        self.postgres.promote(timeline, LIMIT, trigger).await.unwrap();
    }

    /// Makes this barred standby the primary of generation 2, which others may stream from, as the node does.
    pub async fn take_over(&self, timeline: Timeline, names: &SyncNames) {
        self.arm(2, Duration::from_secs(600)).await;
        self.postgres.set_sync_names(names, false, LIMIT).await.unwrap();
        self.promote(2, timeline).await;
        // the former primary may have shut standbys out for a moment just when this one was barred
        self.postgres.admit_standbys(LIMIT).await.unwrap();
    }

    /// Waits until all that `primary` holds now is replayed here.
    pub async fn has_all_of(&self, primary: &Node) {
        let end: Lsn = primary.sql("select pg_current_wal_flush_lsn()").await.parse().unwrap();
        eventually("all is replayed", async || match self.postgres.has_replayed(end, LIMIT).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
        .await;
    }

    pub async fn arm(&self, generation: u64, span: Duration) {
        let lease = Lease {
            generation: Generation(generation),
            deadline: boot_now() + span,
            fence_lead: Duration::from_millis(100),
        };
        self.guard.arm(lease).await.unwrap();
    }

    pub async fn stop(&self) {
        self.guard.stop(StopMode::Fast { limit: LIMIT }).await.unwrap();
    }

    pub async fn sql(&self, sql: &str) -> String {
        let rows = self.postgres.run_sql("do what a test asks", sql, LIMIT).await.unwrap();
        rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
    }
}
