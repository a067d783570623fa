//! Plays a schedule against a cluster on hosts of its own, heals everything, and judges.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::{User, chown};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::checkers::{
    Verdict, expected_writes, kept_aside, kept_rows, lost_rows, one_active_endpoint, one_writer, rewound, same_rows,
};
use super::forming::{WHOLE_LIMIT, WayIn, form, write_node_file, write_private};
use super::hosts::{Host, Lab};
use super::journal::{Journal, Outcome, Span};
use super::node::{First, Node, Supervisor, wait_settled};
use super::report::{Played, Report};
use super::schedule::{Addresses, Fault, Part, Schedule, Step, Victim, span};
use super::view::View;
use super::{aside, millis, process, random, rows};
use crate::sys::clock::{boot_now, wall_now};
use crate::sys::fs::write_volatile;
use crate::types::BootTime;

/// Acknowledged rows before the first fault, and again after the last.
const ROWS: usize = 200;
/// How long those may take.
const ROWS_LIMIT: Duration = Duration::from_secs(60);
/// Rows of one statement of those that a step inserts: ten thousand take far less than a lease.
const BATCH: &str = "500";
/// The user that nodes run as.
const USER: &str = "postgres";

/// Play a schedule of faults against a cluster on hosts of its own, and judge it
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["schedule", "seed"])))]
pub struct RunArgs {
    /// The schedule, one statement a line: `at 5s crash active`, `at 12s boot`, `end 40s`
    #[arg(long, value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Faults by chance instead: a number gives the same schedule each time
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long faults by chance go on, from 10s to 24h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration, conflicts_with = "schedule")]
    pub duration: Duration,
    /// How many hosts, named n1, n2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub hosts: u8,
    /// Folder for journals, logs and the report, made when absent; without it they are removed after a good run
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Print nothing but JSON on standard output; progress goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Options of the cluster, as check_ttl_multiplier=0.5
    #[arg(long, value_name = "K=V")]
    pub options: Vec<String>,
}

