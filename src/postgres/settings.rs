//! Renders PostgreSQL's settings. Pure: values in, the text of the files out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout::Layout;
use crate::config::is_owned;
use crate::ha::record::{CommitSet, DataMember};
use crate::types::{Generation, NodeName};

/// The role under which standbys stream and databases are copied. It is shut out while names change (L18).
pub const REPLICATION_ROLE: &str = "hasup_replication";
/// The role under which log is fetched from another standby (L12). It is never shut out: who shut the other one out may be lost, and
/// a standby cannot let it in again.
pub const FETCH_ROLE: &str = "hasup_fetch";
/// The role under which `pg_rewind` reads.
pub const REWIND_ROLE: &str = "hasup_rewind";
/// The superuser of clusters that hasup makes, reached over the local socket alone.
pub const SUPERUSER: &str = "postgres";
/// A standby name that nobody bears: commits wait (L15).
pub const NOBODY: &str = "hasup_nobody";

/// Certificate, key and CA of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslPaths {
    /// Its certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable by PostgreSQL's user alone.
    pub key: PathBuf,
    /// The cluster's CA certificates, PEM.
    pub ca: PathBuf,
}

/// What changes only with a restart or an operator's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticSettings {
    /// The port, also of the local socket's name.
    pub port: u16,
    /// Addresses to listen on; `*` for all.
    pub listen_addresses: Vec<String>,
    /// Whether the log carries what logical decoding needs.
    pub logical: bool,
    /// The node's certificate.
    pub ssl: SslPaths,
    /// How much log is kept for standbys that were away, in MiB.
    pub wal_keep_mib: u32,
    /// How much log is kept at the most for members that are away, in MiB; more than that is never kept for anybody.
    pub slot_keep_mib: u32,
    /// The operating system's user that runs hasup and so is the superuser over the local socket.
    pub local_user: String,
    /// More settings, which cannot override hasup's own.
    pub extra: BTreeMap<String, String>,
}

/// What counts for a cluster that hasup adopted, on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Folders in which its local clients look for a socket.
    pub socket_dirs: Vec<PathBuf>,
}

/// How many WAL senders and replication slots a server has at least.
pub(super) const SENDERS_AND_SLOTS_MIN: u64 = 16;

/// Returns the folders of PostgreSQL's sockets: hasup's own first.
pub(super) fn socket_dirs(layout: &Layout, adopted: Option<&Adopted>) -> Vec<PathBuf> {
    let theirs = adopted.into_iter().flat_map(|adopted| adopted.socket_dirs.iter().cloned());
    std::iter::once(layout.socket_dir()).chain(theirs).collect()
}

