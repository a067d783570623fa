//! What the members' host names stand for, looked up beside everything else. A resolver that is out must neither hold anything up
//! nor part nodes that know each other: it may have been on the very machine that died. What a name stood for last counts until the
//! resolver says something else, and is told where it fails for long.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::Shared;
use crate::config::{Address, Host};
use crate::ha::record::Member;
use crate::kv::State;
use crate::sys::clock::boot_now;
use crate::types::{BootTime, NodeId};

/// How often names are looked up anew.
const AGAIN: Duration = Duration::from_secs(3);
/// How long a resolver may take: members that came meanwhile wait for their turn.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// A name that is not found for so long is told: resolvers are restarted, too.
const TOLD_AFTER: Duration = Duration::from_secs(15);

/// What names stand for.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    known: BTreeMap<String, Vec<IpAddr>>,
    /// Since when a name is not found, and why.
    failing: BTreeMap<String, (BootTime, String)>,
    /// Changes with what is known.
    version: u64,
}

impl Memory {
    /// Takes an answer in; returns whether anything else is known now.
    fn learn(&mut self, now: BootTime, name: String, found: std::io::Result<Vec<IpAddr>>) -> bool {
        let mut found = match found {
            Ok(found) if found.is_empty() => return self.fail(now, name, "it stands for no address".to_owned()),
            Ok(found) => found,
            Err(error) => return self.fail(now, name, error.to_string()),
        };
        self.failing.remove(&name);
        // resolvers give them in turn
        found.sort();
        found.dedup();
        if self.known.get(&name) == Some(&found) {
            return false;
        }
        self.known.insert(name, found);
        self.version += 1;
        true
    }

    fn fail(&mut self, now: BootTime, name: String, why: String) -> bool {
        self.failing.entry(name).or_insert((now, String::new())).1 = why;
        false
    }
}

impl Resolver {
    /// Returns a number that changes with what is known.
    pub(super) fn version(&self) -> u64 {
        self.memory.lock().version
    }

    /// What the host of a member stood for last; for an address itself, nothing.
    pub(super) fn known(&self, host: &str) -> Vec<IpAddr> {
        let Ok(Host::Name(name)) = host.parse() else { return Vec::new() };
        self.memory.lock().known.get(&name).cloned().unwrap_or_default()
    }

    /// Where pulses for these addresses go.
    pub(super) fn sockets(&self, addresses: &[String]) -> Vec<SocketAddr> {
        let memory = self.memory.lock();
        let mut sockets = Vec::new();
        for Address { host, port } in addresses.iter().filter_map(|address| Address::parse(address, 0).ok()) {
            match host {
                Host::Ip(ip) => sockets.push(SocketAddr::new(ip, port)),
                Host::Name(name) => {
                    sockets.extend(memory.known.get(&name).into_iter().flatten().map(|ip| SocketAddr::new(*ip, port)));
                }
            }
        }
        sockets
    }

    /// The addresses, and after them what their names stood for last.
    pub(super) fn with_known(&self, addresses: &[String]) -> Vec<String> {
        let known = self.sockets(addresses).into_iter().map(|socket| socket.to_string());
        let known: Vec<String> = known.filter(|known| !addresses.contains(known)).collect();
        addresses.iter().cloned().chain(known).collect()
    }

    /// Tells of names that are not found for long.
    pub(super) fn told(&self, now: BootTime, me: NodeId, state: &State) -> Vec<String> {
        let memory = self.memory.lock();
        let mut told = Vec::new();
        for member in state.members.values().filter(|member| member.id != me) {
            for name in names_of(member) {
                let Some((since, why)) = memory.failing.get(&name) else { continue };
                if now.since(*since) < TOLD_AFTER {
                    continue;
                }
                let instead = match memory.known.get(&name) {
                    Some(known) => {
                        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                        format!("what it stood for last is used meanwhile: {}", known.join(", "))
                    }
                    None => format!("{} is not reached by it", member.name),
                };
                told.push(format!(
                    "{name}, where {} is, is not found by this machine's resolver ({why}); {instead}. `getent hosts {name}` asks it",
                    member.name
                ));
            }
        }
        told
    }
}

/// The names, and no addresses, under which a member is found.
fn names_of(member: &Member) -> BTreeSet<String> {
    let peers = member.peer_addresses.iter().filter_map(|address| Some(Address::parse(address, 0).ok()?.host));
    let hosts = peers.chain(member.postgres_host.parse::<Host>());
    hosts.filter_map(|host| if let Host::Name(name) = host { Some(name) } else { None }).collect()
}

