//! Egress rules in the tables: the first rule that names source and destination decides, whatever
//! was installed in whatever order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use overlane_api::{
    Change, Egress, EgressAction, Mode, Node, Object, ObjectKey, SnatSettings, Underlay,
};
use overlane_dataplane::tables::compile::{Compiler, Effect};
use overlane_dataplane::tables::egress::{EgressDecision, Holder};
use overlane_dataplane::testing::objects;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn gateway(addresses: &[&str], nodes: &[&str]) -> EgressAction {
    EgressAction::Gateway {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn rule(name: &str, order: u32, sources: &[&str], to: &[&str], action: EgressAction) -> Egress {
    let (sources, destinations) = (nets(sources), nets(to));
    Egress { name: name.into(), order, sources, destinations, action }
}

fn set(rule: Egress) -> Change {
    Change::Set(Object::Egress(rule))
}

fn remove(name: &str) -> Change {
    Change::Remove(ObjectKey::Egress(name.into()))
}

fn this_node(action: EgressAction, keep: &[&str]) -> Change {
    let snat = SnatSettings { action, non_masquerade: nets(keep), ..SnatSettings::default() };
    Change::Set(Object::Node(Node { snat, ..objects::node(Mode::Geneve, Underlay::Ipv4) }))
}

fn decide(compiler: &Compiler, source: &str, destination: &str) -> EgressDecision {
    compiler.snapshot().egress.decide(ip(source), ip(destination))
}

#[test]
fn without_rules_pods_take_the_nodes_address_except_where_they_keep_their_own() {
    let mut compiler = Compiler::new(1);
    assert_eq!(decide(&compiler, "10.244.1.10", "203.0.113.10"), EgressDecision::NoAddress);
    compiler.apply(vec![this_node(EgressAction::Node, &["10.0.0.0/8", "fd00::/8"])]).unwrap();
    let v4 = EgressDecision::Node(ip("10.0.1.4"));
    assert_eq!(decide(&compiler, "10.244.1.10", "203.0.113.10"), v4);
    assert_eq!(decide(&compiler, "10.244.1.10", "10.3.0.1"), EgressDecision::None);
    let v6 = EgressDecision::Node(ip("fd00:10:0:1::4"));
    assert_eq!(decide(&compiler, "fd12::10", "2001:db8:113::10"), v6);
    assert_eq!(decide(&compiler, "fd12::10", "fd77::10"), EgressDecision::None);
    let Change::Set(Object::Node(mut node)) = this_node(EgressAction::Node, &[]) else { return };
    node.addresses.truncate(1);
    compiler.apply(vec![Change::Set(Object::Node(node))]).unwrap();
    assert_eq!(decide(&compiler, "fd12::10", "2001:db8:113::10"), EgressDecision::NoAddress);
    compiler.apply(vec![this_node(EgressAction::Deny, &[])]).unwrap();
    assert_eq!(decide(&compiler, "10.244.1.10", "203.0.113.10"), EgressDecision::Deny);
}

#[test]
fn the_first_rule_in_order_decides() {
    let mut compiler = Compiler::new(1);
    let changes = vec![
        this_node(EgressAction::Node, &[]),
        set(rule("b", 10, &[], &["203.0.113.0/24"], EgressAction::Deny)),
        set(rule("a", 10, &["10.244.1.10/32"], &["203.0.113.10/32"], EgressAction::None)),
        set(rule("z", 5, &["10.244.1.11/32"], &[], gateway(&["198.51.100.1"], &["a"]))),
    ];
    assert_eq!(compiler.apply(changes).unwrap()[1..], [const { Effect::Egress }; 3]);
    let v4 = EgressDecision::Node(ip("10.0.1.4"));
    assert_eq!(decide(&compiler, "10.244.1.10", "203.0.113.10"), EgressDecision::None);
    assert_eq!(decide(&compiler, "10.244.1.10", "203.0.113.11"), EgressDecision::Deny);
    assert_eq!(decide(&compiler, "10.244.1.12", "203.0.113.10"), EgressDecision::Deny);
    assert_eq!(decide(&compiler, "10.244.1.12", "203.0.114.10"), v4);
    let EgressDecision::Gateway(pool) = decide(&compiler, "10.244.1.11", "203.0.113.10") else {
        panic!("no gateway");
    };
    let tables = compiler.snapshot();
    let pool = tables.egress.pool(pool).unwrap();
    assert_eq!(pool.paired(ip("10.244.1.11")), Some(ip("198.51.100.1")));
    assert_eq!(pool.holder, Holder::Here);
    let named = |source, to| compiler.egress_rule(ip(source), ip(to)).map(|rule| &*rule.name);
    assert_eq!(named("10.244.1.10", "203.0.113.10"), Some("a"));
    assert_eq!(named("10.244.1.10", "8.8.8.8"), None);
    compiler.apply(vec![remove("a"), remove("z")]).unwrap();
    assert_eq!(decide(&compiler, "10.244.1.11", "203.0.113.10"), EgressDecision::Deny);
    assert_eq!(decide(&compiler, "10.244.1.11", "8.8.8.8"), v4);
}

#[test]
fn another_holder_of_the_nodes_gateway_concerns_nothing_but_the_rules() {
    let mut compiler = Compiler::new(1);
    let peer = Change::Set(Object::Peer(objects::peer(1, Mode::Geneve)));
    let through = |nodes: &[&str]| this_node(gateway(&["198.51.100.1"], nodes), &[]);
    let holder = |compiler: &Compiler| match decide(compiler, "10.244.1.10", "203.0.113.10") {
        EgressDecision::Gateway(pool) => compiler.snapshot().egress.pool(pool).unwrap().holder,
        other => panic!("{other:?}"),
    };
    compiler.apply(vec![through(&["b", "a"]), peer]).unwrap();
    assert!(matches!(holder(&compiler), Holder::Peer(_)));
    let external = |compiler: &Compiler| {
        let pool = ip("198.51.100.1");
        compiler.snapshot().external.addresses().any(|external| external.address == pool)
    };
    assert!(!external(&compiler));
    assert_eq!(compiler.apply(vec![through(&["a", "b"])]), Ok(vec![Effect::Egress]));
    assert_eq!(holder(&compiler), Holder::Here);
    assert!(external(&compiler), "and its ports are given out here");
    assert_eq!(compiler.apply(vec![through(&["b", "a"])]), Ok(vec![Effect::Egress]));
    assert!(matches!(holder(&compiler), Holder::Peer(_)));
    assert!(!external(&compiler));
    // Anything else is looked at as a whole.
    let effects =
        compiler.apply(vec![this_node(gateway(&["198.51.100.1"], &["b"]), &["10.9.0.0/16"])]);
    assert!(effects.unwrap().contains(&Effect::Node));
}

#[test]
fn a_gateways_addresses_are_where_the_first_known_node_is() {
    let mut compiler = Compiler::new(1);
    let addresses = ["198.51.100.1", "2001:db8::1"];
    compiler
        .apply(vec![
            this_node(EgressAction::Node, &[]),
            set(rule("out", 1, &[], &[], gateway(&addresses, &["c", "b", "a"]))),
        ])
        .unwrap();
    let holder = |compiler: &Compiler| {
        let tables = compiler.snapshot();
        match tables.egress.decide(ip("10.244.1.10"), ip("8.8.8.8")) {
            EgressDecision::Gateway(pool) => tables.egress.pool(pool).unwrap().holder,
            other => panic!("{other:?}"),
        }
    };
    let own = ["10.0.1.4", "fd00:10:0:1::4"];
    let taken = |compiler: &Compiler| compiler.snapshot().egress.addresses().collect::<Vec<_>>();
    assert_eq!(holder(&compiler), Holder::Here);
    assert_eq!(taken(&compiler), own.iter().chain(&addresses).map(|a| ip(a)).collect::<Vec<_>>());
    let peer = |number| Change::Set(Object::Peer(objects::peer(number, Mode::Geneve)));
    compiler.apply(vec![peer(1)]).unwrap();
    assert_eq!(holder(&compiler), Holder::Peer(0));
    assert_eq!(taken(&compiler), own.map(ip));
    compiler.apply(vec![peer(2)]).unwrap();
    assert_eq!(holder(&compiler), Holder::Peer(1));
    compiler.apply(vec![Change::Remove(ObjectKey::Peer("c".into()))]).unwrap();
    assert_eq!(holder(&compiler), Holder::Peer(0));
    compiler.apply(vec![Change::Remove(ObjectKey::Peer("b".into()))]).unwrap();
    assert_eq!(holder(&compiler), Holder::Here);
    compiler.apply(vec![Change::Remove(ObjectKey::Node)]).unwrap();
    assert_eq!(holder(&compiler), Holder::Nobody);
}

#[test]
fn each_refusal_names_the_rule_the_field_and_the_reason() {
    let mut compiler = Compiler::new(1);
    compiler.apply(vec![this_node(EgressAction::Node, &[])]).unwrap();
    let with = |action| rule("out", 1, &[], &[], action);
    let many: Vec<String> = (1..=17).map(|n| format!("198.51.100.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut wide = rule("out", 1, &[], &[], EgressAction::None);
    wide.sources = vec!["10.0.0.0/8".parse().unwrap(); (1 << 17) + 1];
    for (wrong, what, field) in [
        (with(gateway(&[], &["a"])), "0 gateway addresses", "action"),
        (with(gateway(&many, &["a"])), "17 gateway addresses", "action"),
        (with(gateway(&["0.0.0.0"], &["a"])), "0.0.0.0", "action"),
        (with(gateway(&["10.1.1.1", "10.1.1.1"], &["a"])), "twice", "action"),
        (with(gateway(&["10.1.1.1"], &[])), "no node", "action"),
        (wide, "131073 sources", "sources"),
    ] {
        let good = rule("good", 1, &[], &[], EgressAction::Deny);
        let error = compiler.apply(vec![set(good), set(wrong)]).unwrap_err();
        assert!(error.what.contains(what), "{error:?} does not say {what}");
        assert_eq!(error.place.unwrap(), format!("egress out: {field}"));
        assert!(error.hint.is_some());
        assert_eq!(compiler.installed().len(), 1);
        let decision = decide(&compiler, "10.244.1.10", "8.8.8.8");
        assert_eq!(decision, EgressDecision::Node(ip("10.0.1.4")));
    }
    let error = compiler.apply(vec![this_node(gateway(&[], &["a"]), &[])]).unwrap_err();
    assert_eq!(error.place.unwrap(), "node a: snat.action");
}

#[test]
fn rules_that_tell_too_many_groups_apart_are_refused_as_a_whole() {
    let mut compiler = Compiler::new(1);
    compiler.apply(vec![this_node(EgressAction::Node, &[])]).unwrap();
    // Each source is in one rule more than the one before, and each rule has a thousand
    // destinations of its own.
    let rules = (0..100_u32).map(|n| {
        let source = |host: u32| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(0x0af4_0000 + host)));
        let to = |number: u32| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(number * 2)));
        set(Egress {
            name: format!("rule-{n:03}"),
            order: 1,
            sources: (n..100).map(source).collect(),
            destinations: (n * 1000..(n + 1) * 1000).map(to).collect(),
            action: EgressAction::Deny,
        })
    });
    let error = compiler.apply(rules.clone().collect()).unwrap_err();
    assert!(error.what.contains("too many to tell apart"), "{error:?}");
    assert_eq!(compiler.installed().len(), 1);
    assert_eq!(decide(&compiler, "10.244.0.0", "0.0.0.0"), EgressDecision::Node(ip("10.0.1.4")));
    // Some of them are no trouble.
    compiler.apply(rules.take(10).collect()).unwrap();
    assert_eq!(decide(&compiler, "10.244.0.0", "0.0.0.0"), EgressDecision::Deny);
}

