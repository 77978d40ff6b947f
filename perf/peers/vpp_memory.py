"""What a packet costs VPP in memory: what vpp-memory.sh runs; see its --help.

For each scenario and number of flows VPP is started, told by its CLI what to do, and given packets by its own
packet generator, which replays a capture file without end. Before anything is timed the flows are opened, and what
comes out is captured and looked at. Then VPP and `overlane-perf pipeline` take turns; VPP is stopped
(SIGSTOP) while it is the other's turn, as its worker never sleeps.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

import vpp_packets
import vpp_scenarios

WORKER_CPU, OTHER_CPU = 1, 0
# Of a round: those count in which the worker had its CPU, and their median.
WINDOWS, HAD_CPU, LEAST = 15, 0.92, 3
# Nodes that stand for the ports: the generator, and the interface's output, which frees the packet.
PORT_NODES = re.compile(r"pg-input|pg\d+-(output|tx)")
CLI_ERROR = re.compile(r"unknown (input|command)|error|fail|invalid|not (found|specified)|parse", re.IGNORECASE)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Failed(Exception):
    """What was wrong, and where."""


def note(text):
    """Progress: for a person only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def room(flows):
    """The flows and a quarter more, as `overlane-perf pipeline` has it."""
    return max(65536, flows + flows // 4)


class Vpp:
    """A running VPP of one main thread and one worker."""

    def __init__(self, arguments, folder, flows):
        self.folder = pathlib.Path(folder)
        self.socket = self.folder / "cli.sock"
        self.vppctl = arguments.vppctl
        self.log = self.folder / "vpp.log"
        self.thread = None
        config = self.folder / "startup.conf"
        config.write_text(self.configuration(arguments, flows))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [arguments.vpp, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
            )

    def begin(self):
        """Waits until it answers, and finds its worker."""
        deadline = time.monotonic() + 60
        while not self.socket.exists() or "vpp v" not in self.ask("show version"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"VPP does not start: {self.log.read_text(errors='replace')[-600:]}")
            time.sleep(0.2)
        self.thread = self.worker()

    def configuration(self, arguments, flows):
        pages = "2M" if arguments.huge_pages else "4K"
        wanted = "".join(f"plugin {name}_plugin.so {{ enable }} " for name in vpp_scenarios.PLUGINS)
        # Sessions are not to age while it is stopped.
        return f"""
unix {{ nodaemon nosyslog runtime-dir {self.folder} cli-listen {self.socket} }}
cpu {{ main-core {OTHER_CPU} corelist-workers {WORKER_CPU} }}
memory {{ main-heap-size {1 if flows <= 65536 else 3}G main-heap-page-size {pages} }}
buffers {{ page-size {pages} }}
statseg {{ socket-name {self.folder}/stats.sock }}
socksvr {{ socket-name {self.folder}/api.sock }}
plugins {{ plugin default {{ disable }} {wanted} }}
cnat {{ session-max {room(flows)} session-max-age 36000 }}
"""

    def ask(self, command):
        """What the CLI answers."""
        asking = [self.vppctl, "-s", str(self.socket), command]
        try:
            done = subprocess.run(asking, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"VPP does not answer '{command}' within two minutes") from None
        return done.stdout + done.stderr

    def tell(self, commands):
        """Carries out commands, one a line, each of which must succeed."""
        script = self.folder / "commands"
        script.write_text("\n".join(commands) + "\n")
        answer = self.ask(f"exec {script}")
        if wrong := CLI_ERROR.search(answer):
            raise Failed(f"VPP refuses to be set up: {answer[wrong.start() :].strip()[:400]}")

    def worker(self):
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("vpp_wk"):
                return task
        raise Failed("VPP has no worker thread")

    def running(self):
        """Nanoseconds that the worker has had a CPU."""
        return int((self.thread / "schedstat").read_text().split()[0])

    def pause(self):
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self):
        if self.process.poll() is None:
            self.go_on()
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def window(self, seconds):
        """Nanoseconds of the worker's CPU time for a packet, and each node's share of them."""
        self.ask("clear runtime")
        began, had = time.monotonic_ns(), self.running()
        time.sleep(seconds)
        # The kernel counts by ticks what a running thread had: it may seem to be a little more than all.
        share = min(1.0, (self.running() - had) / (time.monotonic_ns() - began))
        text = self.ask("show runtime").split("Thread 1 ")[-1]
        rates = re.search(r"vector rates in ([\d.e+-]+), out ([\d.e+-]+), drop ([\d.e+-]+)", text)
        if not rates:
            raise Failed(f"VPP's 'show runtime' reads otherwise than expected: {text[:300]}")
        arrived, _, dropped = (float(rate) for rate in rates.groups())
        if arrived == 0 or dropped > 0:
            raise Failed(f"{dropped:.0f} of {arrived:.0f} packets a second are dropped: {self.ask('show errors')[:600]}")
        nodes = {}
        for line in text.splitlines():
            fields = line.split()
            # NAME STATE CALLS VECTORS SUSPENDS CLOCKS VECTORS/CALL; the state may be two words.
            if len(fields) >= 7 and fields[-4].isdigit() and int(fields[-4]) > 0:
                nodes[fields[0]] = (float(fields[-2]) * int(fields[-4]), float(fields[-1]))
        clocks = sum(spent for spent, _ in nodes.values())
        shares = {name: spent / clocks for name, (spent, _) in nodes.items()}
        return {
            "ns": 1e9 * share / arrived,
            "had_cpu": share,
            "ports": sum(part for name, part in shares.items() if PORT_NODES.fullmatch(name)),
            "shares": shares,
            "vector": nodes.get("pg-input", (0, 0))[1],
        }


