use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::super::{tcp, udp};
use super::*;

/// The sum as RFC 1071 section 4.1 writes it down.
fn slow_sum(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8;
        sum += u64::from(pair.get(1).copied().unwrap_or(0));
    }
    sum
}

fn slow_fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

#[test]
fn example_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
    assert_eq!(finish(sum(&bytes, 0)), 0x220d);
}

#[test]
fn example_of_rfc_1624() {
    assert_eq!(update16(0xdd2f, 0x5555, 0x3285), 0x0000);
    assert_eq!(udp_apply(0xdd2f, difference16(0x5555, 0x3285)), 0xffff);
    assert_eq!(udp_apply(0, difference16(0x5555, 0x3285)), 0);
}

#[test]
fn every_length_is_summed_like_the_obvious_way() {
    let bytes: Vec<u8> = (0..400_u32).map(|i| u8::try_from(i * 193 % 251).unwrap()).collect();
    for start in 0..4 {
        for length in 0..bytes.len() - start {
            let piece = &bytes[start..start + length];
            assert_eq!(fold(sum(piece, 0)), slow_fold(slow_sum(piece)), "{start}+{length}");
        }
    }
    // Every word at its largest: the carries of 64 KiB.
    let ones = vec![0xff; 65536];
    for length in [1, 2, 31, 32, 33, 65535, 65536] {
        assert_eq!(fold(sum(&ones[..length], 0)), slow_fold(slow_sum(&ones[..length])));
    }
}

#[test]
fn zero_has_one_form_and_full_has_the_other() {
    assert_eq!(fold(0), 0);
    assert_eq!((finish(0), udp_finish(0)), (0xffff, 0xffff));
    assert_eq!((finish(0xffff), udp_finish(0xffff)), (0, 0xffff));
    for sum in [0xffff, 0x1_fffe, 0xffff_ffff, u64::MAX, 0xffff_0000_0000_0000] {
        assert_eq!(fold(sum), 0xffff, "{sum:#x}");
    }
}

#[test]
fn checksum_outside_of_the_segment_is_not_written() {
    let mut segment = [1; 17];
    for offset in [16, 17, usize::MAX] {
        assert!(!complete_partial(&mut segment, offset));
        assert!(!compute(&mut segment, offset, 0));
    }
    assert_eq!(segment, [1; 17]);
}

/// A packet with its transport header at the given offset and the checksum at another.
struct Sample {
    name: &'static str,
    packet: Vec<u8>,
    l4: usize,
    checksum: usize,
}

fn samples(payload: &[u8]) -> Vec<Sample> {
    let v4 = || PacketBuilder::ipv4([10, 244, 1, 10], [10, 244, 2, 10], 64);
    let v6 = || PacketBuilder::ipv6([0xfd; 16], [0x12; 16], 64);
    let sample = |name, l4, checksum, write: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = vec![];
        write(&mut packet);
        Sample { name, packet, l4, checksum }
    };
    vec![
        sample("udp4", 20, udp::CHECKSUM_OFFSET, &|out| {
            v4().udp(1, 2).write(out, payload).unwrap()
        }),
        sample("tcp4", 20, tcp::CHECKSUM_OFFSET, &|out| {
            v4().tcp(1, 2, 3, 4).write(out, payload).unwrap();
        }),
        sample("icmp4", 20, 2, &|out| v4().icmpv4_echo_request(1, 2).write(out, payload).unwrap()),
        sample("udp6", 40, udp::CHECKSUM_OFFSET, &|out| {
            v6().udp(1, 2).write(out, payload).unwrap()
        }),
        sample("tcp6", 40, tcp::CHECKSUM_OFFSET, &|out| {
            v6().tcp(1, 2, 3, 4).write(out, payload).unwrap();
        }),
        sample("icmp6", 40, 2, &|out| v6().icmpv6_echo_request(1, 2).write(out, payload).unwrap()),
    ]
}

fn pseudo_of(sample: &Sample) -> u64 {
    let length = sample.packet.len() - sample.l4;
    if sample.l4 == 20 {
        let ip = Ipv4::parse(&sample.packet).unwrap();
        let length = u16::try_from(length).unwrap();
        pseudo_header_v4(ip.source(), ip.destination(), ip.protocol(), length)
    } else {
        let ip = Ipv6::parse(&sample.packet).unwrap();
        let length = u32::try_from(length).unwrap();
        pseudo_header_v6(ip.source(), ip.destination(), ip.next_header(), length)
    }
}

