//! Standard error, written by a thread of its own. If its reader stops, the disk is full or the descriptor is closed,
//! lines of the log are lost, but nothing else happens.

use std::{
    io::{self, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::tail::Tail;

/// Maximum number of texts that wait for the reader of standard error. Further texts are dropped and counted.
const WAITING: usize = 1024;
/// Longest wait for the reader at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two attempts to add to a full queue.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

/// The text in the log in place of dropped lines. Their number comes before it.
const DROPPED: &str = "lines of the log were dropped: standard error was not read";

/// Writes to standard error. No method fails, panics, or waits for a reader, except `flush` for one second.
#[derive(Clone)]
pub(crate) struct Stderr(Arc<Shared>);

struct Shared {
    /// `None` if the thread could not be started. Then the caller's thread writes.
    queue: Option<SyncSender<Item>>,
    /// The number of texts dropped since the last write.
    dropped: AtomicU64,
    /// The last lines, if an admin page shows them.
    tail: OnceLock<Tail>,
}

impl Shared {
    fn new(queue: Option<SyncSender<Item>>) -> Self {
        Self { queue, dropped: AtomicU64::new(0), tail: OnceLock::new() }
    }
}

enum Item {
    Text(Vec<u8>),
    /// Answers when everything before it is written.
    Flush(SyncSender<()>),
}

impl Stderr {
    /// The process's standard error.
    pub(crate) fn get() -> &'static Self {
        static STDERR: OnceLock<Stderr> = OnceLock::new();
        STDERR.get_or_init(|| Self::start(io::stderr()))
    }

    fn start(output: impl Write + Send + 'static) -> Self {
        let (queue, items) = sync_channel(WAITING);
        let shared = Arc::new(Shared::new(Some(queue)));
        let own = shared.clone();
        match thread::Builder::new().name("log".to_owned()).spawn(move || work(&own.dropped, &items, output)) {
            Ok(_) => Self(shared),
            Err(_) => Self(Arc::new(Shared::new(None))),
        }
    }

    /// Writes a line, or drops it if too many wait.
    pub(crate) fn line(&self, line: impl std::fmt::Display) {
        self.push(format!("{line}\n").into_bytes());
    }

    /// Starts to keep the last lines, including lines that are dropped because there is no reader. Returns them.
    pub(crate) fn keep(&self) -> Tail {
        self.0.tail.get_or_init(Tail::default).clone()
    }

    fn push(&self, text: Vec<u8>) {
        if let Some(tail) = self.0.tail.get() {
            tail.push(&String::from_utf8_lossy(&text));
        }
        let Some(queue) = &self.0.queue else {
            let _ = io::stderr().write_all(&text);
            return;
        };
        if let Err(TrySendError::Full(_)) = queue.try_send(Item::Text(text)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything is written, for at most a second.
    pub(crate) fn flush(&self) {
        let Some(queue) = &self.0.queue else { return };
        let (written, answer) = sync_channel(1);
        let start = Instant::now();
        while let Err(TrySendError::Full(_)) = queue.try_send(Item::Flush(written.clone())) {
            if start.elapsed() >= FLUSH_TIMEOUT {
                return;
            }
            thread::sleep(FLUSH_PAUSE);
        }
        let _ = answer.recv_timeout(FLUSH_TIMEOUT.saturating_sub(start.elapsed()));
    }
}

fn work(dropped: &AtomicU64, items: &Receiver<Item>, mut output: impl Write) {
    // The loop ends with the process, because `Stderr` keeps the other end for ever.
    for item in items {
        match item {
            Item::Text(text) => {
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let notice = format!("{lost} {DROPPED}\n");
                    let _ = output.write_all(notice.as_bytes());
                }
                // There is no other place to report this to.
                let _ = output.write_all(&text);
            }
            Item::Flush(written) => {
                let _ = output.flush();
                let _ = written.send(());
            }
        }
    }
}

/// One event of the log is one call of `write`.
impl Write for &Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.push(text.to_vec());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Passes on what is written, and waits for a permit before each write.
    struct Gate {
        permits: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.permits.recv().map_err(io::Error::other)?;
            self.written.send(String::from_utf8_lossy(text).into_owned()).map_err(io::Error::other)?;
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_which_are_counted() {
        let ((permit, permits), (written, output)) = (channel(), channel());
        let stderr = Stderr::start(Gate { permits, written });
        let lines = 3 * WAITING as u64;
        (0..lines).for_each(|line| stderr.line(line));
        (0..2 * lines).for_each(|_| permit.send(()).unwrap());
        let (mut seen, mut lost) = (0, 0);
        while seen + lost < lines {
            let text = output.recv_timeout(Duration::from_secs(20)).expect("the thread writes");
            match text.trim_end().strip_suffix(DROPPED) {
                Some(count) => lost += count.trim_end().parse::<u64>().unwrap(),
                None => seen += 1,
            }
        }
        assert!(lost > 0 && seen >= WAITING as u64, "{seen} seen, {lost} lost");
        assert_eq!(seen + lost, lines);
    }

    #[test]
    fn an_output_that_fails_is_no_error_of_who_writes() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let stderr = Stderr::start(Full);
        (&stderr).write_all(b"one\n").unwrap();
        stderr.line("two");
        stderr.flush();
    }
}
