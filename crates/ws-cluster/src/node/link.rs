//! A WebSocket between two nodes, or between a publisher and a node: the mutual proof of the key, authenticated packets
//! in both directions, and heartbeats. [`ws_cluster_core`] defines what the frames mean.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::{
    sync::{Notify, mpsc},
    time::{interval, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tungstenite::{
    Message,
    protocol::{Role as Side, WebSocketConfig},
};

use crate::{
    io::Stream,
    node::codec::{Greeting, Note, PacketPart, Proof, VERSIONS, Welcome, decode_packet, negotiate},
    random,
};
use ws_cluster_core::{Frame, NodeId};

mod mac;

use mac::{PacketOpener, PacketSealer};

/// The path of links, on the nodes' listener. It is never on the clients' path.
pub(crate) const PATH: &str = "/_cluster/v1";

/// Number of bytes from which a packet takes no more frames. A packet of this size is sent well before a link counts as
/// dead.
const PACKET_BYTES: usize = 512 * 1024;

/// Maximum size of a packet from a peer that has proved the key, in bytes. A snapshot with all the idempotency keys
/// that a log remembers comes near it.
const PACKET_SIZE: usize = 32 * 1024 * 1024;

/// Number of waiting bytes from which a link takes no more notes, so that those do not delay frames.
const NOTES_ROOM: usize = 1024 * 1024;

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

/// The reason why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// No process listens at the address.
    #[error("nothing listens there")]
    Refused,
    /// Another node than the expected one answers at the address.
    #[error("another node answers there")]
    OtherNode,
    /// The two sides differ in their keys, clusters or versions. The text says in which.
    #[error("{0}")]
    Mismatch(String),
    /// The other side breaks the protocol, or the network failed.
    #[error("{0}")]
    Broken(String),
    #[error("no answer in time")]
    Silent,
    /// A third party on the network interferes with the link: a packet is not the one that the peer sent next. The
    /// packet was not used.
    #[error(
        "a packet was changed, inserted, repeated, reordered or dropped on its way; use wss:// or a private network"
    )]
    Forged,
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

