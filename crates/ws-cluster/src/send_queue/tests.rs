//! The send queue without a connection: order, limits, runs and sockets that take a part.

use std::time::Duration;

use tokio::{io::AsyncReadExt, net::TcpSocket, time::advance};

use super::{frames::BURST, *};

fn shared(frame: &[u8]) -> SharedFrame {
    SharedFrame::new(Bytes::copy_from_slice(frame))
}

/// Returns both ends of a TCP connection: one that reads with a buffer of `receive` bytes, and one that writes with a
/// buffer of `send` bytes. The system doubles both.
async fn connected(receive: u32, send: u32) -> (TcpStream, TcpStream) {
    let (near, listener) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    near.set_recv_buffer_size(receive).unwrap();
    listener.set_send_buffer_size(send).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let (near, far) = tokio::join!(near.connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[test]
fn waiting_frames_are_joined_in_order() {
    let queue = SendQueue::new(100);
    assert!(queue.take().is_empty());
    queue.push(Bytes::from_static(b"one "));
    queue.push(Bytes::from_static(b"two "));
    queue.push(Bytes::from_static(b"three"));
    assert_eq!(queue.take(), "one two three");
    assert!(queue.take().is_empty());
}

#[test]
fn one_frame_is_not_copied() {
    let queue = SendQueue::new(100);
    let frame = Bytes::from(vec![b'x'; 10]);
    queue.push(frame.clone());
    assert_eq!(queue.take().as_ptr(), frame.as_ptr());
}

#[test]
fn frames_that_clients_share_are_joined_once_for_all_of_them() {
    let queues: Vec<_> = (0..3).map(|_| SendQueue::new(100)).collect();
    let mut frames: Vec<_> = [&b"one "[..], b"two ", b"three"].into_iter().map(shared).collect();
    for frame in &mut frames {
        queues.iter().for_each(|queue| _ = queue.add(frame));
    }
    let taken: Vec<_> = queues.iter().map(SendQueue::take).collect();
    assert_eq!(taken[0], "one two three");
    assert!(taken.iter().all(|bytes| bytes.as_ptr() == taken[0].as_ptr()));
    assert!(queues.iter().all(SendQueue::is_empty));
}

#[test]
fn clients_that_got_different_frames_before_get_their_own() {
    let (first, second) = (SendQueue::new(100), SendQueue::new(100));
    first.add(&mut shared(b"a"));
    second.push(Bytes::from_static(b"b"));
    let mut both = shared(b"c");
    first.add(&mut both);
    second.add(&mut both);
    assert_eq!((first.take(), second.take()), (Bytes::from_static(b"ac"), Bytes::from_static(b"bc")));
    // Nothing is shared beyond the number of runs that a frame remembers.
    let mut last = shared(b"z");
    for number in 0..20 {
        let queue = SendQueue::new(100);
        queue.add(&mut shared(&[number]));
        queue.add(&mut last);
        assert_eq!(queue.take(), [number, b'z'][..]);
    }
}

#[test]
fn what_is_pushed_comes_after_what_fan_outs_have_added() {
    let queue = SendQueue::new(100);
    queue.add(&mut shared(b"first "));
    queue.push(Bytes::from_static(b"second "));
    queue.add(&mut shared(b"third"));
    queue.close(CloseCode::Normal, "");
    assert_eq!(&queue.take()[..], b"first second third\x88\x02\x03\xe8");
}

#[tokio::test]
async fn a_socket_that_takes_a_part_of_shared_frames_gets_the_rest_later() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut near, queue) = (near.unwrap(), SendQueue::new(64 * 1024 * 1024));
    queue.attach(far.unwrap().0);
    let mut sent = Vec::new();
    while queue.is_empty() {
        let frames: Vec<Vec<u8>> = (0..4_u8).map(|number| vec![number; 9_999]).collect();
        for frame in &frames {
            sent.extend_from_slice(frame);
            queue.add(&mut shared(frame));
        }
        queue.write();
    }
    queue.add(&mut shared(b"end"));
    sent.extend_from_slice(b"end");
    let mut came = vec![0; sent.len()];
    let write = poll_fn(|cx| queue.poll_write(cx));
    let (read, written) = tokio::join!(near.read_exact(&mut came), write);
    assert!(read.is_ok() && written.is_ok() && came == sent);
    assert_eq!(queue.waiting(), 0);
}

#[test]
fn a_large_frame_is_not_joined() {
    let queue = SendQueue::new(1024 * 1024);
    queue.push(Bytes::from_static(b"small"));
    queue.push(vec![b'x'; MAX_JOINED].into());
    assert_eq!(queue.take(), "small");
    assert_eq!(queue.take().len(), MAX_JOINED);
}

