//! Raft that has stopped on this node, of a full disk for one: nothing but a new start of the daemon mends it.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::raft::Leadership;
use crate::sys::fs::write_durably;

/// Between the failure, or a try that found the disk still bad, and the next try: at first, and at the most.
const TRY_FIRST: Duration = Duration::from_secs(2);
const TRY_MOST: Duration = Duration::from_secs(60);
/// With room for so much the log can be opened and written again.
const PROBE_BYTES: usize = 4 << 20;

/// Resolves when Raft has stopped on this node and a new start of the daemon may mend it, as the disk takes writes again.
///
/// The active node is no exception: guard and PostgreSQL go on without the daemon, and a new one is there well within the lease.
pub(super) async fn until_a_start_mends_raft(leadership: watch::Receiver<Leadership>, folder: &Path) {
    until_failed_disk_takes_writes(leadership, folder).await;
    tracing::error!("Raft has stopped on this node and its disk takes writes again: the daemon ends to start anew");
}

/// Resolves when Raft has failed and `folder`, where its log is, takes writes again.
pub async fn until_failed_disk_takes_writes(mut leadership: watch::Receiver<Leadership>, folder: &Path) {
    if leadership.wait_for(|known| known.failed.is_some()).await.is_err() {
        // Raft is being shut down in order.
        return std::future::pending().await;
    }
    let failed = leadership.borrow().failed.clone().unwrap_or_default();
    tracing::error!(
        "Raft has stopped on this node: {failed}. It votes for nothing and learns of no change until its disk takes writes \
         again; look for a full disk or disk errors"
    );
    let mut wait = TRY_FIRST;
    loop {
        tokio::time::sleep(wait).await;
        let probe = folder.join("probe");
        let tried = tokio::task::spawn_blocking(move || {
            let written = write_durably(&probe, &vec![0xA5; PROBE_BYTES], 0o600);
            // A probe that failed may have left nothing to remove.
            let _ = std::fs::remove_file(&probe);
            written
        });
        match tried.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!("{} takes no writes yet: {error}", folder.display()),
            Err(error) => tracing::warn!("the disk cannot be tried: {error}"),
        }
        wait = (wait * 2).min(TRY_MOST);
    }
}
