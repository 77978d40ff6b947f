//! The uplink and the host port: opened when control has described the node and the interfaces are
//! there, closed and opened again when they change.

use overlane_api::{Mode, Node, WorkerId};
use overlane_bpf::{UplinkSettings, UplinkSteering};

use super::host_port::{HostPort, HostPortSettings};
use super::plan;
use super::process::{OpenPortRecord, Process, ProcessError};
use super::steering::Connections;
use crate::io::af_xdp::ethtool::Ethtool;
use crate::io::af_xdp::interface::{self, Interface};
use crate::io::af_xdp::{AfXdpPort, BindMode, Coalesce, OpenPort, RingSizes, Umem, UmemOptions};
use crate::packet::meta::Origin;
use crate::packet::pool::UmemId;
use crate::tables::node::{HostBinding, UplinkBinding};
use overlane_api::status::PortKind;

/// Chunks of a UMEM for a zero-copy uplink: its rings, and as many again under way.
const ZERO_COPY_CHUNKS: u32 = 8192;

/// The uplink as it is open.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) name: String,
    pub(super) ifindex: u32,
    pub(super) steering: UplinkSteering,
    pub(super) ports: Vec<OpenPortRecord>,
}

/// The host port as it is open. The pair goes when this is dropped.
#[derive(Debug)]
pub(super) struct HostAttachment {
    pub(super) pair: HostPort,
    pub(super) port: OpenPortRecord,
    /// Dropped with the port: detaches the program.
    pub(super) _steering: overlane_bpf::PortSteering,
}

/// Attaches the uplink's program; says how many queues the device has with it. A NIC may take more
/// into use when a program is attached (virtio_net does), and each must have its socket.
fn attach_steering(device: &Interface) -> Result<(UplinkSteering, u32), ProcessError> {
    let before = device.queues.rx.max(1);
    let steering = UplinkSteering::attach(&device.name, before)?;
    let queues = Interface::find(&device.name)?.queues.rx.max(1);
    if queues <= before {
        return Ok((steering, before));
    }
    drop(steering);
    Ok((UplinkSteering::attach(&device.name, queues)?, queues))
}

impl Process {
    /// Brings uplink and host port to what the node object asks for. What cannot be done now is
    /// a warning, and tried again when interfaces change.
    pub(super) fn configure_node(&mut self) {
        let Some(node) = self.compiler.node().cloned() else {
            self.close_uplink();
            self.close_host_port();
            return;
        };
        if self.uplink.as_ref().is_some_and(|uplink| uplink.name != node.uplink) {
            self.close_uplink();
        }
        if self.uplink.is_none() {
            match self.open_uplink(&node.uplink) {
                Ok(()) => self.clear_warning("uplink"),
                Err(error) => self.warn("uplink", error.to_string()),
            }
        }
        let wanted = HostPortSettings::of(&node);
        if self.host.as_ref().map(|host| host.pair.settings()) != wanted.as_ref() {
            self.close_host_port();
        }
        if let (None, Some(settings)) = (&self.host, wanted) {
            match self.open_host_port(settings) {
                Ok(()) => self.clear_warning("host port"),
                Err(error) => self.warn("host port", error.to_string()),
            }
        }
        self.steer();
    }

    fn open_uplink(&mut self, name: &str) -> Result<(), ProcessError> {
        let device = Interface::find(name)?;
        // An old kernel does not say, and copy mode works everywhere.
        let support = interface::xdp_support(name).ok().flatten();
        let zero_copy = support.is_some_and(|support| support.zero_copy);
        let zero_copy_umem = if zero_copy { Some(self.zero_copy_umem()?) } else { None };
        let (mut steering, queues) = attach_steering(&device)?;
        let opened = match self.open_queues(&device, queues, zero_copy_umem) {
            Err(error) if zero_copy => {
                tracing::warn!(interface = name, %error, "no zero-copy after all; copying");
                self.open_queues(&device, queues, None)?
            }
            opened => opened?,
        };
        for (port, queue, _) in &opened {
            steering.register_socket(*queue, port.fd())?;
        }
        steering.configure(&UplinkSettings::default())?;
        let zero_copy = opened.iter().all(|(port, ..)| port.is_zero_copy());
        let mut ports = Vec::new();
        let mut binding = UplinkBinding { mac: device.mac, ports: Vec::new() };
        for (port, queue, worker) in opened {
            let record = self.hand_to_worker(port, name, queue, worker, Origin::Uplink)?;
            binding.ports.push((worker, record.id));
            ports.push(record);
        }
        self.compiler.bind_uplink(binding);
        tracing::info!(interface = name, queues, zero_copy, "uplink attached");
        self.uplink =
            Some(Uplink { name: name.to_owned(), ifindex: device.index, steering, ports });
        Ok(())
    }

