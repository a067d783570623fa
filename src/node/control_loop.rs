//! Observe, decide, act, publish: again and again, woken by events and paced by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use super::act::chain;
use super::names::{name_of, named};
use super::publish;
use super::status::Status;
use super::views::RecordClock;
use crate::ha::decide::decide;
use crate::ha::plan::{Plan, Step, WaitingOn};
use crate::ha::pulse::{Report, Stance};
use crate::ha::record::Member;
use crate::ha::rules::Rules;
use crate::ha::state::NodeState;
use crate::ha::timing::Timing;
use crate::ha::view::NodeView;
use crate::kv::State;
use crate::peer::PeerAddress;
use crate::pulse::PulsePeer;
use crate::sys::clock::boot_now;
use crate::types::{BootTime, NodeName};

/// A round after a failed step is not begun sooner: the same failure again and again would fill log and processor.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);
/// PostgreSQL is looked at every few milliseconds for so long after the newest change of what is waited for: a crash recovery, a
/// copy or the other nodes may take hours, and each look at one that lets nobody in costs it a process.
const HOT_FOR: Duration = Duration::from_secs(10);
/// How long a node that stops waits for its successor.
const LINGER: Duration = Duration::from_secs(3);
/// Where the log ends is not known for some milliseconds after each change of whom PostgreSQL follows: only what lasts is worth a line.
const READING_TOLD_AFTER: Duration = Duration::from_millis(500);
/// How long a daemon that has only just begun, and so cannot have heard anybody, waits before it says that it hears no majority.
const HEARING_TOLD_AFTER: Duration = Duration::from_secs(1);

/// Returns the plan of a node that has not looked at anything.
pub(super) fn first_plan() -> Plan {
    Plan {
        state: NodeState::Empty,
        stance: Stance::default(),
        steps: Vec::new(),
        waiting_on: vec![WaitingOn::FirstRecord],
        look_again: BootTime(0),
        serves_until: None,
        resigning: None,
        stated: None,
    }
}

/// Runs the loop until it is dropped.
pub(super) async fn run(shared: Arc<Shared>, published: watch::Sender<Arc<Status>>) {
    let mut control = ControlLoop {
        published,
        clock: RecordClock::default(),
        members_index: None,
        resolved: None,
        logged: None,
        has_promoted: false,
        reading_since: None,
        changed_at: Instant::now(),
        failed: None,
        publisher: publish::Publisher::default(),
        shared,
    };
    loop {
        control.round().await;
    }
}

/// Waits until this node's PostgreSQL is stopped and its role has ended, or `limit` has passed.
pub(super) async fn wait_until_stopped(shared: &Shared, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut guard = shared.guard.watch();
    let mut plans = shared.plan.subscribe();
    loop {
        let view = shared.guard.view();
        if !view.is_present {
            return;
        }
        if view.armed.is_none() {
            // before PostgreSQL ends: where it runs again as a standby, its position may be what the others wait for
            linger(shared).await;
            // a standby stops in order by itself once it no longer holds a role
            if shared.guard.view().has_processes
                && let Ok(client) = shared.guard.client()
            {
                let left = deadline.saturating_duration_since(Instant::now());
                if let Err(error) = client.stop(crate::guard::StopMode::Fast { limit: left }).await {
                    tracing::warn!(%error, "PostgreSQL was not stopped in order");
                }
            }
            return;
        }
        tokio::select! {
            _ = guard.changed() => {}
            _ = plans.changed() => {}
            () = tokio::time::sleep_until(deadline) => {
                tracing::warn!("the role could not be handed over in time; the lease ends it");
                return;
            }
        }
    }
}

