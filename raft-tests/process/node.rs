//! A node on a loopback address: the commands that an operator would type, and what came of them.

use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hasup::chaos::process;
use nix::sys::signal::Signal;
use raft_tests::program::{hasup, over_ipv6};
use serde_json::Value;
use tempfile::TempDir;

/// What a node may take to start or to join: `initdb` and a copy on a busy machine.
const BEGIN_LIMIT: Duration = Duration::from_secs(120);
/// What may pass until `hasup check` tells what has befallen a machine, and the role has moved, on a busy one.
const CHECK_LIMIT: Duration = Duration::from_secs(90);
/// What PostgreSQL may take from its start to its first answer.
const COME_LIMIT: Duration = Duration::from_secs(20);
/// What one command may take.
const COMMAND_LIMIT: &str = "70";

/// A join token right in form: the prefix, an id, a secret and a fingerprint.
pub(crate) const TOKEN: &str =
    "hasup1-00000000-00000000000000000000000000000000-0000000000000000000000000000000000000000000000000000000000000000";

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Returns the JSON that it printed, having succeeded.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks exit code and that the message holds each of `words`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not said: {self:?}");
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

/// Folders and ports of a node. Dropping it ends everything of the node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) folder: TempDir,
    pub(crate) ports: [u16; 3],
    /// What its processes find in their environment beside the caller's.
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
    daemon: Option<Child>,
}

