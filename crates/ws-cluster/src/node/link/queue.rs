//! The frames and notes that wait for a link.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, mpsc};

use crate::node::codec::PacketPart;

/// Number of bytes from which a packet takes no more frames. A packet of this size is sent well before a link counts as
/// dead.
const PACKET_BYTES: usize = 512 * 1024;

/// Number of waiting bytes from which a link takes no more notes, so that those do not delay frames.
const NOTES_ROOM: usize = 1024 * 1024;

/// Bytes that a waiting part takes beside its encoded bytes: its place in the channel, the count of its owners, and
/// what the allocator adds to both and to the bytes. It is rounded up.
const PART_OVERHEAD: usize = 128;

/// The sending end of a link's queue of frames and notes. When it is dropped, the link is closed after those that wait.
#[derive(Debug)]
pub(crate) struct FrameSender {
    /// The channel is unbounded, because the core must not wait. If too many bytes wait, the link is cut.
    waiting: mpsc::UnboundedSender<PacketPart>,
    queue: Arc<Queue>,
}

/// The receiving end of a link's queue of frames and notes.
pub(crate) struct FrameReceiver {
    waiting: mpsc::UnboundedReceiver<PacketPart>,
    pub(super) queue: Arc<Queue>,
}

#[derive(Debug)]
pub(super) struct Queue {
    /// The memory that the waiting parts take, in bytes, and its limit.
    pub(super) size: AtomicUsize,
    limit: usize,
    /// Notified if the link has to end at once, without the frames that wait.
    pub(super) cut: Notify,
}

/// Returns a queue for a link in which about `limit` bytes may wait.
pub(crate) fn queue(limit: usize) -> (FrameSender, FrameReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queue = Arc::new(Queue { size: AtomicUsize::new(0), limit, cut: Notify::new() });
    (FrameSender { waiting: sender, queue: queue.clone() }, FrameReceiver { waiting: receiver, queue })
}

/// Returns the number of bytes that a part takes while it waits.
fn size_of(part: &PacketPart) -> usize {
    part.bytes().len() + PART_OVERHEAD
}

impl FrameSender {
    /// Adds a frame to the queue. Returns false if the link is gone, or is cut because its peer reads too slowly.
    pub(crate) fn send(&self, frame: PacketPart) -> bool {
        let size = size_of(&frame);
        let waiting = self.queue.size.fetch_add(size, Ordering::Relaxed);
        if waiting > 0 && waiting + size > self.queue.limit {
            self.queue.cut.notify_one();
            return false;
        }
        self.waiting.send(frame).is_ok()
    }

    /// Adds a note to the queue, unless much waits in it.
    pub(crate) fn tell(&self, note: PacketPart) {
        let size = size_of(&note);
        if self.queue.size.load(Ordering::Relaxed) + size <= NOTES_ROOM {
            self.queue.size.fetch_add(size, Ordering::Relaxed);
            // If the link is gone, the driver learns so elsewhere.
            let _ = self.waiting.send(note);
        }
    }
}

impl FrameReceiver {
    /// Moves the waiting frames and notes to `parts`, as many as fit into a packet, and returns their size, or `None`
    /// if no more come.
    pub(super) async fn gather(&mut self, parts: &mut Vec<PacketPart>) -> Option<usize> {
        let mut size = 0;
        let mut next = Some(self.waiting.recv().await?);
        while let Some(part) = next {
            size += size_of(&part);
            parts.push(part);
            next = if size < PACKET_BYTES { self.waiting.try_recv().ok() } else { None };
        }
        Some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::queue;
    use crate::node::codec::PacketPart;
    use ws_cluster_core::{Body, Frame};

    #[test]
    fn tiny_frames_count_with_the_memory_that_they_take() {
        let (sender, _receiver) = queue(64 * 1024);
        let frame = PacketPart::frame(Frame { term: 1, body: Body::Ack { seq: 1 } });
        let taken = (0..10_000).take_while(|_| sender.send(frame.clone())).count();
        assert!(taken > 100 && taken < 600, "{taken} frames wait");
    }

    #[tokio::test]
    async fn a_queue_that_was_written_out_has_room_again() {
        let (sender, mut receiver) = queue(64 * 1024);
        let frame = PacketPart::frame(Frame { term: 1, body: Body::Ack { seq: 1 } });
        for _ in 0..100 {
            assert!((0..100).all(|_| sender.send(frame.clone())));
            let mut parts = Vec::new();
            let size = receiver.gather(&mut parts).await.expect("the link stands");
            assert_eq!(parts.len(), 100);
            receiver.queue.size.fetch_sub(size, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
