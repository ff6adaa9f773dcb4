//! The commands, flags and environment variables of the program.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::bare_urls, reason = "the comments are help texts for a terminal")]

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use ws_cluster::{Dialect, Target};

use crate::{
    logs::LogFormat,
    values::{count, dialect, duration, rate, size, switch, text},
};

/// A node of a WebSocket cluster, and commands for a running cluster.
///
/// Without a command it runs a node. Every flag has an environment variable, shown beside it, and a key in the file of
/// --config. A flag wins over its variable, the variable over the file; an empty variable counts as unset. Logs go to
/// standard error; RUST_LOG sets the level (error, warn, info, debug; default info).
///
/// Exit status: 0 for success, 1 if no node answers or a message is not accepted, 2 if a setting is wrong or the
/// database does not answer.
#[derive(Debug, Parser)]
#[command(version = env!("WS_SERVER_VERSION"), args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node (the default without a command)
    Run(Box<Run>),
    /// Run a node as a child process, and start it again when it ends or does not answer
    Supervise(Box<Run>),
    /// Show, check or explain the settings of a node, including the file of --config
    Config(Box<Settings>),
    /// Publish a message through a running node
    Send(Send),
    /// Close all connections of a session or user; their clients do not connect again
    Close(Close),
    /// Show the nodes of the cluster, its master and its term
    ///
    /// A node counts as gone by cluster.member_timeout in the file of --config, or by its default of 10 s.
    Pool(List),
    /// Make a test connection to each node: exit status 0 if one answers, 1 if none does
    Check(Check),
    /// Ask a node to end, and wait until it has left the cluster
    Drain(Drain),
    /// Print the completions of a shell
    Completions(Completions),
    /// Write the manual pages
    Man(Man),
}

