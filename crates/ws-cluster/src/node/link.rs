//! One WebSocket between two nodes, or between a publisher and a node: the mutual proof of the key, authenticated
//! packets both ways, heartbeats. What the frames mean is decided in [`ws_cluster_core`].

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
    node::codec::{Greeting, Proof, VERSIONS, Welcome, decode_packet, negotiate, packet},
};
use ws_cluster_core::{Frame, NodeId};

mod mac;

use mac::{PacketOpener, PacketSealer};

/// Where links are served; on the nodes' listener, never on the clients' path.
pub(crate) const PATH: &str = "/_cluster/v1";

/// Bytes of frames that are joined into one packet, beyond the first: little enough to be through well before a link
/// counts as dead.
const PACKET_BYTES: usize = 512 * 1024;

/// Largest packet that is taken from a peer that proved the key, in bytes. A snapshot with all the idempotency keys
/// that a log remembers is what comes near.
const PACKET_SIZE: usize = 32 * 1024 * 1024;

/// The same for a peer that did not: a greeting or a proof.
const GREETING_SIZE: usize = 4 * 1024;

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
    /// Somebody on the network interferes with the link: what came is not what the peer sent next. Nothing of it was
    /// used.
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

/// A publisher comes and goes as it likes, but one whose packets are forged is news.
pub(crate) fn log_publisher_loss(error: &LinkError) {
    match error {
        LinkError::Forged => tracing::warn!(%error, "a publisher's link was cut"),
        error => tracing::debug!(%error, "a publisher's link was lost"),
    }
}

/// What the dialler wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To take part: frames both ways.
    Node = 0,
    /// To publish from outside of the cluster.
    Publisher = 1,
    /// To see who answers, and no more: the link ends after the greeting.
    Probe = 2,
}

/// Who one is in a greeting.
#[derive(Clone, Debug)]
pub(crate) struct LinkIdentity {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) keys: Keys,
}

pub(crate) type Socket<S> = WebSocketStream<S>;
pub(crate) type Dialled = Link<MaybeTlsStream<tokio::net::TcpStream>>;

/// A link whose two sides proved the key to each other. Every packet is authenticated with a key of its direction, so
/// that an attacker on the way can end the link, and no more.
pub(crate) struct Link<S> {
    socket: Socket<S>,
    sealer: PacketSealer,
    opener: PacketOpener,
}

impl Link<MaybeTlsStream<tokio::net::TcpStream>> {
    /// The address that was dialled, unless TLS hides it.
    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        match self.socket.get_ref() {
            MaybeTlsStream::Plain(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            _ => None,
        }
    }
}

impl<S: Stream> Link<S> {
    /// The link of this side, `own`, with the other side, after the greeting of these words.
    fn new(socket: Socket<S>, key: &[u8], [own, other]: [&str; 2], words: &[Bytes; 2]) -> Self {
        let [own, other] = [own, other].map(|side| packet_key(key, side, words));
        Self { socket, sealer: PacketSealer::new(own), opener: PacketOpener::new(other) }
    }

    /// Both directions, for two tasks.
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

    /// Sends an empty packet, by which the peer hears of this side.
    pub(crate) async fn write_heartbeat(&mut self) -> Result<(), LinkError> {
        self.write(&()).await
    }

    /// Says farewell.
    pub(crate) async fn close(&mut self) {
        // The peer finds out by the end of the stream as well.
        let _ = self.sink.close().await;
    }
}

/// The receiving direction of a [`Link`].
pub(crate) struct LinkReader<S> {
    stream: SplitStream<Socket<S>>,
    opener: PacketOpener,
}

