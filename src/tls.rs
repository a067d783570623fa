//! Trust: the cluster's certificate authority, the certificates of its nodes, and the rustls settings made of them.
//!
//! ```text
//! ca.rs      the authority: make, seal into the replicated record, unseal, export, import
//! issue.rs   one node's certificate from its signing request; which names it carries
//! facts.rs   what a certificate says: whose it is, until when
//! store.rs   a node's keys and certificates under <data dir>/tls
//! config.rs  rustls settings, replaced in the running process when certificates change
//! pinned.rs  the joiner's check: whoever answers must be issued by the authority that the token names
//! secret.rs  the cluster's secret, a type that prints nothing
//! ```
//!
//! Decisions and their price:
//! - Every member holds the cluster's secret and the sealed authority, so every member can issue, its own renewal included:
//!   a node whose certificate expired while it was off gets a new one from its own copy of the record. The price: who takes
//!   one member's disk can issue for the cluster, as with every key that has to be online on each node.
//! - A certificate names the node by name *and* number. A removed node's certificate stays worthless when another node
//!   later joins under the same name.
//! - One certificate per node serves peers, the API and PostgreSQL (as server and, by its CN, as client).
//!
//! Absent on purpose: revocation lists (membership decides, at each request), session resumption (it would outlive a
//! change of trust), passphrases.

pub mod ca;
pub mod config;
pub mod facts;
pub mod issue;
pub mod pinned;
pub mod secret;
pub mod store;

use std::io;
use std::path::PathBuf;

pub use ca::{CertificateAuthority, Fingerprint};
pub use config::{PeerProtocol, TlsContext};
pub use facts::{CertificateFacts, NodeIdentity};
pub use issue::{LeafRequest, host_of};
pub use secret::ClusterSecret;
pub use store::{NodeKeys, NodeTrust};

/// Trust could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key could not be made.
    #[error("make {what}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// Why it could not.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate, key or request does not read.
    #[error("{what} is damaged or of another kind: {because}. {cure}")]
    Damaged {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        because: String,
        /// What to do.
        cure: &'static str,
    },
    /// The authority's key does not open under the cluster's secret.
    #[error(
        "the certificate authority's key does not open under this node's cluster secret: the secret file or the record is \
         another cluster's, or damaged. No certificate can be issued here; restore `tls/cluster.secret` from another member"
    )]
    Unseal,
    /// A name must not stand in a certificate.
    #[error("`{name}` cannot stand in a node's certificate: {because}. Give an IP address or a DNS name")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        because: &'static str,
    },
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that the node cannot do without is gone.
    #[error(
        "{} is missing: {what}. Nothing was changed, and the node cannot start. {cure}", path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What the node cannot do without it.
        what: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// rustls does not accept the settings.
    #[error("{action}")]
    Settings {
        /// What was being set up.
        action: &'static str,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The system gave no random numbers.
    #[error("the system gave no random numbers; nothing was made")]
    Random,
}

/// Fills `N` bytes from the system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], TlsError> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| TlsError::Random)?;
    Ok(bytes)
}
