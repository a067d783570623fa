//! The one table of settings: parser, help, documentation and `config check` all read it.

/// How a setting's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A whole number from 1 to 65535.
    Port,
    /// true or false.
    Bool,
    /// A text, or an array of them; separated by commas in the environment and in flags.
    List,
    /// A table of texts, numbers and booleans; `name=value` separated by commas in the environment and in flags.
    Map,
}

impl Kind {
    /// Returns what a value of this kind looks like, as the end of "use …".
    pub fn cure(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Port => "a whole number from 1 to 65535",
            Self::Bool => "true or false",
            Self::List => "a text in quotes or an array of them",
            Self::Map => "a table like { work_mem = \"16MB\" }",
        }
    }
}

/// A setting of the node file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its key, sections joined by dots. `HASUP_` and this in capitals, dots as underscores, sets it in the environment.
    pub key: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// Its default: the value itself, or in parentheses what it follows from.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

impl Setting {
    /// Returns the environment variable that sets it.
    pub fn env(&self) -> String {
        format!("HASUP_{}", self.key.to_ascii_uppercase().replace('.', "_"))
    }
}

const fn row(key: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { key, kind, default, help }
}

/// Every setting, in the order in which `config check` prints them.
pub const SETTINGS: &[Setting] = &[
    row("node_name", Kind::Text, "(first label of the host name)", "name of this node, unique in the cluster"),
    row(
        "host_ip",
        Kind::Text,
        "(address of the default route)",
        "address that peers and clients use: IPv4, IPv6 or a host name",
    ),
    row("data_dir", Kind::Text, "/var/lib/hasup", "where the node keeps its state"),
    row("run_dir", Kind::Text, "/run/hasup", "where the admin socket is"),
    row("user", Kind::Text, "postgres", "the user that hasup and PostgreSQL run as"),
    row("witness", Kind::Bool, "false", "only vote, hold no PostgreSQL"),
    row("peer.listen", Kind::List, "(host_ip)", "hosts to bind for peers and pulses"),
    row("peer.port", Kind::Port, "7400", "port for peers (TCP) and pulses (UDP)"),
    row(
        "peer.advertise",
        Kind::List,
        "(host_ip)",
        "host or host:port under which peers reach this node, in the order to try",
    ),
    row("api.listen", Kind::List, "(host_ip)", "hosts to bind for the API"),
    row("api.port", Kind::Port, "7401", "port of the API"),
    row("api.advertise", Kind::List, "(host_ip)", "host or host:port under which clients reach the API"),
    row("postgres.bin_dir", Kind::Text, "(found by version)", "folder of PostgreSQL's programs"),
    row("postgres.data_dir", Kind::Text, "(pgdata in data_dir)", "PostgreSQL's data directory"),
    row("postgres.listen", Kind::List, "(host_ip)", "hosts that PostgreSQL binds"),
    row("postgres.port", Kind::Port, "5432", "port that PostgreSQL binds"),
    row("postgres.advertise", Kind::Text, "(host_ip)", "host or host:port under which clients reach PostgreSQL"),
    row(
        "postgres.copy_rate",
        Kind::Text,
        "(no limit)",
        "most that a copy of the database to this node takes in a second, like 50MB",
    ),
    row("postgres.settings", Kind::Map, "{}", "further settings of this node's PostgreSQL"),
    row("log.level", Kind::Text, "info", "error, warn, info, debug, trace, or a filter like info,hasup::pulse=debug"),
    row("log.format", Kind::Text, "text", "text or json"),
    row("balancer.user", Kind::Text, "(none)", "user that a load balancer must show on /api/v3.1/status"),
    row("balancer.password_file", Kind::Text, "(none)", "file whose first line is that user's password"),
];

/// Returns the setting named `key`.
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_variable_is_named_once() {
        for (i, one) in SETTINGS.iter().enumerate() {
            for other in &SETTINGS[i + 1..] {
                assert_ne!(one.key, other.key);
                assert_ne!(one.env(), other.env());
            }
        }
    }
}
