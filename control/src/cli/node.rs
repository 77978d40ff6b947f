//! `overlane node list`: this node and its peers.

use clap::Subcommand;
use overlane_api::protocol::{Op, Reply};
use overlane_api::status::{NodeSummary, PeerStatus};
use serde::Serialize;

use super::{Answer, Cli, CliError, ask_status, lines, table};

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
    let nodes = Nodes { node, peers };
    cli.answer(&nodes, || screen(&nodes))
}

fn screen(nodes: &Nodes) -> String {
    let mut rows = table(&["node", "addresses", "pod ranges", "mode", "next hop", "MTU"]);
    if let Some(node) = &nodes.node {
        rows.add_row([
            format!("{} (this node)", node.name),
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
            lines(&peer.addresses),
            lines(&peer.pod_cidrs),
            peer.mode.to_string(),
            hop.map_or("unresolved".into(), |hop| format!("{}\n{}", hop.address, hop.mac)),
            peer.mtu.to_string(),
        ]);
    }
    format!("{rows}\n")
}
