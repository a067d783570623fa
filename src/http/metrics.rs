//! `GET /metrics` for Prometheus, made from the status at the moment of the scrape.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Api;
use super::access::Caller;
use super::v1::failure;
use crate::ha::state::NodeState;
use crate::node::error::{ErrorCode, HandleError};
use crate::node::progress::ProgressStatus;
use crate::node::status::Status;
use crate::sys::clock;
use crate::types::BootTime;

pub(super) fn router() -> Router<Api> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(api): State<Api>, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Response {
    if let Err(error) = api.access.may_read(caller, &headers) {
        return failure(&error);
    }
    let (status, now) = (api.handle.status(), clock::boot_now());
    match render(&status.told_at(now), now) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            failure(&HandleError::new(ErrorCode::Internal, format!("The metrics cannot be written: {error}")))
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// Collects gauges that hold one value each.
struct Page(Registry);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: Option<i64>) {
        if let Some(value) = value {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            self.0.register(name, help, gauge);
        }
    }

    fn family(&mut self, name: &str, help: &str, values: impl Iterator<Item = (Labels, i64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }
}

fn render(status: &Status, now: BootTime) -> Result<String, std::fmt::Error> {
    let mut page = Page(Registry::with_prefix("hasup"));
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let truth = |is_so: bool| Some(i64::from(is_so));
    let states = NodeState::ALL.map(|state| (vec![("state", state.to_string())], i64::from(status.state == state)));
    page.family("node_state", "1 for the state that the node is in", states.into_iter());
    page.gauge("write_ready", "Whether this node takes clients' writes", truth(status.is_active_at(now)));
    let stale = Some(signed(status.stale_ms.unwrap_or(0)));
    page.gauge("stale_milliseconds", "How long this node's loop has not looked, where that is too long; else 0", stale);
    page.gauge("majority", "Whether this node hears a majority of the voters", truth(status.cluster.majority));
    page.gauge("raft_leader", "Whether this node leads Raft", truth(status.raft_leader.as_ref() == Some(&status.me)));
    page.gauge("generation", "Generation of the newest assignment", Some(signed(status.cluster.generation.0)));
    page.gauge("lease_milliseconds", "How long a lease is", Some(signed(status.cluster.lease_ms)));
    let remaining =
        status.active_until.map(|until| signed(u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX)));
    page.gauge("lease_remaining_milliseconds", "What is left of this node's right to act", remaining);
    page.gauge("postgres_accepting", "Whether PostgreSQL takes connections", truth(status.postgres.is_accepting));
    page.gauge("postgres_streaming", "Whether PostgreSQL's WAL receiver streams", truth(status.postgres.is_streaming));
    let connections = status.postgres.connections;
    let in_use = connections.map(|connections| signed(connections.in_use));
    page.gauge("postgres_connections", "PostgreSQL's connections that are in use", in_use);
    let for_clients = connections.map(|connections| signed(connections.for_clients));
    page.gauge("postgres_connections_for_clients", "PostgreSQL's connections without the reserved ones", for_clients);
    page.gauge("certificate_days_left", "Days until the node's certificate ends", status.certificate_days_left);
    page.gauge("warnings", "Things that an operator should look at", i64::try_from(status.cluster.warnings.len()).ok());
    let of_node = |name: &str| vec![("node", name.to_owned())];
    let lags = status.nodes.iter().filter_map(|node| Some((of_node(&node.name), signed(node.lag_bytes?))));
    page.family("node_lag_bytes", "How far a node is behind the active one", lags);
    let reachable = status.nodes.iter().map(|node| (of_node(&node.name), i64::from(node.is_reachable)));
    page.family("node_reachable", "Whether a node's word is recent", reachable);
    let checks = status.nodes.iter().flat_map(|node| {
        let labels = |check: &str| vec![("node", node.name.clone()), ("check", check.to_owned())];
        node.checks.iter().map(move |(name, check)| (labels(name), i64::from(check.is_passing)))
    });
    page.family("check_passing", "Whether a check of a node passes", checks);
    let progress = |bytes: fn(&ProgressStatus) -> u64| {
        let of_work = move |progress: &ProgressStatus| {
            (vec![("work", progress.work.as_str().to_owned())], signed(bytes(progress)))
        };
        status.progress.iter().map(of_work)
    };
    page.family("progress_done_bytes", "How much of long work is done", progress(|progress| progress.done_bytes));
    page.family("progress_total_bytes", "How much there is of long work", progress(|progress| progress.total_bytes));
    let build = vec![("version", status.versions.hasup.clone()), ("node", status.me.clone())];
    page.family("build", "Version of hasup and name of the node", std::iter::once((build, 1)));
    let counter = |value: u64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        counter
    };
    page.0.register(
        "role_changes",
        "Changes of the active role seen since the daemon started",
        counter(status.role_changes),
    );
    let waits = counter(status.postgres.cancelled_waits);
    page.0.register("cancelled_waits", "Commits whose wait for a standby was cancelled", waits);
    let mut text = String::new();
    encode(&mut text, &page.0)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Connections;

    #[test]
    fn metrics_tell_role_and_write_readiness() {
        let mut status = Status::starting("n1");
        status.state = NodeState::Active;
        status.active_ready = true;
        status.active_until = Some(BootTime::from_millis(1500));
        status.role_changes = 3;
        status.postgres.connections = Some(Connections { in_use: 100, for_clients: 97, all: 100 });
        let text = render(&status, BootTime::from_millis(1000)).unwrap();
        for line in [
            "hasup_node_state{state=\"active\"} 1",
            "hasup_node_state{state=\"standby\"} 0",
            "hasup_write_ready 1",
            "hasup_lease_remaining_milliseconds 500",
            "hasup_role_changes_total 3",
            "hasup_postgres_connections 100",
            "hasup_postgres_connections_for_clients 97",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(render(&status, BootTime::from_millis(1500)).unwrap().contains("hasup_write_ready 0"));
    }
}
