//! This machine: where its settings come from, whose rights the daemon has, and how a command reaches a node.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setuid};

use super::CliError;
use super::args::{Cli, NodeFlags, Reach};
use super::show::{Out, table};
use crate::app;
pub(super) use crate::app::begin::REMEMBERED;
use crate::config::{self, Address, Config, Effective, Facts, Layer, Secret, Sources};
use crate::http::client::{Client, Members, Target};
use crate::node::status::Status;
use crate::sys::fs::{is_read_only, try_to_write};

/// The node file that is read where none is named.
pub(super) const NODE_FILE: &str = "/etc/hasup/hasup.toml";
/// How the node file begins where no person wrote it; what follows names its contents, so that an edited one is a person's.
const NODE_FILE_MARK: &str =
    "# Written when this machine's node began; while it is unchanged, `hasup destroy` removes it. ";

/// This machine's settings.
#[derive(Debug, Clone)]
pub struct Local {
    /// What is in effect.
    pub config: Config,
    /// The same with its origins.
    pub effective: Vec<Effective>,
    /// What was said.
    pub sources: Sources,
}

impl Local {
    /// Reads the node file, what the node remembers, environment and flags, and checks them.
    ///
    /// # Errors
    /// A file cannot be read, or the configuration has problems.
    pub fn load(reach: &Reach, node: &NodeFlags) -> Result<Self, CliError> {
        Self::of(sources(reach, node)?)
    }

    /// As [`Local::load`], for a node that is to begin: what hasup kept of a try that did not come to an identity does not count.
    ///
    /// # Errors
    /// As for [`Local::load`].
    pub(super) fn load_to_begin(reach: &Reach, node: &NodeFlags) -> Result<Self, CliError> {
        let mut sources = named_sources(reach, node)?;
        sources.files.retain(|layer| layer.name != NODE_FILE || !is_left_over(&layer.text));
        let folder = data_dir(&sources);
        if app::is_member(&folder) {
            sources.remembered = read_layer(&folder.join(REMEMBERED), false)?;
        }
        Self::of(sources)
    }

    /// Returns what the daemon should say of its settings.
    pub(super) fn notes(&self) -> Vec<String> {
        let outvoted = self.effective.iter().filter_map(|effective| {
            let (value, origin) = effective.instead_of.as_ref()?;
            Some(format!(
                "{} is {} by {}, and not {value} as in {origin}: this node was told so when it began. To have it by the file, take the \
                 line out of {REMEMBERED}",
                effective.key, effective.value, effective.origin
            ))
        });
        outvoted.collect()
    }

    fn of(sources: Sources) -> Result<Self, CliError> {
        let facts = Facts { host_name: host_name(), address: address() };
        let config::Loaded { config, effective } = config::load(&sources, &facts)?;
        Ok(Self { config, effective, sources })
    }
}

/// Gathers all layers of the configuration.
fn sources(reach: &Reach, node: &NodeFlags) -> Result<Sources, CliError> {
    let mut sources = named_sources(reach, node)?;
    sources.remembered = read_layer(&data_dir(&sources).join(REMEMBERED), false)?;
    Ok(sources)
}

/// Gathers the layers beside what the node remembers.
fn named_sources(reach: &Reach, node: &NodeFlags) -> Result<Sources, CliError> {
    let mut files = Vec::new();
    match &reach.config {
        Some(path) => files.extend(read_layer(path, true)?),
        None => files.extend(read_layer(Path::new(NODE_FILE), false)?),
    }
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("HASUP_"))
        .collect();
    Ok(Sources { files, remembered: None, env, flags: flags(reach, node) })
}

fn data_dir(sources: &Sources) -> PathBuf {
    config::peek(sources, "data_dir").unwrap_or_else(|| "/var/lib/hasup".to_owned()).into()
}

/// Returns `text` as hasup writes it to the node file, so that it knows its own again.
pub(super) fn own_node_file(text: &str) -> String {
    format!("{NODE_FILE_MARK}{}\n{text}", blake3::hash(text.as_bytes()).to_hex())
}

/// Returns whether `text` is byte for byte what hasup once wrote to the node file.
pub(super) fn is_own_node_file(text: &str) -> bool {
    text.split_once('\n').is_some_and(|(_, rest)| own_node_file(rest) == text)
}

/// Returns whether hasup wrote the node file `text` for a node that did not come to be.
pub(super) fn is_left_over(text: &str) -> bool {
    is_own_node_file(text) && !app::is_member(&data_dir_of(text))
}

