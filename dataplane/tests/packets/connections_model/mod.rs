//! Random sequences of packets and changes through the node and through a slow, obvious model of
//! services and source NAT ([`nat`]), written for this test only.
//!
//! A sequence is a list of [`Step`]s that speak of earlier ones by their number, so that a failing one
//! is shrunk to few steps and printed. Most steps are made of what came out before: who received a
//! packet answers it, or says by ICMP what is wrong with it; who sent one sends another.
//!
//! What the node may choose (which of the backends, which port outside) is taken from what comes out,
//! and checked: it is one of those allowed, the flow stays with it, no two flows have the same answers,
//! the port is in the range and not the host's. All else is exact: every byte, every drop and
//! its reason, every counter, every frame.
//!
//! `OVERLANE_TEST_LENGTH=long` (`scripts/test.sh --long`) runs 100,000 sequences instead of
//! [`QUICK`]; `OVERLANE_SEQUENCES` says another number.

mod flow;
mod nat;
mod run;
mod world;

use std::cell::RefCell;

use overlane_api::{Mode, Underlay};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use self::flow::{ACK, FIN, Key, RST, SYN};
use self::run::{Run, Seen, Telling};
use self::world::{End, Life, PODS, SERVICES, Spec, Spot, World};
use crate::build::{Body, Packet, node_ip, packet};

/// Sequences of a quick run.
const QUICK: u32 = 100;

/// Sequences of a long run.
const LONG: u32 = 100_000;

/// Where a new packet goes.
#[derive(Debug, Clone, Copy)]
enum To {
    Cluster(u8),
    /// A port that no service has there.
    OtherPort(u8),
    /// An address of the service range that no service has.
    Unassigned,
    LoadBalancer(u8),
    NodePort(u8),
    End(End),
}

/// What a packet carries.
#[derive(Debug, Clone, Copy)]
enum What {
    Tcp(u8),
    Udp,
    UdpNoSum,
    Ping,
}

/// One step of a sequence.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody sends a packet, from one of few ports.
    Send { from: End, to: To, family: usize, port: u8, what: What, len: usize },
    /// Who got a packet answers it: the so-many-th last, with these TCP flags.
    Answer { of: usize, flags: u8, len: usize, queue: u8 },
    /// Who sent a packet sends another.
    Again { of: usize, flags: u8, len: usize, ttl: u8 },
    /// Who got a packet, or a router before it, says that something is wrong with it.
    Tell { of: usize, kind: usize, router: bool, short: bool, queue: u8 },
    /// Somebody outside sends to a port that flows may leave with.
    Stray { from: u8, family: usize, pool: bool, port: u16, udp: bool, queue: u8 },
    /// So many hundreds of seconds pass.
    Wait(u64),
    /// A service is there, or changed.
    Set(u8, Spec),
    /// It is gone.
    Remove(u8),
}

fn specs() -> impl Strategy<Value = Spec> {
    let life =
        prop_oneof![6 => Just(Life::Ready), 1 => Just(Life::Draining), 1 => Just(Life::Dead)];
    let end = prop_oneof![3 => (0..PODS).prop_map(End::Pod), 2 => (1_u8..3).prop_map(End::Remote)];
    let port = prop_oneof![4 => Just(8080_u16), 1 => Just(8081)];
    let backends = prop::collection::vec((end, port, life), 0..5).prop_map(|all| {
        let mut spots: Vec<Spot> = Vec::new();
        for (end, port, life) in all {
            if !spots.iter().any(|spot| (spot.end, spot.port) == (end, port)) {
                spots.push(Spot { end, port, life });
            }
        }
        spots
    });
    let mostly = prop::bool::weighted(0.7);
    let seldom = || prop::bool::weighted(0.2);
    let flags = (any::<bool>(), any::<bool>(), mostly, prop::bool::weighted(0.7));
    (backends, flags, seldom(), seldom(), any::<bool>()).prop_map(
        |(backends, flags, ranged, icmp_reject, random)| Spec {
            backends,
            internal_local: flags.0,
            external_local: flags.1,
            node_port: flags.2,
            load_balancer: flags.3,
            ranged,
            icmp_reject,
            random,
        },
    )
}

