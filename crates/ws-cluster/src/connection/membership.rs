//! Who a client is, as targets see it. Nearly all connections are idle, so what most of them lack takes no room.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::client::State;
use crate::{
    auth::Identity,
    target::{Candidate, ConnectionId},
};

/// Who a client is.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Membership {
    pub(crate) user: Option<Arc<str>>,
    pub(crate) session: Option<Arc<str>>,
    pub(crate) groups: Names,
    rare: Option<Box<Rare>>,
}

#[derive(Clone, Default, PartialEq)]
struct Rare {
    former: Option<ConnectionId>,
    properties: BTreeMap<Arc<str>, Value>,
    changes: Changes,
    /// The client was not told of the latest change of what it carries.
    untold: bool,
}

/// How handlers changed a membership that began as the authenticator says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Groups that it was put into or taken out of, and which.
    pub(crate) groups: BTreeMap<Arc<str>, bool>,
    /// Properties that were set, and, as null, those that were removed.
    pub(crate) properties: BTreeMap<Arc<str>, Value>,
}

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

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The id that it had before it came back: its own for all who name it, in place of the connection's.
    pub(crate) fn former(&self) -> Option<ConnectionId> {
        self.rare.as_ref()?.former
    }

    /// Whether the client was not told of the latest change of what it carries; it is told now.
    pub(crate) fn take_untold(&mut self) -> bool {
        self.rare.as_mut().is_some_and(|rare| std::mem::take(&mut rare.untold))
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

    /// Makes it the one of the user that the client turned out to be.
    pub(crate) fn identify(&mut self, of: Self) {
        self.user = of.user;
        self.session = of.session;
        self.groups = self.groups.iter().chain(of.groups.iter()).cloned().collect();
        let names = self.groups.clone();
        let rare = self.rare();
        // What the authenticator says now is no change of a handler's.
        rare.changes.groups.retain(|group, member| *member || !names.contains(group));
        for (name, value) in of.rare.into_iter().flat_map(|rare| rare.properties) {
            rare.changes.properties.remove(&name);
            rare.properties.insert(name, value);
        }
        // What it carries is bound to its user.
        self.rare().untold = true;
    }

    /// Replaces what the authenticator said before by what it says now. What handlers changed stays changed; what they
    /// changed to what the authenticator says now is no change any more.
    pub(crate) fn refresh(&mut self, of: Self) {
        let mut changes = self.changes();
        changes.groups.retain(|group, member| of.groups.contains(group) != *member);
        changes.properties.retain(|name, value| of.property(name).unwrap_or(&Value::Null) != value);
        // What a client carries is bound to its session.
        let news = self.session != of.session || changes != self.changes();
        let stays = |group: &&Arc<str>| changes.groups.get(*group) != Some(&false);
        let joined = changes.groups.iter().filter(|(_, member)| **member).map(|(group, _)| group);
        self.groups = of.groups.iter().filter(stays).chain(joined).cloned().collect();
        (self.user, self.session) = (of.user, of.session);
        if self.rare.is_none() && of.rare.is_none() {
            return;
        }
        let rare = self.rare();
        rare.properties = of.rare.map(|rare| rare.properties).unwrap_or_default();
        for (name, value) in &changes.properties {
            match value {
                Value::Null => drop(rare.properties.remove(name)),
                value => drop(rare.properties.insert(name.clone(), value.clone())),
            }
        }
        rare.changes = changes;
        rare.untold |= news;
    }

    /// Makes it what handlers had made of it before the client came back.
    pub(crate) fn resume(&mut self, State { id, changes }: State) {
        self.rare().former = Some(id);
        for (group, member) in changes.groups {
            let changed = if member { self.groups.insert(group.clone()) } else { self.groups.take(&group).is_some() };
            // What is as the authenticator says by now is no change any more.
            if changed {
                self.rare().changes.groups.insert(group, member);
            }
        }
        for (name, value) in changes.properties {
            if self.property(&name).unwrap_or(&Value::Null) != &value {
                self.set(name.clone(), value.clone());
                self.rare().changes.properties.insert(name, value);
            }
        }
    }

    /// Puts it into a group. Whether it was not in it.
    pub(crate) fn join(&mut self, group: Arc<str>) -> bool {
        let new = self.groups.insert(group.clone());
        if new {
            self.rare().changes.note(group, true);
            self.rare().untold = true;
        }
        new
    }

    /// Takes it out of a group. Whether it was in it.
    pub(crate) fn leave(&mut self, group: &str) -> bool {
        let Some(group) = self.groups.take(group) else { return false };
        self.rare().changes.note(group, false);
        self.rare().untold = true;
        true
    }

    /// Sets a property, or removes it where the value is null.
    pub(crate) fn set_property(&mut self, name: &str, value: Value) {
        let name: Arc<str> = name.into();
        self.set(name.clone(), value.clone());
        self.rare().changes.properties.insert(name, value);
        self.rare().untold = true;
    }

    fn set(&mut self, name: Arc<str>, value: Value) {
        let properties = &mut self.rare().properties;
        match value {
            Value::Null => drop(properties.remove(&name)),
            value => drop(properties.insert(name, value)),
        }
    }
}

impl Names {
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

/// A property as targets compare it: a string as it is, anything else as compact JSON.
pub(crate) fn property_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
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
