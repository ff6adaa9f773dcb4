//! The parameters that a client brings in the query of its upgrade: `?resume=`, `&state=` and `&heartbeat=`.

use std::ops::RangeInclusive;

use crate::{auth::Handshake, message::position::Position};

/// The resume parameters of a client. Not `Debug`, because the token is a secret.
pub(crate) struct ResumeRequest {
    /// The client's position; empty if the client begins.
    pub(super) position: String,
    pub(super) state: String,
    /// The longest interval between two messages that the client asks for, in seconds; 0 if it does not ask.
    pub(super) heartbeat: u16,
    /// The end of the order when a client came that does not track its position.
    pub(super) now: Option<Position>,
}

/// The heartbeats that a client may ask for, in seconds.
const HEARTBEATS: RangeInclusive<u64> = 5..=300;

impl ResumeRequest {
    /// Takes the parameters out of the request, since only the resume needs them. Returns `None` if the client does not
    /// track its position.
    pub(crate) fn take(handshake: &mut Handshake) -> Option<Self> {
        // Without `resume`, `state` may be a parameter of the application.
        let [position] = handshake.take_query(["resume"]);
        let position = position?;
        let [state, heartbeat] = handshake.take_query(["state", "heartbeat"]);
        let heartbeat = heartbeat.and_then(|seconds| seconds.parse().ok()).map_or(0, |seconds: u64| {
            // In range, so it fits.
            seconds.clamp(*HEARTBEATS.start(), *HEARTBEATS.end()) as u16
        });
        Some(Self { position, state: state.unwrap_or_default(), heartbeat, now: None })
    }

    /// The parameters of a client that does not track its position, and waits until the application lets it join: it gets
    /// what is delivered after `now`.
    pub(crate) fn untracked(now: Position) -> Self {
        Self { position: String::new(), state: String::new(), heartbeat: 0, now: Some(now) }
    }

    /// Returns the longest interval between two messages that the client asks for, in seconds; 0 if it does not ask.
    pub(crate) fn heartbeat(&self) -> u16 {
        self.heartbeat
    }
}
