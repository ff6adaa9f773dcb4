//! The authenticator of a site that gives its users JSON Web Tokens. `keys` are what verifies them, `set` reads keys that
//! are published.

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jsonwebtoken::{
    Algorithm, Header, Validation, crypto::rust_crypto, dangerous::insecure_decode_claims, decode, decode_header,
    errors::ErrorKind,
};
use serde::Deserialize;
use serde_json::Value;

use self::{
    keys::Key,
    set::{KeySet, Known},
};
use super::{AuthenticationError, Authenticator, BoxError, Credentials, Handshake, Identity};
#[cfg(feature = "http-client")]
use crate::http_client::HttpClient;

mod keys;
mod set;

/// Maximum size of a token in bytes. The head of a request is not larger by default.
const TOKEN_SIZE: usize = 16 * 1024;
/// Maximum size of a set of keys that is read over HTTP, in bytes.
#[cfg(feature = "http-client")]
const SET_SIZE: usize = 256 * 1024;
/// The algorithms of tokens. `none` is not one of them, and each key verifies one of them only.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// The reason why a [`JwtAuthenticator`] cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// The secret has fewer than 32 bytes, so that it could be guessed from a token.
    #[error("a secret for tokens has at least 32 bytes, this one has {size}: make one with `openssl rand -hex 32`")]
    ShortSecret {
        /// The size of the secret in bytes.
        size: usize,
    },
    /// The secret is a key in PEM. A public key is no secret, and anyone who has it could sign tokens.
    #[error("a secret for tokens is random text, this one is a key in PEM: give it as a public key")]
    PemSecret,
    /// The text is not a public key for RS256, ES256 or EdDSA. The text says why.
    #[error("the public key cannot be used: {0}")]
    PublicKey(String),
    /// There can be no HTTPS client, because the system's certificates cannot be read.
    #[cfg(feature = "http-client")]
    #[error("the system's certificates cannot be read ({0}): install the package ca-certificates")]
    Client(#[source] std::sync::Arc<std::io::Error>),
}

/// Identifies clients by a JSON Web Token that the site signed.
///
/// ```
/// # fn main() -> Result<(), ws_cluster::JwtError> {
/// use ws_cluster::JwtAuthenticator;
///
/// let authenticator = JwtAuthenticator::new()
///     .secret("5a1f0c7e9b3d48628f7e6d5c4b3a29180f1e2d3c4b5a6978")?
///     .audience("live.example.org")
///     .cookie("live_token");
/// # Ok(()) }
/// ```
///
/// **The token** comes in `Client/authentication` (the details are the token as one text), in `Authorization: Bearer`,
/// in the subprotocol `bearer.TOKEN` (which is how a browser sends one at the upgrade), or in a [cookie](Self::cookie).
/// It never comes in the URL, since URLs end up in logs.
///
/// **The claims**: `sub` is the user (text, or an integer), `exp` the end of the token in Unix seconds. Both are required.
/// `nbf` is respected. `sid` is the session, which [`close_session`](crate::Server::close_session) names, and `groups`
/// is an array of groups. `iss` and `aud` must match if an [issuer](Self::issuer) or an [audience](Self::audience) is
/// set; a token with `aud` is refused if no audience is set. Other claims are ignored.
///
/// **The keys**: secrets for HS256, public keys for RS256, ES256 and EdDSA, and sets of published keys. With several
/// keys, a token that any of them verifies is valid, so that keys can be rotated. A key verifies its own algorithm only.
/// Tokens with `alg: none` or with critical headers (`crit`) are refused.
///
/// When a token ends, its connection is closed with [`CloseCode::Expired`](crate::CloseCode::Expired), after which
/// clients come again. Both clients here send a fresh token before that, on the open connection.
#[derive(Clone)]
#[must_use = "an authenticator is used by `ServerBuilder::authenticator`"]
pub struct JwtAuthenticator {
    keys: Vec<Key>,
    sets: Vec<KeySet>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    leeway: Duration,
    cookie: Option<String>,
}

/// The claims that are looked at.
#[derive(Deserialize)]
struct Claims {
    sub: Value,
    exp: f64,
    #[serde(default)]
    sid: Value,
    #[serde(default)]
    groups: Value,
    #[serde(default)]
    aud: Value,
}

/// What the keys say about a token.
enum Verdict {
    Valid(Claims),
    /// One of the keys has signed it, and its claims are refused.
    Refused,
    /// None of the keys has signed it.
    Unknown,
}

impl JwtAuthenticator {
    /// Returns an authenticator without keys, which knows nobody.
    pub fn new() -> Self {
        // An application that has chosen another implementation keeps it.
        let _ = rust_crypto::DEFAULT_PROVIDER.install_default();
        Self {
            keys: Vec::new(),
            sets: Vec::new(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Duration::from_secs(30),
            cookie: None,
        }
    }

    /// Adds a secret of at least 32 bytes, for HS256. White space around a text is removed.
    ///
    /// # Errors
    /// [`JwtError::ShortSecret`], or [`JwtError::PemSecret`] for a key in PEM.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Result<Self, JwtError> {
        self.keys.push(Key::secret(secret.as_ref())?);
        Ok(self)
    }

