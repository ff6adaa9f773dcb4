//! What nodes tell each other and an administrator: reports, and the connections of all nodes. Everything runs in this
//! process.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::{Client, eventually, soon},
    http_client,
    log::Log,
    message,
    nodes::{KEY, Nodes, config},
    publish::PUBLISH_KEY,
};
use tokio::net::TcpListener;
use ws_cluster::{
    ConnectionList, ConnectionQuery, MemoryPool, NodeReport, NodeRole, Pool, Relay, Server, Target,
    outbox::{MemoryOutbox, Outbox, OutboxError, OutboxRows, ReadLimits, RowId},
};

/// Looks at a node's report of the cluster until it meets the condition.
async fn reports(nodes: &Nodes, node: usize, condition: impl Fn(&[NodeReport]) -> bool) -> Vec<NodeReport> {
    eventually(async || Some(nodes[node].server.cluster_report()).filter(|reports| condition(reports))).await
}

async fn list(nodes: &Nodes, node: usize, fill: impl FnOnce(&mut ConnectionQuery)) -> ConnectionList {
    let mut query = ConnectionQuery::default();
    fill(&mut query);
    soon(nodes[node].server.list_connections(query)).await
}

fn users(list: &ConnectionList) -> Vec<&str> {
    let mut users: Vec<_> = list.connections.iter().map(|one| one.user.as_deref().unwrap_or("guest")).collect();
    users.sort_unstable();
    users
}

#[tokio::test]
async fn every_node_knows_the_report_of_every_other() {
    let nodes = Nodes::start(3).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let mut client = nodes[followers[0]].user("ann").await;
    let _guest = nodes[followers[0]].guest().await;
    for number in 0..20 {
        nodes[followers[1]].server.publish(message("count", number, Target::all())).await.unwrap();
        client.expect("count", json!([number])).await;
    }
    for node in 0..3 {
        let told = |report: &NodeReport| match report.role {
            NodeRole::Master => report.followers.len() == 2 && report.links.len() == 2,
            _ => report.lag == Some(0),
        };
        let whole = |reports: &[NodeReport]| {
            let busy = |index: usize| reports.iter().find(|report| report.node == nodes[index].server.node_id());
            reports.len() == 3
                && reports.iter().all(|report| report.ready && told(report))
                && busy(followers[0]).is_some_and(|report| report.connections == 2 && report.guest_connections == 1)
                && busy(followers[1]).is_some_and(|report| report.publish_p50_ms.is_some())
        };
        for report in reports(&nodes, node, whole).await {
            let index = (0..3).find(|&index| nodes[index].server.node_id() == report.node).expect("one of these");
            assert_eq!(report.address, format!("ws://{}", nodes[index].proxy.address()));
            assert_eq!((report.term, report.degraded), (nodes[master].server.status().term, None));
            if index == node {
                assert_eq!(report.age_ms, 0, "the node's own report is new");
            }
            assert!(report.log_entries > 20 && report.log_bytes > 0);
            if index == master {
                assert_eq!(report.role, NodeRole::Master);
                assert!(report.followers.iter().all(|follower| follower.member && follower.lag == 0));
                assert!(report.links.iter().all(|link| link.relay == Relay::To));
            } else {
                assert_eq!(report.role, NodeRole::Follower);
                let links: Vec<_> = report.links.iter().map(|link| (link.peer, link.relay)).collect();
                assert_eq!(links, [(nodes[master].server.node_id(), Relay::From)]);
            }
        }
    }
    let delivering = |reports: &[NodeReport]| reports.iter().any(|report| report.deliveries_per_second > 0.0);
    reports(&nodes, master, delivering).await;
}

#[tokio::test]
async fn the_report_of_a_node_that_is_gone_is_left_out() {
    let mut nodes = Nodes::start(3).await;
    let gone = nodes.followers()[0];
    let others: Vec<_> = (0..3).filter(|&node| node != gone).collect();
    for &node in &others {
        reports(&nodes, node, |reports| reports.len() == 3).await;
    }
    nodes[gone].stop().await.unwrap();
    for &node in &others {
        let left = reports(&nodes, node, |reports| reports.len() == 2).await;
        assert!(left.iter().all(|report| report.node != nodes[gone].server.node_id()));
    }
}

