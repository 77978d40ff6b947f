use std::net::Ipv4Addr;

use super::*;
use proptest::prelude::*;

/// Nodes on a network that delivers at once, and a clock of one's own.
struct Net {
    nodes: BTreeMap<IpAddr, Swim>,
    now: Instant,
    /// Datagrams between these are lost.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    sent: usize,
}

fn address(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0104 + u32::try_from(number).unwrap()).into()
}

/// Where the control process of a node sends from.
fn control(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, settings().port)
}

fn settings() -> MembershipSettings {
    MembershipSettings {
        port: 4254,
        probe_interval: Duration::from_millis(500),
        suspicion: Duration::from_millis(1000),
        take_back_after: Duration::from_secs(5),
    }
}

fn identity(number: usize, generation: u64) -> Identity {
    Identity { address: address(number), generation, duty: Duty::Ready }
}

impl Net {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let mut net = Self { nodes: BTreeMap::new(), now, cut: BTreeSet::new(), sent: 0 };
        for number in 0..count {
            net.start(number, count, 1_000_000 + u64::try_from(number).unwrap());
        }
        net
    }

    fn start(&mut self, number: usize, count: usize, generation: u64) {
        let seed = generation ^ 77;
        let mut swim = Swim::new(identity(number, generation), settings(), seed, self.now);
        swim.know((0..count).map(address).collect(), self.now);
        self.nodes.insert(address(number), swim);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for swim in self.nodes.values_mut() {
                swim.poll(self.now);
            }
            self.deliver();
            self.now += Duration::from_millis(10);
        }
    }

    fn deliver(&mut self) {
        loop {
            let mut all = Vec::new();
            for (from, swim) in &mut self.nodes {
                all.extend(swim.take_datagrams().into_iter().map(|(to, data)| (*from, to, data)));
            }
            if all.is_empty() {
                return;
            }
            for (from, to, data) in all {
                self.sent += 1;
                assert!(data.len() <= MAX_BYTES);
                if self.cut.contains(&(from, to)) || self.cut.contains(&(to, from)) {
                    continue;
                }
                if let Some(swim) = self.nodes.get_mut(&to) {
                    swim.receive(control(from), &data, self.now);
                }
            }
        }
    }

    fn live(&self, at: usize) -> BTreeSet<IpAddr> {
        let members = self.nodes[&address(at)].members();
        members.filter(|(_, state)| *state != State::Down).map(|(id, _)| id.address).collect()
    }

    fn all_but(&self, count: usize, without: &[usize]) -> BTreeSet<IpAddr> {
        (0..count).filter(|number| !without.contains(number)).map(address).collect()
    }
}

#[test]
fn nodes_find_each_other_and_the_dead_one_is_missed_in_time() {
    for count in [2, 3, 8] {
        let mut net = Net::new(count);
        net.run(Duration::from_secs(3));
        for at in 0..count {
            assert_eq!(net.live(at), net.all_but(count, &[at]), "{count} nodes, seen from {at}");
        }
        net.nodes.remove(&address(1));
        let died = net.now;
        let lease = settings().lease();
        let mut first = None;
        while net.live(0).contains(&address(1)) {
            net.run(Duration::from_millis(10));
            let by_any =
                (0..count).filter(|at| *at != 1).any(|at| !net.live(at).contains(&address(1)));
            first = first.or(by_any.then_some(net.now));
            assert!(net.now - died < Duration::from_millis(3500), "{count} nodes");
        }
        let first = first.unwrap() - died;
        println!("{count} nodes: {:?} to the first, {:?} to node 0", first, net.now - died);
        assert!(first > lease, "nobody takes over while the dead one's dataplane may answer");
        net.run(Duration::from_secs(10));
        for at in (0..count).filter(|at| *at != 1) {
            assert_eq!(net.live(at), net.all_but(count, &[at, 1]), "nobody else is suspected");
        }
    }
}

#[test]
fn with_two_nodes_death_is_known_within_two_intervals_and_the_suspicion() {
    for phase in 0..20 {
        let mut net = Net::new(2);
        net.run(Duration::from_millis(3000 + phase * 37));
        net.nodes.remove(&address(1));
        let died = net.now;
        while net.live(0).contains(&address(1)) {
            net.run(Duration::from_millis(10));
        }
        let took = net.now - died;
        let least = settings().lease();
        assert!(took > least && took <= Duration::from_millis(2050), "{took:?}");
    }
}

