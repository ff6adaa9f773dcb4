//! Which members acknowledge entries at once. An entry is delivered as soon as one member holds it, so two quick
//! members are enough: if one of them stops, the other still acknowledges. The rest acknowledge at their next tick,
//! because each acknowledgement costs the master about as much as the frame that it answers.
//!
//! Now and then all members acknowledge at once for a while. This is a trial. After it, only the two quickest members
//! still do so. A trial does not end before a member has acknowledged an entry in it, because without entries there is
//! nothing to compare. If both quick members stop, an entry waits for the next tick of another member.

use std::time::{Duration, Instant};

use crate::{
    Body, LinkId, NodeId,
    context::Context,
    progress::{Followers, PATIENCE, Progress, members},
};

/// Number of members that acknowledge at once.
const PROMPT_MEMBERS: usize = 2;

/// Number of ticks that a trial takes from the first acknowledgement on.
const TRIAL_TICKS: u32 = 5;

/// Maximum number of ticks between two trials.
const TICKS_BETWEEN_TRIALS: u32 = 300;

/// Maximum number of ticks from a join to the next trial. Limits a flapping node to one trial per interval.
const TICKS_AFTER_JOIN: u32 = 50;

/// Decides when the members that acknowledge at once change.
#[derive(Debug)]
pub(super) struct Acknowledgers {
    trial: Trial,
    /// When the last trial began.
    pub(super) trial_began_at: Instant,
}

/// The next change of the members that acknowledge at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// All members acknowledge at once. Ends after this many ticks, which count once a member has acknowledged an
    /// entry.
    Running(u32),
    /// The next trial begins after this many ticks.
    Waiting(u32),
}

impl Acknowledgers {
    /// Makes those of a master that begins: the first trial begins at the next tick.
    pub(super) fn new(now: Instant) -> Self {
        Self { trial: Trial::Waiting(1), trial_began_at: now }
    }

    /// A member was lost. Begins a trial if too few of the others acknowledge at once.
    pub(super) fn member_lost(&mut self, cx: &mut Context, followers: &mut Followers) {
        let prompt = members(followers).filter(|(_, member)| member.prompt).count();
        if prompt < PROMPT_MEMBERS && matches!(self.trial, Trial::Waiting(_)) {
            self.begin_trial(cx, followers);
        }
    }

    /// A node became a member. It acknowledges at once until the next trial ends.
    pub(super) fn member_joined(&mut self) {
        if let Trial::Waiting(ticks) = &mut self.trial {
            *ticks = (*ticks).min(TICKS_AFTER_JOIN);
        }
    }

    /// Begins a trial.
    pub(super) fn begin_trial(&mut self, cx: &mut Context, followers: &mut Followers) {
        let mut deferred = Vec::new();
        for follower in followers.values_mut() {
            follower.delay = None;
            if !std::mem::replace(&mut follower.prompt, true) {
                deferred.push(follower.link);
            }
        }
        cx.send_to_all(deferred, Body::Defer(false));
        self.trial = Trial::Running(TRIAL_TICKS);
        self.trial_began_at = cx.now;
    }

    /// Begins or ends a trial if it is time.
    pub(super) fn tick(&mut self, cx: &mut Context, followers: &mut Followers) {
        let is_slow = members(followers).any(|(_, member)| member.prompt && member.owed_ticks > PATIENCE);
        let is_idle = members(followers).all(|(_, member)| member.delay.is_none());
        self.trial = match self.trial {
            Trial::Running(_) if is_idle => return,
            Trial::Running(ticks @ 2..) => Trial::Running(ticks - 1),
            Trial::Running(_) => {
                end_trial(cx, followers);
                Trial::Waiting(TICKS_BETWEEN_TRIALS)
            }
            Trial::Waiting(ticks @ 2..) if !is_slow => Trial::Waiting(ticks - 1),
            Trial::Waiting(_) => return self.begin_trial(cx, followers),
        };
    }
}

/// Lets the members that were not among the quickest defer their acknowledgements.
fn end_trial(cx: &mut Context, followers: &mut Followers) {
    let order = |(node, member): (NodeId, &Progress)| {
        (member.owed_ticks > PATIENCE, member.delay.unwrap_or(Duration::MAX), node)
    };
    let mut quickest: Vec<_> = members(followers).map(order).collect();
    quickest.sort_unstable();
    let mut deferred: Vec<LinkId> = Vec::new();
    for (_, _, node) in quickest.into_iter().skip(PROMPT_MEMBERS) {
        if let Some(member) = followers.get_mut(&node) {
            member.prompt = false;
            deferred.push(member.link);
        }
    }
    cx.send_to_all(deferred, Body::Defer(true));
}
