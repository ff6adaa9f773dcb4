//! What nodes tell each other outside of the log, in its form on a link: reports, questions and answers. It is Protocol
//! Buffers, so that a later version can add fields and kinds that this one skips.

use std::net::IpAddr;

use bytes::Bytes;
use prost::Message;
use ws_cluster_core::NodeId;

use super::{ConnectionQuery, ConnectionReport, FollowerReport, LIMIT, LinkReport, NodeReport, NodeRole, Relay};
use crate::message::target::ConnectionId;

/// Largest note, in bytes: a packet of a link. An answer leaves out the connections that do not fit.
pub(crate) const NOTE_SIZE: usize = 512 * 1024;

/// Bytes that an answer counts for each connection, besides its texts.
const ROW: usize = 96;

/// One note.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Note {
    /// Its sender's report.
    Report(Box<NodeReport>),
    /// Asks each node for its connections. `id` is the asking node's.
    Question { id: u64, query: ConnectionQuery },
    /// The answer of one node.
    Answer { id: u64, connections: Vec<ConnectionReport>, matching: u64 },
}

/// The error for a note that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoteError {
    #[error("a malformed note: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("a note without what it needs")]
    Incomplete,
    #[error("a note of a kind that this version does not know")]
    Unknown,
}

impl Note {
    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Report(report) => pb::Kind::Report(report.as_ref().into()),
            Self::Question { id, query } => pb::Kind::Question(pb::Question {
                id: *id,
                user: query.user.clone(),
                session: query.session.clone(),
                group: query.group.clone(),
                address: query.address.map(|address| address.to_string()),
                limit: query.limit as u64,
            }),
            Self::Answer { id, connections, matching } => pb::Kind::Answer(pb::Answer {
                id: *id,
                connections: fitting(connections).map(Into::into).collect(),
                matching: *matching,
            }),
        };
        pb::Note { kind: Some(kind) }.encode_to_vec().into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NoteError> {
        match pb::Note::decode(bytes)?.kind.ok_or(NoteError::Unknown)? {
            pb::Kind::Report(report) => Ok(Self::Report(Box::new(report.try_into()?))),
            pb::Kind::Question(question) => Ok(Self::Question {
                id: question.id,
                query: ConnectionQuery {
                    user: question.user,
                    session: question.session,
                    group: question.group,
                    address: question.address.map(address).transpose()?,
                    limit: usize::try_from(question.limit).unwrap_or(LIMIT).min(LIMIT),
                },
            }),
            pb::Kind::Answer(answer) => {
                let connections: Result<_, NoteError> =
                    answer.connections.into_iter().take(LIMIT).map(TryInto::try_into).collect();
                Ok(Self::Answer { id: answer.id, connections: connections?, matching: answer.matching })
            }
        }
    }
}

/// Returns the first connections, as many as fit into a note.
fn fitting(connections: &[ConnectionReport]) -> impl Iterator<Item = &ConnectionReport> {
    let mut size = 0;
    connections.iter().take_while(move |row| {
        let texts = row.user.iter().chain(&row.session).chain(&row.groups);
        size += ROW + texts.map(|text| text.len() + 4).sum::<usize>();
        size <= NOTE_SIZE - ROW
    })
}

fn bytes(node: NodeId) -> Bytes {
    Bytes::copy_from_slice(node.as_bytes())
}

fn node(bytes: &[u8]) -> Result<NodeId, NoteError> {
    bytes.try_into().map(NodeId::from_bytes).map_err(|_| NoteError::Incomplete)
}

fn address(text: String) -> Result<IpAddr, NoteError> {
    text.parse().map_err(|_| NoteError::Incomplete)
}

