//! Finds the defects in a history.

use std::collections::{HashMap, HashSet};

use super::{
    Defect, History, Report,
    load::{Audience, Id, Message, NOWHERE, Seen, Segment, Tried},
    order::Order,
};

/// Time before the end of a segment in which its messages may have been cut from the order, in microseconds. It is
/// longer than nodes can be apart without noticing, and than a client can be without its connection.
const CUT: u64 = 60_000_000;

impl History {
    /// Checks the history.
    pub fn check(&self) -> Report {
        Check { history: self, report: self.counts(), runs: Vec::new() }.run()
    }

    fn counts(&self) -> Report {
        let messages = self.messages.iter();
        Report {
            published: messages.clone().filter(|message| message.published.is_some()).count() as u64,
            accepted: messages.filter(|message| message.accepted.is_some()).count() as u64,
            refused: self.refused.clone(),
            observed: self.segments.iter().map(|segment| segment.seen.len() as u64).sum(),
            clients: self.clients.len() as u64,
            opened: self.opened,
            segments: self.segments.len() as u64,
            recovered: self.recovered.0,
            replayed: self.recovered.1,
            resets: self.resets.clone(),
            ..Report::default()
        }
    }

    fn client_and(&self, client: Id, message: Id) -> String {
        format!("{}: {}", self.client_name(client), self.message_name(message))
    }
}

/// The part of the order that a segment shows.
struct Run {
    messages: Vec<Id>,
    /// The messages that its client saw right before a reset, perhaps at a log position that is gone.
    loose: Vec<Id>,
}

struct Check<'a> {
    history: &'a History,
    report: Report,
    /// One run for each segment.
    runs: Vec<Run>,
}

