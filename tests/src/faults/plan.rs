//! The faults of a run and their times, from a seed. Pure.
//!
//! A plan is a list of rounds. Between two rounds the cluster is whole again. A round that kills a process has no other
//! fault that could leave a message with that process alone, such as a slow network, a database that is away, or
//! clients that change nodes. In most other rounds no memory is lost, and faults may overlap. On request there are
//! rounds of a third kind: a master is killed while the only other node that has its last messages is frozen. When that
//! node continues, the messages come late, but none is lost.

use std::{fmt, time::Duration};

use crate::random::Random;

/// A choice of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The master at the start of the round.
    Master,
    /// A follower, counted from the one after the master, around the list of nodes.
    Follower(usize),
    /// The node with this index, whatever its role.
    Node(usize),
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Kills a process (SIGKILL). Its node is started again at the end.
    Kill(Victim),
    /// Freezes a process (SIGSTOP).
    Freeze(Victim),
    /// Holds what one node sends to another.
    CutOneWay(Victim, Victim),
    /// Holds what two nodes send to each other.
    Cut(Victim, Victim),
    /// Holds everything between one node and all others.
    Isolate(Victim),
    /// Slows the links that others dialled to a node.
    Slow(Victim, Duration),
    /// Kills the database, or stops it in order. It is started again at the end.
    Database {
        /// True for a kill, false for a stop in order.
        killed: bool,
    },
    /// Empties the pool's tables, or drops them.
    EmptyTables {
        /// True to drop, false to empty.
        dropped: bool,
    },
    /// Sends a percentage of the clients to another node.
    Hop(u64),
    /// Lets a process leave in order (SIGTERM). Its node is started again at the end.
    Leave(Victim),
}

impl Fault {
    /// Returns the name under which faults of this kind are counted.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill(Victim::Master) => "kill -9 of the master",
            Self::Kill(_) => "kill -9 of a follower",
            Self::Freeze(Victim::Master) => "master frozen",
            Self::Freeze(_) => "follower frozen",
            Self::CutOneWay(..) => "link cut one way",
            Self::Cut(..) => "link cut both ways",
            Self::Isolate(_) => "node cut from all others",
            Self::Slow(..) => "links slowed",
            Self::Database { killed: true } => "database killed",
            Self::Database { killed: false } => "database restarted",
            Self::EmptyTables { dropped: true } => "tables dropped",
            Self::EmptyTables { dropped: false } => "tables emptied",
            Self::Hop(_) => "clients hop",
            Self::Leave(Victim::Master) => "master leaves in order",
            Self::Leave(Victim::Follower(_)) => "follower leaves in order",
            Self::Leave(Victim::Node(_)) => "node restarted in order",
        }
    }

    fn loses_memory(self) -> bool {
        matches!(self, Self::Kill(_) | Self::Leave(_))
    }
}

/// A fault and its time within a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// The time from the beginning of the round.
    pub after: Duration,
    /// The time until the fault ends.
    pub lasts: Duration,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (after, lasts) = (self.after.as_secs_f32(), self.lasts.as_secs_f32());
        write!(f, "{:?} after {after:.1} s for {lasts:.1} s", self.fault)
    }
}

/// All rounds of a seed, one after the other, without end.
#[derive(Clone, Debug)]
pub struct Plan {
    random: Random,
    nodes: usize,
    late: bool,
}

/// Returns the rounds of a restart of all nodes, one after the other.
pub(super) fn rolling_restart(nodes: usize) -> impl Iterator<Item = Vec<Timed>> {
    let lasts = Duration::from_secs(1);
    (0..nodes).map(move |node| vec![Timed { after: lasts, lasts, fault: Fault::Leave(Victim::Node(node)) }])
}

