//! A cluster of cores on a virtual clock. One seed decides about every delay, fault and publish, so that a failing run
//! can be replayed.
//!
//! This file has the nodes and their time. `network` and `database` connect the nodes, and `clients` are connected to
//! them. `checks` asserts the invariants after every step. `runs` and `searches` are the runs, and `seeds` spreads them
//! over the processors. `story` tells what happened, and `script` plays the stories in `scripts/`.

#![cfg_attr(not(test), allow(dead_code, reason = "the searches of this crate use more than other crates do"))]

mod checks;
mod clients;
mod database;
mod network;
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
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    Answer, ClusterConfig, Core, Frame, LinkId, LogConfig, NodeId, Output, PublishId, Query, Tables, fault::Fault,
    master::WINDOW, replication::BATCH,
};

pub use checks::Checks;
pub use clients::Clients;
pub use random::Random;
pub use runs::storm_with_clients;
pub use seeds::search;
pub use story::PublishName;

use network::End;
use seeds::go_wrong;
use story::{Name, Story};

/// The limits under which a run takes place: so small that logs are trimmed and frames and tails come in pieces.
#[derive(Clone)]
struct Limits {
    log: LogConfig,
    batch: usize,
    window: usize,
    /// The size of contents, at most.
    content: u64,
}

impl Limits {
    /// Little is trimmed, nothing comes in pieces.
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

struct Node {
    id: NodeId,
    address: String,
    /// How often it has started.
    lives: u16,
    /// How much it has published in this life.
    published: u64,
    core: Option<Core>,
    /// Its clock runs at this many thousandths of the world's.
    rate: u32,
    /// Stopped: what happens to it waits in `missed`.
    paused: bool,
    paused_at: Duration,
    missed: VecDeque<Happening>,
    db_cut: bool,
    /// The links of this node, as it knows them: the peer's place and when it was last heard of.
    ends: BTreeMap<LinkId, End>,
}

#[derive(Clone, Debug)]
enum Happening {
    Tick,
    Dialled {
        by: usize,
        link: LinkId,
    },
    DialFailed {
        node: NodeId,
        refused: bool,
    },
    LinkUp {
        link: LinkId,
        peer: usize,
    },
    LinkDown {
        link: LinkId,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    Release {
        link: LinkId,
    },
    Answer(Answer),
    Query(Query),
    /// A query that its node was told had failed.
    Statement(Query),
    Heartbeats,
}

/// Something that happens at a time, to one incarnation of the node at a place.
struct Event {
    at: Duration,
    order: u64,
    place: usize,
    incarnation: NodeId,
    /// Boxed, since the queue moves its events about.
    what: Box<Happening>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct World {
    rng: Random,
    /// All clocks run alike and everything takes as long as it always does.
    steady: bool,
    limits: Limits,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Event>,
    order: u64,
    links: LinkId,
    nodes: Vec<Node>,
    tables: Tables,
    /// The tables of a replica that lags, as they stood when it began to.
    replica: Option<Tables>,
    /// The beat of the lease is a plain counter.
    counts_beats: bool,
    db_down: bool,
    /// Every write fails, every read succeeds.
    db_read_only: bool,
    /// What the clock that writes a node's row is ahead of the one that reads it, in each direction.
    db_skew: BTreeMap<usize, (Duration, Duration)>,
    /// The longest time that the database takes for an answer, in milliseconds.
    db_delay: u64,
    /// Of a hundred queries, how many lose their answer after they took effect.
    lost_answers: u64,
    /// And how many are said to have failed and take effect long after that.
    late_statements: u64,
    /// Directions in which nothing passes, and those in which only heartbeats do.
    cuts: BTreeSet<(usize, usize)>,
    stuck: BTreeSet<(usize, usize)>,
    /// Added to the delay of a direction.
    slow: BTreeMap<(usize, usize), Duration>,
    checks: Checks,
    /// Clients of the nodes, where a run has any.
    clients: Option<Box<dyn Clients>>,
    /// What happened, where somebody wants to read it.
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
            db_delay: 5,
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
            world.nodes.push(Node {
                id: NodeId::from_bytes([0; 16]),
                address: format!("ws://node-{place}"),
                lives: 0,
                published: 0,
                core: None,
                rate,
                paused: false,
                paused_at: Duration::ZERO,
                missed: VecDeque::new(),
                db_cut: false,
                ends: BTreeMap::new(),
            });
            world.boot(place);
        }
        world
    }

    /// A world without chance, whose story is told.
    fn steady(size: usize) -> Self {
        Self::of(Random(0), true, Limits::plain(), size, None, true)
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.tell(self.now, what());
        }
    }

