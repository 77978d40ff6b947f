use super::*;
use crate::flow::FlowId;
use crate::flow::half::Way;
use crate::flow::table::{FlowTable4, Opening};
use overlane_api::PortRange;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const EXTERNAL: u32 = 0x0a00_0104;
const REMOTE: Remote<u32> = Remote { address: 0xcb00_710a, port: 443, protocol: 6 };
const WORKER: WorkerId = WorkerId(0);

fn blocks(first: u16, last: u16) -> Arc<BlockTable> {
    Arc::new(BlockTable::new(PortRange::new(first, last).unwrap()))
}

fn allocator(blocks: &Arc<BlockTable>) -> (PortAllocator<u32>, PoolId) {
    let mut ports = PortAllocator::new(WORKER, [1, 2]).unwrap();
    let pool = ports.add_address(EXTERNAL, blocks);
    (ports, pool)
}

/// Allocates against a set of bindings, and adds to it.
fn allocate(
    ports: &mut PortAllocator<u32>,
    pool: PoolId,
    remote: &Remote<u32>,
    preferred: u16,
    taken: &mut HashSet<FlowKey<u32>>,
) -> Result<u16, AllocateError> {
    let port = ports.allocate(pool, remote, preferred, 0, &mut |answer| !taken.contains(answer))?;
    assert!(taken.insert(remote.answer(EXTERNAL, port)), "port {port} was taken");
    Ok(port)
}

#[test]
fn a_pods_own_port_is_kept_when_it_is_owned_and_free() {
    let blocks = blocks(10240, 29999);
    let (mut ports, pool) = allocator(&blocks);
    assert_eq!(ports.claim(pool, 1000), 309);
    let mut taken = HashSet::new();
    assert_eq!(allocate(&mut ports, pool, &REMOTE, 20000, &mut taken), Ok(20000));
    // Towards another remote it is free still, towards this one it is not.
    let other = Remote { port: 80, ..REMOTE };
    assert_eq!(allocate(&mut ports, pool, &other, 20000, &mut taken), Ok(20000));
    assert_ne!(allocate(&mut ports, pool, &REMOTE, 20000, &mut taken), Ok(20000));
    // Another protocol is another remote.
    let udp = Remote { protocol: 17, ..REMOTE };
    assert_eq!(allocate(&mut ports, pool, &udp, 20000, &mut taken), Ok(20000));
    // Not in the range, at its edge, not to be given at all.
    for preferred in [40000, 30000, 10239, 80, 0] {
        let port = allocate(&mut ports, pool, &REMOTE, preferred, &mut taken).unwrap();
        assert!((10240..=29999).contains(&port));
    }
    assert_eq!(ports.status(pool).unwrap().bindings, 9);
    assert_eq!(ports.status(pool).unwrap().owned, 19760);
}

#[test]
fn ports_are_foreseen_as_they_will_be_given() {
    let blocks = blocks(10240, 29999);
    let (mut ports, pool) = allocator(&blocks);
    assert_eq!(ports.claim(pool, 1000), 309);
    let preferred = [80, 20000, 443, 1, 25000, 40000];
    let mut ahead = Foreseen::default();
    let foreseen = preferred.map(|port| ports.foresee(EXTERNAL, port, &mut ahead));
    let mut taken = HashSet::new();
    let given = preferred.map(|port| allocate(&mut ports, pool, &REMOTE, port, &mut taken).ok());
    assert_eq!(foreseen, given);
    assert_eq!(ports.foresee(EXTERNAL + 1, 80, &mut Foreseen::default()), None);
}

#[test]
fn ports_below_1024_are_never_given() {
    let blocks = blocks(1, 1100);
    let (mut ports, pool) = allocator(&blocks);
    let mut taken = HashSet::new();
    for _ in 1024..=1100 {
        assert!(allocate(&mut ports, pool, &REMOTE, 80, &mut taken).unwrap() >= 1024);
    }
    let last = allocate(&mut ports, pool, &REMOTE, 80, &mut taken);
    assert_eq!(last, Err(AllocateError::Exhausted));
}

