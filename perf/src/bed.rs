//! The bed of the measurements, and the forwarders that can be put on it: `perf/peers/*.sh`.
//!
//! ```text
//! ovp-pod           ovp-node                         ovp-net
//! pod0 ------------ podport  (forwarder)  up0 ------ wire0
//! 10.244.1.10                             10.0.1.4   10.0.1.5: another node, 10.0.0.1: a router
//! ```
//!
//! The scripts make and remove it; here are its names, the jobs, and the traffic that does them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use overlane_api::MacAddr;
use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::meter::Task;
use crate::threads::pin;
use crate::traffic::{Order, Side, Traffic};

/// Namespace of the pod, and its interface.
pub const POD: (&str, &str) = ("ovp-pod", "pod0");
/// Namespace of the node, and the interface of its pod.
pub const NODE: (&str, &str) = ("ovp-node", "podport");
/// Namespace of the network, and its interface.
pub const WIRE: (&str, &str) = ("ovp-net", "wire0");
/// CPU of generators, sinks and whatever else does not forward.
pub const OTHER_CPU: usize = 0;
/// CPU of the forwarder.
pub const WORKER_CPU: usize = 1;

const POD_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x0a]);
const PORT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const POD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
/// First of the services' addresses, and of those outside.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 16);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 16);
/// How many of either there are.
const DESTINATIONS: u32 = 16;
const DESTINATION_PORT: u16 = 80;

/// Whoever uses the bed holds this.
const LOCK: &str = "/run/overlane-perf.lock";
/// How long it is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);

/// What a forwarder has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// A pod's packets to services go to pods of another node in Geneve.
    DnatGeneve,
    /// The same in VXLAN.
    DnatVxlan,
    /// A pod's packets leave the cluster with the node's address.
    Snat,
}

impl Job {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DnatGeneve, Self::DnatVxlan, Self::Snat];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DnatGeneve => "dnat-geneve",
            Self::DnatVxlan => "dnat-vxlan",
            Self::Snat => "snat",
        }
    }

    /// Flows that are possible: all of a pod's ports to each destination; on the way out, the node's
    /// ports by default (`snat.ports`), of which some are always in use elsewhere.
    #[must_use]
    pub fn most_flows(self) -> u32 {
        match self {
            Self::DnatGeneve | Self::DnatVxlan => 1_000_000,
            Self::Snat => 16_000 * DESTINATIONS,
        }
    }

    /// What the pod sends: UDP frames of 64 bytes in that many flows in random order, flat out.
    #[must_use]
    pub fn traffic(self, flows: u32) -> Traffic {
        let first = if self == Self::Snat { OUTSIDE } else { SERVICE };
        let destination =
            Side { addresses: DESTINATIONS, ..Side::one(PORT_MAC, first, DESTINATION_PORT) };
        let traffic = Traffic::new(Side::any_port(POD_MAC, POD_ADDRESS), destination);
        Traffic { flows, order: Order::Random, ..traffic }
    }
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Everything that can be put on the bed, in the order in which it is compared.
pub const PEERS: [&str; 7] =
    ["overlane", "raw", "testpmd", "ovs-dpdk", "kernel-nft", "kernel-iptables", "kernel-ipvs"];

/// The scripts.
#[derive(Debug, Clone)]
pub struct Scripts {
    folder: PathBuf,
    /// What they find in their environment besides this program's.
    environment: Vec<(&'static str, String)>,
}

impl Scripts {
    /// Where they are: in `OVERLANE_PEERS`, in `perf/peers` of the working directory, or where this
    /// program was built.
    ///
    /// # Errors
    /// [`PerfError::NoPeers`]: in none of them.
    pub fn find() -> Result<Self, PerfError> {
        let places = [
            std::env::var_os("OVERLANE_PEERS").map(PathBuf::from),
            Some(PathBuf::from("perf/peers")),
            Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")),
        ];
        let mut found = places.into_iter().flatten();
        let folder = found.find(|folder| folder.join("lib.sh").is_file());
        let folder = folder.ok_or(PerfError::NoPeers)?;
        Ok(Self { folder, environment: Vec::new() })
    }

