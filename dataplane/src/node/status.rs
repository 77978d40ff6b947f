//! What the process says about itself.

use std::collections::BTreeMap;

use overlane_api::status::{
    DropCount, DropReport, EndpointStatus, NodeSummary, PeerStatus, PortStatus, Status, UmemStatus,
    WorkerStatus,
};
use overlane_api::{MacAddr, WorkerId};

use super::attach::State;
use super::process::{OpenPortRecord, Process};
use crate::io::KernelDrops;
use crate::io::af_xdp::plan::kernel_bytes_per_socket;
use crate::packet::drop::DropReason;
use crate::packet::frame::CHUNK;
use crate::stats::counters::Counters;

impl Process {
    pub(super) fn status(&self) -> Status {
        let (local_endpoints, remote_endpoints) = self.compiler.endpoint_counts();
        let (services, egress_rules) = self.compiler.service_counts();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            polling: self.settings.polling.to_string(),
            transmit: self.workers.transmit().to_string(),
            node: self.compiler.node().map(|node| NodeSummary {
                name: node.name.clone(),
                mode: node.mode,
                vni: node.encap.vni,
                uplink: node.uplink.clone(),
                addresses: node.addresses.clone(),
                underlay_mtu: node.underlay_mtu,
                pod_mtu: node.pod_mtu,
            }),
            generation: self.publisher.generation(),
            peers: self.compiler.peer_count(),
            local_endpoints,
            remote_endpoints,
            services,
            egress_rules,
            flows: self.worker_ids().map(|id| self.workers.counters(id).flows).sum(),
            table_bytes: self.compiler.snapshot().bytes(),
            workers: self.worker_ids().map(|id| self.worker_status(id)).collect(),
            ports: self.open_ports().map(port_status).collect(),
            umems: self.umem_statuses(),
            warnings: self.all_warnings(),
        }
    }

    fn worker_ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.workers.len()).filter_map(|n| u8::try_from(n).ok()).map(WorkerId)
    }

    fn all_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.warnings.values().cloned().collect();
        for (name, endpoint) in &self.endpoints {
            match &endpoint.state {
                State::Waiting(why) => warnings.push(format!("endpoint {name}: {why}")),
                State::Attached(attached) => {
                    warnings
                        .extend(attached.complaint.iter().map(|c| format!("endpoint {name}: {c}")));
                }
            }
        }
        warnings
    }

    fn worker_status(&self, id: WorkerId) -> WorkerStatus {
        let counters = self.workers.counters(id);
        WorkerStatus {
            worker: id,
            cpu: self.settings.worker_cpus.get(id.index()).copied(),
            received: counters.received,
            generated: counters.generated,
            sent: counters.sent,
            handed_over: counters.handed_over,
            dropped: dropped(&counters),
            to_host: counters.to_host,
            held: counters.held,
            copied: counters.copied,
            coalesced: counters.coalesced,
            vectors: counters.vectors,
            sleeps: counters.sleeps,
            residual: counters.residual(),
        }
    }

    /// All open ports: the uplink's, the host port, the endpoints'.
    fn open_ports(&self) -> impl Iterator<Item = &OpenPortRecord> {
        let uplink = self.uplink.iter().flat_map(|uplink| uplink.ports.iter());
        let host = self.host.iter().map(|host| &host.port);
        let endpoints = self.endpoints.values().flat_map(|endpoint| match &endpoint.state {
            State::Attached(attached) => attached.ports.as_slice(),
            State::Waiting(_) => &[],
        });
        uplink.chain(host).chain(endpoints)
    }

    fn umem_statuses(&self) -> Vec<UmemStatus> {
        let of = |umem: &crate::io::af_xdp::Umem| {
            let ports = self.open_ports().filter(|port| port.umem == umem.id().0);
            let (sockets, held) =
                ports.fold((0_u32, 0), |(n, held), port| (n + 1, held + port.view.read().held));
            let chunks = u32::try_from(umem.depot().chunks()).unwrap_or(u32::MAX);
            // The UMEM's own socket counts as well.
            let kernel = kernel_bytes_per_socket(chunks) * u64::from(sockets + 1);
            UmemStatus {
                umem: umem.id().0,
                chunk_bytes: u32::try_from(CHUNK).unwrap_or(u32::MAX),
                chunks,
                free: chunks.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX)),
                huge_pages: umem.is_on_huge_pages(),
                sockets,
                bytes: u64::from(chunks) * CHUNK as u64,
                kernel_bytes: kernel,
            }
        };
        self.umems.iter().map(of).collect()
    }

    pub(super) fn endpoint_statuses(&self) -> Vec<EndpointStatus> {
        let of = |(name, endpoint): (&String, &super::attach::EndpointAttachment)| {
            let addresses =
                self.compiler.endpoint(name).map(|(e, _)| e.addresses.clone()).unwrap_or_default();
            let mut status = EndpointStatus {
                name: name.clone(),
                addresses,
                interface: endpoint.interface.clone(),
                mac: None::<MacAddr>,
                worker: endpoint.home,
                state: String::new(),
                mtu: None,
                offloads_off: Vec::new(),
                rx_packets: 0,
                tx_packets: 0,
                checksums_finished: 0,
            };
            match &endpoint.state {
                State::Waiting(why) => status.state.clone_from(why),
                State::Attached(attached) => {
                    status.state = attached.complaint.clone().unwrap_or_else(|| "ready".to_owned());
                    status.mac = Some(attached.mac);
                    status.mtu = Some(attached.mtu);
                    status.offloads_off.clone_from(&attached.offloads_off);
                    for port in &attached.ports {
                        let counts = port.view.read();
                        status.rx_packets += counts.rx_packets;
                        status.tx_packets += counts.tx_packets;
                        status.checksums_finished += counts.finished_checksums;
                    }
                }
            }
            status
        };
        self.endpoints.iter().map(of).collect()
    }

    pub(super) fn peer_statuses(&self) -> Vec<PeerStatus> {
        let mut peers: Vec<PeerStatus> = self
            .compiler
            .peers()
            .map(|(peer, _, entry)| PeerStatus {
                name: peer.name.clone(),
                addresses: peer.addresses.clone(),
                pod_cidrs: peer.pod_cidrs.clone(),
                mode: peer.mode,
                next_hop: self.next_hop_of(&peer.name),
                mtu: entry.map_or(0, |entry| entry.mtu),
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    pub(super) fn drop_report(&self) -> DropReport {
        let mut sum = [0_u64; DropReason::COUNT];
        for id in self.worker_ids() {
            let counters = self.workers.counters(id);
            sum.iter_mut().zip(counters.dropped).for_each(|(sum, n)| *sum += n);
        }
        let reasons = DropReason::ALL.iter().filter(|reason| sum[**reason as usize] > 0);
        let reasons = reasons.map(|reason| DropCount {
            reason: reason.name().to_owned(),
            packets: sum[*reason as usize],
            meaning: reason.meaning().to_owned(),
            advice: reason.advice().to_owned(),
        });
        let mut kernel = BTreeMap::new();
        for port in self.open_ports() {
            for (name, count) in kernel_drops(&port.view.read().kernel) {
                *kernel.entry(name).or_insert(0) += count;
            }
        }
        DropReport { reasons: reasons.collect(), kernel }
    }
}

fn dropped(counters: &Counters) -> BTreeMap<String, u64> {
    let of = |reason: &DropReason| (reason.name().to_owned(), counters.dropped[*reason as usize]);
    DropReason::ALL.iter().map(of).filter(|(_, count)| *count > 0).collect()
}

/// The kernel's counters by the names of `struct xdp_statistics`, and `tx_dropped`; those that counted
/// anything.
fn kernel_drops(drops: &KernelDrops) -> BTreeMap<String, u64> {
    let named = [
        ("rx_dropped", drops.rx_dropped),
        ("rx_ring_full", drops.rx_ring_full),
        ("rx_fill_ring_empty_descs", drops.rx_fill_ring_empty),
        ("rx_invalid_descs", drops.rx_invalid),
        ("tx_invalid_descs", drops.tx_invalid),
        ("tx_dropped", drops.tx_dropped),
    ];
    let counted = named.into_iter().filter(|(_, count)| *count > 0);
    counted.map(|(name, count)| (name.to_owned(), count)).collect()
}

fn port_status(port: &OpenPortRecord) -> PortStatus {
    let counts = port.view.read();
    PortStatus {
        interface: port.interface.clone(),
        kind: Process::port_kind(port.origin),
        queue: port.queue,
        worker: port.worker,
        zero_copy: port.zero_copy,
        umem: port.umem,
        rx_packets: counts.rx_packets,
        tx_packets: counts.tx_packets,
        kernel_drops: kernel_drops(&counts.kernel),
    }
}
