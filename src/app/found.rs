//! The first node of a new cluster: its authority, its database, and the first entries of the store.
//!
//! Each step is skipped where an interrupted try has done it already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::identity::Identity;
use super::{certificate_hosts, hex, random};
use crate::config::Config;
use crate::ha::record::{
    Assignment, AssignmentReason, ClusterIdentity, CommitSet, Event, EventKind, MemberKind, Options, Trust, WhyRecord,
};
use crate::kv::{Command, NewMember, Proposal, Reply, State};
use crate::node::{FIRST_PRIORITY, Node, options, request_id};
use crate::postgres::adopt::{AdoptRefused, Adoption};
use crate::postgres::initdb::initdb;
use crate::postgres::{ControlData, Layout, Programs, history};
use crate::raft::Consensus;
use crate::sys::clock::wall_now;
use crate::sys::fs::{remove_durably, write_durably};
use crate::tls::{NodeIdentity, NodeKeys, NodeTrust};
use crate::types::{ClusterGeneration, DataIncarnation, Generation, Lsn, NodeId, Timeline, WalPosition};

/// The first member's number.
const FIRST: NodeId = NodeId(1);
/// How long a fresh database may take to make.
const INITDB_LIMIT: Duration = Duration::from_secs(600);
/// How long the only voter may take to lead.
const LEAD_LIMIT: Duration = Duration::from_secs(30);
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Where the sealed authority waits until the store holds it.
fn founding_trust(data_dir: &Path) -> PathBuf {
    data_dir.join("founding-trust.json")
}

/// Refuses a database that nobody asked to adopt; one that an interrupted start has made is none.
pub(super) fn refuse_foreign(layout: &Layout) -> Result<(), AdoptRefused> {
    if !layout.pgdata.join("PG_VERSION").exists() || layout.config_dir().join("copy.lock").exists() {
        return Ok(());
    }
    let problem = format!(
        "it holds a database, and nobody said that it is meant: `hasup start --adopt {}`",
        layout.pgdata.display()
    );
    Err(AdoptRefused { pgdata: layout.pgdata.clone(), problems: vec![problem] })
}

/// Looks again at what the operator's command has found: it may have changed since.
fn inspect_stopped(config: &Config) -> Result<Adoption, AdoptRefused> {
    let adoption = super::inspect_adoption(config, nix::unistd::geteuid().as_raw())?;
    if adoption.postmaster.is_none() {
        return Ok(adoption);
    }
    let problem = "a server runs in it again: stop it, and see that nobody starts it, then repeat".to_owned();
    Err(AdoptRefused { pgdata: adoption.pgdata, problems: vec![problem] })
}

/// Makes authority, certificates and database.
pub(super) async fn prepare(
    config: &Config,
    programs: &Programs,
    layout: &Layout,
    adopt: bool,
) -> anyhow::Result<Identity> {
    if config.is_witness {
        anyhow::bail!("the first node of a cluster holds the database and cannot be a witness. Nothing was begun");
    }
    let adoption = if adopt {
        Some(inspect_stopped(config)?)
    } else {
        refuse_foreign(layout)?;
        None
    };
    let cluster_id = hex(&random::<8>()?);
    let node = NodeIdentity { node: FIRST, name: config.node_name.clone(), cluster_id: cluster_id.clone() };
    let keys = NodeKeys::load_or_generate(&config.data_dir).context("make this node's keys")?;
    let (trust, authority) = NodeTrust::found_cluster(keys, node, certificate_hosts(config), wall_now())
        .context("make the cluster's certificate authority")?;
    trust.save(&config.data_dir).context("keep this node's certificates")?;
    let sealed = authority.to_trust(&trust.cluster_secret).context("seal the authority's key")?;
    let bytes = serde_json::to_vec(&sealed).context("encode the authority")?;
    write_durably(&founding_trust(&config.data_dir), &bytes, 0o600).context("keep the authority")?;
    if let Some(adoption) = adoption {
        tracing::info!(folder = %layout.pgdata.display(), version = adoption.major, "adopting the database");
        adoption.take_over(layout).context("take the database over")?;
    } else if !layout.pgdata.join("PG_VERSION").exists() {
        tracing::info!(folder = %layout.pgdata.display(), version = programs.major, "making a fresh PostgreSQL database");
        let settings = &config.postgres.settings;
        initdb(programs, layout, settings, INITDB_LIMIT).await.context("make a fresh PostgreSQL database")?;
    }
    Node::adopt_fresh_database(&config.data_dir).context("keep this node's durable facts")?;
    let identity = Identity {
        node_id: FIRST,
        name: config.node_name.clone(),
        cluster_id,
        cluster_generation: 1,
        peers: Vec::new(),
    };
    identity.save(&config.data_dir)?;
    Ok(identity)
}

