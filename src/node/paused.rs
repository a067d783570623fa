//! Starts a standby's PostgreSQL again where it has paused for want of connections or the like, beside the loop: once a primary with more
//! of them has come, it neither replays nor can be promoted any more.
//!
//! What a paused standby receives still counts for commits, and they would wait if all standbys started at once. So each has its turn,
//! and lets it pass while another one is away.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::act::chain;
use crate::guard::StopMode;
use crate::ha::pulse::PulseView;
use crate::ha::record::MemberKind;
use crate::ha::timing::Timing;
use crate::kv::State;
use crate::postgres::PostgresFacts;
use crate::sys::clock::boot_now;
use crate::types::{BootTime, NodeId};

/// How often a standby is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Between the beginnings of two standbys' turns.
const TURN: Duration = Duration::from_secs(20);
/// How much of its turn a standby may begin in: two asks, so that it misses none. What is left, 10 s, is more than the asks of two
/// standbys that paused together lie apart.
const BEGIN: Duration = Duration::from_secs(10);
/// How long it waits for others that are away: one that is copied may be for hours, and this one cannot be promoted meanwhile.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long its orderly stop may take: what is killed replays more at its start.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What one standby knows of the others when it asks whether it is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Others {
    /// How many come before it.
    before: u32,
    /// How many come before it or after it.
    count: u32,
    /// Whether one of them lives and does not stream, so that commits may wait for this one alone.
    is_one_away: bool,
}

impl Others {
    /// Looks at the other standbys of `me` as of `now`.
    fn of(me: NodeId, state: &State, pulse: &PulseView, now: BootTime) -> Self {
        let active = state.assignment.as_ref().map(|record| record.value.node);
        let timing = Timing::from_options(&state.options);
        let heard = |node: NodeId| pulse.peers.get(&node).filter(|peer| peer.is_fresh(now, &timing));
        let counts = |node: NodeId| node != me && Some(node) != active;
        let data = state.members.values().filter(|member| member.kind == MemberKind::Data);
        let others: Vec<NodeId> = data.map(|member| member.id).filter(|node| counts(*node)).collect();
        // without an active node nobody's commit waits, and one that can be promoted is wanted soon
        let streaming =
            active.and_then(heard).and_then(|peer| peer.report.active.as_ref()).map(|active| &active.streaming);
        let is_away = |node: NodeId| {
            heard(node).is_some()
                && streaming.is_some_and(|streaming| !streaming.iter().any(|member| member.node == node))
        };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            before: number(others.iter().filter(|node| **node < me).count()),
            count: number(others.len()),
            is_one_away: others.iter().any(|node| is_away(*node)),
        }
    }
}

/// Since when this standby has been seen paused, if it is.
#[derive(Debug, Default)]
struct Pause {
    since: Option<BootTime>,
    /// Since when another one has been away without an end.
    away_since: Option<BootTime>,
    /// When it was last waited for: it may come back paused as well, and the turns of both count from then.
    waited_at: Option<BootTime>,
}

impl Pause {
    /// Returns whether a standby that is paused at `now` is to start again now. It is asked each [`ASK_EVERY`].
    fn ends(&mut self, now: BootTime, others: Others) -> bool {
        let since = *self.since.get_or_insert(now);
        if !others.is_one_away {
            self.away_since = None;
        } else if now.since(*self.away_since.get_or_insert(now)) < PATIENCE {
            self.waited_at = Some(now);
            return false;
        }
        let begun = self.waited_at.unwrap_or(since);
        let cycle = TURN.saturating_mul(others.count.saturating_add(1));
        let into_cycle = now.since(begun).as_millis() % cycle.as_millis();
        let own = TURN.saturating_mul(others.before).as_millis();
        (own..own + BEGIN.as_millis()).contains(&into_cycle)
    }
}

