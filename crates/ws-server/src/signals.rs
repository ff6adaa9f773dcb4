//! The signals that tell the process to stop (SIGTERM, ctrl-c) or to read its configuration again (SIGHUP).

use std::{io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::stderr::Stderr;

/// The signals that the process acts on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Stop,
    ReadAgain,
}

impl Signals {
    /// Catches the signals from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the first signal to stop, and calls `read_again` at each SIGHUP before that. From then on, a second
    /// signal to stop ends the process at once.
    pub(crate) async fn stop(mut self, mut read_again: impl FnMut()) {
        while self.next().await == Told::ReadAgain {
            read_again();
        }
        tracing::info!("shutting down; a second signal ends it at once");
        tokio::spawn(async move {
            while self.next().await == Told::ReadAgain {}
            tracing::warn!("a second signal ended the process before the shutdown was complete");
            Stderr::get().flush();
            process::exit(1);
        });
    }

    /// Waits for the next signal. If the future is dropped earlier, no signal is lost.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::ReadAgain,
        }
    }
}
