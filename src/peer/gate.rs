//! Limits on strangers. Pure: instants come in.
//!
//! Members share the port with strangers, maybe even an address, so no limit may lock members out. Handshakes under way are
//! limited by giving up the *oldest*: a member's takes milliseconds and is hardly ever it. Attempts are limited only for joins.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The handshakes that are under way.
#[derive(Debug, Default)]
pub(super) struct HandshakeGate {
    next: u64,
    under_way: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl HandshakeGate {
    /// From one address (IPv6: one /64).
    const MAX_PER_ADDRESS: usize = 16;
    /// In all; a handshake holds a socket and some KiB.
    const MAX: usize = 128;

    /// Admits a handshake; where that is one too many, the oldest (of that address) is given up.
    ///
    /// Returns its number, for [`leave`](Self::leave), and the token that is cancelled when it is given up.
    pub(super) fn enter(&mut self, from: IpAddr) -> (u64, CancellationToken) {
        let from = network_of(from);
        if self.under_way.values().filter(|(other, _)| *other == from).count() >= Self::MAX_PER_ADDRESS {
            self.give_up(self.under_way.iter().find(|(_, (other, _))| *other == from).map(|(number, _)| *number));
        }
        if self.under_way.len() >= Self::MAX {
            self.give_up(self.under_way.keys().next().copied());
        }
        let number = self.next;
        self.next += 1;
        let token = CancellationToken::new();
        self.under_way.insert(number, (from, token.clone()));
        (number, token)
    }

    /// The handshake is over, well or not.
    pub(super) fn leave(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    fn give_up(&mut self, number: Option<u64>) {
        if let Some((_, token)) = number.and_then(|number| self.under_way.remove(&number)) {
            token.cancel();
        }
    }
}

/// Counts attempts to join, per address.
#[derive(Debug, Default)]
pub(super) struct JoinThrottle {
    /// When the address will have regained all its attempts.
    full_at: BTreeMap<IpAddr, Instant>,
}

impl JoinThrottle {
    /// Attempts an address has at once…
    const BURST: u32 = 10;
    /// …and the time in which it regains one.
    const REGAIN: Duration = Duration::from_secs(3);
    /// Addresses remembered; beyond it, the ones with the most attempts left are forgotten.
    const ADDRESSES_MAX: usize = 4096;

    /// Takes one attempt from the address, or says after how long to come again.
    pub(super) fn attempt(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        self.full_at.retain(|_, full_at| *full_at > now);
        let from = network_of(from);
        let full_at = self.full_at.get(&from).copied().unwrap_or(now) + Self::REGAIN;
        let missing = full_at - now;
        let most = Self::REGAIN * Self::BURST;
        if missing > most {
            return Err(missing - most);
        }
        if self.full_at.len() >= Self::ADDRESSES_MAX {
            let fullest = self.full_at.iter().min_by_key(|(_, full_at)| **full_at).map(|(address, _)| *address);
            fullest.map(|address| self.full_at.remove(&address));
        }
        self.full_at.insert(from, full_at);
        Ok(())
    }
}

/// Who owns one IPv6 address owns its /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_handshakes_gives_up_its_own_oldest() {
        let mut gate = HandshakeGate::default();
        let (_, member) = gate.enter("10.0.0.9".parse().unwrap());
        let flood: Vec<_> = (0..100).map(|_| gate.enter("10.0.0.1".parse().unwrap()).1).collect();
        assert!(!member.is_cancelled(), "another address is not touched");
        let left = flood.iter().filter(|token| !token.is_cancelled()).count();
        assert_eq!(left, HandshakeGate::MAX_PER_ADDRESS);
        assert!(flood.iter().rev().take(left).all(|token| !token.is_cancelled()), "the newest go on");
        for host in 0..=255 {
            gate.enter(IpAddr::from([10, 1, 0, host]));
        }
        assert_eq!(gate.under_way.len(), HandshakeGate::MAX);
    }

    #[test]
    fn join_attempts_are_regained_with_time() {
        let (mut throttle, now) = (JoinThrottle::default(), Instant::now());
        let from = "fd00::1".parse().unwrap();
        for _ in 0..JoinThrottle::BURST {
            assert_eq!(throttle.attempt(from, now), Ok(()));
        }
        assert_eq!(throttle.attempt("fd00::2".parse().unwrap(), now), Err(JoinThrottle::REGAIN), "one /64 is one");
        assert_eq!(throttle.attempt("10.0.0.1".parse().unwrap(), now), Ok(()), "others are not held up");
        assert_eq!(throttle.attempt(from, now + JoinThrottle::REGAIN), Ok(()));
        assert!(throttle.attempt(from, now + JoinThrottle::REGAIN).is_err());
    }
}
