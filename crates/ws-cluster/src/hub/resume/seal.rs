//! Seals and opens resume tokens. A token contains what belongs to a connection rather than to the order of messages,
//! so that it survives a change of nodes. It is encrypted with a key of the cluster, so the client can neither read nor
//! change it, and is bound to the client's user and session. A position alone proves nothing.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac};
use prost::Message;
use serde_json::Value;
use sha2::Sha256;

use super::ResumeState;
use crate::{
    hub::membership::{Changes, GivenHashes, Since},
    message::{position::Position, target::ConnectionId},
    random,
};
use ws_cluster_core::{NodeId, Seq};

/// Maximum size of a resume token, in bytes. It travels in a URL, beside cookies.
const SIZE: usize = 2048;

const NONCE: usize = 24;

/// The beginning of a page's token. It has a character that no resume token has.
const PAGE: &str = "p.";

/// The error if a token was not made by this cluster for this user and session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a state of this user's session")]
pub(crate) struct StateError;

/// Seals and opens resume tokens. Its `Debug` shows no key.
pub(crate) struct StateSealer {
    cluster: String,
    /// The first cipher seals; all of them open.
    ciphers: Vec<XChaCha20Poly1305>,
}

impl StateSealer {
    /// Returns a sealer with the cluster's keys, of which there is at least one.
    pub(crate) fn new(cluster: &str, keys: &[Vec<u8>]) -> Self {
        let cipher = |key: &Vec<u8>| {
            // A derived key, so that no token reveals anything about the proofs on links. HMAC takes keys of any length
            // and returns the 32 bytes that the cipher needs.
            let mut derived = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("a key of any length");
            derived.update(b"ws-cluster state of a connection");
            XChaCha20Poly1305::new(&derived.finalize().into_bytes())
        };
        Self { cluster: cluster.to_owned(), ciphers: keys.iter().map(cipher).collect() }
    }

    /// Returns the resume token of a state. The token is empty if it would be too large, and the client's next resume
    /// is a reset then.
    pub(crate) fn seal(&self, user: Option<&str>, session: Option<&str>, state: &ResumeState) -> String {
        self.try_seal(user, session, state).filter(|text| text.len() <= SIZE).unwrap_or_default()
    }

    fn try_seal(&self, user: Option<&str>, session: Option<&str>, state: &ResumeState) -> Option<String> {
        self.encrypt(&pb::ResumeState::from(state).encode_to_vec(), &self.bound_to(user, session))
    }

    fn encrypt(&self, plain: &[u8], aad: &[u8]) -> Option<String> {
        let mut sealed = random::bytes::<NONCE>().ok()?.to_vec();
        let nonce = XNonce::try_from(&sealed[..]).ok()?;
        sealed.extend(self.ciphers.first()?.encrypt(&nonce, Payload { msg: plain, aad }).ok()?);
        Some(BASE64URL_NOPAD.encode(&sealed))
    }

    fn decrypt(&self, text: &str, aad: &[u8]) -> Result<Vec<u8>, StateError> {
        if text.len() > SIZE {
            return Err(StateError);
        }
        let sealed = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| StateError)?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE).ok_or(StateError)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| StateError)?;
        let open = |cipher: &XChaCha20Poly1305| cipher.decrypt(&nonce, Payload { msg: sealed, aad }).ok();
        self.ciphers.iter().find_map(open).ok_or(StateError)
    }

    /// Returns a token with which a page's client begins at a position. It is bound to no user, because whoever connects
    /// only gets what is for them. Without random numbers there is none.
    pub(crate) fn seal_page(&self, at: Position, time: u64) -> Option<String> {
        let page = pb::Page { at: at.to_bytes().into(), time };
        Some(format!("{PAGE}{}", self.encrypt(&page.encode_to_vec(), &self.page())?))
    }

    /// Returns true if a text may be a page's token rather than a resume token.
    pub(crate) fn is_page(text: &str) -> bool {
        text.starts_with(PAGE)
    }

    /// Opens a page's token. Returns its position and the time of sealing.
    pub(crate) fn open_page(&self, text: &str) -> Result<(Position, u64), StateError> {
        let plain = self.decrypt(text.strip_prefix(PAGE).ok_or(StateError)?, &self.page())?;
        let pb::Page { at, time } = pb::Page::decode(&plain[..]).map_err(|_| StateError)?;
        Ok((Position::from_bytes(&at).map_err(|_| StateError)?, time))
    }

    /// Returns what a page's token is bound to. It begins as no resume token's binding does.
    fn page(&self) -> Vec<u8> {
        [b"\x02", self.cluster.as_bytes()].concat()
    }

    /// Opens a token that was sealed for this user in this session.
    pub(crate) fn open(
        &self,
        user: Option<&str>,
        session: Option<&str>,
        text: &str,
    ) -> Result<ResumeState, StateError> {
        let plain = self.decrypt(text, &self.bound_to(user, session))?;
        pb::ResumeState::decode(&plain[..]).map_err(|_| StateError)?.try_into()
    }

    /// Returns the cluster, the user and the session, each with its size before it.
    fn bound_to(&self, user: Option<&str>, session: Option<&str>) -> Vec<u8> {
        let mut bound = Vec::new();
        for part in [Some(&*self.cluster), user, session] {
            bound.push(u8::from(part.is_some()));
            let part = part.unwrap_or_default();
            bound.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bound.extend_from_slice(part.as_bytes());
        }
        bound
    }
}

