//! From what was said to a [`Config`]: values are checked one by one and against each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::defaults::{SETTINGS, setting};
use super::host::{Address, Host};
use super::owned::is_owned;
use super::raw::{Origin, Outvoted, Problem, Problems, Said, Sources, Value, gather_all};
use super::{BalancerConfig, Config, Endpoint, LogConfig, LogFormat, PostgresConfig};
use crate::types::NodeName;

/// What the machine says about itself, from which defaults follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The machine's host name.
    pub host_name: String,
    /// The address from which it reaches others.
    pub address: Option<IpAddr>,
}

/// A value in effect, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting's key.
    pub key: &'static str,
    /// Its value, as TOML.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
    /// What the node file says instead and does not count, as the node was told otherwise when it began, and where.
    pub instead_of: Option<(String, Origin)>,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What is in effect.
    pub config: Config,
    /// The same as text with its origins, in the order of [`SETTINGS`]; settings without a value are left out.
    pub effective: Vec<Effective>,
}

/// Gathers, checks and completes a configuration.
///
/// # Errors
/// Every problem found, each with its place, key, value and cure.
pub fn load(sources: &Sources, facts: &Facts) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let (said, outvoted) = gather_all(sources, &mut problems);
    let mut checker = Checker { said, outvoted, problems, effective: BTreeMap::new() };
    let config = checker.config(facts);
    let Checker { problems, mut effective, .. } = checker;
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded {
            config,
            effective: SETTINGS.iter().filter_map(|setting| effective.remove(setting.key)).collect(),
        }),
        _ => Err(Problems(problems)),
    }
}

/// Works through the settings; a value that cannot be used is a problem, and the work goes on to find the others.
struct Checker {
    said: Said,
    outvoted: Outvoted,
    problems: Vec<Problem>,
    effective: BTreeMap<&'static str, Effective>,
}

impl Checker {
    fn config(&mut self, facts: &Facts) -> Option<Config> {
        let host_label = facts.host_name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let node_name = self.parsed::<NodeName>("node_name", &host_label, "use 1 to 63 of a-z, 0-9 and -, like `db1`");
        let address = facts.address.map(|ip| ip.to_string()).unwrap_or_default();
        let host =
            self.parsed::<Host>("host_ip", &address, "give the address under which the other nodes reach this one");
        if host.as_ref().is_some_and(Host::is_wildcard) {
            self.blame(
                "host_ip",
                "stands for every address",
                "give the one address under which the other nodes reach this one",
            );
        }
        // The rest is checked against a stand-in where these two are missing, so that its problems show up as well.
        let stand_in = host.clone().unwrap_or(Host::Name("localhost".to_owned()));

        let data_dir = self.path("data_dir", "/var/lib/hasup");
        let run_dir = self.path("run_dir", "/run/hasup");
        // from a wrong one follows no second problem
        let base = data_dir.as_ref().filter(|dir| dir.is_absolute());
        let pgdata = base.map(|dir| dir.join("pgdata").display().to_string()).unwrap_or_default();
        let user = self.text("user", "postgres");
        if user.is_empty() || user == "root" {
            self.blame("user", "cannot run PostgreSQL", "name an unprivileged user, like `postgres`");
        }
        let is_witness = self.boolean("witness");
        let peer = self.endpoint("peer", &stand_in, 7400);
        let api = self.endpoint("api", &stand_in, 7401);
        let postgres = self.postgres(&stand_in, &pgdata);
        let log = self.log();
        let balancer = self.balancer();
        let ports = [("peer.port", peer.port), ("api.port", api.port), ("postgres.port", postgres.port)];
        for (i, (key, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..i].iter().find(|(_, taken)| taken == port) {
                self.blame(key, &format!("is the same as {other}"), "give each its own port");
            }
        }
        Some(Config {
            node_name: node_name?,
            host: host?,
            data_dir: data_dir?,
            run_dir: run_dir?,
            user,
            is_witness,
            peer,
            api,
            postgres,
            log,
            balancer,
        })
    }

