//! A sequence through a node in memory and the model, side by side.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use overlane_api::{Change, Mode, Object, ObjectKey};
use overlane_dataplane::packet::drop::DropReason;
use overlane_dataplane::stats::counters::Counters;
use overlane_dataplane::testing::{MemoryNode, Place, node, objects};

use super::flow::{self, Key, flags_of};
use super::nat::{Answer, Fate, Nat, family};
use super::world::{End, ROUTER, Spec, World};
use crate::build::{
    Body, IN, OUT, Packet, Tunnel, between, down, flow_of, from_host, gateway_ip, inner_of,
    node_ip, packet, to_host, up,
};

/// Every packet comes later than the one before, by more than a tick of the flow tables.
const PAUSE_MS: u64 = 100;

/// A packet that was delivered: as it was sent, and as it arrived.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub from: End,
    pub sent: Packet,
    pub to: End,
    pub arrived: Packet,
}

/// An ICMP error: who sends it in whose name, about which packet, with how many bytes of it.
#[derive(Debug)]
pub struct Telling<'a> {
    pub from: End,
    pub source: IpAddr,
    pub about: &'a Packet,
    pub kind: (u8, u8),
    pub rest: u32,
    pub quoted: usize,
}

pub struct Run {
    world: World,
    node: MemoryNode,
    nat: Nat,
    /// What was delivered, the latest last.
    pub delivered: Vec<Delivered>,
    /// How often each thing happened: a model that never gets there proves nothing.
    pub seen: Seen,
}

/// What a run has met.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub opened: u32,
    pub leaves: u32,
    pub tells: u32,
    pub dropped: u32,
    pub answered: u32,
    pub other_port: u32,
    pub unsolicited: u32,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, more: Self) {
        self.opened += more.opened;
        self.leaves += more.leaves;
        self.tells += more.tells;
        self.dropped += more.dropped;
        self.answered += more.answered;
        self.other_port += more.other_port;
        self.unsolicited += more.unsolicited;
    }
}

impl Run {
    pub fn new(world: World) -> Self {
        let (node, nat) = (world.node(), Nat::new(world));
        Self { world, node, nat, delivered: Vec::new(), seen: Seen::default() }
    }

    pub fn wait(&mut self, milliseconds: u64) {
        self.node.wait(Duration::from_millis(milliseconds));
        self.nat.wait(milliseconds);
    }

    pub fn set(&mut self, number: u8, spec: &Spec) {
        let life = self.nat.set(number, spec.clone());
        self.node.set(Object::Service(spec.object(number, life))).unwrap();
    }

    pub fn remove(&mut self, number: u8, spec: &Spec) {
        if let Some(life) = self.nat.remove(number) {
            let name = spec.object(number, life).name;
            self.node.apply(vec![Change::Remove(ObjectKey::Service(name))]).unwrap();
        }
    }

    /// All flows are over, all frames are back.
    pub fn finish(mut self) -> Result<(), String> {
        self.wait(8_000_000);
        self.node.run();
        match self.node.flows() {
            0 => self.node.close(),
            flows => Err(format!("{flows} flows are remembered for ever")),
        }
    }

    /// The frame with which an end sends a packet, and where it comes in.
    fn frame(&self, from: End, packet: &Packet, queue: u8) -> (Place, Vec<u8>) {
        let uplink = Place::Uplink(usize::from(queue % self.world.workers));
        match from {
            End::Pod(pod) => (Place::Pod(objects::pod_name(0, pod)), packet.frame(up(pod))),
            End::Host => (Place::Host, packet.frame(from_host())),
            End::Outside(_) => (uplink, packet.frame(IN)),
            End::Remote(_) if !self.world.mode.is_tunnel() => (uplink, packet.frame(IN)),
            End::Remote(peer) => {
                let tunnel = Tunnel::from_peer(peer, self.world.mode, self.world.underlay);
                (uplink, tunnel.wrap(&packet.frame(between(peer, 0))))
            }
        }
    }

