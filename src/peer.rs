//! Node to node: frames over mutual TLS 1.3 on one TCP port, and the handshake by which a node joins.
//!
//! ```text
//! frame.rs     length, request id, payload
//! message.rs   what members ask each other
//! server.rs    accepts connections: who may ask what; the service behind it is a trait
//! gate.rs      limits on strangers: handshakes under way, attempts to join
//! client.rs    calls a member by its number; says what is known of a request that got no answer
//! link.rs      one kept connection to one member for one purpose
//! dial.rs      tries a member's addresses, the one that last worked first, and checks who answers
//! join/        token, request, grant, refusals; the check that a joiner can be reached
//! ```
//!
//! ALPN tells the purpose of a connection before the certificate is looked at: `hasup-raft/1` and `hasup-bulk/1` need a
//! certificate of the cluster that names a present member, `hasup-join/1` needs none and can only ask to join.
//!
//! Decisions and their price:
//! - The server speaks first (a welcome). In TLS 1.3 a client learns of a refused certificate only by reading, so without
//!   the welcome a refused request would be of unknown fate. The price is one round trip for each new connection.
//! - Membership is checked at each request, not at the handshake alone: a removed member is out at once.
//! - A request that timed out leaves its connection alone: ids tell answers apart. A framing error ends the connection.

pub mod client;
mod dial;
pub mod frame;
mod gate;
pub mod join;
mod link;
pub mod message;
pub mod server;
#[cfg(test)]
mod tests;

pub use client::{PeerAddress, PeerClient, PeerError};
pub use message::{Addresses, DaemonStart, PeerRefusal, PeerRequest, PeerResponse};
pub use server::{PeerService, serve};

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// The port of peers and pulses where nothing else is configured.
pub const DEFAULT_PORT: u16 = 7400;

/// How long sent bytes may stay unacknowledged before the connection counts as dead. Four retransmissions fit (0.2 s, 0.4 s,
/// 0.8 s after the first), so that 20 % of lost packets rarely ends a connection; longer, and a pulled cable would keep
/// requests from going by another address.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(2);

/// Returns `target` with the default port where it names none. IPv6 addresses get brackets.
pub fn with_default_port(target: &str) -> String {
    let has_port = match target.strip_prefix('[') {
        Some(rest) => rest.contains("]:"),
        None => target.matches(':').count() == 1,
    };
    match (has_port, target.starts_with('['), target.contains(':')) {
        (true, _, _) => target.to_owned(),
        (false, false, true) => format!("[{target}]:{DEFAULT_PORT}"),
        (false, _, _) => format!("{target}:{DEFAULT_PORT}"),
    }
}

/// Sets what every peer connection needs: no delay for small frames, and an early end when the other side is gone.
fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(2))
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}
