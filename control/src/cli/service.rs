//! `overlane service list`: the services, as this node serves them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Subcommand;
use overlane_api::protocol::{Op, Reply};
use overlane_api::status::{BackendStatus, ServiceStatus};
use overlane_api::{BackendState, Forwarding, FrontendKind, Scope};

use serde::Serialize;

use super::status::ask_control;
use super::{Answer, Cli, CliError, lines, table};
use crate::desired::AnnouncementStatus;

/// Verbs of `overlane service`.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// The services, as they are in force.
    List {
        /// Only this one: `namespace/name` for all of its ports, or `namespace/name:port`.
        #[arg(value_name = "SERVICE")]
        name: Option<String>,
    },
}

/// Lists the services.
///
/// # Errors
/// When the dataplane does not answer.
pub fn list(cli: &Cli, name: Option<&str>) -> Result<Answer, CliError> {
    match cli.dataplane()?.call(Op::Services)? {
        Reply::Services(mut services) => {
            services.retain(|service| name.is_none_or(|name| is_meant(&service.name, name)));
            let control = ask_control(cli).unwrap_or_default();
            let announced = Announced(&control.announcements);
            let listed: Vec<Listed<'_>> =
                services.iter().map(|service| announced.listed(service)).collect();
            cli.answer(&listed, || screen(&listed))
        }
        _ => Err(CliError::Unexpected("services")),
    }
}

fn is_meant(service: &str, name: &str) -> bool {
    service == name || service.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

/// A service as `service list` prints it as JSON: the dataplane's own reply, and who answers for
/// its addresses.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    service: &'a ServiceStatus,
    /// By address, of those that are announced, the node that answers; absent: none can.
    announced_by: BTreeMap<IpAddr, Option<&'a str>>,
}

/// The announced addresses.
struct Announced<'a>(&'a [AnnouncementStatus]);

impl<'a> Announced<'a> {
    fn listed(&self, service: &'a ServiceStatus) -> Listed<'a> {
        let of_service = self.0.iter().filter(|one| one.services.contains(&service.name));
        let announced_by = of_service.map(|one| (one.address, one.node.as_deref())).collect();
        Listed { service, announced_by }
    }
}

fn screen(services: &[Listed<'_>]) -> String {
    let mut rows = table(&[
        "service",
        "protocol",
        "frontends",
        "backends",
        "policy in/out",
        "affinity",
        "new flows",
        "to backends",
        "to clients",
        "rejected",
        "dropped",
    ]);
    for Listed { service, announced_by } in services {
        let by = |frontend: &overlane_api::Frontend| {
            let text = self::frontend(frontend);
            match announced_by.get(&frontend.address) {
                Some(Some(node)) => format!("{text} by {node}"),
                Some(None) => format!("{text} by nobody"),
                None => text,
            }
        };
        rows.add_row([
            service.name.clone(),
            service.protocol.to_string(),
            lines(&service.frontends.iter().map(by).collect::<Vec<_>>()),
            lines(
                &service
                    .backends
                    .iter()
                    .map(|b| backend(b, service.forwarding))
                    .collect::<Vec<_>>(),
            ),
            format!(
                "{}/{}{}",
                scope(service.internal),
                scope(service.external),
                if service.forwarding == Forwarding::Dsr { " dsr" } else { "" }
            ),
            service
                .affinity_seconds
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
            service.new_flows.to_string(),
            service.to_backends.packets.to_string(),
            service.to_clients.packets.to_string(),
            service.rejected.to_string(),
            service.dropped.values().sum::<u64>().to_string(),
        ]);
    }
    format!("{rows}\n")
}

fn frontend(frontend: &overlane_api::Frontend) -> String {
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => "",
        FrontendKind::NodePort => " node",
        FrontendKind::LoadBalancer => " balancer",
        FrontendKind::ExternalIp => " external",
    };
    format!("{}{kind}", std::net::SocketAddr::new(frontend.address, frontend.port))
}

/// Address and port, then what is not as usual.
fn backend(status: &BackendStatus, forwarding: Forwarding) -> String {
    let backend = &status.backend;
    let mut text = std::net::SocketAddr::new(backend.address, backend.port).to_string();
    if backend.local {
        text.push_str(" here");
    }
    match backend.state {
        BackendState::Ready => {}
        BackendState::Terminating => text.push_str(" terminating"),
        BackendState::NotReady => text.push_str(" not ready"),
    }
    if !backend.use_cluster && !backend.use_local {
        text.push_str(" unused");
    }
    if forwarding == Forwarding::Dsr && !status.direct {
        text.push_str(" by snat");
    }
    if backend.weight != 1 {
        text.push_str(&format!(" x{}", backend.weight));
    }
    text
}

const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Cluster => "cluster",
        Scope::Local => "local",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_meant_by_its_name_or_its_ports() {
        assert!(is_meant("default/web:http", "default/web"));
        assert!(is_meant("default/web:http", "default/web:http"));
        assert!(!is_meant("default/web2:http", "default/web"));
        assert!(!is_meant("default/web:http", "default/web:h"));
    }
}