    /// An end sends a packet.
    pub fn send(&mut self, from: End, packet: &Packet, queue: u8) -> Result<(), String> {
        self.wait(PAUSE_MS);
        let mut packet = packet.clone();
        if self.world.workers > 1
            && matches!(from, End::Outside(_))
            && Key::of(&packet).is_some_and(|key| self.nat.is_known(&key))
            && let Body::Segment(_, _, flags @ flow::SYN, _) = &mut packet.body
        {
            // What begins anew is not looked for at other workers.
            *flags = flow::ACK;
        }
        if packet.ttl <= 1
            && let Body::Segment(_, _, flags, _) = &mut packet.body
            && *flags & flow::SYN != 0
        {
            // Which of two reasons to drop it is named depends on the worker.
            *flags &= !(flow::FIN | flow::RST);
        }
        if packet.ttl <= 1 && !self.nat.follows(&packet) {
            // A packet that dies here may open a flow all the same; which one is not seen.
            packet.ttl = 2;
        }
        let fate = self.nat.judge(from, &packet);
        self.check(from, &packet, queue, &fate)
    }

    /// An end tells of a packet by ICMP.
    pub fn tell(&mut self, telling: &Telling<'_>, queue: u8) -> Result<(), String> {
        self.wait(PAUSE_MS);
        let Telling { from, source, about, .. } = *telling;
        let error = telling.packet(source, about.source, about);
        match self.nat.judge_error(from, source, about) {
            Fate::Tells(source, to, quoted) => {
                let quoted = about.between(quoted.from, quoted.to);
                let leaves = telling.packet(source, to, &quoted);
                self.seen.tells += 1;
                let (moved, out) = self.give(from, &error, queue)?;
                let wanted = format!("{leaves:?}");
                self.arrives(&error, &leaves, &moved, &out)
                    .map_err(|e| format!("{e}\n as {wanted}"))
            }
            fate => self.check(from, &error, queue, &fate),
        }
    }

    /// Gives the frame to the node. What moved, and what came out.
    fn give(&mut self, from: End, packet: &Packet, queue: u8) -> Result<(Moved, Frames), String> {
        let (place, frame) = self.frame(from, packet, queue);
        let before = self.node.counters();
        if !self.node.inject(&place, &frame) {
            return Err(format!("{place:?} does not take the frame"));
        }
        self.node.run();
        self.node.check_books()?;
        let moved = Moved::between(&before, &self.node.counters());
        let out = self.node.collect();
        moved.check(&out)?;
        Ok((moved, out))
    }

    fn check(&mut self, from: End, sent: &Packet, queue: u8, fate: &Fate) -> Result<(), String> {
        let (moved, out) = self.give(from, sent, queue)?;
        let checked = self.fulfils(from, sent, fate, &moved, &out);
        checked.map_err(|error| {
            let shown: Vec<_> = out.iter().map(|(place, frame)| show(place, frame)).collect();
            format!("{from:?} sent {sent:?}\n expected {fate:?}\n but {error}\n moved {moved:?}\n out {shown:?}")
        })
    }

