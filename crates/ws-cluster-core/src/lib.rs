//! The cluster core of [`ws-cluster`](https://docs.rs/ws-cluster) without I/O: membership, leader election and the
//! replicated log of messages, as a state machine. It has no socket, no clock, no runtime and no randomness.
//!
//! A driver passes events to [`Core::publish`] and the `handle_*` methods, each with the current time. It takes
//! instructions from [`Core::poll_output`], and calls [`Core::handle_timeout`] at [`Core::poll_timeout`] at the latest:
//!
//! ```text
//! loop {
//!     while let Some(output) = core.poll_output() { carry out the output }
//!     wait for a frame, a link event, an answer of the pool, a publish or core.poll_timeout(), and pass it to the core
//! }
//! ```
//!
//! | file | content |
//! |---|---|
//! | `output`, `frame`, `pool`, `ids`, `entry`, `config`, `status` | the types of the interface |
//! | `log`, `lineage` | the log of entries, and which master wrote which part of it |
//! | `pending`, `delivered` | publishes that are not in the log yet, and messages that clients have already |
//! | `membership`, `lease`, `sightings` | what the pool says, and which query is next |
//! | `election`, `takeover` | who is master, and how a new master begins |
//! | `master`, `follower`, `order`, `replication` | the way of a message into and through the log |
//! | `tables` | the pool's rules in memory |
//! | `simulator` (feature `simulator`) | many cores on a virtual clock, with faults from a seed |
#![cfg_attr(docsrs, feature(doc_cfg))]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

mod config;
mod delivered;
mod election;
mod entry;
mod fault;
mod follower;
mod frame;
mod ids;
mod lease;
mod lineage;
mod log;
mod master;
mod membership;
mod order;
mod output;
mod pending;
mod pool;
mod replication;
mod sightings;
#[cfg(any(test, feature = "simulator"))]
pub mod simulator;
mod status;
mod tables;
mod takeover;

pub use config::{ClusterConfig, LogConfig};
pub use entry::{Entry, Proposal};
pub use frame::{Body, Frame, Join};
pub use ids::{LinkId, LogPosition, NodeId, PublishId, Seq, Term};
pub use lineage::{Lineage, Span};
pub use log::{Log, Snapshot};
pub use output::{Answer, Output, Query};
pub use pending::Busy;
pub use pool::{Announcement, Lease, NodeRow, PoolView};
pub use status::{Degraded, NodeStatus, Status};
pub use tables::Tables;

use delivered::Delivered;
use election::{Candidacy, Promises};
use fault::Fault;
use follower::Follower;
use lease::Observation;
use master::Master;
use membership::PoolSide;
use pending::PendingPublishes;

/// An open link.
#[derive(Debug)]
struct Link {
    peer: NodeId,
    /// True if this node dialled it. This node then ends it if it is of no use any more.
    dialled: bool,
}

enum Role {
    Follower(Follower),
    Master(Master),
}

/// A node of the cluster, without I/O.
pub struct Core {
    me: NodeId,
    address: String,
    config: ClusterConfig,
    /// The highest known term, and its master if known.
    term: Term,
    master: Option<NodeId>,
    /// The last master that was not this node.
    predecessor: Option<NodeId>,
    role: Role,
    /// Counts the joins of this node.
    joins: u64,
    log: Log,
    /// The last entry that was delivered to the own clients.
    delivered: Seq,
    /// What the own clients have got, including entries that were cut or trimmed since.
    clients_have: Delivered,
    pending: PendingPublishes,
    links: BTreeMap<LinkId, Link>,
    /// Nodes that this node is dialling.
    dialling: BTreeSet<NodeId>,
    addresses: BTreeMap<NodeId, String>,
    pool: PoolSide,
    observation: Observation,
    candidacy: Candidacy,
    promises: Promises,
    ready: bool,
    /// When the shutdown of this node began.
    draining: Option<Instant>,
    ended: bool,
    /// How many messages were dropped when the log was cut.
    dropped: u64,
    outputs: VecDeque<Output>,
    /// Most bytes in one frame, and most unacknowledged bytes to one follower.
    batch: usize,
    window: usize,
    /// A rule that this core leaves out; only tests of the simulator set it.
    fault: Option<Fault>,
    /// The time of the last event, and the time of the last tick.
    now: Instant,
    ticked: Instant,
}

/// Interval of the work that no event triggers.
const TICK: Duration = Duration::from_millis(100);

impl Core {
    /// Makes the core of the node `me`, which other nodes reach at `address`. It starts as a follower with an empty log.
    pub fn new(now: Instant, me: NodeId, address: String, config: ClusterConfig, log: LogConfig) -> Self {
        Self {
            me,
            address,
            term: 0,
            master: None,
            predecessor: None,
            role: Role::Follower(Follower::default()),
            joins: 0,
            log: Log::new(log),
            delivered: 0,
            clients_have: Delivered::default(),
            pending: PendingPublishes::new(me, config.pending_size),
            links: BTreeMap::new(),
            dialling: BTreeSet::new(),
            addresses: BTreeMap::new(),
            pool: PoolSide::default(),
            observation: Observation::default(),
            candidacy: Candidacy::default(),
            promises: Promises::default(),
            ready: false,
            draining: None,
            ended: false,
            dropped: 0,
            outputs: VecDeque::new(),
            batch: replication::BATCH,
            window: master::WINDOW,
            fault: None,
            config,
            now,
            ticked: now,
        }
    }

    /// Takes a publish of this node and returns its counter, which [`Output::Accepted`] names when two nodes hold it.
    ///
    /// # Errors
    /// [`Busy`] if more than [`ClusterConfig::pending_size`] bytes of publishes are pending.
    pub fn publish(&mut self, now: Instant, content: Bytes, key: Option<Bytes>) -> Result<u64, Busy> {
        self.now = now;
        self.pending.publish(now, content, key)
    }

