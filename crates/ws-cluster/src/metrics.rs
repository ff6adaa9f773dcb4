//! The series that the feature `metrics` records through the facade of the crate [`metrics`](https://docs.rs/metrics),
//! so that an application chooses the exporter. [`SERIES`] is the table of all.
//!
//! A server counts by itself, and tells the facade once a second what was added. So a delivery never calls the facade,
//! and the recorder may be installed at any time. Series count the servers of a process together; gauges are those of the
//! last one.

use std::{collections::HashMap, sync::atomic::Ordering};

use metrics::{Label, Unit};

use crate::{
    report::NodeRole,
    stats::{
        BackendEvent, BackendOutcome, BackendStats, CLOSE_CODES, Counter, HandshakeOutcome, Histogram, LookUpOutcome,
        OTHER, Observed, PublishOutcome, ResumeOutcome, Stats,
    },
};
use ws_cluster_core::Degraded;

/// One series, or a family of series that differ in labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Series {
    /// The name.
    pub name: &'static str,
    /// What it does.
    pub kind: SeriesKind,
    /// The unit; `None` for a number of things.
    pub unit: Option<&'static str>,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// The kind of a [`Series`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeriesKind {
    /// Grows, until the process starts again.
    Counter,
    /// Grows and falls.
    Gauge,
    /// Observations in [`BUCKETS`].
    Histogram,
}

