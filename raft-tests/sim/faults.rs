//! Schedules: what goes wrong, when, to whom; drawn from a seed, aimed at the windows where rules matter.

use hasup::ha::record::{Durability, MemberKind, Multiplier};
use hasup::types::NodeId;

use crate::event::{Event, Heal};
use crate::node::Guard;
use crate::raft::{ClusterState, Command, Info};
use crate::rng::{MS, Rng, Time};
use crate::world::World;

/// Whom a fault strikes, as of the moment it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The node that the newest record names.
    Active,
    /// Raft's leader.
    Leader,
    /// The n-th of the others.
    Standby(usize),
    /// This one.
    Node(usize),
}

/// Which way a node is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing it sends arrives.
    Out,
    /// Nothing arrives at it.
    In,
    /// Neither.
    Both,
}

/// One thing that goes wrong, or that an operator does at an awkward time.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A machine loses power for a while.
    Power { target: Target, lasts: Time },
    /// All machines lose power.
    PowerAll { lasts: Time },
    /// The daemon is killed and started again.
    Daemon { target: Target, back: Time },
    /// The guard is killed: PostgreSQL dies with it.
    Guard { target: Target, back: Time },
    /// PostgreSQL dies.
    Postgres { target: Target },
    /// A guest stops and goes on later.
    Freeze { target: Target, lasts: Time, stops_clock: bool },
    /// The control loop stands still; the pulse thread does not.
    Stall { target: Target, lasts: Time },
    /// A node is cut off from all others.
    Isolate { target: Target, way: Way, lasts: Time },
    /// One link, one direction or both.
    Link { from: Target, to: Target, is_both: bool, lasts: Time },
    /// One direction of a link gets slow.
    Slow { from: Target, to: Target, extra: Time, lasts: Time },
    /// The target and this many others are cut off from the rest.
    Split { target: Target, with: Vec<usize>, lasts: Time },
    /// Datagrams get lost.
    Loss { per_mille: u64, lasts: Time },
    /// Another leader is elected.
    Leader { to: Target },
    /// Commits of the log get slow.
    SlowCommit { lasts: Time },
    /// A node applies late.
    SlowApply { target: Target, lasts: Time },
    /// A node's disk is slow for small files.
    SlowDisk { target: Target, lasts: Time },
    /// An operator orders a switchover.
    Switchover { to: Option<Target> },
    /// An operator stops a node in order, and starts it later.
    Stop { target: Target, lasts: Time },
    /// A node joins.
    Join { node: usize },
    /// An operator takes a node out for good.
    Remove { target: Target },
    /// An attacker sends old datagrams again.
    Replay { count: u64 },
    /// An operator marks a node never to be made active, and thinks better of it later.
    KeptBack { target: Target, lasts: Time },
    /// A node is not fit to become active for a while.
    Unfit { target: Target, lasts: Time },
    /// An operator changes what commits wait for.
    Durability { durability: Durability },
    /// An operator changes the length of the lease, for good or until he thinks better of it.
    Multiplier { thousandths: u32 },
}

/// What an armed fault waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A node has barred and not yet reported: the node itself is struck.
    Barred,
    /// A record of a later generation was committed: its node is struck.
    Assigned,
    /// A node began to fetch log from another standby.
    Fetches,
    /// A record was opened.
    Opened,
    /// A change of voters began.
    VotersChange,
    /// A change of commit sets began.
    SetsChange,
}

/// A fault that waits for its moment.
#[derive(Debug, Clone)]
pub struct Armed {
    /// For what.
    pub trigger: Trigger,
    /// How long after it.
    pub delay: (Time, Time),
    /// What then.
    pub fault: Fault,
    /// Not before this.
    pub from: Time,
    /// How often still.
    pub times: u32,
}

