//! Services as one node sees them.

use super::tests::{Bed, Desired, compile, config, node, pod};
use super::*;

use overlane_api::{Backend, FrontendKind, Protocol, Scope, Service};

/// Node a (this one, in zone z1) and node b.
pub(super) fn nodes() -> String {
    node("a", "10.244.1.0/24", "10.0.1.4").replace(
        "metadata: {name: a}",
        "metadata: {name: a, labels: {topology.kubernetes.io/zone: z1}}",
    ) + &node("b", "10.244.2.0/24", "10.0.1.5")
}

/// A Service `web` with one port; `more` is added to its spec.
pub(super) fn web(more: &str) -> String {
    format!(
        "kind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.20, \
         ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}], {more}}}\n---\n"
    )
}

/// A slice of `web` with port http 8080 and these endpoints.
pub(super) fn slice(name: &str, endpoints: &[&str]) -> String {
    format!(
        "kind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

/// An endpoint 10.244.x.`last` on node `node`; conditions as `r`eady, `s`erving, `t`erminating.
pub(super) fn endpoint(node: &str, last: u8, conditions: &str) -> String {
    let third = if node == "a" { 1 } else { 2 };
    let is = |letter| conditions.contains(letter);
    format!(
        "{{addresses: [10.244.{third}.{last}], nodeName: {node}, conditions: {{ready: {}, serving: {}, terminating: {}}}}}",
        is('r'),
        is('s'),
        is('t')
    )
}

pub(super) fn service(desired: &Desired, name: &str) -> Service {
    match desired.objects.get(&ObjectKey::Service(name.to_owned())) {
        Some(Object::Service(service)) => service.clone(),
        _ => panic!("no service {name}: {desired:?}"),
    }
}

fn last(backend: &Backend) -> u8 {
    match backend.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(address) => address.octets()[15],
    }
}

/// The last octets of the backends that new flows of scope cluster, of scope local, can go to.
pub(super) fn sets(service: &Service) -> (Vec<u8>, Vec<u8>) {
    let of = |used: fn(&Backend) -> bool| {
        service.backends.iter().filter(|backend| used(backend)).map(last).collect()
    };
    (of(|backend| backend.use_cluster), of(|backend| backend.use_local))
}

fn frontends(service: &Service) -> Vec<String> {
    let short = |kind| match kind {
        FrontendKind::ClusterIp => "cluster",
        FrontendKind::NodePort => "node",
        FrontendKind::LoadBalancer => "balancer",
        FrontendKind::ExternalIp => "external",
    };
    let text = |frontend: &overlane_api::Frontend| {
        let at = std::net::SocketAddr::new(frontend.address, frontend.port);
        format!("{} {at}", short(frontend.kind))
    };
    service.frontends.iter().map(text).collect()
}

/// A name, endpoints, the cluster set, the local set.
type Case =
    (&'static str, &'static [(&'static str, u8, &'static str)], &'static [u8], &'static [u8]);

#[test]
fn conditions_and_place_decide_who_takes_new_flows() {
    let table: [Case; 9] = [
        ("all ready", &[("a", 10, "rs"), ("b", 11, "rs"), ("b", 12, "rs")], &[10, 11, 12], &[10]),
        ("all on their way out", &[("a", 10, "st"), ("b", 11, "st")], &[10, 11], &[10]),
        ("one ready", &[("a", 10, "rs"), ("a", 11, "st"), ("b", 12, "st")], &[10], &[10]),
        ("none answers", &[("a", 10, ""), ("b", 11, "t")], &[], &[]),
        ("not ready yet", &[("a", 10, "s")], &[], &[]),
        ("elsewhere", &[("b", 11, "rs")], &[11], &[]),
        ("local on its way out", &[("a", 10, "st"), ("b", 11, "rs")], &[11], &[10]),
        ("published though not ready", &[("a", 10, "rt")], &[10], &[10]),
        ("local gone, remote on its way out", &[("a", 10, "t"), ("b", 11, "st")], &[11], &[]),
    ];
    for (what, endpoints, cluster, local) in table {
        let endpoints: Vec<String> =
            endpoints.iter().map(|(node, last, how)| endpoint(node, *last, how)).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let desired = compile(config(""), &(nodes() + &web("") + &slice("web-1", &endpoints)));
        assert_eq!(desired.problems, [], "{what}");
        let service = service(&desired, "default/web:http");
        assert_eq!(sets(&service), (cluster.to_vec(), local.to_vec()), "{what}");
        let any = !cluster.is_empty();
        assert_eq!(service.has_any(service.frontends[0].address), any, "{what}");
    }
}

#[test]
fn absent_conditions_are_those_of_a_healthy_endpoint() {
    let text = nodes() + &web("") + &slice("web-1", &["{addresses: [10.244.2.11]}"]);
    let service = service(&compile(config(""), &text), "default/web:http");
    assert_eq!(sets(&service), (vec![11], vec![]));
    assert!(service.backends[0].serving && !service.backends[0].local);
}

#[test]
fn policies_are_independent_of_each_other() {
    for (more, internal, external) in [
        ("", Scope::Cluster, Scope::Cluster),
        ("internalTrafficPolicy: Local", Scope::Local, Scope::Cluster),
        ("type: NodePort, externalTrafficPolicy: Local", Scope::Cluster, Scope::Local),
    ] {
        let service = service(&compile(config(""), &(nodes() + &web(more))), "default/web:http");
        assert_eq!((service.internal, service.external), (internal, external), "{more}");
    }
}

#[test]
fn hints_count_only_when_every_ready_endpoint_has_them() {
    let hinted = |last: u8, conditions: &str, hints: &str| {
        endpoint("b", last, conditions).replace("}}", &format!("}}, hints: {{{hints}}}}}"))
    };
    let zone = |name: &str| format!("forZones: [{{name: {name}}}]");
    let on = |name: &str| format!("forNodes: [{{name: {name}}}]");
    let both = |node: &str, name: &str| format!("{}, {}", on(node), zone(name));
    for (what, endpoints, cluster) in [
        ("own zone", vec![hinted(10, "rs", &zone("z1")), hinted(11, "rs", &zone("z2"))], &[10][..]),
        ("one without", vec![hinted(10, "rs", &zone("z1")), hinted(11, "rs", "")], &[10, 11]),
        (
            "another zone",
            vec![hinted(10, "rs", &zone("z2")), hinted(11, "rs", &zone("z3"))],
            &[10, 11],
        ),
        ("own node", vec![hinted(10, "rs", &on("a")), hinted(11, "rs", &on("b"))], &[10]),
        (
            "node before zone",
            vec![hinted(10, "rs", &both("a", "z2")), hinted(11, "rs", &both("b", "z1"))],
            &[10],
        ),
        (
            "zone when no node is this one",
            vec![hinted(10, "rs", &both("b", "z2")), hinted(11, "rs", &both("b", "z1"))],
            &[11],
        ),
        ("ready ones decide", vec![hinted(10, "rs", &zone("z1")), hinted(11, "st", "")], &[10]),
        (
            "fallback ignores them",
            vec![hinted(10, "st", &zone("z1")), hinted(11, "st", &zone("z2"))],
            &[10, 11],
        ),
    ] {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let text = nodes() + &web("") + &slice("web-1", &endpoints);
        let service = service(&compile(config(""), &text), "default/web:http");
        assert_eq!(sets(&service).0, cluster, "{what}");
    }
}

#[test]
fn endpoint_in_two_slices_counts_once_as_the_better_one() {
    let (worse, better) = (endpoint("a", 10, "st"), endpoint("a", 10, "rs"));
    for [first, second] in [[&worse, &better], [&better, &worse]] {
        let text = nodes() + &web("") + &slice("web-1", &[first]) + &slice("web-2", &[second]);
        let service = service(&compile(config(""), &text), "default/web:http");
        assert_eq!(service.backends.len(), 1);
        assert_eq!(service.backends[0].state, overlane_api::BackendState::Ready);
    }
}

#[test]
fn port_is_that_of_the_slice_an_endpoint_is_in() {
    let other = slice("web-2", &[&endpoint("b", 11, "rs")]).replace("8080", "9090");
    let foreign = slice("web-3", &[&endpoint("b", 12, "rs")]).replace("name: http", "name: admin");
    let udp = slice("web-4", &[&endpoint("b", 13, "rs")]).replace("8080}", "8080, protocol: UDP}");
    let text = nodes()
        + &web("")
        + &slice("web-1", &[&endpoint("a", 10, "rs")])
        + &other
        + &foreign
        + &udp;
    let service = service(&compile(config(""), &text), "default/web:http");
    let found: Vec<_> = service.backends.iter().map(|b| (last(b), b.port)).collect();
    assert_eq!(found, [(10, 8080), (11, 9090)]);
}

pub(super) const NAMED: &str = "kind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.20\n  selector: {app: web}\n  ports: [{port: 80, targetPort: http}]\n---\n";

/// A pod that calls port `number` http.
pub(super) fn web_pod(name: &str, on: &str, address: &str, number: u16) -> String {
    pod(name, on, address)
        .replace(&format!("{{name: {name}}}"), &format!("{{name: {name}, labels: {{app: web, v: x}}}}"))
        .replace("spec: {", &format!("spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: {number}}}]}}], "))
}

#[test]
fn pods_stand_in_where_there_is_no_slice() {
    let mut bed = Bed::new(config(""));
    let pods = web_pod("p1", "a", "10.244.1.10", 8080) + &web_pod("p2", "b", "10.244.2.11", 9090);
    let desired = bed.show(&(nodes() + NAMED + &pods + &pod("other", "b", "10.244.2.12")));
    let first = service(&desired, "default/web:80");
    let found: Vec<_> = first.backends.iter().map(|b| (last(b), b.port)).collect();
    assert_eq!(found, [(10, 8080), (11, 9090)], "each pod has its own number for the name");
    assert_eq!(sets(&first), (vec![10, 11], vec![10]));
    // One is told to end, the other is not ready.
    let ending = pods
        .replace("{name: p1,", "{name: p1, deletionTimestamp: '2026-01-01T00:00:00Z',")
        .replace(
            "podIP: '10.244.2.11'",
            "podIP: '10.244.2.11', conditions: [{type: Ready, status: 'False'}]",
        );
    let desired = bed.show(&(nodes() + NAMED + &ending));
    assert_eq!(sets(&service(&desired, "default/web:80")), (vec![10], vec![10]));
    let published = NAMED.replace("  ports", "  publishNotReadyAddresses: true\n  ports");
    let desired = bed.show(&(nodes() + &published + &ending));
    assert_eq!(sets(&service(&desired, "default/web:80")).0, [10, 11]);
    // The first slice takes over, even an empty one.
    let desired = bed.show(&(nodes() + NAMED + &pods + &slice("web-1", &[])));
    assert_eq!(service(&desired, "default/web:80").backends, []);
    let desired = bed.show(&(nodes() + NAMED + &pods));
    assert_eq!(service(&desired, "default/web:80").backends.len(), 2);
}

#[test]
fn a_pod_costs_its_own_service_only() {
    let mut bed = Bed::new(config(""));
    let other = NAMED.replace("web", "db").replace("0.20", "0.21");
    let pods = web_pod("p1", "a", "10.244.1.10", 8080) + &web_pod("p2", "b", "10.244.2.11", 9090);
    bed.show(&(nodes() + NAMED + &other + &pods));
    let gone = web_pod("p1", "a", "10.244.1.10", 8080);
    let desired = bed.show(&(nodes() + NAMED + &other + &gone));
    assert_eq!(desired.changed, ["endpoint default/p2", "service default/web:80"]);
}

#[test]
fn weights_of_pods_reach_their_backends_by_either_way() {
    let mut bed = Bed::new(config(""));
    let heavy = web_pod("p1", "a", "10.244.1.10", 8080)
        .replace("{name: p1,", "{name: p1, annotations: {overlane.io/weight: '7'},");
    let weight = |desired: &Desired, name: &str| service(desired, name).backends[0].weight;
    let desired = bed.show(&(nodes() + NAMED + &heavy));
    assert_eq!(weight(&desired, "default/web:80"), 7);
    let text = nodes() + &web("") + &slice("web-1", &[&endpoint("a", 10, "rs")]);
    assert_eq!(weight(&bed.show(&(text.clone() + &heavy)), "default/web:http"), 7);
    let drained = heavy.replace("'7'", "'0'");
    assert_eq!(weight(&bed.show(&(text.clone() + &drained)), "default/web:http"), 0);
    assert_eq!(weight(&bed.show(&text), "default/web:http"), 1);
}

#[test]
fn frontends_follow_type_and_status() {
    let balanced = "type: LoadBalancer, loadBalancerIP: 203.0.113.9";
    let status =
        |ingress: &str| format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n---\n");
    let with = |ingress: &str| web(balanced).replace("---\n", &status(ingress));
    let cluster = "cluster 10.96.0.20:80".to_owned();
    for (text, expected) in [
        (web(""), vec![]),
        (web("type: NodePort"), vec!["node 10.0.1.4:30080"]),
        (web(balanced), vec!["node 10.0.1.4:30080", "balancer 203.0.113.9:80"]),
        (
            with("{ip: 203.0.113.5}, {ip: 203.0.113.6, ipMode: VIP}"),
            vec!["node 10.0.1.4:30080", "balancer 203.0.113.5:80", "balancer 203.0.113.6:80"],
        ),
        (with("{ip: 203.0.113.5, ipMode: Proxy}"), vec!["node 10.0.1.4:30080"]),
        (with("{hostname: lb.example}"), vec!["node 10.0.1.4:30080"]),
        (web("externalIPs: [198.51.100.7]"), vec![]),
    ] {
        let service = service(&compile(config(""), &(nodes() + &text)), "default/web:http");
        let mut found = frontends(&service);
        found.retain(|frontend| *frontend != cluster);
        assert_eq!(found, expected, "{text}");
        assert_eq!(frontends(&service).len(), expected.len() + 1, "the cluster address is there");
    }
    let text = nodes() + &web("externalIPs: [198.51.100.7]");
    let desired = compile(config(""), &text);
    assert!(desired.notes[0].contains("198.51.100.7 are not used"), "{:?}", desired.notes);
    let enabled = compile(config("enableExternalIPs: true\n"), &text);
    let expected = ["cluster 10.96.0.20:80", "external 198.51.100.7:80"];
    assert_eq!(frontends(&service(&enabled, "default/web:http")), expected);
    assert_eq!(enabled.notes, Vec::<String>::new());
}

#[test]
fn services_without_an_address_install_nothing_and_say_so() {
    let headless = web("").replace("10.96.0.20", "None");
    let external =
        web("type: ExternalName, externalName: example.org").replace("clusterIP: 10.96.0.20, ", "");
    for (text, part) in [(headless, "is headless"), (external, "is an ExternalName")] {
        let desired = compile(config(""), &(nodes() + &text));
        assert_eq!(desired.problems, []);
        assert_eq!(desired.objects.len(), 2, "the nodes alone");
        assert!(desired.notes[0].contains(part), "{:?}", desired.notes);
    }
}

#[test]
fn each_family_and_protocol_is_served_by_its_own() {
    let text = "kind: Service\nmetadata: {name: dns}\nspec:\n  clusterIPs: [10.96.0.10, 'fd98::a']\n  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {name: x, port: 53, protocol: SCTP}]\n---\n";
    let slices = |family: &str, address: &str| {
        format!(
            "kind: EndpointSlice\nmetadata: {{name: dns-{family}, labels: {{kubernetes.io/service-name: dns}}}}\n\
             addressType: {family}\nports: [{{name: dns, port: 5353, protocol: UDP}}, {{name: dns-tcp, port: 5354}}]\n\
             endpoints: [{{addresses: ['{address}'], nodeName: a}}]\n---\n"
        )
    };
    let text =
        nodes() + text + &slices("IPv4", "10.244.1.10") + &slices("IPv6", "fd12:3456:0:1::a");
    let desired = compile(super::tests::dual_stack(), &text);
    assert_eq!(desired.problems, []);
    let udp = service(&desired, "default/dns:dns");
    assert_eq!(udp.protocol, Protocol::Udp);
    assert_eq!(frontends(&udp), ["cluster 10.96.0.10:53", "cluster [fd98::a]:53"]);
    assert_eq!(udp.backends.iter().map(|b| b.port).collect::<Vec<_>>(), [5353, 5353]);
    assert!(udp.backends.iter().all(|backend| backend.use_cluster && backend.use_local));
    assert_eq!(service(&desired, "default/dns:dns-tcp").backends[0].port, 5354);
    let sctp = service(&desired, "default/dns:x");
    assert_eq!((sctp.protocol, sctp.backends.len()), (Protocol::Sctp, 0));
    // A service of one family has no frontend of the other.
    let single = nodes() + &web("type: NodePort, ipFamilies: [IPv6]");
    let found =
        frontends(&service(&compile(super::tests::dual_stack(), &single), "default/web:http"));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn settings_come_from_spec_and_annotations() {
    let plain = service(&compile(config(""), &(nodes() + &web(""))), "default/web:http");
    assert_eq!((plain.affinity_seconds, plain.health_check_port), (None, None));
    let text = web("type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30090, sessionAffinity: ClientIP, loadBalancerSourceRanges: [203.0.113.0/24, 10.0.0.0/8]")
        .replace("{name: web}", "{name: web, annotations: {overlane.io/forwarding: dsr, overlane.io/algorithm: random, overlane.io/reject: icmp}}");
    let set = service(&compile(config(""), &(nodes() + &text)), "default/web:http");
    assert_eq!(set.affinity_seconds, Some(10_800));
    assert_eq!(set.health_check_port, Some(30090));
    assert_eq!(set.forwarding, overlane_api::Forwarding::Dsr);
    assert_eq!(set.algorithm, overlane_api::Algorithm::Random);
    assert_eq!(set.reject, overlane_api::Reject::Icmp);
    assert_eq!(set.source_ranges.len(), 2);
    let timed = text
        .replace("ClientIP,", "ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}},");
    let set = service(&compile(config(""), &(nodes() + &timed)), "default/web:http");
    assert_eq!(set.affinity_seconds, Some(10));
}

#[test]
fn health_counts_ready_local_endpoints_only() {
    let checked =
        web("type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30090");
    for (conditions, on, expected) in [("rs", "a", 1), ("st", "a", 0), ("rs", "b", 0), ("", "a", 0)]
    {
        let mut bed = Bed::new(config(""));
        bed.show(&(nodes() + &checked + &slice("web-1", &[&endpoint(on, 10, conditions)])));
        let health = bed.compiler.health();
        assert_eq!(health["default/web"], Health { port: 30090, local_endpoints: expected });
        bed.show(&(nodes() + &checked.replace("Local", "Cluster")));
        assert!(bed.compiler.health().is_empty());
    }
}

#[test]
fn a_pod_of_both_families_is_one_endpoint_to_a_load_balancer() {
    let checked = "kind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, \
        externalTrafficPolicy: Local, healthCheckNodePort: 30090, clusterIPs: [10.96.0.20, 'fd98::14'], \
        selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n---\n";
    let both = |last: u8| {
        let v4 = format!("10.244.1.{last}");
        let ips = format!("podIPs: [{{ip: {v4}}}, {{ip: 'fd12:3456:0:1::{last}'}}]");
        web_pod(&format!("p{last}"), "a", &v4, 80).replace(&format!("podIP: '{v4}'"), &ips)
    };
    let (first, second) = (both(10), both(11));
    let mut bed = Bed::new(super::tests::dual_stack());
    for (pods, expected) in [(first.clone(), 1), (first + &second, 2), (String::new(), 0)] {
        let desired = bed.show(&(nodes() + checked + &pods));
        assert_eq!(desired.problems, []);
        assert_eq!(bed.compiler.health()["default/web"].local_endpoints, expected);
    }
}

#[test]
fn one_frontend_belongs_to_the_older_service_then_to_the_first_by_name() {
    let named = |name: &str, created: &str| {
        let meta = format!("{{name: {name}, creationTimestamp: {created}}}");
        web("").replace("{name: web}", &meta)
    };
    let (old, new) = ("'2026-01-01T00:00:00Z'", "'2026-02-01T00:00:00Z'");
    for (first, second, owner) in [
        (old, new, "b"),
        (new, old, "c"),
        (old, old, "b"),
        ("null", new, "c"),
        ("null", "null", "b"),
    ] {
        let (b, c) = (named("b", first), named("c", second));
        // Whoever comes first: the outcome is the same.
        for texts in [[&b, &c], [&c, &b]] {
            let mut bed = Bed::new(config(""));
            bed.show(&(nodes() + texts[0]));
            let desired = bed.show(&(nodes() + texts[0] + texts[1]));
            let other = if owner == "b" { "c" } else { "b" };
            let has =
                |name: &str| service(&desired, &format!("default/{name}:http")).frontends.len();
            assert_eq!((has(owner), has(other)), (1, 0), "{first} {second}");
            assert_eq!(desired.problems.len(), 1);
            let message = &desired.problems[0].message;
            let both = [
                format!("service default/{other}:http:"),
                format!("of service default/{owner}:http"),
            ];
            assert!(both.iter().all(|part| message.contains(part.as_str())), "{message}");
            // Once the owner is gone, the other one has it.
            let left = if owner == "b" { &c } else { &b };
            let desired = bed.show(&(nodes() + left));
            assert_eq!(desired.problems, []);
            assert_eq!(service(&desired, &format!("default/{other}:http")).frontends.len(), 1);
        }
    }
}

#[test]
fn refused_service_keeps_its_last_good_state_with_live_backends() {
    let mut bed = Bed::new(config(""));
    let slices = |last| slice("web-1", &[&endpoint("a", last, "rs")]);
    bed.show(&(nodes() + &web("") + &slices(10)));
    let wrong = web("").replace("10.96.0.20", "10.97.0.20");
    let desired = bed.show(&(nodes() + &wrong + &slices(11)));
    let message = &desired.problems[0].message;
    assert!(
        message.contains("clusterIP 10.97.0.20 is outside serviceCIDR 10.96.0.0/16"),
        "{message}"
    );
    assert!(message.ends_with("its last good state stays in force"), "{message}");
    let stays = service(&desired, "default/web:http");
    assert_eq!(frontends(&stays), ["cluster 10.96.0.20:80"]);
    assert_eq!(sets(&stays).0, [11]);
    let never = compile(config(""), &(nodes() + &wrong));
    assert!(never.problems[0].message.ends_with("it is left out"));
    assert_eq!(never.objects.len(), 2);
    for (more, part) in [
        ("nodePort: 20080", "nodePort 20080 is outside nodePortRange 30000-32767"),
        ("nodePort: 32768", "nodePort 32768 is outside nodePortRange"),
    ] {
        let text = nodes() + &web("type: NodePort").replace("nodePort: 30080", more);
        let desired = compile(config(""), &text);
        assert!(desired.problems[0].message.contains(part), "{:?}", desired.problems);
    }
}

#[test]
fn what_an_api_server_would_allocate_is_waited_for() {
    for (text, expected) in [
        (web("").replace("clusterIP: 10.96.0.20, ", ""), "default/web waits for a clusterIP"),
        (
            web("type: NodePort").replace(", nodePort: 30080", ""),
            "default/web:http waits for a nodePort",
        ),
        (web("type: LoadBalancer"), "default/web waits for its load balancer's address"),
    ] {
        let desired = compile(config(""), &(nodes() + &text));
        assert_eq!(desired.pending, [format!("Service {expected}")]);
        assert_eq!(desired.problems, []);
    }
    let proxied = web("type: LoadBalancer, allocateLoadBalancerNodePorts: false")
        .replace(", nodePort: 30080", "")
        .replace(
            "---\n",
            "status: {loadBalancer: {ingress: [{ip: 203.0.113.5, ipMode: Proxy}]}}\n---\n",
        );
    assert_eq!(compile(config(""), &(nodes() + &proxied)).pending, Vec::<String>::new());
}

#[test]
fn addresses_of_others_are_refused() {
    let balanced = |ip: &str, port: u16| {
        nodes()
            + &web(&format!("type: LoadBalancer, loadBalancerIP: {ip}"))
                .replace("port: 80,", &format!("port: {port},"))
    };
    for (text, part) in [
        (
            balanced("10.244.1.10", 80),
            "load balancer IP 10.244.1.10 is inside podCIDR 10.244.0.0/16",
        ),
        (balanced("10.0.1.4", 20_000), "port 20000 is one of snat.ports 10240-29999"),
    ] {
        let desired = compile(config(""), &text);
        assert_eq!(desired.problems.len(), 1, "{text}");
        assert!(desired.problems[0].message.contains(part), "{:?}", desired.problems);
    }
    // The node's own address is as good as any where nothing else uses the port.
    for text in [balanced("10.0.1.4", 443), balanced("203.0.113.5", 20_000)] {
        assert_eq!(compile(config(""), &text).problems, []);
    }
}

#[test]
fn node_ports_follow_the_interfaces_that_are_configured() {
    let mut bed = Bed::new(config("nodePortAddresses: 192.168.0.0/16\n"));
    let desired = bed.show(&(nodes() + &web("type: NodePort")));
    let own = ["node 10.0.1.4:30080", "cluster 10.96.0.20:80"];
    assert_eq!(frontends(&service(&desired, "default/web:http")), own);
    let addresses = vec!["172.16.0.1".parse().unwrap(), "192.168.7.7".parse().unwrap()];
    let changed = bed.compiler.set_addresses(addresses.clone());
    assert_eq!(changed, [ObjectKey::Service("default/web:http".into())]);
    let desired = bed.show(&(nodes() + &web("type: NodePort")));
    let all = ["node 10.0.1.4:30080", "cluster 10.96.0.20:80", "node 192.168.7.7:30080"];
    assert_eq!(frontends(&service(&desired, "default/web:http")), all);
    assert_eq!(bed.compiler.set_addresses(addresses), []);
    assert_eq!(bed.compiler.set_addresses(Vec::new()).len(), 1);
}
