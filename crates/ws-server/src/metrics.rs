//! The series of the library in the text format of Prometheus. The admin listener shows them at `/metrics`.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::time::interval;
use ws_cluster::metrics::BUCKETS;

/// Time between two summaries of the observations, so that they take no memory if nobody reads the metrics.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The content type of the text.
pub(crate) const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts to record the series. It must be called once, in the runtime of the server.
///
/// # Errors
/// The process has another recorder already.
pub(crate) fn install() -> Result<(), BuildError> {
    let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    let upkeep = recorder.clone();
    tokio::spawn(async move {
        let mut beat = interval(UPKEEP_INTERVAL);
        loop {
            beat.tick().await;
            upkeep.run_upkeep();
        }
    });
    // A second recorder cannot be installed, so the cell is empty here.
    let _ = RECORDER.set(recorder);
    Ok(())
}

/// Returns the series as text; empty before [`install`].
pub(crate) fn render() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ws_cluster::{MemoryPool, Message, Server, metrics::SERIES};

    use super::*;

    #[tokio::test]
    async fn a_server_shows_all_its_series_as_text() {
        assert_eq!(render(), "");
        install().unwrap();
        assert!(install().is_err(), "once");
        let server = Server::builder(MemoryPool::default()).start().await.unwrap();
        server.wait_ready().await;
        server.publish(Message::new("news", "1").unwrap()).await.unwrap();
        let accepted = "ws_cluster_publish_duration_seconds_count{outcome=\"accepted\"} 1";
        let mut look = interval(Duration::from_millis(50));
        let text = loop {
            look.tick().await;
            let text = render();
            if text.contains(accepted) {
                break text;
            }
        };
        for series in SERIES {
            let kind = series.kind.as_str();
            assert!(text.contains(&format!("# TYPE {} {kind}\n", series.name)), "{}: {text}", series.name);
            assert!(text.contains(&format!("# HELP {} {}\n", series.name, series.help)), "{}", series.name);
        }
        assert!(text.contains("ws_cluster_publish_duration_seconds_bucket{outcome=\"accepted\",le=\"10\"} 1\n"));
        assert!(text.contains("ws_cluster_role{role=\"master\"} 1\n"), "{text}");
    }
}
