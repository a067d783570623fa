//! What a node must not forget: the few facts that are on disk before the step that relies on them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::ResignReason;
use super::timing::Timing;
use crate::types::{DataIncarnation, Generation, Lsn};

/// The node's own durable facts, beside Raft's log. Each only ever grows, but for `lease_span` and `data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// The highest generation that this node refuses to help (L9).
    pub barred: Generation,
    /// The highest generation of this node's own that has ended (L7).
    pub resigned: Generation,
    /// Why that one ended.
    pub resign_reason: Option<ResignReason>,
    /// The highest generation that this node ever acknowledged, its own included (L2).
    pub acknowledged: Generation,
    /// The longest lease that this node may have acknowledged and that may not have ended: a new start takes it that it has (L2).
    pub lease_span: Duration,
    /// Which life of its data this is.
    pub incarnation: DataIncarnation,
    /// What the data directory holds.
    pub data: DataState,
}

/// What a node's data directory is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataState {
    /// There is none.
    Empty,
    /// It is being rewound or copied; it answers for nothing until it has streamed past `until` (L19).
    Rebuilding {
        /// Where the source's log ended when the copy was complete; absent while the copy itself goes on.
        until: Option<Lsn>,
    },
    /// It holds all that its stated position says.
    Intact,
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            barred: Generation(0),
            resigned: Generation(0),
            resign_reason: None,
            acknowledged: Generation(0),
            lease_span: Timing::default().lease,
            incarnation: DataIncarnation(0),
            data: DataState::Empty,
        }
    }
}
