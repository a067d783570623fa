//! Datagrams between nodes, from threads that wait for nothing but the network and the next round.
//!
//! [`ha::pulse::PulseCore`](crate::ha::pulse::PulseCore) decides what is sent and what an arrival means; here are the sockets,
//! the sealing, and the way to the guard: a lease that grows is told to it before anybody else hears of it.
//!
//! Absent on purpose: any disk, any PostgreSQL, any async runtime. The one lock is held for microseconds, by the control loop
//! when it takes a new stance, never across a wait. A datagram goes to every known address of its peer, as one switch port must
//! not decide; the copies are told apart by their sequence number.

mod seal;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Pid;
use rustix::thread::gettid;

pub use self::seal::PulseSecret;
use self::seal::Sealer;
use crate::codec;
use crate::ha::pulse::{Datagram, PulseCore, PulseView, Stance};
use crate::ha::timing::Timing;
use crate::sys::clock::boot_now;
use crate::types::{BootId, BootTime, ClusterGeneration, DaemonIncarnation, Generation, NodeId};

/// Larger than any datagram of hasup; reports stay below one Ethernet frame in clusters of five.
const DATAGRAM_BYTES_MAX: usize = 8192;

/// Who this node is to its peers.
pub struct PulseConfig {
    /// This node.
    pub me: NodeId,
    /// The cluster's id: keys are bound to it.
    pub cluster_id: String,
    /// Which life of the cluster.
    pub cluster_generation: ClusterGeneration,
    /// This boot of the machine.
    pub boot: BootId,
    /// This start of the daemon.
    pub incarnation: DaemonIncarnation,
    /// The private part of the key in this node's member record.
    pub secret: PulseSecret,
    /// The cluster's spans.
    pub timing: Timing,
    /// Where to listen: the peer port's addresses.
    pub listen: Vec<SocketAddr>,
}

/// Another node, as far as pulses go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulsePeer {
    /// The node.
    pub id: NodeId,
    /// The key in its member record.
    pub key: [u8; 32],
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

/// Called with each lease that grew, from the thread that saw it.
type OnLease = Box<dyn Fn(Generation, BootTime) + Send + Sync>;
/// Called whenever what was heard is worth a look, from the thread that heard it.
type OnNews = Box<dyn Fn() + Send + Sync>;

/// A socket, and the family of addresses that it sends to.
struct Bound {
    socket: UdpSocket,
    is_ipv4: bool,
}

impl Bound {
    fn new(address: &SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::bind(address)?, is_ipv4: address.is_ipv4() })
    }
}

struct Shared {
    core: Mutex<PulseCore>,
    sealer: Mutex<Sealer>,
    addresses: Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>,
    sockets: Vec<Bound>,
    /// For peers whose address is of a family that this node does not listen on: sends only, as they answer to where it listens.
    senders: Vec<Bound>,
    on_news: OnNews,
    on_lease: OnLease,
    newer_cluster: Mutex<Option<ClusterGeneration>>,
    is_stopped: AtomicBool,
}

/// The node's pulses. Cheap to clone; they end when [`stop`](Self::stop) is called.
#[derive(Clone)]
pub struct Pulses {
    shared: Arc<Shared>,
    threads: Arc<[Pid]>,
}

