//! Converts records to numbers: messages, clients, and the segments of what each client saw.

use std::{
    collections::{BTreeMap, HashMap},
    io::BufRead,
};

use super::{Kind, Record, SENTINEL};

/// The number of a thing: the index of its name, or of itself, in its list.
pub(super) type Id = u32;

/// The log position of a message that came without one.
pub(super) const NOWHERE: Id = Id::MAX;

/// A history, in the form in which it is checked.
#[derive(Debug, Default)]
pub struct History {
    pub(super) publishers: Names,
    pub(super) users: Names,
    pub(super) nodes: Names,
    pub(super) places: Names,
    pub(super) messages: Vec<Message>,
    known: HashMap<(Id, u64), Id>,
    names: Names,
    pub(super) clients: Vec<Client>,
    pub(super) segments: Vec<Segment>,
    /// Messages that came before the client was told its position on that connection.
    pub(super) unpositioned: Vec<(Id, Id)>,
    /// The number of recoveries of clients, and of messages that were replayed to them.
    pub(super) recovered: (u64, u64),
    /// Resets by their reason.
    pub(super) resets: BTreeMap<String, u64>,
    pub(super) opened: u64,
    pub(super) refused: BTreeMap<String, u64>,
}

/// The reason why a history cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    Io(std::io::Error),
    /// A line is no record.
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The mistake.
        why: String,
    },
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Line { line, why } => write!(f, "line {line}: {why}"),
        }
    }
}

impl std::error::Error for LoadError {}

/// A message that was published, or only seen.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) by: Id,
    pub(super) number: u64,
    /// `None` if the message was not published.
    pub(super) published: Option<Published>,
    pub(super) accepted: Option<u64>,
    pub(super) tried: Tried,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) begun: u64,
    pub(super) to: Audience,
}

/// The nodes that were asked to publish a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tried {
    #[default]
    Unknown,
    One(Id),
    Several,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    All,
    Registered,
    User(Id),
}

impl Audience {
    /// Returns true if the message is for a client with this user.
    pub(super) fn includes(self, user: Option<Id>) -> bool {
        match self {
            Self::All => true,
            Self::Registered => user.is_some(),
            Self::User(id) => user == Some(id),
        }
    }
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) user: Option<Id>,
    /// The segment of the client at present.
    segment: Option<usize>,
    /// True if the client was told its position on the present connection.
    positioned: bool,
    closed: u64,
    pub(super) ended: bool,
}

/// What a client saw from a `new` or `reset` to the next.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) client: Id,
    /// The time at which the client was told that it begins.
    pub(super) begun: u64,
    pub(super) seen: Vec<Seen>,
    /// The time of the segment's end: the loss of the connection after which the client did not resume, or a reset
    /// within a connection. `None` if the segment lasts to the end of the history.
    pub(super) ended: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) message: Id,
    pub(super) at: Id,
    pub(super) t: u64,
}

