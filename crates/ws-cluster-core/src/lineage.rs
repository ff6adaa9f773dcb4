//! The lineage of a log: which master wrote which part of it. Two logs are the same up to the end of the last part
//! that both have.

use crate::{LogPosition, NodeId, Seq, Term};

/// The part of the log that one master wrote in one term. A term without an entry has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The term.
    pub term: Term,
    /// The master of that term. It distinguishes two uses of one term, as after a restore of the pool from a backup.
    pub master: NodeId,
    /// The first entry of the span. The span ends before the next one begins.
    pub first: Seq,
}

/// The spans of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage(Vec<Span>);

impl Lineage {
    /// Maximum number of spans that are kept. A node that was away for more changes of the master replaces its log.
    const LIMIT: usize = 256;

    /// Makes a lineage of spans, oldest first.
    pub fn from_spans(spans: Vec<Span>) -> Self {
        Self(spans)
    }

    /// Returns the spans, oldest first.
    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// Returns the term of the entry `seq`, or 0 before the first span.
    pub fn term_at(&self, seq: Seq) -> Term {
        self.span_at(seq).map_or(0, |span| span.term)
    }

    /// Returns the span of the entry `seq`.
    pub fn span_at(&self, seq: Seq) -> Option<&Span> {
        self.0.iter().rev().find(|span| span.first <= seq)
    }

    /// Returns the position of the entry `seq`, or `None` before the first span.
    pub fn position(&self, seq: Seq) -> Option<LogPosition> {
        self.span_at(seq).map(|span| LogPosition { term: span.term, master: span.master, seq })
    }

    /// Adds the newest span.
    pub fn push(&mut self, span: Span) {
        self.0.push(span);
        if self.0.len() > Self::LIMIT {
            self.0.remove(0);
        }
    }

    /// Removes the spans that begin after `seq`.
    pub fn truncate(&mut self, seq: Seq) {
        self.0.retain(|span| span.first <= seq);
    }

    /// Returns the last entry up to which two logs, which end at `last` and `other_last`, are the same.
    pub fn agreement(&self, last: Seq, other: &Lineage, other_last: Seq) -> Seq {
        // A master opens a term once. Two logs that have the same span are therefore the same before it.
        let shared = self.0.iter().enumerate().rev().find_map(|(index, span)| {
            let other_index = other.0.iter().position(|candidate| candidate == span)?;
            Some((index, other_index))
        });
        shared.map_or(0, |(index, other_index)| {
            let end = |spans: &[Span], next: usize, last| spans.get(next).map_or(last, |next| next.first - 1);
            end(&self.0, index + 1, last).min(end(&other.0, other_index + 1, other_last))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(spans: &[(Term, u8, Seq)]) -> Lineage {
        Lineage(
            spans
                .iter()
                .map(|&(term, master, first)| Span { term, master: NodeId::from_bytes([master; 16]), first })
                .collect(),
        )
    }

    #[test]
    fn logs_of_one_master_agree_up_to_the_shorter() {
        let one = lineage(&[(1, 1, 1)]);
        assert_eq!(one.agreement(10, &one, 7), 7);
    }

    #[test]
    fn logs_part_where_another_master_began() {
        let old = lineage(&[(1, 1, 1)]);
        let new = lineage(&[(1, 1, 1), (2, 2, 6)]);
        assert_eq!(old.agreement(9, &new, 20), 5);
        assert_eq!(new.agreement(20, &old, 9), 5);
    }

    #[test]
    fn a_term_that_was_used_twice_does_not_agree() {
        assert_eq!(lineage(&[(1, 1, 1)]).agreement(4, &lineage(&[(1, 2, 1)]), 4), 0);
    }

    #[test]
    fn forgotten_beginnings_do_not_matter() {
        let whole = lineage(&[(1, 1, 1), (2, 2, 6), (5, 1, 9)]);
        let short = lineage(&[(5, 1, 9)]);
        assert_eq!(whole.agreement(12, &short, 11), 11);
    }
}
