//! Three `ws-server` processes on a MariaDB of their own, with messages flowing, while each of them in turn is killed,
//! stopped, frozen or emptied. What every test checks: a message whose publish was accepted reaches every client that
//! lived through it exactly once, in one order.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use futures_util::StreamExt;
use mysql_async::prelude::Queryable;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{MariaDb, WsServer, client::Client};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use ws_cluster::{MySqlPool, Pool, pool::Lease};

const KEY: &str = "a key of the tests of thirty-two bytes or more";
const PUBLISH_KEY: &str = "a key to publish";
/// Longest wait for a step: a lease, a heartbeat's time and a database's start, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two messages of one publisher.
const PACE: Duration = Duration::from_millis(10);
/// Time between two looks at the pool, of which nothing tells.
const LOOK: Duration = Duration::from_millis(50);
/// Messages that take each publisher longer than a lease (5 s).
const A_LEASE: usize = 700;

/// These tests run one at a time: heartbeats starve where many processes share few cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// A message as publishers number them.
type Numbered = (String, u64);

/// The database, the processes, and their clients.
struct World {
    database: MariaDb,
    url: String,
    pool: MySqlPool,
    state: TempDir,
    nodes: Vec<Option<WsServer>>,
    tabs: Vec<(usize, Tab)>,
    flow: Option<Flow>,
    /// What all publishers did.
    published: Vec<Published>,
}

/// A client that reads all the time.
struct Tab {
    seen: watch::Receiver<Vec<Numbered>>,
}

struct Flow {
    stop: watch::Sender<bool>,
    /// How many each node accepted, and did not accept in time.
    accepted: HashMap<usize, watch::Receiver<usize>>,
    failed: HashMap<usize, watch::Receiver<usize>>,
    publishers: Vec<JoinHandle<Published>>,
}

struct Published {
    by: String,
    accepted: Vec<u64>,
    /// All below were tried.
    tried: u64,
}

impl World {
    /// Three nodes that are members, two clients on each.
    async fn start() -> Self {
        let database = MariaDb::start().await;
        let url = database.database().await;
        let pool = MySqlPool::connect(&url).await.expect("a well-formed URL");
        let state = tempfile::tempdir().expect("a temporary directory");
        let mut world =
            Self { database, url, pool, state, nodes: Vec::new(), tabs: Vec::new(), flow: None, published: Vec::new() };
        for _ in 0..3 {
            world.add().await;
        }
        world.settled().await;
        for node in [0, 0, 1, 1, 2, 2] {
            world.connect(node).await;
        }
        world
    }

    async fn add(&mut self) -> usize {
        let flags = ["--pool", &self.url, "--key", KEY, "--publish-key", PUBLISH_KEY];
        self.nodes.push(Some(WsServer::start(self.state.path(), &flags).await));
        self.nodes.len() - 1
    }

    async fn connect(&mut self, node: usize) {
        let address = self.address(node);
        self.node(node).ready().await;
        self.tabs.push((node, Tab::read(Client::connect(address, &[]).await)));
    }

    fn node(&self, node: usize) -> &WsServer {
        self.nodes[node].as_ref().expect("a running node")
    }

