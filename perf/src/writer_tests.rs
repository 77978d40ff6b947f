//! Every frame against etherparse, which reads it without a line of ours.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlane_api::{Mode, Vni};
use proptest::prelude::*;

use super::*;
use crate::traffic::{Order, Side, Size, Tunnel};

const MACS: (MacAddr, MacAddr) = (MacAddr([2, 1, 1, 1, 1, 1]), MacAddr([2, 2, 2, 2, 2, 2]));

fn side(mac: MacAddr, v6: bool, last: u32) -> Side {
    let address: IpAddr = if v6 {
        Ipv6Addr::from_bits((0xfd00_0001_0002_0003_0004 << 48) + u128::from(last)).into()
    } else {
        Ipv4Addr::from_bits(0x0a00_0000 + (last & 0xff_ffff)).into()
    };
    Side { mac, address, addresses: 200, port: 1000, ports: 300 }
}

prop_compose! {
    fn tunnel_of()(geneve: bool, v6: bool, vni in 0..1_u32 << 24, port in 1..u16::MAX) -> Tunnel {
        let side = |last| side(MACS.0, v6, last).address;
        Tunnel {
            mode: if geneve { Mode::Geneve } else { Mode::Vxlan },
            vni: Vni::new(vni).unwrap(),
            macs: (MACS.1, MACS.0),
            addresses: (side(7), side(9)),
            port,
        }
    }
}

prop_compose! {
    fn traffic()(
        v6: bool,
        syn: bool,
        from in 0..0xff_ff00_u32,
        to in 0..0xff_ff00_u32,
        flows in 1..3_600_000_u32,
        size in prop_oneof![Just(Size::Imix), (64..=1518_u16).prop_map(Size::Bytes)],
        order in prop_oneof![Just(Order::Random), Just(Order::InOrder)],
        vlan in proptest::option::of(1..4095_u16),
        stamp: bool,
        tunnel in proptest::option::of(tunnel_of()),
    ) -> Traffic {
        let mut traffic = Traffic::new(side(MACS.0, v6, from), side(MACS.1, v6, to));
        traffic.protocol = if syn { Protocol::TcpSyn } else { Protocol::Udp };
        traffic.size = if syn { Size::Bytes(64) } else { size };
        (traffic.flows, traffic.order) = (flows, order);
        (traffic.vlan, traffic.stamp, traffic.tunnel) = (vlan, stamp, tunnel);
        traffic
    }
}

/// Checks Ethernet, IP and transport of a whole frame; returns ports and the transport's payload.
fn read(frame: &[u8], vlan: Option<u16>) -> (IpAddr, IpAddr, u16, u16, &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let tag = packet.vlan_ids().first().map(|id| id.value());
    assert_eq!(tag, vlan);
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.source.into(), header.destination.into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source().into(), ip.header().destination().into()),
        other => panic!("{other:?}"),
    };
    match packet.transport.as_ref().unwrap() {
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            if !(header.checksum == 0 && from.is_ipv4()) {
                let sum = match (from, to) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        header.calc_checksum_ipv4_raw(a.octets(), b.octets(), payload)
                    }
                    (IpAddr::V6(a), IpAddr::V6(b)) => {
                        header.calc_checksum_ipv6_raw(a.octets(), b.octets(), payload)
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(header.checksum, sum.unwrap());
            }
            (from, to, header.source_port, header.destination_port, payload)
        }
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            assert!(header.syn && !header.ack && !header.rst && !header.fin);
            let sum = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), tcp.payload())
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), tcp.payload())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(header.checksum, sum.unwrap());
            (from, to, header.source_port, header.destination_port, tcp.payload())
        }
        other => panic!("{other:?}"),
    }
}

/// The inner frame of a packet in a tunnel, whose outer headers are checked.
fn open<'a>(traffic: &Traffic, tunnel: &Tunnel, flow: u32, frame: &'a [u8]) -> &'a [u8] {
    let (from, to, from_port, to_port, payload) = read(frame, None);
    assert_eq!(((from, to), to_port), (tunnel.addresses, tunnel.port));
    assert_eq!(from_port, Traffic::outer_port(flow));
    assert!(traffic.tunnel.is_some() && from_port >= 49_152);
    let vni = u32::from_be_bytes([0, payload[4], payload[5], payload[6]]);
    assert_eq!(Some(tunnel.vni), Vni::new(vni).ok());
    match tunnel.mode {
        Mode::Geneve => assert_eq!(payload[..4], [0, 0, 0x65, 0x58]),
        _ => assert_eq!(payload[..4], [8, 0, 0, 0]),
    }
    &payload[8..]
}

