//! A node in memory with the cluster of a scenario, whose packets come from templates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use overlane_api::{Change, Mode, Node, Object, Underlay, WorkerId};
use overlane_dataplane::flow::TICK_NS;
use overlane_dataplane::io::VECTOR;
use overlane_dataplane::io::memory::ReplayPort;
use overlane_dataplane::packet::flow_key::{Address, FlowKey};
use overlane_dataplane::packet::meta::Origin;
use overlane_dataplane::packet::pool::{Depot, FramePool, UmemId};
use overlane_dataplane::packet::verdict::PortId;
use overlane_dataplane::tables::compile::underlay::gateways;
use overlane_dataplane::tables::compile::{Binding, Effect};
use overlane_dataplane::tables::node::UplinkBinding;
use overlane_dataplane::tables::peers::Adjacency;
use overlane_dataplane::testing::{Bench, node, objects};
use overlane_dataplane::worker::Worker;

use crate::error::PerfError;
use crate::frames::{Datagram, tunnel};
use crate::scenario::{Load, Scenario, Way};
use crate::services::set;
use crate::tables::batches;
use crate::topology::Topology;
use crate::traffic::{Order, Size};

/// Flows up to which each flow has one template, small enough to stay in the cache. Of more flows
/// the packets lie in memory in the order in which they come, so that what the caches miss is the
/// pipeline's doing and not the port's.
const FEW_FLOWS: usize = 4096;

/// Packets until the order of few flows comes again.
const ORDER: usize = 16_384;

/// Most flows: their packets lie in memory.
const MAX_FLOWS: usize = 16 << 20;

/// Most workers.
const MAX_WORKERS: usize = 32;

/// After so long no flow of these packets is remembered.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Ticks within which a worker has looked at all flows.
const MAX_TICKS: usize = 1 << 18;

/// A worker's frames besides those of its receiving port: in flight and in its pool.
const SPARE_FRAMES: usize = 512;

/// More frames for each of several workers.
const FRAMES_BETWEEN: usize = 8192;

/// A node in memory.
#[derive(Debug)]
pub struct Rig {
    /// The node.
    pub bench: Bench<ReplayPort>,
    /// The port that receives, per worker.
    pub inputs: Vec<PortId>,
    /// The uplink's port, per worker.
    pub uplinks: Vec<PortId>,
    /// The ports of its pods, per worker.
    pub pods: Vec<[PortId; 2]>,
    scenario: Scenario,
}