impl<S: Stream> LinkReader<S> {
    /// The next packet, which is the one that the peer sent next; `None` if the link ended. Pings and pongs are
    /// skipped, since they are not authenticated: they do not show that the peer lives. Dropping the future loses
    /// nothing.
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

/// Both ends of a link that was proved, over a stream in memory.
#[cfg(test)]
pub(super) async fn pair() -> [Link<tokio::io::DuplexStream>; 2] {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let words = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
    let near = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    [Link::new(near, &[7; 32], [DIALLER, ACCEPTOR], &words), Link::new(far, &[7; 32], [ACCEPTOR, DIALLER], &words)]
}

const DIALLER: &str = "dialler";
const ACCEPTOR: &str = "acceptor";

fn config(size: usize) -> WebSocketConfig {
    let buffer = size.min(64 * 1024);
    WebSocketConfig::default().read_buffer_size(buffer).max_message_size(Some(size)).max_frame_size(Some(size))
}

/// The dialler's side of the greeting. `expected`: the node that is meant, if one is.
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
    let said = write(&mut socket, &greeting).await?;
    let (welcome, answered): (Welcome, _) = read(&mut socket).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let peer = node(&welcome.node)?;
    if expected.is_some_and(|expected| expected != peer) {
        return Err(LinkError::OtherNode);
    }
    let key = own.keys.0.first().ok_or_else(|| LinkError::Mismatch("this node has no key".into()))?;
    let words = [said, answered];
    write(&mut socket, &Proof { mac: prove(key, DIALLER, &words), refusal: String::new() }).await?;
    let (proof, _): (Proof, _) = read(&mut socket).await?;
    if !proof.refusal.is_empty() {
        return Err(LinkError::Mismatch(proof.refusal));
    }
    if !is_proof(key, ACCEPTOR, &words, &proof.mac) {
        let why = "the node that answers does not have this cluster's key, or the greeting was changed on its way";
        return Err(LinkError::Mismatch(why.into()));
    }
    Ok((peer, Link::new(socket, key, [DIALLER, ACCEPTOR], &words)))
}

/// The acceptor's side of the greeting, on an upgraded stream. `None` for a peer that knows what it wanted to know.
/// `limit`: the time for the dialler's first message.
pub(crate) async fn accept<S: Stream>(
    stream: S,
    own: &LinkIdentity,
    limit: Duration,
) -> Result<Option<(NodeId, Purpose, Link<S>)>, LinkError> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config(GREETING_SIZE))).await;
    let (greeting, said): (Greeting, _) = timeout(limit, read(&mut socket)).await.unwrap_or(Err(LinkError::Silent))?;
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
    let answered = write(&mut socket, &welcome).await?;
    if !welcome.refusal.is_empty() {
        return Err(LinkError::Mismatch(welcome.refusal));
    }
    let purpose = match greeting.role {
        0 => Purpose::Node,
        1 => Purpose::Publisher,
        _ => Purpose::Probe,
    };
    let peer = node(&greeting.node)?;
    let words = [said, answered];
    let (proof, _): (Proof, _) = read(&mut socket).await?;
    let key = own.keys.0.iter().find(|key| is_proof(key, DIALLER, &words, &proof.mac));
    let Some(key) = key else {
        let refusal = "the key is not this cluster's, or the greeting was changed on its way".to_owned();
        write(&mut socket, &Proof { mac: Bytes::new(), refusal: refusal.clone() }).await?;
        return Err(LinkError::Mismatch(refusal));
    };
    // From here on it may send large packets. Before our own proof it sends nothing, so nothing is lost on the way.
    let stream = socket.into_inner();
    let mut socket = WebSocketStream::from_raw_socket(stream, Side::Server, Some(config(PACKET_SIZE))).await;
    write(&mut socket, &Proof { mac: prove(key, ACCEPTOR, &words), refusal: String::new() }).await?;
    if purpose == Purpose::Probe {
        return Ok(None);
    }
    Ok(Some((peer, purpose, Link::new(socket, key, [ACCEPTOR, DIALLER], &words))))
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

/// All that was said, to the byte, so that fields of a later version and the versions on offer are covered as well; and
/// by which side the proof is given, so that none can be sent back. Each side's nonce makes the result unique to this
/// link.
fn transcript(key: &[u8], side: &str, [greeting, welcome]: &[Bytes; 2]) -> Hmac<Sha256> {
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

/// The key of the packets that this side sends. What is proved to the other side tells nothing of it.
fn packet_key(key: &[u8], side: &str, words: &[Bytes; 2]) -> [u8; 32] {
    transcript(key, &format!("packets of the {side}"), words).finalize().into_bytes().into()
}

fn prove(key: &[u8], side: &str, words: &[Bytes; 2]) -> Bytes {
    Bytes::copy_from_slice(&transcript(key, side, words).finalize().into_bytes())
}

/// In constant time.
fn is_proof(key: &[u8], side: &str, words: &[Bytes; 2], proof: &[u8]) -> bool {
    transcript(key, side, words).verify_slice(proof).is_ok()
}

/// Sends a message of the greeting, and returns it as it was sent.
async fn write<S: Stream>(socket: &mut Socket<S>, message: &impl prost::Message) -> Result<Bytes, LinkError> {
    let bytes = Bytes::from(message.encode_to_vec());
    socket.send(Message::Binary(bytes.clone())).await?;
    Ok(bytes)
}

/// The next message of the greeting, and as what it came.
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

/// How frames get onto a link. Dropping it closes the link after what waits.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Unbounded, since the core must not wait; `queue` bounds it, by cutting the link.
    frames: mpsc::UnboundedSender<Frame>,
    queue: Arc<Queue>,
}

