//! A node's keys and certificates under `<data dir>/tls`.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::ca::{common_name, split_certificates};
use super::{CertificateAuthority, CertificateFacts, ClusterSecret, LeafRequest, NodeIdentity, TlsError, random};
use crate::ha::record::Trust;
use crate::sys::fs::write_durably;

/// Where each file of a node's trust lies; PostgreSQL is pointed at the first three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustPaths {
    /// The folder, mode 0700.
    pub folder: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
    /// The certificates of the authorities that the node accepts, newest first.
    pub ca: PathBuf,
    /// The node's secret for pulses, mode 0600.
    pub pulse_key: PathBuf,
    /// The cluster's secret, mode 0600.
    pub cluster_secret: PathBuf,
}

impl TrustPaths {
    /// Returns the places below a node's data directory.
    pub fn below(data_dir: &Path) -> Self {
        let folder = data_dir.join("tls");
        Self {
            certificate: folder.join("node.crt"),
            key: folder.join("node.key"),
            ca: folder.join("ca.crt"),
            pulse_key: folder.join("pulse.key"),
            cluster_secret: folder.join("cluster.secret"),
            folder,
        }
    }
}

/// The secrets that a node makes itself and that never leave it.
#[derive(Clone)]
pub struct NodeKeys {
    key_pem: Zeroizing<String>,
    pulse_secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKeys(…)")
    }
}

impl NodeKeys {
    /// Draws new ones: ECDSA P-256 for certificates, X25519 for pulses.
    pub fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|source| TlsError::Make { what: "the node's key", source })?;
        Ok(Self { key_pem: Zeroizing::new(key.serialize_pem()), pulse_secret: Zeroizing::new(random()?) })
    }

    /// Returns the keys kept below `data_dir`, or makes and keeps new ones where there are none.
    ///
    /// Keeping them before the first message of a join makes a repeated join recognisable as the same node's.
    pub fn load_or_generate(data_dir: &Path) -> Result<Self, TlsError> {
        let paths = TrustPaths::below(data_dir);
        match (paths.key.exists(), paths.pulse_key.exists()) {
            (true, true) => Self::load(data_dir),
            _ => {
                let keys = Self::generate()?;
                keys.save(data_dir)?;
                Ok(keys)
            }
        }
    }

    /// Reads the keys kept below `data_dir`.
    pub fn load(data_dir: &Path) -> Result<Self, TlsError> {
        let paths = TrustPaths::below(data_dir);
        let pulse = Zeroizing::new(read(&paths.pulse_key)?);
        let pulse = STANDARD.decode(pulse.trim()).ok().map(Zeroizing::new);
        let pulse = pulse.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        let keys = Self {
            key_pem: Zeroizing::new(read(&paths.key)?),
            pulse_secret: Zeroizing::new(
                pulse.ok_or_else(|| damaged("the pulse key", "it is not 32 bytes in base64"))?,
            ),
        };
        keys.key_pair()?;
        Ok(keys)
    }

    /// Writes the keys below `data_dir`, readable by their owner alone.
    pub fn save(&self, data_dir: &Path) -> Result<(), TlsError> {
        let paths = TrustPaths::below(data_dir);
        make_folder(&paths.folder)?;
        write(&paths.key, self.key_pem.as_bytes(), 0o600)?;
        let pulse = Zeroizing::new(format!("{}\n", STANDARD.encode(*self.pulse_secret)));
        write(&paths.pulse_key, pulse.as_bytes(), 0o600)
    }

    /// Returns a signing request, in PEM, that proves ownership of the key.
    pub fn csr(&self) -> Result<String, TlsError> {
        let make = |source| TlsError::Make { what: "a signing request", source };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("hasup-node".into());
        params.serialize_request(&self.key_pair()?).and_then(|csr| csr.pem()).map_err(make)
    }

    /// Returns the public half of the pulse key, which goes into the member's record.
    pub fn pulse_public(&self) -> [u8; 32] {
        PublicKey::from(&self.pulse_secret()).to_bytes()
    }

    /// Returns the secret half of the pulse key.
    pub fn pulse_secret(&self) -> StaticSecret {
        StaticSecret::from(*self.pulse_secret)
    }

    /// Returns the private key as PEM (PKCS#8).
    pub(super) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    fn key_pair(&self) -> Result<KeyPair, TlsError> {
        KeyPair::from_pem(&self.key_pem).map_err(|error| damaged("the node's key", &error.to_string()))
    }
}

/// Everything that makes a node a trusted member.
#[derive(Debug, Clone)]
pub struct NodeTrust {
    /// Its own keys.
    pub keys: NodeKeys,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authorities it accepts, PEM, newest first.
    pub ca_certificates: Vec<String>,
    /// The secret of its cluster.
    pub cluster_secret: ClusterSecret,
}

