//! `overlane service list`: the services, as this node serves them.

use clap::Subcommand;
use overlane_api::protocol::{Op, Reply};
use overlane_api::status::{BackendStatus, ServiceStatus};
use overlane_api::{BackendState, Forwarding, FrontendKind, Scope};

use super::{Answer, Cli, CliError, lines, table};

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
            cli.answer(&services, || screen(&services))
        }
        _ => Err(CliError::Unexpected("services")),
    }
}

fn is_meant(service: &str, name: &str) -> bool {
    service == name || service.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

fn screen(services: &[ServiceStatus]) -> String {
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
    for service in services {
        rows.add_row([
            service.name.clone(),
            service.protocol.to_string(),
            lines(&service.frontends.iter().map(frontend).collect::<Vec<_>>()),
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