#[tokio::test]
async fn connections_of_all_nodes_are_found_on_each() {
    let mut nodes = Nodes::start(3).await;
    let people: [(usize, &[(&str, &str)]); 5] = [
        (0, &[("x-user", "ann"), ("x-session", "0123456789abcdef0123456789abcdef"), ("x-groups", "editors,admins")]),
        (1, &[("x-user", "ann"), ("x-session", "another session")]),
        (1, &[("x-user", "bob"), ("x-groups", "editors")]),
        (2, &[]),
        (2, &[]),
    ];
    let (mut clients, mut ids) = (Vec::new(), Vec::new());
    for (node, headers) in people {
        let mut client = Client::connect(nodes[node].address, headers).await;
        ids.push(nodes.connection_of(&mut client).await);
        clients.push(client);
    }
    for node in 0..3 {
        let all = list(&nodes, node, |_| {}).await;
        assert_eq!((users(&all), all.matching), (vec!["ann", "ann", "bob", "guest", "guest"], 5));
        assert_eq!(all.silent, []);
        let mut listed: Vec<_> = all.connections.iter().map(|one| one.id).collect();
        listed.sort_unstable();
        ids.sort_unstable();
        assert_eq!(listed, ids);
        let anns = list(&nodes, node, |query| query.user = Some("ann".into())).await;
        assert_eq!(users(&anns), ["ann", "ann"]);
        let session = "0123456789abcdef0123456789abcdef";
        let one = list(&nodes, node, |query| query.session = Some(session.into())).await;
        assert_eq!((one.matching, one.connections.len()), (1, 1));
        let one = &one.connections[0];
        assert_eq!((one.node, one.user.as_deref()), (nodes[0].server.node_id(), Some("ann")));
        assert_eq!((one.session.as_deref(), one.waiting), (Some("012345…"), 0));
        assert_eq!((&one.groups[..], one.more_groups), (&["admins".to_owned(), "editors".to_owned()][..], 0));
        assert_eq!(one.address, Some([127, 0, 0, 1].into()));
        assert!(one.since > 1_700_000_000);
        let editors = list(&nodes, node, |query| query.group = Some("editors".into())).await;
        assert_eq!(users(&editors), ["ann", "bob"]);
        let both = list(&nodes, node, |query| {
            (query.user, query.group) = (Some("ann".into()), Some("editors".into()));
        });
        assert_eq!(both.await.matching, 1);
        for (address, count) in [([127, 0, 0, 1], 5), ([192, 0, 2, 1], 0)] {
            assert_eq!(list(&nodes, node, |query| query.address = Some(address.into())).await.matching, count);
        }
        for (limit, listed) in [(0, 0), (2, 2), (1_000_000, 5)] {
            let some = list(&nodes, node, |query| query.limit = limit).await;
            assert_eq!((some.connections.len(), some.matching), (listed, 5));
        }
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named() {
    let nodes = Nodes::start(3).await;
    let master = nodes.master();
    let [asks, silent] = nodes.followers()[..] else { panic!("two followers") };
    let _clients = [nodes[asks].user("ann").await, nodes[master].user("bob").await, nodes[silent].user("eve").await];
    // The network between two nodes holds everything back. Until they notice, both are members.
    nodes.cut(master, silent);
    let list = list(&nodes, asks, |_| {}).await;
    assert_eq!(users(&list), ["ann", "bob"]);
    assert_eq!(list.silent, [nodes[silent].server.node_id()]);
}

#[tokio::test]
async fn one_connection_is_closed_from_any_node() {
    let mut nodes = Nodes::start(3).await;
    for node in 0..3 {
        let (mut closed, mut other) = (nodes[0].user("ann").await, nodes[0].user("ann").await);
        let id = nodes.connection_of(&mut closed).await;
        nodes[node].server.close_connection(id).await.unwrap();
        closed.expect("Server/close", json!([])).await;
        assert_eq!(closed.closed().await, (1000, "closed by the application".to_owned()));
        nodes[node].server.publish(message("end", (), Target::all())).await.unwrap();
        other.expect("end", json!([])).await;
    }
}

/// Starts a server, with an outbox if there is one.
async fn serve(pool: &Arc<dyn Pool>, outbox: Option<Arc<dyn Outbox>>) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let builder = Server::builder(pool.clone()).address(format!("ws://{address}")).key(KEY).config(config());
    let builder = builder.publish_key(PUBLISH_KEY);
    let builder = match outbox {
        Some(outbox) => builder.outbox(outbox),
        None => builder,
    };
    let server = builder.start().await.unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    server.wait_ready().await;
    (server, address)
}

/// Looks at what is wrong with a server until it meets the condition.
async fn degraded(server: &Server, condition: impl Fn(Option<&str>) -> bool) {
    eventually(async || condition(server.report().degraded.as_deref()).then_some(())).await;
}

/// Returns the status and the text of a page.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_as(address, path, &[]).await
}

