//! Carries out the commands of the site to change the groups of connections.

use std::sync::Arc;

use super::{Client, Hub, index::Index};
use crate::message::{close::Subject, groups::GroupChange};
use ws_cluster_core::{LogPosition, PublishId, Seq};

impl Hub {
    /// Changes the groups of the connections that a command concerns, and notes the command for clients that come back
    /// with an older resume token. The write lock keeps the command's place: handlers and deliveries come before or
    /// after it. `repeated`: the command was delivered before, at a log position that was cut. It concerns only clients
    /// that came later.
    pub(super) fn regroup(
        &self,
        change: &GroupChange,
        log_position: LogPosition,
        publish: PublishId,
        size: usize,
        repeated: Option<PublishId>,
    ) {
        let mut index = self.index.write();
        if repeated.is_none() {
            self.closes.note(change.subject.clone());
        }
        let min_entered = self.replay_log.lock().first_entry(repeated);
        let concerned: Vec<_> =
            index.of(&change.subject).filter(|client| client.entered() >= min_entered).cloned().collect();
        for client in concerned {
            change_groups(&mut index, &client, change, log_position.seq);
        }
        // The memberships come first. So a resume token that is sealed meanwhile has the change, or is from before the
        // command, and the command is carried out when the client comes back.
        let mut log = self.replay_log.lock();
        log.append(log_position, publish, None, size, repeated);
        log.note_groups(log_position.seq, change);
    }

    /// Returns the subjects of commands that concern a client.
    pub(super) fn subjects_of(client: &Client) -> Vec<Subject> {
        let membership = client.membership();
        let user = membership.user.iter().map(|id| Subject::user(&**id));
        let session = membership.session.iter().map(|id| Subject::session(&**id));
        let id = Subject::Connection(membership.former().unwrap_or(client.id));
        user.chain(session).chain([id]).collect()
    }
}

fn change_groups(index: &mut Index, client: &Arc<Client>, change: &GroupChange, seq: Seq) {
    let mut own = client.membership_lock().write();
    let delivers = client.is_joined();
    let local = client.id.local;
    if delivers {
        index.remove(local, &own);
    }
    // The connection's older messages to the group are not replayed to a client that tracks its position.
    own.regroup(change, (client.keeps_position() || !delivers).then_some(seq));
    if delivers {
        index.add(client, &mut own);
    }
    drop(own);
    if client.keeps_position() {
        // The connection's task sends the new resume token.
        client.queue.wake_for_timer();
    }
}
