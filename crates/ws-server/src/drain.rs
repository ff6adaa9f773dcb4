//! `drain`: asks a node from outside to end, and waits until it has left the cluster.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use ws_cluster::{NodeId, Publisher, pool::NodeRow};

use crate::{
    Failure, Outcome,
    cli::Drain,
    client::{not_connected, reachable},
    say, short,
};

/// Time between two reads of the pool.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) async fn drain(drain: Drain) -> Outcome {
    let Drain { node, timeout, place } = drain;
    let opened = reachable(&place).await?;
    let key = opened.keys(&place.keys)?.swap_remove(0);
    let row = find(opened.read(&place.cluster).await?.nodes, &node)?;
    Publisher::drain_node(&row.address, &place.cluster, key).await.map_err(not_connected)?;
    if timeout.is_zero() {
        return Ok(());
    }
    let start = Instant::now();
    while opened.read(&place.cluster).await?.nodes.iter().any(|other| other.node == row.node) {
        if start.elapsed() >= timeout {
            return Err(Failure::refused(format!(
                "the node at {} drains, but has not left the cluster after {timeout:?}: look at its log",
                row.address
            )));
        }
        sleep(LOOK).await;
    }
    say(format_args!("{} at {} has left the cluster", short(row.node), row.address))
}

/// Finds a node by its address or the first digits of its id.
fn find(nodes: Vec<NodeRow>, meant: &str) -> Outcome<NodeRow> {
    let address = meant.trim_end_matches('/');
    let is_id = |node: NodeId| node.to_string().starts_with(&meant.to_ascii_lowercase());
    let mut found: Vec<NodeRow> =
        nodes.into_iter().filter(|row| row.address.trim_end_matches('/') == address || is_id(row.node)).collect();
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(Failure::refused(format!("the cluster has no node {meant}: `ws-server pool` shows its nodes"))),
        count => Err(Failure::setup(format!("{count} nodes match {meant}: give more digits of the id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u8, port: u16) -> NodeRow {
        NodeRow {
            ord: id.into(),
            node: NodeId::from_bytes([id; 16]),
            address: format!("ws://10.0.0.1:{port}"),
            joined: None,
            stamp: 1,
            age: Duration::ZERO,
        }
    }

    #[test]
    fn a_node_is_found_by_its_address_or_the_first_digits_of_its_id() {
        let nodes = || vec![row(0xa1, 8080), row(0xa2, 8081)];
        for (meant, id) in [("ws://10.0.0.1:8080", 0xa1), ("ws://10.0.0.1:8081/", 0xa2), ("a1", 0xa1), ("A2a", 0xa2)] {
            assert_eq!(find(nodes(), meant).unwrap().node, NodeId::from_bytes([id; 16]), "{meant}");
        }
        for (meant, status, says) in
            [("ws://10.0.0.1:80", 1, "no node ws://10.0.0.1:80"), ("b", 1, "no node b"), ("a", 2, "2 nodes match a")]
        {
            let failure = find(nodes(), meant).unwrap_err();
            assert!(failure.status == status && failure.text.contains(says), "{meant}: {failure:?}");
        }
    }
}
