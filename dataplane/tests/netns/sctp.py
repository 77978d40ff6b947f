"""SCTP by raw sockets, for kernels that have none; the kernel puts fragments together, scapy knows the CRC.

    sctp.py hear PORT SECONDS        prints, for each packet to that port: SOURCE PORT BYTES good|bad; and answers INIT
    sctp.py tell ADDRESS PORT OWN    an association begins: INIT whole, which is answered from that address and port,
                                     then data in fragments, from port OWN: 2,400 bytes in order and 3,001 with the
                                     last one first
"""

import random
import select
import socket
import struct
import sys
import time

from scapy.all import IP, IPv6, IPv6ExtHdrFragment, Raw, conf
from scapy.layers.sctp import SCTP, SCTPChunkCookieEcho, SCTPChunkData, SCTPChunkInit, SCTPChunkInitAck, crc32c

conf.verb = 0
SCTP_PROTOCOL = 132
INIT, INIT_ACK = 1, 2


def crc_is_right(packet):
    """RFC 9260 section 6.8; scapy's crc32c answers in network order of what is written lowest byte first."""
    zeroed = packet[:8] + bytes(4) + packet[12:]
    return struct.unpack(">I", packet[8:12])[0] == crc32c(zeroed)


def receive(one):
    """A packet without its IP header, and who sent it."""
    packet, peer = one.recvfrom(65535)
    if one.family == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4:]
    return packet, peer[0], struct.unpack(">HH", packet[:4])


def hear(port, seconds):
    sockets = [socket.socket(family, socket.SOCK_RAW, SCTP_PROTOCOL) for family in (socket.AF_INET, socket.AF_INET6)]
    print("ready", flush=True)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for one in select.select(sockets, [], [], left)[0]:
            packet, peer, (source_port, to) = receive(one)
            if to != port:
                continue
            print(peer, source_port, len(packet), "good" if crc_is_right(packet) else "bad", flush=True)
            if packet[12] == INIT:
                answer = SCTP(sport=port, dport=source_port, tag=7) / SCTPChunkInitAck(init_tag=8)
                one.sendto(bytes(answer), (peer, 0))


def tell(address, port, own):
    v6 = ":" in address
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        source = probe.getsockname()[0]
    raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    answers = socket.socket(family, socket.SOCK_RAW, SCTP_PROTOCOL)

    def packet(*chunks):
        built = SCTP(sport=own, dport=port, tag=7)
        for chunk in chunks:
            built /= chunk
        header = IPv6(src=source, dst=address) if v6 else IP(src=source, dst=address)
        # scapy writes the CRC.
        return bytes(header / built)[40 if v6 else 20:]

    # Names that were not used a moment ago: pieces out of order are known by them.
    base = random.randrange(60000)

    def send(payload, number, cuts):
        number += base
        for at, end in cuts:
            part, more = payload[at:end], int(end < len(payload))
            if len(cuts) == 1:
                piece = (IPv6(src=source, dst=address, nh=SCTP_PROTOCOL) if v6
                         else IP(src=source, dst=address, proto=SCTP_PROTOCOL, id=number))
            elif v6:
                piece = IPv6(src=source, dst=address) / IPv6ExtHdrFragment(
                    nh=SCTP_PROTOCOL, offset=at // 8, m=more, id=number)
            else:
                piece = IP(src=source, dst=address, proto=SCTP_PROTOCOL, id=number, flags=more, frag=at // 8)
            raw.sendto(bytes(piece / Raw(part)), (address, 0))
            time.sleep(0.05)

    def answered():
        end = time.monotonic() + 3
        while (left := end - time.monotonic()) > 0 and select.select([answers], [], [], left)[0]:
            answer, peer, ports = receive(answers)
            if (peer, ports, answer[12]) == (address, (port, own), INIT_ACK):
                return crc_is_right(answer)
        return False

    send(packet(SCTPChunkInit(init_tag=7)), 1, [(0, 65535)])
    if not answered():
        sys.exit(f"INIT was not answered from {address} port {port} with a right checksum")
    send(packet(SCTPChunkCookieEcho(cookie=b"cookie")), 2, [(0, 65535)])
    for number, length, is_backward in ((3, 2400, False), (4, 3001, True)):
        payload = packet(SCTPChunkData(data=bytes(at % 251 for at in range(length))))
        cuts = [(at, min(at + 1200, len(payload))) for at in range(0, len(payload), 1200)]
        send(payload, number, cuts[::-1] if is_backward else cuts)


if __name__ == "__main__":
    if sys.argv[1] == "hear":
        hear(int(sys.argv[2]), float(sys.argv[3]))
    else:
        tell(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
