//! Control processes of two nodes beside each other: which lives, who answers for what, and what
//! `overlane` shows of that.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use common::{Bed, CONFIG, Control, FakeDataplane, node, wait_until};
use overlane_control::membership::keys::Keys;
use overlane_control::membership::seal::Seal;
use serde_json::Value;

/// The load balancer's address of the service that the fake dataplane lists.
const VIP: &str = "203.0.113.5";
const OTHER_VIPS: [&str; 3] = ["203.0.113.10", "203.0.113.12", "203.0.113.9"];

/// A node of two: its files, dataplane and control process.
struct Node {
    // Dropped in this order: the directory of the sockets goes last.
    control: Option<Control>,
    dataplane: FakeDataplane,
    bed: Bed,
}

/// A UDP port that nothing has now.
fn free_port() -> u16 {
    UdpSocket::bind("127.77.0.4:0").unwrap().local_addr().unwrap().port()
}

fn sorted(addresses: impl Iterator<Item = String>) -> Vec<String> {
    let mut addresses: Vec<String> = addresses.collect();
    addresses.sort();
    addresses
}

fn service(name: &str, cluster_ip: &str, vip: &str) -> String {
    format!(
        "kind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, clusterIP: {cluster_ip}, \
         ports: [{{name: http, port: 80, nodePort: {}}}]}}\nstatus: {{loadBalancer: {{ingress: [{{ip: {vip}}}]}}}}\n---\n",
        30_000 + cluster_ip.rsplit('.').next().unwrap().parse::<u16>().unwrap()
    )
}

impl Node {
    fn new(name: &str, port: u16, more: &str) -> Self {
        let bed = Bed::new();
        let config = CONFIG
            .replace("nodeName: a", &format!("nodeName: {name}"))
            .replace("10.0.0.0/16", "[127.77.0.0/16, 203.0.113.0/24]");
        let membership = format!("membership: {{port: {port}, takeBackAfter: 2}}\n");
        std::fs::write(bed.path("node.yaml"), config + &membership + more).unwrap();
        bed.manifest("node-a.yaml", &node("a", "10.244.1.0/24", "127.77.0.4"));
        bed.manifest("node-b.yaml", &node("b", "10.244.2.0/24", "127.77.0.5"));
        let mut services = service("web", "10.96.0.20", VIP);
        for (vip, last) in OTHER_VIPS.iter().zip(21..) {
            services += &service(&format!("web-{last}"), &format!("10.96.0.{last}"), vip);
        }
        bed.manifest("services.yaml", &services);
        let dataplane = bed.dataplane(1, BTreeMap::new());
        Self { control: None, dataplane, bed }
    }

    /// Its messages are signed, with the first of these keys.
    fn give_keys(&self, keys: &str) {
        let (file, config) = (self.bed.path("key"), self.bed.path("node.yaml"));
        let lines: Vec<String> = keys.chars().map(|digit| digit.to_string().repeat(64)).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text
            .split(", keyFile")
            .next()
            .unwrap()
            .replace("takeBackAfter: 2}", "takeBackAfter: 2");
        let rest = format!(", keyFile: {}}}\n{ON}", file.display());
        let head = text.split(ON).next().unwrap().trim_end().to_owned();
        std::fs::write(&config, head + &rest).unwrap();
    }

    fn datagrams(&self, counter: &str) -> u64 {
        // Nothing while the process starts.
        self.json(&["status"])["control"]["membership"]["datagrams"][counter].as_u64().unwrap_or(0)
    }

    fn start(&mut self) {
        self.control = Some(self.bed.control());
    }

    /// What its dataplane was given to answer for.
    fn announced(&self) -> Vec<String> {
        let keys = self.dataplane.keys().into_iter();
        sorted(keys.filter_map(|key| key.strip_prefix("announcement ").map(str::to_owned)))
    }

