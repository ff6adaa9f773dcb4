//! Measures what a rolling restart does to the clients: three real processes with sessions in a MariaDB are drained and
//! started again, one after the other, while messages are published. `cargo run --release -p tests --bin drain` prints a
//! table; it fails if a client missed a message, got one twice, or was reset.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::json;
use tempfile::TempDir;
use tests::{
    MariaDb, WsServer,
    publish::{Message, PUBLISH_KEY, Refusal, publish},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use ws_cluster::{
    Client,
    client::{Event, Events},
};

/// The cluster's key.
const KEY: &str = "a key of the drain measurement of 32 bytes or more";
const NODES: usize = 3;
/// Time between two publishes. Each goes to every client, so more would measure the fan-out.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two looks at the database's queries.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit of each step.
const PATIENCE: Duration = Duration::from_secs(300);
/// Action of the messages that are counted.
const ACTION: &str = "tick";

#[derive(Parser)]
struct Arguments {
    /// Clients of each node
    #[arg(long, default_value_t = 5_000)]
    clients: usize,
    /// Clients that a node takes per second (accept_rate)
    #[arg(long, default_value_t = 500)]
    accept_rate: u32,
    /// Time over which a node closes its clients
    #[arg(long, default_value = "10s")]
    drain: String,
}

#[tokio::main]
async fn main() {
    let Arguments { clients, accept_rate, drain } = Arguments::parse();
    let count = clients * NODES;
    let database = MariaDb::start().await;
    let url = database.database().await;
    make_sessions(&url, count).await;
    let state = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster { url: url.clone(), state, accept_rate, drain };
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        let node = cluster.start("127.0.0.1:0").await;
        node.ready().await;
        nodes.push(node);
    }
    let addresses: Vec<SocketAddr> = nodes.iter().map(WsServer::address).collect();

    let seen = Arc::new(Seen::default());
    println!("connecting {count} clients at {accept_rate} a second and node");
    let crowd: Vec<Client> = (0..count).map(|number| connect(number, &addresses, &seen)).collect();
    let begun = Instant::now();
    reached(&seen.open, count as u64, "clients to connect").await;
    println!("connected after {:.1} s", begun.elapsed().as_secs_f64());

    let queries = Queries::sample(&url).await;
    let publishing = Publishing::start(addresses.clone());
    let mut most = 0;
    for node in 0..NODES {
        let (lost, begun) = (seen.lost.load(Ordering::Relaxed), Instant::now());
        nodes[node].terminate();
        let status = timeout(PATIENCE, nodes[node].wait()).await.expect("the end of the drain");
        let drained = begun.elapsed();
        most = most.max(most_in_a_second(&nodes[node].log()));
        nodes[node] = cluster.start(&addresses[node].to_string()).await;
        nodes[node].ready().await;
        reached(&seen.open, count as u64, "clients to come back").await;
        let moved = seen.lost.load(Ordering::Relaxed) - lost;
        let back = begun.elapsed();
        println!(
            "node {node}: ended ({status}) after {:.1} s, {moved} clients moved and were back after {:.1} s",
            drained.as_secs_f64(),
            back.as_secs_f64(),
        );
    }
    let last = publishing.stop().await;
    let all = last * count as u64;
    reached(&seen.messages, all, "messages to arrive").await;
    most = nodes.iter().map(|node| most_in_a_second(&node.log())).fold(most, usize::max);
    println!(
        "handshakes that one node began within any second: {most} at most ({:.2} x accept_rate)",
        most as f64 / f64::from(accept_rate)
    );
    let (running, connections) = queries.stop().await;
    println!(
        "session queries at once: {running} at most; connections of a node to the database: {connections} at most"
    );
    let (gaps, resets) = (seen.gaps.load(Ordering::Relaxed), seen.resets.load(Ordering::Relaxed));
    let (messages, recovered) = (seen.messages.load(Ordering::Relaxed), seen.recovered.load(Ordering::Relaxed));
    println!("{last} messages to {count} clients: {messages} of {all} arrived, {gaps} out of order, {resets} resets");
    println!("{recovered} times a client came back and had missed nothing");
    crowd.iter().for_each(Client::close);
    assert!(gaps == 0 && resets == 0 && messages == all, "a client missed a message");
}

/// The settings of the nodes.
struct Cluster {
    url: String,
    state: TempDir,
    accept_rate: u32,
    drain: String,
}

impl Cluster {
    async fn start(&self, listen: &str) -> WsServer {
        let mut command = WsServer::command(self.state.path());
        let rate = self.accept_rate.to_string();
        command.args(["run", "--listen", listen, "--pool", &self.url, "--key", KEY, "--publish-key", PUBLISH_KEY]);
        command.args(["--session-cookie", "session", "--session-query", "SELECT user FROM sessions WHERE id = ?"]);
        command.args(["--accept-rate", &rate, "--drain", &self.drain, "--no-guests"]);
        command.args(["--log-filter", "info,ws_cluster::server::upgrade=debug"]);
        // All clients of this measurement have one address.
        for limit in ["--connections-per-ip", "--sockets-per-ip", "--look-ups-per-ip"] {
            command.args([limit, "100000"]);
        }
        WsServer::spawn(command).await
    }
}

