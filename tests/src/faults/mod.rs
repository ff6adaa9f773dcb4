//! Runs a real cluster under faults from a seed, with clients that resume and publishers that try again. Their records
//! are a history, which is checked at the end.
//!
//! `plan` decides the faults, `crowd` and `publishers` run under them and write to `recorder`, and this file carries
//! out the plan. Real processes do not repeat a run exactly; the seed repeats the faults.

mod crowd;
mod plan;
mod publishers;
mod recorder;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::{interval, sleep_until};

pub use plan::{Fault, Plan, Timed, Victim};

use crate::{
    MariaDb,
    deflate::Compressing,
    history::{Record, Report, SENTINEL},
    processes::Processes,
    publish::Message,
    random::Random,
};
use crowd::{ACTION, Crowd, PADDING};
use publishers::{Place, Publishers, anywhere};
use recorder::Recorder;

/// Time for clients to see the last message, in a cluster that is whole.
const LAST: Duration = Duration::from_secs(60);
/// Time between two clients that change nodes, in addition to all faults.
const HOP: Duration = Duration::from_millis(500);
/// Number of publishers over links.
const LINKS: usize = 2;

/// The options of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Time in which faults are injected. A round that has begun is finished, and the healing comes after it.
    pub time: Duration,
    /// The seed of the faults and of the number of nodes.
    pub seed: u64,
    /// Number of clients. A fifth of them are guests.
    pub clients: usize,
    /// Number of messages per second, of all publishers together.
    pub rate: f64,
    /// Lets two nodes be away at once, of which only one loses its memory, so that messages come late.
    pub late: bool,
    /// Lets all clients negotiate compression, through a proxy in front of each node.
    pub deflate: bool,
    /// Also keeps the history of a run without violations.
    pub keep: bool,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Faults by their kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Number of changes of the master.
    pub terms: u64,
    /// Number of messages that clients got compressed.
    pub compressed: u64,
    /// The report of the history.
    pub report: Report,
    /// The reason why the run ended early: the cluster did not become whole again, or did not publish.
    pub stuck: Option<String>,
    /// The directory of the history and the logs, if they were kept.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// Returns true if all promises were kept.
    pub fn is_good(&self) -> bool {
        self.stuck.is_none() && self.report.is_clean()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} nodes, {} changes of the master", self.seed, self.nodes, self.terms)?;
        for (kind, count) in &self.faults {
            writeln!(f, "{count:>5} {kind}")?;
        }
        if self.compressed > 0 {
            writeln!(f, "{} messages came compressed", self.compressed)?;
        }
        write!(f, "{}", self.report)?;
        if let Some(stuck) = &self.stuck {
            write!(f, "\nSTUCK: {stuck}")?;
        }
        if let Some(kept) = &self.kept {
            write!(f, "\nhistory and logs are in {}", kept.display())?;
        }
        Ok(())
    }
}

/// Starts a cluster, injects faults, heals it, and checks the history.
///
/// # Panics
/// Panics if MariaDB or the first nodes do not start.
pub async fn run(options: Options) -> Outcome {
    let nodes = 3 + (options.seed % 3) as usize;
    let plan = match options.late {
        true => Plan::with_late_messages(options.seed, nodes),
        false => Plan::new(options.seed, nodes),
    };
    live_through(options, nodes, plan).await
}

/// Runs like [`run`], but restarts all of three nodes in order, one after the other.
///
/// # Panics
/// Panics as [`run`] does.
pub async fn restart_all(options: Options) -> Outcome {
    live_through(options, 3, plan::rolling_restart(3)).await
}

async fn live_through(options: Options, nodes: usize, rounds: impl Iterator<Item = Vec<Timed>>) -> Outcome {
    let database = MariaDb::start().await;
    let processes = Processes::start(&[database.database().await], nodes, &["--demo"]).await;
    let recorder = Arc::new(Recorder::start());
    let addresses: Vec<_> = (0..nodes).map(|node| processes.address(node)).collect();
    let mut proxies = Vec::new();
    if options.deflate {
        for address in &addresses {
            proxies.push(Compressing::start(*address).await);
        }
    }
    let proxied: Vec<_> = proxies.iter().map(Compressing::address).collect();
    let connected = if options.deflate { &proxied } else { &addresses };
    let crowd = Crowd::connect(options.clients, connected, &processes.names(), &recorder);
    let place = Place { addresses, processes: processes.names(), recorder: recorder.clone() };
    let mut run = Run {
        database,
        processes,
        proxies,
        crowd,
        place,
        recorder,
        random: Random::new(!options.seed),
        faults: BTreeMap::new(),
        rounds: 0,
    };
    let mut terms = (0, 0);
    let stuck = run.live(&options, rounds, &mut terms).await.err();
    run.finish(options, nodes, terms.1 - terms.0, stuck)
}

struct Run {
    database: MariaDb,
    processes: Processes,
    /// One in front of each node, if the clients negotiate compression.
    proxies: Vec<Compressing>,
    crowd: Crowd,
    place: Place,
    recorder: Arc<Recorder>,
    /// For choices that the plan leaves open, such as which clients change nodes.
    random: Random,
    faults: BTreeMap<&'static str, u64>,
    rounds: usize,
}