    fn endpoint(&mut self, section: &str, host: &Host, default_port: u16) -> Endpoint {
        let listen = self.hosts(&format!("{section}.listen"), host);
        let port = self.port(&format!("{section}.port"), default_port);
        let advertise = self.addresses(&format!("{section}.advertise"), host, port);
        Endpoint { listen, port, advertise }
    }

    fn postgres(&mut self, host: &Host, pgdata: &str) -> PostgresConfig {
        let bin_dir = self.path("postgres.bin_dir", "");
        let data_dir = self.path("postgres.data_dir", pgdata).unwrap_or_default();
        let listen = self.hosts("postgres.listen", host);
        let port = self.port("postgres.port", 5432);
        let said = self.text("postgres.advertise", &Address { host: host.clone(), port }.to_string());
        let advertise = Address::parse(&said, port).unwrap_or_else(|error| {
            self.blame("postgres.advertise", &error.to_string(), "use host or host:port, IPv6 in brackets");
            Address { host: host.clone(), port }
        });
        let said = self.text("postgres.copy_rate", "");
        let copy_rate_kib = copy_rate(&said).unwrap_or_else(|| {
            self.blame("postgres.copy_rate", "is no rate", "use kB or MB a second, from 32kB to 1024MB, like \"50MB\"");
            None
        });
        let settings = match self.take("postgres.settings") {
            Some((Value::Map(settings), _)) => settings,
            _ => BTreeMap::new(),
        };
        for name in settings.keys() {
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
            if !is_name {
                self.blame("postgres.settings", &format!("`{name}` is no name of a PostgreSQL setting"), "correct it");
            } else if is_owned(name) {
                let what = format!("`{name}` is kept by hasup, a wrong value would break failover");
                self.blame("postgres.settings", &what, "remove it");
            }
        }
        PostgresConfig { bin_dir, data_dir, listen, port, advertise, copy_rate_kib, settings }
    }