impl Rig {
    /// A node of `workers` workers, each with an uplink port and two pods. Of the three ports one
    /// receives.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn new(scenario: Scenario, load: &Load, workers: usize) -> Result<Self, PerfError> {
        if !(1..=MAX_WORKERS).contains(&workers) {
            let (option, most) = ("--workers", MAX_WORKERS);
            return Err(PerfError::Range { option, value: workers, least: 1, most });
        }
        if !(1..=MAX_FLOWS).contains(&load.flows) {
            let (option, most) = ("--flows", MAX_FLOWS);
            return Err(PerfError::Range { option, value: load.flows, least: 1, most });
        }
        let topology = Topology::new(load.peers, load.endpoints)?;
        // What is handed over waits in the queues between workers, and then is the other's to keep.
        let between = if workers > 1 { FRAMES_BETWEEN } else { 0 };
        let ports = if load.both_ways { 2 } else { 1 };
        let chunks = workers * (ports * load.frames + SPARE_FRAMES + between);
        let capacity = u32::try_from(load.flows).unwrap_or(u32::MAX);
        let capacity = capacity.saturating_add(capacity / 4).max(1 << 14);
        let bench = Bench::with_flows(workers, chunks, capacity).map_err(PerfError::Node)?;
        if load.scattered {
            scatter(&bench.depot);
        }
        let mut rig =
            Self { bench, inputs: Vec::new(), uplinks: Vec::new(), pods: Vec::new(), scenario };
        let mut uplinks = Vec::new();
        let mut pods = Vec::new();
        for number in 0..workers {
            let worker = WorkerId(number as u8);
            let flows = Flows::new(scenario, load, topology, number);
            let waits = scenario.opens || scenario.way.answered().is_some();
            let replay = if waits { silent_port()? } else { flows.port(load)? };
            let [uplink, first, second] = [(); 3].map(|()| rig.bench.new_port_id());
            let (input, way) = match scenario.way {
                Way::In | Way::ServiceReply | Way::OutsideReply => (uplink, Origin::Uplink),
                Way::Out | Way::Local | Way::Service | Way::Outside => (first, Origin::Endpoint),
            };
            for (id, origin) in
                [(uplink, Origin::Uplink), (second, Origin::Endpoint), (first, Origin::Endpoint)]
            {
                if id != input {
                    rig.bench.add_port(worker, id, origin, silent_port()?);
                }
            }
            rig.bench.add_port(worker, input, way, replay);
            rig.inputs.push(input);
            rig.uplinks.push(uplink);
            rig.pods.push([first, second]);
            uplinks.push((worker, uplink));
            pods.push((worker, [first, second]));
        }
        let uplink = UplinkBinding { mac: node::UPLINK_MAC, ports: uplinks };
        rig.bench.compiler.bind_uplink(uplink);
        rig.load(topology, load.services, &pods)?;
        if let Some(answered) = scenario.way.answered() {
            let forward = Scenario { way: answered, ..scenario };
            for (number, (worker, [first, _])) in pods.into_iter().enumerate() {
                rig.open_flows((forward, load), topology, number, (worker, first))?;
                if load.both_ways {
                    let going_on = Flows::new(forward, load, topology, number).port(load)?;
                    rig.bench.add_port(worker, first, Origin::Endpoint, going_on);
                }
            }
            rig.answer_flows(load, topology)?;
        }
        Ok(rig)
    }

    /// Has each packet that comes come once, so that those to be counted open no flows any more.
    #[inline(never)]
    pub fn settle(&mut self, load: &Load) {
        if !self.scenario.way.has_flows() {
            return;
        }
        let vectors = load.flows.max(ORDER).div_ceil(VECTOR);
        for worker in &mut self.bench.workers {
            for _ in 0..vectors {
                worker.poll();
            }
        }
    }

    /// Of a scenario that opens flows: has one packet of each flow arrive at worker 0, once more.
    ///
    /// # Errors
    /// [`PerfError`]
    pub fn arrive(&mut self, load: &Load) -> Result<(), PerfError> {
        let topology = Topology::new(load.peers, load.endpoints)?;
        let once = Flows::new(self.scenario, load, topology, 0).once(load)?;
        self.bench.add_port(WorkerId(0), self.inputs[0], Origin::Endpoint, once);
        Ok(())
    }

    /// Has worker 0 forget its flows, as time passes.
    ///
    /// # Errors
    /// [`PerfError::Missed`] when it does not.
    pub fn forget(&mut self) -> Result<(), PerfError> {
        let worker = &mut self.bench.workers[0];
        worker.advance(FORGOTTEN);
        for _ in 0..MAX_TICKS {
            if worker.flows().is_empty() {
                return Ok(());
            }
            worker.advance(Duration::from_nanos(TICK_NS));
            worker.poll();
        }
        Err(PerfError::Missed(format!("{} flows do not expire", worker.flows().len())))
    }

    /// Has the pod behind port `first` open its flows.
    fn open_flows(
        &mut self,
        (forward, load): (Scenario, &Load),
        topology: Topology,
        number: usize,
        (worker, first): (WorkerId, PortId),
    ) -> Result<(), PerfError> {
        let opening = Flows::new(forward, load, topology, number).once(load)?;
        self.bench.add_port(worker, first, Origin::Endpoint, opening);
        while self.bench.workers[number].poll() > 0 {}
        Ok(())
    }

    /// From now on the answers to the flows that are open arrive.
    fn answer_flows(&mut self, load: &Load, topology: Topology) -> Result<(), PerfError> {
        let mut of_workers: Vec<Vec<Answer>> = Vec::new();
        for worker in &self.bench.workers {
            let table = worker.flows();
            of_workers.push(match self.scenario.family {
                Underlay::Ipv4 => table.v4.iter().map(|(.., half)| answer(&half.key())).collect(),
                Underlay::Ipv6 => table.v6.iter().map(|(.., half)| answer(&half.key())).collect(),
            });
        }
        for (number, input) in self.inputs.clone().into_iter().enumerate() {
            let worker = WorkerId(number as u8);
            let mut flows = Flows::new(self.scenario, load, topology, number);
            flows.answers.clone_from(&of_workers[number]);
            if load.crossed {
                let others = &of_workers[(number + 1) % of_workers.len()];
                for (own, other) in flows.answers.iter_mut().zip(others).step_by(2) {
                    *own = *other;
                }
            }
            flows.seeds.truncate(flows.answers.len());
            let replay = flows.port(load)?;
            self.bench.add_port(worker, input, Origin::Uplink, replay);
        }
        Ok(())
    }

    fn load(
        &mut self,
        topology: Topology,
        services: usize,
        pods: &[(WorkerId, [PortId; 2])],
    ) -> Result<(), PerfError> {
        let mode = self.scenario.mode;
        let this = this_node(self.scenario);
        let mtu = this.pod_mtu;
        self.apply([Change::Set(Object::Node(this))])?;
        self.apply(topology.peer_changes(mode))?;
        self.apply(topology.endpoint_changes())?;
        if self.scenario.way.has_flows() {
            for batch in batches((0..services).map(|n| set(topology.service(n)))) {
                self.apply(batch)?;
            }
        }
        for (worker, ports) in pods {
            for (number, port) in ports.iter().enumerate() {
                let pod = worker.0 * 2 + number as u8;
                let object = objects::local_pod(pod, worker.0);
                let name = object.name.clone();
                self.apply([Change::Set(Object::Endpoint(object))])?;
                let mac = objects::pod_mac(0, pod);
                let binding = Binding { port: *port, queues: 1, worker: *worker, mac, mtu };
                self.bench.compiler.bind_endpoint(&name, Some(binding));
            }
        }
        let adjacency = Adjacency { source: node::UPLINK_MAC, destination: node::NEXT_HOP_MAC };
        self.bench.compiler.set_ways(Topology::ways());
        for gateway in gateways(&Topology::ways()) {
            self.bench.compiler.set_gateway(gateway, Some(adjacency));
        }
        self.bench.publish();
        Ok(())
    }

    /// Applies changes, knows the next hop of new peers.
    ///
    /// # Errors
    /// [`PerfError::Refused`]
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), PerfError> {
        let effects = self
            .bench
            .compiler
            .apply(changes.into_iter().collect())
            .map_err(|error| PerfError::Refused(error.to_string()))?;
        let adjacency = Adjacency { source: node::UPLINK_MAC, destination: node::NEXT_HOP_MAC };
        for effect in effects {
            if let Effect::PeerSet(name) = effect {
                self.bench.compiler.set_adjacency(&name, Some(adjacency));
            }
        }
        Ok(())
    }

    /// Does every packet leave that came in? To be asked after a run.
    ///
    /// # Errors
    /// [`PerfError::Dropped`]
    pub fn check(&self) -> Result<(), PerfError> {
        for worker in &self.bench.workers {
            check_worker(self.scenario, worker)?;
        }
        Ok(())
    }
}

