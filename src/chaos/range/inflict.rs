//! Does a step to a host, and takes the measurements that show it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{Inflicted, Range};
use crate::chaos::forming::{write_node_file, write_private};
use crate::chaos::kinds::Kind;
use crate::chaos::node::{First, Supervisor};
use crate::chaos::proof::Proof;
use crate::chaos::schedule::{Fault, Part, Step, Victim};
use crate::chaos::{process, whole_millis};
use crate::sys::clock::boot_now;

/// How long killed processes may take to be gone, and a mark to reach another member.
const SHOW_LIMIT: Duration = Duration::from_secs(3);

impl Range {
    /// Does `step` to the host `name`; `other` is the second host, where the step has one.
    pub(super) async fn inflict(&mut self, step: &Step, name: &str, other: Option<&str>) -> anyhow::Result<()> {
        let at = boot_now();
        self.end_what_this_ends(step.fault.kind(), name)?;
        let (mut counted, mut client) = (0, None);
        let clients = self.client_pids();
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let proof = match &step.fault {
            Fault::Crash => {
                let processes_before = host.processes(&clients).len();
                self.supervisor(name)?.down();
                host.crash(&clients)?;
                let processes_after = host.processes(&clients).len();
                let carrier = host.carrier()?;
                self.paused.remove(name);
                self.down.insert(name.to_owned());
                Proof::Power { processes_before, processes_after, carrier, answers: 0 }
            }
            Fault::Boot => {
                host.heal()?;
                let carrier = host.carrier()?;
                let supervisor = self.supervisor(name)?;
                counted = u64::from(supervisor.seen().starts);
                supervisor.up();
                self.down.remove(name);
                Proof::Boot { carrier, starts: 0 }
            }
            Fault::Cut => {
                let carrier_before = host.carrier()?;
                host.cut()?;
                Proof::Cable { carrier_before, carrier: host.carrier()?, answers: 0 }
            }
            Fault::Heal => {
                host.heal()?;
                Proof::Healed { carrier: host.carrier()?, rules: host.packets()?.rules }
            }
            Fault::Oneway(direction) => {
                host.oneway(*direction)?;
                Proof::Dropped(host.packets()?)
            }
            Fault::Loss(percent) => {
                host.loss(*percent)?;
                Proof::Dropped(host.packets()?)
            }
            Fault::Part(_) => {
                let other = other.and_then(|other| self.lab.host(other)).context("nobody to part from")?;
                host.part(other)?;
                Proof::Dropped(host.packets()?)
            }
            Fault::Pause => {
                host.pause(&clients)?;
                counted = host.ticks(&clients);
                let processes = host.processes(&clients).len();
                let frozen = host.is_frozen(&clients);
                self.paused.insert(name.to_owned());
                Proof::Frozen { processes, frozen, cpu_ticks: 0, frozen_ms: 0, answers: 0 }
            }
            Fault::Resume => {
                host.resume()?;
                let frozen = host.is_frozen(&clients);
                self.paused.remove(name);
                Proof::Thawed { frozen }
            }
            Fault::Kill(part) => {
                // The part itself, and nothing that it started.
                let pids = process::parts(&process::scan(), &host.processes(&clients), *part);
                if pids.is_empty() {
                    bail!("{name} runs no {part} to kill");
                }
                kill(&pids).await
            }
            Fault::Switchover => {
                self.switch_over(&step.victim, name).await?;
                Proof::Moved { writer_before: None, writer_after: None }
            }
            Fault::Mark(is_set) => self.mark(name, *is_set).await?,
            Fault::Insert(rows) => {
                client = Some(self.insert(*rows, name)?);
                Proof::Sent { rows: 0 }
            }
            Fault::Remove => {
                let processes_before = host.processes(&clients).len();
                let folder = self.remove(name).await?;
                let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
                let processes_after = host.processes(&clients).len();
                Proof::Gone { processes_before, processes_after, folder: folder.exists() }
            }
            Fault::Join => {
                self.join(name).await?;
                Proof::Came { servers: 0 }
            }
        };
        self.inflicted.push(Inflicted {
            step: step.clone(),
            on: name.to_owned(),
            other: other.map(str::to_owned),
            at,
            since: boot_now(),
            until: None,
            is_open: true,
            counted,
            client,
            proof,
        });
        Ok(())
    }

    /// Takes the last measurements of what a step of `kind` is about to end at the host.
    fn end_what_this_ends(&mut self, kind: Kind, name: &str) -> anyhow::Result<()> {
        self.end(name, |open| match kind {
            // A boot puts the cable in and removes every rule, too.
            Kind::Boot => open.row().undone_by.is_some_and(|undo| matches!(undo, Kind::Boot | Kind::Heal)),
            Kind::Crash | Kind::Remove => matches!(open, Kind::Pause | Kind::Boot | Kind::Join),
            Kind::Oneway | Kind::Loss | Kind::Part => open.is_rule(),
            Kind::Heal | Kind::Resume | Kind::Unmark => open.row().undone_by == Some(kind),
            Kind::Cut | Kind::Pause | Kind::Kill | Kind::Switchover | Kind::Mark | Kind::Insert | Kind::Join => false,
        })
    }

    /// Takes the last measurements of everything that still goes on.
    pub(super) fn end_all(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        names.iter().try_for_each(|name| self.end(name, |_| true))
    }

