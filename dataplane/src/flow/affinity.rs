//! Session affinity: the backend that a client's last flow to a service went to.
//!
//! Only for clients of this node, all of whose flows one worker opens. For clients from outside,
//! whose flows come to any worker of any node, nothing is remembered: they are hashed by their
//! address, and so all workers of all nodes choose alike.
//!
//! Bounded: a client's place for a service is one of eight, and when those are taken the one that was
//! idle the longest goes. A client that is forgotten is spread anew; nothing is dropped for it.

use bytemuck::AnyBitPattern;

use super::TICK_NS;
use crate::packet::flow_key::{Address, FlowHash, FlowKey};
use crate::packet::region::{Region, RegionError};

/// Places that a client may have for a service.
const WAYS: usize = 8;

/// Sets of places. A node has some hundred pods, and few services want affinity.
const SETS: u32 = 2048;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, AnyBitPattern)]
#[repr(C)]
struct Entry<A> {
    client: A,
    backend: A,
    /// Index of the service plus 1; 0: no entry.
    service: u32,
    /// Tick at which the client's last flow began.
    last: u32,
    port: u16,
}

impl<A: Address> Entry<A> {
    fn is_for(&self, client: A, service: u32) -> bool {
        self.client == client && self.service == service.wrapping_add(1)
    }
}

/// The clients of a family.
#[derive(Debug)]
pub struct AffinityTable<A: Address> {
    entries: Region<Entry<A>>,
    hash: FlowHash,
}

impl<A: Address> AffinityTable<A> {
    /// An empty table; its memory is taken as clients come. `seed` is to be random.
    ///
    /// # Errors
    /// When there is no address space for it.
    pub fn new(seed: u64) -> Result<Self, RegionError> {
        Ok(Self { entries: Region::new(SETS as usize * WAYS)?, hash: FlowHash::new(seed) })
    }

    /// Clients times services that it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    fn set(&self, client: A, service: u32) -> usize {
        let [a, b, c, d] = service.to_be_bytes();
        let key = FlowKey {
            source: client,
            destination: A::default(),
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            protocol: 0,
        };
        (self.hash.of(&key) & (SETS - 1)) as usize * WAYS
    }

    /// Backend and port (host order) of the last flow of `client` to the service of index `service`,
    /// if that began at most `seconds` before tick `now`.
    #[must_use]
    pub fn find(&self, client: A, service: u32, seconds: u32, now: u32) -> Option<(A, u16)> {
        let entries = self.entries.get(self.set(client, service)..)?.first_chunk::<WAYS>()?;
        let found = entries.iter().find(|entry| entry.is_for(client, service))?;
        let age = u64::from(now.saturating_sub(found.last)) * TICK_NS;
        (age <= u64::from(seconds) * SECOND).then_some((found.backend, found.port))
    }

    /// Notes that a flow of `client` to the service of index `service` began at tick `now` and goes to
    /// `backend`, whose port is in host order.
    pub fn note(&mut self, client: A, service: u32, backend: (A, u16), now: u32) {
        let set = self.set(client, service);
        let Some(entries) = self.entries.get_mut(set..).and_then(<[_]>::first_chunk_mut::<WAYS>)
        else {
            return;
        };
        let place = entries.iter_mut().min_by_key(|entry| {
            let own = entry.is_for(client, service);
            (!own, entry.service != 0, entry.last)
        });
        let Some(place) = place else { return };
        let (backend, port) = backend;
        *place = Entry { client, backend, service: service.wrapping_add(1), last: now, port };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(seconds: u64) -> u32 {
        u32::try_from(seconds * SECOND / TICK_NS).unwrap()
    }

    #[test]
    fn a_client_keeps_its_backend_for_the_time() {
        let mut table = AffinityTable::<u32>::new(1).unwrap();
        assert_eq!(table.find(7, 0, 10, 0), None);
        table.note(7, 0, (99, 80), ticks(100));
        assert_eq!(table.find(7, 0, 10, ticks(109)), Some((99, 80)));
        assert_eq!(table.find(7, 0, 10, ticks(111)), None);
        assert_eq!(table.find(7, 0, 20, ticks(111)), Some((99, 80)), "the service may change");
        for (client, service) in [(8, 0), (7, 1), (7, u32::MAX - 1)] {
            assert_eq!(table.find(client, service, 10, ticks(101)), None);
        }
        table.note(7, 0, (98, 81), ticks(111));
        assert_eq!(table.find(7, 0, 10, ticks(120)), Some((98, 81)));
        table.note(7, 1, (97, 82), ticks(111));
        assert_eq!(table.find(7, 0, 10, ticks(120)), Some((98, 81)));
        assert_eq!(table.find(7, 1, 10, ticks(120)), Some((97, 82)));
    }

    #[test]
    fn a_flood_of_clients_takes_no_more_than_the_table_and_the_latest_stay() {
        let mut table = AffinityTable::<u128>::new(1).unwrap();
        for client in 0..200_000_u128 {
            table.note(client << 64, 5, (client, 80), u32::try_from(client / 10).unwrap());
        }
        let found = |client: u128| table.find(client << 64, 5, 86_400, 20_000);
        let known = (0..200_000).filter(|client| found(*client).is_some()).count();
        assert!(known > table.capacity() * 9 / 10 && known <= table.capacity(), "{known}");
        assert!((199_900..200_000).all(|client| found(client) == Some((client, 80))));
    }
}