def replay(vpp, name, interface, file, vector, limit=-1):
    """Has the generator send the packets of a file: `limit` of them, or without end."""
    vpp.tell(
        [
            f"packet-generator new {{ name {name} pcap {file} source {interface} "
            f"limit {limit} maxframe {vector} worker 0 }}",
            f"packet-generator enable-stream {name}",
        ]
    )


def wait_for(vpp, name, seconds):
    """Until a stream with a limit has sent all."""
    deadline = time.monotonic() + seconds
    while True:
        line = next((line for line in vpp.ask("show packet-generator").splitlines() if line.split()[:1] == [name]), "")
        if re.search(r"\bNo\b", line):
            return
        if time.monotonic() > deadline:
            raise Failed(f"the stream {name} does not end: {line}")
        time.sleep(0.1)


def prepare(vpp, scenario, arguments, flows):
    """Sets VPP up, opens the flows, proves what is done with a packet, and starts the endless stream."""
    bed = vpp_scenarios.Bed(arguments.peers, room(flows))
    vpp.tell(vpp_scenarios.setup(scenario, bed))
    bed.macs = vpp_scenarios.tunnel_macs(vpp.ask("show hardware-interfaces"))
    folder = vpp.folder
    first, way = folder / "first.pcap", scenario.opener or scenario
    vpp_packets.write(first, way.packets(flows, bed))
    out = folder / "out.pcap"
    vpp.tell([f"packet-generator capture {way.leaves} pcap {out} count {flows}"])
    replay(vpp, "open", way.enters, first, arguments.vector, flows)
    wait_for(vpp, "open", 120)
    vpp.tell([f"packet-generator capture {way.leaves} disable", "packet-generator delete open"])
    seen = vpp_packets.read(out)
    if len(seen) != flows:
        raise Failed(f"of {flows} packets {len(seen)} came out: {vpp.ask('show errors')[:600]}")
    proof = way.prove(first, seen, bed)
    stream = first
    if scenario.opener:
        stream, back = folder / "answers.pcap", folder / "back.pcap"
        vpp_packets.write(stream, scenario.answers(seen, bed))
        vpp.tell([f"packet-generator capture {scenario.leaves} pcap {back} count 256"])
        replay(vpp, "back", scenario.enters, stream, arguments.vector, 256)
        wait_for(vpp, "back", 60)
        vpp.tell([f"packet-generator capture {scenario.leaves} disable", "packet-generator delete back"])
        seen = vpp_packets.read(back)
        if len(seen) != 256:
            raise Failed(f"of 256 answers {len(seen)} came out: {vpp.ask('show errors')[:600]}")
        proof = scenario.prove(stream, seen, bed)
    elif scenario.sessions:
        # In another order than they were opened in, which is that of their memory.
        stream = folder / "again.pcap"
        vpp_packets.write(stream, vpp_scenarios.shuffled(vpp_packets.read(first)))
    if scenario.sessions:
        check_sessions(vpp, scenario, flows)
    replay(vpp, "load", scenario.enters, stream, arguments.vector)
    # Every packet once at least, and every buffer.
    time.sleep(0.5 + flows / 2e6)
    return proof


