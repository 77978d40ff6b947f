//! What a generator sends: who talks to whom, in how many flows, how often and how large.
//!
//! Both generators, AF_XDP ([`crate::generate`]) and live frames ([`crate::live`]), send exactly
//! the frames that [`crate::writer`] makes of this, in the same order.

use std::net::IpAddr;

use overlane_api::{MacAddr, Mode, Vni};
use serde::{Deserialize, Serialize};

use crate::frames::CHECK_SEQUENCE;

/// Transport protocol of the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// UDP datagrams, the last 18 bytes of whose payload are a [`Stamp`].
    Udp,
    /// TCP segments that open connections (SYN); no payload and no stamp.
    TcpSyn,
}

/// In which order the flows' packets come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Every flow as often as any other, at random.
    Random,
    /// A few flows have most of the packets (exponent 1), at random; after 2^20 packets the same
    /// again.
    Zipf,
    /// One flow after the other. Flatters: tables are walked in the order of their allocation,
    /// which reads 30 to 70 % better than life.
    InOrder,
}

impl std::fmt::Display for Order {
    /// As on the command line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Zipf => "zipf",
            Self::InOrder => "in-order",
        })
    }
}

/// Size of the frames on the wire, their check sequence of 4 bytes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Size {
    /// All alike, bytes; the shortest possible where the headers are longer.
    Bytes(u16),
    /// Simple IMIX: of each 12 frames 7 of 64, 4 of 594 and 1 of 1518 bytes, always in the same
    /// order.
    Imix,
}

impl Size {
    /// Least and largest frame on the wire, bytes.
    pub const LIMITS: (u16, u16) = (64, 1518);
    /// Sizes of the simple IMIX.
    pub const IMIX: [u16; 3] = [64, 594, 1518];
    /// Which of [`Size::IMIX`] each of 12 frames has.
    pub const IMIX_PATTERN: [u8; 12] = [0, 1, 0, 1, 0, 2, 0, 1, 0, 1, 0, 0];

    /// The sizes that occur.
    #[must_use]
    pub fn classes(&self) -> Vec<u16> {
        match self {
            Self::Bytes(size) => vec![*size],
            Self::Imix => Self::IMIX.to_vec(),
        }
    }

    /// Which of [`Size::classes`] the frames have, in turn.
    #[must_use]
    pub fn pattern(&self) -> &'static [u8] {
        match self {
            Self::Bytes(_) => &[0],
            Self::Imix => &Self::IMIX_PATTERN,
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    /// A number of bytes, or `imix`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = Self::LIMITS;
        match (text, text.parse()) {
            ("imix" | "IMIX", _) => Ok(Self::Imix),
            (_, Ok(size)) if (least..=most).contains(&size) => Ok(Self::Bytes(size)),
            _ => Err(format!("{text} is neither imix nor within {least} and {most} bytes")),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// One side of all flows: addresses and ports counted up from the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Address of the Ethernet header.
    pub mac: MacAddr,
    /// First address.
    pub address: IpAddr,
    /// How many addresses follow each other.
    pub addresses: u32,
    /// First port.
    pub port: u16,
    /// How many ports follow each other.
    pub ports: u32,
}

impl Side {
    /// One address and one port.
    #[must_use]
    pub fn one(mac: MacAddr, address: impl Into<IpAddr>, port: u16) -> Self {
        Self { mac, address: address.into(), addresses: 1, port, ports: 1 }
    }

    /// The same address, with the ports 1024 to 65535.
    #[must_use]
    pub fn any_port(mac: MacAddr, address: impl Into<IpAddr>) -> Self {
        Self { ports: 64_512, ..Self::one(mac, address, 1024) }
    }

    /// Address number `index`.
    fn address(&self, index: u32) -> IpAddr {
        match self.address {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits().wrapping_add(index)).into()),
            IpAddr::V6(first) => {
                IpAddr::V6((first.to_bits().wrapping_add(u128::from(index))).into())
            }
        }
    }

    /// The 32 bits of the address that are counted up.
    #[must_use]
    pub fn low_bits(&self) -> u32 {
        match self.address {
            IpAddr::V4(first) => first.to_bits(),
            IpAddr::V6(first) => first.to_bits() as u32,
        }
    }
}