/// Brings the frames of a depot, which has all of them, into another order.
fn scatter(depot: &Arc<Depot>) {
    let mut pool = FramePool::new(depot.clone(), 0);
    let mut frames = Vec::with_capacity(depot.chunks());
    pool.take_many(depot.chunks(), |frame| frames.push(frame));
    fastrand::Rng::with_seed(5).shuffle(&mut frames);
    pool.give_many(frames.into_iter());
    pool.drain();
}

fn check_worker(scenario: Scenario, worker: &Worker<ReplayPort>) -> Result<(), PerfError> {
    let counters = worker.counters();
    if counters.sent == counters.received && counters.sent > 0 {
        return Ok(());
    }
    let reasons = overlane_dataplane::packet::drop::DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), counters.dropped[*reason as usize]))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect::<Vec<_>>();
    Err(PerfError::Dropped {
        scenario: scenario.name.into(),
        count: counters.received - counters.sent,
        received: counters.received,
        reasons: reasons.join(", "),
    })
}

/// This node as `scenario` wants it.
#[must_use]
pub fn this_node(scenario: Scenario) -> Node {
    let mut node = objects::node(scenario.mode, scenario.family);
    // The underlay has room for the headers of tunnels, so that pods send what Ethernet carries.
    (node.underlay_mtu, node.pod_mtu) = (1600, 1500);
    node.service_cidrs =
        ["10.96.0.0/16", "fd98::/108"].iter().flat_map(|net| net.parse()).collect();
    node
}

