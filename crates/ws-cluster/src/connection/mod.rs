//! One client's socket, from the upgrade to its end: reading, writing, limits, heartbeat, expiry, and the client's
//! actions in order. Everything else of the server reaches a connection through [`Client`] only, whose outbox takes
//! frames that are encoded already; how they get onto the wire is known in here.

mod call;
mod client;
mod membership;
mod outbox;
mod pace;
mod parking;
mod recovery;
mod standing;
mod task;
#[cfg(test)]
mod tests;
mod timing;
mod transport;

pub(crate) use call::{Question, ask};
pub(crate) use client::{Client, State};
pub(crate) use membership::{Changes, Given, Member, Membership, Since};
pub(crate) use recovery::Asked;
pub(crate) use standing::{ATTEMPTS, AUTHENTICATION, DISCONNECTION};
pub(crate) use task::{Accepted, serve, serve_tcp};
