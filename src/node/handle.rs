//! The one way in: everybody outside the node talks to it through a [`Handle`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{ErrorCode, HandleError};
use super::status::Status;
use crate::config::Secret;
use crate::ha::record::Event;

/// What a node can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make another node active, in order.
    Switchover {
        /// The node; any fit one where absent.
        to: Option<String>,
    },
    /// Make a node active although nobody resigned in order.
    Promote {
        /// The node.
        node: String,
        /// Even where acknowledged commits may be lost.
        force: bool,
    },
    /// Change how a node is treated; what is absent stays.
    NodesSet {
        /// The node.
        name: String,
        /// Its new priority.
        priority: Option<u32>,
        /// Whether it is never made active by itself.
        nofailover: Option<bool>,
    },
    /// Remove a node that is not active.
    NodesRemove {
        /// The node.
        name: String,
    },
    /// Take the asked node out of the cluster.
    Leave,
    /// Return the options.
    OptionsList,
    /// Change options: all of these or none.
    OptionsSet {
        /// Names and values as written.
        changes: BTreeMap<String, String>,
    },
    /// Make a join token.
    TokenCreate {
        /// How long it admits.
        ttl: Duration,
    },
    /// Return the join tokens, without their secrets.
    TokenList,
    /// End a join token.
    TokenRevoke {
        /// Its public part.
        id: String,
    },
    /// Return the newest events, oldest first.
    History {
        /// At most so many.
        limit: u32,
    },
    /// Read one key.
    KvGet {
        /// The key.
        key: String,
        /// Whether what this node has will do: else a majority is asked first, so that every write acknowledged before is seen.
        stale: bool,
    },
    /// Write one key.
    KvPut {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Free for the writer.
        flags: u64,
        /// Write only while the key's modify index is this; 0 means only while the key is absent.
        cas: Option<u64>,
    },
    /// Delete one key, or all that begin with it.
    KvDelete {
        /// The key or prefix.
        key: String,
        /// Whether it is a prefix.
        recurse: bool,
        /// Delete only while the key's modify index is this.
        cas: Option<u64>,
    },
    /// Read all keys that begin with a prefix.
    KvList {
        /// The prefix.
        prefix: String,
        /// As for one key.
        stale: bool,
    },
    /// Wait until a key, or any under a prefix, has changed after an index; then answer as `KvGet` or `KvList`.
    KvWatch {
        /// The key or prefix.
        key: String,
        /// Whether it is a prefix.
        prefix: bool,
        /// The index already seen.
        index: u64,
        /// How long to wait at the most; then the present state is the answer.
        wait: Duration,
    },
    /// Return the cluster's authority with its key, for a backup.
    CaExport,
    /// Replace the cluster's authority by one exported before.
    CaImport {
        /// What `CaExport` gave.
        bundle: Secret,
    },
    /// Return how clients connect to PostgreSQL.
    Dsn,
    /// End the daemon in order.
    Shutdown {
        /// Whether to hand the active role over first; without it, PostgreSQL goes on under the guard.
        handover: bool,
    },
}

impl Request {
    /// Returns how long an answer is worth waiting for.
    pub fn time_limit(&self) -> Duration {
        match self {
            Self::KvWatch { wait, .. } => *wait + Duration::from_secs(5),
            // more than its parts take, so that the node's own word comes first
            Self::Switchover { .. } | Self::Promote { .. } => Duration::from_secs(75),
            Self::Shutdown { .. } => Duration::from_secs(60),
            Self::NodesRemove { .. } | Self::Leave => Duration::from_secs(60),
            _ => Duration::from_secs(10),
        }
    }

    /// Returns whether it changes nothing, so that asking twice does no harm.
    pub fn is_read(&self) -> bool {
        match self {
            Self::OptionsList
            | Self::TokenList
            | Self::History { .. }
            | Self::KvGet { .. }
            | Self::KvList { .. }
            | Self::KvWatch { .. }
            | Self::CaExport
            | Self::Dsn => true,
            Self::Switchover { .. }
            | Self::Promote { .. }
            | Self::NodesSet { .. }
            | Self::NodesRemove { .. }
            | Self::Leave
            | Self::OptionsSet { .. }
            | Self::TokenCreate { .. }
            | Self::TokenRevoke { .. }
            | Self::KvPut { .. }
            | Self::KvDelete { .. }
            | Self::CaImport { .. }
            | Self::Shutdown { .. } => false,
        }
    }
}

/// What a node answers. The variant follows from the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// It was done: to `Switchover`, `Promote`, `NodesSet`, `NodesRemove`, `Leave`, `TokenRevoke`, `CaImport`, `Shutdown`.
    Done(Done),
    /// To `OptionsList` and `OptionsSet`: every option with its value.
    Options(BTreeMap<String, String>),
    /// To `TokenCreate`.
    Token(NewToken),
    /// To `TokenList`.
    Tokens(Vec<TokenInfo>),
    /// To `History`.
    History(Vec<EventInfo>),
    /// To `KvPut` and `KvDelete`.
    KvChanged(KvChanged),
    /// To `KvGet`, `KvList` and `KvWatch`.
    Kv(KvEntries),
    /// To `CaExport`.
    Ca(CaBundle),
    /// To `Dsn`.
    Dsn(Dsn),
}

/// Something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What, in one plain sentence.
    pub message: String,
}

impl Done {
    /// Returns the answer that says `message`.
    pub fn answer(message: impl Into<String>) -> Answer {
        Answer::Done(Self { message: message.into() })
    }
}

