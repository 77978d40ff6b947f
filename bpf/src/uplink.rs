//! The program of the uplink, and the tables it decides by.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use ipnet::IpNet;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::attach::{self, Attachment};
use crate::diagnose::{self, BpfError};
use crate::interface::Interface;
use crate::program;
use crate::skeleton::steer::SteerSkelBuilder;
use crate::tables::{Reason, SteerCounters, UplinkSettings, address_key, prefix_key};

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
    /// What the maps hold, in canonical form.
    node_addresses: BTreeSet<IpAddr>,
    prefixes: BTreeSet<IpNet>,
}

#[derive(Debug)]
struct Maps {
    xsks: MapHandle,
    settings: MapHandle,
    node_addresses: MapHandle,
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
            node_addresses: BTreeSet::new(),
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

    /// Replaces ports and flags, all at once.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn configure(&mut self, settings: &UplinkSettings) -> Result<(), BpfError> {
        let first = 0_u32.to_ne_bytes();
        program::write(&self.maps.settings, "settings", &first, &settings.to_bytes(), || {
            format!("writing {settings:?}")
        })
    }

    /// Replaces the addresses that tunnel packets are sent to. Those that stay are never absent
    /// in between. IPv4 and IPv4-mapped IPv6 addresses are the same.
    ///
    /// # Errors
    /// [`BpfError::TableFull`] changes nothing; after [`BpfError::Map`] call it again.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        const NAME: &str = "node_addresses";
        let wanted: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        let map = &self.maps.node_addresses;
        room(map, NAME, self.node_addresses.union(&wanted).count())?;
        for address in &wanted {
            if !self.node_addresses.contains(address) {
                program::write(map, NAME, &address_key(*address), &PRESENT, || {
                    format!("adding {address}")
                })?;
                self.node_addresses.insert(*address);
            }
        }
        for address in self.node_addresses.clone().difference(&wanted) {
            remove(map, NAME, &address_key(*address), address)?;
            self.node_addresses.remove(address);
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
        node_addresses: MapHandle::try_from(&loaded.maps.node_addresses)?,
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
    use crate::tables::{ADDRESS_BYTES, PREFIX_V4_BYTES, PREFIX_V6_BYTES, SETTINGS_BYTES};

    #[test]
    #[ignore = "needs root"]
    fn both_sides_agree_on_the_layout() {
        let maps = UplinkSteering::load(3).unwrap().maps;
        let key = |map: &MapHandle| usize::try_from(map.key_size()).unwrap();
        assert_eq!(maps.settings.value_size() as usize, SETTINGS_BYTES);
        assert_eq!(key(&maps.node_addresses), ADDRESS_BYTES);
        assert_eq!(key(&maps.prefixes_v4), PREFIX_V4_BYTES);
        assert_eq!(key(&maps.prefixes_v6), PREFIX_V6_BYTES);
        for set in [&maps.node_addresses, &maps.prefixes_v4, &maps.prefixes_v6] {
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
