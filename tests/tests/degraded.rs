//! A degraded node: what it reports, and what it does with its clients, while something is wrong around it.

use std::{sync::Arc, time::Duration};
use tests::message;

use http_body_util::Empty;
use mysql_async::prelude::Queryable;
use tests::{
    MariaDb, WsServer,
    client::{Client, soon},
    http_client,
    nodes::{KEY, Node, Nodes, config},
};
use tokio::net::TcpListener;
use ws_cluster::{Degraded, MemoryPool, MySqlPool, Publisher, ServeError, Server, Target};

/// Returns the answer of `/ready`.
async fn ready(node: &Node) -> (u16, String) {
    let answer = soon(http_client::request(node.address, "GET", "/ready", &[], "")).await.unwrap();
    (answer.status.as_u16(), answer.text.trim_end().to_owned())
}

/// Asserts that a node that is degraded for this reason takes clients, relays, and reports the reason.
async fn is_degraded(node: &Node, why: Degraded) {
    node.until(|status| status.degraded == Some(why)).await;
    let (status, text) = ready(node).await;
    assert_eq!(status, 503);
    assert!(text.starts_with(&format!("degraded: {why}")), "{text}");
    node.guest().await;
}

async fn is_well(node: &Node) {
    node.until(|status| status.degraded.is_none()).await;
    assert_eq!(ready(node).await, (200, "ready".to_owned()));
}

