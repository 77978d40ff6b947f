//! Changes of the tables: all or nothing, refused with the owner named, in force at once.

use overlane_api::protocol::ApiError;
use overlane_api::{Attachment, Change, Endpoint, Mode, Object, ObjectKey, Peer, Underlay};
use overlane_dataplane::testing::{Place, objects};

use super::bed::{Bed, FORWARDED, UPLINK, pod};
use super::build::{
    Body, Tunnel, between, down, flow_of, gateway_ip, node_ip, packet, pod_ip, udp, up,
};

fn set_endpoint(endpoint: Endpoint) -> Change {
    Change::Set(Object::Endpoint(endpoint))
}

fn set_peer(peer: Peer) -> Change {
    Change::Set(Object::Peer(peer))
}

/// Keys and digests of all objects, in order.
fn digests(bed: &mut Bed) -> Vec<(ObjectKey, u64)> {
    let mut installed = bed.node.bench().compiler.installed();
    installed.sort_by(|a, b| a.0.cmp(&b.0));
    installed
}

/// Every way through the usual cluster works.
#[track_caller]
fn all_works(bed: &mut Bed, mode: Mode) {
    for family in 0..2 {
        let sent = udp(pod_ip(0, 0, family), pod_ip(0, 1, family), b"near");
        let out = sent.clone().ttl(63).frame(down(1));
        bed.step(&pod(0), &sent.frame(up(0)), &[(pod(1), out)], FORWARDED);
        for peer in [1, 2] {
            let sent = udp(pod_ip(0, 1, family), pod_ip(peer, 0, family), b"far");
            let frame = bed.one(&pod(1), &sent.frame(up(1)), &UPLINK, FORWARDED);
            let tunnel = Tunnel::to_peer(peer, mode, Underlay::Ipv4, flow_of(&frame));
            assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, peer))));
            let reply = sent.reply(b"back");
            let frame =
                Tunnel::from_peer(peer, mode, Underlay::Ipv4).wrap(&reply.frame(between(peer, 0)));
            bed.step(&UPLINK, &frame, &[(pod(1), reply.ttl(63).frame(down(1)))], FORWARDED);
        }
    }
}

/// The list is refused, and nothing at all has changed.
#[track_caller]
fn refused(bed: &mut Bed, changes: Vec<Change>) -> ApiError {
    let before = digests(bed);
    let error = bed.node.apply(changes).unwrap_err();
    assert_eq!(digests(bed), before);
    bed.node.publish();
    all_works(bed, Mode::Geneve);
    error
}

#[test]
fn a_refused_list_changes_nothing() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    all_works(&mut bed, Mode::Geneve);
    let bad = set_endpoint(Endpoint {
        name: "default/bad".into(),
        addresses: vec![pod_ip(3, 0, 0)],
        attachment: Attachment::Remote { peer: "nobody".into() },
    });
    let mut moved_peer = objects::peer(1, Mode::Vxlan);
    moved_peer.addresses = objects::node_addresses(7);
    let mut moved_pod = objects::local_pod(0, 0);
    moved_pod.addresses = vec!["10.244.1.77".parse().unwrap()];
    let mut moved_node = objects::node(Mode::Geneve, Underlay::Ipv6);
    moved_node.addresses = objects::node_addresses(8);
    let remote = |number| Change::Remove(ObjectKey::Endpoint(objects::pod_name(number, 0)));
    for first in [
        vec![],
        vec![set_endpoint(objects::local_pod(5, 0)), set_peer(objects::peer(3, Mode::Native))],
        vec![Change::Remove(ObjectKey::Endpoint(objects::pod_name(0, 1)))],
        vec![set_endpoint(moved_pod)],
        vec![set_peer(moved_peer)],
        vec![Change::Set(Object::Node(moved_node))],
        vec![remote(1), Change::Remove(ObjectKey::Peer("b".into()))],
        vec![remote(1), remote(2), remote(0), set_endpoint(objects::remote_pod(1, 4))],
        vec![
            remote(0),
            set_endpoint(Endpoint {
                attachment: Attachment::Remote { peer: "b".into() },
                ..objects::local_pod(0, 0)
            }),
        ],
    ] {
        println!("{first:?}");
        let mut changes = first;
        changes.push(bad.clone());
        changes.push(Change::Remove(ObjectKey::Peer("c".into())));
        let error = refused(&mut bed, changes);
        assert!(error.what.contains("nobody"), "{error:?}");
        assert!(error.place.unwrap().contains("default/bad"));
        assert!(error.hint.is_some());
    }
    bed.close();
}

