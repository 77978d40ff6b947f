//! Services in the tables: whatever is installed in whatever order, lookups find what the objects
//! say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use overlane_api::{
    Algorithm, Backend, BackendState, Change, Forwarding, Frontend, FrontendKind, Mode, Node,
    Object, ObjectKey, Protocol, Reject, Scope, Service, Underlay,
};
use overlane_dataplane::packet::meta::Target;
use overlane_dataplane::tables::compile::{Compiler, Effect};
use overlane_dataplane::tables::services::{Found, UNASSIGNED};
use overlane_dataplane::testing::objects;
use proptest::prelude::*;

/// Addresses at which services of the test may answer: VIPs; the addresses of this node, of a peer,
/// and of a pod here and there, now and then.
const ADDRESSES: [&str; 9] = [
    "10.96.0.20",
    "10.96.0.21",
    "fd98::20",
    "203.0.113.7",
    "10.0.1.4",
    "fd00:10:0:1::4",
    "10.0.1.5",
    "10.244.1.10",
    "10.244.2.10",
];
const PORTS: [u16; 2] = [80, 443];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn backend(address: &str, port: u16) -> Backend {
    Backend {
        address: ip(address),
        port,
        weight: 1,
        local: false,
        use_cluster: true,
        use_local: false,
        serving: true,
        state: BackendState::Ready,
    }
}

fn frontend(address: &str, port: u16, kind: FrontendKind) -> Frontend {
    Frontend { address: ip(address), port, kind }
}

fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        protocol: Protocol::Tcp,
        frontends: vec![frontend("10.96.0.20", 80, FrontendKind::ClusterIp)],
        backends: vec![backend("10.244.1.10", 8080), backend("10.244.2.10", 8080)],
        internal: Scope::Cluster,
        external: Scope::Cluster,
        affinity_seconds: None,
        source_ranges: Vec::new(),
        reject: Reject::Rst,
        forwarding: Forwarding::Snat,
        algorithm: Algorithm::Maglev,
        health_check_port: None,
    }
}

fn set(service: Service) -> Change {
    Change::Set(Object::Service(service))
}

fn remove(name: &str) -> Change {
    Change::Remove(ObjectKey::Service(name.into()))
}

fn this_node(mode: Mode) -> Node {
    let service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    Node { service_cidrs, ..objects::node(mode, Underlay::Ipv4) }
}

fn cluster() -> Compiler {
    let mut compiler = Compiler::new(1);
    compiler.apply(objects::cluster(Mode::Geneve, Underlay::Ipv4, 1)).unwrap();
    compiler.apply(vec![Change::Set(Object::Node(this_node(Mode::Geneve)))]).unwrap();
    compiler
}

fn found(compiler: &Compiler, address: &str, port: u16) -> Option<String> {
    match compiler.snapshot().services.lookup(ip(address), 6, port) {
        Found::Frontend(frontend) => compiler.service_name(frontend.service).map(str::to_owned),
        Found::UnknownPort => Some("unknown port".into()),
        Found::NotAService => None,
    }
}

#[test]
fn an_address_of_a_service_is_told_from_its_ports_and_from_its_range() {
    let mut compiler = cluster();
    let effects = compiler.apply(vec![set(service("default/web:http"))]).unwrap();
    assert_eq!(effects, [Effect::Services]);
    assert_eq!(found(&compiler, "10.96.0.20", 80).unwrap(), "default/web:http");
    assert_eq!(found(&compiler, "10.96.0.20", 81).unwrap(), "unknown port");
    assert_eq!(found(&compiler, "10.96.0.21", 80), None);
    let tables = compiler.snapshot();
    let target = |address| tables.routes.get(ip(address)).target();
    let vip = tables.services.vip(ip("10.96.0.20")).unwrap();
    assert_eq!(target("10.96.0.20"), Target::Service(vip));
    assert!(tables.services.frontend(vip, 6, 80).is_some());
    assert!(tables.services.frontend(vip, 17, 80).is_none());
    assert_eq!(target("10.96.0.21"), Target::Service(UNASSIGNED));
    assert_eq!(target("fd98::21"), Target::Service(UNASSIGNED));
    assert!(tables.services.frontend(UNASSIGNED, 6, 80).is_none());
    assert_eq!(target("10.97.0.21"), Target::None);
    compiler.apply(vec![remove("default/web:http")]).unwrap();
    assert_eq!(found(&compiler, "10.96.0.20", 80), None);
    let after = compiler.snapshot();
    assert_eq!(after.routes.get(ip("10.96.0.20")).target(), Target::Service(UNASSIGNED));
    // Who still has the former tables is not disturbed.
    assert!(tables.services.frontend(vip, 6, 80).is_some());
}

