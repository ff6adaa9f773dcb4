//! The changes that handlers made to a membership.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

/// The changes that handlers made to a membership, which began as the authenticator said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// The groups that handlers changed: true if the client joined the group, false if it left.
    pub(crate) groups: BTreeMap<Arc<str>, bool>,
    /// The properties that handlers set. A removed property is null.
    pub(crate) properties: BTreeMap<Arc<str>, Value>,
}

impl Changes {
    /// Notes that a group was joined or left. If that undoes an earlier change, both are forgotten.
    pub(super) fn note(&mut self, group: Arc<str>, member: bool) {
        if self.groups.get(&group) == Some(&!member) {
            self.groups.remove(&group);
        } else {
            self.groups.insert(group, member);
        }
    }
}
