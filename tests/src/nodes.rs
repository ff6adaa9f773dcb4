//! A cluster of servers in one process. Each server has a listener of its own and a [`Proxy`] in front of it that the
//! other nodes dial, so that the network between any two of them can fail.

use crate::message;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Config, ConnectionId, Credentials, Handshake,
    Identity, MemoryPool, NodeId, Pool, PoolError, Request, ServeError, Server, Status, Target, Term,
    pool::{Announcement, Lease, PoolView},
};

use crate::{
    client::{Client, Place, soon},
    proxy::{Proxy, Way},
};

/// The key of all clusters in this harness.
pub const KEY: &str = "a key of the tests of thirty-two bytes or more";

/// Returns settings that are quicker than the defaults, with a margin for a busy machine.
pub fn config() -> Config {
    let mut config = Config::default();
    let cluster = &mut config.cluster;
    cluster.renew_interval = Duration::from_millis(200);
    cluster.lease = Duration::from_secs(3);
    cluster.seen_interval = Duration::from_millis(500);
    cluster.heartbeat_interval = Duration::from_millis(300);
    cluster.heartbeat_timeout = Duration::from_millis(2000);
    cluster.redial_interval = Duration::from_millis(200);
    cluster.publish_timeout = Duration::from_secs(20);
    config
}

/// One server.
pub struct Node {
    /// The server itself.
    pub server: Server,
    /// The address for clients.
    pub address: SocketAddr,
    /// The proxy that the other nodes dial.
    pub proxy: Proxy,
    /// True if the node reaches the pool.
    reaches_pool: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Node {
    /// Connects a client without a session.
    pub async fn guest(&self) -> Client {
        Client::connect(self.address, &[]).await
    }

    /// Connects a client of this user; see [`Sessions`] for more headers.
    pub async fn user(&self, name: &str) -> Client {
        Client::connect(self.address, &[("x-user", name)]).await
    }

    /// Connects a client of this user that tracks its position, with the position and state of `place`, if any.
    pub async fn tracking(&self, name: &str, place: &Place) -> Client {
        let mut path = format!("/WebSockets?resume={}", place.at);
        if let Some(state) = &place.state {
            path.push_str(&format!("&state={state}"));
        }
        Client::try_connect(self.address, &path, &[("x-user", name)]).await.expect("no refusal")
    }

    /// Tells `serve` to shut down, and waits for its end.
    pub async fn stop(&mut self) -> Result<(), ServeError> {
        drop(self.stop.take());
        self.ended().await
    }

    /// Waits for the end of `serve`.
    pub async fn ended(&mut self) -> Result<(), ServeError> {
        soon(&mut self.serving).await.expect("no panic")
    }

    /// Waits until the node's status meets the condition.
    pub async fn until(&self, condition: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.server.subscribe_status();
        soon(status.wait_for(condition)).await.expect("the server lives").clone()
    }
}

/// Several servers on one pool.
pub struct Nodes {
    nodes: Vec<Node>,
    pool: Arc<dyn Pool>,
    config: Config,
    sender: mpsc::UnboundedSender<ConnectionId>,
    connections: mpsc::UnboundedReceiver<ConnectionId>,
}

impl Nodes {
    /// Starts `count` servers on a pool in memory, and waits until all are members.
    pub async fn start(count: usize) -> Self {
        Self::with(count, Arc::new(MemoryPool::default()), config()).await
    }

    /// Starts servers like [`start`](Self::start), with the given pool and settings.
    pub async fn with(count: usize, pool: Arc<dyn Pool>, config: Config) -> Self {
        let (sender, connections) = mpsc::unbounded_channel();
        let mut nodes = Self { nodes: Vec::new(), pool, config, sender, connections };
        for _ in 0..count {
            nodes.add().await;
        }
        nodes.settled().await;
        nodes
    }

    /// Starts one more server, without waiting until it is a member.
    pub async fn add(&mut self) -> usize {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let proxy = Proxy::start(address).await;
        let (reaches_pool, reachable) = watch::channel(true);
        let server = Server::builder(Reach { pool: self.pool.clone(), reachable })
            .authenticator(Sessions)
            .address(format!("ws://{}", proxy.address()))
            .key(KEY)
            .config(self.config.clone())
            .action("hello", Hello)
            .action("where", Where(self.sender.clone()))
            .action("join", Join)
            .action("leave", Leave)
            .action("paint", Paint)
            .action("say", Say)
            .start()
            .await
            .expect("settings that work");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = server.clone();
        let serving =
            tokio::spawn(
                async move { serving.serve(listener).with_graceful_shutdown(async { drop(stopped.await) }).await },
            );
        self.nodes.push(Node { server, address, proxy, reaches_pool, stop: Some(stop), serving });
        self.nodes.len() - 1
    }

    /// Waits until all nodes that were not stopped are members of one master. Returns the master's index.
    pub async fn settled(&self) -> usize {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.stop.is_some()).collect();
        let whole = |status: &Status| {
            let count = |address: String| status.nodes.iter().any(|node| node.member && node.address == address);
            status.ready && status.master.is_some() && running.iter().all(|node| count(url(node)))
        };
        for node in &running {
            node.until(whole).await;
        }
        self.master()
    }

