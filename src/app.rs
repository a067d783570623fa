//! The composition root: builds every part in order and hands each its handles. No logic.

pub mod begin;
mod found;
pub mod identity;
mod join;
pub mod lock;
pub mod memory;
pub mod mend;
pub mod ports;

use std::ffi::OsString;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use begin::Begin;

use self::begin::Failure;
use self::identity::Identity;
use self::lock::DaemonLock;
use crate::config::{Config, Secret};
use crate::guard::{self, GuardOptions};
use crate::ha::record::MemberKind;
use crate::http::{self, Access, Api, BasicCredentials};
use crate::node::tasks::Tasks;
use crate::node::{Node, NodeParts, default_timing};
use crate::peer::{self, Addresses, PeerAddress, PeerClient};
use crate::postgres::adopt::{self, AdoptRefused, Adoption};
use crate::postgres::slots::keep_limit_mib;
use crate::postgres::{Layout, Postgres, PostgresSetup, Programs, SslPaths, StaticSettings};
use crate::pulse::{PulseConfig, PulseSecret};
use crate::raft::{Consensus, RaftTiming};
use crate::sys::clock::boot_id;
use crate::sys::fs::write_durably;
use crate::tls::store::TrustPaths;
use crate::tls::{NodeTrust, TlsContext, host_of};
use crate::types::{ClusterGeneration, DaemonIncarnation};

/// How long handing the role over may take before the process ends all the same: the lease then ends the role.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(30);
/// How much log a node keeps for standbys that were away, in MiB.
const WAL_KEEP_MIB: u32 = 1024;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// The node cannot begin, or ended in a way that its supervisor should know.
pub async fn run(config: Config, begin: Begin) -> anyhow::Result<()> {
    // before all else, also before a failure is noted: that would be told as the other daemon's
    let _lock = DaemonLock::take(&config.data_dir)?;
    raise_open_files();
    let tasks = Tasks::new();
    let ended = run_node(&config, begin, &tasks).await;
    tasks.drain().await;
    if let Err(error) = &ended
        && let Err(source) = Failure::note(&config.data_dir, error)
    {
        tracing::error!(%source, "why the node has not begun cannot be kept for the command that waits for it");
    }
    ended
}

/// Returns whether the node of `data_dir` belongs to a cluster.
pub fn is_member(data_dir: &Path) -> bool {
    Identity::path(data_dir).exists()
}

