//! The core without I/O: membership, election and the one order of messages, as a state machine. It owns no socket,
//! no clock and no randomness: what happened comes in through `publish` and `handle_*`, each with the time; what is
//! to be done comes out of [`Core::poll_output`]; [`Core::poll_timeout`] says when to look in again.
//!
//! ```text
//! loop {
//!     while let Some(output) = core.poll_output() { carry it out }
//!     wait for a frame, a link, a pool's answer, a publish or core.poll_timeout(), and pass it in
//! }
//! ```
//!
//! The rooms: [`log`](self::log) and [`lineage`] hold the order, [`outbox`] what has no place in it yet, `handed` what the
//! clients have, [`lease`] what the pool's row tells; `membership` reads the pool and decides when to ask it what,
//! `election` decides who is master, `takeover` how a new one begins; `master`, `follower` and `order` are what is done
//! for each message, `relay` what drives them. The driver is in `driver.rs`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    config::{ClusterConfig, LogConfig},
    pool::{Announcement, Lease, PoolView},
};

mod election;
mod entry;
mod follower;
mod frame;
mod handed;
mod lease;
mod lineage;
mod log;
mod master;
mod membership;
mod order;
mod outbox;
mod relay;
mod sightings;
#[cfg(test)]
mod simulator;
mod takeover;

pub(crate) use entry::{Entry, Place, Proposal, Seq, Ticket};
pub(crate) use frame::{Body, Frame, Join};
pub(crate) use lineage::{Lineage, Span};
pub(crate) use log::{Log, Snapshot};
pub(crate) use outbox::Busy;

use election::{Candidacy, Promises};
use follower::Follower;
use handed::Handed;
use lease::Observation;
use master::Master;
use membership::{PoolSide, Trouble};
use outbox::Outbox;

/// One run of one server: 16 random bytes, drawn anew at every start, so that a restarted process is never taken for
/// its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The node with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as the pool stores them and links carry them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight digits tell the nodes of a cluster apart and keep log lines short.
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The number of a mastership. Terms only grow; a term has at most one owner.
pub type Term = u64;

/// A link between two nodes, as the driver numbers them.
pub(crate) type LinkId = u64;

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Output {
    Send {
        link: LinkId,
        frame: Frame,
    },
    /// Reach this node; answered by `handle_link_up` or `handle_dial_failed`.
    Dial {
        node: NodeId,
        address: String,
    },
    Hangup {
        link: LinkId,
    },
    /// Ask the pool; answered by `handle_pool`, one query at a time.
    Query(Query),
    /// Hand the entry to the own clients. `repeated`: this node delivered it before, at a place that was cut away, as
    /// this publish, which is another one of the same key perhaps.
    Deliver {
        place: Place,
        proposal: Proposal,
        repeated: Option<Ticket>,
    },
    /// What was delivered after this place is no longer in the order there; the master may give it another place.
    Cut {
        after: Seq,
    },
    /// Entries left this node's log because the master's log does not have them. `again`: the number that this node
    /// proposes again. `dropped`: the number that is lost, because they are older than the log's age.
    Diverged {
        again: u64,
        dropped: u64,
    },
    /// The log no longer holds what is up to this place.
    Trimmed {
        base: Seq,
    },
    /// What is delivered next follows this place. `missed`: not what was delivered last, since this node was away for
    /// longer than the log reaches.
    Restarted {
        base: Option<Place>,
        missed: bool,
    },
    /// The own publish with this counter is held by two nodes, or by this one that is alone.
    Accepted {
        counter: u64,
    },
    /// Send the clients to other nodes, which have a master while this one finds none.
    CutOff,
    /// The shutdown is through: nothing more comes from this core.
    ShutDown,
}

/// A question to the pool: see the methods of [`Pool`](crate::pool::Pool).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    Read,
    Announce(Announcement),
    Renew { term: Term, owner: NodeId },
    TakeOver { seen: Lease, max_seen: Term },
    HandOver { term: Term, successor: Option<NodeId> },
    Restore { term: Term, owner: Option<NodeId> },
    ClearJoined(NodeId),
    Remove(NodeId),
}

/// The pool's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    View(PoolView),
    /// To `TakeOver`: the new term, if it was won.
    Term(Option<Term>),
    /// To `Renew` and `HandOver`: whether the condition held.
    Held(bool),
    /// To the rest.
    Done,
    /// No answer, or none in time: the query may have taken effect or not.
    Failed,
}

/// How a node stands in its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether the node takes clients: it has joined a master, or become one, since its start, is not draining and
    /// has not been without a master for too long.
    pub ready: bool,
    /// The highest term that it has seen.
    pub term: Term,
    /// The master of that term, as far as the node knows and has a link to it.
    pub master: Option<NodeId>,
    /// Why the node is not at its best, in words: it shuts down, the pool's database does not answer, it has no master
    /// or no link to it, or it is the master and alone although others took part. `None` when all is well. What is
    /// published is relayed all the same, or waits.
    pub degraded: Option<&'static str>,
    /// What the pool's database said last, if `degraded` is about the database.
    pub cause: Option<String>,
    /// Messages that this node has dropped since its start because the cluster went on without them: they were in its
    /// log, but not in the master's when it joined again, and they were older than the log's age. Each time it happens
    /// is logged.
    pub dropped: u64,
    /// The nodes of the pool that were seen lately, in their order.
    pub nodes: Vec<NodeStatus>,
}

