//! Services from outside: NodePorts and load balancers' addresses.

use std::net::IpAddr;

use overlane_api::{Frontend, FrontendKind, Mode, Protocol, Scope, Service, Underlay};
use overlane_dataplane::testing::Place;

use super::bed::{FORWARDED, TO_HOST, UPLINK, pod};
use super::build::{Body, IN, Tunnel, between, down, inner_of, node_ip, packet, pod_ip, up};
use super::egress::{OUT, bed_with, outside};
use super::icmp_error::{error, names, told};
use super::services::{service, vip};

const SYN: u8 = 2;
const NODE_PORT: u16 = 30_080;

fn load_balancer(family: usize) -> IpAddr {
    ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap()
}

/// A service with a NodePort and a load balancer's address besides.
fn exposed(external: Scope, backends: &[(u8, u8)]) -> Service {
    let mut service = service(0, Protocol::Tcp, backends);
    for family in 0..2 {
        let node_port =
            Frontend { address: node_ip(0, family), port: NODE_PORT, kind: FrontendKind::NodePort };
        let address = load_balancer(family);
        let lb = Frontend { address, port: 80, kind: FrontendKind::LoadBalancer };
        service.frontends.extend([node_port, lb]);
    }
    service.frontends.sort();
    service.external = external;
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
    bed.close();
}
