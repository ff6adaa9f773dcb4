//! What the simulator reads from a core.

use crate::{Core, Entry, NodeId, PublishId, Role, Seq, Term};

impl Core {
    pub(super) fn id(&self) -> NodeId {
        self.cx.me
    }

    pub(super) fn term(&self) -> Term {
        self.cx.term
    }

    pub(super) fn is_serving_master(&self) -> bool {
        matches!(&self.role, Role::Master(master) if master.is_serving())
    }

    /// Returns the members that acknowledge at once, if it is a master.
    pub(super) fn prompt_members(&self) -> Vec<NodeId> {
        let Role::Master(master) = &self.role else { return Vec::new() };
        master.members().filter(|(_, member)| member.prompt).map(|(node, _)| node).collect()
    }

    /// Returns the followers that have not acknowledged every entry, if it is a master.
    pub(super) fn owing_followers(&self) -> Vec<NodeId> {
        let Role::Master(master) = &self.role else { return Vec::new() };
        let owing = master.followers.iter().filter(|(_, follower)| follower.acked < self.cx.log.last());
        owing.map(|(&node, _)| node).collect()
    }

    /// Returns true if it is a master that may accept entries that only it holds, for any reason.
    pub(super) fn believes_alone(&self) -> bool {
        matches!(&self.role, Role::Master(master) if master.may_accept_alone(&self.cx))
    }

    /// Returns true if it is a master that the pool shows to be alone. This is the only valid reason to accept an entry
    /// without a second holder.
    pub(super) fn is_provably_alone_now(&self) -> bool {
        matches!(&self.role, Role::Master(master) if master.has_no_member()) && self.cx.is_provably_alone()
    }

    /// Returns true if it accepts entries for that reason. A master that shuts down appends no entries.
    pub(super) fn accepts_alone(&self) -> bool {
        self.cx.shutdown_began_at.is_none() && self.is_provably_alone_now()
    }

    /// Returns the term and the number of the last entry.
    pub(super) fn end(&self) -> (Term, Seq) {
        (self.cx.log.last_term(), self.cx.log.last())
    }

    pub(super) fn place(&self, seq: Seq) -> Option<(Term, NodeId, Seq)> {
        let span = self.cx.log.lineage().span_at(seq).filter(|_| seq > 0)?;
        Some((span.term, span.master, seq))
    }

    pub(super) fn entries_after(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        self.cx.log.after(seq)
    }

    /// Counts the changes of the log other than growth at its end and trimming at its beginning.
    pub(super) fn rewrites(&self) -> u64 {
        self.cx.log.rewrites
    }

    pub(super) fn has(&self, publish: PublishId) -> bool {
        self.cx.pending.holds(publish) || self.cx.log.knows(publish)
    }

    pub(super) fn place_of_base(&self) -> Seq {
        self.cx.log.base()
    }

    pub(super) fn has_nothing_waiting(&self) -> bool {
        self.cx.pending.is_empty()
    }

    pub(super) fn summary(&self) -> String {
        let role = match &self.role {
            Role::Master(master) => format!("master {master:?}"),
            Role::Follower(follower) => format!("follower {follower:?}"),
        };
        let (me, term, master, delivered) = (self.cx.me, self.cx.term, self.cx.master, self.cx.delivered);
        let waiting = self.cx.pending.ids().count();
        let (base, end) = (self.cx.log.base(), self.end());
        let pool = self.cx.pool.summary();
        format!(
            "{me:?} {pool} now {:?} term {term} master {master:?} log {base}..{end:?} delivered {delivered} waiting {waiting} {role}",
            self.cx.now
        )
    }
}
