//! One client's socket, from the upgrade to its end: reading, writing, limits, heartbeat, expiry, and the client's
//! actions in order. Everything else of the server reaches a connection through [`Client`] only, whose outbox takes
//! frames that are encoded already; how they get onto the wire is known in here.

use tokio::io::{AsyncRead, AsyncWrite};

mod call;
mod client;
mod decoder;
pub(crate) mod frame;
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
pub(crate) use membership::{Changes, Given, Member, Membership, Since, property_text};
pub(crate) use recovery::Asked;
pub(crate) use standing::{ATTEMPTS, AUTHENTICATION, DISCONNECTION};
pub(crate) use task::{Accepted, serve, serve_tcp};

/// What a connection or a link runs on: TCP, TLS, or whatever an HTTP server hands over at an upgrade.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// The size of the text message that a client's frame is, for the micro-benchmarks.
#[cfg(feature = "internals")]
pub(crate) fn decoded(frame: &mut [u8]) -> Option<usize> {
    match decoder::Decoder::default().decode(frame, usize::MAX) {
        Ok((_, Some(decoder::Event::Text(text)))) => Some(text.len()),
        _ => None,
    }
}
