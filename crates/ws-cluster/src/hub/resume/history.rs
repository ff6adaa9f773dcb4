//! The entries that this node delivered lately, for clients that come back: the status of a position, and what a client
//! missed after it. Pure. It follows the core's log, which holds the same bytes, through the core's outputs. It adds an
//! index by topic, so that a resume costs what the client missed, not what was delivered.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hash},
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
        target::{ConnectionId, Selection, Target, property_text},
    },
};
use ws_cluster_core::{Lineage, LogPosition, PublishId, Seq, Span};

/// Number of candidates that are looked at for each message that may be replayed. Several topics can list one entry,
/// and a target's exceptions exclude some.
const CANDIDATES: usize = 4;

/// The reason for a reset if a position is no longer in the order.
const PASSED: &str = "a failover has changed the order of messages since";

/// Maximum number of connections whose lowest valid token version is remembered. Each takes about 100 bytes.
const MAX_REVOKED: usize = 65_536;

/// Maximum number of topics under which one entry is listed. Each takes about as much memory as a short entry.
const MAX_TOPICS: usize = 16;

pub(crate) struct History {
    /// The last sequence number that is no longer held.
    base: Seq,
    /// The entries after `base`.
    entries: VecDeque<HistoryEntry>,
    lineage: Lineage,
    /// The sequence numbers of the entries for a topic, oldest first. The key is a hash, because the target is checked
    /// again before a replay.
    index: HashMap<u64, VecDeque<Seq>>,
    hasher: RandomState,
    valid_versions: ValidVersions,
    group_commands: GroupCommands,
    /// Grows with every cut and restart, so that a caller that reads in pieces notices one in between.
    epoch: u64,
}

/// The lowest valid versions of resume tokens, for clients that lost a group or property.
#[derive(Default)]
struct ValidVersions {
    lowest: HashMap<ConnectionId, (u64, Seq)>,
    /// The sequence numbers at which revocations came, oldest first.
    order: VecDeque<(Seq, ConnectionId)>,
    /// Revocations up to this sequence number may be forgotten, or were never known.
    floor: Seq,
}

struct HistoryEntry {
    publish: PublishId,
    /// The encoded message; `None` if there is nothing to replay.
    content: Option<Bytes>,
    topics: Topics,
}

/// The topics under which an entry is listed, each of them once. Mostly there is one or none.
enum Topics {
    One(u64),
    Several(Box<[u64]>),
}

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

