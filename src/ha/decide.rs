//! What every node does about the record: `decide(&NodeView) -> Plan`.
//!
//! A table of contents: a node either holds the role that the newest record names ([`Holder`]) or helps whoever does
//! ([`Helper`]). Nothing is remembered between two calls; each call compares what is with what should be.

use std::collections::BTreeSet;

use super::durable::DataState;
use super::plan::{Plan, Step, WaitingOn};
use super::pulse::{ActiveReport, DataReport, Report, Stance, StatedPosition};
use super::quorum::majority_of_every;
use super::record::{Assignment, CommitSet, DataMember, MemberKind, ResignReason};
use super::rules::Mutation;
use super::state::NodeState;
use super::view::{AppliedRecord, Followed, Job, Lineage, NodeView, SyncNames};
use crate::types::{BootTime, Generation, NodeId, WalPosition};

/// Decides what this node does now. Total: every view has a plan.
pub fn decide(view: &NodeView) -> Plan {
    let mut draft = Draft::new(view);
    match &view.record {
        None => {
            draft.state = if view.kind == MemberKind::Witness { NodeState::Witness } else { NodeState::Empty };
            draft.wait(WaitingOn::FirstRecord);
        }
        Some(record) => {
            let is_holder = record.assignment.node == view.me && view.durable.resigned < record.assignment.generation;
            if view.durable.acknowledged > record.assignment.generation {
                // this node has known a newer record: its store is behind what it did, so nothing that the older one says counts
                draft.wait(WaitingOn::NewerRecord { generation: view.durable.acknowledged });
            } else if is_holder {
                Holder { view, record, a: &record.assignment }.decide(&mut draft);
            } else {
                Helper { view, a: &record.assignment }.decide(&mut draft);
            }
        }
    }
    draft.finish()
}

/// The plan as it grows.
struct Draft<'a> {
    view: &'a NodeView,
    state: NodeState,
    asks: Option<Generation>,
    grants: Option<(NodeId, Generation)>,
    suspects: Generation,
    active: Option<ActiveReport>,
    stated: Option<StatedPosition>,
    steps: Vec<Step>,
    waiting_on: Vec<WaitingOn>,
    look_again: BootTime,
    serves_until: Option<BootTime>,
    resigning: Option<(Generation, ResignReason)>,
}

impl<'a> Draft<'a> {
    fn new(view: &'a NodeView) -> Self {
        Self {
            view,
            state: NodeState::Standby,
            asks: None,
            grants: None,
            suspects: Generation(0),
            active: None,
            stated: None,
            steps: Vec::new(),
            waiting_on: Vec::new(),
            look_again: view.now + view.timing.report_fresh,
            serves_until: None,
            resigning: None,
        }
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn wait(&mut self, what: WaitingOn) {
        self.waiting_on.push(what);
    }

    /// Asks to look again at `when`, if that lies ahead.
    fn look_at(&mut self, when: BootTime) {
        if when > self.view.now {
            self.look_again = self.look_again.min(when);
        }
    }

    fn finish(self) -> Plan {
        let view = self.view;
        let durable = &view.durable;
        let is_intact = durable.data == DataState::Intact;
        let holds_data = view.kind == MemberKind::Data && durable.data != DataState::Empty;
        let answers = is_intact || view.rules.broken(Mutation::RebuildingAnswers);
        let data = holds_data.then(|| DataReport {
            incarnation: durable.incarnation,
            is_intact: answers,
            position: view.postgres.position,
            stated: self.stated.filter(|_| answers),
        });
        let report = Report {
            state: self.state,
            record: view.record.as_ref().map_or(Generation(0), |record| record.assignment.generation),
            suspects: self.suspects,
            barred: durable.barred,
            resigned: durable.resigned,
            resign_reason: durable.resign_reason.clone(),
            data,
            active: self.active,
            // filled in by the pulses as each datagram leaves
            hears: BTreeSet::new(),
            is_fit: answers && view.unfit.is_none() && !view.is_stopping && view.guard.is_present,
        };
        let stance = Stance {
            asks: self.asks,
            asks_until: view.now + view.timing.loop_stall_limit,
            grants: self.grants,
            record_applied_at: view.record.as_ref().map_or(BootTime(0), |record| record.applied_at),
            voter_sets: view.record.as_ref().map_or_else(Vec::new, |record| record.assignment.voter_sets.clone()),
            report,
        };
        Plan {
            state: self.state,
            stance,
            steps: self.steps,
            waiting_on: self.waiting_on,
            look_again: self.look_again,
            serves_until: self.serves_until,
            resigning: self.resigning,
            stated: self.stated.map(|stated| stated.position),
        }
    }
}

/// The node that the newest record names, its generation not resigned.
struct Holder<'a> {
    view: &'a NodeView,
    record: &'a AppliedRecord,
    a: &'a Assignment,
}

