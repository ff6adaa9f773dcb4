//! The context of connections: what all of them share, and the application whose handlers they call.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::runtime::Handle;

use super::{look_ups::LookUps, questions::Answer};
use crate::{
    ActionError, Config, RawDetails,
    auth::Authenticator,
    hub::{Client, Hub, resume::Resumption},
    log_limit::Outage,
    message::request_id::AwaitedAnswer,
    ws::RawMessage,
};

/// The values that all connections of a server share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) hub: Arc<Hub>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) resumption: Arc<Resumption>,
    /// The runtime in which connections get their tasks.
    pub(crate) runtime: Handle,
    /// True if guests may join.
    pub(crate) guests: bool,
    /// The addresses whose clients the authenticator is being asked about.
    pub(super) look_ups: LookUps,
    /// The state of the authenticator, for the log.
    pub(super) outage: Outage,
}

/// The application as connections see it.
pub(crate) trait Application: Clone + Send + Sync + Unpin + 'static {
    /// Returns what all connections share.
    fn context(&self) -> &Context;

    /// Returns true if the application has a handler for exactly this action.
    fn handles(&self, action: &str) -> bool;

    /// Starts the handler of a client's action, or the fallback. A handler that succeeds has given the awaited answer
    /// when it ends; its error is for the caller to send.
    ///
    /// # Errors
    /// Returns the error for the client if nothing handles the action, or if the client may not call the handler.
    fn dispatch(
        &self,
        client: &Arc<Client>,
        action: &str,
        details: RawDetails,
        awaited: AwaitedAnswer,
    ) -> Result<impl Future<Output = Result<(), ActionError>> + Send + use<Self>, ActionError>;

    /// Returns the function that answers raw messages, if the application handles those instead of actions.
    fn raw(&self) -> Option<&Raw>;
}

/// A function that answers raw messages, used instead of actions.
pub(crate) type Raw = Arc<dyn Fn(RawMessage) -> Option<RawMessage> + Send + Sync>;

/// A future that a connection polls beside its socket.
pub(super) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The result of a connection's work.
pub(super) enum Done {
    /// A handler has ended.
    Handled,
    /// The handler of `Client/authentication` has ended, with an error if it refuses the client. `confirm`: the answer
    /// that the client waits for.
    Announced { refusal: Option<ActionError>, confirm: Option<AwaitedAnswer> },
    /// The authenticator was asked about credentials. `attempt`: the number of this attempt, from 1.
    Authenticated { answer: Answer, credentials: Vec<Value>, attempt: u32, awaited: AwaitedAnswer },
}

impl Context {
    pub(crate) fn new(
        config: Config,
        authenticator: Arc<dyn Authenticator>,
        resumption: Arc<Resumption>,
        guests: bool,
    ) -> Self {
        let (look_ups, outage) = Default::default();
        let (hub, runtime) = (resumption.hub.clone(), Handle::current());
        Self { config, hub, authenticator, resumption, runtime, guests, look_ups, outage }
    }

    /// Returns the interval between two rechecks of a user. It is the identity's own or that of the authenticator, or a
    /// longer one if that would exceed the node's limit on questions per second.
    pub(super) fn recheck_interval(&self, own: Option<Duration>) -> Option<Duration> {
        let interval = own.or_else(|| self.authenticator.recheck_interval()).filter(|interval| !interval.is_zero())?;
        Some(interval.max(self.recheck_round()))
    }

    /// Returns the time in which all connections can be rechecked.
    pub(super) fn recheck_round(&self) -> Duration {
        let open = u32::try_from(self.hub.admission().open()).unwrap_or(u32::MAX);
        Duration::from_secs(1) * open / self.config.connection.rechecks_per_second
    }

    /// Returns the time for a client to answer a close frame. It is shorter during a shutdown, so that the handlers of
    /// `Client/disconnection` have time to publish.
    pub(super) fn close_timeout(&self) -> Duration {
        let limit = self.config.connection.close_timeout;
        match self.hub.admission().is_stopped() {
            true => limit.min(self.config.cluster.shutdown_timeout / 2),
            false => limit,
        }
    }
}

/// Returns true if the application is asked whether this client may join.
pub(crate) fn asks_application(application: &impl Application, client: &Client) -> bool {
    client.membership().user.is_some() && application.handles(super::AUTHENTICATION)
}
