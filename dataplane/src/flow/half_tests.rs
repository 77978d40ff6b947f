use super::*;
use etherparse::{Icmpv4Header, Icmpv6Header, IpHeaders, PacketBuilder};
use proptest::prelude::*;

#[test]
fn a_half_is_one_cache_line_and_two_for_ipv6() {
    assert_eq!(size_of::<Half4>(), 64);
    assert_eq!(size_of::<Half6>(), 128);
    assert_eq!(align_of::<Half4>(), 64);
    assert_eq!(align_of::<Half6>(), 64);
    // Both directions of a flow.
    assert_eq!(size_of::<[Half4; 2]>(), 128);
    assert_eq!(size_of::<[Half6; 2]>(), 256);
}

#[test]
fn recording_counts_and_dates() {
    let key = FlowKey { source: 1_u32, destination: 2, protocol: 17, ..FlowKey::default() };
    let mut half = Half::new(&key, &Rewrite::between(&key, &key), &Way::default(), 5);
    assert_eq!((half.packets(), half.bytes(), half.last_seen()), (0, 0, 5));
    half.record(0, 1400, 6);
    half.record(0, 100, 9);
    assert_eq!((half.packets(), half.bytes(), half.last_seen()), (2, 1500, 9));
    assert!(!half.is_rewritten());
    half.set_route(Route(77), 3);
    half.set_marks(5);
    assert_eq!(half.way(), Way { route: Route(77), generation: 3, tag: 0, marks: 5 });
    half.forget(11);
    assert_eq!((half.packets(), half.last_seen(), half.seen().0), (2, 11, 0));
}

#[test]
fn what_was_asked_for_holds_as_long_as_the_tables() {
    let key = FlowKey { source: 1_u32, destination: 2, protocol: 6, ..FlowKey::default() };
    let way = Way { generation: 3, ..Way::default() };
    let mut half = Half::new(&key, &Rewrite::between(&key, &key), &way, 5);
    assert!(!half.is_asked_for(3), "nobody has asked yet");
    half.ask_for(0xffff);
    half.record(0x10, 100, 6);
    assert!(half.is_asked_for(3) && !half.is_asked_for(4));
    assert_eq!((half.sender(), half.packets()), (0xffff, 1));
    half.set_route(Route(1), 4);
    assert!(!half.is_asked_for(4), "by the new tables nobody has asked yet");
    half.ask_for(7);
    assert_eq!((half.sender(), half.packets()), (7, 1));
    half.forget(7);
    assert!(!half.is_asked_for(4), "another connection");
    half.ask_for(0x1_0000);
    assert_eq!((half.sender(), half.packets()), (0, 1), "there is no room for more");
}

#[test]
fn a_half_gives_back_what_it_was_made_of() {
    let key = FlowKey {
        source: 1_u128 << 100,
        destination: 2,
        source_port: 3,
        destination_port: 4,
        protocol: 6,
    };
    let to = FlowKey { source: 5, destination: 6, source_port: 7, destination_port: 8, ..key };
    let way = Way { route: Route(9), generation: 10, tag: 11, marks: 12 };
    let half = Half::new(&key, &Rewrite::between(&key, &to), &way, 13);
    assert_eq!((half.key(), half.leaving_as(), half.way()), (key, to, way));
    assert_eq!(half.rewrite(), Rewrite::between(&key, &to));
    assert!(half.is_rewritten());
    for other in [
        key.reversed(),
        FlowKey { source: 1, ..key },
        FlowKey { destination: 1, ..key },
        FlowKey { source_port: 1, ..key },
        FlowKey { destination_port: 1, ..key },
        FlowKey { protocol: 17, ..key },
    ] {
        assert!(half.is_for(&key) && !half.is_for(&other));
    }
}

/// What is in one packet: source and destination address, both ports.
type Tuple<A> = (A, A, u16, u16);

/// A packet that etherparse makes, checksums included.
fn packet<A: Address>(tuple: Tuple<A>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination, source_port, destination_port) = tuple;
    let builder = match (source.to_ip(), destination.to_ip()) {
        (std::net::IpAddr::V4(s), std::net::IpAddr::V4(d)) => {
            PacketBuilder::ipv4(s.octets(), d.octets(), 64)
        }
        (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) => {
            PacketBuilder::ipv6(s.octets(), d.octets(), 64)
        }
        _ => unreachable!(),
    };
    let mut bytes = Vec::new();
    // An echo's identifier stands where the key has it; the sequence number is 7.
    let echo_id = source_port | destination_port;
    match protocol {
        6 => builder
            .tcp(source_port, destination_port, 1234, 500)
            .write(&mut bytes, payload)
            .unwrap(),
        17 => builder.udp(source_port, destination_port).write(&mut bytes, payload).unwrap(),
        1 => builder.icmpv4_echo_request(echo_id, 7).write(&mut bytes, payload).unwrap(),
        58 => builder.icmpv6_echo_request(echo_id, 7).write(&mut bytes, payload).unwrap(),
        _ => unreachable!(),
    }
    bytes
}

