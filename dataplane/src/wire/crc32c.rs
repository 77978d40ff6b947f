//! CRC-32C (RFC 9260 appendix A; polynomial 0x1edc6f41): of whole packets, and of a change alone.
//!
//! A CRC is linear: what a change of some bytes does to it depends on the change and on how many
//! bytes follow, and not on what these are. So a rewritten port costs two multiplications, not a pass
//! over the packet, and a packet that was broken stays broken.
#![allow(
    clippy::cast_possible_truncation,
    reason = "single bytes of wider numbers, and indices below 256"
)]

/// The polynomial, its bits in reverse, without the highest.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The polynomial 1: bits are in reverse.
const ONE: u32 = 1 << 31;

/// A polynomial times x, modulo [`POLYNOMIAL`].
const fn times_x(value: u32) -> u32 {
    value >> 1 ^ if value & 1 == 1 { POLYNOMIAL } else { 0 }
}

/// A polynomial times x to the 8: what one more byte of 0 does.
const fn times_byte(mut value: u32) -> u32 {
    let mut bit = 0;
    while bit < 8 {
        value = times_x(value);
        bit += 1;
    }
    value
}

/// The product of two polynomials, modulo [`POLYNOMIAL`].
const fn product(a: u32, b: u32) -> u32 {
    let (mut sum, mut shifted, mut bit) = (0, b, ONE);
    while bit != 0 {
        // Without branches: the bits are as good as random.
        sum ^= shifted & 0_u32.wrapping_sub((a & bit != 0) as u32);
        shifted = times_x(shifted);
        bit >>= 1;
    }
    sum
}

/// What each byte does, 0 to 255.
const BYTES: [u32; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0;
    while byte < bytes.len() {
        bytes[byte] = times_byte(byte as u32);
        byte += 1;
    }
    bytes
};

/// What 0 to 255 bytes of 0 do.
const ZEROS: [u32; 256] = powers(times_byte(ONE));

/// What 0 to 255 times 256 bytes of 0 do.
const PAGES_OF_ZEROS: [u32; 256] = powers(times_byte(ZEROS[255]));

/// 1, `base` and its powers.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut place = 1;
    while place < powers.len() {
        powers[place] = product(powers[place - 1], base);
        place += 1;
    }
    powers
}

/// Goes on with a CRC's register over `bytes`.
fn update(register: u32, bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(register, |register, byte| register >> 8 ^ BYTES[usize::from(register as u8 ^ byte)])
}

/// The CRC of the parts, one after the other.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |register, part| update(register, part))
}

/// What is to be added, by exclusive or, to the CRC of a packet in which four bytes changed:
/// `change` is old exclusive-or new, in the order of the packet, and `behind` the number of bytes
/// that follow these four. With 0 behind it is what [`moved`] takes.
#[must_use]
pub fn difference(change: [u8; 4], behind: u16) -> u32 {
    moved(update(0, &change), behind)
}

/// A difference with nothing behind, for `behind` bytes behind.
#[inline]
#[must_use]
pub fn moved(difference: u32, behind: u16) -> u32 {
    let [pages, bytes] = behind.to_be_bytes();
    let near = product(difference, ZEROS[usize::from(bytes)]);
    product(near, PAGES_OF_ZEROS[usize::from(pages)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_vectors() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&up]), 0x46dd_794e);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[&down]), 0x113f_db5c);
        // The check value of catalogues.
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn the_longest_packet() {
        let mut packet = vec![0x5a; 4 + 65_535];
        let before = crc32c(&[&packet]);
        packet[2] ^= 0x80;
        assert_eq!(before ^ difference([0, 0, 0x80, 0], 65_535), crc32c(&[&packet]));
    }

    proptest! {
        #[test]
        fn a_difference_is_what_a_new_pass_finds(
            front in prop::collection::vec(any::<u8>(), 0..40),
            old: [u8; 4],
            new: [u8; 4],
            behind in prop::collection::vec(any::<u8>(), 0..1500),
        ) {
            let change = [0, 1, 2, 3].map(|place| old[place] ^ new[place]);
            let count = u16::try_from(behind.len()).unwrap();
            let difference = difference(change, count);
            prop_assert_eq!(difference, moved(super::difference(change, 0), count));
            prop_assert_eq!(
                crc32c(&[&front, &old, &behind]) ^ difference,
                crc32c(&[&front, &new, &behind])
            );
        }
    }
}
