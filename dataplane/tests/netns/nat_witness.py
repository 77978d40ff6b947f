"""The same packets through two NATs, and what comes out compared field by field.

    nat_witness.py CONFIG SEED FLOWS

CONFIG is JSON: namespaces, addresses and MACs of both sides (21-kernel-nat.sh writes it). Each random flow
is run twice: from the pod behind the first node, and from the one behind the second, with the same bytes
but for the pod's and node's own addresses. Whatever arrives, at the pods or outside, must be the same on
both sides: who gets it, every field of every header, payload, and what ICMP errors quote. Only the port
(or identifier) that a NAT chose may differ. All checksums must be right. Where the two differ on purpose
the difference itself is checked (`differs_on_purpose`).

Prints one line of JSON: how many packets of which kind were compared, and what differed. Fails when
anything did.
"""

import ctypes
import ipaddress
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import Counter, defaultdict

from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, Raw, conf

conf.verb = 0
FIN, SYN, RST, ACK, PSH = 1, 2, 4, 16, 8
ERRORS = {
    4: [(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 1300), (3, 13, 0), (11, 0, 0), (11, 1, 0), (12, 0, 20 << 24)],
    6: [(1, 0, 0), (1, 4, 0), (2, 0, 1300), (3, 0, 0), (3, 1, 0), (4, 0, 40)],
}


def checksum(data, start=0):
    if len(data) % 2:
        data += b"\0"
    total = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Port:
    """An interface of a namespace, by its frames."""

    def __init__(self, namespace, interface, gateway):
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        setns = ctypes.CDLL(None, use_errno=True).setns
        if setns(there, 0x40000000):
            raise OSError(ctypes.get_errno(), f"namespace {namespace}")
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.socket.bind((interface, 0))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self.socket.setblocking(False)
            self.mac = self.socket.getsockname()[4]
        finally:
            setns(own, 0x40000000)
        self.gateway = bytes.fromhex(gateway.replace(":", ""))

    def send(self, ip):
        kind = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
        for _ in range(200):
            try:
                return self.socket.send(self.gateway + self.mac + kind + ip)
            except (BlockingIOError, OSError) as error:
                if isinstance(error, BlockingIOError) or error.errno == 105:
                    time.sleep(0.001)
                else:
                    raise
        raise TimeoutError("the interface takes nothing")

    def received(self):
        while True:
            try:
                frame, (_, _, kind, _, _) = self.socket.recvfrom(65536)
            except BlockingIOError:
                return
            # Not what was sent here itself.
            if kind != 4 and frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
                yield frame[14:]


class Packet:
    """An IP packet taken apart; `whole` is false of what an error quotes."""

    def __init__(self, data, whole=True):
        self.faults, self.data, self.type, self.sum = [], data, None, b""
        if data[0] >> 4 == 4:
            header = (data[0] & 15) * 4
            self.tag = struct.unpack("!H", data[4:6])[0]
            length = struct.unpack("!H", data[2:4])[0]
            self.source, self.destination = (str(ipaddress.ip_address(data[at:at + 4])) for at in (12, 16))
            self.protocol = data[9]
            self.ip = {"tos": data[1], "length": length, "fragment": data[6:8].hex(), "ttl": data[8],
                       "options": data[20:header].hex()}
            if checksum(data[:header]) != 0xFFFF:
                self.faults.append("IP checksum")
            body = data[header:length] if whole else data[header:]
            pseudo = checksum(data[12:20] + struct.pack("!HH", self.protocol, len(body)))
        else:
            first = struct.unpack("!I", data[:4])[0]
            self.tag = first & 0xFFFFF
            length = struct.unpack("!H", data[4:6])[0]
            self.source, self.destination = (str(ipaddress.ip_address(data[at:at + 16])) for at in (8, 24))
            self.protocol = data[6]
            self.ip = {"tos": first >> 20 & 0xFF, "length": length, "ttl": data[7]}
            body = data[40:40 + length] if whole else data[40:]
            pseudo = checksum(data[8:40] + struct.pack("!IHBB", len(body), 0, 0, self.protocol))
        self.quoted, self.ports, self.rest = None, None, b""
        if self.protocol in (6, 17) and len(body) >= 8:
            self.transport(body, pseudo, whole)
        elif self.protocol in (1, 58) and len(body) >= 8:
            self.icmp(body, pseudo, whole)
        else:
            self.rest = body

    def transport(self, body, pseudo, whole):
        self.ports = struct.unpack("!HH", body[:4])
        at = 16 if self.protocol == 6 else 6
        self.none = self.protocol == 17 and body[6:8] == b"\0\0"
        if whole and not self.none and checksum(body, pseudo) != 0xFFFF:
            self.faults.append("checksum of the upper layer")
        # The checksum is judged above, or by `quotes`; it differs as the addresses do.
        self.sum = body[at:at + 2] if len(body) >= at + 2 else b""
        self.rest = body[4:at] + body[at + 2:]

    def icmp(self, body, pseudo, whole):
        start = pseudo if self.protocol == 58 else 0
        if whole and checksum(body, start) != 0xFFFF:
            self.faults.append("ICMP checksum")
        self.type = body[:2].hex()
        self.sum = body[2:4]
        is_error = body[0] in (3, 11, 12) if self.protocol == 1 else body[0] < 128
        if is_error:
            self.quoted = Packet(body[8:], whole=False)
            self.rest = body[4:8]
            self.faults += [f"quoted {fault}" for fault in self.quoted.faults]
        else:
            self.ports = struct.unpack("!H", body[4:6])
            self.rest = body[6:]


