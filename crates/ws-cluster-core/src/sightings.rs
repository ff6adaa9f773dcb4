//! How long ago each node of the pool announced itself, measured on this node's own clock. The pool's clock is of no
//! use for it: after a fail-over, or on a cluster of database servers, one clock writes a row and another clock reads
//! its age.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{NodeId, NodeRow};

/// When the stamp of each row changed.
#[derive(Debug, Default)]
pub(super) struct Sightings(HashMap<NodeId, Sighting>);

#[derive(Debug)]
struct Sighting {
    stamp: u64,
    /// When the first read that showed this stamp was asked for.
    since: Instant,
    /// The age of the row at that time. For the first stamp of a row only the pool's clock knows it. It is zero if the
    /// stamp changed between two reads.
    before: Duration,
}

impl Sightings {
    /// Sets the ages of the rows of a read that was asked for at `asked`. A row that is read for the first time gets at
    /// most the age `oldest`: its node may be alive, and gets time to announce itself once.
    pub(super) fn read(&mut self, asked: Instant, oldest: Duration, rows: &mut [NodeRow]) {
        self.0.retain(|node, _| rows.iter().any(|row| row.node == *node));
        for row in rows {
            let sighting = self.0.entry(row.node).or_insert(Sighting {
                stamp: row.stamp,
                since: asked,
                before: row.age.min(oldest),
            });
            if sighting.stamp != row.stamp {
                *sighting = Sighting { stamp: row.stamp, since: asked, before: Duration::ZERO };
            }
            row.age = sighting.before + asked.saturating_duration_since(sighting.since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stamp: u64, age: u64) -> NodeRow {
        let node = NodeId::from_bytes([1; 16]);
        let (address, age) = (String::new(), Duration::from_secs(age));
        NodeRow { ord: 1, node, address, joined: None, stamp, age }
    }

    fn age(sightings: &mut Sightings, asked: Instant, row: NodeRow) -> u64 {
        let mut rows = [row];
        sightings.read(asked, Duration::from_secs(11), &mut rows);
        rows[0].age.as_secs()
    }

    #[test]
    fn a_node_that_announces_itself_is_young_whatever_the_clock_of_the_database_says() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sightings = Sightings::default();
        assert_eq!(age(&mut sightings, at(0), row(7, 3_600)), 11, "nothing else is known of it");
        assert_eq!(age(&mut sightings, at(1), row(7, 3_601)), 12);
        assert_eq!(age(&mut sightings, at(2), row(8, 3_600)), 0, "it has just announced itself");
        assert_eq!(age(&mut sightings, at(5), row(8, 0)), 3, "the clock went back, the node did nothing");
        sightings.read(at(6), Duration::ZERO, &mut []);
        assert_eq!(age(&mut sightings, at(7), row(8, 5)), 5, "it was away");
    }
}