/// Another node, or this one, as the pool shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Which run of a server.
    pub node: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// Whether it has joined the present master.
    pub member: bool,
}

/// A link that stands.
#[derive(Debug)]
struct Link {
    peer: NodeId,
    /// This node made it, and ends it when it is of no more use.
    dialled: bool,
}

enum Role {
    Follower(Follower),
    Master(Master),
}

/// A node of the cluster, without I/O.
pub(crate) struct Core {
    me: NodeId,
    address: String,
    config: ClusterConfig,
    /// The highest term seen, and its owner where known.
    term: Term,
    owner: Option<NodeId>,
    /// The last master that was not this node.
    predecessor: Option<NodeId>,
    role: Role,
    /// Counts the joins of this node.
    joins: u64,
    log: Log,
    /// All up to here went to the own clients.
    delivered: Seq,
    /// What went to the own clients, whatever was cut or trimmed since.
    handed: Handed,
    outbox: Outbox,
    links: BTreeMap<LinkId, Link>,
    /// Nodes that are being dialled.
    dialling: BTreeSet<NodeId>,
    addresses: BTreeMap<NodeId, String>,
    pool: PoolSide,
    observation: Observation,
    candidacy: Candidacy,
    promises: Promises,
    ready: bool,
    /// Since when this node is shutting down.
    draining: Option<Instant>,
    ended: bool,
    /// Messages that were dropped when the log was cut.
    dropped: u64,
    outputs: VecDeque<Output>,
    /// Bytes in one frame, and on their way to one follower.
    batch: usize,
    window: usize,
    #[cfg(test)]
    mutant: Option<Mutant>,
    /// The latest time that was passed in, and the time of the last tick.
    now: Instant,
    ticked: Instant,
}

/// Why a node is degraded that shares its address with another one.
const DISPLACED: &str = "another node announces itself at this node's address: give each node an address of its own";

/// Why a master is degraded that others left without leaving the pool.
const ALONE: &str = "alone: the other nodes are not linked";

/// Why a master without followers and without the pool's database is degraded.
const ISOLATED: &str = "isolated: no follower is linked and the pool's database fails; publishes wait";
const ISOLATED_ACCEPTS: &str = "isolated: accept_when_isolated is on, and a failover loses what is accepted now";

/// How often the core looks after things that no event announces.
const TICK: Duration = Duration::from_millis(100);

impl Core {
    pub(crate) fn new(now: Instant, me: NodeId, address: String, config: ClusterConfig, log: LogConfig) -> Self {
        Self {
            me,
            address,
            term: 0,
            owner: None,
            predecessor: None,
            role: Role::Follower(Follower::default()),
            joins: 0,
            log: Log::new(log),
            delivered: 0,
            handed: Handed::default(),
            outbox: Outbox::new(me, config.outbox_size),
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
            batch: relay::BATCH,
            window: master::WINDOW,
            #[cfg(test)]
            mutant: None,
            config,
            now,
            ticked: now,
        }
    }

    /// Takes a publish. The counter comes back in [`Output::Accepted`].
    pub(crate) fn publish(&mut self, now: Instant, content: Bytes, key: Option<Bytes>) -> Result<u64, Busy> {
        self.now = now;
        self.outbox.publish(now, content, key)
    }

    /// A link stands, with its peer proved. `dialled`: in answer to [`Output::Dial`].
    pub(crate) fn handle_link_up(&mut self, now: Instant, link: LinkId, peer: NodeId, dialled: bool) {
        self.now = now;
        if dialled {
            self.dialling.remove(&peer);
        }
        self.links.insert(link, Link { peer, dialled });
        self.send_standing(link);
    }

    /// A dial failed. `refused`: nothing listens at the address, or another node does.
    pub(crate) fn handle_dial_failed(&mut self, now: Instant, node: NodeId, refused: bool) {
        self.now = now;
        self.dialling.remove(&node);
        self.dial_failed(node, refused);
    }

    /// A link ended, or nothing was heard of it for too long.
    pub(crate) fn handle_link_down(&mut self, now: Instant, link: LinkId) {
        self.now = now;
        if let Some(Link { peer, .. }) = self.links.remove(&link) {
            self.link_lost(link, peer);
        }
    }

