//! What the node says about itself and the cluster, made anew in each round; and its certificate, kept young.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::checks::Checks;
use super::names::named;
use super::status::{ClusterStatus, NodeStatus, PostgresStatus, RaftRole, Status, TroubleStatus, Versions, millis};
use super::takeover::{Seen, TakeoverWatch};
use super::views::changes_in_trouble;
use crate::ha::assign::{self, AssignWait};
use crate::ha::plan::{Plan, WaitingOn};
use crate::ha::pulse::Report;
use crate::ha::quorum::{losses_survived, majority_of_every};
use crate::ha::record::{Assignment, Member, MemberKind};
use crate::ha::state::NodeState;
use crate::ha::trouble::Trouble;
use crate::ha::view::{NodeView, Place};
use crate::kv::State;
use crate::peer::Addresses;
use crate::postgres::{Connections, PostgresFacts};
use crate::raft::Leadership;
use crate::sys::clock::{boot_now, wall_now};
use crate::tls::facts::certificate_names;
use crate::tls::{CertificateFacts, NodeIdentity, NodeTrust};
use crate::types::{BootTime, Generation, Lsn, NodeId, Size};

/// How often the certificate's age is looked at.
const RENEWAL_EVERY: Duration = Duration::from_secs(60);
/// A certificate whose life has not begun is renewed once that was so for this long: a machine that starts with a dead clock is
/// set by the network soon, and what it issued before would have expired for all others.
const UNBEGUN_FOR: Duration = Duration::from_secs(600);

/// A standby that has not streamed for this long is told: it is restarted, re-pointed and rewound in less.
const IDLE_TOLD_AFTER: Duration = Duration::from_secs(10);

/// Remembers what only shows over time.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    role_changes: u64,
    promoted: Option<Generation>,
    was_removed: bool,
    /// Since when each standby has not been streaming, by the active node's word.
    idle_since: BTreeMap<NodeId, BootTime>,
    checks: Checks,
    takeover: TakeoverWatch,
}

impl Publisher {
    /// Says that this node is no member any more, where its own store or those who are members say so; the log is told once.
    fn not_a_member(&mut self, shared: &Shared, state: &State, cluster: &ClusterStatus) -> Option<String> {
        let name_of = |node: NodeId| state.members.get(&node).map(|member| member.name.to_string());
        let disowned_by: Vec<String> = shared.peers.disowned_by().into_iter().filter_map(name_of).collect();
        // numbers are given once: one that was given and is nobody's now was this node's
        let is_out = !state.members.contains_key(&shared.me) && shared.me < state.next_node_id;
        let is_removed = is_out || !cluster.majority && !disowned_by.is_empty();
        let was_removed = std::mem::replace(&mut self.was_removed, is_removed);
        if !is_removed {
            return None;
        }
        let said =
            if disowned_by.is_empty() { String::new() } else { format!(" ({} said so)", disowned_by.join(", ")) };
        let told = format!(
            "{} is no member of this cluster any more: it was removed, or another took its place{said}. Nothing that is shown here of the \
             others is of the present. To join again: `hasup destroy --yes` here, then `hasup join`",
            shared.name
        );
        if !was_removed {
            tracing::error!("{told}");
        }
        Some(told)
    }

    /// Tells of the standbys that have not streamed for long.
    fn idle_too_long(&mut self, now: BootTime, idle: &[&NodeStatus]) -> Vec<String> {
        self.idle_since.retain(|node, _| idle.iter().any(|known| known.id == *node));
        let mut told = Vec::new();
        for node in idle {
            let since = *self.idle_since.entry(node.id).or_insert(now);
            if now.since(since) >= IDLE_TOLD_AFTER {
                let (name, state) = (&node.name, node.state_word());
                told.push(format!(
                    "{name} ({state}) does not stream from the active node: until it does, it neither holds commits nor can take over. \
                     `hasup status` on {name} tells why"
                ));
            }
        }
        told
    }

