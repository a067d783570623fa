//! openraft's calls to other members, as opaque bytes over a transport.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use openraft::RPCTypes;
use openraft::errors::{ErrorSource, NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, StorageError};
use serde::{Deserialize, Serialize};

use super::confirmed::Confirmed;
use super::state_machine::SnapshotFile;
use super::types::{Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::codec::{decode, encode};
use crate::types::NodeId;

/// The longest call: what a frame of the peer port must hold.
pub const RPC_BYTES_MAX: usize = 1 << 20;
/// A snapshot travels in pieces of this size.
const SNAPSHOT_PIECE: usize = 512 << 10;
/// The least time that a piece gets, and how many bytes a slow machine installs in a second.
const PIECE_DEADLINE: Duration = Duration::from_secs(3);
const INSTALLED_PER_SECOND: u64 = 4 << 20;
/// A follower that must sync a slow disk gets this many heartbeats' time for entries, so that a batch is not sent twice.
const APPEND_HEARTBEATS: u32 = 5;

/// Which calls share a connection: none of them may hold up those of another lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, votes and handing over: small, and late is as good as lost.
    Urgent,
    /// Log entries.
    Entries,
    /// Snapshots.
    Bulk,
}

/// One call: opaque bytes for [`Consensus::serve`](super::Consensus::serve) on the other side.
#[derive(Debug, Clone)]
pub struct RaftRpc {
    /// The connection that it belongs on.
    pub lane: Lane,
    /// At most [`RPC_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// A call got no answer. Whether it was carried out is unknown; Raft does not need to know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No connection: trying again at once is useless.
    #[error("node {target} is unreachable: {why}")]
    Unreachable {
        /// The node called.
        target: NodeId,
        /// What was tried.
        why: String,
    },
    /// The connection broke, or the deadline passed.
    #[error("node {target} did not answer: {why}")]
    NoAnswer {
        /// The node called.
        target: NodeId,
        /// What happened.
        why: String,
    },
}

/// Carries calls to other members. The peer module implements it, and tests do.
pub trait RaftTransport: Send + Sync + 'static {
    /// Returns the answer of `target`, or an error once `deadline` has passed. An error is never turned into an answer.
    fn call(&self, target: NodeId, rpc: RaftRpc, deadline: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>>;
}

/// A call as it is encoded. New variants are added at the end.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    Snapshot(SnapshotPiece),
}

/// A piece of a snapshot. The first one has offset 0 and begins anew.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotPiece {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) offset: u64,
    /// Length of the whole.
    pub(super) len: u64,
    pub(super) bytes: crate::kv::Bytes,
}

/// An answer as it is encoded. New variants are added at the end.
#[derive(Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    Transfer(TransferLeaderResponse<TypeConfig>),
    /// The piece was taken; so many bytes are there now.
    SnapshotPiece(u64),
    /// The snapshot is installed, or its sender is outdated.
    Snapshot(SnapshotResponse<TypeConfig>),
    /// The call was not carried out.
    Refused(String),
}

/// Makes a client for each member.
pub(super) struct Network {
    pub(super) me: NodeId,
    pub(super) heartbeat: Duration,
    pub(super) transport: Arc<dyn RaftTransport>,
    pub(super) confirmed: Confirmed,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Client {
        self.client(target, Lane::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Client {
        self.client(target, Lane::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: u64, _node: &EmptyNode) -> Client {
        self.client(target, Lane::Bulk)
    }
}

impl Network {
    fn client(&self, target: u64, lane: Lane) -> Client {
        let (me, target, heartbeat) = (self.me, NodeId(target), self.heartbeat);
        Client { me, target, lane, heartbeat, transport: self.transport.clone(), confirmed: self.confirmed.clone() }
    }
}

/// Calls one member.
pub(super) struct Client {
    me: NodeId,
    target: NodeId,
    lane: Lane,
    heartbeat: Duration,
    transport: Arc<dyn RaftTransport>,
    confirmed: Confirmed,
}

impl Client {
    async fn call(
        &self,
        action: RPCTypes,
        lane: Lane,
        request: &Request,
        deadline: Duration,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let rpc = RaftRpc { lane, bytes: encode(request) };
        let late = || RPCError::Timeout(Timeout { action, id: self.me.0, target: self.target.0, timeout: deadline });
        match tokio::time::timeout(deadline, self.transport.call(self.target, rpc, deadline)).await {
            Err(_) => Err(late()),
            Ok(Err(error @ TransportError::Unreachable { .. })) => Err(Unreachable::new(&error).into()),
            Ok(Err(error @ TransportError::NoAnswer { .. })) => Err(NetworkError::new(&error).into()),
            Ok(Ok(bytes)) => match decode(&bytes) {
                Ok(Response::Refused(why)) => Err(Unreachable::from_string(why).into()),
                Ok(response) => Ok(response),
                Err(error) => Err(Unreachable::new(&error).into()),
            },
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        file: SnapshotFile,
        deadline: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut offset = 0;
        loop {
            let read = {
                let file = file.clone();
                move || file.read_at(offset, SNAPSHOT_PIECE)
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).and_then(|read| read);
            let bytes = read.map_err(|error| {
                let told = <openraft::impls::BoxedErrorSource as ErrorSource>::from_error(&error);
                StorageError::<TypeConfig>::read_snapshot(Some(meta.signature()), told)
            })?;
            let sent = offset + bytes.len() as u64;
            let patience = piece_deadline(file.len(), sent == file.len()).min(deadline);
            let piece = SnapshotPiece { vote, meta: meta.clone(), offset, len: file.len(), bytes: bytes.into() };
            let request = Request::Snapshot(piece);
            match self.call(RPCTypes::InstallSnapshot, Lane::Bulk, &request, patience).await? {
                Response::Snapshot(response) => return Ok(response),
                Response::SnapshotPiece(taken) if taken == sent && sent < file.len() => offset = sent,
                _ => return Err(unexpected().into()),
            }
        }
    }
}

/// Returns how long a piece of a snapshot of `len` bytes may take: the last one is answered when all of it is installed.
///
/// Nothing else is sent to a member meanwhile, so one that lost its power must not be waited for much longer than it is off.
fn piece_deadline(len: u64, is_last: bool) -> Duration {
    let installing = if is_last { Duration::from_secs(len / INSTALLED_PER_SECOND) } else { Duration::ZERO };
    PIECE_DEADLINE + installing
}

fn unexpected() -> RPCError<TypeConfig> {
    Unreachable::from_string("it answered another question").into()
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = match request.entries.is_empty() {
            true => option.soft_ttl(),
            false => option.soft_ttl().max(self.heartbeat * APPEND_HEARTBEATS),
        };
        let sent = self.confirmed.sends(self.target, &request);
        match self.call(RPCTypes::AppendEntries, self.lane, &Request::Append(request), deadline).await? {
            Response::Append(response) => {
                self.confirmed.hears(&sent, &response);
                Ok(response)
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::Vote, Lane::Urgent, &Request::Vote(request), option.soft_ttl()).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::Vote, Lane::Urgent, &Request::PreVote(request), option.soft_ttl()).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = pin!(self.send_snapshot(vote, snapshot.meta, snapshot.snapshot, option.soft_ttl()));
        match select(pin!(cancel), sending).await {
            Either::Left((closed, _)) => Err(closed.into()),
            Either::Right((result, _)) => result,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(RPCTypes::TransferLeader, Lane::Urgent, &Request::Transfer(request), option.soft_ttl()).await? {
            Response::Transfer(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }
}
