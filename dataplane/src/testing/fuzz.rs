//! A whole node given anything: frames on every port and changes of its tables, as some bytes say.
//!
//! The body of a fuzz target; `tests/regressions/` replays its inputs through the same code.
//!
//! An input is a list of steps, each a byte and what it needs:
//!
//! | byte % 8 | step |
//! |---|---|
//! | 0 to 4 | a frame, or a fragment: place, template, patches (see [`frame`]) |
//! | 5 | a frame as it stands in the input: place, length, bytes |
//! | 6 | a change of the tables |
//! | 7 | time passes, or one worker alone takes its turn |

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use overlane_api::{
    Backend, BackendState, Change, Frontend, FrontendKind, MacAddr, Mode, Object, ObjectKey,
    Protocol, Reject, Scope, Service, Underlay,
};

use super::node::{NEXT_HOP_MAC, UPLINK_MAC};
use super::{MemoryNode, Place, objects};
use crate::tables::compile::underlay::{Way, Ways};
use crate::tables::peers::Adjacency;
use crate::wire::ipv6::{FRAGMENT_HEADER_LEN, FragmentInfo};
use crate::wire::{checksum, ethernet, ipv4, ipv6, protocol};

/// Workers of the node.
const WORKERS: u8 = 2;

/// Steps of an input, at most: what comes after is left out.
const STEPS: usize = 64;

thread_local! {
    static NODE: RefCell<Option<MemoryNode>> = const { RefCell::new(None) };
}

/// The bytes of an input, taken from its front; 0 when there are none left.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn word(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Does what `bytes` say to a node in memory, and then looks whether its books are closed and all
/// frames are there.
///
/// The node is made once for each thread and brought back to where it was after each input, so
/// that an input does the same alone as among others.
///
/// # Errors
/// Says which promise was broken.
pub fn node(bytes: &[u8]) -> Result<(), String> {
    NODE.with_borrow_mut(|slot| {
        let node = slot.get_or_insert_with(new_node);
        let mut input = Input(bytes);
        for _ in 0..STEPS {
            if input.0.is_empty() {
                break;
            }
            step(node, &mut input);
        }
        let result = settle(node);
        if result.is_err() {
            // The next input gets a node that was not damaged by this one.
            *slot = None;
        }
        result
    })
}

/// A node in its first state, with a way out.
fn new_node() -> MemoryNode {
    let mut node = MemoryNode::new(WORKERS, cluster(Mode::Geneve));
    let ways = [("0.0.0.0/0", "10.0.0.1"), ("::/0", "fe80::99")];
    let ways = ways.map(|(to, by)| Some((to.parse().ok()?, by.parse().ok()?)));
    let ways: Vec<(IpNet, IpAddr)> = ways.into_iter().flatten().collect();
    let compiler = &mut node.bench().compiler;
    compiler.set_ways(ways.iter().map(|(to, by)| (*to, Way::Gateway(*by))).collect::<Ways>());
    for (_, gateway) in ways {
        let adjacency = Adjacency { source: UPLINK_MAC, destination: NEXT_HOP_MAC };
        compiler.set_gateway(gateway, Some(adjacency));
    }
    node.publish();
    node
}

/// Both ports of what [`ip`] makes.
const PORT: u16 = 0x0808;

/// Address of the service, IPv4 and IPv6.
const VIP: [&str; 2] = ["10.96.0.10", "fd98::a"];

/// A UDP service with a backend here and one at node b, for pods and from outside.
fn service() -> Service {
    let address = |family: usize| VIP.get(family).and_then(|vip| vip.parse().ok());
    let (mut frontends, mut backends) = (Vec::new(), Vec::new());
    for family in 0..2 {
        let places = [
            (address(family), FrontendKind::ClusterIp),
            (objects::node_addresses(0).get(family).copied(), FrontendKind::NodePort),
        ];
        frontends.extend(
            places.into_iter().filter_map(|(address, kind)| {
                Some(Frontend { address: address?, port: PORT, kind })
            }),
        );
        backends.extend((0..2).filter_map(|node| {
            Some(Backend {
                address: *objects::pod_addresses(node, 1 - node).get(family)?,
                port: 8080,
                weight: 1,
                local: node == 0,
                use_cluster: true,
                use_local: node == 0,
                serving: true,
                state: BackendState::Ready,
            })
        }));
    }
    frontends.sort();
    backends.sort_by_key(|backend| (backend.address, backend.port));
    Service {
        name: "default/big:udp".into(),
        protocol: Protocol::Udp,
        frontends,
        backends,
        internal: Scope::Cluster,
        external: Scope::Cluster,
        affinity_seconds: None,
        source_ranges: Vec::new(),
        reject: Reject::Rst,
        forwarding: Default::default(),
        algorithm: Default::default(),
        health_check_port: None,
    }
}

