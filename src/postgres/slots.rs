//! Replication slots that keep the log for members that are away, on the active node and on every standby.
//!
//! Nobody streams through them: `primary_slot_name` stays empty, so that no missing, lost or busy slot can ever hold up a stream, a
//! promotion or a bar. hasup makes each slot itself and moves it on to where the member has the log, as the WAL senders or the
//! member's own reports say. So a promoted standby has what the third node needs, however far that one was behind.
//!
//! What a slot keeps is bounded twice: by `max_slot_wal_keep_size`, a share of the disk, and by how long a member may be silent.
//! A slot that PostgreSQL gave up is dropped, and made anew once the member is heard again; what the member lacks by then is
//! copied.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::Rows;
use super::control::Postgres;
use super::{PgError, layout};
use crate::types::{Lsn, NodeId};

/// What is known of a member for which log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// How far it has the log on disk; absent while that is not certain.
    pub reached: Option<Lsn>,
    /// Whether it is heard now: a slot is made only then, and stays when it falls silent.
    pub is_heard: bool,
}

/// A slot as PostgreSQL has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    node: NodeId,
    keeps_from: Option<Lsn>,
    is_lost: bool,
    /// How much log it keeps, up to the end that the server knows.
    kept_bytes: u64,
}

/// A change of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Make(NodeId),
    Advance(NodeId, Lsn),
    Drop(NodeId),
}

const SLOTS: &str = "\
select slot_name, restart_lsn, wal_status = 'lost' or restart_lsn is null, pg_wal_lsn_diff(case when pg_is_in_recovery()
  then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) else pg_current_wal_lsn() end, restart_lsn)
from pg_replication_slots where slot_type = 'physical' and slot_name ~ '^hasup_n[0-9]+$'";

fn name(node: NodeId) -> String {
    format!("hasup_n{}", node.0)
}

impl Postgres {
    /// Makes, moves on and drops slots so that there is one for each of `members`, and none for others. Repeatable; on a primary
    /// or a standby. Returns how much log each of them kept before, in bytes. The log speaks of members as `name_of` calls them.
    ///
    /// # Errors
    /// PostgreSQL does not answer, or refuses a change; those before it are made.
    pub async fn keep_slots(
        &self,
        members: &BTreeMap<NodeId, Keep>,
        name_of: impl Fn(NodeId) -> String,
        limit: Duration,
    ) -> Result<BTreeMap<NodeId, u64>, PgError> {
        let mut session = self.new_session(limit).await?;
        let what = "list its replication slots";
        let slots = read(&session.query(what, SLOTS, limit).await?);
        let kept = slots.iter().filter(|slot| !slot.is_lost).map(|slot| (slot.node, slot.kept_bytes)).collect();
        let mut first = Ok(kept);
        for change in changes(&slots, members) {
            let (what, sql) = match change {
                Change::Make(node) => (
                    "make a replication slot",
                    format!("select pg_create_physical_replication_slot('{}', true)", name(node)),
                ),
                Change::Advance(node, lsn) => (
                    "move a replication slot on",
                    format!("select pg_replication_slot_advance('{}', '{lsn}')", name(node)),
                ),
                Change::Drop(node) => {
                    ("drop a replication slot", format!("select pg_drop_replication_slot('{}')", name(node)))
                }
            };
            if let Err(error) = session.query(what, &sql, limit).await {
                // the others are kept all the same, on a connection that still answers
                let goes_on = session.survives(&error);
                first = first.and_then(|_| Err(error));
                if goes_on {
                    continue;
                }
                return first;
            }
            match change {
                Change::Make(node) => {
                    tracing::info!(slot = name(node), "log is kept for {} from now on", name_of(node));
                }
                Change::Drop(node) => {
                    tracing::info!(slot = name(node), "no log is kept for {} any more", name_of(node));
                }
                Change::Advance(..) => {}
            }
        }
        first
    }
}

