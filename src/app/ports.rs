//! The node's own ports: bound before anything is made, and why one cannot be.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, UdpSocket, lookup_host};

use crate::config::{Config, Endpoint, Host, PostgresConfig};

/// Nobody can listen where the node is to.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another process does.
    #[error(
        "{place} is taken, so {purpose} cannot be opened. Nothing was begun. Is another hasup running here? `ss {}` tells who has the \
         port; another one can be set with {}",
        purpose.listing(),
        purpose.flag()
    )]
    Taken {
        /// The address and port.
        place: String,
        /// What for.
        purpose: Purpose,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The address is another machine's, or nobody's.
    #[error(
        "no interface of this machine has the address {host}, so {purpose} cannot be opened there. Nothing was begun. `ip address` lists \
         those it has: give one of them by --host-ip, or add this one to an interface first. Where the others reach this machine under an \
         address that is translated on the way, name its own in `peer.listen`, `api.listen` and `postgres.listen`"
    )]
    NoSuchAddress {
        /// The address.
        host: String,
        /// What for.
        purpose: Purpose,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The name is nobody's, as far as this machine knows.
    #[error(
        "this machine does not know the name {name} (`getent hosts {name}` asks for it), so {purpose} cannot be opened there. Nothing was \
         begun. Give one of this machine's addresses by --host-ip, or make the name known"
    )]
    NoSuchName {
        /// The name.
        name: String,
        /// What for.
        purpose: Purpose,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error(
        "{purpose} cannot be opened on {place}. Nothing was begun. Set another port with {}, or another address with --host-ip",
        purpose.flag()
    )]
    Other {
        /// The address and port.
        place: String,
        /// What for.
        purpose: Purpose,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PortError {
    fn new(host: &Host, port: u16, purpose: Purpose, source: io::Error) -> Self {
        let place = format!("{host}:{port}");
        match source.kind() {
            ErrorKind::AddrInUse => Self::Taken { place, purpose, source },
            ErrorKind::AddrNotAvailable => Self::NoSuchAddress { host: host.to_string(), purpose, source },
            _ => Self::Other { place, purpose, source },
        }
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Peers.
    Peer,
    /// The API.
    Api,
    /// Pulses: the number of the peer port, for UDP.
    Pulses,
    /// PostgreSQL.
    Postgres,
}

impl Purpose {
    /// Returns the flag that sets the port.
    fn flag(self) -> &'static str {
        match self {
            Self::Peer | Self::Pulses => "--peer-port",
            Self::Api => "--api-port",
            Self::Postgres => "--postgres-port",
        }
    }

    /// Returns what makes `ss` list who has such a port.
    fn listing(self) -> &'static str {
        match self {
            Self::Pulses => "-lunp",
            Self::Peer | Self::Api | Self::Postgres => "-ltnp",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "the peer port",
            Self::Api => "the API port",
            Self::Pulses => "the peer port for UDP, which carries the pulses,",
            Self::Postgres => "PostgreSQL's port",
        })
    }
}

async fn look_up(host: &Host, port: u16, purpose: Purpose) -> Result<Vec<SocketAddr>, PortError> {
    let name = host.to_string();
    let found = lookup_host((name.as_str(), port)).await.map(Iterator::collect);
    found.map_err(|source| PortError::NoSuchName { name, purpose, source })
}

async fn bind(host: &Host, port: u16, purpose: Purpose) -> Result<TcpListener, PortError> {
    let addresses = look_up(host, port, purpose).await?;
    let bound = TcpListener::bind(addresses.as_slice()).await;
    bound.map_err(|error| PortError::new(host, port, purpose, error))
}

/// Binds every address of `endpoint`.
pub(super) async fn listen(endpoint: &Endpoint, purpose: Purpose) -> Result<Vec<TcpListener>, PortError> {
    let mut listeners = Vec::new();
    for host in &endpoint.listen {
        listeners.push(bind(host, endpoint.port, purpose).await?);
    }
    Ok(listeners)
}

/// PostgreSQL would be made and could not start where somebody else has its port: said before anything is made.
pub(super) async fn require_free(postgres: &PostgresConfig) -> Result<(), PortError> {
    for host in &postgres.listen {
        bind(host, postgres.port, Purpose::Postgres).await?;
    }
    Ok(())
}

/// A node whose pulses nobody hears takes no part, and its database would be made for nothing.
pub(super) async fn require_free_for_pulses(peer: &Endpoint) -> Result<(), PortError> {
    for host in &peer.listen {
        let addresses = look_up(host, peer.port, Purpose::Pulses).await?;
        let bound = UdpSocket::bind(addresses.as_slice()).await;
        bound.map_err(|error| PortError::new(host, peer.port, Purpose::Pulses, error))?;
    }
    Ok(())
}

/// Waits for nothing: whether the node's own ports are free, before a server is stopped for its sake.
///
/// # Errors
/// One is not.
pub fn require_own(config: &Config) -> Result<(), PortError> {
    for (endpoint, purpose) in [(&config.peer, Purpose::Peer), (&config.api, Purpose::Api)] {
        for host in &endpoint.listen {
            let bound = std::net::TcpListener::bind((host.to_string(), endpoint.port));
            bound.map_err(|error| PortError::new(host, endpoint.port, purpose, error))?;
        }
    }
    Ok(())
}

/// Returns where `listeners` listen.
pub(super) fn addresses(listeners: &[TcpListener]) -> anyhow::Result<Vec<SocketAddr>> {
    listeners.iter().map(|listener| listener.local_addr().context("see the peer port's address")).collect()
}
