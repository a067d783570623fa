//! Talks to the local PostgreSQL over its unix socket, as the superuser, by the operating system's word for who we are.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls, SimpleQueryMessage, Socket};

use super::PgError;
use super::layout::Layout;
use super::settings::{SUPERUSER, millis};

/// One connection. It is driven only while a query runs, so it needs no task. Dropping a query's future midway leaves the
/// connection unusable: drop it too.
pub struct Session {
    client: Client,
    connection: Pin<Box<Connection<Socket, NoTlsStream>>>,
    /// The names of the statements that it has prepared.
    prepared: BTreeSet<&'static str>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// The rows of an answer: text or null in each column.
pub type Rows = Vec<Vec<Option<String>>>;

impl Session {
    /// Makes a connection to `database` within `limit`, which also becomes the server's limit for each statement.
    pub async fn open(layout: &Layout, port: u16, database: &str, limit: Duration) -> Result<Self, PgError> {
        let mut config = Config::new();
        config
            .host_path(layout.socket_dir())
            .port(port)
            .user(SUPERUSER)
            .dbname(database)
            .application_name("hasup")
            .options(format!("-c statement_timeout={} -c client_min_messages=error", millis(limit)));
        match timeout(limit, config.connect(NoTls)).await {
            Err(_) => Err(PgError::Timeout { what: "accept a connection", limit }),
            Ok(Err(source)) => Err(PgError::Connect { what: "ask it anything", source }),
            Ok(Ok((client, connection))) => {
                Ok(Self { client, connection: Box::pin(connection), prepared: BTreeSet::new() })
            }
        }
    }

    /// Runs one or several statements and returns all rows.
    pub async fn query(&mut self, what: &'static str, sql: &str, limit: Duration) -> Result<Rows, PgError> {
        let Self { client, connection, .. } = self;
        let work = async {
            tokio::select! {
                biased;
                answer = client.simple_query(sql) => answer.map_err(|source| PgError::Query { what, source }),
                ended = connection => Err(match ended {
                    Err(source) => PgError::Connect { what, source },
                    Ok(()) => PgError::Answer { what, detail: "the connection was closed".to_owned() },
                }),
            }
        };
        let messages = timeout(limit, work).await.map_err(|_| PgError::Timeout { what, limit })??;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs a statement that returns one value, and returns it.
    pub async fn value(&mut self, what: &'static str, sql: &str, limit: Duration) -> Result<String, PgError> {
        let rows = self.query(what, sql, limit).await?;
        let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        value.ok_or_else(|| PgError::Answer { what, detail: "no value".to_owned() })
    }

    /// As [`value`](Self::value), for a statement that is run again and again: planned once for each connection, under `name`.
    pub async fn prepared_value(
        &mut self,
        what: &'static str,
        name: &'static str,
        sql: &str,
        limit: Duration,
    ) -> Result<String, PgError> {
        if self.prepared.contains(name) {
            return self.value(what, &format!("execute {name}"), limit).await;
        }
        let value = self.value(what, &format!("prepare {name} as {sql}; execute {name}"), limit).await?;
        self.prepared.insert(name);
        Ok(value)
    }

    /// Tells whether the connection can be used again after `error`.
    pub fn survives(&self, error: &PgError) -> bool {
        matches!(error, PgError::Query { .. }) && !self.client.is_closed()
    }
}

impl PgError {
    fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { source, .. } | Self::Query { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Tells whether PostgreSQL lives but has no connection left (53300): an answer, never death.
    pub fn is_exhausted(&self) -> bool {
        self.sql_state() == Some(&SqlState::TOO_MANY_CONNECTIONS)
    }

    /// Tells whether PostgreSQL lives and is starting, recovering or stopping (57P03).
    pub fn is_not_ready(&self) -> bool {
        self.sql_state() == Some(&SqlState::CANNOT_CONNECT_NOW)
    }

    /// Tells whether PostgreSQL lives and does not know hasup's superuser or its database, or does not let that user in (28000,
    /// 3D000): time does not mend it.
    pub fn is_shut_out(&self) -> bool {
        [Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION), Some(&SqlState::INVALID_CATALOG_NAME)]
            .contains(&self.sql_state())
    }

    /// Tells whether nobody listens at all.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.code().is_none())
    }
}
