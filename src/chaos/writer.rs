//! The client by which write gaps are measured and lost rows found: `hasup chaos writer`, a process of its own.
//!
//! It inserts one unique row each 5 ms, or a batch of them in one statement, and looks at all nodes at once for the writable one, each again 10 ms after its last
//! answer. A session with a node that answers "read-only" is kept and asked again, as a connection pool does: a fresh TLS
//! login each 10 ms at every standby would take a measurable share of a small machine from the failover under test.
//!
//! An insert without an answer for 500 ms is not given up, for it may still be acknowledged; the other nodes are looked at
//! meanwhile, and once one of them is writable the insert's fate is unknown.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::client::{Access, ClientError, Session, Target};
use super::dsn::{Dsn, SslMode};
use super::journal::{Found, Journal, Line, Look, Outcome, Row, Span};
use super::recorder::{Lines, Recorder};
use crate::sys::clock::boot_now;
use crate::types::{BootTime, Timeline};

/// Between two looks at the same node.
const RETRY: Duration = Duration::from_millis(10);
/// How long the answer to a look may take.
const LOOK_LIMIT: Duration = Duration::from_millis(500);
/// An insert without an answer for so long makes the client look at the other nodes.
const PATIENCE: Duration = Duration::from_millis(500);
/// No insert waits longer, even where no other node takes writes.
const INSERT_LIMIT: Duration = Duration::from_secs(60);

/// The timeline that the primary writes on, from the name of its present WAL file: open to every role, correct from the
/// promotion on.
const TIMELINE: &str = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";

/// Inserts unique rows and writes down what became of each
#[derive(Debug, Clone, clap::Args)]
pub struct WriterArgs {
    /// Nodes to try, as [name=]host:port[,…]; IPv6 addresses in brackets
    #[arg(long, value_delimiter = ',', required_unless_present = "dsn_file")]
    pub targets: Vec<String>,
    /// File with a connection string as `hasup dsn` prints it, for user, database, password file and CA
    #[arg(long)]
    pub dsn_file: Option<PathBuf>,
    /// The journal to append to
    #[arg(long)]
    pub journal: PathBuf,
    /// Name that begins every key; unique among the writers of a run
    #[arg(long, default_value = "w1")]
    pub id: String,
    /// Role to connect as
    #[arg(long, required_unless_present = "dsn_file")]
    pub user: Option<String>,
    /// Database to connect to
    #[arg(long)]
    pub database: Option<String>,
    /// File with the role's password, bare or in libpq's form
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// disable, prefer, require, verify-ca or verify-full
    #[arg(long)]
    pub sslmode: Option<SslMode>,
    /// CA certificates for verify-ca and verify-full
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Table for the rows, made when absent
    #[arg(long, default_value = "hasup_chaos")]
    pub table: String,
    /// Milliseconds between two inserts of one connection
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub interval_ms: u64,
    /// Rows of one insert: they stand or fall together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub batch: u64,
    /// Stop after so many rows were sent over each connection
    #[arg(long)]
    pub rows: Option<u64>,
    /// Connections that insert side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// Stop after so many seconds; without it, on SIGTERM or SIGINT
    #[arg(long)]
    pub seconds: Option<u64>,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

struct Plan {
    access: Access,
    targets: Vec<Target>,
    id: String,
    table: String,
    interval: Duration,
    batch: u64,
    rows: u64,
    lines: Lines,
    stop: CancellationToken,
}

/// Runs the writer until its time is over or a signal ends it; prints a summary as one JSON line. Returns the exit status.
///
/// # Errors
/// When an argument is wrong, or the journal cannot be written.
pub async fn run(args: WriterArgs) -> anyhow::Result<u8> {
    if args.with_parent {
        die_with_parent()?;
    }
    let (access, targets) = reach(&args)?;
    if !is_plain(&args.table) || !is_plain(&args.id) {
        bail!("--table and --id take letters, digits, - and _ alone");
    }
    let (recorder, lines) =
        Recorder::open(&args.journal).with_context(|| format!("open the journal {}", args.journal.display()))?;
    let stop = CancellationToken::new();
    let plan = Arc::new(Plan {
        access,
        targets,
        id: args.id,
        table: args.table,
        interval: Duration::from_millis(args.interval_ms),
        batch: args.batch,
        rows: args.rows.unwrap_or(u64::MAX),
        lines,
        stop: stop.clone(),
    });
    let mut writers = JoinSet::new();
    for number in 1..=args.connections {
        writers.spawn(write(Arc::clone(&plan), number));
    }
    drop(plan);
    tokio::select! {
        ended = wait_for_end(args.seconds.map(Duration::from_secs), &recorder) => ended?,
        () = async { while writers.join_next().await.is_some() {} } => {}
    }
    stop.cancel();
    while writers.join_next().await.is_some() {}
    recorder
        .finish()
        .context("the journal could not be written, so this run proves nothing; free space and run again")?;
    println!("{}", summary(&args.journal)?);
    Ok(0)
}

/// Asks the kernel to end this process by SIGTERM when the thread that started it ends.
///
/// # Errors
/// When the kernel refuses.
pub fn die_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("tie this process to the one that started it")
}