/// Returns the data directory that the node file `text` names, or that is meant where it names none.
pub(super) fn data_dir_of(text: &str) -> PathBuf {
    let layer = Layer { name: NODE_FILE.to_owned(), text: text.to_owned() };
    data_dir(&Sources { files: vec![layer], ..Sources::default() })
}

/// Removes a node file that hasup wrote for a node that did not come to be; an operator's own stays.
pub(super) fn remove_left_over() -> Result<(), CliError> {
    match fs::read_to_string(NODE_FILE) {
        Ok(text) if is_left_over(&text) => remove_if_there(Path::new(NODE_FILE)),
        _ => Ok(()),
    }
}

/// Reads a file of settings; one that nobody named may be absent, or closed to the user of a plain command.
fn read_layer(path: &Path, is_named: bool) -> Result<Option<Layer>, CliError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Layer { name: path.display().to_string(), text })),
        Err(error) if !is_named && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if !is_named && error.kind() == ErrorKind::PermissionDenied && !geteuid().is_root() => Ok(None),
        Err(error) => Err(CliError::Usage(format!(
            "the settings in {} cannot be read ({error}). Nothing was started. Correct the path or its mode",
            path.display()
        ))),
    }
}

/// The settings among the flags that are paths.
const PATHS: [&str; 4] = ["data_dir", "run_dir", "postgres.data_dir", "postgres.bin_dir"];

fn flags(reach: &Reach, node: &NodeFlags) -> Vec<(String, String, String)> {
    let witness = node.witness.then(|| "true".to_owned());
    let given = [
        ("--data-dir", "data_dir", &reach.data_dir),
        ("--run-dir", "run_dir", &reach.run_dir),
        ("--node-name", "node_name", &reach.node_name),
        ("--host-ip", "host_ip", &node.host_ip),
        ("--peer-port", "peer.port", &node.peer_port),
        ("--api-port", "api.port", &node.api_port),
        ("--postgres-port", "postgres.port", &node.postgres_port),
        ("--postgres-data-dir", "postgres.data_dir", &node.postgres_data_dir),
        ("--postgres-bin-dir", "postgres.bin_dir", &node.postgres_bin_dir),
        ("--postgres-copy-rate", "postgres.copy_rate", &node.postgres_copy_rate),
        ("--user", "user", &node.user),
        ("--witness", "witness", &witness),
        ("--log-level", "log.level", &node.log_level),
        ("--log-format", "log.format", &node.log_format),
    ];
    let given = given.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value.clone()?)));
    let from_here = |key: &str, value: String| if PATHS.contains(&key) { absolute(value) } else { value };
    given.map(|(flag, key, value)| (flag.to_owned(), key.to_owned(), from_here(key, value))).collect()
}

