//! The task of a client: attempt, connection, wait, and again. `message` updates the client's log position.

use std::{borrow::Cow, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::{SplitSink, SplitStream},
};
use http::Request;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, error::Elapsed, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_with_config, connect_async_with_config};
use tungstenite::{
    Message as Frame,
    client::IntoClientRequest,
    protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
};
use url::Url;

use super::{
    Event, Identity, Outgoing, Shared, backoff,
    builder::{Credentials, Settings},
    message::{Incoming, Position},
    queue::Queue,
    renewal,
    requests::Requests,
};
use crate::close::reconnects;

/// Time after which an open connection counts as good even if the server has not answered the authentication.
const PROVEN_AFTER: Duration = Duration::from_secs(5);
/// Time for the server to answer a close frame. Only the socket waits for it.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes that are read at once. The default of 128 KiB, zeroed at every read, would cost more than the messages do.
const READ_BUFFER: usize = 8 * 1024;

/// Longest wait that a server may ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// Code for a connection that ended without a close frame.
const ABNORMAL: u16 = 1006;
/// Code for a close frame that has no code.
const NO_STATUS: u16 = 1005;

/// The byte stream under a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Makes connections.
pub(super) trait Dial: Send + Sync + 'static {
    type Stream: Stream;

    fn dial(
        &self,
        request: Request<()>,
    ) -> impl Future<Output = tungstenite::Result<WebSocketStream<Self::Stream>>> + Send;
}

/// Makes connections over the network.
pub(super) struct Tcp;

impl Dial for Tcp {
    type Stream = MaybeTlsStream<TcpStream>;

    async fn dial(&self, request: Request<()>) -> tungstenite::Result<WebSocketStream<Self::Stream>> {
        Ok(connect_async_with_config(request, Some(config()), true).await?.0)
    }
}

/// Makes connections over streams that the application opens.
pub(super) struct Over<F>(pub(super) F);

impl<F, C, S> Dial for Over<F>
where
    F: Fn(String) -> C + Send + Sync + 'static,
    C: Future<Output = io::Result<S>> + Send,
    S: Stream,
{
    type Stream = S;

    async fn dial(&self, request: Request<()>) -> tungstenite::Result<WebSocketStream<S>> {
        let stream = (self.0)(request.uri().to_string()).await?;
        Ok(client_async_with_config(request, stream, Some(config())).await?.0)
    }
}

pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER)
}

pub(super) struct Task<D> {
    settings: Settings,
    dial: D,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    /// The URL of the connection or of the last attempt.
    url: Option<Url>,
    position: Position,
    /// Number of failures since the last good connection.
    failures: u32,
    /// The wait that the server asked for when it refused the last attempt.
    retry_after: Option<Duration>,
}

/// The end of a connection or an attempt.
enum End {
    /// The server or the network ended it.
    Lost { code: u16, reason: String },
    /// The same, after the server had sent `Server/close`.
    Dismissed { code: u16, reason: String },
    /// The application wants another connection.
    Reconnect,
    /// The application closed the client.
    Close,
    /// The application dropped the events.
    Abandoned,
}

impl End {
    fn broken(reason: impl ToString) -> Self {
        Self::Lost { code: ABNORMAL, reason: reason.to_string() }
    }
}

impl<D: Dial> Task<D> {
    pub(super) fn new(settings: Settings, dial: D, shared: Arc<Shared>, events: mpsc::Sender<Event>) -> Self {
        let (url, position, failures, retry_after) = Default::default();
        Self { settings, dial, shared, events, url, position, failures, retry_after }
    }

    pub(super) async fn run(mut self) {
        self.live().await;
        // What comes from now on is refused at once.
        self.shared.queue.close();
        self.shared.requests.refuse_unsent();
    }

