//! One connection of the load generator: its socket, the state of its handshake, and what it has received.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    rc::Rc,
    sync::Arc,
};

use benches::Result;
use mio::net::TcpStream;
use rustls::ClientConfig;
use socket2::{Domain, Socket, Type};

use super::{
    order::Recipe,
    transport::Transport,
    walker::{Seen, Walker, push_frame},
};

/// The key of the upgrade. It may be constant, since there is no cache between the two sides.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Maximum size of a response head.
const LONGEST_HEAD: usize = 16 * 1024;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Upgrading,
    /// Waits for this many further frames.
    Greeting(usize),
    Open,
    /// A close frame was sent or has come.
    Closing,
}

pub(super) struct Client {
    pub(super) transport: Transport,
    pub(super) stage: Stage,
    pub(super) walker: Walker,
    /// Number of messages in the round with this number.
    pub(super) marks: usize,
    pub(super) round: usize,
    /// True if nothing is read.
    pub(super) stalled: bool,
    /// Number of bytes that were read.
    pub(super) bytes: u64,
    recipe: Rc<Recipe>,
    number: usize,
    head: Vec<u8>,
}

/// The result of a read.
pub(super) enum Progress {
    /// Nothing that matters.
    None,
    /// The client is connected now.
    Opened,
    /// This many messages came.
    Messages(usize),
    /// The connection is over, with the code of the close frame if there was one.
    Ended(Option<u16>),
}

impl Client {
    /// Begins to connect, from an address of its own.
    pub(super) fn connect(number: usize, recipe: Rc<Recipe>, tls: Option<Arc<ClientConfig>>) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // Addresses from 127.1.0.1 up, so that neither ports nor the limits of an address are exhausted.
        let [_, high, middle, low] = (u32::try_from(number % 4_000_000)? * 2 + 0x0001_0001).to_be_bytes();
        let source = SocketAddrV4::new(Ipv4Addr::new(127, high, middle, low), 0);
        socket.bind(&SocketAddr::from(source).into())?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, recipe.port)).into()) {
            Err(error) if error.raw_os_error() != Some(115 /* EINPROGRESS */) => return Err(error.into()),
            _ => {}
        }
        let (stage, walker) = (Stage::Connecting, Walker::default());
        let transport = Transport::new(TcpStream::from_std(socket.into()), tls)?;
        let (marks, round, stalled, bytes, head) = Default::default();
        Ok(Self { transport, stage, walker, marks, round, stalled, bytes, recipe, number, head })
    }

    /// Sends the upgrade request once the socket is connected.
    pub(super) fn connected(&mut self) -> Result<()> {
        let recipe = self.recipe.clone();
        if let Some(error) = self.transport.stream.take_error()? {
            return Err(error.into());
        }
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n",
            self.fill(&recipe.path),
            recipe.port,
        );
        for (name, value) in &recipe.headers {
            request += &format!("{name}: {}\r\n", self.fill(value));
        }
        request += "\r\n";
        self.stage = Stage::Upgrading;
        self.write(request.as_bytes())
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{n}", &self.number.to_string())
    }

    /// Writes bytes. They are few and never fill a socket's buffer, so they are written completely or not at all.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.transport.write(bytes)? {
            size if size == bytes.len() => Ok(()),
            _ => Err("a socket did not take all bytes".into()),
        }
    }

    /// Sends a text.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        let mut frame = Vec::with_capacity(text.len() + 14);
        push_frame(&mut frame, 1, text.as_bytes());
        self.write(&frame)
    }

    /// Begins to close. The server closes the socket.
    pub(super) fn close(&mut self) -> Result<()> {
        let mut frame = Vec::new();
        push_frame(&mut frame, 8, &1000u16.to_be_bytes());
        self.stage = Stage::Closing;
        self.write(&frame)
    }

    /// Reads everything that has come.
    pub(super) fn read(&mut self, buffer: &mut [u8], ending: bool) -> Result<Progress> {
        let (mut seen, mut opened) = (Seen::default(), false);
        let ended = loop {
            let size = match self.transport.read(buffer) {
                Ok(0) => break true,
                Ok(size) => size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if self.stage == Stage::Closing && error.kind() == ErrorKind::ConnectionReset => break true,
                Err(error) => return Err(error.into()),
            };
            self.bytes += size as u64;
            opened |= self.take(&buffer[..size], &mut seen)?;
            // A short read means that there is no more. Later bytes raise another event.
            if size < buffer.len() && !ending && self.transport.reads_all() {
                break false;
            }
        };
        if !seen.answers.is_empty() && self.stage != Stage::Closing && !ended {
            self.write(&seen.answers)?;
        }
        if seen.closed.is_some() {
            self.stage = Stage::Closing;
        }
        let messages = if self.recipe.frames_only { seen.frames } else { seen.marks };
        Ok(match () {
            () if ended => Progress::Ended(seen.closed),
            () if opened => Progress::Opened,
            () if messages > 0 => Progress::Messages(messages),
            () => Progress::None,
        })
    }

    /// Handles bytes. Returns true if they open the connection.
    fn take(&mut self, bytes: &[u8], seen: &mut Seen) -> Result<bool> {
        let recipe = self.recipe.clone();
        let head;
        let mut bytes = bytes;
        if self.stage == Stage::Upgrading {
            self.head.extend_from_slice(bytes);
            let Some(end) = memchr::memmem::find(&self.head, b"\r\n\r\n") else {
                return if self.head.len() < LONGEST_HEAD { Ok(false) } else { Err("an endless response".into()) };
            };
            if !self.head.starts_with(b"HTTP/1.1 101") {
                return Err(format!("refused: {}", String::from_utf8_lossy(&self.head)).into());
            }
            head = std::mem::take(&mut self.head);
            bytes = &head[end + 4..];
            self.stage = Stage::Greeting(recipe.ready);
            let (opcode, mut frames) = (if recipe.binary { 2 } else { 1 }, Vec::new());
            recipe.frames.iter().for_each(|frame| push_frame(&mut frames, opcode, self.fill(frame).as_bytes()));
            if !frames.is_empty() {
                self.write(&frames)?;
            }
        }
        let before = seen.frames;
        self.walker.walk(bytes, &recipe.pings, seen);
        let Stage::Greeting(awaited) = self.stage else { return Ok(false) };
        let came = seen.frames - before;
        self.stage = if came >= awaited { Stage::Open } else { Stage::Greeting(awaited - came) };
        Ok(self.stage == Stage::Open)
    }
}