def check_sessions(vpp, scenario, flows):
    """Are there as many flows as there are to be?"""
    command, pattern, extra = scenario.sessions
    found = re.search(pattern, answer := vpp.ask(command))
    if not found or int(found.group(1)) - extra != flows:
        raise Failed(f"{flows} flows were opened, '{command}' knows others: {answer[-300:]}")


def overlane(arguments, scenario, flows):
    """Overlane's figures for the same: all, and the ports alone."""
    endpoints = vpp_scenarios.endpoints(arguments.peers)
    command = [arguments.overlane, "pipeline", "--scenario", scenario.overlane, "--flows", str(flows)]
    command += ["--peers", str(arguments.peers), "--endpoints", str(endpoints)]
    command += ["--seconds", str(arguments.seconds), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"overlane-perf: {done.stderr.strip()}")
    result = json.loads(done.stdout)["result"]
    cost = result["rows"][0]["cost"]
    return {"ns": cost["total_ns"]["median"], "ports_ns": cost["ports_ns"]["median"], "memory": result["memory"]}


def rounds(arguments, scenario, flows, folder):
    """One row: VPP and Overlane in turn."""
    # A signal must not come between the start and what ends it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    vpp = Vpp(arguments, folder, flows)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        vpp.begin()
        if not arguments.version:
            arguments.version = vpp.ask("show version").split(" built")[0].strip()
        proof = prepare(vpp, scenario, arguments, flows)
        row = {"scenario": scenario.name, "flows": flows, "proof": proof, "rounds": []}
        for number in range(arguments.rounds):
            note(f"{scenario.name}, {flows} flows, round {number + 1} of {arguments.rounds}")
            row["rounds"].append(one_round(arguments, vpp, scenario, flows))
        return row
    finally:
        vpp.end()


def one_round(arguments, vpp, scenario, flows):
    windows = []
    while len(windows) < WINDOWS or (len(windows) < 3 * WINDOWS and len(undisturbed(windows)) < LEAST):
        windows.append(vpp.window(arguments.seconds / WINDOWS))
    counted = undisturbed(windows)
    disturbed = len(counted) < LEAST
    if disturbed:
        # Those that had most of it.
        counted = sorted(windows, key=lambda window: -window["had_cpu"])[:LEAST]
    turn = {"load_average": os.getloadavg()[0], "disturbed": disturbed, "vpp": middle(counted)}
    if arguments.overlane and scenario.overlane:
        vpp.pause()
        turn["overlane"] = overlane(arguments, scenario, flows)
        vpp.go_on()
        # The caches are the other's now.
        time.sleep(0.2 + flows / 4e6)
    return turn


def undisturbed(windows):
    return [window for window in windows if window["had_cpu"] >= HAD_CPU]


def middle(windows):
    """The medians of several windows: of all, of the ports, of each node."""
    of = lambda value: statistics.median(map(value, windows))
    names = {name for window in windows for name in window["shares"]}
    return {
        "ns": of(lambda window: window["ns"]),
        "ports_ns": of(lambda window: window["ns"] * window["ports"]),
        "nodes_ns": {name: of(lambda window: window["ns"] * window["shares"].get(name, 0)) for name in sorted(names)},
        "had_cpu": of(lambda window: window["had_cpu"]),
        "vector": of(lambda window: window["vector"]),
    }


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summarise(row):
    """Medians and ranges of the rounds; ratios are taken within a round."""
    turns = row["rounds"]
    vpp = [turn["vpp"] for turn in turns]
    row["vpp_ns"] = spread([each["ns"] for each in vpp])
    row["vpp_ports_ns"] = spread([each["ports_ns"] for each in vpp])
    row["vpp_graph_ns"] = spread([each["ns"] - each["ports_ns"] for each in vpp])
    row["disturbed"] = sum(turn["disturbed"] for turn in turns)
    row["vector"] = statistics.median(each["vector"] for each in vpp)
    both = [(turn["overlane"], turn["vpp"]) for turn in turns if "overlane" in turn]
    if both:
        row["overlane_ns"] = spread([own["ns"] for own, _ in both])
        row["overlane_ports_ns"] = spread([own["ports_ns"] for own, _ in both])
        row["overlane_pipeline_ns"] = spread([own["ns"] - own["ports_ns"] for own, _ in both])
        row["ratio"] = spread([(own["ns"] - own["ports_ns"]) / (each["ns"] - each["ports_ns"]) for own, each in both])
        row["ratio_with_ports"] = spread([own["ns"] / each["ns"] for own, each in both])
    return row


