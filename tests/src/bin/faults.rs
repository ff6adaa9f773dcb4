//! Runs a cluster of real processes under faults from a seed, and checks the history of its clients and publishers:
//! `cargo run --release -p tests --bin faults -- --minutes 30`. Exits with 1 if a promise is broken.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tests::{
    faults::{Options, run},
    random::Random,
};

#[derive(Parser)]
struct Arguments {
    /// Number of minutes for which faults are injected
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Seed of the faults and of the number of nodes [default: any]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of clients
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Messages per second, of all publishers together
    #[arg(long, default_value_t = 25.0)]
    rate: f64,
    /// Also kill a master while the one node that has its last messages is frozen: they come late, and none is lost
    #[arg(long)]
    late: bool,
    /// Let the clients negotiate compression (permessage-deflate)
    #[arg(long)]
    deflate: bool,
    /// Also keep the history of a run without violations
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { minutes, seed, clients, rate, late, deflate, keep } = Arguments::parse();
    let seed = seed.unwrap_or_else(Random::seed);
    println!("seed {seed}");
    let time = Duration::from_secs_f64(minutes * 60.0);
    let outcome = run(Options { time, seed, clients, rate, late, deflate, keep }).await;
    println!("{outcome}");
    ExitCode::from(u8::from(!outcome.is_good()))
}