    /// Opens all queues of the uplink or none: what fails half way closes what was opened.
    fn open_queues(
        &self,
        device: &Interface,
        queues: u32,
        zero_copy_umem: Option<usize>,
    ) -> Result<Vec<(AfXdpPort, u32, WorkerId)>, ProcessError> {
        let name = device.name.as_str();
        let is_veth = device.driver.as_deref() == Some("veth");
        let coalesce = coalesce(device, is_veth);
        let takes_bursts = is_veth && device.queues.tx == 1;
        let mut opened = Vec::new();
        for queue in 0..queues {
            let worker = plan::uplink_worker(queue, self.workers.len());
            let mut options =
                if is_veth { OpenPort::veth(name, queue) } else { OpenPort::nic(name, queue) };
            options.fill_min = options.fill_min.max(self.plan.uplink_fill_min());
            let options = self.settings.sending(options, coalesce, takes_bursts);
            let umem = zero_copy_umem.map_or_else(|| self.umem_of(worker), |n| &self.umems[n]);
            opened.push((AfXdpPort::open(umem, &options)?, queue, worker));
        }
        Ok(opened)
    }

    /// The UMEM of zero-copy devices, made at the first one's coming: veths cannot share it.
    fn zero_copy_umem(&mut self) -> Result<usize, ProcessError> {
        let zero_copy = |umem: &Umem| umem.mode() == BindMode::ZeroCopy;
        if let Some(found) = self.umems.iter().position(zero_copy) {
            return Ok(found);
        }
        let number = self.umems.len();
        let umem = Umem::create(UmemOptions {
            id: UmemId(u8::try_from(number).unwrap_or(u8::MAX)),
            chunks: ZERO_COPY_CHUNKS,
            fill_extra: ZERO_COPY_CHUNKS / 2,
            rings: RingSizes { rx: 2048, tx: 1024, fill: 2048, completion: 1024 },
            mode: BindMode::ZeroCopy,
        })?;
        self.workers.add_umem(umem.depot());
        self.umems.push(umem);
        Ok(number)
    }

    pub(super) fn close_uplink(&mut self) {
        let Some(uplink) = self.uplink.take() else { return };
        self.compiler.bind_uplink(UplinkBinding::default());
        self.publish();
        // First the kernel gets its packets back, then the sockets close.
        drop(uplink.steering);
        for record in uplink.ports {
            self.take_from_worker(&record);
        }
        tracing::info!(interface = uplink.name, "uplink detached");
    }

    /// The uplink has another MAC: what leaves it carries that from now on.
    pub(super) fn readdress_uplink(&mut self, mac: overlane_api::MacAddr) {
        let binding = self.compiler.uplink();
        if binding.mac == mac || binding.ports.is_empty() {
            return;
        }
        tracing::info!(%mac, "the uplink has another MAC");
        let ports = binding.ports.clone();
        self.compiler.bind_uplink(UplinkBinding { mac, ports });
        self.resolve_all();
    }

    fn open_host_port(&mut self, settings: HostPortSettings) -> Result<(), ProcessError> {
        let pair = HostPort::create(settings)?;
        let name = pair.dataplane_interface();
        let worker = WorkerId(0);
        // The host's own stack leaves checksums and segmentation to the device as well.
        crate::io::af_xdp::offload::prepare_veth(&name, None)?;
        let options = self.settings.sending(OpenPort::veth(&name, 0), Coalesce::Tcp, true);
        let port = AfXdpPort::open(self.umem_of(worker), &options)?;
        let steering = overlane_bpf::PortSteering::attach(&name, 1)?;
        steering.register_socket(0, port.fd())?;
        let record = self.hand_to_worker(port, &name, 0, worker, Origin::Host)?;
        self.compiler.bind_host(Some(HostBinding {
            port: record.id,
            worker,
            mac: pair.host_mac(),
        }));
        self.host = Some(HostAttachment { pair, port: record, _steering: steering });
        Ok(())
    }

