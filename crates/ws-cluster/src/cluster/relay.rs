//! What master and followers do for each message: give it its place, pass it on, deliver it once two nodes hold it;
//! and how a node is let into, and a new master put at the head of, the one order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use super::{Body, Core, Entry, Join, LinkId, NodeId, Output, Proposal, Role, Seq, Snapshot, Span, Term};

/// Bytes on their way to a follower that it has not acknowledged. Enough to keep a link busy over a slow network,
/// little beside the ring.
const WINDOW: usize = 4 * 1024 * 1024;
/// Bytes of entries in one frame, beyond the first entry.
const BATCH: usize = 256 * 1024;

/// A node that is not master: how far it is with joining.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The link over which it joins or has joined.
    link: Option<LinkId>,
    stage: Stage,
    /// Which of this node's joins this is: the answer to an earlier one is no answer to it.
    attempt: u64,
    asked: Option<Instant>,
    /// Since its welcome it proposed all own publishes up to this counter, and acknowledged all up to this place.
    proposed: u64,
    acked: Seq,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Apart,
    /// Asked to be let in.
    Asked,
    /// In the stream, perhaps far behind.
    Welcomed,
    /// A member.
    Joined,
}

impl Follower {
    pub(super) fn is_joined(&self) -> bool {
        self.stage == Stage::Joined
    }
}

/// The master's side.
#[derive(Debug)]
pub(super) struct Master {
    stage: Reign,
    followers: BTreeMap<NodeId, Progress>,
    /// Joins that came before this master served.
    waiting: BTreeMap<NodeId, (LinkId, Join)>,
    /// Members of the last term that are on their way in: while there are any, this master is not alone.
    expected: BTreeSet<NodeId>,
    /// When the last link to a follower was lost.
    deserted: Instant,
    /// Own publishes up to this counter have their places.
    proposed: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Reign {
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
    /// The lease is another's, by this node's own will.
    HandedOver,
}

/// A follower as the master sees it.
#[derive(Debug)]
struct Progress {
    link: LinkId,
    /// It was sent, and has acknowledged, all up to here.
    sent: Seq,
    acked: Seq,
    /// The last place and the size of each frame that it has not acknowledged.
    flight: VecDeque<(Seq, usize)>,
    /// What it has to hold to be a member.
    goal: Seq,
    joined: bool,
    /// The mark of what all members hold that it was told.
    held: Seq,
}

impl Master {
    /// `heirs`: the members of the last term, whose logs are waited for until `until`.
    pub(super) fn new(now: Instant, heirs: BTreeSet<NodeId>, until: Instant) -> Self {
        let stage = Reign::Collecting { missing: heirs.clone(), until };
        Self {
            stage,
            followers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            expected: heirs,
            deserted: now,
            proposed: 0,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.stage == Reign::Serving
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.stage == Reign::HandedOver
    }

    pub(super) fn set_handed_over(&mut self) {
        self.stage = Reign::HandedOver;
    }

    /// A node that was waited for cannot be reached.
    pub(super) fn miss(&mut self, node: NodeId) {
        self.expected.remove(&node);
        if let Reign::Collecting { missing, .. } = &mut self.stage {
            missing.remove(&node);
        }
    }

    /// Who can take over: `Some(None)` where there is nobody to wait for, `None` while the best is behind.
    pub(super) fn successor(&self, last: Seq) -> Option<Option<NodeId>> {
        let mut members = self.followers.iter().filter(|(_, follower)| follower.joined).peekable();
        if members.peek().is_none() {
            return Some(None);
        }
        members.find(|(_, follower)| follower.acked == last).map(|(&node, _)| Some(node))
    }
}

impl Core {
    pub(super) fn link_lost(&mut self, link: LinkId, peer: NodeId) {
        match &mut self.role {
            Role::Follower(follower) if follower.link == Some(link) => {
                *follower = Follower::default();
                self.pool.read_soon();
                self.seek_owner();
            }
            Role::Follower(_) => {}
            Role::Master(master) => {
                master.waiting.retain(|_, (over, _)| *over != link);
                let gone = master.followers.get(&peer).is_some_and(|follower| follower.link == link);
                if gone {
                    master.followers.remove(&peer);
                    master.deserted = self.now;
                    self.pool.lost.insert(peer);
                    self.pool.read_soon();
                }
                if !self.links.values().any(|link| link.peer == peer)
                    && let Role::Master(master) = &mut self.role
                {
                    master.expected.remove(&peer);
                    let fetching = matches!(&master.stage, Reign::Fetching { from, .. } if *from == peer);
                    if fetching {
                        self.adopt_best();
                    }
                }
                self.advance();
            }
        }
    }