/// A whole run's plan.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// What each machine is, the first `members` of which begin as the cluster.
    pub kinds: Vec<MemberKind>,
    /// How many are members from the start.
    pub members: usize,
    /// What commits wait for.
    pub durability: Durability,
    /// Who is never made active by itself.
    pub nofailover: Option<usize>,
    /// What goes wrong, and when.
    pub faults: Vec<(Time, Fault)>,
    /// What goes wrong at its moment.
    pub armed: Vec<Armed>,
    /// When all is repaired.
    pub heal_at: Time,
    /// When the run ends.
    pub end: Time,
}

const SECOND: Time = 1_000 * MS;

/// Draws a schedule.
pub fn draw(seed: u64) -> Schedule {
    use MemberKind::{Data, Witness};
    let mut rng = Rng::new(seed);
    let (kinds, members, durability) = match rng.between(0, 99) {
        0..=57 => (vec![Data; 3], 3, Durability::TwoNodes),
        58..=61 => (vec![Data; 5], 3, Durability::TwoNodes),
        62..=74 => (vec![Data, Data, Witness], 3, Durability::TwoNodes),
        75..=79 => (vec![Data; 5], 5, Durability::TwoNodes),
        80..=89 => (vec![Data; 3], 1, Durability::TwoNodes),
        90 => (vec![Data; 3], 1, Durability::OneNode),
        91 => (vec![Data; 5], 5, Durability::OneNode),
        92..=93 => (vec![Data; 3], 3, Durability::BestEffort),
        94 => (vec![Data; 5], 5, Durability::BestEffort),
        95..=96 => (vec![Data; 2], 2, Durability::TwoNodes),
        97..=98 => (vec![Data; 3], 3, Durability::OneNode),
        _ => (vec![Data; 1], 1, Durability::TwoNodes),
    };
    let count = kinds.len();
    let mut schedule = Schedule {
        kinds,
        members,
        durability,
        nofailover: None,
        faults: Vec::new(),
        armed: Vec::new(),
        heal_at: 32 * SECOND,
        end: 60 * SECOND,
    };
    for node in members..count {
        let at = rng.millis(2_000, 9_000);
        schedule.faults.push((at, Fault::Join { node }));
    }
    let mut at = rng.millis(2_000, 5_000);
    for _ in 0..rng.between(1, 8) {
        let fault = draw_fault(&mut rng, count);
        schedule.faults.push((at, fault));
        at += if rng.chance(400) { rng.millis(10, 2_500) } else { rng.millis(1_000, 7_000) };
        if at > schedule.heal_at - SECOND {
            break;
        }
    }
    if rng.chance(250) {
        schedule.faults.extend(second_blow(&mut rng));
    }
    if count > 2 && rng.chance(if count > 3 { 400 } else { 60 }) {
        // one after another, or two at once, so that the set shrinks while all still stream
        let at = rng.millis(3_000, 25_000);
        let gap = if rng.chance(600) { rng.millis(0, 30) } else { rng.millis(100, 5_000) };
        schedule.faults.push((at, Fault::Remove { target: Target::Standby(0) }));
        if count > 3 {
            schedule.faults.push((at + gap, Fault::Remove { target: Target::Standby(1) }));
        }
    }
    for _ in 0..rng.between(0, 3) {
        let trigger = rng.pick(&[
            Trigger::Barred,
            Trigger::Assigned,
            Trigger::Assigned,
            Trigger::Opened,
            Trigger::VotersChange,
            Trigger::SetsChange,
        ]);
        let fault = if trigger == Trigger::Barred {
            Fault::Daemon { target: Target::Node(0), back: rng.millis(50, 800) }
        } else if trigger == Trigger::VotersChange && rng.chance(600) {
            Fault::Stall { target: Target::Active, lasts: rng.millis(800, 3_500) }
        } else if trigger == Trigger::SetsChange && rng.chance(300) {
            Fault::Daemon { target: Target::Active, back: rng.millis(60, 600) }
        } else {
            draw_fault(&mut rng, count)
        };
        let delay = if rng.chance(500) { (0, 10 * MS) } else { (0, 700 * MS) };
        let from = rng.millis(1_500, 12_000);
        let times = if trigger == Trigger::Barred { 2 } else { 1 };
        schedule.armed.push(Armed { trigger, delay, fault, from, times });
    }
    if members < count && members > 1 && rng.chance(600) {
        // the active node and one who helps it learn of the new voters late, and the others part from them
        let with = vec![rng.between(0, count as u64 - 1) as usize, rng.between(0, count as u64 - 1) as usize];
        let from = rng.millis(2_000, 8_000);
        let mut arm = |delay, fault| {
            schedule.armed.push(Armed { trigger: Trigger::VotersChange, delay, fault, from, times: 1 });
        };
        for target in [Target::Active, Target::Node(with[0]), Target::Node(with[1])] {
            arm((0, 0), Fault::SlowApply { target, lasts: rng.millis(2_500, 6_000) });
        }
        let (early, lasts) = (rng.millis(50, 600), rng.millis(3_000, 6_000));
        arm((early, early + 100 * MS), Fault::Split { target: Target::Active, with, lasts });
    }
    if rng.chance(400) {
        for _ in 0..rng.between(1, 6) {
            let at = rng.millis(2_500, 31_000);
            schedule.faults.push((at, Fault::Replay { count: rng.between(1, 60) }));
        }
    }
    if members > 2 && rng.chance(100) {
        schedule.nofailover = Some(rng.between(1, members as u64 - 1) as usize);
    }
    if rng.chance(80) {
        for _ in 0..rng.between(1, 3) {
            let durability = rng.pick(&[Durability::OneNode, Durability::TwoNodes, Durability::BestEffort]);
            schedule.faults.push((rng.millis(2_500, 28_000), Fault::Durability { durability }));
        }
    }
    if rng.chance(200) {
        // both directions, and again before the first change has reached all
        for _ in 0..rng.between(1, 3) {
            let at = rng.millis(2_500, 28_000);
            let thousandths = rng.pick(&[500, 1_000, 2_000, 3_000]);
            schedule.faults.push((at, Fault::Multiplier { thousandths }));
            if rng.chance(500) {
                let fault = Fault::Isolate { target: Target::Active, way: Way::Both, lasts: rng.millis(2_000, 7_000) };
                schedule.faults.push((at + rng.millis(0, 400), fault));
            }
        }
    }
    if members > 2 && rng.chance(200) {
        schedule.faults.extend(kept_back_ahead(&mut rng, count));
    }
    schedule
}

