use super::*;
use crate::flow::timeouts::ticks;
use crate::packet::flow_key::{FlowKey4, FlowKey6};
use crate::packet::meta::{Route, Target};
use std::collections::HashMap;

pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
pub(super) const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

const POD: u32 = 0x0af4_010a;
const NODE: u32 = 0x0a00_0104;
const REMOTE: u32 = 0xcb00_710a;

pub(super) fn key(protocol: u8, source_port: u16) -> FlowKey4 {
    FlowKey { source: POD, destination: REMOTE, source_port, destination_port: 443, protocol }
}

/// A flow whose source is translated.
pub(super) fn opening(protocol: u8, source_port: u16, external_port: u16) -> Opening<u32> {
    let key = key(protocol, source_port);
    Opening {
        key,
        leaving_as: FlowKey { source: NODE, source_port: external_port, ..key },
        forward: Way { route: Route::new(Target::Underlay(1)), generation: 1, tag: 2, marks: 3 },
        reverse: Way { route: Route::new(Target::Endpoint(4)), generation: 1, tag: 5, marks: 6 },
        adopted: false,
    }
}

fn no_one(removed: &Removed<u32>) {
    panic!("nobody was to go: {removed:?}");
}

fn install(table: &mut FlowTable4, opening: &Opening<u32>, now: u32) -> FlowId {
    table.insert(table.hash(&opening.key), opening, now, &mut no_one).unwrap()
}

/// As the packet path does it: three passes.
pub(super) fn look_up<A: Address>(table: &FlowTable<A>, key: &FlowKey<A>) -> Option<HalfId> {
    let hash = table.hash(key);
    table.prefetch(hash);
    let found = table.confirm(table.probe(hash), hash, key);
    assert_eq!(found, table.find(hash, key));
    found
}

fn record(table: &mut FlowTable4, key: &FlowKey4, flags: u8, now: u32) {
    let half = look_up(table, key).unwrap();
    table.half_mut(half).record(flags, 60, now);
}

/// Sends an opener's and an answer's packets.
fn talk(table: &mut FlowTable4, opening: &Opening<u32>, packets: &[(Direction, u8)], now: u32) {
    for (direction, flags) in packets {
        let key = match direction {
            Direction::Forward => opening.key,
            Direction::Reverse => opening.leaving_as.reversed(),
        };
        record(table, &key, *flags, now);
    }
}

const OPEN: &[(Direction, u8)] =
    &[(Direction::Forward, SYN), (Direction::Reverse, SYN_ACK), (Direction::Forward, ACK)];

fn expire_all(table: &mut FlowTable4, now: u32) -> Vec<Removed<u32>> {
    let mut gone = Vec::new();
    table.expire(now, u32::MAX, &mut |removed| gone.push(*removed));
    gone
}

#[test]
fn both_directions_are_installed_and_removed_together() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    let opening = opening(6, 40000, 20017);
    let flow = install(&mut table, &opening, 7);
    let answer = opening.leaving_as.reversed();
    let forward = look_up(&table, &opening.key).unwrap();
    let reverse = look_up(&table, &answer).unwrap();
    assert_eq!((forward.flow(), reverse), (flow, forward.other()));
    assert_eq!(table.half(forward).leaving_as(), opening.leaving_as);
    assert_eq!(table.half(reverse).leaving_as(), opening.key.reversed());
    assert_eq!(table.half(forward).way(), opening.forward);
    assert_eq!(table.half(reverse).way(), opening.reverse);
    assert_eq!((table.len(), table.capacity()), (1, 100));
    let removed = table.remove(flow).unwrap();
    assert_eq!((removed.forward.key(), removed.reverse.key()), (opening.key, answer));
    assert_eq!(
        (removed.why, removed.state, removed.last_seen()),
        (Gone::Removed, FlowState::Syn, 7)
    );
    assert_eq!(look_up(&table, &opening.key), None);
    assert_eq!(look_up(&table, &answer), None);
    assert!(table.is_empty() && table.remove(flow).is_none());
    assert_eq!((table.state(flow), table.expires_at(flow)), (None, None));
}

