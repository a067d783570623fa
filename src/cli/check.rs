//! `hasup check`: one line and one exit code for monitoring.

use std::process::ExitCode;

use serde_json::json;

use super::CliError;
use super::args::Cli;
use super::here::{self, Told};
use super::show::Out;
use crate::ha::state::NodeState;
use crate::node::status::Status;

/// Below this many days a certificate is worth a warning: it renews itself long before.
const CERTIFICATE_DAYS: i64 = 14;

/// Monitoring's verdicts, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warning,
    Critical,
    Unknown,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

pub(super) async fn run(cli: &Cli, out: Out) -> Result<ExitCode, CliError> {
    let (verdict, reasons) = match here::status(cli).await {
        Ok(Told { mut status, notice, is_closed }) => {
            // who may not ask this machine's node has asked another, which is as good
            status.cluster.warnings.splice(0..0, notice.filter(|_| !is_closed));
            judge(&status)
        }
        Err(error) => (Verdict::Unknown, vec![error.to_string()]),
    };
    let text = format!("HASUP {}: {}", verdict.word(), reasons.join("; "));
    out.answer(&json!({"verdict": verdict.word(), "reasons": reasons}), &text)?;
    Ok(ExitCode::from(verdict as u8))
}

/// Judges the cluster; the reasons are those of the worst verdict first. Pure.
fn judge(status: &Status) -> (Verdict, Vec<String>) {
    let mut found = Vec::new();
    let mut note = |verdict, reason: String| found.push((verdict, reason));
    if let Some(age_ms) = status.stale_ms {
        note(Verdict::Critical, format!("the loop of {} has not looked for {} s", status.me, age_ms / 1000));
    }
    if let Some(not_a_member) = &status.not_a_member {
        // the rest is of the past
        return (Verdict::Critical, vec![not_a_member.clone()]);
    }
    if !status.cluster.majority {
        note(Verdict::Critical, format!("{} hears no majority of the voters", status.me));
    }
    match status.active.as_ref().and_then(|name| status.node(name)) {
        None => note(Verdict::Critical, "no node is active".to_owned()),
        Some(node) if node.state != Some(NodeState::Active) => {
            note(Verdict::Critical, format!("{} was made active and {}", node.name, node.why_not_active()));
        }
        Some(_) => {}
    }
    for node in &status.nodes {
        if !node.is_reachable && node.is_spare {
            note(Verdict::Warning, format!("{}, a spare on which no vote and no commit counts, is silent", node.name));
        } else if !node.is_reachable {
            note(Verdict::Warning, format!("{} is silent", node.name));
        } else if node.state == Some(NodeState::Failed) {
            note(Verdict::Warning, format!("{} needs a person", node.name));
        }
        for trouble in node.troubles.iter().filter(|trouble| node.is_reachable && trouble.is_critical) {
            note(Verdict::Critical, trouble.text.clone());
        }
        for (name, check) in node.checks.iter().filter(|(_, check)| !check.is_passing) {
            let verdict = if check.moves_role { Verdict::Critical } else { Verdict::Warning };
            note(verdict, format!("{} {name}: {}", node.name, check.detail));
        }
    }
    if let Some(days) = status.certificate_days_left.filter(|days| *days < CERTIFICATE_DAYS) {
        note(Verdict::Warning, format!("the certificate of {} ends in {days} days", status.me));
    }
    for warning in &status.cluster.warnings {
        note(Verdict::Warning, warning.clone());
    }
    found.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    // a critical one is among the warnings, too
    let mut told = std::collections::BTreeSet::new();
    found.retain(|(_, reason)| told.insert(reason.clone()));
    match found.first() {
        None => {
            let active = status.active.as_deref().unwrap_or_default();
            let nodes = status.nodes.len();
            let unit = if nodes == 1 { "node" } else { "nodes" };
            (Verdict::Ok, vec![format!("{active} is active, {nodes} {unit}")])
        }
        Some((worst, _)) => (*worst, found.iter().map(|(_, reason)| reason.clone()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::tests::example;
    use crate::node::status::TroubleStatus;

    #[test]
    fn the_worst_decides_and_comes_first() {
        let mut status = example();
        assert_eq!(judge(&status), (Verdict::Warning, vec!["n3 is silent".to_owned()]));
        status.active = None;
        assert_eq!(
            judge(&status),
            (Verdict::Critical, vec!["no node is active".to_owned(), "n3 is silent".to_owned()])
        );
        let mut full = example();
        let text = "n1's disk is full".to_owned();
        full.nodes[0].troubles = vec![TroubleStatus { text: text.clone(), is_critical: true }];
        full.cluster.warnings.push(text.clone());
        assert_eq!(judge(&full), (Verdict::Critical, vec![text, "n3 is silent".to_owned()]), "and is said once");
        let mut removed = example();
        removed.not_a_member = Some("n1 is no member".to_owned());
        assert_eq!(
            judge(&removed),
            (Verdict::Critical, vec!["n1 is no member".to_owned()]),
            "nothing else is of the present"
        );
        let mut spare = example();
        spare.nodes[2].is_spare = true;
        let told = "n3, a spare on which no vote and no commit counts, is silent".to_owned();
        assert_eq!(judge(&spare), (Verdict::Warning, vec![told]));
        let mut well = example();
        well.nodes.truncate(2);
        assert_eq!(judge(&well), (Verdict::Ok, vec!["n1 is active, 2 nodes".to_owned()]));
        well.nodes.truncate(1);
        assert_eq!(judge(&well), (Verdict::Ok, vec!["n1 is active, 1 node".to_owned()]));
    }

    #[test]
    fn a_node_that_was_made_active_is_told_as_what_is_known_of_it() {
        let mut dead = example();
        dead.nodes[0].state = Some(NodeState::Minority);
        assert!(judge(&dead).1[0].ends_with("is minority"), "by its own word");
        (dead.nodes[0].is_reachable, dead.nodes[0].state) = (false, None);
        assert_eq!(judge(&dead).1[0], "n1 was made active and is silent", "nothing else is known");
        dead.nodes[0].heard_ms_ago = None;
        assert_eq!(judge(&dead).1[0], "n1 was made active and was not heard yet");
    }
}
