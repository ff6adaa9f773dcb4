//! Measures how long a cluster of three real processes on a MariaDB has no master. The time runs from the loss of the
//! master to the first message at a client of one follower that was published on the other follower after that moment.
//! `cargo run --release -p tests --bin failover` prints a table; it asserts nothing.

use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tests::{
    MariaDb,
    processes::Processes,
    publish::{Message, publish},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use ws_cluster::{
    Client,
    client::{Event, Events},
};

/// Time between two publishes, which is the resolution of the measurement.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit of a publish.
const PATIENCE: Duration = Duration::from_secs(60);
/// A publish that begins so soon after the loss could still have been accepted by the old master.
const MARGIN: Duration = Duration::from_millis(2);
/// Time from the loss of the master until the database is started again, if it was killed before.
const DATABASE_AFTER: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Arguments {
    /// Number of measurements for each kind of loss
    #[arg(long, default_value_t = 20)]
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Killed,
    Frozen,
    KilledWithoutDatabase,
}

impl Loss {
    fn text(self) -> &'static str {
        match self {
            Self::Killed => "kill -9 of the master",
            Self::Frozen => "SIGSTOP of the master",
            Self::KilledWithoutDatabase => "kill -9 of the master, the database away from before to 1 s after",
        }
    }
}

#[tokio::main]
async fn main() {
    let Arguments { count } = Arguments::parse();
    let mut database = MariaDb::start().await;
    let mut processes = Processes::start(&[database.database().await], 3, &["--demo"]).await;
    println!("| 3 nodes on MariaDB, {count} times each | best | median | worst |");
    println!("|---|---|---|---|");
    let mut number = 0;
    for loss in [Loss::Killed, Loss::Frozen, Loss::KilledWithoutDatabase] {
        let (mut gaps, mut back) = (Vec::new(), Vec::new());
        for _ in 0..count {
            number += 1;
            let (gap, answered) = measure(&mut database, &mut processes, loss, number).await;
            gaps.push(gap);
            back.extend(answered);
        }
        row(loss.text(), &mut gaps);
        if !back.is_empty() {
            row("from the database's first answer on", &mut back);
        }
    }
}

fn row(what: &str, times: &mut [Duration]) {
    times.sort();
    let text = |time: Option<&Duration>| time.map_or("-".into(), |time| format!("{:.0} ms", time.as_secs_f64() * 1e3));
    let (best, median, worst) = (text(times.first()), text(times.get(times.len() / 2)), text(times.last()));
    println!("| {what} | {best} | {median} | {worst} |");
}

/// Returns the time without a master, and how much of it came after the database answered again, if it was away.
async fn measure(
    database: &mut MariaDb,
    processes: &mut Processes,
    loss: Loss,
    number: usize,
) -> (Duration, Option<Duration>) {
    let master = processes.settled().await.expect("a whole cluster").master;
    processes.flushed(number).await.expect("a cluster that accepts");
    let (publishes, listens) = ((master + 1) % 3, (master + 2) % 3);
    let (client, events) =
        Client::builder([format!("ws://{}/WebSockets", processes.address(listens))]).connect().expect("a URL");
    let events = ready(events).await;
    if loss == Loss::KilledWithoutDatabase {
        database.kill().await;
    }

    let lost = Instant::now();
    match loss {
        Loss::Killed | Loss::KilledWithoutDatabase => processes.kill(master).await,
        Loss::Frozen => processes.freeze(master),
    }
    let from = Instant::now() + MARGIN;
    let address = processes.address(publishes);
    let publishing = tokio::spawn(async move {
        let mut pace = interval(PUBLISH_INTERVAL);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When dropped with this task, it ends what still waits.
        let mut waiting = JoinSet::new();
        tokio::time::sleep_until(from.into()).await;
        loop {
            pace.tick().await;
            waiting.spawn(async move {
                let details = json!([number]);
                let message = Message { action: "failover", details: &details, to: "all", key: None };
                // The client sees whether it is accepted.
                let _ = publish(address, message, PATIENCE).await;
            });
            while waiting.try_join_next().is_some() {}
        }
    });
    let delivered = tokio::spawn(first(events, number));
    let mut answered = None;
    if loss == Loss::KilledWithoutDatabase {
        sleep_until((lost + DATABASE_AFTER).into()).await;
        database.start_again().await;
        answered = Some(Instant::now());
    }
    let delivered = timeout(PATIENCE, delivered).await.expect("a new master in time").expect("no panic");
    publishing.abort();
    client.close();

    match loss {
        Loss::Killed | Loss::KilledWithoutDatabase => processes.start_node(master).await,
        Loss::Frozen => processes.thaw(master),
    }
    (delivered - lost, answered.map(|answered| delivered.saturating_duration_since(answered)))
}

/// Waits until the client gets messages.
async fn ready(mut events: Events) -> Events {
    loop {
        match events.next().await.expect("the client is open") {
            Event::New => return events,
            Event::Closed { reason, .. } => panic!("no connection: {reason}"),
            _ => {}
        }
    }
}

/// Returns the time of the first message of this measurement.
async fn first(mut events: Events, number: usize) -> Instant {
    loop {
        match events.next().await.expect("the client is open") {
            Event::Message(message) if message.action == "failover" && message.details == [json!(number)] => {
                return Instant::now();
            }
            _ => {}
        }
    }
}
