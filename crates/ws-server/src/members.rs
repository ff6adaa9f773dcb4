//! `pool`: what the pool says of a cluster, for people.

use std::fmt::Write;

use ws_cluster::{ClusterConfig, MySqlPool, pool::PoolView};

use crate::{Failure, Outcome, cli::List, pool::Opened, say, short};

pub(crate) async fn list(list: List) -> Outcome {
    if list.schema {
        return say(MySqlPool::schema().trim_end());
    }
    let opened = Opened::existing(&list.place).await?;
    let view = opened.read(&list.place.cluster).await?;
    say(format_args!("Pool {}", opened.name()))?;
    say(table(&list.place.cluster, &view).trim_end())?;
    if view.nodes.is_empty() {
        return Err(Failure::refused(format!(
            "the pool {} has no node of the cluster {}: start one, or give its --pool and --cluster",
            opened.name(),
            list.place.cluster
        )));
    }
    Ok(())
}

fn table(cluster: &str, view: &PoolView) -> String {
    let mut text = match &view.lease {
        Some(lease) => format!("Cluster {cluster}, term {}", lease.term),
        None => format!("Cluster {cluster}, no term yet"),
    };
    let owner = view.lease.and_then(|lease| lease.owner);
    let master = match owner {
        Some(owner) => format!("master {}", short(owner)),
        None => "no master".to_owned(),
    };
    // Writing to a string does not fail, here and below.
    let _ = writeln!(text, ", {master}");
    if view.nodes.is_empty() {
        text.push_str("No nodes\n");
        return text;
    }
    let timeout = ClusterConfig::default().member_timeout;
    let header = ["NODE", "ADDRESS", "ROLE", "SEEN"].map(str::to_owned);
    let rows = view.nodes.iter().map(|row| {
        let joined = view.lease.is_some_and(|lease| row.joined == Some(lease.term));
        let role = match () {
            () if row.age > timeout => "gone",
            () if owner == Some(row.node) => "master",
            () if joined => "member",
            () => "apart",
        };
        [short(row.node), row.address.clone(), role.to_owned(), format!("{:.1} s ago", row.age.as_secs_f64())]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row: &[String; 4]| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2)];
    for [node, address, role, seen] in &rows {
        let [first, second, third] = widths;
        let _ = writeln!(text, "{node:first$}  {address:second$}  {role:third$}  {seen}");
    }
    if let Some(why) = degraded(&rows) {
        let _ = writeln!(text, "Degraded: {why}");
    }
    text
}

/// What is not as it should be, as the roles show.
fn degraded(rows: &[[String; 4]]) -> Option<String> {
    let count = |wanted: &str| rows.iter().filter(|[_, _, role, _]| role == wanted).count();
    let (members, apart, gone) = (count("member"), count("apart"), count("gone"));
    match count("master") {
        0 => Some("no master is there".to_owned()),
        _ if apart > 0 => Some(format!("{apart} of {} nodes are not linked to the master", rows.len() - 1)),
        _ if members == 0 && gone > 0 => Some("the master is alone".to_owned()),
        _ => None,
    }
}
