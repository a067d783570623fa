//! Requests as HTTP and back: the server reads with [`read`] what the client writes with [`write()`].

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::query::{Query, decode, encode};
use crate::config::Secret;
use crate::node::error::{ErrorCode, HandleError};
use crate::node::handle::{Answer, Request};

/// A request as HTTP carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) struct Call {
    pub(in crate::http) method: Method,
    /// Path and query.
    pub(in crate::http) target: String,
    pub(in crate::http) body: Vec<u8>,
}

/// The longest a watch may wait.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchoverBody {
    #[serde(default)]
    to: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromoteBody {
    node: String,
    #[serde(default)]
    force: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeBody {
    #[serde(default)]
    priority: Option<u32>,
    #[serde(default)]
    nofailover: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    ttl_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleBody {
    bundle: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownBody {
    handover: bool,
}

/// Writes a request.
pub(in crate::http) fn write(request: &Request) -> Call {
    let call = |method: Method, target: &str, body: Option<serde_json::Value>| Call {
        method,
        target: target.to_owned(),
        body: body.map_or_else(Vec::new, |body| body.to_string().into_bytes()),
    };
    let kv = |method: Method, key: &str, parameters: Vec<String>, body: Vec<u8>| {
        let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
        Call { method, target: format!("/v1/kv/{}{query}", encode(key)), body }
    };
    match request {
        Request::Switchover { to } => call(Method::POST, "/v1/switchover", Some(json!({"to": to}))),
        Request::Promote { node, force } => {
            call(Method::POST, "/v1/promote", Some(json!({"node": node, "force": force})))
        }
        Request::NodesSet { name, priority, nofailover } => {
            let body = json!({"priority": priority, "nofailover": nofailover});
            call(Method::PATCH, &format!("/v1/nodes/{}", encode(name)), Some(body))
        }
        Request::NodesRemove { name } => call(Method::DELETE, &format!("/v1/nodes/{}", encode(name)), None),
        Request::Leave => call(Method::POST, "/v1/leave", None),
        Request::OptionsList => call(Method::GET, "/v1/options", None),
        Request::OptionsSet { changes } => call(Method::PATCH, "/v1/options", Some(json!(changes))),
        Request::TokenCreate { ttl } => call(Method::POST, "/v1/tokens", Some(json!({"ttl_seconds": ttl.as_secs()}))),
        Request::TokenList => call(Method::GET, "/v1/tokens", None),
        Request::TokenRevoke { id } => call(Method::DELETE, &format!("/v1/tokens/{}", encode(id)), None),
        Request::History { limit } => call(Method::GET, &format!("/v1/history?limit={limit}"), None),
        Request::KvGet { key, stale } => kv(Method::GET, key, vec![format!("stale={stale}")], Vec::new()),
        Request::KvList { prefix, stale } => {
            kv(Method::GET, prefix, vec!["list".to_owned(), format!("stale={stale}")], Vec::new())
        }
        Request::KvWatch { key, prefix, index, wait } => {
            let what = if *prefix { "prefix" } else { "key" };
            let parameters =
                vec![format!("watch={what}"), format!("index={index}"), format!("wait_ms={}", wait.as_millis())];
            kv(Method::GET, key, parameters, Vec::new())
        }
        Request::KvPut { key, value, flags, cas } => {
            let mut parameters = vec![format!("flags={flags}")];
            parameters.extend(cas.map(|index| format!("cas={index}")));
            kv(Method::PUT, key, parameters, value.clone())
        }
        Request::KvDelete { key, recurse, cas } => {
            let mut parameters = vec![format!("recurse={recurse}")];
            parameters.extend(cas.map(|index| format!("cas={index}")));
            kv(Method::DELETE, key, parameters, Vec::new())
        }
        Request::CaExport => call(Method::GET, "/v1/ca/bundle", None),
        Request::CaImport { bundle } => call(Method::PUT, "/v1/ca/bundle", Some(json!({"bundle": bundle.expose()}))),
        Request::Dsn => call(Method::GET, "/v1/dsn", None),
        Request::Shutdown { handover } => call(Method::POST, "/v1/shutdown", Some(json!({"handover": handover}))),
    }
}

/// Reads a request; nothing where no such resource or method exists.
///
/// # Errors
/// The resource exists but the request makes no sense as written.
pub(in crate::http) fn read(
    method: &Method,
    path: &str,
    query: &str,
    body: &[u8],
) -> Result<Option<Request>, HandleError> {
    let Some(path) = path.strip_prefix("/v1/") else { return Ok(None) };
    let query = Query::parse(query);
    if let Some(key) = path.strip_prefix("kv/") {
        return read_kv(method, text(key)?, &query, body);
    }
    let (first, rest) = path.split_once('/').map_or((path, None), |(first, rest)| (first, Some(rest)));
    Ok(Some(match (method.as_str(), first, rest) {
        ("POST", "switchover", None) => {
            Request::Switchover { to: json_or_default(body)?.and_then(|b: SwitchoverBody| b.to) }
        }
        ("POST", "promote", None) => {
            let PromoteBody { node, force } = from_json(body)?;
            Request::Promote { node, force }
        }
        ("PATCH", "nodes", Some(name)) => {
            let NodeBody { priority, nofailover } = from_json(body)?;
            Request::NodesSet { name: text(name)?, priority, nofailover }
        }
        ("DELETE", "nodes", Some(name)) => Request::NodesRemove { name: text(name)? },
        ("POST", "leave", None) => Request::Leave,
        ("GET", "options", None) => Request::OptionsList,
        ("PATCH", "options", None) => Request::OptionsSet { changes: from_json::<BTreeMap<String, String>>(body)? },
        ("POST", "tokens", None) => {
            let TokenBody { ttl_seconds } = from_json(body)?;
            Request::TokenCreate { ttl: Duration::from_secs(ttl_seconds) }
        }
        ("GET", "tokens", None) => Request::TokenList,
        ("DELETE", "tokens", Some(id)) => Request::TokenRevoke { id: text(id)? },
        ("GET", "history", None) => Request::History { limit: number(&query, "limit")?.unwrap_or(100) },
        ("GET", "ca", Some("bundle")) => Request::CaExport,
        ("PUT", "ca", Some("bundle")) => {
            let BundleBody { bundle } = from_json(body)?;
            Request::CaImport { bundle }
        }
        ("GET", "dsn", None) => Request::Dsn,
        ("POST", "shutdown", None) => {
            let ShutdownBody { handover } = from_json(body)?;
            Request::Shutdown { handover }
        }
        _ => return Ok(None),
    }))
}

fn read_kv(method: &Method, key: String, query: &Query, body: &[u8]) -> Result<Option<Request>, HandleError> {
    let stale = query.has("stale");
    let is_whole = !query.has("list") && !query.has("recurse") && query.get("watch") != Some("prefix");
    if key.is_empty() && is_whole {
        return Err(bad("a key is missing in the path"));
    }
    Ok(Some(match *method {
        Method::GET if query.get("watch").is_some() => Request::KvWatch {
            prefix: query.get("watch") == Some("prefix"),
            index: number(query, "index")?.unwrap_or(0),
            wait: Duration::from_millis(number(query, "wait_ms")?.unwrap_or(60_000)).min(WAIT_LIMIT),
            key,
        },
        Method::GET if query.has("list") => Request::KvList { prefix: key, stale },
        Method::GET => Request::KvGet { key, stale },
        Method::PUT => Request::KvPut {
            key,
            value: body.to_vec(),
            flags: number(query, "flags")?.unwrap_or(0),
            cas: number(query, "cas")?,
        },
        Method::DELETE => Request::KvDelete { key, recurse: query.has("recurse"), cas: number(query, "cas")? },
        _ => return Ok(None),
    }))
}

/// Reads the answer to `request`.
///
/// # Errors
/// The text is no such answer.
pub(in crate::http) fn read_answer(request: &Request, body: &[u8]) -> serde_json::Result<Answer> {
    Ok(match request {
        Request::Switchover { .. }
        | Request::Promote { .. }
        | Request::NodesSet { .. }
        | Request::NodesRemove { .. }
        | Request::Leave
        | Request::TokenRevoke { .. }
        | Request::CaImport { .. }
        | Request::Shutdown { .. } => Answer::Done(serde_json::from_slice(body)?),
        Request::OptionsList | Request::OptionsSet { .. } => Answer::Options(serde_json::from_slice(body)?),
        Request::TokenCreate { .. } => Answer::Token(serde_json::from_slice(body)?),
        Request::TokenList => Answer::Tokens(serde_json::from_slice(body)?),
        Request::History { .. } => Answer::History(serde_json::from_slice(body)?),
        Request::KvPut { .. } | Request::KvDelete { .. } => Answer::KvChanged(serde_json::from_slice(body)?),
        Request::KvGet { .. } | Request::KvList { .. } | Request::KvWatch { .. } => {
            Answer::Kv(serde_json::from_slice(body)?)
        }
        Request::CaExport => Answer::Ca(serde_json::from_slice(body)?),
        Request::Dsn => Answer::Dsn(serde_json::from_slice(body)?),
    })
}

fn bad(what: &str) -> HandleError {
    HandleError::new(ErrorCode::BadRequest, format!("The request makes no sense: {what}. Nothing was done. Correct it"))
}

fn text(encoded: &str) -> Result<String, HandleError> {
    decode(encoded).ok_or_else(|| bad("the path is no UTF-8 or holds a broken escape"))
}

fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, HandleError> {
    query.get(name).map(|value| value.parse().map_err(|_| bad(&format!("`{name}` is no number in range")))).transpose()
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, HandleError> {
    serde_json::from_slice(body).map_err(|error| bad(&format!("its body is not as expected ({error})")))
}

fn json_or_default<T: DeserializeOwned>(body: &[u8]) -> Result<Option<T>, HandleError> {
    if body.is_empty() { Ok(None) } else { from_json(body).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_travels_unchanged() {
        let text = |text: &str| text.to_owned();
        let requests = [
            Request::Switchover { to: None },
            Request::Switchover { to: Some(text("n2")) },
            Request::Promote { node: text("n2"), force: true },
            Request::NodesSet { name: text("n2"), priority: Some(5), nofailover: None },
            Request::NodesRemove { name: text("n/2 ä") },
            Request::Leave,
            Request::OptionsList,
            Request::OptionsSet { changes: BTreeMap::from([(text("durability"), text("one_node"))]) },
            Request::TokenCreate { ttl: Duration::from_secs(60) },
            Request::TokenList,
            Request::TokenRevoke { id: text("abc") },
            Request::History { limit: 7 },
            Request::KvGet { key: text("a//b?c=ä"), stale: false },
            Request::KvPut { key: text("k"), value: vec![0, 255], flags: 9, cas: Some(0) },
            Request::KvDelete { key: text("k"), recurse: false, cas: None },
            Request::KvDelete { key: text(""), recurse: true, cas: None },
            Request::KvList { prefix: text(""), stale: true },
            Request::KvWatch { key: text("k/"), prefix: true, index: 3, wait: Duration::from_millis(1500) },
            Request::CaExport,
            Request::CaImport { bundle: Secret::new("pem") },
            Request::Dsn,
            Request::Shutdown { handover: false },
        ];
        for request in requests {
            let call = write(&request);
            let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
            assert_eq!(read(&call.method, path, query, &call.body), Ok(Some(request)));
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_panic() {
        for (method, path, query, body) in [
            (Method::POST, "/v1/promote", "", "{}"),
            (Method::POST, "/v1/promote", "", "\u{0}"),
            (Method::PATCH, "/v1/nodes/%zz", "", "{}"),
            (Method::PATCH, "/v1/nodes/a", "", "{\"prio\":1}"),
            (Method::GET, "/v1/history", "limit=-1", ""),
            (Method::PUT, "/v1/kv/", "", "x"),
            (Method::DELETE, "/v1/kv/", "", ""),
            (Method::PUT, "/v1/kv/k", "cas=x", "x"),
        ] {
            let error = read(&method, path, query, body.as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest, "{path}");
        }
        assert_eq!(read(&Method::GET, "/v1/nothing", "", b""), Ok(None));
        assert_eq!(read(&Method::GET, "/", "", b""), Ok(None));
    }
}
