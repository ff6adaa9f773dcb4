//! The parts that the programs of this crate share: the requests that make a server publish, and the mark by which the
//! load generator counts messages.

pub mod control;

/// The result of a bench. Its only use is a line on the terminal, so it needs no error type of its own.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The key that opens HTTP publishing on our server.
pub const PUBLISH_KEY: &str = "a publish key of the benches";

/// The byte that each message contains once, and that servers send nowhere else. So messages can be counted in the
/// frames of any protocol.
pub const MARK: u8 = b'~';

/// Returns a text of `size` bytes with the mark at its end.
#[must_use]
pub fn marked(size: usize) -> String {
    let mut text = "x".repeat(size.saturating_sub(1));
    text.push(char::from(MARK));
    text
}