/// The pool, the name and the key of a cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// The pool, the database in which the nodes find each other: sqlite:PATH for nodes on one machine,
    /// mysql://user:password@host:port/database for nodes anywhere, memory: for a single node [default:
    /// sqlite:ws-cluster/pool.sqlite in $XDG_STATE_HOME or ~/.local/state]
    #[arg(
        long,
        value_name = "URL",
        value_parser = text,
        env = "WS_SERVER_POOL",
        hide_env_values = true,
        help_heading = "Cluster"
    )]
    pub(crate) pool: Option<String>,
    /// The name of the cluster, if several share a pool: 1 to 64 bytes of ASCII
    #[arg(
        long,
        value_name = "NAME",
        value_parser = text,
        env = "WS_SERVER_CLUSTER",
        default_value = "default",
        help_heading = "Cluster"
    )]
    pub(crate) cluster: String,
    /// The secret of at least 32 bytes that the nodes prove to each other. Of several, separated by commas, a node
    /// presents the first and accepts all. Required with MySQL; with SQLite, a node makes it in PATH.key beside the
    /// pool if it is missing. (Other users of the machine see the flags of a process, but not its environment.)
    #[arg(long = "key", value_name = "KEY", env = "WS_CLUSTER_KEY", hide_env_values = true, help_heading = "Cluster")]
    pub(crate) keys: Vec<String>,
    /// A file with settings, in TOML: see ws-server config
    #[arg(long, value_name = "FILE", env = "WS_SERVER_CONFIG", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The address on which to listen for clients and nodes; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", value_parser = text, env = "WS_SERVER_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// The address at which the other nodes reach this one [default: the address of --listen]
    #[arg(
        long,
        value_name = "ws://HOST:PORT",
        value_parser = text,
        env = "WS_SERVER_ADDRESS",
        help_heading = "Cluster"
    )]
    pub(crate) address: Option<String>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// The path at which clients connect
    #[arg(long, value_name = "PATH", value_parser = text, env = "WS_SERVER_PATH", default_value = "/WebSockets")]
    pub(crate) path: String,
    /// The dialect of messages to clients that have not sent one yet: object ({"action": .., "details": [..]}) or array
    /// (["action", [..]]). Other clients are answered in their own dialect
    #[arg(
        long,
        value_name = "object|array",
        value_parser = dialect,
        env = "WS_SERVER_DIALECT",
        default_value = "object"
    )]
    pub(crate) dialect: Dialect,
    /// Serve a page at / that shows the cluster live, with the actions hello, say and tell; anyone can take any name
    /// with ?user=NAME
    #[arg(long, value_parser = switch, env = "WS_SERVER_DEMO")]
    pub(crate) demo: bool,
    /// Refuse clients without a user (default: they are guests, who get the messages to all)
    #[arg(long, value_parser = switch, env = "WS_SERVER_NO_GUESTS", help_heading = "Sessions")]
    pub(crate) no_guests: bool,
    /// The name of the cookie in which the site keeps the session's id
    #[arg(long, value_name = "NAME", value_parser = text, env = "WS_SERVER_SESSION_COOKIE", help_heading = "Sessions")]
    pub(crate) session_cookie: Option<String>,
    /// The query that finds a session's user and end: SELECT user, expires FROM sessions WHERE id = ?
    #[arg(long, value_name = "SQL", value_parser = text, env = "WS_SERVER_SESSION_QUERY", help_heading = "Sessions")]
    pub(crate) session_query: Option<String>,
    /// The query that finds a user's groups: SELECT name FROM memberships WHERE user = ?
    #[arg(long, value_name = "SQL", value_parser = text, env = "WS_SERVER_GROUPS_QUERY", help_heading = "Sessions")]
    pub(crate) groups_query: Option<String>,
    /// The database of the sessions, mysql://user:password@host:port/database [default: that of a MySQL pool]
    #[arg(
        long,
        value_name = "URL",
        value_parser = text,
        env = "WS_SERVER_SESSION_DATABASE",
        hide_env_values = true,
        help_heading = "Sessions"
    )]
    pub(crate) session_database: Option<String>,
    #[command(flatten)]
    pub(crate) tokens: Tokens,
    #[command(flatten)]
    pub(crate) backend: BackendFlags,
    /// Open POST /_publish, /_groups, /_close, /_refresh and GET /_position to requests that present this key (default:
    /// closed)
    #[arg(long, value_name = "KEY", value_parser = text, env = "WS_SERVER_PUBLISH_KEY", hide_env_values = true)]
    pub(crate) publish_key: Option<String>,
    /// Publish the rows of the table ws_outbox when their transactions commit. The master polls the table, so every
    /// node needs this
    #[arg(long, value_parser = switch, env = "WS_SERVER_OUTBOX", help_heading = "Outbox")]
    pub(crate) outbox: bool,
    /// The database of the outbox, mysql://user:password@host:port/database or sqlite:PATH of a file that exists
    /// [default: that of the pool]
    #[arg(
        long,
        value_name = "URL",
        value_parser = text,
        env = "WS_SERVER_OUTBOX_DATABASE",
        hide_env_values = true,
        help_heading = "Outbox"
    )]
    pub(crate) outbox_database: Option<String>,
    /// A proxy whose X-Forwarded-For the node believes, as an address or a network; may be repeated, or separated by
    /// commas [default: 127.0.0.0/8, ::1]
    #[arg(long, value_name = "CIDR", env = "WS_SERVER_TRUSTED_PROXIES")]
    pub(crate) trusted_proxy: Vec<String>,
    /// An origin, such as https://example.org, whose pages may connect with cookies, besides the node's own host; may
    /// be repeated, or separated by commas
    #[arg(long, value_name = "URL", env = "WS_SERVER_ALLOWED_ORIGINS")]
    pub(crate) allowed_origin: Vec<String>,
    /// Refuse pages of the node's own host with cookies as well, unless --allowed-origin lists it
    #[arg(long, value_parser = switch, env = "WS_SERVER_NO_OWN_ORIGIN")]
    pub(crate) no_own_origin: bool,
    /// Accept messages on a master that has lost all its followers and cannot read the pool. They are lost if
    /// the other nodes have elected another master, or if this node ends before it is linked again (default: such
    /// messages wait, and their outcome is unknown)
    #[arg(long, value_parser = switch, env = "WS_SERVER_ACCEPT_WHEN_ISOLATED", help_heading = "Cluster")]
    pub(crate) accept_when_isolated: bool,
    /// How much is logged: error, warn, info, debug, or a filter as ws_cluster=debug [default: info]
    #[arg(long, value_name = "FILTER", value_parser = text, env = "RUST_LOG")]
    pub(crate) log_filter: Option<String>,
    /// Write the log as text, or as JSON with one object in each line
    #[arg(long, value_name = "FORMAT", value_enum, env = "WS_SERVER_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Time over which a shutdown closes the clients evenly, so that they do not come to the other nodes all at once
    #[arg(long, value_name = "TIME", value_parser = duration, env = "WS_SERVER_DRAIN", default_value = "10s")]
    pub(crate) drain: Duration,
    /// Send all messages plain, and refuse compressed ones of clients (default: messages are compressed for clients
    /// that offer permessage-deflate)
    #[arg(long, value_parser = switch, env = "WS_SERVER_NO_COMPRESSION")]
    pub(crate) no_compression: bool,
    /// Smallest message that is compressed for clients that offer permessage-deflate, in bytes or as 1K, rounded up to
    /// a power of two [default: 256]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "WS_SERVER_COMPRESSION_MIN_SIZE")]
    pub(crate) compression_min_size: Option<usize>,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) supervision: Supervision,
    #[command(flatten)]
    pub(crate) admin_page: AdminPage,
}

