//! The clients of this node, and the delivery of the cluster's messages to them. `index` finds clients, `admission`
//! counts connections, and `resume` handles clients that come back. [`SendQueue`](crate::send_queue::SendQueue) writes
//! to a client's socket.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    CloseCode, Config,
    message::{close::Subject, target::ConnectionId},
    send_queue::MAX_JOINED,
    stats::Stats,
};
use ws_cluster_core::{NodeId, Seq};

mod accept_rate;
mod admission;
mod client;
mod clients;
mod closes;
mod coarse_timers;
mod delivery;
mod fan_out;
mod index;
mod listing;
pub(crate) mod membership;
mod regroup;
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

/// The reason in the close frame when the node shuts down.
const RESTART: &str = "the server restarts";

/// The reason in the close frame when the application wants clients to authenticate again.
const AUTHENTICATE_AGAIN: &str = "authenticate again";

/// The clients of this node.
pub(crate) struct Hub {
    node: NodeId,
    /// Called with each command to close or refresh connections before the connections are closed or refreshed. The
    /// authenticator forgets what it has cached about them, so that no client comes back with it.
    forget: Box<dyn Fn(&Subject) + Send + Sync>,
    next: AtomicU64,
    /// The entry number of the next client that the hub begins to deliver to. Grows under the write lock of `index`
    /// only.
    entered: AtomicU64,
    /// Deliveries read; connects, disconnects and changes of membership write. A synchronous lock, held for one fan-out
    /// over the matching clients and never across an await. A client that joins during a fan-out waits for its end, and
    /// so gets every later entry, in order. Lock order: this one, then `fan_out`, then a client's own, then
    /// `replay_log`.
    index: RwLock<Index>,
    /// The entries that were delivered. Only the cluster's task appends, under a read lock of `index`. So a client that
    /// joins under the write lock gets exactly the entries that follow.
    replay_log: Mutex<ReplayLog>,
    /// Wakes the clients that wait for this node to reach their position.
    advanced: Notify,
    /// The clients that have got frames since the last write. A synchronous lock, held while messages are queued for
    /// all matching clients. The cluster's task takes it, the task that begins a round, and messages outside of the
    /// order.
    fan_out: Arc<Mutex<FanOut>>,
    /// The server's runtime, whose tasks write a fan-out to many clients. `None` in tests that write nothing.
    runtime: Option<Handle>,
    /// Maximum size of the messages that are queued for a client at a time, in bytes.
    max_batch_size: usize,
    timers: CoarseTimers,
    closes: Closes,
    /// Clients that are gone and that the hub has to forget. A synchronous lock; no other lock is taken under it.
    gone: Mutex<Vec<Arc<Client>>>,
    admission: Arc<Admission>,
    stats: Arc<Stats>,
}

/// A client that the hub knows until it leaves, and counts until this value is dropped. A client that has not left by
/// then is forgotten soon after.
pub(crate) struct ClientHandle {
    hub: Arc<Hub>,
    client: Arc<Client>,
}

impl Hub {
    /// Returns a hub without clients. The cluster's task calls `forget` with each command to close or refresh
    /// connections; it must not block or panic.
    pub(crate) fn new(node: NodeId, config: &Config, forget: impl Fn(&Subject) + Send + Sync + 'static) -> Self {
        Self {
            node,
            forget: Box::new(forget),
            next: AtomicU64::new(1),
            entered: AtomicU64::new(0),
            index: RwLock::default(),
            replay_log: Mutex::new(ReplayLog::new(config)),
            advanced: Notify::new(),
            fan_out: Arc::default(),
            runtime: Handle::try_current().ok(),
            max_batch_size: MAX_JOINED.min(config.connection.queue_size / 8),
            timers: CoarseTimers::new(),
            closes: Closes::default(),
            gone: Mutex::default(),
            admission: Arc::default(),
            stats: Arc::default(),
        }
    }

    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.stats
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

