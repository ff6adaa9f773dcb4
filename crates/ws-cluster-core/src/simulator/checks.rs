//! The invariants, asserted at every step of every run, and what must be true after all faults have healed. A step
//! checks only what it has changed: of a log that only grew, only the new entries.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    fmt,
    time::Duration,
};

use bytes::Bytes;

use super::story::{Name, PublishName};
use crate::{Core, Lease, LogConfig, NodeId, Proposal, PublishId, Seq, Term};

/// A position includes the master that wrote the entry, because a term can be used twice after tables have lost rows.
type LogPosition = (Term, NodeId, Seq);

struct At(LogPosition);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (term, master, seq) = self.0;
        write!(f, "place {seq} of {}'s term {term}", Name(master))
    }
}

/// The entry at a position.
struct Written {
    id: PublishId,
    before: Option<LogPosition>,
    key: Option<Bytes>,
    /// True if it has content. Of several publishes with one key, only one has content.
    whole: bool,
    /// When the first node had it.
    at: Duration,
}

/// The publishers and keys of a log, up to its end.
#[derive(Default)]
struct Summary {
    /// The last publish counter of each publisher.
    last: HashMap<NodeId, u64>,
    /// The last position of each key with content.
    keys: HashMap<Bytes, LogPosition>,
}

/// What the checks know of one node.
#[derive(Default)]
struct Seen {
    term: Term,
    /// The last entry that was checked, and how often the log had been rewritten then.
    end: Seq,
    rewrites: u64,
    log: Summary,
    base: Seq,
    stream: Stream,
    /// The entries that it delivered and has not trimmed.
    ring: BTreeMap<Seq, PublishId>,
}

/// What one node has delivered to its clients.
#[derive(Default)]
struct Stream {
    last: Seq,
    counters: BTreeMap<NodeId, u64>,
    publishes: HashSet<PublishId>,
    /// The publish with each key, and when it got its position.
    keys: HashMap<Bytes, (PublishId, Duration)>,
    restarted: bool,
    gaps: bool,
}

/// The invariants, and the history of a simulation that they need.
#[derive(Default)]
pub struct Checks {
    /// The time of the present step.
    pub(super) now: Duration,
    /// How long an accepted publish must be in some log, minus the difference of the clocks.
    age: Duration,
    /// How long a key is recognised at least, minus the difference of the clocks.
    memory: Duration,
    masters: BTreeMap<Term, NodeId>,
    /// True if the database has lost writes.
    rows_lost: bool,
    /// Every lease that was written.
    leases: HashSet<(Term, Option<NodeId>, u64)>,
    seen: BTreeMap<NodeId, Seen>,
    /// Every position that was ever written.
    places: HashMap<LogPosition, Written>,
    /// The first node that held an entry, and true if another node held it later.
    holders: HashMap<PublishId, (NodeId, bool)>,
    trimmed: HashSet<PublishId>,
    accepted: BTreeMap<PublishId, Duration>,
    /// Accepted publishes of which every holder has crashed.
    pub(super) extinct: BTreeSet<PublishId>,
    pub(super) deliveries: u64,
}

impl Checks {
    /// Makes the checks for logs with these limits.
    pub(super) fn new(limits: &LogConfig) -> Self {
        Self { memory: limits.age * 2 * 8 / 10, age: limits.age * 8 / 10, ..Self::default() }
    }

    /// Checks a node after each of its steps.
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

    /// Notes trimmed entries. All members held them, so a later log need not have them.
    fn note_trimmed(&mut self, core: &Core) {
        let seen = self.seen.entry(core.id()).or_default();
        let base = core.place_of_base();
        if seen.base != base {
            seen.base = base;
            let kept = seen.ring.split_off(&(base + 1));
            self.trimmed.extend(std::mem::replace(&mut seen.ring, kept).into_values());
        }
    }

    /// Returns the summary of the log that ends at this position.
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

    /// Checks that no other master serves a higher term while this one is provably alone.
    pub(super) fn rules_out_rivals<'a>(
        &self,
        core: &Core,
        mut others: impl Iterator<Item = &'a Core>,
    ) -> Result<(), String> {
        if self.rows_lost || !core.is_serving_master() {
            return Ok(());
        }
        // Only the core of this step is checked, because the clocks of the other cores are behind.
        let rival = others.find(|other| other.term() > core.term() && other.is_serving_master());
        let rival = rival.filter(|_| core.accepts_alone());
        rival.map_or(Ok(()), |rival| {
            Err(format!("{} and {} are both masters, one of them alone", Name(core.id()), Name(rival.id())))
        })
    }

    /// Returns the publish at a position, and the position before it.
    pub fn at(&self, place: LogPosition) -> Option<(PublishId, Option<LogPosition>)> {
        self.places.get(&place).map(|written| (written.id, written.before))
    }

    pub(super) fn accepted_so_far(&self) -> usize {
        self.accepted.len()
    }

    /// Checks the entries after `looked`: logs with the same entry are equal before it, the publishes of each node are
    /// in their order and occur once, and each key occurs once.
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

    /// Notes that a node has an entry at a position, after another position.
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
        // Every position is delivered by some node, so the history has no gaps.
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
        // After a reset, publishes in the gap count as seen although the clients did not get them.
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
        // The time of a key begins when its publish got its position, not when it was delivered here.
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

    /// Checks that no lease is written twice. A node that compares a lease with one that it read before would not
    /// notice the writes between two equal ones.
    pub(super) fn lease_written(&mut self, Lease { term, master, beat }: Lease) -> Result<(), String> {
        if self.leases.insert((term, master, beat)) {
            return Ok(());
        }
        let master = master.map_or("nobody".to_owned(), |master| Name(master).to_string());
        Err(format!("the lease of term {term} of {master} comes to beat {beat} a second time"))
    }

    /// From now on terms may be used again.
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

    /// A node crashed. What only this node held is lost, and that is allowed.
    pub(super) fn crashed<'a>(&mut self, core: &Core, others: impl Iterator<Item = &'a Core> + Clone) {
        // The node may have trimmed entries in its last step.
        self.note_trimmed(core);
        let lost = self.accepted.keys().filter(|publish| core.has(**publish) && !self.trimmed.contains(*publish));
        self.extinct.extend(lost.filter(|publish| !others.clone().any(|other| other.has(**publish))));
    }

    /// Checks the end of a run, after all faults have healed: every node has the same log, and it has every accepted
    /// publish.
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
        // A node that was cut off for longer than the log's age does not propose older publishes again.
        let young = |at: Duration| self.now - at < self.age;
        let missing = self.accepted.iter().filter(|(_, at)| young(**at)).map(|(publish, _)| publish);
        let missing = missing.filter(|publish| !history.contains(publish)).find(|publish| !gone(publish));
        missing.map_or(Ok(()), |publish| Err(format!("{} was accepted and is lost", PublishName(*publish))))
    }
}
