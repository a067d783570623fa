//! Hosts are made, broken and measured for real, where this is root.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;
use crate::chaos::schedule::Direction;

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
    let secret = folder.path().join("it's the schedule");
    fs::write(&secret, "at 1s crash active").unwrap();
    let lab = match Lab::set_up(
        &["n1", "n2"],
        folder.path(),
        Addresses::Ipv4,
        &Machine::look(),
        std::slice::from_ref(&secret),
    ) {
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
    assert!(
        !host.carrier().unwrap() && lab.host("n2").unwrap().carrier().unwrap(),
        "its own cable is out, and no other"
    );
    host.heal().unwrap();
    assert!(connects(&lab, host, long), "healed");
    assert!(host.carrier().unwrap());
    for direction in [Direction::In, Direction::Out] {
        host.oneway(direction).unwrap();
        assert_eq!(host.packets().unwrap().rules, 1);
        assert!(!connects(&lab, host, short), "{direction:?}");
        let packets = host.packets().unwrap();
        let (of_it, of_the_other) = match direction {
            Direction::In => (packets.dropped_in, packets.dropped_out),
            Direction::Out => (packets.dropped_out, packets.dropped_in),
        };
        assert!(of_it > 0 && of_the_other == 0, "{direction:?}: {packets:?}");
    }
    let other = lab.host("n2").unwrap();
    host.part(other).unwrap();
    assert!(connects(&lab, host, long), "parted from n2 alone");
    let to_n2 = SocketAddr::new(other.address.parse().unwrap(), 9);
    let dial = || {
        host.enter().unwrap();
        TcpStream::connect_timeout(&to_n2, short).is_ok()
    };
    assert!(!std::thread::scope(|scope| scope.spawn(dial).join().unwrap()));
    assert!(host.packets().unwrap().dropped_out > 0);
    host.loss(100).unwrap();
    assert!(!connects(&lab, host, short), "all lost");
    let packets = host.packets().unwrap();
    assert!(packets.seen_in > 0 && packets.seen_in == packets.dropped_in && packets.rules == 2, "{packets:?}");
    assert!(connects(&lab, lab.host("n2").unwrap(), long), "the other host is not touched");
    host.loss(20).unwrap();
    host.heal().unwrap();
    assert!(connects(&lab, host, long), "healed again");
    assert_eq!(host.packets().unwrap(), Packets::default());

    let mut seen = Command::new(&host.prefix()[0]);
    seen.args(&host.prefix()[1..])
        .args(["sh", "-c", "cat \"$0\"/*/mine; test -e /run/netns || echo ,alone"])
        .arg(folder.path());
    assert_eq!(
        String::from_utf8_lossy(&seen.output().unwrap().stdout),
        "n1,alone\n",
        "its own folder, and a /run of its own"
    );
    let mut look = Command::new(&host.prefix()[0]);
    look.args(&host.prefix()[1..]).arg("cat").arg(&secret);
    assert!(look.output().unwrap().stdout.is_empty(), "the schedule cannot be read from a host");
    assert!(!fs::read(&secret).unwrap().is_empty());

    let nobody = BTreeSet::new();
    let mut sleeper = start(host, &["sleep", "1000"]);
    let mut client = {
        let prefix = host.client_prefix();
        Command::new(&prefix[0]).args(&prefix[1..]).args(["sleep", "1001"]).spawn().unwrap()
    };
    let pid = i32::try_from(sleeper.id()).unwrap();
    let clients = BTreeSet::from([i32::try_from(client.id()).unwrap()]);
    until("both run on the host", || host.processes(&nobody).len() == 2 && host.processes(&clients).contains(&pid));
    let mut busy = start(host, &["sh", "-c", "while :; do :; done"]);
    until("it uses the processor", || host.ticks(&clients) > 2);
    assert!(!host.is_frozen(&clients));
    host.pause(&clients).unwrap();
    assert!(host.is_frozen(&clients));
    let ticks = host.ticks(&clients);
    std::thread::sleep(short);
    assert_eq!(host.ticks(&clients), ticks, "what is frozen uses no processor");
    host.crash(&clients).unwrap();
    assert_eq!(sleeper.wait().unwrap().code(), None, "killed, although frozen");
    busy.wait().unwrap();
    assert_eq!(host.processes(&nobody), clients, "a client beside the host outlives its crash");
    client.kill().unwrap();
    client.wait().unwrap();
    host.heal().unwrap();

    let name = host.namespace.clone();
    drop(lab);
    assert!(!Path::new("/run/netns").join(&name).exists());
    assert!(!Path::new(FREEZER).join(&name).exists());
}