/// Returns a path given on the command line as seen from the working directory. The daemon has another one: what is kept of it, in the
/// node file too, must not depend on that.
fn absolute(path: String) -> String {
    std::path::absolute(&path).ok().and_then(|path| path.into_os_string().into_string().ok()).unwrap_or(path)
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// Returns the address of the default route, else the only address there is. Nothing is sent: connecting a datagram socket
/// only looks the route up.
fn address() -> Option<IpAddr> {
    let route = |from: IpAddr, to: IpAddr| -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((to, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    // Addresses set apart for documentation, so certainly not this machine's own.
    let four = route(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let six = || route(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    four.or_else(|_| six()).ok().or_else(only_address)
}

/// Returns this machine's address where it has just one that others can reach; IPv4 goes before IPv6.
fn only_address() -> Option<IpAddr> {
    let interfaces: Vec<_> = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| interface.address).collect();
    let four = interfaces.iter().filter_map(|address| Some(address.as_sockaddr_in()?.ip()));
    let four: Vec<Ipv4Addr> = four.filter(|ip| !ip.is_loopback() && !ip.is_link_local()).collect();
    let six = interfaces.iter().filter_map(|address| Some(address.as_sockaddr_in6()?.ip()));
    let six: Vec<Ipv6Addr> = six.filter(|ip| !ip.is_loopback() && !ip.is_unicast_link_local()).collect();
    match (four.as_slice(), six.as_slice()) {
        ([only], _) => Some((*only).into()),
        ([], [only]) => Some((*only).into()),
        _ => None,
    }
}

/// Returns the user that the daemon is to run as, where it has the right to choose.
pub(super) fn owner(config: &Config) -> Result<Option<(Uid, Gid)>, CliError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name(&config.user).context("look up the user that hasup runs as")? {
        Some(user) => Ok(Some((user.uid, user.gid))),
        None => Err(CliError::Usage(format!(
            "there is no user `{}`. Nothing was started. Install PostgreSQL, which makes `postgres`, or set `user`",
            config.user
        ))),
    }
}

/// Makes the node's folders, closed to others, for the user that the daemon runs as; those that exist must be that user's.
pub(super) fn make_folders(config: &Config, owner: Option<(Uid, Gid)>) -> Result<(), CliError> {
    let user = owner.map_or_else(geteuid, |(user, _)| user);
    for (path, mode) in [(&config.data_dir, 0o700), (&config.run_dir, 0o755)] {
        let give = || owner.map_or(Ok(()), |(user, group)| chown(path, Some(user.as_raw()), Some(group.as_raw())));
        let make = || -> io::Result<bool> {
            if !path.is_dir() {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::DirBuilder::new().mode(mode).create(path)?;
                give()?;
            } else if owner.is_some() && fs::metadata(path)?.uid() == 0 && is_unused(path)? {
                // Made by root for this purpose, be it as the place where a disk is mounted.
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
                give()?;
            }
            Ok(fs::metadata(path)?.uid() == user.as_raw())
        };
        let what = match make() {
            Ok(true) => match try_to_write(path) {
                Err(error) if is_read_only(&error) => return Err(read_only(path, &error)),
                _ => continue,
            },
            Err(error) if is_read_only(&error) => return Err(read_only(path, &error)),
            Ok(false) => "belongs to another user".to_owned(),
            Err(error) => format!("cannot be made or looked at ({error})"),
        };
        return Err(CliError::Usage(format!(
            "the folder {} {what}. Nothing was started. Give it to user {} by chown, or name another",
            path.display(),
            owner.map_or_else(|| user.to_string(), |_| config.user.clone()),
        )));
    }
    Ok(())
}

fn is_unused(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_only(folder: &Path, error: &io::Error) -> CliError {
    CliError::Refused(format!(
        "the disk of {} is read-only or has failed ({error}). Nothing was begun. `findmnt -T {0}` names it and `dmesg` tells why; once it \
         is sound, make it writable (`mount -o remount,rw`, or unmount, `fsck` and mount), then run the same command again",
        folder.display()
    ))
}

/// Gives up root's rights for good, where the process has them. To be called before any other thread exists.
///
/// # Errors
/// The user does not exist, or the system does not let go.
pub fn drop_privileges(config: &Config) -> Result<(), CliError> {
    let Some((user, group)) = owner(config)? else { return Ok(()) };
    let name = CString::new(config.user.as_str()).context("the user's name holds a null byte")?;
    let drop = || -> nix::Result<()> {
        initgroups(&name, group)?;
        setgid(group)?;
        setuid(user)?;
        // A process that changed its user is closed to itself under /proc, where hasup looks after its children.
        nix::sys::prctl::set_dumpable(true)
    };
    drop().with_context(|| format!("run as user {}", config.user))?;
    Ok(())
}

/// Returns a client for the nodes that the command names, else for this machine's node, else for members once heard of.
pub(super) fn client(cli: &Cli) -> Result<Client, CliError> {
    let reach = &cli.reach;
    let local = Local::load(reach, &NodeFlags::default());
    let data_dir = match &local {
        Ok(local) => local.config.data_dir.clone(),
        Err(_) => PathBuf::from(reach.data_dir.as_deref().unwrap_or("/var/lib/hasup")),
    };
    let mut named = Vec::new();
    for text in &reach.target {
        let address = Address::parse(text, 7401).map_err(|error| {
            CliError::Usage(format!("{error}. Nothing was asked. Use host or host:port of a node's API"))
        })?;
        named.push(address);
    }
    let mut targets: Vec<Target> = named.iter().cloned().map(Target::Tcp).collect();
    if targets.is_empty() {
        // Without a target, the settings are needed to find this machine's node.
        let local = local?;
        targets.push(Target::Admin(admin_socket(&local.config)));
    }
    let known: Vec<String> = named.iter().map(ToString::to_string).collect();
    for member in members_path().map(|path| Members::load(&path)).unwrap_or_default().beside(&known) {
        let target = Address::parse(member, 7401).map(Target::Tcp);
        targets.extend(target.ok().filter(|target| !targets.contains(target)).into_iter().collect::<Vec<_>>());
    }
    client_of(reach, &data_dir, targets)
}

/// Returns a client for `targets`, with the token and the authority that the command names, else those of the node in `data_dir`.
pub(super) fn client_of(reach: &Reach, data_dir: &Path, targets: Vec<Target>) -> Result<Client, CliError> {
    let token_file = reach.api_token_file.clone().unwrap_or_else(|| data_dir.join("api.token"));
    let api_token = read_if_there(&token_file, reach.api_token_file.is_some())?;
    let api_token = api_token.map(|text| Secret::new(String::from_utf8_lossy(&text).trim()));
    let ca_file = reach.ca_file.clone().unwrap_or_else(|| data_dir.join("tls/ca.crt"));
    let ca_pem = read_if_there(&ca_file, reach.ca_file.is_some())?;
    Ok(Client::new(targets, api_token, ca_pem.as_deref()).context("prepare to ask a node")?)
}

/// Returns the admin socket of this machine's node: the one its settings name, else the only one there is.
fn admin_socket(config: &Config) -> PathBuf {
    let wanted = config.admin_socket();
    if wanted.exists() {
        return wanted;
    }
    let entries = fs::read_dir(&config.run_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sockets: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "sock")).collect();
    match (sockets.pop(), sockets.is_empty()) {
        (Some(only), true) => only,
        _ => wanted,
    }
}

fn read_if_there(path: &Path, is_named: bool) -> Result<Option<Vec<u8>>, CliError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) if !is_named => Ok(None),
        Err(error) => Err(CliError::Usage(format!("{} cannot be read ({error}). Nothing was asked", path.display()))),
    }
}

