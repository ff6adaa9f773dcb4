//! Who a client is, as targets see it. Nearly all connections are idle, so what most of them lack takes no room.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::resume::ResumeState;
use crate::{
    auth::Identity,
    message::target::{Candidate, ConnectionId, Selection, Target, property_text},
};
use ws_cluster_core::Seq;

/// Who a client is.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Membership {
    pub(crate) user: Option<Arc<str>>,
    pub(crate) session: Option<Arc<str>>,
    pub(crate) groups: Names,
    rare: Option<Box<Rare>>,
}

/// Values that the application keeps beside a connection. They say nothing about who it is.
#[derive(Clone, Default)]
struct Data(http::Extensions);

impl PartialEq for Data {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Clone, Default, PartialEq)]
struct Rare {
    data: Data,
    former: Option<ConnectionId>,
    properties: BTreeMap<Arc<str>, Value>,
    changes: Changes,
    since: Since,
    /// Grows whenever something is taken away: what its client carried before is not valid any more.
    version: u64,
    /// The latest version that the other nodes were told of.
    told: u64,
    /// The client was not told of the latest change of what it carries.
    untold: bool,
}

/// Behind which place it is what it is, if not since it began to keep its position: messages that are older are not
/// replayed for that.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Since {
    /// That user, in that session; 0 if since it began.
    pub(crate) user: Seq,
    pub(crate) groups: BTreeMap<Arc<str>, Seq>,
    pub(crate) properties: BTreeMap<Arc<str>, Seq>,
}

/// How handlers changed a membership that began as the authenticator says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Groups that it was put into or taken out of, and which.
    pub(crate) groups: BTreeMap<Arc<str>, bool>,
    /// Properties that were set, and, as null, those that were removed.
    pub(crate) properties: BTreeMap<Arc<str>, Value>,
}

/// What the authenticator gave a client when it was sealed, by hash: a name can be long, and whoever brings it back has it
/// again or does not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    /// In their order.
    Each(Vec<u64>),
    /// All of them together: for so many that they would take too much room.
    All(u64),
}

/// It cannot be told which of what a client is it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenError;

/// A few names, in their order.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Names(Box<[Arc<str>]>);

impl Membership {
    pub(crate) fn of(identity: Identity) -> Self {
        let mut own = Self {
            user: identity.user.map(Into::into),
            session: identity.session.map(Into::into),
            groups: identity.groups.into_iter().map(Into::into).collect(),
            ..Self::default()
        };
        if !identity.properties.is_empty() {
            own.rare().properties = identity.properties.into_iter().map(|(name, value)| (name.into(), value)).collect();
        }
        own
    }