    /// Adds the public keys of a text in PEM (`-----BEGIN PUBLIC KEY-----`), one or several, for RS256, ES256 (P-256) or
    /// EdDSA (Ed25519).
    ///
    /// # Errors
    /// [`JwtError::PublicKey`] says why the text is no such key.
    pub fn public_key(mut self, pem: impl AsRef<[u8]>) -> Result<Self, JwtError> {
        self.keys.extend(Key::public(pem.as_ref())?);
        Ok(self)
    }

    /// Adds a file with a JSON Web Key Set. It is read again every 5 minutes, and for a token that none of its keys has
    /// signed, at most every 10 s. A token that comes too soon after a read is not refused but gets
    /// [`AuthenticationError::Unavailable`], so that its client tries again. If the set cannot be read, the keys before
    /// stay. If it has no keys any more, no token of the earlier keys is valid. The first 64 keys that can be used count.
    /// Secrets in it (`"kty": "oct"`) are not used.
    pub fn jwks_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.sets.push(KeySet::file(path.into()));
        self
    }

    /// Adds a JSON Web Key Set that `read` gets, for example over HTTP, as often as that of a
    /// [file](Self::jwks_file). A read has 5 s. `name` stands in the log.
    pub fn jwks(
        mut self,
        name: impl Into<String>,
        read: impl Fn() -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync + 'static,
    ) -> Self {
        self.sets.push(KeySet::new(name.into(), read));
        self
    }

    /// Adds a JSON Web Key Set at an `http:` or `https:` URL, which is read as often as that of a
    /// [file](Self::jwks_file). It has at most 256 KiB. Redirects are not followed.
    ///
    /// # Errors
    /// [`JwtError::Client`]: the system's certificates cannot be read.
    #[cfg(feature = "http-client")]
    pub fn jwks_url(self, url: impl Into<String>) -> Result<Self, JwtError> {
        let client = HttpClient::new().map_err(|error| JwtError::Client(std::sync::Arc::new(error)))?;
        let url = url.into();
        Ok(self.jwks(url.clone(), move || {
            let (client, url) = (client.clone(), url.clone());
            Box::pin(async move { client.get(&url, SET_SIZE).await.map(Into::into) })
        }))
    }

    /// Accepts tokens of this issuer (`iss`) only, or of one of several.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuers.push(issuer.into());
        self
    }

    /// Accepts tokens for this audience (`aud`) only, or for one of several.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Sets by how much the clocks of the site and of this server may differ. Default: 30 s. A token that is older than
    /// its `exp` by less is accepted for the rest of that time. If it came with the handshake, its connection ends when
    /// the server asks again, which may be earlier.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Also takes the token from the cookie of this name. Browsers send cookies from any page, so the `Origin` of an
    /// upgrade must then be the host's own or an allowed one.
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.cookie = Some(name.into());
        self
    }

    /// Returns the identity of a token, or `None` if the token is not valid.
    async fn verify(&self, token: &str, leeway: Duration) -> Result<Option<Identity>, AuthenticationError> {
        let Some(header) = header(token) else { return Ok(None) };
        // One of the keys that cannot be read might have signed it.
        let claims = self.claims(token, &header).await.map_err(AuthenticationError::Unavailable)?;
        let Some(claims) = claims else { return Ok(None) };
        let identity = self.identity(&claims, leeway);
        Ok(identity.inspect_err(|why| tracing::debug!(why, "the claims of a token are refused")).ok())
    }

    /// Returns the claims of a token that one of the keys verifies; `None` if the token is not valid.
    ///
    /// # Errors
    /// The reason if none verifies it, and a set of keys cannot be asked.
    async fn claims(&self, token: &str, header: &Header) -> Result<Option<Claims>, BoxError> {
        let id = header.kid.as_deref();
        // A set has no secrets.
        let sets = if header.alg == Algorithm::HS256 { &[][..] } else { &self.sets[..] };
        let known: Vec<Known> = sets.iter().map(KeySet::known).collect();
        let present = self.keys.iter().chain(known.iter().flat_map(|known| known.candidates(id)));
        match self.verdict(token, header, present) {
            Verdict::Valid(claims) => return Ok(Some(claims)),
            Verdict::Refused => return Ok(None),
            Verdict::Unknown => {}
        }
        if !self.may_be_valid(token) {
            return Ok(None);
        }
        // Its key may have been published since. The `kid` says nothing about that: not every set has one.
        let mut outage = None;
        for (set, first) in sets.iter().zip(&known) {
            let mut newer = set.newer(first, first).await;
            while let Ok(Some(known)) = newer {
                match self.verdict(token, header, known.candidates(id)) {
                    Verdict::Valid(claims) => return Ok(Some(claims)),
                    Verdict::Refused => return Ok(None),
                    Verdict::Unknown => newer = set.newer(&known, first).await,
                }
            }
            outage = outage.or(newer.err());
        }
        outage.map_or(Ok(None), Err)
    }

    /// Returns what these keys say about a token.
    fn verdict<'a>(&self, token: &str, header: &Header, keys: impl Iterator<Item = &'a Key>) -> Verdict {
        for key in keys.filter(|key| key.algorithm == header.alg) {
            let error = match decode::<Claims>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return Verdict::Valid(data.claims),
                Err(error) => error,
            };
            tracing::debug!(%error, "a token is not valid");
            // The claims are looked at after the signature.
            if is_about_claims(error.kind()) {
                return Verdict::Refused;
            }
        }
        Verdict::Unknown
    }

    /// Returns true unless a token's claims are malformed or its `exp` is past: no key makes such a token valid. Reads the
    /// claims without verifying them.
    fn may_be_valid(&self, token: &str) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_over = |claims: Claims| claims.exp + self.leeway.as_secs_f64() < now.as_secs_f64();
        insecure_decode_claims::<Claims>(token).is_ok_and(|claims| !is_over(claims))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !self.issuers.is_empty() {
            validation.set_issuer(&self.issuers);
            required.push("iss");
        }
        if !self.audiences.is_empty() {
            validation.set_audience(&self.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    /// Returns the identity that the claims describe, or the reason why they are refused.
    fn identity(&self, claims: &Claims, leeway: Duration) -> Result<Identity, &'static str> {
        if self.audiences.is_empty() && !claims.aud.is_null() {
            return Err("it has `aud`, and no audience is set");
        }
        let mut identity = Identity::user(id(&claims.sub).ok_or("`sub` is neither text nor an integer, or is empty")?);
        if !claims.sid.is_null() {
            identity.session = Some(id(&claims.sid).ok_or("`sid` is neither text nor an integer, or is empty")?);
        }
        identity.groups = match &claims.groups {
            Value::Null => BTreeSet::new(),
            Value::Array(names) => {
                let names: Option<_> = names.iter().map(id).collect();
                names.ok_or("one of `groups` is neither text nor an integer, or is empty")?
            }
            _ => return Err("`groups` is no array"),
        };
        identity.expires = end(claims.exp, leeway);
        Ok(identity)
    }

    /// Returns the token of a handshake.
    fn token<'a>(&self, handshake: &'a Handshake) -> Option<&'a str> {
        handshake.bearer_token().or_else(|| handshake.cookie(self.cookie.as_deref()?))
    }
}

