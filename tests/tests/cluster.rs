//! Several servers as one: targets and order across nodes, publishers from outside, hand-over, partitions, and refused
//! nodes. Everything runs in this process; `processes.rs` tests the end of processes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tests::message;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{
    client::{Client, soon},
    nodes::{KEY, Node, Nodes, config},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, MutexGuard, oneshot, watch},
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::Message;
use ws_cluster::{
    ConnectError, Degraded, MemoryPool, NodeId, Pool, PublishError, Publisher, Server, SqlitePool, Target,
    pool::{Announcement, Lease},
};

/// Lets these tests run one at a time: heartbeats starve if many clusters share few cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// Action and details of the messages that a client got, in their order.
type Seen = Vec<(String, Value)>;

/// Reads everything up to the message `end` or the close. The code is `None` if `end` came.
async fn history(client: &mut Client) -> (Seen, Option<u16>) {
    let mut came = Vec::new();
    loop {
        match client.message_in().await {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).expect("JSON");
                let action = message["action"].as_str().expect("the object form").to_owned();
                if action == "end" {
                    return (came, None);
                }
                came.push((action, message["details"].clone()));
            }
            Message::Close(frame) => return (came, frame.map(|frame| frame.code.into())),
            other => panic!("{other:?}"),
        }
    }
}

/// Reads like [`history`], while the test does other things.
fn read(mut client: Client) -> JoinHandle<(Seen, Option<u16>)> {
    tokio::spawn(async move { history(&mut client).await })
}

/// Reads up to the message `end`. Returns the messages before it, as action and details.
async fn until_end(client: &mut Client) -> Seen {
    let (came, closed) = history(client).await;
    assert_eq!(closed, None);
    came
}

async fn end(node: &Node) {
    node.server.publish(message("end", (), Target::all())).await.expect("accepted");
}

/// Returns the lease of the cluster `default`.
async fn lease(pool: &dyn Pool) -> Lease {
    pool.read("default").await.expect("a pool that answers").lease.expect("a lease")
}

/// The additional headers of a client's upgrade request.
type Headers<'a> = &'a [(&'a str, &'a str)];