    // ---- the follower's side ------------------------------------------------------------------------------------

    /// Asks the owner to be let in.
    pub(super) fn join(&mut self, link: LinkId) {
        self.joins += 1;
        let attempt = self.joins;
        let join = Join {
            attempt,
            base: self.log.base(),
            last: self.log.last(),
            last_term: self.log.last_term(),
            lineage: self.log.lineage().clone(),
        };
        let Role::Follower(follower) = &mut self.role else { return };
        *follower =
            Follower { link: Some(link), stage: Stage::Asked, attempt, asked: Some(self.now), ..Follower::default() };
        self.send(link, Body::Join(join));
    }

    /// Whether a join over this link would not disturb another: there is none yet, or it was unheard on this link.
    pub(super) fn may_join(&self, link: LinkId) -> bool {
        matches!(&self.role, Role::Follower(follower)
            if follower.stage < Stage::Welcomed && follower.link.is_none_or(|over| over == link))
    }

    /// Whether a frame comes from the master over the link of this follower's last join.
    fn is_upstream(&self, link: LinkId, at_least: Stage) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.link == Some(link) && follower.stage >= at_least)
    }

    pub(super) fn handle_welcome(&mut self, link: LinkId, attempt: u64, agreed: Seq, snapshot: Option<Snapshot>) {
        let Role::Follower(follower) = &mut self.role else { return };
        if follower.link != Some(link) || follower.attempt != attempt || follower.stage != Stage::Asked {
            return;
        }
        follower.stage = Stage::Welcomed;
        if let Some(snapshot) = snapshot {
            self.begin_anew(agreed, snapshot);
        } else if agreed < self.log.base() || agreed > self.log.last() {
            // Not an answer to what was asked.
            return self.hang_up(link);
        } else {
            self.cut(agreed);
        }
        // What the master has, two nodes hold.
        self.deliver_to(self.log.last());
        self.send(link, Body::Ack { seq: self.log.last() });
        let returned: Vec<Proposal> = self.outbox.returned().cloned().collect();
        self.propose(link, returned);
    }

    pub(super) fn handle_append(&mut self, link: LinkId, spans: &[Span], entries: Vec<Entry>, held: Seq) {
        if !self.is_upstream(link, Stage::Welcomed) {
            return;
        }
        if !self.extend(spans, entries) {
            return self.hang_up(link);
        }
        self.deliver_to(self.log.last());
        self.trim(held);
    }

    pub(super) fn handle_joined(&mut self, link: LinkId) {
        if !self.is_upstream(link, Stage::Welcomed) {
            return;
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.stage = Stage::Joined;
        }
        self.ready = self.draining.is_none();
    }

    fn propose(&mut self, link: LinkId, proposals: Vec<Proposal>) {
        let mut batch = Vec::new();
        let mut size = 0;
        for proposal in proposals {
            size += proposal.size();
            batch.push(proposal);
            if size >= BATCH {
                size = 0;
                self.send(link, Body::Propose(std::mem::take(&mut batch)));
            }
        }
        if !batch.is_empty() {
            self.send(link, Body::Propose(batch));
        }
    }

    /// Passes on what gathered while the last outputs were carried out: the more there was, the fewer frames.
    pub(super) fn flush(&mut self) {
        match &mut self.role {
            Role::Follower(Follower { link: Some(link), stage, proposed, acked, .. }) if *stage >= Stage::Welcomed => {
                let link = *link;
                let last = self.log.last();
                let owed = std::mem::replace(acked, last) < last;
                let proposals: Vec<Proposal> = self.outbox.pending_after(*proposed).cloned().collect();
                if let Some(proposal) = proposals.last() {
                    *proposed = proposal.ticket.counter;
                }
                if owed {
                    self.send(link, Body::Ack { seq: last });
                }
                self.propose(link, proposals);
            }
            Role::Master(master) if master.is_serving() => {
                let proposed = master.proposed;
                let proposals: Vec<Proposal> = self.outbox.pending_after(proposed).cloned().collect();
                if let Some(proposal) = proposals.last() {
                    master.proposed = proposal.ticket.counter;
                    self.sequence(proposals);
                }
                self.pump_all();
            }
            _ => {}
        }
    }

    // ---- the log, on either side --------------------------------------------------------------------------------

