//! The short way for plain packets and the long way for all: they must not differ.

use etherparse::PacketBuilder;
use overlane_api::{Change, MacAddr, Mode, Object, Underlay, WorkerId};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::sync::Arc;

use super::*;
use crate::flow::flows::Flows;
use crate::io::memory::MemoryUmem;
use crate::packet::meta::Origin;
use crate::packet::pool::{FramePool, UmemId};
use crate::stages::Notices;
use crate::stages::transmit::icmp_error::RateLimit;
use crate::tables::Snapshot;
use crate::tables::compile::{Binding, Compiler};
use crate::tables::host_ports::HostPorts;
use crate::testing::{node, objects};

/// What a context borrows.
struct Rig {
    tables: Snapshot,
    pool: FramePool,
    made: Vector,
    flows: Flows,
    icmp_limit: RateLimit,
    notices: Notices,
    link_messages: bool,
    finished: Vec<u64>,
}

impl Rig {
    fn new(underlay: Underlay) -> Self {
        let mut compiler = Compiler::new(1);
        compiler.apply(objects::cluster(Mode::Geneve, underlay, 1)).unwrap();
        // A peer that speaks the other tunnel.
        let other = Change::Set(Object::Peer(objects::peer(3, Mode::Vxlan)));
        compiler.apply(vec![other]).unwrap();
        let mac = objects::pod_mac(0, 0);
        let binding = Binding { port: PortId(0), queues: 1, worker: WorkerId(0), mac, mtu: 1450 };
        compiler.bind_endpoint(&objects::pod_name(0, 0), Some(binding));
        Self {
            tables: compiler.snapshot(),
            pool: FramePool::new(MemoryUmem::new(UmemId(0), 64), 0),
            made: Vector::default(),
            flows: Flows::new(WorkerId(0), 64).unwrap(),
            icmp_limit: RateLimit::new(),
            notices: Notices::new(),
            link_messages: false,
            finished: vec![0; 4],
        }
    }

    fn give(&mut self, frames: impl IntoIterator<Item = Frame>) {
        for frame in frames {
            self.pool.give(frame);
        }
        self.link_messages = false;
        self.finished.fill(0);
    }

    fn frame(&mut self, bytes: &[u8]) -> Frame {
        let mut frame = self.pool.take().unwrap();
        frame.fill(bytes).unwrap();
        frame
    }

    /// A vector with this frame, as it has come to the uplink.
    fn arrived(&mut self, bytes: &[u8]) -> Vector {
        let mut vector = Vector::default();
        vector.frames.push(self.frame(bytes));
        vector.meta.push(Meta::new(PortId(9), Origin::Uplink));
        vector
    }

    fn with<T>(&mut self, run: impl FnOnce(&mut Context<'_>) -> T) -> T {
        run(&mut Context {
            tables: &self.tables,
            worker: WorkerId(0),
            now_ns: 0,
            pool: &mut self.pool,
            made: &mut self.made,
            flows: &mut self.flows,
            first_fragments: &mut crate::stages::FirstFragments::new(),
            icmp_limit: &mut self.icmp_limit,
            notices: &mut self.notices,
            link_messages: &mut self.link_messages,
            finished_checksums: &mut self.finished,
        })
    }
}

/// A packet of pod 0 here to the pod of node b, or back; with Ethernet padding.
fn packet(
    back: bool,
    tcp: bool,
    macs: (MacAddr, MacAddr),
    payload: usize,
    padding: usize,
) -> Vec<u8> {
    let v4 = |node: u8| match objects::pod_addresses(node, 0)[0] {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!("the first is IPv4"),
    };
    let (from, to) = if back { (v4(1), v4(0)) } else { (v4(0), v4(1)) };
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0).ipv4(from, to, 64);
    let mut bytes = Vec::new();
    let payload = vec![7; payload];
    if tcp {
        builder.tcp(1000, 2000, 1, 500).write(&mut bytes, &payload).unwrap();
    } else {
        builder.udp(1000, 2000).write(&mut bytes, &payload).unwrap();
    }
    bytes.extend(vec![0; padding]);
    bytes
}

