//! Two minutes of faults from a seed on a real cluster. Its own file, so that it runs alone: heartbeats starve where
//! many processes share few cores. `WS_CLUSTER_SEED` repeats what was done; `cargo run -p tests --bin faults` goes on
//! for longer.

use std::time::Duration;

use tests::{
    faults::{Options, run},
    random::Random,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_all_faults_clients_get_everything_once_in_one_order_or_are_told() {
    let given = std::env::var("WS_CLUSTER_SEED").ok();
    let seed = given.map_or_else(Random::seed, |seed| seed.parse().expect("a seed is a number"));
    println!("seed {seed}");
    let options = Options { time: Duration::from_secs(120), seed, clients: 200, rate: 25.0, keep: false };
    let outcome = run(options).await;
    println!("{outcome}");
    assert!(outcome.is_good(), "seed {seed}");
}
