//! The API over HTTP: hasup's own under `/v1`, role endpoints for load balancers, metrics; and the client for it.
//!
//! Who may do what: the admin socket may everything, by its file mode. Over TCP, role endpoints, `/v1/health` and `/v1/ca` are
//! open; `/v1/status` and `/metrics` are open from loopback; everything else needs the bearer token. No clear text leaves the
//! machine: [`serve_tcp`] refuses to serve without TLS on an address that is not loopback, and plain HTTP is taken only from
//! this machine itself.

mod access;
mod balancer;
pub mod client;
mod metrics;
mod server;
mod v1;

pub use access::{Access, BasicCredentials};
pub use server::{ServeError, bind_admin_socket, serve_admin, serve_tcp};

use std::sync::Arc;

use axum::Router;

use crate::node::handle::Handle;

/// What every connection shares. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    handle: Handle,
    access: Arc<Access>,
}

impl Api {
    /// Returns an API that asks `handle` and lets in whom `access` names.
    pub fn new(handle: Handle, access: Access) -> Self {
        Self { handle, access: Arc::new(access) }
    }

    fn router(&self) -> Router {
        Router::new().merge(v1::router()).merge(metrics::router()).merge(balancer::router()).with_state(self.clone())
    }
}
