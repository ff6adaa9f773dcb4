//! The key of the admin page: what it may be, and how it is compared.

use std::io;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::random;

/// Minimum size of a key, in bytes.
const SIZE: usize = 16;
/// Minimum number of different characters in a key.
const VARIETY: usize = 6;

/// Says what is wrong with a key.
pub(super) fn check(key: &str) -> Result<(), String> {
    let remedy = "make one with `openssl rand -hex 16`";
    if key.contains(char::is_control) {
        return Err(format!("contains a line break or another control character: {remedy}"));
    }
    if !key.is_ascii() || key.trim() != key {
        return Err(format!("has a letter beyond ASCII, or a space at an end, which no header can have: {remedy}"));
    }
    if key.len() < SIZE {
        return Err(format!("has {} bytes, and needs at least {SIZE}: {remedy}", key.len()));
    }
    let mut letters: Vec<char> = key.chars().collect();
    letters.sort_unstable();
    letters.dedup();
    if letters.len() < VARIETY {
        return Err(format!("is too simple: {remedy}"));
    }
    Ok(())
}

/// A random secret of this process that keys the hashes of texts. To compare two hashes takes the same time for every
/// text. It has no `Debug`, so that no log shows it.
pub(super) struct Secret([u8; 32]);

impl Secret {
    pub(super) fn new() -> io::Result<Self> {
        random::bytes().map(Self)
    }

    /// Hashes a text for a purpose.
    pub(super) fn hash(&self, purpose: &str, text: &str) -> [u8; 32] {
        self.mac(purpose, text).finalize().into_bytes().into()
    }

    /// Returns true if the text has this hash.
    pub(super) fn matches(&self, purpose: &str, text: &str, hash: &[u8; 32]) -> bool {
        self.mac(purpose, text).verify_slice(hash).is_ok()
    }

    fn mac(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of 32 bytes");
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(text.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_simple_keys_are_refused() {
        assert!(check("0123456789abcdef").is_ok());
        for (key, says) in [
            ("", "has 0 bytes, and needs at least 16"),
            ("0123456789abcde", "has 15 bytes"),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", "is too simple"),
            ("................", "is too simple"),
            ("0123456789abcdéf", "has a letter beyond ASCII"),
            ("0123456789abcdef ", "has a letter beyond ASCII, or a space at an end"),
            ("0123456789abcdef\nx", "contains a line break"),
        ] {
            assert!(check(key).unwrap_err().starts_with(says), "{key:?}");
        }
    }

    #[test]
    fn keys_of_the_documentation_are_refused() {
        let page = include_str!("../../../../docs/operations.md");
        let names = page.match_indices("WS_SERVER_ADMIN_KEY=");
        for (start, name) in names {
            let value = page[start + name.len()..].split_whitespace().next().unwrap_or_default();
            assert!(value.starts_with("$(") || check(value).is_err(), "{value} is not refused");
        }
    }

    #[test]
    fn a_hash_tells_texts_and_purposes_apart() {
        let (secret, other) = (Secret::new().unwrap(), Secret::new().unwrap());
        let hash = secret.hash("key", "text");
        assert!(secret.matches("key", "text", &hash));
        assert!(!secret.matches("key", "texts", &hash) && !secret.matches("session", "text", &hash));
        assert!(!other.matches("key", "text", &hash));
    }
}
