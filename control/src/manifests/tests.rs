use super::*;

use overlane_api::Mode;
use pod::Standing;

fn yaml(text: &str) -> Result<Read<Nothing>, ReadError> {
    read(Path::new("x.yaml"), text)
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata:
  name: b
  annotations: {overlane.io/mode: vxlan, overlane.io/gateway-mac: '02:00:00:00:00:0b'}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24, 'fd12:3456:0:2::/64']}
status:
  addresses:
  - {type: Hostname, address: b}
  - {type: InternalIP, address: 10.0.1.5}
  - {type: InternalIP, address: 'fd00:10:0:1::5'}
";

fn pod(spec: &str, status: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {spec}\nstatus: {status}\n")
}

fn only_pod(text: &str) -> PodManifest {
    match yaml(text).unwrap().manifests.as_slice() {
        [Manifest::Pod(pod)] => pod.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn node_is_read_with_its_annotations() {
    let read = yaml(NODE).unwrap();
    let [Manifest::Node(node)] = read.manifests.as_slice() else { panic!("{read:?}") };
    assert_eq!(node.name, "b");
    assert_eq!(node.addresses.len(), 2);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.mode, Some(Mode::Vxlan));
    assert_eq!(node.gateway_mac.unwrap().to_string(), "02:00:00:00:00:0b");
}

#[test]
fn pod_standing_follows_phase_network_and_address() {
    let with = "{podIPs: [{ip: 10.244.2.10}, {ip: 'fd12:3456:0:2::a'}]}";
    let attached = only_pod(&pod("{nodeName: b}", with));
    assert_eq!(attached.standing, Standing::Attached);
    assert_eq!(attached.name, "default/web");
    assert_eq!(attached.addresses.len(), 2);
    let single = only_pod(&pod("{nodeName: b}", "{podIP: 10.244.2.10}"));
    assert_eq!(single.addresses.len(), 1);
    for (spec, status, standing) in [
        ("{nodeName: b}", "{}", Standing::Pending),
        ("{}", with, Standing::Pending),
        ("{nodeName: b, hostNetwork: true}", with, Standing::HostNetwork),
        ("{nodeName: b}", "{phase: Succeeded, podIP: 10.244.2.10}", Standing::Ended),
        ("{nodeName: b}", "{phase: Failed, podIP: 10.244.2.10}", Standing::Ended),
    ] {
        assert_eq!(only_pod(&pod(spec, status)).standing, standing, "{spec} {status}");
    }
}

#[test]
fn default_interface_is_short_and_stable() {
    let name = pod::default_interface("default/web");
    assert_eq!(name.len(), 14);
    let digits = format!("{:016x}", overlane_api::object::Fnv::hash(b"default/web"));
    assert_eq!(name, format!("ovl{}", &digits[..11]));
    assert_ne!(name, pod::default_interface("default/web2"));
}

#[test]
fn json_lists_and_unused_kinds_are_read() {
    let text = r#"{"kind":"List","items":[
        {"kind":"Pod","metadata":{"name":"x","namespace":"shop"},"spec":{"nodeName":"a"},"status":{"podIP":"10.244.1.10"}},
        {"kind":"Service","metadata":{"name":"s"}}]}"#;
    let list = read(Path::new("x.json"), text).unwrap();
    assert_eq!(list.manifests.len(), 1);
    assert_eq!(list.manifests[0].key().to_string(), "Pod shop/x");
    assert_eq!(list.notes().collect::<Vec<_>>(), ["1 of kind Service: not used yet"]);
    let typed = "kind: PodList\nitems:\n- metadata: {name: x}\n";
    assert_eq!(yaml(typed).unwrap().manifests.len(), 1);
}

#[test]
fn several_documents_and_empty_ones_are_read() {
    let text = format!("---\n---\n{NODE}---\n{}", pod("{}", "{}"));
    assert_eq!(yaml(&text).unwrap().manifests.len(), 2);
}

#[test]
fn errors_name_place_object_and_value() {
    let broken = yaml("kind: Pod\nmetadata: {name: x\nspec: }\n").unwrap_err();
    assert!(broken.line >= 2, "{broken}");
    let typed = yaml("kind: Pod\nmetadata:\n  name: [x]\n").unwrap_err();
    assert_eq!(typed.line, 3, "{typed}");
    let json = read(Path::new("x.json"), "{\n\"kind\": Pod}").unwrap_err();
    assert_eq!(json.line, 2, "{json}");
    for (text, part) in [
        (pod("{}", "{podIP: 10.244.2}"), "Pod default/web: status.podIPs \"10.244.2\" is not"),
        (pod("{}", "{podIPs: [{ip: 1.1.1.1}, {ip: 1.1.1.2}]}"), "both 1.1.1.1 and 1.1.1.2"),
        ("kind: Node\nmetadata: {}\n".into(), "Node without metadata.name"),
        ("kind: List\nitems: [{kind: Pod}]".into(), "items[0]: Pod without metadata.name"),
        ("a: 1\n".into(), "without `kind`"),
        (format!("{NODE}---\n{NODE}"), "Node b is in this file twice"),
        (NODE.replace("vxlan", "gre"), "overlane.io/mode \"gre\" is not geneve, vxlan"),
        (NODE.replace("'02:", "'03:"), "is not a unicast MAC"),
    ] {
        let error = yaml(&text).unwrap_err();
        assert!(error.message.contains(part), "{error}\nexpected: {part}");
    }
}

#[test]
fn interface_names_that_linux_refuses_are_refused() {
    for wrong in ["", "sixteen-letters-", "a/b", "a b", ".", ".."] {
        assert!(!pod::is_interface_name(wrong), "{wrong:?}");
    }
    assert!(pod::is_interface_name("fifteen-letters"));
}
