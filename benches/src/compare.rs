//! `compare` measures every server that is installed, each in a process of its own on the same core. It measures them
//! in turn and several times, so that a noisy machine affects all of them.

use std::{fs, time::Instant};

use benches::Result;

use crate::{
    Compare, chart, machine,
    peers::{Centrifugo, MESSAGE, Nats, Nchan, NodeWs, OneSend, Ours, Peer, Plain, SocketIo, SocketIoxide},
    scenario::{
        Stage, echo,
        fan_out::{self, Figures, LOADS, Load},
        idle, median,
    },
    table::{NOTHING, Table, figure},
};

/// The figures of one server, a value for each round.
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
    let mut text = format!("{}\n\n{}\n{}", machine::describe(), table(&shown, options), ratios(&shown, options));
    text.extend(skipped.iter().map(|line| format!("\n{line}")));
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("compare.md"), text + "\n")?;
    let loads = loads(options);
    let bars = shown.iter().map(|server| {
        let cpu = loads.iter().map(|load| middle(server, *load, |figures| figures.cpu)).collect();
        chart::Row { name: server.peer.name().to_owned(), values: cpu }
    });
    let series: Vec<String> =
        loads.iter().map(|load| format!("{} clients, {} at once", load.clients, load.messages)).collect();
    let svg = chart::bars("µs of the server's CPU per delivery, 100-byte messages", &series, &bars.collect::<Vec<_>>());
    fs::write(options.output.join("compare.svg"), svg)?;
    Ok(())
}

/// Returns all servers, one send() first and ours next.
fn peers() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(OneSend),
        Box::new(Ours::default()),
        Box::new(Plain { buffer: Some(4096) }),
        Box::new(Plain { buffer: None }),
        Box::new(Nchan),
        Box::new(NodeWs),
        Box::new(SocketIo),
        Box::new(SocketIoxide),
        Box::new(Nats),
        Box::new(Centrifugo),
    ]
}

/// Returns true if a name on the command line means this server.
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
    // The figures for throughput and latency are those with the most clients and one message.
    let shown_at = loads[loads.len() - 2];
    let name = |name: &str| shown.iter().find(|server| server.peer.name() == name);
    let (one_send, ours) = (name(OneSend.name()), name(Ours::default().name()));
    let mut heads = vec![format!("{MESSAGE}-byte messages")];
    heads.extend(loads.iter().map(|load| format!("µs CPU/delivery, {load}")));
    heads.extend([format!("deliveries/s, {shown_at}"), format!("p50 / p99 ms, {shown_at}")]);
    heads.extend([format!("KB/idle connection of {}", options.idle), "µs CPU/echo".to_owned()]);
    let mut table = Table::new(heads);
    for server in shown {
        let at = |of: fn(&Figures) -> f64| move |server: &Shown| middle(server, shown_at, of);
        let mut cells = vec![server.peer.name().to_owned()];
        let cpu = |load: &Load| beside(server, one_send, ours, |server| middle(server, *load, |figures| figures.cpu));
        cells.extend(loads.iter().map(cpu));
        cells.push(beside(server, one_send, ours, at(|figures| figures.per_second)));
        let [p50, p99] = [at(|figures| figures.p50)(server), at(|figures| figures.p99)(server)]
            .map(|figure_of| figure_of.map_or(NOTHING.to_owned(), figure));
        cells.push(format!("{p50} / {p99}"));
        cells.push(beside(server, None, ours, |server| median(server.idle.clone())));
        cells.push(beside(server, None, ours, |server| median(server.echo.clone())));
        table.row(cells);
    }
    format!("{table}\nIn parentheses: how many times the figure of one send() per socket, and how many times ours.\n")
}

/// Returns our ratios to the nearest servers, a line for each load, or nothing if one of them was not measured.
fn ratios(shown: &[Shown], options: &Compare) -> String {
    let is = |server: &Shown, name: &str| server.peer.name() == name;
    let (one_send, ours) = (OneSend.name(), Ours::default().name());
    let mut table = Table::new(["ws-cluster", "one send()'s", "at most", "the best peer's", "which is"]);
    for load in loads(options) {
        let cpu = |server: &Shown| middle(server, load, |figures| figures.cpu);
        let one = |name: &str| shown.iter().find(|server| is(server, name)).and_then(cpu);
        let best = shown
            .iter()
            .filter(|server| !is(server, one_send) && !is(server, ours))
            .filter_map(|server| Some((cpu(server)?, server.peer.name())))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        let (Some(one_send), Some(ours), Some((peer, name))) = (one(one_send), one(ours), best) else { continue };
        let at_most = if load.messages == 1 { "1.3" } else { "1.8" };
        table.row([
            format!("CPU/delivery, {load}"),
            format!("{} ×", figure(ours / one_send)),
            at_most.to_owned(),
            format!("{} ×", figure(ours / peer)),
            name.to_owned(),
        ]);
    }
    if table.is_empty() { String::new() } else { table.to_string() }
}

fn middle(server: &Shown, load: Load, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
    median(server.fan_out.iter().filter(|(of, _)| *of == load).map(|(_, figures)| figure(figures)).collect())
}

/// Returns a figure with its ratios to one send() and to ours.
fn beside(
    server: &Shown,
    one_send: Option<&Shown>,
    ours: Option<&Shown>,
    of: impl Fn(&Shown) -> Option<f64>,
) -> String {
    let Some(value) = of(server) else { return NOTHING.to_owned() };
    let ratios: Vec<String> =
        [one_send, ours].into_iter().filter_map(|other| Some(format!("{:.2}", value / of(other?)?))).collect();
    match &ratios[..] {
        [] => figure(value),
        ratios => format!("{} ({})", figure(value), ratios.join(", ")),
    }
}