    /// Makes one connection after another, until the client ends.
    async fn live(&mut self) {
        loop {
            let (code, reason, delay) = match self.attempt().await {
                End::Lost { code, reason } if reconnects(code) => {
                    let urls = self.shared.urls.lock().len();
                    let delay = self.settings.backoff.delay(self.failures, urls);
                    // With several servers, another one may take the client sooner.
                    let retry_after = self.retry_after.take().filter(|_| urls == 1).map(backoff::spread);
                    let delay = retry_after.map_or(delay, |retry_after| delay.max(retry_after));
                    self.failures = self.failures.saturating_add(1);
                    (code, reason, delay)
                }
                End::Reconnect => (ABNORMAL, "another connection is wanted".to_owned(), Duration::ZERO),
                End::Lost { code, reason } | End::Dismissed { code, reason } => return self.finish(code, reason).await,
                End::Close => return self.finish(CloseCode::Normal.into(), String::new()).await,
                End::Abandoned => return,
            };
            if self.events.send(Event::Closed { code, reason, retry_in: Some(delay) }).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(delay) => {}
                end = interruption(&self.shared, &self.events) => match end {
                    End::Close => return self.finish(CloseCode::Normal.into(), String::new()).await,
                    End::Abandoned => return,
                    _ => {}
                },
            }
        }
    }

    /// Makes one attempt, and serves the connection if it succeeds.
    async fn attempt(&mut self) -> End {
        let url = self.next_url();
        let request = match self.request(&url) {
            Ok(request) => request,
            Err(error) => return End::broken(error),
        };
        let socket = tokio::select! {
            dialled = timeout(self.settings.connect_timeout, self.dial.dial(request)) => match dialled {
                Ok(Ok(socket)) => socket,
                Ok(Err(error)) => {
                    self.retry_after = retry_after(&error);
                    return End::broken(error);
                }
                Err(_) => return End::broken("no answer in time"),
            },
            end = interruption(&self.shared, &self.events) => return end,
        };
        let opened = Instant::now();
        let (mut sink, mut stream) = socket.split();
        // Few, and each is taken at once unless the socket is full.
        let (notes, noted) = mpsc::unbounded_channel();
        let mut reading = Reading {
            events: &self.events,
            position: &mut self.position,
            identity: &self.shared.identity,
            requests: &self.shared.requests,
            silence: self.settings.silence_timeout,
            notes,
            answered: false,
            proven: false,
            dismissed: false,
        };
        let writing = Writing {
            settings: &self.settings,
            notes: noted,
            queue: &self.shared.queue,
            requests: &self.shared.requests,
            sink: &mut sink,
            answered: false,
        };
        let end = tokio::select! {
            // The application's wishes come before further messages. The event that the connection is open comes before
            // errors.
            biased;
            end = interruption(&self.shared, &self.events) => end,
            end = reading.run(&url, &mut stream) => end,
            end = writing.run() => end,
        };
        let Reading { proven, dismissed, .. } = reading;
        self.shared.requests.lose_sent();
        if proven || opened.elapsed() >= PROVEN_AFTER {
            self.failures = 0;
        }
        match end {
            End::Lost { code, reason } => {
                if code != ABNORMAL {
                    farewell(sink, stream, None);
                }
                if dismissed { End::Dismissed { code, reason } } else { End::Lost { code, reason } }
            }
            End::Close => {
                farewell(sink, stream, Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
                End::Close
            }
            end => end,
        }
    }

    /// Returns the URL after that of the last attempt.
    fn next_url(&mut self) -> Url {
        let urls = self.shared.urls.lock();
        let last = self.url.as_ref().and_then(|url| urls.iter().position(|other| other == url));
        let url = urls[last.map_or(0, |last| (last + 1) % urls.len())].clone();
        self.url = Some(url.clone());
        url
    }

    fn request(&self, url: &Url) -> tungstenite::Result<Request<()>> {
        let mut url = url.clone();
        if self.settings.resume {
            // These two parameters in the application's URL would contradict the client's own.
            let others: Vec<(String, String)> =
                url.query_pairs().filter(|(name, _)| name != "resume" && name != "state").map(owned).collect();
            let mut query = url.query_pairs_mut();
            query.clear().extend_pairs(others).append_pair("resume", &self.position.at);
            if let Some(state) = &self.position.state {
                query.append_pair("state", state);
            }
        }
        let mut request = url.as_str().into_client_request()?;
        request.headers_mut().extend(self.settings.headers.clone());
        Ok(request)
    }

    /// Sends the last events.
    async fn finish(&mut self, code: u16, reason: String) {
        self.shared.queue.close();
        self.shared.requests.refuse_unsent();
        while let Some(Outgoing { action, details, id }) = self.shared.queue.take() {
            // A request has ended with an error already.
            if id.is_none() && self.events.send(Event::Unsent { action, details }).await.is_err() {
                return;
            }
        }
        // An error means that the application has dropped the events.
        let _ = self.events.send(Event::Closed { code, reason, retry_in: None }).await;
    }
}

/// Returns the wait that a server asks for when it refuses a connection.
fn retry_after(error: &tungstenite::Error) -> Option<Duration> {
    let tungstenite::Error::Http(answer) = error else { return None };
    let seconds: u64 = answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}

fn owned((name, value): (Cow<'_, str>, Cow<'_, str>)) -> (String, String) {
    (name.into_owned(), value.into_owned())
}

/// Waits until the application ends an attempt, a connection or a wait.
async fn interruption(shared: &Shared, events: &mpsc::Sender<Event>) -> End {
    let mut closed = shared.closed.subscribe();
    let closed = async {
        // The handle's side lives as long as this.
        let _ = closed.wait_for(|closed| *closed).await;
    };
    tokio::select! {
        () = closed => End::Close,
        () = events.closed() => End::Abandoned,
        () = shared.reconnect.notified() => End::Reconnect,
    }
}

