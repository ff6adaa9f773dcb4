//! An attacker on the path of a link: a TCP proxy that reads WebSocket messages and changes what it passes on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{AbortHandle, JoinSet},
};

use crate::proxy::Way;

/// A WebSocket message, which is one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The opcode: 2 for binary, 9 for ping.
    pub opcode: u8,
    /// The payload, not masked.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns a binary message.
    pub fn binary(payload: impl Into<Vec<u8>>) -> Self {
        Self { opcode: 2, payload: payload.into() }
    }

    /// Returns a ping.
    pub fn ping() -> Self {
        Self { opcode: 9, payload: Vec::new() }
    }
}

/// Returns the frames that pass instead of a binary message. It gets the direction of the message, and the number of
/// binary messages before it in that direction on the same connection.
type Rule = Box<dyn FnMut(Way, usize, Frame) -> Vec<Frame> + Send>;

/// The rule that all attackers of a test follow. Clones share it.
#[derive(Clone, Default)]
pub struct Tampering(Arc<Mutex<Option<Rule>>>);

impl Tampering {
    /// Changes binary messages with `rule` from now on.
    pub fn set(&self, rule: impl FnMut(Way, usize, Frame) -> Vec<Frame> + Send + 'static) {
        *self.0.lock() = Some(Box::new(rule));
    }

    /// Passes everything unchanged from now on.
    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    fn pass(&self, way: Way, number: usize, frame: Frame) -> Vec<Frame> {
        match &mut *self.0.lock() {
            Some(rule) => rule(way, number, frame),
            None => vec![frame],
        }
    }
}

/// One attacker, in front of one server. When dropped, it ends all its connections.
#[derive(Debug)]
pub struct Attacker {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Attacker {
    /// Passes connections on to `target`, which need not listen yet.
    pub async fn start(target: SocketAddr, tampering: &Tampering) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let accepting = tokio::spawn(accept(listener, target, tampering.clone())).abort_handle();
        Self { address, accepting }
    }

    /// Returns the address to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, tampering: Tampering) {
    // When dropped with this task, it ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(pass(client, target, tampering.clone()));
    }
}

async fn pass(client: TcpStream, target: SocketAddr, tampering: Tampering) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(from_client, to_server, Way::In, tampering.clone()),
        pump(from_server, to_client, Way::Out, tampering),
    )
    .map(drop)
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, tampering: Tampering) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut upgraded = false;
    let mut number = 0;
    while from.read_buf(&mut buffer).await? > 0 {
        if !upgraded {
            let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            to.write_all(&buffer.drain(..end + 4).collect::<Vec<_>>()).await?;
            upgraded = true;
        }
        while let Some((frame, size)) = decode(&buffer) {
            buffer.drain(..size);
            let frames = if frame.opcode == 2 {
                number += 1;
                tampering.pass(way, number - 1, frame)
            } else {
                vec![frame]
            };
            for frame in frames {
                to.write_all(&encode(&frame, way)).await?;
            }
        }
    }
    to.shutdown().await
}

/// Returns the first frame and its size in bytes, if it is complete.
fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (size, mut start) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        size => (u64::from(size), 2),
    };
    let mask: [u8; 4] = if second & 0x80 == 0 {
        [0; 4]
    } else {
        start += 4;
        bytes.get(start - 4..start)?.try_into().ok()?
    };
    let end = start + usize::try_from(size).ok()?;
    let payload = bytes.get(start..end)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((Frame { opcode: first & 0x0f, payload }, end))
}

/// Encodes a frame as its sender writes it: the dialler masks.
fn encode(frame: &Frame, way: Way) -> Vec<u8> {
    let masked = if way == Way::In { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | frame.opcode];
    match frame.payload.len() {
        size @ ..126 => bytes.push(masked | size as u8),
        size @ 126..=0xffff => {
            bytes.push(masked | 126);
            bytes.extend((size as u16).to_be_bytes());
        }
        size => {
            bytes.push(masked | 127);
            bytes.extend((size as u64).to_be_bytes());
        }
    }
    if way == Way::In {
        bytes.extend([0; 4]);
    }
    bytes.extend(&frame.payload);
    bytes
}
