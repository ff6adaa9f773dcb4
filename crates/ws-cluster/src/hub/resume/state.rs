//! What a client carries from one connection to the next.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    hub::membership::{Changes, Given, Since},
    message::{position::Position, target::ConnectionId},
};
use ws_cluster_core::Seq;

/// What a client carries from one connection to the next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResumeState {
    pub(crate) id: ConnectionId,
    pub(crate) changes: Changes,
    /// Grows whenever something is taken away from it; the nodes know the lowest that is valid.
    pub(crate) version: u64,
    /// Nothing is replayed that is not behind this place.
    pub(crate) began: Seq,
    pub(crate) since: Since,
    pub(crate) given: Given,
    /// How far its node had come when it was sealed.
    pub(crate) at: Position,
    /// When that was, in seconds of Unix time.
    pub(crate) time: u64,
}

/// Seconds of Unix time.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
