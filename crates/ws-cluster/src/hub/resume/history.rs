//! The entries that this node delivered lately, for clients that come back: the status of a position, and what a client
//! missed after it. Pure. It follows the core's log, which holds the same bytes, through the core's outputs. It adds an
//! index by topic, so that a resume costs what the client missed, not what was delivered.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::group_commands::GroupCommands;
use crate::{
    hub::Membership,
    message::{
        close::Subject,
        groups::GroupChange,
        position::Position,
        target::{ConnectionId, Selection, Target},
    },
};
use ws_cluster_core::{Lineage, LogPosition, PublishId, Seq, Span};

mod position_status;
#[cfg(test)]
mod tests;
mod topics;
mod valid_versions;

pub(crate) use position_status::{Missing, PositionStatus};

use topics::{TopicHasher, Topics};
use valid_versions::ValidVersions;

/// Number of candidates that are looked at for each message that may be replayed. Several topics can list one entry,
/// and a target's exceptions exclude some.
const CANDIDATES: usize = 4;

/// The reason for a reset if a position is no longer in the order.
const PASSED: &str = "a failover has changed the order of messages since";

#[derive(Default)]
pub(crate) struct History {
    /// The last sequence number that is no longer held.
    base: Seq,
    /// The entries after `base`.
    entries: VecDeque<HistoryEntry>,
    lineage: Lineage,
    /// The sequence numbers of the entries for a topic, oldest first. The key is a hash, because the target is checked
    /// again before a replay.
    index: HashMap<u64, VecDeque<Seq>>,
    hasher: TopicHasher,
    valid_versions: ValidVersions,
    group_commands: GroupCommands,
    /// Grows with every cut and restart, so that a caller that reads in pieces notices one in between.
    epoch: u64,
}

struct HistoryEntry {
    publish: PublishId,
    /// The encoded message; `None` if there is nothing to replay.
    content: Option<Bytes>,
    topics: Topics,
}

impl History {
    /// Returns the sequence number of the last delivered entry.
    fn last(&self) -> Seq {
        self.base + self.entries.len() as u64
    }

    /// Returns the position of a client that has got everything until now.
    pub(crate) fn position(&self) -> Position {
        self.lineage.position(self.last()).map_or(Position::START, Position::from)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Appends a delivered entry. `content`: the encoded message and its target.
    pub(crate) fn append(&mut self, log_position: LogPosition, publish: PublishId, content: Option<(&Target, Bytes)>) {
        debug_assert!(self.lineage.spans().is_empty() || log_position.seq == self.last() + 1, "nothing is left out");
        let LogPosition { term, master, seq } = log_position;
        if self.lineage.spans().last().is_none_or(|span| (span.term, span.master) != (term, master)) {
            self.lineage.push(Span { term, master, first: seq });
        }
        let content = content.filter(|(target, _)| !matches!(target.selection, Selection::Connection(_)));
        let topics = content.as_ref().map_or(Topics::Several(Box::default()), |(target, _)| self.hasher.topics(target));
        for topic in topics.iter() {
            self.index.entry(*topic).or_default().push_back(seq);
        }
        self.entries.push_back(HistoryEntry { publish, content: content.map(|(_, content)| content), topics });
    }

    /// Forgets the entries up to `base`.
    pub(crate) fn trim(&mut self, base: Seq) {
        while self.base < base {
            let Some(entry) = self.entries.pop_front() else { break };
            self.base += 1;
            self.remove_from_index(&entry, VecDeque::pop_front);
        }
    }

    /// Forgets the entries after `after` and returns them, the latest first.
    pub(crate) fn cut(&mut self, after: Seq) -> Vec<PublishId> {
        self.epoch += 1;
        let mut cut = Vec::new();
        while self.last() > after.max(self.base) {
            let Some(entry) = self.entries.pop_back() else { break };
            self.remove_from_index(&entry, VecDeque::pop_back);
            cut.push(entry.publish);
        }
        self.lineage.truncate(self.last());
        self.group_commands.cut(self.last());
        cut
    }

    /// Restarts with an empty history after `base`.
    pub(crate) fn restart(&mut self, base: Option<LogPosition>) {
        let spans = base.map(|LogPosition { term, master, seq }| Span { term, master, first: seq });
        *self = Self {
            base: base.map_or(0, |log_position| log_position.seq),
            valid_versions: ValidVersions::after(base.map_or(0, |log_position| log_position.seq)),
            group_commands: GroupCommands::after(base.map_or(0, |log_position| log_position.seq)),
            lineage: Lineage::from_spans(spans.into_iter().collect()),
            epoch: self.epoch + 1,
            ..Self::default()
        };
    }

    /// Returns the status of a position.
    pub(crate) fn position_status(&self, position: &Position) -> PositionStatus {
        match self.in_order(position) {
            // Sequence number 0 has no term or master, so it cannot be told whether it began this order.
            _ if position.seq == 0 => PositionStatus::Lost("it is from before the first message"),
            PositionStatus::Known if position.seq < self.base => PositionStatus::Lost(Missing::Trimmed.why()),
            status => status,
        }
    }

    /// Returns the status of a resume token that was sealed at a position: known if this node has delivered as much, in
    /// the same order, and knows everything that was revoked and ordered since.
    pub(crate) fn seal_status(&self, at: &Position) -> PositionStatus {
        match self.in_order(at) {
            PositionStatus::Known if at.seq < self.valid_versions.floor().max(self.group_commands.floor()) => {
                PositionStatus::Lost(Missing::Trimmed.why())
            }
            status => status,
        }
    }

    /// Notes a command of the site to change groups.
    pub(crate) fn note_groups(&mut self, seq: Seq, change: &GroupChange) {
        self.group_commands.note(seq, change);
    }

    /// Returns the orders to change groups after `after` about any of these subjects, in their order.
    pub(crate) fn group_commands(&self, subjects: &[Subject], after: Seq) -> Vec<(Seq, Arc<GroupChange>)> {
        self.group_commands.about(subjects, after)
    }

    /// Notes that the resume token of a connection is valid from `version` on. The revocation came at `seq`.
    pub(crate) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        self.valid_versions.revoke(id, version, seq);
    }

