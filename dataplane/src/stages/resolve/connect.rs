//! The first packet of a flow: through every table, in order; and what it leaves behind. Also the
//! first packet after the tables have changed, for which the flow's way is looked up anew.

use overlane_api::WorkerId;

use super::ahead::{Ahead, Found};
use super::egress::Leaving;
use super::family::Family;
use super::{ahead, direct, egress, gateway, service};
use crate::flow::flows::{DIRECT, Flows, HAS_PORT, VIA_PEER, take_back};
use crate::flow::half::Way;
use crate::flow::table::{InsertError, Opening};
use crate::flow::tcp_state::tcp_flags_valid;
use crate::flow::{Direction, FlowId, HalfId};
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{FlowKey, Transport};
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Route, Target};
use crate::packet::vector::Vector;
use crate::packet::verdict::Verdict;
use crate::stages::keys::{self, Wish, is_error, is_for_gateway, tcp_flags};
use crate::stages::{Context, fragments};
use crate::tables::peers::Form;
use crate::tables::services::UNASSIGNED;
use crate::wire::tcp::{ACK, FIN, RST, SYN};
use crate::wire::{ethernet, icmpv4, icmpv6, protocol};

/// Place in a flow's marks of its service's life ([`crate::tables::services::ServiceEntry::life`]).
const LIFE: u32 = 8;

/// Source ports that are tried when a flow's answers could not be told from another's.
const TRIES: u32 = 64;

/// Looks again at the undecided packets that should have a flow and have none.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    let (mut v4, mut v6) = (Ahead::new(), Ahead::new());
    ahead::phase(vector, (&mut v4, &mut v6), cx);
    for (at, (frame, meta)) in vector.packets().enumerate() {
        let wish = Wish::of(meta, cx);
        if wish == Wish::Nothing {
            continue;
        }
        let done = match meta.kind {
            Kind::Ipv4 => step::<u32>(frame, meta, wish, v4.of(at), cx),
            _ => step::<u128>(frame, meta, wish, v6.of(at), cx),
        };
        if let Err(verdict) = done {
            meta.verdict = verdict;
        }
    }
}

/// One packet: its flow, as it is today, or a new one, which goes where `found` says, if it does.
fn step<A: Family>(
    frame: &mut Frame,
    meta: &mut Meta,
    wish: Wish,
    found: Option<Found<A>>,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    if is_for_gateway(meta, cx) {
        gateway::at_home(A::key(frame, meta).source, cx)?;
    }
    if meta.is_fragment && !meta.is_known_fragment {
        // One to the host may be of a flow of another worker's.
        let is_to_host = meta.route.target() == Target::Host;
        if wish == Wish::Follow && cx.flows.is_empty() && !is_to_host {
            return Ok(());
        }
        fragments::step(frame, meta, cx)?;
    }
    if is_error(frame, meta) && follow_error_way::<A>(frame, meta, cx) {
        return Ok(());
    }
    let key = A::key(frame, meta);
    let flags = tcp_flags(frame, meta);
    let hash = keys::hash(meta, &key, cx);
    if let Some(half) = A::table(cx.flows).find(hash, &key) {
        if key.transport() == Transport::Tcp && flags & SYN != 0 && !tcp_flags_valid(flags) {
            return Err(Verdict::Drop(DropReason::TcpBadFlags));
        }
        match revise::<A>(half, flags, cx) {
            Revised::GoesOn => return follow_routed::<A>(half, (frame, meta), flags, cx),
            Revised::IsOver(gone) => forget::<A>(gone, cx),
        }
    }
    if wish != Wish::Open {
        return Ok(());
    }
    if meta.is_answer {
        // The host's own pings have any identifier; its ports are outside of the range.
        let is_own = key.destination == A::own(cx.tables);
        let is_icmp = key.transport() == Transport::Icmp;
        let unsolicited = Verdict::Drop(DropReason::SnatUnsolicited);
        return Err(if is_own && is_icmp { cx.tables.node.host_verdict() } else { unsolicited });
    }
    let is_ping = is_ping(frame, meta);
    if is_ping && matches!(meta.route.target(), Target::Service(vip) if vip != UNASSIGNED) {
        // The gateway answers for its services.
        meta.route = Route::new(Target::Gateway);
        return Ok(());
    }
    if meta.l4 == 0 {
        return Err(fragments::after_first(frame, meta, cx));
    }
    if keys::own_end(frame, meta) != (meta.protocol, meta.destination_port)
        && let Some(verdict) = error_of_another(meta, cx)
    {
        return Err(verdict);
    }
    let may_be_elsewhere = meta.origin == Origin::Uplink && flags & (SYN | ACK) != SYN;
    let elsewhere = if may_be_elsewhere { at_another_home(&key, meta, cx) } else { None };
    let opened = match elsewhere {
        Some(verdict) => Err(verdict),
        None => open::<A>((&key, hash), meta, (flags, is_ping), found, cx),
    };
    if let (true, Err(Verdict::HandOver(home))) = (meta.is_fragment, &opened) {
        fragments::goes_on(frame, meta, *home, cx);
    }
    follow_routed::<A>(opened?, (frame, meta), flags, cx)
}

