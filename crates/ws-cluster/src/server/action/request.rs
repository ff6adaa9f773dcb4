//! A client's message, as a handler gets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::handler::encode;
use crate::{
    ActionError, ConnectionId, Handshake, Message, PublishError, RawDetails, RequestId, Server, Target,
    connection::DISCONNECTION, hub::Client, message::request_id::AwaitedAnswer,
};

/// A client's message, and the connection on which it came.
///
/// Clones are cheap and are the same request. A clone may be moved into a task that outlives the handler.
#[derive(Clone)]
pub struct Request(Arc<Context>);

/// The contents of a request.
pub(in crate::server) struct Context {
    pub(in crate::server) server: Server,
    pub(in crate::server) client: Arc<Client>,
    pub(in crate::server) user: Option<Arc<str>>,
    pub(in crate::server) session: Option<Arc<str>>,
    pub(in crate::server) action: String,
    pub(in crate::server) details: RawDetails,
    pub(in crate::server) awaited: AwaitedAnswer,
}

impl Request {
    pub(in crate::server) fn new(context: Context) -> Self {
        Self(Arc::new(context))
    }

    /// Returns the name of the action, 1 to 255 bytes.
    pub fn action(&self) -> &str {
        &self.0.action
    }

    /// Returns the id of the message if the client waits for an answer.
    ///
    /// The client gets exactly one answer with this id: the first [`reply`](Self::reply), or the value that the handler
    /// returns, or its error. If the handler ends without any of them, the server sends an answer without arguments.
    /// Further replies, and an error after a reply, are ordinary messages. So a handler need not care whether there is
    /// an id.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.0.awaited.id()
    }

    /// Returns the arguments as the text that the client sent. [`reply`](Self::reply) and [`Message::new`] pass them on
    /// unchanged.
    pub fn details(&self) -> &RawDetails {
        &self.0.details
    }

    /// Returns the argument at `index`, counted from 0, as a type of your own. A missing argument reads as `null`, so
    /// an `Option` may be left out.
    ///
    /// # Errors
    /// A 400 that names the argument, if it has another shape.
    pub fn detail<'a, T: Deserialize<'a>>(&'a self, index: usize) -> Result<T, ActionError> {
        self.0.details.detail(index).map_err(|error| {
            ActionError::bad_request(if index < self.0.details.len() {
                format!("detail {}: {error}", index + 1)
            } else {
                format!("detail {} is missing", index + 1)
            })
        })
    }

    /// Returns all arguments as a type of your own: a tuple or a list has one element for each argument. If there is
    /// one argument, it may also be the whole value, such as an object for a struct.
    ///
    /// # Errors
    /// A 400 with the reason, if the details have another number or shape.
    ///
    /// ```
    /// # use ws_cluster::{ActionError, Request};
    /// # fn f(request: Request) -> Result<(), ActionError> {
    /// let (room, text): (u64, String) = request.parse()?;
    /// # Ok(()) }
    /// ```
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ActionError> {
        self.0.details.parse().map_err(|error| ActionError::bad_request(format!("details: {error}")))
    }

    /// Returns the code with which the connection was closed, by whichever side closed it first, in the handler of
    /// `Client/disconnection`. Returns `None` in every other handler. The code is 1005 if the client closed without a
    /// code, and 1006 if the connection was lost without a close frame. The codes of this server are in
    /// [`CloseCode`](crate::CloseCode).
    pub fn close_code(&self) -> Option<u16> {
        self.has_ended().then(|| self.0.details.detail(0).ok()).flatten()
    }

    /// Returns the reason in the close frame, which is often empty, in the handler of `Client/disconnection`. Returns
    /// `None` in every other handler.
    pub fn close_reason(&self) -> Option<String> {
        self.has_ended().then(|| self.0.details.detail(1).ok()).flatten()
    }

    /// Returns true if the client has resumed on another connection of this node, and so is connected under this id, in
    /// the handler of `Client/disconnection`. Returns `None` in every other handler. It is false if the client has
    /// resumed on another node, of which this node knows nothing: see
    /// [`on_disconnect`](crate::ServerBuilder::on_disconnect).
    pub fn has_resumed(&self) -> Option<bool> {
        self.has_ended().then(|| self.0.details.detail(2).ok()).flatten()
    }

    fn has_ended(&self) -> bool {
        self.0.action == DISCONNECTION
    }

    /// Returns the id of the user; `None` for a guest.
    pub fn user(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// Returns the id of the session, if the authenticator named one.
    pub fn session(&self) -> Option<&str> {
        self.0.session.as_deref()
    }

    /// Returns true if the connection has no user.
    pub fn is_guest(&self) -> bool {
        self.0.user.is_none()
    }

    /// Returns the id of the connection, for [`Target::connection`] and [`Message::except_connection`].
    ///
    /// A client that resumes keeps the id on any node.
    pub fn connection(&self) -> ConnectionId {
        self.0.client.known_as()
    }

    /// Returns the HTTP request with which the client connected.
    pub fn handshake(&self) -> &Handshake {
        &self.0.client.handshake
    }

    /// Returns the server, to publish or to close connections.
    pub fn server(&self) -> &Server {
        &self.0.server
    }

    /// Returns the groups of the connection.
    pub fn groups(&self) -> BTreeSet<String> {
        self.0.client.membership().groups.iter().map(|group| String::from(&**group)).collect()
    }

    /// Returns true if the connection is in the group `name`.
    pub fn in_group(&self, name: &str) -> bool {
        self.0.client.membership().groups.contains(name)
    }

    /// Puts the connection into a group. From now on the connection gets the messages to the group. Returns true if it
    /// was not in the group before.
    ///
    /// A client that resumes in the same session is in the group again, on any node and without a call of your code. It
    /// gets the messages to the group that it missed since it joined, and nothing older. The handler of
    /// `Client/authentication` runs before that. If this handler makes the connection [leave](Self::leave) the group,
    /// the client does not get what it missed in the group.
    ///
    /// The client keeps the names of its groups and its properties in its encrypted resume token, which is valid for
    /// about [`LogConfig::age`](crate::LogConfig::age). If they take more than about 1.3 KiB, the client is told
    /// `reset` when it comes back.
    ///
    /// The name is any text. If clients choose it, give it a prefix; otherwise they can join any group.
    pub fn join(&self, group: &str) -> bool {
        self.0.server.hub().join(&self.0.client, group)
    }

    /// Takes the connection out of a group. Returns true if it was in the group.
    ///
    /// This makes the client's earlier resume token invalid. The node tells the other nodes, but this method does not
    /// wait for them. In `Client/disconnection` the token stays valid.
    pub fn leave(&self, group: &str) -> bool {
        let left = self.0.server.hub().leave(&self.0.client, group);
        self.0.server.resumption().revoke(&self.0.client);
        left
    }

    /// Returns a property of the connection.
    pub fn property(&self, name: &str) -> Option<Value> {
        self.0.client.membership().property(name).cloned()
    }

    /// Returns the properties of the connection.
    pub fn properties(&self) -> BTreeMap<String, Value> {
        let membership = self.0.client.membership();
        membership.properties().map(|(name, value)| (String::from(&**name), value.clone())).collect()
    }

    /// Sets a property of the connection, which [`Target::property`] can match, to any serializable value. `null` and
    /// `None` remove it. The earlier value is not returned, because another task of the connection may change it
    /// meanwhile; [`property`](Self::property) reads it.
    ///
    /// A [`Value`] keeps floating point numbers exactly, but neither the order of members nor integers beyond 64 bits;
    /// pass those as text. A client that resumes has the property again, as for [`join`](Self::join). A change or
    /// removal makes the client's earlier resume token invalid, as for [`leave`](Self::leave).
    ///
    /// # Errors
    /// A 500 if the value cannot be written as JSON, such as a map whose keys are no text.
    pub fn set_property(&self, name: &str, value: impl Serialize) -> Result<(), ActionError> {
        let value = serde_json::to_value(value);
        let value = value.map_err(|error| ActionError::log_internal(format!("a property is no JSON: {error}")))?;
        self.0.server.hub().set_property(&self.0.client, name, value);
        self.0.server.resumption().revoke(&self.0.client);
        Ok(())
    }

    /// Sets properties, joins groups and leaves groups, in this order. The client's earlier resume token becomes
    /// invalid once and not with each change.
    #[cfg(feature = "backend")]
    pub(crate) fn change(&self, properties: Vec<(String, Value)>, join: &[String], leave: &[String]) {
        let (hub, client) = (self.0.server.hub(), &self.0.client);
        for (name, value) in properties {
            hub.set_property(client, &name, value);
        }
        for group in join {
            hub.join(client, group);
        }
        for group in leave {
            hub.leave(client, group);
        }
        self.0.server.resumption().revoke(client);
    }

    /// Returns the value of this type that [`set_data`](Self::set_data) attached to the connection.
    pub fn data<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.0.client.membership().data()
    }

    /// Attaches a value to the connection, one for each type, and returns the earlier one. The value stays in this
    /// process. A client that resumes comes back without it, so set it in `Client/authentication`
    /// ([`on_connect`](crate::ServerBuilder::on_connect)).
    pub fn set_data<T: Clone + Send + Sync + 'static>(&self, value: T) -> Option<T> {
        self.0.client.membership_lock().write().set_data(value)
    }

    /// Sends a message with the same action to the connection of this request: at once, without the cluster, and at
    /// most once.
    ///
    /// `null` and `()` become no argument, an array or a tuple becomes one argument for each element, and anything else
    /// becomes one argument.
    ///
    /// If the client waits for an answer, the first reply is that answer ([`request_id`](Self::request_id)). It has to
    /// come before the handler ends.
    ///
    /// # Errors
    /// A 500 if the value cannot be written as JSON, such as a map whose keys are no text.
    pub fn reply(&self, details: impl Serialize) -> Result<(), ActionError> {
        self.answer(&encode(&details)?);
        Ok(())
    }

    pub(in crate::server) fn answer(&self, details: &RawDetails) {
        self.send(details, self.0.awaited.take());
    }

    /// Gives the answer that the client waits for, unless the handler has.
    pub(in crate::server) fn finish(&self) {
        if let Some(id) = self.0.awaited.take() {
            self.send(&RawDetails::default(), Some(id));
        }
    }

    fn send(&self, details: &RawDetails, id: Option<&RequestId>) {
        self.0.server.resumption().send_new_token(&self.0.client);
        self.0.client.send_details(&self.0.action, details, id);
        self.0.server.hub().stats().metered.note(|counts| counts.replies.add(1));
    }

    /// Publishes a message of the same action to every connection of the user, on every node. For a guest it goes to
    /// this connection alone. The details are as for [`reply`](Self::reply). The message is not the answer that the
    /// client waits for ([`request_id`](Self::request_id)).
    ///
    /// # Errors
    /// As for [`Server::publish`], with the code of [`PublishError::status_code`].
    pub async fn reply_to_user(&self, details: impl Serialize + Send) -> Result<(), ActionError> {
        let details = encode(&details)?;
        match self.user() {
            Some(user) => Ok(self.publish(Message::raw(self.action(), details).to(Target::user(user))).await?),
            None => {
                self.send(&details, None);
                Ok(())
            }
        }
    }

    /// Publishes several messages together, as [`Server::publish_all`] does.
    pub async fn publish_all(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<(), PublishError>> {
        self.0.server.resumption().send_new_token(&self.0.client);
        self.0.server.publish_all(messages).await
    }

    /// Publishes a message, as [`Server::publish`] does.
    ///
    /// # Errors
    /// As for [`Server::publish`].
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        // Before its client can hear of what it asked for.
        self.0.server.resumption().send_new_token(&self.0.client);
        self.0.server.publish(message).await
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Details are the client's own and may be secret.
        f.debug_struct("Request")
            .field("action", &self.0.action)
            .field("user", &self.0.user)
            .field("connection", &self.0.client.id)
            .finish_non_exhaustive()
    }
}