    pub(crate) fn handle_frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        self.now = now;
        let Some(peer) = self.links.get(&link).map(|link| link.peer) else { return };
        if frame.term < self.term {
            // The answer lets the sender see that it was left behind.
            return self.send_standing(link);
        }
        if frame.term > self.term {
            let owner = match &frame.body {
                Body::Standing { owner } => owner.as_ref().map(|(owner, _)| *owner),
                Body::Fetch { .. } | Body::Welcome { .. } | Body::Append { .. } | Body::Joined => Some(peer),
                Body::Promise | Body::Join(_) | Body::Tail { .. } | Body::Ack { .. } | Body::Propose(_) => None,
            };
            self.follow(frame.term, owner);
        }
        match frame.body {
            Body::Standing { owner } => self.handle_standing(link, peer, owner),
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

    /// The pool's answer to the query that is under way.
    pub(crate) fn handle_pool(&mut self, now: Instant, answer: Answer) {
        self.now = now;
        self.pool_answered(answer);
    }

    /// Time passed: at [`poll_timeout`](Self::poll_timeout), or whenever.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.ticked = now;
        if self.ended {
            return;
        }
        self.tick_election();
        self.tick_relay();
        self.tick_shutdown();
    }

    /// Begins to leave: a master hands over, a follower sees its own publishes through. [`Output::ShutDown`] follows
    /// within the shutdown's time limit.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        self.now = now;
        if self.draining.is_none() {
            // What was published before goes before.
            self.flush();
            self.draining = Some(now);
            self.ready = false;
            self.tick_shutdown();
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() && !self.ended {
            self.flush();
            self.ask_pool();
        }
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.ticked + TICK
    }

    pub(crate) fn status(&self) -> Status {
        let master = match &self.role {
            Role::Master(master) => master.is_serving().then_some(self.me),
            Role::Follower(follower) => self.owner.filter(|_| follower.is_joined()),
        };
        let trouble = self.pool.trouble(self.now, self.config.query_timeout);
        let degraded = match &self.role {
            _ if self.draining.is_some() => Some("shutting down"),
            Role::Master(master) if trouble.is_some() && self.is_isolated(master) => {
                Some(if self.config.accept_when_isolated { ISOLATED_ACCEPTS } else { ISOLATED })
            }
            _ if self.pool.is_displaced(self.now, self.config.member_timeout) => Some(DISPLACED),
            _ if trouble == Some(Trouble::Silent) => Some("the pool's database does not answer"),
            _ if trouble == Some(Trouble::ReadOnly) => Some("the pool's database accepts no writes"),
            Role::Follower(_) if master.is_none() && self.owner.is_some() => Some("no link to the master"),
            _ if master.is_none() => Some("no master"),
            Role::Master(master) if self.is_deserted(master) => Some(ALONE),
            _ => None,
        };
        let view = self.pool.view();
        let nodes = view.nodes.iter().filter(|row| row.age <= self.config.member_timeout);
        let nodes = nodes.map(|row| NodeStatus {
            node: row.node,
            address: row.address.clone(),
            member: row.joined == Some(self.term),
        });
        // Whoever comes before the order has begun would have no place in it.
        let ready = self.ready && self.delivered > 0;
        let (term, dropped) = (self.term, self.dropped);
        Status { ready, term, master, degraded, cause: None, dropped, nodes: nodes.collect() }
    }

    /// Whether nobody else is there, although others took part and did not leave the pool.
    fn is_deserted(&self, master: &Master) -> bool {
        let nobody = master.followers.values().all(|follower| !follower.joined);
        nobody && self.pool.view().nodes.iter().any(|row| master.absent.contains(&row.node))
    }

    fn send(&mut self, link: LinkId, body: Body) {
        self.outputs.push_back(Output::Send { link, frame: Frame { term: self.term, body } });
    }

    fn send_standing(&mut self, link: LinkId) {
        let owner = self.owner.and_then(|owner| Some((owner, self.address_of(owner)?)));
        self.send(link, Body::Standing { owner });
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

    /// Reaches for a node, unless that is under way already.
    fn dial(&mut self, node: NodeId) {
        if let Some(address) = self.addresses.get(&node)
            && self.link_to(node).is_none()
            && self.dialling.insert(node)
        {
            self.outputs.push_back(Output::Dial { node, address: address.clone() });
        }
    }

    /// Leaving, step by step: called whenever something moved.
    fn tick_shutdown(&mut self) {
        let Some(since) = self.draining.filter(|_| !self.ended) else { return };
        let overdue = self.now.saturating_duration_since(since) >= self.config.shutdown_timeout;
        let through = match &self.role {
            Role::Master(_) => self.hand_over(),
            Role::Follower(_) => self.outbox.is_empty(),
        };
        if through || overdue {
            self.ended = true;
            self.links.keys().for_each(|&link| self.outputs.push_back(Output::Hangup { link }));
            self.links.clear();
            self.outputs.push_back(Output::ShutDown);
        }
    }
}

/// A core that lacks one rule, to see that the simulator notices.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// What is cut from the log is not proposed anew.
    ForgetsCut,
    /// What is proposed anew comes in any order.
    ShufflesCut,
    /// The master delivers and accepts at once, although other members are alive.
    AcceptsAlone,
    /// A key that the log has is given another place.
    IgnoresKeys,
}

#[cfg(test)]
impl Core {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
