//! `goals` measures ws-cluster by its goals. Each goal is a line, with the reference that was measured in the same run.

use std::fs;

use benches::Result;

use crate::{
    Goals, machine,
    peers::{OneSend, Ours, Peer, Plain},
    scenario::{
        Stage, batch, cluster, connect, echo,
        fan_out::{self, LOADS},
        idle, median, slow, targets,
    },
    table::{NOTHING, Table, figure},
};

/// The reference of a delivery.
const ONE_SEND: &str = "one send() per socket";

/// A figure beside its goal.
struct Line {
    what: String,
    figure: String,
    reference: String,
    ratio: String,
    goal: String,
    /// `None` if there is no goal.
    reached: Option<bool>,
}

impl Line {
    /// Returns a line for a figure that has to be at most `most` times a reference.
    fn times(what: impl Into<String>, value: f64, unit: &str, reference: f64, of: &str, most: f64) -> Self {
        Self {
            what: what.into(),
            figure: format!("{} {unit}", figure(value)),
            reference: format!("{} {unit}, {of}", figure(reference)),
            ratio: figure(value / reference),
            goal: format!("≤ {most} ×"),
            reached: Some(value <= reference * most),
        }
    }

    /// Returns a line for a figure with an absolute goal.
    fn bound(what: impl Into<String>, value: f64, unit: &str, goal: String, reached: bool) -> Self {
        let (reference, ratio) = (NOTHING.to_owned(), NOTHING.to_owned());
        Self {
            what: what.into(),
            figure: format!("{} {unit}", figure(value)),
            reference,
            ratio,
            goal,
            reached: Some(reached),
        }
    }

    fn at_most(what: impl Into<String>, value: f64, unit: &str, most: f64) -> Self {
        Self::bound(what, value, unit, format!("≤ {} {unit}", figure(most)), value <= most)
    }

    fn at_least(what: impl Into<String>, value: f64, unit: &str, least: f64) -> Self {
        Self::bound(what, value, unit, format!("≥ {least} {unit}"), value >= least)
    }
}

type Measurement = fn(&Goals) -> Result<Vec<Line>>;

const ALL: [(&str, Measurement); 10] = [
    ("fan-out", fan_out),
    ("batch", publish_batch),
    ("targets", targets),
    ("actions", actions),
    ("memory", memory),
    ("latency", latency),
    ("relay", relay),
    ("connect", rush),
    ("slow", slow),
    ("churn", churn),
];

pub(crate) fn run(options: &Goals) -> Result<()> {
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
    }
    let text = format!("{}\n\n{table}", machine::describe());
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("goals.md"), text)?;
    Ok(())
}

/// Returns the medians of several rounds, each of which measures all figures that are compared.
fn rounds<const N: usize>(options: &Goals, mut measure: impl FnMut() -> Result<[f64; N]>) -> Result<[f64; N]> {
    let rounds: Vec<[f64; N]> = (0..options.rounds()).map(|_| measure()).collect::<Result<_>>()?;
    Ok(std::array::from_fn(|index| median(rounds.iter().map(|round| round[index]).collect()).unwrap_or(f64::NAN)))
}

fn fan_out(options: &Goals) -> Result<Vec<Line>> {
    let costs = |peer: &dyn Peer| -> Result<[f64; LOADS.len()]> {
        let mut stage = Stage::set(peer)?;
        let mut costs = [0.0; LOADS.len()];
        for (cost, load) in costs.iter_mut().zip(LOADS) {
            *cost = fan_out::measure(&mut stage, peer, load)?.cpu;
        }
        Ok(costs)
    };
    const LINES: usize = LOADS.len();
    let measured: [f64; 2 * LINES] = rounds(options, || {
        let (one_send, ours) = (costs(&OneSend)?, costs(&Ours::default())?);
        Ok(std::array::from_fn(|index| if index < LINES { one_send[index] } else { ours[index - LINES] }))
    })?;
    let (one_send, ours) = measured.split_at(LINES);
    let figures = LOADS.iter().zip(one_send.iter().zip(ours));
    Ok(figures
        .map(|(load, (one_send, ours))| {
            let what = format!("CPU per delivery, {} clients, {} at once", load.clients, load.messages);
            let most = if load.messages == 1 { 1.3 } else { 1.8 };
            Line::times(what, *ours, "µs", *one_send, ONE_SEND, most)
        })
        .collect())
}

fn publish_batch(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 20 } else { 100 };
    let [to_all, in_process, to_nobody, nobody_in_process] = rounds(options, || {
        let [all, nobody] = batch::measure(publishes)?;
        Ok([all.batch, all.in_process, nobody.batch, nobody.in_process])
    })?;
    let (messages, clients) = (batch::MESSAGES, batch::CLIENTS);
    let of = format!("{messages} publishes in the process");
    let what = format!("a batch of {messages} over HTTP to {clients} clients");
    let reported = Line::times("the same to nobody", to_nobody, "µs", nobody_in_process, &of, 1.3);
    Ok(vec![
        Line::times(what, to_all, "µs", in_process, &of, 1.3),
        Line { goal: NOTHING.to_owned(), reached: None, ..reported },
    ])
}

