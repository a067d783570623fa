//! What this node answers on its peer port: Raft, writes for the leader, history for rejoining nodes, certificates, joins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Shared;
use super::moved::NotMoved;
use super::options;
use super::propose::WriteError;
use crate::codec;
use crate::ha::record::{EventKind, Member, MemberKind, Options, Trust};
use crate::kv::{Command, NewMember, Proposal, Refusal, Reply, State};
use crate::peer::join::{JoinGrant, JoinRefusal, JoinRequest, OptionDiffers, dial_back};
use crate::peer::{Addresses, PeerError, PeerRefusal, PeerRequest, PeerResponse, PeerService};
use crate::raft::{Lane, ProposeError, RaftRpc, RaftTransport, TransportError};
use crate::sys::clock::wall_now;
use crate::tls::config::MemberProtocol;
use crate::tls::{CertificateAuthority, LeafRequest, NodeIdentity};
use crate::types::{NodeId, Timeline};

/// How long an address of a joiner has to answer when it is dialled back.
const DIAL_BACK_LIMIT: Duration = Duration::from_secs(5);
/// How long the change of the members may take.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// How long a majority may take to confirm what a peer asks this node for as the leader.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A copy needs this much more than the database has now, to catch up while it is made.
const DISK_HEADROOM_BYTES: u64 = 256 << 20;

/// Raft's way to the peers.
pub(super) struct PeerTransport {
    pub(super) peers: crate::peer::PeerClient,
}

impl RaftTransport for PeerTransport {
    fn call(&self, target: NodeId, rpc: RaftRpc, deadline: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let protocol = match rpc.lane {
            Lane::Urgent | Lane::Entries => MemberProtocol::Raft,
            Lane::Bulk => MemberProtocol::Bulk,
        };
        async move {
            match self.peers.call(target, protocol, PeerRequest::Raft(rpc.bytes), deadline).await {
                Ok(PeerResponse::Raft(bytes)) => Ok(bytes),
                Ok(other) => Err(TransportError::NoAnswer { target, why: other.why_not() }),
                Err(error @ PeerError::NotSent { .. }) => {
                    Err(TransportError::Unreachable { target, why: error.to_string() })
                }
                Err(error @ PeerError::Unknown { .. }) => {
                    Err(TransportError::NoAnswer { target, why: error.to_string() })
                }
            }
        }
        .boxed()
    }
}

/// Answers the peers of a node.
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
}

impl PeerService for Service {
    fn handle(&self, from: NodeId, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        async move { self.answer(from, request).await.unwrap_or_else(PeerResponse::Refused) }.boxed()
    }

    fn member(&self, name: &str) -> Option<NodeId> {
        let state = self.shared.state();
        let known = state.member_named(name).map(|member| member.id);
        if state.members.contains_key(&self.shared.me) {
            return known;
        }
        // A node that has just joined replays the store from its beginning, when those who send it were no members yet: until it
        // has come to its own admission, whom it was told of at the join may speak.
        self.shared.first_peers.get(name).copied().or(known)
    }

    fn join(&self, request: JoinRequest, _remote: SocketAddr) -> BoxFuture<'_, Result<JoinGrant, JoinRefusal>> {
        self.admit(request).boxed()
    }
}

fn unable(because: impl ToString) -> PeerRefusal {
    PeerRefusal::Unable { because: because.to_string() }
}

