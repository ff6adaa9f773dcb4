//! The log of recent entries that every node keeps. It has no gaps. It also recognises publishes and idempotency keys
//! of entries that it holds, or held not long ago.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{Entry, Lineage, LogConfig, NodeId, PublishId, Seq, Span, Term};

/// Maximum number of idempotency keys of trimmed entries: enough for a publisher that retries for a while, and few
/// enough to send to each node that joins.
pub(crate) const TRIMMED_KEYS: usize = 100_000;

/// Maximum number of origins whose publishes are recognised. Each start of a node is an origin, so these are the starts
/// of months, and few enough to send to each node that joins.
const ORIGINS: usize = 10_000;

/// The highest publish counter of each origin. Time takes no mark away, because a node whose clock stood still, as that
/// of a machine that slept, may propose a publish again that others delivered long ago. Of more than [`ORIGINS`]
/// origins, those that grew last keep their marks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    marks: HashMap<NodeId, Mark>,
    /// The number of changes so far.
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    counter: u64,
    /// Which change was the last of this mark.
    change: u64,
}

impl Marks {
    pub(crate) fn covers(&self, id: PublishId) -> bool {
        self.marks.get(&id.origin).is_some_and(|mark| mark.counter >= id.counter)
    }

    pub(crate) fn raise(&mut self, id: PublishId) {
        self.changes += 1;
        let mark = self.marks.entry(id.origin).or_insert(Mark { counter: 0, change: 0 });
        *mark = Mark { counter: mark.counter.max(id.counter), change: self.changes };
        if self.marks.len() > ORIGINS
            && let Some((&oldest, _)) = self.marks.iter().min_by_key(|(_, mark)| mark.change)
        {
            self.marks.remove(&oldest);
        }
    }

    /// Returns the last publish of each origin, in the order of their changes.
    fn ids(&self) -> Vec<PublishId> {
        let mut marks: Vec<_> = self.marks.iter().collect();
        marks.sort_unstable_by_key(|(_, mark)| mark.change);
        marks.into_iter().map(|(&origin, mark)| PublishId { origin, counter: mark.counter }).collect()
    }
}

/// A summary of the entries that a log has trimmed, for a node whose own log ends before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The last trimmed entry.
    pub base: Seq,
    /// The spans that begin at or before it.
    pub spans: Vec<Span>,
    /// The last trimmed publish of each origin.
    pub marks: Vec<PublishId>,
    /// The idempotency keys of trimmed entries.
    pub keys: Vec<(Bytes, Seq)>,
    /// The last entry whose idempotency key was forgotten; 0 if there is none. A node whose own log ends before it may
    /// have publishes whose keys it cannot compare with the forgotten ones.
    pub forgotten: Seq,
}

impl Snapshot {
    /// Returns about how many bytes it takes on a link.
    pub fn size(&self) -> usize {
        const PART: usize = 32;
        let keys: usize = self.keys.iter().map(|(key, _)| PART + key.len()).sum();
        keys + PART * (self.spans.len() + self.marks.len())
    }
}

/// The log of one node.
pub struct Log {
    limits: LogConfig,
    base: Seq,
    /// The entries after `base`, each with the time of its arrival here.
    entries: VecDeque<(Entry, Instant)>,
    size: usize,
    lineage: Lineage,
    /// The marks at `base`.
    base_marks: Marks,
    /// The marks at the end.
    marks: Marks,
    /// Idempotency keys of the entries that are held and of those that were trimmed not too long ago.
    keys: HashMap<Bytes, Seq>,
    trimmed_keys: VecDeque<(Bytes, Seq, Instant)>,
    /// The last entry whose key was forgotten.
    forgotten: Seq,
    /// Counts the cuts and restarts. If it has not changed, the log has only grown.
    pub(crate) rewrites: u64,
}

