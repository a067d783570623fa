//! Reaches a member by one of its addresses, and checks who answers.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::PeerAddress;
use super::frame::{STRANGER_PAYLOAD_MAX, read_frame};
use super::message::Welcome;
use super::prepare_socket;
use crate::codec;
use crate::tls::config::{MemberProtocol, server_name};
use crate::tls::{CertificateFacts, NodeIdentity, TlsContext};

/// One address has this long from the first packet to the welcome.
const ADDRESS_LIMIT: Duration = Duration::from_secs(2);
/// The next address is tried beside when the one before has not answered by then: on a LAN it would have.
const HEAD_START: Duration = Duration::from_millis(150);

/// A member could not be reached, or did not let us in. Nothing was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DialError {
    /// It answered: this node is no member.
    NotAMember,
    /// What was tried, and how each attempt ended.
    Unreachable(String),
}

/// An open connection and the address that it was reached by.
pub(super) type Dialled = (TlsStream<TcpStream>, String);

/// Connects to `peer`: its addresses in order, `preferred` first, each with a head start before the next.
pub(super) async fn dial(
    peer: &PeerAddress,
    preferred: Option<&str>,
    protocol: MemberProtocol,
    tls: &TlsContext,
) -> Result<Dialled, DialError> {
    let mut addresses: Vec<&str> = peer.addresses.iter().map(String::as_str).collect();
    addresses.sort_by_key(|address| Some(*address) != preferred);
    if addresses.is_empty() {
        return Err(DialError::Unreachable("it has no address".into()));
    }
    let mut attempts: FuturesUnordered<_> = (0_u32..)
        .zip(addresses)
        .map(|(place, address)| async move {
            tokio::time::sleep(HEAD_START * place).await;
            let result = timeout(ADDRESS_LIMIT, dial_one(peer, address, protocol, tls)).await;
            match result {
                Ok(Ok(stream)) => Ok((stream, address.to_owned())),
                Ok(Err(Failure::NotAMember)) => Err(DialError::NotAMember),
                Ok(Err(Failure::Other(because))) => Err(DialError::Unreachable(format!("{address}: {because}"))),
                Err(_) => Err(DialError::Unreachable(format!("{address}: no answer within {ADDRESS_LIMIT:?}"))),
            }
        })
        .collect();
    let mut failures = Vec::new();
    while let Some(result) = attempts.next().await {
        match result {
            Err(DialError::Unreachable(because)) => failures.push(because),
            done => return done,
        }
    }
    Err(DialError::Unreachable(failures.join("; ")))
}

enum Failure {
    NotAMember,
    Other(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.to_string())
    }
}

async fn dial_one(
    peer: &PeerAddress,
    address: &str,
    protocol: MemberProtocol,
    tls: &TlsContext,
) -> Result<TlsStream<TcpStream>, Failure> {
    let tcp = connect(address).await?;
    let expected = NodeIdentity { node: peer.id, name: peer.name.clone(), cluster_id: tls.identity().cluster_id };
    let connector = TlsConnector::from(tls.peer_client(protocol));
    let connected = connector.connect(server_name(&expected)?, tcp).await;
    tls.note_handshake(peer.id, connected.as_ref().map(drop));
    let mut stream = connected?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| Failure::Other("it showed no certificate".into()))?;
    if CertificateFacts::of_der(leaf)?.identity != expected {
        return Err(Failure::Other("another node of the same name answers there".into()));
    }
    let frame = read_frame(&mut stream, STRANGER_PAYLOAD_MAX).await?;
    let frame = frame.ok_or_else(|| Failure::Other("it closed the connection without a word".into()))?;
    match codec::decode::<Welcome>(&frame.payload)? {
        Welcome::Member { .. } => Ok(stream),
        Welcome::NotAMember => Err(Failure::NotAMember),
    }
}

/// Opens a TCP connection to the first of the addresses that `address` resolves to now.
pub(super) async fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name resolves to no address");
    for resolved in lookup_host(address).await? {
        match TcpStream::connect(resolved).await {
            Ok(stream) => {
                prepare_socket(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
