//! Raft as the brain may count on it: one linearizable log, one leader a term, and all the delays and doubts of the real one.
//!
//! A proposal commits if its leader is still the leader then and reaches a majority of every set of voters; otherwise its
//! outcome is unknown, and it may have been committed all the same. Nodes apply late. The real openraft runs elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use hasup::ha::assign::{Order, assign};
use hasup::ha::quorum::majority_of_every;
use hasup::ha::record::{Assignment, Durability, Goals, MemberKind, Multiplier, Options, ResignReason, SwitchoverGoal};
use hasup::ha::timing::Timing;
use hasup::ha::view::{AppliedRecord, ClusterView, MemberView};
use hasup::types::NodeId;

use crate::event::Event;
use crate::faults::{Fault, Target};
use crate::rng::{MS, Time};
use crate::world::World;

/// A member as all know it.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// What it takes part in.
    pub kind: MemberKind,
    /// Breaks ties.
    pub priority: u32,
    /// Never made active by itself.
    pub nofailover: bool,
}

/// What the log amounts to after one of its entries.
#[derive(Debug, Clone)]
pub struct ClusterState {
    /// The record and the index of its last change.
    pub record: Option<(Assignment, u64)>,
    /// Operators' wishes.
    pub goals: Goals,
    /// The members.
    pub members: BTreeMap<NodeId, Info>,
    /// The cluster's options.
    pub options: Options,
}

/// What is proposed.
#[derive(Debug, Clone)]
pub enum Command {
    /// An order of `assign`.
    Order(Order),
    /// An operator adds a member.
    AddMember(NodeId, Info),
    /// An operator orders a node to be taken out.
    Remove(NodeId),
    /// A node that nothing counts on any more is forgotten.
    Forget(NodeId),
    /// An operator orders a switchover of the generation that is active when it is applied.
    Switchover(Option<NodeId>),
    /// An operator sets or clears the mark that a node is never made active: as he wants it by then, however long it took.
    Nofailover(NodeId),
    /// An operator sets what commits wait for.
    Durability(Durability),
    /// An operator sets `check_ttl_multiplier`, in thousandths.
    Multiplier(u32),
}

/// A proposal under way.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Who proposes; nobody for an operator, who may ask any leader.
    pub by: Option<usize>,
    /// In which term.
    pub term: u64,
    /// What.
    pub command: Command,
    /// How often an operator has tried.
    pub tries: u32,
}

/// The group.
pub struct Raft {
    /// The states after each entry, the first before any.
    pub log: Vec<Rc<ClusterState>>,
    /// One set of voters, or two while they change.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// The leader, as the group would elect it.
    pub leader: Option<usize>,
    /// Its term.
    pub term: u64,
    /// Since when there is no leader that works.
    pub leaderless_since: Option<Time>,
    /// How long the group waits before it elects.
    pub patience: Time,
    /// A look of the leader is planned.
    pub has_look: bool,
    /// Commits are slow before this.
    pub slow_until: Time,
}

impl Raft {
    /// Returns the newest state.
    pub fn newest(&self) -> &Rc<ClusterState> {
        self.log.last().expect("the log begins with a state")
    }
}

impl World {
    /// Whether `node` runs Raft now.
    fn takes_part(&self, node: usize) -> bool {
        let host = &self.nodes[node];
        host.is_powered && host.frozen.is_none() && host.daemon.is_some()
    }

    /// Whether `node` reaches a majority of every set of voters, both ways.
    pub fn reaches_majority(&self, node: usize) -> bool {
        self.takes_part(node)
            && majority_of_every(&self.raft.voters, |voter| {
                let peer = self.index_of(voter);
                peer == node || (self.takes_part(peer) && self.passes(node, peer) && self.passes(peer, node))
            })
    }

