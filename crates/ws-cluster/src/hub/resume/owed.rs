//! The hub's half of resuming, under the hub's lock: where clients that keep their position begin, what they missed, what
//! a fault of the cluster means for them, and a word now and then if nothing comes for them.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    ResumeState, StateSealer,
    history::{Missing, PositionStatus},
};
use crate::{
    CloseCode,
    hub::{Client, Hub, Member},
    message::{
        client::{Outgoing, position},
        content::Content,
        position::Position,
        target::Target,
    },
};
use ws_cluster_core::{LogPosition, Seq};

/// Messages that are sent to a client while everybody else waits, in the moment in which it joins the rest; so few that
/// nobody has to wait for a turn.
pub(crate) const AT_ONCE: usize = 64;

/// Messages that a client missed.
pub(crate) struct Missed {
    pub(crate) messages: Vec<(LogPosition, Content)>,
    /// It missed no others up to here.
    pub(crate) until: Seq,
}

impl Missed {
    /// About as many bytes as they take on the wire.
    pub(crate) fn size(&self) -> usize {
        self.messages.iter().map(|(_, content)| content.size()).sum()
    }
}

impl Hub {
    /// Waits until this node has come as far as a client that comes from another one, but not longer than `limit`, and
    /// says which epoch of its order that is; fails where it cannot be told what came after the client's position.
    pub(crate) async fn reach(&self, position: &Position, limit: Duration) -> Result<u64, &'static str> {
        self.until_known(|| self.position_status(position), limit).await
    }

    async fn until_known<T>(
        &self,
        standing: impl Fn() -> (PositionStatus, T),
        limit: Duration,
    ) -> Result<T, &'static str> {
        let deadline = Instant::now() + limit;
        let mut overdue = false;
        loop {
            let mut advanced = std::pin::pin!(self.advanced.notified());
            advanced.as_mut().enable();
            match standing() {
                (PositionStatus::Known, known) => return Ok(known),
                (PositionStatus::Lost(why), _) => return Err(why),
                (PositionStatus::Ahead, _) if overdue => return Err("this node has not come so far"),
                (PositionStatus::Ahead, _) => {}
            }
            overdue = timeout_at(deadline, advanced).await.is_err();
        }
    }

    /// Where a position stands in what this node delivered, and which epoch of the order that is: another one after each
    /// fault that cut it.
    pub(crate) fn position_status(&self, position: &Position) -> (PositionStatus, u64) {
        let log = self.replay_log.lock();
        (log.history.position_status(position), log.history.epoch())
    }

    /// How far this node has come.
    pub(crate) fn position(&self) -> Position {
        self.replay_log.lock().history.position()
    }

    /// Waits until this node has come as far as the one that sealed what a client carries, but not longer than `limit`; fails
    /// where it cannot tell whether that is still valid.
    pub(crate) async fn reach_seal(&self, at: &Position, limit: Duration) -> Result<(), &'static str> {
        let standing = || {
            let log = self.replay_log.lock();
            (log.history.seal_status(at), ())
        };
        self.until_known(standing, limit).await
    }

    /// Makes a client what it was, if what it carries is still valid.
    pub(crate) fn resume(&self, client: &Client, state: ResumeState) -> Result<(), &'static str> {
        // Not while something is delivered: then all that was revoked is known, or closes this client.
        let _index = self.index.write();
        let (lowest, at) = {
            let log = self.replay_log.lock();
            (log.history.lowest_version(state.id), log.history.position().seq)
        };
        if state.version < lowest {
            return Err("what belongs to its connection was taken back since");
        }
        client.begin_behind(state.began);
        let resumed = client.membership_lock().write().resume(state, at);
        resumed.map_err(|_| "its groups and properties are other ones, and too many to be told apart")
    }

    /// What was delivered for a client after a place, at most `limit` messages, in the order of this epoch.
    pub(crate) fn missed(&self, client: &Client, after: Seq, epoch: u64, limit: usize) -> Result<Missed, Missing> {
        let membership = client.membership();
        let (candidates, until) = {
            let log = self.replay_log.lock();
            if log.history.epoch() != epoch {
                return Err(Missing::Cut);
            }
            log.history.candidates(&membership, after, limit)?
        };
        let member = Member(client.id, &membership);
        let meant = candidates.into_iter().filter_map(|(place, content)| {
            let content = Content::decode(content).ok()?;
            let meant = |target: &Target| target.matches(&member) && membership.was_meant(target, place.seq);
            matches!(&content, Content::Message { target, .. } if meant(target)).then_some((place, content))
        });
        let messages: Vec<_> = meant.collect();
        if messages.len() > limit { Err(Missing::TooMany) } else { Ok(Missed { messages, until }) }
    }

    /// Delivers to a client that has arrived from now on, after this first message with the present position.
    pub(crate) fn begin(&self, client: &Client, first: &[Value], sealer: &StateSealer, heartbeat: u16) {
        let mut index = self.index.write();
        let at = self.position();
        client.begin_behind(at.seq);
        let state = {
            let mut membership = client.membership_lock().write();
            membership.take_untold();
            client.seal(&membership, at, sealer)
        };
        client.begin(first, at, &state, heartbeat);
        self.register(&mut index, client);
    }

    /// Delivers to a client from now on, if it lacks but few messages of those after `after`, for which there is room;
    /// whether it did.
    pub(crate) fn catch_up(&self, client: &Client, after: Seq, epoch: u64) -> Result<bool, Missing> {
        let mut index = self.index.write();
        // More than a few are looked for, and sent, while nobody waits.
        let missed = match self.missed(client, after, epoch, AT_ONCE) {
            Err(Missing::TooMany) => return Ok(false),
            missed => missed?,
        };
        let size = missed.size();
        let room = match missed.messages.len() {
            0 => true,
            // However large it is.
            1 => client.queue.has_room(size),
            _ => client.queue.fits(size),
        };
        if !room {
            return Ok(false);
        }
        missed.messages.iter().for_each(|(place, content)| replay(client, *place, content));
        self.register(&mut index, client);
        Ok(true)
    }

    /// What was delivered after a place is no longer there: whoever got some of it cannot go on from where it is.
    pub(in crate::hub) fn cut_back(&self, after: Seq) {
        tracing::warn!(after, "messages that were delivered have lost their place; they come again in another one");
        let index = self.index.read();
        let at = {
            let mut log = self.replay_log.lock();
            log.cut(after, self.entered.load(Ordering::Relaxed));
            log.history.position()
        };
        let cut = Missing::Cut.why();
        let frame = position(&["reset".into(), cut.into()], Some(at), None);
        for client in index.clients.values().filter(|client| client.tracks() && client.told() > after) {
            if client.began() > after {
                // It came in the middle of what was cut, and has a part of it: on its next connection it gets all.
                client.queue.close(CloseCode::TryAgainLater, cut);
            } else {
                self.fan_out.lock().tell(client, &frame, at.seq);
                // What it carries was sealed in an order that is no more: its own task seals it anew.
                client.membership_lock().write().renew();
                client.queue.ring();
            }
        }
        drop(index);
        self.advanced.notify_waiters();
    }

    /// What is delivered next follows another place than the last.
    pub(in crate::hub) fn reset_to(&self, base: Option<LogPosition>, missed: bool) {
        let index = self.index.read();
        {
            let mut log = self.replay_log.lock();
            log.history.restart(base);
            log.forget(self.entered.load(Ordering::Relaxed));
        }
        if missed {
            // Clients that know no positions cannot be told.
            tracing::warn!("messages were lost for this node's clients: it was away longer than the log reaches");
            // Another node may have all that they missed.
            let tracking = index.clients.values().filter(|client| client.tracks());
            tracking.for_each(|client| client.queue.close(CloseCode::TryAgainLater, "this node was away for too long"));
        }
    }

    /// Lets those look who wait for this node to come as far as they did. Not at each delivery, or many of them would cost
    /// more than what is delivered.
    pub(in crate::hub) fn look_again(&self) {
        let advanced = std::mem::take(&mut self.replay_log.lock().advanced);
        if advanced {
            self.advanced.notify_waiters();
        }
    }

    /// Tells a client that the server lives, and its position if nothing is being delivered: a message that is may be one
    /// for this client which has not reached its queue.
    /// `sealer`: given if what it is to carry is due as well.
    pub(crate) fn tell_position(&self, client: &Client, sealer: Option<&StateSealer>) {
        let state = sealer.map(|sealer| {
            let at = self.position();
            let mut membership = client.membership_lock().write();
            membership.take_untold();
            client.seal(&membership, at, sealer)
        });
        let index = self.index.try_write();
        let at = index.is_some().then(|| self.position());
        client.tell_now(at, state.as_deref());
    }

    /// Tells quiet clients their position, so that it stays within what is kept.
    pub(in crate::hub) fn tell_positions(&self) {
        let index = self.index.read();
        let at = {
            let mut log = self.replay_log.lock();
            if !log.telling_is_due() {
                return;
            }
            (log.told, log.count, log.size) = (Instant::now(), 0, 0);
            log.history.position()
        };
        let frame = position(&["now".into()], Some(at), None);
        let behind = index.clients.values().filter(|client| client.tracks() && client.told() < at.seq);
        let mut fan_out = self.fan_out.lock();
        behind.for_each(|client| fan_out.tell(client, &frame, at.seq));
    }
}

/// Sends a client a message that it missed.
pub(crate) fn replay(client: &Client, place: LogPosition, content: &Content) {
    if let Content::Message { action, details, .. } = content {
        client.deliver(&Outgoing::new(action, details).at(place.into()));
    }
}
