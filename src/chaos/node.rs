//! A node as its operator sees it: the commands that begin it, its supervisor, what it says, and the processes it is made of.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::view::{EventView, View};
use super::{http, process};

/// How soon a daemon that ended is started again, as the unit that hasup ships says.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// What a command that only asks may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// What it takes to begin and to find a node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The address that peers and clients use.
    pub host: String,
    /// Its state and its database.
    pub data_dir: PathBuf,
    /// Its admin socket's folder.
    pub run_dir: PathBuf,
    /// Its node file, so that the one of this machine is not read; written when the cluster is formed.
    pub config: PathBuf,
    /// Where its daemon's messages go.
    pub log: PathBuf,
    /// Where its daemon's answers go, the join token among them.
    pub answers: PathBuf,
    /// Peer and pulse port.
    pub peer_port: u16,
    /// API port.
    pub api_port: u16,
    /// PostgreSQL's port.
    pub postgres_port: u16,
    /// The binary under test.
    pub program: PathBuf,
    /// What precedes each command so that it runs on the node's host; empty for this one.
    pub prefix: Vec<String>,
}

/// How a daemon begins for the first time.
#[derive(Debug, Clone)]
pub enum First {
    /// As a new cluster's first node, with these options.
    Start(Vec<String>),
    /// As a further node: the member to ask, and the file with the token.
    Join(String, PathBuf),
}

impl Node {
    /// Returns the flags by which a command finds the node's admin socket and folders.
    pub fn place(&self) -> Vec<String> {
        let word = |path: &PathBuf| path.display().to_string();
        let (config, data_dir, run_dir) = (word(&self.config), word(&self.data_dir), word(&self.run_dir));
        let words = ["--config", &config, "--node-name", &self.name, "--data-dir", &data_dir, "--run-dir", &run_dir];
        words.map(str::to_owned).to_vec()
    }

    /// Returns where others join by it, as `host:port`; an IPv6 address stands in brackets.
    pub fn peer_address(&self) -> String {
        let (host, port) = (&self.host, self.peer_port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn begin(&self, first: &First) -> Vec<String> {
        let mut words = match first {
            First::Start(_) => vec!["start".to_owned()],
            First::Join(member, token) => {
                vec!["join".into(), member.clone(), "--token-file".into(), token.display().to_string()]
            }
        };
        words.extend(["--foreground", "--host-ip", &self.host].map(str::to_owned));
        words.extend(self.place());
        for (flag, port) in
            [("--peer-port", self.peer_port), ("--api-port", self.api_port), ("--postgres-port", self.postgres_port)]
        {
            words.extend([flag.to_owned(), port.to_string()]);
        }
        if let First::Start(options) = first {
            words.extend(options.iter().flat_map(|option| ["--options".to_owned(), option.clone()]));
        }
        words
    }

    fn again(&self) -> Vec<String> {
        let mut words = vec!["run".to_owned(), "--foreground".to_owned()];
        words.extend(self.place());
        words
    }

    /// Returns a command of the binary under test that will run on the node's host.
    #[must_use]
    pub fn command(&self, words: &[String]) -> Command {
        let mut line = self.prefix.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        line.push(self.program.clone().into());
        line.extend(words.iter().map(std::ffi::OsString::from));
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null());
        // What the caller's environment says is meant for a cluster of the caller's, not for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HASUP_")) {
            command.env_remove(name);
        }
        // A terminal's Ctrl-C goes to its whole process group, and is for the demonstration alone.
        command.process_group(0);
        command
    }

    /// Runs a command of the operator's against this node and returns what it prints as JSON.
    ///
    /// # Errors
    /// When it fails (with its message), takes longer than `limit`, or prints no JSON.
    pub async fn ask(&self, words: &[&str], limit: Duration) -> anyhow::Result<serde_json::Value> {
        let mut line: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        line.push("--json".to_owned());
        line.extend(self.place());
        let told = format!("hasup {} at {}", words.join(" "), self.name);
        let mut command = self.command(&line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = timeout(limit, command.output())
            .await
            .map_err(|_| anyhow::anyhow!("{told}: no answer within {} s", limit.as_secs()))?
            .with_context(|| told.clone())?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("{told}: {}: {}", output.status, message.trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("{told}: its answer is no JSON"))
    }

    /// Returns what the node says about the cluster.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn view(&self) -> anyhow::Result<View> {
        if self.prefix.is_empty() {
            // On this host's loopback the API is plain HTTP, which spares a process for each look.
            let (status, body) =
                http::get(&self.host, self.api_port, "/v1/status", None, Duration::from_secs(2)).await?;
            if status != 200 {
                bail!("{}: /v1/status answered {status}", self.name);
            }
            return Ok(View::parse(&body)?);
        }
        Ok(serde_json::from_value(self.ask(&["status"], ASK_LIMIT).await?)?)
    }

