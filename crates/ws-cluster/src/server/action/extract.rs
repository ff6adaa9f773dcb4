//! The types that a handler can take as arguments.

use std::any::type_name;

use serde::de::DeserializeOwned;

use super::Request;
use crate::{ActionError, ConnectionId, RawDetails, Server, server::States};

/// A type that a handler can take as an argument.
///
/// Implement it for types of your own that are made from a request, such as a permission. The function may await, for
/// example a database:
///
/// ```
/// use ws_cluster::{ActionError, FromRequest, Request};
///
/// struct Editor;
///
/// impl FromRequest for Editor {
///     async fn from_request(request: &Request) -> Result<Self, ActionError> {
///         if request.in_group("editors") { Ok(Self) } else { Err(ActionError::forbidden("For editors only")) }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}` as an argument",
    label = "does not implement `FromRequest`",
    note = "a handler takes any of `Request`, `Details<T>` with a `T: DeserializeOwned`, `RawDetails`, `User`, \
            `Session`, `ConnectionId`, `Data<T>`, `State<T>`, `Server`, `Disconnection` and your own types that \
            implement `FromRequest`, and an `Option<T>` or `Result<T, ActionError>` of each"
)]
pub trait FromRequest: Sized + Send {
    /// Makes the argument.
    ///
    /// # Errors
    /// The error that the client gets. The handler is not called.
    fn from_request(request: &Request) -> impl Future<Output = Result<Self, ActionError>> + Send;

    /// Returns the name of the state that the argument needs and the server lacks.
    #[doc(hidden)]
    fn missing_state(states: &States) -> Option<&'static str> {
        let _ = states;
        None
    }
}

impl FromRequest for Request {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        Ok(request.clone())
    }
}

/// `None` if there is none, such as the [`User`] of a guest: the error's code is 401, 403, 404 or 409. Any other error,
/// such as 400 for malformed details, stays an error.
impl<T: FromRequest> FromRequest for Option<T> {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        match T::from_request(request).await {
            Ok(argument) => Ok(Some(argument)),
            Err(error) if matches!(error.code, 401 | 403 | 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn missing_state(states: &States) -> Option<&'static str> {
        T::missing_state(states)
    }
}

/// The error if the argument cannot be made, for a handler that answers it in its own way.
impl<T: FromRequest> FromRequest for Result<T, ActionError> {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        Ok(T::from_request(request).await)
    }

    fn missing_state(states: &States) -> Option<&'static str> {
        T::missing_state(states)
    }
}

impl FromRequest for RawDetails {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        Ok(request.details().clone())
    }
}

/// The details of the message as a type of your own: a tuple takes one argument for each element, a struct takes either
/// one object or one argument for each field, and any other type takes one argument.
///
/// If the details have another shape, the client gets a 400 with the reason, and the handler is not called.
///
/// ```
/// use ws_cluster::Details;
///
/// #[derive(serde::Deserialize)]
/// struct Move { card: u64, column: String }
///
/// // The client sends {"action": "card/move", "details": {"card": 7, "column": "done"}}.
/// async fn card_move(Details(Move { card, column }): Details<Move>) -> String {
///     format!("{card} is in {column}")
/// }
///
/// // The client sends {"action": "say", "details": ["lobby", "Good morning"]}.
/// async fn say(Details((room, text)): Details<(String, String)>) {}
/// # let _ = (card_move, say);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequest for Details<T> {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        request.parse().map(Self)
    }
}

/// The id of the user. A guest gets a 403. Take an `Option<User>` in a handler that is open to guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub String);

impl FromRequest for User {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        request.user().map(|user| Self(user.to_owned())).ok_or_else(|| ActionError::forbidden("Forbidden"))
    }
}

/// The id of the session. A connection without a session gets a 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session(pub String);

impl FromRequest for Session {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        request.session().map(|session| Self(session.to_owned())).ok_or_else(|| ActionError::forbidden("Forbidden"))
    }
}

impl FromRequest for ConnectionId {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        Ok(request.connection())
    }
}

impl FromRequest for Server {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        Ok(request.server().clone())
    }
}

/// A value that all handlers share, as given to [`ServerBuilder::state`](crate::ServerBuilder::state). If a handler
/// takes a state that was not given, the server does not start.
#[derive(Clone, Copy, Debug)]
pub struct State<T>(pub T);

impl<T: Clone + Send + Sync + 'static> FromRequest for State<T> {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        let state = request.server().state::<T>().map(Self);
        state.ok_or_else(|| ActionError::log_internal(format!("the server has no state `{}`", type_name::<T>())))
    }

    fn missing_state(states: &States) -> Option<&'static str> {
        states.get::<T>().is_none().then(type_name::<T>)
    }
}

/// A value of the connection, as set by [`Request::set_data`]. If the connection has no value of this type, the client
/// gets a 409. Take an `Option<Data<T>>` if that is not an error.
#[derive(Clone, Copy, Debug)]
pub struct Data<T>(pub T);

impl<T: Clone + Send + Sync + 'static> FromRequest for Data<T> {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        request.data().map(Self).ok_or_else(|| ActionError::conflict("This connection is not prepared for it"))
    }
}

/// The way in which a connection ended, for handlers of [`on_disconnect`](crate::ServerBuilder::on_disconnect).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disconnection {
    /// The code of the close frame, from whichever side closed first: 1005 if it had none, 1006 if the connection was
    /// lost without one. The codes of this server are in [`CloseCode`](crate::CloseCode).
    pub code: u16,
    /// The reason in the close frame, often empty.
    pub reason: String,
    /// True if the client has resumed on another connection of this node, and so is connected under the same id. The
    /// end of that connection is told as well. False if the client has resumed on another node.
    pub resumed: bool,
}

impl FromRequest for Disconnection {
    async fn from_request(request: &Request) -> Result<Self, ActionError> {
        let ended = (request.close_code(), request.close_reason(), request.has_resumed());
        let (Some(code), Some(reason), Some(resumed)) = ended else {
            return Err(ActionError::log_internal("a handler takes `Disconnection`, but its action is another one"));
        };
        Ok(Self { code, reason, resumed })
    }
}
