//! The backends of a service, of one family, and how one of them is chosen.
//!
//! What a new flow reads of it are two cache lines, in huge pages: a slot of a Maglev table and the backend. With
//! more than [`FEW`] backends, or another scope than usual, two more: how one is chosen, and where the list
//! stands.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;

use overlane_api::{Algorithm, Scope};

use super::maglev::{Candidate, Halves, Maglev};
use super::routes::Address;
use crate::packet::prefetch::prefetch;
use crate::packet::region::Shared;

/// A backend, as a packet needs it; its route is not looked up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// From the beginning of a line on, so that none is in two.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(align(64))]
struct Few<K>([Backend<K>; FEW]);

/// Backends of one family. Its first cache line says how one is chosen, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backends<K> {
    cluster: Choice,
    local: Choice,
    /// Backends that there are.
    count: u16,
    has_any: bool,
    /// All of them, when they are few: ascending by address and port. What is behind the last is nothing.
    few: Few<K>,
    /// All of them, when they are more.
    many: Box<[Backend<K>]>,
}

impl<K: Copy + Default> Default for Backends<K> {
    fn default() -> Self {
        let nothing = || Choice::Nothing;
        let (few, many) = (Few([Backend::default(); FEW]), Box::default());
        Self { cluster: nothing(), local: nothing(), count: 0, has_any: false, few, many }
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
        let mut all = Self { cluster, local, has_any, ..Self::default() };
        // There are at most as many as a number of 16 bits says.
        all.count = u16::try_from(list.len()).unwrap_or(u16::MAX);
        let list = list.into_iter().map(|(backend, _)| backend);
        if list.len() <= FEW {
            all.few.0.iter_mut().zip(list).for_each(|(place, backend)| *place = backend);
        } else {
            all.many = list.collect();
        }
        all
    }

    /// A backend for a new flow of `scope`; `hash` is well mixed. None: no backend takes one.
    #[inline]
    #[must_use]
    pub fn choose(&self, scope: Scope, hash: u32) -> Option<Backend<K>> {
        self.chosen(scope, hash).copied()
    }

    #[inline]
    fn chosen(&self, scope: Scope, hash: u32) -> Option<&Backend<K>> {
        let count = usize::from(self.count);
        let place = self.choice(scope).pick(count, hash)?;
        // Not by the list as a slice: nothing is to be read here but the backend itself.
        if count <= FEW { self.few.0.get(place) } else { self.many.get(place) }
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
        if usize::from(self.count) > FEW {
            prefetch(&raw const self.many);
        }
    }

    /// Brings the backend near that [`Backends::choose`] will read.
    #[inline]
    pub fn prefetch_chosen(&self, scope: Scope, hash: u32) {
        if let Some(backend) = self.chosen(scope, hash) {
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
        let count = usize::from(self.count);
        if count <= FEW { &self.few.0[..count] } else { &self.many }
    }

    /// Bytes of memory besides its own.
    #[must_use]
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.many) + self.cluster.bytes() + self.local.bytes()
    }
}

/// The backends of a service, and beside them how nearly all choices are made: so that a new flow
/// need not read how they are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread<K> {
    /// Of the scope [`Scope::Cluster`], if these are all that it takes and the backends are few.
    usual: Option<Halves>,
    all: Shared<Backends<K>>,
}

impl<K> Deref for Spread<K> {
    type Target = Shared<Backends<K>>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<K: BackendAddress> From<Shared<Backends<K>>> for Spread<K> {
    fn from(all: Shared<Backends<K>>) -> Self {
        let usual = match &all.cluster {
            Choice::Maglev(table) if usize::from(all.count) <= FEW => table.halves().cloned(),
            _ => None,
        };
        Self { usual, all }
    }
}

impl<K: BackendAddress> Spread<K> {
    #[inline(always)]
    fn usual(&self, scope: Scope) -> Option<&Halves> {
        self.usual.as_ref().filter(|_| scope == Scope::Cluster)
    }

    /// As [`Backends::choose`].
    #[inline(always)]
    #[must_use]
    pub fn choose(&self, scope: Scope, hash: u32) -> Option<Backend<K>> {
        match self.usual(scope) {
            Some(usual) => self.all.few.0.get(usual.pick(hash)).copied(),
            None => self.all.choose(scope, hash),
        }
    }

    /// Brings near what says which backend is chosen. Says whether it did; if not, it brings near what
    /// [`Spread::prefetch_late_choice`] will read, which is to be asked then.
    #[inline(always)]
    #[must_use]
    pub fn prefetch_choice(&self, scope: Scope, hash: u32) -> bool {
        let usual = self.usual(scope);
        match usual {
            Some(usual) => usual.ask_for(hash),
            None => self.all.prefetch(),
        }
        usual.is_some()
    }

    /// Brings near what says which backend is chosen, when that is not as usual.
    pub fn prefetch_late_choice(&self, scope: Scope, hash: u32) {
        if self.usual(scope).is_none() {
            self.all.prefetch_choice(scope, hash);
        }
    }

    /// Brings the backend near that [`Spread::choose`] will read.
    #[inline(always)]
    pub fn prefetch_chosen(&self, scope: Scope, hash: u32) {
        match self.usual(scope).and_then(|usual| self.all.few.0.get(usual.pick(hash))) {
            Some(backend) => prefetch(backend),
            None => self.all.prefetch_chosen(scope, hash),
        }
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
    #[inline(always)]
    fn pick(&self, backends: usize, hash: u32) -> Option<usize> {
        match self {
            Self::Maglev(table) => Some(usize::from(table.pick(hash))),
            other => other.pick_otherwise(backends, hash),
        }
    }

    #[inline(never)]
    fn pick_otherwise(&self, backends: usize, hash: u32) -> Option<usize> {
        match self {
            Self::Nothing | Self::Maglev(_) => None,
            Self::All => Some(scale(hash, backends)),
            Self::Some(some) => some.get(scale(hash, some.len())).copied().map(usize::from),
            Self::Weighted(sums) => {
                let total = sums.last()?.0;
                let at = scale(hash, total as usize);
                let place = sums.partition_point(|(sum, _)| *sum as usize <= at);
                sums.get(place).map(|(_, index)| usize::from(*index))
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn how_a_backend_is_chosen_is_one_cache_line_and_no_backend_is_in_two() {
        assert_eq!(align_of::<Backends<u32>>(), 64);
        assert!(
            offset_of!(Backends<u32>, has_any) < 64 && offset_of!(Backends<u128>, has_any) < 64
        );
        assert_eq!((offset_of!(Backends<u32>, few), offset_of!(Backends<u128>, few)), (64, 64));
        assert_eq!((size_of::<Backend<u32>>(), size_of::<Backend<u128>>()), (8, 32));
    }
}
