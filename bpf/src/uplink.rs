//! The program of the uplink, and the tables it decides by.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use ipnet::IpNet;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::attach::{self, Attachment};
use crate::diagnose::{self, BpfError};
use crate::interface::Interface;
use crate::program;
use crate::skeleton::steer::SteerSkelBuilder;
use crate::tables::{
    Reason, Role, SteerCounters, UplinkSettings, address_key, node_port_key, prefix_key,
};

/// Value of an entry that only has to be there.
const PRESENT: [u8; 1] = [1];
/// `XDP_REDIRECT` of `linux/bpf.h`.
const XDP_REDIRECT: u32 = 4;

/// What the program does with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Goes to the AF_XDP socket of its queue.
    ToDataplane,
    /// Goes on to the kernel's network stack.
    ToKernel,
}

/// The uplink program with its tables. Steers nothing until it is configured. Dropping this
/// detaches the program, and all frames go to the kernel.
#[derive(Debug)]
pub struct UplinkSteering {
    program: OwnedFd,
    maps: Maps,
    queues: u32,
    attachment: Option<Attachment>,
    settings: UplinkSettings,
    snat_ports: Option<(u16, u16)>,
    /// What the maps hold, addresses in canonical form; of addresses the bits of their roles.
    addresses: BTreeMap<IpAddr, u8>,
    node_ports: BTreeSet<(u8, u16)>,
    prefixes: BTreeSet<IpNet>,
}

#[derive(Debug)]
struct Maps {
    xsks: MapHandle,
    settings: MapHandle,
    addresses: MapHandle,
    node_ports: MapHandle,
    prefixes_v4: MapHandle,
    prefixes_v6: MapHandle,
    counters: MapHandle,
}

impl UplinkSteering {
    /// Loads the program for `queues` receive queues and attaches it in native mode to an
    /// interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`BpfError`] says what is missing, or who is on the interface already.
    pub fn attach(interface: &str, queues: u32) -> Result<Self, BpfError> {
        let mut steering = Self::load(queues)?;
        steering.attach_to(interface)?;
        Ok(steering)
    }

    /// Loads the program without an interface, to configure it first or to ask it with
    /// [`Self::decide`].
    ///
    /// # Errors
    /// [`BpfError::Load`] and [`BpfError::Permission`].
    pub fn load(queues: u32) -> Result<Self, BpfError> {
        let (program, maps) =
            load(queues).map_err(|source| diagnose::load("ovl_uplink", source))?;
        Ok(Self {
            program,
            maps,
            queues,
            attachment: None,
            settings: UplinkSettings::default(),
            snat_ports: None,
            addresses: BTreeMap::new(),
            node_ports: BTreeSet::new(),
            prefixes: BTreeSet::new(),
        })
    }

