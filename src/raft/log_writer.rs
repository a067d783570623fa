//! The thread that changes the log on disk: takes what has queued up, writes it in order, syncs, tells all.
//!
//! What is durable when:
//! - sled gathers records in buffers, and its own threads write them, a buffer at a time. To sled a buffer is stable once `pwrite`
//!   and `sync_file_range` have returned. It then notes so in the header of a later segment, and takes the segments whose pages
//!   have all moved for new ones, in place. `sync_file_range` does not make a file's new length and extents durable. A power cut
//!   then keeps the header and the overwritten segment, and loses the buffer that held the pages' new places: pages are
//!   missing, or sled takes all since it was opened for torn and clears it, acknowledged or not.
//! - So the file has the attribute S (`super::log_store`): each `pwrite` returns only once its bytes, and the length and extents
//!   that lead to them, are on disk. What sled takes for stable is.
//! - Should a file system take the attribute for nothing, [`Pace`] syncs at least once while a segment fills. sled reuses a segment only after the one that replaces its pages and a
//!   whole further one are written, so such a sync lies between.
//! - Nothing is told before [`sync`] has returned: flush (all buffers are written), then an fdatasync of our own. With the
//!   attribute it finds little left to do, and no acknowledgement hangs on the attribute.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::log_store::Shared;
use super::types::TypeConfig;

/// Values never grow beyond this. sled keeps up to seventeen of them in one record, and moves a record of more than a quarter of
/// [`SEGMENT_BYTES`] into a file that it never syncs.
const CHUNK_BYTES: usize = 1 << 10;
/// Of logs that are made new. sled holds dozens of buffers of this size: its own default has four times as much.
pub(super) const SEGMENT_BYTES: usize = 128 << 10;
/// Of the first chunk: format, length (u32), CRC-32 (u32), both little-endian.
const RECORD_HEADER: usize = 1 + 4 + 4;
const RECORD_FORMAT: u8 = 1;
/// No more than this many changes share a sync, so that the first of them is told in time.
const BATCH: usize = 512;
/// After this many records were put or removed, what sled has buffered is synced even in the midst of a change. sled writes up to
/// about 4 KiB for each, so no more than two of its buffers are on their way to the disk then. From eight on it can stand still
/// for ever: its eight threads wait for a lock, whose holder waits for a truncation, which waits for one of those threads.
const PACE: u32 = 32;

pub(super) const VOTE_KEY: &[u8] = b"vote";
pub(super) const COMMITTED_KEY: &[u8] = b"committed";
pub(super) const PURGED_KEY: &[u8] = b"purged";

/// A change of the log, in the order it must reach the disk.
pub(super) enum Change {
    /// Entries by index, in order.
    Append { entries: Vec<(u64, Vec<u8>)>, told: IOFlushed<TypeConfig> },
    /// One of the keys above.
    Meta { key: &'static [u8], value: Vec<u8>, told: oneshot::Sender<io::Result<()>> },
    /// Removes the entries from this index on.
    Truncate { from: u64, told: oneshot::Sender<io::Result<()>> },
    /// Removes the entries up to this index, after `purged` was noted.
    Purge { upto: u64, purged: Vec<u8> },
    /// Ends the thread.
    Close { told: oneshot::Sender<io::Result<()>> },
}

/// Who waits for a change.
enum Waiting {
    Append(IOFlushed<TypeConfig>, u64),
    Other(oneshot::Sender<io::Result<()>>),
}

/// The log's two trees and the file under them.
#[derive(Clone)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) log: sled::Tree,
    pub(super) meta: sled::Tree,
    /// `<folder>/db`, which sled itself never really syncs.
    pub(super) file: Arc<File>,
}

/// Counts what is put and removed, and syncs every [`PACE`] of it.
#[derive(Default)]
pub(super) struct Pace(u32);

/// Leaves [`PACE`] out, for the test that must find what comes of that.
#[cfg(feature = "mutations")]
pub static WITHOUT_PACE: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