    fn log(&mut self) -> LogConfig {
        let level = self.text("log.level", "info");
        let format = match self.text("log.format", "text").as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => {
                self.blame("log.format", "is no format", "use \"text\" or \"json\"");
                LogFormat::Text
            }
        };
        if !is_filter(&level) {
            self.blame(
                "log.level",
                "is no level",
                "use error, warn, info, debug, trace, or a filter like info,hasup::pulse=debug",
            );
        }
        LogConfig { level, format }
    }

    fn balancer(&mut self) -> Option<BalancerConfig> {
        let user = self.text("balancer.user", "");
        let password_file = self.path("balancer.password_file", "");
        match (user.is_empty(), password_file) {
            (true, None) => None,
            (false, Some(password_file)) if !user.contains(':') => Some(BalancerConfig { user, password_file }),
            (false, Some(_)) => {
                self.blame(
                    "balancer.user",
                    "holds a colon",
                    "HTTP Basic credentials cannot carry one: choose another name",
                );
                None
            }
            (false, None) => {
                self.blame("balancer.user", "has no password", "give balancer.password_file too");
                None
            }
            (true, Some(_)) => {
                self.blame("balancer.password_file", "has no user", "give balancer.user too");
                None
            }
        }
    }

    fn blame(&mut self, key: &str, what: &str, cure: &str) {
        let (value, origin) = match self.effective.get(key) {
            Some(effective) => (effective.value.clone(), effective.origin.clone()),
            None => (String::new(), Origin::Default),
        };
        let (what, cure) = (what.to_owned(), cure.to_owned());
        self.problems.push(Problem { origin, key: key.to_owned(), value, what, cure });
    }

    /// Returns what was said about `key`, and notes it as in effect.
    fn take(&mut self, key: &str) -> Option<(Value, Origin)> {
        let (value, origin) = self.said.get(key)?.clone();
        self.note(key, &value, origin.clone());
        Some((value, origin))
    }

    fn note(&mut self, key: &str, value: &Value, origin: Origin) {
        let key = setting(key).map_or("", |setting| setting.key);
        let instead_of = self.outvoted.get(key).map(|(value, origin)| (value.to_string(), origin.clone()));
        self.effective.insert(key, Effective { key, value: value.to_string(), origin, instead_of });
    }

    fn text(&mut self, key: &str, default: &str) -> String {
        match self.take(key) {
            Some((Value::Text(text), _)) => text,
            _ => {
                if !default.is_empty() {
                    self.note(key, &Value::Text(default.to_owned()), Origin::Default);
                }
                default.to_owned()
            }
        }
    }

    fn boolean(&mut self, key: &str) -> bool {
        match self.take(key) {
            Some((Value::Bool(truth), _)) => truth,
            _ => {
                self.note(key, &Value::Bool(false), Origin::Default);
                false
            }
        }
    }

    fn port(&mut self, key: &str, default: u16) -> u16 {
        match self.take(key) {
            Some((Value::Port(port), _)) => port,
            _ => {
                self.note(key, &Value::Port(default), Origin::Default);
                default
            }
        }
    }

    fn parsed<T: FromStr<Err: ToString>>(&mut self, key: &str, default: &str, cure: &str) -> Option<T> {
        let text = self.text(key, default);
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                let what = if text.is_empty() { "has no value" } else { "cannot be used" };
                self.blame(key, what, cure);
                None
            }
        }
    }

    fn path(&mut self, key: &str, default: &str) -> Option<PathBuf> {
        let text = self.text(key, default);
        if text.is_empty() {
            if !default.is_empty() {
                self.blame(key, "has no value", "give it from the root, beginning with /, or leave it out");
            }
            return None;
        }
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            self.blame(key, "is a relative path", "give it from the root, beginning with /");
        }
        Some(path)
    }

    fn list(&mut self, key: &str, default: String) -> Vec<String> {
        match self.take(key) {
            Some((Value::List(items), _)) => items,
            _ => {
                self.note(key, &Value::List(vec![default.clone()]), Origin::Default);
                vec![default]
            }
        }
    }

    fn hosts(&mut self, key: &str, default: &Host) -> Vec<Host> {
        let items = self.list(key, default.to_string());
        self.each(key, items, "use addresses or host names, without ports", |item| match item {
            "*" => "0.0.0.0".parse(),
            _ => item.parse(),
        })
    }

    fn addresses(&mut self, key: &str, default: &Host, port: u16) -> Vec<Address> {
        let items = self.list(key, Address { host: default.clone(), port }.to_string());
        let found = self.each(key, items, "use host or host:port, IPv6 in brackets", |item| Address::parse(item, port));
        if found.iter().any(|address| address.host.is_wildcard()) {
            self.blame(key, "stands for every address", "give addresses that others can dial");
        }
        found
    }

    fn each<T, E: ToString>(
        &mut self,
        key: &str,
        items: Vec<String>,
        cure: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for item in items {
            match parse(&item) {
                Ok(value) => found.push(value),
                Err(error) => self.blame(key, &error.to_string(), cure),
            }
        }
        found
    }
}

/// Returns whether `text` is a level or a comma list of `target=level`.
fn is_filter(text: &str) -> bool {
    let is_level =
        |level: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
    let is_target = |target: &str| {
        !target.is_empty() && target.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':' || b == b'-')
    };
    text.split(',').all(|part| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    })
}

/// Reads how much may be copied in a second, in KiB: nothing for no limit. Returns none where that is no rate, or one that
/// `pg_basebackup` does not take.
fn copy_rate(text: &str) -> Option<Option<u32>> {
    if text.is_empty() {
        return Some(None);
    }
    let (number, kib) = match (text.strip_suffix("MB"), text.strip_suffix("kB")) {
        (Some(number), _) => (number, 1024),
        (None, number) => (number?, 1),
    };
    let rate = number.trim().parse::<u32>().ok()?.checked_mul(kib)?;
    (32..=1024 * 1024).contains(&rate).then_some(Some(rate))
}

