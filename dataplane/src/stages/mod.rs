//! L3: what is done with a vector of packets. The order of the steps is written here, on one
//! screen, and nowhere else.
//!
//! ```text
//! pod, host  parse, source check ----------------\
//! uplink     home -> parse -> decap -> parse -> peer check -> route -> flow, or what opens one -> hop, transmit
//! handed over, held, made here ------------------------^                                 ^
//! of a flow that had the packet before by the same tables -------------------------------'
//! ```
//! A step is a plain function on one packet; a phase runs it over the vector, asking for the
//! memory that the next one will touch. What comes by the uplink for another worker
//! leaves at `home`, as it came, and begins there. A step never touches a socket or a clock. Routes come first:
//! they say which packets can be of a flow at all; the others pay nothing for flows. Where most packets are of
//! flows they are asked for first, and what is found needs no route.
#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets and lengths inside of a frame are below 65,536, and halves of a product are meant"
)]

pub mod fragments;
pub mod ingress;
pub mod keys;
pub mod lookup;
pub mod resolve;
pub mod transmit;

use overlane_api::WorkerId;

use crate::flow::flows::Flows;
use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::pool::FramePool;
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::tables::Snapshot;

/// What the steps of one worker use besides the packets.
#[derive(Debug)]
pub struct Context<'a> {
    /// The tables in force.
    pub tables: &'a Snapshot,
    /// Whose vector this is.
    pub worker: WorkerId,
    /// Monotonic time, nanoseconds; at most a vector old.
    pub now_ns: u64,
    /// Free frames, for packets made here.
    pub pool: &'a mut FramePool,
    /// Packets made here: ICMP errors and fragments. Their turn comes after this vector.
    pub made: &'a mut Vector,
    /// This worker's flows.
    pub flows: &'a mut Flows,
    /// Packets whose first fragment came with this vector, by number: their later ones may go on.
    pub first_fragments: &'a mut FirstFragments,
    /// Limits ICMP errors.
    pub icmp_limit: &'a mut transmit::icmp_error::RateLimit,
    /// What the slow thread should know.
    pub notices: &'a mut Notices,
    /// Set by a step that met ARP or a link-local message.
    pub link_messages: &'a mut bool,
    /// Unfinished checksums that were finished, by number of the port they came from.
    pub finished_checksums: &'a mut [u64],
}

/// Something for the slow thread to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Nobody knows the next hop of this address on the underlay's link.
    NextHopWanted(std::net::IpAddr),
    /// A router says that packets to this address may have at most so many bytes.
    PathMtu(std::net::IpAddr, u16),
}

/// Notices of one vector; more than fit are left out, they come again.
pub type Notices = arrayvec::ArrayVec<Notice, 16>;

/// Numbers of packets ([`Meta::datagram`]).
pub type FirstFragments = arrayvec::ArrayVec<u16, { crate::packet::vector::VECTOR }>;

/// A vector from pods' ports and the host port.
pub fn from_inside(vector: &mut Vector, cx: &mut Context<'_>) {
    cx.flows.come_first = cx.flows.usual.inside;
    ingress::from_inside(vector, cx);
    answer_link_messages(vector, cx);
    let found = established(vector, cx);
    if found < vector.len() {
        let found = found + routed(vector, cx);
        cx.flows.usual.inside = is_most(found, vector);
    }
    forward(vector, cx);
}

/// Routes the packets that have no flow yet, and finds or opens those that they have. Says how many were
/// found.
fn routed(vector: &mut Vector, cx: &mut Context<'_>) -> usize {
    if resolve::route::phase(vector, cx) { connections(vector, cx) } else { 0 }
}

/// Finds the flows of packets that are certainly of one, where most were of late. Says how many.
fn established(vector: &mut Vector, cx: &mut Context<'_>) -> usize {
    if cx.flows.come_first { lookup::established::phase(vector, cx) } else { 0 }
}

/// Are so many of the vector's packets the greater part?
fn is_most(count: usize, vector: &Vector) -> bool {
    2 * count > vector.len()
}

/// A vector from the uplink, of frames that are this worker's as far as [`home`](ingress::home) can say.
pub fn from_uplink(vector: &mut Vector, cx: &mut Context<'_>) {
    cx.flows.come_first = cx.flows.usual.uplink;
    ingress::decap::phase(vector, cx);
    answer_link_messages(vector, cx);
    let mut found = established(vector, cx);
    if found < vector.len() {
        let answers_come = ingress::peer_check::phase(vector, cx);
        let flows = resolve::route::phase(vector, cx);
        if answers_come {
            resolve::gateway::phase(vector, cx);
        }
        if flows {
            found += connections(vector, cx);
        }
        cx.flows.usual.uplink = is_most(found, vector);
    }
    forward(vector, cx);
}

/// ARP and neighbour discovery are rare: a pass over the vector only when it has any.
fn answer_link_messages(vector: &mut Vector, cx: &mut Context<'_>) {
    if *cx.link_messages {
        transmit::arp_nd::phase(vector, cx);
    }
}

