//! Role endpoints for load balancers, in the words of Cloudify, AMP and Patroni.
//!
//! Whether this node is active is decided by [`Status::is_active_at`] alone, at the moment of the answer: a status that nobody
//! renews stops saying so by itself, so two nodes never both answer 200.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::routing::{MethodFilter, on};
use serde_json::{Value, json};

use super::Api;
use super::v1::query::Query;
use crate::config::Address;
use crate::ha::state::NodeState;
use crate::node::status::Status;
use crate::sys::clock;
use crate::types::BootTime;

/// How old the node's word may be while it still counts as alive: the heartbeat interval of its checks.
const ALIVE_WITHIN: Duration = Duration::from_secs(15);

/// What a load balancer asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Cloudify's `/api/v3.1/status`: 200 on the active node, 400 on others.
    Cloudify,
    /// AMP's `/v1/server/ha/state`.
    AmpState,
    /// AMP's `/v1/server/ha/states`.
    AmpStates,
    /// Patroni's `/primary` and its other names.
    Primary,
    /// Patroni's `/replica`.
    Replica,
    /// Patroni's `/read-only`.
    ReadOnly,
    /// Patroni's `/health`: PostgreSQL runs.
    Health,
    /// Patroni's `/liveness`: hasup runs.
    Liveness,
    /// Patroni's `/readiness`: clients may be sent here.
    Readiness,
}

/// Every path, with its question.
const PATHS: &[(&str, Question)] = &[
    ("/api/v3.1/status", Question::Cloudify),
    ("/v1/server/ha/state", Question::AmpState),
    ("/v1/server/ha/states", Question::AmpStates),
    ("/", Question::Primary),
    ("/primary", Question::Primary),
    ("/leader", Question::Primary),
    ("/master", Question::Primary),
    ("/read-write", Question::Primary),
    ("/replica", Question::Replica),
    ("/read-only", Question::ReadOnly),
    ("/health", Question::Health),
    ("/liveness", Question::Liveness),
    ("/readiness", Question::Readiness),
];

pub(super) fn router() -> Router<Api> {
    let methods = MethodFilter::GET.or(MethodFilter::HEAD).or(MethodFilter::OPTIONS);
    PATHS.iter().fold(Router::new(), |router, (path, question)| {
        let question = *question;
        let handler = move |State(api): State<Api>, method: Method, headers: HeaderMap, RawQuery(query): RawQuery| async move {
            if question == Question::Cloudify && !api.access.may_balance(&headers) {
                return reply(StatusCode::UNAUTHORIZED, &json!({"status": "unauthenticated"}), &method);
            }
            let query = Query::parse(query.as_deref().unwrap_or_default());
            // The status is read before the clock, so that its end is never judged by an older instant than its arrival.
            let status = api.handle.status();
            let now = clock::boot_now();
            let (code, body) = answer(question, &query, &status.told_at(now), now);
            reply(code, &body, &method)
        };
        router.route(path, on(methods, handler))
    })
}

fn reply(code: StatusCode, body: &Value, method: &Method) -> Response<Body> {
    let body = if *method == Method::GET { Body::from(body.to_string()) } else { Body::empty() };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Basic realm=\"hasup\""));
    }
    response
}

/// Answers `question` from what the node last said. Pure.
fn answer(question: Question, query: &Query, status: &Status, now: BootTime) -> (StatusCode, Value) {
    let is_active = status.is_active_at(now);
    let reads_as_standby = serves_as_standby(status);
    let or_503 = |is_so: bool| {
        let code = if is_so { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, patroni_body(status, is_active))
    };
    match question {
        Question::Cloudify if is_active => (StatusCode::OK, json!({"status": "OK"})),
        Question::Cloudify => (StatusCode::BAD_REQUEST, json!({"status": "Fail", "active": status.active})),
        Question::AmpState => (StatusCode::OK, json!(amp_state(status.state, is_active, reads_as_standby))),
        Question::AmpStates => (StatusCode::OK, amp_states(status, is_active)),
        Question::Primary => or_503(is_active),
        Question::Replica => or_503(!is_active && reads_as_standby && lag_is_within(status, query)),
        Question::ReadOnly => {
            let reads_cut_off = status.state == NodeState::Minority && status.postgres.is_accepting;
            or_503(is_active || reads_cut_off || reads_as_standby && lag_is_within(status, query))
        }
        Question::Health => or_503(status.postgres.is_running && status.postgres.is_accepting),
        Question::Liveness => or_503(now.since(status.published_at) < ALIVE_WITHIN),
        Question::Readiness => or_503(is_active || reads_as_standby && status.postgres.is_streaming),
    }
}

fn serves_as_standby(status: &Status) -> bool {
    let postgres = &status.postgres;
    matches!(status.state, NodeState::Standby | NodeState::Paused)
        // how far behind it is would be as old
        && status.stale_ms.is_none()
        && postgres.is_accepting
        && postgres.is_in_recovery == Some(true)
}

/// Patroni's `lag` parameter: the most bytes behind that the balancer accepts, with `kB`, `MB` or `GB` if it likes.
fn lag_is_within(status: &Status, query: &Query) -> bool {
    let Some(text) = query.get("lag") else { return true };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return false,
    };
    let Some(limit) = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) else { return false };
    status.node(&status.me).and_then(|node| node.lag_bytes).is_some_and(|lag| lag <= limit)
}

fn amp_state(state: NodeState, is_active: bool, reads_as_standby: bool) -> &'static str {
    match state {
        _ if is_active => "MASTER",
        NodeState::Empty | NodeState::Joining => "INITIALIZING",
        NodeState::Failed => "FAILED",
        _ if reads_as_standby => "HOT_STANDBY",
        NodeState::Standby
        | NodeState::Promoting
        | NodeState::Active
        | NodeState::Demoting
        | NodeState::Rejoining
        | NodeState::Minority
        | NodeState::ActiveMinority
        | NodeState::Fenced
        | NodeState::Witness
        | NodeState::Paused => "STANDBY",
    }
}