/// The cluster from which every input starts: the usual one, with a peer of another mode, and a service.
fn cluster(mode: Mode) -> Vec<Change> {
    let mut changes = objects::cluster(mode, Underlay::Ipv4, WORKERS);
    changes.push(Change::Set(Object::Service(service())));
    let other = if mode == Mode::Vxlan { Mode::Geneve } else { Mode::Vxlan };
    changes.push(Change::Set(Object::Peer(objects::peer(2, other))));
    changes
}

/// Ends what is under way, checks everything, and brings the node back to its first state.
fn settle(node: &mut MemoryNode) -> Result<(), String> {
    node.run();
    let _ = node.collect();
    node.check_books()?;
    // What waits for a next hop goes first: no input may find what another has left.
    node.wait(Duration::from_secs(2));
    node.run();
    node.check_books()?;
    if node.counters().held != 0 {
        return Err(format!("{} packets wait for ever", node.counters().held));
    }
    // And so do flows: the longest timeout is over.
    node.wait(Duration::from_secs(3 * 3600));
    node.run();
    if node.flows() != 0 {
        return Err(format!("{} flows stay for ever", node.flows()));
    }
    reset(node).map_err(|error| format!("the first state is refused: {error:?}"))?;
    node.run();
    let _ = (node.collect(), node.notices());
    node.check_books()
}

fn reset(node: &mut MemoryNode) -> Result<(), overlane_api::protocol::ApiError> {
    for family in 0..2 {
        for address in (0..=u8::MAX).filter_map(|choice| address(choice, family)) {
            node.bench().compiler.set_next_hop(address, None);
        }
    }
    let wanted = cluster(Mode::Geneve);
    let (mut endpoints, mut peers) = (Vec::new(), Vec::new());
    for (key, digest) in node.bench().compiler.installed() {
        let is_wanted = wanted.iter().any(|change| {
            matches!(change, Change::Set(object) if object.key() == key && object.digest() == digest)
        });
        match key {
            _ if is_wanted => {}
            ObjectKey::Endpoint(_) => endpoints.push(Change::Remove(key)),
            ObjectKey::Peer(_) => peers.push(key),
            ObjectKey::Node => {}
            ObjectKey::Service(_) | ObjectKey::Egress(_) | ObjectKey::Announcement(_) => {
                endpoints.push(Change::Remove(key));
            }
        }
    }
    node.apply(endpoints)?;
    for key in peers {
        // One whose endpoints are as wanted is set to what is wanted, below.
        let _ = node.apply(vec![Change::Remove(key)]);
    }
    node.apply(wanted)?;
    for peer in ["b", "c"] {
        node.set_resolved(peer, true);
        node.bench().compiler.set_path_mtu(peer, None);
    }
    node.publish();
    Ok(())
}

fn step(node: &mut MemoryNode, input: &mut Input<'_>) {
    match input.byte() % 8 {
        0..=4 => {
            let place = place(input);
            let frame = frame(input, &place);
            let _ = node.inject(&place, &frame);
        }
        5 => {
            let place = place(input);
            let len = usize::from(input.byte()) * 8;
            let frame = input.bytes(len);
            let _ = node.inject(&place, frame);
        }
        6 => {
            let change = change(input);
            // Refused or not: the packets that follow find out what is in force.
            let _ = node.apply(change);
        }
        _ => match input.below(6) {
            0 => node.wait(Duration::from_millis(u64::from(input.byte()) * 10)),
            choice @ (1 | 2) => {
                let _ = node.bench().workers[usize::from(choice - 1)].poll();
            }
            3 => node.set_resolved(["b", "c", "d"][usize::from(input.below(3))], false),
            4 => {
                let family = usize::from(input.below(2));
                if let Some(address) = address(input.byte(), family) {
                    let adjacency = Adjacency { source: UPLINK_MAC, destination: NEXT_HOP_MAC };
                    node.bench().compiler.set_next_hop(address, Some(adjacency));
                    node.publish();
                }
            }
            _ => {
                node.run();
                let _ = node.collect();
            }
        },
    }
}

