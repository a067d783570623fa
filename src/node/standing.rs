//! Whether this node still belongs to the cluster: one that was removed hears nobody, and would take the others for dead.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::Shared;
use crate::peer::{PeerError, PeerRequest};
use crate::sys::clock::boot_now;
use crate::tls::config::MemberProtocol;

/// How often a node that hears nobody asks, and for how long nobody was heard then.
const EVERY: Duration = Duration::from_secs(3);
/// The same for one that the cluster is known to be removing: three pulses.
const SOON: Duration = Duration::from_millis(300);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks the other members while none of them is heard: who is none of them any more is told, which the peer client remembers. Ends
/// with the node.
pub(super) async fn ask(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    loop {
        let until = Instant::now() + EVERY;
        if !is_leaving(&shared) {
            let ordered = states.wait_for(|applied| applied.state.goals.removing.contains(&shared.me));
            if let Ok(Err(_)) = timeout_at(until, ordered).await {
                return;
            }
        }
        let silence = if is_leaving(&shared) { SOON } else { EVERY };
        sleep_until(until.min(Instant::now() + silence)).await;
        let now = boot_now();
        if shared.pulses.view().peers.values().any(|peer| now.since(peer.proved_at) < silence) {
            continue;
        }
        for node in shared.state().members.keys().copied().filter(|node| *node != shared.me) {
            // the answer itself is of no use here; who was a member until just now is cut off at the first call and told at the next
            for _ in 0..2 {
                let asked = shared.peers.call(node, MemberProtocol::Raft, PeerRequest::Ping, LIMIT).await;
                if !matches!(asked, Err(PeerError::Unknown { .. })) {
                    break;
                }
            }
        }
        if !shared.peers.disowned_by().is_empty() {
            shared.news.notify_one();
        }
    }
}

/// Returns whether the cluster is removing this node, as far as it has heard, and it was not told yet that this is done: that word may
/// not reach it any more.
fn is_leaving(shared: &Shared) -> bool {
    shared.state().goals.removing.contains(&shared.me) && shared.peers.disowned_by().is_empty()
}
