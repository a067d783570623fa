//! hasup's own API: status, health and the authority's certificate here; all that is asked of the node through its codec.

pub(super) mod query;
pub(super) mod routes;

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde_json::json;
use tokio::time::timeout;

use super::Api;
use super::access::Caller;
use crate::ha::state::NodeState;
use crate::node::error::{ErrorCode, HandleError};
use crate::sys::clock::boot_now;

/// How large the body of a request may be: a value of the store with room for its wrapping.
const BODY_BYTES: usize = 1024 * 1024;
/// How long the body of a request may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/health", get(health))
        .route("/v1/ca", get(ca))
        .fallback(ask)
}

/// Writes a failure: the code's status, and code and message as JSON.
pub(super) fn failure(error: &HandleError) -> Response {
    let code = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, Json(error)).into_response()
}

async fn status(State(api): State<Api>, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Response {
    match api.access.may_read(caller, &headers) {
        Ok(()) => Json(&*api.handle.status().told_at(boot_now())).into_response(),
        Err(error) => failure(&error),
    }
}

async fn health(State(api): State<Api>) -> Response {
    let status = api.handle.status();
    let status = status.told_at(boot_now());
    let is_well = status.state != NodeState::Failed && status.cluster.majority && status.stale_ms.is_none();
    let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"ok": is_well, "state": status.state, "majority": status.cluster.majority}))).into_response()
}

async fn ca(State(api): State<Api>) -> Response {
    let status = api.handle.status();
    if status.ca_pem.is_empty() {
        return failure(&HandleError::new(
            ErrorCode::NotFound,
            "The node has no certificate of an authority yet. Ask again",
        ));
    }
    ([(header::CONTENT_TYPE, "application/x-pem-file")], status.ca_pem.clone()).into_response()
}

async fn ask(State(api): State<Api>, Extension(caller): Extension<Caller>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    // Who may not ask learns nothing about what exists, and sends no body.
    if let Err(error) = api.access.may_ask(caller, &head.headers) {
        return failure(&error);
    }
    let body = match timeout(BODY_LIMIT, to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let text =
                format!("The request's body is broken or larger than {BODY_BYTES} bytes. Nothing was done. Send less");
            return failure(&HandleError::new(ErrorCode::TooLarge, text));
        }
        Err(_) => {
            let text = "The request's body took too long to arrive. Nothing was done. Try again";
            return failure(&HandleError::new(ErrorCode::BadRequest, text));
        }
    };
    match routes::read(&head.method, head.uri.path(), head.uri.query().unwrap_or_default(), &body) {
        Ok(Some(crate::node::handle::Request::CaExport | crate::node::handle::Request::CaImport { .. }))
            if caller != Caller::Admin =>
        {
            // whoever kept an API token, a removed node for one, must not get the key to the whole cluster by it
            let text = "The authority's key is given and taken on a member itself alone. Nothing was done. Run `hasup ca` there";
            failure(&HandleError::new(ErrorCode::Refused, text))
        }
        Ok(Some(request)) => match api.handle.request(request).await {
            Ok(answer) => Json(answer).into_response(),
            Err(error) => failure(&error),
        },
        Ok(None) => {
            let text = format!("There is no {} {}. Nothing was done", head.method, head.uri.path());
            failure(&HandleError::new(ErrorCode::NotFound, text))
        }
        Err(error) => failure(&error),
    }
}