    pub(super) fn status(&mut self, shared: &Shared, state: &State, view: &NodeView, plan: &Plan) -> Status {
        let record = state.assignment.as_ref().map(|record| &record.value);
        let promoted = record.map(|record| record.promoted);
        if promoted != self.promoted {
            self.role_changes += u64::from(self.promoted.is_some());
            self.promoted = promoted;
        }
        let leadership = shared.consensus.leadership().borrow().clone();
        let name_of = |node: NodeId| state.members.get(&node).map(|member| member.name.to_string());
        let active_lsn = record.and_then(|record| self::end_of(shared, view, plan, record.node));
        let mut nodes: Vec<NodeStatus> = state
            .members
            .values()
            .map(|member| node_status(shared, view, plan, &leadership, member, active_lsn))
            .collect();
        for own in nodes.iter_mut().filter(|node| node.id == shared.me) {
            own.checks = self.checks.shown(shared, view, &leadership, state.options.check_fail_fast);
        }
        let lease = view.pulse.lease.filter(|_| view.guard.armed.is_some());
        let idle = idle(shared, view, plan, &nodes);
        let mut cluster = cluster_status(state, view, &nodes, &idle);
        cluster.warnings.extend(self.idle_too_long(view.now, &idle));
        cluster.warnings.extend(shared.resolver.told(view.now, shared.me, state));
        let is_looked_at = plan.state == NodeState::Active && shared.postgres.kept_log().is_some();
        cluster.warnings.extend(nodes.iter().filter(|_| is_looked_at).filter_map(log_given_up));
        // without a majority it is not known whether a person has decided meanwhile
        if cluster.majority && is_for_a_person(shared, state, view, plan) {
            let told = AssignWait::Person { changes: changes_in_trouble(state) };
            cluster.failure_cost = format!("No node takes writes, and none will by itself. It waits for {told}.");
            cluster.warnings.push(format!("The cluster waits for {told}"));
        }
        cluster.warnings.extend(shared.copies.told());
        let place_taken = shared.copies.told_of(shared.me);
        let not_a_member = place_taken.or_else(|| self.not_a_member(shared, state, &cluster));
        if let Some(told) = &not_a_member {
            // the others are well, and nothing is to be repaired there
            cluster.warnings = vec![told.clone()];
            cluster.failure_cost = String::new();
        }
        if shared.is_stopping() {
            cluster.warnings.insert(0, format!("hasup is stopping on {}", shared.name));
        }
        let collations = shared.postgres.collation_warnings();
        let here = collations.iter().flatten().map(|warning| format!("{}: {warning}", shared.name));
        cluster.warnings.extend(here);
        let are_left = shared.postgres.last_observation().facts != PostgresFacts::Exhausted;
        cluster.warnings.extend(exhausted(shared.name.as_str(), shared.postgres.connections(), are_left));
        let mut waiting_on: Vec<String> = plan.waiting_on.iter().map(|wait| named(&wait.to_string(), state)).collect();
        let as_leader = shared.assigned.borrow().waiting_on.clone();
        waiting_on.extend(as_leader.iter().map(|wait| named(&format!("as leader: {wait}"), state)));
        let progress = shared.postgres.progress();
        if shared.postgres.replay().is_some() && !plan.waiting_on.contains(&WaitingOn::LogEnd) {
            // whatever else is waited for comes after that
            waiting_on.insert(0, WaitingOn::LogEnd.to_string());
        }
        if let PostgresFacts::ShutOut { why } = &shared.postgres.last_observation().facts {
            waiting_on.push(why.clone());
        }
        Status {
            cluster,
            me: shared.name.to_string(),
            published_at: boot_now(),
            stale_ms: None,
            not_a_member,
            is_elsewhere: view.place != Place::Known,
            state: plan.state,
            active: record.and_then(|record| name_of(record.node)),
            active_ready: plan.serves_until.is_some(),
            active_until: plan.serves_until,
            lease_remaining_ms: lease.map(|(_, end)| millis(end.since(view.now))),
            raft_leader: leadership.leader.and_then(name_of),
            waiting_on,
            progress,
            nodes,
            postgres: postgres_status(shared, view),
            versions: Versions {
                hasup: env!("CARGO_PKG_VERSION").to_owned(),
                postgres: shared.postgres.major_version().map(|major| major.to_string()),
            },
            certificate_days_left: Some(shared.tls.facts().days_left(wall_now())),
            role_changes: self.role_changes,
            takeover: self.takeover.look(Seen::of(view, plan), millis(wall_now())),
            ca_pem: state.trust.as_ref().map(|trust| trust.value.ca_certificates.concat()).unwrap_or_default(),
        }
    }
}

