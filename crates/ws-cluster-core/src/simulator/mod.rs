//! A cluster of cores on a virtual clock. One seed determines every delay, fault and publish, so that a failing run can
//! be replayed.
//!
//! This file has the world: `nodes` and the `events` that happen to them. `network` and `database` connect the nodes,
//! and `clients` are connected to them. `checks` asserts the invariants after every step. `runs` has the kinds of runs,
//! `searches` looks for seeds that fail, `acknowledgements` tests the rule of the quick members, and `seeds` spreads the
//! runs over the processors. `story` tells what happened, and `script` plays the stories in `scripts/`.

#![cfg_attr(not(test), allow(dead_code, reason = "the searches of this crate use more than other crates do"))]

#[cfg(test)]
mod acknowledgements;
mod checks;
mod clients;
mod database;
mod events;
mod network;
mod nodes;
mod random;
mod runs;
#[cfg(test)]
mod script;
#[cfg(test)]
mod searches;
mod seeds;
mod story;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::{Duration, Instant},
};

use crate::{
    LinkId, LogConfig, Tables,
    context::{BATCH, WINDOW},
    fault::Fault,
};

pub use checks::Checks;
pub use clients::Clients;
pub use random::Random;
pub use runs::{single_faults_with_clients, storm_with_clients};
pub use seeds::search;
pub use story::PublishName;

use database::USUAL_DELAY;
use events::{Event, Happening};
use nodes::Node;
use seeds::go_wrong;
use story::{Name, Story};

/// The limits of a run. They are so small that logs are trimmed, and that batches and tails take several frames.
#[derive(Clone)]
struct Limits {
    log: LogConfig,
    batch: usize,
    window: usize,
    /// Maximum size of a content.
    content: u64,
}

impl Limits {
    /// Limits with which little is trimmed and every batch fits into one frame.
    fn plain() -> Self {
        Self { log: LogConfig { count: 60, ..LogConfig::default() }, batch: BATCH, window: WINDOW, content: 1 }
    }

    fn draw(rng: &mut Random) -> Self {
        let mut limits = Self::plain();
        limits.log.count = 20 + rng.below(60) as usize;
        if rng.below(2) == 0 {
            limits.log.size = 6_000 + rng.below(20_000) as usize;
        }
        if rng.below(4) == 0 {
            limits.log.age = Duration::from_secs(15 + rng.below(20));
        }
        if rng.below(2) == 0 {
            limits.content = 1_000;
            limits.batch = 500 + rng.below(2_000) as usize;
            limits.window = limits.batch + rng.below(4_000) as usize;
        }
        limits
    }
}

struct World {
    rng: Random,
    /// True if all clocks run at the same rate and no delay is random.
    steady: bool,
    limits: Limits,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Event>,
    order: u64,
    links: LinkId,
    nodes: Vec<Node>,
    tables: Tables,
    /// The tables of a replica that lags, as they were when the lag began.
    replica: Option<Tables>,
    /// True if the beat of the lease is a plain counter.
    counts_beats: bool,
    db_down: bool,
    /// True if every write fails and every read succeeds.
    db_read_only: bool,
    /// For each node, how far the clock that writes its row is behind, and ahead of, the clock that reads it.
    db_skew: BTreeMap<usize, (Duration, Duration)>,
    /// The maximum time that the database takes for an answer, in milliseconds.
    db_delay: u64,
    /// Percentage of queries that take effect and lose their answer.
    lost_answers: u64,
    /// Percentage of queries that are reported as failed and take effect long after that.
    late_statements: u64,
    /// Directions in which nothing passes, and directions in which only heartbeats pass.
    cuts: BTreeSet<(usize, usize)>,
    stuck: BTreeSet<(usize, usize)>,
    /// What is added to the delay of a direction.
    slow: BTreeMap<(usize, usize), Duration>,
    checks: Checks,
    /// The clients of the nodes, if the run has any.
    clients: Option<Box<dyn Clients>>,
    /// What happened, if it is to be printed.
    story: Option<Story>,
    fault: Option<Fault>,
    /// The setting of all nodes that start from now on.
    accept_when_isolated: bool,
}

impl World {
    fn new(seed: u64, size: usize, fault: Option<Fault>, story: bool) -> Self {
        let mut rng = Random(seed);
        let limits = Limits::draw(&mut rng);
        Self::of(rng, false, limits, size, fault, story)
    }

    fn of(rng: Random, steady: bool, limits: Limits, size: usize, fault: Option<Fault>, story: bool) -> Self {
        let mut world = Self {
            rng,
            steady,
            checks: Checks::new(&limits.log),
            limits,
            start: Instant::now(),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            order: 0,
            links: 0,
            nodes: Vec::new(),
            tables: Tables::default(),
            replica: None,
            counts_beats: false,
            db_down: false,
            db_read_only: false,
            db_skew: BTreeMap::new(),
            db_delay: USUAL_DELAY,
            lost_answers: 0,
            late_statements: 0,
            cuts: BTreeSet::new(),
            stuck: BTreeSet::new(),
            slow: BTreeMap::new(),
            clients: None,
            story: story.then(Story::default),
            fault,
            accept_when_isolated: false,
        };
        for place in 0..size {
            let rate = if steady { 1000 } else { 950 + world.rng.below(100) as u32 };
            world.nodes.push(Node::new(place, rate));
            world.boot(place);
        }
        world
    }

    /// Makes a world without random delays that records its story.
    fn steady(size: usize) -> Self {
        Self::of(Random(0), true, Limits::plain(), size, None, true)
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.tell(self.now, what());
        }
    }

    fn heal(&mut self) {
        self.tell(|| "all heals".into());
        self.cuts.clear();
        self.stuck.clear();
        self.slow.clear();
        self.db_down = false;
        self.db_read_only = false;
        self.db_skew.clear();
        self.replica = None;
        self.lost_answers = 0;
        self.late_statements = 0;
        self.db_delay = USUAL_DELAY;
        for place in 0..self.nodes.len() {
            self.nodes[place].db_cut = false;
            if self.nodes[place].core.is_none() {
                self.boot(place);
            } else if self.nodes[place].paused {
                self.resume(place);
            }
        }
    }

    fn fail(&self, wrong: &str) -> ! {
        if let Some(story) = &self.story {
            story.digest(wrong).iter().for_each(|line| println!("{line}"));
            for core in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
                println!("{} is {}", Name(core.id()), core.summary());
            }
            println!("{wrong}");
        }
        go_wrong(wrong.to_owned())
    }
}
