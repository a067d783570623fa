//! Brings a diverged node back without a copy: the tail that is dropped is put aside, then `pg_rewind`.
//!
//! A journal makes each step repeatable after kill -9. What a killed `pg_rewind` leaves is never started: the journal says so
//! until it has been run to its end, or a base backup has replaced the directory.
//!
//! The target must have been stopped in order *as a standby* (`pg_rewind` would else recover it by a single-user server, which
//! refuses beside `standby.signal`): after a crash the node starts barred, reads its log to the end, and is stopped.
//!
//! `pg_rewind` before version 16 knows a log's timelines by the last checkpoint alone. The first one after a promotion takes
//! PostgreSQL minutes, and until then a primary that dies looks to it as if it had never been promoted: it looks for the log since
//! in files of the timeline before, the last of which the promotion has renamed `.partial`. So those files are given the names
//! that it looks for; what they hold is the one log all the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::basebackup::strip_auto_conf;
use super::controldata::{ControlData, ControlState};
use super::layout::{Layout, free_bytes, put_standby_signal, remove_dir, remove_file, sync_dir};
use super::position::parse_segment;
use super::salvage::segments;
use super::settings::{REWIND_ROLE, Source, SslPaths};
use super::{PgError, Programs, file_error, history};
use crate::sys::clock::boot_id;
use crate::sys::exec::{Exclusive, ExecError, Tool};
use crate::types::{BootId, Lsn, Timeline, WalPosition};

/// How a node is rewound.
#[derive(Debug, Clone)]
pub struct Rewind {
    /// The active node's PostgreSQL, on which a checkpoint has been made since its promotion.
    pub source: Source,
    /// The node's own certificate.
    pub ssl: SslPaths,
    /// The timeline that the source writes on.
    pub source_timeline: Timeline,
    /// Where the node's log parts from the source's.
    pub fork: Lsn,
    /// Where the node's log ends.
    pub own: WalPosition,
    /// Names the folder under `salvage/`, like the wall-clock time.
    pub label: String,
    /// How long `pg_rewind` may take.
    pub limit: Duration,
}

/// The steps of the journal. Each names what has been *begun*; it is repeated after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RewindStep {
    /// The tail is being put aside; the data directory is untouched.
    Quarantine,
    /// `pg_rewind` runs or was killed; the data directory must not be started.
    Rewinding,
    /// `pg_rewind` has ended well; the node's own files are being put back.
    Fixing,
}

/// What the journal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewindJournal {
    /// How far it came.
    pub step: RewindStep,
    /// The folder with the dropped tail.
    pub salvage: PathBuf,
    /// What the source writes on. Each promotion has a number of its own, so this tells from which primary it was begun.
    #[serde(default)]
    pub source_timeline: Timeline,
    /// The boot of the machine in which that step began: what an earlier one had not yet made durable is gone.
    #[serde(default)]
    pub boot: BootId,
}

/// What is known about a tail put aside, as `salvage.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvage {
    /// Where the tail begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// The timeline it ends on.
    pub timeline: Timeline,
    /// The files of the log that hold it.
    pub files: Vec<String>,
    /// Which PostgreSQL cluster it belongs to.
    pub system_identifier: u64,
}

/// From this version on, `pg_rewind` looks also where recovery ended to learn which timeline a log ends on.
const READS_RECOVERY_END: u32 = 16;

/// What `pg_rewind` says when it has read and compared, ahead of the first change.
const LAST_WORD_BEFORE_CHANGES: &str = "rewinding from last common checkpoint";

/// The node's own files in its data directory, which a rewind would replace by the source's.
const OWN_FILES: [&str; 4] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf"];

fn journal_path(layout: &Layout) -> PathBuf {
    layout.config_dir().join("rewind.json")
}

/// Returns the journal of a rewind that was begun and not ended: `pgdata` must not be started before it is.
pub fn pending(layout: &Layout) -> Option<RewindJournal> {
    let bytes = fs::read(journal_path(layout)).ok()?;
    // An unreadable journal still says that a rewind had begun: then the worst is assumed.
    let unknown = RewindJournal {
        step: RewindStep::Rewinding,
        salvage: layout.salvage_dir(),
        source_timeline: Timeline::default(),
        boot: BootId::default(),
    };
    Some(serde_json::from_slice(&bytes).unwrap_or(unknown))
}

/// Forgets a rewind, after a base backup has replaced the data directory.
pub fn forget(layout: &Layout) -> Result<(), PgError> {
    remove_file(&journal_path(layout))
}

