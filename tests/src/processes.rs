//! A cluster of `ws-server` processes. Each process has a [`Proxy`] as its address, so that every process and every link
//! can fail. The database belongs to the caller, who can make it fail as well.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mysql_async::{Conn, prelude::Queryable};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{interval, timeout};
use ws_cluster::{
    ConnectError, MySqlPool, NodeId, Pool, Publisher,
    pool::{Lease, PoolView},
};

use crate::{
    WsServer,
    mariadb::free_ports,
    proxy::{Proxy, Way},
    publish::{Message, PUBLISH_KEY, Refusal, publish},
};

/// The cluster's key.
pub const KEY: &str = "a key of the tests of thirty-two bytes or more";
/// Maximum wait until a cluster is whole again: leases, heartbeats and joins, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two looks at the pool, which sends no notice.
const LOOK: Duration = Duration::from_millis(50);

/// The nodes.
pub struct Processes {
    /// The URLs of the pool: the first node uses the first one, and so on in turn.
    urls: Vec<String>,
    /// The same pool through each of the URLs.
    pools: Vec<MySqlPool>,
    state: TempDir,
    nodes: Vec<Node>,
    /// Further arguments of each node.
    arguments: &'static [&'static str],
    names: Arc<Mutex<Vec<String>>>,
    /// The logs of processes that are gone.
    logs: Vec<(String, String)>,
}

struct Node {
    /// The node's port, which is the same for all its processes, like its proxy's port.
    port: u16,
    proxy: Proxy,
    process: Option<WsServer>,
    /// Number of processes of this node before the present one.
    runs: usize,
    /// The node's id in the pool.
    id: Option<NodeId>,
    /// The id of the node's previous process, which may still be in the pool.
    former: Option<NodeId>,
}

/// A cluster whose nodes are all members.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// The index of the master.
    pub master: usize,
    /// The lease.
    pub lease: Lease,
}

