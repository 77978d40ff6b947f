//! The built `overlane`: exit status, tables, JSON.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::process::Output;

use common::{Bed, wait_until};
use overlane_api::flow::FlowFilter;

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(bed: &Bed, verb: &[&str]) -> serde_json::Value {
    let mut arguments = verb.to_vec();
    arguments.extend(["-o", "json"]);
    let output = bed.overlane(&arguments);
    assert_eq!(output.status.code(), Some(0), "{verb:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn listings_are_tables_and_json() {
    let bed = Bed::new();
    let _dataplane = bed.dataplane(1, BTreeMap::new());
    for (verb, parts) in [
        (&["endpoint", "list"][..], &["default/web", "10.244.1.10", "pod1", "ready", "1450"][..]),
        (&["node", "list"], &["b", "10.0.1.5", "10.244.2.0/24", "geneve", "unresolved"]),
        (&["drops"], &["unknown_peer", "rx_ring_full", "what to do"]),
        (
            &["service", "list"],
            &[
                "default/web:http",
                "10.96.0.20:80",
                "203.0.113.5:80",
                "balancer",
                "here",
                "terminating",
                "cluster/local",
                "10800 s",
            ],
        ),
        (
            &["flow", "list"],
            &[
                "10.244.1.10:40000",
                "to 10.244.2.11:8080",
                "established",
                "2.0 KiB",
                "1 of 1 that match; 7 flows of 100",
            ],
        ),
        (&["nat", "list"], &["10.0.1.4:10240", "203.0.113.10:53", "default/client"]),
        (
            &["nat", "usage"],
            &[
                "10.0.1.4, ports 10240-29999: 1200 bindings, 18860 free for the busiest remote, growing by 4.0/s: exhausted in 104 min",
                "tcp 988 (10 %)",
                "203.0.113.10:443",
                "default/web-1",
            ],
        ),
        (
            &["latency"],
            &["pods", "another worker", "all", "p99.99", "7.0", "9.0", "1 vector in 16, for 77 s"],
        ),
        (&["version"], &["9.9.9", "does not answer", "protocol"]),
        (&["status"], &["Dataplane 9.9.9", "Node: not known yet", "does not answer"]),
    ] {
        let output = bed.overlane(verb);
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        for part in parts {
            assert!(text(&output).contains(part), "{verb:?}: no {part:?} in\n{}", text(&output));
        }
    }
    assert_eq!(json(&bed, &["endpoint", "list"])[0]["name"], "default/web");
    assert_eq!(json(&bed, &["node", "list"])["peers"][0]["name"], "b");
    assert_eq!(json(&bed, &["drops"])["reasons"][0]["packets"], 3);
    assert_eq!(json(&bed, &["service", "list"])[0]["dropped"]["no_local_endpoint"], 4);
    assert_eq!(json(&bed, &["service", "list", "default/web"]).as_array().unwrap().len(), 1);
    assert_eq!(json(&bed, &["service", "list", "default/we"]).as_array().unwrap().len(), 0);
    assert_eq!(json(&bed, &["flow", "list"])["flows"][0]["translated"]["destination_port"], 8080);
    assert_eq!(json(&bed, &["nat", "list"])["bindings"][0]["external_port"], 10240);
    assert_eq!(json(&bed, &["nat", "usage"])[0]["workers"][0]["in_use"]["tcp"], 988);
    assert_eq!(json(&bed, &["latency"])["histograms"][0]["from"], "pods");
    assert_eq!(json(&bed, &["version"])["protocol"], 1);
    assert!(json(&bed, &["status"])["control"].is_null());
}

#[test]
fn latencies_are_chosen_and_written_for_other_programs() {
    let bed = Bed::new();
    let _dataplane = bed.dataplane(1, BTreeMap::new());
    let all = json(&bed, &["latency"]);
    let sum = all["histograms"].as_array().unwrap().last().unwrap();
    assert_eq!((&sum["worker"], &sum["packets"]), (&serde_json::Value::Null, &200.into()));
    let near = |value: &serde_json::Value, us: f64| {
        let value = value.as_f64().unwrap();
        assert!((value - us).abs() < us / 100.0, "{value} is not {us}");
    };
    near(&sum["p50_us"], 7.0);
    near(&sum["max_us"], 9.0);
    let pods = json(&bed, &["latency", "--from", "pods"]);
    assert_eq!(pods["histograms"].as_array().unwrap().len(), 1);
    near(&pods["histograms"][0]["p90_us"], 1.0);
    near(&pods["histograms"][0]["p99_us"], 7.0);
    let file = bed.path("pods.hgrm");
    let path = file.to_str().unwrap();
    let output = bed.overlane(&["latency", "--worker", "1", "--hgrm", path]);
    assert_eq!(output.status.code(), Some(0));
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("1/(1-Percentile)") && written.contains("100]"), "{written}");
    let printed = text(&bed.overlane(&["latency", "--worker", "1", "--hgrm", "-"]));
    assert_eq!(printed, written);
    let output = bed.overlane(&["latency", "--hgrm", "/no/such/folder/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/no/such/folder/x"));
    // Who begins anew is told what there was.
    assert_eq!(json(&bed, &["latency", "--reset"]), all);
    assert_eq!(json(&bed, &["latency"])["histograms"].as_array().unwrap().len(), 0);
    assert_eq!(bed.overlane(&["latency", "--from", "nowhere"]).status.code(), Some(2));
}

