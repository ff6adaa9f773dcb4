//! A WebSocket between two nodes, or between a publisher and a node: the mutual proof of the key, authenticated packets
//! in both directions, and heartbeats. [`ws_cluster_core`] defines what the frames mean.

use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::time::{interval, timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tungstenite::{Message, protocol::WebSocketConfig};

use crate::{
    io::Stream,
    node::codec::{Note, PacketPart, decode_packet},
};
use ws_cluster_core::Frame;

mod greeting;
mod mac;
mod queue;

use greeting::packet_key;
use mac::{PacketOpener, PacketSealer};

pub(crate) use greeting::{Keys, LinkIdentity, Purpose, accept, dial};
pub(crate) use queue::{FrameReceiver, FrameSender, queue};

/// The path of links, on the nodes' listener. It is never on the clients' path.
pub(crate) const PATH: &str = "/_cluster/v1";

/// Maximum size of a packet from a peer that has proved the key, in bytes. A snapshot with all the idempotency keys
/// that a log remembers comes near it.
const PACKET_SIZE: usize = 32 * 1024 * 1024;

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
    use greeting::{ACCEPTOR, DIALLER};
    use tungstenite::protocol::Role as Side;

    let (near, far) = tokio::io::duplex(64 * 1024);
    let transcript = [Bytes::from_static(b"greeting"), Bytes::from_static(b"welcome")];
    let near = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    [
        Link::new(near, &[7; 32], [DIALLER, ACCEPTOR], &transcript),
        Link::new(far, &[7; 32], [ACCEPTOR, DIALLER], &transcript),
    ]
}

fn config(size: usize) -> WebSocketConfig {
    let buffer = size.min(64 * 1024);
    WebSocketConfig::default().read_buffer_size(buffer).max_message_size(Some(size)).max_frame_size(Some(size))
}

/// When a link sends heartbeats.
pub(crate) struct Heartbeat<W> {
    pub(crate) interval: Duration,
    /// Returns true if this side works. Otherwise it sends none, so that the peer gives the link up.
    pub(crate) works: W,
}

/// Runs a link until either side ends it, or until no packet has come from the peer for `dead`. Frames and notes go to
/// `arrived`. While `arrived` waits, nothing is read, but heartbeats are still sent.
pub(crate) async fn run<S: Stream, F: Future<Output = bool>>(
    link: Link<S>,
    mut outgoing: FrameReceiver,
    heartbeat: Heartbeat<impl Fn() -> bool>,
    dead: Duration,
    arrived: impl Fn(Vec<Frame>, Vec<Note>) -> F,
) -> Result<(), LinkError> {
    let (mut writer, mut reader) = link.split();
    let queue = outgoing.queue.clone();
    let writing = async {
        let mut beat = interval(heartbeat.interval);
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
                _ = beat.tick() => {
                    if (heartbeat.works)() {
                        writer.write_heartbeat().await?;
                    }
                }
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

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_work_is_silent() {
        for works in [true, false] {
            let [near, far] = pair().await;
            let seconds = Duration::from_secs;
            let run = |link, works: bool| {
                let (sender, receiver) = queue(1024);
                let beat = Heartbeat { interval: seconds(1), works: move || works };
                let running = run(link, receiver, beat, seconds(4), |_, _| async { true });
                async move {
                    let _sender = sender;
                    running.await
                }
            };
            let (near, far) = (run(near, true), run(far, works));
            tokio::select! {
                ended = near => assert!(!works && matches!(ended, Err(LinkError::Silent)), "{ended:?}"),
                ended = far => panic!("{ended:?}"),
                () = tokio::time::sleep(seconds(60)) => assert!(works, "the link stands"),
            }
        }
    }
}
