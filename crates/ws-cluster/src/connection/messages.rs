//! The messages of a client: each is refused, or starts a handler or a question.

use super::{
    Application,
    auth::{AUTHENTICATION, DISCONNECTION, FORBIDDEN},
    context::Done,
    task::{Connection, FirstMessage},
    transport::Transport,
};
use crate::{
    CloseCode, RawMessage,
    hub::resume::JoinPhase,
    message::{
        client::{BadFrame, Dialect, Incoming},
        request_id::AwaitedAnswer,
    },
    ws::frame,
};

impl<T: Transport, A: Application> Connection<T, A> {
    pub(super) fn answer_raw(&self, answer: Option<RawMessage>) {
        if let Some(answer) = answer {
            self.client().send_frame(match &answer {
                RawMessage::Text(text) => frame::text(&[text.as_bytes()]),
                RawMessage::Binary(bytes) => frame::binary(bytes),
            });
        }
    }

    pub(super) fn bad_frame(&mut self, bad: BadFrame) {
        self.close_with(frame::close(CloseCode::Malformed, &bad.to_string()));
    }

    /// Sets the client's dialect at its first message.
    pub(super) fn decide_dialect(&mut self, dialect: Dialect) {
        if self.first_message != FirstMessage::Came {
            self.first_message = FirstMessage::Came;
            self.client().set_dialect(dialect);
        }
    }

    pub(super) fn handle(&mut self, incoming: Incoming) {
        let Incoming { dialect, action, details, id } = incoming;
        let is_fresh = self.first_message == FirstMessage::Soon;
        self.decide_dialect(dialect);
        if action == AUTHENTICATION {
            self.authenticate(details.values().to_vec(), is_fresh, AwaitedAnswer::new(id));
        } else if action == DISCONNECTION || action.starts_with("Server/") || action.ends_with(":error") {
            self.client().send_error(&action, 400, "this action is not for clients to send", id.as_ref());
        } else if matches!(self.join_phase, JoinPhase::Unauthenticated(_)) {
            self.client().send_error(&action, 403, FORBIDDEN, id.as_ref());
        } else if matches!(self.join_phase, JoinPhase::Undecided(_)) {
            // The client has chosen to join without authentication.
            self.join(None);
            if let JoinPhase::Resuming(resuming) = &mut self.join_phase {
                resuming.deferred = Some(Incoming { dialect, action, details, id });
            }
        } else {
            let awaited = AwaitedAnswer::new(id);
            match self.application.dispatch(self.client(), &action, details, awaited.clone()) {
                Ok(handled) => {
                    let client = self.client().clone();
                    self.work = Some(Box::pin(async move {
                        if let Err(error) = handled.await {
                            client.send_error(&action, error.code, &error.text, awaited.take());
                        }
                        Done::Handled
                    }));
                }
                Err(error) => self.client().send_error(&action, error.code, &error.text, awaited.take()),
            }
        }
    }
}
