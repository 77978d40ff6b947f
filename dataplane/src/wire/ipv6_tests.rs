use proptest::prelude::*;

use super::*;

const SOURCE_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0, 1, 0, 0, 0, 0xa);
const DESTINATION_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0, 2, 0, 0, 0, 0xb);

const PACKET: [u8; 45] = [
    0x6b, 0x91, 0x23, 0x45, 0x00, 0x04, 0x11,
    0x40, // class 0xb9, label 0x12345, 4 bytes of UDP
    0xfd, 0x12, 0x34, 0x56, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x0a, //
    0xfd, 0x12, 0x34, 0x56, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x0b, //
    1, 2, 3, 4, 0xee, // payload and a byte of padding
];

fn values() -> Ipv6Header {
    Ipv6Header {
        traffic_class: 0xb9,
        flow_label: 0x12345,
        payload_len: 4,
        next_header: protocol::UDP,
        hop_limit: 64,
        source: SOURCE_ADDRESS,
        destination: DESTINATION_ADDRESS,
    }
}

/// A packet with these bytes after the fixed header.
fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xff; HEADER_LEN];
    let payload_len = u16::try_from(payload.len()).unwrap();
    Ipv6Header { payload_len, next_header, ..values() }.write(packet.first_chunk_mut().unwrap());
    packet.extend_from_slice(payload);
    packet
}

fn upper_layer(next_header: u8, payload: &[u8]) -> Result<UpperLayer, ParseError> {
    Ipv6::parse(&packet(next_header, payload)).unwrap().upper_layer()
}

#[test]
fn known_bytes_are_read() {
    let view = Ipv6::parse(&PACKET).unwrap();
    assert_eq!((view.traffic_class(), view.dscp(), view.ecn()), (0xb9, 0x2e, Ecn::Ect1));
    assert_eq!((view.flow_label(), view.payload_len()), (0x12345, 4));
    assert_eq!((view.next_header(), view.hop_limit()), (protocol::UDP, 64));
    assert_eq!((view.source(), view.destination()), (SOURCE_ADDRESS, DESTINATION_ADDRESS));
    assert_eq!(view.source_u128(), SOURCE_ADDRESS.to_bits());
    assert_eq!(view.destination_u128(), DESTINATION_ADDRESS.to_bits());
    assert_eq!((view.payload(), view.payload_range()), (&[1, 2, 3, 4][..], 40..44));
    assert_eq!((view.packet_len(), view.packet()), (44, &PACKET[..44]));
    let upper = UpperLayer { protocol: protocol::UDP, offset: 40, fragment: None };
    assert_eq!(view.upper_layer(), Ok(upper));
}

#[test]
fn written_bytes_do_not_depend_on_the_buffer() {
    for dirt in [0x00, 0x5a, 0xff] {
        let mut buf = [dirt; HEADER_LEN];
        values().write(&mut buf);
        assert_eq!(buf, PACKET[..HEADER_LEN]);
    }
}

#[test]
fn too_short_is_an_error_at_each_length() {
    for length in 0..44 {
        let have = u16::try_from(length).unwrap();
        let wanted = if length < 40 {
            ParseError::Truncated { header: Header::Ipv6, need: 40, have }
        } else {
            ParseError::BadTotalLength { header: Header::Ipv6, length: 44, minimum: 40, have }
        };
        assert_eq!(Ipv6::parse(&PACKET[..length]).unwrap_err(), wanted);
        let quoted = Ipv6::parse_quoted(&PACKET[..length]).map(|view| view.packet_len());
        assert_eq!(quoted.ok(), (length >= 40).then_some(length));
        if length < 40 {
            let mut short = PACKET;
            assert!(!set_ecn(&mut short[..length], Ecn::Ce));
            assert_eq!(short, PACKET);
        }
    }
}

#[test]
fn other_versions_are_refused() {
    for found in (0..16).filter(|version| *version != 6) {
        let mut bytes = PACKET;
        bytes[0] = found << 4;
        let wanted = ParseError::BadVersion { header: Header::Ipv6, found };
        assert_eq!(Ipv6::parse(&bytes).unwrap_err(), wanted);
    }
}

