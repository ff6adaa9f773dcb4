//! Which members acknowledge entries at once. An entry is delivered as soon as one member holds it, so two quick members
//! are enough: if one of them stops, the other still acknowledges. The rest acknowledge at their next tick, because each
//! acknowledgement costs the master about as much as the frame that it answers.
//!
//! At times all members acknowledge at once for a while, which is a trial. The two that were the quickest then go on.

use std::time::Duration;

use super::{
    Body, LinkId, NodeId, TICK,
    context::Context,
    master::{InFlight, Master, PATIENCE, Progress, Trial},
};

/// Number of members that acknowledge at once.
const PROMPT: usize = 2;

/// Number of ticks that a trial takes, and most ticks between two trials.
const TRIAL: u32 = 5;
const INTERVAL: u32 = 300;

impl Progress {
    /// Returns the number of entries that it should have acknowledged.
    pub(super) fn lag(&self, cx: &Context) -> u64 {
        let is_due = |frame: &&InFlight| cx.since(frame.sent) > 2 * TICK;
        let due = match self.prompt {
            true => cx.log.last(),
            false => self.flight.iter().rfind(is_due).map_or(self.acked, |frame| frame.last),
        };
        due.saturating_sub(self.acked)
    }
}

impl Master {
    /// Begins a trial, or begins it again.
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
    }

    pub(super) fn tick_trial(&mut self, cx: &mut Context) {
        let is_slow = self.members().any(|(_, member)| member.prompt && member.owing > PATIENCE);
        self.trial = match self.trial {
            Trial::Running(0) => {
                self.end_trial(cx);
                Trial::Waiting(INTERVAL)
            }
            Trial::Running(ticks) => Trial::Running(ticks - 1),
            Trial::Waiting(ticks) if ticks > 0 && !is_slow => Trial::Waiting(ticks - 1),
            Trial::Waiting(_) => return self.begin_trial(cx),
        };
    }

    /// Lets the members that were not among the quickest defer their acknowledgements.
    fn end_trial(&mut self, cx: &mut Context) {
        let order = |(node, member): (NodeId, &Progress)| {
            (member.owing > PATIENCE, member.delay.unwrap_or(Duration::MAX), node)
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
