//! What a second worker gives when answers arrive at the wrong one: a node of one worker and nodes of two, side
//! by side in one run, with the same flows, tables and frames for each worker. And what a bare lane costs, which
//! bounds it.
//!
//! The frames of all of them lie in memory in random order, as they do in any node after a while. In the order of their
//! addresses, which a node keeps in which none changes hands, the processor fetches the next ones ahead by itself,
//! and the other nodes would be blamed for that.
//!
//! Two threads need both cores at once, which others use as well. So a round is made of windows of some tenths of a
//! millisecond, and those count in which all threads of the node had their cores to themselves, and had had
//! them for a while: what piles up while one of them waits is not what is asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use overlane_dataplane::io::memory::ReplayPort;
use overlane_dataplane::worker::Worker;

use crate::bare_lane;
use crate::error::PerfError;
use crate::measure::{Spread, thread_time};
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};

/// Rounds of each node.
const ROUNDS: usize = 15;

/// How long the threads of a node run in one round.
const STRETCH: Duration = Duration::from_millis(200);

/// Polls of one window.
const POLLS: usize = 16;

/// Windows in which a thread has its core to itself before one counts.
const SETTLED: usize = 4;

/// What arrives at the workers of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arriving {
    /// Workers, with a core of its own each.
    pub workers: usize,
    /// Do pods' packets and answers arrive in turn, or answers alone?
    pub both_ways: bool,
    /// Does half of the answers arrive at the wrong worker?
    pub crossed: bool,
}

/// What was measured, millions of packets a second.
#[derive(Debug)]
pub struct Rates {
    /// Pods' packets and answers at one worker.
    pub one: Spread,
    /// At two, each packet at the right one.
    pub two_at_home: Spread,
    /// At two, half of the answers, which is a quarter of all packets, at the wrong one.
    pub two: Spread,
    /// Answers alone at one worker.
    pub answers_one: Spread,
    /// At two, half of them at the wrong one.
    pub answers_two: Spread,
    /// Nanoseconds of processor time for a packet that changes hands, of both workers together, where nothing is
    /// done with it but written, handed over, read and written.
    pub bare_lane_ns: Spread,
    /// The same without changing hands.
    pub bare_ns: Spread,
}

/// Measures all, in turn.
///
/// # Errors
/// [`PerfError`]
pub fn rates() -> Result<Rates, PerfError> {
    let name = "dnat-reply";
    let missing = || PerfError::Missed(format!("there is no scenario {name}"));
    let scenario = Scenario::named(name).ok_or_else(missing)?;
    let node =
        |workers, both_ways, crossed| Node::new(scenario, Arriving { workers, both_ways, crossed });
    let mut nodes = [
        node(1, true, false)?,
        node(2, true, false)?,
        node(2, true, true)?,
        node(1, false, false)?,
        node(2, false, true)?,
    ];
    let mut lanes = [bare_lane::Ends::new(true)?, bare_lane::Ends::new(false)?];
    for _ in 0..ROUNDS {
        for node in &mut nodes {
            node.round()?;
        }
        for lane in &mut lanes {
            lane.round()?;
        }
    }
    for node in &nodes {
        node.check()?;
    }
    let [one, two_at_home, two, answers_one, answers_two] = nodes.map(|node| node.rates);
    let [bare_lane, bare] = lanes.map(|lane| lane.rates);
    let ns = |rates: Vec<f64>| {
        rates.into_iter().map(|mpps| bare_lane::THREADS as f64 * 1e3 / mpps).collect()
    };
    Ok(Rates {
        one: spread(one)?,
        two_at_home: spread(two_at_home)?,
        two: spread(two)?,
        answers_one: spread(answers_one)?,
        answers_two: spread(answers_two)?,
        bare_lane_ns: spread(ns(bare_lane))?,
        bare_ns: spread(ns(bare))?,
    })
}

/// Of the rounds that count.
fn spread(rates: Vec<f64>) -> Result<Spread, PerfError> {
    if rates.is_empty() {
        let what = "two cores were never free at once: end what else runs here, and measure again";
        return Err(PerfError::Missed(what.into()));
    }
    Ok(Spread::of(rates))
}

