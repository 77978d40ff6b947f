//! A forwarder on the bed as something that trials are made of: a generator in the pod, the forwarder,
//! a sink on the wire.
//!
//! ```text
//! one way:    live frames -> pod0 -> forwarder -> wire0: sink that takes times
//! round trip: one thread -> pod0 -> forwarder -> wire0 -> the same thread, which sends it back
//!                        <- pod0 <- forwarder <- wire0 <-
//! ```
//! Every packet has a stamp with the time at which it was due, so that packets which had to wait for
//! the generator count the wait as theirs (no coordinated omission), and others' packets are not
//! counted at all. The sink runs where the forwarder sends: its time, some 80 ns a packet, is in what
//! the forwarder costs here.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use overlane_dataplane::io::af_xdp::Umem;
use serde::{Deserialize, Serialize};

use crate::bed::{Aim, Bed, Job, OTHER_CPU, POD, Scripts, WIRE, on_a_thread};
use crate::ends::Ends;
use crate::error::PerfError;
use crate::live::{LiveFrames, Running};
use crate::meter::Task;
use crate::namespace;
use crate::sink::{Sink, Sunk};
use crate::threads::sleep;
use crate::traffic::{Size, Traffic};
use crate::trial::{Measurer, Trial};

/// How long the sink must have been quiet before a trial is over.
const QUIET: Duration = Duration::from_millis(30);
/// After so long it is over in any case.
const PATIENCE: Duration = Duration::from_secs(1);
/// A generator that was behind its schedule by more than this was held up: at a million packets a
/// second, by half of a forwarder's ring, nanoseconds.
const HELD_UP_NS: u64 = 250_000;
/// Times that a trial is made whose generator was held up.
const TRIES: usize = 5;
/// How often counters are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is measured: the part of a result that says what it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The forwarder: the name of its script.
    pub peer: String,
    /// What it does.
    pub job: Job,
    /// In how many flows.
    pub flows: u32,
    /// With frames of that size: bytes on the wire, or `imix`.
    #[serde(with = "crate::text::displayed")]
    pub size: Size,
}

impl Subject {
    /// What the pod sends at `rate` packets a second; none: flat out.
    #[must_use]
    pub fn traffic(&self, rate: Option<f64>) -> Traffic {
        Traffic { size: self.size, rate, stamp: true, ..self.job.traffic(self.flows) }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { peer, job, flows, size } = self;
        write!(f, "{peer}, {job}, {flows} flows, frames of {size}")
    }
}

/// A forwarder that is up, with its flows open in both directions.
#[derive(Debug)]
pub struct Path<'a> {
    subject: Subject,
    bed: Bed<'a>,
    memory: &'a Umem,
    stop: &'a AtomicBool,
}

/// A trial with the times that its packets took.
#[derive(Debug, Clone)]
pub struct Timed {
    /// What became of the packets.
    pub trial: Trial,
    /// Of those that had a larger sequence number in front of them.
    pub reordered: u64,
    /// From when each was due until it arrived, nanoseconds.
    pub times: Histogram<u64>,
    /// How far behind its schedule the generator was at most, nanoseconds: in the times, too.
    pub generator_late_ns: u64,
}

impl<'a> Path<'a> {
    /// Puts the forwarder on the bed and opens its flows.
    ///
    /// # Errors
    /// [`PerfError`]: it cannot be had, does not do its job, or the person has had enough.
    pub fn open(
        scripts: &'a Scripts,
        subject: Subject,
        aim: Aim,
        memory: &'a Umem,
        stop: &'a AtomicBool,
    ) -> Result<Self, PerfError> {
        if let Some(why) = scripts.refusal(&subject.peer, subject.job, subject.flows)? {
            return Err(PerfError::Missed(format!("{} cannot be measured: {why}", subject.peer)));
        }
        let bed = Bed::with(scripts, &subject.peer, subject.job, subject.flows)?;
        bed.tune(aim)?;
        let traffic = subject.job.traffic(subject.flows);
        on_a_thread(|| Ends::open(memory)?.prime(&traffic, stop).map(|_| ()))?;
        Ok(Self { subject, bed, memory, stop })
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// [`PerfError::Peer`]: something may be left.
    pub fn close(self) -> Result<(), PerfError> {
        self.bed.down()
    }

    /// The threads that do the work.
    ///
    /// # Errors
    /// [`PerfError::Peer`]
    pub fn workers(&self) -> Result<Vec<Task>, PerfError> {
        self.bed.workers()
    }

    /// What the generator does flat out, packets a second, whatever becomes of them.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn generator_pps(&self) -> Result<f64, PerfError> {
        let traffic = self.subject.traffic(None);
        let sent = on_a_thread(|| {
            let running = start(&traffic)?;
            self.wait(Duration::from_millis(500))?;
            running.stop()
        })?;
        Ok(sent.offered() as f64 / sent.seconds.max(1e-9))
    }