fn place(input: &mut Input<'_>) -> Place {
    match input.below(6) {
        choice @ 0..=2 => Place::Pod(objects::pod_name(0, choice)),
        choice @ (3 | 4) => Place::Uplink(usize::from(choice - 3)),
        _ => Place::Host,
    }
}

/// An address that means something in the cluster, or nearly.
fn address(choice: u8, family: usize) -> Option<IpAddr> {
    let node = choice >> 2 & 3;
    Some(match choice % 4 {
        0 | 1 => *objects::pod_addresses(node, choice >> 4 & 3).get(family)?,
        2 if choice >> 4 == 15 => VIP.get(family)?.parse().ok()?,
        2 => *objects::node_addresses(node).get(family)?,
        _ => {
            let texts = match choice >> 4 & 3 {
                0 => ["169.254.1.1", "fe80::1"],
                1 => ["203.0.113.10", "2001:db8:113::10"],
                2 => ["224.0.0.1", "ff02::1"],
                _ => ["0.0.0.0", "::"],
            };
            texts.get(family)?.parse().ok()?
        }
    })
}

/// A change of the tables, one that makes sense more often than not.
fn change(input: &mut Input<'_>) -> Vec<Change> {
    let modes = [Mode::Geneve, Mode::Vxlan, Mode::Native, Mode::Flat];
    let underlays = [Underlay::Ipv4, Underlay::Ipv6];
    let mut changes = Vec::new();
    for _ in 0..=input.below(3) {
        let number = input.below(4);
        let pod = input.below(3);
        let mode = modes[usize::from(input.below(4))];
        changes.push(match input.below(7) {
            0 => {
                let underlay = underlays[usize::from(input.below(2))];
                let mut node = objects::node(mode, underlay);
                node.encap.vxlan_strict = number == 1;
                node.encap.accept_zero_udp_checksum_v6 = number == 2;
                node.underlay_mtu = [1500, 1400, 700, 1500][usize::from(number)];
                Change::Set(Object::Node(node))
            }
            1 => Change::Set(Object::Peer(objects::peer(number, mode))),
            2 => Change::Remove(ObjectKey::Peer(char::from(b'a' + number).to_string())),
            3 => Change::Set(Object::Endpoint(objects::local_pod(pod, number % WORKERS))),
            4 => Change::Set(Object::Endpoint(objects::remote_pod(number, pod))),
            5 => Change::Remove(ObjectKey::Endpoint(objects::pod_name(number, pod))),
            _ => {
                // A pod of one node at another.
                let mut moved = objects::remote_pod(1 + number % 2, pod);
                moved.name = objects::pod_name(0, pod);
                Change::Set(Object::Endpoint(moved))
            }
        });
    }
    changes
}

/// A frame that is right, and then changed: patches of one byte each, and perhaps cut.
fn frame(input: &mut Input<'_>, place: &Place) -> Vec<u8> {
    let family = usize::from(input.below(2));
    let (from, to) = (input.byte(), input.byte());
    let body = [17, 6, 1, 58][usize::from(input.below(4))];
    let len = input.word() % 1600;
    let choice = input.byte();
    let ttl = [64, 1, 2, 255][usize::from(choice % 4)];
    let mut packet = ip(family, from, to, body, len, ttl);
    if choice >> 6 == 3 {
        into_fragment(&mut packet, choice >> 2 & 15);
    }
    let macs = match place {
        Place::Pod(name) => {
            let pod = (0..3).find(|pod| objects::pod_name(0, *pod) == *name).unwrap_or_default();
            (objects::pod_mac(0, pod), objects::gateway_mac(0))
        }
        _ => (NEXT_HOP_MAC, UPLINK_MAC),
    };
    if matches!(place, Place::Uplink(_)) && !input.byte().is_multiple_of(4) {
        let mut inner = in_frame((objects::gateway_mac(1), objects::gateway_mac(0)), &packet);
        patch(&mut inner, input);
        packet = tunnel(input, &inner);
    }
    let mut frame = in_frame(macs, &packet);
    patch(&mut frame, input);
    frame
}

fn patch(frame: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..input.below(4) {
        let at = input.word() % frame.len().max(1);
        let value = input.byte();
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
    }
    // Headers that were patched are right again more often than not: wrong ones end early.
    if !input.byte().is_multiple_of(8) {
        mend(frame);
    }
    if input.byte() % 16 == 1 {
        frame.truncate(input.word() % frame.len().max(1));
    }
}