/// Waits until another node has opened the active role that this one resigned, so that whoever stops the active node to work on it
/// finds the cluster in order. Where nobody can take it, until the word that it resigned was heard by those who are there: whoever
/// misses it would wait for the lease.
async fn linger(shared: &Shared) {
    let resigned = shared.durable.get().resigned;
    let own = shared.state().assignment.as_ref().map(|record| (record.value.node, record.value.generation));
    if own != Some((shared.me, resigned)) {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let timing = shared.timing();
    let mut rounds = shared.rounds.subscribe();
    loop {
        let (pulses, now) = (shared.pulses.view(), boot_now());
        let others: Vec<_> = pulses.peers.values().filter(|peer| peer.is_fresh(now, &timing)).collect();
        let has_heard = |report: &Report| report.barred >= resigned || report.record > resigned;
        let is_over = match &shared.state().assignment {
            Some(record) if record.value.generation > resigned && record.value.opened => {
                let active = name_of(record.value.node, &shared.state());
                tracing::info!(active, generation = %record.value.generation, "the active role was handed over");
                true
            }
            Some(record) if record.value.generation > resigned => false,
            _ if others.iter().any(|peer| peer.report.is_fit) => false,
            _ => others.is_empty() || others.iter().any(|peer| has_heard(&peer.report)),
        };
        // each round of the control loop follows news, of the record and of pulses too
        if is_over || timeout_at(deadline, rounds.changed()).await.is_err() {
            return;
        }
    }
}

struct ControlLoop {
    shared: Arc<Shared>,
    published: watch::Sender<Arc<Status>>,
    clock: RecordClock,
    members_index: Option<u64>,
    /// Up to which version of what their names stand for peers and pulses have been told.
    resolved: Option<u64>,
    /// The line of state and reasons that was logged last.
    logged: Option<String>,
    /// Whether this daemon has ever had PostgreSQL promoted.
    has_promoted: bool,
    /// Since when it waits for the end of the log.
    reading_since: Option<Instant>,
    /// When state or reasons changed last: [`HOT_FOR`] counts from it.
    changed_at: Instant,
    /// The step that failed last, and why: told once, however often it is tried again.
    failed: Option<String>,
    publisher: publish::Publisher,
}

impl ControlLoop {
    async fn round(&mut self) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        self.follow_members(&state);
        if let Some(record) = &state.assignment {
            shared.postgres.notice_missing_log(record.value.node, record.value.promoted);
        }
        let view = self.view(&state);
        let mut plan = decide(&view);
        // in effect before any step: whoever bars no longer acknowledges
        shared.pulses.set_stance(plan.stance.clone());
        plan.heed_promise(view.pulse.promise_end, shared.pulses.promise_end());
        self.log(&plan, &view, &state);
        shared.postgres.set_hot(is_in_motion(&plan) && self.changed_at.elapsed() < HOT_FOR);
        shared.plan.send_replace(Arc::new(plan.clone()));
        let status = self.publisher.status(&shared, &state, &view, &plan);
        self.published.send_replace(Arc::new(status));
        shared.rounds.send_modify(|round| *round += 1);

        let mut has_failed = false;
        for step in plan.steps.clone() {
            tracing::debug!(?step, "step");
            if let Err(error) = shared.act(step.clone()).await {
                let failed = named(&format!("{step}: {}", chain(&error)), &state);
                // a disk that takes no writes fails it for hours
                if self.failed.as_ref() != Some(&failed) {
                    tracing::info!("step not done; decided afresh: {failed}");
                }
                self.failed = Some(failed);
                has_failed = true;
                break;
            }
        }
        if !has_failed && !plan.steps.is_empty() {
            self.failed = None;
        }
        let pause = if has_failed {
            PAUSE_AFTER_ERROR
        } else if plan.steps.iter().any(is_immediate) {
            // what was just made durable changes what is decided
            return;
        } else {
            plan.look_again.since(boot_now())
        };
        if has_failed {
            sleep(pause).await;
            return;
        }
        tokio::select! {
            () = shared.news.notified() => {}
            () = sleep(pause.max(Duration::from_millis(1))) => {}
        }
    }

    fn view(&mut self, state: &State) -> NodeView {
        let shared = &self.shared;
        let now = boot_now();
        // before what it leaves behind: work that ends in between would else have ended without a trace, as a failure does
        let job = shared.postgres.job(now);
        let guard = shared.guard.view();
        let mut postgres = shared.postgres.view(&guard, shared.postgres_process());
        let followed = postgres.follows.filter(|_| !postgres.is_streaming);
        postgres.has_source_moved = followed.is_some_and(|followed| shared.follows_elsewhere(followed));
        let is_stopping = *shared.shutdown.borrow() == Some(true);
        NodeView {
            now,
            me: shared.me,
            kind: shared.kind,
            timing: Timing::from_options(&state.options),
            rules: Rules::default(),
            record: self.clock.record(state, now),
            goals: (*state.goals.value).clone(),
            durable: shared.durable.get(),
            acted_under: *shared.acted_under.lock(),
            resigning: shared.plan.borrow().resigning.clone(),
            lineage: shared.postgres.lineage(),
            rebuilt_from: shared.postgres.rebuilt_from(),
            pulse: shared.pulses.view(),
            guard,
            postgres,
            job,
            is_stopping,
            newer_cluster: shared.pulses.newer_cluster(),
            place: shared.place(state),
            unfit: None,
            kept_back: state.members.values().filter(|member| member.nofailover).map(|member| member.id).collect(),
            troubles: shared.troubles(),
        }
    }

    /// Tells pulses, peers and PostgreSQL who the members are, whenever that has changed.
    fn follow_members(&mut self, state: &State) {
        let shared = &self.shared;
        shared.pulses.set_timing(Timing::from_options(&state.options));
        let resolved = shared.resolver.version();
        let is_new = self.members_index != Some(state.members_index);
        if !is_new && self.resolved == Some(resolved) {
            return;
        }
        self.resolved = Some(resolved);
        if !state.members.contains_key(&shared.me) {
            // not replayed up to its own admission: what the join was told still counts
            return;
        }
        let others = || state.members.values().filter(|member| member.id != shared.me);
        let addresses = others().map(|member| PeerAddress {
            id: member.id,
            name: member.name.clone(),
            addresses: shared.resolver.with_known(&member.peer_addresses),
        });
        shared.peers.set_peers(addresses);
        if is_new {
            let names: BTreeSet<NodeName> = state.members.values().map(|member| member.name.clone()).collect();
            if let Err(error) = shared.postgres.admit_members(&names) {
                tracing::warn!(error = %chain(&error), "PostgreSQL's access rules do not name the present members yet");
            } else {
                self.members_index = Some(state.members_index);
            }
        }
        let pulse_peer = |member: &Arc<Member>| PulsePeer {
            id: member.id,
            key: member.pulse_key,
            addresses: shared.resolver.sockets(&member.peer_addresses),
        };
        let peers: Vec<PulsePeer> = others().map(pulse_peer).collect();
        shared.pulses.set_peers(&peers);
    }

    /// Whether the primary that this node has under its guard is a former daemon's work: it serves, and only has to be looked at.
    fn finds_primary(&self, view: &NodeView) -> bool {
        let is_opened = view.record.as_ref().is_some_and(|record| record.assignment.opened);
        is_opened && view.guard.armed.is_some() && view.guard.has_processes && !self.has_promoted
    }

    fn log(&mut self, plan: &Plan, view: &NodeView, state: &State) {
        self.has_promoted |= plan.steps.iter().any(|step| matches!(step, Step::Promote { .. }));
        let is_reading = plan.waiting_on.contains(&WaitingOn::LogEnd);
        self.reading_since = is_reading.then(|| self.reading_since.unwrap_or_else(Instant::now));
        let is_long = self.reading_since.is_some_and(|since| since.elapsed() >= READING_TOLD_AFTER);
        let is_stopping = *self.shared.shutdown.borrow() == Some(true);
        let Some(told) = sentence(plan, is_long, is_stopping, self.finds_primary(view)) else { return };
        let has_begun = self.logged.is_none().then(|| self.changed_at.elapsed());
        if is_too_early(plan.state, has_begun) {
            return;
        }
        if self.logged.as_ref() != Some(&told) {
            let line = named(&told, state);
            let is_suspicion = plan.waiting_on.iter().any(|wait| matches!(wait, WaitingOn::MajoritySuspects { .. }));
            match plan.state {
                NodeState::Failed => tracing::error!("{line}"),
                NodeState::Minority | NodeState::ActiveMinority | NodeState::Fenced => tracing::warn!("{line}"),
                _ if is_suspicion => tracing::warn!("{line}"),
                NodeState::Empty
                | NodeState::Joining
                | NodeState::Standby
                | NodeState::Promoting
                | NodeState::Active
                | NodeState::Demoting
                | NodeState::Rejoining
                | NodeState::Witness
                | NodeState::Paused => tracing::info!("{line}"),
            }
            self.logged = Some(told);
            self.changed_at = Instant::now();
        }
    }
}

