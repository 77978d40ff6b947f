//! IPv4 packets that are too large for the way out and may be fragmented: the *inner* packet is,
//! and each piece is encapsulated on its own (RFC 791 section 3.2, RFC 4787 REQ-13).
//!
//! The frame itself becomes the first piece; the others are made here. A packet with IP options is
//! not fragmented.

use super::rewrite;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Target};
use crate::packet::vector::{Packet, Vector};
use crate::packet::verdict::Verdict;
use crate::stages::{Context, keys};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4, Ipv4Header};

/// Fragments the packets of the vector that were found too big and may be. Says whether there
/// were any: their first pieces are undecided again.
pub(super) fn phase(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let mut any = false;
    for (frame, meta) in vector.packets() {
        let too_big = meta.verdict == Verdict::Drop(DropReason::PacketTooBig);
        if !too_big || meta.dont_fragment || meta.kind != Kind::Ipv4 {
            continue;
        }
        let limit = usize::from(keys::mtu(frame, meta, cx.tables));
        if matches!(meta.route.target(), Target::Direct(_)) {
            // What goes to a backend that answers itself keeps its source and so its name, and its pieces
            // are told of the service.
            rewrite::adjust_crc_of_whole(frame, meta, cx.flows);
        } else {
            // Whole: its pieces have no ports, and some checksums are of all of it.
            rewrite::step(frame, meta, cx.flows);
        }
        if split(frame, meta, limit, cx).is_some() {
            meta.verdict = Verdict::Pending;
            any = true;
        } else {
            meta.verdict = Verdict::Drop(DropReason::FragmentationFailed);
        }
    }
    any
}

/// Cuts the packet into pieces of at most `limit` bytes: all of them or none.
fn split(frame: &mut Frame, meta: &mut Meta, limit: usize, cx: &mut Context<'_>) -> Option<()> {
    let (header, payload_len) = {
        let ip = Ipv4::parse(frame.bytes().get(ethernet::HEADER_LEN..)?).ok()?;
        if ip.has_options() {
            return None;
        }
        let header = Ipv4Header {
            tos: ip.tos(),
            total_len: ip.total_len(),
            identification: ip.identification(),
            fragment: ip.fragment_offset()
                | if ip.more_fragments() { ipv4::MORE_FRAGMENTS } else { 0 },
            ttl: ip.ttl(),
            protocol: ip.protocol(),
            source: ip.source(),
            destination: ip.destination(),
        };
        (header, ip.payload().len())
    };
    // A fragment that ends beyond the longest packet: its pieces' offsets do not exist.
    if usize::from(header.fragment & 0x1fff) * 8 + payload_len > usize::from(u16::MAX) {
        return None;
    }
    // Offsets count in units of 8 bytes.
    let piece = limit.checked_sub(ipv4::MIN_HEADER_LEN)? & !7;
    if piece == 0 || payload_len.div_ceil(piece) - 1 > crate::packet::vector::VECTOR - cx.made.len()
    {
        return None;
    }
    let already_made = cx.made.len();
    let mut at = piece;
    while at < payload_len {
        let len = piece.min(payload_len - at);
        let made = later_piece(frame, meta, &header, at, len, at + len == payload_len, cx);
        if made.is_none() {
            while cx.made.len() > already_made {
                cx.made.meta.pop();
                if let Some(frame) = cx.made.frames.pop() {
                    cx.pool.give(frame);
                }
            }
            return None;
        }
        at += len;
    }
    write_header(
        frame,
        meta,
        Ipv4Header { fragment: header.fragment | ipv4::MORE_FRAGMENTS, ..header },
        piece,
    )
}

#[allow(clippy::too_many_arguments)]
fn later_piece(
    frame: &Frame,
    meta: &Meta,
    header: &Ipv4Header,
    at: usize,
    len: usize,
    is_last: bool,
    cx: &mut Context<'_>,
) -> Option<()> {
    const PAYLOAD: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;
    let payload = frame.bytes().get(PAYLOAD + at..PAYLOAD + at + len)?;
    let mut piece = cx.pool.take()?;
    let more = if is_last { header.fragment & ipv4::MORE_FRAGMENTS } else { ipv4::MORE_FRAGMENTS };
    let offset = (header.fragment & 0x1fff) + (at / 8) as u16;
    let mut piece_meta = *meta;
    piece_meta.verdict = Verdict::Pending;
    piece_meta.l4 = 0;
    piece_meta.is_fragment = true;
    let written = piece.set_len(PAYLOAD + len).is_ok().then(|| {
        let bytes = piece.bytes_mut();
        bytes.get_mut(PAYLOAD..)?.copy_from_slice(payload);
        bytes.get_mut(..ethernet::HEADER_LEN)?.copy_from_slice(frame.bytes().get(..14)?);
        write_header(
            &mut piece,
            &mut piece_meta,
            Ipv4Header { fragment: offset | more, ..*header },
            len,
        )
    });
    if written.flatten().is_none() {
        cx.pool.give(piece);
        return None;
    }
    match cx.made.push(Packet { frame: piece, meta: piece_meta, received_ns: 0 }) {
        Ok(()) => Some(()),
        Err(packet) => {
            cx.pool.give(packet.frame);
            None
        }
    }
}

/// Writes the piece's header over the frame's, and cuts the frame to its payload of `len` bytes.
fn write_header(frame: &mut Frame, meta: &mut Meta, header: Ipv4Header, len: usize) -> Option<()> {
    let ip_len = ipv4::MIN_HEADER_LEN + len;
    let place = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?;
    Ipv4Header { total_len: ip_len as u16, ..header }.write(place);
    frame.truncate(ethernet::HEADER_LEN + ip_len);
    meta.ip_len = ip_len as u16;
    meta.is_fragment = true;
    Some(())
}
