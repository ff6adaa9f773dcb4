//! `pool`: shows the nodes of a cluster, as the pool lists them.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use ws_cluster::{
    ClusterConfig, MySqlPool,
    outbox::{MySqlOutbox, SqliteOutbox},
    pool::PoolView,
};

use crate::{Failure, Outcome, cli::List, pool::Opened, say, short};

/// Shows the nodes. `cluster` has the intervals of the nodes, if the file of `--config` is theirs.
pub(crate) async fn list(list: List, cluster: &ClusterConfig) -> Outcome {
    if list.schema {
        return say(schema(list.place.pool.as_deref()).trim_end());
    }
    let opened = Opened::existing(&list.place).await?;
    let view = watched(&opened, &list.place.cluster, cluster).await?;
    say(format_args!("Pool {}", opened.name()))?;
    say(table(&list.place.cluster, &view, cluster.member_timeout).trim_end())?;
    if view.nodes.is_empty() {
        return Err(Failure::refused(format!(
            "the pool {} has no node of the cluster {}: start one, or give its --pool and --cluster",
            opened.name(),
            list.place.cluster
        )));
    }
    Ok(())
}

/// Returns the SQL of the tables. A node makes the tables of an SQLite pool itself, but a site may need those of the
/// outbox sooner.
fn schema(pool: Option<&str>) -> String {
    let is_sqlite = |url: &str| url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("sqlite:"));
    match pool.is_some_and(is_sqlite) {
        true => SqliteOutbox::schema().to_owned(),
        false => format!("{}\n{}", MySqlPool::schema(), MySqlOutbox::schema()),
    }
}

/// Time between two reads of the pool.
const LOOK: Duration = Duration::from_millis(250);

/// Reads the rows of a cluster. An old row proves nothing: different servers' clocks may write the row and compute its
/// age. So if there is an old row, this reads the pool for as long as a node takes to announce itself. A row that
/// changes meanwhile is new.
async fn watched(opened: &Opened, cluster: &str, intervals: &ClusterConfig) -> Outcome<PoolView> {
    let first = opened.read(cluster).await?;
    let (start, limit) = (Instant::now(), intervals.seen_interval + 2 * LOOK);
    let mut view = first.clone();
    while view.nodes.iter().any(|row| row.age > intervals.member_timeout) && start.elapsed() < limit {
        tokio::time::sleep(LOOK).await;
        view = rejuvenated(&first, opened.read(cluster).await?);
    }
    Ok(view)
}

/// Returns the later view, with age zero for each row that has changed since the first view.
fn rejuvenated(first: &PoolView, mut later: PoolView) -> PoolView {
    for row in &mut later.nodes {
        if !first.nodes.iter().any(|before| (before.node, before.stamp) == (row.node, row.stamp)) {
            row.age = Duration::ZERO;
        }
    }
    later
}

/// Returns the table of the nodes. A node whose row is older than `member_timeout` counts as gone.
fn table(cluster: &str, view: &PoolView, member_timeout: Duration) -> String {
    let mut text = match &view.lease {
        Some(lease) => format!("Cluster {cluster}, term {}", lease.term),
        None => format!("Cluster {cluster}, no term yet"),
    };
    let master = view.lease.and_then(|lease| lease.master);
    let named = match master {
        Some(master) => format!("master {}", short(master)),
        None => "no master".to_owned(),
    };
    // Writing to a string does not fail, here and below.
    let _ = writeln!(text, ", {named}");
    if view.nodes.is_empty() {
        text.push_str("No nodes\n");
        return text;
    }
    let header = ["NODE", "ADDRESS", "ROLE", "SEEN"].map(str::to_owned);
    let rows = view.nodes.iter().map(|row| {
        let joined = view.lease.is_some_and(|lease| row.joined == Some(lease.term));
        let role = match () {
            () if row.age > member_timeout => "gone",
            () if master == Some(row.node) => "master",
            () if joined => "follower",
            () => "candidate",
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
    if let Some(why) = degraded(&rows, master.map(short).as_deref()) {
        let _ = writeln!(text, "Degraded: {why}");
    }
    text
}

/// Advice on old rows. They say nothing about links.
const ASK: &str = "(`ws-server check --all` asks the nodes)";

/// Returns what is wrong, as far as the roles show it. `holder` is the node that has the lease.
fn degraded(rows: &[[String; 4]], holder: Option<&str>) -> Option<String> {
    let count = |wanted: &str| rows.iter().filter(|[_, _, role, _]| role == wanted).count();
    let (followers, candidates, gone) = (count("follower"), count("candidate"), count("gone"));
    let is_gone = |node: &str| rows.iter().any(|[name, _, role, _]| name == node && role == "gone");
    match count("master") {
        0 if gone == rows.len() - 1 => {
            Some(format!("no node has announced itself: none runs, or the database takes no writes {ASK}"))
        }
        0 if holder.is_some_and(is_gone) => Some(format!(
            "the master has not announced itself: it is gone, or its database does not take its writes {ASK}"
        )),
        0 => Some("no master".to_owned()),
        _ if candidates > 0 => Some(format!("{candidates} of {} nodes are not linked to the master", rows.len() - 1)),
        _ if followers == 0 && gone > 0 => Some(format!(
            "only the master has announced itself: the others are gone, or their database does not take their writes {ASK}"
        )),
        _ if gone > 0 => Some(format!(
            "{gone} of {} nodes have not announced themselves: they are gone, or their database does not take their \
             writes {ASK}",
            rows.len() - 1
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ws_cluster::{
        NodeId,
        pool::{Lease, NodeRow},
    };

    use super::*;

    const MASTER: NodeId = NodeId::from_bytes([1; 16]);

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns a master and a follower whose rows look this old.
    fn view(stamps: [u64; 2], age: u64) -> PoolView {
        let row = |ord: u64, stamp| NodeRow {
            ord,
            node: NodeId::from_bytes([ord as u8; 16]),
            address: format!("ws://10.0.0.{ord}:8080"),
            joined: Some(3),
            stamp,
            age: Duration::from_secs(age),
        };
        PoolView {
            lease: Some(Lease { term: 3, master: Some(MASTER), beat: 9 }),
            nodes: vec![row(1, stamps[0]), row(2, stamps[1])],
        }
    }

    #[test]
    fn rows_that_change_are_of_living_nodes_whatever_the_database_server_takes_them_for() {
        let first = view([10, 20], 3_600);
        let both = table("default", &rejuvenated(&first, view([11, 21], 3_600)), TIMEOUT);
        assert!(both.contains("master") && both.contains("follower") && !both.contains("Degraded"), "{both}");
        let one = table("default", &rejuvenated(&first, view([11, 20], 3_600)), TIMEOUT);
        assert!(one.contains("Degraded: only the master has announced itself"), "{one}");
        let other = table("default", &rejuvenated(&first, view([10, 21], 3_600)), TIMEOUT);
        assert!(other.contains("Degraded: the master has not announced itself"), "{other}");
        let none = table("default", &rejuvenated(&first, view([10, 20], 3_600)), TIMEOUT);
        assert!(none.contains("no node has announced itself"), "{none}");
    }

    #[test]
    fn a_row_is_old_by_the_intervals_of_its_cluster() {
        let view = view([10, 20], 60);
        let slow = table("default", &view, ClusterConfig::default().lease(Duration::from_secs(60)).member_timeout);
        assert!(slow.contains("follower") && !slow.contains("gone"), "{slow}");
        let quick = table("default", &view, ClusterConfig::default().member_timeout);
        assert!(quick.contains("gone") && !quick.contains("follower"), "{quick}");
    }
}