/// Addresses and ports of a packet with this key.
fn answer<A: Address>(key: &FlowKey<A>) -> Answer {
    let addresses = (key.source.to_ip(), key.destination.to_ip());
    Answer { addresses, ports: (key.source_port, key.destination_port) }
}

/// Addresses and ports of an answer: source, destination.
#[derive(Debug, Clone, Copy)]
struct Answer {
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
}

/// A port on which nothing arrives.
///
/// # Errors
/// Never, with these arguments.
pub fn silent_port() -> Result<ReplayPort, PerfError> {
    let mut port = ReplayPort::new(UmemId(0), vec![vec![0; 60]], vec![0], 0, 0)?;
    port.stop_after(0);
    Ok(port)
}

/// The packets that arrive at one worker.
#[derive(Debug)]
pub struct Flows {
    scenario: Scenario,
    topology: Topology,
    size: Size,
    order: Order,
    services: usize,
    /// Per flow: a number that its pods and ports are derived from.
    seeds: Vec<u32>,
    worker: usize,
    random: fastrand::Rng,
    /// The flow that was drawn last.
    drawn: usize,
    /// Of answers, per flow.
    answers: Vec<Answer>,
}

impl Flows {
    /// The flows of worker number `worker`: the same in every run.
    #[must_use]
    pub fn new(scenario: Scenario, load: &Load, topology: Topology, worker: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(0x0e11_a4e0 + worker as u64);
        let seeds = (0..load.flows.max(1)).map(|_| random.u32(..)).collect();
        let (size, order, services) = (load.size, load.order, load.services);
        let answers = Vec::new();
        let drawn = 0;
        Self { scenario, topology, size, order, services, seeds, worker, random, drawn, answers }
    }

    /// A port that receives one packet of each.
    ///
    /// # Errors
    /// [`PerfError::Port`]
    pub fn once(self, load: &Load) -> Result<ReplayPort, PerfError> {
        let count = self.seeds.len();
        let frames = (0..count).map(|flow| self.frame(flow, self.bytes(flow))).collect();
        let order = (0..count as u32).collect();
        let copied = self.size.classes().into_iter().max().unwrap_or(0);
        let mut port = ReplayPort::new(UmemId(0), frames, order, load.frames, copied.into())?;
        port.stop_after(count as u64);
        Ok(port)
    }

    /// A port that receives them.
    ///
    /// # Errors
    /// [`PerfError::Port`]
    pub fn port(mut self, load: &Load) -> Result<ReplayPort, PerfError> {
        let count = self.seeds.len();
        let few = count <= FEW_FLOWS;
        let draws = if few { ORDER } else { count };
        let drawn: Vec<u32> = (0..draws).map(|_| self.draw()).collect();
        let (templates, order): (Vec<_>, Vec<_>) = if few {
            // A flow's frames of each size, one behind the other.
            let (sizes, pattern) = (self.size.classes(), self.size.pattern());
            let of_flow = |flow| sizes.iter().map(move |bytes| (flow, *bytes));
            let frames = (0..count).flat_map(of_flow).map(|(flow, bytes)| self.frame(flow, bytes));
            let place = |(at, flow): (usize, u32)| {
                flow * sizes.len() as u32 + u32::from(pattern[at % pattern.len()])
            };
            (frames.collect(), drawn.into_iter().enumerate().map(place).collect())
        } else {
            let frames = drawn.iter().enumerate();
            let frames = frames.map(|(at, flow)| self.frame(*flow as usize, self.bytes(at)));
            (frames.collect(), (0..draws as u32).collect())
        };
        let copied = templates.iter().map(Vec::len).max().unwrap_or(0);
        Ok(ReplayPort::new(UmemId(0), templates, order, load.frames, copied)?)
    }

