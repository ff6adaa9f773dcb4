//! Scripts: groups of commands, each with the transcript of what happened. A script runs on a steady world, where every
//! frame takes one millisecond and every query two, so that its transcript is the same each time.
//! `WS_CLUSTER_REWRITE=1` writes new transcripts.
//!
//! ```text
//! # A comment.
//! nodes 3                 three nodes, a, b and c, start with an empty pool
//! settle                  time passes until all follow one master and nothing is under way; tells only how that ends
//! run 2s                  time passes (also 300ms); tells what happens
//! publish b one           b publishes "one"
//! crash a | start a       a dies | starts again without its memory
//! stop a | go a           a is frozen | goes on
//! sleep a | go a          a's machine and its clock stand still | go on
//! leave a                 a shuts down
//! cut a b | cut a > b     nothing passes between the two | in one direction
//! slow a > b 300ms        what goes in this direction takes longer
//! stick a > b             only heartbeats pass in this direction
//! heal                    all cuts and delays end
//! database stop | start   for all nodes
//! database cut a | mend a for one
//! database forgets        the answers are lost from now on; `database remembers` ends it
//! database empty          the tables are emptied
//! database lags           a replica does not get what is written from now on
//! database fails over     that replica becomes the database
//! database readonly       every write fails and every read succeeds; `database writable` ends it
//! status                  who is master, who follows, who is cut off
//! ```

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;

use super::{World, story::list};
use crate::{Core, Degraded};

/// A group of commands and the transcript below it.
struct Group<'a> {
    commands: Vec<&'a str>,
    transcript: Vec<&'a str>,
}

enum Part<'a> {
    /// Comments and empty lines.
    Prose(&'a str),
    Group(Group<'a>),
}

/// Splits a script into its parts. A group ends at the first empty line below its `----`.
fn parse(script: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            parts.push(Part::Prose(line));
            continue;
        }
        let mut commands = vec![line];
        commands.extend(std::iter::from_fn(|| lines.next_if(|line| *line != "----" && !line.is_empty())));
        lines.next_if_eq(&"----");
        let transcript = std::iter::from_fn(|| lines.next_if(|line| !line.is_empty())).collect();
        parts.push(Part::Group(Group { commands, transcript }));
    }
    parts
}

/// Runs a script. Returns it with the transcripts of this run, and true if the script had the same.
fn play(script: &str) -> (String, bool) {
    let mut stage = Playback::default();
    let mut played = String::new();
    let mut same = true;
    for part in parse(script) {
        match part {
            Part::Prose(line) => played.push_str(line),
            Part::Group(group) => {
                let transcript = stage.play(&group.commands);
                same &= transcript == group.transcript;
                let lines = group.commands.into_iter().map(str::to_owned).chain(["----".to_owned()]).chain(transcript);
                played.push_str(&lines.collect::<Vec<_>>().join("\n"));
            }
        }
        played.push('\n');
    }
    (played, same)
}

#[derive(Default)]
struct Playback(Option<World>);

impl Playback {
    /// Carries out a group of commands and returns its transcript.
    fn play(&mut self, commands: &[&str]) -> Vec<String> {
        let mut told = Vec::new();
        let began = self.0.as_ref().map_or(Duration::ZERO, |world| world.now);
        for command in commands {
            let answer = match (command.split_whitespace().collect::<Vec<_>>().as_slice(), &mut self.0) {
                (["nodes", count], None) => {
                    self.0 = count.parse().ok().map(World::steady);
                    Vec::new()
                }
                (words, Some(world)) => carry_out(world, words, began),
                _ => vec!["the first command, and only that, says how many nodes there are".to_owned()],
            };
            told.extend(answer);
        }
        told
    }
}

