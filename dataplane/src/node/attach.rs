//! Local endpoints' interfaces: attached when they are there, detached when they go, attached again
//! when they come back.

use overlane_api::{Attachment, MacAddr, WorkerId};
use overlane_bpf::PortSteering;

use super::plan;
use super::process::{OpenPortRecord, Process, ProcessError};
use crate::io::af_xdp::interface::Interface;
use crate::io::af_xdp::offload::{self, OffloadsReport};
use crate::io::af_xdp::{AfXdpPort, Coalesce, OpenPort};
use crate::packet::meta::Origin;
use crate::packet::verdict::PortId;
use crate::tables::compile::Binding;

/// What is known of a local endpoint's interface.
#[derive(Debug)]
pub(super) struct EndpointAttachment {
    pub(super) interface: String,
    pub(super) home: WorkerId,
    pub(super) state: State,
}

/// Is it attached?
#[derive(Debug)]
pub(super) enum State {
    /// Not yet, and why.
    Waiting(String),
    /// It is.
    Attached(Box<Attached>),
}

/// An attached interface.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) ports: Vec<OpenPortRecord>,
    pub(super) mac: MacAddr,
    pub(super) mtu: u32,
    /// Offloads that were switched off here, by ethtool's name.
    pub(super) offloads_off: Vec<String>,
    /// What is not as it should be.
    pub(super) complaint: Option<String>,
    /// Dropped with the ports: detaches the program.
    _steering: PortSteering,
}

impl Process {
    /// Attaches a local endpoint, or refreshes what is attached. Says what is in the way.
    pub(super) fn attach_endpoint(&mut self, name: &str) -> Option<String> {
        let (endpoint, _) = self.compiler.endpoint(name)?;
        let Attachment::Local { interface, mac, worker } = endpoint.attachment.clone() else {
            return None;
        };
        let mtu = self.compiler.node().map(|node| node.pod_mtu)?;
        if self.attached_as(name, &interface, mac, mtu) {
            return None;
        }
        let home = match self.endpoints.get(name) {
            Some(known) => worker.unwrap_or(known.home),
            None => worker.unwrap_or_else(|| {
                plan::least_loaded(self.endpoints.values().map(|e| e.home), self.workers.len())
            }),
        };
        let home = if home.index() < self.workers.len() { home } else { WorkerId(0) };
        self.detach_endpoint(name);
        let state = match self.open_endpoint(name, &interface, mac, mtu, home) {
            Ok(attached) => State::Attached(Box::new(attached)),
            Err(error) => State::Waiting(error.to_string()),
        };
        let reason = match &state {
            State::Waiting(reason) => Some(format!("endpoint {name}: {reason}")),
            State::Attached(attached) => {
                attached.complaint.as_ref().map(|c| format!("endpoint {name}: {c}"))
            }
        };
        self.endpoints.insert(name.to_owned(), EndpointAttachment { interface, home, state });
        reason
    }

    /// Is the endpoint attached just so already? Then its binding is told anew, for the tables
    /// forget it when the object changes.
    fn attached_as(&mut self, name: &str, interface: &str, mac: Option<MacAddr>, mtu: u16) -> bool {
        let Some(EndpointAttachment { interface: known, home, state: State::Attached(attached) }) =
            self.endpoints.get(name)
        else {
            return false;
        };
        let same = known == interface
            && mac.is_none_or(|mac| mac == attached.mac)
            && attached.mtu == u32::from(mtu);
        if same {
            let binding = attached.binding(*home);
            self.compiler.bind_endpoint(name, binding);
        }
        same
    }

    fn open_endpoint(
        &mut self,
        name: &str,
        interface: &str,
        mac: Option<MacAddr>,
        mtu: u16,
        home: WorkerId,
    ) -> Result<Attached, ProcessError> {
        let (device, report) = look(interface, u32::from(mtu))?;
        let found = report.peer.as_ref().map(|peer| peer.mac);
        let mac = mac.or(found).ok_or_else(|| ProcessError::NoMac(interface.to_owned()))?;
        let complaint = complaint(&report, &device);
        let queues = device.queues.rx.max(1);
        let steering = PortSteering::attach(interface, queues)?;
        // All or none: what fails half way closes what was opened.
        let mut opened = Vec::new();
        for queue in 0..queues {
            let fill_min = self.plan.fill_min;
            let options = OpenPort { fill_min, ..OpenPort::veth(interface, queue) };
            let options = self.settings.sending(options, Coalesce::Tcp, device.queues.tx == 1);
            let port = AfXdpPort::open(self.umem_of(home), &options)?;
            steering.register_socket(queue, port.fd())?;
            opened.push(port);
        }
        let count = u16::try_from(queues).unwrap_or(u16::MAX);
        let first = self.numbers.take(count).ok_or(ProcessError::NoPortNumber)?;
        let numbered = opened.into_iter().zip(0_u16..).map(|(port, queue)| {
            let id = PortId(first.0 + queue);
            self.hand_over(port, id, interface, u32::from(queue), home, Origin::Endpoint)
        });
        let ports = numbered.collect();
        let offloads_off = switched_off(&report);
        let attached = Attached {
            ports,
            mac,
            mtu: u32::from(mtu),
            offloads_off,
            complaint,
            _steering: steering,
        };
        let binding = attached.binding(home);
        self.compiler.bind_endpoint(name, binding);
        tracing::info!(endpoint = name, interface, %home, %mac, queues, "endpoint attached");
        Ok(attached)
    }