fn amp_states(status: &Status, is_active: bool) -> Value {
    let wall_ms = u64::try_from(clock::wall_now().as_millis()).unwrap_or(u64::MAX);
    let nodes: serde_json::Map<_, _> = status
        .nodes
        .iter()
        .map(|node| {
            let is_me = node.name == status.me;
            let word = if is_me {
                amp_state(status.state, is_active, serves_as_standby(status))
            } else if let Some(state) = node.state.filter(|_| node.is_reachable) {
                let is_master = state == NodeState::Active && status.active.as_ref() == Some(&node.name);
                amp_state(state, is_master, state == NodeState::Standby)
            } else {
                "FAILED"
            };
            let heard = node.heard_ms_ago.map(|age| wall_ms.saturating_sub(age));
            let remote = if is_me { Some(wall_ms) } else { heard };
            let body = json!({
                "nodeId": node.name,
                "nodeUri": format!("{}://{}/", scheme(&node.api_address), node.api_address),
                "status": word,
                "priority": node.priority,
                "localTimestamp": remote,
                "remoteTimestamp": remote,
            });
            (node.name.clone(), body)
        })
        .collect();
    json!({"ownId": status.me, "masterId": status.active, "nodes": nodes, "links": {}})
}

/// The API speaks TLS wherever others can reach it.
fn scheme(address: &str) -> &'static str {
    let is_loopback = Address::parse(address, 7401).is_ok_and(|address| address.host.is_loopback());
    if is_loopback { "http" } else { "https" }
}

fn patroni_body(status: &Status, is_active: bool) -> Value {
    let postgres = &status.postgres;
    json!({
        "state": if postgres.is_running { "running" } else { "stopped" },
        "role": if is_active { "primary" } else { "replica" },
        "server_version": postgres.server_version,
        "timeline": postgres.timeline,
        "database_system_identifier": postgres.system_identifier.map(|id| id.to_string()),
        "patroni": {"version": status.versions.hasup, "scope": status.cluster.name, "name": status.me},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node in `state` whose PostgreSQL answers as it should there.
    fn node_in(state: NodeState) -> Status {
        let mut status = Status::starting("n1");
        status.state = state;
        status.published_at = BootTime::from_millis(1000);
        let runs = !matches!(state, NodeState::Empty | NodeState::Joining | NodeState::Witness | NodeState::Failed);
        status.postgres.is_running = runs;
        status.postgres.is_accepting = runs;
        status.postgres.is_in_recovery = runs.then_some(state != NodeState::Active);
        status.postgres.is_streaming = state == NodeState::Standby;
        if state == NodeState::Active {
            status.active_ready = true;
            status.active_until = Some(BootTime::from_millis(2000));
        }
        status
    }

    #[test]
    fn every_state_gives_every_balancer_its_answer() {
        let now = BootTime::from_millis(1500);
        let mut table = String::new();
        for state in NodeState::ALL {
            let status = node_in(state);
            let code = |question| answer(question, &Query::default(), &status, now).0.as_u16();
            let (_, amp) = answer(Question::AmpState, &Query::default(), &status, now);
            let columns = [
                Question::Cloudify,
                Question::Primary,
                Question::Replica,
                Question::ReadOnly,
                Question::Health,
                Question::Liveness,
                Question::Readiness,
            ];
            let codes: Vec<_> = columns.map(|question| code(question).to_string()).into();
            table += &format!("{state:<15} {} {amp}\n", codes.join(" "));
        }
        let expected = "\
empty           400 503 503 503 503 200 503 \"INITIALIZING\"
joining         400 503 503 503 503 200 503 \"INITIALIZING\"
standby         400 503 200 200 200 200 200 \"HOT_STANDBY\"
promoting       400 503 503 503 200 200 503 \"STANDBY\"
active          200 200 503 200 200 200 200 \"MASTER\"
demoting        400 503 503 503 200 200 503 \"STANDBY\"
rejoining       400 503 503 503 200 200 503 \"STANDBY\"
minority        400 503 503 200 200 200 503 \"STANDBY\"
active_minority 400 503 503 503 200 200 503 \"STANDBY\"
fenced          400 503 503 503 200 200 503 \"STANDBY\"
witness         400 503 503 503 503 200 503 \"STANDBY\"
paused          400 503 200 200 200 200 503 \"HOT_STANDBY\"
failed          400 503 503 503 503 200 503 \"FAILED\"
";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_status_that_nobody_renews_stops_answering_as_active() {
        let status = node_in(NodeState::Active);
        for question in [Question::Cloudify, Question::Primary, Question::ReadOnly, Question::Readiness] {
            let at = |ms| answer(question, &Query::default(), &status, BootTime::from_millis(ms)).0;
            assert_eq!(at(1999), StatusCode::OK, "{question:?}");
            assert_ne!(at(2000), StatusCode::OK, "{question:?}");
        }
        let late = answer(Question::Liveness, &Query::default(), &status, BootTime::from_millis(16_000)).0;
        assert_eq!(late, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(amp_states(&status, false)["ownId"], "n1");
    }

    #[test]
    fn replicas_beyond_the_lag_asked_for_are_not_offered() {
        let status = node_in(NodeState::Standby);
        for lag in ["1MB", "10", "x", "9999999999999GB"] {
            let code = answer(Question::Replica, &Query::parse(&format!("lag={lag}")), &status, BootTime(0)).0;
            assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE, "lag is unknown, so {lag} cannot be promised");
        }
    }
}
