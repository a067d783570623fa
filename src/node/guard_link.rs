//! The daemon's lasting tie to its guard: connects, starts one where none answers, and says what it last told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::guard::{GuardClient, GuardError, GuardStatus, spawn_detached};
use crate::ha::view::GuardView;
use crate::types::{BootTime, Generation};

/// Between two tries to connect. A guard needs a few milliseconds to be there.
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// A guard that was started and does not answer by then is started again: the one before may have lost a race for its lock.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Where the guard is, and who starts it.
#[derive(Debug, Clone)]
pub(super) struct GuardPlace {
    /// The node's data directory.
    pub(super) data_dir: PathBuf,
    /// PostgreSQL's data directory.
    pub(super) pgdata: PathBuf,
    /// The binary to start one with; none where a supervisor does that.
    pub(super) program: Option<PathBuf>,
}

/// The tie to the guard. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct GuardLink {
    status: watch::Receiver<Option<GuardStatus>>,
    client: Arc<Mutex<Option<GuardClient>>>,
    extended: Arc<Mutex<BTreeMap<Generation, BootTime>>>,
    /// No other guard is wanted after the present one.
    is_dismissed: Arc<AtomicBool>,
}

impl GuardLink {
    /// Returns the tie and the work that keeps it, to be run as a task.
    pub(super) fn new(place: GuardPlace) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, status) = watch::channel(None);
        let link = Self { status, client: Arc::default(), extended: Arc::default(), is_dismissed: Arc::default() };
        let client = Arc::clone(&link.client);
        let is_dismissed = Arc::clone(&link.is_dismissed);
        (link, keep(place, sender, client, is_dismissed))
    }

    /// Returns a watch that changes with all that the guard says; none while it does not answer.
    pub(super) fn watch(&self) -> watch::Receiver<Option<GuardStatus>> {
        self.status.clone()
    }

    /// Returns the client of the present guard.
    pub(super) fn client(&self) -> Result<GuardClient, GuardError> {
        self.client.lock().clone().ok_or(GuardError::Gone)
    }

    /// Notes that the pulses have extended the deadline: the guard's own word about it comes later.
    pub(super) fn note_extension(&self, generation: Generation, deadline: BootTime) {
        let mut extended = self.extended.lock();
        let known = extended.entry(generation).or_default();
        *known = deadline.max(*known);
        // around a renewal two generations are extended, never more
        while extended.len() > 2 {
            extended.pop_first();
        }
    }

    /// Ends the guard if nothing is left that it would have to stop; no other is started after it.
    pub(super) fn dismiss(&self) {
        self.is_dismissed.store(true, Ordering::Release);
        let idle = self.status().filter(|status| !status.processes_left && status.lease.is_none());
        let pid = idle.and_then(|status| i32::try_from(status.guard_pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // one that is gone already is what was wanted
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Returns what the guard last said: its answer to a call is never newer than this.
    pub(super) fn status(&self) -> Option<GuardStatus> {
        self.client.lock().as_ref().map(GuardClient::last_status)
    }

    /// Returns what the guard last said, in the words of the brain.
    pub(super) fn view(&self) -> GuardView {
        let Some(status) = self.status() else { return GuardView::default() };
        let armed = status.lease.map(|lease| lease.generation);
        let extended = armed.and_then(|armed| self.extended.lock().get(&armed).copied());
        let told = status.lease.map_or(BootTime(0), |lease| lease.deadline);
        GuardView {
            is_present: true,
            armed,
            deadline: told.max(extended.unwrap_or_default()),
            has_fence_begun: status.is_fencing() || (armed.is_some() && status.fenced >= armed),
            has_processes: status.processes_left,
            has_postmaster_died: armed.is_some() && status.postgres.is_none(),
        }
    }
}

async fn keep(
    place: GuardPlace,
    status: watch::Sender<Option<GuardStatus>>,
    client: Arc<Mutex<Option<GuardClient>>>,
    is_dismissed: Arc<AtomicBool>,
) {
    let mut started_at: Option<Instant> = None;
    loop {
        match GuardClient::connect(&place.data_dir).await {
            Ok((connected, connection)) => {
                started_at = None;
                let mut said = connected.watch();
                status.send_replace(Some(said.borrow_and_update().clone()));
                *client.lock() = Some(connected);
                let relay = async {
                    while said.changed().await.is_ok() {
                        status.send_replace(Some(said.borrow_and_update().clone()));
                    }
                };
                tokio::select! {
                    () = connection.run() => {}
                    () = relay => {}
                }
                *client.lock() = None;
                status.send_replace(None);
                if is_dismissed.load(Ordering::Acquire) {
                    return;
                }
                tracing::warn!(
                    "the guard is gone; PostgreSQL, if it ran, is being stopped by the kernel. A new guard is looked for"
                );
            }
            Err(_) if is_dismissed.load(Ordering::Acquire) => return,
            Err(error) => {
                let is_due = started_at.is_none_or(|at| at.elapsed() > ANSWER_LIMIT);
                if let (Some(program), true) = (&place.program, is_due) {
                    tracing::info!(because = %error, "starting a guard");
                    started_at = Some(Instant::now());
                    if let Err(error) = spawn_detached(program, &place.data_dir, &place.pgdata) {
                        tracing::error!(%error, "no guard could be started; PostgreSQL stays stopped until one is");
                    }
                }
                sleep(TRY_AGAIN).await;
            }
        }
    }
}
