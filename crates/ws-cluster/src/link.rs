//! One WebSocket between two nodes, or between a publisher and a node: the mutual proof of the key, packets both
//! ways, heartbeats. What the frames mean is decided in [`cluster`](crate::cluster).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use prost::Message as _;
use sha2::Sha256;
use tokio::{
    sync::mpsc,
    time::{interval, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tungstenite::{
    Message,
    protocol::{Role as Side, WebSocketConfig},
};

use crate::{
    cluster::{Frame, NodeId},
    connection::Stream,
    wire::link::{Greeting, Proof, VERSIONS, Welcome, decode_packet, encode_packet, negotiate},
};

/// Where links are served; on the nodes' listener, never on the clients' path.
pub(crate) const PATH: &str = "/_cluster/v1";

/// Shortest key in bytes: as long as the hash that is made with it.
pub(crate) const KEY_SIZE: usize = 32;

/// Frames that are joined into one packet at the most.
const PACKET_FRAMES: usize = 256;

/// Largest packet that is taken, in bytes. Frames are far smaller; a snapshot of a log with many idempotency keys is
/// what comes near.
const PACKET_SIZE: usize = 256 * 1024 * 1024;

const NONCE_SIZE: usize = 32;

/// The keys of a cluster, which never leave the process and never show.
#[derive(Clone)]
pub(crate) struct Keys(Arc<[Vec<u8>]>);

impl Keys {
    /// The first is used to dial, all are accepted.
    pub(crate) fn new(keys: Vec<Vec<u8>>) -> Self {
        Self(keys.into())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nothing listens at the address.
    #[error("nothing listens there")]
    Refused,
    /// Another node listens there than the one that was meant.
    #[error("another node answers there")]
    OtherNode,
    /// The two sides do not have the same key, cluster or versions; the text says which.
    #[error("{0}")]
    Mismatch(String),
    /// The other side does not keep to the protocol, or the network failed.
    #[error("{0}")]
    Broken(String),
    #[error("no answer in time")]
    Silent,
}

impl From<tungstenite::Error> for LinkError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Self::Refused,
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<prost::DecodeError> for LinkError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What the dialler wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To take part: frames both ways.
    Node = 0,
    /// To publish from outside of the cluster.
    Publisher = 1,
    /// To see who answers, and no more.
    Probe = 2,
}

/// Who one is in a greeting.
#[derive(Clone, Debug)]
pub(crate) struct Passport {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) keys: Keys,
}

pub(crate) type Socket<S> = WebSocketStream<S>;
pub(crate) type Dialled = Socket<MaybeTlsStream<tokio::net::TcpStream>>;

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(PACKET_SIZE)).max_frame_size(Some(PACKET_SIZE))
}

/// The dialler's side of the greeting. `expected`: the node that is meant, if one is.
pub(crate) async fn dial(
    address: &str,
    expected: Option<NodeId>,
    purpose: Purpose,
    own: &Passport,
) -> Result<(NodeId, Dialled), LinkError> {
    let (mut socket, _) = connect_async_with_config(format!("{address}{PATH}"), Some(config()), true).await?;
    let nonce = nonce()?;
    let greeting = Greeting {
        oldest: VERSIONS.0.into(),
        newest: VERSIONS.1.into(),
        cluster: own.cluster.clone(),
        node: Bytes::copy_from_slice(own.node.as_bytes()),
        role: purpose as u32,
        nonce,
    };
    write(&mut socket, &greeting).await?;
    let welcome: Welcome = read(&mut socket).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let peer = node(&welcome.node)?;
    if expected.is_some_and(|expected| expected != peer) {
        return Err(LinkError::OtherNode);
    }
    if purpose == Purpose::Probe {
        return Ok((peer, socket));
    }
    let key = own.keys.0.first().ok_or_else(|| LinkError::Mismatch("this node has no key".into()))?;
    write(&mut socket, &Proof { mac: prove(key, "dialler", &greeting, &welcome), refusal: String::new() }).await?;
    let proof: Proof = read(&mut socket).await?;
    if !proof.refusal.is_empty() {
        return Err(LinkError::Mismatch(proof.refusal));
    }
    if !is_proof(key, "acceptor", &greeting, &welcome, &proof.mac) {
        return Err(LinkError::Mismatch("the node that answers does not have this cluster's key".into()));
    }
    Ok((peer, socket))
}

