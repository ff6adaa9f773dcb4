//! The end of a connection, on whichever side it begins: the close frames, and how long the other side is waited for.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Application, task::Connection, transport::Transport};
use crate::send_queue::End;

pub(super) enum Phase {
    Open,
    Closing(Box<Closing>),
}

/// The state of a connection whose close frame is on its way or sent, or whose client sends no more.
pub(super) struct Closing {
    /// The time at which the socket is dropped.
    pub(super) until: Instant,
    pub(super) client_end: ClientEnd,
    /// The content of the first close frame, if the queue does not know it.
    pub(super) end: Option<End>,
}

/// The client's progress in ending the connection. Later bytes are read but ignored: unread bytes would
/// reset the connection, and the frames on their way to the client would be lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientEnd {
    /// The client has not sent its close frame.
    Open,
    /// The client's bytes are invalid, so no close frame can come.
    Broken,
    /// The client has sent its close frame.
    CloseFrame,
    /// The client has shut down its side.
    ShutDown,
}

impl<T: Transport, A: Application> Connection<T, A> {
    /// Starts closing. The queue ends with a close frame.
    pub(super) fn close(&mut self) {
        let until = Instant::now() + self.context().close_timeout();
        self.phase = Phase::Closing(Box::new(Closing { until, client_end: ClientEnd::Open, end: None }));
    }

    /// Closes with an encoded close frame, unless the connection is closing already.
    pub(super) fn close_with(&mut self, close: Bytes) {
        let end = (!self.client().queue.is_sealed()).then(|| End::of(&close));
        self.client().queue.seal(close);
        if matches!(self.phase, Phase::Open) {
            self.close();
        }
        if let Phase::Closing(closing) = &mut self.phase
            && end.is_some()
        {
            closing.end = end;
        }
    }

    /// Notes how far the client has ended the connection, on whichever side the close began.
    pub(super) fn client_ended(&mut self, client_end: ClientEnd) {
        if matches!(self.phase, Phase::Open) {
            self.close();
        }
        if let Phase::Closing(closing) = &mut self.phase {
            closing.client_end = client_end;
        }
    }
}