#[test]
fn a_worker_without_blocks_claims_some_and_another_gets_the_rest() {
    let blocks = blocks(10240, 10240 + 64 * 10 - 1);
    let (mut one, pool) = allocator(&blocks);
    let mut two = PortAllocator::new(WorkerId(1), [3, 4]).unwrap();
    assert_eq!(two.add_address(EXTERNAL, &blocks), pool);
    // One table in place of the two that the workers have.
    let mut taken = HashSet::new();
    for _ in 0..250 {
        for (ports, worker) in [(&mut one, WorkerId(0)), (&mut two, WorkerId(1))] {
            let port = allocate(ports, pool, &REMOTE, 0, &mut taken).unwrap();
            assert_eq!(blocks.owner(port), Some(worker));
        }
    }
    while allocate(&mut one, pool, &REMOTE, 0, &mut taken).is_ok() {}
    while allocate(&mut two, pool, &REMOTE, 0, &mut taken).is_ok() {}
    assert_eq!(taken.len(), 640);
    assert_eq!(blocks.free(), 0);
}

#[test]
fn every_port_of_an_address_goes_to_one_destination() {
    // 64512 flows through a real flow table; the next one is refused, and fast.
    let blocks = blocks(1024, 65535);
    let (mut ports, pool) = allocator(&blocks);
    ports.claim(pool, 1008);
    let mut table = FlowTable4::new(70_000, 1).unwrap();
    let mut flows = Vec::new();
    for n in 0..64_512_u32 {
        // 253 pods, whose own ports are all between 32768 and 33023.
        let preferred = 32768 + u16::try_from(n % 255).unwrap();
        let port = ports
            .allocate(pool, &REMOTE, preferred, 0, &mut |answer| {
                table.find(table.hash(answer), answer).is_none()
            })
            .unwrap();
        let leaving_as = REMOTE.answer(EXTERNAL, port).reversed();
        let key = FlowKey { source: 0x0af4_0100 + n / 255, source_port: preferred, ..leaving_as };
        let way = Way::default();
        let opening = Opening { key, leaving_as, forward: way, reverse: way, adopted: false };
        let hash = table.hash(&key);
        flows.push(table.insert(hash, &opening, 0, &mut |gone| panic!("{gone:?}")).unwrap());
    }
    let next = |ports: &mut PortAllocator<u32>, table: &FlowTable4| {
        ports.allocate(pool, &REMOTE, 40000, 1, &mut |answer| {
            table.find(table.hash(answer), answer).is_none()
        })
    };
    assert_eq!(next(&mut ports, &table), Err(AllocateError::Exhausted));
    let status = ports.status(pool).unwrap();
    assert_eq!((status.owned, status.bindings, status.exhausted), (64_512, 64_512, 1));
    // Hardly a flow took more than 16 tries.
    let many: u64 = status.tries[5..].iter().sum();
    assert!(many < 200, "{:?}", status.tries);
    // Any port that ends is found again.
    for flow in [7, 64_000, 31_000].map(|n: usize| flows[n]) {
        let removed = table.remove(flow).unwrap();
        ports.forget(&removed, 1);
        let port = next(&mut ports, &table).unwrap();
        assert_eq!(port, removed.reverse.key().destination_port);
        let leaving_as = removed.forward.leaving_as();
        let key = FlowKey { source: 1, ..removed.forward.key() };
        let way = Way::default();
        let opening = Opening { key, leaving_as, forward: way, reverse: way, adopted: false };
        table.insert(table.hash(&key), &opening, 1, &mut |gone| panic!("{gone:?}")).unwrap();
    }
    assert_eq!(next(&mut ports, &table), Err(AllocateError::Exhausted));
    // Other destinations are not concerned.
    let other = Remote { address: 1, ..REMOTE };
    assert_eq!(ports.allocate(pool, &other, 40000, 1, &mut |_| true), Ok(40000));
    assert_eq!(ports.busiest().map(|(_, remote, _)| remote).collect::<Vec<_>>(), [REMOTE]);
    assert_eq!(table.state(FlowId(1)), Some(FlowState::Syn));
}

