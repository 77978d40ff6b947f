//! What the link of the uplink is told of the addresses that this node answers for: that it has
//! them now, a few times, in case somebody remembers another node; and the host's stack, which
//! groups of neighbour solicitations to have the NIC receive.
//!
//! For IPv4 each announcement is an ARP request (RFC 5227 section 2.3) and an ARP reply, as some
//! learn from one of them only; for IPv6 an unsolicited neighbour advertisement that overrides
//! what is known (RFC 4861 section 7.2.6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane_api::MacAddr;

use super::process::Process;
use crate::stages::transmit::arp_nd::{ALL_NODES, ALL_NODES_MAC};
use crate::wire::arp::{self, ArpMessage};
use crate::wire::ethernet;
use crate::wire::icmpv6::{self, NeighborMessage};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::protocol;

/// How often an address is announced: as often as RFC 4861 section 7.2.6 allows, and once more
/// than RFC 5227 section 2.3 asks for.
const TIMES: u8 = 3;
/// Time between two announcements of an address (RFC 4861 section 10, RetransTimer).
const INTERVAL: Duration = Duration::from_secs(1);
/// Most addresses announced at once: with thousands of them, the link is not flooded.
const AT_ONCE: usize = 64;
const BROADCAST: MacAddr = MacAddr([0xff; 6]);
const NO_MAC: MacAddr = MacAddr([0; 6]);

/// Which addresses are announced, and when.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    /// What was looked at last.
    seen: Option<Seen>,
    schedule: Schedule,
    groups: Groups,
    lease_until: Option<Instant>,
}

/// The addresses, and the uplink's index and MAC.
type Seen = (Arc<BTreeSet<IpAddr>>, Option<(u32, MacAddr)>);

/// When each address is announced again, and how often still.
#[derive(Debug, Default)]
struct Schedule {
    current: BTreeSet<IpAddr>,
    pending: BTreeMap<IpAddr, (Instant, u8)>,
}

impl Schedule {
    /// These are answered for now: those that are new are announced at once.
    fn set(&mut self, addresses: BTreeSet<IpAddr>, now: Instant) {
        self.pending.retain(|address, _| addresses.contains(address));
        let new = addresses.difference(&self.current);
        self.pending.extend(new.map(|address| (*address, (now, TIMES))));
        self.current = addresses;
    }

    /// What is due at `now`, a bounded number.
    fn due(&mut self, now: Instant) -> Vec<IpAddr> {
        let due = self.pending.iter().filter(|(_, (at, _))| *at <= now);
        let due: Vec<IpAddr> = due.map(|(address, _)| *address).take(AT_ONCE).collect();
        for address in &due {
            let Some((at, times)) = self.pending.get_mut(address) else { continue };
            (*at, *times) = (now + INTERVAL, *times - 1);
            if *times == 0 {
                self.pending.remove(address);
            }
        }
        due
    }
}

/// Multicast groups that the host's stack has joined for us: with the group the NIC's filter and
/// switches that watch for members let solicitations through.
#[derive(Debug, Default)]
struct Groups {
    socket: Option<UdpSocket>,
    joined: BTreeSet<(u32, Ipv6Addr)>,
}

impl Groups {
    /// Joins and leaves until the groups of `addresses` on the interface are joined.
    fn set(&mut self, ifindex: Option<u32>, addresses: &BTreeSet<IpAddr>) -> std::io::Result<()> {
        let groups = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some((ifindex?, icmpv6::solicited_node(*address))),
        });
        let wanted: BTreeSet<(u32, Ipv6Addr)> = groups.collect();
        if wanted.is_empty() {
            // With the socket go its groups.
            *self = Self::default();
            return Ok(());
        }
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?,
        };
        let socket = self.socket.insert(socket);
        for (ifindex, group) in self.joined.difference(&wanted) {
            // An interface that is gone has taken its groups along.
            let _ = socket.leave_multicast_v6(group, *ifindex);
        }
        self.joined.retain(|joined| wanted.contains(joined));
        for (ifindex, group) in wanted {
            if !self.joined.contains(&(ifindex, group)) {
                socket.join_multicast_v6(&group, ifindex)?;
                self.joined.insert((ifindex, group));
            }
        }
        Ok(())
    }
}

impl Process {
    /// Announcements are in force for `milliseconds` from now on. Says whether the node forwards.
    pub(super) fn lease(&mut self, milliseconds: u32, now: Instant) -> bool {
        let time = Duration::from_millis(milliseconds.into());
        self.announcer.lease_until = Some(now + time);
        if self.compiler.set_leased(!time.is_zero()) {
            self.publish();
        }
        self.process_announcements(now);
        let link = self.uplink.as_ref().and_then(|uplink| self.links.by_index(uplink.ifindex));
        link.is_some_and(|link| link.running) && self.compiler.node().is_some()
    }

