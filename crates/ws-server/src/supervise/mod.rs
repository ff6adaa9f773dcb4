//! `supervise`: starts the server as a child process, and starts it again if it ends or does not answer.

use std::{os::unix::process::ExitStatusExt, pin::pin, process::ExitStatus, time::Duration};

use rustix::process::Signal;
use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use ws_cluster::TrustedProxies;

use self::{
    backoff::{Backoff, LONGEST},
    child::Child,
    control::Control,
};
use crate::{
    Failure, Outcome,
    admin::{Order, Phase, SharedState},
    arguments,
    cli::Command,
    config::Settings,
    probe::test_connection,
    run::trusted_proxies,
    signals::{Signals, Told},
    systemd,
};

mod backoff;
mod child;
mod control;

/// Number of test connections that fail in a row before the server is killed.
const FAILURES: u32 = 2;
/// Time after its start within which a server must listen. Otherwise it counts as hanging.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that a shutdown gets in addition to the time limits of its settings, before the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How a server's life ended.
enum End {
    /// The supervisor was told to end.
    Told,
    /// The administrator ordered it.
    Ordered(Order),
    Exited(ExitStatus),
    /// It did not answer and was killed.
    Hung(String),
}

/// The step after a server's end.
enum Next {
    Start,
    /// A start after a pause.
    Again {
        why: String,
        pause: Duration,
    },
    /// A start only if the administrator orders one.
    Rest,
    End(Outcome),
}

pub(crate) async fn supervise(settings: Settings) -> Outcome {
    crate::run::check(&settings)?;
    let signals = Signals::catch().map_err(|error| Failure::setup(format!("signals cannot be caught: {error}")))?;
    let control = Control::start(&settings.run.admin_page, trusted_proxies(&settings.run.trusted_proxy)?);
    let drain = settings.config.connection.drain;
    let mut supervisor = Supervisor { settings, drain, signals, control, backoff: Backoff::default(), came_up: false };
    loop {
        match supervisor.live().await {
            Next::Start => {}
            Next::Again { why, pause } => {
                match pause.is_zero() {
                    true => tracing::error!("{why}: it is started again"),
                    false => tracing::error!("{why}: it is started again in {pause:?}"),
                }
                supervisor.control.state.wait(&why, pause);
                if !supervisor.rest(Some(pause)).await {
                    return Ok(());
                }
            }
            Next::Rest => {
                if !supervisor.rest(None).await {
                    return Ok(());
                }
            }
            Next::End(outcome) => return outcome,
        }
    }
}

/// Reads the settings again, as a server does at its start and at SIGHUP, with the proxies that they name. Returns `None`
/// if they contain a mistake. The server finds the mistake, too, and logs it.
fn read_again() -> Option<(Settings, TrustedProxies)> {
    let parsed = arguments::parse(std::env::args_os()).ok()?;
    let Some(Command::Supervise(run)) = parsed.cli.command else { return None };
    let settings = Settings::new(*run, parsed.file.as_ref());
    crate::run::check(&settings).ok()?;
    let trusted_proxies = trusted_proxies(&settings.run.trusted_proxy).ok()?;
    Some((settings, trusted_proxies))
}

struct Supervisor {
    /// The settings of the last start.
    settings: Settings,
    /// The time over which the server closes its clients. SIGHUP changes it in a running server.
    drain: Duration,
    signals: Signals,
    control: Control,
    backoff: Backoff,
    /// True if a server has listened at least once.
    came_up: bool,
}

impl Supervisor {
    /// Starts a server, and watches it until its end.
    async fn live(&mut self) -> Next {
        let begin = Instant::now();
        if let Some((settings, trusted_proxies)) = read_again() {
            self.drain = settings.config.connection.drain;
            self.settings = settings;
            self.control.trust(trusted_proxies);
        }
        let socket = self.control.socket();
        let mut child = match Child::start(&control::variables(socket.as_ref())) {
            Ok(child) => child,
            Err(error) => {
                let pause = self.backoff.after(begin.elapsed());
                return Next::Again { why: format!("the server cannot be started: {error}"), pause };
            }
        };
        tracing::info!(pid = child.id(), "the server is started");
        self.control.state.start(child.id());
        let end = self.watch(&mut child).await;
        self.came_up |= child.address.borrow().is_some();
        let pause = self.backoff.after(child.started.elapsed());
        let state = &self.control.state;
        match end {
            End::Told => Next::End(Ok(())),
            End::Ordered(Order::Stop) => {
                state.enter(Phase::Stopped, Some("the administrator stopped it".to_owned()));
                Next::Rest
            }
            End::Ordered(_) => {
                state.note_restart("the administrator ordered it");
                Next::Start
            }
            End::Hung(why) => Next::Again { why: format!("the server was killed: {why}"), pause },
            End::Exited(status) if status.success() => {
                tracing::info!("the server was told to end by another process: it is not started again");
                state.enter(Phase::Stopped, Some("another process told it to end".to_owned()));
                if self.control.has_page() { Next::Rest } else { Next::End(Ok(())) }
            }
            // A mistake at the first start stays until somebody corrects it.
            End::Exited(status) if status.code() == Some(2) && !self.came_up => {
                let why = reason(&child);
                let line = format!("the server cannot start, and is not tried again: {why}");
                if !self.control.has_page() {
                    return Next::End(Err(Failure::setup(line)));
                }
                tracing::error!("{line}");
                state.enter(Phase::CannotStart, Some(why));
                Next::Rest
            }
            // A server has run before, so the cause may go away: for example, a database does not answer for a while.
            End::Exited(status) if status.code() == Some(2) => {
                Next::Again { why: format!("the server cannot start (status 2): {}", reason(&child)), pause: LONGEST }
            }
            End::Exited(status) => Next::Again { why: format!("the server ended ({})", describe(status)), pause },
        }
    }