def table(rows):
    """For people."""
    heads = ["SCENARIO", "FLOWS", "VPP: ALL NODES", "GRAPH ALONE", "OVERLANE: ALL", "PIPELINE", "RATIO (RANGE)", "ALL"]
    lines = [heads]

    def cell(value, digits=1):
        if value is None:
            return "-"
        median, least, most = (f"{value[name]:.{digits}f}" for name in ("median", "least", "most"))
        return f"{median} ({least}-{most})"

    for row in rows:
        line = [row["scenario"], str(row["flows"]), cell(row["vpp_ns"]), cell(row["vpp_graph_ns"])]
        line += [cell(row.get("overlane_ns")), cell(row.get("overlane_pipeline_ns")), cell(row.get("ratio"), 2)]
        line.append(f"{row['ratio_with_ports']['median']:.2f}" if "ratio" in row else "-")
        line[-1] += " disturbed" if row["disturbed"] else ""
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def parse():
    parser = argparse.ArgumentParser(prog="vpp-memory.sh")
    for name in ("--vpp", "--vppctl", "--overlane", "--folder", "--output"):
        parser.add_argument(name, default="")
    parser.add_argument("--scenario", default="all")
    parser.add_argument("--flows", default="1000")
    parser.add_argument("--seconds", type=float, default=1.5)
    for name, value in (("--peers", 64), ("--vector", 256), ("--rounds", 3), ("--huge-pages", 0)):
        parser.add_argument(name, type=int, default=value)
    return parser.parse_args()


def wrong(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def main():
    arguments = parse()
    arguments.version = ""
    known = vpp_scenarios.ALL
    names = list(known) if arguments.scenario == "all" else arguments.scenario.split(",")
    if unknown := [name for name in names if name not in known]:
        wrong(f"no scenario {unknown[0]}: there are all, {', '.join(known)}")
    flows = [int(count) if count.isdigit() else 0 for count in arguments.flows.split(",")]
    if not all(1 <= count <= 4_000_000 for count in flows):
        wrong(f"--flows {arguments.flows}: numbers within 1 and 4,000,000 are wanted, separated by commas")
    in_range = 1 <= arguments.peers <= 200 and 1 <= arguments.vector <= 256
    if not (in_range and arguments.rounds >= 1 and arguments.seconds > 0):
        wrong("--peers is within 1 and 200, --vector within 1 and 256, --rounds and --seconds above 0")
    rows = []
    try:
        for name in names:
            for count in flows:
                folder = pathlib.Path(arguments.folder, f"{name}-{count}")
                folder.mkdir()
                try:
                    rows.append(summarise(rounds(arguments, known[name], count, folder)))
                except (Failed, vpp_scenarios.Wrong) as failure:
                    raise Failed(f"{name}, {count} flows: {failure}") from None
                for file in folder.glob("*.pcap"):
                    file.unlink()
    except Failed as failure:
        note("")
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)
    note("")
    report(arguments, rows)


def report(arguments, rows):
    about = {
        "vpp": arguments.version,
        "pages": "2 MiB" if arguments.huge_pages else "4 KiB",
        "peers": arguments.peers,
        "vector": arguments.vector,
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    if arguments.output == "json":
        print(json.dumps({"about": about, "kind": "vpp-memory", "rows": rows}, indent=2))
        return
    print(f"{about['vpp']}; vectors of {arguments.vector}, {arguments.peers} peers, {about['pages']} pages")
    print(f"nanoseconds a packet; load average {about['load_average']}")
    print(table(rows))
    print("\nProved, by what came out:")
    for row in {row["scenario"]: row for row in rows}.values():
        print(f"  {row['scenario']}: {row['proof']}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