impl Plan {
    /// Returns the plan for `nodes` nodes, of which there are at least two.
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self { random: Random::new(seed), nodes, late: false }
    }

    /// Returns a plan that also has rounds after which messages come late.
    pub fn with_late_messages(seed: u64, nodes: usize) -> Self {
        Self { late: true, ..Self::new(seed, nodes) }
    }

    fn victim(&mut self) -> Victim {
        match self.random.percent(50) {
            true => Victim::Master,
            false => Victim::Follower(self.random.index(self.nodes - 1)),
        }
    }

    fn pair(&mut self) -> (Victim, Victim) {
        let follower = self.random.index(self.nodes - 1);
        let other = match self.random.percent(60) || self.nodes < 3 {
            true => Victim::Master,
            false => Victim::Follower((follower + 1) % (self.nodes - 1)),
        };
        match self.random.percent(50) {
            true => (Victim::Follower(follower), other),
            false => (other, Victim::Follower(follower)),
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.random.below(to - from))
    }

    /// Returns a duration: mostly near the time in which a cluster notices a fault (4 s), and sometimes long.
    fn duration(&mut self) -> Duration {
        match self.random.below(20) {
            0 => self.millis(32_000, 40_000),
            1..=4 => self.millis(50, 1_000),
            _ => self.millis(1_000, 12_000),
        }
    }

    /// Returns a fault that may happen beside the loss of a process.
    fn gentle(&mut self) -> Fault {
        match self.random.below(4) {
            0 => Fault::Slow(self.victim(), self.millis(5, 150)),
            1 => Fault::Database { killed: self.random.percent(50) },
            _ => Fault::Hop(10 + self.random.below(60)),
        }
    }

    fn harmless_to_memory(&mut self) -> Fault {
        match self.random.below(10) {
            0..=1 => Fault::Freeze(self.victim()),
            2 => {
                let (from, to) = self.pair();
                Fault::CutOneWay(from, to)
            }
            3 => {
                let (one, other) = self.pair();
                Fault::Cut(one, other)
            }
            4 => Fault::Isolate(self.victim()),
            5 => Fault::Slow(self.victim(), self.millis(20, 400)),
            6 => Fault::EmptyTables { dropped: self.random.percent(50) },
            _ => self.gentle(),
        }
    }
}

impl Plan {
    /// Returns a round in which the last messages of a master reach one follower only. That follower is frozen, and the
    /// master is killed. Clients change nodes when the follower continues.
    fn messages_that_come_late(&mut self) -> Vec<Timed> {
        let only = self.random.index(self.nodes - 1);
        let begins = self.millis(0, 1_000);
        // Shorter than it takes the others to notice the loss of their master.
        let frozen = begins + self.millis(200, 2_500);
        let killed = frozen + self.millis(5, 60);
        let thawed = killed + self.millis(6_000, 12_000);
        let others = (0..self.nodes - 1).filter(|other| *other != only);
        let cut = |other| Fault::CutOneWay(Victim::Master, Victim::Follower(other));
        // Longer than the master lives, so that the held messages do not arrive.
        let lasts = killed + Duration::from_millis(500) - begins;
        let mut round: Vec<Timed> = others.map(|other| Timed { after: begins, lasts, fault: cut(other) }).collect();
        let fault = Fault::Freeze(Victim::Follower(only));
        round.push(Timed { after: frozen, lasts: thawed - frozen, fault });
        let fault = Fault::Kill(Victim::Master);
        round.push(Timed { after: killed, lasts: self.millis(500, 12_000), fault });
        for _ in 0..1 + self.random.below(4) {
            let after = thawed + self.millis(0, 600) - Duration::from_millis(500);
            round.push(Timed { after, lasts: Duration::ZERO, fault: Fault::Hop(10 + self.random.below(40)) });
        }
        round
    }
}

impl Iterator for Plan {
    type Item = Vec<Timed>;

