"""Shows that a peer does a job: one packet from the pod, and the answer to it.

    prove.py dnat-geneve | dnat-vxlan | snat | move

Plays the pod at pod0 (ovp-pod) and the network at wire0 (ovp-net). What comes out at the far end must be
translated and encapsulated as the job says, with right checksums and the same payload; the answer must
come back as from whom the pod asked. `move`: frames must pass unchanged, both ways. Prints what was seen,
one line each; fails when something is missing or different.
"""

import ctypes
import os
import select
import socket
import sys
import time

from scapy.all import IP, UDP, VXLAN, Ether, Raw
from scapy.contrib.geneve import GENEVE

POD_IP, POD_MAC, PORT_MAC = "10.244.1.10", "02:00:00:00:01:0a", "02:00:00:00:01:01"
NODE_IP, NODE_MAC, REMOTE_IP = "10.0.1.4", "02:00:00:00:01:04", "10.0.1.5"
SERVICE, OUTSIDE = "10.96.0.17", "203.0.113.17"
# Of the second service.
BACKENDS = [f"10.244.2.{host}" for host in range(14, 18)]
TUNNELS = {"dnat-geneve": (GENEVE, 6081), "dnat-vxlan": (VXLAN, 4789)}
VNI, PORT, SERVICE_PORT, BACKEND_PORT = 1, 4321, 80, 8080
QUESTION, ANSWER = b"what the pod asks", b"what it is answered"


def fail(text):
    print(f"BAD: {text}")
    sys.exit(1)


def require(condition, text):
    if not condition:
        fail(text)


def attach(namespace, interface):
    """A socket that has all frames of an interface in a namespace."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    except FileNotFoundError:
        fail(f"there is no namespace {namespace}: bring a peer up first")
    if setns(there, 0x40000000):
        fail(f"cannot enter namespace {namespace}: {os.strerror(ctypes.get_errno())}")
    try:
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        port.bind((interface, 0))
    finally:
        setns(own, 0x40000000)
    return port


def exchange(sender, frame, receiver, wanted):
    """Sends until something that is `wanted` arrives: a first packet may be lost while a peer looks
    up where it goes."""
    for _ in range(10):
        sender.send(bytes(frame))
        until = time.monotonic() + 0.5
        while (left := until - time.monotonic()) > 0:
            if not select.select([receiver], [], [], left)[0]:
                break
            data, address = receiver.recvfrom(4096)
            # What it sent itself is seen, too.
            if address[2] != socket.PACKET_OUTGOING and wanted(arrived := Ether(data)):
                return arrived
    return None


def check_sums(packet, may_be_zero, what):
    """Are all checksums from the outermost header on right?"""
    ip = packet[IP]
    again = ip.copy()
    del again.chksum
    require(IP(bytes(again)).chksum == ip.chksum, f"{what}: wrong IP checksum")
    udp = ip.payload
    if udp.chksum == 0:
        require(may_be_zero, f"{what}: no UDP checksum")
        return
    del again[UDP].chksum
    require(IP(bytes(again))[UDP].chksum == udp.chksum, f"{what}: wrong UDP checksum")


def describe(packet):
    ip = packet[IP]
    return f"{ip.src}:{ip[UDP].sport} > {ip.dst}:{ip[UDP].dport}"


def question(destination):
    return (
        Ether(src=POD_MAC, dst=PORT_MAC)
        / IP(src=POD_IP, dst=destination)
        / UDP(sport=PORT, dport=SERVICE_PORT)
        / Raw(QUESTION)
    )


def answer_to(packet, payload):
    """The frame from whom this one was sent to."""
    ip = packet[IP]
    return (
        Ether(src=packet.dst, dst=packet.src)
        / IP(src=ip.dst, dst=ip.src)
        / UDP(sport=ip[UDP].dport, dport=ip[UDP].sport)
        / payload
    )


def is_udp_of(packet, source):
    return IP in packet and UDP in packet and packet[IP].src == source


def prove_move(pod, wire):
    asked = question(SERVICE)
    same = lambda packet: bytes(packet) == bytes(asked)
    require(exchange(pod, asked, wire, same), "what the pod sends does not arrive")
    print(f"out:  {describe(asked)}, unchanged")
    answered = answer_to(asked, Raw(ANSWER))
    same_answer = lambda packet: bytes(packet) == bytes(answered)
    require(exchange(wire, answered, pod, same_answer), "what the network sends does not arrive")
    print(f"back: {describe(answered)}, unchanged")


def prove_service(pod, wire, job):
    layer, port = TUNNELS[job]
    asked = question(SERVICE)
    out = exchange(pod, asked, wire, lambda packet: layer in packet and is_udp_of(packet, NODE_IP))
    require(out, f"nothing in {layer.__name__} comes out")
    check_sums(out, True, "outer header")
    outer, inner = out[IP], Ether(bytes(out[layer].payload))
    require((outer.dst, outer[UDP].dport) == (REMOTE_IP, port), f"it goes to {describe(out)}")
    require(out[layer].vni == VNI, f"its VNI is {out[layer].vni}")
    require(IP in inner and inner[IP].src == POD_IP, "its inner source is not the pod")
    require(inner[IP].dst in BACKENDS and inner[UDP].dport == BACKEND_PORT, f"inside is {describe(inner)}: no backend")
    require(inner[UDP].sport == PORT and bytes(inner[UDP].payload)[: len(QUESTION)] == QUESTION, "inside is something else")
    check_sums(inner, False, "inner header")
    print(f"out:  {describe(out)} {layer.__name__} {VNI}: {describe(inner)}")
    tunnel = GENEVE(vni=VNI, proto=0x6558) if layer is GENEVE else VXLAN(vni=VNI, flags="Instance")
    answered = answer_to(out, tunnel / answer_to(inner, Raw(ANSWER)))
    answered[UDP].sport, answered[UDP].dport = 50000, port
    back(pod, wire, answered, SERVICE)


def prove_snat(pod, wire):
    out = exchange(pod, question(OUTSIDE), wire, lambda packet: IP in packet and packet[IP].dst == OUTSIDE)
    require(out, "nothing comes out")
    require(out[IP].src == NODE_IP, f"it leaves as {describe(out)}, not with the node's address")
    require(out[UDP].dport == SERVICE_PORT and bytes(out[UDP].payload)[: len(QUESTION)] == QUESTION, "it is something else")
    check_sums(out, False, "header")
    print(f"out:  {describe(out)}")
    back(pod, wire, answer_to(out, Raw(ANSWER)), OUTSIDE)


def back(pod, wire, answered, asked):
    arrived = exchange(wire, answered, pod, lambda packet: is_udp_of(packet, asked))
    require(arrived, f"no answer from {asked} reaches the pod")
    require(arrived.dst == POD_MAC, f"the answer is addressed to {arrived.dst}")
    wanted = f"{asked}:{SERVICE_PORT} > {POD_IP}:{PORT}"
    require(describe(arrived) == wanted, f"the answer is {describe(arrived)}, not {wanted}")
    require(bytes(arrived[UDP].payload)[: len(ANSWER)] == ANSWER, "the answer has another payload")
    check_sums(arrived, False, "answer")
    print(f"back: {describe(arrived)}")


def main():
    job = sys.argv[1] if len(sys.argv) == 2 else ""
    if job not in ("move", "snat", *TUNNELS):
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    pod, wire = attach("ovp-pod", "pod0"), attach("ovp-net", "wire0")
    if job == "move":
        prove_move(pod, wire)
    elif job == "snat":
        prove_snat(pod, wire)
    else:
        prove_service(pod, wire, job)


main()
