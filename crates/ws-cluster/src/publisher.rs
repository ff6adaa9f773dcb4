//! Publishes from another process, over a link to any node of the cluster. The link only carries publishes and their
//! outcomes.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use self::link::{DIAL_TIMEOUT, Request, reach};
use crate::{
    Close, GroupChange, IntoPool, Message, Pool, PoolError, PublishError,
    message::{close::Subject, content::Content},
    node::{
        codec::{Outcome, Publish},
        link::{Dialled, Keys, LinkError, LinkIdentity},
    },
    random,
    secret::{self, KeyError},
};
use ws_cluster_core::{ClusterConfig, NodeId};

mod link;

/// Maximum number of requests that wait for the socket. Further ones wait before the queue.
const MAX_REQUESTS: usize = 1024;
/// Maximum number of nodes that are dialled before a publisher gives up. Those seen last come first.
const MAX_DIALS: usize = 16;

/// The outcome of a publish that has none yet.
const UNKNOWN: Result<(), PublishError> = Err(PublishError::OutcomeUnknown);

/// The reason why a publisher cannot connect. Nothing was published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The pool's URL is malformed, or its database does not answer.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The key cannot be used, for example because it is shorter than 32 bytes.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool lists no node, so no server is running.
    #[error("the pool has no running server")]
    NoServer,
    /// A server answers but refuses: the key, the cluster or the versions differ.
    #[error("the server at {address} refuses: {why}")]
    Refused {
        /// The server's address.
        address: String,
        /// The server's reason.
        why: String,
    },
    /// No server of the pool answers.
    #[error("no server of the pool answers; the last tried, {address}: {why}")]
    Unreachable {
        /// The address that was tried last.
        address: String,
        /// The error there.
        why: String,
    },
}

/// Publishes into a cluster from a process that is not one of its servers. Cheap to clone; clones share one
/// connection. If it is lost, a new one is made to any node.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use ws_cluster::{MemoryPool, Message, Publisher, Target};
/// # let (pool, key) = (MemoryPool::default(), "0123456789abcdef0123456789abcdef");
/// let publisher = Publisher::connect(pool, key).await?;
/// publisher.publish(Message::new("news/new", 7)?.to(Target::group("editors"))).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

/// The settings of a [`Publisher`]. Made by [`Publisher::builder`].
#[must_use = "a publisher connects in `connect`"]
pub struct PublisherBuilder {
    pool: Arc<dyn Pool>,
    cluster: String,
    key: Vec<u8>,
    publish_timeout: Duration,
}

impl PublisherBuilder {
    /// Sets the cluster's key, of at least 32 bytes. It is required.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets the name of the cluster. Default: `default`.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// Sets how long a publish waits to be accepted. Default: 5 s.
    pub fn publish_timeout(mut self, limit: Duration) -> Self {
        self.publish_timeout = limit;
        self
    }

    /// Connects to a node of the cluster. It tries each node that the pool has seen lately, for 2 s.
    ///
    /// # Errors
    /// [`ConnectError`] says whether the key, the pool or the nodes are the cause.
    pub async fn connect(self) -> Result<Publisher, ConnectError> {
        let identity = identity(&self.cluster, self.key)?;
        let (pool, publish_timeout) = (self.pool, self.publish_timeout);
        let shared = Shared { pool, identity, publish_timeout, connection: Mutex::new(None) };
        let publisher = Publisher(Arc::new(shared));
        publisher.connection().await?;
        Ok(publisher)
    }
}

impl std::fmt::Debug for PublisherBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublisherBuilder").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

struct Shared {
    pool: Arc<dyn Pool>,
    identity: LinkIdentity,
    publish_timeout: Duration,
    /// The sender to the present connection's task. Tokio's lock, since it is held while a new connection is made:
    /// other publishes wait for the same connection.
    connection: Mutex<Option<mpsc::Sender<Request>>>,
}

impl Publisher {
    /// Connects to the cluster `default` in `pool`, with the cluster's key of at least 32 bytes.
    ///
    /// # Errors
    /// As for [`PublisherBuilder::connect`].
    pub async fn connect(pool: impl IntoPool, key: impl Into<Vec<u8>>) -> Result<Self, ConnectError> {
        Self::builder(pool).key(key).connect().await
    }

