//! What this node tells the history: what happened, and why.

use std::sync::Arc;

use super::database::Parted;
use super::names::name_of;
use super::{EVENT_LIMIT, Shared};
use crate::ha::assign::AssignWait;
use crate::ha::durable::DataState;
use crate::ha::record::{Event, EventKind, ResignReason, WhyRecord};
use crate::ha::view::{Followed, Lineage};
use crate::kv::Command;
use crate::raft::PutBack;
use crate::sys::clock::wall_now;
use crate::types::{Generation, Lsn, NodeId, Timeline, WalPosition};

impl Shared {
    /// Returns an event of this node, now.
    pub(super) fn event(&self, kind: EventKind, generation: Generation, why: WhyRecord) -> Event {
        let at_ms = u64::try_from(wall_now().as_millis()).unwrap_or(u64::MAX);
        Event { at_ms, by: self.me, generation, kind: kind.as_str().to_owned(), why }
    }

    /// An operator set something that decisions go by. None where it was so already.
    pub(super) fn event_of_setting(&self, kind: EventKind, facts: Vec<String>, step: String) -> Option<Event> {
        let generation = self.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        let why = WhyRecord { facts, rule: "an operator's order".to_owned(), step };
        (!why.facts.is_empty()).then(|| self.event(kind, generation, why))
    }

    pub(super) fn event_of_resignation(&self, generation: Generation, reason: &ResignReason) -> Event {
        let why = WhyRecord {
            facts: vec![reason.to_string()],
            rule: "L7".to_owned(),
            step: format!("{} ends generation {generation}", self.name),
        };
        self.event(EventKind::Resigned, generation, why)
    }

    pub(super) fn event_of_question(&self, generation: Generation, wait: &AssignWait) -> Event {
        let why = WhyRecord {
            facts: vec!["the active role was given up too often within an hour".to_owned()],
            rule: "role_changes_per_hour".to_owned(),
            step: format!("nobody is made active: the cluster waits for {wait}"),
        };
        self.event(EventKind::PersonAsked, generation, why)
    }

    pub(super) fn event_of_fetch(&self, from: Followed, until: Lsn) -> Event {
        let source = name_of(from.node, &self.state());
        let why = WhyRecord {
            facts: vec![format!("{source} held the most log and could not become active")],
            rule: "L12".to_owned(),
            step: format!("{} fetched the log of {source} up to {until}", self.name),
        };
        self.event(EventKind::Fetched, from.generation, why)
    }

    /// `copied_from` is the node whose database was copied; none where this node's own was rewound.
    pub(super) fn event_of_rebuild(&self, generation: Generation, copied_from: Option<NodeId>, fact: String) -> Event {
        let how = match copied_from {
            Some(node) => format!("copied from {}", name_of(node, &self.state())),
            None => "rewound to the active node's history".to_owned(),
        };
        let why = WhyRecord {
            facts: vec![fact],
            rule: "L19".to_owned(),
            step: format!("the database of {} was {how}", self.name),
        };
        self.event(EventKind::Rebuilt, generation, why)
    }

    fn event_of_put_back(&self, put_back: PutBack) -> Event {
        let state = self.state();
        let (name, PutBack { confirmed, lacks, .. }) = (name_of(put_back.node, &state), put_back);
        let why = WhyRecord {
            facts: vec![
                format!("{name} had confirmed the cluster's log up to index {confirmed}, and has nothing from {lacks} on"),
                "its log and its database are brought up to date by themselves; until then, the failure of another machine can lose commits. \
                 Next time, remove the member and let it join again, rather than putting back a snapshot of its machine or a backup"
                    .to_owned(),
            ],
            rule: "a member keeps what it has confirmed".to_owned(),
            step: format!("the disk of {name} was put back to an earlier state: it is brought up to date"),
        };
        let generation = state.assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        self.event(EventKind::NodePutBack, generation, why)
    }

    /// Adds an event to the history, beside whatever goes on; the log is warned of it where nobody wanted it so.
    pub(super) fn tell(self: &Arc<Self>, event: Event, is_odd: bool) {
        let because = event.why.facts.join("; ");
        if is_odd {
            tracing::warn!(kind = event.kind, generation = %event.generation, because, "{}", event.why.step);
        } else {
            tracing::info!(kind = event.kind, generation = %event.generation, because, "{}", event.why.step);
        }
        let shared = Arc::clone(self);
        self.tasks.spawn("event", async move {
            if let Err(error) = shared.write(Command::AppendEvents, Some(event), EVENT_LIMIT).await {
                tracing::info!(%error, "an event is missing from the history");
            }
        });
    }
}

/// Tells of members whose disk was put back, as long as this node leads and they answer it. Ends with the node.
pub(super) async fn tell_of_put_back(shared: Arc<Shared>) {
    loop {
        for put_back in shared.consensus.put_back().await {
            shared.tell(shared.event_of_put_back(put_back), true);
        }
    }
}

/// Says why the data is rebuilt, which it was before that began.
pub(super) fn why_rebuilt(data: DataState, parted: Option<Parted>) -> String {
    match (data, parted) {
        (DataState::Empty, _) => "this node held no database yet".to_owned(),
        (_, Some(Parted { fork, own })) => {
            format!("this node's log, which ended at {own}, had parted from the active node's at {fork}")
        }
        (DataState::Rebuilding { until: None }, None) => {
            "an earlier rebuild of the database was not finished".to_owned()
        }
        (DataState::Rebuilding { until: Some(_) } | DataState::Intact, None) => {
            "this node's log has nothing in common with the active node's, or what it lacks of that is gone".to_owned()
        }
    }
}

/// Says what came of comparing this node's log, which ends at `own`, with that of the primary on `timeline`.
pub(super) fn compared(own: WalPosition, timeline: Timeline, verdict: Lineage, parted: Option<Parted>) -> String {
    match (verdict, parted) {
        (Lineage::Follows, _) => {
            format!("this node's log ends at {own} and is part of timeline {timeline}: it follows")
        }
        (Lineage::Diverged, Some(Parted { fork, .. })) => {
            format!("this node's log, which ends at {own}, parted at {fork} from timeline {timeline}: it is rebuilt")
        }
        (Lineage::Diverged, None) => {
            format!(
                "this node's log, which ends at {own}, has nothing in common with timeline {timeline}: it is rebuilt"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Lsn;

    #[test]
    fn a_fresh_join_is_not_told_as_a_loss() {
        let parted = Parted { fork: Lsn(0x10), own: WalPosition { timeline: Timeline(3), lsn: Lsn(0x20) } };
        let intact = why_rebuilt(DataState::Intact, Some(parted));
        assert_eq!(
            intact,
            "this node's log, which ended at 0/20 on timeline 3, had parted from the active node's at 0/10"
        );
        assert_eq!(
            why_rebuilt(DataState::Rebuilding { until: None }, Some(parted)),
            intact,
            "a try that was interrupted"
        );
        for (data, words) in [
            (DataState::Empty, "held no database yet"),
            (DataState::Rebuilding { until: None }, "was not finished"),
            (DataState::Rebuilding { until: Some(Lsn(1)) }, "nothing in common"),
            (DataState::Intact, "what it lacks of that is gone"),
        ] {
            assert!(why_rebuilt(data, None).contains(words), "{data:?}");
        }
    }
}
