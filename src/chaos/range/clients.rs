//! The clients of a run: a writer and a poller outside, a writer beside each host.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::Range;
use crate::chaos::forming::WayIn;
use crate::chaos::hosts::Host;
use crate::chaos::journal::{Journal, Outcome};
use crate::sys::clock::boot_now;

/// Acknowledged rows before the first fault, and again after the last.
const ROWS: usize = 200;
/// How long those may take.
const ROWS_LIMIT: Duration = Duration::from_secs(60);
/// Rows of one statement of those that a step inserts: ten thousand take far less than a lease.
const BATCH: &str = "500";

impl Range {
    /// Starts the writer and the poller outside, and a writer beside each host.
    pub(super) fn start_clients(&mut self, way_in: &WayIn) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let plain = || Command::new(&program);
        let outside = self.spawn(plain(), way_in.writer("w0", &self.dir.join("w0.journal"), |_| true))?;
        self.clients.push(outside);
        let apis: Vec<String> =
            self.nodes.iter().map(|node| format!("{}={}:{}", node.name, node.host, node.api_port)).collect();
        let mut poller: Vec<std::ffi::OsString> =
            ["chaos", "poller", "--with-parent", "--tls", "--targets", &apis.join(",")].map(Into::into).into();
        poller.extend(["--journal".into(), self.dir.join("poller.journal").into()]);
        let poller = self.spawn(plain(), poller)?;
        self.clients.push(poller);
        let mut beside = Vec::new();
        for host in &self.lab.hosts {
            beside.push(self.spawn_beside(host, way_in, &format!("w-{}", host.name), &[])?);
        }
        self.clients.extend(beside);
        Ok(())
    }

    /// Starts a writer on the machine of `host`, which writes there alone.
    fn spawn_beside(&self, host: &Host, way_in: &WayIn, id: &str, more: &[&str]) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("find this program")?;
        let prefix = host.client_prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(&program);
        let mut words = way_in.writer(id, &self.dir.join(format!("{id}.journal")), |name| name == host.name);
        words.extend(more.iter().map(Into::into));
        self.spawn(command, words)
    }

    /// Starts a client that inserts so many rows beside a host, and returns its name.
    pub(super) fn insert(&mut self, rows: u64, name: &str) -> anyhow::Result<String> {
        let host = self.lab.host(name).with_context(|| format!("no host {name}"))?;
        let way_in = self.way_in.as_ref().context("the cluster has not formed")?;
        let id = format!("i{}-{name}", self.inserters.len() + 1);
        let rows = rows.to_string();
        let inserter =
            self.spawn_beside(host, way_in, &id, &["--interval-ms", "1", "--batch", BATCH, "--rows", &rows])?;
        self.inserters.push(inserter);
        Ok(id)
    }

    fn spawn(&self, mut command: Command, words: Vec<std::ffi::OsString>) -> anyhow::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("clients.log"))?;
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        command.kill_on_drop(true).spawn().context("start a client")
    }

    /// Checks that every client still runs: what one that has ended did not see proves nothing.
    pub(super) fn check_clients(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            if let Some(status) = client.try_wait().context("look after a client")? {
                let said = fs::read_to_string(self.dir.join("clients.log")).unwrap_or_default();
                bail!("a client ended ({status}), so nothing can be judged: {}", said.trim());
            }
        }
        Ok(())
    }

    /// Returns the numbers of the clients that run, which are no part of the hosts that they are beside.
    pub(super) fn client_pids(&self) -> BTreeSet<i32> {
        self.clients.iter().chain(&self.inserters).filter_map(|client| i32::try_from(client.id()?).ok()).collect()
    }

    /// Reads what all clients have written down so far.
    pub(super) fn journals(&self) -> anyhow::Result<Journal> {
        let mut journal = Journal::default();
        for entry in fs::read_dir(&self.dir).context("look for journals")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "journal") {
                let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                journal.append(&text).with_context(|| path.display().to_string())?;
            }
        }
        Ok(journal)
    }

    /// Waits until 200 more rows were acknowledged and `at_least` has passed; returns what is missing after a minute.
    pub(super) async fn wait_rows(&mut self, at_least: Duration) -> anyhow::Result<Option<String>> {
        let since = boot_now();
        let deadline = Instant::now() + ROWS_LIMIT;
        loop {
            let acknowledged = self.journals()?.count(Outcome::Ok, since);
            if acknowledged >= ROWS && boot_now().since(since) >= at_least {
                return Ok(None);
            }
            self.check_clients()?;
            if Instant::now() > deadline {
                let limit = ROWS_LIMIT.as_secs();
                return Ok(Some(format!("{acknowledged} of {ROWS} rows were acknowledged within {limit} s")));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}
