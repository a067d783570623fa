//! systemd as the supervisor of this machine's node: hasup's two units, what became of them, and the distribution's own
//! units of PostgreSQL, which are masked while a node lives here.
//!
//! A server that the distribution's unit starts has no guard: it takes writes, or follows whom it likes, past hasup's fence.
//! So none may run when a node begins, and none can be started until the node is destroyed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};

use anyhow::Context;
use nix::unistd::{Gid, Group, Uid, geteuid};

use super::CliError;
use super::local::{NODE_FILE, data_dir_of, remove_if_there};
use crate::app::begin;
use crate::config::Config;

/// The daemon's unit.
const DAEMON: &str = "hasup.service";
/// The guard's unit.
const GUARD: &str = "hasup-guard.service";
/// Both, as a package would bring them.
const UNITS: [(&str, &str); 2] = [
    (GUARD, include_str!("../../examples/hasup-guard.service")),
    (DAEMON, include_str!("../../examples/hasup.service")),
];
/// Where an operator's units are.
const FOLDER: &str = "/etc/systemd/system";
/// How a unit begins that no package brought.
const MARK: &str = "# Written when this machine's node began; `hasup destroy` removes it.\n";
/// Which units were masked for the node's sake. Root's own file: it says what root is to unmask.
const MASKED: &str = "/etc/hasup/masked-units";
/// What the distributions call PostgreSQL's units.
const POSTGRES_UNITS: &str = "postgresql*.service";
/// A daemon that was started so often and never came to begin will not come to it by itself.
const RESTARTS_MAX: u32 = 3;

/// Returns whether systemd runs this machine.
pub(super) fn is_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Sees to it that a node can begin here, before anything is touched.
///
/// # Errors
/// The caller is not root, a server of the distribution's runs, or the units cannot run hasup as `config.user`.
pub(super) fn check(config: &Config, owner: Option<(Uid, Gid)>) -> Result<(), CliError> {
    let Some((user, group)) = owner.filter(|_| geteuid().is_root()) else {
        return Err(CliError::Refused(
            "only root may start units of systemd. Nothing was started. Say sudo, or --foreground to run as yourself"
                .to_owned(),
        ));
    };
    let running = names(&["list-units", "--type=service", "--state=running", "--plain", POSTGRES_UNITS])?;
    if let Some(unit) = running.first() {
        return Err(CliError::Refused(format!(
            "a PostgreSQL that hasup does not guard runs here ({unit}). Nothing was started. hasup runs PostgreSQL itself. Stop \
             that server first by `systemctl disable --now {unit}`; its data stay where they are"
        )));
    }
    for (unit, _) in UNITS {
        match property(unit, "User")? {
            Some(other) if property(unit, "FragmentPath")?.is_some() && other != config.user => {
                return Err(CliError::Refused(format!(
                    "the unit {unit} runs as user {other}, and this node's user is {}. Nothing was started. Make them agree by \
                     `systemctl edit {unit}` or the setting `user`",
                    config.user
                )));
            }
            _ => {}
        }
    }
    let program = program()?;
    let tried =
        Program::new(&program).arg("--version").uid(user.as_raw()).gid(group.as_raw()).stdout(Stdio::null()).status();
    match tried {
        Ok(ended) if ended.success() => Ok(()),
        Ok(ended) => Err(unusable(&program, &config.user, &ended.to_string())),
        Err(error) => Err(unusable(&program, &config.user, &error.to_string())),
    }
}

fn unusable(program: &Path, user: &str, because: &str) -> CliError {
    CliError::Refused(format!(
        "user {user} cannot run {} ({because}). Nothing was started. Install it where every user may, as /usr/bin/hasup",
        program.display()
    ))
}

fn program() -> Result<PathBuf, CliError> {
    let program = std::env::current_exe().context("find hasup's own program")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if program.to_str().is_none_or(|text| !text.chars().all(is_plain)) {
        return Err(CliError::Refused(format!(
            "a unit cannot name {}. Nothing was started. Install hasup as /usr/bin/hasup",
            program.display()
        )));
    }
    Ok(program)
}

/// Brings the units where no package has, masks the distribution's, and starts the node now and at each boot.
///
/// # Errors
/// A unit cannot be written, or systemd refuses.
pub(super) fn start(config: &Config, owner: Option<(Uid, Gid)>) -> Result<(), CliError> {
    let mut is_new = false;
    for (name, text) in UNITS {
        let path = Path::new(FOLDER).join(name);
        let is_ours = fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK));
        if is_ours || property(name, "FragmentPath")?.is_none() {
            let group = owner.and_then(|(_, group)| Group::from_gid(group).ok().flatten());
            let group = group.map_or_else(|| config.user.clone(), |group| group.name);
            let text = format!("{MARK}{}", with_names(text, &program()?, &config.user, &group));
            begin::keep(&path, text.as_bytes(), 0o644, None).context("write hasup's unit")?;
            is_new = true;
        }
    }
    if is_new {
        systemctl(&["daemon-reload"])?;
    }
    mask_postgres()?;
    // Left over from a try before, its count of restarts would be read as this one's.
    let _was_never_loaded = answer(&["reset-failed", DAEMON, GUARD]);
    systemctl(&["enable", "--quiet", GUARD, DAEMON])?;
    // Not waited for by systemctl: what the node is doing is asked of the node itself.
    systemctl(&["start", "--no-block", GUARD, DAEMON])
}

