//! A further node: asks a member to be taken, and keeps what it is given. Nothing is touched before the grant.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, UdpSocket};

use super::identity::{Identity, KnownPeer};
use super::{existing, layout, ports};
use crate::codec;
use crate::config::{Config, Secret};
use crate::ha::record::{Member, MemberKind};
use crate::peer::join::{JoinRequest, ProbeKey, TokenText, answer_probes, join as ask};
use crate::postgres::Programs;
use crate::postgres::layout::free_bytes;
use crate::tls::NodeKeys;

/// How long the members may take to decide.
const JOIN_LIMIT: Duration = Duration::from_secs(90);

/// Asks `targets` to take this node; its operator takes `options` for the cluster's.
pub(super) async fn join(
    config: &Config,
    programs: &Programs,
    targets: &[String],
    token: &Secret,
    options: &BTreeMap<String, String>,
) -> anyhow::Result<Identity> {
    refuse_unless_empty(config)?;
    let token: TokenText = token.expose().parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let keys = NodeKeys::load_or_generate(&config.data_dir).context("make this node's keys")?;
    let probe_key = ProbeKey::generate().context("prepare to be dialled back")?;
    let request = JoinRequest {
        token: token.proof(),
        name: config.node_name.clone(),
        kind: if config.is_witness { MemberKind::Witness } else { MemberKind::Data },
        csr: keys.csr().context("make a signing request")?,
        pulse_key: keys.pulse_public(),
        peer_addresses: config.peer.advertise.iter().map(ToString::to_string).collect(),
        api_address: config.api.advertise.first().map(ToString::to_string).unwrap_or_default(),
        postgres_host: config.postgres.advertise.host.to_string(),
        postgres_port: config.postgres.advertise.port,
        extra_names: vec![config.host.to_string()],
        version: env!("CARGO_PKG_VERSION").to_owned(),
        postgres_major: (!config.is_witness).then_some(programs.major),
        free_disk_bytes: free_bytes(existing(&config.postgres.data_dir)).context("measure the free disk")?,
        probe_key: probe_key.clone(),
        options: options.clone(),
    };
    let listeners = ports::listen(&config.peer, ports::Purpose::Peer).await?;
    let mut sockets = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().context("see the peer port's address")?;
        let udp = UdpSocket::bind(address).await.with_context(|| format!("listen on UDP {address} for pulses"))?;
        sockets.push((listener, udp));
    }
    let grant = tokio::select! {
        granted = ask(targets, &token, &request, JOIN_LIMIT) => granted.context("join the cluster")?,
        () = answer_all(sockets, probe_key) => anyhow::bail!("the peer port was closed while joining"),
    };
    let members: Vec<Member> = codec::decode(&grant.members).context("read who the members are")?;
    grant.trust(keys).save(&config.data_dir).context("keep this node's certificates")?;
    let known = |member: Member| KnownPeer { id: member.id, name: member.name, peer_addresses: member.peer_addresses };
    let identity = Identity {
        node_id: grant.node_id,
        name: config.node_name.clone(),
        cluster_id: grant.cluster_id.clone(),
        cluster_generation: 1,
        peers: members.into_iter().map(known).collect(),
    };
    identity.save(&config.data_dir)?;
    tracing::info!(node = %identity.node_id, cluster = identity.cluster_id, "joined");
    Ok(identity)
}

async fn answer_all(sockets: Vec<(TcpListener, UdpSocket)>, key: ProbeKey) {
    let answering = sockets.into_iter().map(|(tcp, udp)| answer_probes(tcp, udp, key.clone()));
    futures_util::future::join_all(answering).await;
}

/// A joining node brings nothing: what lies where its database will be might be somebody's only copy.
fn refuse_unless_empty(config: &Config) -> anyhow::Result<()> {
    for folder in [&config.postgres.data_dir, &config.data_dir.join("raft")] {
        if !is_empty(folder)? {
            anyhow::bail!(
                "{} is not empty. Nothing was touched and the node has not joined. Run `hasup destroy` here if nothing in it is \
                 needed, or choose another --data-dir",
                folder.display()
            );
        }
    }
    layout(config).refuse_foreign_holders()?;
    Ok(())
}

fn is_empty(folder: &Path) -> anyhow::Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("look into {}", folder.display())),
    }
}