impl Run {
    async fn live(
        &mut self,
        options: &Options,
        rounds: impl Iterator<Item = Vec<Timed>>,
        terms: &mut (u64, u64),
    ) -> Result<(), String> {
        let mut links = Vec::new();
        for _ in 0..LINKS {
            links.push(self.processes.publisher().await.map_err(|error| error.to_string())?);
        }
        let publishers = Publishers::start(&self.place, links, options.rate, options.seed);
        let start = Instant::now();
        terms.0 = self.processes.settled().await?.lease.term;
        for round in rounds {
            if start.elapsed() >= options.time {
                break;
            }
            self.round(&round).await?;
            self.processes.mend();
            self.processes.settled().await?;
            self.rounds += 1;
            self.processes.flushed(self.rounds).await?;
            // A link that died of the fault may have been noticed only meanwhile.
            terms.1 = self.processes.settled().await?.lease.term;
        }
        publishers.end().await;
        self.last().await
    }

    /// Injects the faults of a round, and ends them.
    async fn round(&mut self, round: &[Timed]) -> Result<(), String> {
        let master = self.processes.settled().await?.master;
        let mut steps: Vec<(Duration, bool, Fault)> = Vec::new();
        for timed in round {
            self.note(&timed.to_string());
            *self.faults.entry(timed.fault.kind()).or_default() += 1;
            steps.push((timed.after, true, timed.fault));
            steps.push((timed.after + timed.lasts, false, timed.fault));
        }
        steps.sort_by_key(|(at, ..)| *at);
        let start = tokio::time::Instant::now();
        let mut hops = interval(HOP);
        for (at, begins, fault) in steps {
            loop {
                tokio::select! {
                    () = sleep_until(start + at) => break,
                    _ = hops.tick() => self.crowd.hop_one(&mut self.random),
                }
            }
            self.note(&format!("{} {}", fault.kind(), if begins { "begins" } else { "ends" }));
            self.step(master, begins, fault).await;
        }
        Ok(())
    }

    async fn step(&mut self, master: usize, begins: bool, fault: Fault) {
        let count = self.processes.count();
        let node = |victim: Victim| match victim {
            Victim::Master => master,
            Victim::Follower(number) => (master + 1 + number) % count,
            Victim::Node(node) => node,
        };
        let cut = |processes: &Processes, from, to| match begins {
            true => processes.cut_one_way(from, to),
            false => processes.mend_one_way(from, to),
        };
        match (fault, begins) {
            (Fault::Kill(victim), true) => self.processes.kill(node(victim)).await,
            (Fault::Leave(victim), true) => self.processes.terminate(node(victim)).await,
            (Fault::Kill(victim) | Fault::Leave(victim), false) => self.processes.start_node(node(victim)).await,
            (Fault::Freeze(victim), true) => self.processes.freeze(node(victim)),
            (Fault::Freeze(victim), false) => self.processes.thaw(node(victim)),
            (Fault::CutOneWay(from, to), _) => cut(&self.processes, node(from), node(to)),
            (Fault::Cut(one, other), _) => {
                cut(&self.processes, node(one), node(other));
                cut(&self.processes, node(other), node(one));
            }
            (Fault::Isolate(victim), _) => {
                let one = node(victim);
                for other in (0..count).filter(|other| *other != one) {
                    cut(&self.processes, one, other);
                    cut(&self.processes, other, one);
                }
            }
            (Fault::Slow(victim, delay), true) => self.processes.slow(node(victim), delay),
            (Fault::Slow(victim, _), false) => self.processes.slow(node(victim), Duration::ZERO),
            (Fault::Database { killed: true }, true) => self.database.kill().await,
            (Fault::Database { killed: false }, true) => self.database.stop().await,
            (Fault::Database { .. }, false) => self.database.start_again().await,
            (Fault::EmptyTables { dropped }, true) => self.processes.empty_tables(dropped).await,
            (Fault::Hop(percent), true) => self.crowd.hop(percent, &mut self.random),
            (Fault::EmptyTables { .. } | Fault::Hop(_), false) => {}
        }
    }

    /// Publishes the last message, and waits until all clients have it. The history shows which clients have not.
    async fn last(&mut self) -> Result<(), String> {
        self.processes.flushed(self.rounds + 1).await?;
        let by = || SENTINEL.into();
        self.recorder.add(&Record::Begun { t: self.recorder.now(), by: by(), number: 0, to: "all".into() });
        let details = json!([SENTINEL, 0, PADDING]);
        let message = Message { action: ACTION, details: &details, to: "all", key: Some(SENTINEL) };
        anywhere(&self.place, 0, message, |_| {}).await?;
        self.recorder.add(&Record::Accepted { t: self.recorder.now(), by: by(), number: 0 });
        let missing = self.crowd.ended(LAST).await;
        if !missing.is_empty() {
            self.note(&format!("without the last message: {missing:?}"));
        }
        Ok(())
    }

    fn finish(self, options: Options, nodes: usize, terms: u64, stuck: Option<String>) -> Outcome {
        // Read before the clients are closed, because the close is no part of the history.
        let read = self.recorder.read();
        self.crowd.close();
        let (report, stuck) = match read {
            Ok(history) => (history.check(), stuck),
            Err(error) => (Report::default(), Some(format!("the history cannot be read: {error}"))),
        };
        let compressed = self.proxies.iter().map(Compressing::inflated).sum();
        let (seed, faults, kept) = (options.seed, self.faults, None);
        let mut outcome = Outcome { seed, nodes, faults, terms, compressed, report, stuck, kept };
        if options.keep || !outcome.is_good() {
            for (name, log) in self.processes.logs() {
                let path = self.recorder.directory().join(format!("{name}.log"));
                if let Err(error) = std::fs::write(&path, log) {
                    eprintln!("{}: {error}", path.display());
                }
            }
            outcome.kept = Some(self.recorder.keep());
        }
        outcome
    }

    fn note(&self, what: &str) {
        let t = self.recorder.now();
        println!("{:8.1} s: {what}", t as f64 / 1e6);
        self.recorder.add(&Record::Fault { t, what: what.into() });
    }
}
