//! All that the cluster has agreed on, and how a command changes it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use super::command::{Command, NewMember, Proposal, Refusal, Reply};
use super::table::Table;
use super::watch::Changes;
use crate::ha::record::{Assignment, ClusterIdentity, Event, Goals, JoinToken, Member, Options, Trust};
use crate::types::{NodeId, NodeName};

/// How many events the history holds.
pub const EVENTS_KEPT: usize = 10_000;
/// How many request ids are remembered with their replies.
pub const REQUESTS_REMEMBERED: usize = 50_000;

/// How many former members are known by name.
pub const FORMER_KEPT: usize = 1000;

/// The key whose value is the bare name of the active node.
pub const NEXT_MASTER_KEY: &str = "hasup/next_master";
/// The key whose value is the record as JSON.
pub const ASSIGNMENT_KEY: &str = "hasup/assignment";

/// A record with the log index of its last change, which a compare-and-set names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// The record; copies of the state share it.
    pub value: Arc<T>,
    /// The log index of its last change, 0 for a default that was never set.
    pub index: u64,
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Versioned<T> {
    fn new(value: &T, index: u64) -> Self
    where
        T: Clone,
    {
        Self { value: Arc::new(value.clone()), index }
    }
}

/// Names an event for ever: the log index that recorded it, and its place among that entry's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId {
    /// The log index.
    pub index: u64,
    /// 0 for the first, and mostly only, event of that entry.
    pub part: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            0 => self.index.fmt(f),
            part => write!(f, "{}.{part}", self.index),
        }
    }
}

/// An event of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Its name.
    pub id: EventId,
    /// What happened.
    pub event: Event,
}

/// The state of the store after some log index. Clones share everything; each costs the same few hundred bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// The cluster as such, once it has begun.
    pub identity: Option<Versioned<ClusterIdentity>>,
    /// The record, once there is one.
    pub assignment: Option<Versioned<Assignment>>,
    /// The members by number.
    pub members: OrdMap<NodeId, Arc<Member>>,
    /// The names that the newest members who are none any more had last, by number: for people, who read of them in the history.
    pub former: OrdMap<NodeId, NodeName>,
    /// The log index of the last change of any member.
    pub members_index: u64,
    /// The number that the next member gets.
    pub next_node_id: NodeId,
    /// What operators asked for.
    pub goals: Versioned<Goals>,
    /// The cluster's options.
    pub options: Versioned<Options>,
    /// The join tokens by their public part.
    pub tokens: OrdMap<String, Arc<JoinToken>>,
    /// The certificate authority, once there is one.
    pub trust: Option<Versioned<Trust>>,
    /// The newest events, oldest first.
    pub events: Vector<Arc<StoredEvent>>,
    /// The key-value table.
    pub table: Table,
    /// The latest time that a command told, in milliseconds since 1970; it never falls.
    pub clock_ms: u64,
    pub(super) replies: OrdMap<u128, Reply>,
    pub(super) requests: Vector<u128>,
    pub(super) changes: Changes,
}

impl State {
    /// Returns the state before the first command.
    pub fn new() -> Self {
        Self { next_node_id: NodeId(1), ..Self::default() }
    }

