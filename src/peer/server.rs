//! Accepts connections on the peer port.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::{AsyncWrite, AsyncWriteExt, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::frame::{Frame, PAYLOAD_MAX, STRANGER_PAYLOAD_MAX, put_frame, read_frame};
use super::gate::{HandshakeGate, JoinThrottle};
use super::join::{JoinGrant, JoinRefusal, JoinRequest};
use super::message::{Envelope, PeerRefusal, PeerRequest, PeerResponse, Welcome};
use super::prepare_socket;
use crate::codec;
use crate::tls::{CertificateFacts, NodeIdentity, PeerProtocol, TlsContext};
use crate::types::NodeId;

/// From connection to proven identity; a member needs milliseconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A stranger's request to join must be there by then.
const JOIN_READ_LIMIT: Duration = Duration::from_secs(5);
/// A join is answered by then: members are asked, addresses dialled back.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// Joins that are worked on at once.
const JOINS_MAX: usize = 4;
/// Answers must leave within this; who reads more slowly is disconnected.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Nobody's request is worked on for longer, whatever time it names.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);
/// Requests of one connection that are worked on at once; further ones wait in the socket.
const REQUESTS_MAX: usize = 1024;
/// Connections in all: members have a few each, so only a defect reaches it.
const CONNECTIONS_MAX: usize = 2048;

/// What answers behind the peer port.
pub trait PeerService: Send + Sync + 'static {
    /// Answers a member's request. The future is dropped when the asker has stopped waiting.
    fn handle(&self, from: NodeId, request: PeerRequest) -> BoxFuture<'_, PeerResponse>;

    /// Returns the number of the present member of this name, if there is one. Must not block: it is asked at each request.
    fn member(&self, name: &str) -> Option<NodeId>;

    /// Decides about a node that wants to join. Attempts are limited before this is asked; the token is not yet checked.
    fn join(&self, request: JoinRequest, remote: SocketAddr) -> BoxFuture<'_, Result<JoinGrant, JoinRefusal>>;
}

/// What all connections of one listener share.
struct Shared {
    tls: Arc<TlsContext>,
    service: Arc<dyn PeerService>,
    gate: Mutex<HandshakeGate>,
    throttle: Mutex<JoinThrottle>,
    joins: Semaphore,
    /// Former members that asked for a connection, so that each is told of once.
    strangers: Mutex<BTreeSet<NodeId>>,
}

impl Shared {
    /// Notes a caller that is no member; returns whether that is news.
    fn note_stranger(&self, caller: &NodeIdentity) -> bool {
        self.strangers.lock().insert(caller.node)
    }
}

