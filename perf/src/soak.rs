//! `overlane-perf soak`: a forwarder on the bed at one rate for as long as one likes, with counters
//! that must close.

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bed::{Aim, Reserved, Scripts, WIRE, on_a_thread};
use crate::ends;
use crate::error::PerfError;
use crate::meter::Task;
use crate::namespace;
use crate::path::{Path, Subject, start};
use crate::progress::spinner;
use crate::receive::Latency;
use crate::sink::Sink;
use crate::text::listing;

/// Memory that a forwarder may grow by without this being called a leak: what a log or an allocator's
/// free lists take, bytes.
const GROWTH: u64 = 16 << 20;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The forwarder and its traffic.
    pub subject: Subject,
    /// Packets a second.
    pub rate_pps: f64,
    /// For how long.
    pub duration: Duration,
    /// How often to look.
    pub interval: Duration,
    /// The highest part of packets that may be lost.
    pub loss_ratio: f64,
}

/// The state at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Seconds since the start.
    pub seconds: f64,
    /// Packets sent so far.
    pub sent: u64,
    /// Of those, packets that have arrived.
    pub received: u64,
    /// Memory of the forwarder's processes, bytes; none where it is the kernel.
    pub memory_bytes: Option<u64>,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The forwarder and its traffic.
    #[serde(flatten)]
    pub subject: Subject,
    /// Packets a second that were asked for.
    pub rate_pps: f64,
    /// All looks, the last one when nothing came any more.
    pub looks: Vec<Look>,
    /// From when a packet was due until it arrived, nanoseconds.
    pub latency: Latency,
    /// Of Overlane: packets that its counters do not account for, at the end; 0 where they close.
    pub residual: Option<i64>,
    /// The highest part of packets that may be lost.
    pub loss_ratio: f64,
}

/// Soaks.
///
/// # Errors
/// [`PerfError`]
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, PerfError> {
    let scripts = Scripts::find()?;
    let _reserved = Reserved::wait()?;
    let memory = ends::packet_memory()?;
    let path = Path::open(&scripts, plan.subject.clone(), Aim::Throughput, &memory, stop)?;
    let workers = path.workers()?;
    let (looks, latency) = on_a_thread(|| soak(plan, &path, &workers))?;
    let residual = if plan.subject.peer == "overlane" { Some(residual()?) } else { None };
    path.close()?;
    let Plan { subject, rate_pps, loss_ratio, .. } = plan.clone();
    Ok(Report { subject, rate_pps, looks, latency, residual, loss_ratio })
}

fn soak(plan: &Plan, path: &Path<'_>, workers: &[Task]) -> Result<(Vec<Look>, Latency), PerfError> {
    namespace::enter(Some(WIRE.0))?;
    let sink = Sink::attach_timing(WIRE.1)?;
    let running = start(&plan.subject.traffic(Some(plan.rate_pps)))?;
    let bar = spinner();
    let begin = Instant::now();
    let mut looks = Vec::new();
    let look = |sent: u64, received: u64| Look {
        seconds: begin.elapsed().as_secs_f64(),
        sent,
        received,
        memory_bytes: memory_bytes(workers),
    };
    while begin.elapsed() < plan.duration {
        let left = plan.duration.saturating_sub(begin.elapsed());
        // Whoever has had enough gets what there is.
        if path.wait(left.min(plan.interval)).is_err() {
            break;
        }
        // What has arrived was sent before: in this order nothing seems to come from nowhere.
        let received = sink.counters()?.timed;
        let sent = running.sent()?;
        looks.push(look(sent.offered(), received));
        let left = plan.duration.saturating_sub(begin.elapsed()).as_secs();
        bar.set_message(format!("{} sent, {received} arrived, {left} s left", sent.frames));
    }
    let sent = running.stop()?;
    std::thread::sleep(Duration::from_millis(200));
    looks.push(look(sent.offered(), sink.counters()?.timed));
    bar.finish_and_clear();
    Ok((looks, Latency::of(&sink.latencies()?)))
}

/// Resident memory of the threads' processes, bytes; none for the kernel's.
fn memory_bytes(workers: &[Task]) -> Option<u64> {
    let mut pids: Vec<u32> = workers.iter().map(|task| task.pid).collect();
    pids.dedup();
    let of = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        resident(&text)
    };
    let sum: u64 = pids.iter().filter_map(of).sum();
    (sum > 0).then_some(sum)
}