/// Lets this process have as many files open as its user may: a shell's usual 1024 are fewer than the connections of three ports.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn run_node(config: &Config, begin: Begin, tasks: &Tasks) -> anyhow::Result<()> {
    let programs = programs(config)?;
    let layout = layout(config);
    layout.prepare().context("prepare the folders of PostgreSQL")?;
    let identity = Identity::load(&config.data_dir)?;
    // all ports before anything is made: a try that cannot end well leaves nothing behind
    let api_listeners = ports::listen(&config.api, ports::Purpose::Api).await?;
    ports::require_free_for_pulses(&config.peer).await?;
    if identity.is_none() {
        drop(ports::listen(&config.peer, ports::Purpose::Peer).await?);
        if !config.is_witness {
            ports::require_free(&config.postgres).await?;
        }
    }
    if identity.is_some() && begin == Begin::Run {
        memory::require(&config.data_dir, config.node_name.as_str())?;
    }
    let identity = match (identity, &begin) {
        (Some(identity), _) => identity,
        (None, Begin::Start { adopt, .. }) => found::prepare(config, &programs, &layout, *adopt).await?,
        (None, Begin::Join { targets, token, options }) => {
            join::join(config, &programs, targets, token, options).await?
        }
        (None, Begin::Run) => anyhow::bail!(
            "{} belongs to no cluster yet: run `hasup start` on the first node, `hasup join` on the others",
            config.data_dir.display()
        ),
    };
    let trust = NodeTrust::load(&config.data_dir).context("read this node's certificates")?;
    let tls = Arc::new(TlsContext::new(&trust).context("use this node's certificates")?);
    let peer_listeners = ports::listen(&config.peer, ports::Purpose::Peer).await?;

    let (peers, peer_work) = PeerClient::new(Arc::clone(&tls));
    tasks.spawn("peer client", peer_work);
    peers.set_peers(identity.peers.iter().filter(|member| member.id != identity.node_id).map(|member| PeerAddress {
        id: member.id,
        name: member.name.clone(),
        addresses: member.peer_addresses.clone(),
    }));
    let transport = Node::raft_transport(peers.clone());
    let raft_folder = config.data_dir.join("raft");
    let consensus = Consensus::open(&raft_folder, identity.node_id, RaftTiming::default(), transport)
        .await
        .context("open the replicated store")?;

    let paths = TrustPaths::below(&config.data_dir);
    let password_file = layout.config_dir().join("app.password");
    write_password(&password_file, &trust)?;
    let settings = static_settings(config);
    let node = Node::start(NodeParts {
        me: identity.node_id,
        name: config.node_name.clone(),
        kind: if config.is_witness { MemberKind::Witness } else { MemberKind::Data },
        cluster_id: identity.cluster_id.clone(),
        cluster_secret: trust.cluster_secret.clone(),
        data_dir: config.data_dir.clone(),
        copy_rate_kib: config.postgres.copy_rate_kib,
        guard_program: guard_program(),
        first_peers: identity.peers.iter().map(|member| (member.name.to_string(), member.id)).collect(),
        addresses: Addresses {
            peer: config.peer.advertise.iter().map(ToString::to_string).collect(),
            api: config.api.advertise.first().map(ToString::to_string).unwrap_or_default(),
            postgres_host: config.postgres.advertise.host.to_string(),
            postgres_port: config.postgres.advertise.port,
        },
        peers,
        consensus: consensus.clone(),
        postgres: Arc::new(Postgres::new(PostgresSetup {
            layout: layout.clone(),
            programs: programs.clone(),
            settings,
        })),
        tls: Arc::clone(&tls),
        pulse: PulseConfig {
            me: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            cluster_generation: ClusterGeneration(identity.cluster_generation),
            boot: boot_id(),
            incarnation: DaemonIncarnation(u64::from_le_bytes(random()?)),
            secret: PulseSecret::from(trust.keys.pulse_secret()),
            timing: default_timing(),
            listen: ports::addresses(&peer_listeners)?,
        },
        ca_file: paths.ca,
        password_file,
        tasks: tasks.clone(),
    })?;
    for listener in peer_listeners {
        tasks.spawn("peer port", peer::serve(listener, Arc::clone(&tls), node.peer_service()));
    }
    serve_api(config, &trust, &tls, &node, api_listeners, tasks).await?;
    if let Begin::Start { options, .. } = &begin {
        let timeline = found::data_timeline(&programs, &layout).await?;
        found::found(config, &identity, &trust, &consensus, options, timeline).await?;
    }
    Begin::forget(&config.data_dir).context("note that this node has begun")?;
    notify_supervisor(&[sd_notify::NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tasks.spawn("watchdog", feed_watchdog(node.rounds(), limit));
    }

    let ended = tokio::select! {
        ended = until_stopped(&node, tasks) => ended,
        () = mend::until_a_start_mends_raft(consensus.leadership(), &raft_folder) => Ended::Failed,
    };
    notify_supervisor(&[sd_notify::NotifyState::Stopping]);
    if let Ended::InOrder = ended {
        tracing::info!("stopping in order: the active role is handed over, then PostgreSQL stops");
        node.hand_over(HAND_OVER_LIMIT).await;
        if guard_program().is_some() {
            // this daemon has started it, so nobody else will end it
            node.end_guard();
        }
    }
    node.stop_pulses();
    node.note_log().await;
    consensus.shutdown().await;
    match ended {
        Ended::Failed => anyhow::bail!("a part of the daemon failed; it ends so that its supervisor starts it anew"),
        Ended::InOrder | Ended::Restart => Ok(()),
    }
}

enum Ended {
    /// The node is to stop: role and PostgreSQL too.
    InOrder,
    /// The daemon alone ends; guard and PostgreSQL go on.
    Restart,
    /// A task has panicked, or Raft has stopped.
    Failed,
}

async fn until_stopped(node: &Node, tasks: &Tasks) -> Ended {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be received");
        return Ended::Failed;
    };
    tokio::select! {
        _ = terminate.recv() => if is_being_restarted().await { Ended::Restart } else { Ended::InOrder },
        _ = interrupt.recv() => Ended::InOrder,
        hands_over = node.stop_asked() => if hands_over { Ended::InOrder } else { Ended::Restart },
        () = tasks.failed() => Ended::Failed,
    }
}

/// Whether the pending job of this daemon's unit is a restart: then the role stays where it is.
async fn is_being_restarted() -> bool {
    if std::env::var_os("INVOCATION_ID").is_none() {
        return false;
    }
    let asked = tokio::process::Command::new("systemctl")
        .args(["list-jobs", "--no-legend", "hasup.service"])
        .env_remove("NOTIFY_SOCKET")
        .output();
    match tokio::time::timeout(Duration::from_secs(2), asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == "restart"),
        _ => false,
    }
}

