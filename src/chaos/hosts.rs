//! Hosts as network namespaces: each with an address, a cable to a switch, its own `/run`, and a freezer.
//!
//! A host's processes are those in its network namespace. Cables are pulled and packets dropped at the switch, so that a host
//! cannot tell a fault from the real thing. Clients that run on a host ("beside" it) are kept apart: neither frozen nor
//! killed with it.
//!
//! What is done to them is in `faults`, and what shows that it was in `measure`.
//!
//! Absent: delay and rate limits (the kernels at hand have no netem), disks of their own, process namespaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::machine::{Machine, Need};
use super::process;
use super::schedule::Addresses;
use crate::sys::clock::boot_now;
use crate::sys::fs::write_volatile;

mod faults;
mod measure;

pub use measure::{Packets, try_rules};

/// Where cgroup v1's freezer is, and the unified hierarchy, as distributions mount them.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
const UNIFIED: &str = "/sys/fs/cgroup";
/// How long a command of `ip` or `nft`, a kill or a freeze may take to show.
const LIMIT: Duration = Duration::from_secs(10);

/// A host cannot be made or broken.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program or the kernel refused.
    #[error("`{command}` failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        why: String,
    },
    /// Processes of a host do not end.
    #[error("processes {pids:?} of host {host} do not end within {} s; end them by hand", LIMIT.as_secs())]
    Alive {
        /// The host.
        host: String,
        /// Their numbers.
        pids: BTreeSet<i32>,
    },
    /// A file of the kernel's could not be used.
    #[error("use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// How a host is frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Freezer {
    /// A cgroup of version 1: its folder.
    V1(PathBuf),
    /// A cgroup of version 2: its folder.
    V2(PathBuf),
    /// SIGSTOP to every process.
    Stop,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its address on the cluster's network.
    pub address: String,
    namespace: String,
    switch: String,
    port: String,
    freezer: Freezer,
    anchor: Child,
    network: PathBuf,
    has_rules: bool,
}

/// A switch with hosts and one place outside for the judge. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub struct Lab {
    /// The hosts, by name.
    pub hosts: Vec<Host>,
    switch: String,
    judge: String,
    /// What stands in for `/etc/hosts`, where hosts have names.
    table: Option<PathBuf>,
}

fn ipv4(index: usize) -> String {
    format!("10.77.0.{}", index + 1)
}

fn full_name(host: &str) -> String {
    format!("{host}.hasup.test")
}

/// Writes a table of the hosts' names and addresses, as `/etc/hosts` has it, and returns where.
fn host_table(names: &[&str], dir: &Path) -> Result<PathBuf, HostError> {
    let lines = names.iter().enumerate().map(|(index, name)| format!("{} {}\n", ipv4(index), full_name(name)));
    let path = dir.join("hosts");
    put(&path, &format!("127.0.0.1 localhost\n{}", lines.collect::<String>()))?;
    Ok(path)
}

impl Lab {
    /// Makes hosts named `names` on a switch; each sees its own folder `dir/NAME` and none of the others', and finds nothing in the
    /// files `hidden`. Where the machine has no rules for packets, none are dropped. It must have what [`Need::OF_HOSTS`] names.
    ///
    /// # Errors
    /// [`HostError`]; whatever was made is removed again.
    pub fn set_up(
        names: &[&str],
        dir: &Path,
        addresses: Addresses,
        machine: &Machine,
        hidden: &[PathBuf],
    ) -> Result<Self, HostError> {
        remove_stale();
        let id = format!("hasup{}", std::process::id());
        // Labs of one machine may live side by side; their networks never meet, so one range serves all.
        let (switch, judge) = (format!("{id}-switch"), format!("{id}-judge"));
        let table = match addresses {
            Addresses::Names => Some(host_table(names, dir)?),
            Addresses::Ipv4 | Addresses::Ipv6 => None,
        };
        let mut lab = Self { hosts: Vec::new(), switch: switch.clone(), judge: judge.clone(), table: table.clone() };
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        let has_rules = machine.lacks(&[Need::Rules]).is_none();
        if has_rules {
            nft(&switch, measure::TABLE)?;
        }
        let is_v6 = addresses == Addresses::Ipv6;
        plug(&switch, &judge, "p-judge", if is_v6 { "fd77::ff/64" } else { "10.77.0.254/24" })?;
        for (index, name) in names.iter().enumerate() {
            let number = index + 1;
            let own = if is_v6 { format!("fd77::{number}") } else { ipv4(index) };
            let namespace = format!("{id}-{name}");
            let port = format!("p-{name}");
            plug(&switch, &namespace, &port, &format!("{own}/{}", if is_v6 { 64 } else { 24 }))?;
            let address = if table.is_some() { full_name(name) } else { own };
            let chain = format!("add chain bridge faults {port}\nadd rule bridge faults forward jump {port}\n");
            if has_rules {
                nft(&switch, &chain)?;
            }
            let freezer = Freezer::make(&namespace)?;
            let others: Vec<PathBuf> =
                names.iter().filter(|other| *other != name).map(|other| dir.join(other)).collect();
            let anchor = anchor(&namespace, &others, hidden, table.as_deref())?;
            let network = PathBuf::from(format!("/proc/{}/ns/net", anchor.id()));
            let network = fs::read_link(&network).map_err(|source| HostError::File { path: network, source })?;
            lab.hosts.push(Host {
                name: (*name).to_owned(),
                address,
                namespace,
                switch: switch.clone(),
                port,
                freezer,
                anchor,
                network,
                has_rules,
            });
        }
        Ok(lab)
    }

