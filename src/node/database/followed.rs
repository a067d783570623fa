//! Whom this node's WAL receiver may follow, on disk; whether that one lacks the log that it needs; and of a fetch of another
//! standby's log (L12), whether it brings anything.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Database, Observation};
use crate::ha::view::{Followed, Lineage};
use crate::postgres::{PgError, PostgresFacts};
use crate::sys::clock::boot_now;
use crate::types::{BootTime, Generation, Lsn, NodeId};

/// A standby that may follow has this long to begin streaming before its log is looked at, and again each time after that.
const LOG_READ_EVERY: Duration = Duration::from_secs(3);
/// How much of the end of PostgreSQL's log is looked at.
const LOG_TAIL_BYTES: u64 = 16 << 10;
/// How many of its last lines: an older complaint may have been mended since.
const LOG_TAIL_LINES: usize = 12;

#[derive(Serialize, Deserialize)]
struct FollowedFile {
    node: NodeId,
    generation: Generation,
}

/// How far a fetch has come. Forgotten with the daemon, which then cuts the receiver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetching {
    from: Followed,
    /// When it began, or last brought something.
    pub(super) moved_at: BootTime,
    /// Where the log ended then, once that is known.
    end: Option<Lsn>,
    /// Whether any log has come.
    has_brought: bool,
}

impl Fetching {
    /// Takes an observation in; returns whether it shows more log than the one before.
    pub(super) fn has_moved(&mut self, observation: &Observation) -> bool {
        let PostgresFacts::Live(live) = &observation.facts else { return false };
        if self.end >= Some(live.lsn) {
            return false;
        }
        // where the log stood at first is no progress
        let has_moved = self.end.replace(live.lsn).is_some();
        if has_moved {
            self.moved_at = observation.began;
            self.has_brought = true;
        }
        has_moved
    }
}

impl Database {
    fn followed_path(&self) -> std::path::PathBuf {
        self.postgres.layout().config_dir().join("follows.json")
    }

    /// Whom an earlier start of the daemon let the receiver follow. Where that cannot be read but a key is there, somebody.
    pub(super) fn read_followed(&self) -> Option<Followed> {
        let written = std::fs::read(self.followed_path()).ok();
        let read = written.and_then(|bytes| serde_json::from_slice::<FollowedFile>(&bytes).ok());
        read.map(|file| Followed { node: file.node, generation: file.generation })
    }

    /// Notes whom the receiver may follow, on disk first.
    pub(in crate::node) fn note_follows(&self, followed: Option<Followed>) -> Result<(), PgError> {
        if let Some(followed) = followed {
            let file = FollowedFile { node: followed.node, generation: followed.generation };
            let bytes = serde_json::to_vec(&file).unwrap_or_default();
            self.postgres.layout().write(&self.followed_path(), &bytes)?;
        } else {
            crate::postgres::layout::remove_file(&self.followed_path())?;
        }
        let log_from = self.log_bytes();
        let mut memory = self.memory.lock();
        memory.follows = followed;
        memory.log_from = log_from;
        memory.is_being_cut = false;
        if memory.fetch.take().is_some() {
            memory.fetch_ended_at = Some(boot_now());
        }
        // what was seen before says nothing about whom it follows now, and PostgreSQL is told only after this
        memory.changed_at = boot_now();
        Ok(())
    }

    /// Notes that the receiver is about to be cut off.
    pub(in crate::node) fn note_cut(&self) {
        self.memory.lock().is_being_cut = true;
    }

    /// Notes that a fetch is about to begin: where it cannot, it is tried again no sooner than one that brought nothing.
    pub(in crate::node) fn note_fetch_tried(&self) {
        self.memory.lock().fetch_ended_at = Some(boot_now());
    }

    /// Notes that log is about to be fetched from a standby, on disk first.
    pub(in crate::node) fn note_fetch(&self, from: Followed) -> Result<(), PgError> {
        // it stands still until then, and all may have come before it is looked at again
        let end = match &self.last_observation().facts {
            PostgresFacts::Live(live) => Some(live.lsn),
            _ => None,
        };
        self.note_follows(Some(from))?;
        self.memory.lock().fetch = Some(Fetching { from, moved_at: boot_now(), end, has_brought: false });
        Ok(())
    }

