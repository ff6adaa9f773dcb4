//! The cluster core of [`ws-cluster`](https://docs.rs/ws-cluster) without I/O: membership, leader election and the
//! replicated log of messages, as a state machine. It has no socket, no clock, no runtime and no randomness.
//!
//! A driver passes events to [`Core::publish`] and the `handle_*` methods, each with the current time. It takes
//! instructions from [`Core::poll_output`], and calls [`Core::handle_timeout`] at [`Core::poll_timeout`] at the latest. If
//! the wall clock shows that the machine slept, it calls [`Core::handle_standstill`] before anything else:
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
//! | `context`, `log_ops` | what a node has in either role, and what it does with its log |
//! | `membership`, `pool_side`, `lease`, `sightings` | what the pool says, and which query is next |
//! | `election`, `takeover`, `shutdown` | who is master, how a new master begins, and how a node leaves |
//! | `master`, `follower` | the two roles: the way of a message into and through the log |
//! | `progress`, `acknowledgers` | what the master knows of its followers, and which of them acknowledge at once |
//! | `tables` | the pool's rules in memory |
//! | `simulator` (feature `simulator`) | many cores on a virtual clock, with faults from a seed |
#![cfg_attr(docsrs, feature(doc_cfg))]

use std::time::{Duration, Instant};

use bytes::Bytes;

mod acknowledgers;
mod config;
mod context;
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
mod log_ops;
mod master;
mod membership;
mod output;
mod pending;
mod pool;
mod pool_side;
mod progress;
mod shutdown;
mod sightings;
#[cfg(any(test, feature = "simulator"))]
pub mod simulator;
mod status;
mod tables;
mod takeover;

pub use config::{ClusterConfig, LogConfig};
pub use entry::{Entry, Proposal};
pub use frame::{Body, Frame, Join};
pub use ids::{LinkId, LogPosition, NodeId, ParseNodeIdError, PublishId, Seq, Term};
pub use lineage::{Lineage, Span};
pub use log::{Log, Snapshot};
pub use output::{Answer, Output, Query};
pub use pending::Busy;
pub use pool::{Announcement, Lease, NodeRow, PoolView};
pub use status::{Degraded, FollowerStatus, LogStatus, NodeStatus, Status};
pub use tables::Tables;

use context::{Context, Link};
use follower::Follower;
use master::Master;

/// A node of the cluster, without I/O.
pub struct Core {
    role: Role,
    cx: Context,
    /// True if the shutdown is complete.
    ended: bool,
    /// The time of the last tick.
    ticked_at: Instant,
}

enum Role {
    Follower(Follower),
    Master(Master),
}

/// Interval of the work that no event triggers.
const TICK: Duration = Duration::from_millis(100);

impl Core {
    /// Makes the core of the node `me`, which other nodes reach at `address`. It starts as a follower with an empty
    /// log.
    pub fn new(now: Instant, me: NodeId, address: String, config: ClusterConfig, log: LogConfig) -> Self {
        let cx = Context::new(now, me, address, config, log);
        Self { role: Role::Follower(Follower::default()), cx, ended: false, ticked_at: now }
    }

    /// Takes a publish of this node and returns its counter, which [`Output::Accepted`] names when two nodes hold it.
    ///
    /// # Errors
    /// [`Busy`] if more than [`ClusterConfig::pending_size`] bytes of publishes are pending.
    pub fn publish(&mut self, now: Instant, content: Bytes, key: Option<Bytes>) -> Result<u64, Busy> {
        self.cx.now = now;
        self.cx.pending.publish(now, content, key)
    }

    /// A link is open, and its peer has proved its identity. `dialled` is true in answer to [`Output::Dial`].
    pub fn handle_link_up(&mut self, now: Instant, link: LinkId, peer: NodeId, dialled: bool) {
        self.cx.now = now;
        if dialled {
            self.cx.dialling.remove(&peer);
        }
        self.cx.links.insert(link, Link { peer, dialled });
        self.cx.send_term(link);
    }

    /// A dial failed. `refused` is true if nothing listens at the address, or another node does.
    pub fn handle_dial_failed(&mut self, now: Instant, node: NodeId, refused: bool) {
        self.cx.now = now;
        self.cx.dialling.remove(&node);
        match &mut self.role {
            Role::Follower(follower) => follower.dial_failed(&mut self.cx, node, refused),
            Role::Master(master) => master.dial_failed(&mut self.cx, node, refused),
        }
    }

    /// A link ended, or was silent for too long.
    pub fn handle_link_down(&mut self, now: Instant, link: LinkId) {
        self.cx.now = now;
        let Some(Link { peer, .. }) = self.cx.links.remove(&link) else { return };
        match &mut self.role {
            Role::Follower(follower) => follower.link_lost(&mut self.cx, link),
            Role::Master(master) => master.link_lost(&mut self.cx, link, peer),
        }
    }

