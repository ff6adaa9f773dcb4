//! Measures what a site that hangs does to everybody else: a real node delivers messages to readers while senders send
//! actions to the site's own code, which answers at once in one phase and not at all in the next.
//! `cargo run --release -p tests --bin backend_stall` prints a table with both phases of the same run.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tests::{
    WsServer,
    client::Client,
    publish::{Message, PUBLISH_KEY, publish},
    site::Site,
};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Time between two publishes. Each goes to every reader.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);
/// Time between two actions of a sender.
const ACTION_INTERVAL: Duration = Duration::from_millis(200);
/// Time after the beginning of a phase that does not count.
const WARM_UP: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Arguments {
    /// Clients that read
    #[arg(long, default_value_t = 200)]
    readers: usize,
    /// Clients that send actions
    #[arg(long, default_value_t = 200)]
    senders: usize,
    /// Seconds of each phase
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// What was seen in a phase.
#[derive(Default)]
struct Seen {
    /// The time from a publish to each reader.
    latencies: Vec<Duration>,
    /// The answers to actions, by code; 200 for a reply.
    answers: BTreeMap<u64, usize>,
}

#[tokio::main]
async fn main() {
    let Arguments { readers, senders, seconds } = Arguments::parse();
    let (state, mut site) = (tempfile::tempdir().expect("a temporary directory"), Site::start().await);
    let arguments =
        [site.arguments(), ["--no-backend-disconnect", "--publish-key", PUBLISH_KEY].map(str::to_owned).into()];
    let arguments = arguments.concat();
    let node = WsServer::start(state.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    node.ready().await;
    let (address, begun) = (node.address(), Instant::now());
    let (seen, hangs) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));

    let site_hangs = hangs.clone();
    tokio::spawn(async move {
        let mut hanging = Vec::new();
        loop {
            let asked = site.asked().await;
            match site_hangs.load(Ordering::Relaxed) {
                true => hanging.push(asked),
                false => asked.json(json!({"reply": []})).await,
            }
        }
    });
    for _ in 0..readers {
        let (mut reader, seen) = (Client::connect(address, &[]).await, seen.clone());
        tokio::spawn(async move {
            loop {
                let message = reader.json().await;
                if message["action"] == "tick" {
                    let at = Duration::from_micros(message["details"][0].as_u64().unwrap_or_default());
                    let latency = begun.elapsed().saturating_sub(at);
                    seen.lock().latencies.push(latency);
                }
            }
        });
    }
    for _ in 0..senders {
        let (client, seen) = (Client::connect(address, &[]).await, seen.clone());
        tokio::spawn(send(client, seen));
    }
    let publishing = tokio::spawn(async move {
        let mut beat = interval(PUBLISH_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let details = json!([begun.elapsed().as_micros() as u64]);
            let message = Message { action: "tick", details: &details, to: "all", key: None };
            publish(address, message, PATIENCE).await.expect("the node accepts");
        }
    });

    println!("{readers} readers, {senders} senders, {seconds} s in each phase");
    println!("| the site | deliveries | p50 | p99 | largest | memory of the node | answers to actions |");
    println!("|---|---|---|---|---|---|---|");
    let mut p99 = Vec::new();
    for (name, hanging) in [("answers", false), ("hangs", true), ("answers again", false)] {
        hangs.store(hanging, Ordering::Relaxed);
        sleep(WARM_UP).await;
        *seen.lock() = Seen::default();
        sleep(Duration::from_secs(seconds)).await;
        let Seen { mut latencies, answers } = std::mem::take(&mut *seen.lock());
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
        p99.push(at(0.99).as_secs_f64());
        println!(
            "| {name} | {} | {:.2?} | {:.2?} | {:.2?} | {:.1} MiB | {answers:?} |",
            latencies.len(),
            at(0.5),
            at(0.99),
            latencies.last().copied().unwrap_or_default(),
            memory(node.id()),
        );
    }
    publishing.abort();
    println!("p99 while the site hangs: {:.2} x that before, {:.2} x that after", p99[1] / p99[0], p99[1] / p99[2]);
}

/// Sends actions at a fixed rate, and counts the answers.
async fn send(mut client: Client, seen: Arc<Mutex<Seen>>) {
    let mut beat = interval(ACTION_INTERVAL);
    loop {
        tokio::select! {
            _ = beat.tick() => client.send("x", Value::Null).await,
            message = client.json() => {
                let code = match message["action"].as_str() {
                    Some("x") => 200,
                    Some("x:error") => message["details"][0].as_u64().unwrap_or_default(),
                    _ => continue,
                };
                *seen.lock().answers.entry(code).or_default() += 1;
            }
        }
    }
}

/// Returns the memory of a process, in MiB.
fn memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}