    /// From whom log is being fetched, and up to where it has come; none where nothing has.
    pub(in crate::node) fn fetched(&self) -> Option<(Followed, Lsn)> {
        let fetch = self.memory.lock().fetch.filter(|fetch| fetch.has_brought)?;
        Some((fetch.from, fetch.end?))
    }

    /// Looks, now and then, whether a standby that may follow does not stream because its source no longer has the log that it
    /// needs: PostgreSQL would ask for ever. Then only a copy helps, as if the histories had nothing in common (L19).
    pub(in crate::node) fn notice_missing_log(&self, active: NodeId, promoted: Generation) {
        let now = boot_now();
        let observation = self.last_observation();
        let is_streaming = matches!(&observation.facts, PostgresFacts::Live(live)
            if live.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming"));
        let from = {
            let mut memory = self.memory.lock();
            // one that has no log to fetch from is no reason to copy anything
            let is_due = memory.follows.is_some_and(|followed| followed.node == active)
                && !is_streaming
                && memory.job.is_none()
                && now.since(memory.changed_at.max(memory.log_read_at)) > LOG_READ_EVERY;
            if !is_due {
                return;
            }
            memory.log_read_at = now;
            memory.log_from
        };
        let text = last_bytes(&self.postgres.layout().log_file(), from);
        if text.lines().rev().take(LOG_TAIL_LINES).any(says_log_is_gone) {
            tracing::warn!(
                "the active node no longer has the log that this standby needs: the database is copied anew"
            );
            self.memory.lock().lineage = Some((promoted, Lineage::Diverged, None));
            self.news.notify_one();
        }
    }

    /// What PostgreSQL ended with in its present life, by its own log: the message with its detail and hint.
    pub(in crate::node) fn last_fatal(&self) -> Option<String> {
        let from = self.memory.lock().log_at_start;
        last_fatal(&last_bytes(&self.postgres.layout().log_file(), from))
    }

    /// How long PostgreSQL's own log is.
    pub(super) fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.postgres.layout().log_file()).map_or(0, |metadata| metadata.len())
    }
}

