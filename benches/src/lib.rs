//! What the programs of this crate share: the requests by which a server is told to publish, and the mark that the
//! load generator counts messages by.

pub mod control;

/// A crate's own error is not worth a type where all that follows is a line on the terminal.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The byte that each message holds once, and nothing else that a server sends: so messages are counted whatever
/// frames a protocol puts them into.
pub const MARK: u8 = b'~';

/// A text of `size` bytes with the mark at its end.
#[must_use]
pub fn marked(size: usize) -> String {
    let mut text = "x".repeat(size.saturating_sub(1));
    text.push(char::from(MARK));
    text
}
