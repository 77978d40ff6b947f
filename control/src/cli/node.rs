//! `overlane node list`: this node and its peers, and which of them live.

use std::collections::BTreeMap;

use clap::Subcommand;
use overlane_api::protocol::{Op, Reply};
use overlane_api::status::{NodeSummary, PeerStatus};
use serde::Serialize;

use super::status::duration;
use super::{Answer, Cli, CliError, TIMEOUT, ask_status, lines, table};
use crate::membership::MemberStatus;
use crate::socket;

/// Verbs of `overlane node`.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// This node and its peers, as they are in force.
    List,
}

/// What `node list` prints as JSON.
#[derive(Debug, Serialize)]
struct Nodes {
    /// Absent until control has said.
    node: Option<NodeSummary>,
    peers: Vec<PeerStatus>,
    /// Which nodes live, by name; absent: control does not answer, or nothing needs it to know.
    liveness: Option<BTreeMap<String, MemberStatus>>,
}

/// Lists the nodes.
///
/// # Errors
/// When the dataplane does not answer.
pub fn list(cli: &Cli) -> Result<Answer, CliError> {
    let mut client = cli.dataplane()?;
    let node = ask_status(&mut client)?.node;
    let Reply::Peers(peers) = client.call(Op::Peers)? else {
        return Err(CliError::Unexpected("peers"));
    };
    let liveness = match socket::ask(&cli.control_socket(), socket::Op::Nodes, TIMEOUT) {
        Ok(socket::Reply::Nodes { nodes }) => nodes,
        _ => None,
    };
    let nodes = Nodes { node, peers, liveness };
    cli.answer(&nodes, || screen(&nodes))
}

impl Nodes {
    /// `live`, and for how long; `-` when nobody keeps track.
    fn state(&self, name: &str) -> String {
        let Some(MemberStatus { liveness, since_s }) =
            self.liveness.as_ref().and_then(|nodes| nodes.get(name))
        else {
            return "-".to_owned();
        };
        match since_s {
            Some(since) => format!("{}\nfor {}", liveness.word(), duration(*since)),
            None => liveness.word().to_owned(),
        }
    }
}

fn screen(nodes: &Nodes) -> String {
    let heads = ["node", "state", "addresses", "pod ranges", "mode", "next hop", "MTU"];
    let mut rows = table(&heads);
    if let Some(node) = &nodes.node {
        rows.add_row([
            format!("{} (this node)", node.name),
            nodes.state(&node.name),
            lines(&node.addresses),
            String::new(),
            node.mode.to_string(),
            format!("on {}", node.uplink),
            node.pod_mtu.to_string(),
        ]);
    }
    for peer in &nodes.peers {
        let hop = peer.next_hop.as_ref();
        rows.add_row([
            peer.name.clone(),
            nodes.state(&peer.name),
            lines(&peer.addresses),
            lines(&peer.pod_cidrs),
            peer.mode.to_string(),
            hop.map_or("unresolved".into(), |hop| format!("{}\n{}", hop.address, hop.mac)),
            peer.mtu.to_string(),
        ]);
    }
    format!("{rows}\n")
}