#[test]
fn a_service_takes_no_packets_of_pods_or_nodes() {
    let owned = [("10.0.1.4", 80), ("10.0.1.5", 80), ("10.244.1.10", 80), ("10.244.2.10", 80)];
    let mut greedy = service("default/greedy:http");
    greedy.frontends =
        owned.map(|(address, port)| frontend(address, port, FrontendKind::ExternalIp)).to_vec();
    let keys = [
        ObjectKey::Endpoint(objects::pod_name(0, 0)),
        ObjectKey::Endpoint(objects::pod_name(1, 0)),
        ObjectKey::Endpoint(objects::pod_name(2, 0)),
        ObjectKey::Endpoint(objects::pod_name(0, 1)),
        ObjectKey::Peer("b".into()),
        ObjectKey::Peer("c".into()),
        ObjectKey::Node,
    ];
    let is_service = |compiler: &Compiler, address: &str| {
        matches!(compiler.snapshot().routes.get(ip(address)).target(), Target::Service(_))
    };
    // Before and after: the same.
    for first in [true, false] {
        let mut compiler = Compiler::new(1);
        if first {
            compiler.apply(vec![set(greedy.clone())]).unwrap();
            assert!(owned.iter().all(|(address, _)| is_service(&compiler, address)));
        }
        compiler.apply(objects::cluster(Mode::Geneve, Underlay::Ipv4, 1)).unwrap();
        compiler.apply(vec![set(greedy.clone())]).unwrap();
        for (address, port) in owned {
            assert!(!is_service(&compiler, address), "{address}");
            // A port of this node's own address is found by it.
            assert_eq!(found(&compiler, address, port).unwrap(), greedy.name);
        }
        for key in keys.clone() {
            compiler.apply(vec![Change::Remove(key)]).unwrap();
        }
        assert!(owned.iter().all(|(address, _)| is_service(&compiler, address)));
        compiler.apply(vec![remove(&greedy.name)]).unwrap();
        assert!(!owned.iter().any(|(address, _)| is_service(&compiler, address)));
    }
}

#[test]
fn each_refusal_names_the_service_the_field_and_the_reason() {
    let mut compiler = cluster();
    compiler.apply(vec![set(service("default/web:http"))]).unwrap();
    let other = |change: &dyn Fn(&mut Service)| {
        let mut other = service("default/other:http");
        other.frontends = vec![frontend("10.96.0.21", 80, FrontendKind::ClusterIp)];
        change(&mut other);
        other
    };
    let range = || "10.0.0.0/8".parse().unwrap();
    let cases = [
        (other(&|s| s.frontends[0].address = ip("10.96.0.20")), "default/web:http", "frontends"),
        (other(&|s| s.frontends[0].address = ip("0.0.0.0")), "0.0.0.0", "frontends"),
        (other(&|s| s.frontends[0].address = ip("::1")), "::1", "frontends"),
        (other(&|s| s.frontends[0].port = 0), "port 0", "frontends"),
        (other(&|s| s.frontends.extend(s.frontends.clone())), "twice", "frontends"),
        (
            other(&|s| {
                let more = |p| frontend("10.96.0.21", p, FrontendKind::ClusterIp);
                s.frontends = (1..=1025).map(more).collect();
            }),
            "1025",
            "frontends",
        ),
        (other(&|s| s.backends[1].port = 0), "port 0 of 10.244.2.10", "backends"),
        (other(&|s| s.backends[1].address = ip("ff02::1")), "ff02::1", "backends"),
        (other(&|s| s.backends[1].use_local = true), "not on this node", "backends"),
        (other(&|s| s.backends.extend(s.backends.clone())), "twice", "backends"),
        (
            other(&|s| {
                s.backends = (0..=65_535)
                    .map(|n| backend(&format!("10.1.{}.{}", n / 256, n % 256), 80))
                    .collect();
            }),
            "65536 IPv4",
            "backends",
        ),
        (other(&|s| s.affinity_seconds = Some(0)), "0 seconds", "affinity_seconds"),
        (other(&|s| s.affinity_seconds = Some(86_401)), "86401", "affinity_seconds"),
        (other(&|s| s.source_ranges = vec![range(); 4097]), "4097", "source_ranges"),
        (other(&|s| s.name = String::new()), "no name", "name"),
    ];
    for (wrong, what, field) in cases {
        let mut good = service("default/good:http");
        good.frontends = vec![frontend("10.96.0.22", 80, FrontendKind::ClusterIp)];
        let mut changed = service("default/web:http");
        changed.frontends[0].port = 81;
        if what == "default/web:http" {
            changed.frontends[0].port = 80;
        }
        let before = sorted(compiler.installed());
        let error = compiler.apply(vec![set(good), set(changed), set(wrong.clone())]).unwrap_err();
        assert!(error.what.contains(what), "{error:?} does not say {what}");
        let place = error.place.unwrap();
        assert!(place.contains(&wrong.name) && place.ends_with(field), "{place}");
        assert!(error.hint.is_some());
        assert_eq!(sorted(compiler.installed()), before);
        let at = |address, port| found(&compiler, address, port);
        assert_eq!(at("10.96.0.20", 80).unwrap(), "default/web:http");
        assert_eq!(at("10.96.0.20", 81).unwrap(), "unknown port");
        assert_eq!((at("10.96.0.21", 80), at("10.96.0.22", 80)), (None, None));
    }
}

