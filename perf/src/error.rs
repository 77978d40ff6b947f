//! What can go wrong in a benchmark.

use std::path::PathBuf;

/// A benchmark could not be run, or its result is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// The node in memory could not be made.
    #[error("cannot make the node: {0}")]
    Node(#[source] std::io::Error),
    /// The compiler refused the benchmark's own objects.
    #[error("the tables refuse the scenario's objects: {0}")]
    Refused(String),
    /// A port could not be made.
    #[error("cannot make a port: {0}")]
    Port(#[from] overlane_dataplane::io::memory::ReplayError),
    /// An option has a value that the benchmark cannot have.
    #[error("{option}: {value} is not within {least} and {most}")]
    Range {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Least value that is possible.
        least: usize,
        /// Largest value that is possible.
        most: usize,
    },
    /// Packets were dropped where all should have been forwarded: the scenario is broken.
    #[error("{scenario}: {count} of {received} packets were not forwarded: {reasons}")]
    Dropped {
        /// The scenario.
        scenario: String,
        /// Packets that were not sent.
        count: u64,
        /// Packets received.
        received: u64,
        /// The counted reasons.
        reasons: String,
    },
    /// Another program is needed.
    #[error("{program} cannot be run ({source}); install it (Debian: apt install {program})")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// Another program failed.
    #[error("{program} failed: {output}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// What it wrote to its standard error.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The output of another program is not what was expected.
    #[error("{program}: no {what} in its output")]
    Unreadable {
        /// The program.
        program: &'static str,
        /// What was looked for.
        what: String,
    },
    /// Something that must not happen for each packet does.
    #[error("not steady: {0}")]
    NotSteady(String),
    /// A requirement of the tables is not met.
    #[error("{0}")]
    Missed(String),
    /// A worker's thread ended before its time.
    #[error("a worker's thread ended before its time")]
    Thread,
    /// A clock of the system cannot be read.
    #[error("cannot read the clock: {0}")]
    Clock(#[source] nix::Error),
    /// A network namespace cannot be entered.
    #[error(
        "cannot enter network namespace {name}: {source}; it needs root, and a namespace of \
         `ip netns list`"
    )]
    Namespace {
        /// Its name.
        name: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An AF_XDP port cannot be opened.
    #[error(transparent)]
    Open(#[from] overlane_dataplane::io::af_xdp::OpenError),
    /// There is no packet memory.
    #[error(transparent)]
    Umem(#[from] overlane_dataplane::io::af_xdp::UmemError),
    /// No program can be put on the interface.
    #[error(transparent)]
    Bpf(#[from] overlane_bpf::BpfError),
    /// A thread of one's own cannot be pinned.
    #[error("cannot pin a thread to CPU {0}: is there one, and may this process use it?")]
    Pin(usize),
    /// Signals cannot be waited for.
    #[error("cannot be ended by a signal: {0}")]
    Signal(#[source] std::io::Error),
    /// The traffic asked for cannot be.
    #[error(transparent)]
    Traffic(#[from] crate::traffic::TrafficError),
    /// An interface is not there, or is not as it must be.
    #[error("interface {name}: {problem}")]
    Interface {
        /// Its name.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A BPF program cannot be used.
    #[error("cannot {action}: {source}; it needs root and a kernel of 5.18 or later")]
    Program {
        /// What was tried.
        action: &'static str,
        /// What the kernel or libbpf answered.
        source: libbpf_rs::Error,
    },
    /// The scripts of the peers are nowhere.
    #[error(
        "no perf/peers here: run this in the project's folder, or set OVERLANE_PEERS to its perf/peers"
    )]
    NoPeers,
    /// A peer's script cannot be run.
    #[error("cannot run the script of {peer}: {source}")]
    Script {
        /// The peer.
        peer: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A peer's script failed.
    #[error("{peer}: '{verb}' failed: {said}")]
    Peer {
        /// The peer.
        peer: String,
        /// What its script was told.
        verb: String,
        /// What it said.
        said: String,
    },
    /// Somebody else is using the bed.
    #[error("the bed of the measurements has been in use for ten minutes ({0} is locked)")]
    Busy(&'static str),
    /// A forwarder loses packets of flows that come one by one.
    #[error("of {flows} flows {:.1} % are answered: the forwarder does not carry them", answered * 100.0)]
    Unanswered {
        /// Flows.
        flows: u32,
        /// Part of them, 0 to 1.
        answered: f64,
    },
    /// The person has had enough.
    #[error("stopped")]
    Stopped,
    /// Options that do not go together.
    #[error("{0}")]
    Arguments(String),
}