    /// Returns the cluster's history as the node has it; empty where it cannot be had.
    pub async fn history(&self) -> Vec<EventView> {
        match self.ask(&["history", "--limit", "1000"], ASK_LIMIT).await {
            Ok(history) => serde_json::from_value(history).unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Returns the numbers of all processes of the node, PostgreSQL's included.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        let all = process::scan();
        let mut found = process::of_folder(&all, &self.data_dir);
        found.extend(process::of_folder(&all, &self.run_dir));
        found
    }

    /// Returns the last lines of the daemon's messages.
    #[must_use]
    pub fn last_messages(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Returns the join token that the daemon printed when it started, once it has.
    #[must_use]
    pub fn join_token(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.answers).ok()?;
        // A line that is still being written has no line feed.
        let whole = &text[..=text.rfind('\n')?];
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let mut words = whole.split(|c| !is_word(c));
        words.rfind(|word| word.starts_with("hasup1-")).map(str::to_owned)
    }
}

/// What a supervisor sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The daemon's process, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u32,
    /// How often it ended without being told to.
    pub deaths: u32,
    /// How it last ended.
    pub last_end: Option<String>,
    /// Why it is not started again: it ended before it belonged to a cluster.
    pub gave_up: Option<String>,
}

/// Starts a node's daemon again whenever it ends, as systemd would.
#[derive(Debug)]
pub struct Supervisor {
    /// The node.
    pub node: Arc<Node>,
    wanted: watch::Sender<Wanted>,
    seen: watch::Receiver<Seen>,
    _task: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    up: bool,
    is_member: bool,
}

impl Supervisor {
    /// Begins the node and watches it from now on. Must be called within a runtime.
    pub fn begin(node: Arc<Node>, first: First) -> Self {
        let (wanted, orders) = watch::channel(Wanted { up: true, is_member: false });
        let (report, seen) = watch::channel(Seen::default());
        let mut task = JoinSet::new();
        task.spawn(supervise(Arc::clone(&node), first, orders, report));
        Self { node, wanted, seen, _task: task }
    }

    /// Says that the node belongs to a cluster now: from here on its daemon is started again as a member.
    pub fn is_member(&self) {
        self.wanted.send_modify(|wanted| wanted.is_member = true);
    }

    /// Starts the daemon again after [`down`](Self::down).
    pub fn up(&self) {
        self.wanted.send_modify(|wanted| wanted.up = true);
    }

    /// Starts the daemon no more; what runs goes on until it is killed.
    pub fn down(&self) {
        self.wanted.send_modify(|wanted| wanted.up = false);
    }

