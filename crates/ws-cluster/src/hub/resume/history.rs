//! What this node delivered lately, for clients that come back: where a position stands in it, and what a client
//! missed behind it. Pure. It follows the core's log (which holds the same bytes) through the core's outputs, and adds
//! an index by whom an entry was for, so that a client's return costs what the client missed, not what there was.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hash},
};

use bytes::Bytes;

use crate::{
    hub::Membership,
    message::{
        position::Position,
        target::{ConnectionId, Selection, Target, property_text},
    },
};
use ws_cluster_core::{Lineage, LogPosition, PublishId, Seq, Span};

/// Candidates that are looked at for each message that may be replayed: several targets can name one entry, and
/// exceptions take some away.
const CANDIDATES: usize = 4;

/// Why a position is in no order any more.
const PASSED: &str = "the order of messages went on without it, after a failover";

/// Connections whose lowest valid versions are known. Each takes about 100 bytes.
const REVOKED: usize = 65_536;

/// Topics under which one entry is listed; each takes about as much memory as a short entry.
const TOPICS: usize = 16;

pub(crate) struct History {
    /// The last place that is no longer held.
    base: Seq,
    /// The entries after it.
    entries: VecDeque<Kept>,
    lineage: Lineage,
    /// The places of what was for a topic, oldest first. By hash, since whom an entry is for is looked at again
    /// before it is replayed.
    index: HashMap<u64, VecDeque<Seq>>,
    hasher: RandomState,
    revoked: ValidVersions,
    /// Grows with every cut and restart: who reads in pieces sees that they belong together.
    epoch: u64,
}

/// From which version on it is valid what clients carry, for those from whom something was taken away.
#[derive(Default)]
struct ValidVersions {
    lowest: HashMap<ConnectionId, (u64, Seq)>,
    /// The places at which this was told, oldest first.
    order: VecDeque<(Seq, ConnectionId)>,
    /// What was told up to here may be forgotten, or was never known.
    floor: Seq,
}

struct Kept {
    publish: PublishId,
    /// The encoded message; `None` where there is nothing to replay.
    content: Option<Bytes>,
    topics: Topics,
}

/// The topics under which an entry is listed, each of them once: mostly one, or none.
enum Topics {
    One(u64),
    Several(Box<[u64]>),
}

/// Where a position stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionStatus {
    /// All that came after it is here.
    Known,
    /// This node has not come so far.
    Ahead,
    /// What came after it cannot be told; why.
    Lost(&'static str),
}

/// Why what was missed is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// More messages than the limit.
    TooMany,
    /// Not all of it is held.
    Trimmed,
    /// The order was cut while it was read.
    Cut,
}

impl Missing {
    /// What the client is told.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::TooMany => "too many messages were missed",
            Self::Trimmed => "too much has happened since",
            Self::Cut => "the order of messages was cut by a failover",
        }
    }
}

/// Whom an entry can be for, as entries and clients name it alike.
#[derive(Hash)]
enum Topic<'a> {
    All,
    Registered,
    User(&'a str),
    Group(&'a str),
    Session(&'a str),
    Property(&'a str, &'a str),
    /// More users or groups than are listed one by one.
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
            revoked: ValidVersions::default(),
            epoch: 0,
        }
    }
}

impl History {
    /// The place of what was delivered last.
    fn last(&self) -> Seq {
        self.base + self.entries.len() as u64
    }

