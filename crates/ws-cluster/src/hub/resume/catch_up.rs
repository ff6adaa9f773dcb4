//! The part of resuming that happens under the hub's lock: it decides where clients that track their position begin,
//! finds what they missed, handles cuts and restarts of the order, and tells quiet clients their position.

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
        client::{OutgoingMessage, position},
        close::Subject,
        content::Content,
        position::Position,
        target::Target,
    },
    send_queue::SharedFrame,
};
use ws_cluster_core::{LogPosition, Seq};

/// Maximum number of messages that are sent under the hub's lock, at the moment when a client joins. So few need no
/// turn.
pub(crate) const MAX_UNDER_LOCK: usize = 64;

/// The messages that a client missed.
pub(crate) struct Missed {
    pub(crate) messages: Vec<(LogPosition, Content)>,
    /// The sequence number up to which these are all that the client missed.
    pub(crate) until: Seq,
}

impl Missed {
    /// Returns about the number of bytes that the messages take on the wire.
    pub(crate) fn size(&self) -> usize {
        self.messages.iter().map(|(_, content)| content.size()).sum()
    }
}

impl Hub {
    /// Waits at most `limit` until this node has reached the position of a client that comes from another node. Returns
    /// the epoch of its order. Fails if it is unknown what came after the position.
    pub(crate) async fn reach(&self, position: &Position, limit: Duration) -> Result<u64, &'static str> {
        self.until_known(|| self.position_status(position), limit).await
    }

    async fn until_known<T>(
        &self,
        status: impl Fn() -> (PositionStatus, T),
        limit: Duration,
    ) -> Result<T, &'static str> {
        let deadline = Instant::now() + limit;
        let mut overdue = false;
        loop {
            let mut advanced = std::pin::pin!(self.advanced.notified());
            advanced.as_mut().enable();
            match status() {
                (PositionStatus::Known, known) => return Ok(known),
                (PositionStatus::Lost(why), _) => return Err(why),
                (PositionStatus::Ahead, _) if overdue => return Err("this node has not reached the position"),
                (PositionStatus::Ahead, _) => {}
            }
            overdue = timeout_at(deadline, advanced).await.is_err();
        }
    }

    /// Returns the status of a position in what this node delivered, and the epoch of the order. Each fault that cuts
    /// the order begins a new epoch.
    pub(crate) fn position_status(&self, position: &Position) -> (PositionStatus, u64) {
        let log = self.replay_log.lock();
        (log.history.position_status(position), log.history.epoch())
    }

    /// Returns the position up to which this node has delivered.
    pub(crate) fn position(&self) -> Position {
        self.replay_log.lock().history.position()
    }

    /// Waits at most `limit` until this node has reached the position at which a resume token was sealed. Fails if the
    /// node cannot tell whether the token is still valid.
    pub(crate) async fn reach_seal(&self, at: &Position, limit: Duration) -> Result<(), &'static str> {
        self.until_known(|| (self.seal_status(at), ()), limit).await
    }

    /// Returns the status of the position at which a resume token was sealed.
    pub(crate) fn seal_status(&self, at: &Position) -> PositionStatus {
        self.replay_log.lock().history.seal_status(at)
    }

    /// Makes a client what it was before, if its resume token is still valid.
    pub(crate) fn resume(&self, client: &Client, state: ResumeState) -> Result<(), &'static str> {
        // Under the write lock nothing is being delivered. So each revocation is known already, or will close this
        // client.
        let _index = self.index.write();
        let mut subjects = Self::subjects_of(client);
        subjects.push(Subject::Connection(state.id));
        let (lowest, at, commands) = {
            let log = self.replay_log.lock();
            let commands = log.history.group_commands(&subjects, state.at.seq);
            (log.history.lowest_version(state.id), log.history.position().seq, commands)
        };
        if state.version < lowest {
            return Err("the resume token was revoked");
        }
        client.begin_behind(state.began);
        let mut membership = client.membership_lock().write();
        let resumed = membership.resume(state, at);
        resumed.map_err(|_| "the groups and properties have changed, and are too many to tell which are new")?;
        // The token is from before these commands.
        commands.iter().for_each(|(seq, change)| membership.regroup(change, Some(*seq)));
        Ok(())
    }

    /// Sets the position at which a client begins. Later group commands apply to it.
    pub(crate) fn begin_at(&self, client: &Client, position: &Position) {
        // As for a client that resumes: each command is known already, or finds this client.
        let _index = self.index.write();
        let commands = self.replay_log.lock().history.group_commands(&Self::subjects_of(client), position.seq);
        client.begin_behind(position.seq);
        let mut membership = client.membership_lock().write();
        commands.iter().for_each(|(seq, change)| membership.regroup(change, Some(*seq)));
    }

    /// Returns what was delivered for a client after a sequence number, at most `limit` messages. Fails if the order is
    /// not in the given epoch any more.
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
        let meant = candidates.into_iter().filter_map(|(log_position, content)| {
            let content = Content::decode(content).ok()?;
            let meant = |target: &Target| target.matches(&member) && membership.was_target_of(target, log_position.seq);
            matches!(&content, Content::Message { target, .. } if meant(target)).then_some((log_position, content))
        });
        let messages: Vec<_> = meant.collect();
        if messages.len() > limit { Err(Missing::TooMany) } else { Ok(Missed { messages, until }) }
    }

    /// Begins to deliver to a client. `first` is its first message, with the present position.
    pub(crate) fn begin(&self, client: &Client, first: &[Value], sealer: &StateSealer, heartbeat: u16) {
        let mut index = self.index.write();
        let at = self.position();
        client.begin_behind(at.seq);
        if client.keeps_position() {
            let state = {
                let mut membership = client.membership_lock().write();
                membership.note_token_sent();
                client.seal(&membership, at, sealer)
            };
            client.begin(first, at, &state, heartbeat);
        }
        self.deliver_to(&mut index, client);
    }

    /// Begins to deliver to a client if it lacks only a few messages after `after` and there is room for them. Returns
    /// true if it did.
    pub(crate) fn catch_up(&self, client: &Client, after: Seq, epoch: u64) -> Result<bool, Missing> {
        let mut index = self.index.write();
        // More messages are looked up and sent without the lock.
        let missed = match self.missed(client, after, epoch, MAX_UNDER_LOCK) {
            Err(Missing::TooMany) => return Ok(false),
            missed => missed?,
        };
        let size = missed.size();
        let room = match missed.messages.len() {
            0 => true,
            // A single message may be of any size.
            1 => client.queue.has_room(size),
            _ => client.queue.fits(size),
        };
        if !room {
            return Ok(false);
        }
        // Plain, because compressing would hold the lock for some milliseconds.
        let messages = missed.messages.iter().filter_map(|(log_position, content)| message(*log_position, content));
        messages.for_each(|message| client.replay_plain(&message));
        self.deliver_to(&mut index, client);
        Ok(true)
    }

    /// Handles a cut of the entries after `after`. A client that got some of them cannot continue from its position.
    pub(in crate::hub) fn cut_back(&self, after: Seq) {
        tracing::warn!(
            after,
            "delivered messages have lost their log positions; they may be delivered again at other ones"
        );
        let index = self.index.read();
        let at = {
            let mut log = self.replay_log.lock();
            log.cut(after, self.entered.load(Ordering::Relaxed));
            log.history.position()
        };
        let cut = Missing::Cut.why();
        let mut frame = SharedFrame::new(position(&["reset".into(), cut.into()], Some(at), None));
        for client in index.clients.iter().filter(|client| client.tracks() && client.known_seq() > after) {
            if client.began() > after {
                // The client began inside the part that was cut. On its next connection it gets everything.
                client.queue.close(CloseCode::TryAgainLater, cut);
            } else {
                self.fan_out.lock().add_position(client, &mut frame, at.seq);
                // The resume token was sealed in an order that no longer exists. The connection's task sends a new one.
                client.membership_lock().write().outdate_token();
                client.queue.wake_for_timer();
            }
        }
        drop(index);
        self.advanced.notify_waiters();
    }

    /// Continues the deliveries after `base` instead of after the last entry.
    pub(in crate::hub) fn reset_to(&self, base: Option<LogPosition>, missed: bool) {
        let index = self.index.read();
        {
            let mut log = self.replay_log.lock();
            log.history.restart(base);
            log.forget(self.entered.load(Ordering::Relaxed));
        }
        if missed {
            // A client without a position cannot be told what it missed.
            tracing::warn!("this node's clients missed messages: the node was away for longer than the log reaches");
            // Another node may have everything that the clients missed.
            let tracking = index.clients.iter().filter(|client| client.tracks());
            tracking.for_each(|client| client.queue.close(CloseCode::TryAgainLater, "this node was away for too long"));
        }
    }

    /// Wakes the clients that wait for this node to reach their position. It is not called at each delivery, because
    /// many waiting clients would cost more than the delivery.
    pub(in crate::hub) fn wake_waiting(&self) {
        let advanced = std::mem::take(&mut self.replay_log.lock().advanced);
        if advanced {
            self.advanced.notify_waiters();
        }
    }

    /// Tells a client that the server is alive. The position is left out while something is being delivered, because a
    /// message may have the position and not be in the client's queue yet. `sealer`: present if a new resume token is
    /// due as well.
    pub(crate) fn send_position(&self, client: &Client, sealer: Option<&StateSealer>) {
        let state = sealer.map(|sealer| {
            let mut membership = client.membership_lock().write();
            membership.note_token_sent();
            client.seal(&membership, self.position(), sealer)
        });
        let index = self.index.try_write();
        let at = index.is_some().then(|| self.position());
        client.send_now(at, state.as_deref());
    }

    /// Tells quiet clients their position, so that it does not become older than the log.
    pub(in crate::hub) fn send_positions(&self) {
        let index = self.index.read();
        let at = {
            let mut log = self.replay_log.lock();
            if !log.positions_are_due() {
                return;
            }
            (log.last_sent, log.count, log.size) = (Instant::now(), 0, 0);
            log.history.position()
        };
        let mut frame = SharedFrame::new(position(&["now".into()], Some(at), None));
        let behind = index.clients.iter().filter(|client| client.tracks() && client.known_seq() < at.seq);
        let mut fan_out = self.fan_out.lock();
        behind.for_each(|client| fan_out.add_position(client, &mut frame, at.seq));
    }
}

/// Sends a client a message that it missed. Returns the number of bytes that were compressed for it.
pub(crate) fn replay(client: &Client, log_position: LogPosition, content: &Content) -> usize {
    message(log_position, content).map_or(0, |message| client.replay(&message))
}

/// Returns the message of an entry, if it has one.
fn message(log_position: LogPosition, content: &Content) -> Option<OutgoingMessage<'_>> {
    match content {
        Content::Message { action, details, .. } => Some(OutgoingMessage::new(action, details).at(log_position.into())),
        _ => None,
    }
}