/// `VmRSS` is in KiB.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What Overlane's workers cannot account for: received and made here, less sent, dropped and held.
fn residual() -> Result<i64, PerfError> {
    let failed = |output: String| PerfError::Failed { program: "overlane status", output };
    let output = Command::new(crate::bed::program("overlane"))
        .args(["--socket", "/run/overlane-perf/dataplane.sock", "-o", "json", "status"])
        .output()
        .map_err(|source| PerfError::Missing { program: "overlane", source })?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let status: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    residual_of(&status).ok_or_else(|| failed("it names no residual of a worker".to_owned()))
}

/// The sum of the workers'.
fn residual_of(status: &serde_json::Value) -> Option<i64> {
    let workers = status.get("workers")?.as_array()?;
    workers.iter().map(|worker| worker.get("residual")?.as_i64()).sum()
}

impl Report {
    /// Part of the packets that was lost.
    #[must_use]
    pub fn lost(&self) -> f64 {
        let Some(last) = self.looks.last() else { return 1.0 };
        last.sent.saturating_sub(last.received) as f64 / last.sent.max(1) as f64
    }

    /// By how much the forwarder's memory grew after the first look, bytes.
    #[must_use]
    pub fn grown_bytes(&self) -> u64 {
        let memory = |look: Option<&Look>| look.and_then(|look| look.memory_bytes).unwrap_or(0);
        memory(self.looks.last()).saturating_sub(memory(self.looks.first()))
    }

    /// What is wrong; nothing, if all is well.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.lost() > self.loss_ratio {
            let (lost, may) = (self.lost() * 100.0, self.loss_ratio * 100.0);
            faults.push(format!("{lost:.4} % of the packets were lost, {may} % may be"));
        }
        if let Some(residual) = self.residual.filter(|residual| *residual != 0) {
            faults
                .push(format!("Overlane's counters do not close: {residual} packets are missing"));
        }
        if self.grown_bytes() > GROWTH {
            faults.push(format!("its memory grew by {} MiB", self.grown_bytes() >> 20));
        }
        faults
    }

    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = listing(["SECONDS", "SENT", "RECEIVED", "MISSING", "MEMORY MIB"]);
        for look in &self.looks {
            table.add_row([
                format!("{:.0}", look.seconds),
                look.sent.to_string(),
                look.received.to_string(),
                look.sent.saturating_sub(look.received).to_string(),
                look.memory_bytes
                    .map_or("-".into(), |bytes| format!("{:.1}", bytes as f64 / 1048576.0)),
            ]);
        }
        let Latency { p50, p99, p99_9, max, .. } = self.latency;
        let [p50, p99, p99_9, max] = [p50, p99, p99_9, max].map(|ns| ns as f64 / 1e3);
        let faults = self.faults();
        let end = if faults.is_empty() { "all is well".to_owned() } else { faults.join("; ") };
        format!(
            "{table}\n{}, {:.1} kpps; latency p50 {p50:.1}, p99 {p99:.1}, p99.9 {p99_9:.1}, \
             max {max:.1} us\n{end}",
            self.subject,
            self.rate_pps / 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::Job;
    use crate::traffic::Size;

    fn report(sent: u64, received: u64, memory: (u64, u64), residual: i64) -> Report {
        let look = |seconds, sent, received, bytes| Look {
            seconds,
            sent,
            received,
            memory_bytes: Some(bytes),
        };
        Report {
            subject: Subject {
                peer: "overlane".into(),
                job: Job::Snat,
                flows: 1,
                size: Size::Bytes(64),
            },
            rate_pps: 1.0,
            looks: vec![look(1.0, 1, 1, memory.0), look(2.0, sent, received, memory.1)],
            latency: Latency::default(),
            residual: Some(residual),
            loss_ratio: 0.001,
        }
    }

    #[test]
    fn loss_leaks_and_open_counters_are_faults() {
        assert!(report(1000, 999, (1 << 20, 2 << 20), 0).faults().is_empty());
        assert_eq!(report(1000, 998, (0, 0), 0).faults().len(), 1);
        assert_eq!(report(1000, 1000, (0, 17 << 20), 0).faults().len(), 1);
        assert_eq!(report(1000, 0, (0, 17 << 20), -3).faults().len(), 3);
    }

    #[test]
    fn the_residual_is_the_sum_of_the_workers() {
        let status = serde_json::json!({ "workers": [{ "residual": 2 }, { "residual": -1 }] });
        assert_eq!(residual_of(&status), Some(1));
        assert_eq!(residual_of(&serde_json::json!({ "workers": [{}] })), None);
    }

    #[test]
    fn resident_memory_is_in_kib() {
        assert_eq!(resident("VmPeak:  9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
    }
}
