//! What clients that keep their position are owed: where they begin, what they missed, what a fault of the cluster
//! means for them, and a word now and then where nothing comes for them.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Hub;
use crate::{
    CloseCode, Config,
    connection::{Client, Member, State},
    history::{History, Missing, Standing},
    hub::resume::seal::Seals,
    message::{
        client::{Outgoing, position},
        content::Content,
        position::Position,
        target::{ConnectionId, Target},
    },
};
use ws_cluster_core::{LogPosition, PublishId, Seq};

/// Messages that are sent to a client while everybody else waits, in the moment in which it joins the rest; so few that
/// nobody has to wait for a turn.
pub(crate) const AT_ONCE: usize = 64;

/// Entries that were cut away and are remembered until they come again. Some never do, since the master had them.
const AGAIN: usize = 100_000;

/// Which part of the log may pass before quiet clients are told their position.
const TURN: usize = 4;

/// What was delivered, and to whom it may come again.
pub(super) struct Past {
    history: History,
    /// What was delivered and cut away since: it reaches only clients from that entry number on when it comes again.
    again: HashMap<PublishId, u64>,
    /// The same for what is not in there.
    since: u64,
    /// When quiet clients were told last, and what was delivered since.
    told: Instant,
    count: usize,
    size: usize,
    /// Something was delivered since who waits for it looked.
    advanced: bool,
    interval: Duration,
    /// As many entries, or bytes, make another telling due.
    turn: (usize, usize),
}