    /// Appends entries that follow the last one; `false` where they do not.
    fn extend(&mut self, spans: &[Span], entries: Vec<Entry>) -> bool {
        for entry in entries {
            let owner = spans.iter().find(|span| span.term == entry.term).map(|span| span.owner);
            let owner = owner.or_else(|| self.log.lineage().spans().last().map(|span| span.owner));
            let follows = entry.seq == self.log.last() + 1 && entry.term >= self.log.last_term();
            let (Some(owner), true) = (owner, follows) else { return false };
            self.log.append(self.now, entry, owner);
        }
        true
    }

    /// Cuts what the master never saw, to propose it anew.
    fn cut(&mut self, agreed: Seq) {
        let cut = self.log.truncate(agreed);
        self.give_back(cut);
    }

    /// Drops the log for the master's. What lies after `agreed` the master never saw.
    fn begin_anew(&mut self, agreed: Seq, snapshot: Snapshot) {
        let base = snapshot.base;
        let fresh = self.log.last() == 0;
        let settled = snapshot.marks.clone();
        let held = self.log.restart(self.now, snapshot);
        self.give_back(held.into_iter().filter(|entry| entry.seq > agreed).collect());
        self.delivered = base;
        if !fresh {
            self.outputs.push_back(Output::Reset);
        }
        // What was sequenced before the base will not be seen in order any more.
        let known: Vec<_> = self.outbox.tickets().collect();
        for ticket in known {
            if settled.iter().any(|mark| mark.origin == ticket.origin && mark.counter >= ticket.counter) {
                self.settle(ticket);
            }
        }
    }

    fn give_back(&mut self, cut: Vec<Entry>) {
        if let Some(first) = cut.first() {
            self.delivered = self.delivered.min(first.seq - 1);
        }
        // An entry without content stands for one that had the same key: there is nothing to propose, but whoever
        // waits for it must still learn of it.
        self.outbox.give_back(cut.into_iter().map(|entry| entry.proposal));
    }

    /// Delivers all up to `seq`, in order.
    fn deliver_to(&mut self, seq: Seq) {
        while self.delivered < seq {
            let Some(entry) = self.log.at(self.delivered + 1).cloned() else { break };
            self.delivered += 1;
            let ticket = entry.proposal.ticket;
            // Of one origin nothing new comes after what it published later.
            let repeated = self.handed.covers(ticket);
            self.handed.raise(ticket, self.now);
            self.outputs.push_back(Output::Deliver { entry, repeated });
            self.settle(ticket);
        }
    }

    fn settle(&mut self, ticket: super::Ticket) {
        if self.outbox.settle(ticket) {
            self.outputs.push_back(Output::Accepted { counter: ticket.counter });
        }
    }

    /// Trims what the limits want gone, as far as all members hold it.
    fn trim(&mut self, held: Seq) {
        let surplus = self.log.surplus(self.now).min(held).min(self.delivered);
        self.log.trim(self.now, surplus);
        self.handed.forget(self.now, self.log.memory());
    }

    // ---- the master's side --------------------------------------------------------------------------------------

    /// Gathers the logs of the members of the last term.
    pub(super) fn collect(&mut self) {
        let Role::Master(Master { stage: Reign::Collecting { missing, .. }, .. }) = &self.role else { return };
        missing.clone().into_iter().for_each(|node| self.dial(node));
        self.tick_reign();
    }

    /// Looks whether the collection is over.
    pub(super) fn tick_reign(&mut self) {
        let now = self.now;
        let Role::Master(master) = &mut self.role else { return };
        match &master.stage {
            Reign::Collecting { missing, until }
                if missing.iter().all(|node| master.waiting.contains_key(node)) || now >= *until =>
            {
                self.adopt_best();
            }
            Reign::Fetching { from, until } if now >= *until => {
                // It answered once and no more: its log stays out, and it joins when it can.
                if let Some((link, _)) = master.waiting.remove(&from.clone()) {
                    self.hang_up(link);
                }
                self.adopt_best();
            }
            _ => {}
        }
    }

    /// Fetches the best of the collected logs, or opens the term where that is this node's own.
    fn adopt_best(&mut self) {
        let (mine, lineage) = ((self.log.last_term(), self.log.last()), self.log.lineage().clone());
        let until = self.now + self.config.collect_timeout;
        let Role::Master(master) = &mut self.role else { return };
        let best = master.waiting.iter().max_by_key(|(_, (_, join))| (join.last_term, join.last));
        match best {
            Some((&from, (link, join))) if (join.last_term, join.last) > mine => {
                let (link, after) = (*link, lineage.agreement(mine.1, &join.lineage, join.last));
                master.stage = Reign::Fetching { from, until };
                self.send(link, Body::Fetch { after });
            }
            _ => self.open_term(),
        }
    }

