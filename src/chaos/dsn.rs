//! How a client reaches the database: the connection string that `hasup dsn` prints, read as libpq would.
//!
//! Absent: service files, the environment and most of libpq's settings; whatever does not concern the way in is ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// How far the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it, unchecked.
    Prefer,
    /// TLS, unchecked.
    Require,
    /// TLS, issued by the cluster's CA.
    VerifyCa,
    /// TLS, issued by the cluster's CA for the host that was dialled.
    VerifyFull,
}

impl std::str::FromStr for SslMode {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(DsnError(format!(
                    "`{text}` is no sslmode (disable, prefer, require, verify-ca, verify-full)"
                )));
            }
        })
    }
}

impl std::fmt::Display for SslMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// A text is no connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no connection string that can be used: {0}. Use one as `hasup dsn` prints it")]
pub struct DsnError(pub String);

/// A connection string.
#[derive(Clone, PartialEq, Eq)]
pub struct Dsn {
    /// Hosts with their ports, in the order given.
    pub hosts: Vec<(String, u16)>,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// How far the server is checked.
    pub ssl_mode: SslMode,
    /// The CA certificates that it is checked against.
    pub ca: Option<PathBuf>,
    /// A file in libpq's password-file form, or with the bare password.
    pub password_file: Option<PathBuf>,
    /// The password itself, where the string holds it.
    pub password: Option<String>,
}

impl std::fmt::Debug for Dsn {
    /// Prints everything but the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hosts, user, database, ssl_mode, .. } = self;
        write!(f, "Dsn {{ {user} at {hosts:?}, database {database}, sslmode {ssl_mode} }}")
    }
}

impl Dsn {
    /// Parses either form of libpq's connection strings: `postgresql://…` or `key=value …`.
    ///
    /// # Errors
    /// [`DsnError`] naming what is missing or malformed.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        let text = text.trim();
        let uri = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        let mut settings = match uri {
            Some(rest) => uri_settings(rest)?,
            None => keyword_settings(text)?,
        };
        let mut take = |key: &str| settings.remove(key).filter(|value| !value.is_empty());
        let user = take("user").ok_or_else(|| DsnError("it names no user".into()))?;
        let hosts = take("host").or_else(|| take("hostaddr")).ok_or_else(|| DsnError("it names no host".into()))?;
        let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let ports = take("port").unwrap_or_else(|| "5432".into());
        let ports: Vec<u16> = ports
            .split(',')
            .map(|port| if port.is_empty() { Ok(5432) } else { port.parse() })
            .collect::<Result<_, _>>()
            .map_err(|_| DsnError(format!("`{ports}` is no list of ports")))?;
        if ports.len() != 1 && ports.len() != hosts.len() {
            return Err(DsnError(format!("{} ports do not fit {} hosts", ports.len(), hosts.len())));
        }
        let port_of = |index: usize| if ports.len() == 1 { ports[0] } else { ports[index] };
        Ok(Self {
            hosts: hosts.into_iter().enumerate().map(|(index, host)| (host, port_of(index))).collect(),
            database: take("dbname").unwrap_or_else(|| user.clone()),
            user,
            ssl_mode: take("sslmode").map_or(Ok(SslMode::Prefer), |mode| mode.parse())?,
            ca: take("sslrootcert").map(PathBuf::from),
            password_file: take("passfile").map(PathBuf::from),
            password: take("password"),
        })
    }

    /// Returns the password for `host:port` out of the text of a password file: libpq's five fields, or a bare password.
    #[must_use]
    pub fn password_in(&self, file: &str) -> Option<String> {
        let mut bare = None;
        for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields = password_fields(line);
            let [host, port, database, user, password] = fields.as_slice() else {
                bare.get_or_insert_with(|| line.to_owned());
                continue;
            };
            let fits = |field: &str, value: &str| field == "*" || field == value;
            let host_fits = self.hosts.iter().any(|(name, number)| fits(host, name) && fits(port, &number.to_string()));
            if host_fits && fits(database, &self.database) && fits(user, &self.user) {
                return Some(password.clone());
            }
        }
        bare
    }
}

fn password_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        let last = fields.len() - 1;
        match letter {
            '\\' => fields[last].extend(letters.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            other => fields[last].push(other),
        }
    }
    fields
}

