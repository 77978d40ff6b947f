//! The control process against a dataplane that remembers what it is told.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use common::{Bed, node, pod, wait_until};
use overlane_api::{Object, ObjectKey};

const ALL: [&str; 3] = ["node", "peer b", "endpoint default/x"];

fn bed_with_pod() -> Bed {
    let bed = Bed::new();
    bed.manifest("x.yaml", &pod("x", "a", "10.244.1.10"));
    bed
}

#[test]
fn dataplane_first_gets_everything_in_order() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    assert_eq!(dataplane.take_log(), ["set node", "set peer b", "set endpoint default/x"]);
    let memory = dataplane.memory.lock().unwrap();
    let Some(Object::Node(node)) = memory.installed.get(&ObjectKey::Node) else { panic!() };
    assert_eq!((node.underlay_mtu, node.pod_mtu), (1500, 1450));
    assert_eq!(node.gateway_mac.to_string(), "02:4f:0a:00:01:04");
    assert_eq!(node.encap.vni.get(), 3301);
}

#[test]
fn control_first_waits_for_the_dataplane() {
    let bed = bed_with_pod();
    let _control = bed.control();
    std::thread::sleep(Duration::from_millis(300));
    let dataplane = bed.dataplane(1, BTreeMap::new());
    wait_until("everything is installed", || dataplane.keys() == ALL);
}

#[test]
fn dataplane_that_comes_back_empty_gets_everything_again() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    drop(dataplane);
    let dataplane = bed.dataplane(2, BTreeMap::new());
    wait_until("everything is installed again", || dataplane.keys() == ALL);
}

#[test]
fn control_that_comes_back_touches_nothing_that_is_right() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    assert_eq!(control.terminate(), Some(0));
    assert!(!bed.path("control.sock").exists());
    dataplane.take_log();
    assert_eq!(dataplane.keys(), ALL, "forwarding goes on");
    // One thing changes while nobody looks.
    bed.manifest("y.yaml", &pod("y", "b", "10.244.2.10"));
    let _control = bed.control();
    wait_until("the new pod is installed", || dataplane.keys().len() == 4);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(dataplane.take_log(), ["set endpoint default/y"]);
}

#[test]
fn killed_control_leaves_a_socket_that_the_next_one_replaces() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let control = bed.control();
    wait_until("everything is in force", || bed.control_status()["in_force"] == 3);
    drop(control);
    assert!(bed.path("control.sock").exists());
    dataplane.take_log();
    let _control = bed.control();
    wait_until("control answers again", || bed.control_status()["in_force"] == 3);
    assert_eq!(dataplane.take_log(), Vec::<String>::new());
}

#[test]
fn second_control_on_the_same_socket_does_not_start() {
    let bed = bed_with_pod();
    let _first = bed.control();
    wait_until("the socket is there", || bed.path("control.sock").exists());
    let mut second = bed.control();
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
}

#[test]
fn files_added_changed_and_removed_are_followed_at_once() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    dataplane.take_log();
    let start = std::time::Instant::now();
    bed.manifest("y.yaml", &pod("y", "b", "10.244.2.10"));
    wait_until("y is there", || dataplane.take_log() == ["set endpoint default/y"]);
    bed.manifest("y.yaml", &pod("y", "b", "10.244.2.11"));
    wait_until("y has moved", || dataplane.take_log() == ["set endpoint default/y"]);
    bed.remove("y.yaml");
    wait_until("y is gone", || dataplane.take_log() == ["remove endpoint default/y"]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(dataplane.keys(), ALL);
}

#[test]
fn broken_file_is_reported_and_its_last_good_state_stays() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    dataplane.take_log();
    bed.manifest("x.yaml", "kind: Pod\nmetadata: {name: x\n");
    bed.manifest("z.yaml", &pod("z", "a", "10.244.1.30"));
    wait_until("the other file is followed", || dataplane.take_log() == ["set endpoint default/z"]);
    let status = bed.control_status();
    let problems = status["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{status}");
    assert!(problems[0]["place"].as_str().unwrap().contains("x.yaml:"), "{status}");
    // An address outside of the pod range is as broken as a missing bracket.
    bed.manifest("x.yaml", &pod("x", "a", "10.99.0.1"));
    wait_until("the address is reported", || {
        bed.control_status()["problems"].to_string().contains("10.99.0.1 is outside podCIDR")
    });
    assert_eq!(dataplane.take_log(), Vec::<String>::new());
    assert!(dataplane.keys().contains(&ALL[2].to_owned()));
}

