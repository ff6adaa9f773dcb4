//! What a client sends: bytes are read while they may be handled, or read ahead for the sake of pings, and decoded into
//! events.

use std::{
    io,
    mem::MaybeUninit,
    task::{Context, Poll, ready},
};

use tokio::{io::ReadBuf, time::Instant};

use super::{
    Application,
    closing::{ClientEnd, Phase},
    task::{Connection, FirstMessage, ReadAhead},
    transport::Transport,
};
use crate::{
    RawMessage,
    message::client::{BadFrame, Malformed, parse},
    ws::{
        decoder::{Broken, Decoded, Event},
        frame,
    },
};

/// Size of one read. The buffer lies on the stack of the reading thread, so idle connections have none.
pub(super) const READ_SIZE: usize = 16 * 1024;

/// Bytes of a compressed message, compressed or inflated, that the rate limit counts as one message. A few bytes on the
/// wire can be inflated to the largest message, and the largest message can be inflated to nothing. Both take time. Most
/// messages are smaller.
const INFLATING_PER_MESSAGE: usize = 4 * 1024;

impl<T: Transport, A: Application> Connection<T, A> {
    /// Returns true if bytes are read. While a handler runs or messages are too frequent, most bytes stay in the
    /// socket, which slows the client down.
    pub(super) fn is_reading(&self) -> bool {
        self.takes_input() || matches!(self.phase, Phase::Open) && self.reads_ahead()
    }

    pub(super) fn reads_ahead(&self) -> bool {
        self.read_ahead == ReadAhead::Reads
            && self.decoder.kept() < self.config().message_size.saturating_add(READ_SIZE)
    }

    /// Returns true if messages are taken from what was read.
    pub(super) fn takes_input(&self) -> bool {
        match &self.phase {
            Phase::Open => self.takes_messages(),
            Phase::Closing(closing) => closing.client_end < ClientEnd::ShutDown,
        }
    }

    pub(super) fn takes_messages(&self) -> bool {
        self.work.is_none() && !self.paused && !self.join_phase.is_resuming()
    }

    /// Reads from the socket. Returns the number of bytes, which is 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(self.transport.poll_read(cx, &mut buffer, &self.handle.client().queue))?;
        let bytes = buffer.filled_mut();
        if !bytes.is_empty() {
            let size = bytes.len() as u64;
            self.note_activity();
            self.context().hub.stats().metered.note(|counts| counts.received_bytes.add(size));
        }
        if self.decoder.keeps() {
            // The next pass of the loop decodes them together.
            self.decoder.keep(bytes);
        } else {
            let read = self.read_messages(bytes);
            self.decoder.keep(&bytes[read..]);
        }
        // What the client sent first was no message, or only a part of one. The upgrade may be long ago when one comes.
        if self.first_message == FirstMessage::Soon && !bytes.is_empty() {
            self.first_message = FirstMessage::Late;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Continues with bytes that were read but could not be handled then.
    pub(super) fn read_kept(&mut self) {
        if self.decoder.keeps() && self.takes_input() {
            let mut kept = self.decoder.take_kept();
            let read = self.read_messages(&mut kept);
            self.decoder.put_back(kept, read);
        }
    }

    /// Answers the pings in the bytes that were read ahead, while messages have to wait.
    pub(super) fn answer_pings(&mut self) {
        if !self.decoder.keeps() || self.takes_input() || self.read_ahead == ReadAhead::Held {
            return;
        }
        let (limit, rate, pings, now) = (self.config().message_size, self.rate(), self.ping_rate(), Instant::now());
        let Self { decoder, limiter, paused, read_ahead, handle, .. } = self;
        decoder.take_pings(limit, |pong| {
            if limiter.next(pings) > now {
                *read_ahead = ReadAhead::Held;
                return false;
            }
            *paused |= limiter.count(rate, now);
            handle.client().queue.push(pong);
            true
        });
    }

    /// Handles one message after another until one starts work. Returns the number of bytes that were used.
    pub(super) fn read_messages(&mut self, bytes: &mut [u8]) -> usize {
        let mut read = 0;
        while self.takes_input() {
            if let Phase::Closing(closing) = &self.phase
                && closing.client_end > ClientEnd::Open
            {
                return bytes.len();
            }
            let (limit, deflate) = (self.config().message_size, self.client().deflate());
            let decoded = match &self.phase {
                Phase::Open => self.decoder.decode(&mut bytes[read..], limit, deflate),
                Phase::Closing(_) => self.decoder.decode_close(&mut bytes[read..], limit),
            };
            match decoded {
                Ok(Decoded { size: 0, .. }) => break,
                Ok(Decoded { size, event, inflating }) => {
                    read += size;
                    event.into_iter().for_each(|event| self.take(event, inflating));
                }
                Err(Broken { code, reason }) => {
                    self.close_with(frame::close(code, &reason));
                    self.client_ended(ClientEnd::Broken);
                    return bytes.len();
                }
            }
        }
        read
    }

    /// Handles an event. `inflating`: the size of a message that came compressed ([`Decoded::inflating`]).
    pub(super) fn take(&mut self, event: Event<'_>, inflating: usize) {
        match event {
            Event::Close(answer) => {
                self.close_with(answer);
                self.client_ended(ClientEnd::CloseFrame);
                return;
            }
            Event::Pong => return,
            Event::Ping(answer) => self.client().queue.push(answer),
            Event::Text(text) => {
                self.context().hub.stats().messages_in.add(1);
                match self.application.raw() {
                    Some(answer) => self.answer_raw(answer(RawMessage::Text(text.into_owned()))),
                    None => match parse(&text) {
                        Ok(incoming) => self.handle(incoming),
                        Err(Malformed::Frame(bad)) => self.bad_frame(bad),
                        Err(Malformed::Details { dialect, action, id, why }) => {
                            self.decide_dialect(dialect);
                            self.client().send_error(&action, 400, &why, id.as_ref());
                        }
                    },
                }
            }
            Event::Binary(bytes) => {
                self.context().hub.stats().messages_in.add(1);
                match self.application.raw() {
                    Some(answer) => self.answer_raw(answer(RawMessage::Binary(bytes.into_owned()))),
                    None => self.bad_frame(BadFrame::Binary),
                }
            }
        }
        self.quiet = false;
        // All messages of one read count as of the moment of the read.
        let rate = self.rate();
        let messages = inflating.div_ceil(INFLATING_PER_MESSAGE).max(1);
        self.paused = self.limiter.count_several(rate, messages, self.last_activity);
        if self.paused {
            self.context().hub.stats().metered.note(|counts| counts.rate_limited.add(1));
        }
    }
}
