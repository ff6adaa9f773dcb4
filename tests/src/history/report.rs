//! What a check found, for people.

use std::{collections::BTreeMap, fmt};

/// How many violations of a kind are told in full.
const TOLD: usize = 10;

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// An accepted message did not reach a client that it was meant for.
    Lost,
    /// A message did not reach a client, but others, between two that the client saw.
    Missed,
    /// A client got a message twice without a reset in between.
    Twice,
    /// Clients saw messages in different orders.
    Disorder,
    /// Messages that one publisher published through one node came in another order.
    PublisherDisorder,
    /// A message that nobody published.
    Unpublished,
    /// A message that was for others.
    NotMeant,
    /// One message has two places in the order, or one place two messages.
    Place,
    /// A message came before the client was told its position on that connection.
    Unpositioned,
    /// A client did not see the last message.
    NotEnded,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its kind.
    pub defect: Defect,
    /// Who and what.
    pub text: String,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// All that was found.
    pub violations: Vec<Violation>,
    /// Messages whose publish began.
    pub published: u64,
    /// Those that were accepted.
    pub accepted: u64,
    /// Those that were not accepted, and yet delivered to somebody.
    pub unclear: u64,
    /// Causes of publishes that were not accepted.
    pub refused: BTreeMap<String, u64>,
    /// Messages at clients.
    pub observed: u64,
    /// Clients.
    pub clients: u64,
    /// Connections.
    pub opened: u64,
    /// Beginnings: the first ones, and those after a reset.
    pub segments: u64,
    /// Connections that went on where their client was.
    pub recovered: u64,
    /// Messages that these announced as missed meanwhile.
    pub replayed: u64,
    /// Resets by reason.
    pub resets: BTreeMap<String, u64>,
    /// Messages at the end of a segment that may have been cut from the order.
    pub loose: u64,
    /// Messages that a client saw again after a reset, which is allowed.
    pub again: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Violations of a kind.
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
            texts.iter().take(TOLD).try_for_each(|text| writeln!(f, "    {text}"))?;
            if texts.len() > TOLD {
                writeln!(f, "    ...")?;
            }
        }
        write!(f, "{}", if self.is_clean() { "all is as promised" } else { "NOT as promised" })
    }
}