    /// Attaches the loaded program; an interface that it was attached to before is left.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_to(&mut self, interface: &str) -> Result<(), BpfError> {
        let interface = Interface::resolve(interface)?;
        self.attachment = None;
        self.attachment = Some(attach::attach(self.program.as_fd(), &interface)?);
        Ok(())
    }

    /// Replaces ports and flags, all at once. SNAT ports stay as they are.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn configure(&mut self, settings: &UplinkSettings) -> Result<(), BpfError> {
        self.settings = *settings;
        self.write_settings()
    }

    /// Replaces the range of ports, and of echo identifiers, that flows leave the cluster with:
    /// what comes back to one of them at an egress address is steered, and ICMP errors about what
    /// was sent from there. Port 0 is none. None, or an empty range: no port is.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_snat_ports(&mut self, ports: Option<RangeInclusive<u16>>) -> Result<(), BpfError> {
        let ports = ports.map(|ports| ((*ports.start()).max(1), *ports.end()));
        self.snat_ports = ports.filter(|(first, last)| first <= last);
        self.write_settings()
    }

    fn write_settings(&self) -> Result<(), BpfError> {
        let first = 0_u32.to_ne_bytes();
        let bytes = self.settings.to_bytes(self.snat_ports);
        program::write(&self.maps.settings, "settings", &first, &bytes, || {
            format!("writing {:?} and SNAT ports {:?}", self.settings, self.snat_ports)
        })
    }

    /// Replaces the addresses of this node: tunnel packets are sent to them, and NodePorts are
    /// open there. Those that stay are never absent in between. IPv4 and IPv4-mapped IPv6
    /// addresses are the same.
    ///
    /// # Errors
    /// [`BpfError::TableFull`] changes nothing; after [`BpfError::Map`] call it again.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        self.set_role(Role::Node, addresses)
    }

    /// Replaces the addresses that flows leave the cluster with: this node's own, and those of
    /// NAT gateways that it holds. Of packets to them only those to SNAT ports are steered.
    ///
    /// # Errors
    /// As [`Self::set_node_addresses`].
    pub fn set_egress_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        self.set_role(Role::Egress, addresses)
    }

    /// Replaces the addresses that only services have: all TCP, UDP, SCTP and ICMP packets to
    /// them are steered, fragments as well. An address that is this node's too is never steered
    /// so: the host stays reachable.
    ///
    /// # Errors
    /// As [`Self::set_node_addresses`].
    pub fn set_service_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        self.set_role(Role::Service, addresses)
    }

    /// Replaces the addresses that this node answers for: ARP requests and neighbour solicitations
    /// for them are steered, but for those that are this node's own, which the host answers for.
    ///
    /// # Errors
    /// As [`Self::set_node_addresses`].
    pub fn set_announced_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        self.set_role(Role::Announced, addresses)
    }

    fn set_role(&mut self, role: Role, addresses: &[IpAddr]) -> Result<(), BpfError> {
        const NAME: &str = "addresses";
        let bit = role as u8;
        let wanted: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        let new = wanted.iter().filter(|address| !self.addresses.contains_key(address)).count();
        room(&self.maps.addresses, NAME, self.addresses.len() + new)?;
        for address in &wanted {
            let bits = self.addresses.get(address).copied().unwrap_or(0);
            if bits & bit == 0 {
                self.write_address(*address, bits | bit)?;
            }
        }
        let has_role = |(_, bits): &(&IpAddr, &u8)| **bits & bit != 0;
        let old = self.addresses.iter().filter(has_role);
        let old: Vec<(IpAddr, u8)> = old.map(|(address, bits)| (*address, *bits)).collect();
        for (address, bits) in old {
            if !wanted.contains(&address) {
                self.write_address(address, bits & !bit)?;
            }
        }
        Ok(())
    }

    /// Makes `bits` what an address is; 0: nothing any more.
    fn write_address(&mut self, address: IpAddr, bits: u8) -> Result<(), BpfError> {
        let (map, key) = (&self.maps.addresses, address_key(address));
        if bits == 0 {
            remove(map, "addresses", &key, &address)?;
            self.addresses.remove(&address);
        } else {
            program::write(map, "addresses", &key, &[bits], || format!("writing {address}"))?;
            self.addresses.insert(address, bits);
        }
        Ok(())
    }

    /// Replaces the ports of this node's addresses at which services answer, each with the number
    /// of its protocol in the IP header.
    ///
    /// # Errors
    /// As [`Self::set_node_addresses`].
    pub fn set_node_ports(&mut self, ports: &[(u8, u16)]) -> Result<(), BpfError> {
        const NAME: &str = "node_ports";
        let wanted: BTreeSet<(u8, u16)> = ports.iter().copied().collect();
        let map = &self.maps.node_ports;
        room(map, NAME, self.node_ports.union(&wanted).count())?;
        for port in &wanted {
            if !self.node_ports.contains(port) {
                program::write(map, NAME, &node_port_key(*port), &PRESENT, || {
                    format!("adding port {} of protocol {}", port.1, port.0)
                })?;
                self.node_ports.insert(*port);
            }
        }
        for port in self.node_ports.clone().difference(&wanted) {
            let what = format!("port {} of protocol {}", port.1, port.0);
            remove(map, NAME, &node_port_key(*port), &what)?;
            self.node_ports.remove(port);
        }
        Ok(())
    }

    /// Replaces the prefixes whose packets come to the dataplane whatever they carry: pod ranges
    /// and addresses of this node that are visible on the underlay. Only the difference is
    /// written; host bits are ignored. A node address is never steered by a prefix.
    ///
    /// # Errors
    /// [`BpfError::TableFull`] changes nothing; after [`BpfError::Map`] call it again.
    pub fn set_prefixes(&mut self, prefixes: &[IpNet]) -> Result<(), BpfError> {
        let wanted: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let is_v4 = |prefix: &&IpNet| matches!(prefix, IpNet::V4(_));
        let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = self.prefixes.union(&wanted).partition(is_v4);
        room(&self.maps.prefixes_v4, "prefixes_v4", v4.len())?;
        room(&self.maps.prefixes_v6, "prefixes_v6", v6.len())?;
        for prefix in &wanted {
            if !self.prefixes.contains(prefix) {
                let (map, name) = self.maps.prefixes(prefix);
                program::write(map, name, &prefix_key(*prefix), &PRESENT, || {
                    format!("adding {prefix}")
                })?;
                self.prefixes.insert(*prefix);
            }
        }
        for prefix in self.prefixes.clone().difference(&wanted) {
            let (map, name) = self.maps.prefixes(prefix);
            remove(map, name, &prefix_key(*prefix), prefix)?;
            self.prefixes.remove(prefix);
        }
        Ok(())
    }

    /// Makes an AF_XDP socket, bound to this interface and `queue`, the receiver of the queue's
    /// steered frames. It stays that until it is closed or another takes its place; without one
    /// they go to the kernel.
    ///
    /// # Errors
    /// [`BpfError::NoSuchQueue`]; [`BpfError::Map`] when `socket` is not an AF_XDP socket.
    pub fn register_socket(&self, queue: u32, socket: RawFd) -> Result<(), BpfError> {
        program::register_socket(&self.maps.xsks, self.queues, queue, socket)
    }

    /// What the program has done since it was loaded.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn counters(&self) -> Result<SteerCounters, BpfError> {
        let mut by_reason = [0_u64; Reason::COUNT];
        for (reason, sum) in (0_u32..).zip(&mut by_reason) {
            let per_cpu =
                self.maps.counters.lookup_percpu(&reason.to_ne_bytes(), MapFlags::ANY).map_err(
                    |source| BpfError::Map {
                        map: "counters",
                        action: format!("reading counter {reason}"),
                        source,
                    },
                )?;
            for value in per_cpu.into_iter().flatten() {
                let bytes = value.first_chunk().copied().unwrap_or_default();
                *sum = sum.wrapping_add(u64::from_ne_bytes(bytes));
            }
        }
        Ok(SteerCounters::from_reasons(by_reason))
    }

    /// Runs the program in the kernel over `frame` (Ethernet header first, at least 14 bytes),
    /// as if it had come in on queue 0, and says what it decides. Nothing is delivered, but the
    /// counters count it. [`Action::ToDataplane`] needs a socket registered for queue 0.
    ///
    /// # Errors
    /// [`BpfError::TestRun`].
    pub fn decide(&self, frame: &[u8]) -> Result<Action, BpfError> {
        let action = program::test_run(self.program.as_fd(), frame)?;
        Ok(if action == XDP_REDIRECT { Action::ToDataplane } else { Action::ToKernel })
    }
}

