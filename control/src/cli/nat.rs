//! `overlane nat list` and `overlane nat usage`: which external port stands for which pod's, and
//! how many are left.

use std::fmt::Write as _;

use clap::Subcommand;
use overlane_api::flow::{FlowFilter, NatReport, NatUsage};
use overlane_api::protocol::{Op, Reply};

use super::flow::{Filter, at, protocol_name};
use super::{Answer, Cli, CliError, or_dash, table};

/// Verbs of `overlane nat`.
#[derive(Debug, Subcommand)]
pub enum Nat {
    /// The bindings of flows that match all that is given.
    List {
        /// Which.
        #[command(flatten)]
        filter: Filter,
        /// Most bindings to show.
        #[arg(long, default_value_t = 1000, value_name = "COUNT")]
        limit: u32,
    },
    /// Ports in use of each external address, by worker, and the busiest remotes.
    Usage,
}

/// Lists bindings.
///
/// # Errors
/// When the dataplane does not answer.
pub fn list(cli: &Cli, filter: &Filter, limit: u32) -> Result<Answer, CliError> {
    let filter = FlowFilter { snat: true, ..filter.with_limit(Some(limit)) };
    match cli.dataplane()?.call(Op::NatBindings { filter })? {
        Reply::NatBindings(report) => cli.answer(&report, || bindings(&report)),
        _ => Err(CliError::Unexpected("nat_bindings")),
    }
}

/// Shows how full the external addresses are.
///
/// # Errors
/// When the dataplane does not answer.
pub fn usage(cli: &Cli) -> Result<Answer, CliError> {
    match cli.dataplane()?.call(Op::NatUsage)? {
        Reply::NatUsage(usage) => cli.answer(&usage, || usage_screen(&usage)),
        _ => Err(CliError::Unexpected("nat_usage")),
    }
}

fn bindings(report: &NatReport) -> String {
    let mut rows =
        table(&["protocol", "external", "pod's", "remote", "pod", "state", "worker", "expires in"]);
    for binding in &report.bindings {
        rows.add_row([
            protocol_name(binding.protocol),
            at(binding.external, binding.external_port),
            at(binding.internal, binding.internal_port),
            at(binding.remote, binding.remote_port),
            or_dash(binding.endpoint.clone()),
            binding.state.clone(),
            binding.worker.to_string(),
            format!("{} s", binding.expires_s),
        ]);
    }
    format!("{rows}\n{} of {} that match\n", report.bindings.len(), report.matched)
}

fn usage_screen(usage: &[NatUsage]) -> String {
    let mut screen = String::new();
    for address in usage {
        let _ =
            writeln!(screen, "{}, ports {}: {}", address.external, address.ports, fill(address));
        let mut rows = table(&[
            "worker",
            "ports owned",
            "in use",
            "bindings",
            "refused: no port",
            "refused: pod's limit",
        ]);
        for worker in &address.workers {
            let in_use: Vec<String> = worker
                .in_use
                .iter()
                .map(|(protocol, count)| {
                    format!("{protocol} {count} ({})", share(*count, worker.owned))
                })
                .collect();
            rows.add_row([
                worker.worker.to_string(),
                worker.owned.to_string(),
                super::lines(&in_use),
                worker.bindings.to_string(),
                worker.exhausted.to_string(),
                worker.pod_limited.to_string(),
            ]);
        }
        let _ = writeln!(screen, "{rows}");
        if !address.busiest.is_empty() {
            let mut rows = table(&["busiest remote", "protocol", "bindings"]);
            for remote in &address.busiest {
                rows.add_row([
                    at(remote.remote, remote.remote_port),
                    protocol_name(remote.protocol),
                    remote.bindings.to_string(),
                ]);
            }
            let _ = writeln!(screen, "{rows}");
        }
        if !address.top_pods.is_empty() {
            let mut rows = table(&["pod with most bindings", "address", "bindings"]);
            for pod in &address.top_pods {
                rows.add_row([
                    or_dash(pod.endpoint.clone()),
                    pod.internal.to_string(),
                    pod.bindings.to_string(),
                ]);
            }
            let _ = writeln!(screen, "{rows}");
        }
    }
    if usage.is_empty() {
        screen.push_str("No address is used for source NAT.\n");
    }
    screen
}

/// How full an address is, and when it will be.
fn fill(usage: &NatUsage) -> String {
    let mut said =
        format!("{} bindings, {} free for the busiest remote", usage.bindings, usage.free);
    match (usage.exhausted_in_s, usage.growth_per_s) {
        (Some(0), _) => said.push_str(", which gets no more"),
        (Some(seconds), Some(growth)) => {
            let _ = write!(said, ", growing by {growth:.1}/s: exhausted in {}", duration(seconds));
        }
        (_, Some(growth)) if growth < 0.0 => said.push_str(", and fewer are used"),
        (_, Some(_)) => said.push_str(", and it does not grow"),
        (_, None) => {}
    }
    said
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// Whole percents.
fn share(part: u32, whole: u32) -> String {
    let percent = u64::from(part) * 100 / u64::from(whole.max(1));
    format!("{percent} %")
}
