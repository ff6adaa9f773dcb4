//! The nodes of a simulation: they start, publish, stop for a while, shut down and crash.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Limits, World,
    events::Happening,
    network::End,
    story::{Name, PublishName},
};
use crate::{ClusterConfig, Core, LinkId, NodeId, PublishId};

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) address: String,
    /// How often it has started.
    pub(super) lives: u16,
    /// How much it has published in this life.
    pub(super) published: u64,
    pub(super) core: Option<Core>,
    /// The rate of its clock, in thousandths of the world's clock.
    pub(super) rate: u32,
    /// True if the process is stopped. Its events wait in `missed`.
    pub(super) paused: bool,
    /// Since when its clock stands still, and for how long it has stood still before.
    pub(super) sleeps_since: Option<Duration>,
    pub(super) slept: Duration,
    pub(super) missed: VecDeque<Happening>,
    pub(super) db_cut: bool,
    /// The links of this node, as the node knows them.
    pub(super) ends: BTreeMap<LinkId, End>,
}

impl Node {
    pub(super) fn new(place: usize, rate: u32) -> Self {
        Self {
            id: NodeId::from_bytes([0; 16]),
            address: format!("ws://node-{place}"),
            lives: 0,
            published: 0,
            core: None,
            rate,
            paused: false,
            sleeps_since: None,
            slept: Duration::ZERO,
            missed: VecDeque::new(),
            db_cut: false,
            ends: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn boot(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        node.lives += 1;
        node.id = Name::id(place, node.lives);
        node.paused = false;
        node.sleeps_since = None;
        node.slept = Duration::ZERO;
        node.published = 0;
        let (id, address, now) = (node.id, node.address.clone(), self.local(place));
        let Limits { log, batch, window, .. } = self.limits.clone();
        let config = ClusterConfig { accept_when_isolated: self.accept_when_isolated, ..ClusterConfig::default() };
        let mut core = Core::new(now, id, address, config, log);
        core.cx.fault = self.fault;
        (core.cx.batch, core.cx.window) = (batch, window);
        self.nodes[place].core = Some(core);
        if let Some(clients) = &mut self.clients {
            clients.boot(place, id);
        }
        self.tell(|| format!("{} boots", Name(id)));
        self.schedule(Duration::ZERO, place, Happening::Tick);
        self.schedule(Duration::from_secs(1), place, Happening::Heartbeats);
    }

    pub(super) fn crash(&mut self, place: usize) {
        let Some(core) = self.nodes[place].core.take() else { return };
        self.tell(|| format!("{} crashes", Name(core.id())));
        self.end_life(place, &core);
    }

    pub(super) fn end_life(&mut self, place: usize, core: &Core) {
        if let Some(clients) = &mut self.clients {
            clients.lose(place);
        }
        self.checks.crashed(core, self.nodes.iter().filter_map(|node| node.core.as_ref()));
        self.nodes[place].missed.clear();
        for (link, end) in std::mem::take(&mut self.nodes[place].ends) {
            self.close_other_end(place, link, end.peer);
        }
    }

    pub(super) fn pause(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{} stops", Name(id)));
        self.nodes[place].paused = true;
    }

    /// Stops a node's machine, and its clock with it.
    pub(super) fn sleep(&mut self, place: usize) {
        let (id, now) = (self.nodes[place].id, self.now);
        self.tell(|| format!("{} falls asleep", Name(id)));
        self.nodes[place].paused = true;
        self.nodes[place].sleeps_since.get_or_insert(now);
    }

    pub(super) fn resume(&mut self, place: usize) {
        let id = self.nodes[place].id;
        self.tell(|| format!("{} goes on", Name(id)));
        self.nodes[place].paused = false;
        let slept = self.nodes[place].sleeps_since.take().map(|since| self.now - since);
        if let Some(slept) = slept {
            self.nodes[place].slept += slept;
            // The driver sees by the wall clock that the machine slept.
            if slept > ClusterConfig::default().heartbeat_timeout {
                let now = self.local(place);
                self.with_core(place, |core| core.handle_standstill(now));
            }
        }
        // The driver handles the tick first.
        let missed = std::mem::take(&mut self.nodes[place].missed);
        let (ticks, others): (Vec<_>, Vec<_>) = missed.into_iter().partition(|what| matches!(what, Happening::Tick));
        for what in ticks.into_iter().chain(others) {
            self.schedule(Duration::ZERO, place, what);
        }
    }

    /// Returns the name of the node at a place.
    pub(super) fn letter(&self, place: usize) -> Name {
        Name(self.nodes[place].id)
    }

    pub(super) fn publish(&mut self, place: usize, content: Bytes, key: Option<Bytes>) {
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

    /// Publishes without carrying out the outputs. Returns the counters; `None` for each publish that was not taken.
    pub(super) fn publish_all(&mut self, place: usize, publishes: Vec<(Bytes, Bytes)>) -> Vec<Option<u64>> {
        let now = self.local(place);
        let node = &mut self.nodes[place];
        let Some(core) = node.core.as_mut() else { return Vec::new() };
        let published = publishes.into_iter().map(|(content, key)| core.publish(now, content, Some(key)).ok());
        let counters: Vec<Option<u64>> = published.collect();
        node.published += counters.iter().flatten().count() as u64;
        counters
    }

    /// Returns the name of this node's next publish.
    pub(super) fn next_publish(&self, place: usize) -> PublishName {
        let node = &self.nodes[place];
        PublishName(PublishId { origin: node.id, counter: node.published + 1 })
    }

    pub(super) fn shut_down(&mut self, place: usize) {
        let now = self.local(place);
        let id = self.nodes[place].id;
        self.tell(|| format!("{} shuts down", Name(id)));
        if let Some(core) = self.nodes[place].core.as_mut() {
            core.shut_down(now);
            self.drain(place);
        }
    }
}