/// A node's last word, this one's own included, and how old it is.
fn word<'a>(shared: &Shared, view: &'a NodeView, plan: &'a Plan, node: NodeId) -> Option<(&'a Report, Duration)> {
    if node == shared.me {
        return Some((&plan.stance.report, Duration::ZERO));
    }
    view.pulse.peers.get(&node).map(|peer| (&peer.report, view.now.since(peer.proved_at)))
}

/// Returns the standbys that are heard and do not stream, by the word of the active node; none while that has none.
fn idle<'a>(shared: &Shared, view: &NodeView, plan: &Plan, nodes: &'a [NodeStatus]) -> Vec<&'a NodeStatus> {
    let active = view.record.as_ref().map(|record| record.assignment.node);
    let word = active.and_then(|node| word(shared, view, plan, node));
    let word = word.filter(|(report, age)| report.state == NodeState::Active && *age <= view.timing.report_fresh);
    let Some(report) = word.and_then(|(report, _)| report.active.as_ref()) else { return Vec::new() };
    let streams = |node: NodeId| report.streaming.iter().any(|member| member.node == node);
    let is_idle = |node: &&NodeStatus| {
        node.kind == MemberKind::Data && node.is_reachable && Some(node.id) != active && !streams(node.id)
    };
    nodes.iter().filter(is_idle).collect()
}

/// Returns whether the role was given up so often that the cluster waits for a person, as the leader does.
fn is_for_a_person(shared: &Shared, state: &State, view: &NodeView, plan: &Plan) -> bool {
    let Some(record) = &view.record else { return false };
    let holder = word(shared, view, plan, record.assignment.node).filter(|(_, age)| *age <= view.timing.promise());
    let (changes, changes_max) = (changes_in_trouble(state), state.options.role_changes_per_hour);
    assign::is_for_a_person(&record.assignment, holder.map(|(report, _)| report), &view.goals, changes, changes_max)
}

fn end_of(shared: &Shared, view: &NodeView, plan: &Plan, node: NodeId) -> Option<Lsn> {
    Some(word(shared, view, plan, node)?.0.data?.position?.lsn)
}

fn node_status(
    shared: &Shared,
    view: &NodeView,
    plan: &Plan,
    leadership: &Leadership,
    member: &Member,
    active_lsn: Option<Lsn>,
) -> NodeStatus {
    let word = word(shared, view, plan, member.id);
    let is_reachable = member.id == shared.me
        || view.pulse.peers.get(&member.id).is_some_and(|peer| peer.is_fresh(view.now, &view.timing));
    let report = word.map(|(report, _)| report);
    // who is not heard may be anything
    let state = report.filter(|_| is_reachable).map(|report| report.state);
    let position = report.and_then(|report| report.data).and_then(|data| data.position);
    let lsn = position.map(|position| position.lsn);
    let voters = leadership.voters.iter().any(|set| set.contains(&member.id));
    let raft = if leadership.leader == Some(member.id) {
        RaftRole::Leader
    } else if voters {
        RaftRole::Follower
    } else if leadership.learners.contains(&member.id) {
        RaftRole::Learner
    } else {
        RaftRole::Unknown
    };
    NodeStatus {
        id: member.id,
        name: member.name.to_string(),
        address: member.peer_addresses.first().cloned().unwrap_or_default(),
        api_address: member.api_address.clone(),
        postgres_address: format!("{}:{}", member.postgres_host, member.postgres_port),
        kind: member.kind,
        state,
        is_reachable,
        heard_ms_ago: word.map(|(_, age)| millis(age)),
        raft,
        is_spare: view.record.as_ref().is_some_and(|record| is_spare(&record.assignment, member.id)),
        priority: member.priority,
        nofailover: member.nofailover,
        timeline: position.map(|position| position.timeline),
        lsn,
        kept_log_bytes: shared.postgres.kept_log().and_then(|kept| kept.get(&member.id).copied()),
        lag_bytes: active_lsn.zip(lsn).map(|(active, own)| active.0.saturating_sub(own.0)),
        version: member.version.clone(),
        troubles: report
            .map(|report| report.troubles.iter().map(|trouble| trouble_status(*trouble, member)).collect())
            .unwrap_or_default(),
        // a node knows its own alone
        checks: BTreeMap::new(),
    }
}