impl Holder<'_> {
    fn decide(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        draft.look_at(self.record.applied_at + view.timing.promote_limit);
        if !view.guard.is_present {
            // it may only not be connected yet: nothing is concluded and nothing asked for; a lost one ends the role by the lease
            draft.state = NodeState::Promoting;
            draft.wait(WaitingOn::Guard);
            return;
        }
        if let Some(former) = view.guard.armed.filter(|armed| *armed < self.a.promoted) {
            // chosen again, but to be promoted anew: what runs is the primary of a role that has ended
            end_former_role(view, former, Generation(self.a.promoted.0.saturating_sub(1)), draft);
            return;
        }
        let is_primary = view.guard.armed.is_some() && view.postgres.in_recovery == Some(false);
        let begun = view.resigning.clone().filter(|(generation, _)| *generation == self.a.generation);
        match begun.map(|(_, reason)| reason).or_else(|| self.reason_to_resign()) {
            Some(reason) => self.resign(reason, draft),
            None if view.job == Some(Job::StoppingCleanly) => {
                self.ask(draft);
                draft.state = NodeState::Demoting;
                draft.wait(WaitingOn::PostgresGone);
            }
            None if is_primary => self.serve(draft),
            None => self.bring_up(draft),
        }
    }

    /// Why the role has to end, if it has (L7).
    fn reason_to_resign(&self) -> Option<ResignReason> {
        let view = self.view;
        let generation = self.a.generation;
        let is_late = view.now > self.record.applied_at + view.timing.promote_limit;
        let Some(armed) = view.guard.armed else {
            let had_primary = view.acted_under >= generation || self.a.promoted < generation;
            if had_primary {
                return Some(ResignReason::Restarted);
            }
            if self.is_lease_out_of_reach() {
                return Some(ResignReason::LeaseOver);
            }
            let is_same_data = view.durable.data == DataState::Intact && view.durable.incarnation == self.a.incarnation;
            return (is_late || !is_same_data).then_some(ResignReason::PromotionFailed);
        };
        if view.rules.broken(Mutation::AskWhileFenced) && (view.guard.has_fence_begun || !view.guard.has_processes) {
            return None;
        }
        if view.postgres.cleanly_stopped.is_some_and(|stopped| stopped >= armed) {
            let is_switchover = view.goals.switchover.as_ref().is_some_and(|goal| goal.from == generation);
            return Some(if is_switchover { ResignReason::Switchover } else { ResignReason::Stopping });
        }
        if view.job == Some(Job::StoppingCleanly) {
            // what has ended was meant to end; its job says how
            return (view.guard.has_fence_begun).then_some(ResignReason::LeaseOver);
        }
        if view.guard.has_postmaster_died || !view.guard.has_processes {
            return Some(if view.guard.has_fence_begun {
                ResignReason::LeaseOver
            } else {
                ResignReason::PostgresFailed
            });
        }
        let is_over = view.now >= self.deadline().before(view.timing.fence_lead);
        if view.guard.has_fence_begun || is_over {
            return Some(ResignReason::LeaseOver);
        }
        let is_primary = view.postgres.in_recovery == Some(false);
        let can_be_replaced = || {
            view.pulse.peers.values().any(|peer| {
                let is_data = peer.report.data.is_some_and(|data| data.is_intact);
                is_data && peer.report.is_fit && peer.is_fresh(view.now, &view.timing)
            })
        };
        if is_primary && view.postgres.stalled_for > view.timing.write_stall_limit && can_be_replaced() {
            return Some(ResignReason::PostgresFailed);
        }
        let is_wrong_timeline =
            is_primary && view.postgres.timeline.is_some_and(|timeline| timeline != self.a.timeline);
        let waits_for_nobody = self.a.commit_sets.iter().all(|set| set.k == 0);
        let must_be_done = !is_primary || (waits_for_nobody && !self.a.opened);
        let is_mutated = view.rules.broken(Mutation::TimelinesCollide);
        ((is_wrong_timeline && !is_mutated) || (is_late && must_be_done)).then_some(ResignReason::PromotionFailed)
    }

    /// Whether so many have barred the generation that no majority can acknowledge it any more: only another assignment helps.
    fn is_lease_out_of_reach(&self) -> bool {
        let view = self.view;
        let may_acknowledge = |voter| {
            let has_barred = |peer: &super::pulse::PeerView| peer.report.barred >= self.a.generation;
            voter == view.me || !view.pulse.peers.get(&voter).is_some_and(has_barred)
        };
        !majority_of_every(&self.a.voter_sets, may_acknowledge)
    }

    /// The end of the lease: as the guard was last told, or as the pulses have extended it since.
    fn deadline(&self) -> BootTime {
        let armed = self.view.guard.armed;
        let leased = self.view.pulse.lease.filter(|(generation, _)| Some(*generation) == armed);
        self.view.guard.deadline.max(leased.map_or(BootTime(0), |(_, end)| end))
    }

    /// Ends the role: fence complete, `standby.signal` present, then the resignation on disk, and only then said (L7).
    fn resign(&self, reason: ResignReason, draft: &mut Draft<'_>) {
        draft.state = NodeState::Demoting;
        draft.resigning = Some((self.a.generation, reason.clone()));
        end_role(self.view, self.a.generation, reason, draft);
    }

    /// Asks for the lease, once that this node acknowledges its own generation is on disk (L2, L3).
    fn ask(&self, draft: &mut Draft<'_>) {
        if self.view.durable.acknowledged < self.a.generation {
            draft.step(Step::PersistAcknowledged { generation: self.a.generation });
        } else {
            draft.asks = Some(self.a.generation);
        }
    }

    /// Returns the end of a lease under this generation that leaves time before the fence.
    fn lease(&self) -> Option<BootTime> {
        let (generation, end) = self.view.pulse.lease?;
        let is_held = generation == self.a.generation && self.view.now < end.before(self.view.timing.fence_lead);
        is_held.then_some(end)
    }

    fn newest_set(&self) -> CommitSet {
        self.a.commit_sets.last().cloned().unwrap_or_else(CommitSet::none)
    }

    /// What commits are to wait for: the newest set of the record, and nobody's name until a set of none is opened (L15).
    fn names(&self) -> SyncNames {
        let mut newest = self.newest_set();
        if self.view.rules.broken(Mutation::NamesBeforeRecord) && self.a.opened {
            newest.members = self.view.postgres.standbys.keys().copied().collect();
            newest.k = newest.k.min(u32::try_from(newest.members.len()).unwrap_or(0));
        }
        if newest.k == 0 && !self.a.opened { SyncNames::Nobody } else { SyncNames::Set(newest) }
    }

    fn bring_up(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        draft.state = NodeState::Promoting;
        self.ask(draft);
        if let Some(job) = &view.job {
            wait_for_job(job, draft);
            return;
        }
        if !view.guard.has_processes {
            draft.step(Step::StartPostgres);
            draft.wait(WaitingOn::PostgresAnswers);
            return;
        }
        if view.postgres.in_recovery.is_none() {
            draft.wait(WaitingOn::PostgresAnswers);
            return;
        }
        if view.postgres.follows.is_some() || view.postgres.has_receiver {
            draft.step(Step::CutReceiver { generation });
            return;
        }
        let lease = self.lease().or_else(|| {
            let is_mutated = view.rules.broken(Mutation::PromoteWithoutLease);
            is_mutated.then(|| view.now + view.timing.lease)
        });
        let Some(deadline) = lease else {
            draft.wait(WaitingOn::Lease { generation });
            return;
        };
        if view.guard.armed != Some(generation) {
            draft.step(Step::ArmGuard { generation, deadline });
        }
        let names = self.names();
        if view.postgres.names.as_ref().map(|in_effect| &in_effect.names) != Some(&names) {
            draft.step(Step::SetNames { generation, names });
        }
        draft.step(Step::Promote { generation, timeline: self.a.timeline });
        draft.wait(WaitingOn::Promotion { timeline: self.a.timeline });
        draft.active = Some(self.report(false));
    }

    fn serve(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        self.ask(draft);
        if !view.postgres.has_standby_signal {
            draft.step(Step::PutStandbySignal);
        }
        if view.guard.armed < Some(generation) {
            match self.lease() {
                Some(deadline) => draft.step(Step::ArmGuard { generation, deadline }),
                None => draft.wait(WaitingOn::Lease { generation }),
            }
        }
        let names = self.names();
        let in_effect = view.postgres.names.as_ref().map(|in_effect| &in_effect.names);
        if self.a.opened && !view.postgres.has_written && in_effect.is_none() && view.job.is_none() {
            // a daemon that has just started: clients are served before the names are made certain by a checkpoint
            draft.step(Step::ProbeWrite { generation });
        }
        if in_effect != Some(&names) {
            draft.step(Step::SetNames { generation, names });
        }
        let report = self.report(true);
        if !self.a.opened {
            draft.wait(if report.may_open { WaitingOn::Opened } else { WaitingOn::StandbysHoldPromotion });
        }
        draft.active = Some(report);
        if self.a.opened && !view.postgres.has_written && view.postgres.names.is_some() && view.job.is_none() {
            draft.step(Step::ProbeWrite { generation });
        }
        let is_open = self.a.opened && view.postgres.has_written;
        draft.state = if is_open { NodeState::Active } else { NodeState::Promoting };
        let fence = self.deadline().before(view.timing.fence_lead);
        draft.look_at(fence);
        draft.serves_until = is_open.then_some(fence);
        self.hand_over(draft);
    }

    /// Stops PostgreSQL cleanly when a switchover was ordered or hasup is being stopped, while the lease goes on.
    fn hand_over(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        let goal = view.goals.switchover.as_ref().filter(|goal| goal.from == generation);
        if (goal.is_none() && !view.is_stopping) || !self.a.opened {
            return;
        }
        if let Some(goal) = goal {
            let streams = |node: NodeId| view.postgres.standbys.keys().any(|member| member.node == node);
            let is_ready = goal.to.map_or(!view.postgres.standbys.is_empty(), streams);
            draft.wait(WaitingOn::Switchover(goal.clone()));
            if !is_ready && !view.is_stopping {
                return;
            }
        }
        if view.postgres.checkpointed_for == Some(generation) {
            draft.state = NodeState::Demoting;
            draft.serves_until = None;
            draft.step(Step::StopCleanly { generation });
        } else {
            draft.step(Step::PrepareSwitchover { generation });
        }
    }

    fn report(&self, is_primary: bool) -> ActiveReport {
        let postgres = &self.view.postgres;
        let newest = self.newest_set();
        let holders_of = |set: &CommitSet, from: crate::types::Lsn, is_past: bool| {
            let holds = |flushed: crate::types::Lsn| if is_past { flushed > from } else { flushed >= from };
            let members =
                set.members.iter().filter(|member| postgres.standbys.get(member).is_some_and(|lsn| holds(*lsn)));
            members.count()
        };
        let names_are_set = postgres.names.as_ref().is_some_and(|in_effect| in_effect.names == self.names());
        let holds_promotion = newest.k == 0
            || postgres.promoted_at.is_some_and(|lsn| holders_of(&newest, lsn, true) >= newest.k as usize)
            || self.view.rules.broken(Mutation::OpenTooEarly);
        let is_settled = |in_effect: &super::view::NamesInEffect| {
            in_effect.names == SyncNames::Set(newest.clone())
                && holders_of(&newest, in_effect.since, false) >= newest.k as usize
        };
        ActiveReport {
            generation: self.view.guard.armed.unwrap_or_default(),
            leased: self.view.pulse.lease.map_or(Generation(0), |(generation, _)| generation),
            is_primary,
            may_open: is_primary && names_are_set && holds_promotion,
            settled: postgres.names.as_ref().filter(|in_effect| is_settled(in_effect)).map(|_| newest.clone()),
            streaming: postgres.standbys.keys().copied().collect(),
        }
    }
}