impl Processes {
    /// Starts `count` nodes on the pool at these URLs, with further arguments, and waits until they are members.
    ///
    /// # Panics
    /// Panics if they do not start.
    pub async fn start(urls: &[String], count: usize, arguments: &'static [&'static str]) -> Self {
        let mut pools = Vec::new();
        for url in urls {
            pools.push(MySqlPool::connect(url).await.expect("a well-formed URL"));
        }
        let mut processes = Self {
            urls: urls.to_vec(),
            pools,
            state: tempfile::tempdir().expect("a temporary directory"),
            nodes: Vec::new(),
            arguments,
            names: Arc::default(),
            logs: Vec::new(),
        };
        for _ in 0..count {
            processes.add().await;
        }
        processes.settled().await.unwrap_or_else(|why| panic!("{why}"));
        processes
    }

    /// Starts one more node, and returns its index.
    ///
    /// # Panics
    /// Panics with the node's log if it does not start.
    pub async fn add(&mut self) -> usize {
        // The port is below those that the system gives to outgoing connections, so a node finds its port free again.
        let used = |port: &u16| self.nodes.iter().any(|node| node.port == *port);
        let port = free_ports().find(|port| !used(port)).expect("a free port");
        let proxy = Proxy::start((Ipv4Addr::LOCALHOST, port).into()).await;
        self.nodes.push(Node { port, proxy, process: None, runs: 0, id: None, former: None });
        self.names.lock().push(String::new());
        let node = self.nodes.len() - 1;
        self.start_node(node).await;
        node
    }

    /// Returns the number of nodes, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the address of a node for clients and publishers.
    pub fn address(&self, node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nodes[node].port).into()
    }

    /// Returns the first URL of the pool.
    pub fn url(&self) -> &str {
        &self.urls[0]
    }

    /// Returns a publisher over a link.
    ///
    /// # Errors
    /// Fails if no node answers.
    pub async fn publisher(&self) -> Result<Publisher, ConnectError> {
        Publisher::connect(MySqlPool::connect(self.url()).await?, KEY).await
    }

    /// Returns the name of each node's present or last process, which changes with every start.
    pub fn names(&self) -> Arc<Mutex<Vec<String>>> {
        self.names.clone()
    }

    /// Returns true if a node's process lives, frozen or not.
    pub fn is_running(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    /// Returns the indices of the nodes whose processes live.
    pub fn running(&self) -> Vec<usize> {
        (0..self.count()).filter(|node| self.is_running(*node)).collect()
    }

    /// Returns a node's process.
    ///
    /// # Panics
    /// Panics if the node does not run.
    pub fn node(&self, node: usize) -> &WsServer {
        self.nodes[node].process.as_ref().expect("a running node")
    }

    /// Starts a node that does not run, without waiting until it is a member.
    ///
    /// # Panics
    /// Panics with the node's log if it does not start.
    pub async fn start_node(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        assert!(this.process.is_none(), "node {node} runs already");
        let mut command = WsServer::command(self.state.path());
        command.args(["run", "--listen", &format!("127.0.0.1:{}", this.port)]);
        command.args(["--address", &url(&this.proxy), "--pool", &self.urls[node % self.urls.len()]]);
        command.args(["--key", KEY, "--publish-key", PUBLISH_KEY]).args(self.arguments);
        // Set before the process listens, so that it is never taken for its predecessor.
        self.names.lock()[node] = format!("node {node} run {}", this.runs);
        this.process = Some(WsServer::spawn(command).await);
        this.runs += 1;
    }

    /// Kills a node (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self, node: usize) {
        self.end(node, Signal::KILL).await;
    }

    /// Tells a node to leave (SIGTERM), and waits until it is gone.
    pub async fn terminate(&mut self, node: usize) {
        self.end(node, Signal::TERM).await;
    }

    async fn end(&mut self, node: usize, signal: Signal) {
        let mut process = self.nodes[node].process.take().expect("a running node");
        process.signal(signal);
        process.wait().await;
        self.nodes[node].former = self.nodes[node].id.take();
        let log = process.whole_log().await;
        self.logs.push((self.names.lock()[node].clone(), log));
    }

    /// Freezes a node (SIGSTOP).
    pub fn freeze(&self, node: usize) {
        self.node(node).stop();
    }

    /// Lets a frozen node continue.
    pub fn thaw(&self, node: usize) {
        self.node(node).cont();
    }

    /// Holds everything that one node sends to another, whichever of them dialled. Does nothing if one of them is
    /// unknown.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        if let (Some(sender), Some(receiver)) = (self.nodes[from].id, self.nodes[to].id) {
            self.nodes[to].proxy.hold(sender, Way::In);
            self.nodes[from].proxy.hold(receiver, Way::Out);
        }
    }

    /// Ends such a hold.
    pub fn mend_one_way(&self, from: usize, to: usize) {
        if let (Some(sender), Some(receiver)) = (self.nodes[from].id, self.nodes[to].id) {
            self.nodes[to].proxy.release(sender, Way::In);
            self.nodes[from].proxy.release(receiver, Way::Out);
        }
    }

    /// Delays everything on links that others dialled to this node, in both directions.
    pub fn slow(&self, node: usize, delay: Duration) {
        self.nodes[node].proxy.delay(delay);
    }

    /// Makes the whole network work again.
    pub fn mend(&self) {
        self.nodes.iter().for_each(|node| node.proxy.heal());
    }

    /// Empties both tables of the pool, or drops them.
    ///
    /// # Panics
    /// Panics if the database does not answer.
    pub async fn empty_tables(&self, dropped: bool) {
        let statement = if dropped { "DROP TABLE IF EXISTS" } else { "DELETE FROM" };
        let mut conn = Conn::from_url(self.url()).await.expect("the database answers");
        for table in ["ws_lease", "ws_node"] {
            // The table may be missing, and then there is nothing to delete.
            let _ = conn.query_drop(format!("{statement} {table}")).await;
        }
        // The result does not matter.
        let _ = conn.disconnect().await;
    }

    /// Waits until all running nodes are members, through every URL of the pool.
    ///
    /// # Errors
    /// Fails with the state of the pool and the end of each node's log if they are not members in time.
    pub async fn settled(&mut self) -> Result<Settled, String> {
        let mut last = None;
        let looking = async {
            let mut look = interval(LOOK);
            loop {
                look.tick().await;
                let mut settled = Vec::new();
                for pool in &self.pools {
                    let Ok(view) = pool.read("default").await else { break };
                    settled.extend(self.judge(&view));
                    last = Some(view);
                }
                let masters = settled.iter().map(|(settled, _)| (settled.master, settled.lease.term));
                if settled.len() == self.pools.len() && masters.collect::<HashSet<_>>().len() == 1 {
                    return settled.swap_remove(0);
                }
            }
        };
        let Ok((settled, ids)) = timeout(PATIENCE, looking).await else {
            return Err(format!("the cluster is not whole again in time: {last:?}\n{}", self.ends_of_logs()));
        };
        for (node, id) in self.nodes.iter_mut().zip(ids) {
            node.id = id;
        }
        Ok(settled)
    }

    fn judge(&self, view: &PoolView) -> Option<(Settled, Vec<Option<NodeId>>)> {
        let lease = view.lease?;
        let mut master = None;
        let mut ids = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.process.is_none() {
                ids.push(None);
                continue;
            }
            let address = url(&node.proxy);
            let row = view.nodes.iter().find(|row| row.address == address && row.joined == Some(lease.term))?;
            if node.former == Some(row.node) {
                return None;
            }
            if lease.master == Some(row.node) {
                master = Some(index);
            }
            ids.push(Some(row.node));
        }
        Some((Settled { master: master?, lease }, ids))
    }

    /// Publishes a message without recipients through each running node. Before it, a node sends what it held back from
    /// the cluster.
    ///
    /// # Errors
    /// Fails if a node does not accept in time.
    pub async fn flushed(&self, number: usize) -> Result<(), String> {
        for node in self.running() {
            let details = json!([]);
            let key = format!("flush {number} {node}");
            let message = Message { action: "flush", details: &details, to: "user:nobody", key: Some(&key) };
            let publishing = async {
                loop {
                    match publish(self.address(node), message, Duration::from_secs(8)).await {
                        Ok(()) => return Ok(()),
                        Err(Refusal::Wrong(why)) => return Err(why),
                        // A node without room answers 503 at once.
                        Err(_) => tokio::time::sleep(LOOK).await,
                    }
                }
            };
            timeout(PATIENCE, publishing)
                .await
                .unwrap_or_else(|_| Err(format!("node {node} does not accept\n{}", self.ends_of_logs())))?;
        }
        Ok(())
    }

    /// Returns the logs of all processes so far, with their names.
    pub fn logs(&self) -> Vec<(String, String)> {
        let names = self.names.lock();
        let running = self.nodes.iter().zip(&*names);
        let running = running.filter_map(|(node, name)| Some((name.clone(), node.process.as_ref()?.log())));
        self.logs.iter().cloned().chain(running).collect()
    }

    fn ends_of_logs(&self) -> String {
        const LINES: usize = 15;
        let end = |log: &str| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        };
        self.logs().iter().map(|(name, log)| format!("---- {name}:\n{}\n", end(log))).collect()
    }
}

fn url(proxy: &Proxy) -> String {
    format!("ws://{}", proxy.address())
}
