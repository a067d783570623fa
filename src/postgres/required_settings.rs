//! Settings of which a server in recovery must have at least as much as the primary had whose log it replays.
//!
//! PostgreSQL refuses to start in recovery with fewer, and pauses a running standby whose primary comes to have more. Every start of
//! ours is one in recovery, so a lower setting would keep a node down for ever. Hence each start takes the greater of what is set and what
//! the control file demands. The price: a number that any primary has had never becomes less while the database lives. It could only by
//! a start out of recovery, which writes log that the other nodes do not have; before there are others, [`initdb`](super::initdb) does
//! just that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::timeout;

use super::controldata::ControlData;
use super::settings::Follow;
use super::{PgError, Postgres};
use crate::guard::StartSpec;
use crate::sys::exec::Tool;
use crate::types::NodeName;

/// The settings, each with what the control file calls it.
pub(super) const REQUIRED: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_worker_processes", "max_worker_processes setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
];
/// Settings that PostgreSQL checks against one of these.
const RESERVED: [&str; 2] = ["superuser_reserved_connections", "reserved_connections"];
/// How long PostgreSQL may take to read its own settings.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long a start may be held up by all that is asked before it: the node decides nothing meanwhile.
const LOOK_LIMIT: Duration = Duration::from_millis(500);

/// What the newest start was given. To look for that costs as much processor as a switchover has to spare.
#[derive(Debug)]
pub(super) struct Provided {
    /// A hash of the settings files.
    files: [u8; 32],
    lacking: Vec<Lacking>,
    /// Whether PostgreSQL answered after it: else something has changed that the files do not show.
    has_served: bool,
}

