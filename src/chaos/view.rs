//! What a cluster says about itself, as far as a judge needs it to know when to break and when to look.
//!
//! Its own types, read leniently from `status --json`: a judge that shared the node's types would follow its mistakes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A standby may be so far behind and still count as caught up: one WAL segment.
const LAG_MAX: u64 = 16 << 20;

/// The status of a cluster as one node tells it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct View {
    /// The cluster as a whole.
    pub cluster: ClusterView,
    /// The name of the active node.
    pub active: Option<String>,
    /// The name of the Raft leader.
    pub raft_leader: Option<String>,
    /// The members.
    pub nodes: Vec<NodeView>,
    /// How the node that tells took the active role over.
    pub takeover: Option<TakeoverView>,
}

/// How a node took the active role over: when each part was over, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TakeoverView {
    /// The former active node was known to be gone.
    pub detected_at_ms: Option<u64>,
    /// Its generation was refused for good.
    pub barred_at_ms: Option<u64>,
    /// The record named the node.
    pub assigned_at_ms: Option<u64>,
    /// PostgreSQL was promoted.
    pub promoted_at_ms: Option<u64>,
    /// A standby streamed from it.
    pub streaming_at_ms: Option<u64>,
    /// Enough standbys held the log.
    pub opened_at_ms: Option<u64>,
}

/// The cluster as a whole.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClusterView {
    /// Whether the node that tells hears a majority.
    pub majority: bool,
    /// Length of the lease.
    pub lease_ms: Option<u64>,
}

/// A member.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its state, in the words of `nodes list`.
    pub state: String,
    /// Its part in Raft.
    pub raft: String,
    /// The end of its log.
    pub lsn: Option<String>,
    /// How far it is behind.
    pub lag_bytes: Option<u64>,
    /// Whether it is marked as one that must not become active.
    pub nofailover: Option<bool>,
    /// Whether its word is recent, where the teller says.
    pub is_reachable: Option<bool>,
}

impl View {
    /// Parses `status --json`.
    ///
    /// # Errors
    /// When it is no JSON of that form.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Returns why this is not a whole cluster of `size` data nodes; none if it is.
    #[must_use]
    pub fn missing(&self, size: usize) -> Option<String> {
        if !self.cluster.majority {
            return Some("no majority".to_owned());
        }
        if self.nodes.len() != size {
            return Some(format!("{} of {size} members", self.nodes.len()));
        }
        let Some(active) = &self.active else { return Some("no active node".to_owned()) };
        if self.raft_leader.is_none() {
            return Some("no Raft leader".to_owned());
        }
        // Of an even number of members, one stays a learner.
        let mut learners = usize::from(size.is_multiple_of(2));
        self.nodes.iter().find_map(|node| {
            let expected = if node.name == *active { "active" } else { "standby" };
            let name = &node.name;
            if node.is_reachable == Some(false) {
                Some(format!("{name} is not heard"))
            } else if node.state != expected {
                Some(format!("{name} is {}, not {expected}", node.state))
            } else if node.raft == "learner" && learners > 0 {
                learners -= 1;
                None
            } else if matches!(node.raft.as_str(), "learner" | "unknown") {
                Some(format!("{name} has no vote"))
            } else if expected == "standby" && node.lag_bytes.is_none_or(|lag| lag > LAG_MAX) {
                Some(format!("{name} has not caught up"))
            } else {
                None
            }
        })
    }
}

impl View {
    /// Returns why this cluster of `size` is not yet as it stays without faults: whole, and led by a standby where there is one
    /// that votes.
    #[must_use]
    pub fn unsettled(&self, size: usize) -> Option<String> {
        self.missing(size).or_else(|| {
            let leads_itself = size > 2 && self.active == self.raft_leader;
            leads_itself.then(|| "the active node leads Raft too, although a standby could".to_owned())
        })
    }
}

/// An event of the cluster's history.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EventView {
    /// Its number in the history.
    pub id: u64,
    /// Wall-clock milliseconds since 1970.
    pub at_ms: u64,
    /// The node that recorded it.
    pub node: String,
    /// The generation that it belongs to.
    pub generation: u64,
    /// What happened.
    pub kind: String,
    /// Why.
    pub why: WhyView,
}

/// Why an event happened.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct WhyView {
    /// What was known.
    pub facts: Vec<String>,
    /// The rule, or by whose word.
    pub rule: String,
    /// What was done.
    pub step: String,
}

