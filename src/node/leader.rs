//! What a node does as the Raft leader: look at the cluster, assign, and keep Raft's members in step with the store's.
//!
//! Each change of the record is a compare-and-set, committed under this leadership: a leader that is none any more, or that
//! chose on an older record, changes nothing. So no read index goes ahead of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::names::{name_of, named};
use super::views::{LeaderFacts, LeaderMemory};
use crate::ha::assign::{AssignWait, Assigned, Order, assign};
use crate::ha::record::{Assignment, AssignmentReason, Event, EventKind, Goals, ResignReason, WhyRecord};
use crate::kv::{Command, Proposal, Reply};
use crate::raft::Leadership;
use crate::sys::clock::{boot_now, wall_now};
use crate::types::{Generation, NodeId};

/// How long one change may take before the leader looks again; what came of it is then unknown, and the next look tells.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);
/// How long a change among Raft's own members may hold up the next look: it goes on without being waited for, and a dead active node
/// must not wait for it.
const MEMBERS_LIMIT: Duration = Duration::from_secs(1);
/// A leader looks at least so often, whatever happens.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long leadership is not handed over again after a try: a second transfer on top of the first helps nobody.
const TRANSFER_PAUSE: Duration = Duration::from_secs(3);

/// Leads whenever this node is the leader. Ends with the node.
pub(super) async fn lead(shared: Arc<Shared>) {
    let mut rounds = shared.rounds.subscribe();
    let mut states = shared.consensus.state();
    let mut leaderships = shared.consensus.leadership();
    let mut memory = LeaderMemory::default();
    let mut transfer_after = boot_now();
    let mut asked_under = None;
    let mut has_failed_to_hand_over = false;
    loop {
        tokio::select! {
            changed = rounds.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            changed = leaderships.changed() => if changed.is_err() { return },
            () = shared.heard.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        rounds.mark_unchanged();
        let leadership = leaderships.borrow_and_update().clone();
        if !leadership.is_leader {
            memory = LeaderMemory::default();
            has_failed_to_hand_over = false;
            shared.assigned.send_replace(Arc::new(Assigned::default()));
            continue;
        }
        let applied = states.borrow_and_update().clone();
        let pulse = shared.pulses.view();
        let own_report = shared.plan.borrow().stance.report.clone();
        let view = memory.view(LeaderFacts {
            now: boot_now(),
            me: shared.me,
            state: &applied.state,
            pulse: &pulse,
            own_report: &own_report,
            leadership: &leadership,
            has_failed_to_hand_over,
            caught_up: applied
                .state
                .members
                .keys()
                .copied()
                .filter(|node| shared.consensus.is_caught_up(*node))
                .collect(),
        });
        let mut assigned = assign(&view);
        if let Some(Order::TransferLeadership(_)) = assigned.order {
            if view.now < transfer_after {
                assigned.order = None;
            } else {
                transfer_after = view.now + TRANSFER_PAUSE;
            }
        }
        let generation = view.record.as_ref().map_or(Generation(0), |record| record.assignment.generation);
        let asks = assigned.waiting_on.iter().find(|wait| matches!(wait, AssignWait::Person { .. }));
        if let Some(wait) = asks.filter(|_| asked_under != Some(generation)) {
            asked_under = Some(generation);
            shared.tell(shared.event_of_question(generation, wait), true);
        }
        let order = assigned.order.clone();
        let why = assigned.why.clone();
        shared.assigned.send_if_modified(|known| {
            let is_new = **known != assigned;
            *known = Arc::new(assigned);
            is_new
        });
        match order {
            Some(order) => {
                let is_transfer = matches!(order, Order::TransferLeadership(_));
                let is_done = carry_out(&shared, order, why, generation).await;
                has_failed_to_hand_over |= is_transfer && !is_done;
            }
            None => keep_raft_members(&shared, &leadership, &applied.state.members.keys().copied().collect()).await,
        }
    }
}

/// Returns whether it is known to be done.
async fn carry_out(shared: &Shared, order: Order, why: WhyRecord, generation: Generation) -> bool {
    // as they are called now: a member that is removed later is still told by its name
    let state = shared.state();
    let why = WhyRecord {
        facts: why.facts.iter().map(|fact| named(fact, &state)).collect(),
        step: named(&why.step, &state),
        rule: why.rule,
    };
    let step = why.step.clone();
    let because = why.facts.join("; ");
    let is_odd = matches!(&order, Order::Record { assignment, .. } if assignment.generation != generation && !assignment.why.is_in_order());
    let done = match order {
        Order::Record { expected, assignment } => {
            let kind = kind_of(&assignment, generation);
            let event = shared.event(kind, assignment.generation, why);
            let command = Command::SetAssignment { expected, assignment: *assignment };
            propose(shared, command, Some(event)).await
        }
        Order::ClearSwitchover => {
            let goals = shared.state().goals.clone();
            let rest = Goals { switchover: None, ..(*goals.value).clone() };
            let command = Command::SetGoals { expected: Some(goals.index), goals: rest };
            propose(shared, command, None).await
        }
        Order::ChangeRaftVoters(voters) => {
            shared.consensus.change_voters(&voters, MEMBERS_LIMIT).await.map_err(|error| error.to_string())
        }
        Order::TransferLeadership(node) => {
            shared.consensus.transfer_leader(node, MEMBERS_LIMIT).await.map_err(|error| error.to_string())
        }
    };
    match &done {
        Ok(()) if is_odd => tracing::warn!(because, "as Raft's leader, this node {step}"),
        Ok(()) => tracing::info!(because, "as Raft's leader, this node {step}"),
        // the next look decides afresh; a lost leadership is no error
        Err(error) => {
            let error = named(error, &state);
            tracing::info!(error, "not done, and decided afresh: as Raft's leader, this node {step}");
        }
    }
    done.is_ok()
}

/// Names the event by what changes: another active node, by itself or by order, the same one anew, or only the record.
fn kind_of(assignment: &Assignment, generation: Generation) -> EventKind {
    match &assignment.why {
        _ if assignment.generation == generation => EventKind::RecordChanged,
        AssignmentReason::Renewed | AssignmentReason::VotersChanged => EventKind::Renewed,
        AssignmentReason::Resigned { because: ResignReason::Switchover | ResignReason::Stopping, .. } => {
            EventKind::SwitchedOver
        }
        AssignmentReason::Resigned { because, .. } if because.is_trouble() => EventKind::Reassigned,
        AssignmentReason::Bootstrap | AssignmentReason::Silent { .. } | AssignmentReason::Resigned { .. } => {
            EventKind::Assigned
        }
    }
}

async fn propose(shared: &Shared, command: Command, event: Option<Event>) -> Result<(), String> {
    let at_ms = u64::try_from(wall_now().as_millis()).unwrap_or(u64::MAX);
    let mut proposal = Proposal::new(super::request_id(), at_ms, command);
    proposal.events.extend(event);
    match shared.consensus.propose(proposal, CHANGE_LIMIT).await {
        Ok(Reply::Conflict { current }) => Err(format!("the record has changed at index {current}")),
        Ok(Reply::Refused { reason }) => Err(reason.to_string()),
        Ok(Reply::Nothing | Reply::Applied { .. } | Reply::MemberAdded { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Every member hears Raft's log, at first as a learner; who is no member any more does not. A leader that is removed itself hands
/// the leadership over by `assign`, and the next leader takes it out.
async fn keep_raft_members(shared: &Shared, leadership: &Leadership, members: &BTreeSet<NodeId>) {
    let voters: BTreeSet<NodeId> = leadership.voters.iter().flatten().copied().collect();
    let known: BTreeSet<NodeId> = voters.union(&leadership.learners).copied().collect();
    if let Some(node) = members.difference(&known).next() {
        match shared.consensus.add_learner(*node, MEMBERS_LIMIT).await {
            Ok(()) => tracing::info!(node = name_of(*node, &shared.state()), "Raft replicates to a new member"),
            Err(error) => {
                tracing::info!(node = name_of(*node, &shared.state()), %error, "a member is not added to Raft yet")
            }
        }
    } else if let Some(node) = leadership.learners.difference(members).find(|node| **node != shared.me) {
        match shared.consensus.remove(*node, MEMBERS_LIMIT).await {
            Ok(()) => {
                tracing::info!(node = name_of(*node, &shared.state()), "Raft no longer replicates to a removed member")
            }
            Err(error) => {
                tracing::info!(node = name_of(*node, &shared.state()), %error, "a removed member is still in Raft")
            }
        }
    }
}