    /// The position of whoever has got everything until now.
    pub(crate) fn position(&self) -> Position {
        self.lineage.position(self.last()).map_or(Position::START, Position::from)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// An entry was delivered. `content` is its message, encoded, and whom it was for.
    pub(crate) fn append(&mut self, place: LogPosition, publish: PublishId, content: Option<(&Target, Bytes)>) {
        debug_assert!(self.lineage.spans().is_empty() || place.seq == self.last() + 1, "nothing is left out");
        let LogPosition { term, master, seq } = place;
        if self.lineage.spans().last().is_none_or(|span| (span.term, span.master) != (term, master)) {
            self.lineage.push(Span { term, master, first: seq });
        }
        let content = content.filter(|(target, _)| !matches!(target.selection, Selection::Connection(_)));
        let topics = content.as_ref().map_or(Topics::Several(Box::default()), |(target, _)| self.topics(target));
        for topic in topics.iter() {
            self.index.entry(*topic).or_default().push_back(seq);
        }
        self.entries.push_back(Kept { publish, content: content.map(|(_, content)| content), topics });
    }

    /// Forgets what is up to `base`.
    pub(crate) fn trim(&mut self, base: Seq) {
        while self.base < base {
            let Some(kept) = self.entries.pop_front() else { break };
            self.base += 1;
            self.unlist(&kept, VecDeque::pop_front);
        }
    }

    /// Forgets what was delivered after `after`, and says what that was, the latest first.
    pub(crate) fn cut(&mut self, after: Seq) -> Vec<PublishId> {
        self.epoch += 1;
        let mut cut = Vec::new();
        while self.last() > after.max(self.base) {
            let Some(kept) = self.entries.pop_back() else { break };
            self.unlist(&kept, VecDeque::pop_back);
            cut.push(kept.publish);
        }
        self.lineage.truncate(self.last());
        cut
    }

    /// Begins anew behind a place.
    pub(crate) fn restart(&mut self, base: Option<LogPosition>) {
        let spans = base.map(|LogPosition { term, master, seq }| Span { term, master, first: seq });
        *self = Self {
            base: base.map_or(0, |place| place.seq),
            revoked: ValidVersions { floor: base.map_or(0, |place| place.seq), ..ValidVersions::default() },
            lineage: Lineage::from_spans(spans.into_iter().collect()),
            epoch: self.epoch + 1,
            ..Self::default()
        };
    }

    /// Where a position stands.
    pub(crate) fn position_status(&self, position: &Position) -> PositionStatus {
        match self.in_order(position) {
            // Whether this order is the one that it was the beginning of, nobody can tell.
            _ if position.seq == 0 => PositionStatus::Lost("it is from before the first message"),
            PositionStatus::Known if position.seq < self.base => PositionStatus::Lost(Missing::Trimmed.why()),
            standing => standing,
        }
    }

    /// Where what was sealed at a position stands: known if this node has come as far, in the same order, and knows of all
    /// that was revoked since.
    pub(crate) fn seal_status(&self, at: &Position) -> PositionStatus {
        match self.in_order(at) {
            PositionStatus::Known if at.seq < self.revoked.floor => PositionStatus::Lost(Missing::Trimmed.why()),
            standing => standing,
        }
    }

    /// What the client of a connection carries is valid from this version on, which was told at `seq`.
    pub(crate) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        let ValidVersions { lowest, order, floor } = &mut self.revoked;
        let known = lowest.entry(id).or_default();
        *known = (known.0.max(version), seq);
        order.push_back((seq, id));
        while order.len() > REVOKED {
            let Some((seq, id)) = order.pop_front() else { break };
            *floor = seq.max(*floor);
            if lowest.get(&id).is_some_and(|known| known.1 == seq) {
                lowest.remove(&id);
            }
        }
    }

    /// The lowest valid version of what the client of a connection carries.
    pub(crate) fn lowest_version(&self, id: ConnectionId) -> u64 {
        self.revoked.lowest.get(&id).map_or(0, |known| known.0)
    }

    /// Where a position stands in the order, whether or not what came after it is still here.
    fn in_order(&self, position: &Position) -> PositionStatus {
        let spans = self.lineage.spans();
        let newest = spans.last().map_or(0, |span| span.term);
        if position.seq == 0 {
            PositionStatus::Known
        } else if spans.iter().any(|span| span.term > position.term && span.first <= position.seq) {
            PositionStatus::Lost(PASSED)
        } else if position.seq > self.last() || position.term > newest {
            PositionStatus::Ahead
        } else if self.lineage.position(position.seq).is_some_and(|place| position.is(place)) {
            PositionStatus::Known
        } else {
            PositionStatus::Lost(PASSED)
        }
    }

