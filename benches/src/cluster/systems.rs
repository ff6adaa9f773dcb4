//! Two nodes of ws-cluster, and two nodes of Centrifugo with each of its brokers that stores messages.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use benches::Result;

use super::databases::{Database, mariadb, postgres, redis};
use crate::{
    load::order::Recipe,
    peers::{Centrifugo, Ours, Peer, Running},
    scenario::relay,
};

const NODES: usize = 2;

/// Time for nodes of Centrifugo to know each other.
const JOIN: Duration = Duration::from_secs(1);

/// A cluster that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// Published at the master, received at the follower.
    OursAtMaster,
    /// Published at the follower, received at the master.
    OursAtFollower,
    Redis,
    /// With its defaults: nodes look for messages every 100 ms.
    Postgres,
    /// Nodes are told of messages by `NOTIFY`, as quickly as it can be set.
    PostgresNotify,
}

/// A running cluster. The nodes end before their database does.
pub(super) struct Cluster {
    /// The address to which messages are published, and the request for one.
    pub(super) publish_to: SocketAddr,
    pub(super) publish: String,
    /// The way in which clients connect to the other node.
    pub(super) receive: Recipe,
    _nodes: Vec<Running>,
    _database: Database,
}

impl System {
    pub(super) const ALL: [Self; 5] =
        [Self::OursAtMaster, Self::OursAtFollower, Self::Redis, Self::PostgresNotify, Self::Postgres];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OursAtMaster => "ws-cluster, pool in MariaDB, published at the master",
            Self::OursAtFollower => "ws-cluster, pool in MariaDB, published at the follower",
            Self::Redis => "Centrifugo with Redis, appendfsync always",
            Self::Postgres => "Centrifugo with PostgreSQL, its defaults (polling)",
            Self::PostgresNotify => "Centrifugo with PostgreSQL, use_notify and one shard",
        }
    }

    /// Returns what an accepted message has survived by then.
    pub(super) fn accepted(self) -> &'static str {
        match self {
            Self::OursAtMaster | Self::OursAtFollower => "in the memory of two nodes, on no disk",
            Self::Redis => "on the disk of Redis, the only one",
            Self::Postgres | Self::PostgresNotify => "on the disk of PostgreSQL, the only one",
        }
    }

    /// Returns what is not installed.
    pub(super) fn missing(self) -> Option<String> {
        match self {
            Self::OursAtMaster | Self::OursAtFollower => mariadb::missing(),
            Self::Redis => Centrifugo::default().missing().or_else(redis::missing),
            Self::Postgres | Self::PostgresNotify => Centrifugo::default().missing().or_else(postgres::missing),
        }
    }

    pub(super) fn start(self) -> Result<Cluster> {
        match self {
            Self::OursAtMaster => ours(0),
            Self::OursAtFollower => ours(1),
            Self::Redis => {
                let database = redis::start()?;
                let settings = [("ENGINE_TYPE", "redis"), ("ENGINE_REDIS_ADDRESS", &database.url)];
                let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
                centrifugo(settings.into(), database)
            }
            Self::Postgres | Self::PostgresNotify => {
                let database = postgres::start()?;
                // The broker carries messages, and the controller lets the nodes know each other.
                let settings = ["BROKER", "CONTROLLER"].into_iter().flat_map(|part| {
                    [("ENABLED", "true"), ("TYPE", "postgres"), ("POSTGRES_DSN", &database.url)]
                        .map(|(name, value)| (format!("{part}_{name}"), value.to_owned()))
                });
                let mut settings: Vec<(String, String)> = settings.collect();
                if self == Self::PostgresNotify {
                    // A notification wakes one of its workers. With one shard, that is the one that delivers.
                    let settings_of = [("USE_NOTIFY", "true"), ("NUM_SHARDS", "1")];
                    settings
                        .extend(settings_of.map(|(name, value)| (format!("BROKER_POSTGRES_{name}"), value.to_owned())));
                }
                centrifugo(settings, database)
            }
        }
    }
}

/// Starts two nodes of ours. Messages are published at the master (0) or at the follower (1).
fn ours(published: usize) -> Result<Cluster> {
    let database = mariadb::start()?;
    let peer = Ours { pool: Some(database.url.clone()), ..Ours::default() };
    let mut nodes: Vec<Running> = (0..NODES).map(|_| Running::start(&peer, None)).collect::<Result<_>>()?;
    let master = relay::joined(&nodes)?;
    nodes.swap(0, master);
    Ok(Cluster {
        publish_to: nodes[published].publishing,
        publish: peer.publish(1),
        receive: Recipe { port: nodes[1 - published].port, ..peer.recipe() },
        _nodes: nodes,
        _database: database,
    })
}

/// Starts two nodes of Centrifugo. Messages are kept for as long as ours are, since only a kept message is on a disk.
fn centrifugo(mut settings: Vec<(String, String)>, database: Database) -> Result<Cluster> {
    let history = [("HISTORY_SIZE", "10000"), ("HISTORY_TTL", "300s")];
    settings.extend(history.map(|(name, value)| (format!("CHANNEL_WITHOUT_NAMESPACE_{name}"), value.to_owned())));
    let peer = Centrifugo { settings, all_cores: true };
    let nodes: Vec<Running> = (0..NODES).map(|_| Running::start(&peer, None)).collect::<Result<_>>()?;
    sleep(JOIN);
    Ok(Cluster {
        publish_to: nodes[0].publishing,
        publish: peer.publish(1),
        receive: Recipe { port: nodes[1].port, ..peer.recipe() },
        _nodes: nodes,
        _database: database,
    })
}
