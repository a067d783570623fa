//! A PostgreSQL session as an outside client has it: over TCP, with TLS when the server offers it, every wait limited.

use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};

use super::dsn::SslMode;

/// A host that does not answer is given up after this long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// Sent data that is not acknowledged ends the connection after this long.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_millis(500);
/// TLS and authentication after the connect: a hung postmaster accepts and then says nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// A session could not be had, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered in time.
    #[error("{what}: no answer within {} ms", .limit.as_millis())]
    Silent {
        /// What was tried.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection was refused or broke.
    #[error("{what}")]
    Broken {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        #[source]
        source: io::Error,
    },
    /// PostgreSQL answered with an error, or its connection ended.
    #[error("PostgreSQL: {}", message(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The answer is none that the question allows.
    #[error("PostgreSQL gave an unexpected answer: {0}")]
    Unexpected(String),
    /// The CA certificates cannot be used.
    #[error("the CA certificates in {path} cannot be used, so no server can be checked: {why}")]
    Ca {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
}

fn message(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}: {}", db.severity(), db.code().code(), db.message()),
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            text
        }
    }
}

/// Where and as whom a session is opened.
#[derive(Clone)]
pub struct Target {
    /// The node's name in journals.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// What all sessions of a client share.
#[derive(Clone)]
pub struct Access {
    config: tokio_postgres::Config,
    tls: Option<Arc<ClientConfig>>,
}

impl Access {
    /// Prepares to connect as `user` to `database`.
    ///
    /// # Errors
    /// [`ClientError::Ca`] when certificates are to be checked and `ca` holds none.
    pub fn new(
        user: &str,
        database: &str,
        password: Option<&str>,
        mode: SslMode,
        ca: Option<&Path>,
    ) -> Result<Self, ClientError> {
        let mut config = tokio_postgres::Config::new();
        config.user(user).dbname(database).application_name("hasup-chaos");
        if let Some(password) = password {
            config.password(password);
        }
        config.ssl_mode(match mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        let tls = match mode {
            SslMode::Disable => None,
            _ => Some(Arc::new(tls_config(mode, ca)?)),
        };
        Ok(Self { config, tls })
    }

    /// Opens a session. Safe to drop at any time.
    ///
    /// # Errors
    /// [`ClientError`] when nobody answers in time, or the server refuses.
    pub async fn connect(&self, target: &Target) -> Result<Session, ClientError> {
        let what = "connect";
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((target.host.as_str(), target.port)))
            .await
            .map_err(|_| ClientError::Silent { what, limit: CONNECT_TIMEOUT })?
            .map_err(|source| ClientError::Broken { what, source })?;
        settle(&stream).map_err(|source| ClientError::Broken { what: "set up the connection", source })?;
        let connector = Connector { tls: self.tls.clone(), host: target.host.clone() };
        let (client, mut connection) =
            timeout(HANDSHAKE_TIMEOUT, self.config.connect_raw(stream, connector))
                .await
                .map_err(|_| ClientError::Silent { what: "log in", limit: HANDSHAKE_TIMEOUT })??;
        let wait_cancelled = Arc::new(AtomicBool::new(false));
        let mut driver = JoinSet::new();
        let seen = Arc::clone(&wait_cancelled);
        driver.spawn(async move {
            while let Some(Ok(said)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = said
                    && notice.message().contains("synchronous replication")
                {
                    seen.store(true, Ordering::SeqCst);
                }
            }
        });
        Ok(Session { client, wait_cancelled, _driver: driver })
    }
}

/// An open session; dropping it closes the connection.
pub struct Session {
    client: Client,
    wait_cancelled: Arc<AtomicBool>,
    _driver: JoinSet<()>,
}

impl Session {
    /// Returns whether the node takes writes now (`transaction_read_only` is off: neither in recovery nor made read-only).
    ///
    /// # Errors
    /// [`ClientError`] when it does not answer within `limit`, or with an error.
    pub async fn is_writable(&self, limit: Duration) -> Result<bool, ClientError> {
        match self.value("SHOW transaction_read_only", limit).await?.as_str() {
            "off" => Ok(true),
            "on" => Ok(false),
            other => Err(ClientError::Unexpected(other.to_owned())),
        }
    }

    /// Runs `sql` and returns its first column of each row.
    ///
    /// # Errors
    /// [`ClientError`] when it does not answer within `limit`, or with an error. The statement may have had its effect all
    /// the same unless the error is the server's own.
    pub async fn column(&self, sql: &str, limit: Duration) -> Result<Vec<String>, ClientError> {
        let what = "answer";
        let messages =
            timeout(limit, self.client.simple_query(sql)).await.map_err(|_| ClientError::Silent { what, limit })??;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            })
            .collect())
    }

    /// Runs `sql`, which gives one row, and returns its first column.
    ///
    /// # Errors
    /// As [`column`](Self::column), and [`ClientError::Unexpected`] without a row.
    pub async fn value(&self, sql: &str, limit: Duration) -> Result<String, ClientError> {
        let first = self.column(sql, limit).await?.into_iter().next();
        first.ok_or_else(|| ClientError::Unexpected(format!("no row for `{sql}`")))
    }

    /// Returns whether PostgreSQL has said, since the last call, that a commit no longer waits for its standbys: such a commit
    /// is acknowledged with a warning and not covered by any promise.
    pub fn take_wait_cancelled(&self) -> bool {
        self.wait_cancelled.swap(false, Ordering::SeqCst)
    }
}

fn settle(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    // An answer awaited from a machine that died sends nothing, so only probes notice.
    let probes = socket2::TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    socket.set_tcp_keepalive(&probes)
}

/// Builds the TLS side of a client that checks as `mode` says.
///
/// # Errors
/// [`ClientError::Ca`] when certificates are to be checked and `ca` holds none.
pub fn tls_config(mode: SslMode, ca: Option<&Path>) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match mode {
        SslMode::VerifyCa | SslMode::VerifyFull => Some(trusted(ca, &provider)?),
        SslMode::Disable | SslMode::Prefer | SslMode::Require => None,
    };
    let check = Check { verifier, check_name: mode == SslMode::VerifyFull, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers both protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check))
        .with_no_client_auth();
    Ok(config)
}

fn trusted(
    ca: Option<&Path>,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, ClientError> {
    let path = ca.map_or_else(|| "(no file given)".to_owned(), |path| path.display().to_string());
    let wrong = |why: String| ClientError::Ca { path: path.clone(), why };
    let file = ca.ok_or_else(|| wrong("give one with --ca".into()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| wrong(error.to_string()))
}

/// Checks a server as libpq's `sslmode` does.
#[derive(Debug)]
struct Check {
    verifier: Option<Arc<WebPkiServerVerifier>>,
    check_name: bool,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(verifier) = &self.verifier else { return Ok(ServerCertVerified::assertion()) };
        match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is checked before the name, so this error says that the chain is good.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if !self.check_name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

struct Connector {
    tls: Option<Arc<ClientConfig>>,
    host: String,
}

impl TlsConnect<TcpStream> for Connector {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move {
            let config = self.tls.ok_or_else(|| io::Error::other("TLS was turned off"))?;
            let name = ServerName::try_from(self.host).map_err(io::Error::other)?;
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map(Encrypted)
        })
    }
}

struct Encrypted(tokio_rustls::client::TlsStream<TcpStream>);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
