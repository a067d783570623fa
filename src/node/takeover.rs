//! How this node last took the active role over, part by part: it tells where the time of an outage went.

use serde::{Deserialize, Serialize};

use crate::ha::plan::Plan;
use crate::ha::pulse::PeerView;
use crate::ha::view::NodeView;
use crate::types::Generation;

/// When each part was over, by this node's wall clock in milliseconds since 1970; absent where this node did not see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// The generation under which this node became active.
    pub generation: Generation,
    /// The former active node was not heard any more, or had said that it gives the role up.
    pub detected_at_ms: Option<u64>,
    /// This node had refused the former generation for good (L8, L9).
    pub barred_at_ms: Option<u64>,
    /// The record named this node.
    pub assigned_at_ms: Option<u64>,
    /// PostgreSQL was promoted.
    pub promoted_at_ms: Option<u64>,
    /// A standby streamed from it and had caught up.
    pub streaming_at_ms: Option<u64>,
    /// The record was opened: enough standbys held the log up to the promotion (L16).
    pub opened_at_ms: Option<u64>,
}

/// Takes the time of each part, round by round of the control loop.
#[derive(Debug, Default)]
pub(super) struct TakeoverWatch {
    /// What was seen of the end of the generation that another node is active under.
    ending: Takeover,
    last: Option<Takeover>,
}

/// What one round of the control loop shows of the role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    generation: Generation,
    /// The generation that its promotion was made under.
    promoted: Generation,
    opened: bool,
    is_mine: bool,
    /// The active node is suspected, or has resigned.
    is_ending: bool,
    is_barred: bool,
    is_primary: bool,
    is_streamed_from: bool,
}

impl Seen {
    /// Returns none without a record.
    pub(super) fn of(view: &NodeView, plan: &Plan) -> Option<Self> {
        let record = &view.record.as_ref()?.assignment;
        let report = &plan.stance.report;
        let has_resigned = |peer: &PeerView| peer.report.resigned >= record.generation;
        Some(Self {
            generation: record.generation,
            promoted: record.promoted,
            opened: record.opened,
            is_mine: record.node == view.me,
            is_ending: report.suspects >= record.generation
                || view.pulse.peers.get(&record.node).is_some_and(has_resigned),
            is_barred: view.durable.barred >= record.generation,
            is_primary: view.postgres.in_recovery == Some(false),
            is_streamed_from: report.active.as_ref().is_some_and(|active| !active.streaming.is_empty()),
        })
    }
}

impl TakeoverWatch {
    /// Takes note of one round, at `now_ms` by the wall clock. Returns how this node last took over; none where it has not since its
    /// start.
    pub(super) fn look(&mut self, seen: Option<Seen>, now_ms: u64) -> Option<Takeover> {
        let seen = seen?;
        if !seen.is_mine {
            self.look_at_end(seen, now_ms);
            return self.last;
        }
        let is_new = self.last.is_none_or(|last| last.generation < seen.generation);
        // a renewal of what it has is none, nor is a role that it had before its daemon started
        if seen.promoted == seen.generation && is_new && !(seen.opened && self.last.is_none()) {
            let ended = std::mem::take(&mut self.ending);
            self.last = Some(Takeover { generation: seen.generation, assigned_at_ms: Some(now_ms), ..ended });
        }
        if let Some(last) = self.last.as_mut().filter(|last| last.generation == seen.generation) {
            let parts = [
                (seen.is_primary, &mut last.promoted_at_ms),
                (seen.is_streamed_from, &mut last.streaming_at_ms),
                (seen.opened, &mut last.opened_at_ms),
            ];
            for (_, at) in parts.into_iter().filter(|(is_over, _)| *is_over) {
                at.get_or_insert(now_ms);
            }
        }
        self.last
    }

    fn look_at_end(&mut self, seen: Seen, now_ms: u64) {
        if self.ending.generation != seen.generation {
            self.ending = Takeover { generation: seen.generation, ..Takeover::default() };
        }
        if seen.is_ending || seen.is_barred {
            self.ending.detected_at_ms.get_or_insert(now_ms);
        } else {
            // it was heard again
            self.ending.detected_at_ms = None;
        }
        if seen.is_barred {
            self.ending.barred_at_ms.get_or_insert(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(generation: u64) -> Seen {
        Seen { generation: Generation(generation), promoted: Generation(generation), ..Seen::default() }
    }

    #[test]
    fn each_part_has_the_time_of_the_round_that_saw_it_first() {
        let mut watch = TakeoverWatch::default();
        let other = Seen { opened: true, ..under(5) };
        let mine = Seen { is_mine: true, ..under(6) };
        let rounds = [
            (other, 10),
            (Seen { is_ending: true, ..other }, 20),
            // heard again, and lost for good
            (other, 30),
            (Seen { is_ending: true, ..other }, 40),
            (Seen { is_ending: true, is_barred: true, ..other }, 50),
            (mine, 60),
            (Seen { is_primary: true, ..mine }, 70),
            (Seen { is_primary: true, is_streamed_from: true, ..mine }, 80),
            (Seen { is_primary: true, is_streamed_from: true, opened: true, ..mine }, 90),
        ];
        let told: Vec<Option<Takeover>> = rounds.into_iter().map(|(seen, at)| watch.look(Some(seen), at)).collect();
        assert_eq!(told[4], None, "it is not active yet");
        let expected = Takeover {
            generation: Generation(6),
            detected_at_ms: Some(40),
            barred_at_ms: Some(50),
            assigned_at_ms: Some(60),
            promoted_at_ms: Some(70),
            streaming_at_ms: Some(80),
            opened_at_ms: Some(90),
        };
        assert_eq!(told[8], Some(expected));
        let renewed =
            Seen { generation: Generation(7), is_primary: true, is_streamed_from: true, opened: true, ..mine };
        assert_eq!(watch.look(Some(renewed), 100), Some(expected), "a renewal takes nothing over");
    }

    #[test]
    fn a_role_that_was_there_before_the_daemon_was_not_taken_over() {
        let had = Seen { is_mine: true, is_primary: true, opened: true, ..under(5) };
        assert_eq!(TakeoverWatch::default().look(Some(had), 10), None);
    }
}
