"""Ask for an IPv4 address on a link, ten times a second, and write down who says what.

neighbors.py ask INTERFACE ADDRESS LOG     until it is ended
neighbors.py twice LOG                     questions that two MACs answered; fails if there are any
neighbors.py first LOG MAC SINCE           seconds from SINCE to the first answer of MAC after it
neighbors.py last LOG MAC SINCE            seconds from SINCE to the last answer of MAC; 0: none since
neighbors.py gratuitous LOG MAC SINCE      operations of MAC's announcements since then, each once

SINCE: seconds since 1970. Lines of the log: time, kind (asked, answer, gratuitous), MAC, operation.
"""

import select
import socket
import struct
import sys
import time

ARP, BROADCAST = 0x0806, b"\xff" * 6


def text(mac):
    return ":".join(f"{byte:02x}" for byte in mac)


def ask(interface, address, log):
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP)) as link, open(
        log, "w", buffering=1
    ) as out:
        link.bind((interface, ARP))
        own = link.getsockname()[4]
        # A source that nobody remembers: the answers are to this MAC all the same.
        source = socket.inet_aton("10.0.0.1")
        question = struct.pack("!6s6sHHHBBH6s4s6s4s", BROADCAST, own, ARP, 1, 0x0800, 6, 4, 1, own, source, bytes(6), wanted)
        due = time.time()
        while True:
            now = time.time()
            if now >= due:
                link.send(question)
                print(f"{now:.4f} asked - 1", file=out)
                due = now + 0.1
            if not select.select([link], [], [], max(due - time.time(), 0))[0]:
                continue
            frame = link.recv(2048)
            operation, mac, sender, _, target = struct.unpack("!H6s4s6s4s", frame[20:42])
            if sender != wanted:
                continue
            kind = "gratuitous" if target == wanted else "answer"
            print(f"{time.time():.4f} {kind} {text(mac)} {operation}", file=out)


def read(log):
    with open(log) as lines:
        for line in lines:
            moment, kind, mac, operation = line.split()
            yield float(moment), kind, mac, operation


def twice(log):
    found, macs, asked = 0, set(), 0
    for moment, kind, mac, _ in read(log):
        if kind == "asked":
            macs, asked = set(), asked + 1
        elif kind == "answer":
            macs.add(mac)
            if len(macs) == 2:
                found += 1
                print(f"at {moment} answered by {sorted(macs)}")
    print(f"{asked} questions, {found} answered twice")
    sys.exit(1 if found or asked < 20 else 0)


def answers(log, mac, since):
    return [moment - since for moment, kind, who, _ in read(log) if kind == "answer" and who == mac and moment > since]


verb, arguments = sys.argv[1], sys.argv[2:]
if verb == "ask":
    ask(*arguments)
elif verb == "twice":
    twice(*arguments)
elif verb in ("first", "last"):
    found = answers(arguments[0], arguments[1], float(arguments[2]))
    if verb == "first" and not found:
        sys.exit("no answer")
    print(f"{(found[0] if verb == 'first' else max(found, default=0)):.2f}")
elif verb == "gratuitous":
    log, mac, since = arguments[0], arguments[1], float(arguments[2])
    seen = {op for moment, kind, who, op in read(log) if kind == "gratuitous" and who == mac and moment > since}
    print(" ".join(sorted(seen)))
else:
    sys.exit(__doc__)