/// The tunnel that the frames are in, as a peer sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// [`Mode::Geneve`] or [`Mode::Vxlan`].
    pub mode: Mode,
    /// The virtual network.
    pub vni: Vni,
    /// Addresses of the outer Ethernet header: source, destination.
    pub macs: (MacAddr, MacAddr),
    /// Outer addresses: source, destination.
    pub addresses: (IpAddr, IpAddr),
    /// Outer destination port; the source port is a hash of the flow, 49152 or above (RFC 8926
    /// section 3.3, RFC 7348 section 5).
    pub port: u16,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Traffic {
    /// Where packets come from.
    pub source: Side,
    /// Where they go to.
    pub destination: Side,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Flows, no two of which have the same addresses and ports.
    pub flows: u32,
    /// In which order they come.
    pub order: Order,
    /// How large the frames are; of those in a tunnel, the inner ones.
    pub size: Size,
    /// The 802.1Q tag that (inner) frames have.
    pub vlan: Option<u16>,
    /// Have UDP packets with room for one a [`Stamp`]?
    pub stamp: bool,
    /// Packets a second; none: as many as possible.
    pub rate: Option<f64>,
    /// The tunnel they are in.
    pub tunnel: Option<Tunnel>,
}

/// Traffic that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrafficError {
    /// One side has IPv4 addresses, the other IPv6 addresses.
    #[error("{source_address} and {destination} are not of one family")]
    Families {
        /// First source address.
        source_address: IpAddr,
        /// First destination address.
        destination: IpAddr,
    },
    /// Addresses or ports beyond the last one there is.
    #[error("{count} {what} from {first} on are more than there are")]
    Overflow {
        /// `addresses` or `ports`.
        what: &'static str,
        /// How many.
        count: u32,
        /// The first.
        first: String,
    },
    /// More flows than combinations of addresses and ports.
    #[error(
        "{flows} flows need as many different addresses and ports; these make {possible}: add ports or addresses"
    )]
    Flows {
        /// Flows wanted.
        flows: u32,
        /// Flows possible.
        possible: u64,
    },
    /// No tunnel, or one with outer addresses of two families.
    #[error("{0}")]
    Tunnel(&'static str),
    /// A tag that does not exist.
    #[error("VLAN {0} is not within 1 and 4094")]
    Vlan(u16),
    /// A rate that is none.
    #[error("{0} packets a second are not possible: it must be above 0 and below 1e9")]
    Rate(String),
    /// SYNs of another size than the least.
    #[error("TCP SYNs have no payload: their size is 64")]
    SynSize,
    /// A size that is none.
    #[error("frames of {0} bytes are not possible: 64 to 1518")]
    Size(u16),
}

/// What the headers of a flow's packets differ in from those of other flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// Last 32 bits of the source's address.
    pub from: u32,
    /// Last 32 bits of the destination's address.
    pub to: u32,
    /// The source's port.
    pub from_port: u16,
    /// The destination's port.
    pub to_port: u16,
}

/// Largest number of flows.
pub const MAX_FLOWS: u32 = 16_000_000;

impl Traffic {
    /// UDP frames of 64 bytes from one side to the other, in one flow, flat out.
    #[must_use]
    pub fn new(source: Side, destination: Side) -> Self {
        Self {
            source,
            destination,
            protocol: Protocol::Udp,
            flows: 1,
            order: Order::Random,
            size: Size::Bytes(64),
            vlan: None,
            stamp: true,
            rate: None,
            tunnel: None,
        }
    }

