//! The invariants, asserted at every step of every run, and what must be true when all has healed. A step costs what
//! it changed: of a log that only grew, the new end is looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    fmt,
    time::Duration,
};

use bytes::Bytes;

use super::story::{Name, Publish};
use crate::{
    cluster::{Core, NodeId, Proposal, Seq, Term, Ticket},
    config::LogConfig,
};

/// The master that wrote it is part of a place: tables that were emptied let a term be used twice.
type Place = (Term, NodeId, Seq);

struct At(Place);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (term, owner, seq) = self.0;
        write!(f, "place {seq} of {}'s term {term}", Name(owner))
    }
}

/// What was written at a place.
struct Written {
    ticket: Ticket,
    before: Option<Place>,
    key: Option<Bytes>,
    /// Whether it has content: of several publishes with one key one has.
    whole: bool,
    /// When a node had it first.
    at: Duration,
}

/// What a log says of its publishers and keys, up to its end.
#[derive(Default)]
struct Summary {
    /// The last publish of each.
    last: HashMap<NodeId, u64>,
    /// Where each key came with content last.
    keys: HashMap<Bytes, Place>,
}

/// What was seen of one node.
#[derive(Default)]
struct Seen {
    term: Term,
    /// How far its log was looked at, and how often it had been rewritten then.
    end: Seq,
    rewrites: u64,
    log: Summary,
    base: Seq,
    stream: Stream,
    /// What it delivered and has not trimmed.
    ring: BTreeMap<Seq, Ticket>,
}

/// What one node handed to its clients.
#[derive(Default)]
struct Stream {
    last: Seq,
    counters: BTreeMap<NodeId, u64>,
    tickets: HashSet<Ticket>,
    /// Who published with a key, and when that got its place.
    keys: HashMap<Bytes, (Ticket, Duration)>,
    restarted: bool,
    gaps: bool,
}

#[derive(Default)]
pub(super) struct Checks {
    /// The time of the step that is looked at.
    pub(super) now: Duration,
    /// For how long what was accepted has to be somewhere, with room for clocks that run apart.
    age: Duration,
    /// For how long a key is surely remembered, whatever the clocks do.
    memory: Duration,
    owners: BTreeMap<Term, NodeId>,
    emptied: bool,
    seen: BTreeMap<NodeId, Seen>,
    /// Every place that was ever written.
    places: HashMap<Place, Written>,
    /// Who held an entry first, and whether another did later.
    holders: HashMap<Ticket, (NodeId, bool)>,
    trimmed: HashSet<Ticket>,
    accepted: BTreeMap<Ticket, Duration>,
    /// Accepted, and all who held it crashed.
    pub(super) extinct: BTreeSet<Ticket>,
    pub(super) deliveries: u64,
}

impl Checks {
    /// For logs of these limits.
    pub(super) fn new(limits: &LogConfig) -> Self {
        Self { memory: limits.age * 2 * 8 / 10, age: limits.age * 8 / 10, ..Self::default() }
    }

    /// After each step of a node.
    pub(super) fn step(&mut self, core: &Core) -> Result<(), String> {
        let me = core.id();
        let term = core.term();
        let seen = self.seen.entry(me).or_default();
        if seen.term > term {
            return Err(format!("the term of {} fell to {term}", Name(me)));
        }
        seen.term = term;
        if core.reigns() && !self.emptied && *self.owners.entry(term).or_insert(me) != me {
            return Err(format!("term {term} has two owners: {} and {}", Name(self.owners[&term]), Name(me)));
        }
        self.note_trimmed(core);
        let base = core.place_of_base();
        let seen = self.seen.entry(me).or_default();
        let (end, rewrites) = (core.end().1, core.rewrites());
        if (seen.end, seen.rewrites) == (end, rewrites) {
            return Ok(());
        }
        let grown = seen.rewrites == rewrites;
        let looked = if grown { seen.end.max(base) } else { base };
        (seen.end, seen.rewrites) = (end, rewrites);
        let mut log = std::mem::take(&mut seen.log);
        if !grown {
            log = self.summary(core.place(base));
        }
        self.look_at_log(core, looked, &mut log)?;
        self.seen.entry(me).or_default().log = log;
        Ok(())
    }

    /// What all members of a log held may be trimmed, and need not be in the log of those who come after them.
    fn note_trimmed(&mut self, core: &Core) {
        let seen = self.seen.entry(core.id()).or_default();
        let base = core.place_of_base();
        if seen.base != base {
            seen.base = base;
            let kept = seen.ring.split_off(&(base + 1));
            self.trimmed.extend(std::mem::replace(&mut seen.ring, kept).into_values());
        }
    }

