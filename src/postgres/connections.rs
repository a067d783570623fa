//! How many connections are in use, and how many there are for clients.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::PgError;
use super::control::Postgres;

/// A server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// How many are in use, superusers' and hasup's own included.
    pub in_use: u64,
    /// How many may be in use when a role without privileges gets one more: `max_connections` without what is reserved.
    pub for_clients: u64,
    /// `max_connections`.
    pub all: u64,
}

/// The joins of the view are left out by the planner, as nothing of them is read. Replication has connections of its own.
const COUNT: &str = "\
select json_build_object('in_use', (select count(*) from pg_stat_activity where backend_type = 'client backend'),
 'for_clients', m - current_setting('superuser_reserved_connections')::int
   - coalesce(current_setting('reserved_connections', true)::int, 0),
 'all', m)
from (select current_setting('max_connections')::int as m) as setting";

impl Connections {
    /// Returns whether clients are refused.
    pub fn are_exhausted(&self) -> bool {
        self.in_use >= self.for_clients
    }
}

impl Postgres {
    /// Counts the connections, over the one that is kept.
    ///
    /// # Errors
    /// PostgreSQL does not answer.
    pub async fn connections(&self, limit: Duration) -> Result<Connections, PgError> {
        let what = "count its connections";
        let text = self.ask(limit, async |session, limit| session.value(what, COUNT, limit).await).await?;
        serde_json::from_str(&text).map_err(|error| PgError::Answer { what, detail: error.to_string() })
    }
}