    /// Returns an id that no other connection has or had.
    pub(crate) fn next_id(&self) -> ConnectionId {
        ConnectionId { node: self.node, local: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Takes in a client without delivering to it yet. From now on the client is closed with its session. The handle takes
    /// over the slot to which the connection was admitted under its handshake's address, and gives it back when dropped.
    ///
    /// Fails if the client's session or user was closed or refreshed after `asked`, the moment at which the
    /// authenticator was asked about the client.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        client: Arc<Client>,
        mut membership: Membership,
        slot: &mut Option<Slot>,
        asked: Moment,
    ) -> Result<ClientHandle, Stale> {
        let mut index = self.index.write();
        self.closes.check(asked, &membership)?;
        slot.take().into_iter().for_each(Slot::transfer);
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
        Ok(ClientHandle { hub: self.clone(), client })
    }

    /// Changes who a client is, after the authenticator was asked at `asked`. Fails as [`arrive`](Self::arrive) does,
    /// without a change.
    pub(crate) fn identify(
        &self,
        client: &Arc<Client>,
        identity: Membership,
        asked: Moment,
        change: impl FnOnce(&mut Membership, Membership, Option<Seq>),
    ) -> Result<(), Stale> {
        let mut index = self.index.write();
        self.closes.check(asked, &identity)?;
        self.change_membership(&mut index, client, |own, at| change(own, identity, at));
        Ok(())
    }

    /// Delivers to a client that has arrived from now on.
    pub(crate) fn begin_delivery(&self, client: &Client) {
        self.deliver_to(&mut self.index.write(), client);
    }

    fn deliver_to(&self, index: &mut Index, client: &Client) {
        let Some(client) = index.arriving.remove(&client.id.local) else { return };
        let mut own = client.membership_lock().write();
        client.enter(self.entered.fetch_add(1, Ordering::Relaxed));
        index.clients.insert(client.clone());
        index.add(&client, &mut own);
    }

    /// Gives a client what the authenticator, asked at `asked`, says of its session now. Fails as
    /// [`arrive`](Self::arrive) does, without a change.
    pub(crate) fn refresh(&self, client: &Arc<Client>, identity: Membership, asked: Moment) -> Result<(), Stale> {
        let same = {
            let own = client.membership();
            let mut refreshed = own.clone();
            refreshed.refresh(identity.clone(), None);
            refreshed == *own
        };
        if same {
            // Most rechecks change nothing, so they do not take the write lock. A command to close this client has
            // found it in the index.
            return self.closes.check(asked, &identity);
        }
        self.identify(client, identity, asked, Membership::refresh)
    }

    /// Changes the membership of a client. The index is left alone if the hub does not deliver to the client yet.
    /// `change` gets the last sequence number that was delivered, if the client tracks its position and deliveries to
    /// it have begun. The new membership counts since then.
    fn change_membership<T>(
        &self,
        index: &mut Index,
        client: &Arc<Client>,
        change: impl FnOnce(&mut Membership, Option<Seq>) -> T,
    ) -> T {
        let mut own = client.membership_lock().write();
        if !client.is_joined() {
            // A client that came back may still get a replay of what it missed.
            let at = own.former().and_then(|_| self.position_for(client));
            return change(&mut own, at);
        }
        let local = client.id.local;
        index.remove(local, &own);
        let result = change(&mut own, self.position_for(client));
        index.add(client, &mut own);
        result
    }

    /// Returns the last sequence number that was delivered, for a client that tracks its position or has not joined
    /// yet. Called under the write lock of `index`, so that every later entry is delivered to the changed client.
    fn position_for(&self, client: &Client) -> Option<Seq> {
        (client.keeps_position() || !client.is_joined()).then(|| self.position().seq)
    }

    pub(crate) fn join(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let group: Arc<str> = group.into();
        let new = own.join(group.clone(), self.position_for(client));
        if new && client.is_joined() {
            index.join(client.id.local, group);
        }
        new
    }

    pub(crate) fn leave(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let old = own.leave(group);
        if old && client.is_joined() {
            index.leave(client.id.local, group);
        }
        old
    }

    /// Sets a property, or removes it if `value` is null.
    pub(crate) fn set_property(&self, client: &Arc<Client>, name: &str, value: Value) {
        self.change_membership(&mut self.index.write(), client, |membership, at| {
            membership.set_property(name, value, at)
        });
    }

    /// Closes every connection as `close` does, but one after the other, evenly over this time; those that have come up
    /// to now. Ends sooner if all connections are over.
    pub(crate) async fn close_evenly(&self, over: Duration) {
        let clients: Vec<_> = {
            let index = self.index.read();
            index.clients.iter().chain(index.arriving.values()).cloned().collect()
        };
        let start = tokio::time::Instant::now();
        let closing = async {
            let count = clients.len().max(1) as u32;
            for (number, client) in clients.into_iter().enumerate() {
                // Ends at once if the time is over, so that many clients are closed between two ticks of the timer.
                tokio::time::sleep_until(start + over.mul_f64(number as f64 / f64::from(count))).await;
                client.queue.close(CloseCode::Restart, RESTART);
            }
            tokio::time::sleep_until(start + over).await;
        };
        tokio::select! {
            () = closing => {}
            _ = self.admission.drained(over) => {}
        }
    }

    /// Closes every connection, including those that have not joined yet.
    pub(crate) fn close(&self) {
        self.index.write().closed = true;
        self.close_all(CloseCode::Restart, RESTART);
    }

    fn close_all(&self, code: CloseCode, reason: &'static str) {
        let index = self.index.read();
        index.clients.iter().chain(index.arriving.values()).for_each(|client| client.queue.close(code, reason));
    }

    /// Forgets the clients whose handles were dropped.
    fn forget_gone(&self) {
        let gone = std::mem::take(&mut *self.gone.lock());
        if !gone.is_empty() {
            let mut index = self.index.write();
            gone.iter().for_each(|client| _ = index.forget(client));
        }
    }

    /// Wakes the connections whose timers are due.
    fn wake_due(&self) {
        let due = self.timers.due(Instant::now());
        if due.is_empty() {
            return;
        }
        let index = self.index.read();
        let known = due.iter().filter_map(|local| index.clients.get(*local).or_else(|| index.arriving.get(local)));
        known.for_each(|client| client.queue.wake_for_timer());
    }
}

impl ClientHandle {
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Makes the hub forget the client. Returns true if the hub delivers to another connection of it, which has
    /// resumed.
    pub(crate) fn leave(&self) -> bool {
        self.hub.index.write().forget(&self.client)
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        if !self.client.is_forgotten() {
            // The handle is dropped without a leave only if the runtime ends. That can happen under the hub's
            // lock, because a parked connection that is woken then is dropped at once. So the client is only listed
            // here.
            drop(self.client.queue.abandon());
            self.hub.gone.lock().push(self.client.clone());
        }
        self.hub.admission.give_back(self.client.handshake.remote_ip());
    }
}
