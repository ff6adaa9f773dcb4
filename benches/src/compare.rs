//! `compare`: every server that is installed, each in a process of its own on the same core, in turn and several
//! times, so that what a noisy machine does to one round it does to all of them.

use std::{fs, time::Instant};

use benches::Result;

use crate::{
    Compare, machine,
    peers::{Floor, MESSAGE, Ours, Peer, Plain},
    scenario::{
        Stage, echo,
        fan_out::{self, Figures, LOADS, Load},
        idle, median,
    },
    table::{Table, figure},
};

/// What one server has shown, a value for each round.
struct Shown {
    peer: Box<dyn Peer>,
    fan_out: Vec<(Load, Figures)>,
    idle: Vec<f64>,
    echo: Vec<f64>,
}

pub(crate) fn run(options: &Compare) -> Result<()> {
    let mut shown = Vec::new();
    let mut skipped = Vec::new();
    for peer in peers() {
        let wanted = options.only.is_empty() || options.only.iter().any(|name| chosen(peer.name(), name));
        match peer.missing() {
            _ if !wanted => {}
            Some(how) => skipped.push(format!("{} is not installed: {how}", peer.name())),
            None => shown.push(Shown { peer, fan_out: Vec::new(), idle: Vec::new(), echo: Vec::new() }),
        }
    }
    let rounds = if options.quick { 1 } else { options.rounds };
    let began = Instant::now();
    for round in 1..=rounds {
        for server in &mut shown {
            eprintln!("{:4} s: round {round} of {rounds}, {}", began.elapsed().as_secs(), server.peer.name());
            if let Err(error) = measure(server, options) {
                eprintln!("        failed: {error}");
            }
        }
    }
    let mut text = format!("{}\n\n{}", machine::describe(), table(&shown, options));
    text.extend(skipped.iter().map(|line| format!("\n{line}")));
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("compare.md"), text + "\n")?;
    Ok(())
}

/// All of them, the floor first and ours next.
fn peers() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(Floor),
        Box::new(Ours::default()),
        Box::new(Plain { buffer: Some(4096) }),
        Box::new(Plain { buffer: None }),
    ]
}

/// Whether a name given on the command line means this server.
fn chosen(name: &str, given: &str) -> bool {
    let given = match given {
        "ours" => "ws-cluster",
        "plain" => "tokio-tungstenite",
        given => given,
    };
    name.to_lowercase().starts_with(&given.to_lowercase())
}

fn loads(options: &Compare) -> Vec<Load> {
    match options.clients {
        None => LOADS.to_vec(),
        Some(clients) => [1, 16].map(|messages| Load { clients, messages }).to_vec(),
    }
}

fn measure(server: &mut Shown, options: &Compare) -> Result<()> {
    let peer = &*server.peer;
    let mut stage = Stage::set(peer)?;
    for load in loads(options) {
        server.fan_out.push((load, fan_out::measure(&mut stage, peer, load)?));
    }
    drop(stage);
    server.idle.push(idle::measure(&mut Stage::set(peer)?, options.idle)?);
    if let Some(message) = peer.echo() {
        server.echo.push(echo::measure(&mut Stage::set(peer)?, &message)?);
    }
    Ok(())
}

fn table(shown: &[Shown], options: &Compare) -> String {
    let loads = loads(options);
    let cpu = |server: &Shown, load: Load| middle(server, load, |figures| figures.cpu);
    let name = |name: &str| shown.iter().find(|server| server.peer.name() == name);
    let (floor, ours) = (name(Floor.name()), name(Ours::default().name()));
    let mut heads = vec![format!("{MESSAGE}-byte messages")];
    let many = |load: &Load| format!("{} × {}", load.clients, load.messages);
    heads.extend(loads.iter().map(|load| format!("µs CPU, {}", many(load))));
    heads.extend(loads.iter().map(|load| format!("deliveries/s, {}", many(load))));
    heads.extend(loads.iter().map(|load| format!("p50/p99 ms, {}", many(load))));
    heads.extend([format!("KB/idle of {}", options.idle), "µs CPU/echo".to_owned()]);
    let mut table = Table::new(heads);
    for server in shown {
        let mut cells = vec![server.peer.name().to_owned()];
        for load in &loads {
            cells.push(beside(server, floor, ours, |server| cpu(server, *load)));
        }
        for load in &loads {
            cells.push(beside(server, floor, ours, |server| middle(server, *load, |figures| figures.per_second)));
        }
        for load in &loads {
            let p50 = middle(server, *load, |figures| figures.p50).map_or("–".to_owned(), figure);
            let p99 = middle(server, *load, |figures| figures.p99).map_or("–".to_owned(), figure);
            cells.push(format!("{p50} / {p99}"));
        }
        cells.push(beside(server, None, ours, |server| median(server.idle.clone())));
        cells.push(beside(server, None, ours, |server| median(server.echo.clone())));
        table.row(cells);
    }
    format!("{table}\nIn parentheses: how many times the floor's figure, and ours.\n")
}

fn middle(server: &Shown, load: Load, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
    median(server.fan_out.iter().filter(|(of, _)| *of == load).map(|(_, figures)| figure(figures)).collect())
}

/// A figure, with its ratio to the floor and to us.
fn beside(server: &Shown, floor: Option<&Shown>, ours: Option<&Shown>, of: impl Fn(&Shown) -> Option<f64>) -> String {
    let Some(value) = of(server) else { return "–".to_owned() };
    let ratios: Vec<String> =
        [floor, ours].into_iter().filter_map(|other| Some(format!("{:.2}", value / of(other?)?))).collect();
    match &ratios[..] {
        [] => figure(value),
        ratios => format!("{} ({})", figure(value), ratios.join(", ")),
    }
}
