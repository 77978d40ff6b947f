//! The same job on the same bed through Overlane and through others, in one run.
//!
//! Rounds are interleaved: in each of them every forwarder is brought up anew, is sent the same
//! traffic, and goes. What is compared is compared within a round, for the machine is not the same
//! from one minute to the next; of the rounds the median counts, with the range.
//!
//! ```text
//! round: the generator alone, then for each job, for each peer:
//!   up - (first round: prove) - for each number of flows: prime, round trips, overload - down
//! ```
//!
//! - [`window`]: what is measured of one forwarder, and when it counts.
//! - [`result`]: what is made of it.

mod arguments;
mod result;
pub(crate) mod window;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use overlane_dataplane::io::af_xdp::Umem;

use crate::bed::{Aim, Bed, Job, Reserved, Scripts, on_a_thread};
use crate::ends::{self, Ends};
use crate::error::PerfError;
pub use arguments::CompareArguments;
pub use result::{Comparison, Proof, RoundTrips, Row, Sample, Skipped};
pub use window::{Limits, Window};
use window::{Overload, Stream};

/// What to compare.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Jobs.
    pub jobs: Vec<Job>,
    /// Numbers of flows; round trips are measured with the first one.
    pub flows: Vec<u32>,
    /// Names of the peers' scripts.
    pub peers: Vec<String>,
    /// Rounds.
    pub rounds: usize,
    /// How long a window of overload is.
    pub window: Duration,
    /// How long round trips are measured.
    pub round_trips: Duration,
    /// No round is begun that would end later than this; the first one is in any case.
    pub budget: Option<Duration>,
}

impl Plan {
    /// All jobs, few flows and many, as good as it gets: a quarter of an hour and more.
    #[must_use]
    pub fn full(peers: Vec<String>) -> Self {
        Self {
            jobs: Job::ALL.to_vec(),
            flows: vec![1000, 100_000],
            peers,
            rounds: 5,
            window: Duration::from_secs(1),
            round_trips: Duration::from_secs(2),
            budget: None,
        }
    }

    /// What fits into five minutes: services through both tunnels, few flows, short windows.
    #[must_use]
    pub fn quick(peers: Vec<String>) -> Self {
        Self {
            jobs: vec![Job::DnatGeneve, Job::DnatVxlan],
            flows: vec![1000],
            peers,
            rounds: 3,
            window: Duration::from_millis(500),
            round_trips: Duration::from_millis(700),
            budget: Some(Duration::from_secs(270)),
        }
    }
}

/// A peer that can do a job with these numbers of flows.
#[derive(Debug)]
struct Entry {
    peer: String,
    job: Job,
    flows: Vec<u32>,
}

/// Compares.
///
/// # Errors
/// [`PerfError`]: nothing can be compared, or the person has had enough. A peer that fails alone is
/// named in the result.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Comparison, PerfError> {
    let scripts = Scripts::find()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(PerfError::Missed("comparing makes network namespaces: it needs root".into()));
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        let what = "comparing needs two CPUs: one for the forwarder, one for everything else";
        return Err(PerfError::Missed(what.into()));
    }
    let (mut entries, skipped) = entries(plan, &scripts)?;
    let _reserved = Reserved::wait()?;
    let mut bench = Bench {
        plan,
        scripts: &scripts,
        memory: ends::packet_memory()?,
        progress: progress(plan.rounds * entries.len()),
        samples: Vec::new(),
        proofs: Vec::new(),
        generator_ns: Vec::new(),
        skipped,
        stop,
    };
    let began = Instant::now();
    let mut done = 0;
    while done < plan.rounds && !entries.is_empty() {
        let a_round = began.elapsed() / u32::try_from(done).unwrap_or(1).max(1);
        if done > 0 && plan.budget.is_some_and(|budget| began.elapsed() + a_round > budget) {
            break;
        }
        bench.round(done, &mut entries)?;
        done += 1;
    }
    bench.progress.finish_and_clear();
    if bench.samples.is_empty() {
        let why: Vec<_> = bench.skipped.iter().map(ToString::to_string).collect();
        return Err(PerfError::Missed(format!("nothing could be compared: {}", why.join("; "))));
    }
    let Bench { samples, proofs, generator_ns, skipped, .. } = bench;
    let seconds = plan.window.as_secs_f64();
    Ok(Comparison::new((done, plan.rounds), seconds, &generator_ns, samples, proofs, skipped))
}

