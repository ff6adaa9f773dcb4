//! The last lines of a server's log.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use crate::stderr::Stderr;

/// Lines that are kept.
const LINES: usize = 1_000;
/// Longest line; a longer one becomes several.
const LINE_SIZE: u64 = 64 * 1024;

/// The last lines, each with its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// The number of the line after the last.
    next: u64,
}

impl Tail {
    /// Keeps each line of a log and passes it on, until the log ends.
    pub(super) async fn follow(self, mut log: impl AsyncBufRead + Unpin) {
        let mut line = Vec::new();
        while let Ok(1..) = (&mut log).take(LINE_SIZE).read_until(b'\n', &mut line).await {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            Stderr::get().line(&text);
            self.push(text);
            line.clear();
        }
    }

    fn push(&self, line: String) {
        let mut kept = self.0.lock();
        if kept.lines.len() == LINES {
            kept.lines.pop_front();
        }
        kept.lines.push_back(line);
        kept.next += 1;
    }

    /// Returns the last line.
    pub(super) fn last(&self) -> Option<String> {
        self.0.lock().lines.back().cloned()
    }

    /// Returns the lines from this number on that are still kept, and the number of the line after them.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the admin page"))]
    pub(super) fn since(&self, number: u64) -> (Vec<String>, u64) {
        let kept = self.0.lock();
        let first = kept.next - kept.lines.len() as u64;
        let skipped = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        (kept.lines.iter().skip(skipped).cloned().collect(), kept.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_with_their_numbers() {
        let tail = Tail::default();
        let log: String = (0..1_500).map(|number| format!("line {number}\n")).collect();
        tail.clone().follow(log.as_bytes()).await;
        let (lines, next) = tail.since(0);
        assert_eq!((lines.len(), &*lines[0], next), (1_000, "line 500", 1_500));
        assert_eq!(tail.since(1_499), (vec!["line 1499".to_owned()], 1_500));
        assert_eq!(tail.since(1_500), (vec![], 1_500));
        assert_eq!(tail.last().as_deref(), Some("line 1499"));
        // A line without an end does not fill the memory.
        tail.clone().follow(&vec![b'x'; 3 * LINE_SIZE as usize][..]).await;
        assert_eq!(tail.since(1_500).0.iter().map(String::len).collect::<Vec<_>>(), [LINE_SIZE as usize; 3]);
    }
}
