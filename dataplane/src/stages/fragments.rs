//! Fragments: the first one of a packet has the ports, and is remembered; the later ones are asked what
//! that said, and wait a little when they come before it. Asked by `ingress` for what comes from the
//! uplink to an address that is the host's as well, by `resolve` for the rest.
//!
//! ```text
//! pod, tunnel, handed over  --- its flow's worker ----------------------------> flow
//! uplink  --- worker by {addresses, identification} --- ports: whose is it? ---> flow's worker, or host
//! ```
//!
//! Nothing is put together here. Only a first fragment's transport header is rewritten, its checksum
//! by the difference, so what the receiver makes of the fragments has a right one if the sender's had. What
//! other ports do to the CRC of an SCTP packet depends on its length, and on nothing else of what follows: its
//! first fragment waits for the last one, which says that.
//! Fragments that overlap are the receiver's to refuse (RFC 5722): each goes where its packet's first
//! one went, or the latest of several first ones. RFC 4787 REQ-14.

use overlane_api::WorkerId;

use super::Context;
use crate::flow::flows::Flows;
use crate::flow::fragments::{FragmentKey, FragmentMap, FragmentPorts};
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{Address, FlowHash, FlowKey};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta};
use crate::packet::verdict::Verdict;
use crate::wire::ipv6::FragmentInfo;
use crate::wire::sctp::SctpMut;
use crate::wire::{ethernet, icmpv4, peek, protocol, sctp, tcp, udp};

/// How long the length of a packet is known of which another worker remembers the first fragment, ticks: as
/// long as that waits, a second.
const PATIENCE: u32 = (1_000_000_000 / crate::flow::TICK_NS) as u32 + 2;

/// Remembers a first fragment; gives a later one the ports of its first.
///
/// # Errors
/// It waits for the first one of its packet, or it is dropped.
#[cold]
#[inline(never)]
pub fn step(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) -> Result<(), Verdict> {
    let malformed = Verdict::Drop(DropReason::BadIpHeader);
    let info = info(frame, meta).ok_or(malformed)?;
    if is_too_short(meta, &info) {
        return Err(Verdict::Drop(DropReason::FragmentTooShort));
    }
    match meta.kind {
        Kind::Ipv4 => {
            let key = key_v4(meta, &info);
            if meta.l4 != 0 {
                meta.new_id = new_id(&key, meta, cx.flows, Flows::tick(cx.now_ns));
            }
            remember_or_ask(&key, meta, cx, |flows| &mut flows.fragments_v4)
        }
        _ => remember_or_ask(&key_v6(frame, &info), meta, cx, |flows| &mut flows.fragments_v6),
    }
}

/// What the fragments of a packet are named by if it leaves with a shared address. A sender that uses
/// its own name again soon finds the same one: fragments that come before their first have it already.
fn new_id(key: &FragmentKey<u32>, meta: &Meta, flows: &mut Flows, now: u32) -> u16 {
    let known = flows.fragments_v4.find(key, now).filter(|known| {
        (known.source_port, known.destination_port) == (meta.source_port, meta.destination_port)
    });
    match known {
        Some(known) => known.new_id,
        None => flows.identifications.next(key.destination, key.protocol),
    }
}

fn remember_or_ask<A: Address>(
    key: &FragmentKey<A>,
    meta: &mut Meta,
    cx: &mut Context<'_>,
    map: fn(&mut Flows) -> &mut FragmentMap<A>,
) -> Result<(), Verdict> {
    let now = Flows::tick(cx.now_ns);
    let timeout = cx.flows.fragment_timeout();
    let map = map(cx.flows);
    meta.datagram = number(key, cx.tables.node.salt) as u16;
    if meta.l4 != 0 {
        map.insert(key, said(meta), now, timeout);
        // A vector has no more first fragments than this has places.
        let _ = cx.first_fragments.try_push(meta.datagram);
    } else {
        let ports = map.find(key, now).ok_or(Verdict::Wait)?;
        (meta.source_port, meta.destination_port) = (ports.source_port, ports.destination_port);
        (meta.protocol, meta.new_id) = (ports.protocol, ports.new_id);
    }
    meta.is_known_fragment = true;
    Ok(())
}

/// What a first fragment says.
fn said(meta: &Meta) -> FragmentPorts {
    FragmentPorts {
        source_port: meta.source_port,
        destination_port: meta.destination_port,
        protocol: meta.protocol,
        home: None,
        new_id: meta.new_id,
    }
}

/// The first fragment of a packet goes on to another worker, `home`, where its flow is: so will the
/// later ones.
#[cold]
#[inline(never)]
pub fn goes_on(frame: &Frame, meta: &Meta, home: WorkerId, cx: &mut Context<'_>) {
    let Some(info) = info(frame, meta) else { return };
    let ports = FragmentPorts { home: Some(home), ..said(meta) };
    let (now, timeout) = (Flows::tick(cx.now_ns), cx.flows.fragment_timeout());
    match meta.kind {
        Kind::Ipv4 => cx.flows.fragments_v4.insert(&key_v4(meta, &info), ports, now, timeout),
        _ => cx.flows.fragments_v6.insert(&key_v6(frame, &info), ports, now, timeout),
    }
}

/// What becomes of a later fragment of a packet that has no flow here: it goes where the first one has
/// gone on to. That asked each worker once at most, and went to a pod's home from there.
#[cold]
#[inline(never)]
pub fn after_first(frame: &Frame, meta: &mut Meta, cx: &Context<'_>) -> Verdict {
    let hops = cx.tables.node.uplinks.len() + 1;
    match home(frame, meta, cx) {
        Some(home) if usize::from(meta.asked) < hops => {
            meta.asked += 1;
            Verdict::HandOver(home)
        }
        _ => Verdict::Drop(DropReason::FragmentNotTranslated),
    }
}

