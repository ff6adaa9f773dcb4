//! Publishing from a process that is no server: a cron job, a worker, a command.
//!
//! While `chat` runs, on one node or more, and somebody is in the room `lobby`,
//!
//! ```text
//! cargo run -p examples --bin publish "Lunch is ready"
//! ```
//!
//! shows `said lobby the kitchen Lunch is ready` to everyone there, on every node, and prints `accepted`. While no
//! `chat` runs, it ends with `NoServer`.

use std::error::Error;

use ws_cluster::{Message, Publisher, Target};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let text = std::env::args().nth(1).ok_or("what is there to say?")?;
    let publisher = Publisher::connect(examples::pool().await?, examples::KEY).await?;
    let message = Message::new("said", ("lobby", "the kitchen", text))?.to(Target::group("room/lobby"));
    publisher.publish(message).await?;
    println!("accepted");
    Ok(())
}
