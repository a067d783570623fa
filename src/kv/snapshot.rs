//! The state as a file: read and written piece by piece, so that it never needs its own size in memory twice.
//!
//! Magic with a format byte, then frames of a length (u32, little-endian) and that many bytes of one encoded [`Section`], then
//! a length of 0 and the BLAKE3 of everything before.
//!
//! What comes later is a [`Named`] section, which has a format number of its own and says which release brought it and whether the
//! state is whole without it: an older hasup skips what it need not know, and else says what it lacks. So a snapshot goes both ways
//! between the releases of a cluster that is being upgraded, for as long as nothing needed is in it.

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
    /// A later hasup wrote what the state is not whole without.
    #[error(
        "the snapshot holds {section}, which this hasup ({}) cannot read and must not leave out: a later one wrote it{}. Nothing was \
         changed. Upgrade hasup on this node",
        env!("CARGO_PKG_VERSION"),
        since.as_ref().map(|since| format!(" ({since} or later)")).unwrap_or_default()
    )]
    Newer {
        /// What it is.
        section: String,
        /// The first release that writes it, where it says so.
        since: Option<String>,
    },
}

/// One frame. What is new is [`Named`].
#[derive(Serialize, Deserialize)]
enum Section {
    Facts(Box<Facts>),
    Members(Vec<Arc<Member>>),
    Tokens(Vec<Arc<JoinToken>>),
    Events(Vec<Arc<StoredEvent>>),
    Requests(Vec<(u128, Reply)>),
    Entries(Vec<(Bytes, Entry)>),
    Tombstones(Vec<Tombstone>),
    /// As builds wrote it before there were named sections.
    Former(Vec<(NodeId, NodeName)>),
    Named(Named),
}

/// The number of [`Section::Named`], the last one: a frame tells its section by its second byte.
const SECTION_MAX: u8 = 8;

/// A part of the state that came after the first format.
#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    /// Of `body`.
    format: u32,
    /// The first release that writes it in this format.
    since: String,
    /// Whether a state without it is not what the cluster agreed on.
    is_needed: bool,
    body: Vec<u8>,
}

/// What former members were called: for people alone.
const FORMER: &str = "former";

impl Named {
    fn former(names: &[(NodeId, NodeName)]) -> Self {
        Self { name: FORMER.to_owned(), format: 1, since: "0.1.0".to_owned(), is_needed: false, body: encode(names) }
    }

    /// Puts it into `state`, if it is known or may be left out.
    fn restore(self, state: &mut State) -> Result<(), SnapshotError> {
        match (self.name.as_str(), self.format) {
            (FORMER, 1) => restore_former(state, decode(&self.body)?),
            _ if !self.is_needed => {}
            (name, format) => {
                let section = format!("`{name}` in format {format}");
                return Err(SnapshotError::Newer { section, since: Some(self.since) });
            }
        }
        Ok(())
    }
}

fn restore_former(state: &mut State, names: Vec<(NodeId, NodeName)>) {
    names.into_iter().for_each(|(id, name)| state.note_former(id, name));
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
    let former = state.former.iter().map(|(id, name)| (*id, name.clone()));
    write_in_frames(&mut out, former, |names| Section::Named(Named::former(&names)))?;
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
    let mut newer = None;
    while let Some(frame) = read_frame(&mut input)? {
        // told once the checksum has shown that it was written so
        if let Some(number) = frame.get(1).filter(|number| **number > SECTION_MAX) {
            let section = format!("a section of number {number}");
            newer.get_or_insert(SnapshotError::Newer { section, since: None });
            continue;
        }
        match decode::<Section>(&frame)? {
            Section::Facts(facts) => label = Some(restore_facts(&mut state, *facts)),
            Section::Members(members) => state.members.extend(members.into_iter().map(|member| (member.id, member))),
            Section::Former(names) => restore_former(&mut state, names),
            Section::Named(named) => {
                if let Err(error) = named.restore(&mut state) {
                    newer.get_or_insert(error);
                }
            }
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
    if let Some(newer) = newer {
        return Err(newer);
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

    /// Returns a snapshot with the frame `frame` after the first one.
    fn with_frame(state: &State, frame: &[u8]) -> Vec<u8> {
        let bytes = bytes_of(state);
        let first = MAGIC.len() + 4 + u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let mut changed = bytes[..first].to_vec();
        changed.extend(u32::try_from(frame.len()).unwrap().to_le_bytes());
        changed.extend(frame);
        changed.extend(&bytes[first..bytes.len() - 32]);
        let checksum = blake3::hash(&changed);
        changed.extend(checksum.as_bytes());
        changed
    }

    #[test]
    fn what_a_later_release_added_is_skipped_or_named() {
        let state = rich().state;
        let named = |format, is_needed| {
            let section = Named {
                name: "spec".into(),
                format,
                since: "0.3.0".into(),
                is_needed,
                body: b"not known here".to_vec(),
            };
            encode(&Section::Named(section))
        };
        assert_eq!(read(&with_frame(&state, &named(1, false))[..]).unwrap().1, state);
        let told = |frame: &[u8]| read(&with_frame(&state, frame)[..]).unwrap_err().to_string();
        let needed = told(&named(2, true));
        assert!(needed.contains("`spec` in format 2") && needed.contains("0.3.0 or later"), "{needed}");
        assert!(needed.contains(env!("CARGO_PKG_VERSION")) && needed.contains("Upgrade hasup"), "{needed}");
        let mut unknown = encode(&Section::Tokens(Vec::new()));
        assert_eq!(named(1, true)[1], SECTION_MAX, "the last section");
        unknown[1] = SECTION_MAX + 1;
        assert!(told(&unknown).contains("number 9"), "{}", told(&unknown));
        // a damaged one is not taken for one of a later release
        let mut damaged = with_frame(&state, &unknown);
        let end = damaged.len() - 1;
        damaged[end] ^= 1;
        assert!(matches!(read(&damaged[..]), Err(SnapshotError::Damaged(_))));
    }

    #[test]
    fn the_names_of_former_members_are_read_as_earlier_builds_wrote_them() {
        let mut state = Log::new().state;
        let names = vec![(NodeId(7), "gone".parse().unwrap())];
        let frame = encode(&Section::Former(names.clone()));
        let (_, read) = read(&with_frame(&state, &frame)[..]).unwrap();
        restore_former(&mut state, names);
        assert_eq!(read, state);
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