fn sorted(mut installed: Vec<(ObjectKey, u64)>) -> Vec<(ObjectKey, u64)> {
    installed.sort();
    installed
}

#[test]
fn a_service_that_did_not_change_keeps_its_generation() {
    let mut compiler = cluster();
    let mut other = service("default/other:http");
    other.frontends = vec![frontend("10.96.0.21", 80, FrontendKind::ClusterIp)];
    compiler.apply(vec![set(service("default/web:http")), set(other.clone())]).unwrap();
    let generations = |compiler: &Compiler| {
        let tables = compiler.snapshot();
        ["10.96.0.20", "10.96.0.21"].map(|address| {
            match tables.services.lookup(ip(address), 6, 80) {
                Found::Frontend(frontend) => {
                    tables.services.service(frontend.service).unwrap().generation
                }
                _ => 0,
            }
        })
    };
    let before = generations(&compiler);
    compiler.apply(vec![set(other.clone())]).unwrap();
    assert_eq!(generations(&compiler), before);
    other.backends.pop();
    assert_eq!(compiler.apply(vec![set(other)]).unwrap(), []);
    let after = generations(&compiler);
    assert!(after[0] == before[0] && after[1] > before[1]);
    // A service that has the place of another is known to be another.
    compiler.apply(vec![remove("default/web:http")]).unwrap();
    compiler.apply(vec![set(service("default/new:http"))]).unwrap();
    assert!(generations(&compiler)[0] > after[0]);
}

fn any_service() -> impl Strategy<Value = Change> {
    let frontends = prop::collection::btree_map(
        (0..ADDRESSES.len(), 0..PORTS.len()),
        prop_oneof![
            Just(FrontendKind::ClusterIp),
            Just(FrontendKind::NodePort),
            Just(FrontendKind::LoadBalancer),
            Just(FrontendKind::ExternalIp)
        ],
        0..4,
    );
    let backends = prop::collection::btree_map((0_u8..6, any::<bool>()), 0_u8..16, 0..5);
    let settings = (0_u8..4, any::<[bool; 5]>());
    (frontends, backends, settings).prop_map(|(frontends, backends, (name, bits))| {
        let [udp, random, ranges, internal, external] = bits;
        let scope = |local| if local { Scope::Local } else { Scope::Cluster };
        set(Service {
            name: format!("default/service-{name}"),
            protocol: PROTOCOLS[usize::from(udp)],
            frontends: frontends
                .into_iter()
                .map(|((address, port), kind)| frontend(ADDRESSES[address], PORTS[port], kind))
                .collect(),
            backends: backends
                .into_iter()
                .map(|((pod, v6), flags)| Backend {
                    local: flags & 1 != 0,
                    use_cluster: flags & 2 != 0,
                    use_local: flags & 5 == 5,
                    weight: u16::from(flags & 8 == 0),
                    ..backend(&objects::pod_addresses(1, pod)[usize::from(v6)].to_string(), 8080)
                })
                .collect(),
            internal: scope(internal),
            external: scope(external),
            source_ranges: if ranges { vec!["203.0.113.0/24".parse().unwrap()] } else { vec![] },
            algorithm: if random { Algorithm::Random } else { Algorithm::Maglev },
            ..service("")
        })
    })
}

fn any_change(mode: Mode) -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => any_service(),
        2 => (0_u8..4).prop_map(|name| remove(&format!("default/service-{name}"))),
        1 => Just(Change::Set(Object::Node(this_node(mode)))),
        1 => Just(Change::Set(Object::Peer(objects::peer(1, mode)))),
        1 => Just(Change::Remove(ObjectKey::Node)),
        1 => Just(Change::Remove(ObjectKey::Peer("b".into()))),
        1 => Just(Change::Set(Object::Endpoint(objects::local_pod(0, 0)))),
        1 => Just(Change::Set(Object::Endpoint(objects::remote_pod(1, 0)))),
        1 => Just(Change::Remove(ObjectKey::Endpoint(objects::pod_name(0, 0)))),
        1 => Just(Change::Remove(ObjectKey::Endpoint(objects::pod_name(1, 0)))),
    ]
}

