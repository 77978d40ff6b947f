//! Rounds of forwarding, and rounds of the ports alone, one after the other.

use std::time::Duration;

use arrayvec::ArrayVec;
use nix::time::{ClockId, clock_gettime};
use overlane_dataplane::io::memory::ReplayPort;
use overlane_dataplane::io::{Port, VECTOR};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::pool::{FramePool, UmemId};
use overlane_dataplane::testing::Bench;
use overlane_dataplane::worker::Worker;
use serde::{Deserialize, Serialize};

use crate::counters::{Counted, CounterError, Counters, Cycles, Reading};
use crate::error::PerfError;
use crate::rig::{Flows, Rig, silent_port};
use crate::scenario::{Load, Scenario};
use crate::topology::Topology;

/// Vectors of one round: long against the clock's resolution, short against the time slices of
/// what else runs here.
pub const ROUND: usize = 2000;

/// Vectors after which a worker does nothing for the first time any more.
const WARM_UP: usize = 100;

/// Median and range of several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median round.
    pub median: f64,
    /// The quickest round.
    pub least: f64,
    /// The slowest round.
    pub most: f64,
}

impl Spread {
    /// Of values that are not empty.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(values.len() / 2),
            least: at(0),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

/// Forwards `vectors` vectors; says how many packets that were. Callgrind counts what is below.
#[inline(never)]
pub fn forward(worker: &mut Worker<ReplayPort>, vectors: usize) -> usize {
    (0..vectors).map(|_| worker.poll()).sum()
}

/// Polls a few times, of which nothing is to be counted: a worker that has just begun takes over the
/// tables, claims its external ports and fills its ports' rings, once.
#[inline(never)]
pub fn warm_up(worker: &mut Worker<ReplayPort>) {
    for _ in 0..WARM_UP {
        worker.poll();
    }
}

/// The ports alone: what is received is sent.
#[derive(Debug)]
pub struct Ports {
    input: ReplayPort,
    output: ReplayPort,
    pool: FramePool,
    vector: ArrayVec<Frame, VECTOR>,
}

impl Ports {
    /// Ports that carry what worker 0 of `scenario` receives.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn new(scenario: Scenario, load: &Load) -> Result<Self, PerfError> {
        let topology = Topology::new(load.peers, load.endpoints)?;
        let depot = overlane_dataplane::io::memory::MemoryUmem::new(UmemId(0), load.frames + 512);
        let mut pool = FramePool::new(depot, 256);
        let mut input = Flows::new(scenario, load, topology, 0).port(load)?;
        input.recycle(&mut pool);
        Ok(Self { input, output: silent_port()?, pool, vector: ArrayVec::new() })
    }

    /// Carries `vectors` vectors; says how many packets that were. Callgrind counts this.
    #[inline(never)]
    pub fn carry(&mut self, vectors: usize) -> usize {
        let mut carried = 0;
        for _ in 0..vectors {
            carried += self.input.receive(&mut self.vector);
            for frame in self.vector.drain(..) {
                if let Err(frame) = self.output.send(frame) {
                    self.pool.give(frame);
                }
            }
            self.output.flush();
            self.output.recycle(&mut self.pool);
            self.input.recycle(&mut self.pool);
        }
        carried
    }
}

/// What packets cost.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    /// From port to port, the ports included.
    pub total_ns: Spread,
    /// Of that, the ports of memory alone.
    pub ports_ns: Spread,
    /// Packets in all rounds of all workers.
    pub packets: u64,
    /// Of all workers together, ports included, millions a second.
    pub mpps: f64,
}

impl Cost {
    /// Total less ports, medians: an estimate of the pipeline's share, as a processor overlaps
    /// the two.
    #[must_use]
    pub fn pipeline_ns(&self) -> f64 {
        self.total_ns.median - self.ports_ns.median
    }
}

/// CPU time of this thread: what others do on this core is not in it.
///
/// # Errors
/// [`PerfError::Clock`]
pub fn thread_time() -> Result<Duration, PerfError> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_err(PerfError::Clock)?;
    Ok(Duration::from(time))
}

/// One round: packets, and what each cost.
#[derive(Debug, Clone, Copy)]
struct Round {
    packets: usize,
    ns: f64,
    /// Cycles, and instructions, where they are counted.
    counted: Option<Counted>,
}

/// Times rounds of the thread that made it, and counts their cycles if that is possible.
#[derive(Debug)]
struct Timer {
    counters: Result<Counters, CounterError>,
}

impl Timer {
    fn of_this_thread() -> Self {
        Self { counters: Counters::of_this_thread() }
    }

