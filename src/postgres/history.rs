//! Histories of timelines: parsed, compared, and the placeholders that reserve numbers (L13). Pure but for the folder walks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{PgError, file_error};
use crate::sys::fs::write_durably;
use crate::types::{Lsn, Timeline, WalPosition};

/// What marks a placeholder: its third column.
const PLACEHOLDER_REASON: &str = "reserved";
/// The whole of a placeholder: a branch of timeline 1 before any real record, so that no running standby takes it for its own
/// future.
pub const PLACEHOLDER: &str = "1\t0/1000000\treserved\n";

/// How a timeline came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself.
    pub timeline: Timeline,
    /// Its ancestors, oldest first, each with the position at which it was left.
    pub ancestors: Vec<(Timeline, Lsn)>,
    /// Whether the file is a placeholder and the timeline never was.
    pub is_placeholder: bool,
}

impl TimelineHistory {
    /// Returns the history of timeline 1, which has no file.
    pub fn first() -> Self {
        Self { timeline: Timeline(1), ancestors: Vec::new(), is_placeholder: false }
    }

    /// Parses a history file. Lines are `timeline <blank> LSN <blank> reason`; `#` begins a comment.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, String> {
        let mut history = Self { timeline, ancestors: Vec::new(), is_placeholder: false };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut columns = line.split_ascii_whitespace();
            let (number, lsn) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
            let number = number.parse().map(Timeline).map_err(|_| format!("`{line}` begins with no timeline"))?;
            let lsn = lsn.parse().map_err(|error| format!("`{line}`: {error}"))?;
            if history.ancestors.last().is_some_and(|(last, _)| *last >= number) || number >= timeline {
                return Err(format!("`{line}` is out of order in the history of timeline {timeline}"));
            }
            history.is_placeholder |= columns.next() == Some(PLACEHOLDER_REASON);
            history.ancestors.push((number, lsn));
        }
        Ok(history)
    }

    /// Returns the timeline that made the last byte before `lsn`: at a branching point that is the ancestor, for of the
    /// descendant nothing is held there yet. A standby that has only asked for a new timeline holds nothing of it.
    pub fn timeline_before(&self, lsn: Lsn) -> Timeline {
        let ancestor = self.ancestors.iter().find(|(_, end)| lsn <= *end);
        ancestor.map_or(self.timeline, |(timeline, _)| *timeline)
    }

    fn ranges(&self, end: Lsn) -> Vec<(Timeline, Lsn)> {
        let mut ranges = self.ancestors.clone();
        ranges.push((self.timeline, end));
        ranges
    }
}

/// What comparing one's own log with the primary's history says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// All that is held is part of the primary's history: follow.
    None,
    /// What is held beyond this position is not: it is put aside and rewound.
    At(Lsn),
    /// There is no common history: only a copy helps.
    Unrelated,
}

/// Compares what a node holds with a primary's history. Timeline numbers have one maker (L13), so equal numbers that branched
/// off alike are the same timeline.
pub fn diverged(own: WalPosition, own_history: &TimelineHistory, primary: &TimelineHistory) -> Divergence {
    // What is held ends on `own.timeline`, which may be an ancestor of the newest history on disk.
    let mine: Vec<_> = match own_history.ancestors.iter().position(|(timeline, _)| *timeline == own.timeline) {
        Some(at) => {
            let mut ranges = own_history.ancestors[..at].to_vec();
            ranges.push((own.timeline, own.lsn));
            ranges
        }
        None => own_history.ranges(own.lsn),
    };
    let theirs = primary.ranges(Lsn(u64::MAX));
    let mut common = None;
    for (index, (timeline, end)) in mine.iter().enumerate() {
        match theirs.get(index) {
            Some((theirs, their_end)) if theirs == timeline => {
                let is_last = index + 1 == mine.len();
                if is_last && end <= their_end {
                    return Divergence::None;
                }
                if is_last || end != their_end {
                    return fork(own, *end.min(their_end));
                }
                common = Some(*end);
            }
            _ => return common.map_or(Divergence::Unrelated, |at| fork(own, at)),
        }
    }
    Divergence::Unrelated
}

fn fork(own: WalPosition, at: Lsn) -> Divergence {
    if own.lsn > at { Divergence::At(at) } else { Divergence::None }
}

/// Returns the name of a timeline's history file.
pub fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// Reads the history of one timeline from a `pg_wal` folder; that of timeline 1 needs no file.
pub fn read(wal_dir: &Path, timeline: Timeline) -> Result<Option<TimelineHistory>, PgError> {
    if timeline == Timeline(1) {
        return Ok(Some(TimelineHistory::first()));
    }
    let path = wal_dir.join(file_name(timeline));
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", &path)(error)),
        Ok(bytes) => TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes))
            .map(Some)
            .map_err(|detail| PgError::Malformed { path, what: "timeline history", detail }),
    }
}

