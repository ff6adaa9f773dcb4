//! Every interval and limit: its default, its unit, and how to choose it.

use std::time::Duration;

use ws_cluster_core::{ClusterConfig, LogConfig, setters};

use crate::descriptors::Budget;

/// Maximum of every time, so that the clock can add it to the present.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The intervals and limits of a server. All have a default; set those that matter. A time is 365 days at most, and
/// [`drain`](ConnectionConfig::drain) and [`rank_delay`](ClusterConfig::rank_delay) are the only ones that may be 0.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Limits of one client's connection.
    pub connection: ConnectionConfig,
    /// Limits of sockets and HTTP requests, up to a client's upgrade.
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
    /// Returns an error for a setting that cannot work. The text says what to give instead.
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
        let may_be_zero = [("connection.drain", connection.drain), ("cluster.rank_delay", cluster.rank_delay)];
        if let Some((name, _)) = durations.iter().chain(&may_be_zero).find(|(_, duration)| *duration > LONGEST) {
            return Err(format!("{name} must be 365 days at most"));
        }
        let counts = [
            ("connection.message_size", connection.message_size),
            ("connection.compression_min_size", connection.compression_min_size),
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionConfig {
    /// Time limit for the head of a request to arrive, including the silence between two requests, and for the
    /// authenticator to answer. Default 10 s.
    pub handshake_timeout: Duration,
    /// Largest message of a client, in bytes. A larger one closes the connection with 1009. Default 64 KiB.
    pub message_size: usize,
    /// Compresses messages for clients that offer `permessage-deflate` (RFC 7692), as all browsers do, and takes
    /// compressed messages of them. A message to many clients is compressed once for all of them, and a connection needs
    /// no memory for it. Messages above 256 KiB stay plain. So do those beyond 768 KiB that are delivered together,
    /// counted once for each form in which clients get them. Of what a client missed, messages below 2 KiB stay plain,
    /// and so do those that come during the replay. Without the feature `deflate` nothing is compressed. Default true.
    pub compression: bool,
    /// Smallest message that is compressed, in bytes, rounded up to a power of two. A smaller message would gain little.
    /// Default 256.
    pub compression_min_size: usize,
    /// Bytes that may wait for a client whose socket takes nothing. A client that is over this limit for about a second
    /// is closed with 4000 and connects again. While the socket takes bytes, up to 8 times as many may wait, so that
    /// many messages at once do not close a client that reads. Default 1 MiB, the size of the largest publish. With a
    /// smaller limit, one large message can close a slow client.
    pub queue_size: usize,
    /// Silence after which the server sends a ping. It must be shorter than the idle time-out of every proxy in between
    /// (nginx: 60 s). Default 25 s.
    pub ping_interval: Duration,
    /// Time limit for the answer to a ping. Without one the connection is closed with 4001. Default 20 s.
    pub ping_timeout: Duration,
    /// Time limit for a client to answer a close frame, or to read what waits for it after it has stopped sending. Then
    /// its socket is dropped. Default 5 s.
    pub close_timeout: Duration,
    /// Messages a second that one client may send on average. A client that sends faster is read more slowly. The
    /// server reads up to `message_size` and 16 KiB ahead, to answer pings in there. Pings count as messages, and up to
    /// `message_burst` of them may come while messages wait. A compressed message counts as one message for each 4 KiB
    /// of its compressed or inflated size, whichever is larger. Default 100.
    pub messages_per_second: u32,
    /// Messages that a client may send at once before `messages_per_second` holds it back. Default 500.
    pub message_burst: u32,
    /// Number of times that one client may send `Client/authentication` at once. After that it gets
    /// `[429, "Too Many Requests"]`, and the authenticator is not asked. A message without credentials from an
    /// authenticated client does not count, because the authenticator is not asked either, nor do credentials that come
    /// when a third of the present ones' time has passed. Default 5.
    pub authentication_burst: u32,
    /// Time after which a client that has used up `authentication_burst` may send `Client/authentication` once more.
    /// Default 5 s.
    pub authentication_interval: Duration,
    /// Number of questions about clients of one address that the authenticator is asked at the same time. Further
    /// questions wait for their turn, within `handshake_timeout`. Default 16.
    pub look_ups_per_ip: usize,
    /// Maximum number of rechecks of open connections a second. If there are more connections than this number times
    /// [`Authenticator::recheck_interval`](crate::Authenticator::recheck_interval), the interval grows with the
    /// connections. Default 500, which about 9,000 connections with a [`SessionTable`](crate::SessionTable) reach: its
    /// interval is 20 s, less up to a fifth.
    pub rechecks_per_second: u32,
    /// Maximum number of connections from one address. The next is refused with 429. Addresses behind a trusted proxy
    /// count one by one, and those of one IPv6 network (/64) as one. Default 1,000, because many people can share an
    /// address.
    pub connections_per_ip: usize,
    /// Maximum number of connections of this node. The next is refused with 503. Default: 100,000, or about eight
    /// ninths of [`HttpConfig::sockets`] if the limit on file descriptors (`ulimit -n`) allows fewer.
    pub connections: usize,
    /// Clients that this node accepts per second on average, and up to a tenth of that number at once. The next is
    /// refused with 503, and `Retry-After` tells it when to come again; the clients of this project do so. The limit
    /// keeps the clients of a lost node from coming to the others all at once. Default 0: no limit.
    pub accept_rate: u32,
    /// Time over which a shutdown closes the clients evenly, so that they do not come to the other nodes all at once.
    /// Default 0 s: all at once. `ws-server` uses 10 s.
    pub drain: Duration,
    /// Interval at which a client that resumes is told its log position while no messages come for it. It must be well
    /// below the age of the log ([`LogConfig::age`]); otherwise a quiet client cannot come back without a reset. If the
    /// log fills sooner, the client is told sooner. Default 60 s.
    pub position_interval: Duration,
    /// Time limit for a client that comes back and has seen more than this node has: it waits until the node has caught
    /// up. Default 10 s, which is longer than the replacement of a vanished master takes.
    pub resume_timeout: Duration,
    /// Maximum number of messages that are replayed to a client that comes back. A client that missed more is told
    /// `reset`. Default 10,000.
    pub replay_count: usize,
    /// Number of clients to which missed messages are replayed at the same time. Further clients wait for their turn.
    /// One user, or one address (of IPv6: one /64), may have at most a quarter of the turns. Each client may hold up to
    /// half of `queue_size`, and is closed with 4000 if it takes nothing for 3 s. Default 64.
    pub replays: usize,
    /// Bytes a minute that are replayed to clients of one address (of IPv6: one /64) on average. After that, further
    /// clients of this address that missed messages are told `reset`. Default 256 MiB.
    pub replay_bytes_per_minute: usize,
    /// Longest time that a handler may block its thread before a warning is logged. Default 100 ms.
    pub blocking_warning: Duration,
}

setters!(ConnectionConfig {
    handshake_timeout: Duration,
    message_size: usize,
    compression: bool,
    compression_min_size: usize,
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
            compression: true,
            compression_min_size: 256,
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

/// Limits of sockets and HTTP requests, up to a client's upgrade. The limits of sockets apply to listeners of
/// [`Server::serve`](crate::Server::serve). An application with an HTTP server of its own sets such limits there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Maximum number of accepted sockets, including those of WebSocket connections. Above the limit, the node still
    /// accepts a few sockets at a time to answer `/health`, `/ready`, publishes and links. All others get 503 with
    /// `Retry-After`, or are closed at once. Default: the process's soft limit on file descriptors when this value is
    /// made, minus an eighth (64 to 512) for links, the database and the process itself; 112,500 at most.
    pub sockets: usize,
    /// Maximum number of accepted sockets of one address that were not upgraded. The next gets 429 or is closed at
    /// once. Addresses of one IPv6 network (/64) count as one. Trusted proxies are exempt. Default 1,000, or a quarter
    /// of `sockets` if that is less.
    pub sockets_per_ip: usize,
    /// Largest head of a request (its first line and all headers), in bytes; at least 1,024. A larger one gets 431.
    /// Default 16 KiB. This limit also applies to upgrades under an HTTP server of the application.
    pub request_head_size: usize,
    /// Time limit for a client to read a part of an answer that waits for it. It must read the whole answer within six
    /// times as long. Otherwise its socket is closed. Default 10 s.
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkConfig {
    /// Time limit for the first message of an accepted link. The peer must prove the key within twice as long. It must
    /// be longer than two round trips. Default 2 s.
    pub greeting_timeout: Duration,
    /// Maximum number of accepted links whose peers have not proved the key yet. If more come, those that have waited
    /// longest are closed. A link from an address that the pool lists, or that proved the key before, is not closed for
    /// an unknown one. Default: a quarter of the descriptors that are kept in reserve, 16 to 128.
    pub greetings: usize,
    /// The same limit for one address that is neither in the pool nor proved the key before. An IPv6 network (/64)
    /// counts as one address. Default 8.
    pub greetings_per_ip: usize,
}

setters!(LinkConfig { greeting_timeout: Duration, greetings: usize, greetings_per_ip: usize });

impl Default for LinkConfig {
    fn default() -> Self {
        Self { greeting_timeout: Duration::from_secs(2), greetings: Budget::now().greetings, greetings_per_ip: 8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds one setting.
    type Setting = fn(&mut Config) -> &mut Duration;

    #[test]
    fn a_time_that_no_clock_can_add_is_a_mistake() {
        let times: [(&str, Setting); 26] = [
            ("connection.handshake_timeout", |config| &mut config.connection.handshake_timeout),
            ("connection.ping_interval", |config| &mut config.connection.ping_interval),
            ("connection.ping_timeout", |config| &mut config.connection.ping_timeout),
            ("connection.close_timeout", |config| &mut config.connection.close_timeout),
            ("connection.authentication_interval", |config| &mut config.connection.authentication_interval),
            ("connection.drain", |config| &mut config.connection.drain),
            ("connection.position_interval", |config| &mut config.connection.position_interval),
            ("connection.resume_timeout", |config| &mut config.connection.resume_timeout),
            ("connection.blocking_warning", |config| &mut config.connection.blocking_warning),
            ("http.write_timeout", |config| &mut config.http.write_timeout),
            ("cluster.lease", |config| &mut config.cluster.lease),
            ("cluster.renew_interval", |config| &mut config.cluster.renew_interval),
            ("cluster.seen_interval", |config| &mut config.cluster.seen_interval),
            ("cluster.member_timeout", |config| &mut config.cluster.member_timeout),
            ("cluster.dead_timeout", |config| &mut config.cluster.dead_timeout),
            ("cluster.query_timeout", |config| &mut config.cluster.query_timeout),
            ("cluster.rank_delay", |config| &mut config.cluster.rank_delay),
            ("cluster.heartbeat_interval", |config| &mut config.cluster.heartbeat_interval),
            ("cluster.heartbeat_timeout", |config| &mut config.cluster.heartbeat_timeout),
            ("cluster.redial_interval", |config| &mut config.cluster.redial_interval),
            ("cluster.collect_timeout", |config| &mut config.cluster.collect_timeout),
            ("cluster.cut_off_timeout", |config| &mut config.cluster.cut_off_timeout),
            ("cluster.shutdown_timeout", |config| &mut config.cluster.shutdown_timeout),
            ("cluster.publish_timeout", |config| &mut config.cluster.publish_timeout),
            ("links.greeting_timeout", |config| &mut config.links.greeting_timeout),
            ("log.age", |config| &mut config.log.age),
        ];
        assert_eq!(Config::default().find_mistake(), Ok(()));
        for (name, time) in times {
            let mut config = Config::default();
            *time(&mut config) = Duration::MAX;
            assert_eq!(config.find_mistake(), Err(format!("{name} must be 365 days at most")));
        }
    }
}