#[tokio::test]
async fn targets_reach_whom_they_mean_on_every_node() {
    let _alone = alone().await;
    let mut nodes = Nodes::start(3).await;
    let mut clients: BTreeMap<&str, Client> = BTreeMap::new();
    let people: [(&str, usize, Headers<'_>); 9] = [
        ("ann0", 0, &[("x-user", "ann"), ("x-session", "a"), ("x-groups", "editors,admins")]),
        ("ann0 too", 0, &[("x-user", "ann"), ("x-session", "a")]),
        ("ann1", 1, &[("x-user", "ann"), ("x-session", "a"), ("x-colour", "red")]),
        ("ann2", 2, &[("x-user", "ann"), ("x-session", "another")]),
        ("bob1", 1, &[("x-user", "bob"), ("x-groups", "editors"), ("x-colour", "blue")]),
        ("bob2", 2, &[("x-user", "bob"), ("x-groups", "admins"), ("x-colour", "red")]),
        ("guest0", 0, &[]),
        ("guest1", 1, &[]),
        ("guest2", 2, &[]),
    ];
    let mut ids = BTreeMap::new();
    for (name, node, headers) in people {
        let mut client = Client::connect(nodes[node].address, headers).await;
        ids.insert(name, nodes.connection_of(&mut client).await);
        clients.insert(name, client);
    }
    let users = ["ann0", "ann0 too", "ann1", "ann2", "bob1", "bob2"];
    let guests = ["guest0", "guest1", "guest2"];
    let all = [&users[..], &guests[..]].concat();
    let ann = &users[..4];
    let bob = &users[4..];
    let without =
        |list: &[&'static str], name: &str| -> Vec<&str> { list.iter().copied().filter(|one| *one != name).collect() };
    let cases: Vec<(Target, Vec<&str>)> = vec![
        (Target::all(), all.clone()),
        (Target::all().except_connection(ids["guest1"]), without(&all, "guest1")),
        (Target::all().except_user("ann"), [bob, &guests[..]].concat()),
        (Target::registered(), users.to_vec()),
        (Target::registered().except_connection(ids["ann2"]), without(&users, "ann2")),
        (Target::registered().except_user("bob"), ann.to_vec()),
        (Target::user("ann"), ann.to_vec()),
        (Target::user("ann").except_connection(ids["ann0"]), without(ann, "ann0")),
        (Target::user("ann").except_user("ann"), vec![]),
        (Target::user("nobody"), vec![]),
        (Target::users(["ann", "bob", "nobody"]), users.to_vec()),
        (Target::users(["ann", "bob"]).except_connection(ids["bob1"]), without(&users, "bob1")),
        (Target::users(["ann", "bob"]).except_user("ann"), bob.to_vec()),
        (Target::group("editors"), vec!["ann0", "bob1"]),
        (Target::groups(["editors", "admins"]), vec!["ann0", "bob1", "bob2"]),
        (Target::groups(["editors", "admins"]).except_connection(ids["bob2"]), vec!["ann0", "bob1"]),
        (Target::groups(["editors", "admins"]).except_user("bob"), vec!["ann0"]),
        (Target::session("a"), vec!["ann0", "ann0 too", "ann1"]),
        (Target::session("a").except_connection(ids["ann1"]), vec!["ann0", "ann0 too"]),
        (Target::session("a").except_user("ann"), vec![]),
        (Target::connection(ids["bob2"]), vec!["bob2"]),
        (Target::connection(ids["guest2"]), vec!["guest2"]),
        (Target::connection(ids["bob2"]).except_user("bob"), vec![]),
        (Target::connection(ids["bob2"]).except_connection(ids["bob2"]), vec![]),
        (Target::property("colour", "red"), vec!["ann1", "bob2"]),
        (Target::property("colour", "red").except_connection(ids["ann1"]), vec!["bob2"]),
        (Target::property("colour", "red").except_user("bob"), vec!["ann1"]),
        (Target::property("colour", "green"), vec![]),
    ];
    for (number, (target, _)) in cases.iter().enumerate() {
        for node in 0..3 {
            nodes[node].server.publish(message(format!("{number}"), node, target.clone())).await.unwrap();
        }
    }
    end(&nodes[1]).await;
    for (name, client) in &mut clients {
        let came = until_end(client).await;
        let mine = cases.iter().enumerate().filter(|(_, (_, meant))| meant.contains(name));
        let expected: Seen =
            mine.flat_map(|(number, _)| (0..3).map(move |node| (number.to_string(), json!([node])))).collect();
        assert_eq!(came, expected, "{name}");
    }
}

/// Publishes `count` numbered messages from each node at the same time. Returns what each client saw.
async fn publish_everywhere(nodes: &Nodes, clients: &mut [Client], count: usize) -> Vec<Seen> {
    let publishing = (0..3).map(|node| async move {
        for number in 0..count {
            nodes[node].server.publish(message(format!("from {node}"), number, Target::all())).await.unwrap();
        }
    });
    join_all(publishing).await;
    end(&nodes[0]).await;
    let mut seen = Vec::new();
    for client in clients {
        seen.push(until_end(client).await);
    }
    seen
}

fn assert_one_order(seen: &[Seen], count: usize) {
    for history in seen {
        assert_eq!(history, &seen[0], "one order on all nodes");
    }
    for node in 0..3 {
        let publisher = format!("from {node}");
        let numbers = seen[0].iter().filter(|(action, _)| *action == publisher).map(|(_, details)| details.clone());
        assert_eq!(numbers.collect::<Vec<_>>(), (0..count).map(|number| json!([number])).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn all_clients_see_one_order_from_every_publisher() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let mut clients = Vec::new();
    for node in [0, 0, 1, 1, 2, 2] {
        clients.push(nodes[node].guest().await);
    }
    let seen = publish_everywhere(&nodes, &mut clients, 200).await;
    assert_one_order(&seen, 200);
    // A slow network does not change the order.
    nodes[nodes.master()].proxy.delay(Duration::from_millis(5));
    nodes[nodes.followers()[1]].proxy.delay(Duration::from_millis(20));
    let seen = publish_everywhere(&nodes, &mut clients, 20).await;
    assert_one_order(&seen, 20);
}

#[tokio::test]
async fn a_reply_comes_to_every_tab_on_every_node() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let mut tabs = Vec::new();
    for node in [0, 0, 1, 2] {
        tabs.push(nodes[node].user("ann").await);
    }
    let mut bob = nodes[1].user("bob").await;
    let mut guest = nodes[2].guest().await;
    for asking in 0..tabs.len() {
        tabs[asking].send("hello", json!([asking])).await;
        for tab in &mut tabs {
            tab.expect("hello", json!([asking])).await;
        }
    }
    end(&nodes[0]).await;
    for other in [&mut bob, &mut guest] {
        other.expect("end", json!([])).await;
    }
}

#[tokio::test]
async fn closes_reach_connections_on_every_node_from_any_node() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let master = nodes.master();
    let follower = nodes.followers()[0];
    let mut witness = nodes[follower].user("witness").await;
    for (asks, by_user) in [(follower, false), (follower, true), (master, false), (master, true)] {
        let mut closed = Vec::new();
        let mut kept = Vec::new();
        for node in 0..3 {
            let ann = [("x-user", "ann"), ("x-session", "a")];
            closed.push(Client::connect(nodes[node].address, &ann).await);
            let other = [("x-user", if by_user { "bob" } else { "ann" }), ("x-session", "b")];
            kept.push(Client::connect(nodes[node].address, &other).await);
        }
        if by_user {
            nodes[asks].server.close_user("ann").await.unwrap();
        } else {
            nodes[asks].server.close_session("a").await.unwrap();
        }
        for client in &mut closed {
            client.expect("Server/close", json!([])).await;
            assert_eq!(client.closed().await.0, 1000);
        }
        end(&nodes[asks]).await;
        for client in &mut kept {
            client.expect("end", json!([])).await;
        }
        witness.expect("end", json!([])).await;
    }
}

#[tokio::test]
async fn a_publisher_goes_on_through_another_node_when_its_own_leaves() {
    let _alone = alone().await;
    let mut nodes = Nodes::start(1).await;
    // There is only one node to connect to yet.
    let publisher = Publisher::connect(nodes.pool(), KEY).await.unwrap();
    nodes.add().await;
    nodes.add().await;
    nodes.settled().await;
    let mut clients = vec![nodes[1].user("ann").await, nodes[2].user("ann").await];
    let (half, reached) = oneshot::channel();
    let publishing = tokio::spawn(async move {
        let mut half = Some(half);
        for number in 0..200 {
            if number == 50 {
                let _ = half.take().map(|half| half.send(()));
            }
            publisher.publish(message("count", number, Target::user("ann"))).await.unwrap();
        }
        publisher.close_user("nobody").await.unwrap();
        publisher
    });
    soon(reached).await.unwrap();
    nodes[0].stop().await.unwrap();
    let publisher = soon(publishing).await.unwrap();
    publisher.publish(message("end", (), Target::all())).await.unwrap();
    let expected: Vec<_> = (0..200).map(|number| ("count".to_owned(), json!([number]))).collect();
    for client in &mut clients {
        assert_eq!(until_end(client).await, expected);
    }
    publisher.close_user("ann").await.unwrap();
    for client in &mut clients {
        client.expect("Server/close", json!([])).await;
    }
}

#[tokio::test]
async fn a_publisher_leaves_a_node_that_does_not_answer() {
    let _alone = alone().await;
    let mut nodes = Nodes::start(1).await;
    let publisher = Publisher::connect(nodes.pool(), KEY).await.unwrap();
    nodes.add().await;
    nodes.add().await;
    nodes.settled().await;
    let mut client = nodes[1].guest().await;
    // The node is off the network, with every connection open.
    nodes[0].proxy.stall();
    (1..3).for_each(|other| nodes.cut(0, other));
    nodes.cut_from_pool(0);
    let sent = soon(async {
        loop {
            match publisher.publish(message("through", (), Target::all()).idempotency_key("once")).await {
                Ok(()) => return,
                Err(PublishError::OutcomeUnknown) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    sent.await;
    end(&nodes[2]).await;
    assert_eq!(actions(until_end(&mut client).await), ["through"]);
}

#[tokio::test]
async fn publishes_of_one_key_are_delivered_once_whichever_node_takes_them() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let publisher = Publisher::connect(nodes.pool(), KEY).await.unwrap();
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(nodes[node].guest().await);
    }
    for round in 0..20 {
        let key = format!("key {round}");
        let publishes =
            (0..3).map(|node| nodes[node].server.publish(message("once", round, Target::all()).idempotency_key(&key)));
        let outside = publisher.publish(message("once", round, Target::all()).idempotency_key(&key));
        let (inside, outside) = tokio::join!(join_all(publishes), outside);
        assert!(inside.into_iter().chain([outside]).all(|outcome| outcome.is_ok()), "each is told of acceptance");
    }
    end(&nodes[2]).await;
    let expected: Vec<_> = (0..20).map(|round| ("once".to_owned(), json!([round]))).collect();
    for client in &mut clients {
        assert_eq!(until_end(client).await, expected);
    }
}

#[tokio::test]
async fn a_node_that_leaves_loses_nothing_and_sends_its_clients_elsewhere() {
    let _alone = alone().await;
    let mut nodes = Nodes::start(3).await;
    // A follower leaves, then the master.
    for leaves_as_master in [false, true] {
        let master = nodes.master();
        let leaving = if leaves_as_master { master } else { nodes.followers()[0] };
        let term = nodes[master].server.status().term;
        let mut staying = nodes.followers();
        staying.push(master);
        staying.retain(|&index| index != leaving);
        let mut histories = Vec::new();
        for &node in &staying {
            histories.push(read(nodes[node].guest().await));
        }
        let mut leaver = nodes[leaving].guest().await;
        let (stop, stopped) = watch::channel(false);
        let publishers: Vec<_> = staying
            .iter()
            .map(|&node| {
                let (server, stopped) = (nodes[node].server.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut number = 0;
                    while !*stopped.borrow() {
                        server.publish(message(format!("from {node}"), number, Target::all())).await.unwrap();
                        number += 1;
                    }
                    number
                })
            })
            .collect();
        // Messages are under way.
        let first = leaver.json().await;
        let leaver = read(leaver);
        nodes[leaving].stop().await.unwrap();
        let (mut seen, code) = soon(leaver).await.unwrap();
        assert_eq!(code, Some(1012));
        seen.insert(0, (first["action"].as_str().unwrap().to_owned(), first["details"].clone()));
        let now = nodes.settled().await;
        let now = nodes[now].server.status().term;
        assert_eq!(now, term + u64::from(leaves_as_master), "the lease changes hands once, or not at all");
        stop.send_replace(true);
        let counts = soon(join_all(publishers)).await;
        end(&nodes[staying[0]]).await;
        let histories: Vec<_> = soon(join_all(histories)).await.into_iter().map(|history| history.unwrap().0).collect();
        assert!(histories[0] == histories[1], "one order");
        assert!(histories[0].starts_with(&seen), "the leaver's clients saw a beginning of the same order");
        for (node, count) in staying.iter().zip(counts) {
            let publisher = format!("from {node}");
            let numbers = histories[0].iter().filter(|(action, _)| *action == publisher);
            let numbers: Vec<_> = numbers.map(|(_, details)| details[0].as_i64().unwrap()).collect();
            assert_eq!(numbers, (0..count.unwrap()).collect::<Vec<_>>(), "{publisher}");
        }
        // Another node takes its place.
        nodes.add().await;
        nodes.settled().await;
    }
}

fn actions(seen: Seen) -> Vec<String> {
    seen.into_iter().map(|(action, _)| action).collect()
}

#[tokio::test]
async fn a_master_off_the_network_is_replaced_before_its_lease_ends() {
    let _alone = alone().await;
    let mut config = config();
    // Longer than any test waits.
    config.cluster.lease = Duration::from_secs(300);
    let nodes = Nodes::with(3, Arc::new(MemoryPool::default()), config).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let old = Some(nodes[master].server.node_id());
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(nodes[node].guest().await);
    }
    nodes[master].server.publish(message("before", (), Target::all())).await.unwrap();
    nodes.cut_from_pool(master);
    followers.iter().for_each(|&follower| nodes.cut(master, follower));
    let server = nodes[master].server.clone();
    let waiting = tokio::spawn(async move { server.publish(message("meanwhile", (), Target::all())).await });
    for &follower in &followers {
        nodes[follower].until(|status| status.master.is_some() && status.master != old).await;
    }
    nodes[followers[0]].server.publish(message("after", (), Target::all())).await.unwrap();
    nodes.heal();
    soon(waiting).await.unwrap().unwrap();
    assert_ne!(nodes.settled().await, master);
    end(&nodes[master]).await;
    for (node, client) in clients.iter_mut().enumerate() {
        let mut seen = actions(until_end(client).await);
        if node == master {
            // Without the pool the node took itself for the last one, and delivered. Its clients get no message twice.
            seen.sort();
            assert_eq!(seen, ["after", "before", "meanwhile"]);
        } else {
            assert_eq!(seen, ["before", "after", "meanwhile"]);
        }
    }
}

#[tokio::test]
async fn a_master_that_still_has_the_pool_goes_on_without_its_followers() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let term = nodes[master].server.status().term;
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(nodes[node].guest().await);
    }
    followers.iter().for_each(|&follower| nodes.cut(master, follower));
    for &follower in &followers {
        nodes[follower].until(|status| status.master.is_none()).await;
    }
    let server = nodes[followers[0]].server.clone();
    let waiting = tokio::spawn(async move { server.publish(message("at a follower", (), Target::all())).await });
    nodes[master].server.publish(message("at the master", (), Target::all())).await.unwrap();
    assert!(!waiting.is_finished());
    nodes.heal();
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(nodes.settled().await, master);
    assert_eq!(nodes[master].server.status().term, term);
    end(&nodes[followers[1]]).await;
    for client in &mut clients {
        assert_eq!(actions(until_end(client).await), ["at the master", "at a follower"]);
    }
}

