//! The pool in this process's memory: the rules of the other pools in their plainest form. [`Tables`] is the pure
//! part, which the simulator of the cluster drives as well; [`MemoryPool`] puts a clock and a lock around it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Announcement, Lease, NodeRow, Pool, PoolError, PoolView};
use crate::cluster::{NodeId, Term};

/// The rows of one cluster, with one method for each statement of [`Pool`]. No lock, no clock: `now` is the time
/// since any fixed moment, the same for all calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    lease: Option<Lease>,
    /// By `ord`, since rows are only ever appended.
    nodes: Vec<Row>,
    last_ord: u64,
    /// How many announcements there were. Survives [`clear`](Self::clear), so that no stamp comes twice.
    stamps: u64,
}

/// A [`NodeRow`] before its age is known.
#[derive(Clone, Debug)]
struct Row {
    ord: u64,
    node: NodeId,
    address: String,
    protocols: (u16, u16),
    joined: Option<Term>,
    stamp: u64,
    seen_at: Duration,
}

impl Tables {
    /// [`Pool::read`].
    pub(crate) fn read(&self, now: Duration) -> PoolView {
        let nodes = self.nodes.iter().map(|row| NodeRow {
            ord: row.ord,
            node: row.node,
            address: row.address.clone(),
            protocols: row.protocols,
            joined: row.joined,
            stamp: row.stamp,
            age: now.saturating_sub(row.seen_at),
        });
        PoolView { lease: self.lease, nodes: nodes.collect() }
    }

    /// [`Pool::announce`].
    pub(crate) fn announce(&mut self, now: Duration, announcement: &Announcement) {
        let Announcement { node, ref address, protocols, joined } = *announcement;
        self.nodes.retain(|row| row.node == node || row.address != *address);
        self.stamps += 1;
        let (address, stamp) = (address.clone(), self.stamps);
        if let Some(row) = self.nodes.iter_mut().find(|row| row.node == node) {
            *row = Row { ord: row.ord, node, address, protocols, joined: joined.or(row.joined), stamp, seen_at: now };
        } else {
            self.last_ord += 1;
            self.nodes.push(Row { ord: self.last_ord, node, address, protocols, joined, stamp, seen_at: now });
        }
    }

    /// [`Pool::renew`].
    pub(crate) fn renew(&mut self, term: Term, owner: NodeId) -> bool {
        let Some(lease) = self.owned(term, owner) else { return false };
        lease.beat += 1;
        true
    }

    /// [`Pool::take_over`].
    pub(crate) fn take_over(&mut self, seen: &Lease, max_seen: Term, owner: NodeId) -> Option<Term> {
        let lease = self.lease.as_mut().filter(|lease| **lease == *seen)?;
        let term = lease.term.max(max_seen).checked_add(1)?;
        *lease = Lease { term, owner: Some(owner), beat: lease.beat + 1 };
        Some(term)
    }

    /// [`Pool::hand_over`].
    pub(crate) fn hand_over(&mut self, term: Term, owner: NodeId, successor: Option<NodeId>) -> bool {
        let Some(lease) = self.owned(term, owner) else { return false };
        *lease = Lease { term: term + 1, owner: successor, beat: lease.beat + 1 };
        true
    }

    /// [`Pool::restore`].
    pub(crate) fn restore(&mut self, term: Term, owner: Option<NodeId>) {
        self.lease.get_or_insert(Lease { term, owner, beat: 0 });
    }

    /// [`Pool::clear_joined`].
    pub(crate) fn clear_joined(&mut self, node: NodeId) {
        if let Some(row) = self.nodes.iter_mut().find(|row| row.node == node) {
            row.joined = None;
        }
    }

    /// [`Pool::remove`].
    pub(crate) fn remove(&mut self, node: NodeId) {
        self.nodes.retain(|row| row.node != node);
    }

    /// Loses everything, the order of first announcement included: what dropping and making the tables does.
    pub(crate) fn clear(&mut self) {
        *self = Self { stamps: self.stamps, ..Self::default() };
    }

    /// Overwrites the lease, as a restored backup does.
    pub(crate) fn set_lease(&mut self, lease: Option<Lease>) {
        self.lease = lease;
    }

    fn owned(&mut self, term: Term, owner: NodeId) -> Option<&mut Lease> {
        self.lease.as_mut().filter(|lease| lease.term == term && lease.owner == Some(owner))
    }
}

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
        Ok(self.with(cluster, |tables, _| tables.renew(term, owner)))
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        owner: NodeId,
        _: Duration,
    ) -> Result<Option<Term>, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.take_over(seen, max_seen, owner)))
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        owner: NodeId,
        successor: Option<NodeId>,
        _: Duration,
    ) -> Result<bool, PoolError> {
        Ok(self.with(cluster, |tables, _| tables.hand_over(term, owner, successor)))
    }

    async fn restore(&self, cluster: &str, term: Term, owner: Option<NodeId>) -> Result<(), PoolError> {
        self.with(cluster, |tables, _| tables.restore(term, owner));
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
