//! The encoding of a link: the greeting, packets of frames between nodes, and a publisher's requests. It is Protocol
//! Buffers, so an earlier version skips the fields that a later version adds. [`ws_cluster_core`] defines what the
//! frames mean, and [`link`](crate::node::link) checks a greeting.

use bytes::Bytes;
use prost::Message;

use ws_cluster_core::{Body, Entry, Frame, Join, Lineage, NodeId, Proposal, PublishId, Snapshot, Span};

mod schema;

use schema as pb;
pub(crate) use schema::{Greeting, Note, Outcome, Proof, Publish, Welcome};

/// The oldest and the newest version of the link protocol that this code speaks. Version 1 did not authenticate
/// packets, so no node speaks it any more.
pub(crate) const VERSIONS: (u16, u16) = (2, 2);

/// Returns the newest version that both sides speak.
pub(crate) fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let version = ours.1.min(theirs.1);
    (version >= ours.0 && version >= theirs.0).then_some(version)
}

/// The error for bytes from a peer that are no packet of this protocol. The link is closed.
#[derive(Debug, thiserror::Error)]
#[error("a peer sent an invalid packet: {0}")]
pub(crate) struct PacketError(String);

impl From<prost::DecodeError> for PacketError {
    fn from(error: prost::DecodeError) -> Self {
        Self(error.to_string())
    }
}

fn absent(what: &str) -> PacketError {
    PacketError(format!("no {what}"))
}

/// An encoded frame or note. The parts of a packet in a row are the encoded packet, so a part is encoded once for all
/// links, and its clones share the bytes.
#[derive(Clone, Debug)]
pub(crate) struct PacketPart(Bytes);

impl PacketPart {
    pub(crate) fn frame(frame: Frame) -> Self {
        Self::encode(pb::Packet { frames: vec![frame.into()], notes: Vec::new() })
    }

    pub(crate) fn note(note: Note) -> Self {
        Self::encode(pb::Packet { frames: Vec::new(), notes: vec![note] })
    }

