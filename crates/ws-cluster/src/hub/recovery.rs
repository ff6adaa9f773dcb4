//! What clients that keep their position are owed: where they begin, what they missed, what a fault of the cluster
//! means for them, and a word now and then where nothing comes for them.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Hub;
use crate::{
    Config,
    cluster::{Place, Seq, Ticket},
    connection::{Client, Member},
    history::{History, Missing, Standing},
    target::Target,
    wire::{
        client::{Outgoing, position},
        content::Content,
        position::Position,
        state::Seals,
    },
};

/// Messages that are sent to a client while everybody else waits, in the moment in which it joins the rest.
const AT_ONCE: usize = 64;

/// Which part of the log may pass before quiet clients are told their position.
const TURN: usize = 4;

/// What was delivered, and to whom it may come again.
pub(super) struct Past {
    history: History,
    /// What was delivered and cut away since: it reaches only clients numbered so and up when it comes again, and is
    /// forgotten once the log no longer holds the place where it stood last.
    again: HashMap<Ticket, (u64, Seq)>,
    /// The same for what was delivered before the history began anew.
    since: u64,
    /// When quiet clients were told last, and what was delivered since.
    told: Instant,
    count: usize,
    size: usize,
    interval: Duration,
    /// As many entries, or bytes, make another telling due.
    turn: (usize, usize),
}

impl Past {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            history: History::default(),
            again: HashMap::new(),
            since: 0,
            told: Instant::now(),
            count: 0,
            size: 0,
            interval: config.connection.position_interval,
            turn: (config.log.count / TURN, config.log.size / TURN),
        }
    }

    /// Notes an entry, and says from which client on it is delivered.
    pub(super) fn append(
        &mut self,
        place: Place,
        ticket: Ticket,
        content: Option<(&Target, Bytes)>,
        repeated: Option<Ticket>,
    ) -> u64 {
        self.count += 1;
        self.size += content.as_ref().map_or(0, |(_, content)| content.len());
        self.history.append(place, ticket, content);
        repeated.map_or(0, |known| self.again.remove(&known).map_or(self.since, |(since, _)| since))
    }

    pub(super) fn trim(&mut self, base: Seq) {
        self.history.trim(base);
        self.again.retain(|_, (_, seq)| *seq > base);
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
    pub(crate) messages: Vec<(Place, Content)>,
    /// It missed no others up to here.
    pub(crate) until: Seq,
}

/// Whether a client that was sent what it missed has joined the rest.
pub(crate) enum CaughtUp {
    Yes,
    /// This came meanwhile, and goes before.
    NotYet(Missed),
}

impl Hub {
    /// Waits until this node has come as far as a client that comes from another one, but not longer than `limit`;
    /// fails where it cannot be told what came after the client's position.
    pub(crate) async fn reach(&self, position: &Position, limit: Duration) -> Result<(), &'static str> {
        let deadline = Instant::now() + limit;
        loop {
            let mut advanced = std::pin::pin!(self.advanced.notified());
            advanced.as_mut().enable();
            match self.past.lock().history.standing(position) {
                Standing::Known => return Ok(()),
                Standing::Lost(why) => return Err(why),
                Standing::Ahead => {}
            }
            if timeout_at(deadline, advanced).await.is_err() {
                return Err("this node has not come so far");
            }
        }
    }

    /// Which order of messages this is: another one after each fault that cut it.
    pub(crate) fn epoch(&self) -> u64 {
        self.past.lock().history.epoch()
    }

    /// What was delivered for a client after a place, at most `limit` messages, in the order of this epoch.
    pub(crate) fn missed(&self, client: &Client, after: Seq, epoch: u64, limit: usize) -> Result<Missed, &'static str> {
        let membership = client.membership();
        let (candidates, until) = {
            let past = self.past.lock();
            if past.history.epoch() != epoch {
                return Err("the order of messages was cut by a failover");
            }
            past.history.candidates(&membership, after, limit).map_err(|missing| match missing {
                Missing::TooMany => "too many messages were missed",
                Missing::Trimmed => "too much has happened since",
            })?
        };
        let member = Member(client.id, &membership);
        let meant = candidates.into_iter().filter_map(|(place, content)| match Content::decode(content) {
            Ok(content @ Content::Message { .. }) => Some((place, content)),
            _ => None,
        });
        let meant = meant.filter(|(_, content)| match content {
            Content::Message { target, .. } => target.matches(&member),
            _ => false,
        });
        let messages: Vec<_> = meant.collect();
        if messages.len() > limit {
            return Err("too many messages were missed");
        }
        Ok(Missed { messages, until })
    }

    /// Delivers to a client that has arrived from now on, after this first message with the present position.
    pub(crate) fn begin(&self, client: &Client, first: &[Value], seals: &Seals) {
        let mut index = self.index.write();
        self.tell(client, first, Some(seals));
        self.register(&mut index, client);
    }

    /// Delivers to a client from now on, if it lacks but few messages of those after `after`.
    pub(crate) fn catch_up(
        &self,
        client: &Client,
        after: Seq,
        epoch: u64,
        limit: usize,
    ) -> Result<CaughtUp, &'static str> {
        let mut index = self.index.write();
        let missed = self.missed(client, after, epoch, limit)?;
        if missed.messages.len() > AT_ONCE {
            return Ok(CaughtUp::NotYet(missed));
        }
        missed.messages.iter().for_each(|(place, content)| replay(client, *place, content));
        self.register(&mut index, client);
        Ok(CaughtUp::Yes)
    }

    /// Tells a client the present position, under a lock of the index.
    fn tell(&self, client: &Client, details: &[Value], seals: Option<&Seals>) {
        let at = self.past.lock().history.position();
        let state = seals.map(|seals| {
            let mut membership = client.membership_lock().write();
            membership.untold = false;
            client.seal(&membership, seals)
        });
        client.tell(details, at, state.as_deref());
    }

    /// What was delivered after a place is no longer there: whoever got some of it cannot go on from where it is.
    pub(super) fn cut_back(&self, after: Seq) {
        let index = self.index.read();
        {
            let mut past = self.past.lock();
            let next = self.next.load(std::sync::atomic::Ordering::Relaxed);
            let cut = past.history.cut(after);
            let last = after + cut.len() as u64;
            past.again.extend(cut.into_iter().map(|ticket| (ticket, (next, last))));
        }
        tracing::warn!(after, "messages that were delivered have lost their place; they come again in another one");
        let details = ["reset".into(), "the order of messages was cut by a failover".into()];
        for client in index.clients.values().filter(|client| client.tracks() && client.told() > after) {
            self.tell(client, &details, None);
        }
    }

    /// What is delivered next follows another place than the last.
    pub(super) fn begin_anew(&self, base: Option<Place>, missed: bool) {
        let index = self.index.read();
        {
            let mut past = self.past.lock();
            past.history.restart(base);
            past.again.clear();
            past.since = self.next.load(std::sync::atomic::Ordering::Relaxed);
        }
        if !missed {
            return;
        }
        // Clients that know no positions cannot be told that they missed something.
        tracing::warn!("messages were lost for this node's clients: it was away longer than the log reaches");
        let details = ["reset".into(), "this node was away for too long".into()];
        index.clients.values().filter(|client| client.tracks()).for_each(|client| self.tell(client, &details, None));
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
        behind.for_each(|client| client.tell_shared(frame.clone(), at.seq));
    }
}

/// Sends a client a message that it missed.
pub(crate) fn replay(client: &Client, place: Place, content: &Content) {
    if let Content::Message { action, details, .. } = content {
        client.deliver(&Outgoing::new(action, details).at(place.into()));
    }
}
