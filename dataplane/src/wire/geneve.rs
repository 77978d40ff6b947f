//! Geneve (RFC 8926 sections 3.4 and 3.5).
//!
//! ```text
//!  0            1            2               4             7          8
//! +------------+------------+---------------+-------------+----------+------------
//! | Ver OptLen | O C Rsvd   | protocol type | VNI         | reserved | options ...
//! +------------+------------+---------------+-------------+----------+------------
//!
//! option:  0               2          3              4
//!         +---------------+----------+--------------+----------------------------
//!         | class         | type     | Rsvd  Length | data, 4 * Length bytes
//!         +---------------+----------+--------------+----------------------------
//! ```

use overlane_api::types::Vni;

use super::{Header, ParseError, fixed, get, get_u16, get_u32, put};

/// UDP destination port (IANA).
pub const PORT: u16 = 6081;
/// Bytes of the header without options.
pub const HEADER_LEN: usize = 8;
/// Most bytes of options: 63 words.
pub const MAX_OPTIONS_LEN: usize = 252;
/// Bytes of an option without its data.
pub const OPTION_HEADER_LEN: usize = 4;
/// Most bytes of data in one option: 31 words.
pub const MAX_OPTION_DATA_LEN: usize = 124;
/// Class of the option that names the service of a packet: Cilium's (IANA Geneve Option Class).
pub const SERVICE_CLASS: u16 = 0x014b;
/// Type of that option within its class. It is critical.
pub const SERVICE_TYPE: u8 = 0x81;
/// Bytes of its data for a packet over IPv4: address, port, two that are 0; network order.
pub const SERVICE_V4: usize = 8;
/// The same over IPv6.
pub const SERVICE_V6: usize = 20;
/// Bit of an option's type: who does not know the option must drop the packet.
pub const OPTION_CRITICAL: u8 = 0x80;

const VERSION_AND_OPTIONS: usize = 0;
const FLAGS: usize = 1;
const PROTOCOL: usize = 2;
const VNI: usize = 4;

const FLAG_CONTROL: u8 = 0x80;
const FLAG_CRITICAL: u8 = 0x40;
const MAX_OPTION_WORDS: u8 = 63;

const OPTION_CLASS: usize = 0;
const OPTION_TYPE: usize = 2;
const OPTION_LENGTH: usize = 3;

/// The 24-bit VNI at `AT`, which both tunnel headers have in the upper three bytes of a word.
#[inline]
pub(super) fn vni_at<const AT: usize, const N: usize>(header: &[u8; N]) -> Vni {
    Vni::new(get_u32::<AT, N>(header) >> 8).expect("a word shifted right by 8 has 24 bits")
}

/// A Geneve header, its options and the payload after them.
#[derive(Debug, Clone, Copy)]
pub struct Geneve<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Geneve<'a> {
    /// Views the start of `datagram`, a UDP payload. Reserved bits are ignored. The options' own
    /// lengths are looked at by [`Geneve::options`], not here.
    ///
    /// # Errors
    /// [`ParseError::BadVersion`] unless 0; [`ParseError::Truncated`] when the header or the options
    /// it announces do not fit in the datagram.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_LEN] = fixed(datagram, Header::Geneve)?;
        let version = header[VERSION_AND_OPTIONS] >> 6;
        if version != 0 {
            return Err(ParseError::BadVersion { header: Header::Geneve, found: version });
        }
        let header_len = HEADER_LEN + 4 * usize::from(header[VERSION_AND_OPTIONS]);
        let (Some(options), Some(payload)) =
            (datagram.get(HEADER_LEN..header_len), datagram.get(header_len..))
        else {
            return Err(ParseError::truncated(Header::Geneve, header_len, datagram.len()));
        };
        Ok(Self { header, options, payload })
    }

    /// Always 0: [`Geneve::parse`] takes no other.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.header[VERSION_AND_OPTIONS] >> 6
    }

    /// Bytes of options, 0 to 252 in steps of 4.
    #[inline]
    #[must_use]
    pub fn opt_len(&self) -> usize {
        self.options.len()
    }

    /// Bytes of header and options, 8 to 260.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// The O flag: a control packet, whose payload must not be forwarded.
    #[inline]
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.header[FLAGS] & FLAG_CONTROL != 0
    }

    /// The C flag: at least one option is critical, so the options must be read.
    #[inline]
    #[must_use]
    pub fn has_critical(&self) -> bool {
        self.header[FLAGS] & FLAG_CRITICAL != 0
    }

    /// EtherType of the payload.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u16 {
        get_u16::<PROTOCOL, HEADER_LEN>(self.header)
    }

    /// The virtual network.
    #[inline]
    #[must_use]
    pub fn vni(&self) -> Vni {
        vni_at::<VNI, HEADER_LEN>(self.header)
    }

    /// The options in their order.
    #[inline]
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options }
    }

    /// The inner packet.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneveOption<'a> {
    /// Namespace of the type, assigned by IANA.
    pub class: u16,
    /// Type within the class, the critical bit included.
    pub option_type: u8,
    /// The data, 0 to 124 bytes in steps of 4.
    pub data: &'a [u8],
}

