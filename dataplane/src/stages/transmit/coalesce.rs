//! Packets of one flow that follow one another, as one packet of a device that cuts it itself.
//!
//! A device in copy mode costs a microsecond for each packet, whatever its length: bulk TCP is bound by
//! that. Two kinds are put together, by the rules of the kernel's own receive offload:
//!
//! - TCP segments without gap, alike but for what counts them. Their checksums are verified first,
//!   because the receiver of the whole takes them for granted.
//! - Tunnel packets made here, of one inner flow and one size. The kernel then writes an outer UDP
//!   checksum, and where none would do, too.
//!
//! The last of them may be shorter, or be marked as the end of what was written (PSH).

use arrayvec::{ArrayVec, Drain};

use crate::packet::frame::Frame;
use crate::packet::meta::Meta;
use crate::packet::segments::{Offload, Segments};
use crate::packet::vector::VECTOR;
use crate::wire::{checksum, ethernet, ipv4, ipv6, peek, protocol, tcp, udp};

/// Shorter packets go alone, bytes: they are seldom many of one flow.
const SHORTEST: u16 = 256;

/// Flows that are put together at the same time.
pub const RUNS: usize = 4;

/// Longest IP packet, bytes.
const MAX_IP: usize = 65_535;

/// Ethernet, IP, UDP and a tunnel's header: a frame that is so much longer than its packet has them.
const TUNNEL: usize = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN + udp::HEADER_LEN + 8;

/// What the headers of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    offload: Offload,
    is_v6: bool,
    /// Offset of the TCP or UDP header, bytes.
    l4: usize,
    /// Offset of the payload, bytes.
    payload: usize,
}

impl Shape {
    const L3: usize = ethernet::HEADER_LEN;

    /// None: not a packet that can be a segment.
    fn of(frame: &Frame, meta: &Meta) -> Option<Self> {
        let bytes = frame.bytes();
        let (protocol, is_v6, l4) = match bytes.get(12..16)? {
            [0x08, 0x00, 0x45, _] => {
                let header = bytes.get(Self::L3..)?.first_chunk::<20>()?;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                // Whole, and never to be cut: nobody needs its identification (RFC 6864).
                let atomic = u16::from_be_bytes([header[6], header[7]]) == ipv4::DONT_FRAGMENT;
                (atomic && Self::L3 + total == bytes.len()).then_some((
                    header[9],
                    false,
                    Self::L3 + header.len(),
                ))?
            }
            [0x86, 0xdd, ..] => {
                let header = bytes.get(Self::L3..)?.first_chunk::<{ ipv6::HEADER_LEN }>()?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                (Self::L3 + header.len() + length == bytes.len()).then_some((
                    header[6],
                    true,
                    Self::L3 + header.len(),
                ))?
            }
            _ => return None,
        };
        let is_tunnel = bytes.len() >= TUNNEL + Self::L3 + usize::from(meta.ip_len);
        let (offload, payload) = match protocol {
            protocol::TCP if !is_tunnel => {
                let header = bytes.get(l4..)?.first_chunk::<{ tcp::MIN_HEADER_LEN }>()?;
                let flags = header[13] & !tcp::PSH;
                let offload = if is_v6 { Offload::TcpV6 } else { Offload::TcpV4 };
                let payload = l4 + usize::from(header[12] >> 4) * 4;
                (flags == tcp::ACK && payload >= l4 + header.len()).then_some((offload, payload))?
            }
            protocol::UDP if is_tunnel => {
                let header = bytes.get(l4..)?.first_chunk::<{ udp::HEADER_LEN }>()?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                (l4 + length == bytes.len()).then_some((Offload::Udp, l4 + udp::HEADER_LEN))?
            }
            _ => return None,
        };
        (payload < bytes.len()).then_some(Self { offload, is_v6, l4, payload })
    }

    fn is_tcp(&self) -> bool {
        self.offload != Offload::Udp
    }

    /// Sum of the pseudo-header of an upper layer of `len` bytes.
    fn pseudo(&self, bytes: &[u8], len: usize) -> u64 {
        let ip = bytes.get(Self::L3..).unwrap_or_default();
        let protocol = if self.is_tcp() { protocol::TCP } else { protocol::UDP };
        if self.is_v6 {
            peek::pseudo_v6(ip, protocol, len)
        } else {
            peek::pseudo_v4(ip, protocol, len)
        }
    }

