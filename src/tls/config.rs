//! rustls settings, replaced in the running process when certificates change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;

use super::pinned::PinnedAuthority;
use super::{CertificateFacts, Fingerprint, NodeIdentity, NodeTrust, TlsError};
use crate::sys::clock::boot_now;
use crate::types::{BootTime, NodeId};

/// Longer than between two tries of a member that needs another one.
const INVALID_BY_CLOCK_FOR: Duration = Duration::from_secs(15);

/// What a connection to the peer port is for; chosen by ALPN, so that each has its own rules from the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerProtocol {
    /// Raft, proposals and other small requests between members.
    Raft,
    /// Big answers between members (snapshots, files), which must not hold up the small ones.
    Bulk,
    /// A node that is no member yet: it may ask to join and nothing else.
    Join,
}

impl PeerProtocol {
    /// Returns the name in the TLS handshake.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Raft => b"hasup-raft/1",
            Self::Bulk => b"hasup-bulk/1",
            Self::Join => b"hasup-join/1",
        }
    }

    /// Returns the protocol that a client asks for: it must name exactly one, and one that is known.
    pub fn of_client_hello(hello: &ClientHello<'_>) -> Option<Self> {
        let mut asked = hello.alpn()?;
        let first = asked.next()?;
        if asked.next().is_some() {
            return None;
        }
        [Self::Raft, Self::Bulk, Self::Join].into_iter().find(|protocol| protocol.alpn() == first)
    }
}

/// The settings made of one state of a node's trust.
struct Current {
    facts: CertificateFacts,
    members: Arc<dyn ClientCertVerifier>,
    server_raft: Arc<ServerConfig>,
    server_bulk: Arc<ServerConfig>,
    server_join: Arc<ServerConfig>,
    client_raft: Arc<ClientConfig>,
    client_bulk: Arc<ClientConfig>,
}

/// Hands out the rustls settings of a node, always those of its newest certificates.
pub struct TlsContext {
    current: ArcSwap<Current>,
    /// What the API's settings answer with; they themselves never change.
    certified: Arc<ArcSwap<CertifiedKey>>,
    api_server: Arc<ServerConfig>,
    changes: watch::Sender<u64>,
    /// Members whose certificates did not hold by this machine's clock, and when they were dialled.
    invalid_by_clock: Mutex<BTreeMap<NodeId, BootTime>>,
}

impl fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsContext").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl TlsContext {
    /// Returns the settings for a node's trust. An error names what in it does not fit together.
    pub fn new(trust: &NodeTrust) -> Result<Self, TlsError> {
        let certified = Arc::new(ArcSwap::from_pointee(certified_key(trust)?));
        let mut api_server = server_builder(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Newest(certified.clone())));
        without_resumption(&mut api_server);
        api_server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            current: ArcSwap::from_pointee(Current::of(trust)?),
            certified,
            api_server: Arc::new(api_server),
            changes: watch::Sender::new(0),
            invalid_by_clock: Mutex::default(),
        })
    }

    /// Takes new certificates into use: for new connections at once, while kept ones are checked or made again by their
    /// owners. On error the old ones stay in use.
    pub fn reload(&self, trust: &NodeTrust) -> Result<(), TlsError> {
        let certified = certified_key(trust)?;
        self.current.store(Arc::new(Current::of(trust)?));
        self.certified.store(Arc::new(certified));
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Returns a receiver that changes with each reload.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns what the certificate in use says.
    pub fn facts(&self) -> CertificateFacts {
        self.current.load().facts.clone()
    }

    /// Returns whose certificate is in use.
    pub fn identity(&self) -> NodeIdentity {
        self.current.load().facts.identity.clone()
    }

    /// Returns the settings to accept a connection of this kind: TLS 1.3, and a member's certificate but for a join.
    pub fn peer_server(&self, protocol: PeerProtocol) -> Arc<ServerConfig> {
        let current = self.current.load();
        match protocol {
            PeerProtocol::Raft => current.server_raft.clone(),
            PeerProtocol::Bulk => current.server_bulk.clone(),
            PeerProtocol::Join => current.server_join.clone(),
        }
    }

    /// Returns the settings to dial a member for raft or bulk; nobody joins through here, see [`join_client`].
    pub fn peer_client(&self, protocol: MemberProtocol) -> Arc<ClientConfig> {
        let current = self.current.load();
        match protocol {
            MemberProtocol::Raft => current.client_raft.clone(),
            MemberProtocol::Bulk => current.client_bulk.clone(),
        }
    }

    /// Returns the settings of the API's port: TLS 1.2 or newer, no client certificate, follows reloads by itself.
    pub fn api_server(&self) -> Arc<ServerConfig> {
        self.api_server.clone()
    }

    /// Notes how the handshake with `node` ended, as far as clocks go: with a certificate that does not hold now, or well.
    pub fn note_handshake(&self, node: NodeId, ended: Result<(), &io::Error>) {
        let mut invalid = self.invalid_by_clock.lock();
        match ended {
            Ok(()) => drop(invalid.remove(&node)),
            Err(error) if is_invalid_by_clock(error) => drop(invalid.insert(node, boot_now())),
            // says nothing of clocks
            Err(_) => {}
        }
    }

    /// Returns the members whose certificates did not hold by this machine's clock when they were dialled a short while ago: who
    /// cannot connect tries again and again.
    pub fn invalid_by_clock(&self) -> BTreeSet<NodeId> {
        let now = boot_now();
        let dialled = self.invalid_by_clock.lock();
        dialled.iter().filter(|(_, at)| now.since(**at) < INVALID_BY_CLOCK_FOR).map(|(node, _)| *node).collect()
    }

    /// Tells whether a chain that a member once proved would still be accepted now.
    pub fn still_trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        self.current.load().members.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }
}

