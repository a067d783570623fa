//! What every node does about the record: `decide(&NodeView) -> Plan`.
//!
//! A table of contents: a node either holds the role that the newest record names (`holder`) or helps whoever does
//! (`helper`). Nothing is remembered between two calls; each call compares what is with what should be.

mod fetch;
mod helper;
mod holder;

use std::collections::BTreeSet;

use super::durable::DataState;
use super::plan::{Plan, Step, WaitingOn};
use super::pulse::{ActiveReport, DataReport, Report, Stance, StatedPosition};
use super::record::{MemberKind, ResignReason};
use super::rules::Mutation;
use super::state::NodeState;
use super::view::{Job, NodeView, Place};
use crate::types::{BootTime, Generation, NodeId};

/// Decides what this node does now. Total: every view has a plan.
pub fn decide(view: &NodeView) -> Plan {
    let mut draft = Draft::new(view);
    if let Some(newer) = view.newer_cluster {
        stand_aside(view, WaitingOn::LeftBehind { newer }, &mut draft);
        return draft.finish();
    }
    if view.place == Place::Taken {
        stand_aside(view, WaitingOn::Copied, &mut draft);
        let is_open = view.postgres.follows.is_some() || view.postgres.has_receiver;
        if draft.steps.is_empty() && is_open {
            // it streams under the name of the other: what it confirms would count for what that one holds
            draft.step(Step::CutReceiver { generation: view.durable.acknowledged });
        }
        return draft.finish();
    }
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
                holder::Holder { view, record, a: &record.assignment }.decide(&mut draft);
            } else {
                helper::Helper { view, a: &record.assignment }.decide(&mut draft);
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

    /// Adds a step, unless work of its kind has just failed and is to wait; returns whether it was added.
    fn step(&mut self, step: Step) -> bool {
        if let Some(job @ Job::Failed { work, .. }) = &self.view.job
            && step.work().as_ref() == Some(&**work)
        {
            wait_for_job(job, self);
            return false;
        }
        self.steps.push(step);
        true
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
            grants: self.grants.map_or(Generation(0), |(_, generation)| generation),
            troubles: view.troubles.clone(),
            is_fit: answers && is_able(view),
        };
        let stance = Stance {
            asks: self.asks,
            asks_until: view.now + view.timing.loop_stall_limit,
            grants: self.grants,
            grants_until: view.now + view.timing.loop_stall_limit,
            grants_span: durable.lease_span.min(view.timing.lease),
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

/// Whether nothing of this machine keeps the node from becoming active.
fn is_able(view: &NodeView) -> bool {
    view.unfit.is_none() && !view.is_stopping && view.guard.is_present
}

/// The cluster goes on without this node, in a later life (L26) or with another machine in its place: it asks for nothing, grants
/// nothing, ends its role and waits for a person.
fn stand_aside(view: &NodeView, why: WaitingOn, draft: &mut Draft<'_>) {
    draft.state = NodeState::Failed;
    draft.wait(why);
    let may_be_primary = view.postgres.in_recovery == Some(false) && view.guard.has_processes;
    if let Some(armed) = view.guard.armed {
        end_former_role(view, armed, armed, draft);
        draft.state = NodeState::Failed;
    } else if may_be_primary {
        draft.step(Step::Fence { generation: view.durable.acknowledged });
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

fn wait_for_job(job: &Job, draft: &mut Draft<'_>) {
    let what = match job {
        Job::Starting => "PostgreSQL to start".to_owned(),
        Job::StoppingCleanly => "PostgreSQL to stop".to_owned(),
        Job::Rebuilding => "the database to be rewound or copied anew".to_owned(),
        Job::Rewinding => "the database to be rewound to the active node's history".to_owned(),
        Job::Copying { from } => format!("the database to be copied from node {from}"),
        Job::CheckingLineage => "the active node's history".to_owned(),
        Job::Promoting => "PostgreSQL to be promoted".to_owned(),
        Job::SettingNames => "the new commit set to be in effect".to_owned(),
        Job::ProbingWrite => "a first write through the standbys".to_owned(),
        Job::Checkpointing => "a checkpoint ahead of the switchover".to_owned(),
        Job::Failed { error, retry_at, .. } => {
            draft.look_at(*retry_at);
            format!("the next try, after: {error}")
        }
    };
    draft.wait(WaitingOn::Job(what));
}
