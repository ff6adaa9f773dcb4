//! The story of a run in readable lines: elections, promises, joins, cuts and deliveries. It compares each core before
//! and after each of its steps. Scripts show the story as their transcript. A failed run is repeated to print it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::{
    Body, Core, Degraded, Entry, Frame, NodeId, Proposal, PublishId, Role, Seq, Term, follower::UpstreamPhase,
    master::MasterPhase,
};

/// The name of a node in a story: its letter, and the number of its life from the second one on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Name(pub(super) NodeId);

impl Name {
    /// Returns the id of a node in one of its lives. Its debug form is readable too: 0xa, 0xb and so on.
    pub(super) fn id(place: usize, life: u16) -> NodeId {
        let mut id = [0; 16];
        id[0] = 0x0a + place as u8;
        id[1..3].copy_from_slice(&life.to_be_bytes());
        NodeId::from_bytes(id)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_bytes();
        write!(f, "{}", char::from(b'a' + bytes[0] - 0x0a))?;
        let life = u16::from_be_bytes([bytes[1], bytes[2]]);
        if life > 1 { write!(f, "{life}") } else { Ok(()) }
    }
}

/// The name of a publish in a story: the publishing node and its publish counter.
pub struct PublishName(pub PublishId);

impl fmt::Display for PublishName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Name(self.0.origin), self.0.counter)
    }
}

/// One thing that happened. If several nodes do the same at the same time, they share a line.
struct Line {
    at: Duration,
    who: Vec<Name>,
    what: String,
    /// The publishes that it is about. A storm has too many of these lines.
    about: Vec<PublishId>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.at.as_secs_f64())?;
        let Some((last, rest)) = self.who.split_last() else { return write!(f, "  {}", self.what) };
        for (index, name) in rest.iter().enumerate() {
            write!(f, "{} {name}", if index == 0 { " " } else { "," })?;
        }
        match rest {
            [] => write!(f, "  {last} {}", self.what),
            _ => write!(f, " and {last} {}", self.what.replacen("delivers", "deliver", 1)),
        }
    }
}

#[derive(Default)]
pub(super) struct Story {
    lines: Vec<Line>,
    /// Each node after its last step.
    looks: Vec<Option<Look>>,
    /// What each node has proposed. Only the second time is part of the story.
    proposed: BTreeSet<(NodeId, PublishId)>,
    /// The texts of the messages that were delivered.
    texts: BTreeMap<PublishId, String>,
}