fn field(sample: &Sample) -> u16 {
    let at = sample.l4 + sample.checksum;
    u16::from_be_bytes([sample.packet[at], sample.packet[at + 1]])
}

/// A checksum of 0 is 0 in TCP and ICMP; only in UDP would it say that there is none.
#[test]
fn a_computed_zero_is_mangled_for_udp_only() {
    for mut sample in samples(&[0, 0]) {
        // What makes the sum 0xffff: the checksum that the packet has with 0 in its place.
        let balance = field(&sample);
        let end = sample.packet.len();
        sample.packet[end - 2..].copy_from_slice(&balance.to_be_bytes());
        let expected = if sample.name.starts_with("udp") { 0xffff } else { 0 };
        let pseudo = if sample.name == "icmp4" { 0 } else { pseudo_of(&sample) };
        assert!(compute(&mut sample.packet[sample.l4..], sample.checksum, pseudo));
        assert_eq!(field(&sample), expected, "{}, computed", sample.name);
        assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Correct), "{}", sample.name);
        let at = sample.l4 + sample.checksum;
        sample.packet[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
        assert!(complete_partial(&mut sample.packet[sample.l4..], sample.checksum));
        assert_eq!(field(&sample), expected, "{}, completed", sample.name);
    }
}

#[test]
fn broken_packets_are_errors_and_not_wrong_sums() {
    let mut udp = samples(b"x").swap_remove(0).packet;
    udp[25] = 7;
    assert!(verify_l4(&udp).is_err());
    assert!(verify_l4(&[]).is_err());
    assert!(verify_l4(&[0x60; 39]).is_err());
}

#[test]
fn bytes_after_the_udp_length_are_not_summed() {
    for mut sample in samples(b"payload").into_iter().filter(|s| s.name.starts_with("udp")) {
        // Inside of the IP payload, where the length in the header leaves room (RFC 9868).
        let ip_length = if sample.l4 == 20 { 3 } else { 5 };
        sample.packet[ip_length] += 5;
        sample.packet.extend([1, 2, 3, 4, 5]);
        assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Correct), "{}", sample.name);
    }
}

#[test]
fn what_has_no_checksum_is_said_so() {
    for mut sample in samples(b"payload") {
        if sample.name.starts_with("udp") {
            sample.packet[sample.l4 + 6..sample.l4 + 8].fill(0);
            assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Absent));
        }
        if sample.l4 == 20 {
            let mut fragment = sample.packet.clone();
            fragment[6] = 0x20;
            assert_eq!(verify_l4(&fragment), Ok(L4Checksum::NotChecked));
            for protocol in [47, 58] {
                fragment[6] = 0;
                fragment[9] = protocol;
                assert_eq!(verify_l4(&fragment), Ok(L4Checksum::NotChecked));
            }
        } else {
            let mut fragment = sample.packet.clone();
            let next = std::mem::replace(&mut fragment[6], protocol::FRAGMENT);
            fragment[5] += 8;
            fragment.splice(40..40, [next, 0, 0, 1, 0, 0, 0, 0]);
            assert_eq!(verify_l4(&fragment), Ok(L4Checksum::NotChecked));
            fragment[43] = 0;
            let whole = verify_l4(&fragment).unwrap();
            assert!(
                matches!(whole, L4Checksum::Correct | L4Checksum::Absent),
                "an atomic fragment"
            );
        }
    }
}

