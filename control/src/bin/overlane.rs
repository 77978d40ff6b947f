//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    overlane_control::cli::main()
}