fn targets(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 2_000 } else { 10_000 };
    let [one_send_user, one_send_group, user, group, nobody] = rounds(options, || {
        let (one_send, ours) = (targets::one_send(publishes)?, targets::ours(publishes)?);
        Ok([one_send.user, one_send.group, ours.user, ours.group, ours.nobody])
    })?;
    let nobody = format!("; to nobody {} µs", figure(nobody));
    let mut lines = vec![
        Line::times("to one user of 10,000, beyond nobody", user, "µs", one_send_user, ONE_SEND, 2.0),
        Line::times("to a group of 100 of 10,000, each", group, "µs", one_send_group, ONE_SEND, 2.0),
    ];
    lines.iter_mut().for_each(|line| line.reference += &nobody);
    Ok(lines)
}

fn actions(options: &Goals) -> Result<Vec<Line>> {
    let plain = Plain { buffer: Some(4096) };
    let [reference, respond, reply] = rounds(options, || {
        let text = plain.echo().unwrap_or_default();
        let reference = echo::measure(&mut Stage::set(&plain)?, &text)?;
        let respond = echo::measure(&mut Stage::set(&Ours::default())?, &Ours::action("echo"))?;
        let reply = echo::measure(&mut Stage::set(&Ours::default())?, &Ours::action("reply"))?;
        Ok([reference, respond, reply])
    })?;
    let line = |what, cost| Line::times(what, cost, "µs", reference, "a tungstenite echo", 1.5);
    let reported = Line { goal: NOTHING.to_owned(), reached: None, ..line("the same by `reply`", reply) };
    Ok(vec![line("an action and its `respond`", respond), reported])
}

fn memory(options: &Goals) -> Result<Vec<Line>> {
    const CLIENTS: usize = 10_000;
    let measured = || idle::measure_burst(CLIENTS).map(|(idle, after)| [idle, after]);
    let [idle, after] = if options.quick { measured()? } else { rounds(options, measured)? };
    Ok(vec![
        Line::at_most("an idle connection of 10,000", idle, "KB", 1.0),
        Line::at_most("the same 30 s after a burst", after, "KB", 1.0),
    ])
}

fn latency(options: &Goals) -> Result<Vec<Line>> {
    let publishes = if options.quick { 200 } else { 1_000 };
    let [local_p50, local_p99, p50, p99] = rounds(options, || {
        let (local, relayed) = cluster::latency(publishes)?;
        Ok([local.p50_micros, local.p99_micros, relayed.p50_micros, relayed.p99_micros].map(|micros| micros / 1000.0))
    })?;
    let line = |what, extra, local: f64, most| {
        let line = Line::at_most(what, extra, "ms", most);
        Line { reference: format!("beyond {} ms, one node", figure(local)), ..line }
    };
    Ok(vec![
        line("from follower to follower, p50", p50 - local_p50, local_p50, 0.3),
        line("the same, p99", p99 - local_p99, local_p99, 2.0),
    ])
}

fn relay(options: &Goals) -> Result<Vec<Line>> {
    let seconds = if options.quick { 3 } else { 10 };
    let [accepted, delivered, lost] = rounds(options, || cluster::throughput(seconds))?;
    let line = Line::at_least("accepted by three nodes", accepted, "messages/s", 200_000.0);
    let reached = line.reached.map(|reached| reached && lost == 0.0);
    let reference = format!("the clients got {}/s, {lost} of 3 were lost", figure(delivered));
    Ok(vec![Line { reference, reached, ..line }])
}

fn rush(options: &Goals) -> Result<Vec<Line>> {
    let rush = connect::rush(options.rounds().max(2))?;
    let (clients, in_flight) = (connect::CLIENTS, connect::IN_FLIGHT);
    Ok(vec![
        Line::at_least(format!("{clients} clients, {in_flight} at once"), rush.per_second, "handshakes/s", 5_000.0),
        Line::times("memory with all there, the last time", rush.last, "MB", rush.first, "the first time", 1.05),
    ])
}

fn slow(options: &Goals) -> Result<Vec<Line>> {
    let figures = slow::measure(if options.quick { 10 } else { 30 })?;
    let (without, with) = (figures.p99_without, figures.p99_with);
    let end = match (figures.closed, figures.code) {
        (false, _) => "it is open still".to_owned(),
        (true, None) => "it was cut off".to_owned(),
        (true, Some(code)) => format!("it was closed with {code}"),
    };
    // The cap of its queue, twice for what grows beside it.
    let taken = figures.growth_with - figures.growth_without;
    let memory = Line::at_most("memory that the slow client takes", taken, "MB", 2.0);
    let reached = memory.reached.map(|reached| reached && figures.closed);
    let memory = Line { reference: end, reached, ..memory };
    Ok(vec![
        Line::times("p99 of 5,000 beside a slow client", with, "ms", without, "without it", 1.2),
        if taken < 0.0 { Line { figure: "not measurable".to_owned(), reached: None, ..memory } } else { memory },
    ])
}

fn churn(options: &Goals) -> Result<Vec<Line>> {
    let connections = if options.quick { options.connections.min(50_000) } else { options.connections };
    let (tenth, end, per_second) = connect::churn(connections)?;
    let what = format!("memory after {connections} connections ({}/s)", figure(per_second));
    Ok(vec![Line::times(what, end, "MB", tenth, "after the first tenth", 1.05)])
}
