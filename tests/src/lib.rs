//! The harness of the tests under `tests/`: what they start, and wait for, outside their own process.

pub mod browser;
pub mod client;
pub mod forwarder;
mod mariadb;
pub mod nodes;
mod programs;
pub mod proxy;
mod server;

pub use mariadb::MariaDb;
pub use programs::program;
pub use server::WsServer;
