//! The control process of a node.

use std::process::ExitCode;

use clap::Parser;
use overlane_control::daemon::{Arguments, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlane-control: {error}");
            ExitCode::FAILURE
        }
    }
}
