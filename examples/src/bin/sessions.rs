//! The users of an existing site, by the sessions that it keeps in MySQL or MariaDB; and the pool in the same
//! database.
//!
//! The site's tables may look as they like, since two queries say where things are. For these here, in a database of
//! the name `site`:
//!
//! ```sql
//! CREATE TABLE sessions (
//!   id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, user INT, expires BIGINT
//! );
//! CREATE TABLE memberships (user INT, name VARCHAR(64));
//! INSERT INTO sessions VALUES ('e4d909', 7, UNIX_TIMESTAMP() + 3600), ('0a1b2c', 8, UNIX_TIMESTAMP() - 1);
//! INSERT INTO memberships VALUES (7, 'editors'), (7, 'authors');
//! ```
//!
//! With the user and password that the site has,
//!
//! ```text
//! DATABASE_URL=mysql://user:password@127.0.0.1:3306/site cargo run -p examples --bin sessions
//! ```
//!
//! Open http://127.0.0.1:8080/health in a browser, and in its console (F12) run
//!
//! ```js
//! document.cookie = "PHPSESSID=e4d909"
//! await import("/ws-cluster.js")
//! new WsCluster().on("whoami", console.log).send("whoami")
//! ```
//!
//! It shows `7` and `["authors", "editors"]`. With the cookie `PHPSESSID=0a1b2c`, whose session ran out, or with none,
//! it is `null` and `[]`: a guest. If the database lacks the tables, the program says so and ends.

use std::{collections::BTreeSet, error::Error};

use tokio::net::TcpListener;
use ws_cluster::{IntoHandler, MySqlPool, Request, Server, SessionTable, shutdown_signal};

async fn whoami(request: Request) -> (Option<String>, BTreeSet<String>) {
    (request.user().map(str::to_owned), request.groups())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let database = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is not set")?;
    let sessions = SessionTable::new(&database, "PHPSESSID", "SELECT user, expires FROM sessions WHERE id = ?")?
        .groups_query("SELECT name FROM memberships WHERE user = ?")?;
    sessions.check().await?;

    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    println!("http://{address}");

    let server = Server::builder(MySqlPool::connect(&database).await?)
        .address(format!("ws://{address}"))
        .key(examples::KEY)
        .authenticator(sessions)
        .action("whoami", whoami.with_guests())
        .start()
        .await?;
    server.serve(listener).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}
