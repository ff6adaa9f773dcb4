//! Every interval and limit: its default, its unit, and how to choose it.

use std::time::Duration;

use ws_cluster_core::{ClusterConfig, LogConfig, setters};

use crate::descriptors::Budget;

/// All settings of a server that have a default. Set those that matter:
///
/// ```
/// use std::time::Duration;
///
/// use ws_cluster::{ClusterConfig, Config, ConnectionConfig};
///
/// let config = Config::default()
///     .connection(ConnectionConfig::default().message_size(16 * 1024))
///     .cluster(ClusterConfig::default().lease(Duration::from_secs(10)));
/// ```
///
/// The fields can be changed as well: `config.connection.message_size = 16 * 1024`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Config {
    /// Limits of one client's connection.
    pub connection: ConnectionConfig,
    /// Limits of sockets and requests before a client's upgrade.
    pub http: HttpConfig,
    /// Intervals of pool, election and links.
    pub cluster: ClusterConfig,
    /// Limits of links until their peers have proved the key.
    pub links: LinkConfig,
    /// Limits of the log of recent messages that every node keeps.
    pub log: LogConfig,
}

setters!(Config {
    connection: ConnectionConfig,
    http: HttpConfig,
    cluster: ClusterConfig,
    links: LinkConfig,
    log: LogConfig,
});

