//! Generates histories from a seed, as a cluster without defects produces them: with publishes without an answer,
//! clients that come and go, resets, and entries that a fault cut from the order and moved.

use std::borrow::Cow;

use super::{Kind, Record, SENTINEL};
use crate::random::Random;

/// The size of a history.
pub(super) struct Size {
    pub(super) publishers: u64,
    pub(super) users: u64,
    pub(super) clients: u64,
    pub(super) messages: u64,
    /// The percentage of messages that a fault cut from the order and moved.
    pub(super) cut: u64,
}

/// A message in the order.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) by: String,
    pub(super) number: u64,
    pub(super) to: String,
    begun: u64,
    accepted: bool,
    at: String,
    /// An earlier log position that a fault cut, and the index of the order up to which some nodes had it there.
    cut: Option<(String, usize)>,
}

/// A history that is being generated: the order, and what each client sees of it.
pub(super) struct Made {
    pub(super) order: Vec<Entry>,
    pub(super) records: Vec<Record<'static>>,
}

fn text(text: impl Into<String>) -> Cow<'static, str> {
    Cow::Owned(text.into())
}

/// Time between two entries, in microseconds. A history of a few hundred entries is longer than the part that a reset
/// may cut.
const STEP: u64 = 1_000_000;

pub(super) fn history(random: &mut Random, size: &Size) -> Made {
    let order = order(random, size);
    let mut records = Vec::new();
    for entry in &order {
        publish(random, entry, &mut records);
    }
    for number in 0..size.clients {
        client(random, size, &order, number, &mut records);
    }
    Made { order, records }
}

fn order(random: &mut Random, size: &Size) -> Vec<Entry> {
    let mut numbers = vec![0; size.publishers as usize];
    let mut order = Vec::new();
    for place in 0..size.messages {
        let by = random.index(numbers.len());
        // Some publishes leave no trace.
        numbers[by] += 1 + u64::from(random.percent(2));
        let to = match random.below(10) {
            0..=4 => "all".to_owned(),
            5..=6 => "registered".to_owned(),
            _ => format!("user:u{}", random.below(size.users)),
        };
        // Before a fault cut the message, some clients saw it a few log positions earlier.
        let early = 1 + random.below(5);
        let cut = (place > 10 && random.percent(size.cut)).then(|| (format!("old {place}"), (place - early) as usize));
        order.push(Entry {
            by: format!("p{by}"),
            number: numbers[by],
            to,
            begun: place * STEP + STEP,
            accepted: cut.is_none() && !random.percent(3),
            at: format!("at {place}"),
            cut,
        });
    }
    let end = size.messages * STEP + 10 * STEP;
    let to = "all".to_owned();
    order.push(Entry {
        by: SENTINEL.into(),
        number: 0,
        to,
        begun: end,
        accepted: true,
        at: "at end".into(),
        cut: None,
    });
    order
}

fn publish(random: &mut Random, entry: &Entry, records: &mut Vec<Record<'static>>) {
    let (by, number) = (text(&*entry.by), entry.number);
    let t = entry.begun;
    records.push(Record::Begun { t, by: by.clone(), number, to: text(&*entry.to) });
    records.push(Record::Tried { t, by: by.clone(), number, node: text(format!("node of {}", entry.by)) });
    if entry.accepted {
        records.push(Record::Accepted { t: t + STEP / 3, by, number });
    } else {
        if random.percent(50) {
            records.push(Record::Tried { t, by: by.clone(), number, node: text("another") });
        }
        records.push(Record::Refused { t: t + STEP / 3, by, number, why: text("no answer in time") });
    }
}

fn client(random: &mut Random, size: &Size, order: &[Entry], number: u64, records: &mut Vec<Record<'static>>) {
    let client = text(format!("c{number}"));
    let user = (!number.is_multiple_of(5)).then(|| format!("u{}", number % size.users));
    records.push(Record::Client { client: client.clone(), user: user.clone().map(Cow::Owned) });
    let meant = |to: &str| match to.strip_prefix("user:") {
        Some(other) => user.as_deref() == Some(other),
        None => to == "all" || user.is_some(),
    };
    let open = |t, kind, count, why: &'static str| {
        [
            Record::Open { t, client: client.clone(), node: text("n") },
            Record::Position { t, client: client.clone(), kind, count, why: Cow::Borrowed(why) },
        ]
    };
    let mut place = random.index(order.len() / 2);
    // The client is told its position before the next message is published.
    records.extend(open(order[place].begun - 1, Kind::New, 0, ""));
    // A message that the client saw at a cut log position does not come again.
    let mut early = Vec::new();
    while place < order.len() {
        let entry = &order[place];
        let t = entry.begun + STEP / 2;
        if meant(&entry.to) && !early.contains(&place) {
            let (by, at) = (text(&*entry.by), Some(text(&*entry.at)));
            records.push(Record::Message { t, client: client.clone(), by, number: entry.number, at });
        }
        place += 1;
        let Some(next) = order.get(place) else { break };
        let closed = Record::Closed { t: t + 1, client: client.clone(), code: 1006, reason: text("") };
        if random.percent(2) {
            records.push(closed);
            records.extend(open(t + 2, Kind::Recovered, 0, ""));
        } else if random.percent(1) {
            // The client is on a node whose log is cut. It has seen a message that has moved, and then it is reset,
            // within the connection or on the next.
            for (other, cut) in order.iter().enumerate().skip(place) {
                if cut.cut.as_ref().is_some_and(|(_, before)| *before <= place)
                    && meant(&cut.to)
                    && !early.contains(&other)
                {
                    let at = cut.cut.as_ref().map(|(at, _)| text(&**at));
                    let by = text(&*cut.by);
                    records.push(Record::Message { t, client: client.clone(), by, number: cut.number, at });
                    early.push(other);
                }
            }
            let skipped = random.index((order.len() - place).min(20));
            place += skipped;
            let told_at = if skipped == 0 { next.begun - 1 } else { order[place].begun - 1 };
            let (kind, why) = (Kind::Reset, "the order was cut");
            if random.percent(50) {
                let why = Cow::Borrowed(why);
                records.push(Record::Position { t: told_at, client: client.clone(), kind, count: 0, why });
            } else {
                records.push(closed);
                records.extend(open(told_at, kind, 0, why));
            }
        }
    }
}
