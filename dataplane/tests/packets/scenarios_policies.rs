//! Cases of the services reference that are about who may be served by whom; by their numbers there, in
//! the table of `dataplane/tests/README.md`.

use overlane_api::{Object, Protocol, Scope};

use super::bed::{FORWARDED, UPLINK, pod};
use super::build::{IN, Tunnel, between, down, inner_of, node_ip, packet, pod_ip, up};
use super::egress::{OUT, bed_with, outside};
use super::nat_rig::{SYN, tcp, udp};
use super::services::{service, vip};
use super::services_outside::{NODE_PORT, exposed_as};
use super::two_nodes::load_balancer;

/// 5: the internal policy is Local, and the backends are elsewhere: dropped by name, not refused. With one
/// here it is served, and by that one alone.
#[test]
fn internal_local_serves_here_or_not_at_all() {
    for family in 0..2 {
        let mut local = service(0, Protocol::Udp, &[(1, 0), (2, 0)]);
        local.internal = Scope::Local;
        let mut bed = bed_with(1, vec![local]);
        let asks = |port| packet(pod_ip(0, 0, family), vip(0, family), udp(port, 80));
        bed.drops(&pod(0), &asks(40_000).frame(up(0)), "service_no_local_backend");
        assert_eq!(bed.node.flows(), 0);
        let mut local = service(0, Protocol::Udp, &[(1, 0), (0, 1), (2, 0)]);
        local.internal = Scope::Local;
        bed.node.set(Object::Service(local)).unwrap();
        for port in 40_000..40_040 {
            let sent = asks(port);
            let arrives = sent.between((sent.source, port), (pod_ip(0, 1, family), 8080)).ttl(63);
            bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), arrives.frame(down(1)))], FORWARDED);
        }
        bed.close();
    }
}

/// 6, 7: the external policy is Local, and the backends are elsewhere: somebody outside is dropped by
/// name; a pod here that asks the same address is served by any of them, and is seen as itself.
#[test]
fn external_local_is_for_clients_outside() {
    for family in 0..2 {
        let mut exposed = exposed_as(service(0, Protocol::Tcp, &[(1, 0)]));
        exposed.external = Scope::Local;
        let mut bed = bed_with(1, vec![exposed]);
        for (address, port) in [(load_balancer(family), 80), (node_ip(0, family), NODE_PORT)] {
            let strange = packet(outside(family), address, tcp(50_000, port, SYN));
            bed.drops(&UPLINK, &strange.frame(IN), "service_no_local_backend");
            let own = 40_000 + port % 100;
            let sent = packet(pod_ip(0, 0, family), address, tcp(own, port, SYN));
            let got = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
            let (client, server) = ((sent.source, own), (pod_ip(1, 0, family), 8080));
            // Told apart by another port when the same one is in use towards that backend.
            let at = [34, 54][family];
            let port_there = u16::from_be_bytes([inner_of(&got)[at], inner_of(&got)[at + 1]]);
            let arrives = sent.between((client.0, port_there), server).ttl(63);
            assert_eq!(inner_of(&got), arrives.frame(between(0, 1)));
            let reply = arrives.reply(b"");
            let tunnel =
                Tunnel::from_peer(1, overlane_api::Mode::Geneve, overlane_api::Underlay::Ipv4);
            let back = tunnel.wrap(&reply.frame(between(1, 0)));
            let seen = reply.between((address, port), client).ttl(63);
            bed.step(&UPLINK, &back, &[(pod(0), seen.frame(down(0)))], FORWARDED);
        }
        bed.close();
    }
}

/// 17: a client outside of `loadBalancerSourceRanges` is dropped at the load balancer's address, pods
/// included, and is served at the NodePort.
#[test]
fn source_ranges_are_for_the_load_balancers_address() {
    for family in 0..2 {
        let mut ranged = exposed_as(service(0, Protocol::Tcp, &[(0, 1)]));
        ranged.external = Scope::Local;
        ranged.source_ranges =
            vec!["203.0.113.64/26".parse().unwrap(), "2001:db8:113:1::/64".parse().unwrap()];
        let mut bed = bed_with(1, vec![ranged]);
        let balanced = (load_balancer(family), 80);
        let at_node = (node_ip(0, family), NODE_PORT);
        let inside = ["203.0.113.70", "2001:db8:113:1::7"][family].parse().unwrap();
        let from_outside =
            |source, to: (std::net::IpAddr, u16)| packet(source, to.0, tcp(50_000, to.1, SYN));
        let dropped = from_outside(outside(family), balanced);
        bed.drops(&UPLINK, &dropped.frame(IN), "service_source_range");
        let of_pod = packet(pod_ip(0, 0, family), balanced.0, tcp(50_000, 80, SYN));
        bed.drops(&pod(0), &of_pod.frame(up(0)), "service_source_range");
        for (source, asked) in [(outside(family), at_node), (inside, balanced)] {
            let sent = from_outside(source, asked);
            let client = (source, 50_000);
            let arrives = sent.between(client, (pod_ip(0, 1, family), 8080)).ttl(63);
            let out = [(pod(1), arrives.frame(down(1)))];
            bed.step(&UPLINK, &sent.frame(IN), &out, FORWARDED);
            let reply = arrives.reply(b"");
            let seen = reply.between(asked, client).ttl(63);
            bed.step(&pod(1), &reply.frame(up(1)), &[(UPLINK, seen.frame(OUT))], FORWARDED);
        }
        bed.close();
    }
}

/// Two queries of one socket at the same instant, as resolvers send for A and AAAA: one flow, one backend,
/// and both are answered.
#[test]
fn two_queries_at_once_share_a_flow() {
    for workers in [1, 2] {
        for family in 0..2 {
            let mut dns = service(0, Protocol::Udp, &[(1, 0), (2, 0)]);
            for frontend in &mut dns.frontends {
                frontend.port = 53;
            }
            let mut bed = bed_with(workers, vec![dns]);
            let sent = packet(pod_ip(0, 0, family), vip(0, family), udp(40_000, 53));
            for _ in 0..2 {
                assert!(bed.node.inject(&pod(0), &sent.frame(up(0))));
            }
            bed.node.run();
            let got = bed.node.collect();
            assert_eq!((got.len(), bed.node.flows()), (2, 1));
            assert_eq!(inner_of(&got[0].1), inner_of(&got[1].1));
            // And out of the cluster.
            let sent = packet(pod_ip(0, 0, family), outside(family), udp(40_001, 53));
            for _ in 0..2 {
                assert!(bed.node.inject(&pod(0), &sent.frame(up(0))));
            }
            bed.node.run();
            let got = bed.node.collect();
            assert_eq!((got.len(), bed.node.flows()), (2, 2));
            assert_eq!(got[0].1, got[1].1);
            bed.close();
        }
    }
}
