//! Reads `pg_controldata`: what PostgreSQL knows while it does not run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::layout::Layout;
use super::required_settings::{Counts, REQUIRED};
use super::{PgError, Programs};
use crate::sys::exec::Tool;
use crate::types::{Lsn, Timeline};

/// The state in which PostgreSQL last was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    /// Stopped in order as a primary: the checkpoint is the end of its log.
    ShutDown,
    /// Stopped in order as a standby.
    ShutDownInRecovery,
    /// Running, or it crashed.
    Other,
}

/// The control file's contents as far as hasup needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// Which PostgreSQL cluster this is.
    pub system_identifier: u64,
    /// In which state it is.
    pub state: ControlState,
    /// Where the last checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where a recovery from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: Timeline,
    /// How far recovery must come before the data are consistent; 0 on a primary.
    pub min_recovery_end: Lsn,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Size of a file of the log, in bytes.
    pub wal_segment_bytes: u64,
    /// Whether it is a standby, running or stopped, or restores an archive.
    pub is_standby: bool,
    /// Whether its log holds too little for standbys.
    pub is_minimal: bool,
    /// What a server in recovery must have at least, by the names of settings; what is not told is absent.
    pub(super) required: Counts,
}

impl ControlData {
    /// Runs `pg_controldata` on a data directory. Fails where it is none or damaged.
    pub async fn read(programs: &Programs, layout: &Layout) -> Result<Self, PgError> {
        let program = programs.path("pg_controldata");
        let mut tool =
            Tool::new(&program, ["-D".into(), layout.pgdata.clone().into_os_string()], Duration::from_secs(10));
        tool.run_as = layout.owner;
        let output = tool.run().await?;
        Self::parse(&output).map_err(|detail| PgError::Malformed { path: program, what: "control data", detail })
    }

    /// Parses what `pg_controldata` prints in the C locale.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let get = |name: &str| fields.get(name).copied().ok_or_else(|| format!("`{name}` is missing"));
        let number = |name: &str| get(name)?.parse::<u64>().map_err(|_| format!("`{name}` is no number"));
        let lsn = |name: &str| get(name)?.parse::<Lsn>().map_err(|error| format!("`{name}`: {error}"));
        Ok(Self {
            system_identifier: number("Database system identifier")?,
            state: match get("Database cluster state")? {
                "shut down" => ControlState::ShutDown,
                "shut down in recovery" => ControlState::ShutDownInRecovery,
                _ => ControlState::Other,
            },
            checkpoint: lsn("Latest checkpoint location")?,
            redo: lsn("Latest checkpoint's REDO location")?,
            timeline: Timeline(
                u32::try_from(number("Latest checkpoint's TimeLineID")?)
                    .map_err(|_| "timeline too large".to_owned())?,
            ),
            min_recovery_end: lsn("Minimum recovery ending location")?,
            checksums: number("Data page checksum version")? > 0,
            wal_segment_bytes: number("Bytes per WAL segment")?,
            is_standby: matches!(get("Database cluster state")?, "shut down in recovery" | "in archive recovery"),
            is_minimal: fields.get("wal_level setting") == Some(&"minimal"),
            required: REQUIRED
                .iter()
                .filter_map(|(name, field)| Some((*name, fields.get(field)?.parse().ok()?)))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_data_are_read_and_damage_is_named() {
        let text = "pg_control version number:            1300\n\
                    Database system identifier:           7301234567890123456\n\
                    Database cluster state:               shut down in recovery\n\
                    Latest checkpoint location:           0/3000148\n\
                    Latest checkpoint's REDO location:    0/3000110\n\
                    Latest checkpoint's TimeLineID:       5\n\
                    Minimum recovery ending location:     0/30001F8\n\
                    Bytes per WAL segment:                16777216\n\
                    max_connections setting:              100\n\
                    max_prepared_xacts setting:           0\n\
                    Data page checksum version:           1\n";
        let data = ControlData::parse(text).unwrap();
        assert_eq!((data.state, data.timeline), (ControlState::ShutDownInRecovery, Timeline(5)));
        assert_eq!((data.redo, data.min_recovery_end), (Lsn(0x300_0110), Lsn(0x300_01F8)));
        assert_eq!(data.required, Counts::from([("max_connections", 100), ("max_prepared_transactions", 0)]));
        assert!(data.checksums);
        assert_eq!(ControlData::parse(""), Err("`Database system identifier` is missing".to_owned()));
    }
}
