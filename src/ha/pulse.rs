//! Pulses, acknowledgements and the lease that they carry: rules L1 to L3 and the promise of L2.
//!
//! [`PulseCore`] is the whole state of a node's pulses, driven from outside with the present instant, what arrived and the
//! node's [`Stance`]. It is shared by the pulse thread and by the simulator.
//!
//! Every datagram echoes the newest one received from its addressee. The echo is what makes a report trustworthy in time: a
//! report that echoes our datagram was made after that was sent, so its age is counted from our own sending. Replayed,
//! reordered or delayed datagrams can therefore look older than they are, never younger. An acknowledgement is an echo, in an
//! immediate reply, that names the generation granted and for how long; the lease counts from the stamp of the datagram it echoes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quorum::majority_of;
use super::record::{CommitSet, DataMember, ResignReason};
use super::rules::{Mutation, Rules};
use super::state::NodeState;
use super::timing::Timing;
use super::trouble::Trouble;
use crate::types::{
    BootId, BootTime, ClusterGeneration, DaemonIncarnation, DataIncarnation, Generation, NodeId, WalPosition,
};

/// How many of one's own sendings are remembered: at ten pulses a second and peer, several leases' worth.
const STAMPS_KEPT: usize = 4096;

/// What one node says to another, sealed by the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Which life of the cluster the sender belongs to.
    pub cluster_generation: ClusterGeneration,
    /// The sender.
    pub from: NodeId,
    /// The sender's boot.
    pub boot: BootId,
    /// The sender's start.
    pub incarnation: DaemonIncarnation,
    /// Counts the sender's datagrams in this start, to whomever they went.
    pub sequence: u64,
    /// The generation that the sender holds and asks to go on holding, and for how long at a time (L3).
    pub asks: Option<Tenure>,
    /// Whether this answers a datagram; answers are not answered.
    pub is_reply: bool,
    /// The newest datagram received from the addressee.
    pub echo: Option<Echo>,
    /// The sender's word about itself.
    pub report: Report,
}

/// A generation, and how long it is held from the sending of the datagram that asks for it (L1).
///
/// The span travels with each wish and each grant: whatever the nodes believe of the cluster's options at that moment, both sides
/// count with the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// The generation.
    pub generation: Generation,
    /// For how long.
    pub span: Duration,
}

/// Proof that a datagram had been received, and what is granted to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The boot of the datagram's sender.
    pub boot: BootId,
    /// The start of the datagram's sender.
    pub incarnation: DaemonIncarnation,
    /// The datagram.
    pub sequence: u64,
    /// What is granted, in an immediate reply to a datagram that asked for it: never for longer than was asked.
    pub grants: Option<Tenure>,
}

impl Echo {
    /// Returns the echo of a datagram with nothing granted.
    fn of((boot, incarnation, sequence): (BootId, DaemonIncarnation, u64)) -> Self {
        Self { boot, incarnation, sequence, grants: None }
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// What it is.
    pub state: NodeState,
    /// The generation of the newest record that it has applied.
    pub record: Generation,
    /// The generation whose active node it no longer hears; 0 for none (L8).
    pub suspects: Generation,
    /// The highest generation that it has barred.
    pub barred: Generation,
    /// The highest generation of its own that it has resigned.
    pub resigned: Generation,
    /// Why.
    pub resign_reason: Option<ResignReason>,
    /// Its data; absent on a witness and on an empty node.
    pub data: Option<DataReport>,
    /// What it holds as the active node.
    pub active: Option<ActiveReport>,
    /// Whose datagrams pass both ways between it and them, at present.
    pub hears: BTreeSet<NodeId>,
    /// Whether it is itself willing and able to become active.
    pub is_fit: bool,
    /// The generation that it would acknowledge now, were it asked; 0 for none. It is no acknowledgement (L2).
    pub grants: Generation,
    /// What is wrong with its machine.
    pub troubles: BTreeSet<Trouble>,
}

impl Report {
    /// Returns whether the node says nothing of a disk that takes no writes, or will soon take none.
    pub fn has_room(&self) -> bool {
        !self.troubles.iter().any(|trouble| trouble.is_of_disk())
    }
}

/// A node's word about its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Which life of it.
    pub incarnation: DataIncarnation,
    /// Whether it answers for what it holds (L19).
    pub is_intact: bool,
    /// Where its log ends, if known; may move.
    pub position: Option<WalPosition>,
    /// Where its log ends under a bar or after a resignation (L9, L10).
    pub stated: Option<StatedPosition>,
}

