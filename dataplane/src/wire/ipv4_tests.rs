use proptest::prelude::*;

use super::super::protocol;
use super::*;

/// UDP from 192.168.0.1 to 192.168.0.199, the header of a packet of 115 bytes.
const HEADER: [u8; 20] = [
    0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01,
    0xc0, 0xa8, 0x00, 0xc7,
];

fn packet() -> [u8; 120] {
    let mut packet = [0xee; 120];
    packet[..20].copy_from_slice(&HEADER);
    packet
}

fn values() -> Ipv4Header {
    Ipv4Header {
        tos: 0,
        total_len: 115,
        identification: 0,
        fragment: DONT_FRAGMENT,
        ttl: 64,
        protocol: protocol::UDP,
        source: Ipv4Addr::new(192, 168, 0, 1),
        destination: Ipv4Addr::new(192, 168, 0, 199),
    }
}

#[test]
fn known_bytes_are_read() {
    let packet = packet();
    let view = Ipv4::parse(&packet).unwrap();
    assert_eq!((view.header_len(), view.total_len()), (20, 115));
    assert_eq!((view.tos(), view.dscp(), view.ecn()), (0, 0, Ecn::NotEct));
    assert_eq!((view.identification(), view.fragment_offset()), (0, 0));
    assert!(view.dont_fragment() && !view.more_fragments() && !view.is_fragment());
    assert!(!view.is_first_fragment() && !view.is_later_fragment());
    assert_eq!((view.ttl(), view.protocol(), view.checksum()), (64, protocol::UDP, 0xb861));
    assert_eq!(view.source(), Ipv4Addr::new(192, 168, 0, 1));
    assert_eq!(view.destination(), Ipv4Addr::new(192, 168, 0, 199));
    assert_eq!((view.source_u32(), view.destination_u32()), (0xc0a8_0001, 0xc0a8_00c7));
    assert_eq!((view.payload_range(), view.payload().len()), (20..115, 95));
    assert_eq!(view.packet().len(), 115);
    assert!(view.options().is_empty() && !view.has_options());
    assert!(view.verify_checksum());
}

#[test]
fn written_bytes_do_not_depend_on_the_buffer() {
    for dirt in [0x00, 0x5a, 0xff] {
        let mut buf = [dirt; 20];
        values().write(&mut buf);
        assert_eq!(buf, HEADER);
    }
}

#[test]
fn too_short_is_an_error_at_each_length() {
    let packet = packet();
    for length in 0..115 {
        let have = u16::try_from(length).unwrap();
        let wanted = if length < 20 {
            ParseError::Truncated { header: Header::Ipv4, need: 20, have }
        } else {
            ParseError::BadTotalLength { header: Header::Ipv4, length: 115, minimum: 20, have }
        };
        assert_eq!(Ipv4::parse(&packet[..length]).unwrap_err(), wanted);
        let quoted = Ipv4::parse_quoted(&packet[..length]);
        assert_eq!(quoted.map(|view| view.packet().len()).ok(), (length >= 20).then_some(length));
        if length < 20 {
            let mut short = packet;
            assert!(!set_ecn(&mut short[..length], Ecn::Ce));
            assert_eq!(short, packet);
        }
    }
    assert_eq!(Ipv4::parse(&packet[..115]).unwrap().packet().len(), 115);
    assert_eq!(Ipv4::parse_quoted(&packet).unwrap().packet().len(), 115);
}

#[test]
fn impossible_lengths_are_refused() {
    for words in 0..5 {
        let mut bytes = packet();
        bytes[0] = 0x40 | words;
        let length = u16::from(words) * 4;
        let wanted = ParseError::BadHeaderLength { header: Header::Ipv4, length, minimum: 20 };
        assert_eq!(Ipv4::parse(&bytes).unwrap_err(), wanted);
    }
    let mut bytes = packet();
    bytes[0] = 0x4f;
    let wanted = ParseError::Truncated { header: Header::Ipv4, need: 60, have: 59 };
    assert_eq!(Ipv4::parse(&bytes[..59]).unwrap_err(), wanted);
    bytes[3] = 59;
    let wanted =
        ParseError::BadTotalLength { header: Header::Ipv4, length: 59, minimum: 60, have: 120 };
    assert_eq!(Ipv4::parse(&bytes).unwrap_err(), wanted);
    assert_eq!(Ipv4::parse_quoted(&bytes).unwrap_err(), wanted);
    bytes[3] = 60;
    assert_eq!(Ipv4::parse(&bytes).unwrap().options().len(), 40);
}

#[test]
fn other_versions_are_refused() {
    for found in (0..16).filter(|version| *version != 4) {
        let mut bytes = packet();
        bytes[0] = found << 4 | 5;
        let wanted = ParseError::BadVersion { header: Header::Ipv4, found };
        assert_eq!(Ipv4::parse(&bytes).unwrap_err(), wanted);
    }
}

#[test]
fn fragments_are_told_apart() {
    // Fragment field, then: a fragment, the first, a later one. The reserved bit says nothing.
    for (field, wanted) in [
        (0x0000, (false, false, false)),
        (0x8000, (false, false, false)),
        (DONT_FRAGMENT, (false, false, false)),
        (MORE_FRAGMENTS, (true, true, false)),
        (MORE_FRAGMENTS | 185, (true, false, true)),
        (185, (true, false, true)),
    ] {
        let mut bytes = packet();
        bytes[6..8].copy_from_slice(&u16::to_be_bytes(field));
        let view = Ipv4::parse(&bytes).unwrap();
        let found = (view.is_fragment(), view.is_first_fragment(), view.is_later_fragment());
        assert_eq!(found, wanted, "{field:#06x}");
        assert_eq!(view.fragment_offset(), field & 0x1fff);
    }
}

