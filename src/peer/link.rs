//! One kept connection to one member for one purpose.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::client::{AddressBook, Call};
use super::dial::{DialError, dial};
use super::frame::{PAYLOAD_MAX, put_frame, read_frame};
use crate::tls::TlsContext;
use crate::tls::config::MemberProtocol;
use crate::types::NodeId;

/// After a failed dial, calls fail at once for this long, doubling…
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// …to this: short, as a peer that comes back is needed at once.
const BACKOFF_MAX: Duration = Duration::from_millis(400);
/// Requests must leave within this; a peer that reads more slowly is dialled anew.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// On new certificates, requests under way have this long to be answered before the connection is made anew.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Requests that wait together leave in one write of about this many bytes.
const BATCH: usize = 64 * 1024;
/// Beyond this many unanswered requests, those whose callers have gone are forgotten.
const ABANDONED_MAX: usize = 2048;

type Replies = Mutex<HashMap<u64, oneshot::Sender<Result<Vec<u8>, DialError>>>>;

/// Carries the calls for one member and purpose; dials when there is something to carry.
pub(super) struct Link {
    target: NodeId,
    protocol: MemberProtocol,
    tls: Arc<TlsContext>,
    book: watch::Receiver<AddressBook>,
    calls: mpsc::Receiver<Call>,
    /// The address that last worked.
    preferred: Option<String>,
    /// Until when calls fail at once, how long that was, and why.
    failed: Option<(Instant, Duration, DialError)>,
}

/// Why a connection is no longer used.
enum End {
    /// Broken, or to be made anew; calls may go on with another one.
    Connection,
    /// There will be no more calls.
    Link,
}

impl Link {
    pub(super) fn new(
        target: NodeId,
        protocol: MemberProtocol,
        tls: Arc<TlsContext>,
        book: watch::Receiver<AddressBook>,
        calls: mpsc::Receiver<Call>,
    ) -> Self {
        Self { target, protocol, tls, book, calls, preferred: None, failed: None }
    }

    /// Runs until the client is gone or the member has left the address book.
    pub(super) async fn run(mut self) {
        let mut book = self.book.clone();
        let target = self.target;
        let gone = async move {
            // An error means that the client is gone, and so does the end of the calls.
            let _ = book.wait_for(|book| !book.contains_key(&target)).await;
        };
        tokio::select! {
            () = gone => {}
            () = self.carry() => {}
        }
    }

    async fn carry(&mut self) {
        while let Some(call) = self.calls.recv().await {
            if let Some((until, _, because)) = &self.failed
                && Instant::now() < *until
            {
                let _ = call.reply.send(Err(because.clone()));
                continue;
            }
            // Subscribed before the dial, so that no change of certificates falls between the two.
            let changes = self.tls.changes();
            match self.dial().await {
                Ok(stream) => {
                    self.failed = None;
                    match self.use_connection(stream, call, changes).await {
                        End::Connection => {}
                        End::Link => return,
                    }
                }
                Err(because) => {
                    let _ = call.reply.send(Err(because));
                    // The others have waited for the same dial; they find its failure at the top of the loop.
                }
            }
        }
    }

    async fn dial(&mut self) -> Result<TlsStream<TcpStream>, DialError> {
        let peer = self.book.borrow().get(&self.target).cloned();
        let peer = peer.ok_or_else(|| DialError::Unreachable("it has left the cluster".into()))?;
        match dial(&peer, self.preferred.as_deref(), self.protocol, &self.tls).await {
            Ok((stream, address)) => {
                self.preferred = Some(address);
                Ok(stream)
            }
            Err(because) => {
                let before = self.failed.take().map_or(Duration::ZERO, |(_, backoff, _)| backoff);
                let backoff = (before * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
                self.failed = Some((Instant::now() + backoff, backoff, because.clone()));
                Err(because)
            }
        }
    }

    /// Carries calls over one connection until it ends; replies that are then missing are dropped, which tells their callers.
    async fn use_connection(
        &mut self,
        stream: TlsStream<TcpStream>,
        first: Call,
        changes: watch::Receiver<u64>,
    ) -> End {
        let (reader, writer) = split(stream);
        let replies = Replies::default();
        let draining = AtomicBool::new(false);
        let reading = read_answers(reader, &replies, &draining);
        tokio::pin!(reading);
        let end = tokio::select! {
            () = &mut reading => return End::Connection,
            end = write_calls(writer, &mut self.calls, first, &replies, changes) => end,
        };
        if matches!(end, WriteEnd::NewCertificates) {
            draining.store(true, Ordering::Release);
            if !replies.lock().is_empty() {
                let _ = timeout(DRAIN_LIMIT, reading).await;
            }
        }
        match end {
            WriteEnd::NoMoreCalls => End::Link,
            WriteEnd::Broken | WriteEnd::NewCertificates => End::Connection,
        }
    }
}

enum WriteEnd {
    NoMoreCalls,
    Broken,
    NewCertificates,
}

/// Writes calls as they come, several in one write where they wait. Ends only between whole frames, or with the connection.
async fn write_calls<W: AsyncWrite + Unpin>(
    mut writer: W,
    calls: &mut mpsc::Receiver<Call>,
    first: Call,
    replies: &Replies,
    mut changes: watch::Receiver<u64>,
) -> WriteEnd {
    let mut next_id = 1;
    let mut batch = Vec::new();
    let mut waiting = Some(first);
    loop {
        let call = match waiting.take() {
            Some(call) => call,
            None => tokio::select! {
                biased;
                Ok(()) = changes.changed() => return WriteEnd::NewCertificates,
                call = calls.recv() => match call {
                    Some(call) => call,
                    None => return WriteEnd::NoMoreCalls,
                },
            },
        };
        batch.clear();
        let mut next = Some(call);
        while let Some(call) = next {
            if call.fate.send() {
                put_frame(&mut batch, next_id, &call.payload);
                let mut replies = replies.lock();
                replies.insert(next_id, call.reply);
                if replies.len() > ABANDONED_MAX {
                    replies.retain(|_, reply| !reply.is_closed());
                }
                next_id += 1;
            }
            next = if batch.len() < BATCH { calls.try_recv().ok() } else { None };
        }
        let written = timeout(WRITE_LIMIT, async {
            writer.write_all(&batch).await?;
            writer.flush().await
        });
        if !matches!(written.await, Ok(Ok(()))) {
            return WriteEnd::Broken;
        }
    }
}

/// Hands answers to their callers until the connection ends, or, while draining, until nobody waits any more.
async fn read_answers<R: AsyncRead + Unpin>(mut reader: R, replies: &Replies, draining: &AtomicBool) {
    while let Ok(Some(frame)) = read_frame(&mut reader, PAYLOAD_MAX).await {
        let (reply, none_left) = {
            let mut replies = replies.lock();
            (replies.remove(&frame.id), replies.is_empty())
        };
        // No reply: an answer that comes after its caller has gone. It means nothing, and the stream is in order.
        if let Some(reply) = reply {
            let _ = reply.send(Ok(frame.payload));
        }
        if none_left && draining.load(Ordering::Acquire) {
            return;
        }
    }
}