impl NodeTrust {
    /// Makes the trust of a cluster's first node, and the authority whose record ([`CertificateAuthority::to_trust`]) is to
    /// be replicated. `now` is the wall clock since 1970; `hosts` as in [`LeafRequest`].
    pub fn found_cluster(
        keys: NodeKeys,
        identity: NodeIdentity,
        hosts: Vec<String>,
        now: Duration,
    ) -> Result<(Self, CertificateAuthority), TlsError> {
        let authority = CertificateAuthority::create(&identity.cluster_id, now)?;
        let trust = Self::issued(&authority, keys, ClusterSecret::generate()?, identity, hosts, now)?;
        Ok((trust, authority))
    }

    /// Issues the node a new certificate from its own copy of the cluster's record, with the keys and the secret kept below
    /// `data_dir`: for renewal, and where the certificate is damaged, lost or expired. Nothing is written yet.
    pub fn reissue(
        data_dir: &Path,
        record: &Trust,
        identity: NodeIdentity,
        hosts: Vec<String>,
        now: Duration,
    ) -> Result<Self, TlsError> {
        let secret = load_secret(&TrustPaths::below(data_dir))?;
        let authority = CertificateAuthority::open(record, &secret)?;
        Self::issued(&authority, NodeKeys::load(data_dir)?, secret, identity, hosts, now)
    }

    fn issued(
        authority: &CertificateAuthority,
        keys: NodeKeys,
        cluster_secret: ClusterSecret,
        identity: NodeIdentity,
        hosts: Vec<String>,
        now: Duration,
    ) -> Result<Self, TlsError> {
        let certificate = authority.issue(&LeafRequest { identity, csr: keys.csr()?, hosts }, now)?;
        Ok(Self { keys, certificate, ca_certificates: authority.certificates().to_vec(), cluster_secret })
    }

    /// Tells whether a node's trust has been written below `data_dir` completely.
    pub fn exists(data_dir: &Path) -> bool {
        let paths = TrustPaths::below(data_dir);
        [&paths.certificate, &paths.key, &paths.ca, &paths.pulse_key, &paths.cluster_secret].iter().all(|p| p.exists())
    }

    /// Reads a node's trust; what is missing or damaged is an error that says which file and what to do.
    pub fn load(data_dir: &Path) -> Result<Self, TlsError> {
        let paths = TrustPaths::below(data_dir);
        let trust = Self {
            keys: NodeKeys::load(data_dir)?,
            certificate: read(&paths.certificate)?,
            ca_certificates: split_certificates(&read(&paths.ca)?)?,
            cluster_secret: load_secret(&paths)?,
        };
        trust.facts()?;
        Ok(trust)
    }

    /// Writes all of it below `data_dir`, the certificate last: once that is there, the rest is.
    pub fn save(&self, data_dir: &Path) -> Result<(), TlsError> {
        let paths = TrustPaths::below(data_dir);
        self.keys.save(data_dir)?;
        write(&paths.cluster_secret, self.cluster_secret.to_text().as_bytes(), 0o600)?;
        self.save_certificates(data_dir)
    }

    /// Writes only the certificates, as a renewal does: the key stays, so that no instant leaves a pair that mismatches.
    pub fn save_certificates(&self, data_dir: &Path) -> Result<(), TlsError> {
        let paths = TrustPaths::below(data_dir);
        make_folder(&paths.folder)?;
        write(&paths.ca, self.ca_certificates.concat().as_bytes(), 0o644)?;
        write(&paths.certificate, self.certificate.as_bytes(), 0o644)
    }

    /// Tells whether the certificate was issued by the newest authority: a renewal that was killed between its two files leaves one
    /// of the authority before.
    pub fn is_of_newest_authority(&self) -> Result<bool, TlsError> {
        let newest = self.ca_certificates.first().ok_or_else(|| damaged("the authorities", "there is none"))?;
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string());
        let (leaf, newest) = der(&self.certificate)
            .and_then(|leaf| Ok((leaf, der(newest)?)))
            .map_err(|error| damaged("the node's certificates", &error))?;
        let names = x509_parser::parse_x509_certificate(&leaf).and_then(|(_, leaf)| {
            let (_, newest) = x509_parser::parse_x509_certificate(&newest)?;
            // no two authorities of a cluster share a subject
            Ok(leaf.issuer().as_raw() == newest.subject().as_raw())
        });
        names.map_err(|error| damaged("the node's certificates", &error.to_string()))
    }

    /// Returns what the node's certificate says.
    pub fn facts(&self) -> Result<CertificateFacts, TlsError> {
        CertificateFacts::of_pem(&self.certificate)
    }
}

