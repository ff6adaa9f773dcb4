//! `followers` measures what followers cost their master, and prints one table. Each build is measured once in each
//! round, so that other load of the machine affects all of them.

use std::fs;

use benches::Result;

use crate::{
    Followers, machine,
    peers::Ours,
    scenario::followers::{self, Costs},
    series::Series,
    table::{NOTHING, Table, figure},
};

/// The numbers of followers that are measured.
const FOLLOWERS: [usize; 4] = [1, 3, 7, 15];

pub(crate) fn run(options: &Followers) -> Result<()> {
    let before = options.before.clone().map(|program| ("before", Ours { program: Some(program), ..Ours::default() }));
    let builds: Vec<(&str, Ours)> = before.into_iter().chain([("ws-cluster", Ours::default())]).collect();
    // For each build and each number of followers, the figures of the rounds.
    let mut costs: Vec<[Vec<Costs>; FOLLOWERS.len()]> = builds.iter().map(|_| Default::default()).collect();
    for round in 1..=options.rounds {
        for (column, followers) in FOLLOWERS.into_iter().enumerate() {
            eprintln!("round {round}, {followers} followers");
            for ((_, build), costs) in builds.iter().zip(&mut costs) {
                costs[column].push(followers::measure(followers, options.messages, build.clone())?);
            }
        }
    }
    let columns = FOLLOWERS.iter().map(|followers| format!("{followers} followers"));
    let heads = ["µs of the master's CPU per message".to_owned()].into_iter().chain(columns);
    let mut table = Table::new(heads.chain(["growth per follower".to_owned()]));
    for ((name, _), costs) in builds.iter().zip(&costs) {
        let mut row = |load: String, pick: fn(&Costs) -> f64| {
            let series =
                costs.each_ref().map(|rounds| rounds.iter().map(|costs| Some(pick(costs))).collect::<Series>());
            let [fewest, .., most] = &series;
            let more = (FOLLOWERS[FOLLOWERS.len() - 1] - FOLLOWERS[0]) as f64;
            let growth = most.with(fewest, |most, fewest| (most - fewest) / more);
            let cells = series.iter().chain([&growth]).map(|series| series.median().map_or(NOTHING.to_owned(), figure));
            table.row([format!("{name}, {load}")].into_iter().chain(cells));
        };
        row("one at a time".to_owned(), |costs| costs.single);
        row(format!("{} at once", followers::TOGETHER), |costs| costs.together);
    }
    let text = format!("{}\n\n{table}", machine::describe());
    println!("{text}");
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("followers.md"), text)?;
    Ok(())
}
