//! A dataplane that only remembers, and a control process beside it.

#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overlane_api::flow::{
    FlowFilter, FlowReport, FlowStatus, NatBinding, NatPodUsage, NatRemoteUsage, NatReport,
    NatUsage, NatWorkerUsage, Tuple,
};
use overlane_api::latency::{LatencyBucket, LatencyHistogram, LatencyReport, PacketSource};
use overlane_api::protocol::{ApiError, ErrorCode, Op, Reply, Request, Response, VERSION};
use overlane_api::status::{
    BackendStatus, DropCount, DropReport, EndpointStatus, NodeSummary, PeerStatus, ServiceStatus,
    Status, Traffic,
};
use overlane_api::{
    Algorithm, Backend, BackendState, Change, Forwarding, Frontend, FrontendKind, Node, Object,
    ObjectKey, PortRange, Protocol, Scope, WorkerId,
};

/// What a fake dataplane remembers.
#[derive(Debug, Default)]
pub struct Memory {
    pub installed: BTreeMap<ObjectKey, Object>,
    /// Every change that was applied, in order.
    pub log: Vec<Change>,
    /// Sizes of the batches that were applied.
    pub batches: Vec<usize>,
    /// How often the content was asked for.
    pub compared: usize,
    /// Endpoints with this address are refused.
    pub refuse: Option<String>,
    /// The filters of all questions about flows.
    pub filters: Vec<FlowFilter>,
    /// The leases that were asked for, milliseconds; the same again only once.
    pub leases: Vec<u32>,
    /// Was the latency report begun anew?
    pub begun_anew: bool,
    streams: Vec<UnixStream>,
}

/// A dataplane that serves until it is dropped.
pub struct FakeDataplane {
    pub memory: Arc<Mutex<Memory>>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl FakeDataplane {
    pub fn start(path: &Path, instance: u64, installed: BTreeMap<ObjectKey, Object>) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let memory = Arc::new(Mutex::new(Memory { installed, ..Memory::default() }));
        let shared = Arc::clone(&memory);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // The one that stops the server says nothing.
                let stop = serve(&stream, instance, &shared);
                if stop {
                    return;
                }
            }
        });
        Self { memory, path: path.to_owned(), thread: Some(thread) }
    }

    pub fn keys(&self) -> Vec<String> {
        self.memory.lock().unwrap().installed.keys().map(ToString::to_string).collect()
    }

    /// Takes the log since the last call.
    pub fn take_log(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.memory.lock().unwrap().log);
        log.iter()
            .map(|change| match change {
                Change::Set(object) => format!("set {}", object.key()),
                Change::Remove(key) => format!("remove {key}"),
            })
            .collect()
    }
}

