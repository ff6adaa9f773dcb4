//! Which connections join and leave groups by a command of the site.

use crate::{
    PublishError,
    message::{close::Subject, target::ConnectionId},
};

/// Maximum number of groups in one command, and of bytes in their names together.
pub(crate) const GROUPS: usize = 1000;
pub(crate) const NAMES_SIZE: usize = 64 * 1024;
/// Maximum size of the id of a user or session in a command, in bytes. Nodes keep commands for clients that come back.
const ID_SIZE: usize = 1024;

/// The connections that [`Server::change_groups`](crate::Server::change_groups) puts into groups and takes out of
/// groups.
///
/// ```
/// use ws_cluster::GroupChange;
///
/// // Ann became an editor.
/// let promoted = GroupChange::user("ann").join("editors").leave("trial");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a command takes effect in `change_groups`"]
pub struct GroupChange {
    pub(crate) subject: Subject,
    pub(crate) join: Vec<String>,
    pub(crate) leave: Vec<String>,
}

impl GroupChange {
    fn of(subject: Subject) -> Self {
        Self { subject, join: Vec::new(), leave: Vec::new() }
    }

    /// Changes the groups of every connection of this user.
    pub fn user(id: impl Into<String>) -> Self {
        Self::of(Subject::user(id))
    }

    /// Changes the groups of every connection of this session.
    pub fn session(id: impl Into<String>) -> Self {
        Self::of(Subject::session(id))
    }

    /// Changes the groups of one connection, under the id that handlers know.
    pub fn connection(id: ConnectionId) -> Self {
        Self::of(Subject::Connection(id))
    }

    /// Puts the connections into a group. The name is any text.
    pub fn join(mut self, group: impl Into<String>) -> Self {
        self.join.push(group.into());
        self
    }

    /// Takes the connections out of a group.
    pub fn leave(mut self, group: impl Into<String>) -> Self {
        self.leave.push(group.into());
        self
    }

    /// Checks the command: it names 1 to 1,000 groups, of 64 KiB together, and none of them twice. An id has up to 1
    /// KiB.
    pub(crate) fn check(&self) -> Result<(), PublishError> {
        if self.subject.id_size() > ID_SIZE {
            return Err(PublishError::invalid(format!("the id of a user or session has at most {ID_SIZE} bytes")));
        }
        let mut names: Vec<&str> = self.names().collect();
        let size = names.iter().map(|name| name.len()).sum();
        match names.len() {
            0 => return Err(PublishError::invalid("the command names no group: give `join`, `leave` or both")),
            1..=GROUPS => {}
            _ => return Err(PublishError::invalid(format!("one command names at most {GROUPS} groups"))),
        }
        if size > NAMES_SIZE {
            return Err(PublishError::TooLarge { size, limit: NAMES_SIZE });
        }
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(PublishError::invalid(format!("the group {:?} is there twice", pair[0]))),
            None => Ok(()),
        }
    }

    /// Returns about the number of bytes that the command takes in memory.
    pub(crate) fn size(&self) -> usize {
        const COMMAND: usize = 256;
        const NAME: usize = 32;
        COMMAND + self.subject.id_size() + self.names().map(|name| NAME + name.len()).sum::<usize>()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.join.iter().chain(&self.leave).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_each_group_once() {
        let ann = || GroupChange::user("ann");
        assert_eq!(ann().join("a").leave("b").check(), Ok(()));
        let many = |count: usize| (0..count).fold(ann(), |command, number| command.join(number.to_string()));
        assert_eq!(many(1000).check(), Ok(()));
        for (command, why) in [
            (ann(), "names no group"),
            (ann().join("a").join("a"), "the group \"a\" is there twice"),
            (GroupChange::session("x".repeat(1_025)).join("a"), "at most 1024 bytes"),
            (ann().leave("a").join("a"), "the group \"a\" is there twice"),
            (many(1001), "at most 1000 groups"),
            (ann().join("x".repeat(70_000)), "over the limit"),
        ] {
            let told = command.check().unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }
}
