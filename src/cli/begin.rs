//! `start`, `join`, `run`, `guard`: what happens before the daemon, and what is printed once it is up.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, geteuid};
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep};

use super::args::{BeginFlags, Cli, Command, NodeFlags};
use super::local::{Local, NODE_FILE, REMEMBERED, is_left_over, make_folders, own_node_file, owner, remove_left_over};
use super::progress::ProgressLine;
use super::show::Out;
use super::{CliError, cluster, systemd};
use crate::app::begin::{self, Failure, FailureKind};
use crate::app::{self, Begin};
use crate::config::{self, Address, Config, Secret, Sources};
use crate::ha::state::NodeState;
use crate::http::client::{Client, Target};
use crate::node::error::{ErrorCode, HandleError};
use crate::node::handle::{Answer, Request};
use crate::node::options;
use crate::node::status::{RaftRole, Status};
use crate::peer::join::TokenText;
use crate::postgres::adopt::Adoption;
use crate::sys::fs::PROBE;

/// How long the token that `start` prints admits nodes.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long `start` waits for PostgreSQL to take writes: initdb and a first start, on a slow disk.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How long the server in an adopted directory may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// How often a node that comes up is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A process that stays, with all that was decided before its first thread.
#[derive(Debug)]
pub enum Daemon {
    /// The node itself.
    Node {
        /// Its settings.
        config: Config,
        /// How it begins.
        begin: Begin,
        /// Whether to print how to go on once it is up, and as JSON or not.
        announce: Option<bool>,
        /// What to log of the settings.
        notes: Vec<String>,
    },
    /// The node under systemd: only started and waited for here.
    Service {
        /// Its settings.
        config: Config,
        /// How it begins.
        begin: Begin,
        /// As for [`Daemon::Node`].
        announce: Option<bool>,
    },
    /// The guard.
    Guard {
        /// The node's settings.
        config: Config,
    },
    /// PostgreSQL under the guard.
    ExecPostgres {
        /// The words after the command.
        words: Vec<OsString>,
    },
}

/// Returns the process that the command is to become; nothing for one that just answers.
///
/// For `start` and `join` the node's folders are made here, and what was asked for is kept in them.
///
/// # Errors
/// The settings have problems, the node has begun before, or its folders cannot be made.
pub fn prepare_daemon(cli: &Cli) -> Result<Option<Daemon>, CliError> {
    match &cli.command {
        Command::Start { node, begin, adopt, stop_running } => {
            let options = options::parse(&begin.options).map_err(|error| CliError::Usage(error.to_string()))?;
            let mut node = node.clone();
            let folder = adopt.as_ref().map(|folder| folder.trim_end_matches('/').to_owned());
            node.postgres_data_dir = folder.or(node.postgres_data_dir);
            let ask = || Ok(Begin::Start { options, adopt: adopt.is_some() });
            let running = if *stop_running { RunningServer::IsStopped } else { RunningServer::IsRefused };
            set_out(cli, &node, begin, running, ask).map(Some)
        }
        Command::Join { members, token, token_file, node, begin } => {
            let options = options::parse(&begin.options).map_err(|error| CliError::Usage(error.to_string()))?;
            let mut targets = Vec::new();
            for member in members {
                let address = Address::parse(member, 7400).map_err(|error| {
                    CliError::Usage(format!(
                        "{error}. Nothing was joined. Name members as host or host:port of their peer port"
                    ))
                })?;
                targets.push(address.to_string());
            }
            let ask =
                || Ok(Begin::Join { targets, token: join_token(token.as_deref(), token_file.as_deref())?, options });
            set_out(cli, node, begin, RunningServer::IsRefused, ask).map(Some)
        }
        Command::Run { node, .. } => {
            let local = Local::load(&cli.reach, node)?;
            let notes = local.notes();
            let config = local.config;
            make_folders(&config, owner(&config)?)?;
            let begin = Begin::load(&config.data_dir).context("see how the node begins")?;
            if begin == Begin::Run && !app::is_member(&config.data_dir) {
                let text = format!(
                    "{} holds no node, so nothing was started. Make a cluster by `hasup start`, or join one by `hasup join`",
                    config.data_dir.display()
                );
                return Err(CliError::Refused(text));
            }
            Ok(Some(Daemon::Node { config, begin, announce: None, notes }))
        }
        Command::Guard { node } => {
            let Local { config, .. } = Local::load(&cli.reach, node)?;
            make_folders(&config, owner(&config)?)?;
            Ok(Some(Daemon::Guard { config }))
        }
        Command::ExecPostgres(passed) => Ok(Some(Daemon::ExecPostgres { words: passed.words.clone() })),
        _ => Ok(None),
    }
}