/// As [`follow`], of a packet that was routed and so found to be of the flow: those behind it need not be.
fn follow_routed<A: Family>(
    half: HalfId,
    (frame, meta): (&mut Frame, &mut Meta),
    tcp_flags: u8,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    follow::<A>(half, (frame, meta), tcp_flags, cx)?;
    A::table(cx.flows).half_mut(half).ask_for(keys::sender(frame, meta, cx.tables));
    Ok(())
}

/// What becomes of an ICMP error about a flow that is not here, if that is enough to say. Which worker
/// has it, if any, nobody
/// knows for the answers of services to clients outside: all are asked in turn. The owners of other flows are
/// known, and were asked.
#[cold]
fn error_of_another(meta: &mut Meta, cx: &Context<'_>) -> Option<Verdict> {
    let is_to_service = meta.is_node_port || matches!(meta.route.target(), Target::Service(_));
    let workers = cx.tables.node.uplinks.len();
    if meta.origin == Origin::Uplink && is_to_service && usize::from(meta.asked) + 1 < workers {
        meta.asked += 1;
        let next = (cx.worker.index() + 1) % workers;
        return Some(Verdict::HandOver(WorkerId(next as u8)));
    }
    (meta.route.target() == Target::Host).then(|| cx.tables.node.host_verdict())
}

/// Who is to be asked next for the flow of a packet from outside to a service. When the backends see the
/// client's own address the flow is at its backend's home, and the packet comes to any worker: first
/// the home of the backend that would be chosen today is asked; then, as backends come and go, the
/// others in turn. None: nobody any more. Not for what begins a connection.
fn at_another_home<A: Family>(
    key: &FlowKey<A>,
    meta: &mut Meta,
    cx: &Context<'_>,
) -> Option<Verdict> {
    let workers = cx.tables.node.uplinks.len();
    if workers == 1 || usize::from(meta.asked) >= workers {
        return None;
    }
    let local = service::local(key, vip(key, meta, cx)?, cx);
    if local.is_none() && key.transport() == Transport::Udp && !meta.is_fragment {
        // Any datagram may be the first one: its flow would be here. That of a fragment is where the
        // client's whole datagrams come.
        return None;
    }
    let likely = local.flatten().map(|backend| backend.route(cx.tables).target());
    let home = likely.and_then(|target| cx.tables.home(target));
    let next = WorkerId(((cx.worker.index() + 1) % workers) as u8);
    let home = home.filter(|home| meta.asked == 0 && *home != cx.worker);
    meta.asked += 1;
    Some(Verdict::HandOver(home.unwrap_or(next)))
}

/// Leaves an ICMP error to its flow, if the way of that was to be looked at again first. Says whether
/// there is one.
#[cold]
fn follow_error_way<A: Family>(frame: &Frame, meta: &mut Meta, cx: &mut Context<'_>) -> bool {
    let Some(key) = A::related_key(frame, meta) else { return false };
    let table = A::table(cx.flows);
    let Some(half) = table.find(table.hash(&key), &key) else { return false };
    match revise::<A>(half, 0, cx) {
        Revised::GoesOn => follow_error::<A>(half, meta, cx),
        Revised::IsOver(gone) => {
            forget::<A>(gone, cx);
            return false;
        }
    }
    true
}

/// The marks that tell which of the services that had the index a flow is of.
pub(super) fn life_marks(life: u8) -> u16 {
    u16::from(life) << LIFE
}

/// What is left of a flow.
pub(super) enum Revised {
    /// The packet may follow it.
    GoesOn,
    /// It is to be forgotten.
    IsOver(FlowId),
}

