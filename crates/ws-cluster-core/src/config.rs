//! The settings of the core.

use std::time::Duration;

/// Intervals of pool, election and links. All nodes of a cluster should use the same.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// How often the master renews its lease. Default 1 s. A fifth of `lease` or less.
    pub renew_interval: Duration,
    /// How long the lease must stand still before another node takes over without asking the rest. Default 5 s:
    /// longer than a database takes to restart is calm, shorter is quick.
    pub lease: Duration,
    /// How often a node refreshes its row. Default 2 s.
    pub seen_interval: Duration,
    /// Age of a row from which its node no longer counts as a member. Default 10 s; several `seen_interval`.
    pub member_timeout: Duration,
    /// Age of a row at which the master removes it. Default 60 s.
    pub dead_timeout: Duration,
    /// Time limit of one query to the pool. Default 2 s.
    pub query_timeout: Duration,
    /// How far apart candidates of following ranks stand for master. Default 500 ms; more than a query takes.
    pub rank_delay: Duration,
    /// How often a link is heard of when it has nothing to say. Default 1 s.
    pub heartbeat_interval: Duration,
    /// Silence after which a link is dead. Default 4 s: several heartbeats, less than `lease`.
    pub heartbeat_timeout: Duration,
    /// Time between two tries to reach a node. Default 500 ms.
    pub redial_interval: Duration,
    /// Time a new master waits for each member's tail. Default 2 s.
    pub collect_timeout: Duration,
    /// Bytes of publishes that wait for a master; beyond, a publish is refused as busy. Default 16 MiB.
    pub pending_size: usize,
    /// Time without a master, while the pool shows that there is one, after which clients are sent to other nodes
    /// (1013). Default 30 s.
    pub cut_off_timeout: Duration,
    /// Time for a shutdown to hand over and for links to drain. Default 5 s.
    pub shutdown_timeout: Duration,
    /// Time that a publish waits for its acceptance; after it, the outcome is unknown. Default 5 s.
    pub publish_timeout: Duration,
    /// Prefers availability to the promise: a master that has lost all its followers accepts and delivers messages
    /// although the pool cannot be read. Such messages are lost if the master ends before it is linked again, because
    /// the other nodes may have elected another master. Default `false`: publishes wait, and end as
    /// [`Unknown`](crate::PublishError::Unknown) when their time is over.
    pub accept_when_isolated: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            renew_interval: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            seen_interval: Duration::from_secs(2),
            member_timeout: Duration::from_secs(10),
            dead_timeout: Duration::from_secs(60),
            query_timeout: Duration::from_secs(2),
            rank_delay: Duration::from_millis(500),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(4),
            redial_interval: Duration::from_millis(500),
            collect_timeout: Duration::from_secs(2),
            pending_size: 16 * 1024 * 1024,
            cut_off_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(5),
            accept_when_isolated: false,
        }
    }
}

/// Limits of the log of recent messages that every node keeps, for nodes and clients that were away.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogConfig {
    /// Bytes of messages, each with 160 bytes of overhead; a node takes about as much again to find what clients missed.
    /// Default 64 MiB.
    pub size: usize,
    /// Number of messages. Default 1,000,000.
    pub count: usize,
    /// Age of the oldest message. Clients that keep their position are given anew what they carry after a quarter of it.
    /// Default 5 min.
    pub age: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { size: 64 * 1024 * 1024, count: 1_000_000, age: Duration::from_secs(5 * 60) }
    }
}
