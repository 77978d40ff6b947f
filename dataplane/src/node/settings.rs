//! What the process is told on its command line. Network configuration is not among it: that
//! comes over the socket.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use overlane_api::WorkerId;

use crate::io::af_xdp::{Coalesce, OpenPort};
use crate::worker::stopwatch;

/// What a worker does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Polling {
    /// Polls on: lowest latency, a whole core per worker.
    Busy,
    /// Sleeps in poll(2) after a while without packets, and wakes with the next one.
    #[default]
    Adaptive,
}

/// How frames are sent to devices that are used with copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Transmit {
    /// By a program on kernels from 6.11 on, by AF_XDP on older ones, where a program's gain is not known.
    #[default]
    Auto,
    /// By each port's AF_XDP socket.
    AfXdp,
    /// Bursts by a BPF program, the frames of all ports in one call: less work for veths. What comes singly
    /// goes by each port's socket.
    Program,
}

impl std::fmt::Display for Polling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Busy => "busy",
            Self::Adaptive => "adaptive",
        })
    }
}

impl std::fmt::Display for Transmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::AfXdp => "af-xdp",
            Self::Program => "program",
        })
    }
}

/// Checked settings of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the control socket is made.
    pub socket: PathBuf,
    /// The CPU of each worker; its length is the number of workers, 1 to 64. A CPU occurs twice
    /// only with [`Polling::Adaptive`].
    pub worker_cpus: Vec<usize>,
    /// What idle workers do.
    pub polling: Polling,
    /// Most local endpoints, 1 to 4096.
    pub max_endpoints: usize,
    /// Memory that UMEMs, rings and tables may take together, kernel memory included, bytes.
    pub memory_budget_bytes: u64,
    /// One vector in so many is timed, for `overlane latency`; 0: none.
    pub time_every: u32,
    /// How frames are sent to veths with one queue.
    pub transmit: Transmit,
    /// May several segments of a flow be sent to a device as one packet (GSO)?
    pub coalesce: bool,
    /// Group whose members may use the socket, besides root and the process's own user.
    pub group: Option<String>,
    /// Log filter: `info`, `debug`, `overlane_dataplane=trace`, ...
    pub log: String,
}

/// Settings that contradict each other or the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A piece of a CPU list that is not a number or a range.
    #[error(
        "{piece:?} in CPU list {list:?} is neither a CPU nor a range: write for example 2,3 or 2-5"
    )]
    CpuList {
        /// The whole list.
        list: String,
        /// The piece.
        piece: String,
    },
    /// Fewer CPUs listed than workers.
    #[error(
        "--workers {workers} needs {workers} CPUs, --cpus names {cpus} ({list}): name more, or \
         run fewer workers"
    )]
    TooFewListed {
        /// Workers asked for.
        workers: usize,
        /// CPUs named.
        cpus: usize,
        /// Their list.
        list: String,
    },
    /// The process may run on fewer CPUs than there are workers.
    #[error(
        "--workers {workers} needs {workers} CPUs, this process may use {cpus} ({list}): run fewer \
         workers, or let workers share CPUs by repeating them in --cpus (adaptive polling only)"
    )]
    TooFewAllowed {
        /// Workers asked for.
        workers: usize,
        /// CPUs allowed.
        cpus: usize,
        /// Their list.
        list: String,
    },
    /// A CPU that the process may not run on.
    #[error("--cpus names CPU {cpu}, this process may use {allowed}: see taskset(1) and cpusets")]
    NotAllowed {
        /// The CPU.
        cpu: usize,
        /// What is allowed.
        allowed: String,
    },
    /// Two busy workers on one CPU.
    #[error(
        "--cpus names CPU {0} twice: busy workers would take turns on it; name another, or use \
         --polling adaptive"
    )]
    SharedBusy(usize),
    /// The kernel does not say what CPUs there are.
    #[error("cannot read this process's CPU affinity: {0}")]
    Affinity(nix::errno::Errno),
}

