//! Kills the master and the database of real processes while a site's transactions insert rows into the outbox, or
//! measures the outbox: `cargo run --release -p tests --bin outbox -- --runs 100`, or `-- --measure`. Exits with 1 if a
//! promise is broken.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use mysql_async::{Conn, prelude::Queryable};
use serde_json::Value;
use tests::{client::Client, outbox::Site, random::Random};
use tokio::time::sleep;

#[derive(Parser)]
struct Arguments {
    /// Number of runs, each with a seed of its own
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// Seed of the first run; the others follow it [default: any]
    #[arg(long)]
    seed: Option<u64>,
    /// Measure the time from a commit to the client, and the rows per second, instead
    #[arg(long)]
    measure: bool,
    /// Number of commits whose time is measured
    #[arg(long, default_value_t = 400)]
    commits: usize,
    /// Number of rows that are inserted as fast as possible
    #[arg(long, default_value_t = 20_000)]
    rows: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut site = Site::start().await;
    if arguments.measure {
        measure(&site, arguments.commits, arguments.rows).await;
        return ExitCode::SUCCESS;
    }
    let first = arguments.seed.unwrap_or_else(Random::seed);
    for seed in first..first + arguments.runs {
        match site.run(seed).await {
            Ok(summary) => println!("seed {seed}: {summary:?}"),
            Err(why) => {
                println!("seed {seed}: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} runs from seed {first} kept all promises", arguments.runs);
    ExitCode::SUCCESS
}

async fn measure(site: &Site, commits: usize, rows: usize) {
    let node = 0;
    let mut client = Client::connect_to(site.processes.address(node), "/WebSockets").await;
    client.send("demo/node", Value::Null).await;
    while client.json().await["action"] != "demo/node" {}
    let mut conn = Conn::from_url(site.processes.url()).await.expect("the database is there");
    let mut random = Random::new(1);
    let mut times = Vec::new();
    for number in 0..commits {
        // At any time between two looks of the poller.
        sleep(Duration::from_micros(random.below(100_000))).await;
        conn.query_drop("START TRANSACTION").await.expect("a transaction");
        let row = format!("INSERT INTO ws_outbox (action, details, target) VALUES ('measured', '[{number}]', 'all')");
        conn.query_drop(row).await.expect("a row");
        let before = Instant::now();
        conn.query_drop("COMMIT").await.expect("a commit");
        until(&mut client, number).await;
        times.push(before.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("from the start of COMMIT to the client, {commits} commits:");
    println!("median {:?}, p90 {:?}, p99 {:?}, maximum {:?}", at(50), at(90), at(99), at(100));

    for per_transaction in [1_000, 10] {
        let start = Instant::now();
        let writing = async {
            let mut inserted = None;
            for first in (0..rows).step_by(per_transaction) {
                let values =
                    (first..rows.min(first + per_transaction)).map(|row| format!("('measured','[{row}]','all')"));
                let values = values.collect::<Vec<_>>().join(",");
                let insert = format!("INSERT INTO ws_outbox (action, details, target) VALUES {values}");
                conn.query_drop(insert).await.expect("rows");
                inserted = Some(start.elapsed());
            }
            inserted.unwrap_or_default()
        };
        let (inserted, ()) = tokio::join!(writing, until(&mut client, rows - 1));
        let took = start.elapsed();
        println!(
            "{rows} rows, {per_transaction} in a transaction: inserted in {inserted:?}, delivered in {took:?}: {:.0} rows/s",
            rows as f64 / took.as_secs_f64()
        );
    }
}

/// Waits until the client gets the row with this number.
async fn until(client: &mut Client, number: usize) {
    loop {
        let message = client.json().await;
        if message["action"] == "measured" && message["details"][0] == number {
            return;
        }
    }
}