impl Rewind {
    /// Rewinds, from wherever an earlier try was killed, and leaves a directory ready to start as a standby. PostgreSQL must be
    /// stopped in order as a standby. On any error but a refusal before anything was touched: make a base backup.
    pub async fn run(&self, programs: &Programs, layout: &Layout) -> Result<Salvage, PgError> {
        self.run_observed(programs, layout, |_| Ok(())).await
    }

    /// As [`run`](Self::run); `reached` hears of each step right after the journal says it, and may end the run there.
    pub async fn run_observed(
        &self,
        programs: &Programs,
        layout: &Layout,
        mut reached: impl FnMut(RewindStep) -> Result<(), PgError>,
    ) -> Result<Salvage, PgError> {
        let lock =
            Exclusive::acquire(&layout.config_dir().join("copy.lock"), "rewind", Duration::from_secs(10)).await?;
        let begun = pending(layout);
        let is_repeated = begun.as_ref().is_some_and(|journal| journal.step == RewindStep::Rewinding);
        let mut journal = begun.unwrap_or_else(|| RewindJournal {
            step: RewindStep::Quarantine,
            salvage: layout.salvage_dir().join(&self.label),
            source_timeline: self.source_timeline,
            boot: boot_id(),
        });
        if journal.step != RewindStep::Quarantine && journal.source_timeline != self.source_timeline {
            // what the other alone had written may be in files that a second rewind leaves as they are
            return Err(PgError::Refused(format!(
                "a rewind from another primary, on timeline {}, was begun and not ended: its data would be mixed with those of \
                 timeline {}, so the database is copied",
                journal.source_timeline, self.source_timeline
            )));
        }
        if journal.step == RewindStep::Quarantine {
            let data = ControlData::read(programs, layout).await?;
            if data.state != ControlState::ShutDownInRecovery && data.state != ControlState::ShutDown {
                return Err(PgError::Refused(
                    "PostgreSQL was not stopped in order as a standby, so it cannot be rewound yet: nothing was touched; start \
                     it barred, let it read its log, stop it"
                        .to_owned(),
                ));
            }
            if [data.timeline, self.own.timeline].contains(&self.source_timeline) {
                // pg_rewind would say that no rewind is required, and leave what differs
                return Err(PgError::SameTimeline { timeline: self.source_timeline, fork: self.fork });
            }
            self.advance(layout, &mut journal, RewindStep::Quarantine)?;
            reached(RewindStep::Quarantine)?;
            self.quarantine(layout, &journal.salvage, &data)?;
            self.advance(layout, &mut journal, RewindStep::Rewinding)?;
        }
        if is_repeated && journal.boot != boot_id() {
            return Err(PgError::Refused(
                "the machine went down while the database was being rewound, so some of what had been written may be missing: the \
                 database is copied"
                    .to_owned(),
            ));
        }
        if journal.step == RewindStep::Rewinding {
            reached(RewindStep::Rewinding)?;
            let data = ControlData::read(programs, layout).await?;
            if data.timeline == self.source_timeline {
                // killed when all was written: the control file comes last, and pg_rewind refuses to do it again
                sync_all(layout)?;
            } else {
                self.rewind(programs, layout, &lock, &mut journal, is_repeated).await?;
            }
            self.advance(layout, &mut journal, RewindStep::Fixing)?;
        }
        reached(RewindStep::Fixing)?;
        fix(layout, &journal.salvage)?;
        forget(layout)?;
        let path = journal.salvage.join("salvage.json");
        let bytes = fs::read(&path).map_err(file_error("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| PgError::Malformed {
            path,
            what: "list of a salvage",
            detail: error.to_string(),
        })
    }

    fn advance(&self, layout: &Layout, journal: &mut RewindJournal, step: RewindStep) -> Result<(), PgError> {
        journal.step = step;
        journal.source_timeline = self.source_timeline;
        journal.boot = boot_id();
        layout.write(&journal_path(layout), &serde_json::to_vec(journal).unwrap_or_default())
    }