/// A position that no order of the generation `under`, or of an earlier one, can add acknowledged commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatedPosition {
    /// The highest generation that the node has barred or resigned.
    pub under: Generation,
    /// The end of its log.
    pub position: WalPosition,
}

/// The active node's word about its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveReport {
    /// The generation that its guard is armed for.
    pub generation: Generation,
    /// The log index of the record's last change that this is about: what is settled under one is not under the next.
    pub record: u64,
    /// The newest generation under which a majority acknowledged it.
    pub leased: Generation,
    /// Whether PostgreSQL is the primary.
    pub is_primary: bool,
    /// Whether k of the newest commit set hold all log up to the promotion, or none are waited for (L16).
    pub may_open: bool,
    /// The commit set whose names are in effect and whose members hold the log up to then (L18).
    pub settled: Option<CommitSet>,
    /// The standbys that stream and have caught up.
    pub streaming: BTreeSet<DataMember>,
}

/// How the node stands toward the role, as its control loop last decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stance {
    /// The generation to ask for, as its holder.
    pub asks: Option<Generation>,
    /// Until when the control loop's word to ask holds (L3).
    pub asks_until: BootTime,
    /// Whose pulses to acknowledge, and for which generation (L2).
    pub grants: Option<(NodeId, Generation)>,
    /// Until when the control loop's word to acknowledge holds (L3).
    pub grants_until: BootTime,
    /// The longest lease to acknowledge: what is on disk, so that a new start knows what it may have promised (L2).
    pub grants_span: Duration,
    /// The voter sets of the newest record.
    pub voter_sets: Vec<BTreeSet<NodeId>>,
    /// What to say.
    pub report: Report,
}

/// What is known of a peer by its datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Its newest report that proved its time by an echo.
    pub report: Report,
    /// The report was made after this instant of our clock.
    pub proved_at: BootTime,
}

impl PeerView {
    /// Returns whether the report is young enough to speak of the present (L8).
    pub fn is_fresh(&self, now: BootTime, timing: &Timing) -> bool {
        now.since(self.proved_at) <= timing.report_fresh
    }
}

/// What the control loop reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PulseView {
    /// The generation whose acknowledgements a majority gave, and when the lease that follows ends.
    pub lease: Option<(Generation, BootTime)>,
    /// Until when this node promised to support nobody else: an instant once said, which no option moves (L2).
    pub promise_end: BootTime,
    /// The longest lease that this node acknowledges, by the stance in effect.
    pub grants_span: Duration,
    /// The peers heard in this life of the daemon.
    pub peers: BTreeMap<NodeId, PeerView>,
}

/// What came of a datagram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// What to send at once.
    pub replies: Vec<(NodeId, Datagram)>,
    /// Whether the lease grew: the guard is to be told first of all.
    pub lease: Option<(Generation, BootTime)>,
    /// Whether the control loop should look: a peer's report changed, or a lease began.
    pub is_news: bool,
    /// A cluster generation higher than ours: this node has been left behind (L26).
    pub newer_cluster: Option<ClusterGeneration>,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    newest: Option<(BootId, DaemonIncarnation, u64)>,
    view: Option<PeerView>,
    /// What it acknowledged, and when a lease by that ends.
    granted: Option<(Generation, BootTime)>,
}

/// One node's pulses.
#[derive(Debug, Clone)]
pub struct PulseCore {
    me: NodeId,
    cluster_generation: ClusterGeneration,
    boot: BootId,
    incarnation: DaemonIncarnation,
    timing: Timing,
    rules: Rules,
    sequence: u64,
    stamps: VecDeque<BootTime>,
    peers: BTreeMap<NodeId, Peer>,
    stance: Stance,
    promise_end: BootTime,
    lease: Option<(Generation, BootTime)>,
    next_round: BootTime,
}

