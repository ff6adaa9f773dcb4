//! Measures what tokens with a short life do to their clients: many clients renew their tokens in place against a real
//! process, and some never do. `cargo run --release -p tests --bin refresh` prints the outcome; it fails if a client
//! that renews was disconnected or reset, or if a token that was not renewed was over for more than a second when its
//! connection was closed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use clap::Parser;
use futures_util::StreamExt;
use jsonwebtoken::{EncodingKey, Header, encode};
use parking_lot::Mutex;
use serde_json::json;
use tests::{WsServer, client::Client as Plain};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message as Frame;
use ws_cluster::{
    Client,
    client::{Event, Events},
};

/// The key that signs the tokens.
const SECRET: &str = "a secret of the refresh measurement of 32 bytes or more";
/// Time limit for all clients to connect.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest time from the end of a token to the close of its connection.
const LATEST: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Arguments {
    /// Clients that renew their tokens
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Clients that do not renew theirs; each comes again with a new token
    #[arg(long, default_value_t = 100)]
    others: u32,
    /// Life of a token, in seconds (at least 12: a client does not renew one that ends sooner)
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(12..))]
    lifetime: u64,
    /// Time to measure, in seconds
    #[arg(long, default_value_t = 600)]
    duration: u64,
    /// Clients that the node takes per second
    #[arg(long, default_value_t = 500)]
    accept_rate: u32,
}

#[tokio::main]
async fn main() {
    let Arguments { clients, others, lifetime, duration, accept_rate } = Arguments::parse();
    let lifetime = Duration::from_secs(lifetime);
    let state = tempfile::tempdir().expect("a temporary directory");
    let mut command = WsServer::command(state.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--jwt-secret", SECRET, "--no-guests"]);
    command.args(["--accept-rate", &accept_rate.to_string()]);
    // All clients of this measurement have one address.
    for limit in ["--connections-per-ip", "--sockets-per-ip", "--look-ups-per-ip"] {
        command.args([limit, "100000"]);
    }
    let node = WsServer::spawn(command).await;
    node.ready().await;

    let seen = Arc::new(Seen::default());
    println!("connecting {clients} clients at {accept_rate} a second");
    let crowd: Vec<Client> = (0..clients).map(|number| connect(number, node.address(), lifetime, &seen)).collect();
    let connecting = async {
        while seen.open.load(Ordering::Relaxed) < clients as u64 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, connecting).await.expect("all clients connect");

    let begun = Instant::now();
    let (before, renewed_before) = (seen.lost.load(Ordering::Relaxed), seen.renewals.load(Ordering::Relaxed));
    let over = Arc::new(AtomicBool::default());
    let expiring: Vec<_> = (0..others)
        .map(|number| {
            let first = lifetime * number / others;
            tokio::spawn(expire(number, node.address(), lifetime, first, seen.clone(), over.clone()))
        })
        .collect();
    sleep(Duration::from_secs(duration)).await;
    let renewals = seen.renewals.load(Ordering::Relaxed) - renewed_before;
    let (lost, resets) = (seen.lost.load(Ordering::Relaxed) - before, seen.resets.load(Ordering::Relaxed));
    println!(
        "{clients} clients on tokens of {} s for {:.0} s: {renewals} renewals, {lost} disconnects, {resets} resets",
        lifetime.as_secs(),
        begun.elapsed().as_secs_f64(),
    );
    // The connections that are open now still end with their tokens.
    over.store(true, Ordering::Relaxed);
    for client in expiring {
        client.await.expect("no panic");
    }
    crowd.iter().for_each(Client::close);
    let mut delays = seen.delays.lock().clone();
    delays.sort_unstable();
    let (median, latest) = (delays.get(delays.len() / 2), delays.last());
    let shown = |delay: Option<&Duration>| delay.map_or("none".to_owned(), |delay| format!("{} ms", delay.as_millis()));
    println!(
        "{} tokens that were not renewed: closed after {} (median), at most {}",
        delays.len(),
        shown(median),
        shown(latest),
    );
    assert!(lost == 0 && resets == 0, "a client that renewed its token was disconnected");
    assert!(latest.is_none_or(|latest| *latest <= LATEST), "a connection outlived its token");
}

/// What all clients saw.
#[derive(Default)]
struct Seen {
    /// Clients that are open and on the cluster.
    open: AtomicU64,
    renewals: AtomicU64,
    lost: AtomicU64,
    resets: AtomicU64,
    /// Times from the end of a token to the close of its connection.
    delays: Mutex<Vec<Duration>>,
}

/// Returns a token that ends at a time.
fn token(user: &str, end: SystemTime) -> String {
    let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("a time of today").as_secs_f64();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &json!({ "sub": user, "exp": end }), &key).expect("a token")
}

/// Connects a client that renews its token.
fn connect(number: usize, address: SocketAddr, lifetime: Duration, seen: &Arc<Seen>) -> Client {
    let builder = Client::builder([format!("ws://{address}/WebSockets")])
        .credentials_with(move || async move { Ok(token(&format!("user-{number}"), SystemTime::now() + lifetime)) });
    let (client, events) = builder.connect().expect("a URL");
    tokio::spawn(follow(events, seen.clone()));
    client
}

async fn follow(mut events: Events, seen: Arc<Seen>) {
    let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    let mut is_open = false;
    while let Some(event) = events.next().await {
        match event {
            Event::New | Event::Recovered(_) => {
                add(&seen.open);
                is_open = true;
            }
            Event::Reset(why) if add(&seen.resets) == 0 => eprintln!("a client is reset: {why}"),
            Event::Message(message) if is_open && message.action == "Client/authentication" => {
                add(&seen.renewals);
            }
            Event::Message(message) if message.error().is_some() => eprintln!("{message:?}"),
            Event::Closed { code, reason, .. } if is_open => {
                seen.open.fetch_sub(1, Ordering::Relaxed);
                if code != 1000 {
                    eprintln!("a client is closed: {code} {reason}");
                    add(&seen.lost);
                }
                is_open = false;
            }
            _ => {}
        }
    }
}

/// Connects with one token after another, and waits for the end of each.
async fn expire(
    number: u32,
    address: SocketAddr,
    lifetime: Duration,
    first: Duration,
    seen: Arc<Seen>,
    over: Arc<AtomicBool>,
) {
    sleep(first).await;
    while !over.load(Ordering::Relaxed) {
        let Ok(mut client) = Plain::try_connect(address, "/WebSockets", &[]).await else {
            // Too many come at once.
            sleep(Duration::from_secs(1)).await;
            continue;
        };
        let end = SystemTime::now() + lifetime;
        client.send("Client/authentication", json!([token(&format!("other-{number}"), end)])).await;
        client.authenticated().await;
        let code = loop {
            match client.0.next().await {
                Some(Ok(Frame::Close(Some(frame)))) => break u16::from(frame.code),
                Some(Ok(_)) => {}
                other => panic!("the connection is lost: {other:?}"),
            }
        };
        let delay = SystemTime::now().duration_since(end).expect("not closed before the end");
        assert_eq!(code, 4003, "the close code of a token that is over");
        seen.delays.lock().push(delay);
    }
}
