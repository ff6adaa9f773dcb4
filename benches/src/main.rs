//! `benches compare` measures servers beside each other and prints one table. `benches goals` measures ours by its
//! goals, and `benches followers` what followers cost their master. The other commands are the programs that these start:
//! the load generator, one `send()` per socket, a plain server.

use std::{path::PathBuf, process::ExitCode};

use benches::Result;
use clap::{Args, Parser, Subcommand};

mod chart;
mod cluster;
mod compare;
mod followers;
mod goals;
mod load;
mod machine;
mod one_send;
mod peers;
mod plain;
mod process;
mod scenario;
mod series;
mod table;

/// The allocator of the plain server, as of ours.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the cost of a delivery, a connection and an action, beside the bare system call and other servers.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures servers in turn and prints one table.
    Compare(Compare),
    /// Measures ws-cluster by its goals.
    Goals(Goals),
    /// Measures the way of a message through two nodes, of ws-cluster and of its relatives.
    Cluster(Through),
    /// Measures what followers cost their master.
    Followers(Followers),
    /// The load generator, which reads its orders from the standard input.
    #[command(hide = true)]
    Load,
    /// Calls one `send()` for each socket.
    #[command(hide = true)]
    OneSend(Ports),
    /// A plain tokio-tungstenite server.
    #[command(hide = true)]
    Plain {
        #[command(flatten)]
        ports: Ports,
        /// Size of its read buffer in bytes; default: the library's.
        #[arg(long)]
        buffer: Option<usize>,
    },
}

#[derive(Args)]
struct Ports {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    control: u16,
}

#[derive(Args)]
struct Compare {
    /// Number of rounds in which each server is measured once; figures are their medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of clients for the fan-out, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = scenario::fan_out::CLIENTS)]
    clients: Vec<usize>,
    /// Number of idle connections.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Servers whose names begin with one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Runs one round, for a first look.
    #[arg(long)]
    quick: bool,
    /// Directory of `compare.md` and `compare.svg`.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Args)]
struct Goals {
    /// Number of rounds; medians count, and ratios within a round.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Goals with these names, separated by commas: speed, batch, targets, actions, memory, latency, relay, connect,
    /// slow, churn, tls, locks, deflate.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Numbers of clients for `speed`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = scenario::fan_out::CLIENTS)]
    clients: Vec<usize>,
    /// Another build of the program `ours`, which is measured in the same rounds by speed, targets, actions, connect.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Number of connections that come and go in one run.
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
    /// Measures shorter and once, except for `speed`, for a first look.
    #[arg(long)]
    quick: bool,
    /// Directory of `goals.md`.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Args)]
struct Through {
    /// Number of rounds in which each cluster is measured once; figures are their medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Clusters whose names contain one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Runs one short round, for a first look.
    #[arg(long)]
    quick: bool,
    /// Directory of `cluster.md`.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

#[derive(Args)]
struct Followers {
    /// Number of rounds; medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Number of messages, one at a time. Eight times as many are published 64 at once.
    #[arg(long, default_value_t = 1_500)]
    messages: usize,
    /// Another build of the program `ours`, which is measured in the same rounds.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Directory of `followers.md`.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

impl Goals {
    /// Returns the server of the build before.
    fn before(&self) -> Option<peers::Ours> {
        self.before.clone().map(|program| peers::Ours { program: Some(program), ..Default::default() })
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // Some goals have their own number of clients.
    let most = |clients: &[usize], other: usize| clients.iter().copied().max().unwrap_or(0).max(other);
    match command {
        Command::Compare(options) => {
            machine::raise_descriptors(most(&options.clients, options.idle))?;
            compare::run(&options)
        }
        Command::Goals(options) => {
            machine::raise_descriptors(most(&options.clients, scenario::connect::CLIENTS))?;
            goals::run(&options)
        }
        Command::Cluster(options) => cluster::run(&options),
        Command::Followers(options) => followers::run(&options),
        Command::Load => load::run(),
        Command::OneSend(ports) => one_send::run(ports.port, ports.control),
        Command::Plain { ports, buffer } => plain::run(ports.port, ports.control, buffer),
    }
}
