//! Three nodes on one machine, in one SQLite file: what the master adds to the latency of a delivery, and how many
//! messages it handles.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use benches::{Result, control, marked};
use tempfile::TempDir;

use crate::{
    load::{
        Load,
        order::{FanOut, Order, Recipe, Report},
    },
    peers::{MESSAGE, Ours, Peer, Running},
};

const NODES: usize = 3;

/// Time for the nodes to find each other.
const JOIN: Duration = Duration::from_secs(30);

/// Number of clients of the node whose latency is measured.
const CLIENTS: usize = 10;

/// Pause between two publishes of a light load.
const PAUSE: u64 = 5_000;

/// Number of publishers, and of messages that each publishes at once.
const PUBLISHERS: usize = 64;
const BATCH: usize = 64;

pub(super) struct Cluster {
    /// The nodes, the master first.
    pub(super) nodes: Vec<Running>,
    load: Load,
    _directory: TempDir,
}

impl Cluster {
    /// Starts nodes. The scheduler decides about their cores, as on a machine with other services.
    fn start(size: usize) -> Result<Self> {
        Self::start_as(size, Ours::default())
    }

    /// Starts nodes of this build.
    pub(super) fn start_as(size: usize, peer: Ours) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("benches-").tempdir()?;
        let pool = (size > 1).then(|| format!("sqlite:{}", directory.path().join("pool").display()));
        let peer = Ours { pool, ..peer };
        let mut nodes: Vec<Running> = (0..size).map(|_| Running::start(&peer, None)).collect::<Result<_>>()?;
        let master = joined(&nodes)?;
        nodes.swap(0, master);
        Ok(Self { nodes, load: Load::start(None)?, _directory: directory })
    }

    fn connect(&mut self, node: usize, first: usize, count: usize) -> Result<()> {
        let recipe = Recipe { port: self.nodes[node].port, ..Ours::default().recipe() };
        self.load.order(&Order::Connect { recipe, first, count, in_flight: 10 })?;
        Ok(())
    }

    /// Measures the latency at the clients of one node for publishes on another.
    fn latency(&mut self, published: usize, received: usize, rounds: usize) -> Result<Report> {
        self.connect(received, 0, CLIENTS)?;
        let order = |rounds| {
            Order::FanOut(FanOut {
                publish_to: Some(self.nodes[published].control),
                publishes: vec![Ours::publish_to("all", 1)],
                reached: CLIENTS,
                messages: 1,
                rounds,
                pause_micros: PAUSE,
                ..FanOut::default()
            })
        };
        let (warm_up, measured) = (order(rounds / 10 + 1), order(rounds));
        self.load.order(&warm_up)?;
        self.load.order(&measured)
    }
}

/// Waits until nodes know each other. Returns the index of the master.
pub(crate) fn joined(nodes: &[Running]) -> Result<usize> {
    let began = Instant::now();
    loop {
        let statuses: Vec<String> = nodes.iter().map(|node| ask(node.control, "/status", "")).collect::<Result<_>>()?;
        let whole = statuses.iter().all(|status| status.ends_with(&format!(" {}", nodes.len())));
        if let Some(master) = statuses.iter().position(|status| status.starts_with("true"))
            && (whole || nodes.len() == 1)
        {
            return Ok(master);
        }
        if began.elapsed() > JOIN {
            return Err(format!("the nodes do not find each other: {statuses:?}").into());
        }
        sleep(Duration::from_millis(100));
    }
}

/// Measures the latency of a single node, and from one follower to another's clients.
pub(crate) fn latency(rounds: usize) -> Result<(Report, Report)> {
    let local = Cluster::start(1)?.latency(0, 0, rounds)?;
    let relayed = Cluster::start(NODES)?.latency(1, 2, rounds)?;
    Ok((local, relayed))
}

/// Returns the messages accepted per second, the messages delivered to each of three clients per second, and the number
/// of clients that were lost.
pub(crate) fn throughput(seconds: usize) -> Result<[f64; 3]> {
    let mut cluster = Cluster::start(NODES)?;
    for node in 0..NODES {
        cluster.connect(node, node, 1)?;
    }
    cluster.load.begin(&Order::Count { millis: seconds as u64 * 1000 + 2000 })?;
    let nodes = &cluster.nodes;
    let accepted: Vec<Result<usize>> = scope(|scope| {
        let floods: Vec<_> = (0..NODES)
            .map(|node| {
                let publishers = (PUBLISHERS + NODES - 1 - node) / NODES;
                let target = format!("/flood?publishers={publishers}&batch={BATCH}&seconds={seconds}");
                scope.spawn(move || Ok(ask(nodes[node].control, &target, &marked(MESSAGE / 2))?.parse()?))
            })
            .collect();
        floods.into_iter().map(|flood| flood.join().unwrap_or_else(|_| Err("a thread is gone".into()))).collect()
    });
    let accepted: usize = accepted.into_iter().sum::<Result<usize>>()?;
    let report = cluster.load.end()?;
    let seconds = seconds as f64;
    Ok([accepted as f64 / seconds, report.done as f64 / NODES as f64 / seconds, report.failed as f64])
}

/// Sends a request to the control port of a server of ours. Returns the answer.
fn ask(control: SocketAddr, target: &str, text: &str) -> Result<String> {
    let mut stream = TcpStream::connect(control)?;
    stream.write_all(control::request(target, text).as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let size = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..size]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Some(length) = head.rsplit_once("Content-Length: ").and_then(|(_, length)| length.parse().ok())
            && body.len() >= length
        {
            return Ok(body.to_owned());
        }
        if size == 0 {
            return Err(format!("{target} was answered by {text:?}").into());
        }
    }
}