/// Runs the schedule and returns the exit status: 0 where every promise was kept, else 1.
///
/// # Errors
/// When nothing could be judged for want of the machine: no root, no tools, a wrong schedule.
pub async fn run(args: RunArgs) -> anyhow::Result<u8> {
    let names: Vec<String> = (1..=args.hosts).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut schedule = match (&args.schedule, args.seed) {
        (Some(path), _) => {
            let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            Schedule::parse(&text, &names)?
        }
        (None, Some(_)) if names.len() < 2 => bail!("faults by chance need two hosts or more; nothing was started"),
        (None, seed) => random::schedule(seed.unwrap_or_default(), args.duration, &names),
    };
    schedule.options.extend(args.options);
    let (dir, keep) = folder(args.report.as_deref())?;
    write_volatile(&dir.join("schedule.chaos"), schedule.to_string().as_bytes()).context("write the schedule")?;
    let to_stderr = args.json;
    let started = Instant::now();
    let tell = move |line: &str| {
        let after = started.elapsed().as_secs_f64();
        // A reader that has gone is no reason to leave hosts behind.
        let _ = if to_stderr {
            writeln!(std::io::stderr(), "{after:7.1} s  {line}")
        } else {
            writeln!(std::io::stdout(), "{after:7.1} s  {line}")
        };
    };
    let mut interrupted = signal(SignalKind::interrupt()).context("await SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("await SIGTERM")?;
    let mut range = Range::set_up(&names, dir.clone(), schedule.addresses, &tell)?;
    let result = tokio::select! {
        result = range.play(&schedule, &tell) => result,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    let report = range.judge(result, &schedule, &tell).await;
    drop(range);
    tell("the hosts are gone");
    let line = serde_json::to_string(&report)?;
    write_volatile(&dir.join("report.json"), format!("{line}\n").as_bytes()).context("write the report")?;
    if keep || !report.ok {
        tell(&format!("journals and logs are in {}", dir.display()));
    } else {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    println!("{line}");
    Ok(u8::from(!report.ok))
}

/// Reads how long faults by chance go on.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = span(text)?;
    if duration < Duration::from_secs(10) {
        return Err(format!("`{text}` is too short for a fault and for what follows; use 10s to 24h"));
    }
    Ok(duration)
}

fn folder(report: Option<&Path>) -> anyhow::Result<(PathBuf, bool)> {
    let dir = match report {
        Some(dir) => dir.to_owned(),
        // Short, as PostgreSQL's Unix sockets lie below it.
        None => PathBuf::from(format!("/tmp/hasup-chaos.{}", std::process::id())),
    };
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; nothing was started. Name an empty or absent folder", dir.display());
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).context("open the folder")?;
    Ok((fs::canonicalize(&dir).with_context(|| format!("find {}", dir.display()))?, report.is_some()))
}

/// Hosts, nodes and clients of one run.
struct Range {
    dir: PathBuf,
    nodes: Vec<Arc<Node>>,
    supervisors: Vec<Supervisor>,
    clients: Vec<Child>,
    /// Those that a step started; they end when their rows are written.
    inserters: Vec<Child>,
    way_in: Option<WayIn>,
    played: Vec<Played>,
    passed_over: Vec<String>,
    lease_ms: u64,
    last: Option<String>,
    down: BTreeSet<String>,
    paused: BTreeSet<String>,
    /// When the schedule's time began, and what was added to it at which of its instants.
    began: Began,
    /// Last, so that it is dropped after everything that runs on it.
    lab: Lab,
}

/// How the times of a schedule lie on the boot-time clock.
#[derive(Debug, Clone, Default)]
struct Began {
    at: BootTime,
    wall: Duration,
    delays: Vec<(Duration, Duration)>,
}

impl Began {
    fn boot(&self, at: Duration) -> BootTime {
        let late = self.delays.iter().filter(|(step, _)| *step <= at).map(|(_, late)| *late).sum::<Duration>();
        self.at + at + late
    }
}

impl Range {
    fn set_up(names: &[&str], dir: PathBuf, addresses: Addresses, tell: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let user = User::from_name(USER).context("look for the user postgres")?;
        let user = user.context(
            "there is no user `postgres`; nothing was started. Install PostgreSQL: apt-get install postgresql",
        )?;
        chown(&dir, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} to postgres", dir.display()))?;
        for name in names {
            let own = dir.join(name);
            fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
            chown(&own, Some(user.uid), Some(user.gid))
                .with_context(|| format!("give {} to postgres", own.display()))?;
        }
        let lab = Lab::set_up(names, &dir, addresses)?;
        // From here on this thread's sockets, and clients started by it, are on the cluster's network, outside every host.
        lab.enter_as_judge()?;
        tell(&format!("{} hosts, working in {}", names.len(), dir.display()));
        let program = std::env::current_exe().context("find this program")?;
        let nodes = lab
            .hosts
            .iter()
            .map(|host| {
                let own = dir.join(&host.name);
                Arc::new(Node {
                    name: host.name.clone(),
                    host: host.address.clone(),
                    data_dir: own.join("d"),
                    // In the host's own /run, which nobody else sees.
                    run_dir: PathBuf::from("/run/hasup"),
                    config: dir.join(format!("{}.toml", host.name)),
                    log: dir.join(format!("{}.log", host.name)),
                    answers: dir.join(format!("{}.out", host.name)),
                    peer_port: 7400,
                    api_port: 7401,
                    postgres_port: 5432,
                    program: program.clone(),
                    prefix: host.prefix(),
                })
            })
            .collect();
        Ok(Self {
            dir,
            nodes,
            supervisors: Vec::new(),
            clients: Vec::new(),
            inserters: Vec::new(),
            way_in: None,
            played: Vec::new(),
            passed_over: Vec::new(),
            lease_ms: 0,
            last: None,
            down: BTreeSet::new(),
            paused: BTreeSet::new(),
            began: Began::default(),
            lab,
        })
    }

    async fn play(&mut self, schedule: &Schedule, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
        let at_first = |node: &&Arc<Node>| schedule.form.is_empty() || schedule.form.contains(&node.name);
        let first: Vec<Arc<Node>> = self.nodes.iter().filter(at_first).map(Arc::clone).collect();
        form(&first, &schedule.options, &self.dir, &mut self.supervisors, tell).await?;
        let way_in = WayIn::find(&self.nodes, &self.dir).await?;
        self.lease_ms = self.view().await.and_then(|view| view.cluster.lease_ms).unwrap_or_default();
        self.start_clients(&way_in)?;
        self.way_in = Some(way_in);
        self.wait_rows(BootTime(0)).await.context("before the first fault")?;
        let mut start = Instant::now();
        self.began = Began { at: boot_now(), wall: wall_now(), delays: Vec::new() };
        for step in &schedule.steps {
            let due = start + step.at;
            sleep_until(due).await;
            self.check_clients()?;
            let hosts = match self.hosts_of(step).await.with_context(|| step.to_string()) {
                Err(why) if schedule.lenient => {
                    self.pass_over(step, &why, tell);
                    Vec::new()
                }
                hosts => hosts?,
            };
            // Asking who is active may take a while in a broken cluster; what follows keeps its distance from this step.
            start += due.elapsed();
            self.began.delays.push((step.at, due.elapsed()));
            if step.fault == Fault::Crash {
                // One power cut: none of them sees another go.
                hosts.iter().filter_map(|name| self.lab.host(name)).try_for_each(Host::cut)?;
            }
            for host in hosts {
                tell(&format!("{step}: {host}"));
                let at_ns = boot_now().0;
                match self.inflict(step, &host).await.with_context(|| format!("{step}: {host}")) {
                    Err(why) if schedule.passes_over(&step.fault) => {
                        self.pass_over(step, &why, tell);
                        continue;
                    }
                    done => done?,
                }
                self.played.push(Played { step: step.to_string(), host: host.clone(), at_ns, write_gap_ms: None });
                self.last = Some(host);
            }
        }
        if self.played.is_empty() && !schedule.steps.is_empty() {
            bail!("nothing was broken: nobody was there for any step of the schedule");
        }
        sleep_until(start + schedule.end).await;
        tell("the faults are over: healing everything");
        for host in &self.lab.hosts {
            host.heal()?;
            host.resume()?;
        }
        self.paused.clear();
        for name in std::mem::take(&mut self.down) {
            self.supervisor(&name)?.up();
        }
        wait_settled(&self.supervisors, WHOLE_LIMIT).await.context("after the last fault")?;
        tell("the cluster is whole again");
        self.wait_rows(boot_now()).await.context("after the last fault")
    }

    fn pass_over(&mut self, step: &Step, why: &anyhow::Error, tell: &dyn Fn(&str)) {
        tell(&format!("passed over: {why:#}"));
        self.passed_over.push(step.to_string());
    }

    fn start_clients(&mut self, way_in: &WayIn) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let plain = || Command::new(&program);
        let outside = self.spawn(plain(), way_in.writer("w0", &self.dir.join("w0.journal"), |_| true))?;
        self.clients.push(outside);
        let apis: Vec<String> =
            self.nodes.iter().map(|node| format!("{}={}:{}", node.name, node.host, node.api_port)).collect();
        let mut poller: Vec<std::ffi::OsString> =
            ["chaos", "poller", "--with-parent", "--tls", "--targets", &apis.join(",")].map(Into::into).into();
        poller.extend(["--journal".into(), self.dir.join("poller.journal").into()]);
        let poller = self.spawn(plain(), poller)?;
        self.clients.push(poller);
        let mut beside = Vec::new();
        for host in &self.lab.hosts {
            beside.push(self.spawn_beside(host, way_in, &format!("w-{}", host.name), &[])?);
        }
        self.clients.extend(beside);
        Ok(())
    }

    /// Starts a writer on the machine of `host`, which writes there alone.
    fn spawn_beside(&self, host: &Host, way_in: &WayIn, id: &str, more: &[&str]) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("find this program")?;
        let prefix = host.client_prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(&program);
        let mut words = way_in.writer(id, &self.dir.join(format!("{id}.journal")), |name| name == host.name);
        words.extend(more.iter().map(Into::into));
        self.spawn(command, words)
    }

    fn insert(&mut self, rows: u64, name: &str) -> anyhow::Result<()> {
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let way_in = self.way_in.as_ref().context("the cluster has not formed")?;
        let id = format!("i{}-{name}", self.inserters.len() + 1);
        let rows = rows.to_string();
        let inserter =
            self.spawn_beside(host, way_in, &id, &["--interval-ms", "1", "--batch", BATCH, "--rows", &rows])?;
        self.inserters.push(inserter);
        Ok(())
    }

    fn spawn(&self, mut command: Command, words: Vec<std::ffi::OsString>) -> anyhow::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("clients.log"))?;
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        command.kill_on_drop(true).spawn().context("start a client")
    }

    fn check_clients(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            if let Some(status) = client.try_wait().context("look after a client")? {
                let said = fs::read_to_string(self.dir.join("clients.log")).unwrap_or_default();
                bail!("a client ended ({status}), so nothing can be judged: {}", said.trim());
            }
        }
        Ok(())
    }

    fn client_pids(&self) -> BTreeSet<i32> {
        self.clients.iter().chain(&self.inserters).filter_map(|client| i32::try_from(client.id()?).ok()).collect()
    }

    fn supervisor(&self, name: &str) -> anyhow::Result<&Supervisor> {
        self.supervisors
            .iter()
            .find(|supervisor| supervisor.node.name == name)
            .with_context(|| format!("no host {name}"))
    }

    /// Returns the view of a node that hears a majority, else of any.
    async fn view(&self) -> Option<View> {
        let mut best = None;
        for node in &self.nodes {
            // A frozen host's command would wait until it thaws.
            if self.down.contains(&node.name) || self.paused.contains(&node.name) {
                continue;
            }
            match timeout(Duration::from_secs(2), node.view()).await {
                Ok(Ok(view)) if view.cluster.majority && view.active.is_some() => return Some(view),
                Ok(Ok(view)) => best = best.or(Some(view)),
                _ => {}
            }
        }
        best
    }

    /// Returns whom a step is done to; whoever else it needs is there, too.
    async fn hosts_of(&self, step: &Step) -> anyhow::Result<Vec<String>> {
        if let Fault::Part(other) = &step.fault {
            self.victims(other).await?;
        }
        self.victims(&step.victim).await
    }

    async fn victims(&self, victim: &Victim) -> anyhow::Result<Vec<String>> {
        let one = |name: Option<String>, what: &str| {
            name.map(|name| vec![name]).with_context(|| format!("nobody is {what} now"))
        };
        match victim {
            Victim::Active => one(self.view().await.and_then(|view| view.active), "active"),
            Victim::Leader => one(self.view().await.and_then(|view| view.raft_leader), "Raft leader"),
            Victim::Standby => {
                let active = self.view().await.and_then(|view| view.active);
                let names = self.nodes.iter().map(|node| node.name.clone());
                let mut up = names.filter(|name| !self.down.contains(name) && Some(name) != active.as_ref());
                one(up.next(), "a standby")
            }
            Victim::Standbys => {
                let active = self.view().await.and_then(|view| view.active);
                let up = |name: &String| !self.down.contains(name) && Some(name) != active.as_ref();
                Ok(self.supervisors.iter().map(|supervisor| supervisor.node.name.clone()).filter(up).collect())
            }
            Victim::Down => Ok(self.down.iter().cloned().collect()),
            Victim::Last => one(self.last.clone(), "the last victim: no step had one"),
            Victim::All => Ok(self.nodes.iter().map(|node| node.name.clone()).collect()),
            Victim::Host(name) => Ok(vec![name.clone()]),
        }
    }

    async fn inflict(&mut self, step: &Step, name: &str) -> anyhow::Result<()> {
        let clients = self.client_pids();
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        match &step.fault {
            Fault::Crash => {
                self.supervisor(name)?.down();
                host.crash(&clients)?;
                self.paused.remove(name);
                self.down.insert(name.to_owned());
            }
            Fault::Boot => {
                host.heal()?;
                self.supervisor(name)?.up();
                self.down.remove(name);
            }
            Fault::Cut => host.cut()?,
            Fault::Heal => host.heal()?,
            Fault::Oneway(direction) => host.oneway(*direction)?,
            Fault::Loss(percent) => host.loss(*percent)?,
            Fault::Pause => {
                host.pause(&clients)?;
                self.paused.insert(name.to_owned());
            }
            Fault::Resume => {
                host.resume()?;
                self.paused.remove(name);
            }
            Fault::Kill(part) => {
                let pids = process::parts(&process::scan(), &host.processes(&clients), *part);
                // The guard starts others; only the one that is the part itself is meant.
                if pids.is_empty() {
                    bail!("{name} runs no {part:?} to kill");
                }
                process::send(pids, Signal::SIGKILL);
            }
            Fault::Switchover => self.switch_over(&step.victim, name).await?,
            Fault::Part(other) => {
                let others = self.victims(other).await?;
                let other = others.first().and_then(|other| self.lab.host(other)).context("nobody to part from")?;
                host.part(other)?;
            }
            Fault::Mark(is_set) => {
                let mark = format!("nofailover={is_set}");
                self.ask(name, &["nodes", "set", name, &mark]).await?;
            }
            Fault::Insert(rows) => self.insert(*rows, name)?,
            Fault::Remove => self.remove(name).await?,
            Fault::Join => self.join(name).await?,
        }
        Ok(())
    }

    /// Asks a member that is neither down nor `except`.
    async fn ask(&self, except: &str, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        let up = |supervisor: &&Supervisor| {
            let name = &supervisor.node.name;
            name != except && !self.down.contains(name) && !self.paused.contains(name)
        };
        let member = self.supervisors.iter().find(up).context("no other node is up")?;
        member.node.ask(words, Duration::from_secs(60)).await
    }

    async fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        self.ask(name, &["nodes", "remove", name]).await?;
        let clients = self.client_pids();
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let supervisor = self.supervisor(name)?;
        supervisor.down();
        host.kill(&clients)?;
        let folder = &supervisor.node.data_dir;
        fs::remove_dir_all(folder).with_context(|| format!("empty {}", folder.display()))?;
        self.supervisors.retain(|supervisor| supervisor.node.name != name);
        Ok(())
    }

    async fn join(&mut self, name: &str) -> anyhow::Result<()> {
        let told = self.ask(name, &["token", "create"]).await?;
        let token = told.get("join_token").and_then(|token| token.as_str()).context("no token was told")?;
        let file = self.dir.join(format!("token-{name}"));
        write_private(&file, &format!("{token}\n"))?;
        let member = &self.supervisors.first().context("there is no member")?.node;
        let member = member.peer_address();
        let node = self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no host {name}"))?;
        write_node_file(node)?;
        self.supervisors.push(Supervisor::begin(Arc::clone(node), First::Join(member, file)));
        Ok(())
    }

    async fn switch_over(&self, victim: &Victim, name: &str) -> anyhow::Result<()> {
        let words: Vec<&str> = match victim {
            Victim::Host(_) => vec!["switchover", "--to", name],
            _ => vec!["switchover"],
        };
        self.supervisor(name)?.node.ask(&words, Duration::from_secs(60)).await.map(|_| ())
    }

    fn journals(&self) -> anyhow::Result<Journal> {
        let mut journal = Journal::default();
        for entry in fs::read_dir(&self.dir).context("look for journals")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "journal") {
                let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                journal.append(&text).with_context(|| path.display().to_string())?;
            }
        }
        Ok(journal)
    }

    async fn wait_rows(&mut self, since: BootTime) -> anyhow::Result<()> {
        let deadline = Instant::now() + ROWS_LIMIT;
        loop {
            let acknowledged = self.journals()?.count(Outcome::Ok, since);
            if acknowledged >= ROWS {
                return Ok(());
            }
            self.check_clients()?;
            if Instant::now() > deadline {
                bail!("{acknowledged} of {ROWS} rows were acknowledged within {} s", ROWS_LIMIT.as_secs());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends the clients and draws the verdicts; a run that broke off is judged by what there is, and is never `ok`.
    async fn judge(&mut self, result: anyhow::Result<()>, schedule: &Schedule, tell: &(dyn Fn(&str) + Sync)) -> Report {
        process::send(self.client_pids(), Signal::SIGTERM);
        for client in self.clients.iter_mut().chain(&mut self.inserters) {
            // One that does not end by itself is killed when it is dropped.
            let _ = timeout(Duration::from_secs(5), client.wait()).await;
        }
        let mut error = result.err().map(|error| format!("{error:#}"));
        let journal = self.journals().unwrap_or_else(|problem| {
            error.get_or_insert(format!("{problem:#}"));
            Journal::default()
        });
        let mut verdicts = vec![one_writer(&journal), one_active_endpoint(&journal), self.no_panic()];
        if !schedule.stretches.is_empty() && error.is_none() {
            let place = |at| self.began.boot(at);
            let spans = schedule
                .stretches
                .iter()
                .map(|stretch| (Span { sent: place(stretch.from), answered: place(stretch.until) }, stretch.writes));
            verdicts.push(expected_writes(&journal, &spans.collect::<Vec<_>>()));
        }
        let rebuilds = self.rebuilds().await;
        if schedule.rewound {
            verdicts.push(rewound(&rebuilds));
        }
        let mut lost = 0;
        if error.is_none() {
            match self.tables().await {
                Ok(tables) => {
                    let rows = if schedule.lossy { same_rows } else { kept_rows };
                    verdicts.push(rows(&journal, &tables));
                    lost = lost_rows(&journal, &tables).len();
                    if let Some(at_least) = schedule.aside {
                        match self.aside() {
                            Ok(words) => verdicts.push(kept_aside(&journal, &tables, &words, at_least)),
                            Err(problem) => error = Some(format!("{problem:#}")),
                        }
                    }
                }
                Err(problem) => error = Some(format!("{problem:#}")),
            }
        }
        // Gaps are those of the client outside; a client pinned to one host stops with its host's role.
        let outside = fs::read_to_string(self.dir.join("w0.journal")).unwrap_or_default();
        let outside = Journal::parse(&outside).unwrap_or_default();
        let ends: Vec<u64> = self.played.iter().skip(1).map(|next| next.at_ns).chain([u64::MAX]).collect();
        for (played, end) in self.played.iter_mut().zip(ends) {
            let gap = outside.longest_gap(BootTime(played.at_ns), BootTime(end));
            played.write_gap_ms = gap.map(|gap| millis(gap.length()));
        }
        for verdict in &verdicts {
            tell(&format!(
                "{}: {} ({} examined)",
                verdict.checker,
                if verdict.ok { "kept" } else { "BROKEN" },
                verdict.examined
            ));
            verdict.findings.iter().for_each(|finding| tell(&format!("  {finding}")));
        }
        if let Some(error) = &error {
            tell(&format!("the run did not come to its end: {error}"));
        }
        let gap = outside.longest_gap(BootTime(0), BootTime(u64::MAX));
        Report {
            ok: error.is_none() && verdicts.iter().all(|verdict| verdict.ok),
            lease_ms: self.lease_ms,
            acknowledged: journal.count(Outcome::Ok, BootTime(0)),
            failed: journal.count(Outcome::Failed, BootTime(0)),
            unknown: journal.count(Outcome::Unknown, BootTime(0)),
            lost,
            rebuilds,
            longest_gap_ms: gap.map(|gap| millis(gap.length())),
            client_ms: gap.map(|gap| millis(gap.client)),
            steps: self.played.clone(),
            passed_over: self.passed_over.clone(),
            verdicts,
            error,
        }
    }

    async fn tables(&self) -> anyhow::Result<std::collections::BTreeMap<String, super::checkers::Table>> {
        let way_in = self.way_in.as_ref().context("the cluster has not formed")?;
        let active = self.view().await.and_then(|view| view.active).context("no node says who is active")?;
        let is_member = |target: &&super::client::Target| self.supervisor(&target.name).is_ok();
        let targets: Vec<_> = way_in.targets.iter().filter(is_member).cloned().collect();
        rows::read_all(&way_in.access, &targets, &active, "hasup_chaos", WHOLE_LIMIT).await
    }

    /// Returns the words of all log that nodes have put aside.
    fn aside(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for node in &self.nodes {
            all.extend(aside::words(&node.data_dir.join("salvage"))?);
        }
        Ok(all)
    }

    /// Returns what the cluster's history says of rebuilds since the schedule began.
    async fn rebuilds(&self) -> Vec<String> {
        let Some(member) = self.supervisors.first() else { return Vec::new() };
        let since = u64::try_from(self.began.wall.as_millis()).unwrap_or(u64::MAX);
        let history = member.node.history().await;
        let rebuilt = history.into_iter().filter(|event| event.kind == "rebuilt" && event.at_ms >= since);
        rebuilt.map(|event| event.why.step).collect()
    }

    /// Checks that no daemon said that it panicked.
    fn no_panic(&self) -> Verdict {
        let mut findings = Vec::new();
        for node in &self.nodes {
            let text = fs::read(&node.log).unwrap_or_default();
            let panicked = |line: &&str| line.contains("panicked at");
            let text = String::from_utf8_lossy(&text);
            findings.extend(text.lines().filter(panicked).map(|line| format!("{}: {line}", node.name)));
        }
        Verdict {
            checker: "no_panic",
            ok: findings.is_empty(),
            examined: self.nodes.len(),
            violations: findings.len(),
            findings,
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // A clean end frees PostgreSQL's shared memory; the hosts are torn down hard after this.
        let _ = self.lab.hosts.iter().try_for_each(|host| host.resume());
        let clients = self.client_pids();
        let servers = |host: &Host| process::parts(&process::scan(), &host.processes(&clients), Part::Postgres);
        for supervisor in &self.supervisors {
            supervisor.down();
            process::send(supervisor.seen().pid, Signal::SIGKILL);
        }
        for host in &self.lab.hosts {
            process::send(servers(host), Signal::SIGQUIT);
        }
        let deadline = boot_now() + Duration::from_secs(3);
        while self.lab.hosts.iter().any(|host| !servers(host).is_empty()) && boot_now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
