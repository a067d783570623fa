//! The check that members can reach a joiner, before it is a member.
//!
//! ```text
//! member → joiner   8 bytes "hasupPRB", 32 bytes challenge      (TCP: one connection each; UDP: repeated until answered)
//! joiner → member   32 bytes BLAKE3 of transport and challenge, keyed with the key that the joiner sent with its request
//! ```
//!
//! Only who read the request, over TLS, can check the answer, and only the joiner can give it: that something listens at
//! the address is not enough. The answer is shorter than the question, so that nobody is flooded through it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Transport, UnreachableAddress};
use crate::peer::dial::connect;
use crate::tls::{TlsError, random};

const MAGIC: &[u8; 8] = b"hasupPRB";
const CHALLENGE_BYTES: usize = 32;
const QUESTION_BYTES: usize = MAGIC.len() + CHALLENGE_BYTES;
/// Who connects must have asked by then.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
/// Connections answered at once.
const CONNECTIONS_MAX: usize = 32;
/// A lost datagram is sent again after this.
const RESEND: Duration = Duration::from_millis(100);

/// What a joiner answers probes with; drawn for one attempt to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeKey([u8; 32]);

impl ProbeKey {
    /// Draws a new one.
    pub fn generate() -> Result<Self, TlsError> {
        Ok(Self(random()?))
    }

    fn answer(&self, transport: Transport, challenge: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(match transport {
            Transport::Tcp => b"tcp",
            Transport::Udp => b"udp",
        });
        hasher.update(challenge);
        *hasher.finalize().as_bytes()
    }

    /// Returns the answer to a question, if it is one.
    fn answer_to(&self, transport: Transport, question: &[u8]) -> Option<[u8; 32]> {
        let challenge = question.strip_prefix(MAGIC)?;
        (challenge.len() == CHALLENGE_BYTES).then(|| self.answer(transport, challenge))
    }
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey(…)")
    }
}

/// Answers probes on the joiner's peer port, TCP and UDP, until dropped. Anything else that comes in is ignored.
pub async fn answer_probes(tcp: TcpListener, udp: UdpSocket, key: ProbeKey) {
    tokio::join!(answer_tcp(tcp, &key), answer_udp(udp, &key));
}