impl From<&NodeReport> for pb::Report {
    fn from(report: &NodeReport) -> Self {
        let followers = report.followers.iter().map(|follower| pb::Follower {
            node: bytes(follower.node),
            member: follower.member,
            lag: follower.lag,
        });
        let links = report.links.iter().map(|link| pb::Link {
            peer: bytes(link.peer),
            dialled: link.dialled,
            relay: match link.relay {
                Relay::None => 0,
                Relay::To => 1,
                Relay::From => 2,
            },
        });
        Self {
            node: bytes(report.node),
            address: report.address.clone(),
            role: match report.role {
                NodeRole::Candidate => 0,
                NodeRole::Master => 1,
                NodeRole::Follower => 2,
            },
            term: report.term,
            ready: report.ready,
            degraded: report.degraded.clone(),
            outbox: report.outbox,
            version: report.version.clone(),
            uptime: report.uptime_seconds,
            connections: report.connections,
            user_connections: report.user_connections,
            guest_connections: report.guest_connections,
            deliveries: report.deliveries_per_second,
            messages: report.messages_per_second,
            publishes: report.publishes_per_second,
            publish_p50: report.publish_p50_ms,
            publish_p99: report.publish_p99_ms,
            pool: report.pool_ms,
            lag: report.lag,
            followers: followers.collect(),
            links: links.collect(),
            log_entries: report.log_entries,
            log_bytes: report.log_bytes,
            log_age: report.log_age_seconds,
        }
    }
}

impl TryFrom<pb::Report> for NodeReport {
    type Error = NoteError;

    fn try_from(report: pb::Report) -> Result<Self, NoteError> {
        let follower = |follower: pb::Follower| {
            Ok(FollowerReport { node: node(&follower.node)?, member: follower.member, lag: follower.lag })
        };
        let link = |link: pb::Link| {
            let relay = match link.relay {
                1 => Relay::To,
                2 => Relay::From,
                _ => Relay::None,
            };
            Ok(LinkReport { peer: node(&link.peer)?, dialled: link.dialled, relay })
        };
        Ok(Self {
            node: node(&report.node)?,
            address: report.address,
            role: match report.role {
                1 => NodeRole::Master,
                2 => NodeRole::Follower,
                _ => NodeRole::Candidate,
            },
            term: report.term,
            ready: report.ready,
            degraded: report.degraded,
            outbox: report.outbox,
            version: report.version,
            uptime_seconds: report.uptime,
            connections: report.connections,
            user_connections: report.user_connections,
            guest_connections: report.guest_connections,
            deliveries_per_second: report.deliveries,
            messages_per_second: report.messages,
            publishes_per_second: report.publishes,
            publish_p50_ms: report.publish_p50,
            publish_p99_ms: report.publish_p99,
            pool_ms: report.pool,
            lag: report.lag,
            followers: report.followers.into_iter().map(follower).collect::<Result<_, NoteError>>()?,
            links: report.links.into_iter().map(link).collect::<Result<_, NoteError>>()?,
            log_entries: report.log_entries,
            log_bytes: report.log_bytes,
            log_age_seconds: report.log_age,
            age_ms: 0,
        })
    }
}

impl From<&ConnectionReport> for pb::Connection {
    fn from(row: &ConnectionReport) -> Self {
        Self {
            id_node: bytes(row.id.node),
            id_local: row.id.local,
            node: bytes(row.node),
            user: row.user.clone(),
            session: row.session.clone(),
            address: row.address.map(|address| address.to_string()),
            groups: row.groups.clone(),
            more_groups: row.more_groups,
            since: row.since,
            waiting: row.waiting,
        }
    }
}

impl TryFrom<pb::Connection> for ConnectionReport {
    type Error = NoteError;

    fn try_from(row: pb::Connection) -> Result<Self, NoteError> {
        Ok(Self {
            id: ConnectionId { node: node(&row.id_node)?, local: row.id_local },
            node: node(&row.node)?,
            user: row.user,
            session: row.session,
            address: row.address.map(address).transpose()?,
            groups: row.groups,
            more_groups: row.more_groups,
            since: row.since,
            waiting: row.waiting,
        })
    }
}