    /// Is this possible?
    ///
    /// # Errors
    /// [`TrafficError`] says what is not.
    pub fn check(&self) -> Result<(), TrafficError> {
        let (source, destination) = (&self.source, &self.destination);
        if source.address.is_ipv4() != destination.address.is_ipv4() {
            let (source_address, destination) = (source.address, destination.address);
            return Err(TrafficError::Families { source_address, destination });
        }
        for side in [source, destination] {
            side.check()?;
        }
        let combinations =
            [source.addresses, source.ports, destination.addresses, destination.ports];
        let possible = combinations.iter().fold(1_u64, |all, n| all.saturating_mul(u64::from(*n)));
        let possible = possible.min(u64::from(MAX_FLOWS));
        if self.flows == 0 || u64::from(self.flows) > possible {
            return Err(TrafficError::Flows { flows: self.flows, possible });
        }
        if let Some(tunnel) = &self.tunnel {
            if !tunnel.mode.is_tunnel() {
                return Err(TrafficError::Tunnel("only geneve and vxlan are tunnels"));
            }
            if tunnel.addresses.0.is_ipv4() != tunnel.addresses.1.is_ipv4() {
                return Err(TrafficError::Tunnel("the tunnel's addresses are not of one family"));
            }
        }
        match (self.vlan, self.rate, self.size) {
            (Some(tag), _, _) if !(1..=4094).contains(&tag) => Err(TrafficError::Vlan(tag)),
            (_, Some(rate), _) if !(rate > 0.0 && rate < 1e9) => {
                Err(TrafficError::Rate(rate.to_string()))
            }
            (_, _, Size::Bytes(size)) if !(Size::LIMITS.0..=Size::LIMITS.1).contains(&size) => {
                Err(TrafficError::Size(size))
            }
            (_, _, size) if self.protocol == Protocol::TcpSyn && size != Size::Bytes(64) => {
                Err(TrafficError::SynSize)
            }
            _ => Ok(()),
        }
    }

    /// Addresses and ports of a flow: source, destination. Neighboring flows differ in the
    /// destination's address first, then in the source's port and address.
    #[must_use]
    pub fn flow(&self, flow: u32) -> ((IpAddr, u16), (IpAddr, u16)) {
        let Numbers { from, to, from_port, to_port } = self.numbers(flow);
        let from = self.source.address(from.wrapping_sub(self.source.low_bits()));
        let to = self.destination.address(to.wrapping_sub(self.destination.low_bits()));
        ((from, from_port), (to, to_port))
    }

    /// What differs from flow to flow.
    #[inline]
    pub(crate) fn numbers(&self, flow: u32) -> Numbers {
        let (source, destination) = (&self.source, &self.destination);
        let (to, rest) = (flow % destination.addresses, flow / destination.addresses);
        let (from_port, rest) = (rest % source.ports, rest / source.ports);
        let (from, to_port) = (rest % source.addresses, rest / source.addresses);
        Numbers {
            from: source.low_bits() + from,
            to: destination.low_bits() + to,
            from_port: source.port + from_port as u16,
            to_port: destination.port + to_port as u16,
        }
    }

    /// Outer source port of a flow in a tunnel.
    #[must_use]
    pub fn outer_port(flow: u32) -> u16 {
        49_152 | (flow.wrapping_mul(0x9e37_79b1) >> 18) as u16
    }

    /// Bytes of the largest (inner) frame in memory.
    #[must_use]
    pub fn largest(&self) -> usize {
        let largest = self.size.classes().into_iter().max().unwrap_or_default();
        usize::from(largest) - CHECK_SEQUENCE
    }
}

impl Side {
    fn check(&self) -> Result<(), TrafficError> {
        let too_many = |what, count, first: String| TrafficError::Overflow { what, count, first };
        let last = self.addresses.checked_sub(1).and_then(|n| self.low_bits().checked_add(n));
        if last.is_none() {
            return Err(too_many("addresses", self.addresses, self.address.to_string()));
        }
        if !(1..=65_536 - u32::from(self.port)).contains(&self.ports) {
            return Err(too_many("ports", self.ports, self.port.to_string()));
        }
        Ok(())
    }
}

/// What tells packets of a generator apart: the last 18 bytes of a UDP packet's payload, and so of
/// the frame, whatever it is encapsulated in.
///
/// ```text
///  0      2                10               18
/// +------+----------------+----------------+
/// | magic|    sequence    |  nanoseconds   |   big endian
/// +------+----------------+----------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the stamped packet in its run, from 0.
    pub sequence: u64,
    /// When it was sent, or should have been: nanoseconds of `CLOCK_MONOTONIC`.
    pub nanoseconds: u64,
}

