//! A cluster of cores on a virtual clock: one seed decides about every delay, fault and publish, so that a run that
//! goes wrong goes wrong again. This file is the world (network, pool, time); `checks` holds what must be true at
//! every step; `runs` the runs themselves.

mod checks;
mod runs;
mod seeds;

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Answer, Core, Frame, LinkId, Mutant, NodeId, Output, Query};
use crate::{
    config::{ClusterConfig, LogConfig},
    pool::memory::Tables,
};
use checks::Checks;
use seeds::go_wrong;

const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);

/// A small generator of the splitmix family: the runs need speed and repeatability, not quality.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000 + 1))
    }
}

struct Node {
    id: NodeId,
    address: String,
    core: Option<Core>,
    /// Its clock runs at this many thousandths of the world's.
    rate: u32,
    /// Stopped: what happens to it waits in `missed`.
    paused: bool,
    missed: VecDeque<Happening>,
    db_cut: bool,
    /// The links of this node, as it knows them: the peer's place and when it was last heard of.
    ends: BTreeMap<LinkId, End>,
}

struct End {
    peer: usize,
    heard: Duration,
    /// Frames under way to this end arrive in their order.
    arrival: Duration,
    /// Frames that a cut holds back.
    held: VecDeque<Frame>,
}

#[derive(Clone, Debug)]
enum Happening {
    Tick,
    Dialled { by: usize, link: LinkId },
    DialFailed { node: NodeId, refused: bool },
    LinkUp { link: LinkId, peer: usize },
    LinkDown { link: LinkId },
    Frame { link: LinkId, frame: Frame },
    Release { link: LinkId },
    Answer(Answer),
    Query(Query),
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
    rng: Rng,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Event>,
    order: u64,
    links: LinkId,
    incarnations: u32,
    nodes: Vec<Node>,
    tables: Tables,
    db_down: bool,
    /// The longest time that the database takes for an answer, in milliseconds.
    db_delay: u64,
    /// Of a hundred queries, how many lose their answer after they took effect.
    lost_answers: u64,
    /// Directions in which nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    /// Added to the delay of a direction.
    slow: BTreeMap<(usize, usize), Duration>,
    checks: Checks,
    /// What happened, where somebody wants to read it.
    story: Option<VecDeque<String>>,
    mutant: Option<Mutant>,
}

