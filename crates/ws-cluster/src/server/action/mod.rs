//! Handlers of actions, as async functions or as types, and layers around them: the part that an application writes.

use async_trait::async_trait;

use crate::{ActionError, server::States};

mod extract;
mod handler;
mod layer;
mod request;

pub use extract::{Data, Details, Disconnection, FromRequest, Session, State, User};
pub use handler::{IntoHandler, WithGuests};
pub use layer::{Layer, Layered, Next};
pub use request::Request;

pub(super) use layer::Stack;
pub(super) use request::Context;

/// Handles an action of clients. Async functions are handlers as well ([`IntoHandler`]); implement this trait for a
/// handler that is a value with state or settings of its own.
///
/// The actions of one connection are handled one after the other, in the order sent. Those of different connections are
/// handled at the same time. While a handler runs, the server writes to its connection but does not read from it. So a
/// slow handler delays only its own client. A handler runs to its end even if the client leaves meanwhile.
///
/// A handler must not block its thread. Move long computations and blocking calls to
/// [`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html). If one poll takes longer than
/// [`blocking_warning`](crate::ConnectionConfig::blocking_warning), a warning is logged.
///
/// An error goes to the connection that asked, as `ACTION:error [code, "text"]`. A panic is logged and answered with
/// `[500, "Internal Server Error"]`, and the server continues.
///
/// Two actions are the server's own. [`ServerBuilder::on_connect`](crate::ServerBuilder::on_connect) and
/// [`ServerBuilder::on_disconnect`](crate::ServerBuilder::on_disconnect) are other names for them.
///
/// The handler of `Client/authentication` is called when a connection has been authenticated, at the upgrade or by a
/// message. Its details are empty, because only the authenticator sees credentials. When the handler has ended, the
/// client is told that it is authenticated, and gets the messages that it missed before and meanwhile. A guest that
/// authenticates on an open connection gets messages while the handler runs. An error refuses the connection: the
/// client gets `Client/authentication:error [code, "text"]` and is closed. If the code is below 500, it is closed with
/// 4401 and does not connect again. Otherwise, and after a panic, it is closed with 1011 and connects again. The
/// handler is not called again when the client renews its authentication.
///
/// The handler of `Client/disconnection` is called when a connection is gone. Its details are
/// `[code, "reason", resumed]`: the first two of the close frame that ended the connection, from whichever side
/// ([`Request::close_code`]), and the last as [`Request::has_resumed`] says. The connection gets no more messages, and
/// [`reply`](Request::reply) has no effect. The handler is not called for a connection that was refused. While the
/// server [shuts down](crate::Server::shutdown), the handler can publish for as long as the shutdown waits for it.
///
/// ```
/// use ws_cluster::{ActionError, ActionHandler, Request, async_trait};
///
/// struct Greeter {
///     greeting: String,
/// }
///
/// #[async_trait]
/// impl ActionHandler for Greeter {
///     async fn handle(&self, request: Request) -> Result<(), ActionError> {
///         let name: String = request.detail(0)?;
///         request.reply(format!("{} {name}", self.greeting))
///     }
/// }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle actions",
    label = "does not implement `ActionHandler`",
    note = "implement `async fn handle(&self, request: Request) -> Result<(), ActionError>` under \
            `#[async_trait] impl ActionHandler for {Self}`, or use an async function"
)]
pub trait ActionHandler: Send + Sync + 'static {
    /// Handles one message of a client.
    ///
    /// # Errors
    /// The error that the client gets.
    async fn handle(&self, request: Request) -> Result<(), ActionError>;

    /// Returns true if guests may call it as well. Otherwise guests get `[403, "Forbidden"]`. Default: false.
    fn guests(&self) -> bool {
        false
    }

    /// Returns the name of a state that the handler takes and the server lacks.
    #[doc(hidden)]
    fn missing_state(&self, states: &States) -> Option<&'static str> {
        let _ = states;
        None
    }
}
