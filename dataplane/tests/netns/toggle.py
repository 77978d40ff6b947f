"""Takes a local endpoint away and gives it back, again and again, over the dataplane's socket.

    toggle.py SOCKET ROUNDS NAME INTERFACE ADDRESS...

Prints how long one took, each way: {"rounds": N, "attach_ms": median, "detach_ms": median}.
"""

import json
import socket
import statistics
import sys
import time


def main():
    path, rounds, name, interface, *addresses = sys.argv[1:]
    endpoint = {"name": name, "addresses": addresses, "attachment": {"local": {"interface": interface}}}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.settimeout(10)
    lines = connection.makefile("rw")
    number = 0

    def apply(change):
        nonlocal number
        number += 1
        began = time.monotonic()
        request = {"version": 1, "id": number, "op": {"apply": {"changes": [change]}}}
        lines.write(json.dumps(request) + "\n")
        lines.flush()
        result = json.loads(lines.readline())["result"]
        if "Ok" not in result or result["Ok"]["applied"]["warnings"]:
            sys.exit(f"round {number // 2}: {change} was answered with {result}")
        return (time.monotonic() - began) * 1000

    attach, detach = [], []
    for _ in range(int(rounds)):
        detach.append(apply({"remove": {"endpoint": name}}))
        attach.append(apply({"set": {"endpoint": endpoint}}))
    report = {"rounds": int(rounds), "attach_ms": round(statistics.median(attach), 1)}
    print(json.dumps(report | {"detach_ms": round(statistics.median(detach), 1)}))


main()
