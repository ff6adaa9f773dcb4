//! The master's side: it lets nodes join, appends publishes to the log, sends entries to followers, and delivers the
//! entries that enough nodes hold. `takeover` is how a node becomes a serving master.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Body, Core, Entry, Fault, Join, LinkId, NodeId, Proposal, Role, Seq, Span, TICK, Term};

/// Most bytes that are sent to a follower and not acknowledged. Enough to keep a link busy over a slow network, and
/// little compared with the log.
pub(super) const WINDOW: usize = 4 * 1024 * 1024;

/// Age of the last view from which a waiting publish asks for another read.
const SOON: Duration = Duration::from_millis(100);

/// The state of a master.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) stage: MasterPhase,
    pub(super) followers: BTreeMap<NodeId, Progress>,
    /// Joins that arrived before this master served.
    pub(super) waiting: BTreeMap<NodeId, (LinkId, Join)>,
    /// Members of the last term that have not joined yet. While there are any, this master is not alone.
    pub(super) expected: BTreeSet<NodeId>,
    /// When the last link to a follower was lost.
    pub(super) deserted: Instant,
    /// Nodes that were members in this term or the last, and are not now.
    pub(super) absent: BTreeSet<NodeId>,
    /// Own publishes up to this counter are in the log.
    pub(super) proposed: u64,
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

/// What the master knows of a follower.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) link: LinkId,
    /// Counts the follower's joins.
    pub(super) attempt: u64,
    /// The last entry that was sent, and the last that was acknowledged.
    pub(super) sent: Seq,
    pub(super) acked: Seq,
    /// The last entry and the size of each frame that it has not acknowledged.
    pub(super) flight: VecDeque<(Seq, usize)>,
    /// For how many ticks it has owed an acknowledgement. Ticks count only the time in which this process ran.
    pub(super) owing: u32,
    /// The entry that it must hold to become a member.
    pub(super) goal: Seq,
    pub(super) joined: bool,
    /// The last `held` that it was sent.
    pub(super) held: Seq,
}

impl Master {
    /// `last_term_members`: the members of the last term, whose logs are waited for until `until`; `predecessor`: its master.
    pub(super) fn new(
        now: Instant,
        predecessor: Option<NodeId>,
        last_term_members: BTreeSet<NodeId>,
        until: Instant,
    ) -> Self {
        let stage = MasterPhase::Collecting { missing: last_term_members.clone(), until };
        Self {
            stage,
            followers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            absent: last_term_members.iter().copied().chain(predecessor).collect(),
            expected: last_term_members,
            deserted: now,
            proposed: 0,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.stage == MasterPhase::Serving
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.stage == MasterPhase::HandedOver
    }

    pub(super) fn set_handed_over(&mut self) {
        self.stage = MasterPhase::HandedOver;
    }

    /// Returns true if this node follows it, or has asked to join.
    pub(super) fn leads(&self, node: NodeId) -> bool {
        self.followers.contains_key(&node) || self.expected.contains(&node)
    }

    /// Returns true if no node has joined or is about to join.
    pub(super) fn has_no_follower(&self) -> bool {
        self.followers.values().all(|follower| !follower.joined) && self.expected.is_empty()
    }

    /// Stops waiting for a node that cannot be reached.
    pub(super) fn miss(&mut self, node: NodeId) {
        self.expected.remove(&node);
        if let MasterPhase::Collecting { missing, .. } = &mut self.stage {
            missing.remove(&node);
        }
    }

    /// Returns the node that gets the lease: `Some(None)` if there is no follower, `None` while no follower holds every
    /// entry.
    pub(super) fn successor(&self, last: Seq) -> Option<Option<NodeId>> {
        let mut members = self.followers.iter().filter(|(_, follower)| follower.joined).peekable();
        if members.peek().is_none() {
            return Some(None);
        }
        members.find(|(_, follower)| follower.acked == last).map(|(&node, _)| Some(node))
    }
}

impl Core {
    pub(super) fn handle_join(&mut self, link: LinkId, peer: NodeId, join: Join) {
        let Role::Master(master) = &mut self.role else { return };
        let follows = master.followers.get(&peer).map(|follower| follower.attempt);
        let waits = master.waiting.get(&peer).map(|(_, join)| join.attempt);
        if follows.max(waits).is_some_and(|latest| join.attempt < latest) {
            // The join was delayed on this link, and its sender has joined over another.
            return;
        }
        match master.stage {
            MasterPhase::Serving => self.welcome(link, peer, &join),
            MasterPhase::HandedOver => self.send_term(link),
            MasterPhase::Collecting { .. } | MasterPhase::Fetching { .. } => {
                master.waiting.insert(peer, (link, join));
                self.tick_takeover();
            }
        }
    }

