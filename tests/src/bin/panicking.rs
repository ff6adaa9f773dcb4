//! A node in a program whose log writer panics, as one does that prints to a reader who is gone. The action `go` makes the
//! task of the cluster log a line. What becomes of the program is for a test to see.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use async_trait::async_trait;
use tokio::net::TcpListener;
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool,
    Request, Revoked, Server,
};

struct Log;

impl Write for Log {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("nobody reads the log")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Panics in the task of the cluster, which logs that.
struct Site;

#[async_trait]
impl Authenticator for Site {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(None)
    }

    fn forget(&self, _: Revoked<'_>) {
        panic!("as the test wants it")
    }
}

struct Go;

#[async_trait]
impl ActionHandler for Go {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        Ok(request.server().close_user("nobody").await?)
    }

    fn guests(&self) -> bool {
        true
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let builder = Server::builder(MemoryPool::default()).authenticator(Site).action("go", Go);
    let server = builder.start().await.expect("a server");
    server.wait_ready().await;
    // What is logged below this level is not written.
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(|| Log);
    log.init();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("http://{}/", listener.local_addr().expect("it is bound"));
    match server.serve(listener).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
