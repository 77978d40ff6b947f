//! `overlane endpoint list`: the pods of this node.

use clap::Subcommand;
use overlane_api::protocol::{Op, Reply};
use overlane_api::status::EndpointStatus;

use super::{Answer, Cli, CliError, lines, or_dash, table};

/// Verbs of `overlane endpoint`.
#[derive(Debug, Subcommand)]
pub enum Endpoint {
    /// The pods of this node, as they are in force.
    List,
}

/// Lists the local endpoints.
///
/// # Errors
/// When the dataplane does not answer.
pub fn list(cli: &Cli) -> Result<Answer, CliError> {
    match cli.dataplane()?.call(Op::Endpoints)? {
        Reply::Endpoints(endpoints) => cli.answer(&endpoints, || screen(&endpoints)),
        _ => Err(CliError::Unexpected("endpoints")),
    }
}

fn screen(endpoints: &[EndpointStatus]) -> String {
    let mut rows = table(&[
        "endpoint",
        "addresses",
        "interface",
        "MAC",
        "worker",
        "state",
        "MTU",
        "offloads off",
        "rx",
        "tx",
        "checksums finished",
    ]);
    for endpoint in endpoints {
        rows.add_row([
            endpoint.name.clone(),
            lines(&endpoint.addresses),
            endpoint.interface.clone(),
            or_dash(endpoint.mac),
            endpoint.worker.to_string(),
            endpoint.state.clone(),
            or_dash(endpoint.mtu),
            // Some twenty names on a veth: `-o json` has them all.
            endpoint.offloads_off.len().to_string(),
            endpoint.rx_packets.to_string(),
            endpoint.tx_packets.to_string(),
            endpoint.checksums_finished.to_string(),
        ]);
    }
    format!("{rows}\n")
}
