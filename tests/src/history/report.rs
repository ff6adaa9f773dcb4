//! The results of a check, for people.

use std::{collections::BTreeMap, fmt};

/// Number of violations of a kind that are shown in full.
const MAX_SHOWN: usize = 10;

/// A kind of defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// An accepted message did not reach a client that it was for.
    Lost,
    /// A message did not reach a client, but reached others between two messages that the client saw.
    Missed,
    /// A client got a message twice without a reset in between.
    Twice,
    /// Clients saw messages in different orders.
    Disorder,
    /// Messages that one publisher published through one node came in another order.
    PublisherDisorder,
    /// A message was delivered that was not published.
    Unpublished,
    /// A client got a message that was for others.
    NotMeant,
    /// One message has two log positions, or one log position has two messages.
    Place,
    /// A message came before the client was told its position on that connection.
    Unpositioned,
    /// A client did not see the last message.
    NotEnded,
}

/// A violation of a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its kind.
    pub defect: Defect,
    /// The clients and messages of the violation.
    pub text: String,
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// All violations.
    pub violations: Vec<Violation>,
    /// Number of messages whose publish began.
    pub published: u64,
    /// Number of accepted ones.
    pub accepted: u64,
    /// Number of messages that were not accepted but were delivered to a client.
    pub unclear: u64,
    /// Causes of publishes that were not accepted.
    pub refused: BTreeMap<String, u64>,
    /// Number of messages at clients.
    pub observed: u64,
    /// Number of clients.
    pub clients: u64,
    /// Number of connections.
    pub opened: u64,
    /// Number of segments: the first ones, and those after a reset.
    pub segments: u64,
    /// Number of connections that resumed without a loss.
    pub recovered: u64,
    /// Number of messages that these connections announced as missed.
    pub replayed: u64,
    /// Resets by reason.
    pub resets: BTreeMap<String, u64>,
    /// Number of messages at the end of a segment that may have been cut from the order.
    pub loose: u64,
    /// Number of messages that a client saw again after a reset, which is allowed.
    pub again: u64,
}

impl Report {
    /// Returns true if there is no violation.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Returns the number of violations of a kind.
    pub fn count(&self, defect: Defect) -> usize {
        self.violations.iter().filter(|violation| violation.defect == defect).count()
    }

    pub(super) fn add(&mut self, defect: Defect, text: String) {
        self.violations.push(Violation { defect, text });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "messages: {} published, {} accepted, {} delivered without; {} observed by {} clients",
            self.published, self.accepted, self.unclear, self.observed, self.clients
        )?;
        writeln!(
            f,
            "connections: {} opened, {} recovered ({} messages replayed), {} beginnings",
            self.opened, self.recovered, self.replayed, self.segments
        )?;
        for (why, count) in &self.resets {
            writeln!(f, "reset {count} times: {why}")?;
        }
        for (why, count) in &self.refused {
            writeln!(f, "not accepted {count} times: {why}")?;
        }
        if self.loose + self.again > 0 {
            writeln!(f, "{} perhaps cut before a reset, {} seen again after one", self.loose, self.again)?;
        }
        let mut kinds: BTreeMap<Defect, Vec<&str>> = BTreeMap::new();
        for Violation { defect, text } in &self.violations {
            kinds.entry(*defect).or_default().push(text);
        }
        for (defect, texts) in kinds {
            writeln!(f, "{defect:?}: {}", texts.len())?;
            texts.iter().take(MAX_SHOWN).try_for_each(|text| writeln!(f, "    {text}"))?;
            if texts.len() > MAX_SHOWN {
                writeln!(f, "    ...")?;
            }
        }
        write!(f, "{}", if self.is_clean() { "all is as promised" } else { "NOT as promised" })
    }
}
