//! What a person watches: the nodes as they change, and the commands to try.

use std::io::{IsTerminal, Write};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::sleep;

use super::Progress;
use super::scene::{Scene, Tail};
use crate::chaos::journal::Gap;
use crate::chaos::millis;
use crate::chaos::view::View;
use crate::sys::clock::boot_now;
use crate::types::BootTime;

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(250);
/// A stretch without an acknowledgement is told as a write gap from here on; below, it is the disk's or the scheduler's.
const GAP_MIN: Duration = Duration::from_millis(100);

/// Servers are looked up among all processes once in so many looks.
const MEMORY_LOOKS: u32 = 20;

/// Loads data, starts the writer and shows the cluster until told to stop. Never ends by itself.
pub(super) async fn show(scene: &mut Scene, progress: Progress) -> anyhow::Result<u8> {
    load(scene, progress).await;
    scene.start_writer()?;
    let mut tail = Tail::new(scene.journal_path());
    let is_terminal = std::io::stdout().is_terminal();
    let mut shown = String::new();
    let mut looks = 0_u32;
    let mut seen_until = BootTime(0);
    let mut last_gap: Option<Gap> = None;
    if !is_terminal {
        progress.line(&commands(scene)?);
    }
    loop {
        scene.check_writer()?;
        let view = scene.any_view().await;
        if looks.is_multiple_of(MEMORY_LOOKS) {
            // A person may kill a server at any time.
            scene.note_memory();
        }
        looks = looks.wrapping_add(1);
        let newest = tail.read()?.longest_gap(seen_until, BootTime(u64::MAX));
        if let Some(gap) = newest.filter(|gap| gap.length() >= GAP_MIN && last_gap.is_none_or(|last| gap.to > last.to))
        {
            last_gap = Some(gap);
            seen_until = gap.to + Duration::from_nanos(1);
        }
        let rows = tail.journal.acknowledged().count();
        let stalled = tail.journal.acknowledged().last().map(|row| boot_now().since(row.span.answered));
        let text = render(view.as_ref(), scene, last_gap, stalled.filter(|span| *span > GAP_MIN * 3));
        if is_terminal {
            // Home, text, clear what is left below: no flicker.
            let page = format!(
                "{text}\n{rows} rows acknowledged\n\n{}\n\nCtrl-C stops all and leaves nothing behind\n",
                commands(scene)?
            );
            let page = page.replace('\n', "\x1b[K\n");
            write!(std::io::stdout(), "\x1b[H{page}\x1b[J")
                .and_then(|()| std::io::stdout().flush())
                .context("show the table")?;
        } else if text != shown {
            progress.line(&text);
            shown = text;
        }
        sleep(LOOK).await;
    }
}

fn render(view: Option<&View>, scene: &Scene, gap: Option<Gap>, stalled: Option<Duration>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["NAME", "STATE", "RAFT", "LSN", "LAG", "DAEMON"]);
    for supervisor in &scene.nodes {
        let node = view.and_then(|view| view.nodes.iter().find(|node| node.name == supervisor.node.name));
        let seen = supervisor.seen();
        let heard = node.filter(|node| node.is_reachable != Some(false));
        let daemon = match (seen.pid, &seen.last_end) {
            (Some(pid), None) => format!("{pid}"),
            (Some(pid), Some(end)) => format!("{pid} (restarts: {}, last ended by {end})", seen.deaths),
            (None, _) => "not running".to_owned(),
        };
        table.add_row([
            supervisor.node.name.clone(),
            heard.map_or("not heard".to_owned(), |node| node.state.clone()),
            heard.map_or(String::new(), |node| node.raft.clone()),
            heard.and_then(|node| node.lsn.clone()).unwrap_or_default(),
            heard.and_then(|node| node.lag_bytes).map(|lag| lag.to_string()).unwrap_or_default(),
            daemon,
        ]);
    }
    let majority = if view.is_some_and(|view| view.cluster.majority) { "" } else { "\nno majority answers" };
    let gap = match (stalled, gap) {
        (Some(_), _) => "write gap: writes wait now".to_owned(),
        (None, Some(gap)) => {
            format!("last write gap: {} ms (the client's own share {} ms)", millis(gap.length()), millis(gap.client))
        }
        (None, None) => "last write gap: none so far".to_owned(),
    };
    format!("{table}{majority}\n{gap}")
}

fn commands(scene: &Scene) -> anyhow::Result<String> {
    let way_in = scene.way_in.as_ref().context("the cluster has not formed")?;
    let first = scene.nodes.first().context("there are no nodes")?;
    let program = first.node.program.display();
    let place = first.node.place().join(" ");
    let kill = first.node.data_dir.join("pgdata/postmaster.pid");
    let daemon = first.seen().pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    Ok(format!(
        "Try, in another terminal:\n  {program} status {place}\n  {program} switchover {place}\n  \
         {program} history {place}\n  kill -9 $(head -1 {})   # PostgreSQL of n1\n  kill -9 {daemon}   # the daemon of n1\n  \
         PGPASSFILE={} psql '{}'",
        kill.display(),
        way_in.passfile.display(),
        way_in.uri
    ))
}

/// Loads pgbench's tables, so that there is something to look at. Without pgbench it says so and goes on.
async fn load(scene: &Scene, progress: Progress) {
    let Some(way_in) = &scene.way_in else { return };
    let active = scene.any_view().await.and_then(|view| view.active);
    let Some(target) = way_in.targets.iter().find(|target| Some(&target.name) == active.as_ref()) else { return };
    let Some(pgbench) = find_pgbench() else {
        progress.line("pgbench is not installed, so its tables are not loaded");
        return;
    };
    progress.line("loading pgbench's tables");
    let mut command = Command::new(pgbench);
    command.args(["-i", "-q", "-s", "2", "-h", &target.host, "-p", &target.port.to_string(), "-U", &way_in.user]);
    command.arg(&way_in.database).env("PGPASSFILE", &way_in.passfile).env("PGSSLMODE", "prefer");
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    match command.output().await {
        Ok(output) if output.status.success() => {}
        Ok(output) => progress.line(&format!("pgbench: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => progress.line(&format!("pgbench could not be run: {error}")),
    }
}

fn find_pgbench() -> Option<std::path::PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let packaged = versions.map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(packaged).map(|folder| folder.join("pgbench")).find(|file| file.is_file())
}
