//! Which timeline a position in the log belongs to, by the files of `pg_wal`.
//!
//! A standby has no function for it: the control file lags, and the WAL receiver's timeline is that which it *asked for*,
//! which it does at the start of a file that began on the timeline before. Stating (new timeline, LSN before the branch) would
//! rank a node above one that holds more (L12), so the branch decides.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::history::{TimelineHistory, read_all};
use super::{PgError, file_error};
use crate::types::{Lsn, Timeline, WalPosition};

/// Returns the position of a log that ends at `lsn`.
pub fn position_of(wal_dir: &Path, lsn: Lsn, segment_bytes: u64) -> Result<WalPosition, PgError> {
    let histories = read_all(wal_dir)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(wal_dir).map_err(file_error("list", wal_dir))?.flatten() {
        if let Some(name) = entry.file_name().to_str().and_then(|name| parse_segment(name, segment_bytes)) {
            files.push(name);
        }
    }
    Ok(WalPosition { timeline: timeline_of(&files, &histories, lsn, segment_bytes), lsn })
}

/// The newest timeline that has a file with the last byte before `lsn`, or, by its history, the ancestor that made that byte.
fn timeline_of(
    files: &[(Timeline, u64)],
    histories: &BTreeMap<Timeline, TimelineHistory>,
    lsn: Lsn,
    segment_bytes: u64,
) -> Timeline {
    let segment = lsn.0.saturating_sub(1) / segment_bytes.max(1);
    let newest = files.iter().filter(|(_, number)| *number == segment).map(|(timeline, _)| *timeline).max();
    // Without its file (just after a copy) the newest timeline known is the one that the log was read on.
    let newest = newest.unwrap_or_else(|| super::history::newest(histories).timeline);
    histories
        .get(&newest)
        .filter(|history| !history.is_placeholder)
        .map_or(newest, |history| history.timeline_before(lsn))
}

/// Reads the name of a log file: timeline, and number of the file.
pub fn parse_segment(name: &str, segment_bytes: u64) -> Option<(Timeline, u64)> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    let per_id = 0x1_0000_0000 / segment_bytes.max(1);
    Some((Timeline(part(0)?), u64::from(part(8)?) * per_id + u64::from(part(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB16: u64 = 16 << 20;

    #[test]
    fn segment_names_are_read() {
        assert_eq!(parse_segment("000000050000000100000002", MIB16), Some((Timeline(5), 258)));
        for other in
            ["000000050000000100000002.partial", "00000005.history", "archive_status", "00000005000000010000000x"]
        {
            assert_eq!(parse_segment(other, MIB16), None, "{other}");
        }
    }

    #[test]
    fn a_log_that_ends_before_the_branch_is_on_the_ancestor() {
        let branch = Lsn(3 * MIB16 + 500);
        let histories = BTreeMap::from([(
            Timeline(5),
            TimelineHistory { timeline: Timeline(5), ancestors: vec![(Timeline(1), branch)], is_placeholder: false },
        )]);
        let files = [(Timeline(1), 3), (Timeline(5), 3), (Timeline(1), 2)];
        for (lsn, timeline) in [(3 * MIB16 + 400, 1), (branch.0, 1), (branch.0 + 1, 5), (3 * MIB16, 1)] {
            assert_eq!(timeline_of(&files, &histories, Lsn(lsn), MIB16), Timeline(timeline), "{lsn}");
        }
    }
}