#[test]
fn a_remote_that_was_full_before_anything_was_known_is_searched_to_the_end() {
    let blocks = blocks(1024, 65535);
    let (mut ports, pool) = allocator(&blocks);
    ports.claim(pool, 1008);
    let only = 44_444;
    let mut tries = 0_u32;
    let mut refused = 0;
    let found = loop {
        let mut is_free = |answer: &FlowKey<u32>| {
            tries += 1;
            answer.destination_port == only
        };
        match ports.allocate(pool, &REMOTE, 0, 0, &mut is_free) {
            Ok(port) => break port,
            Err(_) => refused += 1,
        }
        // No flow waits for a search of everything.
        assert!(tries <= (refused + 1) * (MOST + AUDIT));
        assert!(refused < 100);
    };
    assert_eq!(found, only);
}

#[test]
fn a_port_that_nobody_gave_back_is_found_by_and_by() {
    let blocks = blocks(1024, 1024 + 127);
    let (mut ports, pool) = allocator(&blocks);
    let mut taken = HashSet::new();
    while allocate(&mut ports, pool, &REMOTE, 0, &mut taken).is_ok() {}
    taken.remove(&REMOTE.answer(EXTERNAL, 1100));
    let found = (0..20).find_map(|_| allocate(&mut ports, pool, &REMOTE, 0, &mut taken).ok());
    assert_eq!(found, Some(1100));
}

#[test]
fn ports_cool_down_after_a_connection() {
    let blocks = blocks(1024, 1024 + 63);
    let (mut ports, pool) = allocator(&blocks);
    ports.claim(pool, 1);
    for (ending, seconds) in [(Ending::Fin, 65), (Ending::Rst, 16), (Ending::Quiet, 0)] {
        let answer = REMOTE.answer(EXTERNAL, 1030);
        let all = |_: &FlowKey<u32>| true;
        assert_eq!(ports.allocate(pool, &REMOTE, 1030, 0, &mut { all }), Ok(1030));
        // Counted from the connection's end, not from when the flow went.
        ports.release(&answer, ending, 100, 110);
        let over = 100 + ticks(seconds);
        if seconds > 0 {
            assert_eq!(ports.cooling(), 1);
            assert_eq!(ports.give_back(pool, 0), 0, "a cooling port's block goes to nobody");
            let port = ports.allocate(pool, &REMOTE, 1030, over - 1, &mut { all }).unwrap();
            assert_ne!(port, 1030);
            ports.release(&REMOTE.answer(EXTERNAL, port), Ending::Quiet, 0, over - 1);
            // Another remote does not wait.
            let other = Remote { port: 80, ..REMOTE };
            assert_eq!(ports.allocate(pool, &other, 1030, over - 1, &mut { all }), Ok(1030));
            ports.release(&other.answer(EXTERNAL, 1030), Ending::Quiet, 0, over - 1);
        }
        assert_eq!(ports.allocate(pool, &REMOTE, 1030, over.max(110), &mut { all }), Ok(1030));
        ports.release(&answer, Ending::Quiet, 0, 110);
        assert_eq!((ports.cooling(), ports.status(pool).unwrap().bindings), (0, 0));
        // Ended so long ago that there is nothing to wait for.
        ports.release(&answer, ending, 100, over.max(110));
        assert_eq!(ports.cooling(), 0);
    }
    assert_eq!(ports.give_back(pool, 0), 1);
    assert_eq!((blocks.free(), ports.status(pool).unwrap().owned), (1, 0));
}

#[test]
fn unused_blocks_are_given_back_and_used_ones_kept() {
    let blocks = blocks(1024, 1024 + 64 * 8 - 1);
    let (mut ports, pool) = allocator(&blocks);
    assert_eq!(ports.claim(pool, 8), 8);
    let mut taken = HashSet::new();
    allocate(&mut ports, pool, &REMOTE, 1024 + 64 * 3 + 5, &mut taken).unwrap();
    assert_eq!(ports.give_back(pool, 4), 4);
    assert_eq!((blocks.free(), blocks.owned_by(WORKER).count()), (4, 4));
    ports.retire_address(pool);
    assert_eq!((ports.give_back(pool, 4), ports.pool(EXTERNAL)), (3, None));
    assert_eq!(blocks.owner(1024 + 64 * 3), Some(WORKER));
    let refused = ports.allocate(pool, &REMOTE, 0, 0, &mut |_| true);
    assert_eq!(refused, Err(AllocateError::NoAddress));
    ports.release(&REMOTE.answer(EXTERNAL, 1024 + 64 * 3 + 5), Ending::Quiet, 0, 0);
    assert_eq!((ports.give_back(pool, 4), blocks.free()), (1, 8));
    assert_eq!(ports.add_address(EXTERNAL, &blocks), pool);
    assert!(ports.allocate(pool, &REMOTE, 0, 0, &mut |_| true).is_ok());
}

