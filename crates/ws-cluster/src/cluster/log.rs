//! The log of recent entries, as every node keeps it: a ring without gaps, with what is needed to recognise a
//! publish that it holds, or held, already. It knows nothing of nodes, links and terms to come.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Entry, Lineage, NodeId, Seq, Span, Term, Ticket};
use crate::config::LogConfig;

/// Keys of trimmed entries that are remembered: what a publisher that tries again for a while needs, and little enough
/// to be sent to each node that joins.
pub(super) const TRIMMED_KEYS: usize = 100_000;

/// How far the publishes of each origin have come: all up to a counter.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(HashMap<NodeId, Mark>);

#[derive(Clone, Copy, Debug)]
struct Mark {
    counter: u64,
    grown: Instant,
}

impl Marks {
    pub(super) fn covers(&self, ticket: Ticket) -> bool {
        self.0.get(&ticket.origin).is_some_and(|mark| mark.counter >= ticket.counter)
    }

    pub(super) fn raise(&mut self, ticket: Ticket, now: Instant) {
        let mark = self.0.entry(ticket.origin).or_insert(Mark { counter: 0, grown: now });
        mark.counter = mark.counter.max(ticket.counter);
        mark.grown = mark.grown.max(now);
    }

    /// Drops the marks that have not grown for so long.
    pub(super) fn forget(&mut self, now: Instant, after: Duration) {
        self.0.retain(|_, mark| now.saturating_duration_since(mark.grown) <= after);
    }

    fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.0.iter().map(|(&origin, mark)| Ticket { origin, counter: mark.counter })
    }
}

/// What stands for the entries that a log no longer holds, for a node that joins behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The last place that is no longer held.
    pub(crate) base: Seq,
    /// The spans up to it.
    pub(crate) spans: Vec<Span>,
    pub(crate) marks: Vec<Ticket>,
    pub(crate) keys: Vec<(Bytes, Seq)>,
}

impl Snapshot {
    /// About as many bytes as it takes on a link.
    pub(crate) fn size(&self) -> usize {
        const PART: usize = 32;
        let keys: usize = self.keys.iter().map(|(key, _)| PART + key.len()).sum();
        keys + PART * (self.spans.len() + self.marks.len())
    }
}

pub(crate) struct Log {
    limits: LogConfig,
    base: Seq,
    /// The entries after `base`, each with the time of its arrival here.
    entries: VecDeque<(Entry, Instant)>,
    size: usize,
    lineage: Lineage,
    /// Marks at `base` and at the end.
    base_marks: Marks,
    marks: Marks,
    /// Idempotency keys of the entries that are held and of those that were trimmed not too long ago.
    keys: HashMap<Bytes, Seq>,
    trimmed_keys: VecDeque<(Bytes, Seq, Instant)>,
    /// Counts the cuts and restarts: while it stands, the log has only grown.
    #[cfg(test)]
    pub(super) rewrites: u64,
}

impl Log {
    pub(crate) fn new(limits: LogConfig) -> Self {
        Self {
            limits,
            base: 0,
            entries: VecDeque::new(),
            size: 0,
            lineage: Lineage::default(),
            base_marks: Marks::default(),
            marks: Marks::default(),
            keys: HashMap::new(),
            trimmed_keys: VecDeque::new(),
            #[cfg(test)]
            rewrites: 0,
        }
    }

    /// The last place that is no longer held.
    pub(crate) fn base(&self) -> Seq {
        self.base
    }

    /// The place of the last entry; `base` where none is held.
    pub(crate) fn last(&self) -> Seq {
        self.base + self.entries.len() as u64
    }

    /// The term of the last entry, 0 in an empty log. With `last`, what "the best log" means.
    pub(crate) fn last_term(&self) -> Term {
        self.lineage.term_at(self.last())
    }

    pub(crate) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    pub(crate) fn at(&self, seq: Seq) -> Option<&Entry> {
        let index = seq.checked_sub(self.base + 1)?;
        self.entries.get(usize::try_from(index).ok()?).map(|(entry, _)| entry)
    }

    /// The entries after `seq`, oldest first. `seq` is not below `base`.
    pub(crate) fn after(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        let index = seq.saturating_sub(self.base) as usize;
        self.entries.range(index.min(self.entries.len())..).map(|(entry, _)| entry)
    }