/// Ends a role under `generation`: fence, then `standby.signal`, then the resignation on disk (L7).
fn end_role(view: &NodeView, generation: Generation, reason: ResignReason, draft: &mut Draft<'_>) {
    if !view.guard.is_present {
        draft.wait(WaitingOn::Guard);
        return;
    }
    // what does not say that it is a standby counts as a primary
    let may_be_primary = view.guard.armed.is_some() || view.postgres.in_recovery != Some(true);
    if may_be_primary && view.guard.has_processes {
        draft.step(Step::Fence { generation });
        draft.wait(WaitingOn::PostgresGone);
        return;
    }
    if !view.postgres.has_standby_signal {
        draft.step(Step::PutStandbySignal);
    }
    draft.step(Step::PersistResignation { generation, reason });
}

/// Ends the role that `armed` stands for, when the newest record is of a later one: at once, before the lease ends (L5).
///
/// `ended` is the highest generation that the newer record proves to be over for this node.
fn end_former_role(view: &NodeView, armed: Generation, ended: Generation, draft: &mut Draft<'_>) {
    draft.state = NodeState::Demoting;
    if view.durable.resigned >= armed && !view.guard.has_processes {
        draft.step(Step::Disarm { generation: armed });
    } else {
        end_role(view, ended.max(armed), ResignReason::Superseded, draft);
    }
}