#[cfg(test)]
mod tests {
    use super::super::raw::{Layer, render, render_remembered};
    use super::*;

    fn facts() -> Facts {
        Facts { host_name: "DB1.example.net".to_owned(), address: Some(IpAddr::from([10, 0, 0, 1])) }
    }

    fn file(text: &str) -> Sources {
        Sources { files: vec![Layer { name: "hasup.toml".to_owned(), text: text.to_owned() }], ..Sources::default() }
    }

    #[test]
    fn nothing_said_gives_the_defaults_around_the_hosts_address() {
        let loaded = load(&Sources::default(), &facts()).unwrap();
        let printed: Vec<_> =
            loaded.effective.iter().map(|e| format!("{} = {} ({})", e.key, e.value, e.origin)).collect();
        assert_eq!(
            printed,
            [
                r#"node_name = "db1" (default)"#,
                r#"host_ip = "10.0.0.1" (default)"#,
                r#"data_dir = "/var/lib/hasup" (default)"#,
                r#"run_dir = "/run/hasup" (default)"#,
                r#"user = "postgres" (default)"#,
                r#"witness = false (default)"#,
                r#"peer.listen = ["10.0.0.1"] (default)"#,
                r#"peer.port = 7400 (default)"#,
                r#"peer.advertise = ["10.0.0.1:7400"] (default)"#,
                r#"api.listen = ["10.0.0.1"] (default)"#,
                r#"api.port = 7401 (default)"#,
                r#"api.advertise = ["10.0.0.1:7401"] (default)"#,
                r#"postgres.data_dir = "/var/lib/hasup/pgdata" (default)"#,
                r#"postgres.listen = ["10.0.0.1"] (default)"#,
                r#"postgres.port = 5432 (default)"#,
                r#"postgres.advertise = "10.0.0.1:5432" (default)"#,
                r#"log.level = "info" (default)"#,
                r#"log.format = "text" (default)"#,
            ]
        );
        assert_eq!(loaded.config.admin_socket(), PathBuf::from("/run/hasup/db1.sock"));
    }

