//! The supervisor as the admin page operates it.

use std::{
    ffi::OsStr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::mpsc;
use ws_cluster::TrustedProxies;

use crate::{
    admin::{Answer, Directory, Forward, Front, Listeners, Order, Question, SOCKET, ServerState, Service, SharedState},
    cli::AdminPage,
    stderr::Stderr,
};

/// Orders that wait: one at a time is carried out.
const ORDERS: usize = 1;

/// The supervisor's side: what it tells, and the orders that it gets. Without an admin page nobody reads and orders.
pub(super) struct Control {
    pub(super) state: SharedState,
    orders: mpsc::Receiver<Order>,
    /// The socket on which the server answers the supervisor, if there is an admin page.
    directory: Option<Directory>,
    /// The page is served.
    is_served: Arc<AtomicBool>,
}

/// The page's side.
struct Page {
    state: SharedState,
    orders: mpsc::Sender<Order>,
    forward: Option<Forward>,
}

impl Control {
    /// Serves the admin page, if there is to be one. It comes later if its address is taken.
    pub(super) fn start(page: &AdminPage, trusted_proxies: TrustedProxies) -> Self {
        let state = SharedState::new(ServerState::starting(None));
        let (sender, orders) = mpsc::channel(ORDERS);
        let mut directory = None;
        let is_served = Arc::<AtomicBool>::default();
        if let Some(address) = page.admin.clone() {
            // From the first line on.
            Stderr::get().keep();
            directory = Directory::make()
                .inspect_err(|error| {
                    tracing::error!(
                        "the admin page cannot ask the server, since there is no directory for a socket: {error}"
                    );
                })
                .ok();
            let forward = directory.as_ref().map(|directory| Forward::new(&directory.socket()));
            let service = Arc::new(Page { state: state.clone(), orders: sender, forward });
            let (page, serves) = (page.clone(), is_served.clone());
            tokio::spawn(async move {
                let listeners = Listeners::bind_at_last(&address, page.admin_key.is_some()).await;
                serves.store(true, Ordering::Relaxed);
                if let Err(why) = Front::serve(listeners, &page, service, trusted_proxies).await {
                    tracing::error!("there is no admin page: {}", why.text);
                }
            });
        }
        Self { state, orders, directory, is_served }
    }

    /// Returns true if somebody can start a server that ended.
    pub(super) fn has_page(&self) -> bool {
        self.is_served.load(Ordering::Relaxed)
    }

    /// Waits for the next order; for ever without an admin page.
    pub(super) async fn order(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// The variables by which the server learns of its socket.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(Directory::socket)
    }
}

/// What a server's environment says of its socket.
pub(super) fn variables(socket: Option<&PathBuf>) -> Vec<(&'static str, &OsStr)> {
    socket.map(|socket| (SOCKET, socket.as_os_str())).into_iter().collect()
}

#[async_trait]
impl Service for Page {
    fn is_supervised(&self) -> bool {
        true
    }

    fn state(&self) -> ServerState {
        self.state.get()
    }

    fn order(&self, order: Order) -> Result<(), String> {
        let send = |order| self.orders.try_send(order).map_err(|_| "another order waits: try again".to_owned());
        self.state.order(order, send)
    }

    async fn ask(&self, question: Question) -> Answer {
        match &self.forward {
            Some(forward) => forward.ask(question).await,
            None => crate::admin::unavailable(&question.path, "the server cannot be asked: the log says why"),
        }
    }
}