/// Resolves when `limit` has passed, SIGTERM or SIGINT came, or the journal failed.
///
/// # Errors
/// When signals cannot be awaited.
pub async fn wait_for_end(limit: Option<Duration>, recorder: &Recorder) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("await SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("await SIGINT")?;
    let over = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let failed = async {
        while !recorder.has_failed() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = over => {}
        () = failed => {}
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

fn summary(path: &std::path::Path) -> anyhow::Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the journal {}", path.display()))?;
    let journal = Journal::parse(&text)?;
    let gap = journal.longest_gap(BootTime(0), BootTime(u64::MAX));
    Ok(serde_json::json!({
        "attempts": journal.rows.len(),
        "acknowledged": journal.count(Outcome::Ok, BootTime(0)),
        "failed": journal.count(Outcome::Failed, BootTime(0)),
        "unknown": journal.count(Outcome::Unknown, BootTime(0)),
        "longest_gap_ms": gap.map(|gap| super::millis(gap.length())),
        "client_ms": gap.map(|gap| super::millis(gap.client)),
    }))
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn reach(args: &WriterArgs) -> anyhow::Result<(Access, Vec<Target>)> {
    let dsn = match &args.dsn_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            Some(Dsn::parse(&text)?)
        }
        None => None,
    };
    let targets = match (&dsn, args.targets.is_empty()) {
        (Some(dsn), true) => dsn.hosts.iter().map(|(host, port)| target(None, host, *port)).collect(),
        _ => args.targets.iter().map(|text| parse_target(text)).collect::<Result<Vec<_>, _>>()?,
    };
    let user = args.user.clone().or(dsn.as_ref().map(|dsn| dsn.user.clone())).context("--user is missing")?;
    let database =
        args.database.clone().or(dsn.as_ref().map(|dsn| dsn.database.clone())).unwrap_or_else(|| user.clone());
    let mode = args.sslmode.or(dsn.as_ref().map(|dsn| dsn.ssl_mode)).unwrap_or(SslMode::Prefer);
    let ca = args.ca.clone().or(dsn.as_ref().and_then(|dsn| dsn.ca.clone()));
    let file = args.password_file.clone().or(dsn.as_ref().and_then(|dsn| dsn.password_file.clone()));
    let password = match file {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let hosts = targets.iter().map(|target| (target.host.clone(), target.port)).collect();
            let place = Dsn {
                hosts,
                user: user.clone(),
                database: database.clone(),
                ssl_mode: mode,
                ca: None,
                password_file: None,
                password: None,
            };
            Some(place.password_in(&text).with_context(|| format!("{} has no password for {user}", path.display()))?)
        }
        None => dsn.and_then(|dsn| dsn.password),
    };
    let access = Access::new(&user, &database, password.as_deref(), mode, ca.as_deref())?;
    Ok((access, targets))
}

