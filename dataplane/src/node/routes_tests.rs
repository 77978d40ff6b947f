//! Routes as the kernel tells them, and what is made of them.

use netlink_packet_route::route::RouteNextHop;

use super::*;

const UPLINK: u32 = 2;
const OTHER: u32 = 3;
const HOST_PORT: u32 = 4;
const INTERFACES: Interfaces = Interfaces { uplink: UPLINK, host_port: Some(HOST_PORT) };

/// A unicast route of the main table; no gateway: on the link.
fn route(prefix: &str, interface: u32, gateway: Option<&str>, metric: u32) -> RouteMessage {
    let prefix: IpNet = prefix.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family =
        if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    if prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(prefix.addr().into()));
    }
    if interface > 0 {
        message.attributes.push(RouteAttribute::Oif(interface));
    }
    message.attributes.extend(gateway.map(|gateway| {
        RouteAttribute::Gateway(RouteAddress::from(gateway.parse::<IpAddr>().unwrap()))
    }));
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn ways(routes: Vec<RouteMessage>) -> Vec<(String, Way)> {
    let messages: Vec<_> = routes.into_iter().map(RouteNetlinkMessage::NewRoute).collect();
    read(&messages, INTERFACES).into_iter().map(|(prefix, way)| (prefix.to_string(), way)).collect()
}

fn one(route: RouteMessage) -> Option<Way> {
    ways(vec![route]).pop().map(|(_, way)| way)
}

fn gateway(address: &str) -> Way {
    Way::Gateway(address.parse().unwrap())
}

fn list(expected: &[(&str, Way)]) -> Vec<(String, Way)> {
    expected.iter().map(|(prefix, way)| ((*prefix).to_owned(), *way)).collect()
}

#[test]
fn gateways_links_and_other_interfaces_are_told_apart() {
    let found = ways(vec![
        route("0.0.0.0/0", UPLINK, Some("10.0.0.1"), 0),
        route("10.0.0.0/16", UPLINK, None, 0),
        route("172.17.0.0/16", OTHER, None, 0),
        route("10.244.0.0/16", HOST_PORT, Some("169.254.1.1"), 0),
        route("::/0", UPLINK, Some("fe80::1:1"), 1024),
        route("fd00:10::/48", UPLINK, None, 256),
        route("fe80::/64", UPLINK, None, 256),
        route("ff00::/8", UPLINK, None, 256),
    ]);
    let expected = list(&[
        ("0.0.0.0/0", gateway("10.0.0.1")),
        ("10.0.0.0/16", Way::Link),
        ("172.17.0.0/16", Way::Elsewhere),
        ("::/0", gateway("fe80::1:1")),
        ("fd00:10::/48", Way::Link),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn the_least_metric_wins_whichever_comes_first() {
    let low = || route("192.0.2.0/24", OTHER, Some("10.9.0.1"), 50);
    let high = || route("192.0.2.0/24", UPLINK, Some("10.0.0.1"), 100);
    let other = || route("192.0.2.0/24", UPLINK, Some("10.0.0.2"), 100);
    assert_eq!(ways(vec![low(), high()]), list(&[("192.0.2.0/24", Way::Elsewhere)]));
    assert_eq!(ways(vec![high(), low()]), list(&[("192.0.2.0/24", Way::Elsewhere)]));
    assert_eq!(ways(vec![high(), other()]), list(&[("192.0.2.0/24", gateway("10.0.0.1"))]));
    // Each interface has a link-local network, say: the uplink's is meant.
    let link = route("fd99::/64", UPLINK, None, 256);
    let same = route("fd99::/64", OTHER, None, 256);
    assert_eq!(ways(vec![same.clone(), link.clone()]), list(&[("fd99::/64", Way::Link)]));
    assert_eq!(ways(vec![link, same]), list(&[("fd99::/64", Way::Link)]));
}

#[test]
fn what_decides_by_more_than_the_destination_is_left_out() {
    let plain = || route("192.0.2.0/24", UPLINK, None, 0);
    assert_eq!(one(plain()), Some(Way::Link));
    let edits: [fn(&mut RouteMessage); 7] = [
        |r| r.header.tos = 0x10,
        |r| r.header.source_prefix_length = 24,
        |r| r.header.flags = RouteFlags::Cloned,
        |r| r.header.flags = RouteFlags::Dead,
        |r| r.header.table = 100,
        |r| r.attributes.push(RouteAttribute::Table(1000)),
        |r| r.header.kind = RouteType::Local,
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut route = plain();
        edit(&mut route);
        assert_eq!(one(route), None, "edit {number}");
    }
    // A route without any interface and next hop says nothing.
    assert_eq!(one(route("192.0.2.0/24", 0, None, 0)), None);
}

#[test]
fn nobody_is_behind_a_blackhole_and_no_other_encapsulation_is_made() {
    for kind in
        [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit, RouteType::Throw]
    {
        let mut nobody = route("192.0.2.0/24", 0, None, 0);
        nobody.header.kind = kind;
        assert_eq!(one(nobody), Some(Way::Elsewhere));
    }
    let mut tunnel = route("192.0.2.0/24", UPLINK, Some("10.0.0.1"), 0);
    tunnel.attributes.push(RouteAttribute::Encap(Vec::new()));
    assert_eq!(one(tunnel), Some(Way::Elsewhere));
}

#[test]
fn of_several_next_hops_the_first_by_the_uplink_that_lives_is_taken() {
    let hop = |interface: u32, address: &str, flags: RouteNextHopFlags| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = interface;
        hop.flags = flags;
        let address = RouteAddress::from(address.parse::<IpAddr>().unwrap());
        hop.attributes.push(RouteAttribute::Gateway(address));
        hop
    };
    let up = RouteNextHopFlags::empty();
    let several = |hops: Vec<RouteNextHop>| {
        let mut route = route("0.0.0.0/0", 0, None, 0);
        route.attributes.push(RouteAttribute::MultiPath(hops));
        one(route)
    };
    let dead = hop(UPLINK, "10.0.0.1", RouteNextHopFlags::Dead);
    let found = several(vec![
        hop(OTHER, "10.9.0.1", up),
        dead.clone(),
        hop(UPLINK, "10.0.0.2", up),
        hop(UPLINK, "10.0.0.3", up),
    ]);
    assert_eq!(found, Some(gateway("10.0.0.2")));
    assert_eq!(several(vec![hop(OTHER, "10.9.0.1", up), dead]), Some(Way::Elsewhere));
}

#[test]
fn a_gateway_of_the_other_family_is_understood() {
    let mut route = route("203.0.113.0/24", UPLINK, None, 0);
    let via = RouteVia::Inet6("fe80::7".parse().unwrap());
    route.attributes.push(RouteAttribute::Via(via));
    assert_eq!(one(route), Some(gateway("fe80::7")));
}

#[test]
fn too_many_routes_are_cut_from_the_longest() {
    let mut ways: Ways = [("0.0.0.0/0", Way::Link), ("10.0.0.0/8", Way::Link)]
        .map(|(prefix, way)| (prefix.parse().unwrap(), way))
        .into();
    ways.insert("10.0.0.0/24".parse().unwrap(), Way::Elsewhere);
    assert_eq!(limit(&mut ways, 2), 1);
    assert_eq!(ways.keys().map(IpNet::prefix_len).collect::<Vec<_>>(), [0, 8]);
    assert_eq!(limit(&mut ways, 2), 0);
}