/// Looks again and again. Ends with the node.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut pause = Pause::default();
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        match &shared.postgres.last_observation().facts {
            PostgresFacts::Live(live) if live.in_recovery => {}
            PostgresFacts::Live(_) => {
                pause = Pause::default();
                continue;
            }
            _ => continue,
        }
        let lacking = match shared.postgres.postgres.paused_for_want_of(ASK_LIMIT).await {
            Ok(lacking) if lacking.is_empty() => {
                pause = Pause::default();
                continue;
            }
            Ok(lacking) => lacking.join(", "),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "whether replay is paused is not known");
                continue;
            }
        };
        let now = boot_now();
        if !pause.ends(now, Others::of(shared.me, &shared.state(), &shared.pulses.view(), now)) {
            continue;
        }
        tracing::warn!(
            "the active node has more of {lacking} than this standby, whose replay has paused for that: its PostgreSQL is started again \
             with as many. Set the same on every node, the active one last"
        );
        // no role is at stake: PostgreSQL promotes nobody in this state
        let stopped = match shared.guard.client() {
            Ok(guard) => guard.stop(StopMode::Fast { limit: STOP_LIMIT }).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!(error = %chain(&error), "PostgreSQL is not stopped; it is tried again");
        }
        shared.postgres.note_change();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP_MS: u64 = 500;

    fn at(ms: u64) -> BootTime {
        BootTime::from_millis(ms)
    }

    /// When a standby asks that saw its pause at second 100 and has `others`, in seconds after that, within ten minutes.
    fn begins(others: impl Fn(u64) -> Others) -> Vec<u64> {
        let mut pause = Pause::default();
        let asks = (0..600).step_by(5);
        asks.filter(|second| pause.ends(at(1000 * (100 + second)), others(*second))).collect()
    }

    #[test]
    fn each_standby_has_a_turn_and_the_first_has_it_at_once() {
        let firsts = |before, count| begins(|_| Others { before, count, is_one_away: false })[..5].to_vec();
        assert_eq!(firsts(0, 0), [0, 5, 20, 25, 40], "the only one");
        assert_eq!(firsts(0, 1), [0, 5, 40, 45, 80]);
        assert_eq!(firsts(1, 1), [20, 25, 60, 65, 100]);
        assert_eq!(firsts(3, 3), [60, 65, 140, 145, 220]);
    }

    #[test]
    fn a_turn_passes_while_another_standby_is_away_but_not_for_ever() {
        let away_until = |end: u64| begins(move |second| Others { before: 1, count: 1, is_one_away: second < end })[0];
        assert_eq!(
            away_until(24),
            40,
            "20 s after the third was last seen away, so that two that wait for it do not begin together"
        );
        assert_eq!(away_until(30), 45);
        assert_eq!(away_until(u64::MAX), 105, "the first turn after its patience");
    }

    #[test]
    fn the_time_of_an_earlier_pause_does_not_count() {
        let second = Others { before: 1, count: 1, is_one_away: false };
        let mut pause = Pause::default();
        assert!(!pause.ends(at(0), second));
        assert!(pause.ends(at(20_000), second));
        pause = Pause::default();
        assert!(!pause.ends(at(25_000), second), "its turn comes after those before it once more");
        assert!(pause.ends(at(45_000), second));
    }

    /// Aim: of standbys that pause together no two are away at once, and all are back. Method: each asks at a time of its own; a start
    /// takes from half a second to more than a turn, in which it does not stream; the active node tells of that a step later. The last one may
    /// have been away for long when the others pause, and comes back paused.
    #[test]
    fn no_two_standbys_start_at_once() {
        for count in 2..=4_u32 {
            for start_ms in [STEP_MS, 3000, 12_000, 26_000] {
                for offsets in 0..5_u64.pow(count) {
                    for late_ms in [0, 14_000, 23_000, 61_000] {
                        start_all(count, start_ms, offsets, late_ms);
                    }
                }
            }
        }
    }

    fn start_all(count: u32, start_ms: u64, offsets: u64, late_ms: u64) {
        let mut pauses: Vec<Pause> = (0..count).map(|_| Pause::default()).collect();
        let mut begun_at: Vec<Option<u64>> = vec![None; count as usize];
        let told =
            format!("{count} standbys, starts of {start_ms} ms, offsets {offsets}, the last one away for {late_ms} ms");
        for now in (0..600_000).step_by(500) {
            for node in 0..count as usize {
                let offset = 1000 * (offsets / 5_u64.pow(node as u32) % 5);
                let is_late = |at: u64| at < late_ms;
                if now % 5000 != offset || begun_at[node].is_some() || node + 1 == count as usize && is_late(now) {
                    continue;
                }
                let starts = |at: u64| begun_at.iter().flatten().any(|begun| (*begun..begun + start_ms).contains(&at));
                let is_one_away = |at: u64| starts(at) || is_late(at);
                let is_one_told_away = now.checked_sub(STEP_MS).map_or(late_ms > 0, is_one_away);
                let others = Others { before: node as u32, count: count - 1, is_one_away: is_one_told_away };
                if pauses[node].ends(at(now), others) {
                    assert!(!is_one_away(now), "two at once at {now} ms: {told}");
                    begun_at[node] = Some(now);
                }
            }
            if begun_at.iter().all(Option::is_some) {
                return;
            }
        }
        panic!("one never started: {told}");
    }
}
