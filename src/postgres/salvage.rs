//! Keeps the log that an old data directory alone may hold, before that directory is removed after a copy (L19).
//!
//! A rewind puts aside what it drops, file by file. A copy replaces the whole directory, also where the rewind could not even
//! begin: then all log goes to `salvage/` that the copy's history does not vouch for, and where there is no history, all there
//! is. Files are moved, which takes no room, or copied where `pg_wal` lies on another disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::history::{self, TimelineHistory};
use super::layout::{Layout, free_bytes, remove_file, sync_dir};
use super::position::parse_segment;
use super::rewind::{self, Salvage};
use super::{PgError, file_error};
use crate::types::{Lsn, Timeline};

/// What the first page of a log file says: its address, the cluster that it belongs to, and the size of such files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    address: Lsn,
    system_identifier: u64,
    segment_bytes: u64,
}

/// Bytes of a header that are read: magic 2, flags 2, timeline 4, address 8, rest of a record 4, padding 4, cluster 8, size 4.
const HEADER_BYTES: usize = 36;

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let part = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let whole = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(eight)
        };
        Self { address: Lsn(whole(8)), system_identifier: whole(24), segment_bytes: u64::from(part(32)) }
    }

    /// Returns none where the file is shorter.
    fn read(path: &Path) -> Result<Option<Self>, PgError> {
        let mut bytes = [0; HEADER_BYTES];
        match File::open(path).and_then(|mut file| file.read_exact(&mut bytes)) {
            Ok(()) => Ok(Some(Self::parse(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(file_error("read", path)(error)),
        }
    }
}

/// A file of the log that holds what its name says: those made ahead for later hold zeros, or old log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) timeline: Timeline,
    header: Header,
}

impl Segment {
    pub(super) fn begin(&self) -> Lsn {
        self.header.address
    }

    pub(super) fn end(&self) -> Lsn {
        Lsn(self.header.address.0.saturating_add(self.header.segment_bytes))
    }
}

/// Returns the files of a log that hold what their names say, by their names.
pub(super) fn segments(wal_dir: &Path) -> Result<Vec<Segment>, PgError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(wal_dir).map_err(file_error("list", wal_dir))? {
        let entry = entry.map_err(file_error("list", wal_dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.len() != 24 || !entry.path().is_file() {
            continue;
        }
        let Some(header) = Header::read(&entry.path())? else { continue };
        let Some((timeline, number)) = parse_segment(&name, header.segment_bytes) else { continue };
        if header.segment_bytes > 0 && number.checked_mul(header.segment_bytes) == Some(header.address.0) {
            found.push(Segment { name, timeline, header });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Returns where the last file of the log in `wal_dir` ends; none where there is none.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub(super) fn end_of_log(wal_dir: &Path) -> Result<Option<Lsn>, PgError> {
    Ok(segments(wal_dir)?.iter().map(Segment::end).max())
}

/// The histories in a folder, by their timelines.
type Histories = BTreeMap<Timeline, TimelineHistory>;

/// Returns those of `old`, whose histories are `theirs`, that a copy with the history `history`, whose own log is `new`, need not hold.
fn tail(old: Vec<Segment>, theirs: &Histories, new: &[Segment], history: Option<&TimelineHistory>) -> Vec<Segment> {
    let end_of = |timeline: Timeline| new.iter().filter(|file| file.timeline == timeline).map(Segment::end).max();
    // A number has one maker (I7), unless a person promoted past hasup: then both branched off differently.
    let is_same_timeline = |timeline: Timeline| {
        let before =
            |it: &TimelineHistory| it.ancestors.iter().copied().take_while(|(older, _)| *older < timeline).collect();
        let lines: Option<(Vec<_>, Vec<_>)> =
            history.zip(theirs.get(&timeline)).map(|(new, old)| (before(new), before(old)));
        lines.is_none_or(|(new, old)| new == old)
    };
    let is_vouched_for = |file: &Segment| {
        let is_same_cluster = new.iter().all(|new| new.header.system_identifier == file.header.system_identifier);
        let left_at = history.and_then(|history| match history.ancestors.iter().find(|left| left.0 == file.timeline) {
            Some((_, left_at)) => Some(*left_at),
            // it holds all that was there when it was copied
            None => end_of(file.timeline).filter(|_| history.timeline == file.timeline),
        });
        is_same_cluster && is_same_timeline(file.timeline) && left_at.is_some_and(|left_at| file.end() <= left_at)
    };
    old.into_iter().filter(|file| !is_vouched_for(file)).collect()
}

/// Puts what `old`, a data directory that nobody uses any more, holds beyond the copy in `layout`'s place under `salvage/`.
/// Repeatable. Returns what was put there, if anything.
///
/// # Errors
/// Something could not be read or moved: then `old` must stay.
pub(super) fn keep_tail(layout: &Layout, old: &Path) -> Result<Option<Salvage>, PgError> {
    if rewind::pending(layout).is_some_and(|journal| journal.salvage.join("salvage.json").is_file()) {
        // the rewind that was begun before has put it aside
        return Ok(None);
    }
    let wal_dir = old.join("pg_wal");
    if !wal_dir.is_dir() {
        return Ok(None);
    }
    let new = segments(&layout.wal_dir()).unwrap_or_default();
    let known = history::read_all(&layout.wal_dir()).ok().map(|histories| history::newest(&histories));
    // named by when that database wrote last, so that a repetition finds its folder again
    let written = fs::metadata(old.join("global/pg_control")).map_or(0, |control| control.mtime());
    let folder = layout.salvage_dir().join(format!("{written}-copy"));
    let mut theirs = history::read_all(&wal_dir).unwrap_or_default();
    // a try that was interrupted may have moved them
    theirs.extend(history::read_all(&folder).unwrap_or_default());
    let tail = tail(segments(&wal_dir)?, &theirs, &new, known.as_ref());
    let (Some(first), Some(last)) = (tail.first(), tail.iter().max_by_key(|file| (file.timeline, file.end()))) else {
        return Ok(None);
    };
    let mut names: BTreeSet<String> = tail.iter().map(|file| file.name.clone()).collect();
    for entry in fs::read_dir(&wal_dir).map_err(file_error("list", &wal_dir))?.flatten() {
        names.extend(entry.file_name().into_string().ok().filter(|name| name.ends_with(".history")));
    }
    let before: Option<Salvage> =
        fs::read(folder.join("salvage.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let listed = Salvage {
        from: before
            .iter()
            .map(|before| before.from)
            .chain(tail.iter().map(|file| file.header.address))
            .min()
            .unwrap_or(first.header.address),
        to: before.iter().map(|before| before.to).chain([last.end()]).max().unwrap_or(last.end()),
        timeline: before.iter().map(|before| before.timeline).chain([last.timeline]).max().unwrap_or(last.timeline),
        files: before
            .iter()
            .flat_map(|before| before.files.clone())
            .chain(names.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        system_identifier: last.header.system_identifier,
    };
    layout.make_dir(&folder)?;
    layout.write(&folder.join("salvage.json"), &serde_json::to_vec_pretty(&listed).unwrap_or_default())?;
    for name in &names {
        move_file(layout, &wal_dir.join(name), &folder.join(name))?;
    }
    sync_dir(&folder)?;
    sync_dir(&wal_dir)?;
    Ok(Some(listed))
}

/// Moves a file, to another disk too.
fn move_file(layout: &Layout, from: &Path, to: &PathBuf) -> Result<(), PgError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {}
        other => return other.map_err(file_error("put aside", from)),
    }
    let needed = fs::metadata(from).map_err(file_error("read", from))?.len() + (16 << 20);
    let folder = to.parent().unwrap_or(&layout.data_dir);
    let free = free_bytes(folder)?;
    if free < needed {
        return Err(PgError::NoSpace { path: folder.to_owned(), free: free >> 20, needed: needed >> 20 });
    }
    fs::copy(from, to).map_err(file_error("put aside", from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(file_error("make durable", to))?;
    layout.give(to)?;
    remove_file(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB16: u64 = 16 << 20;

    fn file(timeline: u32, number: u64, address: u64) -> (String, Vec<u8>) {
        let mut bytes = vec![0; 8192];
        bytes[8..16].copy_from_slice(&address.to_ne_bytes());
        bytes[24..32].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[32..36].copy_from_slice(&(16_u32 << 20).to_ne_bytes());
        (format!("{timeline:08X}{:08X}{:08X}", number / 256, number % 256), bytes)
    }

    fn fill(pgdata: &Path, files: &[(u32, u64)], histories: &[(u32, &str)]) {
        fs::create_dir_all(pgdata.join("pg_wal")).unwrap();
        for (timeline, number) in files {
            let (name, bytes) = file(*timeline, *number, number * MIB16);
            fs::write(pgdata.join("pg_wal").join(name), bytes).unwrap();
        }
        for (timeline, text) in histories {
            fs::write(pgdata.join("pg_wal").join(format!("{timeline:08X}.history")), text).unwrap();
        }
    }

    fn kept(old: &[(u32, u64)], new: &[(u32, u64)], histories: &[(u32, &str)]) -> Vec<String> {
        kept_with(old, &[], new, histories)
    }

    fn kept_with(
        old: &[(u32, u64)],
        old_histories: &[(u32, &str)],
        new: &[(u32, u64)],
        histories: &[(u32, &str)],
    ) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare().unwrap();
        fill(&layout.pgdata, new, histories);
        let aside = folder.path().join("aside");
        fill(&aside, old, old_histories);
        // made ahead, and filled with old log
        let (name, bytes) = file(2, 900, 3 * MIB16);
        fs::write(aside.join("pg_wal").join(name), bytes).unwrap();
        fs::write(aside.join("pg_wal/000000020000000000000385"), [0; 8192]).unwrap();
        let found = keep_tail(&layout, &aside).unwrap();
        assert_eq!(keep_tail(&layout, &aside).unwrap(), None, "what is there is there");
        let Some(found) = found else { return Vec::new() };
        let listed = rewind::list_salvage(&layout).unwrap();
        assert_eq!(listed.values().next(), Some(&found));
        let folder = layout.salvage_dir().join(listed.keys().next().unwrap());
        assert!(found.files.iter().all(|name| folder.join(name).is_file()), "{found:?}");
        assert_eq!(found.system_identifier, 7);
        found.files
    }

    #[test]
    fn what_the_copy_does_not_vouch_for_is_kept_from_the_fork_on_and_all_of_it_where_that_is_unknown() {
        let history = [(4, "2\t0/5000100\tfork\n")];
        let name = |timeline, number| file(timeline, number, 0).0;
        assert_eq!(kept(&[(2, 3), (2, 4), (2, 5), (2, 6)], &[(4, 5), (4, 6)], &history), [name(2, 5), name(2, 6)]);
        // on a timeline that never became the cluster's
        assert_eq!(kept(&[(2, 4), (3, 5)], &[(4, 6)], &history), [name(3, 5)]);
        // behind, so that nothing is its own
        assert_eq!(kept(&[(4, 6), (4, 7)], &[(4, 9)], &history), Vec::<String>::new());
        assert_eq!(kept(&[(4, 9), (4, 10)], &[(4, 9)], &history), [name(4, 10)]);
        assert_eq!(kept(&[(2, 4), (2, 5)], &[], &[]), [name(2, 4), name(2, 5)]);
        // a timeline of the same number that branched off elsewhere
        let other = [(4, "2\t0/6000100\tfork\n")];
        let found = kept_with(&[(2, 4), (2, 5), (4, 6)], &other, &[(4, 9)], &history);
        assert_eq!(found, [name(2, 5), "00000004.history".to_owned(), name(4, 6)]);
    }
}
