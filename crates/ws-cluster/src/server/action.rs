//! What an application writes: a handler for each action, the request it is given, the error it answers with.

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use super::Server;
use crate::{
    ActionError, ConnectionId, Details, Handshake, PublishError, Target, connection::DISCONNECTION, hub::Client,
};

/// Handles an action of clients.
///
/// Actions of one connection are handled one after the other, in the order sent; those of different connections side
/// by side. While a handler runs, its connection is not read (but written to), so a slow one holds back its own
/// client only. It runs to its end even when the client leaves meanwhile. A handler must not block its thread: what
/// computes or waits for long goes through `tokio::task::spawn_blocking`; a warning is logged where one poll takes
/// longer than [`blocking_warning`](crate::ConnectionConfig::blocking_warning).
///
/// An error goes to the connection that asked, as `ACTION:error [code, "text"]`; a panic is answered by
/// `[500, "Internal Server Error"]` and logged, and the server lives on.
///
/// Two actions are the server's own.
///
/// `Client/authentication` is handled when a connection has been authenticated, at the upgrade or by a message, with
/// empty details (credentials are the authenticator's alone). The client is told that it is authenticated, and is sent what
/// it missed, after the handler has ended. An error refuses the connection: the client gets
/// `Client/authentication:error [code, "text"]` and is closed, for good with 4401 if the code is below 500, and otherwise
/// (a panic is a 500) with 1011, after which it comes again. It is not handled again when the client renews its
/// authentication.
///
/// `Client/disconnection` is handled when a connection is gone, with the details `[code, "reason"]` of the close frame that
/// ended it, the client's or the server's ([`Request::close_code`]). Nothing is delivered to the connection any more, and
/// [`respond`](Request::respond) does nothing. It is not handled for a connection that was refused. While the server
/// [shuts down](crate::Server::shut_down), what it publishes is accepted for as long as the shutdown waits for it.
///
/// ```
/// use async_trait::async_trait;
/// use ws_cluster::{ActionError, ActionHandler, Request};
///
/// struct Hello;
///
/// #[async_trait]
/// impl ActionHandler for Hello {
///     async fn handle(&self, request: Request<'_>) -> Result<(), ActionError> {
///         if request.details().is_empty() {
///             return Err(ActionError::bad_request("No hello message:("));
///         }
///         request.reply(request.details()).await // to every tab of this user, on every server
///     }
/// }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle actions",
    label = "is no `ActionHandler`",
    note = "implement `async fn handle(&self, request: Request<'_>) -> Result<(), ActionError>` under \
            `#[async_trait] impl ActionHandler for {Self}`"
)]
pub trait ActionHandler: Send + Sync + 'static {
    /// Handles one message of a client.
    async fn handle(&self, request: Request<'_>) -> Result<(), ActionError>;

    /// Whether guests may call it as well. Otherwise they are answered `[403, "Forbidden"]`.
    fn guests(&self) -> bool {
        false
    }
}

/// A client's message, and the connection it came on.
pub struct Request<'a> {
    pub(crate) server: &'a Server,
    pub(crate) client: &'a Arc<Client>,
    pub(crate) user: Option<&'a str>,
    pub(crate) session: Option<&'a str>,
    pub(crate) action: &'a str,
    pub(crate) details: &'a Details,
}