    /// Returns the value of this type that the application keeps beside the connection.
    pub(crate) fn data<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.rare.as_ref()?.data.0.get().cloned()
    }

    /// Replaces that value.
    pub(crate) fn set_data<T: Clone + Send + Sync + 'static>(&mut self, value: T) -> Option<T> {
        self.rare().data.0.insert(value)
    }

    /// Takes over the values of the membership that this one replaces.
    pub(crate) fn take_data(&mut self, before: &mut Self) {
        if let Some(rare) = before.rare.as_mut().filter(|rare| !rare.data.0.is_empty()) {
            self.rare().data = std::mem::take(&mut rare.data);
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The id that it had before it came back: its own for all who name it, in place of the connection's.
    pub(crate) fn former(&self) -> Option<ConnectionId> {
        self.rare.as_ref()?.former
    }

    /// Whether the client was not told of the latest change of what it carries.
    pub(crate) fn is_untold(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.untold)
    }

    /// The client is told of it now.
    pub(crate) fn take_untold(&mut self) {
        self.rare.iter_mut().for_each(|rare| rare.untold = false);
    }

    pub(crate) fn property(&self, name: &str) -> Option<&Value> {
        self.rare.as_ref()?.properties.get(name)
    }

    pub(crate) fn properties(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        self.rare.iter().flat_map(|rare| &rare.properties)
    }

    /// What handlers made of it.
    pub(crate) fn changes(&self) -> Changes {
        self.rare.as_ref().map(|rare| rare.changes.clone()).unwrap_or_default()
    }

    /// Makes it the one of the user that the client turned out to be. `at`: the last place that was delivered, for a client
    /// that keeps its position and has begun.
    pub(crate) fn identify(&mut self, of: Self, at: Option<Seq>) {
        let before = (self.groups.clone(), self.properties().map(clone_both).collect());
        self.user = of.user;
        self.session = of.session;
        self.groups = self.groups.iter().chain(of.groups.iter()).cloned().collect();
        // What the authenticator says now is no change of a handler's.
        let names = &self.groups;
        self.rare
            .iter_mut()
            .for_each(|rare| rare.changes.groups.retain(|group, member| *member || !names.contains(group)));
        for (name, value) in of.rare.into_iter().flat_map(|rare| rare.properties) {
            self.rare().changes.properties.remove(&name);
            self.rare().properties.insert(name, value);
        }
        self.note_since(before, at);
        self.rare().since.user = at.unwrap_or(0);
        // What it carries is bound to its user.
        self.rare().untold = true;
    }

    /// Replaces what the authenticator said before by what it says now. What handlers changed stays changed; what they
    /// changed to what the authenticator says now is no change any more. `at` as for [`identify`](Self::identify).
    pub(crate) fn refresh(&mut self, of: Self, at: Option<Seq>) {
        let mut changes = self.changes();
        changes.groups.retain(|group, member| of.groups.contains(group) != *member);
        changes.properties.retain(|name, value| of.property(name).unwrap_or(&Value::Null) != value);
        let stays = |group: &&Arc<str>| changes.groups.get(*group) != Some(&false);
        let joined = changes.groups.iter().filter(|(_, member)| **member).map(|(group, _)| group);
        let groups: Names = of.groups.iter().filter(stays).chain(joined).cloned().collect();
        let mut properties = of.rare.map(|rare| rare.properties).unwrap_or_default();
        for (name, value) in &changes.properties {
            match value {
                Value::Null => drop(properties.remove(name)),
                value => drop(properties.insert(name.clone(), value.clone())),
            }
        }
        let same = groups == self.groups && self.properties().eq(&properties);
        // What a client carries is bound to its session, and says what the authenticator gave it.
        let news = !same || self.session != of.session || changes != self.changes();
        let before = (std::mem::replace(&mut self.groups, groups), self.properties().map(clone_both).collect());
        (self.user, self.session) = (of.user, of.session);
        if self.rare.is_none() && properties.is_empty() && !news {
            return;
        }
        let rare = self.rare();
        rare.properties = properties;
        rare.changes = changes;
        rare.untold |= news;
        if !same {
            self.note_since(before, at);
        }
    }

    /// Notes since when it is in groups that it was not in before, and has properties that it had not; and that what its
    /// client carries is not valid any more if something is gone.
    fn note_since(&mut self, (groups, properties): (Names, BTreeMap<Arc<str>, Value>), at: Option<Seq>) {
        let new_groups: Vec<_> = self.groups.iter().filter(|group| !groups.contains(group)).cloned().collect();
        let new = self.properties().filter(|(name, value)| properties.get(*name) != Some(value));
        let new_properties: Vec<_> = new.map(|(name, _)| name.clone()).collect();
        let gone_groups: Vec<_> = groups.iter().filter(|group| !self.groups.contains(group)).cloned().collect();
        let gone = properties.iter().filter(|(name, value)| self.property(name) != Some(value));
        let gone_properties: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        let rare = self.rare();
        rare.version += u64::from(!gone_groups.is_empty() || !gone_properties.is_empty());
        rare.since.groups.retain(|group, _| !gone_groups.contains(group));
        rare.since.properties.retain(|name, _| !gone_properties.contains(name));
        if let Some(at) = at {
            rare.since.groups.extend(new_groups.into_iter().map(|group| (group, at)));
            rare.since.properties.extend(new_properties.into_iter().map(|name| (name, at)));
        }
    }

    /// Makes it what handlers had made of it before the client came back. `at`: the last place that was delivered; what the
    /// authenticator says now and did not say before is so since then.
    /// Fails, and changes nothing, if that cannot be told.
    pub(crate) fn resume(&mut self, state: ResumeState, at: Seq) -> Result<(), GivenError> {
        let ResumeState { id, changes, version, since, given, .. } = state;
        let given = given.known(self.given(&changes))?;
        let mut own = Since { user: since.user, ..Since::default() };
        let was = |hash| given.binary_search(&hash).is_ok();
        let groups = self.groups.iter().filter(|group| !was(group_hash(group)));
        own.groups = groups.map(|group| (group.clone(), at)).collect();
        let properties = self.properties().filter(|(name, value)| !was(property_hash(name, value)));
        own.properties = properties.map(|(name, _)| (name.clone(), at)).collect();
        // Something that the authenticator gave is gone: should it come again, it is new.
        let same = self.groups.len() + self.properties().count() - own.groups.len() - own.properties.len();
        let fewer = given.len() > same;

        self.rare().former = Some(id);
        for (group, member) in changes.groups {
            let changed = if member { self.groups.insert(group.clone()) } else { self.groups.take(&group).is_some() };
            own.groups.remove(&group);
            // What is as the authenticator says by now is no change any more.
            if changed {
                self.rare().changes.groups.insert(group, member);
            }
        }
        for (name, value) in changes.properties {
            if self.property(&name).unwrap_or(&Value::Null) != &value {
                self.set(name.clone(), value.clone());
                self.rare().changes.properties.insert(name.clone(), value);
            }
            own.properties.remove(&name);
        }
        // As before, but for what is new.
        let kept = since.groups.into_iter().filter(|(group, _)| self.groups.contains(group));
        kept.for_each(|(group, at)| {
            own.groups.entry(group).or_insert(at);
        });
        let kept = since.properties.into_iter().filter(|(name, _)| self.property(name).is_some());
        kept.for_each(|(name, at)| {
            own.properties.entry(name).or_insert(at);
        });
        let rare = self.rare();
        rare.since = own;
        (rare.version, rare.told) = (version + u64::from(fewer), version);
        Ok(())
    }

    /// The hashes of what the authenticator gave it and handlers did not change, in their order.
    fn given(&self, changes: &Changes) -> Vec<u64> {
        let groups = self.groups.iter().filter(|group| !changes.groups.contains_key(*group));
        let properties = self.properties().filter(|(name, _)| !changes.properties.contains_key(*name));
        let groups = groups.map(|group| group_hash(group));
        let mut hashes: Vec<_> = groups.chain(properties.map(|(name, value)| property_hash(name, value))).collect();
        hashes.sort_unstable();
        hashes
    }

    /// The same for its own changes.
    pub(crate) fn given_now(&self) -> Given {
        Given::Each(match &self.rare {
            Some(rare) => self.given(&rare.changes),
            None => self.given(&Changes::default()),
        })
    }

    /// Puts it into a group. Whether it was not in it. `at`: the last place that was delivered, for a client that keeps its
    /// position.
    pub(crate) fn join(&mut self, group: Arc<str>, at: Option<Seq>) -> bool {
        let new = self.groups.insert(group.clone());
        if new {
            self.rare().changes.note(group.clone(), true);
            self.rare().untold = true;
            if let Some(at) = at {
                self.rare().since.groups.insert(group, at);
            }
        }
        new
    }

    /// Takes it out of a group. Whether it was in it.
    pub(crate) fn leave(&mut self, group: &str) -> bool {
        let Some(group) = self.groups.take(group) else { return false };
        let rare = self.rare();
        rare.since.groups.remove(&group);
        rare.changes.note(group, false);
        rare.version += 1;
        rare.untold = true;
        true
    }

    /// Sets a property, or removes it where the value is null. `at`: the last place that was delivered, for a client that
    /// keeps its position.
    pub(crate) fn set_property(&mut self, name: &str, value: Value, at: Option<Seq>) {
        let name: Arc<str> = name.into();
        let before = self.property(&name).unwrap_or(&Value::Null);
        let (changed, taken) = (before != &value, before != &value && !before.is_null());
        self.set(name.clone(), value.clone());
        let rare = self.rare();
        if changed {
            rare.since.properties.remove(&name);
            if let Some(at) = at.filter(|_| !value.is_null()) {
                rare.since.properties.insert(name.clone(), at);
            }
        }
        rare.version += u64::from(taken);
        rare.changes.properties.insert(name, value);
        rare.untold = true;
    }

    /// Its client has to be told what it carries, although nothing of that has changed.
    pub(crate) fn renew(&mut self) {
        self.rare().untold = true;
    }

    /// Since when it is what it is.
    pub(crate) fn since(&self) -> Since {
        self.rare.as_ref().map(|rare| rare.since.clone()).unwrap_or_default()
    }

    pub(crate) fn version(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.version)
    }

    /// Whether something was taken away that the other nodes were not told of.
    pub(crate) fn is_taken_from(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.version > rare.told)
    }

    /// The version from which on what its client carries is valid, if the other nodes were not told yet; they are now.
    pub(crate) fn take_version(&mut self) -> Option<u64> {
        let rare = self.rare.as_mut().filter(|rare| rare.version > rare.told)?;
        rare.told = rare.version;
        Some(rare.version)
    }

    /// The place behind which it is this user, in this session.
    pub(crate) fn user_since(&self) -> Seq {
        self.rare.as_ref().map_or(0, |rare| rare.since.user)
    }

    /// The place behind which it is in a group that it is in.
    pub(crate) fn group_since(&self, name: &str) -> Seq {
        self.rare.as_ref().and_then(|rare| rare.since.groups.get(name).copied()).unwrap_or(0)
    }

    /// The place behind which a property is what it is.
    pub(crate) fn property_since(&self, name: &str) -> Seq {
        self.rare.as_ref().and_then(|rare| rare.since.properties.get(name).copied()).unwrap_or(0)
    }

    /// Returns true if a message at `seq` that a target selects it for came while it was what the target names.
    pub(crate) fn was_meant(&self, target: &Target, seq: Seq) -> bool {
        let since = match &target.selection {
            Selection::All | Selection::Connection(_) => 0,
            Selection::Registered | Selection::Users(_) | Selection::Session(_) => self.user_since(),
            Selection::Groups(names) => {
                let own = names.iter().filter(|name| self.groups.contains(name));
                own.map(|name| self.group_since(name)).min().unwrap_or(Seq::MAX)
            }
            Selection::Property { name, .. } => self.property_since(name),
        };
        since < seq
    }

    fn set(&mut self, name: Arc<str>, value: Value) {
        let properties = &mut self.rare().properties;
        match value {
            Value::Null => drop(properties.remove(&name)),
            value => drop(properties.insert(name, value)),
        }
    }
}

