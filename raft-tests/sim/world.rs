//! The world: virtual time, the queue of what will happen, the network, and the order in which all is played.

use std::collections::{BTreeMap, BinaryHeap};

use hasup::ha::durable::{DataState, Durable};
use hasup::ha::pulse::Datagram;
use hasup::ha::record::MemberKind;
use hasup::ha::rules::{Mutation, Rules};
use hasup::ha::timing::Timing;
use hasup::types::{BootTime, DataIncarnation, NodeId};

use crate::event::{Event, Scheduled};
use crate::faults::{Armed, Schedule};
use crate::invariants::Violation;
use crate::node::{Clock, Guard, Node};
use crate::postgres::{Postgres, Stream};
use crate::raft::{ClusterState, Info, Raft, first_state};
use crate::rng::{MS, Rng, Time};
use crate::wal::{Instance, Wal};

/// How many datagrams an attacker remembers.
const RECORDED: usize = 48;

/// Everything of one run.
pub struct World {
    /// Virtual time.
    pub now: Time,
    queue: BinaryHeap<Scheduled>,
    planned: u64,
    /// The source of chance.
    pub rng: Rng,
    /// The spans that no option changes.
    pub timing: Timing,
    /// The rules in force.
    pub rules: Rules,
    /// The machines.
    pub nodes: Vec<Node>,
    /// `cut[from][to]`.
    pub cut: Vec<Vec<bool>>,
    /// `extra[from][to]`: delay on top.
    pub extra: Vec<Vec<Time>>,
    /// Datagrams lost, in thousandths.
    pub loss: u64,
    /// Replication connections ever made.
    pub streams: Vec<Stream>,
    /// Promotions ever made; the first is the initial database.
    pub instances: Vec<Instance>,
    /// Raft.
    pub raft: Raft,
    /// Faults that wait for something.
    pub armed: Vec<Armed>,
    recorded: Vec<(usize, usize, Datagram)>,
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// Commits acknowledged.
    pub acknowledgements: u64,
    /// When the last one was.
    pub last_acknowledged: Time,
    /// When the last fault ended, once it has.
    pub healed_at: Option<Time>,
    /// When writes returned after that.
    pub recovered_at: Option<Time>,
    /// A number that two runs share only if the same happened in the same order.
    pub fingerprint: u64,
    /// The run is told as lines of text.
    pub trace: Option<Vec<String>>,
    /// How much long work was begun.
    pub planned_jobs: u64,
    /// How many events were played.
    pub events: u64,
}

