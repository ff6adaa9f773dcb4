//! Serves HTTP on a listener: the admin page's, or the private socket of a supervised node.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{
    Answer, addresses, is_loopback, open_to_others,
    places::{Place, Places},
};
use crate::Outcome;

/// Time limit for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the head of a request.
const HEAD_SIZE: usize = 16 * 1024;
/// Lifetime of a connection. A page then opens a new one. So a connection whose client does not read is closed, too.
const LIFE: Duration = Duration::from_secs(60);
/// Lifetime of a connection whose sender has not shown the key.
const LIFE_OF_STRANGER: Duration = Duration::from_secs(10);
/// Time limit for the last answer of a connection.
const LAST_ANSWER: Duration = Duration::from_secs(15);
/// Pause after a failed accept. The usual cause is a lack of file descriptors, which ends when other sockets close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time between two attempts to listen at an address that is taken.
const RETRY: Duration = Duration::from_secs(5);

pub(crate) trait Listener: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<SocketAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, peer) = Self::accept(self).await?;
        // A failure costs latency only.
        let _ = stream.set_nodelay(true);
        Ok((stream, Some(peer)))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<SocketAddr>)> {
        Self::accept(self).await.map(|(stream, _)| (stream, None))
    }
}

/// Answers every request on a listener, for ever. If the sender may use the listener, the handler calls
/// [`Place::admit`]. Other senders get little time and few places.
pub(crate) async fn serve<H, F>(listener: impl Listener, handle: H)
where
    H: Fn(Request<Incoming>, Option<SocketAddr>, Arc<Place>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::<Places>::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin page could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (handle, place) = (handle.clone(), places.take());
        tokio::spawn(async move {
            tokio::select! {
                () = serve_connection(stream, peer, place.clone(), handle) => {}
                () = place.is_needed() => tracing::debug!("a connection to the admin page made room for another"),
            }
        });
    }
}

async fn serve_connection<S, H, F>(stream: S, peer: Option<SocketAddr>, place: Arc<Place>, handle: H)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>, Option<SocketAddr>, Arc<Place>) -> F + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = handle(request, peer, place.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let end_of_life = async {
        sleep(LIFE_OF_STRANGER).await;
        let is_known = place.is_known();
        if is_known {
            sleep(LIFE - LIFE_OF_STRANGER).await;
        }
        is_known
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        is_known = end_of_life => match is_known {
            true => {
                connection.as_mut().graceful_shutdown();
                timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
            }
            false => Ok(()),
        },
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin page failed");
    }
}

/// The listeners of the admin page. A name may have several addresses, and so several listeners.
pub(crate) struct Listeners(Vec<TcpListener>);

impl Listeners {
    /// Listens at all addresses of `HOST:PORT`. Without a key, each address must be a loopback address. This is checked
    /// again here, because a name may have other addresses than when the settings were checked.
    ///
    /// # Errors
    /// Says in one line what to do.
    pub(crate) async fn bind(given: &str, has_key: bool) -> Outcome<Self> {
        let mut listeners = Vec::new();
        for address in addresses(given)? {
            if !has_key && !is_loopback(address) {
                return Err(open_to_others(given));
            }
            // If the port is 0, all addresses get the same free port.
            let first = listeners.first().and_then(|first: &TcpListener| first.local_addr().ok());
            let port = first.map_or(address.port(), |first| first.port());
            match TcpListener::bind(SocketAddr::new(address.ip(), port)).await {
                Ok(listener) => listeners.push(listener),
                // `localhost` also names an IPv6 address on a machine without IPv6.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && !listeners.is_empty() => {}
                Err(error) => return Err(failure(given, &error)),
            }
        }
        Ok(Self(listeners))
    }

    /// Listens like [`bind`](Self::bind), but tries again until it succeeds. The first failure is logged.
    pub(crate) async fn bind_at_last(given: &str, has_key: bool) -> Self {
        let mut is_told = false;
        loop {
            match Self::bind(given, has_key).await {
                Ok(listeners) => return listeners,
                Err(why) if !is_told => {
                    is_told = true;
                    tracing::error!("there is no admin page, and it is tried again every {RETRY:?}: {}", why.text);
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
        }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.0.first().and_then(|listener| listener.local_addr().ok())
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = TcpListener> {
        self.0.into_iter()
    }
}

fn failure(given: &str, error: &io::Error) -> crate::Failure {
    crate::Failure::setup(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("--admin {given} is taken: stop what listens there, or give another address (port 0 picks one)")
        }
        io::ErrorKind::PermissionDenied => {
            format!("--admin {given}: this user may not listen there: give a port above 1023")
        }
        _ => format!("--admin {given}: the server cannot listen there ({error}): give another address"),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        sync::{Mutex, mpsc},
        time::Instant,
    };

    use super::*;

    /// Connections of a test.
    struct Pipes(Mutex<mpsc::Receiver<DuplexStream>>);

    impl Listener for Pipes {
        type Stream = DuplexStream;

        async fn accept(&self) -> io::Result<(DuplexStream, Option<SocketAddr>)> {
            match self.0.lock().await.recv().await {
                Some(stream) => Ok((stream, None)),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_the_key_has_a_short_life() {
        let (sender, pipes) = mpsc::channel(1);
        tokio::spawn(serve(Pipes(Mutex::new(pipes)), |request, _, place| {
            if request.uri().path() == "/known" {
                place.admit();
            }
            std::future::pending::<http::Response<Full<Bytes>>>()
        }));
        for (path, life) in [("/", LIFE_OF_STRANGER), ("/known", LIFE + LAST_ANSWER)] {
            let (mut client, server) = duplex(1024);
            let begin = Instant::now();
            sender.send(server).await.unwrap();
            client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the end");
            assert_eq!(begin.elapsed().as_secs(), life.as_secs(), "{path}");
        }
    }

    #[tokio::test]
    async fn an_address_that_other_machines_reach_is_not_listened_at_without_a_key() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let refusal = Listeners::bind(open, false).await.err().map(|why| why.text);
            assert!(refusal.is_some_and(|why| why.contains("is open to other machines")), "{open}");
        }
        assert!(Listeners::bind("127.0.0.1:0", false).await.is_ok());
        assert!(Listeners::bind("0.0.0.0:0", true).await.is_ok());
    }
}