impl Given {
    /// Most that are kept one by one.
    const EACH: usize = 64;

    /// The same in little room.
    pub(crate) fn short(self) -> Self {
        match self {
            Self::Each(hashes) if hashes.len() > Self::EACH => Self::All(hash_all(&hashes)),
            given => given,
        }
    }

    /// Each of them, where `now` is what the authenticator gives now.
    fn known(self, now: Vec<u64>) -> Result<Vec<u64>, GivenError> {
        match self {
            Self::Each(hashes) => Ok(hashes),
            Self::All(hash) if hash == hash_all(&now) => Ok(now),
            Self::All(_) => Err(GivenError),
        }
    }
}

/// The first bytes of a SHA-256, the same on every node.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    let hash: [u8; 32] = hash.finalize().into();
    let (bytes, _) = hash.split_first_chunk().expect("more than eight bytes");
    u64::from_be_bytes(*bytes)
}

fn group_hash(name: &str) -> u64 {
    hash([&b"group "[..], name.as_bytes()])
}

fn property_hash(name: &str, value: &Value) -> u64 {
    let size = (name.len() as u64).to_be_bytes();
    hash([&b"property "[..], &size, name.as_bytes(), property_text(value).as_bytes()])
}

fn hash_all(hashes: &[u64]) -> u64 {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    hash([&b"all "[..], &bytes])
}

