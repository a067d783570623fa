//! What each member's log was heard to hold, by the leader that sent it: a log that lacks some of that afterwards was put back.
//!
//! Raft rests on logs that keep what they have confirmed. A machine whose disk is put back, from a snapshot of it or from a backup of
//! the data directory, breaks that, and is the one case in which this shows. Its log is filled up again, and the operator is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::types::{LogId, TypeConfig, Vote};
use crate::types::NodeId;

/// A member's log lacks what the member had confirmed to this leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutBack {
    /// The member.
    pub node: NodeId,
    /// The index up to which it had confirmed.
    pub confirmed: u64,
    /// An index that it had confirmed and that is not there.
    pub lacks: u64,
}

/// The highest index that each member has confirmed to this node under its present vote. Cheap to clone: all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Confirmed {
    by_member: Arc<Mutex<BTreeMap<NodeId, Heard>>>,
    told: Arc<watch::Sender<Vec<PutBack>>>,
}

/// What was heard of one member's log.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    /// How many times it was found to have been put back.
    put_backs: u64,
    /// The highest index confirmed since the last time, and under which vote.
    confirmed: Option<(Vote, u64)>,
}

/// A request on its way: what its member had confirmed before, and what it will have confirmed if it succeeds.
pub(super) struct Sent {
    node: NodeId,
    vote: Vote,
    put_backs: u64,
    before: Option<u64>,
    prev: Option<u64>,
    last: Option<u64>,
}

impl Confirmed {
    pub(super) fn new() -> Self {
        Self { by_member: Arc::default(), told: Arc::new(watch::channel(Vec::new()).0) }
    }

    /// Waits until logs were found to have been put back, and returns each once.
    pub(super) async fn put_back(&self) -> Vec<PutBack> {
        let mut found = self.told.subscribe();
        // the sender is held here
        let _ = found.wait_for(|found| !found.is_empty()).await;
        drop(found);
        let mut taken = Vec::new();
        self.told.send_if_modified(|found| {
            taken = std::mem::take(found);
            false
        });
        taken
    }

    /// Notes that `request` goes out to `node`.
    pub(super) fn sends(&self, node: NodeId, request: &AppendEntriesRequest<TypeConfig>) -> Sent {
        let index = |id: Option<LogId>| id.map(|id| id.index);
        let heard = self.by_member.lock().get(&node).copied().unwrap_or_default();
        Sent {
            node,
            vote: request.vote,
            put_backs: heard.put_backs,
            before: heard.confirmed.filter(|(vote, _)| *vote == request.vote).map(|(_, index)| index),
            prev: index(request.prev_log_id),
            last: index(request.entries.last().map(|entry| entry.log_id)).max(index(request.prev_log_id)),
        }
    }

