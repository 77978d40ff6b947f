use super::*;

use overlane_api::{Attachment, Endpoint, Node};

use std::path::Path;

use crate::config;
use crate::host::Host;
use crate::manifests;
use crate::validate::validate;

const CONFIG: &str = "nodeName: a\nuplink: eth0\nmode: geneve\nnodeCIDR: [10.0.0.0/16, 'fd00:10::/48']\n\
     podCIDR: [10.244.0.0/16, 'fd12:3456::/48']\nserviceCIDR: 10.96.0.0/16\n";

pub(super) fn config(more: &str) -> Validated {
    let text = format!("{CONFIG}{more}");
    validate(config::parse(Path::new("node.yaml"), &text).unwrap().config, Host::default()).unwrap()
}

/// The same node with service ranges of both families.
pub(super) fn dual_stack() -> Validated {
    let text = CONFIG.replace("10.96.0.0/16", "[10.96.0.0/16, 'fd98::/108']");
    validate(config::parse(Path::new("node.yaml"), &text).unwrap().config, Host::default()).unwrap()
}

pub(super) fn node(name: &str, range: &str, address: &str) -> String {
    format!(
        "kind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: '{range}'}}\n\
         status: {{addresses: [{{type: InternalIP, address: '{address}'}}]}}\n---\n"
    )
}

pub(super) fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n\
         status: {{podIP: '{address}'}}\n---\n"
    )
}

fn view(text: &str) -> View {
    let mut view = View::default();
    for manifest in manifests::read(Path::new("x.yaml"), text).unwrap().manifests {
        view.manifests.insert(manifest.key(), (manifest, "x.yaml".into()));
    }
    view
}

/// What a compiler has to say.
#[derive(Debug)]
pub(super) struct Desired {
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    pub(super) problems: Vec<Problem>,
    pub(super) pending: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) incomplete: bool,
    pub(super) changed: Vec<String>,
}

/// A compiler that is shown one state of the manifests after another.
pub(super) struct Bed {
    pub(super) compiler: Compiler,
    config: Validated,
    view: View,
}

impl Bed {
    pub(super) fn new(config: Validated) -> Self {
        Self { compiler: Compiler::new(config.clone()), config, view: View::default() }
    }

    /// Shows it the difference between the last state and this one, and checks that it says
    /// which objects that changes.
    pub(super) fn show(&mut self, text: &str) -> Desired {
        let next = view(text);
        let mut update = Update::from(next.clone());
        update.changes.retain(|key, placed| self.view.manifests.get(key) != placed.as_ref());
        let gone = self.view.manifests.keys().filter(|key| !next.manifests.contains_key(*key));
        update.changes.extend(gone.map(|key| (key.clone(), None)));
        self.view = next;
        let before = self.compiler.objects().clone();
        let changed = self.compiler.take(update);
        let now = self.compiler.objects();
        let keys: BTreeSet<&ObjectKey> = before.keys().chain(now.keys()).collect();
        let differ: Vec<&ObjectKey> =
            keys.into_iter().filter(|key| before.get(*key) != now.get(*key)).collect();
        assert_eq!(changed.iter().collect::<Vec<_>>(), differ);
        let account = self.compiler.account().clone();
        Desired {
            objects: now.clone(),
            problems: account.problems,
            pending: account.pending,
            notes: account.notes,
            incomplete: account.incomplete,
            changed: changed.iter().map(ToString::to_string).collect(),
        }
    }

    /// What a compiler makes of the present state that has seen nothing before.
    pub(super) fn afresh(&self) -> BTreeMap<ObjectKey, Object> {
        let mut fresh = Compiler::new(self.config.clone());
        fresh.set_members(self.compiler.members.clone());
        fresh.take(self.view.clone().into());
        fresh.objects().clone()
    }
}

/// What is desired of these manifests alone.
pub(super) fn compile(config: Validated, text: &str) -> Desired {
    Bed::new(config).show(text)
}

fn endpoint<'a>(desired: &'a Desired, name: &str) -> Option<&'a Endpoint> {
    match desired.objects.get(&ObjectKey::Endpoint(format!("default/{name}"))) {
        Some(Object::Endpoint(endpoint)) => Some(endpoint),
        _ => None,
    }
}

fn own(desired: &Desired) -> &Node {
    match desired.objects.get(&ObjectKey::Node) {
        Some(Object::Node(node)) => node,
        _ => panic!("no node: {desired:?}"),
    }
}