#[test]
fn a_duty_is_known_to_all_at_once_and_farewells_too() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(3));
    let now = net.now;
    net.nodes.get_mut(&address(1)).unwrap().set_duty(Duty::Away, now);
    net.deliver();
    for at in [0, 2] {
        let duty = net.nodes[&address(at)].members().find(|(id, _)| id.address == address(1));
        assert_eq!(duty.map(|(id, state)| (id.duty, state)), Some((Duty::Away, State::Alive)));
    }
    net.run(Duration::from_secs(5));
    assert_eq!(net.live(0), net.all_but(3, &[0]), "it is still a member");
    let now = net.now;
    net.nodes.get_mut(&address(1)).unwrap().leave(now);
    net.deliver();
    assert_eq!(net.live(0), net.all_but(3, &[0, 1]));
}

#[test]
fn a_node_whose_duty_changes_while_it_asks_for_others_still_hears_of_them() {
    let mut net = Net::new(2);
    net.run(Duration::from_secs(3));
    net.start(1, 2, 2_000_000);
    let now = net.now;
    let swim = net.nodes.get_mut(&address(1)).unwrap();
    swim.poll(now);
    swim.set_duty(Duty::Standby, now);
    net.run(Duration::from_millis(50));
    assert_eq!(net.live(1), [address(0)].into());
    assert!(net.nodes[&address(1)].others_ready());
}

#[test]
fn a_node_that_starts_again_is_known_at_once_even_when_its_clock_was_set_back() {
    for generation in [2_000_000, 999_000, 1] {
        let mut net = Net::new(3);
        net.run(Duration::from_secs(3));
        net.nodes.remove(&address(1));
        net.run(Duration::from_secs(5));
        assert_eq!(net.live(0), net.all_but(3, &[0, 1]));
        net.start(1, 3, generation);
        net.run(Duration::from_millis(1500));
        for at in 0..3 {
            assert_eq!(net.live(at), net.all_but(3, &[at]), "generation {generation}");
        }
    }
}

#[test]
fn two_halves_of_a_cut_network_find_together_again_and_who_was_missed_is_not_ready() {
    let mut net = Net::new(2);
    net.run(Duration::from_secs(3));
    net.cut.insert((address(0), address(1)));
    net.run(Duration::from_secs(5));
    assert!(net.live(0).is_empty() && net.live(1).is_empty());
    net.cut.clear();
    net.run(Duration::from_secs(3));
    assert_eq!((net.live(0), net.live(1)), ([address(1)].into(), [address(0)].into()));
    let duties: Vec<Duty> = net.nodes.values().map(|swim| swim.identity().duty).collect();
    assert!(duties.contains(&Duty::Standby), "{duties:?}");
}

#[test]
fn what_is_from_nobody_of_the_cluster_or_in_anothers_name_is_ignored_and_counted() {
    let mut net = Net::new(3);
    net.run(Duration::from_secs(3));
    let before = net.live(0);
    let now = net.now;
    // A stranger, and a member in the name of another.
    let mut stranger = Swim::new(identity(9, 1_000_000), settings(), 1, now);
    stranger.know([address(0)].into(), now);
    stranger.poll(now);
    let (to, hello) = stranger.take_datagrams().remove(0);
    assert_eq!(to, address(0));
    let mut forged = Swim::new(identity(2, 9_000_000), settings(), 1, now);
    forged.know([address(0)].into(), now);
    forged.poll(now);
    let (_, in_the_name_of_2) = forged.take_datagrams().remove(0);
    let swim = net.nodes.get_mut(&address(0)).unwrap();
    let counted = swim.datagrams();
    swim.receive(control(address(9)), &hello, now);
    swim.receive(control(address(1)), &in_the_name_of_2, now);
    let after = swim.datagrams();
    assert_eq!(after.unknown_sender, counted.unknown_sender + 2);
    assert_eq!((after.received, after.malformed), (counted.received, counted.malformed));
    assert!(swim.take_datagrams().is_empty(), "no answer");
    assert_eq!(net.live(0), before);
}

