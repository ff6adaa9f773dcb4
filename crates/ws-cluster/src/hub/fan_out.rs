//! One round of writes to the clients whom messages are for: what is delivered at once goes out in one write to each, directly to
//! its socket.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::{hub::Client, message::client::Outgoing};
use ws_cluster_core::Seq;

/// Clients that are written to on the spot. The cluster's task does it, which has better things to do.
const AT_ONCE: usize = 64;

/// Clients that one task writes to, and after how many it lets others run: some hundred microseconds of system calls.
const CHUNK: usize = 1024;
const TURN: usize = 64;

/// The clients to be written to, each of them once.
#[derive(Default)]
pub(super) struct FanOut(Vec<Arc<Client>>);

impl FanOut {
    /// Queues a message for a client.
    pub(super) fn add(&mut self, client: &Arc<Client>, message: &Outgoing<'_>) {
        if client.add(message) {
            self.0.push(client.clone());
        }
    }

    /// Queues a client's position, in a frame that others share.
    pub(super) fn tell(&mut self, client: &Arc<Client>, frame: &Bytes, seq: Seq) {
        if client.tell(frame, seq) {
            self.0.push(client.clone());
        }
    }

    pub(super) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    /// Writes: to a few at once, to many in tasks of the server's runtime, which run side by side where there are
    /// processors. What is delivered meanwhile joins what still waits.
    pub(super) fn write(self, runtime: Option<&Handle>) {
        let Self(clients) = self;
        let Some(runtime) = runtime.filter(|_| clients.len() > AT_ONCE) else {
            return clients.iter().for_each(|client| client.queue.write());
        };
        let mut clients = clients.into_iter();
        while clients.len() > 0 {
            let chunk: Vec<_> = clients.by_ref().take(CHUNK).collect();
            runtime.spawn(async move {
                for turn in chunk.chunks(TURN) {
                    turn.iter().for_each(|client| client.queue.write());
                    tokio::task::yield_now().await;
                }
            });
        }
    }
}
