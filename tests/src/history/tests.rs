//! Tests of the checker: generated histories have no violations, and each planted defect is found and named.

use std::io::BufReader;

use super::{
    Defect, History, Kind, Record, Report, SENTINEL,
    generate::{Entry, Made, Size, history},
};
use crate::random::Random;

const SMALL: Size = Size { publishers: 4, users: 5, clients: 24, messages: 400, cut: 2 };

fn check(records: &[Record<'_>]) -> Report {
    let mut history = History::default();
    for record in records {
        history.add(record).unwrap();
    }
    history.check()
}

/// Plants a defect in histories of several seeds. The check has to find it. Prints the seed if it does not.
#[track_caller]
fn planted(defect: Defect, others: &[Defect], plant: impl Fn(&mut Made, &mut Random) -> bool) {
    let first = Random::seed();
    let mut planted = 0;
    for seed in first..first + 20 {
        let mut random = Random::new(seed);
        let mut made = history(&mut random, &SMALL);
        if !plant(&mut made, &mut random) {
            continue;
        }
        planted += 1;
        let report = check(&made.records);
        assert!(report.count(defect) > 0, "seed {seed}: not found\n{report}");
        for violation in &report.violations {
            let known = violation.defect == defect || others.contains(&violation.defect);
            assert!(known, "seed {seed}: another one\n{report}");
        }
    }
    assert!(planted > 0, "seeds from {first}: no history has room for it");
}

/// Returns the indices of messages that a client got after its last reset, so that they cannot have been cut.
fn firm(records: &[Record<'_>], wanted: impl Fn(&Record<'_>) -> bool) -> Vec<usize> {
    let reset = |record: &Record<'_>, of: &str| match record {
        Record::Position { client, kind, .. } => client == of && *kind != Kind::Recovered,
        _ => false,
    };
    let firm = |at: &usize| match &records[*at] {
        Record::Message { client, by, .. } if by != SENTINEL => {
            !records[*at..].iter().any(|record| reset(record, client)) && wanted(&records[*at])
        }
        _ => false,
    };
    (0..records.len()).filter(firm).collect()
}

fn is_message(record: &Record<'_>, publisher: &str, wanted: u64) -> bool {
    matches!(record, Record::Message { by, number, .. } if by == publisher && *number == wanted)
}

/// Returns true if a record is a message to all, of the history's publishers.
fn is_to_all(made: &Made, record: &Record<'_>) -> bool {
    made.order.iter().any(|entry| entry.to == "all" && is_message(record, &entry.by, entry.number))
}

fn is_accepted(made: &Made, publisher: &str, wanted: u64) -> bool {
    let accepted = |record: &Record<'_>| matches!(record, Record::Accepted { by, number, .. } if by == publisher && *number == wanted);
    made.records.iter().any(accepted)
}

#[test]
fn what_keeps_the_promise_is_clean() {
    let first = Random::seed();
    for seed in first..first + 200 {
        let report = check(&history(&mut Random::new(seed), &SMALL).records);
        assert!(report.is_clean(), "seed {seed}\n{report}");
        assert!(report.observed > 1000 && report.recovered > 0, "seed {seed}\n{report}");
    }
}

#[test]
fn a_history_without_places_is_judged_as_well() {
    let first = Random::seed();
    for seed in first..first + 50 {
        // Messages that a fault cut would make the planted defect ambiguous.
        let mut made = history(&mut Random::new(seed), &Size { cut: 0, ..SMALL });
        for record in &mut made.records {
            if let Record::Message { at, .. } = record {
                *at = None;
            }
        }
        let report = check(&made.records);
        assert!(report.is_clean(), "seed {seed}\n{report}");
    }
}

#[test]
fn an_accepted_message_that_nobody_saw_is_lost() {
    planted(Defect::Lost, &[], |made, random| {
        let at: Vec<usize> = firm(&made.records, |record| is_to_all(made, record));
        let Record::Message { by, number, .. } = made.records[*random.choose(&at)].clone() else { return false };
        // Published after a client began.
        let late = made.order.iter().position(|entry| (&*entry.by, entry.number) == (&*by, number));
        made.records.retain(|record| !is_message(record, &by, number));
        is_accepted(made, &by, number) && late.is_some_and(|late| late > made.order.len() / 2)
    });
}

