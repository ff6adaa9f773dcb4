//! The followers as their master knows them: what each was sent, and what it has acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{LinkId, NodeId, Seq, TICK, context::Context};

/// Number of ticks in a row at which a member may owe an acknowledgement, or hold back the trimming of the log. At the
/// next one it counts as slow, or its link is ended. An entry may be sent just before the first of them.
pub(super) const PATIENCE: u32 = 2;

/// The followers of a master.
pub(super) type Followers = BTreeMap<NodeId, Progress>;

/// Returns the followers that are members.
pub(super) fn members(followers: &Followers) -> impl Iterator<Item = (NodeId, &Progress)> {
    followers.iter().filter(|(_, follower)| follower.joined).map(|(&node, follower)| (node, follower))
}

/// What the master knows of a follower.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) link: LinkId,
    /// Counts the follower's joins.
    pub(super) attempt: u64,
    /// The last entry that was sent.
    pub(super) sent: Seq,
    /// The last entry that was acknowledged.
    pub(super) acked: Seq,
    /// The frames that it has not acknowledged.
    pub(super) flight: VecDeque<InFlight>,
    /// The sum of their sizes.
    pub(super) in_flight: usize,
    /// For how many ticks it has owed an acknowledgement. Ticks count only the time in which this process ran.
    pub(super) owed_ticks: u32,
    /// For how many ticks it has held back the trimming of the log.
    pub(super) held_back_ticks: u32,
    /// True if it acknowledges at once.
    pub(super) prompt: bool,
    /// The shortest time that an acknowledgement took since the last trial began.
    pub(super) delay: Option<Duration>,
    /// The entry that it must hold to become a member.
    pub(super) goal: Seq,
    /// True if it is a member.
    pub(super) joined: bool,
    /// The last `held_by_all` that it was sent.
    pub(super) sent_held_by_all: Seq,
}

/// A frame that a follower has not acknowledged.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The last entry of the frame.
    pub(super) last: Seq,
    pub(super) size: usize,
    pub(super) sent_at: Instant,
}

/// The frame that a follower needs next: the entries after one, and the bytes that it may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct NextFrame {
    pub(super) after: Seq,
    pub(super) room: usize,
}

impl Progress {
    /// Makes a follower that is sent the entries after `sent`, and becomes a member when it holds `goal`.
    pub(super) fn new(link: LinkId, attempt: u64, sent: Seq, goal: Seq) -> Self {
        Self {
            link,
            attempt,
            sent,
            acked: 0,
            flight: VecDeque::new(),
            in_flight: 0,
            owed_ticks: 0,
            held_back_ticks: 0,
            prompt: true,
            delay: None,
            goal,
            joined: false,
            sent_held_by_all: 0,
        }
    }

    /// Returns the frame that it needs next, or `None` if it lacks nothing or its window is full.
    pub(super) fn next(&self, cx: &Context) -> Option<NextFrame> {
        let room = cx.batch.min(cx.window.saturating_sub(self.in_flight));
        (self.sent < cx.log.last() && room > 0).then_some(NextFrame { after: self.sent, room })
    }

    /// Returns the number of entries that it should have acknowledged and has not. These are all that it lacks, unless
    /// it may acknowledge later and is not late yet: its window may be full, so not all of them were sent.
    pub(super) fn lag(&self, cx: &Context) -> u64 {
        let is_late = self.flight.front().is_some_and(|oldest| cx.since(oldest.sent_at) > 2 * TICK);
        if self.prompt || is_late { cx.log.last().saturating_sub(self.acked) } else { 0 }
    }

    /// Notes how long it took to acknowledge a frame, unless it may have held the acknowledgement back.
    pub(super) fn note_delay(&mut self, cx: &Context, frame: &InFlight, trial_began_at: Instant) {
        if self.prompt && frame.sent_at >= trial_began_at {
            let delay = cx.since(frame.sent_at);
            self.delay = Some(self.delay.map_or(delay, |shortest| shortest.min(delay)));
        }
    }
}
