//! All that one worker remembers of its flows.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use overlane_api::{Timeouts as TimeoutSettings, WorkerId};

use super::TICK_NS;
use super::affinity::AffinityTable;
use super::fragments::FragmentMap;
use super::identification::Identifications;
use super::past::Carried;
use super::ports::PortAllocator;
use super::table::{FlowTable, FlowTable4, FlowTable6, Removed};
use super::timeouts::Timeouts;
use crate::packet::blocks::BlockTable;
use crate::packet::flow_key::{Address, FlowHash};
use crate::packet::region::RegionError;

/// Entries that expiry looks at in one tick of [`Flows::expire`].
const BUDGET: u32 = 4096;

/// Packets of each family whose fragments are on their way: as many as one worker knows at once.
const DATAGRAMS: u32 = 4096;

/// A mark of a flow ([`super::half::Way::marks`]): its source port is of [`Flows::ports_v4`] or
/// [`Flows::ports_v6`].
pub const HAS_PORT: u16 = 1;

/// A mark of a flow: it leaves the cluster by the peer that holds its NAT gateway, through the tunnel,
/// as it came; and its answers come that way.
pub const VIA_PEER: u16 = 2;

/// A mark of a flow: it is of a peer's pod, and takes an address of a NAT gateway that is here.
pub const FOR_PEER: u16 = 4;

/// A mark of a flow: the backend's node answers the client itself, so that here are only the client's
/// packets.
pub const DIRECT: u16 = 8;

/// A mark of a flow: the client's packets come by a peer, which knows them as packets to a service; the
/// backend's answers leave here as the service's.
pub const RETURNS: u16 = 16;

/// The flows of both families.
#[derive(Debug)]
pub struct Flows {
    /// IPv4.
    pub v4: FlowTable4,
    /// IPv6.
    pub v6: FlowTable6,
    /// Source ports of IPv4 flows that leave the cluster.
    pub ports_v4: PortAllocator<u32>,
    /// Source ports of IPv6 flows that leave the cluster.
    pub ports_v6: PortAllocator<u128>,
    /// Backends that IPv4 clients stay with.
    pub affinity_v4: AffinityTable<u32>,
    /// Backends that IPv6 clients stay with.
    pub affinity_v6: AffinityTable<u128>,
    /// IPv4 packets whose first fragments have come.
    pub fragments_v4: FragmentMap<u32>,
    /// IPv6 packets whose first fragments have come.
    pub fragments_v6: FragmentMap<u128>,
    /// Of IPv4 packets that leave with a shared address.
    pub identifications: Identifications,
    /// Hashes the keys of both families, as the tables of all workers do: a packet is hashed once, and
    /// keeps its hash ([`crate::packet::meta::Meta::hash`]) when another worker takes it over.
    pub hash: FlowHash,
    /// Are the vector's packets looked for among the flows before they are routed?
    pub come_first: bool,
    /// Did most packets of the last vector that may have flows have one?
    pub usual: Usual,
    /// State of [`Flows::random`].
    random: u64,
    expired_at: u32,
}

/// Takes the port of a flow that has gone back, if it has one.
pub fn take_back<A: Address>(removed: &Removed<A>, ports: &mut PortAllocator<A>, now: u32) {
    if removed.forward.marks() & HAS_PORT != 0 {
        ports.forget(removed, now);
    }
}

impl Flows {
    /// Tables of `worker` for `capacity` flows of each family. Memory is taken as flows come.
    ///
    /// # Errors
    /// When there is no address space for them.
    pub fn new(worker: WorkerId, capacity: u32) -> Result<Self, RegionError> {
        let (v4, v6) = Self::tables(capacity)?;
        Ok(Self {
            v4,
            v6,
            ports_v4: PortAllocator::new(worker, [seed(), seed()])?,
            ports_v6: PortAllocator::new(worker, [seed(), seed()])?,
            affinity_v4: AffinityTable::new(seed())?,
            affinity_v6: AffinityTable::new(seed())?,
            fragments_v4: FragmentMap::new(DATAGRAMS, seed())?,
            fragments_v6: FragmentMap::new(DATAGRAMS, seed())?,
            identifications: Identifications::new(worker, [seed(), seed()]),
            hash: FlowHash::new(table_seed()),
            come_first: false,
            usual: Usual::default(),
            random: seed() | 1,
            expired_at: 0,
        })
    }