#[test]
fn what_a_refusal_says() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let endpoint = |address: std::net::IpAddr| {
        set_endpoint(Endpoint {
            name: "default/new".into(),
            addresses: vec![address],
            attachment: Attachment::Remote { peer: "b".into() },
        })
    };
    let peer = |change: &dyn Fn(&mut Peer)| {
        let mut peer = objects::peer(3, Mode::Geneve);
        change(&mut peer);
        set_peer(peer)
    };
    let node = |change: &dyn Fn(&mut overlane_api::Node)| {
        let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
        change(&mut node);
        Change::Set(Object::Node(node))
    };
    let cases: Vec<(Change, &[&str])> = vec![
        (endpoint(pod_ip(0, 0, 0)), &["10.244.1.10", "endpoint default/a-pod1"]),
        (endpoint(pod_ip(0, 0, 1)), &["fd12:3456:0:1::a", "endpoint default/a-pod1"]),
        (endpoint(pod_ip(2, 0, 0)), &["10.244.3.10", "node c"]),
        (endpoint(node_ip(0, 0)), &["10.0.1.4", "this node"]),
        (endpoint(node_ip(1, 1)), &["fd00:10:0:1::5", "node b"]),
        (endpoint(gateway_ip(0)), &["169.254.1.1", "gateway"]),
        (endpoint("224.0.0.1".parse().unwrap()), &["224.0.0.1"]),
        (endpoint("0.0.0.0".parse().unwrap()), &["0.0.0.0"]),
        (
            set_endpoint(Endpoint { addresses: vec![], ..objects::local_pod(5, 0) }),
            &["0 addresses"],
        ),
        (
            set_endpoint(Endpoint {
                addresses: vec![pod_ip(0, 5, 0), pod_ip(0, 6, 0)],
                ..objects::local_pod(5, 0)
            }),
            &["2 addresses"],
        ),
        (peer(&|p| p.pod_cidrs = objects::pod_cidrs(1)), &["10.244.2.0/24", "node b"]),
        (peer(&|p| p.pod_cidrs = objects::pod_cidrs(0)), &["10.244.1.0/24", "node a"]),
        (
            peer(&|p| p.pod_cidrs = vec!["10.244.2.128/25".parse().unwrap()]),
            &["10.244.2.128/25", "10.244.2.0/24", "node b"],
        ),
        (peer(&|p| p.pod_cidrs = vec!["fd12:3456::/48".parse().unwrap()]), &["fd12:3456::/48"]),
        (peer(&|p| p.addresses = objects::node_addresses(1)), &["10.0.1.5", "node b"]),
        (peer(&|p| p.addresses = objects::node_addresses(0)), &["10.0.1.4", "this node"]),
        (peer(&|p| p.addresses = vec![pod_ip(0, 0, 0)]), &["10.244.1.10", "default/a-pod1"]),
        (peer(&|p| p.addresses = vec![]), &["no address"]),
        (peer(&|p| p.mode = Mode::Flat), &["flat"]),
        (node(&|n| n.addresses = objects::node_addresses(1)), &["10.0.1.5", "node b"]),
        (node(&|n| n.addresses = vec![pod_ip(0, 1, 0)]), &["10.244.1.11", "default/a-pod2"]),
        (
            node(&|n| n.gateway_addresses = vec![pod_ip(0, 1, 0)]),
            &["10.244.1.11", "default/a-pod2"],
        ),
        (node(&|n| n.pod_cidrs = objects::pod_cidrs(2)), &["10.244.3.0/24", "node c"]),
        (Change::Remove(ObjectKey::Peer("b".into())), &["1 endpoints"]),
        (Change::Remove(ObjectKey::Node), &["2 peers"]),
    ];
    for (change, words) in cases {
        println!("{change:?}");
        let error = refused(&mut bed, vec![change]);
        for word in words {
            assert!(error.what.contains(word), "{word} in {}", error.what);
        }
        assert!(error.place.is_some() && error.hint.is_some(), "{error:?}");
    }
    bed.close();
}