    /// What the log that ends with this place says, as far back as anything is known of it.
    fn summary(&self, end: Option<Place>) -> Summary {
        let mut summary = Summary::default();
        let mut place = end;
        while let Some((at, written)) = place.and_then(|at| Some((at, self.places.get(&at)?))) {
            summary.last.entry(written.ticket.origin).or_insert(written.ticket.counter);
            if let Some(key) = written.key.as_ref().filter(|_| written.whole) {
                summary.keys.entry(key.clone()).or_insert(at);
            }
            place = written.before;
        }
        summary
    }

    /// A master that the pool shows to be alone is not followed by another while it thinks so.
    pub(super) fn reigns_alone<'a>(
        &self,
        core: &Core,
        mut others: impl Iterator<Item = &'a Core>,
    ) -> Result<(), String> {
        if self.emptied || !core.reigns() {
            return Ok(());
        }
        // Of the core that has just moved only: another's belief is as old as its own clock.
        let rival = others.find(|other| other.term() > core.term() && other.reigns());
        let rival = rival.filter(|_| core.accepts_alone());
        rival.map_or(Ok(()), |rival| {
            Err(format!("{} and {} both reign, one of them alone", Name(core.id()), Name(rival.id())))
        })
    }

    /// Which publish stands at a place, and the place before it.
    pub(super) fn at(&self, place: Place) -> Option<(Ticket, Option<Place>)> {
        self.places.get(&place).map(|written| (written.ticket, written.before))
    }

    pub(super) fn accepted_so_far(&self) -> usize {
        self.accepted.len()
    }

    /// Same place, same log before it; what each published is in its order, once, and what has a key comes once: all of
    /// the entries after `looked`, since those before have not changed.
    fn look_at_log(&mut self, core: &Core, looked: Seq, log: &mut Summary) -> Result<(), String> {
        let mut before = core.place(looked);
        for entry in core.entries_after(looked) {
            let (place, ticket) = (core.place(entry.seq), entry.proposal.ticket);
            self.holds(core.id(), place, &entry.proposal, before)?;
            if let Some(last) = log.last.insert(ticket.origin, ticket.counter).filter(|last| *last >= ticket.counter) {
                let (node, ticket) = (Name(core.id()), Publish(ticket));
                return Err(format!("{node} has {ticket} at {}, behind {last} of the same publisher", entry.seq));
            }
            if let (Some(place), Some(key), true) = (place, &entry.proposal.key, entry.proposal.content.is_some())
                && let Some(other) = log.keys.insert(key.clone(), place)
                && self.places[&place].at.saturating_sub(self.places[&other].at) < self.memory
            {
                let (one, other) = (Publish(self.places[&other].ticket), Publish(ticket));
                return Err(format!("{} has {one} and {other}, which have one key", Name(core.id())));
            }
            before = place;
        }
        Ok(())
    }

    /// A node has an entry at a place, behind another.
    fn holds(
        &mut self,
        node: NodeId,
        place: Option<Place>,
        proposal: &Proposal,
        before: Option<Place>,
    ) -> Result<(), String> {
        let Proposal { ticket, ref key, ref content, .. } = *proposal;
        match self.holders.entry(ticket) {
            hash_map::Entry::Vacant(vacant) => _ = vacant.insert((node, false)),
            hash_map::Entry::Occupied(mut known) => known.get_mut().1 |= known.get().0 != node,
        }
        let Some(place) = place else { return Ok(()) };
        let whole = content.is_some();
        let written = self.places.entry(place);
        let written = written.or_insert_with(|| Written { ticket, before, key: key.clone(), whole, at: self.now });
        if (written.ticket, written.whole) != (ticket, whole) {
            let (known, other) = (Publish(written.ticket), Publish(ticket));
            return Err(format!("{} is {known} and, on {}, {other}", At(place), Name(node)));
        }
        if let (Some(known), Some(other)) = (written.before, before)
            && known != other
        {
            return Err(format!("{} follows {} and, on {}, {}", At(place), At(known), Name(node), At(other)));
        }
        written.before = written.before.or(before);
        Ok(())
    }

    pub(super) fn delivered(
        &mut self,
        core: &Core,
        seq: Seq,
        proposal: &Proposal,
        repeated: Option<Ticket>,
    ) -> Result<(), String> {
        self.deliveries += 1;
        let (node, ticket) = (core.id(), proposal.ticket);
        // Every place is delivered somewhere, if only for a moment: that makes the history whole.
        self.holds(node, core.place(seq), proposal, core.place(seq - 1))?;
        if !self.holders[&ticket].1 && !core.is_shown_alone() {
            return Err(format!("{} delivers {}, which nobody else holds", Name(node), Publish(ticket)));
        }
        let seen = self.seen.entry(node).or_default();
        seen.ring.insert(seq, ticket);
        let stream = &mut seen.stream;
        let fresh = stream.tickets.insert(ticket);
        let key = proposal.key.as_ref().filter(|_| proposal.content.is_some());
        let key_seen = key.is_some_and(|key| stream.keys.contains_key(key));
        // After a reset some that were never seen are taken for seen: they lie in the gap.
        if repeated.is_none() && !fresh || repeated.is_some() && fresh && !key_seen && !stream.gaps {
            let word = if fresh { "as if its clients had it" } else { "as if it were new" };
            return Err(format!("{} delivers {} {word}", Name(node), Publish(ticket)));
        }
        if seq > stream.last + 1 && !stream.restarted && stream.last > 0 {
            return Err(format!("{} delivers {} after {} without a reset", Name(node), seq, stream.last));
        }
        stream.last = seq;
        stream.restarted = false;
        let counter = stream.counters.get(&ticket.origin).copied();
        if let Some(counter) = counter.filter(|counter| repeated.is_none() && ticket.counter <= *counter) {
            let (name, ticket) = (Name(node), Publish(ticket));
            return Err(format!("{name} delivers {ticket} after {counter} of the same publisher"));
        }
        stream.counters.insert(ticket.origin, ticket.counter.max(counter.unwrap_or(0)));
        // A key is remembered from when its publish got its place, however late that came here.
        let written = core.place(seq).and_then(|at| self.places.get(&at)).map_or(self.now, |written| written.at);
        if let Some(key) = key.filter(|_| repeated.is_none())
            && let Some((other, at)) = stream.keys.insert(key.clone(), (ticket, written))
            && written.saturating_sub(at) < self.memory
        {
            let (one, other) = (Publish(other), Publish(ticket));
            return Err(format!("{} delivers {one} and {other}, which have one key", Name(node)));
        }
        Ok(())
    }

    /// From here on terms may be used again.
    pub(super) fn tables_emptied(&mut self) {
        self.emptied = true;
    }

    pub(super) fn reset(&mut self, node: NodeId) {
        let stream = &mut self.seen.entry(node).or_default().stream;
        (stream.restarted, stream.gaps) = (true, true);
    }

    pub(super) fn accepted(&mut self, core: &Core, counter: u64) -> Result<(), String> {
        let ticket = Ticket { origin: core.id(), counter };
        self.accepted.insert(ticket, self.now);
        let elsewhere = |&(first, more): &(NodeId, bool)| more || first != core.id();
        if !self.holders.get(&ticket).is_some_and(elsewhere) && !core.is_shown_alone() {
            return Err(format!("{} is accepted, and nobody else holds it", Publish(ticket)));
        }
        Ok(())
    }

    /// A node is gone: what only it held is lost, and may be.
    pub(super) fn crashed<'a>(&mut self, core: &Core, others: impl Iterator<Item = &'a Core> + Clone) {
        // Marks are forgotten in the end, but only of what was trimmed, in its last step perhaps.
        self.note_trimmed(core);
        let lost = self.accepted.keys().filter(|ticket| core.has(**ticket) && !self.trimmed.contains(*ticket));
        self.extinct.extend(lost.filter(|ticket| !others.clone().any(|other| other.has(**ticket))));
    }

    /// All has healed and settled: every node has the same log, and all that was accepted is in it.
    pub(super) fn settled<'a>(&self, cores: impl Iterator<Item = &'a Core> + Clone) -> Result<(), String> {
        let Some(master) = cores.clone().find(|core| core.reigns()) else { return Err("no master".into()) };
        for core in cores {
            let status = core.status();
            let follows = (status.term, status.master) == (master.term(), Some(master.id()));
            if !follows || core.end() != master.end() || !status.ready || !core.has_nothing_waiting() {
                return Err(format!("{} has not settled", Name(core.id())));
            }
        }
        let mut history = HashSet::new();
        let (mut keys, mut whole) = (HashMap::new(), HashSet::new());
        let mut place = master.place(master.end().1);
        while let Some(written) = place.and_then(|at| self.places.get(&at)) {
            history.insert(written.ticket);
            if let Some(key) = &written.key {
                keys.insert(key, written.ticket);
                whole.extend(written.whole.then_some(key));
            }
            place = written.before;
        }
        let gone = |ticket: &&Ticket| self.extinct.contains(ticket) || self.trimmed.contains(ticket);
        let came = |key: &Bytes| {
            let gone = |written: &Written| written.whole && written.key.as_ref() == Some(key) && gone(&&written.ticket);
            whole.contains(key) || self.places.values().any(gone)
        };
        if let Some((_, ticket)) = keys.iter().find(|(key, _)| !came(key)) {
            return Err(format!("what has the key of {} came nowhere with content", Publish(*ticket)));
        }
        // What is older than the log's age is not proposed anew by a node that was apart for so long.
        let young = |at: Duration| self.now - at < self.age;
        let missing = self.accepted.iter().filter(|(_, at)| young(**at)).map(|(ticket, _)| ticket);
        let missing = missing.filter(|ticket| !history.contains(ticket)).find(|ticket| !gone(ticket));
        missing.map_or(Ok(()), |ticket| Err(format!("{} was accepted and is lost", Publish(*ticket))))
    }
}
