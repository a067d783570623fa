//! How far PostgreSQL has replayed the log that it has, while it lets nobody in to ask: by its files, and by what its startup
//! process calls itself, in every version and for whichever reason it replays.

use super::control::Postgres;
use super::position::parse_segment;
use super::{ControlData, PgError, salvage};
use crate::guard::procs::children_of;
use crate::types::Lsn;

/// The log that a PostgreSQL has to replay since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplaySpan {
    /// The postmaster's process.
    pub postmaster: u32,
    /// Where the replay began.
    pub from: Lsn,
    /// The end of the last file of its log on disk: the log ends somewhere in that.
    pub end: Lsn,
    /// Size of such a file, in bytes.
    segment_bytes: u64,
}

impl Postgres {
    /// Returns what the server that runs now has to replay; none where none runs, or there is no log.
    ///
    /// # Errors
    /// The control file or the log cannot be read.
    pub async fn replay_span(&self) -> Result<Option<ReplaySpan>, PgError> {
        let Some(postmaster) = self.postmaster() else { return Ok(None) };
        let ControlData { redo, wal_segment_bytes: segment_bytes, .. } = self.control_data().await?;
        let wal_dir = self.layout().wal_dir();
        let end = tokio::task::spawn_blocking(move || salvage::end_of_log(&wal_dir)).await;
        let end = end.ok().transpose()?.flatten();
        Ok(end.map(|end| ReplaySpan { postmaster, from: redo, end: end.max(redo), segment_bytes }))
    }

    /// Returns where its replay stands, to within a file of the log; none where it replays nothing, or only waits for more.
    pub fn replayed(&self, span: &ReplaySpan) -> Option<Lsn> {
        let postmaster = self.postmaster().filter(|postmaster| *postmaster == span.postmaster)?;
        let number = children_of(postmaster).iter().find_map(|(_, title)| recovering(title, span.segment_bytes))?;
        Some(Lsn(number.saturating_mul(span.segment_bytes)).clamp(span.from, span.end))
    }
}

/// Reads which file of the log a process replays from its title: `postgres: startup recovering 000000010000000000000005`.
fn recovering(title: &str, segment_bytes: u64) -> Option<u64> {
    let (_, name) = title.split_once("startup recovering ")?;
    let (_, number) = parse_segment(name.trim(), segment_bytes)?;
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_replayed_is_read_from_the_title() {
        const MIB16: u64 = 16 << 20;
        let named = "postgres: main: startup recovering 000000020000000100000003 ";
        assert_eq!(recovering("postgres: startup recovering 000000020000000100000003", MIB16), Some(259));
        assert_eq!(recovering(named, MIB16), Some(259));
        for other in
            ["postgres: startup", "postgres: startup waiting for 000000020000000100000003", "postgres: checkpointer"]
        {
            assert_eq!(recovering(other, MIB16), None, "{other}");
        }
    }
}