    /// Takes the answer to what was `sent`.
    pub(super) fn hears(&self, sent: &Sent, response: &AppendEntriesResponse<TypeConfig>) {
        let mut by_member = self.by_member.lock();
        let heard = by_member.entry(sent.node).or_default();
        if heard.put_backs != sent.put_backs {
            // asked of a log that was put back since: that is told already, and what it held then says nothing of now
            return;
        }
        let confirmed = match response {
            AppendEntriesResponse::Success => sent.last,
            AppendEntriesResponse::PartialSuccess(last) => last.map(|id| id.index),
            // what it had confirmed before it was asked can be no answer that came late
            AppendEntriesResponse::Conflict => {
                if let (Some(confirmed), Some(lacks)) = (sent.before, sent.prev)
                    && lacks <= confirmed
                {
                    *heard = Heard { put_backs: heard.put_backs + 1, confirmed: None };
                    let put_back = PutBack { node: sent.node, confirmed, lacks };
                    self.told.send_modify(|found| found.push(put_back));
                }
                return;
            }
            AppendEntriesResponse::HigherVote(_) => return,
        };
        let Some(confirmed) = confirmed else { return };
        heard.confirmed = match heard.confirmed {
            Some((vote, index)) if vote == sent.vote => Some((vote, index.max(confirmed))),
            _ => Some((sent.vote, confirmed)),
        };
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::leader_id_std::CommittedLeaderId;

    use super::*;
    use crate::raft::types::Entry;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId { term: 1 }, index)
    }

    fn request(vote: u64, prev: u64, entries: std::ops::Range<u64>) -> AppendEntriesRequest<TypeConfig> {
        let entries =
            entries.map(|index| Entry { log_id: id(index), payload: openraft::EntryPayload::Blank }).collect();
        AppendEntriesRequest { vote: Vote::new(vote, 1), prev_log_id: Some(id(prev)), entries, leader_commit: None }
    }

    /// Plays `asked` one after the other, and returns what was told.
    fn play(asked: &[(AppendEntriesRequest<TypeConfig>, AppendEntriesResponse<TypeConfig>)]) -> Vec<PutBack> {
        let confirmed = Confirmed::new();
        for (request, response) in asked {
            let sent = confirmed.sends(NodeId(3), request);
            confirmed.hears(&sent, response);
        }
        confirmed.told.borrow().clone()
    }

    use AppendEntriesResponse::{Conflict, PartialSuccess, Success};

    #[test]
    fn a_log_that_lacks_what_it_had_confirmed_was_put_back() {
        let told = play(&[(request(5, 7, 8..10), Success), (request(5, 8, 0..0), Conflict)]);
        assert_eq!(told, [PutBack { node: NodeId(3), confirmed: 9, lacks: 8 }]);
        let in_part = play(&[(request(5, 7, 8..10), PartialSuccess(Some(id(8)))), (request(5, 8, 0..0), Conflict)]);
        assert_eq!(in_part, [PutBack { node: NodeId(3), confirmed: 8, lacks: 8 }]);
    }

    #[tokio::test]
    async fn each_is_told_once_also_where_two_were_found_before_anybody_asked() {
        let confirmed = Confirmed::new();
        for node in [NodeId(2), NodeId(3)] {
            confirmed.hears(&confirmed.sends(node, &request(5, 7, 8..10)), &Success);
            confirmed.hears(&confirmed.sends(node, &request(5, 8, 0..0)), &Conflict);
        }
        let told: Vec<NodeId> = confirmed.put_back().await.iter().map(|put_back| put_back.node).collect();
        assert_eq!(told, [NodeId(2), NodeId(3)]);
        assert_eq!(*confirmed.told.borrow(), []);
    }

    #[test]
    fn a_search_for_what_a_log_holds_is_none() {
        assert_eq!(play(&[(request(5, 9, 0..0), Conflict), (request(5, 4, 0..0), Conflict)]), [], "a new leader");
        assert_eq!(play(&[(request(5, 7, 8..10), Success), (request(5, 10, 0..0), Conflict)]), [], "not confirmed");
        let anew = [(request(5, 7, 8..10), Success), (request(6, 8, 0..0), Conflict)];
        assert_eq!(play(&anew), [], "this node leads anew, and may have sent others in between");
    }

    #[test]
    fn a_conflict_that_is_older_than_the_confirmation_is_none() {
        let confirmed = Confirmed::new();
        let heartbeat = confirmed.sends(NodeId(3), &request(5, 9, 0..0));
        confirmed.hears(&confirmed.sends(NodeId(3), &request(5, 7, 8..10)), &Success);
        confirmed.hears(&heartbeat, &Conflict);
        assert_eq!(*confirmed.told.borrow(), []);
    }

    #[test]
    fn an_answer_that_is_older_than_the_finding_counts_for_nothing() {
        let told = |late: AppendEntriesResponse<TypeConfig>, is_filled_up: bool| {
            let confirmed = Confirmed::new();
            let asks = |prev, entries| confirmed.sends(NodeId(3), &request(5, prev, entries));
            confirmed.hears(&asks(7, 8..10), &Success);
            let heartbeat = asks(9, 0..0);
            confirmed.hears(&asks(8, 0..0), &Conflict);
            assert_eq!(confirmed.told.borrow().len(), 1);
            if is_filled_up {
                confirmed.hears(&asks(4, 5..10), &Success);
                confirmed.hears(&heartbeat, &late);
            } else {
                confirmed.hears(&heartbeat, &late);
                confirmed.hears(&asks(7, 0..0), &Conflict);
            }
            confirmed.told.borrow().len()
        };
        assert_eq!(told(Conflict, true), 1, "the log was filled up again meanwhile");
        assert_eq!(told(Success, false), 1, "it held that before, and the search for what it holds goes on");
        let again = [(request(5, 7, 8..10), Success), (request(5, 8, 0..0), Conflict)];
        assert_eq!(play(&[again.clone(), again].concat()).len(), 2, "a second time is told");
    }
}