#[test]
fn an_accepted_message_that_one_client_did_not_see_is_lost() {
    planted(Defect::Lost, &[], |made, random| {
        let at = *random.choose(&firm(&made.records, |record| is_to_all(made, record)));
        let Record::Message { client, by, number, .. } = made.records.remove(at) else { return false };
        // The first message of a segment could also have come before it.
        let first = matches!(&made.records[at - 1], Record::Position { client: other, .. } if *other == client);
        is_accepted(made, &by, number) && !first
    });
}

#[test]
fn a_message_that_one_client_did_not_see_is_missed_even_if_it_was_not_accepted() {
    planted(Defect::Missed, &[], |made, random| {
        let unclear = |record: &Record<'_>| match record {
            Record::Message { by, number, .. } => is_to_all(made, record) && !is_accepted(made, by, *number),
            _ => false,
        };
        let firm = firm(&made.records, unclear);
        if firm.is_empty() {
            return false;
        }
        let at = *random.choose(&firm);
        // In the middle of a connection, so that both neighbours show it.
        let neighbours = [at - 1, at + 1].map(|at| matches!(made.records[at], Record::Message { .. }));
        made.records.remove(at);
        neighbours == [true, true]
    });
}

#[test]
fn a_message_that_is_missing_where_a_client_came_back_is_lost() {
    planted(Defect::Lost, &[], |made, random| {
        let back = |at: &usize| {
            let Record::Message { by, number, .. } = &made.records[*at] else { return false };
            matches!(made.records[at - 1], Record::Position { kind: Kind::Recovered, .. })
                && is_accepted(made, by, *number)
                && matches!(made.records[at - 4], Record::Message { .. })
        };
        let at: Vec<usize> = firm(&made.records, |_| true).into_iter().filter(back).collect();
        if at.is_empty() {
            return false;
        }
        made.records.remove(*random.choose(&at));
        true
    });
}

#[test]
fn a_message_that_comes_twice_is_found() {
    planted(Defect::Twice, &[Defect::Unpositioned], |made, random| {
        let at = *random.choose(&firm(&made.records, |_| true));
        let (again, message) = (made.records[at].clone(), &made.records[at]);
        let Record::Message { client: of, .. } = message else { return false };
        // Right after it, or some messages later.
        let end = made
            .records
            .iter()
            .rposition(|record| matches!(record, Record::Message { client, by, .. } if client == of && by == SENTINEL));
        let later = at + 1 + random.index(end.unwrap() - at);
        made.records.insert(later, again);
        true
    });
}

#[test]
fn two_orders_are_found() {
    planted(Defect::Disorder, &[Defect::PublisherDisorder, Defect::Lost, Defect::Missed], |made, random| {
        let pairs: Vec<usize> = firm(&made.records, |record| is_to_all(made, record))
            .into_iter()
            .filter(|at| is_to_all(made, &made.records[at + 1]))
            .filter(|at| !matches!(&made.records[at + 1], Record::Message { by, .. } if by == SENTINEL))
            .collect();
        if pairs.is_empty() {
            return false;
        }
        let at = *random.choose(&pairs);
        made.records.swap(at, at + 1);
        true
    });
}

#[test]
fn a_publishers_order_that_is_not_kept_is_found_where_all_agree() {
    planted(Defect::PublisherDisorder, &[], |made, random| {
        // Two messages to all, of one publisher and one node, each seen as the other.
        let to_all = |entry: &&Entry| entry.to == "all" && is_accepted(made, &entry.by, entry.number);
        let late: Vec<_> = made.order[made.order.len() / 2..].iter().filter(to_all).cloned().collect();
        let one = random.choose(&late).clone();
        let Some(other) = late.iter().find(|entry| entry.by == one.by && entry.number != one.number).cloned() else {
            return false;
        };
        for record in &mut made.records {
            if let Record::Message { by, number, .. } | Record::Begun { by, number, .. } = record
                && *by == one.by
            {
                // The publisher's clock stays with the log position, so that only the numbers are wrong.
                *number = if *number == one.number {
                    other.number
                } else if *number == other.number {
                    one.number
                } else {
                    *number
                };
            }
        }
        true
    });
}

