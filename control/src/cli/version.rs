//! `overlane version`: what runs here.

use overlane_api::protocol::{Op as DataplaneOp, Reply as DataplaneReply, VERSION};
use serde::Serialize;

use super::{Answer, Cli, CliError, TIMEOUT, table};
use crate::socket::{self, Op, Reply};

/// Versions of everything that takes part.
#[derive(Debug, Serialize)]
struct Versions {
    cli: &'static str,
    /// Absent: it does not answer.
    dataplane: Option<String>,
    /// Absent: it does not answer.
    control: Option<String>,
    protocol: u32,
}

/// Shows the versions. A process that does not answer has none; that is no failure.
///
/// # Errors
/// When the answer cannot be written.
pub fn run(cli: &Cli) -> Result<Answer, CliError> {
    let dataplane = cli.dataplane().and_then(|mut client| Ok(client.call(DataplaneOp::Hello)?));
    let dataplane = match dataplane {
        Ok(DataplaneReply::Hello { version, .. }) => Some(version),
        _ => None,
    };
    let control = match socket::ask(&cli.control_socket(), Op::Hello, TIMEOUT) {
        Ok(Reply::Hello { version }) => Some(version),
        _ => None,
    };
    let versions = Versions { cli: crate::VERSION, dataplane, control, protocol: VERSION };
    cli.answer(&versions, || {
        let absent = |version: &Option<String>| version.clone().unwrap_or("does not answer".into());
        let mut rows = table(&["part", "version"]);
        rows.add_row(["overlane", versions.cli]);
        rows.add_row(["dataplane", &absent(&versions.dataplane)]);
        rows.add_row(["control", &absent(&versions.control)]);
        rows.add_row(["protocol", &versions.protocol.to_string()]);
        format!("{rows}\n")
    })
}
