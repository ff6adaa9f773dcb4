//! The log of the code under test, in tests that run on one thread.

use std::{io, sync::LazyLock};

use tokio::sync::mpsc;
use tracing::{Dispatch, subscriber::DefaultGuard};

use crate::client::soon;

/// The log of this thread, from [`Log::listen`] on.
pub struct Log {
    lines: mpsc::UnboundedReceiver<String>,
    _listening: DefaultGuard,
}

impl Log {
    /// Listens to the log of this thread, INFO and above.
    pub fn listen() -> Self {
        // While there is only one dispatcher, the thread that comes to a line first decides for all threads whether it is
        // written, and other tests have none.
        static ANOTHER: LazyLock<Dispatch> =
            LazyLock::new(|| Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()));
        LazyLock::force(&ANOTHER);
        let (tell, lines) = mpsc::unbounded_channel();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(tell.clone())).finish();
        Self { lines, _listening: tracing::subscriber::set_default(subscriber) }
    }

    /// Waits for the next line that contains this text.
    pub async fn line(&mut self, text: &str) -> String {
        soon(async {
            loop {
                let line = self.lines.recv().await.expect("the subscriber is kept");
                if line.contains(text) {
                    break line;
                }
            }
        })
        .await
    }
}

/// Passes each line to the test.
struct Lines(mpsc::UnboundedSender<String>);

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The test may be over.
        let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