    /// Waits until the pause is over or a start is ordered. Returns false if the supervisor is told to end.
    async fn rest(&mut self, pause: Option<Duration>) -> bool {
        let mut end = pause.map(|pause| Instant::now() + pause);
        loop {
            let over = async {
                match end {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return true,
                told = self.signals.next() => {
                    if told == Told::Stop {
                        return false;
                    }
                }
                order = self.control.order() => match order {
                    Order::Start | Order::Restart => return true,
                    Order::Stop => {
                        end = None;
                        let why = "the administrator stopped it".to_owned();
                        self.control.state.enter(Phase::Stopped, Some(why));
                    }
                },
            }
        }
    }

    /// Watches a server until it ends, or is ended.
    async fn watch(&mut self, child: &mut Child) -> End {
        let Self { settings, drain, signals, control, .. } = self;
        let limit = |drain: Duration| drain + 2 * settings.config.cluster.shutdown_timeout + STOP_TIMEOUT;
        let state = control.state.clone();
        let mut address = child.address.clone();
        let mut tests = pin!(test(child.address.clone(), settings, &state));
        let mut is_told = false;
        let why = loop {
            tokio::select! {
                status = child.wait() => return ended(status),
                told = signals.next() => match told {
                    Told::Stop => {
                        systemd::tell(&[NotifyState::Stopping]);
                        shut_down(child, signals, limit(*drain), &state, true).await;
                        return End::Told;
                    }
                    Told::ReadAgain => {
                        if let Some((changed, trusted_proxies)) = read_again() {
                            // The server may refuse the change. A limit that is too long kills nothing.
                            *drain = changed.config.connection.drain.max(*drain);
                            control.trust(trusted_proxies);
                        }
                        child.signal(Signal::HUP);
                    }
                },
                order = control.order() => {
                    if order == Order::Start {
                        continue;
                    }
                    tracing::info!("the server is stopped: the administrator ordered it");
                    let is_told = shut_down(child, signals, limit(*drain), &state, false).await;
                    return if is_told { End::Told } else { End::Ordered(order) };
                }
                up = address.wait_for(Option::is_some), if !is_told => {
                    is_told = true;
                    if let Ok(Some(address)) = up.as_deref() {
                        state.run(*address);
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
}

/// Waits until the supervisor is told to end.
async fn stop(signals: &mut Signals) {
    while signals.next().await != Told::Stop {}
}

/// Returns the last line of a server that cannot start.
fn reason(child: &Child) -> String {
    let line = child.last_line();
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn ended(status: std::io::Result<ExitStatus>) -> End {
    match status {
        Ok(status) => End::Exited(status),
        Err(error) => End::Hung(format!("the supervisor cannot wait for its end: {error}")),
    }
}

/// Makes test connections until too many in a row fail. Returns the reason.
async fn test(
    address: tokio::sync::watch::Receiver<Option<std::net::SocketAddr>>,
    settings: &Settings,
    state: &SharedState,
) -> String {
    let supervision = &settings.run.supervision;
    let started = Instant::now();
    let mut failures = 0;
    loop {
        sleep(supervision.check_interval).await;
        let bound = *address.borrow();
        let tested = match bound {
            Some(bound) => test_connection(bound, &settings.run.path, supervision.check_timeout).await,
            None if started.elapsed() < START_TIMEOUT => Ok(()),
            None => Err(format!("it did not listen within {START_TIMEOUT:?} after its start")),
        };
        match tested {
            Ok(()) => {
                failures = 0;
                if state.phase() == Phase::Hanging {
                    state.enter(Phase::Running, None);
                }
            }
            Err(why) => {
                failures += 1;
                tracing::warn!(failures, "{why}");
                state.enter(Phase::Hanging, Some(why.clone()));
                if failures == FAILURES {
                    return why;
                }
            }
        }
    }
}

/// Lets the server drain. Kills it at a second signal, or if the shutdown takes longer than `limit`. Returns true if the
/// supervisor was told to end, before this call (`is_told`) or during it.
async fn shut_down(
    child: &mut Child,
    signals: &mut Signals,
    limit: Duration,
    state: &SharedState,
    mut is_told: bool,
) -> bool {
    state.enter(Phase::Stopping, None);
    child.signal(Signal::TERM);
    tracing::debug!("the shutdown may take {limit:?}");
    let limit = Instant::now() + limit;
    loop {
        tokio::select! {
            _ = child.wait() => return is_told,
            () = stop(signals) => {
                if is_told {
                    break;
                }
                is_told = true;
            }
            () = sleep_until(limit) => {
                tracing::error!("the shutdown takes too long: the server is killed");
                break;
            }
        }
    }
    child.signal(Signal::KILL);
    // Now only the system can delay the end.
    let _ = timeout(STOP_TIMEOUT, child.wait()).await;
    is_told
}

/// Says for people how a process ended.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
