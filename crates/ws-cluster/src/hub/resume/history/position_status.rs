//! What a node knows of the entries after a position.

/// The status of a client's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionStatus {
    /// Everything after the position is held.
    Known,
    /// This node has not reached the position.
    Ahead,
    /// The entries after the position are unknown, with the reason.
    Lost(&'static str),
}

/// The reason why missed messages are not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There are more messages than the limit.
    TooMany,
    /// Some entries are not held any more.
    Trimmed,
    /// The order was cut during the replay.
    Cut,
}

impl Missing {
    /// Returns the reason that the client is told.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::TooMany => "too many messages were missed",
            Self::Trimmed => "too much has happened since",
            Self::Cut => "the order of messages was cut by a failover",
        }
    }
}
