//! The pool's contract, one test for each behaviour, on every implementation, and tests of what can happen to only one
//! store.

mod accounts;
mod mariadb;
mod sqlite;
mod store;

use std::time::Duration;

use ws_cluster::{
    pool::{MemoryPool, Pool},
    pool_contract,
    testing::pool::{CLUSTER, LEASE, announcement, elect, lease, node, row, view},
};

pool_contract!(on_memory: crate::store::Memory);
pool_contract!(on_sqlite: crate::store::Sqlite);
pool_contract!(on_mariadb: crate::store::MySql);

#[tokio::test(start_paused = true)]
async fn the_time_of_a_memory_pool_is_tokios() {
    let pool = MemoryPool::default();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(pool.read(CLUSTER).await.unwrap().nodes[0].age, Duration::from_secs(7));
}
