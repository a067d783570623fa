//! How answers look: tables and sentences for people, one JSON document for programs.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::CliError;
use crate::ha::state::NodeState;
use crate::node::handle::EventInfo;
use crate::node::options::durability_name;
use crate::node::status::{NodeStatus, Status};
use crate::types::Size;

/// Standard output, in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    json: bool,
}

impl Out {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// Prints `value` as one JSON document, or `text`.
    pub(super) fn answer(self, value: &impl Serialize, text: &str) -> Result<(), CliError> {
        let text = if self.json {
            serde_json::to_string(value).context("write the answer as JSON")?
        } else {
            text.trim_end().to_owned()
        };
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints `bytes` as they are. A reader that has seen enough, as `head` has, is no failure.
    pub(super) fn bytes(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(CliError::Failed(anyhow::Error::new(error).context("write to standard output")))
            }
            _ => Ok(()),
        }
    }
}

/// Aligns rows in columns two spaces apart, without trailing spaces.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Returns the page of `nodes list`: `notice`, where another node had to answer than was meant, and the table.
pub(super) fn nodes(status: &Status, notice: Option<&str>) -> String {
    let mut text = first_line(notice);
    if let Some(not_a_member) = &status.not_a_member {
        text += &format!("{not_a_member}\n");
    }
    text + &node_table(status)
}

fn first_line(notice: Option<&str>) -> String {
    notice.map(|notice| format!("{notice}\n\n")).unwrap_or_default()
}

fn node_table(status: &Status) -> String {
    let row = |node: &NodeStatus| {
        let lag = match (node.is_reachable, node.lag_bytes, node.heard_ms_ago) {
            (true, Some(bytes), _) => Size(bytes).to_string(),
            (true, None, _) => "-".to_owned(),
            (false, _, Some(age)) => format!("silent {} s", age / 1000),
            (false, _, None) => "silent".to_owned(),
        };
        let priority = if node.nofailover { "never".to_owned() } else { node.priority.to_string() };
        let raft = node.raft.as_str().to_owned();
        vec![
            node.name.clone(),
            node.address.clone(),
            node.state_word().to_owned(),
            raft,
            priority,
            lag,
            node.version.clone(),
        ]
    };
    let rows: Vec<_> = status.nodes.iter().map(row).collect();
    let mut text = table(&["NAME", "ADDRESS", "STATE", "RAFT", "PRIORITY", "LAG", "VERSION"], &rows);
    if let Some(age_ms) = status.stale_ms {
        text +=
            &format!("OLD: the loop of {} has not looked for {} s; all this is as old.\n", status.me, age_ms / 1000);
    }
    if !status.cluster.majority && status.not_a_member.is_none() {
        text += "MINORITY: this node hears no majority of the voters; what it shows of others may be old.\n";
    }
    text
}

/// Returns the page of `status`, behind `notice` where another node had to answer than was meant.
pub(super) fn status(status: &Status, notice: Option<&str>) -> String {
    let mut text = first_line(notice);
    if let Some(not_a_member) = &status.not_a_member {
        let others = status.nodes.iter().filter(|node| node.name != status.me);
        let others: Vec<_> = others.map(|node| format!("  {} {}\n", node.name, node.address)).collect();
        text += &format!("{not_a_member}\n");
        return if others.is_empty() {
            text
        } else {
            text + "\nits last members, as far as it knows:\n" + &others.concat()
        };
    }
    let cluster = &status.cluster;
    let active = match &status.active {
        Some(name) => match status.node(name) {
            Some(node) if node.state != Some(NodeState::Active) => {
                format!("{name} was made active and {}", node.why_not_active())
            }
            Some(_) | None => format!("{name} is active"),
        },
        None => "no node is active".to_owned(),
    };
    let id = if cluster.id.is_empty() { "-" } else { &cluster.id };
    let name =
        if cluster.name.is_empty() || cluster.name == *id { id.to_owned() } else { format!("{} ({id})", cluster.name) };
    text += &format!(
        "cluster {name}, generation {}: {active}, durability {}\n",
        cluster.generation,
        durability_name(cluster.durability),
    );
    if !cluster.failure_cost.is_empty() {
        text += &format!("{}\n", cluster.failure_cost);
    }
    text += &format!("\n{}", node_table(status));
    let list = |title: &str, lines: &[String]| {
        let items: String = lines.iter().map(|line| format!("  {line}\n")).collect();
        if lines.is_empty() { String::new() } else { format!("\n{title}\n{items}") }
    };
    text += &list("warnings:", &cluster.warnings);
    let failing: Vec<_> = status
        .nodes
        .iter()
        .flat_map(|node| node.checks.iter().map(move |(name, check)| (node, name, check)))
        .filter(|(_, _, check)| !check.is_passing)
        .map(|(node, name, check)| format!("{} {name}: {}", node.name, check.detail))
        .collect();
    text += &list("failing checks:", &failing);
    let here = format!("{} ({}) waits for:", status.me, status.state);
    let so_far = status.progress.iter().map(|progress| format!("so far: {}", progress.text));
    text += &list(&here, &status.waiting_on.iter().cloned().chain(so_far).collect::<Vec<_>>());
    text
}

