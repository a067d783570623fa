//! Hosts and host:port pairs, as operators write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// An IPv4 address, an IPv6 address or a host name; prints without brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name to be resolved each time it is used.
    Name(String),
}

/// A text is no host or no host:port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no {1}")]
pub struct HostError(pub String, pub &'static str);

impl Host {
    /// Returns whether only this machine can reach it, as far as the text tells: names other than `localhost` are not loopback.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }

    /// Returns whether it stands for every address of the machine (`0.0.0.0`, `::`).
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Ip(ip) if ip.is_unspecified())
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(inner) = bare {
            let ip = inner.parse::<Ipv6Addr>().map_err(|_| HostError(text.to_owned(), "host"))?;
            return Ok(Self::Ip(ip.into()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        let label_is_good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A last label of digits alone is a mistyped IPv4 address (10.0.0.300), never a name.
        let last_is_number =
            text.rsplit('.').next().is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()));
        if text.len() <= 253 && !last_is_number && text.split('.').all(label_is_good) {
            Ok(Self::Name(text.to_ascii_lowercase()))
        } else {
            Err(HostError(text.to_owned(), "host"))
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A host and a port; prints as `host:port`, IPv6 in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host` or `host:port`; without a port it is `default_port`. A bare IPv6 address has no port.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, HostError> {
        if let Ok(host) = text.parse() {
            return Ok(Self { host, port: default_port });
        }
        let bad = || HostError(text.to_owned(), "host or host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let host: Host = host.parse().map_err(|_| bad())?;
        // `::1:7400` reads as an address of its own; with a port, IPv6 needs its brackets.
        Ok(Self { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print_ipv4_ipv6_and_names() {
        for (text, printed) in [
            ("10.0.0.1", "10.0.0.1:7400"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("fd00::1", "[fd00::1]:7400"),
            ("[fd00::1]", "[fd00::1]:7400"),
            ("[fd00::1]:9", "[fd00::1]:9"),
            ("db-1.Example.net", "db-1.example.net:7400"),
            ("db1:7401", "db1:7401"),
        ] {
            assert_eq!(Address::parse(text, 7400).map(|address| address.to_string()), Ok(printed.to_owned()));
        }
        for bad in ["", ":", "a:", "a:0", "a:70000", "10.0.0.300", "-a", "a b", "[fd00::1", "a:b:1", "http://a"] {
            assert!(Address::parse(bad, 1).is_err(), "{bad}");
        }
    }
}
