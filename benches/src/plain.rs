//! A plain tokio-tungstenite server as many people write it: a task and a channel for each connection, and `send` in
//! the task. It echoes what a client sends. With a read buffer of 4 KB it also writes everything that waits for a
//! connection at once.

use std::{net::Ipv4Addr, sync::Arc};

use benches::{
    Result,
    control::{DONE, Requests},
};
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select, spawn,
    sync::mpsc,
};
use tokio_tungstenite::{
    accept_async_with_config,
    tungstenite::{Message, Utf8Bytes, protocol::WebSocketConfig},
};

/// Maximum number of messages that wait for a client. The messages of a slower client are dropped.
const WAITING: usize = 256;

/// The channels to all clients. A mutex, since it is held only while a message is passed to the channels.
type Clients = Arc<Mutex<Vec<mpsc::Sender<Utf8Bytes>>>>;

/// Serves until it is killed, with the library's default buffers unless a size is given.
#[tokio::main]
pub(crate) async fn run(port: u16, control: u16, buffer: Option<usize>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let controls = TcpListener::bind((Ipv4Addr::LOCALHOST, control)).await?;
    let clients = Clients::default();
    loop {
        select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                spawn(serve(stream, clients.clone(), buffer));
            }
            accepted = controls.accept() => {
                let (stream, _) = accepted?;
                spawn(obey(stream, clients.clone()));
            }
        }
    }
}

/// Serves a connection. Its end is not reported.
async fn serve(stream: TcpStream, clients: Clients, buffer: Option<usize>) -> Result<()> {
    stream.set_nodelay(true)?;
    let config = buffer.map(|size| {
        WebSocketConfig::default().read_buffer_size(size).write_buffer_size(size).max_write_buffer_size(1024 * 1024)
    });
    let mut socket = accept_async_with_config(stream, config).await?;
    let (sender, mut messages) = mpsc::channel(WAITING);
    clients.lock().push(sender);
    loop {
        select! {
            message = messages.recv() => {
                let Some(text) = message else { return Ok(()) };
                if buffer.is_none() {
                    socket.send(Message::Text(text)).await?;
                    continue;
                }
                socket.feed(Message::Text(text)).await?;
                while let Ok(text) = messages.try_recv() {
                    socket.feed(Message::Text(text)).await?;
                }
                socket.flush().await?;
            }
            message = socket.next() => match message {
                Some(message) => {
                    let message = message?;
                    if message.is_text() {
                        socket.send(message).await?;
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

async fn obey(mut stream: TcpStream, clients: Clients) -> Result<()> {
    let (mut requests, mut buffer) = (Requests::default(), vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            size => requests.push(&buffer[..size]),
        }
        while let Some(request) = requests.next_request()? {
            let (text, count) = (Utf8Bytes::from(request.text.as_str()), request.number("count"));
            clients.lock().retain(|client| {
                (0..count).all(|_| !matches!(client.try_send(text.clone()), Err(mpsc::error::TrySendError::Closed(_))))
            });
            stream.write_all(DONE).await?;
        }
    }
}
