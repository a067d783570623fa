//! What shows from outside that a fault is in force: the host's own carrier, the switch's counters, the kernel's word on frozen
//! processes and on the processor time they used.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;

use super::{Freezer, Host, HostError, ip, nft, said};
use crate::chaos::machine::Need;
use crate::chaos::process;

/// The table of the switch's rules; each port has a chain of its own in it.
pub(super) const TABLE: &str =
    "add table bridge faults\nadd chain bridge faults forward { type filter hook forward priority 0; }\n";

/// The names of the counters, as remarks of their rules.
pub(super) const SEEN_IN: &str = "seen_in";
pub(super) const SEEN_OUT: &str = "seen_out";
pub(super) const DROPPED_IN: &str = "dropped_in";
pub(super) const DROPPED_OUT: &str = "dropped_out";

/// Returns the end of a rule that counts, as `name`, and lets pass.
pub(super) fn counting(name: &str) -> String {
    format!("counter comment \"{name}\"")
}

/// Returns the end of a rule that counts, as `name`, and drops.
pub(super) fn dropping(name: &str) -> String {
    format!("counter drop comment \"{name}\"")
}

/// What the switch counted by the rules of one host since they were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Packets {
    /// Packets to the host that were looked at; only a share of packets needs this.
    #[serde(skip_serializing_if = "is_zero")]
    pub seen_in: u64,
    /// Packets from the host that were looked at.
    #[serde(skip_serializing_if = "is_zero")]
    pub seen_out: u64,
    /// Packets to the host that were dropped.
    pub dropped_in: u64,
    /// Packets from the host that were dropped.
    pub dropped_out: u64,
    /// Rules that drop packets.
    #[serde(skip)]
    pub rules: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Packets {
    /// Reads what `nft -j list chain` says.
    fn parse(json: &str) -> Option<Self> {
        let told: serde_json::Value = serde_json::from_str(json).ok()?;
        let mut packets = Self::default();
        for rule in told.get("nftables")?.as_array()?.iter().filter_map(|entry| entry.get("rule")) {
            let counter = rule.get("expr")?.as_array()?.iter().find_map(|part| part.get("counter"));
            let count = counter.and_then(|counter| counter.get("packets")).and_then(serde_json::Value::as_u64)?;
            let place = match rule.get("comment").and_then(|name| name.as_str())? {
                SEEN_IN => &mut packets.seen_in,
                SEEN_OUT => &mut packets.seen_out,
                DROPPED_IN => &mut packets.dropped_in,
                DROPPED_OUT => &mut packets.dropped_out,
                _ => return None,
            };
            *place += count;
            packets.rules += usize::from(rule.get("expr")?.as_array()?.iter().any(|part| part.get("drop").is_some()));
        }
        Some(packets)
    }
}

impl Host {
    /// Returns whether the host's own interface has a carrier.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn carrier(&self) -> Result<bool, HostError> {
        let told = said("ip", &["-n", &self.namespace, "-o", "link", "show", "eth0"], "")?;
        Ok(told.contains("LOWER_UP"))
    }

    /// Returns what the host's rules have counted.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn packets(&self) -> Result<Packets, HostError> {
        if !self.has_rules {
            return Ok(Packets::default());
        }
        let words = ["netns", "exec", &self.switch, "nft", "-j", "list", "chain", "bridge", "faults", &self.port];
        let told = said("ip", &words, "")?;
        let unread = || HostError::Command {
            command: format!("ip {}", words.join(" ")),
            why: format!("its answer is not understood: {told}"),
        };
        Packets::parse(&told).ok_or_else(unread)
    }

    /// Returns whether the kernel says that all of the host's processes, those of `clients` left out, are frozen.
    #[must_use]
    pub fn is_frozen(&self, clients: &BTreeSet<i32>) -> bool {
        let says = |file: &str, line: &str| {
            let path = match &self.freezer {
                Freezer::V1(folder) | Freezer::V2(folder) => folder.join(file),
                Freezer::Stop => return false,
            };
            fs::read_to_string(path).is_ok_and(|text| text.lines().any(|told| told == line))
        };
        match &self.freezer {
            Freezer::V1(_) => says("freezer.state", "FROZEN"),
            Freezer::V2(_) => says("cgroup.events", "frozen 1"),
            Freezer::Stop => {
                let pids = self.processes(clients);
                !pids.is_empty() && pids.into_iter().all(process::is_stopped)
            }
        }
    }

    /// Returns the processor time that the host's processes have used so far, in the kernel's ticks.
    #[must_use]
    pub fn ticks(&self, clients: &BTreeSet<i32>) -> u64 {
        self.processes(clients).into_iter().filter_map(process::ticks).sum()
    }
}

/// Tries the switch's rules in a network namespace of their own, and returns what does not work, each with why.
#[must_use]
pub fn try_rules() -> Vec<(Need, String)> {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let namespace = format!("hasup{}-probe{}", std::process::id(), TRIES.fetch_add(1, Ordering::Relaxed));
    let mut lacks = Vec::new();
    if let Err(error) = ip(&["netns", "add", &namespace]) {
        return vec![(
            Need::Namespaces,
            format!("no network namespace can be made: run it outside containers ({error})"),
        )];
    }
    let rule = |text: &str| format!("add rule bridge faults forward {text}\n");
    let tries = [
        (Need::Rules, "NF_TABLES_BRIDGE", rule(&dropping(DROPPED_IN))),
        (Need::Shares, "NFT_NUMGEN", rule(&format!("numgen random mod 100 < 5 {}", dropping(DROPPED_IN)))),
    ];
    for (need, option, rule) in tries {
        if let Err(error) = nft(&namespace, &format!("{TABLE}{rule}")) {
            lacks.push((need, format!("such rules are refused: use a kernel that was built with {option} ({error})")));
        }
    }
    let _ = ip(&["netns", "del", &namespace]);
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_names() {
        let rule = |name: &str, packets: u64, verdict: &str| {
            format!(
                r#"{{"rule":{{"family":"bridge","comment":"{name}","expr":[{{"match":{{}}}},{{"counter":{{"packets":{packets},"bytes":9}}}}{verdict}]}}}}"#
            )
        };
        let drop = r#",{"drop":null}"#;
        let text = format!(
            r#"{{"nftables":[{{"metainfo":{{}}}},{{"chain":{{"name":"p-n1"}}}},{},{},{},{}]}}"#,
            rule(SEEN_IN, 50, ""),
            rule(DROPPED_IN, 7, drop),
            rule(SEEN_OUT, 40, ""),
            rule(DROPPED_OUT, 3, drop)
        );
        let read = Packets { seen_in: 50, seen_out: 40, dropped_in: 7, dropped_out: 3, rules: 2 };
        assert_eq!(Packets::parse(&text), Some(read));
        assert_eq!(Packets::parse(r#"{"nftables":[]}"#), Some(Packets::default()));
        assert_eq!(Packets::parse("none"), None);
    }
}