    pub(super) fn close_host_port(&mut self) {
        let Some(host) = self.host.take() else { return };
        self.compiler.bind_host(None);
        self.publish();
        self.take_from_worker(&host.port);
    }

    /// Tells the uplink's program what is ours, and the host which way its pods are.
    pub(super) fn steer(&mut self) {
        let Some(node) = self.compiler.node().cloned() else { return };
        let flat = node.mode == Mode::Flat;
        let pods = if flat { self.local_addresses() } else { Vec::new() };
        let connections = self.connections(&node);
        // What is the host's of them must find its way back.
        let has_host_port = self.host.is_some();
        let announced: Vec<_> = self.compiler.announced().iter().copied().collect();
        if let Some(uplink) = &mut self.uplink {
            let port = |mode| self.compiler.uses(mode);
            let settings = UplinkSettings {
                geneve_port: port(Mode::Geneve).then_some(node.encap.geneve_port),
                vxlan_port: port(Mode::Vxlan).then_some(node.encap.vxlan_port),
                answer_neighbors: flat,
                take_fragments: has_host_port && connections.may_come_in_fragments(),
            };
            let native = self.compiler.uses(Mode::Native);
            let prefixes = match (flat, native) {
                (true, _) => pods.clone(),
                (false, true) => node.pod_cidrs.clone(),
                (false, false) => Vec::new(),
            };
            let steered = uplink
                .steering
                .set_node_addresses(&node.addresses)
                .and_then(|()| uplink.steering.set_prefixes(&prefixes))
                .and_then(|()| uplink.steering.configure(&settings))
                .and_then(|()| connections.apply(&mut uplink.steering))
                .and_then(|()| uplink.steering.set_announced_addresses(&announced));
            if let Err(error) = steered {
                self.warn("steering", error.to_string());
            } else {
                self.clear_warning("steering");
            }
        }
        let mut routes = if flat { pods } else { node.cluster_cidrs };
        // Services are chosen here, for the host's own programs as for pods.
        routes.extend(node.service_cidrs);
        let routed = self.host.as_mut().map(|host| host.pair.set_routes(&routes));
        match routed {
            Some(Err(error)) => self.warn("host routes", error.to_string()),
            _ => self.clear_warning("host routes"),
        }
    }

    /// The connections that the uplink brings packets of.
    fn connections(&self, node: &Node) -> Connections {
        let (pods, _) = self.compiler.endpoint_counts();
        let external = self.compiler.snapshot().external;
        let external = external.addresses().map(|external| external.address);
        Connections::none()
            .with_egress(node, pods > 0, self.compiler.egress_rules(), external)
            .with_services(node, self.compiler.services().map(|(service, ..)| service))
    }

    /// Local endpoints' addresses as host prefixes.
    fn local_addresses(&self) -> Vec<ipnet::IpNet> {
        let names = self.compiler.local_names();
        names
            .filter_map(|name| self.compiler.endpoint(&name).map(|(e, _)| e.addresses.clone()))
            .flatten()
            .map(ipnet::IpNet::from)
            .collect()
    }

    pub(super) fn port_kind(origin: Origin) -> PortKind {
        match origin {
            Origin::Uplink | Origin::Tunnel => PortKind::Uplink,
            Origin::Host | Origin::Local => PortKind::Host,
            Origin::Endpoint => PortKind::Endpoint,
        }
    }
}

/// Which packets leave an uplink as segments of one. With several transmit queues the kernel would choose
/// one for them, and they could overtake those that leave alone. A veth that leaves checksums unfinished
/// would put them on the wire so, which other nodes refuse (`ethtool -K UPLINK tx off` there).
fn coalesce(device: &Interface, is_veth: bool) -> Coalesce {
    let unfinished = || {
        let features = Ethtool::open(&device.name).and_then(|ethtool| ethtool.features());
        features.map_or(true, |all| {
            all.iter().any(|feature| feature.active && feature.name.starts_with("tx-checksum-"))
        })
    };
    if device.queues.tx != 1 || is_veth && unfinished() {
        Coalesce::Nothing
    } else {
        Coalesce::TcpAndTunnels
    }
}
