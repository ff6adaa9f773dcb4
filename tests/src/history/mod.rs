//! Histories of publishers and clients, and the check of what is promised: a message whose publish was accepted reaches
//! every client that it was for exactly once, in one order, or the client is told `reset`.
//!
//! `record` is one line of a history. `load` makes numbers and segments of many records. `order` is the graph of which
//! message came before which. `check` finds defects, and `report` describes them. This module does not know how a
//! history came about: `faults` runs a cluster and writes one.
//!
//! **How it checks.** What a client sees falls into *segments*: each begins with `new` or `reset` and continues over
//! all connections that `recovered`. The segments of all clients together give one order, in which each segment has to
//! be a contiguous run of what was for its client. Only evidence counts: a message is missing if others saw it between
//! two that this client saw, or if its publish began after the segment did and was accepted before the publish of a
//! message in the segment. What a segment saw right before a reset may have been cut from the order and may come again.
//! Its log position (`at`), which no other client has, shows that. A last message, published when everything else is
//! over and awaited by all clients, closes the run.

mod check;
#[cfg(test)]
mod generate;
mod load;
mod order;
mod record;
mod report;
#[cfg(test)]
mod tests;

pub use load::{History, LoadError};
pub use record::{Kind, Record};
pub use report::{Defect, Report, Violation};

/// The publisher of the last message of a run, which every client has to see.
pub const SENTINEL: &str = "end";
