//! The backends of a service, of one family, and how one of them is chosen.
//!
//! What a new flow reads of it are three cache lines, in huge pages: how it is chosen, a slot of a Maglev table,
//! and the backend.

use std::net::{IpAddr, Ipv4Addr};

use arrayvec::ArrayVec;
use overlane_api::{Algorithm, Scope};

use super::maglev::{Candidate, Maglev};
use super::routes::Address;
use crate::packet::prefetch::prefetch;

/// A backend, as a packet needs it; its route is not looked up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend<K> {
    /// Its address, host order.
    pub address: K,
    /// Its port, host byte order.
    pub port: u16,
    flags: u8,
}

impl<K> Backend<K> {
    const LOCAL: u8 = 1;
    const CLUSTER_SCOPE: u8 = 2;
    const LOCAL_SCOPE: u8 = 4;
    const SERVING: u8 = 8;
    const DRAINING: u8 = 16;

    /// Is it on this node?
    #[inline]
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }

    /// Does it still answer? If not, UDP flows to it are to be forgotten.
    #[inline]
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.flags & Self::SERVING != 0
    }

    /// Does it take new flows of `scope`?
    #[inline]
    #[must_use]
    pub fn takes(&self, scope: Scope) -> bool {
        self.flags & Self::scope_flag(scope) != 0
    }

    /// May a client whose last flow went there have its next one there, of `scope`? Not when it is
    /// drained.
    #[inline]
    #[must_use]
    pub fn keeps_clients(&self, scope: Scope) -> bool {
        self.takes(scope) && self.flags & Self::DRAINING == 0
    }

    const fn scope_flag(scope: Scope) -> u8 {
        match scope {
            Scope::Cluster => Self::CLUSTER_SCOPE,
            Scope::Local => Self::LOCAL_SCOPE,
        }
    }
}

/// How one of a scope's backends is chosen. The numbers are places in the list of all backends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// There is none.
    Nothing,
    /// Of all backends, each alike.
    All,
    /// Of these, each alike.
    Some(Box<[u16]>),
    /// Of these by weight: each with the sum of the weights up to and including its own.
    Weighted(Box<[(u32, u16)]>),
    /// Consistently.
    Maglev(Maglev),
}

/// Backends that stand in one piece with how they are chosen.
const FEW: usize = 16;

/// Backends, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum List<K> {
    Few(ArrayVec<Backend<K>, FEW>),
    Many(Box<[Backend<K>]>),
}

impl<K> List<K> {
    #[inline]
    fn all(&self) -> &[Backend<K>] {
        match self {
            Self::Few(few) => few,
            Self::Many(many) => many,
        }
    }

    /// Bytes of memory besides its own.
    fn bytes(&self) -> usize {
        match self {
            Self::Few(_) => 0,
            Self::Many(many) => std::mem::size_of_val(&**many),
        }
    }
}

/// Backends of one family. What chooses is in the first cache line of what is [`Shared`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub struct Backends<K> {
    cluster: Choice,
    local: Choice,
    has_any: bool,
    /// Ascending by address and port.
    list: List<K>,
}

impl<K> Default for Backends<K> {
    fn default() -> Self {
        let nothing = || Choice::Nothing;
        let list = List::Few(ArrayVec::new_const());
        Self { cluster: nothing(), local: nothing(), has_any: false, list }
    }
}

/// An address that backends can have.
pub trait BackendAddress: Address {
    /// It in 128 bits; IPv4-mapped if it is of IPv4 (RFC 4291 section 2.5.5.2).
    fn identity(self) -> u128;
    /// The bits of an address of this family.
    fn of(address: IpAddr) -> Option<Self>;
}

impl BackendAddress for u32 {
    fn identity(self) -> u128 {
        Ipv4Addr::from_bits(self).to_ipv6_mapped().to_bits()
    }
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.to_bits()),
            IpAddr::V6(_) => None,
        }
    }
}

impl BackendAddress for u128 {
    fn identity(self) -> u128 {
        self
    }
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(address) => Some(address.to_bits()),
            IpAddr::V4(_) => None,
        }
    }
}

impl<K: BackendAddress> Backends<K> {
    /// Most backends of a family.
    pub const MAX: usize = Maglev::MAX_CANDIDATES;