    /// A new master wants this node's log after a place: in pieces, from its base if it no longer reaches that far.
    pub(super) fn handle_fetch(&mut self, link: LinkId, peer: NodeId, after: Seq) {
        if self.owner != Some(peer) && self.owner.is_some() {
            return;
        }
        let mut snapshot = (after < self.log.base()).then(|| self.log.snapshot());
        let mut after = after.max(self.log.base());
        loop {
            let (spans, entries, _) = self.batch(after, usize::MAX);
            after = entries.last().map_or(after, |entry| entry.seq);
            let done = after >= self.log.last();
            self.send(link, Body::Tail { snapshot: snapshot.take(), spans, entries, done });
            if done {
                break;
            }
        }
    }

    pub(super) fn handle_tail(
        &mut self,
        peer: NodeId,
        snapshot: Option<Snapshot>,
        spans: &[Span],
        entries: Vec<Entry>,
        done: bool,
    ) {
        let until = self.now + self.config.collect_timeout;
        let Role::Master(master) = &mut self.role else { return };
        match &mut master.stage {
            Reign::Fetching { from, until: end } if *from == peer => *end = until,
            _ => return,
        }
        let Some((link, join)) = master.waiting.get(&peer) else { return };
        let (link, lineage, last) = (*link, join.lineage.clone(), join.last);
        let agreed = self.log.lineage().agreement(self.log.last(), &lineage, last);
        match snapshot {
            Some(snapshot) => self.begin_anew(agreed, snapshot),
            // The first piece begins where the logs part; the others follow it.
            None if entries.first().is_some_and(|entry| entry.seq <= self.log.last()) => {
                if agreed < self.log.base() {
                    return self.hang_up(link);
                }
                self.cut(agreed);
            }
            None => {}
        }
        if !self.extend(spans, entries) {
            return self.hang_up(link);
        }
        if done {
            self.adopt_best();
        }
    }

    /// Serves: lets in who waits, and gives their places to what this node has waiting itself.
    fn open_term(&mut self) {
        let Role::Master(master) = &mut self.role else { return };
        master.stage = Reign::Serving;
        let waiting = std::mem::take(&mut master.waiting);
        master.expected.retain(|node| waiting.contains_key(node));
        self.ready = self.draining.is_none();
        for (peer, (link, join)) in waiting {
            self.welcome(link, peer, &join);
        }
        // Returned ones first; the pending follow with the next flush.
        let returned: Vec<Proposal> = self.outbox.returned().cloned().collect();
        self.sequence(returned);
    }

    pub(super) fn handle_join(&mut self, link: LinkId, peer: NodeId, join: Join) {
        let Role::Master(master) = &mut self.role else { return };
        match master.stage {
            Reign::Serving => self.welcome(link, peer, &join),
            Reign::HandedOver => self.send_standing(link),
            Reign::Collecting { .. } | Reign::Fetching { .. } => {
                master.waiting.insert(peer, (link, join));
                self.tick_reign();
            }
        }
    }

