//! The only place that spawns tasks: each has a name, ends on cancellation, and takes the node down when it panics.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Spawns and drains the node's tasks. Cheap to clone; all clones share one set of tasks.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl Tasks {
    /// Returns an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` as a task named `name` until it ends or [`stop`](Self::stop) is called, which drops it at its next await.
    ///
    /// A panic in it is logged and makes [`failed`](Self::failed) resolve: the node then goes to its safe state.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let failed = self.failed.clone();
        let guarded = async move {
            let alarm = failed.drop_guard();
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
            alarm.disarm();
        };
        #[allow(clippy::disallowed_methods, reason = "the one place that the rule leads to")]
        self.tracker.spawn(guarded.instrument(tracing::info_span!("task", name)));
    }

    /// Returns the token that ends every task.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Resolves when a task has panicked.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Cancels every task and waits until all are gone.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
