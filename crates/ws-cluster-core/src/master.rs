//! The master's side: it lets nodes join, appends publishes to the log, sends entries to followers, and delivers the
//! entries that enough nodes hold. `takeover` has the methods of a master that begins, and `shutdown` those of one that
//! leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    Body, Entry, Join, LinkId, NodeId, Proposal, Seq, TICK,
    acknowledgers::Acknowledgers,
    context::Context,
    fault::Fault,
    progress::{Followers, InFlight, PATIENCE, Progress, members},
};

/// Age of the last view at which a lone master that has a waiting publish asks for another read.
const STALE_VIEW: Duration = Duration::from_millis(100);

/// The state of a master.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) phase: MasterPhase,
    pub(super) followers: Followers,
    /// Joins that arrived before this master served.
    pub(super) waiting: BTreeMap<NodeId, (LinkId, Join)>,
    /// Members of the last term that have not joined yet. While there are any, this master is not alone.
    pub(super) expected: BTreeSet<NodeId>,
    /// When the last link to a follower was lost.
    follower_lost_at: Instant,
    acknowledgers: Acknowledgers,
    /// Nodes that were members in this term or the last, and are not now.
    absent: BTreeSet<NodeId>,
    /// Own publishes up to this counter are in the log.
    proposed: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MasterPhase {
    /// Waits for the logs of the members of the last term.
    Collecting {
        missing: BTreeSet<NodeId>,
        until: Instant,
    },
    /// Waits for the entries of the best log.
    Fetching {
        from: NodeId,
        until: Instant,
    },
    Serving,
    /// This node has handed the lease over.
    HandedOver,
}

