//! L12's fetch: where the standby with the most log cannot become active, another first gets that log from it.
//!
//! No record and no order is needed: each barred node looks at what the others state, as the leader does, and sees that the leader
//! can choose nobody. It then lets its WAL receiver read from that standby until it holds as much, cuts it again, and states its
//! position anew; the leader then finds one that is able among those with the most log.
//!
//! Why this is safe:
//! - *The bar holds.* The source has stated its position under the bar, so its own receiver is gone and nothing that the old active
//!   node writes from then on reaches it, nor this node through it. This node's one connection goes to the source; the key that its
//!   old connection string named is gone and stays away, as a fetch has a key file of its own.
//! - *It acknowledges nothing.* A standby that sends log on does not pass its receivers' words on to the active node. And should the
//!   source itself be made active meanwhile, the connection's name is none that commits wait for. So its role may always log in,
//!   while that of the standbys may be shut out in the source's data: a primary that died amid a change of names (L18) wrote so.
//! - *What was stated stays true.* By L13 a timeline has one maker, so on one timeline the shorter log is the beginning of the
//!   longer one; on two, the record says where the later one began. A node whose log is not the beginning of the source's does not
//!   fetch. Its log only grows, and every position that it stated before remains a lower bound. While it grows nothing is stated,
//!   so nobody is chosen for less than it holds.
//! - *It ends.* The goal is a position that stands still. Who applies another record, no longer hears the source, hears it say
//!   something else, or gets nothing for `fetch_limit`, cuts the receiver as at any bar, states what it has, and waits before it
//!   tries again. Nothing is promoted while a receiver is there. No fetch outlives the daemon: one that starts finds a
//!   receiver that nothing speaks for, and cuts it.

use std::collections::BTreeMap;

use super::{Draft, is_able};
use crate::ha::durable::DataState;
use crate::ha::pulse::{PeerView, Report};
use crate::ha::quorum::{Answer, covers_every_commit, majority_of_every, may_lack_commits};
use crate::ha::record::Assignment;
use crate::ha::rules::Mutation;
use crate::ha::view::{Followed, NodeView};
use crate::types::{NodeId, WalPosition};

/// Log that this node is to fetch.
pub(super) struct Fetch {
    /// From whom.
    pub(super) from: NodeId,
    /// Up to where.
    pub(super) until: WalPosition,
    /// Whether the receiver has been told to.
    pub(super) is_under_way: bool,
}

/// Returns what this node, which refuses the record `a`, should fetch now; `draft` learns when to look again.
pub(super) fn wanted(view: &NodeView, a: &Assignment, draft: &mut Draft<'_>) -> Option<Fetch> {
    let look = Look { view, a };
    let is_running = view.guard.has_processes && view.postgres.in_recovery == Some(true) && view.busy().is_none();
    let is_willing = view.durable.data == DataState::Intact && is_able(view) && !view.kept_back.contains(&view.me);
    if !is_running || !is_willing || look.is_holder_back() || view.rules.broken(Mutation::NeverFetch) {
        return None;
    }
    // the former active node may be the source too, once it has resigned
    let is_fetch = |it: &Followed| it.node != a.node || view.postgres.fetch_moved_at.is_some();
    let followed = view.postgres.follows.filter(|it| it.generation == a.generation && is_fetch(it));
    match followed {
        Some(followed) => {
            let ends_at = view.postgres.fetch_moved_at? + view.timing.fetch_limit;
            draft.look_at(ends_at);
            let until = look.position_to_fetch(followed.node)?;
            let has_all = view.postgres.position.is_some_and(|own| own >= until);
            (!has_all && view.now <= ends_at).then_some(Fetch { from: followed.node, until, is_under_way: true })
        }
        None => {
            if let Some(again_at) = view.postgres.fetch_ended_at.map(|at| at + view.timing.fetch_again)
                && again_at > view.now
            {
                draft.look_at(again_at);
                return None;
            }
            look.begin()
        }
    }
}

struct Look<'a> {
    view: &'a NodeView,
    a: &'a Assignment,
}