    /// Is there no flow at all?
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Flows there are, of both families.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::from(self.v4.len()) + u64::from(self.v6.len())
    }

    /// Takes other tables, which are empty, and gives its own for them: if these are empty, too. The
    /// timeouts and the sums of what has gone stay. Says whether it did.
    pub fn exchange(&mut self, tables: &mut (FlowTable4, FlowTable6)) -> bool {
        if !self.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.v4, &mut tables.0);
        std::mem::swap(&mut self.v6, &mut tables.1);
        std::mem::swap(&mut self.v4.past, &mut tables.0.past);
        std::mem::swap(&mut self.v6.past, &mut tables.1.past);
        self.v4.set_timeouts(tables.0.timeouts);
        self.v6.set_timeouts(tables.1.timeouts);
        true
    }

    /// What the flows of a tag that have gone had carried.
    #[must_use]
    pub fn past(&self, tag: u32) -> Carried {
        let mut sum = self.v4.past.of(tag);
        sum += self.v6.past.of(tag);
        sum
    }

    /// A tag is somebody else's from now on: what its flows had carried is no longer his.
    pub fn forget_tag(&mut self, tag: u32) {
        self.v4.past.forget(tag);
        self.v6.past.forget(tag);
    }

    /// Empty tables for `capacity` flows of each family, for [`Flows::exchange`].
    ///
    /// # Errors
    /// When there is no address space for them.
    pub fn tables(capacity: u32) -> Result<(FlowTable4, FlowTable6), RegionError> {
        let seed = table_seed();
        Ok((FlowTable4::new(capacity, seed)?, FlowTable6::new(capacity, seed)?))
    }

    /// The tick at `now_ns` nanoseconds after the start.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a u32 of ticks lasts nine years")]
    pub const fn tick(now_ns: u64) -> u32 {
        (now_ns / TICK_NS) as u32
    }

    /// A number that nobody outside can foretell (xorshift64*, seeded by the system).
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the upper half is meant")]
    pub fn random(&mut self) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Says how many workers share the addresses that flows leave with.
    pub fn set_workers(&mut self, workers: u32) {
        self.ports_v4.set_workers(workers);
        self.ports_v6.set_workers(workers);
        self.identifications.set_workers(workers);
    }

    /// Other timeouts and cooldowns (seconds), for flows that exist as well.
    pub fn set_timeouts(
        &mut self,
        timeouts: &TimeoutSettings,
        fin_cooldown: u32,
        rst_cooldown: u32,
    ) {
        self.v4.set_timeouts(Timeouts::new(timeouts));
        self.v6.set_timeouts(Timeouts::new(timeouts));
        self.ports_v4.set_cooldowns(fin_cooldown, rst_cooldown);
        self.ports_v6.set_cooldowns(fin_cooldown, rst_cooldown);
    }

    /// Most flows with an external port that a pod may have at a time; none: no limit.
    pub fn set_pod_limit(&mut self, limit: Option<u32>) {
        let Self { v4, v6, ports_v4, ports_v6, .. } = self;
        ports_v4.set_pod_limit(limit, holders(v4));
        ports_v6.set_pod_limit(limit, holders(v6));
    }

    /// Ticks that the first fragment of a packet is remembered.
    #[must_use]
    pub fn fragment_timeout(&self) -> u32 {
        self.v4.timeouts.fragments()
    }

    /// Flows leave with an address from now on.
    pub fn add_address(&mut self, address: IpAddr, ports: &Arc<BlockTable>) {
        match address {
            IpAddr::V4(address) => {
                self.ports_v4.add_address(address.to_bits(), ports);
            }
            IpAddr::V6(address) => {
                self.ports_v6.add_address(address.to_bits(), ports);
            }
        }
    }

    /// New flows leave with an address no more.
    pub fn retire_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                if let Some(pool) = self.ports_v4.pool(address.to_bits()) {
                    self.ports_v4.retire_address(pool);
                }
            }
            IpAddr::V6(address) => {
                if let Some(pool) = self.ports_v6.pool(address.to_bits()) {
                    self.ports_v6.retire_address(pool);
                }
            }
        }
    }

    /// Forgets flows whose time is over: a bounded number of entries, once a tick.
    #[inline]
    pub fn expire(&mut self, now: u32) {
        if now != self.expired_at {
            self.expire_some(now);
        }
    }

    fn expire_some(&mut self, now: u32) {
        self.expired_at = now;
        let Self { v4, v6, ports_v4, ports_v6, .. } = self;
        v4.expire(now, BUDGET, &mut |removed| take_back(removed, ports_v4, now));
        v6.expire(now, BUDGET, &mut |removed| take_back(removed, ports_v6, now));
        ports_v4.maintain(now);
        ports_v6.maintain(now);
    }
}

/// The pods of the flows that have an external port.
fn holders<A: Address>(table: &FlowTable<A>) -> impl Iterator<Item = A> + '_ {
    let with_port = table.iter().filter(|(_, forward, _)| forward.marks() & HAS_PORT != 0);
    with_port.map(|(_, forward, _)| forward.key().source)
}

/// Where most packets have a flow already, by the side that they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usual {
    /// Those from pods and the host.
    pub inside: bool,
    /// Those from the uplink.
    pub uplink: bool,
}

/// The seed of all flow tables of this process.
fn table_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(seed)
}

/// 64 random bits of the system's.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