/// Writes what a cluster begins with into the store.
pub(super) async fn found(
    config: &Config,
    identity: &Identity,
    trust: &NodeTrust,
    consensus: &Consensus,
    changes: &BTreeMap<String, String>,
    timeline: Timeline,
) -> anyhow::Result<()> {
    if !consensus.is_initialized().await? {
        consensus.initialize_single().await.context("begin the Raft group")?;
    }
    let mut leadership = consensus.leadership();
    let leads = leadership.wait_for(|leadership| leadership.is_leader);
    tokio::time::timeout(LEAD_LIMIT, leads).await.context("the first node does not lead its own group in time")??;

    let state = || std::sync::Arc::clone(&consensus.state().borrow().state);
    if state().identity.is_none() {
        let cluster = ClusterIdentity {
            id: identity.cluster_id.clone(),
            name: identity.cluster_id.clone(),
            generation: ClusterGeneration(identity.cluster_generation),
            system_identifier: None,
        };
        propose(consensus, Command::SetIdentity { expected: 0, identity: cluster }, None).await?;
    }
    if state().members.is_empty() {
        let member = NewMember {
            name: config.node_name.clone(),
            kind: MemberKind::Data,
            peer_addresses: config.peer.advertise.iter().map(ToString::to_string).collect(),
            api_address: config.api.advertise.first().map(ToString::to_string).unwrap_or_default(),
            postgres_host: config.postgres.advertise.host.to_string(),
            postgres_port: config.postgres.advertise.port,
            pulse_key: trust.keys.pulse_public(),
            priority: FIRST_PRIORITY,
            nofailover: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        propose(consensus, Command::AddMember { member, token: None }, None).await?;
    }
    let founding = founding_trust(&config.data_dir);
    if state().trust.is_none() {
        let bytes = std::fs::read(&founding).context("read the authority made at the start")?;
        let sealed: Trust = serde_json::from_slice(&bytes).context("decode the authority made at the start")?;
        propose(consensus, Command::SetTrust { expected: 0, trust: sealed }, None).await?;
    }
    let wished = options::apply(&Options::default(), changes).map_err(|error| anyhow::anyhow!(error.to_string()))?;
    if *state().options.value != wished && state().options.index == 0 {
        propose(consensus, Command::SetOptions { expected: None, options: wished }, None).await?;
    }
    if state().assignment.is_none() {
        let event = first_event(&state(), config);
        propose(consensus, Command::SetAssignment { expected: 0, assignment: first_assignment(timeline) }, Some(event))
            .await?;
    }
    remove_durably(&founding).context("remove the authority's copy, which the store holds now")?;
    Ok(())
}

/// Returns the newest timeline of the database as it lies there: 1 of a fresh one.
pub(super) async fn data_timeline(programs: &Programs, layout: &Layout) -> anyhow::Result<Timeline> {
    let control = ControlData::read(programs, layout).await.context("read the database's control file")?;
    let histories = history::read_all(&layout.wal_dir()).context("read the database's timelines")?;
    Ok(control.timeline.max(history::newest(&histories).timeline))
}

/// The only node, which waits for nobody; a database on `timeline` is promoted like any other.
fn first_assignment(timeline: Timeline) -> Assignment {
    let generation = Generation(1);
    Assignment {
        generation,
        node: FIRST,
        incarnation: DataIncarnation(1),
        promoted: generation,
        timeline: Timeline(timeline.0 + 1),
        start: WalPosition { timeline, lsn: Lsn(0) },
        why: AssignmentReason::Bootstrap,
        voter_sets: vec![[FIRST].into()],
        commit_sets: vec![CommitSet::none()],
        opened: false,
        since_opened: Vec::new(),
    }
}

fn first_event(state: &State, config: &Config) -> Event {
    let id = state.identity.as_ref().map(|identity| identity.value.id.clone()).unwrap_or_default();
    let why = WhyRecord {
        facts: vec![format!("an operator started cluster {id} on {}", config.node_name)],
        rule: "L23".to_owned(),
        step: format!("assigns {} under generation 1", config.node_name),
    };
    let at_ms = u64::try_from(wall_now().as_millis()).unwrap_or(u64::MAX);
    Event { at_ms, by: FIRST, generation: Generation(1), kind: EventKind::Assigned.as_str().to_owned(), why }
}

async fn propose(consensus: &Consensus, command: Command, event: Option<Event>) -> anyhow::Result<()> {
    let at_ms = u64::try_from(wall_now().as_millis()).unwrap_or(u64::MAX);
    let name = command.name();
    let mut proposal = Proposal::new(request_id(), at_ms, command);
    proposal.events.extend(event);
    match consensus.propose(proposal, WRITE_LIMIT).await.with_context(|| format!("write {name} to the store"))? {
        Reply::Applied { .. } | Reply::MemberAdded { .. } | Reply::Nothing => Ok(()),
        Reply::Conflict { current } => {
            anyhow::bail!("the store was changed by somebody else at index {current} ({name})")
        }
        Reply::Refused { reason } => Err(reason).with_context(|| format!("write {name} to the store")),
    }
}
