//! What the node says about its services, flows and source NAT, and that flows can be forgotten.
//!
//! ```text
//! pod1 -- worker 0 -- [ a ] == underlay == [ b ] -- pod     10.96.0.10:80 -> 10.244.2.10:8080
//! pod2 -- worker 1 --/              \
//!                                    203.0.113.10, 2001:db8:113::10
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlane_api::client::Client;
use overlane_api::flow::{FlowFilter, FlowReport, FlowStatus, NatReport, NatUsage, Tuple};
use overlane_api::protocol::{ApiError, ErrorCode, Op, Reply};
use overlane_api::status::{ServiceStatus, Traffic};
use overlane_api::{
    Backend, BackendState, Change, Frontend, FrontendKind, MacAddr, Mode, Object, Protocol, Reject,
    Service, Underlay, WorkerId,
};
use overlane_dataplane::flow::flows::Flows;
use overlane_dataplane::node::socket::{Server, mailbox};
use overlane_dataplane::tables::compile::underlay::Way;
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{Place, node, objects};
use overlane_dataplane::worker::Command;

use super::bed::{Bed, FORWARDED, pod};
use super::build::{Body, Packet, node_ip, packet, pod_ip, up};

const SYN: u8 = 2;
const ACK: u8 = 16;

const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn outside(family: usize) -> IpAddr {
    ip(OUTSIDE[family])
}

fn vip(family: usize) -> IpAddr {
    ip(["10.96.0.10", "fd98::a"][family])
}

/// `default/web:http`, TCP, with a backend on b; another one that is terminating.
fn service(name: &str) -> Service {
    let at = |family, port| Frontend { address: vip(family), port, kind: FrontendKind::ClusterIp };
    let backend = |family, pod, state| Backend {
        address: pod_ip(1, pod, family),
        port: 8080,
        weight: 1 + u16::from(pod),
        local: false,
        use_cluster: state == BackendState::Ready,
        use_local: false,
        serving: true,
        state,
    };
    let backends = (0..2).flat_map(|family| {
        [(0, BackendState::Ready), (1, BackendState::Terminating)]
            .map(|(pod, state)| backend(family, pod, state))
    });
    Service {
        name: name.into(),
        protocol: Protocol::Tcp,
        frontends: vec![at(0, 80), at(1, 80)],
        backends: backends.collect(),
        internal: Default::default(),
        external: Default::default(),
        affinity_seconds: None,
        source_ranges: Vec::new(),
        reject: Reject::Rst,
        forwarding: Default::default(),
        algorithm: Default::default(),
        health_check_port: None,
    }
}

/// Two workers; the node's gateway leads to the outside.
fn bed() -> Bed {
    let mut changes = objects::cluster(Mode::Geneve, Underlay::Ipv4, 2);
    if let Change::Set(Object::Node(node)) = &mut changes[0] {
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
    }
    changes.push(Change::Set(Object::Service(service("default/web:http"))));
    let mut bed = Bed::with(2, changes);
    let compiler = &mut bed.node.bench().compiler;
    let gateways = [("0.0.0.0/0", ip("10.0.0.1")), ("::/0", ip("fe80::99"))];
    let ways = gateways.map(|(all, gateway)| (all.parse().unwrap(), Way::Gateway(gateway)));
    assert!(compiler.set_ways(ways.into()));
    let destination = MacAddr([2, 0, 0, 0, 1, 1]);
    let there = Adjacency { source: node::UPLINK_MAC, destination };
    for (_, gateway) in gateways {
        compiler.set_gateway(gateway, Some(there));
    }
    bed.node.publish();
    bed
}

fn tcp(from: u16, flags: u8) -> Body {
    Body::Segment(from, 80, flags, Vec::new())
}

fn udp(from: u16) -> Body {
    Body::Udp(from, 53, b"question".to_vec())
}

/// A packet of a pod of worker `pod`, which leaves by that worker's queue.
#[track_caller]
fn leaves(bed: &mut Bed, from: u8, sent: &Packet) -> Vec<u8> {
    bed.one(&pod(from), &sent.frame(up(from)), &Place::Uplink(usize::from(from)), FORWARDED)
}