    /// Moves the calling thread, and all that it starts from now on, to the judge's place on the network.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses.
    pub fn enter_as_judge(&self) -> Result<(), HostError> {
        enter(&self.judge)?;
        let Some(table) = &self.table else { return Ok(()) };
        let failed = |why: String| HostError::Command { command: "look the hosts' names up".to_owned(), why };
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|error| failed(error.to_string()))?;
        run("mount", &["--make-rprivate", "/"], "")?;
        run("mount", &["--bind", &table.display().to_string(), "/etc/hosts"], "")
    }

    /// Returns the host named `name`.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.resume();
            let _ = host.kill(&BTreeSet::new());
            let _ = host.anchor.kill();
            let _ = host.anchor.wait();
            if let Freezer::V1(folder) | Freezer::V2(folder) = &host.freezer {
                // A killed process leaves its cgroup a moment later.
                let deadline = boot_now() + LIMIT;
                while fs::remove_dir(folder).is_err() && folder.exists() && boot_now() < deadline {
                    sleep(Duration::from_millis(10));
                }
            }
        }
        let hosts: Vec<String> = self.hosts.iter().map(|host| host.namespace.clone()).collect();
        for namespace in hosts.iter().chain([&self.judge, &self.switch]) {
            // Those not made yet, when the set-up failed half-way, are no loss.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

impl Host {
    /// Returns what precedes a command line so that it runs as a process of this host.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        let mut words = match &self.freezer {
            Freezer::V1(folder) | Freezer::V2(folder) => {
                let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", folder.display());
                ["sh", "-c", &join, "sh"].map(str::to_owned).to_vec()
            }
            Freezer::Stop => Vec::new(),
        };
        let target = self.anchor.id().to_string();
        words.extend(["nsenter", "--target", &target, "--net", "--mount", "--"].map(str::to_owned));
        words
    }

    /// Returns what precedes the command line of a client beside the host: on its network, and not part of it.
    #[must_use]
    pub fn client_prefix(&self) -> Vec<String> {
        let target = self.anchor.id().to_string();
        ["nsenter", "--target", &target, "--net", "--"].map(str::to_owned).to_vec()
    }

    /// Moves the calling thread, and all that it starts from now on, to this host's network.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses.
    pub fn enter(&self) -> Result<(), HostError> {
        enter(&self.namespace)
    }

    /// Returns the numbers of the host's processes, those of `clients` left out.
    #[must_use]
    pub fn processes(&self, clients: &BTreeSet<i32>) -> BTreeSet<i32> {
        let anchor = i32::try_from(self.anchor.id()).unwrap_or_default();
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        process::scan()
            .into_values()
            .filter(|process| process.network.as_ref() == Some(&self.network))
            .map(|process| process.pid)
            .filter(|pid| *pid != anchor && *pid != me && !clients.contains(pid))
            .collect()
    }
}

impl Freezer {
    fn make(name: &str) -> Result<Self, HostError> {
        let make = |folder: PathBuf| match fs::create_dir(&folder) {
            Ok(()) => Ok(folder),
            Err(source) => Err(HostError::File { path: folder, source }),
        };
        if Path::new(FREEZER).join("cgroup.procs").exists() {
            return make(Path::new(FREEZER).join(name)).map(Self::V1);
        }
        if Path::new(UNIFIED).join("cgroup.controllers").exists() {
            return make(Path::new(UNIFIED).join(name)).map(Self::V2);
        }
        Ok(Self::Stop)
    }
}