impl Log {
    /// Makes an empty log.
    pub fn new(limits: LogConfig) -> Self {
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
            forgotten: 0,
            rewrites: 0,
        }
    }

    /// Returns the last trimmed entry, or 0.
    pub fn base(&self) -> Seq {
        self.base
    }

    /// Returns the last entry, or `base` if the log holds none.
    pub fn last(&self) -> Seq {
        self.base + self.entries.len() as u64
    }

    /// Returns the term of the last entry, or 0 in an empty log. The log with the highest `(last_term, last)` is the
    /// best.
    pub fn last_term(&self) -> Term {
        self.lineage.term_at(self.last())
    }

    /// Returns which master wrote which part of the log.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Returns the last entry up to which this log and another, which ends at `other_last`, are the same.
    pub(crate) fn agreement(&self, other: &Lineage, other_last: Seq) -> Seq {
        self.lineage.agreement(self.last(), other, other_last)
    }

    /// Returns the entry `seq`, or `None` if the log does not hold it.
    pub fn at(&self, seq: Seq) -> Option<&Entry> {
        let index = seq.checked_sub(self.base + 1)?;
        self.entries.get(usize::try_from(index).ok()?).map(|(entry, _)| entry)
    }

    /// Returns the entries after `seq`, oldest first. `seq` must not be below `base`.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        let index = seq.saturating_sub(self.base) as usize;
        self.entries.range(index.min(self.entries.len())..).map(|(entry, _)| entry)
    }

    /// Returns how many bytes the entries count, and for how long the oldest has been here.
    pub(crate) fn extent(&self, now: Instant) -> (usize, Duration) {
        let oldest = self.entries.front();
        (self.size, oldest.map_or(Duration::ZERO, |(_, arrived)| now.saturating_duration_since(*arrived)))
    }

    /// Returns true if the log holds this publish or has trimmed it.
    pub fn knows(&self, id: PublishId) -> bool {
        self.marks.covers(id)
    }

    /// Returns how long an entry is kept. Nodes propose only younger publishes.
    pub fn age(&self) -> Duration {
        self.limits.age
    }

    /// Returns the last entry that is older than [`age`](Self::age).
    pub fn aged(&self, now: Instant) -> Seq {
        let aged = |(_, arrived): &(Entry, Instant)| now.saturating_duration_since(*arrived) > self.limits.age;
        self.base + self.entries.partition_point(aged) as u64
    }

    /// Returns how long the log recognises the idempotency keys of trimmed entries.
    pub fn memory(&self) -> Duration {
        self.limits.age * 2
    }

    /// Returns true if the log has an entry with this idempotency key, or has trimmed it not long ago.
    pub fn knows_key(&self, key: &Bytes) -> bool {
        self.keys.contains_key(key)
    }

    /// Returns the idempotency keys that the log recognises, with the numbers of their entries.
    pub fn keys(&self) -> impl Iterator<Item = (&Bytes, Seq)> {
        self.keys.iter().map(|(key, seq)| (key, *seq))
    }

    /// Appends the entry that follows the last. `master` is the master of its term.
    ///
    /// # Panics
    /// In debug builds, if `entry.seq` is not the number after [`last`](Self::last).
    pub fn append(&mut self, now: Instant, entry: Entry, master: NodeId) {
        debug_assert_eq!(entry.seq, self.last() + 1, "the log has no gaps");
        if entry.term != self.last_term() {
            self.lineage.push(Span { term: entry.term, master, first: entry.seq });
        }
        self.marks.raise(entry.proposal.id);
        if let Some(key) = entry.proposal.key.as_ref().filter(|_| entry.proposal.content.is_some()) {
            self.keys.insert(key.clone(), entry.seq);
        }
        self.size += entry.proposal.size();
        self.entries.push_back((entry, now));
    }

    /// Removes the entries after `seq`, which must not be below `base`, and returns them, oldest first.
    ///
    /// # Panics
    /// In debug builds, if `seq` is below [`base`](Self::base).
    #[must_use]
    pub fn truncate(&mut self, seq: Seq) -> Vec<Entry> {
        debug_assert!(seq >= self.base, "what was trimmed cannot be cut");
        let keep = (seq - self.base) as usize;
        if keep >= self.entries.len() {
            return Vec::new();
        }
        self.rewrites += 1;
        let cut: Vec<Entry> = self.entries.drain(keep..).map(|(entry, _)| entry).collect();
        self.size -= cut.iter().map(|entry| entry.proposal.size()).sum::<usize>();
        self.lineage.truncate(seq);
        self.keys.retain(|_, &mut at| at <= seq);
        self.marks = self.base_marks.clone();
        for (entry, _) in &self.entries {
            self.marks.raise(entry.proposal.id);
        }
        cut
    }

    /// Returns a summary of the trimmed entries.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            base: self.base,
            spans: self.lineage.spans().iter().copied().filter(|span| span.first <= self.base).collect(),
            marks: self.base_marks.ids(),
            keys: self.trimmed_keys.iter().map(|(key, seq, _)| (key.clone(), *seq)).collect(),
            forgotten: self.forgotten,
        }
    }

    /// Removes everything and starts after the snapshot. Returns the entries that the log held.
    pub fn restart(&mut self, now: Instant, snapshot: Snapshot) -> Vec<Entry> {
        let held = self.entries.drain(..).map(|(entry, _)| entry).collect();
        let mut fresh = Self::new(self.limits.clone());
        fresh.rewrites = self.rewrites + 1;
        fresh.base = snapshot.base;
        fresh.forgotten = snapshot.forgotten;
        fresh.lineage = Lineage::from_spans(snapshot.spans);
        for id in snapshot.marks {
            fresh.base_marks.raise(id);
        }
        fresh.marks = fresh.base_marks.clone();
        for (key, seq) in snapshot.keys {
            fresh.keys.insert(key.clone(), seq);
            fresh.trimmed_keys.push_back((key, seq, now));
        }
        *self = fresh;
        held
    }

    /// Returns the last entry that exceeds the limits.
    pub fn surplus(&self, now: Instant) -> Seq {
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

    /// Trims the entries up to `seq`, and forgets keys that are older than [`memory`](Self::memory).
    pub fn trim(&mut self, now: Instant, seq: Seq) {
        while self.base < seq {
            let Some((entry, arrived)) = self.entries.pop_front() else { break };
            self.base = entry.seq;
            self.size -= entry.proposal.size();
            self.base_marks.raise(entry.proposal.id);
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
                self.forgotten = self.forgotten.max(seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proposal;

    const ORIGIN: NodeId = NodeId::from_bytes([7; 16]);

    fn id(counter: u64) -> PublishId {
        PublishId { origin: ORIGIN, counter }
    }

    fn entry(term: Term, seq: Seq) -> Entry {
        let content = Some(Bytes::from_static(b"x"));
        Entry { term, seq, proposal: Proposal { id: id(seq), key: None, content } }
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
        assert!(log.knows(id(3)) && !log.knows(id(4)));
        assert_eq!(log.last(), 3);
    }

    #[test]
    fn a_key_stays_known_for_twice_the_age_and_a_publish_for_ever() {
        let start = Instant::now();
        let limits = LogConfig { age: Duration::from_secs(10), ..LogConfig::default() };
        let mut log = log_of(limits, start, 4);
        let key = Bytes::from_static(b"once");
        let mut keyed = entry(1, 5);
        keyed.proposal.key = Some(key.clone());
        log.append(start, keyed, ORIGIN);
        assert_eq!(log.surplus(start), 0);
        let later = start + Duration::from_secs(11);
        assert_eq!(log.surplus(later), 5);
        log.trim(later, 4);
        assert_eq!((log.base(), log.last()), (4, 5));
        log.trim(later, 5);
        assert!(log.knows(id(2)) && log.knows_key(&key));
        assert_eq!(log.snapshot().forgotten, 0);
        log.trim(start + Duration::from_secs(21), 5);
        assert!(log.knows(id(2)) && !log.knows_key(&key));
        assert_eq!(log.snapshot().forgotten, 5);
    }

    #[test]
    fn the_origins_that_grew_last_keep_their_marks() {
        let origin = |number: usize| NodeId::from_bytes((number as u128).to_be_bytes());
        let mut marks = Marks::default();
        (0..ORIGINS).for_each(|number| marks.raise(PublishId { origin: origin(number), counter: 1 }));
        marks.raise(PublishId { origin: origin(0), counter: 2 });
        marks.raise(PublishId { origin: origin(ORIGINS), counter: 1 });
        assert!(marks.covers(PublishId { origin: origin(0), counter: 2 }));
        assert!(!marks.covers(PublishId { origin: origin(1), counter: 1 }));
        assert_eq!(marks.ids().len(), ORIGINS);
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
        assert!(joiner.knows(id(5)) && joiner.knows_key(&Bytes::from_static(b"once")));
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
