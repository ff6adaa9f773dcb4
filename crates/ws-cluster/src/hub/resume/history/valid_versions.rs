//! Which resume tokens are still valid, for clients that lost a group or property.

use std::collections::{HashMap, VecDeque};

use crate::message::target::ConnectionId;
use ws_cluster_core::Seq;

/// Maximum number of connections whose lowest valid token version is remembered. Each takes about 100 bytes.
pub(super) const MAX_REVOKED: usize = 65_536;

/// The lowest valid versions of resume tokens, for clients that lost a group or property.
#[derive(Default)]
pub(super) struct ValidVersions {
    lowest: HashMap<ConnectionId, (u64, Seq)>,
    /// The sequence numbers at which revocations came, oldest first.
    order: VecDeque<(Seq, ConnectionId)>,
    /// Revocations up to this sequence number may be forgotten, or were never known.
    floor: Seq,
}

impl ValidVersions {
    /// Returns an empty table of a node that knows no revocation up to `floor`.
    pub(super) fn after(floor: Seq) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Revocations up to this sequence number may be unknown.
    pub(super) fn floor(&self) -> Seq {
        self.floor
    }

    /// Notes that the resume token of a connection is valid from `version` on. The revocation came at `seq`.
    pub(super) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        let Self { lowest, order, floor } = self;
        let known = lowest.entry(id).or_default();
        *known = (known.0.max(version), seq);
        order.push_back((seq, id));
        while order.len() > MAX_REVOKED {
            let Some((seq, id)) = order.pop_front() else { break };
            *floor = seq.max(*floor);
            if lowest.get(&id).is_some_and(|known| known.1 == seq) {
                lowest.remove(&id);
            }
        }
    }

    /// Returns the lowest valid version of a connection's resume token.
    pub(super) fn lowest(&self, id: ConnectionId) -> u64 {
        self.lowest.get(&id).map_or(0, |known| known.0)
    }
}
