//! Everybody else: acknowledges, follows, suspects, bars, states its position, and is rebuilt where its data has parted.

use super::{Draft, end_former_role, fetch, wait_for_job};
use crate::ha::durable::DataState;
use crate::ha::plan::{Step, WaitingOn};
use crate::ha::pulse::{ActiveReport, PeerView, StatedPosition};
use crate::ha::quorum::majority_of_every;
use crate::ha::record::{Assignment, CommitSet, DataMember, MemberKind};
use crate::ha::rules::Mutation;
use crate::ha::state::NodeState;
use crate::ha::timing::Timing;
use crate::ha::view::{Followed, Lineage, NodeView, Place};
use crate::types::{BootTime, DataIncarnation, Generation, NodeId, WalPosition};

/// The first life of a node's data: what is made of it before it has been whole is what the node joined for.
const FIRST_LIFE: DataIncarnation = DataIncarnation(1);

/// A node that the newest record does not name, or that has resigned what it named it for.
pub(super) struct Helper<'a> {
    pub(super) view: &'a NodeView,
    pub(super) a: &'a Assignment,
}

impl Helper<'_> {
    pub(super) fn decide(&self, draft: &mut Draft<'_>) {
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
            let fresh = |peer: &PeerView| peer.is_fresh(view.now, &view.timing);
            voter == view.me || view.pulse.peers.get(&voter).is_some_and(fresh)
        });
        match view.durable.data {
            DataState::Empty => NodeState::Joining,
            DataState::Rebuilding { .. } => self.rebuilding(),
            DataState::Intact if !hears_majority => NodeState::Minority,
            DataState::Intact => NodeState::Standby,
        }
    }

    /// What a node is whose data is being made: one that never had any is still joining.
    fn rebuilding(&self) -> NodeState {
        let is_first_life = self.view.durable.data != DataState::Intact && self.view.durable.incarnation <= FIRST_LIFE;
        if is_first_life { NodeState::Joining } else { NodeState::Rejoining }
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
        let is_heard = |peer: &PeerView| peer.is_fresh(self.view.now, &self.view.timing);
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
        // whoever has promised waits, whatever the others say: what they said of themselves may be older than what they promised since, and
        // only bars of those whose promise is over leave no majority to a lease
        if view.now <= self.promise_end() {
            return false;
        }
        majority_of_every(&self.a.voter_sets, |voter| {
            if voter == view.me {
                return true;
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
        let fetch = fetch::wanted(view, self.a, draft);
        if let Some(fetch) = &fetch {
            draft.wait(WaitingOn::Fetch { from: fetch.from });
            if view.rules.broken(Mutation::StateBeforeFetched) {
                draft.stated = Some(StatedPosition { under, position: fetch.until });
            }
            if fetch.is_under_way {
                // what this node holds is stated once that stands still again
                return;
            }
        }
        if is_open && !view.rules.broken(Mutation::LeaveReceiverOpen) {
            self.cut_receiver(under, draft);
            if !view.rules.broken(Mutation::StateBeforeBar) {
                return;
            }
        }
        if let Some(fetch) = fetch.filter(|_| !is_open) {
            draft.step(Step::Fetch { from: fetch.from, under: self.a.generation });
            return;
        }
        match view.postgres.position {
            Some(position) => draft.stated = Some(StatedPosition { under, position }),
            None => draft.wait(WaitingOn::LogEnd),
        }
        self.keep_running(draft);
    }

    /// Whether the data directory is only partly that of its source: nothing runs on it.
    fn is_half_made(&self) -> bool {
        self.view.durable.data == DataState::Rebuilding { until: None }
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
        self.remember_span(draft);
        if view.kind == MemberKind::Witness {
            return;
        }
        if let Some(job) = view.busy() {
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

    /// Leases as long as the options say are acknowledged once that is on disk; it is taken back from there only when all that was
    /// promised ends no later than a new start would believe (L2).
    fn remember_span(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        let (wanted, known) = (view.timing.lease, view.durable.lease_span);
        let is_over =
            || view.pulse.grants_span <= wanted && view.pulse.promise_end.since(view.now) <= Timing::promise_of(wanted);
        if known < wanted || (known > wanted && is_over()) {
            draft.step(Step::PersistLeaseSpan { span: wanted });
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
        draft.state = self.rebuilding();
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
        // a stream goes on at the former place for as long as it is served there; one that is lost is sought at the new one
        if self.is_following() && view.postgres.has_source_moved {
            self.follow_anew(draft);
            return;
        }
        // what was rebuilt from this very primary may say where its log ends only once it has streamed some more
        if verdict == Some(Lineage::Follows) {
            self.follow(draft);
            return;
        }
        let Some(position) = view.postgres.position else {
            let is_late = view.now > self.record_applied_at() + view.timing.rebuilt_limit;
            match self.can_be_made_whole() {
                Some(true) if !is_late => self.follow(draft),
                Some(false) => self.rejoin(draft),
                // it has had time enough to say where its log ends
                _ if view.durable.data != DataState::Intact && is_late => self.rejoin(draft),
                _ => draft.wait(WaitingOn::LogEnd),
            }
            return;
        };
        if self.can_follow_from(position) {
            self.follow(draft);
        } else {
            draft.step(Step::CheckLineage { node: self.a.node, promoted: self.a.promoted });
        }
    }

    /// Whether data that was rebuilt from a primary that is gone since, and is not whole without log of its timeline up to some
    /// position, finds all of that in the present primary's log; none where that is not known.
    fn can_be_made_whole(&self) -> Option<bool> {
        let DataState::Rebuilding { until: Some(until) } = self.view.durable.data else { return None };
        let timeline = self.view.rebuilt_from?;
        let needed = WalPosition { timeline, lsn: until };
        (timeline == self.a.timeline || timeline == self.a.start.timeline).then(|| self.can_follow_from(needed))
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
            self.follow_anew(draft);
        }
    }

    fn follow_anew(&self, draft: &mut Draft<'_>) {
        // the copy of a machine that lives would stream under its name, and confirm commits in its stead; where it says to be at the same
        // place, pulses go to the other one alone
        let is_answered = |peer: &PeerView| peer.is_fresh(self.view.now, &self.view.timing);
        if self.view.place == Place::Moved {
            draft.wait(WaitingOn::Place);
        } else if !self.view.pulse.peers.get(&self.a.node).is_some_and(is_answered) {
            draft.wait(WaitingOn::Answer { node: self.a.node });
        } else {
            draft.step(Step::Follow(Followed { node: self.a.node, generation: self.a.generation }));
        }
    }

    fn keep_running(&self, draft: &mut Draft<'_>) {
        let view = self.view;
        if let Some(job) = view.busy() {
            wait_for_job(job, draft);
        } else if view.guard.is_present && !view.guard.has_processes && !view.is_stopping && !self.is_half_made() {
            if self.makes_way(draft) {
                return;
            }
            if !view.postgres.has_standby_signal {
                draft.step(Step::PutStandbySignal);
            }
            draft.step(Step::StartPostgres);
        }
    }

    /// Whether the start of a former primary waits: where it was stopped in order its position is known, and those that bring up the
    /// next primary can open it without this node, whose start would only slow them down where they share a machine or a disk. Who did
    /// not stream when it was stopped is heard, perhaps, and yet confirms nothing soon.
    fn makes_way(&self, draft: &mut Draft<'_>) -> bool {
        let view = self.view;
        let Some(stopped) = view.postgres.cleanly_stopped else { return false };
        let until = stopped.at + view.timing.make_way;
        let is_over = view.now >= until || (self.a.generation > stopped.generation && self.a.opened);
        let is_there = |member: &DataMember| {
            let peer = view.pulse.peers.get(&member.node);
            peer.is_some_and(|peer| {
                peer.is_fresh(view.now, &view.timing) && peer.report.data.is_some_and(|data| data.is_intact)
            })
        };
        // of those that commits wait for under this node's own record, one becomes active
        let becomes_active = usize::from(self.a.node == view.me);
        let suffice = |set: &CommitSet| {
            let k = set.k as usize;
            stopped.standbys > k && set.members.iter().filter(|member| is_there(member)).count() >= k + becomes_active
        };
        if is_over || !self.a.commit_sets.last().is_some_and(suffice) {
            return false;
        }
        draft.look_at(until);
        true
    }
}
