//! Does the packet carry its sender's own addresses? And: is its checksum finished?

use crate::packet::drop::DropReason;
use crate::packet::frame::Frame;
use crate::packet::meta::{Kind, Meta, Origin, Target};
use crate::packet::verdict::PortId;
use crate::stages::Context;
use crate::tables::Snapshot;
use crate::tables::endpoints::EndpointEntry;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::simple::{self, Simple};
use crate::wire::simple6::{self, Simple6};
use crate::wire::{checksum, peek, protocol, tcp, udp};

/// Who is behind a port: looked up once for the packets that follow one another from it.
pub(super) struct Sender<'a> {
    pub(super) port: PortId,
    endpoint: Option<&'a EndpointEntry>,
    /// Its MAC and the EtherType of IPv4, as [`Simple::source_and_type`] gives them; 0, which no
    /// packet has, when it has no IPv4 address.
    source_and_type: u64,
    /// Its IPv4 address, host order.
    v4: u32,
    /// As `source_and_type`, of IPv6.
    source_and_type6: u64,
    /// Its IPv6 address, host order.
    v6: u128,
}

impl<'a> Sender<'a> {
    /// Who is behind `port`.
    pub(super) fn of(port: PortId, tables: &'a Snapshot) -> Self {
        let entry = tables.ports.get(u32::from(port.0));
        let endpoint = entry.and_then(|entry| tables.endpoints.get(entry.endpoint));
        let is_endpoint = entry.is_some_and(|entry| entry.origin == Origin::Endpoint);
        let known = endpoint.filter(|_| is_endpoint && tables.node.configured);
        let (v4, v6) = known.map_or((0, 0), |e| (e.v4, e.v6));
        Self {
            port,
            endpoint,
            source_and_type: known
                .filter(|_| v4 != 0)
                .map_or(0, |e| simple::source_and_type(e.mac)),
            v4,
            source_and_type6: known
                .filter(|_| v6 != 0)
                .map_or(0, |e| simple6::source_and_type(e.mac)),
            v6,
        }
    }
}

/// Is it a pod's packet that [`step`] would let pass unchanged? If not, [`step`] says why.
#[inline(always)]
pub(super) fn passes(packet: &Simple<'_>, sender: &Sender<'_>, tables: &Snapshot) -> bool {
    packet.source_and_type() == sender.source_and_type
        && packet.source() == sender.v4
        && !may_be_tunnel(packet.ports() as u16, tables)
        && !packet.is_unfinished()
}

/// As [`passes`], over IPv6.
#[inline(always)]
pub(super) fn passes6(packet: &Simple6<'_>, sender: &Sender<'_>, tables: &Snapshot) -> bool {
    packet.source_and_type() == sender.source_and_type6
        && packet.source() == sender.v6
        && !may_be_tunnel(packet.ports() as u16, tables)
        && !packet.is_unfinished()
}

/// Is it a tunnel port, if the packet is UDP, or 0, which stands for none?
#[inline(always)]
fn may_be_tunnel(port: u16, tables: &Snapshot) -> bool {
    port == tables.node.geneve_port || port == tables.node.vxlan_port
}

/// Checks a packet from a pod or the host, and finishes its checksum.
#[inline(always)]
pub(super) fn step(
    frame: &mut Frame,
    meta: &Meta,
    sender: &Sender<'_>,
    cx: &mut Context<'_>,
) -> Result<(), DropReason> {
    check(frame, meta, sender, cx.tables)?;
    if finish_checksum(frame, meta)
        && let Some(finished) = cx.finished_checksums.get_mut(meta.port.index())
    {
        *finished += 1;
    }
    Ok(())
}