impl Config {
    /// What cannot work, with what to give instead.
    pub(crate) fn find_mistake(&self) -> Result<(), String> {
        let Self { connection, http, cluster, links, log } = self;
        let durations = [
            ("connection.handshake_timeout", connection.handshake_timeout),
            ("connection.ping_interval", connection.ping_interval),
            ("connection.ping_timeout", connection.ping_timeout),
            ("connection.close_timeout", connection.close_timeout),
            ("connection.position_interval", connection.position_interval),
            ("connection.resume_timeout", connection.resume_timeout),
            ("connection.blocking_warning", connection.blocking_warning),
            ("connection.authentication_interval", connection.authentication_interval),
            ("http.write_timeout", http.write_timeout),
            ("cluster.renew_interval", cluster.renew_interval),
            ("cluster.lease", cluster.lease),
            ("cluster.seen_interval", cluster.seen_interval),
            ("cluster.member_timeout", cluster.member_timeout),
            ("cluster.dead_timeout", cluster.dead_timeout),
            ("cluster.query_timeout", cluster.query_timeout),
            ("cluster.heartbeat_interval", cluster.heartbeat_interval),
            ("cluster.heartbeat_timeout", cluster.heartbeat_timeout),
            ("cluster.redial_interval", cluster.redial_interval),
            ("cluster.collect_timeout", cluster.collect_timeout),
            ("cluster.cut_off_timeout", cluster.cut_off_timeout),
            ("cluster.shutdown_timeout", cluster.shutdown_timeout),
            ("cluster.publish_timeout", cluster.publish_timeout),
            ("links.greeting_timeout", links.greeting_timeout),
            ("log.age", log.age),
        ];
        if let Some((name, _)) = durations.iter().find(|(_, duration)| duration.is_zero()) {
            return Err(format!("{name} must be longer than nothing"));
        }
        let counts = [
            ("connection.message_size", connection.message_size),
            ("connection.queue_size", connection.queue_size),
            ("connection.messages_per_second", connection.messages_per_second as usize),
            ("connection.message_burst", connection.message_burst as usize),
            ("connection.authentication_burst", connection.authentication_burst as usize),
            ("connection.look_ups_per_ip", connection.look_ups_per_ip),
            ("connection.rechecks_per_second", connection.rechecks_per_second as usize),
            ("connection.connections_per_ip", connection.connections_per_ip),
            ("connection.connections", connection.connections),
            ("connection.replay_count", connection.replay_count),
            ("connection.replays", connection.replays),
            ("connection.replay_bytes_per_minute", connection.replay_bytes_per_minute),
            ("http.sockets", http.sockets),
            ("http.sockets_per_ip", http.sockets_per_ip),
            ("cluster.pending_size", cluster.pending_size),
            ("links.greetings", links.greetings),
            ("links.greetings_per_ip", links.greetings_per_ip),
            ("log.size", log.size),
            ("log.count", log.count),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if http.request_head_size < 1024 {
            return Err("http.request_head_size must be at least 1024 bytes: browsers send more than less".into());
        }
        let shorter = [
            ("connection.position_interval", connection.position_interval, "log.age", log.age),
            ("cluster.renew_interval", cluster.renew_interval, "cluster.lease", cluster.lease),
            ("cluster.seen_interval", cluster.seen_interval, "cluster.member_timeout", cluster.member_timeout),
            (
                "cluster.heartbeat_interval",
                cluster.heartbeat_interval,
                "cluster.heartbeat_timeout",
                cluster.heartbeat_timeout,
            ),
        ];
        match shorter.into_iter().find(|(_, short, _, long)| short >= long) {
            Some((short, _, long, _)) => Err(format!("{short} must be shorter than {long}")),
            None => Ok(()),
        }
    }
}

/// Limits of one client's connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionConfig {
    /// Time for the head of a request to arrive, a silence between two requests included, and for the authenticator to
    /// answer. Default 10 s.
    pub handshake_timeout: Duration,
    /// Largest message of a client, in bytes; a larger one closes with 1009. Default 64 KiB.
    pub message_size: usize,
    /// Bytes that wait for a client whose socket takes nothing; a client over this for about a second is closed with 4000
    /// and comes again. Up to 8 times as much may wait while the socket takes bytes, so that many messages at once do no
    /// harm to a client that reads. Default 1 MiB. A publish may be as large, so less than the largest publish loses slow
    /// clients.
    pub queue_size: usize,
    /// Silence after which a client is pinged. Below the idle time-out of every proxy in between (nginx: 60 s).
    /// Default 25 s.
    pub ping_interval: Duration,
    /// Time to answer a ping before the connection is closed with 4001. Default 20 s.
    pub ping_timeout: Duration,
    /// Time for a client to answer a close frame, or to read what waits once it sends no more, before its socket is
    /// dropped. Default 5 s.
    pub close_timeout: Duration,
    /// Messages a second that one client may send, on average; one that sends faster is read more slowly. Up to
    /// `message_size` and 16 KiB of what waits is read ahead, so that pings in it are answered; pings count as well, and as
    /// many of them as `message_burst` may come while messages wait. Default 100.
    pub messages_per_second: u32,
    /// Messages that a client may send at once before `messages_per_second` holds it back. Default 500.
    pub message_burst: u32,
    /// Times that one client may send `Client/authentication` at once and have the authenticator asked; beyond, it is
    /// answered `[429, "Too Many Requests"]` and nobody is asked. An authenticated client that sends it without credentials
    /// is not counted, since nobody is asked. Default 5.
    pub authentication_burst: u32,
    /// Time after which a client that has used up `authentication_burst` may send `Client/authentication` once more.
    /// Default 5 s.
    pub authentication_interval: Duration,
    /// Questions about clients of one address that the authenticator is asked at the same time; further ones wait their
    /// turn, within `handshake_timeout`. Default 16.
    pub look_ups_per_ip: usize,
    /// Rechecks of open connections a second at which a node asks its authenticator less often than
    /// [`Authenticator::recheck_interval`](crate::Authenticator::recheck_interval) says: with more connections than this
    /// times the interval, the interval grows with them. Default 500, which 15,000 connections reach with 30 s.
    pub rechecks_per_second: u32,
    /// Connections from one address; the next is refused with 429. Addresses behind a trusted proxy count one by
    /// one, and those of one IPv6 network (/64) as one. Default 1,000, since many people can share an address.
    pub connections_per_ip: usize,
    /// Connections of this node; the next is refused with 503. Default: 100,000, or about eight ninths of
    /// [`HttpConfig::sockets`] if the limit on file descriptors (`ulimit -n`) allows fewer.
    pub connections: usize,
    /// Clients that this node takes per second, on average; a tenth of them at once. The next is refused with 503 and told
    /// in `Retry-After` when to come again; the clients of this project do so. It keeps the clients of a node that restarts
    /// from coming to the others all at once. Default 0: no limit.
    pub accept_rate: u32,
    /// Time over which a shutdown closes the clients, evenly, so that they do not come to the other nodes all at once.
    /// Default 0 s: all at once. `ws-server` uses 10 s.
    pub drain: Duration,
    /// How often a client that keeps its position is told it when nothing comes for it. Well below the age of the log
    /// ([`LogConfig::age`]), or a quiet client cannot come back without a reset; it is told sooner where the log fills
    /// sooner. Default 60 s.
    pub position_interval: Duration,
    /// Time that a client which comes back waits for this node to have seen what the client has seen on another. Default
    /// 10 s: longer than a master that vanished takes to be replaced.
    pub resume_timeout: Duration,
    /// Messages that are replayed to a client which comes back; one that missed more is told to begin anew
    /// (`reset`). Default 10,000.
    pub replay_count: usize,
    /// Clients that are sent what they missed at the same time; more wait for their turn. One user, and one address (of
    /// IPv6: one /64), has a quarter of these at most. Each client may hold up to half of `queue_size`, and is closed with
    /// 4000 if it takes nothing for 3 s. Default 64.
    pub replays: usize,
    /// Bytes a minute that are replayed to clients of one address (of IPv6: one /64), on average; once as many were, further
    /// clients of it that missed something are told to begin anew (`reset`). Default 256 MiB.
    pub replay_bytes_per_minute: usize,
    /// Longest time that a handler may hold its thread before a warning is logged. Default 100 ms.
    pub blocking_warning: Duration,
}