impl<'a> Request<'a> {
    /// The name of the action, 1 to 255 bytes.
    pub fn action(&self) -> &'a str {
        self.action
    }

    /// The arguments, as the text that the client sent: [`respond`](Self::respond), [`reply`](Self::reply) and
    /// [`publish`](Self::publish) pass them on unchanged. They read like a slice of [`Value`]s.
    pub fn details(&self) -> &'a Details {
        self.details
    }

    /// The argument at `index`, counted from 0, in a type of one's own, read from the text. An absent one reads as
    /// `null`, so that an `Option` may be left out. Of the wrong shape: a 400 that names the argument and says why.
    pub fn detail<T: Deserialize<'a>>(&self, index: usize) -> Result<T, ActionError> {
        self.details.detail(index).map_err(|error| {
            ActionError::bad_request(if index < self.details.len() {
                format!("detail {}: {error}", index + 1)
            } else {
                format!("detail {} is missing", index + 1)
            })
        })
    }

    /// In `Client/disconnection`: the code with which the connection was closed, by whichever side closed it first. 1005 if
    /// the client closed it without a code, and 1006 if it was lost without a close frame. `None` in every other action.
    /// The codes of this server are those of [`CloseCode`](crate::CloseCode).
    pub fn close_code(&self) -> Option<u16> {
        self.ended().then(|| self.details.detail(0).ok()).flatten()
    }

    /// In `Client/disconnection`: the reason that stands beside the code in the close frame, often empty. `None` in every
    /// other action.
    pub fn close_reason(&self) -> Option<String> {
        self.ended().then(|| self.details.detail(1).ok()).flatten()
    }

    fn ended(&self) -> bool {
        self.action == DISCONNECTION
    }

    /// All arguments, as a tuple or a list, read from the text. Of the wrong number or shape: a 400 that says why.
    ///
    /// ```
    /// # use ws_cluster::{ActionError, Request};
    /// # fn f(request: Request<'_>) -> Result<(), ActionError> {
    /// let (room, text): (u64, String) = request.parse()?;
    /// # Ok(()) }
    /// ```
    pub fn parse<T: Deserialize<'a>>(&self) -> Result<T, ActionError> {
        self.details.parse().map_err(|error| ActionError::bad_request(format!("details: {error}")))
    }

    /// The user, `None` for a guest.
    pub fn user(&self) -> Option<&'a str> {
        self.user
    }

    /// The session, where the authenticator named one.
    pub fn session(&self) -> Option<&'a str> {
        self.session
    }

    /// Whether the connection has no user.
    pub fn is_guest(&self) -> bool {
        self.user.is_none()
    }

    /// The connection, for [`Target::connection`] and [`Target::except_connection`].
    ///
    /// A client that comes back with its position keeps the id, on whichever node.
    pub fn connection(&self) -> ConnectionId {
        self.client.known_as()
    }

    /// The request with which the client came.
    pub fn handshake(&self) -> &'a Handshake {
        &self.client.handshake
    }

    /// The server, to publish or to close. A clone of it outlives the request.
    pub fn server(&self) -> &'a Server {
        self.server
    }

    /// The groups of the connection.
    pub fn groups(&self) -> BTreeSet<String> {
        self.client.membership().groups.iter().map(|group| String::from(&**group)).collect()
    }

    /// Whether the connection is in a group.
    pub fn in_group(&self, name: &str) -> bool {
        self.client.membership().groups.contains(name)
    }

    /// Puts the connection into a group: it gets what is delivered to the group from now on, for as long as it
    /// lives. Whether it was not in it before.
    ///
    /// A client that comes back with its position, in the same session, is in it again, on whichever node and without
    /// anybody being asked. It gets what it missed since it joined, and nothing older. The handler of
    /// `Client/authentication` runs before that: one that [leaves](Self::leave) the group there keeps what was missed from the
    /// client. The client carries the names of its groups and its properties for that, sealed, for as long as the log's age
    /// ([`LogConfig::age`](crate::LogConfig::age)): if they take more than about 1.3 KiB, its return is a new beginning
    /// (`reset`).
    ///
    /// The name is any text. Where clients choose it, give it a prefix, or they can join any group.
    pub fn join(&self, group: &str) -> bool {
        self.server.hub().join(self.client, group)
    }

    /// Takes the connection out of a group. Whether it was in it.
    ///
    /// What a client that keeps its position carried before is not valid any more, as soon as the other nodes have heard of
    /// it: they are told without waiting for it. In `Client/disconnection` it has no such effect.
    pub fn leave(&self, group: &str) -> bool {
        let left = self.server.hub().leave(self.client, group);
        self.server.resumption().revoke(self.client);
        left
    }

    /// A property of the connection.
    pub fn property(&self, name: &str) -> Option<Value> {
        self.client.membership().property(name).cloned()
    }

    /// Sets a property of the connection; `null` removes it. A [`Value`] keeps floating point numbers exactly, but not
    /// the order of members nor integers beyond 64 bits: pass those as text. A client that comes back has it again, as
    /// for [`join`](Self::join); for one that changed or was removed, the same holds as for [`leave`](Self::leave).
    pub fn set_property(&self, name: &str, value: impl Into<Value>) {
        self.server.hub().set_property(self.client, name, value.into());
        self.server.resumption().revoke(self.client);
    }

    /// Sends the action back to the user: to every tab, on every server, in the cluster's order. For a guest, to this
    /// connection only.
    ///
    /// Details are normalised: `null` is none, an array is one argument for each element, anything else is one
    /// argument. Errors are those of [`Server::publish`], with their code.
    pub async fn reply(&self, details: impl Into<Details> + Send) -> Result<(), ActionError> {
        match self.user {
            Some(user) => Ok(self.publish(self.action, details, Target::user(user)).await?),
            None => {
                self.respond(details);
                Ok(())
            }
        }
    }

    /// Sends the action back to this connection only, at once and without the cluster; at most once.
    pub fn respond(&self, details: impl Into<Details>) {
        self.server.resumption().tell_changes(self.client);
        self.client.send_details(self.action, &details.into());
    }

    /// Publishes a message, as [`Server::publish`] does.
    pub async fn publish(
        &self,
        action: &str,
        details: impl Into<Details> + Send,
        target: Target,
    ) -> Result<(), PublishError> {
        // Before its client can hear of what it asked for.
        self.server.resumption().tell_changes(self.client);
        self.server.publish(action, details, target).await
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Details are the client's own and may be secret.
        f.debug_struct("Request")
            .field("action", &self.action)
            .field("user", &self.user)
            .field("connection", &self.client.id)
            .finish_non_exhaustive()
    }
}