/// Looks at a flow by the tables of today, and at a connection that may have ended.
pub(super) fn revise<A: Family>(half: HalfId, tcp_flags: u8, cx: &mut Context<'_>) -> Revised {
    let generation = generation(cx);
    let now = Flows::tick(cx.now_ns);
    let table = A::table(cx.flows);
    if tcp_flags & SYN != 0
        && table.state(half.flow()).is_some_and(|s| s.reopens(half.direction(), tcp_flags))
    {
        if half.direction() == Direction::Forward {
            return Revised::IsOver(half.flow());
        }
        table.restart(half.flow(), now);
    }
    let found = table.half(half);
    if found.generation() == generation {
        return Revised::GoesOn;
    }
    let (leaving_as, tag, marks) = (found.leaving_as(), found.tag(), found.marks());
    let forward = HalfId::new(half.flow(), Direction::Forward);
    if let Some(service) = tag.checked_sub(1) {
        let table = A::table(cx.flows);
        // What the client asks is what it is answered by, wherever it is translated.
        let key = table.half(forward.other()).leaving_as().reversed();
        let to = table.half(forward).leaving_as();
        let service = (service, (marks >> LIFE) as u8);
        if !service::goes_on(&key, (to.destination, to.destination_port), service, cx) {
            return Revised::IsOver(half.flow());
        }
    }
    let mut route = leaving_as.destination.route(cx.tables);
    if matches!(route.target(), Target::Service(_)) {
        // Where it led there is a service by now.
        return Revised::IsOver(half.flow());
    }
    if marks & (VIA_PEER | DIRECT) != 0 {
        let found = A::table(cx.flows).half(forward);
        let way = match marks & DIRECT {
            0 => gateway::way_today(found, cx.tables),
            _ => direct::way_today(found, cx.tables),
        };
        match way {
            None => return Revised::IsOver(half.flow()),
            Some(way) if half == forward => route = way,
            Some(_) => {}
        }
    } else if marks != 0 && !gateway::goes_on::<A>(half, marks, cx) {
        return Revised::IsOver(half.flow());
    }
    A::table(cx.flows).half_mut(half).set_route(route, generation);
    Revised::GoesOn
}

/// Leaves an ICMP error to the flow it is about. Nothing is recorded: errors keep no flow alive.
pub(super) fn follow_error<A: Family>(half: HalfId, meta: &mut Meta, cx: &mut Context<'_>) {
    meta.route = A::table(cx.flows).half(half).route();
    meta.flow = half.to_number();
    meta.is_related = true;
}

pub(super) fn forget<A: Family>(flow: FlowId, cx: &mut Context<'_>) {
    if let Some(removed) = A::table(cx.flows).remove(flow) {
        egress::released(&removed, cx);
    }
}

/// Leaves the packet to its flow.
///
/// # Errors
/// It is a fragment that waits until its packet's checksum can be made right.
pub(super) fn follow<A: Family>(
    half: HalfId,
    (frame, meta): (&mut Frame, &mut Meta),
    tcp_flags: u8,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    let now = Flows::tick(cx.now_ns);
    if meta.is_fragment && meta.protocol == protocol::SCTP {
        fit_crc::<A>(half, frame, meta, cx)?;
    }
    let found = A::table(cx.flows).half_mut(half);
    found.record(tcp_flags, meta.ip_len, now);
    meta.route = found.route();
    meta.flow = half.to_number();
    Ok(())
}

/// Makes the CRC of an SCTP packet of which this is a fragment right for the ports that the flow leaves
/// with, if they are others than it came with.
///
/// # Errors
/// It waits until that can be done.
#[cold]
#[inline(never)]
fn fit_crc<A: Family>(
    half: HalfId,
    frame: &mut Frame,
    meta: &Meta,
    cx: &mut Context<'_>,
) -> Result<(), Verdict> {
    let found = A::table(cx.flows).half(half);
    let (key, to) = (found.key(), found.leaving_as());
    let ports = (to.source_port, to.destination_port);
    if (key.source_port, key.destination_port) == ports {
        return Ok(());
    }
    fragments::adjust_crc(frame, meta, ports, cx)
}