#[test]
fn an_address_of_a_peers_pod_cannot_become_the_peers() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let mut peer = objects::peer(1, Mode::Geneve);
    peer.addresses.push(pod_ip(1, 0, 0));
    let error = refused(&mut bed, vec![set_peer(peer)]);
    assert!(error.what.contains("10.244.2.10"), "{}", error.what);
    bed.close();
}

#[test]
fn flat_endpoints_have_addresses_of_their_own_too() {
    let mut bed = Bed::new(Mode::Flat, Underlay::Ipv4);
    let before = digests(&mut bed);
    let twice = |attachment: Attachment, address| Endpoint {
        name: "default/twice".into(),
        addresses: vec![address],
        attachment,
    };
    let local = objects::local_pod(9, 0).attachment;
    let remote = Attachment::Remote { peer: "c".into() };
    for (attachment, address, owner) in [
        (local.clone(), pod_ip(1, 0, 0), "endpoint default/b-pod1"),
        (remote.clone(), pod_ip(1, 0, 1), "endpoint default/b-pod1"),
        (remote, pod_ip(0, 0, 0), "endpoint default/a-pod1"),
        (local, node_ip(1, 0), "node b"),
    ] {
        let error = bed.node.apply(vec![set_endpoint(twice(attachment, address))]).unwrap_err();
        assert!(error.what.contains(owner), "{}", error.what);
    }
    let stranger = Peer { addresses: objects::node_addresses(2), ..objects::peer(3, Mode::Flat) };
    let error = bed.node.apply(vec![set_peer(stranger)]).unwrap_err();
    assert!(error.what.contains("node c"), "{}", error.what);
    assert_eq!(digests(&mut bed), before);
    // A pod that moves here is reached here, and the other way round.
    let name = ObjectKey::Endpoint(objects::pod_name(1, 0));
    let here = Endpoint { addresses: objects::pod_addresses(1, 0), ..objects::local_pod(9, 0) };
    bed.node.apply(vec![Change::Remove(name), set_endpoint(here)]).unwrap();
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    let out = sent.clone().ttl(63).frame(down(9));
    bed.step(&pod(0), &sent.frame(up(0)), &[(pod(9), out)], FORWARDED);
    bed.close();
}

#[test]
fn a_pod_that_moves_is_reached_where_it_is() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let moved = Endpoint {
        name: objects::pod_name(0, 1),
        addresses: objects::pod_addresses(0, 1),
        attachment: Attachment::Remote { peer: "c".into() },
    };
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x");
    bed.node.apply(vec![set_endpoint(moved)]).unwrap();
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let tunnel = Tunnel::to_peer(2, Mode::Geneve, Underlay::Ipv4, flow_of(&frame));
    assert_eq!(frame, tunnel.wrap(&sent.clone().ttl(63).frame(between(0, 2))));
    // Its address is c's now, wherever the range belongs.
    let reply = sent.reply(b"y");
    let out = [(pod(0), reply.clone().ttl(63).frame(down(0)))];
    let from = |peer| {
        Tunnel::from_peer(peer, Mode::Geneve, Underlay::Ipv4).wrap(&reply.frame(between(peer, 0)))
    };
    bed.step(&UPLINK, &from(2), &out, FORWARDED);
    bed.drops(&UPLINK, &from(1), "inner_spoofed_source");
    // And back home.
    bed.node.apply(vec![set_endpoint(objects::local_pod(1, 0))]).unwrap();
    all_works(&mut bed, Mode::Geneve);
    bed.close();
}

