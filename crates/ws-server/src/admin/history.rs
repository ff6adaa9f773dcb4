//! The figures of the charts: of the last 15 minutes, by node.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{Answer, Question, Service, state::unix_time};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Number of samples: 15 minutes.
const SAMPLES: usize = 180;
/// Maximum number of nodes in a sample.
const NODES: usize = 64;
/// The figures of a node's report that are kept.
const FIGURES: [&str; 6] =
    ["connections", "deliveries_per_second", "publishes_per_second", "publish_p99_ms", "lag", "pool_ms"];

/// The last samples.
#[derive(Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

struct Sample {
    /// Milliseconds of Unix time.
    at: u64,
    /// The figures of each node by its id. Empty if the server did not answer.
    nodes: Value,
}

impl History {
    /// Takes samples, for ever.
    pub(super) async fn record(self: Arc<Self>, service: Arc<dyn Service>) {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let answer = service.ask(Question::get("/admin/api/cluster")).await;
            self.push(unix_time(), figures(&value(answer).await));
        }
    }

    fn push(&self, at: u64, nodes: Value) {
        let mut samples = self.0.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { at, nodes });
    }

    /// Returns the samples after a time.
    pub(super) fn after(&self, time: u64) -> Value {
        let samples = self.0.lock();
        let later = samples.iter().filter(|sample| sample.at > time);
        let later: Vec<_> = later.map(|sample| json!({ "at": sample.at, "nodes": sample.nodes })).collect();
        let (interval, kept) = (INTERVAL.as_millis() as u64, INTERVAL.as_millis() as u64 * SAMPLES as u64);
        json!({ "interval": interval, "kept": kept, "figures": FIGURES, "samples": later })
    }
}

/// The JSON of an answer; null for any other.
async fn value(answer: Answer) -> Value {
    // The body is in memory.
    let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

/// The figures of each node, in the order of `FIGURES`.
fn figures(cluster: &Value) -> Value {
    let nodes = cluster["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |node: &Value| {
        let figures: Vec<_> = FIGURES.iter().map(|figure| node[*figure].clone()).collect();
        Some((node["node"].as_str()?.to_owned(), Value::Array(figures)))
    };
    Value::Object(nodes.iter().take(NODES).filter_map(of).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_the_last_fifteen_minutes_are_kept() {
        let history = History::default();
        let node = json!({ "node": "a1", "connections": 7, "deliveries_per_second": 1.5, "lag": null, "term": 3 });
        let cluster = json!({ "own": "a1", "nodes": [node, { "connections": 1 }] });
        for number in 1..=1_000 {
            history.push(number * 5_000, figures(&cluster));
        }
        let all = history.after(0);
        assert_eq!(all["samples"].as_array().unwrap().len() as u64 * INTERVAL.as_secs(), 15 * 60);
        assert_eq!(all["samples"][0]["nodes"], json!({ "a1": [7, 1.5, null, null, null, null] }));
        assert_eq!(history.after(999 * 5_000)["samples"].as_array().unwrap().len(), 1);
        // A server that is down leaves a gap.
        history.push(6_000_000, figures(&json!({ "error": "the server does not run" })));
        assert_eq!(history.after(5_999_999)["samples"][0]["nodes"], json!({}));
    }
}
