//! The outbox: its contract, one test for each behaviour, on every implementation, and rows on their way from a site's
//! transaction to the clients of a real cluster.

mod kills;
mod mariadb;
mod node;
mod sqlite;
mod store;

use ws_cluster::outbox_contract;

outbox_contract!(on_memory: crate::store::Memory);
outbox_contract!(on_sqlite: crate::store::Sqlite);
outbox_contract!(on_mariadb: crate::store::MySql);
