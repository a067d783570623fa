//! Hosts, nodes and clients of one run: sets them up, plays a schedule on them and heals them.
//!
//! What is done to a host, and what shows that it was, is in `inflict`; the verdicts are drawn in `judge`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::{User, chown};
use tokio::process::Child;
use tokio::time::{Instant, sleep_until, timeout};

use super::forming::{WHOLE_LIMIT, WayIn, form};
use super::hosts::{Host, Lab};
use super::judgement::Skipped;
use super::kinds::Kind;
use super::machine::{Machine, USER};
use super::node::{Node, Supervisor, wait_settled};
use super::process;
use super::proof::Proof;
use super::report::PassedOver;
use super::schedule::{Addresses, Fault, Part, Schedule, Step, Victim};
use super::view::View;
use crate::sys::clock::{boot_now, wall_now};
use crate::types::BootTime;

mod clients;
mod inflict;
mod judge;

/// Calm after the last fault: so long at least the clients go on before a run is judged.
const CALM: Duration = Duration::from_secs(2);

/// Hosts, nodes and clients of one run.
pub(super) struct Range {
    dir: PathBuf,
    machine: Machine,
    nodes: Vec<Arc<Node>>,
    supervisors: Vec<Supervisor>,
    clients: Vec<Child>,
    /// Those that a step started; they end when their rows are written.
    inserters: Vec<Child>,
    way_in: Option<WayIn>,
    inflicted: Vec<Inflicted>,
    passed_over: Vec<PassedOver>,
    skipped: Vec<Skipped>,
    /// When everything was healed.
    healed: Option<BootTime>,
    /// Whether the cluster was whole and took writes after the last fault, or what was missing; none where nobody looked.
    recovered: Option<Result<BootTime, String>>,
    lease_ms: u64,
    last: Option<String>,
    down: BTreeSet<String>,
    paused: BTreeSet<String>,
    /// When the schedule's time began, and what was added to it at which of its instants.
    began: Began,
    /// Last, so that it is dropped after everything that runs on it.
    lab: Lab,
}

