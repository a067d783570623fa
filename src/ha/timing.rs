//! The spans that the protocol counts in, and how they follow from the cluster's options.

use std::time::Duration;

use super::record::Options;

/// Every span of the protocol. All of a cluster's nodes derive the same values from the same replicated options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Between two pulses to the same peer.
    pub pulse: Duration,
    /// How long the active node may act after the sending of the newest pulse that a majority acknowledged (L1).
    pub lease: Duration,
    /// What a peer waits beyond the lease: clock drift over one lease, and the time a kill takes (L2).
    pub margin: Duration,
    /// How long before the lease's end the fence begins, so that it is complete at the end (L4).
    pub fence_lead: Duration,
    /// How old the control loop's stamp may be while pulses still ask for the lease (L3).
    pub loop_stall_limit: Duration,
    /// How old a peer's report may be to count as present evidence: two pulses and their way (L8).
    pub report_fresh: Duration,
    /// After this much, a standby whose WAL receiver has not gone at the bar is stopped (L9).
    pub bar_limit: Duration,
    /// How long, after an orderly resignation, the standbys may take to state their positions before the former node is taken again.
    pub hand_over_limit: Duration,
    /// How long after its stop in order a former primary's start makes way for the next one, where that can do without it.
    pub make_way: Duration,
    /// After this long without any progress, log is no longer fetched from another standby (L12).
    pub fetch_limit: Duration,
    /// How long after such an end it is not tried again: meanwhile the node states its position as before.
    pub fetch_again: Duration,
    /// How long data that was rebuilt from a former primary may take to say where its log ends, before it is rebuilt again.
    pub rebuilt_limit: Duration,
    /// A chosen node that has not promoted by then resigns (L17).
    pub promote_limit: Duration,
    /// How long a node that failed to promote stays out of the choice (L17).
    pub unfit_for: Duration,
    /// A primary that takes no durable write for so long gives the role up, if another node can take it.
    pub write_stall_limit: Duration,
    /// How long a standby may be gone before a cluster that can do without it stops waiting for it, by a recorded change.
    pub degrade_after: Duration,
    /// How long a clean stop of PostgreSQL in a switchover may take before it is killed.
    pub clean_stop_limit: Duration,
}

impl Timing {
    /// Derives the spans from the options: `check_ttl_multiplier` stretches the lease and all that is measured in leases.
    pub fn from_options(options: &Options) -> Self {
        let lease = options.check_ttl_multiplier.of(Duration::from_secs(2));
        Self {
            pulse: Duration::from_millis(100),
            lease,
            margin: Self::margin_of(lease),
            fence_lead: Duration::from_millis(100),
            loop_stall_limit: lease / 2,
            // two pulses, the way there and back, and some scheduling
            report_fresh: Duration::from_millis(300),
            bar_limit: Duration::from_secs(2),
            fetch_limit: Duration::from_secs(3),
            fetch_again: Duration::from_secs(5),
            rebuilt_limit: Duration::from_secs(120),
            hand_over_limit: Duration::from_secs(3),
            // several promotions of a busy machine; for longer, a standby that commits may come to need would be missing for nothing
            make_way: Duration::from_secs(1),
            promote_limit: Duration::from_secs(10).max(lease * 2),
            unfit_for: Duration::from_secs(30),
            write_stall_limit: Duration::from_secs(30).max(lease * 3),
            degrade_after: Duration::from_secs(10),
            clean_stop_limit: Duration::from_secs(5),
        }
    }

    /// Returns how long a peer keeps its promise after an acknowledgement (L2).
    pub fn promise(&self) -> Duration {
        self.lease + self.margin
    }

    /// Returns how long a peer keeps its promise after it acknowledged a lease of `span`, whatever the options say now (L2).
    pub fn promise_of(span: Duration) -> Duration {
        span + Self::margin_of(span)
    }

    /// 1 % of clock drift over one lease (crystals drift below 0.02 %) and at least 100 ms for scheduling and the kill.
    fn margin_of(lease: Duration) -> Duration {
        Duration::from_millis(100).max(lease / 100)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::from_options(&Options::default())
    }
}