/// Returns the table of `history`, each event with why.
pub(super) fn history(events: &[EventInfo]) -> String {
    let mut text = String::new();
    for info in events {
        let event = &info.event;
        let when = moment(event.at_ms / 1000);
        text += &format!("{} {when} generation {} {} {}", info.id, event.generation, info.node, event.kind);
        if !event.why.step.is_empty() {
            text += &format!(": {}", event.why.step);
        }
        if !event.why.rule.is_empty() {
            text += &format!(" ({})", event.why.rule);
        }
        text.push('\n');
        for fact in &event.why.facts {
            text += &format!("    {fact}\n");
        }
    }
    text
}

/// Returns a wall-clock second in UTC as people read it.
pub(super) fn moment(second: u64) -> String {
    i64::try_from(second)
        .ok()
        .and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok())
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| second.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ha::record::MemberKind;
    use crate::node::progress::{LongWork, ProgressStatus};
    use crate::node::status::RaftRole;
    use crate::types::{Generation, Lsn, NodeId, Timeline};

    /// A cluster of three: one active, one behind, one silent.
    pub(in crate::cli) fn example() -> Status {
        let node = |id: u64, state, raft, lag| NodeStatus {
            id: NodeId(id),
            name: format!("n{id}"),
            address: format!("10.0.0.{id}:7400"),
            api_address: format!("10.0.0.{id}:7401"),
            postgres_address: format!("10.0.0.{id}:5432"),
            kind: MemberKind::Data,
            state,
            is_reachable: true,
            heard_ms_ago: Some(40),
            raft,
            is_spare: false,
            priority: 100,
            nofailover: false,
            timeline: Some(Timeline(2)),
            lsn: Some(Lsn(0x300_0148)),
            lag_bytes: lag,
            kept_log_bytes: None,
            version: "0.1.0".to_owned(),
            checks: BTreeMap::new(),
            troubles: Vec::new(),
        };
        let mut status = Status::starting("n1");
        status.cluster.id = "c0ffee".to_owned();
        status.cluster.name = "prod".to_owned();
        status.cluster.generation = Generation(7);
        status.cluster.majority = true;
        status.cluster.lease_ms = 2000;
        status.cluster.failure_cost =
            "The failure of any one node would stop writes for about 2 s and lose nothing.".to_owned();
        status.state = NodeState::Active;
        status.active = Some("n1".to_owned());
        status.raft_leader = Some("n2".to_owned());
        status.waiting_on.clear();
        status.nodes = vec![
            node(1, Some(NodeState::Active), RaftRole::Follower, Some(0)),
            node(2, Some(NodeState::Standby), RaftRole::Leader, Some(20_000_000)),
            node(3, None, RaftRole::Unknown, None),
        ];
        status.nodes[1].nofailover = true;
        status.nodes[2].is_reachable = false;
        status.nodes[2].heard_ms_ago = Some(12_345);
        status
    }

    #[test]
    fn nodes_list_keeps_its_columns() {
        let expected = "\
NAME  ADDRESS        STATE    RAFT      PRIORITY  LAG          VERSION
n1    10.0.0.1:7400  active   follower  100       0 B          0.1.0
n2    10.0.0.2:7400  standby  leader    never     19 MB        0.1.0
n3    10.0.0.3:7400  unknown  unknown   100       silent 12 s  0.1.0
";
        assert_eq!(nodes(&example(), None), expected);
        let mut cut_off = example();
        cut_off.cluster.majority = false;
        assert!(nodes(&cut_off, None).contains("MINORITY"));
        cut_off.stale_ms = Some(12_345);
        assert!(nodes(&cut_off, None).contains("has not looked for 12 s"));
    }

    #[test]
    fn a_node_in_json_keeps_its_keys() {
        let json = serde_json::to_value(&example().nodes[1]).unwrap();
        let expected = serde_json::json!({
            "id": 2, "name": "n2", "address": "10.0.0.2:7400", "api_address": "10.0.0.2:7401",
            "postgres_address": "10.0.0.2:5432", "kind": "data", "state": "standby", "is_reachable": true,
            "heard_ms_ago": 40, "raft": "leader", "is_spare": false, "priority": 100, "nofailover": true, "timeline": 2, "lsn": "0/3000148",
            "lag_bytes": 20_000_000, "kept_log_bytes": null, "version": "0.1.0", "checks": {}, "troubles": [],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_node_that_is_not_heard_is_unknown_and_is_read_so_again() {
        let mut node = example().nodes[2].clone();
        for state in NodeState::ALL.map(Some).into_iter().chain([None]) {
            node.state = state;
            let json = serde_json::to_value(&node).unwrap();
            assert_eq!(json["state"], node.state_word());
            assert_eq!(serde_json::from_value::<NodeStatus>(json).unwrap(), node);
        }
        assert_eq!(node.state_word(), "unknown");
        let odd = serde_json::to_string(&node).unwrap().replace("unknown", "odd");
        assert!(serde_json::from_str::<NodeStatus>(&odd).is_err());
    }

    #[test]
    fn a_removed_node_speaks_of_itself_alone() {
        let mut removed = example();
        removed.not_a_member = Some("n1 is no member of this cluster any more. To join again: do so".to_owned());
        removed.cluster.majority = false;
        removed.cluster.failure_cost = "No node takes writes".to_owned();
        let expected = "\
n1 is no member of this cluster any more. To join again: do so

its last members, as far as it knows:
  n2 10.0.0.2:7400
  n3 10.0.0.3:7400
";
        assert_eq!(status(&removed, None), expected);
        assert!(nodes(&removed, None).starts_with("n1 is no member") && !nodes(&removed, None).contains("MINORITY"));
    }

    #[test]
    fn status_says_who_is_active_and_what_a_failure_would_cost() {
        let mut cluster = example();
        cluster.cluster.warnings.push("n3 is silent".to_owned());
        let text = status(&cluster, None);
        assert!(
            text.starts_with("cluster prod (c0ffee), generation 7: n1 is active, durability two_nodes\nThe failure of"),
            "{text}"
        );
        assert!(text.ends_with("\nwarnings:\n  n3 is silent\n"), "{text}");
        cluster.waiting_on = vec!["the database to be copied from n2".to_owned()];
        cluster.progress = Some(ProgressStatus {
            work: LongWork::Copying,
            done_bytes: 1,
            total_bytes: 4,
            percent: 25,
            seconds_left: Some(9),
            still_seconds: 0,
            text: "copied 1 of 4".to_owned(),
        });
        let copying = status(&cluster, None);
        assert!(
            copying.ends_with("waits for:\n  the database to be copied from n2\n  so far: copied 1 of 4\n"),
            "{copying}"
        );
        (cluster.waiting_on, cluster.progress) = (Vec::new(), None);
        let behind = status(&cluster, Some("hasup does not run here"));
        assert_eq!(behind, format!("hasup does not run here\n\n{text}"), "the rest is another node's word");
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
    }
}
