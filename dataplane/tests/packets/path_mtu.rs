//! Path-MTU discovery and ICMP errors, end to end, for every kind of translation and every way between
//! nodes: {ClusterIP, NodePort, LoadBalancer, SNAT, gateway} x {IPv4, IPv6} x {native, Geneve, VXLAN},
//! TCP and UDP, towards the server and towards the client.
//!
//! Whoever hears of its packet hears of it as it sent it: addresses, ports, and every checksum right.

use etherparse::{Icmpv4Header, Icmpv6Header, Ipv4Header, Ipv6Header};
use overlane_api::{Forwarding, Mode, Protocol, Scope, Underlay};

use super::build::{Body, Packet, packet};
use super::icmp_error::error;
use super::two_nodes::{By, Cluster, End, Route, TwoNodes};

const SYN: u8 = 2;
const ACK: u8 = 16;
const CLIENT_PORT: u16 = 45_000;

const WAYS: [(Mode, Underlay); 5] = [
    (Mode::Native, Underlay::Ipv4),
    (Mode::Geneve, Underlay::Ipv4),
    (Mode::Geneve, Underlay::Ipv6),
    (Mode::Vxlan, Underlay::Ipv4),
    (Mode::Vxlan, Underlay::Ipv6),
];

/// The kinds of translation, with the service's backend and who sees the client's address.
const KINDS: [(By, (u8, u8), Scope); 11] = [
    (By::ClusterIp, (1, 0), Scope::Cluster),
    (By::ClusterIp, (0, 1), Scope::Cluster),
    (By::NodePort, (1, 0), Scope::Cluster),
    (By::NodePort, (0, 1), Scope::Local),
    (By::LoadBalancer, (1, 0), Scope::Cluster),
    (By::LoadBalancer, (0, 1), Scope::Local),
    (By::Direct, (1, 0), Scope::Cluster),
    (By::DirectNodePort, (1, 0), Scope::Cluster),
    (By::Snat, (1, 0), Scope::Cluster),
    (By::Gateway(0), (1, 0), Scope::Cluster),
    (By::Gateway(1), (1, 0), Scope::Cluster),
];

fn body(protocol: Protocol, ports: (u16, u16), flags: u8, len: usize) -> Body {
    let payload = (0..len).map(|n| (n * 31 + 7) as u8).collect();
    match protocol {
        Protocol::Udp => Body::Udp(ports.0, ports.1, payload),
        _ => Body::Segment(ports.0, ports.1, flags, payload),
    }
}

/// A flow that is open, and what each end sees of the other.
struct Talk {
    nodes: TwoNodes,
    route: Route,
    protocol: Protocol,
    title: String,
    /// Address and port of the client as the server sees it.
    seen: (std::net::IpAddr, u16),
}

/// Which end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

impl Talk {
    fn open(cluster: &Cluster, route: Route) -> Self {
        let title = format!(
            "{:?} {:?}/{:?} {:?} family {} backend {:?}",
            route.by,
            cluster.mode,
            cluster.underlay,
            cluster.protocol,
            route.family,
            cluster.backend
        );
        let seen = (route.client.1, CLIENT_PORT);
        let protocol = cluster.protocol;
        let mut talk = Self { nodes: TwoNodes::new(cluster), route, protocol, title, seen };
        let arrived = talk.arrives(Sender::Client, &talk.packet(Sender::Client, SYN, 0));
        let l4 = [20, 40][talk.route.family];
        let port = u16::from_be_bytes([arrived[l4], arrived[l4 + 1]]);
        let source = match talk.route.family {
            0 => <[u8; 4]>::try_from(&arrived[12..16]).unwrap().into(),
            _ => <[u8; 16]>::try_from(&arrived[8..24]).unwrap().into(),
        };
        talk.seen = (source, port);
        talk.passes(Sender::Server, SYN | ACK, 0);
        talk.passes(Sender::Client, ACK, 0);
        talk
    }

    /// Both ends, the sender first.
    fn ends(&self, sender: Sender) -> (End, End) {
        let (client, server) = (self.route.client.0, self.route.server.0);
        if sender == Sender::Client { (client, server) } else { (server, client) }
    }

    /// What one of them sends, with so many bytes of payload.
    fn packet(&self, sender: Sender, flags: u8, len: usize) -> Packet {
        let (asked, server) = (self.route.asked, self.route.server);
        match sender {
            Sender::Client => {
                let body = body(self.protocol, (CLIENT_PORT, asked.1), flags, len);
                packet(self.route.client.1, asked.0, body)
            }
            Sender::Server => {
                let body = body(self.protocol, (server.2, self.seen.1), flags, len);
                packet(server.1, self.seen.0, body)
            }
        }
    }

