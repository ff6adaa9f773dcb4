//! Rules that a test takes from a core, to show that the simulator notices their absence.

/// A rule that a core leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Entries that are cut from the log are not proposed again.
    ForgetsCut,
    /// Entries that are cut from the log are proposed again in the wrong order.
    ShufflesCut,
    /// The master delivers and accepts at once, although other members are alive.
    AcceptsAlone,
    /// A publish whose idempotency key the log has is appended all the same.
    IgnoresKeys,
    /// A follower that may acknowledge later does not do so at its next tick.
    DefersForEver,
}