impl World {
    /// Builds the world that `schedule` starts from.
    pub fn new(schedule: &Schedule, rules: Rules, seed: u64, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0xA5A5_5A5A);
        let timing = Timing::default();
        let count = schedule.kinds.len();
        let first = Instance { timeline: 1, generation: 0, node: 0, start: Wal::default(), acknowledged: 10 };
        let nofailover = |node| schedule.nofailover == Some(node);
        let info = |node: usize| Info { kind: schedule.kinds[node], priority: 100, nofailover: nofailover(node) };
        let members: BTreeMap<NodeId, Info> =
            (0..schedule.members).map(|node| (NodeId(node as u64 + 1), info(node))).collect();
        let state: ClusterState = first_state(&members, schedule.durability);
        let voters = state.record.as_ref().map(|(record, _)| record.voter_sets.clone()).unwrap_or_default();
        let nodes = (0..count)
            .map(|node| {
                let is_member = node < schedule.members;
                let has_data = is_member && schedule.kinds[node] == MemberKind::Data;
                let data = if has_data { DataState::Intact } else { DataState::Empty };
                let incarnation = DataIncarnation(u64::from(has_data));
                let wal = if has_data { Wal { stretches: vec![(0, 10)] } } else { Wal::default() };
                Node {
                    id: NodeId(node as u64 + 1),
                    kind: schedule.kinds[node],
                    is_powered: is_member,
                    frozen: None,
                    deferred: Vec::new(),
                    clock: Clock {
                        base: 0,
                        local: rng.between(1, 1_000) * 1_000_000_000,
                        drift: rng.between(0, 400) as i64 - 200,
                    },
                    boots: 1,
                    disk: Durable { incarnation, data, ..Durable::default() },
                    applied: 0,
                    daemon: None,
                    daemon_epoch: 0,
                    guard: Guard { is_alive: is_member, ..Guard::default() },
                    pg: Postgres::new(wal),
                    stalled_until: 0,
                    unfit_until: 0,
                    is_marked: false,
                    slow_disk_until: 0,
                    slow_apply_until: 0,
                    said_barred: Default::default(),
                    said_resigned: Default::default(),
                    stated_under: Default::default(),
                    has_lost_time: false,
                    told: String::new(),
                }
            })
            .collect();
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::with_capacity(256),
            planned: 0,
            rng,
            timing,
            rules,
            nodes,
            cut: vec![vec![false; count]; count],
            extra: vec![vec![0; count]; count],
            loss: 0,
            streams: Vec::new(),
            instances: vec![first],
            raft: Raft {
                log: vec![std::rc::Rc::new(state)],
                voters,
                leader: None,
                term: 0,
                leaderless_since: None,
                patience: 0,
                has_look: false,
                slow_until: 0,
            },
            armed: schedule.armed.clone(),
            recorded: Vec::new(),
            violation: None,
            acknowledgements: 0,
            last_acknowledged: 0,
            healed_at: None,
            recovered_at: None,
            fingerprint: 0xCBF2_9CE4_8422_2325,
            trace: is_traced.then(Vec::new),
            planned_jobs: 0,
            events: 0,
        };
        for node in 0..schedule.members {
            let delay = world.rng.millis(1, 200);
            world.after(delay, Event::DaemonStart { node });
        }
        world.after(MS, Event::Raft);
        for (at, fault) in &schedule.faults {
            world.after(*at, Event::Fault { fault: fault.clone() });
        }
        world.after(schedule.heal_at, Event::Heal { heal: crate::event::Heal::All });
        world
    }

    /// Plans `event` for `delay` from now.
    pub fn after(&mut self, delay: Time, event: Event) {
        self.planned += 1;
        self.queue.push(Scheduled { at: self.now + delay, number: self.planned, event });
    }

    /// Tells what happens, where somebody listens.
    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let line = format!("{:>9.3} ms  {}", self.now as f64 / 1e6, text());
            trace.push(line);
        }
    }

    /// Writes down the first broken rule.
    pub fn break_rule(&mut self, rule: &'static str, what: String) {
        if self.violation.is_none() {
            self.note(|| format!("{rule} BROKEN: {what}"));
            self.violation = Some(Violation { rule, what, at: self.now });
        }
    }

    /// Returns what a node's boot-time clock shows now.
    pub fn local(&self, node: usize) -> BootTime {
        self.nodes[node].clock.at(self.now)
    }

    /// Returns how long until a node's clock shows `local`.
    pub fn until(&self, node: usize, local: BootTime) -> Time {
        self.nodes[node].clock.when(local).saturating_sub(self.now)
    }

    /// Plays until `end` or a broken rule.
    pub fn play(&mut self, end: Time) {
        while self.violation.is_none() {
            let Some(next) = self.queue.pop() else { return };
            if next.at > end {
                return;
            }
            self.now = next.at;
            self.events += 1;
            if let Some(node) = next.event.node(&self.streams)
                && self.nodes[node].frozen.is_some()
            {
                self.nodes[node].deferred.push(next.event);
                continue;
            }
            let print = next.at ^ next.event.kind().wrapping_mul(0x9E37_79B9);
            self.fingerprint = (self.fingerprint ^ print).wrapping_mul(0x0100_0000_01B3);
            self.happen(next.event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram { to, from, datagram } => self.receive(to, from, *datagram),
            Event::Pulse { node, epoch } if self.is_daemon(node, epoch) => self.pulse(node),
            Event::Look { node, epoch, token } if self.is_daemon(node, epoch) => self.look(node, token),
            Event::Decide { node, epoch, view } if self.is_daemon(node, epoch) => self.decide(node, *view),
            Event::Step { node, epoch, token } if self.is_daemon(node, epoch) => self.step(node, token),
            Event::Job { node, epoch, job } if self.is_daemon(node, epoch) => self.job(node, job),
            Event::GuardTimer { node, epoch } => self.guard_timer(node, epoch),
            Event::GuardBack { node } => self.guard_back(node),
            Event::DaemonStart { node } => self.daemon_start(node),
            Event::PostgresDead { node, epoch } if self.is_postgres(node, epoch) => self.postgres_dead(node),
            Event::PostgresUp { node, epoch } if self.is_postgres(node, epoch) => self.postgres_up(node),
            Event::Replayed { node, epoch } if self.is_postgres(node, epoch) => self.postgres_replayed(node),
            Event::Promoted { node, epoch } if self.is_postgres(node, epoch) => self.postgres_promoted(node),
            Event::Write { node, epoch } if self.is_postgres(node, epoch) => self.postgres_write(node),
            Event::Flush { node, epoch } if self.is_postgres(node, epoch) => self.postgres_flush(node),
            Event::NamesRead { node, epoch } if self.is_postgres(node, epoch) => self.names_read(node),
            Event::NamesReadBy { stream } => self.names_read_by(stream),
            Event::Connect { node, epoch } if self.is_postgres(node, epoch) => self.postgres_connect(node),
            Event::ReceiverGone { node, epoch } if self.is_postgres(node, epoch) => {
                if let Some(stream) = self.nodes[node].pg.receiver {
                    self.receiver_ends(stream);
                }
            }
            Event::Wal { stream, upto, tries } => self.wal_arrives(stream, upto, tries),
            Event::Flushed { stream, lsn, tries } => self.flushed_arrives(stream, lsn, tries),
            Event::SenderGone { stream, tries } => self.notice(stream, true, tries),
            Event::ReceiverNotices { stream, tries } => self.notice(stream, false, tries),
            Event::Raft => self.raft_tick(),
            Event::Commit { proposal } => self.commit(*proposal),
            Event::Apply { node, upto } => self.apply(node, upto),
            Event::LeaderLook => self.leader_look(),
            Event::LeaderAssign { node, term, read } => self.leader_assign(node, term, read),
            Event::Fault { fault } => self.fault(fault),
            Event::Heal { heal } => self.heal(heal),
            Event::Replay => self.replay(),
            // of a life that is over
            Event::Pulse { .. }
            | Event::Look { .. }
            | Event::Decide { .. }
            | Event::Step { .. }
            | Event::Job { .. }
            | Event::PostgresDead { .. }
            | Event::PostgresUp { .. }
            | Event::Replayed { .. }
            | Event::Promoted { .. }
            | Event::Write { .. }
            | Event::Flush { .. }
            | Event::NamesRead { .. }
            | Event::Connect { .. }
            | Event::ReceiverGone { .. } => {}
        }
    }

    fn is_daemon(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].daemon.is_some() && self.nodes[node].daemon_epoch == epoch
    }

    fn is_postgres(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].pg.epoch == epoch
    }

    // ---- the network ----

    /// Whether packets of `from` reach `to` now.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        from == to || (!self.cut[from][to] && self.nodes[from].is_powered && self.nodes[to].is_powered)
    }

    /// Returns how long a packet takes.
    fn delay(&mut self, from: usize, to: usize) -> Time {
        let base = self.rng.micros(100, 800);
        let spike = if self.rng.chance(10) { self.rng.millis(1, 60) } else { 0 };
        base + spike + self.extra[from][to]
    }

    /// Returns how long a message on a connection takes: a lost packet is sent again.
    pub fn tcp_delay(&mut self, from: usize, to: usize) -> Time {
        let again = if self.rng.chance(self.loss) { self.rng.millis(200, 400) } else { 0 };
        self.delay(from, to) + again
    }

    /// Sends datagrams: they may be late, lost, doubled or overtaken.
    pub fn send(&mut self, from: usize, datagrams: Vec<(NodeId, Datagram)>) {
        for (to, datagram) in datagrams {
            let to = self.index_of(to);
            crate::invariants::on_sent(self, from, &datagram);
            if self.rng.chance(15) {
                let record = (to, from, datagram.clone());
                if self.recorded.len() < RECORDED {
                    self.recorded.push(record);
                } else {
                    let place = self.rng.between(0, RECORDED as u64 - 1) as usize;
                    self.recorded[place] = record;
                }
            }
            if !self.passes(from, to) || self.rng.chance(self.loss) {
                continue;
            }
            if self.rng.chance(4) {
                let delay = self.delay(from, to) + self.rng.millis(0, 40);
                let datagram = Box::new(datagram.clone());
                self.after(delay, Event::Datagram { to, from, datagram });
            }
            let delay = self.delay(from, to);
            self.after(delay, Event::Datagram { to, from, datagram: Box::new(datagram) });
        }
    }

    /// An attacker sends what was recorded to whom it was meant for: none of the cuts concern him.
    fn replay(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let index = self.rng.between(0, self.recorded.len() as u64 - 1) as usize;
        let (to, from, datagram) = self.recorded[index].clone();
        self.after(0, Event::Datagram { to, from, datagram: Box::new(datagram) });
    }

    fn receive(&mut self, to: usize, from: usize, datagram: Datagram) {
        let local = self.local(to);
        let from_id = self.nodes[from].id;
        if !self.nodes[to].is_powered {
            return;
        }
        let Some(daemon) = &mut self.nodes[to].daemon else { return };
        let received = daemon.core.receive(local, from_id, datagram);
        self.extend(to);
        for (_, reply) in &received.replies {
            crate::invariants::on_granted(self, to, from, reply);
        }
        self.send(to, received.replies);
        if received.is_news {
            self.news(to);
            if self.raft.leader == Some(to) {
                self.wake_leader(MS);
            }
        }
    }

    /// Sends the round of pulses that is due.
    fn pulse(&mut self, node: usize) {
        let local = self.local(node);
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        let round = daemon.core.tick(local);
        self.extend(node);
        self.send(node, round);
        let Some(daemon) = &self.nodes[node].daemon else { return };
        let next = daemon.core.next_tick();
        let delay = self.until(node, next).max(MS);
        let epoch = self.nodes[node].daemon_epoch;
        self.after(delay, Event::Pulse { node, epoch });
    }

    /// Tells the guard how far the lease goes by now.
    pub fn extend(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        let Some(daemon) = &host.daemon else { return };
        let Some((generation, end)) = daemon.core.view_lease() else { return };
        let guard = &mut host.guard;
        if guard.is_alive && guard.armed == Some(generation) && !guard.has_fence_begun && guard.deadline < end {
            guard.deadline = end;
        }
        crate::invariants::on_lease(self, node);
    }

    // ---- the guard ----

    /// Plans the fence.
    pub fn plan_fence(&mut self, node: usize) {
        let lead = self.timing.fence_lead;
        let guard = &self.nodes[node].guard;
        if guard.has_timer || guard.armed.is_none() {
            return;
        }
        let (epoch, when) = (guard.epoch, guard.deadline.before(lead));
        let delay = self.until(node, when);
        self.nodes[node].guard.has_timer = true;
        self.after(delay, Event::GuardTimer { node, epoch });
    }

    fn guard_timer(&mut self, node: usize, epoch: u64) {
        let local = self.local(node);
        let lead = self.timing.fence_lead;
        let guard = &mut self.nodes[node].guard;
        if !guard.is_alive || guard.epoch != epoch {
            return;
        }
        guard.has_timer = false;
        if guard.armed.is_none() || guard.has_fence_begun {
            return;
        }
        if local < guard.deadline.before(lead) {
            self.plan_fence(node);
            return;
        }
        guard.has_fence_begun = true;
        let to_deadline = self.nodes[node].clock.when(self.nodes[node].guard.deadline).saturating_sub(self.now);
        let delay = if self.rng.chance(300) {
            to_deadline + self.rng.millis(0, 15)
        } else {
            self.rng.millis(1, 40).min(to_deadline + 5 * MS)
        };
        self.note(|| format!("the fence of node {} begins", node + 1));
        self.postgres_kill(node, delay);
        self.news(node);
    }

    fn guard_back(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        if host.is_powered && !host.guard.is_alive {
            let epoch = host.guard.epoch + 1;
            host.guard = Guard { is_alive: true, epoch, ..Guard::default() };
            self.news(node);
        }
    }

    /// The rule left out, asked for in short.
    pub fn broken(&self, mutation: Mutation) -> bool {
        self.rules.broken(mutation)
    }
}
