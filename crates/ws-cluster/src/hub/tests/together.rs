//! Entries that come together: each client gets them as if they came one by one, and in one write.

use super::*;

/// Returns random entries for some users and groups. Many of them have the recipients of the one before.
fn random_entries(random: &mut Random, count: u64) -> Vec<Delivery> {
    let mut target = Target::all();
    let entry = |counter| {
        if random.below(3) == 0 {
            target = match random.below(6) {
                0 => Target::registered(),
                1 => Target::user("ann"),
                2 => Target::groups(["a", "b"]),
                3 => Target::group("a").except_user("ann"),
                4 => Target::property("page", "7"),
                _ => Target::all(),
            };
        }
        let content = match random.below(12) {
            0 => Content::Refresh(Subject::user("ann")),
            1 => Content::TokenRevoked {
                connection: ConnectionId { node: NODE, local: 1 + random.below(8) },
                version: random.below(2),
            },
            other => Content::Message {
                target: target.clone(),
                action: "x".into(),
                details: format!("[{counter},\"{}\"]", "y".repeat(random.below(10) as usize)).into(),
                volatile: other == 2,
            },
        };
        let encoded = content.encode();
        Delivery {
            position: LogPosition { term: 1, master: NODE, seq: counter },
            id: PublishId { origin: NODE, counter },
            size: encoded.len(),
            repeated: None,
            content: Some(encoded),
        }
    };
    (1..=count).map(entry).collect()
}

/// Returns what each of some clients gets if the entries come in portions of the given sizes.
fn received(seed: u64, portions: impl Fn(&mut Random) -> usize) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let node = Node::new();
    let identities = [
        Identity::guest(),
        Identity::user("ann").groups(["a"]),
        Identity::user("bob").groups(["a", "b"]),
        Identity::user("ann").property("page", "7"),
    ];
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let identity = identities[number % identities.len()].clone();
            if number < 4 { node.connect(identity) } else { node.track(identity) }
        })
        .collect();
    clients[1].0.set_dialect(Dialect::Array);
    let mut entries = random_entries(&mut random, 60).into_iter();
    let mut got = vec![Vec::new(); clients.len()];
    while entries.len() > 0 {
        let portion = portions(&mut random);
        node.hub.deliver(entries.by_ref().take(portion).collect());
        for ((client, _), got) in clients.iter().zip(&mut got).filter(|_| random.below(2) == 0) {
            client.queue.write();
            take_all(client, got);
        }
    }
    clients.iter().zip(&mut got).for_each(|((client, _), got)| take_all(client, got));
    got
}

#[test]
fn entries_that_come_together_reach_each_client_as_if_they_came_one_by_one() {
    for seed in 0..300 {
        let one_by_one = received(seed, |_| 1);
        let together = received(seed, |random| 1 + random.below(20) as usize);
        assert!(one_by_one.iter().any(|got| !got.is_empty()));
        assert!(together == one_by_one, "seed {seed}");
    }
}

#[tokio::test]
async fn a_round_to_many_clients_waits_for_what_other_tasks_deliver_at_the_same_time() {
    let node = Node::new();
    let clients: Vec<_> = (0..100).map(|_| node.connect(Identity::guest())).collect();
    node.deliver(Target::all());
    node.hub.write();
    for expected in 2..=5 {
        tokio::task::yield_now().await;
        node.deliver(Target::all());
        node.hub.write();
        let written = clients.iter().filter(|(client, _)| !client.queue.is_listed()).count();
        assert_eq!(written, 0, "before message {expected}");
    }
    while clients.iter().any(|(client, _)| client.queue.is_listed()) {
        tokio::task::yield_now().await;
    }
    assert!(clients.iter().all(|(client, _)| waiting(client) == 5));
}

#[tokio::test]
async fn a_round_begins_soon_on_a_runtime_whose_other_tasks_deliver_nothing() {
    let node = Node::new();
    // So many that an idle runtime yields often.
    let clients: Vec<_> = (0..2_100).map(|_| node.connect(Identity::guest())).collect();
    node.deliver(Target::all());
    node.hub.write();
    let mut turns = 0;
    while clients.iter().all(|(client, _)| client.queue.is_listed()) {
        let busy = std::time::Instant::now();
        while busy.elapsed() < Duration::from_micros(150) {}
        tokio::task::yield_now().await;
        turns += 1;
    }
    assert!(turns <= 5, "{turns}");
}