/// A vector whose packets were routed before: handed over by another worker, or fragments that waited
/// for the first one of their packet.
pub fn from_worker(vector: &mut Vector, cx: &mut Context<'_>) {
    ingress::fragments::phase(vector, cx);
    if resolve::route::confirm(vector, cx) {
        resolve::gateway::phase(vector, cx);
    }
    connections(vector, cx);
    forward(vector, cx);
}

/// A vector whose packets were parsed before: held for a next hop, or made here.
pub fn from_here(vector: &mut Vector, cx: &mut Context<'_>) {
    resolve::route::again(vector, cx);
    forward(vector, cx);
}

/// Finds the flows of the packets that may have one, and opens those of first packets. Says how many were
/// found. A function of its own, so that its cost can be told from the poll loop's.
#[inline(never)]
fn connections(vector: &mut Vector, cx: &mut Context<'_>) -> usize {
    let (found, is_left) = lookup::conntrack::phase(vector, cx);
    if is_left {
        resolve::connect::phase(vector, cx);
    }
    found
}

/// Gives every undecided packet its way out; then does what the others' verdicts ask for.
#[inline(never)]
fn forward(vector: &mut Vector, cx: &mut Context<'_>) {
    if !ways_out(vector, cx) && transmit::unsent(vector, cx) {
        ways_out(vector, cx);
    }
}

/// Gives every undecided packet its way out. Says whether all are sent.
#[inline(never)]
fn ways_out(vector: &mut Vector, cx: &mut Context<'_>) -> bool {
    let uplink = transmit::uplink(cx);
    let mut all_sent = true;
    for (frame, meta) in vector.packets() {
        if meta.is_pending() {
            meta.verdict = way_out(frame, meta, &uplink, cx).unwrap_or_else(|verdict| verdict);
        }
        all_sent &= matches!(meta.verdict, Verdict::Send(_));
    }
    all_sent
}

/// The way out of one packet: the hop, and then the bytes that leave. What the route names is
/// looked up once for both.
///
/// # Errors
/// The verdict about a packet that does not get that far.
#[inline(always)]
fn way_out(
    frame: &mut Frame,
    meta: &mut Meta,
    uplink: &Verdict,
    cx: &mut Context<'_>,
) -> Result<Verdict, Verdict> {
    const NO_ROUTE: Verdict = Verdict::Drop(DropReason::NoRoute);
    let tables = cx.tables;
    match meta.route.target() {
        Target::Peer(index) => {
            let peer = tables.peers.get(index).ok_or(NO_ROUTE)?;
            resolve::hop::to_underlay(meta, peer.mtu, tables)?;
            transmit::rewrite::step(frame, meta, cx.flows);
            Ok(transmit::encap::step(frame, meta, peer, uplink))
        }
        Target::Endpoint(index) => {
            let endpoint = tables.endpoints.get(index).ok_or(NO_ROUTE)?;
            resolve::hop::to_endpoint(meta, endpoint.mtu)?;
            transmit::rewrite::step(frame, meta, cx.flows);
            Ok(transmit::deliver::to_endpoint(frame, meta, endpoint, cx))
        }
        Target::Underlay(index) => {
            resolve::hop::to_outside(meta, tables)?;
            transmit::rewrite::step(frame, meta, cx.flows);
            Ok(transmit::deliver::to_next_hop(frame, meta, index, uplink, cx))
        }
        // An answer to the host's own flow to a service goes on as that flow says.
        _ if meta.origin == Origin::Uplink && meta.flow == 0 => Err(tables.node.host_verdict()),
        Target::Host => {
            match answers_flow_of(frame, meta, cx) {
                Some(owner) if owner != cx.worker => return Ok(Verdict::HandOver(owner)),
                // It has no such flow: the packet is the host's after all, the answer to a ping
                // of its own, say.
                Some(_) => return Err(tables.node.host_verdict()),
                None => {}
            }
            transmit::rewrite::step(frame, meta, cx.flows);
            Ok(transmit::deliver::to_host(cx))
        }
        Target::Gateway => Ok(transmit::echo::step(frame, meta, cx)),
        Target::UnderlayUnknown => {
            resolve::hop::to_outside(meta, tables)?;
            // It waits as what it will leave as: its flow may be gone by then.
            transmit::rewrite::step(frame, meta, cx.flows);
            Err(resolve::hop::to_unknown(frame, meta, cx))
        }
        Target::Direct(index) => {
            let peer = tables.peers.get(index).ok_or(NO_ROUTE)?;
            resolve::hop::to_underlay(meta, keys::mtu(frame, meta, tables), tables)?;
            Ok(transmit::direct::step(frame, meta, peer, uplink, cx.flows))
        }
        Target::None | Target::Service(_) => Err(NO_ROUTE),
    }
}

/// The worker that may have a flow which the packet to this node's address answers.
fn answers_flow_of(frame: &Frame, meta: &Meta, cx: &Context<'_>) -> Option<WorkerId> {
    let is_host = cx.tables.host_ports.contains(meta.destination_port);
    if meta.flow != 0 || meta.translated || is_host {
        return None;
    }
    let external = &cx.tables.external;
    let (_, port) = keys::own_end(frame, meta);
    match meta.kind {
        Kind::Ipv4 => external.owner_v4(meta.destination, port),
        _ => external.owner_v6(keys::key_v6(frame, meta).destination, port),
    }
}