/// Returns a unit that runs `program` as `user`.
fn with_names(unit: &str, program: &Path, user: &str, group: &str) -> String {
    let line = |line: &str| match line.split_once('=') {
        Some(("User", _)) => format!("User={user}\n"),
        Some(("Group", _)) => format!("Group={group}\n"),
        Some(("ExecStart", command)) => {
            let words = command.split_once(' ').map_or("", |(_, words)| words);
            format!("ExecStart={} {words}\n", program.display())
        }
        _ => format!("{line}\n"),
    };
    unit.lines().map(line).collect()
}

/// Stops the node's units for good and gives the machine back as it was.
///
/// # Errors
/// systemd refuses, or a unit cannot be removed.
pub(super) fn retire() -> Result<(), CliError> {
    for name in [DAEMON, GUARD] {
        if property(name, "FragmentPath")?.is_some() {
            // One after the other: the daemon hands over and stops PostgreSQL while its guard is still there.
            systemctl(&["disable", "--now", "--quiet", name])?;
        }
    }
    unmask_postgres()?;
    let mut is_gone = false;
    for (name, _) in UNITS {
        let path = Path::new(FOLDER).join(name);
        if fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK)) {
            remove_if_there(&path)?;
            is_gone = true;
        }
    }
    if is_gone {
        systemctl(&["daemon-reload"])?;
    }
    let _was_fine = answer(&["reset-failed", DAEMON, GUARD]);
    Ok(())
}

/// Returns whether the units run the node of `data_dir`.
pub(super) fn runs(data_dir: &Path) -> bool {
    let text = fs::read_to_string(NODE_FILE).unwrap_or_default();
    is_here() && data_dir_of(&text) == data_dir
}

/// Returns whether the daemon ends again and again without coming to speak.
///
/// # Errors
/// systemd does not answer.
pub(super) fn keeps_failing() -> Result<bool, CliError> {
    let restarts = property(DAEMON, "NRestarts")?.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(restarts >= RESTARTS_MAX || property(DAEMON, "ActiveState")?.as_deref() == Some("failed"))
}

fn mask_postgres() -> Result<(), CliError> {
    let mut masked = masked_units();
    let known = names(&[
        "list-unit-files",
        "--type=service",
        "--state=enabled,disabled,static,indirect",
        "--plain",
        POSTGRES_UNITS,
    ])?;
    let instances = names(&["list-units", "--all", "--type=service", "--plain", POSTGRES_UNITS])?;
    for unit in known.into_iter().chain(instances) {
        if masked.contains(&unit) || property(&unit, "UnitFileState")?.as_deref() == Some("masked") {
            continue;
        }
        masked.push(unit.clone());
        let text: String = masked.iter().map(|unit| format!("{unit}\n")).collect();
        // Noted first: what is masked is never forgotten.
        fs::create_dir_all("/etc/hasup").context("make /etc/hasup")?;
        begin::keep(Path::new(MASKED), text.as_bytes(), 0o644, None).context("note the masked units")?;
        systemctl(&["mask", "--quiet", &unit])?;
    }
    Ok(())
}

fn unmask_postgres() -> Result<(), CliError> {
    for unit in masked_units() {
        systemctl(&["unmask", "--quiet", &unit])?;
    }
    remove_if_there(Path::new(MASKED))
}

fn masked_units() -> Vec<String> {
    let text = fs::read_to_string(MASKED).unwrap_or_default();
    text.lines().filter(|unit| unit.starts_with("postgresql")).map(str::to_owned).collect()
}

/// Returns the first word of each line that systemctl lists.
fn names(words: &[&str]) -> Result<Vec<String>, CliError> {
    let text = answer(words).context("ask systemd")?;
    let first = text.lines().filter_map(|line| line.split_whitespace().next());
    Ok(first.map(str::to_owned).collect())
}

/// Returns a property of a unit; nothing where it is not set or the unit does not exist.
fn property(unit: &str, name: &str) -> Result<Option<String>, CliError> {
    let text = answer(&["show", unit, "--property", name]).context("ask systemd")?;
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    Ok(values.get(name).filter(|value| !value.is_empty()).map(|value| (*value).to_owned()))
}

fn answer(words: &[&str]) -> io::Result<String> {
    let output =
        Program::new("systemctl").args(["--no-legend", "--no-pager"]).args(words).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs systemctl; its messages go where ours do.
fn systemctl(words: &[&str]) -> Result<(), CliError> {
    let ended = Program::new("systemctl").args(words).status().context("run systemctl")?;
    if ended.success() {
        return Ok(());
    }
    let text = format!("`systemctl {}` failed ({ended}). See `journalctl -u hasup -u hasup-guard`", words.join(" "));
    Err(CliError::Failed(anyhow::Error::msg(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_run_the_program_that_wrote_them_as_the_nodes_user() {
        for (name, text) in UNITS {
            let same = with_names(text, Path::new("/usr/bin/hasup"), "postgres", "postgres");
            assert_eq!(same, text, "{name} as packaged");
            let other = with_names(text, Path::new("/opt/hasup"), "pg", "dba");
            assert!(other.contains("\nUser=pg\nGroup=dba\n"), "{name}");
            assert!(other.contains("\nExecStart=/opt/hasup "), "{name}");
        }
    }

    #[test]
    fn nothing_that_the_guard_owns_ends_with_the_daemon() {
        let [(_, guard), (_, daemon)] = UNITS;
        assert!(daemon.contains("\nKillMode=process\n"));
        assert!(!daemon.contains("BindsTo=") && !daemon.contains("PartOf=") && !daemon.contains("Requires="));
        assert!(!guard.contains("BindsTo=") && !guard.contains("PartOf=") && !guard.contains("Requires="));
        for unit in [guard, daemon] {
            assert!(unit.contains("\nRestart=always\n") && unit.contains("\nOOMPolicy=continue\n"));
        }
    }
}