    fn fulfils(
        &mut self,
        from: End,
        sent: &Packet,
        fate: &Fate,
        moved: &Moved,
        out: &Frames,
    ) -> Result<(), String> {
        match fate {
            Fate::Leaves(key) => {
                self.seen.leaves += 1;
                let leaves = sent.between(key.from, key.to);
                self.arrives(sent, &leaves, moved, out)?;
                self.note(from, sent, &leaves);
                Ok(())
            }
            Fate::Opens(opening) => {
                if let [reason] = &moved.dropped[..]
                    && let Some(reason) =
                        self.nat.may_refuse(opening).into_iter().find(|r| *r == reason.name())
                {
                    let told = reason == "snat_ports_exhausted";
                    let answer = if told { Answer::Forbidden } else { Answer::Nothing };
                    return self.refuses(from, sent, reason, answer, moved, out);
                }
                let key = self.key_of(out)?;
                self.nat.opened(opening, key, flags_of(sent))?;
                self.seen.opened += 1;
                self.seen.other_port +=
                    u32::from(Key::of(sent).is_some_and(|k| k.from.1 != key.from.1));
                let leaves = sent.between(key.from, key.to);
                self.arrives(sent, &leaves, moved, out)?;
                self.note(from, sent, &leaves);
                Ok(())
            }
            Fate::Passes => {
                self.arrives(sent, sent, moved, out)?;
                self.note(from, sent, sent);
                Ok(())
            }
            Fate::Tells(..) => unreachable!("only of errors"),
            Fate::Echoed => {
                let Body::Echo(_, _, _, payload) = &sent.body else { return Err("no ping".into()) };
                let answer = sent.reply(payload).ttl(sent.ttl);
                let wanted = match from {
                    End::Host => (Place::Host, answer.frame(to_host())),
                    End::Pod(pod) => {
                        (Place::Pod(objects::pod_name(0, pod)), answer.frame(down(pod)))
                    }
                    _ => return Err("nobody else is answered".into()),
                };
                equal(out, &[wanted])
            }
            Fate::Host => {
                moved.nothing_dropped()?;
                equal(out, &[(Place::Host, sent.frame(to_host()))])
            }
            Fate::Unsolicited if moved.dropped.is_empty() => {
                equal(out, &[(Place::Host, sent.frame(to_host()))])
            }
            Fate::Unsolicited => {
                self.seen.unsolicited += 1;
                self.refuses(from, sent, "snat_unsolicited", Answer::Nothing, moved, out)
            }
            Fate::Dropped(reason, answer) => self.refuses(from, sent, reason, *answer, moved, out),
        }
    }

    /// It was dropped for that reason, and its sender told so.
    fn refuses(
        &mut self,
        from: End,
        sent: &Packet,
        reason: &str,
        answer: Answer,
        moved: &Moved,
        out: &Frames,
    ) -> Result<(), String> {
        self.seen.dropped += 1;
        let dropped: Vec<_> = moved.dropped.iter().map(|reason| reason.name()).collect();
        if dropped != [reason] {
            return Err(format!("dropped for {dropped:?}"));
        }
        if answer == Answer::Nothing {
            return equal(out, &[]);
        }
        self.seen.answered += 1;
        let family = family(sent);
        let inside = matches!(from, End::Pod(_) | End::Host);
        let gateway = if inside { gateway_ip(family) } else { node_ip(0, family) };
        if answer == Answer::Reset {
            return self.is_reset(from, sent, out);
        }
        let (source, kinds) = match answer {
            Answer::Refused => (sent.destination, [(3, 3), (1, 4)]),
            Answer::Forbidden => (gateway, [(3, 13), (1, 1)]),
            _ => (gateway, [(11, 0), (3, 0)]),
        };
        let error = crate::icmp_error::error(source, sent, kinds, 0);
        equal(out, &[self.delivery(from, &error, out)?])
    }