#[test]
fn a_second_flow_with_either_key_is_refused() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    let first = opening(17, 40000, 20017);
    install(&mut table, &first, 0);
    let forward = look_up(&table, &first.key).unwrap();
    let mut insert =
        |opening: &Opening<u32>| table.insert(table.hash(&opening.key), opening, 0, &mut no_one);
    assert_eq!(insert(&opening(17, 40000, 20018)), Err(InsertError::Exists(forward)));
    assert_eq!(insert(&opening(17, 40001, 20017)), Err(InsertError::Taken(forward.other())));
    // Its answers would look like the first one's packets.
    let answers = Opening { key: first.key.reversed(), leaving_as: first.key.reversed(), ..first };
    assert_eq!(insert(&answers), Err(InsertError::Taken(forward)));
    let to_itself = FlowKey { destination: POD, destination_port: 40000, ..first.key };
    let to_itself = Opening { key: to_itself, leaving_as: to_itself, ..first };
    assert_eq!(insert(&to_itself), Err(InsertError::OwnAnswer));
    assert_eq!(table.len(), 1);
    // Another protocol is another flow.
    install(&mut table, &opening(6, 40000, 20017), 0);
    assert_eq!(table.len(), 2);
}

#[test]
fn a_taken_answer_leaves_nothing_behind() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    install(&mut table, &opening(17, 40000, 20017), 0);
    for port in 50000..51000 {
        let opening = opening(17, port, 20017);
        let refused = table.insert(table.hash(&opening.key), &opening, 0, &mut no_one);
        assert!(matches!(refused, Err(InsertError::Taken(_))));
        assert_eq!(look_up(&table, &opening.key), None);
    }
    assert_eq!(table.len(), 1);
    // And all the rest is free.
    for port in 1..95 {
        install(&mut table, &opening(17, port, 1000 + port), 0);
    }
}

#[test]
fn ipv6_flows_are_found_too() {
    let mut table = FlowTable6::new(1000, 3).unwrap();
    let openings: Vec<_> = (0..900_u16)
        .map(|port| {
            let key = FlowKey6 {
                source: 0xfd12_3456 << 96 | u128::from(port % 7),
                destination: 0x2001_0db8 << 96 | 0x10,
                source_port: port,
                destination_port: 443,
                protocol: 6,
            };
            let leaving_as = FlowKey { source: 0xfd00 << 112 | 4, source_port: port + 1000, ..key };
            let way = Way::default();
            Opening { key, leaving_as, forward: way, reverse: way, adopted: false }
        })
        .collect();
    for opening in &openings {
        table.insert(table.hash(&opening.key), opening, 0, &mut |_| panic!()).unwrap();
    }
    for opening in &openings {
        let forward = look_up(&table, &opening.key).unwrap();
        assert_eq!(look_up(&table, &opening.leaving_as.reversed()), Some(forward.other()));
        assert_eq!(look_up(&table, &FlowKey { destination_port: 80, ..opening.key }), None);
    }
}

#[test]
fn every_entry_of_a_large_table_can_be_used() {
    let mut table = FlowTable4::new(1 << 16, 5).unwrap();
    for n in 0..1_u32 << 16 {
        let source_port = u16::try_from(n & 0xffff).unwrap();
        let mut opening = opening(6, source_port, source_port);
        opening.key.source += n % 200;
        install(&mut table, &opening, 0);
    }
    assert_eq!(table.len(), table.capacity());
}

#[test]
fn the_last_entries_are_for_tcp() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    for port in 0..95 {
        install(&mut table, &opening(17, port, port), 0);
    }
    let udp = opening(17, 1000, 1000);
    assert_eq!(table.insert(table.hash(&udp.key), &udp, 0, &mut no_one), Err(InsertError::Full));
    let adopted = Opening { adopted: true, ..opening(6, 1000, 1000) };
    assert_eq!(
        table.insert(table.hash(&adopted.key), &adopted, 0, &mut no_one),
        Err(InsertError::Full)
    );
    for port in 1000..1005 {
        install(&mut table, &opening(6, port, port), 0);
    }
    let tcp = opening(6, 2000, 2000);
    assert_eq!(table.insert(table.hash(&tcp.key), &tcp, 0, &mut no_one), Err(InsertError::Full));
}

/// A table of few buckets, full of TCP connections prepared by `prepare`.
fn full(prepare: impl Fn(&mut FlowTable4, &Opening<u32>, u16)) -> FlowTable4 {
    let mut table = FlowTable4::new(8, 1).unwrap();
    for port in 0..8 {
        let opening = opening(6, port, port);
        install(&mut table, &opening, 0);
        prepare(&mut table, &opening, port);
    }
    table
}

