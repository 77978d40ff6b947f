#!/usr/bin/env bash
# Packets that are larger than the MTU pass in fragments where addresses are translated, both ways; the
# host's own fragments are the host's.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VIP4=10.96.1.1 VIP6=fd98::101
NODE_PORT=30700 SCTP_NODE_PORT=30132
TARGETS='7000=7000/UDP 132=1132/SCTP'
LARGE=4000

service() {
  service_manifest big "$VIP4" "$VIP6" "7000=7000/UDP@$NODE_PORT" "132=1132/SCTP@$SCTP_NODE_PORT" | everywhere service-big
  backend "$1"
}
# backend POD: the service's only one.
backend() {
  local node=${1%%-*} pod=${1#*-pod}
  slice_manifests big "$TARGETS" "$node=$(pod_ip4 "$node" "$pod")" "$node=$(pod_ip6 "$node" "$pod")" |
    everywhere slices-big
}
node_port_echo() { at ext "$PYTHON" "$HERE/echo.py" udp "$1" "$NODE_PORT" 5 "$LARGE"; }
large_pings() { at "$1" ping -n -q -c 5 -i 0.05 -W 2 -s "$LARGE" "$2"; }

# last_first NAME ADDRESS: one UDP datagram of 2,400 bytes there and back, its last fragment first.
last_first() {
  at "$1" "$PYTHON" - "$2" <<'PYTHON'
import socket, struct, sys, time
from scapy.all import IP, IPv6, IPv6ExtHdrFragment, UDP, Raw, conf
conf.verb = 0
address, v6 = sys.argv[1], ":" in sys.argv[1]
data = b"last first".ljust(2400, b".")
with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.settimeout(2)
    udp.connect((address, 7000))
    # The neighbour is known, and the flow is not new.
    udp.send(b"before")
    assert udp.recv(100) == b"before"
    source, port = udp.getsockname()[:2]
    header = IPv6(src=source, dst=address) if v6 else IP(src=source, dst=address)
    payload = bytes(header / UDP(sport=port, dport=7000) / Raw(data))[40 if v6 else 20:]
    raw = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for at, more in ((1200, 0), (0, 1)):
        part = payload[at:at + 1200] if more else payload[at:]
        if v6:
            piece = header / IPv6ExtHdrFragment(nh=17, offset=at // 8, m=more, id=7) / Raw(part)
        else:
            piece = IP(src=source, dst=address, proto=17, id=7, flags=more, frag=at // 8) / Raw(part)
        raw.sendto(bytes(piece), (address, 0))
        time.sleep(0.1)
    assert udp.recv(5000) == data
PYTHON
}

fragments() { # fragments TITLE FAMILY
  local title="$1, IPv$2" outside vip node
  case $2 in 4) outside=$EXT4 vip=$VIP4 ;; 6) outside=$EXT6 vip=$VIP6 ;; esac
  node=$("node_ip$2" a)
  check "$title: a pod pings the outside" large_pings a-pod1 "$outside"
  check "$title: datagrams of $LARGE bytes there and back" udp_echo a-pod1 "$outside" 10 "$LARGE"
  check "$title: the last fragment first" last_first a-pod2 "$outside"
  check "$title: SCTP to the outside" sctp_echo a-pod2 "$outside" 1132 ext
  backend b-pod1
  check "$title: a service on another node" wait_until 3 udp_echo a-pod1 "$vip" 10 "$LARGE"
  check "$title: the last fragment first" last_first a-pod2 "$vip"
  check "$title: from outside to a NodePort" node_port_echo "$node"
  check "$title: SCTP to a service on another node" sctp_echo a-pod1 "$vip" 132 b-pod1
  check "$title: SCTP from outside to a NodePort" sctp_echo ext "$node" "$SCTP_NODE_PORT" b-pod1
  backend a-pod2
  check "$title: a service on the same node" wait_until 3 udp_echo a-pod1 "$vip" 10 "$LARGE"
  check "$title: from outside to a NodePort with its backend here" node_port_echo "$node"
  check "$title: pods of two nodes, untranslated" large_pings a-pod1 "$("pod_ip$2" b 1)"
  check "$title: the outside pings the host" large_pings ext "$node"
  check "$title: the host pings the outside" large_pings a "$outside"
  check "$title: datagrams from outside to the host" at ext "$PYTHON" "$HERE/echo.py" udp "$node" 7001 10 "$LARGE"
  check "$title: the last fragment first, to the host" last_first ext "$node"
}
# lost NODE: fragments that were dropped there, by reason.
lost() {
  local reason
  for reason in fragment_first_missing fragment_last_missing fragments_waiting fragment_too_short fragment_not_translated; do
    printf '%s ' "$(drops_of "$1" "$reason")"
  done
}

for options in "geneve 1" "vxlan 2" "native 1"; do
  mode=${options% *} workers=${options#* }
  bed --mode "$mode" --workers "$workers"
  for name in ext a-pod2 b-pod1; do serve "$name"; done
  start a "$PYTHON" "$HERE/echo.py" serve 7001
  start a "$PYTHON" "$HERE/echo.py" serve 7000
  wait_until 5 grep -qs ready "$STARTED_LOG" || die "the echo server of the host did not start"
  capture_begin "$WORK/pcap"
  service b-pod1
  for family in 4 6; do fragments "$mode" "$family"; done
  capture_end
  check "$mode: no pod's address left" no_pod_outside "$WORK/pcap"
  check "$mode: no bad checksum on the underlay" good_checksums "$WORK/pcap"
  for node in $NODE_NAMES; do
    check "$mode: no fragment was lost at $node" equal drops "$(lost "$node")" "0 0 0 0 0 "
    check "$mode: counters of $node close" closes "$node"
  done
  stop_started
done
finish