/// Renders `hasup.conf`: the operator's file first, then hasup's settings, what outlives them in an adopted cluster, and the
/// dynamic file.
pub fn render_config(layout: &Layout, settings: &StaticSettings, adopted: Option<&Adopted>) -> String {
    let mut text = String::from("# Written by hasup at each start of PostgreSQL; edit postgresql.conf.\n");
    let mut include = |keyword: &str, path: &Path| {
        let _infallible = writeln!(text, "{keyword} {}", quoted(&path.to_string_lossy()));
    };
    include("include_if_exists", &layout.pgdata.join("postgresql.conf"));
    let mut set = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name} = {}", quoted(value));
    };
    for (name, value) in settings.extra.iter().filter(|(name, _)| is_setting_name(name) && !is_owned(name)) {
        set(name, value);
    }
    set("port", &settings.port.to_string());
    set("listen_addresses", &settings.listen_addresses.join(","));
    set("data_directory", &layout.pgdata.to_string_lossy());
    let sockets: Vec<_> = socket_dirs(layout, adopted).iter().map(|path| path.to_string_lossy().into_owned()).collect();
    if adopted.is_none() {
        // of an adopted cluster's, hasup's own folder is closed to others in any case
        set("unix_socket_permissions", "0700");
    }
    set("unix_socket_directories", &sockets.join(","));
    // an empty name is an error to PostgreSQL, which it tells at each start
    set("external_pid_file", &layout.external_pid_file().to_string_lossy());
    set("ssl", "on");
    set("ssl_cert_file", &settings.ssl.certificate.to_string_lossy());
    set("ssl_key_file", &settings.ssl.key.to_string_lossy());
    set("ssl_ca_file", &settings.ssl.ca.to_string_lossy());
    set("wal_level", if settings.logical { "logical" } else { "replica" });
    set("hot_standby", "on");
    set("wal_log_hints", "on");
    set("fsync", "on");
    set("full_page_writes", "on");
    set("synchronous_commit", "on");
    set("max_wal_senders", &SENDERS_AND_SLOTS_MIN.to_string());
    set("max_replication_slots", &SENDERS_AND_SLOTS_MIN.to_string());
    // hasup reads what PostgreSQL says there, in its own words
    set("log_destination", "stderr");
    set("logging_collector", "off");
    set("lc_messages", "C");
    set("wal_keep_size", &format!("{}MB", settings.wal_keep_mib));
    if !settings.extra.contains_key("max_slot_wal_keep_size") {
        set("max_slot_wal_keep_size", &format!("{}MB", settings.slot_keep_mib));
    }
    // On from the start, so that archiving can be turned on later without a restart.
    set("archive_mode", "on");
    if !settings.extra.contains_key("archive_command") {
        set("archive_command", "/bin/true");
    }
    // A crash is an end of the role (L7): the guard and the daemon say what comes next, never the postmaster.
    set("restart_after_crash", "off");
    // At its default of 5 s a standby stays away for that long where its first try came too early. Much shorter, and the tries of two
    // standbys at a primary that is gone, a process and a TLS handshake each, take a share of a small machine from the promotion. A
    // reload and a promotion end the wait at once.
    set("wal_retrieve_retry_interval", "100ms");
    set("wal_receiver_status_interval", "1s");
    // Dead connections end long before TCP gives up; pulses, not these, decide about roles.
    set("wal_receiver_timeout", "10s");
    set("wal_sender_timeout", "10s");
    set("recovery_target_timeline", "latest");
    for name in
        ["restore_command", "recovery_end_command", "archive_cleanup_command", "recovery_target", "primary_slot_name"]
    {
        set(name, "");
    }
    set("recovery_min_apply_delay", "0");
    set("hba_file", &layout.hba_file().to_string_lossy());
    set("ident_file", &layout.ident_file().to_string_lossy());
    if adopted.is_some() {
        let _infallible = writeln!(text, "include {}", quoted(&layout.adopted_file().to_string_lossy()));
    } else {
        set("password_encryption", "scram-sha-256");
    }
    let _infallible = writeln!(text, "include {}", quoted(&layout.dynamic_file().to_string_lossy()));
    text
}

/// Renders `hba.conf`: peers on the socket, certificates for hasup's roles, passwords over TLS for all others.
pub fn render_hba() -> String {
    let own = own_hba_rows();
    format!(
        "# Written by hasup.\n\
         local   all          {SUPERUSER}          peer map=hasup_local\n\
         local   all          all               peer\n\
         {own}\
         host    all          {SUPERUSER}        all reject\n\
         hostssl all          all               all scram-sha-256\n"
    )
}

/// Renders `hba.conf` of an adopted cluster: hasup's own rows, then `theirs`.
pub fn render_adopted_hba(theirs: &str) -> String {
    let own = own_hba_rows();
    format!(
        "# Written by hasup. Its own rows first; those below are of pg_hba.conf in the data directory.\n\
         local   postgres     {SUPERUSER}          peer map=hasup_local\n\
         {own}\
         {theirs}"
    )
}

/// The rows of hasup's own roles: by certificate, for what each is there for, and in no other way.
fn own_hba_rows() -> String {
    format!(
        "hostssl replication  {REPLICATION_ROLE},{FETCH_ROLE} all cert map=hasup\n\
         hostssl postgres     {REWIND_ROLE} all cert map=hasup\n\
         host    all,replication {REPLICATION_ROLE},{FETCH_ROLE},{REWIND_ROLE} all reject\n"
    )
}

/// Returns the common name of a node's certificate.
pub fn certificate_name(node: &NodeName) -> String {
    format!("hasup-node-{node}")
}

