//! What flows cost: `cargo bench -p overlane-dataplane --bench flow [-- FLOWS]`.
//!
//! Times are of one thread, in nanoseconds; packets are looked up in vectors of 64, in random order, as
//! the stages do it. "p99" and the like are of single operations, the clock's own cost (about 25 ns)
//! included.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use overlane_api::{PortRange, WorkerId};
use overlane_dataplane::flow::half::Way;
use overlane_dataplane::flow::ports::{PortAllocator, Remote};
use overlane_dataplane::flow::random::Random;
use overlane_dataplane::flow::table::{FlowTable, FlowTable4, Opening, Probe};
use overlane_dataplane::flow::{FlowId, TICK_NS};
use overlane_dataplane::packet::blocks::BlockTable;
use overlane_dataplane::packet::flow_key::{Address, FlowHash, FlowKey};

const VECTOR: usize = 64;
const LOOKUPS: usize = 4 << 20;

/// An address of either family from a number.
trait Numbered: Address {
    fn numbered(number: u32) -> Self;
}

impl Numbered for u32 {
    fn numbered(number: u32) -> Self {
        0x0a00_0000 | number
    }
}

impl Numbered for u128 {
    fn numbered(number: u32) -> Self {
        0xfd12_3456 << 96 | u128::from(number)
    }
}

fn key<A: Numbered>(number: u32) -> FlowKey<A> {
    FlowKey {
        source: A::numbered(number % 250),
        destination: A::numbered(1 << 20 | number >> 16),
        source_port: (number & 0xffff) as u16,
        destination_port: 443,
        protocol: 6,
    }
}

fn opening<A: Numbered>(number: u32) -> Opening<A> {
    let key = key(number);
    let leaving_as = FlowKey { source: A::numbered(0x00ff_ffff), ..key };
    let way = Way::default();
    Opening { key, leaving_as, forward: way, reverse: way, adopted: false }
}

fn ns(start: Instant, operations: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / operations as f64
}

fn hashing<A: Numbered>(family: &str) {
    let hash = FlowHash::new(7);
    let mut at = key::<A>(1);
    let start = Instant::now();
    // Each key depends on the hash before: how long one takes, not how many can be on their way.
    for _ in 0..LOOKUPS {
        at.source_port = hash.of(&at) as u16;
    }
    black_box(at);
    let alone = ns(start, LOOKUPS);
    let keys: Vec<FlowKey<A>> = (0..4096).map(key).collect();
    let start = Instant::now();
    for key in keys.iter().cycle().take(LOOKUPS) {
        black_box(hash.of(key));
    }
    println!(
        "{family} hash: {:4.1} ns, {alone:4.1} ns when each waits for the one before",
        ns(start, LOOKUPS)
    );
}