impl Node {
    /// Returns a node that does not run, at 127.0.0.`number`; where the suite runs over IPv6, all are at `::1`.
    pub(crate) fn new(number: u8) -> Self {
        let folder = tempfile::Builder::new().prefix("hasup-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("node.toml"), "").unwrap();
        let (host, ports) = if over_ipv6() {
            // one address for all: fixed ports below those that the system hands out, so that no two nodes meet
            let ports = [0, 1, 2].map(|index| 21_000 + 10 * u16::from(number) + index);
            ("::1".to_owned(), ports)
        } else {
            let host = format!("127.0.0.{number}");
            let ports = free_ports(&host);
            (host, ports)
        };
        Self { name: format!("n{number}"), host, folder, ports, environment: Vec::new(), daemon: None }
    }

    /// Returns a copy of this node with all that it holds, at 127.0.0.`number`. Neither runs.
    pub(crate) fn copied(&self, number: u8) -> Self {
        let mut copy = Self::new(number);
        let from = format!("{}/.", self.folder.path().display());
        let done = Command::new("cp").args(["-a", &from]).arg(copy.folder.path()).status().unwrap();
        assert!(done.success(), "{done}");
        (copy.name, copy.ports, copy.environment) = (self.name.clone(), self.ports, self.environment.clone());
        copy
    }

    /// Puts this node's disk back to what `earlier` holds. Neither runs.
    pub(crate) fn put_back(&self, earlier: &Self) {
        fs::remove_dir_all(self.data_dir()).unwrap();
        let done = Command::new("cp").arg("-a").arg(earlier.data_dir()).arg(self.folder.path()).status().unwrap();
        assert!(done.success(), "{done}");
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    pub(crate) fn peer(&self) -> String {
        hostport(&self.host, self.ports[0])
    }

    fn place(&self) -> Vec<String> {
        let word = |name: &str| self.folder.path().join(name).display().to_string();
        let (config, data_dir, run_dir) = (word("node.toml"), word("d"), word("r"));
        ["--config", &config, "--data-dir", &data_dir, "--run-dir", &run_dir].map(str::to_owned).to_vec()
    }

    fn identity(&self) -> Vec<String> {
        let mut words = vec!["--node-name".to_owned(), self.name.clone(), "--host-ip".to_owned(), self.host.clone()];
        for (flag, port) in ["--peer-port", "--api-port", "--postgres-port"].iter().zip(self.ports) {
            words.extend([(*flag).to_owned(), port.to_string()]);
        }
        words
    }

    /// Runs a command that ends by itself, with the flags that find this node.
    pub(crate) fn hasup(&self, words: &[&str]) -> Ended {
        self.ended(words.iter().map(|word| (*word).to_owned()).chain(self.place()))
    }

    /// Runs a statement as the superuser, once PostgreSQL has started, and returns its first value.
    pub(crate) fn sql(&self, statement: &str) -> String {
        let mut psql = Command::new("psql");
        psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-h"]).arg(self.data_dir().join("sock"));
        psql.args(["-p", &self.ports[2].to_string(), "-c", statement]);
        let deadline = Instant::now() + COME_LIMIT;
        loop {
            let ended = psql.output().unwrap();
            if ended.status.success() {
                return String::from_utf8_lossy(&ended.stdout).trim_end().to_owned();
            }
            let told = String::from_utf8_lossy(&ended.stderr);
            let is_coming = ["the database system is starting up", "No such file or directory"];
            let is_coming = is_coming.iter().any(|words| told.contains(words));
            assert!(is_coming && Instant::now() < deadline, "{statement}: {ended:?}");
            pause();
        }
    }

    /// Runs a command with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        self.hasup(&[words, &["--json"]].concat()).json()
    }

    /// Runs `start` or `join` with the node's flags, where it is expected to end at once.
    pub(crate) fn refused(&self, words: &[&str]) -> Ended {
        let words = words.iter().map(|word| (*word).to_owned());
        self.ended(words.chain(["--foreground".to_owned()]).chain(self.place()).chain(self.identity()))
    }

    fn ended(&self, words: impl Iterator<Item = String>) -> Ended {
        ended(clean(&mut limited(words)).envs(self.environment.iter().cloned()))
    }

    /// Starts the first node of a cluster and returns what it printed.
    pub(crate) fn start(&mut self, more: &[&str]) -> Value {
        self.begin(&[&["start"], more].concat())
    }

    /// Joins this node to `member`.
    pub(crate) fn join(&mut self, member: &Node, token: &str) -> Value {
        let file = self.folder.path().join("token");
        fs::write(&file, format!("{token}\n")).unwrap();
        let peer = member.peer();
        self.begin(&["join", &peer, "--token-file", &file.display().to_string()])
    }

    /// Begins with `words` and returns at once; what it prints is in the files `out` and `log`.
    pub(crate) fn spawn(&self, words: &[&str]) -> Child {
        let (out, log) = (self.folder.path().join("out"), self.folder.path().join("log"));
        let mut command = Command::new(hasup());
        command.args(words).args(["--foreground", "--json"]).args(self.place()).args(self.identity());
        clean(&mut command).envs(self.environment.iter().cloned());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&log).unwrap());
        command.spawn().unwrap()
    }

    fn begin(&mut self, words: &[&str]) -> Value {
        let (out, log) = (self.folder.path().join("out"), self.folder.path().join("log"));
        let begun = self.spawn(words);
        let child = self.daemon.insert(begun);
        let deadline = Instant::now() + BEGIN_LIMIT;
        loop {
            let told = fs::read_to_string(&out).unwrap();
            if let Some(answer) = told.lines().find_map(|line| serde_json::from_str(line).ok()) {
                return answer;
            }
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                panic!("{words:?} printed no answer ({ended:?}): {}", fs::read_to_string(&log).unwrap());
            }
            pause();
        }
    }

    /// Stops the daemon in order and returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut child = self.daemon.take()?;
        process::send(i32::try_from(child.id()), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not stop: {}", self.name, self.log());
            pause();
        }
    }

    /// Stops the daemon in order and returns what its `status` said meanwhile.
    pub(crate) fn stop_watched(&mut self) -> Vec<String> {
        let mut child = self.daemon.take().unwrap();
        process::send(i32::try_from(child.id()), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut said = Vec::new();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{}", self.log());
                return said;
            }
            assert!(Instant::now() < deadline, "{} does not stop: {}", self.name, self.log());
            let told = self.hasup(&["status"]);
            said.extend((told.code == Some(0)).then_some(told.out));
        }
    }

    /// Kills the daemon alone: guard and PostgreSQL go on.
    pub(crate) fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills everything of the node at once.
    pub(crate) fn kill(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{} does not die: {left:?}", self.name);
            process::send(left.iter().copied(), Signal::SIGKILL);
            if let Some(child) = &mut self.daemon {
                let _ = child.try_wait();
            }
            pause();
        }
        self.daemon = None;
    }

    /// Waits until the daemon ends by itself.
    #[track_caller]
    pub(crate) fn ends(&mut self) {
        let deadline = Instant::now() + BEGIN_LIMIT;
        let child = self.daemon.as_mut().unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            pause();
        }
        self.daemon = None;
    }

    /// Runs the daemon again after [`stop`](Self::stop).
    pub(crate) fn run(&mut self) {
        self.run_with(&[]);
    }

    /// As [`run`](Self::run), with more flags.
    pub(crate) fn run_with(&mut self, more: &[&str]) {
        let log = File::options().append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(hasup());
        command.args(["run", "--foreground"]).args(more).args(self.place());
        clean(&mut command).envs(self.environment.iter().cloned()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Asks for the status until `is_so`.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + BEGIN_LIMIT;
        loop {
            let ended = self.hasup(&["status", "--json"]);
            let status: Value = serde_json::from_str(&ended.out).unwrap_or_default();
            if is_so(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {ended:?}");
            pause();
        }
    }

    /// Returns the numbers of all processes of this node.
    pub(crate) fn processes(&self) -> std::collections::BTreeSet<i32> {
        process::of_folder(&process::scan(), self.folder.path())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            process::send(i32::try_from(child.id()), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(20);
            while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
                pause();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                if std::thread::panicking() {
                    eprintln!("{}: log and data are kept in {}", self.name, self.folder.path().display());
                    self.folder.disable_cleanup(true);
                }
                return;
            }
            // An immediate shutdown of PostgreSQL frees its shared memory; the guard ends with it.
            let servers = process::parts(&process::scan(), &left, hasup::chaos::schedule::Part::Postgres);
            process::send(servers, Signal::SIGQUIT);
            process::send(
                left.iter().copied().filter(|_| deadline - Instant::now() < Duration::from_secs(7)),
                Signal::SIGKILL,
            );
            pause();
        }
    }
}