/// What becomes of a server that runs in a database to adopt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunningServer {
    /// Nothing is touched.
    IsRefused,
    /// It is stopped in order, and started again by hasup.
    IsStopped,
}

/// Prepares `start` and `join`.
fn set_out(
    cli: &Cli,
    node: &NodeFlags,
    flags: &BeginFlags,
    running: RunningServer,
    ask: impl FnOnce() -> Result<Begin, CliError>,
) -> Result<Daemon, CliError> {
    if !flags.foreground && !systemd::is_here() {
        return Err(CliError::Usage(
            "there is no systemd here to run hasup. Nothing was started. Say --foreground, and let a supervisor of yours \
             keep `hasup run` going"
                .to_owned(),
        ));
    }
    let Local { config, sources, .. } = Local::load_to_begin(&cli.reach, node)?;
    let begin_before = Begin::load(&config.data_dir).context("see how the node began")?;
    if begin_before == Begin::Run && app::is_member(&config.data_dir) {
        let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let status = runtime.block_on(async {
            let target = Target::Admin(config.admin_socket());
            Client::new(vec![target], None, None).ok()?.status().await.ok()
        });
        return Err(CliError::Refused(has_begun(&config.data_dir, status.as_ref())));
    }
    let is_join = matches!(cli.command, Command::Join { .. });
    let was_join = matches!(begin_before, Begin::Join { .. });
    if app::is_member(&config.data_dir) && is_join != was_join {
        let text = format!(
            "{} holds a node that was to {} a cluster and did not come up. Nothing was changed. Repeat that command, or delete \
             it first by `hasup destroy`",
            config.data_dir.display(),
            if was_join { "join" } else { "start" }
        );
        return Err(CliError::Refused(text));
    }
    // an earlier try may have been killed at any point
    if !config.data_dir.join(REMEMBERED).exists()
        && begin_before == Begin::Run
        && let Some(found) = first_entry(&config.data_dir)
    {
        let text = format!(
            "{} is not empty (it holds {found}). Nothing was changed. Empty it or name another by --data-dir",
            config.data_dir.display()
        );
        return Err(CliError::Refused(text));
    }
    let owner = owner(&config)?;
    if !flags.foreground {
        systemd::check(&config, owner)?;
    }
    let begin = ask()?;
    let adoption = match &begin {
        // an interrupted start goes on with what it took over
        _ if app::is_member(&config.data_dir) => None,
        Begin::Start { adopt: true, .. } => Some(adoptable(&config, owner, running)?),
        Begin::Start { .. } => {
            app::refuse_foreign_database(&config).map_err(|error| CliError::Refused(error.to_string()))?;
            None
        }
        Begin::Join { .. } | Begin::Run => None,
    };
    let mut remembered = format!(
        "# What this node was told when it began. A setting that has been edited in the node file since counts as that says.\n{}",
        config::render_remembered(&sources)?
    );
    if !flags.foreground && write_node_file(&config, &sources)? {
        "# What this node was told when it began is in the node file.\n".clone_into(&mut remembered);
    }
    make_folders(&config, owner)?;
    Failure::forget(&config.data_dir).context("forget how the try before ended")?;
    begin.save(&config.data_dir, owner).context("keep what was asked for")?;
    begin::keep(&config.data_dir.join(REMEMBERED), remembered.as_bytes(), 0o644, owner)
        .context("remember the flags")?;
    if let Some(Err(refused)) = adoption.map(|adoption| adoption.stop_server(STOP_LIMIT)) {
        Begin::withdraw(&config.data_dir, owner).context("forget what was asked for")?;
        if !flags.foreground {
            remove_left_over()?;
        }
        return Err(CliError::Refused(refused.to_string()));
    }
    let announce = (!flags.no_wait).then_some(cli.reach.json);
    Ok(if flags.foreground {
        Daemon::Node { config, begin, announce, notes: Vec::new() }
    } else {
        Daemon::Service { config, begin, announce }
    })
}