    /// Makes a builder, for a cluster of another name or another time limit.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use ws_cluster::{MemoryPool, Publisher};
    /// # async fn f(pool: MemoryPool, key: String) -> Result<(), ws_cluster::ConnectError> {
    /// let builder = Publisher::builder(pool).key(key).cluster("chat");
    /// let publisher = builder.publish_timeout(Duration::from_secs(2)).connect().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(pool: impl IntoPool) -> PublisherBuilder {
        PublisherBuilder {
            pool: pool.into_pool(),
            cluster: "default".to_owned(),
            key: Vec::new(),
            publish_timeout: ClusterConfig::default().publish_timeout,
        }
    }

    /// Makes a test connection to the node at `address` (`ws://HOST:PORT`), as a publisher of the cluster does. It does
    /// not use a pool.
    ///
    /// # Errors
    /// Returns [`ConnectError::Refused`] for another key or cluster, [`ConnectError::Unreachable`] if the node does not
    /// answer within 2 s, and the errors of the key.
    pub async fn check_node(address: &str, cluster: &str, key: impl Into<Vec<u8>>) -> Result<(), ConnectError> {
        let identity = identity(cluster, key)?;
        reach(address, &identity).await.map(drop)
    }

    /// Asks the node at `address` (`ws://HOST:PORT`) to shut down, as
    /// [`Server::drain_requested`](crate::Server::drain_requested) says. It does not use a pool. `Ok` means that the
    /// node has taken the request; its shutdown may take a while.
    ///
    /// # Errors
    /// Those of [`check_node`](Self::check_node). A node of an older version refuses.
    pub async fn drain_node(address: &str, cluster: &str, key: impl Into<Vec<u8>>) -> Result<(), ConnectError> {
        let (mut writer, mut reader) = reach(address, &identity(cluster, key)?).await?.split();
        let asking = async {
            writer.write(&Publish { id: 1, drain: true, ..Publish::default() }).await?;
            loop {
                match reader.read().await? {
                    // An empty packet is a heartbeat.
                    Some(packet) if packet.is_empty() => {}
                    Some(packet) => return Ok(Outcome::decode(packet)?),
                    None => return Err(LinkError::Broken("the node ended the link".into())),
                }
            }
        };
        let answer = timeout(DIAL_TIMEOUT, asking).await.unwrap_or(Err(LinkError::Silent));
        let address = address.to_owned();
        match answer {
            Ok(Outcome { error: 0, .. }) => Ok(()),
            Ok(Outcome { text, .. }) => Err(ConnectError::Refused { address, why: text }),
            Err(why) => Err(ConnectError::Unreachable { address, why: why.to_string() }),
        }
    }

    /// Publishes a message on all nodes. The limits are those of [`Server::publish`](crate::Server::publish), and the
    /// time limit is that of [`PublisherBuilder::publish_timeout`].
    ///
    /// If the connection is lost meanwhile, the publish is repeated on another node. The message is still delivered
    /// once.
    ///
    /// # Errors
    /// Each [`PublishError`] says whether the message may still be delivered.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let (content, key) = message.encode()?;
        self.send_one(content, key.unwrap_or_else(random_key)).await
    }

    /// Publishes several messages on all nodes, in their order, and returns the outcome of each, as
    /// [`Server::publish_all`](crate::Server::publish_all) does. The time limit is for all of them together.
    pub async fn publish_all(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<(), PublishError>> {
        let mut publishes = Vec::new();
        let encoded: Vec<_> = messages
            .into_iter()
            .map(|message| {
                let (content, key) = message.encode()?;
                publishes.push((content.encode(), key.unwrap_or_else(random_key)));
                Ok(())
            })
            .collect();
        let mut outcomes = self.send(publishes).await.into_iter();
        let outcome = |encoded: Result<(), _>| encoded.and_then(|()| outcomes.next().unwrap_or(UNKNOWN));
        encoded.into_iter().map(outcome).collect()
    }

    /// Puts connections into groups and takes them out of groups, on all nodes, as
    /// [`Server::change_groups`](crate::Server::change_groups) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), and [`PublishError::Invalid`] if the change names no group, too many groups,
    /// or a group twice, or from a node of an older version.
    pub async fn change_groups(&self, change: GroupChange) -> Result<(), PublishError> {
        change.check()?;
        self.command(Content::Groups(change)).await
    }

    /// Closes every connection of a session, on all nodes, as
    /// [`Server::close_session`](crate::Server::close_session) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close_session(&self, id: &str) -> Result<(), PublishError> {
        self.close(Close::session(id)).await
    }

    /// Closes every connection of a user, on all nodes, as [`Server::close_user`](crate::Server::close_user) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close_user(&self, id: &str) -> Result<(), PublishError> {
        self.close(Close::user(id)).await
    }

    /// Closes the connections that [`Close`] describes, on all nodes, as [`Server::close`](crate::Server::close) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), and [`PublishError::Invalid`] from a node of an older version that does not
    /// know the command.
    pub async fn close(&self, close: Close) -> Result<(), PublishError> {
        self.command(Content::Close(close)).await
    }

    /// Asks the authenticator again about every connection of a session, on all nodes, as
    /// [`Server::refresh_session`](crate::Server::refresh_session) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), and [`PublishError::Invalid`] from a node of an older version.
    pub async fn refresh_session(&self, id: &str) -> Result<(), PublishError> {
        self.command(Content::Refresh(Subject::session(id))).await
    }

    /// Asks the authenticator again about every connection of a user, on all nodes, as
    /// [`Server::refresh_user`](crate::Server::refresh_user) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), and [`PublishError::Invalid`] from a node of an older version.
    pub async fn refresh_user(&self, id: &str) -> Result<(), PublishError> {
        self.command(Content::Refresh(Subject::user(id))).await
    }

    async fn command(&self, content: Content) -> Result<(), PublishError> {
        self.send_one(content, random_key()).await
    }

    async fn send_one(&self, content: Content, key: Bytes) -> Result<(), PublishError> {
        self.send(vec![(content.encode(), key)]).await.pop().unwrap_or(UNKNOWN)
    }

    /// Sends contents, each with its key, in their order. Returns the outcome of each.
    async fn send(&self, publishes: Vec<(Bytes, Bytes)>) -> Vec<Result<(), PublishError>> {
        let deadline = Instant::now() + self.0.publish_timeout;
        let mut outcomes = vec![UNKNOWN; publishes.len()];
        let mut open: Vec<usize> = (0..publishes.len()).collect();
        let sending = async {
            while !open.is_empty() {
                let Ok(connection) = self.connection().await else {
                    // The pool or the nodes may be back within the time limit.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let mut settling = Vec::with_capacity(open.len());
                for index in &open {
                    let (content, key) = publishes[*index].clone();
                    let (outcome, settled) = oneshot::channel();
                    if connection.send(Request { content, key, outcome }).await.is_err() {
                        break;
                    }
                    settling.push(settled);
                }
                let unsent = open.split_off(settling.len());
                let mut again = Vec::new();
                for (index, settled) in open.drain(..).zip(settling) {
                    match settled.await {
                        // The publish is repeated on another node. If the cluster has it already, the key shows that.
                        Err(_) | Ok(Err(PublishError::ShuttingDown | PublishError::OutcomeUnknown)) => {
                            again.push(index)
                        }
                        Ok(outcome) => outcomes[index] = outcome,
                    }
                }
                if !again.is_empty() {
                    self.forget(&connection).await;
                }
                again.extend(unsent);
                open = again;
            }
        };
        // What is open at the end has an unknown outcome.
        let _ = timeout_at(deadline, sending).await;
        outcomes
    }

    async fn forget(&self, connection: &mpsc::Sender<Request>) {
        let mut present = self.0.connection.lock().await;
        if present.as_ref().is_some_and(|present| present.same_channel(connection)) {
            *present = None;
        }
    }

    async fn connection(&self) -> Result<mpsc::Sender<Request>, ConnectError> {
        let mut present = self.0.connection.lock().await;
        if let Some(connection) = present.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let dialled = self.dial().await?;
        let (requests, received) = mpsc::channel(MAX_REQUESTS);
        tokio::spawn(link::run(dialled, received));
        *present = Some(requests.clone());
        Ok(requests)
    }

    /// Dials the nodes of the pool, those seen last first. Returns the link to the first that answers.
    async fn dial(&self) -> Result<Dialled, ConnectError> {
        let config = ClusterConfig::default();
        let LinkIdentity { cluster, .. } = &self.0.identity;
        let view = timeout(config.query_timeout, self.0.pool.read(cluster)).await;
        let view = view.unwrap_or_else(|_| Err(PoolError::Unreachable("no answer in time".into())))?;
        let mut nodes = view.nodes;
        // The rows are old if the database takes no writes or its clock was set, but the nodes may still be there. The
        // master removes the rows of nodes that are gone.
        nodes.sort_by_key(|row| row.age);
        nodes.truncate(MAX_DIALS);
        let mut error = ConnectError::NoServer;
        for row in nodes {
            match reach(&row.address, &self.0.identity).await {
                Ok(link) => return Ok(link),
                Err(refused @ ConnectError::Refused { .. }) => error = refused,
                // A refusal says more than a node that does not answer.
                Err(_) if matches!(error, ConnectError::Refused { .. }) => {}
                Err(other) => error = other,
            }
        }
        Err(error)
    }
}

/// Returns the identity of a new publisher.
fn identity(cluster: &str, key: impl Into<Vec<u8>>) -> Result<LinkIdentity, ConnectError> {
    let key = secret::cluster_key(key.into())?;
    let node = NodeId::from_bytes(random::certain());
    Ok(LinkIdentity { node, cluster: cluster.to_owned(), keys: Keys::new(vec![key]) })
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("cluster", &self.0.identity.cluster).finish_non_exhaustive()
    }
}

/// Returns a random key, with which a publish can be repeated on another node.
fn random_key() -> Bytes {
    Bytes::copy_from_slice(&random::certain::<16>())
}