/// The reading side of one connection.
struct Reading<'a> {
    events: &'a mpsc::Sender<Event>,
    position: &'a mut Position,
    identity: &'a Mutex<Identity>,
    requests: &'a Requests,
    silence: Duration,
    /// Notes to the writing side.
    notes: mpsc::UnboundedSender<Note>,
    /// The server has answered credentials on this connection.
    answered: bool,
    /// The server has accepted the credentials.
    proven: bool,
    /// The server has sent `Server/close`. The next close is the last, whatever its code.
    dismissed: bool,
}

impl Reading<'_> {
    /// Reads until the connection ends. If the application is slower, waits for it.
    async fn run<S: Stream>(&mut self, url: &Url, stream: &mut SplitStream<WebSocketStream<S>>) -> End {
        if self.events.send(Event::Open { url: url.to_string() }).await.is_err() {
            return End::Abandoned;
        }
        loop {
            let text = match self.hear(stream).await {
                Err(_) => return End::broken("the server is silent"),
                Ok(None) => return End::broken("the connection broke off"),
                Ok(Some(Err(error))) => return End::broken(error),
                Ok(Some(Ok(Frame::Close(frame)))) => {
                    let (code, reason) = frame.map_or((NO_STATUS, String::new()), |frame| {
                        (frame.code.into(), frame.reason.as_str().to_owned())
                    });
                    return End::Lost { code, reason };
                }
                Ok(Some(Ok(Frame::Text(text)))) => text,
                // A ping is answered below; binary frames are not of this protocol.
                Ok(Some(Ok(_))) => continue,
            };
            let incoming: Incoming = match serde_json::from_str(&text) {
                Ok(incoming) => incoming,
                Err(error) => {
                    tracing::warn!(%error, "the server sent what is no message");
                    continue;
                }
            };
            match incoming.action.as_str() {
                "Client/authentication" => {
                    self.proven = true;
                    let (identity, expires_in) = incoming.authentication();
                    self.answer(Some(identity), Note::Accepted { expires_in });
                }
                // If guests are welcome, a guest keeps the connection. Otherwise the server closes it.
                "Client/authentication:error" => {
                    // This changes nothing on an authenticated connection.
                    let identity = (!self.answered).then(Identity::default);
                    let note = match incoming.is_last() {
                        true => Note::Closing,
                        false => Note::Refused { code: incoming.code() },
                    };
                    self.answer(identity, note);
                }
                "Server/close" => self.dismissed = true,
                _ => {}
            }
            if let Some(id) = incoming.request() {
                self.requests.answer(id, incoming.into_answer());
                continue;
            }
            // The position changes only together with a message that the application gets. So no message is skipped,
            // whatever ends the wait for the application.
            let Ok(place) = self.events.reserve().await else { return End::Abandoned };
            if let Some(event) = self.position.take(incoming) {
                place.send(event);
            }
        }
    }

    /// Returns the next frame, or an error if the server is silent for too long. A server that hears its client sends
    /// no pings, so this lets the writing side send one before it gives up.
    async fn hear<S: Stream>(
        &self,
        stream: &mut SplitStream<WebSocketStream<S>>,
    ) -> Result<Option<tungstenite::Result<Frame>>, Elapsed> {
        // A bit later than the server's usual ping.
        let patience = self.silence / 5 * 3;
        match timeout(patience, stream.next()).await {
            Err(_) => {
                // The writing side ends only with the connection.
                let _ = self.notes.send(Note::Ping);
                timeout(self.silence.saturating_sub(patience), stream.next()).await
            }
            heard => heard,
        }
    }

    fn answer(&mut self, identity: Option<Identity>, note: Note) {
        self.answered = true;
        if let Some(identity) = identity {
            *self.identity.lock() = identity;
        }
        let _ = self.notes.send(note);
    }
}

/// A note from the reading side to the writing side.
enum Note {
    /// The server accepted the credentials for this time.
    Accepted { expires_in: Option<Duration> },
    /// The server refused the credentials, and the connection stays open.
    Refused { code: u16 },
    /// The server closes the connection next.
    Closing,
    /// The server is silent.
    Ping,
}

/// The writing side of one connection.
struct Writing<'a, S> {
    settings: &'a Settings,
    notes: mpsc::UnboundedReceiver<Note>,
    queue: &'a Queue,
    requests: &'a Requests,
    sink: &'a mut SplitSink<WebSocketStream<S>, Frame>,
    /// The server has answered credentials and does not close the connection, so messages may be sent.
    answered: bool,
}