/// Renders `ident.conf`: the local user is the superuser; certificates of exactly these members are hasup's roles.
pub fn render_ident(local_user: &str, members: &BTreeSet<NodeName>) -> String {
    let mut text = String::from("# Written by hasup.\n");
    let mut row = |map: &str, outside: &str, role: &str| {
        let _infallible = writeln!(text, "{map} \"{}\" {role}", outside.replace('"', ""));
    };
    for user in BTreeSet::from([local_user, "root", SUPERUSER]) {
        row("hasup_local", user, SUPERUSER);
    }
    for member in members {
        for role in [REPLICATION_ROLE, FETCH_ROLE, REWIND_ROLE] {
            row("hasup", &certificate_name(member), role);
        }
    }
    text
}

/// How a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Signed by the cluster's CA. libpq before 15 cannot check addresses in certificates, hence the default; only members
    /// have such certificates.
    #[default]
    VerifyCa,
    /// Also made out to the host connected to.
    VerifyFull,
}

/// A PostgreSQL to copy or stream from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its host.
    pub host: String,
    /// What that name stands for, as far as it is known: no resolver is asked then.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// How its certificate is checked.
    pub ssl_mode: SslMode,
}

/// What a standby follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// The generation whose active node it is: the connection uses that generation's copy of the client key.
    pub generation: Generation,
    /// The active node's PostgreSQL, or that of the standby to fetch from.
    pub source: Source,
    /// As what it streams.
    pub reader: Reader,
}

/// As what a WAL receiver streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// As a standby, under the name that commit sets know it by.
    Standby(DataMember),
    /// To fetch log under the bar (L12), under a name that commits never wait for, and so under a role that need not be shut out while
    /// names change. Its key file is another: one that an old connection string of the generation names must not come back.
    Fetch,
}

impl Reader {
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::Standby(_) => REPLICATION_ROLE,
            Self::Fetch => FETCH_ROLE,
        }
    }

    pub(super) fn application(self) -> String {
        match self {
            Self::Standby(member) => member.to_string(),
            Self::Fetch => "hasup_fetch".to_owned(),
        }
    }

    pub(super) fn key_file(self) -> &'static str {
        match self {
            Self::Standby(_) => STANDBY_KEY,
            Self::Fetch => FETCH_KEY,
        }
    }
}

/// Key files of a generation's folder.
const STANDBY_KEY: &str = "client.key";
const FETCH_KEY: &str = "fetch.key";

/// Returns the generation whose key a connection string names.
pub(super) fn generation_of(conninfo: &str) -> Option<Generation> {
    let of = |key: &str| {
        let (before, _) = conninfo.split_once(&format!("/{key}"))?;
        before.rsplit_once("/g")?.1.parse().ok().map(Generation)
    };
    of(STANDBY_KEY).or_else(|| of(FETCH_KEY))
}

impl Source {
    /// Renders a connection string with a certificate; the key stays in its file.
    pub fn conninfo(&self, role: &str, database: Option<&str>, application: &str, ssl: &SslPaths) -> String {
        // one of each for each address
        let places = self.addresses.len().max(1);
        let mut pairs = vec![
            ("host", vec![self.host.as_str(); places].join(",")),
            ("port", vec![self.port.to_string(); places].join(",")),
            ("user", role.to_owned()),
            ("application_name", application.to_owned()),
            (
                "sslmode",
                match self.ssl_mode {
                    SslMode::VerifyCa => "verify-ca",
                    SslMode::VerifyFull => "verify-full",
                }
                .to_owned(),
            ),
            ("sslcert", ssl.certificate.to_string_lossy().into_owned()),
            ("sslkey", ssl.key.to_string_lossy().into_owned()),
            ("sslrootcert", ssl.ca.to_string_lossy().into_owned()),
            ("gssencmode", "disable".to_owned()),
            ("connect_timeout", "3".to_owned()),
            ("keepalives_idle", "2".to_owned()),
            ("keepalives_interval", "1".to_owned()),
            ("keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", "5000".to_owned()),
        ];
        if !self.addresses.is_empty() {
            let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
            pairs.push(("hostaddr", addresses.join(",")));
        }
        if let Some(database) = database {
            pairs.push(("dbname", database.to_owned()));
        }
        let quoted = pairs.into_iter().map(|(name, value)| format!("{name}={}", conninfo_quoted(&value)));
        quoted.collect::<Vec<_>>().join(" ")
    }
}

