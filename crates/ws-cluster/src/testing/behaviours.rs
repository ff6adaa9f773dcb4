//! The behaviours that every pool has, each as a function of an empty store.

use std::{
    collections::HashSet,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Barrier, task::JoinSet};

use super::pool::{CLUSTER, LEASE, Store, address, announcement, elect, lease, node, order, row, view};
use crate::pool::{Announcement, Lease, Pool, PoolView};

/// Runs `work` for numbers 1 to 20, each with a pool of its own, all at the same time.
async fn twenty_at_once<T: Debug + Send + 'static, F>(
    store: &impl Store,
    work: impl Fn(u8, Arc<dyn Pool>) -> F,
) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(Barrier::new(20));
    let mut nodes = JoinSet::new();
    for number in 1..=20 {
        let (start, work) = (start.clone(), work(number, store.pool().await));
        nodes.spawn(async move {
            start.wait().await;
            work.await
        });
    }
    nodes.join_all().await
}

pub async fn an_empty_store_shows_no_lease_and_no_nodes(store: impl Store) {
    let pool = store.pool().await;
    pool.prepare().await.unwrap();
    assert_eq!(view(&pool).await, PoolView::default());
}

pub async fn twenty_first_starts_at_once_all_get_in(store: impl Store) {
    twenty_at_once(&store, |number, pool| async move {
        pool.prepare().await.unwrap();
        pool.announce(CLUSTER, &announcement(number)).await.unwrap();
    })
    .await;
    let nodes = view(&store.pool().await).await.nodes;
    assert!(nodes.is_sorted_by(|a, b| a.ord < b.ord), "{nodes:?}");
    let mut ids: Vec<_> = nodes.iter().map(|row| row.node).collect();
    ids.sort();
    assert_eq!(ids, (1..=20).map(node).collect::<Vec<_>>());
}

pub async fn twenty_candidates_give_one_winner(store: impl Store) {
    let outcomes = twenty_at_once(&store, |number, pool| async move {
        pool.restore(CLUSTER, 0, None).await.unwrap();
        let seen = lease(&pool).await;
        let term = pool.take_over(CLUSTER, &seen, 0, node(number), LEASE).await.unwrap();
        // Callers that come so late that they see the winner already are candidates for the next term.
        (seen, term.map(|term| (term, node(number))))
    })
    .await;
    let mut terms: Vec<_> = outcomes.iter().filter_map(|(_, won)| *won).collect();
    terms.sort();
    assert!(!terms.is_empty());
    assert!(terms.iter().zip(1..).all(|((term, _), expected)| *term == expected), "{outcomes:?}");
    let last = terms[terms.len() - 1];
    let now = lease(&store.pool().await).await;
    assert_eq!((now.term, now.master), (last.0, Some(last.1)));

    // From one view, exactly one succeeds.
    let winners = twenty_at_once(&store, move |number, pool| async move {
        pool.take_over(CLUSTER, &now, 0, node(number), LEASE).await.unwrap()
    })
    .await;
    let winners: Vec<_> = winners.into_iter().flatten().collect();
    assert_eq!(winners, [now.term + 1]);
}

pub async fn a_takeover_by_a_stale_view_loses(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    assert_eq!(pool.take_over(CLUSTER, &seen, 0, node(2), LEASE).await.unwrap(), None);
    let past = Lease { term: seen.term - 1, ..lease(&pool).await };
    assert_eq!(pool.take_over(CLUSTER, &past, 0, node(2), LEASE).await.unwrap(), None);
    // The same term and beat of another master, as after a fail-over of the database that lost the last writes.
    for master in [None, Some(node(3))] {
        let repeated = Lease { master, ..lease(&pool).await };
        assert_eq!(pool.take_over(CLUSTER, &repeated, 0, node(2), LEASE).await.unwrap(), None);
    }
    let kept = lease(&pool).await;
    assert_eq!((kept.term, kept.master), (1, Some(node(1))));
    assert!(kept.beat > seen.beat, "{kept:?} {seen:?}");
}