#[test]
fn flows_are_chosen_by_filters() {
    let bed = Bed::new();
    let dataplane = bed.dataplane(1, BTreeMap::new());
    let filters = || std::mem::take(&mut dataplane.memory.lock().unwrap().filters);
    let all = [
        "--address",
        "10.244.1.7/24",
        "--port",
        "80",
        "--protocol",
        "udp",
        "--endpoint",
        "default/x",
        "--service",
        "default/web",
        "--worker",
        "1",
    ];
    json(&bed, &[&["flow", "list", "--limit", "5"][..], &all].concat());
    json(&bed, &[&["nat", "list"][..], &all].concat());
    assert_eq!(json(&bed, &[&["flow", "flush"][..], &all].concat())["flows"], 3);
    let expected = FlowFilter {
        address: Some("10.244.1.0/24".parse().unwrap()),
        port: Some(80),
        protocol: Some(17),
        endpoint: Some("default/x".into()),
        service: Some("default/web".into()),
        worker: Some(overlane_api::WorkerId(1)),
        snat: false,
        limit: Some(5),
    };
    let nat = FlowFilter { snat: true, limit: Some(1000), ..expected.clone() };
    let flush = FlowFilter { limit: None, ..expected.clone() };
    assert_eq!(filters(), [expected, nat, flush]);
    let output = bed.overlane(&["flow", "flush"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--all"));
    assert_eq!(filters(), []);
    assert_eq!(bed.overlane(&["flow", "flush", "--all"]).status.code(), Some(0));
    assert_eq!(filters(), [FlowFilter::default()]);
    assert_eq!(bed.overlane(&["flow", "list", "--protocol", "gre"]).status.code(), Some(2));
}

#[test]
fn status_shows_the_node_and_control() {
    let bed = Bed::new();
    let _dataplane = bed.dataplane(1, BTreeMap::new());
    let _control = bed.control();
    wait_until("everything is in force", || bed.control_status()["in_force"] == 2);
    let screen = text(&bed.overlane(&["status"]));
    for part in [
        "Node a: mode geneve, VNI 3301, uplink eth0 (10.0.1.4)",
        "1500 underlay, 1450 pods",
        "connected to the dataplane; 2 of 2 objects in force",
    ] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
    let status = json(&bed, &["status"]);
    assert_eq!(status["node"]["name"], "a");
    assert_eq!(status["control"]["dataplane"]["state"], "connected");
    assert_eq!(json(&bed, &["version"])["control"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn exit_status_tells_refused_from_wrong_usage() {
    let bed = Bed::new();
    for verb in [&["status"][..], &["drops"], &["node", "list"], &["endpoint", "list"]] {
        let output = bed.overlane(verb);
        assert_eq!(output.status.code(), Some(1), "{verb:?} without a dataplane");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("dataplane.sock") && error.contains("--socket"), "{error}");
    }
    for verb in [&["no-such-verb"][..], &["config"], &["status", "-o", "xml"], &[]] {
        assert_eq!(bed.overlane(verb).status.code(), Some(2), "{verb:?}");
    }
    assert_eq!(bed.overlane(&["config", "check", "/no/such/file"]).status.code(), Some(1));
    assert_eq!(bed.overlane(&["version"]).status.code(), Some(0), "also without a dataplane");
}

#[test]
fn config_check_takes_a_directory_of_manifests() {
    let bed = Bed::new();
    let (file, directory) = (bed.path("node.yaml"), bed.path("manifests"));
    let arguments =
        ["config", "check", file.to_str().unwrap(), "--manifests", directory.to_str().unwrap()];
    let output = bed.overlane(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("objects: 1 node, 1 peers, 0 endpoints"), "{}", text(&output));
    bed.manifest("x.yaml", &common::pod("x", "a", "10.240.0.5"));
    let output = bed.overlane(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("podIP 10.240.0.5 is outside podCIDR 10.244.0.0/16"), "{said}");
}

#[test]
fn completions_name_the_verbs() {
    let bed = Bed::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = bed.overlane(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output).contains("endpoint"), "{shell}");
    }
}
