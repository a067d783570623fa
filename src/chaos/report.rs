//! What a run prints as its last line.

use serde::Serialize;

use super::checkers::Verdict;

/// What a run found: its last line.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) lease_ms: u64,
    pub(super) acknowledged: usize,
    pub(super) failed: usize,
    pub(super) unknown: usize,
    pub(super) lost: usize,
    /// What was done to databases that had parted or were missing, once the faults had begun.
    pub(super) rebuilds: Vec<String>,
    pub(super) longest_gap_ms: Option<f64>,
    pub(super) client_ms: Option<f64>,
    pub(super) steps: Vec<Played>,
    /// Steps that nobody was there for.
    pub(super) passed_over: Vec<String>,
    pub(super) verdicts: Vec<Verdict>,
    /// What kept the run from its end.
    pub(super) error: Option<String>,
}

/// A step as it was done.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Played {
    pub(super) step: String,
    pub(super) host: String,
    /// On the boot-time clock, as in the journals.
    pub(super) at_ns: u64,
    /// The longest gap that overlaps the time from this step to the next.
    pub(super) write_gap_ms: Option<f64>,
}
