//! The contract of an [`Outbox`], for those who implement one: [`outbox_contract!`](crate::outbox_contract) makes a test
//! of each behaviour.

use std::sync::Arc;

use crate::outbox::{Outbox, OutboxRow, ReadLimits, RowId};

/// The name of the cluster that the behaviours use.
pub const CLUSTER: &str = "site";

/// Limits that the behaviours do not reach, unless they are about limits.
pub const LIMITS: ReadLimits = ReadLimits { rows: 100, size: 10_000_000, row_size: 5_000_000 };

/// A database with an outbox, new for each behaviour, as the site uses it.
pub trait OutboxStore: Sized + Send + Sync {
    /// A transaction of the site. If it is dropped, it is rolled back.
    type Transaction: SiteTransaction;

    /// True if several transactions can have rows at the same time.
    const IS_PARALLEL: bool;

    /// Makes an empty database, without tables.
    fn create() -> impl Future<Output = Self> + Send;

    /// Opens the outbox as one more node does.
    fn outbox(&self) -> impl Future<Output = Arc<dyn Outbox>> + Send;

    /// Begins a transaction of the site.
    fn begin(&self) -> impl Future<Output = Self::Transaction> + Send;

    /// Returns the action and the reason of each row that failed, in the order in which they failed.
    fn failed(&self) -> impl Future<Output = Vec<(String, String)>> + Send;

    /// Loses the tables.
    fn drop_tables(&self) -> impl Future<Output = ()> + Send;
}

/// A transaction of the site.
pub trait SiteTransaction: Send {
    /// Inserts a row.
    fn insert(&mut self, row: SiteRow<'_>) -> impl Future<Output = ()> + Send;

    /// Commits.
    fn commit(self) -> impl Future<Output = ()> + Send;

    /// Rolls back, and waits until that is done.
    fn roll_back(self) -> impl Future<Output = ()> + Send;
}

/// A row as a site inserts it.
#[derive(Clone, Copy, Debug)]
pub struct SiteRow<'a> {
    /// The action.
    pub action: &'a str,
    /// The details.
    pub details: Option<&'a str>,
    /// The target.
    pub target: &'a str,
    /// The cluster. If there is none, the column is not named.
    pub cluster: Option<&'a str>,
}

impl<'a> SiteRow<'a> {
    /// Makes a row to all without details.
    pub fn new(action: &'a str) -> Self {
        Self { action, details: None, target: "all", cluster: None }
    }
}

/// Makes a module with a Tokio test of each behaviour, for a store that implements
/// [`OutboxStore`](crate::testing::outbox::OutboxStore). The crate that uses it needs `tokio` with the features `macros`
/// and `rt`.
#[macro_export]
macro_rules! outbox_contract {
    ($module:ident: $store:ty) => {
        mod $module {
            $crate::outbox_contract! { @tests $store {
                an_empty_outbox_has_no_rows
                committed_rows_are_read_in_the_order_of_their_ids
                rows_of_open_and_rolled_back_transactions_are_not_read
                a_transaction_that_commits_late_is_read_with_its_lower_ids
                removed_rows_are_gone_and_the_others_stay
                a_removal_does_not_wait_for_open_transactions
                a_row_with_another_stamp_is_not_removed
                failed_rows_move_once_with_their_reasons
                two_nodes_may_move_and_remove_the_same_rows
                rows_of_other_clusters_stay
                a_read_is_bounded_by_the_number_and_the_size_of_rows
                texts_are_kept_as_they_are
                every_call_survives_dropped_tables
            } }
        }
    };
    (@tests $store:ty { $($behaviour:ident)+ }) => { $(
        #[::tokio::test]
        async fn $behaviour() {
            let store = <$store as $crate::testing::outbox::OutboxStore>::create().await;
            $crate::testing::outbox_behaviours::$behaviour(store).await;
        }
    )+ };
}

/// Commits one row after the other, each in a transaction of its own.
pub async fn insert(store: &impl OutboxStore, rows: &[SiteRow<'_>]) {
    for row in rows {
        let mut transaction = store.begin().await;
        transaction.insert(*row).await;
        transaction.commit().await;
    }
}

/// Reads the rows.
pub async fn read(outbox: &Arc<dyn Outbox>) -> Vec<OutboxRow> {
    let read = outbox.read(CLUSTER, LIMITS).await.unwrap();
    assert!(!read.has_more);
    read.rows
}

/// Returns the actions of rows.
pub fn actions(rows: &[OutboxRow]) -> Vec<&str> {
    let texts = rows.iter().map(|row| row.texts.as_ref().expect("texts"));
    texts.map(|texts| std::str::from_utf8(&texts.action).expect("UTF-8")).collect()
}

/// Returns the ids of rows.
pub fn ids(rows: &[OutboxRow]) -> Vec<RowId> {
    rows.iter().map(|row| row.id).collect()
}
