//! What is asked of a running cluster from outside: `send`, `close`, `check`.

use ws_cluster::{ConnectError, PublishError, Publisher};

use crate::{
    Failure, Outcome,
    cli::{Close, Closed, Place, Send},
    pool::{self, Kind, Opened},
};

pub(crate) async fn send(send: Send) -> Outcome {
    let publisher = connect(&send.place).await?;
    let Send { action, details, to, idempotency_key, .. } = send;
    let sent = match idempotency_key {
        Some(key) => publisher.publish_with_key(&action, details, to, &key).await,
        None => publisher.publish(&action, details, to).await,
    };
    sent.map_err(not_accepted)
}

pub(crate) async fn close(close: Close) -> Outcome {
    let publisher = connect(&close.place).await?;
    let closed = match close.whose {
        Closed::Session(id) => publisher.close_session(&id).await,
        Closed::User(id) => publisher.close_user(&id).await,
    };
    closed.map_err(not_accepted)
}

pub(crate) async fn check(place: Place) -> Outcome {
    connect(&place).await.map(drop)
}

async fn connect(place: &Place) -> Outcome<Publisher> {
    let opened = Opened::at(place).await?;
    if opened.kind == Kind::Memory {
        return Err(Failure::setup("nobody reaches a pool in another process's memory: give --pool"));
    }
    let key = opened.keys(&place.keys)?.swap_remove(0);
    Publisher::connect_to(&place.cluster, opened.pool, key).await.map_err(|error| match error {
        ConnectError::Pool(error) => pool::failure(error),
        ConnectError::ShortKey => Failure::setup(error),
        ConnectError::NoServer => Failure::refused(format!("{error}: start one, or give its --pool and --cluster")),
        error => Failure::refused(error),
    })
}

fn not_accepted(error: PublishError) -> Failure {
    match error {
        PublishError::Invalid(_) | PublishError::TooLarge { .. } => Failure::setup(error),
        error => Failure::refused(error),
    }
}