    /// Returns the index of the node that the first running node takes for the master.
    pub fn master(&self) -> usize {
        let first = self.nodes.iter().find(|node| node.stop.is_some()).expect("a running node");
        let master = first.server.status().master.expect("a master");
        self.nodes.iter().position(|node| node.server.node_id() == master).expect("one of these")
    }

    /// Returns the indices of the other running nodes.
    pub fn followers(&self) -> Vec<usize> {
        let master = self.master();
        (0..self.nodes.len()).filter(|&index| index != master && self.nodes[index].stop.is_some()).collect()
    }

    /// Returns the pool.
    pub fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    /// Holds everything that one node sends to another, whichever of them dialled.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.nodes[to].proxy.hold(self.nodes[from].server.node_id(), Way::In);
        self.nodes[from].proxy.hold(self.nodes[to].server.node_id(), Way::Out);
    }

    /// Holds everything between two nodes.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Leaves a node's queries to the pool without an answer.
    pub fn cut_from_pool(&self, node: usize) {
        self.nodes[node].reaches_pool.send_replace(false);
    }

    /// Makes the whole network work again.
    pub fn heal(&self) {
        for node in &self.nodes {
            node.proxy.heal();
            node.reaches_pool.send_replace(true);
        }
    }

    /// Returns the id of a connection.
    pub async fn connection_of(&mut self, client: &mut Client) -> ConnectionId {
        client.send("where", serde_json::json!([])).await;
        client.expect("where", serde_json::json!([])).await;
        self.connections.recv().await.expect("a sender is kept")
    }
}

impl std::ops::Index<usize> for Nodes {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

impl std::ops::IndexMut<usize> for Nodes {
    fn index_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }
}

fn url(node: &Node) -> String {
    format!("ws://{}", node.proxy.address())
}

/// An authenticator that trusts the headers `x-user`, `x-session`, `x-groups` (separated by commas) and `x-colour`, a
/// property.
pub struct Sessions;

#[async_trait]
impl Authenticator for Sessions {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let Some(user) = handshake.header("x-user") else { return Ok(None) };
        let mut identity = Identity::user(user);
        if let Some(session) = handshake.header("x-session") {
            identity = identity.session(session);
        }
        if let Some(groups) = handshake.header("x-groups") {
            identity = identity.groups(groups.split(','));
        }
        if let Some(colour) = handshake.header("x-colour") {
            identity = identity.property("colour", colour);
        }
        Ok(Some(identity))
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}

/// A handler that answers every tab of its sender.
struct Hello;

#[async_trait]
impl ActionHandler for Hello {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.reply_to_user(request.details()).await
    }
}

/// A handler that tells the test which connection asks.
struct Where(mpsc::UnboundedSender<ConnectionId>);

#[async_trait]
impl ActionHandler for Where {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        // An error means that the test has ended.
        let _ = self.0.send(request.connection());
        request.reply(())?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

/// A handler that adds its sender to a room.
struct Join;

#[async_trait]
impl ActionHandler for Join {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.join(request.detail(0)?);
        request.reply(())?;
        Ok(())
    }
}

/// A handler that removes its sender from a room.
struct Leave;

#[async_trait]
impl ActionHandler for Leave {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.leave(request.detail(0)?);
        request.reply(())?;
        Ok(())
    }
}

/// A handler that gives its sender a colour.
struct Paint;

#[async_trait]
impl ActionHandler for Paint {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.set_property("colour", request.detail::<String>(0)?)?;
        request.reply(())?;
        Ok(())
    }
}

/// A handler that sends a message to the others in a room.
struct Say;

#[async_trait]
impl ActionHandler for Say {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        let (room, text): (String, String) = request.parse()?;
        request.publish(message("said", text, Target::group(room).except_connection(request.connection()))).await?;
        request.reply(())?;
        Ok(())
    }
}

/// The pool as one node reaches it, or does not.
struct Reach {
    pool: Arc<dyn Pool>,
    reachable: watch::Receiver<bool>,
}

impl Reach {
    /// Returns the pool once it can be reached. Callers stop waiting before that.
    async fn pool(&self) -> &dyn Pool {
        // An error means that the test is over.
        let _ = self.reachable.clone().wait_for(|reachable| *reachable).await;
        &*self.pool
    }
}

#[async_trait]
impl Pool for Reach {
    fn is_shared(&self) -> bool {
        self.pool.is_shared()
    }

    async fn prepare(&self) -> Result<(), PoolError> {
        self.pool().await.prepare().await
    }

    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError> {
        self.pool().await.read(cluster).await
    }

    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError> {
        self.pool().await.announce(cluster, announcement).await
    }

    async fn renew(&self, cluster: &str, term: Term, master: NodeId, lease: Duration) -> Result<bool, PoolError> {
        self.pool().await.renew(cluster, term, master, lease).await
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        master: NodeId,
        lease: Duration,
    ) -> Result<Option<Term>, PoolError> {
        self.pool().await.take_over(cluster, seen, max_seen, master, lease).await
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        master: NodeId,
        successor: Option<NodeId>,
        lease: Duration,
    ) -> Result<bool, PoolError> {
        self.pool().await.hand_over(cluster, term, master, successor, lease).await
    }

    async fn restore(&self, cluster: &str, term: Term, master: Option<NodeId>) -> Result<(), PoolError> {
        self.pool().await.restore(cluster, term, master).await
    }

    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.pool().await.clear_joined(cluster, node).await
    }

    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.pool().await.remove(cluster, node).await
    }
}
