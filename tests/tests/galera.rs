//! Three `ws-server` processes, each on its own server of a Galera cluster, with messages under way, while servers are
//! killed. An optional run: `WS_CLUSTER_GALERA=1 cargo test --workspace --test galera`.

use std::{process::Output, time::Instant};

use tests::{
    WsServer,
    galera::Galera,
    processes::KEY,
    publish::PUBLISH_KEY,
    world::{World, in_time},
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::interval,
};

/// Number of messages for which each publisher takes longer than the 5 s after which Galera drops a dead server.
const PAST_THE_SUSPICION: usize = 700;
/// The answer of a server without a quorum, as a node reports it.
const NO_QUORUM: &str = "not part of the primary component of its Galera cluster (ERROR 1047";

/// Lets these tests run one at a time: Galera suspects servers that starve.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// Waits until a node's `/ready` answers with this status and a text that contains `part`.
async fn answers(world: &World, node: usize, status: u16, part: &str) {
    // Only with the publish key, `/ready` tells the database's own error.
    let authorization = format!("Bearer {PUBLISH_KEY}");
    let looking = async {
        let mut look = interval(World::LOOK);
        loop {
            look.tick().await;
            let headers = [("authorization", &*authorization)];
            let (answer, text) = world.node(node).http("GET", "/ready", &headers, "").await;
            if answer == status && text.contains(part) {
                break;
            }
        }
    };
    in_time(&format!("{status} {part:?} of node {node}"), looking).await;
}

/// Waits until all nodes are ready.
async fn are_ready(world: &World) {
    for node in world.running() {
        answers(world, node, 200, "ready").await;
    }
}

/// Waits until a node has logged a warning that contains all of these.
async fn warns(world: &World, node: usize, parts: &[&str]) {
    let looking = async {
        let mut look = interval(World::LOOK);
        let is_wanted = |line: &str| line.contains(" WARN ") && parts.iter().all(|part| line.contains(part));
        while !world.node(node).log().lines().any(is_wanted) {
            look.tick().await;
        }
    };
    in_time(&format!("a warning of node {node} with {parts:?}"), looking).await;
}

/// Returns the exit status of a `ws-server` that ends by itself, and its output.
async fn ws_server(arguments: &[&str]) -> (i32, String) {
    let state = tempfile::tempdir().expect("a temporary directory");
    let Output { status, stdout, stderr } = WsServer::run(state.path(), arguments).await;
    let text = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (status.code().expect("no signal ends it"), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_galera_server_costs_no_message_and_its_node_reports_it_until_it_is_back() {
    if !Galera::is_wanted() {
        return;
    }
    let _alone = alone().await;
    let mut galera = Galera::start(3).await;
    let urls = galera.urls();
    let mut world = World::start(&urls).await;
    let (master, lease) = world.settled().await;
    are_ready(&world).await;
    let all = world.running();
    world.flow(&all);
    // The master's server, and that of a follower.
    for lost in [master, (master + 1) % 3] {
        world.flows(&all, 50).await;
        let killed = Instant::now();
        galera.kill(lost).await;
        answers(&world, lost, 503, "Connection refused").await;
        warns(&world, lost, &["degraded", "Connection refused"]).await;
        world.flows(&all, PAST_THE_SUSPICION).await;
        let others: Vec<usize> = all.iter().copied().filter(|node| *node != lost).collect();
        for node in &others {
            answers(&world, *node, 200, "ready").await;
        }
        let well = killed.elapsed();
        // The pool shows an old row of a node that still relays.
        let place = ["--pool", &*urls[others[0]], "--key", KEY];
        let (status, text) = ws_server(&["pool", place[0], place[1]]).await;
        assert!(status == 0 && text.contains("`ws-server check --all` asks the nodes"), "{status}: {text}");
        let (status, text) = ws_server(&[&["check", "--all"], &place[..]].concat()).await;
        assert_eq!(status, 0, "{text}");
        galera.start_again(lost).await;
        let back = killed.elapsed();
        are_ready(&world).await;
        println!("others well within {well:?}, server back after {back:?}, node {:?} later", killed.elapsed() - back);
        assert_eq!(world.settled().await.1.term, lease.term, "the master stays");
    }
    world.flows(&all, 50).await;
    world.ends().await;
    world.check().await;
    for published in world.published() {
        assert_eq!(published.accepted.len() as u64, published.tried, "{}: none was refused", published.by);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_quorum_costs_no_message_and_is_reported_until_the_rest_is_bootstrapped() {
    if !Galera::is_wanted() {
        return;
    }
    let _alone = alone().await;
    let mut galera = Galera::start(3).await;
    let urls = galera.urls();
    let mut world = World::start(&urls).await;
    let (_, lease) = world.settled().await;
    are_ready(&world).await;
    let all = world.running();
    world.flow(&all);
    world.flows(&all, 50).await;
    let killed = Instant::now();
    galera.kill(1).await;
    galera.kill(2).await;
    galera.without_quorum(0).await;
    answers(&world, 0, 503, NO_QUORUM).await;
    warns(&world, 0, &["degraded", NO_QUORUM]).await;
    let lost = killed.elapsed();
    for node in [1, 2] {
        answers(&world, node, 503, "Connection refused").await;
    }
    let (status, text) = ws_server(&["pool", "--pool", &urls[0]]).await;
    assert!(status == 2 && text.contains(NO_QUORUM), "{status}: {text}");
    let (status, text) = ws_server(&["run", "--listen", "127.0.0.1:0", "--key", KEY, "--pool", &urls[0]]).await;
    assert!(status == 2 && text.contains(NO_QUORUM), "{status}: {text}");
    world.flows(&all, PAST_THE_SUSPICION).await;
    galera.bootstrap(0).await;
    let bootstrapped = Instant::now();
    answers(&world, 0, 200, "ready").await;
    let well = bootstrapped.elapsed();
    for server in [1, 2] {
        galera.start_again(server).await;
    }
    are_ready(&world).await;
    println!("1047 told after {lost:?}; ready {well:?} after the bootstrap, all {:?}", bootstrapped.elapsed());
    assert_eq!(world.settled().await.1.term, lease.term, "the master stays");
    world.flows(&all, 50).await;
    world.ends().await;
    world.check().await;
    for published in world.published() {
        assert_eq!(published.accepted.len() as u64, published.tried, "{}: none was refused", published.by);
    }
}