/// Who can do what; and who cannot, and why.
fn entries(plan: &Plan, scripts: &Scripts) -> Result<(Vec<Entry>, Vec<Skipped>), PerfError> {
    let (mut entries, mut skipped) = (Vec::new(), Vec::new());
    for &job in &plan.jobs {
        for peer in &plan.peers {
            let mut able = Vec::new();
            for &flows in &plan.flows {
                let refusal = if flows > job.most_flows() {
                    Some(format!("the job has room for {} flows", job.most_flows()))
                } else {
                    scripts.refusal(peer, job, flows)?
                };
                match refusal {
                    None => able.push(flows),
                    Some(why) => {
                        skipped.push(Skipped { peer: peer.clone(), job, flows: Some(flows), why });
                    }
                }
            }
            if !able.is_empty() {
                entries.push(Entry { peer: peer.clone(), job, flows: able });
            }
        }
    }
    Ok((entries, Skipped::merge(skipped, &plan.flows)))
}

fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    // How long it takes is known when something is done.
    show_by(&bar, "{bar:30} {pos}/{len}: {msg}");
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn show_by(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// A comparison under way.
struct Bench<'a> {
    plan: &'a Plan,
    scripts: &'a Scripts,
    memory: Umem,
    progress: ProgressBar,
    samples: Vec<Sample>,
    proofs: Vec<Proof>,
    /// Of the generator alone, in each round.
    generator_ns: Vec<f64>,
    skipped: Vec<Skipped>,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    /// A round; whoever fails in it takes no more part.
    fn round(&mut self, round: usize, entries: &mut Vec<Entry>) -> Result<(), PerfError> {
        self.progress.set_message(format!("round {}, the generator alone", round + 1));
        let bed = Bed::bare(self.scripts)?;
        let generator_ns = on_a_thread(|| window::generator_alone(self.stop))?;
        bed.down()?;
        self.generator_ns.push(generator_ns);
        let mut failed = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            self.progress.set_message(format!(
                "round {}, {}, {}",
                round + 1,
                entry.job,
                entry.peer
            ));
            match self.measure(round, entry, generator_ns) {
                Ok(()) => {}
                Err(PerfError::Stopped) => return Err(PerfError::Stopped),
                Err(error) => {
                    let Entry { peer, job, .. } = entry;
                    let (peer, why) = (peer.clone(), error.to_string());
                    self.skipped.push(Skipped { peer, job: *job, flows: None, why });
                    failed.push(number);
                }
            }
            self.progress.inc(1);
            show_by(&self.progress, "{bar:30} {pos}/{len}, {eta} left: {msg}");
            if self.stop.load(Ordering::Relaxed) {
                return Err(PerfError::Stopped);
            }
        }
        for number in failed.into_iter().rev() {
            entries.remove(number);
        }
        Ok(())
    }

    /// One peer, one job, all numbers of flows.
    fn measure(&mut self, round: usize, entry: &Entry, generator_ns: f64) -> Result<(), PerfError> {
        let most = entry.flows.iter().copied().max().unwrap_or(1);
        let bed = Bed::with(self.scripts, &entry.peer, entry.job, most)?;
        if round == 0 {
            let (peer, job, seen) = (entry.peer.clone(), entry.job, bed.prove()?);
            self.proofs.push(Proof { peer, job, seen });
        }
        for &flows in &entry.flows {
            let traffic = entry.job.traffic(flows);
            let timed = self.plan.flows.first() == Some(&flows);
            let (memory, stop) = (&self.memory, self.stop);
            if timed {
                bed.tune(Aim::Latency)?;
            }
            let round_trips = on_a_thread(|| {
                let mut ends = Ends::open(memory)?;
                ends.prime(&traffic, stop)?;
                if !timed {
                    return Ok(None);
                }
                ends.round_trips(&traffic, self.plan.round_trips, stop).map(Some)
            })?;
            if timed {
                bed.tune(Aim::Throughput)?;
            }
            // The kernel's are others than before.
            let workers = bed.workers()?;
            let overload = Overload { workers, window: self.plan.window, generator_ns };
            let window = on_a_thread(|| Stream::open(&traffic)?.overload(&overload, stop))?;
            self.samples.push(Sample {
                round,
                peer: entry.peer.clone(),
                job: entry.job,
                flows,
                window,
                round_trips: round_trips.map(|(times, lost)| RoundTrips::of(&times, lost)),
            });
        }
        bed.down()
    }
}
