//! The orders of the site to change groups, for clients that come back with a resume token from before an order. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::message::{close::Subject, groups::GroupChange};
use ws_cluster_core::Seq;

/// Maximum number of bytes that the orders take, and about how many one order takes beside its names.
const SIZE: usize = 16 * 1024 * 1024;

/// The orders that this node has delivered, the latest of them.
#[derive(Default)]
pub(super) struct GroupOrders {
    /// The orders about each user, session and connection, the oldest first.
    by_subject: HashMap<Subject, VecDeque<(Seq, Arc<GroupChange>)>>,
    /// All orders, the oldest first.
    order: VecDeque<(Seq, Arc<GroupChange>)>,
    size: usize,
    /// Orders up to this sequence number may be forgotten, or were never known.
    floor: Seq,
}

impl GroupOrders {
    /// Returns no orders. Those up to `floor` were never known.
    pub(super) fn after(floor: Seq) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Returns the sequence number after which every order is known.
    pub(super) fn floor(&self) -> Seq {
        self.floor
    }

    /// Notes an order. The oldest ones are forgotten if all of them would take too much memory.
    pub(super) fn note(&mut self, seq: Seq, change: &GroupChange) {
        let change = Arc::new(change.clone());
        self.size += change.size();
        self.by_subject.entry(change.subject.clone()).or_default().push_back((seq, change.clone()));
        self.order.push_back((seq, change));
        while self.size > SIZE {
            let Some((seq, change)) = self.order.pop_front() else { break };
            self.floor = seq.max(self.floor);
            self.forget(&change, VecDeque::pop_front);
        }
    }

    /// Forgets the orders after `after`, which have lost their log positions.
    pub(super) fn cut(&mut self, after: Seq) {
        while let Some((_, change)) = self.order.pop_back_if(|(seq, _)| *seq > after) {
            self.forget(&change, VecDeque::pop_back);
        }
    }

    fn forget<T>(&mut self, change: &GroupChange, end: impl Fn(&mut VecDeque<(Seq, Arc<GroupChange>)>) -> Option<T>) {
        self.size -= change.size();
        if let Some(list) = self.by_subject.get_mut(&change.subject) {
            end(list);
            if list.is_empty() {
                self.by_subject.remove(&change.subject);
            }
        }
    }

    /// Returns the orders after `after` about any of these subjects, in their order.
    pub(super) fn about(&self, subjects: &[Subject], after: Seq) -> Vec<(Seq, Arc<GroupChange>)> {
        let lists = subjects.iter().filter_map(|subject| self.by_subject.get(subject));
        let mut orders: Vec<_> =
            lists.flat_map(|list| list.range(list.partition_point(|(seq, _)| *seq <= after)..).cloned()).collect();
        orders.sort_by_key(|(seq, _)| *seq);
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(orders: &GroupOrders, subjects: &[Subject], after: Seq) -> Vec<Seq> {
        orders.about(subjects, after).into_iter().map(|(seq, _)| seq).collect()
    }

    #[test]
    fn the_orders_about_a_client_are_found() {
        let mut orders = GroupOrders::default();
        for (seq, change) in [
            (3, GroupChange::user("ann").join("a")),
            (4, GroupChange::session("s").join("a")),
            (6, GroupChange::user("bob").join("a")),
            (7, GroupChange::user("ann").leave("a")),
        ] {
            orders.note(seq, &change);
        }
        let ann = [Subject::user("ann"), Subject::session("s")];
        assert_eq!(seqs(&orders, &ann, 0), [3, 4, 7]);
        assert_eq!(seqs(&orders, &ann, 3), [4, 7]);
        assert!(seqs(&orders, &[Subject::session("ann")], 0).is_empty());
        orders.cut(4);
        assert_eq!(seqs(&orders, &ann, 0), [3, 4]);
        assert!(seqs(&orders, &[Subject::user("bob")], 0).is_empty());
        orders.cut(0);
        assert!(orders.by_subject.is_empty() && orders.size == 0 && orders.floor() == 0);
    }

    #[test]
    fn orders_take_a_limited_amount_of_memory() {
        let mut orders = GroupOrders::after(5);
        let name = "x".repeat(60_000);
        for seq in 6..1000 {
            orders.note(seq, &GroupChange::user(format!("u{}", seq % 10)).join(&*name));
        }
        assert!(orders.size <= SIZE && orders.floor() > 500, "{} {}", orders.size, orders.floor());
        assert_eq!(orders.order.len(), orders.by_subject.values().map(VecDeque::len).sum::<usize>());
        assert_eq!(orders.order.front().map(|(seq, _)| *seq), Some(orders.floor() + 1));
    }
}
