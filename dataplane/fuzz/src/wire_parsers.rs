//! Every parser of the wire layer, on the same bytes.

use overlane_dataplane::wire::checksum;
use overlane_dataplane::wire::ecn::Ecn;
use overlane_dataplane::wire::ethernet::{self, Ethernet};
use overlane_dataplane::wire::icmpv6::{self, Icmpv6, Neighbor};
use overlane_dataplane::wire::ipv4::{self, Ipv4};
use overlane_dataplane::wire::ipv6::{self, Ipv6};
use overlane_dataplane::wire::{
    arp::Arp, icmpv4::Icmpv4, sctp, sctp::Sctp, tcp, tcp::Tcp, udp, udp::Udp, vxlan, vxlan::Vxlan,
};

/// Gives `bytes` to every parser, and the payload of the link and network layer on to the next. What a
/// view shows must be inside of its bytes, and what is changed in place must stay what it was.
pub fn wire_parsers(bytes: &[u8]) {
    link(bytes);
    network(bytes);
    transport(bytes);
    if let Ok(frame) = Ethernet::parse(bytes) {
        network(frame.payload());
    }
    let _ = checksum::verify_l4(bytes);
}

fn link(bytes: &[u8]) {
    if let Ok(frame) = Ethernet::parse(bytes) {
        let mut header = [0xa5; ethernet::HEADER_LEN];
        ethernet::write(&mut header, frame.destination(), frame.source(), frame.ethertype());
        assert_eq!(header, bytes[..ethernet::HEADER_LEN]);
        assert_eq!(frame.payload().len(), bytes.len() - ethernet::HEADER_LEN);
    }
    if let Ok(message) = Arp::parse(bytes) {
        let mut written = [0xa5; 28];
        message.message().write(&mut written);
        assert_eq!(written, bytes[..28]);
    }
    if let Ok(view) = Vxlan::parse(bytes) {
        let mut header = [0xa5; vxlan::HEADER_LEN];
        vxlan::write_header(&mut header, view.vni());
        assert_eq!(header == bytes[..vxlan::HEADER_LEN], !view.reserved_bits_set());
    }
}

fn network(bytes: &[u8]) {
    if let Ok(ip) = Ipv4::parse(bytes) {
        assert_eq!(ip.packet().len(), usize::from(ip.total_len()));
        assert_eq!(&bytes[ip.payload_range()], ip.payload());
        assert_eq!(ip.options().len() + 20, ip.header_len());
        assert!(!(ip.is_first_fragment() && ip.is_later_fragment()));
        change_ipv4(ip);
        if !ip.is_later_fragment() {
            transport(ip.payload());
        }
    }
    if let Ok(ip) = Ipv6::parse(bytes) {
        assert_eq!(ip.packet_len(), ipv6::HEADER_LEN + usize::from(ip.payload_len()));
        assert_eq!(&bytes[ip.payload_range()], ip.payload());
        change_ipv6(ip);
        if let Ok(upper) = ip.upper_layer() {
            assert!((ipv6::HEADER_LEN..=ip.packet_len()).contains(&upper.offset));
            transport(&ip.packet()[upper.offset..]);
        }
    }
    // What an ICMP error quotes is read alike, and never reaches past the quote.
    if let Ok(ip) = Ipv4::parse_quoted(bytes) {
        assert!(ip.packet().len() <= bytes.len() && ip.header_len() <= ip.packet().len());
        let _ = tcp::ports(ip.payload());
    }
    if let Ok(ip) = Ipv6::parse_quoted(bytes) {
        assert!(ip.packet_len() <= bytes.len());
        if let Ok(upper) = ip.upper_layer() {
            assert!(upper.offset <= ip.packet_len());
        }
    }
}

/// A header whose checksum was right has a right one after each change, and the other way round.
fn change_ipv4(ip: Ipv4<'_>) {
    let mut packet = ip.packet().to_vec();
    let right = ip.verify_checksum();
    let ttl = ip.ttl().saturating_sub(1);
    if ip.ttl() != 0 {
        ipv4::lower_ttl(packet.first_chunk_mut().expect("it was parsed"), ttl);
    }
    assert!(ipv4::set_ecn(&mut packet, Ecn::Ce));
    let changed = Ipv4::parse(&packet).expect("no length has changed");
    assert_eq!(changed.ttl(), ttl);
    assert_eq!((changed.dscp(), changed.ecn()), (ip.dscp(), Ecn::Ce));
    assert_eq!(changed.verify_checksum(), right);
    assert_eq!(changed.payload(), ip.payload());
}