#[test]
fn every_kind_of_extension_is_walked_over() {
    let mut chain = vec![];
    chain.extend([protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop
    chain.extend([protocol::ROUTING, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // options
    chain.extend([protocol::AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0]); // routing
    chain.extend([protocol::FRAGMENT, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]); // authentication, 3 words
    chain.extend([protocol::TCP, 0xff, 0, 1, 1, 2, 3, 4]); // first fragment, reserved byte set
    let fragment = FragmentInfo { offset: 0, more: true, identification: 0x0102_0304 };
    let wanted = UpperLayer { protocol: protocol::TCP, offset: 40 + 52, fragment: Some(fragment) };
    assert_eq!(upper_layer(protocol::HOP_BY_HOP, &chain), Ok(wanted));
    assert!(
        fragment.is_fragment() && fragment.is_first_fragment() && !fragment.is_later_fragment()
    );

    // Every cut through the chain is an error and nothing else.
    for length in 0..chain.len() {
        let error = upper_layer(protocol::HOP_BY_HOP, &chain[..length]).unwrap_err();
        let truncated =
            matches!(error, ParseError::Truncated { header: Header::Ipv6Extension, .. });
        assert!(truncated, "{length}: {error}");
    }
}

#[test]
fn later_fragment_ends_the_walk() {
    // What follows names itself destination options but is a piece of somebody's payload.
    let bytes = [protocol::DESTINATION_OPTIONS, 0, 0x05, 0xc8, 0, 0, 0, 9, 0xff, 0xff];
    let fragment = FragmentInfo { offset: 185, more: false, identification: 9 };
    let wanted = UpperLayer {
        protocol: protocol::DESTINATION_OPTIONS,
        offset: 48,
        fragment: Some(fragment),
    };
    assert_eq!(upper_layer(protocol::FRAGMENT, &bytes), Ok(wanted));
    assert!(
        fragment.is_fragment() && !fragment.is_first_fragment() && fragment.is_later_fragment()
    );
}

#[test]
fn atomic_fragment_is_no_fragment() {
    let upper = upper_layer(protocol::FRAGMENT, &[protocol::UDP, 0, 0, 0x06, 0, 0, 0, 1]).unwrap();
    assert!(!upper.fragment.unwrap().is_fragment(), "the two reserved bits say nothing");
    assert!(!upper.is_fragment() && upper.has_header());
    let bare = upper_layer(protocol::UDP, &[]).unwrap();
    assert!(!bare.is_fragment() && bare.has_header());
    for (field, has_header) in [([0, 1], true), ([0, 8], false), ([0, 9], false)] {
        let bytes = [protocol::UDP, 0, field[0], field[1], 0, 0, 0, 1];
        let upper = upper_layer(protocol::FRAGMENT, &bytes).unwrap();
        assert!(upper.is_fragment(), "{field:?}");
        assert_eq!(upper.has_header(), has_header, "{field:?}");
    }
}

#[test]
fn what_is_no_extension_is_the_upper_layer() {
    for protocol in [protocol::NO_NEXT_HEADER, 50, 135, 139, 140, 253, 255] {
        let wanted = UpperLayer { protocol, offset: 40, fragment: None };
        assert_eq!(upper_layer(protocol, &[]), Ok(wanted));
    }
}

#[test]
fn extensions_have_their_place() {
    let hop_by_hop_second = [protocol::HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0];
    for first in [protocol::HOP_BY_HOP, protocol::DESTINATION_OPTIONS] {
        let error = upper_layer(first, &hop_by_hop_second).unwrap_err();
        assert_eq!(error, ParseError::MisplacedExtension { protocol: protocol::HOP_BY_HOP });
    }
    let two_fragments = [protocol::FRAGMENT, 0, 0, 1, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0];
    let error = upper_layer(protocol::FRAGMENT, &two_fragments).unwrap_err();
    assert_eq!(error, ParseError::MisplacedExtension { protocol: protocol::FRAGMENT });
}

#[test]
fn eight_extensions_are_walked_and_nine_are_not() {
    let chain = |count: usize| {
        let mut chain = [protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(count);
        chain[(count - 1) * 8] = protocol::UDP;
        upper_layer(protocol::DESTINATION_OPTIONS, &chain)
    };
    let wanted = UpperLayer { protocol: protocol::UDP, offset: 40 + 64, fragment: None };
    assert_eq!(chain(8), Ok(wanted));
    assert_eq!(chain(9), Err(ParseError::TooManyExtensions { limit: 8 }));
}

#[test]
fn hop_limit_is_set_and_nothing_else() {
    let mut bytes = PACKET;
    set_hop_limit(bytes.first_chunk_mut::<20>().unwrap(), 7);
    assert_eq!(Ipv6::parse(&bytes).unwrap().hop_limit(), 7);
    bytes[7] = PACKET[7];
    assert_eq!(bytes, PACKET);
}

#[test]
fn setters_touch_their_field_only() {
    let mut bytes = PACKET;
    let mut header = Ipv6Mut::new(&mut bytes).unwrap();
    header.set_source(DESTINATION_ADDRESS);
    header.set_destination(SOURCE_ADDRESS);
    header.set_payload_len(5);
    assert_eq!(bytes[..4], PACKET[..4]);
    assert_eq!(bytes[6..8], PACKET[6..8]);
    let view = Ipv6::parse(&bytes).unwrap();
    assert_eq!((view.source(), view.destination()), (DESTINATION_ADDRESS, SOURCE_ADDRESS));
    assert_eq!(view.payload(), [1, 2, 3, 4, 0xee]);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_by_us_and_by_etherparse(
        traffic_class: u8, flow_label in 0_u32..=0xf_ffff, payload_len in 0_u16..1500,
        next_header: u8, hop_limit: u8, source: u128, destination: u128, bits in 0_u8..4,
    ) {
        let header = Ipv6Header {
            traffic_class, flow_label, payload_len, next_header, hop_limit,
            source: Ipv6Addr::from_bits(source), destination: Ipv6Addr::from_bits(destination),
        };
        let mut packet = vec![0xff; HEADER_LEN + usize::from(payload_len)];
        header.write(packet.first_chunk_mut().unwrap());
        let view = Ipv6::parse(&packet).unwrap();
        let read = Ipv6Header {
            traffic_class: view.traffic_class(), flow_label: view.flow_label(),
            payload_len: view.payload_len(), next_header: view.next_header(),
            hop_limit: view.hop_limit(), source: view.source(), destination: view.destination(),
        };
        prop_assert_eq!(read, header);

        let (theirs, _) = etherparse::Ipv6Header::from_slice(&packet).unwrap();
        let mut bytes = vec![];
        theirs.write(&mut bytes).unwrap();
        prop_assert_eq!(&bytes, &packet[..HEADER_LEN]);
        prop_assert_eq!(theirs.flow_label.value(), view.flow_label());
        prop_assert_eq!(theirs.payload_length, view.payload_len());
        prop_assert_eq!(theirs.hop_limit, view.hop_limit());

        prop_assert!(set_ecn(&mut packet, Ecn::from_tos(bits)));
        let mut wanted = [0; HEADER_LEN];
        Ipv6Header { traffic_class: (traffic_class & !3) | bits, ..header }.write(&mut wanted);
        prop_assert_eq!(&packet[..HEADER_LEN], wanted);
    }

    #[test]
    fn fragment_header_is_read_back(offset in 0_u16..0x2000, more: bool, identification: u32) {
        let fragment = FragmentInfo { offset, more, identification };
        let mut buf = [0xff; FRAGMENT_HEADER_LEN];
        fragment.write(&mut buf, protocol::UDP);
        let wanted = UpperLayer { protocol: protocol::UDP, offset: 48, fragment: Some(fragment) };
        prop_assert_eq!(upper_layer(protocol::FRAGMENT, &buf), Ok(wanted));
    }

    #[test]
    fn walk_ends_inside_of_the_packet(next in 0_u8..64, noise in prop::collection::vec(0_u8..64, 0..200)) {
        if let Ok(upper) = upper_layer(next, &noise) {
            prop_assert!(upper.offset <= HEADER_LEN + noise.len());
        }
    }
}
