//! Puts together what the brain looks at, from what the node's parts last said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ha::pulse::{PulseView, Report};
use crate::ha::record::{EventKind, Member, ResignReason};
use crate::ha::rules::Rules;
use crate::ha::timing::Timing;
use crate::ha::view::{AppliedRecord, ClusterView, MemberView};
use crate::kv::State;
use crate::raft::Leadership;
use crate::types::{BootTime, Generation, NodeId};

const HOUR_MS: u64 = 3_600_000;

/// Remembers when this node applied the record's present generation: promises and time limits run from there.
#[derive(Debug, Default)]
pub(super) struct RecordClock {
    seen: Option<(Generation, BootTime)>,
}

impl RecordClock {
    /// Returns the newest record with the instant at which its generation was first seen.
    pub(super) fn record(&mut self, state: &State, now: BootTime) -> Option<AppliedRecord> {
        let versioned = state.assignment.as_ref()?;
        let generation = versioned.value.generation;
        let applied_at = match self.seen {
            Some((seen, at)) if seen == generation => at,
            _ => now,
        };
        self.seen = Some((generation, applied_at));
        Some(AppliedRecord { assignment: (*versioned.value).clone(), index: versioned.index, applied_at })
    }
}

/// What the leader has to remember between two looks; forgotten with the leadership.
#[derive(Debug, Default)]
pub(super) struct LeaderMemory {
    clock: RecordClock,
    not_streaming_since: BTreeMap<NodeId, BootTime>,
    failed_promotion: BTreeMap<NodeId, (Generation, BootTime)>,
    resigned_seen: Option<(Generation, BootTime)>,
}

impl LeaderMemory {
    /// Returns the leader's view of the cluster.
    pub(super) fn view(&mut self, facts: LeaderFacts<'_>) -> ClusterView {
        let LeaderFacts { now, me, state, pulse, own_report, leadership, has_failed_to_hand_over, caught_up } = facts;
        let timing = Timing::from_options(&state.options);
        let record = self.clock.record(state, now);
        let member_view = |member: &Member| {
            let heard = pulse.peers.get(&member.id);
            let is_me = member.id == me;
            MemberView {
                kind: member.kind,
                priority: member.priority,
                nofailover: member.nofailover,
                is_leaving: state.goals.removing.contains(&member.id),
                report: if is_me { Some(own_report.clone()) } else { heard.map(|peer| peer.report.clone()) },
                passes_both_ways: is_me || heard.is_some_and(|peer| peer.is_fresh(now, &timing)),
            }
        };
        let members: BTreeMap<NodeId, MemberView> =
            state.members.values().map(|member| (member.id, member_view(member))).collect();
        self.remember(now, &timing, record.as_ref(), &members);
        ClusterView {
            now,
            me,
            rules: Rules::default(),
            goals: (*state.goals.value).clone(),
            durability: state.options.durability,
            has_failed_to_hand_over,
            resigned_for: self.resigned_for(now, record.as_ref(), &members),
            role_changes: changes_in_trouble(state),
            role_changes_max: state.options.role_changes_per_hour,
            holder_unheard_for: self.unheard_for(now, me, record.as_ref(), pulse),
            raft_voters: leadership.voters.clone(),
            raft_caught_up: caught_up,
            failed_promotion: self.failed_promotion.iter().map(|(node, (_, until))| (*node, *until)).collect(),
            not_streaming_since: self.not_streaming_since.clone(),
            record,
            members,
            timing,
        }
    }

    /// For how long this leader knows that the record's node has resigned.
    fn resigned_for(
        &mut self,
        now: BootTime,
        record: Option<&AppliedRecord>,
        members: &BTreeMap<NodeId, MemberView>,
    ) -> Duration {
        let Some(a) = record.map(|record| &record.assignment) else { return Duration::ZERO };
        let report = members.get(&a.node).and_then(|member| member.report.as_ref());
        if report.is_none_or(|report| report.resigned < a.generation) {
            return Duration::ZERO;
        }
        let seen = self.resigned_seen.filter(|(generation, _)| *generation == a.generation);
        let (_, at) = *self.resigned_seen.insert(seen.unwrap_or((a.generation, now)));
        now.since(at)
    }

    /// For how long this leader has not heard the active node: from its newest report, or from when the record was applied.
    fn unheard_for(&self, now: BootTime, me: NodeId, record: Option<&AppliedRecord>, pulse: &PulseView) -> Duration {
        let Some(record) = record.filter(|record| record.assignment.node != me) else { return Duration::ZERO };
        let heard = pulse.peers.get(&record.assignment.node).map(|peer| peer.proved_at);
        now.since(heard.unwrap_or_default().max(record.applied_at))
    }

    fn remember(
        &mut self,
        now: BootTime,
        timing: &Timing,
        record: Option<&AppliedRecord>,
        members: &BTreeMap<NodeId, MemberView>,
    ) {
        let Some(record) = record else { return };
        let active = members.get(&record.assignment.node).filter(|member| member.passes_both_ways);
        if let Some(active) = active.and_then(|member| member.report.as_ref()?.active.as_ref()) {
            let streaming: BTreeSet<NodeId> = active.streaming.iter().map(|member| member.node).collect();
            self.not_streaming_since.retain(|node, _| !streaming.contains(node) && members.contains_key(node));
            for node in members.keys().filter(|node| !streaming.contains(node)) {
                self.not_streaming_since.entry(*node).or_insert(now);
            }
        }
        for (node, member) in members {
            let Some(report) = &member.report else { continue };
            if report.resign_reason == Some(ResignReason::PromotionFailed) {
                let known = self.failed_promotion.get(node).is_some_and(|(seen, _)| *seen >= report.resigned);
                if !known {
                    self.failed_promotion.insert(*node, (report.resigned, now + timing.unfit_for));
                }
            }
        }
    }
}

/// Returns how often, in the last hour of the history, the role moved because a node gave it up in trouble.
pub(super) fn changes_in_trouble(state: &State) -> u32 {
    let since = state.clock_ms.saturating_sub(HOUR_MS);
    let newest_first = state.events.iter().rev().take_while(|stored| stored.event.at_ms >= since);
    let changes = newest_first.filter(|stored| stored.event.is(EventKind::Reassigned));
    u32::try_from(changes.count()).unwrap_or(u32::MAX)
}

/// What the leader's view is made of.
pub(super) struct LeaderFacts<'a> {
    pub(super) now: BootTime,
    pub(super) me: NodeId,
    pub(super) state: &'a State,
    pub(super) pulse: &'a PulseView,
    pub(super) own_report: &'a Report,
    pub(super) leadership: &'a Leadership,
    pub(super) has_failed_to_hand_over: bool,
    pub(super) caught_up: BTreeSet<NodeId>,
}