impl World {
    fn new(seed: u64, size: usize, mutant: Option<Mutant>, story: bool) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            start: Instant::now(),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            order: 0,
            links: 0,
            incarnations: 0,
            nodes: Vec::new(),
            tables: Tables::default(),
            db_down: false,
            db_delay: 5,
            lost_answers: 0,
            cuts: BTreeSet::new(),
            slow: BTreeMap::new(),
            checks: Checks::default(),
            story: story.then(VecDeque::new),
            mutant,
        };
        for place in 0..size {
            let rate = 950 + world.rng.below(100) as u32;
            world.nodes.push(Node {
                id: NodeId::from_bytes([0; 16]),
                address: format!("ws://node-{place}"),
                core: None,
                rate,
                paused: false,
                missed: VecDeque::new(),
                db_cut: false,
                ends: BTreeMap::new(),
            });
            world.boot(place);
        }
        world
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push_back(format!("{:>9.3}  {}", self.now.as_secs_f64(), line()));
            if story.len() > 400 {
                story.pop_front();
            }
        }
    }

    fn boot(&mut self, place: usize) {
        self.incarnations += 1;
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[place as u8 + 0xa0, self.incarnations as u8]);
        id[2..6].copy_from_slice(&self.incarnations.to_be_bytes());
        let id = NodeId::from_bytes(id);
        let now = self.local(place);
        let log = LogConfig { count: 60, ..LogConfig::default() };
        let node = &mut self.nodes[place];
        node.id = id;
        node.paused = false;
        let core = Core::new(now, id, node.address.clone(), ClusterConfig::default(), log);
        node.core = Some(Core { mutant: self.mutant, ..core });
        self.tell(|| format!("{id:?} boots at {place}"));
        self.schedule(Duration::ZERO, place, Happening::Tick);
        self.schedule(Duration::from_secs(1), place, Happening::Heartbeats);
    }

    fn crash(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{id:?} crashes"));
        let Some(core) = self.nodes[place].core.take() else { return };
        self.checks.crashed(&core, self.nodes.iter().filter_map(|node| node.core.as_ref()));
        self.nodes[place].missed.clear();
        for (link, end) in std::mem::take(&mut self.nodes[place].ends) {
            self.close_other_end(place, link, end.peer);
        }
    }

    fn pause(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{id:?} stops"));
        self.nodes[place].paused = true;
    }

    fn resume(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{id:?} goes on"));
        self.nodes[place].paused = false;
        for what in std::mem::take(&mut self.nodes[place].missed) {
            self.schedule(Duration::ZERO, place, what);
        }
    }

    fn cut_database(&mut self, place: usize, cut: bool) {
        self.nodes[place].db_cut = cut;
    }

    fn publish(&mut self, place: usize, key: Option<Bytes>) {
        let now = self.local(place);
        let node = &mut self.nodes[place];
        if node.paused {
            return;
        }
        let Some(core) = node.core.as_mut() else { return };
        if core.publish(now, Bytes::from_static(b"message"), key).is_ok() {
            self.drain(place);
        }
    }

    fn shut_down(&mut self, place: usize) {
        let now = self.local(place);
        let id = self.nodes[place].id;
        self.tell(|| format!("{id:?} shuts down"));
        if let Some(core) = self.nodes[place].core.as_mut() {
            core.shut_down(now);
            self.drain(place);
        }
    }

    fn heal(&mut self) {
        self.tell(|| "all heals".into());
        self.cuts.clear();
        self.slow.clear();
        self.db_down = false;
        self.lost_answers = 0;
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
            if self.nodes[place].id == incarnation && self.nodes[place].core.is_some() {
                self.happen(place, *what);
            }
        }
        self.now = end;
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
            if let Happening::Query(query) = what {
                return self.query(place, query);
            }
            return self.nodes[place].missed.push_back(what);
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
            Happening::Dialled { by, link } => {
                let peer = self.nodes[by].id;
                if self.nodes[by].core.is_none() {
                    return;
                }
                let delay = self.rng.millis(0, 3);
                self.open_end(place, link, by, Duration::ZERO);
                self.open_end(by, link, place, delay);
                self.schedule(delay, by, Happening::LinkUp { link, peer: place });
                self.with_core(place, |core| core.handle_link_up(now, link, peer, false));
            }
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
            Happening::Frame { link, frame } => {
                let Some(end) = self.nodes[place].ends.get(&link) else { return };
                if end.held.is_empty() && !self.cuts.contains(&(end.peer, place)) {
                    return self.with_core(place, |core| core.handle_frame(now, link, frame));
                }
                // It waits in the network, in its order, until the cut is healed or the link given up.
                if end.held.is_empty() {
                    self.schedule(Duration::from_millis(50), place, Happening::Release { link });
                }
                self.nodes[place].ends.entry(link).and_modify(|end| end.held.push_back(frame));
            }
            Happening::Release { link } => {
                let Some(end) = self.nodes[place].ends.get_mut(&link) else { return };
                if self.cuts.contains(&(end.peer, place)) {
                    return self.schedule(Duration::from_millis(50), place, Happening::Release { link });
                }
                for frame in std::mem::take(&mut end.held) {
                    self.with_core(place, |core| core.handle_frame(now, link, frame));
                }
            }
            Happening::Query(query) => self.query(place, query),
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
            let Some(output) = core.poll_output() else { break };
            self.carry_out(place, output);
        }
        let Some(core) = &self.nodes[place].core else { return };
        let others = self.nodes.iter().filter(|node| !node.paused).filter_map(|node| node.core.as_ref());
        if let Err(wrong) = self.checks.step(core).and_then(|()| self.checks.reigns_alone(core, others)) {
            self.fail(&wrong);
        }
    }

    fn carry_out(&mut self, place: usize, output: Output) {
        match output {
            Output::Send { link, frame } => {
                let Some(peer) = self.nodes[place].ends.get(&link).map(|end| end.peer) else { return };
                let mut delay = self.rng.millis(0, 3);
                delay += self.slow.get(&(place, peer)).copied().unwrap_or_default();
                // Both ends know the link: what is under way to the other arrives in order.
                if let Some(end) = self.nodes[peer].ends.get_mut(&link) {
                    let at = (self.now + delay).max(end.arrival);
                    end.arrival = at;
                    self.schedule(at - self.now, peer, Happening::Frame { link, frame });
                }
            }
            Output::Dial { node, address } => self.dial(place, node, &address),
            Output::Hangup { link } => {
                if let Some(end) = self.nodes[place].ends.remove(&link) {
                    self.close_other_end(place, link, end.peer);
                }
            }
            Output::Query(query) => {
                let delay = self.rng.millis(0, 5);
                self.schedule(delay, place, Happening::Query(query));
            }
            Output::Deliver { place: at, proposal, repeated } => {
                let Some(core) = &self.nodes[place].core else { return };
                if let Err(wrong) = self.checks.delivered(core, at.seq, proposal.ticket, repeated) {
                    self.fail(&wrong);
                }
            }
            Output::Accepted { counter } => {
                let id = self.nodes[place].id;
                self.checks.accepted(id, counter);
            }
            Output::Restarted { missed: true, .. } => {
                let id = self.nodes[place].id;
                self.checks.reset(id);
            }
            Output::Restarted { missed: false, .. } | Output::Cut { .. } | Output::Trimmed { .. } | Output::CutOff => {}
            Output::ShutDown => {
                let id = self.nodes[place].id;
                self.tables.remove(id);
                self.crash(place);
            }
        }
    }

    fn dial(&mut self, by: usize, node: NodeId, address: &str) {
        let Some(place) = self.nodes.iter().position(|one| one.address == address) else { return };
        let target = &self.nodes[place];
        let cut = self.cuts.contains(&(by, place)) || self.cuts.contains(&(place, by));
        if cut || target.paused {
            self.schedule(Duration::from_secs(2), by, Happening::DialFailed { node, refused: false });
        } else if target.core.is_none() || target.id != node {
            let delay = self.rng.millis(0, 2);
            self.schedule(delay, by, Happening::DialFailed { node, refused: true });
        } else {
            self.links += 1;
            let link = self.links;
            let delay = self.rng.millis(0, 3);
            self.schedule(delay, place, Happening::Dialled { by, link });
        }
    }

    fn open_end(&mut self, place: usize, link: LinkId, peer: usize, after: Duration) {
        self.nodes[place]
            .ends
            .insert(link, End { peer, heard: self.now, arrival: self.now + after, held: VecDeque::new() });
    }

    fn close_other_end(&mut self, place: usize, link: LinkId, peer: usize) {
        // Nobody hears of it through a cut: that end finds out by silence.
        if !self.cuts.contains(&(place, peer)) {
            let last = self.nodes[peer].ends.get(&link).map_or(self.now, |end| end.arrival.max(self.now));
            self.schedule(last - self.now, peer, Happening::LinkDown { link });
        }
    }

    fn heartbeats(&mut self, place: usize) {
        let now = self.now;
        let mut dead = Vec::new();
        for (&link, end) in &self.nodes[place].ends {
            let peer = &self.nodes[end.peer];
            let speaks = peer.core.is_some() && !peer.paused && peer.ends.contains_key(&link);
            if speaks && !self.cuts.contains(&(end.peer, place)) {
                continue;
            }
            if now - end.heard > HEARTBEAT_TIMEOUT {
                dead.push((link, end.peer));
            }
        }
        for end in self.nodes[place].ends.keys().copied().collect::<Vec<_>>() {
            let peer = self.nodes[place].ends[&end].peer;
            let silent = self.nodes[peer].core.is_none()
                || self.nodes[peer].paused
                || !self.nodes[peer].ends.contains_key(&end)
                || self.cuts.contains(&(peer, place));
            if !silent && let Some(end) = self.nodes[place].ends.get_mut(&end) {
                end.heard = now;
            }
        }
        for (link, peer) in dead {
            self.nodes[place].ends.remove(&link);
            self.close_other_end(place, link, peer);
            let local = self.local(place);
            self.with_core(place, |core| core.handle_link_down(local, link));
        }
    }

    fn query(&mut self, place: usize, query: Query) {
        let id = self.nodes[place].id;
        if self.db_down || self.nodes[place].db_cut {
            let delay = self.rng.millis(0, 2000);
            return self.schedule(delay, place, Happening::Answer(Answer::Failed));
        }
        let lease = match query {
            Query::TakeOver { .. } | Query::HandOver { .. } => self.tables.read(self.now).lease,
            _ => None,
        };
        let told = lease.filter(|_| self.story.is_some()).map(|_| format!("{id:?} asks {query:?}"));
        let answer = match query {
            Query::Read => Answer::View(self.tables.read(self.now)),
            Query::Announce(announcement) => {
                self.tables.announce(self.now, &announcement);
                Answer::Done
            }
            Query::Renew { term, owner } => Answer::Held(self.tables.renew(term, owner)),
            Query::TakeOver { seen, max_seen } => Answer::Term(self.tables.take_over(&seen, max_seen, id)),
            Query::HandOver { term, successor } => Answer::Held(self.tables.hand_over(term, id, successor)),
            Query::Restore { term, owner } => {
                self.tables.restore(term, owner);
                Answer::Done
            }
            Query::ClearJoined(node) => {
                self.tables.clear_joined(node);
                Answer::Done
            }
            Query::Remove(node) => {
                self.tables.remove(node);
                Answer::Done
            }
        };
        if let Some(told) = told {
            self.tell(|| format!("{told}: {answer:?}"));
        }
        let lost = self.rng.below(100) < self.lost_answers;
        let (delay, answer) = if lost {
            (Duration::from_secs(2), Answer::Failed)
        } else {
            (self.rng.millis(self.db_delay * 9 / 10, self.db_delay), answer)
        };
        self.schedule(delay, place, Happening::Answer(answer));
    }

    fn fail(&self, wrong: &str) -> ! {
        if let Some(story) = &self.story {
            story.iter().for_each(|line| println!("{line}"));
            for core in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
                println!("{}", core.summary());
            }
        }
        go_wrong(wrong.to_owned())
    }
}
