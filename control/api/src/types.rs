//! Numbers with a meaning: one checked constructor each, the legal range and its source beside it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A value that is outside of its type's legal range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// A VNI that does not fit its 24 bits.
    #[error("VNI {0} is not a 24-bit number: use 0 to 16777215")]
    Vni(u32),
    /// Text that is not six hexadecimal octets.
    #[error("{0:?} is not a MAC address: write six octets, for example 02:4f:0a:00:01:04")]
    Mac(String),
    /// Text that is not a range of ports.
    #[error("{0:?} is not a range of ports: write the first and the last, for example 10240-29999")]
    PortRange(String),
}

/// Virtual network identifier, 24 bits (RFC 8926 section 3.4, RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// Largest legal VNI.
    pub const MAX: u32 = 0x00ff_ffff;

    /// Makes a VNI.
    ///
    /// # Errors
    /// [`TypeError::Vni`] when `vni` needs more than 24 bits.
    pub const fn new(vni: u32) -> Result<Self, TypeError> {
        if vni <= Self::MAX { Ok(Self(vni)) } else { Err(TypeError::Vni(vni)) }
    }

    /// The number, host byte order.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The three octets as they stand in a tunnel header.
    #[must_use]
    pub const fn octets(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl TryFrom<u32> for Vni {
    type Error = TypeError;
    fn try_from(vni: u32) -> Result<Self, TypeError> {
        Self::new(vni)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ethernet address, octets in wire order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Is the group bit set (broadcast or multicast)?
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = TypeError;
    fn from_str(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError::Mac(text.to_owned());
        let mut octets = [0_u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = TypeError;
    fn try_from(text: String) -> Result<Self, TypeError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// A worker's number, from 0. At most 64 workers run in one dataplane.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WorkerId(pub u8);

impl WorkerId {
    /// Most workers that one dataplane can have.
    pub const MAX_WORKERS: usize = 64;

    /// As an index into per-worker arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device's queue number, from 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct QueueId(pub u32);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ports from a first to a last, both included; never empty, never with port 0. Written
/// `10240-29999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// What source NAT takes unless told otherwise: below NodePorts (30000-32767) and Linux's
    /// own ephemeral ports (32768-60999).
    pub const SNAT_DEFAULT: Self = Self { first: 10240, last: 29999 };

    /// What Kubernetes gives to NodePorts (kube-apiserver `--service-node-port-range`).
    pub const NODE_PORTS: Self = Self { first: 30000, last: 32767 };

    /// Makes a range.
    ///
    /// # Errors
    /// [`TypeError::PortRange`] when `first` is 0 or behind `last`.
    pub fn new(first: u16, last: u16) -> Result<Self, TypeError> {
        if first > 0 && first <= last {
            Ok(Self { first, last })
        } else {
            Err(TypeError::PortRange(format!("{first}-{last}")))
        }
    }

    /// The first port, host byte order.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port, host byte order.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports, 1 to 65535.
    #[must_use]
    pub const fn count(self) -> u32 {
        // Widening; `From` is not const.
        self.last as u32 - self.first as u32 + 1
    }

    /// Is `port` in it?
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Do the ranges share a port?
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = TypeError;
    fn from_str(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError::PortRange(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        Self::new(port(first)?, port(last)?).map_err(|_| wrong())
    }
}

impl TryFrom<String> for PortRange {
    type Error = TypeError;
    fn try_from(text: String) -> Result<Self, TypeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range_is_written_and_read_back() {
        let range: PortRange = "10240-29999".parse().unwrap();
        assert_eq!(range, PortRange::SNAT_DEFAULT);
        assert_eq!((range.count(), range.to_string()), (19_760, "10240-29999".to_owned()));
        assert!(range.contains(10240) && range.contains(29999));
        assert!(!range.contains(10239) && !range.contains(30000));
        assert!(!range.overlaps(PortRange::NODE_PORTS));
        assert!(PortRange::new(29999, 30000).unwrap().overlaps(range));
        assert_eq!(PortRange::new(1, 65535).unwrap().count(), 65535);
        for wrong in ["", "1", "0-5", "5-4", "1-65536", "a-b"] {
            assert_eq!(wrong.parse::<PortRange>(), Err(TypeError::PortRange(wrong.to_owned())));
        }
    }

    #[test]
    fn vni_takes_24_bits_and_no_more() {
        assert_eq!(Vni::new(3301).unwrap().octets(), [0x00, 0x0c, 0xe5]);
        assert_eq!(Vni::new(Vni::MAX).unwrap().get(), 16_777_215);
        assert_eq!(Vni::new(Vni::MAX + 1), Err(TypeError::Vni(16_777_216)));
        assert!(serde_json::from_str::<Vni>("16777216").is_err());
    }

    #[test]
    fn mac_is_written_and_read_back() {
        let mac: MacAddr = "02:4f:0a:00:01:04".parse().unwrap();
        assert_eq!(mac, MacAddr([0x02, 0x4f, 0x0a, 0, 1, 4]));
        assert_eq!(mac.to_string(), "02:4f:0a:00:01:04");
        for wrong in
            ["", "02:4f:0a:00:01", "02:4f:0a:00:01:04:05", "2:4f:0a:00:01:04", "0x:4f:0a:00:01:04"]
        {
            assert_eq!(wrong.parse::<MacAddr>(), Err(TypeError::Mac(wrong.to_owned())));
        }
    }
}