    /// The backends of family `K` among `all`, of which those beyond [`Backends::MAX`] are left
    /// out.
    #[must_use]
    pub fn new(all: &[overlane_api::Backend], algorithm: Algorithm) -> Self {
        let mut list: Vec<(Backend<K>, u16)> = all
            .iter()
            .filter_map(|backend| {
                let mut flags = 0;
                for (is, flag) in [
                    (backend.local, Backend::<K>::LOCAL),
                    (backend.use_cluster, Backend::<K>::CLUSTER_SCOPE),
                    (backend.use_local, Backend::<K>::LOCAL_SCOPE),
                    (backend.serving, Backend::<K>::SERVING),
                    (backend.weight == 0, Backend::<K>::DRAINING),
                ] {
                    flags |= if is { flag } else { 0 };
                }
                let (address, port) = (K::of(backend.address)?, backend.port);
                Some((Backend { address, port, flags }, backend.weight))
            })
            .collect();
        list.sort_unstable_by_key(|(backend, _)| (backend.address, backend.port));
        list.dedup_by_key(|(backend, _)| (backend.address, backend.port));
        list.truncate(Self::MAX);
        let cluster = Choice::new(&list, Scope::Cluster, algorithm);
        let local = Choice::new(&list, Scope::Local, algorithm);
        let has_any = list.iter().any(|(b, _)| b.takes(Scope::Cluster) || b.takes(Scope::Local));
        let list = list.into_iter().map(|(backend, _)| backend);
        let list =
            if list.len() <= FEW { List::Few(list.collect()) } else { List::Many(list.collect()) };
        Self { cluster, local, has_any, list }
    }

    /// A backend for a new flow of `scope`; `hash` is well mixed. None: no backend takes one.
    #[inline]
    #[must_use]
    pub fn choose(&self, scope: Scope, hash: u32) -> Option<Backend<K>> {
        let list = self.list();
        list.get(self.choice(scope).pick(list.len(), hash)?).copied()
    }

    /// Brings near what [`Backends::prefetch_choice`] will read.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self);
    }

    /// Brings near what says which backend is chosen.
    #[inline]
    pub fn prefetch_choice(&self, scope: Scope, hash: u32) {
        if let Choice::Maglev(table) = self.choice(scope) {
            table.prefetch(hash);
        }
    }

    /// Brings the backend near that [`Backends::choose`] will read.
    #[inline]
    pub fn prefetch_chosen(&self, scope: Scope, hash: u32) {
        let list = self.list();
        let place = self.choice(scope).pick(list.len(), hash);
        if let Some(backend) = place.and_then(|place| list.get(place)) {
            prefetch(backend);
        }
    }

    const fn choice(&self, scope: Scope) -> &Choice {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.local,
        }
    }

    /// The backend of that address and port, whatever it takes.
    #[must_use]
    pub fn find(&self, address: K, port: u16) -> Option<Backend<K>> {
        let key = (address, port);
        let list = self.list();
        let place = list.binary_search_by_key(&key, |b| (b.address, b.port)).ok()?;
        list.get(place).copied()
    }

    /// Does any backend of this family, on any node, take new flows of any scope? Then a packet for
    /// which [`Backends::choose`] finds none is dropped, else rejected.
    #[inline]
    #[must_use]
    pub const fn has_any(&self) -> bool {
        self.has_any
    }

    /// All backends, ascending by address and port.
    #[inline]
    #[must_use]
    pub fn list(&self) -> &[Backend<K>] {
        self.list.all()
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.list.bytes() + self.cluster.bytes() + self.local.bytes()
    }
}

impl Choice {
    fn new<K: BackendAddress>(
        list: &[(Backend<K>, u16)],
        scope: Scope,
        algorithm: Algorithm,
    ) -> Self {
        let usable = (0_u16..)
            .zip(list)
            .filter(|(_, (backend, weight))| backend.takes(scope) && *weight > 0)
            .map(|(index, (backend, weight))| {
                let identity = (backend.address.identity(), backend.port);
                Candidate { identity, weight: *weight, index }
            });
        let usable: Vec<Candidate> = usable.collect();
        if algorithm == Algorithm::Maglev {
            return Maglev::new(&usable).map_or(Self::Nothing, Self::Maglev);
        }
        let Some(first) = usable.first() else { return Self::Nothing };
        if usable.iter().any(|candidate| candidate.weight != first.weight) {
            let sums = usable.iter().scan(0, |sum, candidate| {
                *sum += u32::from(candidate.weight);
                Some((*sum, candidate.index))
            });
            return Self::Weighted(sums.collect());
        }
        if usable.len() == list.len() {
            return Self::All;
        }
        Self::Some(usable.iter().map(|candidate| candidate.index).collect())
    }

    /// A place in the list of all backends, of which there are `backends`.
    #[inline]
    fn pick(&self, backends: usize, hash: u32) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::All => Some(scale(hash, backends)),
            Self::Some(some) => some.get(scale(hash, some.len())).copied().map(usize::from),
            Self::Weighted(sums) => {
                let total = sums.last()?.0;
                let at = scale(hash, total as usize);
                let place = sums.partition_point(|(sum, _)| *sum as usize <= at);
                sums.get(place).map(|(_, index)| usize::from(*index))
            }
            Self::Maglev(table) => Some(usize::from(table.pick(hash))),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Nothing | Self::All => 0,
            Self::Some(some) => std::mem::size_of_val(&**some),
            Self::Weighted(sums) => std::mem::size_of_val(&**sums),
            Self::Maglev(table) => table.bytes(),
        }
    }
}

/// `hash`, of 32 bits, scaled to less than `size`.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product's high half is below the size")]
const fn scale(hash: u32, size: usize) -> usize {
    ((hash as u128 * size as u128) >> 32) as usize
}
