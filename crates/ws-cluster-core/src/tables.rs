//! The tables of a pool in memory: the reference for every pool.

use std::time::Duration;

use crate::{Announcement, Lease, NodeId, NodeRow, PoolView, Term};

/// The rows of one cluster, with one method for each statement of `Pool`. No lock, no clock, no randomness:
/// `now` is the time since any fixed moment, the same for all calls, and `stride` says how far the beat of the lease
/// moves.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    lease: Option<Lease>,
    /// Ordered by `ord`, because rows are only appended.
    nodes: Vec<Row>,
    last_ord: u64,
    /// The number of announcements. [`clear`](Self::clear) keeps it, so that no stamp is used twice.
    stamps: u64,
}

/// A [`NodeRow`] before its age is known.
#[derive(Clone, Debug)]
struct Row {
    ord: u64,
    node: NodeId,
    address: String,
    joined: Option<Term>,
    stamp: u64,
    seen_at: Duration,
}

impl Tables {
    /// `Pool::read`.
    pub fn read(&self, now: Duration) -> PoolView {
        let nodes = self.nodes.iter().map(|row| NodeRow {
            ord: row.ord,
            node: row.node,
            address: row.address.clone(),
            joined: row.joined,
            stamp: row.stamp,
            age: now.saturating_sub(row.seen_at),
        });
        PoolView { lease: self.lease, nodes: nodes.collect() }
    }

    /// `Pool::announce`.
    pub fn announce(&mut self, now: Duration, announcement: &Announcement) {
        let Announcement { node, ref address, joined } = *announcement;
        self.nodes.retain(|row| row.node == node || row.address != *address);
        self.stamps += 1;
        let (address, stamp) = (address.clone(), self.stamps);
        if let Some(row) = self.nodes.iter_mut().find(|row| row.node == node) {
            *row = Row { ord: row.ord, node, address, joined: joined.or(row.joined), stamp, seen_at: now };
        } else {
            self.last_ord += 1;
            self.nodes.push(Row { ord: self.last_ord, node, address, joined, stamp, seen_at: now });
        }
    }

    /// `Pool::renew`.
    pub fn renew(&mut self, term: Term, master: NodeId, stride: u64) -> bool {
        let Some(lease) = self.owned(term, master) else { return false };
        lease.beat += stride;
        true
    }

    /// `Pool::take_over`.
    pub fn take_over(&mut self, seen: &Lease, max_seen: Term, master: NodeId, stride: u64) -> Option<Term> {
        let lease = self.lease.as_mut().filter(|lease| **lease == *seen)?;
        let term = lease.term.max(max_seen).checked_add(1)?;
        *lease = Lease { term, master: Some(master), beat: lease.beat + stride };
        Some(term)
    }

    /// `Pool::hand_over`.
    pub fn hand_over(&mut self, term: Term, master: NodeId, successor: Option<NodeId>, stride: u64) -> bool {
        let Some(lease) = self.owned(term, master) else { return false };
        *lease = Lease { term: term + 1, master: successor, beat: lease.beat + stride };
        true
    }

    /// `Pool::restore`.
    pub fn restore(&mut self, term: Term, master: Option<NodeId>, stride: u64) {
        self.lease.get_or_insert(Lease { term, master, beat: stride });
    }

    /// `Pool::clear_joined`.
    pub fn clear_joined(&mut self, node: NodeId) {
        if let Some(row) = self.nodes.iter_mut().find(|row| row.node == node) {
            row.joined = None;
        }
    }

    /// `Pool::remove`.
    pub fn remove(&mut self, node: NodeId) {
        self.nodes.retain(|row| row.node != node);
    }

    /// Loses everything, the order of first announcement included, as dropping and creating the tables does.
    pub fn clear(&mut self) {
        *self = Self { stamps: self.stamps, ..Self::default() };
    }

    /// Goes back to an older state of the same tables, as a database does that fails over to a replica that had not got
    /// the last writes. The stamps of later announcements are new all the same: a database takes them from its clock.
    #[cfg(any(test, feature = "simulator"))]
    pub(crate) fn fall_back(&mut self, older: Self) {
        *self = Self { stamps: self.stamps, ..older };
    }

    /// Overwrites the lease, as a restored backup does.
    pub fn set_lease(&mut self, lease: Option<Lease>) {
        self.lease = lease;
    }

    fn owned(&mut self, term: Term, master: NodeId) -> Option<&mut Lease> {
        self.lease.as_mut().filter(|lease| lease.term == term && lease.master == Some(master))
    }
}
