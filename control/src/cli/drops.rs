//! `overlane drops`: what was not delivered, why, and what to do about it.

use std::fmt::Write as _;

use overlane_api::protocol::{Op, Reply};
use overlane_api::status::DropReport;

use super::{Answer, Cli, CliError, section, table};

/// Shows the drops.
///
/// # Errors
/// When the dataplane does not answer.
pub fn run(cli: &Cli) -> Result<Answer, CliError> {
    match cli.dataplane()?.call(Op::Drops)? {
        Reply::Drops(report) => cli.answer(&report, || screen(&report)),
        _ => Err(CliError::Unexpected("drops")),
    }
}

fn screen(report: &DropReport) -> String {
    let mut screen = String::new();
    if report.reasons.is_empty() {
        screen.push_str("No packet was dropped.\n");
    } else {
        let mut rows = table(&["reason", "packets", "meaning", "what to do"]);
        for row in &report.reasons {
            rows.add_row([&row.reason, &row.packets.to_string(), &row.meaning, &row.advice]);
        }
        let _ = writeln!(screen, "{rows}");
    }
    if report.kernel.values().any(|count| *count > 0) {
        let mut rows = table(&["counter", "packets"]);
        for (counter, count) in &report.kernel {
            rows.add_row([counter, &count.to_string()]);
        }
        section(&mut screen, "Kernel (sockets and devices of the ports)", &rows);
    } else {
        screen.push_str("The kernel dropped nothing at the ports.\n");
    }
    screen
}
