//! Two minutes of faults from a seed on a real cluster. A file of its own, so that it runs alone: heartbeats starve if
//! many processes share few cores. `WS_CLUSTER_SEED` repeats the faults; `cargo run -p tests --bin faults` runs longer.

use std::time::Duration;

use tests::{
    faults::{Options, Outcome, restart_all, run},
    random::Random,
};
use tokio::sync::{Mutex, MutexGuard};

/// Lets these tests run one at a time: heartbeats starve if many processes share few cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

fn options(seconds: u64) -> Options {
    let given = std::env::var("WS_CLUSTER_SEED").ok();
    let seed = given.map_or_else(Random::seed, |seed| seed.parse().expect("a seed is a number"));
    println!("seed {seed}");
    Options {
        time: Duration::from_secs(seconds),
        seed,
        clients: 200,
        rate: 25.0,
        late: false,
        // Every second seed.
        deflate: seed % 2 == 1,
        keep: false,
    }
}

fn assert_good(outcome: &Outcome) {
    println!("{outcome}");
    assert!(outcome.is_good(), "seed {}", outcome.seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_all_faults_clients_get_everything_once_in_one_order_or_a_reset() {
    let _alone = alone().await;
    assert_good(&run(options(120)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_nodes_one_after_the_other_loses_no_message_and_resets_no_client() {
    let _alone = alone().await;
    // The proxies that compress add nothing to what is asserted here.
    let outcome = restart_all(Options { deflate: false, ..options(120) }).await;
    assert_good(&outcome);
    let report = &outcome.report;
    // Publishers that try again as documented see no error, and clients resume without a loss.
    assert_eq!((report.accepted, &report.refused), (report.published, &Default::default()));
    assert_eq!((report.again, &report.resets), (0, &Default::default()));
    assert!(report.recovered >= report.clients, "all were on a node that was restarted");
}