/// Returns how many milliseconds after `since_ms` each kind of event first happened, and each part of the takeover was over, up to
/// `until_ms`.
#[must_use]
pub fn parts(
    history: &[EventView],
    takeover: Option<TakeoverView>,
    since_ms: u64,
    until_ms: u64,
) -> BTreeMap<String, u64> {
    let takeover = takeover.unwrap_or_default();
    let ends = [
        ("detected", takeover.detected_at_ms),
        ("barred", takeover.barred_at_ms),
        ("assigned", takeover.assigned_at_ms),
        ("promoted", takeover.promoted_at_ms),
        ("streaming", takeover.streaming_at_ms),
        ("opened", takeover.opened_at_ms),
    ];
    let ends = ends.into_iter().filter_map(|(part, at)| Some((part.to_owned(), at?.checked_sub(since_ms)?)));
    let mut parts: BTreeMap<String, u64> = ends.filter(|(_, after)| since_ms + after <= until_ms).collect();
    for event in history.iter().filter(|event| (since_ms..=until_ms).contains(&event.at_ms)) {
        let after = event.at_ms - since_ms;
        parts.entry(event.kind.clone()).and_modify(|first: &mut u64| *first = (*first).min(after)).or_insert(after);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> View {
        let json = r#"{"cluster":{"majority":true,"lease_ms":2000,"new":1},"active":"n1","raft_leader":"n2","nodes":[
            {"name":"n1","state":"active","raft":"follower","lsn":"0/3","lag_bytes":0,"checks":{}},
            {"name":"n2","state":"standby","raft":"leader","lag_bytes":10,"is_reachable":true},
            {"name":"n3","state":"standby","raft":"follower","lag_bytes":0}]}"#;
        View::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_whole_cluster_misses_nothing() {
        assert_eq!(whole().missing(3), None);
        assert_eq!(whole().cluster.lease_ms, Some(2000));
    }

    #[test]
    fn a_settled_cluster_is_led_by_a_standby() {
        let mut view = whole();
        assert_eq!(view.unsettled(3), None);
        view.raft_leader = Some("n1".into());
        assert!(view.unsettled(3).is_some_and(|what| what.contains("leads Raft")));
        view.nodes.truncate(2);
        view.nodes[1].raft = "learner".into();
        assert_eq!(view.unsettled(2), None, "of two, the spare has no vote");
    }

    #[test]
    fn whatever_is_not_whole_is_named() {
        let broken = |change: fn(&mut View)| {
            let mut view = whole();
            change(&mut view);
            view.missing(3).unwrap()
        };
        assert_eq!(broken(|view| view.nodes[2].state = "joining".into()), "n3 is joining, not standby");
        assert_eq!(broken(|view| view.nodes[1].lag_bytes = None), "n2 has not caught up");
        assert_eq!(broken(|view| view.nodes[1].raft = "learner".into()), "n2 has no vote");
        let silent = |view: &mut View| {
            (view.nodes[1].is_reachable, view.nodes[1].state) = (Some(false), "unknown".into());
        };
        assert_eq!(broken(silent), "n2 is not heard");
        assert_eq!(broken(|view| view.active = None), "no active node");
        assert_eq!(broken(|view| view.raft_leader = None), "no Raft leader");
        assert_eq!(broken(|view| view.cluster.majority = false), "no majority");
        assert_eq!(broken(|view| drop(view.nodes.pop())), "2 of 3 members");
    }

    #[test]
    fn parts_are_the_first_events_after_the_fault() {
        let event = |at_ms, kind: &str| EventView { at_ms, kind: kind.to_owned(), ..EventView::default() };
        let history = [
            event(90, "assigned"),
            event(120, "barred"),
            event(125, "barred"),
            event(130, "assigned"),
            event(900, "x"),
        ];
        assert_eq!(
            parts(&history, None, 100, 500),
            BTreeMap::from([("barred".to_owned(), 20), ("assigned".to_owned(), 30)])
        );
        let takeover = TakeoverView {
            detected_at_ms: Some(99),
            assigned_at_ms: Some(131),
            promoted_at_ms: Some(200),
            opened_at_ms: Some(501),
            ..TakeoverView::default()
        };
        let told = [("barred", 20), ("assigned", 30), ("promoted", 100)].map(|(part, after)| (part.to_owned(), after));
        assert_eq!(parts(&history, Some(takeover), 100, 500), BTreeMap::from(told), "only what falls into the time");
    }
}