    /// Ends announcements whose time has passed. Says whether that has changed the tables.
    pub(super) fn process_lease(&mut self, now: Instant) -> bool {
        let is_over = self.announcer.lease_until.is_some_and(|until| until <= now);
        if !is_over {
            return false;
        }
        self.announcer.lease_until = None;
        let changed = self.compiler.set_leased(false);
        if changed {
            tracing::warn!("control is silent: this node answers for no address but its own now");
        }
        changed
    }

    /// Steers, joins and announces what is answered for now, if that or the uplink has changed;
    /// repeats what is to be repeated.
    pub(super) fn process_announcements(&mut self, now: Instant) {
        let mac = self.compiler.uplink().mac;
        let uplink = self.uplink.as_ref().map(|uplink| (uplink.ifindex, mac));
        let addresses = self.compiler.snapshot().announced;
        let is_new = self.announcer.seen.as_ref().is_none_or(|(seen, at)| {
            *at != uplink || !(Arc::ptr_eq(seen, &addresses) || *seen == addresses)
        });
        if is_new {
            let moved = self.announcer.seen.as_ref().is_some_and(|(_, at)| *at != uplink);
            if moved {
                // Whoever was told before was told of another MAC.
                self.announcer.schedule.set(BTreeSet::new(), now);
            }
            self.steer_announced(&addresses);
            let there = if uplink.is_some() { (*addresses).clone() } else { BTreeSet::new() };
            self.announcer.schedule.set(there, now);
            let ifindex = uplink.map(|(ifindex, _)| ifindex);
            match self.announcer.groups.set(ifindex, &addresses) {
                Ok(()) => self.clear_warning("neighbour groups"),
                Err(error) => self.warn(
                    "neighbour groups",
                    format!("cannot join the groups of announced IPv6 addresses: {error}; a NIC that filters multicast does not receive solicitations for them"),
                ),
            }
            self.announcer.seen = Some((addresses, uplink));
        }
        for address in self.announcer.schedule.due(now) {
            self.announce(address, mac);
        }
    }

    fn steer_announced(&mut self, addresses: &BTreeSet<IpAddr>) {
        let Some(uplink) = &mut self.uplink else { return };
        let list: Vec<IpAddr> = addresses.iter().copied().collect();
        match uplink.steering.set_announced_addresses(&list) {
            Ok(()) => self.clear_warning("announcements"),
            Err(error) => self.warn("announcements", error.to_string()),
        }
    }

    fn announce(&self, address: IpAddr, mac: MacAddr) {
        let Some((worker, port)) = self.compiler.uplink().ports.first() else { return };
        tracing::debug!(%address, %mac, "announced");
        for frame in announcements(address, mac) {
            self.workers.send_frame(*worker, *port, frame.into());
        }
    }
}

/// The frames that say that `mac` has `address`.
#[must_use]
pub fn announcements(address: IpAddr, mac: MacAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let request = gratuitous(arp::REQUEST, address, mac, NO_MAC);
            let reply = gratuitous(arp::REPLY, address, mac, mac);
            vec![request, reply]
        }
        IpAddr::V6(address) => vec![unsolicited(address, mac)],
    }
}

/// RFC 5227 section 3: sender and target are the address itself.
fn gratuitous(operation: u16, address: Ipv4Addr, mac: MacAddr, target_mac: MacAddr) -> Vec<u8> {
    let message = ArpMessage {
        operation,
        sender_mac: mac,
        sender_ip: address,
        target_mac,
        target_ip: address,
    };
    let mut header = [0; ethernet::HEADER_LEN];
    ethernet::write(&mut header, BROADCAST, mac, ethernet::ETHERTYPE_ARP);
    let mut body = [0; arp::MESSAGE_LEN];
    message.write(&mut body);
    [&header[..], &body[..]].concat()
}