/// A node whose workers are driven by threads.
#[derive(Debug)]
pub struct Node {
    rig: Rig,
    arriving: Arriving,
    /// Millions of packets a second that left, by round.
    pub rates: Vec<f64>,
}

impl Node {
    /// A node for packets to services, and their answers.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn new(scenario: Scenario, arriving: Arriving) -> Result<Self, PerfError> {
        let Arriving { workers, both_ways, crossed } = arriving;
        let rig = Rig::new(scenario, &Load { both_ways, crossed, ..Load::default() }, workers)?;
        Ok(Self { rig, arriving, rates: Vec::new() })
    }

    /// One round, if the cores were free for it.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn round(&mut self) -> Result<(), PerfError> {
        self.rates.extend(rate(&mut self.rig.bench.workers)?);
        Ok(())
    }

    /// Of the packets that arrived so far, those that had to change hands.
    #[must_use]
    pub fn handed(&self) -> f64 {
        let (mut handed, mut lost, mut received) = (0, 0, 0);
        for worker in &self.rig.bench.workers {
            let counters = worker.counters();
            handed += counters.handed_over;
            // While the other worker has no core its lane fills up.
            lost += counters.dropped.iter().sum::<u64>();
            received += counters.received;
        }
        let arrived = (received - handed).max(1);
        (handed + lost) as f64 / arrived as f64
    }

    /// Did as many packets change hands as should?
    ///
    /// # Errors
    /// [`PerfError::Missed`]
    pub fn check(&self) -> Result<(), PerfError> {
        let wanted = match self.arriving {
            Arriving { crossed: false, .. } => 0.0,
            Arriving { both_ways: true, .. } => 0.25,
            Arriving { both_ways: false, .. } => 0.5,
        };
        let share = self.handed();
        if (share - wanted).abs() < 0.02 {
            return Ok(());
        }
        let what = format!(
            "{share:.3} of the packets changed hands, and not {wanted}: {:?}",
            self.arriving
        );
        Err(PerfError::Missed(what))
    }
}

/// What a thread drives.
pub(crate) trait Driven: Send {
    /// One turn.
    fn poll(&mut self);
    /// Packets that it is done with, since it began.
    fn done(&self) -> u64;
}

impl Driven for Worker<ReplayPort> {
    fn poll(&mut self) {
        Worker::poll(self);
    }

    /// Those that left by a port; what went to another worker counts there.
    fn done(&self) -> u64 {
        self.counters().sent - self.counters().handed_over
    }
}

/// A stretch of polls of one thread.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: Instant,
    end: Instant,
    done: u64,
    /// Has the thread its core to itself, and has had it for a while?
    is_clean: bool,
}

/// Millions of packets a second that all do together, on a core of its own each, while all have these to
/// themselves. None: that was too short a time.
pub(crate) fn rate<D: Driven>(all: &mut [D]) -> Result<Option<f64>, PerfError> {
    let stop = AtomicBool::new(false);
    let mut windows = Vec::new();
    std::thread::scope(|scope| {
        let stop = &stop;
        let driven = |(number, driven)| {
            scope.spawn(move || {
                pin(number);
                drive(driven, stop)
            })
        };
        let threads: Vec<_> = all.iter_mut().enumerate().map(driven).collect();
        std::thread::sleep(STRETCH);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            windows.push(thread.join().map_err(|_| PerfError::Thread)??);
        }
        Ok::<(), PerfError>(())
    })?;
    let rates: Option<Vec<f64>> = windows.iter().map(|one| rate_of(one, &windows)).collect();
    Ok(rates.map(|rates| rates.iter().sum()))
}

/// Pins this thread to a core of its own, from the last on: the first has the most interrupts.
fn pin(number: usize) {
    if let Some(core) = core_affinity::get_core_ids()
        && !core.is_empty()
    {
        core_affinity::set_for_current(core[core.len() - 1 - number % core.len()]);
    }
}