/// The schema. A tag is never given another meaning.
mod pb {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Note {
        #[prost(oneof = "Kind", tags = "1, 2, 3")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Report(Report),
        #[prost(message, tag = "2")]
        Question(Question),
        #[prost(message, tag = "3")]
        Answer(Answer),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Report {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) node: Bytes,
        #[prost(string, tag = "2")]
        pub(super) address: String,
        #[prost(uint32, tag = "3")]
        pub(super) role: u32,
        #[prost(uint64, tag = "4")]
        pub(super) term: u64,
        #[prost(bool, tag = "5")]
        pub(super) ready: bool,
        #[prost(string, optional, tag = "6")]
        pub(super) degraded: Option<String>,
        #[prost(string, tag = "7")]
        pub(super) version: String,
        #[prost(uint64, tag = "8")]
        pub(super) uptime: u64,
        #[prost(uint64, tag = "9")]
        pub(super) connections: u64,
        #[prost(uint64, tag = "10")]
        pub(super) user_connections: u64,
        #[prost(uint64, tag = "11")]
        pub(super) guest_connections: u64,
        #[prost(double, tag = "12")]
        pub(super) deliveries: f64,
        #[prost(double, tag = "13")]
        pub(super) messages: f64,
        #[prost(double, tag = "14")]
        pub(super) publishes: f64,
        #[prost(double, optional, tag = "15")]
        pub(super) publish_p50: Option<f64>,
        #[prost(double, optional, tag = "16")]
        pub(super) publish_p99: Option<f64>,
        #[prost(double, optional, tag = "17")]
        pub(super) pool: Option<f64>,
        #[prost(uint64, optional, tag = "18")]
        pub(super) lag: Option<u64>,
        #[prost(message, repeated, tag = "19")]
        pub(super) followers: Vec<Follower>,
        #[prost(message, repeated, tag = "20")]
        pub(super) links: Vec<Link>,
        #[prost(uint64, tag = "21")]
        pub(super) log_entries: u64,
        #[prost(uint64, tag = "22")]
        pub(super) log_bytes: u64,
        #[prost(uint64, tag = "23")]
        pub(super) log_age: u64,
        #[prost(bool, optional, tag = "24")]
        pub(super) outbox: Option<bool>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Follower {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) node: Bytes,
        #[prost(bool, tag = "2")]
        pub(super) member: bool,
        #[prost(uint64, tag = "3")]
        pub(super) lag: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Link {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) peer: Bytes,
        #[prost(bool, tag = "2")]
        pub(super) dialled: bool,
        #[prost(uint32, tag = "3")]
        pub(super) relay: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Question {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(string, optional, tag = "2")]
        pub(super) user: Option<String>,
        #[prost(string, optional, tag = "3")]
        pub(super) session: Option<String>,
        #[prost(string, optional, tag = "4")]
        pub(super) group: Option<String>,
        #[prost(string, optional, tag = "5")]
        pub(super) address: Option<String>,
        #[prost(uint64, tag = "6")]
        pub(super) limit: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Answer {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(message, repeated, tag = "2")]
        pub(super) connections: Vec<Connection>,
        #[prost(uint64, tag = "3")]
        pub(super) matching: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Connection {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) id_node: Bytes,
        #[prost(uint64, tag = "2")]
        pub(super) id_local: u64,
        #[prost(bytes = "bytes", tag = "3")]
        pub(super) node: Bytes,
        #[prost(string, optional, tag = "4")]
        pub(super) user: Option<String>,
        #[prost(string, optional, tag = "5")]
        pub(super) session: Option<String>,
        #[prost(string, optional, tag = "6")]
        pub(super) address: Option<String>,
        #[prost(string, repeated, tag = "7")]
        pub(super) groups: Vec<String>,
        #[prost(uint64, tag = "8")]
        pub(super) more_groups: u64,
        #[prost(uint64, tag = "9")]
        pub(super) since: u64,
        #[prost(uint64, tag = "10")]
        pub(super) waiting: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([3; 16]);

