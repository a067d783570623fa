//! The client that watches the role endpoints, as a load balancer does: `hasup chaos poller`, a process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::client::{Target, tls_config};
use super::dsn::SslMode;
use super::http;
use super::journal::{Line, Poll, Span};
use super::recorder::{Lines, Recorder};
use super::writer::{die_with_parent, parse_target, wait_for_end};
use crate::sys::clock::boot_now;

/// Asks every node's role endpoint again and again and writes the answers down
#[derive(Debug, Clone, clap::Args)]
pub struct PollerArgs {
    /// API addresses, as [name=]host:port[,…]
    #[arg(long, value_delimiter = ',', required = true)]
    pub targets: Vec<String>,
    /// The journal to append to
    #[arg(long)]
    pub journal: PathBuf,
    /// The endpoint to ask
    #[arg(long, default_value = "/primary")]
    pub path: String,
    /// Speak TLS, without checking the certificate
    #[arg(long)]
    pub tls: bool,
    /// Milliseconds between two requests to one node
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub interval_ms: u64,
    /// Stop after so many seconds; without it, on SIGTERM or SIGINT
    #[arg(long)]
    pub seconds: Option<u64>,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// Runs the poller until its time is over or a signal ends it. Returns the exit status.
///
/// # Errors
/// When an argument is wrong, or the journal cannot be written.
pub async fn run(args: PollerArgs) -> anyhow::Result<u8> {
    if args.with_parent {
        die_with_parent()?;
    }
    if !args.path.starts_with('/') || args.path.contains(char::is_whitespace) {
        bail!("--path takes an absolute path, as /primary");
    }
    let targets = args.targets.iter().map(|text| parse_target(text)).collect::<Result<Vec<_>, _>>()?;
    let tls = if args.tls { Some(Arc::new(tls_config(SslMode::Require, None)?)) } else { None };
    let (recorder, lines) =
        Recorder::open(&args.journal).with_context(|| format!("open the journal {}", args.journal.display()))?;
    let stop = CancellationToken::new();
    let mut pollers = JoinSet::new();
    for target in targets {
        let (path, tls, lines, stop) = (args.path.clone(), tls.clone(), lines.clone(), stop.clone());
        let every = Duration::from_millis(args.interval_ms);
        pollers.spawn(async move {
            tokio::select! {
                () = poll(target, path, tls, every, lines) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    drop(lines);
    wait_for_end(args.seconds.map(Duration::from_secs), &recorder).await?;
    stop.cancel();
    while pollers.join_next().await.is_some() {}
    recorder
        .finish()
        .context("the journal could not be written, so this run proves nothing; free space and run again")?;
    Ok(0)
}

async fn poll(target: Target, path: String, tls: Option<Arc<rustls::ClientConfig>>, every: Duration, lines: Lines) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sent = boot_now();
        let answer = http::get(&target.host, target.port, &path, tls.as_ref(), Duration::from_secs(1)).await;
        let span = Span { sent, answered: boot_now() };
        let (status, detail) = answer.map_or((None, String::new()), |(status, body)| (Some(status), told(&body)));
        lines.put(Line::Poll(Poll { span, node: target.name.clone(), status, detail }));
    }
}

/// Returns what the body of a role endpoint says of PostgreSQL, as `running 3`; empty where it says nothing of it.
fn told(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let state = body.get("state").and_then(|state| state.as_str()).unwrap_or_default();
    // One word, whatever a node says.
    let state: String = state.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    match body.get("timeline").and_then(serde_json::Value::as_u64) {
        Some(timeline) if !state.is_empty() => format!("{state} {timeline}"),
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn an_answer_says_what_postgresql_does_and_on_which_timeline() {
        assert_eq!(told(br#"{"state":"running","role":"primary","timeline":3}"#), "running 3");
        assert_eq!(told(br#"{"state":"stopped","timeline":null}"#), "stopped");
        assert_eq!(told(br#"{"state":"a b\n<c>"}"#), "abc");
        for nothing in [&b""[..], b"OK", b"[]", b"{\"timeline\":3}"] {
            assert_eq!(told(nothing), "");
        }
    }
}
