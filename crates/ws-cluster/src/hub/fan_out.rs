//! One round of writes to many clients. Messages that are delivered together leave in one write for each client,
//! directly to its socket.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::{
    hub::Client,
    message::client::OutgoingMessage,
    stats::{Stats, Stopwatch},
};
use ws_cluster_core::Seq;

/// Maximum number of clients that the cluster's task itself writes to. A larger round would keep the task from its
/// other work.
const MAX_INLINE: usize = 64;

/// Number of clients that one task writes to, and number of writes after which it yields: some hundred microseconds of
/// system calls.
const CHUNK: usize = 1024;
const YIELD_AFTER: usize = 64;

/// Notes how long a round took when the last of its tasks drops it.
struct Timer {
    stats: Arc<Stats>,
    stopwatch: Stopwatch,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.stats.metered.note(|counts| counts.fan_outs.observe(self.stopwatch.elapsed()));
    }
}

/// The clients that the round writes to, each of them once.
#[derive(Default)]
pub(super) struct FanOut(Vec<Arc<Client>>);

impl FanOut {
    /// Queues a message for a client. Returns the size of its frame.
    pub(super) fn add(&mut self, client: &Arc<Client>, message: &OutgoingMessage<'_>) -> usize {
        let (new, size) = client.add(message);
        if new {
            self.0.push(client.clone());
        }
        size
    }

    /// Queues a client's position, in a frame that clients share.
    pub(super) fn add_position(&mut self, client: &Arc<Client>, frame: &Bytes, seq: Seq) {
        if client.add_position(frame, seq) {
            self.0.push(client.clone());
        }
    }

    pub(super) fn take(&mut self) -> Self {
        Self(std::mem::take(&mut self.0))
    }

    /// Writes to a few clients at once, and to many in tasks of the server's runtime, in parallel if there are several
    /// processors. Messages that are delivered meanwhile join those that still wait.
    pub(super) fn write(self, runtime: Option<&Handle>, stats: &Arc<Stats>) {
        let Self(clients) = self;
        if clients.is_empty() {
            return;
        }
        let timer = Arc::new(Timer { stats: stats.clone(), stopwatch: Stopwatch::start() });
        let Some(runtime) = runtime.filter(|_| clients.len() > MAX_INLINE) else {
            return clients.iter().for_each(|client| client.queue.write());
        };
        let mut clients = clients.into_iter();
        while clients.len() > 0 {
            let chunk: Vec<_> = clients.by_ref().take(CHUNK).collect();
            let timer = timer.clone();
            runtime.spawn(async move {
                let _timer = timer;
                for writes in chunk.chunks(YIELD_AFTER) {
                    writes.iter().for_each(|client| client.queue.write());
                    tokio::task::yield_now().await;
                }
            });
        }
    }
}
