//! The sockets that [`serve`](super::Server::serve) accepts, until their upgrade: how many there may be, and for how
//! long one may hold up what is written to it.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    time::{Instant, Sleep, sleep_until, timeout},
};

#[cfg(feature = "tls")]
use crate::send_queue::EagerSocket;
use crate::{HttpConfig, address};

/// Factor: a client gets six times the write time-out to read everything.
const WHOLE: u32 = 6;

/// Time and bytes for which the server reads on after an early answer. If it closed at once, the reset would discard
/// the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1024 * 1024;

/// Sockets beyond a limit that are answered at the same time, in all and of one address; the others are closed at once.
const BEYOND: usize = 16;
const BEYOND_PER_IP: usize = 4;

/// The places of all sockets that `serve` accepts.
#[derive(Debug)]
pub(super) struct Gate {
    sockets: Arc<Sockets>,
    /// Sockets beyond the total limit. Only vital requests on them are answered.
    reserve: Arc<Sockets>,
    /// Those beyond the limit of an address, which are told so.
    refusals: Arc<Sockets>,
}

impl Gate {
    pub(super) fn new(config: &HttpConfig) -> Self {
        Self {
            sockets: Sockets::new(config.sockets, config.sockets_per_ip),
            reserve: Sockets::new(BEYOND, BEYOND_PER_IP),
            refusals: Sockets::new(BEYOND, BEYOND_PER_IP),
        }
    }

    /// Takes a place for an accepted socket, and returns the limit that the socket exceeds. Returns no slot if the
    /// socket must be closed at once. `upgraded`: connections that count as well. `None` as the address: no limit per
    /// address holds.
    pub(super) fn admit(&self, ip: Option<IpAddr>, upgraded: usize) -> (Option<Slot>, Option<Full>) {
        match self.sockets.admit(ip, upgraded) {
            Ok(place) => (Some(place), None),
            Err(full @ Full::Total) => (self.reserve.admit(ip, 0).ok(), Some(full)),
            Err(full @ Full::Address) => (self.refusals.admit(ip, 0).ok(), Some(full)),
        }
    }

    /// Returns how many sockets are taken, with `upgraded` that are counted elsewhere, and how many may be.
    #[cfg(feature = "metrics")]
    pub(super) fn count(&self, upgraded: usize) -> (usize, usize) {
        (self.sockets.open.lock().count + upgraded, self.sockets.total)
    }

    /// Returns true if more than three quarters of the places are taken.
    pub(super) fn is_crowded(&self, upgraded: usize) -> bool {
        self.sockets.open.lock().count + upgraded > self.sockets.total / 4 * 3
    }
}

/// Counts sockets, in total and per address.
#[derive(Debug)]
struct Sockets {
    total: usize,
    per_ip: usize,
    /// A synchronous lock, held for a look-up.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// Which limit leaves no room for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Full {
    Total,
    Address,
}

/// A socket's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    sockets: Arc<Sockets>,
    ip: Option<IpAddr>,
}

impl Sockets {
    fn new(total: usize, per_ip: usize) -> Arc<Self> {
        Arc::new(Self { total, per_ip, open: Mutex::default() })
    }