/// Opens a flow: where it goes, with which source, both directions or neither. What was `found` of that need
/// not be looked up.
///
/// # Errors
/// The verdict about a packet that opens none here.
fn open<A: Family>(
    (key, hash): (&FlowKey<A>, u32),
    meta: &Meta,
    (tcp_flags, is_ping): (u8, bool),
    found: Option<Found<A>>,
    cx: &mut Context<'_>,
) -> Result<HalfId, Verdict> {
    let adopted = is_in_the_middle(key, tcp_flags).map_err(Verdict::Drop)?;
    let begins = !adopted && (is_ping || key.transport() != Transport::Icmp);
    let inside = matches!(meta.origin, Origin::Endpoint | Origin::Host);
    let mut to = *key;
    let (mut tag, mut lives) = (0, 0);
    let mut leaving = Leaving::default();
    let (mut keeps_client, mut is_direct) = (true, false);
    let chosen = match found {
        Some(found) => Some(found.chosen),
        None => match vip(key, meta, cx) {
            Some(vip) => {
                Some(service::choose(key, vip, inside, adopted, cx).map_err(Verdict::Drop)?)
            }
            None => None,
        },
    };
    if let Some(chosen) = chosen {
        (to.destination, to.destination_port) = (chosen.address, chosen.port);
        tag = chosen.service + 1;
        lives = life_marks(chosen.life);
        keeps_client = chosen.keeps_client;
        is_direct = chosen.is_direct;
    }
    let is_as_routed = tag == 0 && meta.route.target().is_underlay();
    let route = match found {
        Some(found) => found.route,
        None if is_as_routed => meta.route,
        None => ahead::route(to.destination, cx),
    };
    let direct_way = if is_direct { direct::way(route, key.destination, cx.tables) } else { None };
    // Nor does a backend here need another's address to answer by, if it may answer.
    keeps_client |= is_direct && matches!(route.target(), Target::Endpoint(_));
    let is_leaving = route.target().is_underlay();
    if meta.origin == Origin::Host
        && (to.destination.is_peer(cx.tables) || comes_back_plain(route.target(), cx))
    {
        // The answer comes to this host by the underlay as it is: only a port of ours brings it here,
        // where it becomes the service's.
        keeps_client = false;
    }
    if let (false, Some(way)) = (keeps_client, direct_way) {
        let marks = direct::MARKS | lives;
        let direct = Way { route: way, generation: generation(cx), tag, marks };
        let reverse = Way { route: key.source.route(cx.tables), ..direct };
        let opening = Opening { key: *key, leaving_as: to, forward: direct, reverse, adopted };
        match insert_answering_as(&opening, &key.reversed(), cx) {
            // The same client port to another service of the backend's: told apart by source NAT.
            Err(DropReason::FlowAmbiguous) => {}
            done => return done.map_err(Verdict::Drop),
        }
    }
    if !keeps_client || is_leaving && matches!(meta.origin, Origin::Endpoint | Origin::Tunnel) {
        let translated = if !keeps_client {
            egress::with_own_address(key, &mut to, begins, cx)
        } else if meta.origin == Origin::Tunnel {
            egress::translate_for_peer(key, &mut to, begins, cx)
        } else {
            egress::translate(key, &mut to, begins, cx)
        };
        leaving = translated.map_err(Verdict::Drop)?;
    } else if to.destination == key.source {
        // Who reaches itself must not see its own address as the source.
        to.source = A::gateway(cx.tables, meta.origin == Origin::Endpoint);
        if to.source == A::default() {
            return Err(Verdict::Drop(DropReason::EgressNoAddress));
        }
    } else if !inside
        && let Some(home) = cx.tables.home(route.target())
        && home != cx.worker
    {
        // The backend answers the client itself, and so at its home.
        return Err(Verdict::HandOver(home));
    }
    let marks = leaving.marks | lives;
    let forward =
        Way { route: leaving.way.unwrap_or(route), generation: generation(cx), tag, marks };
    let opening = Opening {
        key: *key,
        leaving_as: to,
        forward,
        reverse: Way { route: key.source.route(cx.tables), ..forward },
        adopted,
    };
    insert(hash, opening, cx).map_err(Verdict::Drop)
}

/// Do answers from there come to the uplink without a tunnel?
fn comes_back_plain(target: Target, cx: &Context<'_>) -> bool {
    match target {
        Target::Peer(index) => {
            let peer = cx.tables.peers.get(index);
            peer.is_some_and(|peer| matches!(peer.form, Form::Native))
        }
        Target::Underlay(_) | Target::UnderlayUnknown => true,
        _ => false,
    }
}