/// Returns an id: text that is not empty, or an integer.
fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// Returns true if the signature of the token is valid and its claims are not.
fn is_about_claims(error: &ErrorKind) -> bool {
    matches!(
        error,
        ErrorKind::Json(_)
            | ErrorKind::Utf8(_)
            | ErrorKind::ExpiredSignature
            | ErrorKind::ImmatureSignature
            | ErrorKind::InvalidIssuer
            | ErrorKind::InvalidAudience
            | ErrorKind::MissingRequiredClaim(_)
            | ErrorKind::InvalidClaimFormat(_)
    )
}

/// Returns the end of a token. Within the leeway after its `exp`, that is the end of the leeway.
fn end(exp: f64, leeway: Duration) -> Option<SystemTime> {
    let end = Duration::try_from_secs_f64(exp).ok().and_then(|since| UNIX_EPOCH.checked_add(since))?;
    if end > SystemTime::now() { Some(end) } else { end.checked_add(leeway) }
}

/// Returns the header of a token, if this server may look at the token at all.
fn header(token: &str) -> Option<Header> {
    let header = (token.len() <= TOKEN_SIZE).then(|| decode_header(token).ok()).flatten()?;
    // No extension that a token may call critical is known here (RFC 7515, section 4.1.11).
    (header.crit.is_none() && ALGORITHMS.contains(&header.alg)).then_some(header)
}

impl Default for JwtAuthenticator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, sets) = (self.keys.len(), self.sets.len());
        f.debug_struct("JwtAuthenticator").field("keys", &keys).field("sets", &sets).finish_non_exhaustive()
    }
}

#[async_trait]
impl Authenticator for JwtAuthenticator {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let token = match credentials.map(|credentials| credentials.details()) {
            Some([Value::String(token)]) => Some(token.as_str()),
            Some(_) => None,
            None => self.token(handshake),
        };
        match token {
            Some(token) => self.verify(token, self.leeway).await,
            None => Ok(None),
        }
    }

    /// The same without leeway, or a connection would outlive its token by that.
    async fn recheck(&self, handshake: &Handshake) -> Result<Option<Identity>, AuthenticationError> {
        match self.token(handshake) {
            Some(token) => self.verify(token, Duration::ZERO).await,
            None => Ok(None),
        }
    }

    fn uses_cookies(&self) -> bool {
        self.cookie.is_some()
    }

    fn in_band(&self) -> bool {
        true
    }

    /// The sets of keys log why they cannot be read. A token of an unknown key is no failure of this server.
    fn logs_failures(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
