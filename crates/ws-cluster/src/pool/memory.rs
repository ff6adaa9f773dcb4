//! The pool in this process's memory: [`Tables`] of the core, with a clock and a lock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Announcement, Lease, Pool, PoolError, PoolView, stride};
use ws_cluster_core::{NodeId, Tables, Term};

/// A pool in memory, for tests and for servers that always are a single process. Clones share one store, which is empty
/// at first and dropped with the last clone.
///
/// It never fails. It uses Tokio's clock, so that tests may pause it.
#[derive(Clone, Debug)]
pub struct MemoryPool {
    // Locked for one statement at a time, never across an await.
    clusters: Arc<Mutex<HashMap<String, Tables>>>,
    start: Instant,
}

impl Default for MemoryPool {
    fn default() -> Self {
        Self { clusters: Arc::default(), start: Instant::now() }
    }
}

impl MemoryPool {
    /// Removes all rows of all clusters, like a database whose tables are dropped. For tests.
    pub fn clear(&self) {
        self.clusters.lock().values_mut().for_each(Tables::clear);
    }

    /// Overwrites the lease of `cluster`, like a backup that is restored. For tests.
    pub fn set_lease(&self, cluster: &str, lease: Option<Lease>) {
        self.with(cluster, |tables, _| tables.set_lease(lease));
    }

    fn with<T>(&self, cluster: &str, statement: impl FnOnce(&mut Tables, Duration) -> T) -> T {
        let mut clusters = self.clusters.lock();
        // Read under the lock, so that no statement sees an earlier time than the one before it.
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

    async fn renew(&self, cluster: &str, term: Term, master: NodeId, _: Duration) -> Result<bool, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.renew(term, master, stride())))
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        master: NodeId,
        _: Duration,
    ) -> Result<Option<Term>, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.take_over(seen, max_seen, master, stride())))
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        master: NodeId,
        successor: Option<NodeId>,
        _: Duration,
    ) -> Result<bool, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.hand_over(term, master, successor, stride())))
    }

    async fn restore(&self, cluster: &str, term: Term, master: Option<NodeId>) -> Result<(), PoolError> {
        self.with(cluster, |tables, _| tables.restore(term, master, stride()));
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