async fn said(client: &mut Client, text: &str) {
    client.expect("said", serde_json::json!([text])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_does_not_answer_is_reported_and_delays_no_client() {
    let nodes = Nodes::start(2).await;
    let mut client = nodes[0].guest().await;
    nodes.cut_from_pool(0);
    nodes.cut_from_pool(1);
    for node in [0, 1] {
        is_degraded(&nodes[node], Degraded::PoolSilent).await;
        nodes[node].server.publish(message("said", "all the same", Target::all())).await.expect("accepted");
        said(&mut client, "all the same").await;
    }
    nodes.heal();
    for node in [0, 1] {
        is_well(&nodes[node]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_all_others_says_that_it_is_alone_and_one_that_they_left_does_not() {
    let mut nodes = Nodes::start(2).await;
    let master = nodes.master();
    let follower = 1 - master;
    is_well(&nodes[master]).await;
    nodes.cut(master, follower);
    is_degraded(&nodes[master], Degraded::NoFollowerLinked).await;
    nodes[master].server.publish(message("said", "alone", Target::all())).await.expect("accepted");
    nodes.heal();
    let master = nodes.settled().await;
    is_well(&nodes[master]).await;
    nodes[1 - master].stop().await.expect("a clean end");
    nodes[master].until(|status| status.nodes.len() == 1).await;
    is_well(&nodes[master]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_master_accepts_nothing_and_what_it_took_is_delivered_when_it_is_linked_again() {
    let nodes = Nodes::start(3).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let mut client = nodes[followers[0]].guest().await;
    nodes.cut_from_pool(master);
    is_degraded(&nodes[master], Degraded::PoolSilent).await;
    followers.iter().for_each(|follower| nodes.cut(master, *follower));
    is_degraded(&nodes[master], Degraded::Isolated).await;
    let stranded = nodes[master].server.clone();
    let stranded = tokio::spawn(async move { stranded.publish(message("said", "stranded", Target::all())).await });
    // The other nodes have a master of their own.
    nodes[followers[0]].until(|status| status.master.is_some_and(|one| one != nodes[master].server.node_id())).await;
    nodes[followers[0]].server.publish(message("said", "without it", Target::all())).await.expect("accepted");
    said(&mut client, "without it").await;
    assert!(!stranded.is_finished(), "an isolated master accepted a message");
    nodes.heal();
    said(&mut client, "stranded").await;
    soon(stranded).await.expect("no panic").expect("accepted by the new master");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_master_accepts_if_availability_is_preferred() {
    let mut settings = config();
    settings.cluster.accept_when_isolated = true;
    let nodes = Nodes::with(2, Arc::new(MemoryPool::default()), settings).await;
    let master = nodes.master();
    let (status, text) = ready(&nodes[master]).await;
    assert_eq!(status, 200);
    assert!(text.contains("accept_when_isolated is on"), "{text}");
    let mut client = nodes[master].guest().await;
    nodes.cut_from_pool(master);
    is_degraded(&nodes[master], Degraded::PoolSilent).await;
    nodes.cut(master, 1 - master);
    nodes[master]
        .until(|status| {
            status.degraded.is_some_and(|why| matches!(why, Degraded::Isolated | Degraded::IsolatedAccepting))
        })
        .await;
    nodes[master].server.publish(message("said", "alone", Target::all())).await.expect("accepted");
    said(&mut client, "alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_becomes_read_only_is_reported_with_its_error() {
    let database = MariaDb::start().await;
    let mut admin = database.connect().await;
    database.database().await;
    let name = "test_0";
    // An account with all privileges can still write to a read-only database.
    for statement in [
        "CREATE USER site@'%' IDENTIFIED BY 'site'".to_owned(),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON {name}.* TO site@'%'"),
    ] {
        admin.query_drop(statement).await.expect("a statement");
    }
    let pool = MySqlPool::connect(&database.url("site", "site", name)).await.expect("a URL");
    let nodes = Nodes::with(2, Arc::new(pool), config()).await;
    let mut client = nodes[0].guest().await;
    admin.query_drop("SET GLOBAL read_only = 1").await.expect("a statement");
    for node in [0, 1] {
        is_degraded(&nodes[node], Degraded::PoolReadOnly).await;
        // Everyone is told the reason. The database's own error may name an account and an address.
        assert_eq!(ready(&nodes[node]).await.1, format!("degraded: {}", Degraded::PoolReadOnly));
        let report = nodes[node].server.report().degraded.expect("a cause");
        assert!(report.contains("read-only"), "{report}");
        nodes[node].server.publish(message("said", "all the same", Target::all())).await.expect("two nodes hold it");
        said(&mut client, "all the same").await;
    }
    // Other processes still find the nodes, whatever the age of their rows.
    let pool = MySqlPool::connect(&database.url("site", "site", name)).await.expect("a URL");
    let publisher = Publisher::connect(pool, KEY).await.expect("a server that answers");
    publisher.publish(message("said", "from outside", Target::all())).await.expect("accepted");
    said(&mut client, "from outside").await;
    admin.query_drop("SET GLOBAL read_only = 0").await.expect("a statement");
    for node in [0, 1] {
        is_well(&nodes[node]).await;
    }
    admin.disconnect().await.expect("a farewell");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_address_another_one_has_is_not_ready_and_says_so() {
    let nodes = Nodes::start(1).await;
    let address = format!("ws://{}", nodes[0].proxy.address());
    // Mounted in an application, so that the test does not wait for the end of `serve`.
    let second = Server::builder(nodes.pool()).address(address).key(KEY).config(config()).start().await.unwrap();
    let error = soon(second.failed()).await;
    assert!(matches!(error, ServeError::AddressTaken { .. }), "{error}");
    let mut status = second.subscribe_status();
    let status = soon(status.wait_for(|status| status.degraded.is_some_and(|why| why == Degraded::AddressTaken))).await;
    assert!(!status.expect("the server lives").ready);
    let request = http::Request::get("/ready").body(Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(second.handle(request).await.status().as_u16(), 503);
    // The node that was there first continues, and reports that another node announces itself at its address.
    nodes[0].until(|status| status.ready && status.degraded.is_some_and(|why| why == Degraded::AddressConflict)).await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_the_master_sends_its_clients_elsewhere() {
    let mut settings = config();
    settings.cluster.cut_off_timeout = Duration::from_secs(10);
    let nodes = Nodes::with(3, Arc::new(MemoryPool::default()), settings).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let (cut, other) = (&nodes[followers[0]], &nodes[followers[1]]);
    let mut client = cut.guest().await;
    let mut elsewhere = other.guest().await;
    nodes.cut(master, followers[0]);
    is_degraded(cut, Degraded::NoLinkToMaster).await;
    let (code, _) = client.closed().await;
    assert_eq!(code, 1013);
    assert_eq!(ready(cut).await, (503, "not ready: no link to the master".to_owned()));
    assert_eq!(Client::try_connect(cut.address, "/WebSockets", &[]).await.err().map(|code| code.as_u16()), Some(503));
    other.server.publish(message("said", "the others go on", Target::all())).await.expect("accepted");
    said(&mut elsewhere, "the others go on").await;
    nodes.heal();
    is_well(cut).await;
    let mut client = cut.guest().await;
    other.server.publish(message("said", "together", Target::all())).await.expect("accepted");
    said(&mut client, "together").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fails_for_a_new_reason_is_reported_with_that_reason() {
    let mut database = MariaDb::start().await;
    let url = database.database().await;
    let state = tempfile::tempdir().expect("a temporary directory");
    let node = WsServer::start(state.path(), &["--pool", &url, "--key", KEY]).await;
    node.ready().await;
    database.kill().await;
    node.logged("Connection refused").await;
    // A process that is no database answers in its place.
    let listener = TcpListener::bind(("127.0.0.1", database.port())).await.expect("the port is free");
    let impostor = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    node.logged_lines(2, |line| line.contains(" WARN ") && line.contains("does not answer\" cause=")).await;
    impostor.abort();
}
