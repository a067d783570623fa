//! The cluster's certificate authority.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber,
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{ClusterSecret, TlsError, issue, random};
use crate::ha::record::Trust;

/// More than of what it issues: a member with a clock behind the founder's issues certificates that begin before the founder's.
const BACKDATED: Duration = issue::BACKDATED.saturating_mul(2);
/// Ten years; renewal is an overlap of two authorities, so a long life costs nothing but trust in one key.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The first byte of a sealed key.
const SEAL_FORMAT: u8 = 1;
/// Separates this use of the cluster's secret from all others.
const SEAL_CONTEXT: &str = "hasup 2026 certificate authority key";

/// SHA-256 of a certificate: what a join token carries, and what `start` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    /// Prints as `openssl x509 -fingerprint -sha256` does: `AB:CD:…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The cluster's certificate authority with its key in the open, held only while something is issued.
pub struct CertificateAuthority {
    /// PEM of the certificates that members accept, newest first; the key belongs to the first.
    certificates: Vec<String>,
    key: KeyPair,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("certificates", &self.certificates.len()).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new authority for the cluster, valid from two days before `now` (wall clock since 1970) for ten years.
    pub fn create(cluster_id: &str, now: Duration) -> Result<Self, TlsError> {
        let make = |source| TlsError::Make { what: "the cluster's certificate authority", source };
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        // Two authorities of one cluster must not share a subject: OpenSSL finds an issuer by it.
        let tag: String = serial[1..5].iter().map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = common_name(format!("hasup CA {tag} of {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = calendar(now.saturating_sub(BACKDATED));
        params.not_after = calendar(now + LIFE);
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Self { certificates: vec![certificate.pem()], key })
    }

    /// Returns the authority that the replicated record holds, its key unsealed by the cluster's secret.
    pub fn open(trust: &Trust, secret: &ClusterSecret) -> Result<Self, TlsError> {
        let key = unseal(&trust.sealed_ca_key, secret)?;
        let key = KeyPair::try_from(key.as_slice()).map_err(|error| damaged_key(error.to_string()))?;
        Self::of_parts(trust.ca_certificates.clone(), key)
    }

    /// Returns the record to replicate: certificates in the open, the key sealed by the cluster's secret.
    pub fn to_trust(&self, secret: &ClusterSecret) -> Result<Trust, TlsError> {
        Ok(Trust {
            ca_certificates: self.certificates.clone(),
            sealed_ca_key: seal(self.key.serialized_der(), secret)?,
        })
    }

    /// Returns certificates and *unprotected* key as one PEM text, for the operator to keep in a safe place.
    pub fn export(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(self.key.serialize_pem());
        let mut bundle = Zeroizing::new(String::new());
        self.certificates.iter().for_each(|certificate| bundle.push_str(certificate));
        bundle.push_str(&key);
        bundle
    }

    /// Returns the authority that [`export`](Self::export) wrote; the key must belong to the first certificate.
    pub fn import(bundle: &str) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(private_key_block(bundle)?).map_err(|error| damaged_key(error.to_string()))?;
        let certificates = split_certificates(bundle)?;
        Self::of_parts(certificates, key)
    }

    /// Returns this authority as the newest, while members go on accepting certificates of `older` ones.
    #[must_use]
    pub fn trusting_also(mut self, older: &[String]) -> Self {
        for certificate in older {
            if !self.certificates.contains(certificate) {
                self.certificates.push(certificate.clone());
            }
        }
        self
    }

    /// Returns the PEM of the certificates that members accept, newest first.
    pub fn certificates(&self) -> &[String] {
        &self.certificates
    }

    /// Returns the fingerprint of the newest certificate, the one that new certificates are issued by.
    pub fn fingerprint(&self) -> Result<Fingerprint, TlsError> {
        fingerprint_of_pem(&self.certificates[0])
    }

    /// Returns the key that signs.
    pub(super) fn key(&self) -> &KeyPair {
        &self.key
    }

    fn of_parts(certificates: Vec<String>, key: KeyPair) -> Result<Self, TlsError> {
        let newest = certificates.first().ok_or_else(|| damaged_ca("there is no certificate".into()))?;
        let der = CertificateDer::from_pem_slice(newest.as_bytes()).map_err(|error| damaged_ca(error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| damaged_ca(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(damaged_ca("the first certificate is no authority's".into()));
        }
        if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
            return Err(damaged_ca("the key does not belong to the first certificate".into()));
        }
        Ok(Self { certificates, key })
    }
}

/// Returns the fingerprint of the first certificate in a PEM text.
pub fn fingerprint_of_pem(pem: &str) -> Result<Fingerprint, TlsError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged_ca(error.to_string()))?;
    Ok(Fingerprint::of(&der))
}

/// Returns each certificate of a PEM text as a PEM text of its own, in their order.
pub fn split_certificates(pem: &str) -> Result<Vec<String>, TlsError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = certificate.map_err(|error| damaged_ca(error.to_string()))?;
        x509_parser::parse_x509_certificate(&der).map_err(|error| damaged_ca(error.to_string()))?;
        certificates.push(certificate_pem(&der));
    }
    match certificates.is_empty() {
        true => Err(damaged_ca("there is no certificate in it".into())),
        false => Ok(certificates),
    }
}