#[test]
fn a_full_table_gives_up_what_it_can_spare_best() {
    // Four buckets: each window holds half of the flows or more, so that the best of it is told by
    // trying until nothing can be spared.
    let both = [(Direction::Forward, FIN_ACK), (Direction::Reverse, FIN_ACK)];
    let mut table = full(|table, opening, port| match port {
        0 | 1 => talk(table, opening, &[(Direction::Forward, SYN)], 1),
        2 => {
            talk(table, opening, OPEN, 1);
            talk(table, opening, &both, 1);
        }
        3 => {
            talk(table, opening, OPEN, 1);
            talk(table, opening, &[(Direction::Forward, RST)], 1);
        }
        4 => talk(table, opening, &[(Direction::Forward, SYN), (Direction::Reverse, SYN_ACK)], 1),
        _ => talk(table, opening, OPEN, 1),
    });
    let mut gone = Vec::new();
    for port in 100..400 {
        let opening = opening(6, port, port);
        let inserted = table.insert(table.hash(&opening.key), &opening, 2, &mut |removed| {
            gone.push((removed.state, removed.why));
        });
        if inserted.is_ok() {
            talk(&mut table, &opening, OPEN, 2);
        }
    }
    assert_eq!(gone.len(), 4, "{gone:?}");
    assert_eq!(
        gone.iter().map(|(state, _)| *state).filter(|state| *state == FlowState::Syn).count(),
        2
    );
    assert!(gone.iter().all(|(_, why)| *why == Gone::Evicted));
    assert_eq!(
        table.evictions(),
        Evictions { expired: 0, unanswered_tcp: 2, unanswered: 0, closed: 2 }
    );
}

#[test]
fn of_two_that_can_be_spared_the_better_goes() {
    let closed = |table: &mut FlowTable4, opening: &Opening<u32>| {
        talk(table, opening, OPEN, 1);
        talk(table, opening, &[(Direction::Forward, RST)], 1);
    };
    // One that is waiting for an answer among closed ones: it is spared first, if it is in the window.
    for waiting in 0..8 {
        let mut table = full(|table, opening, port| {
            if port == waiting {
                talk(table, opening, &[(Direction::Forward, SYN)], 1);
            } else {
                closed(table, opening);
            }
        });
        let waits = table.find(table.hash(&key(6, waiting)), &key(6, waiting)).unwrap();
        for port in 100..150 {
            let opening = opening(6, port, port);
            let hash = table.hash(&opening.key);
            let answer = table.hash(&opening.leaving_as.reversed());
            let near = [hash, answer]
                .iter()
                .any(|hash| table.index.window(*hash).any(|half| half.flow() == waits.flow()));
            if near {
                let mut state = None;
                table
                    .insert(hash, &opening, 2, &mut |removed| state = Some(removed.state))
                    .unwrap();
                assert_eq!(state, Some(FlowState::Syn));
                break;
            }
        }
    }
}

#[test]
fn flows_of_this_tick_and_answered_ones_stay() {
    let mut table = full(|table, opening, _| {
        talk(table, opening, &[(Direction::Forward, SYN)], 5);
    });
    let next = opening(6, 100, 100);
    let hash = table.hash(&next.key);
    assert_eq!(table.insert(hash, &next, 5, &mut no_one), Err(InsertError::Full));
    let mut gone = 0;
    table.insert(hash, &next, 6, &mut |_| gone += 1).unwrap();
    assert_eq!(gone, 1);

    let mut table = full(|table, opening, _| talk(table, opening, OPEN, 5));
    let hash = table.hash(&next.key);
    for now in [6, 1000, ticks(7440)] {
        assert_eq!(table.insert(hash, &next, now, &mut no_one), Err(InsertError::Full));
    }
    // But when their time is over, they may go.
    let mut why = None;
    table.insert(hash, &next, 5 + ticks(7440), &mut |removed| why = Some(removed.why)).unwrap();
    assert_eq!(why, Some(Gone::Expired));
    assert_eq!(table.evictions().expired, 1);
}

#[test]
fn unanswered_udp_makes_room_but_answered_udp_does_not() {
    let mut table = FlowTable4::new(19, 1).unwrap();
    for port in 0..19 {
        let opening = opening(17, port, port);
        install(&mut table, &opening, 0);
        if port > 0 {
            talk(&mut table, &opening, &[(Direction::Forward, 0), (Direction::Reverse, 0)], 1);
        }
    }
    let mut gone = Vec::new();
    for port in 100..300 {
        let opening = opening(17, port, port);
        if table
            .insert(table.hash(&opening.key), &opening, 2, &mut |removed| {
                gone.push(removed.forward.key().source_port);
            })
            .is_ok()
        {
            talk(&mut table, &opening, &[(Direction::Reverse, 0)], 2);
        }
    }
    assert_eq!(gone, [0]);
    assert_eq!(table.evictions().unanswered, 1);
}