    /// The addresses of `name`, as this node's control process says.
    fn held_by(&self, name: &str) -> Vec<String> {
        let all = self.bed.control_status()["announcements"].clone();
        let all = all.as_array().cloned().unwrap_or_default();
        let of_node = all.iter().filter(|one| one["node"] == name);
        sorted(of_node.map(|one| one["address"].as_str().unwrap().to_owned()))
    }

    fn json(&self, verb: &[&str]) -> Value {
        let output = self.bed.overlane(&[verb, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn text(&self, verb: &[&str]) -> String {
        String::from_utf8(self.bed.overlane(verb).stdout).unwrap()
    }

    fn sees(&self, name: &str) -> String {
        let nodes = self.json(&["node", "list"]);
        nodes["liveness"][name]["liveness"].as_str().unwrap_or("absent").to_owned()
    }
}

const ON: &str = "announce: {loadBalancerIPs: true}\n";

#[test]
fn addresses_move_when_a_node_dies_and_return_when_it_was_well_for_a_while() {
    let port = free_port();
    let mut nodes = ["a", "b"].map(|name| Node::new(name, port, ON));
    for node in &mut nodes {
        node.start();
    }
    let [a, b] = &mut nodes;
    let all = sorted([VIP].iter().chain(&OTHER_VIPS).map(|vip| (*vip).to_owned()));
    let together = |a: &Node, b: &Node| sorted([a.announced(), b.announced()].concat().into_iter());
    wait_until("both are live", || a.sees("b") == "live" && b.sees("a") == "live");
    wait_until("each address is where both say", || {
        let said = [a.held_by("a"), b.held_by("a"), a.held_by("b"), b.held_by("b")];
        said == [a.announced(), a.announced(), b.announced(), b.announced()]
            && together(a, b) == all
    });
    let of_a = a.announced();
    assert!(
        !of_a.is_empty() && of_a.len() < all.len(),
        "the test wants both to have some: {of_a:?}"
    );

    let holder = if of_a.contains(&VIP.to_owned()) { "a" } else { "b" };
    for node in [&*a, &*b] {
        let listed = node.json(&["service", "list"]);
        assert_eq!(listed[0]["announced_by"][VIP], holder);
        assert_eq!(listed[0]["name"], "default/web:http", "what the dataplane says is there too");
        assert!(node.text(&["service", "list"]).contains(&format!("by {holder}")));
        let screen = node.text(&["node", "list"]);
        assert!(screen.contains("live") && screen.contains("for 0:") || screen.contains("for 00:"));
        assert!(node.text(&["status"]).contains("nodes: 2 live; heard at UDP 127.77.0."));
    }

    // Killed: the other waits for it to object, then has all.
    a.control = None;
    wait_until("b has all", || b.announced() == all);
    assert_eq!(b.sees("a"), "dead");
    assert_eq!(b.sees("b"), "live");
    // Started again: it takes its own back, and no more.
    a.start();
    wait_until("a waits", || b.sees("a") == "standby");
    assert_eq!(b.announced(), all);
    wait_until("a has its own again", || a.announced() == of_a && together(a, b) == all);
    // In order: at once.
    assert_eq!(b.control.take().unwrap().terminate(), Some(0));
    wait_until("a has all", || a.announced() == all);
    assert_eq!(a.json(&["status"])["control"]["membership"]["datagrams"]["unknown_sender"], 0);
}

#[test]
fn messages_of_strangers_and_of_other_programs_of_a_node_are_ignored_and_counted() {
    let port = free_port();
    let mut a = Node::new("a", port, ON);
    a.start();
    wait_until("alone it has all", || a.announced().len() == 4);
    let seen = |a: &Node| a.json(&["status"])["control"]["membership"]["datagrams"].clone();
    let before = seen(&a);
    // A stranger, from the right port; node b's address, from another.
    for (from, data) in
        [(("127.77.0.9", port), &b"\0\x04\x7f\x4d\0\x09"[..]), (("127.77.0.5", 0), &[0xff; 1200])]
    {
        let socket = UdpSocket::bind(from).unwrap();
        for _ in 0..5 {
            socket.send_to(data, ("127.77.0.4", port)).unwrap();
        }
    }
    // And noise from where node b's control would be.
    let socket = UdpSocket::bind(("127.77.0.5", port)).unwrap();
    for length in 0..50_usize {
        let noise: Vec<u8> =
            (0..length * 30).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        socket.send_to(&noise, ("127.77.0.4", port)).unwrap();
    }
    let count = |value: &Value, name: &str| value[name].as_u64().unwrap();
    wait_until("all are counted", || {
        let now = seen(&a);
        count(&now, "unknown_sender") == count(&before, "unknown_sender") + 10
            && count(&now, "malformed") == count(&before, "malformed") + 50
    });
    assert_eq!(a.sees("b"), "unknown");
    assert_eq!(a.announced().len(), 4);
    assert!(a.text(&["status"]).contains("60 ignored"), "{}", a.text(&["status"]));
}

#[test]
fn without_anything_to_announce_nobody_keeps_track() {
    let port = free_port();
    let mut a = Node::new("a", port, "");
    a.start();
    wait_until("everything is in force", || a.bed.control_status()["in_force"] == 6);
    let nodes = a.json(&["node", "list"]);
    assert!(nodes["liveness"].is_null());
    assert_eq!(nodes["peers"][0]["name"], "b");
    assert!(a.json(&["status"])["control"]["membership"].is_null());
    assert_eq!(a.json(&["service", "list"])[0]["announced_by"], serde_json::json!({}));
    assert_eq!(a.announced(), [""; 0]);
    assert!(a.dataplane.memory.lock().unwrap().leases.is_empty());
    UdpSocket::bind(("127.77.0.4", port)).unwrap();
}

#[test]
fn a_node_that_cannot_be_heard_says_so_and_answers_for_nothing() {
    let port = free_port();
    let _taken = UdpSocket::bind(("127.77.0.4", port)).unwrap();
    let mut a = Node::new("a", port, ON);
    a.start();
    let warned = |part: &str| {
        let warnings = a.bed.control_status()["warnings"].clone();
        let warnings = warnings.as_array().cloned().unwrap_or_default();
        warnings.iter().any(|warning| warning.as_str().unwrap_or_default().contains(part))
    };
    wait_until("the port", || warned(&format!("cannot hear at UDP 127.77.0.4:{port}")));
    wait_until("the addresses", || warned(&format!("nobody answers for {VIP}")));
    assert_eq!(a.sees("a"), "not_forwarding");
    assert!(a.text(&["service", "list"]).contains("by nobody"));
    assert_eq!(a.announced(), [""; 0]);
}

#[test]
fn who_has_no_key_or_another_one_changes_nothing_and_who_has_it_is_heard() {
    let port = free_port();
    let mut nodes = ["a", "b"].map(|name| Node::new(name, port, ON));
    let [a, b] = &mut nodes;
    a.give_keys("a");
    a.start();
    wait_until("alone it has all", || a.announced().len() == 4);
    // Without a key; with another.
    for keys in ["", "b"] {
        if !keys.is_empty() {
            b.give_keys(keys);
        }
        let before = a.datagrams("unauthenticated");
        b.start();
        wait_until("b has spoken", || a.datagrams("unauthenticated") > before + 3);
        assert_eq!(a.sees("b"), "unknown");
        assert_eq!(a.announced().len(), 4);
        assert_eq!(b.control.take().unwrap().terminate(), Some(0));
    }
    assert!(a.text(&["status"]).contains("authenticated, "), "{}", a.text(&["status"]));
    // With another and the right one: what it signs is not taken yet.
    b.give_keys("ba");
    b.start();
    wait_until("b hears a", || b.sees("a") != "unknown");
    assert_eq!(a.sees("b"), "unknown");
    assert_eq!(b.control.take().unwrap().terminate(), Some(0));
    b.give_keys("ab");
    b.start();
    wait_until("both are live", || a.sees("b") == "live" && b.sees("a") == "live");
    let all = sorted([VIP].iter().chain(&OTHER_VIPS).map(|vip| (*vip).to_owned()));
    wait_until("each address is at one of them", || {
        sorted([a.announced(), b.announced()].concat().into_iter()) == all
            && !b.announced().is_empty()
    });
    assert_eq!((a.datagrams("replayed"), b.datagrams("replayed")), (0, 0));
    assert_eq!(a.json(&["status"])["control"]["membership"]["authenticated"], true);
}

#[test]
fn a_message_that_is_sent_again_changes_nothing() {
    let now_us = || {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::try_from(since_1970.as_micros()).unwrap()
    };
    let port = free_port();
    let mut nodes = ["a", "b"].map(|name| Node::new(name, port, ON));
    let [a, b] = &mut nodes;
    // What b says to a, while that is only this socket.
    let heard = UdpSocket::bind(("127.77.0.4", port)).unwrap();
    heard.set_nonblocking(true).unwrap();
    b.start();
    let (mut buffer, mut length) = ([0; 2048], 0);
    wait_until("b speaks", || {
        length = heard.recv_from(&mut buffer).map_or(0, |(length, _)| length);
        length > 0
    });
    let message = buffer[..length].to_vec();
    drop(heard);
    b.control = None;

    a.give_keys("a");
    a.start();
    wait_until("alone it has all", || a.announced().len() == 4);
    let as_b = UdpSocket::bind(("127.77.0.5", port)).unwrap();
    let say = |data: &[u8]| as_b.send_to(data, ("127.77.0.4", port)).unwrap();
    let keys = Keys::parse(&"a".repeat(64)).unwrap();
    let (own, to) = ("127.77.0.5".parse().unwrap(), "127.77.0.4".parse().unwrap());
    let mut seal = Seal::new(keys, false, own, now_us());
    let signed = seal.seal(to, &message, now_us());
    // As it came, and signed an hour ago.
    say(&message);
    wait_until("not signed", || a.datagrams("unauthenticated") == 1);
    let mut slow = Seal::new(Keys::parse(&"a".repeat(64)).unwrap(), false, own, 0);
    say(&slow.seal(to, &message, now_us() - 3_600_000_000));
    wait_until("an hour ago", || a.datagrams("stale") == 1);
    wait_until("a warning", || {
        let warnings = a.bed.control_status()["warnings"].to_string();
        warnings.contains("127.77.0.5 are refused: its clock is 3600 s behind")
            || warnings.contains("its clock is 3599 s behind")
    });
    assert_eq!(a.sees("b"), "unknown");
    assert_eq!(a.datagrams("received"), 0);
    say(&signed);
    wait_until("b is heard", || a.sees("b") != "unknown");
    wait_until("once", || a.datagrams("received") == 1);
    wait_until("and is silent", || a.sees("b") == "dead");
    for count in 1..4 {
        say(&signed);
        wait_until("again", || a.datagrams("replayed") == count);
        assert_eq!(a.sees("b"), "dead");
    }
    // After a restart a has not heard it, but listens from then on.
    a.control = None;
    std::thread::sleep(Duration::from_secs(3));
    a.start();
    // Until it listens.
    wait_until("from before", || {
        say(&signed);
        a.datagrams("stale") > 0
    });
    assert_eq!(a.sees("b"), "unknown");
    assert_eq!(a.datagrams("received"), 0);
    assert!(a.text(&["status"]).contains(" stale)"), "{}", a.text(&["status"]));
}

#[test]
fn a_key_that_others_can_read_is_refused_and_said_so() {
    let port = free_port();
    let a = Node::new("a", port, ON);
    a.give_keys("a");
    let config = a.bed.path("node.yaml");
    let check = || a.bed.overlane(&["config", "check", config.to_str().unwrap()]);
    assert_eq!(check().status.code(), Some(0));
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(a.bed.path("key"), open).unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("by others than its owner (mode 0644): chmod 600"), "{said}");
}
