//! Packets from worker to worker: two lock-free single-producer queues for each ordered pair, one for packets with
//! what is known about them and one for frames as they came, and a bell that wakes a sleeping worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::packet::frame::Frame;
use crate::packet::vector::Packet;
use crate::packet::verdict::PortId;

/// Packets that one lane of so many workers holds: those of an RX ring, in which a TCP window finds room,
/// where that does not take memory from everything else. A packet in a lane takes 128 bytes, a frame as it came 24,
/// and there are two lanes for each ordered pair.
const fn lane(workers: usize) -> usize {
    match workers {
        0..=4 => 4096,
        5..=8 => 2048,
        _ => 1024,
    }
}

/// A frame as it came to another worker.
#[derive(Debug)]
pub struct Arrived {
    /// The frame.
    pub frame: Frame,
    /// As in [`Packet`].
    pub received_ns: u32,
    /// The port it came by.
    pub port: PortId,
}

/// Wakes one worker.
#[derive(Debug)]
pub struct Bell {
    sleeping: AtomicBool,
    event: EventFd,
}

impl Bell {
    fn new() -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { sleeping: AtomicBool::new(false), event })
    }

    /// The worker announces that it will sleep. It must look for work once more before it does:
    /// what was put into its lanes before is not rung for.
    pub fn announce_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The worker is awake; the bell is silent again.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        // Nothing to read when nobody rang.
        let _ = self.event.read();
    }

    /// Rings if the worker sleeps. To be called after the work was put where it will look.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // The counter can only be full when the bell rings already.
            let _ = self.event.write(1);
        }
    }

    /// What to poll for readability while sleeping.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// One worker's ends of the lanes.
#[derive(Debug)]
pub struct Lanes {
    /// From each other worker; none from itself.
    pub incoming: Vec<Option<Consumer<Packet>>>,
    /// To each other worker; none to itself.
    pub outgoing: Vec<Option<Producer<Packet>>>,
    /// As [`Lanes::incoming`], of frames as they came.
    pub passed_in: Vec<Option<Consumer<Arrived>>>,
    /// As [`Lanes::outgoing`].
    pub passed_out: Vec<Option<Producer<Arrived>>>,
    /// The bells of all workers, by number.
    pub bells: Arc<[Bell]>,
}

impl Lanes {
    /// The lanes among `workers` workers, one element for each.
    ///
    /// # Errors
    /// The system has no file descriptor left for a bell.
    pub fn between(workers: usize) -> std::io::Result<Vec<Self>> {
        let bells: Vec<Bell> = (0..workers).map(|_| Bell::new()).collect::<Result<_, _>>()?;
        let bells: Arc<[Bell]> = bells.into();
        let mut all: Vec<Self> = (0..workers)
            .map(|_| Self {
                incoming: (0..workers).map(|_| None).collect(),
                outgoing: (0..workers).map(|_| None).collect(),
                passed_in: (0..workers).map(|_| None).collect(),
                passed_out: (0..workers).map(|_| None).collect(),
                bells: bells.clone(),
            })
            .collect();
        for from in 0..workers {
            for to in (0..workers).filter(|to| *to != from) {
                let (producer, consumer) = RingBuffer::new(lane(workers));
                all[from].outgoing[to] = Some(producer);
                all[to].incoming[from] = Some(consumer);
                let (producer, consumer) = RingBuffer::new(lane(workers));
                all[from].passed_out[to] = Some(producer);
                all[to].passed_in[from] = Some(consumer);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let lanes = Lanes::between(2).unwrap();
        let bell = &lanes[0].bells[1];
        bell.ring();
        assert!(bell.event().read().is_err());
        bell.announce_sleep();
        bell.ring();
        assert_eq!(bell.event().read().unwrap(), 1);
        bell.awake();
        bell.ring();
        assert!(bell.event().read().is_err());
    }

    #[test]
    fn every_ordered_pair_has_one_lane_and_nobody_one_to_itself() {
        let lanes = Lanes::between(3).unwrap();
        for (me, mine) in lanes.iter().enumerate() {
            for other in 0..3 {
                assert_eq!(mine.incoming[other].is_some(), other != me);
                assert_eq!(mine.outgoing[other].is_some(), other != me);
                assert_eq!(mine.passed_in[other].is_some(), other != me);
                assert_eq!(mine.passed_out[other].is_some(), other != me);
            }
        }
    }
}
