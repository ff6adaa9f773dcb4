//! The settings of the core.

/// Defines a method for each named field of a struct that consumes the struct and sets the field.
#[doc(hidden)]
#[macro_export]
macro_rules! setters {
    ($config:ident { $($field:ident: $type:ty),* $(,)? }) => {
        impl $config {
            $(
                #[doc = concat!("Sets the field `", stringify!($field), "`.")]
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

use std::time::Duration;

/// Intervals of pool, election and links. All nodes of a cluster should use the same.
///
/// [`lease`](Self::lease) is the one interval to choose: the method sets all intervals that depend on it, and replaces
/// what their fields had before. So call it first, and then set the fields of single intervals, which only unusual
/// databases and networks need. Setting the field `lease` changes no other interval.
///
/// ```
/// use std::time::Duration;
///
/// use ws_cluster_core::ClusterConfig;
///
/// let config = ClusterConfig::default().lease(Duration::from_secs(10)).publish_timeout(Duration::from_secs(3));
/// assert_eq!(config.renew_interval, Duration::from_secs(2));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// How long the lease must not change before another node takes over without asking the other members. Default
    /// 5 s. A longer lease than the database takes to restart avoids needless elections; a shorter one replaces a lost
    /// master sooner.
    pub lease: Duration,
    /// How often the master renews its lease. A fifth of `lease`: 1 s.
    pub renew_interval: Duration,
    /// How often a node announces itself in the pool. Two fifths of `lease`: 2 s.
    pub seen_interval: Duration,
    /// Age of a node's row from which the node no longer counts as a member. Twice `lease`: 10 s.
    pub member_timeout: Duration,
    /// Age at which the master removes a row. Twelve times `lease`: 60 s.
    pub dead_timeout: Duration,
    /// Time limit of one query to the pool. Two fifths of `lease`: 2 s.
    pub query_timeout: Duration,
    /// How much later each further node of the pool tries to take an expired lease. A tenth of `lease`: 500 ms. It must
    /// be longer than a query takes.
    pub rank_delay: Duration,
    /// How often an idle link carries a heartbeat. A fifth of `lease`: 1 s.
    pub heartbeat_interval: Duration,
    /// Silence after which a link is dead. Four fifths of `lease`: 4 s.
    pub heartbeat_timeout: Duration,
    /// Time between two attempts to reach a node. A tenth of `lease`: 500 ms.
    pub redial_interval: Duration,
    /// Time that a new master waits for the log of each member. Two fifths of `lease`: 2 s.
    pub collect_timeout: Duration,
    /// Bytes of publishes that may wait for a master; further ones are refused as busy. Default 16 MiB.
    pub pending_size: usize,
    /// Time after which a node without a master sends its clients to other nodes (1013), if the pool shows that there
    /// is a master. Default 30 s.
    pub cut_off_timeout: Duration,
    /// Time limit of a shutdown for its handlers, and again for the hand-over of the lease. Default 5 s.
    pub shutdown_timeout: Duration,
    /// Time that a publish waits to be accepted; after that its outcome is unknown. Default 5 s.
    pub publish_timeout: Duration,
    /// Prefers availability to durability. A master that has lost all its followers then accepts and delivers messages
    /// although it cannot read the pool. Such messages are lost if the other nodes have elected another master, or if
    /// this node ends before it is linked again. Default `false`: publishes wait, and after `publish_timeout` their
    /// outcome is unknown.
    pub accept_when_isolated: bool,
}

impl ClusterConfig {
    /// Sets the lease and every interval that depends on it. This replaces values that these intervals had before.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        let fifth = lease / 5;
        Self {
            lease,
            renew_interval: fifth,
            seen_interval: fifth * 2,
            member_timeout: lease * 2,
            dead_timeout: lease * 12,
            query_timeout: fifth * 2,
            rank_delay: lease / 10,
            heartbeat_interval: fifth,
            heartbeat_timeout: fifth * 4,
            redial_interval: lease / 10,
            collect_timeout: fifth * 2,
            ..self
        }
    }
}

setters!(ClusterConfig {
    pending_size: usize,
    cut_off_timeout: Duration,
    shutdown_timeout: Duration,
    publish_timeout: Duration,
    accept_when_isolated: bool,
});

impl Default for ClusterConfig {
    fn default() -> Self {
        let unset = Duration::ZERO;
        let config = Self {
            lease: unset,
            renew_interval: unset,
            seen_interval: unset,
            member_timeout: unset,
            dead_timeout: unset,
            query_timeout: unset,
            rank_delay: unset,
            heartbeat_interval: unset,
            heartbeat_timeout: unset,
            redial_interval: unset,
            collect_timeout: unset,
            pending_size: 16 * 1024 * 1024,
            cut_off_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(5),
            accept_when_isolated: false,
        };
        config.lease(Duration::from_secs(5))
    }
}

setters!(LogConfig { size: usize, count: usize, age: Duration });

/// Limits of the log of recent messages that every node keeps, for nodes and clients that were away.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// Bytes of messages, each with 160 bytes of overhead; a node takes about as much again to find what clients
    /// missed. Default 64 MiB.
    pub size: usize,
    /// Number of messages. Default 1,000,000.
    pub count: usize,
    /// Age of the oldest message. A client that keeps its position gets a new resume token after a quarter of this
    /// time. Default 5 min.
    pub age: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { size: 64 * 1024 * 1024, count: 1_000_000, age: Duration::from_secs(5 * 60) }
    }
}