/// Carries packets of pods between nodes, services and the outside with AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "overlane-dataplane", version, max_term_width = 100)]
struct Arguments {
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH", default_value = "/run/overlane/dataplane.sock")]
    socket: PathBuf,
    /// Number of workers, each a thread on a CPU of its own [1-64]
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=WorkerId::MAX_WORKERS as u64))]
    workers: u64,
    /// CPUs of the workers, for example 2,3 or 2-5 [default: the first ones this process may use]
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<CpuList>,
    /// What workers do when no packets come
    #[arg(long, value_enum, default_value_t)]
    polling: Polling,
    /// Most pods on this node [1-4096]
    #[arg(long, value_name = "N", default_value_t = 250,
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    max_endpoints: u64,
    /// Memory for packet buffers and tables, MiB, kernel memory included [32-1048576]
    #[arg(long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u64).range(32..=1_048_576))]
    memory_budget_mb: u64,
    /// Time one vector of packets in so many, for `overlane latency`; 0: none
    #[arg(long, value_name = "N", default_value_t = stopwatch::EVERY)]
    time_vectors: u32,
    /// How frames are sent to veths with one queue
    #[arg(long, value_enum, default_value_t)]
    transmit: Transmit,
    /// Send packet by packet: never several segments of a flow to a device as one packet (GSO)
    #[arg(long)]
    no_coalesce: bool,
    /// Group whose members may use the socket, besides root
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
}

/// CPU numbers in the order written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CpuList(Vec<usize>);

/// Largest CPU number that is understood.
const MAX_CPU: usize = 4095;

fn parse_cpus(list: &str) -> Result<CpuList, SettingsError> {
    let mut cpus = Vec::new();
    for piece in list.split(',') {
        let wrong =
            || SettingsError::CpuList { list: list.to_owned(), piece: piece.trim().to_owned() };
        let number = |text: &str| {
            text.trim().parse::<usize>().ok().filter(|cpu| *cpu <= MAX_CPU).ok_or_else(wrong)
        };
        match piece.split_once('-') {
            None => cpus.push(number(piece)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(wrong());
                }
                cpus.extend(first..=last);
            }
        }
    }
    Ok(CpuList(cpus))
}

/// Writes CPUs the way the flag reads them, neighbours joined to ranges.
fn write_cpus(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let pieces = ranges.into_iter().map(|(first, last)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    });
    pieces.collect::<Vec<_>>().join(",")
}

/// One CPU for each worker, out of those listed or allowed.
fn choose_cpus(
    workers: usize,
    listed: Option<&CpuList>,
    allowed: &[usize],
    polling: Polling,
) -> Result<Vec<usize>, SettingsError> {
    let Some(CpuList(listed)) = listed else {
        return match allowed.get(..workers) {
            Some(cpus) => Ok(cpus.to_vec()),
            None => Err(SettingsError::TooFewAllowed {
                workers,
                cpus: allowed.len(),
                list: write_cpus(allowed),
            }),
        };
    };
    if let Some(&cpu) = listed.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(SettingsError::NotAllowed { cpu, allowed: write_cpus(allowed) });
    }
    let Some(cpus) = listed.get(..workers) else {
        let list = write_cpus(listed);
        return Err(SettingsError::TooFewListed { workers, cpus: listed.len(), list });
    };
    if polling == Polling::Busy {
        let again = cpus.iter().enumerate().find(|(place, cpu)| cpus[..*place].contains(cpu));
        if let Some((_, &cpu)) = again {
            return Err(SettingsError::SharedBusy(cpu));
        }
    }
    Ok(cpus.to_vec())
}

/// CPUs that this thread may run on, in order.
fn allowed_cpus() -> Result<Vec<usize>, SettingsError> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(SettingsError::Affinity)?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