/// A join token just made. The only time its secret is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its public part.
    pub id: String,
    /// What the joining node is given.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub join_token: Secret,
    /// Wall-clock second after which it admits nobody.
    pub expires_at: u64,
}

/// A join token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its public part.
    pub id: String,
    /// Wall-clock second after which it admits nobody.
    pub expires_at: u64,
}

/// An event with its number and its node's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventInfo {
    /// Its number in the history: the log index of its entry.
    pub id: u64,
    /// The name of the node that recorded it.
    pub node: String,
    /// What happened and why.
    #[serde(flatten)]
    pub event: Event,
}

/// A key was written or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvChanged {
    /// The log index of the change.
    pub index: u64,
}

/// Keys found, by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntries {
    /// The index to give to the next `KvWatch`.
    pub index: u64,
    /// The entries; none where a single key was asked for and is absent.
    pub entries: Vec<KvEntry>,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntry {
    /// The key.
    pub key: String,
    /// The value; base64 in JSON.
    #[serde(with = "base64_bytes")]
    pub value: Vec<u8>,
    /// As the writer gave them.
    pub flags: u64,
    /// Log index at which the key appeared.
    pub create_index: u64,
    /// Log index of its last change.
    pub modify_index: u64,
}

/// The cluster's authority with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaBundle {
    /// PEM of certificate and key: whoever holds it can make members.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub bundle: Secret,
}

/// How clients connect to PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dsn {
    /// A libpq URI that names every data node and finds the one that takes writes; holds no password.
    pub uri: String,
    /// The user; empty where the cluster was adopted and has users of its own.
    pub user: String,
    /// The database; empty as the user is.
    pub database: String,
    /// The file on every node that holds the password; absent where the operator keeps it.
    pub password_file: Option<String>,
    /// The file on every node that holds the authority's certificate; absent without TLS.
    pub ca_file: Option<String>,
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// A request on its way, with the channel for its answer.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes; closed once nobody waits any more.
    pub reply: oneshot::Sender<Result<Answer, HandleError>>,
}

/// Talks to the running node. Cheap to clone.
///
/// Requests wait in a queue of bounded length; when it stays full for [`Handle::QUEUE_LIMIT`] they fail as `unavailable`,
/// and nothing was done.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Arc<Status>>,
    orders: mpsc::Sender<Order>,
}

impl Handle {
    /// How long a request waits for room in the queue.
    pub const QUEUE_LIMIT: Duration = Duration::from_secs(2);

    /// Returns a handle that reads `status`, and the queue of `capacity` orders that the node has to work off.
    pub fn new(status: watch::Receiver<Arc<Status>>, capacity: usize) -> (Self, mpsc::Receiver<Order>) {
        let (orders, queue) = mpsc::channel(capacity);
        (Self { status, orders }, queue)
    }

    /// Returns what the node last published.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Returns the channel on which every new status arrives.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Asks the node and waits for the answer, at the most for the request's own limit.
    ///
    /// Dropping the future before it ends leaves the fate of a change unknown.
    ///
    /// # Errors
    /// `unavailable` where the node is gone or busy and nothing was done; `unknown` where a change may have been done; else
    /// what the node answers.
    pub async fn request(&self, request: Request) -> Result<Answer, HandleError> {
        let limit = request.time_limit();
        self.request_within(request, Self::QUEUE_LIMIT, limit).await
    }

    async fn request_within(
        &self,
        request: Request,
        queue_limit: Duration,
        limit: Duration,
    ) -> Result<Answer, HandleError> {
        let deadline = Instant::now() + limit;
        let is_read = request.is_read();
        let (reply, answer) = oneshot::channel();
        match timeout(queue_limit, self.orders.send(Order { request, reply })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(HandleError::new(ErrorCode::Unavailable, STOPPING)),
            Err(_) => {
                let text = "The node is busy and did not take the request. Nothing was done. Try again";
                return Err(HandleError::new(ErrorCode::Unavailable, text));
            }
        }
        let lost = |text: &str| {
            let code = if is_read { ErrorCode::Unavailable } else { ErrorCode::Unknown };
            Err(HandleError::new(code, text))
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => lost(
                "The node stopped before it answered. The request may have been done or not. Look at `hasup status`",
            ),
            Err(_) => {
                lost("The node did not answer in time. The request may have been done or not. Look at `hasup status`")
            }
        }
    }
}

const STOPPING: &str = "The node is stopping. Nothing was done. Ask another node, or this one once it runs again";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unanswered_change_is_unknown_and_an_unanswered_read_is_not() {
        let (_published, status) = watch::channel(Arc::new(Status::starting("n1")));
        let (handle, mut queue) = Handle::new(status, 1);
        let brief = Duration::from_millis(20);
        let ask = |request| handle.request_within(request, brief, brief);
        let (outcome, order) = tokio::join!(ask(Request::Switchover { to: None }), queue.recv());
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Unknown);
        assert!(order.is_some_and(|order| order.reply.is_closed()));
        let (outcome, _order) = tokio::join!(ask(Request::Dsn), queue.recv());
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Unavailable);
        // Nobody takes orders: one fills the queue, the next is refused.
        assert_eq!(ask(Request::Leave).await.unwrap_err().code, ErrorCode::Unknown);
        assert_eq!(ask(Request::Leave).await.unwrap_err().code, ErrorCode::Unavailable);
        drop(queue);
        assert_eq!(ask(Request::Leave).await.unwrap_err().code, ErrorCode::Unavailable);
    }
}