impl Stamp {
    /// Bytes of a stamp.
    pub const LEN: usize = 18;
    /// Its first two bytes.
    pub const MAGIC: u16 = 0x4f56;

    /// The stamp's bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&Self::MAGIC.to_be_bytes());
        bytes[2..10].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[10..].copy_from_slice(&self.nanoseconds.to_be_bytes());
        bytes
    }

    /// The stamp at the end of a frame, if it ends with one.
    #[inline]
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let bytes = frame.last_chunk::<{ Self::LEN }>()?;
        let word = |at: usize| bytes[at..].first_chunk().map(|word| u64::from_be_bytes(*word));
        (bytes[..2] == Self::MAGIC.to_be_bytes())
            .then_some(Self { sequence: word(2)?, nanoseconds: word(10)? })
    }
}

/// Which flow the next packet belongs to.
#[derive(Debug, Clone)]
pub struct Picks {
    flows: u32,
    order: Order,
    /// State of a linear congruential generator; of the other orders, the packets so far.
    state: u64,
    /// Of Zipf's order: [`Picks::ZIPF`] flows drawn beforehand.
    drawn: Vec<u32>,
}

impl Picks {
    /// Flows that are drawn beforehand in Zipf's order; a power of two.
    pub const ZIPF: usize = 1 << 20;
    /// First state of the generator of random flows.
    pub const SEED: u64 = 0x4f76_6572_6c61_6e65;
    /// The generator's factor and summand (Knuth's MMIX).
    pub const STEP: (u64, u64) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);

    /// From the first packet on.
    #[must_use]
    pub fn new(flows: u32, order: Order) -> Self {
        let drawn = if order == Order::Zipf { zipf(flows) } else { Vec::new() };
        let state = if order == Order::Random { Self::SEED } else { 0 };
        Self { flows, order, state, drawn }
    }

    /// The flow of the next packet.
    #[inline]
    pub fn draw(&mut self) -> u32 {
        match self.order {
            Order::Random => {
                let (factor, summand) = Self::STEP;
                self.state = self.state.wrapping_mul(factor).wrapping_add(summand);
                (((self.state >> 32) * u64::from(self.flows)) >> 32) as u32
            }
            Order::Zipf => {
                let flow = self.drawn[self.state as usize % Self::ZIPF];
                self.state += 1;
                flow
            }
            Order::InOrder => {
                let flow = self.state as u32;
                self.state = if flow + 1 == self.flows { 0 } else { self.state + 1 };
                flow
            }
        }
    }

    /// The flows drawn beforehand; empty unless the order is Zipf's.
    #[must_use]
    pub fn drawn(&self) -> &[u32] {
        &self.drawn
    }
}

/// Flows with exponent 1, by inversion of the continuous distribution.
fn zipf(flows: u32) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(Picks::SEED);
    let mut draw = || {
        let rank = (f64::from(flows) + 1.0).powf(random.f64()) as u32;
        rank.clamp(1, flows) - 1
    };
    (0..Picks::ZIPF).map(|_| draw()).collect()
}

/// A rate on the command line: packets a second, with `k` or `M`; or `flat`.
///
/// # Errors
/// Says what is expected.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "flat" {
        return Ok(Rate(None));
    }
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate * factor < 1e9 => Ok(Rate(Some(rate * factor))),
        _ => Err(format!("{text} is neither flat nor packets a second, such as 500k or 1.2M")),
    }
}