setters!(ConnectionConfig {
    handshake_timeout: Duration,
    message_size: usize,
    queue_size: usize,
    ping_interval: Duration,
    ping_timeout: Duration,
    close_timeout: Duration,
    messages_per_second: u32,
    message_burst: u32,
    authentication_burst: u32,
    authentication_interval: Duration,
    look_ups_per_ip: usize,
    rechecks_per_second: u32,
    connections_per_ip: usize,
    connections: usize,
    position_interval: Duration,
    resume_timeout: Duration,
    replay_count: usize,
    replays: usize,
    replay_bytes_per_minute: usize,
    blocking_warning: Duration,
});

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            message_size: 64 * 1024,
            queue_size: 1024 * 1024,
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            close_timeout: Duration::from_secs(5),
            messages_per_second: 100,
            message_burst: 500,
            authentication_burst: 5,
            authentication_interval: Duration::from_secs(5),
            look_ups_per_ip: 16,
            rechecks_per_second: 500,
            connections_per_ip: 1_000,
            connections: Budget::now().connections,
            accept_rate: 0,
            drain: Duration::ZERO,
            position_interval: Duration::from_secs(60),
            resume_timeout: Duration::from_secs(10),
            replay_count: 10_000,
            replays: 64,
            replay_bytes_per_minute: 256 * 1024 * 1024,
            blocking_warning: Duration::from_millis(100),
        }
    }
}

/// Limits of sockets and requests before a client's upgrade. Those of sockets hold for the listeners that
/// [`Server::serve`](crate::Server::serve) is given. An application with an HTTP server of its own sets limits there.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Accepted sockets, those of WebSocket connections included. Beyond, a few are still taken at a time to answer
    /// `/health`, `/ready`, publishes and links; all else gets 503 with `Retry-After`, or is closed at once. Default: the
    /// process's soft limit on file descriptors when this is made, minus an eighth (64 to 512) for links, the
    /// database and the process itself; 112,500 at most.
    pub sockets: usize,
    /// Accepted sockets of one address that were not upgraded; the next gets 429 or is closed at once. Addresses of one
    /// IPv6 network (/64) count as one. Trusted proxies are exempt. Default 1,000, or a quarter of `sockets` if that is
    /// less.
    pub sockets_per_ip: usize,
    /// Largest head of a request (its first line and all headers), in bytes; at least 1,024. A larger one gets 431.
    /// Default 16 KiB. It holds for upgrades of clients under any HTTP server.
    pub request_head_size: usize,
    /// Time in which a client has to read some of an answer that waits for it; it has to read all of it within six times as
    /// long. Its socket is closed otherwise. Default 10 s.
    pub write_timeout: Duration,
}

setters!(HttpConfig { sockets: usize, sockets_per_ip: usize, request_head_size: usize, write_timeout: Duration });

impl Default for HttpConfig {
    fn default() -> Self {
        let sockets = Budget::now().sockets;
        Self {
            sockets,
            sockets_per_ip: (sockets / 4).clamp(1, 1_000),
            request_head_size: 16 * 1024,
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// Limits of links from other nodes and publishers until they have proved the cluster's key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinkConfig {
    /// Time for the first message of an accepted link. Its peer has to prove the key within twice as long. Default 2 s;
    /// more than two round trips.
    pub greeting_timeout: Duration,
    /// Accepted links whose peers have not proved the key yet. When more come, those that have waited longest are given
    /// up; addresses that the pool lists or that proved the key before make room for no others. Default: a
    /// quarter of the descriptors that are kept in reserve, 16 to 128.
    pub greetings: usize,
    /// The same for one address that is not known, an IPv6 network (/64) counting as one. Default 8.
    pub greetings_per_ip: usize,
}

setters!(LinkConfig { greeting_timeout: Duration, greetings: usize, greetings_per_ip: usize });

impl Default for LinkConfig {
    fn default() -> Self {
        Self { greeting_timeout: Duration::from_secs(2), greetings: Budget::now().greetings, greetings_per_ip: 8 }
    }
}