proptest! {
    #[test]
    fn every_frame_is_one_that_etherparse_reads(traffic in traffic(), noise: u8, now: u64) {
        let mut writer = FrameWriter::new(&traffic).unwrap();
        let mut picks = Picks::new(traffic.flows, traffic.order);
        let mut sequence = 0;
        let classes = traffic.size.classes();
        for turn in 0..24 {
            // What was in the memory before must not show.
            let mut memory = vec![noise; 2048];
            let len = writer.next(&mut memory, now + turn).unwrap();
            prop_assert!(memory[len..].iter().all(|&byte| byte == noise));
            prop_assert!(len <= writer.largest());
            let flow = picks.draw();
            let frame = &memory[..len];
            let inner = match &traffic.tunnel {
                Some(tunnel) => open(&traffic, tunnel, flow, frame),
                None => frame,
            };
            let size = classes[usize::from(traffic.size.pattern()[turn as usize % traffic.size.pattern().len()])];
            let headers = writer.layout.headers - (len - inner.len());
            prop_assert_eq!(inner.len(), (usize::from(size) - 4).max(headers));
            let (from, to, from_port, to_port, payload) = read(inner, traffic.vlan);
            prop_assert_eq!(((from, from_port), (to, to_port)), traffic.flow(flow));
            let wanted = traffic.stamp && payload.len() >= Stamp::LEN;
            // At the end of the whole frame, whatever is around it.
            let stamp = Stamp { sequence, nanoseconds: now + turn };
            prop_assert_eq!(Stamp::read(frame), wanted.then_some(stamp));
            let patterned = payload.len() - if wanted { Stamp::LEN } else { 0 };
            prop_assert!((0..patterned).all(|at| payload[at] == payload_byte(at)));
            sequence += u64::from(wanted);
            prop_assert_eq!(writer.sequence(), sequence);
        }
    }
}

#[test]
fn the_shortest_ipv4_frame_has_just_room_for_a_stamp() {
    let traffic = Traffic::new(side(MACS.0, false, 1), side(MACS.1, false, 2));
    let writer = FrameWriter::new(&traffic).unwrap();
    assert!(writer.all_stamped() && writer.largest() == 60);
    let tagged = FrameWriter::new(&Traffic { vlan: Some(5), ..traffic }).unwrap();
    assert!(!tagged.all_stamped());
    let v6 = Traffic::new(side(MACS.0, true, 1), side(MACS.1, true, 2));
    let writer = FrameWriter::new(&v6).unwrap();
    assert!(!writer.all_stamped() && writer.largest() == 62);
    let large = FrameWriter::new(&Traffic { size: Size::Bytes(84), ..v6 }).unwrap();
    assert!(large.all_stamped());
}

#[test]
fn a_changed_byte_is_seen() {
    // The witness must be able to fail.
    let traffic = Traffic::new(side(MACS.0, false, 1), side(MACS.1, false, 2));
    let mut frame = vec![0; 60];
    FrameWriter::new(&traffic).unwrap().next(&mut frame, 1).unwrap();
    read(&frame, None);
    for at in 14..60 {
        let mut changed = frame.clone();
        changed[at] ^= 1;
        let seen = std::panic::catch_unwind(|| read(&changed, None));
        let length_field = [38, 39].contains(&at);
        assert!(seen.is_err() || length_field, "byte {at}");
    }
}

#[test]
fn what_does_not_fit_is_not_written() {
    let traffic = Traffic::new(side(MACS.0, false, 1), side(MACS.1, false, 2));
    let mut writer = FrameWriter::new(&traffic).unwrap();
    assert_eq!(writer.next(&mut [0; 59], 0), None);
    assert_eq!(writer.next(&mut [0; 60], 0), Some(60));
}
