//! The contract of a [`Pool`], for those who implement one: [`pool_contract!`](crate::pool_contract) makes a test of each
//! behaviour.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ws_cluster::{
//!     MemoryPool,
//!     pool::{Lease, Pool},
//!     testing::pool::{CLUSTER, Store},
//! };
//!
//! struct Memory(MemoryPool);
//!
//! impl Store for Memory {
//!     async fn create() -> Self {
//!         Self(MemoryPool::default())
//!     }
//!
//!     async fn pool(&self) -> Arc<dyn Pool> {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     async fn empty(&self) {
//!         self.0.clear();
//!     }
//!
//!     async fn drop_tables(&self) {
//!         self.0.clear();
//!     }
//!
//!     async fn rewind(&self, lease: Lease) {
//!         self.0.set_lease(CLUSTER, Some(lease));
//!     }
//! }
//!
//! ws_cluster::pool_contract!(on_memory: crate::Memory);
//! # fn main() {}
//! ```

use std::{sync::Arc, time::Duration};

use crate::{
    NodeId,
    pool::{Announcement, Lease, NodeRow, Pool, PoolView},
};

/// The name of the cluster that the behaviours use.
pub const CLUSTER: &str = "site";

/// The lease that the behaviours ask for.
pub const LEASE: Duration = Duration::from_secs(5);

/// A store of rows, new for each behaviour, and the faults that it can suffer.
pub trait Store: Sized + Send + Sync {
    /// Makes an empty store, without tables.
    fn create() -> impl Future<Output = Self> + Send;

    /// Opens the store as one more node does.
    fn pool(&self) -> impl Future<Output = Arc<dyn Pool>> + Send;

    /// Loses all rows.
    fn empty(&self) -> impl Future<Output = ()> + Send;

    /// Loses the tables.
    fn drop_tables(&self) -> impl Future<Output = ()> + Send;

    /// Restores a backup that has this lease.
    fn rewind(&self, lease: Lease) -> impl Future<Output = ()> + Send;
}

/// Makes a module with a Tokio test of each behaviour, for a store that implements
/// [`Store`](crate::testing::pool::Store). The crate that uses it needs `tokio` with the features `macros` and `rt`.
#[macro_export]
macro_rules! pool_contract {
    ($module:ident: $store:ty) => {
        mod $module {
            $crate::pool_contract! { @tests $store {
                an_empty_store_shows_no_lease_and_no_nodes
                twenty_first_starts_at_once_all_get_in
                twenty_candidates_give_one_winner
                a_takeover_by_a_stale_view_loses
                a_lease_that_falls_back_comes_to_no_beat_for_a_second_time
                a_candidate_loses_to_a_master_that_renews_after_a_fail_over
                a_takeover_needs_a_lease_row
                a_takeover_goes_past_the_highest_term_seen
                a_rewound_lease_does_not_rewind_the_term
                a_renewal_moves_the_beat
                a_renewal_by_anyone_but_the_master_is_fenced
                a_lease_is_handed_over_by_its_master_only
                a_released_lease_has_no_master_and_can_be_taken
                a_lease_row_is_restored_only_where_there_is_none
                a_refresh_keeps_the_place_and_changes_the_rest
                refreshes_do_not_use_up_places
                a_restarted_node_goes_to_the_end
                a_node_takes_the_address_of_its_predecessor
                a_known_node_may_move_to_the_address_of_a_dead_one
                a_refresh_without_a_join_keeps_the_join
                a_lost_join_is_forgotten
                a_removed_node_is_gone_and_comes_back_at_the_end
                ages_grow_and_start_anew_with_each_refresh
                every_announcement_changes_the_stamp_and_nothing_else_does
                clusters_do_not_see_each_other
                emptied_tables_fill_again
                every_statement_survives_dropped_tables
                large_terms_are_kept
            } }
        }
    };
    (@tests $store:ty { $($behaviour:ident)+ }) => { $(
        #[::tokio::test]
        async fn $behaviour() {
            let store = <$store as $crate::testing::pool::Store>::create().await;
            $crate::testing::behaviours::$behaviour(store).await;
        }
    )+ };
}

/// Returns the id of the node with this number.
pub fn node(number: u8) -> NodeId {
    // Zero bytes at the end and bytes that are no text: both are easily lost on the way through a column.
    NodeId::from_bytes([0xff, number, 0x27, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Returns an announcement of the node with this number, which has not joined.
pub fn announcement(number: u8) -> Announcement {
    Announcement { node: node(number), address: address(number), joined: None }
}

/// Returns the address of the node with this number.
pub fn address(number: u8) -> String {
    format!("ws://10.0.0.{number}:8080")
}

/// Reads the pool.
pub async fn view(pool: &Arc<dyn Pool>) -> PoolView {
    pool.read(CLUSTER).await.unwrap()
}

/// Reads the lease, which must exist.
pub async fn lease(pool: &Arc<dyn Pool>) -> Lease {
    view(pool).await.lease.expect("a lease row")
}

/// Reads the row of a node, which must exist.
pub async fn row(pool: &Arc<dyn Pool>, number: u8) -> NodeRow {
    let rows = view(pool).await.nodes.into_iter();
    rows.into_iter().find(|row| row.node == node(number)).expect("a row of the node")
}

/// Reads the nodes in their order.
pub async fn order(pool: &Arc<dyn Pool>) -> Vec<NodeId> {
    view(pool).await.nodes.into_iter().map(|row| row.node).collect()
}

/// Makes the node with this number master of an empty store, and returns its lease.
pub async fn elect(pool: &Arc<dyn Pool>, number: u8) -> Lease {
    pool.restore(CLUSTER, 0, None).await.unwrap();
    let seen = lease(pool).await;
    pool.take_over(CLUSTER, &seen, 0, node(number), LEASE).await.unwrap().expect("nobody else stands");
    lease(pool).await
}
