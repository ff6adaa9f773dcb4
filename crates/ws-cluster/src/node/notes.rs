//! Notes: what nodes tell each other outside of the log. They use the existing links. Followers have a link to the
//! master only, so the master passes their notes on. Notes may be lost, and are dropped if a link or the receiver is
//! busy, so nothing may depend on them.

use bytes::Bytes;

use super::{
    codec::{Note, PacketPart},
    driver::Driver,
};
use ws_cluster_core::{FollowerStatus, LinkId, LogStatus, NodeId};

/// A note of another node.
pub(crate) struct Told {
    pub(crate) origin: NodeId,
    pub(crate) content: Bytes,
}

/// What is shown of the core. The driver renews it some times per second.
#[derive(Clone, Debug, Default)]
pub(crate) struct CoreView {
    pub(crate) followers: Vec<FollowerStatus>,
    pub(crate) log: LogStatus,
    /// The peers of the open links, and whether this node dialled them.
    pub(crate) links: Vec<(NodeId, bool)>,
    /// The number of publishes of this node whose outcome is open.
    #[cfg(feature = "metrics")]
    pub(crate) pending: usize,
}

impl Driver {
    /// Renews what is shown of the core.
    pub(super) fn show(&self) {
        let mut links: Vec<_> = self.links.values().map(|link| (link.peer, link.dialled)).collect();
        links.sort_unstable();
        *self.view.lock() = CoreView {
            followers: self.core.followers(),
            log: self.core.log_status(),
            links,
            #[cfg(feature = "metrics")]
            pending: self.waiting.len(),
        };
    }

    /// Sends a note of this node. A node without a link to the recipient leaves it to the nodes that it has links to.
    pub(super) fn tell(&self, note: &Note) {
        let direct = self.links.values().any(|link| *note.to == *link.peer.as_bytes());
        let links = self.links.values().filter(|link| !direct || *note.to == *link.peer.as_bytes());
        let note = PacketPart::note(note.clone());
        links.for_each(|link| link.sender.tell(note.clone()));
    }

    /// Takes a note that came over a link, and passes it on if it is for others as well. A note is passed on at most
    /// once, so that no note goes in a circle.
    pub(super) fn take_note(&self, over: LinkId, note: Note) {
        let me = self.shared.identity.node;
        let Ok(origin) = <[u8; 16]>::try_from(&*note.origin).map(NodeId::from_bytes) else { return };
        if origin == me {
            return;
        }
        let is_for = |node: NodeId| note.to.is_empty() || *note.to == *node.as_bytes();
        if !note.relayed && *note.to != *me.as_bytes() && self.status.borrow().master == Some(me) {
            let others =
                self.links.iter().filter(|(id, link)| **id != over && link.peer != origin && is_for(link.peer));
            let note = PacketPart::note(Note { relayed: true, ..note.clone() });
            others.for_each(|(_, link)| link.sender.tell(note.clone()));
        }
        if is_for(me) {
            // If the receiver is busy, the note is dropped.
            let _ = self.told.try_send(Told { origin, content: note.content });
        }
    }
}