/// Returns how much log slots may keep on the disk of `path`, in MiB: a fifth of it, never more than half of what is free, and no
/// less than `least`, which is kept in any case.
///
/// # Errors
/// The disk cannot be looked at.
pub fn keep_limit_mib(path: &std::path::Path, least: u32) -> Result<u32, PgError> {
    let (size, free) = (layout::size_bytes(path)?, layout::free_bytes(path)?);
    let limit = (size / 5).min(free / 2) >> 20;
    Ok(u32::try_from(limit).unwrap_or(u32::MAX >> 1).clamp(least, u32::MAX >> 1))
}

fn read(rows: &Rows) -> Vec<Slot> {
    let slot = |row: &Vec<Option<String>>| {
        let [slot_name, keeps_from, is_lost, kept_bytes] = row.as_slice() else { return None };
        Some(Slot {
            node: NodeId(slot_name.as_deref()?.strip_prefix("hasup_n")?.parse().ok()?),
            keeps_from: keeps_from.as_deref().and_then(|lsn| lsn.parse().ok()),
            is_lost: is_lost.as_deref() == Some("t"),
            // less than nothing where the member is ahead of what a standby knows
            kept_bytes: kept_bytes.as_deref().and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
        })
    };
    rows.iter().filter_map(slot).collect()
}

fn changes(slots: &[Slot], members: &BTreeMap<NodeId, Keep>) -> Vec<Change> {
    let mut changes = Vec::new();
    for slot in slots {
        match members.get(&slot.node) {
            Some(keep) if !slot.is_lost => {
                let ahead = keep.reached.filter(|reached| slot.keeps_from.is_some_and(|from| *reached > from));
                changes.extend(ahead.map(|reached| Change::Advance(slot.node, reached)));
            }
            _ => changes.push(Change::Drop(slot.node)),
        }
    }
    let has_slot = |node: &NodeId| slots.iter().any(|slot| slot.node == *node);
    // a lost one is made anew at the next look
    let missing = members.iter().filter(|(node, keep)| keep.is_heard && !has_slot(node));
    changes.extend(missing.map(|(node, _)| Change::Make(*node)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_has_one_slot_that_follows_it_and_nobody_else_has() {
        let slot =
            |node, from, is_lost| Slot { node: NodeId(node), keeps_from: Some(Lsn(from)), is_lost, kept_bytes: 0 };
        let keep = |reached: Option<u64>, is_heard| Keep { reached: reached.map(Lsn), is_heard };
        let members = BTreeMap::from([
            (NodeId(2), keep(Some(200), true)),
            (NodeId(3), keep(Some(50), true)),
            (NodeId(4), keep(None, true)),
            (NodeId(5), keep(None, false)),
            (NodeId(6), keep(None, true)),
        ]);
        let slots = [slot(2, 100, false), slot(3, 100, false), slot(4, 100, true), slot(9, 100, false)];
        assert_eq!(
            changes(&slots, &members),
            [
                Change::Advance(NodeId(2), Lsn(200)),
                // never back, and a lost one is dropped first
                Change::Drop(NodeId(4)),
                Change::Drop(NodeId(9)),
                Change::Make(NodeId(6)),
            ]
        );
        assert_eq!(changes(&[slot(5, 100, false)], &BTreeMap::from([(NodeId(5), keep(None, false))])), []);
    }

    #[test]
    fn rows_are_read_and_strange_ones_left_alone() {
        let row = |a: &str, b: Option<&str>, c: &str, d: &str| {
            [Some(a), b, Some(c), Some(d)].map(|it| it.map(str::to_owned)).to_vec()
        };
        let ahead = row("hasup_n3", None, "t", "-8");
        let read =
            read(&vec![row("hasup_n2", Some("0/3000000"), "f", "16777216"), ahead, row("theirs", None, "f", "0")]);
        assert_eq!([read[0].kept_bytes, read[1].kept_bytes], [16 << 20, 0]);
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].node, read[0].keeps_from), (NodeId(2), Some(Lsn(0x300_0000))));
        assert!(read[1].is_lost);
    }
}