    /// Takes the last measurements of what goes on at the host and is of a kind that `ends` names.
    pub(super) fn end(&mut self, name: &str, ends: impl Fn(Kind) -> bool) -> anyhow::Result<()> {
        let clients = self.client_pids();
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let starts = self.supervisor(name).map(|supervisor| u64::from(supervisor.seen().starts)).unwrap_or_default();
        for inflicted in &mut self.inflicted {
            let kind = inflicted.step.fault.kind();
            if inflicted.on != name || !inflicted.is_open || !ends(kind) {
                continue;
            }
            let now = boot_now();
            inflicted.is_open = false;
            inflicted.until = kind.row().undone_by.map(|_| now);
            match &mut inflicted.proof {
                Proof::Cable { carrier, .. } => *carrier |= host.carrier()?,
                Proof::Dropped(packets) => *packets = host.packets()?,
                Proof::Frozen { frozen, cpu_ticks, frozen_ms, .. } => {
                    *frozen &= host.is_frozen(&clients);
                    *cpu_ticks = host.ticks(&clients).saturating_sub(inflicted.counted);
                    *frozen_ms = whole_millis(now.since(inflicted.since));
                }
                Proof::Boot { starts: counted, .. } => *counted = starts.saturating_sub(inflicted.counted),
                Proof::Came { servers } => {
                    *servers = process::parts(&process::scan(), &host.processes(&clients), Part::Postgres).len();
                }
                Proof::Power { .. }
                | Proof::Healed { .. }
                | Proof::Thawed { .. }
                | Proof::Killed { .. }
                | Proof::Moved { .. }
                | Proof::Said { .. }
                | Proof::Sent { .. }
                | Proof::Gone { .. } => {}
            }
        }
        Ok(())
    }

    /// Returns why a step finds nothing to break at the host; none where it does.
    pub(super) fn idle(&self, step: &Step, name: &str, other: Option<&str>) -> Option<String> {
        let is_out = |name: &str| {
            let cut = |inflicted: &Inflicted| inflicted.is_open && inflicted.step.fault == Fault::Cut;
            self.down.contains(name) || self.inflicted.iter().any(|it| it.on == name && cut(it))
        };
        let kind = step.fault.kind();
        match kind {
            Kind::Boot if !self.down.contains(name) => Some(format!("{name} is up already")),
            Kind::Crash | Kind::Pause | Kind::Kill | Kind::Switchover | Kind::Insert if self.down.contains(name) => {
                Some(format!("{name} is down"))
            }
            Kind::Pause | Kind::Kill | Kind::Switchover if self.paused.contains(name) => {
                Some(format!("{name} is frozen"))
            }
            Kind::Cut | Kind::Oneway | Kind::Loss | Kind::Part if is_out(name) => {
                Some(format!("{name} has no cable that carries"))
            }
            Kind::Part => match other {
                Some(other) if other == name => Some(format!("{name} cannot be parted from itself")),
                Some(other) if is_out(other) => Some(format!("{other} has no cable that carries")),
                _ => None,
            },
            _ => None,
        }
    }

    /// Marks a node by the word of another member, and asks that one.
    async fn mark(&self, name: &str, is_set: bool) -> anyhow::Result<Proof> {
        let mark = format!("nofailover={is_set}");
        self.ask(name, &["nodes", "set", name, &mark]).await?;
        let member = &self.other(name)?.node;
        let deadline = boot_now() + SHOW_LIMIT;
        loop {
            let nodes = member.view().await.map(|view| view.nodes).unwrap_or_default();
            let nofailover = nodes.iter().find(|node| node.name == name).and_then(|node| node.nofailover);
            if nofailover == Some(is_set) || boot_now() > deadline {
                return Ok(Proof::Said { by: member.name.clone(), nofailover });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns a member that is neither down nor `except`.
    fn other(&self, except: &str) -> anyhow::Result<&Supervisor> {
        let up = |supervisor: &&Supervisor| {
            let name = &supervisor.node.name;
            name != except && !self.down.contains(name) && !self.paused.contains(name)
        };
        self.supervisors.iter().find(up).context("no other node is up")
    }

    /// Asks a member that is neither down nor `except`.
    async fn ask(&self, except: &str, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        self.other(except)?.node.ask(words, Duration::from_secs(60)).await
    }

    /// Removes a node and empties its folder, which it returns.
    async fn remove(&mut self, name: &str) -> anyhow::Result<std::path::PathBuf> {
        self.ask(name, &["nodes", "remove", name]).await?;
        let clients = self.client_pids();
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let supervisor = self.supervisor(name)?;
        supervisor.down();
        host.kill(&clients)?;
        let folder = supervisor.node.data_dir.clone();
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        self.supervisors.retain(|supervisor| supervisor.node.name != name);
        Ok(folder)
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
            Victim::Active => vec!["switchover"],
            _ => vec!["switchover", "--to", name],
        };
        self.supervisor(name)?.node.ask(&words, Duration::from_secs(60)).await.map(|_| ())
    }
}

/// Kills processes and waits until they are gone.
async fn kill(pids: &[i32]) -> Proof {
    let alive = |pids: &[(i32, Option<u64>)]| {
        let same = |(pid, start): &&(i32, Option<u64>)| start.is_some() && process::started(*pid) == *start;
        pids.iter().filter(same).map(|(pid, _)| *pid).collect::<Vec<_>>()
    };
    let known: Vec<_> = pids.iter().map(|pid| (*pid, process::started(*pid))).collect();
    let at = boot_now();
    process::send(pids.iter().copied(), Signal::SIGKILL);
    loop {
        let left = alive(&known);
        let since = boot_now().since(at);
        if left.is_empty() || since > SHOW_LIMIT {
            return Proof::Killed { pids: pids.to_vec(), left, gone_ms: whole_millis(since) };
        }
        sleep(Duration::from_millis(2)).await;
    }
}
