//! Commands to a running cluster: `send`, `close` and `check`.

use std::{
    fs::File,
    io::{self, Read},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use url::Url;
use ws_cluster::{ConnectError, Message, ParseDetailsError, PublishError, Publisher, RawDetails, pool::NodeRow};

use crate::{
    Failure, Outcome,
    cli::{Check, Close, Closed, Place, Send},
    pool::{self, Kind, Opened},
    say,
    stderr::Stderr,
    values,
};

mod lines;

/// Maximum size of the details' text. Escapes can make it several times as large as the message, which is limited to
/// 1 MiB.
const DETAILS_SIZE: u64 = 8 * 1024 * 1024;

/// Maximum number of nodes that are asked why a message was not accepted.
const ASKED_FOR_TROUBLE: usize = 8;
/// Time limit for their answers.
const TROUBLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of bytes of an answer that are read.
const READINESS_SIZE: u64 = 4096;

pub(crate) async fn send(send: Send) -> Outcome {
    let Send { action, details, to, idempotency_key, volatile, lines, place } = send;
    if lines {
        return lines::send(&place).await;
    }
    let (Some(action), Some(to)) = (action, to) else {
        return Err(Failure::setup("give the action of the message, and its target with --to"));
    };
    let details = details_of(&details)?;
    let publisher = connect(&place).await?;
    let message = Message::raw(action, details).to(to);
    let message = match idempotency_key {
        Some(key) => message.idempotency_key(key),
        None => message,
    };
    let message = if volatile { message.volatile() } else { message };
    let sent = publisher.publish(message).await;
    accepted(sent, &place).await
}

/// Reads the details: from standard input for `-`, from a file for `@PATH`, or from the argument itself. No JSON is `-`
/// or begins with `@`.
fn details_of(argument: &str) -> Outcome<RawDetails> {
    let (text, source) = if argument == "-" {
        (read(io::stdin().lock(), "standard input")?, "standard input".to_owned())
    } else if let Some(path) = argument.strip_prefix('@') {
        let file = File::open(path).map_err(|error| {
            Failure::setup(format!("{path} cannot be read ({error}): give @PATH of a file with the details"))
        })?;
        (read(file, path)?, path.to_owned())
    } else {
        (argument.to_owned(), "the details".to_owned())
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    text.parse().map_err(|error| match error {
        ParseDetailsError::NotJson(error) => {
            Failure::setup(format!(r#"no JSON in {source} ({error}): put text in quotes, as '"text"'"#))
        }
        error => Failure::setup(format!("{source}: {error}")),
    })
}

fn read(source: impl Read, name: &str) -> Outcome<String> {
    let mut text = String::new();
    match source.take(DETAILS_SIZE + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > DETAILS_SIZE => {
            Err(Failure::setup(format!("{name} has more than {DETAILS_SIZE} bytes: a message has at most 1 MiB")))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::setup(format!("{name} cannot be read ({error}): give JSON in UTF-8"))),
    }
}

pub(crate) async fn close(close: Close) -> Outcome {
    let publisher = connect(&close.place).await?;
    let closed = match close.whose {
        Closed::Session(id) => publisher.close_session(&id).await,
        Closed::User(id) => publisher.close_user(&id).await,
    };
    accepted(closed, &close.place).await
}

/// Checks that a node answers: at least one; with `--all` each; with `--address` that one.
pub(crate) async fn check(check: Check) -> Outcome {
    let Check { address, all, place } = check;
    let opened = match &address {
        // A given address needs no pool, except for the key beside it.
        Some(_) if !place.keys.is_empty() => None,
        _ => Some(reachable(&place).await?),
    };
    let key = match &opened {
        Some(opened) => opened.keys(&place.keys)?,
        None => given_keys(&place)?,
    };
    let key = key.into_iter().next().unwrap_or_default();
    if let Some(address) = address {
        return Publisher::check_node(&address, &place.cluster, key).await.map_err(not_connected);
    }
    let nodes = match &opened {
        Some(opened) => opened.read(&place.cluster).await?.nodes,
        None => Vec::new(),
    };
    if nodes.is_empty() {
        return Err(not_connected(ConnectError::NoServer));
    }
    let answers = ask(nodes, &place.cluster, &key).await;
    let failed = answers.iter().filter(|(_, answer)| answer.is_err()).count();
    if all {
        for (node, answer) in &answers {
            match answer {
                Ok(()) => say(format_args!("{}: answers", node.address))?,
                Err(error) => say(format_args!("{}: {}", node.address, reason(error)))?,
            }
        }
        return match failed {
            0 => Ok(()),
            _ => Err(Failure::refused(format!("{failed} of {} nodes do not answer", answers.len()))),
        };
    }
    let count = answers.len();
    if failed == count {
        // The reason of a refusal is more useful than a node that has gone.
        let rank = |error: &ConnectError| !matches!(error, ConnectError::Refused { .. });
        let errors = answers.into_iter().filter_map(|(_, answer)| answer.err());
        return Err(not_connected(errors.min_by_key(rank).unwrap_or(ConnectError::NoServer)));
    }
    for (node, answer) in &answers {
        if let Err(error) = answer {
            Stderr::get().line(format_args!(
                "warning: {} does not answer as it should: {}",
                node.address,
                reason(error)
            ));
        }
    }
    Ok(())
}

/// Asks all nodes at once. Returns their answers in the pool's order.
async fn ask(nodes: Vec<NodeRow>, cluster: &str, key: &[u8]) -> Vec<(NodeRow, Result<(), ConnectError>)> {
    let mut asked = JoinSet::new();
    for node in nodes {
        let (cluster, key) = (cluster.to_owned(), key.to_owned());
        asked.spawn(async move {
            let answer = Publisher::check_node(&node.address, &cluster, key).await;
            (node, answer)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(node, _)| node.ord);
    answers
}

/// Returns the text of an error without the address.
fn reason(error: &ConnectError) -> String {
    match error {
        ConnectError::Refused { why, .. } => format!("refuses: {why}"),
        ConnectError::Unreachable { why, .. } => why.clone(),
        error => error.to_string(),
    }
}

fn given_keys(place: &Place) -> Outcome<Vec<Vec<u8>>> {
    Ok(values::items(&place.keys, "--key")?.into_iter().map(String::into_bytes).collect())
}

/// Opens the pool of a place, if other processes can share it.
pub(crate) async fn reachable(place: &Place) -> Outcome<Opened> {
    let opened = Opened::existing(place).await?;
    if opened.kind == Kind::Memory {
        return Err(Failure::setup("other processes cannot reach a pool in memory: give --pool"));
    }
    Ok(opened)
}

async fn connect(place: &Place) -> Outcome<Publisher> {
    let opened = reachable(place).await?;
    let key = opened.keys(&place.keys)?.swap_remove(0);
    Publisher::builder(opened.pool).cluster(&*place.cluster).key(key).connect().await.map_err(not_connected)
}

pub(crate) fn not_connected(error: ConnectError) -> Failure {
    match error {
        ConnectError::Pool(error) => pool::failure(error),
        ConnectError::Key(_) => Failure::setup(error),
        ConnectError::NoServer => Failure::refused(format!("{error}: start one, or give its --pool and --cluster")),
        error => Failure::refused(error),
    }
}

/// Returns the outcome of a publish. If it was not accepted and the message is valid, the nodes are asked why.
async fn accepted(outcome: Result<(), PublishError>, place: &Place) -> Outcome {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if !error.is_retryable() => Err(Failure::setup(error)),
        Err(error) => match trouble(place).await {
            Some(trouble) => Err(Failure::refused(format!("{error}; {trouble}"))),
            None => Err(Failure::refused(error)),
        },
    }
}

/// Returns the first trouble that a node reports at `/ready`.
async fn trouble(place: &Place) -> Option<String> {
    let opened = Opened::existing(place).await.ok()?;
    let mut nodes = opened.read(&place.cluster).await.ok()?.nodes;
    nodes.sort_by_key(|node| node.age);
    let mut asked = JoinSet::new();
    for node in nodes.into_iter().take(ASKED_FOR_TROUBLE) {
        asked.spawn(async move {
            let text = timeout(TROUBLE_TIMEOUT, readiness(&node.address)).await.ok()??;
            (text != "ready").then(|| format!("{} says: {text}", node.address))
        });
    }
    asked.join_all().await.into_iter().flatten().next()
}

/// Returns the text of `GET /ready` of a node at an address without TLS.
async fn readiness(address: &str) -> Option<String> {
    let url = Url::parse(address).ok().filter(|url| url.scheme() == "ws")?;
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let mut stream = TcpStream::connect(format!("{host}:{port}")).await.ok()?;
    let path = url.path().trim_end_matches('/');
    let request = format!("GET {path}/ready HTTP/1.0\r\nhost: {}\r\n\r\n", url.authority());
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.take(READINESS_SIZE).read_to_string(&mut answer).await.ok()?;
    let (_, text) = answer.split_once("\r\n\r\n")?;
    Some(text.trim().to_owned())
}
