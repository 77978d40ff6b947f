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

fn service(spec: &str) -> String {
    format!("kind: Service\nmetadata: {{name: s}}\nspec: {spec}\n")
}

fn slice(family: &str, address: &str) -> String {
    format!(
        "kind: EndpointSlice\nmetadata: {{name: s-1}}\naddressType: {family}\n\
         endpoints: [{{addresses: ['{address}']}}]\n"
    )
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
        {"kind":"Service","metadata":{"name":"s"}},
        {"kind":"NetworkPolicy","metadata":{"name":"n"}},
        {"kind":"Deployment","metadata":{"name":"d"}}]}"#;
    let list = read(Path::new("x.json"), text).unwrap();
    assert_eq!(list.manifests.len(), 2);
    assert_eq!(list.manifests[0].key().to_string(), "Pod shop/x");
    assert_eq!(
        list.notes().collect::<Vec<_>>(),
        ["1 of kind Deployment: not used", "1 of kind NetworkPolicy: not used yet"]
    );
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
        (service("{type: Magic}"), "spec.type \"Magic\" is not ClusterIP, NodePort"),
        (service("{ports: [{port: 0}]}"), "spec.ports.port \"0\" is not a port, 1 to 65535"),
        (service("{ports: [{port: 1, targetPort: 65536}]}"), "spec.ports.targetPort \"65536\""),
        (service("{ports: [{port: 1}, {port: 2}]}"), "\"without a name\" is not unique"),
        (service("{ports: [{port: 1, protocol: ICMP}]}"), "\"ICMP\" is not TCP, UDP or SCTP"),
        (service("{clusterIPs: [10.96.0.1, 10.96.0.2]}"), "both 10.96.0.1 and 10.96.0.2"),
        (service("{externalTrafficPolicy: local}"), "\"local\" is not Cluster or Local"),
        (service("{loadBalancerSourceRanges: [x]}"), "loadBalancerSourceRanges \"x\" is not"),
        (
            service(
                "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}",
            ),
            "\"86401\" is not 1 to 86400",
        ),
        (
            service("{}")
                .replace("{name: s}", "{name: s, annotations: {overlane.io/algorithm: best}}"),
            "overlane.io/algorithm \"best\" is not maglev or random",
        ),
        (slice("IPv6", "10.244.1.10"), "\"10.244.1.10\" is not an IPv6 address"),
        (slice("IPv5", "10.244.1.10"), "addressType \"IPv5\" is not IPv4, IPv6 or FQDN"),
        (
            pod("{}", "{}")
                .replace("{name: web}", "{name: web, annotations: {overlane.io/weight: '-1'}}"),
            "overlane.io/weight \"-1\" is not a number from 0",
        ),
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

#[test]
fn slices_of_names_and_services_without_ports_are_read() {
    let read = yaml(&slice("FQDN", "example.org")).unwrap();
    let [Manifest::EndpointSlice(slice)] = read.manifests.as_slice() else { panic!("{read:?}") };
    assert_eq!((slice.endpoints.len(), slice.service.as_deref()), (0, None));
    let read = yaml(&service("{clusterIP: None}")).unwrap();
    let [Manifest::Service(service)] = read.manifests.as_slice() else { panic!("{read:?}") };
    assert_eq!(service.kind, service::ServiceKind::Headless);
    assert_eq!(service.name, "default/s");
}

#[test]
fn two_protocols_of_one_unnamed_port_have_two_names() {
    let text = service("{ports: [{port: 53}, {port: 53, protocol: UDP}]}");
    let read = yaml(&text).unwrap();
    let [Manifest::Service(service)] = read.manifests.as_slice() else { panic!("{read:?}") };
    let names: Vec<String> = service.ports.iter().map(|port| service.object_name(port)).collect();
    assert_eq!(names, ["default/s:53/tcp", "default/s:53/udp"]);
}