    /// Lets go of an endpoint's interface.
    pub(super) fn detach_endpoint(&mut self, name: &str) {
        let Some(attachment) = self.endpoints.remove(name) else { return };
        self.compiler.bind_endpoint(name, None);
        if let State::Attached(attached) = attachment.state {
            self.publish();
            let ids = attached.ports.iter().map(|record| record.id);
            self.workers.remove_ports(attachment.home, ids);
            for record in &attached.ports {
                self.numbers.give(record.id, 1);
            }
            tracing::info!(endpoint = name, interface = attachment.interface, "endpoint detached");
        }
    }

    /// An interface has come or changed: attaches whoever waits for it, and looks again at whoever
    /// is attached to it.
    pub(super) fn interface_came(&mut self, interface: &str) {
        let names = self.endpoints.iter().filter(|(_, e)| e.interface == interface);
        for name in names.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let attached =
                self.endpoints.get(&name).is_some_and(|e| matches!(e.state, State::Attached(_)));
            let reason =
                if attached { self.refresh_endpoint(&name) } else { self.attach_endpoint(&name) };
            if let Some(reason) = reason {
                tracing::warn!(reason, "cannot attach");
            }
        }
    }

    /// Tries to attach one endpoint that waits although its interface is there. Says whether there
    /// was one, and whether it is attached now.
    pub(super) fn retry_endpoint(&mut self) -> (bool, bool) {
        let waits = |(name, e): &(&String, &EndpointAttachment)| {
            let here = || self.links.by_name(&e.interface).is_some();
            (matches!(e.state, State::Waiting(_)) && here()).then(|| (*name).clone())
        };
        let mut waiting = self.endpoints.iter().filter_map(|entry| waits(&entry));
        let first = waiting.next();
        let next = waiting.chain(first.clone()).find(|name| *name > self.retried).or(first);
        let Some(name) = next else { return (false, false) };
        self.attach_endpoint(&name);
        let worked =
            self.endpoints.get(&name).is_some_and(|e| matches!(e.state, State::Attached(_)));
        self.retried = name;
        (true, worked)
    }

    /// Looks again at an attached endpoint's interface: is it up, which MAC does the pod have, did
    /// its offloads come back? Says what is in the way.
    fn refresh_endpoint(&mut self, name: &str) -> Option<String> {
        let (endpoint, _) = self.compiler.endpoint(name)?;
        let Attachment::Local { mac, .. } = endpoint.attachment else { return None };
        let known = self.endpoints.get_mut(name)?;
        let State::Attached(attached) = &mut known.state else { return None };
        match look(&known.interface, attached.mtu) {
            Ok((device, report)) => {
                let found = report.peer.as_ref().map(|peer| peer.mac);
                attached.mac = mac.or(found).unwrap_or(attached.mac);
                attached.complaint = complaint(&report, &device);
                let switched_off = switched_off(&report).into_iter();
                let new = switched_off.filter(|f| !attached.offloads_off.contains(f));
                attached.offloads_off.extend(new.collect::<Vec<_>>());
            }
            Err(error) => attached.complaint = Some(error.to_string()),
        }
        let complaint = attached.complaint.as_ref().map(|c| format!("endpoint {name}: {c}"));
        let binding = attached.binding(known.home);
        self.compiler.bind_endpoint(name, binding);
        complaint
    }

    /// An interface has gone: whoever was attached to it waits.
    pub(super) fn interface_went(&mut self, interface: &str) {
        let names = self.endpoints.iter().filter(|(_, e)| e.interface == interface);
        for name in names.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let home = self.endpoints.get(&name).map(|e| e.home).unwrap_or_default();
            self.detach_endpoint(&name);
            let state = State::Waiting(format!("interface {interface} is gone"));
            let interface = interface.to_owned();
            self.endpoints.insert(name, EndpointAttachment { interface, home, state });
        }
    }
}

impl Attached {
    fn binding(&self, home: WorkerId) -> Option<Binding> {
        let first = self.ports.first()?;
        Some(Binding {
            port: first.id,
            queues: u16::try_from(self.ports.len()).unwrap_or(1),
            worker: home,
            mac: self.mac,
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
        })
    }
}

/// An interface as it is, prepared for AF_XDP as far as that is possible.
fn look(interface: &str, mtu: u32) -> Result<(Interface, OffloadsReport), ProcessError> {
    Ok((Interface::find(interface)?, offload::prepare_veth(interface, Some(mtu))?))
}

fn switched_off(report: &OffloadsReport) -> Vec<String> {
    let peer = report.peer.iter().flat_map(|peer| peer.switched_off.iter());
    let mut names: Vec<String> = peer.cloned().collect();
    names.extend(report.host_switched_off.iter().map(|name| format!("{name} (host side)")));
    names
}

fn complaint(report: &OffloadsReport, device: &Interface) -> Option<String> {
    if !device.is_up {
        return Some(format!("interface {} is down: ip link set {} up", device.name, device.name));
    }
    match &report.peer {
        None => Some(
            "the pod's namespace was not found: in the pod, run ethtool -K eth0 tx off and set the MTU"
                .into(),
        ),
        Some(peer) if !peer.still_on.is_empty() => Some(format!(
            "{} cannot be switched off on the pod's {}; unfinished checksums are finished here",
            peer.still_on.join(", "),
            peer.name
        )),
        Some(_) => None,
    }
}
