//! The signature of a request, as the Standard Webhooks specification defines it. Pure.

use std::fmt;

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::{self, KeyError};

/// Minimum size of a key in bytes, as the specification recommends it.
const KEY_SIZE: usize = 24;

/// The beginning of a key that is written in Base64.
const ENCODED: &str = "whsec_";

/// The key with which requests are signed. `Debug` does not show it.
#[derive(Clone)]
pub(super) struct SigningKey(Vec<u8>);

impl SigningKey {
    /// Reads a key: `whsec_` and Base64, or any other text, whose bytes are the key. White space around it does not
    /// count.
    pub(super) fn parse(text: &str) -> Result<Self, KeyError> {
        let text = secret::checked(text)?;
        let key = match text.strip_prefix(ENCODED) {
            Some(encoded) => BASE64.decode(encoded.as_bytes()).map_err(|_| KeyError::NotBase64)?,
            None => text.as_bytes().to_vec(),
        };
        secret::check_size(&key, KEY_SIZE)?;
        Ok(Self(key))
    }

    /// Returns the value of the header `webhook-signature` for a message.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("a key of any length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python: `base64.b64encode(hmac.new(key, b"ID.TIMESTAMP.BODY", "sha256").digest())`. The first is
    /// the example of the specification.
    #[test]
    fn a_signature_is_that_of_other_implementations() {
        for (key, id, timestamp, body, signature) in [
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "a secret of the tests of thirty-two bytes or more",
                "msg_1",
                1_800_000_000,
                r#"{"event":"action","details":["ü"]}"#,
                "v1,+U/TNjmzjqsoW5sgFDH50V+asXAwWJWFSbTr97MvF2o=",
            ),
            (
                "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                "msg_2",
                0,
                "",
                "v1,n5zxUNLhZjudN9+6Nrv6eR3PL0jbD2CUcvvGZoey+Is=",
            ),
        ] {
            assert_eq!(SigningKey::parse(key).unwrap().sign(id, timestamp, body.as_bytes()), signature, "{key}");
        }
    }

    #[test]
    fn a_key_is_base64_behind_its_mark_and_bytes_without() {
        let key = |text: &str| SigningKey::parse(text).map(|key| key.0);
        assert_eq!(key(&format!(" whsec_{}\n", BASE64.encode(&[7; 24]))), Ok(vec![7; 24]));
        assert_eq!(key(" 0123456789abcdef01234567\n"), Ok(b"0123456789abcdef01234567".to_vec()));
        assert_eq!(
            key(&format!("whsec_{}", BASE64.encode(&[7; 23]))),
            Err(KeyError::Short { size: 23, least: KEY_SIZE })
        );
        assert_eq!(key("0123456789abcdef0123456"), Err(KeyError::Short { size: 23, least: KEY_SIZE }));
        assert_eq!(key(""), Err(KeyError::Short { size: 0, least: KEY_SIZE }));
        assert_eq!(key("whsec_no base64 at all, but long enough"), Err(KeyError::NotBase64));
        assert_eq!(key("0123456789abcdef\n0123456789abcdef"), Err(KeyError::Control));
        assert_eq!(key("another-one"), Err(KeyError::Placeholder));
    }
}