    fn address(&self, node: usize) -> SocketAddr {
        self.node(node).address()
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].is_some()).collect()
    }

    /// Waits until all running nodes are members; the master's index and the lease.
    async fn settled(&self) -> (usize, Lease) {
        let mut last = None;
        let looking = async {
            let mut look = interval(LOOK);
            loop {
                look.tick().await;
                let Ok(view) = self.pool.read("default").await else { continue };
                last = Some(view.clone());
                let Some(lease) = view.lease else { continue };
                let row = |node: usize| {
                    let url = format!("ws://{}", self.address(node));
                    view.nodes.iter().find(|row| row.address == url && row.joined == Some(lease.term))
                };
                let running = self.running();
                let master = running.iter().find(|&&node| row(node).map(|row| row.node) == lease.master);
                if let Some(&master) = master
                    && running.iter().all(|&node| row(node).is_some())
                {
                    return (master, lease);
                }
            }
        };
        match timeout(PATIENCE, looking).await {
            Ok(settled) => settled,
            Err(_) => {
                for node in self.running() {
                    eprintln!("---- node {node} at {}:\n{}", self.address(node), self.node(node).log());
                }
                panic!("the cluster does not settle: {last:?}");
            }
        }
    }

    /// Lets these nodes' publishers begin.
    fn flow(&mut self, nodes: &[usize]) {
        let (stop, stopped) = watch::channel(false);
        let mut flow = Flow { stop, accepted: HashMap::new(), failed: HashMap::new(), publishers: Vec::new() };
        for &node in nodes {
            let counters = (watch::Sender::new(0), watch::Sender::new(0));
            flow.accepted.insert(node, counters.0.subscribe());
            flow.failed.insert(node, counters.1.subscribe());
            let by = format!("publisher {} of node {node}", self.published.len() + flow.publishers.len());
            flow.publishers.push(tokio::spawn(publish(by, self.address(node), counters, stopped.clone())));
        }
        assert!(self.flow.replace(flow).is_none(), "the flow before was ended");
    }

    /// Waits until each of these nodes accepted so many more.
    async fn flows(&self, nodes: &[usize], more: usize) {
        let flow = self.flow.as_ref().expect("messages flow");
        // All count from now on, not from the end of the wait for the one before.
        let begin = |node| {
            let accepted: &watch::Receiver<usize> = &flow.accepted[node];
            let count = *accepted.borrow();
            (node, count + more, accepted.clone())
        };
        let waits: Vec<_> = nodes.iter().map(begin).collect();
        for (node, goal, mut accepted) in waits {
            let waited = timeout(PATIENCE, accepted.wait_for(|accepted| *accepted >= goal)).await;
            if !matches!(waited, Ok(Ok(_))) {
                for node in self.running() {
                    eprintln!("---- node {node} at {}:\n{}", self.address(node), self.node(node).log());
                }
                panic!("node {node} does not accept");
            }
        }
    }

    /// Waits until each of these nodes left a publish without an answer.
    async fn fails(&self, nodes: &[usize]) {
        let flow = self.flow.as_ref().expect("messages flow");
        for node in nodes {
            let mut failed = flow.failed[node].clone();
            let before = *failed.borrow();
            in_time("a publish without an answer", failed.wait_for(|failed| *failed > before)).await.expect("it runs");
        }
    }

    /// Ends the publishers.
    async fn ends(&mut self) {
        let flow = self.flow.take().expect("messages flow");
        flow.stop.send_replace(true);
        for publisher in flow.publishers {
            self.published.push(in_time("the end of a publisher", publisher).await.expect("no panic"));
        }
    }

    /// Kills a node; its clients are lost with it.
    async fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node].take().expect("a running node");
        process.kill().await;
        self.tabs.retain(|(on, _)| *on != node);
    }

    /// Looks at what came to the clients: see the top of the file.
    async fn check(&mut self) {
        let last = self.running()[0];
        let end = format!("end {}", self.published.len());
        let sent = in_time("the last message", send(self.address(last), &end, 0)).await;
        assert!(sent.is_ok(), "{sent:?}");
        self.published.push(Published { by: end.clone(), accepted: vec![0], tried: 1 });
        let mut histories = Vec::new();
        for (node, tab) in &self.tabs {
            let mut seen = tab.seen.clone();
            let wait = seen.wait_for(|seen| seen.last().is_some_and(|(by, _)| *by == end));
            let seen = in_time("the last message at a client", wait).await;
            histories.push((*node, seen.expect("the client is connected").clone()));
        }
        let mut accepted = 0;
        let mut unclear = 0;
        for (node, seen) in &histories {
            let mut by: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            seen.iter().for_each(|(publisher, number)| by.entry(publisher).or_default().push(*number));
            (accepted, unclear) = (0, 0);
            for published in &self.published {
                let came = by.remove(&*published.by).unwrap_or_default();
                assert!(came.is_sorted_by(|a, b| a < b), "{}: on node {node} not once or not in order", published.by);
                let missing = published.accepted.iter().find(|number| came.binary_search(number).is_err());
                assert_eq!(missing, None, "{}: accepted, but not seen on node {node}", published.by);
                assert!(came.last().is_none_or(|last| *last < published.tried));
                accepted += published.accepted.len();
                unclear += came.len() - published.accepted.len();
            }
            assert!(by.is_empty(), "nobody published {by:?}");
        }
        let (first, order) = &histories[0];
        for (node, seen) in &histories {
            let differs = seen.iter().zip(order).position(|(one, other)| one != other);
            assert_eq!((differs, seen.len()), (None, order.len()), "one order on nodes {first} and {node}");
        }
        println!("{} clients, {accepted} accepted, {unclear} unclear ones delivered", histories.len());
    }
}

impl Tab {
    fn read(mut client: Client) -> Self {
        let (sender, seen) = watch::channel(Vec::new());
        tokio::spawn(async move {
            // Ends with the node, or with the test.
            while let Some(Ok(message)) = client.0.next().await {
                let Message::Text(text) = message else { continue };
                let message: Value = serde_json::from_str(&text).expect("JSON");
                if message["action"] == "count" {
                    let by = message["details"][0].as_str().expect("a publisher").to_owned();
                    let number = message["details"][1].as_u64().expect("a number");
                    sender.send_modify(|seen| seen.push((by, number)));
                }
            }
        });
        Self { seen }
    }
}

/// Publishes one after the other, whatever becomes of them; counts those that were accepted, and the others.
async fn publish(
    by: String,
    address: SocketAddr,
    (accepted, failed): (watch::Sender<usize>, watch::Sender<usize>),
    stopped: watch::Receiver<bool>,
) -> Published {
    let mut published = Published { by, accepted: Vec::new(), tried: 0 };
    let mut pace = interval(PACE);
    // Never faster, so that a number of messages stands for a time.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        pace.tick().await;
        let number = published.tried;
        published.tried += 1;
        if send(address, &published.by, number).await.is_ok() {
            published.accepted.push(number);
            accepted.send_modify(|accepted| *accepted += 1);
        } else {
            failed.send_modify(|failed| *failed += 1);
        }
    }
    published
}