    fn next(&mut self) -> Option<Vec<Timed>> {
        if self.late && self.random.percent(40) {
            return Some(self.messages_that_come_late());
        }
        let mut round = Vec::new();
        if self.random.percent(45) {
            let fault = match self.random.percent(80) {
                true => Fault::Kill(self.victim()),
                false => Fault::Leave(self.victim()),
            };
            let (after, lasts) = (self.millis(0, 3_000), self.millis(0, 9_000));
            if self.random.percent(60) {
                let fault = self.gentle();
                // Before the kill or together with it, and over before the node starts again, which needs the database.
                let begins = after.saturating_sub(self.millis(0, 2_000));
                let lasting = after + lasts.max(Duration::from_millis(500)) - begins;
                round.push(Timed { after: begins, lasts: lasting.mul_f64(0.9), fault });
            }
            round.push(Timed { after, lasts: lasts.max(Duration::from_millis(500)), fault });
        } else {
            for _ in 0..1 + self.random.below(3) {
                let fault = self.harmless_to_memory();
                let (after, lasts) = (self.millis(0, 4_000), self.duration());
                // Two kinds end at once.
                let lasts = match fault {
                    Fault::Hop(_) | Fault::EmptyTables { .. } => lasts.min(Duration::from_secs(1)),
                    _ => lasts,
                };
                round.push(Timed { after, lasts, fault });
            }
            // In a database that is away, tables cannot be emptied. It cannot go away twice either.
            let mut away = false;
            round.retain(|timed| match timed.fault {
                Fault::Database { .. } | Fault::EmptyTables { .. } => !std::mem::replace(&mut away, true),
                _ => true,
            });
            // A process cannot be frozen twice, because the first thaw would end both.
            let mut frozen = Vec::new();
            round.retain(|timed| match timed.fault {
                Fault::Freeze(victim) if frozen.contains(&victim) => false,
                Fault::Freeze(victim) => {
                    frozen.push(victim);
                    true
                }
                _ => true,
            });
        }
        debug_assert!(round.iter().filter(|timed| timed.fault.loses_memory()).count() <= 1);
        Some(round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        let rounds = |seed| Plan::new(seed, 4).take(100).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn a_kill_has_nothing_beside_it_that_leaves_a_message_with_the_killed_alone() {
        for round in Plan::new(Random::seed(), 3).take(5_000) {
            let Some(kill) = round.iter().find(|timed| timed.fault.loses_memory()) else { continue };
            for other in round.iter().filter(|timed| *timed != kill) {
                let gentle = matches!(other.fault, Fault::Slow(..) | Fault::Database { .. } | Fault::Hop(_));
                assert!(gentle, "{other}");
                assert!(other.after + other.lasts < kill.after + kill.lasts, "over before the node starts again");
            }
        }
    }

    #[test]
    fn late_messages_wait_with_a_node_that_is_frozen_when_the_master_is_killed() {
        let late =
            |round: &Vec<Timed>| round.iter().any(|timed| matches!(timed.fault, Fault::Freeze(_)) && kill(round));
        fn kill(round: &[Timed]) -> bool {
            round.iter().any(|timed| timed.fault.loses_memory())
        }
        let rounds: Vec<_> = Plan::with_late_messages(Random::seed(), 4).take(500).filter(late).collect();
        assert!(rounds.len() > 100);
        for round in rounds {
            let find = |wanted: fn(&Fault) -> bool| round.iter().find(|timed| wanted(&timed.fault)).unwrap();
            let frozen = find(|fault| matches!(fault, Fault::Freeze(_)));
            let killed = find(|fault| fault.loses_memory());
            assert!(frozen.after < killed.after && killed.after < frozen.after + frozen.lasts);
            let cuts = round.iter().filter(|timed| matches!(timed.fault, Fault::CutOneWay(..))).count();
            assert_eq!(cuts, 2, "the others");
        }
    }

    #[test]
    fn every_kind_of_fault_comes() {
        let kinds: std::collections::BTreeSet<&str> =
            Plan::new(Random::seed(), 3).take(2_000).flatten().map(|timed| timed.fault.kind()).collect();
        assert_eq!(kinds.len(), 15, "{kinds:?}");
    }

    #[test]
    fn the_nodes_of_a_cut_are_two() {
        for nodes in 2..=5 {
            for timed in Plan::new(Random::seed(), nodes).take(5_000).flatten() {
                match timed.fault {
                    Fault::Cut(one, other) | Fault::CutOneWay(one, other) => assert_ne!(one, other),
                    Fault::Kill(Victim::Follower(number)) => assert!(number < nodes - 1),
                    _ => {}
                }
            }
        }
    }
}
