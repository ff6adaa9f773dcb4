//! The queue of events: what happens to which node at which time. Also carries out the outputs of the cores.

use std::time::{Duration, Instant};

use super::{World, story::Name};
use crate::{Answer, Core, Frame, LinkId, NodeId, Output, PublishId, Query};

#[derive(Clone, Debug)]
pub(super) enum Happening {
    Tick,
    Dialled {
        by: usize,
        link: LinkId,
    },
    DialFailed {
        node: NodeId,
        refused: bool,
    },
    LinkUp {
        link: LinkId,
        peer: usize,
    },
    LinkDown {
        link: LinkId,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    Release {
        link: LinkId,
    },
    Answer(Answer),
    Query(Query),
    /// A query that takes effect after its node was told that it had failed.
    Statement(Query),
    Heartbeats,
}

/// Something that happens at a time, to one incarnation of the node at a place.
pub(super) struct Event {
    at: Duration,
    order: u64,
    place: usize,
    incarnation: NodeId,
    /// Boxed, because the queue moves its events.
    what: Box<Happening>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl World {
    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|event| event.at <= end) {
            let Some(Event { at, place, incarnation, what, .. }) = self.events.pop() else { break };
            self.now = self.now.max(at);
            self.checks.now = self.now;
            match *what {
                what if self.nodes[place].id == incarnation && self.nodes[place].core.is_some() => {
                    self.happen(place, what)
                }
                // The database carries out a query that was sent, even if its sender has ended.
                Happening::Query(query) | Happening::Statement(query) => _ = self.take_effect(incarnation, query),
                _ => {}
            }
        }
        self.now = end;
    }

    pub(super) fn delay(&mut self, from: u64, to: u64) -> Duration {
        if self.steady { Duration::from_millis(to.min(1)) } else { self.rng.millis(from, to) }
    }

    pub(super) fn local(&self, place: usize) -> Instant {
        let node = &self.nodes[place];
        let stands_still = node.sleeps_since.map_or(Duration::ZERO, |since| self.now - since);
        self.start + (self.now - node.slept - stands_still) * node.rate / 1000
    }

    pub(super) fn schedule(&mut self, after: Duration, place: usize, what: Happening) {
        self.order += 1;
        let incarnation = self.nodes[place].id;
        self.events.push(Event { at: self.now + after, order: self.order, place, incarnation, what: Box::new(what) });
    }

    pub(super) fn happen(&mut self, place: usize, what: Happening) {
        if self.nodes[place].paused {
            // The database carries out a query that was sent, even if its sender is stopped.
            return match what {
                Happening::Query(query) => self.query(place, query),
                Happening::Statement(query) => _ = self.take_effect(self.nodes[place].id, query),
                what => self.nodes[place].missed.push_back(what),
            };
        }
        let now = self.local(place);
        match what {
            Happening::Tick => {
                self.with_core(place, |core| core.handle_timeout(now));
                self.schedule(Duration::from_millis(100), place, Happening::Tick);
            }
            Happening::Heartbeats => {
                self.heartbeats(place);
                self.schedule(Duration::from_secs(1), place, Happening::Heartbeats);
            }
            Happening::Dialled { by, link } => self.dialled(place, by, link),
            Happening::LinkUp { link, peer } => {
                let id = self.nodes[peer].id;
                if self.nodes[place].ends.contains_key(&link) {
                    self.with_core(place, |core| core.handle_link_up(now, link, id, true));
                } else {
                    self.with_core(place, |core| core.handle_dial_failed(now, id, true));
                }
            }
            Happening::DialFailed { node, refused } => {
                self.with_core(place, |core| core.handle_dial_failed(now, node, refused));
            }
            Happening::LinkDown { link } => {
                if self.nodes[place].ends.remove(&link).is_some() {
                    self.with_core(place, |core| core.handle_link_down(now, link));
                }
            }
            Happening::Frame { link, frame } => self.frame_arrived(place, link, frame),
            Happening::Release { link } => self.release(place, link),
            Happening::Query(query) => self.query(place, query),
            Happening::Statement(query) => _ = self.take_effect(self.nodes[place].id, query),
            Happening::Answer(answer) => self.with_core(place, |core| core.handle_pool(now, answer)),
        }
    }

    pub(super) fn with_core(&mut self, place: usize, act: impl FnOnce(&mut Core)) {
        if let Some(core) = self.nodes[place].core.as_mut() {
            act(core);
            self.drain(place);
        }
    }

    pub(super) fn drain(&mut self, place: usize) {
        loop {
            let Some(core) = self.nodes[place].core.as_mut() else { return };
            let output = core.poll_output();
            if let Some(story) = &mut self.story {
                story.watch(self.now, place, core);
            }
            let Some(output) = output else { break };
            self.carry_out(place, output);
        }
        if let Some(clients) = &mut self.clients {
            clients.outputs_end(place);
        }
        let Some(core) = &self.nodes[place].core else { return };
        let others = self.nodes.iter().filter(|node| !node.paused).filter_map(|node| node.core.as_ref());
        if let Err(wrong) = self.checks.step(core).and_then(|()| self.checks.rules_out_rivals(core, others)) {
            self.fail(&wrong);
        }
    }

    pub(super) fn carry_out(&mut self, place: usize, output: Output) {
        if let Some(clients) = &mut self.clients {
            clients.output(place, &output);
        }
        match output {
            Output::Send { links, frame } => links.into_iter().for_each(|link| self.send(place, link, frame.clone())),
            Output::Dial { node, address } => self.dial(place, node, &address),
            Output::Hangup { link } => {
                if let Some(end) = self.nodes[place].ends.remove(&link) {
                    self.close_other_end(place, link, end.peer);
                }
            }
            Output::Query(query) => {
                let delay = self.delay(0, 5);
                self.schedule(delay, place, Happening::Query(query));
            }
            Output::Deliver { position: at, proposal, repeated } => {
                let Some(core) = &self.nodes[place].core else { return };
                if let Some(story) = &mut self.story {
                    story.delivers(self.now, core.id(), at.seq, &proposal, repeated);
                }
                if let Err(wrong) = self.checks.delivered(core, at.seq, &proposal, repeated) {
                    self.fail(&wrong);
                }
            }
            Output::Accepted { counter } => {
                let Some(core) = &self.nodes[place].core else { return };
                if let Some(story) = &mut self.story {
                    story.accepts(self.now, PublishId { origin: core.id(), counter });
                }
                if let Err(wrong) = self.checks.accepted(core, counter) {
                    self.fail(&wrong);
                }
            }
            Output::Restarted { missed: true, .. } => {
                let id = self.nodes[place].id;
                self.checks.reset(id);
                self.tell(|| format!("{} has missed entries: its clients are told so", Name(id)));
            }
            Output::CutOff => {
                let id = self.nodes[place].id;
                self.tell(|| format!("{} sends its clients elsewhere", Name(id)));
            }
            Output::Restarted { missed: false, .. }
            | Output::Cut { .. }
            | Output::Diverged { .. }
            | Output::Trimmed { .. } => {}
            Output::ShutDown => {
                let id = self.nodes[place].id;
                self.tables.remove(id);
                let Some(core) = self.nodes[place].core.take() else { return };
                self.tell(|| format!("{} has shut down", Name(id)));
                self.end_life(place, &core);
            }
        }
    }
}
