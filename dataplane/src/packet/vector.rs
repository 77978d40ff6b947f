//! A vector: up to 64 packets that go through each stage together.

use arrayvec::ArrayVec;

use super::frame::Frame;
use super::meta::Meta;

/// Most packets of a vector.
pub const VECTOR: usize = 64;

/// A packet that is inside: the frame and what is known about it.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub frame: Frame,
    /// What is known about it.
    pub meta: Meta,
    /// When a worker received it that gave it to another one, nanoseconds modulo 2^32; 0: that is not
    /// timed.
    pub received_ns: u32,
}

/// Frames and their metadata, side by side: `meta[i]` is about `frames[i]`.
#[derive(Debug, Default)]
pub struct Vector {
    /// The frames.
    pub frames: ArrayVec<Frame, VECTOR>,
    /// What is known about each.
    pub meta: ArrayVec<Meta, VECTOR>,
}

impl Vector {
    /// Packets in it.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Is it empty?
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Is there no room for another packet?
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.frames.is_full()
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// Gives it back when the vector is full.
    #[inline]
    #[allow(clippy::result_large_err, reason = "a packet that does not fit must come back")]
    pub fn push(&mut self, packet: Packet) -> Result<(), Packet> {
        if self.is_full() {
            return Err(packet);
        }
        self.frames.push(packet.frame);
        self.meta.push(packet.meta);
        Ok(())
    }

    /// The packets, one after the other.
    #[inline]
    pub fn packets(&mut self) -> impl Iterator<Item = (&mut Frame, &mut Meta)> {
        self.frames.iter_mut().zip(self.meta.iter_mut())
    }
}
