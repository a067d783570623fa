//! Issues a node's certificate.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::ca::{calendar, common_name, serial};
use super::facts::RESERVED;
use super::{CertificateAuthority, NodeIdentity, TlsError};

/// A clock that is behind must accept a certificate that was issued just now: an hour where nobody keeps it, up to fourteen
/// where the hardware's clock shows local time and is taken for UTC.
pub(super) const BACKDATED: Duration = Duration::from_secs(24 * 3600);
/// Ninety days, renewed after sixty.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What a node's certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRequest {
    /// Whose certificate it is.
    pub identity: NodeIdentity,
    /// The node's signing request in PEM; only its public key is used, and its owner must have signed it.
    pub csr: String,
    /// Addresses and extra names under which the node is reached: IP addresses or DNS names, with or without `:port`.
    pub hosts: Vec<String>,
}

impl CertificateAuthority {
    /// Issues a certificate, in PEM, valid from a day before `now` (wall clock since 1970) for 90 days.
    ///
    /// Subject CN is `hasup-node-<name>`, by which PostgreSQL maps it; it serves as server and client. A host that is
    /// neither an address nor a DNS name, or lies in the reserved `.hasup`, is refused.
    pub fn issue(&self, request: &LeafRequest, now: Duration) -> Result<String, TlsError> {
        let csr =
            CertificateSigningRequestParams::from_pem(&request.csr).map_err(|error| bad_csr(error.to_string()))?;
        if PublicKeyData::algorithm(&csr.public_key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(bad_csr("its key is not ECDSA P-256".into()));
        }
        let make = |source| TlsError::Make { what: "a node certificate", source };
        let newest = &self.certificates()[0];
        let issuer = Issuer::from_ca_cert_pem(newest, self.key()).map_err(make)?;

        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(format!("hasup-node-{}", request.identity.name));
        params.subject_alt_names = subject_names(request)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        params.not_before = calendar(now.saturating_sub(BACKDATED));
        // Nobody accepts it beyond its issuer's end; saying so makes renewal come in time.
        params.not_after = calendar(now + LIFE).min(end_of(newest).unwrap_or(calendar(now + LIFE)));
        Ok(params.signed_by(&csr.public_key, &issuer).map_err(make)?.pem())
    }
}

/// Returns the host part of `host`, `host:port`, `[v6]` or `[v6]:port`, without an IPv6 zone.
pub fn host_of(address: &str) -> &str {
    let bare = match address.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
        // More than one colon outside brackets is an IPv6 address without port.
        None if address.matches(':').count() > 1 => address,
        None => address.split_once(':').map_or(address, |(host, _)| host),
    };
    bare.split_once('%').map_or(bare, |(host, _)| host)
}

fn subject_names(request: &LeafRequest) -> Result<Vec<SanType>, TlsError> {
    let cluster = &request.identity.cluster_id;
    if cluster.parse::<crate::types::NodeName>().is_err() {
        return Err(TlsError::Name { name: cluster.clone(), because: "a cluster's id is one DNS label" });
    }
    let mut names = vec![request.identity.dns_name(), request.identity.number_dns_name(), "localhost".to_owned()];
    // operators call a node by it, where it is known as a host
    let short = request.identity.name.to_string().to_ascii_lowercase();
    if short != RESERVED && !names.contains(&short) && rustls::pki_types::DnsName::try_from(short.as_str()).is_ok() {
        names.push(short);
    }
    for host in &request.hosts {
        let host = host_of(host).trim_end_matches('.').to_ascii_lowercase();
        if host.parse::<IpAddr>().is_err() {
            if host == RESERVED || host.ends_with(&format!(".{RESERVED}")) {
                return Err(TlsError::Name {
                    name: host,
                    because: "names below `.hasup` are given out by hasup alone",
                });
            }
            if rustls::pki_types::DnsName::try_from(host.as_str()).is_err() {
                return Err(TlsError::Name { name: host, because: "it is neither an IP address nor a DNS name" });
            }
        }
        if !names.contains(&host) {
            names.push(host);
        }
    }
    let params =
        CertificateParams::new(names).map_err(|source| TlsError::Make { what: "a node certificate", source })?;
    Ok(params.subject_alt_names)
}

fn end_of(certificate_pem: &str) -> Option<time::OffsetDateTime> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    time::OffsetDateTime::from_unix_timestamp(parsed.validity().not_after.timestamp()).ok()
}

fn bad_csr(because: String) -> TlsError {
    TlsError::Damaged { what: "the signing request", because, cure: "Let the node make its keys anew and ask again" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::facts::certificate_names;
    use crate::tls::{CertificateFacts, NodeKeys};
    use crate::types::NodeId;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn request(hosts: &[&str]) -> LeafRequest {
        LeafRequest {
            identity: NodeIdentity { node: NodeId(3), name: "n3".parse().unwrap(), cluster_id: "5c1d-9".into() },
            csr: NodeKeys::generate().unwrap().csr().unwrap(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        }
    }

    #[test]
    fn issued_certificate_names_its_node_and_hosts() {
        let ca = CertificateAuthority::create("5c1d-9", NOW).unwrap();
        let wanted = request(&["10.0.0.3:7400", "[fd00::3]:7400", "db3.example.org", "DB3.example.org:5432"]);
        let pem = ca.issue(&wanted, NOW).unwrap();
        let facts = CertificateFacts::of_pem(&pem).unwrap();
        assert_eq!(facts.identity, wanted.identity);
        assert_eq!(facts.not_before, NOW - BACKDATED);
        assert_eq!(facts.not_after, NOW + LIFE);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=hasup-node-n3");
        let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        let named =
            |hosts: &[&str]| certificate_names(&pem, &hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>());
        assert!(named(&["10.0.0.3:7400", "[fd00::3]:7401", "DB3.example.org."]).unwrap());
        assert!(!named(&["10.0.0.3:7400", "10.0.0.4:7400"]).unwrap() && !named(&["fd00::4"]).unwrap());
        assert!(!named(&["db4.example.org"]).unwrap());
        assert!(named(&["n3"]).unwrap() && !named(&["n4"]).unwrap());
        assert_eq!(names, 7, "two of the cluster, localhost, its own, two addresses, one host name once");
    }

    #[test]
    fn a_node_cannot_get_another_nodes_name() {
        let ca = CertificateAuthority::create("5c1d-9", NOW).unwrap();
        for bad in ["n1.5c1d-9.hasup", "N1.5c1d-9.HASUP:7400", "n1.5c1d-9.hasup.", "hasup", "a b", ""] {
            assert!(matches!(ca.issue(&request(&[bad]), NOW), Err(TlsError::Name { .. })), "{bad}");
        }
        let mut damaged = request(&[]);
        damaged.csr = damaged.csr.replace('A', "B");
        assert!(ca.issue(&damaged, NOW).is_err());
    }

    #[test]
    fn certificate_does_not_outlive_its_authority() {
        let ca = CertificateAuthority::create("5c1d-9", NOW).unwrap();
        let late = NOW + Duration::from_secs(3640 * 86_400);
        let facts = CertificateFacts::of_pem(&ca.issue(&request(&[]), late).unwrap()).unwrap();
        assert!(facts.days_left(late) <= 10, "{facts:?}");
    }

    #[test]
    fn host_is_found_in_every_form_of_address() {
        for (address, host) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:7400", "10.0.0.1"),
            ("db:7400", "db"),
            ("[fd00::1]:7400", "fd00::1"),
            ("[fe80::1%eth0]:7400", "fe80::1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(host_of(address), host, "{address}");
        }
    }
}
