//! Authenticates the packets of one direction of a link: each packet arrives unchanged, once, and in order.
//!
//! The MAC is keyed BLAKE3, because it is fast without special instructions of the CPU. Measured side by side, it takes
//! as long as HMAC-SHA256 with SHA instructions for 200 bytes (0.3 to 0.7 µs), and less than half as long for 512 KiB.
//! ChaCha20-Poly1305, which would also encrypt, takes six times as long for 200 bytes. Encryption is left to `wss://`.

use bytes::Bytes;

use super::LinkError;
use crate::node::codec::PacketPart;

/// Size of the MAC of a packet, in bytes.
const MAC_SIZE: usize = blake3::OUT_LEN;

/// The key of one direction, and the number of packets in that direction. A packet's number is part of its MAC and is
/// not sent.
struct Direction {
    key: [u8; blake3::KEY_LEN],
    count: u64,
}

impl Direction {
    fn next_mac(&mut self, packet: &[u8]) -> blake3::Hash {
        let number = self.count.to_be_bytes();
        self.count += 1;
        blake3::Hasher::new_keyed(&self.key).update(&number).update(packet).finalize()
    }
}

/// Adds the MAC to each packet that this side sends.
pub(super) struct PacketSealer(Direction);

impl PacketSealer {
    /// Returns a sealer. The key must be unique to this direction of this link.
    pub(super) fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self(Direction { key, count: 0 })
    }

    /// Returns the encoded packet with its MAC.
    pub(super) fn seal(&mut self, packet: &impl prost::Message) -> Bytes {
        let mut bytes = Vec::with_capacity(packet.encoded_len() + MAC_SIZE);
        packet.encode(&mut bytes).expect("a Vec has room for every packet");
        self.finish(bytes)
    }

    /// Returns the packet of these parts with its MAC.
    pub(super) fn seal_parts(&mut self, parts: &[PacketPart]) -> Bytes {
        let size: usize = parts.iter().map(|part| part.bytes().len()).sum();
        let mut bytes = Vec::with_capacity(size + MAC_SIZE);
        parts.iter().for_each(|part| bytes.extend_from_slice(part.bytes()));
        self.finish(bytes)
    }

    fn finish(&mut self, mut bytes: Vec<u8>) -> Bytes {
        let mac = self.0.next_mac(&bytes);
        bytes.extend_from_slice(mac.as_bytes());
        bytes.into()
    }
}

/// Checks the MAC of each packet that comes from the other side.
pub(super) struct PacketOpener(Direction);

impl PacketOpener {
    /// Returns an opener. The key is the one of the other side's sealer.
    pub(super) fn new(key: [u8; blake3::KEY_LEN]) -> Self {
        Self(Direction { key, count: 0 })
    }

    /// Returns the packet without its MAC.
    ///
    /// # Errors
    /// Returns [`LinkError::Forged`] for any packet other than the one that the other side sent next. The link must end
    /// then.
    pub(super) fn open(&mut self, mut packet: Bytes) -> Result<Bytes, LinkError> {
        let size = packet.len().checked_sub(MAC_SIZE).ok_or(LinkError::Forged)?;
        let mac: [u8; MAC_SIZE] = packet.split_off(size)[..].try_into().map_err(|_| LinkError::Forged)?;
        // `blake3::Hash` compares in constant time.
        if self.0.next_mac(&packet) == mac { Ok(packet) } else { Err(LinkError::Forged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::codec::Publish;

    fn pair() -> (PacketSealer, PacketOpener) {
        (PacketSealer::new([7; 32]), PacketOpener::new([7; 32]))
    }

    fn message(id: u64) -> Publish {
        Publish { id, content: Bytes::from_static(b"content"), ..Publish::default() }
    }

    fn is_forged(opened: Result<Bytes, LinkError>) -> bool {
        matches!(opened, Err(LinkError::Forged))
    }

    #[test]
    fn packets_come_as_they_were_sent() {
        let (mut sealer, mut opener) = pair();
        for id in 0..3 {
            let opened = opener.open(sealer.seal(&message(id))).unwrap();
            assert_eq!(<Publish as prost::Message>::decode(opened).unwrap(), message(id));
            assert_eq!(opener.open(sealer.seal(&())).unwrap(), Bytes::new(), "a heartbeat");
        }
    }

    #[test]
    fn a_packet_that_was_changed_anywhere_is_refused() {
        let sealed = pair().0.seal(&message(1));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(is_forged(pair().1.open(changed.into())), "bit {bit}");
        }
        for size in 0..sealed.len() {
            assert!(is_forged(pair().1.open(sealed.slice(..size))), "cut to {size} bytes");
        }
        assert!(is_forged(pair().1.open([&sealed[..], &[0]].concat().into())), "lengthened");
    }

    #[test]
    fn a_packet_that_is_not_the_next_is_refused() {
        let (mut sealer, mut opener) = pair();
        let [first, second, third] = [1, 2, 3].map(|id| sealer.seal(&message(id)));
        opener.open(first.clone()).unwrap();
        assert!(is_forged(opener.open(first)), "repeated");
        let (_, mut opener) = pair();
        assert!(is_forged(opener.open(second)), "the one before was dropped");
        let (_, mut opener) = pair();
        assert!(is_forged(opener.open(third)), "two were dropped");
    }

    #[test]
    fn a_packet_of_another_key_is_refused() {
        assert!(is_forged(PacketOpener::new([8; 32]).open(pair().0.seal(&message(1)))));
    }
}
