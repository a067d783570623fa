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

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

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

/// Tells whether a server other than that of `pgdata`, which does not run, holds the socket of `port` in `folder`.
fn is_socket_taken(folder: &Path, port: u16, pgdata: &Path) -> bool {
    let socket = folder.join(format!(".s.PGSQL.{port}"));
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return true;
    }
    let text = match fs::read_to_string(folder.join(format!(".s.PGSQL.{port}.lock"))) {
        Ok(text) => text,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    let mut lines = text.lines();
    let holder = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
    let is_ours = lines.next().is_some_and(|owner| Path::new(owner) == pgdata);
    !is_ours && holder.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
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
        self.check_places();
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
            marker: marker(&kept),
            timeline: control.timeline,
            pgdata,
            major,
            postmaster,
            notes,
        })
    }

    /// Owner, mode, and whether a copy of the database could ever take its place.
    fn check_places(&mut self) {
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

/// Returns the first line of a `pg_hba.conf` or `pg_ident.conf` that takes words or lines from another file: `@file` in place of
/// names, or one of the directives that include.
fn names_other_file(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        let (mut is_quoted, mut begins_word, mut chars) = (false, true, line.chars().peekable());
        while let Some(c) = chars.next() {
            match c {
                '"' => is_quoted = !is_quoted,
                '#' if !is_quoted => break,
                '@' if begins_word && chars.peek().is_some_and(|next| !next.is_whitespace() && *next != ',') => {
                    return true;
                }
                _ => {}
            }
            begins_word = !is_quoted && (c == ',' || c.is_whitespace());
        }
        let first = line.split_whitespace().next();
        first.is_some_and(|word| ["include", "include_if_exists", "include_dir"].contains(&word))
    })
}

/// Returns the postmaster that works in `pgdata`.
fn postmaster_of(pgdata: &Path) -> Option<u32> {
    let working = processes_of(u32::MAX, Some(pgdata));
    let parents: BTreeMap<u32, u32> = processes().into_iter().map(|process| (process.pid, process.parent)).collect();
    // its children work there too
    working.iter().copied().find(|pid| parents.get(pid).is_none_or(|parent| !working.contains(parent)))
}

/// Returns the systemd service that a process belongs to.
fn unit_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').next().filter(|unit| unit.ends_with(".service")).map(str::to_owned)
}

/// Returns the file that tells Debian's scripts whether to start the cluster of a unit like `postgresql@15-main.service` at boot.
fn debian_start_conf(unit: &str) -> Option<PathBuf> {
    let (major, cluster) = unit.strip_prefix("postgresql@")?.strip_suffix(".service")?.split_once('-')?;
    // systemd's way to write a dash
    Some(Path::new(DEBIAN_CONF).join(major).join(cluster.replace("\\x2d", "-")).join("start.conf"))
}