proptest! {
    #[test]
    fn sum_and_fold_are_the_obvious_ones(
        bytes in prop::collection::vec(any::<u8>(), 0..3000), start in 0_usize..9,
        initial in 0_u64..1 << 40,
    ) {
        let piece = &bytes[start.min(bytes.len())..];
        prop_assert_eq!(fold(sum(piece, initial)), slow_fold(slow_sum(piece) + initial));
    }

    #[test]
    fn any_sum_folds(sum: u64) {
        prop_assert_eq!(fold(sum), slow_fold(sum));
    }

    #[test]
    fn pieces_of_even_length_add_up(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100) {
        let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
        prop_assert_eq!(fold(sum(tail, sum(head, 0))), fold(sum(&bytes, 0)));
    }

    #[test]
    fn twenty_bytes_are_summed_alike(header: [u8; 20]) {
        prop_assert_eq!(u16::from_be(native_fold_20(&header)), slow_fold(slow_sum(&header)));
    }

    #[test]
    fn incremental_update_is_recomputing(
        before in prop::collection::vec(any::<u8>(), 20..100), at in 0_usize..40, new: u128,
    ) {
        // A sum of nothing but zeros has another form of zero; no real header is all zeros.
        let mut data = before;
        data[0] = 0x45;
        data.truncate(data.len() & !1);
        let at = 2 + 2 * (at % ((data.len() - 18) / 2 + 1)).min((data.len() - 18) / 2);
        let checksum = finish(sum(&data, 0));
        let old: [u8; 16] = data[at..at + 16].try_into().unwrap();
        let new = new.to_be_bytes();
        for width in [2, 4, 16] {
            let mut changed = data.clone();
            changed[at..at + width].copy_from_slice(&new[..width]);
            let updated = match width {
                2 => update16(
                    checksum,
                    u16::from_be_bytes(*old.first_chunk().unwrap()),
                    u16::from_be_bytes(*new.first_chunk().unwrap()),
                ),
                4 => update32(
                    checksum,
                    u32::from_be_bytes(*old.first_chunk().unwrap()),
                    u32::from_be_bytes(*new.first_chunk().unwrap()),
                ),
                _ => update128(checksum, u128::from_be_bytes(old), u128::from_be_bytes(new)),
            };
            prop_assert_eq!(updated, finish(sum(&changed, 0)), "width {}", width);
        }
    }

    #[test]
    fn packets_of_etherparse_are_right_and_damage_is_seen(
        payload in prop::collection::vec(any::<u8>(), 1..200), flip: prop::sample::Index,
    ) {
        for mut sample in samples(&payload) {
            prop_assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Correct), "{}", sample.name);
            // Padding after the packet is no part of it.
            let mut padded = sample.packet.clone();
            padded.extend([0xff; 7]);
            prop_assert_eq!(verify_l4(&padded), Ok(L4Checksum::Correct), "{}", sample.name);
            let at = sample.packet.len() - payload.len() + flip.index(payload.len());
            sample.packet[at] ^= 0x10;
            prop_assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Wrong), "{}", sample.name);
        }
    }

    #[test]
    fn unfinished_checksums_are_seen_and_finished(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        for mut sample in samples(&payload).into_iter().filter(|sample| !sample.name.starts_with("icmp")) {
            let pseudo = pseudo_of(&sample);
            let right = field(&sample);
            let at = sample.l4 + sample.checksum;
            sample.packet[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
            prop_assert!(is_partial(field(&sample), pseudo));
            prop_assert!(complete_partial(&mut sample.packet[sample.l4..], sample.checksum));
            prop_assert_eq!(field(&sample), if right == 0 { 0xffff } else { right });
            prop_assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Correct));
        }
    }

    /// Two bytes of the payload are chosen so that the right, finished checksum is the one that looks
    /// unfinished: finishing it must not change the packet.
    #[test]
    fn finished_checksum_that_looks_unfinished_survives(
        mut payload in prop::collection::vec(any::<u8>(), 2..100),
    ) {
        payload[..2].fill(0);
        for mut sample in samples(&payload).into_iter().filter(|sample| !sample.name.starts_with("icmp")) {
            let pseudo = pseudo_of(&sample);
            let at = sample.l4 + sample.checksum;
            let wanted = fold(pseudo);
            // segment + pseudo + wanted must be all ones; the two bytes make up what is missing.
            sample.packet[at..at + 2].copy_from_slice(&wanted.to_be_bytes());
            let missing = finish(sum(&sample.packet[sample.l4..], pseudo));
            let body = sample.packet.len() - payload.len();
            sample.packet[body..body + 2].copy_from_slice(&missing.to_be_bytes());
            prop_assert_eq!(verify_l4(&sample.packet), Ok(L4Checksum::Correct));
            prop_assert!(is_partial(field(&sample), pseudo));
            let before = sample.packet.clone();
            prop_assert!(complete_partial(&mut sample.packet[sample.l4..], sample.checksum));
            prop_assert_eq!(before, sample.packet);
        }
    }

    #[test]
    fn computing_ignores_what_was_in_the_field(
        payload in prop::collection::vec(any::<u8>(), 0..100), dirt: [u8; 2],
    ) {
        for mut sample in samples(&payload) {
            let right = field(&sample);
            let at = sample.l4 + sample.checksum;
            sample.packet[at..at + 2].copy_from_slice(&dirt);
            let pseudo = if sample.name == "icmp4" { 0 } else { pseudo_of(&sample) };
            prop_assert!(compute(&mut sample.packet[sample.l4..], sample.checksum, pseudo));
            prop_assert_eq!(field(&sample), if right == 0 { 0xffff } else { right });
        }
    }
}
