//! The greeting of a link: both sides prove to each other that they have the cluster's key.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, connect_async_with_config};
use tungstenite::{Message, protocol::Role as Side};

use super::{Dialled, Link, LinkError, PACKET_SIZE, PATH, Socket, config};
use crate::{
    io::Stream,
    node::codec::{Greeting, Proof, VERSIONS, Welcome, negotiate},
    random,
};
use ws_cluster_core::NodeId;

/// Maximum size of a message from a peer that has not proved the key: a greeting or a proof.
const GREETING_SIZE: usize = 4 * 1024;

const NONCE_SIZE: usize = 32;

/// The keys of a cluster. They never leave the process, and `Debug` does not show them.
#[derive(Clone)]
pub(crate) struct Keys(Arc<[Vec<u8>]>);

impl Keys {
    /// Returns the keys. The first is used to dial; all are accepted.
    pub(crate) fn new(keys: Vec<Vec<u8>>) -> Self {
        Self(keys.into())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// The purpose of a dialled link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be a node of the cluster: frames in both directions.
    Node = 0,
    /// To publish from outside of the cluster.
    Publisher = 1,
    /// To find out which node answers. The link ends after the greeting.
    Probe = 2,
}

/// The identity of one side in a greeting.
#[derive(Clone, Debug)]
pub(crate) struct LinkIdentity {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) keys: Keys,
}

pub(super) const DIALLER: &str = "dialler";
pub(super) const ACCEPTOR: &str = "acceptor";

/// Greets as the dialler. `expected`: the node that has to answer, if it matters.
pub(crate) async fn dial(
    address: &str,
    expected: Option<NodeId>,
    purpose: Purpose,
    own: &LinkIdentity,
) -> Result<(NodeId, Dialled), LinkError> {
    let (mut socket, _) =
        connect_async_with_config(format!("{address}{PATH}"), Some(config(PACKET_SIZE)), true).await?;
    let nonce = nonce()?;
    let greeting = Greeting {
        oldest: VERSIONS.0.into(),
        newest: VERSIONS.1.into(),
        cluster: own.cluster.clone(),
        node: Bytes::copy_from_slice(own.node.as_bytes()),
        role: purpose as u32,
        nonce,
    };
    let sent_greeting = write(&mut socket, &greeting).await?;
    let (welcome, sent_welcome): (Welcome, _) = read(&mut socket).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let peer = node(&welcome.node)?;
    if expected.is_some_and(|expected| expected != peer) {
        return Err(LinkError::OtherNode);
    }
    let key = own.keys.0.first().ok_or_else(|| LinkError::Mismatch("this node has no key".into()))?;
    let transcript = [sent_greeting, sent_welcome];
    write(&mut socket, &Proof { mac: prove(key, DIALLER, &transcript), refusal: String::new() }).await?;
    let (proof, _): (Proof, _) = read(&mut socket).await?;
    if !proof.refusal.is_empty() {
        return Err(LinkError::Mismatch(proof.refusal));
    }
    if !is_proof(key, ACCEPTOR, &transcript, &proof.mac) {
        let why = "the node that answers does not have this cluster's key, or the greeting was changed on its way";
        return Err(LinkError::Mismatch(why.into()));
    }
    Ok((peer, Link::new(socket, key, [DIALLER, ACCEPTOR], &transcript)))
}

/// Greets as the acceptor, on an upgraded stream. Returns `None` for a probe, which ends after the greeting. `limit`:
/// the time for the dialler's first message.
pub(crate) async fn accept<S: Stream>(
    stream: S,
    own: &LinkIdentity,
    limit: Duration,
) -> Result<Option<(NodeId, Purpose, Link<S>)>, LinkError> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config(GREETING_SIZE))).await;
    let (greeting, sent_greeting): (Greeting, _) =
        timeout(limit, read(&mut socket)).await.unwrap_or(Err(LinkError::Silent))?;
    let theirs = (narrow(greeting.oldest), narrow(greeting.newest));
    let refusal = if greeting.cluster != own.cluster {
        format!("this node is in the cluster {:?}, not in {:?}", own.cluster, greeting.cluster)
    } else if negotiate(VERSIONS, theirs).is_none() {
        format!("this node speaks versions {} to {}, not {} to {}", VERSIONS.0, VERSIONS.1, theirs.0, theirs.1)
    } else if greeting.nonce.len() != NONCE_SIZE {
        "the nonce has the wrong size".into()
    } else {
        String::new()
    };
    let welcome = Welcome { node: Bytes::copy_from_slice(own.node.as_bytes()), nonce: nonce()?, refusal };
    let sent_welcome = write(&mut socket, &welcome).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let purpose = match greeting.role {
        0 => Purpose::Node,
        1 => Purpose::Publisher,
        _ => Purpose::Probe,
    };
    let peer = node(&greeting.node)?;
    let transcript = [sent_greeting, sent_welcome];
    let (proof, _): (Proof, _) = read(&mut socket).await?;
    let key = own.keys.0.iter().find(|key| is_proof(key, DIALLER, &transcript, &proof.mac));
    let Some(key) = key else {
        let refusal = "the key is not this cluster's, or the greeting was changed on its way".to_owned();
        write(&mut socket, &Proof { mac: Bytes::new(), refusal: refusal.clone() }).await?;
        return Err(LinkError::Mismatch(refusal));
    };
    // From here on the peer may send large packets. It waits for our proof, so no bytes of it are lost with the old
    // socket.
    let stream = socket.into_inner();
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config(PACKET_SIZE))).await;
    write(&mut socket, &Proof { mac: prove(key, ACCEPTOR, &transcript), refusal: String::new() }).await?;
    if purpose == Purpose::Probe {
        return Ok(None);
    }
    Ok(Some((peer, purpose, Link::new(socket, key, [ACCEPTOR, DIALLER], &transcript))))
}