/// Installs a flow whose answers leave with `answers_as`.
pub(super) fn insert_answering_as<A: Family>(
    opening: &Opening<A>,
    answers_as: &FlowKey<A>,
    cx: &mut Context<'_>,
) -> Result<HalfId, DropReason> {
    let now = Flows::tick(cx.now_ns);
    let (table, ports) = A::parts(cx.flows);
    let hash = table.hash(&opening.key);
    let mut gone = |gone: &_| take_back(gone, ports, now);
    match table.insert_answering_as(hash, opening, answers_as, now, &mut gone) {
        Ok(flow) => Ok(HalfId::new(flow, Direction::Forward)),
        Err(InsertError::Exists(half)) => Ok(half),
        Err(InsertError::Full) => Err(DropReason::FlowTableFull),
        Err(InsertError::Taken(_) | InsertError::OwnAnswer) => Err(DropReason::FlowAmbiguous),
    }
}

/// The VIP that the packet is to, if it is to one.
pub(super) fn vip<A: Family>(key: &FlowKey<A>, meta: &Meta, cx: &Context<'_>) -> Option<u32> {
    match meta.route.target() {
        Target::Service(vip) => Some(vip),
        _ if meta.is_node_port => key.destination.vip(cx.tables),
        _ => None,
    }
}

/// Is the packet from the middle of a connection, or of an SCTP association?
///
/// # Errors
/// It is of none, or ends one that is not known.
fn is_in_the_middle<A: Family>(key: &FlowKey<A>, tcp_flags: u8) -> Result<bool, DropReason> {
    match key.transport() {
        Transport::Tcp if !tcp_flags_valid(tcp_flags) => return Err(DropReason::TcpBadFlags),
        Transport::Tcp | Transport::Sctp => {}
        _ => return Ok(false),
    }
    if tcp_flags & (FIN | RST) != 0 || tcp_flags & (SYN | ACK) == SYN | ACK {
        return Err(DropReason::FlowUnknown);
    }
    Ok(tcp_flags & SYN == 0)
}

/// Installs both directions. When the answers could not be told from another flow's, as with one
/// client port to two services of one backend, the flow gets another source port.
fn insert<A: Family>(
    hash: u32,
    mut opening: Opening<A>,
    cx: &mut Context<'_>,
) -> Result<HalfId, DropReason> {
    const EPHEMERAL: u16 = 32768;
    let now = Flows::tick(cx.now_ns);
    let has_port = opening.forward.marks & HAS_PORT != 0;
    for _ in 0..TRIES {
        let (table, ports) = A::parts(cx.flows);
        let inserted = table.insert(hash, &opening, now, &mut |gone| take_back(gone, ports, now));
        let error = match inserted {
            Ok(flow) => return Ok(HalfId::new(flow, Direction::Forward)),
            Err(error) => error,
        };
        if has_port {
            egress::not_installed(opening.key.source, &opening.leaving_as.reversed(), cx);
        }
        match error {
            InsertError::Exists(half) => return Ok(half),
            InsertError::Full => return Err(DropReason::FlowTableFull),
            // The port was chosen so that this cannot be.
            InsertError::Taken(_) | InsertError::OwnAnswer if has_port => break,
            InsertError::Taken(_) | InsertError::OwnAnswer => {
                opening.leaving_as.source_port = EPHEMERAL | cx.flows.random() as u16;
            }
        }
    }
    Err(DropReason::FlowAmbiguous)
}

/// The generation as flows note it.
pub(super) fn generation(cx: &Context<'_>) -> u32 {
    cx.tables.generation as u32
}

/// Is it an echo request, or a later fragment of one?
fn is_ping(frame: &Frame, meta: &Meta) -> bool {
    if meta.l4 == 0 {
        // Its identifier; answers have the other one, and errors none.
        return matches!(meta.protocol, protocol::ICMP | protocol::ICMPV6) && meta.source_port != 0;
    }
    let at = ethernet::HEADER_LEN + usize::from(meta.l4);
    let kind = frame.bytes().get(at).copied();
    match meta.protocol {
        protocol::ICMP => kind == Some(icmpv4::ECHO_REQUEST),
        protocol::ICMPV6 => kind == Some(icmpv6::ECHO_REQUEST),
        _ => false,
    }
}