/// Serves the peer port until dropped; dropping it ends all its connections. A panic in the service comes out of here.
pub async fn serve(listener: TcpListener, tls: Arc<TlsContext>, service: Arc<dyn PeerService>) {
    let shared = Arc::new(Shared {
        tls,
        service,
        gate: Mutex::default(),
        throttle: Mutex::default(),
        joins: Semaphore::new(JOINS_MAX),
        strangers: Mutex::default(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(connection(stream, remote, shared.clone()));
                }
                Ok((_, remote)) => tracing::warn!(%remote, "peer connection refused: {CONNECTIONS_MAX} are open"),
                Err(error) => {
                    // Out of descriptors, mostly: some will be closed, and trying at once would only spin.
                    tracing::warn!(%error, "accept on the peer port");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = connections.join_next() => pass_on_panic(ended.err()),
        }
    }
}

/// A panic in a handler is a bug whose damage is unknown: it must reach the task that takes the node to its safe state.
fn pass_on_panic(error: Option<tokio::task::JoinError>) {
    if let Some(error) = error.filter(tokio::task::JoinError::is_panic) {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// What a handshake proved.
enum Caller {
    Member { identity: NodeIdentity, chain: Vec<CertificateDer<'static>> },
    Stranger,
}

async fn connection(stream: TcpStream, remote: SocketAddr, shared: Arc<Shared>) {
    let (number, given_up) = shared.gate.lock().enter(remote.ip());
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    let result = tokio::select! {
        () = given_up.cancelled() => Err("given up for newer ones".to_owned()),
        result = timeout_at(deadline, handshake(stream, &shared.tls)) => match result {
            Ok(result) => result,
            Err(_) => Err("too slow".to_owned()),
        },
    };
    // a stranger stays among those who may be given up until it has said what it wants
    let is_stranger = matches!(&result, Ok((_, Caller::Stranger)));
    if !is_stranger {
        shared.gate.lock().leave(number);
    }
    match result {
        Ok((stream, Caller::Member { identity, chain })) => {
            let member = Member { identity, chain, remote, shared };
            if let Err(because) = member.serve(stream).await {
                tracing::debug!(%remote, node = %member.identity.name, because, "peer connection ended");
            }
        }
        Ok((mut stream, Caller::Stranger)) => {
            let asked = tokio::select! {
                () = given_up.cancelled() => None,
                asked = read_join(&mut stream, remote) => asked,
            };
            shared.gate.lock().leave(number);
            if let Some(frame) = asked {
                join(stream, remote, &shared, frame).await;
            }
        }
        // Strangers can cause these at will, hence the level.
        Err(because) => tracing::debug!(%remote, because, "peer handshake failed"),
    }
}

async fn handshake(stream: TcpStream, tls: &TlsContext) -> Result<(TlsStream<TcpStream>, Caller), String> {
    let text = |error: std::io::Error| error.to_string();
    prepare_socket(&stream).map_err(text)?;
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(text)?;
    let protocol = PeerProtocol::of_client_hello(&start.client_hello()).ok_or("no known protocol asked for")?;
    let stream = start.into_stream(tls.peer_server(protocol)).await.map_err(text)?;
    if protocol == PeerProtocol::Join {
        return Ok((stream, Caller::Stranger));
    }
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain: Vec<_> = chain.iter().map(|der| der.clone().into_owned()).collect();
    let leaf = chain.first().ok_or("no certificate")?;
    let identity = CertificateFacts::of_der(leaf).map_err(|error| error.to_string())?.identity;
    if identity.cluster_id != tls.identity().cluster_id {
        return Err("a certificate of another cluster".into());
    }
    Ok((stream, Caller::Member { identity, chain }))
}

/// A connection whose other end has proven to be a node of the cluster.
struct Member {
    identity: NodeIdentity,
    chain: Vec<CertificateDer<'static>>,
    remote: SocketAddr,
    shared: Arc<Shared>,
}

impl Member {
    /// Tells whether name and number still belong to one present member.
    fn is_present(&self) -> bool {
        self.shared.service.member(self.identity.name.as_str()) == Some(self.identity.node)
    }

    async fn serve(&self, stream: TlsStream<TcpStream>) -> Result<(), String> {
        let (mut reader, mut writer) = split(stream);
        let mut changes = self.shared.tls.changes();
        if !self.is_present() {
            if self.shared.note_stranger(&self.identity) {
                tracing::warn!(remote = %self.remote, node = %self.identity.node, name = %self.identity.name,
                    "a node that is no member asks for connections; it was removed or replaced and must join again, empty");
            }
            let refused = send(&mut writer, 0, &codec::encode(&Welcome::NotAMember)).await;
            let _ = writer.shutdown().await;
            return refused;
        }
        self.shared.strangers.lock().remove(&self.identity.node);
        let me = self.shared.tls.identity().node;
        let welcome = Welcome::Member { node: me, version: env!("CARGO_PKG_VERSION").to_owned() };
        send(&mut writer, 0, &codec::encode(&welcome)).await?;

        // Reading a frame must not be cancelled half-way, so it runs beside the loop and hands over whole ones.
        let (hand_over, mut frames) = mpsc::channel(1);
        let reading = async {
            loop {
                match read_frame(&mut reader, PAYLOAD_MAX).await {
                    Ok(Some(frame)) => {
                        if hand_over.send(frame).await.is_err() {
                            return "closed".to_owned();
                        }
                    }
                    Ok(None) => return "closed by the peer".to_owned(),
                    Err(error) => return error.to_string(),
                }
            }
        };
        tokio::pin!(reading);
        let mut handlers: JoinSet<(u64, PeerResponse)> = JoinSet::new();
        loop {
            tokio::select! {
                because = &mut reading => return Err(because),
                Some(frame) = frames.recv(), if handlers.len() < REQUESTS_MAX => {
                    if !self.is_present() {
                        return Err("the node is no member any more".into());
                    }
                    let id = frame.id;
                    let work = self.handler(frame)?;
                    handlers.spawn(async move { (id, work.await) });
                }
                Some(done) = handlers.join_next() => {
                    let mut answers = Vec::new();
                    put_answer(&mut answers, done);
                    // Whatever else is ready leaves in the same write.
                    while let Some(done) = handlers.try_join_next() {
                        put_answer(&mut answers, done);
                    }
                    write(&mut writer, &answers).await?;
                }
                Ok(()) = changes.changed() => {
                    if !self.shared.tls.still_trusts(&self.chain) {
                        return Err("its certificate is not accepted any more".into());
                    }
                }
            }
        }
    }

    /// Returns the work that one frame asks for; a frame that does not decode ends the connection.
    fn handler(&self, frame: Frame) -> Result<impl Future<Output = PeerResponse> + Send + 'static, String> {
        let envelope: Envelope = codec::decode(&frame.payload).map_err(|error| error.to_string())?;
        let (service, from) = (self.shared.service.clone(), self.identity.node);
        let within = Duration::from_millis(envelope.within_ms).min(REQUEST_LIMIT);
        Ok(async move {
            timeout(within, service.handle(from, envelope.request)).await.unwrap_or(PeerResponse::Refused(
                // Nobody reads this any more; the asker has counted the request as of unknown fate.
                PeerRefusal::Unable { because: "the time that the asker gave is over".into() },
            ))
        })
    }
}

fn put_answer(answers: &mut Vec<u8>, done: Result<(u64, PeerResponse), tokio::task::JoinError>) {
    match done {
        Ok((id, answer)) => {
            let mut payload = codec::encode(&answer);
            if payload.len() > PAYLOAD_MAX {
                let refusal = PeerRefusal::AnswerTooLong { bytes: payload.len() as u64 };
                payload = codec::encode(&PeerResponse::Refused(refusal));
            }
            put_frame(answers, id, &payload);
        }
        Err(error) => pass_on_panic(Some(error)),
    }
}

async fn send(writer: &mut WriteHalf<TlsStream<TcpStream>>, id: u64, payload: &[u8]) -> Result<(), String> {
    let mut frame = Vec::new();
    put_frame(&mut frame, id, payload);
    write(writer, &frame).await
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), String> {
    let all = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    match timeout(WRITE_LIMIT, all).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it does not read its answers".into()),
    }
}

/// Reads one request to join, answers it, and closes.
/// Returns a stranger's request to join; nothing where none came in time that could be read.
async fn read_join(stream: &mut TlsStream<TcpStream>, remote: SocketAddr) -> Option<Frame> {
    match timeout(JOIN_READ_LIMIT, read_frame(stream, STRANGER_PAYLOAD_MAX)).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "join: unreadable request");
            None
        }
        Err(_) => None,
    }
}