#[tokio::test]
async fn a_follower_that_alone_lost_the_master_takes_no_lease_and_catches_up() {
    let _alone = alone().await;
    let nodes = Nodes::start(3).await;
    let master = nodes.master();
    let (cut, other) = (nodes.followers()[0], nodes.followers()[1]);
    let term = nodes[master].server.status().term;
    let mut clients = Vec::new();
    for node in 0..3 {
        clients.push(nodes[node].guest().await);
    }
    let ways: [(&str, &[(usize, usize)]); 3] = [
        ("both ways", &[(master, cut), (cut, master)]),
        ("from the master", &[(master, cut)]),
        ("to the master", &[(cut, master)]),
    ];
    for (name, held) in ways {
        held.iter().for_each(|&(from, to)| nodes.cut_one_way(from, to));
        let server = nodes[cut].server.clone();
        nodes[cut].until(|status| status.master.is_none()).await;
        let waiting = tokio::spawn(async move { server.publish(message("waited", (), Target::all())).await });
        nodes[other].server.publish(message("at the others", (), Target::all())).await.unwrap();
        // For longer than a lease, measured by beats, which are a fifth of a second apart.
        let begin = lease(&*nodes.pool()).await.beat;
        soon(async {
            while lease(&*nodes.pool()).await.beat < begin + 20 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(!waiting.is_finished(), "{name}: its publish waits");
        assert_eq!(nodes[master].server.status().term, term, "{name}");
        nodes.heal();
        soon(waiting).await.unwrap().unwrap();
        assert_eq!(nodes.settled().await, master, "{name}");
        assert_eq!(lease(&*nodes.pool()).await.term, term, "{name}");
        end(&nodes[other]).await;
        for client in &mut clients {
            assert_eq!(actions(until_end(client).await), ["at the others", "waited"], "{name}");
        }
    }
}

#[tokio::test]
async fn a_node_with_another_key_is_refused() {
    let _alone = alone().await;
    let nodes = Nodes::start(2).await;
    let other_key = "another key, which has thirty-two bytes too";
    match Publisher::connect(nodes.pool(), other_key).await {
        Err(ConnectError::Refused { why, .. }) => assert!(why.contains("key"), "{why}"),
        other => panic!("{other:?}"),
    }
    let stranger = Server::builder(nodes.pool())
        .address("ws://127.0.0.1:9")
        .key(other_key)
        .config(config())
        .start()
        .await
        .unwrap();
    let mut status = stranger.subscribe_status();
    let seen = soon(status.wait_for(|status| status.nodes.len() == 3)).await.unwrap().clone();
    assert!(!seen.ready && seen.master.is_none());
    assert!(seen.nodes.iter().all(|node| node.member != (node.address == "ws://127.0.0.1:9")));
    let begin = lease(&*nodes.pool()).await;
    soon(async {
        while lease(&*nodes.pool()).await.beat < begin.beat + 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let seen = stranger.status();
    assert!(!seen.ready && seen.degraded == Some(Degraded::NoLinkToMaster), "{seen:?}");
    assert_eq!(lease(&*nodes.pool()).await.term, begin.term);
    stranger.shutdown().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let _alone = alone().await;
    let nodes = Nodes::start(1).await;
    let pool = nodes.pool();
    assert!(matches!(
        Publisher::builder(pool.clone()).cluster("other").key(KEY).connect().await,
        Err(ConnectError::NoServer)
    ));
    // A row that points to the wrong process, as after its port was given to another one.
    let node = NodeId::from_bytes([7; 16]);
    let address = format!("ws://{}", nodes[0].proxy.address());
    pool.announce("other", &Announcement { node, address, joined: None }).await.unwrap();
    match Publisher::builder(pool).cluster("other").key(KEY).connect().await {
        Err(ConnectError::Refused { why, .. }) => assert!(why.contains("\"default\""), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_node_with_the_same_address_gives_way() {
    let _alone = alone().await;
    for count in [1, 2] {
        let directory = tempfile::tempdir().unwrap();
        let pool: Arc<dyn Pool> = Arc::new(SqlitePool::open(directory.path().join("pool")).await.unwrap());
        let nodes = Nodes::with(count, pool.clone(), config()).await;
        let mut client = nodes[0].guest().await;
        let address = format!("ws://{}", nodes[0].proxy.address());
        let second = Server::builder(pool).address(&address).key(KEY).config(config()).start().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = soon(second.serve(listener).into_future()).await.unwrap_err();
        assert_eq!(error, ws_cluster::ServeError::AddressTaken { address });
        drop(second);
        nodes.settled().await;
        nodes[count - 1].server.publish(message("still here", (), Target::all())).await.unwrap();
        client.expect("still here", json!([])).await;
    }
}