impl Maps {
    /// The trie that a prefix belongs in, and its name.
    fn prefixes(&self, prefix: &IpNet) -> (&MapHandle, &'static str) {
        match prefix {
            IpNet::V4(_) => (&self.prefixes_v4, "prefixes_v4"),
            IpNet::V6(_) => (&self.prefixes_v6, "prefixes_v6"),
        }
    }
}

fn load(queues: u32) -> libbpf_rs::Result<(OwnedFd, Maps)> {
    diagnose::listen();
    let mut storage = MaybeUninit::uninit();
    let mut open = SteerSkelBuilder::default().open(&mut storage)?;
    open.maps.xsks.set_max_entries(queues.max(1))?;
    let loaded = open.load()?;
    let program = loaded.progs.ovl_uplink.as_fd().try_clone_to_owned()?;
    let maps = Maps {
        xsks: MapHandle::try_from(&loaded.maps.xsks)?,
        settings: MapHandle::try_from(&loaded.maps.settings)?,
        addresses: MapHandle::try_from(&loaded.maps.addresses)?,
        node_ports: MapHandle::try_from(&loaded.maps.node_ports)?,
        prefixes_v4: MapHandle::try_from(&loaded.maps.prefixes_v4)?,
        prefixes_v6: MapHandle::try_from(&loaded.maps.prefixes_v6)?,
        counters: MapHandle::try_from(&loaded.maps.counters)?,
    };
    Ok((program, maps))
}

/// Refuses a set that would not fit before anything is written.
fn room(map: &MapHandle, name: &'static str, wanted: usize) -> Result<(), BpfError> {
    let limit = map.max_entries();
    if usize::try_from(limit).is_ok_and(|limit| wanted > limit) {
        return Err(BpfError::TableFull { map: name, wanted, limit });
    }
    Ok(())
}

fn remove(
    map: &MapHandle,
    name: &'static str,
    key: &[u8],
    what: &dyn std::fmt::Display,
) -> Result<(), BpfError> {
    map.delete(key).map_err(|source| BpfError::Map {
        map: name,
        action: format!("removing {what}"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{
        ADDRESS_BYTES, NODE_PORT_BYTES, PREFIX_V4_BYTES, PREFIX_V6_BYTES, SETTINGS_BYTES,
    };

    #[test]
    #[ignore = "needs root"]
    fn both_sides_agree_on_the_layout() {
        let maps = UplinkSteering::load(3).unwrap().maps;
        let key = |map: &MapHandle| usize::try_from(map.key_size()).unwrap();
        assert_eq!(maps.settings.value_size() as usize, SETTINGS_BYTES);
        assert_eq!(key(&maps.addresses), ADDRESS_BYTES);
        assert_eq!(key(&maps.node_ports), NODE_PORT_BYTES);
        assert_eq!(key(&maps.prefixes_v4), PREFIX_V4_BYTES);
        assert_eq!(key(&maps.prefixes_v6), PREFIX_V6_BYTES);
        for set in [&maps.addresses, &maps.node_ports, &maps.prefixes_v4, &maps.prefixes_v6] {
            assert_eq!(set.value_size() as usize, PRESENT.len());
        }
        assert_eq!(maps.counters.value_size() as usize, size_of::<u64>());
        assert_eq!(maps.counters.max_entries() as usize, Reason::COUNT);
        assert_eq!(maps.xsks.max_entries(), 3);
    }

    #[test]
    fn steering_can_move_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<UplinkSteering>();
        is_send::<crate::PortSteering>();
    }
}