impl Check<'_> {
    fn run(mut self) -> Report {
        let history = self.history;
        for (client, message) in &history.unpositioned {
            self.report.add(Defect::Unpositioned, history.client_and(*client, *message));
        }
        for (id, client) in history.clients.iter().enumerate().filter(|(_, client)| !client.ended) {
            let what = if client.user.is_some() { "a user's" } else { "a guest's" };
            self.report.add(Defect::NotEnded, format!("{} ({what})", history.client_name(id as Id)));
        }
        self.split();
        self.places();
        self.publishers();
        let order = self.order();
        let missed = self.gaps(&order);
        self.lost(&missed);
        self.repeats();
        self.report
    }

    /// Makes runs of the segments, without defective messages and without messages that may have been cut.
    fn split(&mut self) {
        let history = self.history;
        let firm = firm(&history.segments, history.messages.len());
        let mut had = vec![0; history.messages.len()];
        for (number, segment) in history.segments.iter().enumerate() {
            let mut seen = Vec::with_capacity(segment.seen.len());
            for one in &segment.seen {
                let message = &history.messages[one.message as usize];
                if message.published.is_none() {
                    self.report.add(Defect::Unpublished, history.client_and(segment.client, one.message));
                } else if !history.is_meant(one.message, segment.client) {
                    self.report.add(Defect::NotMeant, history.client_and(segment.client, one.message));
                } else if had[one.message as usize] == number + 1 {
                    self.report.add(Defect::Twice, history.client_and(segment.client, one.message));
                } else {
                    had[one.message as usize] = number + 1;
                    seen.push(*one);
                }
            }
            let kept = segment.ended.map_or(seen.len(), |ended| kept(&seen, &firm, ended));
            let message = |seen: &Seen| seen.message;
            let loose: Vec<Id> = seen[kept..].iter().map(message).collect();
            self.report.loose += loose.len() as u64;
            self.runs.push(Run { messages: seen[..kept].iter().map(message).collect(), loose });
        }
    }

    /// Checks that each message has one log position, and each log position one message.
    fn places(&mut self) {
        let history = self.history;
        let mut place = vec![NOWHERE; history.messages.len()];
        let mut holds = vec![None; history.places.len()];
        for (segment, run) in history.segments.iter().zip(&self.runs) {
            let loose: HashSet<Id> = run.loose.iter().copied().collect();
            for Seen { message, at, .. } in &segment.seen {
                if *at == NOWHERE || loose.contains(message) {
                    continue;
                }
                let known = std::mem::replace(&mut place[*message as usize], *at);
                let other = holds[*at as usize].replace(*message);
                if known != NOWHERE && known != *at {
                    let text = format!("{} at another log position", history.client_and(segment.client, *message));
                    self.report.add(Defect::Place, text);
                }
                if let Some(other) = other.filter(|other| other != message) {
                    let text = format!(
                        "{} at the log position of {}",
                        history.client_and(segment.client, *message),
                        history.message_name(other)
                    );
                    self.report.add(Defect::Place, text);
                }
            }
        }
    }

    /// Checks that the messages that one publisher published through one node come in that order.
    fn publishers(&mut self) {
        let history = self.history;
        let mut streams = HashMap::new();
        let stream: Vec<Option<usize>> = history
            .messages
            .iter()
            .map(|message| match message.tried {
                Tried::One(node) => {
                    let next = streams.len();
                    Some(*streams.entry((message.by, node)).or_insert(next))
                }
                _ => None,
            })
            .collect();
        let mut last = vec![(0, 0); streams.len()];
        for (number, (segment, run)) in history.segments.iter().zip(&self.runs).enumerate() {
            for message in run.messages.iter().chain(&run.loose) {
                let Some(stream) = stream[*message as usize] else { continue };
                let (of, before) = last[stream];
                let ours = history.messages[*message as usize].number;
                if of == number + 1 && ours < before {
                    let text = format!("{} after number {before}", history.client_and(segment.client, *message));
                    self.report.add(Defect::PublisherDisorder, text);
                } else {
                    last[stream] = (number + 1, ours);
                }
            }
        }
    }

    /// Returns the order of all runs. If they contradict each other, reports a circle and the clients that saw each
    /// part of it.
    fn order(&mut self) -> Order {
        let history = self.history;
        let mut time = vec![u64::MAX; history.messages.len()];
        for seen in history.segments.iter().flat_map(|segment| &segment.seen) {
            let first = &mut time[seen.message as usize];
            *first = seen.t.min(*first);
        }
        let order = Order::of(self.runs.iter().map(|run| &run.messages[..]), history.messages.len(), &time);
        for knot in &order.knots {
            let circle = order.circle(knot);
            let mut text = format!("{} messages before one another:", knot.len());
            for (at, message) in circle.iter().enumerate() {
                let next = circle[(at + 1) % circle.len()];
                let saw = |run: &Run| run.messages.windows(2).any(|pair| pair == [*message, next]);
                let witness = self.runs.iter().position(saw).map(|run| history.segments[run].client);
                let witness = witness.map_or("?", |client| history.client_name(client));
                text.push_str(&format!(
                    " {} before {} ({witness});",
                    history.message_name(*message),
                    history.message_name(next)
                ));
            }
            self.report.add(Defect::Disorder, text);
        }
        order
    }

    /// Checks that each run contains everything that was meant for its client between its first and its last message.
    fn gaps(&mut self, order: &Order) -> HashSet<(Id, Id)> {
        let history = self.history;
        // The ranks of the messages for all, for the registered, and for each user.
        let mut meant = vec![Vec::new(); 2 + history.users.len()];
        for (rank, message) in order.line.iter().enumerate() {
            if let Some(published) = &history.messages[*message as usize].published {
                meant[class(published.to)].push(rank as u32);
            }
        }
        let within = |class: usize, first: u32, last: u32| {
            let ranks: &Vec<u32> = &meant[class];
            ranks.partition_point(|rank| *rank <= last) - ranks.partition_point(|rank| *rank < first)
        };
        let mut missed = HashSet::new();
        let mut found = Vec::new();
        let mut excused = vec![HashSet::new(); history.clients.len()];
        for (segment, run) in history.segments.iter().zip(&self.runs) {
            let excused = &mut excused[segment.client as usize];
            let before = excused.clone();
            excused.extend(run.loose.iter().copied());
            let ends = run.messages.first().zip(run.messages.last());
            let Some((first, last)) = ends.and_then(|(first, last)| order.rank(*first).zip(order.rank(*last))) else {
                continue;
            };
            // In a knot, first and last have no meaning.
            if first > last {
                continue;
            }
            let classes =
                history.clients[segment.client as usize].user.map_or(vec![0], |user| vec![0, 1, class_of(user)]);
            let expected: usize = classes.into_iter().map(|class| within(class, first, last)).sum();
            if expected == run.messages.len() {
                continue;
            }
            let has: HashSet<Id> = run.messages.iter().copied().collect();
            for message in order.between(first, last) {
                if history.is_meant(message, segment.client)
                    && !has.contains(&message)
                    && !order.is_knotted(message)
                    // The client does not get that message twice.
                    && !before.contains(&message)
                {
                    missed.insert((segment.client, message));
                    found.push((segment.client, message));
                }
            }
        }
        for (client, message) in found {
            let accepted = history.messages[message as usize].accepted.is_some();
            let defect = if accepted { Defect::Lost } else { Defect::Missed };
            self.report.add(defect, format!("{}, which others saw", history.client_and(client, message)));
        }
        missed
    }

    /// Checks that every accepted message reached each client whose segment began before it and continued after it.
    fn lost(&mut self, missed: &HashSet<(Id, Id)>) {
        let history = self.history;
        let mut accepted: Vec<(u64, u64, Id)> = (history.messages.iter().enumerate())
            .filter_map(|(id, message)| Some((message.published?.begun, message.accepted?, id as Id)))
            .collect();
        accepted.sort_unstable();
        let mut found = Vec::new();
        let mut has = vec![0; history.messages.len()];
        let mut excused = vec![HashSet::new(); history.clients.len()];
        for (number, (segment, run)) in history.segments.iter().zip(&self.runs).enumerate() {
            run.messages.iter().chain(&run.loose).for_each(|message| has[*message as usize] = number + 1);
            let end = self.reached(segment, run);
            let excused = &mut excused[segment.client as usize];
            let from = accepted.partition_point(|(begun, ..)| *begun <= segment.begun);
            for (_, at, message) in accepted[from..].iter().take_while(|(begun, ..)| *begun < end) {
                if *at < end
                    && has[*message as usize] != number + 1
                    && history.is_meant(*message, segment.client)
                    && !excused.contains(message)
                    && !missed.contains(&(segment.client, *message))
                {
                    found.push((segment.client, *message));
                }
            }
            excused.extend(run.loose.iter().copied());
        }
        for (client, message) in found {
            self.report.add(Defect::Lost, history.client_and(client, message));
        }
    }

    /// Returns the latest time of which it is known that a run contains everything that was accepted before it.
    fn reached(&self, segment: &Segment, run: &Run) -> u64 {
        let begun = |message: &Id| self.history.messages[*message as usize].published.map(|published| published.begun);
        let last = run.messages.iter().filter_map(begun).max().unwrap_or(0);
        let ended = segment.ended.is_none() && self.history.clients[segment.client as usize].ended;
        // Only the end of the whole history is certain to be after everything: messages that two nodes held may come
        // late if these are apart.
        if ended { last } else { last.saturating_sub(CUT) }
    }

    /// Counts messages that clients saw again after a reset, and messages that were delivered without being accepted.
    fn repeats(&mut self) {
        let history = self.history;
        let mut by_client = vec![Vec::new(); history.clients.len()];
        for (number, segment) in history.segments.iter().enumerate() {
            by_client[segment.client as usize].push(number);
        }
        // The last client that had the message, counted from 1.
        let mut had = vec![0; history.messages.len()];
        for (client, segments) in by_client.iter().enumerate() {
            for message in segments
                .iter()
                .flat_map(|segment| self.runs[*segment].messages.iter().chain(&self.runs[*segment].loose))
            {
                let last = std::mem::replace(&mut had[*message as usize], client + 1);
                self.report.again += u64::from(last == client + 1);
            }
        }
        let unclear = |(id, message): (usize, &Message)| had[id] > 0 && message.accepted.is_none();
        self.report.unclear = history.messages.iter().enumerate().filter(|one| unclear(*one)).count() as u64;
    }
}