    /// The same as the other end has it, but for the time to live.
    fn as_received(&self, sender: Sender, sent: &Packet) -> Packet {
        let server = (self.route.server.1, self.route.server.2);
        match sender {
            Sender::Client => sent.between(self.seen, server),
            Sender::Server => sent.between(self.route.asked, (self.route.client.1, CLIENT_PORT)),
        }
    }

    /// `sent` arrives at the other end, and nobody else hears anything. The packet's bytes.
    #[track_caller]
    fn arrives(&mut self, sender: Sender, sent: &Packet) -> Vec<u8> {
        let (from, to) = self.ends(sender);
        let mut got = self.nodes.send(from, sent);
        assert_eq!(got.len(), 1, "{}: {got:02x?}; drops: {}", self.title, self.nodes.drops());
        let (end, ip) = got.remove(0);
        assert_eq!(end, to, "{}", self.title);
        ip
    }

    /// A packet arrives, every byte as it should be. The packet as it arrived.
    #[track_caller]
    fn passes(&mut self, sender: Sender, flags: u8, len: usize) -> Packet {
        let sent = self.packet(sender, flags, len);
        let ip = self.arrives(sender, &sent);
        self.is_as_received(sender, &sent, &ip)
    }

    #[track_caller]
    fn is_as_received(&self, sender: Sender, sent: &Packet, ip: &[u8]) -> Packet {
        let ttl = if self.route.family == 0 { ip[8] } else { ip[7] };
        assert!(ttl < 64, "{}: a router takes a hop", self.title);
        let expected = self.as_received(sender, sent).ttl(ttl);
        assert_eq!(ip, expected.ip(), "{}", self.title);
        expected
    }

    /// The sender is told about `sent`: as it sent it, with right checksums. Returns type, code and the
    /// word behind the checksum.
    #[track_caller]
    fn is_told(&self, sender: Sender, sent: &Packet, got: &[(End, Vec<u8>)]) -> (u8, u8, u32) {
        let told: Vec<_> = got.iter().filter(|(end, _)| *end == self.ends(sender).0).collect();
        assert_eq!(told.len(), 1, "{}: {got:02x?}; {}", self.title, self.nodes.drops());
        let ip = &told[0].1;
        let (kind, code, rest, quoted) = parse_error(ip);
        let ttl = if self.route.family == 0 { quoted[8] } else { quoted[7] };
        let own = sent.clone().ttl(ttl).ip();
        assert!(quoted.len() >= own.len().min([28, 48][self.route.family]), "{}", self.title);
        assert_eq!(quoted, own[..quoted.len()], "{}: what it quotes was sent", self.title);
        (kind, code, rest)
    }

    /// Sends ever smaller packets, as it is told, until one arrives. Returns its length, and how many
    /// were lost on the way.
    #[track_caller]
    fn discovers(&mut self, sender: Sender, first: usize) -> (usize, u32) {
        let headers =
            [20, 40][self.route.family] + if self.protocol == Protocol::Udp { 8 } else { 20 };
        let (mut size, mut lost) = (first, 0);
        loop {
            assert!(lost < 5, "{}: still lost at {size}; {}", self.title, self.nodes.drops());
            let sent = self.packet(sender, ACK, size - headers);
            let (from, to) = self.ends(sender);
            let got = self.nodes.send(from, &sent);
            if let Some((_, ip)) = got.iter().find(|(end, _)| *end == to) {
                assert_eq!(got.len(), 1, "{}", self.title);
                self.is_as_received(sender, &sent, ip);
                return (size, lost);
            }
            lost += 1;
            if !got.iter().any(|(end, _)| *end == from) {
                // A tunnel packet was lost, and its node was told: the sender is with the next one.
                assert!(
                    matches!(got[..], [(End::Host(_), _)]),
                    "{}: {got:02x?}; {}",
                    self.title,
                    self.nodes.drops()
                );
                continue;
            }
            let (kind, code, mtu) = self.is_told(sender, &sent, &got);
            assert_eq!((kind, code), [(3, 4), (2, 0)][self.route.family], "{}", self.title);
            assert!((mtu as usize) < size, "{}: {mtu} after {size}", self.title);
            size = mtu as usize;
        }
    }
}