async fn join(mut stream: TlsStream<TcpStream>, remote: SocketAddr, shared: &Shared, frame: Frame) {
    let attempt = shared.throttle.lock().attempt(remote.ip(), Instant::now());
    let answer: Result<JoinGrant, JoinRefusal> = match (attempt, shared.joins.try_acquire()) {
        (Err(wait), _) => Err(JoinRefusal::TooManyAttempts { retry_after_s: wait.as_secs() + 1 }),
        (Ok(()), Err(_)) => Err(JoinRefusal::TooManyAttempts { retry_after_s: 5 }),
        (Ok(()), Ok(_permit)) => match codec::decode::<JoinRequest>(&frame.payload) {
            Ok(request) => timeout(JOIN_LIMIT, shared.service.join(request, remote))
                .await
                .unwrap_or_else(|_| Err(JoinRefusal::NotNow { because: "the members did not agree in time".into() })),
            Err(error) => Err(JoinRefusal::BadRequest { because: error.to_string() }),
        },
    };
    match &answer {
        Ok(grant) => tracing::info!(%remote, node = %grant.node_id, "join granted"),
        Err(refusal) => tracing::info!(%remote, refusal = refusal.code(), "join refused"),
    }
    let payload = zeroize::Zeroizing::new(codec::encode(&answer));
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    put_frame(&mut bytes, frame.id, &payload);
    if write(&mut stream, &bytes).await.is_ok() {
        let _ = timeout(WRITE_LIMIT, stream.shutdown()).await;
    }
}