/// Nodes that may not become active, or are not fit to, at any time; and such a one that holds more than those who may.
fn kept_back_ahead(rng: &mut Rng, count: usize) -> Vec<(Time, Fault)> {
    let mut faults = Vec::new();
    for _ in 0..rng.between(1, 3) {
        let (at, lasts, target) = (rng.millis(2_500, 25_000), rng.millis(500, 20_000), draw_target(rng, count));
        let is_mark = rng.chance(600);
        let fault = if is_mark { Fault::KeptBack { target, lasts } } else { Fault::Unfit { target, lasts } };
        faults.push((at, fault));
    }
    let at = rng.millis(4_000, 20_000);
    let ahead = rng.between(0, 1) as usize;
    let slow = |which| {
        let (from, to) = (Target::Active, Target::Standby(which));
        (at, Fault::Slow { from, to, extra: 400 * MS, lasts: 20 * SECOND })
    };
    faults.extend((0..count - 1).filter(|which| *which != ahead).map(slow));
    let lasts = rng.millis(3_000, 15_000);
    let target = Target::Standby(ahead);
    faults.push(if rng.chance(600) {
        (at.saturating_sub(500 * MS), Fault::KeptBack { target, lasts: lasts + SECOND })
    } else {
        (at, Fault::Unfit { target, lasts })
    });
    let strike = match rng.between(0, 3) {
        0 | 1 => Fault::Power { target: Target::Active, lasts: rng.millis(3_000, 12_000) },
        2 => Fault::Isolate { target: Target::Active, way: Way::Both, lasts: rng.millis(3_000, 9_000) },
        _ => Fault::Postgres { target: Target::Active },
    };
    let struck = at + rng.millis(900, 2_000);
    faults.push((struck, strike));
    if rng.chance(400) {
        // in the middle of it, or near
        faults.push((struck + rng.millis(1_800, 3_500), draw_fault(rng, count)));
    }
    faults
}