fn checksum(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Rewrites a packet's checksums by difference only, and compares with a packet that etherparse makes
/// for the new tuple.
fn agrees<A: Address>(from: Tuple<A>, to: Tuple<A>, protocol: u8, payload: &[u8]) {
    let key = |tuple: Tuple<A>| FlowKey {
        source: tuple.0,
        destination: tuple.1,
        source_port: tuple.2,
        destination_port: tuple.3,
        protocol,
    };
    let rewrite = Rewrite::between(&key(from), &key(to));
    let (before, after) = (packet(from, protocol, payload), packet(to, protocol, payload));
    let header = if A::HEADER_CHECKSUM { 20 } else { 40 };
    if A::HEADER_CHECKSUM {
        let updated = rewrite.difference.of_ip(checksum(&before, 10));
        assert_eq!(updated, checksum(&after, 10));
    } else {
        assert_eq!(rewrite.difference.ip, 0);
    }
    let at = header
        + match protocol {
            6 => 16,
            17 => 6,
            _ => 2,
        };
    let updated = rewrite.difference.of_l4(protocol, checksum(&before, at));
    let expected = checksum(&after, at);
    // In TCP and ICMP 0 and 0xffff are the same sum, and either is right.
    let same_sum =
        protocol != 17 && [updated, expected].iter().all(|sum| [0, 0xffff].contains(sum));
    assert!(updated == expected || same_sum, "{updated:#06x} is not {expected:#06x}");
    // And the whole packet, with the new fields and the updated checksum, is what etherparse makes.
    let mut rewritten = after.clone();
    rewritten[at..at + 2].copy_from_slice(&updated.to_be_bytes());
    let (ip, rest) = IpHeaders::from_slice(&rewritten).unwrap();
    let right = match (protocol, ip.ipv4()) {
        (17, Some((ip, _))) => {
            let (udp, payload) = etherparse::UdpHeader::from_slice(rest.payload).unwrap();
            udp.calc_checksum_ipv4(ip, payload).unwrap() == updated
        }
        (6, Some((ip, _))) => {
            let (tcp, payload) = etherparse::TcpHeader::from_slice(rest.payload).unwrap();
            tcp.calc_checksum_ipv4(ip, payload).unwrap() % 0xffff == updated % 0xffff
        }
        (1, _) => {
            let (icmp, payload) = Icmpv4Header::from_slice(rest.payload).unwrap();
            icmp.icmp_type.calc_checksum(payload) % 0xffff == updated % 0xffff
        }
        (58, _) => {
            let (icmp, payload) = Icmpv6Header::from_slice(rest.payload).unwrap();
            let (ip, _) = ip.ipv6().unwrap();
            icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).unwrap() % 0xffff
                == updated % 0xffff
        }
        _ => true,
    };
    assert!(right);
}

/// Addresses and ports with the values that sums trip over.
fn tuple<A: Address>(address: impl Strategy<Value = A> + Clone) -> impl Strategy<Value = Tuple<A>> {
    let port = prop_oneof![Just(0_u16), Just(0xffff), any::<u16>()];
    (address.clone(), address, port.clone(), port)
}

fn v4() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![Just(0), Just(u32::MAX), Just(0x0af4_010a), any::<u32>()]
}

fn v6() -> impl Strategy<Value = u128> + Clone {
    prop_oneof![Just(0), Just(u128::MAX), Just(0xfd12_u128 << 112 | 10), any::<u128>()]
}

/// A request's identifier is its source port.
fn echo<A>(tuple: Tuple<A>) -> Tuple<A> {
    (tuple.0, tuple.1, tuple.2, 0)
}

proptest! {
    #[test]
    fn differences_agree_with_checksums_made_from_nothing(
        (from4, to4) in (tuple(v4()), tuple(v4())),
        (from6, to6) in (tuple(v6()), tuple(v6())),
        payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for protocol in [6, 17] {
            agrees(from4, to4, protocol, &payload);
            agrees(from6, to6, protocol, &payload);
        }
        agrees(echo(from4), echo(to4), 1, &payload);
        agrees(echo(from6), echo(to6), 58, &payload);
    }

    #[test]
    fn a_rewrite_to_the_same_changes_no_checksum(tuple in tuple(v4()), old in any::<u16>()) {
        for protocol in [1, 6, 17, 132, 47] {
            let key = FlowKey {
                source: tuple.0,
                destination: tuple.1,
                source_port: tuple.2,
                destination_port: tuple.3,
                protocol,
            };
            let rewrite = Rewrite::between(&key, &key);
            prop_assert_eq!(rewrite.difference, Difference::default());
            prop_assert_eq!(rewrite.difference.of_ip(old), old);
            prop_assert_eq!(rewrite.difference.of_l4(protocol, old), old);
        }
    }

    #[test]
    fn udp_without_a_checksum_keeps_none((from, to) in (tuple(v4()), tuple(v4()))) {
        let key = |tuple: Tuple<u32>| FlowKey {
            source: tuple.0,
            destination: tuple.1,
            source_port: tuple.2,
            destination_port: tuple.3,
            protocol: 17,
        };
        let rewrite = Rewrite::between(&key(from), &key(to));
        prop_assert_eq!(rewrite.difference.of_l4(17, 0), 0);
    }
}

#[test]
fn udp_whose_sum_becomes_zero_says_ffff() {
    // The source port that makes the sum come out as 0, found by trying all.
    let from = (0x0af4_010a_u32, 0xcb00_710a, 40000, 53);
    let mut zeros = 0;
    for port in 0..=u16::MAX {
        let to = (0x0a00_0104, from.1, port, from.3);
        let made = packet(to, 17, b"query");
        if checksum(&made, 26) == 0xffff {
            zeros += 1;
            agrees(from, to, 17, b"query");
        }
    }
    assert!(zeros > 0);
}

#[test]
fn protocols_whose_checksum_covers_no_address_keep_it() {
    let from = FlowKey { source: 1_u32, destination: 2, protocol: 132, ..FlowKey::default() };
    let rewrite = Rewrite::between(&from, &FlowKey { source: 77, ..from });
    assert_ne!(rewrite.difference.ip, 0);
    assert_eq!(rewrite.difference.l4, 0);
}

#[test]
fn the_protocol_stays() {
    let from = FlowKey { source: 1_u32, protocol: 17, ..FlowKey::default() };
    let rewrite = Rewrite::between(&from, &FlowKey { protocol: 6, ..from });
    assert_eq!(rewrite.leaving_as.protocol, 17);
}
