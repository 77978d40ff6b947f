//! Geneve headers and their options.

use overlane_dataplane::wire::ParseError;
use overlane_dataplane::wire::geneve::{
    self, Geneve, GeneveOption, HEADER_LEN, MAX_OPTIONS_LEN, OPTION_HEADER_LEN,
};

/// Reads `bytes` as a Geneve header with options, and writes what was read again: the same bytes must
/// come out, but for the reserved bits. Options must tile their space exactly, or end in an error.
pub fn geneve_options(bytes: &[u8]) {
    let view = match Geneve::parse(bytes) {
        Ok(view) => view,
        Err(ParseError::Truncated { need, have, .. }) => {
            assert!(have < need && usize::from(have) == bytes.len().min(0xffff));
            return;
        }
        Err(ParseError::BadVersion { found, .. }) => {
            assert!(found == bytes[0] >> 6 && found != 0);
            return;
        }
        Err(error) => panic!("no error of a Geneve header: {error}"),
    };
    assert_eq!(view.header_len() + view.payload().len(), bytes.len());
    assert!(view.opt_len() <= MAX_OPTIONS_LEN && view.opt_len() % 4 == 0);

    let mut written = [0xa5; HEADER_LEN + MAX_OPTIONS_LEN];
    let mut end = HEADER_LEN;
    for option in view.options() {
        match option {
            Ok(option) => end += write(&mut written[end..], &option),
            Err(ParseError::BadOptionLength { length, have, .. }) => {
                assert!(length > have, "an option of {length} bytes fits in {have}");
                assert_eq!(end + usize::from(have), view.header_len(), "the rest is what is left");
                return;
            }
            Err(error) => panic!("no error of a Geneve option: {error}"),
        }
    }
    assert_eq!(end, view.header_len(), "options leave a gap");

    let words = u8::try_from(view.opt_len() / 4).expect("at most 63");
    let header = written.first_chunk_mut().expect("the buffer has a header");
    let (critical, control) = (view.has_critical(), view.is_control());
    geneve::write_header(header, view.vni(), view.protocol(), words, critical, control);
    let mut clean = bytes[..end].to_vec();
    clear_reserved(&mut clean);
    assert_eq!(written[..end], clean);
}

fn write(buf: &mut [u8], option: &GeneveOption<'_>) -> usize {
    let GeneveOption { class, option_type, data } = *option;
    geneve::write_option(buf, class, option_type, data).expect("what was read can be written")
}

/// Clears the bits that a sender sets to 0 and a receiver ignores (RFC 8926 sections 3.4 and 3.5).
fn clear_reserved(header: &mut [u8]) {
    header[1] &= 0xc0;
    header[7] = 0;
    let mut at = HEADER_LEN;
    while at < header.len() {
        header[at + 3] &= 0x1f;
        at += OPTION_HEADER_LEN + 4 * usize::from(header[at + 3]);
    }
}
