//! What of the former settings outlives hasup's own, what hasup overrules, and what must not travel to other nodes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::{LOCAL_SETTINGS, SOCKETS, UNTOLD_SETTINGS};
use crate::config::is_owned;
use crate::postgres::conf_file;
use crate::postgres::controldata::ControlData;
use crate::postgres::layout::Layout;
use crate::postgres::settings::{self, Adopted, StaticSettings};

/// What of the former settings must outlive hasup's own, or was given on the command line.
pub(super) fn kept(
    theirs: &BTreeMap<String, String>,
    opts: &BTreeMap<String, String>,
    control: &ControlData,
) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> =
        opts.iter().filter(|(name, _)| !is_owned(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    let get = |name: &str| theirs.get(name).filter(|value| !value.is_empty());
    if let Some(level) = get("wal_level").filter(|level| level.eq_ignore_ascii_case("logical")) {
        kept.insert("wal_level".to_owned(), level.clone());
    }
    // a standby does not start with fewer than its primary had
    for name in ["max_wal_senders", "max_replication_slots"] {
        let had = control.required.get(name).copied().unwrap_or(0);
        let theirs = get(name).and_then(|value| value.parse().ok()).unwrap_or(0).max(had);
        if theirs > settings::SENDERS_AND_SLOTS_MIN {
            kept.insert(name.to_owned(), theirs.to_string());
        }
    }
    // archiving goes on; what was configured but off stays off
    if is_archiving(theirs) {
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

pub(super) fn is_archiving(theirs: &BTreeMap<String, String>) -> bool {
    let is_on = |mode: &String| ["on", "always", "true", "yes", "1"].contains(&mode.to_ascii_lowercase().as_str());
    theirs.get("archive_mode").is_some_and(is_on)
}

/// Tells which settings hasup's own overrule.
pub(super) fn overruled(
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

pub(super) fn is_same(one: &str, other: &str) -> bool {
    let plain = |value: &str| match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => "on".to_owned(),
        "false" | "no" | "0" => "off".to_owned(),
        other => other.to_owned(),
    };
    plain(one) == plain(other)
}

/// Returns settings that hold on every node: lines about places of one machine are comments.
pub(super) fn portable(origin: &Path, text: &str) -> String {
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

pub(super) fn marker(kept: &BTreeMap<String, String>) -> String {
    let mut text = String::from(
        "# hasup has adopted this cluster: who may connect is what pg_hba.conf says, and these settings outlive hasup's own.\n",
    );
    for (name, value) in kept {
        let _infallible = writeln!(text, "{name} = {}", settings::quoted(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
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

    fn control(max_wal_senders: u64) -> ControlData {
        let text = format!(
            "Database system identifier: 7\nDatabase cluster state: shut down\nLatest checkpoint location: 0/3000148\n\
             Latest checkpoint's REDO location: 0/3000110\nLatest checkpoint's TimeLineID: 1\n\
             Minimum recovery ending location: 0/0\nBytes per WAL segment: 16777216\n\
             Data page checksum version: 0\nmax_wal_senders setting: {max_wal_senders}\n"
        );
        ControlData::parse(&text).unwrap()
    }
}