/// One publish over HTTP; `Ok` where it was accepted.
async fn send(address: SocketAddr, by: &str, number: u64) -> Result<(), String> {
    /// Longer than the server waits.
    const LIMIT: Duration = Duration::from_secs(8);
    let body = json!({ "action": "count", "details": [by, number], "to": "all" }).to_string();
    let request = format!(
        "POST /_publish HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {PUBLISH_KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(LIMIT, exchange).await.map_err(|error| error.to_string())?;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 2") { Ok(()) } else { Err(answer) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_node_loses_nothing_that_was_accepted() {
    let _alone = alone().await;
    let mut world = World::start().await;
    for kills_the_master in [true, false, true] {
        let (master, lease) = world.settled().await;
        let lost =
            if kills_the_master { master } else { *world.running().iter().find(|&&node| node != master).unwrap() };
        let all = world.running();
        world.flow(&all);
        world.flows(&all, 50).await;
        world.kill(lost).await;
        let staying = world.running();
        world.flows(&staying, 100).await;
        let (_, now) = world.settled().await;
        assert_eq!(now.term, lease.term + u64::from(kills_the_master));
        // All back again, while messages flow.
        let new = world.add().await;
        world.settled().await;
        world.flows(&staying, 50).await;
        world.ends().await;
        world.check().await;
        world.tabs.clear();
        for node in [staying[0], staying[1], new] {
            world.connect(node).await;
        }
        world.published.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone() {
    let _alone = alone().await;
    let mut world = World::start().await;
    let (master, lease) = world.settled().await;
    let others: Vec<usize> = world.running().into_iter().filter(|&node| node != master).collect();
    let (lost, last) = (others[0], others[1]);
    world.flow(&[lost, master, last]);
    world.flows(&[lost, master, last], 50).await;
    world.kill(lost).await;
    world.flows(&[master, last], 50).await;
    world.settled().await;
    world.kill(master).await;
    world.flows(&[last], 100).await;
    let (now, after) = world.settled().await;
    assert_eq!((now, after.term), (last, lease.term + 1));
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_while_the_database_is_away() {
    let _alone = alone().await;
    let mut world = World::start().await;
    let (_, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    for killed in [false, true] {
        world.flows(&all, 50).await;
        if killed {
            world.database.kill().await;
        } else {
            world.database.stop().await;
        }
        world.flows(&all, A_LEASE).await;
        world.database.start_again().await;
        let (_, now) = world.settled().await;
        assert_eq!(now.term, lease.term, "the master stays");
    }
    world.flows(&all, A_LEASE).await;
    world.ends().await;
    world.check().await;
    assert_eq!(world.settled().await.1.term, lease.term);
    for published in &world.published {
        assert_eq!(published.accepted.len() as u64, published.tried, "{}: none was refused", published.by);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_lost_while_the_database_is_away_is_replaced_when_it_is_back() {
    let _alone = alone().await;
    let mut world = World::start().await;
    let (master, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    world.flows(&all, 50).await;
    world.database.kill().await;
    world.flows(&all, 50).await;
    world.kill(master).await;
    let staying = world.running();
    // Publishes wait, and then nothing is known of them.
    world.fails(&staying).await;
    world.database.start_again().await;
    world.flows(&staying, 100).await;
    let (_, now) = world.settled().await;
    assert_eq!(now.term, lease.term + 1);
    world.add().await;
    world.settled().await;
    world.flows(&staying, 50).await;
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_tables_are_filled_again_by_the_nodes() {
    let _alone = alone().await;
    let mut world = World::start().await;
    let all = world.running();
    world.flow(&all);
    for statement in ["DELETE FROM", "DROP TABLE"] {
        let (_, lease) = world.settled().await;
        world.flows(&all, 50).await;
        let database = world.url.rsplit('/').next().expect("a path").to_owned();
        let mut conn = world.database.connect().await;
        for table in ["ws_lease", "ws_node"] {
            conn.query_drop(format!("{statement} {database}.{table}")).await.expect("a statement");
        }
        conn.disconnect().await.expect("a farewell");
        let (_, now) = world.settled().await;
        assert!(now.term >= lease.term, "terms only grow");
        world.flows(&all, A_LEASE).await;
    }
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_master_is_replaced_and_comes_back_as_a_follower() {
    let _alone = alone().await;
    let mut world = World::start().await;
    let (master, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    world.flows(&all, 50).await;
    world.node(master).stop();
    let others: Vec<usize> = all.iter().copied().filter(|&node| node != master).collect();
    world.flows(&others, 100).await;
    world.node(master).cont();
    let (now, after) = world.settled().await;
    assert!(now != master && after.term == lease.term + 1, "node {now} in term {}", after.term);
    world.flows(&all, 100).await;
    world.ends().await;
    world.check().await;
}
