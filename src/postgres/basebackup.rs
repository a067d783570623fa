//! Copies the active node's PostgreSQL into a fresh data directory.
//!
//! The copy is made beside, in a folder that bears hasup's mark, completed, synced, and only then takes the place of `pgdata`. A journal says how
//! far it came: what was not completed is begun anew, what was completed is put in place. The old directory is removed last,
//! so that at each instant either the old or the new one is whole.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::{Holder, Layout, free_bytes, put_standby_signal, remove_file, sync_dir};
use super::salvage::keep_tail;
use super::settings::{self, REPLICATION_ROLE, Source, SslPaths};
use super::{PgError, Programs, file_error};
use crate::sys::exec::{Exclusive, Tool};

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct BaseBackup {
    /// The active node's PostgreSQL.
    pub source: Source,
    /// The node's own certificate, which proves that it may copy.
    pub ssl: SslPaths,
    /// The name shown at the source. Never that of a standby whose flushes count (L19).
    pub application: String,
    /// The most that may be copied a second, in KiB.
    pub max_rate_kib: Option<u32>,
    /// What the source's databases take in bytes, for the check of free space; 0 where unknown.
    pub expected_bytes: u64,
    /// How long it may take.
    pub limit: Duration,
    /// How long nothing may come, where there is somebody else to copy from.
    pub silence_limit: Option<Duration>,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What has been copied, in KiB.
    pub done_kib: u64,
    /// What there is to copy, in KiB.
    pub total_kib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// The copy is being filled; worthless after a crash.
    Copying,
    /// The copy is whole and durable.
    Copied,
}

fn journal(layout: &Layout) -> PathBuf {
    layout.config_dir().join("basebackup.json")
}

fn read_journal(layout: &Layout) -> Option<Step> {
    serde_json::from_slice(&fs::read(journal(layout)).ok()?).ok()
}

fn write_journal(layout: &Layout, step: Step) -> Result<(), PgError> {
    let text = serde_json::to_vec(&step).unwrap_or_default();
    layout.write(&journal(layout), &text)
}

/// Returns the progress that a line of `pg_basebackup --progress` tells: `23168/23168 kB (100%), 1/1 tablespace`.
fn parse_progress(line: &str) -> Option<Progress> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB")?;
    Some(Progress { done_kib: done.trim().parse().ok()?, total_kib: total.trim().parse().ok()? })
}