fn members_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map(|cache| cache.join("hasup/members.json"))
}

/// Remembers the members that `status` names, for a day when the node asked today is dead. Best effort.
pub(super) fn remember(status: &Status) {
    let Some(path) = members_path() else { return };
    let mut members = Members::load(&path);
    if members.note(status)
        && let Err(error) = members.save(&path)
    {
        tracing::debug!(%error, path = %path.display(), "the members cannot be remembered");
    }
}

/// Prints every setting in effect with its origin.
pub(super) fn config_check(cli: &Cli, node: &NodeFlags, out: Out) -> Result<ExitCode, CliError> {
    let local = Local::load(&cli.reach, node)?;
    let rows: Vec<_> = local
        .effective
        .iter()
        .map(|effective| {
            let over = effective.instead_of.as_ref().map(|(value, origin)| {
                format!("; {origin} has {value}, which counts once that line is edited, or this one removed")
            });
            let from = format!("{}{}", effective.origin, over.unwrap_or_default());
            vec![effective.key.to_owned(), effective.value.clone(), from]
        })
        .collect();
    let json: Vec<_> = local
        .effective
        .iter()
        .map(|effective| {
            let mut row = serde_json::json!({
                "key": effective.key, "value": effective.value, "origin": effective.origin.to_string(),
            });
            if let Some((value, origin)) = &effective.instead_of {
                row["instead_of"] = serde_json::json!({"value": value, "origin": origin.to_string()});
            }
            row
        })
        .collect();
    out.answer(&json, &table(&["SETTING", "VALUE", "FROM"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes a file that may be absent.
pub(super) fn remove_if_there(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(anyhow::Error::new(error).context(format!("remove {}", path.display())).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_on_the_command_line_are_seen_from_the_working_directory() {
        use clap::Parser;
        let words = "hasup run --data-dir n1 --run-dir /run/n1 --postgres-bin-dir ./bin --node-name n1";
        let cli = Cli::parse_from(words.split(' '));
        let super::super::args::Command::Run { node, .. } = &cli.command else { panic!("{cli:?}") };
        let given: BTreeMap<_, _> = flags(&cli.reach, node).into_iter().map(|(_, key, value)| (key, value)).collect();
        let here = std::env::current_dir().unwrap();
        assert_eq!(given["data_dir"], here.join("n1").display().to_string());
        assert_eq!(given["postgres.bin_dir"], here.join("bin").display().to_string());
        assert_eq!((given["run_dir"].as_str(), given["node_name"].as_str()), ("/run/n1", "n1"));
        assert_eq!(absolute(String::new()), "", "is told as no value");
    }

    #[test]
    fn a_node_file_that_a_person_edited_is_that_persons() {
        let folder = tempfile::tempdir().unwrap();
        let text = own_node_file(&format!("data_dir = \"{}\"\n", folder.path().display()));
        assert!(is_own_node_file(&text) && is_left_over(&text));
        assert!(!is_own_node_file(&format!("{text}witness = true\n")) && !is_own_node_file("witness = true\n"));
        assert_eq!(data_dir_of(&text), folder.path());
        fs::write(folder.path().join("identity.json"), "{}").unwrap();
        assert!(!is_left_over(&text), "a node came to be");
    }
}