    fn encode(packet: pb::Packet) -> Self {
        Self(packet.encode_to_vec().into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Decodes the frames and notes of a packet. Contents are copied, so that none keeps a whole packet in memory. Bodies
/// of kinds that this version does not know are skipped.
pub(crate) fn decode_packet(packet: &[u8]) -> Result<(Vec<Frame>, Vec<Note>), PacketError> {
    let packet = pb::Packet::decode(packet)?;
    let frames = packet.frames.into_iter().filter(|frame| frame.body.is_some()).map(TryInto::try_into);
    Ok((frames.collect::<Result<_, _>>()?, packet.notes))
}

/// Refuses terms and sequence numbers that are so large that sums could overflow.
fn plausible(number: u64) -> Result<u64, PacketError> {
    if number < 1 << 62 {
        Ok(number)
    } else {
        Err(PacketError("a number beyond all terms and sequence numbers".into()))
    }
}

fn node(bytes: &[u8]) -> Result<NodeId, PacketError> {
    bytes.try_into().map(NodeId::from_bytes).map_err(|_| PacketError("a node's id has 16 bytes".into()))
}

fn id(node: NodeId) -> Bytes {
    Bytes::copy_from_slice(node.as_bytes())
}

fn all<A, B, E>(items: Vec<A>) -> Result<Vec<B>, E>
where
    A: TryInto<B, Error = E>,
{
    items.into_iter().map(TryInto::try_into).collect()
}

fn into_all<A: Into<B>, B>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(Into::into).collect()
}

impl From<Frame> for pb::Frame {
    fn from(frame: Frame) -> Self {
        let body = match frame.body {
            Body::Term { master } => {
                let (master, address) = master.map_or_else(Default::default, |(master, address)| (id(master), address));
                pb::Body::Term(pb::Term { master, address })
            }
            Body::Promise => pb::Body::Promise(true),
            Body::Join(join) => pb::Body::Join(pb::Join {
                attempt: join.attempt,
                base: join.base,
                last: join.last,
                last_term: join.last_term,
                lineage: into_all(join.lineage.spans().to_vec()),
            }),
            Body::Fetch { after } => pb::Body::Fetch(after),
            Body::Tail { snapshot, spans, entries, done } => pb::Body::Tail(pb::Tail {
                snapshot: snapshot.map(Into::into),
                spans: into_all(spans),
                entries: into_all(entries),
                done,
            }),
            Body::Welcome { attempt, agreed, snapshot } => {
                pb::Body::Welcome(pb::Admission { attempt, agreed, snapshot: snapshot.map(Into::into) })
            }
            Body::Append { spans, entries, held_by_all } => {
                pb::Body::Append(pb::Append { spans: into_all(spans), entries: into_all(entries), held_by_all })
            }
            Body::Ack { seq } => pb::Body::Ack(seq),
            Body::Joined => pb::Body::Joined(true),
            Body::Defer(defer) => pb::Body::Defer(defer),
            Body::Propose(proposals) => pb::Body::Propose(pb::Propose { proposals: into_all(proposals) }),
        };
        Self { term: frame.term, body: Some(body) }
    }
}

impl TryFrom<pb::Frame> for Frame {
    type Error = PacketError;

    fn try_from(frame: pb::Frame) -> Result<Self, PacketError> {
        let body = match frame.body.ok_or_else(|| absent("body"))? {
            pb::Body::Term(term) if term.master.is_empty() => Body::Term { master: None },
            pb::Body::Term(term) => Body::Term { master: Some((node(&term.master)?, term.address)) },
            pb::Body::Promise(_) => Body::Promise,
            pb::Body::Join(join) => Body::Join(Join {
                attempt: join.attempt,
                base: join.base,
                last: join.last,
                last_term: join.last_term,
                lineage: Lineage::from_spans(all(join.lineage)?),
            }),
            pb::Body::Fetch(after) => Body::Fetch { after },
            pb::Body::Tail(tail) => Body::Tail {
                snapshot: tail.snapshot.map(TryInto::try_into).transpose()?,
                spans: all(tail.spans)?,
                entries: all(tail.entries)?,
                done: tail.done,
            },
            pb::Body::Welcome(welcome) => Body::Welcome {
                attempt: welcome.attempt,
                agreed: welcome.agreed,
                snapshot: welcome.snapshot.map(TryInto::try_into).transpose()?,
            },
            pb::Body::Append(append) => Body::Append {
                spans: all(append.spans)?,
                entries: all(append.entries)?,
                held_by_all: append.held_by_all,
            },
            pb::Body::Ack(seq) => Body::Ack { seq },
            pb::Body::Joined(_) => Body::Joined,
            pb::Body::Defer(defer) => Body::Defer(defer),
            pb::Body::Propose(propose) => Body::Propose(all(propose.proposals)?),
        };
        Ok(Self { term: plausible(frame.term)?, body })
    }
}

impl From<Span> for pb::Span {
    fn from(span: Span) -> Self {
        Self { term: span.term, master: id(span.master), first: span.first }
    }
}

impl TryFrom<pb::Span> for Span {
    type Error = PacketError;

    fn try_from(span: pb::Span) -> Result<Self, PacketError> {
        // Sequence numbers begin with 1. The predecessor of a span's first one is computed from it.
        let first =
            Some(span.first).filter(|first| *first > 0).ok_or_else(|| absent("first sequence number of a span"))?;
        Ok(Self { term: plausible(span.term)?, master: node(&span.master)?, first: plausible(first)? })
    }
}

impl From<PublishId> for pb::PublishId {
    fn from(publish: PublishId) -> Self {
        Self { origin: id(publish.origin), counter: publish.counter }
    }
}

impl TryFrom<pb::PublishId> for PublishId {
    type Error = PacketError;

    fn try_from(publish: pb::PublishId) -> Result<Self, PacketError> {
        Ok(Self { origin: node(&publish.origin)?, counter: publish.counter })
    }
}

impl From<Proposal> for pb::Proposal {
    fn from(proposal: Proposal) -> Self {
        let Proposal { id, key, content } = proposal;
        Self { publish: Some(id.into()), key, content }
    }
}

impl TryFrom<pb::Proposal> for Proposal {
    type Error = PacketError;

    fn try_from(proposal: pb::Proposal) -> Result<Self, PacketError> {
        let pb::Proposal { publish, key, content } = proposal;
        Ok(Self { id: publish.ok_or_else(|| absent("publish"))?.try_into()?, key, content })
    }
}

impl From<Entry> for pb::Entry {
    fn from(entry: Entry) -> Self {
        Self { term: entry.term, seq: entry.seq, proposal: Some(entry.proposal.into()) }
    }
}

impl TryFrom<pb::Entry> for Entry {
    type Error = PacketError;

    fn try_from(entry: pb::Entry) -> Result<Self, PacketError> {
        let proposal = entry.proposal.ok_or_else(|| absent("proposal"))?.try_into()?;
        Ok(Self { term: plausible(entry.term)?, seq: plausible(entry.seq)?, proposal })
    }
}

impl From<Snapshot> for pb::Snapshot {
    fn from(snapshot: Snapshot) -> Self {
        let keys = snapshot.keys.into_iter().map(|(key, seq)| pb::Key { key, seq });
        Self {
            base: snapshot.base,
            spans: into_all(snapshot.spans),
            marks: into_all(snapshot.marks),
            keys: keys.collect(),
            forgotten: snapshot.forgotten,
        }
    }
}

impl TryFrom<pb::Snapshot> for Snapshot {
    type Error = PacketError;

    fn try_from(snapshot: pb::Snapshot) -> Result<Self, PacketError> {
        Ok(Self {
            base: plausible(snapshot.base)?,
            spans: all(snapshot.spans)?,
            marks: all(snapshot.marks)?,
            keys: snapshot.keys.into_iter().map(|key| (key.key, key.seq)).collect(),
            forgotten: snapshot.forgotten,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([3; 16]);

    /// Returns one frame of each kind.
    fn frames() -> Vec<Frame> {
        let span = Span { term: 2, master: NODE, first: 1 };
        let proposal = Proposal {
            id: PublishId { origin: NODE, counter: 5 },
            key: Some(Bytes::from_static(b"k")),
            content: Some(Bytes::from_static(b"content")),
        };
        let entry = Entry { term: 2, seq: 9, proposal: Proposal { content: None, ..proposal.clone() } };
        let snapshot = Snapshot {
            base: 4,
            spans: vec![span],
            marks: vec![proposal.id],
            keys: vec![(Bytes::from_static(b"k"), 3)],
            forgotten: 2,
        };
        let lineage = Lineage::from_spans(vec![span]);
        let bodies = [
            Body::Term { master: None },
            Body::Term { master: Some((NODE, "ws://a:1".into())) },
            Body::Promise,
            Body::Join(Join { attempt: 1, base: 2, last: 3, last_term: 4, lineage }),
            Body::Fetch { after: 0 },
            Body::Tail {
                snapshot: Some(snapshot.clone()),
                spans: vec![span],
                entries: vec![entry.clone()],
                done: true,
            },
            Body::Welcome { attempt: 1, agreed: 2, snapshot: Some(snapshot) },
            Body::Append { spans: vec![span], entries: vec![entry], held_by_all: 8 },
            Body::Ack { seq: 0 },
            Body::Joined,
            Body::Defer(true),
            Body::Defer(false),
            Body::Propose(vec![proposal]),
        ];
        bodies.into_iter().map(|body| Frame { term: 7, body }).collect()
    }

    /// Returns the bytes of a packet.
    fn packet(frames: Vec<Frame>, notes: Vec<Note>) -> Vec<u8> {
        pb::Packet { frames: into_all(frames), notes }.encode_to_vec()
    }

    #[test]
    fn every_frame_comes_back_as_it_was() {
        let frames = frames();
        let note = Note { origin: id(NODE), to: Bytes::new(), relayed: true, content: Bytes::from_static(b"note") };
        let encoded = packet(frames.clone(), vec![note.clone()]);
        assert_eq!(decode_packet(&encoded).ok(), Some((frames, vec![note])));
        let heartbeat = packet(Vec::new(), Vec::new());
        assert_eq!(decode_packet(&heartbeat).ok(), Some((Vec::new(), Vec::new())));
        assert!(heartbeat.is_empty());
    }

    #[test]
    fn parts_in_a_row_are_a_packet() {
        let frames = frames();
        let note = Note { origin: id(NODE), to: Bytes::new(), relayed: false, content: Bytes::from_static(b"note") };
        let mut parts: Vec<PacketPart> = frames.iter().cloned().map(PacketPart::frame).collect();
        parts.push(PacketPart::note(note.clone()));
        let joined: Vec<u8> = parts.iter().flat_map(PacketPart::bytes).copied().collect();
        assert_eq!(joined, packet(frames.clone(), vec![note.clone()]), "what earlier versions send and expect");
        // Frames and notes go into a link's queue in any order.
        parts.rotate_right(3);
        let mut mixed = frames;
        mixed.rotate_right(2);
        let joined: Vec<u8> = parts.iter().flat_map(PacketPart::bytes).copied().collect();
        assert_eq!(decode_packet(&joined).ok(), Some((mixed, vec![note])));
    }

    #[test]
    fn a_hostile_packet_is_refused_or_means_one_thing() {
        let corpus: Vec<Vec<u8>> = frames().into_iter().map(|frame| packet(vec![frame], Vec::new())).collect();
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        crate::fuzz::search(&corpus, |input| {
            let Ok((frames, notes)) = decode_packet(input) else { return Ok(()) };
            let again = decode_packet(&packet(frames.clone(), notes.clone()));
            if again.as_ref().is_ok_and(|(came, told)| (came, told) == (&frames, &notes)) {
                Ok(())
            } else {
                Err(format!("{frames:?}, {notes:?} come back as {again:?}"))
            }
        });
    }

    #[test]
    fn frames_of_a_later_version_are_skipped() {
        // Field 1 (frames), which contains field 1 (term) and an unknown field 99.
        let packet = [0x0a, 0x06, 0x08, 0x07, 0x9a, 0x06, 0x01, 0x00];
        assert_eq!(decode_packet(&packet).ok(), Some((Vec::new(), Vec::new())));
        assert!(decode_packet(b"\xff\xff").is_err());
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(negotiate((1, 1), (1, 1)), Some(1));
        assert_eq!(negotiate((1, 2), (2, 3)), Some(2));
        assert_eq!(negotiate((2, 3), (1, 2)), Some(2));
        assert_eq!(negotiate((3, 4), (1, 2)), None);
        assert_eq!(negotiate((1, 2), (3, 4)), None);
    }
}