    pub(super) fn welcome(&mut self, link: LinkId, peer: NodeId, join: &Join) {
        let last = self.log.last();
        let agreed = self.log.lineage().agreement(last, &join.lineage, join.last);
        let anew = agreed < self.log.base() || agreed < join.base;
        let snapshot = anew.then(|| self.log.snapshot());
        let begin = if anew { self.log.base() } else { agreed };
        let Role::Master(master) = &mut self.role else { return };
        let progress = Progress {
            link,
            attempt: join.attempt,
            sent: begin,
            acked: 0,
            flight: VecDeque::new(),
            // A repeated join is no acknowledgement.
            owing: master.followers.get(&peer).filter(|before| !before.joined).map_or(0, |before| before.owing),
            goal: last,
            joined: false,
            held: 0,
        };
        if master.followers.insert(peer, progress).is_some_and(|before| before.joined) {
            // The node was a member a moment ago, so it counts as alive until a later view shows no member.
            master.deserted = self.now;
        }
        self.send(link, Body::Welcome { attempt: join.attempt, agreed, snapshot });
    }

    pub(super) fn handle_ack(&mut self, link: LinkId, peer: NodeId, seq: Seq) {
        let last = self.log.last();
        let Role::Master(master) = &mut self.role else { return };
        let Some(follower) = master.followers.get_mut(&peer).filter(|follower| follower.link == link) else { return };
        if seq > last || seq < follower.acked {
            return self.hang_up(link);
        }
        follower.acked = seq;
        follower.flight.retain(|(sent, _)| *sent > seq);
        follower.owing = 0;
        if !follower.joined && seq >= follower.goal {
            follower.joined = true;
            follower.goal = last;
            master.expected.remove(&peer);
            master.absent.remove(&peer);
            self.pool.lost.remove(&peer);
            self.send(link, Body::Joined);
        }
        self.advance();
    }

    pub(super) fn handle_propose(&mut self, link: LinkId, peer: NodeId, proposals: Vec<Proposal>) {
        match &self.role {
            Role::Master(master)
                if master.is_serving() && master.followers.get(&peer).is_some_and(|one| one.link == link) =>
            {
                self.sequence(proposals);
            }
            // The sender proposes them again to the master that lets it join.
            _ => {}
        }
    }

    /// Appends each proposal to the log, unless the log has it.
    pub(super) fn sequence(&mut self, proposals: Vec<Proposal>) {
        // A master that shuts down appends no more entries; its successor does.
        if self.draining.is_some() {
            return;
        }
        for mut proposal in proposals {
            if self.log.knows(proposal.id) {
                continue;
            }
            let known = proposal.key.as_ref().is_some_and(|key| self.log.knows_key(key));
            let known = known && !self.has_fault(Fault::IgnoresKeys);
            if known {
                proposal.content = None;
            }
            let entry = Entry { term: self.term, seq: self.log.last() + 1, proposal };
            self.log.append(self.now, entry, self.me);
        }
        self.advance();
    }

    /// Returns the entries after `seq` that fit into one frame, their spans, and their size.
    pub(super) fn batch(&self, seq: Seq, room: usize) -> (Vec<Span>, Vec<Entry>, usize) {
        let mut size = 0;
        let entries: Vec<Entry> = self
            .log
            .after(seq)
            .take_while(|entry| {
                let fits = size == 0 || size + entry.proposal.size() <= self.batch.min(room);
                size += if fits { entry.proposal.size() } else { 0 };
                fits
            })
            .cloned()
            .collect();
        let terms: BTreeSet<Term> = entries.iter().map(|entry| entry.term).collect();
        let spans = self.log.lineage().spans().iter().filter(|span| terms.contains(&span.term)).copied().collect();
        (spans, entries, size)
    }