    /// Applies the entry of log index `index`, which must be higher than any before, and returns what became of it.
    ///
    /// Total: no command panics or stops the log. The same entries give the same state on every node.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Reply {
        if let Some(first) = self.replies.get(&proposal.request_id) {
            return first.clone();
        }
        self.clock_ms = self.clock_ms.max(proposal.at_ms);
        let reply = match self.change(index, &proposal.command) {
            Ok(reply) => reply,
            Err(NotApplied::Conflict(current)) => Reply::Conflict { current },
            Err(NotApplied::Refused(reason)) => Reply::Refused { reason },
        };
        if matches!(reply, Reply::Applied { .. } | Reply::MemberAdded { .. }) {
            self.record_events(index, &proposal.events);
        }
        self.remember(proposal.request_id, reply.clone());
        reply
    }

    /// Returns the member of that name.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.values().map(Arc::as_ref).find(|member| member.name.as_str() == name)
    }

    /// Returns what the member `id` is called, or was last called.
    pub fn name_of(&self, id: NodeId) -> Option<&NodeName> {
        self.members.get(&id).map(|member| &member.name).or_else(|| self.former.get(&id))
    }

    /// Returns the log index of the record's last change, 0 if there is none: what [`Command::SetAssignment`] must expect.
    pub fn assignment_index(&self) -> u64 {
        self.assignment.as_ref().map_or(0, |assignment| assignment.index)
    }

    /// Returns the join token `id` if it is valid at `now_ms` (milliseconds since 1970).
    pub fn valid_token(&self, id: &str, now_ms: u64) -> Result<&JoinToken, Refusal> {
        let token = self.tokens.get(id).ok_or_else(|| Refusal::TokenUnknown { id: id.to_owned() })?;
        if now_ms / 1000 < token.expires_at { Ok(token) } else { Err(Refusal::TokenExpired { id: id.to_owned() }) }
    }

    fn change(&mut self, index: u64, command: &Command) -> Result<Reply, NotApplied> {
        match command {
            Command::Kv(command) => {
                let before = self.table.index();
                let reply = self.table.apply(index, command);
                if self.table.index() != before {
                    self.changes.note(index, command);
                }
                return Ok(reply);
            }
            Command::SetIdentity { expected, identity } => {
                expect(&self.identity, Some(*expected))?;
                if let Some(old) = &self.identity
                    && (old.id != identity.id || identity.generation < old.generation)
                {
                    return Err(Refusal::OtherCluster.into());
                }
                self.identity = Some(Versioned::new(identity, index));
            }
            Command::SetAssignment { expected, assignment } => self.set_assignment(index, *expected, assignment)?,
            Command::AddMember { member, token } => return self.add_member(index, member, token.as_deref()),
            Command::PutMember { member } => self.change_member(index, member)?,
            Command::ChangeMember { expected, member } => {
                expect_index(self.members_index, Some(*expected))?;
                self.change_member(index, member)?;
            }
            Command::RemoveMember { id } => self.remove_member(index, *id)?,
            Command::SetGoals { expected, goals } => {
                expect_index(self.goals.index, *expected)?;
                self.goals = Versioned::new(goals, index);
            }
            Command::SetOptions { expected, options } => {
                expect_index(self.options.index, *expected)?;
                self.options = Versioned::new(options, index);
            }
            Command::PutToken { token } => {
                let now = self.clock_ms / 1000;
                self.tokens = self.tokens.iter().filter(|(_, token)| now < token.expires_at).map(shared).collect();
                self.tokens.insert(token.id.clone(), Arc::new(token.clone()));
            }
            Command::RevokeToken { id } => {
                self.tokens.remove(id);
            }
            Command::SetTrust { expected, trust } => {
                expect(&self.trust, Some(*expected))?;
                self.trust = Some(Versioned::new(trust, index));
            }
            Command::AppendEvents => {}
        }
        Ok(Reply::Applied { index })
    }

    fn set_assignment(&mut self, index: u64, expected: u64, assignment: &Assignment) -> Result<(), NotApplied> {
        expect(&self.assignment, Some(expected))?;
        if !self.members.contains_key(&assignment.node) {
            return Err(Refusal::UnknownMember { id: assignment.node }.into());
        }
        if let Some(old) = &self.assignment {
            // Within a generation only the sets and `opened` change; a generation has one node and never comes back.
            let same = old.generation == assignment.generation && old.node == assignment.node;
            if !(same || old.generation < assignment.generation) {
                let (current, offered) = (old.generation, assignment.generation);
                return Err(Refusal::StaleGeneration { current, offered }.into());
            }
        }
        self.assignment = Some(Versioned::new(assignment, index));
        self.mirror_assignment(index);
        Ok(())
    }

    /// Writes the record into the table, for those who read keys.
    fn mirror_assignment(&mut self, index: u64) {
        let Some(assignment) = &self.assignment else { return };
        let Some(member) = self.members.get(&assignment.node) else { return };
        let json = serde_json::to_vec(assignment.value.as_ref())
            .expect("the record is made of numbers, texts, lists and enums, which JSON holds");
        for (key, value) in [(NEXT_MASTER_KEY, member.name.as_str().as_bytes().to_vec()), (ASSIGNMENT_KEY, json)] {
            self.table.put(index, key.into(), value.into(), 0);
            if self.table.key_index(key.as_bytes()) == index {
                self.changes.note_key(index, key.into());
            }
        }
    }

    fn add_member(&mut self, index: u64, member: &NewMember, token: Option<&str>) -> Result<Reply, NotApplied> {
        if let Some(token) = token {
            self.valid_token(token, self.clock_ms)?;
        }
        let id = self.next_node_id;
        self.check_unique(id, &member.name, &member.peer_addresses)?;
        self.next_node_id = id.next();
        self.put_member(index, member.clone().with_id(id));
        Ok(Reply::MemberAdded { index, id })
    }

    fn change_member(&mut self, index: u64, member: &Member) -> Result<(), NotApplied> {
        if !self.members.contains_key(&member.id) {
            return Err(Refusal::UnknownMember { id: member.id }.into());
        }
        self.check_unique(member.id, &member.name, &member.peer_addresses)?;
        self.put_member(index, member.clone());
        self.mirror_assignment(index);
        Ok(())
    }

    fn put_member(&mut self, index: u64, member: Member) {
        self.members.insert(member.id, Arc::new(member));
        self.members_index = index;
    }

    fn remove_member(&mut self, index: u64, id: NodeId) -> Result<(), NotApplied> {
        let Some(name) = self.members.get(&id).map(|member| member.name.clone()) else {
            return Err(Refusal::UnknownMember { id }.into());
        };
        if let Some(record) = &self.assignment {
            if record.node == id {
                return Err(Refusal::MemberIsActive { id }.into());
            }
            let votes = record.voter_sets.iter().any(|set| set.contains(&id));
            let holds = record.commit_sets.iter().any(|set| set.members.iter().any(|member| member.node == id));
            if votes || holds {
                return Err(Refusal::MemberInSets { id }.into());
            }
        }
        self.members.remove(&id);
        self.members_index = index;
        self.note_former(id, name);
        Ok(())
    }

    pub(super) fn note_former(&mut self, id: NodeId, name: NodeName) {
        self.former.insert(id, name);
        while self.former.len() > FORMER_KEPT {
            self.former = self.former.without_min().1;
        }
    }

    fn check_unique(&self, id: NodeId, name: &NodeName, addresses: &[String]) -> Result<(), Refusal> {
        for other in self.members.values().filter(|other| other.id != id) {
            if other.name == *name {
                return Err(Refusal::NameTaken { name: name.clone(), by: other.id });
            }
            if let Some(address) = addresses.iter().find(|address| other.peer_addresses.contains(address)) {
                return Err(Refusal::AddressTaken { address: address.clone(), by: other.id });
            }
        }
        Ok(())
    }

    fn record_events(&mut self, index: u64, events: &[Event]) {
        for (part, event) in (0..).zip(events) {
            let id = EventId { index, part };
            self.events.push_back(Arc::new(StoredEvent { id, event: event.clone() }));
        }
        while self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    pub(super) fn remember(&mut self, request_id: u128, reply: Reply) {
        self.replies.insert(request_id, reply);
        self.requests.push_back(request_id);
        while self.requests.len() > REQUESTS_REMEMBERED {
            if let Some(oldest) = self.requests.pop_front() {
                self.replies.remove(&oldest);
            }
        }
    }
}