/// Returns whether the cluster is as redundant without `node`. Of two nodes, the second holds the only other copy, vote or not.
fn is_spare(record: &Assignment, node: NodeId) -> bool {
    let has_vote = record.voter_sets.iter().any(|voters| voters.contains(&node));
    let is_waited_for = record.commit_sets.iter().any(|set| set.members.iter().any(|member| member.node == node));
    let is_needed = record.voter_sets.iter().any(|voters| voters.len() < 3);
    record.node != node && !has_vote && !is_waited_for && !is_needed
}

fn trouble_status(trouble: Trouble, member: &Member) -> TroubleStatus {
    TroubleStatus { text: trouble.of(member.name.as_str()), is_critical: trouble.is_critical() }
}

fn postgres_status(shared: &Shared, view: &NodeView) -> PostgresStatus {
    let observation = shared.postgres.last_observation();
    let live = match &observation.facts {
        PostgresFacts::Live(live) => Some(live),
        _ => None,
    };
    PostgresStatus {
        is_running: view.guard.has_processes,
        is_accepting: live.is_some(),
        is_in_recovery: view.postgres.in_recovery,
        is_streaming: view.postgres.is_streaming,
        server_version: shared.postgres.major_version().map(|major| major * 10_000),
        system_identifier: live.map(|live| live.system_identifier),
        timeline: live.map(|live| live.timeline),
        lsn: live.map(|live| live.lsn),
        replayed_lsn: live.and_then(|live| live.replay_lsn),
        standbys: view.postgres.standbys.keys().map(ToString::to_string).collect(),
        synchronous_standby_names: live.map(|live| live.sync_names_shown.clone()),
        cancelled_waits: shared.postgres.cancelled_waits(),
        connections: shared.postgres.connections(),
        warnings: shared.postgres.collation_warnings(),
    }
}

fn cluster_status(state: &State, view: &NodeView, nodes: &[NodeStatus], idle: &[&NodeStatus]) -> ClusterStatus {
    let record = view.record.as_ref().map(|record| &record.assignment);
    let is_heard = |node: NodeId| nodes.iter().any(|known| known.id == node && known.is_reachable);
    let majority = record.is_some_and(|record| majority_of_every(&record.voter_sets, is_heard));
    let identity = state.identity.as_ref().map(|identity| &identity.value);
    ClusterStatus {
        id: identity.map(|identity| identity.id.clone()).unwrap_or_default(),
        name: identity.map(|identity| identity.name.clone()).unwrap_or_default(),
        cluster_generation: identity.map(|identity| identity.generation).unwrap_or_default(),
        generation: record.map(|record| record.generation).unwrap_or_default(),
        majority,
        durability: state.options.durability,
        lease_ms: millis(view.timing.lease),
        failure_cost: failure_cost(record, majority, nodes, idle),
        warnings: warnings(state, majority, nodes),
    }
}

