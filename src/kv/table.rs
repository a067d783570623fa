//! The key-value table: entries with indexes, and tombstones of what was deleted.

use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use super::Bytes;
use super::command::{KEY_BYTES_MAX, KvCommand, Refusal, Reply, VALUE_BYTES_MAX};

/// Keys that begin so are written by hasup alone.
pub const RESERVED_PREFIX: &[u8] = b"hasup/";

/// How many deletions are remembered one by one.
pub const TOMBSTONES_KEPT: usize = 10_000;

/// A key's value with the log indexes of its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was stored.
    pub value: Bytes,
    /// A number that clients keep beside the value.
    pub flags: u64,
    /// The log index that made the key.
    pub create_index: u64,
    /// The log index of its last change.
    pub modify_index: u64,
    /// How often the key was locked by a session.
    pub lock_index: u64,
}

/// One deletion: of a key, or of all keys under a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The key, or how the keys began.
    pub key: Bytes,
    /// The log index that did it.
    pub index: u64,
    /// Whether all keys under it went.
    pub whole_prefix: bool,
}

/// All keys. A clone shares everything with its original.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    entries: OrdMap<Bytes, Arc<Entry>>,
    /// By key, the newest one each.
    tombstones: OrdMap<Bytes, Arc<Tombstone>>,
    /// By age, oldest first, also those that a newer one of the same key replaced.
    ages: Vector<Arc<Tombstone>>,
    /// No deletion at or before this index is remembered.
    floor: u64,
    /// The index of the last change of any key.
    index: u64,
}

/// The parts of a table that a snapshot holds beside the entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableFacts {
    /// No deletion at or before this index is remembered.
    pub(super) floor: u64,
    /// The index of the last change of any key.
    pub(super) index: u64,
}

