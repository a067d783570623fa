//! Real servers and clients on loopback: who gets in, who does not, and what a caller knows afterwards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{NotSent, PeerAddress, PeerClient, PeerError, Unknown};
use super::frame::{PAYLOAD_MAX, put_frame, read_frame};
use super::join::{
    JoinError, JoinGrant, JoinRefusal, JoinRequest, ProbeKey, TokenText, answer_probes, dial_back, join,
};
use super::message::{Envelope, PeerRefusal, PeerRequest, PeerResponse};
use super::{PeerService, serve};
use crate::codec;
use crate::ha::record::{JoinToken, MemberKind};
use crate::sys::clock::wall_now;
use crate::tls::config::{MemberProtocol, server_name};
use crate::tls::{
    CertificateAuthority, ClusterSecret, Fingerprint, LeafRequest, NodeIdentity, NodeKeys, NodeTrust, TlsContext,
};
use crate::types::{NodeId, NodeName};

const CLUSTER: &str = "5c1d-test";
/// Nothing in these tests takes this long; it is the deadline of each wait.
const LONG: Duration = Duration::from_secs(20);

fn name(id: u64) -> NodeName {
    format!("n{id}").parse().unwrap()
}

fn trust_of(ca: &CertificateAuthority, id: u64, keys: NodeKeys) -> NodeTrust {
    let identity = NodeIdentity { node: NodeId(id), name: name(id), cluster_id: CLUSTER.into() };
    let request = LeafRequest { identity, csr: keys.csr().unwrap(), hosts: vec!["127.0.0.1".into()] };
    NodeTrust {
        keys,
        certificate: ca.issue(&request, wall_now()).unwrap(),
        ca_certificates: ca.certificates().to_vec(),
        cluster_secret: ClusterSecret::from_bytes([9; 32]),
    }
}

fn new_trust(ca: &CertificateAuthority, id: u64) -> NodeTrust {
    trust_of(ca, id, NodeKeys::generate().unwrap())
}

fn context(trust: &NodeTrust) -> Arc<TlsContext> {
    Arc::new(TlsContext::new(trust).unwrap())
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::create(CLUSTER, wall_now()).unwrap()
}

/// Answers by a few fixed rules, and admits whoever shows one of its tokens.
struct TestService {
    me: NodeId,
    members: Mutex<BTreeMap<String, NodeId>>,
    tokens: Mutex<Vec<JoinToken>>,
    ca: CertificateAuthority,
    asked: Mutex<Vec<(NodeId, PeerRequest)>>,
}

impl PeerService for TestService {
    fn handle(&self, from: NodeId, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        self.asked.lock().push((from, request.clone()));
        Box::pin(async move {
            match request {
                PeerRequest::Ping => PeerResponse::Pong { node: self.me, name: name(self.me.0), version: "t".into() },
                PeerRequest::Raft(bytes) => PeerResponse::Raft(bytes),
                // Never answers, as a stuck store would not.
                PeerRequest::Propose(_) => std::future::pending().await,
                PeerRequest::Admin(_) => PeerResponse::Admin(vec![0; PAYLOAD_MAX]),
                _ => PeerResponse::Refused(PeerRefusal::Unsupported),
            }
        })
    }

    fn member(&self, name: &str) -> Option<NodeId> {
        self.members.lock().get(name).copied()
    }

    fn join(&self, request: JoinRequest, _remote: SocketAddr) -> BoxFuture<'_, Result<JoinGrant, JoinRefusal>> {
        Box::pin(async move {
            request.token.check(&*self.tokens.lock(), wall_now())?;
            if self.member(request.name.as_str()).is_some() {
                return Err(JoinRefusal::NameTaken { name: request.name.clone() });
            }
            let unreachable = dial_back(&request.peer_addresses, &request.probe_key, Duration::from_secs(1)).await;
            if !unreachable.is_empty() {
                return Err(JoinRefusal::Unreachable { from: name(self.me.0), addresses: unreachable });
            }
            let identity = NodeIdentity { node: NodeId(4), name: request.name.clone(), cluster_id: CLUSTER.into() };
            let leaf = LeafRequest { identity, csr: request.csr.clone(), hosts: request.certificate_hosts() };
            Ok(JoinGrant {
                node_id: NodeId(4),
                cluster_id: CLUSTER.into(),
                cluster_name: "test".into(),
                certificate: self.ca.issue(&leaf, wall_now()).unwrap(),
                ca_certificates: self.ca.certificates().to_vec(),
                cluster_secret: ClusterSecret::from_bytes([9; 32]),
                members: vec![1, 2, 3],
            })
        })
    }
}