async fn make_sessions(url: &str, count: usize) {
    let mut conn = Conn::new(Opts::from_url(url).expect("a URL")).await.expect("a database");
    let table = "CREATE TABLE sessions (id VARCHAR(64) PRIMARY KEY, user VARCHAR(64) NOT NULL)";
    conn.query_drop(table).await.expect("a table");
    let numbers: Vec<usize> = (0..count).collect();
    for some in numbers.chunks(1_000) {
        let rows: Vec<String> = some.iter().map(|number| format!("('session-{number}', 'user-{number}')")).collect();
        conn.query_drop(format!("INSERT INTO sessions VALUES {}", rows.join(", "))).await.expect("rows");
    }
    conn.disconnect().await.expect("an end");
}

/// What all clients saw.
#[derive(Default)]
struct Seen {
    /// Clients that are open and on the cluster.
    open: AtomicU64,
    lost: AtomicU64,
    messages: AtomicU64,
    gaps: AtomicU64,
    resets: AtomicU64,
    recovered: AtomicU64,
}

/// Returns the most handshakes that a node began within any second, by the times in its log.
fn most_in_a_second(log: &str) -> usize {
    let (mut last, mut most) = (VecDeque::new(), 0);
    for time in log.lines().filter(|line| line.contains("a client's handshake begins")).map(time_of_day) {
        last.push_back(time);
        while last.front().is_some_and(|first| time - first >= 1.) {
            last.pop_front();
        }
        most = most.max(last.len());
    }
    most
}

/// Returns the time of a log line, `2026-01-31T12:00:00.000000Z` and more, in seconds since midnight.
fn time_of_day(line: &str) -> f64 {
    let parts: Option<Vec<f64>> =
        line.get(11..26).and_then(|time| time.split(':').map(|part| part.parse().ok()).collect());
    let [hours, minutes, seconds] = parts.unwrap_or_default()[..] else { panic!("{line} has no time") };
    (hours * 60. + minutes) * 60. + seconds
}

/// Connects a client whose first node is its number's.
fn connect(number: usize, addresses: &[SocketAddr], seen: &Arc<Seen>) -> Client {
    let urls = (0..NODES).map(|step| format!("ws://{}/WebSockets", addresses[(number + step) % NODES]));
    let builder = Client::builder(urls).cookie(&format!("session=session-{number}"));
    let (client, events) = builder.connect().expect("URLs");
    tokio::spawn(follow(events, seen.clone()));
    client
}

async fn follow(mut events: Events, seen: Arc<Seen>) {
    let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    let (mut is_open, mut last) = (false, 0);
    while let Some(event) = events.next().await {
        match event {
            Event::New => {
                add(&seen.open);
                is_open = true;
            }
            Event::Recovered(_) => {
                add(&seen.open);
                add(&seen.recovered);
                is_open = true;
            }
            Event::Reset(why) if add(&seen.resets) == 0 => eprintln!("a client is reset: {why}"),
            Event::Message(message) if message.action == ACTION => {
                let number: u64 = message.details.detail(0).unwrap_or_default();
                if number != last + 1 {
                    add(&seen.gaps);
                }
                last = number;
                add(&seen.messages);
            }
            Event::Closed { .. } if is_open => {
                seen.open.fetch_sub(1, Ordering::Relaxed);
                add(&seen.lost);
                is_open = false;
            }
            _ => {}
        }
    }
}

/// Waits until a count is reached.
async fn reached(count: &AtomicU64, wanted: u64, what: &str) {
    let waiting = async {
        while count.load(Ordering::Relaxed) < wanted {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(PATIENCE, waiting).await.is_err() {
        panic!("waited too long for {what}: {} of {wanted}", count.load(Ordering::Relaxed));
    }
}

/// Publishes numbered messages, each until a node accepts it.
struct Publishing {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl Publishing {
    fn start(addresses: Vec<SocketAddr>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut pace = interval(PUBLISH_INTERVAL);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut number = 0;
            while !*stopped.borrow() {
                pace.tick().await;
                number += 1;
                let (details, key) = (json!([number]), format!("tick {number}"));
                let message = Message { action: ACTION, details: &details, to: "all", key: Some(&key) };
                let mut turn = number as usize;
                while let Err(refusal) = publish(addresses[turn % NODES], message, Duration::from_secs(10)).await {
                    assert!(!matches!(refusal, Refusal::Wrong(_)), "{refusal:?}");
                    turn += 1;
                    sleep(Duration::from_millis(20)).await;
                }
            }
            number
        });
        Self { stop, task }
    }

    /// Stops, and returns the number of the last message.
    async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.expect("no panic")
    }
}

/// Looks at what the database does.
struct Queries {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, u64)>,
}

impl Queries {
    async fn sample(url: &str) -> Self {
        let mut conn = Conn::new(Opts::from_url(url).expect("a URL")).await.expect("a database");
        let stop = Arc::new(AtomicBool::default());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let is_look_up = "COMMAND IN ('Query', 'Execute') AND INFO LIKE 'SELECT user FROM sessions%'";
            let look = format!(
                "SELECT CAST(SUM({is_look_up}) AS UNSIGNED), COUNT(*) FROM information_schema.PROCESSLIST \
                 WHERE USER = 'tests'"
            );
            let mut most = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let row: Option<(u64, u64)> = conn.query_first(&look).await.expect("a list of processes");
                let (running, connections) = row.unwrap_or_default();
                most = (most.0.max(running), most.1.max(connections));
                sleep(SAMPLE_INTERVAL).await;
            }
            most
        });
        Self { stop, task }
    }

    /// Returns the most queries at once and the most connections of all nodes.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic")
    }
}