/// Converts a version number. One beyond the range becomes a version that no node speaks.
fn narrow(version: u32) -> u16 {
    u16::try_from(version).unwrap_or(u16::MAX)
}

fn nonce() -> Result<Bytes, LinkError> {
    let bytes = random::bytes::<NONCE_SIZE>().map_err(|error| LinkError::Broken(error.to_string()))?;
    Ok(Bytes::copy_from_slice(&bytes))
}

fn node(bytes: &[u8]) -> Result<NodeId, LinkError> {
    bytes.try_into().map(NodeId::from_bytes).map_err(|_| LinkError::Broken("a node's id has 16 bytes".into()))
}

/// Returns the MAC of the greeting's exact bytes, which covers the versions on offer and the fields of later versions.
/// It also covers the side that proves, so that a proof cannot be sent back. The nonces of both sides make the MAC
/// unique to this link.
fn transcript_mac(key: &[u8], side: &str, [greeting, welcome]: &[Bytes; 2]) -> Hmac<Sha256> {
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    };
    for part in [b"ws-cluster link 2", side.as_bytes(), greeting, welcome] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

/// Returns the key for the packets of one side. The proofs reveal nothing about this key.
pub(super) fn packet_key(key: &[u8], side: &str, transcript: &[Bytes; 2]) -> [u8; 32] {
    transcript_mac(key, &format!("packets of the {side}"), transcript).finalize().into_bytes().into()
}

fn prove(key: &[u8], side: &str, transcript: &[Bytes; 2]) -> Bytes {
    Bytes::copy_from_slice(&transcript_mac(key, side, transcript).finalize().into_bytes())
}

/// Checks a proof in constant time.
fn is_proof(key: &[u8], side: &str, transcript: &[Bytes; 2], proof: &[u8]) -> bool {
    transcript_mac(key, side, transcript).verify_slice(proof).is_ok()
}

/// Sends a message of the greeting, and returns its bytes.
async fn write<S: Stream>(socket: &mut Socket<S>, message: &impl prost::Message) -> Result<Bytes, LinkError> {
    let bytes = Bytes::from(message.encode_to_vec());
    socket.send(Message::Binary(bytes.clone())).await?;
    Ok(bytes)
}

/// Returns the next message of the greeting, decoded and as bytes.
async fn read<S: Stream, M: prost::Message + Default>(socket: &mut Socket<S>) -> Result<(M, Bytes), LinkError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok((M::decode(bytes.clone())?, bytes)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) | None => return Err(LinkError::Broken("the other side closed the link".into())),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_key_its_side_and_its_transcript_only() {
        let (key, other) = ([7; 32], [8; 32]);
        let transcript = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
        let proof = prove(&key, "dialler", &transcript);
        assert!(is_proof(&key, "dialler", &transcript, &proof));
        assert!(!is_proof(&other, "dialler", &transcript, &proof));
        assert!(!is_proof(&key, "acceptor", &transcript, &proof), "sent back");
        let replayed = [transcript[0].clone(), Bytes::from_static(b"another")];
        assert!(!is_proof(&key, "dialler", &replayed, &proof), "replayed");
        let shifted = [Bytes::from_static(b"greetingw"), Bytes::from_static(b"elcome")];
        assert!(!is_proof(&key, "dialler", &shifted, &proof), "bytes moved from one to the other");
    }

    #[test]
    fn packets_of_each_direction_of_each_link_have_a_key_of_their_own() {
        let transcript = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
        let other_transcript = [transcript[0].clone(), Bytes::from_static(b"another")];
        let keys = [
            packet_key(&[7; 32], DIALLER, &transcript),
            packet_key(&[7; 32], ACCEPTOR, &transcript),
            packet_key(&[7; 32], DIALLER, &other_transcript),
            packet_key(&[8; 32], DIALLER, &transcript),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "key {index}");
            assert_ne!(key[..], prove(&[7; 32], DIALLER, &transcript)[..]);
            assert_ne!(key[..], prove(&[7; 32], ACCEPTOR, &transcript)[..]);
        }
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", Keys::new(vec![b"secret".to_vec()])), "Keys(1)");
    }
}
