//! What one changed endpoint costs the control process among 10,000 services with 10 endpoints
//! each: to compile it, until the dataplane has answered, and from the file being written.
//!
//! `cargo bench -p overlane-control`; `-- --services N` for another size.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use overlane_api::protocol::{Op, Reply, Request, Response, VERSION};
use overlane_control::config;
use overlane_control::desired::Compiler;
use overlane_control::host::Host;
use overlane_control::manifests::Manifest;
use overlane_control::reconcile::Reconciler;
use overlane_control::sources::directory::Directory;
use overlane_control::sources::{Source, Update};
use overlane_control::validate::validate;

const CONFIG: &str = "nodeName: a\nuplink: eth0\nmode: geneve\nnodeCIDR: 10.0.0.0/16\n\
     podCIDR: 10.244.0.0/14\nserviceCIDR: 10.96.0.0/12\nnodeAddresses: 10.0.1.4\n";
const ENDPOINTS: usize = 10;
const ROUNDS: usize = 200;

fn service(number: usize) -> String {
    format!(
        "kind: Service\nmetadata: {{name: s{number}}}\nspec:\n  clusterIP: 10.{}.{}.{}\n  ports: [{{name: http, port: 80}}]\n---\n",
        96 + number / 65_536,
        number / 256 % 256,
        number % 256
    )
}

/// The slice of service `number`; `gone` of its endpoints is not ready.
fn slice(number: usize, gone: usize) -> String {
    let mut text = format!(
        "kind: EndpointSlice\nmetadata: {{name: s{number}-1, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for endpoint in 0..ENDPOINTS {
        let pod = number * ENDPOINTS + endpoint;
        let _ = writeln!(
            text,
            "- {{addresses: [10.{}.{}.{}], nodeName: n{}, conditions: {{ready: {}}}}}",
            244 + pod / 65_536,
            pod / 256 % 256,
            pod % 256,
            pod % 100,
            endpoint != gone
        );
    }
    text
}

/// A dataplane that takes everything and forgets it.
fn dataplane(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || answer_all(stream));
        }
    });
}

fn answer_all(mut stream: UnixStream) {
    let reader = BufReader::new(stream.try_clone().unwrap());
    for line in reader.lines() {
        let request: Request = serde_json::from_str(&line.unwrap()).unwrap();
        let reply = match request.op {
            Op::Hello => Reply::Hello { version: String::new(), instance: 1 },
            Op::Installed => Reply::Installed { objects: Vec::new() },
            _ => Reply::Applied { generation: 1, warnings: Vec::new() },
        };
        let response = Response { version: VERSION, id: request.id, result: Ok(reply) };
        let mut line = serde_json::to_vec(&response).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
    }
}

/// The same cluster in a single file: what it costs to find the one document that has changed.
fn one_file(count: usize) {
    let root = tempfile::tempdir().unwrap();
    let text: String =
        (0..count).map(|number| service(number) + &slice(number, ENDPOINTS) + "---\n").collect();
    let place = root.path().join("all.yaml");
    std::fs::write(&place, &text).unwrap();
    let mut source = Directory::new(root.path());
    source.wait(Duration::ZERO).unwrap();
    let mut times = Vec::new();
    for round in 0..ROUNDS / 10 {
        let (old, new) = (slice(round, ENDPOINTS), slice(round, round % ENDPOINTS));
        let aside = root.path().join(".aside");
        std::fs::write(&aside, text.replace(&old, &new)).unwrap();
        while source.wait(Duration::from_millis(1)).is_some() {}
        let start = Instant::now();
        std::fs::rename(&aside, &place).unwrap();
        while source.wait(Duration::from_secs(1)).is_none() {}
        times.push(start.elapsed());
    }
    report("from one file of everything until its change is known", times);
}

