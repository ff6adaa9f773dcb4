//! The program: flags and environment in, a [`ws_cluster::Server`] or a [`ws_cluster::Publisher`] out. What the flags
//! are is in `cli`, one file for each thing that is done with them.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{Parser, error::ErrorKind};
use tracing_subscriber::EnvFilter;
use ws_cluster::NodeId;

use crate::cli::{Cli, Command};

mod cli;
mod client;
mod demo;
mod key;
mod members;
mod pool;
mod run;
mod signals;

/// Holds ten thousands of small, long-lived connections in less room than the system's allocator, and gives what a
/// burst needed back after some seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Why a command ends without success: what to do, in one line, and the exit status.
#[derive(Debug)]
struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    /// Something has to be set up differently first: status 2.
    fn setup(text: impl ToString) -> Self {
        Self { status: 2, text: text.to_string() }
    }

    /// All is set up, but the cluster did not do it: status 1.
    fn refused(text: impl ToString) -> Self {
        Self { status: 1, text: text.to_string() }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let outcome = match log() {
        Ok(()) => obey(cli).await,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, text }) => {
            eprintln!("error: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
            ExitCode::from(status)
        }
    }
}

async fn obey(cli: Cli) -> Outcome {
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(run) => run::run(run).await,
        Command::Send(send) => client::send(send).await,
        Command::Close(close) => client::close(close).await,
        Command::Check(check) => client::check(check).await,
        Command::Pool(pool) => members::list(pool).await,
    }
}

/// Help and version as they are; one line for a value that is none; for the rest what clap says of the usage.
fn misused(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        eprintln!("{}", error.to_string().lines().next().unwrap_or_default());
    } else {
        // Nobody is left to be told that nobody reads.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Logs to standard error.
fn log() -> Outcome {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives).map_err(|error| {
            Failure::setup(format!("RUST_LOG is malformed ({error}): use info, or ws_cluster=debug"))
        })?,
        _ => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// The first eight digits of a node's id, as in the log: they tell the nodes of a cluster apart.
fn short(node: NodeId) -> String {
    let mut text = node.to_string();
    text.truncate(8);
    text
}

/// Writes a line to standard output. Whoever stopped reading it does not mind, and a server goes on.
fn say(line: impl std::fmt::Display) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}
