//! What targets look at in a client: user, session, groups and properties. Nearly all connections are idle, so fields
//! that most of them lack take no memory.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::resume::ResumeState;
use crate::{
    auth::Identity,
    message::{
        groups::GroupChange,
        target::{Candidate, ConnectionId, Selection, Target, property_text},
    },
};
use ws_cluster_core::Seq;

mod changes;
mod given;
mod name_set;

pub(crate) use changes::Changes;
pub(crate) use given::{GivenError, GivenHashes};
pub(crate) use name_set::NameSet;

use given::{group_hash, property_hash};

/// The user, session, groups and properties of a client.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Membership {
    pub(crate) user: Option<Arc<str>>,
    pub(crate) session: Option<Arc<str>>,
    pub(crate) groups: NameSet,
    rare: Option<Box<RareFields>>,
}

/// Values that the application keeps beside a connection. They are no part of its identity.
#[derive(Clone, Default)]
struct Data(http::Extensions);

impl PartialEq for Data {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[derive(Clone, Default, PartialEq)]
struct RareFields {
    data: Data,
    former: Option<ConnectionId>,
    properties: BTreeMap<Arc<str>, Value>,
    changes: Changes,
    since: Since,
    /// Grows whenever something is taken away. Resume tokens with a lower version are not valid any more.
    version: u64,
    /// The latest version that was announced to the other nodes.
    announced_version: u64,
    /// True if the client's resume token does not have the latest change.
    token_outdated: bool,
}

/// The sequence numbers since which a client has its user, groups and properties, if not since it began to track its
/// position. Older messages for them are not replayed to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Since {
    /// Since when it has its user and session; 0 if since it began.
    pub(crate) user: Seq,
    pub(crate) groups: BTreeMap<Arc<str>, Seq>,
    pub(crate) properties: BTreeMap<Arc<str>, Seq>,
}

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

    /// Returns the value of type `T` that the application keeps beside the connection.
    pub(crate) fn data<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.rare.as_ref()?.data.0.get().cloned()
    }

    /// Replaces the value of type `T` and returns the old one.
    pub(crate) fn set_data<T: Clone + Send + Sync + 'static>(&mut self, value: T) -> Option<T> {
        self.rare().data.0.insert(value)
    }

    /// Takes the application's values from the membership that this one replaces.
    pub(crate) fn take_data(&mut self, before: &mut Self) {
        if let Some(rare) = before.rare.as_mut().filter(|rare| !rare.data.0.is_empty()) {
            self.rare().data = std::mem::take(&mut rare.data);
        }
    }

    fn rare(&mut self) -> &mut RareFields {
        self.rare.get_or_insert_default()
    }

    /// Returns the id that the client had before it came back. Handlers and targets know it by this id.
    pub(crate) fn former(&self) -> Option<ConnectionId> {
        self.rare.as_ref()?.former
    }

    /// Returns true if the client's resume token does not have the latest change.
    pub(crate) fn is_token_outdated(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.token_outdated)
    }

    /// Notes that the client gets a resume token with the latest change.
    pub(crate) fn note_token_sent(&mut self) {
        self.rare.iter_mut().for_each(|rare| rare.token_outdated = false);
    }

    pub(crate) fn property(&self, name: &str) -> Option<&Value> {
        self.rare.as_ref()?.properties.get(name)
    }

    pub(crate) fn properties(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        self.rare.iter().flat_map(|rare| &rare.properties)
    }

    /// Returns the changes that handlers made.
    pub(crate) fn changes(&self) -> Changes {
        self.rare.as_ref().map(|rare| rare.changes.clone()).unwrap_or_default()
    }

    /// Changes the membership to the one of the user that the client has authenticated as. `at`: the last sequence
    /// number that was delivered, if the client tracks its position and deliveries to it have begun.
    pub(crate) fn identify(&mut self, of: Self, at: Option<Seq>) {
        let before = (self.groups.clone(), self.properties().map(clone_both).collect());
        self.user = of.user;
        self.session = of.session;
        self.groups = self.groups.iter().chain(of.groups.iter()).cloned().collect();
        // A group that the authenticator gives is no change by a handler.
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
        // The resume token is bound to the user.
        self.rare().token_outdated = true;
    }

    /// Replaces what the authenticator said before by what it says now. The changes of handlers stay. A change that
    /// agrees with the authenticator now is no change any more. `at` as for [`identify`](Self::identify).
    pub(crate) fn refresh(&mut self, of: Self, at: Option<Seq>) {
        let mut changes = self.changes();
        changes.groups.retain(|group, member| of.groups.contains(group) != *member);
        changes.properties.retain(|name, value| of.property(name).unwrap_or(&Value::Null) != value);
        let stays = |group: &&Arc<str>| changes.groups.get(*group) != Some(&false);
        let joined = changes.groups.iter().filter(|(_, member)| **member).map(|(group, _)| group);
        let groups: NameSet = of.groups.iter().filter(stays).chain(joined).cloned().collect();
        let mut properties = of.rare.map(|rare| rare.properties).unwrap_or_default();
        for (name, value) in &changes.properties {
            match value {
                Value::Null => drop(properties.remove(name)),
                value => drop(properties.insert(name.clone(), value.clone())),
            }
        }
        let same = groups == self.groups && self.properties().eq(&properties);
        // The resume token is bound to the session, and contains what the authenticator gave.
        let token_changes = !same || self.session != of.session || changes != self.changes();
        let before = (std::mem::replace(&mut self.groups, groups), self.properties().map(clone_both).collect());
        (self.user, self.session) = (of.user, of.session);
        if self.rare.is_none() && properties.is_empty() && !token_changes {
            return;
        }
        let rare = self.rare();
        rare.properties = properties;
        rare.changes = changes;
        rare.token_outdated |= token_changes;
        if !same {
            self.note_since(before, at);
        }
    }

    /// Notes since when the client has its new groups and properties. Raises the version if some are gone, since older
    /// resume tokens are not valid then.
    fn note_since(&mut self, (groups, properties): (NameSet, BTreeMap<Arc<str>, Value>), at: Option<Seq>) {
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

    /// Applies the changes that handlers made before the client came back. What the authenticator gives now and did not
    /// give before counts since `at`, the last sequence number that was delivered. Fails, without a change, if the
    /// difference cannot be told.
    pub(crate) fn resume(&mut self, state: ResumeState, at: Seq) -> Result<(), GivenError> {
        let ResumeState { id, changes, version, since, given, .. } = state;
        let given = given.known(self.given(&changes))?;
        let mut own = Since { user: since.user, ..Since::default() };
        let was = |hash| given.binary_search(&hash).is_ok();
        let groups = self.groups.iter().filter(|group| !was(group_hash(group)));
        own.groups = groups.map(|group| (group.clone(), at)).collect();
        let properties = self.properties().filter(|(name, value)| !was(property_hash(name, value)));
        own.properties = properties.map(|(name, _)| (name.clone(), at)).collect();
        // Something that the authenticator gave is gone. If it comes back later, it counts as new.
        let same = self.groups.len() + self.properties().count() - own.groups.len() - own.properties.len();
        let fewer = given.len() > same;

        self.rare().former = Some(id);
        for (group, member) in changes.groups {
            let changed = if member { self.groups.insert(group.clone()) } else { self.groups.take(&group).is_some() };
            own.groups.remove(&group);
            // A change that agrees with the authenticator now is no change any more.
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
        // Everything that is not new counts since the time in the token.
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
        (rare.version, rare.announced_version) = (version + u64::from(fewer), version);
        Ok(())
    }

    /// Returns the sorted hashes of what the authenticator gave and handlers did not change.
    fn given(&self, changes: &Changes) -> Vec<u64> {
        let groups = self.groups.iter().filter(|group| !changes.groups.contains_key(*group));
        let properties = self.properties().filter(|(name, _)| !changes.properties.contains_key(*name));
        let groups = groups.map(|group| group_hash(group));
        let mut hashes: Vec<_> = groups.chain(properties.map(|(name, value)| property_hash(name, value))).collect();
        hashes.sort_unstable();
        hashes
    }

    /// Returns the hashes of what the authenticator gave, as a resume token contains them.
    pub(crate) fn given_now(&self) -> GivenHashes {
        GivenHashes::Each(match &self.rare {
            Some(rare) => self.given(&rare.changes),
            None => self.given(&Changes::default()),
        })
    }

    /// Adds the client to a group. Returns true if it was not in the group. `at`: the last sequence number that was
    /// delivered, if the client tracks its position.
    pub(crate) fn join(&mut self, group: Arc<str>, at: Option<Seq>) -> bool {
        let new = self.groups.insert(group.clone());
        if new {
            self.rare().changes.note(group.clone(), true);
            self.rare().token_outdated = true;
            if let Some(at) = at {
                self.rare().since.groups.insert(group, at);
            }
        }
        new
    }

    /// Removes the client from a group. Returns true if it was in the group.
    pub(crate) fn leave(&mut self, group: &str) -> bool {
        let Some(group) = self.groups.take(group) else { return false };
        let rare = self.rare();
        rare.since.groups.remove(&group);
        rare.changes.note(group, false);
        rare.version += 1;
        rare.token_outdated = true;
        true
    }

    /// Carries out a command of the site. The version stays, since no older resume token is revoked: when a client
    /// comes back, the commands that are younger than its token are carried out. `at`: the command's sequence number,
    /// if the client tracks its position or has not joined yet.
    pub(crate) fn regroup(&mut self, GroupChange { join, leave, .. }: &GroupChange, at: Option<Seq>) {
        for group in leave {
            if let Some(group) = self.groups.take(group) {
                let rare = self.rare();
                rare.since.groups.remove(&group);
                rare.changes.note(group, false);
                rare.token_outdated = true;
            }
        }
        for group in join {
            let group: Arc<str> = group.as_str().into();
            if !self.join(group.clone(), at)
                && let Some((at, since)) = at.zip(self.rare().since.groups.get_mut(&group))
            {
                // The client was in the group when the command came.
                *since = at.min(*since);
            }
        }
    }

    /// Sets a property, or removes it if `value` is null. `at`: the last sequence number that was delivered, if the
    /// client tracks its position.
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
        rare.token_outdated = true;
    }

    /// Makes the client get a new resume token, although no group or property has changed.
    pub(crate) fn outdate_token(&mut self) {
        self.rare().token_outdated = true;
    }

    /// Returns since when the client has its user, groups and properties.
    pub(crate) fn valid_since(&self) -> Since {
        self.rare.as_ref().map(|rare| rare.since.clone()).unwrap_or_default()
    }

    pub(crate) fn version(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.version)
    }

    /// Returns true if something was taken away and the other nodes have not been told.
    pub(crate) fn needs_revocation(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.version > rare.announced_version)
    }

    /// Returns the lowest valid version of the client's resume token if the other nodes have not been told, and notes
    /// that they are told now.
    pub(crate) fn take_revocation(&mut self) -> Option<u64> {
        let rare = self.rare.as_mut().filter(|rare| rare.version > rare.announced_version)?;
        rare.announced_version = rare.version;
        Some(rare.version)
    }

    /// Returns the sequence number after which the client has this user and session.
    pub(crate) fn user_since(&self) -> Seq {
        self.rare.as_ref().map_or(0, |rare| rare.since.user)
    }

    /// Returns the sequence number after which the client is in the group. It has to be in the group.
    pub(crate) fn group_since(&self, name: &str) -> Seq {
        self.rare.as_ref().and_then(|rare| rare.since.groups.get(name).copied()).unwrap_or(0)
    }

    /// Returns the sequence number after which the property has its value.
    pub(crate) fn property_since(&self, name: &str) -> Seq {
        self.rare.as_ref().and_then(|rare| rare.since.properties.get(name).copied()).unwrap_or(0)
    }

    /// Returns true if the client already had what `target` names when the message at `seq` came. The target must
    /// select the client.
    pub(crate) fn was_target_of(&self, target: &Target, seq: Seq) -> bool {
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