fn load_secret(paths: &TrustPaths) -> Result<ClusterSecret, TlsError> {
    let text = Zeroizing::new(read(&paths.cluster_secret)?);
    ClusterSecret::from_text(&text).ok_or_else(|| damaged("the cluster's secret", "it is not 32 bytes in base64"))
}

fn make_folder(folder: &Path) -> Result<(), TlsError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| TlsError::File { action: "create the folder", path: folder.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    write_durably(path, bytes, mode).map_err(|source| TlsError::File { action: "write", path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, TlsError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Err(missing(path)),
        Err(source) => return Err(TlsError::File { action: "read", path: path.to_owned(), source }),
    };
    String::from_utf8(bytes).map_err(|_| TlsError::File {
        action: "read",
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, "the file holds no text; restore it, or join again empty"),
    })
}

/// Says what a file of a node's trust is for, now that it is gone.
fn missing(path: &Path) -> TlsError {
    let own = "Put it back from where it was moved to, or from a backup of this node; if it is lost, run `hasup nodes remove` for this \
               node on another member, `hasup destroy` here, and join again";
    let shared = "It is the same on every member: copy it from there, or put it back from a backup. Give it to the user that hasup \
                  runs as, closed to others";
    let (what, cure) = match path.file_name().and_then(|name| name.to_str()) {
        Some("node.key") => ("without its key the node cannot prove to the others who it is", own),
        Some("node.crt") => ("without its certificate the node cannot prove to the others who it is", own),
        Some("pulse.key") => ("without it no other node can tell that a pulse is this node's", own),
        Some("cluster.secret") => {
            ("it opens the cluster's certificate authority, and all passwords follow from it", shared)
        }
        _ => ("without the authorities' certificates the node cannot tell who is a member", shared),
    };
    TlsError::Missing { path: path.to_owned(), what, cure }
}