impl BaseBackup {
    /// Makes the copy and puts it in place, ready to start as a standby. PostgreSQL must be stopped, and the caller must have
    /// made `rebuilding` durable (L19). Repeatable after a crash at any point.
    pub async fn run(
        &self,
        programs: &Programs,
        layout: &Layout,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<(), PgError> {
        layout.prepare()?;
        let lock = Exclusive::acquire(&layout.config_dir().join("copy.lock"), "copy", Duration::from_secs(10)).await?;
        if read_journal(layout) != Some(Step::Copied) {
            self.copy(programs, layout, &lock, &mut on_progress).await?;
            write_journal(layout, Step::Copied)?;
        }
        finish(layout, Holder::remove)
    }

    async fn copy(
        &self,
        programs: &Programs,
        layout: &Layout,
        lock: &Exclusive,
        on_progress: &mut impl FnMut(Progress),
    ) -> Result<(), PgError> {
        layout.refuse_foreign_holders()?;
        write_journal(layout, Step::Copying)?;
        let holder = layout.new_holder();
        holder.remove()?;
        let parent = layout.pgdata.parent().unwrap_or(&layout.data_dir).to_owned();
        // A tenth and 64 MiB more: the log that arrives while copying.
        let needed = self.expected_bytes + self.expected_bytes / 10 + (64 << 20);
        let free = free_bytes(&parent)?;
        if free < needed {
            return Err(PgError::NoSpace { path: parent, free: free >> 20, needed: needed >> 20 });
        }
        holder.make(layout)?;
        // while there is room
        layout.old_holder().make(layout)?;
        let beside = holder.data();
        layout.make_dir(&beside)?;
        let conninfo = self.source.conninfo(REPLICATION_ROLE, None, &self.application, &self.ssl);
        let mut args: Vec<OsString> = vec!["-D".into(), beside.clone().into_os_string(), "-d".into(), conninfo.into()];
        let fixed = ["-X", "stream", "--checkpoint=fast", "--progress", "--no-password", "--no-sync"];
        args.extend(fixed.map(OsString::from));
        if let Some(rate) = self.max_rate_kib {
            // PostgreSQL's own limits.
            args.push(format!("--max-rate={}k", rate.clamp(32, 1 << 20)).into());
        }
        let mut tool = Tool::new(programs.path("pg_basebackup"), args, self.limit);
        tool.run_as = layout.owner;
        tool.silence_limit = self.silence_limit;
        let report = |line: &str| {
            if let Some(progress) = parse_progress(line) {
                on_progress(progress);
            }
        };
        tool.run_with(Some(lock), report).await?;
        // The source's marks and settings are not this node's.
        for name in ["recovery.signal", "promote", "postmaster.opts"] {
            remove_file(&beside.join(name))?;
        }
        strip_auto_conf(layout, &beside)?;
        put_standby_signal(layout, &beside)?;
        let folder = fs::File::open(&beside).map_err(file_error("open", &beside))?;
        // One sync of the file system instead of one for each of thousands of files.
        rustix::fs::syncfs(&folder).map_err(|error| file_error("make durable", &beside)(error.into()))
    }
}

pub(super) fn strip_auto_conf(layout: &Layout, pgdata: &std::path::Path) -> Result<(), PgError> {
    let path = pgdata.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let (found, kept) = settings::without_owned(&text);
    if found.is_empty() { Ok(()) } else { layout.write(&path, kept.as_bytes()) }
}

/// Puts a completed copy in place. Each step finds out whether it has been done before.
fn finish(layout: &Layout, remove: impl Fn(&Holder) -> Result<(), PgError>) -> Result<(), PgError> {
    let (new, old) = (layout.new_holder(), layout.old_holder());
    let beside = new.data();
    if beside.is_dir() {
        if layout.pgdata.exists() {
            old.make(layout)?;
            fs::rename(&layout.pgdata, old.free_name()).map_err(file_error("put aside", &layout.pgdata))?;
            sync_dir(old.path())?;
        }
        fs::rename(&beside, &layout.pgdata).map_err(file_error("put in place", &layout.pgdata))?;
        sync_dir(new.path())?;
        layout.pgdata.parent().map_or(Ok(()), sync_dir)?;
    }
    // the copy is whole and in its place: what is left is in nobody's way but for the room that it takes
    let mut leftovers = vec![new];
    let tails = old.contents().iter().map(|aside| keep_tail(layout, aside)).collect::<Result<Vec<_>, _>>();
    match tails {
        Ok(tails) => {
            for tail in tails.into_iter().flatten() {
                tracing::info!(from = %tail.from, to = %tail.to, "log that the copy may not hold is kept under salvage/");
            }
            leftovers.push(old);
        }
        Err(error) => tracing::warn!(
            error = %error,
            cause = std::error::Error::source(&error).map(ToString::to_string),
            "{} holds log that the cluster may lack, and it could not be put into salvage/: that folder stays; look what is in it, \
             then remove it by hand",
            old.path().display()
        ),
    }
    remove_file(&journal(layout))?;
    for holder in leftovers {
        if let Err(error) = remove(&holder) {
            tracing::warn!(
                error = %error,
                cause = std::error::Error::source(&error).map(ToString::to_string),
                "{} is not needed any more and could not be removed whole: remove it by hand",
                holder.path().display()
            );
        }
    }
    Ok(())
}

/// Tells whether a copy was begun and is not in place: then `pgdata` must not be started before [`BaseBackup::run`] is done.
pub fn is_pending(layout: &Layout) -> bool {
    journal(layout).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read() {
        assert_eq!(
            parse_progress("  1024/23168 kB (4%), 0/1 tablespace (...new/base/1/2)"),
            Some(Progress { done_kib: 1024, total_kib: 23168 })
        );
        assert_eq!(parse_progress("waiting for checkpoint"), None);
    }

    #[test]
    fn a_completed_copy_is_put_in_place_from_wherever_the_crash_was() {
        for crash in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::new(folder.path());
            layout.prepare().unwrap();
            layout.new_holder().make(&layout).unwrap();
            fs::create_dir(layout.new_holder().data()).unwrap();
            fs::write(layout.new_holder().data().join("mark"), "new").unwrap();
            // somebody's own
            for name in ["pgdata.old", "pgdata.new"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            fs::create_dir(&layout.pgdata).unwrap();
            fs::write(layout.pgdata.join("mark"), "old").unwrap();
            write_journal(&layout, Step::Copied).unwrap();
            if crash >= 1 {
                layout.old_holder().make(&layout).unwrap();
                fs::rename(&layout.pgdata, layout.old_holder().data()).unwrap();
            }
            if crash >= 2 {
                fs::rename(layout.new_holder().data(), &layout.pgdata).unwrap();
            }
            assert!(is_pending(&layout));
            finish(&layout, Holder::remove).unwrap();
            assert_eq!(fs::read_to_string(layout.pgdata.join("mark")).unwrap(), "new", "{crash}");
            assert!(!is_pending(&layout), "{crash}");
            for holder in [layout.new_holder(), layout.old_holder()] {
                assert!(!holder.path().exists(), "{crash} {holder:?}");
            }
            assert!(folder.path().join("pgdata.old").exists() && folder.path().join("pgdata.new").exists());
        }
    }

    #[test]
    fn an_old_directory_that_cannot_be_removed_does_not_undo_the_copy_nor_hold_up_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare().unwrap();
        fs::create_dir(&layout.pgdata).unwrap();
        for round in 0..3 {
            layout.new_holder().make(&layout).unwrap();
            fs::create_dir(layout.new_holder().data()).unwrap();
            fs::write(layout.new_holder().data().join("mark"), round.to_string()).unwrap();
            write_journal(&layout, Step::Copied).unwrap();
            // as with an immutable file in it
            finish(&layout, |_| Err(PgError::Refused("it stays".to_owned()))).unwrap();
            assert_eq!(fs::read_to_string(layout.pgdata.join("mark")).unwrap(), round.to_string());
            assert!(!is_pending(&layout));
        }
    }
}
