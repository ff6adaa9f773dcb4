//! Starts a server from its settings.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};

use super::{
    ActionHandler, Layer, Server, ServerBuilder, Shared, States,
    action::Stack,
    builder::OWN_ACTIONS,
    check,
    live::LiveSettings,
    reports::{self, Reports},
    socket::Gate,
};
use crate::{
    NodeId, StartError,
    connection::{self, Context},
    hub::{
        Hub,
        resume::{Resumption, StateSealer},
    },
    log_limit::LogLimits,
    node, outbox, random, secret,
    stats::{HandlerTimes, Metered},
};

/// Handlers by their actions.
type Actions = HashMap<String, Arc<dyn ActionHandler>>;

impl ServerBuilder {
    /// Checks the settings and starts the node, which joins or founds the cluster in the background. [`Server::serve`],
    /// [`Server::upgrade`] and [`Server::handle`] then accept clients. Call this in the Tokio runtime that is to run
    /// the connections.
    ///
    /// # Errors
    /// [`StartError`] if a setting or the pool's URL cannot work. A database that does not answer is no error: the node
    /// tries again until it answers, and refuses clients with 503 meanwhile.
    pub async fn start(self) -> Result<Server, StartError> {
        self.config.check()?;
        check::path(&self.path)?;
        check::prefix(&self.prefix)?;
        check::cluster(&self.cluster)?;
        if !self.own_origin && self.allowed_origins.is_empty() {
            return Err(StartError::NoOrigin);
        }
        let address = self.address.as_deref().map(check::address).transpose()?;
        let keys = self.keys.into_iter().map(secret::cluster_key).collect::<Result<Vec<_>, _>>()?;
        let mut live = LiveSettings::new(&self.config);
        live.set_publish_key(self.publish_key.as_deref())?;
        (live.allowed_origins, live.own_origin) = (self.allowed_origins, self.own_origin);
        live.trusted_proxies = self.trusted_proxies;
        let pages = pages(self.pages, &self.path)?;
        let actions = actions(self.actions, self.fallback.as_ref(), &self.states)?;
        let handler_times = Metered::new(|| HandlerTimes::new(actions.keys()));
        let (actions, fallback) = layered(actions, self.fallback, self.layers);

        let node = NodeId::from_bytes(random::bytes().map_err(StartError::no_random_numbers)?);
        let authenticator = self.authenticator.clone();
        let hub = Arc::new(Hub::new(node, &self.config, move |subject| connection::forget(&*authenticator, subject)));
        // Without a key there is no other node, and none of its clients outlives it.
        let sealing = match keys.is_empty() {
            true => vec![random::bytes::<32>().map_err(StartError::no_random_numbers)?.to_vec()],
            false => keys.clone(),
        };
        let sealer = StateSealer::new(&self.cluster, &sealing);
        let settings = node::Settings {
            node,
            cluster: self.cluster,
            address,
            keys,
            config: self.config.clone(),
            pool: self.pool,
            stats: hub.stats().clone(),
        };
        let (sender, told) = mpsc::channel(reports::MAX_TOLD);
        let cluster = node::start(settings, hub.clone(), sender).await?;
        let outbox = self.outbox.map(|outbox| {
            let trouble = Arc::new(outbox::Trouble::default());
            tokio::spawn(outbox::run(outbox, cluster.submitter(), hub.stats().clone(), trouble.clone()));
            trouble
        });
        let resumption = Resumption::new(hub, cluster.clone(), sealer, self.config.clone());
        let shared = Arc::new(Shared {
            reports: Reports::new(cluster.teller()),
            #[cfg(feature = "metrics")]
            backend_stats: self.backend_stats,
            outbox,
            handler_times,
            shutting_down: watch::Sender::new(false),
            unfinished: watch::Sender::new(()),
            gate: Gate::new(&self.config.http),
            logs: LogLimits::default(),
            handler_logs: LogLimits::default(),
            connections: Context::new(self.config, self.authenticator, resumption, self.guests),
            cluster,
            actions,
            fallback,
            states: self.states,
            raw: self.raw,
            dialect: self.dialect,
            path: self.path,
            prefix: self.prefix,
            live: RwLock::new(Arc::new(live)),
            changing: Mutex::new(()),
            pages,
        });
        tokio::spawn(reports::run(Arc::downgrade(&shared), told));
        Ok(Server(shared))
    }
}

/// Returns the pages by their paths. `clients` is the path of clients.
fn pages(given: Vec<(String, Bytes)>, clients: &str) -> Result<HashMap<String, Bytes>, StartError> {
    let mut pages = HashMap::new();
    for (path, html) in given {
        check::path(&path)?;
        if path == clients || pages.insert(path.clone(), html).is_some() {
            return Err(StartError::DuplicatePath { path });
        }
    }
    Ok(pages)
}

/// Returns the handlers by their actions. All of them, and the fallback, have the states that they take.
fn actions(
    given: Vec<(String, Arc<dyn ActionHandler>)>,
    fallback: Option<&Arc<dyn ActionHandler>>,
    states: &States,
) -> Result<Actions, StartError> {
    let mut actions = Actions::new();
    for (action, handler) in given {
        check::action(&action)?;
        if actions.contains_key(&action) {
            return Err(StartError::DuplicateAction { action });
        }
        actions.insert(action, handler);
    }
    let named = actions.iter().map(|(action, handler)| (&**action, handler));
    for (action, handler) in named.chain(fallback.map(|handler| ("fallback", handler))) {
        if let Some(state) = handler.missing_state(states) {
            return Err(StartError::MissingState { action: action.to_owned(), state });
        }
    }
    Ok(actions)
}

/// Puts the layers around the handlers, except for those of the server's own actions.
fn layered(
    actions: Actions,
    fallback: Option<Arc<dyn ActionHandler>>,
    layers: Vec<(String, Arc<dyn Layer>)>,
) -> (Actions, Option<Arc<dyn ActionHandler>>) {
    let layers: Arc<[_]> = layers.into();
    let layered = |handler: Arc<dyn ActionHandler>| -> Arc<dyn ActionHandler> {
        if layers.is_empty() { handler } else { Arc::new(Stack { layers: layers.clone(), handler }) }
    };
    let around = |(action, handler): (String, _)| {
        let handler = if OWN_ACTIONS.contains(&&*action) { handler } else { layered(handler) };
        (action, handler)
    };
    (actions.into_iter().map(around).collect(), fallback.map(layered))
}