/// The other end of [`Outgoing`].
pub(crate) struct Waiting {
    frames: mpsc::UnboundedReceiver<Frame>,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// Bytes that wait, and how many may.
    size: AtomicUsize,
    limit: usize,
    /// The link is to end at once, whatever waits.
    cut: Notify,
}

/// A queue for a link that takes about `limit` bytes.
pub(crate) fn queue(limit: usize) -> (Outgoing, Waiting) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queue = Arc::new(Queue { size: AtomicUsize::new(0), limit, cut: Notify::new() });
    (Outgoing { frames: sender, queue: queue.clone() }, Waiting { frames: receiver, queue })
}

impl Outgoing {
    /// Puts a frame in the queue; `false` where the link is gone, or its peer reads too slowly and was cut.
    pub(crate) fn send(&self, frame: Frame) -> bool {
        let size = frame.size();
        let waiting = self.queue.size.fetch_add(size, Ordering::Relaxed);
        if waiting > 0 && waiting + size > self.queue.limit {
            self.queue.cut.notify_one();
            return false;
        }
        self.frames.send(frame).is_ok()
    }
}

impl Waiting {
    /// The frames that gathered, as many as make a packet; `None` where no more come.
    async fn gather(&mut self) -> Option<Vec<Frame>> {
        let mut frames = vec![self.frames.recv().await?];
        let mut size = frames[0].size();
        while size < PACKET_BYTES
            && let Ok(frame) = self.frames.try_recv()
        {
            size += frame.size();
            frames.push(frame);
        }
        Some(frames)
    }
}

/// Runs a link until either side ends it or no packet comes from the peer for `dead`. Frames that come go to
/// `arrived`, which holds reading back where it waits; heartbeats do not wait for it.
pub(crate) async fn run<S: Stream, F: Future<Output = bool>>(
    link: Link<S>,
    mut outgoing: Waiting,
    heartbeat: Duration,
    dead: Duration,
    arrived: impl Fn(Vec<Frame>) -> F,
) -> Result<(), LinkError> {
    let (mut writer, mut reader) = link.split();
    let queue = outgoing.queue.clone();
    let writing = async {
        let mut beat = interval(heartbeat);
        loop {
            tokio::select! {
                frames = outgoing.gather() => {
                    let Some(frames) = frames else {
                        writer.close().await;
                        return Ok(());
                    };
                    let size: usize = frames.iter().map(Frame::size).sum();
                    writer.write(&packet(frames)).await?;
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
                    let frames = decode_packet(&packet).map_err(|error| LinkError::Broken(error.to_string()))?;
                    if !frames.is_empty() && !arrived(frames).await {
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
    fn a_proof_holds_for_its_key_its_side_and_its_words_only() {
        let (key, other) = ([7; 32], [8; 32]);
        let words = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
        let proof = prove(&key, "dialler", &words);
        assert!(is_proof(&key, "dialler", &words, &proof));
        assert!(!is_proof(&other, "dialler", &words, &proof));
        assert!(!is_proof(&key, "acceptor", &words, &proof), "sent back");
        let replayed = [words[0].clone(), Bytes::from_static(b"another")];
        assert!(!is_proof(&key, "dialler", &replayed, &proof), "replayed");
        let shifted = [Bytes::from_static(b"greetingw"), Bytes::from_static(b"elcome")];
        assert!(!is_proof(&key, "dialler", &shifted, &proof), "words moved from one to the other");
    }

    #[test]
    fn packets_of_each_direction_of_each_link_have_a_key_of_their_own() {
        let words = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
        let other_words = [words[0].clone(), Bytes::from_static(b"another")];
        let keys = [
            packet_key(&[7; 32], DIALLER, &words),
            packet_key(&[7; 32], ACCEPTOR, &words),
            packet_key(&[7; 32], DIALLER, &other_words),
            packet_key(&[8; 32], DIALLER, &words),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "key {index}");
            assert_ne!(key[..], prove(&[7; 32], DIALLER, &words)[..]);
            assert_ne!(key[..], prove(&[7; 32], ACCEPTOR, &words)[..]);
        }
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", Keys::new(vec![b"secret".to_vec()])), "Keys(1)");
    }
}