    /// Looks after the leader and those who lag, every 50 ms.
    pub fn raft_tick(&mut self) {
        self.after(50 * MS, Event::Raft);
        let leader = self.raft.leader.filter(|leader| self.reaches_majority(*leader));
        match leader {
            Some(leader) => {
                self.raft.leaderless_since = None;
                let newest = self.raft.log.len() - 1;
                for node in 0..self.nodes.len() {
                    let lags = self.takes_part(node) && self.nodes[node].applied < newest;
                    if lags && self.passes(leader, node) && self.passes(node, leader) {
                        let delay = self.apply_delay(node);
                        self.after(delay, Event::Apply { node, upto: newest });
                    }
                }
                if self.raft.voters.len() > 1 {
                    self.raft.voters.remove(0);
                    self.note(|| "Raft's voters have changed".to_owned());
                    if !self.raft.voters[0].contains(&self.nodes[leader].id) {
                        // a leader that is no voter any more steps down once it has led the change to its end
                        self.raft.leader = None;
                    }
                }
                self.wake_leader(0);
                let state = Rc::clone(self.raft.newest());
                for node in &state.goals.removing {
                    let votes = self.raft.voters.iter().any(|set| set.contains(node));
                    if !votes && state.record.as_ref().is_some_and(|(record, _)| is_free(record, *node)) {
                        self.propose(None, 0, Command::Forget(*node));
                    }
                }
            }
            None => self.elect(),
        }
    }

    fn elect(&mut self) {
        let Some(since) = self.raft.leaderless_since else {
            self.raft.leaderless_since = Some(self.now);
            self.raft.patience = self.rng.millis(300, 700);
            return;
        };
        if self.now - since < self.raft.patience {
            return;
        }
        let is_voter = |node: &usize| self.raft.voters.iter().any(|set| set.contains(&self.nodes[*node].id));
        let able: Vec<usize> =
            (0..self.nodes.len()).filter(is_voter).filter(|node| self.reaches_majority(*node)).collect();
        if able.is_empty() {
            return;
        }
        let chosen = self.rng.pick(&able);
        self.lead(chosen);
    }