#[test]
fn a_connection_expires_when_its_state_says_so() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    let waiting = opening(6, 1, 1);
    let open = opening(6, 2, 2);
    let closed = opening(6, 3, 3);
    for opening in [&waiting, &open, &closed] {
        install(&mut table, opening, 10);
        talk(&mut table, opening, &[(Direction::Forward, SYN)], 10);
    }
    talk(&mut table, &open, OPEN, 20);
    talk(&mut table, &closed, OPEN, 20);
    // Long open, then closed: noticed in time although nothing is told.
    let late = ticks(3000);
    for now in (20..late).step_by(15) {
        let gone = expire_all(&mut table, now);
        let waits = now < 10 + ticks(240);
        assert_eq!(look_up(&table, &waiting.key).is_some(), waits);
        assert!(gone.iter().all(|removed| removed.forward.key() == waiting.key));
    }
    talk(
        &mut table,
        &closed,
        &[(Direction::Forward, FIN_ACK), (Direction::Reverse, FIN_ACK)],
        late,
    );
    assert!(expire_all(&mut table, late + ticks(240) - 1).is_empty());
    let gone = expire_all(&mut table, late + ticks(240));
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].forward.key(), gone[0].state), (closed.key, FlowState::Closing));
    assert_eq!(gone[0].why, Gone::Expired);
    // The open one lasts from its last packet on.
    record(&mut table, &open.key, ACK, late);
    assert_eq!(table.expires_at(FlowId(1)), Some(late + ticks(7440)));
    assert!(expire_all(&mut table, late + ticks(7440) - 1).is_empty());
    assert_eq!(expire_all(&mut table, late + ticks(7440)).len(), 1);
    assert!(table.is_empty());
}

#[test]
fn expiry_does_as_much_as_it_may_and_goes_on_later() {
    let mut table = FlowTable4::new(1000, 1).unwrap();
    for port in 0..900 {
        install(&mut table, &opening(17, port, port), 0);
    }
    assert_eq!(table.expire(ticks(60), 1_000_000, &mut no_one), 0);
    let now = ticks(120);
    let mut removed = 0;
    for _ in 0..1000 {
        let now_removed = table.expire(now, 100, &mut |_| ());
        // A removal costs 17 of the budget; a line is finished once begun.
        assert!(now_removed <= 16);
        removed += now_removed;
    }
    assert_eq!(removed, 900);
    assert!(table.is_empty());
    assert_eq!(table.expire(now, 0, &mut no_one), 0);
}

#[test]
fn shorter_timeouts_hold_for_flows_that_exist() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    for port in 0..50 {
        install(&mut table, &opening(17, port, port), 0);
    }
    let settings = overlane_api::Timeouts { udp_one_way: 5, ..overlane_api::Timeouts::default() };
    assert!(expire_all(&mut table, ticks(10)).is_empty());
    table.set_timeouts(Timeouts::new(&settings));
    let gone: usize = (0..20).map(|_| expire_all(&mut table, ticks(10)).len()).sum();
    assert_eq!(gone, 50);
}

