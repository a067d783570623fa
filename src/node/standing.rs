//! Whether this node still belongs to the cluster: one that was removed hears nobody, and would take the others for dead.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::peer::PeerRequest;
use crate::sys::clock::boot_now;
use crate::tls::config::MemberProtocol;

/// How often a node that hears nobody asks, and for how long nobody was heard then.
const EVERY: Duration = Duration::from_secs(3);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks the other members while none of them is heard: who is none of them any more is told, which the peer client remembers. Ends
/// with the node.
pub(super) async fn ask(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let now = boot_now();
        if shared.pulses.view().peers.values().any(|peer| now.since(peer.proved_at) < EVERY) {
            continue;
        }
        for node in shared.state().members.keys().copied().filter(|node| *node != shared.me) {
            // the answer itself is of no use here
            let _ = shared.peers.call(node, MemberProtocol::Raft, PeerRequest::Ping, LIMIT).await;
        }
    }
}
