//! The messages that wait for a connection. A request that ends leaves the queue at once, so that requests that nobody
//! waits for do not fill it while there is no connection.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Outgoing, SendError};

/// A bounded queue that many handles fill and the client's task empties.
pub(super) struct Queue {
    limit: usize,
    /// A synchronous lock, held to add or take one message, or to find one.
    queued: Mutex<QueuedMessages>,
    /// Wakes the task. It keeps one wake-up until the task sees it.
    added: Notify,
}

#[derive(Default)]
struct QueuedMessages {
    messages: VecDeque<Outgoing>,
    closed: bool,
}

impl Queue {
    /// Returns an empty queue for at most `limit` messages.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, queued: Mutex::default(), added: Notify::new() }
    }

    /// Adds a message, unless the queue is full or closed.
    pub(super) fn push(&self, message: Outgoing) -> Result<(), SendError> {
        let mut queued = self.queued.lock();
        if queued.closed {
            return Err(SendError::Closed);
        }
        if queued.messages.len() >= self.limit {
            return Err(SendError::Full);
        }
        queued.messages.push_back(message);
        drop(queued);
        self.added.notify_one();
        Ok(())
    }

    /// Waits for the next message and takes it. Only one task may wait. The future may be dropped while it waits; no
    /// message is lost.
    pub(super) async fn next(&self) -> Outgoing {
        loop {
            if let Some(message) = self.take() {
                return message;
            }
            self.added.notified().await;
        }
    }

    /// Takes the next message, if there is one.
    pub(super) fn take(&self) -> Option<Outgoing> {
        self.queued.lock().messages.pop_front()
    }

    /// Removes a request.
    pub(super) fn remove(&self, id: u64) {
        self.queued.lock().messages.retain(|message| message.id != Some(id));
    }

    /// Refuses messages from now on. Those that wait stay.
    pub(super) fn close(&self) {
        self.queued.lock().closed = true;
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queued.lock().messages.is_empty()
    }
}