    /// The same, with a variable in their environment.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    fn run(&self, peer: &str, arguments: &[&str]) -> Result<Output, PerfError> {
        let mut command = Command::new(self.folder.join(peer).with_extension("sh"));
        command.args(arguments).env("OVERLANE_PERF_LOCKED", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if std::env::var_os("OVERLANE_BIN").is_none()
            && let Some(folder) = own_folder()
        {
            command.env("OVERLANE_BIN", folder);
        }
        // Ctrl-C is for this process, which lets the script end what it has begun.
        command.process_group(0);
        command.output().map_err(|source| PerfError::Script { peer: peer.to_owned(), source })
    }

    /// Runs a script; what it said is the error when it fails.
    fn must(&self, peer: &str, arguments: &[&str]) -> Result<String, PerfError> {
        let output = self.run(peer, arguments)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let said = format!("{} {}", text(&output.stdout), text(&output.stderr));
        Err(PerfError::Peer {
            peer: peer.to_owned(),
            verb: arguments.join(" "),
            said: said.trim().to_owned(),
        })
    }

    /// Can the peer do this? If not, why.
    ///
    /// # Errors
    /// [`PerfError::Script`]: its script cannot be run.
    pub fn refusal(&self, peer: &str, job: Job, flows: u32) -> Result<Option<String>, PerfError> {
        match self.must(peer, &["available", job.name(), &flows.to_string()]) {
            Ok(_) => Ok(None),
            Err(PerfError::Peer { said, .. }) => Ok(Some(said)),
            Err(error) => Err(error),
        }
    }
}

/// The folder of this program: the others are built with it.
fn own_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}

/// The path of one of Overlane's programs: in `OVERLANE_BIN`, or beside this one.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("OVERLANE_BIN").map(PathBuf::from).or_else(own_folder);
    folder.map_or_else(|| name.into(), |folder| folder.join(name))
}

/// The bed is this process's for as long as this lives.
#[derive(Debug)]
pub struct Reserved(#[allow(dead_code, reason = "held, and let go of by the end")] Flock<File>);

impl Reserved {
    /// Waits until nobody else uses the bed, at most ten minutes.
    ///
    /// # Errors
    /// [`PerfError::Busy`], [`PerfError::File`]
    pub fn wait() -> Result<Self, PerfError> {
        let failed = |source| PerfError::File { path: LOCK.into(), source };
        let give_up = Instant::now() + LOCK_PATIENCE;
        let mut file =
            File::options().write(true).create(true).truncate(false).open(LOCK).map_err(failed)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self(lock)),
                Err((_, errno)) if errno != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(failed(errno.into()));
                }
                Err(_) if Instant::now() > give_up => return Err(PerfError::Busy(LOCK)),
                Err((back, _)) => file = back,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// For what a forwarder is to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// As many packets as possible.
    Throughput,
    /// Each packet as soon as possible.
    Latency,
}

/// A forwarder that is up on the bed. Dropping it takes both down.
#[derive(Debug)]
pub struct Bed<'a> {
    scripts: &'a Scripts,
    peer: String,
    job: Job,
    up: bool,
}

impl<'a> Bed<'a> {
    /// The bed without a forwarder.
    ///
    /// # Errors
    /// [`PerfError::Peer`]
    pub fn bare(scripts: &'a Scripts) -> Result<Self, PerfError> {
        Self::with(scripts, "bed", Job::Snat, 1)
    }

    /// Makes the bed and puts a peer on it, with room for so many flows.
    ///
    /// # Errors
    /// [`PerfError::Peer`]: what the script said; all of it is gone again then.
    pub fn with(scripts: &'a Scripts, peer: &str, job: Job, flows: u32) -> Result<Self, PerfError> {
        // Before the script begins: one that is killed leaves something behind.
        let bed = Self { scripts, peer: peer.to_owned(), job, up: true };
        scripts.must(peer, &["up", job.name(), &flows.to_string()])?;
        Ok(bed)
    }

