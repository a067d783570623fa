//! The states of a node: each is a promise about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a node is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Belongs to no cluster and holds no data.
    Empty,
    /// Has been admitted and copies the database; counts for nothing yet.
    Joining,
    /// Replays what the active node writes, or waits to.
    Standby,
    /// Was assigned the role, holds a lease and brings PostgreSQL up as the primary; takes no clients' writes yet.
    Promoting,
    /// Holds the lease and runs the primary.
    Active,
    /// Gives the role up: its fence has begun and is not yet complete.
    Demoting,
    /// Brings diverged data back to the cluster's history.
    Rejoining,
    /// Reaches no majority; serves reads at the most.
    Minority,
    /// Reaches no majority and writes by the operator's policy; what it writes is no history of the cluster.
    ActiveMinority,
    /// Is kept from every write until a newer generation is known to it.
    Fenced,
    /// Votes and holds no database.
    Witness,
    /// Changes no role by itself, because an operator said so.
    Paused,
    /// Needs a person; its reasons for waiting say what to do.
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

    /// Returns the state's name as `status` and metrics print it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_print_as_they_serialize() {
        for state in NodeState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
