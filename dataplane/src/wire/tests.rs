use proptest::prelude::*;

use super::*;
use super::{arp::Arp, ethernet::Ethernet, geneve::Geneve, icmpv4::Icmpv4, icmpv6::Icmpv6};
use super::{icmpv6::Neighbor, ipv4::Ipv4, ipv6::Ipv6, tcp::Tcp, udp::Udp, vxlan::Vxlan};

#[test]
fn error_is_small() {
    assert!(size_of::<ParseError>() <= 8, "{} bytes", size_of::<ParseError>());
}

#[test]
fn error_says_header_problem_and_values() {
    let error = Ethernet::parse(&[0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "Ethernet header: needs 14 bytes, 3 are there");
    assert_eq!(error.header(), Header::Ethernet);
    let error = Vxlan::parse(&[0x84, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
    assert_eq!(error.to_string(), "VXLAN header: the VNI flag is missing in flags 0x84");
    let error = ParseError::truncated(Header::Ipv4, 20, usize::MAX);
    assert_eq!(error, ParseError::Truncated { header: Header::Ipv4, need: 20, have: 65535 });
}

/// Reads everything that a parser of the given number offers. What it returns is inside of `bytes`.
fn read(parser: usize, bytes: &[u8]) -> Option<usize> {
    let payload = match parser {
        0 => Ethernet::parse(bytes).ok()?.payload(),
        1 => {
            let _ = Arp::parse(bytes).ok()?.message();
            return None;
        }
        2 => {
            let view = Ipv4::parse(bytes).ok()?;
            assert_eq!(view.payload().len(), view.payload_range().len());
            let _ = view.verify_checksum();
            view.payload()
        }
        3 => {
            let view = Ipv6::parse(bytes).ok()?;
            if let Ok(upper) = view.upper_layer() {
                assert!(upper.offset <= view.packet_len());
            }
            view.payload()
        }
        4 => Udp::parse(bytes).ok()?.payload(),
        5 => Tcp::parse(bytes).ok()?.payload(),
        6 => Icmpv4::parse(bytes).ok()?.payload(),
        7 => Icmpv6::parse(bytes).ok()?.payload(),
        8 => {
            let view = Neighbor::parse(bytes).ok()?;
            assert!(view.options().count() <= bytes.len() / 8 + 1);
            return None;
        }
        9 => {
            let view = Geneve::parse(bytes).ok()?;
            assert!(view.options().count() <= 63);
            view.payload()
        }
        10 => Vxlan::parse(bytes).ok()?.payload(),
        11 => Ipv4::parse_quoted(bytes).ok()?.payload(),
        12 => Ipv6::parse_quoted(bytes).ok()?.payload(),
        _ => Udp::parse_quoted(bytes).ok()?.payload(),
    };
    Some(payload.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn noise_never_panics(
        start in prop::sample::select(vec![0x00_u8, 0x02, 0x08, 0x45, 0x46, 0x4f, 0x60, 135, 136]),
        mut bytes in prop::collection::vec(any::<u8>(), 0..160),
        small_length: bool,
        seed in 0_u8..160,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = start;
        }
        // Lengths that are often possible, so that the noise gets past the first check.
        if small_length && bytes.len() > 6 {
            bytes[1] = 0;
            bytes[2..6].copy_from_slice(&[0, seed, 0, seed / 2]);
        }
        for parser in 0..14 {
            if let Some(payload) = read(parser, &bytes) {
                prop_assert!(payload <= bytes.len());
            }
        }
        let _ = checksum::verify_l4(&bytes);
        let _ = tcp::ports(&bytes);
        if let Some(start) = bytes.first_chunk_mut() {
            ipv4::lower_ttl(start, seed);
            ipv6::set_hop_limit(start, seed);
        }
        ipv4::set_ecn(&mut bytes, ecn::Ecn::Ce);
        ipv6::set_ecn(&mut bytes, ecn::Ecn::Ce);
        checksum::complete_partial(&mut bytes, usize::from(seed));
    }
}
