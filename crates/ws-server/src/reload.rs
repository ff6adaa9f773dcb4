//! SIGHUP: reads the configuration again, and applies the settings that can change while a node runs.

use std::collections::BTreeMap;

use ws_cluster::Server;

use crate::{
    Outcome,
    arguments::{self, Misuse},
    cli::Command,
    config::{Settings, Shown, table, values},
    logs, run,
};

/// The keys that a running node can change. Changes of other keys take effect at the next start.
const LIVE: [&str; 9] = [
    "allowed_origin",
    "no_own_origin",
    "trusted_proxy",
    "publish_key",
    "log_filter",
    "connection.connections",
    "connection.connections_per_ip",
    "connection.accept_rate",
    "connection.drain",
];

/// The values in effect, which are compared with the values that are read later.
pub(crate) struct Reload {
    values: BTreeMap<String, String>,
    /// The same for the admin page.
    shown: Shown,
}

impl Reload {
    pub(crate) fn new(values: BTreeMap<String, String>, shown: Shown) -> Self {
        Self { values, shown }
    }

    /// Reads the configuration again. If it contains a mistake, nothing changes and the mistake is logged.
    pub(crate) fn read_again(&mut self, server: &Server) {
        if let Err(why) = self.apply(server) {
            tracing::error!("the configuration is not read again, and nothing changes: {why}");
        }
    }

    fn apply(&mut self, server: &Server) -> Result<(), String> {
        let parsed = arguments::parse(std::env::args_os()).map_err(|misuse| match misuse {
            Misuse::Line(line) => line,
            Misuse::Usage(error) => error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        })?;
        let run = match parsed.cli.command {
            Some(Command::Run(run)) => *run,
            _ => parsed.cli.run,
        };
        let settings = Settings::new(run, parsed.file.as_ref());
        let new = values(&parsed.matches, &settings.config);
        let changed: Vec<&str> =
            new.iter().filter(|(key, value)| self.values.get(*key) != Some(value)).map(|(key, _)| &**key).collect();
        let (live, later): (Vec<&str>, Vec<&str>) = changed.iter().partition(|key| LIVE.contains(*key));
        if changed.is_empty() {
            tracing::info!("SIGHUP: the configuration is the same as before");
            return Ok(());
        }
        change(server, &settings).map_err(|failure| failure.text)?;
        if !live.is_empty() {
            tracing::info!("SIGHUP: changed {}", live.join(", "));
        }
        if !later.is_empty() {
            tracing::warn!("SIGHUP: these change at the next start only: {}", later.join(", "));
        }
        let live: Vec<String> = live.into_iter().map(str::to_owned).collect();
        let rows = table(&parsed.matches, &parsed.sources, parsed.file.as_ref(), &settings.config);
        self.shown.change(&live, rows);
        self.values.extend(new.into_iter().filter(|(key, _)| live.contains(key)));
        Ok(())
    }
}

fn change(server: &Server, settings: &Settings) -> Outcome {
    run::check(settings)?;
    let Settings { run, config, .. } = settings;
    let (origins, proxies) = (run::allowed_origins(&run.allowed_origin)?, run::trusted_proxies(&run.trusted_proxy)?);
    let mut outcome = Ok(());
    server.change_settings(|live| {
        outcome = live.set_publish_key(run.publish_key.as_deref());
        if outcome.is_ok() {
            (live.allowed_origins, live.own_origin, live.trusted_proxies) = (origins, !run.no_own_origin, proxies);
            live.connections = config.connection.connections;
            live.connections_per_ip = config.connection.connections_per_ip;
            live.accept_rate = config.connection.accept_rate;
            live.drain = config.connection.drain;
        }
    });
    outcome.map_err(crate::Failure::setup)?;
    logs::change(run.log_filter.as_deref())
}
