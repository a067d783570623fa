//! Calls a member by its number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::dial::DialError;
use super::frame::PAYLOAD_MAX;
use super::link::Link;
use super::message::{Envelope, PeerRequest, PeerResponse};
use crate::codec;
use crate::tls::TlsContext;
use crate::tls::config::MemberProtocol;
use crate::types::{NodeId, NodeName};

/// Bytes that may be in flight on one link, counted in these units…
const UNIT: usize = 16 * 1024;
/// …16 MiB, and so at most 1024 requests; more wait within their deadline.
const UNITS_IN_FLIGHT: usize = 1024;

/// How a member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its number.
    pub id: NodeId,
    /// Its name; who answers must prove both.
    pub name: NodeName,
    /// `host:port` of its peer port, in the order to try; names are resolved at each attempt.
    pub addresses: Vec<String>,
}

/// A call got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The request certainly did not reach the peer; it may be repeated at will.
    #[error("node {target} was not asked: {because}")]
    NotSent {
        /// Who was to be asked.
        target: NodeId,
        /// Why it was not.
        because: NotSent,
    },
    /// The peer may or may not have carried out the request; repeat only what may happen twice.
    #[error("node {target} was asked and did not answer: {because}. It may have acted on it")]
    Unknown {
        /// Who was asked.
        target: NodeId,
        /// What went wrong.
        because: Unknown,
    },
}

/// Why a request was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The address book does not name the target.
    #[error("it is no member that this node knows")]
    UnknownPeer,
    /// No address answered.
    #[error("it cannot be reached ({0})")]
    Unreachable(String),
    /// The target says that this node is no member any more.
    #[error("it says that this node is no member: it was removed or replaced. Join again with an empty node")]
    NotAMember,
    /// Too much is in flight, or the connection was not there in time.
    #[error("the connection was busy or not yet open when the time was over")]
    Deadline,
    /// The request is longer than a frame.
    #[error("the request of {0} bytes does not fit a frame")]
    TooLong(usize),
    /// The link was given up before it took the request.
    #[error("its connection was given up: this node is stopping, or the other was removed")]
    GivenUp,
}

/// Why the fate of a request is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The time was over.
    #[error("the time was over")]
    Deadline,
    /// The connection broke.
    #[error("the connection broke")]
    Lost,
    /// The answer does not decode.
    #[error("its answer does not decode ({0})")]
    BadAnswer(String),
}

/// A request is queued until either its link takes it for sending or its caller takes it back: one of the two wins.
#[derive(Debug, Default)]
pub(super) struct Fate(AtomicU8);

impl Fate {
    const QUEUED: u8 = 0;
    const SENT: u8 = 1;
    const WITHDRAWN: u8 = 2;

    /// The link is about to write the request; false when its caller has given up.
    pub(super) fn send(&self) -> bool {
        self.0.compare_exchange(Self::QUEUED, Self::SENT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The caller gives up; true when the request will certainly not be written.
    fn withdraw(&self) -> bool {
        self.0.compare_exchange(Self::QUEUED, Self::WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A request on its way to a link.
pub(super) struct Call {
    pub(super) payload: Vec<u8>,
    pub(super) fate: Arc<Fate>,
    pub(super) reply: oneshot::Sender<Result<Vec<u8>, DialError>>,
}

/// The members and how to reach them.
pub(super) type AddressBook = Arc<BTreeMap<NodeId, PeerAddress>>;

/// Where calls to one member for one purpose go in.
struct Entrance {
    calls: mpsc::Sender<Call>,
    units: Arc<Semaphore>,
}

struct Inner {
    tls: Arc<TlsContext>,
    book: watch::Sender<AddressBook>,
    entrances: Mutex<BTreeMap<(NodeId, MemberProtocol), Arc<Entrance>>>,
    new_links: mpsc::UnboundedSender<Link>,
    /// Members whose newest answer was that this node is none.
    disowned_by: Mutex<BTreeSet<NodeId>>,
}

/// Calls members. Cheap to clone; all clones share one connection per member and purpose.
#[derive(Clone)]
pub struct PeerClient {
    inner: Arc<Inner>,
}

impl fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerClient").finish_non_exhaustive()
    }
}

impl PeerClient {
    /// Returns a client that knows no peers yet, and the work to run beside it as a task; when that ends, calls fail.
    pub fn new(tls: Arc<TlsContext>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (new_links, mut links) = mpsc::unbounded_channel::<Link>();
        let inner = Inner {
            tls,
            book: watch::Sender::default(),
            entrances: Mutex::default(),
            new_links,
            disowned_by: Mutex::default(),
        };
        let work = async move {
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    link = links.recv() => match link {
                        Some(link) => { running.spawn(link.run()); }
                        None => return,
                    },
                    Some(ended) = running.join_next() => {
                        if let Err(error) = ended && error.is_panic() {
                            std::panic::resume_unwind(error.into_panic());
                        }
                    }
                }
            }
        };
        (Self { inner: Arc::new(inner) }, work)
    }

    /// Replaces the address book. Connections to members that are gone from it end; others stay, whatever their addresses.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = PeerAddress>) {
        let book: AddressBook = Arc::new(peers.into_iter().map(|peer| (peer.id, peer)).collect());
        self.inner.book.send_if_modified(|current| {
            let changed = *current != book;
            *current = book;
            changed
        });
    }