    /// A frame arrived over a link.
    pub fn handle_frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        self.cx.now = now;
        let Some(peer) = self.cx.links.get(&link).map(|link| link.peer) else { return };
        if frame.term < self.cx.term {
            // The answer tells the sender that its term is over.
            return self.cx.send_term(link);
        }
        if frame.term > self.cx.term {
            let master = match &frame.body {
                Body::Term { master } => master.as_ref().map(|(master, _)| *master),
                Body::Fetch { .. } | Body::Welcome { .. } | Body::Append { .. } | Body::Joined | Body::Defer(_) => {
                    Some(peer)
                }
                Body::Promise | Body::Join(_) | Body::Tail { .. } | Body::Ack { .. } | Body::Propose(_) => None,
            };
            self.follow(frame.term, master);
        }
        let cx = &mut self.cx;
        if let Body::Term { master: Some((master, address)) } = &frame.body {
            cx.note_address(*master, address);
        }
        match (&mut self.role, frame.body) {
            (_, Body::Fetch { after }) => cx.handle_fetch(link, peer, after),
            (Role::Follower(follower), body) => match body {
                Body::Term { master: Some((master, _)) } => follower.handle_term(cx, link, peer, master),
                Body::Promise => follower.handle_promise(cx, peer),
                Body::Welcome { attempt, agreed, snapshot } => {
                    follower.handle_welcome(cx, link, attempt, agreed, snapshot);
                }
                Body::Append { spans, entries, held_by_all } => {
                    follower.handle_append(cx, link, &spans, entries, held_by_all);
                }
                Body::Joined => follower.handle_joined(cx, link),
                Body::Defer(defer) => follower.handle_defer(link, defer),
                // Only a master handles the other frames.
                _ => {}
            },
            (Role::Master(master), body) => match body {
                Body::Join(join) => master.handle_join(cx, link, peer, join),
                Body::Tail { snapshot, spans, entries, done } => {
                    master.handle_tail(cx, peer, snapshot, &spans, entries, done);
                }
                Body::Ack { seq } => master.handle_ack(cx, link, peer, seq),
                Body::Propose(proposals) => master.handle_propose(cx, link, peer, proposals),
                // Only a follower handles the other frames.
                _ => {}
            },
        }
    }

    /// The pool answered the last [`Output::Query`].
    pub fn handle_pool(&mut self, now: Instant, answer: Answer) {
        self.cx.now = now;
        self.pool_answered(answer);
    }

    /// Time passed. Call it at [`poll_timeout`](Self::poll_timeout) at the latest, and before any event that arrived
    /// meanwhile.
    pub fn handle_timeout(&mut self, now: Instant) {
        let stood_still = now.saturating_duration_since(self.ticked_at) > self.cx.config.heartbeat_timeout;
        self.cx.now = now;
        self.ticked_at = now;
        if self.ended {
            return;
        }
        if stood_still {
            self.handle_standstill(now);
        }
        match &mut self.role {
            Role::Follower(follower) => follower.tick(&mut self.cx),
            Role::Master(master) => master.tick(&mut self.cx),
        }
        self.cx.pending.forget(now, self.cx.log.age());
        self.tick_shutdown();
    }

    /// This process or its machine stood still for longer than [`ClusterConfig::heartbeat_timeout`].
    /// [`handle_timeout`](Self::handle_timeout) notices this by itself, unless the clock stood still too, as it does
    /// while a machine sleeps. The peers have given the links up, so what still arrives over them is of the past; and
    /// nothing that the pool has shown holds any more.
    pub fn handle_standstill(&mut self, now: Instant) {
        self.cx.now = now;
        self.cx.pool.distrust();
        self.cx.observation.failed();
        let links: Vec<LinkId> = self.cx.links.keys().copied().collect();
        for link in links {
            match &mut self.role {
                Role::Follower(follower) => follower.hang_up(&mut self.cx, link),
                Role::Master(master) => master.hang_up(&mut self.cx, link),
            }
        }
    }

    /// Starts the shutdown: a master hands its lease over, and a follower waits for its own publishes.
    /// [`Output::ShutDown`] follows within [`ClusterConfig::shutdown_timeout`].
    pub fn shut_down(&mut self, now: Instant) {
        self.cx.now = now;
        if self.cx.shutdown_began_at.is_none() {
            // Earlier publishes come first.
            self.flush();
            self.cx.shutdown_began_at = Some(now);
            self.cx.ready = false;
            self.tick_shutdown();
        }
    }

    /// Returns the next instruction to the driver, or `None` until the next event.
    #[must_use = "the core does nothing until the driver carries the output out"]
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.cx.outputs.is_empty() && !self.ended {
            self.flush();
            self.ask_pool();
        }
        self.cx.outputs.pop_front()
    }

    /// Returns the time at which to call [`handle_timeout`](Self::handle_timeout) at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.ticked_at + TICK
    }

    /// Sends what accumulated while the driver worked. A busy node thus sends fewer, larger frames.
    fn flush(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.flush(&mut self.cx),
            Role::Master(master) => master.flush(&mut self.cx),
        }
    }

    /// Enters a higher term, as a follower of `master` if it is known.
    fn follow(&mut self, term: Term, master: Option<NodeId>) {
        let cx = &mut self.cx;
        debug_assert!(term > cx.term, "terms only grow");
        cx.term = term;
        cx.master = None;
        cx.pool.lost.clear();
        cx.pool.urgent = None;
        let mut follower = Follower::default();
        follower.set_master(cx, master);
        self.role = Role::Follower(follower);
        cx.send_term_to_all();
    }

    /// Becomes the master of `term`, as the pool says. `took_at`: when it asked for the lease, if the answer shows that
    /// it has taken it.
    fn become_master(&mut self, term: Term, took_at: Option<Instant>) {
        let cx = &mut self.cx;
        cx.term = term;
        cx.master = Some(cx.me);
        cx.replaced = None;
        cx.pool.begin_term(took_at);
        cx.send_term_to_all();
        let mut master = Master::new(cx);
        master.collect(cx);
        self.role = Role::Master(master);
    }
}
