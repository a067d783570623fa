//! Accept loops: plain on loopback and on the admin socket, TLS elsewhere; limits that keep hostile peers small.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::access::Caller;

/// Connections at once on one listener, so that an attacker cannot use up memory or descriptors.
const CONNECTIONS: usize = 512;
/// How long a TLS handshake and the head of a request may take. Kept connections end after this much silence.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How large the head of a request may be.
const HEAD_BYTES: usize = 32 * 1024;
/// How long open requests may go on once the server is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait after a failed accept: descriptors have run out, and asking again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Clear text would leave the machine.
    #[error(
        "the API is not served on {0} without TLS. Load balancers and commands cannot reach it. Give the node its \
             certificate, or let api.listen be a loopback address"
    )]
    ClearText(SocketAddr),
    /// The listener's address cannot be read.
    #[error("the API's listener has no address")]
    Address(#[source] io::Error),
    /// The admin socket cannot be made.
    #[error(
        "the admin socket {path} cannot be made. Commands on this node will not reach it. See that its folder exists, \
             belongs to hasup's user, and that no other hasup uses it"
    )]
    AdminSocket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the admin socket: only its owner and group reach it. One left by a dead daemon is replaced, a living one is not.
///
/// # Errors
/// The folder is missing or not ours, the path is too long (107 bytes), or another daemon answers on it.
pub async fn bind_admin_socket(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::AdminSocket { path: path.to_owned(), source };
    match UnixStream::connect(path).await {
        Ok(_) => return Err(failed(io::ErrorKind::AddrInUse.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => std::fs::remove_file(path).map_err(failed)?,
    }
    // Bound under another name and moved into place, so that nobody connects before the mode is right.
    let beside = path.with_extension("new");
    if let Err(error) = std::fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    std::fs::set_permissions(&beside, Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)?;
    Ok(listener)
}

/// Serves the API on the admin socket until `stop`.
pub async fn serve_admin(listener: UnixListener, api: Api, stop: CancellationToken) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = open.join_next(), if !open.is_empty() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) if open.len() < CONNECTIONS => {
                open.spawn(connection(stream, api.clone(), Caller::Admin, stop.clone()));
            }
            Ok(_) => tracing::debug!("too many connections on the admin socket, one was closed"),
            Err(error) => {
                tracing::warn!(%error, "the admin socket cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while open.join_next().await.is_some() {}
}

/// Serves the API on `listener` until `stop`, over TLS where given.
///
/// # Errors
/// The listener is not on loopback and there is no TLS.
pub async fn serve_tcp(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    api: Api,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Address)?;
    if tls.is_none() && !address.ip().is_loopback() {
        return Err(ServeError::ClearText(address));
    }
    let acceptor = tls.map(TlsAcceptor::from);
    let mut open = JoinSet::new();
    let mut crowd = Crowd::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = open.join_next_with_id(), if !open.is_empty() => {
                crowd.leave(ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                if open.len() >= CONNECTIONS {
                    crowd.give_one_up();
                }
                let caller = if from.ip().to_canonical().is_loopback() { Caller::Loopback } else { Caller::Remote };
                let (api, acceptor, stop) = (api.clone(), acceptor.clone(), stop.clone());
                let spawned = open.spawn(async move {
                    // An answer of a few hundred bytes must not wait for the acknowledgement of the one before.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, %from, "the connection went away");
                        return;
                    }
                    match acceptor {
                        None => connection(stream, api, caller, stop).await,
                        Some(_) if caller == Caller::Loopback && !begins_tls(&stream).await => {
                            connection(stream, api, caller, stop).await;
                        }
                        Some(acceptor) => match timeout(HEAD_LIMIT, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => connection(stream, api, caller, stop).await,
                            Ok(Err(error)) => tracing::debug!(%error, %from, "no TLS handshake"),
                            Err(_) => tracing::debug!(%from, "the TLS handshake took too long"),
                        },
                    }
                });
                crowd.enter(from.ip().to_canonical(), spawned);
            }
            Err(error) => {
                tracing::warn!(%error, "the API port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while open.join_next().await.is_some() {}
    Ok(())
}

/// The open connections by address, so that whoever opens too many closes its own: load balancers and operators are let in.
#[derive(Debug, Default)]
struct Crowd(BTreeMap<IpAddr, VecDeque<AbortHandle>>);

impl Crowd {
    fn enter(&mut self, from: IpAddr, connection: AbortHandle) {
        self.0.entry(from).or_default().push_back(connection);
    }

    fn leave(&mut self, id: tokio::task::Id) {
        self.0.retain(|_, open| {
            open.retain(|connection| connection.id() != id);
            !open.is_empty()
        });
    }

    /// Closes the oldest connection of the address that has most.
    fn give_one_up(&mut self) {
        let busiest = self.0.iter_mut().max_by_key(|(_, open)| open.len());
        if let Some((from, connection)) = busiest.and_then(|(from, open)| Some((from, open.pop_front()?))) {
            tracing::debug!(%from, "too many connections on the API port, the oldest of this address was closed");
            connection.abort();
        }
    }
}

/// Returns whether the peer's first byte is that of a TLS handshake; plain HTTP may come only from this machine.
async fn begins_tls(stream: &TcpStream) -> bool {
    let mut first = [0; 1];
    matches!(timeout(HEAD_LIMIT, stream.peek(&mut first)).await, Ok(Ok(1)) if first[0] == 0x16)
}

async fn connection<S>(stream: S, api: Api, caller: Caller, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(api.router().layer(Extension(caller)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => Some(ended),
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            timeout(STOP_LIMIT, serving).await.ok()
        }
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "a connection to the API ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_opens_too_many_connections_closes_its_own() {
        let mut open = JoinSet::new();
        let mut crowd = Crowd::default();
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut enter = |crowd: &mut Crowd, from| {
            let handle = open.spawn(std::future::pending::<()>());
            crowd.enter(from, handle.clone());
            handle
        };
        let balancer = enter(&mut crowd, modest);
        let [oldest, newest] = [0, 1].map(|_| enter(&mut crowd, greedy));
        crowd.give_one_up();
        let ended = open.join_next_with_id().await.expect("one ends").expect_err("it was aborted");
        assert_eq!(ended.id(), oldest.id());
        assert!(!balancer.is_finished() && !newest.is_finished());
        crowd.leave(newest.id());
        crowd.leave(balancer.id());
        assert!(crowd.0.is_empty());
    }
}
