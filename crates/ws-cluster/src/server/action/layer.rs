//! Code around handlers.

use std::sync::Arc;

use async_trait::async_trait;

use super::{ActionHandler, Request};
use crate::{ActionError, server::States};

/// Code that runs around handlers: logging, authorisation, rate limits.
///
/// An async function or closure that takes a [`Request`] and [`Next`] is a layer. It answers the request itself, or
/// passes the request on:
///
/// ```
/// use ws_cluster::{ActionError, Next, Request};
///
/// async fn editors_only(request: Request, next: Next) -> Result<(), ActionError> {
///     if !request.in_group("editors") {
///         return Err(ActionError::forbidden("For editors only"));
///     }
///     next.run(request).await
/// }
///
/// # fn f(builder: ws_cluster::ServerBuilder) -> ws_cluster::ServerBuilder {
/// builder.layer_prefix("admin/", editors_only)
/// # }
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no layer",
    label = "does not implement `Layer`",
    note = "a layer is an `async fn(Request, Next) -> Result<(), ActionError>` whose future is `Send`, or a type that \
            implements `Layer`"
)]
pub trait Layer: Send + Sync + 'static {
    /// Handles a request, or passes it on with [`Next::run`].
    async fn handle(&self, request: Request, next: Next) -> Result<(), ActionError>;
}

#[async_trait]
impl<F, Fut> Layer for F
where
    F: Fn(Request, Next) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), ActionError>> + Send + 'static,
{
    async fn handle(&self, request: Request, next: Next) -> Result<(), ActionError> {
        self(request, next).await
    }
}

/// The layers inside of the running one, and the handler.
#[derive(Clone)]
pub struct Next {
    /// Outermost first.
    layers: Arc<[Arc<dyn Layer>]>,
    passed: usize,
    handler: Arc<dyn ActionHandler>,
}

impl Next {
    /// Calls the next layer, or the handler.
    ///
    /// # Errors
    /// The error with which to answer the action. If the handler succeeded, its answer has already been sent.
    pub async fn run(mut self, request: Request) -> Result<(), ActionError> {
        match self.layers.get(self.passed).cloned() {
            Some(layer) => {
                self.passed += 1;
                layer.handle(request, self).await
            }
            None => self.handler.handle(request).await,
        }
    }
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next").field("layers", &(self.layers.len() - self.passed)).finish_non_exhaustive()
    }
}

/// A handler with layers around it.
pub(in crate::server) struct Stack {
    /// Each with the prefix of the actions that it is for, outermost first.
    pub(in crate::server) layers: Arc<[(String, Arc<dyn Layer>)]>,
    pub(in crate::server) handler: Arc<dyn ActionHandler>,
}

#[async_trait]
impl ActionHandler for Stack {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        let around = self.layers.iter().filter(|(prefix, _)| request.action().starts_with(&**prefix));
        let layers = around.map(|(_, layer)| layer.clone()).collect();
        Next { layers, passed: 0, handler: self.handler.clone() }.run(request).await
    }

    fn guests(&self) -> bool {
        self.handler.guests()
    }

    fn missing_state(&self, states: &States) -> Option<&'static str> {
        self.handler.missing_state(states)
    }
}

/// A handler with a layer of its own. Made by [`IntoHandler::layer`](super::IntoHandler::layer).
pub struct Layered<H> {
    handler: Arc<H>,
    layers: Arc<[Arc<dyn Layer>]>,
}

impl<H: ActionHandler> Layered<H> {
    pub(super) fn new(handler: H, layer: impl Layer) -> Self {
        Self { handler: Arc::new(handler), layers: Arc::new([Arc::new(layer) as Arc<dyn Layer>]) }
    }
}

impl<H> std::fmt::Debug for Layered<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Layered")
    }
}

#[async_trait]
impl<H: ActionHandler> ActionHandler for Layered<H> {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        Next { layers: self.layers.clone(), passed: 0, handler: self.handler.clone() }.run(request).await
    }

    fn guests(&self) -> bool {
        self.handler.guests()
    }

    fn missing_state(&self, states: &States) -> Option<&'static str> {
        self.handler.missing_state(states)
    }
}
