//! When to stop: SIGTERM or ctrl-c; a second one ends the process at once. SIGHUP is only logged.

use std::{io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::stderr::Stderr;

/// The signals that end the process.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP changes nothing: settings are read at the start");
            }
        });
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the first. The second does not wait for what is going on then.
    pub(crate) async fn first(mut self) {
        self.next().await;
        tracing::info!("shutting down; a second signal ends it at once");
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("ended before the shutdown was through");
            Stderr::get().flush();
            process::exit(1);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
