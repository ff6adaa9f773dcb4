//! The last lines of a log, for the admin page. Pure.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

/// Maximum number of lines.
const LINES: usize = 1_000;
/// Maximum size of all lines together, in bytes. The oldest lines are removed first.
const SIZE: usize = 4 * 1024 * 1024;
/// Maximum size of a line, in bytes. The rest of a longer line is left out.
const LINE_SIZE: usize = 64 * 1024;

/// The last lines, each with its number. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// The size of the lines in bytes.
    size: usize,
    /// The number of the line after the last. The first line ever has the number 1.
    next: u64,
}

/// A part of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) lines: Vec<String>,
    /// The number of the first of the lines.
    pub(crate) first: u64,
    /// The number of the last line of the log, 0 if there is none.
    pub(crate) last: u64,
}

impl Tail {
    /// Adds the lines of a text, without the escape sequences that colour them in a terminal.
    pub(crate) fn push(&self, text: &str) {
        let mut kept = self.0.lock();
        for line in text.lines() {
            let mut line = plain(line);
            line.truncate(line.floor_char_boundary(LINE_SIZE));
            kept.size += line.len();
            kept.lines.push_back(line);
            kept.next += 1;
            while kept.lines.len() > LINES || kept.size > SIZE {
                let oldest = kept.lines.pop_front().unwrap_or_default();
                kept.size -= oldest.len();
            }
        }
    }

    /// Returns the kept lines after this number.
    pub(crate) fn after(&self, number: u64) -> Part {
        let kept = self.0.lock();
        let first_kept = kept.next - kept.lines.len() as u64;
        // A higher number is from before a restart, so the whole log is new.
        let number = if number > kept.next { 0 } else { number };
        let skipped = usize::try_from(number.saturating_sub(first_kept)).unwrap_or(usize::MAX);
        let lines: Vec<_> = kept.lines.iter().skip(skipped).cloned().collect();
        Part { first: kept.next - lines.len() as u64 + 1, lines, last: kept.next }
    }
}

/// Returns a line without escape sequences (`ESC [ .. letter`) and other control characters.
fn plain(line: &str) -> String {
    let mut letters = line.trim_end().chars();
    let mut plain = String::with_capacity(line.len());
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => {
                let is_sequence = letters.as_str().starts_with('[');
                while is_sequence && letters.next().is_some_and(|letter| !letter.is_ascii_alphabetic()) {}
            }
            letter if letter.is_control() && letter != '\t' => {}
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_with_their_numbers() {
        let tail = Tail::default();
        assert_eq!(tail.after(0), Part { lines: vec![], first: 1, last: 0 });
        for number in 1..=1_500 {
            tail.push(&format!("line {number}\n"));
        }
        let part = tail.after(0);
        assert_eq!((part.lines.len(), &*part.lines[0], part.first, part.last), (1_000, "line 501", 501, 1_500));
        assert_eq!(tail.after(1_499), Part { lines: vec!["line 1500".to_owned()], first: 1_500, last: 1_500 });
        assert_eq!(tail.after(1_500), Part { lines: vec![], first: 1_501, last: 1_500 });
        assert_eq!(tail.after(7_000).lines.len(), 1_000, "the number is of another log");
    }

    #[test]
    fn long_lines_do_not_fill_the_memory() {
        let tail = Tail::default();
        for _ in 0..200 {
            tail.push(&"ü".repeat(LINE_SIZE));
        }
        let part = tail.after(0);
        assert!(part.lines.iter().all(|line| line.len() == LINE_SIZE));
        assert_eq!(part.lines.len(), SIZE / LINE_SIZE);
        assert_eq!(part.last, 200);
    }

    #[test]
    fn lines_lose_their_colours() {
        let tail = Tail::default();
        tail.push("\u{1b}[2m2026\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m a\tb\u{7}\nnext\u{1b}");
        assert_eq!(tail.after(0).lines, ["2026  INFO a\tb", "next"]);
    }
}
