//! The settings of the library: their keys in the file, what they mean, and how they are read and written.

use std::time::Duration;

use ws_cluster::Config;

use crate::values::{count, duration, rate, show_duration, show_size, size_up_to, switch};

/// Maximum size of a setting that has no flag. The log of a large cluster may take some gigabytes.
const LARGEST_SIZE: u64 = 1 << 40;

/// One setting of the library.
pub(crate) struct Setting {
    /// `SECTION.NAME`, as in [`Config`].
    pub(crate) key: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    get: fn(&Config) -> Amount,
    set: fn(&mut Config, Amount),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Count,
    /// A count that may be 0, for no limit.
    Rate,
    Size,
    Time,
    Switch,
}

/// The value of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Number(u64),
    Time(Duration),
    Switch(bool),
}

impl Setting {
    /// Returns the setting with this key.
    pub(crate) fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Reads a value.
    pub(crate) fn read(&self, text: &str) -> Result<Amount, String> {
        match self.kind {
            Kind::Count => count(text).map(Amount::Number),
            Kind::Rate => rate(text).map(|rate| Amount::Number(rate.into())),
            Kind::Size => size_up_to(text, LARGEST_SIZE).map(|size| Amount::Number(size as u64)),
            Kind::Time => duration(text).map(Amount::Time),
            Kind::Switch => switch(text).map(Amount::Switch).map_err(str::to_owned),
        }
    }

    pub(crate) fn set(&self, config: &mut Config, amount: Amount) {
        (self.set)(config, amount);
    }

    pub(crate) fn get(&self, config: &Config) -> Amount {
        (self.get)(config)
    }

    /// Returns the value in TOML.
    pub(crate) fn show(&self, config: &Config) -> String {
        match (self.kind, self.get(config)) {
            (Kind::Size, Amount::Number(size)) => format!("\"{}\"", show_size(size)),
            (_, Amount::Number(number)) => number.to_string(),
            (_, Amount::Time(time)) => format!("\"{}\"", show_duration(time)),
            (_, Amount::Switch(on)) => on.to_string(),
        }
    }
}

/// A field of the library's configuration. `set` ignores a value of another type, which `Setting::read` never returns.
trait Field {
    fn get(&self) -> Amount;
    fn set(&mut self, amount: Amount);
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn get(&self) -> Amount {
                Amount::Number(*self as u64)
            }

            fn set(&mut self, amount: Amount) {
                if let Amount::Number(number) = amount {
                    *self = <$type>::try_from(number).unwrap_or(<$type>::MAX);
                }
            }
        }
    )*};
}

number!(usize, u32);

impl Field for Duration {
    fn get(&self) -> Amount {
        Amount::Time(*self)
    }

    fn set(&mut self, amount: Amount) {
        if let Amount::Time(time) = amount {
            *self = time;
        }
    }
}

impl Field for bool {
    fn get(&self) -> Amount {
        Amount::Switch(*self)
    }

    fn set(&mut self, amount: Amount) {
        if let Amount::Switch(on) = amount {
            *self = on;
        }
    }
}

macro_rules! settings {
    ($($section:ident . $field:ident: $kind:ident, $help:literal;)*) => {
        /// All settings, section by section. A test compares them with [`Config`].
        pub(crate) static SETTINGS: &[Setting] = &[$(Setting {
            key: concat!(stringify!($section), ".", stringify!($field)),
            help: $help,
            kind: Kind::$kind,
            get: |config| Field::get(&config.$section.$field),
            set: |config, amount| Field::set(&mut config.$section.$field, amount),
        },)*];
    };
}