/// A setting, what it is set to, and what the data demand.
type Lacking = (&'static str, u64, u64);

/// How much of each there is, by the setting's name.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// Returns where more is demanded than is set.
fn lacking(set: &Counts, demanded: &Counts) -> Vec<Lacking> {
    let more = |(name, demanded): (&&'static str, &u64)| {
        let set = *set.get(name)?;
        (set < *demanded).then_some((*name, set, *demanded))
    };
    demanded.iter().filter_map(more).collect()
}

/// Returns the arguments of a server that has what `settings` say of those that are required; none where they say nothing.
pub(super) fn wished_args(settings: &BTreeMap<String, String>) -> Vec<OsString> {
    let is_one = |name: &str| REQUIRED.iter().any(|(required, _)| name.eq_ignore_ascii_case(required));
    if !settings.keys().any(|name| is_one(name)) {
        return Vec::new();
    }
    let counts = |name: &str| is_one(name) || RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
    let said = settings.iter().filter(|(name, _)| counts(name));
    said.flat_map(|(name, value)| ["-c".into(), format!("{name}={value}").into()]).collect()
}

impl Postgres {
    /// Prepares all files for a start as a standby that follows `follow` or nobody, and returns what the guard is to start.
    ///
    /// PostgreSQL must not run. The standbys' names are kept as they were, for a start never releases a commit. Where the settings
    /// provide for less than the data demand, the command line provides for that.
    pub async fn prepare_start(
        self: &Arc<Self>,
        follow: Option<&Follow>,
        members: &BTreeSet<NodeName>,
    ) -> Result<StartSpec, PgError> {
        let (postgres, follow, members) = (Arc::clone(self), follow.cloned(), members.clone());
        // it waits for the disk
        let written = tokio::task::spawn_blocking(move || postgres.write_start(follow.as_ref(), &members)).await;
        let mut spec = written
            .map_err(|error| PgError::Refused(format!("what PostgreSQL starts with was not written: {error}")))??;
        let looked = timeout(LOOK_LIMIT, self.lacking_at_start(&spec)).await;
        match looked.unwrap_or_else(|_| Err(PgError::Refused("PostgreSQL was slow to tell".to_owned()))) {
            Ok(lacking) => {
                for (name, set, demanded) in lacking {
                    tracing::warn!(
                        "{name} is set to {set}, but a primary of this database has had {demanded}: PostgreSQL starts with no less, so \
                         that counts. Set it so on every node; it can be raised, but not lowered"
                    );
                    spec.args.extend(["-c".to_owned(), format!("{name}={demanded}")]);
                }
            }
            // the start itself tells better what is wrong
            Err(error) => tracing::info!(%error, "whether the settings provide for what the data demand is not known"),
        }
        Ok(spec)
    }

    async fn lacking_at_start(&self, spec: &StartSpec) -> Result<Vec<Lacking>, PgError> {
        let files = self.settings_files();
        let before = self.provided.lock().take().filter(|before| before.has_served && before.files == files);
        let lacking = match before {
            Some(before) => before.lacking,
            None => {
                let (data, set) = tokio::try_join!(self.control_data(), self.ask_settings(spec))?;
                lacking(&set, &data.required)
            }
        };
        *self.provided.lock() = Some(Provided { files, lacking: lacking.clone(), has_served: false });
        Ok(lacking)
    }

    /// Notes that the newest start came to its end: one like it needs no look before it.
    pub(super) fn note_serves(&self) {
        if let Some(provided) = self.provided.lock().as_mut() {
            provided.has_served = true;
        }
    }

    /// Settings may come from any of several files, so PostgreSQL itself is asked: for all of them at once, in some 0.1 s.
    async fn ask_settings(&self, spec: &StartSpec) -> Result<Counts, PgError> {
        let asked = REQUIRED.map(async |(name, _)| {
            let args = ["-C".to_owned(), name.to_owned()].into_iter().chain(spec.args.iter().cloned());
            let mut tool = Tool::new(&spec.program, args, READ_LIMIT);
            tool.run_as = spec.run_as;
            Ok::<_, PgError>(tool.run().await?.trim().parse().ok().map(|count: u64| (name, count)))
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    /// Returns a hash of the files that a start reads, but for what an operator's own may include.
    fn settings_files(&self) -> [u8; 32] {
        let layout = self.layout();
        let own = [layout.config_file(), layout.adopted_file()];
        let theirs = ["postgresql.conf", "postgresql.auto.conf"].map(|name| layout.pgdata.join(name));
        let mut hasher = blake3::Hasher::new();
        for path in own.iter().chain(&theirs) {
            let content = fs::read(path).unwrap_or_default();
            hasher.update(&content.len().to_le_bytes()).update(&content);
        }
        hasher.finalize().into()
    }

    /// Returns for want of what this standby has paused its replay: names of settings of which its primary has come to have more. It
    /// goes on, and can be promoted, only after another start.
    pub async fn paused_for_want_of(&self, limit: Duration) -> Result<Vec<&'static str>, PgError> {
        let what = "tell whether its replay is paused";
        let names = REQUIRED.map(|(name, _)| format!("'{name}'")).join(", ");
        let sql = format!(
            "select case when not pg_is_in_recovery() or pg_get_wal_replay_pause_state() <> 'paused' then '{{}}'
               else (select json_object_agg(name, setting::bigint)::text from pg_settings where name in ({names})) end"
        );
        let answer = self.ask(limit, async |session, limit| session.value(what, &sql, limit).await).await?;
        let counts: BTreeMap<String, u64> =
            serde_json::from_str(&answer).map_err(|error| PgError::Answer { what, detail: error.to_string() })?;
        if counts.is_empty() {
            return Ok(Vec::new());
        }
        let set = REQUIRED.iter().filter_map(|(name, _)| Some((*name, *counts.get(*name)?))).collect();
        let demanded = ControlData::read(self.programs(), self.layout()).await?.required;
        let lacking = lacking(&set, &demanded);
        if !lacking.is_empty() {
            // the next start is to look
            *self.provided.lock() = None;
        }
        Ok(lacking.into_iter().map(|(name, ..)| name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_less_than_demanded_is_lacking() {
        let set = Counts::from([("max_connections", 50), ("max_worker_processes", 8), ("max_wal_senders", 16)]);
        let demanded =
            Counts::from([("max_connections", 100), ("max_worker_processes", 8), ("max_locks_per_transaction", 64)]);
        assert_eq!(lacking(&set, &demanded), [("max_connections", 50, 100)]);
    }

    #[test]
    fn a_fresh_database_is_told_of_required_settings_alone() {
        let settings = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert!(
            wished_args(&settings(&[("work_mem", "8MB"), ("superuser_reserved_connections", "1")])).is_empty(),
            "nothing that a start in recovery refuses"
        );
        let said = settings(&[("Max_Connections", "9"), ("superuser_reserved_connections", "1"), ("work_mem", "8MB")]);
        assert_eq!(wished_args(&said), ["-c", "Max_Connections=9", "-c", "superuser_reserved_connections=1"]);
    }
}
