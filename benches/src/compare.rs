//! `compare` measures every server that is installed, each in a process of its own on the same core. ws-cluster runs
//! beside one send() and Bun, and each other server runs alone. All of them are measured several times, so that a noisy
//! machine affects all of them.

use std::{fs, time::Instant};

use benches::Result;

use crate::{
    Compare, chart, machine,
    peers::{Bun, Centrifugo, MESSAGE, Nats, Nchan, NodeWs, OneSend, Ours, Peer, Plain, SocketIo, SocketIoxide},
    scenario::{
        Stage, echo,
        fan_out::{self, Figures, Load, Pace, Slices, Way},
        idle,
    },
    series::Series,
    table::{NOTHING, Table, figure},
};

/// The slices of each round.
const PACE: Pace = Pace { slices: 5, seconds: 0.1 };

/// Number of rounds in which the memory is measured, since it does not depend on the machine's speed.
const MEMORY_ROUNDS: usize = 1;

/// The figures of one server.
struct Shown {
    peer: Box<dyn Peer>,
    fan_out: Slices,
    idle: Vec<Option<f64>>,
    echo: Vec<Option<f64>>,
}

impl Shown {
    fn new(peer: Box<dyn Peer>) -> Self {
        Self { peer, fan_out: Slices::default(), idle: Vec::new(), echo: Vec::new() }
    }

    fn cpu(&self, load: Load) -> Series {
        self.fan_out.series(load, |figures| figures.cpu)
    }

    /// Returns the cost of messages in one request, or pipelined if there is no such request.
    fn several(&self, load: Load) -> Series {
        let way = if self.peer.ways().contains(&Way::Batch) { Way::Batch } else { Way::Pipelined };
        self.cpu(Load { way, ..load })
    }
}

pub(crate) fn run(options: &Compare) -> Result<()> {
    let mut shown = Vec::new();
    let mut skipped = Vec::new();
    for peer in peers() {
        let wanted = options.only.is_empty() || options.only.iter().any(|name| chosen(peer.name(), name));
        match peer.missing() {
            _ if !wanted => {}
            Some(how) => skipped.push(format!("{} is not installed: {how}", peer.name())),
            None => shown.push(Shown::new(peer)),
        }
    }
    let rounds = if options.quick { 1 } else { options.rounds };
    let began = Instant::now();
    // The first ones are those that others are compared with.
    let beside = shown.iter().take_while(|server| is_reference(&*server.peer)).count();
    for round in 1..=rounds {
        let (references, others) = shown.split_at_mut(beside);
        for group in std::iter::once(references).chain(others.chunks_mut(1)) {
            let names: Vec<_> = group.iter().map(|server| server.peer.name()).collect();
            eprintln!("{:4} s: round {round} of {rounds}, {}", began.elapsed().as_secs(), names.join(", "));
            measure(group, options, round <= MEMORY_ROUNDS);
        }
    }
    let mut text = format!("{}, {rounds} rounds\n\n", machine::describe());
    text += &tables(&shown, options);
    text.extend(skipped.iter().map(|line| format!("\n{line}")));
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("compare.md"), text + "\n")?;
    fs::write(options.output.join("compare.svg"), chart(&shown, options))?;
    Ok(())
}

/// Returns all servers, one send() first and ours next.
fn peers() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(OneSend),
        Box::new(Ours::default()),
        Box::new(Bun),
        Box::new(Plain { buffer: Some(4096) }),
        Box::new(Plain { buffer: None }),
        Box::new(Nchan),
        Box::new(NodeWs),
        Box::new(SocketIo),
        Box::new(SocketIoxide),
        Box::new(Nats),
        Box::new(Centrifugo::default()),
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

/// Returns true if the server is one that the others are compared with, or ours.
fn is_reference(peer: &dyn Peer) -> bool {
    [OneSend.name(), Ours::default().name(), Bun.name()].contains(&peer.name())
}

/// Measures servers once, with their deliveries side by side. A figure that fails is missing.
fn measure(group: &mut [Shown], options: &Compare, memory: bool) {
    let peers: Vec<&dyn Peer> = group.iter().map(|server| &*server.peer).collect();
    let fan_outs = fan_out::measure_beside(&peers, &options.clients, PACE);
    for (server, fan_out) in group.iter_mut().zip(fan_outs) {
        server.fan_out.extend(fan_out);
        let peer = &*server.peer;
        let idle = || idle::measure(&mut Stage::set(peer)?, options.idle);
        server.idle.push(memory.then(|| measured(idle())).flatten());
        let echo = |message: String| echo::measure(&mut Stage::set(peer)?, &message);
        server.echo.push(peer.echo().and_then(|message| measured(echo(message))));
    }
}

fn measured<T>(outcome: Result<T>) -> Option<T> {
    outcome.inspect_err(|error| eprintln!("        failed: {error}")).ok()
}

fn tables(shown: &[Shown], options: &Compare) -> String {
    let server = |name: &str| shown.iter().find(|server| server.peer.name() == name);
    let beside = [server(OneSend.name()), server(Bun.name())];
    let mut text = one_message(shown, beside, options);
    text += &format!(
        "\nIn parentheses: how many times the figure of one send() per socket, and how many times Bun's (median of\n\
         the ratios). one-send sends {} messages joined.\n\n{}",
        fan_out::TOGETHER,
        together(shown, beside, options),
    );
    text + "\n" + &ratios(shown, beside, options)
}

