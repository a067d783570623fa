//! Writes to the store from any node: to the leader, wherever that is, once.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use crate::codec;
use crate::ha::record::Event;
use crate::kv::{Command, Proposal, Refusal, Reply, State};
use crate::peer::{PeerError, PeerRefusal, PeerRequest, PeerResponse};
use crate::raft::ProposeError;
use crate::sys::clock::wall_now;
use crate::tls::config::MemberProtocol;
use crate::types::NodeId;

/// How long one try at one leader may take before another is looked for.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries while there is no leader: an election takes a few hundred milliseconds.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A write that was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WriteError {
    /// The record has changed meanwhile; nothing was written.
    #[error("nothing was changed: {}", conflict(*current))]
    Conflict { current: u64 },
    /// The store refuses it; nothing was written.
    #[error(transparent)]
    Refused(Refusal),
    /// No leader took it in time; nothing was written.
    #[error("no leader could be reached, so nothing was changed: this node may stand in a minority")]
    NoLeader,
    /// It was sent and not answered: it may still be written.
    #[error("a leader took it and no answer came: it may have been done or not")]
    Unknown,
}

fn conflict(current: u64) -> String {
    match current {
        0 => "it is not there".to_owned(),
        index => format!("it was changed meanwhile, and is at index {index}"),
    }
}

/// Draws an id for a request: what bears it is applied once, however often it is sent.
pub(super) fn request_id() -> u128 {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives randomness");
    u128::from_le_bytes(bytes)
}

impl Shared {
    /// Writes `command` through the leader within `limit`, and returns the store's reply to it.
    ///
    /// Sent again under the same id where a try was lost, so it is applied once at the most.
    pub(super) async fn write(
        &self,
        command: Command,
        event: Option<Event>,
        limit: Duration,
    ) -> Result<Reply, WriteError> {
        let at_ms = u64::try_from(wall_now().as_millis()).unwrap_or(u64::MAX);
        let mut proposal = Proposal::new(request_id(), at_ms, command);
        proposal.events.extend(event);
        let deadline = Instant::now() + limit;
        let mut may_be_done = false;
        loop {
            let until = deadline.min(Instant::now() + TRY_LIMIT);
            match timeout_at(until, self.write_once(&proposal)).await {
                Ok(Outcome::Replied(Reply::Conflict { current })) => return Err(WriteError::Conflict { current }),
                Ok(Outcome::Replied(Reply::Refused { reason })) => return Err(WriteError::Refused(reason)),
                Ok(Outcome::Replied(reply)) => return Ok(reply),
                Ok(Outcome::NotDone) => {}
                Ok(Outcome::Unknown) | Err(_) => may_be_done = true,
            }
            if Instant::now() + TRY_AGAIN >= deadline {
                return Err(if may_be_done { WriteError::Unknown } else { WriteError::NoLeader });
            }
            sleep(TRY_AGAIN).await;
        }
    }

    /// Writes what `change` makes of the present state, by compare-and-set and with its event, and returns what `change` gave beside
    /// them; makes it anew from the newer state where somebody was quicker. `limit` is for all of it.
    pub(super) async fn write_over<T, E: From<WriteError>>(
        &self,
        change: impl Fn(&State) -> Result<(Command, Option<Event>, T), E>,
        limit: Duration,
    ) -> Result<T, E> {
        let deadline = Instant::now() + limit;
        let mut states = self.consensus.state();
        loop {
            let (command, event, given) = change(&self.state())?;
            let error = match self.write(command, event, deadline - Instant::now()).await {
                Ok(_) => return Ok(given),
                Err(error) => error,
            };
            let WriteError::Conflict { current } = error else { return Err(error.into()) };
            // a node that stays behind has nothing newer to make it from
            let is_known = states.wait_for(|applied| applied.index >= current);
            if timeout_at(deadline, is_known).await.is_err() {
                return Err(error.into());
            }
        }
    }

    async fn write_once(&self, proposal: &Proposal) -> Outcome {
        let leadership = self.consensus.leadership().borrow().clone();
        match leadership.leader {
            Some(leader) if leader == self.me => match self.consensus.propose(proposal.clone(), TRY_LIMIT).await {
                Ok(reply) => Outcome::Replied(reply),
                Err(ProposeError::Unknown(_)) => Outcome::Unknown,
                Err(_) => Outcome::NotDone,
            },
            Some(leader) => self.hand_to(leader, proposal).await,
            None => Outcome::NotDone,
        }
    }

    async fn hand_to(&self, leader: NodeId, proposal: &Proposal) -> Outcome {
        let request = PeerRequest::Propose(codec::encode(proposal));
        match self.peers.call(leader, MemberProtocol::Raft, request, TRY_LIMIT).await {
            Ok(PeerResponse::Propose(bytes)) => codec::decode(&bytes).map_or(Outcome::Unknown, Outcome::Replied),
            Ok(PeerResponse::Refused(PeerRefusal::NotLeader { .. })) => Outcome::NotDone,
            Ok(_) | Err(PeerError::Unknown { .. }) => Outcome::Unknown,
            Err(PeerError::NotSent { .. }) => Outcome::NotDone,
        }
    }
}

enum Outcome {
    Replied(Reply),
    NotDone,
    Unknown,
}
