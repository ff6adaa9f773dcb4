//! The history without a hub: positions, topics, cuts and revocations.

use super::{valid_versions::MAX_REVOKED, *};
use crate::{Identity, message::content::Content};
use ws_cluster_core::NodeId;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn log_position(term: u64, master: u8, seq: Seq) -> LogPosition {
    LogPosition { term, master: node(master), seq }
}

fn encoded(target: &Target) -> Bytes {
    Content::Message { target: target.clone(), action: "x".into(), details: "[]".into(), volatile: false }.encode()
}

fn append(history: &mut History, log_position: LogPosition, target: &Target) {
    history.append(
        log_position,
        PublishId { origin: node(1), counter: log_position.seq },
        Some((target, encoded(target))),
    );
}

/// Returns ten entries for all: 1 to 6 of the first master, 7 to 10 of the second.
fn ten() -> History {
    let mut history = History::default();
    (1..=6).for_each(|seq| append(&mut history, log_position(1, 1, seq), &Target::all()));
    (7..=10).for_each(|seq| append(&mut history, log_position(2, 2, seq), &Target::all()));
    history
}

fn status(history: &History, log_position: LogPosition) -> PositionStatus {
    history.position_status(&log_position.into())
}

fn places(history: &History, identity: Identity, after: Seq) -> Vec<Seq> {
    let membership = Membership::of(identity);
    let (candidates, _) = history.candidates(&membership, after, 1000).unwrap();
    candidates.iter().map(|(log_position, _)| log_position.seq).collect()
}

#[test]
fn a_position_is_known_if_the_same_master_wrote_it() {
    let mut history = ten();
    assert_eq!(status(&history, log_position(1, 1, 6)), PositionStatus::Known);
    assert_eq!(status(&history, log_position(2, 2, 10)), PositionStatus::Known);
    // The first master continued alone for a while.
    assert!(matches!(status(&history, log_position(1, 1, 7)), PositionStatus::Lost(_)));
    // A term that was used twice.
    assert!(matches!(status(&history, log_position(2, 3, 8)), PositionStatus::Lost(_)));
    assert!(matches!(history.position_status(&Position::START), PositionStatus::Lost(_)));
    history.trim(7);
    assert!(matches!(status(&history, log_position(1, 1, 6)), PositionStatus::Lost(_)));
    assert_eq!(status(&history, log_position(2, 2, 7)), PositionStatus::Known, "nothing behind it is missing");
}

#[test]
fn a_position_may_be_ahead_of_this_node() {
    let history = ten();
    assert_eq!(status(&history, log_position(2, 2, 11)), PositionStatus::Ahead);
    assert_eq!(
        status(&history, log_position(3, 3, 9)),
        PositionStatus::Ahead,
        "of a master that this node has not met"
    );
    assert!(
        matches!(status(&history, log_position(1, 1, 11)), PositionStatus::Lost(_)),
        "of a master whose term has ended"
    );
}