/// `synchronous_standby_names` in the three forms that hasup uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncNames {
    /// Commits wait for nobody.
    Empty,
    /// Commits wait for somebody who never comes: between promotion and `opened` where k = 0 (L15).
    Nobody,
    /// Commits wait for k of these.
    Any(CommitSet),
}

impl SyncNames {
    /// Returns the names of a commit set: none where it waits for nobody.
    pub fn of(set: &CommitSet) -> Self {
        if set.k == 0 || set.members.is_empty() { Self::Empty } else { Self::Any(set.clone()) }
    }

    /// Renders the value as PostgreSQL shows it.
    pub fn render(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Nobody => format!("ANY 1 (\"{NOBODY}\")"),
            Self::Any(set) => {
                let names: Vec<String> = set.members.iter().map(|member| format!("\"{member}\"")).collect();
                format!("ANY {} ({})", set.k, names.join(","))
            }
        }
    }

    /// Returns how many standbys a commit waits for.
    pub fn k(&self) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Nobody => 1,
            Self::Any(set) => set.k,
        }
    }
}

/// What changes while PostgreSQL runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// The rendered connection string to follow; empty is barred or primary.
    pub primary_conninfo: String,
    /// The rendered names.
    pub sync_names: String,
}

impl Default for Dynamic {
    /// Follows nobody, and as a primary would acknowledge to nobody: what an unsure node must do.
    fn default() -> Self {
        Self { primary_conninfo: String::new(), sync_names: SyncNames::Nobody.render() }
    }
}

/// Renders the dynamic file.
pub fn render_dynamic(dynamic: &Dynamic) -> String {
    format!(
        "# Written by hasup while PostgreSQL runs.\nprimary_conninfo = {}\nsynchronous_standby_names = {}\n",
        quoted(&dynamic.primary_conninfo),
        quoted(&dynamic.sync_names)
    )
}

/// Reads what [`render_dynamic`] wrote; anything else in the file is what an unsure node must do.
pub fn parse_dynamic(text: &str) -> Dynamic {
    let get = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
        let inner = value.trim_end().strip_prefix('\'')?.strip_suffix('\'')?;
        Some(inner.replace("''", "'").replace("\\\\", "\\"))
    };
    match (get("primary_conninfo"), get("synchronous_standby_names")) {
        (Some(primary_conninfo), Some(sync_names)) => Dynamic { primary_conninfo, sync_names },
        _ => Dynamic::default(),
    }
}

/// Returns the names of hasup's own settings that `postgresql.auto.conf` sets, and the file without those lines.
pub fn without_owned(auto_conf: &str) -> (Vec<String>, String) {
    without(auto_conf, is_owned)
}

