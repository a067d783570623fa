//! Makes a fresh PostgreSQL cluster: checksums, UTF-8, `C.UTF-8`, ready to start as a standby.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use super::layout::{Layout, put_standby_signal, sync_dir};
use super::required_settings::wished_args;
use super::settings::SUPERUSER;
use super::{PgError, Programs, file_error};
use crate::sys::exec::{Exclusive, Tool};

/// Runs `initdb` beside and puts the result in place, so that a kill in between leaves nothing half-made. Refuses where
/// `pgdata` holds anything. Of `settings`, what the data themselves record counts from the first start on.
pub async fn initdb(
    programs: &Programs,
    layout: &Layout,
    settings: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<(), PgError> {
    layout.prepare()?;
    if fs::read_dir(&layout.pgdata).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(PgError::Refused(format!(
            "{} is not empty: nothing was touched; empty it, or adopt what is in it",
            layout.pgdata.display()
        )));
    }
    let lock = Exclusive::acquire(&layout.config_dir().join("copy.lock"), "initdb", limit).await?;
    let holder = layout.new_holder();
    holder.remove()?;
    holder.make(layout)?;
    let beside = holder.data();
    layout.make_dir(&beside)?;
    let mut args: Vec<OsString> = vec!["-D".into(), beside.clone().into_os_string()];
    let fixed = [
        "-U",
        SUPERUSER,
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "-k",
        "--auth-local=peer",
        "--auth-host=reject",
        "--no-instructions",
    ];
    args.extend(fixed.map(OsString::from));
    let mut tool = Tool::new(programs.path("initdb"), args, limit);
    tool.run_as = layout.owner;
    tool.run_with(Some(&lock), |_| {}).await?;
    let wished = wished_args(settings);
    if !wished.is_empty() {
        // The one start out of recovery that the data ever see: lower settings than initdb's would be refused later.
        let args = ["--single".into(), "-D".into(), beside.clone().into_os_string()].into_iter();
        let mut tool = Tool::new(programs.path("postgres"), args.chain(wished).chain(["postgres".into()]), limit);
        tool.run_as = layout.owner;
        tool.run().await?;
    }
    put_standby_signal(layout, &beside)?;
    // An empty folder in the way is what rename replaces.
    fs::rename(&beside, &layout.pgdata).map_err(file_error("put in place", &layout.pgdata))?;
    layout.pgdata.parent().map_or(Ok(()), sync_dir)?;
    holder.remove()
}