    /// Makes `node` the leader.
    pub fn lead(&mut self, node: usize) {
        self.raft.leader = Some(node);
        self.raft.term += 1;
        self.raft.leaderless_since = None;
        self.note(|| format!("node {} leads", node + 1));
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.not_streaming_since.clear();
            daemon.proposing_until = 0;
        }
        // a leader knows all that is committed once an entry of its own term is
        let newest = self.raft.log.len() - 1;
        let delay = self.rng.millis(1, 20);
        self.after(delay, Event::Apply { node, upto: newest });
        self.wake_leader(delay + MS);
    }

    fn apply_delay(&mut self, node: usize) -> Time {
        self.rng.millis(1, 12) + self.nodes[node].slow_apply_until.saturating_sub(self.now)
    }

    /// A node applies what was committed, if it still hears a leader.
    pub fn apply(&mut self, node: usize, upto: usize) {
        let hears = self
            .raft
            .leader
            .is_some_and(|leader| leader == node || (self.passes(leader, node) && self.passes(node, leader)));
        let host = &mut self.nodes[node];
        let is_slow = self.now < host.slow_apply_until && self.raft.leader != Some(node);
        if !hears || is_slow || host.applied >= upto || host.daemon.is_none() {
            return;
        }
        host.applied = upto;
        self.take_applied(node);
        self.news(node);
    }

    /// Hands the daemon what its node has applied.
    pub fn take_applied(&mut self, node: usize) {
        let state = Rc::clone(&self.raft.log[self.nodes[node].applied]);
        let local = self.local(node);
        let host = &mut self.nodes[node];
        let me = host.id;
        let Some(daemon) = &mut host.daemon else { return };
        if let Some((assignment, index)) = &state.record {
            let is_index_old = daemon.record.as_ref().is_some_and(|known| known.index == *index);
            if !is_index_old {
                let same = daemon.record.as_ref().filter(|known| known.assignment.generation == assignment.generation);
                let applied_at = same.map_or(local, |known| known.applied_at);
                daemon.record = Some(AppliedRecord { assignment: assignment.clone(), index: *index, applied_at });
            }
        }
        daemon.goals = state.goals.clone();
        daemon.kept_back = state.members.iter().filter(|(_, info)| info.nofailover).map(|(node, _)| *node).collect();
        daemon.timing = Timing::from_options(&state.options);
        let peers = state.members.keys().copied().filter(|peer| *peer != me).collect();
        daemon.core.set_peers(&peers);
    }

    /// Plans a look of the leader.
    pub fn wake_leader(&mut self, delay: Time) {
        if !self.raft.has_look {
            self.raft.has_look = true;
            self.after(delay, Event::LeaderLook);
        }
    }

    /// The leader makes sure that it still is, and learns up to where it has to know the log.
    pub fn leader_look(&mut self) {
        self.raft.has_look = false;
        let Some(node) = self.raft.leader else { return };
        let host = &self.nodes[node];
        let waits = host.daemon.as_ref().is_none_or(|daemon| daemon.proposing_until > self.now);
        if waits || self.now < host.stalled_until || !self.reaches_majority(node) {
            return;
        }
        let (term, read) = (self.raft.term, self.raft.log.len() - 1);
        let delay = self.rng.micros(300, 5_000);
        self.after(delay, Event::LeaderAssign { node, term, read });
    }

    /// The leader assigns on the state that it read.
    pub fn leader_assign(&mut self, node: usize, term: u64, read: usize) {
        if self.nodes[node].daemon.is_none() {
            return;
        }
        if self.nodes[node].applied < read {
            self.nodes[node].applied = read;
            self.take_applied(node);
            self.news(node);
        }
        let Some(view) = self.cluster_view(node, read) else { return };
        let assigned = assign(&view);
        let Some(order) = assigned.order else { return };
        self.note(|| {
            format!(
                "leader {}: {} ({}; {})",
                node + 1,
                assigned.why.step,
                assigned.why.rule,
                assigned.why.facts.join("; ")
            )
        });
        self.propose(Some(node), term, Command::Order(order));
    }

    /// Proposes.
    pub fn propose(&mut self, by: Option<usize>, term: u64, command: Command) {
        let delay =
            if self.now < self.raft.slow_until { self.rng.millis(200, 2_500) } else { self.rng.micros(800, 12_000) };
        if let Some(daemon) = by.and_then(|node| self.nodes[node].daemon.as_mut()) {
            daemon.proposing_until = self.now + delay + 50 * MS;
        }
        self.after(delay, Event::Commit { proposal: Box::new(Proposal { by, term, command, tries: 0 }) });
    }

    /// Decides a proposal.
    pub fn commit(&mut self, mut proposal: Proposal) {
        let works = self.raft.leader.filter(|leader| self.reaches_majority(*leader));
        let Some(leader) = works else {
            if proposal.by.is_none() && proposal.tries < 200 {
                proposal.tries += 1;
                self.after(200 * MS, Event::Commit { proposal: Box::new(proposal) });
            }
            return;
        };
        if let Some(by) = proposal.by {
            let is_own = leader == by && self.raft.term == proposal.term;
            // another leads by now: it may have inherited the entry, or overwritten it
            if !is_own && self.rng.chance(500) {
                return;
            }
        }
        match &proposal.command {
            Command::Order(Order::ChangeRaftVoters(wanted)) => {
                if self.raft.voters.last() != Some(wanted) {
                    let old = self.raft.voters.last().cloned().unwrap_or_default();
                    self.raft.voters = vec![old, wanted.clone()];
                    self.note(|| format!("Raft's voters are to be {wanted:?}"));
                }
                return;
            }
            Command::Order(Order::TransferLeadership(to)) => {
                let to = self.index_of(*to);
                let is_voter = self.raft.voters.iter().all(|set| set.contains(&self.nodes[to].id));
                if is_voter && self.reaches_majority(to) {
                    self.lead(to);
                }
                return;
            }
            _ => {}
        }
        let old = Rc::clone(self.raft.newest());
        let mut state = (*old).clone();
        let index = self.raft.log.len() as u64;
        let record = state.record.as_ref();
        match proposal.command {
            Command::Order(Order::Record { expected, assignment }) => {
                if record.is_none_or(|(_, at)| *at != expected) {
                    return;
                }
                state.record = Some((*assignment, index));
            }
            Command::Order(Order::ClearSwitchover) => state.goals.switchover = None,
            Command::Order(_) => return,
            Command::AddMember(node, info) => {
                state.members.insert(node, info);
            }
            Command::Remove(node) => {
                let is_active = record.is_none_or(|(record, _)| record.node == node);
                if is_active || state.members.len() < 2 {
                    return;
                }
                state.goals = state.goals.removing(node);
            }
            Command::Forget(node) => {
                let Some((record, _)) = record else { return };
                if !is_free(record, node) {
                    return;
                }
                state.members.remove(&node);
                state.goals = state.goals.without(node);
            }
            Command::Switchover(to) => {
                let Some((record, _)) = record else { return };
                let to = to.filter(|to| *to != record.node);
                state.goals.switchover = Some(SwitchoverGoal { from: record.generation, to });
            }
            Command::Nofailover(node) => {
                let is_marked = self.nodes[self.index_of(node)].is_marked;
                if let Some(info) = state.members.get_mut(&node) {
                    info.nofailover = is_marked;
                }
            }
            Command::Durability(durability) => state.options.durability = durability,
            Command::Multiplier(thousandths) => state.options.check_ttl_multiplier = Multiplier { thousandths },
        }
        let state = Rc::new(state);
        self.raft.log.push(Rc::clone(&state));
        for gone in old.members.keys().filter(|node| !state.members.contains_key(node)) {
            let node = self.index_of(*gone);
            self.after(
                300 * MS,
                Event::Fault { fault: Fault::Power { target: Target::Node(node), lasts: Time::MAX / 4 } },
            );
        }
        crate::invariants::on_committed(self, &old, &state);
        self.on_record_committed(&old, &state);
        let newest = self.raft.log.len() - 1;
        for node in 0..self.nodes.len() {
            let delay = if node == leader { 0 } else { self.apply_delay(node) };
            self.after(delay, Event::Apply { node, upto: newest });
        }
    }

    /// Gathers what the leader knows.
    fn cluster_view(&mut self, node: usize, read: usize) -> Option<ClusterView> {
        let now = self.local(node);
        let state = Rc::clone(&self.raft.log[read]);
        let newest = self.raft.log.len() - 1;
        let raft_caught_up = (0..self.nodes.len())
            .filter(|peer| self.takes_part(*peer) && self.nodes[*peer].applied + 3 >= newest)
            .map(|peer| self.nodes[peer].id)
            .collect();
        let raft_voters = self.raft.voters.clone();
        let timing = Timing::from_options(&state.options);
        let (rules, durability) = (self.rules, state.options.durability);
        let me = self.nodes[node].id;
        let daemon = self.nodes[node].daemon.as_mut()?;
        let pulse = daemon.core.view();
        let (assignment, index) = state.record.clone()?;
        let mut members = BTreeMap::new();
        for (id, info) in &state.members {
            let peer = pulse.peers.get(id);
            let is_me = *id == me;
            let passes =
                |view: &hasup::ha::pulse::PeerView| view.is_fresh(now, &timing) && view.report.hears.contains(&me);
            let report = if is_me { Some(daemon.report.clone()) } else { peer.map(|view| view.report.clone()) };
            if let Some(report) = &report {
                let seen = daemon.seen_resigned.entry(*id).or_default();
                if report.resigned > *seen {
                    *seen = report.resigned;
                    if report.resign_reason == Some(ResignReason::PromotionFailed) {
                        daemon.failed_promotion.insert(*id, now + timing.unfit_for);
                    }
                }
            }
            let member = MemberView {
                kind: info.kind,
                priority: info.priority,
                nofailover: info.nofailover,
                is_leaving: state.goals.removing.contains(id),
                report,
                passes_both_ways: is_me || peer.is_some_and(passes),
            };
            members.insert(*id, member);
        }
        let active = members.get(&assignment.node).and_then(|member| member.report.as_ref()?.active.clone());
        for (id, info) in &state.members {
            let streams = active
                .as_ref()
                .is_none_or(|active| !active.is_primary || active.streaming.iter().any(|member| member.node == *id));
            if info.kind != MemberKind::Data || *id == assignment.node || streams {
                daemon.not_streaming_since.remove(id);
            } else {
                daemon.not_streaming_since.entry(*id).or_insert(now);
            }
        }
        let resigned =
            members.get(&assignment.node).and_then(|member| member.report.as_ref()).map(|report| report.resigned);
        let resigned_for = if resigned.is_some_and(|resigned| resigned >= assignment.generation) {
            let seen = daemon.holder_resigned_seen.filter(|(generation, _)| *generation == assignment.generation);
            let (_, at) = *daemon.holder_resigned_seen.insert(seen.unwrap_or((assignment.generation, now)));
            now.since(at)
        } else {
            Duration::ZERO
        };
        let heard = pulse.peers.get(&assignment.node).map(|peer| peer.proved_at).unwrap_or_default();
        let holder_unheard_for = if assignment.node == me { Duration::ZERO } else { now.since(heard) };
        Some(ClusterView {
            now,
            me,
            timing,
            rules,
            goals: state.goals.clone(),
            members,
            durability,
            raft_voters,
            raft_caught_up,
            failed_promotion: daemon.failed_promotion.clone(),
            holder_unheard_for,
            has_failed_to_hand_over: false,
            resigned_for,
            role_changes: 0,
            role_changes_max: 6,
            record: Some(AppliedRecord { assignment, index, applied_at: now }),
            not_streaming_since: daemon.not_streaming_since.clone(),
        })
    }
}