impl Table {
    /// Returns the entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key).map(Arc::as_ref)
    }

    /// Returns the keys that begin with `prefix`, in byte order.
    pub fn list<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Entry)> {
        self.entries
            .range::<_, [u8]>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (key, entry.as_ref()))
    }

    /// Returns how many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the log index of the last change of any key, 0 before the first.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Returns the log index of the last change of `key`, its deletion included; for one never seen, a bound that never falls.
    pub fn key_index(&self, key: &[u8]) -> u64 {
        match self.entries.get(key) {
            Some(entry) => entry.modify_index,
            None => self.deleted_at(key).max(self.floor),
        }
    }

    /// Returns the log index of the last change under `prefix`, deletions included. It never falls.
    pub fn prefix_index(&self, prefix: &[u8]) -> u64 {
        let changed = self.list(prefix).map(|(_, entry)| entry.modify_index).max().unwrap_or(0);
        let below = self
            .tombstones
            .range::<_, [u8]>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, tombstone)| tombstone.index)
            .max()
            .unwrap_or(0);
        changed.max(below).max(self.deleted_at(prefix)).max(self.floor)
    }

    /// Returns the index of the last remembered deletion of `key` itself, or of a prefix of it; 0 where there was none.
    fn deleted_at(&self, key: &[u8]) -> u64 {
        let whole = |cut: usize| {
            let tombstone = self.tombstones.get(&key[..cut])?;
            (tombstone.whole_prefix || cut == key.len()).then_some(tombstone.index)
        };
        (0..=key.len()).filter_map(whole).max().unwrap_or(0)
    }

    /// Applies an ordinary client's command at log index `index`.
    pub(super) fn apply(&mut self, index: u64, command: &KvCommand) -> Reply {
        match command {
            KvCommand::Put { key, value, flags, expected } => {
                if let Err(reason) = check_key(key).and_then(|()| check_value(value)) {
                    return Reply::Refused { reason };
                }
                if let Some(reply) = self.conflict(key, *expected) {
                    return reply;
                }
                self.put(index, key.clone(), value.clone(), *flags);
            }
            KvCommand::Delete { key, expected } => {
                if let Err(reason) = check_key(key) {
                    return Reply::Refused { reason };
                }
                if let Some(reply) = self.conflict(key, *expected) {
                    return reply;
                }
                self.delete(index, key);
            }
            KvCommand::DeletePrefix { prefix } => {
                if prefix.starts_with(RESERVED_PREFIX) {
                    return Reply::Refused { reason: Refusal::ReservedKey { key: prefix.to_string() } };
                }
                self.delete_prefix(index, prefix);
            }
        }
        Reply::Applied { index }
    }

    /// Sets a key; unchanged contents leave it as it was.
    pub(super) fn put(&mut self, index: u64, key: Bytes, value: Bytes, flags: u64) {
        let old = self.entries.get(&key);
        if old.is_some_and(|old| old.value == value && old.flags == flags) {
            return;
        }
        let create_index = old.map_or(index, |old| old.create_index);
        let lock_index = old.map_or(0, |old| old.lock_index);
        self.entries.insert(key, Arc::new(Entry { value, flags, create_index, modify_index: index, lock_index }));
        self.index = index;
    }

    /// Removes a key if it is there.
    pub(super) fn delete(&mut self, index: u64, key: &Bytes) {
        if self.entries.remove(key).is_some() {
            self.bury(Tombstone { key: key.clone(), index, whole_prefix: false });
        }
    }

    fn delete_prefix(&mut self, index: u64, prefix: &Bytes) {
        let doomed: Vec<Bytes> =
            self.list(prefix).map(|(key, _)| key).filter(|key| !key.starts_with(RESERVED_PREFIX)).cloned().collect();
        if doomed.is_empty() {
            return;
        }
        for key in &doomed {
            self.entries.remove(key);
        }
        self.bury(Tombstone { key: prefix.clone(), index, whole_prefix: true });
    }

    fn bury(&mut self, tombstone: Tombstone) {
        self.index = tombstone.index;
        self.restore_tombstone(tombstone);
        while self.ages.len() > TOMBSTONES_KEPT {
            let Some(oldest) = self.ages.pop_front() else { break };
            self.floor = self.floor.max(oldest.index);
            // A newer deletion of the same key stays.
            if self.tombstones.get(&oldest.key).is_some_and(|kept| kept.index == oldest.index) {
                self.tombstones.remove(&oldest.key);
            }
        }
    }

    /// Returns the reply that `expected` calls for, `None` where it holds.
    fn conflict(&self, key: &[u8], expected: Option<u64>) -> Option<Reply> {
        let current = self.get(key).map_or(0, |entry| entry.modify_index);
        (expected? != current).then_some(Reply::Conflict { current })
    }

    pub(super) fn facts(&self) -> TableFacts {
        TableFacts { floor: self.floor, index: self.index }
    }

    pub(super) fn restore_facts(&mut self, facts: &TableFacts) {
        self.floor = facts.floor;
        self.index = facts.index;
    }

    pub(super) fn restore_entry(&mut self, key: Bytes, entry: Entry) {
        self.entries.insert(key, Arc::new(entry));
    }

    /// Returns the remembered deletions, oldest first.
    pub(super) fn tombstones(&self) -> impl Iterator<Item = &Tombstone> {
        self.ages.iter().map(Arc::as_ref)
    }

    pub(super) fn restore_tombstone(&mut self, tombstone: Tombstone) {
        let mut tombstone = tombstone;
        let older = self.tombstones.get(&tombstone.key);
        // A key's own deletion after that of all keys under it says less: keep both facts in the newest.
        tombstone.whole_prefix |= older.is_some_and(|older| older.whole_prefix);
        let tombstone = Arc::new(tombstone);
        self.tombstones.insert(tombstone.key.clone(), tombstone.clone());
        self.ages.push_back(tombstone);
    }
}

fn check_key(key: &Bytes) -> Result<(), Refusal> {
    if key.starts_with(RESERVED_PREFIX) {
        return Err(Refusal::ReservedKey { key: key.to_string() });
    }
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(()),
        len => Err(Refusal::KeyLength { bytes: len as u64 }),
    }
}