#[test]
fn every_flipped_bit_breaks_the_checksum() {
    for bit in 0..160 {
        let mut bytes = packet();
        bytes[bit / 8] ^= 0x80 >> (bit % 8);
        if let Ok(view) = Ipv4::parse_quoted(&bytes) {
            assert!(!view.verify_checksum(), "bit {bit}");
        }
    }
}

#[test]
fn setters_touch_their_field_only() {
    let mut bytes = [0; 20];
    let mut header = Ipv4Mut::new(&mut bytes).unwrap();
    header.set_total_len(0x0102);
    header.set_identification(0x0304);
    header.set_checksum(0x0506);
    header.set_source(Ipv4Addr::new(7, 8, 9, 10));
    header.set_destination(0x0b0c_0d0e_u32);
    assert_eq!(header.checksum(), 0x0506);
    assert_eq!(bytes, [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
}

fn any_header() -> impl Strategy<Value = Ipv4Header> {
    let fields = any::<(u8, u16, u16, u8, u8, u32, u32)>();
    (fields, 20_u16..1500).prop_map(|(fields, total_len)| {
        let (tos, identification, fragment, ttl, protocol, source, destination) = fields;
        Ipv4Header {
            tos,
            total_len,
            identification,
            fragment,
            ttl,
            protocol,
            source: Ipv4Addr::from_bits(source),
            destination: Ipv4Addr::from_bits(destination),
        }
    })
}

fn written(header: Ipv4Header) -> Vec<u8> {
    let mut packet = vec![0xff; usize::from(header.total_len)];
    header.write(packet.first_chunk_mut().unwrap());
    packet
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_by_us_and_by_etherparse(header in any_header()) {
        let packet = written(header);
        let view = Ipv4::parse(&packet).unwrap();
        let flags = view.fragment_offset()
            | (DONT_FRAGMENT * u16::from(view.dont_fragment()))
            | (MORE_FRAGMENTS * u16::from(view.more_fragments()));
        let read = Ipv4Header {
            tos: view.tos(),
            total_len: view.total_len(),
            identification: view.identification(),
            fragment: flags | (header.fragment & 0x8000),
            ttl: view.ttl(),
            protocol: view.protocol(),
            source: view.source(),
            destination: view.destination(),
        };
        prop_assert_eq!(read, header);
        prop_assert!(view.verify_checksum());

        let (theirs, _) = etherparse::Ipv4Header::from_slice(&packet).unwrap();
        prop_assert_eq!(theirs.dscp.value(), view.dscp());
        prop_assert_eq!(theirs.ecn.value(), view.ecn().bits());
        prop_assert_eq!(theirs.total_len, view.total_len());
        prop_assert_eq!(theirs.identification, view.identification());
        prop_assert_eq!(theirs.dont_fragment, view.dont_fragment());
        prop_assert_eq!(theirs.more_fragments, view.more_fragments());
        prop_assert_eq!(theirs.fragment_offset.value(), view.fragment_offset());
        prop_assert_eq!(theirs.time_to_live, view.ttl());
        prop_assert_eq!(theirs.protocol.0, view.protocol());
        prop_assert_eq!(theirs.header_checksum, view.checksum());
        prop_assert_eq!(theirs.source, view.source().octets());
        prop_assert_eq!(theirs.destination, view.destination().octets());
        // etherparse does not keep the reserved bit, which its checksum therefore lacks.
        if header.fragment & 0x8000 == 0 {
            prop_assert_eq!(theirs.calc_header_checksum(), view.checksum());
        }
    }

    #[test]
    fn incremental_changes_are_the_same_as_writing_anew(header in any_header(), bits in 0_u8..4) {
        let mut packet = written(header);
        let header = Ipv4Header { ttl: header.ttl.wrapping_sub(1), ..header };
        if header.ttl != 255 {
            lower_ttl(packet.first_chunk_mut().unwrap(), header.ttl);
        } else {
            packet = written(header);
        }
        prop_assert_eq!(&packet, &written(header));
        prop_assert!(set_ecn(&mut packet, Ecn::from_tos(bits)));
        let header = Ipv4Header { tos: (header.tos & !3) | bits, ..header };
        prop_assert_eq!(&packet, &written(header));
    }

    #[test]
    fn rewriting_with_a_precomputed_difference_is_the_same_as_writing_anew(
        header in any_header(), source: u32, destination: u32,
    ) {
        let difference = checksum::difference32(header.source.to_bits(), source)
            + checksum::difference32(header.destination.to_bits(), destination);
        let mut packet = written(header);
        let mut view = Ipv4Mut::new(&mut packet).unwrap();
        view.set_source(source);
        view.set_destination(destination);
        view.adjust_checksum(difference);
        let source = Ipv4Addr::from_bits(source);
        let destination = Ipv4Addr::from_bits(destination);
        prop_assert_eq!(packet, written(Ipv4Header { source, destination, ..header }));
    }

    #[test]
    fn options_are_part_of_the_checksum(words in 1_usize..11, noise: [u8; 60], flip in 0_usize..480) {
        let length = 20 + words * 4;
        let mut packet = noise;
        packet[0] = 0x45 + u8::try_from(words).unwrap();
        packet[2..4].copy_from_slice(&[0, u8::try_from(length).unwrap()]);
        prop_assert!(checksum::compute(&mut packet[..length], CHECKSUM, 0));
        prop_assert!(Ipv4::parse(&packet).unwrap().verify_checksum());
        prop_assert_eq!(Ipv4::parse(&packet).unwrap().options(), &packet[20..length]);
        let flip = 32 + flip % ((length - 4) * 8);
        packet[flip / 8] ^= 0x80 >> (flip % 8);
        prop_assert!(!Ipv4::parse(&packet).unwrap().verify_checksum());
    }
}
