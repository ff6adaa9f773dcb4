//! The commands of the site to change groups, for clients that come back with a resume token from before a command.
//! Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::message::{close::Subject, groups::GroupChange};
use ws_cluster_core::Seq;

/// Maximum number of bytes that the commands take, and about how many one command takes beside its names.
const SIZE: usize = 16 * 1024 * 1024;

/// The commands that this node has delivered, the latest of them.
#[derive(Default)]
pub(super) struct GroupCommands {
    /// The commands about each user, session and connection, the oldest first.
    by_subject: HashMap<Subject, VecDeque<(Seq, Arc<GroupChange>)>>,
    /// All commands, the oldest first.
    order: VecDeque<(Seq, Arc<GroupChange>)>,
    size: usize,
    /// Commands up to this sequence number may be forgotten, or were never known.
    floor: Seq,
}

impl GroupCommands {
    /// Returns no commands. Those up to `floor` were never known.
    pub(super) fn after(floor: Seq) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Returns the sequence number after which every command is known.
    pub(super) fn floor(&self) -> Seq {
        self.floor
    }

    /// Notes a command. The oldest ones are forgotten if all of them would take too much memory.
    pub(super) fn note(&mut self, seq: Seq, change: &GroupChange) {
        let change = Arc::new(change.clone());
        self.size += change.size();
        self.by_subject.entry(change.subject.clone()).or_default().push_back((seq, change.clone()));
        self.order.push_back((seq, change));
        while self.size > SIZE {
            let Some((seq, change)) = self.order.pop_front() else { break };
            self.floor = seq.max(self.floor);
            self.forget(&change, VecDeque::pop_front);
        }
    }

    /// Forgets the commands after `after`, which have lost their log positions.
    pub(super) fn cut(&mut self, after: Seq) {
        while let Some((_, change)) = self.order.pop_back_if(|(seq, _)| *seq > after) {
            self.forget(&change, VecDeque::pop_back);
        }
    }

    fn forget<T>(&mut self, change: &GroupChange, end: impl Fn(&mut VecDeque<(Seq, Arc<GroupChange>)>) -> Option<T>) {
        self.size -= change.size();
        if let Some(list) = self.by_subject.get_mut(&change.subject) {
            end(list);
            if list.is_empty() {
                self.by_subject.remove(&change.subject);
            }
        }
    }

    /// Returns the orders after `after` about any of these subjects, in their order.
    pub(super) fn about(&self, subjects: &[Subject], after: Seq) -> Vec<(Seq, Arc<GroupChange>)> {
        let lists = subjects.iter().filter_map(|subject| self.by_subject.get(subject));
        let mut commands: Vec<_> =
            lists.flat_map(|list| list.range(list.partition_point(|(seq, _)| *seq <= after)..).cloned()).collect();
        commands.sort_by_key(|(seq, _)| *seq);
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(commands: &GroupCommands, subjects: &[Subject], after: Seq) -> Vec<Seq> {
        commands.about(subjects, after).into_iter().map(|(seq, _)| seq).collect()
    }

    #[test]
    fn the_commands_about_a_client_are_found() {
        let mut commands = GroupCommands::default();
        for (seq, change) in [
            (3, GroupChange::user("ann").join("a")),
            (4, GroupChange::session("s").join("a")),
            (6, GroupChange::user("bob").join("a")),
            (7, GroupChange::user("ann").leave("a")),
        ] {
            commands.note(seq, &change);
        }
        let ann = [Subject::user("ann"), Subject::session("s")];
        assert_eq!(seqs(&commands, &ann, 0), [3, 4, 7]);
        assert_eq!(seqs(&commands, &ann, 3), [4, 7]);
        assert!(seqs(&commands, &[Subject::session("ann")], 0).is_empty());
        commands.cut(4);
        assert_eq!(seqs(&commands, &ann, 0), [3, 4]);
        assert!(seqs(&commands, &[Subject::user("bob")], 0).is_empty());
        commands.cut(0);
        assert!(commands.by_subject.is_empty() && commands.size == 0 && commands.floor() == 0);
    }

    #[test]
    fn commands_take_a_limited_amount_of_memory() {
        let mut commands = GroupCommands::after(5);
        let name = "x".repeat(60_000);
        for seq in 6..1000 {
            commands.note(seq, &GroupChange::user(format!("u{}", seq % 10)).join(&*name));
        }
        assert!(commands.size <= SIZE && commands.floor() > 500, "{} {}", commands.size, commands.floor());
        assert_eq!(commands.order.len(), commands.by_subject.values().map(VecDeque::len).sum::<usize>());
        assert_eq!(commands.order.front().map(|(seq, _)| *seq), Some(commands.floor() + 1));
    }
}
