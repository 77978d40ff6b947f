"""Both ends of a conversation, for the scenarios.

    echo.py serve PORT                  echo on TCP and UDP, IPv4 and IPv6
    echo.py tcp ADDRESS PORT BYTES      send that many random bytes, compare what comes back
    echo.py udp ADDRESS PORT COUNT [BYTES]   datagrams of several sizes, or of one, one after the other
    echo.py session ADDRESS PORT        a line every 20 ms until SIGTERM; then prints
                                        {"lines": N, "longest_gap_ms": N, "error": null or text}
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time


def serve(port):
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    udp.bind(("::", port))
    print("ready", flush=True)

    def datagrams():
        while True:
            data, control, _, peer = udp.recvmsg(65535, 256)
            # Answer from the address that was asked: a node has several.
            udp.sendmsg([data], control, 0, peer)

    def echo(connection):
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    threading.Thread(target=datagrams, daemon=True).start()
    while True:
        connection, _ = tcp.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def tcp(address, port, count):
    data = os.urandom(count)
    back = hashlib.sha256()
    got = 0
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.settimeout(10)

        def send():
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        while chunk := connection.recv(65536):
            got += len(chunk)
            back.update(chunk)
        sender.join()
    if got != count or back.digest() != hashlib.sha256(data).digest():
        sys.exit(f"sent {count} bytes, got {got} back, or they differ")


def udp(address, port, count, size=None):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.connect((address, port))
        for number in range(count):
            # Text: random bytes now and then look like another protocol to who decodes a capture.
            data = (b"datagram %d " % number).ljust(size or 15 + (number * 97) % 1300, b".")
            for attempt in range(3):
                s.send(data)
                try:
                    if s.recv(65535) == data:
                        break
                except TimeoutError:
                    continue
            else:
                sys.exit(f"datagram {number} of {len(data)} bytes was not answered")


def session(address, port):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    report = {"lines": 0, "longest_gap_ms": 0, "error": None}
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.settimeout(30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not stop.is_set():
                line = b"%08d\n" % report["lines"]
                sent = time.monotonic()
                connection.sendall(line)
                back = b""
                while len(back) < len(line):
                    chunk = connection.recv(len(line) - len(back))
                    if not chunk:
                        raise OSError("closed by the other end")
                    back += chunk
                if back != line:
                    raise OSError(f"{line} came back as {back}")
                gap = int((time.monotonic() - sent) * 1000)
                report["longest_gap_ms"] = max(report["longest_gap_ms"], gap)
                report["lines"] += 1
                stop.wait(0.02)
    except OSError as error:
        report["error"] = str(error)
    print(json.dumps(report), flush=True)


def main():
    verb, *rest = sys.argv[1:]
    if verb == "serve":
        serve(int(rest[0]))
    elif verb == "session":
        session(rest[0], int(rest[1]))
    else:
        {"tcp": tcp, "udp": udp}[verb](rest[0], *map(int, rest[1:]))


main()
