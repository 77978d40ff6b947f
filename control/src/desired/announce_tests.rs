use super::*;

use crate::desired::service_tests::{endpoint, slice, web};
use crate::desired::tests::{Bed, config, node};
use overlane_api::EgressAction;

const ON: &str = "announce: {loadBalancerIPs: true}\n";

fn nodes() -> String {
    ["a", "b", "c"]
        .iter()
        .zip(1..)
        .map(|(name, n)| node(name, &format!("10.244.{n}.0/24"), &format!("10.0.1.{}", n + 3)))
        .collect()
}

/// Node `own` of three, with this configuration.
fn bed(own: &str, more: &str) -> Bed {
    let mut config = config(more);
    own.clone_into(&mut config.node_name);
    Bed::new(config)
}

fn members(ready: &[&str]) -> Members {
    Members::tracked(ready.iter().map(|name| (*name).to_owned()).collect(), true)
}

/// Service `web` as a load balancer at these addresses.
fn balanced(addresses: &[&str], more: &str) -> String {
    let ingress: Vec<String> = addresses.iter().map(|ip| format!("{{ip: {ip}}}")).collect();
    let status = format!("status: {{loadBalancer: {{ingress: [{}]}}}}\n---\n", ingress.join(", "));
    web(&format!("type: LoadBalancer, {more}")).replace("---\n", &status)
}

fn announced(bed: &Bed) -> Vec<String> {
    let keys = bed.compiler.objects().keys();
    let announced = keys.filter_map(|key| match key {
        ObjectKey::Announcement(address) => Some(address.to_string()),
        _ => None,
    });
    announced.collect()
}

fn holder(bed: &Bed, address: &str) -> Option<String> {
    let all = bed.compiler.announcements();
    all.into_iter().find(|one| one.address.to_string() == address).and_then(|one| one.node)
}