fn sends() -> impl Strategy<Value = Step> {
    let number = || 0..SERVICES;
    let service = prop_oneof![
        6 => number().prop_map(To::Cluster),
        1 => number().prop_map(To::OtherPort),
        1 => Just(To::Unassigned),
        3 => number().prop_map(To::LoadBalancer),
        2 => number().prop_map(To::NodePort),
    ];
    let outside = (0_u8..6).prop_map(|n| To::End(End::Outside(n)));
    let here = prop_oneof![
        3 => (0..PODS).prop_map(End::Pod),
        1 => (1_u8..3).prop_map(End::Remote),
        1 => Just(End::Host),
    ];
    let pod = (0..PODS).prop_map(End::Pod);
    let pairs = prop_oneof![
        5 => (pod.clone(), service.clone()),
        5 => (pod.clone(), outside),
        1 => (pod, here.clone().prop_map(To::End)),
        2 => (Just(End::Host), number().prop_map(To::Cluster)),
        1 => (Just(End::Host), number().prop_map(To::LoadBalancer)),
        5 => ((0_u8..2).prop_map(End::Outside), service),
        1 => ((1_u8..3).prop_map(End::Remote), here.prop_map(To::End)),
    ];
    let tcp = prop_oneof![12 => Just(SYN), 2 => Just(ACK), 1 => Just(FIN | ACK), 1 => Just(RST),
        1 => Just(SYN | ACK), 1 => Just(SYN | FIN), 1 => Just(0)];
    let what = prop_oneof![4 => tcp.prop_map(What::Tcp), 3 => Just(What::Udp),
        1 => Just(What::UdpNoSum), 1 => Just(What::Ping)];
    (pairs, 0_usize..2, 0_u8..3, what, lengths()).prop_map(
        |((from, to), family, port, what, len)| Step::Send { from, to, family, port, what, len },
    )
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0_usize..40, 1 => 0_usize..300]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = || {
        prop_oneof![6 => Just(ACK), 2 => Just(SYN | ACK), 2 => Just(SYN), 3 => Just(FIN | ACK),
            1 => Just(RST), 1 => Just(RST | ACK), 1 => Just(SYN | FIN)]
    };
    let of = || prop_oneof![3 => 0_usize..3, 1 => 0_usize..20];
    let ttl = prop_oneof![8 => Just(64_u8), 1 => 1_u8..3];
    let port = prop_oneof![20_000_u16..20_008, 10_200_u16..30_010];
    let step = prop_oneof![
        10 => sends(),
        8 => (of(), flags(), lengths(), any::<u8>())
            .prop_map(|(of, flags, len, queue)| Step::Answer { of, flags, len, queue }),
        6 => (of(), flags(), lengths(), ttl)
            .prop_map(|(of, flags, len, ttl)| Step::Again { of, flags, len, ttl }),
        3 => (of(), 0_usize..4, any::<bool>(), any::<bool>(), any::<u8>())
            .prop_map(|(of, kind, router, short, queue)| Step::Tell { of, kind, router, short, queue }),
        1 => (0_u8..6, 0_usize..2, any::<bool>(), port, any::<bool>(), any::<u8>())
            .prop_map(|(from, family, pool, port, udp, queue)| Step::Stray { from, family, pool, port, udp, queue }),
        2 => prop_oneof![4 => 1_u64..4, 1 => Just(75_u64)].prop_map(Step::Wait),
        3 => (0..SERVICES, specs()).prop_map(|(number, spec)| Step::Set(number, spec)),
        1 => (0..SERVICES).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 1..50)
}

fn worlds() -> impl Strategy<Value = World> {
    let mode = prop_oneof![Just(Mode::Geneve), Just(Mode::Vxlan), Just(Mode::Native)];
    let underlay = prop_oneof![Just(Underlay::Ipv4), Just(Underlay::Ipv6)];
    (1_u8..3, mode, underlay, any::<bool>()).prop_map(|(workers, mode, underlay, few)| World {
        workers,
        mode,
        underlay,
        few_ports: few && workers == 1,
    })
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|byte| (byte * 37 + len) as u8).collect()
}

/// Ports that senders use: the same few, so that flows meet each other; one is in the range of
/// source NAT.
fn source_port(number: u8, what: What) -> u16 {
    match what {
        What::Ping => 70 + u16::from(number),
        _ => [40_000, 20_001, 41_000][usize::from(number)],
    }
}

fn address(to: To, family: usize) -> (std::net::IpAddr, u16) {
    match to {
        To::Cluster(service) => world::cluster(service, family),
        To::OtherPort(service) => (world::cluster(service, family).0, 81),
        To::Unassigned => (crate::services::vip(200, family), 80),
        To::LoadBalancer(service) => world::load_balancer(service, family),
        To::NodePort(service) => world::node_port(service, family),
        To::End(End::Outside(number)) => (End::Outside(number).address(family), 443),
        // Another port than a service's backend has: this node keeps no state for these.
        To::End(end) => (end.address(family), 9000),
    }
}