    fn checksum_is_right(&self, bytes: &[u8]) -> bool {
        let segment = bytes.get(self.l4..).unwrap_or_default();
        let sum = checksum::sum(segment, self.pseudo(bytes, segment.len()));
        checksum::fold(sum) == 0xffff
    }

    /// Are the headers of two frames of this shape alike but for lengths, checksums, and what
    /// numbers packets?
    fn headers_match(&self, one: &[u8], other: &[u8]) -> bool {
        let same = |from: usize, to: usize| one.get(from..to) == other.get(from..to);
        let ip = if self.is_v6 {
            same(Self::L3, Self::L3 + 4) && same(Self::L3 + 6, self.l4)
        } else {
            same(Self::L3, Self::L3 + 2)
                && same(Self::L3 + 6, Self::L3 + 10)
                && same(Self::L3 + 12, self.l4)
        };
        let ports = same(self.l4, self.l4 + 4);
        let upper = !self.is_tcp()
            // Acknowledgment and offset; window; urgent pointer and options.
            || same(self.l4 + 8, self.l4 + 13)
                && same(self.l4 + 14, self.l4 + 16)
                && same(self.l4 + 18, self.payload);
        same(0, Self::L3) && ip && ports && upper
    }

    /// Sequence number and flags of a TCP segment.
    fn place(&self, bytes: &[u8]) -> Option<(u32, u8)> {
        let header = bytes.get(self.l4..)?.first_chunk::<{ tcp::MIN_HEADER_LEN }>()?;
        Some((u32::from_be_bytes([header[4], header[5], header[6], header[7]]), header[13]))
    }
}

/// May packets become segments? Those that cannot be, because they are short, need not come here where
/// none can.
#[inline]
#[must_use]
pub fn is_candidate(meta: &Meta) -> bool {
    meta.ip_len >= SHORTEST
}

/// Runs of frames that leave by one port, of a flow each. What leaves of one flow keeps its order.
#[derive(Debug, Default)]
pub struct Runs {
    runs: [Run; RUNS],
    /// The one that was begun last.
    newest: usize,
}

impl Runs {
    /// Adds a frame to the run of its flow, or begins one with it. Gives `send` what has to leave before: a
    /// run that it does not continue, or the oldest where there is no room. Gives back a short frame, which
    /// leaves alone.
    #[inline]
    pub fn add(
        &mut self,
        frame: Frame,
        meta: &Meta,
        mut send: impl FnMut(&mut Run),
    ) -> Option<Frame> {
        let same = |run: &Run| run.hash == meta.hash && !run.frames.is_empty();
        let place = self.runs.iter().position(same);
        if place.is_none() {
            if !is_candidate(meta) {
                return Some(frame);
            }
            self.newest = (self.newest + 1) % RUNS;
        }
        let Some(run) = self.runs.get_mut(place.unwrap_or(self.newest)) else { return Some(frame) };
        let frame = run.join(frame, meta).err()?;
        if !run.frames.is_empty() {
            send(run);
        }
        if !is_candidate(meta) {
            return Some(frame);
        }
        run.begin(frame, meta);
        None
    }

    /// Gives `send` all that is left.
    pub fn end(&mut self, mut send: impl FnMut(&mut Run)) {
        for run in &mut self.runs {
            if !run.frames.is_empty() {
                send(run);
            }
        }
    }
}

/// Frames that leave by one port together: one, or segments of one packet.
#[derive(Debug, Default)]
pub struct Run {
    frames: ArrayVec<Frame, VECTOR>,
    hash: u32,
    /// Of two frames and more.
    joined: Option<Joined>,
}

/// What a run of several frames is.
#[derive(Debug, Clone, Copy)]
struct Joined {
    shape: Shape,
    /// Bytes of payload in the first, and in all.
    size: usize,
    total: usize,
    /// Sequence number that follows.
    next: u32,
    /// Was the last one the last?
    ended: bool,
}

impl Run {
    /// Begins a run with a frame; the frames of the one before were taken.
    #[inline]
    fn begin(&mut self, frame: Frame, meta: &Meta) {
        self.frames.clear();
        self.frames.push(frame);
        (self.hash, self.joined) = (meta.hash, None);
    }