/// Whether neither votes nor commits of `record` depend on `node`.
fn is_free(record: &Assignment, node: NodeId) -> bool {
    let waits = record.commit_sets.iter().any(|set| set.members.iter().any(|member| member.node == node));
    record.node != node && !waits && !record.voter_sets.iter().any(|set| set.contains(&node))
}

/// Returns what a cluster of `nodes` begins with: node 1 is to be active.
pub fn first_state(members: &BTreeMap<NodeId, Info>, durability: Durability) -> ClusterState {
    use hasup::ha::record::{AssignmentReason, CommitSet, DataMember};
    use hasup::types::{DataIncarnation, Generation, Lsn, Timeline, WalPosition};
    let standbys: BTreeSet<DataMember> = members
        .iter()
        .filter(|(node, info)| node.0 != 1 && info.kind == MemberKind::Data)
        .map(|(node, _)| DataMember { node: *node, incarnation: DataIncarnation(1) })
        .collect();
    let data = standbys.len() + 1;
    let k = if durability == Durability::OneNode { 0 } else { u32::try_from(data / 2).unwrap_or(0) };
    let set = if k == 0 { CommitSet::none() } else { CommitSet { members: standbys, k } };
    let voters: BTreeSet<NodeId> =
        if members.len().is_multiple_of(2) { [NodeId(1)].into() } else { members.keys().copied().collect() };
    let assignment = Assignment {
        generation: Generation(1),
        node: NodeId(1),
        incarnation: DataIncarnation(1),
        promoted: Generation(1),
        timeline: Timeline(2),
        start: WalPosition { timeline: Timeline(1), lsn: Lsn(10) },
        why: AssignmentReason::Bootstrap,
        voter_sets: vec![voters],
        commit_sets: vec![set],
        opened: false,
        since_opened: Vec::new(),
    };
    let options = Options { durability, ..Options::default() };
    ClusterState { record: Some((assignment, 0)), goals: Goals::default(), members: members.clone(), options }
}
