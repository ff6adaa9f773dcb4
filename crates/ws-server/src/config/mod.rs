//! The settings of a node, from flags, the environment and a file. `keys` lists all settings, `library` those of the
//! library. `file` reads the file, and `show` writes the settings in effect.

mod file;
mod keys;
mod library;
mod show;
mod sources;

use ws_cluster::Config;

pub(crate) use self::{
    file::File,
    show::{Shown, effective, example, table, values},
    sources::Sources,
};
use crate::cli::Run;

/// The settings of `run`, from all sources.
pub(crate) struct Settings {
    pub(crate) run: Run,
    pub(crate) config: Config,
    /// All settings as the admin page shows them.
    pub(crate) shown: Shown,
}

/// Returns the settings of the library that have no flag.
pub(crate) fn of_library(file: Option<&File>) -> Config {
    let mut config = Config::default();
    file.into_iter().for_each(|file| file.apply(&mut config));
    config
}

impl Settings {
    /// Combines the flags, whose defaults the file has replaced, with the settings that have no flag.
    pub(crate) fn new(run: Run, file: Option<&File>) -> Self {
        let mut config = of_library(file);
        run.apply(&mut config);
        Self { run, config, shown: Shown::default() }
    }

    /// Adds the settings as the admin page shows them.
    pub(crate) fn shown(self, shown: Shown) -> Self {
        Self { shown, ..self }
    }
}

impl Run {
    /// Sets the library's settings that have flags.
    fn apply(&self, config: &mut Config) {
        let limits = &self.limits;
        config.cluster.accept_when_isolated = self.accept_when_isolated;
        let set = |limit: &mut usize, given: Option<usize>| *limit = given.unwrap_or(*limit);
        set(&mut config.http.sockets, limits.sockets);
        set(&mut config.http.sockets_per_ip, limits.sockets_per_ip);
        set(&mut config.http.request_head_size, limits.request_head_size);
        let connection = &mut config.connection;
        set(&mut connection.connections, limits.connections);
        set(&mut connection.connections_per_ip, limits.connections_per_ip);
        set(&mut connection.message_size, limits.message_size);
        set(&mut connection.queue_size, limits.queue_size);
        connection.compression &= !self.no_compression;
        set(&mut connection.compression_min_size, self.compression_min_size);
        set(&mut connection.look_ups_per_ip, limits.look_ups_per_ip);
        set(&mut connection.replay_bytes_per_minute, limits.replay_bytes_per_minute);
        connection.messages_per_second = limits.messages_per_second.unwrap_or(connection.messages_per_second);
        connection.accept_rate = limits.accept_rate.unwrap_or(connection.accept_rate);
        connection.drain = self.drain;
        connection.message_burst = limits.message_burst.unwrap_or(connection.message_burst);
    }
}