/// Node 1 serves; nodes 1 and 2 are members. What runs ends with it.
struct Cluster {
    ca_bundle: String,
    server_trust: NodeTrust,
    server_tls: Arc<TlsContext>,
    service: Arc<TestService>,
    address: String,
    running: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Self {
        let ca = authority();
        let ca_bundle = ca.export().to_string();
        let server_trust = new_trust(&ca, 1);
        let server_tls = context(&server_trust);
        let service = Arc::new(TestService {
            me: NodeId(1),
            members: Mutex::new([(name(1).into(), NodeId(1)), (name(2).into(), NodeId(2))].into()),
            tokens: Mutex::default(),
            ca,
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut running = JoinSet::new();
        running.spawn(serve(listener, server_tls.clone(), service.clone()));
        Self { ca_bundle, server_trust, server_tls, service, address, running }
    }

    fn ca(&self) -> CertificateAuthority {
        CertificateAuthority::import(&self.ca_bundle).unwrap()
    }

    fn peer(&self) -> PeerAddress {
        PeerAddress { id: NodeId(1), name: name(1), addresses: vec![self.address.clone()] }
    }

    /// Returns a client that dials with these settings and knows node 1.
    fn client(&mut self, tls: Arc<TlsContext>) -> PeerClient {
        let (client, work) = PeerClient::new(tls);
        self.running.spawn(work);
        client.set_peers([self.peer()]);
        client
    }

    /// Opens a bare TLS connection as whoever `tls` says, past all of our own client.
    async fn raw(&self, tls: &TlsContext) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(tls.peer_client(MemberProtocol::Raft));
        let tcp = TcpStream::connect(&self.address).await.unwrap();
        connector.connect(server_name(&self.server_tls.identity()).unwrap(), tcp).await.unwrap()
    }

    fn token(&self) -> TokenText {
        let (text, record) =
            TokenText::generate(self.ca().fingerprint().unwrap(), wall_now() + Duration::from_secs(60)).unwrap();
        self.service.tokens.lock().push(record);
        text
    }
}

async fn echo(client: &PeerClient, text: &[u8]) -> Result<PeerResponse, PeerError> {
    client.call(NodeId(1), MemberProtocol::Raft, PeerRequest::Raft(text.to_vec()), LONG).await
}

fn echoed(text: &[u8]) -> Result<PeerResponse, PeerError> {
    Ok(PeerResponse::Raft(text.to_vec()))
}

#[tokio::test]
async fn members_call_each_other_under_their_own_number() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    let calls = (0..200_u32).map(|n| {
        let client = client.clone();
        async move { (n, echo(&client, &n.to_be_bytes()).await) }
    });
    for (n, answer) in futures_util::future::join_all(calls).await {
        assert_eq!(answer, echoed(&n.to_be_bytes()));
    }
    let bulk = client.call(NodeId(1), MemberProtocol::Bulk, PeerRequest::Ping, LONG).await;
    assert!(matches!(bulk, Ok(PeerResponse::Pong { node: NodeId(1), .. })), "{bulk:?}");
    assert!(cluster.service.asked.lock().iter().all(|(from, _)| *from == NodeId(2)));
    let too_long = echo(&client, &vec![0; PAYLOAD_MAX]).await;
    assert!(matches!(too_long, Err(PeerError::NotSent { because: NotSent::TooLong(_), .. })));
    let answer = client.call(NodeId(1), MemberProtocol::Raft, PeerRequest::Admin(vec![]), LONG).await;
    assert!(matches!(answer, Ok(PeerResponse::Refused(PeerRefusal::AnswerTooLong { .. }))));
    assert_eq!(echo(&client, b"still in order").await, echoed(b"still in order"));
}

