//! The invariants, asserted at every step of every run, and what must be true when all has healed. A step costs what
//! it changed: of a log that only grew, the new end is looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    fmt,
};

use super::story::{Name, Publish};
use crate::cluster::{Core, NodeId, Seq, Term, Ticket};

/// The master that wrote it is part of a place: tables that were emptied let a term be used twice.
type Place = (Term, NodeId, Seq);

struct At(Place);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (term, owner, seq) = self.0;
        write!(f, "place {seq} of {}'s term {term}", Name(owner))
    }
}

/// What was seen of one node.
#[derive(Default)]
struct Seen {
    term: Term,
    /// How far its log was looked at, and how often it had been rewritten then.
    end: Seq,
    rewrites: u64,
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
    restarted: bool,
    gaps: bool,
}

#[derive(Default)]
pub(super) struct Checks {
    owners: BTreeMap<Term, NodeId>,
    emptied: bool,
    seen: BTreeMap<NodeId, Seen>,
    /// Every place that was ever written: by whom it was published, and the place before it.
    places: HashMap<Place, (Ticket, Option<Place>)>,
    /// Who held an entry first, and whether another did later.
    holders: HashMap<Ticket, (NodeId, bool)>,
    trimmed: HashSet<Ticket>,
    accepted: BTreeSet<Ticket>,
    /// Accepted, and all who held it crashed.
    pub(super) extinct: BTreeSet<Ticket>,
    pub(super) deliveries: u64,
}

impl Checks {
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
        let base = core.place_of_base();
        if seen.base != base {
            // What all members of a log held may be trimmed, and need not be in the log of those who come after them.
            seen.base = base;
            let kept = seen.ring.split_off(&(base + 1));
            self.trimmed.extend(std::mem::replace(&mut seen.ring, kept).into_values());
        }
        let (end, rewrites) = (core.end().1, core.rewrites());
        if (seen.end, seen.rewrites) == (end, rewrites) {
            return Ok(());
        }
        let looked = if seen.rewrites == rewrites { seen.end.max(base) } else { base };
        (seen.end, seen.rewrites) = (end, rewrites);
        self.look_at_log(core, looked)
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
        let rival = rival.filter(|_| core.believes_itself_shown_alone());
        rival.map_or(Ok(()), |rival| {
            Err(format!("{} and {} both reign, one of them alone", Name(core.id()), Name(rival.id())))
        })
    }

    pub(super) fn accepted_so_far(&self) -> usize {
        self.accepted.len()
    }

    /// Same place, same log before it: of the entries after `looked`, since those before have not changed.
    fn look_at_log(&mut self, core: &Core, looked: Seq) -> Result<(), String> {
        let mut before = core.place(looked);
        for entry in core.entries_after(looked) {
            let place = core.place(entry.seq);
            self.holds(core.id(), place, entry.proposal.ticket, before)?;
            before = place;
        }
        Ok(())
    }

    /// A node has an entry at a place, behind another.
    fn holds(
        &mut self,
        node: NodeId,
        place: Option<Place>,
        ticket: Ticket,
        before: Option<Place>,
    ) -> Result<(), String> {
        match self.holders.entry(ticket) {
            hash_map::Entry::Vacant(vacant) => _ = vacant.insert((node, false)),
            hash_map::Entry::Occupied(mut known) => known.get_mut().1 |= known.get().0 != node,
        }
        let Some(place) = place else { return Ok(()) };
        let (known, preceding) = self.places.entry(place).or_insert((ticket, before));
        if *known != ticket {
            let (known, other) = (Publish(*known), Publish(ticket));
            return Err(format!("{} is {known} and, on {}, {other}", At(place), Name(node)));
        }
        if preceding.is_some() && before.is_some() && *preceding != before {
            let (one, other) = (preceding.map_or(String::new(), |at| At(at).to_string()), before.map(At));
            let other = other.map_or(String::new(), |at| at.to_string());
            return Err(format!("{} follows {one} and, on {}, {other}", At(place), Name(node)));
        }
        *preceding = preceding.or(before);
        Ok(())
    }

    pub(super) fn delivered(&mut self, core: &Core, seq: Seq, ticket: Ticket, repeated: bool) -> Result<(), String> {
        self.deliveries += 1;
        let node = core.id();
        // Every place is delivered somewhere, if only for a moment: that makes the history whole.
        self.holds(node, core.place(seq), ticket, core.place(seq - 1))?;
        if !self.holders[&ticket].1 && !core.believes_alone() {
            return Err(format!("{} delivers {}, which nobody else holds", Name(node), Publish(ticket)));
        }
        let seen = self.seen.entry(node).or_default();
        seen.ring.insert(seq, ticket);
        let stream = &mut seen.stream;
        let fresh = stream.tickets.insert(ticket);
        // After a reset some that were never seen are taken for seen: they lie in the gap.
        if fresh == repeated && !(repeated && stream.gaps) {
            return Err(format!("{} delivers {} with repeated = {repeated}", Name(node), Publish(ticket)));
        }
        if seq > stream.last + 1 && !stream.restarted && stream.last > 0 {
            return Err(format!("{} delivers {} after {} without a reset", Name(node), seq, stream.last));
        }
        stream.last = seq;
        stream.restarted = false;
        let counter = stream.counters.get(&ticket.origin).copied();
        if !repeated && counter.is_some_and(|counter| ticket.counter <= counter) {
            let (name, ticket) = (Name(node), Publish(ticket));
            return Err(format!("{name} delivers {ticket} after {counter:?} of the same publisher"));
        }
        stream.counters.insert(ticket.origin, ticket.counter.max(counter.unwrap_or(0)));
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

    pub(super) fn accepted(&mut self, node: NodeId, counter: u64) {
        self.accepted.insert(Ticket { origin: node, counter });
    }

    /// A node is gone: what only it held is lost, and may be.
    pub(super) fn crashed<'a>(&mut self, core: &Core, others: impl Iterator<Item = &'a Core> + Clone) {
        let lost = self.accepted.iter().filter(|ticket| core.has(**ticket));
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
        let mut place = master.place(master.end().1);
        while let Some(at) = place {
            let Some((ticket, before)) = self.places.get(&at) else { break };
            if !history.insert(*ticket) {
                return Err(format!("{} has two places", Publish(*ticket)));
            }
            place = *before;
        }
        let gone = |ticket: &&Ticket| self.extinct.contains(ticket) || self.trimmed.contains(ticket);
        let missing = self.accepted.iter().find(|ticket| !history.contains(ticket) && !gone(ticket));
        missing.map_or(Ok(()), |ticket| Err(format!("{} was accepted and is lost", Publish(*ticket))))
    }
}
