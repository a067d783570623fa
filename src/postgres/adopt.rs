//! Takes over a data directory that somebody else made: looked at from outside first, then marked as this cluster's.
//!
//! Nothing of it is touched before every check has passed, and a server that runs in it is stopped in order, never killed.
//! What is written then is repeatable, and the last of it is `standby.signal`: a crash in between leaves a directory that can
//! be adopted again, or started by its owner as before.
//!
//! Decisions and their price:
//! - Settings, `pg_hba.conf` and `pg_ident.conf` that lie outside of the data directory (Debian's layout) are copied into it, for
//!   copies of the database take along only what is there, and a standby with a lower `max_connections` than its primary does
//!   not start. Price: the originals are not read any more.
//! - The rows of its `pg_hba.conf` stay in force behind hasup's own, which are about the local superuser in the database
//!   `postgres` and about hasup's two roles. Nothing else of who may connect is changed.
//! - `hasup-adopted.conf` in the data directory marks an adopted cluster on every node, and holds what of the former settings
//!   must outlive hasup's own, like its archiving.
//! - No role and database `app` are made: a role of that name may be somebody's.

mod outliving;
mod traces;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use outliving::{is_archiving, kept, marker, overruled, portable};
use traces::{debian_conf, debian_start_conf, is_masked, is_socket_taken, names_other_file, start_options, unit_of};

use super::conf_file::{self, ConfFile};
use super::controldata::ControlData;
use super::layout::Layout;
use super::programs::data_major;
use super::settings::{self, Adopted, StaticSettings};
use super::{PgError, Programs, file_error, history};
use crate::guard::procs::{children_of, processes, processes_of, send};
use crate::sys::clock::boot_now;
use crate::types::Timeline;

/// Debian's folder of settings, by version and name of the cluster.
const DEBIAN_CONF: &str = "/etc/postgresql";
/// Root's own units of systemd, and the one that starts all of Debian's clusters at boot.
const SYSTEMD_UNITS: &str = "/etc/systemd/system";
const DEBIAN_UNIT: &str = "postgresql.service";
/// Where Debian's layout has one, so that no setting of it names a folder of one machine alone.
const LOCAL_SETTINGS: [&str; 5] =
    ["data_directory", "hba_file", "ident_file", "external_pid_file", "stats_temp_directory"];
/// What is told apart, or has no meaning for clients.
const UNTOLD_SETTINGS: [&str; 4] =
    ["unix_socket_directories", "unix_socket_permissions", "config_file", "cluster_name"];
/// Programs that start a server again, or decide about its role themselves.
const SUPERVISORS: [&str; 9] =
    ["hasup", "monit", "patroni", "pg_autoctl", "repmgrd", "runsv", "s6-supervise", "stolon-keeper", "supervisord"];
/// The setting in the marker that names folders of sockets where local clients look.
pub(super) const SOCKETS: &str = "hasup.socket_directories";
/// The setting in the marker that names the timeline it was adopted on.
const TIMELINE: &str = "hasup.adopted_timeline";
/// How often a server that stops is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A data directory is not adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct AdoptRefused {
    /// The directory.
    pub pgdata: PathBuf,
    /// All that stands against it, each with its cure.
    pub problems: Vec<String>,
}

impl fmt::Display for AdoptRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not adopted, and nothing in it was touched", self.pgdata.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

/// What was found in a data directory that can be adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The directory.
    pub pgdata: PathBuf,
    /// The server's major version.
    pub major: u32,
    /// The timeline that it is on.
    pub timeline: Timeline,
    /// The server that runs in it.
    pub postmaster: Option<u32>,
    /// What the operator should know, one sentence each.
    pub notes: Vec<String>,
    /// `postgresql.conf` as it is to be; none where it stays as it is.
    conf: Option<String>,
    /// Other files to copy, by their name in the data directory.
    copies: BTreeMap<&'static str, PathBuf>,
    /// Whether what it has of archiving must stay off.
    archives_nothing: bool,
    /// What the marker is to hold.
    marker: String,
}