#[test]
fn cut_and_trimmed_entries_leave_nothing_in_the_index() {
    let mut history = ten();
    assert_eq!(history.cut(8).iter().map(|publish| publish.counter).collect::<Vec<_>>(), [10, 9]);
    assert_eq!(places(&history, Identity::guest(), 0), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(history.position(), log_position(2, 2, 8).into());
    assert_eq!(status(&history, log_position(2, 2, 9)), PositionStatus::Ahead);
    append(&mut history, log_position(3, 3, 9), &Target::all());
    assert!(matches!(status(&history, log_position(2, 2, 9)), PositionStatus::Lost(_)));
    history.trim(9);
    assert!(history.index.is_empty() && history.entries.is_empty());
    assert_eq!(history.position(), log_position(3, 3, 9).into());
}

#[test]
fn a_restarted_history_knows_its_base() {
    let mut history = ten();
    let before = history.epoch();
    history.restart(Some(log_position(4, 2, 50)));
    assert!(history.epoch() > before);
    assert_eq!(history.position(), log_position(4, 2, 50).into());
    assert_eq!(status(&history, log_position(4, 2, 50)), PositionStatus::Known);
    assert!(matches!(status(&history, log_position(2, 2, 10)), PositionStatus::Lost(_)));
    append(&mut history, log_position(4, 2, 51), &Target::all());
    assert_eq!(places(&history, Identity::guest(), 50), [51]);
}

#[test]
fn only_entries_of_the_topics_of_a_client_are_candidates() {
    let mut history = History::default();
    let connection = crate::ConnectionId { node: node(1), local: 1 };
    let targets = [
        Target::all(),
        Target::registered(),
        Target::users(["ann", "bob", "ann"]),
        Target::groups(["a", "b"]),
        Target::session("s"),
        Target::property("colour", "red"),
        Target::connection(connection),
        Target::user("bob").except_user("ann"),
    ];
    for (target, seq) in targets.iter().zip(1..) {
        append(&mut history, log_position(1, 1, seq), target);
    }
    assert_eq!(places(&history, Identity::guest(), 0), [1]);
    assert_eq!(places(&history, Identity::user("ann"), 0), [1, 2, 3]);
    assert_eq!(places(&history, Identity::user("bob").groups(["a", "b"]), 2), [3, 4, 8]);
    assert_eq!(places(&history, Identity::guest().session("s").property("colour", "red"), 0), [1, 5, 6]);
    history.trim(8);
    assert!(history.index.is_empty());
}

#[test]
fn entries_older_than_a_membership_are_no_candidates() {
    let mut history = History::default();
    for seq in 1..=4 {
        append(&mut history, log_position(1, 1, seq), &Target::groups(["a", "b"]));
    }
    let mut membership = Membership::of(Identity::guest());
    membership.join("a".into(), Some(3));
    let seqs = |membership: &Membership| {
        let (candidates, _) = history.candidates(membership, 0, 10).unwrap();
        candidates.iter().map(|(log_position, _)| log_position.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&membership), [4]);
    assert!(!membership.was_target_of(&Target::groups(["a", "b"]), 3));
    membership.join("b".into(), Some(1));
    assert_eq!(seqs(&membership), [2, 3, 4]);
    assert!(membership.was_target_of(&Target::groups(["a", "b"]), 3));
    assert!(!membership.was_target_of(&Target::groups(["a", "c"]), 3));
    membership.leave("b");
    membership.join("b".into(), Some(2));
    assert_eq!(seqs(&membership), [3, 4], "it was away in between");
}

#[test]
fn the_lowest_valid_version_is_known_or_the_token_is_too_old() {
    let mut history = ten();
    let id = |local| ConnectionId { node: node(1), local };
    history.revoke(id(1), 3, 7);
    history.revoke(id(1), 2, 8);
    assert_eq!((history.lowest_version(id(1)), history.lowest_version(id(2))), (3, 0));
    // The log may be trimmed. Revocations are still known.
    history.trim(9);
    assert_eq!(history.seal_status(&log_position(1, 1, 5).into()), PositionStatus::Known);
    assert!(matches!(history.seal_status(&log_position(1, 1, 8).into()), PositionStatus::Lost(_)), "of another order");
    assert_eq!(history.seal_status(&log_position(2, 2, 11).into()), PositionStatus::Ahead);
    for local in 0..MAX_REVOKED as u64 {
        history.revoke(id(10 + local), 1, 9);
    }
    assert_eq!(history.lowest_version(id(1)), 0);
    assert!(
        matches!(history.seal_status(&log_position(2, 2, 7).into()), PositionStatus::Lost(_)),
        "too old to be told"
    );
    assert_eq!(history.seal_status(&log_position(2, 2, 8).into()), PositionStatus::Known);
    history.restart(Some(log_position(3, 3, 20)));
    assert!(matches!(history.seal_status(&log_position(2, 2, 9).into()), PositionStatus::Lost(_)));
    assert_eq!(history.seal_status(&log_position(3, 3, 20).into()), PositionStatus::Known);
}

#[test]
fn too_many_candidates_are_refused() {
    let history = ten();
    let guest = Membership::of(Identity::guest());
    assert!(history.candidates(&guest, 0, 3).is_ok(), "some may not be meant");
    assert_eq!(history.candidates(&guest, 0, 2).err(), Some(Missing::TooMany));
}