impl History {
    /// Reads records, one per line.
    ///
    /// # Errors
    /// Fails if a line is no record. All lines before it are added.
    pub fn read(&mut self, lines: impl BufRead) -> Result<(), LoadError> {
        let mut lines = lines;
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            if lines.read_line(&mut text).map_err(LoadError::Io)? == 0 {
                break;
            }
            let record: Record<'_> =
                serde_json::from_str(&text).map_err(|error| LoadError::Line { line, why: error.to_string() })?;
            self.add(&record).map_err(|why| LoadError::Line { line, why })?;
        }
        Ok(())
    }

    /// Adds one record.
    ///
    /// # Errors
    /// Fails with the reason if the record makes no sense.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), String> {
        match record {
            Record::Begun { t, by, number, to } => {
                let to = self.audience(to)?;
                let id = self.message(by, *number);
                let message = &mut self.messages[id as usize];
                if message.published.replace(Published { begun: *t, to }).is_some() {
                    return Err(format!("{by} published number {number} already"));
                }
            }
            Record::Tried { by, number, node, .. } => {
                let node = self.nodes.id(node);
                let id = self.message(by, *number);
                let tried = &mut self.messages[id as usize].tried;
                *tried = match *tried {
                    Tried::Unknown => Tried::One(node),
                    Tried::One(other) if other == node => Tried::One(node),
                    _ => Tried::Several,
                };
            }
            Record::Accepted { t, by, number } => {
                let id = self.message(by, *number);
                self.messages[id as usize].accepted = Some(*t);
            }
            Record::Refused { why, .. } => count(&mut self.refused, why),
            Record::Client { client, user } => {
                let id = self.names.id(client);
                if (id as usize) < self.clients.len() {
                    return Err(format!("{client} was there already"));
                }
                let user = user.as_ref().map(|user| self.users.id(user));
                let client = Client { user, segment: None, positioned: false, closed: 0, ended: false };
                self.clients.push(client);
            }
            Record::Open { client, .. } => {
                self.opened += 1;
                let id = self.client(client)?;
                self.clients[id as usize].positioned = false;
            }
            Record::Position { t, client, kind, count: missed, why } => {
                let id = self.client(client)?;
                match kind {
                    Kind::Recovered => {
                        self.recovered.0 += 1;
                        self.recovered.1 += missed;
                    }
                    Kind::Reset => count(&mut self.resets, why),
                    Kind::New => {}
                }
                self.position(id, *t, *kind);
            }
            Record::Message { t, client, by, number, at } => {
                let id = self.client(client)?;
                let message = self.message(by, *number);
                let at = at.as_ref().map_or(NOWHERE, |at| self.places.id(at));
                let client = &mut self.clients[id as usize];
                client.ended |= by == SENTINEL;
                if !client.positioned {
                    self.unpositioned.push((id, message));
                }
                if let Some(segment) = client.segment {
                    self.segments[segment].seen.push(Seen { message, at, t: *t });
                }
            }
            Record::Closed { t, client, .. } => {
                let id = self.client(client)?;
                self.clients[id as usize].closed = *t;
            }
            Record::Fault { .. } => {}
        }
        Ok(())
    }

    fn position(&mut self, id: Id, t: u64, kind: Kind) {
        let client = &mut self.clients[id as usize];
        let within = std::mem::replace(&mut client.positioned, true);
        if kind == Kind::Recovered && client.segment.is_some() {
            return;
        }
        let next = self.segments.len();
        if let Some(last) = client.segment.replace(next) {
            self.segments[last].ended = Some(if within { t } else { client.closed });
        }
        self.segments.push(Segment { client: id, begun: t, seen: Vec::new(), ended: None });
    }

    fn audience(&mut self, to: &str) -> Result<Audience, String> {
        match to.split_once(':') {
            None if to == "all" => Ok(Audience::All),
            None if to == "registered" => Ok(Audience::Registered),
            Some(("user", user)) => Ok(Audience::User(self.users.id(user))),
            _ => Err(format!("the target {to:?} is not one of all, registered, user:ID")),
        }
    }

    fn client(&mut self, name: &str) -> Result<Id, String> {
        self.names.find(name).ok_or_else(|| format!("{name} was not introduced"))
    }

    fn message(&mut self, by: &str, number: u64) -> Id {
        let by = self.publishers.id(by);
        *self.known.entry((by, number)).or_insert_with(|| {
            self.messages.push(Message { by, number, published: None, accepted: None, tried: Tried::Unknown });
            (self.messages.len() - 1) as Id
        })
    }

    pub(super) fn client_name(&self, client: Id) -> &str {
        self.names.name(client)
    }

    /// Returns a message's name for people.
    pub(super) fn message_name(&self, message: Id) -> String {
        let Message { by, number, .. } = self.messages[message as usize];
        format!("{}#{number}", self.publishers.name(by))
    }

    /// Returns true if a message was for a client, and false if the message was not published.
    pub(super) fn is_meant(&self, message: Id, client: Id) -> bool {
        let user = self.clients[client as usize].user;
        self.messages[message as usize].published.is_some_and(|published| published.to.includes(user))
    }
}

fn count(counts: &mut BTreeMap<String, u64>, what: &str) {
    match counts.get_mut(what) {
        Some(count) => *count += 1,
        None => drop(counts.insert(what.to_owned(), 1)),
    }
}

/// Names as numbers.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: HashMap<Box<str>, Id>,
    names: Vec<Box<str>>,
}

impl Names {
    fn id(&mut self, name: &str) -> Id {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.names.len() as Id;
        self.ids.insert(name.into(), id);
        self.names.push(name.into());
        id
    }

    fn find(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }

    pub(super) fn name(&self, id: Id) -> &str {
        &self.names[id as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}