#[tokio::test]
async fn only_the_expected_node_is_talked_to() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    for (id, wrong) in [(3, "n3"), (7, "n1")] {
        client.set_peers([PeerAddress { id: NodeId(id), name: wrong.parse().unwrap(), ..cluster.peer() }]);
        let answer = client.call(NodeId(id), MemberProtocol::Raft, PeerRequest::Ping, LONG).await;
        assert!(matches!(answer, Err(PeerError::NotSent { because: NotSent::Unreachable(_), .. })), "{answer:?}");
    }
    let unknown = client.call(NodeId(1), MemberProtocol::Raft, PeerRequest::Ping, LONG).await;
    assert!(matches!(unknown, Err(PeerError::NotSent { because: NotSent::UnknownPeer, .. })), "{unknown:?}");
    assert!(cluster.service.asked.lock().is_empty());
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_living_one() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    // Bound and not listening: refused. Listening and not answering: silent.
    let refused = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![refused.to_string(), silent.local_addr().unwrap().to_string(), cluster.address.clone()];
    client.set_peers([PeerAddress { addresses, ..cluster.peer() }]);
    assert_eq!(echo(&client, b"found").await, echoed(b"found"));
}

#[tokio::test]
async fn strangers_and_other_clusters_are_refused() {
    let mut cluster = Cluster::start().await;
    // A certificate of another authority, for the same cluster and names; it also trusts the real one.
    let forged = authority().trusting_also(cluster.ca().certificates());
    let forged = new_trust(&forged, 2);
    let client = cluster.client(context(&forged));
    let answer = echo(&client, b"x").await;
    assert!(matches!(answer, Err(PeerError::NotSent { because: NotSent::Unreachable(_), .. })), "{answer:?}");

    // No certificate at all, on the protocol that needs one.
    let mut roots = rustls::RootCertStore::empty();
    let pem = &cluster.server_trust.ca_certificates[0];
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut bare = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for alpn in [&b"hasup-raft/1"[..], b"hasup-bulk/1", b"h2", b""] {
        bare.alpn_protocols = if alpn.is_empty() { vec![] } else { vec![alpn.to_vec()] };
        let tcp = TcpStream::connect(&cluster.address).await.unwrap();
        let server = server_name(&cluster.server_tls.identity()).unwrap();
        let connector = TlsConnector::from(Arc::new(bare.clone()));
        let ended = match connector.connect(server, tcp).await {
            // In TLS 1.3 the refusal arrives with the first read.
            Ok(mut stream) => stream.read_u8().await.is_err(),
            Err(_) => true,
        };
        assert!(ended, "{}", String::from_utf8_lossy(alpn));
    }
    assert!(cluster.service.asked.lock().is_empty());
}

#[tokio::test]
async fn a_removed_member_is_out_at_once_and_is_told() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    assert_eq!(echo(&client, b"in").await, echoed(b"in"));
    cluster.service.members.lock().remove("n2");
    let asked = cluster.service.asked.lock().len();
    // The open connection is cut at the next request; the one after that finds the door closed.
    let cut = echo(&client, b"cut").await;
    assert!(matches!(cut, Err(PeerError::Unknown { because: Unknown::Lost, .. })), "{cut:?}");
    let told = echo(&client, b"out").await;
    assert!(matches!(told, Err(PeerError::NotSent { because: NotSent::NotAMember, .. })), "{told:?}");
    // Another node under the same name does not make the old certificate good again.
    cluster.service.members.lock().insert("n2".into(), NodeId(5));
    let fresh = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    let still = echo(&fresh, b"out").await;
    assert!(matches!(still, Err(PeerError::NotSent { because: NotSent::NotAMember, .. })), "{still:?}");
    assert_eq!(cluster.service.asked.lock().len(), asked, "nothing of it was carried out");
}