    /// Takes a place for a socket beside `others` that count as well but are counted elsewhere. `None` as the address
    /// means that no limit per address holds.
    fn admit(self: &Arc<Self>, ip: Option<IpAddr>, others: usize) -> Result<Slot, Full> {
        let ip = ip.map(address::counted);
        let mut open = self.open.lock();
        if open.count + others >= self.total {
            return Err(Full::Total);
        }
        if let Some(ip) = ip {
            match open.by_ip.entry(ip) {
                Entry::Occupied(entry) if *entry.get() >= self.per_ip => return Err(Full::Address),
                entry => *entry.or_default() += 1,
            }
        }
        open.count += 1;
        Ok(Slot { sockets: self.clone(), ip })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.sockets.open.lock();
        open.count -= 1;
        if let Some(Entry::Occupied(mut entry)) = self.ip.map(|ip| open.by_ip.entry(ip)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// An accepted socket, with or without TLS.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<EagerSocket>>),
}

impl Socket {
    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

/// Returns true if a peer is on this host: its address is a loopback address or the one that it connected to.
pub(super) fn is_local(peer: IpAddr, own: Option<IpAddr>) -> bool {
    let peer = peer.to_canonical();
    peer.is_loopback() || own.map(|own| own.to_canonical()) == Some(peer)
}

/// Calls a method of the stream in a socket.
macro_rules! on_stream {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            #[cfg(feature = "tls")]
            Socket::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(&mut *self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(&mut *self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(&mut *self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        on_stream!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A socket under HTTP. A write fails if the client reads nothing for too long. An upgrade takes the socket out
/// ([`into_socket`](Self::into_socket)), so that what is served on it pays nothing for this.
#[derive(Debug)]
pub(super) struct HttpStream {
    /// The socket and its place; `None` once taken out.
    taken: Option<(Socket, Slot)>,
    /// Time for a write to make progress.
    limit: Duration,
    /// Goes off if a write waits for too long.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Until when all that waits has to be written.
    until: Option<Instant>,
    /// The client sends no more, or is not worth waiting for.
    over: bool,
}

impl HttpStream {
    pub(super) fn new(socket: Socket, place: Slot, limit: Duration) -> Self {
        Self { taken: Some((socket, place)), limit, stalled: None, until: None, over: false }
    }

    /// The socket itself. Its place is given back: what it becomes counts elsewhere.
    pub(super) fn into_socket(mut self) -> Option<Socket> {
        self.taken.take().map(|(socket, _)| socket)
    }

    fn stream(&mut self) -> io::Result<&mut Socket> {
        self.taken.as_mut().map(|(socket, _)| socket).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Watches over a write that came to `written`.
    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + self.limit * WHOLE);
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until.min(now + limit))));
        if stalled.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.over = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(self.stream()?).poll_read(cx, buffer);
        match &read {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
            Poll::Ready(_) => self.over = true,
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream()?).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream()?).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has written everything.
        self.until = None;
        Pin::new(self.stream()?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream()?).poll_shutdown(cx)
    }
}

impl Drop for HttpStream {
    fn drop(&mut self) {
        if let Some((socket, place)) = self.taken.take()
            && !self.over
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(linger(socket, place));
        }
    }
}

/// Reads on until the client has seen that no more comes for it.
async fn linger(mut socket: Socket, place: Slot) {
    let end = async {
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, end).await;
    drop(place);
}

/// A stream of which some bytes were read already.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    pub(super) leftover: bytes::Bytes,
    pub(super) stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.leftover.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let size = self.leftover.len().min(buffer.remaining());
        buffer.put_slice(&self.leftover.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_on_this_host_has_a_loopback_address_or_the_listeners() {
        let local =
            |peer: &str, own: Option<&str>| is_local(peer.parse().unwrap(), own.map(|own| own.parse().unwrap()));
        for (peer, own) in
            [("127.0.0.7", None), ("::1", None), ("::ffff:127.0.0.1", None), ("192.0.2.1", Some("::ffff:192.0.2.1"))]
        {
            assert!(local(peer, own), "{peer}");
        }
        assert!(!local("192.0.2.1", None) && !local("192.0.2.1", Some("192.0.2.2")));
    }

    #[test]
    fn places_are_counted_in_total_and_per_network() {
        let sockets = Sockets::new(4, 2);
        let ip = |text: &str| Some(text.parse().unwrap());
        let held = [sockets.admit(ip("2001:db8::1"), 0).unwrap(), sockets.admit(ip("2001:db8::2"), 0).unwrap()];
        assert_eq!(sockets.admit(ip("2001:db8::3"), 0).err(), Some(Full::Address));
        let proxied = sockets.admit(None, 1).unwrap();
        assert_eq!(sockets.admit(None, 1).err(), Some(Full::Total), "others count as well");
        drop((held, proxied));
        assert!(sockets.open.lock().by_ip.is_empty());
        assert_eq!(sockets.open.lock().count, 0);
    }

    #[test]
    fn a_few_sockets_beyond_a_limit_are_still_answered() {
        let config = HttpConfig { sockets: 8, sockets_per_ip: 2, ..HttpConfig::default() };
        let gate = Gate::new(&config);
        let admit = |host: u8| gate.admit(Some(IpAddr::from([192, 0, 2, host])), 0);
        let mut held: Vec<_> = (0..100).map(|_| admit(1)).collect();
        assert!(held[1].0.is_some() && held[1].1.is_none());
        assert!(held[5].0.is_some() && held[5].1 == Some(Full::Address));
        assert!(held[6].0.is_none() && held[99].0.is_none());
        held.extend((2..8).map(admit));
        assert!(gate.is_crowded(0));
        held.extend((2..100).map(admit));
        assert_eq!(held.iter().filter(|(place, _)| place.is_some()).count(), 8 + 4 + BEYOND);
        assert_eq!(held.last().unwrap().1, Some(Full::Total));
        drop(held);
        assert!(!gate.is_crowded(6) && gate.is_crowded(7));
    }
}
