//! What a node is at present, in one word.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a node is at present. Each is a promise about it that an operator can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Belongs to no cluster, or holds no data yet.
    #[default]
    Empty,
    /// Copies the database before it becomes a standby.
    Joining,
    /// Runs PostgreSQL read-only and follows the active node, or waits for one.
    Standby,
    /// Was chosen and brings PostgreSQL up as the primary; takes no writes yet.
    Promoting,
    /// Holds the lease and runs the primary.
    Active,
    /// Gives the role up: no new writes, PostgreSQL is being stopped.
    Demoting,
    /// Its data had parted from the cluster's and is being rewound or copied anew.
    Rejoining,
    /// Reaches no majority; serves reads at the most.
    Minority,
    /// Reaches no majority and takes writes by the operator's policy, which are not replicated.
    ActiveMinority,
    /// Its role ended by the fence; PostgreSQL is stopped.
    Fenced,
    /// Votes and holds no PostgreSQL.
    Witness,
    /// Left alone by an operator's order.
    Paused,
    /// Cannot go on without a person; the reason says what to do.
    Failed,
}

impl NodeState {
    /// Every state.
    pub const ALL: [Self; 13] = [
        Self::Empty,
        Self::Joining,
        Self::Standby,
        Self::Promoting,
        Self::Active,
        Self::Demoting,
        Self::Rejoining,
        Self::Minority,
        Self::ActiveMinority,
        Self::Fenced,
        Self::Witness,
        Self::Paused,
        Self::Failed,
    ];

    /// Returns the word as printed in `nodes list` and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Joining => "joining",
            Self::Standby => "standby",
            Self::Promoting => "promoting",
            Self::Active => "active",
            Self::Demoting => "demoting",
            Self::Rejoining => "rejoining",
            Self::Minority => "minority",
            Self::ActiveMinority => "active_minority",
            Self::Fenced => "fenced",
            Self::Witness => "witness",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
