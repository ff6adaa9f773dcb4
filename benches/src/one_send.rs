//! One `send()` per socket: upgraded sockets, and for each publish one `send()` of the ready frames to each, in one thread
//! that does nothing else.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
};

use benches::{
    Result,
    control::{DONE, Request, Requests},
};
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use tungstenite::{
    handshake::derive_accept_key,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

const LISTENER: Token = Token(usize::MAX);
const CONTROL_LISTENER: Token = Token(usize::MAX - 1);

enum Connection {
    /// A connection whose upgrade request is not complete.
    Upgrading(TcpStream, Vec<u8>),
    Client(TcpStream),
    Control(TcpStream, Requests),
}

impl Connection {
    fn stream(&mut self) -> &mut TcpStream {
        let (Self::Upgrading(stream, _) | Self::Client(stream) | Self::Control(stream, _)) = self;
        stream
    }
}

/// Serves until it is killed.
pub(crate) fn run(port: u16, control: u16) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let mut control_listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, control)))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    poll.registry().register(&mut control_listener, CONTROL_LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut turn = 0;
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => {
                    accept(&listener, &poll, &mut connections, |stream| Connection::Upgrading(stream, Vec::new()))?
                }
                CONTROL_LISTENER => accept(&control_listener, &poll, &mut connections, |stream| {
                    Connection::Control(stream, Requests::default())
                })?,
                Token(index) => {
                    let Some(connection) = connections[index].take() else { continue };
                    let (connection, requests) = read(connection);
                    connections[index] = connection;
                    for request in requests {
                        publish(&mut connections, &request, &mut turn);
                        if let Some(Connection::Control(stream, _)) = &mut connections[index] {
                            // The sender of the request reads its answers, or is gone.
                            let _ = stream.write(DONE);
                        }
                    }
                }
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
    make: impl Fn(TcpStream) -> Connection,
) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                // Indices are not used again: a run has no more connections than descriptors.
                poll.registry().register(&mut stream, Token(connections.len()), Interest::READABLE)?;
                connections.push(Some(make(stream)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a connection. Returns it in its next state, and its requests.
fn read(mut connection: Connection) -> (Option<Connection>, Vec<Request>) {
    let mut buffer = [0; 64 * 1024];
    let mut requests = Vec::new();
    loop {
        match connection.stream().read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (Some(connection), requests),
            Err(_) | Ok(0) => return (None, requests),
            Ok(size) => match &mut connection {
                Connection::Client(_) => {}
                Connection::Control(_, parser) => {
                    parser.push(&buffer[..size]);
                    while let Ok(Some(request)) = parser.next_request() {
                        requests.push(request);
                    }
                }
                Connection::Upgrading(stream, head) => {
                    head.extend_from_slice(&buffer[..size]);
                    match upgraded(head) {
                        None => {}
                        Some(response) if stream.write(response.as_bytes()).is_ok() => {
                            let Connection::Upgrading(stream, _) = connection else { unreachable!("it was") };
                            connection = Connection::Client(stream);
                        }
                        Some(_) => return (None, requests),
                    }
                }
            },
        }
    }
}

/// Returns the response to an upgrade request, if the request is complete.
fn upgraded(head: &[u8]) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?.is_complete().then_some(())?;
    let key = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))?;
    Some(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.value)
    ))
}

/// Calls `send()` once for each client, or, with `to=some:N`, for the next N clients in turn.
fn publish(connections: &mut [Option<Connection>], request: &Request, turn: &mut usize) {
    let mut frame = Vec::new();
    Frame::message(request.text.clone(), OpCode::Data(Data::Text), true)
        .format(&mut frame)
        .expect("a frame can be written to memory");
    let frames = frame.repeat(request.number("count"));
    let some = request.parameter("to").and_then(|to| to.strip_prefix("some:")?.parse().ok());
    let reached = some.unwrap_or(usize::MAX);
    let start = if some.is_some() { *turn } else { 0 };
    let size = connections.len();
    let mut sent = 0;
    for index in (0..size).map(|offset| (start + offset) % size) {
        if sent == reached {
            break;
        }
        *turn = (index + 1) % size;
        if let Some(Connection::Client(stream)) = &mut connections[index] {
            sent += 1;
            if stream.write(&frames).ok() != Some(frames.len()) {
                eprintln!("a socket is full");
            }
        }
    }
}
