//! openraft's own suite for stores.

use hasup::raft::log_store::LogStore;
use hasup::raft::state_machine::StateMachine;
use hasup::raft::types::TypeConfig;
use hasup::types::NodeId;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let log = LogStore::open(&folder.path().join("log"), NodeId(1)).unwrap();
        let machine = StateMachine::open(&folder.path().join("snapshots")).unwrap();
        Ok((folder, log, machine))
    }
}

#[test]
fn the_stores_keep_every_promise_that_openraft_asks_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
