//! The state as a file: read and written piece by piece, so that it never needs its own size in memory twice.
//!
//! Magic with a format byte, then frames of a length (u32, little-endian) and that many bytes of one encoded [`Section`], then
//! a length of 0 and the BLAKE3 of everything before.

use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Bytes;
use super::command::Reply;
use super::state::{State, StoredEvent, Versioned};
use super::table::{Entry, TableFacts, Tombstone};
use super::watch::Changes;
use crate::codec::{CodecError, decode, encode};
use crate::ha::record::{Assignment, ClusterIdentity, Goals, JoinToken, Member, Options, Trust};
use crate::types::{NodeId, NodeName};

/// The last byte is the format.
const MAGIC: [u8; 8] = *b"HASUPSS\x01";
/// No frame is longer; the decoder's own limit is higher.
const FRAME_BYTES_MAX: u32 = 8 << 20;
/// Entries are gathered until they hold this many bytes; one entry more fits any frame.
const FRAME_BYTES: usize = 256 << 10;
/// Small things are gathered until they are this many.
const FRAME_ITEMS: usize = 1024;

/// A snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file or stream failed.
    #[error("read a snapshot")]
    Io(#[from] io::Error),
    /// It is none, or one of a later hasup.
    #[error(
        "this is no snapshot of a format that this hasup reads: upgrade it, or remove the file and let the node copy it"
    )]
    Format,
    /// Its checksum or its frames are wrong.
    #[error("the snapshot is damaged: {0}. The node cannot use it; remove it from the cluster and join it again")]
    Damaged(&'static str),
    /// A frame holds something else.
    #[error("the snapshot holds a frame that is not understood")]
    Frame(#[from] CodecError),
}

/// One frame. New variants are added at the end.
#[derive(Serialize, Deserialize)]
enum Section {
    Facts(Box<Facts>),
    Members(Vec<Arc<Member>>),
    Tokens(Vec<Arc<JoinToken>>),
    Events(Vec<Arc<StoredEvent>>),
    Requests(Vec<(u128, Reply)>),
    Entries(Vec<(Bytes, Entry)>),
    Tombstones(Vec<Tombstone>),
    Former(Vec<(NodeId, NodeName)>),
}

/// What there is one of.
#[derive(Serialize, Deserialize)]
struct Facts {
    /// Kept for whoever wrote the snapshot; the store does not look at it.
    label: Vec<u8>,
    identity: Option<Versioned<ClusterIdentity>>,
    assignment: Option<Versioned<Assignment>>,
    members_index: u64,
    next_node_id: NodeId,
    goals: Versioned<Goals>,
    options: Versioned<Options>,
    trust: Option<Versioned<Trust>>,
    clock_ms: u64,
    table: TableFacts,
}

/// Writes `state` with `label`, which [`read`] returns again, to `out`.
pub fn write(state: &State, label: &[u8], out: impl Write) -> io::Result<()> {
    let mut out = Hashing::new(out);
    out.write_all(&MAGIC)?;
    let facts = Facts {
        label: label.to_owned(),
        identity: state.identity.clone(),
        assignment: state.assignment.clone(),
        members_index: state.members_index,
        next_node_id: state.next_node_id,
        goals: state.goals.clone(),
        options: state.options.clone(),
        trust: state.trust.clone(),
        clock_ms: state.clock_ms,
        table: state.table.facts(),
    };
    write_frame(&mut out, &Section::Facts(Box::new(facts)))?;
    write_in_frames(&mut out, state.members.values().cloned(), Section::Members)?;
    write_in_frames(&mut out, state.former.iter().map(|(id, name)| (*id, name.clone())), Section::Former)?;
    write_in_frames(&mut out, state.tokens.values().cloned(), Section::Tokens)?;
    write_in_frames(&mut out, state.events.iter().cloned(), Section::Events)?;
    let replies = state.requests.iter().filter_map(|id| Some((*id, state.replies.get(id)?.clone())));
    write_in_frames(&mut out, replies, Section::Requests)?;
    write_in_frames(&mut out, state.table.tombstones().cloned(), Section::Tombstones)?;
    let mut entries = Vec::new();
    let mut bytes = 0;
    for (key, entry) in state.table.list(b"") {
        bytes += key.len() + entry.value.len() + 64;
        entries.push((key.clone(), entry.clone()));
        if bytes >= FRAME_BYTES {
            write_frame(&mut out, &Section::Entries(std::mem::take(&mut entries)))?;
            bytes = 0;
        }
    }
    write_frame(&mut out, &Section::Entries(entries))?;
    out.write_all(&0u32.to_le_bytes())?;
    let checksum = *out.hasher.finalize().as_bytes();
    out.inner.write_all(&checksum)?;
    out.inner.flush()
}

/// Reads a state and the label it was written with. Never panics on bad bytes.
pub fn read(input: impl Read) -> Result<(Vec<u8>, State), SnapshotError> {
    let mut input = Hashing::new(input);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(SnapshotError::Format);
    }
    let mut state = State::new();
    let mut label = None;
    while let Some(frame) = read_frame(&mut input)? {
        match decode::<Section>(&frame)? {
            Section::Facts(facts) => label = Some(restore_facts(&mut state, *facts)),
            Section::Members(members) => state.members.extend(members.into_iter().map(|member| (member.id, member))),
            Section::Former(names) => names.into_iter().for_each(|(id, name)| state.note_former(id, name)),
            Section::Tokens(tokens) => state.tokens.extend(tokens.into_iter().map(|token| (token.id.clone(), token))),
            Section::Events(events) => state.events.extend(events),
            Section::Requests(replies) => {
                for (id, reply) in replies {
                    state.remember(id, reply);
                }
            }
            Section::Entries(entries) => {
                for (key, entry) in entries {
                    state.table.restore_entry(key, entry);
                }
            }
            Section::Tombstones(tombstones) => {
                for tombstone in tombstones {
                    state.table.restore_tombstone(tombstone);
                }
            }
        }
    }
    let expected = *input.hasher.finalize().as_bytes();
    let mut checksum = [0; 32];
    input.inner.read_exact(&mut checksum)?;
    if checksum != expected {
        return Err(SnapshotError::Damaged("its checksum does not match"));
    }
    if input.inner.read(&mut [0])? != 0 {
        return Err(SnapshotError::Damaged("something follows its end"));
    }
    let label = label.ok_or(SnapshotError::Damaged("it has no first frame"))?;
    state.changes = Changes::since(state.table.index());
    Ok((label, state))
}