fn shared<K: Clone, V>((key, value): (&K, &Arc<V>)) -> (K, Arc<V>) {
    (key.clone(), value.clone())
}

/// Why a command changed nothing.
enum NotApplied {
    Conflict(u64),
    Refused(Refusal),
}

impl From<Refusal> for NotApplied {
    fn from(reason: Refusal) -> Self {
        Self::Refused(reason)
    }
}

/// Fails unless the record was last changed at the expected index, 0 for one that does not exist.
fn expect<T>(record: &Option<Versioned<T>>, expected: Option<u64>) -> Result<(), NotApplied> {
    expect_index(record.as_ref().map_or(0, |record| record.index), expected)
}

fn expect_index(current: u64, expected: Option<u64>) -> Result<(), NotApplied> {
    match expected {
        Some(expected) if expected != current => Err(NotApplied::Conflict(current)),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ha::record::{AssignmentReason, CommitSet, DataMember, MemberKind, WhyRecord};
    use crate::kv::KvCommand;
    use crate::types::{ClusterGeneration, DataIncarnation, Generation, Timeline};

    /// A state with a log of its own.
    #[derive(Default)]
    pub(crate) struct Log {
        pub(crate) state: State,
        pub(crate) index: u64,
    }

    impl Log {
        pub(crate) fn new() -> Self {
            Self { state: State::new(), index: 0 }
        }

        pub(crate) fn propose(&mut self, command: Command) -> Reply {
            self.apply(Proposal::new(u128::from(self.index) + 1000, 5_000_000, command))
        }

        pub(crate) fn apply(&mut self, proposal: Proposal) -> Reply {
            self.index += 1;
            self.state.apply(self.index, &proposal)
        }
    }

    pub(crate) fn new_member(name: &str, address: &str) -> NewMember {
        NewMember {
            name: name.parse().unwrap(),
            kind: MemberKind::Data,
            peer_addresses: vec![address.to_owned()],
            api_address: "10.0.0.1:7401".into(),
            postgres_host: "10.0.0.1".into(),
            postgres_port: 5432,
            pulse_key: [1; 32],
            priority: 100,
            nofailover: false,
            version: "0.1.0".into(),
        }
    }

    pub(crate) fn add(name: &str, address: &str) -> Command {
        Command::AddMember { member: new_member(name, address), token: None }
    }

    pub(crate) fn record(generation: u64, node: u64) -> Assignment {
        Assignment {
            generation: Generation(generation),
            node: NodeId(node),
            timeline: Timeline(1),
            incarnation: crate::types::DataIncarnation(1),
            promoted: Generation(generation),
            start: crate::types::WalPosition::default(),
            why: AssignmentReason::Bootstrap,
            voter_sets: vec![[NodeId(1), NodeId(2)].into()],
            commit_sets: vec![CommitSet {
                members: [DataMember { node: NodeId(3), incarnation: DataIncarnation(1) }].into(),
                k: 1,
            }],
            opened: false,
            since_opened: vec![],
        }
    }

    pub(crate) fn event(kind: &str) -> Event {
        Event { at_ms: 1, by: NodeId(1), generation: Generation(1), kind: kind.into(), why: WhyRecord::default() }
    }

    fn refused(reply: Reply) -> Refusal {
        match reply {
            Reply::Refused { reason } => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_repeated_request_is_applied_once_and_gets_the_first_reply() {
        let mut log = Log::new();
        let add = Proposal::new(7, 0, add("n1", "a:1")).with_event(event("member_joined"));
        let first = log.apply(add.clone());
        assert_eq!(first, Reply::MemberAdded { index: 1, id: NodeId(1) });
        assert_eq!(log.apply(add), first);
        assert_eq!((log.state.members.len(), log.state.events.len()), (1, 1));
        let cas = Command::Kv(KvCommand::Put { key: "k".into(), value: "v".into(), flags: 0, expected: Some(0) });
        let cas = Proposal::new(8, 0, cas);
        assert_eq!(log.apply(cas.clone()), Reply::Applied { index: 3 });
        assert_eq!(log.apply(cas), Reply::Applied { index: 3 });
    }

    #[test]
    fn memory_of_requests_is_bounded() {
        let mut log = Log::new();
        for _ in 0..REQUESTS_REMEMBERED + 10 {
            log.propose(Command::AppendEvents);
        }
        assert_eq!(log.state.replies.len(), REQUESTS_REMEMBERED);
        assert_eq!(log.state.requests.len(), REQUESTS_REMEMBERED);
    }

    #[test]
    fn the_record_changes_by_compare_and_set_and_no_generation_comes_back() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        log.propose(add("n2", "b:1"));
        let set = |expected, assignment| Command::SetAssignment { expected, assignment };
        assert_eq!(log.propose(set(0, record(1, 1))), Reply::Applied { index: 3 });
        assert_eq!(log.propose(set(0, record(2, 2))), Reply::Conflict { current: 3 });
        assert_eq!(log.propose(set(3, record(3, 2))), Reply::Applied { index: 5 });
        for stale in [record(2, 2), record(3, 1)] {
            assert!(matches!(refused(log.propose(set(5, stale))), Refusal::StaleGeneration { .. }));
        }
        assert_eq!(refused(log.propose(set(5, record(4, 9)))), Refusal::UnknownMember { id: NodeId(9) });
        let opened = Assignment { opened: true, ..record(3, 2) };
        assert_eq!(log.propose(set(5, opened.clone())), Reply::Applied { index: 9 });
        assert_eq!(log.state.assignment_index(), 9);
        assert_eq!(*log.state.assignment.unwrap().value, opened);
    }

    #[test]
    fn the_record_is_mirrored_as_keys() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        log.propose(add("n2", "b:1"));
        log.propose(Command::SetAssignment { expected: 0, assignment: record(1, 2) });
        let table = &log.state.table;
        assert_eq!(&*table.get(NEXT_MASTER_KEY.as_bytes()).unwrap().value, b"n2");
        let json = table.get(ASSIGNMENT_KEY.as_bytes()).unwrap();
        assert_eq!(serde_json::from_slice::<Assignment>(&json.value).unwrap(), record(1, 2));
        let opened = Assignment { opened: true, ..record(1, 2) };
        log.propose(Command::SetAssignment { expected: 3, assignment: opened });
        assert_eq!(log.state.table.key_index(NEXT_MASTER_KEY.as_bytes()), 3);
        assert_eq!(log.state.table.key_index(ASSIGNMENT_KEY.as_bytes()), 4);
        let renamed = new_member("n2b", "b:1").with_id(NodeId(2));
        log.propose(Command::PutMember { member: renamed });
        assert_eq!(&*log.state.table.get(NEXT_MASTER_KEY.as_bytes()).unwrap().value, b"n2b");
    }

    #[test]
    fn members_keep_names_addresses_and_numbers_apart() {
        let mut log = Log::new();
        assert_eq!(log.propose(add("n1", "a:1")), Reply::MemberAdded { index: 1, id: NodeId(1) });
        assert!(matches!(refused(log.propose(add("n1", "b:1"))), Refusal::NameTaken { by: NodeId(1), .. }));
        assert!(matches!(refused(log.propose(add("n2", "a:1"))), Refusal::AddressTaken { by: NodeId(1), .. }));
        assert_eq!(log.propose(add("n2", "b:1")), Reply::MemberAdded { index: 4, id: NodeId(2) });
        log.propose(Command::RemoveMember { id: NodeId(2) });
        let gone = Command::PutMember { member: new_member("n2", "b:1").with_id(NodeId(2)) };
        assert_eq!(refused(log.propose(gone)), Refusal::UnknownMember { id: NodeId(2) });
        assert_eq!(log.propose(add("n2", "b:1")), Reply::MemberAdded { index: 7, id: NodeId(3) });
    }

    #[test]
    fn a_change_of_a_member_overwrites_no_other_change() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        log.propose(add("n2", "b:1"));
        let seen = log.state.clone();
        let change = |change: &dyn Fn(&mut Member)| {
            let mut member = (*seen.members[&NodeId(2)]).clone();
            change(&mut member);
            Command::ChangeMember { expected: seen.members_index, member }
        };
        let moved = change(&|member| member.peer_addresses = vec!["c:1".into()]);
        let marked = change(&|member| member.nofailover = true);
        assert_eq!(log.propose(marked), Reply::Applied { index: 3 });
        assert_eq!(log.propose(moved), Reply::Conflict { current: 3 });
        let member = &log.state.members[&NodeId(2)];
        assert_eq!((member.nofailover, &*member.peer_addresses), (true, &["b:1".to_owned()][..]));
    }

    #[test]
    fn a_member_that_the_record_counts_on_is_not_removed() {
        let mut log = Log::new();
        for (name, address) in [("n1", "a:1"), ("n2", "b:1"), ("n3", "c:1"), ("n4", "d:1")] {
            log.propose(add(name, address));
        }
        log.propose(Command::SetAssignment { expected: 0, assignment: record(1, 1) });
        let mut remove = |id| log.propose(Command::RemoveMember { id: NodeId(id) });
        assert_eq!(refused(remove(1)), Refusal::MemberIsActive { id: NodeId(1) });
        assert_eq!(refused(remove(2)), Refusal::MemberInSets { id: NodeId(2) });
        assert_eq!(refused(remove(3)), Refusal::MemberInSets { id: NodeId(3) });
        assert_eq!(remove(4), Reply::Applied { index: 9 });
        assert_eq!(refused(remove(4)), Refusal::UnknownMember { id: NodeId(4) });
        let name = |id| log.state.name_of(NodeId(id)).map(ToString::to_string);
        assert_eq!(
            (name(3), name(4), name(5)),
            (Some("n3".into()), Some("n4".into()), None),
            "who was removed keeps a name"
        );
    }

    #[test]
    fn the_names_of_former_members_are_bounded() {
        let mut log = Log::new();
        for id in 1..=FORMER_KEPT as u64 + 2 {
            log.propose(add("n", "a:1"));
            assert!(matches!(log.propose(Command::RemoveMember { id: NodeId(id) }), Reply::Applied { .. }));
        }
        let names = &log.state.former;
        assert_eq!((names.len(), names.get_min().map(|(id, _)| *id)), (FORMER_KEPT, Some(NodeId(3))));
    }

    #[test]
    fn a_join_needs_a_token_that_is_known_and_not_expired() {
        let mut log = Log::new();
        let token = |id: &str, expires_at| JoinToken { id: id.into(), secret_hash: [0; 32], expires_at };
        log.propose(Command::PutToken { token: token("good", 6000) });
        log.propose(Command::PutToken { token: token("old", 5000) });
        let mut join = |token: &str, name: &str| {
            let member = new_member(name, &format!("{name}:1"));
            log.propose(Command::AddMember { member, token: Some(token.into()) })
        };
        assert!(matches!(join("good", "n1"), Reply::MemberAdded { .. }));
        assert!(matches!(refused(join("old", "n2")), Refusal::TokenExpired { .. }));
        assert!(matches!(refused(join("none", "n2")), Refusal::TokenUnknown { .. }));
        log.propose(Command::RevokeToken { id: "good".into() });
        let member = new_member("n3", "c:1");
        let reply = log.propose(Command::AddMember { member, token: Some("good".into()) });
        assert!(matches!(refused(reply), Refusal::TokenUnknown { .. }));
        log.propose(Command::PutToken { token: token("new", 9000) });
        assert_eq!(log.state.tokens.len(), 1, "expired ones go");
    }

    #[test]
    fn identity_and_trust_move_forward_by_compare_and_set() {
        let mut log = Log::new();
        let identity = |id: &str, generation| ClusterIdentity {
            id: id.into(),
            name: "main".into(),
            generation: ClusterGeneration(generation),
            system_identifier: None,
        };
        let set = |expected, identity| Command::SetIdentity { expected, identity };
        assert_eq!(log.propose(set(0, identity("c", 1))), Reply::Applied { index: 1 });
        assert_eq!(log.propose(set(0, identity("c", 1))), Reply::Conflict { current: 1 });
        assert_eq!(refused(log.propose(set(1, identity("d", 2)))), Refusal::OtherCluster);
        assert_eq!(log.propose(set(1, identity("c", 2))), Reply::Applied { index: 4 });
        assert_eq!(refused(log.propose(set(4, identity("c", 1)))), Refusal::OtherCluster);
    }

    #[test]
    fn history_is_bounded_and_keeps_events_of_applied_commands_alone() {
        let mut log = Log::new();
        let conflict = Command::SetGoals { expected: Some(99), goals: Goals::default() };
        log.apply(Proposal::new(1, 0, conflict).with_event(event("refused")));
        assert!(log.state.events.is_empty());
        let both = Proposal::new(2, 0, Command::AppendEvents).with_event(event("one")).with_event(event("two"));
        log.apply(both);
        let ids: Vec<String> = log.state.events.iter().map(|event| event.id.to_string()).collect();
        assert_eq!(ids, ["2", "2.1"]);
        for id in 0..EVENTS_KEPT as u128 {
            log.apply(Proposal::new(10 + id, 0, Command::AppendEvents).with_event(event("more")));
        }
        assert_eq!(log.state.events.len(), EVENTS_KEPT);
        assert_eq!(log.state.events.front().unwrap().id.index, 3);
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        let before = log.state.clone();
        log.propose(add("n2", "b:1"));
        assert_eq!((before.members.len(), log.state.members.len()), (1, 2));
    }
}