    /// Offers `load_pps` for `duration` and takes the time of each packet until it is on the wire.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn one_way(&self, load_pps: f64, duration: Duration) -> Result<Timed, PerfError> {
        on_a_thread(|| self.to_the_wire(load_pps, duration))
    }

    /// Offers `load_pps` for `duration`, sends back what comes out at the other end, and takes the time
    /// of each packet until it is back in the pod. One thread is both ends, as one CPU is left for them.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn round_trips(&self, load_pps: f64, duration: Duration) -> Result<Timed, PerfError> {
        let traffic = self.subject.traffic(Some(load_pps));
        let all =
            on_a_thread(|| Ends::open(self.memory)?.scheduled(&traffic, duration, self.stop))?;
        let seconds = duration.as_secs_f64();
        let (sent, received) = (all.sent, all.answered);
        let offered_pps = sent as f64 / seconds;
        let trial = Trial { load_pps, offered_pps, seconds, sent, received };
        let (reordered, generator_late_ns) = (all.reordered, all.late_ns);
        Ok(Timed { trial, reordered, times: all.times, generator_late_ns })
    }

    fn to_the_wire(&self, load_pps: f64, duration: Duration) -> Result<Timed, PerfError> {
        namespace::enter(Some(WIRE.0))?;
        let sink = Sink::attach_timing(WIRE.1)?;
        let running = start(&self.subject.traffic(Some(load_pps)))?;
        let waited = self.wait(duration);
        let sent = running.stop()?;
        waited?;
        let sunk = self.settled(&sink)?;
        let trial = Trial {
            load_pps,
            offered_pps: sent.offered() as f64 / sent.seconds.max(1e-9),
            seconds: sent.seconds,
            sent: sent.offered(),
            received: sunk.timed,
        };
        Ok(Timed {
            trial,
            reordered: sunk.reordered,
            times: sink.latencies()?,
            generator_late_ns: sent.late_ns,
        })
    }

    /// What the sink has when nothing comes any more.
    fn settled(&self, sink: &Sink) -> Result<Sunk, PerfError> {
        let give_up = Instant::now() + PATIENCE;
        let (mut before, mut since) = (sink.counters()?, Instant::now());
        while since.elapsed() < QUIET && Instant::now() < give_up {
            self.wait(LOOK)?;
            let now = sink.counters()?;
            if now.timed != before.timed {
                (before, since) = (now, Instant::now());
            }
        }
        Ok(before)
    }

    /// Waits, unless the person has had enough.
    ///
    /// # Errors
    /// [`PerfError::Stopped`]
    pub fn wait(&self, duration: Duration) -> Result<(), PerfError> {
        sleep(duration, self.stop)
    }
}

impl Measurer for Path<'_> {
    /// A generator that was held up sends what it missed in one burst, which no forwarder is asked to
    /// carry at that load: such a trial is repeated when it lost packets, and the best one counts.
    fn trial(&mut self, load_pps: f64, duration: Duration) -> Result<Trial, PerfError> {
        let mut best = self.one_way(load_pps, duration)?;
        for _ in 1..TRIES {
            if best.trial.lost() == 0 || best.generator_late_ns <= HELD_UP_NS {
                break;
            }
            let again = self.one_way(load_pps, duration)?;
            if again.trial.lost() <= best.trial.lost() || again.generator_late_ns <= HELD_UP_NS {
                best = again;
            }
        }
        Ok(best.trial)
    }
}

/// Starts the generator in the pod. The thread is in the pod's namespace afterwards.
///
/// # Errors
/// [`PerfError`]
pub fn start(traffic: &Traffic) -> Result<Running, PerfError> {
    namespace::enter(Some(POD.0))?;
    LiveFrames::start(traffic, POD.1, Some(OTHER_CPU), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_written_in_words_and_read_again() {
        for (size, text) in [(Size::Bytes(64), "64"), (Size::Imix, "imix")] {
            let peer = "overlane".to_owned();
            let subject = Subject { peer, job: Job::DnatVxlan, flows: 1000, size };
            let json = serde_json::to_value(&subject).unwrap();
            let expected = serde_json::json!({
                "peer": "overlane", "job": "dnat-vxlan", "flows": 1000, "size": text
            });
            assert_eq!(json, expected);
            assert_eq!(serde_json::from_value::<Subject>(json).unwrap(), subject);
            let shown = format!("overlane, dnat-vxlan, 1000 flows, frames of {text}");
            assert_eq!(subject.to_string(), shown);
        }
        let wrong = r#"{"peer": "overlane", "job": "snat", "flows": 1, "size": "7"}"#;
        let error = serde_json::from_str::<Subject>(wrong).unwrap_err().to_string();
        assert!(error.contains("7 is neither imix"), "{error}");
    }
}