impl PulseCore {
    /// Returns the pulses of a daemon that started at `now`, with nobody heard and nothing to say yet, which may have acknowledged
    /// leases as long as `promised` before.
    pub fn new(
        me: NodeId,
        cluster_generation: ClusterGeneration,
        boot: BootId,
        incarnation: DaemonIncarnation,
        timing: Timing,
        promised: Duration,
        now: BootTime,
    ) -> Self {
        Self {
            me,
            cluster_generation,
            boot,
            incarnation,
            timing,
            rules: Rules::default(),
            sequence: 0,
            stamps: VecDeque::new(),
            peers: BTreeMap::new(),
            stance: Stance::default(),
            promise_end: now + Timing::promise_of(promised),
            lease: None,
            next_round: now,
        }
    }

    /// Replaces the peers; what is known of those that stay is kept.
    pub fn set_peers(&mut self, peers: &BTreeSet<NodeId>) {
        self.peers.retain(|node, _| peers.contains(node));
        for node in peers.iter().filter(|node| **node != self.me) {
            self.peers.entry(*node).or_default();
        }
    }

    /// Replaces the spans, as the cluster's options changed.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Replaces the rules in force: for the simulator, which leaves one out to see that it is missed.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Takes the control loop's decision. Returns what to send at once: a changed report or a new wish is not kept waiting.
    pub fn set_stance(&mut self, now: BootTime, stance: Stance) -> Vec<(NodeId, Datagram)> {
        let is_news = stance.report != self.stance.report || stance.asks != self.stance.asks;
        if stance.asks != self.stance.asks {
            // acknowledgements of another generation are of no use to this one
            self.lease = self.lease.filter(|(generation, _)| Some(*generation) == stance.asks);
        }
        self.stance = stance;
        self.refresh_lease(now);
        if is_news { self.round(now) } else { Vec::new() }
    }

    /// Returns when [`tick`](Self::tick) is due.
    pub fn next_tick(&self) -> BootTime {
        self.next_round
    }

    /// Sends the round of pulses that is due, if it is.
    pub fn tick(&mut self, now: BootTime) -> Vec<(NodeId, Datagram)> {
        if now < self.next_round {
            return Vec::new();
        }
        self.round(now)
    }

    /// Takes a datagram whose sender the transport has authenticated as `from`.
    pub fn receive(&mut self, now: BootTime, from: NodeId, datagram: Datagram) -> Received {
        let mut received = Received::default();
        if datagram.cluster_generation != self.cluster_generation {
            if datagram.cluster_generation > self.cluster_generation {
                received.newer_cluster = Some(datagram.cluster_generation);
            }
            return received;
        }
        let proved_at = datagram.echo.and_then(|echo| self.stamp_of(&echo));
        let willing = datagram.report.grants;
        let Some(peer) = self.peers.get_mut(&from) else { return received };
        if datagram.from != from {
            return received;
        }
        let mut is_replayed = false;
        if let Some((boot, incarnation, sequence)) = peer.newest {
            let is_same_start = (boot, incarnation) == (datagram.boot, datagram.incarnation);
            is_replayed = is_same_start && datagram.sequence <= sequence;
            if is_replayed && !self.rules.broken(Mutation::CountReplayed) {
                return received;
            }
        }
        // two daemons of one node, where a machine was copied: the one that hears this node is not deprived of its echoes
        let is_copy = proved_at.is_none()
            && peer.newest.is_some_and(|(boot, start, _)| (boot, start) != (datagram.boot, datagram.incarnation))
            && peer.view.as_ref().is_some_and(|view| view.is_fresh(now, &self.timing));
        if !is_replayed && !is_copy {
            peer.newest = Some((datagram.boot, datagram.incarnation, datagram.sequence));
        }
        if let Some(proved_at) = proved_at {
            let is_newer = peer.view.as_ref().is_none_or(|view| view.proved_at <= proved_at);
            if is_newer {
                received.is_news = peer
                    .view
                    .as_ref()
                    .is_none_or(|view| view.report != datagram.report || !view.is_fresh(now, &self.timing));
                peer.view = Some(PeerView { report: datagram.report, proved_at });
            }
        }
        if let (Some(Echo { grants: Some(granted), .. }), Some(mut stamp)) = (datagram.echo, proved_at)
            && Some(granted.generation) == self.stance.asks
        {
            if self.rules.broken(Mutation::LeaseFromArrival) || is_replayed {
                stamp = now;
            }
            let end = stamp + granted.span;
            let newest = peer.granted.filter(|(generation, _)| *generation == granted.generation);
            if newest.is_none_or(|(_, before)| before < end) {
                peer.granted = Some((granted.generation, end));
                let before = self.lease;
                self.refresh_lease(now);
                if self.lease != before {
                    received.lease = self.lease;
                    received.is_news |= before.is_none_or(|(_, end)| end < now);
                }
            }
        }
        if !datagram.is_reply && self.lacks_word_of(from, willing, now) {
            // it was asked before it could acknowledge: the next round would be late
            let echo = self.peers.get(&from).and_then(|peer| peer.newest).map(Echo::of);
            let asking = self.datagram(now, echo, false);
            received.replies.push((from, asking));
        }
        if !datagram.is_reply {
            let accepts_stale = self.rules.broken(Mutation::AcceptStale);
            let is_granted = |asked: &Tenure| {
                let is_same = |granted: (NodeId, Generation)| {
                    granted == (from, asked.generation) || (accepts_stale && asked.generation < granted.1)
                };
                now <= self.stance.grants_until && self.stance.grants.is_some_and(is_same)
            };
            let grants = datagram.asks.filter(is_granted);
            let grants = grants.map(|asked| Tenure { span: asked.span.min(self.stance.grants_span), ..asked });
            if let Some(granted) = grants {
                self.promise_end = self.promise_end.max(now + Timing::promise_of(granted.span));
            }
            if datagram.asks.is_some() {
                let echo = Echo {
                    boot: datagram.boot,
                    incarnation: datagram.incarnation,
                    sequence: datagram.sequence,
                    grants,
                };
                let reply = self.datagram(now, Some(echo), true);
                received.replies.push((from, reply));
            }
        }
        received
    }

