//! The one place where bytes of clients are read and written, over whatever stream the upgrade left.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, ReadBuf};

use super::{Stream, decoder::Decoder, outbox::Outbox};

/// What is read at a time. It lies on the stack of the thread that reads, so that idle connections need none.
const READ: usize = 8 * 1024;

/// What became of the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes came; the decoder has them.
    Read,
    /// All that waited is written.
    Written,
    /// The client sends no more.
    End,
}

/// A stream with what it is being made to take.
pub(super) struct Socket<S> {
    stream: S,
    /// Taken from the outbox, not yet by the stream.
    writing: Bytes,
    flushed: bool,
    shut: bool,
}

impl<S: Stream> Socket<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, writing: Bytes::new(), flushed: true, shut: false }
    }

    /// Whether nothing taken from the outbox waits for the stream.
    pub(super) fn is_flushed(&self) -> bool {
        self.writing.is_empty() && self.flushed
    }

    /// Writes what waits and, if `reading`, reads what comes; resolves when either got somewhere. Both go on side by
    /// side: a client that takes nothing can still be read. Nothing is lost when the future is dropped.
    pub(super) async fn progress(
        &mut self,
        outbox: &Outbox,
        decoder: &mut Decoder,
        reading: bool,
    ) -> io::Result<Progress> {
        poll_fn(|cx| {
            let written = self.poll_write(outbox, cx)?;
            // Looked at even where something was written: a steady stream of messages must not keep the client's
            // own from being read.
            if reading && let Poll::Ready(read) = self.poll_read(decoder, cx) {
                return Poll::Ready(read);
            }
            written.map(|()| Ok(Progress::Written))
        })
        .await
    }

    /// Ready when something was written and nothing is left; pending as well where nothing waits.
    fn poll_write(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                self.writing = outbox.take();
            }
            if self.writing.is_empty() {
                break;
            }
            self.flushed = false;
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.writing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => outbox.written(&mut self.writing, size),
            }
        }
        if self.flushed {
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flushed = true;
        // The last frame goes back to those who share it.
        self.writing = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, decoder: &mut Decoder, cx: &mut Context<'_>) -> Poll<io::Result<Progress>> {
        let mut space = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(match buffer.filled() {
            [] => Progress::End,
            bytes => {
                decoder.feed(bytes);
                Progress::Read
            }
        }))
    }

    /// Tells the client that nothing more comes.
    pub(super) async fn shut_down(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.shut, true) {
            self.stream.shutdown().await?;
        }
        Ok(())
    }
}
