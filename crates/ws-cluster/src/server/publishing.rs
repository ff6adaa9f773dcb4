//! What an application sends into the cluster: messages, and commands about connections.

#[cfg(feature = "testing")]
use std::sync::Arc;

use super::Server;
use crate::{
    ConnectionId, Message, PublishError,
    hub::resume::unix_time,
    message::{
        client::OutgoingMessage,
        close::{Close, Subject},
        content::Content,
        groups::GroupChange,
    },
};

/// The messages that a server of the test kit publishes.
#[cfg(feature = "testing")]
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<parking_lot::Mutex<Vec<Message>>>);

#[cfg(feature = "testing")]
impl Recorder {
    fn note(&self, message: &Message) {
        self.0.lock().push(message.clone());
    }

    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Server {
    /// Publishes a message to the connections of its target on all nodes. `Ok` means that the message is accepted: it
    /// will be delivered even if this node dies now.
    ///
    /// Waits up to [`publish_timeout`](crate::ClusterConfig::publish_timeout) (5 s).
    ///
    /// If the returned future is dropped, the outcome is unknown, as with [`PublishError::OutcomeUnknown`]: the message may
    /// still be delivered. The same holds for every method here that publishes a message or a command.
    ///
    /// # Errors
    /// Each [`PublishError`] says whether the message may still be delivered.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        #[cfg(feature = "testing")]
        self.state::<Recorder>().into_iter().for_each(|recorder| recorder.note(&message));
        let (content, key) = message.encode()?;
        self.0.cluster.publish(&content, key).await
    }

    /// Publishes several messages together, and returns the outcome of each in their order. The messages keep their
    /// order among themselves. Errors are as for [`publish`](Self::publish); the other messages are published if one
    /// fails.
    ///
    /// This costs less than one publish after the other: the messages are proposed together, and a node that gets them
    /// together writes to each client once.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use ws_cluster::{MemoryPool, Message, Server, Target};
    /// # let server = Server::builder(MemoryPool::default()).start().await?;
    /// let news = (1..=3).map(|id| Ok(Message::new("news/new", id)?.to(Target::group("editors"))));
    /// let news: Vec<Message> = news.collect::<Result<_, ws_cluster::PublishError>>()?;
    /// let outcomes = server.publish_all(news).await;
    /// assert_eq!(outcomes, [Ok(()), Ok(()), Ok(())]);
    /// # Ok(()) }
    /// ```
    pub async fn publish_all(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<(), PublishError>> {
        self.publish_each(messages.into_iter().map(Ok)).await
    }

    /// Publishes the messages that could be read.
    pub(super) async fn publish_each(
        &self,
        messages: impl Iterator<Item = Result<Message, PublishError>>,
    ) -> Vec<Result<(), PublishError>> {
        let encoded = messages.map(|message| {
            #[cfg(feature = "testing")]
            self.state::<Recorder>().iter().zip(&message).for_each(|(recorder, message)| recorder.note(message));
            message.and_then(Message::encode)
        });
        let encoded: Vec<_> = encoded.collect();
        self.0.cluster.publish_all(encoded).await
    }

    /// Puts connections into groups and takes them out of groups, on all nodes, as [`GroupChange`] describes. The
    /// command has its place among the messages: a message to a group that is published after this method has returned
    /// reaches the connections that joined the group.
    ///
    /// `Ok` means that the command is accepted. The command concerns the connections that exist, as a handler's
    /// [`join`](crate::Request::join) and [`leave`](crate::Request::leave) do. A client that is away meanwhile and
    /// resumes is concerned as well. A new connection has the groups that the authenticator gives it. If the
    /// authenticator is being asked about a client of the user or session meanwhile, it is asked once more. A node of
    /// an older version does nothing.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), and [`PublishError::Invalid`] if the change names no group, too many groups,
    /// or a group twice.
    pub async fn change_groups(&self, change: GroupChange) -> Result<(), PublishError> {
        change.check()?;
        self.0.cluster.publish(&Content::Groups(change), None).await
    }

    /// Returns where the cluster's order stands, as a token for a page that is being rendered: the option `position` of
    /// the browser client. The client then gets what was published between the rendering and its connection, as far as
    /// it is for the client's user, session and groups.
    ///
    /// Take the position before you read what the page shows. A message may then be in the page and come as well, but
    /// none is left out. The token is valid for two minutes. After that the client is told `reset`, so the page must
    /// not be kept in a cache.
    ///
    /// Returns `None` if this node is not ready.
    pub fn position(&self) -> Option<String> {
        let at = self.hub().position();
        let ready = self.status().ready && at.seq > 0;
        ready.then(|| self.resumption().sealer.seal_page(at, unix_time())).flatten()
    }

    /// Closes every connection of a session on all nodes. The clients get `Server/close []`, are closed with 1000, and
    /// do not connect again by themselves. End the session itself first; otherwise a new connection of the session is
    /// let in.
    ///
    /// `Ok` means that the command is accepted. Each node closes the connections that the session has when the command
    /// is delivered. If the authenticator is being asked about a client of the session meanwhile, it is asked once
    /// more.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close_session(&self, id: &str) -> Result<(), PublishError> {
        self.close(Close::session(id)).await
    }

    /// Closes every connection of a user on all nodes, as [`close_session`](Self::close_session) does.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close_user(&self, id: &str) -> Result<(), PublishError> {
        self.close(Close::user(id)).await
    }

    /// Closes one connection, under the id that handlers know, as [`close_session`](Self::close_session) does. A node
    /// of an older version closes nothing.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close_connection(&self, id: ConnectionId) -> Result<(), PublishError> {
        self.close(Close::connection(id)).await
    }

    /// Closes the connections that [`Close`] describes, as [`close_session`](Self::close_session) does. For example, it
    /// closes all connections of a user except for those of one session, or lets the clients connect again at once to
    /// authenticate again. A node of an older version closes nothing if the command has one of these two options.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn close(&self, close: Close) -> Result<(), PublishError> {
        self.0.cluster.publish(&Content::Close(close), None).await
    }

    /// Asks the authenticator again about every connection of a session, on all nodes and at once. The groups and
    /// properties in its answer replace those of its earlier answer; changes by handlers stay. A connection whose
    /// session is no longer valid is closed with [`CloseCode::Expired`](crate::CloseCode::Expired), and so is one that
    /// was authenticated by credentials in a message: its client comes back and sends fresh ones. `Ok` means that the
    /// command is accepted. A node of an older version does nothing.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn refresh_session(&self, id: &str) -> Result<(), PublishError> {
        self.0.cluster.publish(&Content::Refresh(Subject::session(id)), None).await
    }

    /// Asks the authenticator again about every connection of a user, like [`refresh_session`](Self::refresh_session).
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn refresh_user(&self, id: &str) -> Result<(), PublishError> {
        self.0.cluster.publish(&Content::Refresh(Subject::user(id)), None).await
    }

    /// Delivers a message to the connections of this node only: at once, without the cluster, and at most once. It has
    /// no defined order relative to published messages. It is for messages that concern this node alone;
    /// [publish](Self::publish) all others.
    ///
    /// # Errors
    /// [`PublishError::Invalid`] and [`PublishError::TooLarge`], as for [`publish`](Self::publish).
    pub fn deliver(&self, message: Message) -> Result<(), PublishError> {
        let (content, _) = message.encode()?;
        if let Content::Message { target, action, details, volatile } = content {
            self.hub().message(&target, OutgoingMessage::new(&action, &details), volatile);
        }
        Ok(())
    }
}
