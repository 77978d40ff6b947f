//! What the node's slow side does to and hears from a real kernel. Each test makes network
//! namespaces without a name, which are gone with the last thread inside:
//!
//! ```text
//!   near: eth0 10.0.1.4/24 fd00:10:0:1::4/64 ==== far: eth0 10.0.1.5/24 fd00:10:0:1::5/64
//! ```

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use overlane_api::MacAddr;
use overlane_dataplane::node::host_port::{HostPort, HostPortError, HostPortSettings};
use overlane_dataplane::node::links::{LinkEvent, LinkWatch, by_name, peer_mac};
use overlane_dataplane::node::neighbors::{
    NeighborEvent, NeighborTable, Outcome, Unresolved, WatchError,
};
use overlane_dataplane::node::netlink::Netlink;
use overlane_dataplane::node::routes::{Interfaces, RouteMirror};
use overlane_dataplane::tables::compile::underlay::Way;

const PATIENCE: Duration = Duration::from_secs(15);

type Job = Box<dyn FnOnce() + Send>;

/// A namespace with a thread inside that runs commands for the others.
struct Namespace {
    thread_id: i32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (ready, told) = channel();
        let thread = std::thread::spawn(move || {
            enter_new();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let thread_id = told.recv().unwrap();
        Self { thread_id, jobs: Some(jobs), thread: Some(thread) }
    }

    fn sh(&self, script: &'static str) -> String {
        let (answer, told) = channel();
        let job = Box::new(move || answer.send(sh(script)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        let _ = self.thread.take().unwrap().join();
    }
}

/// Moves this thread to a namespace of its own.
fn enter_new() {
    unshare(CloneFlags::CLONE_NEWNET).expect("run this test as root");
    sh("ip link set lo up");
}

/// Runs a script in this thread's namespace.
fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// This thread in `near`, and `far` at the other end of a veth.
fn pair() -> Namespace {
    enter_new();
    let far = Namespace::new();
    sh(&format!(
        "ip link add eth0 address 02:00:00:00:00:04 type veth \
           peer name eth0 netns {} address 02:00:00:00:00:05
         ip addr add 10.0.1.4/24 dev eth0
         ip addr add fd00:10:0:1::4/64 dev eth0 nodad
         ip link set eth0 up",
        far.thread_id
    ));
    far.sh("ip addr add 10.0.1.5/24 dev eth0
            ip addr add 10.0.1.6/24 dev eth0
            ip addr add fd00:10:0:1::5/64 dev eth0 nodad
            ip link set eth0 up");
    sh("until ip -6 route get fd00:10:0:1::5 2>/dev/null | grep -q eth0; do sleep 0.05; done");
    far
}

fn wait_for(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(50).unwrap()).unwrap();
}

/// Runs the table as the slow thread would, until an event satisfies `wanted`.
fn until(table: &mut NeighborTable, wanted: impl Fn(&NeighborEvent) -> bool) -> NeighborEvent {
    let (deadline, mut seen) = (Instant::now() + PATIENCE, Vec::new());
    while Instant::now() < deadline {
        table.tick(Instant::now()).unwrap();
        let events = table.process(Instant::now()).unwrap();
        if let Some(event) = events.iter().find(|event| wanted(event)) {
            return event.clone();
        }
        seen.extend(events);
        if !table.is_busy() {
            wait_for(table.fd());
        }
    }
    panic!("not seen in time, but {seen:?}")
}

/// Runs the table for `time` and returns all events.
fn during(table: &mut NeighborTable, time: Duration) -> Vec<NeighborEvent> {
    let (deadline, mut seen) = (Instant::now() + time, Vec::new());
    while Instant::now() < deadline {
        table.tick(Instant::now()).unwrap();
        seen.extend(table.process(Instant::now()).unwrap());
        if !table.is_busy() {
            wait_for(table.fd());
        }
    }
    seen
}

fn is_at(event: &NeighborEvent, next_hop: &str, last: u8) -> bool {
    match &event.outcome {
        Outcome::Resolved(resolution) => {
            resolution.next_hop == ip(next_hop) && resolution.mac == MacAddr([2, 0, 0, 0, 0, last])
        }
        Outcome::Unresolved(_) => false,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn neighbors_on_the_link_are_resolved_by_the_kernel() {
    let _far = pair();
    let mut table = NeighborTable::open().unwrap();
    for (destination, source) in [("10.0.1.5", "10.0.1.4"), ("fd00:10:0:1::5", "fd00:10:0:1::4")] {
        table.watch(ip(destination)).unwrap();
        let event = until(&mut table, |event| is_at(event, destination, 5));
        assert_eq!(event.destination, ip(destination));
        match event.outcome {
            Outcome::Resolved(found) => assert_eq!(found.prefsrc, Some(ip(source))),
            Outcome::Unresolved(why) => panic!("{why}"),
        }
    }
    assert_eq!(during(&mut table, Duration::from_millis(300)), [], "nothing changes, nothing told");
}

#[test]
#[ignore = "needs root"]
fn a_neighbor_that_changes_its_mac_is_told() {
    let _far = pair();
    for (address, static_neighbor) in
        [("10.0.1.7", "10.0.1.7"), ("fd00:10:0:1::7", "fd00:10:0:1::7")]
    {
        sh(&format!("ip neigh add {static_neighbor} lladdr 02:00:00:00:00:07 dev eth0"));
        let mut table = NeighborTable::open().unwrap();
        table.watch(ip(address)).unwrap();
        until(&mut table, |event| is_at(event, address, 7));
        sh(&format!("ip neigh replace {static_neighbor} lladdr 02:00:00:00:00:08 dev eth0"));
        until(&mut table, |event| is_at(event, address, 8));
        let entries = sh("ip neigh show nud permanent");
        assert!(entries.contains(address), "the entry is still permanent: {entries}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_route_that_moves_to_another_gateway_is_told() {
    let _far = pair();
    sh("ip neigh add 10.0.1.7 lladdr 02:00:00:00:00:07 dev eth0
        ip neigh add fd00:10:0:1::7 lladdr 02:00:00:00:00:07 dev eth0
        ip route add 10.9.0.0/16 via 10.0.1.5
        ip route add fd09::/16 via fd00:10:0:1::5");
    let mut table = NeighborTable::open().unwrap();
    table.watch(ip("10.9.0.1")).unwrap();
    table.watch(ip("fd09::1")).unwrap();
    let gateway = |near: &'static str, far: &'static str, last| {
        move |event: &NeighborEvent| event.destination == ip(far) && is_at(event, near, last)
    };
    until(&mut table, gateway("10.0.1.5", "10.9.0.1", 5));
    until(&mut table, gateway("fd00:10:0:1::5", "fd09::1", 5));
    sh("ip route add 10.9.0.0/24 via 10.0.1.7");
    until(&mut table, gateway("10.0.1.7", "10.9.0.1", 7));
    sh("ip route replace fd09::/16 via fd00:10:0:1::7");
    until(&mut table, gateway("fd00:10:0:1::7", "fd09::1", 7));
    sh("ip route del 10.9.0.0/24; ip route del 10.9.0.0/16");
    let gone = until(&mut table, |event| matches!(event.outcome, Outcome::Unresolved(_)));
    assert_eq!(gone.destination, ip("10.9.0.1"));
    assert!(matches!(&gone.outcome, Outcome::Unresolved(Unresolved::NoRoute(_))), "{gone:?}");
    sh("ip link set eth0 down");
    let gone = until(&mut table, |event| matches!(event.outcome, Outcome::Unresolved(_)));
    assert_eq!(gone.destination, ip("fd09::1"));
}

#[test]
#[ignore = "needs root"]
fn a_deleted_neighbor_is_resolved_again_and_used_meanwhile() {
    let far = pair();
    let mut table = NeighborTable::open().unwrap();
    table.watch(ip("10.0.1.5")).unwrap();
    until(&mut table, |event| is_at(event, "10.0.1.5", 5));
    sh("ip neigh del 10.0.1.5 dev eth0 2>/dev/null || ip neigh flush dev eth0");
    assert_eq!(during(&mut table, Duration::from_secs(2)), [], "the MAC stays in use");
    let entries = sh("ip -4 neigh show dev eth0");
    assert!(entries.contains("10.0.1.5 lladdr 02:00:00:00:00:05"), "{entries}");

    far.sh("ip link set eth0 address 02:00:00:00:00:09");
    sh("ip neigh flush dev eth0");
    until(&mut table, |event| is_at(event, "10.0.1.5", 9));
}

#[test]
#[ignore = "needs root"]
fn a_neighbor_that_does_not_answer_is_tried_until_it_does() {
    let far = pair();
    let mut table = NeighborTable::open().unwrap();
    table.watch(ip("10.0.1.77")).unwrap();
    let why = until(&mut table, |_| true);
    assert_eq!(why.outcome, Outcome::Unresolved(Unresolved::Resolving(ip("10.0.1.77"))));
    let why = until(&mut table, |_| true);
    assert!(matches!(&why.outcome, Outcome::Unresolved(Unresolved::NoAnswer { .. })), "{why:?}");
    far.sh("ip addr add 10.0.1.77/24 dev eth0");
    until(&mut table, |event| is_at(event, "10.0.1.77", 5));
}

#[test]
#[ignore = "needs root"]
fn a_stale_neighbor_in_use_is_checked_again() {
    let _far = pair();
    sh("sysctl -qw net.ipv4.neigh.eth0.base_reachable_time_ms=1000
        sysctl -qw net.ipv4.neigh.eth0.delay_first_probe_time=1");
    let mut table = NeighborTable::open().unwrap();
    table.watch(ip("10.0.1.5")).unwrap();
    until(&mut table, |event| is_at(event, "10.0.1.5", 5));
    let (mut reachable_again, mut was_stale) = (false, false);
    let deadline = Instant::now() + PATIENCE;
    while !reachable_again && Instant::now() < deadline {
        assert_eq!(during(&mut table, Duration::from_millis(100)), []);
        let entry = sh("ip -4 neigh show dev eth0");
        was_stale |= !entry.contains("REACHABLE");
        reachable_again = was_stale && entry.contains("REACHABLE");
    }
    assert!(reachable_again, "stale: {was_stale}");
}

#[test]
#[ignore = "needs root"]
fn own_multicast_and_broadcast_addresses_are_refused() {
    let _far = pair();
    let mut table = NeighborTable::open().unwrap();
    for address in ["224.0.0.5", "255.255.255.255", "127.0.0.1", "0.0.0.0", "::", "::1", "ff02::1"]
    {
        assert_eq!(table.watch(ip(address)), Err(WatchError::NotUnicast(ip(address))));
    }
    for (address, why) in [
        ("10.0.1.4", Unresolved::OwnAddress),
        ("fd00:10:0:1::4", Unresolved::OwnAddress),
        ("10.0.1.255", Unresolved::NotUnicast),
    ] {
        table.watch(ip(address)).unwrap();
        let event = until(&mut table, |event| event.destination == ip(address));
        assert_eq!(event.outcome, Outcome::Unresolved(why));
    }
    table.watch(ip("192.0.2.1")).unwrap();
    let event = until(&mut table, |event| event.destination == ip("192.0.2.1"));
    assert!(matches!(event.outcome, Outcome::Unresolved(Unresolved::NoRoute(_))), "{event:?}");
}

#[test]
#[ignore = "needs root"]
fn the_nodes_routes_are_mirrored_and_followed() {
    let _far = pair();
    sh("ip link add other type veth peer name otherx
        ip addr add 10.9.9.1/24 dev other
        ip link set other up; ip link set otherx up
        ip route add default via 10.0.1.5
        ip -6 route add default via fe80::5 dev eth0
        ip route add 192.168.0.0/16 via 10.9.9.2
        ip route add blackhole 198.51.100.0/24
        ip route add 203.0.113.0/24 metric 10 \\
          nexthop via 10.9.9.2 dev other nexthop via 10.0.1.6 dev eth0
        ip neigh add fe80::5 lladdr 02:00:00:00:00:05 dev eth0
        ip neigh add fe80::5 lladdr 02:00:00:00:00:99 dev other");
    let uplink =
        |name: &str| by_name(&mut Netlink::open().unwrap(), name).unwrap().unwrap().ifindex;
    let interfaces = Some(Interfaces { uplink: uplink("eth0"), host_port: None });
    let (mut mirror, mut table) = (RouteMirror::open().unwrap(), NeighborTable::open().unwrap());
    let ways = mirror.refresh(interfaces, 0, Instant::now()).unwrap().unwrap();
    let way = |prefix: &str| ways.get(&prefix.parse().unwrap()).copied();
    for (prefix, expected) in [
        ("0.0.0.0/0", Some(Way::Gateway(ip("10.0.1.5")))),
        ("::/0", Some(Way::Gateway(ip("fe80::5")))),
        ("10.0.1.0/24", Some(Way::Link)),
        ("fd00:10:0:1::/64", Some(Way::Link)),
        ("10.9.9.0/24", Some(Way::Elsewhere)),
        ("192.168.0.0/16", Some(Way::Elsewhere)),
        ("198.51.100.0/24", Some(Way::Elsewhere)),
        ("203.0.113.0/24", Some(Way::Gateway(ip("10.0.1.6")))),
        ("fe80::/64", None),
        ("10.0.1.4/32", None),
    ] {
        assert_eq!(way(prefix), expected, "{prefix} of {ways:?}");
    }
    // The gateway is the neighbour of its interface, whatever route has the address.
    table.watch_neighbor(uplink("eth0"), ip("fe80::5")).unwrap();
    let event = until(&mut table, |event| is_at(event, "fe80::5", 5));
    assert_eq!(event.interface, Some(uplink("eth0")));
    let changes = table.route_news();
    assert!(mirror.refresh(interfaces, changes, Instant::now()).unwrap().is_none_or(|w| w == ways));
    sh("ip route replace default via 10.0.1.6");
    let deadline = Instant::now() + PATIENCE;
    let moved = loop {
        assert!(Instant::now() < deadline, "the new default route was not seen");
        table.process(Instant::now()).unwrap();
        let read = mirror.refresh(interfaces, table.route_news(), Instant::now()).unwrap();
        match read.filter(|read| *read != ways) {
            Some(read) => break read,
            None => wait_for(table.fd()),
        }
    };
    let default = moved.get(&"0.0.0.0/0".parse().unwrap());
    assert_eq!(default, Some(&Way::Gateway(ip("10.0.1.6"))));
    let gone = mirror.refresh(None, table.route_news(), Instant::now()).unwrap();
    assert_eq!(gone, Some(Default::default()), "without an uplink there is no way out");
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_destinations_share_one_gateway() {
    let _far = pair();
    sh("ip neigh add 10.0.1.7 lladdr 02:00:00:00:00:07 dev eth0
        ip route add 10.9.0.0/16 via 10.0.1.7");
    let mut table = NeighborTable::open().unwrap();
    for number in 0..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        table.watch(IpAddr::from([10, 9, high, low])).unwrap();
    }
    let run = |table: &mut NeighborTable, last| {
        let (start, mut told, mut longest) = (Instant::now(), 0, Duration::ZERO);
        while told < 10_000 {
            assert!(start.elapsed() < PATIENCE, "{told} after {:?}", start.elapsed());
            let call = Instant::now();
            let events = table.process(call).unwrap();
            longest = longest.max(call.elapsed());
            assert!(events.iter().all(|event| {
                is_at(event, "10.0.1.7", last) || !matches!(event.outcome, Outcome::Resolved(_))
            }));
            told += events.iter().filter(|event| is_at(event, "10.0.1.7", last)).count();
            if !table.is_busy() {
                wait_for(table.fd());
            }
        }
        println!("10,000 told in {:?}, longest call {longest:?}", start.elapsed());
        longest
    };
    run(&mut table, 7);
    sh("ip neigh replace 10.0.1.7 lladdr 02:00:00:00:00:08 dev eth0");
    let longest = run(&mut table, 8);
    assert!(longest < Duration::from_millis(250), "a call took {longest:?}");
}

#[test]
#[ignore = "needs root"]
fn lost_news_are_made_up_for() {
    let _far = pair();
    sh("ip neigh add 10.0.1.7 lladdr 02:00:00:00:00:07 dev eth0
        ip route add 10.9.0.0/16 via 10.0.1.7");
    let mut table = NeighborTable::open().unwrap();
    table.watch(ip("10.9.0.1")).unwrap();
    until(&mut table, |event| is_at(event, "10.0.1.7", 7));
    sh("ip neigh replace 10.0.1.7 lladdr 02:00:00:00:00:08 dev eth0
        (for i in $(seq 20000); do
           echo neigh replace 10.0.1.99 lladdr 02:00:00:01:00:0$((i % 2)) dev eth0
         done) | ip -batch -
        ip neigh replace 10.0.1.7 lladdr 02:00:00:00:00:09 dev eth0
        ip route add 10.9.0.0/24 via 10.0.1.5");
    until(&mut table, |event| is_at(event, "10.0.1.5", 5));
    assert!(table.overflows() > 0, "nothing was lost: the test is too small");
    sh("ip route del 10.9.0.0/24");
    until(&mut table, |event| is_at(event, "10.0.1.7", 9));
}

#[test]
#[ignore = "needs root"]
fn links_come_change_and_go() {
    enter_new();
    let mut watch = LinkWatch::open().unwrap();
    let mut next = |wanted: &dyn Fn(&LinkEvent) -> bool| {
        let (deadline, mut seen) = (Instant::now() + PATIENCE, Vec::new());
        while Instant::now() < deadline {
            let events = watch.process().unwrap();
            if let Some(found) = events.iter().find(|event| wanted(event)) {
                return found.clone();
            }
            seen.extend(events);
            wait_for(watch.fd());
        }
        panic!("not seen, but {seen:?}")
    };
    next(&|event| matches!(event, LinkEvent::Added(link) if link.name == "lo"));
    let far = Namespace::new();
    sh(&format!(
        "ip link add pod1 mtu 1450 type veth peer name eth0 netns {} address 02:00:00:00:00:aa",
        far.thread_id
    ));
    let added = next(&|event| matches!(event, LinkEvent::Added(_)));
    let LinkEvent::Added(link) = added else { panic!("{added:?}") };
    assert_eq!((link.name.as_str(), link.mtu, link.up, link.is_veth), ("pod1", 1450, false, true));
    let mut netlink = Netlink::open().unwrap();
    let mac = peer_mac(&mut netlink, link.ifindex).unwrap();
    assert_eq!(mac, Some(MacAddr([2, 0, 0, 0, 0, 0xaa])));
    sh("ip link set pod1 up");
    far.sh("ip link set eth0 up");
    next(&|event| matches!(event, LinkEvent::Changed(link) if link.running));
    sh("ip link set pod1 down; ip link set pod1 name pod2");
    next(&|event| matches!(event, LinkEvent::Removed { name, .. } if name == "pod1"));
    sh("ip link set pod2 mtu 1400");
    next(&|event| matches!(event, LinkEvent::Changed(link) if link.mtu == 1400));
    far.sh("ip link del eth0");
    let gone = next(&|event| matches!(event, LinkEvent::Removed { .. }));
    assert_eq!(gone, LinkEvent::Removed { name: "pod2".into(), ifindex: link.ifindex });
}

fn host_port_settings() -> HostPortSettings {
    HostPortSettings {
        interface: "overlane0".into(),
        mtu: 1500,
        route_mtu: 1450,
        gateway_mac: MacAddr([0x02, 0x4f, 10, 0, 1, 4]),
        ipv4: Some([10, 0, 1, 4].into()),
        ipv6: Some("fd00:10:0:1::4".parse().unwrap()),
        queues: 1,
    }
}

/// The prefixes that the host sends to overlane0.
fn routed() -> Vec<String> {
    let mut prefixes: Vec<String> =
        sh("ip route show dev overlane0; ip -6 route show dev overlane0")
            .lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .filter(|prefix| !prefix.starts_with("fe80") && !prefix.starts_with("169.254.1."))
            .collect();
    prefixes.sort();
    prefixes
}

#[test]
#[ignore = "needs root"]
fn the_host_port_is_made_routed_and_removed() {
    let _far = pair();
    sh("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let mut port = HostPort::create(host_port_settings()).unwrap();
    let shown =
        sh("ip -d link show overlane0; ip -d link show overlane0x; ip addr show overlane0x");
    assert_eq!(shown.matches("mtu 1500").count(), 3, "{shown}");
    assert_eq!(shown.matches("state UP").count(), 3, "{shown}");
    assert!(shown.contains(&port.host_mac().to_string()), "{shown}");
    assert!(!shown.contains("inet"), "the dataplane's end has no address: {shown}");
    let index =
        sh("cat /sys/class/net/overlane0x/ifindex 2>/dev/null || ip -o link show overlane0x");
    assert!(index.contains(&port.dataplane_ifindex().to_string()), "{index}");
    assert_eq!(sh("cat /proc/sys/net/ipv4/conf/overlane0/rp_filter").trim(), "2");

    // What is handed to the host from outside is not taken for forged, nor the next hop's packets.
    for source in ["203.0.113.10", "169.254.1.1"] {
        sh("ip route replace default via 10.0.0.1 dev eth0 onlink");
        let taken = sh(&format!("ip route get 10.0.1.4 from {source} iif overlane0"));
        assert!(taken.contains("local"), "{source}: {taken}");
    }
    assert!(sh("ip route get 169.254.1.1").contains("dev overlane0"));

    let prefixes = ["10.244.0.0/16", "fd12:3456::/48"].map(|text| text.parse().unwrap());
    port.set_routes(&prefixes).unwrap();
    let route = sh("ip route get 10.244.2.10; ip -6 route get fd12:3456:0:2::a");
    assert!(route.contains("via 169.254.1.1 dev overlane0 src 10.0.1.4"), "{route}");
    assert!(route.contains("via fe80::1 dev overlane0"), "{route}");
    assert!(route.contains("src fd00:10:0:1::4"), "{route}");
    assert_eq!(route.matches("mtu 1450").count(), 2, "as much as pods take: {route}");
    let neighbors = sh("ip neigh show dev overlane0 nud permanent");
    for address in ["169.254.1.1", "fe80::1"] {
        let wanted = format!("{address} lladdr 02:4f:0a:00:01:04");
        assert!(neighbors.contains(&wanted), "{neighbors}");
    }

    let prefixes = ["10.0.1.77/32", "fd12:3456::/48"].map(|text| text.parse().unwrap());
    port.set_routes(&prefixes).unwrap();
    assert_eq!(routed(), ["10.0.1.77", "fd12:3456::/48"]);
    assert!(sh("ip route get 10.0.1.78").contains("dev eth0"), "the subnet is where it was");
    port.set_routes(&[]).unwrap();
    assert_eq!(routed(), Vec::<String>::new());
    drop(port);
    assert!(!sh("ip link").contains("overlane0"));
}

#[test]
#[ignore = "needs root"]
fn the_host_reaches_pods_over_the_port_without_asking_for_neighbors() {
    let _far = pair();
    let mut port = HostPort::create(host_port_settings()).unwrap();
    port.set_routes(&["10.244.0.0/16".parse().unwrap(), "fd12:3456::/48".parse().unwrap()])
        .unwrap();
    let packets = || -> u64 {
        sh("ip -s -j link show overlane0x | tr -d ' \\n' | sed 's/.*\"rx\":{\"bytes\":[0-9]*,\"packets\":\\([0-9]*\\).*/\\1/'")
            .trim()
            .parse()
            .unwrap()
    };
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(packets(), 0, "the kernel says nothing on its own account");
    sh("ping -c1 -W1 10.244.2.10 || true; ping -c1 -W1 fd12:3456:0:2::a || true");
    assert_eq!(packets(), 2, "two echo requests, and no ARP or ND");
}

#[test]
#[ignore = "needs root"]
fn left_overs_are_replaced_and_strangers_are_not() {
    let _far = pair();
    sh("ip link add overlane0 type veth peer name overlane0x");
    let before = sh("ip -o link show overlane0");
    drop(HostPort::create(host_port_settings()).unwrap());
    sh("ip link add overlane9 type veth peer name overlane0x");
    drop(HostPort::create(host_port_settings()).unwrap());
    assert!(!sh("ip link").contains("overlane"), "{before}");

    sh("ip link add overlane0 type bridge");
    let error = HostPort::create(host_port_settings()).unwrap_err();
    assert!(matches!(&error, HostPortError::NameTaken(name) if name == "overlane0"), "{error}");
    assert!(sh("ip link").contains("overlane0"));
    sh("ip link del overlane0");

    sh("ip route add 10.244.0.0/16 via 10.0.1.5");
    let mut port = HostPort::create(host_port_settings()).unwrap();
    let wanted = ["10.244.0.0/16", "10.245.0.0/16"].map(|text| text.parse().unwrap());
    let error = port.set_routes(&wanted).unwrap_err();
    assert!(matches!(error, HostPortError::RouteTaken { .. }), "{error}");
    assert_eq!(routed(), ["10.245.0.0/16"], "the other one is in force");
    assert!(sh("ip route get 10.244.2.10").contains("via 10.0.1.5"));
    sh("ip route del 10.244.0.0/16");
    port.set_routes(&wanted).unwrap();
    assert_eq!(routed(), ["10.244.0.0/16", "10.245.0.0/16"]);
}

#[test]
#[ignore = "needs root"]
fn a_refused_host_port_leaves_nothing_behind() {
    enter_new();
    let mut settings = host_port_settings();
    settings.mtu = 100_000;
    let error = HostPort::create(settings).unwrap_err();
    assert!(error.to_string().contains("overlane0"), "{error}");
    assert!(!sh("ip link").contains("overlane0"));
}