impl From<&ResumeState> for pb::ResumeState {
    fn from(state: &ResumeState) -> Self {
        let ResumeState { id, changes, version, began, since, given, at, time } = state;
        let since_of = |own: &BTreeMap<Arc<str>, Seq>, name: &Arc<str>| own.get(name).copied().unwrap_or_default();
        let groups = changes.groups.iter().map(|(name, member)| pb::Group {
            name: name.to_string(),
            member: *member,
            since: since_of(&since.groups, name),
        });
        let properties = changes.properties.iter().map(|(name, value)| pb::Property {
            name: name.to_string(),
            json: value.to_string(),
            since: since_of(&since.properties, name),
        });
        let named = |(name, since): (&Arc<str>, &Seq)| pb::Since { name: name.to_string(), since: *since };
        let given_groups = since.groups.iter().filter(|(name, _)| !changes.groups.contains_key(*name));
        let given_properties = since.properties.iter().filter(|(name, _)| !changes.properties.contains_key(*name));
        let (given, given_hash) = match given {
            GivenHashes::Each(hashes) => (hashes.clone(), None),
            GivenHashes::All(hash) => (Vec::new(), Some(*hash)),
        };
        Self {
            node: Bytes::copy_from_slice(id.node.as_bytes()),
            local: id.local,
            groups: groups.collect(),
            properties: properties.collect(),
            version: *version,
            began: *began,
            user_since: since.user,
            given,
            given_hash,
            given_groups: given_groups.map(named).collect(),
            given_properties: given_properties.map(named).collect(),
            at: at.to_bytes().into(),
            time: *time,
        }
    }
}

impl TryFrom<pb::ResumeState> for ResumeState {
    type Error = StateError;

    fn try_from(state: pb::ResumeState) -> Result<Self, StateError> {
        let node = NodeId::from_bytes(state.node.as_ref().try_into().map_err(|_| StateError)?);
        let mut since = Since { user: state.user_since, ..Since::default() };
        let mut changes = Changes::default();
        for pb::Group { name, member, since: at } in state.groups {
            let name: Arc<str> = name.into();
            if at > 0 {
                since.groups.insert(name.clone(), at);
            }
            changes.groups.insert(name, member);
        }
        for pb::Property { name, json, since: at } in state.properties {
            let name: Arc<str> = name.into();
            if at > 0 {
                since.properties.insert(name.clone(), at);
            }
            changes.properties.insert(name, serde_json::from_str::<Value>(&json).map_err(|_| StateError)?);
        }
        let named = |pb::Since { name, since }: pb::Since| (name.into(), since);
        since.groups.extend(state.given_groups.into_iter().map(named));
        since.properties.extend(state.given_properties.into_iter().map(named));
        Ok(Self {
            id: ConnectionId { node, local: state.local },
            changes,
            version: state.version,
            began: state.began,
            since,
            given: state.given_hash.map_or(GivenHashes::Each(state.given), GivenHashes::All),
            at: Position::from_bytes(&state.at).map_err(|_| StateError)?,
            time: state.time,
        })
    }
}

