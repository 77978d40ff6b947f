//! Services from outside: NodePorts and load balancers' addresses.

use std::net::IpAddr;

use overlane_api::{Frontend, FrontendKind, Mode, Object, Protocol, Scope, Service, Underlay};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{FORWARDED, TO_HOST, UPLINK, pod};
use super::build::{
    Body, IN, Tunnel, between, down, from_host, gateway_ip, inner_of, node_ip, packet, pod_ip,
    to_host, up,
};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::{error, names, told};
use super::listings::all_services;
use super::services::{service, vip};

const SYN: u8 = 2;
pub const NODE_PORT: u16 = 30_080;

fn load_balancer(family: usize) -> IpAddr {
    ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap()
}

/// A service with a NodePort and a load balancer's address besides.
fn exposed(external: Scope, backends: &[(u8, u8)]) -> Service {
    let mut service = exposed_as(service(0, Protocol::Tcp, backends));
    service.external = external;
    service
}

/// The service with a NodePort and a load balancer's address besides.
pub fn exposed_as(mut service: Service) -> Service {
    for family in 0..2 {
        let node_port =
            Frontend { address: node_ip(0, family), port: NODE_PORT, kind: FrontendKind::NodePort };
        let address = load_balancer(family);
        let lb = Frontend { address, port: 80, kind: FrontendKind::LoadBalancer };
        service.frontends.extend([node_port, lb]);
    }
    service.frontends.sort();
    service
}

fn syn(family: usize, to: (IpAddr, u16)) -> super::build::Packet {
    packet(outside(family), to.0, Body::Segment(50_000, to.1, SYN, Vec::new()))
}

#[test]
fn from_outside_to_a_backend_elsewhere_and_back_through_this_node() {
    for family in 0..2 {
        for to in [(node_ip(0, family), NODE_PORT), (load_balancer(family), 80)] {
            let mut bed = bed_with(1, vec![exposed(Scope::Cluster, &[(1, 0)])]);
            let sent = syn(family, to);
            let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
            let inner = inner_of(&frame);
            let at = [34, 54][family];
            let port = u16::from_be_bytes([inner[at], inner[at + 1]]);
            let (own, server) = ((node_ip(0, family), port), (pod_ip(1, 0, family), 8080));
            let arrives = sent.between(own, server).ttl(63);
            assert_eq!(inner, arrives.frame(between(0, 1)));
            let reply = arrives.reply(b"");
            let back = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4)
                .wrap(&reply.frame(between(1, 0)));
            let seen = reply.between(to, (outside(family), 50_000)).ttl(63);
            bed.step(&UPLINK, &back, &[(UPLINK, seen.frame(OUT))], FORWARDED);
            bed.close();
        }
    }
}

#[test]
fn with_the_policy_local_a_backend_here_sees_the_client_and_answers_as_the_service() {
    for workers in [1, 2] {
        for family in 0..2 {
            for to in [(node_ip(0, family), NODE_PORT), (load_balancer(family), 80)] {
                let mut bed = bed_with(workers, vec![exposed(Scope::Local, &[(0, 1), (1, 0)])]);
                let hop: &[(&str, i64)] = match workers {
                    1 => FORWARDED,
                    _ => &[("received", 2), ("sent", 2), ("handed_over", 1)],
                };
                let sent = syn(family, to);
                let (client, server) = ((outside(family), 50_000), (pod_ip(0, 1, family), 8080));
                let arrives = sent.between(client, server).ttl(63);
                bed.step(&UPLINK, &sent.frame(IN), &[(pod(1), arrives.frame(down(1)))], hop);
                let reply = arrives.reply(b"");
                let seen = reply.between(to, client).ttl(63);
                let out = (Place::Uplink(usize::from(workers - 1)), seen.frame(OUT));
                bed.step(&pod(1), &reply.frame(up(1)), &[out], FORWARDED);
                bed.close();
            }
        }
    }
}

