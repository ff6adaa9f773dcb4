//! The topics under which entries are listed, and those of a member. Both hash them alike.

use std::hash::{BuildHasher, Hash, RandomState};

use crate::{
    hub::Membership,
    message::target::{Selection, Target, property_text},
};
use ws_cluster_core::Seq;

/// Maximum number of topics under which one entry is listed. Each takes about as much memory as a short entry.
const MAX_TOPICS: usize = 16;

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

/// The topics under which an entry is listed, each of them once. Mostly there is one or none.
pub(super) enum Topics {
    One(u64),
    Several(Box<[u64]>),
}

impl Topics {
    pub(super) fn iter(&self) -> std::slice::Iter<'_, u64> {
        match self {
            Self::One(topic) => std::slice::from_ref(topic).iter(),
            Self::Several(topics) => topics.iter(),
        }
    }
}

/// Hashes topics. The target of an entry is checked again before a replay, so two topics with one hash do no harm.
#[derive(Default)]
pub(super) struct TopicHasher(RandomState);

impl TopicHasher {
    fn hash(&self, topic: Topic<'_>) -> u64 {
        self.0.hash_one(topic)
    }

    /// Returns the topics under which an entry with this target is listed.
    pub(super) fn topics(&self, target: &Target) -> Topics {
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
    pub(super) fn topics_of(&self, membership: &Membership) -> Vec<(u64, Seq)> {
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