impl Look<'_> {
    /// Finds the source where the leader, by what this node knows, has all answers that it needs and nobody to choose.
    fn begin(&self) -> Option<Fetch> {
        let view = self.view;
        let own = view.postgres.position?;
        let mut answers: BTreeMap<NodeId, Answer> = self.peers().filter_map(|it| self.answer_of(it)).collect();
        let resigned = view.durable.resigned;
        answers.insert(view.me, Answer { incarnation: view.durable.incarnation, position: own, resigned });
        let is_stuck = self.has_majority_barred()
            && covers_every_commit(self.a, &answers).is_ok()
            && may_lack_commits(self.a, &answers, own);
        let is_mutated = view.rules.broken(Mutation::FetchFromUnbarred);
        if !is_stuck && !is_mutated {
            return None;
        }
        // the furthest of those who can become active fetches: the least has to come
        let is_furthest = |(node, peer): (NodeId, &PeerView)| {
            // who fetches already states nothing, and says all the same how far it is
            let is_ahead = peer.report.data.is_some_and(|data| data.is_intact && data.position > Some(own));
            !(is_ahead && self.is_able(node, peer))
        };
        if !self.peers().all(is_furthest) {
            return None;
        }
        let sources = self.peers().filter_map(|(node, _)| Some((node, self.position_to_fetch(node)?)));
        let (from, until) = sources.max_by_key(|(node, at)| (*at, std::cmp::Reverse(*node)))?;
        self.is_beginning_of(own, until).then_some(Fetch { from, until, is_under_way: false })
    }

    /// Where the log of `node` ends, if that is here and cannot become active, and nobody who holds as much can.
    fn position_to_fetch(&self, node: NodeId) -> Option<WalPosition> {
        let peer = self.view.pulse.peers.get(&node)?;
        let until = self.stated_by(&peer.report)?;
        let can_be_chosen = |(other, peer): (NodeId, &PeerView)| {
            self.is_able(other, peer) && self.stated_by(&peer.report).is_some_and(|at| at >= until)
        };
        let is_source = peer.is_fresh(self.view.now, &self.view.timing) && !self.is_able(node, peer);
        (is_source && !self.peers().any(can_be_chosen)).then_some(until)
    }

    fn peers(&self) -> impl Iterator<Item = (NodeId, &PeerView)> {
        self.view.pulse.peers.iter().map(|(node, peer)| (*node, peer))
    }

    /// Where a node's log ended under the bar.
    fn stated_by(&self, report: &Report) -> Option<WalPosition> {
        let data = report.data.filter(|data| data.is_intact)?;
        if self.view.rules.broken(Mutation::FetchFromUnbarred) {
            return data.position;
        }
        data.stated.filter(|stated| stated.under >= self.a.generation).map(|stated| stated.position)
    }

    fn answer_of(&self, (node, peer): (NodeId, &PeerView)) -> Option<(NodeId, Answer)> {
        let position = self.stated_by(&peer.report)?;
        let incarnation = peer.report.data?.incarnation;
        Some((node, Answer { incarnation, position, resigned: peer.report.resigned }))
    }

    /// Whether a peer could be chosen, were it among those with the most log.
    fn is_able(&self, node: NodeId, peer: &PeerView) -> bool {
        let is_here = peer.is_fresh(self.view.now, &self.view.timing);
        is_here && peer.report.is_fit && !self.view.kept_back.contains(&node)
    }

    fn has_majority_barred(&self) -> bool {
        let (view, generation) = (self.view, self.a.generation);
        majority_of_every(&self.a.voter_sets, |voter| {
            let said = |report: &Report| {
                report.barred >= generation || (voter == self.a.node && report.resigned >= generation)
            };
            voter == view.me || view.pulse.peers.get(&voter).is_some_and(|peer| said(&peer.report))
        })
    }

    /// Whether the active node is heard and has not given up: it goes on, by a renewal, or gives up.
    fn is_holder_back(&self) -> bool {
        self.view.pulse.peers.get(&self.a.node).is_some_and(|peer| {
            peer.is_fresh(self.view.now, &self.view.timing) && peer.report.resigned < self.a.generation
        })
    }

    /// Whether a log that ends at `own` is the beginning of one that ends at `other` (L13).
    fn is_beginning_of(&self, own: WalPosition, other: WalPosition) -> bool {
        let is_of_record =
            other.timeline == self.a.timeline && own.timeline == self.a.start.timeline && own.lsn <= self.a.start.lsn;
        (own.timeline == other.timeline && own.lsn < other.lsn) || is_of_record
    }
}
