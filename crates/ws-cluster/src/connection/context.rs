//! What connections know of the rest of the node: what all of them share, and the application whose handlers they call.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::runtime::Handle;

use super::{look_ups::LookUps, questions::Answer};
use crate::{
    ActionError, Config, RawDetails,
    auth::Authenticator,
    hub::{Client, Hub, resume::Resumption},
    log_limit::Outage,
    ws::RawMessage,
};

/// What all connections of a server share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) hub: Arc<Hub>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) resumption: Arc<Resumption>,
    /// Where connections get their tasks.
    pub(crate) runtime: Handle,
    /// Guests are welcome.
    pub(crate) guests: bool,
    /// The addresses about whose clients the authenticator is being asked.
    pub(super) look_ups: LookUps,
    /// How the authenticator fares.
    pub(super) outage: Outage,
}

/// The application as connections see it.
pub(crate) trait Application: Clone + Send + Sync + Unpin + 'static {
    /// Returns what all connections share.
    fn context(&self) -> &Context;

    /// Returns true if the application has a handler for this very action.
    fn handles(&self, action: &str) -> bool;

    /// Starts the handler of a client's action, or the fallback.
    ///
    /// # Errors
    /// What the client is answered if nothing handles the action, or it may not call the handler.
    fn dispatch(
        &self,
        client: &Arc<Client>,
        action: &str,
        details: RawDetails,
    ) -> Result<impl Future<Output = Result<(), ActionError>> + Send + use<Self>, ActionError>;

    /// Returns what answers messages in place of actions, if anything does.
    fn raw(&self) -> Option<&Raw>;
}

/// Answers messages in place of actions.
pub(crate) type Raw = Arc<dyn Fn(RawMessage) -> Option<RawMessage> + Send + Sync>;

/// A future that a connection waits for beside its socket.
pub(super) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a client's message led to.
pub(super) enum Done {
    /// A handler has ended.
    Handled,
    /// The handler of `Client/authentication` has ended, with an error if it refuses the client. `confirm`: the client
    /// waits for an answer.
    Greeted { refusal: Option<ActionError>, confirm: bool },
    /// The authenticator was asked, for the how-many-eth time about these credentials.
    Authenticated { answer: Answer, credentials: Vec<Value>, attempt: u32 },
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

    /// How often the authenticator is asked again about a connection of a user: as it says, but less often if that made
    /// more questions a second than the node may put.
    pub(super) fn recheck_interval(&self) -> Option<Duration> {
        let interval = self.authenticator.recheck_interval().filter(|interval| !interval.is_zero())?;
        let open = u32::try_from(self.hub.admission().open()).unwrap_or(u32::MAX);
        Some(interval.max(Duration::from_secs(1) * open / self.config.connection.rechecks_per_second))
    }

    /// Time for a client to answer a close frame. Less during a shutdown: those who do not answer leave their handlers of
    /// `Client/disconnection` time to publish.
    pub(super) fn close_timeout(&self) -> Duration {
        let limit = self.config.connection.close_timeout;
        match self.hub.admission().is_stopped() {
            true => limit.min(self.config.cluster.shutdown_timeout / 2),
            false => limit,
        }
    }
}

/// Returns true if the application is asked whether this client may be here.
pub(super) fn greets(application: &impl Application, client: &Client) -> bool {
    client.membership().user.is_some() && application.handles(super::AUTHENTICATION)
}
