//! `overlane-dataplane`: reads its settings, runs until a signal, says why if it cannot.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use overlane_dataplane::node::process::{Process, ProcessError};
use overlane_dataplane::node::settings::Settings;
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let settings = match Settings::try_parse_from(std::env::args_os()) {
        Ok(settings) => settings,
        Err(error) => error.exit(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> Result<(), ProcessError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Process::start(settings)?.run(&stop)
}
