//! What a certificate says.

use std::net::IpAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use super::TlsError;
use super::issue::host_of;
use crate::types::{NodeId, NodeName};

/// The top label of all names that only the cluster's authority gives out.
pub(super) const RESERVED: &str = "hasup";
/// Marks the name that carries a node's number.
const NUMBER_LABEL: &str = "node-id";

/// Whose certificate it is: both names that only the authority gives out, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node's number.
    pub node: NodeId,
    /// The node's name.
    pub name: NodeName,
    /// The cluster that it is a node of.
    pub cluster_id: String,
}

impl NodeIdentity {
    /// Returns the name under which peers check the node: `<name>.<cluster id>.hasup`.
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{RESERVED}", self.name, self.cluster_id)
    }

    /// Returns the name that carries the number: `<number>.node-id.<cluster id>.hasup`.
    pub fn number_dns_name(&self) -> String {
        format!("{}.{NUMBER_LABEL}.{}.{RESERVED}", self.node, self.cluster_id)
    }

    /// Returns the identity that these DNS names of one certificate state: exactly one of each kind, of one cluster.
    fn of_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let (mut named, mut numbered) = (None, None);
        for name in names {
            let labels: Vec<&str> = name.split('.').collect();
            let seen_before = match labels.as_slice() {
                [name, cluster, RESERVED] => named.replace((*name, *cluster)).is_some(),
                [number, NUMBER_LABEL, cluster, RESERVED] => numbered.replace((*number, *cluster)).is_some(),
                [.., RESERVED] => return Err(format!("it carries the reserved name `{name}`")),
                _ => false,
            };
            if seen_before {
                return Err("it names more than one node".into());
            }
        }
        let (Some((name, cluster)), Some((number, same_cluster))) = (named, numbered) else {
            return Err("it does not name a node of a hasup cluster".into());
        };
        if cluster != same_cluster {
            return Err("it names two clusters".into());
        }
        Ok(Self {
            node: NodeId(number.parse().map_err(|_| format!("`{number}` is no node number"))?),
            name: name.parse().map_err(|error| format!("{error}"))?,
            cluster_id: cluster.to_owned(),
        })
    }
}

/// What a node's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is.
    pub identity: NodeIdentity,
    /// Wall clock since 1970 from which it is valid.
    pub not_before: Duration,
    /// Wall clock since 1970 until which it is valid.
    pub not_after: Duration,
}

impl CertificateFacts {
    /// Reads a node's certificate in DER.
    pub fn of_der(der: &[u8]) -> Result<Self, TlsError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| damaged(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| damaged(error.to_string()))?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        let seconds =
            |time: x509_parser::time::ASN1Time| Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
        Ok(Self {
            identity: NodeIdentity::of_names(names).map_err(damaged)?,
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
        })
    }

    /// Reads the first certificate of a PEM text.
    pub fn of_pem(pem: &str) -> Result<Self, TlsError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        Self::of_der(&der)
    }

    /// Tells whether two thirds of its life have passed at `now` (wall clock since 1970).
    pub fn needs_renewal(&self, now: Duration) -> bool {
        let life = self.not_after.saturating_sub(self.not_before);
        now >= self.not_before + life * 2 / 3
    }

    /// Tells whether its life has begun at `now`. If not, the clock that issued it was wrong, or this machine's is.
    pub fn has_begun(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    /// Returns the whole days it is still valid at `now`; negative once it has expired.
    pub fn days_left(&self, now: Duration) -> i64 {
        let (end, now) = (self.not_after.as_secs(), now.as_secs());
        let days = |seconds: u64| i64::try_from(seconds / 86_400).unwrap_or(i64::MAX);
        if end >= now { days(end - now) } else { -1 - days(now - end) }
    }
}

/// Tells whether a certificate in PEM holds under every one of `hosts`: IP addresses or DNS names, with or without `:port`.
pub fn certificate_names(pem: &str, hosts: &[String]) -> Result<bool, TlsError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| damaged(error.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|error| damaged(error.to_string()))?;
    let names: Vec<&GeneralName> = names.iter().flat_map(|extension| &extension.value.general_names).collect();
    Ok(hosts.iter().all(|host| {
        let host = host_of(host).trim_end_matches('.');
        let octets = host.parse::<IpAddr>().ok().map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        names.iter().any(|name| match (name, &octets) {
            (GeneralName::IPAddress(named), Some(octets)) => named == octets,
            (GeneralName::DNSName(named), None) => named.eq_ignore_ascii_case(host),
            _ => false,
        })
    }))
}

fn damaged(because: String) -> TlsError {
    TlsError::Damaged {
        what: "the node certificate",
        because,
        cure: "Put back `tls/node.crt` of this node from a backup; if it is lost, remove the node and join again empty",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_read_back_from_its_names_and_nothing_else() {
        let identity = NodeIdentity { node: NodeId(7), name: "n1".parse().unwrap(), cluster_id: "5c1d".into() };
        let (name, number) = (identity.dns_name(), identity.number_dns_name());
        let read = |names: &[&str]| NodeIdentity::of_names(names.iter().copied());
        assert_eq!(read(&["localhost", &name, "db.example.org", &number]), Ok(identity));
        for bad in [
            vec![],
            vec!["localhost"],
            vec![name.as_str()],
            vec![number.as_str()],
            vec![&name, &number, "n2.5c1d.hasup"],
            vec![&name, &number, "8.node-id.5c1d.hasup"],
            vec![&name, &number, "x.y.z.hasup"],
            vec![&name, "7.node-id.other.hasup"],
            vec!["N1.5c1d.hasup", &number],
            vec![&name, "seven.node-id.5c1d.hasup"],
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn renewal_is_due_at_two_thirds_of_life() {
        let day = Duration::from_secs(86_400);
        let facts = CertificateFacts {
            identity: NodeIdentity { node: NodeId(1), name: "n1".parse().unwrap(), cluster_id: "c".into() },
            not_before: 100 * day,
            not_after: 190 * day,
        };
        assert!(!facts.needs_renewal(100 * day) && !facts.needs_renewal(159 * day));
        assert!(!facts.has_begun(99 * day) && !facts.needs_renewal(99 * day) && facts.has_begun(100 * day));
        assert!(facts.needs_renewal(160 * day));
        assert_eq!(facts.days_left(100 * day), 90);
        assert_eq!(facts.days_left(190 * day), 0);
        assert_eq!(facts.days_left(190 * day + Duration::from_secs(1)), -1);
    }
}