impl Drop for FakeDataplane {
    fn drop(&mut self) {
        if let Ok(mut stream) = UnixStream::connect(&self.path) {
            let _ = stream.write_all(b"stop\n");
        }
        let _ = std::fs::remove_file(&self.path);
        for stream in self.memory.lock().unwrap().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection on a thread of its own. Was it the one that stops the server?
fn serve(stream: &UnixStream, instance: u64, memory: &Arc<Mutex<Memory>>) -> bool {
    memory.lock().unwrap().streams.push(stream.try_clone().unwrap());
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return false;
    }
    if first == "stop\n" {
        return true;
    }
    let (mut stream, memory) = (stream.try_clone().unwrap(), Arc::clone(memory));
    std::thread::spawn(move || {
        let mut line = first;
        loop {
            let request: Request = serde_json::from_str(&line).unwrap();
            let result = answer(request.op, instance, &mut memory.lock().unwrap());
            let response = Response { version: VERSION, id: request.id, result };
            let mut text = serde_json::to_vec(&response).unwrap();
            text.push(b'\n');
            if stream.write_all(&text).is_err() {
                return;
            }
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
    });
    false
}

fn answer(op: Op, instance: u64, memory: &mut Memory) -> Result<Reply, ApiError> {
    Ok(match op {
        Op::Hello => Reply::Hello { version: "9.9.9".into(), instance },
        Op::Lease { milliseconds } => {
            memory.leases.push(milliseconds);
            memory.leases.dedup();
            Reply::Lease { forwarding: true }
        }
        Op::Installed => {
            memory.compared += 1;
            let digest = |(key, object): (&ObjectKey, &Object)| (key.clone(), object.digest());
            Reply::Installed { objects: memory.installed.iter().map(digest).collect() }
        }
        Op::Apply { changes } => {
            if let Some(place) = changes.iter().position(|change| is_refused(change, memory)) {
                return Err(ApiError::new(ErrorCode::Refused, "no such luck")
                    .at(format!("changes[{place}]")));
            }
            memory.batches.push(changes.len());
            for change in changes {
                match &change {
                    Change::Set(object) => {
                        memory.installed.insert(object.key(), object.clone());
                    }
                    Change::Remove(key) => {
                        memory.installed.remove(key);
                    }
                }
                memory.log.push(change);
            }
            Reply::Applied { generation: 1, warnings: Vec::new() }
        }
        Op::Status => Reply::Status(Box::new(status(memory))),
        Op::Endpoints => Reply::Endpoints(vec![EndpointStatus {
            name: "default/web".into(),
            addresses: vec!["10.244.1.10".parse().unwrap()],
            interface: "pod1".into(),
            mac: None,
            worker: WorkerId(0),
            state: "ready".into(),
            mtu: Some(1450),
            offloads_off: vec!["tx-checksumming".into()],
            rx_packets: 7,
            tx_packets: 8,
            checksums_finished: 1,
        }]),
        Op::Peers => Reply::Peers(vec![PeerStatus {
            name: "b".into(),
            addresses: vec!["10.0.1.5".parse().unwrap()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            mode: overlane_api::Mode::Geneve,
            next_hop: None,
            mtu: 1450,
        }]),
        Op::Drops => Reply::Drops(DropReport {
            reasons: vec![DropCount {
                reason: "unknown_peer".into(),
                packets: 3,
                meaning: "A tunnel packet came from a node that is not a peer.".into(),
                advice: "Add the node's manifest.".into(),
            }],
            kernel: BTreeMap::from([("rx_ring_full".into(), 5)]),
        }),
        Op::Services => Reply::Services(vec![service_status()]),
        Op::Flows { filter } => {
            memory.filters.push(filter);
            Reply::Flows(FlowReport { flows: vec![flow()], matched: 1, total: 7, capacity: 100 })
        }
        Op::FlushFlows { filter } => {
            memory.filters.push(filter);
            Reply::Flushed { flows: 3 }
        }
        Op::NatBindings { filter } => {
            memory.filters.push(filter);
            Reply::NatBindings(NatReport { bindings: vec![binding()], matched: 1 })
        }
        Op::NatUsage => Reply::NatUsage(vec![nat_usage()]),
        Op::Latency { reset } => {
            let reply = Reply::Latency(latency(memory.begun_anew));
            memory.begun_anew |= reset;
            reply
        }
    })
}

fn latency(is_empty: bool) -> LatencyReport {
    let bucket = |up_to_ns, packets| LatencyBucket { up_to_ns, packets };
    let of = |worker, from, buckets| LatencyHistogram { worker: WorkerId(worker), from, buckets };
    let histograms = vec![
        of(0, PacketSource::Pods, vec![bucket(1000, 90), bucket(7000, 10)]),
        of(1, PacketSource::Worker, vec![bucket(9000, 100)]),
    ];
    let histograms = if is_empty { Vec::new() } else { histograms };
    LatencyReport { sampled: 16, since_s: 77, histograms }
}

fn service_status() -> ServiceStatus {
    let frontend =
        |address: &str, kind| Frontend { address: address.parse().unwrap(), port: 80, kind };
    let backend = |address: &str, state| BackendStatus {
        backend: Backend {
            address: address.parse().unwrap(),
            port: 8080,
            weight: 1,
            local: address == "10.244.1.10",
            use_cluster: state == BackendState::Ready,
            use_local: false,
            serving: true,
            state,
        },
        flows: None,
        direct: false,
    };
    ServiceStatus {
        name: "default/web:http".into(),
        protocol: Protocol::Tcp,
        frontends: vec![
            frontend("10.96.0.20", FrontendKind::ClusterIp),
            frontend("203.0.113.5", FrontendKind::LoadBalancer),
        ],
        backends: vec![
            backend("10.244.1.10", BackendState::Ready),
            backend("10.244.2.11", BackendState::Terminating),
        ],
        internal: Scope::Cluster,
        external: Scope::Local,
        algorithm: Algorithm::Maglev,
        forwarding: Forwarding::Snat,
        affinity_seconds: Some(10800),
        generation: 5,
        new_flows: 11,
        to_backends: Traffic { packets: 101, bytes: 5000 },
        to_clients: Traffic { packets: 102, bytes: 6000 },
        rejected: 1,
        dropped: BTreeMap::from([("no_local_endpoint".into(), 4)]),
    }
}

fn flow() -> FlowStatus {
    let original = Tuple {
        source: "10.244.1.10".parse().unwrap(),
        source_port: 40000,
        destination: "10.96.0.20".parse().unwrap(),
        destination_port: 80,
    };
    let destination = "10.244.2.11".parse().unwrap();
    FlowStatus {
        worker: WorkerId(1),
        protocol: 6,
        original,
        translated: Tuple { destination, destination_port: 8080, ..original },
        state: "established".into(),
        service: Some("default/web:http".into()),
        egress: None,
        endpoint: Some("default/client".into()),
        forward: Traffic { packets: 10, bytes: 2048 },
        reverse: Traffic { packets: 9, bytes: 900 },
        age_s: 77,
        idle_s: 2,
        expires_s: 7438,
    }
}

fn binding() -> NatBinding {
    NatBinding {
        worker: WorkerId(0),
        protocol: 17,
        external: "10.0.1.4".parse().unwrap(),
        external_port: 10240,
        internal: "10.244.1.10".parse().unwrap(),
        internal_port: 5353,
        remote: "203.0.113.10".parse().unwrap(),
        remote_port: 53,
        endpoint: Some("default/client".into()),
        state: "two_way".into(),
        expires_s: 29,
    }
}

fn nat_usage() -> NatUsage {
    NatUsage {
        external: "10.0.1.4".parse().unwrap(),
        ports: PortRange::SNAT_DEFAULT,
        bindings: 1200,
        free: 18_860,
        growth_per_s: Some(4.0),
        exhausted_in_s: Some(6286),
        workers: vec![NatWorkerUsage {
            worker: WorkerId(0),
            owned: 9880,
            in_use: BTreeMap::from([("tcp".into(), 988)]),
            bindings: 1200,
            exhausted: 2,
            pod_limited: 0,
            tries: vec![1000, 200],
        }],
        busiest: vec![NatRemoteUsage {
            remote: "203.0.113.10".parse().unwrap(),
            remote_port: 443,
            protocol: 6,
            bindings: 900,
        }],
        top_pods: vec![NatPodUsage {
            internal: "10.244.1.10".parse().unwrap(),
            endpoint: Some("default/web-1".into()),
            bindings: 700,
        }],
    }
}

fn is_refused(change: &Change, memory: &Memory) -> bool {
    match (change, &memory.refuse) {
        (Change::Set(Object::Endpoint(endpoint)), Some(refused)) => {
            endpoint.addresses.iter().any(|address| address.to_string() == *refused)
        }
        _ => false,
    }
}

fn status(memory: &Memory) -> Status {
    let node = match memory.installed.get(&ObjectKey::Node) {
        Some(Object::Node(node)) => Some(summary(node)),
        _ => None,
    };
    Status { version: "9.9.9".into(), node, peers: 1, ..Status::default() }
}

fn summary(node: &Node) -> NodeSummary {
    NodeSummary {
        name: node.name.clone(),
        mode: node.mode,
        vni: node.encap.vni,
        uplink: node.uplink.clone(),
        addresses: node.addresses.clone(),
        underlay_mtu: node.underlay_mtu,
        pod_mtu: node.pod_mtu,
    }
}

/// A node's directory with its sockets, configuration and manifests.
pub struct Bed {
    pub root: tempfile::TempDir,
}

pub const CONFIG: &str = "nodeName: a\nuplink: eth0\nmode: geneve\nvni: 3301\n\
    nodeCIDR: 10.0.0.0/16\npodCIDR: 10.244.0.0/16\nserviceCIDR: 10.96.0.0/16\n";

impl Bed {
    /// Node a (this one), node b, and no pods.
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("manifests")).unwrap();
        std::fs::write(root.path().join("node.yaml"), CONFIG).unwrap();
        let bed = Self { root };
        bed.manifest("node-a.yaml", &node("a", "10.244.1.0/24", "10.0.1.4"));
        bed.manifest("node-b.yaml", &node("b", "10.244.2.0/24", "10.0.1.5"));
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn manifest(&self, name: &str, text: &str) {
        std::fs::write(self.path("manifests").join(name), text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path("manifests").join(name)).unwrap();
    }

    pub fn dataplane(
        &self,
        instance: u64,
        installed: BTreeMap<ObjectKey, Object>,
    ) -> FakeDataplane {
        FakeDataplane::start(&self.path("dataplane.sock"), instance, installed)
    }

    pub fn control(&self) -> Control {
        let child = Command::new(env!("CARGO_BIN_EXE_overlane-control"))
            .arg("--config")
            .arg(self.path("node.yaml"))
            .arg("--manifests")
            .arg(self.path("manifests"))
            .arg("--dataplane-socket")
            .arg(self.path("dataplane.sock"))
            .arg("--socket")
            .arg(self.path("control.sock"))
            .args(["--group", &nix::unistd::getgid().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Control { child }
    }

    /// Runs `overlane` against this node's sockets.
    pub fn overlane(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_overlane"))
            .env("OVERLANE_SOCKET", self.path("dataplane.sock"))
            .env("OVERLANE_CONTROL_SOCKET", self.path("control.sock"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The control process's state, as `overlane status` shows it.
    pub fn control_status(&self) -> serde_json::Value {
        let output = self.overlane(&["status", "-o", "json"]);
        let whole: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        whole["control"].clone()
    }
}

/// A running control process; killed when it is dropped.
pub struct Control {
    pub child: Child,
}

impl Control {
    /// Ends it by a signal and says how it ended.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn node(name: &str, range: &str, address: &str) -> String {
    format!(
        "kind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {range}}}\n\
         status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
    )
}

pub fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n\
         status: {{podIP: {address}}}\n"
    )
}

/// Waits until `what` is so, at most ten seconds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "waited ten seconds in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