#[test]
fn the_whole_cluster_changes_its_mode() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for mode in [Mode::Vxlan, Mode::Geneve, Mode::Vxlan] {
        bed.node
            .apply(vec![
                Change::Set(Object::Node(objects::node(mode, Underlay::Ipv4))),
                set_peer(objects::peer(1, mode)),
                set_peer(objects::peer(2, mode)),
            ])
            .unwrap();
        all_works(&mut bed, mode);
    }
    bed.close();
}

#[test]
fn an_endpoint_that_is_not_attached_yet_is_named() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    bed.node.bench().compiler.bind_endpoint(&objects::pod_name(0, 1), None);
    bed.node.publish();
    let sent = udp(pod_ip(0, 0, 0), pod_ip(0, 1, 0), b"x");
    bed.drops(&pod(0), &sent.frame(up(0)), "endpoint_not_ready");
    bed.close();
}

#[test]
fn a_peer_without_an_address_of_any_common_family() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let mut node = objects::node(Mode::Geneve, Underlay::Ipv4);
    node.addresses.truncate(1);
    let mut peer = objects::peer(1, Mode::Geneve);
    peer.addresses.remove(0);
    bed.node.apply(vec![Change::Set(Object::Node(node)), set_peer(peer)]).unwrap();
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    bed.drops(&pod(0), &sent.frame(up(0)), "encap_no_address");
    bed.close();
}

#[test]
fn a_peer_with_one_family_is_reached_over_that_one() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let mut peer = objects::peer(1, Mode::Geneve);
    peer.addresses.remove(0);
    bed.node.apply(vec![set_peer(peer)]).unwrap();
    let sent = udp(pod_ip(0, 0, 0), pod_ip(1, 0, 0), b"x");
    let frame = bed.one(&pod(0), &sent.frame(up(0)), &UPLINK, FORWARDED);
    let tunnel = Tunnel::to_peer(1, Mode::Geneve, Underlay::Ipv6, flow_of(&frame));
    assert_eq!(frame, tunnel.wrap(&sent.ttl(63).frame(between(0, 1))));
    bed.close();
}

#[test]
fn a_peers_packet_for_a_pod_of_another_node_is_not_sent_on() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    for family in 0..2 {
        let sent = packet(pod_ip(1, 0, family), pod_ip(2, 0, family), Body::Udp(1, 2, vec![]));
        let frame =
            Tunnel::from_peer(1, Mode::Geneve, Underlay::Ipv4).wrap(&sent.frame(between(1, 0)));
        bed.drops(&UPLINK, &frame, "inner_not_here");
    }
    bed.close();
}

#[test]
fn a_list_may_go_to_and_fro() {
    let mut bed = Bed::new(Mode::Geneve, Underlay::Ipv4);
    let name = ObjectKey::Endpoint(objects::pod_name(0, 1));
    let there = set_endpoint(objects::local_pod(1, 0));
    let gone = Change::Remove(name);
    bed.node.apply(vec![gone.clone(), there.clone(), gone.clone(), there.clone()]).unwrap();
    all_works(&mut bed, Mode::Geneve);
    bed.node.apply(vec![there.clone(), gone.clone()]).unwrap();
    assert!(!bed.node.inject(&Place::Pod(objects::pod_name(0, 1)), b"nobody there"));
    bed.node.apply(vec![there]).unwrap();
    all_works(&mut bed, Mode::Geneve);
    bed.close();
}

#[test]
fn a_node_that_came_after_its_peers_is_undone_with_the_rest() {
    let mut compiler = overlane_dataplane::tables::compile::Compiler::new(1);
    compiler.apply(vec![set_peer(objects::peer(1, Mode::Flat))]).unwrap();
    let bad = set_endpoint(Endpoint { addresses: Vec::new(), ..objects::local_pod(0, 0) });
    let node = Change::Set(Object::Node(objects::node(Mode::Geneve, Underlay::Ipv4)));
    let gone = Change::Remove(ObjectKey::Peer("b".into()));
    compiler.apply(vec![node, gone, bad]).unwrap_err();
    let keys: Vec<ObjectKey> = compiler.installed().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [ObjectKey::Peer("b".into())]);
}
