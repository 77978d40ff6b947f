//! Control processes of two nodes beside each other: which lives, who answers for what, and what
//! `overlane` shows of that.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::UdpSocket;

use common::{Bed, CONFIG, Control, FakeDataplane, node, wait_until};
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
