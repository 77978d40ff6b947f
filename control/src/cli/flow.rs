//! `overlane flow list` and `overlane flow flush`: the connections that workers remember.

use std::fmt::Write as _;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use overlane_api::WorkerId;
use overlane_api::flow::{FlowFilter, FlowReport, FlowStatus, Tuple};
use overlane_api::protocol::{Op, Reply};
use serde::Serialize;

use super::{Answer, Cli, CliError, bytes, or_dash, table};

/// Verbs of `overlane flow`.
#[derive(Debug, Subcommand)]
pub enum Flow {
    /// The flows that match all that is given.
    List {
        /// Which.
        #[command(flatten)]
        filter: Filter,
        /// Most flows to show.
        #[arg(long, default_value_t = 1000, value_name = "COUNT")]
        limit: u32,
    },
    /// Forget the flows that match all that is given. What translates addresses breaks: the next
    /// packet of a connection is looked at as if it were its first.
    Flush {
        /// Which.
        #[command(flatten)]
        filter: Filter,
        /// All flows, when no filter is given.
        #[arg(long)]
        all: bool,
    },
}

/// Which flows are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Either end, before or after translation, is this address or in this range.
    #[arg(long, value_name = "ADDRESS|RANGE", value_parser = range)]
    pub address: Option<IpNet>,
    /// Either end's port, before or after translation; for ICMP the identifier.
    #[arg(long)]
    pub port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number of the IP header.
    #[arg(long, value_name = "NAME|NUMBER", value_parser = protocol)]
    pub protocol: Option<u8>,
    /// Of the pod `namespace/name`.
    #[arg(long, value_name = "POD")]
    pub endpoint: Option<String>,
    /// Of the service `namespace/name`, or of one port of it, `namespace/name:port`.
    #[arg(long)]
    pub service: Option<String>,
    /// In this worker's table.
    #[arg(long)]
    pub worker: Option<u8>,
}

impl Filter {
    /// As the dataplane takes it.
    #[must_use]
    pub fn with_limit(&self, limit: Option<u32>) -> FlowFilter {
        FlowFilter {
            address: self.address,
            port: self.port,
            protocol: self.protocol,
            endpoint: self.endpoint.clone(),
            service: self.service.clone(),
            worker: self.worker.map(WorkerId),
            snat: false,
            limit,
        }
    }
}

fn range(text: &str) -> Result<IpNet, String> {
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse::<IpNet>().map(|range| range.trunc()))
        .map_err(|_| "write an address or a range, for example 10.244.1.10 or 10.244.1.0/24".into())
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => number
            .parse()
            .map_err(|_| "write tcp, udp, sctp, icmp, icmpv6, or a number up to 255".into()),
    }
}

/// Name of a protocol for people.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Lists flows.
///
/// # Errors
/// When the dataplane does not answer.
pub fn list(cli: &Cli, filter: &Filter, limit: u32) -> Result<Answer, CliError> {
    let filter = filter.with_limit(Some(limit));
    match cli.dataplane()?.call(Op::Flows { filter })? {
        Reply::Flows(report) => cli.answer(&report, || screen(&report)),
        _ => Err(CliError::Unexpected("flows")),
    }
}

/// What `flow flush` prints as JSON.
#[derive(Debug, Serialize)]
struct Flushed {
    flows: u64,
}

/// Forgets flows.
///
/// # Errors
/// When nothing says which, or the dataplane does not answer.
pub fn flush(cli: &Cli, filter: &Filter, all: bool) -> Result<Answer, CliError> {
    let filter = filter.with_limit(None);
    if filter == FlowFilter::default() && !all {
        return Err(CliError::Refused(
            "no filter is given: say which flows are meant, or --all for all of them".to_owned(),
        ));
    }
    match cli.dataplane()?.call(Op::FlushFlows { filter })? {
        Reply::Flushed { flows } => {
            cli.answer(&Flushed { flows }, || format!("{flows} flows are forgotten\n"))
        }
        _ => Err(CliError::Unexpected("flush_flows")),
    }
}

fn screen(report: &FlowReport) -> String {
    let mut rows = table(&[
        "protocol",
        "opener",
        "sent to",
        "leaves as",
        "state",
        "service",
        "pod",
        "egress",
        "worker",
        "packets",
        "bytes",
        "age",
        "idle",
        "expires in",
    ]);
    for flow in &report.flows {
        let FlowStatus { original, translated, forward, reverse, .. } = flow;
        let traffic = |value: fn(&overlane_api::status::Traffic) -> String| {
            format!("{}\n{}", value(forward), value(reverse))
        };
        rows.add_row([
            protocol_name(flow.protocol),
            at(original.source, original.source_port),
            at(original.destination, original.destination_port),
            leaves_as(original, translated),
            flow.state.clone(),
            or_dash(flow.service.clone()),
            or_dash(flow.endpoint.clone()),
            or_dash(flow.egress.clone()),
            flow.worker.to_string(),
            traffic(|traffic| traffic.packets.to_string()),
            traffic(|traffic| bytes(traffic.bytes)),
            format!("{} s", flow.age_s),
            format!("{} s", flow.idle_s),
            format!("{} s", flow.expires_s),
        ]);
    }
    let mut screen = format!("{rows}\n");
    let shown = report.flows.len();
    let FlowReport { matched, total, capacity, .. } = report;
    let _ =
        writeln!(screen, "{shown} of {matched} that match; {total} flows of {capacity} at most");
    screen
}

pub(super) fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Only what translation changes.
fn leaves_as(original: &Tuple, translated: &Tuple) -> String {
    let source = (translated.source, translated.source_port);
    let destination = (translated.destination, translated.destination_port);
    let mut parts = Vec::new();
    if source != (original.source, original.source_port) {
        parts.push(format!("from {}", at(source.0, source.1)));
    }
    if destination != (original.destination, original.destination_port) {
        parts.push(format!("to {}", at(destination.0, destination.1)));
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_translated_ends_are_shown() {
        let original = Tuple {
            source: "10.244.1.10".parse().unwrap(),
            source_port: 40000,
            destination: "10.96.0.20".parse().unwrap(),
            destination_port: 80,
        };
        assert_eq!(leaves_as(&original, &original), "-");
        let backend = Tuple {
            destination: "10.244.2.11".parse().unwrap(),
            destination_port: 8080,
            ..original
        };
        assert_eq!(leaves_as(&original, &backend), "to 10.244.2.11:8080");
        let hairpin = Tuple { source: "169.254.1.1".parse().unwrap(), ..backend };
        assert_eq!(leaves_as(&original, &hairpin), "from 169.254.1.1:40000\nto 10.244.2.11:8080");
    }

    #[test]
    fn filters_take_names_and_numbers() {
        assert_eq!((protocol("udp"), protocol("47")), (Ok(17), Ok(47)));
        assert!(protocol("256").is_err() && protocol("gre").is_err());
        assert_eq!(range("10.244.1.10").unwrap().to_string(), "10.244.1.10/32");
        assert_eq!(range("10.244.1.10/24").unwrap().to_string(), "10.244.1.0/24");
        assert!(range("x").is_err());
    }
}
