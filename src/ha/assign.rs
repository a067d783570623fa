//! What the Raft leader does about the record: `assign(&ClusterView) -> Assigned`.
//!
//! Every change of the record is one compare-and-set on the index of its last change, so a choice made on an older record
//! fails. The leader changes one thing at a time, in this order: a renewal or a failover, then `opened`, then commit sets, then
//! voters, then its own seat.

mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::pulse::{ActiveReport, Report};
use super::quorum::{
    Answer, covers_every_commit, leaves_out_commits, majority_of, majority_of_every, may_lack_commits,
};
use super::record::{
    Assignment, AssignmentReason, CommitSet, DataMember, Durability, Goals, MemberKind, ResignReason, WhyRecord,
};
use super::rules::Mutation;
use super::view::{AppliedRecord, ClusterView, MemberView};
use crate::types::{Generation, NodeId, Timeline, WalPosition};

/// One change that the leader makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Replace the record whose last change is at `expected`.
    Record {
        /// The log index that the record was last changed at.
        expected: u64,
        /// The new record.
        assignment: Box<Assignment>,
    },
    /// Make these nodes Raft's voters.
    ChangeRaftVoters(BTreeSet<NodeId>),
    /// Hand Raft's leadership to this node (L27).
    TransferLeadership(NodeId),
    /// Forget a switchover that is over or void.
    ClearSwitchover,
}

/// Why the leader does not assign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignWait {
    /// Too few voters have barred the generation.
    Bars {
        /// The generation that is to be replaced.
        generation: Generation,
        /// Who has barred it, or resigned it.
        barred: BTreeSet<NodeId>,
    },
    /// Too few nodes that may hold commits have stated their position.
    Positions {
        /// How many more answers a commit set needs, in words.
        set: CommitSet,
        /// How many of it have answered.
        answered: usize,
    },
    /// The best candidate cannot be assigned now.
    Candidate {
        /// The node with the most log.
        node: NodeId,
        /// Why not.
        because: String,
    },
    /// The role was given up so often that a person is asked first.
    Person {
        /// How often it moved for that within the hour.
        changes: u32,
    },
    /// A standby has to settle into the commit set.
    CommitSetSettles,
    /// Raft's voters have to change.
    RaftVoters,
}

impl fmt::Display for AssignWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bars { generation, barred } => {
                write!(f, "a majority that has barred generation {generation} (so far: {})", names(barred))
            }
            Self::Positions { set, answered } => {
                let members: Vec<String> = set.members.iter().map(ToString::to_string).collect();
                write!(f, "more of {} to state where their log ends ({answered} have)", members.join(", "))
            }
            Self::Candidate { node, because } => write!(f, "node {node}, which holds the most log: {because}"),
            Self::Person { changes } => write!(
                f,
                "a person: nodes that live have given the active role up {changes} times within an hour, and now once more. Find out why \
                 (`hasup history`), then order who is to be active: `hasup promote NODE`"
            ),
            Self::CommitSetSettles => f.write_str("the new commit set to be in effect"),
            Self::RaftVoters => f.write_str("Raft's voters to change"),
        }
    }
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(|node| format!("node {node}")).collect::<Vec<_>>().join(", ")
}

/// What the leader does, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assigned {
    /// The one change to make, if any.
    pub order: Option<Order>,
    /// Facts, rule and step behind it.
    pub why: WhyRecord,
    /// What it waits for.
    pub waiting_on: Vec<AssignWait>,
}

/// Decides what the Raft leader changes now. Total: every view has an answer, mostly "nothing".
pub fn assign(view: &ClusterView) -> Assigned {
    let Some(record) = &view.record else { return Assigned::default() };
    let leader = Leader { view, record, a: &record.assignment };
    leader.assign()
}

/// Returns whether the role stands still until a person orders who is to be active.
///
/// Nodes that live and give the role up again and again hand their trouble round: after `changes_max` such changes in an hour, the next
/// one is asked for. A dead node is replaced, and an order is carried out, however often. `holder` is what the record's node
/// says, if it lives; `changes` counts the last hour's assignments after a node gave the role up in trouble.
pub fn is_for_a_person(a: &Assignment, holder: Option<&Report>, goals: &Goals, changes: u32, changes_max: u32) -> bool {
    let has_given_up = holder.is_some_and(|report| {
        report.resigned >= a.generation && report.resign_reason.as_ref().is_some_and(ResignReason::is_trouble)
    });
    let is_ordered = goals.switchover.as_ref().is_some_and(|goal| goal.from == a.generation);
    has_given_up && !is_ordered && changes >= changes_max
}

