//! The receiving side of other members' calls.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use openraft::raft::{SnapshotResponse, VoteResponse};
use tokio::sync::Mutex;

use super::network::{Request, Response, SnapshotPiece};
use super::state_machine::SnapshotFile;
use super::types::{Raft, Snapshot, SnapshotMeta, Vote};
use crate::codec::{decode, encode};
use crate::ha::rules::{Mutation, Rules};
use crate::types::NodeId;

/// Answers calls. One snapshot is received at a time; a sender that finds another in the way begins anew.
pub(super) struct Server {
    raft: Raft,
    /// Where a snapshot grows until it is whole.
    path: PathBuf,
    incoming: Mutex<Option<Incoming>>,
    rules: Rules,
}

/// A snapshot of which the first pieces are here.
struct Incoming {
    from: NodeId,
    meta: SnapshotMeta,
    file: File,
    taken: u64,
}

impl Server {
    pub(super) fn new(raft: Raft, path: PathBuf, rules: Rules) -> Self {
        Self { raft, path, incoming: Mutex::new(None), rules }
    }

    /// Returns the encoded answer to the encoded call of `from`, whose name the transport has checked.
    pub(super) async fn serve(&self, from: NodeId, bytes: &[u8]) -> Vec<u8> {
        let response = match decode::<Request>(bytes) {
            Ok(request) if speaker(&request) == from => self.answer(from, request).await,
            Ok(request) => Err(format!("node {from} spoke for node {}", speaker(&request))),
            Err(error) => Err(format!("a call of node {from} is not understood: {error}")),
        };
        encode(&response.unwrap_or_else(Response::Refused))
    }

    async fn answer(&self, from: NodeId, request: Request) -> Result<Response, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        match request {
            Request::Append(request) => {
                self.raft.append_entries(request).await.map(Response::Append).map_err(|error| told(&error))
            }
            Request::Vote(request) => self.raft.vote(request).await.map(Response::Vote).map_err(|error| told(&error)),
            Request::PreVote(request) if self.rules.broken(Mutation::GrantPreVotesBlindly) => {
                Ok(Response::Vote(VoteResponse::new(request.vote, request.last_log_id, true)))
            }
            Request::PreVote(request) => {
                self.raft.pre_vote(request).await.map(Response::Vote).map_err(|error| told(&error))
            }
            Request::Transfer(request) => {
                self.raft.handle_transfer_leader(request).await.map(Response::Transfer).map_err(|error| told(&error))
            }
            Request::Snapshot(piece) => self.take_piece(from, piece).await.map_err(|error| told(&error)),
        }
    }

    async fn take_piece(&self, from: NodeId, piece: SnapshotPiece) -> io::Result<Response> {
        let mut incoming = self.incoming.lock().await;
        if piece.offset == 0 {
            let path = self.path.clone();
            let file = tokio::task::spawn_blocking(move || File::create(path)).await.map_err(io::Error::other)??;
            *incoming = Some(Incoming { from, meta: piece.meta.clone(), file, taken: 0 });
        }
        let expected = |open: &Incoming| open.from == from && open.meta == piece.meta && open.taken == piece.offset;
        let Some(open) = incoming.as_mut().filter(|open| expected(open)) else {
            return Err(io::Error::other("this piece of a snapshot does not follow the one before: begin anew"));
        };
        let mut file = open.file.try_clone()?;
        open.taken += piece.bytes.len() as u64;
        let taken = open.taken;
        tokio::task::spawn_blocking(move || file.write_all(&piece.bytes)).await.map_err(io::Error::other)??;
        if taken < piece.len {
            return Ok(Response::SnapshotPiece(taken));
        }
        *incoming = None;
        self.install(piece.vote, piece.meta).await.map(Response::Snapshot)
    }

    async fn install(&self, vote: Vote, meta: SnapshotMeta) -> io::Result<SnapshotResponse<super::types::TypeConfig>> {
        let path = self.path.clone();
        // openraft copies it into the folder of snapshots; the name here goes, the handle stays.
        let snapshot = tokio::task::spawn_blocking(move || {
            let opened = SnapshotFile::open(&path)?;
            fs::remove_file(&path)?;
            Ok::<_, io::Error>(opened)
        });
        let snapshot = Snapshot { meta, snapshot: snapshot.await.map_err(io::Error::other)?? };
        self.raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other)
    }
}

/// Returns in whose name a call speaks.
fn speaker(request: &Request) -> NodeId {
    let vote = match request {
        Request::Append(request) => &request.vote,
        Request::Vote(request) | Request::PreVote(request) => &request.vote,
        Request::Transfer(request) => request.from_leader(),
        Request::Snapshot(piece) => &piece.vote,
    };
    NodeId(vote.leader_id.voted_for)
}
