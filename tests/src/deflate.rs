//! Clients that negotiate compression (permessage-deflate): one that shows each frame, and a proxy in front of a node,
//! through which any client compresses.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// The offer that browsers make.
pub const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// The bit of a compressed message in the first byte of a frame.
pub const COMPRESSED: u8 = 0x40;

/// What a sender leaves out at the end of a message.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Compresses a message as a sender does that keeps no context.
pub fn compress(message: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(message.len() + message.len() / 1_000 + 64);
    let done = Compress::new(Compression::default(), false).compress_vec(message, &mut compressed, FlushCompress::Sync);
    done.expect("the buffer is large enough");
    compressed.truncate(compressed.len() - TAIL.len());
    compressed
}

/// Inflates a compressed message on its own.
///
/// # Panics
/// Panics if it is not compressed as RFC 7692 says.
pub fn inflate(compressed: &[u8]) -> Vec<u8> {
    let whole = [compressed, &TAIL].concat();
    let (mut inflater, mut message) = (Decompress::new(false), Vec::with_capacity(1024));
    while (inflater.total_in() as usize) < whole.len() || message.len() == message.capacity() {
        message.reserve(message.len().max(1));
        let rest = &whole[inflater.total_in() as usize..];
        inflater.decompress_vec(rest, &mut message, FlushDecompress::Sync).expect("a DEFLATE stream");
    }
    message
}

/// A WebSocket frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte, with the opcode and the bits.
    pub first: u8,
    /// The payload without its mask.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns true if the frame begins a compressed message.
    pub fn is_compressed(&self) -> bool {
        self.first & COMPRESSED > 0
    }

    /// Returns the payload as text, inflated if it is compressed.
    ///
    /// # Panics
    /// Panics if it is no text.
    pub fn text(&self) -> String {
        let message = if self.is_compressed() { inflate(&self.payload) } else { self.payload.clone() };
        String::from_utf8(message).expect("text")
    }

    /// Reads a frame of either side.
    ///
    /// # Errors
    /// The stream fails or ends.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
        let size = match second & 0x7f {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            size => u64::from(size),
        };
        let mut mask = [0; 4];
        if second & 0x80 > 0 {
            stream.read_exact(&mut mask).await?;
        }
        let mut payload = vec![0; size as usize];
        stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Ok(Self { first, payload })
    }

    /// Returns the bytes of the frame, with a mask as a client sends them.
    pub fn masked(&self) -> Vec<u8> {
        let mut bytes = self.head(0x80);
        bytes.extend(MASK);
        bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Returns the bytes of the frame, as a server sends them.
    pub fn plain(&self) -> Vec<u8> {
        [self.head(0), self.payload.clone()].concat()
    }

    fn head(&self, mask: u8) -> Vec<u8> {
        match self.payload.len() {
            size @ 0..126 => vec![self.first, mask | size as u8],
            size @ 126..0x1_0000 => [&[self.first, mask | 126][..], &(size as u16).to_be_bytes()].concat(),
            size => [&[self.first, mask | 127][..], &(size as u64).to_be_bytes()].concat(),
        }
    }
}

/// A connection that shows each frame.
pub struct Peer<S> {
    stream: S,
    /// The server's answer to the offer.
    pub agreed: Option<String>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Opens a WebSocket with these extension headers.
    ///
    /// # Panics
    /// Panics if the server refuses.
    pub async fn open(mut stream: S, path: &str, offers: &[&str]) -> Self {
        let offers: String = offers.iter().map(|offer| format!("Sec-WebSocket-Extensions: {offer}\r\n")).collect();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: site.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("the request is sent");
        let head = read_head(&mut stream).await.expect("a whole head");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let agreed = head.lines().find_map(extensions).map(str::to_owned);
        Self { stream, agreed }
    }