/// A failover, and soon after it the loss of the one who took over while the first is back: tails, timelines, unopened records.
fn second_blow(rng: &mut Rng) -> Vec<(Time, Fault)> {
    let first = rng.millis(3_000, 15_000);
    let back = rng.millis(1_500, 4_000);
    let strike = match rng.between(0, 3) {
        0 => Fault::Power { target: Target::Active, lasts: back },
        1 => Fault::Isolate { target: Target::Active, way: Way::Both, lasts: back },
        2 => Fault::Isolate { target: Target::Active, way: Way::Out, lasts: back },
        _ => Fault::Freeze {
            target: Target::Active,
            lasts: 2_100 * MS + rng.millis(0, 2_000),
            stops_clock: rng.chance(200),
        },
    };
    let second = first + rng.millis(2_200, 5_000);
    let again = match rng.between(0, 2) {
        0 => Fault::Power { target: Target::Active, lasts: rng.millis(4_000, 9_000) },
        1 => Fault::Isolate { target: Target::Active, way: Way::Both, lasts: rng.millis(3_000, 8_000) },
        _ => Fault::Postgres { target: Target::Active },
    };
    vec![(first, strike), (second, again)]
}

fn draw_target(rng: &mut Rng, count: usize) -> Target {
    match rng.between(0, 9) {
        0..=4 => Target::Active,
        5 => Target::Leader,
        6..=8 => Target::Standby(rng.between(0, 3) as usize),
        _ => Target::Node(rng.between(0, count as u64 - 1) as usize),
    }
}

fn draw_fault(rng: &mut Rng, count: usize) -> Fault {
    let target = draw_target(rng, count);
    let way = rng.pick(&[Way::Out, Way::In, Way::Both, Way::Both]);
    // the lease, the margin, and a little: where a node comes back just as others take over
    let around_lease = 2_000 * MS + rng.millis(0, 2_200);
    let lasts = match rng.between(0, 3) {
        0 => rng.millis(50, 1_500),
        1 | 2 => around_lease,
        _ => rng.millis(1_000, 9_000),
    };
    match rng.between(0, 99) {
        0..=9 => Fault::Power { target, lasts: rng.millis(200, 9_000) },
        10 => Fault::PowerAll { lasts: rng.millis(200, 3_000) },
        11..=18 => Fault::Daemon { target, back: rng.millis(80, 3_500) },
        19..=21 => Fault::Guard { target, back: rng.millis(20, 500) },
        22..=29 => Fault::Postgres { target },
        30..=43 => Fault::Freeze { target, lasts, stops_clock: rng.chance(200) },
        44..=49 => Fault::Stall { target, lasts: rng.millis(200, 4_500) },
        50..=61 => Fault::Isolate { target, way, lasts },
        62..=63 => {
            let with = vec![rng.between(0, count as u64 - 1) as usize];
            Fault::Split { target, with, lasts }
        }
        64..=68 => {
            let to = draw_target(rng, count);
            Fault::Link { from: target, to, is_both: rng.chance(500), lasts }
        }
        69..=74 => {
            let to = draw_target(rng, count);
            Fault::Slow { from: target, to, extra: rng.millis(20, 900), lasts: rng.millis(500, 6_000) }
        }
        75..=78 => Fault::Loss { per_mille: rng.between(50, 700), lasts: rng.millis(500, 6_000) },
        79..=83 => Fault::Leader { to: target },
        84..=86 => Fault::SlowCommit { lasts: rng.millis(1_000, 6_000) },
        87..=89 => Fault::SlowApply { target, lasts: rng.millis(1_000, 6_000) },
        90..=91 => Fault::SlowDisk { target, lasts: rng.millis(1_000, 6_000) },
        92..=96 => {
            let to = rng.chance(600).then(|| draw_target(rng, count));
            Fault::Switchover { to }
        }
        _ => Fault::Stop { target, lasts: rng.millis(3_000, 9_000) },
    }
}