fn flows<A: Numbered>(family: &str, count: u32) {
    let mut random = Random::new([1, 2]);
    let mut table = FlowTable::<A>::new(count, 3).unwrap();
    table.touch();
    let start = Instant::now();
    for number in 0..count {
        let opening = opening(number);
        let hash = table.hash(&opening.key);
        table.insert(hash, &opening, 1, &mut |_| ()).unwrap();
    }
    let insert = ns(start, count as usize);
    let packets: Vec<FlowKey<A>> = (0..LOOKUPS)
        .map(|_| {
            let opening = opening::<A>(random.below(count));
            if random.below(2) == 0 { opening.key } else { opening.leaving_as.reversed() }
        })
        .collect();
    let mut found = 0;
    let start = Instant::now();
    for vector in packets.as_chunks::<VECTOR>().0 {
        let mut hashes = [0; VECTOR];
        let mut probes = [Probe::default(); VECTOR];
        for (hash, key) in hashes.iter_mut().zip(vector) {
            *hash = table.hash(key);
            table.prefetch(*hash);
        }
        for (probe, hash) in probes.iter_mut().zip(&hashes) {
            *probe = table.probe(*hash);
        }
        for ((key, hash), probe) in vector.iter().zip(&hashes).zip(&probes) {
            if let Some(half) = table.confirm(*probe, *hash, key) {
                let half = table.half_mut(half);
                half.record(0x10, 1400, 2);
                black_box(half.rewrite());
                found += 1;
            }
        }
    }
    let hit = ns(start, LOOKUPS);
    assert_eq!(found, LOOKUPS);
    let start = Instant::now();
    for vector in packets.as_chunks::<VECTOR>().0 {
        let mut hashes = [0; VECTOR];
        for (hash, key) in hashes.iter_mut().zip(vector) {
            let other = FlowKey { destination_port: 80, ..*key };
            *hash = table.hash(&other);
            table.prefetch(*hash);
        }
        for hash in hashes {
            black_box(table.probe(hash));
        }
    }
    let miss = ns(start, LOOKUPS);
    let start = Instant::now();
    let before = table.evictions().unanswered_tcp;
    for number in count..count + count / 4 {
        let opening = opening(number);
        let hash = table.hash(&opening.key);
        // A few find none nearby that may go: those that were answered stay.
        let _ = table.insert(hash, &opening, 3, &mut |_| ());
    }
    let evict = ns(start, count as usize / 4);
    assert!(table.evictions().unanswered_tcp > before);
    let start = Instant::now();
    table.expire(3, u32::MAX, &mut |_| ());
    let scan = ns(start, count as usize);
    let start = Instant::now();
    let over = u32::try_from(8000 * 1_000_000_000_u64 / TICK_NS).unwrap();
    let gone = table.expire(over, u32::MAX, &mut |_| ());
    let expire = ns(start, count as usize);
    assert!(gone > count / 20);
    println!(
        "{family} {count:8} flows: hit {hit:6.1}  miss {miss:6.1}  insert {insert:6.1}, when full \
         {evict:6.1}  scan {scan:5.1}  expire {expire:6.1} ns; {} MiB, huge pages {}",
        table.bytes() >> 20,
        if table.huge_pages_accepted() { "accepted" } else { "refused" },
    );
}

/// Ports towards one remote, as the address fills up: what one allocation takes, the table's answers
/// included.
fn ports() {
    let mut random = Random::new([3, 4]);
    let blocks = Arc::new(BlockTable::new(PortRange::new(1024, 65535).unwrap()));
    let mut ports = PortAllocator::<u32>::new(WorkerId(0), [5, 6]).unwrap();
    let external = 0x0a00_0104;
    let pool = ports.add_address(external, &blocks);
    ports.claim(pool, 1008);
    let mut table = FlowTable4::new(1 << 20, 3).unwrap();
    table.touch();
    let remote = Remote { address: 0xcb00_710a, port: 443, protocol: 6 };
    let mut flows: Vec<FlowId> = Vec::new();
    let mut next = 0_u32;
    for permille in [0, 500, 900, 990, 999] {
        let target = 64_512 * permille / 1000;
        let mut times = Vec::new();
        // First up to the level, then one goes and one comes.
        while times.len() < 100_000 {
            if flows.len() > target {
                let place = random.below(flows.len() as u32) as usize;
                let removed = table.remove(flows.swap_remove(place)).unwrap();
                ports.forget(&removed, 1);
                continue;
            }
            let measured = flows.len() == target;
            let preferred = 32768 + (random.number() % 28232) as u16;
            let start = Instant::now();
            let port = ports
                .allocate(pool, &remote, preferred, 1, &mut |answer| {
                    table.find(table.hash(answer), answer).is_none()
                })
                .unwrap();
            if measured {
                times.push(start.elapsed().as_nanos() as u64);
            }
            let leaving_as = remote.answer(external, port).reversed();
            let key = FlowKey { source: next, ..leaving_as };
            next += 1;
            let way = Way::default();
            let opening = Opening { key, leaving_as, forward: way, reverse: way, adopted: false };
            flows.push(table.insert(table.hash(&key), &opening, 1, &mut |_| ()).unwrap());
        }
        times.sort_unstable();
        let at = |part: usize| times[times.len() * part / 1000 - 1];
        println!(
            "port, {:5.1} % taken: p50 {:5}  p99 {:5}  p99.9 {:6}  worst {:7} ns",
            permille as f64 / 10.0,
            at(500),
            at(990),
            at(999),
            at(1000)
        );
    }
    println!("tries: {:?}", ports.status(pool).unwrap().tries);
}

fn main() {
    let most = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1 << 20);
    hashing::<u32>("IPv4");
    hashing::<u128>("IPv6");
    for count in [1 << 10, 1 << 16, 1 << 20].into_iter().filter(|count| *count <= most) {
        flows::<u32>("IPv4", count);
        flows::<u128>("IPv6", count);
    }
    ports();
}