/// Looks whether the database can be adopted, and says what that will change.
fn adoptable(config: &Config, owner: Option<(Uid, Gid)>, running: RunningServer) -> Result<Adoption, CliError> {
    let user = owner.map_or_else(geteuid, |(user, _)| user);
    let found = app::inspect_adoption(config, user.as_raw()).map_err(|error| CliError::Refused(error.to_string()))?;
    if let Some(postmaster) = found.postmaster {
        if running == RunningServer::IsRefused {
            let text = format!(
                "a server runs in {} (process {postmaster}). Nothing was touched. To adopt it, hasup stops it in order and starts it \
                 again under its guard: clients lose their connections for some seconds. Allow that by --stop-running, or stop it \
                 yourself first",
                config.postgres.data_dir.display()
            );
            return Err(CliError::Refused(text));
        }
        app::ports::require_own(config).map_err(|error| as_ended(error.into()))?;
    }
    let folder = config.postgres.data_dir.display();
    let mut lines =
        vec![format!("adopting PostgreSQL {} in {folder}; its roles and databases stay as they are", found.major)];
    if let Some(postmaster) = found.postmaster {
        lines.push(format!("its server (process {postmaster}) is stopped in order and started again by hasup"));
    }
    lines.extend(found.notes.iter().cloned());
    for line in lines {
        writeln!(std::io::stderr(), "{line}").context("write to standard error")?;
    }
    Ok(found)
}

/// Says that a node has begun in `data_dir` before, and what it is by its own `status`, where it answers.
fn has_begun(data_dir: &Path, status: Option<&Status>) -> String {
    match status {
        Some(Status { not_a_member: Some(told), .. }) => format!("{told}. Nothing was changed"),
        Some(Status { me, state, nodes, .. }) => {
            let others = match nodes.len() {
                0 | 1 => "a cluster of its own".to_owned(),
                nodes => format!("a cluster of {nodes}"),
            };
            format!(
                "{me} runs here already, as {state} in {others}. Nothing was changed. `hasup status` shows the cluster. To begin anew here, \
                 take the node out by `hasup leave` and delete it by `hasup destroy`"
            )
        }
        None => format!(
            "{} already holds a node, and that does not answer. Nothing was changed. Where it does not run, `systemctl start hasup` or \
             `hasup run` runs it; where it does, its log tells why it is silent. `hasup destroy` deletes it",
            data_dir.display()
        ),
    }
}

fn first_entry(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // the last three are what a try that was killed leaves of files it was about to put in place, or to remove
    names.into_iter().find(|name| !["lost+found", "begin.new", "node.new", PROBE].contains(&name.as_str()))
}

/// Sees to it that the unit, which names no flags, finds the same folders; returns whether the flags were written to the
/// node file.
fn write_node_file(config: &Config, sources: &Sources) -> Result<bool, CliError> {
    let path = Path::new(NODE_FILE);
    if !path.exists() || fs::read_to_string(path).is_ok_and(|text| is_left_over(&text)) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        // A file named by --config is copied whole; the flags beside it stay remembered in the data directory.
        let named = sources.files.first();
        let text = named.map_or_else(|| config::render(sources), |layer| Ok(layer.text.clone()))?;
        begin::keep(path, own_node_file(&text).as_bytes(), 0o644, None).context("write the node file")?;
        return Ok(named.is_none());
    }
    if let Some(other) = sources.files.iter().find(|layer| layer.name != NODE_FILE) {
        let text = format!(
            "the unit reads {NODE_FILE}, which exists, and this command {}. Nothing was started. Move one over the other, or \
             say --foreground",
            other.name
        );
        return Err(CliError::Refused(text));
    }
    let alone = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let alone =
        Sources { files: vec![config::Layer { name: NODE_FILE.to_owned(), text: alone }], ..Sources::default() };
    for (key, wanted, default) in
        [("data_dir", &config.data_dir, "/var/lib/hasup"), ("run_dir", &config.run_dir, "/run/hasup")]
    {
        let there = config::peek(&alone, key).unwrap_or_else(|| default.to_owned());
        if Path::new(&there) != wanted {
            let text = format!(
                "{NODE_FILE} says {key} = {there}, and this command {}. Nothing was started. Make them agree",
                wanted.display()
            );
            return Err(CliError::Refused(text));
        }
    }
    Ok(false)
}