/// Returns the settings of the command line that the server was started with last.
fn start_options(pgdata: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(pgdata.join("postmaster.opts")).unwrap_or_default();
    // program "word" "word" …
    let words: Vec<&str> = text.trim().split("\" \"").map(|word| word.trim_matches('"')).collect();
    let words: Vec<&str> = words.iter().flat_map(|word| word.split(" \"")).collect();
    let mut found = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        found.insert(name.replace('-', "_").to_ascii_lowercase(), value.to_owned());
    };
    let mut words = words.into_iter().skip(1);
    while let Some(word) = words.next() {
        if let Some(said) = word.strip_prefix("--") {
            if let Some((name, value)) = said.split_once('=') {
                set(name, value);
            }
            continue;
        }
        let Some(letters) = word.strip_prefix('-') else { continue };
        for (at, letter) in letters.char_indices() {
            match letter {
                'F' => set("fsync", "off"),
                'i' => set("listen_addresses", "*"),
                'l' => set("ssl", "on"),
                'e' => set("datestyle", "euro"),
                _ if VALUED_LETTERS.contains(letter) => {
                    // the rest of the word, or the next one
                    let rest = &letters[at + letter.len_utf8()..];
                    let value = if rest.is_empty() { words.next().unwrap_or_default() } else { rest };
                    let meant = SHORT_OPTIONS.iter().find(|(short, _)| *short == letter);
                    match (meant, value.split_once('=')) {
                        (Some((_, name)), _) => set(name, value),
                        (None, Some((name, value))) if letter == 'c' => set(name, value),
                        _ => {}
                    }
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

/// Options of one letter that take a value.
const VALUED_LETTERS: &str = "BcCdDfhkNprStvW";
/// Those of them that are a setting.
const SHORT_OPTIONS: [(char, &str); 6] = [
    ('B', "shared_buffers"),
    ('h', "listen_addresses"),
    ('k', "unix_socket_directories"),
    ('N', "max_connections"),
    ('p', "port"),
    ('S', "work_mem"),
];

/// Returns the settings below Debian's folder that name `pgdata` as their data directory.
fn debian_conf(root: &Path, major: u32, pgdata: &Path) -> Option<PathBuf> {
    let wanted = pgdata.canonicalize().ok()?;
    let clusters = fs::read_dir(root.join(major.to_string())).into_iter().flatten().flatten();
    let files = clusters.map(|cluster| cluster.path().join("postgresql.conf"));
    files.into_iter().find(|file| {
        let named = ConfFile::read(file).ok().and_then(|mut conf| conf.settings.remove("data_directory"));
        named.is_some_and(|folder| Path::new(&folder).canonicalize().is_ok_and(|folder| folder == wanted))
    })
}

/// What of the former settings must outlive hasup's own, or was given on the command line.
fn kept(
    theirs: &BTreeMap<String, String>,
    opts: &BTreeMap<String, String>,
    control: &ControlData,
) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> = opts
        .iter()
        .filter(|(name, _)| !settings::is_owned(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let get = |name: &str| theirs.get(name).filter(|value| !value.is_empty());
    if let Some(level) = get("wal_level").filter(|level| level.eq_ignore_ascii_case("logical")) {
        kept.insert("wal_level".to_owned(), level.clone());
    }
    // a standby does not start with fewer than its primary had
    for (name, had) in [("max_wal_senders", control.max_wal_senders), ("max_replication_slots", 0)] {
        let theirs = get(name).and_then(|value| value.parse().ok()).unwrap_or(0).max(had);
        if theirs > settings::REPLICATION_PLACES {
            kept.insert(name.to_owned(), theirs.to_string());
        }
    }
    // archiving goes on; what was configured but off stays off
    if get("archive_mode").is_some_and(|mode| ["on", "always", "true", "yes", "1"].contains(&mode.as_str())) {
        for name in ["archive_command", "archive_library"] {
            if let Some(value) = get(name) {
                kept.insert(name.to_owned(), value.clone());
            }
        }
        if get("archive_library").is_some() && get("archive_command").is_none() {
            kept.insert("archive_command".to_owned(), String::new());
        }
    } else if get("archive_library").is_some() {
        // archive_mode is on with hasup, and a library goes before any command
        kept.insert("archive_library".to_owned(), String::new());
    }
    let sockets = theirs.get("unix_socket_directories").map_or("/var/run/postgresql", String::as_str);
    if !sockets.is_empty() {
        kept.insert(SOCKETS.to_owned(), sockets.to_owned());
    }
    kept
}

/// Tells which settings hasup's own overrule.
fn overruled(
    layout: &Layout,
    settings: &StaticSettings,
    theirs: &BTreeMap<String, String>,
    kept: &BTreeMap<String, String>,
) -> Option<String> {
    let as_adopted = Adopted { socket_dirs: Vec::new() };
    let mut ours = conf_file::settings(&settings::render_config(layout, settings, Some(&as_adopted)));
    ours.extend(kept.clone());
    ours.insert("synchronous_standby_names".to_owned(), "as the cluster needs".to_owned());
    ours.insert("primary_conninfo".to_owned(), String::new());
    let is_told = |name: &str| !LOCAL_SETTINGS.contains(&name) && !UNTOLD_SETTINGS.contains(&name);
    let told: Vec<String> = theirs
        .iter()
        .filter(|(name, _)| is_told(name))
        .filter_map(|(name, value)| {
            let own = ours.get(name).filter(|own| !is_same(own, value))?;
            Some(format!("{name} = {own} (was {value})"))
        })
        .collect();
    (!told.is_empty()).then(|| format!("hasup overrules {}", told.join(", ")))
}

fn is_same(one: &str, other: &str) -> bool {
    let plain = |value: &str| match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => "on".to_owned(),
        "false" | "no" | "0" => "off".to_owned(),
        other => other.to_owned(),
    };
    plain(one) == plain(other)
}

/// Returns settings that hold on every node: lines about places of one machine are comments.
fn portable(origin: &Path, text: &str) -> String {
    let mut portable = format!(
        "# Copied from {} when hasup adopted this cluster, with all that it included. This file counts, on each node its own.\n",
        origin.display()
    );
    for line in text.lines() {
        let is_local = conf_file::settings(line).keys().any(|name| LOCAL_SETTINGS.contains(&name.as_str()));
        let _infallible = writeln!(portable, "{}{line}", if is_local { "#" } else { "" });
    }
    portable
}

fn marker(kept: &BTreeMap<String, String>) -> String {
    let mut text = String::from(
        "# hasup has adopted this cluster: who may connect is what pg_hba.conf says, and these settings outlive hasup's own.\n",
    );
    for (name, value) in kept {
        let _infallible = writeln!(text, "{name} = {}", settings::quoted(value));
    }
    text
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

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn control(max_wal_senders: u64) -> ControlData {
        let text = format!(
            "Database system identifier: 7\nDatabase cluster state: shut down\nLatest checkpoint location: 0/3000148\n\
             Latest checkpoint's TimeLineID: 1\nMinimum recovery ending location: 0/0\nBytes per WAL segment: 16777216\n\
             Data page checksum version: 0\nmax_wal_senders setting: {max_wal_senders}\n"
        );
        ControlData::parse(&text).unwrap()
    }

    #[test]
    fn the_command_line_of_the_last_start_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let line = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/d/main\" \"-c\" \"config_file=/etc/x/postgresql.conf\" \
                    \"--work-mem=9MB\"\n";
        fs::write(folder.path().join("postmaster.opts"), line).unwrap();
        let expected = map(&[("config_file", "/etc/x/postgresql.conf"), ("work_mem", "9MB")]);
        assert_eq!(start_options(folder.path()), expected);
        let line = "/usr/bin/postgres \"-D\" \"/d/main\" \"-Fp\" \"5433\" \"-k/run/a\" \"-N\" \"77\" \"-ck.v=1\"\n";
        fs::write(folder.path().join("postmaster.opts"), line).unwrap();
        let expected = map(&[
            ("fsync", "off"),
            ("k.v", "1"),
            ("max_connections", "77"),
            ("port", "5433"),
            ("unix_socket_directories", "/run/a"),
        ]);
        assert_eq!(start_options(folder.path()), expected);
        fs::write(folder.path().join("postmaster.opts"), "/usr/bin/postgres\n").unwrap();
        assert_eq!(start_options(folder.path()), BTreeMap::new());
    }

    #[test]
    fn lines_about_access_that_name_another_file_are_found() {
        for line in
            ["host @dbs all all md5", "local all a,@admins peer", "include more.conf", "host all \"x\",@y all trust"]
        {
            assert_eq!(names_other_file(&format!("# @x\nlocal all all peer\n{line}\n")), Some(line));
        }
        for line in ["host all \"@x\" all md5", "host all a@b all md5 # @c", "#include x", "host all all @ md5"] {
            assert_eq!(names_other_file(line), None, "{line}");
        }
    }

    #[test]
    fn a_socket_that_another_server_has_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join(".s.PGSQL.5432.lock");
        let is_taken = || is_socket_taken(folder.path(), 5432, Path::new("/d/pgdata"));
        assert!(!is_taken());
        for (owner, pid, expected) in [
            ("/other", std::process::id(), true),
            ("/other", u32::MAX, false),
            ("/d/pgdata", std::process::id(), false),
        ] {
            fs::write(&lock, format!("{pid}\n{owner}\n1\n")).unwrap();
            assert_eq!(is_taken(), expected, "{owner} {pid}");
        }
        fs::remove_file(&lock).unwrap();
        let _listens = std::os::unix::net::UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        assert!(is_taken());
    }

    #[test]
    fn debians_units_lead_to_what_starts_them() {
        let expected = Some(PathBuf::from("/etc/postgresql/15/my-shop/start.conf"));
        assert_eq!(debian_start_conf("postgresql@15-my\\x2dshop.service"), expected);
        assert_eq!(debian_start_conf("postgresql.service"), None);
    }

    #[test]
    fn debians_settings_are_found_by_the_data_directory_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, data) = (folder.path().join("etc"), folder.path().join("data"));
        fs::create_dir_all(&data).unwrap();
        for (cluster, names) in [("other", "/elsewhere".to_owned()), ("main", data.display().to_string())] {
            fs::create_dir_all(etc.join("15").join(cluster)).unwrap();
            let text = format!("data_directory = '{names}'\t\t# use data in another directory\n");
            fs::write(etc.join("15").join(cluster).join("postgresql.conf"), text).unwrap();
        }
        assert_eq!(debian_conf(&etc, 15, &data), Some(etc.join("15/main/postgresql.conf")));
        assert_eq!(debian_conf(&etc, 16, &data), None);
    }

    #[test]
    fn archiving_logical_decoding_and_more_senders_outlive_hasups_settings() {
        let theirs = map(&[
            ("wal_level", "logical"),
            ("archive_mode", "on"),
            ("archive_command", "cp %p /a"),
            ("max_replication_slots", "20"),
            ("fsync", "off"),
        ]);
        let found = kept(&theirs, &map(&[("work_mem", "9MB"), ("port", "1"), ("config_file", "/x")]), &control(30));
        let expected = map(&[
            ("archive_command", "cp %p /a"),
            (SOCKETS, "/var/run/postgresql"),
            ("max_replication_slots", "20"),
            ("max_wal_senders", "30"),
            ("wal_level", "logical"),
            ("work_mem", "9MB"),
        ]);
        assert_eq!(found, expected);
        let off = map(&[("archive_mode", "off"), ("archive_command", "cp %p /a"), ("unix_socket_directories", "")]);
        assert_eq!(kept(&off, &BTreeMap::new(), &control(10)), BTreeMap::new(), "what was off stays off");
        let library = map(&[("archive_mode", "off"), ("archive_library", "x"), ("unix_socket_directories", "")]);
        assert_eq!(kept(&library, &BTreeMap::new(), &control(10)), map(&[("archive_library", "")]));
        assert_eq!(conf_file::settings(&marker(&expected)), expected);
    }

    #[test]
    fn settings_of_one_machine_do_not_travel() {
        let text = portable(Path::new("/etc/x"), "port = 1\ndata_directory = '/d'\n  hba_file '/h'\n");
        assert_eq!(conf_file::settings(&text), map(&[("port", "1")]));
    }
}