impl Past {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            history: History::default(),
            again: HashMap::new(),
            since: u64::MAX,
            told: Instant::now(),
            count: 0,
            size: 0,
            advanced: false,
            interval: config.connection.position_interval,
            turn: (config.log.count / TURN, config.log.size / TURN),
        }
    }

    /// Notes an entry, and says from which client on it is delivered.
    pub(super) fn append(
        &mut self,
        place: LogPosition,
        publish: PublishId,
        content: Option<(&Target, Bytes)>,
        size: usize,
        repeated: Option<PublishId>,
    ) -> u64 {
        self.advanced = true;
        self.count += 1;
        self.size += size;
        self.history.append(place, publish, content);
        repeated.map_or(0, |known| self.again.remove(&known).unwrap_or(self.since))
    }

    pub(super) fn revoke(&mut self, id: ConnectionId, version: u64, seq: Seq) {
        self.history.revoke(id, version, seq);
    }

    pub(super) fn trim(&mut self, base: Seq) {
        self.history.trim(base);
    }

    /// Cuts what was delivered after a place, none of which the clients with the entry number `next` and higher have.
    fn cut(&mut self, after: Seq, next: u64) {
        if self.again.len() > AGAIN {
            self.forget(next);
        }
        let cut = self.history.cut(after);
        self.again.extend(cut.into_iter().map(|publish| (publish, next)));
    }

    fn forget(&mut self, next: u64) {
        self.again.clear();
        self.since = next;
    }

    #[cfg(test)]
    pub(super) fn epoch(&self) -> u64 {
        self.history.epoch()
    }

    #[cfg(test)]
    pub(super) fn tell_at_once(&mut self) {
        self.interval = Duration::ZERO;
    }

    fn telling_is_due(&self) -> bool {
        self.count > self.turn.0 || self.size > self.turn.1 || (self.count > 0 && self.told.elapsed() >= self.interval)
    }
}

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
        self.until_known(|| self.standing(position), limit).await
    }

    async fn until_known<T>(&self, standing: impl Fn() -> (Standing, T), limit: Duration) -> Result<T, &'static str> {
        let deadline = Instant::now() + limit;
        let mut overdue = false;
        loop {
            let mut advanced = std::pin::pin!(self.advanced.notified());
            advanced.as_mut().enable();
            match standing() {
                (Standing::Known, known) => return Ok(known),
                (Standing::Lost(why), _) => return Err(why),
                (Standing::Ahead, _) if overdue => return Err("this node has not come so far"),
                (Standing::Ahead, _) => {}
            }
            overdue = timeout_at(deadline, advanced).await.is_err();
        }
    }

    /// Where a position stands in what this node delivered, and which epoch of the order that is: another one after each
    /// fault that cut it.
    pub(crate) fn standing(&self, position: &Position) -> (Standing, u64) {
        let past = self.past.lock();
        (past.history.standing(position), past.history.epoch())
    }

    /// How far this node has come.
    pub(crate) fn position(&self) -> Position {
        self.past.lock().history.position()
    }

    /// Waits until this node has come as far as the one that sealed what a client carries, but not longer than `limit`; fails
    /// where it cannot tell whether that is still valid.
    pub(crate) async fn reach_seal(&self, at: &Position, limit: Duration) -> Result<(), &'static str> {
        let standing = || {
            let past = self.past.lock();
            (past.history.standing_of_seal(at), ())
        };
        self.until_known(standing, limit).await
    }

    /// Makes a client what it was, if what it carries is still valid.
    pub(crate) fn resume(&self, client: &Client, state: State) -> Result<(), &'static str> {
        // Not while something is delivered: then all that was revoked is known, or closes this client.
        let _index = self.index.write();
        let (lowest, at) = {
            let past = self.past.lock();
            (past.history.lowest_version(state.id), past.history.position().seq)
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
            let past = self.past.lock();
            if past.history.epoch() != epoch {
                return Err(Missing::Cut);
            }
            past.history.candidates(&membership, after, limit)?
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
    pub(crate) fn begin(&self, client: &Client, first: &[Value], seals: &Seals, heartbeat: u16) {
        let mut index = self.index.write();
        let at = self.position();
        client.begin_behind(at.seq);
        let state = {
            let mut membership = client.membership_lock().write();
            membership.take_untold();
            client.seal(&membership, at, seals)
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
            1 => client.outbox.has_room(size),
            _ => client.outbox.fits(size),
        };
        if !room {
            return Ok(false);
        }
        missed.messages.iter().for_each(|(place, content)| replay(client, *place, content));
        self.register(&mut index, client);
        Ok(true)
    }

    /// What was delivered after a place is no longer there: whoever got some of it cannot go on from where it is.
    pub(super) fn cut_back(&self, after: Seq) {
        tracing::warn!(after, "messages that were delivered have lost their place; they come again in another one");
        let index = self.index.read();
        let at = {
            let mut past = self.past.lock();
            past.cut(after, self.entered.load(Ordering::Relaxed));
            past.history.position()
        };
        let cut = Missing::Cut.why();
        let frame = position(&["reset".into(), cut.into()], Some(at), None);
        for client in index.clients.values().filter(|client| client.tracks() && client.told() > after) {
            if client.began() > after {
                // It came in the middle of what was cut, and has a part of it: on its next connection it gets all.
                client.outbox.close(CloseCode::TryAgainLater, cut);
            } else {
                self.pass.lock().tell(client, &frame, at.seq);
                // What it carries was sealed in an order that is no more: its own task seals it anew.
                client.membership_lock().write().renew();
                client.outbox.ring();
            }
        }
        drop(index);
        self.advanced.notify_waiters();
    }

    /// What is delivered next follows another place than the last.
    pub(super) fn begin_anew(&self, base: Option<LogPosition>, missed: bool) {
        let index = self.index.read();
        {
            let mut past = self.past.lock();
            past.history.restart(base);
            past.forget(self.entered.load(Ordering::Relaxed));
        }
        if missed {
            // Clients that know no positions cannot be told.
            tracing::warn!("messages were lost for this node's clients: it was away longer than the log reaches");
            // Another node may have all that they missed.
            let tracking = index.clients.values().filter(|client| client.tracks());
            tracking
                .for_each(|client| client.outbox.close(CloseCode::TryAgainLater, "this node was away for too long"));
        }
    }

    /// Lets those look who wait for this node to come as far as they did. Not at each delivery, or many of them would cost
    /// more than what is delivered.
    pub(super) fn look_again(&self) {
        let advanced = std::mem::take(&mut self.past.lock().advanced);
        if advanced {
            self.advanced.notify_waiters();
        }
    }

    /// Tells a client that the server lives, and its position if nothing is being delivered: a message that is may be one
    /// for this client which has not reached its outbox.
    /// `seals`: where what it is to carry is due as well.
    pub(crate) fn tell_position(&self, client: &Client, seals: Option<&Seals>) {
        let state = seals.map(|seals| {
            let at = self.position();
            let mut membership = client.membership_lock().write();
            membership.take_untold();
            client.seal(&membership, at, seals)
        });
        let index = self.index.try_write();
        let at = index.is_some().then(|| self.position());
        client.tell_now(at, state.as_deref());
    }

    /// Tells quiet clients their position, so that it stays within what is kept.
    pub(super) fn tell_positions(&self) {
        let index = self.index.read();
        let at = {
            let mut past = self.past.lock();
            if !past.telling_is_due() {
                return;
            }
            (past.told, past.count, past.size) = (Instant::now(), 0, 0);
            past.history.position()
        };
        let frame = position(&["now".into()], Some(at), None);
        let behind = index.clients.values().filter(|client| client.tracks() && client.told() < at.seq);
        let mut pass = self.pass.lock();
        behind.for_each(|client| pass.tell(client, &frame, at.seq));
    }
}

/// Sends a client a message that it missed.
pub(crate) fn replay(client: &Client, place: LogPosition, content: &Content) {
    if let Content::Message { action, details, .. } = content {
        client.deliver(&Outgoing::new(action, details).at(place.into()));
    }
}