struct Leader<'a> {
    view: &'a ClusterView,
    record: &'a AppliedRecord,
    a: &'a Assignment,
}

impl Leader<'_> {
    fn assign(&self) -> Assigned {
        let mut assigned = Assigned::default();
        let holder = self.living_holder();
        if let Some(goal) = &self.view.goals.switchover
            && (goal.from != self.a.generation && self.a.opened)
        {
            return self.done(Order::ClearSwitchover, "the switchover is over", "L7", "forgets the switchover");
        }
        if let Some(active) = holder {
            if self.is_barred_by_anybody() {
                if active.is_primary {
                    return self.renew();
                }
                // not a primary yet: either it gets its lease from the others, or they bar it too
            } else {
                return self.maintain(active);
            }
        }
        self.replace(&mut assigned);
        if assigned.order.is_none()
            && let Some(left) = self.leave_the_seat()
        {
            assigned = Assigned { waiting_on: std::mem::take(&mut assigned.waiting_on), ..left };
        }
        assigned
    }

    /// Returns the active node's word, if it still holds its role and its pulses pass both ways now.
    fn living_holder(&self) -> Option<ActiveReport> {
        let member = self.view.members.get(&self.a.node)?;
        let report = member.report.as_ref()?;
        let is_alive = member.passes_both_ways && report.resigned < self.a.generation;
        report.active.clone().filter(|_| is_alive)
    }

    fn reports(&self) -> impl Iterator<Item = (NodeId, &MemberView, &Report)> {
        self.view.members.iter().filter_map(|(node, member)| Some((*node, member, member.report.as_ref()?)))
    }

    fn report_of(&self, node: NodeId) -> Option<&Report> {
        self.view.members.get(&node)?.report.as_ref()
    }

    /// Whether a node is to be taken out. The active node is not, whatever was ordered before it became that: it has to hand the role
    /// over first, and nothing else may wait for it (L22). Nor is anybody while the record is not opened: it may need them.
    fn is_leaving(&self, node: NodeId) -> bool {
        self.a.opened && node != self.a.node && self.view.members.get(&node).is_some_and(|member| member.is_leaving)
    }

    fn counts_as_data(&self, node: NodeId) -> bool {
        self.view.members.get(&node).is_some_and(|member| member.kind == MemberKind::Data) && !self.is_leaving(node)
    }

    fn has_barred(&self, node: NodeId) -> bool {
        self.report_of(node).is_some_and(|report| {
            report.barred >= self.a.generation || (node == self.a.node && report.resigned >= self.a.generation)
        })
    }

    fn is_barred_by_anybody(&self) -> bool {
        self.reports().any(|(node, ..)| self.has_barred(node))
    }

    fn done(&self, order: Order, fact: &str, rule: &str, step: &str) -> Assigned {
        let why = WhyRecord { facts: vec![fact.to_owned()], rule: rule.to_owned(), step: step.to_owned() };
        Assigned { order: Some(order), why, waiting_on: Vec::new() }
    }

    fn change(&self, assignment: Assignment) -> Order {
        Order::Record { expected: self.record.index, assignment: Box::new(assignment) }
    }

    /// The same node under the next generation, its primary running on (L14, L22).
    fn renewed(&self, why: AssignmentReason) -> Assignment {
        Assignment { generation: self.a.generation.next(), why, ..self.a.clone() }
    }

    fn renew(&self) -> Assigned {
        let fact = format!(
            "generation {} is barred by some, yet node {} runs its primary and is heard both ways",
            self.a.generation, self.a.node
        );
        let order = self.change(self.renewed(AssignmentReason::Renewed));
        self.done(order, &fact, "L14", &format!("assigns node {} again", self.a.node))
    }

    // ---- the active node is well ----

    fn maintain(&self, active: ActiveReport) -> Assigned {
        let is_changing = !self.a.opened || self.a.commit_sets.len() > 1;
        if is_changing && let Some(assigned) = self.settle(&active) {
            return assigned;
        }
        if self.a.opened && self.a.commit_sets.len() == 1 && self.a.voter_sets.len() > 1 {
            return self.finish_voters(&active);
        }
        if let Some(assigned) = self.change_commit_sets(&active) {
            return assigned;
        }
        if is_changing {
            return Assigned { waiting_on: vec![AssignWait::CommitSetSettles], ..Assigned::default() };
        }
        if let Some(assigned) = self.change_voters() {
            return assigned;
        }
        let voters = self.a.voter_sets.last();
        if let Some(order) = voters.and_then(|voters| self.hand_over_first(voters)) {
            return self.done(order, "the leader votes no longer", "L22", "hands Raft's leadership over");
        }
        self.leave_the_seat().unwrap_or_default()
    }

    /// Ends a change of commit sets, and opens the record with it, once k of the newest set hold all log up to then (L16, L18).
    fn settle(&self, active: &ActiveReport) -> Option<Assigned> {
        let newest = self.a.commit_sets.last()?;
        if active.record != self.record.index {
            // said about an earlier record, whose newest set may have been the same
            return None;
        }
        let is_settled = active.settled.as_ref() == Some(newest);
        if self.a.opened {
            if !is_settled {
                return None;
            }
            let fact = format!("{} is in effect and holds the log up to then", words(newest));
            let order = self.change(Assignment { commit_sets: vec![newest.clone()], ..self.a.clone() });
            return Some(self.done(order, &fact, "L18", "ends the change of whom commits wait for"));
        }
        // a set of nobody is in effect only after it is opened; until then no commit is acknowledged at all (L15)
        let has_one_set = self.a.commit_sets.len() == 1 || newest.k == 0 || is_settled;
        if !(active.may_open && active.generation >= self.a.promoted && has_one_set) {
            return None;
        }
        let opened =
            Assignment { opened: true, since_opened: Vec::new(), commit_sets: vec![newest.clone()], ..self.a.clone() };
        let fact = format!("node {} is primary and enough standbys hold the log up to its promotion", self.a.node);
        Some(self.done(self.change(opened), &fact, "L16", "ends the change of the active node"))
    }

    /// Begins to change whom commits wait for (L18). While a change, or the record's opening, is under way, a set is added beside
    /// the others only if it can be reached now and the newest one cannot: members of that were rebuilt, or are lost.
    fn change_commit_sets(&self, active: &ActiveReport) -> Option<Assigned> {
        let newest = self.a.commit_sets.last().cloned().unwrap_or_else(CommitSet::none);
        let wanted = self.wanted_commit_set(active, &newest);
        if wanted == newest {
            return None;
        }
        let is_reached = |set: &CommitSet| {
            set.members.iter().filter(|member| active.streaming.contains(member)).count() >= set.needed()
        };
        let is_settled = self.a.opened && self.a.commit_sets.len() == 1;
        if !is_settled && (!active.is_primary || is_reached(&newest) || !is_reached(&wanted)) {
            return None;
        }
        let fact = format!("commits wait for {}; wanted is {}", words(&newest), words(&wanted));
        let mut commit_sets = self.a.commit_sets.clone();
        if self.view.rules.broken(Mutation::DropOldCommitSet) {
            commit_sets.clear();
        }
        commit_sets.push(wanted);
        let order = self.change(Assignment { commit_sets, ..self.a.clone() });
        Some(self.done(order, &fact, "L18", "begins to change whom commits wait for"))
    }

    /// The standbys that commits should wait for, once each of them streams and has caught up.
    fn wanted_commit_set(&self, active: &ActiveReport, current: &CommitSet) -> CommitSet {
        let data_nodes = self.view.members.keys().filter(|node| self.counts_as_data(**node)).count();
        let is_member = |node: NodeId| node != self.a.node && self.counts_as_data(node);
        let answers_for_itself = |member: &&DataMember| {
            let data = self.report_of(member.node).and_then(|report| report.data);
            data.is_some_and(|data| data.is_intact && data.incarnation == member.incarnation)
        };
        let streaming: BTreeSet<DataMember> = active
            .streaming
            .iter()
            .filter(|member| is_member(member.node))
            .filter(answers_for_itself)
            .copied()
            .collect();
        let may_shrink = data_nodes <= 2 || self.view.durability != Durability::TwoNodes;
        let stays = |member: &&DataMember| {
            // its own node says that this life of its data is over: it can neither acknowledge nor answer any more
            let data = self.report_of(member.node).and_then(|report| report.data);
            let is_replaced = data.is_some_and(|data| data.incarnation > member.incarnation);
            let is_lost = may_shrink
                && !streaming.contains(member)
                && self
                    .view
                    .not_streaming_since
                    .get(&member.node)
                    .is_some_and(|since| self.view.now.since(*since) > self.view.timing.degrade_after);
            is_member(member.node) && !is_replaced && !is_lost
        };
        let mut members: BTreeSet<DataMember> = current.members.iter().filter(stays).copied().collect();
        members.extend(streaming);
        if self.view.durability == Durability::OneNode {
            return CommitSet { members, k: 0 };
        }
        if members.is_empty() && data_nodes > 1 && !may_shrink && current.k > 0 {
            // waiting for somebody who is gone is still better than waiting for nobody unasked
            return current.clone();
        }
        majority_commit_set(members)
    }

    // ---- the active node is gone ----

    /// L11: both the voters and the data must be accounted for; then L12 chooses.
    fn replace(&self, assigned: &mut Assigned) {
        let generation = self.a.generation;
        let spared = self.view.rules.broken(Mutation::ResignationWithoutBars)
            && self.report_of(self.a.node).is_some_and(|report| report.resigned >= generation);
        if !spared && !majority_of_every(&self.a.voter_sets, |voter| self.has_barred(voter)) {
            if self.is_barred_by_anybody() {
                let barred = self.reports().map(|(node, ..)| node).filter(|node| self.has_barred(*node)).collect();
                assigned.waiting_on.push(AssignWait::Bars { generation, barred });
            }
            return;
        }
        let answers = self.answers();
        let spares_positions = self.view.rules.broken(Mutation::VotesWithoutData)
            || (self.view.rules.broken(Mutation::ResignationWithoutPositions)
                && self.report_of(self.a.node).is_some_and(|report| report.resigned >= generation));
        if let Err(uncovered) = covers_every_commit(self.a, &answers)
            && !spares_positions
        {
            assigned.waiting_on.push(AssignWait::Positions { set: uncovered.set, answered: uncovered.answered });
            return;
        }
        if self.needs_a_person() {
            assigned.waiting_on.push(AssignWait::Person { changes: self.view.role_changes });
            return;
        }
        if let Some(node) = self.is_expected_to_state(&answers) {
            assigned
                .waiting_on
                .push(AssignWait::Candidate { node, because: "it has yet to state its position".to_owned() });
            return;
        }
        match self.choose(&answers) {
            Ok(node) => *assigned = self.hand_to(node, &answers),
            Err(wait) => assigned.waiting_on.extend(wait),
        }
    }

    /// After an orderly resignation, which accounts for all data at once, a living standby is waited for: its word is milliseconds
    /// behind, and without it the role would go back to where it was given up.
    fn is_expected_to_state(&self, answers: &BTreeMap<NodeId, Answer>) -> Option<NodeId> {
        let report = self.report_of(self.a.node).filter(|report| report.resigned >= self.a.generation)?;
        let is_orderly = matches!(report.resign_reason, Some(ResignReason::Switchover | ResignReason::Stopping));
        if !is_orderly || self.view.resigned_for > self.view.timing.hand_over_limit {
            return None;
        }
        let wished = self.view.goals.switchover.as_ref().and_then(|goal| goal.to);
        let may_follow = |node: NodeId, member: &MemberView, report: &Report| {
            let is_intact = report.data.is_some_and(|data| data.is_intact);
            node != self.a.node && member.passes_both_ways && is_intact && wished.is_none_or(|wished| wished == node)
        };
        let mut candidates =
            self.reports().filter(|(node, member, report)| may_follow(*node, member, report)).peekable();
        let first = candidates.peek().map(|(node, ..)| *node);
        // one is enough where nobody is named
        let has_stated = candidates.any(|(node, ..)| answers.contains_key(&node));
        first.filter(|_| !has_stated)
    }

    fn needs_a_person(&self) -> bool {
        // a few pulses may be lost; who is silent for longer is dead
        let is_alive = self.view.holder_unheard_for <= self.view.timing.promise();
        is_for_a_person(
            self.a,
            self.report_of(self.a.node).filter(|_| is_alive),
            &self.view.goals,
            self.view.role_changes,
            self.view.role_changes_max,
        )
    }

    /// What those said who can no longer help the generation that is to be replaced.
    fn answers(&self) -> BTreeMap<NodeId, Answer> {
        let answer = |(node, _, report): (NodeId, &MemberView, &Report)| {
            let data = report.data.filter(|data| data.is_intact)?;
            let stated = data.stated.filter(|stated| stated.under >= self.a.generation)?;
            let answer = Answer { incarnation: data.incarnation, position: stated.position, resigned: report.resigned };
            Some((node, answer))
        };
        self.reports().filter_map(answer).collect()
    }

    /// L12: the most log wins; fitness, an ordered switchover and priority decide among equals only. Where none of those with the most
    /// can be assigned, one with less may be, if no acknowledged commit can be missing there.
    fn choose(&self, answers: &BTreeMap<NodeId, Answer>) -> Result<NodeId, Option<AssignWait>> {
        let by_lsn_first = self.view.rules.broken(Mutation::RankLsnBeforeTimeline);
        let rank = |position: WalPosition| {
            let first = if by_lsn_first { 0 } else { position.timeline.0 };
            (first, position.lsn)
        };
        let best_of = |of: &dyn Fn(NodeId, &Answer) -> bool| {
            let counted = || answers.iter().filter(|(node, answer)| of(**node, answer));
            let most = counted().map(|(_, answer)| rank(answer.position)).max();
            counted()
                .filter(|(_, answer)| Some(rank(answer.position)) == most)
                .map(|(node, _)| *node)
                .collect::<Vec<NodeId>>()
        };
        let best = best_of(&|_, _| true);
        if best.is_empty() {
            return Err(None);
        }
        let is_able = |node: NodeId| self.unable(node).is_none();
        let mut able: Vec<NodeId> = best.iter().copied().filter(|node| is_able(*node)).collect();
        if able.is_empty() && best.iter().all(|node| self.is_lastingly_unable(*node)) {
            // the furthest of the able ones, where nothing that counts is missing there
            able = best_of(&|node, answer| is_able(node) && !may_lack_commits(self.a, answers, answer.position));
        }
        let wished = self.view.goals.switchover.as_ref().filter(|goal| goal.from == self.a.generation);
        let has_failed =
            |node: NodeId| self.view.failed_promotion.get(&node).is_some_and(|until| *until > self.view.now);
        let preference = |node: &NodeId| {
            let member = self.view.members.get(node);
            let is_wished = wished.is_some_and(|goal| goal.to.map_or(*node != self.a.node, |to| to == *node));
            let resigned_just_now = *node == self.a.node;
            (
                !has_failed(*node),
                !member.is_some_and(|member| member.is_leaving),
                is_wished,
                !resigned_just_now,
                // never at the price of data, so that full disks everywhere keep nobody from being chosen
                member.and_then(|member| member.report.as_ref()).is_some_and(|report| report.has_room()),
                member.map_or(0, |member| member.priority),
                std::cmp::Reverse(*node),
            )
        };
        able.into_iter().max_by_key(preference).ok_or_else(|| {
            let node = best.first().copied()?;
            Some(AssignWait::Candidate { node, because: self.unable(node)? })
        })
    }

    /// Why a node may not be assigned now, if so.
    fn unable(&self, node: NodeId) -> Option<String> {
        let member = self.view.members.get(&node)?;
        let is_fit = member.report.as_ref().is_some_and(|report| report.is_fit);
        if !member.passes_both_ways {
            Some("its pulses do not pass both ways".to_owned())
        } else if member.nofailover {
            Some("it is marked nofailover (where no other node can fetch its log, unmark it)".to_owned())
        } else if !is_fit {
            Some("it says that it is not fit; its own status tells why".to_owned())
        } else {
            None
        }
    }

    /// Whether a node cannot be assigned for a reason that does not pass by itself in a moment.
    fn is_lastingly_unable(&self, node: NodeId) -> bool {
        let Some(member) = self.view.members.get(&node) else { return true };
        let is_unfit = member.passes_both_ways && member.report.as_ref().is_some_and(|report| !report.is_fit);
        let timing = &self.view.timing;
        let is_late = self.view.holder_unheard_for > timing.promise() + timing.hand_over_limit;
        self.unable(node).is_some() && (member.nofailover || is_unfit || is_late)
    }

    fn hand_to(&self, node: NodeId, answers: &BTreeMap<NodeId, Answer>) -> Assigned {
        let Some(answer) = answers.get(&node) else { return Assigned::default() };
        let generation = self.a.generation.next();
        let mut since_opened = if self.a.opened { Vec::new() } else { self.a.since_opened.clone() };
        since_opened.push(self.a.to_prior());
        let (why, fact) = self.why_replaced();
        let assignment = Assignment {
            generation,
            node,
            incarnation: answer.incarnation,
            promoted: generation,
            timeline: self.next_timeline(),
            start: answer.position,
            why,
            voter_sets: self.a.voter_sets.clone(),
            commit_sets: vec![self.planned_commit_set(node, answers)],
            opened: false,
            since_opened,
        };
        let stated = |(node, answer): (&NodeId, &Answer)| format!("node {node} stated {}", answer.position);
        let mut facts = vec![fact];
        facts.extend(answers.iter().map(stated));
        let rank = |answer: &Answer| (answer.position.timeline, answer.position.lsn);
        if let Some((ahead, _)) =
            answers.iter().max_by_key(|(_, answer)| rank(answer)).filter(|(_, best)| rank(best) > rank(answer))
        {
            let because = self.unable(*ahead).map(|because| format!(": {because}")).unwrap_or_default();
            facts.push(format!("node {ahead} holds more log, none of it acknowledged, and was not chosen{because}"));
        }
        if leaves_out_commits(self.a, answers) {
            facts.push(format!(
                "commits waited for nobody (durability=one_node): what node {} alone acknowledged may be lost; its log is kept aside",
                self.a.node
            ));
        }
        let step = format!("assigns node {node} under generation {generation}, timeline {}", assignment.timeline);
        let why = WhyRecord { facts, rule: "L11, L12".to_owned(), step };
        Assigned { order: Some(self.change(assignment)), why, waiting_on: Vec::new() }
    }

    fn why_replaced(&self) -> (AssignmentReason, String) {
        let node = self.a.node;
        let resigned = self.report_of(node).filter(|report| report.resigned >= self.a.generation);
        match resigned.map(|report| report.resign_reason.clone()) {
            Some(because) => {
                let because = because.unwrap_or(ResignReason::Superseded);
                let fact = format!("node {node} resigned generation {}: {because}", self.a.generation);
                (AssignmentReason::Resigned { node, because }, fact)
            }
            None => {
                let fact =
                    format!("a majority no longer heard node {node} and barred generation {}", self.a.generation);
                (AssignmentReason::Silent { node }, fact)
            }
        }
    }

    /// A number above every earlier record's and every one reported, so that each timeline has one maker (L13).
    fn next_timeline(&self) -> Timeline {
        let reported = self.reports().filter_map(|(_, _, report)| report.data).flat_map(|data| {
            [data.position, data.stated.map(|stated| stated.position)].into_iter().flatten().map(|at| at.timeline)
        });
        if self.view.rules.broken(Mutation::TimelinesCollide) {
            return reported.max().unwrap_or_default().next();
        }
        reported.max().unwrap_or_default().max(self.a.timeline).next()
    }

    /// Whom the new primary's commits wait for, planned from who there is (L16).
    fn planned_commit_set(&self, chosen: NodeId, answers: &BTreeMap<NodeId, Answer>) -> CommitSet {
        let data_nodes: Vec<NodeId> = self
            .view
            .members
            .iter()
            .filter(|(_, member)| member.kind == MemberKind::Data)
            .map(|(node, _)| *node)
            .collect();
        if self.view.durability == Durability::OneNode {
            // whoever follows is named once it does: log that lags behind by days is nobody's
            return CommitSet::none();
        }
        let last_known = |node: NodeId| {
            let reported = self.report_of(node).and_then(|report| report.data).map(|data| data.incarnation);
            let recorded = || {
                let members = self.a.commit_sets.iter().flat_map(|set| &set.members);
                members.filter(|member| member.node == node).map(|member| member.incarnation).max()
            };
            let own = || (node == self.a.node).then_some(self.a.incarnation);
            reported.or_else(own).or_else(recorded)
        };
        // members that have no data yet count for nothing: commits must not wait for a copy that waits for commits
        let holders = data_nodes.iter().filter(|node| **node == chosen || last_known(**node).is_some()).count();
        let counts = |node: &NodeId| holders > 2 || answers.contains_key(node);
        let members: BTreeSet<DataMember> = data_nodes
            .iter()
            .filter(|node| **node != chosen)
            .filter(|node| counts(node))
            .filter_map(|node| Some(DataMember { node: *node, incarnation: last_known(*node)? }))
            .collect();
        majority_commit_set(members)
    }
}

/// The set in which the primary and k of `members` are a majority of all who hold the data.
fn majority_commit_set(members: BTreeSet<DataMember>) -> CommitSet {
    let k = majority_of(1 + members.len()) - 1;
    if k == 0 { CommitSet::none() } else { CommitSet { members, k: u32::try_from(k).unwrap_or(u32::MAX) } }
}

fn words(set: &CommitSet) -> String {
    let members: Vec<String> = set.members.iter().map(ToString::to_string).collect();
    if set.may_lose() {
        return format!("nobody, while {} follow", members.join(", "));
    }
    if set.k == 0 {
        return "nobody".to_owned();
    }
    format!("{} of {}", set.k, members.join(", "))
}
