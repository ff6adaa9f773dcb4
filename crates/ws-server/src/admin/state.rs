//! The state of a server as the admin page shows it, and the orders that it accepts.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// Maximum number of restarts that are remembered.
const RESTARTS: usize = 50;

/// The phase of a server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its process runs but does not serve yet.
    Starting,
    Running,
    /// It does not answer. It is killed if that lasts.
    Hanging,
    /// It drains.
    Stopping,
    /// It ended without an order, and is started again after a pause.
    Waiting,
    /// It was told to end.
    Stopped,
    /// Its settings or its environment must be changed first.
    CannotStart,
}

/// An order of the administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Start,
    Stop,
    Restart,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Hanging => "hanging",
            Self::Stopping => "stopping",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
            Self::CannotStart => "cannot start",
        }
    }

    /// Checks that an order makes sense now.
    ///
    /// # Errors
    /// Says why it does not.
    pub(crate) fn takes(self, order: Order) -> Result<(), &'static str> {
        match (order, self) {
            (Order::Start, Self::Waiting | Self::Stopped | Self::CannotStart) => Ok(()),
            (Order::Start, Self::Stopping) => Err("the server is stopping: start it when it has stopped"),
            (Order::Start, _) => Err("the server runs already"),
            (Order::Stop, Self::Stopped | Self::CannotStart) => Err("the server does not run"),
            (Order::Stop | Order::Restart, Self::Stopping) => Err("the server is stopping already"),
            (Order::Stop | Order::Restart, _) => Ok(()),
        }
    }
}

/// The state of a server.
#[derive(Clone, Debug)]
pub(crate) struct ServerState {
    pub(crate) phase: Phase,
    /// The reason for the phase, if there is one.
    pub(crate) why: Option<String>,
    /// When the phase began. All times here are milliseconds of Unix time.
    since: u64,
    pub(crate) process: Option<u32>,
    /// When the process was started.
    started: Option<u64>,
    /// The address at which it listens.
    pub(crate) address: Option<SocketAddr>,
    next_start: Option<u64>,
    /// When and why it was started again lately, the latest first.
    restarts: VecDeque<(u64, String)>,
    restart_count: u64,
    /// The order that is being carried out. It stays until the order changes the phase.
    ordered: Option<Order>,
}

impl ServerState {
    /// Makes the state of a process that was started just now.
    pub(crate) fn starting(process: Option<u32>) -> Self {
        let now = unix_time();
        Self {
            phase: Phase::Starting,
            why: None,
            since: now,
            process,
            started: process.map(|_| now),
            address: None,
            next_start: None,
            restarts: VecDeque::new(),
            restart_count: 0,
            ordered: None,
        }
    }

    fn enter(&mut self, phase: Phase, why: Option<String>) {
        if self.phase != phase {
            self.since = unix_time();
        }
        (self.phase, self.why, self.next_start) = (phase, why, None);
        // Test connections cause these phases. They do not end an order.
        if !matches!(phase, Phase::Running | Phase::Hanging) {
            self.ordered = None;
        }
        if matches!(phase, Phase::Waiting | Phase::Stopped | Phase::CannotStart) {
            (self.process, self.started, self.address) = (None, None, None);
        }
    }