impl Settings {
    /// `options` with the ways of sending that the device takes, as far as they are wanted: which packets'
    /// segments as one, and with the frames of other ports.
    pub(super) fn sending<'a>(
        &self,
        options: OpenPort<'a>,
        coalesce: Coalesce,
        takes_bursts: bool,
    ) -> OpenPort<'a> {
        OpenPort {
            coalesce: if self.coalesce { coalesce } else { Coalesce::Nothing },
            in_bursts: takes_bursts && self.transmit != Transmit::AfXdp,
            ..options
        }
    }

    /// Reads and checks a command line, program name first.
    ///
    /// # Errors
    /// Anything to be printed instead of running: help, the version, or what was wrong.
    /// `clap::Error::exit` prints it and exits with 0 or 2 as it should.
    pub fn try_parse_from<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let mut command = Arguments::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        let arguments =
            Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Self::check(arguments)
            .map_err(|error| command.error(clap::error::ErrorKind::ValueValidation, error))
    }

    fn check(arguments: Arguments) -> Result<Self, SettingsError> {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let worker_cpus = choose_cpus(
            size(arguments.workers),
            arguments.cpus.as_ref(),
            &allowed_cpus()?,
            arguments.polling,
        )?;
        Ok(Self {
            socket: arguments.socket,
            worker_cpus,
            polling: arguments.polling,
            max_endpoints: size(arguments.max_endpoints),
            memory_budget_bytes: arguments.memory_budget_mb << 20,
            time_every: arguments.time_vectors,
            coalesce: !arguments.no_coalesce,
            transmit: arguments.transmit,
            group: arguments.group,
            log: arguments.log,
        })
    }

    /// Number of workers, 1 to 64.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.worker_cpus.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, clap::Error> {
        Settings::try_parse_from(std::iter::once(&"overlane-dataplane").chain(arguments))
    }

    fn refusal(arguments: &[&str]) -> String {
        let error = parse(arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn defaults_are_one_adaptive_worker_on_the_first_allowed_cpu() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.worker_cpus, allowed_cpus().unwrap()[..1]);
        assert_eq!(settings.socket, PathBuf::from("/run/overlane/dataplane.sock"));
        assert_eq!(settings.polling, Polling::Adaptive);
        assert_eq!((settings.max_endpoints, settings.memory_budget_bytes), (250, 512 << 20));
        assert_eq!(settings.time_every, 16);
        assert_eq!(settings.transmit, Transmit::Auto);
        assert_eq!((settings.group, settings.log.as_str()), (None, "info"));
    }

    #[test]
    fn flags_are_taken() {
        let cpu = allowed_cpus().unwrap()[0].to_string();
        let settings = parse(&[
            "--socket",
            "/x",
            "--cpus",
            &cpu,
            "--polling",
            "busy",
            "--max-endpoints",
            "3",
            "--memory-budget-mb",
            "64",
            "--time-vectors",
            "0",
            "--transmit",
            "af-xdp",
            "--group",
            "wheel",
            "--log",
            "debug",
        ])
        .unwrap();
        assert_eq!(settings.worker_cpus, [cpu.parse::<usize>().unwrap()]);
        assert_eq!(settings.polling, Polling::Busy);
        assert_eq!((settings.max_endpoints, settings.memory_budget_bytes), (3, 64 << 20));
        assert_eq!(settings.time_every, 0);
        assert_eq!(settings.transmit, Transmit::AfXdp);
        assert_eq!(settings.group.as_deref(), Some("wheel"));
    }

    #[test]
    fn cpu_lists_are_read_and_written_back() {
        for (list, cpus) in
            [("2,3", vec![2, 3]), ("2-5", vec![2, 3, 4, 5]), ("7, 0-1", vec![7, 0, 1])]
        {
            assert_eq!(parse_cpus(list).unwrap().0, cpus, "{list}");
            assert_eq!(parse_cpus(&write_cpus(&cpus)).unwrap().0, cpus, "{list}");
        }
        assert_eq!(write_cpus(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        for wrong in ["", "a", "1,", "5-2", "1-", "-1", "4096", "0-99999999999"] {
            assert!(matches!(parse_cpus(wrong), Err(SettingsError::CpuList { .. })), "{wrong}");
        }
    }

    #[test]
    fn workers_and_cpus_must_fit_and_the_error_says_both() {
        let list = |text| parse_cpus(text).unwrap();
        let error = choose_cpus(3, Some(&list("2,3")), &[0, 1, 2, 3], Polling::Busy).unwrap_err();
        assert!(error.to_string().contains("--workers 3"), "{error}");
        assert!(error.to_string().contains("names 2 (2-3)"), "{error}");
        let error = choose_cpus(3, None, &[0, 1], Polling::Busy).unwrap_err();
        assert!(error.to_string().contains("may use 2 (0-1)"), "{error}");
        let error = choose_cpus(1, Some(&list("9")), &[0, 1], Polling::Busy).unwrap_err();
        assert_eq!(error, SettingsError::NotAllowed { cpu: 9, allowed: "0-1".into() });
    }

    #[test]
    fn only_adaptive_workers_share_a_cpu() {
        let list = parse_cpus("0,1,0").unwrap();
        let choose = |polling| choose_cpus(3, Some(&list), &[0, 1], polling);
        assert_eq!(choose(Polling::Adaptive), Ok(vec![0, 1, 0]));
        assert_eq!(choose(Polling::Busy), Err(SettingsError::SharedBusy(0)));
    }

    #[test]
    fn wrong_usage_exits_with_2_and_names_the_value() {
        assert!(refusal(&["--workers", "65"]).contains("65"));
        assert!(refusal(&["--workers", "0"]).contains('0'));
        assert!(refusal(&["--cpus", "x-y"]).contains("x-y"));
        assert!(refusal(&["--cpus", "4095"]).contains("CPU 4095"));
        assert!(refusal(&["--polling", "lazy"]).contains("lazy"));
        assert!(refusal(&["--colour"]).contains("--colour"));
        assert_eq!(parse(&["--help"]).unwrap_err().exit_code(), 0);
    }
}