#[test]
fn workers_keep_their_share_and_give_back_what_they_needed() {
    // 64 blocks for two workers: 16 for each, 32 for who needs them.
    let blocks = blocks(1024, 1024 + 64 * 64 - 1);
    let (mut busy, pool) = allocator(&blocks);
    let mut idle = PortAllocator::new(WorkerId(1), [3, 4]).unwrap();
    idle.add_address(EXTERNAL, &blocks);
    let count = |worker| blocks.owned_by(WorkerId(worker)).count();
    for ports in [&mut busy, &mut idle] {
        ports.maintain(0);
        ports.set_workers(2);
        ports.maintain(ticks(1) - 1);
    }
    assert_eq!((count(0), count(1)), (4, 4), "not twice in a second");
    busy.maintain(100);
    idle.maintain(100);
    assert_eq!((count(0), count(1)), (16, 16));
    let mut taken = HashSet::new();
    while allocate(&mut busy, pool, &REMOTE, 0, &mut taken).is_ok() {}
    assert_eq!((count(0), count(1), taken.len()), (48, 16, 48 * 64));
    busy.maintain(200);
    assert_eq!((count(0), count(1)), (48, 16), "its flows go on");
    for answer in taken.drain() {
        busy.release(&answer, Ending::Fin, 200, 200);
    }
    busy.maintain(300);
    assert_eq!(count(0), 48, "they cool down");
    for second in 0..20 {
        busy.maintain(200 + ticks(65 + second));
    }
    assert_eq!((count(0), count(1), busy.cooling()), (16, 16, 0));
    // The last worker there is has all.
    busy.retire_address(pool);
    busy.maintain(10_000);
    idle.set_workers(1);
    idle.maintain(10_000);
    assert_eq!((count(0), count(1)), (0, 64));
}

#[test]
fn an_address_with_another_range_gives_ports_of_that_one() {
    let (before, after) = (blocks(1024, 2047), blocks(20480, 20543));
    let (mut ports, pool) = allocator(&before);
    let mut taken = HashSet::new();
    for _ in 0..1000 {
        allocate(&mut ports, pool, &REMOTE, 0, &mut taken).unwrap();
    }
    assert_eq!(ports.add_address(EXTERNAL, &after), pool);
    assert_eq!(before.free(), 16);
    for _ in 0..64 {
        assert!(allocate(&mut ports, pool, &REMOTE, 0, &mut taken).unwrap() >= 20480);
    }
    assert!(allocate(&mut ports, pool, &REMOTE, 0, &mut taken).is_err());
    // Flows of the old range end without harm.
    for answer in taken.clone() {
        ports.release(&answer, Ending::Quiet, 0, 0);
    }
    assert_eq!(ports.status(pool).unwrap().bindings, 0);
}

#[test]
fn ports_cannot_be_foretold_from_one_worker_to_another() {
    let blocks = blocks(1024, 65535);
    let given = |key| {
        let mut ports = PortAllocator::<u32>::new(WORKER, key).unwrap();
        let table = Arc::new(BlockTable::new(blocks.range()));
        let pool = ports.add_address(EXTERNAL, &table);
        ports.claim(pool, 1008);
        (0..100)
            .map(|_| ports.allocate(pool, &REMOTE, 0, 0, &mut |_| true).unwrap())
            .collect::<Vec<_>>()
    };
    let (one, two) = (given([1, 2]), given([1, 3]));
    assert_eq!(one, given([1, 2]));
    assert!(one.iter().zip(&two).filter(|(a, b)| a == b).count() < 5);
    let distinct: HashSet<_> = one.iter().collect();
    assert!(distinct.len() > 95);
    // Neither are they near each other.
    assert!(one.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count() < 5);
}