type Objects = BTreeMap<ObjectKey, Object>;

fn services(objects: &Objects) -> impl Iterator<Item = &Service> {
    objects.values().filter_map(|object| match object {
        Object::Service(service) => Some(service),
        _ => None,
    })
}

/// Does the change collide with another service's frontends?
fn collides(objects: &Objects, change: &Change) -> bool {
    let Change::Set(Object::Service(new)) = change else { return false };
    services(objects).filter(|other| other.name != new.name && other.protocol == new.protocol).any(
        |other| {
            let at = |f: &Frontend| (f.address, f.port);
            new.frontends.iter().any(|f| other.frontends.iter().any(|g| at(f) == at(g)))
        },
    )
}

/// Has a node or a pod the address?
fn is_owned(objects: &Objects, address: IpAddr) -> bool {
    objects.values().any(|object| match object {
        Object::Node(node) => {
            node.addresses.contains(&address) || node.gateway_addresses.contains(&address)
        }
        Object::Peer(peer) => peer.addresses.contains(&address),
        Object::Endpoint(endpoint) => endpoint.addresses.contains(&address),
        _ => false,
    })
}

fn check(compiler: &Compiler, objects: &Objects) -> Result<(), TestCaseError> {
    let tables = compiler.snapshot();
    let mut fresh = Compiler::new(1);
    fresh.apply(objects.values().cloned().map(Change::Set).collect()).unwrap();
    let anew = fresh.snapshot();
    prop_assert_eq!(tables.services.len(), services(objects).count());
    for address in ADDRESSES.map(ip) {
        let here = |s: &&Service| s.frontends.iter().any(|f| f.address == address);
        let is_vip = services(objects).any(|s| here(&s));
        let target = tables.routes.get(address).target();
        match (is_vip && !is_owned(objects, address), target) {
            (true, Target::Service(vip)) => {
                prop_assert_eq!(Some(vip), tables.services.vip(address));
            }
            (true, other) => prop_assert!(false, "{}: {:?}", address, other),
            (false, Target::Service(vip)) => prop_assert_eq!(vip, UNASSIGNED),
            (false, _) => {}
        }
        for (protocol, port) in PROTOCOLS.iter().flat_map(|p| PORTS.map(|port| (*p, port))) {
            let at = |f: &&Frontend| f.address == address && f.port == port;
            let expected = services(objects)
                .filter(|s| s.protocol == protocol)
                .find_map(|s| s.frontends.iter().find(at).map(|f| (s, f.kind)));
            let number = protocol.number();
            match tables.services.lookup(address, number, port) {
                Found::Frontend(frontend) => {
                    let name = compiler.service_name(frontend.service);
                    let (service, kind) = expected.unwrap();
                    prop_assert_eq!((name, frontend.kind), (Some(&*service.name), kind));
                    let entry = tables.services.service(frontend.service).unwrap();
                    let Found::Frontend(other) = anew.services.lookup(address, number, port) else {
                        return Err(TestCaseError::fail("not found when made anew"));
                    };
                    let other = anew.services.service(other.service).unwrap();
                    prop_assert!(entry.v4 == other.v4 && entry.v6 == other.v6);
                    let has_any =
                        if address.is_ipv4() { entry.v4.has_any() } else { entry.v6.has_any() };
                    prop_assert_eq!(has_any, service.has_any(address));
                    prop_assert_eq!(entry.internal, service.internal);
                    prop_assert_eq!(entry.external, service.external);
                    prop_assert_eq!(&entry.sources, &other.sources);
                    prop_assert_eq!(entry.sources.is_some(), !service.source_ranges.is_empty());
                }
                Found::UnknownPort => prop_assert!(expected.is_none() && is_vip),
                Found::NotAService => prop_assert!(!is_vip),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn tables_are_what_the_objects_say(
        batches in prop_oneof![Just(Mode::Geneve), Just(Mode::Flat)].prop_flat_map(|mode| {
            prop::collection::vec(prop::collection::vec(any_change(mode), 1..4), 1..24)
        })
    ) {
        let mut compiler = Compiler::new(1);
        let mut objects = Objects::new();
        for batch in batches {
            let mut after = objects.clone();
            let mut collision = false;
            for change in &batch {
                collision |= collides(&after, change);
                match change {
                    Change::Set(object) => after.insert(object.key(), object.clone()),
                    Change::Remove(key) => after.remove(key),
                };
            }
            match compiler.apply(batch.clone()) {
                Ok(_) => {
                    prop_assert!(!collision);
                    objects = after;
                }
                Err(error) => {
                    let about_services = error.place.unwrap_or_default().starts_with("service");
                    prop_assert!(collision || !about_services, "{:?}", batch);
                }
            }
            check(&compiler, &objects)?;
        }
    }
}