class Side:
    """A node with its pod, and what both are called."""

    def __init__(self, name, config):
        self.name = name
        self.config = config
        self.pod = Port(config["namespace"], "eth0", config["gateway"])

    def own(self, what, family):
        return self.config[f"{what}{family}"]

    def canonical(self, address):
        for what in ("pod", "node"):
            for family in (4, 6):
                if address == self.own(what, family):
                    return what.upper()
        return address

    def describe(self, packet, chosen):
        """Every field; a port that this side chose is called so."""
        ends = (self.canonical(packet.source), self.canonical(packet.destination))
        if packet.ports and len(packet.ports) == 1:
            ports = "CHOSEN" if "NODE" in ends and packet.ports[0] in chosen else packet.ports
        else:
            ports = packet.ports and tuple(
                "CHOSEN" if end == "NODE" and port in chosen else port for end, port in zip(ends, packet.ports))
        said = {"source": ends[0], "destination": ends[1], "protocol": packet.protocol, "ports": ports, "rest": packet.rest.hex(), **packet.ip}
        if packet.quoted:
            said["quoted"] = self.describe(packet.quoted, chosen)
        if packet.type:
            said["type"] = packet.type
        return said


class Flow:
    """One flow, as it is on both sides."""

    def __init__(self, number, rng, config):
        self.number = number
        self.family = rng.choice((4, 6))
        self.kind = rng.choice(("snat", "snat", "snat", "vip", "nodeport", "local"))
        self.protocol = rng.choice(("tcp", "udp", "icmp") if self.kind == "snat" else ("tcp", "udp"))
        # The same for both sides, and no other flow's.
        self.port = 1024 + (number * 7919 + rng.randrange(50)) % 64000
        remotes = config["remotes"][str(self.family)]
        self.remote = rng.choice(remotes)
        self.remote_port = rng.randrange(1024, 65536)
        self.tos, self.ttl = rng.choice((0, 0, 0x28, 0xB8)), rng.randrange(20, 250)
        self.zero = self.family == 4 and self.protocol == "udp" and rng.random() < 0.2
        self.seqs = [rng.randrange(1 << 32), rng.randrange(1 << 32)]
        self.window = rng.randrange(1, 65536)
        # By side: what the server end sees of the client; ports that the NAT chose. And by whether the
        # client sent it: the last packet as it was sent, and as it arrived.
        self.seen, self.chosen = {}, defaultdict(set)
        self.latest, self.arrived = {}, {}

    def from_pod(self, by_client):
        return by_client == (self.kind in ("snat", "vip"))

    def client(self, side):
        if self.kind in ("snat", "vip"):
            return side.own("pod", self.family), self.port
        return self.remote, self.port

    def asked(self, side, config):
        if self.kind == "snat":
            return self.remote, self.remote_port
        if self.kind == "vip":
            return config["vip"][str(self.family)], 80
        return side.own("node", self.family), 30080 if self.kind == "nodeport" else 30081

    def server(self, side, config):
        if self.kind == "vip":
            return config["remotes"][str(self.family)][0], 8080
        if self.kind == "snat":
            return self.remote, self.remote_port
        return side.own("pod", self.family), 8080

    def build(self, side, config, by_client, flags, payload, tag, ttl=None):
        if by_client:
            (source, sport), (destination, dport) = self.client(side), self.asked(side, config)
        else:
            (source, sport), (destination, dport) = self.server(side, config), self.seen[side.name]
        ttl = ttl or self.ttl
        if self.family == 4:
            ip = IP(src=source, dst=destination, id=tag, ttl=ttl, tos=self.tos, flags="DF")
        else:
            ip = IPv6(src=source, dst=destination, fl=tag, hlim=ttl, tc=self.tos)
        if self.protocol == "tcp":
            options = [("MSS", 1300), ("SAckOK", b""), ("WScale", 7)] if flags & SYN else [("NOP", None)] * 2
            own = 0 if by_client else 1
            upper = TCP(sport=sport, dport=dport, flags=flags, seq=self.seqs[own], window=self.window,
                        ack=self.seqs[1 - own] if flags & ACK else 0, options=options)
        elif self.protocol == "udp":
            upper = UDP(sport=sport, dport=dport, **({"chksum": 0} if self.zero else {}))
        else:
            ident = sport if by_client else dport
            kinds = {4: (ICMP(type=8), ICMP(type=0)), 6: (ICMPv6EchoRequest(), ICMPv6EchoReply())}
            upper = kinds[self.family][0 if by_client else 1]
            upper.id, upper.seq = ident, self.number & 0xFFFF
        return bytes(ip / upper / Raw(payload))

    def is_hidden(self):
        """Does the NAT choose the port that the server end sees?"""
        return self.kind != "local"