/// Packets a second; none: flat out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate(pub Option<f64>);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use super::*;

    fn sides() -> (Side, Side) {
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        (Side::any_port(MacAddr([2; 6]), one), Side::one(MacAddr([4; 6]), other, 80))
    }

    #[test]
    fn flows_differ_and_stay_within_their_sides() {
        let (source, destination) = sides();
        let mut traffic = Traffic::new(
            Side { addresses: 3, ports: 100, ..source },
            Side { addresses: 7, ports: 2, ..destination },
        );
        traffic.flows = 3 * 100 * 7 * 2;
        traffic.check().unwrap();
        let flows: HashSet<_> = (0..traffic.flows).map(|flow| traffic.flow(flow)).collect();
        assert_eq!(flows.len(), traffic.flows as usize);
        for ((from, from_port), (to, to_port)) in flows {
            let IpAddr::V4(from) = from else { panic!("{from}") };
            let IpAddr::V4(to) = to else { panic!("{to}") };
            assert!((1..=3).contains(&from.octets()[3]) && (2..=8).contains(&to.octets()[3]));
            assert!((1024..1124).contains(&from_port) && (80..82).contains(&to_port));
        }
        traffic.flows += 1;
        assert_eq!(
            traffic.check(),
            Err(TrafficError::Flows { flows: 4201, possible: 4200 }),
            "one more than there can be"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let (source, destination) = sides();
        let good = Traffic::new(source, destination);
        good.check().unwrap();
        let refused = |change: &dyn Fn(&mut Traffic)| {
            let mut traffic = good.clone();
            change(&mut traffic);
            traffic.check().unwrap_err().to_string()
        };
        let text = refused(&|t| t.source.address = "fd00::1".parse().unwrap());
        assert!(text.contains("family"), "{text}");
        let text = refused(&|t| t.source.port = 65_000);
        assert!(text.contains("64512 ports from 65000"), "{text}");
        let text = refused(&|t| {
            t.source.address = Ipv4Addr::new(255, 255, 255, 254).into();
            t.source.addresses = 3;
        });
        assert!(text.contains("3 addresses from 255.255.255.254"), "{text}");
        assert!(refused(&|t| t.flows = 0).contains("0 flows"));
        assert!(refused(&|t| t.vlan = Some(4095)).contains("4095"));
        assert!(refused(&|t| t.rate = Some(f64::NAN)).contains("NaN"));
        assert!(refused(&|t| t.size = Size::Bytes(1519)).contains("1519"));
    }

    #[test]
    fn orders_are_what_they_are_called() {
        const DRAWS: usize = 100_000;
        let counts = |order| {
            let mut picks = Picks::new(1000, order);
            let mut counts = vec![0_usize; 1000];
            (0..DRAWS).for_each(|_| counts[picks.draw() as usize] += 1);
            counts
        };
        let random = counts(Order::Random);
        assert!(random.iter().all(|&n| (50..=160).contains(&n)), "{random:?}");
        assert!(counts(Order::InOrder).iter().all(|&n| n == 100));
        let zipf = counts(Order::Zipf);
        // The first of a thousand has a tenth of all, ln(2)/ln(1001).
        assert!((9_500..10_600).contains(&zipf[0]), "{}", zipf[0]);
        assert!(zipf[0] > zipf[1] && zipf[1] > zipf[10] && zipf[10] > zipf[500]);
    }

    #[test]
    fn imix_is_seven_to_four_to_one() {
        let of = |class| Size::IMIX_PATTERN.iter().filter(|&&c| c == class).count();
        assert_eq!([of(0), of(1), of(2)], [7, 4, 1]);
        assert_eq!("imix".parse(), Ok(Size::Imix));
        assert_eq!("512".parse(), Ok(Size::Bytes(512)));
        assert!("63".parse::<Size>().is_err() && "1519".parse::<Size>().is_err());
    }

    #[test]
    fn rates_are_read_with_their_unit() {
        assert_eq!(parse_rate("500k"), Ok(Rate(Some(5e5))));
        assert_eq!(parse_rate("1.5M"), Ok(Rate(Some(1.5e6))));
        assert_eq!(parse_rate("7"), Ok(Rate(Some(7.0))));
        assert_eq!(parse_rate("flat"), Ok(Rate(None)));
        for wrong in ["", "k", "-1", "0", "1e9", "fast", "NaN"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stamp_is_found_at_the_end_only() {
        let stamp = Stamp { sequence: 0x0102_0304_0506_0708, nanoseconds: 99 };
        let frame = [&[7; 42][..], &stamp.bytes()].concat();
        assert_eq!(Stamp::read(&frame), Some(stamp));
        assert_eq!(Stamp::read(&frame[..59]), None);
        assert_eq!(Stamp::read(&frame[43..]), None);
    }
}