#[test]
fn file_that_was_broken_from_the_start_removes_nothing() {
    let bed = bed_with_pod();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    drop(control);
    bed.manifest("x.yaml", "kind: [");
    bed.manifest("y.yaml", &pod("y", "a", "10.244.1.20"));
    let _control = bed.control();
    wait_until("y is there", || dataplane.keys().len() == 4);
    assert!(dataplane.keys().contains(&"endpoint default/x".to_owned()));
    assert_eq!(bed.control_status()["held_back"], 1);
    bed.remove("x.yaml");
    wait_until("x goes when its file does", || dataplane.keys().len() == 3);
}

#[test]
fn endpoints_go_before_their_peer() {
    let bed = bed_with_pod();
    bed.manifest("y.yaml", &pod("y", "b", "10.244.2.10"));
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys().len() == 4);
    dataplane.take_log();
    bed.remove("node-b.yaml");
    wait_until("b is gone", || dataplane.keys().len() == 2);
    assert_eq!(dataplane.take_log(), ["remove endpoint default/y", "remove peer b"]);
    let pending = bed.control_status()["pending"].to_string();
    assert!(pending.contains("default/y waits for its node b"), "{pending}");
    bed.manifest("node-b.yaml", &node("b", "10.244.2.0/24", "10.0.1.5"));
    wait_until("b is back", || dataplane.keys().len() == 4);
    assert_eq!(dataplane.take_log(), ["set peer b", "set endpoint default/y"]);
}

#[test]
fn refused_object_holds_up_no_other() {
    let bed = Bed::new();
    let mut pods = String::new();
    for last in 10..60 {
        pods += &format!("---\n{}", pod(&format!("p{last}"), "a", &format!("10.244.1.{last}")));
    }
    bed.manifest("pods.yaml", &pods);
    let dataplane = bed.dataplane(1, BTreeMap::new());
    dataplane.memory.lock().unwrap().refuse = Some("10.244.1.33".into());
    let _control = bed.control();
    wait_until("49 of 50 pods are installed", || dataplane.keys().len() == 51);
    wait_until("the refusal is reported", || {
        let refused = bed.control_status()["refused"].clone();
        refused.as_array().is_some_and(|list| list.len() == 1)
            && refused.to_string().contains("default/p33")
            && refused.to_string().contains("no such luck")
    });
    assert!(dataplane.memory.lock().unwrap().batches.len() < 20, "it is found by halves");
}

#[test]
fn many_objects_are_sent_in_bounded_batches() {
    let bed = Bed::new();
    let mut pods = String::new();
    for number in 0..2500 {
        let address = format!("10.244.{}.{}", 16 + number / 250, 1 + number % 250);
        pods += &format!("---\n{}", pod(&format!("p{number}"), "b", &address));
    }
    bed.manifest("pods.yaml", &pods);
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("2500 pods are installed", || dataplane.keys().len() == 2502);
    assert_eq!(dataplane.memory.lock().unwrap().batches, [1000, 1000, 502]);
}

#[test]
fn refused_configuration_does_not_start() {
    let bed = Bed::new();
    let text = common::CONFIG.replace("10.96.0.0/16", "10.0.0.0/24");
    std::fs::write(bed.path("node.yaml"), text).unwrap();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let mut control = bed.control();
    assert_eq!(control.child.wait().unwrap().code(), Some(1));
    assert_eq!(dataplane.memory.lock().unwrap().compared, 0);
}

/// A Service with one address and node port, and its only endpoint in a slice.
fn service(name: &str, address: u8, node_port: u16, last: u8) -> String {
    format!(
        "kind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, clusterIP: 10.96.0.{address}, \
         externalTrafficPolicy: Local, healthCheckNodePort: {}, ports: [{{port: 80, nodePort: {node_port}}}]}}\n---\n\
         kind: EndpointSlice\nmetadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.244.1.{last}], nodeName: a}}]\n",
        node_port + 1
    )
}

