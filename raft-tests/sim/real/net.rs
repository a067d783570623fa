//! The wires between the nodes, each in one direction: cut, slow or lossy as the schedule says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hasup::node::tasks::Tasks;
use hasup::raft::{Consensus, RaftRpc, RaftTransport, TransportError};
use hasup::types::NodeId;

use crate::rng::Rng;

/// Which life of which node.
pub type LifeOf = (NodeId, u64);

#[derive(Default)]
struct State {
    running: BTreeMap<NodeId, (u64, Consensus)>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Extra delay of a wire in microseconds, at most.
    slow: BTreeMap<(NodeId, NodeId), u64>,
    /// Of a thousand messages, so many are lost.
    loss: u64,
}

/// All wires.
#[derive(Clone)]
pub struct Net {
    state: Arc<Mutex<State>>,
    rng: Arc<Mutex<Rng>>,
    tasks: Tasks,
}

impl Net {
    /// Returns wires without a fault; what travels on them runs in `tasks`.
    pub fn new(rng: Rng, tasks: Tasks) -> Self {
        Self { state: Arc::default(), rng: Arc::new(Mutex::new(rng)), tasks }
    }

    /// Plugs a new life in.
    pub fn plug(&self, (node, life): LifeOf, consensus: Consensus) {
        self.state.lock().unwrap().running.insert(node, (life, consensus));
    }

    /// Takes a life out: what it asked or was asked is answered by nobody.
    pub fn unplug(&self, node: NodeId) -> Option<Consensus> {
        self.state.lock().unwrap().running.remove(&node).map(|(_, consensus)| consensus)
    }

    /// Returns Raft on `node`, if it runs.
    pub fn node(&self, node: NodeId) -> Option<Consensus> {
        self.state.lock().unwrap().running.get(&node).map(|(_, consensus)| consensus.clone())
    }

    /// Returns the nodes that run.
    pub fn running(&self) -> Vec<NodeId> {
        self.state.lock().unwrap().running.keys().copied().collect()
    }

    /// Cuts the wire `from` → `to`.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state.lock().unwrap().cut.insert((from, to));
    }

    /// Delays the wire `from` → `to` by up to `micros`.
    pub fn slow(&self, from: NodeId, to: NodeId, micros: u64) {
        self.state.lock().unwrap().slow.insert((from, to), micros);
    }

    /// Loses so many of a thousand messages.
    pub fn lose(&self, per_mille: u64) {
        self.state.lock().unwrap().loss = per_mille;
    }

    /// Mends all wires.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.cut.clear();
        state.slow.clear();
        state.loss = 0;
    }

    fn is_running(&self, (node, life): LifeOf) -> bool {
        self.state.lock().unwrap().running.get(&node).is_some_and(|(running, _)| *running == life)
    }

    /// Carries a message; returns whether it arrives.
    async fn carry(&self, from: NodeId, to: NodeId) -> bool {
        let (delay, lost) = {
            let (state, mut rng) = (self.state.lock().unwrap(), self.rng.lock().unwrap());
            let slow = state.slow.get(&(from, to)).copied().unwrap_or(0);
            (rng.between(100, 1500) + rng.between(0, slow), rng.chance(state.loss))
        };
        let is_cut = || self.state.lock().unwrap().cut.contains(&(from, to));
        if is_cut() || lost {
            return false;
        }
        tokio::time::sleep(Duration::from_micros(delay)).await;
        !is_cut()
    }
}

/// One life's end of the wires.
pub struct Plug {
    /// Whose.
    pub me: LifeOf,
    /// The wires.
    pub net: Net,
}

impl RaftTransport for Plug {
    fn call(&self, target: NodeId, rpc: RaftRpc, _: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            let (told, answer) = tokio::sync::oneshot::channel();
            let (net, me) = (self.net.clone(), self.me);
            // Goes on when the caller no longer waits: what is late arrives all the same.
            self.net.tasks.spawn("call", async move {
                if !net.is_running(me) || !net.carry(me.0, target).await {
                    // Until the caller's deadline.
                    return std::future::pending().await;
                }
                let Some((life, node)) = net.state.lock().unwrap().running.get(&target).cloned() else {
                    let gone = TransportError::Unreachable { target, why: "not running".to_owned() };
                    drop(told.send(Err(gone)));
                    return;
                };
                let answer = node.serve(me.0, &rpc.bytes).await;
                if net.is_running((target, life)) && net.carry(target, me.0).await && net.is_running(me) {
                    drop(told.send(Ok(answer)));
                } else {
                    std::future::pending().await
                }
            });
            match answer.await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::NoAnswer { target, why: "the run is over".to_owned() }),
            }
        })
    }
}
