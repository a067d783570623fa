//! The joiner's check of the member it talks to.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{CertificateFacts, Fingerprint};

/// Accepts a server only if it proves a node's certificate that was issued by the authority of the given fingerprint.
///
/// The joiner does not know its counterpart's name yet, so any node of that authority will do.
#[derive(Debug)]
pub struct PinnedAuthority {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    /// Returns the check for a token's fingerprint.
    pub fn new(fingerprint: Fingerprint, provider: Arc<CryptoProvider>) -> Self {
        Self { fingerprint, provider }
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|der| Fingerprint::of(der) == self.fingerprint);
        let authority = authority.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        CertificateFacts::of_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("joins speak TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::pem::PemObject;
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::tls::{CertificateAuthority, LeafRequest, NodeIdentity, NodeKeys};
    use crate::types::NodeId;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_certificate_holds_for_joiners_and_members_whose_clocks_are_hours_off_both_ways() {
        let authority = CertificateAuthority::create("c1", NOW).unwrap();
        let identity = NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c1".into() };
        let request = LeafRequest { identity, csr: NodeKeys::generate().unwrap().csr().unwrap(), hosts: Vec::new() };
        let root = CertificateDer::from_pem_slice(authority.certificates()[0].as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pinned = PinnedAuthority::new(authority.fingerprint().unwrap(), provider.clone());
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let members = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        // issued by a member whose clock is that of `issued`, looked at by one whose clock is that of `now`
        let judge = |issued: Duration, now: Duration| {
            let pem = authority.issue(&request, issued).unwrap();
            let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (now, name) = (UnixTime::since_unix_epoch(now), ServerName::try_from("127.0.0.1").unwrap());
            let joiner =
                pinned.verify_server_cert(&leaf, std::slice::from_ref(&root), &name, &[], now).map(|_| ()).err();
            let member = members.verify_client_cert(&leaf, std::slice::from_ref(&root), now).map(|_| ()).err();
            assert_eq!(joiner.is_none(), member.is_none(), "{joiner:?}, {member:?}");
            joiner
        };
        for off in [0, 1, 2, 14] {
            for issued in [NOW - off * HOUR, NOW, NOW + off * HOUR] {
                for now in [NOW - off.min(9) * HOUR, NOW, NOW + off * HOUR] {
                    assert_eq!(judge(issued, now), None, "{off} hours off: {issued:?}, {now:?}");
                }
            }
        }
        let told = |error| {
            matches!(error, Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })))
        };
        assert!(told(judge(NOW, NOW - 25 * HOUR)));
        let told =
            |error| matches!(error, Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
        assert!(told(judge(NOW, NOW + 91 * 24 * HOUR)));
    }
}
