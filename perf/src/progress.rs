//! How far a run is, and the time that is left: on standard error, and only on a terminal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Counters that a run keeps for whoever shows them.
#[derive(Debug, Default)]
pub struct Progress {
    /// Frames sent so far.
    pub sent: AtomicU64,
    /// Frames received so far.
    pub received: AtomicU64,
}

/// A bar. It goes when it is dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    total_ms: Option<u64>,
    packets: Option<u64>,
}

impl Bar {
    /// Of a run that ends after this long or after so many packets, whichever comes first, or
    /// when somebody ends it.
    #[must_use]
    pub fn new(duration: Option<Duration>, packets: Option<u64>) -> Self {
        let total_ms = duration.map(|duration| duration.as_millis() as u64);
        let bar = match total_ms.or(packets) {
            Some(_) => ProgressBar::new(1000),
            None => ProgressBar::new_spinner(),
        };
        let template = if total_ms.or(packets).is_some() {
            "{bar:30} {percent:>3} %  {eta} left  {msg}"
        } else {
            "{spinner} {elapsed}  {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, total_ms, packets }
    }

    /// Shows the state after `elapsed`.
    pub fn show(&self, elapsed: Duration, progress: &Progress) {
        let sent = progress.sent.load(Ordering::Relaxed);
        let received = progress.received.load(Ordering::Relaxed);
        let share = |done: u64, all: Option<u64>| all.map(|all| done * 1000 / all.max(1));
        let by_time = share(elapsed.as_millis() as u64, self.total_ms);
        let by_packets = share(sent.max(received), self.packets);
        if let Some(share) = by_time.max(by_packets) {
            self.bar.set_position(share.min(1000));
        }
        let text = match (sent, received) {
            (sent, 0) => format!("{sent} sent"),
            (0, received) => format!("{received} received"),
            (sent, received) => format!("{sent} sent, {received} received"),
        };
        self.bar.set_message(text);
        self.bar.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line that says what is being done, for how long already.
#[must_use]
pub fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar of so many steps, with the time left.
#[must_use]
pub fn steps(count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whichever_end_is_nearer_is_shown() {
        let bar = Bar::new(Some(Duration::from_secs(10)), Some(1000));
        let progress = Progress::default();
        progress.sent.store(100, Ordering::Relaxed);
        bar.show(Duration::from_secs(5), &progress);
        assert_eq!(bar.bar.position(), 500);
        progress.sent.store(900, Ordering::Relaxed);
        bar.show(Duration::from_secs(6), &progress);
        assert_eq!(bar.bar.position(), 900);
        bar.show(Duration::from_secs(20), &progress);
        assert_eq!(bar.bar.position(), 1000);
    }
}