    /// Sends a follower the entries that it lacks, as far as the window allows.
    pub(super) fn pump(&mut self, peer: NodeId) {
        let (base, last) = (self.log.base(), self.log.last());
        loop {
            let held = self.held();
            let Role::Master(master) = &self.role else { return };
            let Some(follower) = master.followers.get(&peer) else { return };
            let in_flight: usize = follower.flight.iter().map(|(_, size)| size).sum();
            let (link, sent) = (follower.link, follower.sent);
            if sent < base {
                // The log no longer has the entries that it needs next.
                return self.hang_up(link);
            }
            if sent >= last || in_flight >= self.window {
                return;
            }
            let (spans, entries, size) = self.batch(sent, self.window - in_flight);
            let sent = entries.last().map_or(last, |entry| entry.seq);
            if let Role::Master(master) = &mut self.role
                && let Some(follower) = master.followers.get_mut(&peer)
            {
                follower.sent = sent;
                follower.flight.push_back((sent, size));
                follower.held = held;
            }
            self.send(link, Body::Append { spans, entries, held });
        }
    }

    pub(super) fn pump_all(&mut self) {
        let Role::Master(master) = &self.role else { return };
        let peers: Vec<NodeId> = master.followers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.pump(peer));
    }

    /// Returns the last entry that all members hold.
    pub(super) fn held(&self) -> Seq {
        let Role::Master(master) = &self.role else { return self.delivered };
        let members = master.followers.values().filter(|follower| follower.joined);
        members.map(|follower| follower.acked).min().unwrap_or(self.log.last()).min(self.delivered)
    }

    /// Returns true if this master may accept entries that only it holds. A pool that does not answer proves nothing:
    /// the other nodes may have elected another master, which does not know what this one accepts.
    pub(super) fn is_alone(&self, master: &Master) -> bool {
        let isolated = self.config.accept_when_isolated && self.pool.failed_since(master.deserted);
        master.has_no_follower() && (self.is_provably_alone() || isolated)
    }

    /// Returns true if this master has no follower and cannot prove by the pool that there is none.
    pub(super) fn is_isolated(&self, master: &Master) -> bool {
        master.is_serving() && master.has_no_follower() && !self.is_provably_alone()
    }

    /// Delivers and accepts the entries that enough nodes hold.
    pub(super) fn advance(&mut self) {
        let Role::Master(master) = &self.role else { return };
        if !(master.is_serving() || master.is_handed_over()) {
            return;
        }
        let members = master.followers.values().filter(|follower| follower.joined);
        let held = members.map(|follower| follower.acked).max().unwrap_or(0);
        let last = self.log.last();
        let alone = held < last && self.is_alone(master);
        let alone = alone || self.has_fault(Fault::AcceptsAlone);
        if !alone && held < last && master.followers.is_empty() && self.pool.age(self.now) > SOON {
            self.pool.read_soon();
        }
        self.deliver_to(if alone { last } else { held });
    }

    /// Trims the master's log. Ends the link of a follower that holds the trimming back or acknowledges nothing.
    pub(super) fn enforce_retention(&mut self) {
        let surplus = self.log.surplus(self.now);
        let patience = self.config.lease;
        let held = self.held();
        let Role::Master(master) = &mut self.role else { return };
        for follower in master.followers.values_mut() {
            let owes = !follower.flight.is_empty() || !follower.joined;
            follower.owing = if owes { follower.owing + 1 } else { 0 };
        }
        // A node may send heartbeats and do nothing else. While it counts as alive, this master accepts nothing.
        let behind =
            |follower: &&Progress| (follower.joined && follower.acked < surplus) || TICK * follower.owing > patience;
        let laggards: Vec<LinkId> = master.followers.values().filter(behind).map(|follower| follower.link).collect();
        let tell = master.followers.values_mut().filter(|follower| follower.joined && follower.held < held);
        let tell: Vec<LinkId> = tell
            .map(|follower| {
                follower.held = held;
                follower.link
            })
            .collect();
        for link in tell {
            self.send(link, Body::Append { spans: Vec::new(), entries: Vec::new(), held });
        }
        laggards.into_iter().for_each(|link| self.hang_up(link));
        self.trim(self.held());
    }
}