#[test]
fn beyond_the_limit_only_the_close_frame_is_left() {
    let queue = SendQueue::new(10);
    queue.push(Bytes::from_static(b"12345678"));
    let mut taken = queue.take();
    queue.written(&mut taken, 6);
    queue.push(Bytes::from_static(b"12345678"));
    assert!(!queue.is_sealed());
    queue.push(vec![b'9'; 71].into());
    assert!(queue.is_sealed());
    assert_eq!(queue.take(), frame::close(CloseCode::TooSlow, "reads too slowly"));
    queue.push(Bytes::from_static(b"more"));
    assert!(queue.take().is_empty());
}

#[test]
fn a_client_keeps_up_until_its_stream_refuses_bytes() {
    let queue = SendQueue::new(100);
    assert!(queue.keeps_up());
    queue.add(&mut shared(b"one"));
    queue.add(&mut shared(b"two"));
    assert!(queue.keeps_up());
    // Without a socket, the connection's task writes. It has not been able to yet.
    queue.write();
    queue.push(Bytes::from_static(b"reply"));
    assert!(queue.keeps_up());
    let mut taken = queue.take();
    queue.written(&mut taken, 2);
    queue.note_refusal();
    queue.add(&mut shared(b"three"));
    assert!(!queue.keeps_up());
    queue.written(&mut taken, 9);
    assert!(!queue.keeps_up(), "the rest has been refused, and is offered again");
    let mut taken = queue.take();
    queue.written(&mut taken, 5);
    assert!(queue.keeps_up());
}

#[tokio::test]
async fn a_client_keeps_up_until_its_socket_refuses_bytes() {
    let (mut near, far) = connected(64 * 1024, 64 * 1024).await;
    let queue = SendQueue::new(64 * 1024 * 1024);
    queue.attach(far);
    queue.push(Bytes::from_static(b"a reply that the connection's task has not written yet"));
    assert!(queue.keeps_up());
    queue.push(vec![0; 8 * 1024 * 1024].into());
    let mut came = vec![0; queue.waiting()];
    queue.write();
    assert!(!queue.keeps_up());
    let write = poll_fn(|cx| queue.poll_write(cx));
    let (read, written) = tokio::join!(near.read_exact(&mut came), write);
    assert!(read.is_ok() && written.is_ok() && queue.keeps_up());
}

#[test]
fn an_empty_queue_takes_a_frame_of_any_size() {
    let queue = SendQueue::new(10);
    queue.push(vec![0; 1000].into());
    assert!(!queue.is_sealed());
    queue.push(vec![0; 1].into());
    assert!(queue.is_sealed());
}

#[test]
fn a_burst_is_bounded_but_is_no_sign_of_a_slow_client() {
    let queue = SendQueue::new(10);
    for _ in 0..BURST {
        queue.push(vec![0; 10].into());
        assert!(!queue.is_sealed(), "the socket had no chance yet");
    }
    queue.push(vec![0; 1].into());
    assert!(queue.is_sealed());
}

