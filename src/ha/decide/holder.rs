//! The node that the newest record names: brings PostgreSQL up, serves, hands over, resigns.

use super::{Draft, end_former_role, end_role, wait_for_job};
use crate::ha::durable::DataState;
use crate::ha::plan::{Step, WaitingOn};
use crate::ha::pulse::{ActiveReport, PeerView};
use crate::ha::quorum::majority_of_every;
use crate::ha::record::{Assignment, CommitSet, ResignReason, SwitchoverGoal};
use crate::ha::rules::Mutation;
use crate::ha::state::NodeState;
use crate::ha::view::{AppliedRecord, Job, NamesInEffect, NodeView, SyncNames};
use crate::types::{BootTime, Generation, Lsn, NodeId};

/// The node that the newest record names, its generation not resigned.
pub(super) struct Holder<'a> {
    pub(super) view: &'a NodeView,
    pub(super) record: &'a AppliedRecord,
    pub(super) a: &'a Assignment,
}

impl Holder<'_> {
    pub(super) fn decide(&self, draft: &mut Draft<'_>) {
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
        if view.postgres.cleanly_stopped.is_some_and(|stopped| stopped.generation >= armed) {
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
        // armed by a daemon before this one, which may have promoted it; it has not told this one yet, be it for want of a connection
        let may_be_primary = is_primary || view.postgres.in_recovery.is_none();
        let can_be_replaced = || {
            view.pulse.peers.values().any(|peer| {
                let is_data = peer.report.data.is_some_and(|data| data.is_intact);
                is_data && peer.report.is_fit && peer.is_fresh(view.now, &view.timing)
            })
        };
        // with such a disk this node may not even be able to resign: then the others must be able to without its word
        let can_go_on_without = || {
            let is_there =
                |voter: NodeId| view.pulse.peers.get(&voter).is_some_and(|peer| peer.is_fresh(view.now, &view.timing));
            majority_of_every(&self.a.voter_sets, is_there)
        };
        let can_write_elsewhere = || {
            can_go_on_without()
                && view.pulse.peers.values().any(|peer| {
                    let is_data = peer.report.data.is_some_and(|data| data.is_intact);
                    is_data && peer.report.is_fit && peer.report.has_room() && peer.is_fresh(view.now, &view.timing)
                })
        };
        // small writes may still succeed where there is room in a file; those that clients need do not
        if is_primary && view.troubles.iter().any(|trouble| trouble.stops_writes()) && can_write_elsewhere() {
            return Some(ResignReason::PostgresFailed);
        }
        if may_be_primary && view.postgres.stalled_for > view.timing.write_stall_limit && can_be_replaced() {
            return Some(ResignReason::PostgresFailed);
        }
        let is_wrong_timeline =
            is_primary && view.postgres.timeline.is_some_and(|timeline| timeline != self.a.timeline);
        let waits_for_nobody = self.a.commit_sets.iter().all(|set| set.k == 0);
        let must_be_done = !may_be_primary || (waits_for_nobody && !self.a.opened);
        let is_mutated = view.rules.broken(Mutation::TimelinesCollide);
        ((is_wrong_timeline && !is_mutated) || (is_late && must_be_done)).then_some(ResignReason::PromotionFailed)
    }

    /// Whether so many have barred the generation that no majority can acknowledge it any more: only another assignment helps.
    fn is_lease_out_of_reach(&self) -> bool {
        let view = self.view;
        let may_acknowledge = |voter| {
            let has_barred = |peer: &PeerView| peer.report.barred >= self.a.generation;
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
        match newest.k {
            0 if !self.a.opened => SyncNames::Nobody,
            _ => SyncNames::Set(newest),
        }
    }

    fn bring_up(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        draft.state = NodeState::Promoting;
        self.ask(draft);
        if let Some(job) = view.busy() {
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
        let names = self.names();
        let has_names = view.postgres.names.as_ref().map(|in_effect| &in_effect.names) == Some(&names);
        let lease = self.lease().or_else(|| {
            let is_mutated = view.rules.broken(Mutation::PromoteWithoutLease);
            is_mutated.then(|| view.now + view.timing.lease)
        });
        let Some(deadline) = lease else {
            // while the acknowledgements are under way: a standby waits for nobody, whatever its names are
            if !has_names && draft.asks.is_some() && view.postgres.in_recovery == Some(true) {
                draft.step(Step::SetNames { generation, names });
            }
            draft.wait(WaitingOn::Lease { generation });
            return;
        };
        if view.guard.armed != Some(generation) {
            draft.step(Step::ArmGuard { generation, deadline });
        }
        if !has_names && !draft.step(Step::SetNames { generation, names }) {
            return;
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
                Some(deadline) => {
                    draft.step(Step::ArmGuard { generation, deadline });
                }
                None => draft.wait(WaitingOn::Lease { generation }),
            }
        }
        let names = self.names();
        let in_effect = view.postgres.names.as_ref().map(|in_effect| &in_effect.names);
        // the place for long work belongs to the hand-over, once that can be
        let hands_over = self.can_hand_over();
        let may_probe = self.a.opened && !view.postgres.has_written && view.busy().is_none() && !hands_over;
        if may_probe && in_effect.is_none() {
            // a daemon that has just started: clients are served before the names are made certain by a checkpoint
            draft.step(Step::ProbeWrite { generation });
        }
        if in_effect != Some(&names) && !hands_over {
            draft.step(Step::SetNames { generation, names });
        }
        let report = self.report(true);
        if !self.a.opened {
            draft.wait(if report.may_open { WaitingOn::Opened } else { WaitingOn::StandbysHoldPromotion });
        }
        draft.active = Some(report);
        if may_probe && view.postgres.names.is_some() {
            draft.step(Step::ProbeWrite { generation });
        }
        let is_open = self.a.opened && view.postgres.has_written;
        draft.state = if is_open { NodeState::Active } else { NodeState::Promoting };
        let fence = self.deadline().before(view.timing.fence_lead);
        draft.look_at(fence);
        draft.serves_until = is_open.then_some(fence);
        self.hand_over(draft);
    }

    fn switchover(&self) -> Option<&SwitchoverGoal> {
        self.view.goals.switchover.as_ref().filter(|goal| goal.from == self.a.generation)
    }

    /// Whether the role is to be handed over, and somebody is there to take it, or this node ends in any case.
    fn can_hand_over(&self) -> bool {
        let standbys = &self.view.postgres.standbys;
        let streams = |node: NodeId| standbys.keys().any(|member| member.node == node);
        let is_ready = |goal: &SwitchoverGoal| goal.to.map_or(!standbys.is_empty(), streams);
        self.a.opened && (self.view.is_stopping || self.switchover().is_some_and(is_ready))
    }

    /// Stops PostgreSQL cleanly when a switchover was ordered or hasup is being stopped, while the lease goes on.
    fn hand_over(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let generation = self.a.generation;
        if let Some(goal) = self.switchover().filter(|_| self.a.opened) {
            draft.wait(WaitingOn::Switchover(goal.clone()));
        }
        if !self.can_hand_over() {
            return;
        }
        if view.busy().is_some() {
            // clients are served until the stop can really begin
            return;
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
        let holders_of = |set: &CommitSet, from: Lsn, is_past: bool| {
            let holds = |flushed: Lsn| if is_past { flushed > from } else { flushed >= from };
            let members =
                set.members.iter().filter(|member| postgres.standbys.get(member).is_some_and(|lsn| holds(*lsn)));
            members.count()
        };
        let names_are_set = postgres.names.as_ref().is_some_and(|in_effect| in_effect.names == self.names());
        let holds_promotion = newest.k == 0
            || postgres.promoted_at.is_some_and(|lsn| holders_of(&newest, lsn, true) >= newest.k as usize)
            || self.view.rules.broken(Mutation::OpenTooEarly);
        let is_settled = |in_effect: &NamesInEffect| {
            in_effect.names == self.names()
                && in_effect.names != SyncNames::Nobody
                && holders_of(&newest, in_effect.since, false) >= newest.needed()
        };
        ActiveReport {
            generation: self.view.guard.armed.unwrap_or_default(),
            record: self.record.index,
            leased: self.view.pulse.lease.map_or(Generation(0), |(generation, _)| generation),
            is_primary,
            may_open: is_primary && names_are_set && holds_promotion,
            settled: postgres.names.as_ref().filter(|in_effect| is_settled(in_effect)).map(|_| newest.clone()),
            streaming: postgres.standbys.keys().copied().collect(),
        }
    }
}
