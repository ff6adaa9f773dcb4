//! The series that a node records: the page that lists them, and the alerts and the dashboard that name them.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use serde_json::Value;
use ws_cluster::metrics::{SERIES, Series, SeriesKind};

/// Returns a file of the repository.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the row of the page for a series.
fn row(series: &Series) -> String {
    let unit = series.unit.map(|unit| format!(", {unit}")).unwrap_or_default();
    let labels: Vec<String> = series.labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
    format!("| `{}` | {}{unit} | {labels} | {} |", series.name, series.kind.as_str(), series.help)
}

/// Returns the series that a text names, by the names of the table.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|one: char| !(one.is_ascii_alphanumeric() || one == '_'));
    let names = words.filter(|word| word.starts_with("ws_cluster_"));
    let family = |name: &str| {
        let parts = ["_bucket", "_count", "_sum"].into_iter().filter_map(|end| name.strip_suffix(end));
        let mut histograms = parts
            .filter(|part| SERIES.iter().any(|series| series.name == *part && series.kind == SeriesKind::Histogram));
        histograms.next().unwrap_or(name).to_owned()
    };
    names.map(family).collect()
}

fn table() -> BTreeSet<String> {
    SERIES.iter().map(|series| series.name.to_owned()).collect()
}

#[test]
fn the_page_lists_every_series_with_its_unit_and_meaning() {
    let page = text("docs/operations.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `ws_cluster_")).collect();
    let expected: Vec<String> = SERIES.iter().map(row).collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_dashboard_shows_every_series_and_no_other() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/ws-cluster.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut queries = String::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty() && panel["description"].is_string(), "{}", panel["title"]);
        for target in targets {
            queries.push_str(target["expr"].as_str().expect("a query"));
            queries.push('\n');
        }
    }
    assert_eq!(named(&queries), table());
}

#[test]
fn the_alerts_name_series_that_exist() {
    for file in ["alerts.yml", "alerts_test.yml"] {
        let unknown: Vec<String> =
            named(&text(&format!("deploy/prometheus/{file}"))).difference(&table()).cloned().collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn every_alert_fires_once_and_not_before() {
    let names = |file: &str, key: &str| -> BTreeSet<String> {
        let text = text(file);
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(key));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let (alerts, tested) =
        (names("deploy/prometheus/alerts.yml", "- alert:"), names("deploy/prometheus/alerts_test.yml", "- name:"));
    assert_eq!(alerts, tested, "each alert has a test");
    for arguments in [["check", "alerts.yml"], ["test", "alerts_test.yml"]] {
        let [command, file] = arguments;
        let run = Command::new("promtool")
            .args([command, "rules", file])
            .current_dir(path("deploy/prometheus"))
            .output()
            .expect("promtool, which .ci/install installs");
        let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{said}");
    }
}
