//! What a run found.

use serde::Serialize;

use super::checkers::Verdict;
use super::judgement::{Judgement, Skipped, Work};
use super::kinds::Kind;
use super::proof::Proof;
use super::timeline::Timelines;

/// What a run found: its last line.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the verdict is `ok`.
    pub ok: bool,
    /// The verdict, why, and counts.
    #[serde(flatten)]
    pub judgement: Judgement,
    /// Length of the lease.
    pub lease_ms: u64,
    /// Rows that were acknowledged.
    pub acknowledged: usize,
    /// Rows that failed for certain.
    pub failed: usize,
    /// Rows of which nobody knows.
    pub unknown: usize,
    /// Acknowledged rows that are missing on a node.
    pub lost: usize,
    /// What was done to databases that had parted or were missing, once the faults had begun.
    pub rebuilds: Vec<String>,
    /// The longest time without an acknowledgement to the client outside.
    pub longest_gap_ms: Option<f64>,
    /// What of it that client itself may have added.
    pub client_ms: Option<f64>,
    /// What that client did while nothing disturbed it.
    pub work: Option<Work>,
    /// What was done to which host, and what shows that it was.
    pub faults: Vec<FaultRecord>,
    /// Steps that nobody was there for.
    pub passed_over: Vec<PassedOver>,
    /// Steps that the machine could not do.
    pub skipped: Vec<Skipped>,
    /// What the checkers found.
    pub verdicts: Vec<Verdict>,
    /// What kept the run from its end.
    pub error: Option<String>,
}

/// All that was judged, as `report.json` holds it: enough to play the run again.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// What the run found.
    #[serde(flatten)]
    pub report: Report,
    /// The seed, where the faults came by chance.
    pub seed: Option<u64>,
    /// How long those went on.
    pub duration_ms: Option<u64>,
    /// How many hosts there were.
    pub hosts: u8,
    /// Kinds that the machine was allowed to go without.
    pub allow_skip: Vec<Kind>,
    /// The version of hasup, of harness and nodes alike.
    pub version: String,
    /// The schedule, with the options of the cluster.
    pub schedule: String,
    /// What happened when.
    pub timeline: Timelines,
}

/// A step as it was done to one host.
#[derive(Debug, Clone, Serialize)]
pub struct FaultRecord {
    /// When it began, since the schedule did.
    pub at_ms: u64,
    /// When it was taken back, by a later step or by the healing at the end; none where it was over at once.
    pub until_ms: Option<u64>,
    /// Its kind.
    pub kind: Kind,
    /// The host that it was done to.
    pub on: String,
    /// The second host, where the step has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The statement.
    pub step: String,
    /// What shows that it bit, measured outside hasup.
    pub proof: Proof,
    /// Whether it did.
    pub bit: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// When it began, on the boot-time clock, as in the journals.
    pub at_ns: u64,
    /// The longest gap that overlaps the time from this step to the next.
    pub write_gap_ms: Option<f64>,
}

/// A step that nobody was there for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// The statement.
    pub step: String,
    /// The host, where one was meant.
    pub on: Option<String>,
    /// Why not.
    pub why: String,
}