impl GeneveOption<'_> {
    /// Must who does not know this option drop the packet?
    #[inline]
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.option_type & OPTION_CRITICAL != 0
    }
}

/// Walks options; ends after the first error.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<GeneveOption<'a>, ParseError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some(header) = rest.first_chunk::<OPTION_HEADER_LEN>() else {
            let error =
                ParseError::bad_option_length(Header::Geneve, OPTION_HEADER_LEN, rest.len());
            return Some(Err(error));
        };
        let length = OPTION_HEADER_LEN + 4 * usize::from(header[OPTION_LENGTH] & 0x1f);
        let (Some(data), Some(next)) = (rest.get(OPTION_HEADER_LEN..length), rest.get(length..))
        else {
            return Some(Err(ParseError::bad_option_length(Header::Geneve, length, rest.len())));
        };
        self.rest = next;
        let class = u16::from_be_bytes(get::<OPTION_CLASS, 2, OPTION_HEADER_LEN>(header));
        Some(Ok(GeneveOption { class, option_type: header[OPTION_TYPE], data }))
    }
}

impl std::iter::FusedIterator for Options<'_> {}

/// Writes all of a header. `opt_len_words` is the length of the options in 4-byte words; there can be
/// 63, and more is written as 63. Set `critical` when any option's type has [`OPTION_CRITICAL`].
#[inline]
pub fn write_header(
    buf: &mut [u8; HEADER_LEN],
    vni: Vni,
    protocol: u16,
    opt_len_words: u8,
    critical: bool,
    control: bool,
) {
    let flags = (FLAG_CRITICAL * u8::from(critical)) | (FLAG_CONTROL * u8::from(control));
    let [p, q] = protocol.to_be_bytes();
    let [a, b, c] = vni.octets();
    let words = opt_len_words.min(MAX_OPTION_WORDS);
    put::<VERSION_AND_OPTIONS, 8, HEADER_LEN>(buf, [words, flags, p, q, a, b, c, 0]);
}