impl World {
    /// Returns the node that a target stands for now.
    fn resolve(&self, target: Target) -> usize {
        let active = self.raft.newest().record.as_ref().map_or(0, |(record, _)| self.index_of(record.node));
        match target {
            Target::Active => active,
            Target::Leader => self.raft.leader.unwrap_or(active),
            Target::Standby(which) => {
                let others: Vec<usize> = (0..self.nodes.len()).filter(|node| *node != active).collect();
                if others.is_empty() { active } else { others[which % others.len()] }
            }
            Target::Node(node) => node.min(self.nodes.len() - 1),
        }
    }

    /// A fault strikes.
    pub fn fault(&mut self, fault: Fault) {
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Power { target, lasts } => {
                let node = self.resolve(target);
                self.power_off(node, lasts);
            }
            Fault::PowerAll { lasts } => {
                for node in 0..self.nodes.len() {
                    let lasts = lasts + self.rng.millis(0, 1_500);
                    self.power_off(node, lasts);
                }
            }
            Fault::Daemon { target, back } => {
                let node = self.resolve(target);
                self.daemon_killed(node);
                self.after(back, Event::DaemonStart { node });
            }
            Fault::Guard { target, back } => {
                let node = self.resolve(target);
                let host = &mut self.nodes[node];
                if host.is_powered && host.guard.is_alive {
                    host.guard = Guard { epoch: host.guard.epoch, ..Guard::default() };
                    let delay = self.rng.millis(1, 30);
                    self.postgres_kill(node, delay);
                    self.after(back, Event::GuardBack { node });
                    self.news(node);
                }
            }
            Fault::Postgres { target } => {
                let node = self.resolve(target);
                if self.nodes[node].frozen.is_none() {
                    self.nodes[node].pg.dies_by_itself = true;
                    self.postgres_dead(node);
                }
            }
            Fault::Freeze { target, lasts, stops_clock } => {
                let node = self.resolve(target);
                let now = self.now;
                let host = &mut self.nodes[node];
                if host.is_powered && host.frozen.is_none() {
                    if stops_clock {
                        host.clock.local = host.clock.at(now).0;
                        host.clock.base = now;
                        host.has_lost_time = true;
                    }
                    host.frozen = Some(crate::node::Frozen { stops_clock });
                    self.after(lasts, Event::Heal { heal: Heal::Thaw { node } });
                }
            }
            Fault::Stall { target, lasts } => {
                let node = self.resolve(target);
                let until = self.now + lasts;
                self.nodes[node].stalled_until = self.nodes[node].stalled_until.max(until);
            }
            Fault::Isolate { target, way, lasts } => {
                let node = self.resolve(target);
                for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
                    if way != Way::In {
                        self.cut_link(node, peer, lasts);
                    }
                    if way != Way::Out {
                        self.cut_link(peer, node, lasts);
                    }
                }
            }
            Fault::Link { from, to, is_both, lasts } => {
                let (from, to) = (self.resolve(from), self.resolve(to));
                if from != to {
                    self.cut_link(from, to, lasts);
                    if is_both {
                        self.cut_link(to, from, lasts);
                    }
                }
            }
            Fault::Slow { from, to, extra, lasts } => {
                let (from, to) = (self.resolve(from), self.resolve(to));
                self.extra[from][to] = extra;
                self.after(lasts, Event::Heal { heal: Heal::Link { from, to } });
            }
            Fault::Split { target, with, lasts } => {
                let node = self.resolve(target);
                let is_here = |peer: usize| peer == node || with.contains(&peer);
                for from in 0..self.nodes.len() {
                    for to in (0..self.nodes.len()).filter(|to| is_here(from) != is_here(*to)) {
                        self.cut_link(from, to, lasts);
                    }
                }
            }
            Fault::Loss { per_mille, lasts } => {
                self.loss = per_mille;
                self.after(lasts, Event::Fault { fault: Fault::Loss { per_mille: 0, lasts: 60 * SECOND } });
            }
            Fault::Leader { to } => {
                let node = self.resolve(to);
                let is_voter = self.raft.voters.iter().all(|set| set.contains(&self.nodes[node].id));
                if is_voter && self.reaches_majority(node) {
                    self.lead(node);
                }
            }
            Fault::SlowCommit { lasts } => self.raft.slow_until = self.now + lasts,
            Fault::SlowApply { target, lasts } => {
                let node = self.resolve(target);
                self.nodes[node].slow_apply_until = self.now + lasts;
            }
            Fault::SlowDisk { target, lasts } => {
                let node = self.resolve(target);
                self.nodes[node].slow_disk_until = self.now + lasts;
            }
            Fault::Switchover { to } => {
                let to = to.map(|to| self.nodes[self.resolve(to)].id);
                self.propose(None, 0, Command::Switchover(to));
            }
            Fault::Stop { target, lasts } => {
                let node = self.resolve(target);
                if let Some(daemon) = &mut self.nodes[node].daemon {
                    daemon.is_stopping = true;
                }
                self.news(node);
                let off = self.rng.millis(1_500, 7_000);
                let power = Fault::Power { target: Target::Node(node), lasts };
                self.after(off, Event::Fault { fault: power });
            }
            Fault::Join { node } => {
                let info = Info { kind: self.nodes[node].kind, priority: 100, nofailover: false };
                self.nodes[node].is_powered = true;
                self.nodes[node].guard.is_alive = true;
                self.propose(None, 0, Command::AddMember(NodeId(node as u64 + 1), info));
                self.after(10 * MS, Event::DaemonStart { node });
            }
            Fault::Remove { target } => {
                let node = self.resolve(target);
                self.propose(None, 0, Command::Remove(self.nodes[node].id));
            }
            Fault::KeptBack { target, lasts } => {
                let node = self.resolve(target);
                self.nodes[node].is_marked = true;
                self.propose(None, 0, Command::Nofailover(self.nodes[node].id));
                self.after(lasts, Event::Heal { heal: Heal::Mark { node } });
            }
            Fault::Unfit { target, lasts } => {
                let node = self.resolve(target);
                self.nodes[node].unfit_until = self.now + lasts;
                self.news(node);
            }
            Fault::Durability { durability } => self.propose(None, 0, Command::Durability(durability)),
            Fault::Multiplier { thousandths } => self.propose(None, 0, Command::Multiplier(thousandths)),
            Fault::Replay { count } => {
                let mut delay = 0;
                for _ in 0..count {
                    delay += self.rng.millis(1, 120);
                    self.after(delay, Event::Replay);
                }
            }
        }
    }

    fn cut_link(&mut self, from: usize, to: usize, lasts: Time) {
        self.cut[from][to] = true;
        self.after(lasts, Event::Heal { heal: Heal::Link { from, to } });
    }

    /// All that is volatile is gone.
    fn power_off(&mut self, node: usize, lasts: Time) {
        if !self.nodes[node].is_powered {
            return;
        }
        if self.nodes[node].frozen.is_some() {
            self.thaw(node);
            self.nodes[node].deferred.clear();
        }
        self.postgres_dead(node);
        self.daemon_killed(node);
        let host = &mut self.nodes[node];
        host.is_powered = false;
        host.pg.epoch += 1;
        host.guard = Guard { epoch: host.guard.epoch + 1, ..Guard::default() };
        host.stalled_until = 0;
        self.after(lasts, Event::Heal { heal: Heal::Power { node } });
    }

    fn thaw(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.nodes[node];
        let Some(frozen) = host.frozen.take() else { return };
        if frozen.stops_clock {
            host.clock.base = now;
        }
        let deferred = std::mem::take(&mut host.deferred);
        let mut delay = 0;
        for event in deferred {
            delay += self.rng.micros(1, 150);
            // the guard is no faster on its feet than those whom it is to kill
            let extra = if matches!(event, Event::GuardTimer { .. }) { self.rng.millis(0, 50) } else { 0 };
            self.after(delay + extra, event);
        }
    }

    /// A fault ends.
    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Power { node } => {
                let host = &mut self.nodes[node];
                if host.is_powered {
                    return;
                }
                host.is_powered = true;
                host.boots += 1;
                host.guard.is_alive = true;
                host.clock.base = self.now;
                host.clock.local = 3_000_000_000 + host.boots * 1_000;
                let delay = self.rng.millis(5, 300);
                self.after(delay, Event::DaemonStart { node });
            }
            Heal::Thaw { node } => self.thaw(node),
            Heal::Mark { node } => {
                if std::mem::take(&mut self.nodes[node].is_marked) {
                    self.propose(None, 0, Command::Nofailover(self.nodes[node].id));
                }
            }
            Heal::Link { from, to } => {
                self.cut[from][to] = false;
                self.extra[from][to] = 0;
            }
            Heal::All => {
                self.note(|| "everything is repaired".to_owned());
                let count = self.nodes.len();
                for from in 0..count {
                    for to in 0..count {
                        self.heal(Heal::Link { from, to });
                    }
                }
                self.loss = 0;
                self.raft.slow_until = 0;
                self.armed.clear();
                for node in 0..count {
                    self.heal(Heal::Thaw { node });
                    self.heal(Heal::Mark { node });
                    let is_member = self.raft.newest().members.contains_key(&self.nodes[node].id);
                    if is_member {
                        self.heal(Heal::Power { node });
                    }
                    let host = &mut self.nodes[node];
                    host.stalled_until = 0;
                    host.unfit_until = 0;
                    host.slow_apply_until = 0;
                    host.slow_disk_until = 0;
                    if let Some(daemon) = &mut host.daemon {
                        daemon.is_stopping = false;
                    }
                }
                if self.raft.newest().options.check_ttl_multiplier != Multiplier::ONE {
                    self.propose(None, 0, Command::Multiplier(1_000));
                }
                self.healed_at = Some(self.now);
            }
        }
    }

    /// Lets armed faults go off that wait for `trigger` at `node`.
    pub fn trigger(&mut self, trigger: Trigger, node: usize) {
        let now = self.now;
        let mut due = Vec::new();
        for armed in &mut self.armed {
            if armed.trigger == trigger && armed.times > 0 && now >= armed.from {
                armed.times -= 1;
                due.push(armed.clone());
            }
        }
        for armed in due {
            let fault = match armed.fault {
                Fault::Daemon { back, .. } if trigger == Trigger::Barred => {
                    Fault::Daemon { target: Target::Node(node), back }
                }
                other => other,
            };
            let delay = self.rng.between(armed.delay.0, armed.delay.1);
            self.after(delay, Event::Fault { fault });
        }
    }

    /// Looks at a change of the record for those who wait for it.
    pub fn on_record_committed(&mut self, old: &ClusterState, new: &ClusterState) {
        let (Some((old, _)), Some((new, _))) = (&old.record, &new.record) else { return };
        let node = self.index_of(new.node);
        if new.promoted > old.promoted {
            self.trigger(Trigger::Assigned, node);
        }
        if new.opened && !old.opened {
            self.trigger(Trigger::Opened, node);
        }
        if new.voter_sets != old.voter_sets && new.voter_sets.len() >= old.voter_sets.len() {
            self.trigger(Trigger::VotersChange, node);
        }
        if new.commit_sets.len() > old.commit_sets.len() {
            self.trigger(Trigger::SetsChange, node);
        }
    }
}