/// Whether `state` is worth no line yet: `begun` is how long ago the daemon began, where it has said nothing so far.
fn is_too_early(state: NodeState, begun: Option<Duration>) -> bool {
    state == NodeState::Minority && begun.is_some_and(|begun| begun < HEARING_TOLD_AFTER)
}

/// Says in what state this node is, and what it waits for; else what the state means. That it waits for the end of the log is told
/// only once it `reads_for_long`: nothing is said where it waits for that alone. A daemon that `finds_primary` promotes nothing.
fn sentence(plan: &Plan, reads_for_long: bool, is_stopping: bool, finds_primary: bool) -> Option<String> {
    let state = match plan.state {
        NodeState::Promoting if finds_primary => "PostgreSQL runs as the primary already".to_owned(),
        other => other.to_string(),
    };
    let is_told = |wait: &&WaitingOn| **wait != WaitingOn::LogEnd || reads_for_long;
    let waiting_on: Vec<String> = plan.waiting_on.iter().filter(is_told).map(ToString::to_string).collect();
    if !waiting_on.is_empty() {
        return Some(format!("{state}, waiting for {}", waiting_on.join("; ")));
    }
    if !plan.waiting_on.is_empty() {
        return None;
    }
    let is_primary = plan.stance.report.active.as_ref().is_some_and(|active| active.is_primary);
    let meaning = match plan.state {
        NodeState::Empty => "holds no data yet",
        NodeState::Joining => "about to copy the database",
        NodeState::Standby if is_stopping => "hasup is stopping, and PostgreSQL with it",
        NodeState::Standby => "runs PostgreSQL read-only, behind the active node",
        NodeState::Promoting if is_primary => "a first write has to succeed",
        NodeState::Promoting => "brings PostgreSQL up as the primary",
        NodeState::Active => "takes writes",
        NodeState::Demoting => "gives the role up",
        NodeState::Rejoining if plan.steps.contains(&Step::PersistIntact) => "its rebuilt data is whole",
        NodeState::Rejoining => "its data is to be rewound or copied anew",
        NodeState::Minority => "hears no majority of the voters",
        NodeState::ActiveMinority => "hears no majority of the voters, and takes writes that are not replicated",
        NodeState::Fenced => "its role was ended by the fence, PostgreSQL is stopped",
        NodeState::Witness => "votes, and holds no PostgreSQL",
        NodeState::Paused => "left alone by an operator's order",
        NodeState::Failed => "cannot go on without a person",
    };
    Some(format!("{state}: {meaning}"))
}

