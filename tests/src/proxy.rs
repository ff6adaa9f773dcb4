//! A TCP proxy that fails like a network: it holds bytes while connections stay open, in one direction or both, slows
//! them down, or is gone. In front of a node it knows which node dials, since all nodes dial one address of a peer.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OnceCell, watch},
    task::{AbortHandle, JoinSet},
};
use ws_cluster::NodeId;

/// The direction of bytes, as seen from the server behind the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the dialler to the server.
    In,
    /// From the server to the dialler.
    Out,
}

/// The present faults of the network.
#[derive(Clone, Debug, Default)]
struct Faults {
    held: HashSet<(Option<NodeId>, Way)>,
    delay: Duration,
    /// True if connections are ended and new ones refused.
    down: bool,
}

impl Faults {
    fn holds(&self, dialler: Option<NodeId>, way: Way) -> bool {
        self.held.contains(&(None, way)) || (dialler.is_some() && self.held.contains(&(dialler, way)))
    }
}

/// A proxy in front of one server. When dropped, it ends all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    // A watch, since every connection only needs the latest state, and waits until it changes.
    faults: watch::Sender<Faults>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Passes connections on to `target`, which need not listen yet.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let faults = watch::Sender::new(Faults::default());
        let accepting = tokio::spawn(accept(listener, target, faults.subscribe())).abort_handle();
        Self { address, faults, accepting }
    }

    /// Returns the address to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds what goes between this dialler and the server, in one direction. Connections stay open, as in a partition.
    pub fn hold(&self, dialler: NodeId, way: Way) {
        self.faults.send_modify(|faults| faults.held.extend([(Some(dialler), way)]));
    }

    /// Ends such a hold. Bytes that were held continue.
    pub fn release(&self, dialler: NodeId, way: Way) {
        self.faults.send_if_modified(|faults| faults.held.remove(&(Some(dialler), way)));
    }

    /// Holds everything, in both directions.
    pub fn stall(&self) {
        self.faults.send_modify(|faults| faults.held.extend([(None, Way::In), (None, Way::Out)]));
    }

    /// Ends all present and future connections, like a machine that is up without its server.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.down = true);
    }

    /// Delays every piece of a stream by this time, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Ends all faults. Bytes that were held continue.
    pub fn heal(&self) {
        self.faults.send_replace(Faults::default());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, faults: watch::Receiver<Faults>) {
    // When dropped with this task, it ends the connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else { continue };
        if !faults.borrow().down {
            connections.spawn(pass(client, target, faults.clone()));
        }
    }
}

/// Runs one connection, until both directions have ended or the proxy is cut.
async fn pass(client: TcpStream, target: SocketAddr, faults: watch::Receiver<Faults>) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let dialler = Arc::new(OnceCell::new());
    let inward = pump(from_client, to_server, Way::In, dialler.clone(), faults.clone());
    let outward = pump(from_server, to_client, Way::Out, dialler, faults.clone());
    let mut down = faults;
    tokio::select! {
        ended = async { tokio::try_join!(inward, outward) } => ended.map(drop),
        _ = down.wait_for(|faults| faults.down) => Ok(()),
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    dialler: Arc<OnceCell<NodeId>>,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let mut greeting = (way == Way::In).then(Vec::new);
    let mut buffer = vec![0; 64 * 1024];
    let mut gone = false;
    loop {
        // A lost end is passed on like bytes.
        let size = from.read(&mut buffer).await.unwrap_or(0);
        if let Some(begun) = &mut greeting {
            begun.extend_from_slice(&buffer[..size]);
            match dialler_of(begun) {
                Greeting::Of(node) => {
                    // Only this task sets it.
                    let _ = dialler.set(node);
                    greeting = None;
                }
                Greeting::None => greeting = None,
                Greeting::Incomplete => {}
            }
        }
        let delay = faults.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // An error means that the proxy is gone, and this task with it.
        let _ = faults.wait_for(|faults| !faults.holds(dialler.get().copied(), way)).await;
        if size == 0 {
            return to.shutdown().await;
        }
        // The end of this side may not get through, so the rest is read and lost.
        gone = gone || to.write_all(&buffer[..size]).await.is_err();
    }
}

enum Greeting {
    Of(NodeId),
    Incomplete,
    /// The connection is no link of a node.
    None,
}

/// Returns the dialler of a link. The link's first frame, after the upgrade request, is a masked binary one with a
/// greeting. Field 4 of the greeting is the dialler's id.
fn dialler_of(stream: &[u8]) -> Greeting {
    const LONGEST: usize = 16 * 1024;
    if !b"GET /_cluster/".iter().zip(stream).all(|(expected, byte)| expected == byte) || stream.len() > LONGEST {
        return Greeting::None;
    }
    match greeting(stream) {
        Some(payload) => field(&payload, 4)
            .and_then(|id| id.try_into().ok())
            .map_or(Greeting::None, |id| Greeting::Of(NodeId::from_bytes(id))),
        None => Greeting::Incomplete,
    }
}

/// Returns the first frame's payload, if it has come.
fn greeting(stream: &[u8]) -> Option<Vec<u8>> {
    let head = stream.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let frame = &stream[head + 4..];
    let (size, rest) = match frame.get(1)? & 0x7f {
        126 => (usize::from(u16::from_be_bytes(frame.get(2..4)?.try_into().ok()?)), &frame[4..]),
        size => (usize::from(size), &frame[2..]),
    };
    let mask = rest.get(..4)?;
    let payload = rest.get(4..4 + size)?;
    Some(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect())
}

/// Returns a length-delimited field of a protobuf message.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = varint(&mut message)?;
        match key & 7 {
            0 => {}
            2 => {
                let (bytes, rest) = message.split_at_checked(usize::try_from(value).ok()?)?;
                if key >> 3 == wanted {
                    return Some(bytes);
                }
                message = rest;
            }
            _ => return None,
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
