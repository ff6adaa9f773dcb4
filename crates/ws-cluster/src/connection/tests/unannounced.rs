//! The end of a stream that the stream reports as an error, as TLS does if the client ends TCP without a `close_notify`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use super::*;

/// A stream whose end is an error.
struct Unannounced(DuplexStream);

impl AsyncRead for Unannounced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buffer))?;
        match buffer.filled().len() > before {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl AsyncWrite for Unannounced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn messages_and_the_close_before_an_end_that_tls_does_not_announce_are_handled() {
    let (ended, mut end) = mpsc::unbounded_channel();
    let builder = Server::builder(MemoryPool::default()).action("wait", Wait);
    let ended = move |request: Request| {
        let ended = ended.clone();
        async move { ended.send(request.close_code()).map_err(|_| ActionError::internal("gone")) }
    };
    let server = builder.on_disconnect(ended).start().await.unwrap();
    let (_, accepted) = ann(&server, None);
    let (stream, far) = duplex(10_000);
    tokio::spawn(serve(server, accepted, Unannounced(far), &[]));
    let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
    for _ in 0..2 {
        peer.send(r#"["wait"]"#).await;
    }
    peer.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await.unwrap();
    peer.stream.shutdown().await.unwrap();
    // The first handler runs when the end of the stream comes.
    for seconds in [20, 40] {
        assert_eq!(peer.text().await, (r#"["wait",[]]"#.to_owned(), seconds));
    }
    assert_eq!(peer.closed().await, (1001, 40));
    assert_eq!(end.recv().await, Some(Some(1001)));
}
