//! The history of this node, the cut entries that may come again, and the schedule of positions for quiet clients. Pure
//! except for the clock.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::history::History;
use crate::{
    Config,
    message::{
        groups::GroupChange,
        target::{ConnectionId, Target},
    },
};
use ws_cluster_core::{LogPosition, PublishId, Seq};

/// Maximum number of cut entries that are remembered until they come again. Some never do, because the master had them.
const MAX_CUT: usize = 100_000;

/// Quiet clients are told their position after this part of the log's limits.
const LOG_SHARE: usize = 4;

/// The delivered entries, and the clients that a repeated entry may reach.
pub(in crate::hub) struct ReplayLog {
    pub(super) history: History,
    /// Entries that were delivered and then cut. If one comes again, it reaches only clients whose entry number is at
    /// least this.
    pub(super) cut_entries: HashMap<PublishId, u64>,
    /// The entry number for repeated entries that are not in `cut_entries`.
    pub(super) reset_entry: u64,
    /// The time at which quiet clients were last told their position; below, the entries and bytes since.
    pub(super) last_sent: Instant,
    pub(super) count: usize,
    pub(super) size: usize,
    /// True if something was delivered since the waiting clients were last woken.
    pub(super) advanced: bool,
    pub(super) interval: Duration,
    /// Numbers of entries and bytes after which quiet clients are told their position.
    pub(super) limits: (usize, usize),
}

impl ReplayLog {
    pub(in crate::hub) fn new(config: &Config) -> Self {
        Self {
            history: History::default(),
            cut_entries: HashMap::new(),
            reset_entry: u64::MAX,
            last_sent: Instant::now(),
            count: 0,
            size: 0,
            advanced: false,
            interval: config.connection.position_interval,
            limits: (config.log.count / LOG_SHARE, config.log.size / LOG_SHARE),
        }
    }

    /// Appends an entry. Returns the entry number of the first client that may get it.
    pub(in crate::hub) fn append(
        &mut self,
        log_position: LogPosition,
        publish: PublishId,
        content: Option<(&Target, Bytes)>,
        size: usize,
        repeated: Option<PublishId>,
    ) -> u64 {
        self.advanced = true;
        self.count += 1;
        self.size += size;
        self.history.append(log_position, publish, content);
        let first = self.first_entry(repeated);
        if let Some(known) = repeated {
            self.cut_entries.remove(&known);
        }
        first
    }

    /// Returns the entry number of the first client that may get an entry.
    pub(in crate::hub) fn first_entry(&self, repeated: Option<PublishId>) -> u64 {
        repeated.map_or(0, |known| self.cut_entries.get(&known).copied().unwrap_or(self.reset_entry))
    }

    pub(in crate::hub) fn note_groups(&mut self, seq: Seq, change: &GroupChange) {
        self.history.note_groups(seq, change);
    }

    pub(in crate::hub) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        self.history.revoke(id, version, seq);
    }

    pub(in crate::hub) fn trim(&mut self, base: Seq) {
        self.history.trim(base);
    }

    /// Cuts the entries after `after`. Clients whose entry number is at least `next` have none of them.
    pub(super) fn cut(&mut self, after: Seq, next: u64) {
        if self.cut_entries.len() > MAX_CUT {
            self.forget(next);
        }
        let cut = self.history.cut(after);
        self.cut_entries.extend(cut.into_iter().map(|publish| (publish, next)));
    }

    pub(super) fn forget(&mut self, next: u64) {
        self.cut_entries.clear();
        self.reset_entry = next;
    }

    #[cfg(test)]
    pub(in crate::hub) fn epoch(&self) -> u64 {
        self.history.epoch()
    }

    #[cfg(test)]
    pub(in crate::hub) fn send_positions_at_once(&mut self) {
        self.interval = Duration::ZERO;
    }

    pub(super) fn positions_are_due(&self) -> bool {
        self.count > self.limits.0
            || self.size > self.limits.1
            || (self.count > 0 && self.last_sent.elapsed() >= self.interval)
    }
}