    fn boot(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        node.lives += 1;
        node.id = Name::id(place, node.lives);
        node.paused = false;
        node.published = 0;
        let (id, address, now) = (node.id, node.address.clone(), self.local(place));
        let Limits { log, batch, window, .. } = self.limits.clone();
        let config = ClusterConfig { accept_when_isolated: self.accept_when_isolated, ..ClusterConfig::default() };
        let core = Core::new(now, id, address, config, log);
        self.nodes[place].core = Some(Core { fault: self.fault, batch, window, ..core });
        if let Some(clients) = &mut self.clients {
            clients.boot(place, id);
        }
        self.tell(|| format!("{} boots", Name(id)));
        self.schedule(Duration::ZERO, place, Happening::Tick);
        self.schedule(Duration::from_secs(1), place, Happening::Heartbeats);
    }

    fn crash(&mut self, place: usize) {
        let Some(core) = self.nodes[place].core.take() else { return };
        self.tell(|| format!("{} crashes", Name(core.id())));
        self.end_life(place, &core);
    }

    fn end_life(&mut self, place: usize, core: &Core) {
        if let Some(clients) = &mut self.clients {
            clients.lose(place);
        }
        self.checks.crashed(core, self.nodes.iter().filter_map(|node| node.core.as_ref()));
        self.nodes[place].missed.clear();
        for (link, end) in std::mem::take(&mut self.nodes[place].ends) {
            self.close_other_end(place, link, end.peer);
        }
    }

    fn pause(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{} stops", Name(id)));
        self.nodes[place].paused = true;
        self.nodes[place].paused_at = self.now;
    }

    /// Lets nodes go on that were stopped for as long as a log remembers: what lay in their sockets all that time may come
    /// once more, since nobody knows it any longer.
    fn wake_sleepers(&mut self) {
        let (now, age) = (self.now, self.limits.log.age);
        let sleeps = |node: &Node| node.paused && now - node.paused_at >= age;
        let places: Vec<usize> = (0..self.nodes.len()).filter(|place| sleeps(&self.nodes[*place])).collect();
        places.into_iter().for_each(|place| self.resume(place));
    }

    fn resume(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{} goes on", Name(id)));
        self.nodes[place].paused = false;
        for what in std::mem::take(&mut self.nodes[place].missed) {
            self.schedule(Duration::ZERO, place, what);
        }
    }

    /// What the node at a place is called.
    fn letter(&self, place: usize) -> Name {
        Name(self.nodes[place].id)
    }

    fn publish(&mut self, place: usize, content: Bytes, key: Option<Bytes>) {
        let now = self.local(place);
        let node = &mut self.nodes[place];
        if node.paused {
            return;
        }
        let Some(core) = node.core.as_mut() else { return };
        if core.publish(now, content, key).is_ok() {
            node.published += 1;
            self.drain(place);
        }
    }

    /// The name of the publish that comes next from this node.
    fn next_publish(&self, place: usize) -> PublishName {
        let node = &self.nodes[place];
        PublishName(PublishId { origin: node.id, counter: node.published + 1 })
    }

