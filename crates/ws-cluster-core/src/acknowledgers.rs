//! Which members acknowledge entries at once. An entry is delivered as soon as one member holds it, so two quick members
//! are enough: if one of them stops, the other still acknowledges. The rest acknowledge at their next tick, because each
//! acknowledgement costs the master about as much as the frame that it answers.
//!
//! At times all members acknowledge at once for a while, which is a trial. The two that were the quickest then go on. A
//! trial does not end before a member has acknowledged an entry in it, because without entries there is nothing to
//! compare. If both quick members stop, an entry waits for the next tick of another member.

use std::time::{Duration, Instant};

use super::{
    Body, LinkId, NodeId, TICK,
    context::Context,
    master::{InFlight, Master, PATIENCE, Progress, Trial},
};

/// Number of members that acknowledge at once.
const PROMPT: usize = 2;

/// Number of ticks that a trial takes from the first acknowledgement on.
const TRIAL: u32 = 5;

/// Maximum number of ticks between two trials.
const INTERVAL: u32 = 300;

/// Maximum number of ticks from a join to the next trial. A node that is lost and joins again and again so begins one
/// trial in this time, and not one at each join.
const SOON: u32 = 50;

impl Progress {
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

impl Master {
    /// A member was lost. Begins a trial if too few of the others acknowledge at once.
    pub(super) fn replace_prompt(&mut self, cx: &mut Context) {
        let prompt = self.members().filter(|(_, member)| member.prompt).count();
        if prompt < PROMPT && matches!(self.trial, Trial::Waiting(_)) {
            self.begin_trial(cx);
        }
    }

    /// A node became a member. It acknowledges at once until the next trial ends.
    pub(super) fn hasten_trial(&mut self) {
        if let Trial::Waiting(ticks) = &mut self.trial {
            *ticks = (*ticks).min(SOON);
        }
    }

    /// Begins a trial.
    pub(super) fn begin_trial(&mut self, cx: &mut Context) {
        let mut deferred = Vec::new();
        for follower in self.followers.values_mut() {
            follower.delay = None;
            if !std::mem::replace(&mut follower.prompt, true) {
                deferred.push(follower.link);
            }
        }
        cx.send_to_all(deferred, Body::Defer(false));
        self.trial = Trial::Running(TRIAL);
        self.trial_began_at = cx.now;
    }

    pub(super) fn tick_trial(&mut self, cx: &mut Context) {
        let is_slow = self.members().any(|(_, member)| member.prompt && member.owed_ticks > PATIENCE);
        let is_idle = self.members().all(|(_, member)| member.delay.is_none());
        self.trial = match self.trial {
            Trial::Running(_) if is_idle => return,
            Trial::Running(ticks @ 2..) => Trial::Running(ticks - 1),
            Trial::Running(_) => {
                self.end_trial(cx);
                Trial::Waiting(INTERVAL)
            }
            Trial::Waiting(ticks @ 2..) if !is_slow => Trial::Waiting(ticks - 1),
            Trial::Waiting(_) => return self.begin_trial(cx),
        };
    }

    /// Lets the members that were not among the quickest defer their acknowledgements.
    fn end_trial(&mut self, cx: &mut Context) {
        let order = |(node, member): (NodeId, &Progress)| {
            (member.owed_ticks > PATIENCE, member.delay.unwrap_or(Duration::MAX), node)
        };
        let mut members: Vec<_> = self.members().map(order).collect();
        members.sort_unstable();
        let mut deferred: Vec<LinkId> = Vec::new();
        for (_, _, node) in members.into_iter().skip(PROMPT) {
            if let Some(member) = self.followers.get_mut(&node) {
                member.prompt = false;
                deferred.push(member.link);
            }
        }
        cx.send_to_all(deferred, Body::Defer(true));
    }
}
