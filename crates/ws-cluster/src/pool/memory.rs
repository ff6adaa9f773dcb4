//! The pool in this process's memory: [`Tables`] of the core, with a clock and a lock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Announcement, Lease, Pool, PoolError, PoolView, stride};
use ws_cluster_core::{NodeId, Tables, Term};

/// A pool in memory, for tests and for servers that never become more than one process. Clones share one store;
/// it is empty at first and gone with the last clone.
///
/// It never fails. Its clock is Tokio's, so that tests may pause it.
#[derive(Clone, Debug)]
pub struct MemoryPool {
    // Held for one statement at a time, never across an await.
    clusters: Arc<Mutex<HashMap<String, Tables>>>,
    start: Instant,
}

impl Default for MemoryPool {
    fn default() -> Self {
        Self { clusters: Arc::default(), start: Instant::now() }
    }
}

impl MemoryPool {
    /// Loses all rows of all clusters, as a database does whose tables are dropped. For tests.
    pub fn clear(&self) {
        self.clusters.lock().values_mut().for_each(Tables::clear);
    }

    /// Overwrites the lease of `cluster`, as restoring a backup does. For tests.
    pub fn set_lease(&self, cluster: &str, lease: Option<Lease>) {
        self.with(cluster, |tables, _| tables.set_lease(lease));
    }

    fn with<T>(&self, cluster: &str, statement: impl FnOnce(&mut Tables, Duration) -> T) -> T {
        let mut clusters = self.clusters.lock();
        // Taken under the lock, so that no statement sees an earlier time than the one before it.
        let now = self.start.elapsed();
        statement(clusters.entry(cluster.to_owned()).or_default(), now)
    }
}

#[async_trait]
impl Pool for MemoryPool {
    fn is_shared(&self) -> bool {
        false
    }

    async fn prepare(&self) -> Result<(), PoolError> {
        Ok(())
    }

    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError> {
        Ok(self.with(cluster, |tables, now| tables.read(now)))
    }

    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError> {
        self.with(cluster, |tables, now| tables.announce(now, announcement));
        Ok(())
    }

    async fn renew(&self, cluster: &str, term: Term, owner: NodeId, _: Duration) -> Result<bool, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.renew(term, owner, stride())))
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        owner: NodeId,
        _: Duration,
    ) -> Result<Option<Term>, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.take_over(seen, max_seen, owner, stride())))
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        owner: NodeId,
        successor: Option<NodeId>,
        _: Duration,
    ) -> Result<bool, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.hand_over(term, owner, successor, stride())))
    }

    async fn restore(&self, cluster: &str, term: Term, owner: Option<NodeId>) -> Result<(), PoolError> {
        self.with(cluster, |tables, _| tables.restore(term, owner, stride()));
        Ok(())
    }

    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.with(cluster, |tables, _| tables.clear_joined(node));
        Ok(())
    }

    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.with(cluster, |tables, _| tables.remove(node));
        Ok(())
    }
}