impl Pulses {
    /// Binds the sockets and starts a thread for each; the first one also sends the rounds.
    ///
    /// `promised` is the longest lease that this node may have acknowledged before. `on_lease` is called with every lease that grew, and
    /// `on_news` whenever what was heard is worth a look, both from a pulse thread: they must not wait.
    ///
    /// # Errors
    ///
    /// An address cannot be bound, or no thread can be started.
    pub fn start(
        config: PulseConfig,
        promised: Duration,
        on_lease: impl Fn(Generation, BootTime) + Send + Sync + 'static,
        on_news: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let sockets = config.listen.iter().map(Bound::new).collect::<io::Result<Vec<_>>>()?;
        let any: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into()];
        let is_missing = |any: &SocketAddr| !config.listen.iter().any(|address| address.is_ipv4() == any.is_ipv4());
        // a machine without that family has no peers of it either
        let senders = any.iter().filter(|any| is_missing(any)).filter_map(|any| Bound::new(any).ok()).collect();
        let core = PulseCore::new(
            config.me,
            config.cluster_generation,
            config.boot,
            config.incarnation,
            config.timing,
            promised,
            boot_now(),
        );
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            sealer: Mutex::new(Sealer::new(config.me, &config.cluster_id, config.secret)),
            addresses: Mutex::new(BTreeMap::new()),
            sockets,
            senders,
            on_news: Box::new(on_news),
            on_lease: Box::new(on_lease),
            newer_cluster: Mutex::new(None),
            is_stopped: AtomicBool::new(false),
        });
        let (started, ids) = channel();
        for index in 0..shared.sockets.len() {
            let shared = Arc::clone(&shared);
            let started = started.clone();
            std::thread::Builder::new().name(format!("pulse-{index}")).spawn(move || {
                // nobody else knows this number, and nobody who left needs it
                let _ = started.send(gettid());
                drop(started);
                shared.run(index);
            })?;
        }
        drop(started);
        Ok(Self { shared, threads: ids.iter().collect() })
    }

    /// Returns the threads, so that they can be given precedence.
    pub fn threads(&self) -> Arc<[Pid]> {
        Arc::clone(&self.threads)
    }

    /// Replaces the peers; whoever is absent is no longer heard.
    pub fn set_peers(&self, peers: &[PulsePeer]) {
        self.shared.sealer.lock().set_peers(peers.iter().map(|peer| (peer.id, peer.key)));
        *self.shared.addresses.lock() = peers.iter().map(|peer| (peer.id, peer.addresses.clone())).collect();
        let ids: BTreeSet<NodeId> = peers.iter().map(|peer| peer.id).collect();
        self.shared.core.lock().set_peers(&ids);
    }

    /// Replaces the spans.
    pub fn set_timing(&self, timing: Timing) {
        self.shared.core.lock().set_timing(timing);
    }

    /// Takes the control loop's decision; in effect when this returns. News goes out at once.
    pub fn set_stance(&self, stance: Stance) {
        let (datagrams, lease) = {
            let mut core = self.shared.core.lock();
            let before = core.view_lease();
            let datagrams = core.set_stance(boot_now(), stance);
            let after = core.view_lease();
            (datagrams, after.filter(|_| after != before))
        };
        if let Some((generation, end)) = lease {
            (self.shared.on_lease)(generation, end);
        }
        self.shared.send(datagrams);
    }

    /// Returns what is known of lease, promise and peers.
    pub fn view(&self) -> PulseView {
        self.shared.core.lock().view()
    }

    /// Returns until when this node promised to support nobody else.
    pub fn promise_end(&self) -> BootTime {
        self.shared.core.lock().promise_end()
    }

    /// Returns the highest cluster generation above this node's own that was heard of (L26).
    pub fn newer_cluster(&self) -> Option<ClusterGeneration> {
        *self.shared.newer_cluster.lock()
    }

    /// Ends the threads within one round.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn run(&self, index: usize) {
        let is_first = index == 0;
        let socket = &self.sockets[index].socket;
        let mut buffer = [0_u8; DATAGRAM_BYTES_MAX];
        while !self.is_stopped.load(Ordering::Relaxed) {
            if is_first {
                self.round();
            }
            let wait = if is_first { self.until_next_round() } else { Duration::from_millis(200) };
            // a time limit of zero would mean none at all
            if socket.set_read_timeout(Some(wait.max(Duration::from_micros(100)))).is_err() {
                return;
            }
            match socket.recv_from(&mut buffer) {
                Ok((length, _)) => self.take(&buffer[..length]),
                // the time limit, or an ICMP error of an earlier sending: the next round tells
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => {}
                Err(error) => {
                    tracing::error!(%error, "pulse socket failed; this node is not heard until hasup is restarted");
                    return;
                }
            }
        }
    }

    fn until_next_round(&self) -> Duration {
        let next = self.core.lock().next_tick();
        next.since(boot_now())
    }

    fn round(&self) {
        let (datagrams, lease) = {
            let mut core = self.core.lock();
            let before = core.view_lease();
            let datagrams = core.tick(boot_now());
            (datagrams, core.view_lease().filter(|lease| Some(*lease) != before))
        };
        if let Some((generation, end)) = lease {
            (self.on_lease)(generation, end);
        }
        self.send(datagrams);
    }

    fn take(&self, packet: &[u8]) {
        let Some((from, plain)) = self.sealer.lock().open(packet) else { return };
        let Ok(datagram) = codec::decode::<Datagram>(&plain) else { return };
        let received = self.core.lock().receive(boot_now(), from, datagram);
        if let Some((generation, end)) = received.lease {
            (self.on_lease)(generation, end);
        }
        self.send(received.replies);
        if let Some(newer) = received.newer_cluster {
            let mut known = self.newer_cluster.lock();
            *known = (*known).max(Some(newer));
            (self.on_news)();
        }
        if received.is_news {
            (self.on_news)();
        }
    }

    fn send(&self, datagrams: Vec<(NodeId, Datagram)>) {
        for (to, datagram) in datagrams {
            let plain = codec::encode(&datagram);
            let Some(packet) = self.sealer.lock().seal(to, &plain) else { continue };
            let addresses = self.addresses.lock().get(&to).cloned().unwrap_or_default();
            for address in addresses {
                let same_family = |bound: &&Bound| bound.is_ipv4 == address.is_ipv4();
                if let Some(bound) = self.sockets.iter().chain(&self.senders).find(same_family) {
                    // unreachable peers are told by their silence, which is what the protocol counts
                    let _ = bound.socket.send_to(&packet, address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::ha::pulse::Report;

    fn pulses(me: u64, secret: &PulseSecret) -> (Pulses, Arc<Notify>) {
        pulses_at(me, secret, "127.0.0.1:0")
    }

    fn pulses_at(me: u64, secret: &PulseSecret, listen: &str) -> (Pulses, Arc<Notify>) {
        let config = PulseConfig {
            me: NodeId(me),
            cluster_id: "test".to_owned(),
            cluster_generation: ClusterGeneration(1),
            boot: BootId([1; 16]),
            incarnation: DaemonIncarnation(me),
            secret: secret.clone(),
            timing: Timing::default(),
            listen: vec![listen.parse().expect("an address")],
        };
        let news = Arc::new(Notify::new());
        let told = Arc::clone(&news);
        let pulses = Pulses::start(config, Duration::from_secs(2), |_, _| {}, move || told.notify_one());
        (pulses.expect("bind on loopback"), news)
    }

    fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = boot_now() + Duration::from_secs(10);
        while !is_so() {
            assert!(boot_now() < deadline, "not within 10 s: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn two_nodes_grant_a_lease_over_sealed_datagrams_and_a_third_key_is_not_heard() {
        let secrets = [1, 2, 3].map(|_| PulseSecret::generate());
        let (one, _news) = pulses(1, &secrets[0]);
        let (two, _) = pulses(2, &secrets[1]);
        let address = |pulses: &Pulses| pulses.shared.sockets[0].socket.local_addr().expect("bound");
        let peer = |id: u64, key: &PulseSecret, of: &Pulses| PulsePeer {
            id: NodeId(id),
            key: key.public(),
            addresses: vec![address(of)],
        };
        one.set_peers(&[peer(2, &secrets[1], &two)]);
        two.set_peers(&[peer(1, &secrets[0], &one)]);
        let voters = vec![BTreeSet::from([NodeId(1), NodeId(2)])];
        let generation = Generation(7);
        two.set_stance(Stance {
            grants: Some((NodeId(1), generation)),
            grants_until: boot_now() + Duration::from_secs(60),
            grants_span: Duration::from_secs(2),
            voter_sets: voters.clone(),
            ..Stance::default()
        });
        one.set_stance(Stance {
            asks: Some(generation),
            asks_until: boot_now() + Duration::from_secs(60),
            voter_sets: voters,
            report: Report { is_fit: true, ..Report::default() },
            ..Stance::default()
        });
        wait_until("a lease", || one.view().lease.is_some_and(|(held, end)| held == generation && end > boot_now()));
        wait_until("a report", || two.view().peers.get(&NodeId(1)).is_some_and(|peer| peer.report.is_fit));

        // the same number under another key: what it says is not heard, so the promise is not renewed by it
        let (forger, _) = pulses(1, &secrets[2]);
        forger.set_peers(&[peer(2, &secrets[1], &two)]);
        let forged = Report { resigned: Generation(99), ..Report::default() };
        forger.set_stance(Stance { report: forged, ..Stance::default() });
        let newest = two.view().peers[&NodeId(1)].proved_at;
        wait_until("three more rounds", || {
            two.view().peers[&NodeId(1)].proved_at.since(newest) > Duration::from_millis(300)
        });
        assert_eq!(two.view().peers[&NodeId(1)].report.resigned, Generation(0));
        for pulses in [one, two, forger] {
            pulses.stop();
        }
    }

    #[test]
    fn peers_of_another_address_family_are_heard() {
        let secrets = [1, 2].map(|_| PulseSecret::generate());
        let (one, _news) = pulses_at(1, &secrets[0], "[::1]:0");
        let (two, _) = pulses_at(2, &secrets[1], "127.0.0.1:0");
        for (here, id, key, there) in [(&one, 2, &secrets[1], &two), (&two, 1, &secrets[0], &one)] {
            let addresses = vec![there.shared.sockets[0].socket.local_addr().expect("bound")];
            here.set_peers(&[PulsePeer { id: NodeId(id), key: key.public(), addresses }]);
        }
        for here in [&one, &two] {
            wait_until("the other's pulse", || !here.view().peers.is_empty());
        }
        one.stop();
        two.stop();
    }

    #[test]
    fn hostile_packets_are_dropped() {
        let (pulses, _) = pulses(1, &PulseSecret::generate());
        for length in [0, 1, 32, 33, 48, 1500] {
            pulses.shared.take(&vec![0xA5; length]);
        }
        assert!(pulses.view().peers.is_empty());
        pulses.stop();
    }
}
