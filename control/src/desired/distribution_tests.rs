//! `trafficDistribution` where pods stand in for slices: what the endpoint slice controller would
//! hint (KEP-4444, KEP-3015).

use super::service_tests::{NAMED, endpoint, service, sets, slice, web_pod};
use super::tests::{Bed, Desired, compile, config, node};
use overlane_api::ObjectKey;

/// Node `own`, a, b and c; a and b are in zone z1, c in z2, d is in none.
fn nodes() -> String {
    let in_zone = |name: &str, zone: &str| {
        format!("metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}")
    };
    let all = [("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "")].into_iter().zip(1..);
    let text = all.map(|((name, zone), n)| {
        let text = node(name, &format!("10.244.{n}.0/24"), &format!("10.0.1.{}", n + 3));
        let bare = format!("metadata: {{name: {name}}}");
        if zone.is_empty() { text } else { text.replace(&bare, &in_zone(name, zone)) }
    });
    text.collect()
}

/// Ready pods 10.244.x.`last` of `web`, each on the node `on`.
fn pods(all: &[(&str, u8)]) -> String {
    let pod = |(on, last): &(&str, u8)| {
        let third = 1 + "abcd".find(on).unwrap();
        web_pod(&format!("p{last}"), on, &format!("10.244.{third}.{last}"), 8080)
    };
    all.iter().map(pod).collect()
}

fn preferring(word: &str) -> String {
    NAMED.replace("  ports", &format!("  trafficDistribution: {word}\n  ports"))
}

fn not_ready(text: &str, last: u8) -> String {
    let address = format!(".{last}'");
    text.replace(&address, &format!("{address}, conditions: [{{type: Ready, status: 'False'}}]"))
}

fn cluster(desired: &Desired) -> Vec<u8> {
    assert_eq!(desired.problems, []);
    sets(&service(desired, "default/web:80")).0
}

/// What is written, where this node is, the pods, those that it uses.
type Case =
    (&'static str, &'static str, &'static str, &'static [(&'static str, u8)], &'static [u8]);

#[test]
fn pods_near_the_client_are_preferred_as_their_hints_would_say() {
    let table: [Case; 15] = [
        ("own zone", "PreferSameZone", "a", &[("a", 10), ("b", 11), ("c", 12)], &[10, 11]),
        ("its old name", "PreferClose", "a", &[("a", 10), ("b", 11), ("c", 12)], &[10, 11]),
        ("from the other zone", "PreferSameZone", "c", &[("a", 10), ("b", 11), ("c", 12)], &[12]),
        ("nobody in the zone", "PreferSameZone", "c", &[("a", 10), ("b", 11)], &[10, 11]),
        ("client in no zone", "PreferSameZone", "d", &[("a", 10), ("c", 12)], &[10, 12]),
        (
            "a pod in no zone",
            "PreferSameZone",
            "a",
            &[("a", 10), ("c", 12), ("d", 13)],
            &[10, 12, 13],
        ),
        (
            "own node",
            "PreferSameNode",
            "a",
            &[("a", 10), ("a", 14), ("b", 11), ("c", 12)],
            &[10, 14],
        ),
        ("then its zone", "PreferSameNode", "b", &[("a", 10), ("c", 12)], &[10]),
        ("then all", "PreferSameNode", "c", &[("a", 10), ("b", 11)], &[10, 11]),
        ("own node in no zone", "PreferSameNode", "d", &[("a", 10), ("d", 13)], &[13]),
        ("own node, others in no zone", "PreferSameNode", "a", &[("a", 10), ("d", 13)], &[10]),
        ("no zone to fall back to", "PreferSameNode", "b", &[("a", 10), ("d", 13)], &[10, 13]),
        ("nothing is preferred", "null", "a", &[("a", 10), ("c", 12)], &[10, 12]),
        ("nor is it when empty", "''", "a", &[("a", 10), ("c", 12)], &[10, 12]),
        ("no pods", "PreferSameNode", "a", &[], &[]),
    ];
    for (what, word, own, all, expected) in table {
        let mut config = config("");
        own.clone_into(&mut config.node_name);
        let desired = compile(config, &(nodes() + &preferring(word) + &pods(all)));
        assert_eq!(cluster(&desired), expected, "{what}");
        assert_eq!(desired.notes, [""; 0], "{what}");
    }
}

#[test]
fn a_pod_that_is_not_ready_has_no_say() {
    let near = pods(&[("a", 10), ("b", 11), ("c", 12), ("d", 13)]);
    let text = nodes() + &preferring("PreferClose");
    let all = cluster(&compile(config(""), &(text.clone() + &near)));
    assert_eq!(all, [10, 11, 12, 13], "13 has no hint");
    let without = cluster(&compile(config(""), &(text.clone() + &not_ready(&near, 13))));
    assert_eq!(without, [10, 11]);
    let only_far = not_ready(&not_ready(&not_ready(&near, 13), 10), 11);
    assert_eq!(cluster(&compile(config(""), &(text + &only_far))), [12]);
}

#[test]
fn policies_of_scope_local_and_slices_know_nothing_of_it() {
    let all = pods(&[("a", 10), ("b", 11), ("c", 12)]);
    let text = nodes() + &preferring("PreferSameZone");
    let local = sets(&service(&compile(config(""), &(text.clone() + &all)), "default/web:80")).1;
    assert_eq!(local, [10]);
    // What slices hint is the controller's affair.
    let unhinted = slice("web-1", &[&endpoint("a", 20, "rs"), &endpoint("b", 21, "rs")])
        .replace("{name: http, port", "{port");
    assert_eq!(cluster(&compile(config(""), &(text + &all + &unhinted))), [20, 21]);
}

#[test]
fn a_zone_that_changes_concerns_only_services_that_prefer_what_is_near() {
    let mut bed = Bed::new(config(""));
    let other =
        NAMED.replace("web}", "db}").replace("0.20", "0.21").replace("app: db}", "app: web}");
    let rest = preferring("PreferSameZone") + &other + &pods(&[("a", 10), ("b", 11), ("c", 12)]);
    assert_eq!(cluster(&bed.show(&(nodes() + &rest))), [10, 11]);
    let moved = nodes().replace(
        "name: c, labels: {topology.kubernetes.io/zone: z2",
        "name: c, labels: {topology.kubernetes.io/zone: z1",
    );
    let desired = bed.show(&(moved + &rest));
    assert_eq!(cluster(&desired), [10, 11, 12]);
    assert_eq!(desired.changed, ["service default/web:80"]);
    assert_eq!(desired.objects, bed.afresh());
    // A node whose manifest comes late.
    let (without, c) = (nodes().replace("name: c,", "name: e,"), nodes());
    assert_eq!(cluster(&bed.show(&(without + &rest))), [10, 11, 12], "12 has no hint");
    let desired = bed.show(&(c + &rest));
    assert_eq!(cluster(&desired), [10, 11]);
    assert_eq!(desired.objects, bed.afresh());
    assert!(desired.objects.contains_key(&ObjectKey::Service("default/db:80".into())));
}

#[test]
fn a_word_that_is_not_known_changes_nothing_and_is_said() {
    let text = nodes() + &preferring("PreferSamePlanet") + &pods(&[("a", 10), ("c", 12)]);
    let desired = compile(config(""), &text);
    assert_eq!(cluster(&desired), [10, 12]);
    let [note] = &desired.notes[..] else { panic!("{:?}", desired.notes) };
    assert!(note.contains("PreferSamePlanet") && note.contains("PreferSameNode"), "{note}");
}