    /// Returns the lowest valid version of a connection's resume token.
    pub(crate) fn lowest_version(&self, id: ConnectionId) -> u64 {
        self.valid_versions.lowest(id)
    }

    /// Returns the status of a position in the order, even if the entries after it are not held any more.
    fn in_order(&self, position: &Position) -> PositionStatus {
        let spans = self.lineage.spans();
        let newest = spans.last().map_or(0, |span| span.term);
        if position.seq == 0 {
            PositionStatus::Known
        } else if spans.iter().any(|span| span.term > position.term && span.first <= position.seq) {
            PositionStatus::Lost(PASSED)
        } else if position.seq > self.last() || position.term > newest {
            PositionStatus::Ahead
        } else if self.lineage.position(position.seq).is_some_and(|log_position| position.is(log_position)) {
            PositionStatus::Known
        } else {
            PositionStatus::Lost(PASSED)
        }
    }

    /// Returns the encoded entries after `after` that may be for a member, oldest first, and the sequence number up to
    /// which it looked. The caller decodes each entry and checks its target.
    pub(crate) fn candidates(
        &self,
        membership: &Membership,
        after: Seq,
        limit: usize,
    ) -> Result<(Vec<(LogPosition, Bytes)>, Seq), Missing> {
        if after < self.base {
            return Err(Missing::Trimmed);
        }
        let mut places = Vec::new();
        for (topic, since) in self.hasher.topics_of(membership) {
            let Some(list) = self.index.get(&topic) else { continue };
            let from = list.partition_point(|seq| *seq <= after.max(since));
            if places.len() + (list.len() - from) > limit.saturating_mul(CANDIDATES) {
                return Err(Missing::TooMany);
            }
            places.extend(list.range(from..));
        }
        places.sort_unstable();
        places.dedup();
        let mut candidates = Vec::with_capacity(places.len());
        for seq in places {
            // The log position is unknown only if more failovers have happened since then than the lineage remembers.
            let log_position = self.lineage.position(seq).ok_or(Missing::Trimmed)?;
            let entry = seq.checked_sub(self.base + 1).and_then(|index| self.entries.get(usize::try_from(index).ok()?));
            candidates.extend(entry.and_then(|entry| entry.content.clone()).map(|content| (log_position, content)));
        }
        Ok((candidates, self.last()))
    }

    /// Removes an entry from the index. The entry must be the first or the last of all.
    fn remove_from_index(&mut self, entry: &HistoryEntry, end: impl Fn(&mut VecDeque<Seq>) -> Option<Seq>) {
        for topic in entry.topics.iter() {
            if let Some(list) = self.index.get_mut(topic) {
                end(list);
                if list.is_empty() {
                    self.index.remove(topic);
                }
            }
        }
    }
}
