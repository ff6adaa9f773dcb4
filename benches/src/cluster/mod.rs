//! `cluster` measures the way of a message through two nodes: published over HTTP at one, received at the other. Peers
//! are the nearest relatives of a cluster that uses the site's own database: Centrifugo with Redis and with PostgreSQL.
//! Everything is started for it, on the loopback device and in temporary directories, and ends with it.

use std::{fs, time::Instant};

use benches::Result;

use self::systems::System;
use crate::{
    Through,
    load::{
        Load,
        order::{FanOut, Order, Report},
    },
    machine,
    series::Series,
    table::{NOTHING, Table, figure},
};

mod databases;
mod systems;

/// Number of publishes whose times are measured, one after the other, and the pause between two of them.
const PUBLISHES: usize = 200;
const PAUSE: u64 = 5_000;

/// Number of publishers, each of which has one request under way, and the time for which they publish.
const PUBLISHERS: usize = 32;
const SECONDS: u64 = 5;

/// The figures of a round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Milliseconds until the publish was answered, and until the client of the other node had the message.
    accepted: [f64; 2],
    delivered: [f64; 2],
    per_second: f64,
}

pub(crate) fn run(options: &Through) -> Result<()> {
    let systems: Vec<System> = System::ALL.into_iter().filter(|system| wanted(*system, &options.only)).collect();
    let (measured, skipped): (Vec<System>, Vec<System>) =
        systems.into_iter().partition(|system| system.missing().is_none());
    let rounds = if options.quick { 1 } else { options.rounds };
    let began = Instant::now();
    let mut figures: Vec<Vec<Option<Figures>>> = vec![Vec::new(); measured.len()];
    for round in 1..=rounds {
        for (system, figures) in measured.iter().zip(&mut figures) {
            eprintln!("{:4} s: round {round} of {rounds}, {}", began.elapsed().as_secs(), system.name());
            let outcome = measure(*system, options.quick);
            figures.push(outcome.inspect_err(|error| eprintln!("        failed: {error}")).ok());
        }
    }
    let mut text = format!("{}, {rounds} rounds\n\n", machine::describe());
    text += &table(&measured, &figures).to_string();
    for system in skipped {
        let missing = system.missing().unwrap_or_default();
        text += &format!("\n{} was skipped: {missing} is not installed.", system.name());
    }
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("cluster.md"), text + "\n")?;
    Ok(())
}

fn wanted(system: System, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|word| system.name().to_lowercase().contains(&word.to_lowercase()))
}

fn measure(system: System, quick: bool) -> Result<Figures> {
    let cluster = system.start()?;
    let mut load = Load::start(None)?;
    load.order(&Order::Connect { recipe: cluster.receive.clone(), first: 0, count: 1, in_flight: 1 })?;
    let one_by_one = |rounds| {
        Order::FanOut(FanOut {
            publish_to: Some(cluster.publish_to),
            publishes: vec![cluster.publish.clone()],
            reached: 1,
            messages: 1,
            answers: 1,
            rounds,
            pause_micros: PAUSE,
            ..FanOut::default()
        })
    };
    let publishes = if quick { PUBLISHES / 4 } else { PUBLISHES };
    whole(load.order(&one_by_one(publishes / 10 + 1))?)?;
    let times = whole(load.order(&one_by_one(publishes))?)?;
    let flood = |seconds| Order::Flood {
        publish_to: cluster.publish_to,
        publish: cluster.publish.clone(),
        connections: PUBLISHERS,
        millis: seconds * 1000,
    };
    whole(load.order(&flood(1))?)?;
    let flood = whole(load.order(&flood(if quick { 2 } else { SECONDS }))?)?;
    Ok(Figures {
        accepted: [times.accepted_p50_micros, times.accepted_p99_micros].map(|micros| micros / 1000.0),
        delivered: [times.p50_micros, times.p99_micros].map(|micros| micros / 1000.0),
        per_second: flood.done as f64 / flood.seconds,
    })
}

/// Fails if messages are missing, or if one was refused.
fn whole(report: Report) -> Result<Report> {
    match (report.failed, &report.trouble) {
        (0, None) => Ok(report),
        (failed, trouble) => {
            Err(format!("{failed} messages are missing: {}", trouble.as_deref().unwrap_or_default()).into())
        }
    }
}

fn table(systems: &[System], figures: &[Vec<Option<Figures>>]) -> Table {
    let accepted_by = format!("accepted/s from {PUBLISHERS} publishers");
    let mut table = Table::new([
        "two nodes",
        "accepted, p50 / p99 ms",
        "delivered, p50 / p99 ms",
        &accepted_by,
        "an accepted message is",
    ]);
    for (system, rounds) in systems.iter().zip(figures) {
        let middle = |of: &dyn Fn(&Figures) -> f64| {
            let series: Series = rounds.iter().map(|round| round.as_ref().map(of)).collect();
            series.median().map_or(NOTHING.to_owned(), figure)
        };
        let pair = |of: fn(&Figures) -> [f64; 2]| {
            format!("{} / {}", middle(&|figures| of(figures)[0]), middle(&|figures| of(figures)[1]))
        };
        table.row([
            system.name().to_owned(),
            pair(|figures| figures.accepted),
            pair(|figures| figures.delivered),
            middle(&|figures| figures.per_second),
            system.accepted().to_owned(),
        ]);
    }
    table
}
