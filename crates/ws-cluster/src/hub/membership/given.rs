//! What the authenticator gave a client, as hashes: they tell which groups and properties are new when it comes back.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::message::target::property_text;

/// The hashes of what the authenticator gave a client when its token was sealed. Hashes are enough, since names can be
/// long and the token is only compared with what the authenticator gives now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GivenHashes {
    /// The sorted hashes.
    Each(Vec<u64>),
    /// One hash of all of them, if single hashes would take too much room.
    All(u64),
}

/// The error if it cannot be told which groups and properties a client had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenError;

impl GivenHashes {
    /// Maximum number of hashes that are kept one by one.
    const MAX_EACH: usize = 64;

    /// Replaces many hashes by one.
    pub(crate) fn short(self) -> Self {
        match self {
            Self::Each(hashes) if hashes.len() > Self::MAX_EACH => Self::All(hash_all(&hashes)),
            given => given,
        }
    }

    /// Returns the single hashes. `now`: the hashes of what the authenticator gives now.
    pub(super) fn known(self, now: Vec<u64>) -> Result<Vec<u64>, GivenError> {
        match self {
            Self::Each(hashes) => Ok(hashes),
            Self::All(hash) if hash == hash_all(&now) => Ok(now),
            Self::All(_) => Err(GivenError),
        }
    }
}

pub(super) fn group_hash(name: &str) -> u64 {
    hash([&b"group "[..], name.as_bytes()])
}

pub(super) fn property_hash(name: &str, value: &Value) -> u64 {
    let size = (name.len() as u64).to_be_bytes();
    hash([&b"property "[..], &size, name.as_bytes(), property_text(value).as_bytes()])
}

fn hash_all(hashes: &[u64]) -> u64 {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    hash([&b"all "[..], &bytes])
}

/// Returns the first bytes of a SHA-256, which is the same on every node.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    let hash: [u8; 32] = hash.finalize().into();
    let (bytes, _) = hash.split_first_chunk().expect("more than eight bytes");
    u64::from_be_bytes(*bytes)
}
