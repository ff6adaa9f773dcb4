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
const MAX_KEYS: usize = 64;
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
        if secret.len() < SECRET_SIZE {
            return Err(JwtError::ShortSecret { size: secret.len() });
        }
        Ok(Self { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
    }

    /// Returns the public key of a PEM file: RS256, ES256 or EdDSA, as its type says.
    pub(super) fn public(pem: &[u8]) -> Result<Self, JwtError> {
        let text = String::from_utf8_lossy(pem);
        if text.contains("PRIVATE KEY") {
            return Err(JwtError::PublicKey("it is a private key, which this server must not have".into()));
        }
        if !text.contains("-----BEGIN ") {
            return Err(JwtError::PublicKey("it is not PEM (-----BEGIN PUBLIC KEY-----)".into()));
        }
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
            Ok(_) => Err(JwtError::PublicKey("of the elliptic curves, only P-256 (ES256) is supported".into())),
            Err(error) => Err(JwtError::PublicKey(error.to_string())),
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

/// Reads a JSON Web Key Set. Entries that cannot be used are skipped, so that a new kind of key in the set does not make
/// the others useless.
///
/// # Errors
/// The reason if the text is not a set, or if no entry can be used.
pub(super) fn set(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: serde_json::Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON ({error})"))?;
    let entries = set.get("keys").and_then(serde_json::Value::as_array).ok_or(r#"it has no array "keys""#)?;
    let mut keys = Vec::new();
    let mut reason = "it is empty".to_owned();
    for (number, entry) in entries.iter().take(MAX_KEYS).enumerate() {
        let read = serde_json::from_value::<Jwk>(entry.clone()).map_err(|_| "it is malformed");
        match read.and_then(|jwk| Key::of_jwk(&jwk)) {
            Ok(key) => keys.push(key),
            Err(why) => {
                tracing::debug!(number, why, "a key of the set is not used");
                reason = format!("no key can be used; key {number}: {why}");
            }
        }
    }
    if keys.is_empty() { Err(reason) } else { Ok(keys) }
}
