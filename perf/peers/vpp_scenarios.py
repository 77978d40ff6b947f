"""The scenarios of vpp-memory.sh: how VPP is told to do each, what it is given, and what must come out.

The cluster is that of `overlane-perf pipeline`: peers with 16 pods each or so, 100 services of 10 backends.

    pg0: 10.244.1.10, a pod              VPP              pg1: 10.0.0.1, the router, and all peers behind it
"""

import random
import re
from dataclasses import dataclass, field
from typing import Callable, Optional

from scapy.all import IP, UDP, VXLAN, Ether
from scapy.contrib.geneve import GENEVE

from vpp_packets import OUTER, VNI, address, datagram, dotted, in_tunnel, mac, parts, read

PLUGINS = ("geneve", "vxlan", "cnat", "nat")
POD_IP, POD_MAC, PORT_MAC = "10.244.1.10", "02:00:00:00:01:0a", "02:00:00:00:01:01"
NODE_IP, NODE_MAC = "10.0.1.4", "02:00:00:00:01:04"
ROUTER_IP, ROUTER_MAC = "10.0.0.1", "02:00:00:00:01:05"
# Of every peer's gateway: the inner Ethernet header.
GATEWAY_MAC = "02:4f:0a:00:01:05"
SERVICES, BACKENDS, SERVICE_PORT, BACKEND_PORT = 100, 10, 80, 8080
FIRST_PEER, FIRST_NET, FIRST_SERVICE = address("172.16.0.1"), address("10.64.0.0"), address("10.96.0.10")
FIRST_HOST, HOSTS = address("198.18.0.0"), 1 << 17
POD, NODE = address(POD_IP), address(NODE_IP)
FROM_POD, FROM_ROUTER = mac(PORT_MAC) + mac(POD_MAC), mac(NODE_MAC) + mac(ROUTER_MAC)
SEED = 7


@dataclass
class Bed:
    """How many peers there are, room for how many flows, and the MAC addresses of VPP's ends of the tunnels."""

    peers: int
    room: int
    macs: list = field(default_factory=list)

    @property
    def endpoints(self):
        """Pods on them."""
        return endpoints(self.peers)


