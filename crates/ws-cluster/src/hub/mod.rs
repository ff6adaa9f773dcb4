//! Who is connected to this node, and what the cluster hands over for them. Finding them is in `index`, how many there
//! may be in `admission`, what clients that come back are owed in `resume`; how a client's socket takes it is in
//! [`SendQueue`](crate::send_queue::SendQueue).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    Config,
    close::{Close, CloseCode, Subject},
    message::{
        client::Outgoing,
        content::{Content, ContentError},
        target::{ConnectionId, Target},
    },
    node::{Delivery, DeliverySink},
};
use ws_cluster_core::{LogPosition, NodeId, Seq};

mod admission;
mod client;
mod closes;
mod coarse_timers;
mod fan_out;
mod index;
pub(crate) mod membership;
pub(crate) mod resume;
#[cfg(test)]
mod simulation;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use admission::{Admission, Refusal, Slot};
pub(crate) use client::Client;
pub(crate) use closes::{Closes, Moment, Stale};
pub(crate) use coarse_timers::CoarseTimers;
pub(crate) use membership::{Member, Membership};

use fan_out::FanOut;
use index::Index;
use resume::replay_log::ReplayLog;

/// What clients are told when the node shuts down.
const RESTART: &str = "the server restarts";

/// What clients are told when the application closes them softly.
const COME_AGAIN: &str = "authenticate anew";

/// The clients of this node.
pub(crate) struct Hub {
    node: NodeId,
    /// Called with each order to close or refresh connections before they hear of it, so that the authenticator lets none
    /// come back on what it remembers.
    revoked: Box<dyn Fn(&Subject) + Send + Sync>,
    next: AtomicU64,
    /// The entry number of the client that comes in next. Grows under the write lock of `index` only.
    entered: AtomicU64,
    /// Many read (deliveries), few write (comings, goings and changes of membership). A synchronous lock, held for
    /// one fan-out over the clients a message is for and never across an await: whoever is welcomed during a fan-out
    /// waits for its end, and so sees every later entry and, in its queue, in their order. Of several locks this one
    /// comes first, then `fan_out`, then a client's own, then `replay_log`.
    index: RwLock<Index>,
    /// What was delivered. It is appended to under a read lock of `index`, and only by the cluster's task, so that who
    /// comes in, under the write lock, gets just what follows.
    replay_log: Mutex<ReplayLog>,
    /// Wakes those who wait for this node to come as far as they did.
    advanced: Notify,
    /// The clients whom something was delivered to since the last write. A synchronous lock, taken by the cluster's task
    /// alone but for messages beside the order, and held while a message is passed to whom it is for.
    fan_out: Mutex<FanOut>,
    /// The server's runtime, in which a fan-out to many is written. `None` in tests that write nothing.
    runtime: Option<Handle>,
    timers: CoarseTimers,
    closes: Closes,
    /// Clients that are gone and still to be forgotten. A synchronous lock, under which no other is taken.
    gone: Mutex<Vec<Arc<Client>>>,
    admission: Arc<Admission>,
}

/// A client that the hub knows until it leaves, and counts until this is dropped. Dropped without having left, it is
/// forgotten soon.
pub(crate) struct Registration {
    hub: Arc<Hub>,
    client: Arc<Client>,
}

