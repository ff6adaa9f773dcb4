//! The invariants, asserted at every step of every run, and what must be true when all has healed. A step costs what
//! it changed: of a log that only grew, the new end is looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    fmt,
    time::Duration,
};

use bytes::Bytes;

use super::story::{Name, PublishName};
use crate::{Core, Lease, LogConfig, NodeId, Proposal, PublishId, Seq, Term};

/// The master that wrote it is part of a place: tables that lost rows let a term be used twice.
type LogPosition = (Term, NodeId, Seq);

struct At(LogPosition);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (term, master, seq) = self.0;
        write!(f, "place {seq} of {}'s term {term}", Name(master))
    }
}

/// What was written at a place.
struct Written {
    id: PublishId,
    before: Option<LogPosition>,
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
    keys: HashMap<Bytes, LogPosition>,
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
    ring: BTreeMap<Seq, PublishId>,
}

/// What one node handed to its clients.
#[derive(Default)]
struct Stream {
    last: Seq,
    counters: BTreeMap<NodeId, u64>,
    publishes: HashSet<PublishId>,
    /// Who published with a key, and when that got its place.
    keys: HashMap<Bytes, (PublishId, Duration)>,
    restarted: bool,
    gaps: bool,
}

/// The invariants, and everything that is known of the history of a simulation.
#[derive(Default)]
pub struct Checks {
    /// The time of the step that is looked at.
    pub(super) now: Duration,
    /// For how long what was accepted has to be somewhere, with room for clocks that run apart.
    age: Duration,
    /// For how long a key is surely remembered, whatever the clocks do.
    memory: Duration,
    masters: BTreeMap<Term, NodeId>,
    /// The database lost writes.
    rows_lost: bool,
    /// Every lease that a write left behind.
    leases: HashSet<(Term, Option<NodeId>, u64)>,
    seen: BTreeMap<NodeId, Seen>,
    /// Every place that was ever written.
    places: HashMap<LogPosition, Written>,
    /// Who held an entry first, and whether another did later.
    holders: HashMap<PublishId, (NodeId, bool)>,
    trimmed: HashSet<PublishId>,
    accepted: BTreeMap<PublishId, Duration>,
    /// Accepted, and all who held it crashed.
    pub(super) extinct: BTreeSet<PublishId>,
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
        if core.is_serving_master() && !self.rows_lost && *self.masters.entry(term).or_insert(me) != me {
            return Err(format!("term {term} has two masters: {} and {}", Name(self.masters[&term]), Name(me)));
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
    fn summary(&self, end: Option<LogPosition>) -> Summary {
        let mut summary = Summary::default();
        let mut place = end;
        while let Some((at, written)) = place.and_then(|at| Some((at, self.places.get(&at)?))) {
            summary.last.entry(written.id.origin).or_insert(written.id.counter);
            if let Some(key) = written.key.as_ref().filter(|_| written.whole) {
                summary.keys.entry(key.clone()).or_insert(at);
            }
            place = written.before;
        }
        summary
    }

    /// A master that the pool shows to be alone is not followed by another while it thinks so.
    pub(super) fn rules_out_rivals<'a>(
        &self,
        core: &Core,
        mut others: impl Iterator<Item = &'a Core>,
    ) -> Result<(), String> {
        if self.rows_lost || !core.is_serving_master() {
            return Ok(());
        }
        // Of the core that has just moved only: another's belief is as old as its own clock.
        let rival = others.find(|other| other.term() > core.term() && other.is_serving_master());
        let rival = rival.filter(|_| core.accepts_alone());
        rival.map_or(Ok(()), |rival| {
            Err(format!("{} and {} both reign, one of them alone", Name(core.id()), Name(rival.id())))
        })
    }

    /// Which publish stands at a place, and the place before it.
    pub fn at(&self, place: LogPosition) -> Option<(PublishId, Option<LogPosition>)> {
        self.places.get(&place).map(|written| (written.id, written.before))
    }

