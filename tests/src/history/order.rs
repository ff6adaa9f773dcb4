//! The one order that runs of messages make together: which message certainly came before which.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

use super::load::Id;

const UNPLACED: u32 = u32::MAX;

/// A graph of messages, with an edge from each message to the next one that a client saw.
pub(super) struct Order {
    /// The successors of a message are in `next` from `first[message]` to `first[message + 1]`.
    first: Vec<u32>,
    next: Vec<Id>,
    /// All messages that were seen, each before its successors.
    pub(super) line: Vec<Id>,
    /// The index of each message in `line`.
    rank: Vec<u32>,
    /// Sets of messages each of which came before another of the set, according to different clients.
    pub(super) knots: Vec<Vec<Id>>,
    knotted: Vec<bool>,
}

impl Order {
    /// Returns the order of runs over `messages` messages. `time` gives the time at which each message was first seen.
    /// Messages without a relation are in the order of these times.
    pub(super) fn of<'a>(runs: impl Iterator<Item = &'a [Id]> + Clone, messages: usize, time: &[u64]) -> Self {
        let mut seen = vec![false; messages];
        let mut edges = Vec::new();
        for run in runs {
            run.iter().for_each(|message| seen[*message as usize] = true);
            edges.extend(run.windows(2).map(|pair| (u64::from(pair[0]) << 32) | u64::from(pair[1])));
            // Most runs have the same edges.
            if edges.len() > 4_000_000 {
                edges.sort_unstable();
                edges.dedup();
            }
        }
        edges.sort_unstable();
        edges.dedup();
        let mut first = vec![0; messages + 1];
        edges.iter().for_each(|edge| first[(edge >> 32) as usize + 1] += 1);
        for message in 0..messages {
            first[message + 1] += first[message];
        }
        // The lower half is the successor.
        let next = edges.into_iter().map(|edge| edge as Id).collect();
        let mut order = Self {
            first,
            next,
            line: Vec::new(),
            rank: vec![UNPLACED; messages],
            knots: Vec::new(),
            knotted: vec![false; messages],
        };
        let count = seen.iter().filter(|seen| **seen).count();
        order.sort(&seen, time);
        if order.line.len() < count {
            order.untangle(&seen);
        }
        for (rank, message) in order.line.iter().enumerate() {
            order.rank[*message as usize] = rank as u32;
        }
        order
    }

    pub(super) fn next(&self, message: Id) -> &[Id] {
        let message = message as usize;
        &self.next[self.first[message] as usize..self.first[message + 1] as usize]
    }

    /// Returns the rank of a message, or `None` if no client saw it.
    pub(super) fn rank(&self, message: Id) -> Option<u32> {
        Some(self.rank[message as usize]).filter(|rank| *rank != UNPLACED)
    }

    /// Returns true if clients contradict each other about this message.
    pub(super) fn is_knotted(&self, message: Id) -> bool {
        self.knotted[message as usize]
    }

    fn sort(&mut self, seen: &[bool], time: &[u64]) {
        let mut before = vec![0_u32; seen.len()];
        self.next.iter().for_each(|next| before[*next as usize] += 1);
        let key = |message: Id| Reverse((time[message as usize], message));
        let mut free: BinaryHeap<_> = (0..seen.len() as Id)
            .filter(|message| seen[*message as usize] && before[*message as usize] == 0)
            .map(key)
            .collect();
        while let Some(Reverse((_, message))) = free.pop() {
            self.line.push(message);
            for next in self.first[message as usize]..self.first[message as usize + 1] {
                let next = self.next[next as usize];
                before[next as usize] -= 1;
                if before[next as usize] == 0 {
                    free.push(key(next));
                }
            }
        }
    }

    /// Orders knots as if each were one message (Tarjan's algorithm, without recursion).
    fn untangle(&mut self, seen: &[bool]) {
        let count = seen.len();
        let mut index = vec![UNPLACED; count];
        let mut low = vec![0; count];
        let mut waits = vec![false; count];
        let (mut stack, mut path, mut found, mut last) = (Vec::new(), Vec::new(), Vec::<Vec<Id>>::new(), 0);
        for root in (0..count).filter(|message| seen[*message]) {
            if index[root] != UNPLACED {
                continue;
            }
            path.push((root, self.first[root]));
            while let Some((message, edge)) = path.pop() {
                if index[message] == UNPLACED {
                    (index[message], low[message]) = (last, last);
                    last += 1;
                    stack.push(message);
                    waits[message] = true;
                }
                if edge < self.first[message + 1] {
                    path.push((message, edge + 1));
                    let next = self.next[edge as usize] as usize;
                    if index[next] == UNPLACED {
                        path.push((next, self.first[next]));
                    } else if waits[next] {
                        low[message] = low[message].min(index[next]);
                    }
                    continue;
                }
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[message]);
                }
                if low[message] == index[message] {
                    let from = stack.iter().rposition(|other| *other == message).unwrap_or(0);
                    let knot: Vec<Id> = stack.drain(from..).map(|message| message as Id).collect();
                    knot.iter().for_each(|message| waits[*message as usize] = false);
                    found.push(knot);
                }
            }
        }
        // The last are found first.
        found.reverse();
        self.line = found.concat();
        self.knots = found.into_iter().filter(|knot| knot.len() > 1).collect();
        self.knots.iter().flatten().for_each(|message| self.knotted[*message as usize] = true);
    }

    /// Returns a shortest circle through a knot.
    pub(super) fn circle(&self, knot: &[Id]) -> Vec<Id> {
        let start = knot[0];
        let within: HashSet<Id> = knot.iter().copied().collect();
        let mut from = HashMap::from([(start, start)]);
        let mut queue = VecDeque::from([start]);
        while let Some(message) = queue.pop_front() {
            for next in self.next(message) {
                if *next == start {
                    let mut circle = vec![message];
                    let mut back = message;
                    while back != start {
                        back = from[&back];
                        circle.push(back);
                    }
                    circle.reverse();
                    return circle;
                }
                if within.contains(next) && !from.contains_key(next) {
                    from.insert(*next, message);
                    queue.push_back(*next);
                }
            }
        }
        knot.to_vec()
    }

    /// Returns the messages between two ranks that certainly came after the first and before the second.
    pub(super) fn between(&self, first: u32, last: u32) -> Vec<Id> {
        let window = &self.line[first as usize..=last as usize];
        let place = |message: Id| match self.rank(message) {
            Some(rank) if (first..=last).contains(&rank) => Some((rank - first) as usize),
            _ => None,
        };
        let mut after = vec![false; window.len()];
        after[0] = true;
        for (at, message) in window.iter().enumerate() {
            if after[at] {
                self.next(*message).iter().filter_map(|next| place(*next)).for_each(|next| after[next] = true);
            }
        }
        let mut before = vec![false; window.len()];
        before[window.len() - 1] = true;
        for (at, message) in window.iter().enumerate().rev() {
            before[at] =
                before[at] || self.next(*message).iter().filter_map(|next| place(*next)).any(|next| before[next]);
        }
        (0..window.len()).filter(|at| after[*at] && before[*at]).map(|at| window[at]).collect()
    }
}
