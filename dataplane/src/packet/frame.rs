//! A frame: the move-only token of one UMEM chunk.
//!
//! Whoever holds the token owns the bytes: it can be moved, not copied. Receiving creates it,
//! sending or dropping gives it back to a [`FramePool`](super::pool::FramePool). A token that
//! goes out of scope is a lost chunk; tests end by counting that all frames are back.
#![allow(
    clippy::cast_possible_truncation,
    reason = "a chunk has at most 65,535 bytes, and no offset or length in it is larger"
)]

use super::pool::UmemId;
use super::prefetch::{LINE, prefetch};

/// Bytes in front of a received packet: what the kernel leaves free (`XDP_PACKET_HEADROOM`), and
/// so the room into which encapsulation moves the frame's start.
pub const HEADROOM: usize = 256;

/// Bytes of a chunk. Chosen for an MTU of 1500: 256 of headroom and 1792 for the packet.
pub const CHUNK: usize = 2048;

/// The token of one chunk: where its packet starts and how long it is. 16 bytes, so that it moves
/// in one register.
pub struct Frame {
    chunk: &'static mut [u8; CHUNK],
    start: u16,
    len: u16,
    umem: UmemId,
}

impl std::fmt::Debug for Frame {
    /// The packet's place, not its 2048 bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("umem", &self.umem.0)
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// There is not enough room in the chunk on that side of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunk has no room for {wanted} bytes more")]
pub struct NoRoom {
    /// Bytes asked for.
    pub wanted: usize,
}

impl Frame {
    /// The token of `chunk`, with an empty packet behind the usual headroom.
    #[inline]
    #[must_use]
    pub fn new(chunk: &'static mut [u8; CHUNK], umem: UmemId) -> Self {
        Self { chunk, start: HEADROOM as u16, len: 0, umem }
    }

    /// The same chunk with the packet at `start..start + len`; a range outside of the chunk is
    /// cut to it.
    #[inline]
    pub fn set_range(&mut self, start: usize, len: usize) {
        let start = start.min(self.chunk.len());
        let len = len.min(self.chunk.len() - start);
        (self.start, self.len) = (start as u16, len as u16);
    }

    /// An empty packet behind the usual headroom.
    #[inline]
    pub fn reset(&mut self) {
        (self.start, self.len) = (HEADROOM as u16, 0);
    }

    /// Length of the packet, bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Is the packet empty?
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset of the packet in its chunk, bytes.
    #[inline]
    #[must_use]
    pub fn start(&self) -> usize {
        usize::from(self.start)
    }

    /// Address of the chunk's first byte in this process: what a UMEM tells its chunks by.
    #[inline]
    #[must_use]
    pub fn chunk_address(&self) -> usize {
        self.chunk.as_ptr() as usize
    }

    /// The UMEM that the chunk belongs to.
    #[inline]
    #[must_use]
    pub fn umem(&self) -> UmemId {
        self.umem
    }

    /// Asks for the line in which the packet starts to be brought near.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.chunk.as_ptr().wrapping_add(usize::from(self.start)));
    }

    /// Asks for both lines that the headers of a packet and of the tunnel around it take, where they are another
    /// core's.
    #[inline]
    pub fn prefetch_headers(&self) {
        let start = self.chunk.as_ptr().wrapping_add(usize::from(self.start));
        prefetch(start);
        prefetch(start.wrapping_add(LINE));
    }

    /// The packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let start = usize::from(self.start);
        &self.chunk[start..start + usize::from(self.len)]
    }

    /// The packet, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = usize::from(self.start);
        &mut self.chunk[start..start + usize::from(self.len)]
    }

    /// Makes the packet `count` bytes longer at its front; the new bytes are whatever was there.
    ///
    /// # Errors
    /// [`NoRoom`] when fewer than `count` bytes are free there; nothing is changed.
    #[inline]
    pub fn prepend(&mut self, count: usize) -> Result<&mut [u8], NoRoom> {
        if count > usize::from(self.start) {
            return Err(NoRoom { wanted: count });
        }
        self.start -= count as u16;
        self.len += count as u16;
        Ok(self.bytes_mut())
    }

    /// Takes `count` bytes away at the front, at most all.
    #[inline]
    pub fn trim_front(&mut self, count: usize) {
        let count = count.min(usize::from(self.len)) as u16;
        self.start += count;
        self.len -= count;
    }

    /// Cuts the packet to `len` bytes if it is longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = (len.min(usize::from(self.len))) as u16;
    }

    /// Makes the packet `len` bytes long; bytes that are new at its end are whatever was there.
    ///
    /// # Errors
    /// [`NoRoom`] when the chunk is not that long; nothing is changed.
    pub fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > self.chunk.len() - usize::from(self.start) {
            return Err(NoRoom { wanted: len - usize::from(self.len) });
        }
        self.len = len as u16;
        Ok(())
    }

    /// Replaces the packet by `bytes`, behind the usual headroom.
    ///
    /// # Errors
    /// [`NoRoom`] when the chunk is too short; nothing is changed.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        if bytes.len() > self.chunk.len() - HEADROOM {
            return Err(NoRoom { wanted: bytes.len() });
        }
        self.chunk[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        (self.start, self.len) = (HEADROOM as u16, bytes.len() as u16);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_two_words() {
        assert_eq!(std::mem::size_of::<Frame>(), 16);
        assert_eq!(std::mem::size_of::<Option<Frame>>(), 16);
    }

    fn frame(bytes: &[u8]) -> Frame {
        let mut frame = Frame::new(Box::leak(Box::new([0; CHUNK])), UmemId(0));
        frame.fill(bytes).unwrap();
        frame
    }

    #[test]
    fn prepend_and_trim_move_the_start_and_no_bytes() {
        let mut f = frame(b"payload");
        f.prepend(4).unwrap()[..4].copy_from_slice(b"head");
        assert_eq!((f.bytes(), f.start()), (&b"headpayload"[..], HEADROOM - 4));
        f.trim_front(4);
        assert_eq!((f.bytes(), f.start()), (&b"payload"[..], HEADROOM));
        f.trim_front(100);
        assert!(f.is_empty());
    }

    #[test]
    fn the_chunk_is_the_limit() {
        let mut f = frame(b"payload");
        assert_eq!(f.prepend(HEADROOM + 1).unwrap_err(), NoRoom { wanted: HEADROOM + 1 });
        assert_eq!(f.bytes(), b"payload");
        assert!(f.set_len(CHUNK - HEADROOM).is_ok());
        assert!(f.set_len(CHUNK - HEADROOM + 1).is_err());
        assert!(f.fill(&[0; CHUNK]).is_err());
        f.truncate(3);
        assert_eq!(f.bytes(), b"pay");
        f.set_range(CHUNK - 1, 10);
        assert_eq!(f.len(), 1);
    }
}