    pub(super) fn accepted_so_far(&self) -> usize {
        self.accepted.len()
    }

    /// Same place, same log before it; what each published is in its order, once, and what has a key comes once: all of
    /// the entries after `looked`, since those before have not changed.
    fn look_at_log(&mut self, core: &Core, looked: Seq, log: &mut Summary) -> Result<(), String> {
        let mut before = core.place(looked);
        for entry in core.entries_after(looked) {
            let (place, publish) = (core.place(entry.seq), entry.proposal.id);
            self.holds(core.id(), place, &entry.proposal, before)?;
            if let Some(last) = log.last.insert(publish.origin, publish.counter).filter(|last| *last >= publish.counter)
            {
                let (node, publish) = (Name(core.id()), PublishName(publish));
                return Err(format!("{node} has {publish} at {}, behind {last} of the same publisher", entry.seq));
            }
            if let (Some(place), Some(key), true) = (place, &entry.proposal.key, entry.proposal.content.is_some())
                && let Some(other) = log.keys.insert(key.clone(), place)
                && self.places[&place].at.saturating_sub(self.places[&other].at) < self.memory
            {
                let (one, other) = (PublishName(self.places[&other].id), PublishName(publish));
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
        place: Option<LogPosition>,
        proposal: &Proposal,
        before: Option<LogPosition>,
    ) -> Result<(), String> {
        let Proposal { id: publish, ref key, ref content, .. } = *proposal;
        match self.holders.entry(publish) {
            hash_map::Entry::Vacant(vacant) => _ = vacant.insert((node, false)),
            hash_map::Entry::Occupied(mut known) => known.get_mut().1 |= known.get().0 != node,
        }
        let Some(place) = place else { return Ok(()) };
        let whole = content.is_some();
        let written = self.places.entry(place);
        let written = written.or_insert_with(|| Written { id: publish, before, key: key.clone(), whole, at: self.now });
        if (written.id, written.whole) != (publish, whole) {
            let (known, other) = (PublishName(written.id), PublishName(publish));
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
        repeated: Option<PublishId>,
    ) -> Result<(), String> {
        self.deliveries += 1;
        let (node, publish) = (core.id(), proposal.id);
        // Every place is delivered somewhere, if only for a moment: that makes the history whole.
        self.holds(node, core.place(seq), proposal, core.place(seq - 1))?;
        if !self.holders[&publish].1 && !core.is_provably_alone_now() {
            return Err(format!("{} delivers {}, which nobody else holds", Name(node), PublishName(publish)));
        }
        let seen = self.seen.entry(node).or_default();
        seen.ring.insert(seq, publish);
        let stream = &mut seen.stream;
        let fresh = stream.publishes.insert(publish);
        let key = proposal.key.as_ref().filter(|_| proposal.content.is_some());
        let key_seen = key.is_some_and(|key| stream.keys.contains_key(key));
        // After a reset some that were never seen are taken for seen: they lie in the gap.
        if repeated.is_none() && !fresh || repeated.is_some() && fresh && !key_seen && !stream.gaps {
            let word = if fresh { "as if its clients had it" } else { "as if it were new" };
            return Err(format!("{} delivers {} {word}", Name(node), PublishName(publish)));
        }
        if seq > stream.last + 1 && !stream.restarted && stream.last > 0 {
            return Err(format!("{} delivers {} after {} without a reset", Name(node), seq, stream.last));
        }
        stream.last = seq;
        stream.restarted = false;
        let counter = stream.counters.get(&publish.origin).copied();
        if let Some(counter) = counter.filter(|counter| repeated.is_none() && publish.counter <= *counter) {
            let (name, publish) = (Name(node), PublishName(publish));
            return Err(format!("{name} delivers {publish} after {counter} of the same publisher"));
        }
        stream.counters.insert(publish.origin, publish.counter.max(counter.unwrap_or(0)));
        // A key is remembered from when its publish got its place, however late that came here.
        let written = core.place(seq).and_then(|at| self.places.get(&at)).map_or(self.now, |written| written.at);
        if let Some(key) = key.filter(|_| repeated.is_none())
            && let Some((other, at)) = stream.keys.insert(key.clone(), (publish, written))
            && written.saturating_sub(at) < self.memory
        {
            let (one, other) = (PublishName(other), PublishName(publish));
            return Err(format!("{} delivers {one} and {other}, which have one key", Name(node)));
        }
        Ok(())
    }

    /// A write of the lease leaves one that there was never before: whoever compares it with what they have read would
    /// not notice the writes in between.
    pub(super) fn lease_written(&mut self, Lease { term, master, beat }: Lease) -> Result<(), String> {
        if self.leases.insert((term, master, beat)) {
            return Ok(());
        }
        let master = master.map_or("nobody".to_owned(), |master| Name(master).to_string());
        Err(format!("the lease of term {term} of {master} comes to beat {beat} a second time"))
    }

    /// From here on terms may be used again.
    pub(super) fn rows_lost(&mut self) {
        self.rows_lost = true;
    }

    pub(super) fn reset(&mut self, node: NodeId) {
        let stream = &mut self.seen.entry(node).or_default().stream;
        (stream.restarted, stream.gaps) = (true, true);
    }

    pub(super) fn accepted(&mut self, core: &Core, counter: u64) -> Result<(), String> {
        let publish = PublishId { origin: core.id(), counter };
        self.accepted.insert(publish, self.now);
        let elsewhere = |&(first, more): &(NodeId, bool)| more || first != core.id();
        if !self.holders.get(&publish).is_some_and(elsewhere) && !core.is_provably_alone_now() {
            return Err(format!("{} is accepted, and nobody else holds it", PublishName(publish)));
        }
        Ok(())
    }

    /// A node is gone: what only it held is lost, and may be.
    pub(super) fn crashed<'a>(&mut self, core: &Core, others: impl Iterator<Item = &'a Core> + Clone) {
        // Marks are forgotten in the end, but only of what was trimmed, in its last step perhaps.
        self.note_trimmed(core);
        let lost = self.accepted.keys().filter(|publish| core.has(**publish) && !self.trimmed.contains(*publish));
        self.extinct.extend(lost.filter(|publish| !others.clone().any(|other| other.has(**publish))));
    }

    /// All has healed and settled: every node has the same log, and all that was accepted is in it.
    pub(super) fn settled<'a>(&self, cores: impl Iterator<Item = &'a Core> + Clone) -> Result<(), String> {
        let Some(master) = cores.clone().find(|core| core.is_serving_master()) else { return Err("no master".into()) };
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
            history.insert(written.id);
            if let Some(key) = &written.key {
                keys.insert(key, written.id);
                whole.extend(written.whole.then_some(key));
            }
            place = written.before;
        }
        let gone = |publish: &&PublishId| self.extinct.contains(publish) || self.trimmed.contains(publish);
        let came = |key: &Bytes| {
            let gone = |written: &Written| written.whole && written.key.as_ref() == Some(key) && gone(&&written.id);
            whole.contains(key) || self.places.values().any(gone)
        };
        if let Some((_, publish)) = keys.iter().find(|(key, _)| !came(key)) {
            return Err(format!("what has the key of {} came nowhere with content", PublishName(*publish)));
        }
        // What is older than the log's age is not proposed anew by a node that was apart for so long.
        let young = |at: Duration| self.now - at < self.age;
        let missing = self.accepted.iter().filter(|(_, at)| young(**at)).map(|(publish, _)| publish);
        let missing = missing.filter(|publish| !history.contains(publish)).find(|publish| !gone(publish));
        missing.map_or(Ok(()), |publish| Err(format!("{} was accepted and is lost", PublishName(*publish))))
    }
}