/// Returns what a marker in `layout`'s data directory says for a server that is about to start on `port`; none where hasup made
/// the cluster.
pub fn adopted(layout: &Layout, port: u16) -> Option<Adopted> {
    let text = fs::read_to_string(layout.adopted_file()).ok()?;
    let folders = conf_file::settings(&text).remove(SOCKETS).unwrap_or_default();
    let folders = folders.split(',').map(|folder| PathBuf::from(folder.trim().trim_matches('"')));
    // a folder that this machine does not have, or where another server has the socket, would keep this one from starting
    let usable = |folder: &PathBuf| {
        let is_there =
            folder.is_absolute() && folder.is_dir() && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
        let is_taken = is_there && is_socket_taken(folder, port, &layout.pgdata);
        if is_taken {
            tracing::warn!(
                "another server has the socket of port {port} in {}: this one has none there, so local clients find it in {} alone; \
                 stop the other server, or give this node another port, then restart it",
                folder.display(),
                layout.socket_dir().display()
            );
        }
        is_there && !is_taken
    };
    Some(Adopted { socket_dirs: folders.filter(usable).collect() })
}

/// Looks at the data directory of `layout` without touching it, for a server that is to run as user `owner`.
///
/// # Errors
/// All that stands against its adoption. That a server runs in it is none of it.
pub fn inspect(
    layout: &Layout,
    bin_dir: Option<&Path>,
    settings: &StaticSettings,
    owner: u32,
) -> Result<Adoption, AdoptRefused> {
    let mut problems = Vec::new();
    let found = Inspection { layout, bin_dir, settings, owner, problems: &mut problems }.run();
    match found {
        Some(adoption) if problems.is_empty() => Ok(adoption),
        _ => Err(AdoptRefused { pgdata: layout.pgdata.clone(), problems }),
    }
}

struct Inspection<'a> {
    layout: &'a Layout,
    bin_dir: Option<&'a Path>,
    settings: &'a StaticSettings,
    owner: u32,
    problems: &'a mut Vec<String>,
}