fn damaged(what: &'static str, because: &str) -> TlsError {
    TlsError::Damaged {
        what,
        because: because.to_owned(),
        cure: "Restore the folder `tls` of this node, or remove the node and join again empty",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn trust_survives_the_disk_with_secrets_closed() {
        let folder = tempfile::tempdir().unwrap();
        let now = Duration::from_secs(1_800_000_000);
        let keys = NodeKeys::load_or_generate(folder.path()).unwrap();
        assert!(!NodeTrust::exists(folder.path()));
        let identity = NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c1".into() };
        let (trust, _) = NodeTrust::found_cluster(keys, identity.clone(), vec![], now).unwrap();
        trust.save(folder.path()).unwrap();
        assert!(NodeTrust::exists(folder.path()));
        let back = NodeTrust::load(folder.path()).unwrap();
        assert_eq!(back.facts().unwrap().identity, identity);
        assert_eq!(back.cluster_secret, trust.cluster_secret);
        assert_eq!(back.keys.pulse_public(), trust.keys.pulse_public());
        assert_eq!(back.ca_certificates, trust.ca_certificates);
        let paths = TrustPaths::below(folder.path());
        for secret in [&paths.key, &paths.pulse_key, &paths.cluster_secret] {
            assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600, "{secret:?}");
        }
        assert_eq!(fs::metadata(&paths.folder).unwrap().permissions().mode() & 0o777, 0o700);
        for path in [&paths.key, &paths.pulse_key, &paths.cluster_secret, &paths.certificate, &paths.ca] {
            let kept = fs::read(path).unwrap();
            for bad in [&b""[..], b"\xff\xfe\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
                fs::write(path, bad).unwrap();
                assert!(NodeTrust::load(folder.path()).is_err(), "{path:?}");
            }
            fs::write(path, kept).unwrap();
        }
        assert!(NodeTrust::load(folder.path()).is_ok());
    }

    #[test]
    fn a_node_with_an_expired_or_lost_certificate_issues_itself_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (now, day) = (Duration::from_secs(1_800_000_000), Duration::from_secs(86_400));
        let identity = NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c1".into() };
        let keys = NodeKeys::load_or_generate(folder.path()).unwrap();
        let (trust, authority) = NodeTrust::found_cluster(keys, identity.clone(), vec![], now).unwrap();
        trust.save(folder.path()).unwrap();
        let record = authority.to_trust(&trust.cluster_secret).unwrap();
        let late = now + 200 * day;
        assert!(trust.facts().unwrap().days_left(late) < 0);
        fs::remove_file(TrustPaths::below(folder.path()).certificate).unwrap();
        let again =
            NodeTrust::reissue(folder.path(), &record, identity.clone(), vec!["10.0.0.1".into()], late).unwrap();
        again.save_certificates(folder.path()).unwrap();
        let facts = NodeTrust::load(folder.path()).unwrap().facts().unwrap();
        assert_eq!((facts.identity.clone(), facts.days_left(late)), (identity, 90));
        assert!(!facts.needs_renewal(late) && facts.needs_renewal(late + 60 * day));
    }

    /// Aim: a renewal may be killed between any two writes. Method: every state of the two files that it leaves, beside a half
    /// file that was not renamed yet, is read as a restart does, and met by members in every other such state.
    #[test]
    fn a_renewal_killed_between_any_two_writes_leaves_whole_files_that_every_member_accepts() {
        let now = crate::sys::clock::wall_now();
        let identity = NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c1".into() };
        let keys = NodeKeys::generate().unwrap();
        let (old, authority) = NodeTrust::found_cluster(keys, identity.clone(), Vec::new(), now).unwrap();
        let imported = CertificateAuthority::create("c1", now).unwrap().trusting_also(authority.certificates());
        let (keys, secret) = (old.keys.clone(), old.cluster_secret.clone());
        let new = NodeTrust::issued(&imported, keys, secret, identity, Vec::new(), now).unwrap();
        let mut states = Vec::new();
        for (ca, certificate) in [(&old, &old), (&new, &old), (&new, &new)] {
            let folder = tempfile::tempdir().unwrap();
            old.save(folder.path()).unwrap();
            let paths = TrustPaths::below(folder.path());
            fs::write(paths.folder.join(".ca.crt.7-0.new"), &new.ca_certificates[0][..9]).unwrap();
            write(&paths.ca, ca.ca_certificates.concat().as_bytes(), 0o644).unwrap();
            write(&paths.certificate, certificate.certificate.as_bytes(), 0o644).unwrap();
            let read = NodeTrust::load(folder.path()).unwrap();
            crate::tls::TlsContext::new(&read).unwrap();
            let is_due = !read.is_of_newest_authority().unwrap() || read.ca_certificates != new.ca_certificates;
            assert_eq!(is_due, certificate.certificate != new.certificate, "what was begun is gone on with");
            states.push(read);
        }
        // the record comes to all before any of them renews, but a member may be slow to: that one knows no new authority yet
        for (at, one) in states.iter().enumerate() {
            for (other_at, other) in states.iter().enumerate() {
                let der = CertificateDer::from_pem_slice(other.certificate.as_bytes()).unwrap();
                let is_accepted = crate::tls::TlsContext::new(one).unwrap().still_trusts(&[der]);
                assert_eq!(is_accepted, at > 0 || other_at < 2, "{at} of {other_at}");
            }
        }
    }

    /// PostgreSQL and libpq read these files by OpenSSL, which checks more than rustls does.
    #[test]
    fn openssl_accepts_the_files_as_server_and_client() {
        let openssl = |arguments: &[&str]| std::process::Command::new("openssl").args(arguments).output();
        if openssl(&["version"]).is_err() {
            eprintln!("SKIPPED: the program `openssl` is missing");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let now = crate::sys::clock::wall_now();
        let former = CertificateAuthority::create("c1", now).unwrap();
        let ca = CertificateAuthority::create("c1", now).unwrap().trusting_also(former.certificates());
        let keys = NodeKeys::generate().unwrap();
        // The longest name there is: longer than the 64 characters that X.509 wants of a CN.
        let identity = NodeIdentity { node: NodeId(1), name: "n".repeat(63).parse().unwrap(), cluster_id: "c1".into() };
        let hosts = vec!["10.1.2.3:5432".into(), "db.example.org".into()];
        let request = LeafRequest { identity, csr: keys.csr().unwrap(), hosts };
        let certificate = ca.issue(&request, now).unwrap();
        let cluster_secret = ClusterSecret::generate().unwrap();
        let trust = NodeTrust { keys, certificate, ca_certificates: ca.certificates().to_vec(), cluster_secret };
        trust.save(folder.path()).unwrap();
        let paths = TrustPaths::below(folder.path());
        let (ca, leaf) = (paths.ca.to_str().unwrap(), paths.certificate.to_str().unwrap());
        for check in [
            ["-purpose", "sslserver", "-verify_ip", "10.1.2.3"],
            ["-purpose", "sslserver", "-verify_hostname", "db.example.org"],
            ["-purpose", "sslclient", "-verify_hostname", "localhost"],
        ] {
            let output = openssl(&[&["verify", "-x509_strict", "-CAfile", ca][..], &check, &[leaf]].concat()).unwrap();
            assert!(output.status.success(), "{check:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let key = openssl(&["pkey", "-in", paths.key.to_str().unwrap(), "-noout"]).unwrap();
        assert!(key.status.success());
    }
}
