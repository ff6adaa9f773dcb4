//! The clients of the simulated nodes. The core does not know clients, so the crate that serves clients implements
//! them.

use std::time::Duration;

use bytes::Bytes;

use super::{Checks, Random, World, story::Name};
use crate::{Core, NodeId, Output, Seq, Status};

/// Clients of all nodes of a simulation. Nodes are numbered from 0.
pub trait Clients {
    /// A node started, under a new id.
    fn boot(&mut self, node: usize, id: NodeId);

    /// A node ended. Everything on its way to the node's clients is lost.
    fn lose(&mut self, node: usize);

    /// The core of a node has this output.
    fn output(&mut self, node: usize, output: &Output);

    /// The core of a node has no further output until its next event.
    fn outputs_end(&mut self, _node: usize) {}

    /// Lets the clients act. `ready` are the nodes that take clients. If `calm` is true, no client leaves its node.
    ///
    /// # Errors
    /// Describes what a client got that it must not get.
    fn step(
        &mut self,
        now: Duration,
        random: &mut Random,
        ready: &[usize],
        calm: bool,
        history: &Checks,
    ) -> Result<(), String>;

    /// Lets a node that runs do what it does besides, such as reading a table. Returns what it publishes, each with an
    /// idempotency key.
    fn work(&mut self, _now: Duration, _random: &mut Random, _node: usize, _status: &Status) -> Vec<(Bytes, Bytes)> {
        Vec::new()
    }

    /// The counters of these publishes; `None` for each that was not taken.
    fn published(&mut self, _node: usize, _counters: Vec<Option<u64>>) {}

    /// Returns true if every client has got everything up to the entry `end`.
    fn is_settled(&self, end: Seq) -> bool;
}

impl World {
    /// Adds clients to a world that has just begun.
    pub(super) fn with_clients(mut self, mut clients: Box<dyn Clients>) -> Self {
        (0..self.nodes.len()).for_each(|place| clients.boot(place, self.nodes[place].id));
        self.clients = Some(clients);
        self
    }

    /// Lets the clients act, if the run has any.
    pub(super) fn clients_step(&mut self, calm: bool) {
        let Some(clients) = &mut self.clients else { return };
        let takes = |place: &usize| {
            let node = &self.nodes[*place];
            !node.paused && node.core.as_ref().is_some_and(|core| core.status().ready)
        };
        let ready: Vec<usize> = (0..self.nodes.len()).filter(takes).collect();
        if let Err(wrong) = clients.step(self.now, &mut self.rng, &ready, calm, &self.checks) {
            self.fail(&wrong);
        }
        (0..self.nodes.len()).for_each(|place| self.node_works(place));
    }

    fn node_works(&mut self, place: usize) {
        let (node, now) = (&self.nodes[place], self.now);
        let (Some(core), Some(clients), false) = (&node.core, &mut self.clients, node.paused) else { return };
        let publishes = clients.work(now, &mut self.rng, place, &core.status());
        if publishes.is_empty() {
            return;
        }
        let counters = self.publish_all(place, publishes);
        if let Some(clients) = &mut self.clients {
            clients.published(place, counters);
        }
        self.drain(place);
    }

    /// All has healed: publishes a last message, and waits until every client has it.
    pub(super) fn clients_settle(&mut self) {
        let serves = |place: &usize| self.nodes[*place].core.as_ref().is_some_and(Core::is_serving_master);
        let master = (0..self.nodes.len()).find(serves).unwrap_or(0);
        self.publish(master, "the last one".into(), None);
        for _ in 0..200 {
            self.run(Duration::from_millis(200));
            self.clients_step(true);
            let end = self.nodes.iter().filter_map(|node| node.core.as_ref()).map(|core| core.end().1).max();
            if self.clients.as_ref().is_none_or(|clients| clients.is_settled(end.unwrap_or(0))) {
                return;
            }
        }
        let names: Vec<_> = self.nodes.iter().map(|node| Name(node.id).to_string()).collect();
        self.fail(&format!("the clients of {} do not come to the end", names.join(", ")));
    }
}