    /// A round of which `work` says how many packets it had. A counter that fails is not asked again.
    fn round(&mut self, work: impl FnOnce() -> usize) -> Result<Round, PerfError> {
        let counts = self.counters.as_mut().ok().map(Counters::read).transpose();
        let before = thread_time()?;
        let packets = work();
        let spent = thread_time()? - before;
        let each = packets.max(1) as f64;
        let counted = counts.and_then(|counts| self.since(counts)).unwrap_or_else(|error| {
            self.counters = Err(error);
            None
        });
        let counted = counted.map(|all| Counted {
            cycles: all.cycles / each,
            instructions: all.instructions.map(|count| count / each),
        });
        Ok(Round { packets, ns: spent.as_nanos() as f64 / each, counted })
    }

    fn since(&mut self, before: Option<Reading>) -> Result<Option<Counted>, CounterError> {
        let (Ok(counters), Some(before)) = (&mut self.counters, before) else { return Ok(None) };
        counters.read()?.since(&before).map(Some)
    }
}

/// What a measurement gave.
#[derive(Debug)]
pub struct Measured {
    /// Time.
    pub cost: Cost,
    /// Cycles, or why they are not counted.
    pub cycles: Result<Cycles, CounterError>,
}

/// Measures `scenario` for about `seconds`.
///
/// # Errors
/// [`PerfError`]
pub fn measure(
    scenario: Scenario,
    load: &Load,
    workers: usize,
    seconds: f64,
) -> Result<Measured, PerfError> {
    if scenario.opens {
        return measure_opening(scenario, load, workers, seconds);
    }
    let mut rig = Rig::new(scenario, load, workers)?;
    let mut costs = Vec::new();
    let Bench { workers: all, .. } = &mut rig.bench;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .iter_mut()
            .enumerate()
            .map(|(number, worker)| {
                scope.spawn(move || rounds(scenario, load, worker, number, seconds))
            })
            .collect();
        for thread in threads {
            costs.push(thread.join().map_err(|_| PerfError::Thread)??);
        }
        Ok::<(), PerfError>(())
    })?;
    rig.check()?;
    Ok(measured(costs))
}

fn measured(workers: Vec<Rounds>) -> Measured {
    let ns = |rounds: &[Round]| rounds.iter().map(|round| round.ns).collect::<Vec<_>>();
    let total = workers.iter().flat_map(|rounds| ns(&rounds.total)).collect();
    let ports = workers.iter().flat_map(|rounds| ns(&rounds.ports)).collect();
    let mpps = workers.iter().map(|rounds| 1e3 / Spread::of(ns(&rounds.total)).median).sum();
    let packets = workers.iter().flat_map(|rounds| &rounds.total).map(|round| round.packets as u64);
    let cost = Cost {
        total_ns: Spread::of(total),
        ports_ns: Spread::of(ports),
        packets: packets.sum(),
        mpps,
    };
    Measured { cost, cycles: cycles(workers) }
}

/// Of all rounds, if all workers counted.
fn cycles(workers: Vec<Rounds>) -> Result<Cycles, CounterError> {
    let (mut total, mut ports) = (Vec::new(), Vec::new());
    for rounds in workers {
        if let Some(error) = rounds.uncounted {
            return Err(error);
        }
        total.extend(rounds.total.iter().filter_map(|round| round.counted));
        ports.extend(rounds.ports.iter().filter_map(|round| round.counted));
    }
    let of = |counted: &[Counted]| Spread::of(counted.iter().map(|all| all.cycles).collect());
    let rates: Vec<_> =
        total.iter().filter_map(|all| Some(all.instructions? / all.cycles)).collect();
    Ok(Cycles {
        total: of(&total),
        ports: of(&ports),
        instructions_per_cycle: (!rates.is_empty()).then(|| Spread::of(rates).median),
    })
}

/// Rounds in each of which one worker opens all flows anew. Before each it forgets them, which is not
/// measured; the first one, whose memory is new, is not counted.
fn measure_opening(
    scenario: Scenario,
    load: &Load,
    workers: usize,
    seconds: f64,
) -> Result<Measured, PerfError> {
    if workers != 1 {
        return Err(PerfError::Range { option: "--workers", value: workers, least: 1, most: 1 });
    }
    let mut rig = Rig::new(scenario, load, 1)?;
    let mut ports = Ports::new(scenario, load)?;
    let mut rounds = Rounds::default();
    let mut timer = Timer::of_this_thread();
    let start = std::time::Instant::now();
    ports.carry(load.flows.div_ceil(VECTOR).max(ROUND));
    while start.elapsed().as_secs_f64() < seconds || rounds.total.len() < 6 {
        rig.arrive(load)?;
        let worker = &mut rig.bench.workers[0];
        let round = timer.round(|| open_all(worker))?;
        let packets = round.packets;
        if packets != load.flows || worker.flows().len() != load.flows as u64 {
            let flows = worker.flows().len();
            let what = format!("{packets} packets opened {flows} flows, and not {}", load.flows);
            return Err(PerfError::Missed(what));
        }
        rounds.total.push(round);
        rounds.ports.push(timer.round(|| ports.carry(ROUND))?);
        rig.check()?;
        rig.forget()?;
    }
    rounds.total.remove(0);
    rounds.uncounted = timer.counters.err();
    Ok(measured(vec![rounds]))
}

