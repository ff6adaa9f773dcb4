//! Connections without a task. A connection that has got no message yet, or none for some seconds, gives up its task,
//! which is a quarter of its memory. It lies in its send queue until it is woken: by a byte from its client, a frame
//! that its socket does not take at once, a close, or its timer. The fan-out writes what is delivered meanwhile.

use std::task::Waker;

use super::{
    Application,
    closing::Phase,
    run::run,
    task::Connection,
    transport::{Tcp, Transport},
};
use crate::send_queue::Parked;

impl<T: Transport, A: Application> Connection<T, A> {
    /// Returns true if the connection waits only for events that would also wake it if it were parked.
    pub(super) fn is_idle(&self) -> bool {
        let open = matches!(self.phase, Phase::Open) && self.join_phase.is_joined();
        let asks = self.expiry.as_ref().is_some_and(|expiry| expiry.recheck.is_some());
        open && self.quiet && !asks && self.work.is_none() && self.sleep.is_none() && self.decoder.is_empty()
    }
}

impl<A: Application> Connection<Tcp, A> {
    /// Parks the connection. Returns it if there is something to do.
    pub(super) fn park(self: Box<Self>) -> Option<Box<Self>> {
        let client = self.client().clone();
        let waker = Waker::from(client.clone());
        client.queue.park(self, &waker)
    }
}

impl<A: Application> Parked for Connection<Tcp, A> {
    fn unpark(self: Box<Self>) {
        let runtime = self.context().runtime.clone();
        runtime.spawn(run(self));
    }
}