settings! {
    connection.handshake_timeout: Time, "Time for the head of a request to arrive, and for the authenticator to answer";
    connection.message_size: Size, "Largest message of a client; a larger one closes with 1009";
    connection.compression: Switch,
        "Compress messages for clients that offer permessage-deflate, as browsers do, and take compressed ones of them";
    connection.compression_min_size: Size, "Smallest message that is compressed, rounded up to a power of two";
    connection.queue_size: Size,
        "What may wait for a client whose socket takes nothing; one over this is closed with 4000 and comes back";
    connection.ping_interval: Time,
        "Silence after which a client is pinged. Below the idle time-out of every proxy in between (nginx: 60 s)";
    connection.ping_timeout: Time, "Time to answer a ping before the connection is closed with 4001";
    connection.close_timeout: Time, "Time for a client to answer a close frame before its socket is dropped";
    connection.messages_per_second: Count,
        "Messages a second that a client may send on average; a faster one is read more slowly";
    connection.message_burst: Count, "Messages that a client may send at once before it is read more slowly";
    connection.authentication_burst: Count,
        "How many times a client may send Client/authentication at once; then it gets 429";
    connection.authentication_interval: Time, "Time after which a client may send Client/authentication once more";
    connection.look_ups_per_ip: Count, "Look-ups of sessions for one address at the same time; more wait their turn";
    connection.rechecks_per_second: Count,
        "Rechecks of open connections a second; with more connections each is rechecked less often";
    connection.connections_per_ip: Count, "Connections from one address; the next is refused with 429";
    connection.connections: Count,
        "Connections of this node; the next is refused with 503. The default depends on the limit on file descriptors";
    connection.accept_rate: Rate, "Clients that this node takes per second; the next is refused with 503. 0: no limit";
    connection.drain: Time, "Time over which a shutdown closes the clients, evenly";
    connection.position_interval: Time,
        "How often a quiet client is told its position. Well below log.age, or it cannot resume";
    connection.resume_timeout: Time,
        "Time that a client which comes back waits for this node to have seen what it has seen on another";
    connection.replay_count: Count,
        "Messages that are replayed to a client which comes back; one that missed more is told to begin anew (reset)";
    connection.replays: Count, "Clients that are sent what they missed at the same time; more wait their turn";
    connection.replay_bytes_per_minute: Size,
        "What is replayed to the clients of one address in a minute; after that, they are told to begin anew (reset)";
    connection.blocking_warning: Time, "Longest time that a handler may hold its thread before a warning is logged";
    http.sockets: Count,
        "Accepted sockets, those of connections included. The default depends on the limit on file descriptors";
    http.sockets_per_ip: Count,
        "Sockets of one address that are not WebSocket connections; the next gets 429 or is closed";
    http.request_head_size: Size, "Largest head of a request; a larger one gets 431";
    http.write_timeout: Time, "Time in which a client has to read some of an answer that waits for it";
    cluster.renew_interval: Time, "How often the master renews its lease: a fifth of cluster.lease or less";
    cluster.lease: Time,
        "Time without a change of the lease before another node takes it alone. This key changes no other interval";
    cluster.seen_interval: Time, "How often a node refreshes its row in the pool";
    cluster.member_timeout: Time, "Age of a row from which its node no longer counts as a member";
    cluster.dead_timeout: Time, "Age of a row at which the master removes it";
    cluster.query_timeout: Time, "Time limit of one query to the pool";
    cluster.rank_delay: Time,
        "How much later each further node tries to take an expired lease; longer than a query takes";
    cluster.heartbeat_interval: Time, "How often an idle link carries a heartbeat";
    cluster.heartbeat_timeout: Time, "Silence after which a link is dead: several heartbeats, less than cluster.lease";
    cluster.redial_interval: Time, "Time between two attempts to reach a node";
    cluster.collect_timeout: Time, "Time that a new master waits for the log of each member";
    cluster.pending_size: Size, "Bytes of publishes that may wait for a master; further ones are refused with 503";
    cluster.cut_off_timeout: Time,
        "Time after which a node without a master sends its clients to other nodes (1013), if the others have a master";
    cluster.shutdown_timeout: Time, "Time for a shutdown to hand over and for links to drain";
    cluster.publish_timeout: Time, "Time that a publish waits for its acceptance; then its outcome is unknown (504)";
    cluster.accept_when_isolated: Switch,
        "Accept messages on a master that has lost its followers and cannot read the pool, although they may be lost";
    links.greeting_timeout: Time, "Time for the first message of a link that another node or a publisher opened";
    links.greetings: Count, "Links whose peers have not proved the key yet; if more come, the oldest are closed";
    links.greetings_per_ip: Count, "The same for one address that is not known";
    log.size: Size,
        "The log of recent messages, in memory; a node takes about as much again to find what clients missed";
    log.count: Count, "Messages in the log";
    log.age: Time, "Age of the oldest message in the log: how long a client may be away";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_library_is_in_the_table() {
        let (mut section, mut fields) = (String::new(), Vec::new());
        for line in format!("{:#?}", Config::default()).lines() {
            let depth = line.len() - line.trim_start().len();
            let Some((name, _)) = line.trim_start().split_once(": ") else { continue };
            match depth {
                4 => section = name.to_owned(),
                8 => fields.push(format!("{section}.{name}")),
                _ => panic!("the configuration is nested more deeply than its sections: {line}"),
            }
        }
        let mut keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        fields.sort();
        keys.sort_unstable();
        assert_eq!(fields, keys);
    }

    #[test]
    fn every_setting_is_read_as_it_is_shown() {
        for setting in SETTINGS {
            let default = Config::default();
            let shown = setting.show(&default);
            assert_eq!(setting.read(shown.trim_matches('"')), Ok(setting.get(&default)), "{} = {shown}", setting.key);
        }
    }

    #[test]
    fn a_value_reaches_its_own_field() {
        for setting in SETTINGS {
            let mut config = Config::default();
            let other = match setting.get(&config) {
                Amount::Number(number) => Amount::Number(number + 1),
                Amount::Time(time) => Amount::Time(time + Duration::from_secs(1)),
                Amount::Switch(on) => Amount::Switch(!on),
            };
            setting.set(&mut config, other);
            for each in SETTINGS {
                let changed = each.get(&config) != each.get(&Config::default());
                assert_eq!(changed, each.key == setting.key, "{} changes {}", setting.key, each.key);
            }
        }
    }
}