/// The source port of a frame on its way to the outside.
fn port_of(frame: &[u8], family: usize) -> u16 {
    let l4 = [34, 54][family];
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

#[track_caller]
fn ask(bed: &mut Bed, op: Op) -> Result<Reply, ApiError> {
    bed.node.bench().ask(&op).expect("an operation about flows")
}

#[track_caller]
fn flows(bed: &mut Bed, filter: FlowFilter) -> FlowReport {
    match ask(bed, Op::Flows { filter }) {
        Ok(Reply::Flows(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn flush(bed: &mut Bed, filter: FlowFilter) -> u64 {
    match ask(bed, Op::FlushFlows { filter }) {
        Ok(Reply::Flushed { flows }) => flows,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn bindings(bed: &mut Bed, filter: FlowFilter) -> NatReport {
    match ask(bed, Op::NatBindings { filter }) {
        Ok(Reply::NatBindings(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn usage(bed: &mut Bed) -> Vec<NatUsage> {
    match ask(bed, Op::NatUsage) {
        Ok(Reply::NatUsage(usage)) => usage,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn the_service(bed: &mut Bed) -> ServiceStatus {
    let mut services = all_services(bed);
    assert_eq!(services.len(), 1);
    services.remove(0)
}

#[track_caller]
pub fn all_services(bed: &mut Bed) -> Vec<ServiceStatus> {
    match ask(bed, Op::Services) {
        Ok(Reply::Services(services)) => services,
        other => panic!("{other:?}"),
    }
}

fn at(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Tuple {
    Tuple {
        source: source.0,
        source_port: source.1,
        destination: destination.0,
        destination_port: destination.1,
    }
}

/// For each family a flow of pod 1 to the service, and two of pod 2 to the outside: datagrams and
/// a ping. Returns their external ports, by family.
fn some_flows(bed: &mut Bed) -> Vec<u16> {
    let mut ports = Vec::new();
    for family in 0..2 {
        let sent = packet(pod_ip(0, 0, family), vip(family), tcp(40_000, SYN));
        leaves(bed, 0, &sent);
        let sent = packet(pod_ip(0, 1, family), outside(family), udp(50_000));
        ports.push(port_of(&leaves(bed, 1, &sent), family));
        let ping = Body::Echo(false, 777, 1, b"hi".to_vec());
        leaves(bed, 1, &packet(pod_ip(0, 1, family), outside(family), ping));
    }
    ports
}

#[test]
fn flows_are_listed_as_they_came_and_as_they_leave() {
    let mut bed = bed();
    let ports = some_flows(&mut bed);
    bed.node.wait(Duration::from_secs(5));
    bed.node.run();
    let report = flows(&mut bed, FlowFilter::default());
    assert_eq!((report.matched, report.total, report.capacity), (6, 6, 4 * 16_384));
    for family in 0..2 {
        let found = |protocol| {
            let is_it = |flow: &&FlowStatus| {
                flow.protocol == protocol && flow.original.source.is_ipv6() == (family == 1)
            };
            report.flows.iter().find(is_it).unwrap()
        };
        let web = found(6);
        let (client, server) = ((pod_ip(0, 0, family), 40_000), (pod_ip(1, 0, family), 8080));
        assert_eq!(web.original, at(client, (vip(family), 80)));
        assert_eq!(web.translated, at(client, server));
        assert_eq!((web.worker, web.state.as_str()), (WorkerId(0), "syn"));
        assert_eq!(web.service.as_deref(), Some("default/web:http"));
        assert_eq!(web.endpoint.as_deref(), Some("default/a-pod1"));
        assert_eq!(web.egress, None);
        let bytes = [40, 60][family];
        assert_eq!(web.forward, Traffic { packets: 1, bytes });
        assert_eq!(web.reverse, Traffic::default());
        assert!((4..=5).contains(&web.age_s), "{}", web.age_s);
        assert!((4..=5).contains(&web.idle_s), "{}", web.idle_s);
        assert!((234..=235).contains(&web.expires_s), "{}", web.expires_s);

        let query = found(17);
        let (client, name_server) = ((pod_ip(0, 1, family), 50_000), (outside(family), 53));
        assert_eq!(query.original, at(client, name_server));
        assert_eq!(query.translated, at((node_ip(0, family), ports[family]), name_server));
        assert_eq!((query.worker, query.state.as_str()), (WorkerId(1), "one_way"));
        assert_eq!(query.egress.as_deref(), Some("node"));
        assert_eq!(
            (query.service.as_deref(), query.endpoint.as_deref()),
            (None, Some("default/a-pod2"))
        );

        let ping = found([1, 58][family]);
        assert_eq!(ping.original, at((pod_ip(0, 1, family), 777), (outside(family), 777)));
        assert_eq!(ping.translated.source_port, ping.translated.destination_port);
    }
    bed.close();
}

#[test]
fn every_part_of_a_filter_narrows() {
    let mut bed = bed();
    let ports = some_flows(&mut bed);
    let all = FlowFilter::default();
    for (matched, filter) in [
        (1, FlowFilter { address: Some("10.96.0.0/16".parse().unwrap()), ..all.clone() }),
        // Before translation, and after it.
        (1, FlowFilter { address: Some("10.96.0.10/32".parse().unwrap()), ..all.clone() }),
        (1, FlowFilter { address: Some("10.244.2.10/32".parse().unwrap()), ..all.clone() }),
        (2, FlowFilter { address: Some("10.0.1.4/32".parse().unwrap()), ..all.clone() }),
        (0, FlowFilter { address: Some("10.0.1.5/32".parse().unwrap()), ..all.clone() }),
        (3, FlowFilter { address: Some("::/0".parse().unwrap()), ..all.clone() }),
        (2, FlowFilter { port: Some(8080), ..all.clone() }),
        (2, FlowFilter { port: Some(777), ..all.clone() }),
        (
            1,
            FlowFilter {
                port: Some(ports[0]),
                protocol: Some(17),
                address: Some("0.0.0.0/0".parse().unwrap()),
                ..all.clone()
            },
        ),
        (2, FlowFilter { protocol: Some(6), ..all.clone() }),
        (1, FlowFilter { protocol: Some(58), ..all.clone() }),
        (0, FlowFilter { protocol: Some(58), port: Some(80), ..all.clone() }),
        (2, FlowFilter { endpoint: Some("default/a-pod1".into()), ..all.clone() }),
        (2, FlowFilter { endpoint: Some("default/b-pod1".into()), ..all.clone() }),
        (4, FlowFilter { endpoint: Some("default/a-pod2".into()), ..all.clone() }),
        (2, FlowFilter { service: Some("default/web".into()), ..all.clone() }),
        (2, FlowFilter { service: Some("default/web:http".into()), ..all.clone() }),
        (4, FlowFilter { worker: Some(WorkerId(1)), ..all.clone() }),
        (4, FlowFilter { snat: true, ..all.clone() }),
        (0, FlowFilter { snat: true, worker: Some(WorkerId(0)), ..all.clone() }),
    ] {
        let report = flows(&mut bed, filter.clone());
        assert_eq!(report.matched, matched, "{filter:?}");
        assert_eq!(report.flows.len() as u64, matched, "{filter:?}");
    }
    let report = flows(&mut bed, FlowFilter { limit: Some(3), ..all.clone() });
    assert_eq!((report.flows.len(), report.matched), (3, 6));
    for (filter, place) in [
        (FlowFilter { endpoint: Some("default/nobody".into()), ..all.clone() }, "filter: endpoint"),
        (FlowFilter { service: Some("default/we".into()), ..all.clone() }, "filter: service"),
        (FlowFilter { worker: Some(WorkerId(2)), ..all.clone() }, "filter: worker"),
    ] {
        for op in [
            Op::Flows { filter: filter.clone() },
            Op::FlushFlows { filter: filter.clone() },
            Op::NatBindings { filter },
        ] {
            let error = ask(&mut bed, op).unwrap_err();
            assert_eq!((error.code, error.place.as_deref()), (ErrorCode::Refused, Some(place)));
        }
    }
    assert_eq!(bed.node.flows(), 6, "what is refused changes nothing");
    bed.close();
}

/// So many flows of pod 1 to the outside, from ports 1024 on.
fn many(bed: &mut Bed, count: u16) {
    for port in 1024..1024 + count {
        let sent = packet(pod_ip(0, 0, 0), outside(0), udp(port));
        assert!(bed.node.inject(&pod(0), &sent.frame(up(0))));
        if port % 64 == 0 {
            bed.node.run();
            let _ = bed.node.collect();
        }
    }
    bed.node.run();
    let _ = bed.node.collect();
}

#[test]
fn more_flows_than_all_buffers_hold_are_listed_once_each() {
    let mut bed = bed();
    many(&mut bed, 6000);
    let report = flows(&mut bed, FlowFilter::default());
    assert_eq!((report.matched, report.total), (6000, 6000));
    let clients: BTreeSet<u16> = report.flows.iter().map(|f| f.original.source_port).collect();
    assert_eq!((clients.len(), report.flows.len()), (6000, 6000));
    let report = flows(&mut bed, FlowFilter { limit: Some(2500), ..FlowFilter::default() });
    assert_eq!((report.matched, report.flows.len()), (6000, 2500));
    // What others wanted to know at the same time does not matter to packets.
    let sent = packet(pod_ip(0, 1, 0), outside(0), udp(1));
    assert!(bed.node.inject(&pod(1), &sent.frame(up(1))));
    assert_eq!(flush(&mut bed, FlowFilter { port: Some(1024), ..FlowFilter::default() }), 1);
    bed.node.run();
    assert_eq!(bed.node.collect().len(), 1);
    assert_eq!(bed.node.flows(), 6000);
    bed.close();
}

#[test]
fn what_is_flushed_is_forgotten_and_the_others_go_on() {
    let mut bed = bed();
    let ports = some_flows(&mut bed);
    let to_web = packet(pod_ip(0, 0, 0), vip(0), tcp(40_000, ACK));
    let to_outside = packet(pod_ip(0, 1, 0), outside(0), udp(50_000));
    let connection = packet(pod_ip(0, 1, 0), outside(0), tcp(50_001, SYN));
    leaves(&mut bed, 1, &connection);
    let connection = packet(pod_ip(0, 1, 0), outside(0), tcp(50_001, ACK));
    leaves(&mut bed, 1, &connection);
    assert_eq!(bed.node.flows(), 7);

    let filter = FlowFilter { protocol: Some(6), snat: true, ..FlowFilter::default() };
    assert_eq!(flush(&mut bed, filter.clone()), 1);
    assert_eq!(flush(&mut bed, filter), 0);
    // The next packet is taken for the first, which it is not.
    bed.drops(&pod(1), &connection.frame(up(1)), "flow_unknown");
    // The others are as they were.
    leaves(&mut bed, 0, &to_web);
    assert_eq!(port_of(&leaves(&mut bed, 1, &to_outside), 0), ports[0]);
    assert_eq!(bed.node.flows(), 6);

    let filter = FlowFilter { service: Some("default/web".into()), ..FlowFilter::default() };
    assert_eq!(flush(&mut bed, filter), 2);
    assert_eq!(port_of(&leaves(&mut bed, 1, &to_outside), 0), ports[0]);
    assert_eq!(flush(&mut bed, FlowFilter::default()), 4);
    assert_eq!(bed.node.flows(), 0);
    // All ports are back.
    for address in usage(&mut bed) {
        let bindings: u64 = address.workers.iter().map(|worker| worker.bindings).sum();
        assert_eq!((bindings, address.busiest.len(), address.top_pods.len()), (0, 0, 0));
    }
    // The answer finds nobody; a new question is a new flow.
    let answer = to_outside
        .reply(b"answer")
        .between((outside(0), 53), (node_ip(0, 0), ports[0]))
        .frame(super::build::IN);
    bed.drops(&Place::Uplink(1), &answer, "snat_unsolicited");
    leaves(&mut bed, 1, &to_outside);
    assert_eq!(bed.node.flows(), 1);
    bed.close();
}

#[test]
fn source_nat_is_counted_by_address_worker_and_remote() {
    let mut bed = bed();
    many(&mut bed, 300);
    some_flows(&mut bed);
    let report = bindings(&mut bed, FlowFilter { limit: Some(5), ..FlowFilter::default() });
    assert_eq!((report.bindings.len(), report.matched), (5, 304));
    let pod2 = FlowFilter { endpoint: Some("default/a-pod2".into()), ..FlowFilter::default() };
    let report = bindings(&mut bed, FlowFilter { protocol: Some(17), ..pod2 });
    assert_eq!(report.matched, 2);
    let query = &report.bindings[0];
    assert_eq!((query.worker, query.external), (WorkerId(1), node_ip(0, 0)));
    assert_eq!((query.internal, query.internal_port), (pod_ip(0, 1, 0), 50_000));
    assert_eq!((query.remote, query.remote_port), (outside(0), 53));
    assert_eq!(
        (query.endpoint.as_deref(), query.state.as_str()),
        (Some("default/a-pod2"), "one_way")
    );

    let usage = usage(&mut bed);
    assert_eq!(usage.len(), 2);
    let v4 = usage.iter().find(|usage| usage.external == node_ip(0, 0)).unwrap();
    assert_eq!((v4.bindings, v4.free), (302, 19_760 - 301));
    let bindings: Vec<u64> = v4.workers.iter().map(|worker| worker.bindings).collect();
    assert_eq!(bindings, [300, 2]);
    assert_eq!(v4.workers[0].in_use, BTreeMap::from([("udp".to_owned(), 300)]));
    let one_each = BTreeMap::from([("icmp".to_owned(), 1), ("udp".to_owned(), 1)]);
    assert_eq!(v4.workers[1].in_use, one_each);
    assert!(v4.workers.iter().all(|worker| worker.owned >= 64 && worker.exhausted == 0));
    assert_eq!(v4.workers[0].tries.iter().sum::<u64>(), 300);
    let busiest: Vec<_> = v4.busiest.iter().map(|r| (r.remote_port, r.bindings)).collect();
    assert_eq!(busiest, [(53, 301), (0, 1)]);
    let pods: Vec<_> = v4.top_pods.iter().map(|p| (p.endpoint.clone(), p.bindings)).collect();
    let named = |name: &str, count| (Some(name.to_owned()), count);
    assert_eq!(pods, [named("default/a-pod1", 300), named("default/a-pod2", 2)]);
    bed.close();
}

#[test]
fn a_services_flows_are_counted_while_they_last_and_after() {
    let mut bed = bed();
    assert_eq!(the_service(&mut bed).new_flows, 0);
    for client in 0..2 {
        for flags in [SYN, ACK] {
            let sent = packet(pod_ip(0, client, 0), vip(0), tcp(40_000, flags));
            leaves(&mut bed, client, &sent);
        }
    }
    leaves(&mut bed, 0, &packet(pod_ip(0, 0, 1), vip(1), tcp(40_000, SYN)));
    let status = the_service(&mut bed);
    assert_eq!(status.name, "default/web:http");
    assert_eq!(status.frontends, service("x").frontends);
    let backends: Vec<_> = status
        .backends
        .iter()
        .map(|b| (b.backend.address, b.backend.weight, b.backend.state, b.flows))
        .collect();
    let expected = [(0, 2), (1, 1)].map(|(family, flows)| {
        [
            (pod_ip(1, 0, family), 1, BackendState::Ready, Some(flows)),
            (pod_ip(1, 1, family), 2, BackendState::Terminating, Some(0)),
        ]
    });
    assert_eq!(backends, expected.concat());
    let carried = Traffic { packets: 5, bytes: 4 * 40 + 60 };
    assert_eq!((status.new_flows, status.to_backends), (3, carried));
    assert_eq!(status.to_clients, Traffic::default());

    bed.node.wait(Duration::from_secs(300));
    bed.node.run();
    assert_eq!(bed.node.flows(), 0);
    let status = the_service(&mut bed);
    assert_eq!((status.new_flows, status.to_backends), (3, carried));
    assert!(status.backends.iter().all(|backend| backend.flows == Some(0)));
    leaves(&mut bed, 0, &packet(pod_ip(0, 0, 0), vip(0), tcp(40_001, SYN)));
    assert_eq!(the_service(&mut bed).new_flows, 4);
    // The next service with its tag begins anew.
    flush(&mut bed, FlowFilter::default());
    for worker in [WorkerId(0), WorkerId(1)] {
        bed.node.bench().tell(worker, Command::ForgetTag(1));
    }
    assert_eq!(the_service(&mut bed).new_flows, 0);
    bed.close();
}

#[test]
fn a_flow_of_a_service_that_is_gone_has_no_name() {
    let mut bed = bed();
    leaves(&mut bed, 0, &packet(pod_ip(0, 0, 0), vip(0), tcp(40_000, SYN)));
    let gone = overlane_api::ObjectKey::Service("default/web:http".into());
    let mut other = service("default/other:http");
    other.frontends.retain_mut(|at| {
        at.port = 81;
        true
    });
    // The other gets its place.
    let changes = vec![Change::Remove(gone), Change::Set(Object::Service(other))];
    bed.node.apply(changes).unwrap();
    let report = flows(&mut bed, FlowFilter::default());
    assert_eq!(report.flows.len(), 1);
    assert_eq!(report.flows[0].service, None);
    let of_other = FlowFilter { service: Some("default/other".into()), ..FlowFilter::default() };
    assert_eq!(flows(&mut bed, of_other).matched, 0);
    assert_eq!(the_service(&mut bed).new_flows, 0);
    bed.close();
}

#[test]
fn tables_of_another_size_are_taken_while_there_are_no_flows() {
    let mut bed = bed();
    let remake = |bed: &mut Bed, capacity: u32| {
        let (done, taken) = crossbeam::channel::bounded(1);
        let tables = Box::new(Flows::tables(capacity).unwrap());
        bed.node.bench().tell(WorkerId(1), Command::FlowTables { tables, done });
        taken.recv().unwrap().0
    };
    assert!(remake(&mut bed, 100));
    let report = flows(&mut bed, FlowFilter::default());
    assert_eq!(report.capacity, 2 * 16_384 + 2 * 100);
    let sent = packet(pod_ip(0, 1, 0), outside(0), udp(50_000));
    leaves(&mut bed, 1, &sent);
    bed.node.run();
    assert_eq!(bed.node.bench().workers[1].counters().flows, 1, "for the status");
    assert!(!remake(&mut bed, 200), "there is a flow");
    assert_eq!(flows(&mut bed, FlowFilter::default()).capacity, report.capacity);
    leaves(&mut bed, 1, &sent);
    // Timeouts are still the node's.
    bed.node.wait(Duration::from_secs(29));
    bed.node.run();
    assert_eq!(bed.node.flows(), 1);
    bed.node.wait(Duration::from_secs(2));
    bed.node.run();
    assert_eq!(bed.node.flows(), 0, "30 seconds for a query to a name server");
    bed.close();
}

#[test]
fn somebody_at_the_socket_is_answered() {
    let mut bed = bed();
    let ports = some_flows(&mut bed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    let (sender, calls) = mailbox().unwrap();
    let server = Server::start(&path, None, sender).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let asked = std::panic::catch_unwind(|| {
                let mut client = Client::connect(&path, Duration::from_secs(10)).unwrap();
                let filter = FlowFilter { snat: true, ..FlowFilter::default() };
                let ops = [
                    Op::Services,
                    Op::Flows { filter: filter.clone() },
                    Op::NatBindings { filter: filter.clone() },
                    Op::NatUsage,
                    Op::FlushFlows { filter },
                    Op::Flows { filter: FlowFilter::default() },
                ];
                ops.map(|op| client.call(op).unwrap())
            });
            done.store(true, Ordering::Relaxed);
            asked.unwrap()
        });
        while !done.load(Ordering::Relaxed) {
            match calls.next() {
                Some(call) => {
                    let answer = bed.node.bench().ask(&call.op).unwrap();
                    call.reply.send(answer).unwrap();
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let [
            Reply::Services(services),
            Reply::Flows(before),
            Reply::NatBindings(bound),
            Reply::NatUsage(used),
            Reply::Flushed { flows },
            Reply::Flows(after),
        ] = client.join().unwrap()
        else {
            panic!("other answers");
        };
        assert_eq!((services.len(), services[0].new_flows), (1, 2));
        assert_eq!((before.matched, before.total, flows, after.total), (4, 6, 4, 2));
        let mut external: Vec<u16> = bound
            .bindings
            .iter()
            .filter(|binding| binding.protocol == 17)
            .map(|binding| binding.external_port)
            .collect();
        external.sort_unstable();
        let mut ports = ports;
        ports.sort_unstable();
        assert_eq!((external, used.len()), (ports, 2));
    });
    drop(server);
    bed.close();
}
