//! Where this node is to be found. A machine whose address has changed reaches the others, and they call it where it was: at its
//! start, and for as long as its record differs from what it advertises, it tells them, and one of them changes the record.
//!
//! Only the node itself changes where it is: who asks is known by its certificate, which names the node and no address. The
//! new certificate, for those who check addresses, follows from the record.
//!
//! A machine that was copied with its data directory has the same certificate, and looks as if it had moved. So who changes the record
//! asks at the former place first: nobody answers there, or somebody else does, or this very start of the daemon (a machine with two
//! interfaces); or the same node in another start, and then two machines run as one node. That move is refused. Until a node hears that
//! its place is known, it follows nobody, as both would confirm commits under one name; once it hears that its place is taken, it asks
//! for no votes either, and waits for a person. The pulses answer the one that hears them ([`ha::pulse`](crate::ha::pulse)), and calls
//! go to the address in the record, so the other members are not misled meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::error::{ErrorCode, HandleError};
use super::names::name_of;
use super::propose::WriteError;
use crate::ha::record::{Event, EventKind, Member, WhyRecord};
use crate::ha::view::Place;
use crate::kv::{Command, State};
use crate::peer::{Addresses, DaemonStart, PeerAddress, PeerClient, PeerRefusal, PeerRequest, PeerResponse};
use crate::tls::config::MemberProtocol;
use crate::types::{Generation, NodeId};

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
/// How long a copy is told of after it was last heard: it asks again each few seconds, of one member after the other.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// The machines that were seen to run as one member: this node itself, or others that asked it to be known elsewhere.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// What is the matter with each, and when it was last seen.
    seen: Mutex<BTreeMap<NodeId, (String, Instant)>>,
}

impl Copies {
    /// Returns what was told within the last minute.
    pub(super) fn told(&self) -> Vec<String> {
        let seen = self.seen.lock();
        seen.values().filter(|(_, at)| at.elapsed() < TOLD_FOR).map(|(told, _)| told.clone()).collect()
    }

    /// Returns what was told of `node`, however long ago.
    pub(super) fn told_of(&self, node: NodeId) -> Option<String> {
        self.seen.lock().get(&node).map(|(told, _)| told.clone())
    }

    /// Notes a copy; the log is told once of each.
    fn note(&self, node: NodeId, told: String) {
        let before = self.seen.lock().insert(node, (told.clone(), Instant::now()));
        if before.is_none_or(|(before, _)| before != told) {
            tracing::error!("{told}");
        }
    }

    fn forget(&self, node: NodeId) {
        self.seen.lock().remove(&node);
    }
}

/// Why a member's new place was not taken into its record.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMoved {
    /// Another machine runs as that member at its former place.
    #[error("{0}")]
    Copied(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] HandleError),
}

impl NotMoved {
    pub(super) fn into_refusal(self) -> PeerRefusal {
        match self {
            Self::Copied(told) => PeerRefusal::Copied { told },
            Self::Other(error) => PeerRefusal::Unable { because: error.to_string() },
        }
    }
}

impl From<WriteError> for NotMoved {
    fn from(error: WriteError) -> Self {
        Self::Other(error.into())
    }
}

/// Says what it means that one answers as `name` at `known` and another at `new`.
fn two_machines(name: &str, known: &str, new: &str) -> String {
    format!(
        "Two machines run as {name}: one at {known}, where the members know it, and one at {new}. One of them was copied from the other with \
         its data directory, and no two may run as one node. The one at {new} is kept out: run `hasup destroy --yes` there, then `hasup join` \
         under a name of its own"
    )
}

