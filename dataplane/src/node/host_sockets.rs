//! The ports on which programs of the node listen, from procfs (`proc_net_tcp` in the kernel's
//! documentation). The files have the format since Linux 2.0.

use std::path::Path;
use std::time::{Duration, Instant};

use super::process::Process;
use crate::tables::host_ports::HostPorts;

/// How often they are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The files, and the state in which a socket of theirs takes packets from anybody: TCP listening,
/// UDP not connected.
const FILES: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

/// When to look again.
#[derive(Debug, Default)]
pub(super) struct HostSockets {
    next: Option<Instant>,
}

impl Process {
    /// Looks which ports are the host's, once a second while flows leave with its addresses. Says
    /// whether that has changed the tables.
    pub(super) fn process_host_sockets(&mut self, now: Instant) -> bool {
        let is_due = self.host_sockets.next.is_none_or(|next| now >= next);
        if !is_due || !self.compiler.has_external() {
            return false;
        }
        self.host_sockets.next = Some(now + INTERVAL);
        self.compiler.set_host_ports(listening(Path::new("/proc/net")))
    }
}

/// The ports of the sockets that the files in `folder` list; a file that is not there (no IPv6) has none.
fn listening(folder: &Path) -> HostPorts {
    let mut ports = Vec::new();
    for (file, state) in FILES {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        ports.extend(text.lines().filter_map(|line| port(line, state)));
    }
    ports.into_iter().collect()
}

/// The local port of a line, if its socket is in `state`.
fn port(line: &str, state: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace();
    let (_, local, _, own) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if own != state {
        return None;
    }
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let head =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";
        let tcp = "   0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   1: 0401000A:9C40 0A7100CB:01BB 01 00000000:00000000 00:00000000 00000000     0\n";
        let udp6 = "  10: 00000000000000000000000000000000:3039 00000000000000000000000000000000:0000 07 00000000:00000000\n";
        std::fs::write(folder.path().join("tcp"), format!("{head}{tcp}")).unwrap();
        std::fs::write(folder.path().join("udp6"), format!("{head}{udp6}broken\n")).unwrap();
        let wanted: HostPorts = [0x280a, 0x3039].into_iter().collect();
        assert_eq!(listening(folder.path()), wanted);
    }

    #[test]
    fn a_socket_of_this_process_is_seen() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listening(Path::new("/proc/net")).contains(port));
    }
}
