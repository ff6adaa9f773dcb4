//! What can be asked of the program: commands, flags and the environment variables that stand for them.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::bare_urls, reason = "the comments are help texts for a terminal")]

use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use ws_cluster::{Origin, Target};

/// A node of a WebSocket cluster, and commands to a running one.
///
/// Without a command it runs a node. Every flag has an environment variable, shown beside it; the flag wins. Logs go to
/// standard error; RUST_LOG says how much (error, warn, info, debug; default info).
///
/// Exit status: 0 for success, 1 where no server answers or a message is not accepted, 2 where something has to be set
/// up differently first.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node (what happens without a command)
    Run(Run),
    /// Publish a message, from outside of the cluster
    Send(Send),
    /// Close all connections of a session or user, for good
    Close(Close),
    /// Show the nodes of the cluster, its master and its term
    Pool(List),
    /// Make a test connection: exit status 0 if a server answers, 1 if none does
    Check(Place),
}

/// Where a cluster is found, and what opens it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// The pool of the cluster: sqlite:PATH for nodes on one machine, mysql://user:password@host:port/database for nodes
    /// anywhere, memory: for a single node [default: sqlite:ws-cluster/pool.sqlite in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "URL", env = "WS_SERVER_POOL", hide_env_values = true, help_heading = "Cluster")]
    pub(crate) pool: Option<String>,
    /// The cluster's name, which tells clusters in one pool apart: 1 to 64 bytes of ASCII
    #[arg(long, value_name = "NAME", env = "WS_SERVER_CLUSTER", default_value = "default", help_heading = "Cluster")]
    pub(crate) cluster: String,
    /// The secret that the nodes prove to each other, of at least 32 bytes. Several, separated by commas: the first is
    /// presented, all are accepted. Required with MySQL; with SQLite it is made when missing, in PATH.key beside the
    /// pool. (Other users of the machine see a process's flags, but not its environment.)
    #[arg(
        long = "key",
        value_name = "KEY",
        env = "WS_CLUSTER_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "Cluster"
    )]
    pub(crate) keys: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Where to listen, for clients and nodes; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", env = "WS_SERVER_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// Where the other nodes reach this one [default: where it listens]
    #[arg(long, value_name = "ws://HOST:PORT", env = "WS_SERVER_ADDRESS", help_heading = "Cluster")]
    pub(crate) address: Option<String>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// The path at which clients connect
    #[arg(long, value_name = "PATH", env = "WS_SERVER_PATH", default_value = "/WebSockets")]
    pub(crate) path: String,
    /// Serve a page at / that shows the cluster live, with the actions hello, say and tell; ?user=NAME is believed
    #[arg(long, env = "WS_SERVER_DEMO")]
    pub(crate) demo: bool,
    /// Refuse clients without a session (default: they are guests, who get what goes to all)
    #[arg(long, env = "WS_SERVER_NO_GUESTS", help_heading = "Sessions")]
    pub(crate) no_guests: bool,
    /// The cookie in which the site keeps its session's id
    #[arg(long, value_name = "NAME", env = "WS_SERVER_SESSION_COOKIE", help_heading = "Sessions")]
    pub(crate) session_cookie: Option<String>,
    /// The query that finds a session's user and end: SELECT user, expires FROM sessions WHERE id = ?
    #[arg(long, value_name = "SQL", env = "WS_SERVER_SESSION_QUERY", help_heading = "Sessions")]
    pub(crate) session_query: Option<String>,
    /// The query that finds a user's groups: SELECT name FROM memberships WHERE user = ?
    #[arg(long, value_name = "SQL", env = "WS_SERVER_GROUPS_QUERY", help_heading = "Sessions")]
    pub(crate) groups_query: Option<String>,
    /// The database of the sessions, mysql://user:password@host:port/database [default: that of a MySQL pool]
    #[arg(
        long,
        value_name = "URL",
        env = "WS_SERVER_SESSION_DATABASE",
        hide_env_values = true,
        help_heading = "Sessions"
    )]
    pub(crate) session_database: Option<String>,
    /// Open POST /_publish and POST /_close to whoever presents this key (default: closed)
    #[arg(long, value_name = "KEY", env = "WS_SERVER_PUBLISH_KEY", hide_env_values = true)]
    pub(crate) publish_key: Option<String>,
    /// A proxy whose X-Forwarded-For is believed, as address or network; may be repeated, or separated by commas
    /// [default: 127.0.0.0/8, ::1]
    #[arg(long, value_name = "CIDR", env = "WS_SERVER_TRUSTED_PROXIES", value_delimiter = ',')]
    pub(crate) trusted_proxy: Vec<String>,
    /// A site, besides the server's own host, whose pages may connect with their cookies, as https://example.org; may
    /// be repeated, or separated by commas
    #[arg(long, value_name = "URL", env = "WS_SERVER_ALLOWED_ORIGINS", value_delimiter = ',')]
    pub(crate) allowed_origin: Vec<Origin>,
}

#[derive(Args, Debug)]
pub(crate) struct Send {
    /// The message's action, 1 to 255 bytes
    pub(crate) action: String,
    /// The message's details, as JSON: an array is one argument for each element, anything else is one
    #[arg(value_name = "DETAILS_JSON", value_parser = json, default_value = "[]", hide_default_value = true)]
    pub(crate) details: Value,
    /// Whom it is for: all, registered, user:ID[,ID], group:ID[,ID], session:ID or property:NAME=VALUE
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: Target,
    /// Of several messages with one key, 1 to 64 bytes, one is delivered: so that this can be tried again where the
    /// outcome is unknown
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct Close {
    /// Whose connections: session:ID or user:ID
    #[arg(value_name = "TARGET")]
    pub(crate) whose: Closed,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Whose connections are closed.
#[derive(Clone, Debug)]
pub(crate) enum Closed {
    Session(String),
    User(String),
}

#[derive(Args, Debug)]
pub(crate) struct List {
    /// Print the tables of a MySQL pool instead, to be made by hand where the account may not create any
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

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!(r#"no JSON ({error}): quote text, as '"text"'"#))
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
