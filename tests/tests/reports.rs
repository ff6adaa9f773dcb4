//! What nodes tell each other and an administrator: reports, and the connections of all nodes. Everything runs in this
//! process.

use std::time::Duration;

use serde_json::json;
use tests::{
    client::{Client, soon},
    message,
    nodes::Nodes,
};
use tokio::time::interval;
use ws_cluster::{ConnectionList, ConnectionQuery, NodeReport, NodeRole, Relay, Target};

/// Time between two looks at what sends no notice.
const LOOK: Duration = Duration::from_millis(50);

/// Looks at a node's report of the cluster until it meets the condition.
async fn reports(nodes: &Nodes, node: usize, condition: impl Fn(&[NodeReport]) -> bool) -> Vec<NodeReport> {
    let mut look = interval(LOOK);
    let looking = async {
        loop {
            look.tick().await;
            let reports = nodes[node].server.cluster_report();
            if condition(&reports) {
                return reports;
            }
        }
    };
    soon(looking).await
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
            assert_eq!(report.age_ms == 0, index == node, "only the node's own report is new");
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