/// The worker that the first fragment of this later one's packet has gone on to; none: it has not.
fn home(frame: &Frame, meta: &Meta, cx: &Context<'_>) -> Option<WorkerId> {
    let info = info(frame, meta)?;
    let now = Flows::tick(cx.now_ns);
    let known = match meta.kind {
        Kind::Ipv4 => cx.flows.fragments_v4.find(&key_v4(meta, &info), now),
        _ => cx.flows.fragments_v6.find(&key_v6(frame, &info), now),
    };
    known?.home.filter(|home| *home != cx.worker)
}

/// The worker that remembers the packet of which this is a fragment, among all: they come by any queue.
#[cold]
#[inline(never)]
pub fn worker(frame: &Frame, meta: &Meta, cx: &Context<'_>) -> WorkerId {
    let salt = cx.tables.node.salt;
    let workers = cx.tables.node.uplinks.len().max(1) as u32;
    let number = info(frame, meta).map_or(0, |info| match meta.kind {
        Kind::Ipv4 => number(&key_v4(meta, &info), salt),
        _ => number(&key_v6(frame, &info), salt),
    });
    WorkerId((number % workers) as u8)
}

/// A number for all fragments of a packet, the same on every worker.
fn number<A: Address>(key: &FragmentKey<A>, salt: u64) -> u32 {
    FlowHash::new(salt).of(&FlowKey {
        source: key.source,
        destination: key.destination,
        source_port: (key.id >> 16) as u16,
        destination_port: key.id as u16,
        protocol: key.protocol,
    })
}

/// Makes the CRC of an SCTP packet right for other ports, `to`, when this is its first fragment; the ports
/// themselves are still to be written. The last one tells how long the packet is.
///
/// # Errors
/// It waits for the last fragment of its packet, or it is dropped.
#[cold]
#[inline(never)]
pub fn adjust_crc(
    frame: &mut Frame,
    meta: &Meta,
    to: (u16, u16),
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    const MALFORMED: Verdict = Verdict::Drop(DropReason::BadIpHeader);
    let info = info(frame, meta).ok_or(MALFORMED)?;
    let (begin, end) = payload(frame, meta).ok_or(MALFORMED)?;
    let now = Flows::tick(cx.now_ns);
    if meta.l4 == 0 {
        let whole = usize::from(info.offset) * 8 + end.saturating_sub(begin);
        if let (false, Ok(length)) = (info.more, u16::try_from(whole)) {
            match meta.kind {
                Kind::Ipv4 => {
                    let key = key_v4(meta, &info);
                    cx.flows.fragments_v4.note_length(&key, length, now, PATIENCE);
                }
                _ => {
                    let key = key_v6(frame, &info);
                    cx.flows.fragments_v6.note_length(&key, length, now, PATIENCE);
                }
            }
            // The first one goes on. A vector has no more fragments than this has places.
            let _ = cx.first_fragments.try_push(meta.datagram);
        }
        return Ok(());
    }
    let length = match meta.kind {
        Kind::Ipv4 => cx.flows.fragments_v4.take_length(&key_v4(meta, &info), now),
        _ => cx.flows.fragments_v6.take_length(&key_v6(frame, &info), now),
    };
    // Of that, extension headers are not the packet's.
    let extensions = usize::from(meta.l4).saturating_sub(begin) as u16;
    let length = length.ok_or(Verdict::Wait)?.saturating_sub(extensions);
    let packet = frame.bytes_mut().get_mut(ethernet::HEADER_LEN + usize::from(meta.l4)..);
    if let Some(Ok(mut header)) = packet.map(SctpMut::new) {
        header.adjust_checksum(
            sctp::ports_difference((meta.source_port, meta.destination_port), to),
            length,
        );
    }
    Ok(())
}

/// Where a fragment's payload begins and ends, from the start of its IP header.
fn payload(frame: &Frame, meta: &Meta) -> Option<(usize, usize)> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    match meta.kind {
        Kind::Ipv4 => peek::fragment_payload_v4(ip),
        _ => peek::fragment_payload_v6(ip),
    }
}

fn info(frame: &Frame, meta: &Meta) -> Option<FragmentInfo> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..)?;
    match meta.kind {
        Kind::Ipv4 => peek::fragment_v4(ip),
        _ => peek::fragment_v6(ip),
    }
}

fn key_v4(meta: &Meta, info: &FragmentInfo) -> FragmentKey<u32> {
    FragmentKey {
        source: meta.source,
        destination: meta.destination,
        id: info.identification,
        protocol: meta.protocol,
    }
}

fn key_v6(frame: &Frame, info: &FragmentInfo) -> FragmentKey<u128> {
    let ip = frame.bytes().get(ethernet::HEADER_LEN..).unwrap_or_default();
    FragmentKey {
        source: peek::source_v6(ip),
        destination: peek::destination_v6(ip),
        id: info.identification,
        protocol: 0,
    }
}

/// A transport header that is not all in the first fragment can be completed, or written over, by a
/// later one behind the back of who looked at it (RFC 1858 sections 2 to 4).
fn is_too_short(meta: &Meta, info: &FragmentInfo) -> bool {
    if meta.l4 == 0 {
        return meta.protocol == protocol::TCP && info.offset == 1;
    }
    let header = match meta.protocol {
        protocol::TCP => tcp::MIN_HEADER_LEN,
        protocol::UDP => udp::HEADER_LEN,
        protocol::SCTP => sctp::HEADER_LEN,
        protocol::ICMP | protocol::ICMPV6 => icmpv4::HEADER_LEN,
        _ => 0,
    };
    usize::from(meta.ip_len.saturating_sub(meta.l4)) < header
}