    /// A link is open, and its peer has proved its identity. `dialled` is true in answer to [`Output::Dial`].
    pub fn handle_link_up(&mut self, now: Instant, link: LinkId, peer: NodeId, dialled: bool) {
        self.now = now;
        if dialled {
            self.dialling.remove(&peer);
        }
        self.links.insert(link, Link { peer, dialled });
        self.send_term(link);
    }

    /// A dial failed. `refused` is true if nothing listens at the address, or another node does.
    pub fn handle_dial_failed(&mut self, now: Instant, node: NodeId, refused: bool) {
        self.now = now;
        self.dialling.remove(&node);
        self.dial_failed(node, refused);
    }

    /// A link ended, or was silent for too long.
    pub fn handle_link_down(&mut self, now: Instant, link: LinkId) {
        self.now = now;
        if let Some(Link { peer, .. }) = self.links.remove(&link) {
            self.link_lost(link, peer);
        }
    }

    /// A frame arrived over a link.
    pub fn handle_frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        self.now = now;
        let Some(peer) = self.links.get(&link).map(|link| link.peer) else { return };
        if frame.term < self.term {
            // The answer tells the sender that its term is over.
            return self.send_term(link);
        }
        if frame.term > self.term {
            let master = match &frame.body {
                Body::Term { master } => master.as_ref().map(|(master, _)| *master),
                Body::Fetch { .. } | Body::Welcome { .. } | Body::Append { .. } | Body::Joined => Some(peer),
                Body::Promise | Body::Join(_) | Body::Tail { .. } | Body::Ack { .. } | Body::Propose(_) => None,
            };
            self.follow(frame.term, master);
        }
        match frame.body {
            Body::Term { master } => self.handle_term(link, peer, master),
            Body::Promise => self.handle_promise(peer),
            Body::Join(join) => self.handle_join(link, peer, join),
            Body::Fetch { after } => self.handle_fetch(link, peer, after),
            Body::Tail { snapshot, spans, entries, done } => self.handle_tail(peer, snapshot, &spans, entries, done),
            Body::Welcome { attempt, agreed, snapshot } => self.handle_welcome(link, attempt, agreed, snapshot),
            Body::Append { spans, entries, held } => self.handle_append(link, &spans, entries, held),
            Body::Ack { seq } => self.handle_ack(link, peer, seq),
            Body::Joined => self.handle_joined(link),
            Body::Propose(proposals) => self.handle_propose(link, peer, proposals),
        }
    }

    /// The pool answered the last [`Output::Query`].
    pub fn handle_pool(&mut self, now: Instant, answer: Answer) {
        self.now = now;
        self.pool_answered(answer);
    }

    /// Time passed. Call it at [`poll_timeout`](Self::poll_timeout) at the latest.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.ticked = now;
        if self.ended {
            return;
        }
        self.tick_election();
        self.tick_relay();
        self.tick_shutdown();
    }

    /// Starts the shutdown: a master hands its lease over, and a follower waits for its own publishes.
    /// [`Output::ShutDown`] follows within [`ClusterConfig::shutdown_timeout`].
    pub fn shut_down(&mut self, now: Instant) {
        self.now = now;
        if self.draining.is_none() {
            // Earlier publishes come first.
            self.flush();
            self.draining = Some(now);
            self.ready = false;
            self.tick_shutdown();
        }
    }

    /// Returns the next instruction to the driver, or `None` until the next event.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() && !self.ended {
            self.flush();
            self.ask_pool();
        }
        self.outputs.pop_front()
    }

    /// Returns the time at which to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Instant {
        self.ticked + TICK
    }

    fn send(&mut self, link: LinkId, body: Body) {
        self.outputs.push_back(Output::Send { link, frame: Frame { term: self.term, body } });
    }

    fn send_term(&mut self, link: LinkId) {
        let master = self.master.and_then(|master| Some((master, self.address_of(master)?)));
        self.send(link, Body::Term { master });
    }

    fn address_of(&self, node: NodeId) -> Option<String> {
        if node == self.me { Some(self.address.clone()) } else { self.addresses.get(&node).cloned() }
    }

    fn link_to(&self, node: NodeId) -> Option<LinkId> {
        self.links.iter().find(|(_, link)| link.peer == node).map(|(&id, _)| id)
    }

    fn hang_up(&mut self, link: LinkId) {
        if let Some(Link { peer, .. }) = self.links.remove(&link) {
            self.outputs.push_back(Output::Hangup { link });
            self.link_lost(link, peer);
        }
    }

    /// Dials a node, unless this node is linked to it or is dialling it.
    fn dial(&mut self, node: NodeId) {
        if let Some(address) = self.addresses.get(&node)
            && self.link_to(node).is_none()
            && self.dialling.insert(node)
        {
            self.outputs.push_back(Output::Dial { node, address: address.clone() });
        }
    }

    /// Ends the shutdown if everything is handed over, or its time is over. Called after each step.
    fn tick_shutdown(&mut self) {
        let Some(since) = self.draining.filter(|_| !self.ended) else { return };
        let overdue = self.now.saturating_duration_since(since) >= self.config.shutdown_timeout;
        let through = match &self.role {
            Role::Master(_) => self.hand_over(),
            Role::Follower(_) => self.pending.is_empty(),
        };
        if through || overdue {
            self.ended = true;
            self.links.keys().for_each(|&link| self.outputs.push_back(Output::Hangup { link }));
            self.links.clear();
            self.outputs.push_back(Output::ShutDown);
        }
    }
}
