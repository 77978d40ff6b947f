//! What a generator has sent.

use serde::{Deserialize, Serialize};

use crate::text::listing;

/// What a generator has sent, all of it out of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
pub struct Sent {
    /// Frames that the interface took.
    pub frames: u64,
    /// Frames that the interface did not take: its peer had no room, or it was down.
    pub refused: u64,
    /// Bytes of all frames, refused ones too, without their check sequences.
    pub bytes: u64,
    /// Stamped frames, refused ones too: sequence numbers 0 to one less.
    pub stamped: u64,
    /// From the first frame to the last, seconds.
    pub seconds: f64,
    /// The most that a frame left after its time, nanoseconds; flat out: 0.
    pub late_ns: u64,
}

impl Sent {
    /// Frames that were to leave: a veth refuses what its other side has no room for, and that is the
    /// forwarder's loss.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.frames + self.refused
    }

    /// Frames a second that the interface took.
    #[must_use]
    pub fn pps(&self) -> f64 {
        if self.seconds > 0.0 { self.frames as f64 / self.seconds } else { 0.0 }
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing(["SENT", "REFUSED", "STAMPED", "SECONDS", "KPPS", "LATEST"]);
        table.add_row([
            self.frames.to_string(),
            self.refused.to_string(),
            self.stamped.to_string(),
            format!("{:.3}", self.seconds),
            format!("{:.1}", self.pps() / 1e3),
            format!("{:.1} us", self.late_ns as f64 / 1e3),
        ]);
        table.to_string()
    }
}
