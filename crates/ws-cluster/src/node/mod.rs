//! This process as a node of the cluster: the task that drives the core, the links to other nodes, the queries to the
//! pool, and the publishes of publishers. Everything here acts; the core decides.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::{delivered_keys::DeliveredKeys, greetings::Greetings, link::LinkIdentity};
use crate::{clock::now, config::Config, error::ServeError, log_limit::LogLimits, pool::Pool, stats::Stats};
use ws_cluster_core::{Degraded, LogPosition, NodeId, PublishId, Seq};

mod cluster;
pub(crate) mod codec;
pub(crate) mod delivered_keys;
mod driver;
mod greetings;
mod ingest;
pub(crate) mod link;
mod links;
mod notes;
mod queries;

pub(crate) use cluster::{Cluster, Submitter, Teller, start};
pub(crate) use notes::{CoreView, Told};

/// The receiver of delivered entries, which is the hub. Only the driver's task calls it, so it must not block.
pub(crate) trait DeliverySink: Send + Sync + 'static {
    /// Delivers entries, in the cluster's order.
    fn deliver(&self, deliveries: Vec<Delivery>);
    /// Writes to the clients what was delivered since the last call.
    fn write(&self);
    /// Notes that the log no longer holds the entries up to `base`.
    fn trimmed(&self, base: Seq);
    /// Notes that the entries after `after` have lost their log positions. They may be delivered again, as repeated.
    fn cut(&self, after: Seq);
    /// Notes that the next entry follows `base`. `missed`: entries before it are missing, since this node was away for
    /// longer than the log reaches.
    fn restarted(&self, base: Option<LogPosition>, missed: bool);
    /// Handles the passage of time. Called some times per second.
    fn tick(&self);
    /// Sends the clients to other nodes (1013), because this node has had no master for 30 s while the cluster has one.
    fn cut_off(&self);
}

/// An entry at its log position.
pub(crate) struct Delivery {
    pub(crate) position: LogPosition,
    pub(crate) id: PublishId,
    /// The number of bytes that the entry counts in the log.
    pub(crate) size: usize,
    /// Present if this node has delivered the publish before, at a log position that was cut. Only connections that
    /// came later may get it.
    pub(crate) repeated: Option<PublishId>,
    /// The encoded content; `None` if there is nothing to deliver at this log position.
    pub(crate) content: Option<Bytes>,
}

/// The server's settings for its node.
pub(crate) struct Settings {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) address: Option<String>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) config: Config,
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) stats: Arc<Stats>,
}

/// The reason why a node cannot continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another node answers at this node's address.
    AddressTaken(String),
    /// The driver's task panicked.
    Stopped,
}

impl Failure {
    /// Returns the state that the node's status reports.
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

/// The state that the links of a node share.
struct Shared {
    identity: LinkIdentity,
    /// Where other nodes reach this one.
    address: String,
    config: Config,
    next_link: AtomicU64,
    /// Limits the links whose peers have not proved the key.
    greetings: Arc<Greetings>,
    /// Limits the log lines that strangers can cause.
    logs: LogLimits<LinkLogCause>,
    /// True once somebody has asked this node, over a link, to shut down.
    drain_requested: watch::Sender<bool>,
    stats: Arc<Stats>,
    /// The rows of an outbox that this node has delivered lately.
    delivered_keys: Mutex<DeliveredKeys>,
    /// The time of the driver's last tick.
    ticked_at: Mutex<Instant>,
}

impl Shared {
    /// Returns true if the driver ticks. A driver may hang in code of the application, such as an authenticator or a
    /// subscriber of the log. The tasks of the links must not make such a node look alive.
    fn driver_works(&self) -> bool {
        now().saturating_duration_since(*self.ticked_at.lock()) <= self.config.cluster.heartbeat_timeout / 2
    }
}

/// The causes of log lines that strangers can trigger as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LinkLogCause {
    Refused,
    Dropped,
}
