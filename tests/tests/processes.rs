//! Three `ws-server` processes on a MariaDB of their own, with messages under way, while each of them in turn is
//! killed, stopped, frozen or emptied. Every test checks that a message whose publish was accepted reaches every client
//! that lived through it exactly once, in one order.

use tests::{MariaDb, world::World};
use tokio::sync::{Mutex, MutexGuard};

/// Number of messages for which each publisher takes longer than a lease (5 s).
const A_LEASE: usize = 700;

/// Lets these tests run one at a time: heartbeats starve if many processes share few cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// Starts a database and three nodes on it.
async fn start() -> (MariaDb, World) {
    let database = MariaDb::start().await;
    let world = World::start(&[database.database().await]).await;
    (database, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_node_loses_no_accepted_message() {
    let _alone = alone().await;
    let (_database, mut world) = start().await;
    for kills_the_master in [true, false, true] {
        let (master, lease) = world.settled().await;
        let lost =
            if kills_the_master { master } else { *world.running().iter().find(|&&node| node != master).unwrap() };
        let all = world.running();
        world.flow(&all);
        world.flows(&all, 50).await;
        world.kill(lost).await;
        let staying = world.running();
        world.flows(&staying, 100).await;
        let (_, now) = world.settled().await;
        assert_eq!(now.term, lease.term + u64::from(kills_the_master));
        // All nodes are back, while messages are under way.
        world.add().await;
        world.settled().await;
        world.flows(&staying, 50).await;
        world.ends().await;
        world.check().await;
        world.afresh().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone() {
    let _alone = alone().await;
    let (_database, mut world) = start().await;
    let (master, lease) = world.settled().await;
    let others: Vec<usize> = world.running().into_iter().filter(|&node| node != master).collect();
    let (lost, last) = (others[0], others[1]);
    world.flow(&[lost, master, last]);
    world.flows(&[lost, master, last], 50).await;
    world.kill(lost).await;
    world.flows(&[master, last], 50).await;
    world.settled().await;
    world.kill(master).await;
    world.flows(&[last], 100).await;
    let (now, after) = world.settled().await;
    assert_eq!((now, after.term), (last, lease.term + 1));
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_flow_while_the_database_is_away() {
    let _alone = alone().await;
    let (mut database, mut world) = start().await;
    let (_, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    for killed in [false, true] {
        world.flows(&all, 50).await;
        if killed {
            database.kill().await;
        } else {
            database.stop().await;
        }
        world.flows(&all, A_LEASE).await;
        database.start_again().await;
        let (_, now) = world.settled().await;
        assert_eq!(now.term, lease.term, "the master stays");
    }
    world.flows(&all, A_LEASE).await;
    world.ends().await;
    world.check().await;
    assert_eq!(world.settled().await.1.term, lease.term);
    for published in world.published() {
        assert_eq!(published.accepted.len() as u64, published.tried, "{}: none was refused", published.by);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_lost_while_the_database_is_away_is_replaced_when_it_is_back() {
    let _alone = alone().await;
    let (mut database, mut world) = start().await;
    let (master, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    world.flows(&all, 50).await;
    database.kill().await;
    world.flows(&all, 50).await;
    world.kill(master).await;
    let staying = world.running();
    // Publishes wait, and then their outcome is unknown.
    world.fails(&staying).await;
    database.start_again().await;
    world.flows(&staying, 100).await;
    let (_, now) = world.settled().await;
    assert_eq!(now.term, lease.term + 1);
    world.add().await;
    world.settled().await;
    world.flows(&staying, 50).await;
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_tables_are_filled_again_by_the_nodes() {
    let _alone = alone().await;
    let (_database, mut world) = start().await;
    let all = world.running();
    world.flow(&all);
    for dropped in [false, true] {
        let (_, lease) = world.settled().await;
        world.flows(&all, 50).await;
        world.processes.empty_tables(dropped).await;
        let (_, now) = world.settled().await;
        assert!(now.term >= lease.term, "terms only grow");
        world.flows(&all, A_LEASE).await;
    }
    world.ends().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_master_is_replaced_and_comes_back_as_a_follower() {
    let _alone = alone().await;
    let (_database, mut world) = start().await;
    let (master, lease) = world.settled().await;
    let all = world.running();
    world.flow(&all);
    world.flows(&all, 50).await;
    world.node(master).stop();
    let others: Vec<usize> = all.iter().copied().filter(|&node| node != master).collect();
    world.flows(&others, 100).await;
    world.node(master).cont();
    let (now, after) = world.settled().await;
    assert!(now != master && after.term == lease.term + 1, "node {now} in term {}", after.term);
    world.flows(&all, 100).await;
    world.ends().await;
    world.check().await;
}
