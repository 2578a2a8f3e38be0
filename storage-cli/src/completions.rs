//! `completions`: a script that lets a shell complete this command's arguments.
//!
//! Made from the same definition that parses them, so that it cannot fall behind.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Cli;
use crate::failure::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  storage completions bash > ~/.local/share/bash-completion/completions/storage
  storage completions fish > ~/.config/fish/completions/storage.fish";

/// Prints a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, out: &mut Output) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "storage", &mut script);
        out.bytes(&script)?;
        Ok(Exit::Done)
    }
}
