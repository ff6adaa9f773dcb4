//! `send --lines`: publishes many messages from standard input, and prints the outcome of each.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
};

use serde_json::json;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use ws_cluster::{Message, PublishError};

use super::connect;
use crate::{Failure, Outcome, cli::Place, say};

/// Maximum number of lines that are published together, as in a batch over HTTP.
const BATCH: usize = 1000;

/// Size in bytes from which a batch takes no further line.
const BATCH_SIZE: usize = 1024 * 1024;

/// Maximum size of a line, in bytes. Escapes can make it several times as long as the message, which has at most 1 MiB.
const LINE_SIZE: usize = 8 * 1024 * 1024;

/// Maximum number of bytes of lines that are read ahead or being published.
const ROOM: usize = 16 * 1024 * 1024;

/// A line, or its size if it is too long.
type Line = Result<Vec<u8>, usize>;

/// A line in the queue, with its part of the room. Publishing the line frees the part.
type Queued = (Line, OwnedSemaphorePermit);

/// The sender of the queue. A line waits until there is room for it.
struct Lines {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

impl Lines {
    fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (queue, lines) = mpsc::channel(BATCH);
        (Self { queue, room: Arc::new(Semaphore::new(ROOM)) }, lines)
    }

    /// Passes a line on. Returns false if lines are no longer taken.
    async fn pass(&self, line: Line) -> bool {
        // The buffer of a line may be twice as large as the line.
        let size = line.as_ref().map_or(0, Vec::capacity).min(ROOM);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().acquire_many_owned(size).await else { return false };
        self.queue.send((line, room)).await.is_ok()
    }
}

/// Publishes the messages of standard input in their order. Lines that come while others are published go together.
pub(super) async fn send(place: &Place) -> Outcome {
    let publisher = connect(place).await?;
    let (queue, mut lines) = Lines::new();
    let runtime = Handle::current();
    // A separate thread reads, because a read of a terminal or a pipe cannot be cancelled. It ends with the process.
    let reader = std::thread::Builder::new().name("lines".to_owned());
    let reading = reader.spawn(move || read(io::stdin().lock(), |line| runtime.block_on(queue.pass(line))));
    let reading = reading.map_err(|error| Failure::refused(format!("no thread can be started: {error}")))?;
    let (mut count, mut failed) = (0, 0);
    while let Some(first) = lines.recv().await {
        let mut size = first.0.as_ref().map_or(0, Vec::len);
        let mut batch = vec![first];
        while batch.len() < BATCH
            && size < BATCH_SIZE
            && let Ok(next) = lines.try_recv()
        {
            size += next.0.as_ref().map_or(0, Vec::len);
            batch.push(next);
        }
        let (batch, _room): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut messages = Vec::new();
        let refused: Vec<_> = batch
            .into_iter()
            .map(|line| {
                let line = line.map_err(|size| PublishError::TooLarge { size, limit: LINE_SIZE })?;
                messages.push(Message::from_json(&line)?);
                Ok(())
            })
            .collect();
        let mut published = publisher.publish_all(messages).await.into_iter();
        for refused in refused {
            let outcome = refused.and_then(|()| published.next().unwrap_or(Err(PublishError::OutcomeUnknown)));
            count += 1;
            failed += usize::from(outcome.is_err());
            say(match outcome {
                Ok(()) => json!({ "status": 204 }),
                Err(error) => json!({ "status": error.status_code(), "error": error.to_string() }),
            })?;
        }
    }
    match reading.join() {
        Ok(Ok(())) if failed == 0 => Ok(()),
        Ok(Ok(())) => Err(Failure::refused(format!("{failed} of {count} messages were not accepted"))),
        Ok(Err(error)) => Err(Failure::setup(format!("standard input cannot be read ({error})"))),
        Err(_) => Err(Failure::refused("the thread that reads standard input panicked")),
    }
}

/// Reads lines and passes them on until `take` returns false. Empty lines are skipped.
fn read(mut input: impl BufRead, mut take: impl FnMut(Line) -> bool) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        let mut size = (&mut input).take(LINE_SIZE as u64 + 1).read_until(b'\n', &mut line)?;
        if size == 0 {
            return Ok(());
        }
        let line = match line.last() {
            Some(b'\n') => Ok(line),
            _ if size <= LINE_SIZE => Ok(line),
            _ => {
                size += input.skip_until(b'\n')?;
                Err(size)
            }
        };
        if !line.as_ref().is_ok_and(|line| line.trim_ascii().is_empty()) && !take(line) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn lines_that_are_read_ahead_take_16_mib_at_most() {
        let (queue, mut lines) = Lines::new();
        let quarter = || Ok(Vec::with_capacity(ROOM / 4));
        for _ in 0..4 {
            assert!(queue.pass(quarter()).await);
        }
        let mut next = Box::pin(queue.pass(quarter()));
        let poll = |next: Pin<&mut dyn Future<Output = bool>>| next.poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll(next.as_mut()), Poll::Pending);
        // A line that is taken from the queue has its place until it is published.
        let first = lines.recv().await;
        assert_eq!(poll(next.as_mut()), Poll::Pending);
        drop(first);
        assert_eq!(poll(next.as_mut()), Poll::Ready(true));
        drop((next, lines));
        assert!(!queue.pass(Err(LINE_SIZE + 1)).await);
    }

    #[test]
    fn lines_are_read_one_by_one_and_those_that_are_too_long_are_left_out() {
        let long = "x".repeat(LINE_SIZE);
        let input = format!("one\n\n \r\ntwo\r\n{long}\n{long}yy\nlast");
        let mut lines = Vec::new();
        read(input.as_bytes(), |line| {
            lines.push(line.map(|line| line.trim_ascii().len()));
            true
        })
        .unwrap();
        assert_eq!(lines, [Ok(3), Ok(3), Ok(LINE_SIZE), Err(LINE_SIZE + 3), Ok(4)]);
    }
}