/// Tells the members where this node is, whenever they know it elsewhere. Ends with the node.
pub(super) async fn tell(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    let differs = |state: &State| shared.is_elsewhere(state);
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
            if let Err(NotMoved::Copied(told)) = &tried {
                shared.copies.note(shared.me, told.clone());
                shared.news.notify_one();
            }
            // its log is another node's as well: no two may be voted for, or vote, as one
            shared.consensus.let_campaign(!matches!(tried, Err(NotMoved::Copied(_))));
            let written = states.wait_for(|applied| !differs(&applied.state));
            match timeout_at(Instant::now() + AGAIN, written).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            if let Err(NotMoved::Other(why)) = tried
                && warn_at.is_some_and(|at| Instant::now() > at)
            {
                warn_at = None;
                tracing::warn!(
                    was,
                    now,
                    %why,
                    "the members do not know where this node is now, so it is not heard and takes no part; it goes on telling them. A \
                     majority of them must be reached where they were: if more nodes have moved, give some their former addresses back, \
                     and move them one after the other"
                );
            }
        }
        tracing::info!(now, "the members know where this node is");
        shared.copies.forget(shared.me);
        shared.consensus.let_campaign(true);
        shared.news.notify_one();
    }
}

/// Has the record changed: by this node itself where it leads, else by the first member that can. Where its former place is taken, each
/// of them is told, and tells the operators who ask it.
async fn ask(shared: &Shared) -> Result<(), NotMoved> {
    let mut why = Vec::new();
    let mut copied = None;
    // a follower may know the leader without being reached by it, and then has not the present record
    if shared.consensus.leadership().borrow().is_leader {
        match timeout(ASK_LIMIT, shared.take_addresses(shared.me, shared.addresses.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error @ NotMoved::Copied(_))) => return Err(error),
            Ok(Err(NotMoved::Other(error))) => why.push(error.to_string()),
            Err(_) => why.push("this node leads, and was not answered in time".to_owned()),
        }
    }
    let others: Vec<NodeId> = shared.state().members.keys().copied().filter(|node| *node != shared.me).collect();
    for node in others {
        let request = PeerRequest::Moved(shared.addresses.clone());
        match shared.peers.call(node, MemberProtocol::Raft, request, ASK_LIMIT).await {
            Ok(PeerResponse::Moved) => return Ok(()),
            Ok(PeerResponse::Refused(PeerRefusal::Copied { told })) => copied = Some(told),
            Ok(other) => why.push(format!("{}: {}", name_of(node, &shared.state()), other.why_not())),
            Err(error) => why.push(error.to_string()),
        }
    }
    Err(match copied {
        Some(told) => NotMoved::Copied(told),
        None => NotMoved::Other(HandleError::new(ErrorCode::Unreachable, why.join("; "))),
    })
}

impl Shared {
    /// Returns whether this node is not where its record in `state` says.
    fn is_elsewhere(&self, state: &State) -> bool {
        state.members.get(&self.me).is_some_and(|member| Addresses::of(member) != self.addresses)
    }

    /// Returns whether the members know where this node is, as far as it has heard.
    pub(super) fn place(&self, state: &State) -> Place {
        match (self.is_elsewhere(state), self.copies.told_of(self.me).is_some()) {
            (false, _) => Place::Known,
            (true, false) => Place::Moved,
            (true, true) => Place::Taken,
        }
    }

    /// Asks whoever answers as `member` at `place`, and nowhere else.
    async fn call_at(&self, member: &Member, place: &[String], request: PeerRequest) -> Result<PeerResponse, String> {
        let (client, work) = PeerClient::new(Arc::clone(&self.tls));
        client.set_peers([PeerAddress { id: member.id, name: member.name.clone(), addresses: place.to_vec() }]);
        tokio::select! {
            answer = client.call(member.id, MemberProtocol::Raft, request, FIND_LIMIT) => answer.map_err(|error| error.to_string()),
            () = work => Err("the call ended early".to_owned()),
        }
    }

    /// Returns which start of a daemon answers as `member` at `place`; none where nobody does, or one that cannot say.
    async fn start_at(&self, member: &Member, place: &[String]) -> Option<DaemonStart> {
        match self.call_at(member, place, PeerRequest::DaemonStart).await {
            Ok(PeerResponse::DaemonStart(start)) => Some(start),
            Ok(_) | Err(_) => None,
        }
    }