/// The packet in a tunnel from node b, UDP checksum absent.
fn tunnelled(inner: &[u8], vxlan: bool) -> Vec<u8> {
    let v4 = |node: u8| match objects::node_addresses(node)[0] {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!("the first is IPv4"),
    };
    let vni = objects::VNI.to_be_bytes();
    let port = if vxlan { 4789 } else { 6081 };
    let start = if vxlan { [8, 0, 0, 0] } else { [0, 0, 0x65, 0x58] };
    let header = [&start[..], &[vni[1], vni[2], vni[3], 0]].concat();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(node::NEXT_HOP_MAC.0, node::UPLINK_MAC.0)
        .ipv4(v4(if vxlan { 3 } else { 1 }), v4(0), 64)
        .udp(50_000, port)
        .write(&mut bytes, &[&header, inner].concat())
        .unwrap();
    bytes[40..42].fill(0);
    bytes
}

/// Bytes to change, by place and value; half of them mended by a right header checksum.
fn changes(upto: usize) -> impl Strategy<Value = (Vec<(usize, u8)>, bool)> {
    (prop::collection::vec((0..upto, any::<u8>()), 0..3), any::<bool>())
}

fn mend(bytes: &mut [u8], at: usize) {
    bytes[at + 10..at + 12].fill(0);
    let sum = crate::wire::checksum::finish(crate::wire::checksum::sum(&bytes[at..at + 20], 0));
    bytes[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Runs `test` on many inputs, with one rig: making one takes longer than all a test does with it.
fn for_all<S: Strategy>(
    inputs: &S,
    test: impl Fn(&mut Rig, S::Value) -> Result<(), TestCaseError>,
) {
    for_all_over(Underlay::Ipv4, inputs, test);
}

/// As [`for_all`], with tunnels over a family.
fn for_all_over<S: Strategy>(
    underlay: Underlay,
    inputs: &S,
    test: impl Fn(&mut Rig, S::Value) -> Result<(), TestCaseError>,
) {
    let rig = RefCell::new(Rig::new(underlay));
    let config = ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() };
    TestRunner::new(config).run(inputs, |input| test(&mut rig.borrow_mut(), input)).unwrap();
}

#[test]
fn what_takes_the_short_way_from_a_pod_would_pass_the_long_one() {
    let inputs = (any::<bool>(), 0_usize..40, 0_usize..8, changes(56), any::<bool>());
    for_all(&inputs, |rig, (tcp, payload, padding, (changed, mended), partial)| {
        let macs = (objects::pod_mac(0, 0), objects::gateway_mac(0));
        let mut bytes = packet(false, tcp, macs, payload, padding);
        if partial {
            let sum = Simple::read(&bytes).unwrap();
            let len = usize::from(sum.total_len()) - 20;
            let pseudo = crate::wire::peek::pseudo_v4(&bytes[14..], sum.protocol(), len);
            let at = if tcp { 50 } else { 40 };
            let field = crate::wire::checksum::fold(pseudo);
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
        for (at, value) in &changed {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = *value;
            }
        }
        if mended {
            mend(&mut bytes, 14);
        }
        let (mut short, mut long) = (rig.frame(&bytes), rig.frame(&bytes));
        let mut short_meta = Meta::new(PortId(0), Origin::Endpoint);
        let mut long_meta = short_meta;
        let tables = rig.tables.clone();
        let sender = source_check::Sender::of(PortId(0), &tables);
        let is_short = rig.with(|cx| is_plain(&mut short, &mut short_meta, &sender, cx));
        let passed = rig.with(|cx| parse_and_check(&mut long, &mut long_meta, &sender, cx));
        if is_short {
            prop_assert_eq!(passed, Ok(()));
            prop_assert_eq!(short_meta, long_meta);
            prop_assert_eq!(short.bytes(), long.bytes());
            prop_assert_eq!(&rig.finished, &[0, 0, 0, 0]);
        }
        // Nothing but the change can have kept it from the short way.
        prop_assert!(is_short || partial || !changed.is_empty());
        rig.give([short, long]);
        Ok(())
    });
}

#[test]
fn what_takes_the_short_way_out_of_a_tunnel_would_pass_the_long_one() {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let inputs = (flags, 0_usize..40, 0_usize..8, changes(110));
    for_all(&inputs, |rig, ((vxlan, tcp, mend_outer), payload, padding, (changed, mended))| {
        let macs = (objects::gateway_mac(1), objects::gateway_mac(0));
        let mut bytes = tunnelled(&packet(true, tcp, macs, payload, padding), vxlan);
        for (at, value) in &changed {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = *value;
            }
        }
        if mended {
            mend(&mut bytes, if mend_outer { 14 } else { 64 });
        }
        let [mut short, mut long] = [0; 2].map(|_| rig.arrived(&bytes));
        rig.with(|cx| {
            decap::phase(&mut short, cx);
            peer_check::phase(&mut short, cx);
            decap::step_by_step(&mut long, cx);
            peer_check::phase(&mut long, cx);
        });
        let plain = short.meta[0].outer_source != 0;
        let (mut got, wanted) = (short.meta[0], long.meta[0]);
        (got.outer_source, got.tunnel) = (wanted.outer_source, wanted.tunnel);
        prop_assert_eq!(got, wanted);
        prop_assert_eq!(short.frames[0].bytes(), long.frames[0].bytes());
        // Node d sends what is node b's, and is looked at again. Otherwise, nothing but a change
        // can have kept it from the short way.
        prop_assert!(plain || vxlan || !changed.is_empty());
        rig.give(short.frames.drain(..).chain(long.frames.drain(..)));
        Ok(())
    });
}