/// Carries out one command. Returns what happened since the last command that let time pass.
fn carry_out(world: &mut World, words: &[&str], began: Duration) -> Vec<String> {
    let wrong = |why: &str| vec![format!("{}: {why}", words.join(" "))];
    let node = |name: &str| name.bytes().next().map(|letter| usize::from(letter.wrapping_sub(b'a')));
    let nodes: Vec<usize> = words.iter().skip(1).filter(|word| word.len() == 1).filter_map(|word| node(word)).collect();
    let nodes: Vec<usize> = nodes.into_iter().filter(|place| *place < world.nodes.len()).collect();
    match (words, nodes.as_slice()) {
        (["settle"], _) => return settle(world),
        (["status"], _) => return status(world),
        (["run", time], _) => match duration(time) {
            Some(time) => {
                world.run(time);
            }
            None => return wrong("how long?"),
        },
        (["publish", _, content], [at]) => world.publish(*at, Bytes::copy_from_slice(content.as_bytes()), None),
        (["publish", _, content, "key", key], [at]) => {
            let key = Bytes::copy_from_slice(key.as_bytes());
            world.publish(*at, Bytes::copy_from_slice(content.as_bytes()), Some(key));
        }
        (["crash", _], [at]) => world.crash(*at),
        (["start", _], [at]) if world.nodes[*at].core.is_none() => world.boot(*at),
        (["stop", _], [at]) => world.pause(*at),
        (["sleep", _], [at]) => world.sleep(*at),
        (["go", _], [at]) => world.resume(*at),
        (["leave", _], [at]) => world.shut_down(*at),
        (["cut", _, ">", _], [from, to]) => world.cut(*from, *to),
        (["stick", _, ">", _], [from, to]) => world.stick(*from, *to),
        (["cut", _, _], [one, other]) => world.cut_both(*one, *other),
        (["slow", _, ">", _, delay], [from, to]) => match duration(delay) {
            Some(delay) => world.slow_down(*from, *to, delay),
            None => return wrong("how much?"),
        },
        (["heal"], _) => {
            world.slow.clear();
            world.heal_cuts();
        }
        (["database", "stop"], _) => world.stop_database(true),
        (["database", "start"], _) => world.stop_database(false),
        (["database", "cut", _], [at]) => world.cut_database(*at, true),
        (["database", "mend", _], [at]) => world.cut_database(*at, false),
        (["database", "forgets"], _) => world.lose_answers(100),
        (["database", "remembers"], _) => world.lose_answers(0),
        (["database", "readonly"], _) => world.refuse_writes(true),
        (["database", "writable"], _) => world.refuse_writes(false),
        (["database", "empty"], _) => world.empty_tables(),
        (["database", "lags"], _) => world.hold_replica_back(),
        (["database", "fails", "over"], _) => world.fail_over(),
        _ => return wrong("no such command"),
    }
    world.story.as_mut().map_or(Vec::new(), |story| story.take(began))
}

fn duration(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(millis) => millis.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

fn settle(world: &mut World) -> Vec<String> {
    const PATIENCE: u32 = 600;
    for _ in 0..PATIENCE {
        world.run(Duration::from_millis(100));
        if world.checks.settled(world.nodes.iter().filter_map(|node| node.core.as_ref())).is_ok() {
            world.story.as_mut().map(|story| story.take(Duration::ZERO));
            return status(world);
        }
    }
    vec!["it does not settle".to_owned()]
}

/// Returns the state of the nodes, as each of them reports it.
fn status(world: &World) -> Vec<String> {
    let mut told = Vec::new();
    let mut without = Vec::new();
    let cores: Vec<&Core> = world.nodes.iter().filter_map(|node| node.core.as_ref()).collect();
    for (place, node) in world.nodes.iter().enumerate() {
        let Some(core) = &node.core else { continue };
        let status = core.status();
        if status.master == Some(node.id) {
            let follows = |other: &&&Core| other.id() != node.id && other.status().master == Some(node.id);
            let followers = cores.iter().filter(follows).map(|other| super::Name(other.id()));
            let last = core.end().1;
            let name = world.letter(place);
            told.push(format!(
                "{name} is master of term {}, followed by {}; last place {last}",
                status.term,
                list(followers)
            ));
        } else if status.master.is_none() {
            without.push(world.letter(place));
        }
        if let Some(why) = status.degraded.filter(|why| !matches!(why, Degraded::NoMaster | Degraded::NoLinkToMaster)) {
            told.push(format!("{} is degraded: {why}", world.letter(place)));
        }
    }
    if !without.is_empty() {
        let verb = if without.len() == 1 { "has" } else { "have" };
        told.push(format!("{} {verb} no master", list(without)));
    }
    told
}

#[test]
fn the_stories_go_as_they_are_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/simulator/scripts");
    let rewrite = std::env::var_os("WS_CLUSTER_REWRITE").is_some();
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("the scripts are part of the sources")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    paths.sort();
    let mut changed = Vec::new();
    for path in paths {
        let script = fs::read_to_string(&path).expect("the script can be read");
        let (played, same) = play(&script);
        if rewrite {
            fs::write(&path, played).expect("the script can be written");
        } else if !same {
            println!("{played}");
            changed.push(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
        }
    }
    assert!(changed.is_empty(), "{changed:?} went otherwise, as above; WS_CLUSTER_REWRITE=1 writes it down");
}