#[tokio::test]
async fn certificates_change_without_restart() {
    let mut cluster = Cluster::start().await;
    let client_trust = new_trust(&cluster.ca(), 2);
    let client_tls = context(&client_trust);
    let client = cluster.client(client_tls.clone());
    assert_eq!(echo(&client, b"old").await, echoed(b"old"));

    // A new authority, in three steps with overlap: all accept both, all get new certificates, the old one is dropped.
    let new_ca = authority();
    let both = CertificateAuthority::import(&new_ca.export()).unwrap().trusting_also(cluster.ca().certificates());
    let old_plus = NodeTrust { ca_certificates: both.certificates().to_vec(), ..cluster.server_trust.clone() };
    cluster.server_tls.reload(&old_plus).unwrap();
    assert_eq!(echo(&client, b"server accepts both").await, echoed(b"server accepts both"));
    client_tls.reload(&trust_of(&both, 2, client_trust.keys.clone())).unwrap();
    assert_eq!(echo(&client, b"client renewed").await, echoed(b"client renewed"));
    let renewed = trust_of(&new_ca, 1, cluster.server_trust.keys.clone());
    cluster.server_tls.reload(&renewed).unwrap();
    assert_eq!(echo(&client, b"old dropped").await, echoed(b"old dropped"));
    assert_eq!(cluster.server_tls.facts(), renewed.facts().unwrap());

    // Who was not renewed is out, on an open connection too.
    let stale_tls = context(&NodeTrust { ca_certificates: both.certificates().to_vec(), ..client_trust });
    let stale = cluster.client(stale_tls.clone());
    assert!(matches!(echo(&stale, b"x").await, Err(PeerError::NotSent { .. })));
    cluster.server_tls.reload(&old_plus).unwrap();
    let mut open = cluster.raw(&stale_tls).await;
    read_frame(&mut open, 1000).await.unwrap().expect("a welcome");
    cluster.server_tls.reload(&renewed).unwrap();
    assert!(
        tokio::time::timeout(LONG, read_frame(&mut open, 1000)).await.unwrap().is_ok_and(|frame| frame.is_none())
            || open.read_u8().await.is_err()
    );

    // A damaged renewal leaves the old one in use.
    let mismatched = NodeTrust { keys: NodeKeys::generate().unwrap(), ..renewed };
    assert!(cluster.server_tls.reload(&mismatched).is_err());
    assert_eq!(echo(&client, b"goes on").await, echoed(b"goes on"));
}

#[tokio::test]
async fn a_timeout_drops_its_request_and_nothing_else() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    assert_eq!(echo(&client, b"warm").await, echoed(b"warm"));
    for round in 0..20_u8 {
        let stuck =
            client.call(NodeId(1), MemberProtocol::Raft, PeerRequest::Propose(vec![round]), Duration::from_millis(5));
        let text = [round; 8];
        let (stuck, echo) = tokio::join!(stuck, echo(&client, &text));
        assert!(matches!(stuck, Err(PeerError::Unknown { because: Unknown::Deadline, .. })), "{stuck:?}");
        assert_eq!(echo, echoed(&text));
    }
}

#[tokio::test]
async fn a_call_that_never_left_says_so() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![silent.local_addr().unwrap().to_string()];
    client.set_peers([PeerAddress { addresses, ..cluster.peer() }]);
    let call = client.call(NodeId(1), MemberProtocol::Raft, PeerRequest::Ping, Duration::from_millis(20)).await;
    assert!(matches!(call, Err(PeerError::NotSent { because: NotSent::Deadline, .. })), "{call:?}");
    // Its address corrected, the same client finds it: the next dial reads the book anew.
    drop(silent);
    client.set_peers([cluster.peer()]);
    let mut last = echo(&client, b"x").await;
    let begun = tokio::time::Instant::now();
    while last.is_err() && begun.elapsed() < LONG {
        tokio::task::yield_now().await;
        last = echo(&client, b"x").await;
    }
    assert_eq!(last, echoed(b"x"));
    let (orphan, work) = PeerClient::new(cluster.server_tls.clone());
    drop(work);
    orphan.set_peers([cluster.peer()]);
    assert!(matches!(echo(&orphan, b"x").await, Err(PeerError::NotSent { because: NotSent::GivenUp, .. })));
}