/// Returns a 16-byte positive serial number with a fixed first byte, so that its encoding needs no padding.
pub(super) fn serial() -> Result<[u8; 16], TlsError> {
    let mut serial = random::<16>()?;
    serial[0] = 0x51;
    Ok(serial)
}

/// Returns a subject that is a common name and nothing else.
pub(super) fn common_name(name: String) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// Returns a time since 1970 as a calendar date; a clock beyond the calendar counts as its last day.
pub(super) fn calendar(since_1970: Duration) -> OffsetDateTime {
    i64::try_from(since_1970.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::new_utc(time::Date::MAX, time::Time::MIDNIGHT))
}

fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// rcgen reads a key only from a text that begins with it.
fn private_key_block(bundle: &str) -> Result<&str, TlsError> {
    const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
    const END: &str = "-----END PRIVATE KEY-----";
    let missing = || damaged_key("there is no PKCS#8 private key in it".into());
    let from = bundle.find(BEGIN).ok_or_else(missing)?;
    let length = bundle[from..].find(END).ok_or_else(missing)? + END.len();
    Ok(&bundle[from..from + length])
}

fn sealing_key(secret: &ClusterSecret) -> LessSafeKey {
    let key = secret.derive(SEAL_CONTEXT);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).expect("the cipher takes keys of 32 bytes"))
}

/// Format byte, nonce, sealed bytes with tag.
fn seal(plain: &[u8], secret: &ClusterSecret) -> Result<Vec<u8>, TlsError> {
    let nonce = random::<NONCE_LEN>()?;
    let mut body = plain.to_vec();
    sealing_key(secret)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from([SEAL_FORMAT]), &mut body)
        .expect("the cipher seals anything below its limit of gigabytes");
    let mut sealed = vec![SEAL_FORMAT];
    sealed.extend_from_slice(&nonce);
    sealed.append(&mut body);
    Ok(sealed)
}

fn unseal(sealed: &[u8], secret: &ClusterSecret) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let (format, rest) = sealed.split_first().ok_or(TlsError::Unseal)?;
    let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(TlsError::Unseal)?;
    if *format != SEAL_FORMAT {
        return Err(TlsError::Unseal);
    }
    let mut body = Zeroizing::new(body.to_vec());
    let length = sealing_key(secret)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from([SEAL_FORMAT]), &mut body)
        .map_err(|_| TlsError::Unseal)?
        .len();
    body.truncate(length);
    Ok(body)
}

fn damaged_ca(because: String) -> TlsError {
    TlsError::Damaged {
        what: "the certificate authority",
        because,
        cure: "Use the text that `hasup ca export` wrote, or take `tls/ca.crt` from another member",
    }
}

fn damaged_key(because: String) -> TlsError {
    TlsError::Damaged {
        what: "the certificate authority's key",
        because,
        cure: "Use the text that `hasup ca export` wrote",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn sealed_authority_opens_only_under_its_secret() {
        let secret = ClusterSecret::generate().unwrap();
        let made = CertificateAuthority::create("c1", NOW).unwrap();
        let trust = made.to_trust(&secret).unwrap();
        let opened = CertificateAuthority::open(&trust, &secret).unwrap();
        assert_eq!(opened.certificates(), made.certificates());
        assert_eq!(opened.key.serialized_der(), made.key.serialized_der());
        let other = ClusterSecret::generate().unwrap();
        assert!(matches!(CertificateAuthority::open(&trust, &other), Err(TlsError::Unseal)));
        assert_ne!(trust.sealed_ca_key, made.to_trust(&secret).unwrap().sealed_ca_key, "nonces repeat");
        for cut in 0..trust.sealed_ca_key.len() {
            let mut short = trust.clone();
            short.sealed_ca_key.truncate(cut);
            assert!(CertificateAuthority::open(&short, &secret).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn exported_authority_imports_with_its_overlap() {
        let old = CertificateAuthority::create("c1", NOW).unwrap();
        let new = CertificateAuthority::create("c1", NOW).unwrap().trusting_also(old.certificates());
        let back = CertificateAuthority::import(&new.export()).unwrap();
        assert_eq!(back.certificates(), new.certificates());
        assert_eq!(back.certificates().len(), 2);
        assert_eq!(back.fingerprint().unwrap(), new.fingerprint().unwrap());
    }

    #[test]
    fn import_refuses_what_does_not_belong_together() {
        let one = CertificateAuthority::create("c1", NOW).unwrap();
        let two = CertificateAuthority::create("c1", NOW).unwrap();
        let mixed = format!("{}{}", one.certificates()[0], two.key.serialize_pem());
        assert!(CertificateAuthority::import(&mixed).unwrap_err().to_string().contains("does not belong"));
        for bad in ["", "nonsense", one.certificates()[0].as_str(), one.key.serialize_pem().as_str()] {
            assert!(CertificateAuthority::import(bad).is_err());
        }
    }
}