impl SeriesKind {
    /// Returns the name of the kind, as exporters for Prometheus write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The upper bounds of the buckets in which durations are counted, in seconds. An exporter that is given the same ones
/// shows the counts as they are; in others they are exact to about a factor of two.
pub const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series { name, kind: SeriesKind::Counter, unit: None, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series { name, kind: SeriesKind::Gauge, unit: None, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Series {
    Series { name, kind: SeriesKind::Histogram, unit: Some("seconds"), labels, help }
}

impl Series {
    const fn bytes(mut self) -> Self {
        self.unit = Some("bytes");
        self
    }

    const fn seconds(mut self) -> Self {
        self.unit = Some("seconds");
        self
    }

    fn unit(&self) -> Unit {
        match self.unit {
            Some("bytes") => Unit::Bytes,
            Some("seconds") => Unit::Seconds,
            _ => Unit::Count,
        }
    }
}

/// All series of a server.
pub static SERIES: &[Series] = &[
    gauge(
        "ws_cluster_connections",
        &["state"],
        "Open connections: of users, of guests, and those that have not joined yet.",
    ),
    counter(
        "ws_cluster_handshakes_total",
        &["outcome"],
        "Upgrade requests of clients, by how they ended, and TLS handshakes that failed.",
    ),
    counter("ws_cluster_messages_received_total", &[], "Messages that came from clients."),
    counter("ws_cluster_received_bytes_total", &[], "Bytes that came from clients.").bytes(),
    counter("ws_cluster_deliveries_total", &[], "Messages that were queued for clients, each counted for each client."),
    counter("ws_cluster_delivered_bytes_total", &[], "Bytes of these messages, with the heads of their frames.")
        .bytes(),
    counter("ws_cluster_compressed_deliveries_total", &[], "Those of these messages that were compressed."),
    counter("ws_cluster_replies_total", &[], "Answers of handlers to the client that asked."),
    counter(
        "ws_cluster_entries_total",
        &[],
        "Entries of the log that this node delivered, whether they had a client or not.",
    ),
    histogram("ws_cluster_publish_duration_seconds", &["outcome"], "Time from a publish on this node to its outcome."),
    gauge("ws_cluster_pending_publishes", &[], "Publishes of this node whose outcome is open."),
    histogram(
        "ws_cluster_fan_out_duration_seconds",
        &[],
        "Time to write what was delivered together to all its clients.",
    ),
    gauge("ws_cluster_send_queue_bytes", &[], "Bytes that wait for the sockets of clients. Measured every 5 s.")
        .bytes(),
    counter("ws_cluster_closes_total", &["code"], "Connections that ended, by close code."),
    counter("ws_cluster_resumes_total", &["outcome"], "Clients that keep their position, by how they began."),
    counter("ws_cluster_replayed_messages_total", &[], "Messages that were sent to clients that came back."),
    gauge("ws_cluster_term", &[], "The highest term that the node has seen. It grows with each change of the master."),
    gauge("ws_cluster_role", &["role"], "1 for the node's role in the term, 0 for the others."),
    gauge("ws_cluster_ready", &[], "1 if the node takes clients."),
    gauge("ws_cluster_degraded", &["reason"], "1 for what is wrong with the node, 0 for all else."),
    gauge("ws_cluster_followers", &[], "On the master: followers that are members. 0 on other nodes."),
    gauge(
        "ws_cluster_follower_lag_entries",
        &[],
        "On the master: entries that its slowest follower should have acknowledged. 0 on other nodes.",
    ),
    gauge("ws_cluster_log_entries", &[], "Entries in the log."),
    gauge("ws_cluster_log_bytes", &[], "Bytes that the log counts for them.").bytes(),
    gauge("ws_cluster_log_age_seconds", &[], "Time for which the oldest entry has been in the log.").seconds(),
    counter(
        "ws_cluster_dropped_messages_total",
        &[],
        "Messages that the node dropped, because the cluster had gone on without them and they, or their keys, were too old to be proposed again.",
    ),
    gauge("ws_cluster_links", &[], "Open links to other nodes."),
    counter("ws_cluster_links_opened_total", &[], "Links to other nodes that were opened, by either side."),
    counter("ws_cluster_links_lost_total", &[], "Links to other nodes that ended."),
    counter("ws_cluster_dials_failed_total", &[], "Attempts to reach another node that failed."),
    histogram("ws_cluster_pool_query_duration_seconds", &[], "Time of the queries that the pool's database answered."),
    counter("ws_cluster_pool_errors_total", &[], "Queries that the pool's database did not answer, or refused."),
    histogram(
        "ws_cluster_session_look_up_duration_seconds",
        &["outcome"],
        "Time of the questions to the authenticator, by what it answered.",
    ),
    histogram(
        "ws_cluster_handler_duration_seconds",
        &["action"],
        "Time of the handlers, by action. Actions without a handler of their own, and those beyond the first 100, are `other`.",
    ),
    counter("ws_cluster_handler_panics_total", &[], "Handlers that panicked."),
    counter(
        "ws_cluster_backend_requests_total",
        &["event", "outcome"],
        "Requests to the site's own code, by event and by how they ended.",
    ),
    histogram(
        "ws_cluster_backend_request_duration_seconds",
        &["event"],
        "Time of the requests that were sent to the site's own code, without the wait for a turn.",
    ),
    gauge("ws_cluster_backend_requests_running", &[], "Requests to the site's own code that are under way."),
    gauge("ws_cluster_backend_requests_waiting", &[], "Requests to the site's own code that wait for a turn."),
    gauge(
        "ws_cluster_backend_breaker_open",
        &[],
        "1 while requests to the site's own code fail at once, because it did not answer the last ones.",
    ),
    counter(
        "ws_cluster_rate_limited_total",
        &[],
        "Times that a client was read more slowly, because its messages came too fast.",
    ),
    counter("ws_cluster_outbox_published_total", &[], "Rows of the outbox that this node published as the master."),
    counter("ws_cluster_outbox_failed_total", &[], "Rows that this node moved to `ws_outbox_failed`."),
    counter("ws_cluster_outbox_errors_total", &[], "Calls of the outbox that its database did not answer, or refused."),
    histogram(
        "ws_cluster_outbox_delay_seconds",
        &[],
        "Time from the insert of a row, not from the commit of its transaction, to its acceptance.",
    ),
    gauge(
        "ws_cluster_outbox_backlog_rows",
        &[],
        "On the master: rows that the last read of the outbox found. A read returns at most 500. 0 on other nodes.",
    ),
    gauge(
        "ws_cluster_outbox_oldest_seconds",
        &[],
        "On the master: the age of the oldest of these rows. 0 if there are none, and on other nodes.",
    )
    .seconds(),
    gauge("ws_cluster_sockets", &[], "Sockets of clients and of HTTP that count against the limit."),
    gauge(
        "ws_cluster_sockets_limit",
        &[],
        "How many the node takes: `http.sockets`, or what the file descriptors allow.",
    ),
    gauge("ws_cluster_start_time_seconds", &[], "When the server was started, in seconds since 1970.").seconds(),
    gauge("ws_cluster_build_info", &["version"], "1, with the version of the library."),
];

/// What a server shows besides its counts.
#[derive(Clone, Debug)]
pub(crate) struct Gauges {
    pub(crate) open: usize,
    pub(crate) users: usize,
    pub(crate) guests: usize,
    pub(crate) pending: usize,
    pub(crate) send_queues: u64,
    pub(crate) term: u64,
    pub(crate) role: NodeRole,
    pub(crate) ready: bool,
    pub(crate) degraded: Option<Degraded>,
    pub(crate) followers: usize,
    pub(crate) lag: u64,
    pub(crate) log_entries: u64,
    pub(crate) log_bytes: u64,
    pub(crate) log_age: f64,
    pub(crate) dropped: u64,
    pub(crate) links: usize,
    pub(crate) sockets: usize,
    pub(crate) sockets_limit: usize,
    pub(crate) started: u64,
}

/// Tells the facade what a server counted. It knows what it has told.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// By the name and the values of up to two labels.
    counters: HashMap<(&'static str, &'static str, &'static str), u64>,
    histograms: HashMap<(&'static str, String), Observed>,
}

impl Recorder {
    /// Tells the facade what was added since the last call, and the gauges.
    pub(crate) fn record<'a>(
        &mut self,
        stats: &Stats,
        handlers: impl IntoIterator<Item = (&'a str, &'a Histogram)>,
        backend: &BackendStats,
        gauges: &Gauges,
    ) {
        describe();
        let counts = stats.metered.get();
        let plain = [
            ("ws_cluster_messages_received_total", &stats.messages_in),
            ("ws_cluster_received_bytes_total", &counts.received_bytes),
            ("ws_cluster_deliveries_total", &stats.deliveries),
            ("ws_cluster_delivered_bytes_total", &counts.delivered_bytes),
            ("ws_cluster_compressed_deliveries_total", &counts.compressed),
            ("ws_cluster_replies_total", &counts.replies),
            ("ws_cluster_entries_total", &counts.entries),
            ("ws_cluster_replayed_messages_total", &counts.replayed),
            ("ws_cluster_links_opened_total", &counts.links_opened),
            ("ws_cluster_links_lost_total", &counts.links_lost),
            ("ws_cluster_dials_failed_total", &counts.dials_failed),
            ("ws_cluster_pool_errors_total", &counts.pool_errors),
            ("ws_cluster_handler_panics_total", &counts.handler_panics),
            ("ws_cluster_rate_limited_total", &counts.rate_limited),
            ("ws_cluster_outbox_published_total", &counts.outbox_published),
            ("ws_cluster_outbox_failed_total", &counts.outbox_failed),
            ("ws_cluster_outbox_errors_total", &counts.outbox_errors),
        ];
        plain.into_iter().for_each(|(name, counter)| self.counter(name, "", "", counter.get()));
        self.counter("ws_cluster_dropped_messages_total", "", "", gauges.dropped);
        self.counters("ws_cluster_handshakes_total", "outcome", HandshakeOutcome::LABELS, &counts.handshakes);
        self.counters("ws_cluster_resumes_total", "outcome", ResumeOutcome::LABELS, &counts.resumes);
        self.counters("ws_cluster_closes_total", "code", &CLOSE_LABELS, &counts.closes);

        let publishes = "ws_cluster_publish_duration_seconds";
        self.histogram(publishes, "outcome", "accepted", &stats.accepted);
        self.histograms(publishes, "outcome", PublishOutcome::LABELS, &counts.unsettled);
        self.histogram("ws_cluster_fan_out_duration_seconds", "", "", &counts.fan_outs);
        self.histogram("ws_cluster_pool_query_duration_seconds", "", "", &stats.pool_queries);
        self.histogram("ws_cluster_outbox_delay_seconds", "", "", &counts.outbox_delays);
        let look_ups = "ws_cluster_session_look_up_duration_seconds";
        self.histograms(look_ups, "outcome", LookUpOutcome::LABELS, &counts.look_ups);
        let handled = "ws_cluster_handler_duration_seconds";
        handlers.into_iter().for_each(|(action, times)| self.histogram(handled, "action", action, times));
        self.backend(backend);
        gauges.record();
        let (backlog, oldest) = (&counts.outbox_backlog, &counts.outbox_oldest);
        gauge_of("ws_cluster_outbox_backlog_rows", "", "", backlog.load(Ordering::Relaxed) as f64);
        gauge_of("ws_cluster_outbox_oldest_seconds", "", "", oldest.load(Ordering::Relaxed) as f64 / 1e6);
    }

    fn backend(&mut self, backend: &BackendStats) {
        for (event, outcomes) in BackendEvent::LABELS.iter().zip(&backend.requests) {
            for (outcome, counter) in BackendOutcome::LABELS.iter().zip(outcomes) {
                let name = "ws_cluster_backend_requests_total";
                let labels = vec![Label::new("event", *event), Label::new("outcome", *outcome)];
                self.count((name, event, outcome), labels, counter.get());
            }
        }
        let times = "ws_cluster_backend_request_duration_seconds";
        self.histograms(times, "event", BackendEvent::LABELS, &backend.durations);
        gauge_of("ws_cluster_backend_requests_running", "", "", backend.running.get() as f64);
        gauge_of("ws_cluster_backend_requests_waiting", "", "", backend.waiting.get() as f64);
        gauge_of("ws_cluster_backend_breaker_open", "", "", backend.open.get() as f64);
    }

    fn counters(&mut self, name: &'static str, label: &'static str, values: &[&'static str], counters: &[Counter]) {
        values.iter().zip(counters).for_each(|(value, counter)| self.counter(name, label, value, counter.get()));
    }

    fn counter(&mut self, name: &'static str, label: &'static str, value: &'static str, count: u64) {
        self.count((name, value, ""), labels(label, value), count);
    }

    fn count(&mut self, key: (&'static str, &'static str, &'static str), labels: Vec<Label>, count: u64) {
        let told = self.counters.insert(key, count).unwrap_or_default();
        metrics::counter!(key.0, labels).increment(count.saturating_sub(told));
    }

    fn histograms(&mut self, name: &'static str, label: &'static str, values: &[&str], histograms: &[Histogram]) {
        values.iter().zip(histograms).for_each(|(value, times)| self.histogram(name, label, value, times));
    }

    fn histogram(&mut self, name: &'static str, label: &'static str, value: &str, histogram: &Histogram) {
        let observed = histogram.read();
        let told = self.histograms.insert((name, value.to_owned()), observed).unwrap_or_default();
        let recorded = metrics::histogram!(name, labels(label, value));
        // A mean lies in the bucket of what it stands for, so an exporter with the same buckets counts the same.
        observed.since(&told).means().for_each(|(count, mean)| recorded.record_many(mean, count as usize));
    }
}

impl Gauges {
    fn record(&self) {
        let arriving = self.open.saturating_sub(self.users + self.guests);
        for (state, count) in [("user", self.users), ("guest", self.guests), ("arriving", arriving)] {
            gauge_of("ws_cluster_connections", "state", state, count as f64);
        }
        for role in [NodeRole::Master, NodeRole::Follower, NodeRole::Candidate] {
            gauge_of("ws_cluster_role", "role", role.as_str(), f64::from(u8::from(role == self.role)));
        }
        for reason in REASONS {
            let given = f64::from(u8::from(self.degraded == Some(reason)));
            gauge_of("ws_cluster_degraded", "reason", label_of(reason), given);
        }
        gauge_of("ws_cluster_build_info", "version", env!("CARGO_PKG_VERSION"), 1.0);
        for (name, value) in [
            ("ws_cluster_pending_publishes", self.pending as f64),
            ("ws_cluster_send_queue_bytes", self.send_queues as f64),
            ("ws_cluster_term", self.term as f64),
            ("ws_cluster_ready", f64::from(u8::from(self.ready))),
            ("ws_cluster_followers", self.followers as f64),
            ("ws_cluster_follower_lag_entries", self.lag as f64),
            ("ws_cluster_log_entries", self.log_entries as f64),
            ("ws_cluster_log_bytes", self.log_bytes as f64),
            ("ws_cluster_log_age_seconds", self.log_age),
            ("ws_cluster_links", self.links as f64),
            ("ws_cluster_sockets", self.sockets as f64),
            ("ws_cluster_sockets_limit", self.sockets_limit as f64),
            ("ws_cluster_start_time_seconds", self.started as f64),
        ] {
            gauge_of(name, "", "", value);
        }
    }
}

/// The label of each entry of [`CLOSE_CODES`], and of all other codes.
const CLOSE_LABELS: [&str; CLOSE_CODES.len() + 1] = [
    "1000", "1001", "1002", "1005", "1006", "1007", "1009", "1011", "1012", "1013", "4000", "4001", "4002", "4003",
    "4400", "4401", OTHER,
];

const REASONS: [Degraded; 11] = [
    Degraded::ShuttingDown,
    Degraded::Isolated,
    Degraded::IsolatedAccepting,
    Degraded::AddressConflict,
    Degraded::AddressTaken,
    Degraded::PoolSilent,
    Degraded::PoolReadOnly,
    Degraded::NoLinkToMaster,
    Degraded::NoMaster,
    Degraded::NoFollowerLinked,
    Degraded::Stopped,
];

fn label_of(reason: Degraded) -> &'static str {
    match reason {
        Degraded::ShuttingDown => "shutting_down",
        Degraded::Isolated => "isolated",
        Degraded::IsolatedAccepting => "isolated_accepting",
        Degraded::AddressConflict => "address_conflict",
        Degraded::AddressTaken => "address_taken",
        Degraded::PoolSilent => "pool_silent",
        Degraded::PoolReadOnly => "pool_read_only",
        Degraded::NoLinkToMaster => "no_link_to_master",
        Degraded::NoMaster => "no_master",
        Degraded::NoFollowerLinked => "alone",
        Degraded::Stopped => "stopped",
        // A later version of the core may have more.
        _ => OTHER,
    }
}

/// Returns the labels of a series with one label or none.
fn labels(name: &'static str, value: &str) -> Vec<Label> {
    if name.is_empty() { Vec::new() } else { vec![Label::new(name, value.to_owned())] }
}

fn gauge_of(name: &'static str, label: &'static str, value: &str, number: f64) {
    metrics::gauge!(name, labels(label, value)).set(number);
}

/// Tells the recorder what the series mean. It is repeated, because a recorder may be installed at any time.
fn describe() {
    for series in SERIES {
        let (name, unit, help) = (series.name, series.unit(), series.help);
        match series.kind {
            SeriesKind::Counter => metrics::describe_counter!(name, unit, help),
            SeriesKind::Gauge => metrics::describe_gauge!(name, unit, help),
            SeriesKind::Histogram => metrics::describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
        time::Duration,
    };

    use metrics::{
        CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, SharedString, atomics::AtomicU64, with_local_recorder,
    };
    use parking_lot::Mutex;

    use super::*;

    /// A recorder that keeps what it is told.
    #[derive(Default)]
    struct Kept {
        described: Mutex<BTreeMap<String, SeriesKind>>,
        values: Mutex<BTreeMap<String, Arc<Value>>>,
    }

    #[derive(Default)]
    struct Value {
        kind: Mutex<Option<SeriesKind>>,
        number: AtomicU64,
        observed: Mutex<Vec<(f64, usize)>>,
    }

    impl CounterFn for Value {
        fn increment(&self, value: u64) {
            self.number.fetch_add(value, Ordering::Relaxed);
        }
        fn absolute(&self, _: u64) {
            unreachable!("several servers count into one series");
        }
    }

    impl GaugeFn for Value {
        fn increment(&self, _: f64) {}
        fn decrement(&self, _: f64) {}
        fn set(&self, value: f64) {
            self.number.store(value as u64, Ordering::Relaxed);
        }
    }

    impl HistogramFn for Value {
        fn record(&self, value: f64) {
            self.record_many(value, 1);
        }
        fn record_many(&self, value: f64, count: usize) {
            self.observed.lock().push((value, count));
        }
    }

    impl Kept {
        fn value(&self, key: &Key, kind: SeriesKind) -> Arc<Value> {
            let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = self.values.lock().entry(format!("{}{labels:?}", key.name())).or_default().clone();
            *value.kind.lock() = Some(kind);
            value
        }

        fn number(&self, series: &str) -> u64 {
            self.values.lock()[series].number.load(Ordering::Relaxed)
        }
    }

    impl metrics::Recorder for Kept {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.described.lock().insert(key.as_str().to_owned(), SeriesKind::Counter);
        }
        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.described.lock().insert(key.as_str().to_owned(), SeriesKind::Gauge);
        }
        fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.described.lock().insert(key.as_str().to_owned(), SeriesKind::Histogram);
        }
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
            metrics::Counter::from_arc(self.value(key, SeriesKind::Counter))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
            metrics::Gauge::from_arc(self.value(key, SeriesKind::Gauge))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
            metrics::Histogram::from_arc(self.value(key, SeriesKind::Histogram))
        }
    }

    fn gauges() -> Gauges {
        Gauges {
            open: 7,
            users: 4,
            guests: 2,
            pending: 0,
            send_queues: 0,
            term: 3,
            role: NodeRole::Follower,
            ready: true,
            degraded: Some(Degraded::PoolSilent),
            followers: 0,
            lag: 0,
            log_entries: 0,
            log_bytes: 0,
            log_age: 0.0,
            dropped: 0,
            links: 1,
            sockets: 9,
            sockets_limit: 1000,
            started: 1_800_000_000,
        }
    }

    #[test]
    fn the_series_of_the_table_are_those_that_are_recorded() {
        let (kept, handled) = (Kept::default(), Histogram::default());
        with_local_recorder(&kept, || {
            let backend = BackendStats::default();
            Recorder::default().record(&Stats::default(), [("hello", &handled)], &backend, &gauges());
        });
        let table: BTreeMap<String, SeriesKind> =
            SERIES.iter().map(|series| (series.name.to_owned(), series.kind)).collect();
        assert_eq!(table.len(), SERIES.len(), "each name once");
        assert_eq!(*kept.described.lock(), table);
        let mut families: BTreeMap<String, SeriesKind> = BTreeMap::new();
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (series, value) in kept.values.lock().iter() {
            let (name, rest) = series.split_once('[').unwrap();
            families.insert(name.to_owned(), value.kind.lock().unwrap());
            let names = rest.split('"').skip(1).step_by(2).map(|label| label.split('=').next().unwrap().to_owned());
            labels.entry(name.to_owned()).or_default().extend(names);
        }
        assert_eq!(families, table);
        for series in SERIES {
            let named: Vec<&str> = labels[series.name].iter().map(String::as_str).collect();
            assert_eq!(named, series.labels, "{}", series.name);
            let ends = |end: &str| series.name.ends_with(end);
            assert_eq!(ends("_total"), series.kind == SeriesKind::Counter, "{}", series.name);
            let unit = series.unit.is_none_or(|unit| ends(&format!("_{unit}")) || ends(&format!("_{unit}_total")));
            assert!(unit && series.name.starts_with("ws_cluster_"), "{}", series.name);
        }
    }

    #[test]
    fn only_what_was_added_is_told() {
        let (kept, stats, handled) = (Kept::default(), Stats::default(), Histogram::default());
        let backend = BackendStats::default();
        let mut recorder = Recorder::default();
        for round in 1..=3 {
            stats.deliveries.add(10);
            stats.metered.note(|counts| counts.note_close(4000));
            stats.metered.note(|counts| counts.note_close(4999));
            handled.observe(Duration::from_millis(3));
            backend.note(BackendEvent::Action, BackendOutcome::TimedOut);
            backend.open.set(1);
            with_local_recorder(&kept, || recorder.record(&stats, [("hello", &handled)], &backend, &gauges()));
            let timed_out = "ws_cluster_backend_requests_total[\"event=action\", \"outcome=timed_out\"]";
            assert_eq!(kept.number(timed_out), round);
            assert_eq!(kept.number("ws_cluster_deliveries_total[]"), 10 * round);
            assert_eq!(kept.number("ws_cluster_closes_total[\"code=4000\"]"), round);
            assert_eq!(kept.number("ws_cluster_closes_total[\"code=other\"]"), round);
            let times = kept.values.lock()["ws_cluster_handler_duration_seconds[\"action=hello\"]"].clone();
            assert_eq!(*times.observed.lock(), vec![(0.003, 1); round as usize]);
        }
        assert_eq!(kept.number("ws_cluster_connections[\"state=arriving\"]"), 1);
        assert_eq!(kept.number("ws_cluster_role[\"role=follower\"]"), 1);
        assert_eq!(kept.number("ws_cluster_role[\"role=master\"]"), 0);
        assert_eq!(kept.number("ws_cluster_backend_breaker_open[]"), 1);
        assert_eq!(kept.number("ws_cluster_degraded[\"reason=pool_silent\"]"), 1);
    }

    #[test]
    fn the_labels_and_buckets_are_those_that_are_counted() {
        for (code, label) in CLOSE_CODES.iter().zip(CLOSE_LABELS) {
            assert_eq!(code.to_string(), label);
        }
        for (bound, bucket) in crate::stats::BOUNDS.iter().zip(BUCKETS) {
            assert_eq!(*bound as f64 / 1e6, bucket);
        }
        let labels: BTreeSet<_> = REASONS.into_iter().map(label_of).collect();
        assert_eq!(labels.len(), REASONS.len());
    }
}
