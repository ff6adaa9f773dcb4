//! Runs a cluster of real processes under faults from a seed, and judges what its clients and publishers went through:
//! `cargo run --release -p tests --bin faults -- --minutes 30`. Exits with 1 where something is not as promised.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tests::{
    faults::{Options, run},
    random::Random,
};

#[derive(Parser)]
struct Arguments {
    /// How long faults are injected
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// What goes wrong, and how many nodes there are [default: any]
    #[arg(long)]
    seed: Option<u64>,
    /// How many clients there are
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Messages a second, of all publishers together
    #[arg(long, default_value_t = 25.0)]
    rate: f64,
    /// Also kill a master while the one node that has its last messages is frozen: they come late, and nothing is lost
    #[arg(long)]
    late: bool,
    /// Keep the history of a run that is as promised, too
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { minutes, seed, clients, rate, late, keep } = Arguments::parse();
    let seed = seed.unwrap_or_else(Random::seed);
    println!("seed {seed}");
    let outcome = run(Options { time: Duration::from_secs_f64(minutes * 60.0), seed, clients, rate, late, keep }).await;
    println!("{outcome}");
    ExitCode::from(u8::from(!outcome.is_good()))
}