pub async fn a_lease_that_falls_back_comes_to_no_beat_for_a_second_time(store: impl Store) {
    let pool = store.pool().await;
    let old = elect(&pool, 1).await;
    let mut seen = HashSet::from([old.beat]);
    // Each round is a fail-over to a replica that lost the last write, and that write again.
    for round in 0..20 {
        store.rewind(old).await;
        match round % 3 {
            0 => assert!(pool.renew(CLUSTER, old.term, node(1), LEASE).await.unwrap()),
            1 => assert!(pool.take_over(CLUSTER, &old, 0, node(1), LEASE).await.unwrap().is_some()),
            _ => assert!(pool.hand_over(CLUSTER, old.term, node(1), Some(node(1)), LEASE).await.unwrap()),
        }
        assert!(seen.insert(lease(&pool).await.beat), "round {round}: {seen:?}");
    }
    for _ in 0..5 {
        store.empty().await;
        pool.restore(CLUSTER, old.term, old.master).await.unwrap();
        assert!(seen.insert(lease(&pool).await.beat), "{seen:?}");
    }
}

pub async fn a_candidate_loses_to_a_master_that_renews_after_a_fail_over(store: impl Store) {
    let pool = store.pool().await;
    let replicated = elect(&pool, 1).await;
    assert!(pool.renew(CLUSTER, replicated.term, node(1), LEASE).await.unwrap());
    let seen = lease(&pool).await;
    store.rewind(replicated).await;
    assert!(pool.renew(CLUSTER, replicated.term, node(1), LEASE).await.unwrap());
    assert_eq!(pool.take_over(CLUSTER, &seen, 0, node(2), LEASE).await.unwrap(), None);
    assert_eq!(lease(&pool).await.master, Some(node(1)));
}

pub async fn a_takeover_needs_a_lease_row(store: impl Store) {
    let pool = store.pool().await;
    let seen = Lease { term: 0, master: None, beat: 0 };
    assert_eq!(pool.take_over(CLUSTER, &seen, 0, node(1), LEASE).await.unwrap(), None);
    assert_eq!(view(&pool).await.lease, None);
}

pub async fn a_takeover_goes_past_the_highest_term_seen(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    assert_eq!(pool.take_over(CLUSTER, &seen, 7, node(2), LEASE).await.unwrap(), Some(8));
    let taken = lease(&pool).await;
    assert_eq!((taken.term, taken.master), (8, Some(node(2))));
    assert!(taken.beat > seen.beat, "{taken:?} {seen:?}");
    // A master that meets a higher term raises its own in the same way.
    let seen = lease(&pool).await;
    assert_eq!(pool.take_over(CLUSTER, &seen, 3, node(2), LEASE).await.unwrap(), Some(9));
}

pub async fn a_rewound_lease_does_not_rewind_the_term(store: impl Store) {
    let pool = store.pool().await;
    elect(&pool, 1).await;
    let seen = lease(&pool).await;
    assert_eq!(pool.take_over(CLUSTER, &seen, 40, node(2), LEASE).await.unwrap(), Some(41));
    store.rewind(Lease { term: 1, master: Some(node(1)), beat: 1 }).await;
    assert!(!pool.renew(CLUSTER, 41, node(2), LEASE).await.unwrap());
    let seen = lease(&pool).await;
    assert_eq!(seen, Lease { term: 1, master: Some(node(1)), beat: 1 });
    assert_eq!(pool.take_over(CLUSTER, &seen, 41, node(2), LEASE).await.unwrap(), Some(42));
}

pub async fn a_renewal_moves_the_beat(store: impl Store) {
    let pool = store.pool().await;
    let mut seen = elect(&pool, 1).await;
    for _ in 0..3 {
        assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
        let renewed = lease(&pool).await;
        assert!(renewed.beat > seen.beat, "{renewed:?} {seen:?}");
        assert_eq!(renewed, Lease { beat: renewed.beat, ..seen });
        seen = renewed;
    }
}

pub async fn a_renewal_by_anyone_but_the_master_is_fenced(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    assert!(!pool.renew(CLUSTER, seen.term, node(2), LEASE).await.unwrap());
    assert!(!pool.renew(CLUSTER, seen.term + 1, node(1), LEASE).await.unwrap());
    assert!(!pool.renew("another", seen.term, node(1), LEASE).await.unwrap());
    assert_eq!(lease(&pool).await, seen);
}

