//! What this node delivered lately, which of it may come again, and when quiet clients are told their position. Pure but
//! for the clock.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::history::History;
use crate::{
    Config,
    message::target::{ConnectionId, Target},
};
use ws_cluster_core::{LogPosition, PublishId, Seq};

/// Entries that were cut away and are remembered until they come again. Some never do, since the master had them.
const AGAIN: usize = 100_000;

/// Which part of the log may pass before quiet clients are told their position.
const TURN: usize = 4;

/// What was delivered, and to whom it may come again.
pub(in crate::hub) struct ReplayLog {
    pub(super) history: History,
    /// What was delivered and cut away since: it reaches only clients from that entry number on when it comes again.
    pub(super) again: HashMap<PublishId, u64>,
    /// The same for what is not in there.
    pub(super) since: u64,
    /// When quiet clients were told last, and what was delivered since.
    pub(super) told: Instant,
    pub(super) count: usize,
    pub(super) size: usize,
    /// Something was delivered since who waits for it looked.
    pub(super) advanced: bool,
    pub(super) interval: Duration,
    /// As many entries, or bytes, make another telling due.
    pub(super) turn: (usize, usize),
}

impl ReplayLog {
    pub(in crate::hub) fn new(config: &Config) -> Self {
        Self {
            history: History::default(),
            again: HashMap::new(),
            since: u64::MAX,
            told: Instant::now(),
            count: 0,
            size: 0,
            advanced: false,
            interval: config.connection.position_interval,
            turn: (config.log.count / TURN, config.log.size / TURN),
        }
    }

    /// Notes an entry, and says from which client on it is delivered.
    pub(in crate::hub) fn append(
        &mut self,
        place: LogPosition,
        publish: PublishId,
        content: Option<(&Target, Bytes)>,
        size: usize,
        repeated: Option<PublishId>,
    ) -> u64 {
        self.advanced = true;
        self.count += 1;
        self.size += size;
        self.history.append(place, publish, content);
        repeated.map_or(0, |known| self.again.remove(&known).unwrap_or(self.since))
    }

    pub(in crate::hub) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        self.history.revoke(id, version, seq);
    }

    pub(in crate::hub) fn trim(&mut self, base: Seq) {
        self.history.trim(base);
    }

    /// Cuts what was delivered after a place, none of which the clients with the entry number `next` and higher have.
    pub(super) fn cut(&mut self, after: Seq, next: u64) {
        if self.again.len() > AGAIN {
            self.forget(next);
        }
        let cut = self.history.cut(after);
        self.again.extend(cut.into_iter().map(|publish| (publish, next)));
    }

    pub(super) fn forget(&mut self, next: u64) {
        self.again.clear();
        self.since = next;
    }

    #[cfg(test)]
    pub(in crate::hub) fn epoch(&self) -> u64 {
        self.history.epoch()
    }

    #[cfg(test)]
    pub(in crate::hub) fn tell_at_once(&mut self) {
        self.interval = Duration::ZERO;
    }

    pub(super) fn telling_is_due(&self) -> bool {
        self.count > self.turn.0 || self.size > self.turn.1 || (self.count > 0 && self.told.elapsed() >= self.interval)
    }
}
