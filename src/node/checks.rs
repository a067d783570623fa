//! This node's checks: what they see, and for how long an earlier pass is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Shared;
use super::names::named;
use super::status::{CheckStatus, millis};
use crate::ha::record::MemberKind;
use crate::ha::view::NodeView;
use crate::postgres::PostgresFacts;
use crate::raft::Leadership;
use crate::types::BootTime;

/// When each check last passed.
#[derive(Debug, Default)]
pub(super) struct Checks {
    passed_at: BTreeMap<String, BootTime>,
}

impl Checks {
    /// Returns what is to be shown of the checks now.
    pub(super) fn shown(
        &mut self,
        shared: &Shared,
        view: &NodeView,
        leadership: &Leadership,
        fail_fast: bool,
    ) -> BTreeMap<String, CheckStatus> {
        let mut checks = looked_at(shared, view, leadership);
        self.hold(view.now, fail_fast, &mut checks);
        checks
    }

    /// Shows a check that fails as passing for as long as its last pass holds, unless it is to fail at once. Only what is shown changes:
    /// roles, leases and role endpoints follow from what was seen itself.
    fn hold(&mut self, now: BootTime, fail_fast: bool, checks: &mut BTreeMap<String, CheckStatus>) {
        for (name, check) in checks {
            if check.is_passing {
                self.passed_at.insert(name.clone(), now);
                continue;
            }
            let held = self.passed_at.get(name).map(|passed_at| millis(now.since(*passed_at)));
            if let Some(ms_ago) = held.filter(|ms_ago| !fail_fast && *ms_ago < check.ttl_ms) {
                check.is_passing = true;
                check.detail += &format!(" (it passed {ms_ago} ms ago, which holds for {} ms)", check.ttl_ms);
            }
        }
    }
}

/// Returns what the checks see now, by the names of the ancestors.
fn looked_at(shared: &Shared, view: &NodeView, leadership: &Leadership) -> BTreeMap<String, CheckStatus> {
    let observation = shared.postgres.last_observation();
    let ttl = view.timing.lease;
    let interval = Duration::from_millis(250);
    let check = |is_passing: bool, detail: String, moves_role: bool| CheckStatus {
        is_passing,
        detail,
        interval_ms: millis(interval),
        ttl_ms: millis(ttl),
        moves_role,
    };
    let is_running = view.guard.has_processes;
    let answer = match &observation.facts {
        PostgresFacts::Live(_) => "it answers a query".to_owned(),
        PostgresFacts::NotReady => match shared.postgres.replay() {
            Some(replay) => format!("it lives, and lets nobody in before it has recovered: {}", replay.text),
            None => "it is starting or stopping".to_owned(),
        },
        PostgresFacts::Exhausted => "connections exhausted: it lives, and has none left".to_owned(),
        PostgresFacts::Silent { why } | PostgresFacts::ShutOut { why } => why.clone(),
        PostgresFacts::Stopped => "it does not run".to_owned(),
    };
    let answers = matches!(observation.facts, PostgresFacts::Live(_) | PostgresFacts::Exhausted);
    let is_holder = view.guard.armed.is_some();
    let active = view.record.as_ref().map(|record| record.assignment.node);
    let follows = view.postgres.is_streaming && view.postgres.follows.map(|followed| followed.node) == active;
    let (has_role, role) = match (is_holder, active == Some(shared.me)) {
        (true, _) if view.postgres.in_recovery == Some(false) => (true, "it is the primary"),
        (true, _) => (false, "it is not the primary yet"),
        (false, true) => (false, "it holds no lease on the active role, which it was given last"),
        (false, false) if follows => (true, "it streams from the active node"),
        (false, false) => (false, "it does not stream from the active node yet"),
    };
    let failed = shared.raft_failed();
    let raft_works = leadership.leader.is_some() && failed.is_none();
    let mut checks = BTreeMap::from([(
        "consensus".to_owned(),
        check(
            raft_works,
            failed.unwrap_or_else(|| match leadership.leader {
                _ if shared.is_stopping() => "hasup is stopping".to_owned(),
                Some(leader) => named(&format!("node {leader} leads in term {}", leadership.term), &shared.state()),
                None => "no leader is known".to_owned(),
            }),
            false,
        ),
    )]);
    if shared.kind == MemberKind::Data {
        checks.insert("postgres_running".to_owned(), check(is_running, answer.clone(), true));
        checks.insert("postgres_answers".to_owned(), check(answers, answer, true));
        checks.insert("postgres_role".to_owned(), check(has_role, role.to_owned(), false));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_shown_as_failing_at_once_or_when_its_last_pass_holds_no_longer() {
        let seen = |is_passing| CheckStatus {
            is_passing,
            detail: "it does not run".to_owned(),
            interval_ms: 250,
            ttl_ms: 2000,
            moves_role: true,
        };
        // when it is looked at, whether it passes, and whether that is shown with check_fail_fast and without
        let rounds = [
            (1000, false, false, false),
            (1250, true, true, true),
            (1500, false, false, true),
            (3249, false, false, true),
            (3250, false, false, false),
            (3500, true, true, true),
            (5499, false, false, true),
        ];
        for fail_fast in [true, false] {
            let mut before = Checks::default();
            for (at, is_passing, at_once, held) in rounds {
                let mut checks = BTreeMap::from([("postgres_running".to_owned(), seen(is_passing))]);
                before.hold(BootTime::from_millis(at), fail_fast, &mut checks);
                let shown = &checks["postgres_running"];
                assert_eq!(shown.is_passing, if fail_fast { at_once } else { held }, "{fail_fast} at {at}");
                let is_held = shown.is_passing && !is_passing;
                assert_eq!(is_held, shown.detail.contains("which holds for 2000 ms"), "{}", shown.detail);
            }
        }
    }
}