/// A step that was done to a host.
struct Inflicted {
    step: Step,
    on: String,
    /// The second host, where the step has one.
    other: Option<String>,
    /// When it began.
    at: BootTime,
    /// When it was in force.
    since: BootTime,
    /// When it was taken back; none where it was over at once, or is in force.
    until: Option<BootTime>,
    /// Whether the last measurement is still to be taken.
    is_open: bool,
    /// What a counter said at first: ticks of a frozen host, starts of a daemon.
    counted: u64,
    /// The client that it started.
    client: Option<String>,
    /// What was measured so far.
    proof: Proof,
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
    /// Makes the hosts; nothing runs on them yet. They find nothing in the files `hidden`.
    pub(super) fn set_up(
        names: &[&str],
        dir: PathBuf,
        addresses: Addresses,
        machine: Machine,
        hidden: &[PathBuf],
        tell: &dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        let user = User::from_name(USER).context("look for the user postgres")?;
        let user = user.context("there is no user `postgres`")?;
        chown(&dir, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} to postgres", dir.display()))?;
        for name in names {
            let own = dir.join(name);
            fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
            chown(&own, Some(user.uid), Some(user.gid))
                .with_context(|| format!("give {} to postgres", own.display()))?;
        }
        let lab = Lab::set_up(names, &dir, addresses, &machine, hidden)?;
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
            machine,
            nodes,
            supervisors: Vec::new(),
            clients: Vec::new(),
            inserters: Vec::new(),
            way_in: None,
            inflicted: Vec::new(),
            passed_over: Vec::new(),
            skipped: Vec::new(),
            healed: None,
            recovered: None,
            lease_ms: 0,
            last: None,
            down: BTreeSet::new(),
            paused: BTreeSet::new(),
            began: Began::default(),
            lab,
        })
    }

    /// Forms the cluster, plays the schedule, heals everything and waits until the cluster is whole. `allowed` are the kinds that may
    /// be skipped where the machine cannot do them.
    ///
    /// # Errors
    /// What kept the run from its end; that the cluster did not recover is none of those.
    pub(super) async fn play(
        &mut self,
        schedule: &Schedule,
        allowed: &[Kind],
        tell: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<()> {
        let at_first = |node: &&Arc<Node>| schedule.form.is_empty() || schedule.form.contains(&node.name);
        let first: Vec<Arc<Node>> = self.nodes.iter().filter(at_first).map(Arc::clone).collect();
        form(&first, &schedule.options, &self.dir, &mut self.supervisors, tell).await?;
        let way_in = WayIn::find(&self.nodes, &self.dir).await?;
        self.lease_ms = self.view().await.and_then(|view| view.cluster.lease_ms).unwrap_or_default();
        self.start_clients(&way_in)?;
        self.way_in = Some(way_in);
        if let Some(missing) = self.wait_rows(Duration::ZERO).await? {
            anyhow::bail!("before the first fault: {missing}");
        }
        let mut start = Instant::now();
        self.began = Began { at: boot_now(), wall: wall_now(), delays: Vec::new() };
        for step in &schedule.steps {
            let due = start + step.at;
            sleep_until(due).await;
            self.check_clients()?;
            let kind = step.fault.kind();
            if let Some(why) = self.machine.lacks(kind.row().needs) {
                tell(&format!("skipped: {step}: {why}"));
                let (step, why) = (step.to_string(), why.to_owned());
                self.skipped.push(Skipped { step, kind, why, allowed: allowed.contains(&kind) });
                continue;
            }
            let hosts = match self.hosts_of(step).await.with_context(|| step.to_string()) {
                Err(why) if schedule.lenient => {
                    self.pass_over(step, None, &format!("{why:#}"), tell);
                    Vec::new()
                }
                hosts => hosts?,
            };
            let mut victims = Vec::new();
            for (host, other) in hosts {
                match self.idle(step, &host, other.as_deref()) {
                    Some(why) if schedule.lenient => self.pass_over(step, Some(&host), &why, tell),
                    _ => victims.push((host, other)),
                }
            }
            // Asking who is active may take a while in a broken cluster; what follows keeps its distance from this step.
            start += due.elapsed();
            self.began.delays.push((step.at, due.elapsed()));
            if step.fault == Fault::Crash {
                // One power cut: none of them sees another go.
                for (host, _) in &victims {
                    self.end(host, |open| open == Kind::Pause)?;
                    self.lab.host(host).map_or(Ok(()), Host::cut)?;
                }
            }
            for (host, other) in victims {
                tell(&format!("{step}: {host}"));
                match self.inflict(step, &host, other.as_deref()).await.with_context(|| format!("{step}: {host}")) {
                    Err(why) if schedule.passes_over(&step.fault) => {
                        self.pass_over(step, Some(&host), &format!("{why:#}"), tell);
                        continue;
                    }
                    done => done?,
                }
                self.last = Some(host);
            }
        }
        sleep_until(start + schedule.end).await;
        tell("the faults are over: healing everything");
        self.healed = Some(boot_now());
        self.heal_all()?;
        self.recovered = Some(self.recover(tell).await?);
        // Boots and joins may have taken their time up to here.
        self.end_all()
    }

    /// Ends every fault that is in force.
    fn heal_all(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            self.end(name, |open| open.row().undone_by.is_some())?;
        }
        for host in &self.lab.hosts {
            host.heal()?;
            host.resume()?;
        }
        self.paused.clear();
        for name in std::mem::take(&mut self.down) {
            self.supervisor(&name)?.up();
        }
        Ok(())
    }

    /// Waits until the cluster is whole and takes writes, and returns since when it is whole, or what is missing.
    async fn recover(&mut self, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Result<BootTime, String>> {
        if let Err(missing) = wait_settled(&self.supervisors, WHOLE_LIMIT).await {
            return Ok(Err(format!("after the last fault, {missing:#}")));
        }
        tell("the cluster is whole again");
        let whole = boot_now();
        Ok(match self.wait_rows(CALM).await? {
            Some(missing) => Err(format!("after the last fault, {missing}")),
            None => Ok(whole),
        })
    }

    fn pass_over(&mut self, step: &Step, on: Option<&str>, why: &str, tell: &dyn Fn(&str)) {
        tell(&format!("passed over: {step}: {why}"));
        self.passed_over.push(PassedOver { step: step.to_string(), on: on.map(str::to_owned), why: why.to_owned() });
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

    /// Returns whom a step is done to, each with the second host where the step has one.
    async fn hosts_of(&self, step: &Step) -> anyhow::Result<Vec<(String, Option<String>)>> {
        let hosts = self.victims(&step.victim).await?;
        let Fault::Part(other) = &step.fault else { return Ok(hosts.into_iter().map(|host| (host, None)).collect()) };
        let mut pairs = Vec::new();
        for host in hosts {
            let others = match other {
                // Of two standbys, the second is another one.
                Victim::Standby => {
                    self.victims(&Victim::Standbys).await?.into_iter().filter(|it| *it != host).collect()
                }
                other => self.victims(other).await?,
            };
            let other = others.into_iter().next().context("nobody is there to part from")?;
            pairs.push((host, Some(other)));
        }
        Ok(pairs)
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
