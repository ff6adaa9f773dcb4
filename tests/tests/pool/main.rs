//! The pool's contract, one test for each behaviour, on every implementation, and tests of what can happen to only one
//! store.

mod accounts;
mod contract;
mod mariadb;
mod sqlite;
mod store;

use std::{sync::Arc, time::Duration};

use ws_cluster::{
    NodeId,
    pool::{Announcement, Lease, MemoryPool, NodeRow, Pool, PoolView},
};

const CLUSTER: &str = "site";
const LEASE: Duration = Duration::from_secs(5);

/// Makes a module for each store with each behaviour as a test.
macro_rules! contract {
    ($behaviours:tt $($module:ident: $store:ident),+) => { $(contract!(@module $behaviours $module $store);)+ };
    (@module { $($behaviour:ident),+ $(,)? } $module:ident $store:ident) => {
        mod $module {
            $(#[tokio::test]
            async fn $behaviour() {
                crate::contract::$behaviour(<crate::store::$store as crate::store::Store>::create().await).await;
            })+
        }
    };
}

contract! {
    {
        an_empty_store_shows_no_lease_and_no_nodes,
        twenty_first_starts_at_once_all_get_in,
        twenty_candidates_give_one_winner,
        a_takeover_by_a_stale_view_loses,
        a_lease_that_falls_back_comes_to_no_beat_for_a_second_time,
        a_candidate_loses_to_a_master_that_renews_after_a_fail_over,
        a_takeover_needs_a_lease_row,
        a_takeover_goes_past_the_highest_term_seen,
        a_rewound_lease_does_not_rewind_the_term,
        a_renewal_moves_the_beat,
        a_renewal_by_anyone_but_the_owner_is_fenced,
        a_lease_is_handed_over_by_its_owner_only,
        a_released_lease_has_no_owner_and_can_be_taken,
        a_lease_row_is_restored_only_where_there_is_none,
        a_refresh_keeps_the_place_and_changes_the_rest,
        refreshes_do_not_use_up_places,
        a_restarted_node_goes_to_the_end,
        a_node_takes_the_address_of_its_predecessor,
        a_known_node_may_move_to_the_address_of_a_dead_one,
        a_refresh_without_a_join_keeps_the_join,
        a_lost_join_is_forgotten,
        a_removed_node_is_gone_and_comes_back_at_the_end,
        ages_grow_and_start_anew_with_each_refresh,
        every_announcement_changes_the_stamp_and_nothing_else_does,
        clusters_do_not_see_each_other,
        emptied_tables_fill_again,
        every_statement_survives_dropped_tables,
        large_terms_are_kept,
    }
    on_memory: Memory, on_sqlite: Sqlite, on_mariadb: MySql
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_memory_pool_is_tokios() {
    let pool = MemoryPool::default();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(pool.read(CLUSTER).await.unwrap().nodes[0].age, Duration::from_secs(7));
}

fn node(number: u8) -> NodeId {
    // Zero bytes at the end and bytes that are not text are easily lost on the way through a column.
    NodeId::from_bytes([0xff, number, 0x27, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn announcement(number: u8) -> Announcement {
    Announcement { node: node(number), address: address(number), joined: None }
}

fn address(number: u8) -> String {
    format!("ws://10.0.0.{number}:8080")
}

async fn view(pool: &Arc<dyn Pool>) -> PoolView {
    pool.read(CLUSTER).await.unwrap()
}

async fn lease(pool: &Arc<dyn Pool>) -> Lease {
    view(pool).await.lease.expect("a lease row")
}

async fn row(pool: &Arc<dyn Pool>, number: u8) -> NodeRow {
    let rows = view(pool).await.nodes.into_iter();
    rows.into_iter().find(|row| row.node == node(number)).expect("a row of the node")
}

async fn order(pool: &Arc<dyn Pool>) -> Vec<NodeId> {
    view(pool).await.nodes.into_iter().map(|row| row.node).collect()
}

/// Makes the node with this number the master of an empty store. Returns its lease.
async fn elect(pool: &Arc<dyn Pool>, number: u8) -> Lease {
    pool.restore(CLUSTER, 0, None).await.unwrap();
    let seen = lease(pool).await;
    pool.take_over(CLUSTER, &seen, 0, node(number), LEASE).await.unwrap().expect("nobody else stands");
    lease(pool).await
}