fn restore_facts(state: &mut State, facts: Facts) -> Vec<u8> {
    state.identity = facts.identity;
    state.assignment = facts.assignment;
    state.members_index = facts.members_index;
    state.next_node_id = facts.next_node_id;
    state.goals = facts.goals;
    state.options = facts.options;
    state.trust = facts.trust;
    state.clock_ms = facts.clock_ms;
    state.table.restore_facts(&facts.table);
    facts.label
}

fn write_in_frames<T>(
    out: &mut impl Write,
    items: impl Iterator<Item = T>,
    section: impl Fn(Vec<T>) -> Section,
) -> io::Result<()> {
    let mut items = items.peekable();
    while items.peek().is_some() {
        write_frame(out, &section(items.by_ref().take(FRAME_ITEMS).collect()))?;
    }
    Ok(())
}

fn write_frame(out: &mut impl Write, section: &Section) -> io::Result<()> {
    let bytes = encode(section);
    let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= FRAME_BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::other(format!("a frame of {} bytes is too long", bytes.len())))?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&bytes)
}

/// Returns the next frame, `None` at the end.
fn read_frame(input: &mut impl Read) -> Result<Option<Vec<u8>>, SnapshotError> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    match u32::from_le_bytes(len) {
        0 => Ok(None),
        len if len > FRAME_BYTES_MAX => Err(SnapshotError::Damaged("a frame is too long")),
        len => {
            let mut bytes = Vec::new();
            input.take(u64::from(len)).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != u64::from(len) {
                return Err(SnapshotError::Damaged("it ends early"));
            }
            Ok(Some(bytes))
        }
    }
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::state::tests::{Log, add, event, record};
    use crate::kv::{Command, KvCommand, Proposal, Watch};

    fn rich() -> Log {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        log.propose(add("gone", "g:1"));
        log.propose(Command::RemoveMember { id: NodeId(2) });
        log.propose(Command::SetAssignment { expected: 0, assignment: record(1, 1) });
        log.propose(Command::PutToken {
            token: JoinToken { id: "t".into(), secret_hash: [3; 32], expires_at: u64::MAX },
        });
        log.apply(Proposal::new(77, 9_000_000, Command::AppendEvents).with_event(event("assigned")));
        for number in 0..3000 {
            let key = format!("k/{number}");
            let value = vec![7; 300];
            log.propose(Command::Kv(KvCommand::Put {
                key: key.into(),
                value: value.into(),
                flags: number,
                expected: None,
            }));
        }
        log.propose(Command::Kv(KvCommand::Delete { key: "k/5".into(), expected: None }));
        log.propose(Command::Kv(KvCommand::DeletePrefix { prefix: "k/29".into() }));
        log
    }

    fn bytes_of(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(state, b"label", &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_snapshot_brings_the_whole_state_back() {
        let mut log = rich();
        let (label, mut restored) = read(&bytes_of(&log.state)[..]).unwrap();
        assert_eq!(label, b"label");
        assert_eq!(restored, log.state);
        assert_eq!(bytes_of(&restored), bytes_of(&log.state));
        let repeat = Proposal::new(77, 0, Command::AppendEvents).with_event(event("again"));
        assert_eq!(restored.apply(9999, &repeat), log.state.apply(9999, &repeat));
        assert_eq!(restored.events.len(), 1, "the request is still remembered");
        let watch = Watch::Prefix("k/29".into());
        assert_eq!(restored.watch_index(&watch), log.state.watch_index(&watch));
        assert_eq!(restored.changed_since(&watch, 5), log.state.changed_since(&watch, 5));
        assert_eq!(log.propose(add("n2", "b:1")), restored.apply(log.index, &Proposal::new(5, 0, add("n2", "b:1"))));
    }

    #[test]
    fn any_flipped_or_missing_byte_is_noticed() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        let bytes = bytes_of(&log.state);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(read(&bad[..]).is_err(), "flipped at {at}");
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(read(&longer[..]).is_err());
    }
}