#[test]
fn a_message_that_nobody_published_is_found() {
    planted(Defect::Unpublished, &[], |made, random| {
        let at = *random.choose(&firm(&made.records, |_| true));
        let mut ghost = made.records[at].clone();
        if let Record::Message { by, at, .. } = &mut ghost {
            *by = "nobody".into();
            *at = None;
        }
        made.records.insert(at, ghost);
        true
    });
}

#[test]
fn a_message_that_was_for_others_is_found() {
    planted(Defect::NotMeant, &[], |made, random| {
        let at = *random.choose(&firm(&made.records, |_| true));
        let Record::Message { client, .. } = made.records[at].clone() else { return false };
        let foreign = made.records.iter().find(|record| match record {
            Record::Message { client: other, by, number, .. } => {
                let entry = made.order.iter().find(|entry| entry.by == *by && entry.number == *number);
                // Users differ if their numbers differ modulo five.
                let number = |name: &str| name[1..].parse::<u64>().unwrap() % 5;
                entry.is_some_and(|entry| entry.to.starts_with("user:")) && number(other) != number(&client)
            }
            _ => false,
        });
        let Some(mut foreign) = foreign.cloned() else { return false };
        if let Record::Message { client: of, at, .. } = &mut foreign {
            *of = client;
            *at = None;
        }
        made.records.insert(at, foreign);
        true
    });
}

#[test]
fn a_client_that_does_not_see_the_end_is_found() {
    planted(Defect::NotEnded, &[], |made, random| {
        let ends: Vec<usize> =
            (0..made.records.len()).filter(|at| is_message(&made.records[*at], SENTINEL, 0)).collect();
        made.records.remove(*random.choose(&ends));
        true
    });
}

#[test]
fn a_message_on_a_connection_without_a_position_is_found() {
    planted(Defect::Unpositioned, &[], |made, random| {
        let positions: Vec<usize> = (0..made.records.len() - 1)
            .filter(|at| matches!(made.records[*at], Record::Position { kind: Kind::Recovered, .. }))
            .filter(|at| matches!(made.records[at + 1], Record::Message { .. }))
            .collect();
        made.records.remove(*random.choose(&positions));
        true
    });
}

#[test]
fn a_message_at_two_places_is_found() {
    planted(Defect::Place, &[], |made, random| {
        let at = *random.choose(&firm(&made.records, |record| is_to_all(made, record)));
        if let Record::Message { at, .. } = &mut made.records[at] {
            *at = Some("elsewhere".into());
        }
        true
    });
}

#[test]
fn two_messages_at_one_place_are_found() {
    planted(Defect::Place, &[], |made, random| {
        let firm = firm(&made.records, |record| is_to_all(made, record));
        let Record::Message { at: other, .. } = made.records[firm[0]].clone() else { return false };
        let chosen = *random.choose(&firm);
        if let Record::Message { at, .. } = &mut made.records[chosen]
            && *at != other
        {
            *at = other;
            return true;
        }
        false
    });
}

#[test]
fn it_reads_what_was_written() {
    let made = history(&mut Random::new(1), &SMALL);
    let mut lines = Vec::new();
    for record in &made.records {
        serde_json::to_writer(&mut lines, record).unwrap();
        lines.push(b'\n');
    }
    let mut history = History::default();
    history.read(BufReader::new(&lines[..])).unwrap();
    assert_eq!(history.check().to_string(), check(&made.records).to_string());
    let error =
        History::default().read(BufReader::new(&b"{\"is\":\"client\",\"client\":\"c\"}\n{}\n"[..])).unwrap_err();
    assert!(error.to_string().starts_with("line 2: "), "{error}");
}

#[test]
fn a_million_observations_take_seconds() {
    let size = Size { publishers: 20, users: 40, clients: 200, messages: 12_000, cut: 2 };
    let records = history(&mut Random::new(7), &size).records;
    let start = std::time::Instant::now();
    let report = check(&records);
    println!("{:?} for {} observations", start.elapsed(), report.observed);
    assert!(report.is_clean(), "{report}");
    assert!(report.observed > 900_000, "{report}");
}
