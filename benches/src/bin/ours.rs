//! A server that embeds ws-cluster, as the benches measure it: jemalloc as its allocator, sessions by cookie from a
//! cache, each user in a group with 99 others, two actions, and a control port on which it is told to publish.

use std::{error::Error, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use benches::{
    PUBLISH_KEY, Result,
    control::{DONE, Request as Order, Requests},
};
use clap::Parser;
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    spawn,
    time::Instant,
};
use ws_cluster::{
    ActionError, ActionHandler, Config, Identity, MemoryPool, Message, Request, Server, SessionCookie, Target,
    TlsCertificate, pool,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Number of sessions in the cache: as many as there can be connections.
const SESSIONS: usize = 20_000;

/// Number of users in one group.
const GROUP: usize = 100;

/// More messages per second than any client of the benches sends, since the rate limiter is not measured.
const UNLIMITED: u32 = 1_000_000;

/// Number of sockets. If three quarters are taken, a node closes the connection after each HTTP request, so that sockets
/// are left. The publishers of the benches keep theirs while 15,000 clients are connected.
const SOCKETS: usize = 40_000;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    control: u16,
    /// The URL of the pool in which the nodes find each other; without it, this one is alone.
    #[arg(long)]
    pool: Option<String>,
    /// Files with a certificate and its private key, with which the clients' port speaks TLS.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// Keeps the series as `ws-server` does.
#[cfg(feature = "metrics")]
fn keep_metrics() -> Result<()> {
    let builder = metrics_exporter_prometheus::PrometheusBuilder::new().set_buckets(&ws_cluster::metrics::BUCKETS)?;
    let recorder = builder.install_recorder()?;
    spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            recorder.run_upkeep();
        }
    });
    Ok(())
}

/// A handler that answers the connection that asked.
struct Echo;

#[async_trait]
impl ActionHandler for Echo {
    async fn handle(&self, request: Request) -> std::result::Result<(), ActionError> {
        request.reply(request.details())?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

/// A handler that answers the user who asked, through the cluster's order.
struct Reply;

#[async_trait]
impl ActionHandler for Reply {
    async fn handle(&self, request: Request) -> std::result::Result<(), ActionError> {
        request.reply_to_user(request.details()).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    #[cfg(feature = "metrics")]
    keep_metrics()?;
    let sessions: Vec<Identity> = (0..SESSIONS)
        .map(|number| Identity::user(format!("u{number}")).groups([format!("g{}", number / GROUP)]))
        .collect();
    let sessions = Arc::new(sessions);
    let mut config = Config::default();
    config.connection.messages_per_second = UNLIMITED;
    config.connection.message_burst = UNLIMITED;
    config.http.sockets = SOCKETS;
    let builder = match &options.pool {
        None => Server::builder(MemoryPool::default()),
        Some(url) => Server::builder(pool::open(url).await?)
            .address(format!("ws://127.0.0.1:{}", options.port))
            .key("a key of the benches, long enough"),
    };
    let server = builder
        .authenticator(SessionCookie::new("session", move |id: String| {
            // The client's number, which may be higher than the number of sessions.
            let number = id.parse::<usize>().ok().map(|number| number % SESSIONS);
            let identity = number.and_then(|number| sessions.get(number)).cloned();
            async move { Ok(identity) }
        }))
        .action("echo", Echo)
        .action("reply", Reply)
        .config(config)
        .publish_key(PUBLISH_KEY)
        .start()
        .await?;
    server.wait_ready().await;
    // The program that measures waits for the clients' port, so it opens last.
    let controls = TcpListener::bind((Ipv4Addr::LOCALHOST, options.control)).await?;
    spawn(obey_all(server.clone(), controls));
    let listener = listen(options.port)?;
    let serve = server.serve(listener).with_graceful_shutdown(std::future::pending());
    match (options.tls_cert, options.tls_key) {
        (Some(chain), Some(key)) => serve.with_tls(TlsCertificate::from_pem_files(chain, key)?).await?,
        _ => serve.await?,
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    // Clients connect by the hundred.
    Ok(socket.listen(4096)?)
}

async fn obey_all(server: Server, controls: TcpListener) {
    while let Ok((stream, _)) = controls.accept().await {
        let server = server.clone();
        spawn(async move {
            if let Err(error) = obey(&server, stream).await {
                eprintln!("error: {error}");
            }
        });
    }
}

async fn obey(server: &Server, mut stream: TcpStream) -> Result<()> {
    let (mut requests, mut buffer) = (Requests::default(), vec![0; 64 * 1024]);
    stream.set_nodelay(true)?;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            size => requests.push(&buffer[..size]),
        }
        while let Some(order) = requests.next_request()? {
            match order.path() {
                "/publish" => {
                    publish(server, &order).await?;
                    stream.write_all(DONE).await?;
                }
                "/flood" => {
                    let accepted = flood(server, &order).await?;
                    stream.write_all(answer(&accepted.to_string()).as_bytes()).await?;
                }
                // Answers true if the node is the master, and the number of nodes that have joined.
                "/status" => {
                    let status = server.status();
                    let master = status.master == Some(server.node_id());
                    let members = status.nodes.iter().filter(|node| node.member).count();
                    stream.write_all(answer(&format!("{master} {members}")).as_bytes()).await?;
                }
                path => return Err(format!("unknown path {path}").into()),
            }
        }
    }
}

fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn target(order: &Order) -> Result<Target> {
    Ok(order.parameter("to").unwrap_or("all").parse()?)
}

/// Publishes messages at the same time, so that they enter the order together.
async fn publish(server: &Server, order: &Order) -> Result<()> {
    let target = target(order)?;
    let message = || Message::raw("m", json!(order.text).into()).to(target.clone());
    let publishes = (0..order.number("count")).map(|_| server.publish(message()));
    join_all(publishes).await.into_iter().collect::<std::result::Result<(), _>>()?;
    Ok(())
}

/// Lets publishers each publish one batch after another for some time. Returns the number of accepted messages.
async fn flood(server: &Server, order: &Order) -> Result<usize> {
    let (batch, target) = (order.number("batch"), target(order)?);
    let end = Instant::now() + Duration::from_secs(order.number("seconds") as u64);
    let publishers = (0..order.number("publishers")).map(|_| {
        let (server, text, target) = (server.clone(), order.text.clone(), target.clone());
        spawn(async move {
            let mut accepted = 0;
            while Instant::now() < end {
                let message = || Message::raw("m", json!(text).into()).to(target.clone());
                let publishes = (0..batch).map(|_| server.publish(message()));
                accepted += join_all(publishes).await.iter().filter(|outcome| outcome.is_ok()).count();
            }
            accepted
        })
    });
    let accepted: std::result::Result<Vec<usize>, Box<dyn Error + Send + Sync>> =
        join_all(publishers).await.into_iter().map(|accepted| Ok(accepted?)).collect();
    Ok(accepted?.into_iter().sum())
}