/// Returns the table of one message at a time, with memory and echoes.
fn one_message(shown: &[Shown], beside: [Option<&Shown>; 2], options: &Compare) -> String {
    let loads = fan_out::loads(&options.clients, &[Way::One]);
    // Throughput and latency are those with the middle number of clients.
    let Some(middle) = loads.get(loads.len() / 2).copied() else { return String::new() };
    let clients = middle.clients;
    let mut heads = vec![format!("one {MESSAGE}-byte message")];
    heads.extend(loads.iter().map(|load| format!("µs CPU/delivery, {} clients", load.clients)));
    heads.extend([format!("deliveries/s, {clients}"), format!("p50 / p99 ms, {clients}")]);
    heads.extend([format!("KB/idle connection of {}", options.idle), "µs CPU/echo".to_owned()]);
    let mut table = Table::new(heads);
    for server in shown {
        let at = |of: fn(&Figures) -> f64| move |server: &Shown| server.fan_out.series(middle, of);
        let mut cells = vec![server.peer.name().to_owned()];
        cells.extend(loads.iter().map(|load| cell(server, beside, |server| server.cpu(*load))));
        cells.push(cell(server, beside, at(|figures| figures.per_second)));
        let [p50, p99] = [at(|figures| figures.p50)(server), at(|figures| figures.p99)(server)]
            .map(|series| series.median().map_or(NOTHING.to_owned(), figure));
        cells.push(format!("{p50} / {p99}"));
        cells.push(cell(server, [None, beside[1]], |server| server.idle.iter().copied().collect()));
        cells.push(cell(server, [None; 2], |server| server.echo.iter().copied().collect()));
        table.row(cells);
    }
    table.to_string()
}

/// Returns the table of several messages that are published together.
fn together(shown: &[Shown], beside: [Option<&Shown>; 2], options: &Compare) -> String {
    let loads = fan_out::loads(&options.clients, &[Way::Batch]);
    let mut heads = vec![format!("{} messages together", fan_out::TOGETHER)];
    heads.extend(loads.iter().map(|load| format!("µs CPU/delivery, {} clients", load.clients)));
    let mut table = Table::new(heads);
    for server in shown {
        let mut cells = vec![server.peer.name().to_owned()];
        cells.extend(loads.iter().map(|load| cell(server, beside, |server| server.several(*load))));
        table.row(cells);
    }
    table.to_string()
}

/// Returns our figures beside one send() per socket and Bun, a line for each load.
fn ratios(shown: &[Shown], [one_send, bun]: [Option<&Shown>; 2], options: &Compare) -> String {
    let mut table = Table::new(["ws-cluster", "µs CPU/delivery", "of one send() per socket", "of Bun's"]);
    let Some(ours) = shown.iter().find(|server| server.peer.name() == Ours::default().name()) else {
        return String::new();
    };
    for load in fan_out::loads(&options.clients, &Way::ALL) {
        let ratio = |other: Option<&Shown>, load_of_other: Load| {
            let ratio = other.and_then(|other| ours.cpu(load).ratio(&other.cpu(load_of_other)));
            ratio.map_or(NOTHING.to_owned(), |ratio| ratio.to_string())
        };
        let cpu = ours.cpu(load).median().map_or(NOTHING.to_owned(), figure);
        table.row([load.to_string(), cpu, ratio(one_send, load.of_one_send()), ratio(bun, load)]);
    }
    table.to_string()
}

/// Returns a figure with its ratios to the two references.
fn cell(server: &Shown, beside: [Option<&Shown>; 2], of: impl Fn(&Shown) -> Series) -> String {
    let series = of(server);
    let Some(value) = series.median() else { return NOTHING.to_owned() };
    let ratios: Vec<String> = beside
        .into_iter()
        .flatten()
        .filter_map(|other| Some(format!("{:.2}", series.ratio(&of(other))?.median)))
        .collect();
    match &ratios[..] {
        [] => figure(value),
        ratios => format!("{} ({})", figure(value), ratios.join(", ")),
    }
}

/// Draws the CPU per delivery of one message, and of several in one request, or pipelined if there is no such request.
fn chart(shown: &[Shown], options: &Compare) -> String {
    let mut clients = options.clients.clone();
    clients.sort_unstable();
    let panels: Vec<(usize, Way, String)> = clients
        .iter()
        .flat_map(|clients| {
            let several = format!("{clients} clients, {} messages together", fan_out::TOGETHER);
            [(*clients, Way::One, format!("{clients} clients, one message")), (*clients, Way::Batch, several)]
        })
        .collect();
    let bars = shown.iter().map(|server| {
        let cpu = |(clients, way, _): &(usize, Way, String)| {
            let load = Load { clients: *clients, way: *way };
            (if *way == Way::One { server.cpu(load) } else { server.several(load) }).median()
        };
        chart::Row { name: server.peer.name().to_owned(), values: panels.iter().map(cpu).collect() }
    });
    let series: Vec<String> = panels.iter().map(|(_, _, name)| name.clone()).collect();
    chart::bars("µs of the server's CPU per delivery, 100-byte messages", &series, &bars.collect::<Vec<_>>())
}
