//! The entries of the log on their way to the clients of this node.

use std::iter::Peekable;

use bytes::Bytes;
use tracing::Span;

use super::{
    AUTHENTICATE_AGAIN, Hub, Member,
    fan_out::{FanOut, SharedMessages},
    index::Index,
};
use crate::{
    CloseCode,
    message::{
        client::OutgoingMessage,
        close::{Close, Subject},
        content::{Content, ContentError},
        target::Target,
    },
    node::{Delivery, DeliverySink},
    ws::deflate::MAX_TOGETHER,
};
use ws_cluster_core::{LogPosition, PublishId, Seq};

/// An entry of the log.
struct Entry {
    position: LogPosition,
    publish: PublishId,
    size: usize,
    repeated: Option<PublishId>,
    encoded: Option<Bytes>,
    /// From here to the send queues.
    span: Span,
}

/// What an entry tells the node.
enum Said {
    Message(Message),
    /// A command or, if the node cannot read the entry, nothing.
    Other(Option<Content>),
}

struct Message {
    target: Target,
    action: String,
    details: Bytes,
    volatile: bool,
}

impl Entry {
    fn read(delivery: Delivery) -> (Self, Said) {
        let Delivery { position, id: publish, size, repeated, content: encoded } = delivery;
        let (origin, counter, seq) = (publish.origin, publish.counter, position.seq);
        let span = tracing::debug_span!("deliver", ?origin, counter, term = position.term, seq);
        let content = span.in_scope(|| match Content::decode(encoded.clone()?) {
            Ok(content) => Some(content),
            Err(error @ ContentError::Unknown) => {
                // The entry is of a later version. This version cannot read it, but its log position counts.
                tracing::debug!(%error, seq, "an entry of a later version is skipped");
                None
            }
            Err(error) => {
                tracing::error!(%error, seq, "an entry cannot be delivered");
                None
            }
        });
        let said = match content {
            Some(Content::Message { target, action, details, volatile }) => {
                Said::Message(Message { target, action, details, volatile })
            }
            other => Said::Other(other),
        };
        (Self { position, publish, size, repeated, encoded, span }, said)
    }
}

impl Hub {
    /// Sends a message to the matching clients, outside of the cluster's order.
    pub(crate) fn message(&self, target: &Target, message: OutgoingMessage<'_>, volatile: bool) {
        let mut budget = MAX_TOGETHER;
        let (deliveries, bytes) = self.fan_out_to(&self.index.read(), target, &[message], 0, volatile, &mut budget);
        tracing::debug!(deliveries, bytes, "queued");
        self.write();
    }

    /// Delivers a message, and with it the messages after it that have the same recipients. At most `budget` bytes are
    /// compressed.
    fn deliver_messages(
        &self,
        first: (Entry, Message),
        rest: &mut Peekable<impl Iterator<Item = (Entry, Said)>>,
        budget: &mut usize,
    ) {
        let mut size = first.0.size;
        let mut group = vec![first];
        while let Some((entry, Said::Message(message))) = rest.next_if(|(entry, said)| {
            let (first, beginning) = &group[0];
            size += entry.size;
            // A repeated message has recipients of its own: those that have not had it.
            let repeats = entry.repeated.is_some() || first.repeated.is_some();
            !repeats && size <= self.max_batch_size && matches!(said, Said::Message(next) if next.goes_with(beginning))
        }) {
            group.push((entry, message));
        }
        let index = self.index.read();
        let mut min_entered = 0;
        {
            let mut log = self.replay_log.lock();
            for (entry, message) in &group {
                // Volatile messages are never replayed.
                let kept = entry.encoded.clone().filter(|_| !message.volatile);
                let kept = kept.map(|encoded| (&message.target, encoded));
                min_entered = log.append(entry.position, entry.publish, kept, entry.size, entry.repeated);
            }
        }
        let messages: Vec<_> = group.iter().map(|(entry, message)| message.outgoing(entry.position)).collect();
        let Message { target, volatile, .. } = &group[0].1;
        let (deliveries, bytes) = self.fan_out_to(&index, target, &messages, min_entered, *volatile, budget);
        let entries = group.len();
        for (entry, _) in &group {
            entry.span.in_scope(|| tracing::debug!(entries, deliveries, bytes, "queued"));
        }
    }