    /// Returns what the control loop needs to know.
    pub fn view(&self) -> PulseView {
        let known = |(node, peer): (&NodeId, &Peer)| peer.view.clone().map(|view| (*node, view));
        PulseView {
            lease: self.lease,
            promise_end: self.promise_end,
            grants_span: self.stance.grants_span,
            peers: self.peers.iter().filter_map(known).collect(),
        }
    }

    /// Returns until when this node promised to support nobody else.
    pub fn promise_end(&self) -> BootTime {
        self.promise_end
    }

    /// Returns the lease alone: the generation and its end.
    pub fn view_lease(&self) -> Option<(Generation, BootTime)> {
        self.lease
    }

    /// Whether this node asks at `now`: the control loop must have said so lately (L3).
    fn asks_at(&self, now: BootTime) -> Option<Generation> {
        self.stance.asks.filter(|_| now <= self.stance.asks_until)
    }

    /// Whether `peer` would acknowledge what is asked for, by its own word, and has not yet.
    fn lacks_word_of(&self, peer: NodeId, willing: Generation, now: BootTime) -> bool {
        let granted = self.peers.get(&peer).and_then(|peer| peer.granted);
        self.asks_at(now) == Some(willing) && granted.is_none_or(|(generation, _)| generation != willing)
    }

    fn round(&mut self, now: BootTime) -> Vec<(NodeId, Datagram)> {
        self.next_round = now + self.timing.pulse;
        let peers: Vec<_> = self.peers.iter().map(|(node, peer)| (*node, peer.newest)).collect();
        let round = peers.into_iter().map(|(node, newest)| (node, self.datagram(now, newest.map(Echo::of), false)));
        let round = round.collect();
        // a majority of one needs no acknowledgement, only its own pulse
        self.refresh_lease(now);
        round
    }

    fn datagram(&mut self, now: BootTime, echo: Option<Echo>, is_reply: bool) -> Datagram {
        self.sequence += 1;
        self.stamps.push_back(now);
        if self.stamps.len() > STAMPS_KEPT {
            self.stamps.pop_front();
        }
        let mut report = self.stance.report.clone();
        report.hears = self.heard_now(now);
        Datagram {
            cluster_generation: self.cluster_generation,
            from: self.me,
            boot: self.boot,
            incarnation: self.incarnation,
            sequence: self.sequence,
            // a reply asks for nothing: it would not be answered
            asks: self
                .asks_at(now)
                .filter(|_| !is_reply)
                .map(|generation| Tenure { generation, span: self.timing.lease }),
            is_reply,
            echo,
            report,
        }
    }