pub async fn a_lease_is_handed_over_by_its_master_only(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    assert!(!pool.hand_over(CLUSTER, seen.term, node(2), Some(node(2)), LEASE).await.unwrap());
    assert!(!pool.hand_over(CLUSTER, seen.term + 1, node(1), Some(node(2)), LEASE).await.unwrap());
    assert_eq!(lease(&pool).await, seen);
    assert!(pool.hand_over(CLUSTER, seen.term, node(1), Some(node(2)), LEASE).await.unwrap());
    let passed = lease(&pool).await;
    assert_eq!((passed.term, passed.master), (seen.term + 1, Some(node(2))));
    assert!(passed.beat > seen.beat, "{passed:?} {seen:?}");
    assert!(!pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    assert!(pool.renew(CLUSTER, seen.term + 1, node(2), LEASE).await.unwrap());
}

pub async fn a_released_lease_has_no_master_and_can_be_taken(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    assert!(pool.hand_over(CLUSTER, seen.term, node(1), None, LEASE).await.unwrap());
    let released = lease(&pool).await;
    assert_eq!((released.term, released.master), (seen.term + 1, None));
    assert!(released.beat > seen.beat, "{released:?} {seen:?}");
    assert!(!pool.renew(CLUSTER, released.term, node(1), LEASE).await.unwrap());
    assert_eq!(pool.take_over(CLUSTER, &released, 0, node(2), LEASE).await.unwrap(), Some(released.term + 1));
}

pub async fn a_lease_row_is_restored_only_where_there_is_none(store: impl Store) {
    let pool = store.pool().await;
    pool.restore(CLUSTER, 5, Some(node(1))).await.unwrap();
    let restored = lease(&pool).await;
    assert_eq!((restored.term, restored.master), (5, Some(node(1))));
    pool.restore(CLUSTER, 9, Some(node(2))).await.unwrap();
    pool.restore(CLUSTER, 0, None).await.unwrap();
    assert_eq!(lease(&pool).await, restored);
}

pub async fn a_refresh_keeps_the_place_and_changes_the_rest(store: impl Store) {
    let pool = store.pool().await;
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    pool.announce(CLUSTER, &announcement(2)).await.unwrap();
    let before = row(&pool, 1).await;
    assert_eq!((before.address, before.joined), (address(1), None));
    let moved = Announcement { node: node(1), address: address(7), joined: Some(4) };
    pool.announce(CLUSTER, &moved).await.unwrap();
    let after = row(&pool, 1).await;
    assert_eq!((after.address, after.joined), (address(7), Some(4)));
    assert_eq!(after.ord, before.ord);
    assert_eq!(order(&pool).await, [node(1), node(2)]);
}

pub async fn refreshes_do_not_use_up_places(store: impl Store) {
    let pool = store.pool().await;
    for _ in 0..20 {
        pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    }
    pool.announce(CLUSTER, &announcement(2)).await.unwrap();
    assert_eq!(row(&pool, 2).await.ord, row(&pool, 1).await.ord + 1);
}

pub async fn a_restarted_node_goes_to_the_end(store: impl Store) {
    let pool = store.pool().await;
    for number in 1..=3 {
        pool.announce(CLUSTER, &announcement(number)).await.unwrap();
    }
    let restarted = Announcement { node: node(11), ..announcement(1) };
    pool.announce(CLUSTER, &restarted).await.unwrap();
    assert_eq!(order(&pool).await, [node(2), node(3), node(11)]);
}

pub async fn a_node_takes_the_address_of_its_predecessor(store: impl Store) {
    let pool = store.pool().await;
    pool.announce(CLUSTER, &Announcement { joined: Some(3), ..announcement(1) }).await.unwrap();
    let restarted = Announcement { node: node(2), ..announcement(1) };
    pool.announce(CLUSTER, &restarted).await.unwrap();
    assert_eq!(order(&pool).await, [node(2)]);
    assert_eq!(row(&pool, 2).await.joined, None);
}

pub async fn a_known_node_may_move_to_the_address_of_a_dead_one(store: impl Store) {
    let pool = store.pool().await;
    for number in 1..=3 {
        pool.announce(CLUSTER, &announcement(number)).await.unwrap();
    }
    pool.announce(CLUSTER, &Announcement { node: node(1), ..announcement(2) }).await.unwrap();
    assert_eq!(order(&pool).await, [node(1), node(3)]);
    assert_eq!(row(&pool, 1).await.address, address(2));
}

pub async fn a_refresh_without_a_join_keeps_the_join(store: impl Store) {
    let pool = store.pool().await;
    pool.announce(CLUSTER, &Announcement { joined: Some(3), ..announcement(1) }).await.unwrap();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    assert_eq!(row(&pool, 1).await.joined, Some(3));
}

pub async fn a_lost_join_is_forgotten(store: impl Store) {
    let pool = store.pool().await;
    for number in 1..=2 {
        pool.announce(CLUSTER, &Announcement { joined: Some(6), ..announcement(number) }).await.unwrap();
    }
    pool.clear_joined(CLUSTER, node(1)).await.unwrap();
    pool.clear_joined(CLUSTER, node(9)).await.unwrap();
    assert_eq!(row(&pool, 1).await.joined, None);
    assert_eq!(row(&pool, 2).await.joined, Some(6));
}

pub async fn a_removed_node_is_gone_and_comes_back_at_the_end(store: impl Store) {
    let pool = store.pool().await;
    for number in 1..=2 {
        pool.announce(CLUSTER, &announcement(number)).await.unwrap();
    }
    pool.remove(CLUSTER, node(1)).await.unwrap();
    pool.remove(CLUSTER, node(1)).await.unwrap();
    assert_eq!(order(&pool).await, [node(2)]);
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    assert_eq!(order(&pool).await, [node(2), node(1)]);
}

pub async fn ages_grow_and_start_anew_with_each_refresh(store: impl Store) {
    let pool = store.pool().await;
    let start = Instant::now();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    let young = row(&pool, 1).await.age;
    // Whatever the resolution of the clock, some read comes later.
    while row(&pool, 1).await.age <= young {
        assert!(start.elapsed() < Duration::from_secs(10), "the age stands still at {young:?}");
    }
    let refresh = Instant::now();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    let renewed = row(&pool, 1).await.age;
    assert!(renewed <= refresh.elapsed() + Duration::from_millis(1), "{renewed:?}");
}

pub async fn every_announcement_changes_the_stamp_and_nothing_else_does(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    let mut stamps = HashSet::new();
    for _ in 0..100 {
        pool.announce(CLUSTER, &announcement(1)).await.unwrap();
        assert!(stamps.insert(row(&pool, 1).await.stamp));
    }
    let stamp = row(&pool, 1).await.stamp;
    pool.announce(CLUSTER, &announcement(2)).await.unwrap();
    pool.clear_joined(CLUSTER, node(1)).await.unwrap();
    assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    assert_eq!(row(&pool, 1).await.stamp, stamp);
    pool.remove(CLUSTER, node(1)).await.unwrap();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    assert!(stamps.insert(row(&pool, 1).await.stamp));
}

pub async fn clusters_do_not_see_each_other(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    for other in ["another", "SITE"] {
        assert_eq!(pool.read(other).await.unwrap(), PoolView::default());
        // The same node, address and lease in another cluster.
        pool.announce(other, &announcement(1)).await.unwrap();
        pool.restore(other, 9, Some(node(2))).await.unwrap();
        assert!(!pool.renew(other, seen.term, node(1), LEASE).await.unwrap());
        pool.remove(other, node(1)).await.unwrap();
        assert_eq!(pool.read(other).await.unwrap().nodes, []);
    }
    assert_eq!(lease(&pool).await, seen);
    assert_eq!(order(&pool).await, [node(1)]);
}

pub async fn emptied_tables_fill_again(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    store.empty().await;
    assert_eq!(view(&pool).await, PoolView::default());
    assert!(!pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    pool.announce(CLUSTER, &announcement(2)).await.unwrap();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    assert_eq!(order(&pool).await, [node(2), node(1)]);
    pool.restore(CLUSTER, seen.term, Some(node(1))).await.unwrap();
    assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
}

pub async fn every_statement_survives_dropped_tables(store: impl Store) {
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    for statement in 0..9 {
        store.drop_tables().await;
        match statement {
            0 => pool.prepare().await.unwrap(),
            1 => assert_eq!(view(&pool).await, PoolView::default()),
            2 => pool.announce(CLUSTER, &announcement(1)).await.unwrap(),
            3 => assert!(!pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap()),
            4 => assert_eq!(pool.take_over(CLUSTER, &seen, 0, node(1), LEASE).await.unwrap(), None),
            5 => assert!(!pool.hand_over(CLUSTER, seen.term, node(1), None, LEASE).await.unwrap()),
            6 => pool.restore(CLUSTER, seen.term, None).await.unwrap(),
            7 => pool.clear_joined(CLUSTER, node(1)).await.unwrap(),
            _ => pool.remove(CLUSTER, node(1)).await.unwrap(),
        }
    }
    assert_eq!(view(&pool).await, PoolView::default());
    elect(&pool, 2).await;
}

pub async fn large_terms_are_kept(store: impl Store) {
    let pool = store.pool().await;
    elect(&pool, 1).await;
    let seen = lease(&pool).await;
    // The maximum of a signed column, minus one.
    let term = i64::MAX as u64 - 1;
    assert_eq!(pool.take_over(CLUSTER, &seen, term - 1, node(1), LEASE).await.unwrap(), Some(term));
    assert!(pool.renew(CLUSTER, term, node(1), LEASE).await.unwrap());
    assert_eq!(lease(&pool).await.term, term);
}