/// Reads every history in a `pg_wal` folder, placeholders included. A torn or foreign file is left out: PostgreSQL, not this,
/// must judge it.
pub fn read_all(wal_dir: &Path) -> Result<BTreeMap<Timeline, TimelineHistory>, PgError> {
    let mut histories = BTreeMap::from([(Timeline(1), TimelineHistory::first())]);
    for entry in fs::read_dir(wal_dir).map_err(file_error("list", wal_dir))?.flatten() {
        let name = entry.file_name();
        let timeline = name.to_str().and_then(|name| name.strip_suffix(".history")).filter(|stem| stem.len() == 8);
        let Some(timeline) = timeline.and_then(|stem| u32::from_str_radix(stem, 16).ok()).map(Timeline) else {
            continue;
        };
        if let Ok(Some(history)) = read(wal_dir, timeline) {
            histories.insert(timeline, history);
        }
    }
    Ok(histories)
}

/// Returns the highest timeline in `pg_wal` that is real.
pub fn newest(histories: &BTreeMap<Timeline, TimelineHistory>) -> TimelineHistory {
    let real = histories.values().rev().find(|history| !history.is_placeholder);
    real.cloned().unwrap_or_else(TimelineHistory::first)
}

/// Fills every number below `below` that has no history file. Returns how many were laid. They need not be durable: after a
/// crash [`tidy_placeholders`] lays those that matter again.
pub fn lay_placeholders(wal_dir: &Path, below: Timeline) -> Result<u32, PgError> {
    let mut laid = 0;
    for number in 2..below.0 {
        let path = wal_dir.join(file_name(Timeline(number)));
        if path.exists() {
            continue;
        }
        // a running standby looks for these files and must never see a torn one
        write_durably(&path, PLACEHOLDER.as_bytes(), 0o600).map_err(file_error("write", &path))?;
        laid += 1;
    }
    Ok(laid)
}

/// Makes the row of placeholders right before a start: none above the newest real timeline, all below it.
pub fn tidy_placeholders(wal_dir: &Path) -> Result<(), PgError> {
    let histories = read_all(wal_dir)?;
    let newest = newest(&histories);
    for history in histories.values().filter(|history| history.is_placeholder && history.timeline > newest.timeline) {
        super::layout::remove_file(&wal_dir.join(file_name(history.timeline)))?;
    }
    lay_placeholders(wal_dir, newest.timeline)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        TimelineHistory {
            timeline: Timeline(timeline),
            ancestors: ancestors.iter().map(|(timeline, lsn)| (Timeline(*timeline), Lsn(*lsn))).collect(),
            is_placeholder: false,
        }
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn history_files_are_read_as_postgresql_writes_them() {
        let parsed =
            TimelineHistory::parse(Timeline(5), "1\t0/3000148\tno recovery target specified\n\n3\t0/5000000\tx\n");
        assert_eq!(parsed, Ok(history(5, &[(1, 0x300_0148), (3, 0x500_0000)])));
        assert!(TimelineHistory::parse(Timeline(2), PLACEHOLDER).unwrap().is_placeholder);
        for bad in ["x 0/1 y", "1 z y", "1", "3 0/1 y\n2 0/2 y", "5 0/1 y"] {
            assert!(TimelineHistory::parse(Timeline(5), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_position_at_the_branch_belongs_to_the_ancestor() {
        let history = history(5, &[(1, 100), (3, 200)]);
        for (lsn, timeline) in [(1, 1), (100, 1), (101, 3), (200, 3), (201, 5)] {
            assert_eq!(history.timeline_before(Lsn(lsn)), Timeline(timeline), "{lsn}");
        }
    }

    #[test]
    fn divergence_is_found_wherever_the_logs_part() {
        let primary = history(5, &[(1, 100), (3, 200)]);
        let cases = [
            (at(1, 90), history(1, &[]), Divergence::None),
            (at(1, 100), history(1, &[]), Divergence::None),
            (at(1, 130), history(1, &[]), Divergence::At(Lsn(100))),
            (at(3, 200), history(3, &[(1, 100)]), Divergence::None),
            (at(3, 201), history(3, &[(1, 100)]), Divergence::At(Lsn(200))),
            (at(5, 900), history(5, &[(1, 100), (3, 200)]), Divergence::None),
            (at(4, 150), history(4, &[(1, 100)]), Divergence::At(Lsn(100))),
            (at(3, 150), history(3, &[(1, 120)]), Divergence::At(Lsn(100))),
            (at(3, 150), history(3, &[(1, 80)]), Divergence::At(Lsn(80))),
            (at(6, 300), history(6, &[(1, 100), (3, 200), (5, 250)]), Divergence::At(Lsn(250))),
            (at(1, 90), history(5, &[(1, 100), (3, 200)]), Divergence::None),
            (at(2, 90), history(2, &[]), Divergence::Unrelated),
        ];
        for (own, own_history, expected) in cases {
            assert_eq!(diverged(own, &own_history, &primary), expected, "{own}");
        }
    }

    #[test]
    fn placeholders_fill_the_row_and_never_stand_above_the_newest_timeline() {
        let folder = tempfile::tempdir().unwrap();
        let real =
            |number: u32| std::fs::write(folder.path().join(file_name(Timeline(number))), "1\t0/3000000\tx\n").unwrap();
        real(4);
        assert_eq!(lay_placeholders(folder.path(), Timeline(7)).unwrap(), 4);
        tidy_placeholders(folder.path()).unwrap();
        let kept: Vec<u32> = read_all(folder.path()).unwrap().keys().map(|timeline| timeline.0).collect();
        assert_eq!(kept, [1, 2, 3, 4]);
        assert_eq!(newest(&read_all(folder.path()).unwrap()).timeline, Timeline(4));
    }
}
