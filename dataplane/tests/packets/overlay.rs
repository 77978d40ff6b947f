//! Pod to pod on another node and back, in every mode.

use overlane_api::{Mode, Underlay};
use overlane_dataplane::testing::{MemoryNode, node, objects};

use super::build::{sliced, udp};

#[test]
fn a_packet_to_a_pod_of_another_node_leaves_in_a_tunnel() {
    for (mode, underlay, port) in [
        (Mode::Geneve, Underlay::Ipv4, 6081),
        (Mode::Geneve, Underlay::Ipv6, 6081),
        (Mode::Vxlan, Underlay::Ipv4, 4789),
        (Mode::Vxlan, Underlay::Ipv6, 4789),
    ] {
        for family in 0..2 {
            let mut n = MemoryNode::new(1, objects::cluster(mode, underlay, 1));
            let (source, destination) =
                (objects::pod_addresses(0, 0)[family], objects::pod_addresses(1, 0)[family]);
            let macs = (objects::pod_mac(0, 0), objects::gateway_mac(0));
            let frame = udp(macs, (source, destination), (1000, 2000), 64, b"hello");
            assert!(n.from_pod("default/a-pod1", &frame));
            n.run();
            let out = n.to_any_uplink();
            assert_eq!(out.len(), 1, "{mode} {underlay:?}: {:?}", n.drops());
            let outer = sliced(&out[0]);
            let etherparse::TransportSlice::Udp(header) = outer.transport.unwrap() else {
                panic!("UDP")
            };
            assert_eq!(header.destination_port(), port);
            assert!(header.source_port() >= 49152);
            let inner = &header.payload()[8..];
            let expected = udp(
                (objects::gateway_mac(0), objects::gateway_mac(1)),
                (source, destination),
                (1000, 2000),
                63,
                b"hello",
            );
            assert_eq!(inner, expected);
            let counters = n.counters();
            assert_eq!((counters.received, counters.sent), (1, 1));

            // And back: what b sends arrives at the pod with TTL one less.
            let mut reply = out[0].clone();
            let reply = reverse(&mut reply, underlay, mode, family);
            assert!(n.from_uplink(0, &reply));
            n.run();
            let delivered = n.to_pod("default/a-pod1");
            assert_eq!(delivered.len(), 1, "{mode} {underlay:?}: {:?}", n.drops());
            let expected = udp(
                (objects::gateway_mac(0), objects::pod_mac(0, 0)),
                (destination, source),
                (2000, 1000),
                62,
                b"world",
            );
            assert_eq!(delivered[0], expected);
            n.close().unwrap();
        }
    }
}

/// What peer b would send back.
fn reverse(_: &mut [u8], underlay: Underlay, mode: Mode, family: usize) -> Vec<u8> {
    let inner = udp(
        (objects::gateway_mac(1), objects::gateway_mac(0)),
        (objects::pod_addresses(1, 0)[family], objects::pod_addresses(0, 0)[family]),
        (2000, 1000),
        63,
        b"world",
    );
    let header: [u8; 8] = match mode {
        Mode::Vxlan => [8, 0, 0, 0, 0, 0x0c, 0xe5, 0],
        _ => [0, 0, 0x65, 0x58, 0, 0x0c, 0xe5, 0],
    };
    let port = if mode == Mode::Vxlan { 4789 } else { 6081 };
    let which = usize::from(underlay == Underlay::Ipv6);
    udp(
        (node::NEXT_HOP_MAC, node::UPLINK_MAC),
        (objects::node_addresses(1)[which], objects::node_addresses(0)[which]),
        (50_000, port),
        64,
        &[&header[..], &inner].concat(),
    )
}
