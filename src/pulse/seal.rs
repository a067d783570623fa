//! Sealing datagrams between two nodes: no handshake, so that pulses outlive restarts and trouble with TCP.
//!
//! Each pair shares an X25519 secret from the keys in the member records. A sender draws a session at its start and derives a
//! fresh key from the pair's secret and the session, so that a counter can be the nonce and none is ever used twice.
//!
//! Packet: format (1 byte), sender (8), addressee (8), session (16), counter (8), sealed datagram, tag (16); little endian.

use std::collections::BTreeMap;
use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::types::NodeId;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 8 + 16 + 8;
const SESSION: std::ops::Range<usize> = 17..33;
const COUNTER: std::ops::Range<usize> = 33..41;

/// The private part of a node's pulse key. Prints nothing.
#[derive(Clone)]
pub struct PulseSecret(StaticSecret);

impl fmt::Debug for PulseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PulseSecret(..)")
    }
}

impl From<StaticSecret> for PulseSecret {
    fn from(secret: StaticSecret) -> Self {
        Self(secret)
    }
}

impl PulseSecret {
    /// Draws a new key.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness to give, as nothing secret can be made then.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        SystemRandom::new().fill(&mut *bytes).expect("the operating system gives randomness");
        Self(StaticSecret::from(*bytes))
    }

    /// Returns the part for the member record.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }
}

struct Pair {
    key: [u8; 32],
    shared: Zeroizing<[u8; 32]>,
    sending: LessSafeKey,
    /// The sessions that this peer was last heard in: its present one and, around a restart, the one before.
    receiving: Vec<([u8; 16], LessSafeKey)>,
}

/// Seals and opens the packets of one node.
pub(super) struct Sealer {
    me: NodeId,
    cluster_id: String,
    secret: PulseSecret,
    session: [u8; 16],
    counter: u64,
    pairs: BTreeMap<NodeId, Pair>,
}

impl Sealer {
    pub(super) fn new(me: NodeId, cluster_id: &str, secret: PulseSecret) -> Self {
        let mut session = [0_u8; 16];
        SystemRandom::new().fill(&mut session).expect("the operating system gives randomness");
        Self { me, cluster_id: cluster_id.to_owned(), secret, session, counter: 0, pairs: BTreeMap::new() }
    }

    pub(super) fn set_peers(&mut self, peers: impl Iterator<Item = (NodeId, [u8; 32])>) {
        let mut former = std::mem::take(&mut self.pairs);
        for (node, key) in peers {
            let kept = former.remove(&node).filter(|pair| pair.key == key);
            let pair = kept.unwrap_or_else(|| {
                let shared = self.secret.0.diffie_hellman(&PublicKey::from(key));
                let shared = Zeroizing::new(shared.to_bytes());
                let sending = self.derive(&shared, &self.session, self.me, node);
                Pair { key, shared, sending, receiving: Vec::new() }
            });
            self.pairs.insert(node, pair);
        }
    }

    /// Returns the packet for `to`; none if that is no peer.
    pub(super) fn seal(&mut self, to: NodeId, plain: &[u8]) -> Option<Vec<u8>> {
        let pair = self.pairs.get(&to)?;
        self.counter += 1;
        let mut packet = Vec::with_capacity(HEADER_BYTES + plain.len() + 16);
        packet.push(FORMAT);
        packet.extend(self.me.0.to_le_bytes());
        packet.extend(to.0.to_le_bytes());
        packet.extend(self.session);
        packet.extend(self.counter.to_le_bytes());
        let mut body = plain.to_vec();
        let aad = Aad::from(packet.as_slice());
        pair.sending.seal_in_place_append_tag(nonce(self.counter), aad, &mut body).ok()?;
        packet.extend(body);
        Some(packet)
    }

    /// Returns the sender and what it sealed; none for anything that a peer did not seal for this node.
    pub(super) fn open(&mut self, packet: &[u8]) -> Option<(NodeId, Vec<u8>)> {
        let header = packet.get(..HEADER_BYTES)?;
        let number = |range: std::ops::Range<usize>| Some(u64::from_le_bytes(header.get(range)?.try_into().ok()?));
        let (from, to) = (NodeId(number(1..9)?), NodeId(number(9..17)?));
        if header[0] != FORMAT || to != self.me {
            return None;
        }
        let session: [u8; 16] = header.get(SESSION)?.try_into().ok()?;
        let counter = number(COUNTER)?;
        let pair = self.pairs.get(&from)?;
        let known = pair.receiving.iter().position(|(of, _)| *of == session);
        let fresh = known.is_none().then(|| self.derive(&pair.shared, &session, from, self.me));
        let mut body = packet.get(HEADER_BYTES..)?.to_vec();
        let key = match (known, &fresh) {
            (Some(index), _) => &pair.receiving[index].1,
            (None, Some(key)) => key,
            (None, None) => return None,
        };
        let length = key.open_in_place(nonce(counter), Aad::from(header), &mut body).ok()?.len();
        body.truncate(length);
        if let (Some(key), Some(pair)) = (fresh, self.pairs.get_mut(&from)) {
            // remembered only after it opened something: strangers cannot fill this
            pair.receiving.insert(0, (session, key));
            pair.receiving.truncate(4);
        }
        Some((from, body))
    }

    fn derive(&self, shared: &[u8; 32], session: &[u8; 16], from: NodeId, to: NodeId) -> LessSafeKey {
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, session).extract(shared);
        let (from, to) = (from.0.to_le_bytes(), to.0.to_le_bytes());
        let info: [&[u8]; 4] = [b"hasup pulse 1", self.cluster_id.as_bytes(), &from, &to];
        let key = pseudorandom.expand(&info, &CHACHA20_POLY1305).expect("the length is the algorithm's own");
        LessSafeKey::new(UnboundKey::from(key))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0_u8; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