/// Polls until nothing comes any more; says how many packets came.
#[inline(never)]
pub fn open_all(worker: &mut Worker<ReplayPort>) -> usize {
    let mut packets = 0;
    loop {
        let polled = worker.poll();
        packets += polled;
        if polled == 0 {
            return packets;
        }
    }
}

#[derive(Debug, Default)]
struct Rounds {
    total: Vec<Round>,
    ports: Vec<Round>,
    /// Why cycles are not counted.
    uncounted: Option<CounterError>,
}

/// Rounds of one worker, on one core when there are several.
fn rounds(
    scenario: Scenario,
    load: &Load,
    worker: &mut Worker<ReplayPort>,
    number: usize,
    seconds: f64,
) -> Result<Rounds, PerfError> {
    if let Some(core) = core_affinity::get_core_ids()
        && !core.is_empty()
    {
        // From the last core on: the first has the most interrupts.
        core_affinity::set_for_current(core[core.len() - 1 - number % core.len()]);
    }
    let mut ports = Ports::new(scenario, load)?;
    let mut rounds = Rounds::default();
    // Every flow and every frame once at least.
    let warm = load.flows.div_ceil(VECTOR).max(ROUND);
    forward(worker, warm);
    ports.carry(warm);
    let mut timer = Timer::of_this_thread();
    let start = std::time::Instant::now();
    while start.elapsed().as_secs_f64() < seconds || rounds.total.len() < 5 {
        rounds.total.push(timer.round(|| forward(worker, ROUND))?);
        rounds.ports.push(timer.round(|| ports.carry(ROUND))?);
    }
    rounds.uncounted = timer.counters.err();
    Ok(rounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Size;

    /// Frames and bytes that came through the ports.
    fn carried(load: Load, vectors: usize) -> (u64, u64) {
        let mut ports = Ports::new(Scenario::named("local").unwrap(), &load).unwrap();
        ports.carry(vectors);
        ports.output.sent()
    }

    #[test]
    fn of_twelve_frames_of_an_imix_seven_are_short_and_one_is_long() {
        // Few flows have templates of each size, many have one each.
        for flows in [10, 5000] {
            let load = Load { flows, size: Size::Imix, ..Load::default() };
            let expected = (12 * 64, 64 * (7 * 60 + 4 * 590 + 1514));
            assert_eq!(carried(load, 12), expected, "{flows} flows");
        }
    }

    #[test]
    fn frames_have_the_size_that_was_asked_for() {
        let load = Load { size: Size::Bytes(512), ..Load::default() };
        assert_eq!(carried(load, 1), (64, 64 * 508));
    }

    #[test]
    fn a_round_is_counted_from_its_beginning_to_its_end() {
        let Some(counters) = Counters::of_software() else { return };
        let mut ports = Ports::new(Scenario::named("local").unwrap(), &Load::default()).unwrap();
        let mut timer = Timer { counters: Ok(counters) };
        let rounds: Vec<_> = (0..5).map(|_| timer.round(|| ports.carry(ROUND)).unwrap()).collect();
        // This counter's cycles are nanoseconds: two clocks of one thing.
        for round in &rounds {
            let counted = round.counted.unwrap().cycles;
            assert!((counted / round.ns - 1.0).abs() < 0.1, "{counted} and {} ns", round.ns);
        }
        let all = || Rounds { total: rounds.clone(), ports: rounds.clone(), uncounted: None };
        let measured = measured(vec![all(), all()]);
        assert_eq!(measured.cost.packets, 2 * 5 * 64 * ROUND as u64);
        let cycles = measured.cycles.unwrap();
        assert!((cycles.total.median / measured.cost.total_ns.median - 1.0).abs() < 0.1);
        assert!(cycles.instructions_per_cycle.is_some());
    }

    #[test]
    fn time_is_told_without_cycles_and_says_why() {
        let absent = || CounterError::Absent(nix::errno::Errno::ENOENT.into());
        let mut timer = Timer { counters: Err(absent()) };
        let round = timer.round(|| 64).unwrap();
        assert!(round.counted.is_none() && round.packets == 64);
        let mute = Rounds { total: vec![round], ports: vec![round], uncounted: Some(absent()) };
        let measured = measured(vec![mute]);
        assert_eq!(measured.cost.packets, 64);
        assert!(matches!(measured.cycles, Err(CounterError::Absent(_))));
    }
}