/// Looks the names of the members up, again and again. Ends with the node.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    loop {
        let state = shared.state();
        let others = state.members.values().filter(|member| member.id != shared.me);
        let names: BTreeSet<String> = others.flat_map(|member| names_of(member)).collect();
        {
            let mut memory = shared.resolver.memory.lock();
            memory.known.retain(|name, _| names.contains(name));
            memory.failing.retain(|name, _| names.contains(name));
        }
        let mut lookups: FuturesUnordered<_> = names
            .into_iter()
            .map(|name| async move {
                let found = match timeout(LOOKUP_LIMIT, lookup_host((name.as_str(), 0))).await {
                    Ok(Ok(found)) => Ok(found.map(|socket| socket.ip()).collect()),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(Error::new(ErrorKind::TimedOut, "it is silent")),
                };
                (name, found)
            })
            .collect();
        // each counts when it is there: one whose server is silent holds up no other
        while let Some((name, found)) = lookups.next().await {
            if shared.resolver.memory.lock().learn(boot_now(), name, found) {
                shared.news.notify_one();
            }
        }
        let index = state.members_index;
        let changed = states.wait_for(|applied| applied.state.members_index != index);
        if let Ok(Err(_)) = timeout(AGAIN, changed).await.map(|changed| changed.map(drop)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::record::MemberKind;

    #[test]
    fn what_a_name_stood_for_outlasts_its_resolver() {
        let resolver = Resolver::default();
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let learn = |found: std::io::Result<Vec<IpAddr>>| {
            resolver.memory.lock().learn(BootTime(0), "db1.example".to_owned(), found)
        };
        let addresses = ["DB1.example:7400".to_owned(), "10.0.0.9:7400".to_owned(), "[fd00::1]:7400".to_owned()];
        assert_eq!(resolver.sockets(&addresses).len(), 2);
        assert!(learn(Ok(vec![ip(2), ip(1)])));
        assert!(!learn(Ok(vec![ip(1), ip(2)])), "the same in another order");
        let version = resolver.version();
        assert!(!learn(Ok(Vec::new())));
        assert!(!learn(Err(std::io::Error::other("Temporary failure in name resolution"))));
        assert_eq!((resolver.version(), resolver.known("db1.example")), (version, vec![ip(1), ip(2)]));
        assert_eq!(
            resolver.with_known(&addresses),
            ["DB1.example:7400", "10.0.0.9:7400", "[fd00::1]:7400", "10.0.0.1:7400", "10.0.0.2:7400"]
        );
        assert_eq!(resolver.known("10.0.0.9"), Vec::<IpAddr>::new());
        assert!(learn(Ok(vec![ip(3)])));
        assert_eq!(resolver.known("db1.example"), [ip(3)]);
    }

    #[test]
    fn a_name_that_is_not_found_for_long_is_told_once_until_it_is_found_and_anew_when_it_fails_again() {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            kind: MemberKind::Data,
            peer_addresses: vec![format!("db{id}.example:7400"), "10.0.0.9:7400".to_owned()],
            api_address: format!("api{id}.example:7401"),
            // the same name once more
            postgres_host: format!("db{id}.example"),
            postgres_port: 5432,
            pulse_key: [0; 32],
            priority: 100,
            nofailover: false,
            version: String::new(),
        };
        let members = [1, 2, 3].map(|id| (NodeId(id), Arc::new(member(id))));
        let mut state = State::default();
        state.members.extend(members);
        let resolver = Resolver::default();
        let at = |second: u64| BootTime::from_millis(1000 * second);
        let learn = |second: u64, host: &str, found: std::io::Result<Vec<IpAddr>>| {
            resolver.memory.lock().learn(at(second), host.to_owned(), found);
        };
        let fail = |second: u64, host: &str| learn(second, host, Err(std::io::Error::other("no answer")));
        let told = |second: u64| resolver.told(at(second), NodeId(1), &state);

        for second in (100..=114).step_by(3) {
            fail(second, "db2.example");
            fail(second, "db1.example");
            assert_eq!(told(second), Vec::<String>::new(), "second {second}: it may be a restart");
        }
        let warnings = told(115);
        assert_eq!(warnings.len(), 1, "one name, and nothing of this node's own: {warnings:?}");
        let begin =
            "db2.example, where n2 is, is not found by this machine's resolver (no answer); n2 is not reached by it.";
        assert!(warnings[0].starts_with(begin), "{warnings:?}");
        fail(118, "db2.example");
        assert_eq!(told(118), warnings, "the same as long as it lasts");

        learn(121, "db2.example", Ok(vec![[10, 0, 0, 2].into()]));
        assert_eq!(told(121), Vec::<String>::new(), "it has healed");
        fail(124, "db2.example");
        assert_eq!(told(138), Vec::<String>::new(), "the time before does not count");
        let warnings = told(139);
        assert!(warnings[0].contains("what it stood for last is used meanwhile: 10.0.0.2."), "{warnings:?}");
    }
}