    /// Returns the members whose newest answer was that this node is no member: it was removed, or another took its place.
    pub fn disowned_by(&self) -> BTreeSet<NodeId> {
        self.inner.disowned_by.lock().clone()
    }

    /// Asks `target` and waits `within` for its answer, which may be a refusal.
    ///
    /// The error says whether the request can have been carried out. Dropping the future leaves that unknown.
    pub async fn call(
        &self,
        target: NodeId,
        protocol: MemberProtocol,
        request: PeerRequest,
        within: Duration,
    ) -> Result<PeerResponse, PeerError> {
        let deadline = Instant::now() + within;
        let not_sent = |because| PeerError::NotSent { target, because };
        let unknown = |because| PeerError::Unknown { target, because };

        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let payload = codec::encode(&Envelope { within_ms, request });
        if payload.len() > PAYLOAD_MAX {
            return Err(not_sent(NotSent::TooLong(payload.len())));
        }
        let entrance = self.entrance(target, protocol).ok_or_else(|| not_sent(NotSent::UnknownPeer))?;
        let units = u32::try_from(payload.len().div_ceil(UNIT).max(1)).unwrap_or(u32::MAX);
        // Held until the answer is there, so that it bounds what is in flight.
        let _units = match timeout_at(deadline, entrance.units.acquire_many(units)).await {
            Ok(Ok(units)) => units,
            Ok(Err(_)) => return Err(not_sent(NotSent::GivenUp)),
            Err(_) => return Err(not_sent(NotSent::Deadline)),
        };
        let (reply, answer) = oneshot::channel();
        let fate = Arc::new(Fate::default());
        match timeout_at(deadline, entrance.calls.send(Call { payload, fate: fate.clone(), reply })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(not_sent(NotSent::GivenUp)),
            Err(_) => return Err(not_sent(NotSent::Deadline)),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(Ok(payload))) => {
                self.inner.disowned_by.lock().remove(&target);
                codec::decode(&payload).map_err(|error| unknown(Unknown::BadAnswer(error.to_string())))
            }
            Ok(Ok(Err(DialError::NotAMember))) => {
                self.inner.disowned_by.lock().insert(target);
                Err(not_sent(NotSent::NotAMember))
            }
            Ok(Ok(Err(DialError::Unreachable(tried)))) => Err(not_sent(NotSent::Unreachable(tried))),
            Ok(Err(_)) if fate.withdraw() => Err(not_sent(NotSent::GivenUp)),
            Ok(Err(_)) => Err(unknown(Unknown::Lost)),
            Err(_) if fate.withdraw() => Err(not_sent(NotSent::Deadline)),
            Err(_) => Err(unknown(Unknown::Deadline)),
        }
    }

    /// Returns where calls to `target` go in, making its link where there is none; `None` for one that is no peer.
    fn entrance(&self, target: NodeId, protocol: MemberProtocol) -> Option<Arc<Entrance>> {
        if !self.inner.book.borrow().contains_key(&target) {
            return None;
        }
        let mut entrances = self.inner.entrances.lock();
        if let Some(entrance) = entrances.get(&(target, protocol)).filter(|entrance| !entrance.calls.is_closed()) {
            return Some(entrance.clone());
        }
        let (calls, queue) = mpsc::channel(UNITS_IN_FLIGHT);
        let link = Link::new(target, protocol, self.inner.tls.clone(), self.inner.book.subscribe(), queue);
        // Where the client's work has ended, the link is dropped with its queue, and the call fails as it should.
        let _ = self.inner.new_links.send(link);
        let entrance = Arc::new(Entrance { calls, units: Arc::new(Semaphore::new(UNITS_IN_FLIGHT)) });
        entrances.insert((target, protocol), entrance.clone());
        Some(entrance)
    }
}
