//! `overlane status`: the whole state on one screen.

use std::fmt::Write as _;

use overlane_api::status::{NodeSummary, PortKind, PortStatus, Status, UmemStatus, WorkerStatus};
use serde::Serialize;

use super::{Answer, Cli, CliError, TIMEOUT, ask_status, bytes, or_dash, section, table, yes_no};
use crate::membership::MembershipStatus;
use crate::socket::{self, Op, Reply};
use crate::status::{Connection, ControlStatus};
use crate::validate::join;

/// What `status` prints as JSON: the dataplane's own reply, and the control process's beside it.
#[derive(Debug, Serialize)]
struct Whole {
    #[serde(flatten)]
    dataplane: Status,
    /// Absent: it does not answer.
    control: Option<ControlStatus>,
}

/// Shows the dataplane's state, and the control process's if it answers.
///
/// # Errors
/// When the dataplane does not answer.
pub fn run(cli: &Cli) -> Result<Answer, CliError> {
    let dataplane = ask_status(&mut cli.dataplane()?)?;
    let control = ask_control(cli);
    let whole = Whole { dataplane, control: control.as_ref().ok().cloned() };
    cli.answer(&whole, || screen(&whole.dataplane, control.as_ref().map_err(String::as_str)))
}

/// Asks the control process for its state.
///
/// # Errors
/// Why it did not answer.
pub(super) fn ask_control(cli: &Cli) -> Result<ControlStatus, String> {
    match socket::ask(&cli.control_socket(), Op::Status, TIMEOUT) {
        Ok(Reply::Status(status)) => Ok(*status),
        Ok(Reply::Hello { .. } | Reply::Nodes { .. }) => {
            Err("it answered something else".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn screen(status: &Status, control: Result<&ControlStatus, &str>) -> String {
    let mut screen = head(status);
    section(&mut screen, "Workers", &workers(&status.workers));
    section(&mut screen, "Ports", &ports(&status.ports));
    section(&mut screen, "UMEMs", &umems(&status.umems));
    let _ = writeln!(screen, "\nControl");
    match control {
        Ok(control) => screen.push_str(&control_lines(control)),
        Err(error) => {
            let _ = writeln!(screen, "  does not answer: {error}; forwarding goes on without it");
        }
    }
    if !status.warnings.is_empty() {
        let _ = writeln!(screen, "\nWarnings");
        for warning in &status.warnings {
            let _ = writeln!(screen, "  {warning}");
        }
    }
    screen
}

fn head(status: &Status) -> String {
    let mut head = format!(
        "Dataplane {}, pid {}, up {}, polling {}, sending by {}, generation {}\n",
        status.version,
        status.pid,
        duration(status.uptime_s),
        status.polling,
        status.transmit,
        status.generation
    );
    let _ = match &status.node {
        Some(NodeSummary { name, mode, vni, uplink, addresses, underlay_mtu, pod_mtu }) => {
            let addresses = join(addresses);
            writeln!(
                head,
                "Node {name}: mode {mode}, VNI {vni}, uplink {uplink} ({addresses}), MTU {underlay_mtu} underlay, {pod_mtu} pods"
            )
        }
        None => writeln!(head, "Node: not known yet; is overlane-control running?"),
    };
    let _ = writeln!(
        head,
        "{} peers, {} local and {} remote endpoints, {} services, {} egress rules, {} flows, tables {}",
        status.peers,
        status.local_endpoints,
        status.remote_endpoints,
        status.services,
        status.egress_rules,
        status.flows,
        bytes(u64::try_from(status.table_bytes).unwrap_or(u64::MAX))
    );
    head
}

fn workers(workers: &[WorkerStatus]) -> comfy_table::Table {
    let mut rows = table(&[
        "worker",
        "CPU",
        "received",
        "sent",
        "dropped",
        "to host",
        "held",
        "copied",
        "coalesced",
        "mean vector",
        "sleeps",
        "closes",
    ]);
    for worker in workers {
        let closes = match worker.residual {
            0 => yes_no(true).to_owned(),
            residual => format!("no ({residual})"),
        };
        rows.add_row([
            worker.worker.to_string(),
            or_dash(worker.cpu),
            worker.received.to_string(),
            worker.sent.to_string(),
            worker.dropped.values().sum::<u64>().to_string(),
            worker.to_host.to_string(),
            worker.held.to_string(),
            worker.copied.to_string(),
            worker.coalesced.to_string(),
            mean_vector(worker),
            worker.sleeps.to_string(),
            closes,
        ]);
    }
    rows
}

/// Frames in a vector, one decimal.
fn mean_vector(worker: &WorkerStatus) -> String {
    if worker.vectors == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(worker.received) * 10 / u128::from(worker.vectors);
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn ports(ports: &[PortStatus]) -> comfy_table::Table {
    let mut rows = table(&[
        "kind",
        "interface",
        "queue",
        "worker",
        "mode",
        "UMEM",
        "rx",
        "tx",
        "kernel drops",
    ]);
    for port in ports {
        let kind = match port.kind {
            PortKind::Uplink => "uplink",
            PortKind::Endpoint => "endpoint",
            PortKind::Host => "host",
        };
        rows.add_row([
            kind.to_owned(),
            port.interface.clone(),
            port.queue.to_string(),
            port.worker.to_string(),
            if port.zero_copy { "zero-copy" } else { "copy" }.to_owned(),
            port.umem.to_string(),
            port.rx_packets.to_string(),
            port.tx_packets.to_string(),
            port.kernel_drops.values().sum::<u64>().to_string(),
        ]);
    }
    rows
}

fn umems(umems: &[UmemStatus]) -> comfy_table::Table {
    let mut rows = table(&[
        "UMEM",
        "chunks",
        "chunk",
        "free",
        "huge pages",
        "sockets",
        "memory",
        "kernel memory",
    ]);
    for umem in umems {
        rows.add_row([
            umem.umem.to_string(),
            umem.chunks.to_string(),
            bytes(umem.chunk_bytes.into()),
            umem.free.to_string(),
            yes_no(umem.huge_pages).to_owned(),
            umem.sockets.to_string(),
            bytes(umem.bytes),
            bytes(umem.kernel_bytes),
        ]);
    }
    rows
}

fn control_lines(control: &ControlStatus) -> String {
    let mut text = String::new();
    let total = control.desired.total();
    let link = match &control.dataplane {
        Connection::Connected { .. } => "connected to the dataplane".to_owned(),
        Connection::Disconnected { error } => format!("not connected to the dataplane: {error}"),
    };
    let _ = writeln!(
        text,
        "  version {}, pid {}, {link}; {} of {total} objects in force",
        control.version, control.pid, control.in_force
    );
    if control.held_back > 0 {
        let _ = writeln!(
            text,
            "  {} objects are kept because what should replace them cannot be read",
            control.held_back
        );
    }
    if let Some(membership) = &control.membership {
        let _ = writeln!(text, "  {}", nodes_line(membership));
    }
    for problem in &control.problems {
        let _ = writeln!(text, "  problem: {problem}");
    }
    for refused in &control.refused {
        let _ = writeln!(text, "  refused by the dataplane: {}: {}", refused.object, refused.error);
    }
    for (word, list) in
        [("waiting", &control.pending), ("warning", &control.warnings), ("note", &control.notes)]
    {
        for line in list {
            let _ = writeln!(text, "  {word}: {line}");
        }
    }
    text
}

/// How many nodes live, and what was heard of them.
fn nodes_line(membership: &MembershipStatus) -> String {
    let counts = membership.nodes.iter();
    let counts: Vec<String> =
        counts.map(|(state, count)| format!("{count} {}", state.word())).collect();
    let heard = membership.address.map_or("nowhere".to_owned(), |at| at.to_string());
    let seen = membership.datagrams;
    let authenticated = if membership.authenticated { ", authenticated" } else { "" };
    let reasons = [
        (seen.unauthenticated, "unauthenticated"),
        (seen.stale, "stale"),
        (seen.replayed, "replayed"),
    ];
    let reasons: Vec<String> = reasons
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
    let reasons =
        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    format!(
        "nodes: {}; heard at UDP {heard}{authenticated}, {} messages received, {} sent, {} ignored{reasons}",
        counts.join(", "),
        seen.received,
        seen.sent,
        seen.ignored()
    )
}

/// `1d 02:03:04`.
pub(super) fn duration(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}d {clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_whose_counters_do_not_close_is_shown() {
        let worker = WorkerStatus { received: 130, vectors: 4, residual: -3, ..Default::default() };
        let text = workers(std::slice::from_ref(&worker)).to_string();
        assert!(text.contains("no (-3)"), "{text}");
        assert_eq!(mean_vector(&worker), "32.5");
        assert_eq!(mean_vector(&WorkerStatus::default()), "-");
    }

    #[test]
    fn duration_counts_days() {
        assert_eq!(duration(59), "00:00:59");
        assert_eq!(duration(93_784), "1d 02:03:04");
    }
}