/// Returns the names of the settings in `auto_conf` that `is_out` names, and the file without those lines.
pub(super) fn without(auto_conf: &str, is_out: impl Fn(&str) -> bool) -> (Vec<String>, String) {
    let mut found = Vec::new();
    let mut kept = String::new();
    for line in auto_conf.lines() {
        let name: String =
            line.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect();
        if is_out(&name.to_ascii_lowercase()) {
            found.push(name.to_ascii_lowercase());
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (found, kept)
}

/// Returns the arguments that `postgres` is started with.
pub fn start_args(layout: &Layout) -> Vec<String> {
    vec![
        "-D".to_owned(),
        layout.pgdata.to_string_lossy().into_owned(),
        "-c".to_owned(),
        format!("config_file={}", layout.config_file().to_string_lossy()),
    ]
}

/// Renders a span as PostgreSQL reads it.
pub(super) fn millis(span: Duration) -> String {
    format!("{}ms", span.as_millis().max(1))
}

fn is_setting_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

/// Quotes a value for a configuration file, where backslashes are escapes.
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

fn conninfo_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DataIncarnation, NodeId};

    fn member(node: u64) -> DataMember {
        DataMember { node: NodeId(node), incarnation: DataIncarnation(1) }
    }

    #[test]
    fn whoever_is_found_by_name_is_reached_without_a_resolver_where_the_name_is_known() {
        let source = |addresses: &[&str]| Source {
            host: "db1.example".to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            port: 5432,
            ssl_mode: SslMode::VerifyCa,
        };
        let ssl = SslPaths { certificate: "/c".into(), key: "/k".into(), ca: "/ca".into() };
        let conninfo = |addresses: &[&str]| source(addresses).conninfo("r", None, "n1_i1", &ssl);
        assert!(conninfo(&[]).starts_with("host='db1.example' port='5432' user="));
        assert!(!conninfo(&[]).contains("hostaddr"));
        let two = conninfo(&["10.0.0.1", "fd00::1"]);
        assert!(two.starts_with("host='db1.example,db1.example' port='5432,5432' "), "{two}");
        assert!(two.contains(" hostaddr='10.0.0.1,fd00::1'"), "{two}");
    }

    #[test]
    fn sync_names_are_rendered_from_the_commit_set() {
        let set = CommitSet { members: BTreeSet::from([member(2), member(3)]), k: 1 };
        assert_eq!(SyncNames::of(&set).render(), r#"ANY 1 ("n2_i1","n3_i1")"#);
        assert_eq!(SyncNames::of(&CommitSet::none()).render(), "");
        assert_eq!(SyncNames::Nobody.render(), r#"ANY 1 ("hasup_nobody")"#);
    }

    #[test]
    fn quotes_and_backslashes_survive_both_files() {
        let dynamic = Dynamic { primary_conninfo: r"host='it\'s'".to_owned(), sync_names: String::new() };
        assert!(
            render_dynamic(&dynamic).contains(r"primary_conninfo = 'host=''it\\''s'''"),
            "{}",
            render_dynamic(&dynamic)
        );
        assert_eq!(parse_dynamic(&render_dynamic(&dynamic)), dynamic);
        assert_eq!(parse_dynamic("garbage"), Dynamic::default());
    }

    #[test]
    fn auto_conf_cannot_override_what_a_promise_rests_on() {
        let text = "# comment\nwork_mem = '8MB'\nsynchronous_standby_names = ''\n  Primary_Conninfo 'x'\nsynchronous_standby_names_x = 1\n";
        let (found, kept) = without_owned(text);
        assert_eq!(found, ["synchronous_standby_names", "primary_conninfo"]);
        assert_eq!(kept, "# comment\nwork_mem = '8MB'\nsynchronous_standby_names_x = 1\n");
    }

    #[test]
    fn extra_settings_never_override_owned_ones() {
        let settings = StaticSettings {
            port: 5432,
            listen_addresses: vec!["*".to_owned()],
            logical: false,
            ssl: SslPaths { certificate: "/c".into(), key: "/k".into(), ca: "/a".into() },
            wal_keep_mib: 64,
            slot_keep_mib: 64,
            local_user: "postgres".to_owned(),
            extra: BTreeMap::from([
                ("fsync".to_owned(), "off".to_owned()),
                ("work_mem".to_owned(), "8MB".to_owned()),
                ("bad\nname".to_owned(), "1".to_owned()),
            ]),
        };
        let text = render_config(&Layout::new("/d"), &settings, None);
        assert!(
            text.contains("work_mem = '8MB'") && !text.contains("fsync = 'off'") && !text.contains("bad"),
            "{text}"
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "include_if_exists '/d/pgdata/postgresql.conf'");
        assert_eq!(lines.last(), Some(&"include '/d/postgres/dynamic.conf'"));
    }

    #[test]
    fn only_members_certificates_are_mapped() {
        let text = render_ident("hasup", &BTreeSet::from(["n1".parse().unwrap()]));
        for role in ["hasup_replication", "hasup_fetch", "hasup_rewind"] {
            assert!(text.contains(&format!("hasup \"hasup-node-n1\" {role}\n")), "{text}");
        }
        assert!(text.contains("hasup_local \"hasup\" postgres\n"), "{text}");
    }
}
