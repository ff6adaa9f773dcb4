//! `goals` measures ws-cluster by its goals. Each goal is a line, with the reference that was measured in the same run.

use std::fs;

use benches::Result;

use self::{
    line::{Goal, Line},
    speed::{ONE_SEND, speed},
    tls::tls,
};
use crate::{
    Goals, machine,
    peers::{Ours, Peer, Plain},
    scenario::{Stage, batch, connect, echo, fan_out::Slices, idle, locks, relay as nodes, slow, targets},
    series::Series,
    table::{NOTHING, Table, figure},
};

mod deflate;
mod line;
mod speed;
mod tls;

type Measurement = fn(&Goals) -> Result<Vec<Line>>;

const ALL: [(&str, Measurement); 13] = [
    ("speed", speed),
    ("batch", publish_batch),
    ("targets", targets),
    ("actions", actions),
    ("memory", memory),
    ("latency", latency),
    ("relay", relay),
    ("connect", rush),
    ("slow", slow),
    ("churn", churn),
    ("tls", tls),
    ("locks", locks),
    ("deflate", deflate::compression),
];

pub(crate) fn run(options: &Goals) -> Result<()> {
    let unknown = options.only.iter().find(|only| ALL.iter().all(|(name, _)| name != only));
    if let Some(unknown) = unknown {
        return Err(format!("there is no goal `{unknown}`: see `benches goals --help`").into());
    }
    fs::create_dir_all(&options.output)?;
    let head = format!("{}, {} rounds", machine::describe(), options.rounds());
    let mut table = Table::new(["what", "figure", "reference", "ratio", "goal", "reached"]);
    for (name, measure) in ALL {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("{name}");
        match measure(options) {
            Ok(lines) => lines.into_iter().for_each(|line| {
                let reached = line.reached.map_or(NOTHING, |reached| if reached { "yes" } else { "no" });
                table.row([line.what, line.figure, line.reference, line.ratio, line.goal, reached.to_owned()]);
            }),
            Err(error) => table.row([name.to_owned(), format!("failed: {error}")]),
        }
        // A run that is ended early leaves what it has measured.
        fs::write(options.output.join("goals.md"), format!("{head}\n\n{table}"))?;
    }
    println!("{head}\n\n{table}");
    Ok(())
}

/// Measures all figures that are compared in each of several rounds. Returns a series for each figure.
fn rounds<const N: usize>(count: usize, measure: impl FnMut(usize) -> Result<[f64; N]>) -> Result<[Series; N]> {
    let rounds: Vec<[f64; N]> = (0..count).map(measure).collect::<Result<_>>()?;
    Ok(std::array::from_fn(|index| rounds.iter().map(|round| Some(round[index])).collect()))
}

/// Measures with our program, and with the build before it if there is one, which is the first in every second round.
fn both<T>(options: &Goals, round: usize, mut measure: impl FnMut(&Ours) -> Result<T>) -> Result<(T, Option<T>)> {
    let (ours, before) = (Ours::default(), options.before());
    if round.is_multiple_of(2) {
        let ours = measure(&ours)?;
        return Ok((ours, before.map(|before| measure(&before)).transpose()?));
    }
    let before = before.map(|before| measure(&before)).transpose()?;
    Ok((measure(&ours)?, before))
}

/// Returns a line for a figure of our program beside that of the build before it, unless there is none.
fn beside_before(what: &str, ours: &Series, unit: &str, before: &Series) -> Option<Line> {
    before.median()?;
    // Two builds of the same source differ by this much.
    Some(Line::ratio(what, ours, unit, before, "the build before", Goal::AtMost(1.05)))
}

/// Returns a line for each server that has failed in some slices. Its figures are from the others.
fn failures<'a>(servers: impl Iterator<Item = (&'a &'a dyn Peer, &'a Slices)>, clients: &[usize]) -> Vec<Line> {
    let failed = servers.filter_map(|(peer, slices)| {
        let (failed, all) = slices.lacking(clients, *peer);
        (failed > 0).then(|| Line::failed(format!("{} failed in {failed} of {all} slices", peer.name())))
    });
    failed.collect()
}

