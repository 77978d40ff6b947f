//! Bytes -> what is known about the packet; and the checks on where it comes from.

pub mod decap;
pub mod parse;
pub mod path_mtu;
pub mod peer_check;
pub mod source_check;

use crate::packet::drop::DropReason;
use crate::wire::ParseError;

/// What a malformed IP header of a pod's packet is counted as.
pub(super) fn inside_reason(error: &ParseError) -> DropReason {
    if is_cut_short(error) { DropReason::FrameTruncated } else { DropReason::BadIpHeader }
}

/// Does the packet end before its headers do, or before it says it does?
pub(super) fn is_cut_short(error: &ParseError) -> bool {
    match error {
        ParseError::Truncated { .. } => true,
        ParseError::BadTotalLength { length, have, .. } => length > have,
        _ => false,
    }
}
