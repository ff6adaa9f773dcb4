//! The lineage of a log: which master wrote which stretch of it. Two logs agree up to the end of the last stretch
//! that both have.

use super::{NodeId, Place, Seq, Term};

/// The stretch of the log that one master wrote in one term. Only terms that hold an entry have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) term: Term,
    /// The incarnation that wrote it: a term that was used twice (a pool restored from an old copy) is told apart.
    pub(crate) owner: NodeId,
    pub(crate) first: Seq,
}

/// The spans of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lineage(Vec<Span>);

impl Lineage {
    /// Spans that are remembered. A node that was away for more changes of the master than this joins anew.
    const LIMIT: usize = 256;

    pub(crate) fn from_spans(spans: Vec<Span>) -> Self {
        Self(spans)
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.0
    }

    /// The term of the entry at `seq`; 0 before the first span.
    pub(crate) fn term_at(&self, seq: Seq) -> Term {
        self.span_at(seq).map_or(0, |span| span.term)
    }

    /// The span that the entry at `seq` belongs to.
    pub(crate) fn span_at(&self, seq: Seq) -> Option<&Span> {
        self.0.iter().rev().find(|span| span.first <= seq)
    }

    /// The place numbered `seq`; `None` before the first span.
    pub(crate) fn place(&self, seq: Seq) -> Option<Place> {
        self.span_at(seq).map(|span| Place { term: span.term, owner: span.owner, seq })
    }

    pub(crate) fn push(&mut self, span: Span) {
        self.0.push(span);
        if self.0.len() > Self::LIMIT {
            self.0.remove(0);
        }
    }

    /// Forgets the spans that begin after `seq`.
    pub(crate) fn truncate(&mut self, seq: Seq) {
        self.0.retain(|span| span.first <= seq);
    }

    /// The last place up to which two logs, ending at `last` and `other_last`, are the same.
    pub(crate) fn agreement(&self, last: Seq, other: &Lineage, other_last: Seq) -> Seq {
        // The same owner opened the same term at the same place once: all before it is the same as well.
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
                .map(|&(term, owner, first)| Span { term, owner: NodeId::from_bytes([owner; 16]), first })
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
