//! Builds frames with etherparse and reads them back with it.

use std::net::IpAddr;

use etherparse::{PacketBuilder, SlicedPacket};
use overlane_api::MacAddr;

/// A UDP packet in an Ethernet frame.
pub fn udp(
    (source_mac, destination_mac): (MacAddr, MacAddr),
    (source, destination): (IpAddr, IpAddr),
    (source_port, destination_port): (u16, u16),
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(source_mac.0, destination_mac.0);
    let ip = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), ttl),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), ttl),
        _ => panic!("one family"),
    };
    let packet = ip.udp(source_port, destination_port);
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, payload).unwrap();
    frame
}

/// Parses a frame; a malformed one fails the test.
pub fn sliced(frame: &[u8]) -> SlicedPacket<'_> {
    SlicedPacket::from_ethernet(frame).unwrap()
}
