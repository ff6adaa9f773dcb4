//! What a node has in either role: its log, its links, what it knows of the pool, the clock, and the outputs for the
//! driver. The methods of a role take it as `cx`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    Body, ClusterConfig, Frame, LinkId, Log, LogConfig, NodeId, Output, Seq, Term, delivered::Delivered, fault::Fault,
    lease::Observation, pending::PendingPublishes, pool_side::PoolSide,
};

/// Bytes of entries or proposals after which a frame is full.
pub(super) const BATCH: usize = 256 * 1024;
/// Maximum number of bytes that a follower was sent and has not acknowledged. They keep a link over a slow network
/// busy, and are few compared with the log.
pub(super) const WINDOW: usize = 4 * 1024 * 1024;

/// An open link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: NodeId,
    /// True if this node dialled it. This node then ends it if it is of no use any more.
    pub(super) dialled: bool,
}

/// A node without its role.
pub(super) struct Context {
    pub(super) me: NodeId,
    pub(super) address: String,
    pub(super) config: ClusterConfig,
    /// The highest known term.
    pub(super) term: Term,
    /// The master of that term, if known.
    pub(super) master: Option<NodeId>,
    /// The last master that was not this node.
    pub(super) predecessor: Option<NodeId>,
    /// The node that had this node's address before it; it is gone.
    pub(super) replaced: Option<NodeId>,
    /// Counts the joins of this node.
    pub(super) joins: u64,
    pub(super) log: Log,
    /// The last entry that was delivered to the own clients.
    pub(super) delivered: Seq,
    /// What the own clients have got, including entries that were cut or trimmed since.
    pub(super) clients_have: Delivered,
    pub(super) pending: PendingPublishes,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// Nodes that this node is dialling.
    pub(super) dialling: BTreeSet<NodeId>,
    pub(super) addresses: BTreeMap<NodeId, String>,
    pub(super) pool: PoolSide,
    pub(super) observation: Observation,
    pub(super) ready: bool,
    /// When the shutdown of this node began.
    pub(super) shutdown_began_at: Option<Instant>,
    /// How many messages were dropped when the log was cut.
    pub(super) dropped: u64,
    pub(super) outputs: VecDeque<Output>,
    /// Bytes of entries or proposals after which a frame is full: [`BATCH`].
    pub(super) batch: usize,
    /// Maximum number of unacknowledged bytes to one follower: [`WINDOW`].
    pub(super) window: usize,
    /// A rule that this core leaves out; only tests of the simulator set it.
    pub(super) fault: Option<Fault>,
    /// The time of the last event.
    pub(super) now: Instant,
}

impl Context {
    pub(super) fn new(now: Instant, me: NodeId, address: String, config: ClusterConfig, log: LogConfig) -> Self {
        Self {
            me,
            address,
            term: 0,
            master: None,
            predecessor: None,
            replaced: None,
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
            ready: false,
            shutdown_began_at: None,
            dropped: 0,
            outputs: VecDeque::new(),
            batch: BATCH,
            window: WINDOW,
            fault: None,
            config,
            now,
        }
    }

    /// Returns the time since `at`.
    pub(super) fn since(&self, at: Instant) -> Duration {
        self.now.saturating_duration_since(at)
    }

    /// Returns true if `interval` has passed since `last`, or there was none.
    pub(super) fn is_due(&self, last: Option<Instant>, interval: Duration) -> bool {
        last.is_none_or(|last| self.since(last) >= interval)
    }

    /// Returns true if this core leaves out the rule that `fault` names.
    pub(super) fn has_fault(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn send(&mut self, link: LinkId, body: Body) {
        self.send_to_all(vec![link], body);
    }

    /// Sends one frame over each of these links.
    pub(super) fn send_to_all(&mut self, links: Vec<LinkId>, body: Body) {
        if !links.is_empty() {
            self.outputs.push_back(Output::Send { links, frame: Frame { term: self.term, body } });
        }
    }

    /// Tells a peer the term and its master.
    pub(super) fn send_term(&mut self, link: LinkId) {
        self.send(link, self.term_and_master());
    }

    pub(super) fn send_term_to_all(&mut self) {
        self.send_to_all(self.links.keys().copied().collect(), self.term_and_master());
    }

    fn term_and_master(&self) -> Body {
        Body::Term { master: self.master.and_then(|master| Some((master, self.address_of(master)?))) }
    }

    fn address_of(&self, node: NodeId) -> Option<String> {
        if node == self.me { Some(self.address.clone()) } else { self.addresses.get(&node).cloned() }
    }

    pub(super) fn note_address(&mut self, node: NodeId, address: &str) {
        if node != self.me {
            self.addresses.insert(node, address.to_owned());
        }
    }

    pub(super) fn link_to(&self, node: NodeId) -> Option<LinkId> {
        self.links.iter().find(|(_, link)| link.peer == node).map(|(&id, _)| id)
    }

    pub(super) fn is_linked_to_master(&self) -> bool {
        self.master.is_some_and(|master| self.link_to(master).is_some())
    }

    /// Ends a link. Returns its peer if the link was open; the role then has lost the link.
    #[must_use]
    pub(super) fn hang_up(&mut self, link: LinkId) -> Option<NodeId> {
        let peer = self.links.remove(&link)?.peer;
        self.outputs.push_back(Output::Hangup { link });
        Some(peer)
    }

    /// Dials every node whose address is known.
    pub(super) fn dial_all(&mut self) {
        let nodes: Vec<NodeId> = self.addresses.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.dial(node));
    }

    /// Dials a node, unless this node is linked to it or is dialling it.
    pub(super) fn dial(&mut self, node: NodeId) {
        if let Some(address) = self.addresses.get(&node)
            && self.link_to(node).is_none()
            && self.dialling.insert(node)
        {
            self.outputs.push_back(Output::Dial { node, address: address.clone() });
        }
    }
}
