//! The keys that verify tokens, and the texts that they are read from. A key verifies one algorithm only, so a token
//! cannot choose another one for it.

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};

use super::JwtError;

/// Minimum size of a secret in bytes: the size of the hash (RFC 7518, section 3.2).
const SECRET_SIZE: usize = 32;
/// Maximum number of keys of a set that are used.
pub(super) const MAX_KEYS: usize = 64;
/// The beginning of a key in PEM.
const PEM: &str = "-----BEGIN ";
/// Size of a point on the curve P-256 in bytes, uncompressed.
const P256_POINT_SIZE: usize = 65;

/// A key that verifies the tokens of one algorithm.
#[derive(Clone)]
pub(super) struct Key {
    /// The `kid` of the tokens that it verifies. Without one it is tried for every token.
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

impl Key {
    /// Returns the key of a shared secret, for HS256.
    pub(super) fn secret(secret: &[u8]) -> Result<Self, JwtError> {
        let text = std::str::from_utf8(secret).ok();
        let secret = text.map_or(secret, |text| text.trim().as_bytes());
        // With a public key as the secret, anyone could sign.
        if text.is_some_and(|text| text.contains(PEM)) {
            return Err(JwtError::PemSecret);
        }
        if secret.len() < SECRET_SIZE {
            return Err(JwtError::ShortSecret { size: secret.len() });
        }
        Ok(Self { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
    }

    /// Returns the public keys of a PEM file, for RS256, ES256 or EdDSA, as the type of each says. Text before a key is
    /// skipped.
    pub(super) fn public(pem: &[u8]) -> Result<Vec<Self>, JwtError> {
        let text = String::from_utf8_lossy(pem);
        if text.contains("PRIVATE KEY") {
            return Err(JwtError::PublicKey("it is a private key, which this server must not have".into()));
        }
        let blocks: Vec<&str> = text.split(PEM).skip(1).collect();
        let keys = blocks.iter().enumerate().map(|(index, block)| {
            let numbered = |why: String| match blocks.len() {
                1 => why,
                count => format!("key {} of {count}: {why}", index + 1),
            };
            Self::of_pem(format!("{PEM}{block}").as_bytes()).map_err(|why| JwtError::PublicKey(numbered(why)))
        });
        match blocks.is_empty() {
            true => Err(JwtError::PublicKey("it is not PEM (-----BEGIN PUBLIC KEY-----)".into())),
            false => keys.collect(),
        }
    }

    /// Returns the public key of one block of PEM, or the reason why it is none.
    fn of_pem(pem: &[u8]) -> Result<Self, String> {
        let key = |algorithm, key| Self { id: None, algorithm, key };
        if let Ok(rsa) = DecodingKey::from_rsa_pem(pem) {
            return Ok(key(Algorithm::RS256, rsa));
        }
        if let Ok(ed) = DecodingKey::from_ed_pem(pem) {
            return Ok(key(Algorithm::EdDSA, ed));
        }
        match DecodingKey::from_ec_pem(pem) {
            Ok(ec) if ec.try_get_as_bytes().is_ok_and(|point| point.len() == P256_POINT_SIZE) => {
                Ok(key(Algorithm::ES256, ec))
            }
            Ok(_) => Err("of the elliptic curves, only P-256 (ES256) is supported".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns the key of an entry of a JWKS, or the reason why it is not used. A secret is refused, since a set is
    /// public.
    fn of_jwk(jwk: &Jwk) -> Result<Self, &'static str> {
        if matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature) {
            return Err("it is not for signatures");
        }
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            AlgorithmParameters::OctetKey(_) => return Err("it is a secret, and a set of keys is public"),
            _ => return Err("its type is not supported"),
        };
        if jwk.common.key_algorithm.is_some_and(|named| named != name) {
            return Err("its algorithm is not supported");
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| "it is malformed")?;
        Ok(Self { id: jwk.common.key_id.clone(), algorithm, key })
    }
}

/// A set of keys, as it was read.
#[derive(Default)]
pub(super) struct Set {
    pub(super) keys: Vec<Key>,
    /// Number of keys beyond [`MAX_KEYS`] that could be used.
    pub(super) left_out: usize,
    /// The reason if the set has entries and none of them can be used.
    pub(super) unusable: Option<String>,
}

/// Reads a JSON Web Key Set. Entries that cannot be used are skipped, so that a new kind of key in the set does not make
/// the others useless.
///
/// # Errors
/// The reason if the text is not a set.
pub(super) fn set(text: &[u8]) -> Result<Set, String> {
    let json: serde_json::Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON ({error})"))?;
    let entries = json.get("keys").and_then(serde_json::Value::as_array).ok_or(r#"it has no array "keys""#)?;
    let mut set = Set::default();
    for (number, entry) in entries.iter().enumerate() {
        let read = serde_json::from_value::<Jwk>(entry.clone()).map_err(|_| "it is malformed");
        match read.and_then(|jwk| Key::of_jwk(&jwk)) {
            Ok(key) if set.keys.len() < MAX_KEYS => set.keys.push(key),
            Ok(_) => set.left_out += 1,
            Err(why) => {
                tracing::debug!(number, why, "a key of the set is not used");
                set.unusable = Some(format!("no key can be used; key {number}: {why}"));
            }
        }
    }
    if !set.keys.is_empty() {
        set.unusable = None;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_cannot_be_used_do_not_count_towards_the_limit_of_a_set() {
        let of = |number: usize, curve: &str| {
            json!({"kty": "OKP", "crv": curve, "kid": number.to_string(),
                "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
        };
        for (usable, left_out) in [(1, 0), (MAX_KEYS, 0), (MAX_KEYS + 3, 3)] {
            let other = (0..MAX_KEYS).map(|number| of(number, "X25519"));
            let keys: Vec<_> = other.chain((0..usable).map(|number| of(number, "Ed25519"))).collect();
            let Ok(read) = set(json!({ "keys": keys }).to_string().as_bytes()) else { panic!("no set") };
            assert_eq!((read.keys.len(), read.left_out), (usable.min(MAX_KEYS), left_out));
            assert_eq!(read.unusable, None);
        }
    }
}
