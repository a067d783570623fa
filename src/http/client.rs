//! Typed client for the API, over the admin socket or TCP, which tries several nodes.

mod members;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request as HttpRequest, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

pub use members::Members;

use super::v1::routes::{Call, read_answer, write};
use crate::config::{Address, Secret};
use crate::node::error::{ErrorCode, HandleError};
use crate::node::handle::{Answer, Request};
use crate::node::status::Status;

/// How long a connection may take before the next address is tried.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a status may take.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// What a request's own limit is extended by, so that the node's word about a timeout arrives first.
const ANSWER_SLACK: Duration = Duration::from_secs(3);
/// The largest answer that is read: a list of keys.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A node's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// By its admin socket.
    Admin(PathBuf),
    /// By its API port.
    Tcp(Address),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Admin(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Asks the first node that can be reached.
#[derive(Debug, Clone)]
pub struct Client {
    targets: Vec<Target>,
    api_token: Option<Secret>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// A client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The authority's certificate cannot be read.
    #[error(
        "the certificate of the cluster's authority cannot be read. Nothing was asked. Fetch it with `hasup ca export` or from /v1/ca"
    )]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The authority's certificate cannot be used.
    #[error("the certificate of the cluster's authority cannot be used. Nothing was asked. Fetch it anew from /v1/ca")]
    Authority(#[source] rustls::Error),
}

impl Client {
    /// Returns a client that tries `targets` in order; off loopback only over TLS, with `ca_pem` as the authority.
    ///
    /// # Errors
    /// `ca_pem` cannot be used.
    pub fn new(targets: Vec<Target>, api_token: Option<Secret>, ca_pem: Option<&[u8]>) -> Result<Self, ClientError> {
        let tls = ca_pem.map(tls_config).transpose()?;
        Ok(Self { targets, api_token, tls })
    }

    /// Returns whom it asks, in order.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Returns what the first reachable node says.
    ///
    /// # Errors
    /// `unreachable` where none answers, else what the node says.
    pub async fn status(&self) -> Result<Status, HandleError> {
        self.status_from().await.map(|(status, _)| status)
    }

    /// Returns what the first reachable node says, and which one of the targets that is.
    ///
    /// # Errors
    /// `unreachable` where none answers, else what the node says.
    pub async fn status_from(&self) -> Result<(Status, &Target), HandleError> {
        let call = Call { method: Method::GET, target: "/v1/status".to_owned(), body: Vec::new() };
        let (body, from) = self.call(&call, STATUS_LIMIT, true).await?;
        let status = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
        Ok((status, from))
    }

    /// Asks the first reachable node for `request`.
    ///
    /// A change that was sent and not answered is not repeated at another node.
    ///
    /// # Errors
    /// `unreachable` where none could be asked, `unknown` where the outcome is not known, else what the node says.
    pub async fn request(&self, request: &Request) -> Result<Answer, HandleError> {
        let (body, _) = self.call(&write(request), request.time_limit() + ANSWER_SLACK, request.is_read()).await?;
        read_answer(request, &body).map_err(|error| not_understood(&error))
    }

    async fn call(&self, call: &Call, limit: Duration, is_read: bool) -> Result<(Bytes, &Target), HandleError> {
        let mut tried = Vec::new();
        for target in &self.targets {
            match self.call_one(target, call, limit).await {
                Ok((status, body)) if status.is_success() => return Ok((body, target)),
                Ok((status, body)) => {
                    return Err(serde_json::from_slice(&body).unwrap_or_else(|_| {
                        let code = if is_read { ErrorCode::Internal } else { ErrorCode::Unknown };
                        HandleError::new(code, format!("{target} answered {status} and nothing that hasup would say"))
                    }));
                }
                Err(Failure::Unsent(why)) => tried.push(format!("{target}: {why}")),
                Err(Failure::Lost(why)) if is_read => tried.push(format!("{target}: {why}")),
                Err(Failure::Lost(why)) => {
                    let text = format!(
                        "{target} was asked and did not answer ({why}). It may have been done or not. Look at `hasup status`"
                    );
                    return Err(HandleError::new(ErrorCode::Unknown, text));
                }
            }
        }
        let tried = if tried.is_empty() { "no node is known".to_owned() } else { tried.join("; ") };
        let text = format!(
            "No node could be asked ({tried}). Nothing was done. See that hasup runs, or name a node by --target"
        );
        Err(HandleError::new(ErrorCode::Unreachable, text))
    }