fn notify_supervisor(states: &[sd_notify::NotifyState<'_>]) {
    // without a supervisor that listens there is nobody to tell
    let _ = sd_notify::notify(states);
}

/// Tells the supervisor that the control loop goes round for as long as it does: a hung daemon is killed and started anew, which
/// costs nothing, while PostgreSQL under a hung one is lost at the end of the lease.
async fn feed_watchdog(mut rounds: watch::Receiver<u64>, limit: Duration) {
    while rounds.changed().await.is_ok() {
        notify_supervisor(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(limit / 4).await;
    }
}

async fn serve_api(
    config: &Config,
    trust: &NodeTrust,
    tls: &Arc<TlsContext>,
    node: &Node,
    listeners: Vec<TcpListener>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let token = hex(&*trust.cluster_secret.derive("hasup api token"));
    let token_file = config.data_dir.join("api.token");
    write_durably(&token_file, token.as_bytes(), 0o600).context("write the token of the API")?;
    let balancer = match &config.balancer {
        Some(balancer) => {
            let password = std::fs::read_to_string(&balancer.password_file).with_context(|| {
                format!("read the password of load balancers, {}", balancer.password_file.display())
            })?;
            Some(BasicCredentials { user: balancer.user.clone(), password: Secret::new(password.trim().to_owned()) })
        }
        None => None,
    };
    let api = Api::new(node.handle(), Access { api_token: Some(Secret::new(token)), balancer });
    let admin = http::bind_admin_socket(&config.admin_socket()).await.context("open the admin socket")?;
    tasks.spawn("admin socket", http::serve_admin(admin, api.clone(), tasks.stop_token()));
    for listener in listeners {
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let server = (!is_local).then(|| tls.api_server());
        let serving = http::serve_tcp(listener, server, api.clone(), tasks.stop_token());
        tasks.spawn("API port", log_end(serving));
    }
    Ok(())
}

async fn log_end(serving: impl Future<Output = Result<(), http::ServeError>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "the API port is closed");
    }
}

/// Returns the nearest folder on the way to `path` that is there: where the database will lie, its disk is.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

fn layout(config: &Config) -> Layout {
    Layout { data_dir: config.data_dir.clone(), pgdata: config.postgres.data_dir.clone(), owner: None }
}

fn static_settings(config: &Config) -> StaticSettings {
    let paths = TrustPaths::below(&config.data_dir);
    let listen = config.postgres.listen.iter();
    StaticSettings {
        port: config.postgres.port,
        listen_addresses: listen.map(|host| host.to_string().trim_matches(['[', ']']).to_owned()).collect(),
        logical: false,
        ssl: SslPaths { certificate: paths.certificate, key: paths.key, ca: paths.ca },
        wal_keep_mib: WAL_KEEP_MIB,
        // a disk that cannot be looked at gets the least
        slot_keep_mib: keep_limit_mib(existing(&config.postgres.data_dir), WAL_KEEP_MIB).unwrap_or(WAL_KEEP_MIB),
        local_user: user_name(),
        extra: config.postgres.settings.clone(),
    }
}

/// Looks at the database that the first node of a cluster is to adopt; touches nothing.
///
/// # Errors
/// All that stands against it.
pub fn inspect_adoption(config: &Config, owner: u32) -> Result<Adoption, AdoptRefused> {
    adopt::inspect(&layout(config), config.postgres.bin_dir.as_deref(), &static_settings(config), owner)
}

/// Refuses a database that a node would find, and that neither it has made nor anybody asked it to adopt.
///
/// # Errors
/// There is one.
pub fn refuse_foreign_database(config: &Config) -> Result<(), AdoptRefused> {
    found::refuse_foreign(&layout(config))
}

fn programs(config: &Config) -> anyhow::Result<Programs> {
    let version_file = config.postgres.data_dir.join("PG_VERSION");
    let wanted = std::fs::read_to_string(version_file).ok().and_then(|text| text.trim().parse().ok());
    Ok(Programs::find(config.postgres.bin_dir.as_deref(), wanted)?)
}

/// All nodes derive the application's password from the cluster's secret, so that every node can hand it out.
fn write_password(path: &Path, trust: &NodeTrust) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let password = hex(&trust.cluster_secret.derive("application password app")[..16]);
    write_durably(path, password.as_bytes(), 0o600).context("write the application's password")
}

/// Under systemd the guard has a unit of its own, which starts it.
fn guard_program() -> Option<std::path::PathBuf> {
    if std::env::var_os("INVOCATION_ID").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some() {
        return None;
    }
    std::env::current_exe().ok()
}

fn user_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok().flatten().map_or_else(|| "postgres".to_owned(), |user| user.name)
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the operating system gives no randomness"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every host under which this node's certificate must hold.
fn certificate_hosts(config: &Config) -> Vec<String> {
    let mut hosts: Vec<String> = vec![config.host.to_string(), config.postgres.advertise.to_string()];
    hosts.extend(config.peer.advertise.iter().chain(&config.api.advertise).map(ToString::to_string));
    hosts.iter().map(|address| host_of(address).to_owned()).collect()
}

/// Runs the guard until it is told to stop. Called on the process's first thread, before any other exists.
///
/// # Errors
/// Another guard runs for the same data directory, or it cannot be prepared.
pub fn guard(config: &Config) -> anyhow::Result<()> {
    let options = GuardOptions { data_dir: config.data_dir.clone(), pgdata: config.postgres.data_dir.clone() };
    guard::run(&options).context("run the guard")
}

/// Turns this process into PostgreSQL, bound to the guard's life. Returns only on failure.
///
/// # Errors
/// The program cannot be run.
pub fn exec_postgres(args: &[OsString]) -> anyhow::Result<()> {
    Err(guard::exec::run(args).into())
}