    /// Returns what the supervisor sees now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

async fn supervise(node: Arc<Node>, first: First, mut orders: watch::Receiver<Wanted>, report: watch::Sender<Seen>) {
    loop {
        let Ok(wanted) = orders.wait_for(|wanted| wanted.up).await.map(|wanted| *wanted) else { return };
        let words = if wanted.is_member { node.again() } else { node.begin(&first) };
        let end = match spawn(&node, &words) {
            Ok(mut child) => {
                report.send_modify(|seen| {
                    seen.pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                    seen.starts += 1;
                });
                child.wait().await.map_or_else(|error| error.to_string(), describe)
            }
            Err(error) => format!("it could not be started: {error:#}"),
        };
        let wanted = *orders.borrow();
        report.send_modify(|seen| {
            seen.pid = None;
            seen.deaths += u32::from(wanted.up);
            seen.last_end = Some(end.clone());
        });
        if wanted.up && !wanted.is_member {
            report.send_modify(|seen| seen.gave_up = Some(end));
            return;
        }
        sleep(RESTART_AFTER).await;
    }
}

fn spawn(node: &Node, words: &[String]) -> anyhow::Result<tokio::process::Child> {
    // Answers hold the join token, so nobody else may read them.
    let open = |path: &PathBuf| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let answers = open(&node.answers).with_context(|| format!("open {}", node.answers.display()))?;
    let log = open(&node.log).with_context(|| format!("open {}", node.log.display()))?;
    let mut command = node.command(words);
    command.stdout(answers).stderr(log);
    command.spawn().with_context(|| format!("run {}", node.program.display()))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Waits until every one of `nodes` says that the cluster is whole, and returns the first one's view.
///
/// # Errors
/// After `limit`, with what was missing last; or at once when a daemon was given up.
pub async fn wait_whole(nodes: &[Supervisor], limit: Duration) -> anyhow::Result<View> {
    wait(nodes, limit, View::missing).await
}

/// Waits until every one of `nodes` says that the cluster is whole and that nothing is left to be moved.
///
/// # Errors
/// As [`wait_whole`].
pub async fn wait_settled(nodes: &[Supervisor], limit: Duration) -> anyhow::Result<View> {
    wait(nodes, limit, View::unsettled).await
}

async fn wait(
    nodes: &[Supervisor],
    limit: Duration,
    lacks: impl Fn(&View, usize) -> Option<String>,
) -> anyhow::Result<View> {
    let deadline = Instant::now() + limit;
    loop {
        let mut missing = None;
        let mut whole = None;
        for supervisor in nodes {
            if let Some(end) = supervisor.seen().gave_up {
                let node = &supervisor.node;
                bail!("{} ended before it was a member: {end}\n{}", node.name, node.last_messages());
            }
            match supervisor.node.view().await {
                Ok(view) => {
                    missing = missing
                        .or(lacks(&view, nodes.len()).map(|what| format!("{} says: {what}", supervisor.node.name)));
                    whole.get_or_insert(view);
                }
                Err(error) => missing = Some(format!("{error:#}")),
            }
        }
        match (missing, whole) {
            (None, Some(view)) => return Ok(view),
            (missing, _) if Instant::now() > deadline => {
                let missing = missing.unwrap_or_else(|| "there are no nodes".to_owned());
                bail!("the cluster was not whole within {} s: {missing}", limit.as_secs());
            }
            _ => {
                sleep(Duration::from_millis(if nodes.iter().any(|s| s.node.prefix.is_empty()) { 50 } else { 250 }))
                    .await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(folder: &std::path::Path) -> Node {
        Node {
            name: "n1".into(),
            host: "127.0.0.1".into(),
            data_dir: folder.join("n1"),
            run_dir: folder.join("r1"),
            config: folder.join("n1.toml"),
            log: folder.join("log"),
            answers: folder.join("out"),
            peer_port: 1,
            api_port: 2,
            postgres_port: 3,
            program: "/bin/false".into(),
            prefix: Vec::new(),
        }
    }

    #[test]
    fn the_first_commands_are_those_an_operator_would_type() {
        let node = node(std::path::Path::new("/d"));
        let rest = "--foreground --host-ip 127.0.0.1 --config /d/n1.toml --node-name n1 --data-dir /d/n1 --run-dir /d/r1 --peer-port 1 --api-port 2 \
                    --postgres-port 3";
        let start = node.begin(&First::Start(vec!["check_ttl_multiplier=0.5".into()])).join(" ");
        assert_eq!(start, format!("start {rest} --options check_ttl_multiplier=0.5"));
        let join = node.begin(&First::Join("127.0.0.1:7".into(), "/d/token".into())).join(" ");
        assert_eq!(join, format!("join 127.0.0.1:7 --token-file /d/token {rest}"));
        assert_eq!(
            node.again().join(" "),
            "run --foreground --config /d/n1.toml --node-name n1 --data-dir /d/n1 --run-dir /d/r1"
        );
    }

    #[test]
    fn the_token_is_found_once_its_line_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        assert_eq!(node.join_token(), None);
        std::fs::write(&node.answers, "Connect: …\nhasup1-ab").unwrap();
        assert_eq!(node.join_token(), None);
        std::fs::write(&node.answers, "Connect: …\n{\"join_token\":\"hasup1-ab-c_d-e\"}\n").unwrap();
        assert_eq!(node.join_token().as_deref(), Some("hasup1-ab-c_d-e"));
    }

    #[tokio::test]
    async fn a_node_that_ends_before_it_is_a_member_is_given_up_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::begin(Arc::new(node(folder.path())), First::Start(Vec::new()));
        let mut seen = supervisor.seen.clone();
        let ended = timeout(Duration::from_secs(20), seen.wait_for(|seen| seen.gave_up.is_some())).await.unwrap();
        assert_eq!(ended.unwrap().gave_up.as_deref(), Some("exit status 1"));
    }

    #[tokio::test]
    async fn a_member_that_ends_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::begin(Arc::new(node(folder.path())), First::Start(Vec::new()));
        supervisor.is_member();
        let mut seen = supervisor.seen.clone();
        let ended = timeout(Duration::from_secs(20), seen.wait_for(|seen| seen.deaths >= 2)).await.unwrap();
        assert_eq!(ended.unwrap().gave_up, None);
    }
}