/// The certificate with which the node serves TLS itself, without a proxy in front.
#[derive(Args, Debug)]
#[command(next_help_heading = "TLS")]
pub(crate) struct Tls {
    /// A file with the certificate of the node's host and its chain, in PEM: clients then connect with wss://. The file
    /// is read again when it changes and at SIGHUP
    #[arg(long, value_name = "FILE", env = "WS_SERVER_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// A file with the private key of the certificate, in PEM, without a passphrase
    #[arg(long, value_name = "FILE", env = "WS_SERVER_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// The test connections by which `supervise` and the watchdog of systemd find a node that hangs.
#[derive(Args, Debug)]
#[command(next_help_heading = "Supervision")]
pub(crate) struct Supervision {
    /// Time between two test connections; after two that fail in a row, supervise kills the node and starts it again
    #[arg(
        long,
        value_name = "TIME",
        value_parser = duration,
        env = "WS_SERVER_CHECK_INTERVAL",
        default_value = "10s"
    )]
    pub(crate) check_interval: Duration,
    /// Time limit for the answer to a test connection
    #[arg(long, value_name = "TIME", value_parser = duration, env = "WS_SERVER_CHECK_TIMEOUT", default_value = "5s")]
    pub(crate) check_timeout: Duration,
    /// The process id of the supervisor; the node ends with it
    #[arg(long, hide = true)]
    pub(crate) supervised_by: Option<u32>,
}

/// The page on which an administrator sees and operates the server, and what else its listener answers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Admin page")]
pub(crate) struct AdminPage {
    /// Serve the admin page at this address: the state with start and stop, the log, the cluster, the connections; and
    /// /metrics, /health and /ready. With supervise, the supervisor serves it
    #[arg(long, value_name = "HOST:PORT", value_parser = text, env = "WS_SERVER_ADMIN")]
    pub(crate) admin: Option<String>,
    /// The key that opens the admin page, of at least 16 bytes. An address that other machines reach needs one
    #[arg(long, value_name = "KEY", value_parser = text, env = "WS_SERVER_ADMIN_KEY", hide_env_values = true)]
    pub(crate) admin_key: Option<String>,
    /// Answer /metrics at the admin page's address without the key
    #[arg(long, value_parser = switch, env = "WS_SERVER_METRICS_OPEN")]
    pub(crate) metrics_open: bool,
}

/// The limits for clients. A size is in bytes, or has a unit: 64K is 65536, 1M is 1048576.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Maximum number of connections of this node; the next is refused with 503 [default: 100000, or what the limit on
    /// file descriptors allows]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_CONNECTIONS")]
    pub(crate) connections: Option<usize>,
    /// Clients that this node accepts per second; the next is refused with 503, and Retry-After tells it when to come
    /// again [default: no limit]
    #[arg(long, value_name = "COUNT", value_parser = rate, env = "WS_SERVER_ACCEPT_RATE")]
    pub(crate) accept_rate: Option<u32>,
    /// Maximum number of connections from one address, which is the client's own address behind a trusted proxy; the
    /// next is refused with 429 [default: 1000]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_CONNECTIONS_PER_IP")]
    pub(crate) connections_per_ip: Option<usize>,
    /// Largest message of a client, in bytes or as 64K; a larger one closes its connection (1009) [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "WS_SERVER_MESSAGE_SIZE")]
    pub(crate) message_size: Option<usize>,
    /// Messages a second that a client may send on average; a faster one is read more slowly [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = count::<u32>, env = "WS_SERVER_MESSAGES_PER_SECOND")]
    pub(crate) messages_per_second: Option<u32>,
    /// Messages that a client may send at once before it is held back [default: 500]
    #[arg(long, value_name = "COUNT", value_parser = count::<u32>, env = "WS_SERVER_MESSAGE_BURST")]
    pub(crate) message_burst: Option<u32>,
    /// Messages that may wait for a client that reads too slowly, in bytes or as 1M; beyond it, the client is closed
    /// (4000) and connects again [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "WS_SERVER_QUEUE_SIZE")]
    pub(crate) queue_size: Option<usize>,
    /// Maximum number of accepted sockets, including those of connections; beyond it, only /health, /ready, publishes
    /// and links are answered [default: what the limit on file descriptors allows]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_SOCKETS")]
    pub(crate) sockets: Option<usize>,
    /// Maximum number of sockets of one address that are not WebSocket connections; the next gets 429 or is closed.
    /// Trusted proxies are exempt [default: 1000]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_SOCKETS_PER_IP")]
    pub(crate) sockets_per_ip: Option<usize>,
    /// Largest head of a request, in bytes or as 16K; a larger one gets 431 [default: 16K]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "WS_SERVER_REQUEST_HEAD_SIZE")]
    pub(crate) request_head_size: Option<usize>,
    /// Look-ups of sessions for one address at the same time; further ones wait for their turn [default: 16]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_LOOK_UPS_PER_IP")]
    pub(crate) look_ups_per_ip: Option<usize>,
    /// Missed messages that are replayed to one address, in bytes a minute or as 256M; beyond it, its clients are told
    /// that messages may be missing (reset) [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = size, env = "WS_SERVER_REPLAY_BYTES_PER_MINUTE")]
    pub(crate) replay_bytes_per_minute: Option<usize>,
}

