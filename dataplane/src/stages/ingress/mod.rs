//! Bytes -> what is known about the packet; and the checks on where it comes from.

pub mod decap;
pub mod fragments;
pub mod home;
pub mod parse;
pub mod path_mtu;
pub mod peer_check;
pub mod source_check;
mod usual;

use self::parse::Asked;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::packet::vector::Vector;
use crate::packet::verdict::{PortId, Verdict};
use crate::stages::Context;
use crate::wire::simple::Simple;
use crate::wire::simple6::Simple6;
use crate::wire::{ParseError, ethernet};

/// Parses and checks a vector from pods and the host: both steps on one packet while its first
/// line is near.
#[inline(never)]
pub fn from_inside(vector: &mut Vector, cx: &mut Context<'_>) {
    for frame in &vector.frames {
        frame.prefetch();
    }
    let mut sender = source_check::Sender::of(PortId(u16::MAX), cx.tables);
    for (frame, meta) in vector.packets() {
        if meta.port != sender.port {
            sender = source_check::Sender::of(meta.port, cx.tables);
        }
        if is_plain(frame, meta, &sender, cx) {
            continue;
        }
        if let Err(reason) = parse_and_check(frame, meta, &sender, cx) {
            meta.verdict = Verdict::Drop(reason);
        }
    }
}

/// Is it a simple packet with which nothing is wrong? Then it is parsed and checked. All else,
/// good or bad, goes through [`parse_and_check`], which does the same and says what is wrong.
#[inline(always)]
fn is_plain(
    frame: &mut Frame,
    meta: &mut Meta,
    sender: &source_check::Sender<'_>,
    cx: &Context<'_>,
) -> bool {
    let passes = if let Some(packet) = Simple::read(frame.bytes()) {
        source_check::passes(&packet, sender, cx.tables)
            && parse::parse_simple(&packet, meta, Asked::Destination, cx)
    } else if let Some(packet) = Simple6::read(frame.bytes()) {
        source_check::passes6(&packet, sender, cx.tables)
            && parse::parse_simple6(&packet, meta, Asked::Destination, cx)
    } else {
        false
    };
    if passes {
        frame.truncate(ethernet::HEADER_LEN + usize::from(meta.ip_len));
    }
    passes
}

#[inline(never)]
fn parse_and_check(
    frame: &mut Frame,
    meta: &mut Meta,
    sender: &source_check::Sender<'_>,
    cx: &mut Context<'_>,
) -> Result<(), DropReason> {
    parse::step(frame, meta, cx)?;
    match meta.kind {
        Kind::Ipv4 | Kind::Ipv6 => source_check::step(frame, meta, sender, cx),
        // These are checked by who answers them.
        Kind::Arp | Kind::LinkV6 => Ok(()),
    }
}

#[cfg(test)]
mod plain_tests;

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