impl Names {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Arc<str>> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Arc<str>> {
        self.0.iter_mut()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|own| (**own).cmp(name))
    }

    /// Whether it is new.
    fn insert(&mut self, name: Arc<str>) -> bool {
        let Err(place) = self.find(&name) else { return false };
        let (before, after) = self.0.split_at(place);
        self.0 = before.iter().chain([&name]).chain(after).cloned().collect();
        true
    }

    fn take(&mut self, name: &str) -> Option<Arc<str>> {
        let place = self.find(name).ok()?;
        let mut names = std::mem::take(&mut self.0).into_vec();
        let name = names.remove(place);
        self.0 = names.into();
        Some(name)
    }
}

impl FromIterator<Arc<str>> for Names {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(names: I) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }
}

impl Changes {
    /// A group was joined or left. What undoes an earlier change leaves none.
    fn note(&mut self, group: Arc<str>, member: bool) {
        if self.groups.get(&group) == Some(&!member) {
            self.groups.remove(&group);
        } else {
            self.groups.insert(group, member);
        }
    }
}

fn clone_both((name, value): (&Arc<str>, &Value)) -> (Arc<str>, Value) {
    (name.clone(), value.clone())
}

/// A connection with its membership, for [`Target::matches`](crate::Target).
pub(crate) struct Member<'a>(pub(crate) ConnectionId, pub(crate) &'a Membership);

impl Candidate for Member<'_> {
    fn id(&self) -> ConnectionId {
        self.1.former().unwrap_or(self.0)
    }

    fn user(&self) -> Option<&str> {
        self.1.user.as_deref()
    }

    fn session(&self) -> Option<&str> {
        self.1.session.as_deref()
    }

    fn in_group(&self, name: &str) -> bool {
        self.1.groups.contains(name)
    }

    fn property_is(&self, name: &str, value: &str) -> bool {
        self.1.property(name).is_some_and(|own| property_text(own) == value)
    }
}
