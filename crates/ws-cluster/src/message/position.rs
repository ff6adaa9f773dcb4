//! The position that clients get with each message and bring back on their return. It is opaque to them. It is the same
//! for all clients, since it depends only on the entry's log position.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use prost::encoding::{decode_varint, encode_varint};

use ws_cluster_core::{LogPosition, Seq, Term};

/// Number of bytes of the master's id in a position: enough to distinguish two masters that used the same term.
const MARK: usize = 8;

/// A log position as a client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) term: Term,
    pub(crate) seq: Seq,
    mark: [u8; MARK],
}

/// The error for a text that is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position")]
pub(crate) struct ParsePositionError;

impl Position {
    /// The position before the first entry of any order.
    pub(crate) const START: Self = Self { term: 0, seq: 0, mark: [0; MARK] };

    /// Returns the log position, if the master's id fits into a position.
    #[cfg(test)]
    pub(crate) fn log_position(&self) -> LogPosition {
        let mut master = [0; 16];
        master[..MARK].copy_from_slice(&self.mark);
        LogPosition { term: self.term, master: ws_cluster_core::NodeId::from_bytes(master), seq: self.seq }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * 10 + MARK);
        encode_varint(self.term, &mut bytes);
        encode_varint(self.seq, &mut bytes);
        bytes.extend_from_slice(&self.mark);
        bytes
    }

    pub(crate) fn from_bytes(mut bytes: &[u8]) -> Result<Self, ParsePositionError> {
        let term = decode_varint(&mut bytes).map_err(|_| ParsePositionError)?;
        let seq = decode_varint(&mut bytes).map_err(|_| ParsePositionError)?;
        let mark = bytes.try_into().map_err(|_| ParsePositionError)?;
        Ok(Self { term, seq, mark })
    }

    /// Returns true if this is the position of that log position, rather than of another master's with the same
    /// numbers.
    pub(crate) fn is(&self, log_position: LogPosition) -> bool {
        *self == Self::from(log_position)
    }
}

impl From<LogPosition> for Position {
    fn from(log_position: LogPosition) -> Self {
        let [mark @ .., _, _, _, _, _, _, _, _] = *log_position.master.as_bytes();
        Self { term: log_position.term, seq: log_position.seq, mark }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.to_bytes()))
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        Self::from_bytes(&BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| ParsePositionError)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ws_cluster_core::NodeId;

    fn log_position(term: Term, master: u8, seq: Seq) -> LogPosition {
        LogPosition { term, master: NodeId::from_bytes([master; 16]), seq }
    }

    #[test]
    fn a_position_survives_its_text() {
        for log_position in
            [log_position(1, 7, 1), log_position(300, 0xff, 1_000_000), log_position(u64::MAX >> 2, 0, u64::MAX >> 2)]
        {
            let text = Position::from(log_position).to_string();
            let position: Position = text.parse().unwrap();
            assert!(position.is(log_position), "{text}");
            assert!(text.len() <= 36 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        }
    }

    #[test]
    fn the_master_is_part_of_it() {
        assert!(!Position::from(log_position(1, 7, 5)).is(log_position(1, 8, 5)));
    }

    #[test]
    fn anything_else_is_refused() {
        let whole = Position::from(log_position(2, 7, 5)).to_string();
        for text in ["", "0", "!", &whole[1..], &format!("{whole}AA"), "null"] {
            assert_eq!(text.parse::<Position>(), Err(ParsePositionError), "{text}");
        }
    }
}
