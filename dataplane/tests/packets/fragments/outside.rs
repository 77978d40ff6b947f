//! From outside, by any queue of the uplink: to services, answers to pods, and what is the host's.

use overlane_api::{Frontend, FrontendKind, Mode, Object, Protocol, Scope, Service, Underlay};
use overlane_dataplane::testing::Place;

use super::*;
use crate::bed::{FORWARDED, TO_HOST, UPLINK, pod};
use crate::build::{IN, Tunnel, between, down, inner_of, node_ip, pod_ip, to_host, up};
use crate::egress::{bed_with, outside};
use crate::services::service;

pub const NODE_PORT: u16 = 30_080;

pub fn exposed(scope: Scope, backends: &[(u8, u8)]) -> Service {
    let mut service = service(0, Protocol::Udp, backends);
    for family in 0..2 {
        service.frontends.push(Frontend {
            address: node_ip(0, family),
            port: NODE_PORT,
            kind: FrontendKind::NodePort,
        });
        service.frontends.push(Frontend {
            address: ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap(),
            port: 80,
            kind: FrontendKind::LoadBalancer,
        });
    }
    service.frontends.sort();
    service.external = scope;
    service
}

/// The network hands fragments to any queue.
#[test]
fn from_outside_by_any_queue_to_a_backend_elsewhere_and_here() {
    for workers in [1, 2, 3] {
        for family in 0..2 {
            let balancer = ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap();
            for to in [(node_ip(0, family), NODE_PORT), (balancer, 80)] {
                for (scope, node, number) in [(Scope::Cluster, 1, 0), (Scope::Local, 0, 1)] {
                    let mut bed = bed_with(workers, vec![exposed(scope, &[(node, number)])]);
                    let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
                    let client = (outside(family), 50_000);
                    let server = (pod_ip(node, number, family), 8080);
                    for (id, order) in orders(3).into_iter().enumerate() {
                        let sent = Packet { id: id as u16, ..datagram(client, to, 4000) };
                        let frames = ordered(&framed(&cut(&sent, &[1400, 2800]), IN), &order);
                        let out = send(&mut bed, &queues, &frames);
                        let arrived = packets_of(&out);
                        let got = reassemble(&arrived);
                        let seen_as = match scope {
                            Scope::Cluster => (node_ip(0, family), port_of(&got, false)),
                            Scope::Local => client,
                        };
                        let arrives = sent.between(seen_as, server).ttl(63);
                        assert_eq!(got, named_as(&arrives, &got).ip());
                        let reply = arrives.reply(&bytes(3000));
                        let pieces = cut(&reply, &[1400, 2800]);
                        let (from, frames) = if scope == Scope::Local {
                            (pod(number), framed(&pieces, up(number)))
                        } else {
                            // By the queue of a worker that need not have any flow.
                            let tunnel = Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4);
                            let inner = framed(&pieces, between(1, 0));
                            let frames = inner.iter().map(|frame| tunnel.wrap(frame)).collect();
                            (queues[id % queues.len()].clone(), frames)
                        };
                        let seen = send(&mut bed, &[from], &ordered(&frames, &order));
                        let seen: Vec<_> = seen
                            .iter()
                            .map(|(place, frame)| {
                                assert!(matches!(place, Place::Uplink(_)), "{place:?}");
                                frame[14..].to_vec()
                            })
                            .collect();
                        let got = reassemble(&seen);
                        let expected = reply.between(to, client).ttl(63);
                        assert_eq!(got, named_as(&expected, &got).ip());
                    }
                    bed.close();
                }
            }
        }
    }
}

#[test]
fn answers_by_any_queue_find_their_pod() {
    for family in 0..2 {
        for workers in [2, 3] {
            let mut bed = bed_with(workers, Vec::new());
            let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
            for number in 0..2 {
                let from = (pod_ip(0, number, family), 41_000);
                let sent = datagram(from, (outside(family), 443), 10);
                let out = bed.send(&pod(number), &sent.frame(up(number)), FORWARDED);
                let port = port_of(&out[0].1[14..], false);
                let left = sent.between((node_ip(0, family), port), (outside(family), 443));
                for id in 0..20 {
                    for order in orders(3) {
                        let reply = Packet { id: 100 + id, ..left.reply(&bytes(4000)) };
                        let frames = framed(&cut(&reply, &[1400, 2800]), IN);
                        let frames = ordered(&frames, &order);
                        let seen = carry(&mut bed, &queues, &frames, &pod(number), down(number));
                        let expected = reply.between((outside(family), 443), from).ttl(63);
                        assert_eq!(reassemble(&seen), expected.ip());
                    }
                }
            }
            // From the queue to who remembers, and from there to the pod's home: twice at most.
            let counters = bed.node.counters();
            assert!(counters.handed_over <= 2 * 2 * 20 * 9, "{}", counters.handed_over);
            bed.close();
        }
    }
}

