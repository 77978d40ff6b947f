//! One trial: packets offered at one rate for some time, and what became of them.
//!
//! Searches ([`crate::search`]) choose the rates, a [`Measurer`] makes the trials: a testbed, or in
//! tests a formula.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::PerfError;

/// What became of the packets of one trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Packets a second that were asked for ("intended load").
    pub load_pps: f64,
    /// Packets a second that left the generator ("offered load").
    pub offered_pps: f64,
    /// How long they were offered, seconds.
    pub seconds: f64,
    /// Packets offered.
    pub sent: u64,
    /// Of those, packets that came out at the other end. More than were sent mean that the trial
    /// counted somebody else's packets.
    pub received: u64,
}

impl Trial {
    /// Packets lost, of those sent; 0 to 1. Of nothing, everything: a trial that could not send says
    /// nothing good about its load.
    #[must_use]
    pub fn loss_ratio(&self) -> f64 {
        if self.sent == 0 {
            return 1.0;
        }
        self.lost() as f64 / self.sent as f64
    }

    /// Packets lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// Packets a second that came out ("forwarding rate").
    #[must_use]
    pub fn forwarded_pps(&self) -> f64 {
        self.offered_pps * (1.0 - self.loss_ratio())
    }
}

/// Makes trials.
pub trait Measurer {
    /// Offers `load_pps` packets a second for `duration`, waits until what was sent has arrived, and
    /// counts.
    ///
    /// # Errors
    /// [`PerfError`] when there is no result: the generator cannot do it, the testbed is broken, or
    /// the person has had enough.
    fn trial(&mut self, load_pps: f64, duration: Duration) -> Result<Trial, PerfError>;
}

impl<F: FnMut(f64, Duration) -> Result<Trial, PerfError>> Measurer for F {
    fn trial(&mut self, load_pps: f64, duration: Duration) -> Result<Trial, PerfError> {
        self(load_pps, duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_of_what_was_sent() {
        let trial =
            Trial { load_pps: 1e6, offered_pps: 9e5, seconds: 1.0, sent: 900, received: 720 };
        assert_eq!(trial.lost(), 180);
        assert!((trial.loss_ratio() - 0.2).abs() < 1e-12);
        assert!((trial.forwarded_pps() - 7.2e5).abs() < 1e-3);
    }

    #[test]
    fn a_trial_that_sent_nothing_lost_everything() {
        let trial = Trial { load_pps: 1.0, offered_pps: 0.0, seconds: 1.0, sent: 0, received: 0 };
        assert!((trial.loss_ratio() - 1.0).abs() < 1e-12);
    }
}
