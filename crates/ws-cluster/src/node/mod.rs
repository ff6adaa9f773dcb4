//! This process as a node of the cluster: the task that feeds the core, the links to other nodes, the questions to the
//! pool, and what publishers bring in. Everything here acts; the core decides.

use std::{sync::Arc, sync::atomic::AtomicU64};

use bytes::Bytes;

use self::{greetings::Greetings, link::LinkIdentity};
use crate::{config::Config, error::ServeError, log_limit::LogLimits, pool::Pool};
use ws_cluster_core::{Degraded, LogPosition, NodeId, PublishId, Seq};

mod cluster;
pub(crate) mod codec;
mod driver;
mod greetings;
mod ingest;
pub(crate) mod link;
mod links;
mod queries;

pub(crate) use cluster::{Cluster, start};

/// Where delivered entries go: the hub. Called from the driver's task only, so nothing here may block.
pub(crate) trait DeliverySink: Send + Sync + 'static {
    /// One entry, in the cluster's order.
    fn deliver(&self, delivery: Delivery);
    /// Writes what was delivered since the last time.
    fn write(&self);
    /// The log no longer holds what is up to this place.
    fn trimmed(&self, base: Seq);
    /// What was delivered after this place has lost its own; it may come again, as repeated.
    fn cut(&self, after: Seq);
    /// What is delivered next follows this place. `missed`: entries are missing before it, since this node was away for
    /// longer than the log reaches.
    fn restarted(&self, base: Option<LogPosition>, missed: bool);
    /// Time passed: some times a second.
    fn tick(&self);
    /// The node has been without a master for 30 s while there is one: send the clients elsewhere (1013).
    fn cut_off(&self);
}

/// An entry at its place in the cluster's one order.
pub(crate) struct Delivery {
    pub(crate) position: LogPosition,
    pub(crate) id: PublishId,
    /// Bytes that it counts in the log.
    pub(crate) size: usize,
    /// Delivered by this node before, at a place that was cut away: only connections that came later may still get it.
    pub(crate) repeated: Option<PublishId>,
    /// Encoded; `None` where there is nothing to deliver at this place.
    pub(crate) content: Option<Bytes>,
}

/// What the server hands to the cluster.
pub(crate) struct Settings {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) address: Option<String>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) config: Config,
    pub(crate) pool: Arc<dyn Pool>,
}

/// Why a node cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another node answers at this node's address.
    AddressTaken(String),
    /// The driver's task panicked.
    Stopped,
}

impl Failure {
    /// Returns what the node's status says.
    pub(super) fn degraded(&self) -> Degraded {
        match self {
            Self::AddressTaken(_) => Degraded::AddressTaken,
            Self::Stopped => Degraded::Stopped,
        }
    }
}

impl From<Failure> for ServeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::AddressTaken(address) => Self::AddressTaken { address },
            Failure::Stopped => Self::Stopped,
        }
    }
}

/// What links need to know.
struct Shared {
    identity: LinkIdentity,
    config: Config,
    next_link: AtomicU64,
    /// Links whose peers have not proved the key.
    greetings: Arc<Greetings>,
    /// Bounds the log lines that strangers can bring about.
    logs: LogLimits<Cause>,
}

/// Causes of log lines that strangers can bring about as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cause {
    Refused,
    GivenUp,
}
