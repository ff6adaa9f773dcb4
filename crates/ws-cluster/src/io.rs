//! The streams under connections and links.

use tokio::io::{AsyncRead, AsyncWrite};

/// The byte stream under a connection or a link: TCP, TLS, or the stream that an HTTP server passes on at an upgrade.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}
