"""Frames as `overlane-perf pipeline` makes them, and files of them (pcap), for vpp_memory.py.

64 bytes on the wire are 60 in memory. Built by hand: scapy takes minutes for a million.
"""

import struct

HEADERS = struct.Struct("!12sHBBHHHBBHIIHHHH")
TUNNEL = struct.Struct("!I I")
PCAP, RECORD = struct.Struct("<IHHiIII"), struct.Struct("<IIII")
PAYLOAD = b"\x5a" * 18
ETHERNET, OUTER = 14, 14 + 20 + 8 + 8
GENEVE_PORT, VXLAN_PORT, VNI = 6081, 4789, 1
DONT_FRAGMENT, TTL, UDP = 0x4000, 64, 17


def address(text):
    """An IPv4 address as a number."""
    parts = [int(part) for part in text.split(".")]
    return parts[0] << 24 | parts[1] << 16 | parts[2] << 8 | parts[3]


def dotted(number):
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def folded(total):
    """The checksum of a sum of 16-bit words."""
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def datagram(macs, source, destination, ports, payload=PAYLOAD, checksum=True):
    """A UDP datagram in an Ethernet frame; `macs` are destination and source, one behind the other."""
    length = 8 + len(payload)
    addresses = (source >> 16) + (source & 0xFFFF) + (destination >> 16) + (destination & 0xFFFF)
    ip_sum = folded(0x4500 + 20 + length + DONT_FRAGMENT + (TTL << 8 | UDP) + addresses)
    udp_sum = 0
    if checksum:
        words = sum(struct.unpack(f"!{len(payload) // 2}H", payload)) if payload is not PAYLOAD else 9 * 0x5A5A
        udp_sum = folded(addresses + UDP + 2 * length + ports[0] + ports[1] + words) or 0xFFFF
    head = HEADERS.pack(
        macs, 0x0800, 0x45, 0, 20 + length, 0, DONT_FRAGMENT, TTL, UDP, ip_sum, source, destination, *ports, length, udp_sum
    )
    return head + payload


def in_tunnel(kind, macs, source, destination, source_port, inner):
    """A frame in Geneve or VXLAN, as a peer sends it: without an outer UDP checksum."""
    if kind == "geneve":
        port, header = GENEVE_PORT, TUNNEL.pack(0x6558, VNI << 8)
    else:
        port, header = VXLAN_PORT, TUNNEL.pack(0x08 << 24, VNI << 8)
    return datagram(macs, source, destination, (source_port, port), header + inner, checksum=False)


def parts(frame):
    """Source, destination and ports of the UDP packet in a frame."""
    return struct.unpack_from("!IIHH", frame, ETHERNET + 12)


def write(path, frames):
    """Writes a capture file."""
    with open(path, "wb") as file:
        file.write(PCAP.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(RECORD.pack(0, 0, len(frame), len(frame)))
            file.write(frame)


def read(path):
    """The frames of a capture file; none if there is no file."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    frames, at = [], PCAP.size
    while at + RECORD.size <= len(data):
        length = RECORD.unpack_from(data, at)[2]
        at += RECORD.size
        frames.append(data[at : at + length])
        at += length
    return frames
