//! `overlane completions SHELL`.

use clap::CommandFactory;

use super::{Answer, Cli};

/// Writes the completions for `shell`.
#[must_use]
pub fn run(shell: clap_complete::Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "overlane", &mut script);
    Answer { text: String::from_utf8_lossy(&script).into_owned(), worked: true }
}
