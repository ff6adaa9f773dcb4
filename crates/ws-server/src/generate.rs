//! `completions` and `man`: generates the files that packages ship beside the binary, from the definition of the flags.

use std::{fs, io, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Failure, Outcome, cli::Cli, say};

pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ws-server", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}

/// Writes `ws-server.1` and a page for each command into the directory, or the first to standard output.
pub(crate) fn man(directory: Option<&Path>) -> Outcome {
    // The subcommands of `help` need no pages.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).map_err(not_written)?;
        return say(String::from_utf8_lossy(&page).trim_end());
    };
    fs::create_dir_all(directory).map_err(not_written)?;
    clap_mangen::generate_to(command, directory).map_err(not_written)
}

fn not_written(error: io::Error) -> Failure {
    Failure::refused(format!("the manual pages cannot be written: {error}"))
}
