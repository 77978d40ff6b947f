//! Ports of fragmented datagrams: the first fragment has them, the later ones are asked for them.
//!
//! Bounded: a datagram's place is one of eight, and when those are taken the one that would go first
//! goes at once. Who floods the map with first fragments costs other datagrams their later ones, and
//! nothing else.

use bytemuck::AnyBitPattern;
use overlane_api::WorkerId;

use crate::packet::flow_key::{Address, FlowHash, FlowKey};
use crate::packet::region::{Region, RegionError};

/// Places that a datagram may have.
const WAYS: usize = 8;
/// The same, to divide a `u32` by.
const WAYS_U32: u32 = 8;

/// What the fragments of a datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Number in the IP header; 0 for IPv6, whose later fragments do not know it.
    pub protocol: u8,
}

/// What the first fragment said, and was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FragmentPorts {
    /// Source port, as in the flow's key.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// What the packet carries.
    pub protocol: u8,
    /// The worker to which the fragment went on, because the packet's flow is there.
    pub home: Option<WorkerId>,
    /// Identification for the fragments of an IPv4 packet that leaves with an address of others as well
    /// (RFC 7857 section 10).
    pub new_id: u16,
}

#[derive(Debug, Clone, Copy, AnyBitPattern)]
#[repr(C)]
struct Entry<A> {
    source: A,
    destination: A,
    id: u32,
    /// Tick from which on it is forgotten; 0: no entry.
    until: u32,
    source_port: u16,
    destination_port: u16,
    new_id: u16,
    /// Of the key.
    protocol: u8,
    /// Of the packet.
    upper: u8,
    /// Number of the worker that it went on to, plus 1; 0: none.
    home: u8,
    /// See [`FragmentMap::note_length`].
    length: u16,
    /// Tick from which on that is not known.
    length_until: u32,
}

impl<A: Address> Entry<A> {
    fn is_for(&self, key: &FragmentKey<A>) -> bool {
        self.source == key.source
            && self.destination == key.destination
            && self.id == key.id
            && self.protocol == key.protocol
    }
}

/// The datagrams whose fragments are on their way.
#[derive(Debug)]
pub struct FragmentMap<A: Address> {
    entries: Region<Entry<A>>,
    /// Number of sets of [`WAYS`] entries, less one; a power of two less one.
    mask: u32,
    hash: FlowHash,
    displaced: u64,
}