/// Whether PostgreSQL is about to change, so that it is worth looking at it every few milliseconds.
fn is_in_motion(plan: &Plan) -> bool {
    !matches!(plan.state, NodeState::Active | NodeState::Standby | NodeState::Witness | NodeState::Minority)
        || plan.waiting_on.iter().any(|waiting| matches!(waiting, WaitingOn::LogEnd | WaitingOn::NextAssignment { .. }))
        || !plan.steps.is_empty()
}

/// Whether a step's effect is there when it returns, so that the next round need not wait for news of it.
fn is_immediate(step: &Step) -> bool {
    match step {
        Step::PersistAcknowledged { .. }
        | Step::PersistLeaseSpan { .. }
        | Step::PersistBar { .. }
        | Step::PersistResignation { .. }
        | Step::PersistIntact
        | Step::CutReceiver { .. }
        | Step::Fence { .. }
        | Step::Disarm { .. }
        | Step::PutStandbySignal
        | Step::Fetch { .. }
        | Step::Follow(_) => true,
        Step::StartPostgres
        | Step::CheckLineage { .. }
        | Step::Rejoin { .. }
        | Step::CopyDatabase { .. }
        | Step::ArmGuard { .. }
        | Step::SetNames { .. }
        | Step::Promote { .. }
        | Step::ProbeWrite { .. }
        | Step::PrepareSwitchover { .. }
        | Step::StopCleanly { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::pulse::ActiveReport;
    use crate::types::Generation;

    fn plan(state: NodeState, waiting_on: &[WaitingOn]) -> Plan {
        Plan { state, waiting_on: waiting_on.to_vec(), ..first_plan() }
    }

    #[test]
    fn the_end_of_the_log_is_waited_for_silently_unless_that_lasts() {
        let next = WaitingOn::NextAssignment { barred: Generation(3) };
        let alone = plan(NodeState::Standby, &[WaitingOn::LogEnd]);
        let both = plan(NodeState::Standby, &[next.clone(), WaitingOn::LogEnd]);
        let before = plan(NodeState::Standby, &[next]);
        assert_eq!(sentence(&alone, false, false, false), None);
        assert_eq!(sentence(&both, false, false, false), sentence(&before, false, false, false));
        for plan in [alone, both] {
            assert!(sentence(&plan, true, false, false).unwrap().ends_with("PostgreSQL to replay all log it has"));
        }
    }

    #[test]
    fn a_daemon_that_begins_does_not_warn_of_a_minority_before_it_can_have_heard_anybody() {
        let early = Some(HEARING_TOLD_AFTER / 2);
        assert!(is_too_early(NodeState::Minority, early));
        assert!(!is_too_early(NodeState::Minority, Some(HEARING_TOLD_AFTER)), "it lasts");
        assert!(!is_too_early(NodeState::Minority, None), "it had heard them");
        assert!(!is_too_early(NodeState::Standby, early));
    }

    #[test]
    fn a_state_is_told_as_what_goes_on() {
        let told = |plan: &Plan, is_stopping| sentence(plan, false, is_stopping, false).unwrap();
        let standby = plan(NodeState::Standby, &[]);
        assert_eq!(told(&standby, false), "standby: runs PostgreSQL read-only, behind the active node");
        assert_eq!(told(&standby, true), "standby: hasup is stopping, and PostgreSQL with it");
        let mut promoting = plan(NodeState::Promoting, &[]);
        assert!(told(&promoting, false).contains("brings PostgreSQL up"));
        promoting.stance.report.active = Some(ActiveReport {
            generation: Generation(3),
            record: 7,
            leased: Generation(3),
            is_primary: true,
            may_open: true,
            settled: None,
            streaming: BTreeSet::new(),
        });
        assert_eq!(told(&promoting, false), "promoting: a first write has to succeed");
        let found = sentence(&promoting, false, false, true).unwrap();
        assert_eq!(
            found, "PostgreSQL runs as the primary already: a first write has to succeed",
            "for a daemon started anew"
        );
        let mut rejoining = plan(NodeState::Rejoining, &[]);
        assert!(told(&rejoining, false).contains("to be rewound or copied"));
        rejoining.steps = vec![Step::PersistIntact];
        assert_eq!(told(&rejoining, false), "rejoining: its rebuilt data is whole");
    }
}