/// Returns the token from wherever it was given, at last from the terminal.
fn join_token(flag: Option<&str>, file: Option<&Path>) -> Result<Secret, CliError> {
    let text = match (flag, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => fs::read_to_string(path).map_err(|error| {
            CliError::Usage(format!(
                "the join token in {} cannot be read ({error}). Nothing was joined",
                path.display()
            ))
        })?,
        (None, None) => prompt("Join token: ")?,
    };
    match text.trim() {
        "" => Err(CliError::Usage(
            "no join token was given. Nothing was joined. Make one by `hasup token create` on a member, and give it by \
             --token-file, HASUP_TOKEN or the prompt"
                .to_owned(),
        )),
        token => match token.parse::<TokenText>() {
            Ok(_) => Ok(Secret::new(token)),
            Err(error) => Err(CliError::Usage(error.to_string())),
        },
    }
}

/// Reads a line without showing it where standard input is a terminal.
fn prompt(question: &str) -> Result<String, CliError> {
    let stdin = std::io::stdin();
    let shown = stdin.is_terminal().then(|| tcgetattr(&stdin)).transpose().context("look at the terminal")?;
    if let Some(shown) = &shown {
        write!(std::io::stderr(), "{question}").context("ask for the join token")?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSANOW, &hidden).context("hide what is typed")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(shown) = &shown {
        tcsetattr(&stdin, SetArg::TCSANOW, shown).context("show again what is typed")?;
        // the line's end was not shown either
        writeln!(std::io::stderr()).context("end the question's line")?;
    }
    read.context("read the join token")?;
    Ok(line)
}