/// What a failure right now would cost, in one plain sentence. `idle` are standbys that are heard and do not stream.
/// `majority`: whether this node hears one, without which it cannot know whom the others have made active.
fn failure_cost(record: Option<&Assignment>, majority: bool, nodes: &[NodeStatus], idle: &[&NodeStatus]) -> String {
    let set = record.and_then(|record| record.commit_sets.last());
    let is_one_missing = nodes.iter().any(|node| !node.is_reachable && !node.is_spare);
    let idle: Vec<_> = idle.iter().filter(|node| !node.is_spare).collect();
    let data = nodes.iter().filter(|node| node.kind == MemberKind::Data).count();
    let lives = |id: NodeId| nodes.iter().any(|node| node.id == id && node.is_reachable);
    let follows = |id: NodeId| lives(id) && !idle.iter().any(|node| node.id == id);
    let survived = record.map_or(0, |record| losses_survived(record, data, lives, follows));
    let (losses, more) = match survived {
        0 => (String::new(), "HA is degraded: one more loss may stop writes".to_owned()),
        1 => ("Losing any one node".to_owned(), "HA is degraded, but one more loss stops no writes".to_owned()),
        many => (format!("Losing any {many} nodes"), format!("HA is degraded, but {many} more losses stop no writes")),
    };
    match (set, data) {
        _ if !majority => {
            "Whether a node takes writes is not known here, as no majority of the voters is heard. Ask another node.".to_owned()
        }
        (None, _) => "The cluster has no active node yet; nothing is served.".to_owned(),
        _ if !nodes.iter().any(|node| node.state == Some(NodeState::Active)) => {
            "No node takes writes at present; what is waited for stands below, or on the node that was made active.".to_owned()
        }
        (Some(_), 0 | 1) => "This is the only node: its loss stops writes, and loses what is not in a backup.".to_owned(),
        (Some(_), 2) if nodes.len() == 2 => {
            "Losing the other node costs no data; losing the active one stops writes until it is back, as two nodes have no majority. Add a third.".to_owned()
        }
        (Some(_), _) if is_one_missing => {
            format!("{more}. Repair or replace the nodes that are not heard.")
        }
        (Some(_), _) if !idle.is_empty() => {
            let names: Vec<&str> = idle.iter().map(|node| node.name.as_str()).collect();
            let do_not = if names.len() == 1 { "does not" } else { "do not" };
            let names = names.join(" and ");
            match survived {
                0 => format!("{more}, as {names} {do_not} stream from the active node."),
                _ => format!("{more}. {names} {do_not} stream from the active node."),
            }
        }
        (Some(set), _) if set.may_lose() => {
            let window = "Losing the active node loses the last commits, up to some hundred milliseconds of them or what a standby \
                          lags behind, as commits wait for nobody (durability=one_node)";
            format!("{window}; writes go on within seconds. What was lost is kept aside when the node comes back.")
        }
        (Some(set), _) if set.k == 0 => {
            "Losing the active node stops writes until it is back, as commits wait for nobody and only it holds them all.".to_owned()
        }
        (Some(_), _) if survived == 0 => "One loss may stop writes until the change that is under way is over.".to_owned(),
        (Some(_), _) => format!("{losses} loses no acknowledged commit; writes go on within seconds."),
    }
}