async fn get_as(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let answer = soon(http_client::request(address, "GET", path, headers, "")).await.unwrap();
    (answer.status.as_u16(), answer.text.trim().to_owned())
}

#[tokio::test]
async fn a_node_without_the_outbox_of_another_says_so_and_takes_clients() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let (with, _) = serve(&pool, Some(Arc::new(MemoryOutbox::default()))).await;
    let mut log = Log::listen();
    let (without, address) = serve(&pool, None).await;
    assert!(log.line("this node has no outbox, and others have one").await.contains("WARN"));
    degraded(&without, |why| why.is_some_and(|why| why.starts_with("this node has no outbox"))).await;
    soon(without.subscribe_status().wait_for(|status| status.degraded.is_none())).await.unwrap();
    let (status, text) = get(address, "/ready").await;
    assert!(status == 200 && text.starts_with("ready; this node has no outbox, and others have one"), "{text}");
    assert!(get(address, "/health").await.1.starts_with("alive, degraded: this node has no outbox"));
    degraded(&with, |why| why.is_none()).await;
    let told = with.cluster_report();
    assert!(told.iter().all(|report| report.outbox == Some(report.node == with.node_id())), "{told:?}");
}

/// An outbox whose table is missing at times.
struct Missing(AtomicBool);

#[async_trait]
impl Outbox for Missing {
    async fn prepare(&self) -> Result<(), OutboxError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(OutboxError::Failed("no table ws_outbox".into())),
            false => Ok(()),
        }
    }

    async fn read(&self, _: &str, _: ReadLimits) -> Result<OutboxRows, OutboxError> {
        self.prepare().await.map(|()| OutboxRows::default())
    }

    async fn remove(&self, _: &[RowId]) -> Result<(), OutboxError> {
        Ok(())
    }

    async fn fail(&self, _: &[(RowId, String)]) -> Result<(), OutboxError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_outbox_that_fails_is_named_and_only_those_with_the_publish_key_are_told_the_cause() {
    let (pool, outbox) = (Arc::new(MemoryPool::default()), Arc::new(Missing(AtomicBool::new(true))));
    let pool: Arc<dyn Pool> = pool;
    let (server, address) = serve(&pool, Some(outbox.clone())).await;
    let named =
        |why: Option<&str>| why == Some("rows of the outbox wait: the outbox cannot be used: no table ws_outbox");
    degraded(&server, named).await;
    assert_eq!(get(address, "/ready").await, (200, "ready; rows of the outbox wait".into()));
    assert_eq!(get(address, "/health").await, (200, "alive, degraded: rows of the outbox wait".into()));
    let wrong = get_as(address, "/ready", &[("authorization", "Bearer wrong")]).await;
    assert_eq!(wrong, (200, "ready; rows of the outbox wait".into()));
    let key = format!("Bearer {PUBLISH_KEY}");
    for path in ["/ready", "/health"] {
        let (status, text) = get_as(address, path, &[("authorization", &key)]).await;
        assert!(status == 200 && text.ends_with("wait: the outbox cannot be used: no table ws_outbox"), "{text}");
    }
    outbox.0.store(false, Ordering::Relaxed);
    degraded(&server, |why| why.is_none()).await;
    assert_eq!(get(address, "/ready").await, (200, "ready".into()));
}