/// Logs the loss of a publisher's link. Publishers come and go, so only forged packets are worth a warning.
pub(crate) fn log_publisher_loss(error: &LinkError) {
    match error {
        LinkError::Forged => tracing::warn!(%error, "a publisher's link was cut"),
        error => tracing::debug!(%error, "a publisher's link was lost"),
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

pub(crate) type Socket<S> = WebSocketStream<S>;
pub(crate) type Dialled = Link<MaybeTlsStream<tokio::net::TcpStream>>;

/// A link whose two sides have proved the key to each other. Every packet is authenticated with a key of its direction,
/// so an attacker on the network can only end the link.
pub(crate) struct Link<S> {
    socket: Socket<S>,
    sealer: PacketSealer,
    opener: PacketOpener,
}

impl Link<MaybeTlsStream<tokio::net::TcpStream>> {
    /// Returns the address that was dialled, unless TLS hides it.
    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        match self.socket.get_ref() {
            MaybeTlsStream::Plain(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            _ => None,
        }
    }
}

impl<S: Stream> Link<S> {
    /// Returns the link of the side `own` to the side `other`, after the greeting with this transcript.
    fn new(socket: Socket<S>, key: &[u8], [own, other]: [&str; 2], transcript: &[Bytes; 2]) -> Self {
        let [own, other] = [own, other].map(|side| packet_key(key, side, transcript));
        Self { socket, sealer: PacketSealer::new(own), opener: PacketOpener::new(other) }
    }

    /// Splits the link into its two directions, for two tasks.
    pub(crate) fn split(self) -> (LinkWriter<S>, LinkReader<S>) {
        let (sink, stream) = self.socket.split();
        (LinkWriter { sink, sealer: self.sealer }, LinkReader { stream, opener: self.opener })
    }
}

/// The sending direction of a [`Link`].
pub(crate) struct LinkWriter<S> {
    sink: SplitSink<Socket<S>, Message>,
    sealer: PacketSealer,
}

impl<S: Stream> LinkWriter<S> {
    /// Sends one packet.
    pub(crate) async fn write(&mut self, packet: &impl prost::Message) -> Result<(), LinkError> {
        Ok(self.sink.send(Message::Binary(self.sealer.seal(packet))).await?)
    }

    /// Sends these frames and notes as one packet.
    async fn write_parts(&mut self, parts: &[PacketPart]) -> Result<(), LinkError> {
        Ok(self.sink.send(Message::Binary(self.sealer.seal_parts(parts))).await?)
    }

    /// Sends an empty packet, which tells the peer that this side is alive.
    pub(crate) async fn write_heartbeat(&mut self) -> Result<(), LinkError> {
        self.write(&()).await
    }

    /// Closes the link.
    pub(crate) async fn close(&mut self) {
        // An error can be ignored: the end of the stream tells the peer too.
        let _ = self.sink.close().await;
    }
}

/// The receiving direction of a [`Link`].
pub(crate) struct LinkReader<S> {
    stream: SplitStream<Socket<S>>,
    opener: PacketOpener,
}

impl<S: Stream> LinkReader<S> {
    /// Returns the packet that the peer sent next, or `None` if the link ended. Pings and pongs are skipped: they are
    /// not authenticated, so they do not show that the peer is alive. The future can be dropped without loss.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(packet))) => return self.opener.open(packet).map(Some),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => return Err(LinkError::Forged),
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }
}

/// Returns both ends of a proved link, over a stream in memory.
#[cfg(test)]
pub(super) async fn pair() -> [Link<tokio::io::DuplexStream>; 2] {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let transcript = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
    let near = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    [
        Link::new(near, &[7; 32], [DIALLER, ACCEPTOR], &transcript),
        Link::new(far, &[7; 32], [ACCEPTOR, DIALLER], &transcript),
    ]
}

const DIALLER: &str = "dialler";
const ACCEPTOR: &str = "acceptor";

fn config(size: usize) -> WebSocketConfig {
    let buffer = size.min(64 * 1024);
    WebSocketConfig::default().read_buffer_size(buffer).max_message_size(Some(size)).max_frame_size(Some(size))
}

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
fn packet_key(key: &[u8], side: &str, transcript: &[Bytes; 2]) -> [u8; 32] {
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

/// The sending end of a link's queue of frames and notes. When it is dropped, the link is closed after those that wait.
#[derive(Debug)]
pub(crate) struct FrameSender {
    /// Unbounded, since the core must not wait. `queue` limits the bytes by cutting the link.
    waiting: mpsc::UnboundedSender<PacketPart>,
    queue: Arc<Queue>,
}

/// The receiving end of a link's queue of frames and notes.
pub(crate) struct FrameReceiver {
    waiting: mpsc::UnboundedReceiver<PacketPart>,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// The number of bytes that wait, and their limit.
    size: AtomicUsize,
    limit: usize,
    /// Notified if the link has to end at once, without the frames that wait.
    cut: Notify,
}

/// Returns a queue for a link in which about `limit` bytes may wait.
pub(crate) fn queue(limit: usize) -> (FrameSender, FrameReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queue = Arc::new(Queue { size: AtomicUsize::new(0), limit, cut: Notify::new() });
    (FrameSender { waiting: sender, queue: queue.clone() }, FrameReceiver { waiting: receiver, queue })
}

impl FrameSender {
    /// Adds a frame to the queue. Returns false if the link is gone, or is cut because its peer reads too slowly.
    pub(crate) fn send(&self, frame: PacketPart) -> bool {
        let size = frame.bytes().len();
        let waiting = self.queue.size.fetch_add(size, Ordering::Relaxed);
        if waiting > 0 && waiting + size > self.queue.limit {
            self.queue.cut.notify_one();
            return false;
        }
        self.waiting.send(frame).is_ok()
    }

    /// Adds a note to the queue, unless much waits in it.
    pub(crate) fn tell(&self, note: PacketPart) {
        let size = note.bytes().len();
        if self.queue.size.load(Ordering::Relaxed) + size <= NOTES_ROOM {
            self.queue.size.fetch_add(size, Ordering::Relaxed);
            // If the link is gone, the driver learns so elsewhere.
            let _ = self.waiting.send(note);
        }
    }
}

impl FrameReceiver {
    /// Moves the waiting frames and notes to `parts`, as many as fit into a packet, and returns their size, or `None` if
    /// no more come.
    async fn gather(&mut self, parts: &mut Vec<PacketPart>) -> Option<usize> {
        let mut size = 0;
        let mut next = Some(self.waiting.recv().await?);
        while let Some(part) = next {
            size += part.bytes().len();
            parts.push(part);
            next = if size < PACKET_BYTES { self.waiting.try_recv().ok() } else { None };
        }
        Some(size)
    }
}

/// Runs a link until either side ends it, or until no packet has come from the peer for `dead`. Frames and notes go to
/// `arrived`. While `arrived` waits, nothing is read, but heartbeats are still sent.
pub(crate) async fn run<S: Stream, F: Future<Output = bool>>(
    link: Link<S>,
    mut outgoing: FrameReceiver,
    heartbeat: Duration,
    dead: Duration,
    arrived: impl Fn(Vec<Frame>, Vec<Note>) -> F,
) -> Result<(), LinkError> {
    let (mut writer, mut reader) = link.split();
    let queue = outgoing.queue.clone();
    let writing = async {
        let mut beat = interval(heartbeat);
        let mut parts = Vec::new();
        loop {
            tokio::select! {
                gathered = outgoing.gather(&mut parts) => {
                    let Some(size) = gathered else {
                        writer.close().await;
                        return Ok(());
                    };
                    writer.write_parts(&parts).await?;
                    parts.clear();
                    outgoing.queue.size.fetch_sub(size, Ordering::Relaxed);
                }
                _ = beat.tick() => writer.write_heartbeat().await?,
            }
        }
    };
    let reading = async {
        loop {
            match timeout(dead, reader.read()).await {
                Err(_) => return Err(LinkError::Silent),
                Ok(Ok(Some(packet))) => {
                    let (frames, notes) =
                        decode_packet(&packet).map_err(|error| LinkError::Broken(error.to_string()))?;
                    let is_heartbeat = frames.is_empty() && notes.is_empty();
                    if !is_heartbeat && !arrived(frames, notes).await {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    };
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
        () = queue.cut.notified() => Err(LinkError::Broken("the peer reads too slowly".into())),
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