/// The schema. A tag is never given another meaning.
mod pb {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Page {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) at: Bytes,
        #[prost(uint64, tag = "2")]
        pub(super) time: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResumeState {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) node: Bytes,
        #[prost(uint64, tag = "2")]
        pub(super) local: u64,
        #[prost(message, repeated, tag = "3")]
        pub(super) groups: Vec<Group>,
        #[prost(message, repeated, tag = "4")]
        pub(super) properties: Vec<Property>,
        #[prost(uint64, tag = "5")]
        pub(super) version: u64,
        #[prost(uint64, tag = "6")]
        pub(super) began: u64,
        #[prost(uint64, tag = "7")]
        pub(super) user_since: u64,
        #[prost(fixed64, repeated, tag = "8")]
        pub(super) given: Vec<u64>,
        #[prost(fixed64, optional, tag = "9")]
        pub(super) given_hash: Option<u64>,
        #[prost(message, repeated, tag = "10")]
        pub(super) given_groups: Vec<Since>,
        #[prost(message, repeated, tag = "11")]
        pub(super) given_properties: Vec<Since>,
        #[prost(bytes = "bytes", tag = "12")]
        pub(super) at: Bytes,
        #[prost(uint64, tag = "13")]
        pub(super) time: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Group {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(bool, tag = "2")]
        pub(super) member: bool,
        #[prost(uint64, tag = "3")]
        pub(super) since: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Property {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) json: String,
        #[prost(uint64, tag = "3")]
        pub(super) since: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Since {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(uint64, tag = "2")]
        pub(super) since: u64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sealer(keys: &[&str]) -> StateSealer {
        StateSealer::new("default", &keys.iter().map(|key| key.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    fn state(groups: usize) -> ResumeState {
        let groups = (0..groups).map(|number| (format!("room {number}").into(), number % 2 == 0)).collect();
        // A number that changes if it is parsed quickly instead of exactly.
        let length = ("length".into(), json!(117.63331139400017));
        let properties = [("colour".into(), json!("red")), ("gone".into(), Value::Null), length].into();
        let id = ConnectionId { node: NodeId::from_bytes([9; 16]), local: 77 };
        let since = Since {
            user: 7,
            groups: [("room 0".into(), 8), ("of the authenticator".into(), 9)].into(),
            properties: [("colour".into(), 10), ("size".into(), 11)].into(),
        };
        let (changes, given) = (Changes { groups, properties }, GivenHashes::Each(vec![1, u64::MAX]));
        ResumeState { id, changes, version: 3, began: 6, since, given, at: Position::START, time: 1 }
    }

    #[test]
    fn a_token_is_opened_for_its_user_only() {
        let sealer = sealer(&["key"]);
        let sealed = sealer.seal(Some("ann"), Some("s"), &state(2));
        assert_eq!(sealer.open(Some("ann"), Some("s"), &sealed), Ok(state(2)));
        assert_eq!(sealer.open(Some("bob"), Some("s"), &sealed), Err(StateError));
        assert_eq!(sealer.open(None, None, &sealed), Err(StateError));
        assert_eq!(sealer.open(Some("ann"), Some("another"), &sealed), Err(StateError));
        assert_eq!(sealer.open(Some("ann"), None, &sealed), Err(StateError));
        let guest = sealer.seal(None, None, &state(0));
        assert_eq!(sealer.open(None, None, &guest), Ok(state(0)));
        let many = ResumeState { given: GivenHashes::All(7), ..state(1) };
        assert_eq!(sealer.open(None, None, &sealer.seal(None, None, &many)), Ok(many));
        assert_eq!(sealer.open(Some("guest"), None, &guest), Err(StateError));
    }

    #[test]
    fn a_token_is_not_opened_or_made_without_the_key() {
        let sealed = sealer(&["key"]).seal(None, None, &state(2));
        assert!(!BASE64URL_NOPAD.decode(sealed.as_bytes()).unwrap().windows(4).any(|part| part == b"room"));
        assert_eq!(sealer(&["another"]).open(None, None, &sealed), Err(StateError));
        assert_eq!(StateSealer::new("another", &[b"key".to_vec()]).open(None, None, &sealed), Err(StateError));
        for text in ["", "x", &sealed[..10], &sealed[2..], &sealed.to_lowercase()] {
            assert_eq!(sealer(&["key"]).open(None, None, text), Err(StateError), "{text}");
        }
    }

    #[test]
    fn a_hostile_token_is_refused() {
        let sealer = sealer(&["key"]);
        let sealed = sealer.seal(Some("ann"), Some("s"), &state(3));
        let other = sealer.seal(None, None, &state(0));
        crate::fuzz::search(&[sealed.as_bytes(), other.as_bytes(), b""], |input| {
            let text = String::from_utf8_lossy(input);
            match sealer.open(Some("ann"), Some("s"), &text) {
                Ok(_) if text != sealed.as_str() => Err("a changed token is opened".into()),
                _ => Ok(()),
            }
        });
    }

    #[test]
    fn a_pages_token_is_opened_by_its_cluster_only() {
        let at = Position::from_bytes(b"\x01\x07\x00\x00\x00\x00\x00\x00\x00\x00").unwrap();
        let own = sealer(&["key"]);
        let sealed = own.seal_page(at, 1000).unwrap();
        assert!(StateSealer::is_page(&sealed));
        assert_eq!(own.open_page(&sealed), Ok((at, 1000)));
        assert_eq!(sealer(&["another"]).open_page(&sealed), Err(StateError));
        assert_eq!(StateSealer::new("another", &[b"key".to_vec()]).open_page(&sealed), Err(StateError));
        // Neither token passes for the other.
        let state = own.seal(None, None, &state(0));
        assert!(!StateSealer::is_page(&state));
        assert_eq!(own.open_page(&format!("p.{state}")), Err(StateError));
        assert_eq!(own.open(None, None, &sealed[2..]), Err(StateError));
        crate::fuzz::search(&[sealed.as_bytes(), b"p."], |input| {
            match own.open_page(&String::from_utf8_lossy(input)) {
                Ok(_) if input != sealed.as_bytes() => Err("a changed token is opened".into()),
                _ => Ok(()),
            }
        });
    }

    #[test]
    fn an_outgoing_key_still_opens() {
        let sealed = sealer(&["old"]).seal(None, None, &state(1));
        assert_eq!(sealer(&["new", "old"]).open(None, None, &sealed), Ok(state(1)));
    }

    #[test]
    fn a_state_that_is_too_large_gives_no_token() {
        assert!(sealer(&["key"]).seal(None, None, &state(80)).len() <= SIZE);
        assert_eq!(sealer(&["key"]).seal(None, None, &state(200)), "");
    }
}
