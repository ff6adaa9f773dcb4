//! A client of [ws-cluster](https://docs.rs/ws-cluster) for programs in Rust. It keeps one connection, connects again
//! after a loss, and gets what it missed. It behaves like the browser client. The crate compiles neither a server nor a
//! database.
//!
//! [`Client`] sends messages and asks for answers, [`Events`] yields the messages of the server, and [`Builder`] has
//! the settings.
//!
//! ```no_run
//! use ws_cluster_client::{Client, Event};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut events) = Client::builder(["ws://127.0.0.1:8080/WebSockets"]).cookie("user=ann").connect()?;
//! client.send("hello", "world")?;
//! while let Some(event) = events.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{} {}", message.action, message.details);
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The crate `ws-cluster` re-exports this one as `ws_cluster::client`. The types that servers and clients share are
//! defined here: [`RawDetails`], [`ActionError`], [`CloseCode`].
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `tls` | no | `wss://` addresses (rustls) |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod close;
mod details;
mod error;
mod random;

pub use client::{Builder, Client, Event, Events, Message, RequestError, SendError, SetupError};
pub use close::CloseCode;
pub use details::{ParseDetailsError, RawDetails, replace_lone_surrogates};
pub use error::ActionError;

/// The blocks of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Longest name of an action, in bytes.
pub const ACTION_SIZE: usize = 255;
