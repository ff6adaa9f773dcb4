//! What a client brings along in the query of its upgrade: `?resume=`, `&state=` and `&heartbeat=`.

use std::ops::RangeInclusive;

use crate::auth::Handshake;

/// What a client brings along. Not in `Debug`: with it goes who the client is.
pub(crate) struct ResumeRequest {
    /// Empty where it begins.
    pub(super) position: String,
    pub(super) state: String,
    /// In seconds; how often it wants to hear something at least. 0 if it does not say.
    pub(super) heartbeat: u16,
}

/// The heartbeats that a client may ask for, in seconds.
const HEARTBEATS: RangeInclusive<u64> = 5..=300;

impl ResumeRequest {
    /// Takes it out of the request, where nobody else needs it: `None` from a client that keeps no position.
    pub(crate) fn take(handshake: &mut Handshake) -> Option<Self> {
        // An application may have a parameter `state` of its own where nothing is resumed.
        let [position] = handshake.take_query(["resume"]);
        let position = position?;
        let [state, heartbeat] = handshake.take_query(["state", "heartbeat"]);
        let heartbeat = heartbeat.and_then(|seconds| seconds.parse().ok()).map_or(0, |seconds: u64| {
            // In range, so it fits.
            seconds.clamp(*HEARTBEATS.start(), *HEARTBEATS.end()) as u16
        });
        Some(Self { position, state: state.unwrap_or_default(), heartbeat })
    }

    /// How often the client wants to hear something at least, in seconds; 0 if it does not say.
    pub(crate) fn heartbeat(&self) -> u16 {
        self.heartbeat
    }
}