#[inline(always)]
fn check(
    frame: &Frame,
    meta: &Meta,
    sender: &Sender<'_>,
    tables: &Snapshot,
) -> Result<(), DropReason> {
    let ethernet = Ethernet::parse(frame.bytes()).map_err(|_| DropReason::FrameTruncated)?;
    if meta.origin == Origin::Host {
        return host_source(ethernet.payload(), meta, tables);
    }
    let endpoint = sender.endpoint.ok_or(DropReason::PortGone)?;
    if ethernet.source() != endpoint.mac {
        return Err(DropReason::SpoofedMac);
    }
    let ip = ethernet.payload();
    let own = match meta.kind {
        Kind::Ipv4 => endpoint.v4 != 0 && peek::source_v4(ip) == endpoint.v4,
        _ => is_own_v6(peek::source_v6(ip), ip, endpoint.v6, tables),
    };
    if !own {
        return Err(DropReason::SpoofedSource);
    }
    if meta.protocol == protocol::UDP && tables.node.is_tunnel_port(meta.destination_port) {
        return to_tunnel_port(ip, meta, tables);
    }
    Ok(())
}

/// A pod's IPv6 packets come from its address. Those that stay on the link, to the gateway, may
/// come from a link-local one (RFC 4291 section 2.5.6).
#[inline]
fn is_own_v6(source: u128, ip: &[u8], address: u128, tables: &Snapshot) -> bool {
    let is_link_local = |address: u128| address >> 118 == 0xfe80 >> 6;
    if source == address {
        return address != 0;
    }
    is_link_local(source)
        && is_link_local(peek::destination_v6(ip))
        && tables.routes.v6.host(source).target() != Target::Gateway
}

/// Tunnel packets to any node are not a pod's business.
#[cold]
fn to_tunnel_port(ip: &[u8], meta: &Meta, tables: &Snapshot) -> Result<(), DropReason> {
    let is_node = match meta.kind {
        Kind::Ipv4 => {
            let destination = peek::destination_v4(ip);
            destination == tables.node.v4 || tables.peers_v4.get(destination) != 0
        }
        _ => {
            let destination = peek::destination_v6(ip);
            destination == tables.node.v6 || tables.peers_v6.get(destination) != 0
        }
    };
    if is_node { Err(DropReason::PodToTunnelPort) } else { Ok(()) }
}

/// The host may send from any address that is no endpoint's; what a peer takes from us is this
/// node's own address or one of its pods'.
fn host_source(ip: &[u8], meta: &Meta, tables: &Snapshot) -> Result<(), DropReason> {
    let route = match meta.kind {
        Kind::Ipv4 => tables.routes.v4.get(peek::source_v4(ip)),
        _ => tables.routes.v6.get(peek::source_v6(ip)),
    };
    match route.target() {
        Target::Endpoint(_) | Target::Peer(_) | Target::Gateway => Err(DropReason::SpoofedSource),
        _ => Ok(()),
    }
}

/// Finishes a TCP or UDP checksum that the sender's kernel left to the device
/// (`CHECKSUM_PARTIAL`: the field holds the pseudo-header's sum). Says whether it was so.
#[inline(always)]
fn finish_checksum(frame: &mut Frame, meta: &Meta) -> bool {
    let at = match meta.protocol {
        protocol::TCP => tcp::CHECKSUM_OFFSET,
        protocol::UDP => udp::CHECKSUM_OFFSET,
        _ => return false,
    };
    if meta.l4 == 0 || meta.is_fragment {
        return false;
    }
    let l4 = usize::from(meta.l4);
    let Some(ip) = frame.bytes_mut().get_mut(ethernet::HEADER_LEN..) else { return false };
    let Some(field) = ip.get(l4 + at..).and_then(|rest| rest.first_chunk::<2>()) else {
        return false;
    };
    let field = u16::from_be_bytes(*field);
    let l4_len = usize::from(meta.ip_len).saturating_sub(l4);
    let pseudo = match meta.kind {
        Kind::Ipv4 => peek::pseudo_v4(ip, meta.protocol, l4_len),
        _ => peek::pseudo_v6(ip, meta.protocol, l4_len),
    };
    if !checksum::is_partial(field, pseudo) {
        return false;
    }
    finish(ip, l4, at)
}

#[cold]
fn finish(ip: &mut [u8], l4: usize, at: usize) -> bool {
    ip.get_mut(l4..).is_some_and(|segment| checksum::complete_partial(segment, at))
}
