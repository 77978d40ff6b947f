"""A web server that says who it is, and who asked as it sees it.

    web.py NAME PORT LOG     HTTP on all addresses of both families, and the same on UDP

    GET /            "NAME ADDRESS", the client's address
    GET /bytes/N     N bytes at once
    GET /stream/N    1 MiB a second for N seconds
    a datagram       is answered by "NAME ADDRESS"

Each request adds a line "tcp|udp ADDRESS PATH" to LOG.
"""

import http.server
import socket
import socketserver
import sys
import threading
import time


def plain(address):
    return address.removeprefix("::ffff:")


def say(line):
    with open(LOG, "a", encoding="ascii") as log:
        log.write(line + "\n")


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        client = plain(self.client_address[0])
        say(f"tcp {client} {self.path}")
        _, verb, count = (self.path + "//").split("/")[:3]
        if verb == "bytes":
            self.answer(int(count), [b"\x55" * int(count)])
        elif verb == "stream":
            self.answer(int(count) << 20, self.slowly(int(count)))
        else:
            text = f"{NAME} {client}\n".encode()
            self.answer(len(text), [text])

    def answer(self, length, parts):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    @staticmethod
    def slowly(seconds):
        for _ in range(seconds * 64):
            yield b"\x55" * 16384
            time.sleep(1 / 64)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's, which asks the DNS for its own name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = NAME, PORT


def datagrams():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        s.bind(("::", PORT))
        while True:
            _, control, _, peer = s.recvmsg(65535, 256)
            say(f"udp {plain(peer[0])} -")
            # From the address that was asked: a node has several.
            s.sendmsg([f"{NAME} {plain(peer[0])}\n".encode()], control, 0, peer)


NAME, PORT, LOG = sys.argv[1], int(sys.argv[2]), sys.argv[3]
threading.Thread(target=datagrams, daemon=True).start()
server = Server(("::", PORT), Page)
print("ready", flush=True)
server.serve_forever()
