//! Who votes, and who leads: the leader's last two changes (L22, L23, L27).

use std::collections::BTreeSet;

use super::{AssignWait, Assigned, Leader, Order, names};
use crate::ha::pulse::{ActiveReport, Report};
use crate::ha::record::{Assignment, AssignmentReason, MemberKind};
use crate::ha::rules::Mutation;
use crate::ha::view::MemberView;
use crate::types::NodeId;

impl Leader<'_> {
    /// The voters there should be: an odd number, those that vote already before others (L23).
    fn wanted_voters(&self, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let set = self.a.commit_sets.last();
        let is_ready = |node: NodeId, member: &MemberView| {
            let is_counted = set.is_some_and(|set| set.members.iter().any(|data| data.node == node));
            let holds_data = member.kind == MemberKind::Witness || node == self.a.node || is_counted;
            let is_here = member.passes_both_ways && !self.is_leaving(node);
            self.view.raft_caught_up.contains(&node) && holds_data && is_here
        };
        let stays = |node: &NodeId| self.view.members.contains_key(node) && !self.is_leaving(*node);
        let mut wanted: Vec<NodeId> = current.iter().copied().filter(stays).collect();
        let joiners =
            self.view.members.iter().filter(|(node, member)| !current.contains(node) && is_ready(**node, member));
        wanted.extend(joiners.map(|(node, _)| *node));
        // never removed, and so never the one that an even number leaves out; a spare that became active comes before other spares
        wanted.sort_by_key(|node| (*node != self.a.node, !current.contains(node)));
        let odd = if wanted.len().is_multiple_of(2) { wanted.len().saturating_sub(1) } else { wanted.len() };
        wanted.truncate(odd.max(1));
        wanted.into_iter().collect()
    }

    pub(super) fn change_voters(&self) -> Option<Assigned> {
        let current = self.a.voter_sets.last()?;
        let wanted = self.wanted_voters(current);
        let single = self.view.rules.broken(Mutation::SingleVoterSet);
        if single && self.view.raft_voters != [current.clone()] {
            let order = Order::ChangeRaftVoters(current.clone());
            return Some(self.done(
                order,
                "the record names other voters than Raft has",
                "L22",
                "changes Raft's voters",
            ));
        }
        if wanted == *current || (current.contains(&self.a.node) && !wanted.contains(&self.a.node)) {
            return None;
        }
        let voter_sets = if single { vec![wanted.clone()] } else { vec![current.clone(), wanted.clone()] };
        let order = self.change(Assignment { voter_sets, ..self.renewed(AssignmentReason::VotersChanged) });
        let fact = format!("voters are {}; wanted are {}", names(current), names(&wanted));
        Some(self.done(order, &fact, "L22", "begins to change the voters"))
    }

    pub(super) fn finish_voters(&self, active: &ActiveReport) -> Assigned {
        let Some(wanted) = self.a.voter_sets.last() else { return Assigned::default() };
        if active.leased < self.a.generation || active.generation < self.a.generation {
            return Assigned { waiting_on: vec![AssignWait::RaftVoters], ..Assigned::default() };
        }
        if self.view.raft_voters != [wanted.clone()] {
            if !self.view.has_failed_to_hand_over
                && let Some(order) = self.hand_over_first(wanted)
            {
                return self.done(order, "the leader is to vote no longer", "L22", "hands Raft's leadership over");
            }
            let fact = format!("node {} holds its lease by the old and the new voters", self.a.node);
            return self.done(Order::ChangeRaftVoters(wanted.clone()), &fact, "L22", "changes Raft's voters");
        }
        let voter_sets = vec![wanted.clone()];
        let order = self.change(Assignment { voter_sets, ..self.renewed(AssignmentReason::VotersChanged) });
        self.done(order, &format!("Raft's voters are {}", names(wanted)), "L22", "ends the change of the voters")
    }

    /// Raft lets a leader lead on that votes no longer, and one that is removed cannot take itself out of the group: it hands the
    /// leadership to a voter that stays, a standby before the active node (L22, L27). Where nobody who votes already can take it,
    /// or did when it was tried, Raft changes the voters all the same, and the leadership is handed over after.
    pub(super) fn hand_over_first(&self, voters: &BTreeSet<NodeId>) -> Option<Order> {
        if voters.contains(&self.view.me) {
            return None;
        }
        let is_able = |node: NodeId, member: &MemberView| {
            let votes = voters.contains(&node) && self.view.raft_voters.iter().all(|set| set.contains(&node));
            votes && member.passes_both_ways && self.view.raft_caught_up.contains(&node)
        };
        let able = self.view.members.iter().filter(|(node, member)| is_able(**node, member)).map(|(node, _)| *node);
        able.min_by_key(|node| *node == self.a.node).map(Order::TransferLeadership)
    }

    /// Leadership belongs with a standby that hears the active node, so that one death takes one of the two (L27).
    pub(super) fn leave_the_seat(&self) -> Option<Assigned> {
        let voters = self.a.voter_sets.last()?;
        let hears_holder = |report: &Report| report.hears.contains(&self.a.node);
        // where the active node has died, all fall silent about it within a promise of each other, and an election would only be
        // in the way of its replacement
        let timing = &self.view.timing;
        let alone_is_deaf = self.view.holder_unheard_for > timing.promise() + timing.lease / 4;
        let fact = match self.view.me == self.a.node {
            true => "the leader's machine is the active node's",
            false if alone_is_deaf => "another voter hears the active node better",
            false => return None,
        };
        let is_better = |node: NodeId, member: &MemberView, report: &Report| {
            node != self.view.me
                && node != self.a.node
                && voters.contains(&node)
                && member.passes_both_ways
                && self.view.raft_caught_up.contains(&node)
                && hears_holder(report)
                && report.suspects < self.a.generation
        };
        self.reports()
            .find(|(node, member, report)| is_better(*node, member, report))
            .map(|(node, ..)| self.done(Order::TransferLeadership(node), fact, "L27", "hands Raft's leadership over"))
    }
}
