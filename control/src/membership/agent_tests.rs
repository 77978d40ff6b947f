use super::*;

fn until(what: &str, patience: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Two nodes on the loopback: one goes, the other notices; it comes back and waits its turn.
#[test]
fn two_agents_hear_of_each_other_and_of_each_others_end() {
    // A port that nothing has now; another process may take it all the same, then this says so.
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = MembershipSettings {
        port: free,
        probe_interval: Duration::from_millis(200),
        suspicion: Duration::from_millis(1500),
        take_back_after: Duration::from_secs(4),
    };
    let start = |own: u8, other: u8| {
        let address = |number: u8| Some(IpAddr::from([127, 0, 0, number]));
        let agent = Agent::start(settings.clone(), None, || ()).unwrap();
        agent.set_cluster(Cluster {
            own: own.to_string(),
            own_address: address(own),
            others: [(other.to_string(), address(other))].into(),
        });
        agent.pulse().set_forwarding(Some(Instant::now() + Duration::from_secs(60)));
        agent
    };
    let patience = Duration::from_secs(20);
    let one = start(1, 2);
    until("alone, it takes all", patience, || one.members().may_answer());
    assert_eq!(one.warning(), None);
    assert_eq!(one.view().nodes()["2"].liveness, Liveness::Unknown);
    let two = start(2, 1);
    until("the other is heard", patience, || one.view().nodes()["2"].liveness == Liveness::Standby);
    until("and hears the first", patience, || two.members().is_ready("1"));
    assert!(!two.members().is_ready("2"), "which has what there is");
    until("and ready in the end", patience, || one.members().is_ready("2"));
    two.pulse().set_forwarding(None);
    until("its dataplane", patience, || {
        one.view().nodes()["2"].liveness == Liveness::NotForwarding
    });
    assert!(!one.members().is_ready("2"));
    drop(two);
    until("farewell", patience, || one.view().nodes()["2"].liveness == Liveness::Dead);
    let counts = one.status().nodes;
    assert_eq!(counts, [(Liveness::Live, 1), (Liveness::Dead, 1)].into());
    assert!(one.status().datagrams.received > 0);
}

/// Two with the same key, one with another, one without.
#[test]
fn agents_with_a_key_hear_each_other_and_nobody_else() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = MembershipSettings {
        port,
        probe_interval: Duration::from_millis(200),
        suspicion: Duration::from_millis(1500),
        take_back_after: Duration::from_secs(1),
    };
    let address = |number: u8| Some(IpAddr::from([127, 0, 7, number]));
    let key = |digit: &str| Some((Keys::parse(&digit.repeat(64)).unwrap(), false));
    let start = |own: u8, keys| {
        let agent = Agent::start(settings.clone(), keys, || ()).unwrap();
        let others = (1..5).filter(|other| *other != own);
        agent.set_cluster(Cluster {
            own: own.to_string(),
            own_address: address(own),
            others: others.map(|other| (other.to_string(), address(other))).collect(),
        });
        agent.pulse().set_forwarding(Some(Instant::now() + Duration::from_secs(60)));
        agent
    };
    let agents = [start(1, key("a")), start(2, key("a")), start(3, key("b")), start(4, None)];
    let patience = Duration::from_secs(20);
    for (own, other) in [(0, "2"), (1, "1")] {
        until("the other with the key", patience, || agents[own].members().is_ready(other));
        until("what others say", patience, || agents[own].status().datagrams.unauthenticated > 5);
        let seen = agents[own].view().nodes();
        assert_eq!(seen["3"].liveness, Liveness::Unknown);
        assert_eq!(seen["4"].liveness, Liveness::Unknown);
        let status = agents[own].status();
        assert!(status.authenticated);
        assert_eq!((status.datagrams.replayed, status.datagrams.stale), (0, 0));
    }
    assert!(!agents[3].status().authenticated);
}

#[test]
fn a_port_that_is_taken_is_a_warning_and_nothing_is_given_to_the_node() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let settings = MembershipSettings {
        port,
        probe_interval: Duration::from_millis(100),
        suspicion: Duration::from_millis(300),
        take_back_after: Duration::ZERO,
    };
    let agent = Agent::start(settings, None, || ()).unwrap();
    let own_address = Some(IpAddr::from([127, 0, 0, 1]));
    agent.set_cluster(Cluster { own: "a".into(), own_address, ..Cluster::default() });
    agent.pulse().set_forwarding(Some(Instant::now() + Duration::from_secs(60)));
    until("a warning", Duration::from_secs(5), || agent.warning().is_some());
    let warning = agent.warning().unwrap();
    assert!(warning.contains(&port.to_string()) && warning.contains("nothing is given"));
    assert!(!agent.members().is_ready("a"));
}
