#!/usr/bin/env bash
# A pod sends with addresses that are not its own, or tunnel packets: refused, and named.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# forge WHAT FRAME: send it from a-pod1 five times.
forge() {
  at a-pod1 "$PYTHON" - "$1" <<PYTHON
import sys
from scapy.all import *
conf.verb = 0
own = get_if_hwaddr("eth0")
sendp(eval(sys.argv[1]), iface="eth0", count=5)
PYTHON
}

# refused TITLE REASON FRAME
refused() {
  local before
  before=$(drops_of a "$2")
  forge "$3" > "$WORK/forge" 2>&1 || die "scapy: $(tail -n 3 "$WORK/forge")"
  sleep 0.3
  check "$1 is refused as $2" equal drops $(($(drops_of a "$2") - before)) 5
}

bed --mode geneve
one_ping a-pod1 169.254.1.1 > /dev/null || die "the pod's gateway does not answer"
gateway=$(at a-pod1 ip -j neigh show 169.254.1.1 | jq -r '.[0].lladdr')
b4=$(pod_ip4 b 1) b6=$(pod_ip6 b 1)
start b-pod1 tcpdump --immediate-mode -Z root -ni eth0 -U -w "$WORK/b.pcap" udp port 9
tcpdump=$STARTED
wait_until 5 test -s "$WORK/b.pcap" || die "tcpdump did not start"

refused "another IPv4 source" spoofed_source "Ether(src=own,dst='$gateway')/IP(src='10.244.1.77',dst='$b4')/UDP(dport=9)/b'x'"
refused "another pod's IPv4 source" spoofed_source "Ether(src=own,dst='$gateway')/IP(src='$(pod_ip4 a 2)',dst='$b4')/UDP(dport=9)/b'x'"
refused "another IPv6 source" spoofed_source "Ether(src=own,dst='$gateway')/IPv6(src='fd12:3456:0:1::77',dst='$b6')/UDP(dport=9)/b'x'"
refused "another MAC" spoofed_mac "Ether(src='02:00:00:00:00:99',dst='$gateway')/IP(src='$(pod_ip4 a 1)',dst='$b4')/UDP(dport=9)/b'x'"
refused "a tunnel packet" pod_to_tunnel_port "Ether(src=own,dst='$gateway')/IP(src='$(pod_ip4 a 1)',dst='$(node_ip4 b)')/UDP(sport=5000,dport=6081)/Raw(bytes.fromhex('0000655800000100'))"
# Its own address passes the same way: the forgery is what is refused.
forge "Ether(src=own,dst='$gateway')/IP(src='$(pod_ip4 a 1)',dst='$b4')/UDP(dport=9)/b'x'" > /dev/null 2>&1
sleep 0.3
stop_one "$tcpdump" INT
check "the other pod got the honest packets and no other" \
  equal packets "$(tcpdump -Z root -nr "$WORK/b.pcap" 2> /dev/null | wc -l)" 5

at a-pod1 ip address add 10.244.1.77/32 dev lo
check "ping from another address gets no answer" no_ping a-pod1 "$b4" -I 10.244.1.77
check "counters of a close" closes a
finish