/// A node that the newest record does not name, or that has resigned what it named it for.
struct Helper<'a> {
    view: &'a NodeView,
    a: &'a Assignment,
}

impl Helper<'_> {
    fn decide(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        let is_former = self.a.node == view.me;
        draft.state = self.state();
        self.suspect(is_former, draft);
        let keeps_stale = view.rules.broken(Mutation::AcceptStale);
        if let Some(armed) = view.guard.armed.filter(|_| !keeps_stale) {
            let ended = if is_former { generation } else { Generation(generation.0 - 1) };
            end_former_role(view, armed, ended, draft);
            // what follows is about the log of others: it waits until this node's own primary is gone
            if view.guard.has_processes || view.durable.resigned < armed {
                return;
            }
        } else if view.postgres.in_recovery == Some(false) && view.guard.has_processes {
            draft.state = NodeState::Demoting;
            draft.step(Step::Fence { generation });
            draft.wait(WaitingOn::PostgresGone);
            return;
        }
        if !is_former && view.durable.barred < generation && self.must_bar() {
            draft.step(Step::PersistBar { generation });
            if !view.rules.broken(Mutation::LeaveReceiverOpen) {
                self.cut_receiver(generation, draft);
            }
            if view.rules.broken(Mutation::AcknowledgeAfterBar) {
                draft.grants = Some((self.a.node, generation));
            }
            return;
        }
        let refuses = is_former || view.durable.barred >= generation;
        if refuses {
            self.stand_by_under_bar(draft);
        } else {
            self.help(draft);
        }
    }

    fn state(&self) -> NodeState {
        let view = self.view;
        if view.kind == MemberKind::Witness {
            return NodeState::Witness;
        }
        let hears_majority = majority_of_every(&self.a.voter_sets, |voter| {
            let fresh = |peer: &super::pulse::PeerView| peer.is_fresh(view.now, &view.timing);
            voter == view.me || view.pulse.peers.get(&voter).is_some_and(fresh)
        });
        match view.durable.data {
            DataState::Empty => NodeState::Joining,
            DataState::Rebuilding { .. } => NodeState::Rejoining,
            DataState::Intact if !hears_majority => NodeState::Minority,
            DataState::Intact => NodeState::Standby,
        }
    }

    /// Suspicion is revocable and costs nothing: the promise to the active node has ended (L8).
    fn suspect(&self, is_former: bool, draft: &mut Draft<'_>) {
        let view = self.view;
        if is_former {
            return;
        }
        let until = self.promise_end();
        draft.look_at(until + std::time::Duration::from_millis(1));
        if view.now > until {
            draft.suspects = self.a.generation;
            if view.durable.barred < self.a.generation {
                draft.wait(WaitingOn::MajoritySuspects { node: self.a.node });
            }
        }
    }

    /// Until when this node promised to support nobody else. The pulses learn of a new record only with the stance that follows from
    /// this very decision, so its own grace is counted here, too: nobody is suspected for not having been active before.
    fn promise_end(&self) -> BootTime {
        let is_heard = |peer: &super::pulse::PeerView| peer.is_fresh(self.view.now, &self.view.timing);
        if self.view.rules.broken(Mutation::SkipLeaseWait)
            && !self.view.pulse.peers.get(&self.a.node).is_some_and(is_heard)
        {
            return BootTime(0);
        }
        self.view.pulse.promise_end.max(self.record_applied_at() + self.view.timing.promise())
    }

    /// Whether the time has come to refuse the generation durably (L8).
    fn must_bar(&self) -> bool {
        let view = self.view;
        let generation = self.a.generation;
        let has_resigned = |node: NodeId| {
            node == self.a.node && view.pulse.peers.get(&node).is_some_and(|peer| peer.report.resigned >= generation)
        };
        if has_resigned(self.a.node) {
            return true;
        }
        let suspects_now = view.now > self.promise_end();
        majority_of_every(&self.a.voter_sets, |voter| {
            if voter == view.me {
                return suspects_now;
            }
            view.pulse.peers.get(&voter).is_some_and(|peer| {
                let suspects = peer.report.suspects >= generation && peer.is_fresh(view.now, &view.timing);
                voter != self.a.node && (suspects || peer.report.barred >= generation)
            })
        })
    }

    fn cut_receiver(&self, generation: Generation, draft: &mut Draft<'_>) {
        if self.view.postgres.follows.is_some() || self.view.postgres.has_receiver {
            draft.step(Step::CutReceiver { generation });
        }
    }

    /// Holds still: what this node has is stated, and nothing is added until a higher generation is assigned (L9, L14).
    fn stand_by_under_bar(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let under = view.durable.barred.max(view.durable.resigned);
        draft.wait(WaitingOn::NextAssignment { barred: self.a.generation });
        if view.rules.broken(Mutation::AcknowledgeAfterBar) && self.a.node != view.me {
            draft.grants = Some((self.a.node, self.a.generation));
        }
        if view.kind == MemberKind::Witness || view.durable.data == DataState::Empty {
            return;
        }
        let is_open = view.postgres.follows.is_some() || view.postgres.has_receiver;
        if is_open && !view.rules.broken(Mutation::LeaveReceiverOpen) {
            self.cut_receiver(under, draft);
            if !view.rules.broken(Mutation::StateBeforeBar) {
                return;
            }
        }
        match view.postgres.position {
            Some(position) => draft.stated = Some(StatedPosition { under, position }),
            None => draft.wait(WaitingOn::LogEnd),
        }
        self.keep_running(draft);
    }

    /// Acknowledges the active node and follows it.
    fn help(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        if view.durable.acknowledged < generation {
            draft.step(Step::PersistAcknowledged { generation });
        } else {
            draft.grants = Some((self.a.node, generation));
        }
        if view.kind == MemberKind::Witness {
            return;
        }
        if let Some(job) = &view.job {
            wait_for_job(job, draft);
            return;
        }
        match view.durable.data {
            DataState::Empty => self.copy(draft),
            DataState::Rebuilding { until: None } => self.rejoin(draft),
            DataState::Rebuilding { until: Some(until) } => {
                self.follow_if_possible(draft);
                let is_past = view.postgres.position.is_some_and(|position| position.lsn >= until);
                if self.is_seen_streaming() && is_past {
                    draft.step(Step::PersistIntact);
                } else {
                    draft.wait(WaitingOn::CaughtUp);
                }
            }
            DataState::Intact => self.follow_if_possible(draft),
        }
    }

    fn copy(&self, draft: &mut Draft<'_>) {
        if !self.has_live_primary() {
            draft.wait(WaitingOn::Source { node: self.a.node });
        } else if self.a.opened {
            draft.step(Step::CopyDatabase { from: self.a.node, generation: self.a.generation });
        } else {
            draft.wait(WaitingOn::Opened);
        }
    }

    /// Rebuilds this node's data, when the cluster can do without what it holds: the active node has committed under this
    /// promotion with others, so that no record before counts on this node's data any more; or nobody else can follow, so that the
    /// record would never be opened (L19).
    fn rejoin(&self, draft: &mut Draft<'_>) {
        draft.state = NodeState::Rejoining;
        if !self.has_live_primary() {
            draft.wait(WaitingOn::Source { node: self.a.node });
        } else if self.view.durable.data != DataState::Intact || self.a.opened || self.has_to_be_rebuilt() {
            draft.step(Step::Rejoin { from: self.a.node, generation: self.a.generation });
        } else {
            draft.wait(WaitingOn::SafeToRebuild);
        }
    }

    /// Whether the active node is heard now as the primary of this record: nothing is destroyed for a source that is not there.
    fn has_live_primary(&self) -> bool {
        self.view.pulse.peers.get(&self.a.node).is_some_and(|peer| {
            let is_primary = |active: &ActiveReport| active.is_primary && active.generation >= self.a.promoted;
            peer.is_fresh(self.view.now, &self.view.timing) && peer.report.active.as_ref().is_some_and(is_primary)
        })
    }

    /// Whether fewer than k members in reach can follow without a rebuild, or after one that already goes on, and this node is
    /// the one whose data is missed least: only as many are rebuilt as it takes.
    fn has_to_be_rebuilt(&self) -> bool {
        let view = self.view;
        let Some(set) = self.a.commit_sets.last() else { return false };
        // those who are on their way back are waited for a little
        if set.k == 0 || view.now < self.record_applied_at() + view.timing.lease {
            return false;
        }
        let position = view.postgres.position;
        let others = self.view.pulse.peers.iter().filter(|(node, peer)| {
            **node != self.a.node && peer.is_fresh(view.now, &view.timing) && peer.report.data.is_some()
        });
        let stay = others.filter(|(node, peer)| {
            let waits =
                peer.report.state == NodeState::Rejoining && peer.report.data.is_some_and(|data| data.is_intact);
            let theirs = peer.report.data.and_then(|data| data.position);
            let is_member = set.members.iter().any(|member| member.node == **node);
            // who waits like this node goes first if it has less log
            is_member && (!waits || (theirs, **node) < (position, view.me))
        });
        stay.count() < set.k as usize
    }

    fn record_applied_at(&self) -> BootTime {
        self.view.record.as_ref().map_or(BootTime(0), |record| record.applied_at)
    }

    fn follow_if_possible(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let verdict = view.lineage.filter(|(promoted, _)| *promoted == self.a.promoted).map(|(_, verdict)| verdict);
        if verdict == Some(Lineage::Diverged) {
            self.rejoin(draft);
            return;
        }
        self.keep_running(draft);
        if (view.postgres.has_receiver || view.postgres.follows.is_some()) && !self.is_following() {
            // what still arrives from a former primary would move the position under the judgement
            draft.step(Step::CutReceiver { generation: Generation(self.a.generation.0.saturating_sub(1)) });
            return;
        }
        if self.is_following() && view.postgres.is_streaming {
            return;
        }
        let Some(position) = view.postgres.position else {
            draft.wait(WaitingOn::LogEnd);
            return;
        };
        if self.can_follow_from(position) || verdict == Some(Lineage::Follows) {
            self.follow(draft);
        } else {
            draft.step(Step::CheckLineage { node: self.a.node, promoted: self.a.promoted });
        }
    }

    /// A log on a timeline is a prefix of every longer one on it, as each timeline has one maker (L13).
    fn can_follow_from(&self, position: WalPosition) -> bool {
        position.timeline == self.a.timeline
            || (position.timeline == self.a.start.timeline && position.lsn <= self.a.start.lsn)
    }

    /// Whether the active node itself says that this node streams in this life of its data: a receiver says so before it does.
    fn is_seen_streaming(&self) -> bool {
        let me = DataMember { node: self.view.me, incarnation: self.view.durable.incarnation };
        self.view.postgres.is_streaming
            && self
                .view
                .pulse
                .peers
                .get(&self.a.node)
                .is_some_and(|peer| peer.report.active.as_ref().is_some_and(|active| active.streaming.contains(&me)))
    }

    fn is_following(&self) -> bool {
        let is_current = |followed: &Followed| {
            followed.node == self.a.node
                && followed.generation >= self.a.promoted
                && followed.generation > self.view.durable.barred
        };
        self.view.postgres.follows.as_ref().is_some_and(is_current)
    }

    fn follow(&self, draft: &mut Draft<'_>) {
        if !self.is_following() {
            draft.step(Step::Follow(Followed { node: self.a.node, generation: self.a.generation }));
        }
    }

    fn keep_running(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        if let Some(job) = &view.job {
            wait_for_job(job, draft);
        } else if view.guard.is_present && !view.guard.has_processes && !view.is_stopping {
            if !view.postgres.has_standby_signal {
                draft.step(Step::PutStandbySignal);
            }
            draft.step(Step::StartPostgres);
        }
    }
}

fn wait_for_job(job: &Job, draft: &mut Draft<'_>) {
    let what = match job {
        Job::Starting => "PostgreSQL to start".to_owned(),
        Job::StoppingCleanly => "PostgreSQL to stop".to_owned(),
        Job::Rebuilding => "the database to be rebuilt from the active node".to_owned(),
        Job::CheckingLineage => "the active node's history".to_owned(),
        Job::Brief(what) => (*what).to_owned(),
        Job::Failed { error, retry_at } => {
            draft.look_at(*retry_at);
            format!("the next try, after: {error}")
        }
    };
    draft.wait(WaitingOn::Job(what));
}