/// RFC 4861 sections 4.4 and 7.2.6: to all nodes, not solicited.
fn unsolicited(address: Ipv6Addr, mac: MacAddr) -> Vec<u8> {
    const LEN: usize = icmpv6::NEIGHBOR_WITH_ADDRESS_LEN;
    #[allow(clippy::cast_possible_truncation, reason = "it is 32")]
    const PAYLOAD_LEN: u16 = LEN as u16;
    let advertisement = NeighborMessage {
        is_solicitation: false,
        flags: icmpv6::FLAG_OVERRIDE,
        target: address,
        link_layer_address: mac,
    };
    let packet = Ipv6Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: PAYLOAD_LEN,
        next_header: protocol::ICMPV6,
        hop_limit: icmpv6::NEIGHBOR_HOP_LIMIT,
        source: address,
        destination: ALL_NODES,
    };
    let mut header = [0; ethernet::HEADER_LEN];
    ethernet::write(&mut header, ALL_NODES_MAC, mac, ethernet::ETHERTYPE_IPV6);
    let mut ip = [0; ipv6::HEADER_LEN];
    packet.write(&mut ip);
    let mut body = [0; LEN];
    advertisement.write(&mut body, address, ALL_NODES);
    [&header[..], &ip[..], &body[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    #[test]
    fn a_new_address_is_announced_three_times_a_second_apart() {
        let (first, second) = (ip("10.0.1.50"), ip("fd00:10::50"));
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.set([first].into(), start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(schedule.due(start), [first]);
        assert!(schedule.due(at(999)).is_empty());
        // Another comes; the first is not announced anew for that.
        schedule.set([first, second].into(), at(999));
        assert_eq!(schedule.due(at(999)), [second]);
        assert_eq!(schedule.due(at(1000)), [first]);
        assert_eq!(schedule.due(at(2000)), [first, second]);
        assert_eq!(schedule.due(at(3000)), [second]);
        assert!(schedule.due(at(9000)).is_empty());
        // Given up before its time: nothing more is said of it.
        schedule.set([].into(), at(9000));
        schedule.set([first].into(), at(9000));
        assert_eq!(schedule.due(at(9000)), [first]);
        schedule.set([second].into(), at(9500));
        assert_eq!(schedule.due(at(10_500)), [second]);
    }

    #[test]
    fn many_addresses_take_turns() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let all: BTreeSet<IpAddr> =
            (0..200).map(|n| Ipv4Addr::from_bits(0x0a00_0100 + n).into()).collect();
        schedule.set(all.clone(), start);
        let mut said = Vec::new();
        for _ in 0..4 {
            said.extend(schedule.due(start));
        }
        assert_eq!(said.iter().copied().collect::<BTreeSet<_>>(), all);
        assert_eq!(said.len(), 200);
        assert!(schedule.due(start).is_empty());
    }

    #[test]
    fn ipv4_is_announced_by_a_request_and_a_reply() {
        use etherparse::{ArpEthIpv4Packet, ArpOperation, SlicedPacket};
        let frames = announcements(ip("10.0.1.50"), MAC);
        let operations = [(ArpOperation::REQUEST, [0; 6]), (ArpOperation::REPLY, MAC.0)];
        assert_eq!(frames.len(), operations.len());
        for (frame, (operation, target_mac)) in frames.iter().zip(operations) {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
            assert_eq!((ethernet.destination, ethernet.source), ([0xff; 6], MAC.0));
            let Some(etherparse::NetSlice::Arp(arp)) = packet.net else { panic!("ARP") };
            let message: ArpEthIpv4Packet = arp.to_packet().try_eth_ipv4().unwrap();
            let expected = ArpEthIpv4Packet {
                operation,
                sender_mac: MAC.0,
                sender_ipv4: [10, 0, 1, 50],
                target_mac,
                target_ipv4: [10, 0, 1, 50],
            };
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn ipv6_is_announced_to_all_nodes_with_a_checksum_that_is_right() {
        use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
        let frames = announcements(ip("fd00:10::50"), MAC);
        let [frame] = &frames[..] else { panic!("one frame") };
        assert_eq!(frame[..12], [&[0x33, 0x33, 0, 0, 0, 1][..], &MAC.0[..]].concat());
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("IPv6") };
        let header = ip.header().to_header();
        assert_eq!(header.hop_limit, 255);
        assert_eq!(header.destination_addr(), "ff02::1".parse::<Ipv6Addr>().unwrap());
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("ICMPv6") };
        assert!(icmp.is_checksum_valid(header.source, header.destination));
        let Icmpv6Type::NeighborAdvertisement(advertisement) = icmp.icmp_type() else {
            panic!("{:?}", icmp.icmp_type())
        };
        let flags = (advertisement.router, advertisement.solicited, advertisement.r#override);
        assert_eq!(flags, (false, false, true));
        let body = icmp.payload();
        assert_eq!(body[..16], "fd00:10::50".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(body[16..], [&[2, 1][..], &MAC.0[..]].concat());
    }
}