    /// What may be for a member after the place `after`, as far as it was delivered: encoded, oldest first, and the
    /// place up to which this was looked for. Who asks decodes it, and looks whether it is.
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
            // Only what more failovers than are remembered lie behind has no place.
            let place = self.lineage.position(seq).ok_or(Missing::Trimmed)?;
            let kept = seq.checked_sub(self.base + 1).and_then(|index| self.entries.get(usize::try_from(index).ok()?));
            candidates.extend(kept.and_then(|kept| kept.content.clone()).map(|content| (place, content)));
        }
        Ok((candidates, self.last()))
    }

    /// Takes an entry that is the first or the last of all out of the index.
    fn unlist(&mut self, kept: &Kept, end: impl Fn(&mut VecDeque<Seq>) -> Option<Seq>) {
        for topic in kept.topics.iter() {
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
            Selection::Users(texts) | Selection::Groups(texts) if texts.len() > TOPICS => {
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

    /// The topics that are for a member, and behind which place they are.
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

    fn place(term: u64, master: u8, seq: Seq) -> LogPosition {
        LogPosition { term, master: node(master), seq }
    }

    fn encoded(target: &Target) -> Bytes {
        Content::Message { target: target.clone(), action: "x".into(), details: "[]".into() }.encode()
    }

    fn append(history: &mut History, place: LogPosition, target: &Target) {
        history.append(place, PublishId { origin: node(1), counter: place.seq }, Some((target, encoded(target))));
    }

    /// Ten entries for all, of two masters: up to 6 of the first, from 7 on of the second.
    fn ten() -> History {
        let mut history = History::default();
        (1..=6).for_each(|seq| append(&mut history, place(1, 1, seq), &Target::all()));
        (7..=10).for_each(|seq| append(&mut history, place(2, 2, seq), &Target::all()));
        history
    }

    fn standing(history: &History, place: LogPosition) -> PositionStatus {
        history.position_status(&place.into())
    }

    fn places(history: &History, identity: Identity, after: Seq) -> Vec<Seq> {
        let membership = Membership::of(identity);
        let (candidates, _) = history.candidates(&membership, after, 1000).unwrap();
        candidates.iter().map(|(place, _)| place.seq).collect()
    }

    #[test]
    fn a_position_is_known_where_the_same_master_wrote_it() {
        let mut history = ten();
        assert_eq!(standing(&history, place(1, 1, 6)), PositionStatus::Known);
        assert_eq!(standing(&history, place(2, 2, 10)), PositionStatus::Known);
        // The first master went on for a while, with nobody else.
        assert!(matches!(standing(&history, place(1, 1, 7)), PositionStatus::Lost(_)));
        // A term that was used twice.
        assert!(matches!(standing(&history, place(2, 3, 8)), PositionStatus::Lost(_)));
        assert!(matches!(history.position_status(&Position::START), PositionStatus::Lost(_)));
        history.trim(7);
        assert!(matches!(standing(&history, place(1, 1, 6)), PositionStatus::Lost(_)));
        assert_eq!(standing(&history, place(2, 2, 7)), PositionStatus::Known, "nothing behind it is missing");
    }

    #[test]
    fn a_position_may_be_ahead_of_this_node() {
        let history = ten();
        assert_eq!(standing(&history, place(2, 2, 11)), PositionStatus::Ahead);
        assert_eq!(standing(&history, place(3, 3, 9)), PositionStatus::Ahead, "of a master that this node has not met");
        assert!(
            matches!(standing(&history, place(1, 1, 11)), PositionStatus::Lost(_)),
            "of a master that came to its end"
        );
    }

    #[test]
    fn what_is_cut_or_trimmed_leaves_nothing() {
        let mut history = ten();
        assert_eq!(history.cut(8).iter().map(|publish| publish.counter).collect::<Vec<_>>(), [10, 9]);
        assert_eq!(places(&history, Identity::guest(), 0), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(history.position(), place(2, 2, 8).into());
        assert_eq!(standing(&history, place(2, 2, 9)), PositionStatus::Ahead);
        append(&mut history, place(3, 3, 9), &Target::all());
        assert!(matches!(standing(&history, place(2, 2, 9)), PositionStatus::Lost(_)));
        history.trim(9);
        assert!(history.index.is_empty() && history.entries.is_empty());
        assert_eq!(history.position(), place(3, 3, 9).into());
    }

    #[test]
    fn a_new_beginning_knows_its_place() {
        let mut history = ten();
        let before = history.epoch();
        history.restart(Some(place(4, 2, 50)));
        assert!(history.epoch() > before);
        assert_eq!(history.position(), place(4, 2, 50).into());
        assert_eq!(standing(&history, place(4, 2, 50)), PositionStatus::Known);
        assert!(matches!(standing(&history, place(2, 2, 10)), PositionStatus::Lost(_)));
        append(&mut history, place(4, 2, 51), &Target::all());
        assert_eq!(places(&history, Identity::guest(), 50), [51]);
    }

    #[test]
    fn only_what_can_be_for_a_client_is_looked_at() {
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
            append(&mut history, place(1, 1, seq), target);
        }
        assert_eq!(places(&history, Identity::guest(), 0), [1]);
        assert_eq!(places(&history, Identity::user("ann"), 0), [1, 2, 3]);
        assert_eq!(places(&history, Identity::user("bob").groups(["a", "b"]), 2), [3, 4, 8]);
        assert_eq!(places(&history, Identity::guest().session("s").property("colour", "red"), 0), [1, 5, 6]);
        history.trim(8);
        assert!(history.index.is_empty());
    }

    #[test]
    fn what_is_older_than_a_membership_is_not_looked_at() {
        let mut history = History::default();
        for seq in 1..=4 {
            append(&mut history, place(1, 1, seq), &Target::groups(["a", "b"]));
        }
        let mut membership = Membership::of(Identity::guest());
        membership.join("a".into(), Some(3));
        let seqs = |membership: &Membership| {
            let (candidates, _) = history.candidates(membership, 0, 10).unwrap();
            candidates.iter().map(|(place, _)| place.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&membership), [4]);
        assert!(!membership.was_meant(&Target::groups(["a", "b"]), 3));
        membership.join("b".into(), Some(1));
        assert_eq!(seqs(&membership), [2, 3, 4]);
        assert!(membership.was_meant(&Target::groups(["a", "b"]), 3));
        assert!(!membership.was_meant(&Target::groups(["a", "c"]), 3));
        membership.leave("b");
        membership.join("b".into(), Some(2));
        assert_eq!(seqs(&membership), [3, 4], "it was away in between");
    }

    #[test]
    fn the_lowest_valid_version_is_known_or_the_seal_too_old() {
        let mut history = ten();
        let id = |local| ConnectionId { node: node(1), local };
        history.revoke(id(1), 3, 7);
        history.revoke(id(1), 2, 8);
        assert_eq!((history.lowest_version(id(1)), history.lowest_version(id(2))), (3, 0));
        // The log may be trimmed: what was revoked is known all the same.
        history.trim(9);
        assert_eq!(history.seal_status(&place(1, 1, 5).into()), PositionStatus::Known);
        assert!(matches!(history.seal_status(&place(1, 1, 8).into()), PositionStatus::Lost(_)), "of another order");
        assert_eq!(history.seal_status(&place(2, 2, 11).into()), PositionStatus::Ahead);
        for local in 0..REVOKED as u64 {
            history.revoke(id(10 + local), 1, 9);
        }
        assert_eq!(history.lowest_version(id(1)), 0);
        assert!(matches!(history.seal_status(&place(2, 2, 7).into()), PositionStatus::Lost(_)), "too old to be told");
        assert_eq!(history.seal_status(&place(2, 2, 8).into()), PositionStatus::Known);
        history.restart(Some(place(3, 3, 20)));
        assert!(matches!(history.seal_status(&place(2, 2, 9).into()), PositionStatus::Lost(_)));
        assert_eq!(history.seal_status(&place(3, 3, 20).into()), PositionStatus::Known);
    }

    #[test]
    fn too_much_is_not_collected() {
        let history = ten();
        let guest = Membership::of(Identity::guest());
        assert!(history.candidates(&guest, 0, 3).is_ok(), "some may not be meant");
        assert_eq!(history.candidates(&guest, 0, 2).err(), Some(Missing::TooMany));
    }
}