/// Makes the IPv4 header's checksum right.
fn mend(frame: &mut [u8]) {
    let Some(ip) = frame.get_mut(ethernet::HEADER_LEN..) else { return };
    let len = usize::from(ip.first().copied().unwrap_or_default() & 15) * 4;
    if let Some(header) = ip.get_mut(..len).filter(|_| len >= ipv4::MIN_HEADER_LEN) {
        checksum::compute(header, 10, 0);
    }
}

fn in_frame((source, destination): (MacAddr, MacAddr), packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|byte| byte >> 4 == 6) {
        ethernet::ETHERTYPE_IPV6
    } else {
        ethernet::ETHERTYPE_IPV4
    };
    let mut frame = vec![0; ethernet::HEADER_LEN];
    if let Some(header) = frame.first_chunk_mut() {
        ethernet::write(header, destination, source, ethertype);
    }
    frame.extend(packet);
    frame
}

/// An IP packet between two addresses of the cluster, with `len` bytes behind its header.
fn ip(family: usize, from: u8, to: u8, protocol: u8, len: usize, ttl: u8) -> Vec<u8> {
    let (Some(from), Some(to)) = (address(from, family), address(to, family)) else {
        return Vec::new();
    };
    let len16 = u16::try_from(len).unwrap_or_default();
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; ipv4::MIN_HEADER_LEN];
            ipv4::Ipv4Header {
                tos: 0,
                total_len: len16 + 20,
                identification: 1,
                fragment: 0,
                ttl,
                protocol,
                source,
                destination,
            }
            .write(&mut header);
            packet.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = [0; ipv6::HEADER_LEN];
            ipv6::Ipv6Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: len16,
                next_header: protocol,
                hop_limit: ttl,
                source,
                destination,
            }
            .write(&mut header);
            packet.extend(header);
        }
        _ => return Vec::new(),
    }
    packet.resize(packet.len() + len, 8);
    packet
}

/// Makes a part of a packet of it: the first, a middle or the last one, of one of four packets.
fn into_fragment(packet: &mut Vec<u8>, choice: u8) {
    let (offset, more) = [(0, true), (64, true), (64, false), (1, false)][usize::from(choice % 4)];
    let identification = u32::from(choice / 4);
    if packet.first().is_some_and(|byte| byte >> 4 == 6) {
        let Some(next) = packet.get_mut(6) else { return };
        let upper = std::mem::replace(next, protocol::FRAGMENT);
        let mut header = [0; FRAGMENT_HEADER_LEN];
        FragmentInfo { offset, more, identification }.write(&mut header, upper);
        packet.splice(ipv6::HEADER_LEN..ipv6::HEADER_LEN, header);
        let len = u16::try_from(packet.len() - ipv6::HEADER_LEN).unwrap_or_default();
        if let Some(field) = packet.get_mut(4..6) {
            field.copy_from_slice(&len.to_be_bytes());
        }
    } else if let Some(header) = packet.get_mut(..ipv4::MIN_HEADER_LEN) {
        let field = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        header[5] = choice / 4;
        header[6..8].copy_from_slice(&field.to_be_bytes());
        checksum::compute(header, 10, 0);
    }
}

/// The outer IP packet of a tunnel from a peer, without a UDP checksum.
fn tunnel(input: &mut Input<'_>, inner: &[u8]) -> Vec<u8> {
    let is_vxlan = input.byte() % 2 == 1;
    let (port, header): (u16, [u8; 8]) = if is_vxlan {
        (4789, [8, 0, 0, 0, 0, 0x0c, 0xe5, 0])
    } else {
        (6081, [0, 0, 0x65, 0x58, 0, 0x0c, 0xe5, 0])
    };
    // Node b or c to node a.
    let peer = if is_vxlan { 2 + 4 * 2 } else { 2 + 4 };
    let udp_len = 8 + header.len() + inner.len();
    let family = usize::from(input.byte().is_multiple_of(8));
    let mut packet = ip(family, peer, 2, 17, udp_len, 64);
    let at = packet.len() - udp_len;
    if let Some(udp) = packet.get_mut(at..) {
        udp[..2].copy_from_slice(&50_000_u16.to_be_bytes());
        udp[2..4].copy_from_slice(&port.to_be_bytes());
        udp[4..6].copy_from_slice(&u16::try_from(udp_len).unwrap_or_default().to_be_bytes());
        udp[6..8].fill(0);
        udp[8..16].copy_from_slice(&header);
        udp[16..].copy_from_slice(inner);
    }
    packet
}