/// A group of clients that an entry can be for. Entries and clients hash it alike.
#[derive(Hash)]
enum Topic<'a> {
    All,
    Registered,
    User(&'a str),
    Group(&'a str),
    Session(&'a str),
    Property(&'a str, &'a str),
    /// The topic of entries that name more users or groups than are listed one by one.
    Many,
}

impl Default for History {
    fn default() -> Self {
        Self {
            base: 0,
            entries: VecDeque::new(),
            lineage: Lineage::default(),
            index: HashMap::new(),
            hasher: RandomState::new(),
            valid_versions: ValidVersions::default(),
            group_commands: GroupCommands::default(),
            epoch: 0,
        }
    }
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
        let topics = content.as_ref().map_or(Topics::Several(Box::default()), |(target, _)| self.topics(target));
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
            valid_versions: ValidVersions {
                floor: base.map_or(0, |log_position| log_position.seq),
                ..ValidVersions::default()
            },
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
            PositionStatus::Known if at.seq < self.valid_versions.floor.max(self.group_commands.floor()) => {
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
        let ValidVersions { lowest, order, floor } = &mut self.valid_versions;
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
    pub(crate) fn lowest_version(&self, id: ConnectionId) -> u64 {
        self.valid_versions.lowest.get(&id).map_or(0, |known| known.0)
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
        for (topic, since) in self.topics_of(membership) {
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

    fn hash(&self, topic: Topic<'_>) -> u64 {
        self.hasher.hash_one(topic)
    }

    fn topics(&self, target: &Target) -> Topics {
        let hash = |topic| self.hash(topic);
        let mut several: Vec<u64> = match &target.selection {
            Selection::All => return Topics::One(hash(Topic::All)),
            Selection::Registered => return Topics::One(hash(Topic::Registered)),
            Selection::Users(texts) | Selection::Groups(texts) if texts.len() > MAX_TOPICS => {
                return Topics::One(hash(Topic::Many));
            }
            Selection::Users(ids) => ids.iter().map(|id| hash(Topic::User(id))).collect(),
            Selection::Groups(names) => names.iter().map(|name| hash(Topic::Group(name))).collect(),
            Selection::Session(id) => return Topics::One(hash(Topic::Session(id))),
            Selection::Property { name, value } => return Topics::One(hash(Topic::Property(name, value))),
            Selection::Connection(_) => Vec::new(),
        };
        // A target may name one user twice.
        several.sort_unstable();
        several.dedup();
        if let [one] = several[..] { Topics::One(one) } else { Topics::Several(several.into()) }
    }

    /// Returns the topics of a member, each with the sequence number since which the member belongs to it.
    fn topics_of(&self, membership: &Membership) -> Vec<(u64, Seq)> {
        let Membership { user, session, groups, .. } = membership;
        let mut topics = vec![(self.hash(Topic::All), 0), (self.hash(Topic::Many), 0)];
        let user = user.iter().flat_map(|user| [self.hash(Topic::Registered), self.hash(Topic::User(user))]);
        let own = user.chain(session.iter().map(|session| self.hash(Topic::Session(session))));
        topics.extend(own.map(|topic| (topic, membership.user_since())));
        topics.extend(groups.iter().map(|group| (self.hash(Topic::Group(group)), membership.group_since(group))));
        topics.extend(membership.properties().map(|(name, value)| {
            (self.hash(Topic::Property(name, &property_text(value))), membership.property_since(name))
        }));
        topics
    }
}

impl Topics {
    fn iter(&self) -> std::slice::Iter<'_, u64> {
        match self {
            Self::One(topic) => std::slice::from_ref(topic).iter(),
            Self::Several(topics) => topics.iter(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, message::content::Content};
    use ws_cluster_core::NodeId;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn log_position(term: u64, master: u8, seq: Seq) -> LogPosition {
        LogPosition { term, master: node(master), seq }
    }

    fn encoded(target: &Target) -> Bytes {
        Content::Message { target: target.clone(), action: "x".into(), details: "[]".into(), volatile: false }.encode()
    }

    fn append(history: &mut History, log_position: LogPosition, target: &Target) {
        history.append(
            log_position,
            PublishId { origin: node(1), counter: log_position.seq },
            Some((target, encoded(target))),
        );
    }

    /// Returns ten entries for all: 1 to 6 of the first master, 7 to 10 of the second.
    fn ten() -> History {
        let mut history = History::default();
        (1..=6).for_each(|seq| append(&mut history, log_position(1, 1, seq), &Target::all()));
        (7..=10).for_each(|seq| append(&mut history, log_position(2, 2, seq), &Target::all()));
        history
    }

    fn status(history: &History, log_position: LogPosition) -> PositionStatus {
        history.position_status(&log_position.into())
    }

    fn places(history: &History, identity: Identity, after: Seq) -> Vec<Seq> {
        let membership = Membership::of(identity);
        let (candidates, _) = history.candidates(&membership, after, 1000).unwrap();
        candidates.iter().map(|(log_position, _)| log_position.seq).collect()
    }

    #[test]
    fn a_position_is_known_if_the_same_master_wrote_it() {
        let mut history = ten();
        assert_eq!(status(&history, log_position(1, 1, 6)), PositionStatus::Known);
        assert_eq!(status(&history, log_position(2, 2, 10)), PositionStatus::Known);
        // The first master continued alone for a while.
        assert!(matches!(status(&history, log_position(1, 1, 7)), PositionStatus::Lost(_)));
        // A term that was used twice.
        assert!(matches!(status(&history, log_position(2, 3, 8)), PositionStatus::Lost(_)));
        assert!(matches!(history.position_status(&Position::START), PositionStatus::Lost(_)));
        history.trim(7);
        assert!(matches!(status(&history, log_position(1, 1, 6)), PositionStatus::Lost(_)));
        assert_eq!(status(&history, log_position(2, 2, 7)), PositionStatus::Known, "nothing behind it is missing");
    }

    #[test]
    fn a_position_may_be_ahead_of_this_node() {
        let history = ten();
        assert_eq!(status(&history, log_position(2, 2, 11)), PositionStatus::Ahead);
        assert_eq!(
            status(&history, log_position(3, 3, 9)),
            PositionStatus::Ahead,
            "of a master that this node has not met"
        );
        assert!(
            matches!(status(&history, log_position(1, 1, 11)), PositionStatus::Lost(_)),
            "of a master whose term has ended"
        );
    }

    #[test]
    fn cut_and_trimmed_entries_leave_nothing_in_the_index() {
        let mut history = ten();
        assert_eq!(history.cut(8).iter().map(|publish| publish.counter).collect::<Vec<_>>(), [10, 9]);
        assert_eq!(places(&history, Identity::guest(), 0), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(history.position(), log_position(2, 2, 8).into());
        assert_eq!(status(&history, log_position(2, 2, 9)), PositionStatus::Ahead);
        append(&mut history, log_position(3, 3, 9), &Target::all());
        assert!(matches!(status(&history, log_position(2, 2, 9)), PositionStatus::Lost(_)));
        history.trim(9);
        assert!(history.index.is_empty() && history.entries.is_empty());
        assert_eq!(history.position(), log_position(3, 3, 9).into());
    }

    #[test]
    fn a_restarted_history_knows_its_base() {
        let mut history = ten();
        let before = history.epoch();
        history.restart(Some(log_position(4, 2, 50)));
        assert!(history.epoch() > before);
        assert_eq!(history.position(), log_position(4, 2, 50).into());
        assert_eq!(status(&history, log_position(4, 2, 50)), PositionStatus::Known);
        assert!(matches!(status(&history, log_position(2, 2, 10)), PositionStatus::Lost(_)));
        append(&mut history, log_position(4, 2, 51), &Target::all());
        assert_eq!(places(&history, Identity::guest(), 50), [51]);
    }

    #[test]
    fn only_entries_of_the_topics_of_a_client_are_candidates() {
        let mut history = History::default();
        let connection = crate::ConnectionId { node: node(1), local: 1 };
        let targets = [
            Target::all(),
            Target::registered(),
            Target::users(["ann", "bob", "ann"]),
            Target::groups(["a", "b"]),
            Target::session("s"),
            Target::property("colour", "red"),
            Target::connection(connection),
            Target::user("bob").except_user("ann"),
        ];
        for (target, seq) in targets.iter().zip(1..) {
            append(&mut history, log_position(1, 1, seq), target);
        }
        assert_eq!(places(&history, Identity::guest(), 0), [1]);
        assert_eq!(places(&history, Identity::user("ann"), 0), [1, 2, 3]);
        assert_eq!(places(&history, Identity::user("bob").groups(["a", "b"]), 2), [3, 4, 8]);
        assert_eq!(places(&history, Identity::guest().session("s").property("colour", "red"), 0), [1, 5, 6]);
        history.trim(8);
        assert!(history.index.is_empty());
    }

    #[test]
    fn entries_older_than_a_membership_are_no_candidates() {
        let mut history = History::default();
        for seq in 1..=4 {
            append(&mut history, log_position(1, 1, seq), &Target::groups(["a", "b"]));
        }
        let mut membership = Membership::of(Identity::guest());
        membership.join("a".into(), Some(3));
        let seqs = |membership: &Membership| {
            let (candidates, _) = history.candidates(membership, 0, 10).unwrap();
            candidates.iter().map(|(log_position, _)| log_position.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&membership), [4]);
        assert!(!membership.was_target_of(&Target::groups(["a", "b"]), 3));
        membership.join("b".into(), Some(1));
        assert_eq!(seqs(&membership), [2, 3, 4]);
        assert!(membership.was_target_of(&Target::groups(["a", "b"]), 3));
        assert!(!membership.was_target_of(&Target::groups(["a", "c"]), 3));
        membership.leave("b");
        membership.join("b".into(), Some(2));
        assert_eq!(seqs(&membership), [3, 4], "it was away in between");
    }

    #[test]
    fn the_lowest_valid_version_is_known_or_the_token_is_too_old() {
        let mut history = ten();
        let id = |local| ConnectionId { node: node(1), local };
        history.revoke(id(1), 3, 7);
        history.revoke(id(1), 2, 8);
        assert_eq!((history.lowest_version(id(1)), history.lowest_version(id(2))), (3, 0));
        // The log may be trimmed. Revocations are still known.
        history.trim(9);
        assert_eq!(history.seal_status(&log_position(1, 1, 5).into()), PositionStatus::Known);
        assert!(
            matches!(history.seal_status(&log_position(1, 1, 8).into()), PositionStatus::Lost(_)),
            "of another order"
        );
        assert_eq!(history.seal_status(&log_position(2, 2, 11).into()), PositionStatus::Ahead);
        for local in 0..MAX_REVOKED as u64 {
            history.revoke(id(10 + local), 1, 9);
        }
        assert_eq!(history.lowest_version(id(1)), 0);
        assert!(
            matches!(history.seal_status(&log_position(2, 2, 7).into()), PositionStatus::Lost(_)),
            "too old to be told"
        );
        assert_eq!(history.seal_status(&log_position(2, 2, 8).into()), PositionStatus::Known);
        history.restart(Some(log_position(3, 3, 20)));
        assert!(matches!(history.seal_status(&log_position(2, 2, 9).into()), PositionStatus::Lost(_)));
        assert_eq!(history.seal_status(&log_position(3, 3, 20).into()), PositionStatus::Known);
    }

    #[test]
    fn too_many_candidates_are_refused() {
        let history = ten();
        let guest = Membership::of(Identity::guest());
        assert!(history.candidates(&guest, 0, 3).is_ok(), "some may not be meant");
        assert_eq!(history.candidates(&guest, 0, 2).err(), Some(Missing::TooMany));
    }
}
