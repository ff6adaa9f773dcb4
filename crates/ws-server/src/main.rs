//! The program. It reads its settings, and runs a command with them: a node, which is a [`ws_cluster::Server`], the
//! supervisor of a node, or a command for a running cluster. `cli` defines the flags. Each command is a file.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    process::ExitCode,
};

use ws_cluster::NodeId;

use crate::{
    arguments::{Misuse, Parsed},
    cli::Command,
    config::{Settings, Shown},
    logs::LogFormat,
    reload::Reload,
    stderr::Stderr,
};

mod admin;
mod arguments;
mod authentication;
mod cli;
mod client;
mod config;
mod demo;
mod descriptors;
mod drain;
mod generate;
mod key;
mod logs;
mod members;
mod metrics;
mod outbox;
mod parent;
mod pool;
mod probe;
mod random;
mod reload;
mod run;
mod signals;
mod stderr;
mod supervise;
mod systemd;
mod tail;
mod tls;
mod values;

/// Needs less memory than the system's allocator for tens of thousands of small, long-lived connections, and returns
/// the memory of a burst to the system after some seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The reason why a command fails: an exit status, and one line that says what to do.
#[derive(Debug)]
struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    /// The settings or the environment must be changed first: status 2.
    fn setup(text: impl ToString) -> Self {
        Self { status: 2, text: text.to_string() }
    }

    /// The settings are right, but the cluster did not do it: status 1.
    fn refused(text: impl ToString) -> Self {
        Self { status: 1, text: text.to_string() }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

fn main() -> ExitCode {
    descriptors::close_inherited();
    descriptors::raise_limit();
    run_to_end()
}

#[tokio::main]
async fn run_to_end() -> ExitCode {
    let status = start().await;
    Stderr::get().flush();
    ExitCode::from(status)
}

/// Runs the command of the command line. Returns the exit status.
async fn start() -> u8 {
    let parsed = match arguments::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(misuse) => return misused(&misuse),
    };
    let sources = parsed.sources.clone();
    let filter = parsed.matches.try_get_one::<String>("log_filter").ok().flatten().cloned();
    let format = parsed.matches.try_get_one::<LogFormat>("log_format").ok().flatten().copied().unwrap_or_default();
    let outcome = match logs::start(filter, format) {
        Ok(()) => run_command(parsed).await,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => 0,
        Err(Failure { status, text }) => {
            let text = sources.named_in(text.split_whitespace().collect::<Vec<_>>().join(" "));
            Stderr::get().line(format_args!("error: {text}"));
            status
        }
    }
}

async fn run_command(parsed: Parsed) -> Outcome {
    let Parsed { cli, sources, matches, file } = parsed;
    for warning in file.iter().flat_map(|file| &file.warnings) {
        tracing::warn!("{warning}");
    }
    match cli.command.unwrap_or(Command::Run(Box::new(cli.run))) {
        Command::Run(run) => {
            let settings = Settings::new(*run, file.as_ref());
            let shown = Shown::new(config::table(&matches, &sources, file.as_ref(), &settings.config));
            let mut reload = Reload::new(config::values(&matches, &settings.config), shown.clone());
            run::run(settings.shown(shown), move |server| reload.read_again(server)).await
        }
        Command::Supervise(run) => supervise::supervise(Settings::new(*run, file.as_ref())).await,
        Command::Config(asked) if asked.example => say(config::example().trim_end()),
        Command::Config(asked) => {
            let settings = Settings::new(asked.run, file.as_ref());
            run::check(&settings)?;
            if asked.check {
                return Ok(());
            }
            say(config::effective(&matches, &sources, file.as_ref(), &settings.config).trim_end())
        }
        Command::Send(send) => client::send(send).await,
        Command::Close(close) => client::close(close).await,
        Command::Check(check) => client::check(check).await,
        Command::Drain(drain) => drain::drain(drain).await,
        Command::Completions(asked) => generate::completions(asked.shell),
        Command::Man(man) => generate::man(man.directory.as_deref()),
        Command::Pool(pool) => members::list(pool, &config::of_library(file.as_ref()).cluster).await,
    }
}

/// Prints help, the version, or the mistake in the command line. Returns the exit status.
fn misused(misuse: &Misuse) -> u8 {
    match misuse {
        Misuse::Line(line) => Stderr::get().line(format_args!("error: {line}")),
        Misuse::Usage(error) if error.use_stderr() && !io::stderr().is_terminal() => {
            Stderr::get().line(error.to_string().trim_end());
        }
        // This colours the text, and prints help to standard output. A reader that has gone needs no answer.
        Misuse::Usage(error) => drop(error.print()),
    }
    misuse.status()
}

/// Returns the first eight digits of a node's id, as in the log. They distinguish the nodes of a cluster.
fn short(node: NodeId) -> String {
    let mut text = node.to_string();
    text.truncate(8);
    text
}

/// Writes a line to standard output. A reader that has gone is no error.
fn say(line: impl std::fmt::Display) -> Outcome {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::refused(format!("standard output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}