impl<A: Address> FragmentMap<A> {
    /// A map for about `datagrams` (rounded up to a power of two). `seed` is to be random.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(datagrams: u32, seed: u64) -> Result<Self, RegionError> {
        let sets = (datagrams.min(1 << 24) / WAYS_U32).next_power_of_two();
        let entries = Region::new(sets as usize * WAYS)?;
        Ok(Self { entries, mask: sets - 1, hash: FlowHash::new(seed), displaced: 0 })
    }

    /// Takes the memory now.
    pub fn touch(&mut self) {
        self.entries.touch();
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// Datagrams that it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Datagrams in it at `now`. Looks at all.
    #[must_use]
    pub fn len(&self, now: u32) -> usize {
        self.entries.iter().filter(|entry| entry.until > now).count()
    }

    /// Is there none at `now`?
    #[must_use]
    pub fn is_empty(&self, now: u32) -> bool {
        self.len(now) == 0
    }

    /// Datagrams that were forgotten before their time, to make room.
    #[must_use]
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    fn set(&self, key: &FragmentKey<A>) -> usize {
        let [high, low] = [key.id >> 16, key.id & 0xffff];
        let key = FlowKey {
            source: key.source,
            destination: key.destination,
            source_port: u16::try_from(high).unwrap_or(0),
            destination_port: u16::try_from(low).unwrap_or(0),
            protocol: key.protocol,
        };
        (self.hash.of(&key) & self.mask) as usize * WAYS
    }

    /// Remembers what the first fragment said, for `timeout` ticks. One that comes again replaces it.
    pub fn insert(&mut self, key: &FragmentKey<A>, ports: FragmentPorts, now: u32, timeout: u32) {
        let set = self.set(key);
        let Some(entries) = self.entries.get_mut(set..).and_then(<[_]>::first_chunk_mut::<WAYS>)
        else {
            return;
        };
        // The datagram's own place, else one that is over, else the one that will be over first.
        let place = entries.iter_mut().min_by_key(|entry| {
            if entry.is_for(key) && entry.until > 0 { 0 } else { entry.until + 1 }
        });
        let Some(place) = place else { return };
        // A last fragment that came before this one, by the ports of another datagram with its name.
        let (length, length_until) =
            if place.is_for(key) { (place.length, place.length_until) } else { (0, 0) };
        if place.until > now && !place.is_for(key) {
            self.displaced += 1;
        }
        *place = Entry {
            source: key.source,
            destination: key.destination,
            id: key.id,
            until: now.saturating_add(timeout).clamp(1, u32::MAX - 1),
            source_port: ports.source_port,
            destination_port: ports.destination_port,
            new_id: ports.new_id,
            protocol: key.protocol,
            upper: ports.protocol,
            home: ports.home.map_or(0, |home| home.0.saturating_add(1)),
            length,
            length_until,
        };
    }

    /// Notes how many bytes the fragments of a datagram carry together, which the last one says: for `timeout`
    /// ticks.
    pub fn note_length(&mut self, key: &FragmentKey<A>, length: u16, now: u32, timeout: u32) {
        if self.entry(key, now).is_none() {
            self.insert(key, FragmentPorts::default(), now, timeout);
        }
        if let Some(entry) = self.entry(key, now) {
            (entry.length, entry.length_until) = (length, now.saturating_add(timeout));
        }
    }

    /// What was noted, once: the next datagram with this name has another length, perhaps.
    pub fn take_length(&mut self, key: &FragmentKey<A>, now: u32) -> Option<u16> {
        let entry = self.entry(key, now)?;
        let until = std::mem::take(&mut entry.length_until);
        (until > now).then_some(entry.length)
    }

    fn entry(&mut self, key: &FragmentKey<A>, now: u32) -> Option<&mut Entry<A>> {
        let set = self.set(key);
        let entries = self.entries.get_mut(set..)?.first_chunk_mut::<WAYS>()?;
        entries.iter_mut().find(|entry| entry.until > now && entry.is_for(key))
    }

    /// What the first fragment said; none when it has not come, or too long ago.
    #[must_use]
    pub fn find(&self, key: &FragmentKey<A>, now: u32) -> Option<FragmentPorts> {
        let entries = self.entries.get(self.set(key)..)?.first_chunk::<WAYS>()?;
        let found = entries.iter().find(|entry| entry.until > now && entry.is_for(key))?;
        Some(FragmentPorts {
            source_port: found.source_port,
            destination_port: found.destination_port,
            protocol: found.upper,
            home: found.home.checked_sub(1).map(WorkerId),
            new_id: found.new_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TIMEOUT: u32 = 30;

    fn key(number: u32) -> FragmentKey<u32> {
        FragmentKey { source: number % 3, destination: 9, id: number / 3, protocol: 17 }
    }

    fn ports(number: u32) -> FragmentPorts {
        let port = u16::try_from(number % 65536).unwrap();
        let home =
            (!number.is_multiple_of(3)).then_some(WorkerId(u8::try_from(number % 3).unwrap()));
        FragmentPorts {
            source_port: port,
            destination_port: !port,
            protocol: 17,
            home,
            new_id: !port,
        }
    }

    #[test]
    fn later_fragments_learn_the_ports_for_a_while() {
        let mut map = FragmentMap::new(64, 1).unwrap();
        assert_eq!(map.find(&key(1), 5), None);
        map.insert(&key(1), ports(7), 5, TIMEOUT);
        assert_eq!(map.find(&key(1), 5), Some(ports(7)));
        assert_eq!(map.find(&key(1), 34), Some(ports(7)));
        assert_eq!((map.find(&key(1), 35), map.len(34), map.len(35)), (None, 1, 0));
        for other in [
            FragmentKey { source: 4, ..key(1) },
            FragmentKey { destination: 4, ..key(1) },
            FragmentKey { id: 4, ..key(1) },
            FragmentKey { id: key(1).id | 1 << 16, ..key(1) },
            FragmentKey { protocol: 6, ..key(1) },
        ] {
            assert_eq!(map.find(&other, 5), None);
        }
        map.insert(&key(1), ports(8), 6, TIMEOUT);
        assert_eq!((map.find(&key(1), 35), map.len(6)), (Some(ports(8)), 1));
    }

    #[test]
    fn a_flood_takes_no_more_than_the_map() {
        let mut map = FragmentMap::new(1024, 1).unwrap();
        assert_eq!(map.capacity(), 1024);
        for number in 0..100_000 {
            map.insert(&key(number), ports(number), number / 100, TIMEOUT);
        }
        assert!(map.len(999) > 1000);
        assert!(map.displaced() > 90_000);
        // The latest are still there: older ones made room.
        assert!((99_900..100_000).all(|n| map.find(&key(n), 999) == Some(ports(n))));
    }

    #[test]
    fn the_length_is_told_once_and_not_of_the_datagram_before() {
        let mut map = FragmentMap::new(64, 1).unwrap();
        map.insert(&key(1), ports(7), 5, TIMEOUT);
        assert_eq!(map.take_length(&key(1), 5), None);
        map.note_length(&key(1), 3000, 6, 2);
        assert_eq!(map.find(&key(1), 34), Some(ports(7)), "as long as it would be");
        assert_eq!(map.take_length(&key(1), 7), Some(3000));
        assert_eq!(map.take_length(&key(1), 7), None);
        map.note_length(&key(1), 2000, 8, 2);
        map.insert(&key(1), ports(8), 9, TIMEOUT);
        assert_eq!(map.take_length(&key(1), 9), Some(2000), "the last came before the first");
        map.note_length(&key(1), 1000, 9, 2);
        map.insert(&key(1), ports(9), 11, TIMEOUT);
        assert_eq!(map.take_length(&key(1), 11), None, "another with the same name");
        // The last one alone.
        map.note_length(&key(2), 1000, 10, 2);
        assert_eq!(map.take_length(&key(2), 12), None, "too late");
        map.note_length(&key(2), 1000, 20, 2);
        assert_eq!(map.take_length(&key(2), 21), Some(1000));
    }

    #[test]
    fn ipv6_is_remembered_too() {
        let mut map = FragmentMap::<u128>::new(64, 1).unwrap();
        let key = FragmentKey { source: 1 << 100, destination: 2, id: 0xdead_beef, protocol: 17 };
        map.insert(&key, ports(3), 1, TIMEOUT);
        assert_eq!(map.find(&key, 2), Some(ports(3)));
        assert_eq!(map.find(&FragmentKey { id: 0xbeef, ..key }, 2), None);
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_said(
            steps in prop::collection::vec((0..60_u32, any::<u32>(), 0..4_u32, any::<bool>()), 0..400),
            size in 0..100_u32,
        ) {
            let mut map = FragmentMap::new(size, 3).unwrap();
            let mut model: HashMap<u32, (FragmentPorts, u32)> = HashMap::new();
            let mut now = 0;
            for (number, value, wait, insert) in steps {
                now += wait;
                if insert {
                    map.insert(&key(number), ports(value), now, TIMEOUT);
                    model.insert(number, (ports(value), now + TIMEOUT));
                }
                let live = model.get(&number).filter(|(_, until)| *until > now);
                let found = map.find(&key(number), now);
                // Something may have made room; nothing may be made up.
                prop_assert!(found.is_none() || found == live.map(|(ports, _)| *ports));
                prop_assert!(map.displaced() > 0 || found == live.map(|(ports, _)| *ports));
                prop_assert!(!insert || found.is_some());
            }
        }
    }
}
