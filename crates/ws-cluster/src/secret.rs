//! The cluster's key and the publish key as people give them: from files with a newline at the end, from shells, from
//! the documentation.

/// Minimum size of a cluster key in bytes: the size of the hash that links compute with it.
const CLUSTER_KEY_SIZE: usize = 32;

/// The texts that the project's documentation shows in place of a key.
const PLACEHOLDERS: [&str; 4] = ["at-least-32-bytes-the-same-for-both-servers", "another-one", "...", "…"];

/// The reason why a key cannot be used. The text has a remedy, and does not show the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key of a cluster has less than 32 bytes, or that of a `Backend` less than 24.
    #[error("a key has at least {least} bytes, this one has {size}: make one with `openssl rand -hex 32`")]
    Short {
        /// Its size in bytes.
        size: usize,
        /// The smallest size in bytes.
        least: usize,
    },
    /// The publish key is empty.
    #[error("the publish key is empty: give a long random one, as from `openssl rand -hex 32`")]
    Empty,
    /// The key contains a control character, such as a line break between two keys.
    #[error("a key contains a line break or another control character: give each key on its own, without it")]
    Control,
    /// The key is a placeholder that this project's documentation shows.
    #[error("a key is the placeholder of the documentation, which is public: make one with `openssl rand -hex 32`")]
    Placeholder,
    /// The key of a `Backend` begins with `whsec_`, and the rest is not Base64.
    #[error("what follows whsec_ in a key is Base64, and this is not")]
    NotBase64,
}

/// Returns the cluster's key. White space around a text is removed. Bytes that are not text stay unchanged.
pub(crate) fn cluster_key(given: Vec<u8>) -> Result<Vec<u8>, KeyError> {
    let key = match std::str::from_utf8(&given) {
        Ok(text) => checked(text)?.as_bytes().to_vec(),
        Err(_) => given,
    };
    check_size(&key, CLUSTER_KEY_SIZE)?;
    Ok(key)
}

/// Returns the publish key, without the white space around it.
pub(crate) fn publish_key(given: &str) -> Result<String, KeyError> {
    match checked(given)? {
        "" => Err(KeyError::Empty),
        key => Ok(key.to_owned()),
    }
}

/// Checks that a key has at least `least` bytes.
pub(crate) fn check_size(key: &[u8], least: usize) -> Result<(), KeyError> {
    if key.len() < least { Err(KeyError::Short { size: key.len(), least }) } else { Ok(()) }
}

/// Returns a key that is text, without the white space around it.
pub(crate) fn checked(text: &str) -> Result<&str, KeyError> {
    let text = text.trim();
    if text.contains(char::is_control) {
        return Err(KeyError::Control);
    }
    if PLACEHOLDERS.contains(&text) { Err(KeyError::Placeholder) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn white_space_around_a_key_does_not_count() {
        for text in [KEY.to_owned(), format!("{KEY}\n"), format!(" {KEY}\r\n"), format!("\t{KEY} \n\n")] {
            assert_eq!(cluster_key(text.clone().into_bytes()).unwrap(), KEY.as_bytes());
            assert_eq!(publish_key(&text).unwrap(), KEY);
        }
        // White space does not count as a part of the size either.
        let padded = format!("{}{}", &KEY[..31], "\n\n");
        assert_eq!(cluster_key(padded.into_bytes()), Err(KeyError::Short { size: 31, least: 32 }));
        assert_eq!(publish_key(" \n"), Err(KeyError::Empty));
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let mut key = vec![0xff; 32];
        key[31] = b'\n';
        assert_eq!(cluster_key(key.clone()).unwrap(), key);
    }

    #[test]
    fn two_keys_in_two_lines_are_refused() {
        for separator in ["\n", "\r\n", "\0", "\t"] {
            let text = format!("{KEY}{separator}{KEY}");
            assert_eq!(cluster_key(text.clone().into_bytes()), Err(KeyError::Control));
            assert_eq!(publish_key(&text), Err(KeyError::Control));
        }
    }

    #[test]
    fn keys_of_the_documentation_are_refused() {
        let pages = concat!(include_str!("../../../docs/site.md"), include_str!("../../../docs/operations.md"));
        for name in ["WS_CLUSTER_KEY=", "WS_SERVER_PUBLISH_KEY=", "WS_SERVER_BACKEND_KEY="] {
            assert!(pages.contains(name));
            for (start, _) in pages.match_indices(name) {
                let value = &pages[start + name.len()..];
                let value = value.split_whitespace().next().unwrap_or_default();
                assert!(publish_key(value).is_err(), "{name}{value} is not refused");
                assert!(cluster_key(value.into()).is_err(), "{name}{value} is not refused");
            }
        }
        assert_eq!(publish_key("another-one\n"), Err(KeyError::Placeholder));
    }
}