    #[test]
    fn all_problems_are_reported_at_once_with_place_value_and_cure() {
        let text = "\
node_name = \"Data_Base\"
host_ip = \"0.0.0.0\"
data_dri = \"/x\"
user = 7

[peer]
port = 99999
listen = [\"10.0.0.300\"]

[api]
port = 5432
advertise = \"nowhere:0\"

[postgres]
data_dir = \"pgdata\"
settings = { fsync = \"off\" }

[log]
level = \"loud\"
format = \"xml\"

[balancer]
user = \"proxy\"

[relay]
port = 6432
";
        let mut sources = file(text);
        sources.env.insert("HASUP_RUN_DIR".to_owned(), "run".to_owned());
        sources.flags.push(("--peer-port".to_owned(), "peer.port".to_owned(), "high".to_owned()));
        let mut lines: Vec<_> = load(&sources, &facts()).unwrap_err().0.iter().map(ToString::to_string).collect();
        lines.sort();
        let mut expected = [
            r#"hasup.toml:1: node_name = "Data_Base" cannot be used: use 1 to 63 of a-z, 0-9 and -, like `db1`"#,
            r#"hasup.toml:2: host_ip = "0.0.0.0" stands for every address: give the one address under which the other nodes reach this one"#,
            r#"hasup.toml:3: data_dri = "/x" is no setting: did you mean `data_dir`? Else remove it"#,
            r#"hasup.toml:4: user = 7 is of the wrong kind (integer): use a text in quotes"#,
            r#"hasup.toml:7: peer.port = 99999 is out of range: use a whole number from 1 to 65535"#,
            r#"hasup.toml:8: peer.listen = ["10.0.0.300"] `10.0.0.300` is no host: use addresses or host names, without ports"#,
            r#"hasup.toml:12: api.advertise = ["nowhere:0"] `nowhere:0` is no host or host:port: use host or host:port, IPv6 in brackets"#,
            r#"default: peer.advertise = ["0.0.0.0:7400"] stands for every address: give addresses that others can dial"#,
            r#"default: postgres.port = 5432 is the same as api.port: give each its own port"#,
            r#"hasup.toml:15: postgres.data_dir = "pgdata" is a relative path: give it from the root, beginning with /"#,
            r#"hasup.toml:16: postgres.settings = { fsync = "off" } `fsync` is kept by hasup, a wrong value would break failover: remove it"#,
            r#"hasup.toml:19: log.level = "loud" is no level: use error, warn, info, debug, trace, or a filter like info,hasup::pulse=debug"#,
            r#"hasup.toml:20: log.format = "xml" is no format: use "text" or "json""#,
            r#"hasup.toml:23: balancer.user = "proxy" has no password: give balancer.password_file too"#,
            r#"hasup.toml:25: relay = {…} is no setting: remove it"#,
            r#"HASUP_RUN_DIR: run_dir = "run" is a relative path: give it from the root, beginning with /"#,
            r#"--peer-port: peer.port = "high" cannot be read: use a whole number from 1 to 65535"#,
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_follows_from_a_wrong_folder_is_no_problem_of_its_own() {
        for (said, what) in [("rel", "is a relative path"), ("", "has no value")] {
            let problems = load(&file(&format!("data_dir = \"{said}\"\n")), &facts()).unwrap_err().0;
            let told: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.what.as_str())).collect();
            assert_eq!(told, [("data_dir", what)]);
        }
    }

    #[test]
    fn text_that_is_no_toml_names_its_line() {
        let problems = load(&file("node_name = \"a\"\nhost_ip = \n"), &facts()).unwrap_err();
        assert!(problems.to_string().contains("hasup.toml:2: is no TOML"), "{problems}");
    }

    #[test]
    fn later_layers_win_and_flags_can_be_remembered() {
        let mut sources = file("[peer]\nport = 1\n[api]\nport = 2\n[postgres]\nport = 3\n");
        sources.files.push(Layer { name: "other.toml".to_owned(), text: "api.port = 20".to_owned() });
        sources.env.insert("HASUP_POSTGRES_PORT".to_owned(), "30".to_owned());
        sources.flags = vec![
            ("--postgres-port".to_owned(), "postgres.port".to_owned(), "300".to_owned()),
            ("--host-ip".to_owned(), "host_ip".to_owned(), "fd00::1".to_owned()),
        ];
        let loaded = load(&sources, &facts()).unwrap();
        let ports = (loaded.config.peer.port, loaded.config.api.port, loaded.config.postgres.port);
        assert_eq!(ports, (1, 20, 300));
        assert_eq!(loaded.config.peer.advertise[0].to_string(), "[fd00::1]:1");
        let remembered = render(&sources).unwrap();
        assert_eq!(remembered, "host_ip = \"fd00::1\"\npostgres.port = 300\n");
        assert_eq!(load(&file(&remembered), &facts()).unwrap().config.postgres.port, 300);
    }

    #[test]
    fn flags_that_were_remembered_count_until_the_node_file_is_edited() {
        let mut sources = file("peer.port = 7000\napi.port = 8000\nlog.level = \"warn\"\n");
        for (key, value) in [("peer.port", "7100"), ("api.port", "8000"), ("postgres.port", "6000")] {
            sources.flags.push((format!("--{key}"), key.to_owned(), value.to_owned()));
        }
        let text = render_remembered(&sources).unwrap();
        assert_eq!(
            text,
            "peer.port = 7100\napi.port = 8000\npostgres.port = 6000\n# The node file said then: peer.port = 7000\n"
        );
        let ports = |now: &str| {
            let remembered = Some(Layer { name: "node.toml".to_owned(), text: text.clone() });
            let loaded = load(&Sources { remembered, ..file(now) }, &facts()).unwrap();
            let of = |key: &str| {
                let effective = loaded.effective.iter().find(|effective| effective.key == key).unwrap();
                let instead = effective.instead_of.as_ref().map(|(value, origin)| format!(", not {value} ({origin})"));
                format!("{} ({}){}", effective.value, effective.origin, instead.unwrap_or_default())
            };
            ["peer.port", "api.port", "postgres.port"].map(of)
        };
        assert_eq!(
            ports("peer.port = 7000\napi.port = 8000\n"),
            ["7100 (node.toml:1), not 7000 (hasup.toml:1)", "8000 (hasup.toml:2)", "6000 (node.toml:3)"]
        );
        assert_eq!(
            ports("log.level = \"info\"\npeer.port = 7200\napi.port = 8200\npostgres.port = 6200\n"),
            ["7200 (hasup.toml:2)", "8200 (hasup.toml:3)", "6200 (hasup.toml:4)"]
        );
        assert_eq!(ports(""), ["7100 (node.toml:1)", "8000 (node.toml:2)", "6000 (node.toml:3)"]);
    }

    #[test]
    fn variables_that_nobody_reads_are_told_with_the_nearest_name() {
        let mut sources = Sources::default();
        for (name, value) in [
            ("HASUP_PEER_PROT", "1"),
            ("HASUP_TARGETS", "db1"),
            ("HASUP_API_COLOUR", "secret"),
            ("HASUP_SERVICE_HOST", "10.0.0.1"),
            ("HASUP_PEER_PORT", "7777"),
            ("HASUP_CONFIG", "/c"),
            ("HASUP_TEST_FULL", "1"),
            ("HASUP_SIM_SEEDS", "7"),
        ] {
            sources.env.insert(name.to_owned(), value.to_owned());
        }
        let lines: Vec<_> = load(&sources, &facts()).unwrap_err().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "HASUP_API_COLOUR: is no variable that hasup reads: unset it",
                "HASUP_PEER_PROT: is no variable that hasup reads: did you mean `HASUP_PEER_PORT`? Else unset it",
                "HASUP_TARGETS: is no variable that hasup reads: did you mean `HASUP_TARGET`? Else unset it",
            ]
        );
    }

