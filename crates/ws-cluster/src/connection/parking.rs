//! Connections without a task. A connection that has got no message yet, or none for some seconds, gives its task up, which
//! is a quarter of the memory that it takes, and lies in its send queue until something wakes it: a byte of its client, a
//! frame that its socket does not take at once, a close, or its timer. What is delivered to it is written by the fan-out.

use std::task::Waker;

use super::{
    Application,
    task::{Connection, Phase, run},
    transport::{Tcp, Transport},
};
use crate::send_queue::Parked;

impl<T: Transport, A: Application> Connection<T, A> {
    /// Whether it waits for nothing but what would wake it.
    pub(super) fn is_idle(&self) -> bool {
        let open = matches!(self.phase, Phase::Open) && self.join_phase.is_here();
        let asks = self.expiry.as_ref().is_some_and(|expiry| expiry.recheck.is_some());
        open && self.quiet && !asks && self.work.is_none() && self.sleep.is_none() && self.decoder.is_empty()
    }
}

impl<A: Application> Connection<Tcp, A> {
    /// Parks it; gives it back if there is something to do.
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
