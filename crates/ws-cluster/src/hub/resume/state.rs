//! The contents of a resume token.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    hub::membership::{Changes, GivenHashes, Since},
    message::{position::Position, target::ConnectionId},
};
use ws_cluster_core::Seq;

/// The contents of a resume token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResumeState {
    pub(crate) id: ConnectionId,
    pub(crate) changes: Changes,
    /// The version of the membership. Every node knows the lowest valid one.
    pub(crate) version: u64,
    /// Messages up to this sequence number are not replayed.
    pub(crate) began: Seq,
    pub(crate) since: Since,
    pub(crate) given: GivenHashes,
    /// The position up to which the node had delivered when it sealed the token.
    pub(crate) at: Position,
    /// The time of sealing, in seconds of Unix time.
    pub(crate) time: u64,
}

/// Returns the seconds of Unix time.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
