//! One client's socket, from the upgrade to its end: reads, writes, limits, heartbeat, expiry, and the client's actions
//! in order. The rest of the server reaches a connection only through its [`Client`](crate::hub::Client), whose queue
//! takes encoded frames.

mod auth;
mod closing;
mod context;
mod look_ups;
mod messages;
mod parking;
mod questions;
mod rate_limit;
mod reading;
mod run;
mod task;
#[cfg(test)]
mod tests;
mod timing;
mod transport;

pub(crate) use auth::{ATTEMPTS, AUTHENTICATION, DISCONNECTION, FORBIDDEN};
pub(crate) use context::{Application, Context, Raw, asks_application};
pub(crate) use questions::{Answer, ask, forget};
pub(crate) use run::{Accepted, serve, serve_tcp};

/// Returns the text of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
