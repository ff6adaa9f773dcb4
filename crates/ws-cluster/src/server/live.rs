//! The settings of a running server that can change.

use std::{sync::Arc, time::Duration};

use super::{Server, http::PublishKey};
use crate::{
    Config, StartError,
    auth::{Origin, TrustedProxies},
    random, secret,
};

/// The settings that a running server can change ([`Server::change_settings`]). They hold for clients that come from
/// then on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveSettings {
    /// See [`ServerBuilder::allowed_origins`](crate::ServerBuilder::allowed_origins).
    pub allowed_origins: Vec<Origin>,
    /// See [`ServerBuilder::own_origin`](crate::ServerBuilder::own_origin).
    pub own_origin: bool,
    /// See [`ServerBuilder::trusted_proxies`](crate::ServerBuilder::trusted_proxies).
    pub trusted_proxies: TrustedProxies,
    /// See [`ConnectionConfig::connections`](crate::ConnectionConfig::connections). 0 refuses every client.
    pub connections: usize,
    /// See [`ConnectionConfig::connections_per_ip`](crate::ConnectionConfig::connections_per_ip). 0 refuses every client
    /// with an address.
    pub connections_per_ip: usize,
    /// See [`ConnectionConfig::accept_rate`](crate::ConnectionConfig::accept_rate).
    pub accept_rate: u32,
    /// See [`ConnectionConfig::drain`](crate::ConnectionConfig::drain). More than 365 days counts as 365 days.
    pub drain: Duration,
    pub(super) publish_key: Option<Arc<PublishKey>>,
}

impl LiveSettings {
    pub(super) fn new(config: &Config) -> Self {
        let limits = &config.connection;
        Self {
            allowed_origins: Vec::new(),
            own_origin: true,
            trusted_proxies: TrustedProxies::default(),
            connections: limits.connections,
            connections_per_ip: limits.connections_per_ip,
            accept_rate: limits.accept_rate,
            drain: limits.drain,
            publish_key: None,
        }
    }

    /// Replaces the [publish key](crate::ServerBuilder::publish_key), or closes publishing over HTTP.
    ///
    /// # Errors
    /// [`StartError::Key`] if the key is empty, contains a control character, or is the placeholder of the
    /// documentation. The one before stays.
    pub fn set_publish_key(&mut self, key: Option<&str>) -> Result<(), StartError> {
        let key = key.map(secret::publish_key).transpose()?;
        let secret = random::bytes().map_err(StartError::no_random_numbers)?;
        self.publish_key = key.map(|key| Arc::new(PublishKey::new(&key, secret)));
        Ok(())
    }
}

impl Server {
    /// Changes settings while the server runs. `change` gets a copy of the present settings, which replaces them when
    /// `change` has returned. Changes wait for each other, so `change` must not call this method.
    pub fn change_settings(&self, change: impl FnOnce(&mut LiveSettings)) {
        let _alone = self.0.changing.lock();
        let mut changed = LiveSettings::clone(&self.live());
        change(&mut changed);
        *self.0.live.write() = Arc::new(changed);
    }

    /// Returns a copy of the settings as they are now.
    pub fn live_settings(&self) -> LiveSettings {
        LiveSettings::clone(&self.live())
    }

    /// The settings as they are now.
    pub(super) fn live(&self) -> Arc<LiveSettings> {
        self.0.live.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPool;

    #[tokio::test]
    async fn settings_can_be_read_while_they_are_changed() {
        let server = Server::builder(MemoryPool::default()).start().await.unwrap();
        let (before, drain) = (server.live().drain, Duration::from_secs(77));
        server.change_settings(|live| {
            live.drain = drain;
            let seen = server.0.live.try_read().map(|live| live.drain);
            assert_eq!(seen, Some(before));
        });
        assert_eq!(server.live().drain, drain);
    }

    #[tokio::test]
    async fn a_shutdown_takes_any_time_to_drain() {
        let server = Server::builder(MemoryPool::default()).start().await.unwrap();
        server.change_settings(|live| live.drain = Duration::MAX);
        // Without clients it ends at once.
        server.shutdown().await;
    }
}