#[tokio::test]
async fn a_restarted_peer_is_found_again() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(context(&new_trust(&cluster.ca(), 2)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    client.set_peers([PeerAddress { addresses: vec![address.to_string()], ..cluster.peer() }]);
    let mut server = JoinSet::new();
    server.spawn(serve(listener, cluster.server_tls.clone(), cluster.service.clone()));
    assert_eq!(echo(&client, b"before").await, echoed(b"before"));
    server.shutdown().await;
    let down = echo(&client, b"down").await;
    assert!(down.is_err(), "{down:?}");
    let listener = TcpListener::bind(address).await.unwrap();
    server.spawn(serve(listener, cluster.server_tls.clone(), cluster.service.clone()));
    let begun = tokio::time::Instant::now();
    let mut last = echo(&client, b"up").await;
    while last.is_err() && begun.elapsed() < LONG {
        tokio::task::yield_now().await;
        last = echo(&client, b"up").await;
    }
    assert_eq!(last, echoed(b"up"));
}

#[tokio::test]
async fn hostile_bytes_end_their_connection_and_nothing_else() {
    let mut cluster = Cluster::start().await;
    let tls = context(&new_trust(&cluster.ca(), 2));
    let client = cluster.client(tls.clone());
    assert_eq!(echo(&client, b"before").await, echoed(b"before"));

    // Before the handshake: no TLS, broken TLS, half a hello, nothing at all and many of it.
    let mut seed = 7_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_be_bytes()
    };
    let mut idle = Vec::new();
    for round in 0..100_usize {
        let mut stream = TcpStream::connect(&cluster.address).await.unwrap();
        let mut bytes: Vec<u8> = (0..round).flat_map(|_| random()).collect();
        match round % 4 {
            0 => bytes.splice(0..0, *b"GET / HTTP/1.1\r\n\r\n").for_each(drop),
            1 => bytes.splice(0..0, [0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]).for_each(drop),
            2 => bytes.splice(0..0, [0x16, 3, 1, 0xff, 0xff]).for_each(drop),
            _ => {}
        }
        let _ = stream.write_all(&bytes).await;
        idle.push(stream);
    }
    // After it, as a member: frames that are none, and payloads that are none.
    let mut framed = Vec::new();
    put_frame(&mut framed, 1, b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let mut trailing = Vec::new();
    let mut envelope = codec::encode(&Envelope { within_ms: 1, request: PeerRequest::Ping });
    envelope.push(0);
    put_frame(&mut trailing, 1, &envelope);
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\0", b"\0\0\0\x07", &framed, &trailing] {
        let mut stream = cluster.raw(&tls).await;
        read_frame(&mut stream, 1000).await.unwrap().expect("a welcome");
        stream.write_all(bytes).await.unwrap();
        let end = tokio::time::timeout(LONG, read_frame(&mut stream, 1000)).await.expect("the connection ends");
        assert!(!matches!(end, Ok(Some(_))), "{bytes:?}");
    }
    assert_eq!(echo(&client, b"after").await, echoed(b"after"));
    let again = cluster.client(tls);
    assert_eq!(echo(&again, b"new connections too").await, echoed(b"new connections too"));
}