    fn shut_down(&mut self, place: usize) {
        let now = self.local(place);
        let id = self.nodes[place].id;
        self.tell(|| format!("{} shuts down", Name(id)));
        if let Some(core) = self.nodes[place].core.as_mut() {
            core.shut_down(now);
            self.drain(place);
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
        self.db_delay = 5;
        for place in 0..self.nodes.len() {
            self.nodes[place].db_cut = false;
            if self.nodes[place].core.is_none() {
                self.boot(place);
            } else if self.nodes[place].paused {
                self.resume(place);
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|event| event.at <= end) {
            let Some(Event { at, place, incarnation, what, .. }) = self.events.pop() else { break };
            self.now = self.now.max(at);
            self.checks.now = self.now;
            match *what {
                what if self.nodes[place].id == incarnation && self.nodes[place].core.is_some() => {
                    self.happen(place, what)
                }
                // What was sent is carried out, whatever became of its sender.
                Happening::Query(query) | Happening::Statement(query) => _ = self.take_effect(incarnation, query),
                _ => {}
            }
        }
        self.now = end;
    }

    fn delay(&mut self, from: u64, to: u64) -> Duration {
        if self.steady { Duration::from_millis(to.min(1)) } else { self.rng.millis(from, to) }
    }

    fn local(&self, place: usize) -> Instant {
        self.start + self.now * self.nodes[place].rate / 1000
    }

    fn schedule(&mut self, after: Duration, place: usize, what: Happening) {
        self.order += 1;
        let incarnation = self.nodes[place].id;
        self.events.push(Event { at: self.now + after, order: self.order, place, incarnation, what: Box::new(what) });
    }

    fn happen(&mut self, place: usize, what: Happening) {
        if self.nodes[place].paused {
            // A query that was sent reaches the database all the same.
            return match what {
                Happening::Query(query) => self.query(place, query),
                Happening::Statement(query) => _ = self.take_effect(self.nodes[place].id, query),
                what => self.nodes[place].missed.push_back(what),
            };
        }
        let now = self.local(place);
        match what {
            Happening::Tick => {
                self.with_core(place, |core| core.handle_timeout(now));
                self.schedule(Duration::from_millis(100), place, Happening::Tick);
            }
            Happening::Heartbeats => {
                self.heartbeats(place);
                self.schedule(Duration::from_secs(1), place, Happening::Heartbeats);
            }
            Happening::Dialled { by, link } => self.dialled(place, by, link),
            Happening::LinkUp { link, peer } => {
                let id = self.nodes[peer].id;
                if self.nodes[place].ends.contains_key(&link) {
                    self.with_core(place, |core| core.handle_link_up(now, link, id, true));
                } else {
                    self.with_core(place, |core| core.handle_dial_failed(now, id, true));
                }
            }
            Happening::DialFailed { node, refused } => {
                self.with_core(place, |core| core.handle_dial_failed(now, node, refused));
            }
            Happening::LinkDown { link } => {
                if self.nodes[place].ends.remove(&link).is_some() {
                    self.with_core(place, |core| core.handle_link_down(now, link));
                }
            }
            Happening::Frame { link, frame } => self.frame_arrived(place, link, frame),
            Happening::Release { link } => self.release(place, link),
            Happening::Query(query) => self.query(place, query),
            Happening::Statement(query) => _ = self.take_effect(self.nodes[place].id, query),
            Happening::Answer(answer) => self.with_core(place, |core| core.handle_pool(now, answer)),
        }
    }

    fn with_core(&mut self, place: usize, act: impl FnOnce(&mut Core)) {
        if let Some(core) = self.nodes[place].core.as_mut() {
            act(core);
            self.drain(place);
        }
    }

    fn drain(&mut self, place: usize) {
        loop {
            let Some(core) = self.nodes[place].core.as_mut() else { return };
            let output = core.poll_output();
            if let Some(story) = &mut self.story {
                story.watch(self.now, place, core);
            }
            let Some(output) = output else { break };
            self.carry_out(place, output);
        }
        let Some(core) = &self.nodes[place].core else { return };
        let others = self.nodes.iter().filter(|node| !node.paused).filter_map(|node| node.core.as_ref());
        if let Err(wrong) = self.checks.step(core).and_then(|()| self.checks.rules_out_rivals(core, others)) {
            self.fail(&wrong);
        }
    }

    fn carry_out(&mut self, place: usize, output: Output) {
        if let Some(clients) = &mut self.clients {
            clients.output(place, &output);
        }
        match output {
            Output::Send { link, frame } => self.send(place, link, frame),
            Output::Dial { node, address } => self.dial(place, node, &address),
            Output::Hangup { link } => {
                if let Some(end) = self.nodes[place].ends.remove(&link) {
                    self.close_other_end(place, link, end.peer);
                }
            }
            Output::Query(query) => {
                let delay = self.delay(0, 5);
                self.schedule(delay, place, Happening::Query(query));
            }
            Output::Deliver { position: at, proposal, repeated } => {
                let Some(core) = &self.nodes[place].core else { return };
                if let Some(story) = &mut self.story {
                    story.delivers(self.now, core.id(), at.seq, &proposal, repeated);
                }
                if let Err(wrong) = self.checks.delivered(core, at.seq, &proposal, repeated) {
                    self.fail(&wrong);
                }
            }
            Output::Accepted { counter } => {
                let Some(core) = &self.nodes[place].core else { return };
                if let Some(story) = &mut self.story {
                    story.accepts(self.now, PublishId { origin: core.id(), counter });
                }
                if let Err(wrong) = self.checks.accepted(core, counter) {
                    self.fail(&wrong);
                }
            }
            Output::Restarted { missed: true, .. } => {
                let id = self.nodes[place].id;
                self.checks.reset(id);
                self.tell(|| format!("{} has missed entries: its clients are told so", Name(id)));
            }
            Output::CutOff => {
                let id = self.nodes[place].id;
                self.tell(|| format!("{} sends its clients elsewhere", Name(id)));
            }
            Output::Restarted { missed: false, .. }
            | Output::Cut { .. }
            | Output::Diverged { .. }
            | Output::Trimmed { .. } => {}
            Output::ShutDown => {
                let id = self.nodes[place].id;
                self.tables.remove(id);
                let Some(core) = self.nodes[place].core.take() else { return };
                self.tell(|| format!("{} has shut down", Name(id)));
                self.end_life(place, &core);
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