/// The keys of JSON Web Tokens, and what else must be right in them.
#[derive(Args, Debug)]
#[command(next_help_heading = "Tokens")]
pub(crate) struct Tokens {
    /// A secret of at least 32 bytes with which the site signs its tokens (HS256). May be repeated: tokens of every
    /// secret are accepted, so that secrets can be rotated
    #[arg(long, value_name = "SECRET", env = "WS_SERVER_JWT_SECRET", hide_env_values = true)]
    pub(crate) jwt_secret: Vec<String>,
    /// A file with the public key of the site's tokens, or several, in PEM (RS256, ES256, EdDSA); may be repeated, or
    /// separated by commas
    #[arg(long, value_name = "FILE", env = "WS_SERVER_JWT_PUBLIC_KEY")]
    pub(crate) jwt_public_key: Vec<String>,
    /// A JSON Web Key Set, at a URL or in a file, which is read again every 5 minutes; may be repeated, or separated by
    /// commas
    #[arg(long, value_name = "URL-or-FILE", env = "WS_SERVER_JWT_JWKS")]
    pub(crate) jwt_jwks: Vec<String>,
    /// The issuer that tokens must name (iss). If there are several, separated by commas, a token must name one of them
    #[arg(long, value_name = "ISSUER", env = "WS_SERVER_JWT_ISSUER")]
    pub(crate) jwt_issuer: Vec<String>,
    /// The audience that tokens must name (aud). If there are several, separated by commas, a token must name one of
    /// them
    #[arg(long, value_name = "AUDIENCE", env = "WS_SERVER_JWT_AUDIENCE")]
    pub(crate) jwt_audience: Vec<String>,
    /// A cookie that may contain the token
    #[arg(long, value_name = "NAME", value_parser = text, env = "WS_SERVER_JWT_COOKIE")]
    pub(crate) jwt_cookie: Option<String>,
}