fn change_ipv6(ip: Ipv6<'_>) {
    let mut packet = ip.packet().to_vec();
    let hop_limit = ip.hop_limit().wrapping_sub(1);
    ipv6::set_hop_limit(packet.first_chunk_mut::<40>().expect("it was parsed"), hop_limit);
    assert!(ipv6::set_ecn(&mut packet, Ecn::Ect1));
    let changed = Ipv6::parse(&packet).expect("no length has changed");
    assert_eq!((changed.dscp(), changed.ecn()), (ip.dscp(), Ecn::Ect1));
    assert_eq!(changed.flow_label(), ip.flow_label());
    assert_eq!(changed.payload(), ip.payload());
    // The transport checksum covers neither of the two.
    let (before, after) = (checksum::verify_l4(ip.packet()), checksum::verify_l4(&packet));
    assert_eq!(before, after);
}

fn transport(bytes: &[u8]) {
    if let Ok(view) = Sctp::parse(bytes) {
        assert_eq!(view.payload().len() + sctp::HEADER_LEN, bytes.len());
        if let Some(first) = view.first_chunk() {
            assert!(usize::from(first.length) <= view.payload().len());
        }
        change_sctp(view, bytes);
    }
    if let Ok(udp) = Udp::parse(bytes) {
        assert_eq!(udp.datagram().len(), usize::from(udp.length()));
        assert_eq!(udp.payload().len() + udp::HEADER_LEN, udp.datagram().len());
    }
    if let Ok(udp) = Udp::parse_quoted(bytes) {
        assert!(udp.datagram().len() <= bytes.len());
    }
    if let Ok(tcp) = Tcp::parse(bytes) {
        assert_eq!(tcp.header_len() + tcp.payload().len(), bytes.len());
        assert_eq!(tcp::ports(bytes), Ok((tcp.source_port(), tcp.destination_port())));
        complete(bytes, tcp::CHECKSUM_OFFSET);
    }
    if let Ok(message) = Icmpv4::parse(bytes) {
        assert_eq!(message.payload().len() + 8, bytes.len());
    }
    if let Ok(message) = Icmpv6::parse(bytes) {
        assert_eq!(message.payload().len() + icmpv6::HEADER_LEN, bytes.len());
    }
    if let Ok(message) = Neighbor::parse(bytes) {
        let read: usize = message.options().flatten().map(|option| option.data.len() + 2).sum();
        assert!(read <= bytes.len() - icmpv6::NEIGHBOR_LEN);
        let broken = message.options().any(|option| option.is_err());
        assert_eq!(message.link_layer_address(icmpv6::OPTION_SOURCE_ADDRESS).is_err(), broken);
    }
}

/// A finished checksum must be right for the pseudo-header's sum that stood in its field.
fn complete(segment: &[u8], offset: usize) {
    let field = u16::from_be_bytes([segment[offset], segment[offset + 1]]);
    let pseudo = u64::from(field);
    assert!(checksum::is_partial(field, pseudo));
    let mut finished = segment.to_vec();
    assert!(checksum::complete_partial(&mut finished, offset));
    assert_eq!(checksum::fold(checksum::sum(&finished, pseudo)), 0xffff);
    let mut computed = segment.to_vec();
    assert!(checksum::compute(&mut computed, offset, pseudo));
    assert_eq!(finished, computed);
}

/// A packet whose checksum was right has a right one after its ports have changed, and the other way
/// round.
fn change_sctp(view: Sctp<'_>, bytes: &[u8]) {
    let Ok(length) = u16::try_from(bytes.len()) else { return };
    let (old, new) = ((view.source_port(), view.destination_port()), (4660, 22136));
    let mut packet = bytes.to_vec();
    let mut header = sctp::SctpMut::new(&mut packet).expect("it was parsed");
    header.set_source_port(new.0);
    header.set_destination_port(new.1);
    header.adjust_checksum(sctp::ports_difference(old, new), length);
    let after = Sctp::parse(&packet).expect("it was parsed");
    assert_eq!(after.verify_checksum(), view.verify_checksum());
}