    /// Asks `member` at the place that it says it is at: nobody would find it there by a slip in its settings, and it would be out.
    async fn find_at(&self, member: &Member, addresses: &Addresses) -> Result<(), HandleError> {
        let answer = self.call_at(member, &addresses.peer, PeerRequest::Ping).await;
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

    /// Returns whether another machine answers as `member` at the place that it says it has left.
    ///
    /// # Errors
    /// Somebody answers there, and this time nobody at the new place.
    async fn is_taken(&self, member: &Member, addresses: &Addresses) -> Result<bool, HandleError> {
        let left: Vec<String> =
            member.peer_addresses.iter().filter(|address| !addresses.peer.contains(address)).cloned().collect();
        if left.is_empty() {
            return Ok(false);
        }
        let Some(there) = self.start_at(member, &left).await else { return Ok(false) };
        let here = if member.id == self.me { Some(self.start) } else { self.start_at(member, &addresses.peer).await };
        let unanswered = || format!("{} does not answer at {}", member.name, addresses.peer.join(", "));
        let here = here.ok_or_else(|| HandleError::new(ErrorCode::Unreachable, unanswered()))?;
        Ok(here != there)
    }

    /// Changes where `node` is to be found, by its own word.
    ///
    /// # Errors
    /// It is no member, does not answer there, another machine answers as it where it was, another member has one of the addresses, or
    /// nobody can write now.
    pub(super) async fn take_addresses(&self, node: NodeId, addresses: Addresses) -> Result<(), NotMoved> {
        // an older record would take back what operators have changed since
        let state = self.read(true).await?;
        let Some(member) = state.members.get(&node) else {
            let told = format!("Node {node} is no member. Nothing was changed");
            return Err(HandleError::new(ErrorCode::NotFound, told).into());
        };
        let before = Addresses::of(member);
        if before == addresses {
            return Ok(());
        }
        let found = async { if node == self.me { Ok(()) } else { self.find_at(member, &addresses).await } };
        // what has gone silent takes its time not to answer
        let (found, is_taken) = tokio::join!(found, self.is_taken(member, &addresses));
        found?;
        let is_taken = is_taken?;
        let (was, now) = (before.peer.join(", "), addresses.peer.join(", "));
        let generation = state.assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        if is_taken {
            let told = two_machines(member.name.as_str(), &was, &now);
            self.tell_of_copy(&state, generation, member, &now, told.clone()).await;
            return Err(NotMoved::Copied(told));
        }
        let why = WhyRecord {
            facts: vec![format!("{} says that it is at {now} now", member.name)],
            rule: "a member says where it is".to_owned(),
            step: format!("{} is no longer looked for at {was}", member.name),
        };
        let event = self.event(EventKind::MemberMoved, generation, why);
        let command = |state: &State| match state.members.get(&node) {
            Some(member) if Addresses::of(member) == before => {
                let member = addresses.clone().moves(member);
                Ok((Command::ChangeMember { expected: state.members_index, member }, Some(event.clone()), ()))
            }
            // what was found out above is about another place: the node asks again
            _ => Err(WriteError::Conflict { current: state.members_index }),
        };
        self.write_over(command, WRITE_LIMIT).await?;
        self.copies.forget(node);
        Ok(())
    }

    /// Tells operators that another machine asks at `now` to be `member`: the status of this node does for a while, and the history
    /// once, whichever members it asks.
    async fn tell_of_copy(&self, state: &State, generation: Generation, member: &Member, now: &str, told: String) {
        self.copies.note(member.id, told.clone());
        self.news.notify_one();
        let step = format!("{} is not looked for at {now}", member.name);
        let is_known = |event: &Event| event.is(EventKind::NodeCopied) && event.why.step == step;
        if state.events.iter().any(|stored| is_known(&stored.event)) {
            return;
        }
        let why = WhyRecord { facts: vec![told], rule: "one machine is one member".to_owned(), step };
        let event = self.event(EventKind::NodeCopied, generation, why);
        if let Err(error) = self.write(Command::AppendEvents, Some(event), WRITE_LIMIT).await {
            tracing::info!(%error, "an event is missing from the history");
        }
    }
}
