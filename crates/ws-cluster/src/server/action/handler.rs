//! Async functions as handlers.

use std::marker::PhantomData;

use async_trait::async_trait;
use serde::Serialize;

use super::{ActionHandler, FromRequest, Layer, Request, layer::Layered};
use crate::{
    ActionError, RawDetails,
    server::{States, builder::OWN_ACTIONS},
};

/// A handler for [`ServerBuilder::action`](crate::ServerBuilder::action): an async function, an async closure, or a
/// value whose type implements [`ActionHandler`].
///
/// The server makes the arguments of a function from the request ([`FromRequest`]). It sends the return value to the
/// connection as a message with the name of the action. The function returns any value that is [`Serialize`], or a
/// `Result` of such a value and an error that converts into [`ActionError`]. If the value is `()` or `None`, no answer
/// is sent, except to a client that waits for one ([`Request::request_id`]). The values of handlers of
/// [`on_connect`](crate::ServerBuilder::on_connect) and [`on_disconnect`](crate::ServerBuilder::on_disconnect) are
/// never sent.
///
/// ```
/// use ws_cluster::{ActionError, Details, Server, User};
///
/// async fn hello(User(user): User, Details(name): Details<String>) -> Result<String, ActionError> {
///     if name.is_empty() {
///         return Err(ActionError::bad_request("No hello message:("));
///     }
///     Ok(format!("{user} says hello to {name}"))
/// }
///
/// # fn f(builder: ws_cluster::ServerBuilder) -> ws_cluster::ServerBuilder {
/// builder
///     .action("hello", hello)
///     .action("sum", async |Details((a, b)): Details<(i64, i64)>| a + b)
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle an action",
    label = "is no handler",
    note = "a handler is an async function or closure of at most eight arguments that implement `FromRequest`, such as \
            `Request`, `Details<T>` and `User`; it returns a value that implements `Serialize`, or a `Result` of one \
            with an error that implements `Into<ActionError>`; its future must be `Send`",
    note = "a type can also implement `ActionHandler`"
)]
pub trait IntoHandler<M>: Sized {
    /// The type of the handler.
    type Handler: ActionHandler;

    /// Makes the handler.
    fn into_handler(self) -> Self::Handler;

    /// Opens the action to guests as well.
    fn with_guests(self) -> WithGuests<Self::Handler> {
        WithGuests(self.into_handler())
    }

    /// Puts a [`Layer`] around this handler alone. [`ServerBuilder::layer`](crate::ServerBuilder::layer) puts one
    /// around all handlers.
    fn layer(self, layer: impl Layer) -> Layered<Self::Handler> {
        Layered::new(self.into_handler(), layer)
    }
}

/// Marks values whose type implements [`ActionHandler`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Implemented;

impl<H: ActionHandler> IntoHandler<Implemented> for H {
    type Handler = H;

    fn into_handler(self) -> H {
        self
    }
}

/// A return value of a function, as an answer. `M` distinguishes a `Result` from any other value.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "it returns a value that implements `Serialize`, or a `Result` of one with an error that implements \
            `Into<ActionError>`"
)]
pub trait Answer<M> {
    /// Returns the details of the answer. Details without arguments are no answer.
    fn into_answer(self) -> Result<RawDetails, ActionError>;
}

/// Marks a `Result`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Fallible;

/// Marks any other value.
#[doc(hidden)]
#[derive(Debug)]
pub struct Infallible;

impl<T: Serialize, E: Into<ActionError>> Answer<Fallible> for Result<T, E> {
    fn into_answer(self) -> Result<RawDetails, ActionError> {
        encode(&self.map_err(Into::into)?)
    }
}

impl<T: Serialize> Answer<Infallible> for T {
    fn into_answer(self) -> Result<RawDetails, ActionError> {
        encode(&self)
    }
}

/// Encodes details of an answer.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<RawDetails, ActionError> {
    let details = RawDetails::from_serialize(value);
    details.map_err(|error| ActionError::log_internal(format!("an answer is no JSON: {error}")))
}

/// An async function as an [`ActionHandler`].
#[doc(hidden)]
pub struct Function<F, M> {
    function: F,
    marker: PhantomData<fn(M)>,
}

impl<F, M> std::fmt::Debug for Function<F, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Function")
    }
}

macro_rules! functions {
    ($(($($argument:ident)*))*) => {$(
        impl<F, Fut, K, $($argument,)*> IntoHandler<(K, $($argument,)*)> for F
        where
            F: Fn($($argument,)*) -> Fut + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: Answer<K>,
            K: 'static,
            $($argument: FromRequest + 'static,)*
        {
            type Handler = Function<F, (K, $($argument,)*)>;

            fn into_handler(self) -> Self::Handler {
                Function { function: self, marker: PhantomData }
            }
        }

        #[async_trait]
        impl<F, Fut, K, $($argument,)*> ActionHandler for Function<F, (K, $($argument,)*)>
        where
            F: Fn($($argument,)*) -> Fut + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: Answer<K>,
            K: 'static,
            $($argument: FromRequest + 'static,)*
        {
            async fn handle(&self, request: Request) -> Result<(), ActionError> {
                let called = (self.function)($($argument::from_request(&request).await?,)*);
                let answer = called.await.into_answer()?;
                // The server's own actions were not asked for by the client, so they get no answer.
                if !answer.is_empty() && !OWN_ACTIONS.contains(&request.action()) {
                    request.answer(&answer);
                }
                Ok(())
            }

            fn missing_state(&self, states: &States) -> Option<&'static str> {
                let _ = states;
                None$(.or_else(|| $argument::missing_state(states)))*
            }
        }
    )*};
}

functions! {
    ()
    (A1)
    (A1 A2)
    (A1 A2 A3)
    (A1 A2 A3 A4)
    (A1 A2 A3 A4 A5)
    (A1 A2 A3 A4 A5 A6)
    (A1 A2 A3 A4 A5 A6 A7)
    (A1 A2 A3 A4 A5 A6 A7 A8)
}

/// A handler that guests may call as well. Made by [`IntoHandler::with_guests`].
#[derive(Debug)]
pub struct WithGuests<H>(H);

#[async_trait]
impl<H: ActionHandler> ActionHandler for WithGuests<H> {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        self.0.handle(request).await
    }

    fn guests(&self) -> bool {
        true
    }

    fn missing_state(&self, states: &States) -> Option<&'static str> {
        self.0.missing_state(states)
    }
}
