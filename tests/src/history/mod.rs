//! What publishers and clients went through, and whether it keeps what is promised: a message whose publish was
//! accepted reaches everyone it was meant for exactly once, in one order, or they are told (`reset`).
//!
//! `record` is one line of a history, `load` makes numbers and segments of many, `order` is the graph of who came
//! before whom, `check` finds what must not be, `report` says it. Nothing here knows how a history came about: `faults`
//! runs a cluster and writes one.
//!
//! **How it judges.** What a client sees falls into *segments*: each begins with `new` or `reset` and goes on over all
//! connections that `recovered`. The segments of all clients together give one order, in which each segment has to be a
//! contiguous run of what was meant for its client. That is judged by evidence only: a message is missing where others
//! saw it between two that this client saw, or where its publish began after the segment did and was accepted before the
//! publish of something that the segment has. What a segment saw right before a reset may have been cut from the order
//! and may come again: that is told by its place (`at`), which no other client knows. A last message, published when all
//! else is over and awaited by all clients, closes the run.

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
