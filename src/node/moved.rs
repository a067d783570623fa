//! Where this node is to be found. A machine whose address has changed reaches the others, and they call it where it was: at its
//! start, and for as long as its record differs from what it advertises, it tells them, and one of them changes the record.
//!
//! Only the node itself changes where it is: who asks is known by its certificate, which names the node and no address. The
//! new certificate, for those who check addresses, follows from the record.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::error::{ErrorCode, HandleError};
use super::names::name_of;
use crate::ha::record::{Member, WhyRecord};
use crate::kv::Command;
use crate::peer::{Addresses, PeerAddress, PeerClient, PeerRequest, PeerResponse};
use crate::tls::config::MemberProtocol;
use crate::types::NodeId;

/// How long the change of a record may take, once a member was asked for it.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// How long one member may take to have it done: to ask the leader for the present state, and to write.
const ASK_LIMIT: Duration = Duration::from_secs(8);
/// How long the store may take to come to this node once the members have written, and how soon they are asked again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long the node may take to answer at its new place.
const FIND_LIMIT: Duration = Duration::from_secs(3);
/// What an election and a few lost tries may take; after that, a person should know.
const PATIENCE: Duration = Duration::from_secs(15);

/// Tells the members where this node is, whenever they know it elsewhere. Ends with the node.
pub(super) async fn tell(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    let differs = |state: &crate::kv::State| {
        state.members.get(&shared.me).is_some_and(|member| Addresses::of(member) != shared.addresses)
    };
    loop {
        if states.wait_for(|applied| differs(&applied.state)).await.is_err() {
            return;
        }
        let was = shared.state().members.get(&shared.me).map(|member| member.peer_addresses.join(", "));
        let (was, now) = (was.unwrap_or_default(), shared.addresses.peer.join(", "));
        tracing::info!(was, now, "this node is not where its record says: the members are told");
        let mut warn_at = Some(Instant::now() + PATIENCE);
        loop {
            let tried = ask(&shared).await;
            let written = states.wait_for(|applied| !differs(&applied.state));
            match timeout_at(Instant::now() + AGAIN, written).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            if let Err(why) = tried
                && warn_at.is_some_and(|at| Instant::now() > at)
            {
                warn_at = None;
                tracing::warn!(
                    was,
                    now,
                    why,
                    "the members do not know where this node is now, so it is not heard and takes no part; it goes on telling them. A \
                     majority of them must be reached where they were: if more nodes have moved, give some their former addresses back, \
                     and move them one after the other"
                );
            }
        }
        tracing::info!(now, "the members know where this node is");
    }
}

/// Has the record changed: by this node itself where it leads, else by the first member that can.
async fn ask(shared: &Shared) -> Result<(), String> {
    let mut why = Vec::new();
    // a follower may know the leader without being reached by it, and then has not the present record
    if shared.consensus.leadership().borrow().is_leader {
        match timeout(ASK_LIMIT, shared.take_addresses(shared.me, shared.addresses.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => why.push(error.to_string()),
            Err(_) => why.push("this node leads, and was not answered in time".to_owned()),
        }
    }
    let others: Vec<NodeId> = shared.state().members.keys().copied().filter(|node| *node != shared.me).collect();
    for node in others {
        let request = PeerRequest::Moved(shared.addresses.clone());
        match shared.peers.call(node, MemberProtocol::Raft, request, ASK_LIMIT).await {
            Ok(PeerResponse::Moved) => return Ok(()),
            Ok(other) => why.push(format!("{}: {}", name_of(node, &shared.state()), other.why_not())),
            Err(error) => why.push(error.to_string()),
        }
    }
    Err(why.join("; "))
}

impl Shared {
    /// Asks `member` at the place that it says it is at: nobody would find it there by a slip in its settings, and it would be out.
    async fn find_at(&self, member: &Member, addresses: &Addresses) -> Result<(), HandleError> {
        let (client, work) = PeerClient::new(Arc::clone(&self.tls));
        client.set_peers([PeerAddress { id: member.id, name: member.name.clone(), addresses: addresses.peer.clone() }]);
        let answer = tokio::select! {
            answer = client.call(member.id, MemberProtocol::Raft, PeerRequest::Ping, FIND_LIMIT) => answer,
            () = work => return Err(HandleError::new(ErrorCode::Internal, "the call ended early")),
        };
        answer.map(drop).map_err(|error| {
            HandleError::new(
                ErrorCode::BadRequest,
                format!(
                    "{} does not answer {} at {}, where it says that it is now ({error}). Nothing was changed: mend its `host_ip` or \
                     `peer.advertise`, and restart it",
                    member.name,
                    self.name,
                    addresses.peer.join(", ")
                ),
            )
        })
    }

    /// Changes where `node` is to be found, by its own word.
    ///
    /// # Errors
    /// It is no member, does not answer there, another has one of the addresses, or nobody can write now.
    pub(super) async fn take_addresses(&self, node: NodeId, addresses: Addresses) -> Result<(), HandleError> {
        // an older record would take back what operators have changed since
        let state = self.read(true).await?;
        let Some(member) = state.members.get(&node) else {
            return Err(HandleError::new(
                ErrorCode::NotFound,
                format!("Node {node} is no member. Nothing was changed"),
            ));
        };
        let before = Addresses::of(member);
        if before == addresses {
            return Ok(());
        }
        if node != self.me {
            self.find_at(member, &addresses).await?;
        }
        let why = WhyRecord {
            facts: vec![format!("{} says that it is at {} now", member.name, addresses.peer.join(", "))],
            rule: "a member says where it is".to_owned(),
            step: format!("{} is no longer looked for at {}", member.name, before.peer.join(", ")),
        };
        let generation = state.assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        let event = self.event("member_moved", generation, why);
        self.write(Command::PutMember { member: addresses.moves(member) }, Some(event), WRITE_LIMIT).await?;
        Ok(())
    }
}