impl Pace {
    fn step(&mut self, trees: &Trees) -> io::Result<()> {
        #[cfg(feature = "mutations")]
        if WITHOUT_PACE.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(());
        }
        self.0 += 1;
        match self.0.is_multiple_of(PACE) {
            true => sync(trees),
            false => Ok(()),
        }
    }
}

/// Runs until the queue closes, or a [`Change::Close`]. After a failed write every further change fails: what reached the disk is
/// unknown then, and the node must stop.
pub(super) fn run(trees: Trees, queue: &Receiver<Change>, shared: &Shared) {
    let mut failed: Option<String> = None;
    let mut pace = Pace::default();
    while let Ok(first) = queue.recv() {
        let mut waiting = Vec::new();
        let mut closing = None;
        let mut next = Some(first);
        while let Some(change) = next {
            if let Change::Close { told } = change {
                closing = Some(told);
                break;
            }
            let written = match &failed {
                Some(_) => Ok(()),
                None => guarded(|| write(&trees, &change, &mut pace)),
            };
            if let Err(error) = written {
                failed = Some(error.to_string());
            }
            waiting.extend(waiting_for(change));
            next = match queue.try_recv() {
                Ok(change) if waiting.len() < BATCH => Some(change),
                Ok(change) => {
                    settle(&trees, &mut failed, std::mem::take(&mut waiting), shared);
                    Some(change)
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            };
        }
        settle(&trees, &mut failed, waiting, shared);
        if let Some(told) = closing {
            drop(trees);
            // Whoever asked may have gone.
            let _ = told.send(Ok(()));
            return;
        }
    }
}

/// Syncs what was written and tells those who wait.
fn settle(trees: &Trees, failed: &mut Option<String>, waiting: Vec<Waiting>, shared: &Shared) {
    if failed.is_none()
        && let Err(error) = guarded(|| sync(trees))
    {
        *failed = Some(error.to_string());
    }
    if let Some(failed) = failed {
        shared.fail(failed);
    }
    for waiting in waiting {
        let result = match failed {
            None => Ok(()),
            Some(failed) => Err(io::Error::other(failed.clone())),
        };
        match waiting {
            Waiting::Append(told, last) => {
                if result.is_ok() {
                    shared.durable(last);
                }
                told.io_completed(result);
            }
            // Whoever asked may have gone.
            Waiting::Other(told) => drop(told.send(result)),
        }
    }
}

fn waiting_for(change: Change) -> Option<Waiting> {
    match change {
        Change::Append { entries, told } => Some(Waiting::Append(told, entries.last().map_or(0, |(index, _)| *index))),
        Change::Meta { told, .. } | Change::Truncate { told, .. } => Some(Waiting::Other(told)),
        Change::Purge { .. } | Change::Close { .. } => None,
    }
}

/// Makes everything written so far durable.
pub(super) fn sync(trees: &Trees) -> io::Result<()> {
    trees.db.flush().map_err(io::Error::from)?;
    trees.file.sync_data()
}

/// Turns a panic of sled, which it answers disk errors with, into an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(io::Error::other(format!("sled stopped: {}", text.unwrap_or("no reason given"))))
    })
}

fn write(trees: &Trees, change: &Change, pace: &mut Pace) -> io::Result<()> {
    match change {
        Change::Append { entries, .. } => {
            for (index, bytes) in entries {
                for (chunk, value) in (0u16..).zip(record(bytes)?.chunks(CHUNK_BYTES)) {
                    trees.log.insert(key(*index, chunk), value)?;
                    pace.step(trees)?;
                }
            }
        }
        Change::Meta { key, value, .. } => {
            trees.meta.insert(key, value.as_slice())?;
        }
        Change::Truncate { from, .. } => remove_backwards(trees, *from, pace)?,
        Change::Purge { upto, purged } => {
            trees.meta.insert(PURGED_KEY, purged.as_slice())?;
            remove_upto(trees, *upto, pace)?;
        }
        Change::Close { .. } => {}
    }
    Ok(())
}

/// Removes the entries from `from` on, the last one first, so that a crash leaves no hole.
pub(super) fn remove_backwards(trees: &Trees, from: u64, pace: &mut Pace) -> io::Result<()> {
    for key in trees.log.range(key(from, 0)..).keys().rev() {
        trees.log.remove(key?)?;
        pace.step(trees)?;
    }
    Ok(())
}

