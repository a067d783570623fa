//! Client and server against each other, over real sockets.

use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::{Access, Api, BasicCredentials, bind_admin_socket, serve_admin, serve_tcp};
use crate::node::handle::{Done, Handle};

/// A node that does whatever it is asked, behind the API on loopback and on an admin socket.
struct Fixture {
    address: Address,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _status: watch::Sender<Arc<Status>>,
    stop: tokio_util::sync::DropGuard,
}

async fn fixture(tasks: &mut tokio::task::JoinSet<()>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("n1.sock");
    let (published, status) = watch::channel(Arc::new(Status::starting("n1")));
    let (handle, mut queue) = Handle::new(status, 8);
    tasks.spawn(async move {
        while let Some(order) = queue.recv().await {
            let answer = Ok(Done::answer(format!("{:?}", order.request)));
            order.reply.send(answer).expect("the client waits for its answer");
        }
    });
    let balancer = Some(BasicCredentials { user: "lb".to_owned(), password: Secret::new("secret") });
    let api = Api::new(handle, Access { api_token: Some(Secret::new("let-me-in")), balancer });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let bound = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let admin = bind_admin_socket(&socket).await.unwrap();
    tasks.spawn(serve_admin(admin, api.clone(), stop.clone()));
    let stopped = stop.clone();
    tasks.spawn(async move { serve_tcp(listener, None, api, stopped).await.unwrap() });
    let address = Address { host: crate::config::Host::Ip(bound.ip()), port: bound.port() };
    Fixture { address, socket, _folder: folder, _status: published, stop: stop.drop_guard() }
}

#[tokio::test]
async fn changes_need_the_admin_socket_or_the_token() {
    let mut tasks = tokio::task::JoinSet::new();
    let node = fixture(&mut tasks).await;
    let client = |target, token: Option<&str>| Client::new(vec![target], token.map(Secret::new), None).unwrap();
    let tcp = || Target::Tcp(node.address.clone());
    assert_eq!(client(tcp(), None).status().await.unwrap().me, "n1");
    let switchover = Request::Switchover { to: Some("n2".to_owned()) };
    let refused = client(tcp(), None).request(&switchover).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    let refused = client(tcp(), Some("wrong")).request(&switchover).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    for client in [client(tcp(), Some("let-me-in")), client(Target::Admin(node.socket.clone()), None)] {
        let Answer::Done(done) = client.request(&switchover).await.unwrap() else { panic!("another answer") };
        assert_eq!(done.message, "Switchover { to: Some(\"n2\") }");
    }
    drop(node.stop);
    while tasks.join_next().await.is_some_and(|ended| ended.is_ok()) {}
}

#[tokio::test]
async fn the_next_node_is_asked_when_the_named_one_is_dead() {
    let mut tasks = tokio::task::JoinSet::new();
    let node = fixture(&mut tasks).await;
    let dead = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let dead = Target::Tcp(Address { host: crate::config::Host::Ip(dead.ip()), port: dead.port() });
    let both = Client::new(vec![dead.clone(), Target::Tcp(node.address.clone())], None, None).unwrap();
    assert_eq!(both.status().await.unwrap().me, "n1");
    let alone = Client::new(vec![dead], None, None).unwrap();
    assert_eq!(alone.request(&Request::Leave).await.unwrap_err().code, ErrorCode::Unreachable);
}

#[tokio::test]
async fn balancers_show_their_credentials_by_any_method() {
    let mut tasks = tokio::task::JoinSet::new();
    let node = fixture(&mut tasks).await;
    // "lb:secret" and "lb:wrong".
    for (method, path, credentials, code) in [
        ("GET", "/api/v3.1/status", "Basic bGI6c2VjcmV0", "400"),
        ("HEAD", "/api/v3.1/status", "Basic bGI6c2VjcmV0", "400"),
        ("OPTIONS", "/api/v3.1/status", "Basic bGI6c2VjcmV0", "400"),
        ("GET", "/api/v3.1/status", "Basic bGI6d3Jvbmc=", "401"),
        ("GET", "/api/v3.1/status", "Basic %%%", "401"),
        ("GET", "/primary", "", "503"),
        ("OPTIONS", "/primary", "", "503"),
        ("GET", "/v1/server/ha/state", "", "200"),
        ("GET", "/nothing", "", "401"),
    ] {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {credentials}\r\nConnection: close\r\n\r\n");
        let answer = talk(&node.address, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn hostile_bytes_are_turned_away_and_the_node_still_answers() {
    let mut tasks = tokio::task::JoinSet::new();
    let node = fixture(&mut tasks).await;
    let long_head = [b"GET /v1/status HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 200_000], b"\r\n\r\n".to_vec()].concat();
    let mut random = vec![0_u8; 4096];
    for (i, byte) in random.iter_mut().enumerate() {
        *byte = u8::try_from(i * 167 % 251).unwrap();
    }
    let hostile: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"POST /v1/promote HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"PUT /v1/kv/%ff HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer let-me-in\r\nContent-Length: 1\r\n\r\nx".to_vec(),
        b"GET /v1/server/ha/states?lag=%%%&&=& HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /v1/status HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n".to_vec(),
        long_head,
        random,
    ];
    for bytes in hostile {
        talk(&node.address, &bytes).await;
    }
    let client = Client::new(vec![Target::Tcp(node.address.clone())], None, None).unwrap();
    assert_eq!(client.status().await.unwrap().me, "n1");
}

/// Sends `bytes`, closes that half, and returns what comes back.
async fn talk(address: &Address, bytes: &[u8]) -> String {
    let IpAddr::V4(_) = address.host.to_string().parse().unwrap() else { panic!("the fixture is on IPv4") };
    let mut stream = connect(address).await.unwrap();
    // The node may hang up before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the node hangs up on hostile bytes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn clear_text_is_not_served_off_loopback() {
    let (published, status) = watch::channel(Arc::new(Status::starting("n1")));
    let api = Api::new(Handle::new(status, 1).0, Access::default());
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    assert!(serve_tcp(listener, None, api, CancellationToken::new()).await.is_err());
    drop(published);
}

#[tokio::test]
async fn over_tls_the_node_is_known_by_the_clusters_authority() {
    let issue = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        (leaf, key)
    };
    let (leaf, key) = issue();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let (_published, status) = watch::channel(Arc::new(Status::starting("n1")));
    let api = Api::new(Handle::new(status, 1).0, Access::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let bound = listener.local_addr().unwrap();
    let address = Address { host: crate::config::Host::Ip(bound.ip()), port: bound.port() };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { serve_tcp(listener, Some(Arc::new(config)), api, CancellationToken::new()).await });

    let call = Call { method: Method::GET, target: "/v1/status".to_owned(), body: Vec::new() };
    let trusting = |pem: String| Client::new(vec![Target::Tcp(address.clone())], None, Some(pem.as_bytes())).unwrap();
    let client = trusting(leaf.pem());
    let over_tls = client.exchange_tls(connect(&address).await.unwrap(), &address, &call, STATUS_LIMIT).await;
    assert!(over_tls.is_ok_and(|(status, _)| status == StatusCode::OK));
    // The same listener takes plain HTTP from this machine.
    assert_eq!(client.status().await.unwrap().me, "n1");
    // Another authority's certificate is refused before anything is sent.
    let client = trusting(issue().0.pem());
    let refused = client.exchange_tls(connect(&address).await.unwrap(), &address, &call, STATUS_LIMIT).await;
    assert!(matches!(refused, Err(Failure::Unsent(_))));
}
