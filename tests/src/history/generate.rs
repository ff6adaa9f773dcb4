//! Histories from a seed, as a cluster that keeps its promises makes them: with publishes that nobody answered, clients
//! that come and go, resets, and entries that a fault cut from the order and put elsewhere.

use std::borrow::Cow;

use super::{Kind, Record, SENTINEL};
use crate::random::Random;

/// How much there is of everything.
pub(super) struct Size {
    pub(super) publishers: u64,
    pub(super) users: u64,
    pub(super) clients: u64,
    pub(super) messages: u64,
    /// Of a hundred messages, how many a fault cut from the order, to stand elsewhere then.
    pub(super) cut: u64,
}

/// A message in its place.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) by: String,
    pub(super) number: u64,
    pub(super) to: String,
    begun: u64,
    accepted: bool,
    at: String,
    /// An earlier place that a fault cut, and until which index of the order it stood there for some.
    cut: Option<(String, usize)>,
}

/// A history in the making: the order, and what each client sees of it.
pub(super) struct Made {
    pub(super) order: Vec<Entry>,
    pub(super) records: Vec<Record<'static>>,
}

fn text(text: impl Into<String>) -> Cow<'static, str> {
    Cow::Owned(text.into())
}

/// Time between two entries, in microseconds: a history of a few hundred is longer than what a reset may cut.
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
        // Some publishes leave no trace at all.
        numbers[by] += 1 + u64::from(random.percent(2));
        let to = match random.below(10) {
            0..=4 => "all".to_owned(),
            5..=6 => "registered".to_owned(),
            _ => format!("user:u{}", random.below(size.users)),
        };
        // Where a fault cut it, some saw it a few places before.
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
    // Told before the message at its place is published.
    records.extend(open(order[place].begun - 1, Kind::New, 0, ""));
    // What it saw at a place that was cut does not come again.
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
            // On a node whose log is cut: it saw what stands elsewhere now, and then it is reset, within the connection
            // or on the next.
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
            let told = if skipped == 0 { next.begun - 1 } else { order[place].begun - 1 };
            let (kind, why) = (Kind::Reset, "the order was cut");
            if random.percent(50) {
                let why = Cow::Borrowed(why);
                records.push(Record::Position { t: told, client: client.clone(), kind, count: 0, why });
            } else {
                records.push(closed);
                records.extend(open(told, kind, 0, why));
            }
        }
    }
}
