//! The log on standard error, and its filter.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal},
    panic,
    sync::OnceLock,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, reload::Handle, util::SubscriberInitExt,
};

use crate::{Failure, Outcome, stderr::Stderr};

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// The form of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Starts to log, with this filter or the filter of the environment.
pub(crate) fn start(given: Option<String>, format: LogFormat) -> Outcome {
    let given = given.or_else(|| env::var(EnvFilter::DEFAULT_ENV).ok());
    let (filter, handle) = reload::Layer::new(filter(given.as_deref())?);
    let _ = FILTER.set(handle);
    let lines = fmt::layer().with_writer(Stderr::get().clone());
    let lines = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    // The default hook would wait for the reader of standard error.
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| format!("\n{backtrace}"));
        tracing::error!("{panic}{}", backtrace.unwrap_or_default());
    }));
    Ok(())
}

/// Finds a mistake in a filter.
pub(crate) fn check(given: Option<&str>) -> Outcome {
    filter(given).map(drop)
}

/// Changes the filter.
pub(crate) fn change(given: Option<&str>) -> Outcome {
    let filter = filter(given)?;
    match FILTER.get().map(|handle| handle.reload(filter)) {
        Some(Err(error)) => Err(Failure::refused(format!("the filter of the log cannot change: {error}"))),
        _ => Ok(()),
    }
}

fn filter(given: Option<&str>) -> Outcome<EnvFilter> {
    match given.map(str::trim) {
        Some(directives) if !directives.is_empty() => EnvFilter::try_new(directives).map_err(|error| {
            Failure::setup(format!("--log-filter or RUST_LOG is malformed ({error}): use info, or ws_cluster=debug"))
        }),
        _ => Ok(EnvFilter::new("info")),
    }
}