#[test]
fn what_takes_the_short_way_to_a_port_of_ours_would_pass_the_long_one() {
    let owners = (any::<bool>(), any::<bool>(), 0_u16..3);
    let inputs = (owners, 0_usize..40, 0_usize..8, changes(56), any::<bool>());
    for_all(
        &inputs,
        |rig, ((tcp, elsewhere, beside), payload, padding, (changed, mended), listens)| {
            let own = rig.tables.external.addresses().next().unwrap();
            let owner = WorkerId(u8::from(elsewhere));
            let block = own.ports.claim(owner, 0);
            let first = block.map_or(own.ports.range().first(), |block| block.first_port());
            let port = first.wrapping_add(beside * 5000);
            if listens {
                rig.tables.host_ports = Arc::new(HostPorts::from_iter([port]));
            }
            let std::net::IpAddr::V4(address) = own.address else {
                unreachable!("the first is IPv4")
            };
            let builder = PacketBuilder::ethernet2(node::NEXT_HOP_MAC.0, node::UPLINK_MAC.0).ipv4(
                [203, 0, 113, 10],
                address.octets(),
                60,
            );
            let (mut bytes, data) = (Vec::new(), vec![7; payload]);
            if tcp {
                builder.tcp(443, port, 1, 500).write(&mut bytes, &data).unwrap();
            } else {
                builder.udp(443, port).write(&mut bytes, &data).unwrap();
            }
            bytes.extend(vec![0; padding]);
            for (at, value) in &changed {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte = *value;
                }
            }
            if mended {
                mend(&mut bytes, 14);
            }
            let [mut short, mut long] = [0; 2].map(|_| rig.arrived(&bytes));
            let mine = rig.tables.external.owner_v4(address.to_bits(), port) == Some(WorkerId(0));
            rig.with(|cx| {
                decap::phase(&mut short, cx);
                decap::step_by_step(&mut long, cx);
            });
            prop_assert_eq!(short.meta[0], long.meta[0]);
            prop_assert_eq!(short.frames[0].bytes(), long.frames[0].bytes());
            if changed.is_empty() {
                prop_assert_eq!(
                    short.meta[0].is_answer && short.meta[0].is_pending(),
                    mine && !listens
                );
            }
            rig.tables.host_ports = Arc::default();
            rig.give(short.frames.drain(..).chain(long.frames.drain(..)));
            Ok(())
        },
    );
}

/// As [`packet`], over IPv6.
fn packet6(back: bool, tcp: bool, macs: (MacAddr, MacAddr), payload: usize) -> Vec<u8> {
    let v6 = |node: u8| match objects::pod_addresses(node, 0)[1] {
        std::net::IpAddr::V6(address) => address.octets(),
        std::net::IpAddr::V4(_) => unreachable!("the second is IPv6"),
    };
    let (from, to) = if back { (v6(1), v6(0)) } else { (v6(0), v6(1)) };
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0).ipv6(from, to, 64);
    let (mut bytes, payload) = (Vec::new(), vec![7; payload]);
    if tcp {
        builder.tcp(1000, 2000, 1, 500).write(&mut bytes, &payload).unwrap();
    } else {
        builder.udp(1000, 2000).write(&mut bytes, &payload).unwrap();
    }
    bytes
}

/// The packet in a tunnel over IPv6 from node b, or of another kind from node d.
fn tunnelled6(inner: &[u8], vxlan: bool) -> Vec<u8> {
    let v6 = |node: u8| match objects::node_addresses(node)[1] {
        std::net::IpAddr::V6(address) => address.octets(),
        std::net::IpAddr::V4(_) => unreachable!("the second is IPv6"),
    };
    let vni = objects::VNI.to_be_bytes();
    let port = if vxlan { 4789 } else { 6081 };
    let start = if vxlan { [8, 0, 0, 0] } else { [0, 0, 0x65, 0x58] };
    let header = [&start[..], &[vni[1], vni[2], vni[3], 0]].concat();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(node::NEXT_HOP_MAC.0, node::UPLINK_MAC.0)
        .ipv6(v6(if vxlan { 3 } else { 1 }), v6(0), 64)
        .udp(50_000, port)
        .write(&mut bytes, &[&header, inner].concat())
        .unwrap();
    bytes
}

