//! Hosts as network namespaces: each with an address, a cable to a switch, its own `/run`, and a freezer.
//!
//! A host's processes are those in its network namespace. Cables are pulled and packets dropped at the switch, so that a host
//! cannot tell a fault from the real thing. Clients that run on a host ("beside" it) are kept apart: neither frozen nor
//! killed with it.
//!
//! Absent: delay and rate limits (the kernels at hand have no netem), disks of their own, process namespaces.

use crate::sys::clock::boot_now;
use crate::sys::fs::write_volatile;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process;
use super::schedule::{Addresses, Direction};

/// Where cgroup v1's freezer is, and the unified hierarchy, as distributions mount them.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
const UNIFIED: &str = "/sys/fs/cgroup";
/// How long a command of `ip` or `nft`, a kill or a freeze may take to show.
const LIMIT: Duration = Duration::from_secs(10);

/// A host cannot be made or broken.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Only root makes namespaces.
    #[error("hosts are network namespaces, which only root can make; nothing was started. Run this as root")]
    NotRoot,
    /// A program or the kernel refused.
    #[error("`{command}` failed, so the hosts are not what the schedule needs: {why}")]
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
    /// Makes hosts named `names` on a switch; each sees its own folder `dir/NAME` and none of the others'.
    ///
    /// # Errors
    /// [`HostError`]; whatever was made is removed again.
    pub fn set_up(names: &[&str], dir: &Path, addresses: Addresses) -> Result<Self, HostError> {
        if !nix::unistd::Uid::effective().is_root() {
            return Err(HostError::NotRoot);
        }
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
        nft(
            &switch,
            "add table bridge faults\nadd chain bridge faults forward { type filter hook forward priority 0; }\n",
        )?;
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
            nft(&switch, &chain)?;
            let freezer = Freezer::make(&namespace)?;
            let others: Vec<PathBuf> =
                names.iter().filter(|other| *other != name).map(|other| dir.join(other)).collect();
            let anchor = anchor(&namespace, &others, table.as_deref())?;
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

    /// Pulls the cable.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn cut(&self) -> Result<(), HostError> {
        ip(&["-n", &self.switch, "link", "set", &self.port, "down"])
    }

    /// Puts the cable back and lets every packet pass.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn heal(&self) -> Result<(), HostError> {
        self.rules(&[])?;
        ip(&["-n", &self.switch, "link", "set", &self.port, "up"])
    }

    /// Drops the packets of one direction, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn oneway(&self, direction: Direction) -> Result<(), HostError> {
        let side = match direction {
            Direction::In => "oifname",
            Direction::Out => "iifname",
        };
        self.rules(&[format!("{side} \"{}\" drop", self.port)])
    }

    /// Drops every packet between this host and `other`, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn part(&self, other: &Self) -> Result<(), HostError> {
        let way = |from: &str, to: &str| format!("iifname \"{from}\" oifname \"{to}\" drop");
        self.rules(&[way(&self.port, &other.port), way(&other.port, &self.port)])
    }

    /// Drops `percent` of the packets of each direction, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn loss(&self, percent: u8) -> Result<(), HostError> {
        let share = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
        self.rules(&["oifname", "iifname"].map(|side| format!("{side} \"{}\" {share}drop", self.port)))
    }

    fn rules(&self, rules: &[String]) -> Result<(), HostError> {
        let mut text = format!("flush chain bridge faults {}\n", self.port);
        for rule in rules {
            text.push_str(&format!("add rule bridge faults {} {rule}\n", self.port));
        }
        nft(&self.switch, &text)
    }

    /// Freezes the host's processes.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses or does not finish in time.
    pub fn pause(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        match &self.freezer {
            Freezer::V1(folder) => {
                let file = folder.join("freezer.state");
                put(&file, "FROZEN")?;
                await_text(&file, "FROZEN")
            }
            Freezer::V2(folder) => {
                put(&folder.join("cgroup.freeze"), "1")?;
                await_text(&folder.join("cgroup.events"), "frozen 1")
            }
            Freezer::Stop => {
                process::send(self.processes(clients), Signal::SIGSTOP);
                Ok(())
            }
        }
    }

    /// Lets the host's processes go on.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses.
    pub fn resume(&self) -> Result<(), HostError> {
        match &self.freezer {
            Freezer::V1(folder) => put(&folder.join("freezer.state"), "THAWED"),
            Freezer::V2(folder) => put(&folder.join("cgroup.freeze"), "0"),
            Freezer::Stop => {
                process::send(self.processes(&BTreeSet::new()), Signal::SIGCONT);
                Ok(())
            }
        }
    }

    /// Takes the power away: the cable first, so that no process says goodbye, then SIGKILL to everything but `clients`.
    ///
    /// # Errors
    /// [`HostError`] when the cable stays or processes do not end.
    pub fn crash(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        self.cut()?;
        self.kill(clients)
    }

    /// Sends SIGKILL to everything but `clients` until nothing is left.
    ///
    /// # Errors
    /// [`HostError::Alive`] when processes do not end.
    pub fn kill(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        let deadline = boot_now() + LIMIT;
        loop {
            let pids = self.processes(clients);
            if pids.is_empty() {
                return Ok(());
            }
            if boot_now() > deadline {
                return Err(HostError::Alive { host: self.name.clone(), pids });
            }
            process::send(pids, Signal::SIGKILL);
            // What is frozen dies when it thaws, before it runs another instruction.
            self.resume()?;
            sleep(Duration::from_millis(5));
        }
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
fn anchor(namespace: &str, hidden: &[PathBuf], table: Option<&Path>) -> Result<Child, HostError> {
    let mut script = "mount --make-rprivate / && mount -t tmpfs -o mode=755 tmpfs /run".to_owned();
    for folder in hidden {
        script.push_str(&format!(" && mount -t tmpfs -o mode=000 tmpfs '{}'", folder.display()));
    }
    if let Some(table) = table {
        script.push_str(&format!(" && mount --bind '{}' /etc/hosts", table.display()));
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
    let line = format!("{program} {}", words.join(" "));
    let failed = |why: String| HostError::Command { command: line.clone(), why };
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is {program} installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    /// Returns whether a connection from the one place to the other comes about within `limit`.
    fn connects(lab: &Lab, to: &Host, limit: Duration) -> bool {
        std::thread::scope(|scope| {
            let listener = scope.spawn(|| {
                to.enter().unwrap();
                TcpListener::bind((to.address.as_str(), 0)).unwrap()
            });
            let listener = listener.join().unwrap();
            let port = listener.local_addr().unwrap().port();
            let target: SocketAddr = format!("{}:{port}", to.address).parse().unwrap();
            let dial = scope.spawn(move || {
                lab.enter_as_judge().unwrap();
                TcpStream::connect_timeout(&target, limit).is_ok()
            });
            dial.join().unwrap()
        })
    }

    fn start(host: &Host, words: &[&str]) -> Child {
        let prefix = host.prefix();
        Command::new(&prefix[0]).args(&prefix[1..]).args(words).stdin(Stdio::null()).spawn().unwrap()
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = boot_now() + LIMIT;
        while !is_so() {
            assert!(boot_now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    /// One test for all faults, as labs of one process share their names.
    #[test]
    fn hosts_are_cut_healed_frozen_and_killed_and_nothing_is_left() {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("SKIPPED: hosts need root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["n1", "n2"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("mine"), name).unwrap();
        }
        let lab = match Lab::set_up(&["n1", "n2"], folder.path(), Addresses::Ipv4) {
            Ok(lab) => lab,
            Err(error) => {
                let told = error.to_string();
                assert!(told.contains("ip") || told.contains("nft"), "{told}");
                eprintln!("SKIPPED: this machine makes no hosts: {told}");
                return;
            }
        };
        let (long, short) = (Duration::from_secs(5), Duration::from_millis(300));
        let host = lab.host("n1").unwrap();
        assert!(connects(&lab, host, long), "whole");
        host.cut().unwrap();
        assert!(!connects(&lab, host, short), "cut");
        host.heal().unwrap();
        assert!(connects(&lab, host, long), "healed");
        for direction in [Direction::In, Direction::Out] {
            host.oneway(direction).unwrap();
            assert!(!connects(&lab, host, short), "{direction:?}");
        }
        let other = lab.host("n2").unwrap();
        host.part(other).unwrap();
        assert!(connects(&lab, host, long), "parted from n2 alone");
        host.loss(100).unwrap();
        assert!(!connects(&lab, host, short), "all lost");
        assert!(connects(&lab, lab.host("n2").unwrap(), long), "the other host is not touched");
        host.loss(20).unwrap();
        host.heal().unwrap();
        assert!(connects(&lab, host, long), "healed again");

        let mut seen = Command::new(&host.prefix()[0]);
        seen.args(&host.prefix()[1..])
            .args(["sh", "-c", "cat \"$0\"/*/mine; test -e /run/netns || echo ,alone"])
            .arg(folder.path());
        assert_eq!(
            String::from_utf8_lossy(&seen.output().unwrap().stdout),
            "n1,alone\n",
            "its own folder, and a /run of its own"
        );

        let nobody = BTreeSet::new();
        let mut sleeper = start(host, &["sleep", "1000"]);
        let mut client = {
            let prefix = host.client_prefix();
            Command::new(&prefix[0]).args(&prefix[1..]).args(["sleep", "1001"]).spawn().unwrap()
        };
        let pid = i32::try_from(sleeper.id()).unwrap();
        let clients = BTreeSet::from([i32::try_from(client.id()).unwrap()]);
        until("both run on the host", || host.processes(&nobody).len() == 2 && host.processes(&clients).contains(&pid));
        host.pause(&clients).unwrap();
        host.crash(&clients).unwrap();
        assert_eq!(sleeper.wait().unwrap().code(), None, "killed, although frozen");
        assert_eq!(host.processes(&nobody), clients, "a client beside the host outlives its crash");
        client.kill().unwrap();
        client.wait().unwrap();
        host.heal().unwrap();

        let name = host.namespace.clone();
        drop(lab);
        assert!(!Path::new("/run/netns").join(&name).exists());
        assert!(!Path::new(FREEZER).join(&name).exists());
    }
}
