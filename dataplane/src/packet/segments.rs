//! Frames that are one packet's segments: the same headers, payloads that follow on one another. A
//! kernel that is given them as one packet carries that through its stack once, and cuts it again only
//! where a device needs it (generic segmentation offload, GSO).

use arrayvec::ArrayVec;

/// Room for the longest headers: Ethernet, IPv6, TCP with all of its options.
pub const HEADERS: usize = 14 + 40 + 60;

/// Which headers a kernel writes anew for each segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// IPv4 and TCP.
    TcpV4,
    /// IPv6 and TCP.
    TcpV6,
    /// IPv4 or IPv6, and UDP.
    Udp,
}

/// What the segments have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// Headers of the packet that they are one of: those of the first segment, with the lengths of the
    /// whole. The checksum of TCP or UDP is left unfinished: it is the pseudo-header's sum.
    pub headers: ArrayVec<u8, HEADERS>,
    /// Which headers those are.
    pub offload: Offload,
    /// Bytes of payload in each segment but the last, which may have fewer.
    pub size: u16,
    /// Offset of the TCP or UDP header, bytes.
    pub l4: u16,
    /// Offset of its checksum from there, bytes.
    pub checksum: u16,
}