/// Makes the outer UDP checksum right again.
fn mend6(bytes: &mut [u8]) {
    let Some(len) = bytes.len().checked_sub(54) else { return };
    let pseudo = crate::wire::peek::pseudo_v6(&bytes[14..], 17, len);
    crate::wire::checksum::compute(&mut bytes[54..], 6, pseudo);
}

#[test]
fn what_takes_the_short_way_from_a_pod_over_ipv6_would_pass_the_long_one() {
    let inputs = (any::<bool>(), 0_usize..40, 0_usize..8, changes(74), any::<bool>());
    for_all(&inputs, |rig, (tcp, payload, padding, (changed, partial), elsewhere)| {
        let mac = objects::pod_mac(u8::from(elsewhere), 0);
        let mut bytes = packet6(false, tcp, (mac, objects::gateway_mac(0)), payload);
        if partial {
            let simple = Simple6::read(&bytes).unwrap();
            let (protocol, len) = (simple.protocol(), usize::from(simple.payload_len()));
            let pseudo = crate::wire::peek::pseudo_v6(&bytes[14..], protocol, len);
            let at = if tcp { 70 } else { 60 };
            let field = crate::wire::checksum::fold(pseudo);
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
        bytes.extend(vec![0; padding]);
        for (at, value) in &changed {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = *value;
            }
        }
        let (mut short, mut long) = (rig.frame(&bytes), rig.frame(&bytes));
        let mut short_meta = Meta::new(PortId(0), Origin::Endpoint);
        let mut long_meta = short_meta;
        let tables = rig.tables.clone();
        let sender = source_check::Sender::of(PortId(0), &tables);
        let is_short = rig.with(|cx| is_plain(&mut short, &mut short_meta, &sender, cx));
        let passed = rig.with(|cx| parse_and_check(&mut long, &mut long_meta, &sender, cx));
        if is_short {
            prop_assert_eq!(passed, Ok(()));
            prop_assert_eq!(short_meta, long_meta);
            prop_assert_eq!(short.bytes(), long.bytes());
            prop_assert_eq!(&rig.finished, &[0, 0, 0, 0]);
        }
        prop_assert!(is_short || partial || elsewhere || !changed.is_empty());
        rig.give([short, long]);
        Ok(())
    });
}

#[test]
fn what_takes_the_short_way_out_of_a_tunnel_over_ipv6_would_pass_the_long_one() {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let inputs = (flags, 0_usize..40, changes(150));
    let test = |rig: &mut Rig, input| -> Result<(), TestCaseError> {
        let ((vxlan, tcp, is_v4), payload, (changed, mended)): ((_, _, bool), _, (Vec<_>, bool)) =
            input;
        let macs = (objects::gateway_mac(1), objects::gateway_mac(0));
        let inner = if is_v4 {
            packet(true, tcp, macs, payload, 0)
        } else {
            packet6(true, tcp, macs, payload)
        };
        let mut bytes = tunnelled6(&inner, vxlan);
        for (at, value) in &changed {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = *value;
            }
        }
        if mended {
            mend6(&mut bytes);
        }
        let [short, mut short_way, mut long] = [0; 3].map(|_| rig.arrived(&bytes));
        let mut usual = short;
        let is_short = rig.with(|cx| {
            let is_short = usual::is_usual(&mut usual.frames[0], &mut usual.meta[0], cx);
            decap::phase(&mut short_way, cx);
            peer_check::phase(&mut short_way, cx);
            decap::step_by_step(&mut long, cx);
            peer_check::phase(&mut long, cx);
            is_short
        });
        prop_assert_eq!(short_way.meta[0], long.meta[0]);
        prop_assert_eq!(short_way.frames[0].bytes(), long.frames[0].bytes());
        prop_assert!(is_short || !changed.is_empty());
        let frames = usual.frames.drain(..).chain(short_way.frames.drain(..));
        rig.give(frames.chain(long.frames.drain(..)));
        Ok(())
    };
    for_all_over(Underlay::Ipv6, &inputs, test);
}