#[test]
fn what_may_not_come_in_is_named() {
    let mut service = exposed(Scope::Local, &[(1, 0)]);
    service.source_ranges =
        vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:2::/48".parse().unwrap()];
    let mut bed = bed_with(1, vec![service]);
    for family in 0..2 {
        // The cluster address is for the cluster.
        let sent = syn(family, (vip(0, family), 80));
        bed.drops(&UPLINK, &sent.frame(IN), "service_from_outside");
        // The load balancer's address is for some; the node's is not limited.
        let sent = syn(family, (load_balancer(family), 80));
        bed.drops(&UPLINK, &sent.frame(IN), "service_source_range");
        let sent = syn(family, (node_ip(0, family), NODE_PORT));
        bed.drops(&UPLINK, &sent.frame(IN), "service_no_local_backend");
        // A port that the service does not have is refused there, and is the host's here.
        let mut inside = syn(family, (load_balancer(family), 81));
        inside.body = Body::Udp(50_000, 81, Vec::new());
        let answer = error(load_balancer(family), &inside, [(3, 3), (1, 4)], 0);
        let moved = told("service_unknown_port");
        bed.step(&UPLINK, &inside.frame(IN), &[(UPLINK, answer.frame(OUT))], &names(&moved));
        let ssh = syn(family, (node_ip(0, family), 22));
        assert_eq!(bed.send(&UPLINK, &ssh.frame(IN), TO_HOST)[0].0, Place::Host);
    }
    // The listing says what the service refused, of both families.
    let services = all_services(&mut bed);
    let reasons = ["service_from_outside", "service_no_local_backend", "service_source_range"];
    let dropped: Vec<_> = services[0].dropped.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    assert_eq!(dropped, reasons.map(|name| (name, 2)));
    assert_eq!((services[0].rejected, services[0].new_flows), (0, 0));
    bed.close();
}

/// Like the API server's: the backend is a program of another node's host, and so is the client.
#[test]
fn a_host_asks_a_service_whose_backend_is_a_program_of_another_host() {
    for workers in [1, 2] {
        for family in 0..2 {
            let mut api = service(0, Protocol::Tcp, &[(1, 0)]);
            api.backends.retain_mut(|backend| {
                let family = usize::from(backend.address.is_ipv6());
                (backend.address, backend.port) = (node_ip(1, family), 6443);
                true
            });
            let mut bed = bed_with(workers, vec![api]);
            let (client, asked) = ((node_ip(0, family), 40_000), (vip(0, family), 80));
            let sent = packet(client.0, asked.0, Body::Segment(40_000, 80, SYN, Vec::new()));
            let frame = bed.one(&Place::Host, &sent.frame(from_host()), &UPLINK, FORWARDED);
            // There by the tunnel, like all between a host and a peer's addresses; back by itself.
            let (at, frame) = ([34, 54][family], inner_of(&frame));
            let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
            assert!((10_240..30_000).contains(&port), "steered to us: {port}");
            let (own, server) = ((client.0, port), (node_ip(1, family), 6443));
            let left = sent.between(own, server).ttl(63);
            assert_eq!(frame, left.frame(between(0, 1)));
            let reply = left.reply(b"");
            let seen = reply.between(asked, client);
            let got = bed.send(&UPLINK, &reply.frame(IN), TO_HOST);
            assert_eq!(got, [(Place::Host, seen.frame(to_host()))]);
            // An error about it comes to the host as about what it sent.
            let told = error(node_ip(9, family), &left, [(3, 3), (1, 4)], 0);
            let seen = error(node_ip(9, family), &sent.clone().ttl(63), [(3, 3), (1, 4)], 0);
            let mut got = bed.send(&UPLINK, &told.frame(IN), TO_HOST);
            assert_eq!(got.remove(0), (Place::Host, seen.frame(to_host())));
            bed.close();
        }
    }
}

#[test]
fn a_host_is_the_backend_of_its_own_request() {
    let router: IpAddr = "fd12:3456:0:1::".parse().unwrap();
    for family in 0..2 {
        let mut api = service(0, Protocol::Tcp, &[(1, 0)]);
        for backend in &mut api.backends {
            let family = usize::from(backend.address.is_ipv6());
            (backend.address, backend.port) = (node_ip(0, family), 6443);
        }
        let mut bed = bed_with(1, vec![api]);
        let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
        node.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd98::/108".parse().unwrap()];
        node.gateway_addresses.push(router);
        bed.node.set(Object::Node(node)).unwrap();
        bed.node.publish();
        let (own, asked) = (node_ip(0, family), (vip(0, family), 80));
        let gateway = [gateway_ip(0), router][family];
        let sent = packet(own, asked.0, Body::Segment(40_000, 80, SYN, Vec::new()));
        let arrives = sent.between((gateway, 40_000), (own, 6443));
        let got = bed.send(&Place::Host, &sent.frame(from_host()), TO_HOST);
        assert_eq!(got, [(Place::Host, arrives.frame(to_host()))]);
        let reply = arrives.reply(b"");
        let seen = reply.between(asked, (own, 40_000));
        let got = bed.send(&Place::Host, &reply.frame(from_host()), TO_HOST);
        assert_eq!(got, [(Place::Host, seen.frame(to_host()))]);
        bed.close();
    }
}