#[test]
fn what_is_the_hosts_goes_to_it_in_any_order() {
    for workers in [1, 2] {
        for family in 0..2 {
            let mut bed = bed_with(workers, vec![exposed(Scope::Cluster, &[(1, 0)])]);
            let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
            // A flow, so that there are ports of pods.
            let flow = datagram((pod_ip(0, 0, family), 41_000), (outside(family), 443), 10);
            let out = bed.send(&pod(0), &flow.frame(up(0)), FORWARDED);
            let used = port_of(&out[0].1[14..], false);
            let (from, own) = (outside(family), node_ip(0, family));
            for (id, body) in [
                Body::Udp(5000, 2049, bytes(4000)),
                Body::Echo(false, 7, 1, bytes(4000)),
                // The answer to a ping of its own, with a number that a pod's flow leaves with.
                Body::Echo(true, used, 1, bytes(4000)),
                Body::Segment(5000, 22, ACK, bytes(3000)),
                Body::Raw(50, bytes(3000)),
            ]
            .into_iter()
            .enumerate()
            {
                for (number, order) in orders(3).into_iter().enumerate() {
                    let id = (id * 8 + number) as u16;
                    let sent = Packet { id, ..whole(from, own, body.clone()) };
                    let frames = ordered(&framed(&cut(&sent, &[1400, 2800]), IN), &order);
                    let seen = carry(&mut bed, &queues, &frames, &Place::Host, to_host());
                    assert_eq!(reassemble(&seen), sent.ip());
                }
            }
            // To a port of pods that this is no answer to: the first one is refused, and the others.
            let stray = datagram((from, 444), (own, used), 3000);
            for piece in framed(&cut(&stray, &[1400]), IN) {
                let before = bed.node.counters();
                assert!(send(&mut bed, &queues, &[piece]).is_empty());
                let dropped = bed.node.counters().dropped_total() - before.dropped_total();
                assert_eq!(dropped, 1);
            }
            let stray =
                bed.node.drops().iter().map(|(reason, n)| (reason.name(), *n)).collect::<Vec<_>>();
            assert_eq!(stray, [("snat_unsolicited", 2)]);
            bed.close();
        }
    }
}

#[test]
fn a_tunnel_packet_in_pieces_is_named() {
    for underlay in [Underlay::Ipv4, Underlay::Ipv6] {
        let mut bed = bed_with(1, Vec::new());
        let inner = datagram((pod_ip(1, 0, 0), 1), (pod_ip(0, 0, 0), 2), 1400).frame(between(1, 0));
        let outer = Tunnel::from_peer(1, Mode::Geneve, underlay).outer(&inner);
        let outer = Packet { dont_fragment: false, id: 9, ..outer };
        for piece in framed(&cut(&outer, &[800]), IN) {
            bed.drops(&UPLINK, &piece, "outer_fragment");
        }
        bed.close();
    }
}

#[test]
fn whole_packets_of_the_host_are_none_of_this() {
    let mut bed = bed_with(1, Vec::new());
    let sent = datagram((outside(0), 1), (node_ip(0, 0), 2049), 100);
    assert_eq!(bed.send(&UPLINK, &sent.frame(IN), TO_HOST)[0].0, Place::Host);
    bed.close();
}