@dataclass(frozen=True)
class Scenario:
    """One row. `packets` makes one of each flow in random order; `opener` is, for answers, what they answer."""

    name: str
    enters: str
    leaves: str
    # Which of Overlane's scenarios is the same.
    overlane: str
    setup: Callable
    proof: Callable
    packets: Optional[Callable] = None
    opener: Optional["Scenario"] = None
    # Makes the answers of what the opener let out.
    answers: Optional[Callable] = None
    # Command, pattern of the number of flows in its answer, and how many of those there are by themselves.
    sessions: tuple = field(default=())

    def prove(self, given, seen, bed):
        """Looks at what came out, the frames `seen`, for the packets of the file `given`."""
        sent = read(given)
        text = ""
        # All of them by program, some by scapy as well.
        for number in range(0, len(seen), max(1, len(seen) // 200)):
            text = self.proof(Ether(sent[number]), Ether(seen[number]), bed)
        return text


def endpoints(peers):
    """A thousand pods; fewer where that were more than a peer has addresses for."""
    return min(1000, 200 * peers)


def endpoint(number, peers):
    return FIRST_NET + (number % peers << 8) + 10 + number // peers


def peer_of(pod):
    return pod - FIRST_NET >> 8


def shuffled(frames):
    """In random order, always the same one."""
    random.Random(SEED).shuffle(frames)
    return frames


def distinct(flows, draw):
    """So many different things, in the order in which they are drawn."""
    drawn = {}
    while len(drawn) < flows:
        drawn[draw()] = None
    return list(drawn)


def pod_flows(flows, bed):
    """Random pods of other nodes, and two random ports."""
    rng = random.Random(SEED)
    pod = lambda: endpoint(rng.randrange(bed.endpoints), bed.peers)
    return distinct(flows, lambda: (pod(), rng.randrange(1024, 65536), rng.randrange(1, 65536)))


def to_pods(flows, bed):
    return [datagram(FROM_POD, POD, pod, (port, to)) for pod, port, to in pod_flows(flows, bed)]


def from_pods(kind):
    def packets(flows, bed):
        rng = random.Random(SEED)
        drawn = pod_flows(flows, bed)
        inner = ((pod, datagram(from_peer(bed, pod), pod, POD, (port, to))) for pod, port, to in drawn)
        return [wrapped(kind, pod, frame, rng.randrange(49152, 65536)) for pod, frame in inner]

    return packets


def from_peer(bed, pod):
    """Inner MAC addresses: VPP's end of the tunnel to the peer that has the pod, and the peer."""
    return bed.macs[peer_of(pod)] + mac(GATEWAY_MAC)


def wrapped(kind, pod, inner, port):
    return in_tunnel(kind, FROM_ROUTER, FIRST_PEER + peer_of(pod), NODE, port, inner)


def to_services(flows, _bed):
    def of(flow):
        port = flow * 40507 % 64512
        return 1024 + port, FIRST_SERVICE + (flow // 64512 + port * 7919) % SERVICES

    return [datagram(FROM_POD, POD, service, (port, SERVICE_PORT)) for port, service in map(of, range(flows))]


def to_hosts(flows, _bed):
    rng = random.Random(SEED)
    draw = lambda: (FIRST_HOST + rng.randrange(HOSTS), rng.randrange(1024, 65536), rng.randrange(1, 65536))
    return [datagram(FROM_POD, POD, host, (port, to)) for host, port, to in distinct(flows, draw)]


def backend_answers(kind):
    def answers(seen, bed):
        rng, frames = random.Random(SEED), []
        for frame in seen:
            source, backend, port, to = parts(frame[OUTER:])
            inner = datagram(from_peer(bed, backend), backend, source, (to, port))
            frames.append(wrapped(kind, backend, inner, rng.randrange(49152, 65536)))
        return shuffled(frames)

    return answers


def host_answers(seen, _bed):
    swapped = ((to, at, there, here) for at, to, here, there in map(parts, seen))
    return shuffled([datagram(FROM_ROUTER, host, own, (there, here)) for host, own, there, here in swapped])


# What VPP is told.


def ports():
    return [
        f"create packet-generator interface pg0 hw-addr {PORT_MAC}",
        f"create packet-generator interface pg1 hw-addr {NODE_MAC}",
        "set interface state pg0 up",
        "set interface state pg1 up",
        "set interface ip address pg0 10.244.1.1/24",
        f"set interface ip address pg1 {NODE_IP}/16",
        f"set ip neighbor static pg0 {POD_IP} {POD_MAC}",
        f"set ip neighbor static pg1 {ROUTER_IP} {ROUTER_MAC}",
        f"ip route add 0.0.0.0/0 via {ROUTER_IP} pg1",
    ]


def pods_by_router(bed):
    return [f"ip route add {dotted(FIRST_NET + (peer << 8))}/24 via {ROUTER_IP} pg1" for peer in range(bed.peers)]


def tunnels(kind, bypass=False):
    def commands(bed):
        lines = []
        for peer in range(bed.peers):
            name, remote, net = f"{kind}_tunnel{peer}", dotted(FIRST_PEER + peer), FIRST_NET + (peer << 8)
            ends = f"local {NODE_IP} remote {remote} l3-mode" if kind == "geneve" else f"src {NODE_IP} dst {remote}"
            lines += [
                # Inner Ethernet, routed by VPP itself.
                f"create {kind} tunnel {ends} vni {VNI} decap-next node ethernet-input",
                f"set interface state {name} up",
                f"set interface unnumbered {name} use pg0",
                f"set ip neighbor static {name} {dotted(net + 1)} {GATEWAY_MAC}",
                f"ip route add {dotted(net)}/24 via {dotted(net + 1)} {name}",
            ]
        return lines + ([f"set interface ip {kind}-bypass pg1"] if bypass else [])

    return commands


def services(bed):
    lines = []
    for service in range(SERVICES):
        backends = (endpoint((service * BACKENDS + number) % bed.endpoints, bed.peers) for number in range(BACKENDS))
        to = " ".join(f"to ->{dotted(backend)} {BACKEND_PORT}" for backend in backends)
        lines.append(f"cnat translation add proto UDP vip {dotted(FIRST_SERVICE + service)} {SERVICE_PORT} {to} maglev")
    return lines


def cnat_source(_bed):
    return [
        f"set cnat snat-policy addr {NODE_IP}",
        "set cnat snat-policy if table include-v4 pg0",
        "set cnat snat-policy if-pfx",
        "set interface feature pg0 cnat-snat-ip4 arc ip4-unicast",
    ]


def nat44_source(bed):
    return [
        f"nat44 plugin enable sessions {bed.room}",
        "set interface nat44 in pg0 out pg1",
        f"nat44 add address {NODE_IP}",
    ]


def setup(scenario, bed):
    """All commands of a scenario."""
    return ports() + [line for part in scenario.setup for line in part(bed)]


def tunnel_macs(text):
    """Of the tunnels, as 'show hardware-interfaces' lists them: in its order, which is not that of their numbers."""
    found = re.findall(r"_tunnel(\d+) .*?Ethernet address ([0-9a-f:]{17})", text, re.DOTALL)
    return [mac(text) for _, text in sorted((int(number), text) for number, text in found)]


# What must come out.


class Wrong(Exception):
    """Something else came out."""


def require(condition, text):
    if not condition:
        raise Wrong(text)


def described(packet):
    return f"{packet[IP].src}:{packet[UDP].sport} > {packet[IP].dst}:{packet[UDP].dport}"


def sums_right(packet):
    """Are all checksums right, a missing outer UDP checksum aside?"""
    ip = packet[IP].copy()
    given = (ip.chksum, ip[UDP].chksum)
    del ip.chksum, ip[UDP].chksum
    again = IP(bytes(ip))
    return given[0] == again.chksum and given[1] in (0, again[UDP].chksum)


def tunnelled(kind):
    """In the tunnel to the peer that has the pod: the inner frame."""
    layer = GENEVE if kind == "geneve" else VXLAN

    def inner_of(packet):
        require(layer in packet and packet[layer].vni == VNI, f"not in {kind} {VNI}: {packet.summary()}")
        inner = Ether(bytes(packet[layer].payload))
        require(sums_right(packet), f"wrong outer checksum: {described(packet)}")
        wanted = dotted(FIRST_PEER + peer_of(address(inner[IP].dst)))
        is_right = (packet[IP].src, packet[IP].dst) == (NODE_IP, wanted)
        require(is_right, f"the tunnel goes {described(packet)}, not to {wanted}")
        return inner

    return inner_of


def unchanged(given, seen, what):
    """Has a router forwarded it, and no more?"""
    require(described(given) == described(seen), f"{what}: {described(given)} came out as {described(seen)}")
    require(seen[IP].ttl == given[IP].ttl - 1, f"{what}: its TTL is {seen[IP].ttl}")
    same = bytes(seen[UDP].payload) == bytes(given[UDP].payload)
    require(same and sums_right(seen), f"{what}: wrong checksum or payload")


def prove_forward(given, seen, _bed):
    unchanged(given, seen, "forwarded")
    require((seen.dst, seen.src) == (ROUTER_MAC, NODE_MAC), f"it is addressed to {seen.dst}")
    return f"{described(seen)}, TTL {seen[IP].ttl}"


def prove_encap(kind):
    def prove(given, seen, _bed):
        inner = tunnelled(kind)(seen)
        unchanged(given, inner, "inside")
        return f"{described(seen)} {kind} {VNI}: {described(inner)}"

    return prove


def prove_decap(kind):
    layer = GENEVE if kind == "geneve" else VXLAN

    def prove(given, seen, _bed):
        unchanged(Ether(bytes(given[layer].payload)), seen, "decapsulated")
        require((seen.dst, seen.src) == (POD_MAC, PORT_MAC), f"it is addressed to {seen.dst}")
        return f"{described(given)} {kind}: {described(seen)}"

    return prove


def is_backend(packet, service, bed):
    numbers = range((service - FIRST_SERVICE) * BACKENDS, (service - FIRST_SERVICE + 1) * BACKENDS)
    return address(packet[IP].dst) in {endpoint(number % bed.endpoints, bed.peers) for number in numbers}


def prove_service(kind):
    def prove(given, seen, bed):
        inner = tunnelled(kind)(seen) if kind else seen
        require(is_backend(inner, address(given[IP].dst), bed), f"{described(given)} went to {described(inner)}")
        require((inner[IP].src, inner[UDP].sport) == (POD_IP, given[UDP].sport), f"its source became {described(inner)}")
        require(inner[UDP].dport == BACKEND_PORT and sums_right(inner), f"wrong port or checksum: {described(inner)}")
        return f"{described(given)} became {described(inner)}" + (f" in {kind}" if kind else "")

    return prove


def prove_service_answer(given, seen, _bed):
    inner = Ether(bytes(given[GENEVE].payload))
    service = address(seen[IP].src) - FIRST_SERVICE
    require(0 <= service < SERVICES and seen[UDP].sport == SERVICE_PORT, f"it comes from {described(seen)}")
    require((seen[IP].dst, seen[UDP].dport) == (POD_IP, inner[UDP].dport), f"it goes to {described(seen)}")
    require(seen.dst == POD_MAC and sums_right(seen), f"wrong address or checksum: {described(seen)}")
    return f"{described(inner)} in geneve became {described(seen)}"


def prove_source(given, seen, _bed):
    require(seen[IP].src == NODE_IP and seen.dst == ROUTER_MAC, f"it leaves as {described(seen)}")
    require((seen[IP].dst, seen[UDP].dport) == (given[IP].dst, given[UDP].dport), f"it goes to {described(seen)}")
    require(sums_right(seen), f"wrong checksum: {described(seen)}")
    return f"{described(given)} became {described(seen)}"


def prove_source_answer(given, seen, _bed):
    require(seen[IP].dst == POD_IP and seen.dst == POD_MAC, f"it goes to {described(seen)}")
    require((seen[IP].src, seen[UDP].sport) == (given[IP].src, given[UDP].sport), f"it comes from {described(seen)}")
    require(sums_right(seen), f"wrong checksum: {described(seen)}")
    return f"{described(given)} became {described(seen)}"


CNAT_FLOWS = ("show cnat timestamp", r"Total timestamps (\d+)", 1)
NAT44_FLOWS = ("show nat44 summary", r"total sessions: (\d+)", 0)


def out(name, own, parts_of, packets, proof, sessions=()):
    return Scenario(name, "pg0", "pg1", own, parts_of, proof, packets=packets, sessions=sessions)


def into(name, own, parts_of, packets, proof):
    return Scenario(name, "pg1", "pg0", own, parts_of, proof, packets=packets)


def back(name, own, opener, answers, proof):
    return Scenario(name, "pg1", "pg0", own, opener.setup, proof, opener=opener, answers=answers, sessions=opener.sessions)


def scenarios():
    geneve, vxlan = tunnels("geneve"), tunnels("vxlan")
    service = out("dnat-geneve", "dnat-geneve", (geneve, services), to_services, prove_service("geneve"), CNAT_FLOWS)
    cnat = out("snat-out-cnat", "snat-out", (cnat_source,), to_hosts, prove_source, CNAT_FLOWS)
    nat44 = out("snat-out-nat44", "snat-out", (nat44_source,), to_hosts, prove_source, NAT44_FLOWS)
    return (
        out("forward", "native-out", (pods_by_router,), to_pods, prove_forward),
        out("geneve-encap", "geneve-encap", (geneve,), to_pods, prove_encap("geneve")),
        into("geneve-decap", "geneve-decap", (geneve,), from_pods("geneve"), prove_decap("geneve")),
        out("vxlan-encap", "vxlan-encap", (vxlan,), to_pods, prove_encap("vxlan")),
        into("vxlan-decap", "vxlan-decap", (vxlan,), from_pods("vxlan"), prove_decap("vxlan")),
        into("vxlan-decap-bypass", "vxlan-decap", (tunnels("vxlan", True),), from_pods("vxlan"), prove_decap("vxlan")),
        out("dnat", "", (pods_by_router, services), to_services, prove_service(""), CNAT_FLOWS),
        service,
        back("dnat-reply", "dnat-reply", service, backend_answers("geneve"), prove_service_answer),
        cnat,
        back("snat-in-cnat", "snat-in", cnat, host_answers, prove_source_answer),
        nat44,
        back("snat-in-nat44", "snat-in", nat44, host_answers, prove_source_answer),
    )


ALL = {scenario.name: scenario for scenario in scenarios()}