#[test]
fn of_the_ready_nodes_exactly_one_announces_each_address() {
    let addresses: Vec<String> = (0..40).map(|n| format!("10.0.7.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let manifests = nodes() + &balanced(&addresses, "");
    let mut beds = ["a", "b", "c"].map(|own| bed(own, ON));
    for bed in &mut beds {
        assert_eq!(bed.show(&manifests).problems, []);
        assert_eq!(announced(bed), [""; 0], "nobody is known to be ready yet");
    }
    let mut former: Option<(Vec<&str>, Vec<Option<String>>)> = None;
    for ready in [&["a", "b", "c"][..], &["a", "b"], &["b"], &["b", "c"], &["a", "b", "c"], &[]] {
        let mut all = Vec::new();
        for (bed, own) in beds.iter_mut().zip(["a", "b", "c"]) {
            let changed = bed.compiler.set_members(members(ready));
            assert!(changed.iter().all(|key| matches!(key, ObjectKey::Announcement(_))));
            let own_ones = announced(bed);
            assert!(ready.contains(&own) || own_ones.is_empty(), "{own} is not ready");
            assert_eq!(bed.afresh(), *bed.compiler.objects());
            all.extend(own_ones);
        }
        all.sort();
        let mut expected: Vec<&str> = if ready.is_empty() { Vec::new() } else { addresses.clone() };
        expected.sort_unstable();
        assert_eq!(all, expected, "each once with {ready:?}");
        let holders: Vec<_> = addresses.iter().map(|ip| holder(&beds[0], ip)).collect();
        for bed in &beds {
            let same: Vec<_> = addresses.iter().map(|ip| holder(bed, ip)).collect();
            assert_eq!(same, holders, "all agree");
        }
        if let Some((were, had)) = former {
            for (before, now) in had.iter().zip(&holders) {
                let stays = |name: &String| ready.contains(&name.as_str());
                let is_new = |name: &String| !were.contains(&name.as_str());
                let moved = before != now && before.as_ref().is_some_and(stays);
                assert!(!moved || now.as_ref().is_some_and(is_new), "{before:?} to {now:?}");
            }
        }
        former = Some((ready.to_vec(), holders));
    }
    assert_eq!(beds[0].compiler.announcement_warnings().len(), addresses.len());
    assert!(beds[0].compiler.announcement_warnings()[0].contains("no node is live"));
}

#[test]
fn a_node_that_has_just_become_ready_waits_until_others_have_heard() {
    let mut bed = bed("a", ON);
    bed.show(&(nodes() + &balanced(&["10.0.7.1"], "")));
    let ready = |may_answer| Members::tracked(["a".to_owned()].into(), may_answer);
    bed.compiler.set_members(ready(false));
    assert_eq!(announced(&bed), [""; 0]);
    let status = bed.compiler.announcements();
    assert_eq!((status[0].node.as_deref(), status[0].here), (Some("a"), false));
    bed.compiler.set_members(ready(true));
    assert_eq!(announced(&bed), ["10.0.7.1"]);
    assert!(bed.compiler.announcements()[0].here);
    assert_eq!(bed.compiler.announcements()[0].services, ["default/web:http"]);
    assert_eq!(bed.compiler.announcement_warnings(), [""; 0]);
    // Without the service it is nobody's.
    bed.show(&nodes());
    assert_eq!(announced(&bed), [""; 0]);
    assert_eq!(bed.compiler.announcements(), []);
}

#[test]
fn only_what_is_asked_for_and_lies_on_the_node_network_is_announced() {
    let addresses = ["10.0.7.1", "198.51.100.7", "10.0.1.5"];
    let external = "externalIPs: [10.0.7.9]";
    let manifests = nodes() + &balanced(&addresses, external);
    for (more, expected) in [
        ("", &[][..]),
        (ON, &["10.0.7.1"]),
        ("enableExternalIPs: true\n", &[]),
        ("enableExternalIPs: true\nannounce: {externalIPs: true}\n", &["10.0.7.9"]),
        (
            "enableExternalIPs: true\nannounce: {externalIPs: true, loadBalancerIPs: true}\n",
            &["10.0.7.1", "10.0.7.9"],
        ),
    ] {
        let mut bed = bed("a", more);
        bed.show(&manifests);
        bed.compiler.set_members(members(&["a"]));
        assert_eq!(announced(&bed), expected, "{more}: one is routed, one is node b's own");
    }
}

#[test]
fn under_the_policy_local_only_nodes_with_a_ready_endpoint_answer() {
    let local = balanced(&["10.0.7.1"], "externalTrafficPolicy: Local");
    let show = |bed: &mut Bed, endpoints: &[String]| {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        bed.show(&(nodes() + &local + &slice("web-1", &endpoints)));
        holder(bed, "10.0.7.1")
    };
    let mut bed = bed("a", ON);
    bed.compiler.set_members(members(&["a", "b", "c"]));
    let only_b = [endpoint("b", 10, "rs")];
    assert_eq!(show(&mut bed, &only_b).as_deref(), Some("b"));
    let b_ends = [endpoint("b", 10, "st"), endpoint("a", 11, "rs")];
    assert_eq!(show(&mut bed, &b_ends).as_deref(), Some("a"), "ready before ending");
    let all_end = [endpoint("b", 10, "st")];
    assert_eq!(show(&mut bed, &all_end).as_deref(), Some("b"), "better than none");
    assert_eq!(show(&mut bed, &[]), None);
    assert!(bed.compiler.announcement_warnings()[0].contains("no ready endpoint"));
    show(&mut bed, &only_b);
    bed.compiler.set_members(members(&["a", "c"]));
    assert_eq!(holder(&bed, "10.0.7.1"), None, "the others would drop it");
    let warning = &bed.compiler.announcement_warnings()[0];
    assert!(
        warning.contains("only b serve it") && warning.contains("default/web:http"),
        "{warning}"
    );
    assert_eq!(bed.afresh(), *bed.compiler.objects());
}

const GATEWAY: &str = "gateways: [{name: out, addresses: [10.0.9.1, 203.0.113.1], nodes: [b, a]}]\n\
    snat: {action: gateway, gateway: out}\n\
    egress: [{name: rest, action: gateway, gateway: out}]\n";

fn gateway_nodes(bed: &Bed) -> [Vec<String>; 2] {
    let nodes = |action: &EgressAction| match action {
        EgressAction::Gateway { nodes, .. } => nodes.clone(),
        other => panic!("{other:?}"),
    };
    let objects = bed.compiler.objects();
    let Some(Object::Node(own)) = objects.get(&ObjectKey::Node) else { panic!("no node") };
    let Some(Object::Egress(rule)) = objects.get(&ObjectKey::Egress("rest".into())) else {
        panic!("no rule")
    };
    [nodes(&own.snat.action), nodes(&rule.action)]
}

#[test]
fn a_gateway_is_held_by_the_first_of_its_nodes_that_is_ready() {
    let mut beds = ["a", "b", "c"].map(|own| bed(own, GATEWAY));
    for bed in &mut beds {
        bed.show(&nodes());
    }
    for (ready, first, holder_of) in [
        (&["a", "b", "c"][..], "b", Some("b")),
        (&["a", "c"], "a", Some("a")),
        (&["c"], "b", None),
        (&["a", "b"], "b", Some("b")),
    ] {
        for (bed, own) in beds.iter_mut().zip(["a", "b", "c"]) {
            bed.compiler.set_members(members(ready));
            for nodes in gateway_nodes(bed) {
                assert_eq!((nodes[0].as_str(), nodes.len()), (first, 2), "{own} with {ready:?}");
            }
            assert_eq!(holder(bed, "10.0.9.1").as_deref(), holder_of);
            let expected = if holder_of == Some(own) { vec!["10.0.9.1"] } else { Vec::new() };
            assert_eq!(announced(bed), expected, "not what is off the link");
            let warned = !bed.compiler.announcement_warnings().is_empty();
            assert_eq!(warned, holder_of.is_none());
            assert_eq!(bed.afresh(), *bed.compiler.objects());
        }
    }
}

#[test]
fn a_gateway_of_one_node_needs_nobody_to_keep_track() {
    let one = GATEWAY.replace("[b, a]", "[a]");
    assert_eq!(config(&one).membership, None);
    let mut here = bed("a", &one);
    here.show(&nodes());
    assert_eq!(announced(&here), ["10.0.9.1"]);
    let mut elsewhere = bed("b", &one);
    elsewhere.show(&nodes());
    assert_eq!(announced(&elsewhere), [""; 0]);
    let mut off = bed("a", &(one + "announce: {natGatewayIPs: false}\n"));
    off.show(&nodes());
    assert_eq!(announced(&off), [""; 0]);
}