/// What the story compares of a node.
struct Look {
    node: NodeId,
    term: Term,
    master: Option<NodeId>,
    stance: Stance,
    /// The members that a master leads.
    members: BTreeSet<NodeId>,
    alone: bool,
    trouble: Option<Degraded>,
    base: Seq,
    log: Vec<(Seq, PublishId, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stance {
    Apart,
    Linked(UpstreamPhase),
    Collecting,
    Fetching(NodeId),
    Serving,
    Leaving,
}

impl Look {
    fn at(core: &Core) -> Self {
        let (stance, members) = match &core.role {
            Role::Follower(follower) if follower.upstream.link.is_none() => (Stance::Apart, BTreeSet::new()),
            Role::Follower(follower) => (Stance::Linked(follower.upstream.phase), BTreeSet::new()),
            Role::Master(master) => {
                let stance = match master.phase {
                    MasterPhase::Collecting { .. } => Stance::Collecting,
                    MasterPhase::Fetching { from, .. } => Stance::Fetching(from),
                    MasterPhase::Serving => Stance::Serving,
                    MasterPhase::HandedOver => Stance::Leaving,
                };
                let members = master.followers.iter().filter(|(_, follower)| follower.joined);
                (stance, members.map(|(&node, _)| node).collect())
            }
        };
        // Other lines say that a node has no master or is a lone master.
        let trouble = core.status().degraded.filter(|why| {
            use Degraded::{Isolated, PoolReadOnly, PoolSilent};
            matches!(why, Isolated | PoolReadOnly | PoolSilent)
        });
        let base = core.place_of_base();
        let entry = |entry: &Entry| (entry.seq, entry.proposal.id, text(&entry.proposal));
        Self {
            node: core.id(),
            term: core.term(),
            master: core.cx.master,
            stance,
            members,
            alone: core.believes_alone(),
            trouble,
            base,
            log: core.entries_after(base).map(entry).collect(),
        }
    }

    /// The node before its first step.
    fn unborn(core: &Core) -> Self {
        Self { term: 0, master: None, trouble: None, ..Self::at(core) }
    }
}

/// Returns the text of a message. A proposal whose key was known has no text.
fn text(proposal: &Proposal) -> String {
    match &proposal.content {
        // No publish is counted 0.
        None if proposal.id.counter == 0 => "the beginning".to_owned(),
        Some(content) => format!("{:?}", String::from_utf8_lossy(content).trim_end()),
        None => format!("{} (its key was there)", PublishName(proposal.id)),
    }
}

/// `one, two and three`.
pub(super) fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.split_last() {
        None => "nobody".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

impl Story {
    /// Adds something that happens to the world.
    pub(super) fn tell(&mut self, at: Duration, what: String) {
        self.lines.push(Line { at, who: Vec::new(), what, about: Vec::new() });
    }

    fn tell_of(&mut self, at: Duration, who: NodeId, what: String, about: Vec<PublishId>) {
        let who = Name(who);
        let together = self.lines.iter_mut().rev().take_while(|line| line.at == at);
        let together = together.filter(|_| what.starts_with("delivers")).find(|line| line.what == what);
        match together {
            Some(line) => line.who.push(who),
            None => self.lines.push(Line { at, who: vec![who], what, about }),
        }
    }

    /// Removes and returns the lines so far, with their times since `began`.
    pub(super) fn take(&mut self, began: Duration) -> Vec<String> {
        self.lines.drain(..).map(|line| Line { at: line.at.saturating_sub(began), ..line }.to_string()).collect()
    }

    /// Returns the lines that matter for the failure `wrong`: the last ones, those that are not about messages, and
    /// those about the messages that `wrong` names.
    pub(super) fn digest(&self, wrong: &str) -> Vec<String> {
        const LAST: usize = 40;
        let named = |id: &PublishId| {
            let name = PublishName(*id).to_string();
            wrong.split([' ', ',', ':']).any(|word| word == name)
        };
        let late = self.lines.len().saturating_sub(LAST);
        let lines = self.lines.iter().enumerate();
        let wanted = lines.filter(|(at, line)| *at >= late || line.about.is_empty() || line.about.iter().any(named));
        wanted.map(|(_, line)| line.to_string()).collect()
    }

    pub(super) fn delivers(
        &mut self,
        at: Duration,
        node: NodeId,
        seq: Seq,
        proposal: &Proposal,
        repeated: Option<PublishId>,
    ) {
        let again = match repeated {
            Some(known) if known == proposal.id => ", which its clients have",
            Some(_) => ", whose key its clients have seen",
            None => "",
        };
        let text = text(proposal);
        let what = format!("delivers {seq} {text}{again}");
        self.texts.insert(proposal.id, text);
        self.tell_of(at, node, what, vec![proposal.id]);
    }

    pub(super) fn accepts(&mut self, at: Duration, publish: PublishId) {
        let text = self.texts.get(&publish).cloned().unwrap_or_else(|| PublishName(publish).to_string());
        self.lines.push(Line { at, who: Vec::new(), what: format!("{text} is accepted"), about: vec![publish] });
    }

    pub(super) fn sends(&mut self, at: Duration, node: NodeId, peer: NodeId, frame: &Frame) {
        match &frame.body {
            Body::Promise => self.tell_of(at, node, format!("promises itself to {}", Name(peer)), Vec::new()),
            Body::Propose(proposals) => {
                let mut again = Vec::new();
                for proposal in proposals {
                    let known = proposal.id.origin != node || self.texts.contains_key(&proposal.id);
                    let first = self.proposed.insert((node, proposal.id));
                    again.extend((known || !first).then_some(proposal));
                }
                if !again.is_empty() {
                    let what = format!("proposes {} to {} again", list(again.iter().map(|one| text(one))), Name(peer));
                    self.tell_of(at, node, what, again.iter().map(|one| one.id).collect());
                }
            }
            _ => {}
        }
    }

    /// Adds what a step has changed in a core.
    pub(super) fn watch(&mut self, at: Duration, place: usize, core: &Core) {
        if self.looks.len() <= place {
            self.looks.resize_with(place + 1, || None);
        }
        let before = self.looks[place].take().filter(|look| look.node == core.id());
        let before = before.unwrap_or_else(|| Look::unborn(core));
        let after = Look::at(core);
        let me = after.node;
        for what in changes(&before, &after) {
            self.tell_of(at, me, what, Vec::new());
        }
        let kept = before.log.iter().filter(|old| old.0 > after.base && !after.log.contains(old));
        let (cut, texts): (Vec<PublishId>, Vec<String>) =
            kept.map(|(seq, publish, text)| (*publish, format!("{seq} {text}"))).unzip();
        if !cut.is_empty() {
            self.tell_of(at, me, format!("cuts {} from its log", list(texts)), cut);
        }
        if after.stance == Stance::Serving {
            let new = after.log.iter().filter(|new| before.log.last().is_none_or(|(last, ..)| new.0 > *last));
            for (seq, publish, text) in new.filter(|new| core.place(new.0).is_some_and(|(_, master, _)| master == me)) {
                self.tell_of(at, me, format!("puts {text} at {seq}"), vec![*publish]);
            }
        }
        self.looks[place] = Some(after);
    }
}

/// Returns the lines for the change of a node from `before` to `after`.
fn changes(before: &Look, after: &Look) -> Vec<String> {
    let mut told = Vec::new();
    let me = after.node;
    let master = after.master.map_or("nobody".to_owned(), |master| Name(master).to_string());
    if (before.term, before.master) != (after.term, after.master) && after.master.is_some_and(|master| master != me) {
        told.push(format!("follows {master} in term {}", after.term));
    } else if before.term != after.term && after.master.is_none() {
        told.push(format!("hears of term {}", after.term));
    }
    if before.stance != after.stance {
        match after.stance {
            Stance::Apart if matches!(before.stance, Stance::Linked(_)) && before.master == after.master => {
                told.push(format!("loses its link to {master}"));
            }
            Stance::Apart if matches!(before.stance, Stance::Collecting | Stance::Fetching(_) | Stance::Serving) => {
                told.push("is master no more".to_owned());
            }
            Stance::Linked(UpstreamPhase::Joined) => told.push(format!("joins {master}")),
            Stance::Collecting => told.push("waits for the logs of the others".to_owned()),
            Stance::Fetching(from) => told.push(format!("fetches the log of {}", Name(from))),
            Stance::Serving => told.push(format!("is master of term {}", after.term)),
            Stance::Apart | Stance::Linked(_) | Stance::Leaving => {}
        }
    }
    if before.stance == after.stance {
        told.extend(before.members.difference(&after.members).map(|&node| format!("loses {}", Name(node))));
    }
    match (before.alone, after.alone) {
        (false, true) => told.push("goes on alone".to_owned()),
        (true, false) if after.stance == Stance::Serving => told.push("is not alone any more".to_owned()),
        _ => {}
    }
    match (before.trouble, after.trouble) {
        (before, Some(why)) if before != Some(why) => told.push(format!("is degraded: {why}")),
        (Some(_), None) => told.push("hears from the database again".to_owned()),
        _ => {}
    }
    told
}