impl Service {
    async fn answer(&self, from: NodeId, request: PeerRequest) -> Result<PeerResponse, PeerRefusal> {
        let shared = &self.shared;
        match request {
            PeerRequest::Ping => Ok(PeerResponse::Pong {
                node: shared.me,
                name: shared.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            PeerRequest::Raft(bytes) => Ok(PeerResponse::Raft(shared.consensus.serve(from, &bytes).await)),
            PeerRequest::Propose(bytes) => {
                let proposal: Proposal = codec::decode(&bytes).map_err(unable)?;
                match shared.consensus.propose(proposal, ANSWER_LIMIT).await {
                    Ok(reply) => Ok(PeerResponse::Propose(codec::encode(&reply))),
                    Err(ProposeError::NotLeader { leader }) => Err(PeerRefusal::NotLeader { leader }),
                    Err(ProposeError::NotDone(_)) => Err(PeerRefusal::NotLeader { leader: None }),
                    // an empty answer does not decode: the asker learns that its fate is unknown
                    Err(ProposeError::Unknown(_)) => Ok(PeerResponse::Propose(Vec::new())),
                }
            }
            PeerRequest::ReadIndex => {
                let index = shared.consensus.read_index(ANSWER_LIMIT).await.map_err(unable)?;
                Ok(PeerResponse::ReadIndex { index })
            }
            PeerRequest::TimelineHistory { timeline } => self.history(timeline),
            PeerRequest::Checkpoint { generation } => {
                let current =
                    shared.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
                if generation != current {
                    return Err(PeerRefusal::StaleGeneration { current });
                }
                shared.postgres.checkpoint().await.map_err(unable)?;
                Ok(PeerResponse::Checkpointed)
            }
            PeerRequest::Renew { csr } => {
                let state = shared.state();
                let member = state.members.get(&from).ok_or_else(|| unable("the asking node is no member"))?;
                let trust = state.trust.as_ref().ok_or_else(|| unable("the cluster has no authority yet"))?;
                let certificate = shared.issue(&trust.value, member, csr, Vec::new()).map_err(unable)?;
                let ca_certificates = trust.value.ca_certificates.clone();
                Ok(PeerResponse::Renewed { certificate, ca_certificates })
            }
            PeerRequest::Moved(addresses) => {
                shared.take_addresses(from, addresses).await.map_err(NotMoved::into_refusal)?;
                Ok(PeerResponse::Moved)
            }
            PeerRequest::DaemonStart => Ok(PeerResponse::DaemonStart(shared.start)),
            PeerRequest::Admin(_) => Err(PeerRefusal::Unsupported),
        }
    }

    /// The history file of the timeline that PostgreSQL is on, or of an earlier one.
    fn history(&self, timeline: Timeline) -> Result<PeerResponse, PeerRefusal> {
        let file = self.shared.postgres.history_file(timeline).map_err(unable)?;
        Ok(PeerResponse::TimelineHistory { file })
    }

    async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, JoinRefusal> {
        let shared = &self.shared;
        let state = shared.state();
        let now = wall_now();
        let token = request.token.check(state.tokens.values().map(AsRef::as_ref), now)?.clone();
        let not_now = |because: &str| JoinRefusal::NotNow { because: because.to_owned() };
        let trust = state.trust.clone().ok_or_else(|| not_now("it has no certificate authority yet"))?;
        let identity = state.identity.clone().ok_or_else(|| not_now("it is being started"))?;
        self.check(&request, &state).await?;

        let unreachable = dial_back(&request.peer_addresses, &request.probe_key, DIAL_BACK_LIMIT).await;
        if !unreachable.is_empty() {
            return Err(JoinRefusal::Unreachable { from: shared.name.clone(), addresses: unreachable });
        }
        // the same node, asking again because the answer to its first request was lost
        let known = state.member_named(request.name.as_str()).filter(|member| member.pulse_key == request.pulse_key);
        let id = match known {
            Some(member) => member.id,
            None => self.add(&request, &token.id).await?,
        };
        let member = new_member(&request, 0).with_id(id);
        let certificate = shared
            .issue(&trust.value, &member, request.csr.clone(), request.certificate_hosts())
            .map_err(|error| JoinRefusal::BadRequest { because: error.to_string() })?;
        let mut members: Vec<Member> = shared.state().members.values().map(|member| (**member).clone()).collect();
        members.retain(|other| other.id != id);
        members.push(member);
        tracing::info!(node = %id, name = %request.name, "a node was admitted");
        Ok(JoinGrant {
            node_id: id,
            cluster_id: identity.value.id.clone(),
            cluster_name: identity.value.name.clone(),
            certificate,
            ca_certificates: trust.value.ca_certificates.clone(),
            cluster_secret: shared.cluster_secret.clone(),
            members: codec::encode(&members),
        })
    }

    /// All that can be refused before anything is touched.
    async fn check(&self, request: &JoinRequest, state: &State) -> Result<(), JoinRefusal> {
        let shared = &self.shared;
        let cluster = env!("CARGO_PKG_VERSION");
        if !is_compatible(&request.version, cluster) {
            return Err(JoinRefusal::WrongVersion { joiner: request.version.clone(), cluster: cluster.to_owned() });
        }
        let is_same_node = |member: &Member| member.name == request.name && member.pulse_key == request.pulse_key;
        for member in state.members.values().filter(|member| !is_same_node(member)) {
            if member.name == request.name {
                return Err(JoinRefusal::NameTaken { name: request.name.clone() });
            }
            let taken = request.peer_addresses.iter().find(|address| member.peer_addresses.contains(address));
            if let Some(address) = taken {
                return Err(JoinRefusal::AddressTaken { address: address.clone(), member: member.name.clone() });
            }
        }
        // one that was admitted already asks for nothing
        let is_known = state.members.values().any(|member| is_same_node(member));
        let differing = differing_options(&state.options, &request.options)?;
        if !differing.is_empty() && !is_known {
            return Err(JoinRefusal::OptionsDiffer { differing });
        }
        if request.kind == MemberKind::Data {
            if let Some(cluster) = shared.postgres.major_version()
                && request.postgres_major != Some(cluster)
            {
                return Err(JoinRefusal::WrongPostgres { joiner: request.postgres_major, cluster });
            }
            let needed_bytes = shared.postgres.database_bytes().await.unwrap_or(0) + DISK_HEADROOM_BYTES;
            if request.free_disk_bytes < needed_bytes {
                return Err(JoinRefusal::TooLittleDisk { free_bytes: request.free_disk_bytes, needed_bytes });
            }
        }
        Ok(())
    }

    async fn add(&self, request: &JoinRequest, token: &str) -> Result<NodeId, JoinRefusal> {
        let shared = &self.shared;
        let why = crate::ha::record::WhyRecord {
            facts: vec![format!(
                "{} asked with join token {token} from {}",
                request.name,
                request.peer_addresses.join(", ")
            )],
            rule: "a join token".to_owned(),
            step: format!("admits {} as a member", request.name),
        };
        let generation = shared.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        let event = shared.event(EventKind::MemberJoined, generation, why);
        // a newcomer comes after all others
        let lowest = shared.state().members.values().map(|member| member.priority).min().unwrap_or(FIRST_PRIORITY + 1);
        let member = new_member(request, lowest.saturating_sub(1));
        let command = Command::AddMember { member, token: Some(token.to_owned()) };
        match shared.write(command, Some(event), WRITE_LIMIT).await {
            Ok(Reply::MemberAdded { id, .. }) => Ok(id),
            Ok(_) => Err(JoinRefusal::NotNow { because: "its store gave an unexpected answer".to_owned() }),
            Err(WriteError::Refused(Refusal::NameTaken { name, .. })) => Err(JoinRefusal::NameTaken { name }),
            Err(WriteError::Refused(Refusal::AddressTaken { address, by })) => {
                let member =
                    shared.state().members.get(&by).map_or_else(|| shared.name.clone(), |member| member.name.clone());
                Err(JoinRefusal::AddressTaken { address, member })
            }
            Err(WriteError::Refused(Refusal::TokenUnknown { .. } | Refusal::TokenExpired { .. })) => {
                Err(JoinRefusal::WrongToken)
            }
            Err(error) => Err(JoinRefusal::NotNow { because: error.to_string() }),
        }
    }
}

/// The priority of a cluster's first node.
pub(crate) const FIRST_PRIORITY: u32 = 100;

fn new_member(request: &JoinRequest, priority: u32) -> NewMember {
    NewMember {
        name: request.name.clone(),
        kind: request.kind,
        peer_addresses: request.peer_addresses.clone(),
        api_address: request.api_address.clone(),
        postgres_host: request.postgres_host.clone(),
        postgres_port: request.postgres_port,
        pulse_key: request.pulse_key,
        priority,
        nofailover: false,
        version: request.version.clone(),
    }
}

/// Returns which of the options that a joiner's operator said are not the cluster's.
fn differing_options(present: &Options, asked: &BTreeMap<String, String>) -> Result<Vec<OptionDiffers>, JoinRefusal> {
    let asked =
        options::apply(present, asked).map_err(|error| JoinRefusal::BadRequest { because: error.to_string() })?;
    let asked = options::list(&asked);
    let differ = options::list(present).into_iter().filter_map(|(name, present)| {
        let asked = asked.get(&name).filter(|asked| **asked != present)?.clone();
        Some(OptionDiffers { name, asked, present })
    });
    Ok(differ.collect())
}

/// Versions work together when they share major and minor number; later releases will widen this to the one before.
fn is_compatible(joiner: &str, cluster: &str) -> bool {
    let release = |version: &str| version.splitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
    release(joiner) == release(cluster)
}

impl Shared {
    /// Issues the certificate of `member`, with the extra hosts that it asked for.
    pub(super) fn issue(
        &self,
        trust: &Trust,
        member: &Member,
        csr: String,
        extra: Vec<String>,
    ) -> Result<String, crate::tls::TlsError> {
        let authority = CertificateAuthority::open(trust, &self.cluster_secret)?;
        let mut hosts = Addresses::of(member).certificate_hosts();
        hosts.extend(extra);
        let identity = NodeIdentity { node: member.id, name: member.name.clone(), cluster_id: self.cluster_id.clone() };
        authority.issue(&LeafRequest { identity, csr, hosts }, wall_now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_names_the_clusters_own_options_or_is_told_which_differ() {
        let present = Options::default();
        let differ = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            differing_options(&present, &options::parse(&texts).unwrap()).unwrap()
        };
        assert_eq!(differ(&[]), []);
        assert_eq!(differ(&["durability=two_nodes,check_ttl_multiplier=1.0"]), []);
        let differing = differ(&["durability=one_node"]);
        let told = JoinRefusal::OptionsDiffer { differing }.to_string();
        assert!(told.contains("durability is two_nodes in the cluster, and one_node was asked for"), "{told}");
        assert!(told.contains("`hasup options set durability=one_node`"), "{told}");
    }
}