#[test]
fn a_flow_whose_time_is_over_does_not_stand_in_the_way() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    let old = opening(17, 1, 1);
    install(&mut table, &old, 0);
    let now = ticks(120);
    let mut gone = Vec::new();
    let again = opening(17, 2, 1);
    table
        .insert(table.hash(&again.key), &again, now, &mut |removed| gone.push(removed.why))
        .unwrap();
    assert_eq!(gone, [Gone::Expired]);
    assert_eq!(look_up(&table, &old.key), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_restarted_flow_is_where_it_began() {
    let mut table = FlowTable4::new(100, 1).unwrap();
    let opening = opening(6, 1, 1);
    let flow = install(&mut table, &opening, 0);
    talk(&mut table, &opening, OPEN, 1);
    talk(&mut table, &opening, &[(Direction::Reverse, RST)], 2);
    assert_eq!(table.state(flow), Some(FlowState::Reset));
    assert!(FlowState::Reset.reopens(Direction::Reverse, SYN));
    table.restart(flow, 3);
    assert_eq!(table.state(flow), Some(FlowState::Syn));
    assert_eq!((table.began_at(flow), table.expires_at(flow)), (Some(3), Some(3 + ticks(240))));
    assert_eq!(table.flow(flow).unwrap().0.packets(), 2);
}

#[test]
fn listing_and_flushing_go_in_pieces() {
    let mut table = FlowTable4::new(1000, 1).unwrap();
    for port in 0..500 {
        install(&mut table, &opening(if port % 5 == 0 { 6 } else { 17 }, port, port), 0);
    }
    table.remove(FlowId(7));
    let all: Vec<_> = table.iter().map(|(flow, ..)| flow.0).collect();
    assert_eq!(all, (0..500).filter(|n| *n != 7).collect::<Vec<_>>());
    assert_eq!(table.iter_from(FlowId(490)).count(), 10);
    let mut gone = 0;
    let mut next = Some(FlowId(0));
    let mut calls = 0;
    while let Some(start) = next {
        next = table.flush(start, 64, |_, half, _| half.key().protocol == 6, &mut |_| gone += 1);
        calls += 1;
    }
    assert_eq!((gone, calls), (100, 8));
    assert_eq!(table.len(), 399);
    assert!(table.iter().all(|(_, forward, _)| forward.key().protocol == 17));
}

#[test]
fn equal_hashes_are_told_apart() {
    let mut table = FlowTable4::new(1 << 16, 1).unwrap();
    // Pairs with one 32-bit hash, found by trying: half a million keys have some 30.
    let mut seen = HashMap::new();
    let mut pairs = Vec::new();
    for n in 0..500_000_u32 {
        let key = FlowKey { source: n, ..key(6, 1) };
        if let Some(other) = seen.insert(table.hash(&key), key) {
            pairs.push((other, key));
        }
    }
    assert!(pairs.len() > 5, "{} pairs", pairs.len());
    for (number, (a, b)) in pairs.iter().enumerate() {
        let mut install = |key: &FlowKey4| {
            let opening = Opening { key: *key, leaving_as: *key, ..opening(6, 1, 1) };
            install(&mut table, &opening, 0)
        };
        let (first, second) = (install(a), install(b));
        assert_eq!(look_up(&table, a).unwrap().flow(), first);
        assert_eq!(look_up(&table, b).unwrap().flow(), second);
        if number % 2 == 0 {
            table.remove(first);
            assert_eq!(look_up(&table, a), None);
            assert_eq!(look_up(&table, b).unwrap().flow(), second);
        }
    }
}

#[test]
fn no_room_for_the_answers_is_no_room_for_the_flow() {
    let mut table = FlowTable4::new(64, 1).unwrap();
    // Flows whose answers all belong to the same two buckets, and nowhere else.
    let mut pair = table.index.places(0);
    pair.sort_unstable();
    let mut crowd = (0..u32::MAX).map(opening_to).filter(|opening| {
        let places = |key: &FlowKey4| {
            let mut places = table.index.places(table.hash(key));
            places.sort_unstable();
            places
        };
        let own = places(&opening.key);
        places(&opening.leaving_as.reversed()) == pair && !own.iter().any(|own| pair.contains(own))
    });
    let openings: Vec<_> = crowd.by_ref().take(17).collect();
    let last = crowd.next().unwrap();
    for opening in &openings[..16] {
        install(&mut table, opening, 0);
        talk(&mut table, opening, OPEN, 0);
    }
    for refused in [&openings[16], &last] {
        let hash = table.hash(&refused.key);
        assert_eq!(table.insert(hash, refused, 1, &mut no_one), Err(InsertError::Full));
        assert_eq!(table.index.find(hash, |_| true), None);
        assert_eq!(look_up(&table, &refused.key), None);
    }
    assert_eq!(table.len(), 16);
    // With one of them gone there is room again.
    table.remove(FlowId(3)).unwrap();
    let flow = install(&mut table, &last, 1);
    assert_eq!(look_up(&table, &last.leaving_as.reversed()).unwrap().flow(), flow);
}

/// A flow of some pod.
fn opening_to(source: u32) -> Opening<u32> {
    let port = u16::try_from(source & 0xffff).unwrap();
    let mut opening = opening(6, port, port);
    opening.key.source = source;
    opening.leaving_as.destination = source >> 16 | 1 << 31;
    opening.key.destination = opening.leaving_as.destination;
    opening
}

#[test]
fn memory_is_as_documented() {
    // 128 bytes for both directions, 32 of index, 4 of deadline, 4 of its beginning.
    let table = FlowTable4::new(1 << 20, 1).unwrap();
    assert_eq!(table.bytes(), ((128 + 32 + 8) << 20) + 4096);
    let table = FlowTable6::new(1 << 18, 1).unwrap();
    assert_eq!(table.bytes(), ((256 + 32 + 8) << 18) + 4096);
    assert_eq!(size_of::<Header>(), 64);
}