/// Returns the end of a log as text, but what stands before `from`; nothing where it cannot be read.
fn last_bytes(path: &Path, from: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        // shorter than it was: it has been rotated since, and all that it holds is newer
        let from = if length < from { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

/// Returns the last `FATAL` of a log of PostgreSQL, with the `DETAIL` and `HINT` that follow it, as one line. The labels are those of
/// the language C, which hasup's databases log in.
fn last_fatal(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().rposition(|line| line.contains("FATAL:  "))?;
    let of = |label: &str| {
        let said = |line: &&str| line.split_once(label).map(|(_, said)| said.trim().trim_end_matches('.').to_owned());
        lines[at..].iter().take(3).find_map(said)
    };
    let parts = ["FATAL:  ", "DETAIL:  ", "HINT:  "].into_iter().filter_map(of);
    Some(parts.collect::<Vec<_>>().join(". "))
}

/// What PostgreSQL's receiver logs when its source has removed the log that it asks for. The message is the server's, in its
/// language, which hasup's databases have set to C.
fn says_log_is_gone(line: &str) -> bool {
    line.contains("requested WAL segment") && line.contains("has already been removed")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::tests::database;
    use super::*;

    #[test]
    fn what_postgresql_ended_with_is_told_with_its_detail() {
        let log = "2026-11-22 [1] FATAL:  an older one\n2026-11-22 [2] LOG:  starting\n2026-11-22 [2] FATAL:  data directory \
                   \"/d\" has invalid permissions\n2026-11-22 [2] DETAIL:  Permissions should be u=rwx (0700) or u=rwx,g=rx (0750).\n";
        let said =
            "data directory \"/d\" has invalid permissions. Permissions should be u=rwx (0700) or u=rwx,g=rx (0750)";
        assert_eq!(last_fatal(log).as_deref(), Some(said));
        assert_eq!(last_fatal("2026-11-22 [2] LOG:  starting\n"), None);
    }

    fn seen(began: u64, lsn: Option<u64>) -> Observation {
        let facts = lsn.map_or(PostgresFacts::NotReady, |lsn| {
            let nothing = crate::postgres::observe::LiveFacts {
                in_recovery: true,
                timeline: crate::types::Timeline(1),
                lsn: Lsn(lsn),
                receive_lsn: None,
                replay_lsn: None,
                ran_out_of_local_wal: false,
                receiver: None,
                senders: Vec::new(),
                sync_names_shown: String::new(),
                follows_nobody: false,
                follows_generation: None,
                system_identifier: 1,
            };
            PostgresFacts::Live(Box::new(nothing))
        });
        Observation { began: BootTime(began), process: None, facts }
    }

    #[test]
    fn a_fetch_moves_by_log_that_was_not_there_before_and_by_nothing_else() {
        let from = Followed { node: NodeId(3), generation: Generation(1) };
        let mut fetch = Fetching { from, moved_at: BootTime(1), end: None, has_brought: false };
        let moves = [
            (2, Some(100), false),
            (3, None, false),
            (4, Some(100), false),
            (5, Some(101), true),
            (6, Some(90), false),
        ];
        for (began, lsn, has_moved) in moves {
            assert_eq!(fetch.has_moved(&seen(began, lsn)), has_moved, "at {began}");
        }
        assert_eq!(fetch.moved_at, BootTime(5));
    }

    const GONE: &str = "2026-01-01 LOG:  FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment \
                        000000020000000000000003 has already been removed";

    #[test]
    fn a_source_without_the_log_is_recognised() {
        assert!(says_log_is_gone(GONE));
        assert!(!says_log_is_gone("LOG:  started streaming WAL from primary at 0/3000000 on timeline 2"));
    }

    /// Whether a look at PostgreSQL's log, once it is time for one, finds that the source of generation 2 lacks log.
    fn lacks_log(database: &Database) -> bool {
        {
            let mut memory = database.memory.lock();
            (memory.changed_at, memory.log_read_at) = (BootTime(0), BootTime(0));
        }
        database.notice_missing_log(NodeId(2), Generation(2));
        database.lineage() == Some((Generation(2), Lineage::Diverged))
    }

    #[test]
    fn a_fetch_is_told_by_what_it_brought_though_all_came_between_two_looks() {
        let folder = tempfile::tempdir().unwrap();
        let database = database(folder.path());
        let from = Followed { node: NodeId(3), generation: Generation(1) };
        database.take(seen(1, Some(100)));
        database.note_fetch(from).unwrap();
        assert_eq!(database.fetched(), None);
        database.take(seen(2, Some(200)));
        assert_eq!(database.fetched(), Some((from, Lsn(200))));
        database.note_follows(None).unwrap();
        assert_eq!(database.fetched(), None);
        database.note_fetch(from).unwrap();
        database.take(seen(3, Some(200)));
        assert_eq!(database.fetched(), None, "it brought nothing");
    }

    #[test]
    fn what_the_source_of_a_fetch_lacked_is_no_reason_to_copy_the_next_active_node() {
        let folder = tempfile::tempdir().unwrap();
        let known = database(folder.path());
        let path = known.postgres.layout().log_file();
        let mut log = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        known.note_fetch(Followed { node: NodeId(3), generation: Generation(1) }).unwrap();
        writeln!(log, "{GONE}").unwrap();
        known.note_follows(None).unwrap();
        known.note_follows(Some(Followed { node: NodeId(2), generation: Generation(2) })).unwrap();
        assert!(!lacks_log(&known), "said by another");
        assert!(!lacks_log(&database(folder.path())), "nor does it count after a new start of the daemon");
        writeln!(log, "{GONE}").unwrap();
        assert!(lacks_log(&known));
    }

    #[test]
    fn a_log_that_was_rotated_since_is_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        assert_eq!(last_bytes(&path, 7), "");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(last_bytes(&path, 7), "new\n");
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        assert_eq!(last_bytes(&path, 7).len() as u64, LOG_TAIL_BYTES);
    }
}
