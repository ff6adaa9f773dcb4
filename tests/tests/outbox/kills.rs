//! The master and the database are killed between any two steps of a site's transactions and of the poller.
//! `WS_CLUSTER_SEED` repeats one run; `cargo run -p tests --bin outbox` makes more of them.

use tests::{outbox::Site, random::Random};

/// Number of runs, each with a few transactions and one kill or two.
const RUNS: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_rows_are_delivered_once_and_rolled_back_rows_never_whatever_is_killed() {
    let given = std::env::var("WS_CLUSTER_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    let first = given.unwrap_or_else(Random::seed);
    let mut site = Site::start().await;
    for seed in first..first + if given.is_some() { 1 } else { RUNS } {
        let summary = site.run(seed).await.unwrap_or_else(|why| panic!("{why}"));
        println!("seed {seed}: {summary:?}");
    }
}