    /// The one frame that came out is the RST that refuses `sent` (RFC 9293 section 3.10.7.1).
    fn is_reset(&self, from: End, sent: &Packet, out: &Frames) -> Result<(), String> {
        let [(place, frame)] = &out[..] else { return Err("no RST".into()) };
        let inner = self.inner(place, frame);
        let parsed = SlicedPacket::from_ethernet(&inner).map_err(|e| e.to_string())?;
        let Some(TransportSlice::Tcp(tcp)) = &parsed.transport else { return Err("no TCP".into()) };
        let Body::Segment(sport, dport, flags, payload) = &sent.body else {
            return Err("about no TCP".into());
        };
        let acks = flags & flow::ACK != 0;
        let length = payload.len() as u32 + u32::from(flags & flow::SYN != 0);
        let wanted = if acks { (1, 0) } else { (0, 1 + length) };
        let numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
        let is_right = tcp.rst()
            && tcp.ack() != acks
            && !tcp.syn()
            && numbers == wanted
            && (tcp.source_port(), tcp.destination_port()) == (*dport, *sport)
            && tcp.payload().is_empty();
        let (source, destination, sum) = match &parsed.net {
            Some(NetSlice::Ipv4(ip)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                (from.into(), to.into(), tcp.calc_checksum_ipv4(from, to))
            }
            Some(NetSlice::Ipv6(ip)) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                (IpAddr::from(from), IpAddr::from(to), tcp.calc_checksum_ipv6(from, to))
            }
            _ => return Err("no IP".into()),
        };
        let ends = (source, destination) == (sent.destination, sent.source);
        let (right_place, _) = self.delivery(from, sent, out)?;
        if is_right && ends && sum.ok() == Some(tcp.checksum()) && *place == right_place {
            return Ok(());
        }
        Err(format!("another RST than {wanted:?} wanted: {:?} {numbers:?}", show(place, frame)))
    }

    /// `sent` left as `leaves`, at the right place, with one hop less.
    fn arrives(
        &mut self,
        sent: &Packet,
        leaves: &Packet,
        moved: &Moved,
        out: &Frames,
    ) -> Result<(), String> {
        moved.nothing_dropped()?;
        let to = End::of(leaves.destination).unwrap_or(End::Outside(0));
        let ttl = if to == End::Host { sent.ttl } else { sent.ttl - 1 };
        let leaves = leaves.clone().ttl(ttl);
        equal(out, &[self.delivery(to, &leaves, out)?])
    }

    /// The frame in which a packet gets to an end.
    fn delivery(&self, to: End, packet: &Packet, out: &Frames) -> Result<(Place, Vec<u8>), String> {
        let uplink = || match &out[..] {
            [(place @ Place::Uplink(_), _)] => Ok(place.clone()),
            _ => Err("not one frame on the uplink".to_owned()),
        };
        Ok(match to {
            End::Pod(pod) => (Place::Pod(objects::pod_name(0, pod)), packet.frame(down(pod))),
            End::Host => (Place::Host, packet.frame(to_host())),
            End::Outside(_) => (uplink()?, packet.frame((node::UPLINK_MAC, ROUTER))),
            End::Remote(_) if !self.world.mode.is_tunnel() => (uplink()?, packet.frame(OUT)),
            End::Remote(peer) => {
                let flow = if is_tunnelled(self.world.mode, &out[0].1) {
                    flow_of(&out[0].1)
                } else {
                    (0, 0)
                };
                let tunnel = Tunnel::to_peer(peer, self.world.mode, self.world.underlay, flow);
                (uplink()?, tunnel.wrap(&packet.frame(between(0, peer))))
            }
        })
    }

    /// The frame that left, out of its tunnel.
    fn inner(&self, place: &Place, frame: &[u8]) -> Vec<u8> {
        let tunnelled = matches!(place, Place::Uplink(_)) && is_tunnelled(self.world.mode, frame);
        if tunnelled { inner_of(frame) } else { frame.to_vec() }
    }

    /// The key of the one frame that came out.
    fn key_of(&self, out: &Frames) -> Result<Key, String> {
        let [(place, frame)] = &out[..] else {
            return Err(format!("{} frames came out", out.len()));
        };
        let inner = self.inner(place, frame);
        let parsed = SlicedPacket::from_ethernet(&inner).map_err(|e| e.to_string())?;
        let (source, destination): (IpAddr, IpAddr) = match &parsed.net {
            Some(NetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(NetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            _ => return Err("no IP came out".into()),
        };
        let identifier = |bytes: [u8; 4]| u16::from_be_bytes([bytes[0], bytes[1]]);
        let (from, to, protocol) = match &parsed.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port(), 6),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), 17),
            Some(TransportSlice::Icmpv4(icmp)) => (identifier(icmp.bytes5to8()), 0, 1),
            Some(TransportSlice::Icmpv6(icmp)) => (identifier(icmp.bytes5to8()), 0, 58),
            _ => return Err("something else came out".into()),
        };
        Ok(Key { from: (source, from), to: (destination, to), protocol })
    }

    fn note(&mut self, from: End, sent: &Packet, leaves: &Packet) {
        let to = End::of(leaves.destination).unwrap_or(End::Outside(0));
        let ttl = if to == End::Host { sent.ttl } else { sent.ttl - 1 };
        let arrived = leaves.clone().ttl(ttl);
        if Key::of(sent).is_some() {
            self.delivered.push(Delivered { from, sent: sent.clone(), to, arrived });
        }
    }
}

