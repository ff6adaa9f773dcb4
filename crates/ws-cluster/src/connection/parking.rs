//! Connections without a task. One that has got no message yet, or none for some seconds, gives its task up, which is a quarter of the
//! memory that it takes, and lies in its outbox until something wakes it: a byte of its client, a frame that its socket
//! does not take at once, a close, or its alarm. What is delivered to it is written by whoever delivers, as ever.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use super::{
    Client,
    task::{Connection, Phase, run},
    transport::{Tcp, Transport},
};

impl<T: Transport> Connection<T> {
    /// Whether it waits for nothing but what would wake it.
    pub(super) fn is_idle(&self) -> bool {
        let open = matches!(self.phase, Phase::Open) && self.arrival.is_here();
        let asks = self.expiry.as_ref().is_some_and(|expiry| expiry.recheck.is_some());
        open && self.quiet && !asks && self.work.is_none() && self.sleep.is_none() && self.decoder.is_empty()
    }
}

impl Connection<Tcp> {
    /// Parks it; gives it back where there is something to do.
    pub(super) fn park(self: Box<Self>) -> Option<Box<Self>> {
        let client = self.client().clone();
        let waker = Waker::from(client.clone());
        client.outbox.park(self, &waker)
    }

    /// Gives it a task again.
    pub(super) fn unpark(self: Box<Self>) {
        let runtime = self.server.runtime().clone();
        runtime.spawn(run(self));
    }
}

/// The waker of a parked connection. One that is left over from then wakes the task, which finds nothing to do.
impl Wake for Client {
    fn wake(self: Arc<Self>) {
        self.outbox.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.outbox.wake();
    }
}