fn warnings(state: &State, majority: bool, nodes: &[NodeStatus]) -> Vec<String> {
    let mut warnings = Vec::new();
    if !majority {
        warnings.push("MINORITY: this node hears no majority of the voters, so nothing can be decided here".to_owned());
    }
    for node in nodes.iter().filter(|node| !node.is_reachable) {
        let kept = node.kept_log_bytes.filter(|bytes| *bytes > 0);
        let kept = kept.map(|bytes| format!(". A slot here keeps {} of log for it", Size(bytes))).unwrap_or_default();
        // whoever stands in a minority may itself be what is cut off, and can remove nobody
        let cure = if majority {
            format!("repair it, or remove it with `hasup nodes remove {}` and add another", node.name)
        } else {
            "look whether it runs, and at the network between".to_owned()
        };
        let spare = if node.is_spare { "a spare, on which no vote and no commit counts; " } else { "" };
        warnings.push(format!("{} is not heard: {spare}{cure}{kept}", node.name));
    }
    for node in nodes.iter().filter(|node| node.is_reachable) {
        warnings.extend(node.troubles.iter().map(|trouble| trouble.text.clone()));
    }
    if nodes.len() > 1 && nodes.len().is_multiple_of(2) {
        let losses = match nodes.len() / 2 - 1 {
            0 => "no loss".to_owned(),
            1 => "one loss".to_owned(),
            more => format!("{more} losses"),
        };
        warnings.push(format!(
            "an even number of nodes adds nothing to their majority: {} survive {losses}, as {} would. Add one, or a witness",
            nodes.len(),
            nodes.len() - 1
        ));
    }
    // L12: what such a one alone holds is fetched, where there is one who may
    let active = state.assignment.as_ref().map(|record| record.value.node);
    let others = || nodes.iter().filter(|node| node.kind == MemberKind::Data && Some(node.id) != active);
    if others().next().is_some() && others().all(|node| node.nofailover) {
        warnings.push(
            "every node that could take over is marked nofailover: if the active node is lost, nobody writes until it is back or a mark is \
             taken off with `hasup nodes set`"
                .to_owned(),
        );
    }
    for node in state.goals.removing.iter().filter_map(|node| state.members.get(node)) {
        warnings.push(format!("{} is being removed", node.name));
    }
    warnings
}

/// Tells, on the active node, that a silent member's log is kept no longer: PostgreSQL drops it all at once.
fn log_given_up(node: &NodeStatus) -> Option<String> {
    let is_given_up = node.kind == MemberKind::Data
        && !node.is_reachable
        && node.heard_ms_ago.is_some()
        && node.lsn.is_some()
        && node.kept_log_bytes.is_none();
    let name = &node.name;
    is_given_up.then(|| {
        format!(
            "no log is kept for {name} here (it was silent for a day, or since before this node became active, or that log has outgrown \
             max_slot_wal_keep_size): when {name} is back and lacks log that is gone by then, its database is copied anew"
        )
    })
}

/// Tells that the server of node `name` refuses clients for want of connections; `are_left` is whether hasup itself gets one.
fn exhausted(name: &str, connections: Option<Connections>, are_left: bool) -> Option<String> {
    let count = match connections.filter(|it| it.are_exhausted()) {
        Some(Connections { in_use, for_clients, .. }) => format!("{in_use} of {for_clients} are in use"),
        None if are_left => return None,
        None => "not even a reserved one is free".to_owned(),
    };
    Some(format!(
        "{name}: PostgreSQL has no connection left for clients (connections exhausted): {count}, and more are refused; the role stays \
         where it is. End idle sessions, let clients share connections by a pool, or raise max_connections in `postgres.settings` on \
         every node, and restart the standbys first"
    ))
}

/// Renews this node's certificate at two thirds of its life, and whenever the cluster's authorities or the node's
/// addresses have changed.
pub(super) async fn keep_certificate(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    let mut unbegun_since = None;
    loop {
        if let Err(error) = renew_if_due(&shared, &mut unbegun_since) {
            tracing::warn!(error = %super::act::chain(&error), "this node's certificate was not renewed; tried again each minute");
        }
        let indexes = |state: &State| (state.trust.as_ref().map_or(0, |trust| trust.index), state.members_index);
        let known = indexes(&shared.state());
        let changed = states.wait_for(|applied| indexes(&applied.state) != known);
        // the minute's end is as good a reason to look as a change
        if let Ok(Err(_)) = tokio::time::timeout(RENEWAL_EVERY, changed).await.map(|changed| changed.map(drop)) {
            return;
        }
    }
}