/// The site's own code, which says who clients are and handles their actions.
#[derive(Args, Debug)]
#[command(next_help_heading = "Backend")]
pub(crate) struct BackendFlags {
    /// The URL of the site's code that handles actions, as http://127.0.0.1:8000/ws.php, or unix:SOCKET:PATH for HTTP
    /// over a Unix socket
    #[arg(long, value_name = "URL", value_parser = text, env = "WS_SERVER_BACKEND", hide_env_values = true)]
    pub(crate) backend: Option<String>,
    /// The key that signs the requests: whsec_ and Base64, or any other text of 24 bytes or more
    #[arg(long, value_name = "KEY", value_parser = text, env = "WS_SERVER_BACKEND_KEY", hide_env_values = true)]
    pub(crate) backend_key: Option<String>,
    /// Ask the backend also who clients are, after sessions and tokens
    #[arg(long, value_parser = switch, env = "WS_SERVER_BACKEND_CONNECT")]
    pub(crate) backend_connect: bool,
    /// The actions that go to the backend, with * for any text; may be repeated, or separated by commas [default: all
    /// without a handler]
    #[arg(long, value_name = "PATTERN", env = "WS_SERVER_BACKEND_ACTIONS")]
    pub(crate) backend_actions: Vec<String>,
    /// Do not tell the backend about connections that have ended
    #[arg(long, value_parser = switch, env = "WS_SERVER_NO_BACKEND_DISCONNECT")]
    pub(crate) no_backend_disconnect: bool,
    /// Requests of this node to the backend at the same time; fewer than the site has processes
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = count::<usize>,
        env = "WS_SERVER_BACKEND_CONCURRENCY",
        default_value = "64"
    )]
    pub(crate) backend_concurrency: usize,
    /// Requests of a kind (questions about clients, actions, events) that wait for their turn; the next gets 503
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>, env = "WS_SERVER_BACKEND_QUEUE", default_value = "1000")]
    pub(crate) backend_queue: usize,
    /// Time for which a request waits for its turn, and then for its answer
    #[arg(long, value_name = "TIME", value_parser = duration, env = "WS_SERVER_BACKEND_TIMEOUT", default_value = "5s")]
    pub(crate) backend_timeout: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Only check the settings: exit status 0 if they can work; otherwise 2, with a line that names the mistake
    #[arg(long, conflicts_with = "example", help_heading = "Configuration")]
    pub(crate) check: bool,
    /// Print a file with every setting, its default and its meaning
    #[arg(long, help_heading = "Configuration")]
    pub(crate) example: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Check the node at this address and no other
    #[arg(long, value_name = "ws://HOST:PORT", value_parser = text, conflicts_with = "all", help_heading = "Cluster")]
    pub(crate) address: Option<String>,
    /// Check every node of the pool, with a line for each: exit status 1 if one does not answer
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct Drain {
    /// The node: its address as ws://HOST:PORT, or the first digits of its id, as `ws-server pool` shows both
    #[arg(value_name = "NODE", value_parser = text)]
    pub(crate) node: String,
    /// How long to wait until the node has left the cluster; 0 does not wait
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2min")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// The directory for the pages, one for each command [default: the page of ws-server goes to standard output]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Send {
    /// The message's action, 1 to 255 bytes
    #[arg(required_unless_present = "lines")]
    pub(crate) action: Option<String>,
    /// The message's details, as JSON: an array has one argument for each element, any other value is one argument. A
    /// single - reads them from standard input, @PATH from a file
    #[arg(value_name = "DETAILS_JSON", allow_negative_numbers = true, default_value = "[]", hide_default_value = true)]
    pub(crate) details: String,
    /// The connections that get the message: all, registered, user:ID[,ID], group:ID[,ID], session:ID or
    /// property:NAME=VALUE
    #[arg(long, value_name = "TARGET", required_unless_present = "lines")]
    pub(crate) to: Option<Target>,
    /// A key of 1 to 64 bytes, to try again if the outcome is unknown: of several messages with the same key, only one
    /// is delivered
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Deliver the message only to connections that have taken everything sent to them, and never replay it
    #[arg(long)]
    pub(crate) volatile: bool,
    /// Read messages from standard input instead, one JSON object in each line, as POST /_publish takes it; the outcome
    /// of each is a line of standard output, and the exit status is 1 if one was not accepted
    #[arg(long, conflicts_with_all = ["action", "details", "to", "idempotency_key", "volatile"])]
    pub(crate) lines: bool,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct Close {
    /// The session or user whose connections are closed: session:ID or user:ID
    #[arg(value_name = "TARGET")]
    pub(crate) whose: Closed,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// The session or user whose connections are closed.
#[derive(Clone, Debug)]
pub(crate) enum Closed {
    Session(String),
    User(String),
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// Print the SQL that creates the tables of a MySQL pool and of the outbox instead, for an account that may not
    /// create tables; with an SQLite --pool, those of the outbox
    #[arg(long)]
    pub(crate) schema: bool,
    #[command(flatten)]
    pub(crate) place: Place,
}

impl std::str::FromStr for Closed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((_, "")) | None => Err("unknown target: use session:ID or user:ID"),
            Some(("session", id)) => Ok(Self::Session(id.to_owned())),
            Some(("user", id)) => Ok(Self::User(id.to_owned())),
            Some(_) => Err("unknown target: use session:ID or user:ID"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        let cli = Cli::parse_from(["ws-server", "--listen", "127.0.0.1:1"]);
        assert!(cli.command.is_none());
        assert_eq!(cli.run.listen, "127.0.0.1:1");
        let cli = Cli::parse_from(["ws-server", "run", "--listen", "127.0.0.1:2"]);
        assert!(matches!(cli.command, Some(Command::Run(run)) if run.listen == "127.0.0.1:2"));
    }
}