impl Hub {
    /// `revoked` is called from the cluster's task with each order to close or refresh connections. It must not block or
    /// panic.
    pub(crate) fn new(node: NodeId, config: &Config, revoked: impl Fn(&Subject) + Send + Sync + 'static) -> Self {
        Self {
            node,
            revoked: Box::new(revoked),
            next: AtomicU64::new(1),
            entered: AtomicU64::new(0),
            index: RwLock::default(),
            replay_log: Mutex::new(ReplayLog::new(config)),
            advanced: Notify::new(),
            fan_out: Mutex::default(),
            runtime: Handle::try_current().ok(),
            timers: CoarseTimers::new(),
            closes: Closes::default(),
            gone: Mutex::default(),
            admission: Arc::default(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    pub(crate) fn timers(&self) -> &CoarseTimers {
        &self.timers
    }

    pub(crate) fn closes(&self) -> &Closes {
        &self.closes
    }

    /// An id that no other connection has or had.
    pub(crate) fn next_id(&self) -> ConnectionId {
        ConnectionId { node: self.node, local: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Knows the client from now on, and closes it with its session, without delivering to it yet. Its place among the
    /// connections, which it was admitted to under its handshake's address, is given back with the registration.
    ///
    /// Fails if the client's session or user was closed or refreshed after `asked`, when the authenticator was asked who it
    /// is.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        client: Arc<Client>,
        mut membership: Membership,
        slot: &mut Option<Slot>,
        asked: Moment,
    ) -> Result<Registration, Stale> {
        let mut index = self.index.write();
        self.closes.check(asked, &membership)?;
        slot.take().into_iter().for_each(Slot::hand_over);
        {
            let mut present = client.membership_lock().write();
            membership.take_data(&mut present);
            *present = membership;
        }
        index.arriving.insert(client.id.local, client.clone());
        if index.closed {
            client.queue.close(CloseCode::Restart, RESTART);
        }
        drop(index);
        Ok(Registration { hub: self.clone(), client })
    }

    /// Changes who a client is, after the authenticator was asked at `asked`. Fails as [`arrive`](Self::arrive) does, and
    /// changes nothing then.
    pub(crate) fn identify(
        &self,
        client: &Arc<Client>,
        identity: Membership,
        asked: Moment,
        change: impl FnOnce(&mut Membership, Membership, Option<Seq>),
    ) -> Result<(), Stale> {
        let mut index = self.index.write();
        self.closes.check(asked, &identity)?;
        self.change_in(&mut index, client, |own, at| change(own, identity, at));
        Ok(())
    }

    /// Delivers to a client that has arrived from now on.
    pub(crate) fn welcome(&self, client: &Client) {
        self.register(&mut self.index.write(), client);
    }

    fn register(&self, index: &mut Index, client: &Client) {
        let Some(client) = index.arriving.remove(&client.id.local) else { return };
        let mut own = client.membership_lock().write();
        client.enter(self.entered.fetch_add(1, Ordering::Relaxed));
        index.add(&client, &mut own);
        drop(own);
        index.clients.insert(client.id.local, client);
    }

    /// Gives a client what the authenticator, asked at `asked`, says of its session now. Fails as [`arrive`](Self::arrive)
    /// does, and changes nothing then.
    pub(crate) fn refresh(&self, client: &Arc<Client>, identity: Membership, asked: Moment) -> Result<(), Stale> {
        let same = {
            let own = client.membership();
            let mut refreshed = own.clone();
            refreshed.refresh(identity.clone(), None);
            refreshed == *own
        };
        if same {
            // Every recheck but few: nobody waits for it. A close of this very client has found it.
            return self.closes.check(asked, &identity);
        }
        self.identify(client, identity, asked, Membership::refresh)
    }

    /// Changes who a client is. One that is not registered keeps the change to itself. `change` gets the last place that was
    /// delivered if the client keeps its position, and has begun: since then it is what it becomes.
    fn change_in<T>(
        &self,
        index: &mut Index,
        client: &Arc<Client>,
        change: impl FnOnce(&mut Membership, Option<Seq>) -> T,
    ) -> T {
        let mut own = client.membership_lock().write();
        if !client.is_registered() {
            // What it missed may still be replayed to one that came back.
            let at = own.former().and_then(|_| self.now_for(client));
            return change(&mut own, at);
        }
        let local = client.id.local;
        index.remove(local, &own);
        let result = change(&mut own, self.now_for(client));
        index.add(client, &mut own);
        result
    }

    /// The last place that was delivered, for a client that keeps its position. Asked under the write lock of `index`, so
    /// that all behind that place is delivered to what the client becomes.
    fn now_for(&self, client: &Client) -> Option<Seq> {
        client.keeps_position().then(|| self.position().seq)
    }

    pub(crate) fn join(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let group: Arc<str> = group.into();
        let new = own.join(group.clone(), self.now_for(client));
        if new && client.is_registered() {
            index.join(client.id.local, group);
        }
        new
    }

    pub(crate) fn leave(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let old = own.leave(group);
        if old && client.is_registered() {
            index.leave(client.id.local, group);
        }
        old
    }

    /// Sets a property, or removes it where the value is null.
    pub(crate) fn set_property(&self, client: &Arc<Client>, name: &str, value: Value) {
        self.change_in(&mut self.index.write(), client, |membership, at| membership.set_property(name, value, at));
    }

    /// Closes every connection, those on the way in included.
    pub(crate) fn close(&self) {
        self.index.write().closed = true;
        self.close_all(CloseCode::Restart, RESTART);
    }

    fn close_all(&self, code: CloseCode, reason: &'static str) {
        let index = self.index.read();
        index.clients.values().chain(index.arriving.values()).for_each(|client| client.queue.close(code, reason));
    }

    /// Sends a message to those of the clients whom it is for, beside the cluster's order.
    pub(crate) fn message(&self, target: &Target, message: &Outgoing<'_>) {
        self.fan_out_to(&self.index.read(), target, message, 0);
        self.write();
    }

    /// Queues a message for every matching client whose entry number is at least `since`. The fan-out writes it when it
    /// ends.
    fn fan_out_to(&self, index: &Index, target: &Target, message: &Outgoing<'_>, since: u64) {
        let certain = target.selects_exactly();
        let mut fan_out = self.fan_out.lock();
        index.select(target, |client| {
            let meant = || certain || target.matches(&Member(client.id, &client.membership()));
            if client.entered() >= since && meant() {
                fan_out.add(client, message);
            }
        });
    }

    /// Forgets those who are gone without having left.
    fn forget_gone(&self) {
        let gone = std::mem::take(&mut *self.gone.lock());
        if !gone.is_empty() {
            let mut index = self.index.write();
            gone.iter().for_each(|client| index.forget(client));
        }
    }

    /// Wakes the connections whose time has come.
    fn wake_due(&self) {
        let due = self.timers.due(Instant::now());
        if due.is_empty() {
            return;
        }
        let index = self.index.read();
        let known = due.iter().filter_map(|local| index.clients.get(local).or_else(|| index.arriving.get(local)));
        known.for_each(|client| client.queue.ring());
    }
}

impl DeliverySink for Hub {
    fn deliver(&self, delivery: Delivery) {
        let Delivery { position: place, id: publish, size, repeated, content: encoded } = delivery;
        let content = encoded.clone().and_then(|encoded| match Content::decode(encoded) {
            Ok(content) => Some(content),
            Err(error @ ContentError::Unknown) => {
                // Of a later version. It means nothing to this one, and is in the order all the same.
                tracing::debug!(%error, seq = place.seq, "an entry is passed over");
                None
            }
            Err(error) => {
                tracing::error!(%error, seq = place.seq, "an entry cannot be delivered");
                None
            }
        });
        let kept = match &content {
            Some(Content::Message { target, .. }) => encoded.map(|encoded| (target, encoded)),
            // Orders are never replayed.
            _ => None,
        };
        // Orders name who is connected when they come; never repeated.
        let order = content.as_ref().and_then(Content::subject).filter(|_| repeated.is_none());
        // The application's code, so no lock is held for it.
        order.iter().for_each(|subject| (self.revoked)(subject));
        let index = self.index.read();
        let since = self.replay_log.lock().append(place, publish, kept, size, repeated);
        if let Some(subject) = order {
            self.closes.note(subject.clone());
        }
        match &content {
            Some(Content::Message { target, action, details }) => {
                self.fan_out_to(&index, target, &Outgoing::new(action, details).at(place.into()), since);
            }
            Some(Content::Close(close)) if order.is_some() => {
                index.of(&close.subject).for_each(|client| match close {
                    Close { reconnect: true, .. } => client.queue.close(CloseCode::Expired, COME_AGAIN),
                    Close { subject: Subject::Session(_), .. } => client.dismiss("the session ended"),
                    Close { subject: Subject::User { .. }, .. } => client.dismiss("closed by the application"),
                });
            }
            Some(Content::Refresh(subject)) if order.is_some() => {
                index.of(subject).for_each(|client| client.refresh());
            }
            Some(Content::Revoked { connection, version }) => {
                self.replay_log.lock().revoke(*connection, *version, place.seq);
                // Whoever came back twice with the same is older than what was taken away.
                index.known_as(*connection).filter(|client| client.membership().version() < *version).for_each(
                    |client| {
                        client.queue.close(CloseCode::TryAgainLater, "it came back on another connection");
                    },
                );
            }
            _ => {}
        }
    }

    fn trimmed(&self, base: Seq) {
        let _index = self.index.read();
        self.replay_log.lock().trim(base);
    }

    fn cut(&self, after: Seq) {
        self.cut_back(after);
    }

    fn restarted(&self, base: Option<LogPosition>, missed: bool) {
        self.reset_to(base, missed);
    }

    fn write(&self) {
        // Not under the lock: writing takes a system call for each client.
        let fan_out = self.fan_out.lock().take();
        fan_out.write(self.runtime.as_ref());
    }

    fn tick(&self) {
        self.forget_gone();
        self.wake_due();
        self.look_again();
        self.tell_positions();
    }

    fn cut_off(&self) {
        self.close_all(CloseCode::TryAgainLater, "this node lost its cluster");
    }
}

impl Registration {
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Forgets the client.
    pub(crate) fn leave(&self) {
        self.hub.index.write().forget(&self.client);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.client.is_forgotten() {
            // Nobody was told that it ends: its runtime does, perhaps under the hub's lock, since a parked connection that
            // is woken then is dropped on the spot.
            drop(self.client.queue.abandon());
            self.hub.gone.lock().push(self.client.clone());
        }
        self.hub.admission.give_back(self.client.handshake.remote_ip());
    }
}