/// Type, code, the word behind the checksum and what is quoted, of an error whose checksums are right.
#[track_caller]
fn parse_error(ip: &[u8]) -> (u8, u8, u32, Vec<u8>) {
    let message = if ip[0] >> 4 == 4 {
        let (header, message) = Ipv4Header::from_slice(ip).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!((header.protocol.0, usize::from(header.total_len)), (1, ip.len()));
        let (icmp, quoted) = Icmpv4Header::from_slice(message).unwrap();
        assert_eq!(icmp.icmp_type.calc_checksum(quoted), icmp.checksum);
        message
    } else {
        let (header, message) = Ipv6Header::from_slice(ip).unwrap();
        assert_eq!((header.next_header.0, usize::from(header.payload_length)), (58, message.len()));
        let (icmp, quoted) = Icmpv6Header::from_slice(message).unwrap();
        let sum = icmp.icmp_type.calc_checksum(header.source, header.destination, quoted).unwrap();
        assert_eq!(sum, icmp.checksum);
        message
    };
    let rest = u32::from_be_bytes(message[4..8].try_into().unwrap());
    (message[0], message[1], rest, message[8..].to_vec())
}

/// Runs `test` for every combination.
fn every(by: fn(By) -> bool, protocols: &[Protocol], test: impl Fn(Talk, Mode, Underlay)) {
    for (mode, underlay) in WAYS {
        for family in 0..2 {
            for (kind, backend, external) in KINDS {
                // A gateway elsewhere is reached by a tunnel.
                if !by(kind) || kind == By::Gateway(1) && mode == Mode::Native {
                    continue;
                }
                // And a node is told of the service by Geneve.
                if kind.is_direct() && mode != Mode::Geneve {
                    continue;
                }
                for protocol in protocols.iter().copied() {
                    let gateway = if let By::Gateway(holder) = kind { Some(holder) } else { None };
                    let direct = kind.is_direct();
                    let forwarding = if direct { Forwarding::Dsr } else { Forwarding::Snat };
                    let cluster = Cluster {
                        mode,
                        underlay,
                        protocol,
                        backend,
                        external,
                        forwarding,
                        gateway,
                    };
                    test(Talk::open(&cluster, Route::new(kind, family, backend)), mode, underlay);
                }
            }
        }
    }
}

const BOTH: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];

/// Bytes that a tunnel takes of the link's MTU.
fn overhead(mode: Mode, underlay: Underlay) -> usize {
    if !mode.is_tunnel() {
        return 0;
    }
    if underlay == Underlay::Ipv4 { 50 } else { 70 }
}

/// Bytes of the option that names the service to another node: every datagram has it, and of a connection
/// only what begins it.
fn option(talk: &Talk) -> usize {
    match (talk.route.by, talk.protocol) {
        (by, Protocol::Udp) if by.is_direct() => [12, 24][talk.route.family],
        _ => 0,
    }
}

/// Does the way lead from one node to the other, and to the outside?
fn crosses(talk: &Talk, sender: Sender) -> (bool, bool) {
    if talk.route.by.is_direct() && sender == Sender::Server {
        return (false, true);
    }
    let ends = [talk.route.client.0, talk.route.server.0];
    let has_outside = ends.contains(&End::Outside);
    let pods: Vec<u8> = ends
        .iter()
        .filter_map(|end| if let End::Pod(n, _) = end { Some(*n) } else { None })
        .collect();
    let is_between = pods.contains(&1) || talk.route.by == By::Gateway(1);
    (is_between, has_outside)
}

fn discovery(by: fn(By) -> bool) {
    for (link, outside, protocol) in [
        (1400, 1500, Protocol::Tcp),
        (1500, 1300, Protocol::Tcp),
        (1400, 1380, Protocol::Udp),
        (1500, 1500, Protocol::Udp),
    ] {
        every(by, &[protocol], |mut talk, mode, underlay| {
            (talk.nodes.link_mtu, talk.nodes.outside_mtu) = (link, outside);
            let pods = 1500 - overhead(mode, underlay);
            for sender in [Sender::Client, Sender::Server] {
                let (between, out) = crosses(&talk, sender);
                let is_pod = matches!(talk.ends(sender).0, End::Pod(..));
                let mut expected = pods;
                if between {
                    expected = expected.min(link - overhead(mode, underlay) - option(&talk));
                }
                if out {
                    expected = expected.min(outside);
                }
                // A pod sends what its interface takes, somebody outside what an Ethernet does.
                let first = if is_pod { pods } else { 1500 };
                let (size, lost) = talk.discovers(sender, first);
                let title = format!("{}, {sender:?} sends, {link} {outside}", talk.title);
                assert_eq!(size, expected, "{title}");
                // Each link is learned of by one loss; a tunnel's by two, for its node comes first.
                let links = usize::from(out && outside < first)
                    + usize::from(between && link < 1500) * (1 + usize::from(mode.is_tunnel()))
                    + usize::from(!is_pod && mode.is_tunnel());
                assert!(lost as usize <= links, "{title}: {lost} packets were lost");
                // What was learned holds.
                assert_eq!(talk.discovers(sender, size), (size, 0), "{title}");
            }
            talk.nodes.close();
        });
    }
}

