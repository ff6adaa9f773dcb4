//! The invariants, asserted at every step of every run, and what must be true when all has healed.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Core, NodeId, Seq, Term, Ticket};

/// The master that wrote it is part of a place: tables that were emptied let a term be used twice.
type Place = (Term, NodeId, Seq);

/// What one node handed to its clients.
#[derive(Default)]
struct Stream {
    last: Seq,
    counters: BTreeMap<NodeId, u64>,
    tickets: BTreeSet<Ticket>,
    restarted: bool,
    gaps: bool,
}

#[derive(Default)]
pub(super) struct Checks {
    owners: BTreeMap<Term, NodeId>,
    terms: BTreeMap<NodeId, Term>,
    emptied: bool,
    /// Every place that was ever written: by whom it was published, and the place before it.
    places: BTreeMap<Place, (Ticket, Option<Place>)>,
    /// The last place of each node's log that was looked at.
    looked: BTreeMap<NodeId, (Term, Seq)>,
    holders: BTreeMap<Ticket, BTreeSet<NodeId>>,
    streams: BTreeMap<NodeId, Stream>,
    /// What each node delivered and has not trimmed.
    rings: BTreeMap<NodeId, BTreeMap<Seq, Ticket>>,
    trimmed: BTreeSet<Ticket>,
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
        if self.terms.insert(me, term).is_some_and(|before| before > term) {
            return Err(format!("the term of {me:?} fell to {term}"));
        }
        if core.reigns() && !self.emptied && *self.owners.entry(term).or_insert(me) != me {
            return Err(format!("term {term} has two owners: {:?} and {me:?}", self.owners[&term]));
        }
        self.look_at_log(core)?;
        // What all members of a log held may be trimmed, and need not be in the log of those who come after them.
        let ring = self.rings.entry(me).or_default();
        let kept = ring.split_off(&(core.place_of_base() + 1));
        self.trimmed.extend(std::mem::replace(ring, kept).into_values());
        Ok(())
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
        let alone = core.believes_itself_shown_alone();
        let rival = others.find(|other| alone && other.term() > core.term() && other.reigns());
        rival.map_or(Ok(()), |rival| Err(format!("{:?} and {:?} both reign, one of them alone", core.id(), rival.id())))
    }

    pub(super) fn accepted_so_far(&self) -> usize {
        self.accepted.len()
    }

    /// Same place, same log before it.
    fn look_at_log(&mut self, core: &Core) -> Result<(), String> {
        let me = core.id();
        let end = core.end();
        if self.looked.get(&me) == Some(&end) {
            return Ok(());
        }
        self.looked.insert(me, end);
        let mut before: Option<Place> = None;
        for entry in core.entries() {
            let Some(place) = core.place(entry.seq) else { continue };
            let ticket = entry.proposal.ticket;
            self.holders.entry(ticket).or_default().insert(me);
            let (known, preceding) = self.places.entry(place).or_insert((ticket, before));
            if *known != ticket {
                return Err(format!("{place:?} is {known:?} and, on {me:?}, {ticket:?}"));
            }
            if preceding.is_some() && before.is_some() && *preceding != before {
                return Err(format!("{place:?} follows {preceding:?} and, on {me:?}, {before:?}"));
            }
            *preceding = preceding.or(before);
            before = Some(place);
        }
        Ok(())
    }

    pub(super) fn delivered(&mut self, core: &Core, seq: Seq, ticket: Ticket, repeated: bool) -> Result<(), String> {
        self.deliveries += 1;
        let (node, alone) = (core.id(), core.believes_alone());
        // Every place is delivered somewhere, if only for a moment: that makes the history whole.
        let before = core.place(seq - 1);
        if let Some(place) = core.place(seq) {
            self.places.entry(place).or_insert((ticket, before)).1 = before;
        }
        self.holders.entry(ticket).or_default().insert(node);
        if self.holders[&ticket].len() < 2 && !alone {
            return Err(format!("{node:?} delivers {ticket:?}, which nobody else holds"));
        }
        self.rings.entry(node).or_default().insert(seq, ticket);
        let stream = self.streams.entry(node).or_default();
        let fresh = stream.tickets.insert(ticket);
        // After a reset some that were never seen are taken for seen: they lie in the gap.
        if fresh == repeated && !(repeated && stream.gaps) {
            return Err(format!("{node:?} delivers {ticket:?} with repeated = {repeated}"));
        }
        if seq > stream.last + 1 && !stream.restarted && stream.last > 0 {
            return Err(format!("{node:?} delivers {} after {} without a reset", seq, stream.last));
        }
        stream.last = seq;
        stream.restarted = false;
        let counter = stream.counters.get(&ticket.origin).copied();
        if !repeated && counter.is_some_and(|counter| ticket.counter <= counter) {
            return Err(format!("{node:?} delivers {ticket:?} after {counter:?} of the same publisher"));
        }
        stream.counters.insert(ticket.origin, ticket.counter.max(counter.unwrap_or(0)));
        Ok(())
    }

    /// From here on terms may be used again.
    pub(super) fn tables_emptied(&mut self) {
        self.emptied = true;
    }

    pub(super) fn reset(&mut self, node: NodeId) {
        let stream = self.streams.entry(node).or_default();
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
            if core.end() != master.end() || !core.status().ready || !core.has_nothing_waiting() {
                return Err(format!("{:?} has not settled: {}", core.id(), core.summary()));
            }
        }
        let mut history = BTreeSet::new();
        let mut place = master.place(master.end().1);
        while let Some(at) = place {
            let Some((ticket, before)) = self.places.get(&at) else { break };
            if !history.insert(*ticket) {
                return Err(format!("{ticket:?} has two places"));
            }
            place = *before;
        }
        let gone = |ticket: &&Ticket| self.extinct.contains(ticket) || self.trimmed.contains(ticket);
        let missing = self.accepted.iter().find(|ticket| !history.contains(ticket) && !gone(ticket));
        missing.map_or(Ok(()), |ticket| Err(format!("{ticket:?} was accepted and is lost")))
    }
}