    fn welcome(&mut self, link: LinkId, peer: NodeId, join: &Join) {
        let last = self.log.last();
        let agreed = self.log.lineage().agreement(last, &join.lineage, join.last);
        let anew = agreed < self.log.base() || agreed < join.base;
        let snapshot = anew.then(|| self.log.snapshot());
        let begin = if anew { self.log.base() } else { agreed };
        let Role::Master(master) = &mut self.role else { return };
        let progress =
            Progress { link, sent: begin, acked: 0, flight: VecDeque::new(), goal: last, joined: false, held: 0 };
        if master.followers.insert(peer, progress).is_some_and(|before| before.joined) {
            // Until a later view shows nobody, it counts as alive: it was a member a moment ago.
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
        if !follower.joined && seq >= follower.goal {
            follower.joined = true;
            follower.goal = last;
            master.expected.remove(&peer);
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
            // Sent again to whoever lets its sender in.
            _ => {}
        }
    }

    /// Gives each proposal its place, unless the log has it.
    fn sequence(&mut self, proposals: Vec<Proposal>) {
        // A master that leaves gives no more places: its successor does.
        if self.draining.is_some() {
            return;
        }
        for mut proposal in proposals {
            if self.log.knows(proposal.ticket) {
                continue;
            }
            if proposal.key.as_ref().is_some_and(|key| self.log.knows_key(key)) {
                proposal.content = None;
            }
            let entry = Entry { term: self.term, seq: self.log.last() + 1, proposal };
            self.log.append(self.now, entry, self.me);
        }
        self.advance();
    }

    /// The entries after `seq` that make one frame, the spans they need and their size.
    fn batch(&self, seq: Seq, room: usize) -> (Vec<Span>, Vec<Entry>, usize) {
        let mut size = 0;
        let entries: Vec<Entry> = self
            .log
            .after(seq)
            .take_while(|entry| {
                let fits = size == 0 || size + entry.proposal.size() <= BATCH.min(room);
                size += if fits { entry.proposal.size() } else { 0 };
                fits
            })
            .cloned()
            .collect();
        let terms: BTreeSet<Term> = entries.iter().map(|entry| entry.term).collect();
        let spans = self.log.lineage().spans().iter().filter(|span| terms.contains(&span.term)).copied().collect();
        (spans, entries, size)
    }

    /// Sends a follower what it lacks, as far as the window allows.
    fn pump(&mut self, peer: NodeId) {
        let (base, last) = (self.log.base(), self.log.last());
        loop {
            let held = self.held();
            let Role::Master(master) = &self.role else { return };
            let Some(follower) = master.followers.get(&peer) else { return };
            let in_flight: usize = follower.flight.iter().map(|(_, size)| size).sum();
            let (link, sent) = (follower.link, follower.sent);
            if sent < base {
                // It fell behind the ring.
                return self.hang_up(link);
            }
            if sent >= last || in_flight >= WINDOW {
                return;
            }
            let (spans, entries, size) = self.batch(sent, WINDOW - in_flight);
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

    fn pump_all(&mut self) {
        let Role::Master(master) = &self.role else { return };
        let peers: Vec<NodeId> = master.followers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.pump(peer));
    }

    /// Up to where all members hold the log.
    fn held(&self) -> Seq {
        let Role::Master(master) = &self.role else { return self.delivered };
        let members = master.followers.values().filter(|follower| follower.joined);
        members.map(|follower| follower.acked).min().unwrap_or(self.log.last()).min(self.delivered)
    }

    /// Whether nobody else could hold anything: then one holder is all that can be had.
    pub(super) fn is_alone(&self, master: &Master) -> bool {
        let bereft = master.followers.values().all(|follower| !follower.joined) && master.expected.is_empty();
        bereft
            && ((self.shown_alone() && self.pool.viewed_after(master.deserted))
                || self.pool.failed_since(master.deserted))
    }

    /// Delivers and accepts, on the master, what enough nodes hold.
    pub(super) fn advance(&mut self) {
        let Role::Master(master) = &self.role else { return };
        if !(master.is_serving() || master.is_handed_over()) {
            return;
        }
        let members = master.followers.values().filter(|follower| follower.joined);
        let held = members.map(|follower| follower.acked).max().unwrap_or(0);
        let last = self.log.last();
        let alone = held < last && self.is_alone(master);
        if !alone && held < last && master.followers.is_empty() && self.delivered < last {
            self.pool.read_soon();
        }
        self.deliver_to(if alone { last } else { held });
    }

    /// What no event announces: repeated joins, the end of a collection, trimming, the mark of what all hold.
    pub(super) fn tick_relay(&mut self) {
        let now = self.now;
        match &self.role {
            Role::Follower(Follower { link: Some(link), stage: Stage::Asked, asked: Some(asked), .. })
                if now.saturating_duration_since(*asked) >= self.config.collect_timeout =>
            {
                self.join(*link);
            }
            Role::Follower(_) => {}
            Role::Master(_) => {
                self.tick_reign();
                self.advance();
                self.keep_ring();
            }
        }
        self.leave_idle_links();
    }

    /// Trims the master's log; a member that holds it back is let go.
    fn keep_ring(&mut self) {
        let surplus = self.log.surplus(self.now);
        let held = self.held();
        let Role::Master(master) = &mut self.role else { return };
        let behind = |follower: &&Progress| follower.joined && follower.acked < surplus;
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

    /// Ends links that this node made and that serve nothing any more.
    fn leave_idle_links(&mut self) {
        let Role::Follower(follower) = &self.role else { return };
        if !follower.is_joined() {
            return;
        }
        let idle = self.links.iter().filter(|(id, link)| link.dialled && Some(**id) != follower.link);
        let idle: Vec<LinkId> = idle.map(|(&id, _)| id).collect();
        idle.into_iter().for_each(|link| self.hang_up(link));
    }
}
