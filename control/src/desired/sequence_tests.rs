//! Whatever changes in whatever order: the outcome is that of a start with the last state.

use super::service_tests::{endpoint, nodes, slice};
use super::tests::{Bed, config, pod};
use crate::membership::Members;
use overlane_api::ObjectKey;

/// A small generator of choices (xorshift), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.roll(all.len() as u64)).unwrap()]
    }
}

/// Parts of a state, each of which can be rolled anew: the nodes, services that fight for
/// frontends, their slices, pods.
const PARTS: usize = 11;

fn random_part(part: usize, dice: &mut Dice) -> String {
    let app = ["x", "y"][usize::from(dice.roll(2) == 0)];
    match part {
        0 if dice.roll(3) == 0 => nodes().replace("zone: z1", "zone: z2"),
        0 if dice.roll(2) == 0 => nodes().replace(
            "metadata: {name: b}",
            "metadata: {name: b, labels: {topology.kubernetes.io/zone: z1}}",
        ),
        0 => nodes(),
        1..=3 if dice.roll(5) > 0 => {
            let type_ = dice.one_of(&["ClusterIP", "NodePort", "LoadBalancer"]);
            let policy = dice.one_of(&["Cluster", "Local"]);
            let prefer = dice.one_of(&["PreferSameZone", "PreferSameNode", "''"]);
            format!(
                "kind: Service\nmetadata: {{name: s{part}}}\nspec: {{type: {type_}, clusterIP: 10.96.0.{}, \
                 externalTrafficPolicy: {policy}, trafficDistribution: {prefer}, selector: {{app: {app}}}, ports: [{{port: 80, nodePort: 30080}}]}}\n\
                 status: {{loadBalancer: {{ingress: [{{ip: 10.0.7.{}}}]}}}}\n---\n",
                20 + dice.roll(2),
                dice.roll(3)
            )
        }
        4..=6 if dice.roll(2) == 0 => {
            let name = format!("s{}", part - 3);
            let hint = |zone| format!("}}, hints: {{forZones: [{{name: z{zone}}}]}}}}");
            let backend = endpoint("b", u8::try_from(10 + dice.roll(3)).unwrap(), "rs");
            let other = endpoint("b", 13, ["rs", "st"][usize::from(dice.roll(2) == 0)]);
            slice(
                &format!("{name}-1"),
                &[&backend.replace("}}", &hint(1)), &other.replace("}}", &hint(2))],
            )
            .replace("service-name: web", &format!("service-name: {name}"))
            .replace("{name: http, port", "{port")
        }
        7.. if dice.roll(4) > 0 => {
            let name = format!("p{part}");
            let labels = format!(
                "{{name: {name}, labels: {{app: {app}}}, annotations: {{overlane.io/weight: '{}'}}}}",
                dice.roll(3)
            );
            let on = ["a", "b"][usize::from(dice.roll(2) == 0)];
            pod(&name, on, &format!("10.244.2.{}", 3 + part))
                .replace(&format!("{{name: {name}}}"), &labels)
        }
        _ => String::new(),
    }
}

#[test]
fn any_sequence_of_changes_ends_where_a_fresh_start_does() {
    let rules = "egress:\n- {name: x, podSelector: {matchLabels: {app: x}}, action: none}\n\
        - {name: y, podSelector: {matchLabels: {app: y}}, action: gateway, gateway: out}\n\
        gateways: [{name: out, addresses: [10.0.7.9], nodes: [b, a]}]\n\
        announce: {loadBalancerIPs: true}\n";
    let mut announced = 0;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..20 {
        let mut bed = Bed::new(config(rules));
        let mut parts: Vec<String> = (0..PARTS).map(|part| random_part(part, &mut dice)).collect();
        for step in 0..30 {
            for _ in 0..=dice.roll(2) {
                let part = usize::try_from(dice.roll(PARTS as u64)).unwrap();
                parts[part] = random_part(part, &mut dice);
            }
            if dice.roll(4) == 0 {
                let ready = ["a", "b", "c"].into_iter().filter(|_| dice.roll(3) > 0);
                let ready = ready.map(str::to_owned).collect();
                bed.compiler.set_members(Members::tracked(ready, dice.roll(4) > 0));
            }
            let text = parts.concat();
            let desired = bed.show(&text);
            assert_eq!(desired.objects, bed.afresh(), "round {round}, step {step}:\n{text}");
            let is_announced = |key: &&ObjectKey| matches!(key, ObjectKey::Announcement(_));
            announced += desired.objects.keys().filter(is_announced).count();
        }
    }
    assert!(announced > 50, "{announced}: the test is of something");
}