/// Ranges that overlap a lot.
fn range() -> impl Strategy<Value = IpNet> {
    let v4 = (0_u32..16, 28_u8..=32)
        .prop_map(|(host, len)| (IpAddr::from(Ipv4Addr::from_bits(0x0af4_0100 + host)), len));
    let v6 = (0_u128..16, 124_u8..=128).prop_map(|(host, len)| {
        (IpAddr::from(std::net::Ipv6Addr::from_bits((0xfd12_u128 << 112) + host)), len)
    });
    prop_oneof![3 => v4, 1 => v6].prop_map(|(ip, len)| IpNet::new(ip, len).unwrap().trunc())
}

fn any_action() -> impl Strategy<Value = EgressAction> {
    prop_oneof![
        Just(EgressAction::Node),
        Just(EgressAction::None),
        Just(EgressAction::Deny),
        Just(gateway(&["198.51.100.1", "2001:db8::1"], &["b", "a"])),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let ranges = || prop::collection::vec(range(), 0..4);
    let rule = (0_u8..8, 0_u32..4, ranges(), ranges(), any_action()).prop_map(
        |(name, order, sources, destinations, action)| {
            set(Egress { name: format!("rule-{name}"), order, sources, destinations, action })
        },
    );
    let node = (any_action(), ranges()).prop_map(|(action, keep)| {
        let Change::Set(Object::Node(mut node)) = this_node(action, &[]) else { unreachable!() };
        node.snat.non_masquerade = keep;
        Change::Set(Object::Node(node))
    });
    prop_oneof![
        8 => rule,
        3 => (0_u8..8).prop_map(|name| remove(&format!("rule-{name}"))),
        1 => node,
        1 => Just(Change::Set(Object::Peer(objects::peer(1, Mode::Geneve)))),
        1 => Just(Change::Remove(ObjectKey::Peer("b".into()))),
    ]
}

type Objects = BTreeMap<ObjectKey, Object>;

/// The action for a flow, and the node's name when the flow keeps its address by its settings.
fn expected(objects: &Objects, source: IpAddr, destination: IpAddr) -> EgressAction {
    let node = objects.values().find_map(|object| match object {
        Object::Node(node) => Some(node),
        _ => None,
    });
    let settings = node.map(|node| node.snat.clone()).unwrap_or_default();
    if settings.non_masquerade.iter().any(|net| net.contains(&destination)) {
        return EgressAction::None;
    }
    let mut rules: Vec<&Egress> = objects
        .values()
        .filter_map(|object| match object {
            Object::Egress(rule) => Some(rule),
            _ => None,
        })
        .collect();
    rules.sort_by_key(|rule| (rule.order, &rule.name));
    let names =
        |nets: &[IpNet], ip: IpAddr| nets.is_empty() || nets.iter().any(|n| n.contains(&ip));
    let first = rules
        .into_iter()
        .find(|rule| names(&rule.sources, source) && names(&rule.destinations, destination));
    first.map_or(settings.action, |rule| rule.action.clone())
}

fn check(compiler: &Compiler, objects: &Objects) -> Result<(), TestCaseError> {
    let tables = compiler.snapshot();
    let v4: Vec<IpAddr> =
        (0..18).map(|host| Ipv4Addr::from_bits(0x0af4_00ff + host).into()).collect();
    let v6: Vec<IpAddr> = (0..18_u128)
        .map(|host| std::net::Ipv6Addr::from_bits((0xfd12_u128 << 112) - 1 + host).into())
        .collect();
    let has_node = objects.contains_key(&ObjectKey::Node);
    let has_peer = objects.contains_key(&ObjectKey::Peer("b".into()));
    let holder = match (has_peer, has_node) {
        (true, _) => Holder::Peer(0),
        (false, true) => Holder::Here,
        (false, false) => Holder::Nobody,
    };
    for (family, node) in [(v4, "10.0.1.4"), (v6, "fd00:10:0:1::4")] {
        for (source, destination) in family.iter().flat_map(|s| family.iter().map(|d| (*s, *d))) {
            let decision = tables.egress.decide(source, destination);
            match expected(objects, source, destination) {
                EgressAction::Node if has_node => {
                    prop_assert_eq!(decision, EgressDecision::Node(ip(node)));
                }
                EgressAction::Node => prop_assert_eq!(decision, EgressDecision::NoAddress),
                EgressAction::None => prop_assert_eq!(decision, EgressDecision::None),
                EgressAction::Deny => prop_assert_eq!(decision, EgressDecision::Deny),
                EgressAction::Gateway { addresses, .. } => {
                    let EgressDecision::Gateway(pool) = decision else {
                        return Err(TestCaseError::fail(format!("{decision:?}")));
                    };
                    let pool = tables.egress.pool(pool).unwrap();
                    prop_assert_eq!(pool.addresses(), addresses);
                    prop_assert_eq!(pool.holder, holder);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tables_are_what_the_rules_say(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..16)
    ) {
        let mut compiler = Compiler::new(1);
        let mut objects = Objects::new();
        for batch in batches {
            for change in &batch {
                match change {
                    Change::Set(object) => objects.insert(object.key(), object.clone()),
                    Change::Remove(key) => objects.remove(key),
                };
            }
            compiler.apply(batch).unwrap();
            check(&compiler, &objects)?;
        }
    }
}