fn check_value(value: &Bytes) -> Result<(), Refusal> {
    match value.len() {
        0..=VALUE_BYTES_MAX => Ok(()),
        len => Err(Refusal::ValueLength { bytes: len as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str, expected: Option<u64>) -> KvCommand {
        KvCommand::Put { key: key.into(), value: value.into(), flags: 0, expected }
    }

    fn delete(key: &str, expected: Option<u64>) -> KvCommand {
        KvCommand::Delete { key: key.into(), expected }
    }

    fn delete_prefix(prefix: &str) -> KvCommand {
        KvCommand::DeletePrefix { prefix: prefix.into() }
    }

    fn table(commands: &[KvCommand]) -> Table {
        let mut table = Table::default();
        for (index, command) in (1..).zip(commands) {
            assert_eq!(table.apply(index, command), Reply::Applied { index });
        }
        table
    }

    #[test]
    fn compare_and_set_fails_on_any_other_index() {
        let mut table = table(&[put("a", "1", Some(0)), put("a", "2", Some(1))]);
        assert_eq!(table.apply(3, &put("a", "3", Some(1))), Reply::Conflict { current: 2 });
        assert_eq!(table.apply(3, &put("a", "3", Some(0))), Reply::Conflict { current: 2 });
        assert_eq!(table.apply(3, &put("b", "3", Some(9))), Reply::Conflict { current: 0 });
        assert_eq!(table.apply(3, &delete("a", Some(1))), Reply::Conflict { current: 2 });
        assert_eq!(table.apply(3, &delete("b", Some(1))), Reply::Conflict { current: 0 });
        assert_eq!(&*table.get(b"a").unwrap().value, b"2");
        assert_eq!(table.apply(3, &delete("a", Some(2))), Reply::Applied { index: 3 });
        assert_eq!(table.get(b"a"), None);
    }

    #[test]
    fn an_entry_remembers_its_creation_and_an_equal_write_changes_no_index() {
        let table = table(&[put("a", "1", None), put("a", "2", None), put("a", "2", None)]);
        let entry = table.get(b"a").unwrap();
        assert_eq!((entry.create_index, entry.modify_index), (1, 2));
        assert_eq!(table.index(), 2);
    }

    #[test]
    fn a_list_holds_its_prefix_alone_in_byte_order() {
        let table = table(&[put("b/2", "", None), put("b/1", "", None), put("b", "", None), put("c", "", None)]);
        let keys: Vec<String> = table.list(b"b/").map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["b/1", "b/2"]);
        assert_eq!(table.list(b"").count(), 4);
    }

    #[test]
    fn a_deletion_raises_the_index_of_every_list_that_held_the_key() {
        let mut table = table(&[put("a/b/c", "", None), put("z", "", None), delete("a/b/c", None)]);
        for prefix in ["", "a", "a/", "a/b/", "a/b/c"] {
            assert_eq!(table.prefix_index(prefix.as_bytes()), 3, "{prefix}");
        }
        assert_eq!(table.prefix_index(b"z"), 2);
        assert_eq!(table.key_index(b"a/b/c"), 3);
        table.apply(4, &put("a/x/1", "", None));
        table.apply(5, &delete_prefix("a/"));
        for prefix in ["", "a", "a/", "a/x/"] {
            assert_eq!(table.prefix_index(prefix.as_bytes()), 5, "{prefix}");
        }
        assert_eq!(table.key_index(b"a/x/1"), 5);
        assert_eq!(table.key_index(b"z"), 2);
    }

    #[test]
    fn a_list_index_never_falls_when_tombstones_are_forgotten() {
        let mut table = table(&[put("old", "", None), delete("old", None)]);
        let mut index = 2;
        for _ in 0..=TOMBSTONES_KEPT {
            table.apply(index + 1, &put("k", "", None));
            table.apply(index + 2, &delete("k", None));
            index += 2;
        }
        assert!(table.prefix_index(b"old") >= 2);
        assert_eq!(table.key_index(b"k"), index);
        assert!(table.tombstones().count() <= TOMBSTONES_KEPT);
    }

    #[test]
    fn ordinary_writes_never_touch_keys_of_hasup() {
        let mut table = Table::default();
        table.put(1, "hasup/next_master".into(), "n1".into(), 0);
        for command in [put("hasup/next_master", "x", None), delete("hasup/x", None), delete_prefix("hasup/n")] {
            assert!(matches!(table.apply(2, &command), Reply::Refused { reason: Refusal::ReservedKey { .. } }));
        }
        assert_eq!(table.apply(2, &put("hasupper", "x", None)), Reply::Applied { index: 2 });
        assert_eq!(table.apply(3, &delete_prefix("")), Reply::Applied { index: 3 });
        assert_eq!(table.list(b"").map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["hasup/next_master"]);
    }

    #[test]
    fn keys_and_values_have_limits_and_may_be_any_bytes() {
        let mut table = Table::default();
        let command = |key: Vec<u8>, value: usize| KvCommand::Put {
            key: key.into(),
            value: vec![0; value].into(),
            flags: 0,
            expected: None,
        };
        assert_eq!(table.apply(1, &command(vec![0xFF, 0, b'/'], 1)), Reply::Applied { index: 1 });
        assert_eq!(table.apply(2, &command(vec![1; KEY_BYTES_MAX], VALUE_BYTES_MAX)), Reply::Applied { index: 2 });
        for bad in [command(vec![], 1), command(vec![1; KEY_BYTES_MAX + 1], 1), command(vec![1], VALUE_BYTES_MAX + 1)] {
            assert!(matches!(table.apply(3, &bad), Reply::Refused { .. }));
        }
    }
}