/// Polls until told to stop.
fn drive<D: Driven>(driven: &mut D, stop: &AtomicBool) -> Result<Vec<Window>, PerfError> {
    let mut windows = Vec::with_capacity(1 << 14);
    let mut clean = 0;
    while !stop.load(Ordering::Relaxed) {
        let (start, busy, before) = (Instant::now(), thread_time()?, driven.done());
        for _ in 0..POLLS {
            driven.poll();
        }
        let (busy, end) = (thread_time()? - busy, Instant::now());
        let is_alone = (end - start).saturating_sub(busy) < (end - start) / 32;
        clean = if is_alone { clean + 1 } else { 0 };
        windows.push(Window {
            start,
            end,
            done: driven.done() - before,
            is_clean: clean > SETTLED,
        });
    }
    Ok(windows)
}

/// Millions of packets a second in those of a thread's windows in which all of the threads count.
fn rate_of(of: &[Window], all: &[Vec<Window>]) -> Option<f64> {
    let (mut done, mut time) = (0, Duration::ZERO);
    for window in of.iter().filter(|window| window.is_clean) {
        let is_clean_at = |other: &Vec<Window>| {
            let first = other.partition_point(|of| of.end <= window.start);
            let during = other[first..].iter().take_while(|of| of.start < window.end);
            let mut during = during.peekable();
            during.peek().is_some() && during.all(|of| of.is_clean)
        };
        if all.iter().all(is_clean_at) {
            done += window.done;
            time += window.end - window.start;
        }
    }
    (time > STRETCH / 200).then(|| done as f64 / time.as_secs_f64() / 1e6)
}

#[cfg(test)]
mod tests {
    use overlane_dataplane::io::VECTOR;

    use super::*;

    /// Windows of a millisecond each; those of the given numbers are not clean.
    fn windows(start: Instant, dirty: &[usize], done: u64) -> Vec<Window> {
        let at = |number| start + Duration::from_millis(number as u64);
        let window = |number| Window {
            start: at(number),
            end: at(number + 1),
            done,
            is_clean: !dirty.contains(&number),
        };
        (0..10).map(window).collect()
    }

    #[test]
    fn what_counts_is_when_all_have_their_cores() {
        let start = Instant::now();
        let mut one = windows(start, &[0, 3], 1000);
        // Half a window later, so that each of its windows meets two of the first's.
        let other = windows(start + Duration::from_micros(500), &[6], 3000);
        // The first's windows 6 and 7 meet the dirty one, 0 and 3 are dirty, all others count; but one is slow.
        one[8].done = 0;
        let all = [one, other];
        let rate = |number: usize| rate_of(&all[number], &all).unwrap();
        assert!((rate(0) - 1.0 * 5.0 / 6.0).abs() < 1e-9, "{}", rate(0));
        // Of the other's, 0, 2, 3 and 6 do not.
        assert!((rate(1) - 3.0).abs() < 1e-9, "{}", rate(1));
        let never = [windows(start, &[], 1), windows(start, &(0..10).collect::<Vec<_>>(), 1)];
        assert!(rate_of(&never[0], &never).is_none());
    }

    #[test]
    fn half_of_the_answers_change_hands() {
        let scenario = Scenario::named("dnat-reply").unwrap();
        for (both_ways, crossed, wanted) in
            [(true, true, 0.25), (false, true, 0.5), (true, false, 0.0)]
        {
            let mut node =
                Node::new(scenario, Arriving { workers: 2, both_ways, crossed }).unwrap();
            // Those that opened the flows.
            let opened: u64 = node.rig.bench.workers.iter().map(Driven::done).sum();
            for _ in 0..500 {
                for worker in &mut node.rig.bench.workers {
                    worker.poll();
                }
            }
            node.check().unwrap();
            let workers = &node.rig.bench.workers;
            let ports = if both_ways { 2 } else { 1 };
            let arrived = (2 * 500 * ports * VECTOR) as f64;
            let left = (workers.iter().map(Driven::done).sum::<u64>() - opened) as f64;
            assert!(left > arrived * 0.99 && left <= arrived, "{left} of {arrived}");
            assert!((node.handed() - wanted).abs() < 0.02);
            // Nothing goes missing on the way.
            for worker in workers {
                assert_eq!(worker.counters().dropped.iter().sum::<u64>(), 0);
            }
        }
    }
}
