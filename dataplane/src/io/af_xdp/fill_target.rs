//! How many frames wait for packets that may come.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::io::VECTOR;

/// So many recycles without a burst and the fill target is halved.
const IDLE_WINDOW: u32 = 1 << 14;

/// What an idle port keeps while there is plenty: what is sent to it after a pause comes in a burst, and
/// may be as long as a veth's own queue.
const REST: usize = 256;

/// Frames of one UMEM that its ports may hold above their minimum, all together: those left, and all.
#[derive(Debug)]
pub(super) struct FillBudget(AtomicUsize, usize);

impl FillBudget {
    pub(super) fn new(frames: usize) -> Self {
        Self(AtomicUsize::new(frames), frames)
    }

    /// Is more than half of it left? Busy ports have that half for themselves.
    fn is_plentiful(&self) -> bool {
        self.0.load(Ordering::Relaxed) > self.1 / 2
    }

    /// Takes `count` frames, all or none.
    fn take(&self, count: usize) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count))
            .is_ok()
    }

    fn give(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

/// How many free frames a port keeps on its fill ring.
///
/// Hundreds of idle pods must not hold all frames, and a busy one needs many: the target starts
/// at the minimum, doubles when a receive finds much of it used at once, and is halved after a
/// long time without. While more than half of the UMEM's budget is left, idle ports keep [`REST`] frames,
/// the first ones open more than those that come later. What is above the minimum is taken from the
/// budget. Frames that are on the ring cannot be taken back, so the budget is given back as they are used up.
#[derive(Debug)]
pub(super) struct FillTarget {
    target: usize,
    min: usize,
    max: usize,
    /// Frames of the UMEM's budget that this port has.
    funded: usize,
    /// Most packets that one receive found in this window.
    peak: usize,
    /// Recycles in this window.
    window: u32,
}

impl FillTarget {
    /// Free frames that the port wants to hold for receiving.
    #[inline]
    pub(super) fn get(&self) -> usize {
        self.target
    }

    /// Ends the port's part in the budget.
    pub(super) fn close(&mut self, budget: &FillBudget) {
        budget.give(std::mem::take(&mut self.funded));
    }

    pub(super) fn new(min: u32, max: u32) -> Self {
        let (min, max) = (min as usize, max as usize);
        // The first window ends at once, and with it the minimum where there is plenty.
        Self { target: min, min, max, funded: 0, peak: 0, window: IDLE_WINDOW }
    }

    /// A receive that counts as a burst.
    fn burst(&self) -> usize {
        (self.target / 2).clamp(1, VECTOR)
    }

    /// A receive found `count` packets.
    #[inline]
    pub(super) fn found(&mut self, count: usize, budget: &FillBudget) {
        self.peak = self.peak.max(count);
        if count >= self.burst() && self.target < self.max {
            self.grow(budget);
        }
    }

    #[cold]
    fn grow(&mut self, budget: &FillBudget) {
        let target = (self.target * 2).min(self.max);
        let missing = (target - self.min).saturating_sub(self.funded);
        if budget.take(missing) {
            self.funded += missing;
            self.target = target;
        }
    }

    #[inline]
    pub(super) fn recycled(&mut self, on_fill: usize, budget: &FillBudget) {
        self.window += 1;
        if self.window >= IDLE_WINDOW {
            self.end_window(on_fill, budget);
        }
    }

    #[cold]
    fn end_window(&mut self, on_fill: usize, budget: &FillBudget) {
        let rest = if budget.is_plentiful() { REST.min(self.max) } else { self.min };
        if self.peak < self.burst() {
            self.target = (self.target / 2).max(rest).min(self.target.max(self.min));
        }
        while self.target < rest && budget.is_plentiful() {
            let before = self.target;
            self.grow(budget);
            if self.target == before {
                break;
            }
        }
        (self.peak, self.window) = (0, 0);
        let needed = self.target.max(on_fill).saturating_sub(self.min);
        if needed < self.funded {
            budget.give(self.funded - needed);
            self.funded = needed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(budget: &FillBudget) -> usize {
        budget.0.load(Ordering::Relaxed)
    }

    fn idle(target: &mut FillTarget, on_fill: usize, budget: &FillBudget) {
        (0..IDLE_WINDOW).for_each(|_| target.recycled(on_fill, budget));
    }

    #[test]
    fn bursts_double_the_target_up_to_the_ring_or_the_budget() {
        let budget = FillBudget::new(300);
        let (mut one, mut other) = (FillTarget::new(32, 256), FillTarget::new(32, 1024));
        one.found(15, &budget);
        assert_eq!(one.get(), 32, "less than half is no burst");
        for _ in 0..9 {
            one.found(64, &budget);
        }
        assert_eq!((one.get(), left(&budget)), (256, 300 - 224));
        other.found(16, &budget);
        other.found(64, &budget);
        assert_eq!((other.get(), left(&budget)), (64, 76 - 32), "128 are not to be had");
        one.close(&budget);
        other.close(&budget);
        assert_eq!(left(&budget), 300);
    }

    #[test]
    fn idle_ports_keep_frames_for_a_burst_while_there_is_plenty() {
        let budget = FillBudget::new(2000);
        let mut ports: Vec<_> = (0..10).map(|_| FillTarget::new(16, 1024)).collect();
        for port in &mut ports {
            port.recycled(0, &budget);
        }
        let targets: Vec<_> = ports.iter().map(FillTarget::get).collect();
        assert_eq!(targets[..5], [256, 256, 256, 256, 64], "240 each of the budget");
        assert_eq!(targets[5..], [16; 5], "half is for those that are busy");
        assert_eq!(left(&budget), 2000 - 4 * 240 - 48);
        for port in &mut ports {
            idle(port, port.get(), &budget);
            idle(port, port.get(), &budget);
        }
        let held: usize = ports.iter().map(|port| port.get() - 16).sum();
        assert!(held <= 2000 / 2 + 256, "{held}");
        ports.iter_mut().for_each(|port| port.close(&budget));
        assert_eq!(left(&budget), 2000);
    }

    #[test]
    fn an_idle_port_shrinks_and_pays_back_what_left_its_ring() {
        let budget = FillBudget::new(1000);
        // Somebody else has more than half of it.
        assert!(budget.take(501));
        let mut target = FillTarget::new(32, 512);
        for _ in 0..4 {
            target.found(64, &budget);
        }
        assert_eq!((target.get(), left(&budget)), (512, 19));
        idle(&mut target, 512, &budget);
        assert_eq!(target.get(), 512, "the window had bursts");
        for _ in 0..5 {
            idle(&mut target, 512, &budget);
        }
        assert_eq!((target.get(), left(&budget)), (32, 19), "all frames are still on the ring");
        idle(&mut target, 100, &budget);
        assert_eq!(left(&budget), 499 - 68);
        idle(&mut target, 32, &budget);
        assert_eq!(left(&budget), 499);
    }
}
