//! The replay of what a client missed, beside the other tasks of its thread.

use super::*;

/// Replays large messages to a client that offers these extensions. Returns how often another task ran meanwhile.
async fn turns_during_a_replay(offers: &[&[u8]], count: usize, size: usize) -> usize {
    let (server, _) = server(Config::default()).await;
    server.wait_ready().await;
    let stream = resumes(&server, "/?resume=").await;
    let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
    let (first, _) = peer.text().await;
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    let large = "x".repeat(size);
    for _ in 0..count {
        server.publish(Message::new("large", &large).unwrap().to(Target::all())).await.unwrap();
    }
    let path = format!("/?resume={}&state={}", first["at"].as_str().unwrap(), first["state"].as_str().unwrap());
    // The stream takes everything at once, so that it is no reason to wait.
    let (client, mut stream) = resumes_offering(&server, &path, offers, 2 * count * size);
    let mut turns = 0;
    while !client.is_joined() {
        tokio::task::yield_now().await;
        turns += 1;
    }
    assert!(!client.queue.is_sealed());
    let mut began = [0; 400];
    stream.read_exact(&mut began).await.unwrap();
    assert!(String::from_utf8_lossy(&began).contains(&format!("[\"recovered\",{count}]")));
    turns
}

#[cfg(feature = "deflate")]
#[tokio::test]
async fn other_tasks_run_between_the_messages_that_a_replay_compresses() {
    let turns = turns_during_a_replay(&[b"permessage-deflate"], 50, 60_000).await;
    assert!(turns >= 50, "{turns}");
}

#[tokio::test]
async fn other_tasks_run_during_a_plain_replay() {
    let turns = turns_during_a_replay(&[], 60, 200_000).await;
    assert!(turns >= 20, "{turns}");
}