/// Runs the node until it ends, or under systemd until it is up.
///
/// # Errors
/// The node could not begin, or ended in a way that its supervisor should know.
pub async fn run_daemon(daemon: Daemon) -> Result<(), CliError> {
    match daemon {
        Daemon::Node { config, begin, announce, notes } => {
            notes.iter().for_each(|note| tracing::info!("{note}"));
            let told = async {
                if let Some(json) = announce
                    && let Err(error) = announce_up(&config, &begin, Out::new(json)).await
                {
                    tracing::error!(%error, "the node runs on, but what it should print is not known");
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = app::run(config.clone(), begin.clone()) => ended.map_err(as_ended),
                () = told => Ok(()),
            }
        }
        Daemon::Service { config, begin, announce } => {
            systemd::start(&config, owner(&config)?)?;
            let Some(json) = announce else { return Ok(()) };
            tokio::select! {
                told = announce_up(&config, &begin, Out::new(json)) => told,
                error = until_failed(&config) => {
                    // Whoever is told that it failed must not find it running later.
                    systemd::retire()?;
                    if matches!(error, CliError::Refused(_)) {
                        remove_left_over()?;
                    }
                    Err(error)
                }
            }
        }
        Daemon::Guard { config } => Ok(app::guard(&config)?),
        Daemon::ExecPostgres { words } => Ok(app::exec_postgres(&words)?),
    }
}

/// Returns an error of the node, with the exit code that it deserves.
fn as_ended(error: anyhow::Error) -> CliError {
    match FailureKind::of(&error) {
        FailureKind::Other => CliError::Failed(error),
        kind => as_failed(kind, format!("{error:#}")),
    }
}

fn as_failed(kind: FailureKind, text: String) -> CliError {
    match kind {
        FailureKind::Refused => CliError::Refused(text),
        FailureKind::Unknown => HandleError::new(ErrorCode::Unknown, text).into(),
        FailureKind::Other => CliError::Failed(anyhow::Error::msg(text)),
    }
}

/// Waits until the node under systemd could not begin, and returns why. Never ends where it did begin.
async fn until_failed(config: &Config) -> CliError {
    loop {
        sleep(LOOK_EVERY).await;
        match Failure::load(&config.data_dir) {
            Ok(Some(failure)) => return as_failed(failure.kind, failure.message),
            Ok(None) => {}
            Err(error) => return CliError::Failed(error.into()),
        }
        if app::is_member(&config.data_dir) {
            continue;
        }
        match systemd::keeps_failing() {
            Ok(false) => {}
            Ok(true) => {
                let text = "the daemon ends again and again. The node has not begun and is not tried any more. \
                            `journalctl -u hasup -n 50` tells why";
                return CliError::Failed(anyhow::Error::msg(text));
            }
            Err(error) => return error,
        }
    }
}

/// Waits until the node is up and prints how to go on.
async fn announce_up(config: &Config, begin: &Begin, out: Out) -> Result<(), CliError> {
    let client =
        Client::new(vec![Target::Admin(config.admin_socket())], None, None).context("prepare to ask the node")?;
    let is_start = matches!(begin, Begin::Start { .. });
    let began = Instant::now();
    let (mut told, mut progress) = (Vec::new(), ProgressLine::default());
    let status = loop {
        if let Ok(status) = client.status().await {
            if if is_start { status.active_ready } else { has_joined(&status) } {
                break status;
            }
            if status.waiting_on != told {
                told.clone_from(&status.waiting_on);
                progress.end()?;
                for line in &told {
                    writeln!(std::io::stderr(), "{}: {line}", status.state).context("write to standard error")?;
                }
            }
            progress.tell(status.progress.as_ref())?;
        }
        // A join copies the whole database: only a person can say how long that may take.
        if is_start && began.elapsed() > START_LIMIT {
            let text = "PostgreSQL takes no writes yet. The node goes on trying. Look at `hasup status` and the log";
            return Err(HandleError::new(ErrorCode::Unknown, text).into());
        }
        sleep(LOOK_EVERY).await;
    };
    progress.end()?;
    let name = config.node_name.as_str();
    if !is_start {
        let raft = status.node(&status.me).map_or(RaftRole::Unknown, |node| node.raft);
        let role = raft.as_str();
        let warnings = status.postgres.warnings.clone().unwrap_or_default();
        let mut text = format!("{name} has joined: {}, Raft {role}", status.state);
        if raft == RaftRole::Learner {
            let nodes = status.nodes.len();
            let fewer = nodes.saturating_sub(1);
            text += &format!("\nIt has no vote, as {nodes} nodes have no better majority than {fewer}: add one more");
        }
        warnings.iter().for_each(|warning| text += &format!("\nwarning: {warning}"));
        return out.answer(&json!({"node": name, "state": status.state, "raft": role, "warnings": warnings}), &text);
    }
    let other = || HandleError::new(ErrorCode::Internal, "The node gave another answer than was asked for");
    let Answer::Dsn(dsn) = client.request(&Request::Dsn).await? else { return Err(other().into()) };
    let Answer::Token(token) = client.request(&Request::TokenCreate { ttl: TOKEN_TTL }).await? else {
        return Err(other().into());
    };
    let peer = config.peer.advertise.first().map(ToString::to_string).unwrap_or_default();
    let authority = token.join_token.expose().parse::<TokenText>().context("read the join token")?.fingerprint();
    let (value, text) = cluster::started(name, &peer, &dsn, &token, authority);
    out.answer(&value, &text)
}

/// Returns whether a joining node streams and has its final Raft role: of an even number of members, one stays a learner.
fn has_joined(status: &Status) -> bool {
    let Some(me) = status.node(&status.me) else { return false };
    let serves = match status.state {
        NodeState::Witness | NodeState::Active => true,
        // whether its libraries sort as the active node's do is part of the answer
        NodeState::Standby => status.postgres.is_streaming && status.postgres.warnings.is_some(),
        _ => false,
    };
    let is_voter = matches!(me.raft, RaftRole::Leader | RaftRole::Follower);
    let may_stay_learner = me.raft == RaftRole::Learner && status.nodes.len().is_multiple_of(2);
    serves && (is_voter || may_stay_learner)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::show::tests::example;

    /// A token right in form.
    const TOKEN: &str = "hasup1-00000000-00000000000000000000000000000000-0000000000000000000000000000000000000000000000000000000000000000";

    fn prepare(folder: &Path, words: &str) -> Result<Begin, CliError> {
        prepared(folder, words).map(|(_, begin)| begin)
    }

    fn prepared(folder: &Path, words: &str) -> Result<(Config, Begin), CliError> {
        let data_dir = folder.join("n1").display().to_string();
        let run_dir = folder.join("run").display().to_string();
        let places = ["--data-dir", &data_dir, "--run-dir", &run_dir, "--user", "nobody"].map(str::to_owned);
        let words = std::iter::once("hasup").chain(words.split(' ')).map(str::to_owned).chain(places);
        match prepare_daemon(&Cli::try_parse_from(words).unwrap())? {
            Some(Daemon::Node { config, begin, .. }) => Ok((config, begin)),
            other => panic!("prepared {other:?}"),
        }
    }

    #[test]
    fn what_was_asked_for_is_kept_and_a_node_begins_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let code = |words| prepare(path, words).map_err(|error| error.exit_code());
        assert_eq!(code("run --host-ip ::1"), Err(3), "there is no node yet");
        fs::remove_dir_all(path.join("n1")).unwrap();
        assert_eq!(code("start --foreground --node-name n1 --host-ip ::1 --options nonsense=1"), Err(2));
        let began = code("start --foreground --node-name n1 --host-ip ::1 --options durability=one_node").unwrap();
        assert!(matches!(&began, Begin::Start { options, adopt: false } if options["durability"] == "one_node"));
        // Interrupted: whoever runs the node goes on with it, by its own name and address.
        assert_eq!(code("run"), Ok(began));
        Begin::forget(&path.join("n1")).unwrap();
        assert_eq!(code("run"), Err(3), "it was refused, and belongs to no cluster");
        let join = format!("join ::1 --foreground --token {TOKEN}");
        assert_eq!(code("join ::1 --token t --foreground --node-name n1 --host-ip ::1"), Err(2), "it is no token");
        let joining = format!("{join} --node-name n1 --host-ip ::1 --witness");
        code(&joining).expect("another try");
        Begin::forget(&path.join("n1")).unwrap();
        let again = "start --foreground --node-name n1 --host-ip ::1";
        code(again).expect("another try");
        assert!(!prepared(path, again).unwrap().0.is_witness, "what the try before was told counts no more");
        fs::write(path.join("n1/identity.json"), "{}").unwrap();
        code("start --foreground").expect("the same again");
        assert_eq!(code(&join), Err(3), "it would be both");
        Begin::forget(&path.join("n1")).unwrap();
        assert_eq!(code("run"), Ok(Begin::Run));
        assert_eq!(code("start --foreground"), Err(3), "it has begun");
        assert_eq!(code(&join), Err(3), "it has begun");
    }

    #[test]
    fn who_begins_a_node_twice_is_told_what_it_is_now() {
        let mut status = example();
        let told = |status: Option<&Status>| has_begun(Path::new("/var/lib/hasup"), status);
        let running = told(Some(&status));
        assert!(
            running.starts_with("n1 runs here already, as active in a cluster of 3. Nothing was changed"),
            "{running}"
        );
        assert!(running.contains("`hasup status`") && !running.contains("hasup run"), "{running}");
        status.nodes.truncate(1);
        assert!(told(Some(&status)).contains("as active in a cluster of its own"));
        status.not_a_member = Some("n1 is no member. To join again: do so".to_owned());
        assert_eq!(told(Some(&status)), "n1 is no member. To join again: do so. Nothing was changed");
        let silent = told(None);
        assert!(silent.starts_with("/var/lib/hasup already holds a node") && silent.contains("hasup run"), "{silent}");
    }

    #[test]
    fn a_node_file_that_is_edited_wins_over_what_the_node_was_told_when_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hasup.toml");
        let port = |words: &str| {
            let words = format!("{words} --config {}", file.display());
            prepared(folder.path(), &words).map(|(config, _)| config.peer.port)
        };
        fs::write(&file, "node_name = \"n1\"\nhost_ip = \"::1\"\npeer.port = 7000\n").unwrap();
        assert_eq!(port("start --foreground --peer-port 7100").unwrap(), 7100);
        assert_eq!(port("run").unwrap(), 7100, "as it was told");
        fs::write(&file, "node_name = \"n1\"\nhost_ip = \"::1\"\npeer.port = 7200\n").unwrap();
        assert_eq!(port("run").unwrap(), 7200, "as the file says since");
        assert_eq!(port("run --peer-port 7300").unwrap(), 7300, "as this command says");
    }

    #[test]
    fn a_folder_that_holds_anything_else_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("n1")).unwrap();
        fs::write(folder.path().join("n1/thesis.txt"), "years").unwrap();
        let refused = prepare(folder.path(), "start --foreground --host-ip ::1 --node-name n1").unwrap_err();
        assert_eq!(refused.exit_code(), 3);
        assert!(refused.to_string().contains("thesis.txt"));
    }

    #[test]
    fn joined_means_streaming_with_the_final_raft_role() {
        let mut status = example();
        status.me = "n2".to_owned();
        status.state = NodeState::Standby;
        assert!(!has_joined(&status), "it does not stream");
        status.postgres.is_streaming = true;
        assert!(!has_joined(&status), "its collations were not compared yet");
        status.postgres.warnings = Some(Vec::new());
        assert!(has_joined(&status));
        status.nodes[1].raft = RaftRole::Learner;
        assert!(!has_joined(&status), "the third of three becomes a voter");
        status.nodes.truncate(2);
        assert!(has_joined(&status), "the second of two stays a learner");
    }
}