fn plug(switch: &str, namespace: &str, port: &str, address: &str) -> Result<(), HostError> {
    ip(&["netns", "add", namespace])?;
    ip(&["link", "add", "name", "eth0", "netns", namespace, "type", "veth", "peer", "name", port, "netns", switch])?;
    ip(&["-n", switch, "link", "set", port, "master", "br0", "up"])?;
    let mut add = vec!["-n", namespace, "addr", "add", address, "dev", "eth0"];
    // nobody else can have it, and looking for a duplicate takes a second
    add.extend(address.contains(':').then_some("nodad"));
    ip(&add)?;
    ip(&["-n", namespace, "link", "set", "eth0", "up"])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])
}

/// Starts the process that keeps a host's namespaces: the chassis, which a power cut leaves standing.
fn anchor(namespace: &str, folders: &[PathBuf], files: &[PathBuf], table: Option<&Path>) -> Result<Child, HostError> {
    let mut script = "mount --make-rprivate / && mount -t tmpfs -o mode=755 tmpfs /run".to_owned();
    for folder in folders {
        script.push_str(&format!(" && mount -t tmpfs -o mode=000 tmpfs {}", quoted(folder)));
    }
    for file in files {
        script.push_str(&format!(" && mount --bind /dev/null {}", quoted(file)));
    }
    if let Some(table) = table {
        script.push_str(&format!(" && mount --bind {} /etc/hosts", quoted(table)));
    }
    script.push_str(" && echo ready && exec sleep infinity");
    let failed = |why: String| HostError::Command { command: format!("prepare {namespace}: {script}"), why };
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "unshare", "--mount", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut said = String::new();
    let output = child.stdout.take().ok_or_else(|| failed("it has no output".into()))?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said)
        .map_err(|error| failed(error.to_string()))?;
    if said.trim() == "ready" {
        return Ok(child);
    }
    let _ = child.kill();
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Returns a path as one word of a shell's.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Removes what runs that were killed have left: namespaces named after a process that is no more.
fn remove_stale() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let number = name.strip_prefix("hasup").and_then(|rest| rest.split_once('-')).map(|(number, _)| number);
        let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{number}")).exists() {
            continue;
        }
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).stdin(Stdio::null()).output() {
            let pids = String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>();
            process::send(pids, Signal::SIGKILL);
        }
        let _ = put(&Path::new(FREEZER).join(&name).join("freezer.state"), "THAWED");
        let _ = ip(&["netns", "del", &name]);
        let _ = fs::remove_dir(Path::new(FREEZER).join(&name));
        let _ = fs::remove_dir(Path::new(UNIFIED).join(&name));
    }
}

fn enter(namespace: &str) -> Result<(), HostError> {
    let path = PathBuf::from(format!("/run/netns/{namespace}"));
    let file = File::open(&path).map_err(|source| HostError::File { path: path.clone(), source })?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .map_err(|error| HostError::File { path, source: error.into() })
}

fn put(file: &Path, text: &str) -> Result<(), HostError> {
    write_volatile(file, text.as_bytes()).map_err(|source| HostError::File { path: file.to_owned(), source })
}

fn await_text(file: &Path, text: &str) -> Result<(), HostError> {
    let deadline = boot_now() + LIMIT;
    loop {
        let now = fs::read_to_string(file).map_err(|source| HostError::File { path: file.to_owned(), source })?;
        if now.lines().any(|line| line == text) {
            return Ok(());
        }
        if boot_now() > deadline {
            let source =
                std::io::Error::new(std::io::ErrorKind::TimedOut, format!("it says `{}`, not {text}", now.trim()));
            return Err(HostError::File { path: file.to_owned(), source });
        }
        sleep(Duration::from_millis(2));
    }
}

fn ip(words: &[&str]) -> Result<(), HostError> {
    run("ip", words, "")
}

fn nft(namespace: &str, text: &str) -> Result<(), HostError> {
    run("ip", &["netns", "exec", namespace, "nft", "-f", "-"], text)
}

fn run(program: &str, words: &[&str], input: &str) -> Result<(), HostError> {
    said(program, words, input).map(|_| ())
}

/// Runs a command and returns its standard output.
fn said(program: &str, words: &[&str], input: &str) -> Result<String, HostError> {
    let line = format!("{program} {}", words.join(" "));
    let failed = |why: String| HostError::Command { command: line.clone(), why };
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is {program} installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests;