/// Writes one option at the start of `buf` and returns its length in bytes. Returns `None`, with
/// nothing written, when `data` is no multiple of 4 bytes or longer than [`MAX_OPTION_DATA_LEN`], or
/// when `buf` is too short.
#[inline]
pub fn write_option(buf: &mut [u8], class: u16, option_type: u8, data: &[u8]) -> Option<usize> {
    if !data.len().is_multiple_of(4) || data.len() > MAX_OPTION_DATA_LEN {
        return None;
    }
    let length = OPTION_HEADER_LEN + data.len();
    let words = u8::try_from(data.len() / 4).ok()?;
    let (header, rest) = buf.get_mut(..length)?.split_first_chunk_mut::<OPTION_HEADER_LEN>()?;
    let [a, b] = class.to_be_bytes();
    *header = [a, b, option_type, words];
    rest.copy_from_slice(data);
    Some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ethernet::ETHERTYPE_TEB;
    use super::*;

    const PLAIN: [u8; 8] = [0x00, 0x00, 0x65, 0x58, 0x00, 0x0c, 0xe5, 0x00];
    /// One critical option of 8 bytes, and two bytes of payload.
    const CRITICAL: [u8; 18] = [
        0x02, 0x40, 0x65, 0x58, 0x00, 0x0c, 0xe5, 0x00, 0xff, 0x01, 0x81, 0x01, 1, 2, 3, 4, 0xaa,
        0xbb,
    ];

    fn vni() -> Vni {
        Vni::new(3301).unwrap()
    }

    #[test]
    fn known_bytes_are_read() {
        let view = Geneve::parse(&PLAIN).unwrap();
        assert_eq!((view.version(), view.opt_len(), view.header_len()), (0, 0, 8));
        assert_eq!((view.protocol(), view.vni()), (ETHERTYPE_TEB, vni()));
        assert!(!view.is_control() && !view.has_critical());
        assert!(view.options().next().is_none() && view.payload().is_empty());

        let view = Geneve::parse(&CRITICAL).unwrap();
        assert_eq!((view.opt_len(), view.header_len()), (8, 16));
        assert!(view.has_critical() && !view.is_control());
        let options: Vec<_> = view.options().collect();
        let option = GeneveOption { class: 0xff01, option_type: 0x81, data: &[1, 2, 3, 4] };
        assert_eq!(options, [Ok(option)]);
        assert!(option.is_critical());
        assert_eq!(view.payload(), [0xaa, 0xbb]);
    }

    #[test]
    fn written_bytes_do_not_depend_on_the_buffer() {
        for dirt in [0x00, 0xff] {
            let mut buf = [dirt; 18];
            write_header(buf.first_chunk_mut().unwrap(), vni(), ETHERTYPE_TEB, 0, false, false);
            assert_eq!(buf[..8], PLAIN);
            write_header(buf.first_chunk_mut().unwrap(), vni(), ETHERTYPE_TEB, 2, true, false);
            assert_eq!(write_option(&mut buf[8..], 0xff01, 0x81, &[1, 2, 3, 4]), Some(8));
            assert_eq!(buf[..16], CRITICAL[..16]);
            assert_eq!(buf[16..], [dirt; 2]);
        }
    }

    #[test]
    fn too_short_is_an_error_at_each_length() {
        for length in 0..16 {
            let need = if length < 8 { 8 } else { 16 };
            let have = u16::try_from(length).unwrap();
            assert_eq!(
                Geneve::parse(&CRITICAL[..length]).unwrap_err(),
                ParseError::Truncated { header: Header::Geneve, need, have }
            );
        }
    }

    #[test]
    fn other_versions_are_refused() {
        for found in 1..4 {
            let mut bytes = PLAIN;
            bytes[0] = found << 6;
            let wanted = ParseError::BadVersion { header: Header::Geneve, found };
            assert_eq!(Geneve::parse(&bytes).unwrap_err(), wanted);
        }
    }

    #[test]
    fn reserved_bits_are_ignored() {
        let mut bytes = CRITICAL;
        bytes[1] |= 0x3f;
        bytes[7] = 0xff;
        bytes[11] |= 0xe0;
        let (dirty, clean) = (Geneve::parse(&bytes).unwrap(), Geneve::parse(&CRITICAL).unwrap());
        assert_eq!((dirty.vni(), dirty.protocol()), (clean.vni(), clean.protocol()));
        assert!(!dirty.is_control());
        assert!(dirty.options().eq(clean.options()));
        bytes[1] |= 0x80;
        assert!(Geneve::parse(&bytes).unwrap().is_control());
    }

    #[test]
    fn option_past_the_end_is_an_error_and_the_end() {
        for words in 2..32 {
            let mut bytes = CRITICAL;
            bytes[11] = words;
            let view = Geneve::parse(&bytes).unwrap();
            let length = 4 + 4 * u16::from(words);
            let error = ParseError::BadOptionLength { header: Header::Geneve, length, have: 8 };
            assert_eq!(view.options().collect::<Vec<_>>(), [Err(error)]);
        }
        // A shorter one leaves the other four bytes to be an option without data.
        let mut bytes = CRITICAL;
        bytes[11] = 0;
        let lengths: Vec<_> =
            Geneve::parse(&bytes).unwrap().options().map(|o| o.map(|o| o.data.len())).collect();
        let error = ParseError::BadOptionLength { header: Header::Geneve, length: 20, have: 4 };
        assert_eq!(lengths, [Ok(0), Err(error)]);
    }

    #[test]
    fn options_that_cannot_be_are_not_written() {
        let mut buf = [0x77; 132];
        for data in [&[0; 1][..], &[0; 3], &[0; 6], &[0; 128]] {
            assert_eq!(write_option(&mut buf, 0, 0, data), None);
        }
        assert_eq!(write_option(&mut buf[..7], 0, 0, &[0; 4]), None);
        assert_eq!(buf, [0x77; 132]);
        assert_eq!(write_option(&mut buf, 0, 0, &[0; MAX_OPTION_DATA_LEN]), Some(128));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            number in 0..=Vni::MAX,
            protocol: u16,
            control: bool,
            options in prop::collection::vec(
                (any::<u16>(), any::<u8>(), (0_usize..8).prop_flat_map(|words| {
                    prop::collection::vec(any::<u8>(), words * 4)
                })), 0..7),
        ) {
            let mut buf = [0xff; HEADER_LEN + MAX_OPTIONS_LEN];
            let mut end = HEADER_LEN;
            for (class, option_type, data) in &options {
                end += write_option(&mut buf[end..], *class, *option_type, data).unwrap();
            }
            let words = u8::try_from((end - HEADER_LEN) / 4).unwrap();
            let critical = options.iter().any(|option| option.1 & OPTION_CRITICAL != 0);
            let vni = Vni::new(number).unwrap();
            write_header(buf.first_chunk_mut().unwrap(), vni, protocol, words, critical, control);
            let view = Geneve::parse(&buf[..end]).unwrap();
            prop_assert_eq!((view.vni(), view.protocol()), (vni, protocol));
            prop_assert_eq!((view.has_critical(), view.is_control()), (critical, control));
            let read: Vec<_> = view.options().map(Result::unwrap).collect();
            let wanted: Vec<_> = options.iter()
                .map(|(class, option_type, data)| GeneveOption {
                    class: *class, option_type: *option_type, data
                })
                .collect();
            prop_assert_eq!(read, wanted);
            prop_assert!(view.payload().is_empty());
        }

        #[test]
        fn options_without_error_cover_every_byte(words in 0_u8..64, noise: [u8; 252]) {
            let mut buf = [0; 260];
            buf[0] = words;
            buf[8..].copy_from_slice(&noise);
            let view = Geneve::parse(&buf).unwrap();
            let items: Vec<_> = view.options().collect();
            if items.iter().all(Result::is_ok) {
                let total: usize = items.iter().flatten().map(|o| o.data.len() + 4).sum();
                prop_assert_eq!(total, 4 * usize::from(words));
            } else {
                prop_assert!(items.iter().rev().skip(1).all(Result::is_ok));
            }
        }
    }
}