impl<S: Stream> Writing<'_, S> {
    /// Sends the credentials and, after the answer, the waiting messages. Ends if there are no credentials. The reading
    /// side finds all other errors, after it has read what the server still sent.
    async fn run(mut self) -> End {
        let sent = match authentication(self.settings).await {
            Ok(frame) => self.sink.send(frame).await,
            Err(why) => return End::broken(format!("no credentials: {why}")),
        };
        if sent.is_ok() {
            // An error is found by the reading side as well.
            let _ = self.serve().await;
        }
        std::future::pending().await
    }

    async fn serve(&mut self) -> tungstenite::Result<()> {
        // The time at which the credentials expire, the time to ask for new ones, and the running question.
        let mut expiry: Option<Instant> = None;
        let mut ask_at: Option<Instant> = None;
        let mut asking: Option<BoxFuture<'_, Result<Frame, String>>> = None;
        let mut shown = false;
        loop {
            let due = OptionFuture::from(ask_at.map(sleep_until));
            tokio::select! {
                note = self.notes.recv() => match note {
                    None => return Ok(()),
                    Some(Note::Ping) => self.sink.send(Frame::Ping(Bytes::new())).await?,
                    Some(Note::Accepted { expires_in }) => {
                        (self.answered, shown) = (true, false);
                        expiry = expires_in.and_then(|left| Instant::now().checked_add(left));
                        ask_at = self.ask_at(expiry);
                    }
                    Some(Note::Refused { code }) => {
                        if self.answered && shown && code != 403 {
                            ask_at = self.ask_at(expiry);
                        }
                        (self.answered, shown) = (true, false);
                    }
                    // Further messages would be lost. They wait for the next connection.
                    Some(Note::Closing) => (self.answered, ask_at, asking) = (false, None, None),
                },
                // The message leaves the queue before it is written, because a message that a broken socket took must
                // not be sent twice.
                message = self.queue.next(), if self.answered => {
                    if message.id.is_none_or(|id| self.requests.send(id)) {
                        self.sink.send(message.frame()).await?;
                    }
                }
                Some(()) = due => {
                    ask_at = None;
                    asking = Some(Box::pin(authentication(self.settings)));
                }
                Some(asked) = OptionFuture::from(asking.as_mut()) => {
                    asking = None;
                    match asked {
                        Ok(frame) => {
                            shown = true;
                            self.sink.send(frame).await?;
                        }
                        Err(error) => {
                            tracing::warn!(error, "no credentials to go on with");
                            ask_at = self.ask_at(expiry);
                        }
                    }
                }
            }
        }
    }

    /// Returns the time to ask for new credentials before the present ones expire. `None` if they do not expire, if
    /// there are none, or if it is too late.
    fn ask_at(&self, expiry: Option<Instant>) -> Option<Instant> {
        if matches!(self.settings.credentials, Credentials::Fixed(ref details) if details.is_empty()) {
            return None;
        }
        let now = Instant::now();
        Some(now + renewal::wait(expiry?.saturating_duration_since(now))?)
    }
}

/// Makes the message that authenticates.
async fn authentication(settings: &Settings) -> Result<Frame, String> {
    let credentials = match &settings.credentials {
        Credentials::Fixed(credentials) => credentials.clone(),
        Credentials::Asked(ask) => ask().await.map_err(|error| error.to_string())?,
    };
    let message = Outgoing { action: "Client/authentication".to_owned(), details: credentials, id: None };
    let (size, limit) = (message.size(), settings.message_size);
    if size > limit {
        Err(format!("they have {size} bytes, and the server takes {limit}"))
    } else {
        Ok(message.frame())
    }
}

impl Outgoing {
    /// Returns the size of the message as JSON, in bytes.
    pub(super) fn size(&self) -> usize {
        struct Count(usize);

        impl io::Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += bytes.len();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut count = Count(0);
        // Writing JSON to a counter does not fail.
        serde_json::to_writer(&mut count, self).map_or(usize::MAX, |()| count.0)
    }

    fn frame(&self) -> Frame {
        Frame::text(serde_json::to_string(self).expect("a JSON value can be written"))
    }
}

/// Closes a socket in the background: sends the close frame and reads what still comes.
fn farewell<S: Stream>(
    sink: SplitSink<WebSocketStream<S>, Frame>,
    stream: SplitStream<WebSocketStream<S>>,
    frame: Option<CloseFrame>,
) {
    tokio::spawn(async move {
        let mut sink = sink;
        let mut stream = stream;
        let words = async {
            if let Some(frame) = frame {
                sink.send(Frame::Close(Some(frame))).await?;
            }
            // This also sends an answer that was due.
            while stream.next().await.transpose()?.is_some() {}
            Ok::<_, tungstenite::Error>(())
        };
        // If the server does not answer, the socket is dropped.
        let _ = timeout(FAREWELL, words).await;
    });
}
