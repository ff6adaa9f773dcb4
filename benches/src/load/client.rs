//! One connection of the load generator: its socket, how far its handshake has come, what it has received.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    rc::Rc,
};

use benches::Result;
use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use super::{
    order::Recipe,
    walker::{Seen, Walker, push_frame},
};

/// Any key will do: nothing between the two could cache an answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A response head longer than this is none.
const LONGEST_HEAD: usize = 16 * 1024;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Upgrading,
    /// So many frames are awaited still.
    Greeting(usize),
    Open,
    /// A close frame was sent or came.
    Closing,
}

pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) stage: Stage,
    pub(super) walker: Walker,
    /// Messages in the round of this number.
    pub(super) marks: usize,
    pub(super) round: usize,
    /// Nothing is read.
    pub(super) stalled: bool,
    recipe: Rc<Recipe>,
    number: usize,
    head: Vec<u8>,
}

/// What a read brought about.
pub(super) enum Progress {
    /// Nothing that matters.
    None,
    /// It is connected now.
    Opened,
    /// So many messages came.
    Messages(usize),
    /// It is over, with the code of the close frame if there was one.
    Ended(Option<u16>),
}

impl Client {
    /// Begins to connect, from an address of its own.
    pub(super) fn connect(number: usize, recipe: Rc<Recipe>) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // 127.1.0.1 and up, so that no port and no limit of an address runs out.
        let [_, high, middle, low] = (u32::try_from(number % 4_000_000)? * 2 + 0x0001_0001).to_be_bytes();
        let source = SocketAddrV4::new(Ipv4Addr::new(127, high, middle, low), 0);
        socket.bind(&SocketAddr::from(source).into())?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, recipe.port)).into()) {
            Err(error) if error.raw_os_error() != Some(115 /* EINPROGRESS */) => return Err(error.into()),
            _ => {}
        }
        let (stage, walker) = (Stage::Connecting, Walker::default());
        let stream = TcpStream::from_std(socket.into());
        let (marks, round, stalled, head) = Default::default();
        Ok(Self { stream, stage, walker, marks, round, stalled, recipe, number, head })
    }

    /// Sends the upgrade request once the socket is connected.
    pub(super) fn connected(&mut self) -> Result<()> {
        let recipe = self.recipe.clone();
        if let Some(error) = self.stream.take_error()? {
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

    /// What is sent is small and never fills a socket's buffer, so it is written at once or not at all.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write(bytes)? {
            size if size == bytes.len() => Ok(()),
            _ => Err("a socket did not take what was sent".into()),
        }
    }

    /// Sends a text.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        let mut frame = Vec::with_capacity(text.len() + 14);
        push_frame(&mut frame, 1, text.as_bytes());
        self.write(&frame)
    }

    /// Begins to close; the server closes the socket.
    pub(super) fn close(&mut self) -> Result<()> {
        let mut frame = Vec::new();
        push_frame(&mut frame, 8, &1000u16.to_be_bytes());
        self.stage = Stage::Closing;
        self.write(&frame)
    }

    /// Reads all that is there.
    pub(super) fn read(&mut self, buffer: &mut [u8], ending: bool) -> Result<Progress> {
        let (mut seen, mut opened) = (Seen::default(), false);
        let ended = loop {
            let size = match self.stream.read(buffer) {
                Ok(0) => break true,
                Ok(size) => size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if self.stage == Stage::Closing && error.kind() == ErrorKind::ConnectionReset => break true,
                Err(error) => return Err(error.into()),
            };
            opened |= self.take(&buffer[..size], &mut seen)?;
            // Less than was asked for is all there is; what comes later raises another event.
            if size < buffer.len() && !ending {
                break false;
            }
        };
        if !seen.answers.is_empty() && self.stage != Stage::Closing && !ended {
            self.write(&seen.answers)?;
        }
        if seen.closed.is_some() {
            self.stage = Stage::Closing;
        }
        Ok(match () {
            () if ended => Progress::Ended(seen.closed),
            () if opened => Progress::Opened,
            () if seen.marks > 0 => Progress::Messages(seen.marks),
            () => Progress::None,
        })
    }

    /// Whether it is open with this.
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