/// The same cluster without slices: what one pod costs that becomes unready.
fn pods(count: usize) {
    let text = "kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.244.0.0/14}\n\
         status: {addresses: [{type: InternalIP, address: 10.0.1.5}]}\n---\n\
         kind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.0.1, selector: {app: s, tier: x}, ports: [{port: 80}]}\n---\n\
         kind: Pod\nmetadata: {name: p, labels: {app: s, tier: x}}\nspec: {nodeName: n}\nstatus: {podIP: 10.244.0.1}\n";
    let read = overlane_control::manifests::read(Path::new("x.yaml"), text).unwrap().manifests;
    let [node, Manifest::Service(service), Manifest::Pod(pod)] = read.as_slice() else {
        unreachable!("as it is written")
    };
    let mut update = Update::default();
    let add = |update: &mut Update, manifest: Manifest| {
        update.changes.insert(manifest.key(), Some((manifest, "x.yaml".to_owned())));
    };
    add(&mut update, node.clone());
    let pod_of = |number: usize, ready: bool| {
        let mut pod = pod.clone();
        pod.name = format!("default/p{number}");
        let host = u32::from_be_bytes([10, 244, 0, 0]) + u32::try_from(number).unwrap();
        pod.addresses = vec![std::net::Ipv4Addr::from(host).into()];
        pod.labels.insert("app".into(), format!("s{}", number / ENDPOINTS));
        pod.ready = ready;
        Manifest::Pod(pod)
    };
    for number in 0..count {
        let mut service = service.clone();
        service.name = format!("default/s{number}");
        let host = u32::from_be_bytes([10, 96, 0, 0]) + u32::try_from(number).unwrap();
        service.cluster_ips = vec![std::net::Ipv4Addr::from(host).into()];
        service.selector.insert("app".into(), format!("s{number}"));
        add(&mut update, Manifest::Service(service));
    }
    (0..count * ENDPOINTS).for_each(|number| add(&mut update, pod_of(number, true)));
    let mut compiler = compiler();
    let start = Instant::now();
    compiler.take(update);
    println!("{count} services, {} pods: compiled in {:?}", count * ENDPOINTS, start.elapsed());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let mut update = Update::default();
        add(&mut update, pod_of(round * 7919 % (count * ENDPOINTS), false));
        let start = Instant::now();
        let changed = compiler.take(update);
        times.push(start.elapsed());
        assert_eq!(changed.len(), 1);
    }
    report("one pod compiled", times);
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("{what}: median {:?}, 99th {:?}, worst {:?}", at(50), at(99), at(100));
}

fn compiler() -> Compiler {
    let config = config::parse(Path::new("node.yaml"), CONFIG).unwrap().config;
    Compiler::new(validate(config, Host::default()).unwrap())
}

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--services");
    let count = arguments.nth(1).map_or(10_000, |count| count.parse().unwrap());
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for number in 0..count {
        let text = service(number) + &slice(number, ENDPOINTS);
        std::fs::write(manifests.join(format!("s{number}.yaml")), text).unwrap();
    }
    let mut compiler = compiler();
    let mut reconciler = Reconciler::new(&root.path().join("dataplane.sock"));
    dataplane(&root.path().join("dataplane.sock"));

    let start = Instant::now();
    let mut source = Directory::new(&manifests);
    let update = source.wait(Duration::ZERO).unwrap();
    let read = start.elapsed();
    let changed = compiler.take(update);
    let compiled = start.elapsed();
    reconciler.want(compiler.objects(), &changed, false);
    reconciler.step(Instant::now());
    println!(
        "{count} services x {ENDPOINTS} endpoints: read in {read:?}, compiled in {:?}, pushed in {:?}",
        compiled - read,
        start.elapsed() - compiled
    );
    one_by_one(count, &manifests, &mut source, &mut compiler, &mut reconciler);
    pods(count);
    one_file(count);
}

fn one_by_one(
    count: usize,
    manifests: &Path,
    source: &mut Directory,
    compiler: &mut Compiler,
    reconciler: &mut Reconciler,
) {
    let (mut compile, mut push, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let number = round * 7919 % count;
        let text = service(number) + &slice(number, round % ENDPOINTS);
        let aside = manifests.join(".aside");
        std::fs::write(&aside, text).unwrap();
        // What has changed in between is none of this round's.
        while source.wait(Duration::from_millis(1)).is_some() {}
        let start = Instant::now();
        std::fs::rename(&aside, manifests.join(format!("s{number}.yaml"))).unwrap();
        let update: Update = loop {
            if let Some(update) = source.wait(Duration::from_secs(1)) {
                break update;
            }
        };
        assert_eq!(update.changes.len(), 1);
        let seen = Instant::now();
        let changed = compiler.take(update);
        compile.push(seen.elapsed());
        assert_eq!(changed.len(), 1);
        reconciler.want(compiler.objects(), &changed, false);
        reconciler.step(Instant::now());
        push.push(seen.elapsed());
        whole.push(start.elapsed());
    }
    report("one endpoint compiled", compile);
    report("and taken by the dataplane", push);
    report("from its file in place until then", whole);
    let kinds: BTreeMap<String, usize> =
        compiler.objects().keys().fold(BTreeMap::new(), |mut kinds, key| {
            let kind = key.to_string();
            let kind = kind.split(' ').next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += 1;
            kinds
        });
    println!("{kinds:?}");
}
