//! [`Processes`] with publishers and clients, and the property that must hold whatever happens to the
//! processes: a message whose publish was accepted reaches every client that lived through it exactly once, in one
//! order.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use ws_cluster::pool::Lease;

use crate::{
    WsServer,
    client::Client,
    processes::{Processes, Settled},
    publish,
};

/// Maximum wait for a step: a lease, a heartbeat's time and a database's start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two messages of one publisher.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for a future within the time that a step has.
///
/// # Panics
/// Panics if the time is over.
pub async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// A message as publishers number them.
type Numbered = (String, u64);

/// The processes, their clients and their publishers.
pub struct World {
    /// The processes.
    pub processes: Processes,
    /// The clients, each with the index of its node.
    tabs: Vec<(usize, Tab)>,
    flow: Option<Flow>,
    /// The publishes of all publishers.
    published: Vec<Published>,
}

/// A client that always reads.
struct Tab {
    seen: watch::Receiver<Vec<Numbered>>,
}

struct Flow {
    stop: watch::Sender<bool>,
    /// For each node, the numbers of publishes that it accepted, and did not accept in time.
    accepted: HashMap<usize, watch::Receiver<usize>>,
    failed: HashMap<usize, watch::Receiver<usize>>,
    publishers: Vec<JoinHandle<Published>>,
}

/// The publishes of one publisher.
pub struct Published {
    /// The publisher's name.
    pub by: String,
    /// The numbers of its messages that were accepted.
    pub accepted: Vec<u64>,
    /// All numbers below this one were tried.
    pub tried: u64,
}

impl World {
    /// Time between two looks at states that send no notice: the pool, and a node's `/ready`.
    pub const LOOK: Duration = Duration::from_millis(50);

    /// Starts three nodes on the pool at these URLs, each with two clients, and waits until they are members.
    ///
    /// # Panics
    /// Panics with the nodes' logs if they do not start.
    pub async fn start(urls: &[String]) -> Self {
        let processes = Processes::start(urls, 3, &[]).await;
        let mut world = Self { processes, tabs: Vec::new(), flow: None, published: Vec::new() };
        for node in [0, 0, 1, 1, 2, 2] {
            world.connect(node).await;
        }
        world
    }

    /// Starts one more node and returns its index.
    pub async fn add(&mut self) -> usize {
        self.processes.add().await
    }

    /// Connects one more client to a node, once the node takes clients.
    pub async fn connect(&mut self, node: usize) {
        let address = self.address(node);
        self.node(node).ready().await;
        self.tabs.push((node, Tab::read(Client::connect(address, &[]).await)));
    }

    /// Returns a running node.
    ///
    /// # Panics
    /// Panics if the node was killed.
    pub fn node(&self, node: usize) -> &WsServer {
        self.processes.node(node)
    }

    /// Returns the address for clients of a node.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.processes.address(node)
    }

    /// Returns the indices of the running nodes.
    pub fn running(&self) -> Vec<usize> {
        self.processes.running()
    }

    /// Waits until all running nodes are members, through every URL of the pool. Returns the master's index and the
    /// lease.
    ///
    /// # Panics
    /// Panics with the nodes' logs if they are not members in time.
    pub async fn settled(&mut self) -> (usize, Lease) {
        match self.processes.settled().await {
            Ok(Settled { master, lease }) => (master, lease),
            Err(why) => self.fail(&why),
        }
    }

    /// Panics with the logs of all processes.
    fn fail(&self, why: &str) -> ! {
        for (name, log) in self.processes.logs() {
            eprintln!("---- {name}:\n{log}");
        }
        panic!("{why}");
    }

    /// Starts the publishers of these nodes.
    pub fn flow(&mut self, nodes: &[usize]) {
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

    /// Waits until each of these nodes has accepted `more` further publishes.
    pub async fn flows(&self, nodes: &[usize], more: usize) {
        let flow = self.flow.as_ref().expect("messages flow");
        // All nodes are counted from now on, not from the end of the wait for the previous one.
        let begin = |node| {
            let accepted: &watch::Receiver<usize> = &flow.accepted[node];
            let count = *accepted.borrow();
            (node, count + more, accepted.clone())
        };
        let waits: Vec<_> = nodes.iter().map(begin).collect();
        for (node, goal, mut accepted) in waits {
            let waited = timeout(PATIENCE, accepted.wait_for(|accepted| *accepted >= goal)).await;
            if !matches!(waited, Ok(Ok(_))) {
                self.fail(&format!("node {node} does not accept"));
            }
        }
    }

    /// Waits until each of these nodes has left a publish without an answer.
    pub async fn fails(&self, nodes: &[usize]) {
        let flow = self.flow.as_ref().expect("messages flow");
        for node in nodes {
            let mut failed = flow.failed[node].clone();
            let before = *failed.borrow();
            in_time("a publish without an answer", failed.wait_for(|failed| *failed > before)).await.expect("it runs");
        }
    }

    /// Ends the publishers.
    pub async fn ends(&mut self) {
        let flow = self.flow.take().expect("messages flow");
        flow.stop.send_replace(true);
        for publisher in flow.publishers {
            self.published.push(in_time("the end of a publisher", publisher).await.expect("no panic"));
        }
    }

    /// Kills a node. Its clients are lost too.
    pub async fn kill(&mut self, node: usize) {
        self.processes.kill(node).await;
        self.tabs.retain(|(on, _)| *on != node);
    }

    /// Returns the publishers that have ended since the last [`afresh`](Self::afresh).
    pub fn published(&self) -> &[Published] {
        &self.published
    }

    /// Forgets clients and publishers, and connects one client to each running node.
    pub async fn afresh(&mut self) {
        self.tabs.clear();
        self.published.clear();
        for node in self.running() {
            self.connect(node).await;
        }
    }

    /// Publishes a last message, waits until all clients have it, and asserts the property at the top of this file.
    ///
    /// # Panics
    /// Panics if the property does not hold.
    pub async fn check(&mut self) {
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
            assert!(by.is_empty(), "no publisher {by:?}");
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
            // The stream ends with the node, or with the test.
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

/// Publishes one message after another, whatever their outcome. Counts those that were accepted, and the others.
async fn publish(
    by: String,
    address: SocketAddr,
    (accepted, failed): (watch::Sender<usize>, watch::Sender<usize>),
    stopped: watch::Receiver<bool>,
) -> Published {
    let mut published = Published { by, accepted: Vec::new(), tried: 0 };
    let mut pace = interval(PUBLISH_INTERVAL);
    // Missed ticks are delayed, so that a number of messages stands for a time.
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

/// Publishes one message over HTTP. Returns `Ok` if it was accepted.
async fn send(address: SocketAddr, by: &str, number: u64) -> Result<(), String> {
    /// Longer than the server waits.
    const LIMIT: Duration = Duration::from_secs(8);
    let message = publish::Message { action: "count", details: &json!([by, number]), to: "all", key: None };
    publish::publish(address, message, LIMIT).await.map_err(|refusal| format!("{refusal:?}"))
}