    fn heard_now(&self, now: BootTime) -> BTreeSet<NodeId> {
        let fresh = |peer: &Peer| peer.view.as_ref().is_some_and(|view| view.is_fresh(now, &self.timing));
        self.peers.iter().filter(|(_, peer)| fresh(peer)).map(|(node, _)| *node).collect()
    }

    /// Returns when the echoed datagram was sent, if it is one of this start's that is still remembered.
    fn stamp_of(&self, echo: &Echo) -> Option<BootTime> {
        if (echo.boot, echo.incarnation) != (self.boot, self.incarnation) || echo.sequence > self.sequence {
            return None;
        }
        let back = usize::try_from(self.sequence - echo.sequence).ok()?;
        let index = self.stamps.len().checked_sub(back + 1)?;
        self.stamps.get(index).copied()
    }

    /// Sets the lease's end: the latest that a majority of every voter set acknowledged, each from the sending it answered (L1).
    fn refresh_lease(&mut self, now: BootTime) {
        let Some(generation) = self.stance.asks else {
            self.lease = None;
            return;
        };
        let end_of = |node: &NodeId| {
            if *node == self.me {
                return self.asks_at(now).map(|_| now + self.timing.lease);
            }
            let granted = self.peers.get(node).and_then(|peer| peer.granted);
            granted.filter(|(granted, _)| *granted == generation).map(|(_, end)| end)
        };
        let latest_of = |set: &BTreeSet<NodeId>| {
            let mut ends: Vec<BootTime> = set.iter().filter_map(end_of).collect();
            ends.sort_unstable_by(|a, b| b.cmp(a));
            ends.get(majority_of(set.len()) - 1).copied()
        };
        let latest = self.stance.voter_sets.iter().map(latest_of).collect::<Option<Vec<_>>>();
        let Some(end) = latest.and_then(|ends| ends.into_iter().min()) else { return };
        if self.lease.is_none_or(|(held, before)| held != generation || before < end) {
            self.lease = Some((generation, end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(me: u64, start: u64, now: BootTime) -> PulseCore {
        let mut core = PulseCore::new(
            NodeId(me),
            ClusterGeneration(1),
            BootId([1; 16]),
            DaemonIncarnation(start),
            Timing::default(),
            Duration::ZERO,
            now,
        );
        core.set_peers(&BTreeSet::from([NodeId(1), NodeId(2)]));
        core
    }

    /// What is sent from `from` now arrives at `to`, if there is one that hears it.
    fn round(now: BootTime, from: &mut PulseCore, to: Option<&mut PulseCore>) {
        let sent = from.tick(now);
        let Some(to) = to else { return };
        for (_, datagram) in sent {
            to.receive(now, from.me, datagram);
        }
    }

    #[test]
    fn the_copy_of_a_machine_takes_no_echo_from_the_one_that_is_heard() {
        let start = BootTime::from_millis(1000);
        let (mut peer, mut original, mut copy) = (core(1, 1, start), core(2, 2, start), core(2, 3, start));
        let mut now = start;
        let mut rounds = |count: usize, original: &mut PulseCore, copy: &mut PulseCore, is_original_there: bool| {
            for _ in 0..count {
                now = now + Timing::default().pulse;
                if is_original_there {
                    round(now, original, Some(&mut peer));
                }
                // the copy's comes last before the peer's round, which goes to where the original is
                round(now, copy, Some(&mut peer));
                round(now, &mut peer, Some(if is_original_there { &mut *original } else { &mut *copy }));
            }
            let is_fresh = |core: &PulseCore| core.heard_now(now).contains(&NodeId(1));
            (is_fresh(original), is_fresh(copy), peer.heard_now(now).contains(&NodeId(2)))
        };
        round(start, &mut original, None);
        assert_eq!(rounds(20, &mut original, &mut copy, true), (true, false, true));
        // a daemon that starts anew is heard as soon as it hears
        assert_eq!(rounds(6, &mut original, &mut copy, false), (false, true, true));
    }
}