    /// Adds the frame, if it is the next segment of the same packet.
    ///
    /// # Errors
    /// Gives it back when it is not.
    #[inline]
    fn join(&mut self, frame: Frame, meta: &Meta) -> Result<(), Frame> {
        if meta.hash != self.hash || self.frames.is_empty() || self.frames.is_full() {
            return Err(frame);
        }
        match self.joined_with(&frame, meta) {
            Some(joined) => {
                self.joined = Some(joined);
                self.frames.push(frame);
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// What the run is with that frame too.
    #[inline(never)]
    fn joined_with(&self, frame: &Frame, meta: &Meta) -> Option<Joined> {
        let first = self.frames.first()?.bytes();
        let joined = match self.joined {
            Some(joined) => joined,
            None => Self::alone(self.frames.first()?, meta)?,
        };
        let Joined { shape, size, total, next, .. } = joined;
        let bytes = frame.bytes();
        let payload = bytes.len().checked_sub(shape.payload)?;
        let fits = payload <= size
            && first.len() + total - size + payload <= Shape::L3 + MAX_IP
            && !joined.ended
            && Shape::of(frame, meta) == Some(shape)
            && shape.headers_match(first, bytes);
        if !fits {
            return None;
        }
        let mut ended = payload < size;
        if shape.is_tcp() {
            let (sequence, flags) = shape.place(bytes)?;
            if sequence != next || !shape.checksum_is_right(bytes) {
                return None;
            }
            ended |= flags & tcp::PSH != 0;
        }
        Some(Joined {
            total: total + payload,
            next: next.wrapping_add(payload as u32),
            ended,
            ..joined
        })
    }

    /// What a run of one frame is. None: nothing can follow it.
    fn alone(frame: &Frame, meta: &Meta) -> Option<Joined> {
        let shape = Shape::of(frame, meta)?;
        let bytes = frame.bytes();
        let size = bytes.len() - shape.payload;
        let (mut next, mut ended) = (0, false);
        if shape.is_tcp() {
            let (sequence, flags) = shape.place(bytes)?;
            next = sequence.wrapping_add(size as u32);
            ended = flags & tcp::PSH != 0 || !shape.checksum_is_right(bytes);
        }
        Some(Joined { shape, size, total: size, next, ended })
    }

    /// The frames.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Takes the frames out, in their order.
    #[inline]
    pub fn take(&mut self) -> Drain<'_, Frame, VECTOR> {
        self.frames.drain(..)
    }

    /// What the frames have in common; none of a single one.
    #[must_use]
    pub fn segments(&self) -> Option<Segments> {
        let Joined { shape, size, total, .. } = self.joined?;
        let (first, last) = (self.frames.first()?.bytes(), self.frames.last()?.bytes());
        let mut headers = ArrayVec::new();
        headers.try_extend_from_slice(first.get(..shape.payload)?).ok()?;
        let upper = shape.payload - shape.l4 + total;
        let unfinished = checksum::fold(shape.pseudo(first, upper));
        let (front, l4) = headers.split_at_mut_checked(shape.l4)?;
        let ip = front.get_mut(Shape::L3..)?;
        if shape.is_v6 {
            ip.get_mut(4..6)?.copy_from_slice(&(upper as u16).to_be_bytes());
        } else {
            let ip = ip.first_chunk_mut::<{ ipv4::MIN_HEADER_LEN }>()?;
            ip[2..4].copy_from_slice(&((ipv4::MIN_HEADER_LEN + upper) as u16).to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(ip, 0));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let at = if shape.is_tcp() {
            let (_, flags) = shape.place(last)?;
            *l4.get_mut(13)? = flags;
            tcp::CHECKSUM_OFFSET
        } else {
            l4.get_mut(4..6)?.copy_from_slice(&(upper as u16).to_be_bytes());
            udp::CHECKSUM_OFFSET
        };
        l4.get_mut(at..at + 2)?.copy_from_slice(&unfinished.to_be_bytes());
        let size = size as u16;
        Some(Segments {
            headers,
            offload: shape.offload,
            size,
            l4: shape.l4 as u16,
            checksum: at as u16,
        })
    }
}