fn ask_health(port: u16) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn services_are_pushed_in_an_order_in_which_no_frontend_is_taken_twice() {
    let bed = bed_with_pod();
    let both = |s: String, t: String| bed.manifest("both.yaml", &format!("{s}---\n{t}"));
    both(service("s", 20, 31_100, 10), service("t", 21, 31_102, 10));
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    let log_of = |what: &str, length: usize| {
        wait_until(what, || dataplane.memory.lock().unwrap().log.len() >= length);
        dataplane.take_log()
    };
    let log = log_of("everything is installed", 5);
    assert_eq!(log[3..], ["set service default/s:80", "set service default/t:80"], "{log:?}");
    // Only what has changed is sent.
    both(service("s", 20, 31_100, 11), service("t", 21, 31_102, 10));
    assert_eq!(log_of("an endpoint has moved", 1), ["set service default/s:80"]);
    // t lets go of the address that s takes: t goes first, though s is before it by name.
    both(service("s", 21, 31_100, 11), service("t", 22, 31_102, 10));
    let log = log_of("both have moved", 2);
    assert_eq!(log, ["set service default/t:80", "set service default/s:80"]);
    bed.manifest("both.yaml", &service("s", 21, 31_100, 11));
    assert_eq!(log_of("t is gone", 1), ["remove service default/t:80"]);
}

#[test]
fn load_balancer_is_told_whether_this_node_has_endpoints() {
    let bed = bed_with_pod();
    let (port, ready) = (31_241, service("s", 20, 31_240, 10));
    bed.manifest("s.yaml", &ready);
    let control = bed.control();
    wait_until("it is asked", || ask_health(port).is_some());
    let answer = ask_health(port).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "without a dataplane: {answer}");
    let _dataplane = bed.dataplane(1, BTreeMap::new());
    wait_until("it is healthy", || ask_health(port).unwrap().starts_with("HTTP/1.1 200 "));
    bed.manifest("s.yaml", &ready.replace("nodeName: a", "nodeName: b"));
    wait_until("no endpoint is here", || {
        ask_health(port).unwrap().contains("\"localEndpoints\":0")
    });
    assert!(ask_health(port).unwrap().starts_with("HTTP/1.1 503 "));
    bed.remove("s.yaml");
    wait_until("the port is closed", || ask_health(port).is_none());
    assert_eq!(control.terminate(), Some(0));
}

const GATEWAY: &str = "gateways: [{name: out, addresses: [10.0.9.1], nodes: [a]}]\n";

#[test]
fn announcements_come_last_and_hold_only_while_control_lives() {
    let bed = bed_with_pod();
    let config = std::fs::read_to_string(bed.path("node.yaml")).unwrap();
    std::fs::write(bed.path("node.yaml"), config + GATEWAY).unwrap();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let control = bed.control();
    let all = [&ALL[..], &["announcement 10.0.9.1"]].concat();
    wait_until("everything is installed", || dataplane.keys() == all);
    assert_eq!(dataplane.take_log().pop().as_deref(), Some("set announcement 10.0.9.1"));
    let leases = || dataplane.memory.lock().unwrap().leases.clone();
    wait_until("the lease begins", || leases().contains(&1000));
    assert!(matches!(leases()[..], [1000] | [0, 1000]), "not before all is there: {:?}", leases());
    assert_eq!(control.terminate(), Some(0));
    assert_eq!(leases().last(), Some(&0), "it lets go of it");
    assert_eq!(dataplane.keys(), all);
}

#[test]
fn what_another_node_answers_for_goes_first_even_when_manifests_are_broken() {
    let bed = bed_with_pod();
    let stale = overlane_api::Announcement { address: "10.0.9.1".parse().unwrap() };
    let stale = Object::Announcement(stale);
    let dataplane = bed.dataplane(1, [(stale.key(), stale)].into());
    bed.manifest("broken.yaml", "kind: Pod\nmetadata: [");
    let _control = bed.control();
    wait_until("everything is installed", || dataplane.keys() == ALL);
    assert_eq!(dataplane.take_log()[0], "remove announcement 10.0.9.1");
}