    fn report() -> NodeReport {
        NodeReport {
            node: NODE,
            address: "ws://10.0.0.1:8080".into(),
            role: NodeRole::Master,
            term: 7,
            ready: true,
            degraded: Some("the pool's database does not answer (refused)".into()),
            outbox: Some(true),
            version: "0.1.0".into(),
            uptime_seconds: 3600,
            connections: 5,
            user_connections: 3,
            guest_connections: 1,
            deliveries_per_second: 1234.5,
            messages_per_second: 12.0,
            publishes_per_second: 0.2,
            publish_p50_ms: Some(0.8),
            publish_p99_ms: None,
            pool_ms: Some(1.5),
            lag: Some(3),
            followers: vec![FollowerReport { node: NODE, member: true, lag: 2 }],
            links: vec![LinkReport { peer: NODE, dialled: true, relay: Relay::To }],
            log_entries: 9,
            log_bytes: 900,
            log_age_seconds: 60,
            age_ms: 0,
        }
    }

    fn connection() -> ConnectionReport {
        ConnectionReport {
            id: ConnectionId { node: NODE, local: 5 },
            node: NODE,
            user: Some("ann".into()),
            session: Some("012345…".into()),
            address: Some("2001:db8::1".parse().unwrap()),
            groups: vec!["editors".into()],
            more_groups: 2,
            since: 1_800_000_000,
            waiting: 17,
        }
    }

    fn notes() -> Vec<Note> {
        let query = ConnectionQuery {
            user: Some("ann".into()),
            session: Some("s".into()),
            group: Some("g".into()),
            address: Some("192.0.2.1".parse().unwrap()),
            limit: 50,
        };
        vec![
            Note::Report(Box::new(report())),
            Note::Question { id: 1, query: ConnectionQuery::default() },
            Note::Question { id: u64::MAX, query },
            Note::Answer { id: 2, connections: vec![connection()], matching: 100 },
        ]
    }

    #[test]
    fn every_note_comes_back_as_it_was() {
        for note in notes() {
            assert_eq!(Note::decode(&note.encode()).ok(), Some(note));
        }
    }

    #[test]
    fn an_answer_that_is_too_large_leaves_out_connections() {
        let large = ConnectionReport { groups: vec!["x".repeat(200); 20], ..connection() };
        let note = Note::Answer { id: 1, connections: vec![large; LIMIT], matching: 5000 };
        let encoded = note.encode();
        assert!(encoded.len() <= NOTE_SIZE, "{} bytes", encoded.len());
        let Ok(Note::Answer { connections, matching, .. }) = Note::decode(&encoded) else { panic!("an answer") };
        assert!(connections.len() > 100 && connections.len() < LIMIT);
        assert_eq!(matching, 5000);
    }

    #[test]
    fn a_question_cannot_ask_for_more_than_the_limit() {
        let query = ConnectionQuery { limit: usize::MAX, ..ConnectionQuery::default() };
        let asked = Note::decode(&Note::Question { id: 1, query }.encode());
        assert!(matches!(asked, Ok(Note::Question { query, .. }) if query.limit == LIMIT));
    }

    #[test]
    fn notes_of_a_later_version_are_unknown() {
        assert!(matches!(Note::decode(&[0x9a, 0x06, 0x01, 0x00]), Err(NoteError::Unknown)));
        assert!(matches!(Note::decode(b""), Err(NoteError::Unknown)));
        assert!(matches!(Note::decode(b"\xff\xff"), Err(NoteError::Malformed(_))));
    }

    #[test]
    fn a_hostile_note_is_refused_or_means_one_thing() {
        let corpus: Vec<_> = notes().iter().map(Note::encode).collect();
        let corpus: Vec<&[u8]> = corpus.iter().map(|note| &note[..]).collect();
        crate::fuzz::search(&corpus, |input| {
            let Ok(note) = Note::decode(input) else { return Ok(()) };
            // Texts, since a number may be NaN.
            let (once, again) = (format!("{note:?}"), format!("{:?}", Note::decode(&note.encode())));
            if again == format!("Ok({once})") { Ok(()) } else { Err(format!("{once} comes back as {again}")) }
        });
    }
}