/// The acceptor's side of the greeting, on an upgraded stream.
pub(crate) async fn accept<S: Stream>(
    stream: S,
    own: &Passport,
) -> Result<Option<(NodeId, Purpose, Socket<S>)>, LinkError> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config())).await;
    let greeting: Greeting = read(&mut socket).await?;
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
    let welcome = Welcome {
        version: negotiate(VERSIONS, theirs).unwrap_or_default().into(),
        node: Bytes::copy_from_slice(own.node.as_bytes()),
        nonce: nonce()?,
        refusal,
    };
    write(&mut socket, &welcome).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let purpose = match greeting.role {
        0 => Purpose::Node,
        1 => Purpose::Publisher,
        // It knows what it wanted to know.
        _ => return Ok(None),
    };
    let peer = node(&greeting.node)?;
    let proof: Proof = read(&mut socket).await?;
    let key = own.keys.0.iter().find(|key| is_proof(key, "dialler", &greeting, &welcome, &proof.mac));
    let Some(key) = key else {
        let refusal = "the key is not this cluster's".to_owned();
        write(&mut socket, &Proof { mac: Bytes::new(), refusal: refusal.clone() }).await?;
        return Err(LinkError::Mismatch(refusal));
    };
    write(&mut socket, &Proof { mac: prove(key, "acceptor", &greeting, &welcome), refusal: String::new() }).await?;
    Ok(Some((peer, purpose, socket)))
}

/// A version number that no node has becomes one that none speaks.
fn narrow(version: u32) -> u16 {
    u16::try_from(version).unwrap_or(u16::MAX)
}

fn nonce() -> Result<Bytes, LinkError> {
    let mut bytes = [0; NONCE_SIZE];
    getrandom::fill(&mut bytes).map_err(|error| LinkError::Broken(error.to_string()))?;
    Ok(Bytes::copy_from_slice(&bytes))
}

fn node(bytes: &[u8]) -> Result<NodeId, LinkError> {
    bytes.try_into().map(NodeId::from_bytes).map_err(|_| LinkError::Broken("a node's id has 16 bytes".into()))
}

/// All that was said, and by which side the proof is given, so that none can be used elsewhere or sent back.
fn transcript(key: &[u8], side: &str, greeting: &Greeting, welcome: &Welcome) -> Hmac<Sha256> {
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    };
    let greeting = greeting.encode_to_vec();
    let welcome = welcome.encode_to_vec();
    for part in [b"ws-cluster link 1", side.as_bytes(), &greeting, &welcome] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn prove(key: &[u8], side: &str, greeting: &Greeting, welcome: &Welcome) -> Bytes {
    Bytes::copy_from_slice(&transcript(key, side, greeting, welcome).finalize().into_bytes())
}

/// In constant time.
fn is_proof(key: &[u8], side: &str, greeting: &Greeting, welcome: &Welcome, proof: &[u8]) -> bool {
    transcript(key, side, greeting, welcome).verify_slice(proof).is_ok()
}

pub(crate) async fn write<S: Stream>(socket: &mut Socket<S>, message: &impl prost::Message) -> Result<(), LinkError> {
    Ok(socket.send(Message::Binary(message.encode_to_vec().into())).await?)
}