/// Removes the entries up to `upto`, the first one first.
pub(super) fn remove_upto(trees: &Trees, upto: u64, pace: &mut Pace) -> io::Result<()> {
    for key in trees.log.range(..=key(upto, u16::MAX)).keys() {
        trees.log.remove(key?)?;
        pace.step(trees)?;
    }
    Ok(())
}

fn key(index: u64, chunk: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&chunk.to_be_bytes());
    key
}

fn record(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    if bytes.len() + RECORD_HEADER > CHUNK_BYTES * usize::from(u16::MAX) {
        return Err(io::Error::other(format!("an entry of {len} bytes is too long for the log")));
    }
    let mut record = Vec::with_capacity(RECORD_HEADER + bytes.len());
    record.push(RECORD_FORMAT);
    record.extend_from_slice(&len.to_le_bytes());
    record.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    record.extend_from_slice(bytes);
    Ok(record)
}

/// An entry as found on disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Whole.
    Whole(Vec<u8>),
    /// Its last chunks are missing: a crash interrupted its writing.
    Short,
    /// Its bytes are not those that were written.
    Damaged,
}

/// Calls `each` for the entries from index `first` to `last`, in order.
pub(super) fn for_each_entry(
    log: &sled::Tree,
    first: u64,
    last: u64,
    mut each: impl FnMut(u64, Found) -> io::Result<()>,
) -> io::Result<()> {
    let mut open: Option<(u64, u16, Vec<u8>)> = None;
    for item in log.range(key(first, 0)..=key(last, u16::MAX)) {
        let (found, value) = item?;
        let (Some(index), Some(chunk)) = (found.get(..8), found.get(8..)) else {
            return Err(io::Error::other("a key of the log has the wrong length"));
        };
        let (Ok(index), Ok(chunk)) = (index.try_into(), chunk.try_into()) else {
            return Err(io::Error::other("a key of the log has the wrong length"));
        };
        let (index, chunk) = (u64::from_be_bytes(index), u16::from_be_bytes(chunk));
        match &mut open {
            Some((at, next, bytes)) if *at == index && *next == chunk => {
                bytes.extend_from_slice(&value);
                *next = next.wrapping_add(1);
            }
            Some((at, _, bytes)) if *at != index => {
                each(*at, unwrap_record(bytes))?;
                open = Some((index, chunk.wrapping_add(1), if chunk == 0 { value.to_vec() } else { Vec::new() }));
            }
            Some((_, _, bytes)) => bytes.clear(),
            None => open = Some((index, chunk.wrapping_add(1), if chunk == 0 { value.to_vec() } else { Vec::new() })),
        }
    }
    match open {
        Some((index, _, bytes)) => each(index, unwrap_record(&bytes)),
        None => Ok(()),
    }
}

fn unwrap_record(bytes: &[u8]) -> Found {
    let Some((header, body)) = bytes.split_at_checked(RECORD_HEADER) else { return Found::Damaged };
    let number = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
    let (len, checksum) = (number(1) as usize, number(5));
    if header[0] != RECORD_FORMAT || body.len() > len {
        Found::Damaged
    } else if body.len() < len && body.len() + RECORD_HEADER == bytes.len() && bytes.len().is_multiple_of(CHUNK_BYTES) {
        Found::Short
    } else if body.len() != len || crc32fast::hash(body) != checksum {
        Found::Damaged
    } else {
        Found::Whole(body.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_cut_between_chunks_is_short_and_a_changed_one_is_damaged() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let record = record(&bytes).unwrap();
        assert_eq!(unwrap_record(&record), Found::Whole(bytes));
        assert_eq!(unwrap_record(&record[..CHUNK_BYTES]), Found::Short);
        assert_eq!(unwrap_record(&record[..CHUNK_BYTES * 2]), Found::Short);
        assert_eq!(unwrap_record(&[]), Found::Damaged);
        for at in [0, 2, 6, 500, record.len() - 1] {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert_eq!(unwrap_record(&bad), Found::Damaged, "{at}");
        }
    }
}