#[derive(Debug, Clone)]
enum Step {
    /// To a remote, with a preferred port.
    Allocate(u16, u16),
    /// The n-th binding there is.
    Release(usize, Ending),
    Wait(u32),
    GiveBack(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![Just(Ending::Fin), Just(Ending::Rst), Just(Ending::Quiet)];
    let step = prop_oneof![
        8 => (0..3_u16, prop_oneof![Just(0_u16), 1020..1300_u16])
            .prop_map(|(remote, preferred)| Step::Allocate(remote, preferred)),
        3 => (any::<prop::sample::Index>(), ending)
            .prop_map(|(n, ending)| Step::Release(n.index(1 << 16), ending)),
        1 => (0..400_u32).prop_map(Step::Wait),
        1 => (0..4_usize).prop_map(Step::GiveBack),
    ];
    prop::collection::vec(step, 0..400)
}

/// All bindings, and until when ended ones cool down at least and at most.
struct Model {
    live: Vec<FlowKey<u32>>,
    cooling: HashMap<FlowKey<u32>, (u32, u32)>,
}

fn agrees(steps: &[Step], last: u16) {
    let blocks = blocks(1024, last);
    let (mut ports, pool) = allocator(&blocks);
    let mut model = Model { live: Vec::new(), cooling: HashMap::new() };
    let mut now = 0;
    for step in steps {
        match *step {
            Step::Allocate(remote, preferred) => {
                let remote = Remote { port: 443 + remote, ..REMOTE };
                let live: HashSet<_> = model.live.iter().copied().collect();
                let is_free = &mut |answer: &FlowKey<u32>| !live.contains(answer);
                let cools = |answer: &FlowKey<u32>, latest: bool| {
                    model
                        .cooling
                        .get(answer)
                        .is_some_and(|(least, most)| now < if latest { *most } else { *least })
                };
                match ports.allocate(pool, &remote, preferred, now, is_free) {
                    Ok(port) => {
                        let answer = remote.answer(EXTERNAL, port);
                        assert!((1024..=last).contains(&port));
                        assert_eq!(blocks.owner(port), Some(WORKER));
                        assert!(!live.contains(&answer) && !cools(&answer, false));
                        model.live.push(answer);
                    }
                    Err(_) => {
                        // Every port is taken or may be cooling.
                        let free = (1024..=last)
                            .map(|port| remote.answer(EXTERNAL, port))
                            .find(|answer| !live.contains(answer) && !cools(answer, true));
                        assert_eq!(free, None);
                    }
                }
            }
            Step::Release(n, ending) => {
                if model.live.is_empty() {
                    continue;
                }
                let answer = model.live.swap_remove(n % model.live.len());
                let ended = now.saturating_sub(u32::try_from(n % 50).unwrap());
                ports.release(&answer, ending, ended, now);
                let seconds = match ending {
                    Ending::Fin => 65,
                    Ending::Rst => 16,
                    Ending::Quiet => 0,
                };
                // It may wait for one before it in the queue, which began no later than now; and a few
                // are let go at each allocation only.
                let most = if seconds == 0 { 0 } else { u32::MAX };
                model.cooling.insert(answer, (ended + ticks(seconds), most));
                if seconds == 0 {
                    model.cooling.remove(&answer);
                }
            }
            Step::Wait(ticks) => {
                now += ticks;
                ports.cool(now, u32::MAX);
                let over = |until: u32| until <= now;
                // All that ended long enough ago is done by now.
                let longest = self::ticks(65);
                model.cooling.retain(|_, (least, _)| !over(*least + longest));
            }
            Step::GiveBack(keep) => {
                ports.give_back(pool, keep);
            }
        }
        let status = ports.status(pool).unwrap();
        assert_eq!(status.bindings, model.live.len() as u64);
        let owned: u32 =
            blocks.owned_by(WORKER).map(|block| block.usable(blocks.range()).count_ones()).sum();
        assert_eq!(status.owned, owned);
        for answer in &model.live {
            assert_eq!(blocks.owner(answer.destination_port), Some(WORKER));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn it_agrees_with_a_plain_set(steps in steps()) {
        // One block and a bit; three blocks, more than a remote takes.
        agrees(&steps, 1024 + 70);
        agrees(&steps, 1024 + 64 * 3 - 1);
    }
}
