//! Egress rules as one node sees them.

use super::service_tests::{nodes, web_pod};
use super::tests::{Bed, Desired, compile, config};
use super::*;

use overlane_api::EgressAction;

#[test]
fn egress_rules_follow_pods_and_namespaces() {
    let rules = "gateways: [{name: out, addresses: [203.0.113.1], nodes: [b]}]\n\
        egress:\n\
        - {name: web, podSelector: {matchLabels: {app: web}}, destinationCIDRs: 203.0.113.0/24, action: gateway, gateway: out}\n\
        - {name: shop, namespaceSelector: {matchLabels: {team: shop}}, action: deny}\n\
        - {name: rest, action: none}\n";
    let mut bed = Bed::new(config(rules));
    let rule = |desired: &Desired, name: &str| match desired
        .objects
        .get(&ObjectKey::Egress(name.into()))
    {
        Some(Object::Egress(egress)) => Some(egress.clone()),
        _ => None,
    };
    let desired = bed.show(&nodes());
    assert_eq!(rule(&desired, "web"), None, "a rule for no pod must not be one for all");
    assert_eq!(rule(&desired, "rest").unwrap().sources, []);
    assert!(desired.pending.iter().any(|text| text.contains("rule web waits")), "{desired:?}");
    let pods = web_pod("p1", "a", "10.244.1.10", 80) + &web_pod("p2", "b", "10.244.2.11", 80);
    let desired = bed.show(&(nodes() + &pods));
    let web = rule(&desired, "web").unwrap();
    assert_eq!(web.order, 0);
    assert_eq!(web.sources, ["10.244.1.10/32".parse().unwrap()], "b's pods are b's");
    assert_eq!(web.destinations, ["203.0.113.0/24".parse().unwrap()]);
    assert!(
        matches!(web.action, EgressAction::Gateway { addresses, nodes } if addresses.len() == 1 && nodes == ["b"])
    );
    assert_eq!(rule(&desired, "shop"), None);
    let namespace = "kind: Namespace\nmetadata: {name: default, labels: {team: shop}}\n---\n";
    let desired = bed.show(&(nodes() + &pods + namespace));
    assert_eq!(rule(&desired, "shop").unwrap().sources.len(), 1);
    let moved = pods.replace("10.244.1.10", "10.244.1.12");
    let desired = bed.show(&(nodes() + &moved + namespace));
    assert_eq!(rule(&desired, "web").unwrap().sources, ["10.244.1.12/32".parse().unwrap()]);
    let desired = bed.show(&nodes());
    assert_eq!(rule(&desired, "web"), None);
    // The gateway's node has to know the pods of all others.
    let gateway = config(&rules.replace("nodes: [b]", "nodes: [b, a]"));
    let desired = compile(gateway, &(nodes() + &pods));
    assert_eq!(rule(&desired, "web").unwrap().sources.len(), 2);
}