/// Tells whether a handshake failed as the certificate shown does not hold yet, or no longer.
fn is_invalid_by_clock(error: &io::Error) -> bool {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let refused = refused_certificate(error);
    matches!(refused, Some(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }))
}

/// Returns what is wrong with the certificate that the other side has shown, if that is why a connection failed.
pub fn refused_certificate(error: &io::Error) -> Option<&CertificateError> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(why) => Some(why),
        _ => None,
    }
}

/// The protocols that members speak among each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberProtocol {
    /// See [`PeerProtocol::Raft`].
    Raft,
    /// See [`PeerProtocol::Bulk`].
    Bulk,
}

impl From<MemberProtocol> for PeerProtocol {
    fn from(protocol: MemberProtocol) -> Self {
        match protocol {
            MemberProtocol::Raft => Self::Raft,
            MemberProtocol::Bulk => Self::Bulk,
        }
    }
}

/// Returns the settings of a joiner: TLS 1.3, no certificate of its own, and only the token's authority is accepted.
pub fn join_client(fingerprint: Fingerprint) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Arc::new(PinnedAuthority::new(fingerprint, provider()));
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| TlsError::Settings { action: "set up the join", source })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![PeerProtocol::Join.alpn().to_vec()];
    Ok(Arc::new(client))
}

/// Returns the name to check a member's certificate against.
pub fn server_name(identity: &NodeIdentity) -> Result<ServerName<'static>, TlsError> {
    let name = identity.dns_name();
    ServerName::try_from(name.clone()).map_err(|_| TlsError::Name { name, because: "it is no DNS name" })
}

impl Current {
    fn of(trust: &NodeTrust) -> Result<Self, TlsError> {
        let certified = Arc::new(certified_key(trust)?);
        let resolver = Arc::new(Newest(Arc::new(ArcSwap::new(certified))));
        let mut roots = RootCertStore::empty();
        for pem in &trust.ca_certificates {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
            roots
                .add(der)
                .map_err(|source| TlsError::Settings { action: "trust the certificate authority", source })?;
        }
        let roots = Arc::new(roots);
        // Strangers are not told which authority would do.
        let members = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| damaged(error.to_string()))?;

        let server = |protocol: PeerProtocol| -> Result<Arc<ServerConfig>, TlsError> {
            let builder = server_builder(&[&TLS13])?;
            let mut server = match protocol {
                PeerProtocol::Raft | PeerProtocol::Bulk => builder.with_client_cert_verifier(members.clone()),
                PeerProtocol::Join => builder.with_no_client_auth(),
            }
            .with_cert_resolver(resolver.clone());
            without_resumption(&mut server);
            server.alpn_protocols = vec![protocol.alpn().to_vec()];
            Ok(Arc::new(server))
        };
        let client = |protocol: MemberProtocol| -> Result<Arc<ClientConfig>, TlsError> {
            let mut client = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])
                .map_err(|source| TlsError::Settings { action: "set up the peer client", source })?
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(chain(trust)?, private_key(trust)?)
                .map_err(|source| TlsError::Settings { action: "use the node's certificate", source })?;
            client.resumption = Resumption::disabled();
            client.alpn_protocols = vec![PeerProtocol::from(protocol).alpn().to_vec()];
            Ok(Arc::new(client))
        };
        Ok(Self {
            facts: trust.facts()?,
            server_raft: server(PeerProtocol::Raft)?,
            server_bulk: server(PeerProtocol::Bulk)?,
            server_join: server(PeerProtocol::Join)?,
            client_raft: client(MemberProtocol::Raft)?,
            client_bulk: client(MemberProtocol::Bulk)?,
            members,
        })
    }
}

/// Answers every handshake with the newest certificate.
struct Newest(Arc<ArcSwap<CertifiedKey>>);

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newest")
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// One provider, named here, so that nothing depends on a process-wide default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server_builder(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TlsError> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|source| TlsError::Settings { action: "set up the server", source })
}

/// A resumed session would go on with the certificates of its beginning.
fn without_resumption(server: &mut ServerConfig) {
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
}

/// The node's certificate, then the authorities': a joiner finds the one that its token names among them.
fn chain(trust: &NodeTrust) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pems = std::iter::once(&trust.certificate).chain(&trust.ca_certificates);
    pems.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))).collect()
}

fn private_key(trust: &NodeTrust) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(trust.keys.key_pem().as_bytes()).map_err(|error| damaged(error.to_string()))
}

/// Checks that key and certificate belong together, too.
fn certified_key(trust: &NodeTrust) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain(trust)?, private_key(trust)?, &provider())
        .map_err(|source| TlsError::Settings { action: "use the node's certificate with its key", source })
}

fn damaged(because: String) -> TlsError {
    TlsError::Damaged {
        what: "the node's certificates",
        because,
        cure: "Put back `tls/node.crt` of this node from a backup; if it is lost, remove the node and join again empty",
    }
}
