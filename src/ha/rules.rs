//! Which rule a test build breaks on purpose, to prove that the simulator would notice. Always none in what is shipped.

use std::fmt;

/// A rule left out. Each is found by the simulator, or the simulator is not worth its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A peer suspects whom it does not hear, without waiting for the end of its promise (L8).
    SkipLeaseWait,
    /// A peer goes on acknowledging the generation that it barred (L2, L9).
    AcknowledgeAfterBar,
    /// The WAL receiver stays connected at the bar (L9).
    LeaveReceiverOpen,
    /// The bar is not on disk before it counts (L9).
    BarNotDurable,
    /// The position is stated before the receiver is gone (L9).
    StateBeforeBar,
    /// After a restart the position is understated (L10).
    UnderstateAfterRestart,
    /// The lease counts from the acknowledgement's arrival (L1).
    LeaseFromArrival,
    /// An acknowledgement counts again when replayed (L1).
    CountReplayed,
    /// A resignation is not on disk before it is said (L7).
    ResignationNotDurable,
    /// A resignation spares the bars (L11).
    ResignationWithoutBars,
    /// A resignation spares the positions (L11).
    ResignationWithoutPositions,
    /// Votes count, data does not (L11).
    VotesWithoutData,
    /// The longest log wins whatever its timeline (L12).
    RankLsnBeforeTimeline,
    /// A promotion takes the next timeline number instead of the reserved one (L13).
    TimelinesCollide,
    /// A node that is being rebuilt answers (L12, L19).
    RebuildingAnswers,
    /// No log is fetched from a standby that cannot become active (L12).
    NeverFetch,
    /// Log is fetched from a standby that is not barred (L12).
    FetchFromUnbarred,
    /// What is to be fetched is stated before it is there (L12).
    StateBeforeFetched,
    /// PostgreSQL is promoted without a lease of the new generation (L15).
    PromoteWithoutLease,
    /// A node goes on asking after its fence has begun (L3).
    AskWhileFenced,
    /// A change drops the old commit set at once (L18).
    DropOldCommitSet,
    /// The names are set before the record holds their set (L18).
    NamesBeforeRecord,
    /// The record is opened before k of the set hold the log (L16).
    OpenTooEarly,
    /// Voters change with the new set alone (L22).
    SingleVoterSet,
    /// Orders of an older generation are carried out (L5).
    AcceptStale,
    /// A pre-vote is granted blindly.
    GrantPreVotesBlindly,
    /// A vote is cast before it is on disk.
    VoteWithoutSync,
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The rules in force: all of them, unless a test build leaves one out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    #[cfg(feature = "mutations")]
    left_out: Option<Mutation>,
}

impl Rules {
    /// Returns the rules without one of them.
    #[cfg(feature = "mutations")]
    pub fn without(mutation: Mutation) -> Self {
        Self { left_out: Some(mutation) }
    }

    /// Returns whether `mutation` is to be committed. Constantly false unless built with the feature `mutations`.
    #[inline]
    pub fn broken(self, mutation: Mutation) -> bool {
        #[cfg(feature = "mutations")]
        return self.left_out == Some(mutation);
        #[cfg(not(feature = "mutations"))]
        {
            let _ = mutation;
            false
        }
    }
}