impl Master {
    /// Makes a master that waits for the logs of the members of the last term.
    pub(super) fn new(cx: &Context) -> Self {
        let last_term_members = cx.last_term_members();
        let until = cx.now + cx.config.collect_timeout;
        Self {
            phase: MasterPhase::Collecting { missing: last_term_members.clone(), until },
            followers: Followers::new(),
            waiting: BTreeMap::new(),
            absent: last_term_members.iter().copied().chain(cx.predecessor).collect(),
            expected: last_term_members,
            follower_lost_at: cx.now,
            acknowledgers: Acknowledgers::new(cx.now),
            proposed: 0,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == MasterPhase::Serving
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.phase == MasterPhase::HandedOver
    }

    /// Returns true if `node` follows this master, or is expected to join.
    pub(super) fn leads(&self, node: NodeId) -> bool {
        self.followers.contains_key(&node) || self.expected.contains(&node)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        members(&self.followers)
    }

    /// Returns true if no node is a member or is expected to become one.
    pub(super) fn has_no_member(&self) -> bool {
        self.members().next().is_none() && self.expected.is_empty()
    }

    /// Returns true if no member is linked, although other nodes took part and did not leave the pool.
    pub(super) fn has_lost_all_members(&self, cx: &Context) -> bool {
        self.members().next().is_none() && cx.pool.view.nodes.iter().any(|row| self.absent.contains(&row.node))
    }

    /// Returns true if this master may accept entries that only it holds. A pool that does not answer proves nothing:
    /// the other nodes may have elected another master, which does not know what this one accepts.
    pub(super) fn may_accept_alone(&self, cx: &Context) -> bool {
        let isolated = cx.config.accept_when_isolated && cx.pool.failed_since(self.follower_lost_at);
        self.has_no_member() && (cx.is_provably_alone() || isolated)
    }

    /// Returns true if this master has no member and cannot prove by the pool that there is none.
    pub(super) fn is_isolated(&self, cx: &Context) -> bool {
        self.is_serving() && self.has_no_member() && !cx.is_provably_alone()
    }

    /// Returns the node that gets the lease: `Some(None)` if there is no follower, `None` while no follower holds every
    /// entry. `patient` is true as long as there is time for a follower to become a member.
    pub(super) fn successor(&self, last: Seq, patient: bool) -> Option<Option<NodeId>> {
        if self.members().next().is_none() {
            let catches_up = !self.followers.is_empty() || !self.waiting.is_empty();
            return if catches_up && patient { None } else { Some(None) };
        }
        self.members().find(|(_, follower)| follower.acked == last).map(|(node, _)| Some(node))
    }

    pub(super) fn handle_join(&mut self, cx: &mut Context, link: LinkId, peer: NodeId, join: Join) {
        let follows = self.followers.get(&peer).map(|follower| follower.attempt);
        let waits = self.waiting.get(&peer).map(|(_, join)| join.attempt);
        if follows.max(waits).is_some_and(|latest| join.attempt < latest) {
            // The join was delayed on this link, and its sender has joined over another.
            return;
        }
        match self.phase {
            MasterPhase::Serving => self.welcome(cx, link, peer, &join),
            MasterPhase::HandedOver => cx.send_term(link),
            MasterPhase::Collecting { .. } | MasterPhase::Fetching { .. } => {
                self.waiting.insert(peer, (link, join));
                self.tick_takeover(cx);
            }
        }
    }

    pub(super) fn welcome(&mut self, cx: &mut Context, link: LinkId, peer: NodeId, join: &Join) {
        let base = cx.log.base();
        let agreed = cx.log.agreement(&join.lineage, join.last);
        let anew = agreed < base || agreed < join.base;
        let mut progress = Progress::new(link, join.attempt, if anew { base } else { agreed }, cx.log.last());
        // A repeated join is no acknowledgement.
        if let Some(before) = self.followers.get(&peer).filter(|before| !before.joined) {
            progress.owed_ticks = before.owed_ticks;
        }
        if self.followers.insert(peer, progress).is_some_and(|before| before.joined) {
            // The node was a member a moment ago, so it counts as alive until a later view shows no member.
            self.follower_lost_at = cx.now;
        }
        let snapshot = anew.then(|| cx.log.snapshot());
        cx.send(link, Body::Welcome { attempt: join.attempt, agreed, snapshot });
    }

    pub(super) fn handle_ack(&mut self, cx: &mut Context, link: LinkId, peer: NodeId, seq: Seq) {
        let Some(follower) = self.followers.get_mut(&peer).filter(|follower| follower.link == link) else { return };
        if seq > cx.log.last() || seq < follower.acked {
            return self.hang_up(cx, link);
        }
        follower.acked = seq;
        while let Some(frame) = follower.flight.pop_front_if(|frame| frame.last <= seq) {
            follower.in_flight -= frame.size;
            follower.note_delay(cx, &frame, self.acknowledgers.trial_began_at);
        }
        follower.owed_ticks = 0;
        if !follower.joined && seq >= follower.goal {
            follower.joined = true;
            // Only this follower was sent these entries, so their delay says little about that of the next ones.
            follower.delay = None;
            self.expected.remove(&peer);
            self.absent.remove(&peer);
            cx.pool.lost.remove(&peer);
            cx.send(link, Body::Joined);
            self.acknowledgers.member_joined();
        }
        self.advance(cx);
    }

    pub(super) fn handle_propose(&mut self, cx: &mut Context, link: LinkId, peer: NodeId, proposals: Vec<Proposal>) {
        // Otherwise the sender proposes them again to the master that lets it join.
        if self.is_serving() && self.followers.get(&peer).is_some_and(|follower| follower.link == link) {
            self.sequence(cx, proposals);
        }
    }

    /// Appends each proposal to the log, unless the log has it.
    pub(super) fn sequence(&mut self, cx: &mut Context, proposals: Vec<Proposal>) {
        // A master that shuts down appends no more entries; its successor does.
        if cx.shutdown_began_at.is_some() {
            return;
        }
        for mut proposal in proposals {
            if cx.log.knows(proposal.id) {
                continue;
            }
            if proposal.key.as_ref().is_some_and(|key| cx.log.knows_key(key)) && !cx.has_fault(Fault::IgnoresKeys) {
                proposal.content = None;
            }
            let entry = Entry { term: cx.term, seq: cx.log.last() + 1, proposal };
            cx.log.append(cx.now, entry, cx.me);
        }
        self.advance(cx);
    }

    /// Sends the followers the entries that they lack, as far as the window of each allows. Followers that need the
    /// same entries next get one frame.
    fn pump(&mut self, cx: &mut Context) {
        // The log no longer has the entries that these need next.
        let stranded = self.followers.values().filter(|follower| follower.sent < cx.log.base());
        let stranded: Vec<LinkId> = stranded.map(|follower| follower.link).collect();
        stranded.into_iter().for_each(|link| self.hang_up(cx, link));
        let held_by_all = self.held_by_all(cx);
        while let Some(next) = self.followers.values().find_map(|follower| follower.next(cx)) {
            let (spans, entries, size) = cx.batch(next.after, next.room);
            let sent = entries.last().map_or(cx.log.last(), |entry| entry.seq);
            let mut links = Vec::with_capacity(self.followers.len());
            for follower in self.followers.values_mut().filter(|follower| follower.next(cx) == Some(next)) {
                follower.sent = sent;
                follower.flight.push_back(InFlight { last: sent, size, sent_at: cx.now });
                follower.in_flight += size;
                follower.sent_held_by_all = held_by_all;
                links.push(follower.link);
            }
            cx.send_to_all(links, Body::Append { spans, entries, held_by_all });
        }
    }

    /// Returns the last entry that all members hold.
    fn held_by_all(&self, cx: &Context) -> Seq {
        self.members().map(|(_, follower)| follower.acked).min().unwrap_or(cx.log.last()).min(cx.delivered)
    }

    /// Delivers and accepts the entries that enough nodes hold.
    pub(super) fn advance(&self, cx: &mut Context) {
        if !(self.is_serving() || self.is_handed_over()) {
            return;
        }
        let held_by_one = self.members().map(|(_, follower)| follower.acked).max().unwrap_or(0);
        let last = cx.log.last();
        let alone = (held_by_one < last && self.may_accept_alone(cx)) || cx.has_fault(Fault::AcceptsAlone);
        if !alone && held_by_one < last && self.followers.is_empty() && cx.pool.age(cx.now) > STALE_VIEW {
            cx.pool.read_soon();
        }
        cx.deliver_to(if alone { last } else { held_by_one });
    }

    /// Takes a new view of the pool: forgets nodes that left it, and clears members that this master does not lead. The
    /// announcement of such a node took effect after the node had been cleared.
    pub(super) fn handle_view(&mut self, cx: &mut Context) {
        self.absent.retain(|node| cx.row(*node).is_some());
        if self.is_serving() {
            let strays: Vec<NodeId> = cx.members(cx.term, None).filter(|&node| !self.leads(node)).collect();
            strays.into_iter().for_each(|node| cx.pool.lose(node));
        }
    }

    /// Stops waiting for a node that refused a dial.
    pub(super) fn dial_failed(&mut self, cx: &mut Context, node: NodeId, refused: bool) {
        if refused {
            self.expected.remove(&node);
            if let MasterPhase::Collecting { missing, .. } = &mut self.phase {
                missing.remove(&node);
            }
            self.tick_takeover(cx);
        }
    }

    pub(super) fn hang_up(&mut self, cx: &mut Context, link: LinkId) {
        if let Some(peer) = cx.hang_up(link) {
            self.link_lost(cx, link, peer);
        }
    }

    pub(super) fn link_lost(&mut self, cx: &mut Context, link: LinkId, peer: NodeId) {
        self.waiting.retain(|_, (over, _)| *over != link);
        if self.followers.get(&peer).is_some_and(|follower| follower.link == link) {
            self.followers.remove(&peer);
            self.absent.insert(peer);
            self.follower_lost_at = cx.now;
            cx.pool.lose(peer);
            self.acknowledgers.member_lost(cx, &mut self.followers);
        }
        if cx.link_to(peer).is_none() {
            self.expected.remove(&peer);
            if matches!(self.phase, MasterPhase::Fetching { from, .. } if from == peer) {
                self.adopt_best(cx);
            }
        }
        self.advance(cx);
    }

    /// Appends the own publishes that have gathered since the last flush, and sends the followers what they lack.
    pub(super) fn flush(&mut self, cx: &mut Context) {
        if !self.is_serving() {
            return;
        }
        let proposals: Vec<Proposal> = cx.pending.pending_after(self.proposed).cloned().collect();
        if let Some(proposal) = proposals.last() {
            self.proposed = proposal.id.counter;
            self.sequence(cx, proposals);
        }
        self.pump(cx);
    }

    /// Ends a collection that has taken too long, trims, and tells followers what all members hold.
    pub(super) fn tick(&mut self, cx: &mut Context) {
        self.tick_takeover(cx);
        // This comes first, because a follower that it removes may be what shows that this master is not alone.
        self.enforce_retention(cx);
        self.acknowledgers.tick(cx, &mut self.followers);
        self.advance(cx);
    }

    /// Trims the master's log. Ends the link of a follower that holds the trimming back or acknowledges nothing.
    fn enforce_retention(&mut self, cx: &mut Context) {
        let surplus = cx.log.surplus(cx.now);
        let held_by_all = self.held_by_all(cx);
        let (mut laggards, mut outdated, mut is_deferring) = (Vec::new(), Vec::new(), false);
        for follower in self.followers.values_mut() {
            let owes = !follower.flight.is_empty() || !follower.joined;
            follower.owed_ticks = if owes { follower.owed_ticks + 1 } else { 0 };
            // A node may send heartbeats and do nothing else. While it counts as alive, this master accepts nothing.
            let holds_back = follower.joined && follower.acked < surplus;
            follower.held_back_ticks = if holds_back { follower.held_back_ticks + 1 } else { 0 };
            is_deferring |= holds_back && !follower.prompt;
            if follower.held_back_ticks > PATIENCE || TICK * follower.owed_ticks > cx.config.lease {
                laggards.push(follower.link);
            }
            if follower.joined && follower.sent_held_by_all < held_by_all {
                follower.sent_held_by_all = held_by_all;
                outdated.push(follower.link);
            }
        }
        cx.send_to_all(outdated, Body::Append { spans: Vec::new(), entries: Vec::new(), held_by_all });
        laggards.into_iter().for_each(|link| self.hang_up(cx, link));
        if is_deferring {
            // Perhaps it holds the entries and has not said so yet.
            self.acknowledgers.begin_trial(cx, &mut self.followers);
        }
        cx.trim(self.held_by_all(cx));
    }
}
