//! Why a packet was not delivered: one reason each, counted per worker, readable by name.
//!
//! A reason answers "what would an operator do next?". Names follow the order of the packet's
//! path. Every early exit of a step names one.

/// Declares the reasons once: identifier, name on the wire, meaning, advice.
macro_rules! drop_reasons {
    ($($id:ident $name:literal $meaning:literal $advice:literal;)*) => {
        /// Why a packet was not delivered.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $meaning] $id,)*
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$id,)*];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name by which it is counted and shown.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$id => $name,)* }
            }

            /// What happened, one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$id => $meaning,)* }
            }

            /// What to do about it.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$id => $advice,)* }
            }
        }
    };
}

drop_reasons! {
    NotConfigured "not_configured" "The node has not been described yet."
        "Start overlane-control, or look at its log.";
    FrameTruncated "frame_truncated" "The frame ends before its headers do."
        "Look at the sender or the device: capture at that port.";
    UnknownEthertype "unknown_ethertype" "The frame carries neither IP nor ARP (a VLAN tag, say)."
        "Pods speak plain IP and ARP; take the tag off.";
    BadIpHeader "bad_ip_header" "The IP header is malformed: version, length or extension headers."
        "Look at the sender.";
    BadIpChecksum "bad_ip_checksum" "The IPv4 header checksum is wrong."
        "Look at the sender and what lies between.";
    Multicast "multicast" "Multicast and broadcast are not forwarded."
        "None: nodes and pods send some all the time.";
    NeighborIgnored "neighbor_ignored" "An ARP or ND message that asks nothing of us."
        "None: duplicate address detection and announcements end here.";
    SpoofedMac "spoofed_mac" "The pod sent with another source MAC than its own."
        "Find out what in the pod does this, or correct its overlane.io/mac.";
    SpoofedSource "spoofed_source" "The pod sent with another source address than its own."
        "Find out what in the pod does this, or correct its manifest.";
    PodToTunnelPort "pod_to_tunnel_port" "A pod tried to send tunnel packets to a node."
        "Treat it as an attack until explained.";
    OuterTruncated "outer_truncated" "The tunnel packet ends before its headers do."
        "Look at the peer and the underlay.";
    OuterBadIpChecksum "outer_bad_ip_checksum" "The outer IPv4 header checksum is wrong."
        "Look at the underlay.";
    OuterFragment "outer_fragment" "The tunnel packet was fragmented on its way."
        "Lower the pods' MTU or raise the underlay's.";
    OuterBadUdpLength "outer_bad_udp_length" "The outer UDP length does not fit the packet."
        "Look at the peer.";
    OuterBadUdpChecksum "outer_bad_udp_checksum" "The outer UDP checksum is wrong."
        "Kernel tunnels over veth leave it unfinished: ethtool -K DEVICE tx off at the sender.";
    OuterZeroUdpChecksumV6 "outer_zero_udp_checksum_v6" "The outer UDP checksum over IPv6 is zero."
        "Let the peer compute it, or set outer.acceptZeroUdpChecksum6.";
    TunnelUnknownPeer "tunnel_unknown_peer" "A tunnel packet from an address that is no peer's."
        "If it is one of the cluster's nodes, check its manifest; else treat it as an attack.";
    TunnelModeMismatch "tunnel_mode_mismatch" "A peer used another mode than the one configured for it."
        "Give both ends the same mode.";
    TunnelUnknownVni "tunnel_unknown_vni" "A tunnel packet of another VNI."
        "Give both ends the same vni.";
    GeneveBadVersion "geneve_bad_version" "Geneve version other than 0."
        "Look at the peer.";
    GeneveBadOptionLength "geneve_bad_option_length" "Geneve options run past their end."
        "Look at the peer.";
    GeneveUnknownCriticalOption "geneve_unknown_critical_option" "A critical Geneve option that is not known here."
        "The peer needs a feature this node lacks.";
    GeneveControlPacket "geneve_control_packet" "A Geneve control (OAM) packet."
        "None, unless the peer was meant to send data.";
    GeneveUnknownProtocol "geneve_unknown_protocol" "Geneve payload other than Ethernet."
        "Make the peer send Ethernet (0x6558).";
    VxlanNoVniFlag "vxlan_no_vni_flag" "VXLAN header without the I flag."
        "Look at the peer.";
    VxlanReservedBits "vxlan_reserved_bits" "VXLAN reserved bits are set, and strict mode is on."
        "The peer uses GBP or GPE: switch them off, or strict mode.";
    InnerTruncated "inner_truncated" "The packet inside the tunnel ends before its headers do."
        "Look at the peer.";
    InnerBadVersion "inner_bad_version" "The packet inside the tunnel is neither IPv4 nor IPv6."
        "Look at the peer.";
    InnerBadIpChecksum "inner_bad_ip_checksum" "The inner IPv4 header checksum is wrong."
        "Look at the peer.";
    InnerMulticast "inner_multicast" "Multicast or broadcast inside the tunnel."
        "None: it is not carried.";
    InnerSpoofedSource "inner_spoofed_source" "The inner source address does not belong to the sending peer."
        "Check that peer's podCIDRs; else treat it as an attack.";
    TunnelEcnCeOnNotEct "tunnel_ecn_ce_on_not_ect" "Congestion was marked on a packet that cannot carry the mark (RFC 6040)."
        "None: it stands for a congestion drop.";
    InnerNotHere "inner_not_here" "A peer sent a packet in the tunnel for a pod that is on another node."
        "The peer's tables are old: look at overlane-control there.";
    NoRoute "no_route" "No endpoint, peer or route has the destination."
        "Look for the pod in the manifests; check that the address exists.";
    TcpBadFlags "tcp_bad_flags" "A TCP packet with flags that no connection has."
        "A port scan does this; else look at the sender.";
    ServiceUnassigned "service_unassigned" "An address of the service range that no service has."
        "Look at the client's configuration: the service was deleted, perhaps.";
    ServiceFromOutside "service_from_outside" "From outside of the cluster to a service's cluster address."
        "Give the service a NodePort or a load balancer's address.";
    ServiceUnknownPort "service_unknown_port" "The service has no such port; the client was told."
        "Look at overlane service list for the ports it has.";
    ServiceNoBackend "service_no_backend" "The service has no endpoints; the client was told."
        "Look at overlane service list, and why its pods are not ready.";
    ServiceNoLocalBackend "service_no_local_backend" "The service has endpoints, but none where its traffic policy lets this packet go."
        "Run a backend on this node, or set the policy to Cluster.";
    ServiceSourceRange "service_source_range" "The client is not in the service's loadBalancerSourceRanges."
        "Add it there if it should be.";
    ServiceReturnUnknown "service_return_unknown" "By a peer for direct server return, but this node knows no such service with such a backend here."
        "After a change of the service nodes differ for a moment; else look at overlane service list here.";
    ServiceProtocol "service_protocol" "To a service's address, neither TCP, UDP, SCTP nor a ping."
        "Services forward TCP, UDP and SCTP only.";
    FlowUnknown "flow_unknown" "In the middle of a connection that this node knows nothing of."
        "None, after a restart or a long silence: the client connects again.";
    FlowTableFull "flow_table_full" "No room for another flow, and none that may be forgotten."
        "Raise flowCapacity, or look for a flood in overlane flow list.";
    FlowAmbiguous "flow_ambiguous" "Its answers could not be told from those of other flows."
        "Use more source ports at the client.";
    FragmentTooShort "fragment_too_short" "A first fragment that ends inside of its transport header, or a later one that begins there (RFC 1858)."
        "Treat it as an attack until explained.";
    FragmentFirstMissing "fragment_first_missing" "A later fragment; the first one of its packet did not come within a second."
        "Look for loss on the way to here, or for a flood of fragments.";
    FragmentsWaiting "fragments_waiting" "Too many fragments already wait for the first ones of their packets."
        "Look for a flood of fragments; else lower the sender's packet size below the MTU.";
    FragmentLastMissing "fragment_last_missing" "The first fragment of an SCTP packet whose ports are translated; the last one, which tells its length for the checksum, did not come within a second."
        "Look for loss on the way to here, or for a flood of fragments.";
    FragmentNotTranslated "fragment_not_translated" "A fragment of a packet that has no flow."
        "Look at why the first fragment was dropped; lower the sender's packet size below the MTU.";
    EgressDenied "egress_denied" "An egress rule denies the destination."
        "Look at the egress rules of the node's configuration.";
    EgressNoAddress "egress_no_address" "The node has no address of the packet's family to leave with."
        "Give the node one, or a gateway.";
    EgressGatewayUnknown "egress_gateway_unknown" "No node that holds the addresses of the pod's NAT gateway is known."
        "Look at overlane node list for the gateway's nodes.";
    EgressGatewayNative "egress_gateway_native" "The pod's NAT gateway is at a node that is reached without a tunnel, where the pod's address would be seen."
        "Give both nodes mode geneve or vxlan, or name this node among the gateway's nodes.";
    EgressProtocol "egress_protocol" "Neither TCP, UDP, SCTP nor a ping: its source cannot be translated."
        "Exempt the destination by nonMasqueradeCIDRs if it can answer pods.";
    SnatUnsolicited "snat_unsolicited" "To a port that pods' connections leave with, but no answer to any of them."
        "None: scans do this, and answers that come after their connection was forgotten.";
    SnatPortsExhausted "snat_ports_exhausted" "Every source port towards that destination is in use."
        "Look at overlane nat usage; add addresses to the gateway.";
    SnatPodLimit "snat_pod_limit" "The pod has as many connections out of the cluster as one pod may have."
        "Look at overlane nat usage for its name, or raise snat.maxPortsPerPod.";
    EndpointNotReady "endpoint_not_ready" "The destination pod's interface is not attached yet."
        "Look at overlane endpoint list.";
    TtlExpired "ttl_expired" "TTL or hop limit ran out here."
        "A traceroute does this; else look for a loop.";
    PacketTooBig "packet_too_big" "Larger than the way out carries, and may not be fragmented."
        "The sender was told by ICMP; check the pods' MTU if it goes on.";
    FragmentationFailed "fragmentation_failed" "Too large, and there were no frames to fragment it into."
        "See frames_exhausted.";
    NeighborUnresolved "neighbor_unresolved" "The underlay's next hop does not answer ARP or ND."
        "Look at ip route get and ip neigh for the peer.";
    EncapNoAddress "encap_no_address" "No address of the underlay's family at this node or the peer."
        "Give both nodes addresses of that family.";
    HostUnavailable "host_unavailable" "The packet is the host's, and there is no host port."
        "Configure hostPort.";
    PortGone "port_gone" "The way out was removed while the packet was inside."
        "None: a pod or device has just gone.";
    TxRingFull "tx_ring_full" "The way out takes no more: the receiver or the kernel is too slow."
        "Look at the receiving pod, or give it more CPU.";
    HandoffFull "handoff_full" "The queue to the worker that owns the destination is full."
        "That worker is overloaded: spread its pods.";
    FramesExhausted "frames_exhausted" "No free frame was left for an answer or a copy."
        "Raise --memory-budget-mb, or lower --max-endpoints.";
    HoldFull "hold_full" "Too many packets already wait for a next hop."
        "See neighbor_unresolved.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_says_what_to_do() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert!(reason.meaning().ends_with('.') && reason.advice().ends_with('.'));
        }
    }
}