impl Telling<'_> {
    /// The error from `source` to `destination`, about a packet that may have been translated back.
    fn packet(&self, source: IpAddr, destination: IpAddr, about: &Packet) -> Packet {
        let mut quoted = about.ip();
        quoted.truncate(self.quoted.min(if source.is_ipv4() { 548 } else { 1232 }));
        let body = Body::Error(self.kind.0, self.kind.1, self.rest, quoted);
        packet(source, destination, body)
    }
}

type Frames = Vec<(Place, Vec<u8>)>;

fn show(place: &Place, frame: &[u8]) -> String {
    let parsed = SlicedPacket::from_ethernet(frame);
    format!("{place:?}: {parsed:?}")
}

/// Is the frame on the uplink one of the tunnel's?
fn is_tunnelled(mode: Mode, frame: &[u8]) -> bool {
    let Ok(parsed) = SlicedPacket::from_ethernet(frame) else { return false };
    let Some(TransportSlice::Udp(udp)) = parsed.transport else { return false };
    mode.is_tunnel() && Some(udp.destination_port()) == mode.default_port()
}

fn equal(got: &[(Place, Vec<u8>)], wanted: &[(Place, Vec<u8>)]) -> Result<(), String> {
    if got == wanted {
        return Ok(());
    }
    let show = |all: &[(Place, Vec<u8>)]| {
        all.iter().map(|(place, frame)| show(place, frame)).collect::<Vec<_>>().join("\n    ")
    };
    Err(format!("came out:\n    {}\n  wanted:\n    {}", show(got), show(wanted)))
}

/// What one packet moved.
#[derive(Debug)]
struct Moved {
    received: u64,
    handed_over: u64,
    generated: u64,
    sent: u64,
    to_host: u64,
    held: u64,
    dropped: Vec<DropReason>,
}

impl Moved {
    fn between(before: &Counters, after: &Counters) -> Self {
        let dropped = DropReason::ALL.iter().flat_map(|reason| {
            let number = after.dropped[*reason as usize] - before.dropped[*reason as usize];
            std::iter::repeat_n(*reason, number as usize)
        });
        Self {
            received: after.received - before.received,
            handed_over: after.handed_over - before.handed_over,
            generated: after.generated - before.generated,
            sent: after.sent - before.sent,
            to_host: after.to_host - before.to_host,
            held: after.held - before.held,
            dropped: dropped.collect(),
        }
    }

    /// One packet came; each that came or was made left, or was dropped.
    fn check(&self, out: &Frames) -> Result<(), String> {
        let frames = self.sent - self.handed_over + self.to_host;
        let is_right = self.received == 1 + self.handed_over + self.generated
            && self.held == 0
            && self.generated <= 1
            && frames == out.len() as u64
            && frames + self.dropped.len() as u64 == 1 + self.generated;
        if is_right { Ok(()) } else { Err(format!("{} frames came out, but {self:?}", out.len())) }
    }

    fn nothing_dropped(&self) -> Result<(), String> {
        match &self.dropped[..] {
            [] => Ok(()),
            reasons => Err(format!("it was dropped: {reasons:?}")),
        }
    }
}