fn publish_batch(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 20 } else { 100 };
    let [to_all, in_process, to_nobody, nobody_in_process] = rounds(options.rounds(), |_| {
        let [all, nobody] = batch::measure(publishes)?;
        Ok([all.batch, all.in_process, nobody.batch, nobody.in_process])
    })?;
    let (messages, clients) = (batch::MESSAGES, batch::CLIENTS);
    let of = format!("{messages} publishes in the process");
    let what = format!("a batch of {messages} over HTTP to {clients} clients");
    Ok(vec![
        Line::ratio(what, &to_all, "µs", &in_process, &of, Goal::AtMost(1.3)),
        Line::ratio("the same to nobody", &to_nobody, "µs", &nobody_in_process, &of, Goal::None),
    ])
}

fn targets(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 2_000 } else { 10_000 };
    let [one_send_user, one_send_group, user, group, nobody, user_before, group_before] =
        rounds(options.rounds(), |round| {
            let one_send = targets::one_send(publishes)?;
            let (ours, before) = both(options, round, |ours| targets::ours(ours, publishes))?;
            let [user, group] = before.map_or([f64::NAN; 2], |before| [before.user, before.group]);
            Ok([one_send.user, one_send.group, ours.user, ours.group, ours.nobody, user, group])
        })?;
    let nobody = format!("; to nobody {} µs", figure(nobody.median().unwrap_or(f64::NAN)));
    let (to_user, to_group) = ("to one user of 10,000, beyond nobody", "to a group of 100 of 10,000, each");
    let mut lines = vec![
        Line::ratio(to_user, &user, "µs", &one_send_user, ONE_SEND, Goal::AtMost(2.0)),
        Line::ratio(to_group, &group, "µs", &one_send_group, ONE_SEND, Goal::AtMost(2.0)),
    ];
    lines.iter_mut().for_each(|line| line.reference += &nobody);
    lines.extend(beside_before(to_user, &user, "µs", &user_before));
    lines.extend(beside_before(to_group, &group, "µs", &group_before));
    Ok(lines)
}

fn actions(options: &Goals) -> Result<Vec<Line>> {
    let plain = Plain { buffer: Some(4096) };
    let [reference, respond, reply, before] = rounds(options.rounds(), |round| {
        let text = plain.echo().unwrap_or_default();
        let reference = echo::measure(&mut Stage::set(&plain)?, &text)?;
        let measure = |ours: &Ours| echo::measure(&mut Stage::set(ours)?, &Ours::action("echo"));
        let (respond, before) = both(options, round, measure)?;
        let reply = echo::measure(&mut Stage::set(&Ours::default())?, &Ours::action("reply"))?;
        Ok([reference, respond, reply, before.unwrap_or(f64::NAN)])
    })?;
    let what = "an action and its `reply`";
    let line = |what, cost, goal| Line::ratio(what, cost, "µs", &reference, "a tungstenite echo", goal);
    let mut lines = vec![line(what, &respond, Goal::AtMost(1.5))];
    lines.extend(beside_before(what, &respond, "µs", &before));
    lines.push(line("the same by `reply_to_user`", &reply, Goal::None));
    Ok(lines)
}

fn memory(options: &Goals) -> Result<Vec<Line>> {
    const CLIENTS: usize = 10_000;
    let [idle, after] = rounds(options.rounds(), |_| idle::measure_burst(CLIENTS).map(|(idle, after)| [idle, after]))?;
    Ok(vec![
        Line::at_most("an idle connection of 10,000", &idle, "KB", 1.0),
        Line::at_most("the same 30 s after a burst", &after, "KB", 1.0),
    ])
}

fn latency(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 200 } else { 1_000 };
    let [local_p50, local_p99, p50, p99] = rounds(options.rounds(), |_| {
        let (local, relayed) = nodes::latency(publishes)?;
        Ok([local.p50_micros, local.p99_micros, relayed.p50_micros, relayed.p99_micros].map(|micros| micros / 1000.0))
    })?;
    let line = |what, relayed: &Series, local: &Series, most| {
        let line = Line::at_most(what, &relayed.with(local, |relayed, local| relayed - local), "ms", most);
        Line { reference: format!("beyond {} ms, one node", figure(local.median().unwrap_or(f64::NAN))), ..line }
    };
    Ok(vec![
        line("from follower to follower, p50", &p50, &local_p50, 0.3),
        line("the same, p99", &p99, &local_p99, 2.0),
    ])
}