/// Returns the log positions of the messages that are certainly in the final order: those in a segment that continues
/// to the end, and in any other segment all before one of these. Only the end of an order is cut.
fn firm(segments: &[Segment], messages: usize) -> Vec<Option<Id>> {
    let mut firm = vec![None; messages];
    let mut unclear: Vec<(&Segment, usize)> = Vec::new();
    for segment in segments {
        match segment.ended {
            None => segment.seen.iter().for_each(|seen| firm[seen.message as usize] = Some(seen.at)),
            Some(_) => unclear.push((segment, 0)),
        }
    }
    // The segments that ended last have most in common with those that are clear.
    unclear.sort_by_key(|(segment, _)| std::cmp::Reverse(segment.ended));
    let mut goes_on = true;
    while std::mem::take(&mut goes_on) {
        for (segment, known) in &mut unclear {
            let rest = &segment.seen[*known..];
            let Some(last) = rest.iter().rposition(|seen| firm[seen.message as usize] == Some(seen.at)) else {
                continue;
            };
            for seen in &rest[..=last] {
                // A second log position of the same message is reported later.
                firm[seen.message as usize].get_or_insert(seen.at);
            }
            *known += last + 1;
            goes_on = true;
        }
    }
    firm
}

/// Returns how many of a segment's messages were certainly not cut: those up to the last one whose log position other
/// segments confirm, and all that are too old.
fn kept(seen: &[Seen], firm: &[Option<Id>], ended: u64) -> usize {
    let known = seen.iter().rposition(|seen| firm[seen.message as usize] == Some(seen.at)).map_or(0, |last| last + 1);
    let old = seen.partition_point(|seen| seen.t.saturating_add(CUT) < ended);
    known.max(old)
}

fn class(to: Audience) -> usize {
    match to {
        Audience::All => 0,
        Audience::Registered => 1,
        Audience::User(user) => class_of(user),
    }
}

fn class_of(user: Id) -> usize {
    2 + user as usize
}