/// Sends a datagram from outside in pieces, in each order, by any queue; what arrives, put together.
#[track_caller]
fn asks_in_pieces(bed: &mut Bed, queues: &[Place], sent: &Packet) -> Vec<Vec<u8>> {
    let mut arrived = Vec::new();
    for (number, order) in orders(3).into_iter().enumerate() {
        let sent = Packet { id: sent.id + number as u16, ..sent.clone() };
        let mut queues = queues.to_vec();
        let first = number % queues.len();
        queues.rotate_left(first);
        let frames = ordered(&framed(&cut(&sent, &[1400, 2800]), IN), &order);
        let out = send(bed, &queues, &frames);
        let pieces = packets_of(&out);
        arrived.push(reassemble(&pieces));
    }
    arrived
}

/// A client's datagrams have one flow, whole or in pieces, wherever it is.
#[test]
fn a_client_has_one_flow_whichever_worker_remembers_its_fragments() {
    for workers in [1, 2, 3] {
        for family in 0..2 {
            for begins_whole in [true, false] {
                let mut bed = bed_with(workers, vec![exposed(Scope::Cluster, &[(1, 0)])]);
                let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
                let (client, to) = ((outside(family), 50_000), (node_ip(0, family), NODE_PORT));
                let mut ports = Vec::new();
                if begins_whole {
                    let frame = datagram(client, to, 10).frame(IN);
                    let out = send(&mut bed, &queues[queues.len() - 1..], &[frame]);
                    ports.push(port_of(&inner_of(&out[0].1)[14..], false));
                }
                for id in 0..8 {
                    let sent = Packet { id: id * 16, ..datagram(client, to, 4000) };
                    for got in asks_in_pieces(&mut bed, &queues, &sent) {
                        let own = (node_ip(0, family), port_of(&got, false));
                        let arrives = sent.between(own, (pod_ip(1, 0, family), 8080)).ttl(63);
                        assert_eq!(got, named_as(&arrives, &got).ip());
                        ports.push(own.1);
                    }
                }
                ports.dedup();
                assert_eq!((ports.len(), bed.node.flows()), (1, 1));
                bed.close();
            }
        }
    }
}

/// Which backend would be chosen today does not matter.
#[test]
fn fragments_find_the_flow_of_a_backend_that_others_would_not_be_given() {
    for workers in [2, 3] {
        for family in 0..2 {
            let mut bed = bed_with(workers, vec![exposed(Scope::Local, &[(0, 1)])]);
            let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
            let to = (node_ip(0, family), NODE_PORT);
            let clients: Vec<_> = (50_000..50_012).map(|port| (outside(family), port)).collect();
            for client in &clients {
                let frame = datagram(*client, to, 10).frame(IN);
                assert_eq!(send(&mut bed, &queues[..1], &[frame])[0].0, pod(1));
            }
            let service = exposed(Scope::Local, &[(0, 0), (0, 1), (0, 2)]);
            bed.node.set(Object::Service(service)).unwrap();
            bed.node.publish();
            for (number, client) in clients.iter().enumerate() {
                let sent = Packet { id: number as u16 * 16, ..datagram(*client, to, 4000) };
                for got in asks_in_pieces(&mut bed, &queues, &sent) {
                    let arrives = sent.between(*client, (pod_ip(0, 1, family), 8080)).ttl(63);
                    assert_eq!(got, named_as(&arrives, &got).ip());
                }
            }
            assert_eq!(bed.node.flows() as usize, clients.len());
            bed.close();
        }
    }
}

/// What is refused is refused in all its pieces, and goes round no longer than its first one.
#[test]
fn pieces_of_what_is_refused_end_somewhere() {
    for workers in [1, 2, 3] {
        for family in 0..2 {
            let mut service = exposed(Scope::Local, &[(0, 1)]);
            service.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
            let mut bed = bed_with(workers, vec![service]);
            let queues: Vec<_> = (0..usize::from(workers)).map(Place::Uplink).collect();
            let balancer = ["198.51.100.80", "2001:db8:100::80"][family].parse().unwrap();
            for id in 0..4 {
                let client = (outside(family), 50_000);
                let sent = Packet { id, ..datagram(client, (balancer, 80), 4000) };
                let pieces = framed(&cut(&sent, &[1400, 2800]), IN);
                assert!(send(&mut bed, &queues, &pieces).is_empty());
            }
            let drops = bed.node.drops();
            let of = |name| drops.iter().find(|drop| drop.0.name() == name).map_or(0, |d| d.1);
            assert_eq!((of("service_source_range"), of("fragment_not_translated")), (4, 8));
            bed.close();
        }
    }
}