    pub(crate) fn json(&self, is_supervised: bool) -> Value {
        let restarts: Vec<_> = self.restarts.iter().map(|(at, why)| json!({ "at": at, "why": why })).collect();
        let takes = |order| self.phase.takes(order).is_ok() && (is_supervised || order == Order::Stop);
        json!({
            "supervised": is_supervised,
            "state": self.phase.as_str(),
            "why": self.why,
            "since": self.since,
            "pid": self.process,
            "started": self.started,
            "address": self.address.map(|address| address.to_string()),
            "next_start": self.next_start,
            "restarts": restarts,
            "restart_count": self.restart_count,
            "can": { "start": takes(Order::Start), "stop": takes(Order::Stop), "restart": takes(Order::Restart) },
            "now": unix_time(),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// The state of a server, shared by the task that changes it and those that read it.
#[derive(Clone, Debug)]
pub(crate) struct SharedState(Arc<Mutex<ServerState>>);

impl SharedState {
    pub(crate) fn new(state: ServerState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn get(&self) -> ServerState {
        self.0.lock().clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.0.lock().phase
    }

    pub(crate) fn enter(&self, phase: Phase, why: Option<String>) {
        self.0.lock().enter(phase, why);
    }

    /// Accepts an order if it makes sense now, and sends it. One order is carried out at a time. If the same order
    /// comes again, as with a double click, it counts once.
    ///
    /// # Errors
    /// Says why the order is not accepted.
    pub(crate) fn order(&self, order: Order, send: impl FnOnce(Order) -> Result<(), String>) -> Result<(), String> {
        let mut state = self.0.lock();
        match state.ordered {
            Some(former) if former == order => return Ok(()),
            Some(_) => return Err("another order is being carried out: try again".to_owned()),
            None => {}
        }
        state.phase.takes(order)?;
        send(order)?;
        state.ordered = Some(order);
        Ok(())
    }

    /// Notes that a new process was started.
    pub(crate) fn start(&self, process: Option<u32>) {
        let mut state = self.0.lock();
        let former = state.clone();
        let (restarts, restart_count) = (former.restarts, former.restart_count);
        *state = ServerState { restarts, restart_count, ..ServerState::starting(process) };
    }

    /// Notes that the server serves at this address.
    pub(crate) fn run(&self, address: SocketAddr) {
        let mut state = self.0.lock();
        state.enter(Phase::Running, None);
        state.address = Some(address);
    }

    /// Notes that the server ended without an order, or did not answer. It is started again after a pause.
    pub(crate) fn wait(&self, why: &str, pause: Duration) {
        let mut state = self.0.lock();
        state.enter(Phase::Waiting, Some(why.to_owned()));
        state.next_start = Some(unix_time() + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        state.note_restart(why);
    }

    /// Notes a restart that was ordered.
    pub(crate) fn note_restart(&self, why: &str) {
        self.0.lock().note_restart(why);
    }
}

impl ServerState {
    fn note_restart(&mut self, why: &str) {
        self.restarts.truncate(RESTARTS - 1);
        self.restarts.push_front((unix_time(), why.to_owned()));
        self.restart_count += 1;
    }
}

/// Returns the current Unix time in milliseconds.
pub(super) fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_taken_only_if_it_changes_something() {
        use Phase::{CannotStart, Hanging, Running, Starting, Stopped, Stopping, Waiting};
        let takes = |order| {
            let all = [Starting, Running, Hanging, Stopping, Waiting, Stopped, CannotStart];
            all.into_iter().filter(|phase| phase.takes(order).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(takes(Order::Start), [Waiting, Stopped, CannotStart]);
        assert_eq!(takes(Order::Stop), [Starting, Running, Hanging, Waiting]);
        assert_eq!(takes(Order::Restart), [Starting, Running, Hanging, Waiting, Stopped, CannotStart]);
    }

    #[test]
    fn one_order_is_carried_out_at_a_time_and_a_double_click_counts_once() {
        let state = SharedState::new(ServerState::starting(Some(1)));
        state.run("127.0.0.1:8080".parse().unwrap());
        let sent = std::cell::RefCell::default();
        let order = |order| {
            let send = |order| {
                Vec::push(&mut sent.borrow_mut(), order);
                Ok(())
            };
            state.order(order, send).is_ok()
        };
        assert!(order(Order::Restart) && order(Order::Restart));
        assert!(!order(Order::Stop));
        // A test connection fails meanwhile.
        state.enter(Phase::Hanging, None);
        assert!(order(Order::Restart));
        assert_eq!(*sent.borrow(), [Order::Restart]);
        state.enter(Phase::Stopping, None);
        assert!(!order(Order::Restart));
        state.start(Some(2));
        assert!(order(Order::Stop));
        assert_eq!(*sent.borrow(), [Order::Restart, Order::Stop]);
    }

    #[test]
    fn restarts_are_counted_and_the_last_ones_kept() {
        let state = SharedState::new(ServerState::starting(Some(1)));
        for number in 0..200 {
            state.wait(&format!("cause {number}"), Duration::from_secs(1));
            state.start(Some(2));
        }
        let json = state.get().json(true);
        assert_eq!(json["restart_count"], 200);
        assert_eq!(json["restarts"].as_array().unwrap().len(), RESTARTS);
        assert_eq!(json["restarts"][0]["why"], "cause 199");
        assert_eq!(json["state"], "starting");
    }

    #[test]
    fn a_server_that_ended_has_no_process() {
        let state = SharedState::new(ServerState::starting(Some(7)));
        state.run("127.0.0.1:8080".parse().unwrap());
        assert_eq!(state.get().json(true)["pid"], 7);
        assert_eq!(state.get().json(true)["address"], "127.0.0.1:8080");
        state.enter(Phase::Stopped, None);
        let json = state.get().json(true);
        assert_eq!((&json["pid"], &json["address"], &json["can"]["start"]), (&Value::Null, &Value::Null, &json!(true)));
        assert_eq!(state.get().json(false)["can"]["start"], false);
    }
}