impl Inspection<'_> {
    fn blame(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn run(&mut self) -> Option<Adoption> {
        let pgdata = self.layout.pgdata.clone();
        let Some(major) = data_major(&pgdata) else {
            let meant = conf_file::settings(&fs::read_to_string(pgdata.join("postgresql.conf")).unwrap_or_default());
            self.blame(match meant.get("data_directory") {
                Some(other) => format!("it holds settings alone; the data directory is {other}: adopt that"),
                None => {
                    "it is no data directory of PostgreSQL, which has a file PG_VERSION: `pg_lsclusters`, or `show \
                         data_directory` in the server, tells where that is"
                        .to_owned()
                }
            });
            return None;
        };
        self.check_folder();
        let programs = Programs::find(self.bin_dir, Some(major)).map_err(|error| self.blame(error.to_string())).ok();
        let programs = programs?;
        let control = self.control(&programs)?;
        self.check_data(&control);
        let postmaster = self.check_running();
        if postmaster.is_some() {
            self.check_superuser(&programs);
        }
        let opts = start_options(&pgdata);
        let conf_path = self.find_conf(major, opts.get("config_file"))?;
        let mut conf = match ConfFile::read(&conf_path) {
            Ok(conf) => conf,
            Err(error) => {
                self.blame(format!("its settings cannot be read ({error}): give hasup's user the right to"));
                return None;
            }
        };
        conf.settings.extend(ConfFile::read(&pgdata.join("postgresql.auto.conf")).unwrap_or_default().settings);
        conf.settings.extend(opts.clone());
        let mut notes = Vec::new();
        let is_inside = conf_path.parent() == Some(pgdata.as_path());
        let outside: Vec<_> = conf.files.iter().filter(|file| is_inside && !file.starts_with(&pgdata)).collect();
        for file in outside {
            notes.push(format!(
                "it includes {}, which copies of the database do not take along: put that file on every node",
                file.display()
            ));
        }
        notes.push(if is_inside {
            format!("its settings stay in {}", conf_path.display())
        } else {
            format!(
                "its settings are copied from {} to {}, which counts from now on; the original stays as it is and is not read",
                conf_path.display(),
                pgdata.join("postgresql.conf").display()
            )
        });
        let copies = self.access_files(&conf)?;
        notes.push(format!(
            "who may connect stays as {} says, behind hasup's rows for the local superuser, replication and rewinding",
            copies.get("pg_hba.conf").unwrap_or(&pgdata.join("pg_hba.conf")).display()
        ));
        let mut kept = kept(&conf.settings, &opts, &control);
        // an adoption before this one has replaced what some of it came from
        for (name, value) in self.marked() {
            kept.entry(name).or_insert(value);
        }
        kept.insert(TIMELINE.to_owned(), control.timeline.to_string());
        notes.extend(overruled(self.layout, self.settings, &conf.settings, &kept));
        if !control.checksums {
            notes.push(
                "its pages have no checksums, so decay of a disk goes unnoticed: `pg_checksums --enable`, while it is stopped, adds \
                 them"
                .to_owned(),
            );
        }
        let start_conf = conf_path.with_file_name("start.conf");
        if !is_inside
            && !is_masked(Path::new(SYSTEMD_UNITS), DEBIAN_UNIT)
            && fs::read_to_string(&start_conf).is_ok_and(|text| text.lines().any(|line| line.trim() == "auto"))
        {
            notes.push(format!(
                "Debian's scripts would start it past hasup at boot: write `manual` in {}",
                start_conf.display()
            ));
        }
        Some(Adoption {
            conf: (!is_inside).then(|| portable(&conf_path, &conf.text)),
            copies,
            archives_nothing: !is_archiving(&conf.settings),
            marker: marker(&kept),
            timeline: control.timeline,
            pgdata,
            major,
            postmaster,
            notes,
        })
    }

    /// Owner, mode, and whether a copy of the database could ever take its place.
    fn check_folder(&mut self) {
        let pgdata = self.layout.pgdata.clone();
        let parent = pgdata.parent().unwrap_or(Path::new("/")).to_owned();
        let (Ok(own), Ok(around)) = (fs::metadata(&pgdata), fs::metadata(&parent)) else {
            return self.blame("it cannot be looked at: run this as root, or as its owner");
        };
        if own.uid() != self.owner {
            self.blame(format!(
                "it belongs to user {}, and hasup is to run as user {}: name its owner by --user",
                own.uid(),
                self.owner
            ));
        }
        let group = nix::unistd::User::from_uid(self.owner.into()).ok().flatten().map(|user| user.gid.as_raw());
        let may_write = (around.uid() == self.owner && around.mode() & 0o200 != 0)
            || (Some(around.gid()) == group && around.mode() & 0o020 != 0)
            || around.mode() & 0o002 != 0
            || self.owner == 0;
        if !may_write {
            self.blame(format!(
                "hasup could not put a copy of the database in its place, as user {} may not write to {}: `chown` or `chmod` that \
                 folder",
                self.owner,
                parent.display()
            ));
        }
        if own.dev() != around.dev() {
            self.blame(
                "it is a mount point, so a copy of the database could never take its place by a rename: move the data to a folder \
                 in it",
            );
        }
        let spaces = fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten();
        let spaces: Vec<String> = spaces
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|path| path.display().to_string())
            .collect();
        if !spaces.is_empty() {
            self.blame(format!(
                "it has tablespaces ({}), which hasup cannot copy: move what is in them by `alter … set tablespace pg_default`, then \
                 drop them",
                spaces.join(", ")
            ));
        }
        if let Err(error) = self.layout.refuse_foreign_holders() {
            self.blame(error.to_string());
        }
        if pgdata.starts_with(&self.layout.data_dir) || self.layout.data_dir.starts_with(&pgdata) {
            self.blame("it lies in hasup's own data directory, or that in it: name another by --data-dir");
        }
    }

    fn control(&mut self, programs: &Programs) -> Option<ControlData> {
        let output = Command::new(programs.path("pg_controldata"))
            .arg("-D")
            .arg(&self.layout.pgdata)
            .env("LC_ALL", "C")
            .output();
        let read = match output {
            Ok(output) if output.status.success() => ControlData::parse(&String::from_utf8_lossy(&output.stdout)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        read.map_err(|error| self.blame(format!("its control file cannot be read ({error}): restore it from a backup")))
            .ok()
    }

    /// A primary that has all its log.
    fn check_data(&mut self, control: &ControlData) {
        let pgdata = self.layout.pgdata.clone();
        // hasup's own signal, in a database that it has adopted and never come to promote: so it is nobody's copy
        let is_own = self.marked().get(TIMELINE).is_some_and(|timeline| *timeline == control.timeline.to_string());
        if !is_own && (control.is_standby || pgdata.join("standby.signal").exists()) {
            self.blame("it is a standby: adopt its primary, or promote it first");
        }
        if pgdata.join("recovery.signal").exists() || pgdata.join("backup_label").exists() {
            self.blame(
                "a backup is being restored in it: start it by its own means until it takes writes, then stop it",
            );
        }
        if control.is_minimal {
            self.blame("its log was written with wal_level = minimal: set `replica`, restart it once, then repeat");
        }
        let has_history = |timeline| history::read(&self.layout.wal_dir(), timeline).is_ok_and(|found| found.is_some());
        if !has_history(control.timeline) {
            self.blame(format!(
                "the history file of its timeline {} is missing in pg_wal: put it back from the archive",
                control.timeline
            ));
        }
        if pgdata.join("patroni.dynamic.json").exists() {
            self.blame("Patroni manages it: disable Patroni on all its nodes, then remove patroni.dynamic.json");
        }
    }

    /// What an earlier adoption has noted in it.
    fn marked(&self) -> BTreeMap<String, String> {
        conf_file::settings(&fs::read_to_string(self.layout.adopted_file()).unwrap_or_default())
    }

    /// Asks the server that runs whether it knows hasup's superuser. Where that cannot be told, for want of `psql` or of the
    /// right to ask, it shows after the start.
    fn check_superuser(&mut self, programs: &Programs) {
        let text = fs::read_to_string(self.layout.pgdata.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let (Some(port), Some(folder)) = (lines.get(3), lines.get(4).filter(|folder| !folder.is_empty())) else {
            return;
        };
        let mut psql = Command::new(programs.path("psql"));
        psql.args(["-X", "-A", "-t", "-w", "-h", folder, "-p", port, "-U", settings::SUPERUSER, "-d", "postgres"])
            .args(["-c", "select rolsuper from pg_roles where rolname = current_user"])
            .env("LC_ALL", "C")
            .env("PGCONNECT_TIMEOUT", "5")
            .env("PGOPTIONS", "-c statement_timeout=5s")
            .current_dir("/");
        if rustix::process::geteuid().is_root()
            && let Ok(Some(user)) = nix::unistd::User::from_uid(self.owner.into())
        {
            psql.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let Ok(output) = psql.output() else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lacks = |what: &str| said.contains(&format!("{what} does not exist"));
        if lacks(&format!("role \"{}\"", settings::SUPERUSER)) || output.stdout.starts_with(b"f") {
            self.blame(format!(
                "it has no superuser `{0}`, as which hasup works in it: `create role {0} superuser login`, or `alter role {0} superuser \
                 login`",
                settings::SUPERUSER
            ));
        } else if lacks("database \"postgres\"") {
            self.blame("it has no database `postgres`, in which hasup works: `create database postgres`");
        }
    }

    /// Who runs a server in it, where that is somebody who would start it again.
    fn check_running(&mut self) -> Option<u32> {
        let Some(postmaster) = postmaster_of(&self.layout.pgdata) else {
            let file = self.layout.pgdata.join("postmaster.pid");
            if file.exists() {
                self.blame(format!(
                    "{} says that a server runs in it, and none is seen on this machine. It may run in a container or on another host, \
                     and two servers in one data directory destroy it: stop it there. If surely none runs, remove that file",
                    file.display()
                ));
            }
            return None;
        };
        if let Some(unit) = unit_of(postmaster).filter(|unit| Some(unit) != unit_of(std::process::id()).as_ref()) {
            self.blame(match debian_start_conf(&unit) {
                Some(start_conf) => format!(
                    "systemd runs the server in it: write `manual` in {}, which else has it started at each boot, and `systemctl \
                     disable --now {unit}`, then repeat",
                    start_conf.display()
                ),
                None => format!("systemd runs the server in it: `systemctl disable --now {unit}`, then repeat"),
            });
        }
        let parent = processes().into_iter().find(|process| process.pid == postmaster).map(|process| process.parent);
        let name =
            parent.and_then(|parent| fs::read_to_string(format!("/proc/{parent}/comm")).ok()).unwrap_or_default();
        if SUPERVISORS.contains(&name.trim_end()) {
            self.blame(format!(
                "{} supervises the server in it and would start it again: stop and disable that first",
                name.trim_end()
            ));
        }
        Some(postmaster)
    }

    /// Where its settings are: as it was started last, else beside the data, else where Debian has them.
    fn find_conf(&mut self, major: u32, started_with: Option<&String>) -> Option<PathBuf> {
        let pgdata = self.layout.pgdata.clone();
        let started_with = started_with.map(PathBuf::from);
        let own =
            started_with.filter(|path| path.is_file() && path.file_name() != self.layout.config_file().file_name());
        let beside = || Some(pgdata.join("postgresql.conf")).filter(|path| path.is_file());
        let found = own.or_else(beside).or_else(|| debian_conf(Path::new(DEBIAN_CONF), major, &pgdata));
        if found.is_none() {
            self.blame(format!(
                "its settings were not found, neither in it nor below {DEBIAN_CONF}/{major}: put its postgresql.conf into it"
            ));
        }
        found
    }

    /// The files that say who may connect, where they are not in the data directory.
    fn access_files(&mut self, conf: &ConfFile) -> Option<BTreeMap<&'static str, PathBuf>> {
        let pgdata = &self.layout.pgdata;
        let mut copies = BTreeMap::new();
        let (mut unreadable, mut others) = (Vec::new(), Vec::new());
        for (setting, name) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
            let inside = pgdata.join(name);
            let path = conf.settings.get(setting).map_or_else(|| inside.clone(), |path| pgdata.join(path));
            match fs::read_to_string(&path) {
                Ok(text) => {
                    if let Some(line) = names_other_file(&text) {
                        others.push(format!(
                            "{} reads another file (`{line}`), which other nodes do not have: write what is in that file in place of the \
                             line",
                            path.display()
                        ));
                    }
                    if path != inside {
                        copies.insert(name, path);
                    }
                }
                // a map of users may be absent
                Err(error) if setting == "ident_file" && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push(format!("{} cannot be read ({error})", path.display())),
            }
        }
        let is_complete = unreadable.is_empty();
        self.problems.extend(others);
        self.problems.extend(unreadable.into_iter().map(|what| format!("{what}: who may connect would be lost")));
        is_complete.then_some(copies)
    }
}

/// Returns the postmaster that works in `pgdata`.
fn postmaster_of(pgdata: &Path) -> Option<u32> {
    let working = processes_of(u32::MAX, Some(pgdata));
    let parents: BTreeMap<u32, u32> = processes().into_iter().map(|process| (process.pid, process.parent)).collect();
    // its children work there too
    working.iter().copied().find(|pid| parents.get(pid).is_none_or(|parent| !working.contains(parent)))
}

impl Adoption {
    /// Stops the server that runs in the directory, in order, and waits until none of its processes is left. Nothing else is
    /// touched.
    ///
    /// # Errors
    /// It did not end within `limit`; it may still do so. Or it did not end in order.
    pub fn stop_server(&self, limit: Duration) -> Result<(), AdoptRefused> {
        let Some(postmaster) = self.postmaster else { return Ok(()) };
        let refused = |problem: String| AdoptRefused { pgdata: self.pgdata.clone(), problems: vec![problem] };
        let began = boot_now();
        send(postmaster, Signal::INT);
        while !processes_of(u32::MAX, Some(&self.pgdata)).is_empty() {
            if boot_now().since(began) > limit {
                let children: Vec<String> = children_of(postmaster).into_iter().map(|(_, line)| line).collect();
                return Err(refused(format!(
                    "the server in it was told to stop and has not ended within {limit:?} (left: {}): wait for it, or end what holds \
                     it up, then repeat",
                    children.join(", ")
                )));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Marks the directory as this cluster's and brings into it what lay outside. No server may run in it. Repeatable.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn take_over(&self, layout: &Layout) -> Result<(), PgError> {
        let aside = layout.originals_dir();
        layout.make_dir(&aside)?;
        let keep_aside = |name: &str| -> Result<(), PgError> {
            let (from, to) = (layout.pgdata.join(name), aside.join(name));
            if from.exists() && !to.exists() {
                layout.write(&to, &fs::read(&from).map_err(file_error("read", &from))?)?;
            }
            Ok(())
        };
        // hasup takes lines out of this one, at each start
        keep_aside("postgresql.auto.conf")?;
        if self.archives_nothing {
            // that file is read last, and with hasup archive_mode is on
            let path = layout.pgdata.join("postgresql.auto.conf");
            let text = fs::read_to_string(&path).unwrap_or_default();
            let (found, rest) = settings::without(&text, |name| ["archive_command", "archive_library"].contains(&name));
            if !found.is_empty() {
                layout.write(&path, rest.as_bytes())?;
            }
        }
        if let Some(text) = &self.conf {
            keep_aside("postgresql.conf")?;
            layout.write(&layout.pgdata.join("postgresql.conf"), text.as_bytes())?;
        }
        for (name, from) in &self.copies {
            keep_aside(name)?;
            layout.write(&layout.pgdata.join(name), &fs::read(from).map_err(file_error("read", from))?)?;
        }
        layout.write(&layout.adopted_file(), self.marker.as_bytes())?;
        // last: with it, nobody starts this server writable any more
        layout.put_standby_signal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archiving_that_was_off_is_not_turned_on_by_what_alter_system_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(folder.path().join("hasup"));
        layout.pgdata = folder.path().join("main");
        fs::create_dir(&layout.pgdata).unwrap();
        let path = layout.pgdata.join("postgresql.auto.conf");
        for (archives_nothing, expected) in
            [(false, "archive_command = 'x'\nwork_mem = '1MB'\n"), (true, "work_mem = '1MB'\n")]
        {
            fs::write(&path, "archive_command = 'x'\nwork_mem = '1MB'\n").unwrap();
            let adoption = Adoption {
                pgdata: layout.pgdata.clone(),
                major: 15,
                timeline: Timeline(1),
                postmaster: None,
                notes: Vec::new(),
                conf: None,
                copies: BTreeMap::new(),
                archives_nothing,
                marker: String::new(),
            };
            adoption.take_over(&layout).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            let original = fs::read_to_string(layout.originals_dir().join("postgresql.auto.conf")).unwrap();
            assert!(original.contains("archive_command"), "{original}");
        }
    }
}
