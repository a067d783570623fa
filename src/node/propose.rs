//! Writes to the store from any node: to the leader, wherever that is, once.

use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use crate::codec;
use crate::ha::record::Event;
use crate::kv::{Command, Proposal, Refusal, Reply, State};
use crate::peer::{PeerError, PeerRefusal, PeerRequest, PeerResponse};
use crate::raft::{Applied, ProposeError};
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
        over(self.consensus.state(), |command, event, left| self.write(command, event, left), change, limit).await
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

/// The rule of [`Shared::write_over`]: `states` are what the node applies, `write` writes within the time that is left.
async fn over<T, E: From<WriteError>, W: Future<Output = Result<Reply, WriteError>>>(
    mut states: watch::Receiver<Arc<Applied>>,
    write: impl Fn(Command, Option<Event>, Duration) -> W,
    change: impl Fn(&State) -> Result<(Command, Option<Event>, T), E>,
    limit: Duration,
) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        let state = Arc::clone(&states.borrow().state);
        let (command, event, given) = change(&state)?;
        let error = match write(command, event, deadline - Instant::now()).await {
            Ok(_) => return Ok(given),
            Err(error) => error,
        };
        let WriteError::Conflict { current } = error else { return Err(error.into()) };
        // a node that stays behind has nothing newer to make it from
        let is_known = states.wait_for(|applied| applied.index >= current);
        if timeout_at(deadline, is_known).await.is_err() || Instant::now() >= deadline {
            return Err(error.into());
        }
    }
}

enum Outcome {
    Replied(Reply),
    NotDone,
    Unknown,
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const AMPLE: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    /// A state applied up to `index`, which it bears as its clock.
    fn applied(index: u64) -> Arc<Applied> {
        let mut state = State::new();
        state.clock_ms = index;
        Arc::new(Applied { state: Arc::new(state), index })
    }

    fn change(state: &State) -> Result<(Command, Option<Event>, u64), WriteError> {
        Ok((Command::RevokeToken { id: state.clock_ms.to_string() }, None, state.clock_ms))
    }

    const QUICKER: WriteError = WriteError::Conflict { current: 7 };

    #[tokio::test]
    async fn a_change_is_made_anew_from_the_state_in_which_somebody_was_quicker() {
        let (states, seen) = watch::channel(applied(5));
        let (tried, mut tries) = watch::channel(Vec::new());
        let write = async |command, _event, left| {
            assert!(left <= AMPLE);
            let Command::RevokeToken { id } = command else { panic!("{command:?}") };
            let is_first = tried.borrow().is_empty();
            tried.send_modify(|tried| tried.push(id));
            if is_first { Err(QUICKER) } else { Ok(Reply::Applied { index: 8 }) }
        };
        let others = async {
            tries.wait_for(|tried| !tried.is_empty()).await.unwrap();
            states.send_replace(applied(6));
            tokio::task::yield_now().await;
            assert_eq!(tried.borrow().len(), 1, "that is older than what it is to be made from");
            states.send_replace(applied(7));
        };
        let (given, ()) = tokio::join!(over(seen, write, change, AMPLE), others);
        assert_eq!(given, Ok(7), "what belongs to the change that was written");
        assert_eq!(*tried.borrow(), ["5", "7"]);
    }

    #[tokio::test]
    async fn the_limit_is_for_all_tries_together() {
        let stays_behind = watch::channel(applied(5));
        let tries = RefCell::new(Vec::new());
        let write = async |_command, _event, left: Duration| {
            tries.borrow_mut().push(left);
            tokio::time::sleep(SHORT / 5).await;
            Err::<Reply, _>(QUICKER)
        };
        let given = tokio::time::timeout(AMPLE, over(stays_behind.1, &write, change, SHORT)).await;
        assert_eq!(given.expect("it ends"), Err(QUICKER), "there is nothing newer");
        assert_eq!(tries.borrow().len(), 1);

        let follows = watch::channel(applied(7));
        let given = tokio::time::timeout(AMPLE, over(follows.1, &write, change, SHORT)).await;
        assert_eq!(given.expect("it ends"), Err(QUICKER), "others are always quicker");
        let left = tries.take().split_off(1);
        assert!(left.len() <= 5 && left.is_sorted_by(|before, after| before > after), "{left:?}");
    }

    #[tokio::test]
    async fn nothing_but_a_conflict_is_tried_again() {
        for error in [WriteError::NoLeader, WriteError::Unknown, WriteError::Refused(Refusal::OtherCluster)] {
            let (_states, seen) = watch::channel(applied(9));
            let tries = RefCell::new(0);
            let write = async |_command, _event, _left| {
                *tries.borrow_mut() += 1;
                Err(error.clone())
            };
            assert_eq!(over(seen, write, change, AMPLE).await, Err(error.clone()));
            assert_eq!(tries.take(), 1);
        }
        let (_states, seen) = watch::channel(applied(9));
        let refuses = |_: &State| Err::<(Command, Option<Event>, ()), _>(WriteError::Refused(Refusal::OtherCluster));
        let write = async |_command, _event, _left| panic!("there is nothing to write");
        assert_eq!(over(seen, write, refuses, AMPLE).await, Err(WriteError::Refused(Refusal::OtherCluster)));
    }
}
