//! Changes of the group: who listens, who votes, who leads. One at a time, on the leader.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, EmptyNode, Instant, RaftMetrics};
use tokio::time::timeout;

use super::consensus::{Consensus, ProposeError};
use super::types::TypeConfig;
use crate::types::NodeId;

/// A node that lacks no more entries than these counts as caught up.
pub const CAUGHT_UP_ENTRIES: u64 = 100;

impl Consensus {
    /// Lets node `id` listen. Returns when that is committed; [`is_caught_up`](Self::is_caught_up) tells when it has the log.
    pub async fn add_learner(&self, id: NodeId, deadline: Duration) -> Result<(), ProposeError> {
        self.change(deadline, async {
            self.settled().await?;
            let added = self.inner.raft.add_learner(id.0, EmptyNode {}, false).await;
            added.map(drop).map_err(|error| self.write_error(error))
        })
        .await
    }

    /// Makes exactly `voters` vote; those who no longer do go on listening. Finishes a change that another leader left half done.
    ///
    /// Refused unless each new voter listens and has caught up: a voter without the log costs the majority.
    pub async fn change_voters(&self, voters: &BTreeSet<NodeId>, deadline: Duration) -> Result<(), ProposeError> {
        self.change(deadline, async {
            self.finish_change().await?;
            let present = self.voters();
            if voters.is_empty() {
                return Err(ProposeError::NotDone("a group needs a voter".to_owned()));
            }
            if let Some(late) = voters.difference(&present).find(|id| !self.is_caught_up(**id)) {
                let told = format!("node {late} does not have the log yet: add it as a learner and wait");
                return Err(ProposeError::NotDone(told));
            }
            if *voters != present {
                let ids = ChangeMembers::ReplaceAllVoters(voters.iter().map(|id| id.0).collect());
                let changed = self.inner.raft.change_membership(ids, true).await;
                changed.map_err(|error| self.write_error(error))?;
            }
            self.finish_change().await
        })
        .await
    }

    /// Removes node `id` from the group; a voter stops voting first. One that is not there is no error.
    pub async fn remove(&self, id: NodeId, deadline: Duration) -> Result<(), ProposeError> {
        if id == self.inner.me {
            let told = format!("node {id} leads and cannot remove itself: transfer the leadership first");
            return Err(ProposeError::NotDone(told));
        }
        let mut voters = self.voters();
        if voters.remove(&id) {
            self.change_voters(&voters, deadline).await?;
        }
        self.change(deadline, async {
            self.finish_change().await?;
            let known = {
                let metrics = self.inner.raft.metrics().borrow_watched().clone();
                metrics.membership_config.membership().get_node(&id.0).is_some()
            };
            if known {
                let removed = self.inner.raft.change_membership(ChangeMembers::RemoveNodes([id.0].into()), false).await;
                removed.map_err(|error| self.write_error(error))?;
            }
            Ok(())
        })
        .await
    }

    /// Hands the leadership to voter `to` and returns when it leads. Refused unless it votes, is heard and has caught up.
    ///
    /// Until somebody leads, proposals fail with `NotLeader`. After `Unknown` whoever wins the election leads, possibly this node.
    pub async fn transfer_leader(&self, to: NodeId, deadline: Duration) -> Result<(), ProposeError> {
        if to == self.inner.me {
            return Ok(());
        }
        self.change(deadline, async {
            let mut metrics = self.inner.raft.metrics();
            let seen = metrics.borrow_watched().clone();
            if seen.current_leader != Some(self.inner.me.0) {
                return Err(ProposeError::NotLeader { leader: seen.current_leader.map(NodeId) });
            }
            if !self.voters().contains(&to) || !self.is_caught_up(to) || !self.is_alive(to) {
                let told = format!("node {to} does not vote, is silent, or does not have the log");
                return Err(ProposeError::NotDone(told));
            }
            let told = |error: &dyn std::fmt::Display| ProposeError::Unknown(error.to_string());
            self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|error| told(&error))?;
            loop {
                let seen = metrics.borrow_watched().clone();
                match seen.current_leader {
                    Some(leader) if leader == to.0 => return Ok(()),
                    Some(leader) if leader != self.inner.me.0 => {
                        return Err(ProposeError::NotDone(format!("node {leader} was elected instead")));
                    }
                    _ => metrics.changed().await.map_err(|error| told(&error))?,
                }
            }
        })
        .await
    }

    /// Returns whether this node leads and has heard node `id` within an election time.
    fn is_alive(&self, id: NodeId) -> bool {
        let seen = self.inner.raft.metrics().borrow_watched().clone();
        let heard = seen.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&id.0).copied().flatten());
        heard.is_some_and(|sent| sent.elapsed() <= self.inner.timing.election_max)
    }

    /// Returns whether this node leads and knows that the log of node `id` holds what is committed, but for the newest
    /// [`CAUGHT_UP_ENTRIES`]: under load the slower of two followers is always a few entries behind.
    pub fn is_caught_up(&self, id: NodeId) -> bool {
        let seen = self.inner.raft.metrics().borrow_watched().clone();
        if id == self.inner.me {
            return true;
        }
        let matched = seen.replication.as_ref().and_then(|replication| replication.get(&id.0).copied().flatten());
        let committed = seen.local_committed.map_or(0, |id| id.index);
        matched.is_some_and(|matched| matched.index + CAUGHT_UP_ENTRIES >= committed)
    }

    /// Returns all that vote, in the old set or the new one.
    fn voters(&self) -> BTreeSet<NodeId> {
        let seen = self.inner.raft.metrics().borrow_watched().clone();
        seen.membership_config.membership().voter_ids().map(NodeId).collect()
    }

    /// Waits until this leader has committed an entry of its term and the newest change of members; before, openraft refuses
    /// another one.
    async fn settled(&self) -> Result<RaftMetrics<TypeConfig>, ProposeError> {
        let mut metrics = self.inner.raft.metrics();
        loop {
            let seen = metrics.borrow_watched().clone();
            if seen.current_leader != Some(self.inner.me.0) {
                return Err(ProposeError::NotLeader { leader: seen.current_leader.map(NodeId) });
            }
            let leads = seen.local_committed.is_some_and(|id| id.committed_leader_id().term == seen.current_term);
            if leads && seen.membership_config == seen.committed_membership_config {
                return Ok(seen);
            }
            metrics.changed().await.map_err(|error| ProposeError::Unknown(error.to_string()))?;
        }
    }

    /// Takes the group out of a joint configuration.
    async fn finish_change(&self) -> Result<(), ProposeError> {
        let seen = self.settled().await?;
        if seen.membership_config.membership().get_joint_config().len() > 1 {
            let nothing = ChangeMembers::AddVoterIds(BTreeSet::new());
            let changed = self.inner.raft.change_membership(nothing, true).await;
            changed.map_err(|error| self.write_error(error))?;
        }
        Ok(())
    }

    /// Does `work` when no other change is under way, and gives up waiting after `deadline`.
    async fn change(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<(), ProposeError>>,
    ) -> Result<(), ProposeError> {
        let alone = async {
            let _changing = self.inner.changing.lock().await;
            work.await
        };
        match timeout(deadline, alone).await {
            Ok(result) => result,
            Err(_) => {
                Err(ProposeError::Unknown(format!("the change of members was not confirmed within {deadline:?}")))
            }
        }
    }
}