/// The queue at which a NIC receives what a client sends: always the same for a flow.
fn queue_of(packet: &Packet) -> u8 {
    Key::of(packet).map_or(0, |key| (key.from.1 ^ key.to.1 ^ u16::from(key.protocol)) as u8)
}

struct Sequence {
    run: Run,
    workers: u8,
    specs: Vec<Option<Spec>>,
}

impl Sequence {
    fn new(world: World) -> Self {
        Self {
            run: Run::new(world),
            workers: world.workers,
            specs: vec![None; usize::from(SERVICES)],
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(hundreds) => self.run.wait(hundreds * 100_000),
            Step::Set(number, spec) => {
                let mut spec = spec.clone();
                // A datagram is looked for at other workers only as long as the policy says so.
                spec.external_local |= *number == 1 && self.workers > 1;
                self.run.set(*number, &spec);
                self.specs[usize::from(*number)] = Some(spec);
            }
            Step::Remove(number) => {
                if let Some(spec) = self.specs[usize::from(*number)].take() {
                    self.run.remove(*number, &spec);
                }
            }
            Step::Send { from, to, family, port, what, len } => {
                return self.send((*from, *to), *family, *port, *what, *len);
            }
            Step::Answer { of, flags, len, queue } => {
                return self.answer(*of, *flags, *len, *queue);
            }
            Step::Again { of, flags, len, ttl } => {
                let Some(delivered) = self.latest(*of) else { return Ok(()) };
                let (from, mut sent) = (delivered.from, delivered.sent.clone().ttl(*ttl));
                change(&mut sent, *flags, *len);
                return self.run.send(from, &sent, queue_of(&sent));
            }
            Step::Tell { of, kind, router, short, queue } => {
                return self.tell(*of, *kind, *router, *short, *queue);
            }
            Step::Stray { from, family, pool, port, udp, queue } => {
                let to = if *pool { world::pool(*family) } else { node_ip(0, *family) };
                let body = if *udp {
                    Body::Udp(443, *port, payload(8))
                } else {
                    Body::Segment(443, *port, SYN, Vec::new())
                };
                let from = End::Outside(*from);
                return self.run.send(from, &packet(from.address(*family), to, body), *queue);
            }
        }
        Ok(())
    }

    /// The so-many-th last packet that was delivered.
    fn latest(&self, of: usize) -> Option<&run::Delivered> {
        let all = &self.run.delivered;
        all.len().checked_sub(1 + of % all.len().max(1)).map(|place| &all[place])
    }

    fn send(
        &mut self,
        (from, to): (End, To),
        family: usize,
        port: u8,
        what: What,
        len: usize,
    ) -> Result<(), String> {
        // The host pings by itself, and what outside pings is not the question here.
        if matches!((what, from), (What::Ping, End::Outside(_))) {
            return Ok(());
        }
        let (source, (address, to_port)) = (source_port(port, what), address(to, family));
        let what = match to {
            // What a service speaks.
            To::Cluster(1) | To::LoadBalancer(1) | To::NodePort(1)
                if matches!(what, What::Tcp(_)) =>
            {
                What::Udp
            }
            To::Cluster(0 | 2) | To::LoadBalancer(0 | 2) | To::NodePort(0 | 2)
                if matches!(what, What::Udp | What::UdpNoSum) =>
            {
                What::Tcp(SYN)
            }
            _ => what,
        };
        // Directly between pods: from a port that no service's client has.
        let direct = matches!(to, To::End(End::Pod(_) | End::Remote(_) | End::Host));
        let source = if direct { source.wrapping_add(10_001) } else { source };
        // The host's own ports are not those of source NAT.
        let source = if from == End::Host { 40_000 + u16::from(port) } else { source };
        let body = match what {
            What::Tcp(flags) => Body::Segment(source, to_port, flags, payload(len)),
            What::Udp => Body::Udp(source, to_port, payload(len)),
            What::UdpNoSum if family == 0 => Body::UdpNoSum(source, to_port, payload(len)),
            What::UdpNoSum => Body::Udp(source, to_port, payload(len)),
            What::Ping => Body::Echo(false, source, 1, payload(len)),
        };
        let sent = packet(from.address(family), address, body);
        // Itself it has at home, and other nodes reach each other without this one.
        let is_elsewhere = from.address(family) == address
            || matches!((from, to), (End::Remote(_), To::End(End::Remote(_))));
        if is_elsewhere { Ok(()) } else { self.run.send(from, &sent, queue_of(&sent)) }
    }

