//! Pods that reach the outside, told in few words: what the tables of requirements and the scenarios
//! are written with.
//!
//! ```text
//! pod1, pod2 -- [ a: 10.0.1.4 ] -- router -- 203.0.113.10 and its neighbors
//! ```

use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{Mode, Node};
use overlane_dataplane::testing::Place;

use super::bed::{Bed, FORWARDED, TO_HOST, UPLINK, pod};
use super::build::{Body, IN, Packet, down, node_ip, packet, pod_ip, to_host, up};
use super::egress::{OUT, bed, outside};
use super::icmp_error::{error, names, told};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A node and the family that the test is about.
pub struct Rig {
    pub bed: Bed,
    pub family: usize,
}

/// A UDP body with a payload.
pub fn udp(from: u16, to: u16) -> Body {
    Body::Udp(from, to, b"datagram".to_vec())
}

/// A TCP body without a payload.
pub fn tcp(from: u16, to: u16, flags: u8) -> Body {
    Body::Segment(from, to, flags, Vec::new())
}

/// A ping's body.
pub fn ping(id: u16) -> Body {
    Body::Echo(false, id, 1, b"ping".to_vec())
}

/// Ports of a packet; of a ping the identifier stands for the one of who asks.
pub fn ports(packet: &Packet) -> (u16, u16) {
    match packet.body {
        Body::Udp(from, to, _) | Body::UdpNoSum(from, to, _) | Body::Segment(from, to, ..) => {
            (from, to)
        }
        Body::Echo(is_reply, id, ..) if is_reply => (0, id),
        Body::Echo(_, id, ..) => (id, 0),
        ref other => panic!("{other:?} has no ports"),
    }
}

/// The same with other TCP flags.
pub fn flagged(packet: &Packet, new_flags: u8) -> Packet {
    let mut packet = packet.clone();
    if let Body::Segment(_, _, flags, _) = &mut packet.body {
        *flags = new_flags;
    }
    packet
}

/// Runs a test in both families, with a node that is changed first; all frames come back.
pub fn with(change: impl Fn(&mut Node), test: impl Fn(&mut Rig)) {
    for family in 0..2 {
        let mut rig = Rig { bed: bed(Mode::Geneve, 1, 1, &change), family };
        test(&mut rig);
        rig.bed.close();
    }
}

/// Runs a test in both families.
pub fn each(test: impl Fn(&mut Rig)) {
    with(|_| {}, test);
}

impl Rig {
    /// Address of a pod here.
    pub fn pod(&self, number: u8) -> IpAddr {
        pod_ip(0, number, self.family)
    }

    /// The node's address.
    pub fn own(&self) -> IpAddr {
        node_ip(0, self.family)
    }

    /// Somebody outside; 0 is the usual one.
    pub fn outside(&self, number: u8) -> IpAddr {
        match outside(self.family) {
            IpAddr::V4(address) => {
                IpAddr::from((address.to_bits() + u32::from(number)).to_be_bytes())
            }
            IpAddr::V6(address) => (address.to_bits() + u128::from(number)).to_be_bytes().into(),
        }
    }

    /// A packet of a pod's to somebody outside.
    pub fn packet_of(&self, number: u8, to: u8, body: Body) -> Packet {
        packet(self.pod(number), self.outside(to), body)
    }

    /// A pod's packet leaves; returned as it left. Every byte is checked, and that no pod's address is
    /// seen outside.
    #[track_caller]
    pub fn leaves(&mut self, number: u8, sent: &Packet) -> Packet {
        let frame = self.bed.one(&pod(number), &sent.frame(up(number)), &UPLINK, FORWARDED);
        let is_ping = matches!(sent.body, Body::Echo(..));
        let at = [34, 54][self.family] + if is_ping { 4 } else { 0 };
        let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let source = match self.family {
            0 => IpAddr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap()),
        };
        assert!((0..2).all(|pod| self.pod(pod) != source), "a pod's address outside");
        let left =
            sent.between((source, port), (sent.destination, ports(sent).1)).ttl(sent.ttl - 1);
        assert_eq!(frame, left.frame(OUT));
        left
    }

    /// What the pod sees of a packet that answers `left`.
    pub fn seen(sent: &Packet, reply: &Packet) -> Packet {
        let (own, remote) = ports(sent);
        reply.between((sent.destination, remote), (sent.source, own)).ttl(reply.ttl - 1)
    }

    /// A reply from outside reaches the pod as an answer to what it sent.
    #[track_caller]
    pub fn reaches(&mut self, number: u8, sent: &Packet, reply: &Packet) {
        let seen = Self::seen(sent, reply);
        let out = [(pod(number), seen.frame(down(number)))];
        self.bed.step(&UPLINK, &reply.frame(IN), &out, FORWARDED);
    }

    /// There and back once; returned as it left.
    #[track_caller]
    pub fn round_trip(&mut self, number: u8, sent: &Packet) -> Packet {
        let left = self.leaves(number, sent);
        self.reaches(number, sent, &left.reply(b"answer"));
        left
    }

    /// A connection is opened: SYN, SYN/ACK, ACK. Returned as the SYN left.
    #[track_caller]
    pub fn connect(&mut self, number: u8, syn: &Packet) -> Packet {
        let left = self.round_trip(number, syn);
        assert_eq!(self.leaves(number, &flagged(syn, ACK)), flagged(&left, ACK));
        left
    }

    /// Who answers `left`, with these flags; it reaches the pod.
    #[track_caller]
    pub fn answers(&mut self, number: u8, sent: &Packet, left: &Packet, flags: u8) {
        self.reaches(number, sent, &flagged(&left.reply(b""), flags));
    }

    /// A packet from outside goes nowhere, and is said to answer nothing.
    #[track_caller]
    pub fn is_unsolicited(&mut self, stray: &Packet) {
        self.bed.drops(&UPLINK, &stray.frame(IN), "snat_unsolicited");
    }

    /// A packet from outside is the host's.
    #[track_caller]
    pub fn is_the_hosts(&mut self, stray: &Packet) {
        let out = [(Place::Host, stray.frame(to_host()))];
        self.bed.step(&UPLINK, &stray.frame(IN), &out, TO_HOST);
    }

    /// A pod's packet is dropped for that reason, and it is told so by its gateway.
    #[track_caller]
    pub fn refused(&mut self, number: u8, sent: &Packet, reason: &str, kind: [(u8, u8); 2]) {
        let gateway = super::build::gateway_ip(self.family);
        let answer = error(gateway, sent, kind, 0);
        let out = [(pod(number), answer.frame(down(number)))];
        self.bed.step(&pod(number), &sent.frame(up(number)), &out, &names(&told(reason)));
    }

    /// So much time passes, and all that is due is done.
    pub fn wait(&mut self, seconds: u64) {
        self.bed.node.wait(Duration::from_secs(seconds));
        self.bed.node.run();
    }

    /// Some router on the way tells of `left`, as it was when it came there; the pod sees it told of
    /// what it sent.
    #[track_caller]
    pub fn is_told(&mut self, number: u8, sent: &Packet, left: &Packet, kind: [(u8, u8); 2]) {
        let router = ["10.9.9.9", "2001:db8:9::9"][self.family].parse().unwrap();
        let told = error(router, left, kind, 0);
        let seen = error(router, &sent.clone().ttl(left.ttl), kind, 0).ttl(63);
        let out = [(pod(number), seen.frame(down(number)))];
        self.bed.step(&UPLINK, &told.frame(IN), &out, FORWARDED);
    }
}
