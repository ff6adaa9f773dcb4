//! Reads the command line, the environment and the file of `--config` together. A variable counts only for the command
//! that is used, and an empty variable counts as unset. The file's values replace defaults.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, builder::Resettable, error::ErrorKind};

use crate::{
    cli::Cli,
    config::{File, Sources},
};

/// The command and its settings.
pub(crate) struct Parsed {
    pub(crate) cli: Cli,
    pub(crate) sources: Sources,
    /// The values of the command that is used, each with its source.
    pub(crate) matches: ArgMatches,
    pub(crate) file: Option<File>,
}

/// The reason why there is no command to run.
#[derive(Debug)]
pub(crate) enum Misuse {
    /// One value is wrong. The line says what to do.
    Line(String),
    /// Any other mistake, or a request for help.
    Usage(clap::Error),
}

impl Misuse {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Line(_) => 2,
            Self::Usage(error) => u8::try_from(error.exit_code()).unwrap_or(2),
        }
    }
}

/// Reads the command line, and takes what it leaves out from the environment and the file.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Misuse> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = Cli::command();
    // If there is a command, it is the first argument, because flags of `run` cannot precede another command.
    let used = arguments.get(1).and_then(|name| command.find_subcommand(name)).map(|used| used.get_name().to_owned());
    let mut unreadable = None;
    let command = edit(command, used.as_deref(), |command, is_used| select(command, is_used, &mut unreadable));
    if let Some(name) = unreadable {
        return Err(Misuse::Line(format!("{name} is not UTF-8: give it as text, or unset it")));
    }
    let read = |command: &clap::Command, file: Option<&File>| {
        let misuse = |error| misuse(command, &arguments, file, error);
        let matches = command.clone().try_get_matches_from(&arguments).map_err(misuse)?;
        let cli = Cli::from_arg_matches(&matches).map_err(misuse)?;
        Ok::<_, Misuse>((cli, matches))
    };
    let (cli, matches) = read(&command, None)?;
    let path = of_used(&matches).try_get_one::<PathBuf>("config").ok().flatten();
    let file = path.map(|path| File::read(path)).transpose().map_err(Misuse::Line)?;
    let (cli, command, matches) = match &file {
        Some(file) => {
            let command = edit(command, used.as_deref(), |command, is_used| fill(command, is_used, file));
            let (cli, matches) = read(&command, Some(file))?;
            (cli, command, matches)
        }
        None => (cli, command, matches),
    };
    let used = matches.subcommand_name().and_then(|name| command.find_subcommand(name)).unwrap_or(&command);
    let sources = Sources::new(used, of_used(&matches), file.as_ref());
    Ok(Parsed { cli, sources, matches: of_used(&matches).clone(), file })
}

/// Returns the values of the command that is used.
fn of_used(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| matches)
}

/// Changes the command itself and each of its subcommands. The second argument of the closure is true for the command
/// that is used.
fn edit(
    command: clap::Command,
    used: Option<&str>,
    mut change: impl FnMut(clap::Command, bool) -> clap::Command,
) -> clap::Command {
    let mut command = change(command, used.is_none());
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        let is_used = used == Some(&*name);
        command = command.mut_subcommand(name, |command| change(command, is_used));
    }
    command
}

/// Replaces defaults by the file's values.
fn fill(command: clap::Command, is_used: bool, file: &File) -> clap::Command {
    if !is_used {
        return command;
    }
    command.mut_args(|arg| match arg.get_long().and_then(|flag| file.of_flag(flag)) {
        Some(values) => {
            let values = values.to_vec();
            arg.default_values(values)
        }
        None => arg,
    })
}

/// Removes the variables that must not count: empty ones, and all of a command that is not used.
fn select(command: clap::Command, is_used: bool, unreadable: &mut Option<String>) -> clap::Command {
    command.mut_args(|arg| {
        let Some(name) = arg.get_env().map(OsStr::to_owned) else { return arg };
        let Some(value) = env::var_os(&name) else { return arg };
        let text = value.to_str();
        if is_used && text.is_none() {
            *unreadable = Some(name.to_string_lossy().into_owned());
        }
        let counts = is_used && text.is_none_or(|text| !text.trim().is_empty());
        if counts { arg } else { arg.env(Resettable::Reset) }
    })
}

/// Shortens an error of clap about a wrong value to one line. The line names the value's source if that is not the
/// command line.
fn misuse(command: &clap::Command, arguments: &[OsString], file: Option<&File>, error: clap::Error) -> Misuse {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return Misuse::Usage(error);
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let flag = line.split_once("for '--").and_then(|(_, rest)| rest.split([' ', '\'']).next());
    let used = arguments.get(1).and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    let source = flag.filter(|flag| !is_given(arguments, flag)).and_then(|flag| {
        let variable = used.get_arguments().find(|arg| arg.get_long() == Some(flag)).and_then(Arg::get_env);
        let variable = variable.filter(|name| env::var_os(name).is_some());
        variable.map(|name| name.to_string_lossy().into_owned()).or_else(|| file?.place_of_flag(flag))
    });
    match source {
        Some(source) => Misuse::Line(format!("{source}: {line}")),
        None => Misuse::Line(line.to_owned()),
    }
}

/// Returns true if the command line has this flag.
fn is_given(arguments: &[OsString], flag: &str) -> bool {
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        let rest = argument.strip_prefix("--").and_then(|argument| argument.strip_prefix(flag));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}
