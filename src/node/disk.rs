//! Looks whether the disks of data directory and database take writes and have room, beside the loop: a disk may hang.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Shared;
use crate::ha::trouble::Trouble;
use crate::postgres::layout::{free_bytes, size_bytes};
use crate::sys::fs::{PROBE, is_read_only, try_to_write, write_durably};

/// How often the disks are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A disk with less room is nearly full, as is one with less than a hundredth of it free, if that is not plenty.
const LOW_BYTES: u64 = 64 << 20;
const PLENTY_BYTES: u64 = 1 << 30;
/// What is written to a disk that is nearly full, to see whether it takes writes.
const PROBE_BYTES: usize = 256 << 10;
/// A disk is called full, or read-only, after so many such writes in a row have failed for that reason: of nodes that share a disk,
/// none gives the role up to another.
const FAILURES: u32 = 3;

/// How much room a disk has, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    Enough,
    Low,
    Full,
    /// It takes no write, whatever room it has.
    ReadOnly,
}

impl Room {
    /// Judges a disk of `size` bytes with `free` of them; `is_written` tries to write.
    fn of(size: u64, free: u64, is_written: impl FnOnce() -> bool) -> Self {
        if free >= LOW_BYTES.max((size / 100).min(PLENTY_BYTES)) {
            Self::Enough
        } else if is_written() {
            Self::Low
        } else {
            Self::Full
        }
    }

    /// Looks at the disk under `folder`. One that cannot be looked at is not called full.
    fn look(folder: &Path) -> Self {
        if try_to_write(folder).is_err_and(|error| is_read_only(&error)) {
            return Self::ReadOnly;
        }
        let (Ok(size), Ok(free)) = (size_bytes(folder), free_bytes(folder)) else { return Self::Enough };
        Self::of(size, free, || {
            let probe = folder.join(PROBE);
            let written = write_durably(&probe, &vec![0xA5; PROBE_BYTES], 0o600);
            // One that failed may have left nothing to remove.
            let _ = std::fs::remove_file(&probe);
            let is_full =
                |error: std::io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            !written.is_err_and(is_full)
        })
    }
}

/// The same failure in a row.
#[derive(Debug, Default, Clone, Copy)]
struct Streak {
    seen: Option<Room>,
    count: u32,
}

/// Returns what is said of a disk that was `seen` now, where `known` was said last. What fails once may have been its filling by others,
/// or its mount; each kind is counted apart.
fn told(seen: Option<Room>, streak: &mut Streak, known: Option<Trouble>) -> Option<Trouble> {
    let count = if streak.seen == seen { streak.count.saturating_add(1) } else { 1 };
    *streak = Streak { seen, count };
    match seen {
        Some(Room::ReadOnly) if count >= FAILURES => Some(Trouble::DiskReadOnly),
        Some(Room::ReadOnly) => known,
        Some(Room::Full) if count >= FAILURES => Some(Trouble::DiskFull),
        Some(Room::Full | Room::Low) => Some(Trouble::DiskLow),
        Some(Room::Enough) | None => None,
    }
}

/// Keeps `shared.disk` up to date. Ends with the node.
pub(super) async fn watch(shared: Arc<Shared>) {
    let layout = shared.postgres.postgres.layout();
    let folders = [shared.data_dir.clone(), layout.pgdata.clone(), layout.wal_dir()];
    let mut streak = Streak::default();
    loop {
        let seen = look(folders.clone()).await;
        let known = *shared.disk.borrow();
        let trouble = told(seen, &mut streak, known);
        let is_new = shared.disk.send_if_modified(|known| std::mem::replace(known, trouble) != trouble);
        if is_new {
            match trouble {
                Some(trouble) => tracing::error!("{}", trouble.of(shared.name.as_str())),
                None => tracing::info!("the disk takes writes and has room again"),
            }
            shared.news.notify_one();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(folders: [PathBuf; 3]) -> Option<Room> {
    let looked = tokio::task::spawn_blocking(move || folders.iter().map(|folder| Room::look(folder)).max());
    looked.await.ok().flatten()
}

impl Shared {
    /// Returns what is wrong with this node's machine.
    pub(super) fn troubles(&self) -> BTreeSet<Trouble> {
        let raft = of_raft(self.raft_failed().as_deref());
        let members = &self.state().members;
        let is_off = self.tls.invalid_by_clock().iter().any(|node| members.contains_key(node));
        raft.into_iter().chain(*self.disk.borrow()).chain(is_off.then_some(Trouble::ClocksDiffer)).collect()
    }

    /// Returns why Raft has stopped, where it did; at this daemon's own end that is in order.
    pub(super) fn raft_failed(&self) -> Option<String> {
        let failed = self.consensus.leadership().borrow().failed.clone();
        failed.filter(|_| !self.is_ending.load(Ordering::Relaxed))
    }
}

fn of_raft(failed: Option<&str>) -> Option<Trouble> {
    let failed = failed?;
    let is_full = failed.contains("No space left") || failed.contains("os error 28");
    Some(if is_full { Trouble::RaftStoppedDiskFull } else { Trouble::RaftStopped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_called_full_or_read_only_after_three_failures_of_that_kind_in_a_row() {
        use Room::{Enough, Full, Low, ReadOnly};
        use Trouble::{DiskFull, DiskLow, DiskReadOnly};
        let run = |seen: &[Option<Room>]| {
            let mut streak = Streak::default();
            let mut known = None;
            let said = seen.iter().map(|seen| {
                known = told(*seen, &mut streak, known);
                known
            });
            said.collect::<Vec<_>>()
        };
        for (seen, said) in [
            (vec![Some(Full); 4], vec![Some(DiskLow), Some(DiskLow), Some(DiskFull), Some(DiskFull)]),
            (vec![Some(ReadOnly); 4], vec![None, None, Some(DiskReadOnly), Some(DiskReadOnly)]),
            // two of each are not three of one
            (
                [Full, Full, ReadOnly, ReadOnly, Full].map(Some).to_vec(),
                [DiskLow, DiskLow, DiskLow, DiskLow, DiskLow].map(Some).to_vec(),
            ),
            (
                [ReadOnly, ReadOnly, Full, Full, Full].map(Some).to_vec(),
                vec![None, None, Some(DiskLow), Some(DiskLow), Some(DiskFull)],
            ),
            // what is known stays until a read-only disk is sure to be one
            (
                [Full, Full, Full, ReadOnly, ReadOnly, ReadOnly].map(Some).to_vec(),
                [DiskLow, DiskLow, DiskFull, DiskFull, DiskFull, DiskReadOnly].map(Some).to_vec(),
            ),
            // room, or a disk that cannot be looked at, begins the count anew
            (
                vec![Some(Full), Some(Full), Some(Low), Some(Full), Some(Enough), None, Some(Full)],
                vec![Some(DiskLow), Some(DiskLow), Some(DiskLow), Some(DiskLow), None, None, Some(DiskLow)],
            ),
        ] {
            assert_eq!(run(&seen), said, "{seen:?}");
        }
    }

    #[test]
    fn a_disk_is_low_by_its_size_and_full_only_when_it_takes_no_write() {
        let of = |size: u64, free: u64| Room::of(size << 20, free << 20, || free > 0);
        assert_eq!(of(1000, 65), Room::Enough);
        assert_eq!(of(1000, 63), Room::Low);
        assert_eq!(of(20_000, 199), Room::Low);
        assert_eq!(of(4_000_000, 2000), Room::Enough, "two gigabytes are plenty");
        assert_eq!(of(4_000_000, 1000), Room::Low);
        assert_eq!(of(1000, 0), Room::Full);
    }
}
