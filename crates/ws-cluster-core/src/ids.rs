//! The identifiers of the core: nodes, terms, log positions, publishes and links.

use std::{fmt, str::FromStr};

/// One run of one server: 16 random bytes, drawn anew at every start, so that a restarted process is never taken for
/// its predecessor. Its text is 32 hexadecimal digits:
///
/// ```
/// use ws_cluster_core::NodeId;
///
/// let node = NodeId::from_bytes([0xa1; 16]);
/// assert_eq!(node.to_string().parse(), Ok(node));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// Makes the id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, as the pool stores them and links carry them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not the id of a node, which has 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseNodeIdError;

impl fmt::Display for ParseNodeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the id of a node has 32 hexadecimal digits")
    }
}

impl std::error::Error for ParseNodeIdError {}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, ParseNodeIdError> {
        // `from_str_radix` also takes a sign.
        let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or(ParseNodeIdError)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight digits tell the nodes of a cluster apart and keep log lines short.
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The number of a term: the time in which one node is master. Terms only grow, and a term has at most one master.
pub type Term = u64;

/// A link between two nodes, as the driver numbers them.
pub type LinkId = u64;

/// The number of an entry in the log: 1 for the first, without gaps, across terms.
pub type Seq = u64;

/// The position of an entry, with the master that wrote it. Two masters that wrote different entries with the same
/// number have different positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// The term of the entry.
    pub term: Term,
    /// The master of that term.
    pub master: NodeId,
    /// The number of the entry.
    pub seq: Seq,
}

/// Identifies a publish for ever: the publishing node and its publish counter. A node draws a new id at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId {
    /// The node that took the publish.
    pub origin: NodeId,
    /// Counts the publishes of that node; 1 for the first.
    pub counter: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_node_id_is_read_again_and_no_other_is() {
        let node = NodeId::from_bytes(std::array::from_fn(|index| 17 * index as u8));
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(node.to_string().to_uppercase().parse(), Ok(node));
        for wrong in ["", "00112233", "+0112233445566778899aabbccddeeff", "0x112233445566778899aabbccddeeff"] {
            assert_eq!(wrong.parse::<NodeId>(), Err(ParseNodeIdError), "{wrong}");
        }
        let long = format!("{node}0");
        assert_eq!(long.parse::<NodeId>(), Err(ParseNodeIdError));
    }
}