/// A joiner with open ports, and the request it makes.
async fn joiner(token: &TokenText) -> (JoinRequest, NodeKeys, TcpListener, UdpSocket) {
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (tcp, udp);
        }
    };
    let keys = NodeKeys::generate().unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let request = JoinRequest {
        token: token.proof(),
        name: name(4),
        kind: MemberKind::Data,
        csr: keys.csr().unwrap(),
        pulse_key: keys.pulse_public(),
        peer_addresses: vec![address],
        api_address: "127.0.0.1:7401".into(),
        postgres_host: "127.0.0.1".into(),
        postgres_port: 5432,
        extra_names: vec!["db4.example.org".into()],
        version: "0.1.0".into(),
        postgres_major: Some(15),
        free_disk_bytes: 1 << 40,
        probe_key: ProbeKey::generate().unwrap(),
        options: BTreeMap::new(),
    };
    (request, keys, tcp, udp)
}

#[tokio::test]
async fn a_joiner_with_the_right_token_becomes_a_member() {
    let mut cluster = Cluster::start().await;
    let token = cluster.token();
    let (request, keys, tcp, udp) = joiner(&token).await;
    cluster.running.spawn(answer_probes(tcp, udp, request.probe_key.clone()));
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let grant = join(&[dead, cluster.address.clone()], &token, &request, LONG).await.unwrap();
    assert_eq!((grant.node_id, grant.members.as_slice()), (NodeId(4), &[1, 2, 3][..]));
    cluster.service.members.lock().insert("n4".into(), NodeId(4));
    let client = cluster.client(context(&grant.trust(keys)));
    assert_eq!(echo(&client, b"in").await, echoed(b"in"));
    let twice = join(&[cluster.address.clone()], &token, &request, LONG).await;
    assert!(matches!(twice, Err(JoinError::Refused(JoinRefusal::NameTaken { .. }))), "{twice:?}");
}

#[tokio::test]
async fn a_join_without_right_or_reach_is_refused_by_its_reason() {
    let cluster = Cluster::start().await;
    let token = cluster.token();
    let targets = [cluster.address.clone()];
    let (request, ..) = joiner(&token).await;
    // Its ports are closed again.
    let unreachable = join(&targets, &token, &request, LONG).await;
    assert!(matches!(unreachable, Err(JoinError::Refused(JoinRefusal::Unreachable { .. }))), "{unreachable:?}");

    let (wrong, _) = TokenText::generate(token.fingerprint(), wall_now() + LONG).unwrap();
    let refused = join(&targets, &wrong, &JoinRequest { token: wrong.proof(), ..request.clone() }, LONG).await;
    assert!(matches!(refused, Err(JoinError::Refused(JoinRefusal::WrongToken))), "{refused:?}");

    let asked = cluster.service.tokens.lock().len();
    let (other, _) = TokenText::generate(Fingerprint([1; 32]), wall_now() + LONG).unwrap();
    let other = join(&targets, &other, &request, LONG).await;
    assert!(matches!(other, Err(JoinError::WrongAuthority { .. })), "{other:?}");
    assert_eq!(cluster.service.tokens.lock().len(), asked);
}

#[tokio::test]
async fn strangers_may_try_to_join_only_so_often() {
    let cluster = Cluster::start().await;
    let token = cluster.token();
    let (wrong, _) = TokenText::generate(token.fingerprint(), wall_now() + LONG).unwrap();
    let (request, ..) = joiner(&wrong).await;
    let mut codes = Vec::new();
    for _ in 0..12 {
        match join(std::slice::from_ref(&cluster.address), &wrong, &request, LONG).await {
            Err(JoinError::Refused(refusal)) => codes.push(refusal.code()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(codes[..10], ["wrong_token"; 10]);
    assert!(codes.contains(&"too_many_attempts"), "{codes:?}");

    // What is no request is an answer, not a crash.
    let connector = TlsConnector::from(crate::tls::config::join_client(token.fingerprint()).unwrap());
    let tcp = TcpStream::connect(&cluster.address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("any").unwrap(), tcp).await.unwrap();
    let mut frame = Vec::new();
    put_frame(&mut frame, 1, b"garbage");
    stream.write_all(&frame).await.unwrap();
    let answer = read_frame(&mut stream, PAYLOAD_MAX).await.unwrap().unwrap();
    assert!(codec::decode::<Result<JoinGrant, JoinRefusal>>(&answer.payload).unwrap().is_err());
}