#[test]
fn what_is_not_from_a_control_process_is_ignored_even_from_the_address_of_a_node() {
    // A pod of node 1 writes what its node would; it leaves with the node's address and a port of
    // `snat.ports`, or with the node's own port where that is free, never with that of membership.
    let mut net = Net::new(2);
    net.run(Duration::from_secs(3));
    let now = net.now;
    let mut pod = Swim::new(identity(1, 9_000_000), settings(), 1, now);
    pod.know([address(0)].into(), now);
    pod.poll(now);
    pod.leave(now);
    let forged = pod.take_datagrams();
    assert!(!forged.is_empty());
    let before = net.live(0);
    let swim = net.nodes.get_mut(&address(0)).unwrap();
    let counted = swim.datagrams();
    for port in [10_240, 29_999, 4253, 0] {
        for (_, data) in &forged {
            swim.receive(SocketAddr::new(address(1), port), data, now);
        }
    }
    let after = swim.datagrams();
    let ignored = after.unknown_sender - counted.unknown_sender;
    assert_eq!(ignored, 4 * u64::try_from(forged.len()).unwrap());
    assert_eq!(
        Datagrams { unknown_sender: 0, ..after },
        Datagrams { unknown_sender: 0, ..counted }
    );
    assert!(swim.take_datagrams().is_empty(), "no answer");
    assert_eq!(net.live(0), before);
}

#[test]
fn a_duty_is_known_to_all_within_the_grace() {
    for count in [2, 3, 10, 30, 100] {
        let mut slowest = Duration::ZERO;
        for round in 0..5 {
            let mut net = Net::new(count);
            net.run(Duration::from_millis(20_000 + round * 70));
            let now = net.now;
            net.nodes.get_mut(&address(1)).unwrap().set_duty(Duty::Standby, now);
            let knows = |swim: &Swim| {
                swim.members().any(|(id, _)| id.address == address(1) && id.duty == Duty::Standby)
            };
            net.deliver();
            let others = |net: &Net| {
                net.nodes.iter().filter(|(at, _)| **at != address(1)).all(|(_, swim)| knows(swim))
            };
            while !others(&net) {
                net.run(Duration::from_millis(10));
            }
            slowest = slowest.max(net.now - now);
        }
        println!("{count} nodes: {slowest:?}");
        let grace = super::super::readiness::grace(count);
        assert!(slowest * 3 / 2 <= grace, "{count} nodes: {slowest:?} of {grace:?}");
    }
}

#[test]
fn a_node_that_this_one_does_not_know_yet_is_neither_asked_nor_declared_dead() {
    let mut net = Net::new(3);
    // Node 0 has not read the manifest of node 2.
    let now = net.now;
    net.nodes.get_mut(&address(0)).unwrap().know([address(1)].into(), now);
    net.run(Duration::from_secs(10));
    assert_eq!(net.live(0), [address(1)].into());
    assert_eq!(net.live(1), net.all_but(3, &[1]));
    let now = net.now;
    net.nodes.get_mut(&address(0)).unwrap().know([address(1), address(2)].into(), now);
    net.run(Duration::from_secs(2));
    assert_eq!(net.live(0), net.all_but(3, &[0]));
    assert_eq!(net.live(2), net.all_but(3, &[2]));
}

/// A hundred nodes: what each sends does not grow with their number.
#[test]
fn the_cost_of_a_node_does_not_depend_on_how_many_there_are() {
    let per_second = |count: usize| {
        let mut net = Net::new(count);
        net.run(Duration::from_secs(20));
        for at in 0..count {
            assert_eq!(net.live(at).len(), count - 1);
        }
        let before = net.sent;
        net.run(Duration::from_secs(10));
        (net.sent - before) / 10 / count
    };
    let (few, many) = (per_second(5), per_second(100));
    println!("{few} and {many} datagrams a second and node");
    assert!(many <= few + 2 && many <= 10, "{few} {many}");
}

proptest! {
    #[test]
    fn noise_is_counted_and_nothing_else(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let now = Instant::now();
        let mut swim = Swim::new(identity(0, 5), settings(), 1, now);
        swim.know([address(1)].into(), now);
        swim.receive(control(address(1)), &data, now);
        let seen = swim.datagrams();
        prop_assert_eq!(seen.received + seen.malformed + seen.unknown_sender, 1);
        prop_assert_eq!(swim.members().count(), 0);
    }

    #[test]
    fn a_damaged_message_never_makes_a_node_dead(at in 0_usize..40, damage in 1_u8..=255) {
        let mut net = Net::new(2);
        net.run(Duration::from_secs(2));
        let now = net.now;
        let one = net.nodes.get_mut(&address(1)).unwrap();
        one.set_duty(Duty::Standby, now);
        let all = one.take_datagrams();
        for (_, mut data) in all {
            let place = at % data.len();
            data[place] ^= damage;
            net.nodes.get_mut(&address(0)).unwrap().receive(control(address(1)), &data, now);
        }
        net.run(Duration::from_secs(6));
        prop_assert_eq!(net.live(0), [address(1)].into());
    }
}