    async fn call_one(&self, target: &Target, call: &Call, limit: Duration) -> Result<(StatusCode, Bytes), Failure> {
        match target {
            Target::Admin(path) => {
                let stream = timeout(CONNECT_LIMIT, UnixStream::connect(path)).await;
                let stream = stream.map_err(|_| Failure::unsent("no connection in time"))?.map_err(Failure::unsent)?;
                self.exchange(stream, "hasup", call, limit, false).await
            }
            Target::Tcp(address) => {
                let stream = timeout(CONNECT_LIMIT, connect(address)).await;
                let stream = stream.map_err(|_| Failure::unsent("no connection in time"))?.map_err(Failure::unsent)?;
                let reached = stream.peer_addr().map_err(Failure::unsent)?;
                // Every listener takes plain HTTP from its own machine, where no certificate is needed to know who answers.
                if reached.ip().to_canonical().is_loopback() {
                    return self.exchange(stream, &address.to_string(), call, limit, true).await;
                }
                self.exchange_tls(stream, address, call, limit).await
            }
        }
    }

    async fn exchange_tls(
        &self,
        stream: TcpStream,
        address: &Address,
        call: &Call,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let tls =
            self.tls.as_ref().ok_or_else(|| Failure::unsent("its certificate cannot be checked: give --ca-file"))?;
        let name = ServerName::try_from(address.host.to_string()).map_err(Failure::unsent)?;
        let handshake = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
        let stream = timeout(CONNECT_LIMIT, handshake).await;
        let stream = stream.map_err(|_| Failure::unsent("no TLS in time"))?.map_err(Failure::unsent)?;
        self.exchange(stream, &address.to_string(), call, limit, true).await
    }

    async fn exchange<S>(
        &self,
        stream: S,
        host: &str,
        call: &Call,
        limit: Duration,
        shows_token: bool,
    ) -> Result<(StatusCode, Bytes), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let deadline = Instant::now() + limit;
        let handshake = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(Failure::unsent)?;
        let mut request =
            HttpRequest::builder().method(call.method.clone()).uri(&call.target).header(header::HOST, host);
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let (Some(token), true) = (&self.api_token, shows_token) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request.body(Full::new(Bytes::from(call.body.clone()))).map_err(Failure::unsent)?;
        let mut work = std::pin::pin!(async move {
            let response = sender.send_request(request).await.map_err(Failure::lost)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await.map_err(Failure::lost)?;
            Ok((status, body.to_bytes()))
        });
        let both = async {
            tokio::select! {
                outcome = &mut work => outcome,
                // The connection may end before the last bytes of its answer were taken.
                _ = connection => work.await,
            }
        };
        timeout_at(deadline, both).await.unwrap_or_else(|_| Err(Failure::lost("no answer in time")))
    }
}

/// Why one node did not answer.
enum Failure {
    /// The request was not sent.
    Unsent(String),
    /// It may have been.
    Lost(String),
}

impl Failure {
    fn unsent(why: impl ToString) -> Self {
        Self::Unsent(why.to_string())
    }

    fn lost(why: impl ToString) -> Self {
        Self::Lost(why.to_string())
    }
}

fn not_understood(error: &serde_json::Error) -> HandleError {
    let text =
        format!("The node's answer is not understood ({error}). It may run another version: compare `hasup --version`");
    HandleError::new(ErrorCode::Internal, text)
}

async fn connect(address: &Address) -> std::io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host((address.host.to_string(), address.port)).await?.collect();
    TcpStream::connect(&found[..]).await
}

fn tls_config(ca_pem: &[u8]) -> Result<Arc<rustls::ClientConfig>, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.map_err(ClientError::Pem)?).map_err(ClientError::Authority)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ClientError::Authority)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