    #[test]
    fn rates_of_copies_are_those_that_pg_basebackup_takes() {
        for (text, rate) in [("", None), ("32kB", Some(32)), ("50MB", Some(50 * 1024)), ("1024 MB", Some(1024 * 1024))]
        {
            assert_eq!(copy_rate(text), Some(rate), "{text}");
        }
        for text in ["50", "31kB", "1025MB", "-1MB", "9999999999MB", "MB", "50GB"] {
            assert_eq!(copy_rate(text), None, "{text}");
        }
        let loaded = load(&file("[postgres]\ncopy_rate = \"1GB\"\n"), &facts());
        assert!(format!("{:?}", loaded.unwrap_err()).contains("from 32kB to 1024MB"));
    }

    #[test]
    fn postgres_settings_take_numbers_and_truths() {
        let loaded =
            load(&file("[postgres.settings]\nwork_mem = \"16MB\"\njit = false\nmax_connections = 50\n"), &facts());
        let settings = loaded.unwrap().config.postgres.settings;
        let pairs: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["jit=off", "max_connections=50", "work_mem=16MB"]);
    }

    #[test]
    fn the_example_holds_only_what_exists_and_its_comments_are_the_defaults() {
        let text = include_str!("../../examples/hasup.toml");
        let loaded = load(&file(text), &Facts::default()).unwrap();
        assert_eq!(loaded.config.node_name.as_str(), "db1");
        assert_eq!(loaded.config.peer.advertise[1].to_string(), "192.168.0.1:7400");
        // With every commented setting taken at its word nothing else comes out, but for the balancer, the programs and the rate.
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut spelled = load(&file(&uncommented), &Facts::default()).unwrap().config;
        assert!(spelled.balancer.take().is_some() && spelled.postgres.bin_dir.take().is_some());
        assert_eq!(spelled.postgres.copy_rate_kib.take(), Some(50 * 1024));
        assert_eq!(spelled, loaded.config);
    }
}
