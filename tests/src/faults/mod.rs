//! A real cluster under faults from a seed, with clients that resume and publishers that try again; what they went
//! through is a history, which is judged in the end.
//!
//! `plan` says what goes wrong, `crowd` and `publishers` live with it and write to `recorder`, this file makes it
//! happen. Real processes do not repeat a run to the letter; the seed repeats what was done to them.

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
    history::{Record, Report, SENTINEL},
    processes::Processes,
    publish::Message,
    random::Random,
};
use crowd::{ACTION, Crowd};
use publishers::{Place, Publishers, anywhere};
use recorder::Recorder;

/// How long clients may take to see the last message, the cluster being whole.
const LAST: Duration = Duration::from_secs(60);
/// Time between two clients that go to another node, beside all faults.
const HOP: Duration = Duration::from_millis(500);
/// Publishers over links.
const LINKS: usize = 2;

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long faults are injected. The round that is under way ends, and healing comes on top.
    pub time: Duration,
    /// What goes wrong, and how many nodes there are.
    pub seed: u64,
    /// Clients; a fifth of them guests.
    pub clients: usize,
    /// Messages a second, of all publishers together.
    pub rate: f64,
    /// Lets two nodes be away at once, of which only one loses its memory: messages come late then.
    pub late: bool,
    /// Keeps the history of a run that is as promised, too.
    pub keep: bool,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How many nodes there were.
    pub nodes: usize,
    /// Faults by their kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Masters that followed another.
    pub terms: u64,
    /// What clients and publishers went through.
    pub report: Report,
    /// Why it ended early: the cluster did not become whole again, or did not publish.
    pub stuck: Option<String>,
    /// Where the history and the logs are, where they were kept.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// Whether all was as promised.
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

/// Starts a cluster, injects faults, heals it, and judges.
///
/// # Panics
/// What it needs does not start: MariaDB, or the nodes at the beginning.
pub async fn run(options: Options) -> Outcome {
    let nodes = 3 + (options.seed % 3) as usize;
    let plan = match options.late {
        true => Plan::with_late_messages(options.seed, nodes),
        false => Plan::new(options.seed, nodes),
    };
    live_through(options, nodes, plan).await
}

/// The same while all of three nodes are restarted in order, one after the other.
///
/// # Panics
/// As for [`run`].
pub async fn restart_all(options: Options) -> Outcome {
    live_through(options, 3, plan::rolling_restart(3)).await
}

async fn live_through(options: Options, nodes: usize, rounds: impl Iterator<Item = Vec<Timed>>) -> Outcome {
    let processes = Processes::start(nodes).await;
    let recorder = Arc::new(Recorder::start());
    let addresses: Vec<_> = (0..nodes).map(|node| processes.address(node)).collect();
    let crowd = Crowd::connect(options.clients, &addresses, &processes.names(), &recorder);
    let place = Place { addresses, processes: processes.names(), recorder: recorder.clone() };
    let mut run = Run {
        processes,
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
    processes: Processes,
    crowd: Crowd,
    place: Place,
    recorder: Arc<Recorder>,
    /// For what the plan leaves open: who hops.
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
            (Fault::Database { killed: true }, true) => self.processes.database.kill().await,
            (Fault::Database { killed: false }, true) => self.processes.database.stop().await,
            (Fault::Database { .. }, false) => self.processes.database.start_again().await,
            (Fault::EmptyTables { dropped }, true) => self.processes.empty_tables(dropped).await,
            (Fault::Hop(percent), true) => self.crowd.hop(percent, &mut self.random),
            (Fault::EmptyTables { .. } | Fault::Hop(_), false) => {}
        }
    }

    /// Publishes the last message, and waits until all have it. That some have not is in the history.
    async fn last(&mut self) -> Result<(), String> {
        self.processes.flushed(self.rounds + 1).await?;
        let by = || SENTINEL.into();
        self.recorder.add(&Record::Begun { t: self.recorder.now(), by: by(), number: 0, to: "all".into() });
        let details = json!([SENTINEL, 0]);
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
        // Before clients are closed, which is no part of the history.
        let read = self.recorder.read();
        self.crowd.close();
        let (report, stuck) = match read {
            Ok(history) => (history.check(), stuck),
            Err(error) => (Report::default(), Some(format!("the history cannot be read: {error}"))),
        };
        let mut outcome = Outcome { seed: options.seed, nodes, faults: self.faults, terms, report, stuck, kept: None };
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