    /// Sends a packet each way and looks at what comes out; what was seen.
    ///
    /// # Errors
    /// [`PerfError::Peer`]: the peer does not do its job.
    pub fn prove(&self) -> Result<String, PerfError> {
        self.scripts.must(&self.peer, &["prove", self.job.name()])
    }

    /// Has the peer receive for this; not all know the difference.
    ///
    /// # Errors
    /// [`PerfError::Peer`]
    pub fn tune(&self, aim: Aim) -> Result<(), PerfError> {
        let aim = match aim {
            Aim::Throughput => "throughput",
            Aim::Latency => "latency",
        };
        self.scripts.must(&self.peer, &["tune", aim]).map(|_| ())
    }

    /// The threads that do the work.
    ///
    /// # Errors
    /// [`PerfError::Peer`]
    pub fn workers(&self) -> Result<Vec<Task>, PerfError> {
        let text = self.scripts.must(&self.peer, &["pids"])?;
        Ok(text.lines().filter_map(Task::parse).collect())
    }

    /// Takes it down.
    ///
    /// # Errors
    /// [`PerfError::Peer`]: something may be left.
    pub fn down(mut self) -> Result<(), PerfError> {
        self.up = false;
        self.scripts.must(&self.peer, &["down"]).map(|_| ())
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        if self.up {
            // On the way out of an error, which is what is told.
            let _ = self.scripts.must(&self.peer, &["down"]);
        }
    }
}

/// On a thread of its own, which may enter namespaces, and on the CPU of those who do not forward.
///
/// # Errors
/// What `work` says.
pub fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, PerfError> + Send,
) -> Result<T, PerfError> {
    let pinned = || pin(Some(OTHER_CPU)).and_then(|()| work());
    std::thread::scope(|scope| scope.spawn(pinned).join().unwrap_or(Err(PerfError::Thread)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME=value` of the scripts.
    fn of_scripts(name: &str) -> String {
        let text = include_str!("../peers/lib.sh");
        let words = text.split_whitespace();
        let prefix = format!("{name}=");
        words.filter_map(|word| word.strip_prefix(&prefix)).next().unwrap().to_owned()
    }

    #[test]
    fn the_scripts_have_the_same_names_and_addresses() {
        assert_eq!(of_scripts("POD_NS"), POD.0);
        assert_eq!(of_scripts("NODE_NS"), NODE.0);
        assert_eq!(of_scripts("WIRE_NS"), WIRE.0);
        assert_eq!(of_scripts("POD_IP"), POD_ADDRESS.to_string());
        assert_eq!(of_scripts("POD_MAC"), POD_MAC.to_string());
        assert_eq!(of_scripts("PORT_MAC"), PORT_MAC.to_string());
        assert_eq!(of_scripts("SERVICES"), DESTINATIONS.to_string());
        assert_eq!(of_scripts("SERVICE_PORT"), DESTINATION_PORT.to_string());
        assert_eq!(of_scripts("WORKER_CPU"), WORKER_CPU.to_string());
        assert_eq!(of_scripts("OTHER_CPU"), OTHER_CPU.to_string());
    }

    #[test]
    fn there_is_a_script_for_each_peer_and_it_knows_each_job() {
        let scripts = Scripts::find().unwrap();
        for peer in PEERS {
            assert!(scripts.folder.join(peer).with_extension("sh").is_file(), "{peer}");
        }
        let output = scripts.run("bed", &["available"]).unwrap();
        assert!(output.status.success());
        for job in Job::ALL {
            assert_eq!(scripts.refusal("bed", job, 1000).unwrap(), None, "{job}");
        }
        let output = scripts.run("bed", &["available", "no-such-job"]).unwrap();
        assert_eq!(output.status.code(), Some(2));
    }

    #[test]
    fn as_many_flows_as_a_job_has_are_possible() {
        for job in Job::ALL {
            job.traffic(job.most_flows()).check().unwrap();
        }
        let (from, to) = Job::Snat.traffic(1000).flow(17);
        assert_eq!(from.0.to_string(), "10.244.1.10");
        assert_eq!((to.0.to_string().as_str(), to.1), ("203.0.113.17", 80));
    }
}