    /// Sends a frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        let frame = Frame { first, payload: payload.to_vec() };
        self.bytes(&frame.masked()).await;
    }

    /// Sends bytes unchanged.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
        // A stream over TLS may keep some.
        self.stream.flush().await.expect("flushed");
    }

    /// Sends a text message compressed.
    pub async fn text(&mut self, text: &str) {
        self.send(0x81 | COMPRESSED, &compress(text.as_bytes())).await;
    }

    /// Returns the next frame that is no ping.
    pub async fn frame(&mut self) -> Frame {
        loop {
            let frame = Frame::read(&mut self.stream).await.expect("a frame");
            if frame.first != 0x89 {
                return frame;
            }
        }
    }

    /// Returns the code of the close frame that comes next.
    pub async fn closed(&mut self) -> u16 {
        match &self.frame().await {
            Frame { first: 0x88, payload } => u16::from_be_bytes([payload[0], payload[1]]),
            other => panic!("no close: {other:?}"),
        }
    }
}

/// A proxy in front of a node. It offers compression to the node for each client, compresses what the client sends, some
/// of it in two fragments, and inflates what the node sends. When dropped, it closes its port.
pub struct Compressing {
    address: SocketAddr,
    inflated: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl Compressing {
    /// Listens on a port of its own, in front of `server`.
    ///
    /// # Panics
    /// Panics if there is no free port.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let inflated = Arc::new(AtomicU64::new(0));
        let count = inflated.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let count = count.clone();
                // If either side is gone, both connections end.
                tokio::spawn(async move { forward(client, server, &count).await });
            }
        });
        Self { address, inflated, accepting: accepting.abort_handle() }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of compressed messages that came from the node.
    pub fn inflated(&self) -> u64 {
        self.inflated.load(Ordering::Relaxed)
    }
}

impl Drop for Compressing {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, server: SocketAddr, inflated: &AtomicU64) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, mut to_client), (from_server, mut to_server)) = (client.into_split(), server.into_split());
    let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
    let request = read_head(&mut from_client).await?;
    let request = request.trim_end().to_owned() + "\r\nSec-WebSocket-Extensions: " + OFFER + "\r\n\r\n";
    to_server.write_all(request.as_bytes()).await?;
    let answer = read_head(&mut from_server).await?;
    let agreed = answer.lines().any(|line| extensions(line).is_some());
    let lines: String = answer.split_inclusive("\r\n").filter(|line| extensions(line).is_none()).collect();
    to_client.write_all(lines.as_bytes()).await?;
    if !agreed {
        // A refusal, or an answer that is no upgrade.
        copy(&mut from_server, &mut to_client).await?;
        return Ok(());
    }
    let up = async {
        let mut fragments = false;
        loop {
            let Frame { first, payload } = Frame::read(&mut from_client).await?;
            let message = matches!(first, 0x81 | 0x82);
            let (first, payload) = if message { (first | COMPRESSED, compress(&payload)) } else { (first, payload) };
            fragments ^= message;
            let frames = if message && fragments {
                let (one, other) = payload.split_at(payload.len() / 2);
                let (one, other) = (one.to_vec(), other.to_vec());
                [Frame { first: first & 0x7f, payload: one }.masked(), Frame { first: 0x80, payload: other }.masked()]
                    .concat()
            } else {
                Frame { first, payload }.masked()
            };
            to_server.write_all(&frames).await?;
        }
    };
    let down = async {
        loop {
            let mut frame = Frame::read(&mut from_server).await?;
            if frame.is_compressed() {
                inflated.fetch_add(1, Ordering::Relaxed);
                frame = Frame { first: frame.first & !COMPRESSED, payload: inflate(&frame.payload) };
            }
            to_client.write_all(&frame.plain()).await?;
        }
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

/// Reads the head of a request or answer.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Returns the value of a header's line if it is about extensions.
fn extensions(line: &str) -> Option<&str> {
    let (name, value) = line.split_once(':')?;
    name.eq_ignore_ascii_case("sec-websocket-extensions").then_some(value.trim())
}