pub(crate) async fn read<S: Stream, M: prost::Message + Default>(socket: &mut Socket<S>) -> Result<M, LinkError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(M::decode(bytes)?),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) | None => return Err(LinkError::Broken("the other side closed the link".into())),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// How frames get onto a link. Dropping it closes the link after what waits.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Unbounded, since the core must not wait; `waiting` bounds it, by cutting the link.
    frames: mpsc::UnboundedSender<Frame>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

/// The other end of [`Outgoing`].
pub(crate) struct Waiting {
    frames: mpsc::UnboundedReceiver<Frame>,
    waiting: Arc<AtomicUsize>,
}

/// A queue for a link that takes about `limit` bytes.
pub(crate) fn queue(limit: usize) -> (Outgoing, Waiting) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Outgoing { frames: sender, waiting: waiting.clone(), limit }, Waiting { frames: receiver, waiting })
}

impl Outgoing {
    /// Puts a frame in the queue; `false` where the link is gone, or its peer reads too slowly and is to be cut.
    pub(crate) fn send(&self, frame: Frame) -> bool {
        let size = frame.size();
        let waiting = self.waiting.fetch_add(size, Ordering::Relaxed);
        (waiting == 0 || waiting + size <= self.limit) && self.frames.send(frame).is_ok()
    }
}

/// Runs a link until either side ends it or nothing is heard of the peer for `dead`. Frames that come go to
/// `arrived`, which holds reading back where it waits; heartbeats do not wait for it.
pub(crate) async fn run<S: Stream, F: Future<Output = bool>>(
    socket: Socket<S>,
    mut outgoing: Waiting,
    heartbeat: Duration,
    dead: Duration,
    arrived: impl Fn(Vec<Frame>) -> F,
) -> Result<(), LinkError> {
    let (mut sink, mut stream) = socket.split();
    let writing = async {
        let mut beat = interval(heartbeat);
        let mut frames = Vec::new();
        loop {
            tokio::select! {
                count = outgoing.frames.recv_many(&mut frames, PACKET_FRAMES) => {
                    if count == 0 {
                        let _ = sink.close().await;
                        return Ok(());
                    }
                }
                _ = beat.tick() => {}
            }
            let size: usize = frames.iter().map(Frame::size).sum();
            let packet = encode_packet(std::mem::take(&mut frames));
            sink.send(Message::Binary(packet)).await?;
            outgoing.waiting.fetch_sub(size, Ordering::Relaxed);
        }
    };
    let reading = async {
        loop {
            match timeout(dead, stream.next()).await {
                Err(_) => return Err(LinkError::Silent),
                Ok(Some(Ok(Message::Binary(packet)))) => {
                    let frames = decode_packet(&packet).map_err(|error| LinkError::Broken(error.to_string()))?;
                    if !frames.is_empty() && !arrived(frames).await {
                        return Ok(());
                    }
                }
                Ok(Some(Ok(Message::Close(_))) | None) => return Ok(()),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(error.into()),
            }
        }
    };
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Greeting {
        Greeting { cluster: "c".into(), nonce: Bytes::from_static(&[1; NONCE_SIZE]), ..Greeting::default() }
    }

    #[test]
    fn a_proof_holds_for_its_key_its_side_and_its_words_only() {
        let (key, other) = ([7; 32], [8; 32]);
        let welcome = Welcome { nonce: Bytes::from_static(&[2; NONCE_SIZE]), ..Welcome::default() };
        let proof = prove(&key, "dialler", &greeting(), &welcome);
        assert!(is_proof(&key, "dialler", &greeting(), &welcome, &proof));
        assert!(!is_proof(&other, "dialler", &greeting(), &welcome, &proof));
        assert!(!is_proof(&key, "acceptor", &greeting(), &welcome, &proof), "sent back");
        let replayed = Welcome { nonce: Bytes::from_static(&[3; NONCE_SIZE]), ..welcome };
        assert!(!is_proof(&key, "dialler", &greeting(), &replayed, &proof), "replayed");
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", Keys::new(vec![b"secret".to_vec()])), "Keys(1)");
    }
}
