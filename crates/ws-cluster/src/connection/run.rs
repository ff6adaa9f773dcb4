//! A connection from its upgrade to its end: it runs as a task, may be parked, and leaves the hub.

use std::{
    future::poll_fn,
    mem::MaybeUninit,
    task::{Poll, ready},
};

use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Application,
    auth::DISCONNECTION,
    closing::{ClientEnd, Phase},
    context::{Call, Done},
    reading::READ_SIZE,
    task::Connection,
    transport::{OtherStream, Tcp, Transport},
};
use crate::{
    RawDetails,
    auth::Validity,
    hub::{ClientHandle, resume::ResumeRequest},
    io::Stream,
    message::request_id::AwaitedAnswer,
    send_queue::SendQueue,
};

/// The results of a client's upgrade.
pub(crate) struct Accepted {
    /// The client's place in the hub. The connection drops it last.
    pub(crate) handle: ClientHandle,
    pub(crate) validity: Validity,
    /// True if the client may join as who it is. Otherwise it has to authenticate first.
    pub(crate) may_join: bool,
    /// True if the client may not even authenticate.
    pub(crate) refused: bool,
    /// The resume parameters of a client that tracks its position.
    pub(crate) asked: Option<ResumeRequest>,
}

/// Serves a client on a TCP socket until the client is gone and its last handler has ended. `leftover` came together
/// with the upgrade request.
pub(crate) fn serve_tcp<A: Application>(
    application: A,
    accepted: Accepted,
    stream: TcpStream,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<A> {
    accepted.handle.client().queue.attach(stream);
    run(Box::new(Connection::new(application, accepted, Tcp, leftover)))
}

/// Serves a client on any other stream.
pub(crate) fn serve<S: Stream, A: Application>(
    application: A,
    accepted: Accepted,
    stream: S,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<S, A> {
    run(Box::new(Connection::new(application, accepted, OtherStream::new(stream), leftover)))
}

/// Runs a connection. The future also ends if the connection is parked, which then lies in its send queue.
pub(super) fn run<T: Transport, A: Application>(connection: Box<Connection<T, A>>) -> impl Future<Output = ()> + Send {
    enum RunPhase<T, A> {
        Serving(Box<Connection<T, A>>),
        Ending(Call<()>),
        Over,
    }
    let mut phase = RunPhase::Serving(connection);
    poll_fn(move |cx| {
        loop {
            let served = match &mut phase {
                RunPhase::Serving(connection) => connection.poll(cx),
                RunPhase::Ending(end) => return end.as_mut().poll(cx),
                RunPhase::Over => return Poll::Ready(()),
            };
            let idle = matches!(&phase, RunPhase::Serving(connection) if T::PARKS && connection.is_idle());
            if served.is_pending() && !idle {
                return Poll::Pending;
            }
            let RunPhase::Serving(connection) = std::mem::replace(&mut phase, RunPhase::Over) else { continue };
            match served {
                Poll::Pending => {
                    if let Some(connection) = T::park(connection) {
                        // There is something to do, but other tasks run first.
                        phase = RunPhase::Serving(connection);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(served) => {
                    if let Err(error) = served {
                        tracing::debug!(connection = %connection.client().id, %error, "a client's socket failed");
                    }
                    phase = RunPhase::Ending(Box::pin(connection.end()));
                }
            }
        }
    })
}

/// Reads from a client that has sent its close frame, until it has read ours and is gone.
async fn linger<T: Transport>(mut transport: T, queue: SendQueue, until: Instant) {
    let end = poll_fn(|cx| {
        let mut space = [MaybeUninit::uninit(); READ_SIZE];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(transport.poll_read(cx, &mut buffer, &queue));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    });
    // A client that has not closed its side by then is dropped.
    let _ = timeout_at(until, end).await;
}

impl<T: Transport, A: Application> Connection<T, A> {
    /// Ends the connection after its socket: waits for the running handler, leaves the hub and tells the application.
    pub(super) async fn end(mut self) {
        let queue = self.client().queue.abandon();
        let mut ended = queue.end();
        if let Phase::Closing(closing) = &mut self.phase {
            closing.end.take().into_iter().for_each(|end| ended = end);
        }
        let Self { transport, .. } = self;
        // Both sides have sent their close frames. Only the socket and the slot have to wait for the client.
        let lingering = match self.phase {
            Phase::Closing(closing) if closing.client_end == ClientEnd::CloseFrame => {
                Some(linger(transport, queue, closing.until))
            }
            _ => {
                drop((transport, queue));
                None
            }
        };
        let mut announced = self.join_phase.is_announced();
        if let Some(work) = self.work.take()
            && let Done::Announced { refusal, .. } = work.await
        {
            announced = refusal.is_none();
        }
        self.application.context().hub.stats().metered.note(|counts| counts.note_close(ended.code));
        self.application.context().hub.timers().cancel(self.handle.client().id.local, self.timer);
        let resumed = self.handle.leave();
        let client = self.handle.client();
        if announced && self.application.handles(DISCONNECTION) {
            // These values can always be encoded.
            let details = RawDetails::from_serialize(&(ended.code, &*ended.reason, resumed)).unwrap_or_default();
            if let Ok(handled) = self.application.dispatch(client, DISCONNECTION, details, AwaitedAnswer::default()) {
                // The client is gone, so an error has no recipient.
                let _ = handled.await;
            }
        }
        if let Some(lingering) = lingering {
            lingering.await;
        }
    }
}