fn uri_settings(rest: &str) -> Result<BTreeMap<String, String>, DsnError> {
    let mut settings = BTreeMap::new();
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (who, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = who.split_once(':').unwrap_or((who, ""));
    let mut put = |key: &str, value: &str| -> Result<(), DsnError> {
        if !value.is_empty() {
            settings.insert(key.to_owned(), unescape(value)?);
        }
        Ok(())
    };
    put("user", user)?;
    put("password", password)?;
    put("dbname", database)?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        // An IPv6 address stands in brackets, so that its colons are no port's.
        let (name, port) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':').unwrap_or("")),
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(name);
        ports.push(port);
    }
    put("host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", &ports.join(","))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| DsnError(format!("`{pair}` is no key=value")))?;
        put(key, value)?;
    }
    Ok(settings)
}

fn unescape(text: &str) -> Result<String, DsnError> {
    let wrong = || DsnError(format!("`{text}` is badly escaped"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let digits = rest.get(..2).and_then(|two| std::str::from_utf8(two).ok()).ok_or_else(wrong)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
            rest = &rest[2..];
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn keyword_settings(text: &str) -> Result<BTreeMap<String, String>, DsnError> {
    let mut settings = BTreeMap::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(settings);
        }
        let mut key = String::new();
        while let Some(letter) = letters.next_if(|letter| *letter != '=') {
            key.push(letter);
        }
        if letters.next().is_none() {
            return Err(DsnError(format!("`{}` has no value", key.trim())));
        }
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match letters.next() {
                Some('\\') => value.extend(letters.next()),
                Some('\'') if quoted => break,
                Some(letter) if !quoted && letter.is_whitespace() => break,
                Some(letter) => value.push(letter),
                None if quoted => return Err(DsnError(format!("the value of {} does not end", key.trim()))),
                None => break,
            }
        }
        settings.insert(key.trim().to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let uri = "postgresql://app@127.0.0.1:5001,127.0.0.2:5001/shop?target_session_attrs=read-write&sslmode=verify-full\
                   &sslrootcert=%2Fvar%2Flib%2Fca.crt&passfile=/var/lib/pass";
        let keywords = "host=127.0.0.1,127.0.0.2 port=5001,5001 user=app dbname='shop' sslmode=verify-full \
                        sslrootcert=/var/lib/ca.crt passfile=/var/lib/pass target_session_attrs=read-write";
        let dsn = Dsn::parse(uri).unwrap();
        assert_eq!(Dsn::parse(keywords), Ok(dsn.clone()));
        assert_eq!(dsn.hosts, [("127.0.0.1".to_owned(), 5001), ("127.0.0.2".to_owned(), 5001)]);
        assert_eq!((dsn.user.as_str(), dsn.database.as_str()), ("app", "shop"));
        assert_eq!(dsn.ssl_mode, SslMode::VerifyFull);
        assert_eq!(dsn.ca, Some(PathBuf::from("/var/lib/ca.crt")));
    }

    #[test]
    fn ipv6_and_one_port_for_all_hosts() {
        let dsn = Dsn::parse("postgres://app@[::1]:6000,[fe80::2]:6001/").unwrap();
        assert_eq!(dsn.hosts, [("::1".to_owned(), 6000), ("fe80::2".to_owned(), 6001)]);
        let dsn = Dsn::parse("host=a,b,c user=app port=7").unwrap();
        assert_eq!(dsn.hosts.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [7, 7, 7]);
        assert_eq!(dsn.database, "app");
    }

    #[test]
    fn damaged_strings_are_refused_and_never_panic() {
        for bad in
            ["", "app", "postgresql://", "host=a", "user='x host=a", "host=a,b,c port=1,2 user=u", "postgres://u@h/%4"]
        {
            assert!(Dsn::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_file_is_libpq_s_or_the_bare_password() {
        let dsn = Dsn::parse("host=127.0.0.1 port=5001 user=app dbname=shop").unwrap();
        assert_eq!(dsn.password_in("# x\nother:*:*:app:no\n*:5001:shop:app:a\\:b\n"), Some("a:b".to_owned()));
        assert_eq!(dsn.password_in("bare\n"), Some("bare".to_owned()));
        assert_eq!(dsn.password_in("*:*:*:nobody:x\n"), None);
    }

    #[test]
    fn a_password_is_never_printed() {
        let dsn = Dsn::parse("host=a user=app password=hidden").unwrap();
        assert_eq!(dsn.password.as_deref(), Some("hidden"));
        assert!(!format!("{dsn:?}").contains("hidden"));
    }
}
