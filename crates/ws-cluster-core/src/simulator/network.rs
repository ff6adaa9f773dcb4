//! The network between the nodes: dials, links whose frames arrive late, in order or not at all, and the heartbeats
//! that show an end that the other end is gone.

use std::{collections::VecDeque, time::Duration};

use super::{Happening, World};
use crate::{Frame, LinkId, NodeId};

const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);

/// One end of a link, as the node there knows it.
pub(super) struct End {
    pub(super) peer: usize,
    heard: Duration,
    /// When the last frame that was sent to this end arrives. Frames arrive in their order.
    arrival: Duration,
    /// Frames that a cut holds back.
    held: VecDeque<Frame>,
}

impl World {
    /// From now on nothing passes in this direction.
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
        let (from, to) = (self.letter(from), self.letter(to));
        self.tell(|| format!("nothing passes from {from} to {to}"));
    }

    /// From now on only heartbeats pass in this direction: links stay open and are of no use.
    pub(super) fn stick(&mut self, from: usize, to: usize) {
        self.stuck.insert((from, to));
        let (from, to) = (self.letter(from), self.letter(to));
        self.tell(|| format!("only heartbeats pass from {from} to {to}"));
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to)) && !self.stuck.contains(&(from, to))
    }

    pub(super) fn cut_both(&mut self, one: usize, other: usize) {
        self.cuts.extend([(one, other), (other, one)]);
        let (one, other) = (self.letter(one), self.letter(other));
        self.tell(|| format!("nothing passes between {one} and {other}"));
    }

    pub(super) fn heal_cuts(&mut self) {
        self.cuts.clear();
        self.stuck.clear();
        self.tell(|| "the cuts heal".to_owned());
    }

    /// From now on every frame in this direction takes `delay` longer.
    pub(super) fn slow_down(&mut self, from: usize, to: usize, delay: Duration) {
        self.slow.insert((from, to), delay);
        let (from, to) = (self.letter(from), self.letter(to));
        self.tell(|| format!("what goes from {from} to {to} takes {} ms longer", delay.as_millis()));
    }

    pub(super) fn dial(&mut self, by: usize, node: NodeId, address: &str) {
        let Some(place) = self.nodes.iter().position(|one| one.address == address) else { return };
        let target = &self.nodes[place];
        let cut = self.cuts.contains(&(by, place)) || self.cuts.contains(&(place, by));
        if cut || target.paused {
            self.schedule(Duration::from_secs(2), by, Happening::DialFailed { node, refused: false });
        } else if target.core.is_none() || target.id != node {
            let delay = self.delay(0, 2);
            self.schedule(delay, by, Happening::DialFailed { node, refused: true });
        } else {
            self.links += 1;
            let link = self.links;
            let delay = self.delay(0, 3);
            self.schedule(delay, place, Happening::Dialled { by, link });
        }
    }

    /// A dial arrived. The link is open at this end at once, and at the other end after a delay.
    pub(super) fn dialled(&mut self, place: usize, by: usize, link: LinkId) {
        let (peer, now) = (self.nodes[by].id, self.local(place));
        if self.nodes[by].core.is_none() {
            return;
        }
        let delay = self.delay(0, 3);
        self.open_end(place, link, by, Duration::ZERO);
        self.open_end(by, link, place, delay);
        self.schedule(delay, by, Happening::LinkUp { link, peer: place });
        self.with_core(place, |core| core.handle_link_up(now, link, peer, false));
    }

    pub(super) fn send(&mut self, place: usize, link: LinkId, frame: Frame) {
        let Some(peer) = self.nodes[place].ends.get(&link).map(|end| end.peer) else { return };
        let mut delay = self.delay(0, 3);
        delay += self.slow.get(&(place, peer)).copied().unwrap_or_default();
        if let Some(story) = &mut self.story {
            story.sends(self.now, self.nodes[place].id, self.nodes[peer].id, &frame);
        }
        // Both ends know the link, so frames to the other end arrive in order.
        if let Some(end) = self.nodes[peer].ends.get_mut(&link) {
            let at = (self.now + delay).max(end.arrival);
            end.arrival = at;
            self.schedule(at - self.now, peer, Happening::Frame { link, frame });
        }
    }

    pub(super) fn frame_arrived(&mut self, place: usize, link: LinkId, frame: Frame) {
        let Some(end) = self.nodes[place].ends.get(&link) else { return };
        if end.held.is_empty() && self.passes(end.peer, place) {
            let now = self.local(place);
            return self.with_core(place, |core| core.handle_frame(now, link, frame));
        }
        // The frame waits in the network, in its order, until the cut heals or the link ends.
        if end.held.is_empty() {
            self.schedule(Duration::from_millis(50), place, Happening::Release { link });
        }
        self.nodes[place].ends.entry(link).and_modify(|end| end.held.push_back(frame));
    }

    /// Delivers the frames that a cut held back, if the cut has healed.
    pub(super) fn release(&mut self, place: usize, link: LinkId) {
        let now = self.local(place);
        let Some(peer) = self.nodes[place].ends.get(&link).map(|end| end.peer) else { return };
        if !self.passes(peer, place) {
            return self.schedule(Duration::from_millis(50), place, Happening::Release { link });
        }
        let Some(end) = self.nodes[place].ends.get_mut(&link) else { return };
        for frame in std::mem::take(&mut end.held) {
            self.with_core(place, |core| core.handle_frame(now, link, frame));
        }
    }

    /// Ends a link at this node and, after a delay, at the other.
    pub(super) fn hang_up(&mut self, place: usize, link: LinkId) {
        let Some(end) = self.nodes[place].ends.remove(&link) else { return };
        self.close_other_end(place, link, end.peer);
        let now = self.local(place);
        self.with_core(place, |core| core.handle_link_down(now, link));
    }

    fn open_end(&mut self, place: usize, link: LinkId, peer: usize, after: Duration) {
        self.nodes[place]
            .ends
            .insert(link, End { peer, heard: self.now, arrival: self.now + after, held: VecDeque::new() });
    }

    pub(super) fn close_other_end(&mut self, place: usize, link: LinkId, peer: usize) {
        // The end of a link does not pass through a cut. The other end notices it by the silence.
        if self.passes(place, peer) {
            let last = self.nodes[peer].ends.get(&link).map_or(self.now, |end| end.arrival.max(self.now));
            self.schedule(last - self.now, peer, Happening::LinkDown { link });
        }
    }

    /// Notes on which links a node has received heartbeats, and ends the links that were silent for too long.
    pub(super) fn heartbeats(&mut self, place: usize) {
        let links: Vec<(LinkId, usize)> = self.nodes[place].ends.iter().map(|(&link, end)| (link, end.peer)).collect();
        let mut dead = Vec::new();
        for (link, from) in links {
            let peer = &self.nodes[from];
            let speaks = peer.core.is_some() && !peer.paused && peer.ends.contains_key(&link);
            let heard = speaks && !self.cuts.contains(&(from, place));
            let now = self.now;
            let Some(end) = self.nodes[place].ends.get_mut(&link) else { continue };
            if heard {
                end.heard = now;
            } else if now - end.heard > HEARTBEAT_TIMEOUT {
                dead.push(link);
            }
        }
        dead.into_iter().for_each(|link| self.hang_up(place, link));
    }
}