class Witness:
    def __init__(self, config, seed, flows):
        self.config, self.rng = config, random.Random(seed)
        self.sides = [Side(name, config["sides"][name]) for name in ("overlane", "linux")]
        self.ext = Port(config["ext"], "eth0", config["ext_gateway"])
        self.flows = [Flow(number, self.rng, config) for number in range(flows)]
        self.tags = self.rng.sample(range(1, 65536), 65535)
        self.compared, self.differences, self.kept, self.again = Counter(), [], 0, 0

    def collect(self, wanted):
        """What arrives, by tag: (whose pod, or ext; the packet). Until all is there, or nothing more comes."""
        got = defaultdict(list)
        ports = [(self.ext, "ext")] + [(side.pod, side.name) for side in self.sides]
        deadline, quiet = time.monotonic() + 5, time.monotonic() + 0.8
        while time.monotonic() < min(deadline, quiet):
            select.select([port.socket for port, _ in ports], [], [], 0.05)
            for port, where in ports:
                for data in port.received():
                    packet = Packet(data)
                    # A router's own error has a number of its own choice.
                    quoted = packet.quoted and packet.quoted.tag
                    tag = quoted if quoted in wanted else packet.tag
                    if tag in wanted:
                        got[tag].append((where, packet))
                        quiet = time.monotonic() + 0.3
        return got

    def exchange(self, build):
        """Every flow's packet on both sides, and what came of it. `build` gives for a flow, if anything,
        a function that says for a side and a tag where the packet goes in, and its bytes."""
        sent, tags = [], set()
        for flow in self.flows:
            made = build(flow)
            for side in self.sides if made else []:
                tag = self.tags.pop()
                tags.add(tag)
                sent.append((flow, side.name, tag, *made(side, tag)))
        got, again = {}, sent
        for _ in range(3):
            # In small bursts: a ring of a port holds only so many.
            for at in range(0, len(again), 8):
                for _, _, _, port, data in again[at:at + 8]:
                    port.send(data)
                time.sleep(0.002)
            for tag, arrivals in self.collect(tags).items():
                got.setdefault(tag, arrivals)
            # A busy machine loses packets; a NAT that lets none through lets none through again.
            arrived = {flow for flow, _, tag, _, _ in sent if tag in got}
            again = [one for one in sent if one[2] not in got and one[0] in arrived]
            if not again:
                break
            self.again += len(again)
        outcomes = defaultdict(dict)
        for flow, side, tag, _, _ in sent:
            outcomes[flow][side] = got.get(tag, [])
        return outcomes

    def compare(self, title, flow, both, expect):
        said = []
        for side in self.sides:
            told = []
            for where, packet in both[side.name]:
                self.faulty(title, flow, side, packet)
                if packet.quoted:
                    self.quotes(title, flow, side, packet)
                place = "ext" if where == "ext" else "own pod" if where == side.name else "another's pod"
                told.append((place, side.describe(packet, flow.chosen[side.name])))
            said.append(told)
        if said[0] != said[1] and not self.differs_on_purpose(said):
            self.differs(title, flow, {"overlane": said[0], "linux": said[1]})
        elif expect is not None and bool(said[0]) != expect:
            self.differs(title, flow, f"arrived: {said[0]}, wanted: {expect}")
        else:
            self.compared[f"{title} {flow.kind} {flow.protocol} IPv{flow.family}"] += 1

    def differs_on_purpose(self, said):
        """A router on the server's side of a service tells of a packet: Linux puts the service's address in
        the router's place, Overlane leaves the router's, as a traceroute wants it. And nothing else."""
        if not (len(said[0]) == len(said[1]) == 1):
            return False
        (where, ours), (there, linux) = said[0][0], said[1][0]
        routers = [*self.config["routers"].values(), *self.config["real_routers"].values()]
        if where != there or ours["source"] not in routers or "quoted" not in ours:
            return False
        if linux["source"] != linux["quoted"]["destination"]:
            return False
        same = {**ours, "source": None} == {**linux, "source": None}
        self.kept += same
        return same

    def faulty(self, title, flow, side, packet):
        if packet.faults:
            self.differs(title, flow, f"{side.name}: {packet.faults} from {packet.source}")

    def quotes(self, title, flow, side, packet):
        """What an error quotes is what that end has sent itself, its checksums included."""
        by_client = packet.quoted.source == flow.client(side)[0]
        sent = flow.latest.get((side.name, by_client))
        if sent is None:
            return
        own, quoted = Packet(sent), packet.quoted
        same = (own.source, own.destination, own.ports, own.protocol, own.tag) == (
            quoted.source, quoted.destination, quoted.ports, quoted.protocol, quoted.tag)
        if not same or quoted.sum not in (b"", own.sum) or not own.rest.startswith(quoted.rest[:4]):
            self.differs(title, flow, f"{side.name}: quotes {quoted.data.hex()}, sent {own.data.hex()}")

    def differs(self, title, flow, what):
        self.differences.append({"round": title, "flow": flow.number, "kind": flow.kind,
                                 "protocol": flow.protocol, "family": flow.family, "what": what})

    def into(self, flow, side, by_client):
        return side.pod if flow.from_pod(by_client) else self.ext

    def talk(self, title, by_client, flags, size=200, protocols=("tcp", "udp", "icmp"), ttl=None):
        """One end of every flow sends, and the other gets it; or with a small `ttl` a pod hears why not."""
        def build(flow):
            if ttl and not flow.from_pod(by_client):
                # It would be the node itself that says so, and each does in its own name.
                return None
            if flow.protocol not in protocols or not by_client and len(flow.seen) < 2:
                return None
            payload = self.rng.randbytes(self.rng.randrange(size + 1)) if size else b""

            def made(side, tag):
                data = flow.build(side, self.config, by_client, flags, payload, tag, ttl)
                flow.latest[side.name, by_client] = data
                return self.into(flow, side, by_client), data
            return made

        outcomes = self.exchange(build)
        for flow, both in outcomes.items():
            for side in self.sides:
                self.learn(flow, side, by_client, both[side.name])
            self.compare(title, flow, both, True)
            own = 0 if by_client else 1
            flow.seqs[own] = (flow.seqs[own] + bool(flags & (SYN | FIN))) % (1 << 32)

    def learn(self, flow, side, by_client, arrivals):
        for _, packet in arrivals:
            if packet.quoted:
                continue
            flow.arrived[side.name, by_client] = packet.data
            if by_client and packet.ports:
                flow.seen[side.name] = (packet.source, packet.ports[0])
                if flow.is_hidden():
                    flow.chosen[side.name].add(packet.ports[0])

    def errors(self, title, about_client, by_router):
        """Somebody tells of the last packet of one end, as it arrived at the other."""
        def build(flow):
            arrived = [flow.arrived.get((side.name, about_client)) for side in self.sides]
            from_pod = flow.from_pod(not about_client)
            if None in arrived or from_pod and by_router or flow.protocol == "icmp" and not about_client:
                return None
            kind, code, rest = self.rng.choice(ERRORS[flow.family])
            length = self.rng.choice((8, 8, 20, 64, 400))

            def made(side, tag):
                about = flow.arrived[side.name, about_client]
                header = 20 if flow.family == 4 else 40
                source = str(ipaddress.ip_address(about[16:20] if flow.family == 4 else about[24:40]))
                if by_router:
                    source = self.config["routers"][str(flow.family)]
                back = str(ipaddress.ip_address(about[12:16] if flow.family == 4 else about[8:24]))
                message = struct.pack("!BBHI", kind, code, 0, rest) + about[:header + length]
                if flow.family == 4:
                    total = 0xFFFF - checksum(message)
                    ip = IP(src=source, dst=back, id=tag, ttl=77, proto=1)
                else:
                    pseudo = ipaddress.ip_address(source).packed + ipaddress.ip_address(back).packed
                    total = 0xFFFF - checksum(message, checksum(pseudo + struct.pack("!II", len(message), 58)))
                    ip = IPv6(src=source, dst=back, fl=tag, hlim=77, nh=58)
                message = message[:2] + struct.pack("!H", total) + message[4:]
                return self.into(flow, side, not about_client), bytes(ip / Raw(message))
            return made

        for flow, both in self.exchange(build).items():
            self.compare(title, flow, both, True)

    def strangers(self):
        """Somebody else sends to the ports that the pods' flows have outside: nobody gets it."""
        def build(flow):
            if flow.kind != "snat" or flow.protocol == "icmp" or len(flow.seen) < 2:
                return None
            others = self.config["remotes"][str(flow.family)]
            other = others[(others.index(flow.remote) + 1) % len(others)]

            def made(side, tag):
                address, port = flow.seen[side.name]
                ip = IP(src=other, dst=address, id=tag) if flow.family == 4 else IPv6(src=other, dst=address, fl=tag)
                upper = TCP if flow.protocol == "tcp" else UDP
                return self.ext, bytes(ip / upper(sport=flow.remote_port, dport=port) / Raw(b"hello"))
            return made

        for flow, both in self.exchange(build).items():
            self.compare("strangers", flow, both, False)

    def run(self):
        self.talk("opens", True, SYN, size=0)
        self.talk("answers", False, SYN | ACK, size=0)
        self.talk("goes on", True, ACK | PSH, size=1100)
        self.talk("comes back", False, ACK | PSH, size=1100)
        for by_router in (False, True):
            who = "routers tell" if by_router else "ends tell"
            self.errors(f"{who} of the client's", True, by_router)
            self.errors(f"{who} of the server's", False, by_router)
        self.talk("after errors", True, ACK | PSH)
        self.talk("after errors, back", False, ACK | PSH)
        # It dies at the router, whose own kernel says so.
        self.talk("traceroute", True, ACK, ttl=2, size=30)
        self.strangers()
        self.talk("closes", True, FIN | ACK, protocols=("tcp",), size=0)
        self.talk("closes, too", False, FIN | ACK, protocols=("tcp",), size=0)
        self.talk("last", True, ACK, protocols=("tcp",), size=0)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        config = json.load(file)
    seed, flows = int(sys.argv[2]), int(sys.argv[3])
    witness = Witness(config, seed, flows)
    witness.run()
    for difference in witness.differences[:8]:
        print(json.dumps(difference)[:2000], file=sys.stderr)
    rounds = Counter()
    for title, count in witness.compared.items():
        rounds[" ".join(title.split(" ")[:-3])] += count
    print(json.dumps({"seed": seed, "flows": flows, "compared": sum(witness.compared.values()),
                      "rounds": rounds, "cases": len(witness.compared), "routers_kept": witness.kept, "sent_again": witness.again,
                      "differences": len(witness.differences)}))
    sys.exit(bool(witness.differences))


main()