async fn answer_tcp(tcp: TcpListener, key: &ProbeKey) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = tcp.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    let key = key.clone();
                    connections.spawn(async move {
                        let _ = timeout(QUESTION_LIMIT, answer_one(stream, &key)).await;
                    });
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(RESEND).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer_one(mut stream: TcpStream, key: &ProbeKey) -> std::io::Result<()> {
    let mut question = [0; QUESTION_BYTES];
    stream.read_exact(&mut question).await?;
    if let Some(answer) = key.answer_to(Transport::Tcp, &question) {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

async fn answer_udp(udp: UdpSocket, key: &ProbeKey) {
    let mut datagram = [0; QUESTION_BYTES + 1];
    loop {
        match udp.recv_from(&mut datagram).await {
            Ok((length, from)) => {
                if let Some(answer) = key.answer_to(Transport::Udp, &datagram[..length]) {
                    let _ = udp.send_to(&answer, from).await;
                }
            }
            // An earlier answer's "port unreachable" comes out here.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Dials every address of a joiner, by TCP and UDP at once, and returns those that did not answer `within`.
///
/// Call it only for a joiner whose token is right: it makes this node send to addresses that the joiner names.
pub async fn dial_back(addresses: &[String], key: &ProbeKey, within: Duration) -> Vec<UnreachableAddress> {
    let probes = addresses.iter().flat_map(|address| {
        [Transport::Tcp, Transport::Udp].map(|transport| async move {
            let result = match transport {
                Transport::Tcp => timeout(within, ask_tcp(address, key)).await,
                Transport::Udp => timeout(within, ask_udp(address, key)).await,
            };
            let because = match result {
                Ok(Ok(())) => return None,
                Ok(Err(because)) => because,
                Err(_) => format!("no answer within {within:?}"),
            };
            Some(UnreachableAddress { address: address.clone(), transport, because })
        })
    });
    join_all(probes).await.into_iter().flatten().collect()
}

fn question() -> Result<([u8; QUESTION_BYTES], [u8; CHALLENGE_BYTES]), String> {
    let challenge = random::<CHALLENGE_BYTES>().map_err(|error| error.to_string())?;
    let mut question = [0; QUESTION_BYTES];
    question[..MAGIC.len()].copy_from_slice(MAGIC);
    question[MAGIC.len()..].copy_from_slice(&challenge);
    Ok((question, challenge))
}

async fn ask_tcp(address: &str, key: &ProbeKey) -> Result<(), String> {
    let (question, challenge) = question()?;
    let exchange = async {
        let mut stream = connect(address).await?;
        stream.write_all(&question).await?;
        let mut answer = [0; 32];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    match bool::from(answer.ct_eq(&key.answer(Transport::Tcp, &challenge))) {
        true => Ok(()),
        false => Err("something else answers there".into()),
    }
}

async fn ask_udp(address: &str, key: &ProbeKey) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let (question, challenge) = question()?;
    let expected = key.answer(Transport::Udp, &challenge);
    let to = lookup_host(address).await.map_err(text)?.next().ok_or("the name resolves to no address")?;
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(text)?;
    socket.connect(to).await.map_err(text)?;
    let mut answer = [0; 33];
    loop {
        // A refusal by the other host comes out of either call; it may be about to listen, so go on until the time is over.
        let _ = socket.send(&question).await;
        match timeout(RESEND, socket.recv(&mut answer)).await {
            Ok(Ok(length)) if bool::from(answer[..length].ct_eq(&expected)) => return Ok(()),
            Ok(_) => tokio::time::sleep(RESEND).await,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn responder() -> (String, TcpListener, UdpSocket) {
        // The two ports must be the same, and another test may hold one of them.
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = tcp.local_addr().unwrap();
            if let Ok(udp) = UdpSocket::bind(address).await {
                return (address.to_string(), tcp, udp);
            }
        }
    }

    #[tokio::test]
    async fn the_joiner_is_found_where_it_is_and_nowhere_else() {
        let key = ProbeKey::generate().unwrap();
        let (mine, tcp, udp) = responder().await;
        let (strange, strange_tcp, strange_udp) = responder().await;
        let (silent, _listening_but_mute, _mute) = responder().await;
        let asking = async {
            let long = Duration::from_secs(20);
            assert_eq!(dial_back(std::slice::from_ref(&mine), &key, long).await, vec![]);
            let addresses = [mine.clone(), strange.clone(), silent.clone()];
            let failed = dial_back(&addresses, &key, Duration::from_millis(500)).await;
            let failed: Vec<_> = failed.iter().map(|failed| (failed.address.as_str(), failed.transport)).collect();
            let expected = [&strange, &silent]
                .map(|address| [(address.as_str(), Transport::Tcp), (address.as_str(), Transport::Udp)]);
            assert_eq!(failed, expected.concat());
        };
        tokio::select! {
            () = asking => {}
            () = answer_probes(tcp, udp, key.clone()) => unreachable!(),
            () = answer_probes(strange_tcp, strange_udp, ProbeKey::generate().unwrap()) => unreachable!(),
        }
    }

    #[test]
    fn answers_are_given_to_questions_only() {
        let key = ProbeKey([1; 32]);
        let (question, challenge) = question().unwrap();
        assert_eq!(key.answer_to(Transport::Udp, &question), Some(key.answer(Transport::Udp, &challenge)));
        assert_ne!(key.answer(Transport::Udp, &challenge), key.answer(Transport::Tcp, &challenge));
        assert_eq!(key.answer_to(Transport::Udp, &question[1..]), None);
        assert_eq!(key.answer_to(Transport::Udp, &[&question[..], &[0]].concat()), None);
        assert_eq!(key.answer_to(Transport::Udp, b""), None);
    }
}