    /// Copies what will be dropped: links would not do, for `pg_rewind` writes into the files.
    fn quarantine(&self, layout: &Layout, salvage: &Path, data: &ControlData) -> Result<(), PgError> {
        let wal_dir = layout.wal_dir();
        let segment = data.wal_segment_bytes.max(1);
        // with what is renamed, so that it can be done again
        let left = self.left(layout)?.into_iter().find(|(left, _)| *left == data.timeline);
        let from = left.map_or(self.fork, |(_, left_at)| left_at.min(self.fork));
        let mut files = Vec::new();
        let mut bytes = 0;
        for entry in fs::read_dir(&wal_dir).map_err(file_error("list", &wal_dir))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let holds_tail = parse_segment(&name, segment)
                .is_some_and(|(_, number)| (number + 1) * segment > from.0 && number * segment < self.own.lsn.0);
            if holds_tail || name.ends_with(".history") {
                bytes += entry.metadata().map_or(0, |metadata| metadata.len());
                files.push(name);
            }
        }
        files.sort();
        layout.make_dir(salvage)?;
        let free = free_bytes(salvage)?;
        if free < bytes + (16 << 20) {
            return Err(PgError::NoSpace { path: salvage.to_owned(), free: free >> 20, needed: (bytes >> 20) + 16 });
        }
        for name in &files {
            copy(layout, &wal_dir.join(name), &salvage.join(name))?;
        }
        let own = salvage.join("own");
        layout.make_dir(&own)?;
        for name in OWN_FILES {
            let from = layout.pgdata.join(name);
            if from.is_file() {
                copy(layout, &from, &own.join(name))?;
            }
        }
        let listed = Salvage {
            from: self.fork,
            to: self.own.lsn,
            timeline: self.own.timeline,
            files,
            system_identifier: data.system_identifier,
        };
        layout.write(&salvage.join("salvage.json"), &serde_json::to_vec_pretty(&listed).unwrap_or_default())
    }

    /// The timelines that this node's log left, oldest first, and where.
    fn left(&self, layout: &Layout) -> Result<Vec<(Timeline, Lsn)>, PgError> {
        let history = history::read(&layout.wal_dir(), self.own.timeline)?;
        Ok(history.map(|history| history.ancestors).unwrap_or_default())
    }

    /// Gives the log since `timeline` was left the names that `pg_rewind` looks for, where it takes `timeline` for the last one.
    /// What is renamed has been put aside under its own names. Returns the names before and after.
    fn rename_log(&self, layout: &Layout, timeline: Timeline) -> Result<Vec<(PathBuf, PathBuf)>, PgError> {
        let wal_dir = layout.wal_dir();
        let left = self.left(layout)?;
        let Some(at) = left.iter().position(|(left, _)| *left == timeline) else { return Ok(Vec::new()) };
        let left_at = left[at].1;
        let later = segments(&wal_dir)?.into_iter().filter(|file| {
            let is_later =
                left[at + 1..].iter().any(|(left, _)| *left == file.timeline) || file.timeline == self.own.timeline;
            is_later && file.end() > left_at && file.begin() < self.own.lsn
        });
        // in the order of timelines: the last one's file holds what those before had in it
        let newest: BTreeMap<Lsn, _> = later.map(|file| (file.begin(), file)).collect();
        let mut renamed = Vec::new();
        for file in newest.values() {
            let (from, to) = (wal_dir.join(&file.name), wal_dir.join(format!("{:08X}{}", timeline.0, &file.name[8..])));
            fs::rename(&from, &to).map_err(file_error("rename", &from))?;
            renamed.push((from, to));
        }
        sync_dir(&wal_dir)?;
        Ok(renamed)
    }

    /// Brings the log into the form that `pg_rewind` reads and runs it; without its source, all is as it was before.
    async fn rewind(
        &self,
        programs: &Programs,
        layout: &Layout,
        lock: &Exclusive,
        journal: &mut RewindJournal,
        is_repeated: bool,
    ) -> Result<(), PgError> {
        if is_repeated {
            put_back(layout, &journal.salvage)?;
        }
        let mut renamed = Vec::new();
        if programs.major < READS_RECOVERY_END {
            let data = ControlData::read(programs, layout).await?;
            renamed = self.rename_log(layout, data.timeline)?;
        }
        let mut has_begun = is_repeated;
        let ended = self.run_tool(programs, layout, lock, &mut has_begun).await;
        if ended.as_ref().is_err_and(|error| !has_begun && is_of_connection(error)) {
            // another primary may follow: nothing was touched, so it may be rewound from that one
            for (from, to) in &renamed {
                fs::rename(to, from).map_err(file_error("rename", to))?;
            }
            put_back(layout, &journal.salvage)?;
            self.advance(layout, journal, RewindStep::Quarantine)?;
        }
        ended
    }

    /// Runs `pg_rewind`; `has_begun` tells whether it came so far that it may have changed the data directory.
    async fn run_tool(
        &self,
        programs: &Programs,
        layout: &Layout,
        lock: &Exclusive,
        has_begun: &mut bool,
    ) -> Result<(), PgError> {
        let conninfo = self.source.conninfo(REWIND_ROLE, Some("postgres"), "hasup_rewind", &self.ssl);
        let args: Vec<OsString> = vec![
            "-D".into(),
            layout.pgdata.clone().into_os_string(),
            format!("--source-server={conninfo}").into(),
            // The guard alone starts PostgreSQL.
            "--no-ensure-shutdown".into(),
        ];
        let mut tool = Tool::new(programs.path("pg_rewind"), args, self.limit);
        tool.run_as = layout.owner;
        let on_line = |line: &str| {
            *has_begun |= line.contains(LAST_WORD_BEFORE_CHANGES);
            tracing::info!(target: "hasup::pg_rewind", "{line}");
        };
        tool.run_with(Some(lock), on_line).await?;
        Ok(())
    }
}