#[test]
fn pods_are_local_or_behind_their_node() {
    let text = node("a", "10.244.1.0/24", "10.0.1.4")
        + &node("b", "10.244.2.0/24", "10.0.1.5")
        + &pod("here", "a", "10.244.1.10")
        + &pod("there", "b", "10.244.2.10")
        + &pod("lost", "c", "10.244.3.10");
    let desired = compile(config(""), &text);
    assert_eq!(desired.problems, []);
    assert!(matches!(
        &endpoint(&desired, "here").unwrap().attachment,
        Attachment::Local { interface, mac: None, worker: None } if interface.starts_with("ovl")
    ));
    let remote = Attachment::Remote { peer: "b".into() };
    assert_eq!(endpoint(&desired, "there").unwrap().attachment, remote);
    assert_eq!(endpoint(&desired, "lost"), None);
    assert_eq!(desired.pending, ["Pod default/lost waits for its node c, which is not known"]);
}

#[test]
fn outer_family_and_mtu_follow_the_nodes_addresses() {
    let v4 = compile(config(""), &node("a", "10.244.1.0/24", "10.0.1.4"));
    assert_eq!((own(&v4).encap.underlay, own(&v4).pod_mtu), (overlane_api::Underlay::Ipv4, 1450));
    let text = node("a", "10.244.1.0/24", "fd00:10:0:1::4");
    let v6 = compile(config(""), &text);
    assert_eq!((own(&v6).encap.underlay, own(&v6).pod_mtu), (overlane_api::Underlay::Ipv6, 1430));
    let refused = compile(config("underlay: 4\n"), &text);
    assert!(refused.problems[0].message.contains("of the family of `underlay`, IPv4"));
    assert!(refused.incomplete, "without its node nothing may be removed");
}

#[test]
fn address_that_two_pods_claim_stays_with_the_one_that_had_it() {
    let nodes = node("a", "10.244.1.0/24", "10.0.1.4");
    let text = nodes.clone() + &pod("a1", "a", "10.244.1.10") + &pod("b1", "a", "10.244.1.11");
    let mut bed = Bed::new(config(""));
    let before = bed.show(&text);
    // a1, first by name, now claims the address of b1.
    let text = nodes.clone() + &pod("a1", "a", "10.244.1.11") + &pod("b1", "a", "10.244.1.11");
    let after = bed.show(&text);
    assert_eq!(after.objects, before.objects);
    assert_eq!(after.problems.len(), 1);
    let message = &after.problems[0].message;
    assert!(message.starts_with("endpoint default/a1: podIP 10.244.1.11 collides"), "{message}");
    assert!(message.ends_with("its last good state stays in force"), "{message}");
    // Once b1 has moved, both are right.
    let text = nodes + &pod("a1", "a", "10.244.1.11") + &pod("b1", "a", "10.244.1.12");
    let last = bed.show(&text);
    assert_eq!(last.problems, []);
    assert_eq!(endpoint(&last, "a1").unwrap().addresses[0].to_string(), "10.244.1.11");
}

#[test]
fn own_node_that_disappears_stays_as_it_was() {
    let text = node("a", "10.244.1.0/24", "10.0.1.4");
    let mut bed = Bed::new(config(""));
    let before = bed.show(&text);
    let after = bed.show("");
    assert_eq!(own(&after), own(&before));
    assert!(after.incomplete && after.problems[0].message.contains("nodeName a"));
    let never = compile(config(""), "");
    assert!(never.objects.is_empty() && never.incomplete);
}

#[test]
fn configured_node_addresses_do_without_a_manifest() {
    let desired = compile(config("nodeAddresses: 10.0.1.4\n"), "");
    assert_eq!(own(&desired).addresses, ["10.0.1.4".parse::<IpAddr>().unwrap()]);
    assert!(!desired.incomplete);
}

#[test]
fn annotations_override_mode_and_mac_of_one_peer() {
    let text = node("a", "10.244.1.0/24", "10.0.1.4")
        + &node("b", "10.244.2.0/24", "10.0.1.5").replace(
            "{name: b}",
            "{name: b, annotations: {overlane.io/mode: native, overlane.io/gateway-mac: '02:00:00:00:00:0b'}}",
        )
        + &node("c", "10.244.3.0/24", "10.0.1.6");
    let desired = compile(config(""), &text);
    let peer = |name: &str| match desired.objects.get(&ObjectKey::Peer(name.into())) {
        Some(Object::Peer(peer)) => (peer.mode, peer.gateway_mac.to_string()),
        _ => panic!("no peer {name}"),
    };
    assert_eq!(peer("b"), (overlane_api::Mode::Native, "02:00:00:00:00:0b".into()));
    assert_eq!(peer("c"), (overlane_api::Mode::Geneve, "02:4f:0a:00:01:06".into()));
}

#[test]
fn pod_with_a_gateway_address_is_refused() {
    let text = node("a", "10.244.1.0/24", "10.0.1.4") + &pod("x", "a", "10.244.1.1");
    let desired = compile(config("gatewayIPs: 10.244.1.1\n"), &text);
    assert!(desired.problems[0].message.contains("of gatewayIPs"), "{:?}", desired.problems);
    assert_eq!(endpoint(&desired, "x"), None);
}