/// Tells whether two thirds of a certificate's life have passed by the wall clock `now`, or its life has not begun in all of
/// [`UNBEGUN_FOR`] up to the instant `at`. `unbegun_since` is when it was first seen that it has not, if it was so the last time.
fn is_due_by_its_dates(
    facts: &CertificateFacts,
    now: Duration,
    unbegun_since: &mut Option<BootTime>,
    at: BootTime,
) -> bool {
    *unbegun_since = if facts.has_begun(now) { None } else { Some(unbegun_since.unwrap_or(at)) };
    facts.needs_renewal(now) || unbegun_since.is_some_and(|since| at.since(since) >= UNBEGUN_FOR)
}

/// For `unbegun_since` see [`is_due_by_its_dates`].
fn renew_if_due(shared: &Shared, unbegun_since: &mut Option<BootTime>) -> Result<(), crate::tls::TlsError> {
    let state = shared.state();
    let Some(trust) = state.trust.as_ref() else { return Ok(()) };
    let Some(member) = state.members.get(&shared.me) else { return Ok(()) };
    let hosts = Addresses::of(member).certificate_hosts();
    let current = NodeTrust::load(&shared.data_dir)?;
    let (facts, now) = (current.facts()?, wall_now());
    let is_due = is_due_by_its_dates(&facts, now, unbegun_since, boot_now())
        || current.ca_certificates != trust.value.ca_certificates
        || !current.is_of_newest_authority()?
        || !certificate_names(&current.certificate, &hosts)?;
    if !is_due {
        return Ok(());
    }
    let identity = NodeIdentity { node: shared.me, name: shared.name.clone(), cluster_id: shared.cluster_id.clone() };
    let renewed = NodeTrust::reissue(&shared.data_dir, &trust.value, identity, hosts, wall_now())?;
    renewed.save_certificates(&shared.data_dir)?;
    shared.tls.reload(&renewed)?;
    shared.postgres.postgres.reload();
    tracing::info!("this node's certificate was renewed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::record::{AssignmentReason, CommitSet, DataMember};
    use crate::types::{DataIncarnation, Timeline, WalPosition};

    /// A standby that streams.
    fn standby_status(id: u64) -> NodeStatus {
        NodeStatus {
            id: NodeId(id),
            name: format!("n{id}"),
            address: String::new(),
            api_address: String::new(),
            postgres_address: String::new(),
            kind: MemberKind::Data,
            state: Some(NodeState::Standby),
            is_reachable: true,
            heard_ms_ago: None,
            raft: RaftRole::Unknown,
            is_spare: false,
            priority: 100,
            nofailover: false,
            timeline: None,
            lsn: None,
            lag_bytes: None,
            kept_log_bytes: None,
            version: String::new(),
            checks: BTreeMap::new(),
            troubles: Vec::new(),
        }
    }

    #[test]
    fn log_is_said_to_be_given_up_for_a_silent_data_node_alone_that_had_some_and_has_no_slot() {
        let silent = NodeStatus {
            is_reachable: false,
            heard_ms_ago: Some(90_000_000),
            lsn: Some(Lsn(7)),
            kept_log_bytes: None,
            ..standby_status(2)
        };
        let told = log_given_up(&silent).unwrap();
        assert!(
            told.starts_with("no log is kept for n2 here") && told.contains("its database is copied anew"),
            "{told}"
        );
        let others = [
            ("it is heard", NodeStatus { is_reachable: true, ..silent.clone() }),
            ("it was never heard from here", NodeStatus { heard_ms_ago: None, ..silent.clone() }),
            ("it never had a database", NodeStatus { lsn: None, ..silent.clone() }),
            ("its log is kept, if none of it yet", NodeStatus { kept_log_bytes: Some(0), ..silent.clone() }),
            ("it holds no database", NodeStatus { kind: MemberKind::Witness, ..silent }),
        ];
        for (why, node) in others {
            assert_eq!(log_given_up(&node), None, "{why}");
        }
    }

    #[test]
    fn connections_that_are_left_for_superusers_alone_are_none_for_clients() {
        let of = |in_use| Some(Connections { in_use, for_clients: 97, all: 100 });
        assert_eq!(exhausted("n1", of(96), true), None);
        assert_eq!(exhausted("n1", None, true), None);
        let told = exhausted("n1", of(100), true).unwrap();
        assert!(told.starts_with("n1: PostgreSQL has no connection left for clients"), "{told}");
        assert!(told.contains("100 of 97 are in use") && told.contains("max_connections"), "{told}");
        assert!(exhausted("n1", None, false).unwrap().contains("not even a reserved one"));
    }

    #[test]
    fn a_spare_that_no_majority_and_no_commit_counts_on_degrades_nothing() {
        let member = |node| DataMember { node: NodeId(node), incarnation: DataIncarnation(1) };
        let mut record = Assignment {
            generation: Generation(2),
            node: NodeId(1),
            incarnation: DataIncarnation(1),
            promoted: Generation(2),
            timeline: Timeline(2),
            start: WalPosition { timeline: Timeline(1), lsn: Lsn(0) },
            why: AssignmentReason::Bootstrap,
            voter_sets: vec![[1, 2, 3].map(NodeId).into()],
            commit_sets: vec![CommitSet { members: [member(2), member(3)].into(), k: 1 }],
            opened: true,
            since_opened: Vec::new(),
        };
        let is_spare = |record: &Assignment| [1, 2, 3, 4].map(|node| super::is_spare(record, NodeId(node)));
        assert_eq!(is_spare(&record), [false, false, false, true]);

        let mut nodes: Vec<NodeStatus> = (1..=4).map(standby_status).collect();
        nodes[0].state = Some(NodeState::Active);
        (nodes[3].is_reachable, nodes[3].is_spare) = (false, true);
        let cost = |nodes: &[NodeStatus]| failure_cost(Some(&record), true, nodes, &[]);
        assert!(cost(&nodes).starts_with("Losing any one node loses no acknowledged commit"), "{}", cost(&nodes));
        let told = warnings(&State::default(), true, &nodes).concat();
        assert!(told.contains("n4 is not heard: a spare, "), "{told}");
        let heard_and_idle = [&nodes[3]];
        assert!(
            failure_cost(Some(&record), false, &nodes, &[]).starts_with("Whether a node takes writes is not known")
        );
        assert!(failure_cost(Some(&record), true, &nodes, &heard_and_idle).starts_with("Losing any one"));
        nodes[3].is_spare = false;
        assert!(cost(&nodes).starts_with("HA is degraded"), "{}", cost(&nodes));

        record.commit_sets.push(CommitSet { members: [member(2), member(3), member(4)].into(), k: 2 });
        assert_eq!(is_spare(&record), [false; 4], "commits may wait for it");
        record.commit_sets.pop();
        record.voter_sets = vec![[NodeId(1)].into()];
        assert_eq!(is_spare(&record), [false; 4], "one vote alone is no redundancy");
    }

    #[test]
    fn a_certificate_whose_life_has_not_begun_is_renewed_after_ten_minutes_of_that_alone() {
        const DAY: Duration = Duration::from_secs(86_400);
        const MINUTE: Duration = Duration::from_secs(60);
        let facts = CertificateFacts {
            identity: NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c".into() },
            not_before: DAY * 100,
            not_after: DAY * 190,
        };
        let mut unbegun_since = None;
        let mut is_due = |now: Duration, minute: u32| {
            let at = BootTime(0) + MINUTE * minute;
            is_due_by_its_dates(&facts, now, &mut unbegun_since, at)
        };
        let (unbegun, begun) = (DAY * 99, DAY * 101);
        for minute in 0..10 {
            assert!(!is_due(unbegun, minute), "minute {minute}");
        }
        assert!(is_due(unbegun, 10));
        // a clock that the network has set meanwhile begins the wait anew
        assert!(!is_due(begun, 11));
        assert!(!is_due(unbegun, 20) && !is_due(unbegun, 29));
        assert!(is_due(unbegun, 30));
        assert!(is_due(DAY * 160, 31), "two thirds of its life");
    }
}