#[test]
fn the_bytes_of_a_burst_are_counted_in_32_bits_whatever_the_limit_is() {
    let queue = SendQueue::new(usize::MAX);
    let frame = Bytes::from(vec![0; 1 << 28]);
    for _ in 0..20 {
        queue.push(frame.clone());
    }
    assert!(queue.is_sealed(), "5 GiB are too many");
    assert!(queue.waiting() < 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_slow_once_its_socket_takes_nothing_for_a_second() {
    let queue = SendQueue::new(10);
    queue.push(vec![0; 10].into());
    let mut taken = queue.take();
    queue.note_refusal();
    for _ in 0..10 {
        // The socket takes a little now and then.
        advance(Duration::from_millis(900)).await;
        queue.written(&mut taken, 1);
        queue.note_refusal();
        queue.push(vec![0; 1].into());
        assert!(!queue.is_sealed());
    }
    // This process stood still, which says nothing about the client.
    advance(Duration::from_secs(5)).await;
    queue.push(vec![0; 1].into());
    assert!(!queue.is_sealed());
    for _ in 0..10 {
        advance(Duration::from_millis(100)).await;
        queue.push(vec![0; 1].into());
    }
    assert!(queue.is_sealed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_all_the_time_is_not_slow() {
    // A third of the buffer, from which on Tokio says that the socket takes something, is 128 KiB.
    let (mut near, far) = connected(4 * 1024, 192 * 1024).await;
    let queue = SendQueue::new(1024 * 1024);
    queue.attach(far);
    queue.push(vec![0; 4 * 1024 * 1024].into());
    queue.write();
    assert!(!queue.keeps_up() && queue.waiting() > 1024 * 1024);
    for _ in 0..6 {
        near.read_exact(&mut [0; 16 * 1024]).await.unwrap();
        advance(Duration::from_millis(250)).await;
        queue.push(vec![0; 1].into());
        assert!(!queue.is_sealed());
    }
    // A client that reads nothing is slow.
    for _ in 0..6 {
        advance(Duration::from_millis(250)).await;
        queue.push(vec![0; 1].into());
    }
    assert!(queue.is_sealed());
}

#[cfg(feature = "tls")]
#[tokio::test(start_paused = true)]
async fn a_socket_under_tls_takes_bytes_as_soon_as_the_system_does() {
    use tokio::io::AsyncWrite;
    let (mut near, far) = connected(4 * 1024, 192 * 1024).await;
    let mut socket = EagerSocket::new(far);
    // Returns true if the socket takes something.
    let mut takes = async || {
        poll_fn(|cx| {
            let written = std::pin::Pin::new(&mut socket).poll_write(cx, &[0; 4096]);
            Poll::Ready(written.map(Result::unwrap).is_ready())
        })
        .await
    };
    while takes().await {}
    near.read_exact(&mut [0; 32 * 1024]).await.unwrap();
    assert!(!takes().await, "it was tried a moment ago");
    advance(Duration::from_millis(100)).await;
    assert!(takes().await);
}

#[test]
fn a_last_message_does_not_remove_a_burst() {
    let queue = SendQueue::new(10);
    queue.push(vec![b'x'; 30].into());
    queue.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
    let taken = queue.take();
    assert!(taken.len() > 34 && taken[..30] == [b'x'; 30] && taken[30..34] == *b"last");
}

#[tokio::test]
async fn the_socket_is_written_to_before_a_client_counts_as_slow() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut near, queue) = (near.unwrap(), SendQueue::new(10));
    queue.attach(far.unwrap().0);
    for _ in 0..100 {
        queue.add(&mut shared(&[b'x'; 10]));
    }
    assert!(!queue.is_sealed());
    queue.write();
    let mut came = vec![0; 1000];
    near.read_exact(&mut came).await.unwrap();
    assert_eq!(came, [b'x'; 1000]);
    assert!(queue.is_empty());
}

#[tokio::test]
async fn a_task_that_sleeps_is_woken_if_the_socket_refuses_what_a_fan_out_adds() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (mut near, queue) = (near.unwrap(), std::sync::Arc::new(SendQueue::new(4_000_000)));
    queue.attach(far.unwrap().0);
    let task = tokio::spawn({
        let queue = queue.clone();
        async move {
            poll_fn(|cx| if queue.sleep(cx, false, false) { Poll::Pending } else { Poll::Ready(()) }).await;
            poll_fn(|cx| queue.poll_write(cx)).await
        }
    });
    // The task sleeps now.
    tokio::task::yield_now().await;
    let (mut added, mut frame) = (0, shared(&[b'x'; 1_000_000]));
    while !queue.0.lock().frames.blocked {
        queue.add(&mut frame);
        added += 1_000_000;
    }
    queue.write();
    let mut came = vec![0; added];
    near.read_exact(&mut came).await.unwrap();
    task.await.unwrap().unwrap();
    assert!(queue.is_empty());
}

#[test]
fn the_end_is_what_the_first_close_frame_says() {
    let end = |code, reason: &str| End { code, reason: reason.into() };
    let queue = SendQueue::new(100);
    assert_eq!(queue.abandon().end(), end(1006, ""));
    let queue = SendQueue::new(100);
    queue.close(CloseCode::Expired, "grüße");
    queue.close(CloseCode::Restart, "");
    assert_eq!(queue.abandon().end(), end(4003, "grüße"));
    for (answer, said) in [(&b"\x88\x00"[..], end(1005, "")), (b"\x88\x02\x03\xe9", end(1001, ""))] {
        let queue = SendQueue::new(100);
        queue.seal(Bytes::from_static(answer));
        assert_eq!(queue.end(), said);
    }
    // A client's reason is not kept.
    let queue = SendQueue::new(100);
    queue.seal(Bytes::from_static(b"\x88\x05\x03\xe9bye"));
    assert_eq!(queue.end(), end(1001, ""));
    assert_eq!(End::of(b"\x88\x05\x03\xe9bye"), end(1001, "bye"));
}

#[test]
fn the_first_close_counts() {
    let queue = SendQueue::new(100);
    queue.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
    queue.close(CloseCode::Restart, "");
    queue.push(Bytes::from_static(b"more"));
    assert_eq!(&queue.take()[..], b"last\x88\x02\x03\xe8");
}