/// Whether `pg_rewind` failed for want of its source.
fn is_of_connection(error: &PgError) -> bool {
    let PgError::Tool(ExecError::Failed { last_lines, .. }) = error else { return false };
    ["connection to server", "server closed the connection", "no connection to the server"]
        .iter()
        .any(|words| last_lines.contains(words))
}

/// Makes all of the data directory durable, on each file system that holds a part of it.
fn sync_all(layout: &Layout) -> Result<(), PgError> {
    let spaces = layout.pgdata.join("pg_tblspc");
    let mut folders = vec![layout.pgdata.clone(), layout.wal_dir()];
    for entry in fs::read_dir(&spaces).map_err(file_error("list", &spaces))? {
        folders.push(entry.map_err(file_error("list", &spaces))?.path());
    }
    for folder in folders {
        let opened = fs::File::open(&folder).map_err(file_error("make durable", &folder))?;
        rustix::fs::syncfs(&opened).map_err(|error| file_error("make durable", &folder)(error.into()))?;
    }
    Ok(())
}

/// Puts the log of `salvage` back, as `pg_rewind` found it at first: one that was killed may have written over it.
///
/// # Errors
/// What was put aside cannot be read: then nobody knows what the log was.
fn put_back(layout: &Layout, salvage: &Path) -> Result<(), PgError> {
    let list = salvage.join("salvage.json");
    let bytes = fs::read(&list).map_err(file_error("read", &list))?;
    let listed: Salvage = serde_json::from_slice(&bytes).map_err(|error| file_error("read", &list)(error.into()))?;
    for name in listed.files {
        copy(layout, &salvage.join(&name), &layout.wal_dir().join(&name))?;
    }
    Ok(())
}

fn copy(layout: &Layout, from: &Path, to: &Path) -> Result<(), PgError> {
    fs::copy(from, to).map_err(file_error("put aside", from))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(file_error("make durable", to))?;
    layout.give(to)
}

/// Puts the node's own files back, takes the source's marks away, and makes it start as a standby.
fn fix(layout: &Layout, salvage: &Path) -> Result<(), PgError> {
    for name in OWN_FILES {
        let from = salvage.join("own").join(name);
        if from.is_file() {
            let content = fs::read(&from).map_err(file_error("read", &from))?;
            layout.write(&layout.pgdata.join(name), &content)?;
        }
    }
    for name in ["recovery.signal", "promote", "postmaster.pid", "postmaster.opts"] {
        remove_file(&layout.pgdata.join(name))?;
    }
    strip_auto_conf(layout, &layout.pgdata)?;
    put_standby_signal(layout, &layout.pgdata)
}

/// Returns every tail put aside, by its label.
pub fn list_salvage(layout: &Layout) -> Result<BTreeMap<String, Salvage>, PgError> {
    let folder = layout.salvage_dir();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.map_err(file_error("list", &folder))?,
    };
    let read = |entry: fs::DirEntry| {
        let salvage = serde_json::from_slice(&fs::read(entry.path().join("salvage.json")).ok()?).ok()?;
        Some((entry.file_name().into_string().ok()?, salvage))
    };
    Ok(entries.flatten().filter_map(read).collect())
}

/// Drops one tail for good.
pub fn drop_salvage(layout: &Layout, label: &str) -> Result<(), PgError> {
    if label.is_empty() || label.contains(['/', '\0']) || label.starts_with('.') {
        return Err(PgError::Refused(format!("`{label}` names no salvage")));
    }
    remove_dir(&layout.salvage_dir().join(label))?;
    sync_dir(&layout.salvage_dir())
}