    /// Queues messages for every matching client whose entry number is at least `min_entered`. The fan-out writes them
    /// when it ends. Volatile messages are queued only for those that keep up. At most `budget` bytes are compressed.
    /// Returns the number of deliveries and of their bytes.
    fn fan_out_to(
        &self,
        index: &Index,
        target: &Target,
        messages: &[OutgoingMessage<'_>],
        min_entered: u64,
        volatile: bool,
        budget: &mut usize,
    ) -> (u64, u64) {
        let certain = target.selects_exactly();
        let mut fan_out = self.fan_out.lock();
        let mut shared = SharedMessages::new(messages, budget);
        let mut clients = 0;
        index.select(target, |client| {
            let meant = || certain || target.matches(&Member(client.id, &client.membership()));
            if client.entered() >= min_entered && meant() && (!volatile || client.queue.keeps_up()) {
                fan_out.add(client, &mut shared);
                clients += 1;
            }
        });
        let deliveries = clients * messages.len() as u64;
        self.stats.deliveries.add(deliveries);
        self.stats.metered.note(|counts| {
            counts.delivered_bytes.add(shared.bytes);
            counts.compressed.add(shared.compressed);
        });
        (deliveries, shared.bytes)
    }

    fn deliver_command(&self, entry: Entry, content: Option<Content>) {
        let Entry { position, publish, size, repeated, span, .. } = entry;
        let _span = span.entered();
        // A command concerns the clients that are connected when it comes, so a repeated command is ignored.
        let command = content.as_ref().and_then(Content::subject).filter(|_| repeated.is_none());
        // The callback is the application's code, so no lock is held.
        command.iter().for_each(|subject| (self.forget)(subject));
        if let Some(Content::Groups(change)) = &content {
            return self.regroup(change, position, publish, size, repeated);
        }
        let index = self.index.read();
        self.replay_log.lock().append(position, publish, None, size, repeated);
        if let Some(subject) = command {
            self.closes.note(subject.clone());
        }
        match &content {
            Some(Content::Close(close)) if command.is_some() => {
                index.of(&close.subject).for_each(|client| match close {
                    Close { reconnect: true, .. } => client.queue.close(CloseCode::Expired, AUTHENTICATE_AGAIN),
                    Close { subject: Subject::Session(_), .. } => client.dismiss("the session ended"),
                    Close { subject: Subject::User { .. } | Subject::Connection(_), .. } => {
                        client.dismiss("closed by the application");
                    }
                });
            }
            Some(Content::Refresh(subject)) if command.is_some() => {
                index.of(subject).for_each(|client| client.refresh());
            }
            Some(Content::TokenRevoked { connection, version }) => {
                self.replay_log.lock().revoke(*connection, *version, position.seq);
                // A client with a lower version resumed with an outdated token, on a second connection.
                index.known_as(*connection).filter(|client| client.membership().version() < *version).for_each(
                    |client| {
                        client.queue.close(CloseCode::TryAgainLater, "this client has resumed on another connection");
                    },
                );
            }
            _ => {}
        }
    }
}

impl Message {
    fn outgoing(&self, at: LogPosition) -> OutgoingMessage<'_> {
        OutgoingMessage::new(&self.action, &self.details).at(at.into())
    }

    /// Returns true if the message has the recipients of another one that is delivered right before it.
    fn goes_with(&self, other: &Self) -> bool {
        self.volatile == other.volatile && self.target == other.target
    }
}

impl DeliverySink for Hub {
    fn deliver(&self, deliveries: Vec<Delivery>) {
        self.stats.metered.note(|counts| counts.entries.add(deliveries.len() as u64));
        let (mut entries, mut budget) = (deliveries.into_iter().map(Entry::read).peekable(), MAX_TOGETHER);
        while let Some((entry, said)) = entries.next() {
            match said {
                Said::Message(message) => self.deliver_messages((entry, message), &mut entries, &mut budget),
                Said::Other(content) => self.deliver_command(entry, content),
            }
        }
    }

    fn trimmed(&self, base: Seq) {
        let _index = self.index.read();
        self.replay_log.lock().trim(base);
    }

    fn cut(&self, after: Seq) {
        self.cut_back(after);
    }

    fn restarted(&self, base: Option<LogPosition>, missed: bool) {
        self.reset_to(base, missed);
    }

    fn write(&self) {
        FanOut::write(&self.fan_out, self.runtime.as_ref(), &self.stats);
    }

    fn tick(&self) {
        self.forget_gone();
        self.wake_due();
        self.wake_waiting();
        self.send_positions();
    }

    fn cut_off(&self) {
        self.close_all(CloseCode::TryAgainLater, "this node lost its cluster");
    }
}
