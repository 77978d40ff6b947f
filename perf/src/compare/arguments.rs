//! The command line of `overlane-perf compare`.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::Plan;
use crate::bed::{self, Job};

/// What to compare with what.
#[derive(Debug, Clone, Args)]
pub struct CompareArguments {
    /// In under five minutes: services, 1000 flows, short windows. What is given besides is heeded.
    #[arg(long)]
    quick: bool,
    /// Jobs, separated by commas; all, when left out.
    #[arg(long, value_delimiter = ',')]
    job: Vec<Job>,
    /// Numbers of flows, separated by commas; round trips are measured with the first one
    /// [default: 1000,100000].
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Forwarders, separated by commas; all that are installed, when left out.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(bed::PEERS))]
    peers: Vec<String>,
    /// Rounds [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
}

impl CompareArguments {
    /// What is to be compared.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let peers = if self.peers.is_empty() {
            bed::PEERS.map(str::to_owned).to_vec()
        } else {
            self.peers.clone()
        };
        let mut plan = if self.quick { Plan::quick(peers) } else { Plan::full(peers) };
        if !self.job.is_empty() {
            plan.jobs.clone_from(&self.job);
        }
        if !self.flows.is_empty() {
            plan.flows.clone_from(&self.flows);
        }
        plan.rounds = self.rounds.map_or(plan.rounds, usize::from);
        plan
    }
}