#[test]
fn path_mtu_is_discovered_through_cluster_ip() {
    discovery(|by| by == By::ClusterIp);
}

#[test]
fn path_mtu_is_discovered_through_node_port() {
    discovery(|by| by == By::NodePort);
}

#[test]
fn path_mtu_is_discovered_through_load_balancer() {
    discovery(|by| by == By::LoadBalancer);
}

#[test]
fn path_mtu_is_discovered_through_direct_return() {
    discovery(By::is_direct);
}

#[test]
fn path_mtu_is_discovered_through_snat() {
    discovery(|by| by == By::Snat);
}

#[test]
fn path_mtu_is_discovered_through_gateway_here() {
    discovery(|by| by == By::Gateway(0));
}

#[test]
fn path_mtu_is_discovered_through_gateway_elsewhere() {
    discovery(|by| by == By::Gateway(1));
}

/// Who receives a packet says what is wrong with it: the sender hears of what it sent, from whom it
/// sent it to.
#[test]
fn errors_of_either_end_reach_the_other() {
    every(
        |_| true,
        BOTH,
        |mut talk, _, _| {
            for sender in [Sender::Client, Sender::Server] {
                let sent = talk.packet(sender, ACK, 100);
                let arrived = talk.arrives(sender, &sent);
                let arrived = talk.is_as_received(sender, &sent, &arrived);
                let (to, own) = (talk.ends(sender).1, arrived.destination);
                for (kind, rest) in [
                    ([(3, 3), (1, 4)], 0),
                    ([(3, 4), (2, 0)], 1290),
                    ([(11, 1), (3, 1)], 0),
                    ([(12, 0), (4, 0)], 0x0600_0000),
                ] {
                    for is_short in [false, true] {
                        let mut told = error(own, &arrived, kind, rest);
                        if is_short && let Body::Error(_, _, _, quoted) = &mut told.body {
                            quoted.truncate([28, 48][talk.route.family]);
                        }
                        let got = talk.nodes.send(to, &told);
                        let (got_kind, code, got_rest) = talk.is_told(sender, &sent, &got);
                        assert_eq!((got_kind, code), kind[talk.route.family], "{}", talk.title);
                        assert_eq!(got_rest, rest, "{}", talk.title);
                        let ip =
                            &got.iter().find(|(end, _)| *end == talk.ends(sender).0).unwrap().1;
                        let from = packet_source(ip);
                        assert_eq!(
                            from, sent.destination,
                            "{}: from whom it was sent to",
                            talk.title
                        );
                    }
                }
                talk.passes(sender, ACK, 10);
            }
            talk.nodes.close();
        },
    );
}

fn packet_source(ip: &[u8]) -> std::net::IpAddr {
    match ip[0] >> 4 {
        4 => <[u8; 4]>::try_from(&ip[12..16]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&ip[8..24]).unwrap().into(),
    }
}

/// A router on the way says what is wrong: as in a traceroute.
#[test]
fn errors_of_routers_reach_the_sender() {
    every(
        |_| true,
        BOTH,
        |mut talk, mode, _| {
            let (between, out) = crosses(&talk, Sender::Client);
            // Inside of a tunnel there are no routers.
            if !out && (!between || mode.is_tunnel()) {
                return talk.nodes.close();
            }
            for sender in [Sender::Client, Sender::Server] {
                for kind in [[(11, 0), (3, 0)], [(3, 1), (1, 3)], [(3, 13), (1, 1)]] {
                    let sent = talk.packet(sender, ACK, 33);
                    talk.nodes.refuse_next = Some(kind);
                    let got = talk.nodes.send(talk.ends(sender).0, &sent);
                    let told = talk.is_told(sender, &sent, &got);
                    assert_eq!((told.0, told.1), kind[talk.route.family], "{}", talk.title);
                    talk.passes(sender, ACK, 10);
                }
            }
            talk.nodes.close();
        },
    );
}