    /// Bytes on the wire of packet number `at`.
    fn bytes(&self, at: usize) -> u16 {
        let (sizes, pattern) = (self.size.classes(), self.size.pattern());
        sizes[usize::from(pattern[at % pattern.len()])]
    }

    /// The number of the flow that the next packet is of.
    fn draw(&mut self) -> u32 {
        let flows = self.seeds.len();
        match self.order {
            Order::InOrder => {
                self.drawn = (self.drawn + 1) % flows;
                self.drawn as u32
            }
            Order::Random => self.random.u32(..flows as u32),
            // Exponent 1, by inversion of the continuous distribution.
            Order::Zipf => {
                let rank = (flows as f64 + 1.0).powf(self.random.f64()) as usize;
                rank.clamp(1, flows) as u32 - 1
            }
        }
    }

    /// A packet of a flow as it arrives, of `bytes` on the wire.
    fn frame(&self, flow: usize, bytes: u16) -> Vec<u8> {
        let mut own = fastrand::Rng::with_seed((u64::from(self.seeds[flow]) << 20) + flow as u64);
        let endpoint = own.usize(..self.topology.endpoints);
        let family = self.scenario.family;
        let remote = self.topology.endpoint_address(endpoint, family);
        let [here, there] = [0, 1].map(|n| (self.worker * 2 + n) as u8);
        let address = |pod| of_family(objects::pod_addresses(0, pod), family);
        let gateway = objects::gateway_mac(0);
        let from_pod = (objects::pod_mac(0, here), gateway);
        let is_tunnel = self.scenario.mode.is_tunnel();
        let ports = (own.u16(1024..), own.u16(1..));
        let (macs, addresses, ports) = match self.scenario.way {
            Way::Out => (from_pod, (address(here), remote), ports),
            Way::Local => (from_pod, (address(here), address(there)), ports),
            Way::Service => {
                let (service, port) = Topology::service_flow(flow, self.services);
                let vip = Topology::service_address(service, family);
                (from_pod, (address(here), vip), (port, Topology::SERVICE_PORTS.0))
            }
            Way::Outside => {
                let host = Topology::outside_address(own.usize(..), family);
                (from_pod, (address(here), host), ports)
            }
            Way::OutsideReply => {
                let answer = self.answers.get(flow);
                let (addresses, ports) =
                    answer.map_or(((remote, address(here)), ports), |a| (a.addresses, a.ports));
                ((node::NEXT_HOP_MAC, node::UPLINK_MAC), addresses, ports)
            }
            Way::In | Way::ServiceReply => {
                let (addresses, ports) = match self.answers.get(flow) {
                    Some(answer) => (answer.addresses, answer.ports),
                    None => ((remote, address(here)), ports),
                };
                let peer = Topology::peer(Topology::peer_of(addresses.0), Mode::Geneve);
                let native = (node::NEXT_HOP_MAC, node::UPLINK_MAC);
                (if is_tunnel { (peer.gateway_mac, gateway) } else { native }, addresses, ports)
            }
        };
        let inner = Datagram { macs, addresses, ports, checksum: true }.frame_of(bytes.into());
        if !self.scenario.way.is_tunnelled_in() || !is_tunnel {
            return inner;
        }
        let this = this_node(self.scenario);
        let port = match self.scenario.mode {
            Mode::Vxlan => this.encap.vxlan_port,
            _ => this.encap.geneve_port,
        };
        let outer = Datagram {
            macs: (node::NEXT_HOP_MAC, node::UPLINK_MAC),
            addresses: (
                Topology::peer_address(Topology::peer_of(addresses.0), family),
                of_family(objects::node_addresses(0), family),
            ),
            ports: (own.u16(49152..), port),
            checksum: false,
        };
        tunnel(self.scenario.mode, family, this.encap.vni, outer, &inner)
    }
}

/// The address of that family; both have one.
fn of_family(addresses: Vec<IpAddr>, family: Underlay) -> IpAddr {
    let is_v4 = family == Underlay::Ipv4;
    let own = addresses.iter().find(|address| address.is_ipv4() == is_v4);
    own.or(addresses.first()).copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}