fn relay(options: &Goals) -> Result<Vec<Line>> {
    let seconds = if options.quick { 3 } else { 10 };
    let [accepted, delivered, lost] = rounds(options.rounds(), |_| nodes::throughput(seconds))?;
    let line = Line::at_least("accepted by three nodes", &accepted, "messages/s", 200_000.0);
    let [delivered, lost] = [delivered, lost].map(|series| series.median().unwrap_or(f64::NAN));
    let reached = line.reached.map(|reached| reached && lost == 0.0);
    let reference = format!("the clients got {}/s, {lost} of 3 were lost", figure(delivered));
    Ok(vec![Line { reference, reached, ..line }])
}

fn rush(options: &Goals) -> Result<Vec<Line>> {
    let (clients, in_flight) = (connect::CLIENTS, connect::IN_FLIGHT);
    let [rate, first, last, before] = rounds(options.rounds(), |round| {
        let (rush, before) = both(options, round, connect::rush)?;
        Ok([rush.per_second, rush.first, rush.last, before.map_or(f64::NAN, |before| before.per_second)])
    })?;
    let what = format!("{clients} clients, {in_flight} at once");
    let mut lines = vec![Line::at_least(&*what, &rate, "handshakes/s", 5_000.0)];
    // Less is worse here, so the ratio is that of the times.
    let micros = |rate: &Series| rate.with(rate, |rate, _| 1e6 / rate);
    lines.extend(beside_before(&format!("{what}, each"), &micros(&rate), "µs", &micros(&before)));
    lines.push(Line::ratio(
        "memory with all there, the second time",
        &last,
        "MB",
        &first,
        "the first time",
        Goal::AtMost(1.05),
    ));
    Ok(lines)
}

fn slow(options: &Goals) -> Result<Vec<Line>> {
    let figures = slow::measure(if options.quick { 10 } else { 30 })?;
    let end = match (figures.closed, figures.code) {
        (false, _) => "it is open still".to_owned(),
        (true, None) => "it was cut off".to_owned(),
        (true, Some(code)) => format!("it was closed with {code}"),
    };
    // The cap of its queue, twice for what grows beside it.
    let taken = figures.growth_with - figures.growth_without;
    let memory = Line::at_most("memory that the slow client takes", &Series::one(taken), "MB", 2.0);
    let reached = memory.reached.map(|reached| reached && figures.closed);
    let memory = Line { reference: end, reached, ..memory };
    let (without, with) = (Series::one(figures.p99_without), Series::one(figures.p99_with));
    Ok(vec![
        Line::ratio("p99 of 5,000 beside a slow client", &with, "ms", &without, "without it", Goal::AtMost(1.2)),
        if taken < 0.0 { Line { figure: "not measurable".to_owned(), reached: None, ..memory } } else { memory },
    ])
}

fn churn(options: &Goals) -> Result<Vec<Line>> {
    let connections = if options.quick { options.connections.min(50_000) } else { options.connections };
    let (tenth, end, per_second) = connect::churn(connections)?;
    let what = format!("memory after {connections} connections ({}/s)", figure(per_second));
    let (tenth, end) = (Series::one(tenth), Series::one(end));
    Ok(vec![Line::ratio(what, &end, "MB", &tenth, "after the first tenth", Goal::AtMost(1.05))])
}

fn locks(_: &Goals) -> Result<Vec<Line>> {
    let figures = locks::measure()?;
    let count: u64 = figures.contended.iter().map(|(_, count)| count).sum();
    let per_thousand = Series::one(count as f64 * 1000.0 / figures.deliveries as f64);
    let of: Vec<String> = figures
        .contended
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} × {name}"))
        .collect();
    let (publishers, clients) = (locks::PUBLISHERS, locks::CLIENTS);
    let what =
        format!("locks not got at once, of 1000 deliveries, {publishers} publishers, {clients} clients, all cores");
    let line = Line::at_most(what, &per_thousand, "contended", 10.0);
    Ok(vec![Line { reference: format!("{} deliveries: {}", figures.deliveries, of.join(", ")), ..line }])
}
