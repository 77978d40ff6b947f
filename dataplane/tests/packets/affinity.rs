//! A client of a service with session affinity stays with its backend, for a time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlane_api::{Algorithm, Object, Protocol, Service};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{Body, IN, inner_of, node_ip, packet, pod_ip, up};
use super::egress::{bed_with, outside};
use super::services::{service, vip};
use super::services_outside::{NODE_PORT, exposed_as};

const SYN: u8 = 2;

/// Eight backends on node b; clients stay for ten seconds.
fn sticky(algorithm: Algorithm) -> Service {
    let backends: Vec<(u8, u8)> = (0..8).map(|pod| (1, pod)).collect();
    let mut service = service(0, Protocol::Tcp, &backends);
    service.affinity_seconds = Some(10);
    service.algorithm = algorithm;
    service
}

/// A new connection of pod 1 from `port`: which backend is it sent to?
#[track_caller]
fn connect(bed: &mut Bed, family: usize, port: u16) -> IpAddr {
    let body = Body::Segment(port, 80, SYN, Vec::new());
    let sent = packet(pod_ip(0, 0, family), vip(0, family), body);
    destination(&inner_of(&bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED)))
}

fn destination(frame: &[u8]) -> IpAddr {
    match etherparse::SlicedPacket::from_ethernet(frame).unwrap().net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
        etherparse::NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_clients_connections_go_to_one_backend_as_long_as_they_come() {
    for algorithm in [Algorithm::Maglev, Algorithm::Random] {
        for family in 0..2 {
            let mut bed = bed_with(1, vec![sticky(algorithm)]);
            let first = connect(&mut bed, family, 40_000);
            // The time begins anew with every connection.
            for port in 40_001..40_040 {
                bed.node.wait(Duration::from_secs(9));
                assert_eq!(connect(&mut bed, family, port), first, "port {port}");
            }
            bed.close();
        }
    }
}

#[test]
fn a_client_that_comes_later_is_spread_anew() {
    for algorithm in [Algorithm::Maglev, Algorithm::Random] {
        for family in 0..2 {
            let mut bed = bed_with(1, vec![sticky(algorithm)]);
            let mut chosen = BTreeSet::new();
            for port in 40_000..40_040 {
                chosen.insert(connect(&mut bed, family, port));
                bed.node.wait(Duration::from_secs(11));
            }
            // Forty throws of a die with eight sides: all alike once in 8^39.
            assert!(chosen.len() > 1, "{chosen:?}");
            bed.close();
        }
    }
}

#[test]
fn a_backend_that_takes_no_more_flows_keeps_no_client() {
    for family in 0..2 {
        for gone in [false, true] {
            let mut bed = bed_with(1, vec![sticky(Algorithm::Maglev)]);
            let first = connect(&mut bed, family, 40_000);
            let mut less = sticky(Algorithm::Maglev);
            if gone {
                less.backends.retain(|backend| backend.address != first);
            } else {
                for backend in less.backends.iter_mut().filter(|b| b.address == first) {
                    backend.weight = 0;
                }
            }
            bed.node.set(Object::Service(less)).unwrap();
            bed.node.publish();
            let second = connect(&mut bed, family, 40_001);
            assert_ne!(second, first);
            // It returns, and the client stays where it is now.
            bed.node.set(Object::Service(sticky(Algorithm::Maglev))).unwrap();
            bed.node.publish();
            assert_eq!(connect(&mut bed, family, 40_002), second);
            bed.close();
        }
    }
}

#[test]
fn clients_from_outside_stay_by_their_address() {
    for algorithm in [Algorithm::Maglev, Algorithm::Random] {
        for family in 0..2 {
            let mut bed = bed_with(1, vec![exposed_as(sticky(algorithm))]);
            let mut chosen = BTreeSet::new();
            for port in 50_000..50_040 {
                bed.node.wait(Duration::from_secs(11));
                let body = Body::Segment(port, NODE_PORT, SYN, Vec::new());
                let sent = packet(outside(family), node_ip(0, family), body);
                let frame = bed.one(&UPLINK, &sent.frame(IN), &UPLINK, FORWARDED);
                chosen.insert(destination(&inner_of(&frame)));
            }
            assert_eq!(chosen.len(), 1, "{chosen:?}");
            bed.close();
        }
    }
}