    /// Whether this publish is, or was, in the log.
    pub(crate) fn knows(&self, ticket: Ticket) -> bool {
        self.marks.covers(ticket)
    }

    /// How long an entry is of use. What is proposed is younger, and so is known wherever it has a place.
    pub(crate) fn age(&self) -> Duration {
        self.limits.age
    }

    /// The place up to which the entries are older than that.
    pub(crate) fn aged(&self, now: Instant) -> Seq {
        let aged = |(_, arrived): &(Entry, Instant)| now.saturating_duration_since(*arrived) > self.limits.age;
        self.base + self.entries.partition_point(aged) as u64
    }

    /// How long what was trimmed is still known.
    pub(crate) fn memory(&self) -> Duration {
        self.limits.age * 2
    }

    /// Whether a publish with this idempotency key is, or was not long ago, in the log.
    pub(crate) fn knows_key(&self, key: &Bytes) -> bool {
        self.keys.contains_key(key)
    }

    /// The keys that it knows, with the places of their entries.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&Bytes, Seq)> {
        self.keys.iter().map(|(key, seq)| (key, *seq))
    }

    /// Appends the entry that follows the last. `owner` wrote it, as the master of its term.
    pub(crate) fn append(&mut self, now: Instant, entry: Entry, owner: NodeId) {
        debug_assert_eq!(entry.seq, self.last() + 1, "the log has no gaps");
        if entry.term != self.last_term() {
            self.lineage.push(Span { term: entry.term, owner, first: entry.seq });
        }
        self.marks.raise(entry.proposal.ticket, now);
        if let Some(key) = entry.proposal.key.as_ref().filter(|_| entry.proposal.content.is_some()) {
            self.keys.insert(key.clone(), entry.seq);
        }
        self.size += entry.proposal.size();
        self.entries.push_back((entry, now));
    }

    /// Cuts all after `seq`, which is not below `base`, and returns what was cut, oldest first.
    pub(crate) fn truncate(&mut self, seq: Seq) -> Vec<Entry> {
        debug_assert!(seq >= self.base, "what was trimmed cannot be cut");
        let keep = (seq - self.base) as usize;
        if keep >= self.entries.len() {
            return Vec::new();
        }
        #[cfg(test)]
        {
            self.rewrites += 1;
        }
        let cut: Vec<Entry> = self.entries.drain(keep..).map(|(entry, _)| entry).collect();
        self.size -= cut.iter().map(|entry| entry.proposal.size()).sum::<usize>();
        self.lineage.truncate(seq);
        self.keys.retain(|_, &mut at| at <= seq);
        self.marks = self.base_marks.clone();
        for (entry, arrived) in &self.entries {
            self.marks.raise(entry.proposal.ticket, *arrived);
        }
        cut
    }

    /// What a node needs to begin where this log begins.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            base: self.base,
            spans: self.lineage.spans().iter().copied().filter(|span| span.first <= self.base).collect(),
            marks: self.base_marks.tickets().collect(),
            keys: self.trimmed_keys.iter().map(|(key, seq, _)| (key.clone(), *seq)).collect(),
        }
    }

    /// Drops everything and begins where the snapshot was taken. Returns the entries that were held.
    pub(crate) fn restart(&mut self, now: Instant, snapshot: Snapshot) -> Vec<Entry> {
        let held = self.entries.drain(..).map(|(entry, _)| entry).collect();
        let mut fresh = Self::new(self.limits.clone());
        #[cfg(test)]
        {
            fresh.rewrites = self.rewrites + 1;
        }
        fresh.base = snapshot.base;
        fresh.lineage = Lineage::from_spans(snapshot.spans);
        for ticket in snapshot.marks {
            fresh.base_marks.raise(ticket, now);
        }
        fresh.marks = fresh.base_marks.clone();
        for (key, seq) in snapshot.keys {
            fresh.keys.insert(key.clone(), seq);
            fresh.trimmed_keys.push_back((key, seq, now));
        }
        *self = fresh;
        held
    }

    /// The place up to which the limits want the log trimmed.
    pub(crate) fn surplus(&self, now: Instant) -> Seq {
        let mut size = self.size;
        let mut count = self.entries.len();
        let mut seq = self.base;
        for (entry, arrived) in &self.entries {
            let over = size > self.limits.size || count > self.limits.count;
            if !over && now.saturating_duration_since(*arrived) <= self.limits.age {
                break;
            }
            size -= entry.proposal.size();
            count -= 1;
            seq = entry.seq;
        }
        seq
    }

    /// Trims up to `seq`, and forgets marks and keys that are older than twice the log's age.
    pub(crate) fn trim(&mut self, now: Instant, seq: Seq) {
        while self.base < seq {
            let Some((entry, arrived)) = self.entries.pop_front() else { break };
            self.base = entry.seq;
            self.size -= entry.proposal.size();
            self.base_marks.raise(entry.proposal.ticket, arrived);
            if let Some(key) = entry.proposal.key.filter(|key| self.keys.get(key) == Some(&entry.seq)) {
                self.trimmed_keys.push_back((key, entry.seq, arrived));
            }
        }
        let forget = self.memory();
        while let Some((_, _, arrived)) = self.trimmed_keys.front()
            && (now.saturating_duration_since(*arrived) > forget || self.trimmed_keys.len() > TRIMMED_KEYS)
        {
            if let Some((key, seq, _)) = self.trimmed_keys.pop_front()
                && self.keys.get(&key) == Some(&seq)
            {
                self.keys.remove(&key);
            }
        }
        for marks in [&mut self.base_marks, &mut self.marks] {
            marks.forget(now, forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Proposal;

    const ORIGIN: NodeId = NodeId::from_bytes([7; 16]);

    fn ticket(counter: u64) -> Ticket {
        Ticket { origin: ORIGIN, counter }
    }

    fn entry(term: Term, seq: Seq) -> Entry {
        let content = Some(Bytes::from_static(b"x"));
        Entry { term, seq, proposal: Proposal { ticket: ticket(seq), late: false, key: None, content } }
    }

    fn log_of(limits: LogConfig, now: Instant, last: Seq) -> Log {
        let mut log = Log::new(limits);
        (1..=last).for_each(|seq| log.append(now, entry(1, seq), ORIGIN));
        log
    }

    #[test]
    fn what_is_cut_is_no_longer_known() {
        let mut log = log_of(LogConfig::default(), Instant::now(), 5);
        let cut = log.truncate(3);
        assert_eq!(cut.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [4, 5]);
        assert!(log.knows(ticket(3)) && !log.knows(ticket(4)));
        assert_eq!(log.last(), 3);
    }

    #[test]
    fn what_is_trimmed_stays_known_for_twice_the_age() {
        let start = Instant::now();
        let limits = LogConfig { age: Duration::from_secs(10), ..LogConfig::default() };
        let mut log = log_of(limits, start, 5);
        assert_eq!(log.surplus(start), 0);
        let later = start + Duration::from_secs(11);
        assert_eq!(log.surplus(later), 5);
        log.trim(later, 4);
        assert_eq!((log.base(), log.last()), (4, 5));
        assert!(log.knows(ticket(2)));
        log.trim(start + Duration::from_secs(21), 5);
        assert!(!log.knows(ticket(2)));
    }

    #[test]
    fn a_restart_takes_marks_and_keys_along() {
        let now = Instant::now();
        let mut log = log_of(LogConfig::default(), now, 4);
        let mut keyed = entry(2, 5);
        keyed.proposal.key = Some(Bytes::from_static(b"once"));
        log.append(now, keyed, ORIGIN);
        log.trim(now, 5);
        let mut joiner = Log::new(LogConfig::default());
        joiner.restart(now, log.snapshot());
        assert_eq!((joiner.base(), joiner.last(), joiner.last_term()), (5, 5, 2));
        assert!(joiner.knows(ticket(5)) && joiner.knows_key(&Bytes::from_static(b"once")));
    }

    #[test]
    fn the_ring_is_bounded_by_count_and_size() {
        let now = Instant::now();
        let by_count = log_of(LogConfig { count: 3, ..LogConfig::default() }, now, 5);
        assert_eq!(by_count.surplus(now), 2);
        let by_size = log_of(LogConfig { size: entry(1, 1).proposal.size() * 2, ..LogConfig::default() }, now, 5);
        assert_eq!(by_size.surplus(now), 3);
    }
}
