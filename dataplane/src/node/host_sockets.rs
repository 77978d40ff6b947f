//! The ports on which programs of the node listen, from the kernel's socket diagnosis (sock_diag(7)),
//! which looks at listening sockets only; where a kernel has none, from procfs (`proc_net_tcp` in the
//! kernel's documentation). To make those files the kernel walks its whole table of connections: 4 ms
//! each on a machine of 24 GiB, in which nothing else runs on that CPU.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

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
        self.compiler.set_host_ports(host_ports())
    }
}

/// Bytes of one answer of the kernel's; it fills at most 32 KiB.
const ANSWER_BYTES: usize = 64 << 10;

/// How long the kernel may take to answer, seconds.
const ANSWER_S: i64 = 1;

/// What takes packets from anybody: TCP listening, UDP not connected.
const QUESTIONS: [(u8, u8, StateFlags); 4] = [
    (AF_INET, IPPROTO_TCP, StateFlags::LISTEN),
    (AF_INET6, IPPROTO_TCP, StateFlags::LISTEN),
    (AF_INET, IPPROTO_UDP, StateFlags::CLOSE),
    (AF_INET6, IPPROTO_UDP, StateFlags::CLOSE),
];

/// The ports of the calling thread's network namespace.
fn host_ports() -> HostPorts {
    diagnosed().unwrap_or_else(|error| {
        tracing::debug!(%error, "no socket diagnosis, reading /proc/net");
        listening(Path::new("/proc/net"))
    })
}

/// Asks the kernel for the sockets.
fn diagnosed() -> io::Result<HostPorts> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_S))?;
    let mut ports = Vec::new();
    for (family, protocol, states) in QUESTIONS {
        ask(&socket, family, protocol, states)?;
        answers(&socket, &mut ports)?;
    }
    Ok(ports.into_iter().collect())
}

fn ask(socket: &Socket, family: u8, protocol: u8, states: StateFlags) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let extensions = ExtensionFlags::empty();
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(|_| ())
}

/// Takes the answers to one question.
fn answers(socket: &Socket, ports: &mut Vec<u16>) -> io::Result<()> {
    let unreadable = || io::Error::other("an answer of the kernel's cannot be read");
    let mut buffer = Vec::with_capacity(ANSWER_BYTES);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest);
            let message = message.map_err(|_| unreadable())?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    ports.push(found.header.socket_id.source_port);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(message.header.length).map_err(|_| unreadable())?;
            // Aligned to 4 bytes; an empty message would be met for ever.
            let length = length.max(4).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
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
    fn sockets_of_this_process_are_seen_both_ways_and_connected_ones_are_not() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = std::net::TcpListener::bind("[::1]:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        for ports in [diagnosed().unwrap(), listening(Path::new("/proc/net"))] {
            for address in [v4.local_addr(), v6.local_addr(), udp.local_addr()] {
                assert!(ports.contains(address.unwrap().port()));
            }
            assert!(!ports.contains(client.local_addr().unwrap().port()));
        }
    }
}
