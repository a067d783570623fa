//! One HTTP request to a node, as a load balancer makes it: a new connection, a status, a short body, a deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than any status of a cluster needs; what lies beyond is not read.
const BODY_MAX: u64 = 4 << 20;

/// Asks `http://host:port/path`, over TLS where `tls` is given, and returns status and body.
///
/// # Errors
/// The I/O error that kept the answer away; `TimedOut` after `limit`; `InvalidData` where it is no HTTP.
pub async fn get(
    host: &str,
    port: u16,
    path: &str,
    tls: Option<&Arc<ClientConfig>>,
    limit: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let exchange = async {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        match tls {
            None => talk(stream, host, path).await,
            Some(config) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let stream = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
                talk(stream, host, path).await
            }
        }
    };
    timeout(limit, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, host: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
    // HTTP/1.0 asks for a body that ends with the connection, never for chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.take(BODY_MAX).read_to_end(&mut answer).await;
    parse(&answer).ok_or_else(|| read.err().unwrap_or_else(|| io::Error::from(io::ErrorKind::InvalidData)))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    let status = words.next().filter(|version| version.starts_with("HTTP/1.")).and(words.next())?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        assert_eq!(parse(b"HTTP/1.1 503 Nope\r\nA: b\r\n\r\n{}"), Some((503, b"{}".to_vec())));
        assert_eq!(parse(b"HTTP/1.0 200\r\n\r\n"), Some((200, Vec::new())));
        for bad in [&b""[..], b"HTTP/1.1 200", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 x\r\n\r\n", b"\xff\xfe\r\n\r\n"] {
            assert_eq!(parse(bad), None);
        }
    }
}
