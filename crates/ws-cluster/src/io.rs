//! What connections and links run on.

use tokio::io::{AsyncRead, AsyncWrite};

/// The byte stream under a connection or a link: TCP, TLS, or whatever an HTTP server hands over at an upgrade.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}