/// Returns the folder of PostgreSQL's newest programs.
pub(crate) fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().flatten().map(|entry| entry.path().join("bin"));
    versions.filter(|bin| bin.join("initdb").exists()).max().unwrap()
}

/// Runs a program as PostgreSQL's user and returns what it printed, having succeeded.
pub(crate) fn as_postgres(program: &Path, words: &[&str]) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"]).arg(program).args(words);
    // a server keeps what it is given: pipes of this test would never close
    let out = tempfile::tempfile().unwrap();
    let ended = command
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out.try_clone().unwrap())
        .status()
        .unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut &out).unwrap();
    std::io::Read::read_to_string(&mut &out, &mut text).unwrap();
    assert!(ended.success(), "{} {words:?}: {text}", program.display());
    text
}

/// Runs the binary with `words` and waits for its end.
pub(crate) fn run(words: impl IntoIterator<Item = String>, input: Stdio) -> Ended {
    ended(clean(&mut limited(words)).stdin(input))
}

fn limited(words: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new("timeout");
    command.arg(COMMAND_LIMIT).arg(hasup()).args(words);
    command
}

fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What the caller's environment says is meant for other nodes, and its cache of members too.
fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HASUP_")) {
        command.env_remove(name);
    }
    command.env("XDG_CACHE_HOME", "/nonexistent").stdin(Stdio::null())
}

/// Between two looks at a condition that has a deadline.
pub(crate) fn pause() {
    std::thread::park_timeout(Duration::from_millis(50));
}

/// Returns `host:port`, an IPv6 address in brackets.
pub(crate) fn hostport(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Returns three ports of `host` that are free for TCP and UDP.
fn free_ports(host: &str) -> [u16; 3] {
    let held: Vec<(TcpListener, UdpSocket)> = std::iter::repeat_with(|| {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        UdpSocket::bind((host, port)).ok().map(|socket| (listener, socket))
    })
    .flatten()
    .take(3)
    .collect();
    [0, 1, 2].map(|index: usize| held[index].0.local_addr().unwrap().port())
}

/// Returns names and contents of everything below `folder`, to see that nothing was touched.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        }
        found.push((path.clone(), fs::read(&path).unwrap_or_default()));
    }
    found.sort();
    found
}

/// Runs `hasup check` on `node` until its answer `is_so`, and returns it.
#[track_caller]
pub(crate) fn until_check(node: &Node, what: &str, is_so: impl Fn(&Ended) -> bool) -> Ended {
    let deadline = Instant::now() + CHECK_LIMIT;
    loop {
        let ended = node.hasup(&["check"]);
        if is_so(&ended) {
            return ended;
        }
        assert!(Instant::now() < deadline, "{what}: {ended:?}");
        pause();
    }
}

/// Tells whether three nodes are there, each with a role and a vote, heard by the one that was asked, and without trouble.
pub(crate) fn is_whole(status: &Value) -> bool {
    let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_well = |node: &Value| {
        let has_role = node["state"] == "active" || node["state"] == "standby";
        let has_vote = node["raft"] == "leader" || node["raft"] == "follower";
        has_role && has_vote && node["is_reachable"] == true && node["troubles"] == serde_json::json!([])
    };
    nodes.len() == 3 && nodes.iter().all(is_well)
}
