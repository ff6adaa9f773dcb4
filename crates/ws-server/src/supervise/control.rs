//! Connects the supervisor with the admin page.

use std::{
    ffi::OsStr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use ws_cluster::TrustedProxies;

use crate::{
    admin::{Answer, Directory, Forward, Front, Listeners, Order, Question, SOCKET, ServerState, Service, SharedState},
    cli::AdminPage,
    stderr::Stderr,
};

/// Maximum number of orders that wait. One order at a time is carried out.
const ORDERS: usize = 1;

/// The supervisor's side: the state that it shows, and the orders that it gets. Without an admin page there are no
/// orders.
pub(super) struct Control {
    pub(super) state: SharedState,
    orders: mpsc::Receiver<Order>,
    /// The socket on which the server answers the supervisor, if there is an admin page.
    directory: Option<Directory>,
    /// True if the page is served.
    is_served: Arc<AtomicBool>,
    /// The proxies that the page trusts.
    trusted_proxies: Arc<RwLock<TrustedProxies>>,
}

/// The page's side.
struct Page {
    state: SharedState,
    orders: mpsc::Sender<Order>,
    forward: Option<Forward>,
    trusted_proxies: Arc<RwLock<TrustedProxies>>,
}

impl Control {
    /// Serves the admin page, if the settings ask for one. If its address is taken, it is served later.
    pub(super) fn start(page: &AdminPage, trusted_proxies: TrustedProxies) -> Self {
        let state = SharedState::new(ServerState::starting(None));
        let (sender, orders) = mpsc::channel(ORDERS);
        let mut directory = None;
        let is_served = Arc::<AtomicBool>::default();
        let trusted_proxies = Arc::new(RwLock::new(trusted_proxies));
        if let Some(address) = page.admin.clone() {
            // The page shows the log from the first line on.
            Stderr::get().keep();
            directory = Directory::make()
                .inspect_err(|error| {
                    tracing::error!(
                        "the admin page cannot ask the server, because no directory for a socket can be made: {error}"
                    );
                })
                .ok();
            let forward = directory.as_ref().map(|directory| Forward::new(&directory.socket()));
            let trusted_proxies = trusted_proxies.clone();
            let service = Arc::new(Page { state: state.clone(), orders: sender, forward, trusted_proxies });
            let (page, serves) = (page.clone(), is_served.clone());
            tokio::spawn(async move {
                let listeners = Listeners::bind_at_last(&address, page.admin_key.is_some()).await;
                serves.store(true, Ordering::Relaxed);
                if let Err(why) = Front::serve(listeners, &page, service).await {
                    tracing::error!("there is no admin page: {}", why.text);
                }
            });
        }
        Self { state, orders, directory, is_served, trusted_proxies }
    }

    /// Lets the page trust these proxies from now on.
    pub(super) fn trust(&self, proxies: TrustedProxies) {
        *self.trusted_proxies.write() = proxies;
    }

    /// Returns true if there is an admin page on which a server that ended can be started again.
    pub(super) fn has_page(&self) -> bool {
        self.is_served.load(Ordering::Relaxed)
    }

    /// Waits for the next order. Without an admin page, this waits for ever.
    pub(super) async fn order(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Returns the path of the socket on which the server answers the supervisor.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(Directory::socket)
    }
}

/// Returns the variables that tell a server the path of its socket.
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
        let send = |order| self.orders.try_send(order).map_err(|_| "another order is waiting: try again".to_owned());
        self.state.order(order, send)
    }

    fn trusted_proxies(&self) -> TrustedProxies {
        self.trusted_proxies.read().clone()
    }

    async fn ask(&self, question: Question) -> Answer {
        match &self.forward {
            Some(forward) => forward.ask(question).await,
            None => crate::admin::unavailable(&question.path, "the server cannot be asked: the log says why"),
        }
    }
}
