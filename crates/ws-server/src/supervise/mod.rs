//! `supervise`: starts the server as a child process, and again when it ends or does not answer.

use std::{os::unix::process::ExitStatusExt, pin::pin, process::ExitStatus, time::Duration};

use rustix::process::Signal;
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::{
    backoff::{Backoff, LONGEST},
    child::Child,
    tail::Tail,
};
use crate::{
    Failure, Outcome,
    config::Settings,
    probe::test_connection,
    signals::{Signals, Told},
    systemd,
};

mod backoff;
mod child;
mod tail;

/// Test connections that fail in a row before the server is killed.
const FAILURES: u32 = 2;
/// Time for a server to listen after its start, before it counts as hanging.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a shutdown beside what the settings give it, before the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How a server's life ended.
enum End {
    /// It was asked to.
    Asked,
    Exited(ExitStatus),
    /// It did not answer, and was killed.
    Hung(String),
}

pub(crate) async fn supervise(settings: Settings) -> Outcome {
    crate::run::check(&settings)?;
    let mut signals = Signals::catch().map_err(|error| Failure::setup(format!("signals cannot be caught: {error}")))?;
    let tail = Tail::default();
    let mut backoff = Backoff::default();
    let mut came_up = false;
    loop {
        let started = Instant::now();
        let (why, pause) = match Child::start(&tail) {
            Err(error) => (format!("the server cannot be started: {error}"), backoff.after(started.elapsed())),
            Ok(mut child) => {
                tracing::info!(pid = child.id(), "the server is started");
                let end = watch(&mut child, &mut signals, &settings).await;
                came_up |= child.address.borrow().is_some();
                let pause = backoff.after(child.started.elapsed());
                match end {
                    End::Asked => return Ok(()),
                    End::Hung(why) => (format!("the server was killed: {why}"), pause),
                    End::Exited(status) if status.success() => {
                        tracing::info!("the server was told to end by another process: it is not started again");
                        return Ok(());
                    }
                    // What is wrong at the first start stays so until somebody changes it.
                    End::Exited(status) if status.code() == Some(2) && !came_up => {
                        let why = tail.last().unwrap_or_default();
                        let why = why.strip_prefix("error: ").unwrap_or(&why);
                        return Err(Failure::setup(format!("the server cannot start, and is not tried again: {why}")));
                    }
                    // It worked before: a database that is away for a while, for example.
                    End::Exited(status) if status.code() == Some(2) => {
                        ("the server cannot start (status 2)".to_owned(), LONGEST)
                    }
                    End::Exited(status) => (format!("the server ended ({})", describe(status)), pause),
                }
            }
        };
        match pause.is_zero() {
            true => tracing::error!("{why}: it is started again"),
            false => tracing::error!("{why}: it is started again in {pause:?}"),
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = stop(&mut signals) => return Ok(()),
        }
    }
}

/// Waits until the supervisor is told to end.
async fn stop(signals: &mut Signals) {
    while signals.next().await != Told::Stop {}
}

/// Watches a server until it ends, or is ended.
async fn watch(child: &mut Child, signals: &mut Signals, settings: &Settings) -> End {
    let mut address = child.address.clone();
    let mut tests = pin!(test(child.address.clone(), settings));
    let mut is_told = false;
    let why = loop {
        tokio::select! {
            status = child.wait() => return ended(status),
            told = signals.next() => match told {
                Told::Stop => {
                    shut_down(child, signals, settings).await;
                    return End::Asked;
                }
                Told::ReadAgain => child.signal(Signal::HUP),
            },
            up = address.wait_for(Option::is_some), if !is_told => {
                is_told = true;
                if up.is_ok() {
                    systemd::tell(&[NotifyState::Ready]);
                }
            }
            why = &mut tests => break why,
        }
    };
    child.signal(Signal::KILL);
    let _ = child.wait().await;
    End::Hung(why)
}

fn ended(status: std::io::Result<ExitStatus>) -> End {
    match status {
        Ok(status) => End::Exited(status),
        Err(error) => End::Hung(format!("its end cannot be waited for: {error}")),
    }
}

/// Makes test connections until too many in a row fail. Why they do.
async fn test(address: tokio::sync::watch::Receiver<Option<std::net::SocketAddr>>, settings: &Settings) -> String {
    let supervision = &settings.run.supervision;
    let started = Instant::now();
    let mut failures = 0;
    loop {
        sleep(supervision.check_interval).await;
        let bound = *address.borrow();
        let tested = match bound {
            Some(bound) => test_connection(bound, &settings.run.path, supervision.check_timeout).await,
            None if started.elapsed() < START_TIMEOUT => Ok(()),
            None => Err(format!("it does not listen {START_TIMEOUT:?} after its start")),
        };
        match tested {
            Ok(()) => failures = 0,
            Err(why) => {
                failures += 1;
                tracing::warn!(failures, "{why}");
                if failures == FAILURES {
                    return why;
                }
            }
        }
    }
}

/// Lets the server drain; a second signal ends it at once, and so does a shutdown that takes too long.
async fn shut_down(child: &mut Child, signals: &mut Signals, settings: &Settings) {
    systemd::tell(&[NotifyState::Stopping]);
    child.signal(Signal::TERM);
    let limit =
        Instant::now() + settings.config.connection.drain + 2 * settings.config.cluster.shutdown_timeout + STOP_TIMEOUT;
    let is_over = tokio::select! {
        _ = child.wait() => true,
        () = stop(signals) => false,
        () = sleep_until(limit) => {
            tracing::error!("the shutdown takes too long: the server is killed");
            false
        }
    };
    if !is_over {
        child.signal(Signal::KILL);
        // Nothing but the system can keep it now.
        let _ = timeout(STOP_TIMEOUT, child.wait()).await;
    }
}

/// How a process ended, for people.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
