//! Whose is a frame that has come by the uplink? That of a pod at another worker goes there as it came, before
//! anything else is done with it: there are its flows, and all that is to be asked about it. What would be found out
//! here would have to be carried there, and the next core waits longer for a line of it than it takes to read
//! the headers again.
//!
//! Only what says it at a glance is told apart here. All else stays, and is handed over by the step that finds
//! out whose it is.

use overlane_api::WorkerId;

use super::usual;
use crate::packet::frame::Frame;
use crate::packet::vector::VECTOR;
use crate::tables::Snapshot;
use crate::wire::protocol;
use crate::wire::simple::Simple;
use crate::wire::simple6::Simple6;
use crate::wire::tunnel4::Tunnel4;

/// Writes into `homes` to which worker each of the frames goes that have come by the uplink to worker `here`; to this
/// one if that cannot be said. Says whether all are this one's.
#[inline(never)]
#[must_use]
pub fn of(
    frames: &[Frame],
    tables: &Snapshot,
    here: WorkerId,
    homes: &mut [WorkerId; VECTOR],
) -> bool {
    let (node, places) = (&tables.node, &tables.homes.v4);
    let [geneve, vxlan] = [0, 1].map(|tunnel| node.plain_tunnels[tunnel].port);
    let address = node.v4;
    let mut all_here = true;
    for (home, frame) in homes.iter_mut().zip(frames) {
        let bytes = frame.bytes();
        let found = match Tunnel4::read(bytes) {
            Some(outer)
                if outer.destination() == address
                    && [geneve, vxlan].contains(&u32::from(outer.port())) =>
            {
                match outer.inner_destination() {
                    Some(destination) => places.get(destination),
                    None => elsewhere(bytes, tables),
                }
            }
            _ => elsewhere(bytes, tables),
        };
        *home = found.unwrap_or(here);
        all_here &= *home == here;
    }
    all_here
}

/// The same of a frame that is no tunnel packet over IPv4 with IPv4 inside.
#[inline(never)]
fn elsewhere(frame: &[u8], tables: &Snapshot) -> Option<WorkerId> {
    let Snapshot { node, homes, external, .. } = tables;
    let (is_own, protocol, port, owner, home, before) = if let Some(ip) = Simple::read(frame) {
        let (address, port) = (ip.destination(), ip.ports() as u16);
        let owner = external.owner_v4(address, port);
        (address == node.v4, ip.protocol(), port, owner, homes.v4.get(address), usual::PLAIN)
    } else {
        let ip = Simple6::read(frame)?;
        let (address, port) = (ip.destination(), ip.ports() as u16);
        let owner = external.owner_v6(address, port);
        (address == node.v6, ip.protocol(), port, owner, homes.v6.get(address), usual::PLAIN6)
    };
    if !is_own {
        return owner.or(home);
    }
    if protocol != protocol::UDP || !node.is_tunnel_port(port) {
        return owner.filter(|_| !tables.host_ports.contains(port));
    }
    let inside = frame.get(before..)?;
    if let Some(ip) = Simple6::read(inside) {
        return homes.v6.get(ip.destination());
    }
    homes.v4.get(Simple::read(inside)?.destination())
}