/// Parses `[name=]host:port`.
///
/// # Errors
/// When it is none.
pub fn parse_target(text: &str) -> anyhow::Result<Target> {
    let wrong = || format!("`{text}` is no target; use [name=]host:port");
    let (name, place) = text.split_once('=').map_or((None, text), |(name, place)| (Some(name), place));
    let (host, port) = place.rsplit_once(':').with_context(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || text.contains(char::is_whitespace) || name == Some("") {
        bail!(wrong());
    }
    Ok(target(name, host, port.parse().ok().with_context(wrong)?))
}

fn target(name: Option<&str>, host: &str, port: u16) -> Target {
    let name = name.map_or_else(|| format!("{host}:{port}"), str::to_owned);
    Target { name, host: host.to_owned(), port }
}

/// One connection's life: find the writable node, insert until something is wrong, again.
async fn write(plan: Arc<Plan>, number: u32) {
    let mut ticks = interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0_u64;
    let mut current: Option<(usize, Session)> = None;
    while !plan.stop.is_cancelled() && sent < plan.rows {
        let (node, session) = match current.take() {
            Some(current) => current,
            None => tokio::select! {
                found = find_writable(&plan, None) => found,
                () = plan.stop.cancelled() => return,
            },
        };
        tokio::select! {
            _ = ticks.tick() => {}
            () = plan.stop.cancelled() => return,
        }
        let batch = sent..plan.rows.min(sent.saturating_add(plan.batch));
        sent = batch.end;
        let keys: Vec<String> = batch.map(|before| format!("{}.{number}.{}", plan.id, before + 1)).collect();
        current = insert(&plan, &keys, node, session).await;
    }
}

/// Inserts the rows of `keys` by one statement, writes down what became of them, and returns the session to go on with; none to look for another.
async fn insert(plan: &Plan, keys: &[String], node: usize, session: Session) -> Option<(usize, Session)> {
    let name = &plan.targets[node].name;
    let values: Vec<String> = keys.iter().map(|key| format!("('{key}', '{name}', {TIMELINE})")).collect();
    let values = values.join(", ");
    let sql = format!("INSERT INTO {} (key, node, timeline) VALUES {values} RETURNING timeline", plan.table);
    let sent = boot_now();
    let answer = {
        let inserted = pin!(session.value(&sql, INSERT_LIMIT));
        match select(inserted, pin!(sleep(PATIENCE))).await {
            Either::Left((answer, _)) => Ok(answer),
            Either::Right(((), inserted)) => {
                let elsewhere = pin!(find_writable(plan, Some(node)));
                let stopped = pin!(plan.stop.cancelled());
                match select(inserted, select(elsewhere, stopped)).await {
                    Either::Left((answer, _)) => Ok(answer),
                    Either::Right((Either::Left((found, _)), _)) => Err(Some(found)),
                    Either::Right((Either::Right(_), _)) => Err(None),
                }
            }
        }
    };
    let span = Span { sent, answered: boot_now() };
    let row = |timeline, outcome, detail: String| {
        for key in keys {
            let (key, node, detail) = (key.clone(), name.clone(), detail.clone());
            plan.lines.put(Line::Row(Row { span, key, node, timeline, outcome, detail }));
        }
    };
    match answer {
        Ok(Ok(timeline)) if session.take_wait_cancelled() => {
            row(
                timeline.parse().ok().map(Timeline),
                Outcome::Unknown,
                "its wait for the standbys was cancelled".into(),
            );
            None
        }
        Ok(Ok(timeline)) => {
            row(timeline.parse().ok().map(Timeline), Outcome::Ok, String::new());
            Some((node, session))
        }
        Ok(Err(error)) => {
            row(None, fate(&error), error.to_string());
            None
        }
        Err(found) => {
            row(None, Outcome::Unknown, "no answer".into());
            found
        }
    }
}

/// Tells whether an insert that ended in `error` may have been committed.
fn fate(error: &ClientError) -> Outcome {
    let ClientError::Postgres(error) = error else { return Outcome::Unknown };
    match error.as_db_error() {
        // A plain error rolls the statement back before it is told, unless it says that it does not know.
        Some(db) if db.severity() == "ERROR" && *db.code() != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN => {
            Outcome::Failed
        }
        // The session was ended: perhaps between the commit and its acknowledgement.
        _ => Outcome::Unknown,
    }
}

/// Looks at every node but `except` at once until one is writable, and returns it with an open session.
async fn find_writable(plan: &Plan, except: Option<usize>) -> (usize, Session) {
    let mut looks: FuturesUnordered<_> =
        (0..plan.targets.len()).filter(|node| Some(*node) != except).map(|node| watch(plan, node)).collect();
    match looks.next().await {
        Some(found) => found,
        None => std::future::pending().await,
    }
}

/// Looks at one node until it is writable.
async fn watch(plan: &Plan, node: usize) -> (usize, Session) {
    let target = &plan.targets[node];
    let mut kept: Option<Session> = None;
    loop {
        let sent = boot_now();
        let session = match kept.take() {
            Some(session) => Ok(session),
            None => plan.access.connect(target).await,
        };
        let looked = match session {
            Ok(session) => prepare(plan, &session).await.map(|writable| (session, writable)),
            Err(error) => Err(error),
        };
        let span = Span { sent, answered: boot_now() };
        let look = |found, detail| {
            plan.lines.put(Line::Look(Look { span, node: target.name.clone(), found, detail }));
        };
        match looked {
            Ok((session, true)) => {
                look(Found::Writable, String::new());
                return (node, session);
            }
            Ok((session, false)) => {
                look(Found::ReadOnly, String::new());
                kept = Some(session);
            }
            Err(error @ ClientError::Silent { .. }) => look(Found::Unreachable, error.to_string()),
            Err(error) => look(Found::Refused, error.to_string()),
        }
        sleep(RETRY).await;
    }
}

/// Returns whether the node is writable, and has the table then.
async fn prepare(plan: &Plan, session: &Session) -> Result<bool, ClientError> {
    if !session.is_writable(LOOK_LIMIT).await? {
        return Ok(false);
    }
    let there = format!("SELECT to_regclass('{}') IS NOT NULL", plan.table);
    if session.value(&there, LOOK_LIMIT).await? != "t" {
        let table =
            format!("CREATE TABLE IF NOT EXISTS {} (key text PRIMARY KEY, node text, timeline int)", plan.table);
        session.column(&table, INSERT_LIMIT).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_names_hosts_and_ports() {
        let target = parse_target("n1=127.0.0.1:5432").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("n1", "127.0.0.1", 5432));
        let target = parse_target("[::1]:1").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("::1:1", "::1", 1));
        for bad in ["", "a", "a:", "a:x", "=a:1", ":1", "a b:1"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_server_s_own_plain_error_is_a_certain_failure() {
        let silent = ClientError::Silent { what: "answer", limit: PATIENCE };
        assert_eq!(fate(&silent), Outcome::Unknown);
        assert_eq!(fate(&ClientError::Unexpected(String::new())), Outcome::Unknown);
    }
}
