//! The hidden command that forwards a number of vectors and nothing else: what runs under
//! valgrind and strace. Any program that answers to it can be counted by [`crate::callgrind`].

use clap::{Args, Parser};

use overlane_dataplane::io::VECTOR;

use crate::error::PerfError;
use crate::measure::{Ports, forward, warm_up};
use crate::rig::Rig;
use crate::scenario::{Load, Scenario};
use crate::traffic::{Order, Size};

/// The cluster and its packets.
#[derive(Debug, Clone, Args)]
pub struct Cluster {
    /// Other nodes.
    #[arg(long, default_value_t = 64)]
    pub peers: usize,
    /// Pods on other nodes.
    #[arg(long, default_value_t = 1000)]
    pub endpoints: usize,
    /// Frames that a port rotates through, as a device does.
    #[arg(long, default_value_t = 256)]
    pub frames: usize,
    /// In which order the flows' packets come.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    pub order: Order,
}

impl Cluster {
    /// The load with that many flows and frames of that size.
    #[must_use]
    pub fn load(&self, flows: usize, size: Size) -> Load {
        Load {
            flows,
            size,
            order: self.order,
            peers: self.peers,
            endpoints: self.endpoints,
            frames: self.frames,
            ..Load::default()
        }
    }
}

/// What to forward.
#[derive(Debug, Clone, Parser)]
pub struct Forward {
    /// Scenario.
    #[arg(value_parser = scenario)]
    pub scenario: Scenario,
    /// Flows.
    #[arg(long, default_value_t = 1000)]
    pub flows: usize,
    /// Size of their frames.
    #[arg(long, default_value = "64")]
    pub size: Size,
    /// The rest about the packets.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Vectors.
    #[arg(long, default_value_t = 1000)]
    pub vectors: usize,
    /// Only through the ports.
    #[arg(long)]
    pub ports_alone: bool,
}

fn scenario(name: &str) -> Result<Scenario, String> {
    Scenario::named(name).ok_or_else(|| format!("there is no scenario {name}"))
}

impl Forward {
    /// Forwards; says how many packets that were.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn run(&self) -> Result<usize, PerfError> {
        let load = self.cluster.load(self.flows, self.size);
        if self.ports_alone {
            return Ok(Ports::new(self.scenario, &load)?.carry(self.vectors));
        }
        if self.scenario.opens {
            // As many flows as packets, whatever was asked for.
            let load = Load { flows: self.vectors * VECTOR, ..load };
            let mut rig = Rig::new(self.scenario, &load, 1)?;
            warm_up(&mut rig.bench.workers[0]);
            rig.arrive(&load)?;
            let packets = forward(&mut rig.bench.workers[0], self.vectors);
            rig.check()?;
            return Ok(packets);
        }
        let mut rig = Rig::new(self.scenario, &load, 1)?;
        rig.settle(&load);
        let mut packets = 0;
        for worker in &mut rig.bench.workers {
            warm_up(worker);
            packets += forward(worker, self.vectors);
        }
        rig.check()?;
        Ok(packets)
    }
}