    fn answer(&mut self, of: usize, flags: u8, len: usize, queue: u8) -> Result<(), String> {
        let Some(delivered) = self.latest(of) else { return Ok(()) };
        let mut reply = delivered.arrived.reply(&payload(len));
        let to = delivered.to;
        if let Body::Echo(..) = delivered.arrived.body
            && matches!(delivered.arrived.body, Body::Echo(true, ..))
        {
            return Ok(());
        }
        if reply.source != to.address(usize::from(reply.source.is_ipv6())) {
            return Ok(());
        }
        change(&mut reply, flags, len);
        // A client's own packets always come by one queue.
        let is_client = delivered.from != to
            && self.run.delivered.iter().any(|d| Key::of(&d.sent) == Key::of(&reply));
        let queue = if is_client { queue_of(&reply) } else { queue };
        self.run.send(to, &reply, queue)
    }

    fn tell(
        &mut self,
        of: usize,
        kind: usize,
        router: bool,
        short: bool,
        queue: u8,
    ) -> Result<(), String> {
        let Some(delivered) = self.latest(of).cloned() else { return Ok(()) };
        let about = &delivered.arrived;
        let family = usize::from(about.source.is_ipv6());
        let (kind, rest) = match (kind, family) {
            (0, 0) => ((3, 3), 0),
            (0, _) => ((1, 4), 0),
            (1, 0) => ((3, 4), 1400),
            (1, _) => ((2, 0), 1400),
            (2, 0) => ((11, 0), 0),
            (2, _) => ((3, 0), 0),
            (_, 0) => ((12, 0), 0),
            (_, _) => ((4, 0), 40),
        };
        let own = delivered.to.address(family);
        // Pods and the host speak for themselves; others may be routers.
        let source = match delivered.to {
            End::Remote(peer) if router => node_ip(peer, family),
            End::Outside(_) if router => ["10.9.9.9", "2001:db8:9::9"][family].parse().unwrap(),
            _ => own,
        };
        let quoted = if short { [28, 48][family] } else { usize::MAX };
        let telling = Telling { from: delivered.to, source, about, kind, rest, quoted };
        self.run.tell(&telling, queue)
    }
}

/// Other flags and another payload.
fn change(packet: &mut Packet, new_flags: u8, len: usize) {
    match &mut packet.body {
        Body::Segment(_, _, flags, bytes) => (*flags, *bytes) = (new_flags, payload(len)),
        Body::Udp(_, _, bytes) | Body::UdpNoSum(_, _, bytes) | Body::Echo(_, _, _, bytes) => {
            *bytes = payload(len);
        }
        _ => {}
    }
}

fn check(world: World, steps: &[Step]) -> Result<Seen, TestCaseError> {
    let mut sequence = Sequence::new(world);
    for (number, step) in steps.iter().enumerate() {
        sequence
            .step(step)
            .map_err(|error| TestCaseError::fail(format!("step {number}, {step:?}: {error}")))?;
    }
    let seen = sequence.run.seen;
    sequence.run.finish().map_err(TestCaseError::fail)?;
    Ok(seen)
}

/// How many sequences this run has.
fn sequences() -> u32 {
    let named = std::env::var("OVERLANE_SEQUENCES").ok().and_then(|text| text.parse().ok());
    let is_long = std::env::var("OVERLANE_TEST_LENGTH").is_ok_and(|length| length == "long");
    named.unwrap_or(if is_long { LONG } else { QUICK })
}

#[test]
fn the_node_does_what_the_model_of_connections_says() {
    let total = RefCell::new(Seen::default());
    let config = ProptestConfig {
        cases: sequences(),
        failure_persistence: None,
        max_shrink_iters: 1500,
        ..Default::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&(worlds(), steps()), |(world, steps)| {
        let seen = check(world, &steps)?;
        *total.borrow_mut() += seen;
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let seen = *total.borrow();
    println!("{} sequences: {seen:?}", sequences());
    // It got everywhere: some of each for every sequence, or for every few.
    let least = sequences() / 4;
    let all = [seen.opened, seen.leaves, seen.tells, seen.dropped, seen.answered, seen.other_port];
    assert!(all.iter().all(|count| *count >= least), "{seen:?}");
    assert!(seen.unsolicited > 0, "{seen:?}");
}
